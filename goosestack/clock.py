"""Times as all of them are written: UTC, ISO 8601, milliseconds, `Z`; so that they sort as texts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache


def utc_now() -> str:
    """Now."""
    return written(time.time_ns() // 1_000_000)


def written(milliseconds: int) -> str:
    """So many milliseconds after 1970."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


def at(moment: datetime) -> str:
    """A moment, of whatever time zone it has."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def later(time: str, seconds: float) -> str:
    """So many seconds after another time, or before it, where they are negative."""
    return at(datetime.fromisoformat(time) + timedelta(seconds=seconds))


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
