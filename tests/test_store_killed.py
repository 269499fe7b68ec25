"""`kill -9` in the middle of trade, again and again: what was answered is there, the file is whole, the books add up.

The program `trade` of `programs.py` says what the store answered; it is killed at a moment that a seed chooses, also
while it recovers from the time before. `GOOSESTACK_PROOF=long` kills it 1,000 times.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from goosestack import ledger
from goosestack.store.sqlite import integrity

ROOT = Path(__file__).resolve().parent.parent
CYCLES = 1_000 if os.environ.get("GOOSESTACK_PROOF") == "long" else 10


def killed(path: Path, after_lines: int) -> list[list[str]]:
    """What the program said before it was killed, once it had said so many lines."""
    command = [sys.executable, "-m", "tests.programs", "trade", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as trade:
        assert trade.stdout is not None
        lines = [trade.stdout.readline() for _ in range(after_lines)]
        trade.send_signal(signal.SIGKILL)
        lines += trade.stdout.readlines()
    assert trade.returncode == -signal.SIGKILL, lines[-3:]
    return [line.split() for line in lines if line.endswith("\n")]


def copied(path: Path) -> tuple[sqlite3.Connection, int]:
    """A copy of the file and its log, opened, and the log's size: the next process must meet them untouched."""
    copy = path.with_name("copy.db")
    for name in ("", "-wal"):
        original, target = path.with_name(path.name + name), copy.with_name(copy.name + name)
        target.unlink(missing_ok=True)
        if original.exists():
            shutil.copy(original, target)
    log = copy.with_name(copy.name + "-wal")
    return sqlite3.connect(copy), log.stat().st_size if log.exists() else 0


def missing(db: sqlite3.Connection, said: list[list[str]]) -> list[list[str]]:
    """What was answered, and is not in the file as it was answered."""
    rows = {row[0]: row[1:] for row in db.execute("SELECT id, status, held, charged FROM usage_log")}
    refs = {row[0] for row in db.execute("SELECT ref FROM entries")}
    wrong = []
    for word, *facts in said:
        match word:
            case "entry":
                kept = facts[0] in refs
            case "held":
                kept = facts[0] in rows and rows[facts[0]][1] == int(facts[1])
            case "released":
                kept = rows[facts[0]][0] == "released"
            case "settled":
                kept = rows[facts[0]][0] == "settled" and rows[facts[0]][2] == int(facts[1])
            case _:
                kept = True
        if not kept:
            wrong.append([word, *facts])
    return wrong


def test_what_was_answered_survives_the_kill(tmp_path: Path) -> None:
    seed = int(os.environ.get("GOOSESTACK_SEED") or random.SystemRandom().randrange(2**32))
    print(f"GOOSESTACK_SEED={seed}")
    rnd = random.Random(seed)
    path = tmp_path / "goosestack.db"
    said: list[list[str]] = []
    hot = open_holds = 0
    for cycle in range(CYCLES):
        said += killed(path, rnd.randrange(100, 500) if cycle % 2 else rnd.randrange(3))
        db, log_bytes = copied(path)
        hot += log_bytes > 0
        if db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'usage_log'").fetchone()[0]:
            assert integrity(db) == []
            latest = db.execute("SELECT coalesce(max(id), 0) FROM processes").fetchone()[0]
            wrong = [text for text in ledger.check(db, full=True).wrong if "process that is gone" not in text]
            assert wrong == [], f"after {latest} processes"
            assert missing(db, said) == []
            open_holds += db.execute("SELECT count(*) FROM usage_log WHERE status = 'held'").fetchone()[0]
        db.close()
    assert [line for line in said if line[0] == "wrong" and line[1] != "nothing"] == []
    counts = {word: sum(line[0] == word for line in said) for word in ("entry", "held", "released", "settled")}
    assert all(counts.values()) and hot and open_holds, f"proves nothing: {counts}, {hot} logs, {open_holds} open holds"
