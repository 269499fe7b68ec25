"""The clock of the machine jumps, by minutes, a day or a year, ahead or back, while requests are running and again when
they have ended: no hold ends early, nothing is granted twice, nobody is shut out for longer than a window.

The daemon is a real one whose time of day is set from outside (`tests.proofs.adrift`). At every jump some streams are
half-way; callers go on asking, on a plan whose tokens are given by the month; grants, webhooks and rate limits are
tried again at each time. At the end of a round it is killed, and started at a time at which its own rows lie in the
future.
"""

from __future__ import annotations

import hashlib
import hmac
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from goosestack import plans
from goosestack.store.sqlite import connect_read_only
from tests.asking import Reply, ask, chat, directed
from tests.forgeries import event, send
from tests.proofs.adrift import Clock
from tests.proofs.proof import Attempt, Proof
from tests.tills import KEY, SECRET
from tests.witness import faults
from tests.world import OPENAI_KEY, Customer, Daemon, Program, Upstream, World, until

MINUTE_S, DAY_S, YEAR_S = 60, 86_400, 365 * 86_400
JUMPS = tuple(sign * far for far in (5 * MINUTE_S, DAY_S, YEAR_S) for sign in (1, -1))
STREAMS = 4
TOKENS, BUSY = 1_000_000, 4
"""Of a month, on the free plan; requests a minute, on the busy one."""

TABLE = f"""
[free]
tokens_per_month = {TOKENS}
[busy]
tokens_per_month = {TOKENS + 1}
requests_per_minute = {BUSY}
"""
LEEWAY_S = 20 * MINUTE_S
"""Between two looks at the clock, and more than any of the small jumps."""


class AdriftDaemon(Daemon):
    """`goosestack serve` on another time than the machine's."""

    def start(self) -> None:
        self.clock = Clock(self.folder / "clock")
        args = ["tests.proofs.adrift", str(self.folder / "clock")]
        self.program = Program(args, self.env, self.folder / "daemon.out", self.folder)
        match = self.program.wait_for(r'"event":"listening","host":"([^"]+)","port":(\d+)')
        self.url = f"http://{match.group(1)}:{match.group(2)}"


@dataclass(slots=True)
class Voyage:
    """The daemon, its clock and its callers."""

    world: World
    clock: Clock
    alice: Customer
    """Has streams half-way at every jump."""
    carol: Customer
    mallory: Customer
    """Asks as often as she may."""
    bob: Customer
    """Is Pro, for a month from now."""
    pro_until: int
    """Unix seconds."""
    charged: set[int] = field(default_factory=set)
    """What the same answer has cost, whenever it was asked for."""

    def rows(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        with closing(connect_read_only(self.world.daemon.db)) as db:
            return db.execute(sql, args).fetchall()

    def at(self) -> str:
        """When it is, in words."""
        return f"{self.clock.offset_s:+d} s"


def begin(attempt: Attempt) -> Voyage:
    """Start the daemon at the machine's time."""
    folder = attempt.folder
    (folder / "plans.toml").write_text(TABLE)
    upstream = Upstream(folder)
    daemon = AdriftDaemon(
        folder,
        upstream.url,
        FUNDING="allowance,credits",
        PLANS_FILE=str(folder / "plans.toml"),
        STRIPE_SECRET_KEY=KEY,
        STRIPE_WEBHOOK_SECRET=SECRET,
        STRIPE_API_BASE="http://127.0.0.1:9",
        PUBLIC_URL="https://llm.example.com",
    )
    world = World(folder, upstream, daemon)
    alice, carol, mallory, bob = (world.customer(1000, name=name) for name in ("alice", "carol", "mallory", "bob"))
    world.verb("plan_assign", user=mallory.id, plan="busy", until=None)
    pro_until = int(daemon.clock.time()) + 30 * DAY_S
    world.verb("user_pro", user=bob.id, until=iso(pro_until))
    return Voyage(world, daemon.clock, alice, carol, mallory, bob, pro_until)


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


# --- one jump -------------------------------------------------------------------------------------------------


def jump(attempt: Attempt, voyage: Voyage, to: int) -> None:
    """The clock is set while streams are half-way; everything is tried at the new time."""
    world, ahead = voyage.world, to > voyage.clock.offset_s
    words = 60 if attempt.full else 35  # each stream is looked at once a second
    body = chat(directed("Hi", words=words, delay_ms=40), stream=True, max_tokens=100)
    known = {row["id"] for row in world.rows()}

    def running() -> int:
        return sum(row["id"] not in known and row["status"] == "held" for row in world.rows())

    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [
            pool.submit(ask, world, "POST", "/v1/chat/completions", key=voyage.alice.key, body=body)
            for _ in range(STREAMS)
        ]
        until(lambda: running() == STREAMS, "streams half-way")
        voyage.clock.set(to)
        for stream in streams:
            attempt.meet("a jump under a running request", int(not stream.done()))
        replies = [stream.result() for stream in streams]
    told = f"at a jump to {voyage.at()}"
    for reply in replies:
        attempt.must(b"[DONE]" in reply.data, f"{told} a stream ended with {reply.data[-200:]!r}")
        (row,) = [row for row in world.rows() if row["id"] == reply.headers["x-request-id"]]
        ended = (row["status"], row["reason"], row["estimated"])
        attempt.must(ended == ("settled", "completed", 0), f"{told} a hold ended early: {ended}")
        voyage.charged.add(row["charged"])
        attempt.count("requests")
    attempt.must(len(voyage.charged) == 1, f"{told} the same answer has cost {sorted(voyage.charged)}")
    attempt.meet("a jump ahead" if ahead else "a jump back")
    attempt.count("jumps")
    after(attempt, voyage, told)


def after(attempt: Attempt, voyage: Voyage, told: str) -> None:
    """Everything is tried at the time that it is now."""
    granted_once(attempt, voyage, told)
    receipts_are_sane(attempt, voyage, told)
    nobody_is_shut_out(attempt, voyage, told)
    pro_counts_by_the_clock(attempt, voyage, told)
    books = voyage.world.verb("check", full=True)
    attempt.must(books["ok"], f"{told} the books do not add up: {books['wrong'][:2]}")


def granted_once(attempt: Attempt, voyage: Voyage, told: str) -> None:
    """A month's tokens, an operator's grant, a webhook: each once, whatever the time."""
    world, clock = voyage.world, voyage.clock
    reply = ask(world, "POST", "/v1/chat/completions", key=voyage.carol.key, body=chat(max_tokens=50))
    attempt.must(reply.status == 200, f"{told} a request was answered {reply.status} {reply.data[:200]!r}")
    month = plans.month(iso(clock.time())).ref
    periods = voyage.rows(
        "SELECT a.ref, count(*), sum(e.amount) FROM accounts a JOIN entries e ON e.account_id = a.id"
        " WHERE a.user_id = ? AND a.unit = 'tokens' GROUP BY a.ref",
        voyage.carol.id,
    )
    attempt.must(month in [ref for ref, _, _ in periods], f"{told} the month {month} has no tokens: {periods}")
    wrong = [period for period in periods if period[1:] != (1, TOKENS)]
    attempt.must(wrong == [], f"{told} a month was granted more than once, or less than whole: {wrong}")
    attempt.meet("another month", len(periods) - 1)
    before = world.funds(voyage.bob)["balance_cents"]
    posted = [world.verb("credit_grant", user=voyage.bob.id, cents=7, note="", ref="once")["posted"] for _ in range(2)]
    gained = world.funds(voyage.bob)["balance_cents"] - before
    attempt.must(posted[1] is False and gained == 7 * posted[0], f"{told} a grant was posted {posted}, {gained} cents")
    once = voyage.rows("SELECT count(*) FROM entries WHERE kind = 'grant' AND ref = 'once'")
    attempt.must(once == [(1,)], f"{told} a grant is there {once} times")
    body = event(id="evt_once")
    statuses = [send(world, body, signed_at(body, int(clock.time()))).status for _ in range(2)]
    attempt.must(statuses == [200, 200], f"{told} a webhook that was signed just now was answered {statuses}")
    attempt.must(voyage.rows("SELECT count(*) FROM stripe_events") == [(1,)], f"{told} an event was taken twice")


def signed_at(body: bytes, at: int) -> str:
    """The signature that Stripe would make at a time."""
    return f"t={at},v1={hmac.new(SECRET.encode(), f'{at}.'.encode() + body, hashlib.sha256).hexdigest()}"


def receipts_are_sane(attempt: Attempt, voyage: Voyage, told: str) -> None:
    """The answer tells what it cost, and the list of requests has it, at the time that it was."""
    reply = ask(voyage.world, "POST", "/v1/chat/completions", key=voyage.carol.key, body=chat(max_tokens=50))
    tokens = reply.headers["x-goosestack-cost-tokens"]
    attempt.must(reply.status == 200 and int(str(tokens)) > 0, f"{told} a receipt says {tokens} tokens")
    id = reply.headers["x-request-id"]
    ((status, created, ended, charged),) = voyage.rows(
        "SELECT status, created_at, ended_at, charged FROM usage_log WHERE id = ?", id
    )
    now = voyage.clock.time()
    near = all(iso(now - LEEWAY_S) < at < iso(now + LEEWAY_S) for at in (created, ended))
    attempt.must(
        (status, charged) == ("settled", int(str(tokens))) and near, f"{told}: {status, created, ended, charged}"
    )
    listed = ask(voyage.world, "GET", "/v1/usage", key=voyage.carol.key)
    attempt.must(listed.status == 200, f"{told} the list of requests was answered {listed.status}")
    me = ask(voyage.world, "GET", "/api/me", key=voyage.carol.key).json()
    used = me["quota"] - me["remaining"]
    attempt.must(0 < used <= me["quota"] and me["used"] == used, f"{told} what is left of a plan is {me['remaining']}")
    attempt.count("requests")


def nobody_is_shut_out(attempt: Attempt, voyage: Voyage, told: str) -> None:
    """Who asks too often is refused, told to come back within a minute, and let in again when two have passed."""
    statuses = [_asked(voyage) for _ in range(2 * BUSY + 1)]
    refused = [reply for reply in statuses if reply.status == 429]
    attempt.must({reply.status for reply in statuses} <= {200, 429}, f"{told} a rate limit answers something else")
    attempt.must(refused != [], f"{told} {len(statuses)} requests a minute were let in, of {BUSY}")
    waits = [int(str(reply.headers["retry-after"])) for reply in refused]
    attempt.must(all(1 <= wait <= MINUTE_S for wait in waits), f"{told} somebody is to come back in {max(waits)} s")
    attempt.meet("a rate limit")
    voyage.clock.set(voyage.clock.offset_s + 2 * MINUTE_S)
    attempt.must(_asked(voyage).status == 200, f"{told} nobody is let in again when a window has passed")


def _asked(voyage: Voyage) -> Reply:
    return ask(voyage.world, "GET", "/v1/usage", key=voyage.mallory.key)


def pro_counts_by_the_clock(attempt: Attempt, voyage: Voyage, told: str) -> None:
    """Whoever is Pro until a day is so before it, and not after; and again when the clock is set back."""
    headers = {"x-provider-key": OPENAI_KEY}
    reply = ask(
        voyage.world, "POST", "/v1/chat/completions", key=voyage.bob.key, body=chat(max_tokens=50), headers=headers
    )
    pro = voyage.clock.time() < voyage.pro_until
    attempt.must(reply.status == (200 if pro else 403), f"{told} {'Pro' if pro else 'not Pro'}, and {reply.status}")
    attempt.meet("a plan that has lapsed", int(not pro))


# --- a round --------------------------------------------------------------------------------------------------


def round_trip(attempt: Attempt, voyage: Voyage, jumps: list[int]) -> None:
    """There and back, by each of these; then a kill, and a start at another time."""
    for to in jumps:
        jump(attempt, voyage, to)
        jump(attempt, voyage, 0)
    world = voyage.world
    body = chat(directed("Hi", fault="stall_headers", hang_s=60), max_tokens=50)
    with ThreadPoolExecutor(1) as pool:
        silent = pool.submit(_cut_off, world, voyage.alice.key, body)
        until(lambda: any(row["status"] == "held" for row in world.rows()), "a hold")
        world.daemon.program.stop(signal.SIGKILL)
        silent.result()
    voyage.clock.set(attempt.random.choice((-YEAR_S, -DAY_S)))
    world.daemon.start()
    open_holds = [row["id"] for row in world.rows() if row["status"] == "held"]
    attempt.must(open_holds == [], f"started in its own past, it has left holds: {open_holds}")
    attempt.meet("a start in its own past")
    after(attempt, voyage, f"after a start at {voyage.at()}")
    voyage.clock.set(0)


def _cut_off(world: World, key: str, body: dict[str, object]) -> None:
    try:
        ask(world, "POST", "/v1/chat/completions", key=key, body=body)
    except OSError:
        pass


def run(attempt: Attempt) -> None:
    """Rounds of jumps, in an order that the seed draws."""
    attempt.expect("a jump under a running request", "a jump ahead", "a jump back")
    attempt.expect("a rate limit", "a start in its own past")
    if attempt.full:
        attempt.expect("another month", "a plan that has lapsed")
    voyage = begin(attempt)
    with voyage.world.closing():
        while attempt.reached["jumps"] < attempt.goal["jumps"]:
            jumps = list(JUMPS)
            attempt.random.shuffle(jumps)
            if not attempt.full:
                jumps = jumps[:1]
            round_trip(attempt, voyage, jumps)
        wrong = voyage.rows("SELECT id, ref, balance, held FROM accounts WHERE held <> 0 OR debt <> 0")
        attempt.must(wrong == [], f"accounts with something held or owed at the end: {wrong}")
        found = faults(voyage.world)
        attempt.must(not found, f"a daemon met what it did not expect: {found[:1]}")


PROOF = Proof(
    name="clock",
    claim="When the clock jumps by minutes, a day or a year, no hold ends early and nothing is granted twice.",
    short={"jumps": 2, "requests": 10},
    full={"jumps": 120, "requests": 600},
    run=run,
    limit_s=(90, 1_200),
)
