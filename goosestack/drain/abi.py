"""The few words of Ethereum's ABI that DRAIN speaks: calls and their arguments, answers, events, errors. Pure.

Names and types are those of the deployed DrainChannel (V1) and DrainChannelV2; a test compares the selectors and topics
that follow from them with the ones measured on the contracts.
"""

from __future__ import annotations

from dataclasses import dataclass

from goosestack.drain.signing import ADDRESS_BYTES, keccak256

WORD = 32


def selector(signature: str) -> bytes:
    """The four bytes by which a function, or a custom error, is named."""
    return keccak256(signature.encode())[:4]


def topic(signature: str) -> bytes:
    """The 32 bytes by which an event is named."""
    return keccak256(signature.encode())


def word(value: int | bytes) -> bytes:
    """One argument of a static type: a number, an address (20 bytes) or 32 bytes."""
    if isinstance(value, int):
        return value.to_bytes(WORD, "big")
    return value.rjust(WORD, b"\0")


def call(name: bytes, *arguments: int | bytes) -> bytes:
    """Calldata of a function whose arguments are all of static types."""
    return name + b"".join(word(each) for each in arguments)


GET_CHANNEL = selector("getChannel(bytes32)")
DOMAIN_SEPARATOR = selector("DOMAIN_SEPARATOR()")
OWNER = selector("owner()")
USDC = selector("usdc()")
FEE_BPS = selector("feeBps()")
CLAIM = selector("claim(bytes32,uint256,uint256,bytes)")

CHANNEL_CLAIMED = topic("ChannelClaimed(bytes32,address,uint256)")

ERRORS = (
    "NotOwner",
    "NoOwner",
    "ZeroAddress",
    "ChannelExists",
    "ChannelNotFound",
    "NotProvider",
    "NotConsumer",
    "NotExpired",
    "InvalidSignature",
    "InvalidAmount",
    "TransferFailed",
    "FeeTooHigh",
    "NoExcess",
)
"""The custom errors of both contracts; none has an argument."""

_ERRORS = {selector(f"{name}()"): name for name in ERRORS}


def error_name(data: bytes) -> str | None:
    """Which of the contract's errors a revert's data name; None for anything else."""
    return _ERRORS.get(data[:4]) if len(data) == 4 else None


def claim(channel_id: bytes, amount: int, nonce: int, signature: bytes) -> bytes:
    """Calldata of a claim. The signature alone is dynamic: its offset stands fourth, and then its length and bytes."""
    padded = signature.ljust(-(-len(signature) // WORD) * WORD, b"\0")
    return call(CLAIM, channel_id, amount, nonce, 4 * WORD, len(signature)) + padded


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel as the contract has it. Addresses have 20 bytes, amounts are micro-USDC, expiry is in Unix seconds."""

    id: bytes
    consumer: bytes
    provider: bytes
    deposit: int
    claimed: int
    """What the provider has been paid so far, fee included. It only grows, and only by the provider's own claims."""
    expiry: int
    """From this time on the consumer may take back what is not claimed."""
    unburied: int = 0
    """What is claimed in the latest block, by the word of one node: good for waiting, and for nothing that lasts."""


MOST = 2**63 - 1
"""The largest amount that the ledger can hold. A USDC deposit never comes near it; a token that does is not USDC."""


def read_channel(channel_id: bytes, answer: bytes) -> Channel | None:
    """The answer to getChannel: five words. None where the channel is unknown or closed. Raises ValueError."""
    if len(answer) != 5 * WORD:
        raise ValueError("getChannel answers five words")
    words = [answer[start : start + WORD] for start in range(0, len(answer), WORD)]
    consumer, provider = read_address(words[0]), read_address(words[1])
    deposit, claimed, expiry = (int.from_bytes(each, "big") for each in words[2:])
    if not any(answer):
        return None
    if not any(consumer) or not any(provider) or not 0 < deposit <= MOST or claimed > deposit or expiry == 0:
        raise ValueError("this channel cannot exist")
    return Channel(channel_id, consumer, provider, deposit, claimed, min(expiry, MOST))


def read_address(answer: bytes) -> bytes:
    """An address from one word. Raises ValueError."""
    if len(answer) != WORD or any(answer[:-ADDRESS_BYTES]):
        raise ValueError("an address is a word whose first 12 bytes are zero")
    return answer[-ADDRESS_BYTES:]


def read_number(answer: bytes) -> int:
    """A number from one word. Raises ValueError."""
    if len(answer) != WORD:
        raise ValueError("a number is one word")
    return int.from_bytes(answer, "big")
