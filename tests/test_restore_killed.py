"""`kill -9` at every line of a restore: there is always a database, the old one or the new one, whole; no cent of
either is lost; and restoring again goes through. The program `restore` of `programs.py` does it.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from goosestack import admin, ledger
from goosestack.store import Tx
from goosestack.store.sqlite import migrate

ROOT = Path(__file__).resolve().parent.parent
NOW = "2026-11-21T12:00:00.000Z"
OLD, NEW = 1200, 500
DAMAGED = b"not a database " * 1000


def grant(tx: Tx, ref: str, cents: int) -> None:
    """Give Alice so many cents."""
    tx.execute("INSERT INTO users VALUES ('alice', 'alice', NULL, NULL, ?) ON CONFLICT DO NOTHING", (NOW,))
    ledger.post(tx, ledger.open_account(tx, "alice", "usd_cents", NOW), "grant", ref, cents, NOW)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A copy in which Alice has 500 cents, and the database of a killed daemon, in whose log 700 more are."""
    shop, live = tmp_path / "shop", tmp_path / "live.db"
    shop.mkdir()
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        migrate(db)
        grant(db, "first", NEW)
        db.execute("VACUUM INTO ?", (str(shop / "copy.db"),))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        grant(db, "second", OLD - NEW)
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{live}{suffix}", shop / f"goosestack.db{suffix}")
    assert balance(shop / "copy.db") == NEW and (shop / "goosestack.db-wal").stat().st_size > 0
    return shop


def balance(path: Path) -> int:
    """Alice's cents, in a file that adds up, read as a start would: with the log beside it."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as db:
        cents: int = db.execute("SELECT balance_cents FROM credits WHERE user_id = 'alice'").fetchone()[0]
    assert admin.verify_file(path)["users"] == 1
    return cents


def replaced(folder: Path) -> list[Path]:
    """The files that were put aside, but for one that is another name of what is still in its place."""
    found = folder.glob("goosestack.db.replaced-*Z")
    return [path for path in found if not path.samefile(folder / "goosestack.db")]


def killed_everywhere(shop: Path) -> Iterator[Path]:
    """The folder as each kill left it, and, last, as a restore did that was let be."""
    command = [sys.executable, "-m", "tests.programs", "restore", str(shop)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "done\n", done.stdout + done.stderr
    found = sorted((path for path in shop.parent.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    assert len(found) > 40
    yield from found


def test_the_old_database_or_the_new_one_is_there_whole_wherever_a_restore_is_killed(shop: Path) -> None:
    found = []
    for folder in killed_everywhere(shop):
        database = folder / "goosestack.db"
        found.append(balance(database))
        assert [balance(path) for path in replaced(folder)] == ([OLD] if found[-1] == NEW else [])
        admin.restore(database, folder / "copy.db")
        assert balance(database) == NEW
        assert [balance(path) for path in replaced(folder)].count(OLD) == 1
        assert not list(folder.glob(".*"))
    assert found == sorted(found, reverse=True) and set(found) == {OLD, NEW}


def test_a_damaged_database_is_put_aside_as_it_was_wherever_a_restore_is_killed(shop: Path) -> None:
    (shop / "goosestack.db").write_bytes(DAMAGED)
    log = (shop / "goosestack.db-wal").read_bytes()
    for folder in killed_everywhere(shop):
        database = folder / "goosestack.db"
        if database.read_bytes() != DAMAGED:
            assert balance(database) == NEW
        admin.restore(database, folder / "copy.db")
        assert balance(database) == NEW
        (aside,) = [path for path in replaced(folder) if path.read_bytes() == DAMAGED]
        assert [path.read_bytes() for path in folder.glob("*-wal")] == [log], aside
        assert not list(folder.glob(".*"))


def test_no_log_that_a_lost_database_left_is_applied_to_the_restored_one(shop: Path) -> None:
    (shop / "goosestack.db").unlink()
    assert admin.restore(shop / "goosestack.db", shop / "copy.db")["replaced"] is None
    assert balance(shop / "goosestack.db") == NEW
