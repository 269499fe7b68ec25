"""The pipe between a relay and its client, and the rule for awaiting money. Times are given, never waited for."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest

from goosestack.errors import StoreUnavailable
from goosestack.store import Tx
from goosestack.store.sqlite import SqliteStore, Written
from goosestack.stream import MOST_BUFFERED, Deadline, Pipe, surely

FRAME = b"data: {}\n\n"
BIG = b"x" * (MOST_BUFFERED + 1)


async def turns(count: int = 5) -> None:
    """Let everybody who can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- handing over ---------------------------------------------------------------------------------------------


async def test_what_is_put_comes_out_in_its_order_and_at_once() -> None:
    pipe = Pipe(0)
    await pipe.put(b"a", 1)
    await pipe.put(b"b", 2)
    pipe.put_now(b"c", 3)
    assert await pipe.get() == b"abc"
    await pipe.put(b"d", 4)
    assert await pipe.get() == b"d"


async def test_a_reader_waits_for_the_next_frame() -> None:
    pipe = Pipe(0)
    reading = asyncio.create_task(pipe.get())
    await turns()
    assert not reading.done()
    pipe.put_now(FRAME, 1)
    assert await reading == FRAME


async def test_a_writer_waits_while_too_much_is_unread() -> None:
    pipe = Pipe(0)
    writing = asyncio.create_task(pipe.put(BIG, 1))
    await turns()
    assert not writing.done()
    assert await pipe.get() == BIG
    await writing


async def test_a_writer_does_not_wait_for_what_fits() -> None:
    pipe = Pipe(0)
    for _ in range(MOST_BUFFERED // len(FRAME)):
        await pipe.put(FRAME, 1)  # would wait forever, since nobody reads
    writing = asyncio.create_task(pipe.put(FRAME, 1))
    await turns()
    assert not writing.done()
    await pipe.get()
    await writing


async def test_a_frame_that_must_not_wait_is_taken_also_by_a_full_pipe() -> None:
    pipe = Pipe(0)
    writing = asyncio.create_task(pipe.put(BIG, 1))
    await turns()
    pipe.put_now(b"last", 2)
    assert await pipe.get() == BIG + b"last"
    await writing


async def test_whatever_the_pace_everything_arrives_and_little_waits() -> None:
    rnd = random.Random(2026)
    pieces = [bytes([number % 251]) * rnd.choice([1, 10, 1000, 90_000, 300_000]) for number in range(200)]
    pipe = Pipe(0)

    async def write() -> None:
        for piece in pieces:
            await pipe.put(piece, 0)
            await turns(rnd.randrange(3))
        pipe.close()

    async def read() -> bytes:
        got = []
        while (some := await pipe.get()) is not None:
            assert len(some) <= MOST_BUFFERED + 300_000
            got.append(some)
            await turns(rnd.randrange(3))
        return b"".join(got)

    _, got = await asyncio.gather(write(), read())
    assert got == b"".join(pieces)


# --- ends -----------------------------------------------------------------------------------------------------


async def test_after_the_close_what_is_left_is_read_and_then_nothing_more() -> None:
    pipe = Pipe(0)
    pipe.put_now(FRAME, 1)
    pipe.close()
    pipe.put_now(b"too late", 2)
    assert await pipe.get() == FRAME
    assert await pipe.get() is None
    assert await pipe.get() is None


async def test_a_reader_who_waits_hears_of_the_close() -> None:
    pipe = Pipe(0)
    reading = asyncio.create_task(pipe.get())
    await turns()
    pipe.close()
    assert await reading is None


async def test_a_writer_never_waits_for_a_client_who_has_gone() -> None:
    pipe = Pipe(0)
    writing = asyncio.create_task(pipe.put(BIG, 1))
    await turns()
    pipe.discard()
    await writing
    for _ in range(10):
        await pipe.put(BIG, 2)
    pipe.discard()
    pipe.close()
    assert await pipe.get() is None


async def test_a_last_frame_takes_the_place_of_all_that_waits() -> None:
    pipe = Pipe(0)
    writing = asyncio.create_task(pipe.put(BIG, 1))
    await turns()
    pipe.end_with(b"event: error\n\n", 2)
    await writing
    await pipe.put(BIG, 3)
    assert await pipe.get() == b"event: error\n\n"
    assert await pipe.get() is None


async def test_a_last_frame_is_for_nobody_where_the_client_has_gone() -> None:
    pipe = Pipe(0)
    pipe.discard()
    pipe.end_with(b"event: error\n\n", 2)
    assert await pipe.get() is None


# --- quiet streams and clients who do not read ----------------------------------------------------------------


def test_a_stream_is_quiet_when_nothing_came_for_so_long() -> None:
    pipe = Pipe(100)
    assert not pipe.idle_since(15, 115)
    assert pipe.idle_since(15, 115.1)


async def test_a_frame_ends_the_quiet_once_it_is_read() -> None:
    pipe = Pipe(100)
    pipe.put_now(FRAME, 120)
    assert not pipe.idle_since(15, 140), "what waits to be read is not answered with more"
    await pipe.get()
    assert not pipe.idle_since(15, 135)
    assert pipe.idle_since(15, 135.1)


def test_a_stream_that_has_ended_is_not_quiet() -> None:
    pipe = Pipe(100)
    pipe.close()
    assert not pipe.idle_since(15, 1000)


def test_a_client_is_waited_for_from_the_first_frame_that_it_left_unread() -> None:
    pipe = Pipe(100)
    assert not pipe.waits_since(30, 1000), "there is nothing to read"
    pipe.put_now(FRAME, 200)
    pipe.put_now(FRAME, 225)
    assert not pipe.waits_since(30, 230)
    assert pipe.waits_since(30, 230.1)


async def test_a_client_who_reads_is_not_waited_for() -> None:
    pipe = Pipe(100)
    pipe.put_now(FRAME, 200)
    await pipe.get()
    assert not pipe.waits_since(30, 1000)


async def test_a_frame_after_a_long_silence_is_not_taken_for_a_client_who_does_not_read() -> None:
    pipe = Pipe(100)
    pipe.put_now(FRAME, 100)
    await pipe.get()
    pipe.put_now(FRAME, 500)
    assert not pipe.waits_since(30, 500.1)
    assert pipe.waits_since(30, 530.1)


def test_nobody_waits_for_a_client_who_has_gone() -> None:
    pipe = Pipe(100)
    pipe.put_now(FRAME, 100)
    pipe.discard()
    assert not pipe.waits_since(30, 1000)


# --- awaiting money -------------------------------------------------------------------------------------------


async def test_the_answer_is_told() -> None:
    future: Written[int] = Written()
    told: list[int] = []
    waiting = asyncio.create_task(surely(future, told.append))
    await turns()
    future.set_result(7)
    await waiting
    assert told == [7]


async def test_an_answer_that_is_there_is_told_at_once() -> None:
    future: Written[int] = Written()
    future.set_result(7)
    told: list[int] = []
    await surely(future, told.append)
    assert told == [7]


async def test_whoever_is_cancelled_while_waiting_learns_the_answer_first() -> None:
    future: Written[int] = Written()
    told: list[int] = []
    waiting = asyncio.create_task(surely(future, told.append))
    await turns()
    waiting.cancel()
    await turns()
    assert not waiting.done() and not told
    future.set_result(7)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert told == [7]


async def test_no_storm_of_cancellations_loses_the_answer_or_tells_it_twice() -> None:
    for storm in range(30):
        future: Written[int] = Written()
        told: list[int] = []
        waiting = asyncio.create_task(surely(future, told.append))
        await turns(1)
        for blow in range(storm + 1):
            waiting.cancel()
            await turns(blow % 3)
        future.set_result(storm)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert told == [storm]


@pytest.mark.parametrize(("cancelled", "raised"), [(False, StoreUnavailable), (True, asyncio.CancelledError)])
async def test_a_write_that_failed_tells_nothing(cancelled: bool, raised: type[BaseException]) -> None:
    future: Written[int] = Written()
    told: list[int] = []
    waiting = asyncio.create_task(surely(future, told.append))
    await turns()
    if cancelled:
        waiting.cancel()
        await turns()
    future.set_exception(StoreUnavailable())
    with pytest.raises(raised):
        await waiting
    assert told == []


async def test_a_timeout_comes_after_the_answer() -> None:
    future: Written[int] = Written()
    told: list[int] = []
    asyncio.get_running_loop().call_later(0.05, future.set_result, 7)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await surely(future, told.append)
    assert told == [7]


async def test_a_real_write_is_awaited_through_a_storm(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "goosestack.db", ballast_bytes=0)
    reached, go_on = threading.Event(), threading.Event()

    def verb(tx: Tx) -> int:
        reached.set()
        assert go_on.wait(20)
        return int(tx.execute("SELECT 7").fetchone()[0])

    told: list[int] = []
    waiting = asyncio.create_task(surely(store.write(verb), told.append))
    assert await asyncio.to_thread(reached.wait, 20)
    for _ in range(100):
        waiting.cancel()
        await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert told == [7]
    await store.close()


# --- deadlines ------------------------------------------------------------------------------------------------


async def forever(made: asyncio.Future[Deadline], seconds: float) -> str:
    """A task with a deadline, which tells how it ended."""
    deadline = Deadline(seconds)
    made.set_result(deadline)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "struck" if deadline.struck else "cancelled"
    raise AssertionError


async def begun(seconds: float) -> tuple[asyncio.Task[str], Deadline]:
    made: asyncio.Future[Deadline] = asyncio.get_running_loop().create_future()
    return asyncio.create_task(forever(made, seconds)), await made


async def test_a_deadline_cancels_the_task_that_made_it() -> None:
    task, _ = await begun(0)
    assert await task == "struck"


async def test_a_deadline_can_be_brought_forward_and_not_put_off() -> None:
    task, deadline = await begun(3600)
    at = deadline.when
    deadline.bring_forward(at + 1)
    assert deadline.when == at
    deadline.bring_forward(asyncio.get_running_loop().time())
    assert await task == "struck"


async def test_who_is_cancelled_by_another_can_tell() -> None:
    task, deadline = await begun(3600)
    task.cancel()
    assert await task == "cancelled"
    deadline.stop()


async def test_a_deadline_that_was_stopped_does_not_strike() -> None:
    task, deadline = await begun(0)
    deadline.stop()
    await turns()
    assert not task.done() and not deadline.struck
    task.cancel()
    assert await task == "cancelled"
