# pragma version 0.4.3
# Payment channels as both DRAIN contracts have them, written from their documented behaviour, for tests alone: it has
# been reviewed by nobody and must never hold real money. v1.vy and v2.vy say which part of it each contract shows.

interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def balanceOf(owner: address) -> uint256: view

struct Channel:
    consumer: address
    provider: address
    deposit: uint256
    claimed: uint256
    expiry: uint256

event ChannelOpened:
    channelId: indexed(bytes32)
    consumer: indexed(address)
    provider: indexed(address)
    deposit: uint256
    expiry: uint256

event ChannelClaimed:
    channelId: indexed(bytes32)
    provider: indexed(address)
    amount: uint256

event ChannelClosed:
    channelId: indexed(bytes32)
    consumer: indexed(address)
    refund: uint256

event FeePaid:
    channelId: indexed(bytes32)
    recipient: indexed(address)
    amount: uint256

event FeeUpdated:
    recipient: address
    feeBps: uint256

event Swept:
    recipient: address
    amount: uint256

event USDCUpdated:
    previous: address
    current: address

event OwnershipRenounced:
    previous: address

MOST_FEE_BPS: constant(uint256) = 1000
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

DOMAIN_TYPEHASH: public(constant(bytes32)) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
VOUCHER_TYPEHASH: public(constant(bytes32)) = keccak256("Voucher(bytes32 channelId,uint256 amount,uint256 nonce)")
CLOSE_TYPEHASH: public(constant(bytes32)) = keccak256("CloseAuthorization(bytes32 channelId,uint256 finalAmount)")

DOMAIN_SEPARATOR: public(immutable(bytes32))

owner: public(address)
usdc: public(address)
channels: public(HashMap[bytes32, Channel])
nonces: public(HashMap[address, uint256])
totalLocked: public(uint256)
feeBps: public(uint256)
feeRecipient: public(address)


@deploy
def __init__(token: address, owner: address, fee_recipient: address, fee_bps: uint256):
    self.usdc = token
    self.owner = owner
    self.feeRecipient = fee_recipient
    self.feeBps = fee_bps
    DOMAIN_SEPARATOR = keccak256(
        abi_encode(DOMAIN_TYPEHASH, keccak256("DrainChannel"), keccak256("1"), chain.id, self)
    )


@external
def open(provider: address, amount: uint256, duration: uint256) -> bytes32:
    if amount == 0:
        raw_revert(method_id("InvalidAmount()"))
    if provider == empty(address):
        raw_revert(method_id("ZeroAddress()"))
    id: bytes32 = keccak256(
        concat(
            convert(msg.sender, bytes20),
            convert(provider, bytes20),
            convert(block.timestamp, bytes32),
            convert(self.nonces[msg.sender], bytes32),
        )
    )
    if self.channels[id].consumer != empty(address):
        raw_revert(method_id("ChannelExists()"))
    self.nonces[msg.sender] += 1
    expiry: uint256 = block.timestamp + duration
    self.channels[id] = Channel(consumer=msg.sender, provider=provider, deposit=amount, claimed=0, expiry=expiry)
    self.totalLocked += amount
    if not extcall Token(self.usdc).transferFrom(msg.sender, self, amount):
        raw_revert(method_id("TransferFailed()"))
    log ChannelOpened(channelId=id, consumer=msg.sender, provider=provider, deposit=amount, expiry=expiry)
    return id


@external
def claim(channelId: bytes32, amount: uint256, nonce: uint256, signature: Bytes[256]):
    channel: Channel = self.channels[channelId]
    if channel.consumer == empty(address):
        raw_revert(method_id("ChannelNotFound()"))
    if msg.sender != channel.provider:
        raw_revert(method_id("NotProvider()"))
    if amount <= channel.claimed or amount > channel.deposit:
        raw_revert(method_id("InvalidAmount()"))
    struct_hash: bytes32 = keccak256(abi_encode(VOUCHER_TYPEHASH, channelId, amount, nonce))
    if self._signer(struct_hash, signature) != channel.consumer:
        raw_revert(method_id("InvalidSignature()"))
    self.channels[channelId].claimed = amount
    self._pay(channelId, channel.provider, amount - channel.claimed)
    log ChannelClaimed(channelId=channelId, provider=channel.provider, amount=amount - channel.claimed)


@external
def close(channelId: bytes32):
    channel: Channel = self.channels[channelId]
    if channel.consumer == empty(address):
        raw_revert(method_id("ChannelNotFound()"))
    if msg.sender != channel.consumer:
        raw_revert(method_id("NotConsumer()"))
    if block.timestamp < channel.expiry:
        raw_revert(method_id("NotExpired()"))
    self._end(channelId, channel.consumer, channel.deposit - channel.claimed)


@external
def cooperativeClose(channelId: bytes32, finalAmount: uint256, signature: Bytes[256]):
    channel: Channel = self.channels[channelId]
    if channel.consumer == empty(address):
        raw_revert(method_id("ChannelNotFound()"))
    if msg.sender != channel.consumer:
        raw_revert(method_id("NotConsumer()"))
    if finalAmount < channel.claimed or finalAmount > channel.deposit:
        raw_revert(method_id("InvalidAmount()"))
    struct_hash: bytes32 = keccak256(abi_encode(CLOSE_TYPEHASH, channelId, finalAmount))
    if self._signer(struct_hash, signature) != channel.provider:
        raw_revert(method_id("InvalidSignature()"))
    self.channels[channelId].claimed = finalAmount
    if finalAmount > channel.claimed:
        self._pay(channelId, channel.provider, finalAmount - channel.claimed)
    self._end(channelId, channel.consumer, channel.deposit - finalAmount)


@view
@external
def getChannel(channelId: bytes32) -> Channel:
    return self.channels[channelId]


@view
@external
def getBalance(channelId: bytes32) -> uint256:
    return self.channels[channelId].deposit - self.channels[channelId].claimed


@view
@external
def isImmutable() -> bool:
    return self.owner == empty(address)


@external
def setUSDC(token: address):
    self._only_owner()
    if token == empty(address):
        raw_revert(method_id("ZeroAddress()"))
    log USDCUpdated(previous=self.usdc, current=token)
    self.usdc = token


@external
def setFee(recipient: address, fee_bps: uint256):
    self._only_owner()
    if fee_bps > MOST_FEE_BPS:
        raw_revert(method_id("FeeTooHigh()"))
    if recipient == empty(address):
        raw_revert(method_id("ZeroAddress()"))
    self.feeBps = fee_bps
    self.feeRecipient = recipient
    log FeeUpdated(recipient=recipient, feeBps=fee_bps)


@external
def sweep():
    self._only_owner()
    excess: uint256 = staticcall Token(self.usdc).balanceOf(self) - self.totalLocked
    if excess == 0:
        raw_revert(method_id("NoExcess()"))
    self._send(self.owner, excess)
    log Swept(recipient=self.owner, amount=excess)


@external
def renounceOwnership():
    self._only_owner()
    log OwnershipRenounced(previous=self.owner)
    self.owner = empty(address)


@view
@internal
def _only_owner():
    if msg.sender != self.owner:
        raw_revert(method_id("NotOwner()"))


@view
@internal
def _signer(struct_hash: bytes32, signature: Bytes[256]) -> address:
    if len(signature) != 65:
        raw_revert(method_id("InvalidSignature()"))
    r: uint256 = extract32(signature, 0, output_type=uint256)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if v < 27:
        v += 27
    if s > HALF_ORDER or (v != 27 and v != 28):
        raw_revert(method_id("InvalidSignature()"))
    digest: bytes32 = keccak256(concat(b"\x19\x01", DOMAIN_SEPARATOR, struct_hash))
    signer: address = ecrecover(digest, v, r, s)
    if signer == empty(address):
        raw_revert(method_id("InvalidSignature()"))
    return signer


@internal
def _pay(channelId: bytes32, provider: address, amount: uint256):
    self.totalLocked -= amount
    fee: uint256 = amount * self.feeBps // 10_000
    self._send(provider, amount - fee)
    if fee > 0:
        self._send(self.feeRecipient, fee)
        log FeePaid(channelId=channelId, recipient=self.feeRecipient, amount=fee)


@internal
def _end(channelId: bytes32, consumer: address, refund: uint256):
    self.channels[channelId] = empty(Channel)
    self.totalLocked -= refund
    if refund > 0:
        self._send(consumer, refund)
    log ChannelClosed(channelId=channelId, consumer=consumer, refund=refund)


@internal
def _send(to: address, amount: uint256):
    if not extcall Token(self.usdc).transfer(to, amount):
        raw_revert(method_id("TransferFailed()"))
