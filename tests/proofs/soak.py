"""Mixed load, faults and the operator's work for as long as it is given: what a daemon uses stays as it is.

A second counts in which somebody had a whole answer. What is used is flat when its median in the last quarter of the
time is no more than that of the second, and what a handful of requests may use at a moment (`SLACK`); the first is for
warming up. The database may grow by its rows, and by no more than these need.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.request import Request, urlopen

import aiohttp

from goosestack import admin, demo
from goosestack.demo.faults import ERRORS
from tests.faults import KINDS
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES
from tests.proofs.proof import Attempt, Proof, Refuted
from tests.shops import Shop
from tests.witness import (
    CUT,
    STREAMED,
    Asked,
    Caller,
    a_wire,
    disagreements,
    faults,
    funding,
    make_callers,
    open_holds,
    query,
    wrong_books,
)
from tests.world import Customer, World, until

WIRES = {CHAT: "chat", RESPONSES: "responses", EMBEDDINGS: "embeddings", MESSAGES: "messages", COUNT: "count_tokens"}
SLOW = ("endless_line", "endless_body", "gzip_bomb", "drip", "byte_by_byte")
"""Faults that would load the machine rather than the daemon."""

TWICE = "second_answer"
LONG: Mapping[str, object] = {"words": 100, "delay_ms": 20}
"""An answer whose end nobody waits for, and which outlives the grace of who has gone."""

PAUSE_S = 0.2
SAMPLE_S = 1.0
BACKUP_S = 30.0
COPIES = 2
BUY_S = 15.0
"""Checkouts of one caller are limited to five a minute."""

BOUGHT_CENTS = 1_000
MOST_WAL_BYTES = 64 * 1024 * 1024
MEGABYTE = 1024 * 1024
SLACK = {
    "megabytes": 5.0,
    "descriptors": 8.0,
    "threads": 2.0,
    "files": 2.0,
    "log": 8.0 * MEGABYTE,
    "rest": 1.0 * MEGABYTE,
}
"""What may come and go between two moments. Memory: two page caches of SQLite's (2 MB a connection) that had room left,
and requests in flight; from the one quarter of half an hour to the other some forty thousand requests have come, so
that a hundred and some bytes which each of them leaves behind are seen. The log is begun again at a checkpoint, after
1,000 pages (4 MB), but for when a copy is being read: its file stays as long as it ever was, and a long copy on a slow
disk may let it grow once more. All else in the folder is of one size, but for the database."""

MOST_ROW_BYTES = 2_048
"""A row of the database with its indexes, and a request's share of what else is written down, by far."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon uses at one moment."""

    megabytes: float
    descriptors: int
    threads: int
    files: int
    log: int
    """Bytes of the write-ahead log."""
    rest: int
    """Bytes of what else is in the folder, but for the database and what the programs print."""
    database: int
    """Bytes."""
    rows: int
    requests: int


@dataclass(slots=True)
class Soak:
    """The load, the deeds, and what is seen of the daemon meanwhile."""

    attempt: Attempt
    shop: Shop
    callers: list[Caller]
    began: float = field(default_factory=time.monotonic)
    seconds: set[int] = field(default_factory=set)
    """Since it began, in which somebody was answered in full."""
    twice: int = 0
    """Answers that the upstream gave twice."""
    misled: int = 0
    revoked: list[Asked] = field(default_factory=list)
    """Streams whose key was."""
    asked: list[Asked] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    bought: int = 0

    @property
    def world(self) -> World:
        return self.shop.world

    def over(self) -> bool:
        """Whether the time is up."""
        return self.left_s <= 0

    @property
    def left_s(self) -> int:
        """How much longer it lasts, at the least."""
        return self.attempt.goal["seconds"] - len(self.seconds)

    def new(self, caller: Caller, path: str, stream: bool, directive: Mapping[str, object]) -> Asked:
        """One more request."""
        each = Asked(next(self.numbers), caller, path, stream, 1, directive)
        self.asked.append(each)
        return each

    async def lane(self, client: aiohttp.ClientSession, caller: Caller, chance: Random) -> None:
        """One thing after another: most are answered, some go wrong upstream, some callers go, and all do first."""
        manner = 1.0
        while not self.over():
            path, stream = a_wire(chance)
            directive: dict[str, object] = {"words": chance.randrange(1, 40), "delay_ms": chance.choice((0, 0, 5))}
            if manner >= 0.95:
                path, stream, directive = chance.choice(STREAMED), True, dict(LONG)
            elif manner < 0.15:
                directive |= a_fault(chance, path, stream)
                self.twice += directive["fault"] == TWICE
            each = self.new(caller, path, stream, directive)
            if manner < 0.9:
                self.judge(each, await each.send(client, self.world.url))
                if each.whole:
                    self.seconds.add(int(time.monotonic() - self.began))
            else:
                await self.leave(client, each, chance.uniform(0, 0.2) if manner < 0.95 else chance.uniform(0.1, 0.5))
            await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))
            manner = chance.random()

    async def leave(self, client: aiohttp.ClientSession, each: Asked, after_s: float) -> None:
        """Ask, and go before it is over."""
        headers = each.caller.headers(each.path)
        try:
            async with asyncio.timeout(after_s):
                async with client.post(self.world.url + each.path, json=each.body, headers=headers) as answer:
                    each.status, each.request_id = answer.status, answer.headers["x-request-id"]
                    each.heard(answer.headers, await answer.read())
        except TimeoutError:
            return
        except CUT as error:
            raise Refuted(f"{each} was cut off: {error!r}") from error
        self.judge(each, True)

    def judge(self, each: Asked, told: bool) -> None:
        """It was answered as was asked for; or it was misled by what the upstream says again, to nobody, over a
        connection on which the next has asked just then: nobody can tell that from an answer. It comes at once, so that
        it mostly finds a connection that is idle, and is thrown away with it."""
        if told and as_asked(each):
            return
        self.misled += 1
        misled = told and self.misled <= self.twice
        self.attempt.must(misled, f"{each}, {each.directive}, was answered {each.status}; {self.misled} were misled")

    async def keys(self, client: aiohttp.ClientSession, user: Caller) -> None:
        """A key is made, used, and revoked while it streams; then it opens nothing."""
        while not self.over():
            made = await asyncio.to_thread(self.world.verb, "key_create", user=user.customer.id, name="short-lived")
            caller = Caller(Customer(user.customer.id, made["api_key"], made["id"]), user.payer)
            streams = self.new(caller, CHAT, True, LONG)
            delivery = asyncio.create_task(streams.send(client, self.world.url))
            while streams.status is None and not delivery.done():
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(self.world.verb, "key_revoke", key=made["id"])
            await delivery
            late = self.new(caller, CHAT, False, {})
            await late.send(client, self.world.url)
            self.attempt.must(late.status == 401, f"{late} was answered {late.status}")
            self.attempt.must(not streams.whole, f"{streams} was answered in full")
            if streams.status == 200:
                self.revoked.append(streams)
            else:
                self.judge(streams, True)
            await asyncio.sleep(1)

    async def every(self, seconds: float, deed: Callable[[], None], danger: str) -> None:
        """Do something over and over, in a thread of its own."""
        while not self.over():
            await asyncio.to_thread(deed)
            self.attempt.meet(danger)
            await asyncio.sleep(min(seconds, self.left_s))

    def look_around(self) -> None:
        """What users and the operator look at."""
        alice, world = self.callers[0].customer, self.world
        for path in ("/v1/usage", "/v1/keys", "/v1/holds", "/v1/models", "/api/me", "/readyz", "/metrics"):
            with urlopen(Request(world.url + path, headers={"authorization": f"Bearer {alice.key}"})) as answer:
                answer.read()
        world.verb("user_list", after="")
        world.verb("credit_grant", user=alice.id, cents=1, note="", ref=None)
        world.verb("user_create", email="dave@example.com")
        wrong = world.verb("check", full=False)["wrong"]
        self.attempt.must(not wrong, f"the books under load: {wrong[:3]}")

    def buy(self) -> None:
        """A card is charged, and each of Stripe's events comes twice."""
        self.shop.buy(self.callers[0].customer, BOUGHT_CENTS)
        self.bought += BOUGHT_CENTS

    def back_up(self) -> None:
        copies = self.attempt.folder / "copies"
        copies.mkdir(exist_ok=True)
        admin.backup(self.world.daemon.db, copies, COPIES)

    def sample(self) -> None:
        """Note what the daemon uses."""
        database = self.world.daemon.db
        process = Path(f"/proc/{self.world.daemon.program.process.pid}")
        told = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        sizes = {path.name: path.stat().st_size for path in database.parent.iterdir() if path.is_file()}
        log = sizes.get(f"{database.name}-wal", 0)
        rest = sum(size for name, size in sizes.items() if not name.endswith((".db", "-wal", ".out", ".jsonl")))
        ((rows,),) = query(self.world, "SELECT max(rowid) FROM usage_log")
        self.samples.append(
            Sample(
                int(told["VmRSS"].split()[0]) / 1024,
                len(os.listdir(process / "fd")),
                int(told["Threads"]),
                len(sizes),
                log,
                rest,
                sizes[database.name],
                rows or 0,
                len(self.asked),
            )
        )

    async def go(self) -> None:
        """All of it at once."""
        users = {caller.customer.id: caller for caller in self.callers}
        seeds = [self.attempt.random.randrange(2**32) for _ in self.callers]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            pairs = zip(self.callers, seeds, strict=True)
            await asyncio.gather(
                *(self.lane(client, caller, Random(seed)) for caller, seed in pairs),
                *(self.keys(client, user) for user in users.values()),
                self.every(1, self.look_around, "operator at work"),
                self.every(BUY_S, self.buy, "credits bought"),
                self.every(BACKUP_S, self.back_up, "backup"),
                self.every(SAMPLE_S if self.attempt.full else 0.1, self.sample, "sample"),
            )


def a_fault(chance: Random, path: str, stream: bool) -> dict[str, object]:
    """A way in which the upstream may fail this request."""
    possible = [fault for fault in demo.FAULTS if fault not in SLOW and demo.fits(fault, WIRES[path], stream)]
    fault = chance.choice(possible)
    return {"fault": fault, "hang_s": 0 if fault == TWICE else 0.3}


def as_asked(each: Asked) -> bool:
    """Whether it was answered as the fault that was asked for is, or in full where there was none."""
    fault = each.directive.get("fault")
    if fault is None:
        return each.whole
    kind = KINDS[str(fault)]
    match kind.outcome:
        case "whole":
            return each.whole
        case "cut":
            return each.status == 502 or (each.status == 200 and (each.stream or each.whole))
        case _ if each.caller.payer == "own key" and str(fault) in ERRORS:
            return each.status in (
                kind.status,
                ERRORS[str(fault)].status,
            )  # whose key it is hears what is wrong with it
        case _:
            return each.status == kind.status


def run(attempt: Attempt) -> None:
    seconds = attempt.goal["seconds"] if attempt.full else 0
    attempt.expect("fault upstream", times=max(1, seconds // 2))
    attempt.expect("client gone", "key revoked", "operator at work", times=max(1, seconds // 10))
    attempt.expect("credits bought", "backup", times=max(1, seconds // 120))
    shop = Shop.open(attempt.folder, DISCONNECT_GRACE_S="1", **funding(attempt.folder))
    try:
        shop.till.delivery(copies=2)
        soak = Soak(attempt, shop, make_callers(shop.world, users=2, keys=2))
        asyncio.run(soak.go())
        attempt.count("seconds", len(soak.seconds))
        judge_use(attempt, soak.samples)
        judge_money(soak)
        judge_dangers(soak)
        attempt.figure(f"{soak.misled} answers were misled, by {soak.twice} that came twice")
        attempt.figure(f"{len(soak.asked):,} requests in {time.monotonic() - soak.began:,.0f} s")
    finally:
        shop.world.daemon.program.stop(signal.SIGKILL)
        shop.world.upstream.program.stop(signal.SIGKILL)
        shop.till.stop()


def judge_use(attempt: Attempt, samples: list[Sample]) -> None:
    """What the daemon uses is flat, and the database has its rows."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]

    def median(what: str, part: list[Sample]) -> float:
        return float(statistics.median(getattr(each, what) for each in part))

    for what, slack in SLACK.items():
        before, after = median(what, second), median(what, last)
        attempt.figure(f"{what}: {before:,.4g} in the second quarter, {after:,.4g} in the last (medians)")
        if attempt.full or what not in ("megabytes", "log"):  # a short run is all warming up
            story = f"{what} went from {before:,.4g} to {after:,.4g}, in {len(samples)} samples"
            attempt.must(after <= before + slack, story)
    eighths = [samples[len(samples) * part // 8 : len(samples) * (part + 1) // 8] for part in range(8)]
    course = " ".join(f"{median('megabytes', part):.1f}" for part in eighths if part)
    attempt.figure(f"megabytes, by eighths of the time (medians): {course}")
    most = max(each.log for each in samples)
    attempt.figure(f"write-ahead log: {most / MEGABYTE:.1f} MB at most")
    attempt.must(most <= MOST_WAL_BYTES, f"the write-ahead log grew to {most:,} bytes")
    grown, rows = samples[-1].database - samples[0].database, samples[-1].rows - samples[0].rows
    story = f"the database grew by {grown:,} bytes, and by {rows:,} rows"
    attempt.figure(story)
    attempt.must(grown <= MOST_ROW_BYTES * rows + SLACK["log"], story)
    requests = max(1, last[-1].requests - second[0].requests)
    growth = median("megabytes", last) - median("megabytes", second)
    attempt.figure(f"growth: {growth * MEGABYTE / requests:,.0f} bytes per request")


def judge_dangers(soak: Soak) -> None:
    """What really happened, by the witness's log and by the rows."""
    with soak.world.upstream.log.open() as log:
        outcomes = [str(json.loads(line).get("outcome")) for line in log]
    soak.attempt.meet("fault upstream", sum(outcome.startswith("fault:") for outcome in outcomes))
    gone = {id for (id,) in query(soak.world, "SELECT id FROM usage_log WHERE reason = 'client_gone'")}
    for each in soak.revoked:
        soak.attempt.must(each.request_id in gone, f"{each} went on when its key was revoked")
    soak.attempt.meet("key revoked", len(soak.revoked))
    soak.attempt.meet("client gone", len(gone) - len(soak.revoked))
    copies = len(list((soak.attempt.folder / "copies").iterdir()))
    soak.attempt.must(copies <= COPIES, f"{copies} copies were kept, of {COPIES}")


def judge_money(soak: Soak) -> None:
    """Everybody's accounts agree, after the daemon has ended in good order."""
    attempt, world = soak.attempt, soak.world
    soak.shop.till.settle()
    until(lambda: open_holds(world) == 0, "every hold to end", 60)
    status = world.daemon.program.stop()
    attempt.must(status == 0, f"it ended with {status}: {world.daemon.program.text()[-1000:]}")
    wrong = wrong_books(world)
    attempt.must(not wrong, f"the books: {wrong[:3]}")
    wrong = disagreements(world, soak.asked)
    attempt.must(not wrong, f"{len(wrong)} disagreements, the first: {wrong[:3]}")
    topups = "SELECT coalesce(sum(amount), 0) FROM entries WHERE kind = 'topup'"
    ((credited,),) = query(world, topups)
    attempt.must(credited == soak.bought, f"{soak.bought} cents were bought, and {credited} credited")
    attempt.must(not faults(world), f"the daemon met what it did not expect: {faults(world)[:1]}")


PROOF = Proof(
    name="soak",
    claim="Mixed load and faults for half an hour: flat memory, files, threads and log; no drift of the books.",
    short={"seconds": 3},
    full={"seconds": 1_800},
    run=run,
    limit_s=(120, 3_600),
)
