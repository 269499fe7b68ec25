"""Plans: what each of them allows, who has which, and for which period its tokens are given.

A plan is data: the table below, changed by the operator's `plans.toml`. Who has which is what *sources* have said: the
operator, a subscription, the sign-in service. Each says a plan and until when, and nothing else is kept. Of all that
is in force the greatest counts, and where nothing is, it is `free`. So an upgrade counts at once; a downgrade is
a smaller plan said beside a greater one that has an end: the end of its period. A subscription's own period goes on
until the next one is paid for, so that nothing is given before that.
"""

from __future__ import annotations

import re
import tomllib
from calendar import monthrange
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from goosestack import clock
from goosestack.store import Tx

FREE = "free"
"""The plan of whoever has no other."""

OPERATOR, SIGN_IN = "operator", "supabase"
"""Who says which plan a user has; a subscription says it under its own id."""

USER = "user"
"""Who sets a cap on spending, beside the operator."""

MOST_TOKENS = 100_000_000_000
MOST_CENTS = 100_000_000
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MODELS = re.compile(r"[A-Za-z0-9._:/*-]{1,200}")
_PRICE = re.compile(r"price_[A-Za-z0-9]{1,100}")


class PlanError(Exception):
    """`plans.toml`, or what somebody asked for, is wrong; the text says where."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a plan allows in each of its periods."""

    name: str
    tokens: int
    """Input and output tokens of a period."""
    models: tuple[str, ...] = ("*",)
    """The models that it pays for; `*` stands for any text."""
    requests_per_minute: int | None = None
    """Of one user, by all of their keys; None for what the settings say."""
    in_flight: int | None = None
    """Of one user at once; None for what the settings say."""
    overage_cents: int = 0
    """What may be used beyond the tokens; 0 for nothing."""
    stripe_prices: tuple[str, ...] = ()
    """The prices (`price_`) whose subscriptions give it."""

    def includes(self, model: str) -> bool:
        """Whether it pays for a model, by the book's name of it."""
        return any(matches(pattern, model) for pattern in self.models)


def matches(pattern: str, model: str) -> bool:
    """Whether a model is meant by a pattern, in which `*` stands for any text."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), model) is not None


DEFAULTS = (
    Plan(FREE, 100_000),
    Plan("basic", 500_000),
    Plan("pro", 2_000_000),
    Plan("enterprise", 10_000_000),
)


@dataclass(frozen=True, slots=True)
class Plans:
    """The plans that there are, the least first: by their tokens, then as they were written down."""

    by_name: Mapping[str, Plan] = field(default_factory=lambda: {plan.name: plan for plan in DEFAULTS})
    customers_only: bool = False
    """Whether what is used beyond them is billed to Stripe's customers, and to nobody else."""

    def rank(self, name: str) -> int:
        """Its place: a greater plan has a greater one."""
        return list(self.by_name).index(name)

    def find(self, name: str) -> Plan:
        """Raises PlanError where there is none."""
        plan = self.by_name.get(name)
        if plan is None:
            raise PlanError(f"there is no plan {name}; there are {', '.join(self.by_name)}")
        return plan

    @property
    def limiting(self) -> bool:
        """Whether any of them says how often, or how many at once."""
        return any(plan.requests_per_minute or plan.in_flight for plan in self.by_name.values())

    @property
    def prices(self) -> frozenset[str]:
        """The prices of Stripe's that give a plan."""
        return frozenset(price for plan in self.by_name.values() for price in plan.stripe_prices)

    def gives(self, price: str) -> str:
        """The plan that one of `prices` gives."""
        return next(plan.name for plan in self.by_name.values() if price in plan.stripe_prices)

    def heard(self, said: object, strange: Callable[[str], None]) -> str | None:
        """The greatest plan that a sign-in service names, by a text or a list of them; None for none but the free
        one. `strange` is told of a name that is no plan's."""
        names = said if isinstance(said, list) else [said]
        best = None
        for name in names:
            if type(name) is not str:
                continue
            if name not in self.by_name:
                strange(name[:64])
            elif name != FREE and (best is None or self.rank(name) > self.rank(best)):
                best = name
        return best


class Once:
    """Tells every sentence once in the life of the process, and a hundred at most."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._told = tell, set[str]()

    def __call__(self, sentence: str) -> None:
        """Tell it, unless that was done."""
        if sentence not in self._told and len(self._told) < 100:
            self._told.add(sentence)
            self._tell(sentence)


# --- plans.toml -----------------------------------------------------------------------------------------------


def load(text: str) -> Plans:
    """The plans, by the operator's `plans.toml`: what it does not say of a plan is as in the default table, and a plan
    that is not there must say its tokens. Raises PlanError, naming the place."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plans.toml: {error}") from error
    except RecursionError:
        raise PlanError("plans.toml: it is nested too deeply") from None
    found = {plan.name: plan for plan in DEFAULTS}
    for name, table in tables.items():
        if _NAME.fullmatch(name) is None or not isinstance(table, dict):
            raise PlanError(f"plans.toml: {name!r} must be a table, named by small letters, digits, - and _")
        known = found.get(name)
        if known is None and "tokens_per_month" not in table:
            raise PlanError(f"plans.toml: {name} must say its tokens_per_month")
        found[name] = _read(Plan(name, 0) if known is None else known, table)
    sold: dict[str, str] = {}
    for plan in found.values():
        for price in plan.stripe_prices:
            if (other := sold.setdefault(price, plan.name)) != plan.name:
                raise PlanError(f"plans.toml: {price} gives both {other} and {plan.name}")
    return Plans({plan.name: plan for plan in sorted(found.values(), key=lambda plan: plan.tokens)})


def _read(plan: Plan, table: Mapping[str, Any]) -> Plan:
    where = f"plans.toml: {plan.name}"
    changes: dict[str, Any] = {}
    for key, value in table.items():
        match key:
            case "tokens_per_month":
                changes["tokens"] = _whole(where, key, value, 0, MOST_TOKENS)
            case "models":
                changes[key] = _texts(where, key, value, _MODELS, "names of models, in which * stands for any text")
            case "requests_per_minute":
                changes[key] = _whole(where, key, value, 1, 1_000_000_000)
            case "in_flight":
                changes[key] = _whole(where, key, value, 1, 100_000)
            case "overage_cents":
                changes[key] = _whole(where, key, value, 0, MOST_CENTS)
            case "stripe_prices":
                changes[key] = _texts(where, key, value, _PRICE, "ids of prices, as price_1A2b")
            case _:
                raise PlanError(f"{where}: unknown key {key}")
    if changes.get("models") == ():
        raise PlanError(f"{where}: models must name at least one; without this line, it has all of them")
    if plan.name == FREE and changes.get("stripe_prices"):
        raise PlanError(f"{where} is what nobody pays for: it cannot have stripe_prices")
    return replace(plan, **changes)


def _whole(where: str, key: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise PlanError(f"{where}: {key} must be a whole number from {least} to {most}")
    return value


def _texts(where: str, key: str, value: object, shape: re.Pattern[str], what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(type(each) is str and shape.fullmatch(each) for each in value):
        raise PlanError(f"{where}: {key} must be a list of {what}")
    return tuple(value)


# --- periods --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Period:
    """The time for which a plan's tokens are given once."""

    ref: str
    """Names it, among all of a user's periods."""
    ends_at: str


def month(now: str) -> Period:
    """The month (UTC) that a time is in."""
    moment = datetime.fromisoformat(now).astimezone(UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return Period(f"{moment:%Y-%m}", clock.at(_months_later(midnight, 1, day=1)))


@dataclass(frozen=True, slots=True)
class Paid:
    """What a subscription has paid for at a price."""

    since: str
    to: str
    """The period that was paid last, a month or more; its months end on the later of its two days."""
    until: str
    """Until when it counts: a little longer than it is paid for while the next payment is expected, or less."""


def own_period(paid: Paid, now: str) -> Period:
    """The month that a time is in, of what is paid for: months are counted back from its end, so that paying on, or
    more for the rest of one, does not begin another. Until the next is paid for, the last one goes on."""
    end, moment = datetime.fromisoformat(paid.to), datetime.fromisoformat(now)
    if end <= moment:
        return Period(clock.at(end), paid.until)
    day = max(datetime.fromisoformat(paid.since).day, end.day)  # of those from the 31st, one may end on the 30th
    back = (end.year - moment.year) * 12 + end.month - moment.month + 1
    while (ends := _months_later(end, -back, day)) <= moment:
        back -= 1
    return Period(clock.at(ends), clock.at(ends))


def _months_later(moment: datetime, months: int, day: int) -> datetime:
    """So many months later, on a day, or on the month's last where it has none such."""
    year, month0 = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(day, monthrange(year, month0 + 1)[1])
    return moment.replace(year=year, month=month0 + 1, day=day)


# --- who has which --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Membership:
    """The plan that a user has at some time, and the period that this time is in."""

    plan: Plan
    period: Period
    source: str | None = None
    """Who says so; None for the free plan of everybody."""
    until: str | None = None
    """Until when it is said; None for good."""
    overage_cents: int = 0
    """What the user may use in the period beyond the plan's tokens."""
    billable: bool = True
    """Whether somebody can be sent an invoice for that."""


def of_user(tx: Tx, plans: Plans, user_id: str, now: str) -> Membership:
    """The greatest plan that is in force for a user."""
    rows = tx.execute(
        "SELECT plan, source, until, paid_since, paid_to FROM user_plans"
        " WHERE user_id = ? AND (until IS NULL OR until > ?)",
        (user_id, now),
    ).fetchall()
    found = [_Said(*row) for row in rows if row[0] in plans.by_name]
    said = max((_Said(FREE), *found), key=lambda said: (plans.rank(said.plan), *said.weight))
    plan = plans.by_name[said.plan]
    billable = not plans.customers_only or _is_customer(tx, user_id)
    return Membership(plan, said.period(now), said.source, said.until, _overage(tx, plan, user_id), billable)


@dataclass(frozen=True, slots=True)
class _Said:
    """A plan that a user has been given; see the table."""

    plan: str
    source: str | None = None
    until: str | None = None
    paid_since: str | None = None
    paid_to: str | None = None

    @property
    def weight(self) -> tuple[bool, bool, str, str]:
        """Of two that give the same plan, the heavier counts: what is paid for, then the longer one."""
        return self.source is not None, self.paid_to is not None, self.until or "~", self.source or ""

    def period(self, now: str) -> Period:
        """The period that a time is in."""
        if self.paid_since is None or self.paid_to is None or self.until is None:
            return month(now)
        return own_period(Paid(self.paid_since, self.paid_to, self.until), now)


def _is_customer(tx: Tx, user_id: str) -> bool:
    row = tx.execute("SELECT 1 FROM users WHERE id = ? AND stripe_customer_id IS NOT NULL", (user_id,)).fetchone()
    return row is not None


def _overage(tx: Tx, plan: Plan, user_id: str) -> int:
    caps = dict(tx.execute("SELECT set_by, cents FROM spending_caps WHERE user_id = ?", (user_id,)).fetchall())
    most = caps.get(OPERATOR, plan.overage_cents)
    return int(min(most, caps.get(USER, most)))


def assign(tx: Tx, user_id: str, plan: str, until: str | None, now: str) -> None:
    """The operator gives a user a plan, until a time or for good. Another that they gave before ends with the month."""
    ends = month(now).ends_at
    tx.execute(
        "UPDATE user_plans SET until = ?, updated_at = ?"
        " WHERE user_id = ? AND source = ? AND plan <> ? AND (until IS NULL OR until > ?)",
        (ends, now, user_id, OPERATOR, plan, ends),
    )
    _say(tx, user_id, OPERATOR, plan, until, now)


def sign_in_said(tx: Tx, user_id: str, plan: str, until: str, now: str) -> None:
    """The sign-in service says that a user has a plan: it stands at least `until` then, however often it is said."""
    if not stands(tx, user_id, plan, until):
        _say(tx, user_id, SIGN_IN, plan, until, now)


def stands(tx: Tx, user_id: str, plan: str, until: str) -> bool:
    """Whether the sign-in service has said a plan until then already."""
    row = tx.execute(
        "SELECT 1 FROM user_plans WHERE user_id = ? AND source = ? AND plan = ? AND until >= ?",
        (user_id, SIGN_IN, plan, until),
    ).fetchone()
    return row is not None


def set_from_subscription(
    tx: Tx, plans: Plans, user_id: str, subscription: str, paid: Mapping[str, Paid], now: str
) -> list[str]:
    """A subscription was folded anew: what it has paid for at each of `plans.prices` where it has. What it said before,
    and says no more, is taken back, whatever plans there are now. Answers what has changed."""
    said: dict[str, Paid] = {}
    for plan in plans.by_name.values():
        if at := [paid[price] for price in plan.stripe_prices if price in paid]:
            said[plan.name] = max(at, key=lambda paid: (paid.until, paid.to, paid.since))
    before = _paid_by(tx, user_id, subscription)
    if said == before:
        return []
    tx.execute("DELETE FROM user_plans WHERE user_id = ? AND source = ?", (user_id, subscription))
    for name, each in said.items():
        _say(tx, user_id, subscription, name, each.until, now, each)
    changed = [f"{name} until {each.until}" for name, each in said.items() if before.get(name) != each]
    return [*changed, *(f"no {name}" for name in before if name not in said)]


def _paid_by(tx: Tx, user_id: str, subscription: str) -> dict[str, Paid]:
    rows = tx.execute(
        "SELECT plan, paid_since, paid_to, until FROM user_plans WHERE user_id = ? AND source = ? ORDER BY plan",
        (user_id, subscription),
    )
    return {plan: Paid(since, to, until) for plan, since, to, until in rows}


def _say(tx: Tx, user_id: str, source: str, plan: str, until: str | None, now: str, paid: Paid | None = None) -> None:
    since, to = (None, None) if paid is None else (paid.since, paid.to)
    tx.execute(
        "INSERT INTO user_plans (user_id, source, plan, until, paid_since, paid_to, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, source, plan)"
        " DO UPDATE SET until = excluded.until, updated_at = excluded.updated_at",
        (user_id, source, plan, until, since, to, now),
    )


def set_cap(tx: Tx, user_id: str, set_by: str, cents: int | None, now: str) -> None:
    """What a user may spend in a period beyond their plan, as the operator or the user says; None for what the plan
    says. A user cannot have more than the operator lets them. What is spent is spent: a cap below it ends spending."""
    if cents is None:
        tx.execute("DELETE FROM spending_caps WHERE user_id = ? AND set_by = ?", (user_id, set_by))
    elif 0 <= cents <= MOST_CENTS:
        tx.execute(
            "INSERT INTO spending_caps (user_id, set_by, cents, updated_at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (user_id, set_by) DO UPDATE SET cents = excluded.cents, updated_at = excluded.updated_at",
            (user_id, set_by, cents, now),
        )
    else:
        raise PlanError(f"a cap must be from 0 to {MOST_CENTS} cents")


def unknown(tx: Tx, plans: Plans, now: str) -> dict[str, int]:
    """Plans that somebody has and that there are none of, and how many users: they are on lesser ones."""
    rows = tx.execute(
        "SELECT plan, count(DISTINCT user_id) FROM user_plans WHERE until IS NULL OR until > ?"
        " GROUP BY plan ORDER BY plan",
        (now,),
    )
    return {plan: users for plan, users in rows if plan not in plans.by_name}
