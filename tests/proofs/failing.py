"""A daemon whose database fails when it is told to: `python -m tests.proofs.failing FILE` is `goosestack serve` with a
writer that counts its calls, and at the one that the file names fails as a disk would.

The file has three numbers, of eight bytes each: how many calls are left before one fails (0: none does), how it fails
(its place in `FAULTS`), and how often one has. What is done before the daemon serves is counted, too, from the first
setting of a new connection on; what it reads by other connections is counted where reading is what fails.
"""

from __future__ import annotations

import mmap
import sqlite3
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from goosestack import app
from goosestack.cli import main
from goosestack.store import Value
from goosestack.store.sqlite import SqliteStore

READING = "failing where it is read"
FAULTS = ("full", "failing", "failing, rolled back", READING, "read-only", "without room", "with room")
"""`full`, `failing`: a call raises what SQLite does of a full disk, or of one with an I/O error; the transaction is
then rolled back, or still there. `READING` is an I/O error of the connections that only read. The others are no errors
of ours: from that call on, SQLite itself finds that it may not write, that it has no page left, or that it has room
again."""

_SIZE = 24


class Switch:
    """The file, seen from either side."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    def arm(self, left: int, fault: str) -> None:
        """Fail at this call from now, the first being 1; 0 for none."""
        struct.pack_into("<QQ", self._memory, 0, left, FAULTS.index(fault))

    @property
    def struck(self) -> int:
        """How often a call has failed."""
        return int(struct.unpack_from("<QQQ", self._memory)[2])

    def next(self, *, reads: bool = False) -> str | None:
        """Count a call, of a connection that only reads or of the writer: how it fails, if it does."""
        left, fault, struck = struct.unpack_from("<QQQ", self._memory)
        if reads != (FAULTS[fault] == READING):
            return None
        if left == 1:
            struct.pack_into("<QQQ", self._memory, 0, 0, fault, struck + 1)
            return FAULTS[fault]
        if left:
            struct.pack_into("<Q", self._memory, 0, left - 1)
        return None


class Failing:
    """A connection that fails when its switch says so."""

    def __init__(self, real: sqlite3.Connection, switch: Switch, *, reads: bool = False) -> None:
        self._real, self._switch, self._reads = real, switch, reads

    @property
    def in_transaction(self) -> bool:
        return self._real.in_transaction

    def execute(self, sql: str, parameters: Sequence[Value] = (), /) -> sqlite3.Cursor:
        if not sql.startswith("ROLLBACK"):
            self._count()
        return self._real.execute(sql, parameters)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        self._count()
        return self._real.executescript(sql)

    def _count(self) -> None:
        match fault := self._switch.next(reads=self._reads):
            case "full" | "failing, rolled back":
                if self._real.in_transaction:
                    self._real.execute("ROLLBACK")
                raise error_of(fault)
            case "failing" | "failing where it is read":
                raise error_of(fault)
            case "read-only":
                self._real.execute("PRAGMA query_only = ON")
            case "without room":
                self._real.execute("PRAGMA max_page_count = 1")
            case "with room":
                self._real.execute("PRAGMA max_page_count = 1000000")

    def close(self) -> None:
        self._real.close()


def error_of(fault: str) -> sqlite3.OperationalError:
    """As SQLite says it."""
    full = fault == "full"
    error = sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR
    return error


class FailingStore(SqliteStore):
    """The store, with such connections."""

    def __init__(self, path: Path, **given: Any) -> None:
        self._switch = Switch(Path(sys.argv[1]))
        super().__init__(path, **given)

    def _open(self) -> sqlite3.Connection:
        return cast(sqlite3.Connection, Failing(super()._open(), self._switch))

    def _connect_reader(self) -> sqlite3.Connection:
        return cast(sqlite3.Connection, Failing(super()._connect_reader(), self._switch, reads=True))


if __name__ == "__main__":
    vars(app)["SqliteStore"] = FailingStore
    main(["serve"])
