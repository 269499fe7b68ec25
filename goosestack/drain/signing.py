"""Keccak, addresses, recoverable secp256k1 signatures and signed transactions: all the cryptography that DRAIN needs.

libsecp256k1 through coincurve: a check runs in the event loop, where everybody would wait the 8 ms that it takes in
Python.
"""

from __future__ import annotations

from coincurve import PrivateKey, PublicKey
from eth_hash.auto import keccak

from goosestack.drain import rlp
from goosestack.errors import Refusal

SIGNATURE_BYTES = 65
ADDRESS_BYTES = 20
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""The order of the group, from SEC 2. A signature's s and ORDER - s are both valid; chains take the lower one alone."""

EIP_1559 = b"\x02"
"""What a transaction of this kind begins with (EIP-2718)."""


def keccak256(data: bytes) -> bytes:
    """Ethereum's hash, 32 bytes: Keccak with its original padding, which is not SHA3-256."""
    return keccak(data)


def parse_address(text: str) -> bytes:
    """The 20 bytes of `0x` and 40 hexadecimal digits. Raises ValueError, also for mixed case that is no checksum."""
    digits = text.removeprefix("0x")
    if len(digits) != 2 * ADDRESS_BYTES or not text.startswith("0x") or not set(digits) <= set(HEX):
        raise ValueError("an address is 0x and 40 hexadecimal digits")
    address = bytes.fromhex(digits)
    if digits not in (digits.lower(), digits.upper()) and checksum_address(address) != text:
        raise ValueError("the upper and lower case of this address is not its checksum (EIP-55)")
    return address


HEX = "0123456789abcdefABCDEF"


def checksum_address(address: bytes) -> str:
    """An address as people and clients expect it: `0x`, with the checksum of EIP-55 in its upper and lower case."""
    digits = address.hex()
    shades = keccak256(digits.encode()).hex()
    return "0x" + "".join(d.upper() if int(shade, 16) >= 8 else d for d, shade in zip(digits, shades, strict=False))


def recover(digest: bytes, signature: bytes) -> bytes | None:
    """The address that signed a digest; None where the signature is not one that a DRAIN contract accepts.

    The contract's rule: 65 bytes r | s | v, s in the lower half, v one of 0, 1, 27, 28.
    """
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (0, 1, 27, 28):
        return None
    if int.from_bytes(signature[32:64], "big") > ORDER // 2:
        return None
    recoverable = signature[:64] + bytes([signature[64] % 27])
    try:
        key = PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
    except Exception:  # coincurve raises a bare one where r and s belong to no point
        return None
    return _address_of(key)


def _address_of(key: PublicKey) -> bytes:
    return keccak256(key.format(compressed=False)[1:])[-ADDRESS_BYTES:]


class Signer:
    """A private key: the provider's own, by which claims are sent and closes are agreed to. It never shows itself."""

    __slots__ = ("_key", "address")

    def __init__(self, private_key: str) -> None:
        """From 32 bytes in hexadecimal, `0x` or not. Raises Refusal, without the text."""
        digits = private_key.removeprefix("0x")
        if len(digits) != 64 or not set(digits) <= set(HEX) or not 0 < int(digits, 16) < ORDER:
            raise Refusal("the private key must be 64 hexadecimal digits, of a number below the order of secp256k1")
        self._key = PrivateKey(bytes.fromhex(digits))
        self.address = _address_of(self._key.public_key)
        """20 bytes."""

    def __repr__(self) -> str:
        return f"<Signer {checksum_address(self.address)}>"

    def sign(self, digest: bytes) -> bytes:
        """65 bytes r | s | v, s in the lower half, v 27 or 28."""
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([27 + signature[64]])

    def sign_transaction(
        self, *, chain_id: int, nonce: int, to: bytes, data: bytes, gas: int, max_fee: int, tip: int, value: int = 0
    ) -> tuple[bytes, bytes]:
        """What to send for a transaction of EIP-1559, and its hash. The fees are in wei for a unit of gas, the value is
        in wei."""
        fields: list[rlp.Item] = [chain_id, nonce, tip, max_fee, gas, to, value, data, []]  # with no access list
        signature = self.sign(keccak256(EIP_1559 + rlp.encode(fields)))
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        raw = EIP_1559 + rlp.encode([*fields, signature[64] - 27, r, s])
        return raw, keccak256(raw)
