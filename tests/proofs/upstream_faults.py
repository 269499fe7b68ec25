"""Everything that an upstream can do wrong, met by whoever waits, by whoever leaves, and by a daemon that is stopped.

The kinds, and what each has to come to, are in `tests/faults.py`. Each case is asked in three ways: by a caller who
reads all of the answer; by one who leaves at a point drawn at random; and in a crowd during which the daemon gets a
SIGTERM. The log of the upstream is the witness of what was sent: whatever was sent has exactly one row, which has ended
as the fault wants it, or as the leaving or the stop does. Whoever left, or was stopped, before anything was sent is
asked for again: only what was sent counts.

In full, every kind has a caller who left, and a stop, in its middle, as its row says. Where the first time was too
early or too late, it is asked again, so slowly that the time is right.

The seed draws the cases, their order and the points. When a byte arrives is the kernel's affair, and is not repeated:
nor is how often something has to be asked again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from goosestack import admin
from goosestack.clock import utc_now
from tests import faults
from tests.faults import CASES, KINDS, Answer, Case, Leave
from tests.proofs.proof import Attempt, Proof
from tests.world import Customer, World

MOST_MEGABYTES = 200
AT_ONCE = 16
CROWD = 60
"""Cases that are under way when the daemon is stopped."""
TRIES = 6
SLOWLY_S = 5.0
"""How long an answer takes that shall surely be met in its middle: longer than any deadline here."""
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
    attempt.expect("a caller who left before the end", "a stop in the middle", "a cut", "a refusal", "a lie")
    cases = list(CASES) if attempt.full else sample(attempt.random, attempt.goal["exchanges"] // 3)
    if attempt.full:
        attempt.expect(*(f"{kind}: {end}" for kind in KINDS for end in ("left", "stopped")))
    attempt.random.shuffle(cases)
    deadline_s, drain_s = ("3", "1") if attempt.full else ("2", "0")
    world = World.create(attempt.folder, DISCONNECT_GRACE_S="0", REQUEST_DEADLINE_S=deadline_s, DRAIN_S=drain_s)
    trial = Trial(attempt, world)
    try:
        trial.first(cases)
        trial.leavers_again()
        trial.stops(cases)
    finally:
        world.close()
    attempt.figure(f"the daemon took {trial.peak:.0f} MB at most; {trial.again:,} were asked again")
    attempt.must(trial.peak < MOST_MEGABYTES, f"the daemon took {trial.peak:.0f} MB of memory")


@dataclass(slots=True)
class Trial:
    """All that is asked of one world, and what is still to be asked."""

    attempt: Attempt
    world: World
    peak: float = 0.0
    """Megabytes: the most that any of the daemons has had."""
    again: int = 0
    unsent: list[Case] = field(default_factory=list)
    """Of the way that is being tried: whose caller had gone, or whose daemon was stopped, before it was sent."""
    served: set[tuple[Case, str]] = field(default_factory=set)
    """Which was sent in which way."""

    def first(self, cases: Sequence[Case]) -> None:
        """Those who read to the end and those who leave, all mixed."""
        chance = self.attempt.random
        rounds: list[Round] = [(case, None, 0.0) for case in cases]
        rounds += [(case, leaving(chance), chance.uniform(0, 0.4)) for case in cases]
        chance.shuffle(rounds)
        self.ask(rounds)

    def leavers_again(self) -> None:
        """Those who left too early, and the kinds that nobody was seen to leave."""
        chance = self.attempt.random
        for number in range(TRIES):
            cases = [*self.unsent, *self.unmet("left", lambda case: case.hung_up_on)]
            if not cases:
                return
            self.unsent, after_s = [], 0.3 * (1 + number)
            self.ask([(case, Leave(1_000_000, after_s, chance.random() < 0.5), SLOWLY_S) for case in cases])
            self.again += len(cases)
        self.must_be_sent()

    def stops(self, cases: Sequence[Case]) -> None:
        """A crowd after the other, each with its stop; then what had not been sent by then, or had ended."""
        chance = self.attempt.random
        for crowd in crowds(cases):
            self.stop([(case, None, chance.uniform(0, 1.5)) for case in crowd], chance.uniform(0.05, 0.5))
        for number in range(TRIES):
            again = [*self.unsent, *self.unmet("stopped", lambda case: case.lasts)]
            if not again:
                return
            self.unsent = []
            for crowd in crowds(again):
                self.stop([(case, None, SLOWLY_S) for case in crowd], min(0.3 * (1 + number), 1.2))
            self.again += len(again)
        self.must_be_sent()

    def must_be_sent(self) -> None:
        self.attempt.must(not self.unsent, f"{TRIES} times these were not sent: {', '.join(map(str, self.unsent))}")

    def unmet(self, end: str, fits: Callable[[Case], bool]) -> list[Case]:
        """In full, a case of each kind that was not met so; in short, one where nobody was."""
        met = self.attempt.met
        if not self.attempt.full:
            return [] if met["a caller who left before the end" if end == "left" else "a stop in the middle"] else SURE
        kinds = [kind for kind in KINDS if not met[f"{kind}: {end}"]]
        return [self.attempt.random.choice(fitting(kind, fits)) for kind in kinds]

    def ask(self, rounds: Sequence[Round]) -> None:
        """Some at a time."""
        mark = self.world.upstream.mark()
        exchanges = asyncio.run(prepared(self.world, rounds))
        asyncio.run(ask_all(self.world, exchanges))
        self.judge(exchanges, mark)
        self.peak = max(self.peak, peak_megabytes(self.world))

    def stop(self, rounds: Sequence[Round], after_s: float) -> None:
        """All at once, in the middle of which the daemon is stopped; then it starts again."""
        mark = self.world.upstream.mark()
        exchanges = asyncio.run(prepared(self.world, rounds))
        self.peak = max(self.peak, asyncio.run(ask_until_stopped(self.world, exchanges, after_s)))
        self.judge(exchanges, mark, stopped=True)
        self.attempt.count("stops")
        self.world.daemon.start()

    def judge(self, exchanges: Sequence[Exchange], mark: int, *, stopped: bool = False) -> None:
        """Once nothing is under way any more: what was sent has one row, and that is as it must be."""
        attempt, world = self.attempt, self.world
        if stopped:
            status = world.daemon.program.process.wait(30)
            attempt.must(status == 0, f"the daemon ended with {status}: {world.daemon.program.text()[-1000:]}")
        world.check()
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in world.rows():
            rows.setdefault(row["user_id"], []).append(row)
        sent = [str(dispatch["body"]) for dispatch in world.upstream.dispatches(mark)]
        text = world.daemon.program.text()
        gone = {user for line in text.splitlines() if '"gone":true' in line for user in [json.loads(line)["user"]]}
        for exchange in exchanges:
            alice = exchange.alice.id
            dispatches = sum(alice in body for body in sent)
            found = wrong(exchange, dispatches, rows.get(alice, []), stopped=stopped)
            attempt.must(not found, f"{exchange.case} ({told(exchange, stopped=stopped)}): {found}")
            if dispatches:
                self.met(exchange, rows[alice][0], way(exchange, stopped=stopped), gone=alice in gone)
            else:
                self.unsent.append(exchange.case)
        for sign in ("Traceback", '"kind":"fault"', "never retrieved"):
            place = text.find(sign)
            attempt.must(place < 0, f"the daemon met what it did not expect: {text[place - 300 : place + 300]}")

    def met(self, exchange: Exchange, row: dict[str, Any], asked: str, *, gone: bool) -> None:
        """Count what was really there; of what was sent alone."""
        attempt, case, reason = self.attempt, exchange.case, row["reason"]
        if asked == "read" and not any(each == "read" and one.kind == case.kind for one, each in self.served):
            attempt.count("kinds")
        if (case, asked) not in self.served:
            self.served.add((case, asked))
            attempt.count("exchanges")
        if asked == "left" and reason == "client_gone":
            attempt.meet("a caller who left before the end")
        if asked == "left" and (reason == "client_gone" or (gone and case.kind in READ_ON)):
            self.met_kind(case, "left")
        if asked == "stopped" and reason == "shutdown":
            attempt.meet("a stop in the middle")
            self.met_kind(case, "stopped")
        if reason not in GONE:
            names = {"cut": "a cut", "estimated": "a lie", "refused": "a refusal", "operators": "a refusal"}
            attempt.meet(names.get(KINDS[case.kind].outcome, "an answer that is passed on"))

    def met_kind(self, case: Case, end: str) -> None:
        if self.attempt.full:
            self.attempt.meet(f"{case.kind}: {end}")


SURE = [Case("stall", "chat", stream=True)]
"""The few of the short form leave, and are stopped, at any moment, which may always be too late or too early."""


READ_ON = KINDS.keys() - {case.kind for case in CASES if case.hung_up_on}
"""Kinds that are read to their end for nobody, in every format that has them: that their caller left is in the log."""


def sample(random: Random, count: int) -> list[Case]:
    """So many cases of as many kinds, of every outcome some."""
    outcomes = sorted({kind.outcome for kind in KINDS.values()})
    first = [random.choice([name for name in KINDS if KINDS[name].outcome == outcome]) for outcome in outcomes]
    kinds = first + random.sample(sorted(KINDS.keys() - set(first)), count - len(first))
    return [random.choice([case for case in CASES if case.kind == kind]) for kind in kinds]


def fitting(kind: str, fits: Callable[[Case], bool]) -> list[Case]:
    """The cases of a kind that fit; where none does, all."""
    cases = [case for case in CASES if case.kind == kind]
    return [case for case in cases if fits(case)] or cases


def crowds(cases: Sequence[Case]) -> list[Sequence[Case]]:
    return [cases[start : start + CROWD] for start in range(0, len(cases), CROWD)]


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


async def ask_until_stopped(world: World, exchanges: Sequence[Exchange], after_s: float) -> float:
    """Ask them all at once, and stop the daemon so many seconds after the upstream has seen the first of them; the most
    megabytes that the daemon has had, up to its end."""
    mark = world.upstream.mark()
    crowd = asyncio.gather(*(ask(world, exchange) for exchange in exchanges))
    while world.upstream.mark() == mark:
        await asyncio.sleep(0.005)
    await asyncio.sleep(after_s)
    peak = peak_megabytes(world)
    world.daemon.program.process.terminate()
    while not crowd.done():
        await asyncio.sleep(0.05)
        peak = max(peak, peak_megabytes(world))
    await crowd
    return peak


# --- judging ----------------------------------------------------------------------------------------------------


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


def way(exchange: Exchange, *, stopped: bool) -> str:
    return "stopped" if stopped else "read" if exchange.leave is None else "left"


def told(exchange: Exchange, *, stopped: bool) -> str:
    """In which way, for a story."""
    leave = exchange.leave
    if stopped:
        return "while the daemon is stopped"
    return "read to its end" if leave is None else f"left after {leave.after_bytes} bytes or {leave.after_s:.3f} s"


def peak_megabytes(world: World) -> float:
    """The most that the daemon has had of the machine's memory; nothing where it has ended."""
    text = Path(f"/proc/{world.daemon.program.process.pid}/status").read_text()
    found = text.partition("VmHWM:")[2].split()
    return int(found[0]) / 1024 if found else 0.0


PROOF = Proof(
    name="upstream-faults",
    claim="Whatever the upstream does, each request has its answer in the caller's format and exactly one row.",
    short={"kinds": 30, "exchanges": 90, "stops": 1},
    full={"kinds": len(KINDS), "exchanges": 3 * len(CASES), "stops": -(-len(CASES) // CROWD)},
    run=run,
    limit_s=(60, 600),
)
