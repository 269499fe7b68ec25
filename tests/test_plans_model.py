"""Over any history of requests, plans that change and periods that end: no allowance is ever below zero, nothing is
paid twice or for two accounts, and what a receiver was told in the end is what was settled.

Hypothesis tells the histories; the process is killed and the receiver fails wherever it likes. A model in plain Python
predicts of each request who pays and how much is held, by the rules of plans and not as the code is: it remembers what
was said and when, and counts what was used. `GOOSESTACK_PROOF=long` runs more of them.
"""

from __future__ import annotations

import calendar
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goosestack import allowance, ledger, plans
from goosestack.accounts import Principal
from goosestack.clock import later
from goosestack.ledger import COUNTS, Charge, NewHold
from goosestack.meters import Meter
from goosestack.payers import AllowanceFunding, CreditFunding, Funding, OverageFunding
from goosestack.plans import Paid
from goosestack.pricing import Terms
from goosestack.sinks.webhook import Webhook
from goosestack.usage import PAYER
from tests.metering import Alerts, Books, Clock, Crash, Wire, run
from tests.receivers import Hook

LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
MACHINE = settings(
    max_examples=2_000 if LONG else 100, stateful_step_count=50, deadline=None, database=None, print_blob=True
)
SECRET = "whsec_" + "c2VjcmV0" * 4
TABLE = """
[free]
tokens_per_month = 1_000
overage_cents = 1
[basic]
tokens_per_month = 4_000
stripe_prices = ["price_basic", "price_basicYearly"]
[pro]
tokens_per_month = 9_000
overage_cents = 3
stripe_prices = ["price_pro"]
"""
TOKENS = {"free": 1_000, "basic": 4_000, "pro": 9_000}
OVERAGE = {"free": 1, "basic": 0, "pro": 3}
SOLD = {"price_basic": "basic", "price_basicYearly": "basic", "price_pro": "pro"}
CENT, TOKEN = 10_000_000, 3_333
"""A cent, and a token's price, in nanodollars."""

FUNDINGS = (
    "allowance",
    "allowance,overage",
    "allowance,credits",
    "allowance,overage,credits",
    "credits,allowance",
    "overage",
)
DEFAULT_CAP = 2_000
USERS = ("alice", "carol")
DAY_S = 86_400
USER = st.sampled_from(USERS)
REQUEST = st.tuples(
    st.integers(1, 1_500), st.none() | st.integers(1, 4_000), st.sampled_from([None, 0.0, 0.5, 1.0, 1.0])
)
"""Input tokens, the output cap, and how much of what is held is used; None where that is still open."""

PLAN = st.sampled_from(sorted(TOKENS))


@dataclass
class Grant:
    """What is used of a period's tokens (or of its cents, or of all credits), in grains."""

    used: int = 0
    held: int = 0
    most: int = 0
    """The most that was ever granted for it."""


@dataclass
class Hold:
    user: str
    payer: str
    period: str
    held: int
    input: int
    progress: int | None = None
    """Tokens."""


@dataclass
class Model:
    """What should be, by what was said and done."""

    funding: tuple[str, ...] = ()
    assigned: dict[str, list[tuple[str, str, str | None]]] = field(default_factory=lambda: defaultdict(list))
    """By user: when, which plan, until when."""
    paid: dict[str, dict[tuple[str, str], tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    """By user: for a subscription and a price, what is paid to, and until when that counts."""
    caps: dict[tuple[str, str], int] = field(default_factory=dict)
    grants: dict[tuple[str, str, str], Grant] = field(default_factory=lambda: defaultdict(Grant))
    """By user, payer, period."""
    topped_up: Counter[str] = field(default_factory=Counter)
    holds: dict[str, Hold] = field(default_factory=dict)
    settled: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By request: who paid, how many tokens it had."""

    def plan(self, user: str, now: str) -> tuple[str, str, str]:
        """The greatest plan, the period that a time is in (by its end as it was paid for), and when that is over."""
        claims = [("free", "", "", "")]
        said = self.assigned[user]
        for number, (_, plan, until) in enumerate(said):
            later = said[number + 1 :]
            if plan in [other for _, other, _ in later]:
                continue  # it was said anew
            ends = [month_end(at) for at, other, _ in later if other != plan]
            if all(now < end for end in [*ends, *([] if until is None else [until])]):
                claims.append((plan, "", "", ""))
        paid = self.paid[user].items()
        claims += [(SOLD[price], until, source, to) for (source, price), (to, until) in paid if now < until]
        plan, until, _, to = max(claims, key=lambda claim: (TOKENS[claim[0]], *claim[1:]))
        if to and now >= to:
            return plan, to, until  # until the next is paid for, the last one goes on
        end = period_end(to, now) if to else month_end(now)
        return plan, end, end

    def cap(self, user: str, plan: str) -> int:
        most = self.caps.get((user, "operator"), OVERAGE[plan])
        return min(most, self.caps.get((user, "user"), most))

    def payers(self, user: str, now: str) -> Iterator[tuple[str, str, int, int]]:
        """Who may pay, for which period, up to how many grains, and what a token is there."""
        plan, period, _ = self.plan(user, now)
        for payer in self.funding:
            if payer == "allowance":
                yield payer, period, TOKENS[plan], 1
            elif payer == "credits":
                yield payer, "", self.topped_up[user] * CENT, TOKEN
            elif cents := self.cap(user, plan):
                yield payer, period, cents * CENT, TOKEN

    def authorize(self, id: str, user: str, read: int, cap: int | None, now: str) -> tuple[str, int] | None:
        """Who holds how much; None where nobody can."""
        most, least = read + (DEFAULT_CAP if cap is None else cap), read + (256 if cap is None else cap)
        for payer, period, granted, price in self.payers(user, now):
            grant = self.grants[user, payer, period]
            grant.most = max(grant.most, granted)
            free = granted - grant.used - grant.held
            if free >= least * price:
                held = min(free, most * price)
                grant.held += held
                self.holds[id] = Hold(user, payer, period, held, read)
                return payer, held
        return None

    def end(self, id: str, tokens: int | None) -> None:
        """Charge so many tokens, or none."""
        hold = self.holds.pop(id)
        grant = self.grants[hold.user, hold.payer, hold.period]
        grant.held -= hold.held
        if tokens is not None:
            grant.used += tokens * (1 if hold.payer == "allowance" else TOKEN)
            self.settled[id] = hold.payer, tokens


def month_end(at: str) -> str:
    """The end of the month (UTC)."""
    year, month = int(at[:4]), int(at[5:7])
    return f"{year + month // 12:04}-{month % 12 + 1:02}-01T00:00:00.000Z"


def period_end(until: str, now: str) -> str:
    """The next end of a month, of those that end on the day of `until` (or the month's last, where it has no such)."""
    last, ends = datetime.fromisoformat(until), []
    for year in range(last.year - 3, last.year + 1):
        for month in range(1, 13):
            day = min(last.day, calendar.monthrange(year, month)[1])
            ends.append(last.replace(year=year, month=month, day=day).strftime("%Y-%m-%dT%H:%M:%S.000Z"))
    return min(end for end in ends if end > now)


def next_month(at: str) -> str:
    """The same day of the next month, or the month's last."""
    moment = datetime.fromisoformat(at)
    year, month = moment.year + moment.month // 12, moment.month % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class PlansMachine(RuleBasedStateMachine):
    """A gateway's books, its plans and one meter, and the model of them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.books, self.model = Clock(), Books(), Model()
        self.db, self.plans = self.books.db, plans.load(TABLE)
        self.hook = Hook(SECRET, self.clock.unix)
        self.wire = Wire({"webhook": self.hook})
        self.count = 0
        now = self.clock.now()
        for user in USERS:
            self.db.execute("INSERT INTO users (id, email, created_at) VALUES (?, ?, ?)", (user, user, now))
        self.credits = {user: ledger.open_account(self.db, user, "usd_cents", now) for user in USERS}
        self.process = ledger.begin_process(self.db, "test", now)
        self.meter = self._new_meter()
        run(self.meter.turn())  # from here on it reports everything

    def _new_meter(self) -> Meter:
        sink = Webhook(self.wire, "http://webhook/usage", SECRET, self.clock.now)
        return Meter(self.books, sink, Alerts(), self.clock.now, random.Random(1))

    @initialize(funding=st.sampled_from(FUNDINGS))
    def begin(self, funding: str) -> None:
        terms = Terms()
        known: dict[str, Funding] = {
            "allowance": AllowanceFunding(self.plans, terms),
            "credits": CreditFunding(terms),
            "overage": OverageFunding(self.plans, terms),
        }
        self.model.funding = tuple(funding.split(","))
        self.fundings = [known[name] for name in self.model.funding]

    # --- requests ---

    @rule(user=USER, requests=st.lists(REQUEST, min_size=1, max_size=5))
    def ask(self, user: str, requests: list[tuple[int, int | None, float | None]]) -> None:
        """Some requests in a row, each settled at once, or left in flight."""
        for request in requests:
            self._ask(user, *request)

    def _ask(self, user: str, read: int, cap: int | None, used: float | None) -> None:
        """A request, as the relay asks one payer after the other."""
        self.count += 1
        id, now = f"req_{self.count:06}", self.clock.now()
        member = plans.of_user(self.db, self.plans, user, now)
        caller = Principal(user, None, self.credits[user], member)
        found = None
        for payer in filter(None, (funding.payer(caller) for funding in self.fundings)):
            most, least = (
                payer.grains(tokens * TOKEN, tokens)
                for tokens in (read + (DEFAULT_CAP if cap is None else cap), read + (256 if cap is None else cap))
            )
            hold = NewHold(id, user, self.process, "openai_chat", "openai", "gpt", account_id=payer.account_id)
            looked = payer.look(self.db).available
            answer = payer.authorize(self.db, hold, most, most, now)
            if answer.held is None:
                assert answer.debt or looked == answer.available
                answer = payer.authorize(self.db, hold, least, most, now)
            if answer.held is not None:
                found = (
                    payer.told(ledger.Settled("settled", 0, 0, 0, 0, 0, 0)).get("x-goosestack-payer", "credits"),
                    answer.held,
                )
                break
        assert found == self.model.authorize(id, user, read, cap, now)
        if found is not None and used is not None:
            tokens = int(used * found[1]) // (1 if found[0] == "allowance" else TOKEN)
            ledger.settle(self.db, id, self._charge(id, tokens), "completed", now)
            self.model.end(id, tokens)

    def _one(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model.holds)))

    def _charge(self, id: str, tokens: int) -> Charge:
        hold = self.model.holds[id]
        amount = tokens if hold.payer == "allowance" else tokens * TOKEN
        counts = (min(tokens, hold.input), max(0, tokens - hold.input), *(0,) * (len(COUNTS) - 2))
        return Charge(amount, tokens * TOKEN, counts)

    def _within(self, data: st.DataObject, id: str) -> int:
        hold = self.model.holds[id]
        return data.draw(st.integers(0, hold.held // (1 if hold.payer == "allowance" else TOKEN)))

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), times=st.integers(1, 2))
    def settle(self, data: st.DataObject, times: int) -> None:
        """The answer has come; whoever settles again changes nothing."""
        id = self._one(data)
        tokens = self._within(data, id)
        charge = self._charge(id, tokens)
        for _ in range(times):
            assert ledger.settle(self.db, id, charge, "completed", self.clock.now()).charged == charge.amount
        self.model.end(id, tokens)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = self._one(data)
        ledger.release(self.db, id, "refused_400", self.clock.now())
        self.model.end(id, None)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def journal(self, data: st.DataObject) -> None:
        id = self._one(data)
        tokens = self._within(data, id)
        ledger.journal(self.db, id, self._charge(id, tokens))
        self.model.holds[id].progress = tokens

    @rule()
    def die(self) -> None:
        """The process is killed; the next one ends what it left open."""
        self.wire.dead, self.books.dies_at = False, None
        self.process = ledger.begin_process(self.db, "test", self.clock.now())
        ledger.recover(self.db, self.process, self.clock.now())
        for id, hold in list(self.model.holds.items()):
            self.model.end(id, hold.progress)
        self.meter = self._new_meter()

    # --- plans and periods ---

    @rule(days=st.sampled_from([0.04, 1, 6, 31, -0.04, -6, -31]))
    def wait(self, days: float) -> None:
        """Time goes on; or the machine's clock is set back."""
        self.clock.seconds += days * DAY_S

    @rule(user=USER, plan=PLAN, days=st.none() | st.sampled_from([-1, 0.5, 1, 5, 40]))
    def assign(self, user: str, plan: str, days: float | None) -> None:
        now = self.clock.now()
        until = None if days is None else later(now, days * DAY_S)
        plans.assign(self.db, user, plan, until, now)
        self.model.assigned[user].append((now, plan, until))

    @rule(
        user=USER,
        subscription=st.sampled_from(["sub_1", "sub_2"]),
        price=st.sampled_from(["price_basic", "price_pro"]),
        days=st.sampled_from([1, 14, 31, 365]),
        on=st.booleans(),
        grace=st.sampled_from([0, 0.04, 1, 6]),
    )
    def pay(self, user: str, subscription: str, price: str, days: int, on: bool, grace: float) -> None:
        """A period of a subscription was paid: the next month of one that runs, at this price or another, or a new
        one."""
        now, paid = self.clock.now(), self.model.paid[user]
        last = max((to for (of, _), (to, until) in paid.items() if of == subscription and until > now), default=None)
        if last is None or not on:
            to = later(now, days * DAY_S)[:-5] + ".000Z"
        elif days == 1:  # for the rest of the month that runs
            to = last
        else:
            to = next_month(last)
        paid[subscription, price] = to, later(to, grace * DAY_S)[:-5] + ".000Z"
        self._fold(user, subscription)

    @rule(user=USER, subscription=st.sampled_from(["sub_1", "sub_2"]))
    def refund(self, user: str, subscription: str) -> None:
        paid = self.model.paid[user]
        for key in [key for key in paid if key[0] == subscription]:
            del paid[key]
        self._fold(user, subscription)

    def _fold(self, user: str, subscription: str) -> None:
        said = self.model.paid[user].items()
        paid = {price: Paid(to, to, until) for (of, price), (to, until) in said if of == subscription}
        plans.set_from_subscription(self.db, self.plans, user, subscription, paid, self.clock.now())

    @rule(user=USER, set_by=st.sampled_from(["operator", "user"]), cents=st.none() | st.integers(0, 6))
    def cap(self, user: str, set_by: str, cents: int | None) -> None:
        plans.set_cap(self.db, user, set_by, cents, self.clock.now())
        self.model.caps.pop((user, set_by), None)
        if cents is not None:
            self.model.caps[user, set_by] = cents

    @rule(user=USER, cents=st.integers(1, 5))
    def top_up(self, user: str, cents: int) -> None:
        self.count += 1
        ledger.post(self.db, self.credits[user], "topup", str(self.count), cents, self.clock.now())
        self.model.topped_up[user] += cents

    # --- reporting ---

    @rule()
    def report(self) -> None:
        self.clock.seconds += 1
        try:
            run(self.meter.turn())
        except Crash:
            self.die()

    @rule(
        faults=st.lists(st.sampled_from(["fine", "lost", "lost after", "503", "503 after", "crash after"]), max_size=3)
    )
    def fail(self, faults: list[str]) -> None:
        self.wire.faults["webhook"] += faults

    @rule(writes=st.integers(0, 4), durable=st.booleans())
    def die_while_reporting(self, writes: int, durable: bool) -> None:
        self.books.dies_at = (writes, durable)

    # --- what must be so ---

    @invariant()
    def the_books_add_up_and_nothing_is_below_zero(self) -> None:
        assert ledger.check(self.db, full=True).wrong == []
        rows = self.db.execute("SELECT balance, balance * grain + carry - held FROM accounts").fetchall()
        assert all(balance >= 0 and available >= 0 for balance, available in rows)

    @invariant()
    def nobody_has_used_more_than_was_ever_granted_for_a_period(self) -> None:
        for (_, payer, _), grant in self.model.grants.items():
            assert payer == "credits" or grant.used <= grant.most

    @invariant()
    def what_is_shown_is_what_is_left(self) -> None:
        now = self.clock.now()
        for user in USERS:
            member = plans.of_user(self.db, self.plans, user, now)
            plan, period, ends = self.model.plan(user, now)
            assert (member.plan.name, member.period.ends_at) == (plan, ends)
            grant = self.model.grants[user, "allowance", period]
            shown = allowance.shown(self.db, member, user)
            assert (shown["used"], shown["held"]) == (grant.used, grant.held)
            assert shown["remaining"] == max(0, TOKENS[plan] - grant.used - grant.held)

    @invariant()
    def every_request_is_paid_once_from_one_account(self) -> None:
        rows = self.db.execute(
            f"SELECT id, {PAYER}, input_tokens + output_tokens FROM usage_log WHERE status = 'settled'"
        )
        assert {id: (payer, tokens) for id, payer, tokens in rows} == self.model.settled

    def teardown(self) -> None:
        self.wire.faults["webhook"].clear()
        self.die()
        for _ in range(100):
            self.clock.seconds += 400
            self.report()
        told = Counter(event["id"] for event in self.hook.events())
        assert not told or max(told.values()) == 1
        got = {event["id"]: (event["payer"], event["total_tokens"]) for event in self.hook.events()}
        assert got == self.model.settled
        self.db.close()


TestPlansMachine = PlansMachine.TestCase
TestPlansMachine.settings = MACHINE
