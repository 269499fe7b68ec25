"""Ethereum's recursive length prefixes (its Yellow Paper, appendix B): how a transaction is written as bytes. Pure."""

from __future__ import annotations

Item = int | bytes | list["Item"]
"""A number that is not negative, bytes, or a list of items."""


def encode(item: Item) -> bytes:
    """The one way to write an item. A number has no leading zeros: 0 is no bytes at all."""
    if isinstance(item, int):
        item = item.to_bytes((item.bit_length() + 7) // 8, "big")
    if isinstance(item, bytes):
        return item if len(item) == 1 and item[0] < 0x80 else _prefix(0x80, len(item)) + item
    written = b"".join(map(encode, item))
    return _prefix(0xC0, len(written)) + written


def _prefix(kind: int, length: int) -> bytes:
    if length <= 55:
        return bytes([kind + length])
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([kind + 55 + len(size)]) + size
