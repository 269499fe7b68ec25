"""Structured logs: one JSON object a line, on standard output, secrets redacted by value, prompts never there."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable

_SHAPES = (
    r"gsk_[A-Za-z0-9_-]{8,}",
    r"sk-[A-Za-z0-9_*.…-]{6,}",
    r"sk_(?:live|test)_\w+",
    r"rk_(?:live|test)_\w+",
    r"whsec_\w+",
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*",
)
_SECRET = re.compile("|".join(_SHAPES))
_IDS = re.compile(rb"\b(?:org|proj|wrkspc|ws)[-_][A-Za-z0-9_-]{6,}")
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


class Log:
    """Writes events of at least one level. Values are capped, so that no caller decides how long a line is."""

    def __init__(self, level: str = "info") -> None:
        self._logger = logging.getLogger("goosestack")
        self._logger.setLevel(level.upper())
        self._logger.propagate = False
        self._logger.handlers = [_handler()]

    def event(self, level: int, event: str, at: str, **facts: object) -> None:
        """One line: `at`, `level`, `event` and the facts that are not None."""
        if self._logger.isEnabledFor(level):
            line: dict[str, object] = {"at": at, "level": logging.getLevelName(level).lower(), "event": event}
            line.update((name, _capped(value)) for name, value in facts.items() if value is not None)
            self._logger.log(level, redact(json.dumps(line, separators=(",", ":"), default=str)))


def _capped(value: object) -> object:
    return value[:_MOST] if isinstance(value, str) else value


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
