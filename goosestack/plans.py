"""Plans: what each of them allows, who has which, and for which period its tokens are given.

A plan is data: the table below, changed by the operator's `plans.toml`. Who has which is what *sources* have said: the
operator, a subscription, the sign-in service. Each says a plan and until when, and nothing else is kept. Of all that
is in force the greatest counts, and where nothing is, it is `free`. So an upgrade counts at once; a downgrade is
a smaller plan said beside a greater one that has an end: the end of its period.
"""

from __future__ import annotations

import re
import tomllib
from calendar import monthrange
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

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


# --- plans.toml -----------------------------------------------------------------------------------------------


def load(text: str) -> Plans:
    """The plans, by the operator's `plans.toml`: what it does not say of a plan is as in the default table, and a plan
    that is not there must say its tokens. Raises PlanError, naming the place."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plans.toml: {error}") from error
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
    return Period(f"{moment:%Y-%m}", _iso(_months_later(moment.replace(day=1, hour=0, minute=0, second=0), 1)))


def own_period(until: str, now: str) -> Period:
    """The month that a time is in, of what is paid for `until` later: months are counted back from there, so that
    paying on, or more for the rest of one, does not begin another."""
    end, moment = datetime.fromisoformat(until), datetime.fromisoformat(now)
    back = (end.year - moment.year) * 12 + end.month - moment.month + 1
    while (ends := _months_later(end, -back)) <= moment:
        back -= 1
    return Period(_iso(ends), _iso(ends))


def _months_later(moment: datetime, months: int) -> datetime:
    """So many months later, on the same day, or on the month's last where it has none such."""
    year, month0 = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, monthrange(year, month0 + 1)[1])
    return moment.replace(year=year, month=month0 + 1, day=day)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


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


def of_user(tx: Tx, plans: Plans, user_id: str, now: str) -> Membership:
    """The greatest plan that is in force for a user."""
    rows = tx.execute(
        "SELECT plan, source, until, own_period FROM user_plans WHERE user_id = ? AND (until IS NULL OR until > ?)",
        (user_id, now),
    ).fetchall()
    known = [row for row in rows if row[0] in plans.by_name]
    if not known:
        free = plans.by_name[FREE]
        return Membership(free, month(now), overage_cents=_overage(tx, free, user_id))
    name, source, until, own = max(known, key=lambda row: (plans.rank(row[0]), row[3], row[2] or "~", row[1]))
    plan, period = plans.by_name[name], own_period(until, now) if own else month(now)
    return Membership(plan, period, source, until, _overage(tx, plan, user_id))


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
    tx: Tx, plans: Plans, user_id: str, subscription: str, paid: Mapping[str, str | None], now: str
) -> None:
    """A subscription was folded anew: until when it is paid for at each of `plans.prices`; None, or none, for a price
    at which nothing is. What it said before, and says no more, is taken back. Its plans have its own periods."""
    for plan in plans.by_name.values():
        until = max((at for price in plan.stripe_prices if (at := paid.get(price)) is not None), default=None)
        if until is not None:
            _say(tx, user_id, subscription, plan.name, until, now, own_period=1)
        else:
            tx.execute(
                "DELETE FROM user_plans WHERE user_id = ? AND source = ? AND plan = ?",
                (user_id, subscription, plan.name),
            )


def _say(tx: Tx, user_id: str, source: str, plan: str, until: str | None, now: str, own_period: int = 0) -> None:
    tx.execute(
        "INSERT INTO user_plans (user_id, source, plan, until, own_period, updated_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (user_id, source, plan) DO UPDATE SET until = excluded.until, updated_at = excluded.updated_at",
        (user_id, source, plan, until, own_period, now),
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


def unknown(tx: Tx, plans: Plans, now: str) -> list[str]:
    """Plans that somebody has and that there are none of: whoever has one is on a lesser one."""
    rows = tx.execute("SELECT DISTINCT plan FROM user_plans WHERE until IS NULL OR until > ? ORDER BY plan", (now,))
    return [plan for (plan,) in rows if plan not in plans.by_name]
