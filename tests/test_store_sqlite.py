"""SQLite as the store: the file and who may read it, its lock, its schema, and what happens when the disk is full or
fails. Real files, real locks, real limits; what must not happen to this process happens to a program of `programs.py`.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from goosestack.errors import NotYet, Refusal, StoreUnavailable
from goosestack.store import Tx
from goosestack.store.migrations import MIGRATIONS
from goosestack.store.sqlite import (
    InUse,
    Lock,
    SqliteStore,
    cannot_be_used,
    connect_read_only,
    integrity,
    migrate,
    refuse_if_exposed,
    snapshot,
    sqlite_warning,
)
from tests.programs import add_user

ROOT = Path(__file__).resolve().parent.parent
BALLAST = 64 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "goosestack.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path, ballast_bytes=BALLAST)
    yield opened
    await opened.close()


def program(name: str, path: Path, *args: str, within: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program of `programs.py` to its end."""
    command = [*within, sys.executable, "-m", "tests.programs", name, str(path), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def names(tx: Tx) -> list[str]:
    return [row[0] for row in tx.execute("SELECT id FROM users ORDER BY id")]


def damage(path: Path, start: int) -> None:
    """Overwrite a file, or make one, with what no database has."""
    path.touch(0o600)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * max(8192, path.stat().st_size - start))


# --- the file -------------------------------------------------------------------------------------------------


async def test_only_the_owner_can_read_what_the_store_writes(path: Path) -> None:
    old = os.umask(0o000)
    try:
        store = SqliteStore(path, ballast_bytes=BALLAST)
        lock = Lock(path)
        await store.write(add_user, "alice")
    finally:
        os.umask(old)
    for name in ("", "-wal", "-shm", ".lock", ".ballast"):
        assert stat.S_IMODE(path.with_name(path.name + name).stat().st_mode) == 0o600, name
    refuse_if_exposed(path)
    lock.release()
    await store.close()


@pytest.mark.parametrize("name", ["", "-wal"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_database_that_others_may_read_or_write_is_refused(path: Path, name: str, mode: int) -> None:
    path.touch(0o600)
    exposed = path.with_name(path.name + name)
    exposed.touch()
    exposed.chmod(mode)
    with pytest.raises(Refusal, match="chmod 600"):
        refuse_if_exposed(path)


async def test_a_file_that_is_no_database_is_refused_in_a_sentence(path: Path) -> None:
    damage(path, start=0)
    with pytest.raises(Refusal, match="cannot be opened"):
        SqliteStore(path)


async def test_a_folder_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be opened"):
        SqliteStore(tmp_path / "nowhere" / "goosestack.db")


def test_a_folder_is_no_database_and_one_that_is_missing_has_no_lock(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is a folder, not a database"):
        refuse_if_exposed(tmp_path)
    with pytest.raises(Refusal, match=r"goosestack.db.lock cannot be opened: No such file or directory"):
        Lock(tmp_path / "nowhere" / "goosestack.db")


async def test_the_log_is_synchronous_and_checked_and_rules_are_on(store: SqliteStore) -> None:
    def pragmas(tx: Tx) -> dict[str, object]:
        asked = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "cell_size_check", "mmap_size")
        return {name: tx.execute(f"PRAGMA {name}").fetchone()[0] for name in asked}

    assert await store.write(pragmas) == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "mmap_size": 0,
    }


async def test_after_closing_everything_is_in_the_one_file(path: Path) -> None:
    store = SqliteStore(path)
    await store.write(add_user, "alice")
    await store.close()
    assert not path.with_name(path.name + "-wal").exists()
    with connect_read_only(path) as db:
        assert names(db) == ["alice"]
    db.close()


async def test_a_snapshot_is_whole_private_and_of_one_moment(store: SqliteStore, path: Path) -> None:
    await store.write(add_user, "alice")
    copy = path.with_name("copy.db")
    snapshot(path, copy)
    await store.write(add_user, "bob")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    db = connect_read_only(copy)
    assert names(db) == ["alice"] and integrity(db) == []
    db.close()
    with pytest.raises(FileExistsError):
        snapshot(path, copy)


def test_integrity_names_what_points_nowhere(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    migrate(db)
    db.execute("INSERT INTO api_keys VALUES ('key_1', 'hash', 'gsk_', 'nobody', 'x', 0, 'now')")
    assert integrity(db) == ["foreign key: api_keys row 1 has no users"]
    db.close()


# --- one process ----------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_while_the_first_lives(path: Path) -> None:
    command = [sys.executable, "-m", "tests.programs", "hold_lock", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(Refusal, match="another goosestack process"):
            Lock(path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    Lock(path).release()


def test_a_link_to_a_database_is_no_way_around_its_lock(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    first = Lock(path)
    with pytest.raises(InUse):
        Lock(link)
    first.release()
    Lock(link).release()


def test_a_lock_that_was_let_go_can_be_taken_again(path: Path) -> None:
    first = Lock(path)
    with pytest.raises(Refusal):
        Lock(path)
    first.release()
    second = Lock(path)
    assert second.path.read_text().strip() == str(os.getpid())
    second.release()


# --- the schema -----------------------------------------------------------------------------------------------


def schema(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()


@pytest.mark.parametrize("age", range(len(MIGRATIONS)))
def test_a_database_of_any_age_becomes_the_same_as_a_fresh_one(age: int) -> None:
    fresh, old = sqlite3.connect(":memory:", isolation_level=None), sqlite3.connect(":memory:", isolation_level=None)
    migrate(fresh)
    migrate(old, MIGRATIONS[:age])
    assert old.execute("PRAGMA user_version").fetchone() == (age,)
    migrate(old)
    assert schema(old) == schema(fresh) != []
    assert old.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    migrate(old)
    assert schema(old) == schema(fresh)
    fresh.close()
    old.close()


def test_a_step_that_fails_leaves_the_step_before_it(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    good, bad = "CREATE TABLE a (x);", "CREATE TABLE b (x); CREATE TABLE a (x);"
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(db, (good, bad))
    db.close()
    db = sqlite3.connect(path, isolation_level=None)
    assert [row[1] for row in schema(db)] == ["a"]
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    await SqliteStore(path).close()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = schema(db)
    with pytest.raises(Refusal, match="install a newer one"):
        SqliteStore(path)
    assert schema(db) == before
    db.close()


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 54, 1), False),
        ((4, 0, 0), False),
    ],
)
def test_releases_with_the_log_reset_bug_are_warned_of(version: tuple[int, int, int], warned: bool) -> None:
    warning = sqlite_warning(version)
    assert (warning is not None) == warned
    assert warning is None or ".".join(map(str, version)) in warning


# --- a disk that is full --------------------------------------------------------------------------------------


def set_most_pages(tx: Tx, pages: int) -> int:
    """As many pages as the database may have at most, never fewer than it has; SQLite then says that it is full."""
    return int(tx.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])


async def test_when_the_disk_is_full_everybody_in_the_batch_is_told(store: SqliteStore, path: Path) -> None:
    ballast = path.with_name(path.name + ".ballast")
    assert ballast.stat().st_size == BALLAST
    await store.write(add_user, "alice")
    await store.write(set_most_pages, 1)
    batch = [store.write(add_user, "bob"), store.write(add_user, "big", "x" * 100_000), store.write(add_user, "carol")]
    done = await asyncio.gather(*batch, return_exceptions=True)
    assert [type(error) for error in done] == [StoreUnavailable] * 3
    assert store.full and not ballast.exists()
    assert await store.read(names) == ["alice"]


async def test_a_disk_that_is_full_is_told_to_everybody_also_where_a_verb_had_failed_by_itself(
    store: SqliteStore,
) -> None:
    def fail(tx: Tx) -> None:
        raise ValueError("no")

    await store.write(set_most_pages, 1)
    done = await asyncio.gather(
        store.write(fail),
        store.write(add_user, "big", "x" * 100_000),
        store.write(add_user, "bob"),
        return_exceptions=True,
    )
    assert [type(error) for error in done] == [StoreUnavailable] * 3
    assert store.full and await store.read(names) == []


async def test_what_needs_no_room_is_written_on_a_full_disk_and_all_goes_on_when_there_is_some(
    store: SqliteStore, path: Path
) -> None:
    await store.write(add_user, "alice")
    await store.write(set_most_pages, 1)
    with pytest.raises(StoreUnavailable):
        await store.write(add_user, "big", "x" * 100_000)
    await store.write(lambda tx: tx.execute("UPDATE users SET email = 'settled'").rowcount)
    await store.write(set_most_pages, 1_000_000)
    await store.write(add_user, "big", "x" * 100_000)
    assert await store.read(names) == ["alice", "big"]
    assert not store.full
    assert path.with_name(path.name + ".ballast").stat().st_size == BALLAST


async def test_a_ballast_that_does_not_fit_is_noted_and_leaves_nothing_behind(path: Path) -> None:
    store = SqliteStore(path, ballast_bytes=1 << 60)
    assert store.full
    assert not path.with_name(path.name + ".ballast").exists()
    await store.write(add_user, "alice")
    assert store.full
    await store.close()


def test_on_a_disk_that_is_really_full_all_that_is_held_settles(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=40m tmpfs {disk} && exec "$@"'
    within = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if subprocess.run([*within, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no disk of one's own to fill here")
    done = program("fill_disk", disk / "goosestack.db", within=within)
    assert done.stdout.splitlines() == [
        "disk full True",
        "refused StoreUnavailable full",
        "ballast False",
        "settled 200 full",
        "room not full True",
        "wrong 0",
    ], done.stderr


# --- a disk that fails ----------------------------------------------------------------------------------------


def test_a_commit_of_unknown_outcome_is_told_at_once(path: Path) -> None:
    done = program("fail_to_commit", path, "--note")
    assert done.returncode == 71, done.stderr
    assert done.stdout.startswith("done alice\nunknown a commit has an unknown outcome: ")


def test_a_commit_of_unknown_outcome_ends_the_process_and_the_next_one_knows(path: Path) -> None:
    done = program("fail_to_commit", path)
    assert done.returncode == 70
    assert done.stdout == "done alice\n"
    assert done.stderr.startswith("goosestack: fatal: a commit has an unknown outcome")
    db = sqlite3.connect(path)
    assert names(db) in (["alice"], ["alice", "bob"]) and integrity(db) == []
    db.close()


@pytest.mark.parametrize("kind", ["a file that may not grow", "a pipe that nobody reads"])
def test_a_process_that_must_end_ends_also_where_nobody_can_be_told_why(path: Path, kind: str) -> None:
    """Found by a proof: the log was on the disk that was full, so that saying why failed, and with it the writer's
    thread. The process lived on, and everybody waited for answers that nobody was left to give."""
    reads, writes = os.pipe()
    if kind == "a file that may not grow":
        os.close(writes)
        log = path.with_name("log")
        log.write_bytes(b"x" * 1024 * 1024)
        writes = os.open(log, os.O_WRONLY | os.O_APPEND)
    else:
        os.set_blocking(writes, False)
        while select.select([], [writes], [], 0)[1]:
            os.write(writes, b"x" * 4096)
        os.set_blocking(writes, True)
    command = [sys.executable, "-m", "tests.programs", "fail_to_commit", str(path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=writes, timeout=30, check=False)
    os.close(writes)
    os.close(reads)
    assert (done.returncode, done.stdout) == (70, b"done alice\n")


def test_a_batch_that_is_refused_as_a_whole_ends_the_process_and_nothing_of_it_is_there(path: Path) -> None:
    done = program("put_off_a_rule", path)
    assert done.returncode == 70
    assert done.stdout == "done alice\n"
    assert done.stderr.startswith("goosestack: fatal: the database failed: FOREIGN KEY constraint failed")
    with closing(sqlite3.connect(path)) as db:
        assert names(db) == ["alice"] and integrity(db) == []


async def test_a_damaged_file_ends_the_process_rather_than_one_request(path: Path) -> None:
    store = SqliteStore(path)
    for number in range(800):
        store.write(add_user, f"user{number:03}", "x" * 500)
    await store.close()
    size = path.stat().st_size  # noqa: ASYNC240
    damage(path, start=size - 4096 * 20)  # rows, and not the schema, which is read first
    done = program("meet_damage", path)
    assert done.returncode == 70, done
    assert done.stderr.startswith("goosestack: fatal: the database failed")


class Unreadable:
    """A connection on a disk that fails."""

    def execute(self, sql: str, parameters: object = ()) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error


async def test_whoever_reads_from_a_disk_that_fails_is_told_what_a_writer_is(store: SqliteStore) -> None:
    """It was an error of SQLite's, which callers were told as a fault of ours (500), and a start ended with."""
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await store.read(lambda tx: tx.execute("SELECT 1 FROM nowhere"))
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        store.peek(lambda tx: tx.execute("SELECT 1 FROM nowhere"))
    good, store._peeker = store._peeker, cast(sqlite3.Connection, Unreadable())
    with pytest.raises(StoreUnavailable) as told:
        store.peek(names)
    assert isinstance(told.value.__cause__, sqlite3.OperationalError)
    store._peeker = good
    connect, store._connect_reader = store._connect_reader, lambda: cast(sqlite3.Connection, Unreadable())  # type: ignore[method-assign]
    store._local = threading.local()
    with pytest.raises(StoreUnavailable):
        await store.read(names)
    store._connect_reader, store._local = connect, threading.local()  # type: ignore[method-assign]
    assert await store.read(names) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sqlite3.OperationalError("disk I/O error"), NotYet),
        (OSError("no space left on device"), NotYet),
        (sqlite3.DatabaseError("database disk image is malformed"), Refusal),
    ],
)
def test_what_may_pass_is_no_refusal_for_good(path: Path, error: Exception, kind: type[Refusal]) -> None:
    refusal = cannot_be_used(path, error)
    assert type(refusal) is kind and str(refusal) == f"{path} cannot be used: {error}"


async def test_a_writer_that_fails_in_any_way_ends_the_process(path: Path) -> None:
    done = program("break_writer", path)
    assert done.returncode == 70, done
    assert done.stdout == "done alice\n"
    assert done.stderr.startswith("goosestack: fatal: the writer failed")
