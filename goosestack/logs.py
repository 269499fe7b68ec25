"""Structured logs: one JSON object a line, on standard output, secrets redacted by value, prompts never there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable

import msgspec

_SHAPES = (
    r"gsk_[A-Za-z0-9_-]{8,}",
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_*.…-]{6,}",
    r"sk_(?:live|test)_\w+",
    r"rk_(?:live|test)_\w+",
    r"whsec_\w+",
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


_MARKS = ("gsk_", "sk-", "sk_", "rk_", "whsec_", "eyJ")
"""What every shape begins with: a line without any of these need not be searched."""

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def _now(write: Callable[[], None]) -> None:
    write()


class Log:
    """Writes events of at least one level. Values are capped, so that no caller decides how long a line is."""

    def __init__(
        self, level: str = "info", descriptor: int = 1, soon: Callable[[Callable[[], None]], object] = _now
    ) -> None:
        """`soon` is called to write what gathers: at once, or, in a daemon, once per turn of its event loop."""
        self._least, self._descriptor, self._soon = LEVELS[level], descriptor, soon
        self._lines: list[str] = []

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
        """Write what has gathered."""
        lines, self._lines = self._lines, []
        try:
            os.write(self._descriptor, "".join(f"{line}\n" for line in lines).encode())
        except OSError:
            pass  # a log that cannot be written must not stop what is logged


_FAST = msgspec.json.Encoder(enc_hook=str)


def _encode(line: dict[str, object]) -> str:
    """The line as ASCII JSON, so that no control character reaches a terminal."""
    data = _FAST.encode(line)
    text = data.decode() if data.isascii() else json.dumps(line, separators=(",", ":"), default=str)
    return text.replace("\x7f", "\\u007f")  # the one that JSON leaves as it is
