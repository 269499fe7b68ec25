"""A daemon whose clock is set by whoever started it: `python -m tests.proofs.adrift FILE` is `goosestack serve`, whose
time of day is the machine's and so many nanoseconds more (eight bytes of the file, with a sign). What counts seconds
(`time.monotonic`, the event loop) goes on as it was, as it does where the time of day of a machine is set.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

NANOS = 1_000_000_000


class Clock:
    """The file, seen from either side."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        self._nanos = time.time_ns

    def set(self, seconds: int) -> None:
        """So far from the machine's time."""
        struct.pack_into("<q", self._memory, 0, seconds * NANOS)

    @property
    def offset_s(self) -> int:
        """How far it is from the machine's time."""
        return int(struct.unpack_from("<q", self._memory)[0]) // NANOS

    def time_ns(self) -> int:
        """As `time.time_ns`."""
        return self._nanos() + int(struct.unpack_from("<q", self._memory)[0])

    def time(self) -> float:
        """As `time.time`."""
        return self.time_ns() / NANOS


def main() -> None:
    """The daemon is imported once the clock is in its place: some take it by name."""
    clock = Clock(Path(sys.argv[1]))
    vars(time).update(time=clock.time, time_ns=clock.time_ns)
    from goosestack.cli import main as goosestack

    goosestack(["serve"])


if __name__ == "__main__":
    main()
