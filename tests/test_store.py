"""What every store promises, whichever database it stands on: a `Kind` more, and all of this holds for it too.

What only SQLite can do (files, locks, disks that fill up) stands in `test_store_sqlite.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from goosestack.errors import StoreUnavailable
from goosestack.store import Store, Tx
from goosestack.store.sqlite import SqliteStore

NOW = "2026-11-21T12:00:00.000Z"


class Closable(Store, Protocol):
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of store: how an empty one is opened in a folder, and told whom to tell of its commits."""

    name: str
    open: Callable[[Path, Callable[[float, int], None]], Closable]


KINDS = [Kind("sqlite", lambda folder, on_commit: SqliteStore(folder / "goosestack.db", on_commit=on_commit))]


@pytest.fixture
def commits() -> list[int]:
    """How many verbs each commit was for."""
    return []


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def store(request: pytest.FixtureRequest, tmp_path: Path, commits: list[int]) -> AsyncIterator[Closable]:
    opened: Closable = request.param.open(tmp_path, lambda seconds, verbs: commits.append(verbs))
    yield opened
    await opened.close()


def add(tx: Tx, name: str) -> str:
    tx.execute("INSERT INTO users (id, email, created_at) VALUES (?, ?, ?)", (name, f"{name}@example.com", NOW))
    return name


def names(tx: Tx) -> list[str]:
    return [row[0] for row in tx.execute("SELECT id FROM users ORDER BY id")]


class Gate:
    """A verb that stops in the middle until it is let go."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, tx: Tx) -> None:
        self.reached.set()
        assert self.open.wait(20)


# --- writing --------------------------------------------------------------------------------------------------


async def test_a_write_answers_what_its_verb_gave(store: Closable) -> None:
    assert await store.write(add, "alice") == "alice"
    assert await store.write(names) == ["alice"]


async def test_what_was_answered_can_be_read_at_once(store: Closable) -> None:
    for number in range(30):
        name = await store.write(add, f"user {number:02}")
        assert name in store.peek(names)
        assert name in await store.read(names)


async def test_nobody_is_answered_before_the_commit_and_nobody_sees_anything(store: Closable) -> None:
    gate = Gate()
    first, second = store.write(add, "alice"), store.write(gate)
    assert await asyncio.to_thread(gate.reached.wait, 20)
    assert await store.read(names) == []
    assert store.peek(names) == []
    assert not first.done() and not second.done()
    gate.open.set()
    await asyncio.gather(first, second)
    assert await store.read(names) == ["alice"]


async def test_all_that_waits_shares_one_commit(store: Closable, commits: list[int]) -> None:
    await asyncio.gather(*(store.write(add, f"user {number}") for number in range(50)))
    assert commits == [50]


async def test_what_comes_while_a_commit_runs_shares_the_next(store: Closable, commits: list[int]) -> None:
    gate = Gate()
    running = store.write(gate)
    assert await asyncio.to_thread(gate.reached.wait, 20)
    later = []
    for number in range(20):
        later.append(store.write(add, f"user {number}"))
        await asyncio.sleep(0)  # one turn of the loop: it is handed over
    gate.open.set()
    await asyncio.gather(running, *later)
    assert commits == [1, 20]


async def test_verbs_run_in_the_order_in_which_they_were_asked_for(store: Closable) -> None:
    def next_number(tx: Tx) -> int:
        count = len(names(tx))
        add(tx, f"user {count:03}")
        return int(count)

    numbers = []
    for _ in range(5):
        numbers += await asyncio.gather(*(store.write(next_number) for _ in range(10)))
    assert numbers == list(range(50))


# --- failing --------------------------------------------------------------------------------------------------


def add_and_fail(tx: Tx, name: str, error: BaseException) -> None:
    add(tx, name)
    raise error


async def test_a_failing_verb_is_undone_alone(store: Closable) -> None:
    before = store.write(add, "alice")
    bad = store.write(add_and_fail, "bob", ValueError("no"))
    after = store.write(add, "carol")
    with pytest.raises(ValueError, match="no"):
        await bad
    assert (await before, await after) == ("alice", "carol")
    assert await store.read(names) == ["alice", "carol"]


async def test_a_verb_that_breaks_a_rule_of_the_schema_fails_alone(store: Closable) -> None:
    await store.write(add, "alice")
    written = [store.write(add, name) for name in ("bob", "alice", "carol")]
    done = await asyncio.gather(*written, return_exceptions=True)
    assert done[0] == "bob" and done[2] == "carol"
    assert isinstance(done[1], Exception) and not isinstance(done[1], StoreUnavailable)
    assert await store.read(names) == ["alice", "bob", "carol"]


@pytest.mark.parametrize("error", [KeyError("x"), StopIteration(), GeneratorExit(), SystemExit(1), MemoryError()])
async def test_whatever_a_verb_raises_the_others_are_answered(store: Closable, error: BaseException) -> None:
    bad = store.write(add_and_fail, "bob", error)
    good = store.write(add, "carol")
    await asyncio.wait({bad})  # not awaited itself: SystemExit would end the loop
    assert bad.exception() is not None
    await asyncio.wait({good})
    await store.write(add, "dave")
    assert "bob" not in await store.read(names)


async def test_every_verb_of_many_fails_for_its_own_reason(store: Closable) -> None:
    written = [store.write(add_and_fail, f"user {number}", ValueError(str(number))) for number in range(10)]
    done = await asyncio.gather(*written, return_exceptions=True)
    assert [str(error) for error in done] == [str(number) for number in range(10)]
    assert await store.read(names) == []


# --- callers who do not wait ----------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_undo_its_verb(store: Closable) -> None:
    gate = Gate()
    running = store.write(gate)
    assert await asyncio.to_thread(gate.reached.wait, 20)

    async def caller() -> None:
        await store.write(add, "alice")

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    task.cancel()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await running
    await store.write(add, "bob")
    assert await store.read(names) == ["alice", "bob"]


async def test_a_write_that_nobody_awaits_is_written(store: Closable) -> None:
    store.write(add, "alice")
    await store.write(add, "bob")
    assert await store.read(names) == ["alice", "bob"]


async def test_an_answer_cannot_be_cancelled(store: Closable) -> None:
    written = store.write(add, "alice")
    assert not written.cancel()
    assert await written == "alice"


# --- reading --------------------------------------------------------------------------------------------------


async def test_a_read_sees_one_moment_however_often_it_looks(store: Closable) -> None:
    await store.write(add, "alice")
    looked, go_on = threading.Event(), threading.Event()

    def look_twice(tx: Tx) -> tuple[list[str], list[str]]:
        first = names(tx)
        looked.set()
        assert go_on.wait(20)
        return first, names(tx)

    reading = asyncio.ensure_future(store.read(look_twice))
    assert await asyncio.to_thread(looked.wait, 20)
    await store.write(add, "bob")
    go_on.set()
    assert await reading == (["alice"], ["alice"])
    assert await store.read(names) == ["alice", "bob"]


async def test_a_reader_cannot_write(store: Closable) -> None:
    with pytest.raises(Exception, match=r"read.?only"):
        await store.read(add, "alice")
    with pytest.raises(Exception, match=r"read.?only"):
        store.peek(add, "alice")
    assert await store.read(names) == []


async def test_a_read_that_fails_leaves_the_next_one_alone(store: Closable) -> None:
    def fail(tx: Tx) -> None:
        names(tx)
        raise ValueError("no")

    for _ in range(5):
        with pytest.raises(ValueError, match="no"):
            await store.read(fail)
    await store.write(add, "alice")
    assert await store.read(names) == ["alice"]


# --- closing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_closing_writes_down_all_that_was_asked_for(kind: Kind, tmp_path: Path) -> None:
    store = kind.open(tmp_path, lambda seconds, verbs: None)
    written = [store.write(add, f"user {number:02}") for number in range(40)]
    await store.close()
    assert all(future.done() and future.exception() is None for future in written)
    again = kind.open(tmp_path, lambda seconds, verbs: None)
    assert len(await again.read(names)) == 40
    await again.close()


async def test_a_closed_store_takes_nothing_and_says_so(store: Closable) -> None:
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.write(add, "alice")
    await asyncio.gather(store.close(), store.close())


async def test_whoever_is_cancelled_while_closing_leaves_it_to_be_closed(store: Closable) -> None:
    gate = Gate()
    running = store.write(gate)
    assert await asyncio.to_thread(gate.reached.wait, 20)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.open.set()
    await store.close()
    assert running.done()
