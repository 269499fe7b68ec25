"""SQLite as the store: one writer thread with group commit, readers on read-only connections.

Writers queue. The writer thread takes everything that is waiting, runs it inside one `BEGIN IMMEDIATE ... COMMIT`,
and answers nobody before the COMMIT, so that one fsync pays for many requests and `synchronous=FULL` is affordable.
Where a verb fails, all are rolled back and run again, each in a savepoint of its own, so that it fails alone. Where
the transaction is gone (disk full, I/O error) every verb of the batch fails; a COMMIT of unknown outcome ends the
process, and the recovery at the next start tells the truth.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

from goosestack.errors import NotYet, Refusal, StoreUnavailable
from goosestack.store import Tx
from goosestack.store.migrations import MIGRATIONS

P = ParamSpec("P")
T = TypeVar("T")

BALLAST_BYTES = 8 * 1024 * 1024
"""Set aside beside the database and given up when the disk is full, so that what is in flight can settle: with it the
log can grow to its 1,000 pages (`wal_autocheckpoint`) and the database by the new ones among them, and there is as much
again for large batches. From then on the log is written over in its own room."""

LAST_WORD_S = 2.0
"""How long a process that must end tries to say why."""

WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))
"""SQLite releases whose write-ahead log can lose a commit when two connections checkpoint at once."""

_WRITER = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA mmap_size = 0",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA journal_size_limit = 67108864",
)


class _Job:
    """One verb that waits for its commit."""

    __slots__ = ("args", "error", "future", "kwargs", "result", "verb")

    def __init__(self, verb: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], future: Any) -> None:
        self.verb, self.args, self.kwargs, self.future = verb, args, kwargs, future
        self.result: Any = None
        self.error: BaseException | None = None


def _end_process(why: str) -> NoReturn:
    """A commit may or may not be on the disk: only a restart with recovery can tell which. The process ends also where
    nobody can be told why: standard error may be on the disk that is full, or a pipe that nobody reads."""
    try:
        threading.Timer(LAST_WORD_S, os._exit, (70,)).start()
        print(f"goosestack: fatal: {why}", file=sys.stderr, flush=True)
    finally:
        os._exit(70)


class Written(asyncio.Future[T]):
    """The answer of a write, which cannot be cancelled: what was asked for happens, whoever still waits for it."""

    def cancel(self, msg: object = None) -> bool:
        """Do nothing; a task that waits here is cancelled once the answer has come."""
        return False


class InUse(NotYet):
    """Another process holds the database's lock."""


class Lock:
    """The exclusive lock beside a database: whoever holds it is the one process that writes.

    Raises InUse where another process holds it. The kernel drops it with the process. It lies beside the file itself,
    whatever links lead there.
    """

    def __init__(self, database: Path) -> None:
        database = database.resolve()
        self.path = database.with_name(database.name + ".lock")
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            refusal = NotYet if error.errno in (errno.ENOSPC, errno.EDQUOT) else Refusal
            raise refusal(f"{self.path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise InUse(f"another goosestack process is using {database}") from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files of one name."""
        os.close(self._fd)


def refuse_if_exposed(database: Path) -> None:
    """Raise Refusal where somebody else may read the database or its log: it holds key hashes and addresses."""
    database = database.resolve()
    if database.is_dir():
        raise Refusal(f"{database} is a folder, not a database")
    for path in (database, database.with_name(database.name + "-wal")):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Refusal(f"{path} can be read by others; run: chmod 600 {path}")


def cannot_be_used(database: Path, error: BaseException) -> Refusal:
    """Why there is no start on a database that has failed meanwhile: for good where it is damaged; a disk that is full
    or fails may pass."""
    refusal = NotYet if isinstance(error, (sqlite3.OperationalError, OSError)) else Refusal
    return refusal(f"{database} cannot be used: {error}")


def sqlite_warning(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> str | None:
    """What an operator should know of this SQLite release, or None."""
    if WAL_RESET_BUG[0] <= version <= WAL_RESET_BUG[1]:
        return (
            f"SQLite {'.'.join(map(str, version))} has the WAL-reset bug of 3.7.0 to 3.51.2. This daemon avoids it (one"
            " connection writes and checkpoints, the others are read-only); do not open the file with other programs"
            " while it runs."
        )
    return None


def refuse_if_newer(connection: sqlite3.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """The schema's version. Raises Refusal where it is one that this program does not know."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        versions = f"version {version}, and this goosestack knows {len(migrations)}"
        raise Refusal(f"the database has schema {versions}: install a newer one")
    return int(version)


def migrate(connection: sqlite3.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Bring the schema to its latest version, one transaction a step. Raises Refusal on a newer schema."""
    version = refuse_if_newer(connection, migrations)
    for number in range(version, len(migrations)):
        connection.executescript(f"BEGIN IMMEDIATE; {migrations[number]} PRAGMA user_version = {number + 1}; COMMIT;")


class SqliteStore:
    """A `Store` on one SQLite file. Made and closed by one event loop, which its answers go back to."""

    def __init__(
        self,
        path: Path,
        *,
        readers: int = 2,
        ballast_bytes: int = BALLAST_BYTES,
        on_commit: Callable[[float, int], None] | None = None,
        on_unknown_commit: Callable[[str], NoReturn] = _end_process,
    ) -> None:
        """Open or create the database at `path`. Raises Refusal where the file cannot be used.

        `on_commit` is told, in the writer thread, the seconds and the verbs of each group commit.
        """
        self.path = path
        self.full = False
        """True while the disk has no room: what is in flight settles, and nothing new should be held."""
        self._ballast_bytes = ballast_bytes
        self._on_commit = on_commit
        self._on_unknown_commit = on_unknown_commit
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Job] = []
        self._inbox: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self._connections: list[sqlite3.Connection] = []
        self._closing: asyncio.Future[None] | None = None
        try:
            self._writer = self._connect_writer()
        except (sqlite3.OperationalError, OSError) as error:  # no room, no permission: that may pass
            raise NotYet(f"{path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise Refusal(f"{path} cannot be opened: {error}") from error
        self._peeker = self._connect_reader()
        self._set_ballast()
        self._thread = threading.Thread(target=self._write_loop, name="writer", daemon=True)
        self._thread.start()

    # --- the interface ---

    def write(self, verb: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """See `Store.write`."""
        future: Written[T] = Written(loop=self._loop)
        if self._closing is not None:
            future.set_exception(StoreUnavailable())
            return future
        if not self._waiting:
            self._loop.call_soon(self._hand_over)
        self._waiting.append(_Job(verb, args, kwargs, future))
        return future

    async def read(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Store.read`."""

        def run() -> T:
            with _telling():
                connection = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = self._connect_reader()
                connection.execute("BEGIN")
                try:
                    return query(cast(Tx, connection), *args, **kwargs)
                finally:
                    connection.execute("ROLLBACK")

        return await self._loop.run_in_executor(self._readers, run)

    def peek(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Store.peek`."""
        try:  # as `_telling` does, for less: every request peeks
            return query(cast(Tx, self._peeker), *args, **kwargs)
        except sqlite3.Error as error:
            if _cannot_be_read(error):
                raise StoreUnavailable() from error
            raise

    async def close(self) -> None:
        """Commit everything that was queued, checkpoint, close every connection. Safe to call again."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)  # whoever is cancelled here leaves no half-closed store behind

    async def _close(self) -> None:
        self._hand_over()
        self._inbox.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        await self._loop.run_in_executor(None, self._readers.shutdown)
        for connection in (*self._connections, self._peeker, self._writer):
            connection.close()

    # --- the writer thread ---

    def _hand_over(self) -> None:
        jobs, self._waiting = self._waiting, []
        if jobs:
            self._inbox.put(jobs)

    def _write_loop(self) -> None:
        try:
            self._write_batches()
        except BaseException as error:  # without this thread every caller would wait forever
            self._on_unknown_commit(f"the writer failed: {error!r}")

    def _write_batches(self) -> None:
        while (jobs := self._inbox.get()) is not None:
            last = False
            try:
                while True:
                    more = self._inbox.get_nowait()
                    if more is None:
                        last = True
                        break
                    jobs += more
            except Empty:
                pass
            self._commit(jobs)
            self._loop.call_soon_threadsafe(_answer, jobs)
            if last:
                return

    def _commit(self, jobs: list[_Job]) -> None:
        """Run a batch in one transaction; sets every job's result or error."""
        started = time.perf_counter()
        db = self._writer
        try:
            if not self._run_together(db, jobs):
                db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    self._run_apart(db, job)
            self._commit_for_sure(db)
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._lost(jobs, error)
            return
        self._regain_room()
        if self._on_commit is not None:
            self._on_commit(time.perf_counter() - started, len(jobs))

    def _run_together(self, db: sqlite3.Connection, jobs: list[_Job]) -> bool:
        """Run all verbs without a savepoint each, which doubles a verb's cost; False where one of them failed, and all
        must be run again, apart. A verb has no effect but in its transaction, so that it may be."""
        db.execute("BEGIN IMMEDIATE")
        try:
            for job in jobs:
                job.result = job.verb(db, *job.args, **job.kwargs)
        except BaseException as error:
            if not db.in_transaction or _is_the_databases(error):
                raise
            return False
        return True

    def _run_apart(self, db: sqlite3.Connection, job: _Job) -> None:
        db.execute("SAVEPOINT verb")
        try:
            job.result = job.verb(db, *job.args, **job.kwargs)
        except BaseException as error:
            if not db.in_transaction or _is_the_databases(error):
                raise  # the transaction is gone or cannot be trusted, and every verb of the batch with it
            db.execute("ROLLBACK TO verb")
            job.error = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error  # no future takes one
        db.execute("RELEASE verb")

    def _commit_for_sure(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if not db.in_transaction and error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                self._on_unknown_commit(f"a commit has an unknown outcome: {error}")
            raise

    def _lost(self, jobs: list[_Job], error: BaseException) -> None:
        """Nothing of this batch was written: tell every caller, and make room where the disk is full."""
        for job in jobs:
            job.result = None
            job.error = StoreUnavailable()
            job.error.__cause__ = error
        code = _code(error)
        if code == sqlite3.SQLITE_FULL:
            self.full = True
            self._ballast.unlink(missing_ok=True)
        elif code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR):
            self._on_unknown_commit(f"the database failed: {error}")

    # --- room on the disk ---

    @property
    def _ballast(self) -> Path:
        return self.path.with_name(self.path.name + ".ballast")

    def _set_ballast(self) -> None:
        """Allocate the ballast where it is missing; OSError-free: a full disk is noted and tried again later."""
        if not self._ballast_bytes or (self._ballast.exists() and self._ballast.stat().st_size >= self._ballast_bytes):
            self.full = False
            return
        try:
            fd = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Twice of it must fit where the disk was full, or the room just given up would be taken back at once.
                os.posix_fallocate(fd, 0, self._ballast_bytes * (2 if self.full else 1))
                os.ftruncate(fd, self._ballast_bytes)
            finally:
                os.close(fd)
            self.full = False
        except OSError:
            self._ballast.unlink(missing_ok=True)
            self.full = True

    def _regain_room(self) -> None:
        if self.full:
            self._set_ballast()

    # --- connections ---

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=5.0, cached_statements=256
        )

    def _connect_writer(self) -> sqlite3.Connection:
        made = not self.path.exists()
        db = self._open()
        try:
            if made:
                os.chmod(self.path, 0o600)
            for pragma in _WRITER:
                db.execute(pragma)
            migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _connect_reader(self) -> sqlite3.Connection:
        db = connect_read_only(self.path)
        db.execute("PRAGMA query_only = ON")
        self._connections.append(db)
        return db


def _is_the_databases(error: BaseException) -> bool:
    """Whether the database failed (disk, memory, file), rather than the verb that was running."""
    return _code(error) not in _OF_THE_VERB


def _cannot_be_read(error: sqlite3.Error) -> bool:
    """The same of a query, which is wrong where it writes."""
    return _is_the_databases(error) and _code(error) != sqlite3.SQLITE_READONLY


@contextmanager
def _telling() -> Iterator[None]:
    """Whoever reads from a database that fails is told so as whoever writes to it is."""
    try:
        yield
    except sqlite3.Error as error:
        if _cannot_be_read(error):
            raise StoreUnavailable() from error
        raise


def _code(error: BaseException) -> int:
    """SQLite's primary result code for an error; `SQLITE_ERROR` for one that did not come from SQLite."""
    if isinstance(error, MemoryError):
        return sqlite3.SQLITE_NOMEM
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


_OF_THE_VERB = frozenset(
    (
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    )
)
"""SQLite's result codes for a statement that is wrong, where nothing is wrong with the database."""


def _answer(jobs: list[_Job]) -> None:
    """Give each caller its answer, in the event loop; it has none yet, for nothing can cancel a `Written`."""
    for job in jobs:
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
    )


def snapshot(source: Path, target: Path) -> None:
    """Write a consistent copy of the database at `source` into the new file `target`, also under full load."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.close(fd)
    db = connect_read_only(source)
    try:
        db.execute("VACUUM INTO ?", (str(target),))
    finally:
        db.close()
    with target.open("rb") as file:
        os.fsync(file.fileno())


def integrity(db: sqlite3.Connection) -> list[str]:
    """What SQLite's own checks find wrong with the file."""
    wrong = [f"integrity: {line}" for (line,) in db.execute("PRAGMA integrity_check(20)") if line != "ok"]
    wrong += [f"foreign key: {row[0]} row {row[1]} has no {row[2]}" for row in db.execute("PRAGMA foreign_key_check")]
    return wrong
