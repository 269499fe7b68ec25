"""Server-sent events as bytes: complete frames out of whatever pieces the network delivers."""

from __future__ import annotations

import re

MOST_FRAME_BYTES = 16 * 1024 * 1024
"""No provider's frame is larger: the largest carries one whole answer."""

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")


class Frames:
    """Splits a byte stream into frames, each with the blank line that ends it."""

    __slots__ = ("_rest", "_searched")

    def __init__(self) -> None:
        self._rest = b""
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete now. Raises ValueError where one grows beyond any sense."""
        rest = self._rest + data if self._rest else data
        if b"\r" not in rest:
            parts = rest.split(b"\n\n")
            self._rest = parts.pop()
            frames = [part + b"\n\n" for part in parts]
        else:
            frames, start = [], 0
            for end in _END.finditer(rest):
                frames.append(rest[start : end.end()])
                start = end.end()
            self._rest = rest[start:]
        if len(self._rest) > MOST_FRAME_BYTES:
            raise ValueError("a frame is too large")
        return frames


def data_of(frame: bytes) -> bytes:
    """The payload of a frame: its `data:` lines, joined; empty for a comment."""
    start = frame.find(b"\n") + 1 if frame.startswith(b"event: ") else 0
    if frame.startswith(b"data: ", start) and frame.find(b"\n", start) == len(frame) - 2:
        return frame[start + 6 : -2]
    lines = [line[5:].removeprefix(b" ") for line in frame.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)
