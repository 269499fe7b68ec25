"""Backups that are made under full write load, each restored elsewhere and held against what was answered meanwhile.

The program `trade` (`tests.programs`) holds and settles with eight customers at once and writes down what the store has
answered, as fast as it can. What it had written when a backup began must be in the copy; and of what came afterwards,
nothing that had not been asked for when the backup ended. A copy of the file alone is judged beside it, by the same
rules, and must be found wanting: else they would let anything pass. When a commit falls is up to the kernel, and not
repeated by a seed.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goosestack import admin, ledger
from goosestack.errors import Refusal
from goosestack.store.sqlite import SqliteStore, connect_read_only
from tests.programs import NOW
from tests.proofs.proof import Attempt, Proof, Refuted
from tests.world import bare_environment, until

AT_A_TIME = 10
"""Backups of one database: a fresh one is not long to check."""

NEAR, FAR = 100, 3_000
"""Answers between two backups, in short and in full."""

STEPS = {"entry": 1, "held": 2, "released": 3, "settled": 3}
"""What a customer does about one name after the other, in this order."""

_NAME = re.compile(r"p(\d+)_(\d+)_(\d+)")

Tables = dict[str, list[tuple[Any, ...]]]


@dataclass(slots=True)
class Answered:
    """What the store had answered, up to a moment."""

    reached: dict[str, int] = field(default_factory=dict)
    """How far each customer has come: three steps for each name."""
    amounts: dict[tuple[str, str], int] = field(default_factory=dict)
    """By a word and a name: what was held or charged."""


class Trade:
    """The program, and what it has said so far."""

    def __init__(self, folder: Path) -> None:
        self.db, self._said, self._read = folder / "goosestack.db", folder / "trade.out", 0
        self.answered = Answered()
        with self._said.open("wb") as output:
            command = [sys.executable, "-m", "tests.programs", "trade", str(self.db)]
            self._process = subprocess.Popen(command, stdout=output, env=bare_environment())
        until(lambda: self.look().reached, "trade")

    def look(self) -> Answered:
        """What was answered by now: each line is there before its customer asks for anything more."""
        with self._said.open("rb") as said:
            said.seek(self._read)
            data = said.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for line in data.decode().splitlines():
            word, *facts = line.split()
            if word in STEPS:
                customer, step = step_of(facts[0], STEPS[word])
                self.answered.reached[customer] = step
                if word in ("held", "settled"):
                    self.answered.amounts[word, facts[0]] = int(facts[1])
        return self.answered

    def goes_on(self, answers: int) -> None:
        """Wait for so many more answers."""
        past = sum(self.look().reached.values())
        until(lambda: sum(self.look().reached.values()) > past + answers, "some trade")

    def stop(self) -> None:
        """End it at once."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def step_of(name: str, step: int) -> tuple[str, int]:
    """Which customer has come how far, by a name and a step of it."""
    match = _NAME.fullmatch(name)
    assert match is not None, name
    process, customer, count = match.groups()
    return f"{process}_{customer}", 3 * int(count) + step


def tables(path: Path) -> Tables:
    """All that counts in a file, in the order in which it was written."""
    with closing(connect_read_only(path)) as db:
        return {
            "accounts": db.execute("SELECT id, user_id, balance, carry, held FROM accounts ORDER BY id").fetchall(),
            "entries": db.execute("SELECT seq, ref, account_id, amount FROM entries ORDER BY seq").fetchall(),
            "settled": db.execute(
                "SELECT settled_seq, id, account_id, held, charged, billed FROM usage_log"
                " WHERE settled_seq IS NOT NULL ORDER BY settled_seq"
            ).fetchall(),
            "usage": db.execute("SELECT id, status, held, charged FROM usage_log ORDER BY id").fetchall(),
        }


def wrong_with(copy: Tables, before: Answered, after: dict[str, int]) -> Iterator[str]:
    """Why a copy is no state between what was answered before it was begun and what was asked for when it ended."""
    steps: dict[str, set[int]] = {}
    for _, ref, *_ in copy["entries"]:
        customer, step = step_of(ref, 1)
        steps.setdefault(customer, set()).add(step)
    for id, status, *_ in copy["usage"]:
        customer, step = step_of(id, 2)
        steps.setdefault(customer, set()).update({step} if status == "held" else {step, step + 1})
    for customer in {*steps, *before.reached}:
        found = steps.get(customer, set())
        last, least, most = max(found, default=0), before.reached.get(customer, 0), after.get(customer, 0) + 1
        if len(found) != last:
            yield f"customer {customer} has come to step {last}, and {last - len(found)} before it are missing"
        if last < least:
            yield f"customer {customer} has come to step {last}, and {least} was answered before the backup began"
        if last > most:
            yield f"customer {customer} has come to step {last}, and only {most} had been asked for when it ended"
    usage = {id: (held, charged) for id, _, held, charged in copy["usage"]}
    for (word, name), amount in before.amounts.items():
        kept = usage.get(name, (None, None))[word == "settled"]
        if kept != amount:
            yield f"{name} was answered as {word} {amount}, and the copy has {kept}"


def continued_by(copy: Tables, later: Tables) -> bool:
    """Whether a state may have become a later one: what was entered and settled is its beginning."""
    return all(later[name][: len(copy[name])] == copy[name] for name in ("entries", "settled"))


async def _opened(path: Path) -> tuple[int, list[str]]:
    """Open a database as a start does: how many holds that ended, and what is wrong with the books then."""
    store = SqliteStore(path, ballast_bytes=0)
    try:
        process = await store.write(ledger.begin_process, "test", NOW)
        settled, released = await store.write(ledger.recover, process, NOW)
        return settled + released, await store.read(lambda tx: ledger.check(tx, full=True).wrong)
    finally:
        await store.close()


def run(attempt: Attempt) -> None:
    """So many backups, some of each database."""
    attempt.expect("commits while it was made", "open holds in the copy", "a log beside the file")
    attempt.expect("a copy of the file alone that has lost something")
    goal = attempt.goal["backups"]
    slowest = 0.0
    for start in range(0, goal, AT_A_TIME):
        folder = attempt.folder / str(start)
        (folder / "copies").mkdir(parents=True)
        trade = Trade(folder)
        try:
            copies: list[Tables] = []
            for number in range(min(AT_A_TIME, goal - start)):
                slowest = max(slowest, _back_up(attempt, trade, folder, number, copies))
            trade.goes_on(FAR if attempt.full else NEAR)
        finally:
            trade.stop()
        latest = tables(trade.db)
        for earlier, later in zip(copies, [*copies[1:], latest], strict=True):
            attempt.must(continued_by(earlier, later), "a copy has what the database did not have then, or later")
        attempt.count("operations", sum(trade.look().reached.values()))
        shutil.rmtree(folder)
    attempt.figure(f"a backup took {slowest:.2f} s at most, its proof included")


def _back_up(attempt: Attempt, trade: Trade, folder: Path, number: int, copies: list[Tables]) -> float:
    """Make one, restore it elsewhere, and judge it; the seconds that it took."""
    trade.goes_on(FAR if attempt.full else NEAR)
    seen = trade.look()
    before = Answered(dict(seen.reached), dict(seen.amounts))
    alone = _file_alone(folder, trade)
    log = trade.db.with_name(trade.db.name + "-wal")
    attempt.meet("a log beside the file", int(log.exists() and log.stat().st_size > 0))
    target = folder / "copies" if number % 2 else folder / f"copy{number}.db"
    try:
        made = admin.backup(trade.db, target, None)
    except Refusal as refusal:
        raise Refuted(f"backup {number} could not be made: {refusal}") from refusal
    after = dict(trade.look().reached)
    attempt.meet("commits while it was made", int(after != before.reached))
    copy = Path(str(made["file"]))
    restored = folder / f"restored{number}" / "goosestack.db"
    restored.parent.mkdir()
    admin.restore(restored, copy)
    found = tables(restored)
    attempt.must(found == tables(copy), "what was restored is not what was in the copy")
    for wrong in wrong_with(found, before, after):
        attempt.must(False, f"backup {number}: {wrong}")
    holds = sum(status == "held" for _, status, *_ in found["usage"])
    attempt.meet("open holds in the copy", holds)
    ended, wrong_books = asyncio.run(_opened(restored))
    attempt.must((ended, wrong_books) == (holds, []), f"backup {number}: {holds} holds, {ended} ended; {wrong_books}")
    attempt.meet("a copy of the file alone that has lost something", int(_wanting(alone, before, after)))
    copies.append(found)
    attempt.count("backups")
    return float(str(made["seconds"]))


def _file_alone(folder: Path, trade: Trade) -> Path:
    """What an operator has who copies the file as it lies there."""
    alone = folder / "alone.db"
    alone.unlink(missing_ok=True)
    shutil.copy(trade.db, alone)
    return alone


def _wanting(alone: Path, before: Answered, after: dict[str, int]) -> bool:
    try:
        admin.verify_file(alone)
    except Refusal:
        return True
    return any(wrong_with(tables(alone), before, after))


PROOF = Proof(
    name="backups",
    claim="A backup under full write load is a state that was answered: restored, it has all and only that.",
    short={"backups": 3, "operations": 1_000},
    full={"backups": 100, "operations": 100_000},
    run=run,
    limit_s=(60, 1_800),
)
