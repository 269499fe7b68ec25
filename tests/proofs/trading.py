"""A trade that is made to be interrupted: eight customers of one real store say what it answered them; whatever happens
to the process or the machine, the next one finds all of that.

    python -m tests.proofs.trading DATABASE SEED ROUNDS close|die [PRAGMA...]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NoReturn

from goosestack import ledger
from goosestack.errors import Refusal, StoreUnavailable
from goosestack.ledger import Charge, NewHold
from goosestack.store import Tx
from goosestack.store.sqlite import Lock, SqliteStore, integrity

NOW = "2026-11-21T12:00:00.000Z"
USERS = ("alice", "bob", "carol", "dave")
CUSTOMERS = 8
FOR_EVER = 1_000_000
ANSWERED = (b"entry", b"due", b"held", b"seen", b"released", b"estimated", b"settled")
"""How a line begins that says what was answered; the others say how far the process has come."""


class TunedStore(SqliteStore):
    """The real store, its writer changed by some pragmas: to come to a checkpoint sooner, or to be hasty."""

    def __init__(self, path: Path, *pragmas: str) -> None:
        self._pragmas = pragmas
        super().__init__(path, ballast_bytes=0)

    def _connect_writer(self) -> sqlite3.Connection:
        writer = super()._connect_writer()
        for pragma in self._pragmas:
            writer.execute(f"PRAGMA {pragma}")
        return writer


# --- the trade ------------------------------------------------------------------------------------------------


def say(*words: object) -> None:
    """One line at once, in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def trade(path: Path, seed: int, *pragmas: str, rounds: int = FOR_EVER, close: bool = True) -> None:
    """Recover; then every customer does so many rounds, all at once; then close, or be killed."""
    say("opening")
    lock, store = Lock(path), TunedStore(path, *pragmas)
    say("opened")  # the file, and SQLite has read what was left of its log
    process = await store.write(ledger.begin_process, "test", NOW)
    ended = await store.write(ledger.recover, process, NOW)
    wrong = await store.read(lambda tx: ledger.check(tx, full=True).wrong)
    assert wrong == [], wrong
    say("recovered", *ended)
    accounts = await store.write(open_accounts)
    random = Random(seed)
    await asyncio.gather(
        *(Customer(store, process, number, accounts, random).come(rounds) for number in range(CUSTOMERS))
    )
    if not close:
        os.kill(os.getpid(), signal.SIGKILL)
    say("closing")
    await store.close()
    say("closed")
    lock.release()


def open_accounts(tx: Tx) -> list[int]:
    for user in USERS:
        tx.execute(
            "INSERT INTO users (id, email, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (user, user, NOW)
        )
    return [ledger.open_account(tx, user, "usd_cents", NOW) for user in USERS]


@dataclass(frozen=True, slots=True)
class Customer:
    """Pays, asks for something, and perhaps wants money back; says of each write that it was answered."""

    store: SqliteStore
    process: int
    number: int
    accounts: Sequence[int]
    random: Random

    async def come(self, rounds: int) -> None:
        for count in range(rounds):
            await self.round(f"p{self.process}_{self.number}_{count}", self.random.randrange(len(USERS)))

    async def round(self, name: str, which: int) -> None:
        store, random, account = self.store, self.random, self.accounts[which]
        await store.write(ledger.post, account, "topup", name, 3, NOW)
        say("entry", name, 3)
        if random.random() < 0.2:
            await store.write(ledger.bring, account, "topup", f"due{name}", 5, NOW)
            say("due", f"due{name}", 5)
        hold = NewHold(name, USERS[which], self.process, "openai_chat", "openai", "gpt", account_id=account)
        answer = await store.write(ledger.authorize, hold, 0, 30_000_000, NOW)
        if answer.held is None:
            return  # something is owed
        say("held", name, answer.held)
        if random.random() < 0.5:
            seen = min(7, answer.held)
            await store.write(ledger.journal, name, Charge(seen, seen))
            say("seen", name)
        if random.random() < 0.2:
            say(await store.write(ledger.release, name, "refused", NOW), name)
        else:
            await self.pay(name, min(answer.held, random.randrange(25_000_000)))
        if random.random() < 0.1:
            await store.write(ledger.bring, account, "refund", f"due{name}", 1, NOW)
            say("due", f"due{name}", 1)

    async def pay(self, name: str, cost: int) -> None:
        """By an estimate first, now and then."""
        if self.random.random() < 0.2:
            receipt = await self.store.write(
                ledger.settle, name, Charge(cost, cost, estimated=True), "interrupted", NOW
            )
            say("estimated", name, receipt.charged)
            cost = cost // 2
        receipt = await self.store.write(ledger.settle, name, Charge(cost, cost), "completed", NOW)
        say("settled", name, receipt.charged)


# --- what must be so afterwards -------------------------------------------------------------------------------


@dataclass(slots=True)
class Verdict:
    """What the real store found at its start: `wrong` with the books or the file; `lost` of what had been answered."""

    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    resolved: int = 0
    """Holds that the dead had left open."""


async def recovered(path: Path, said: Iterable[bytes]) -> Verdict:
    """Start the real store on what is left, as the daemon does, and look at what it finds."""
    loop = asyncio.get_running_loop()
    fatal: asyncio.Future[Verdict] = loop.create_future()

    def ended(why: str) -> None:
        if not fatal.done():
            fatal.set_result(Verdict([why]))

    def note(why: str) -> NoReturn:
        loop.call_soon_threadsafe(ended, why)
        raise SystemExit

    lock = Lock(path)
    try:
        store = SqliteStore(path, ballast_bytes=0, readers=1, on_unknown_commit=note)
    except (Refusal, sqlite3.Error) as error:
        lock.release()
        return Verdict([str(error)])
    work = loop.create_task(_examined(store, said))
    try:
        await asyncio.wait((work, fatal), return_when=asyncio.FIRST_COMPLETED)
        return fatal.result() if fatal.done() else await work
    finally:
        work.cancel()
        await store.close()
        lock.release()


async def _examined(store: SqliteStore, said: Iterable[bytes]) -> Verdict:
    try:
        process = await store.write(ledger.begin_process, "test", NOW)
        resolved = sum(await store.write(ledger.recover, process, NOW))

        def look(tx: Tx) -> Verdict:
            assert isinstance(tx, sqlite3.Connection)
            return Verdict(integrity(tx) + ledger.check(tx, full=True).wrong, missing(tx, said), resolved)

        return await store.read(look)
    except (StoreUnavailable, sqlite3.Error) as error:
        return Verdict([repr(error.__cause__ or error)])


def missing(tx: Tx, said: Iterable[bytes]) -> list[str]:
    """What was answered, and does not stand as it was answered."""
    entries = {f"{ref} {amount}" for ref, amount in tx.execute("SELECT ref, amount FROM entries")}
    dues = dict(tx.execute("SELECT ref, target FROM dues").fetchall())
    rows = {row[0]: row[1:] for row in tx.execute("SELECT id, status, reason, held, charged FROM usage_log").fetchall()}
    nothing = (None, None, None, 0)
    lost = []
    for line in said:
        word, *facts = line.decode().split()
        status, reason, held, charged = rows.get(facts[0], nothing) if facts else nothing
        match word:
            case "entry":
                kept = " ".join(facts) in entries
            case "due":  # only ever brought lower
                kept = dues.get(facts[0], FOR_EVER) <= int(facts[1])
            case "held":
                kept = held == int(facts[1])
            case "seen":  # never taken for a request that was not answered
                kept = status == "settled" or reason == "refused"
            case "released":
                kept = status == "released"
            case "estimated":
                kept = status == "settled" and charged == int(facts[1])
            case "settled":
                correction = rows.get(f"{facts[0]}.c", nothing)[3]
                kept = status == "settled" and charged + correction == int(facts[1])
            case _:
                kept = True
        if not kept:
            lost.append(line.decode())
    return lost


def main() -> None:
    path, seed, rounds, end, *pragmas = sys.argv[1:]
    asyncio.run(trade(Path(path), int(seed), *pragmas, rounds=int(rounds), close=end == "close"))


if __name__ == "__main__":
    main()
