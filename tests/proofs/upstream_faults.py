"""Everything that an upstream can do wrong, met by whoever waits, by whoever leaves, and by a daemon that is stopped.

The kinds, and what each has to come to, are in `tests/faults.py`. Each case is asked three times: by a caller who reads
all of the answer; by one who leaves at a point drawn at random; and in a crowd during which the daemon gets a SIGTERM.
The log of the upstream is the witness of what was sent: whatever was sent has exactly one row, which has ended as the
fault wants it, or as the leaving or the stop does.

The seed draws the cases, their order and the points. When a byte arrives is the kernel's affair, and is not repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from goosestack import admin
from goosestack.app import utc_now
from tests import faults
from tests.faults import CASES, KINDS, Answer, Case, Leave
from tests.proofs.proof import Attempt, Proof
from tests.world import Customer, World

MOST_MEGABYTES = 200
AT_ONCE = 16
CROWD = 60
"""Cases that are under way when the daemon is stopped."""
GONE = ("client_gone", "shutdown", "deadline")


Round = tuple[Case, Leave | None, float]
"""A case, when its caller leaves, and how slow the answer is."""


@dataclass(slots=True)
class Exchange:
    """A case that is asked once, by a customer of its own."""

    case: Case
    alice: Customer
    leave: Leave | None
    slow_s: float
    answer: Answer = faults.NOTHING


def run(attempt: Attempt) -> None:
    """Every case, or as many as the short form has time for, in each of the three ways."""
    attempt.expect("a fault", "a caller who left before the end", "a stop in the middle", "a cut", "a refusal", "a lie")
    cases = list(CASES) if attempt.full else sample(attempt.random, attempt.goal["exchanges"] // 3)
    attempt.random.shuffle(cases)
    deadline_s, drain_s = ("3", "1") if attempt.full else ("2", "0")
    world = World.create(attempt.folder, DISCONNECT_GRACE_S="0", REQUEST_DEADLINE_S=deadline_s, DRAIN_S=drain_s)
    crowds = [cases[start : start + CROWD] for start in range(0, len(cases), CROWD)]
    peaks = []
    try:
        attempt.count("kinds", len({case.kind for case in cases}))
        rounds: list[Round] = [(case, None, 0.0) for case in cases]
        rounds += [(case, leaving(attempt.random), attempt.random.uniform(0, 0.4)) for case in cases]
        if not attempt.full:
            rounds.append(SURELY_LEFT)
        attempt.random.shuffle(rounds)
        exchanges = asyncio.run(prepared(world, rounds))
        asyncio.run(ask_all(world, exchanges))
        judge(attempt, world, exchanges)
        peaks.append(peak_megabytes(world))
        for crowd in crowds:
            exchanges = asyncio.run(prepared(world, [(case, None, attempt.random.uniform(0, 1.5)) for case in crowd]))
            asyncio.run(ask_until_stopped(world, exchanges, attempt.random.uniform(0.05, 0.5)))
            judge(attempt, world, exchanges, stopped=True)
            attempt.count("stops")
            world.daemon.start()
    finally:
        world.close()
    attempt.figure(f"the daemon took {max(peaks):.0f} MB at most")
    attempt.must(max(peaks) < MOST_MEGABYTES, f"the daemon took {max(peaks):.0f} MB of memory")


SURELY_LEFT: Round = (Case("stall", "chat", stream=True), Leave(1_000_000, 1.0, reset=True), 0.0)
"""The few of the short form leave at any moment, which on a busy machine may always be too late or too early. The many
of the full form must meet it by themselves."""


def sample(random: Random, count: int) -> list[Case]:
    """So many cases of as many kinds."""
    kinds = random.sample(sorted(KINDS), count)
    return [random.choice([case for case in CASES if case.kind == kind]) for kind in kinds]


def leaving(random: Random) -> Leave:
    """Before the answer, in its head, or in its body; with or without a good-bye."""
    after = random.choice((0, 1, random.randrange(2, 600), random.randrange(600, 8000)))
    return Leave(after, random.choice((random.uniform(0, 0.05), random.uniform(0, 0.5), 1.0)), random.random() < 0.5)


# --- asking -----------------------------------------------------------------------------------------------------


async def prepared(world: World, rounds: Sequence[Round]) -> list[Exchange]:
    """A customer for each, with money for it."""

    async def customer() -> Customer:
        user: dict[str, Any] = await call("user_create", email="alice@example.com")
        await call("credit_grant", user=user["id"], cents=1000, note="", ref=None)
        made = await call("key_create", user=user["id"], name="test")
        return Customer(user["id"], made["api_key"], made["id"])

    async def call(verb: str, **args: object) -> Any:
        async with room:
            return await admin.call(world.daemon.db, verb, args, utc_now)

    room = asyncio.Semaphore(32)
    customers = await asyncio.gather(*(customer() for _ in rounds))
    return [
        Exchange(case, alice, leave, slow_s) for (case, leave, slow_s), alice in zip(rounds, customers, strict=True)
    ]


async def ask_all(world: World, exchanges: Sequence[Exchange]) -> None:
    """Ask them, some at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(exchange: Exchange) -> None:
        async with room:
            await ask(world, exchange)

    await asyncio.gather(*map(one, exchanges))


async def ask(world: World, exchange: Exchange) -> None:
    alice = exchange.alice
    exchange.answer = await faults.ask(world.url, exchange.case, alice.key, alice.id, exchange.leave, exchange.slow_s)


async def ask_until_stopped(world: World, exchanges: Sequence[Exchange], after_s: float) -> None:
    """Ask them all at once, and stop the daemon so many seconds after the upstream has seen the first of them."""
    mark = world.upstream.mark()
    crowd = asyncio.gather(*(ask(world, exchange) for exchange in exchanges))
    while world.upstream.mark() == mark:
        await asyncio.sleep(0.005)
    await asyncio.sleep(after_s)
    world.daemon.program.process.terminate()
    await crowd


# --- judging ----------------------------------------------------------------------------------------------------


def judge(attempt: Attempt, world: World, exchanges: Sequence[Exchange], *, stopped: bool = False) -> None:
    """Once nothing is under way any more: what was sent has one row, and that is as it must be."""
    if stopped:
        status = world.daemon.program.process.wait(30)
        attempt.must(status == 0, f"the daemon ended with {status}: {world.daemon.program.text()[-1000:]}")
    world.check()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in world.rows():
        rows.setdefault(row["user_id"], []).append(row)
    sent = [str(dispatch["body"]) for dispatch in world.upstream.dispatches()]
    for exchange in exchanges:
        dispatches = sum(exchange.alice.id in body for body in sent)
        found = wrong(exchange, dispatches, rows.get(exchange.alice.id, []), stopped=stopped)
        attempt.must(not found, f"{exchange.case} ({way(exchange, stopped=stopped)}): {found}")
        attempt.count("exchanges")
        meet(attempt, exchange, rows.get(exchange.alice.id, []), stopped=stopped)
    text = world.daemon.program.text()
    for sign in ("Traceback", '"kind":"fault"', "never retrieved"):
        place = text.find(sign)
        attempt.must(place < 0, f"the daemon met what it did not expect: {text[place - 300 : place + 300]}")


def wrong(exchange: Exchange, dispatches: int, rows: Sequence[dict[str, Any]], *, stopped: bool) -> str:
    """What is wrong with the outcome; empty where nothing is."""
    case, answer = exchange.case, exchange.answer
    if dispatches > 1 or len(rows) > 1 or (dispatches == 1 and not rows):
        return f"sent {dispatches} times, and written down {len(rows)} times"
    if dispatches == 0:
        charged = bool(rows) and (rows[0]["status"], rows[0]["charged"]) != ("released", 0)
        if exchange.leave is None and not stopped:
            return f"it was never sent, and answered {answer}"
        refused = answer.status in (0, 503) and (answer.status == 0 or faults.in_format(case, answer))
        return "it was charged, and never sent" if charged else "" if refused else f"unsent, it is answered {answer}"
    if exchange.leave is not None:
        return faults.wrong_row(case, rows[0])
    if stopped and answer.status == 0:
        return f"whoever waited got no answer; the row ended by {rows[0]['reason']}"
    if stopped and answer.status == 502 and faults.in_format(case, answer):  # the stop's own word, whatever came first
        return faults.wrong_row(case, rows[0])
    return faults.wrong(case, exchange.alice.id, answer, rows[0])


def meet(attempt: Attempt, exchange: Exchange, rows: Sequence[dict[str, Any]], *, stopped: bool) -> None:
    """Count what was really there."""
    reason = rows[0]["reason"] if rows else ""
    outcome = KINDS[exchange.case.kind].outcome
    attempt.meet("a fault")
    if exchange.leave is not None and reason == "client_gone":
        attempt.meet("a caller who left before the end")
    if stopped and reason == "shutdown":
        attempt.meet("a stop in the middle")
    if reason and reason not in GONE:
        names = {"cut": "a cut", "estimated": "a lie", "refused": "a refusal", "operators": "a refusal"}
        attempt.meet(names.get(outcome, "an answer that is passed on"))


def way(exchange: Exchange, *, stopped: bool) -> str:
    if stopped:
        return "while the daemon is stopped"
    leave = exchange.leave
    return "read to its end" if leave is None else f"left after {leave.after_bytes} bytes or {leave.after_s:.3f} s"


def peak_megabytes(world: World) -> float:
    """The most that the daemon has had of the machine's memory."""
    text = Path(f"/proc/{world.daemon.program.process.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


PROOF = Proof(
    name="upstream-faults",
    claim="Whatever the upstream does, each request has its answer in the caller's format and exactly one row.",
    short={"kinds": 30, "exchanges": 90, "stops": 1},
    full={"kinds": len(KINDS), "exchanges": 3 * len(CASES), "stops": -(-len(CASES) // CROWD)},
    run=run,
    limit_s=(60, 600),
)
