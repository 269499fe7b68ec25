"""Structured logs: one JSON object a line, on standard output, secrets redacted by value, prompts never there."""

from __future__ import annotations

import json
import os
import re
import select
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from threading import Thread

import msgspec

_SHAPES = (
    r"gsk_[A-Za-z0-9_-]{8,}",
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_*.…-]{6,}",
    r"sk_(?:live|test)_\w+",
    r"rk_(?:live|test)_\w+",
    r"whsec_\w+",
    r"sb_secret_[\w-]+",
    r"eyJ[\w-]{8,512}\.[\w-]+\.[\w-]*",  # bounded, since a text of nothing but beginnings would take minutes
)
_SECRET = re.compile("|".join(_SHAPES))
_IDS = re.compile(rb"\b(?:org-[A-Za-z0-9]{8,}|(?:proj|wrkspc)_[A-Za-z0-9]{6,})")
_SECRET_BYTES = re.compile("|".join(_SHAPES).encode())
_MOST = 256


def redact(text: str) -> str:
    """The text without anything that looks like a credential."""
    return _SECRET.sub("[redacted]", text)


def redact_bytes(data: bytes, secrets: Iterable[str]) -> bytes:
    """The same for an answer that goes to a caller: also the given secrets, and ids of the operator's accounts."""
    for secret in secrets:
        data = data.replace(secret.encode(), b"[redacted]")
    return _IDS.sub(b"[redacted]", _SECRET_BYTES.sub(b"[redacted]", data))


_MARKS = ("gsk_", "sk-", "sk_", "rk_", "whsec_", "sb_secret_", "eyJ")
"""What every shape begins with: a line without any of these need not be searched."""

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


MOST_WAITING = 10_000
"""Lines that wait for whoever reads them: a few megabytes, and seconds of a busy daemon."""

EXIT_S = 2.0
"""How long the end of a process waits for what is still to be written."""


class Writer:
    """Writes lines to a descriptor, whole, before it returns: for a command, which has nobody to keep waiting."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self.failed = 0
        """How many of the lines that were taken could not be written."""

    def offer(self, lines: Sequence[str]) -> bool:
        """Whether the lines are taken: all of them or none."""
        self._write(lines)
        return True

    def close(self) -> None:
        """Nothing more is written."""

    def _write(self, lines: Sequence[str]) -> None:
        rest = memoryview("".join(f"{line}\n" for line in lines).encode())
        try:
            while rest:
                rest = rest[_write_some(self._descriptor, rest) :]
        except OSError:
            self.failed += len(lines)  # a log that cannot be written must not stop what is logged


def _write_some(descriptor: int, data: memoryview) -> int:
    try:
        return os.write(descriptor, data)
    except BlockingIOError:  # somebody who shares the descriptor does not want to wait; we do
        room = select.poll()
        room.register(descriptor, select.POLLOUT)
        room.poll()
        return 0


class ThreadedWriter(Writer):
    """The same in a thread of its own: a pipe that nobody reads stops this thread, and nobody else. What finds no room
    is not taken."""

    def __init__(self, descriptor: int = 1, most: int = MOST_WAITING) -> None:
        super().__init__(descriptor)
        self._most = most
        self._taken = self._done = 0  # the one is counted by the caller, the other by the thread
        self._inbox: SimpleQueue[Sequence[str] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        self._closed = False

    def offer(self, lines: Sequence[str]) -> bool:
        """See `Writer.offer`. Never waits."""
        if self._closed or self._taken - self._done + len(lines) > self._most:
            return False
        self._taken += len(lines)
        self._inbox.put(lines)
        return True

    def close(self) -> None:
        """Take no more, and wait up to EXIT_S until all that was taken is written."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join(EXIT_S)

    def _run(self) -> None:
        while (lines := self._inbox.get()) is not None:
            self._write(lines)
            self._done += len(lines)


def _at_once(flush: Callable[[], None]) -> None:
    flush()


class Log:
    """Writes events of at least one level. Values are capped, so that no caller decides how long a line is."""

    def __init__(
        self,
        level: str = "info",
        writer: Writer | None = None,
        soon: Callable[[Callable[[], None]], object] = _at_once,
    ) -> None:
        """`soon` is called to hand over what gathers: at once, or, in a daemon, once per turn of its event loop."""
        self._least, self._soon = LEVELS[level], soon
        self._writer = Writer() if writer is None else writer
        self._lines: list[str] = []
        self._refused = 0

    @property
    def lost(self) -> int:
        """How many lines were not written since the start: nobody read them, or the disk was full."""
        return self._refused + self._writer.failed

    def info(self, event: str, at: str, **facts: object) -> None:
        """One line: `at`, `level`, `event` and the facts that are not None."""
        self._write("info", event, at, facts)

    def warning(self, event: str, at: str, **facts: object) -> None:
        """The same, for what the operator should look at."""
        self._write("warning", event, at, facts)

    def _write(self, level: str, event: str, at: str, facts: dict[str, object]) -> None:
        if LEVELS[level] < self._least:
            return
        line: dict[str, object] = {"at": at, "level": level, "event": event}
        for name, value in facts.items():
            if value is not None:
                line[name] = value[:_MOST] if type(value) is str else value
        text = _encode(line)
        if any(mark in text for mark in _MARKS):
            text = redact(text)
        self._lines.append(text)
        if len(self._lines) == 1:
            self._soon(self.flush)

    def flush(self) -> None:
        """Hand over what has gathered to the writer."""
        lines, self._lines = self._lines, []
        if lines and not self._writer.offer(lines):
            self._refused += len(lines)

    def close(self) -> None:
        """Write what is left, for as long as the writer waits."""
        self.flush()
        self._writer.close()


_FAST = msgspec.json.Encoder(enc_hook=str)


def _encode(line: dict[str, object]) -> str:
    """The line as ASCII JSON, so that no control character reaches a terminal."""
    data = _FAST.encode(line)
    text = data.decode() if data.isascii() else json.dumps(line, separators=(",", ":"), default=str)
    return text.replace("\x7f", "\\u007f")  # the one that JSON leaves as it is
