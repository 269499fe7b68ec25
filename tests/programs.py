"""Small programs that tests run as processes of their own, to be killed, or to meet a limit that would be ours too.

    python -m tests.programs NAME DATABASE

Each prints what happens, one line at a time; what it printed as done was answered by the store.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from goosestack import admin, ledger
from goosestack.ledger import Charge, NewHold
from goosestack.store import Tx, backup
from goosestack.store.sqlite import Lock, SqliteStore

NOW = "2026-11-21T12:00:00.000Z"


USERS = [f"user{number}" for number in range(4)]


def say(*words: object) -> None:
    """One line at once, in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def add_user(tx: Tx, name: str, more: str = "") -> str:
    """A user, with an e-mail as long as is asked for."""
    tx.execute("INSERT INTO users (id, email, created_at) VALUES (?, ?, ?)", (name, f"{name}{more}", NOW))
    return name


async def hold_lock(path: Path) -> None:
    """Take the lock, and keep it until standard input ends."""
    Lock(path)
    say("locked")
    sys.stdin.read()


async def fail_to_commit(path: Path) -> None:
    """A commit fails because the file may not grow: its outcome is unknown to whoever only has the error."""

    def note(why: str) -> NoReturn:
        say("unknown", why)
        os._exit(71)

    if "--note" in sys.argv:
        store = SqliteStore(path, ballast_bytes=0, on_unknown_commit=note)
    else:
        store = SqliteStore(path, ballast_bytes=0)
    await store.write(add_user, "alice")
    say("done", "alice")
    size = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    await store.write(add_user, "bob")
    say("done", "bob")


async def meet_damage(path: Path) -> None:
    """Read every row, in a write, of a file that somebody has damaged."""
    store = SqliteStore(path)
    await store.write(lambda tx: tx.execute("SELECT sum(length(email)) FROM users").fetchone())
    say("read")


async def break_writer(path: Path) -> None:
    """What is told of a commit fails, in the writer's own thread."""
    counts = iter([0])
    store = SqliteStore(path, on_commit=lambda seconds, verbs: say("done", ["alice"][next(counts)]))
    await store.write(add_user, "alice")
    await store.write(add_user, "bob")


async def put_off_a_rule(path: Path) -> None:
    """A verb leaves something for the end of the transaction that the database then refuses, with all of its batch."""
    store = SqliteStore(path)
    await store.write(add_user, "alice")
    say("done", "alice")

    def orphan(tx: Tx) -> None:
        tx.execute("PRAGMA defer_foreign_keys = ON")
        ledger.open_account(tx, "nobody", "usd_cents", NOW)

    await asyncio.gather(store.write(add_user, "bob"), store.write(orphan))
    say("done", "bob")


async def fill_disk(path: Path) -> None:
    """On a small disk of its own: hold money, fill the disk, settle what is held, and go on once there is room."""
    store = SqliteStore(path)
    process = await store.write(ledger.begin_process, "test", NOW)
    await store.write(add_user, "alice")
    account = await store.write(ledger.open_account, "alice", "usd_cents", NOW)
    await store.write(ledger.post, account, "topup", "1", 1000, NOW)
    for number in range(200):
        hold = NewHold(f"hold{number}", "alice", process, "openai_chat", "openai", "gpt", account_id=account)
        await store.write(ledger.authorize, hold, 1, 1000, NOW)
    blob, written = path.with_name("blob"), 0
    with blob.open("wb", buffering=0) as file:  # somebody else's file takes what is left
        try:
            while True:
                written += file.write(b"x" * 4096)
        except OSError:
            say("disk full", written > 0)
    for number in range(1000):
        try:
            await store.write(add_user, f"more{number}", "x" * 20_000)
        except Exception as error:
            say("refused", type(error).__name__, "full" if store.full else "not full")
            break
    say("ballast", path.with_name(path.name + ".ballast").exists())
    for number in range(200):
        await store.write(ledger.settle, f"hold{number}", Charge(500, 500), "completed", NOW)
    say("settled", 200, "full" if store.full else "not full")
    blob.unlink()
    await store.write(add_user, "bob", "x" * 20_000)
    say("room", "full" if store.full else "not full", path.with_name(path.name + ".ballast").exists())
    wrong = await store.read(lambda tx: ledger.check(tx, full=True).wrong)
    say("wrong", len(wrong))
    await store.close()


async def trade(path: Path) -> None:
    """Hold and settle with many customers at once, each in three steps for one name after the other, and say what was
    answered, until killed."""
    lock, store = Lock(path), SqliteStore(path, ballast_bytes=0)
    process = await store.write(ledger.begin_process, "test", NOW)
    say("process", process)
    await store.write(ledger.recover, process, NOW)
    wrong = await store.read(lambda tx: ledger.check(tx, full=True).wrong)
    say("wrong", *(wrong or ["nothing"]))
    rnd = random.Random(process)

    def open_accounts(tx: Tx) -> list[int]:
        for user in USERS:
            tx.execute(
                "INSERT INTO users (id, email, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (user, user, NOW)
            )
        return [ledger.open_account(tx, user, "usd_cents", NOW) for user in USERS]

    accounts = await store.write(open_accounts)

    async def customer(number: int) -> None:
        for count in range(1_000_000):
            which = rnd.randrange(len(USERS))
            name = f"p{process}_{number}_{count}"
            await store.write(ledger.post, accounts[which], "topup", name, 3, NOW)
            say("entry", name)
            hold = NewHold(name, USERS[which], process, "openai_chat", "openai", "gpt", account_id=accounts[which])
            answer = await store.write(ledger.authorize, hold, 1, 30_000_000, NOW)
            say("held", name, answer.held)
            if rnd.random() < 0.5:
                await store.write(ledger.journal, name, Charge(7, 7))
            if rnd.random() < 0.2:
                say("released", name, await store.write(ledger.release, name, "refused", NOW))
            else:
                cost = rnd.randrange(25_000_000)
                receipt = await store.write(ledger.settle, name, Charge(cost, cost), "completed", NOW)
                say("settled", name, receipt.charged)

    await asyncio.gather(*(customer(number) for number in range(8)))
    lock.release()


async def restore(folder: Path) -> None:
    """Restore `copy.db` as `goosestack.db`, in copies of a folder that are named 0, 1, 2 and so on: in the first,
    killed at the first line, in the next, at the second, and so on until one is not killed."""
    killed_everywhere(folder, lambda shop: admin.restore(shop / "goosestack.db", shop / "copy.db"))


async def back_up(folder: Path) -> None:
    """The same with a backup of `goosestack.db` into `copies`."""
    killed_everywhere(folder, lambda shop: admin.backup(shop / "goosestack.db", shop / "copies", None))


def killed_everywhere(folder: Path, act: Callable[[Path], object]) -> None:
    """Do something in copies of a folder, killed at each of its lines in turn; say how the one ended that was not."""
    statuses = map(ended, itertools.count(), itertools.repeat(folder), itertools.repeat(act))
    say("done" if next(status for status in statuses if not os.WIFSIGNALED(status)) == 0 else "failed")


def ended(line: int, folder: Path, act: Callable[[Path], object]) -> int:
    """How it ended, when killed at this line."""
    shop = folder.with_name(str(line))
    shutil.copytree(folder, shop)
    child = os.fork()
    if child == 0:
        sys.settrace(killed_at(line))
        act(shop)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(line: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace that kills the process when it comes to this line of `store.backup`, counted as they are run."""
    left = itertools.count(line, -1)

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != backup.__file__:
            return None
        if event == "line" and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


async def pause_backup(folder: Path) -> None:
    """Back `goosestack.db` up into `copies`, and stop once the copy is being written, until told to go on."""

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "call" and frame.f_code is backup.verify_file.__code__:
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.settrace(trace)
    admin.backup(folder / "goosestack.db", folder / "copies", None)
    say("done")


PROGRAMS: dict[str, Callable[[Path], Awaitable[None]]] = {
    program.__name__: program
    for program in (
        hold_lock,
        fail_to_commit,
        meet_damage,
        break_writer,
        put_off_a_rule,
        fill_disk,
        trade,
        restore,
        back_up,
        pause_backup,
    )
}


async def main() -> None:
    await PROGRAMS[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    asyncio.run(main())
