"""Mixed load, faults and the operator's work for as long as it is given: what a daemon uses stays as it is.

Memory, descriptors and threads are flat when their median in the last quarter of the time is no more than a tenth (or
what a handful of requests may use at a moment) above that of the second; the first is for warming up.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.request import Request, urlopen

import aiohttp

from goosestack import admin, demo
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES
from tests.proofs.proof import Attempt, Proof
from tests.shops import Shop
from tests.witness import (
    CUT,
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

PAUSE_S = 0.2
SAMPLE_S = 1.0
BACKUP_S = 30.0
BUY_S = 15.0
"""Checkouts of one caller are limited to five a minute."""

BOUGHT_CENTS = 1_000
MOST_WAL_BYTES = 64 * 1024 * 1024
SLACK = {"megabytes": 4.0, "descriptors": 8.0, "threads": 2.0}
"""What may come and go between two moments."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon uses at one moment."""

    megabytes: float
    descriptors: int
    threads: int
    wal_bytes: int
    requests: int


@dataclass(slots=True)
class Soak:
    """The load, the deeds, and what is seen of the daemon meanwhile."""

    attempt: Attempt
    shop: Shop
    callers: list[Caller]
    ends_at: float
    asked: list[Asked] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    bought: int = 0

    @property
    def world(self) -> World:
        return self.shop.world

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends_at

    def new(self, caller: Caller, path: str, stream: bool, directive: dict[str, object]) -> Asked:
        """One more request."""
        each = Asked(next(self.numbers), caller, path, stream, 1, directive)
        self.asked.append(each)
        return each

    async def lane(self, client: aiohttp.ClientSession, caller: Caller, chance: Random) -> None:
        """One thing after another: most are answered, some go wrong upstream, some callers go."""
        while not self.over():
            path, stream = a_wire(chance)
            directive: dict[str, object] = {"words": chance.randrange(1, 40), "delay_ms": chance.choice((0, 0, 5))}
            manner = chance.random()
            if manner < 0.15:
                directive |= a_fault(chance, path, stream)
                self.attempt.meet("fault upstream")
            each = self.new(caller, path, stream, directive)
            if manner < 0.9:
                await each.send(client, self.world.url)
            else:
                await self.leave(client, each, chance.uniform(0, 0.2))
            await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))

    async def leave(self, client: aiohttp.ClientSession, each: Asked, after_s: float) -> None:
        """Ask, and go before it is over."""
        headers = each.caller.headers(each.path)
        try:
            async with asyncio.timeout(after_s):
                async with client.post(self.world.url + each.path, json=each.body, headers=headers) as answer:
                    each.status, each.request_id = answer.status, answer.headers["x-request-id"]
                    each.heard(answer.headers, await answer.read())
        except TimeoutError:
            self.attempt.meet("client gone")
        except CUT:
            self.attempt.meet("answer cut")

    async def keys(self, client: aiohttp.ClientSession, user: Caller) -> None:
        """A key is made, used, and revoked while it streams; then it opens nothing."""
        while not self.over():
            made = await asyncio.to_thread(self.world.verb, "key_create", user=user.customer.id, name="short-lived")
            caller = Caller(Customer(user.customer.id, made["api_key"], made["id"]), user.payer)
            streams = self.new(caller, CHAT, True, {"words": 500, "delay_ms": 20})
            delivery = asyncio.create_task(streams.send(client, self.world.url))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(self.world.verb, "key_revoke", key=made["id"])
            await delivery
            late = self.new(caller, CHAT, False, {})
            await late.send(client, self.world.url)
            self.attempt.must(not streams.whole and late.status == 401, f"{late} was answered {late.status}")
            self.attempt.meet("key revoked")
            await asyncio.sleep(1)

    async def every(self, seconds: float, deed: Callable[[], None], danger: str) -> None:
        """Do something over and over, in a thread of its own."""
        while not self.over():
            await asyncio.to_thread(deed)
            self.attempt.meet(danger)
            await asyncio.sleep(min(seconds, max(0, self.ends_at - time.monotonic())))

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
        admin.backup(self.world.daemon.db, copies, 2)

    def sample(self) -> None:
        """Note what the daemon uses."""
        process = Path(f"/proc/{self.world.daemon.program.process.pid}")
        told = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        wal = self.world.daemon.db.with_name(self.world.daemon.db.name + "-wal")
        self.samples.append(
            Sample(
                int(told["VmRSS"].split()[0]) / 1024,
                len(os.listdir(process / "fd")),
                int(told["Threads"]),
                wal.stat().st_size,
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
    return {"fault": chance.choice(possible), "hang_s": 0.3}


def run(attempt: Attempt) -> None:
    attempt.expect("fault upstream", "client gone", "key revoked", "operator at work", "credits bought", "backup")
    began = time.monotonic()
    shop = Shop.open(attempt.folder, DISCONNECT_GRACE_S="1", **funding(attempt.folder))
    try:
        shop.till.delivery(copies=2)
        callers = make_callers(shop.world, users=2, keys=2)
        ends_at = time.monotonic() + attempt.goal["seconds"]
        soak = Soak(attempt, shop, callers, ends_at)
        asyncio.run(soak.go())
        attempt.count("seconds", attempt.goal["seconds"])
        judge_use(attempt, soak.samples)
        judge_money(soak)
        attempt.figure(f"{len(soak.asked):,} requests in {time.monotonic() - began:,.0f} s")
    finally:
        shop.world.daemon.program.stop(signal.SIGKILL)
        shop.world.upstream.program.stop(signal.SIGKILL)
        shop.till.stop()


def judge_use(attempt: Attempt, samples: list[Sample]) -> None:
    """What the daemon uses is flat, and the log is bounded."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    for what, slack in SLACK.items():
        before, after = (statistics.median(getattr(each, what) for each in part) for part in (second, last))
        attempt.figure(f"{what}: {before:.4g} in the second quarter, {after:.4g} in the last (medians)")
        if attempt.full or what != "megabytes":  # a short run is all warming up
            flat = after <= before + max(0.1 * before, slack)
            attempt.must(flat, f"{what} went from {before:.4g} to {after:.4g}, in {len(samples)} samples")
    most = max(each.wal_bytes for each in samples)
    attempt.figure(f"write-ahead log: {most / 1024**2:.1f} MB at most")
    attempt.must(most <= MOST_WAL_BYTES, f"the write-ahead log grew to {most:,} bytes")
    answered = last[-1].requests - second[0].requests
    growth = statistics.median(each.megabytes for each in last) - statistics.median(each.megabytes for each in second)
    attempt.figure(f"growth: {growth * 1024**2 / max(1, answered):,.0f} bytes per request")


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
    short={"seconds": 4},
    full={"seconds": 1_800},
    run=run,
    limit_s=(120, 3_600),
)
