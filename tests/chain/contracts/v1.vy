# pragma version 0.4.3
# DrainChannel: no fee, and no close before the expiry.

import channel

initializes: channel

exports: (
    channel.open,
    channel.claim,
    channel.close,
    channel.getChannel,
    channel.getBalance,
    channel.channels,
    channel.nonces,
    channel.owner,
    channel.usdc,
    channel.isImmutable,
    channel.setUSDC,
    channel.renounceOwnership,
    channel.DOMAIN_SEPARATOR,
    channel.DOMAIN_TYPEHASH,
    channel.VOUCHER_TYPEHASH,
)


@deploy
def __init__(token: address, owner: address):
    channel.__init__(token, owner, empty(address), 0)
