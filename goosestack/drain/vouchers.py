"""Vouchers as they arrive in a header, and as the contract understands them (EIP-712). No chain and no ledger here.

A voucher says how much of a channel's deposit its consumer lets the provider have in all. It is cumulative, bears a
number that grows, and names no request: who holds it may spend it, once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property

from goosestack.drain.abi import MOST, Channel, word
from goosestack.drain.signing import SIGNATURE_BYTES, Signer, keccak256, recover
from goosestack.errors import (
    ChannelExpired,
    ChannelNotFound,
    ExceedsDeposit,
    VoucherMalformed,
    VoucherSignature,
    WrongProvider,
)

MOST_HEADER = 2_048
"""Characters of the header; a voucher has about 330."""

_CHANNEL_ID = re.compile(r"0x[0-9a-fA-F]{64}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE = re.compile(r"0x([0-9a-fA-F]{2})+")

_DOMAIN_TYPE = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_VOUCHER_TYPE = keccak256(b"Voucher(bytes32 channelId,uint256 amount,uint256 nonce)")
_CLOSE_TYPE = keccak256(b"CloseAuthorization(bytes32 channelId,uint256 finalAmount)")
_CLOSE_REQUEST_TYPE = keccak256(b"CloseRequest(bytes32 channelId)")
"""Ours, not the protocol's: no contract knows it."""
_NAME, _VERSION = keccak256(b"DrainChannel"), keccak256(b"1")


@dataclass(frozen=True, slots=True)
class Voucher:
    """One voucher, well-formed; whether it is good for anything is for `check` to say."""

    channel_id: bytes
    """32 bytes: the same channel in any spelling."""
    amount: int
    """Micro-USDC for the whole channel so far, at most what 64 bits of the ledger hold."""
    nonce: int
    signature: bytes
    """As it was sent, of any length."""

    @property
    def claimable(self) -> bytes:
        """The signature as every contract and library takes it: v 27 or 28. For one of 65 bytes alone."""
        return self.signature[:64] + bytes([27 + self.signature[64] % 27])


def parse_channel_id(value: object) -> bytes:
    """The 32 bytes of a channel's id, which is `0x` and 64 hexadecimal digits of any case. Raises VoucherMalformed."""
    if not isinstance(value, str) or not _CHANNEL_ID.fullmatch(value):
        raise VoucherMalformed()
    return bytes.fromhex(value[2:])


def parse_voucher(header: str) -> Voucher:
    """The voucher in the value of an X-DRAIN-Voucher header. Raises VoucherMalformed.

    Amount and nonce are decimal strings, since a JSON number loses what is above 2^53 in some clients. Other members
    are ignored; one that stands twice is not, because two readers could read two vouchers.
    """
    if len(header) > MOST_HEADER:
        raise VoucherMalformed()
    try:
        members = json.loads(header, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise VoucherMalformed() from None
    if not isinstance(members, dict):
        raise VoucherMalformed()
    signature = members.get("signature")
    if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        raise VoucherMalformed()
    return Voucher(
        parse_channel_id(members.get("channelId")),
        _number(members.get("amount")),
        _number(members.get("nonce")),
        bytes.fromhex(signature[2:]),
    )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _number(value: object) -> int:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value) or int(value) > MOST:
        raise VoucherMalformed()
    return int(value)


@dataclass(frozen=True)
class Domain:
    """Where signatures are good: one contract on one chain. The same channel id can exist elsewhere, too."""

    chain_id: int
    contract: bytes
    """20 bytes."""

    @cached_property
    def separator(self) -> bytes:
        """EIP-712's domain separator, the same that the contract computes."""
        return keccak256(_DOMAIN_TYPE + _NAME + _VERSION + word(self.chain_id) + word(self.contract))

    def voucher_digest(self, channel_id: bytes, amount: int, nonce: int) -> bytes:
        """What the consumer signs to pay."""
        return self._digest(_VOUCHER_TYPE + channel_id + word(amount) + word(nonce))

    def close_digest(self, channel_id: bytes, final_amount: int) -> bytes:
        """What the provider signs to let a channel be closed at once."""
        return self._digest(_CLOSE_TYPE + channel_id + word(final_amount))

    def close_request_digest(self, channel_id: bytes) -> bytes:
        """What the consumer signs to show that it is their own wish to close."""
        return self._digest(_CLOSE_REQUEST_TYPE + channel_id)

    def _digest(self, struct: bytes) -> bytes:
        return keccak256(b"\x19\x01" + self.separator + keccak256(struct))

    def consumer_of(self, voucher: Voucher) -> bytes | None:
        """The address that signed a voucher; None where the contract would not take the signature."""
        if len(voucher.signature) != SIGNATURE_BYTES:
            return None
        return recover(self.voucher_digest(voucher.channel_id, voucher.amount, voucher.nonce), voucher.signature)

    def authorize_close(self, signer: Signer, channel_id: bytes, final_amount: int) -> bytes:
        """The provider's signature under a cooperative close (V2). It has no deadline and cannot be taken back: the
        channel must take no voucher from then on, and no second amount may ever be signed."""
        return signer.sign(self.close_digest(channel_id, final_amount))


def check(voucher: Voucher, channel: Channel | None, domain: Domain, provider: bytes, *, until: int) -> Channel:
    """The channel, where the voucher is good for something there; nonces and money are the ledger's to judge.

    `until` is the Unix second up to which the channel must last: now, by the chain's clock or ours, whichever is later,
    plus the longest request and the time that a claim may take. Raises the first of ChannelNotFound, WrongProvider,
    ChannelExpired, ExceedsDeposit, VoucherSignature. What only the gateway knows, nonces and what was charged, is for
    those whose signature was checked here first.
    """
    if channel is None:
        raise ChannelNotFound()
    if channel.provider != provider:
        raise WrongProvider()
    if channel.expiry < until:
        raise ChannelExpired()
    if voucher.amount > channel.deposit:
        raise ExceedsDeposit()
    if domain.consumer_of(voucher) != channel.consumer:
        raise VoucherSignature()
    return channel
