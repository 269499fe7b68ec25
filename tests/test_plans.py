"""Plans as data: what `plans.toml` may say, when periods end, and which of the plans that a user was given counts."""

from __future__ import annotations

import sqlite3
from calendar import monthrange
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from goosestack import plans
from goosestack.config import load
from goosestack.errors import Refusal
from goosestack.plans import Paid, PlanError, Plans
from goosestack.store.migrations import MIGRATIONS
from tests.test_serve import refusal

NOW, NEXT_MONTH = "2026-11-21T12:00:00.000Z", "2026-12-01T00:00:00.000Z"
SOLD = plans.load(
    '[basic]\nstripe_prices = ["price_basic", "price_basicYearly"]\n[pro]\nstripe_prices = ["price_pro"]\n'
)


@pytest.fixture
def books() -> Iterator[sqlite3.Connection]:
    """A database with Carol in it, who was given nothing."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for step in MIGRATIONS:
        db.executescript(step)
    db.execute("INSERT INTO users (id, email, created_at) VALUES ('carol', 'carol@example.com', ?)", (NOW,))
    yield db
    db.close()


def plan_of(books: sqlite3.Connection, now: str = NOW) -> str:
    return plans.of_user(books, SOLD, "carol", now).plan.name


def paid(**to: str) -> dict[str, Paid]:
    """What a subscription has paid for at each price, until when."""
    return {price: Paid(end, end, end) for price, end in to.items()}


def period_of(books: sqlite3.Connection, now: str = NOW) -> str:
    return plans.of_user(books, SOLD, "carol", now).period.ends_at


# --- plans.toml -----------------------------------------------------------------------------------------------


def test_there_are_four_plans() -> None:
    assert {name: plan.tokens for name, plan in Plans().by_name.items()} == {
        "free": 100_000,
        "basic": 500_000,
        "pro": 2_000_000,
        "enterprise": 10_000_000,
    }
    assert plans.load("") == Plans()


def test_the_file_changes_a_plan_and_adds_others_in_their_place() -> None:
    found = plans.load(
        '[pro]\noverage_cents = 500\nmodels = ["gpt-5*", "claude-haiku-4-5"]\n'
        "[team]\ntokens_per_month = 1_000_000\nrequests_per_minute = 300\nin_flight = 20\n"
    )
    assert list(found.by_name) == ["free", "basic", "team", "pro", "enterprise"]
    pro, team = found.by_name["pro"], found.by_name["team"]
    assert (pro.tokens, pro.overage_cents) == (2_000_000, 500)
    assert (team.requests_per_minute, team.in_flight, team.models) == (300, 20, ("*",))
    included = [
        name for name in ("gpt-5.5", "claude-haiku-4-5", "claude-haiku-4-5-x", "gpt-6-sol") if pro.includes(name)
    ]
    assert included == ["gpt-5.5", "claude-haiku-4-5"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[pro", "plans.toml: "),
        (f"pro = {'[' * 5_000}", "plans.toml: it is nested too deeply"),
        ("pro = 5", "plans.toml: 'pro' must be a table"),
        ("[Pro]", "plans.toml: 'Pro' must be a table, named by small letters, digits, - and _"),
        ("[team]", "plans.toml: team must say its tokens_per_month"),
        ("[pro]\ntokens = 5", "plans.toml: pro: unknown key tokens"),
        ("[pro]\ntokens_per_month = -1", "plans.toml: pro: tokens_per_month must be a whole number from 0 to"),
        ("[pro]\ntokens_per_month = 1.5", "must be a whole number"),
        ("[pro]\ntokens_per_month = true", "must be a whole number"),
        ("[pro]\nin_flight = 0", "plans.toml: pro: in_flight must be a whole number from 1 to 100000"),
        ("[pro]\nrequests_per_minute = 0", "requests_per_minute must be a whole number from 1"),
        ("[pro]\noverage_cents = -5", "overage_cents must be a whole number from 0"),
        ('[pro]\nmodels = "gpt-5.5"', "plans.toml: pro: models must be a list of names of models"),
        ('[pro]\nmodels = ["gpt 4o"]', "models must be a list"),
        ("[pro]\nmodels = []", "plans.toml: pro: models must name at least one; without this line, it has all of them"),
        ('[pro]\nstripe_prices = ["prod_1"]', "stripe_prices must be a list of ids of prices, as price_1A2b"),
        ('[free]\nstripe_prices = ["price_1"]', "plans.toml: free is what nobody pays for"),
        (
            '[basic]\nstripe_prices = ["price_1"]\n[pro]\nstripe_prices = ["price_1"]',
            "plans.toml: price_1 gives both basic and pro",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(PlanError) as error:
        plans.load(text)
    assert told in str(error.value)


def test_no_start_on_plans_that_make_no_sense(folder: Path) -> None:
    (folder / "plans.toml").write_text("[pro]\ntokens = 5\n")
    assert refusal(folder, {}) == "plans.toml: pro: unknown key tokens"
    (folder / "plans.toml").write_text('[pro]\nmodels = ["gpt5*"]\n')
    assert refusal(folder, {}) == "plans.toml: pro: gpt5* is no model that has a price"
    (folder / "plans.toml").unlink()
    named = {"PLANS_FILE": str(folder / "other.toml")}
    assert refusal(folder, named).startswith(f"{folder / 'other.toml'} cannot be read: ")


def test_a_list_of_payers_may_end_with_a_comma(folder: Path) -> None:
    assert load({"FUNDING": "allowance,"}, folder).funding == ("allowance",)


def test_no_start_where_overage_alone_would_pay(folder: Path) -> None:
    told = "FUNDING must name allowance or credits beside overage, which nobody has whose cap is 0"
    assert refusal(folder, {"FUNDING": "overage"}) == told


@pytest.mark.parametrize("value", ["gifts", "credits,credits", ",", "credits allowance", "Credits"])
def test_no_start_on_payers_that_there_are_none_of_or_twice(folder: Path, value: str) -> None:
    with pytest.raises(Refusal, match=r"^FUNDING must (list, each once, some of|name at least one of) credits, allow"):
        load({"FUNDING": value}, folder)


@pytest.mark.parametrize(
    "value",
    "claim:user_metadata.plan claim:user_metadata.role claim:plan claim:app_metadata claim:email claim: table:x"
    " table:a.b.c table:a.B stripe".split(),
)
def test_no_start_on_a_source_that_users_could_write_to_or_that_is_none(folder: Path, value: str) -> None:
    with pytest.raises(Refusal, match=r"^PLAN_SOURCE must "):
        load({"PLAN_SOURCE": value}, folder)


def test_a_source_of_the_project_needs_the_project(folder: Path) -> None:
    url = {"SUPABASE_URL": "https://x.supabase.co"}
    told = refusal(folder, {"PLAN_SOURCE": "claim:app_metadata.plan"})
    assert told == "PLAN_SOURCE=claim:app_metadata.plan needs SUPABASE_URL, which says whose users are meant"
    told = refusal(folder, url | {"PLAN_SOURCE": "table:profiles.plan"})
    assert told == "PLAN_SOURCE=table:profiles.plan needs SUPABASE_SERVICE_KEY, which the table is read with"


def test_a_sentence_is_told_once() -> None:
    told: list[str] = []
    tell = plans.Once(told.append)
    for number in range(300):
        tell("gold")
        tell(f"gold{number}")
    assert told == ["gold", *(f"gold{number}" for number in range(99))]


# --- periods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "ref", "ends"),
    [
        (NOW, "2026-11", NEXT_MONTH),
        ("2026-12-31T23:59:59.999Z", "2026-12", "2027-01-01T00:00:00.000Z"),
        ("2026-12-01T00:00:00.000Z", "2026-12", "2027-01-01T00:00:00.000Z"),
    ],
)
def test_a_period_is_the_month_in_utc(now: str, ref: str, ends: str) -> None:
    assert plans.month(now) == plans.Period(ref, ends)


@pytest.mark.parametrize(
    ("since", "to", "now", "ends"),
    [
        ("2026-11-14", "2026-12-14", "2026-11-14", "2026-12-14"),
        ("2026-12-14", "2027-01-14", "2026-12-13", "2026-12-14"),  # paid on early
        ("2026-11-14", "2027-11-14", "2026-11-21", "2026-12-14"),  # a year
        ("2026-01-31", "2027-01-31", "2026-11-30", "2026-12-31"),
        ("2026-01-31", "2027-01-31", "2026-11-29", "2026-11-30"),
        ("2027-03-31", "2027-04-30", "2027-03-30", "2027-03-31"),  # on the 31st, or what there is of it
        ("2027-02-28", "2027-03-31", "2027-02-27", "2027-02-28"),
        ("2031-02-28", "2032-02-29", "2031-03-28", "2031-03-29"),  # a year on the 29th
        ("2027-01-30", "2027-02-28", "2027-01-29", "2027-01-30"),
    ],
)
def test_a_subscriptions_period_is_a_month_back_from_where_it_is_paid_to(
    since: str, to: str, now: str, ends: str
) -> None:
    paid = Paid(*(f"{day}T10:00:00.000Z" for day in (since, to, to)))
    assert plans.own_period(paid, f"{now}T10:00:00.000Z").ends_at == f"{ends}T10:00:00.000Z"


@pytest.mark.parametrize("day", range(1, 32))
def test_a_period_keeps_its_name_and_its_end_however_far_it_is_paid_on(day: int) -> None:
    """Month after month from a day, as Stripe counts them; each as it is paid for, and as the next one is."""
    ends = [f"2027-{month:02}-{min(day, monthrange(2027, month)[1]):02}T10:00:00.000Z" for month in range(1, 13)]
    for since, to, later in zip(ends, ends[1:], ends[2:], strict=False):
        within = f"{since[:11]}11:00:00.000Z"
        expected = plans.Period(to, to)
        assert plans.own_period(Paid(since, to, to), within) == expected
        assert plans.own_period(Paid(to, later, later), within) == expected


def test_the_last_period_goes_on_until_the_next_is_paid_for() -> None:
    paid = Paid("2026-11-14T10:00:00.000Z", "2026-12-14T10:00:00.000Z", "2026-12-14T13:00:00.000Z")
    assert plans.own_period(paid, "2026-12-14T10:30:00.000Z") == plans.Period(paid.to, paid.until)
    assert plans.own_period(paid, "2026-12-14T09:30:00.000Z") == plans.Period(paid.to, paid.to)


# --- who has which --------------------------------------------------------------------------------------------


def test_whoever_was_given_nothing_is_on_the_free_plan(books: sqlite3.Connection) -> None:
    member = plans.of_user(books, SOLD, "carol", NOW)
    assert (member.plan.name, member.period.ref, member.source, member.overage_cents) == ("free", "2026-11", None, 0)


def test_a_plan_lapses_to_the_free_one(books: sqlite3.Connection) -> None:
    plans.assign(books, "carol", "pro", "2026-11-25T00:00:00.000Z", NOW)
    assert plan_of(books) == "pro"
    assert plan_of(books, "2026-11-25T00:00:00.000Z") == "free"


def test_an_upgrade_counts_at_once_and_a_downgrade_once_the_month_is_over(books: sqlite3.Connection) -> None:
    plans.assign(books, "carol", "basic", None, NOW)
    plans.assign(books, "carol", "pro", None, NOW)
    assert plan_of(books) == "pro"
    plans.assign(books, "carol", "basic", None, NOW)
    assert (plan_of(books), plan_of(books, NEXT_MONTH)) == ("pro", "basic")
    plans.assign(books, "carol", "free", None, NEXT_MONTH)
    assert plan_of(books, "2026-12-31T23:59:59.999Z") == "basic"
    assert plan_of(books, "2027-01-01T00:00:00.000Z") == "free"


def test_a_subscription_gives_the_plan_of_its_price_for_its_own_periods(books: sqlite3.Connection) -> None:
    def folded(**to: str) -> list[str]:
        return plans.set_from_subscription(books, SOLD, "carol", "sub_1", paid(**to), NOW)

    folded(price_basic="2026-12-14T10:00:00.000Z", price_other="2030-01-01T00:00:00.000Z")
    assert (plan_of(books), period_of(books)) == ("basic", "2026-12-14T10:00:00.000Z")
    folded(price_basic="2026-12-14T10:00:00.000Z", price_pro="2026-12-14T10:00:00.000Z")  # paid for a greater one
    assert (plan_of(books), period_of(books)) == ("pro", "2026-12-14T10:00:00.000Z")
    folded(
        price_basic="2027-01-14T10:00:00.000Z", price_pro="2026-12-14T10:00:00.000Z"
    )  # the next month is a lesser one
    assert (plan_of(books), plan_of(books, "2026-12-14T10:00:00.000Z")) == ("pro", "basic")
    assert folded() == ["no basic", "no pro"]  # all of it was paid back
    assert (plan_of(books), period_of(books)) == ("free", NEXT_MONTH)


def test_one_subscription_takes_nothing_from_another(books: sqlite3.Connection) -> None:
    for subscription in ("sub_1", "sub_2"):
        to = "2026-12-14T10:00:00.000Z"
        plans.set_from_subscription(books, SOLD, "carol", subscription, paid(price_pro=to), NOW)
    plans.set_from_subscription(books, SOLD, "carol", "sub_1", {}, NOW)
    assert plan_of(books) == "pro"


def test_a_plan_that_a_subscription_no_longer_pays_for_is_taken_back_also_while_there_is_no_such_plan(
    books: sqlite3.Connection,
) -> None:
    def folded(table: Plans, **to: str) -> list[str]:
        return plans.set_from_subscription(books, table, "carol", "sub_1", paid(**to), NOW)

    end = "2026-12-14T10:00:00.000Z"
    assert folded(SOLD, price_pro=end) == [f"pro until {end}"]
    assert folded(SOLD, price_pro=end) == []
    without = Plans({name: plan for name, plan in SOLD.by_name.items() if name != "pro"})
    assert folded(without) == ["no pro"]
    assert plan_of(books) == "free", "though the plan is back"


def test_a_plan_with_fewer_tokens_than_the_free_one_takes_nothing_from_anybody(books: sqlite3.Connection) -> None:
    table = plans.load("[tiny]\ntokens_per_month = 5\n")
    plans.assign(books, "carol", "tiny", None, NOW)
    assert plans.of_user(books, table, "carol", NOW).plan.name == "free"


def test_an_assignment_takes_nothing_from_what_is_paid_for(books: sqlite3.Connection) -> None:
    plans.set_from_subscription(books, SOLD, "carol", "sub_1", paid(price_pro="2027-11-14T10:00:00.000Z"), NOW)
    plans.assign(books, "carol", "basic", None, NOW)
    assert plan_of(books, "2027-06-01T00:00:00.000Z") == "pro"


def test_a_plan_that_there_is_none_of_any_more_gives_nothing_and_is_told(books: sqlite3.Connection) -> None:
    plans.assign(books, "carol", "gold", None, NOW)
    assert plan_of(books) == "free"
    assert plans.unknown(books, SOLD, NOW) == {"gold": 1}
    assert plans.unknown(books, plans.load("[gold]\ntokens_per_month = 5\n"), NOW) == {}


def test_a_user_lowers_their_cap_and_never_raises_it_above_the_operators(books: sqlite3.Connection) -> None:
    def cap() -> int:
        return plans.of_user(books, SOLD, "carol", NOW).overage_cents

    plans.set_cap(books, "carol", plans.USER, 900, NOW)
    assert cap() == 0
    plans.set_cap(books, "carol", plans.OPERATOR, 500, NOW)
    assert cap() == 500
    plans.set_cap(books, "carol", plans.USER, 200, NOW)
    assert cap() == 200
    plans.set_cap(books, "carol", plans.USER, None, NOW)
    assert cap() == 500
    with pytest.raises(PlanError, match="from 0 to"):
        plans.set_cap(books, "carol", plans.OPERATOR, -1, NOW)


def test_what_was_said_before_periods_were_kept_is_said_still() -> None:
    (change,) = (number for number, step in enumerate(MIGRATIONS) if "CREATE TABLE new_user_plans" in step)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for step in MIGRATIONS[:change]:
            db.executescript(step)
        db.execute("INSERT INTO users (id, email, created_at) VALUES ('carol', 'carol@example.com', ?)", (NOW,))
        rows = [("operator", "basic", None, 0), ("sub_1", "pro", "2026-12-14T10:00:00.000Z", 1)]
        db.executemany("INSERT INTO user_plans VALUES ('carol', ?, ?, ?, ?, 'x')", rows)
        for step in MIGRATIONS[change:]:
            db.executescript(step)
        member = plans.of_user(db, SOLD, "carol", NOW)
        assert (member.plan.name, member.period.ends_at) == ("pro", "2026-12-14T10:00:00.000Z")
        later = plans.of_user(db, SOLD, "carol", "2026-12-14T10:00:00.000Z")
        assert (later.plan.name, later.period.ref) == ("basic", "2026-12")


def test_pro_as_in_bring_your_own_key_is_no_plan(books: sqlite3.Connection) -> None:
    books.execute("UPDATE users SET pro_until = '2999-01-01T00:00:00.000Z'")
    assert plan_of(books) == "free"
