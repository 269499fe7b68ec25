"""The whole daemon is killed, and asked to stop, under mixed load; what the upstream saw is the witness.

The load, the moments of death and the kind of each are drawn by the seed; how far the daemon had come at such a moment
is the machine's affair. A kill counts where the daemon has died of it. Until it is told to end, all that is asked of it
is answered, and with 200.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp

from tests.mallory import CHAT, COUNT, MESSAGES, RESPONSES
from tests.proofs.proof import Attempt, Proof, Refuted
from tests.witness import (
    Asked,
    Caller,
    a_wire,
    disagreements,
    faults,
    funding,
    make_callers,
    open_holds,
    open_world,
    query,
    wrong_books,
)
from tests.world import Customer, World, until

JOURNAL_S = 2.6
"""After so long a daemon has journalled what its streams have cost so far."""

TARGET_S = 2.0
TOO_LONG_S = 20.0
LONG = {"words": 300, "delay_ms": 20}
"""An answer that outlives every daemon here, drain included."""

SILENT = {"hang_s": 3}
"""One that has not begun when its daemon dies: nothing shows that it will be billed."""

STARTING_S = 0.25
"""A daemon that has its lock begins to listen after about so long."""

STOP = {"DRAIN_S": "1"}
KILLS = ("at once", "at once", "at once", "in its drain", "as it starts again")

PAYERS = ("credits", "allowance", "own key", "voucher")

Question = tuple[str, bool, Mapping[str, object]]
"""Path, streamed or not, and how it is to be answered."""

ALWAYS: tuple[Question, ...] = ((CHAT, True, LONG), (MESSAGES, True, LONG), (RESPONSES, False, SILENT))
"""What is on its way in every round, from its beginning."""


def drawn(chance: Random, payer: str) -> Question:
    """Anything that is sold for this; some of it takes long."""
    path, stream = a_wire(chance)
    if payer == "voucher" and path == COUNT:  # it costs nothing, and is for who has a key
        path = MESSAGES
    if chance.random() < (0.5 if stream else 0.1):
        return path, stream, LONG if stream and chance.random() < 0.8 else SILENT
    return path, stream, {"words": chance.randrange(1, 30), "delay_ms": chance.choice((0, 3, 15))}


@dataclass(slots=True)
class Load:
    """Callers who ask one thing after another, until their daemon is no more."""

    attempt: Attempt
    world: World
    callers: list[Caller]
    life: int = 1
    asked: list[Asked] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    returns_s: list[float] = field(default_factory=list)
    state: str = "serves"
    """Then it `drains`, or `dies`."""
    turned_away: int = 0
    """Those that it would not take any more while it drained."""
    began_in_vain: bool = False
    """Whether the last was killed before it listened."""

    async def lane(self, client: aiohttp.ClientSession, caller: Caller, chance: Random, first: Question | None) -> bool:
        """Ask until cut off; whether that was in the middle of a stream."""
        while True:
            path, stream, directive = first or drawn(chance, caller.payer)
            first = None
            each = Asked(next(self.numbers), caller, path, stream, self.life, directive)
            self.asked.append(each)
            told = await each.send(client, self.world.url)
            self.is_as_it_should_be(each, told)
            if each.status == 503 or (each.status is None and self.state == "drains"):
                self.turned_away += 1
            if not told:
                return stream and each.status == 200
            if each.status != 200:
                return False  # it drains

    def is_as_it_should_be(self, each: Asked, told: bool) -> None:
        """Whoever pays is served, but by a daemon that was told to end: that takes nobody any more, and cuts off whom
        it cannot wait for."""
        serves = self.state == "serves"
        fine = each.whole if serves else not told or each.status in (200, 502, 503)
        what = f"answered with {each.status}" if told else f"cut off, after {each.status}"
        self.attempt.must(fine, f"{each} was {what} by a daemon that {self.state}")

    async def until_the_end(self, seconds: float, end: int, then_kill_s: float | None) -> int:
        """Load the daemon for so long, then send it this signal; and a kill so much later, where one follows. What it
        ended with."""
        seeds = [self.attempt.random.randrange(2**32) for _ in self.callers]
        process, self.state, self.turned_away = self.world.daemon.program.process, "serves", 0
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            each = itertools.zip_longest(self.callers, map(Random, seeds), ALWAYS)
            lanes = [asyncio.create_task(self.lane(client, *lane)) for lane in each]
            await asyncio.sleep(seconds)
            self.state = "dies" if end == signal.SIGKILL else "drains"
            process.send_signal(end)
            if then_kill_s is not None:
                await asyncio.sleep(then_kill_s)
                self.state = "dies"
                process.kill()
            cut = await asyncio.gather(*lanes)
        status = await asyncio.to_thread(process.wait, 60)
        if end == signal.SIGKILL:
            self.attempt.must(status == -end, f"before it was killed, it ended with {status}")
            self.attempt.meet("stream cut by a kill", sum(cut))
        return status

    def start(self) -> None:
        """Start the daemon again, and note how long that takes, until it answers."""
        began = time.monotonic()
        try:
            self.world.daemon.start()
        except AssertionError as error:
            raise Refuted(f"daemon {self.life} was the last that started: {error}") from error
        with urllib.request.urlopen(f"{self.world.url}/health", timeout=30) as answer:
            answer.read()
        self.returns_s.append(time.monotonic() - began)
        self.attempt.must(self.returns_s[-1] <= TOO_LONG_S, f"it took {self.returns_s[-1]:.1f} s to come back")
        before = self.life
        ((self.life,),) = query(self.world, "SELECT max(id) FROM processes")
        if self.began_in_vain:
            self.attempt.meet("kill in its recovery", self.life - before - 1)
            self.began_in_vain = False
        self.no_hold_is_left("as it answered again")

    def no_hold_is_left(self, when: str) -> None:
        """The file has no open hold."""
        self.attempt.must(open_holds(self.world) == 0, f"there were open holds {when} (daemon {self.life})")


def run(attempt: Attempt) -> None:
    many = attempt.goal["kills"] // 20 if attempt.full else 1
    attempt.expect("stream cut by a kill", "hold recovered as an estimate", "hold interrupted", times=many)
    attempt.expect("hold that outlived its drain", "answer to its end", times=many)
    if attempt.full:
        attempt.expect(*(f"kill {manner}" for manner in KILLS), "kill in its recovery", times=many)
        attempt.expect(*(f"answer to its end for {payer}" for payer in PAYERS), times=5 * many)
    with ExitStack() as stack:
        world, agents = open_market(attempt.folder, stack) if attempt.full else (open_world(attempt.folder, **STOP), [])
        stack.callback(world.upstream.program.stop, signal.SIGKILL)
        stack.callback(lambda: world.daemon.program.stop(signal.SIGKILL))
        load = Load(attempt, world, [*make_callers(world, users=2, keys=2), *agents])
        rounds = ["kill"] * attempt.goal["kills"] + ["sigterm"] * attempt.goal["sigterms"]
        attempt.random.shuffle(rounds)
        rounds.sort(key=lambda each: each == "sigterm" and not attempt.full)
        for number, end in enumerate(rounds):
            while not (killed(load, number) if end == "kill" else stopped(load)):
                load.start()
            attempt.count(f"{end}s")
            if end == "kill" or number + 1 < len(rounds):
                load.start()
            if number % 20 == 0:
                books_add_up(load)
        judge(load)
        if agents:
            judge_channels(load)


def open_market(folder: Path, stack: ExitStack) -> tuple[World, list[Caller]]:
    """A world that sells by vouchers, too, and a caller who has some: in full alone, since a chain is slow to start."""
    from tests import channels
    from tests.chain.control import LocalChain

    chain = LocalChain(folder)
    stack.callback(chain.close)
    world = channels.open_market(folder, chain, **funding(folder), **STOP)
    dave = channels.Channel.open(world, chain, deposit=10**11)
    user = "usr_0x" + dave.consumer.address.hex()
    return world, [Caller(Customer(user, "", user), "voucher", lambda: dave.voucher(50_000))]


def killed(load: Load, number: int) -> bool:
    """One round: every tenth lasts until streams have been journalled, the others for a moment. Whether it was killed:
    it may have drained before that."""
    chance, manner = load.attempt.random, load.attempt.random.choice(KILLS) if load.attempt.full else KILLS[0]
    seconds = JOURNAL_S + chance.uniform(0, 0.3) if number % 10 == 0 else chance.uniform(0.02, 0.6)
    if manner == "in its drain":
        status = asyncio.run(load.until_the_end(seconds, signal.SIGTERM, chance.uniform(0, 1)))
        load.attempt.must(status in (0, -signal.SIGKILL), f"while it drained, it ended with {status}")
        load.attempt.meet("kill in its drain", int(status != 0 and load.turned_away > 0))
        return status != 0
    asyncio.run(load.until_the_end(seconds, signal.SIGKILL, None))
    if manner == "as it starts again":
        load.attempt.meet("kill as it starts again", int(killed_as_it_starts(load, chance.uniform(0, STARTING_S))))
    else:
        load.attempt.meet("kill at once")
    return True


def killed_as_it_starts(load: Load, after_s: float) -> bool:
    """Start another, and kill it so long after it has its lock; whether it was not done by then."""
    daemon = load.world.daemon
    daemon.begin()
    lock, owner = daemon.db.with_name(daemon.db.name + ".lock"), f"{daemon.program.process.pid}\n"
    until(lambda: lock.read_text() == owner, "a lock of its own")
    time.sleep(after_s)
    status = daemon.program.stop(signal.SIGKILL)
    load.attempt.must(status == -signal.SIGKILL, f"as it started, it ended with {status}: {daemon.program.text()}")
    load.began_in_vain = '"event":"listening"' not in daemon.program.text()
    return load.began_in_vain


def stopped(load: Load) -> bool:
    """One round that ends in good order."""
    status = asyncio.run(load.until_the_end(load.attempt.random.uniform(0.1, 0.4), signal.SIGTERM, None))
    load.attempt.must(status == 0, f"it ended with {status}: {load.world.daemon.program.text()}")
    load.no_hold_is_left("when it had ended in good order")
    return True


def books_add_up(load: Load) -> None:
    wrong = wrong_books(load.world)
    load.attempt.must(not wrong, f"the books of daemon {load.life}: {wrong[:3]}")


def judge_channels(load: Load) -> None:
    """What a channel was charged its consumer has signed, and the channel has."""
    sums = """SELECT c.accepted, c.deposit, a.balance, (SELECT sum(billed) FROM usage_log WHERE account_id = a.id)
        FROM drain_channels c JOIN accounts a ON a.id = c.account_id"""
    ((accepted, deposit, balance, billed),) = query(load.world, sums)
    story = f"{billed:,} charged, {accepted:,} signed of {deposit:,}, {balance:,} left"
    load.attempt.must(0 < billed <= accepted <= deposit and billed == accepted - balance, story)
    load.attempt.meet("a channel that was charged")
    load.attempt.expect("a channel that was charged")
    load.attempt.figure(f"a channel, in micro-USDC: {story}")


def judge(load: Load) -> None:
    """Set the three accounts against each other."""
    attempt, world = load.attempt, load.world
    books_add_up(load)
    wrong = disagreements(world, load.asked)
    attempt.must(not wrong, f"{len(wrong)} disagreements, the first: {wrong[:3]}")
    found = faults(world)
    attempt.must(not found, f"a daemon met what it did not expect: {found[:1]}")
    for each in load.asked:
        if each.whole and each.path != COUNT:
            attempt.meet(f"answer to its end for {each.caller.payer}")
            attempt.meet("answer to its end")
    reasons = dict(query(world, "SELECT reason, count(*) FROM usage_log GROUP BY reason"))
    attempt.meet("hold recovered as an estimate", reasons.get("recovered", 0))
    attempt.meet("hold interrupted", reasons.get("interrupted", 0))
    attempt.meet("hold that outlived its drain", reasons.get("shutdown", 0))
    ((rows, charged),) = query(world, "SELECT count(*), sum(status = 'settled') FROM usage_log")
    attempt.figure(f"{len(load.asked):,} requests, {rows:,} rows, {charged:,} charged; the witness agrees with each")
    later = sorted(load.returns_s)
    attempt.figure(
        f"back in {later[len(later) // 2]:.2f} s (median), {later[-1]:.2f} s at most; the target is {TARGET_S:.0f} s"
    )


PROOF = Proof(
    name="killed-daemon",
    claim="Kill -9 and SIGTERM of the daemon under load: every dispatch has exactly one row, and no hold stays open.",
    short={"kills": 1, "sigterms": 1},
    full={"kills": 200, "sigterms": 100},
    run=run,
    limit_s=(120, 3_600),
)
