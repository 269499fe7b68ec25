# pragma version 0.4.3
# DrainChannelV2: a fee on what the provider is paid, and a close that both sides agree to.

import channel

initializes: channel

exports: channel.__interface__


@deploy
def __init__(token: address, owner: address, fee_recipient: address, fee_bps: uint256):
    channel.__init__(token, owner, fee_recipient, fee_bps)
