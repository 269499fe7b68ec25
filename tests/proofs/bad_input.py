"""Everything that a caller should not send: by name, by mutation of what is right, and as bytes that are no HTTP.

The cases are the tables of `tests/test_threats_*.py`, sent one by one (`tests/bad_input.py`). Each bears the name of an
abuse of `tests/abuses.py`, which also says which abuses no single request can be, and what tests hold those off. In
full, every case is sent, and none of the abuses that are to be sent may be missing; the short form draws some, of every
status one. The mutations begin with good requests in every wire format, and change what they are made of: types, sizes,
nesting, keys that stand twice, numbers, texts, bytes. Whatever comes, nobody is answered 500; what is refused leaves no
row and is not sent, of which the log of the upstream is the witness; and what still passes is billed.

Who asks too often, and bodies beyond what the daemon takes, are tried with a second daemon, which allows little. In
full, vouchers that pay for nothing are sent as well; the short form has none, since the tests' chain takes longer to
start than all else of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tests.abuses import ABUSES
from tests.altered_requests import mutation
from tests.bad_input import (
    NOBODY,
    Headers,
    Named,
    Telephone,
    again,
    elsewhere,
    forged,
    named,
    raw_mutation,
    shouted,
    signed_up,
    spoken,
    too_large,
    vouchers,
)
from tests.mallory import Reply, assert_error, dialect
from tests.project import SECRET, Project
from tests.proofs.proof import Attempt, Proof
from tests.test_threats_limits import ADDRESSES
from tests.world import Customer, Daemon, World

T = TypeVar("T")
AT_ONCE = 4
CENTS = 10**9
RAW_SHARE = 20
"""One in so many of what is mutated goes as bytes that may be no HTTP."""
SILENT_S = 0.3
"""How long bytes that have no answer are waited for; most of them are half a request."""
P99_MS = 20
OFTEN = 20
"""Requests in a minute, of the daemon that allows little."""
SIGN_UPS = 3
ROOM = 65_536
"""Bytes of a body, of the same."""
STATUSES = (400, 401, 403, 404, 413, 415, 429, 431)


@dataclass(slots=True)
class Questioning:
    """Who asks, and what came of it."""

    attempt: Attempt
    world: World
    mallory: Customer
    took: list[float] = field(default_factory=list)
    """Of each refusal, in seconds."""
    answered: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Status and request, by the id of the answer."""
    statuses: Counter[int] = field(default_factory=Counter)

    async def at_once(
        self, pieces: Iterator[T], one: Callable[[T, Telephone], Awaitable[None]], workers: int = AT_ONCE
    ) -> None:
        """Work through the pieces, some at a time, each worker on a connection of its own."""

        async def work() -> None:
            line = Telephone(self.world.url)
            for piece in pieces:
                await one(piece, line)
            line.hang_up()

        await asyncio.gather(*(work() for _ in range(workers)))

    async def named(self, case: Named, line: Telephone) -> None:
        """One case of the tables: its status, in its envelope."""
        reply = await line.ask(case.method, case.path, case.data, case.headers, self.mallory.key)
        self.refused(case, reply)

    def refused(self, case: Named, reply: Reply) -> None:
        story = f"{case.name}: {reply.status} where {case.status} is right: {case.data[:200]!r}: {reply.body[:300]!r}"
        self.attempt.must(reply.status == case.status, story)
        headers = {name.lower(): value for name, value in case.headers}
        try:
            assert_error(reply, dialect(case.path, headers), case.status)
        except (AssertionError, KeyError, ValueError) as error:
            self.attempt.must(False, f"{case.name}: not in the caller's format: {error!r}: {reply.body[:300]!r}")
        self.attempt.meet(f"a {reply.status}")
        self.counted(case)

    def counted(self, case: Named) -> None:
        self.attempt.count("named")
        if self.attempt.full:
            self.attempt.meet(f"abuse {case.abuse}")

    async def spoken(self, case: Named, _line: Telephone) -> None:
        """One case as bytes: it has one answer."""
        replies = await shouted(self.world.url, case.data)
        self.attempt.must(len(replies) == 1, f"{case.name}: {len(replies)} answers: {replies}")
        if case.abuse in ("D6", "D7"):
            self.refused(case, replies[0])
            return
        wrong = f"{case.name}: {replies[0].status}, where {case.status} is right"
        self.attempt.must(replies[0].status == case.status, wrong)
        self.counted(case)

    async def mutated(self, data: tuple[str, bytes], line: Telephone) -> None:
        """One mutation: any answer but a fault."""
        path, body = data
        started = time.perf_counter()
        reply = await line.ask("POST", path, body, [], self.mallory.key)
        if reply.status in (400, 404):
            self.took.append(time.perf_counter() - started)
        self.no_fault(f"POST {path} {body[:1500]!r}", reply)
        self.answered[reply.headers["x-request-id"]] = (reply.status, body[:1500])

    def no_fault(self, asked: str, reply: Reply) -> None:
        self.attempt.must(reply.status < 500, f"{asked} is answered {reply.status}: {reply.body[:300]!r}")
        self.attempt.count("fuzzed")
        self.statuses[reply.status] += 1

    async def raw(self, data: bytes, _line: Telephone) -> None:
        """Bytes as they are, on a connection of their own."""
        for reply in await shouted(self.world.url, data, SILENT_S):
            self.attempt.must(reply.status < 500, f"{data[:1500]!r} is answered {reply.status}: {reply.body[:300]!r}")
            self.attempt.meet("bytes that are refused" if reply.status == 400 else "bytes that pass")
        self.attempt.count("fuzzed")

    async def too_often(self) -> None:
        """Ask as often as is allowed, by a key, from every kind of address, and for new keys; then once more."""
        line = Telephone(self.world.url)

        async def allowed(status: int, method: str, path: str, data: bytes, headers: Headers) -> None:
            reply = await line.ask(method, path, data, headers, self.mallory.key)
            self.attempt.must(reply.status == status, f"{method} {path} is allowed, and answered {reply.status}")

        for _ in range(OFTEN):
            await allowed(200, "GET", "/v1/usage", b"", ())
        for sign_up in signed_up(SIGN_UPS):
            await allowed(201, "POST", sign_up.path, sign_up.data, sign_up.headers)
        for how, address in ADDRESSES.items():
            for turn in range(OFTEN):
                await allowed(200, "GET", "/v1/models", b"", [*NOBODY, ("x-forwarded-for", address(turn))])
            for case in elsewhere(how):
                await self.named(case, line)
        for case in (*again(self.mallory.key), *signed_up(10)):
            await self.named(case, line)
        line.hang_up()


def run(attempt: Attempt) -> None:
    """By name, mutated, raw."""
    attempt.expect(*(f"a {status}" for status in STATUSES), "bytes that are refused", "a mutation that is refused")
    attempt.expect("a mutation that still passes")
    if attempt.full:
        attempt.expect(*(f"abuse {name}" for name, abuse in ABUSES.items() if abuse.sent))
    project = Project(attempt.folder)
    world = World.create(attempt.folder, DRAIN_S="5", SUPABASE_URL=project.url)
    try:
        by_name(attempt, world, project)
        by_limit(attempt, world, project)
        mutations(attempt, world)
        raw_bytes(attempt, world)
        as_expected(attempt, world.daemon)
    finally:
        world.close()
        project.close()
    if attempt.full:
        attempt.expect("a voucher that pays for nothing")
        by_voucher(attempt)


def as_expected(attempt: Attempt, daemon: Daemon) -> None:
    output = daemon.program.text()
    for sign in ("Traceback", '"kind":"fault"', "never retrieved"):
        place = output.find(sign)
        told = output[max(0, place - 500) : place + 500]
        attempt.must(place < 0, f"the daemon met what it did not expect: {told}")


def by_name(attempt: Attempt, world: World, project: Project) -> None:
    """What has a name: none of it leaves anything behind."""
    asking = Questioning(attempt, world, world.customer(CENTS, name="mallory"))
    cases = [*named(asking.mallory.key), *forged(project, "ES256")]
    lines = list(spoken(asking.mallory.key))
    if not attempt.full:
        cases, lines = some(attempt, cases, attempt.goal["named"]), some(attempt, lines, 10)
    attempt.random.shuffle(cases)
    asyncio.run(asking.at_once(iter(cases), asking.named))
    asyncio.run(asking.at_once(iter(lines), asking.spoken, workers=1))
    sent, rows = world.upstream.dispatches(), world.rows()
    attempt.must(sent == [], f"what was to be refused was sent: {sent[:1]}")
    attempt.must(rows == [], f"what was to be refused was written down: {rows[:1]}")


def some(attempt: Attempt, cases: list[Named], count: int) -> list[Named]:
    """So many of them, and of each status one."""
    of_each = {case.status: case for case in cases}
    others = [case for case in cases if case not in of_each.values()]
    return [*attempt.random.sample(others, count), *of_each.values()]


def by_limit(attempt: Attempt, world: World, project: Project) -> None:
    """What is too much, or too often, for a second daemon with the same upstream, which allows little."""
    folder = attempt.folder / "strict"
    folder.mkdir()
    most = {"RATE_LIMIT_MAX_REQUESTS": str(OFTEN), "SIGNUPS_PER_HOUR": str(SIGN_UPS), "MAX_BODY_BYTES": str(ROOM)}
    daemon = Daemon(folder, world.upstream.url, **most, SUPABASE_URL=project.url, JWT_SECRET=SECRET)
    strict = World(folder, world.upstream, daemon)
    try:
        often = Questioning(attempt, strict, strict.customer(CENTS, name="mallory"))
        much = Questioning(attempt, strict, strict.customer(CENTS, name="mallory"))
        first, second = (list(too_large(strict.customer(CENTS, name="mallory").key, ROOM)) for _ in range(2))
        large = [*first[::2], *second[1::2]]  # by two keys, neither of which asks too often
        asyncio.run(often.too_often())
        asyncio.run(much.at_once(iter(large if attempt.full else some(attempt, large, 3)), much.spoken, workers=1))
        if attempt.full:
            asyncio.run(often.at_once(from_everywhere(forged(project, "HS256")), often.named))
        attempt.must(world.upstream.dispatches() == [], "what was to be refused was sent")
        attempt.must(strict.rows() == [], f"what was to be refused was written down: {strict.rows()[:1]}")
        as_expected(attempt, daemon)
        attempt.must(daemon.program.stop() == 0, f"the daemon did not end well: {daemon.program.text()[-1000:]}")
    finally:
        daemon.program.process.kill()
        daemon.program.process.wait()


def from_everywhere(cases: Iterator[Named]) -> Iterator[Named]:
    """The same, each from an address of its own: nobody asks too often."""
    for number, case in enumerate(cases):
        address = ("x-forwarded-for", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")
        yield replace(case, headers=[*case.headers, address])


def by_voucher(attempt: Attempt) -> None:
    """Vouchers that pay for nothing: of them, too, nothing is left, and the good one is as good as before."""
    from tests.chain.control import LocalChain
    from tests.channels import Channel, open_market, query

    folder = attempt.folder / "market"
    folder.mkdir()
    chain = LocalChain(folder)
    try:
        market = open_market(folder, chain)
        with market.closing():
            dave = Channel.open(market, chain)
            asking = Questioning(attempt, market, market.customer(CENTS, name="mallory"))
            cases = list(vouchers(dave.id))
            attempt.random.shuffle(cases)
            asyncio.run(asking.at_once(iter(cases), asking.named))
            left = query(market, "SELECT channel FROM drain_channels")
            attempt.must(left == [] and market.rows() == [], f"what was to be refused was written down: {left}")
            attempt.must(market.upstream.dispatches() == [], "what was to be refused was sent")
            attempt.must(dave.buy(50_000).status == 200, "a voucher that is good pays for nothing")
            attempt.meet("a voucher that pays for nothing", len(cases))
            attempt.must("Traceback" not in market.daemon.program.text(), "the daemon met what it did not expect")
    finally:
        chain.close()


def mutations(attempt: Attempt, world: World) -> None:
    """What was right before it was changed."""
    asking = Questioning(attempt, world, world.customer(CENTS, name="mallory"))
    count = attempt.goal["fuzzed"] - attempt.goal["fuzzed"] // RAW_SHARE
    asyncio.run(asking.at_once((mutation(attempt.random) for _ in range(count)), asking.mutated))
    rows = {row["id"]: row for row in world.rows(asking.mallory)}
    malformed: Counter[str] = Counter()
    for request_id, (status, body) in asking.answered.items():
        row = rows.pop(request_id, None)
        if row is None:
            attempt.must(status >= 400, f"answered {status} and not written down: {body[:1500]!r}")
            attempt.meet("a mutation that is refused")
            continue
        attempt.meet("a mutation that still passes" if status == 200 else "a mutation that the provider refuses")
        free = row["wire"] == "anthropic_count_tokens"
        right = ("settled", "completed", not free) if status == 200 else ("released", f"refused_{status}", False)
        found = (row["status"], row["reason"], row["charged"] > 0)
        attempt.must(found == right, f"{status} is written down as {found}: {body[:1500]!r}")
        if status != 200:
            malformed[row["wire"]] += 1
    attempt.must(not rows, f"written down, and never answered: {list(rows.values())[:1]}")
    sent = len(world.upstream.dispatches())
    written = len(world.rows())
    attempt.must(sent == written, f"{sent:,} were sent, and {written:,} are written down")
    took = sorted(asking.took)
    p99 = 1000 * took[len(took) * 99 // 100]
    attempt.figure(f"p99 of a refusal {p99:.1f} ms, of {P99_MS} at most; {len(took):,} of them, {AT_ONCE} at once")
    attempt.figure(f"answers by status: {dict(sorted(asking.statuses.items()))}")
    attempt.figure(f"sent, and refused by the strict upstream: {dict(malformed)}")


def raw_bytes(attempt: Attempt, world: World) -> None:
    """What may be no HTTP at all."""
    asking = Questioning(attempt, world, world.customer(CENTS, name="mallory"))
    count = attempt.goal["fuzzed"] // RAW_SHARE
    pieces = (raw_mutation(attempt.random, asking.mallory.key) for _ in range(count))
    asyncio.run(asking.at_once(pieces, asking.raw, workers=8 * AT_ONCE))
    world.check()
    sent, written = len(world.upstream.dispatches()), len(world.rows())
    never_sent = sum(row["reason"] == "Ended" for row in world.rows(asking.mallory))
    attempt.must(sent == written - never_sent, f"{sent:,} were sent, and {written:,} are written down")


PROOF = Proof(
    name="bad-input",
    claim="Nothing that is sent is a fault, what is refused is not sent on, and what passes is billed.",
    short={"named": 150, "fuzzed": 600},
    full={"named": 6_000, "fuzzed": 200_000},
    run=run,
    limit_s=(60, 1500),
)
