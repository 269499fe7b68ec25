"""Server-sent events as bytes: complete frames out of whatever pieces the network delivers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

MOST_FRAME_BYTES = 16 * 1024 * 1024
"""No provider's frame is larger: the largest carries one whole answer."""

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")


MOST_PENDING_BYTES = 64 * 1024
"""What passes unread for the moment, before it is read after all."""


class Verdict(Enum):
    """What becomes of a frame."""

    PASS = 1
    HIDE = 2
    LAST = 3


class Stream(ABC):
    """Reads a stream of frames as it passes.

    Reading every frame at once would cost more than all the rest of a stream's way through the gateway. So a block of
    frames that bears none of the `marks` passes as it is, and is read only when somebody asks (`catch_up`): when the
    stream is cut, when its progress is noted, when much has gathered. A mark in the text of an answer costs that block
    its short cut, and nothing else.
    """

    marks: ClassVar[tuple[bytes, ...]]
    """What stands in every frame that must be acted upon: the last one, one with usage, an error."""

    def __init__(self) -> None:
        self._rest = b""
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    @property
    def gathered(self) -> int:
        """See `Reader.gathered`."""
        return len(self._rest)

    @abstractmethod
    def read(self, frame: bytes, payload: bytes) -> Verdict:
        """Read one frame and its payload, which is empty for a comment."""

    def shown(self, frames: bytes) -> bytes:
        """Frames as the caller sees them."""
        return frames

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """See `Reader.feed`."""
        head, rest = self._divide(self._complete(data))
        self._read_later(head)
        passed = [self.shown(head)]
        for frame in split(rest):
            if not any(mark in frame for mark in self.marks):
                self._read_later(frame)
                passed.append(self.shown(frame))
                continue
            verdict = self.read(frame, data_of(frame))
            if verdict is Verdict.LAST:
                return b"".join(passed), frame
            if verdict is Verdict.PASS:
                passed.append(self.shown(frame))
        return b"".join(passed), None

    def _read_later(self, frames: bytes) -> None:
        if frames:
            self._pending.append(frames)
            self._pending_bytes += len(frames)
            if self._pending_bytes > MOST_PENDING_BYTES:
                self.catch_up()

    def _divide(self, block: bytes) -> tuple[bytes, bytes]:
        """What may pass unread, and what is to be read: all from the first frame with a mark on."""
        found = [place for mark in self.marks if (place := block.find(mark)) >= 0]
        if not found:
            return block, b""
        if b"\r" in block:
            return b"", block
        start = block.rfind(b"\n\n", 0, min(found)) + 2
        return (b"", block) if start < 2 else (block[:start], block[start:])

    def catch_up(self) -> None:
        """Read what has passed unread."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        for block in pending:
            for frame in split(block):
                self.read(frame, data_of(frame))

    def _complete(self, data: bytes) -> bytes:
        """The frames that are complete now, as one. Raises ValueError where one grows beyond any sense."""
        rest = self._rest + data if self._rest else data
        end = rest.rfind(b"\n\n") + 2
        if b"\r" in rest:
            for match in _END.finditer(rest):
                end = match.end()
        if end < 2:
            end = 0
        self._rest = rest[end:]
        if len(self._rest) > MOST_FRAME_BYTES:
            raise ValueError("a frame is too large")
        return rest[:end]


def split(block: bytes) -> list[bytes]:
    """Complete frames one by one, each with the blank line that ends it."""
    if b"\r" not in block:
        return [part + b"\n\n" for part in block.split(b"\n\n")[:-1]]
    frames, start = [], 0
    for end in _END.finditer(block):
        frames.append(block[start : end.end()])
        start = end.end()
    return frames


def data_of(frame: bytes) -> bytes:
    """The payload of a frame: its `data:` lines, joined; empty for a comment."""
    start = frame.find(b"\n") + 1 if frame.startswith(b"event: ") else 0
    if frame.startswith(b"data: ", start) and frame.find(b"\n", start) == len(frame) - 2:
        return frame[start + 6 : -2]
    lines = [line[5:].removeprefix(b" ") for line in frame.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def event_of(frame: bytes) -> str:
    """The name of a frame's event; empty where it has none."""
    if not frame.startswith(b"event:"):
        return ""
    return frame[6 : frame.find(b"\n")].strip().decode("latin-1")
