"""Copies of the database: made under full load, proved, and put back in its place in one step.

What the rows must add up to, this module does not know: it is given a `Check` of the books.
"""

from __future__ import annotations

import fcntl
import glob
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from goosestack.errors import Refusal
from goosestack.store import Tx
from goosestack.store.migrations import MIGRATIONS
from goosestack.store.sqlite import Lock, connect_read_only, integrity, migrate, refuse_if_newer, snapshot

Check = Callable[[Tx], list[str]]
"""What is wrong with the books of a file, from the beginning, a sentence each. It is given this version's schema."""

_STAMP = "????????T????????????Z"


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")


# --- backup ---------------------------------------------------------------------------------------------------


def backup(database: Path, destination: Path, keep: int | None, check: Check) -> dict[str, object]:
    """Copy the database, safe under load, and prove the copy. Raises Refusal.

    `destination` is a folder, in which dated copies gather (`keep` of them), or a file that is replaced whole. The
    copy is made by `VACUUM INTO` on a read-only connection, checked (SQLite's own checks, foreign keys, the books from
    the beginning), synced, and only then gets its name. It has the schema that the database has, which may be an older
    one. What copies left that were killed is removed.
    """
    if not database.exists():
        raise Refusal(f"there is no database at {database}")
    started = time.monotonic()
    folder = destination if destination.is_dir() else destination.parent
    if not folder.is_dir():
        raise Refusal(f"there is no folder {folder}")
    stamp = _stamp()
    if destination.is_dir():
        name, target = database.stem, folder / f"{database.stem}-{stamp}.db"
        partial = folder / f".{target.name}.part"
    else:
        name, target = destination.name, destination
        partial = folder / f".{target.name}-{stamp}.part"
    if target.exists() and target.samefile(database):
        raise Refusal(f"{target} is the database itself")
    try:
        with _writing(folder, glob.escape(f".{name}-") + f"{_STAMP}*.part*"):
            try:
                snapshot(database, partial)
                rows = verify_file(partial, check, database)
                os.replace(partial, target)
            finally:
                _remove(partial)
            _sync_folder(folder)
    except (sqlite3.Error, OSError) as error:
        raise Refusal(f"the backup failed: {error}") from error
    removed = _prune(folder, database.stem, keep) if destination.is_dir() and keep else []
    seconds = round(time.monotonic() - started, 3)
    return {
        "file": str(target),
        "bytes": target.stat().st_size,
        "seconds": seconds,
        "removed": [str(path) for path in removed],
        **rows,
    }


@contextmanager
def _writing(folder: Path, partials: str) -> Iterator[None]:
    """Share the folder's lock while a copy is written into it; first, where nobody else does, remove what matches
    `partials`: whoever was writing that is gone, for the kernel drops the lock with the process.

    Some file systems of a network cannot lock folders. There nobody can tell, and what was left stays."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _locks(fd, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in folder.glob(partials):
                path.unlink(missing_ok=True)
        _locks(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def _locks(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how)
    except OSError:
        return False
    return True


def _prune(folder: Path, stem: str, keep: int) -> list[Path]:
    copies = sorted(folder.glob(f"{glob.escape(stem)}-{_STAMP}.db"))
    for path in copies[:-keep]:
        path.unlink()
    return copies[:-keep]


# --- proof ----------------------------------------------------------------------------------------------------


def verify_file(path: Path, check: Check, name: Path | None = None) -> dict[str, int]:
    """Prove a database file: `{"users", "requests", "accounts"}`. Raises Refusal, naming it (or `name`) and what is
    wrong.

    The books of an older schema are checked in a copy beside the file, which is brought up to date and removed."""
    name = name or path
    try:
        with closing(connect_read_only(path)) as db:
            version = refuse_if_newer(db)
            wrong = integrity(db)
            users, requests, accounts = db.execute(
                "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM usage_log), (SELECT count(*) FROM accounts)"
            ).fetchone()
            # a copy of a running daemon's file has holds of that process, which is not gone
            if version == len(MIGRATIONS):
                wrong += check(db)
        if version < len(MIGRATIONS) and not wrong:
            wrong = _wrong_once_migrated(path, check)
    except sqlite3.Error as error:
        raise Refusal(f"{name} is no database of goosestack: {error}") from error
    if wrong:
        raise Refusal(f"{name} does not add up: {'; '.join(wrong[:5])}")
    return {"users": users, "requests": requests, "accounts": accounts}


def _wrong_once_migrated(path: Path, check: Check) -> list[str]:
    migrated = path.with_name(f"{path.name}.migrated")
    _remove(migrated)
    try:
        snapshot(path, migrated)
        with closing(sqlite3.connect(migrated, isolation_level=None)) as db:
            migrate(db)
            return integrity(db) + check(db)
    finally:
        _remove(migrated)


def _refuse_foreign(source: Path) -> None:
    """Raise Refusal where a file is damaged, or of somebody else: migrating it would make it one of ours."""
    try:
        with closing(connect_read_only(source)) as db:
            refuse_if_newer(db)
            wrong = integrity(db)
            db.execute("SELECT count(*) FROM accounts")
    except sqlite3.Error as error:
        raise Refusal(f"{source} is no database of goosestack: {error}") from error
    if wrong:
        raise Refusal(f"{source} does not add up: {'; '.join(wrong[:5])}")


# --- restore --------------------------------------------------------------------------------------------------


def restore(database: Path, source: Path, note: Callable[[Tx], None], check: Check) -> dict[str, object]:
    """Put a proved copy in the database's place; the replaced file is kept beside it. Raises Refusal.

    `note` writes into the copy what must be known of books that come from a backup.

    Refused while a daemon runs. Whenever it is interrupted, the old database is in its place, or the new one, whole."""
    if not source.is_file():
        raise Refusal(f"there is no file {source}")
    if database.exists() and source.samefile(database):
        raise Refusal(f"{source} is the database itself")
    lock, partial = Lock(database), database.with_name(f".{database.name}.restoring")
    try:
        _remove(partial)
        try:
            _refuse_foreign(source)
            snapshot(source, partial)  # not the file alone: its latest commits may lie in a log beside it
            with closing(sqlite3.connect(partial, isolation_level=None)) as db:
                migrate(db)  # before the books are checked, which are those of this version
                note(db)
            rows = verify_file(partial, check, source)
            kept = _replace(database, partial)
        except (sqlite3.Error, OSError) as error:
            raise Refusal(f"{source} cannot be restored: {error}") from error
        return {"file": str(database), "replaced": None if kept is None else str(kept), **rows}
    finally:
        _remove(partial)
        lock.release()


_LOGS = ("-wal", "-shm", "-journal")
"""What SQLite writes beside a file, and would apply to any other file of that name."""


def _replace(database: Path, proved: Path) -> Path | None:
    """Give the database's name to `proved` in one step; where the old file is then, which had that second name before.

    No log of the old file may ever lie beside the new one, and the old one must not lose its log while it can still
    be started: so its log is first folded into it."""
    existed = database.exists()
    kept = database.with_name(f"{database.name}.replaced-{_stamp()}")
    if existed:
        for other in database.parent.glob(f"{glob.escape(database.name)}.replaced-*"):
            if other.samefile(database):  # a restore was interrupted
                other.unlink()
        _fold_log(database)
        os.link(database, kept)
    for suffix in _LOGS:  # of a file that is missing, or damaged, and cannot be started
        log = database.with_name(database.name + suffix)
        if log.exists():
            log.rename(kept.with_name(kept.name + suffix))
    _sync_folder(database.parent)
    os.replace(proved, database)
    _sync_folder(database.parent)
    return kept if existed else None


def _fold_log(database: Path) -> None:
    """Bring into the file what lies in its log, which is then gone; a file that is damaged stays as it is, and so does
    its log. Raises sqlite3.Error, where somebody else is using it, too."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise


def _remove(partial: Path) -> None:
    for suffix in ("", *_LOGS):
        partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
