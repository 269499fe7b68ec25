"""Until when a subscription makes somebody Pro: by what was paid, in either shape of Stripe's API, in any order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from goosestack import accounts, inbox, payments, plans, subscriptions
from goosestack.stripe_facts import read_object
from goosestack.subscriptions import iso
from tests.bookings import (
    MONTH_S,
    NOW,
    START,
    Bookings,
    charge,
    invoice,
    old_invoice,
    pro_checkout,
    subscription,
)
from tests.metering import Books

PRICE = "price_pro"
END = START + MONTH_S
GIVEN = "2030-01-01T00:00:00.000Z"


@pytest.fixture
def books() -> Iterator[Bookings]:
    books = Bookings(PRICE)
    yield books
    books.close()


@pytest.mark.parametrize("shape", [invoice, old_invoice])
def test_a_paid_invoice_makes_pro_until_the_end_of_its_period_in_both_shapes(books: Bookings, shape: Any) -> None:
    payment = books.sold_pro(PRICE)
    assert books.tell("checkout.session.completed", pro_checkout(payment)) == "applied"
    assert books.pro_until() is None
    assert books.tell("invoice.paid", shape("1", END, payment, price=PRICE)) == "applied"
    assert books.pro_until() == iso(END)
    assert books.tell("invoice.paid", shape("2", END + MONTH_S, payment, price=PRICE)) == "applied"
    assert books.pro_until() == iso(END + MONTH_S)


@pytest.mark.parametrize("shape", [invoice, old_invoice])
def test_without_a_price_of_stripes_what_was_sold_counts_by_its_amount(shape: Any) -> None:
    books = Bookings()
    payment = books.sold_pro()
    assert books.tell("invoice.paid", shape("1", END, payment)) == "applied"
    assert books.pro_until() == iso(END)
    assert books.tell("invoice.paid", shape("2", END + MONTH_S, payment, amount=1)) == "review"
    assert books.pro_until() == iso(END)
    books.close()


@pytest.mark.parametrize("shape", [invoice, old_invoice])
def test_an_invoice_for_another_price_makes_nobody_pro(books: Bookings, shape: Any) -> None:
    assert books.tell("invoice.paid", shape("1", END, None, price="price_mug")) == "applied"
    assert books.pro_until() is None
    payment = books.sold_pro(PRICE)
    assert books.tell("invoice.paid", shape("2", END, payment, price="price_mug", subscription="sub_2")) == "review"
    assert books.pro_until() is None


def test_an_invoice_of_somebody_elses_customer_is_ignored(books: Bookings) -> None:
    assert books.tell("invoice.paid", invoice("1", END, None, price=PRICE, customer="cus_other")) == "ignored"
    assert books.pro_until() is None


def test_an_invoice_of_our_purchase_by_another_customer_is_reviewed(books: Bookings) -> None:
    payment = books.sold_pro(PRICE)
    found = invoice("1", END, payment, price=PRICE, customer="cus_mallory")
    assert books.tell("invoice.paid", found) == "review"
    assert books.pro_until() is None


def test_a_prorated_line_and_a_trial_make_nobody_pro(books: Bookings) -> None:
    found = invoice("1", END, None, price=PRICE)
    found["lines"]["data"][0]["parent"]["subscription_item_details"]["proration"] = True
    books.tell("invoice.paid", found)
    books.tell("invoice.paid", invoice("2", END, None, price=PRICE, amount=0))
    assert books.pro_until() is None


def test_past_due_keeps_what_was_paid_for(books: Bookings) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    books.tell("customer.subscription.updated", subscription(None, "past_due"), END - 5)
    failed = invoice("2", END + MONTH_S, None, price=PRICE, status="open", amount_paid=0)
    assert books.tell("invoice.payment_failed", failed) == "applied"
    assert books.pro_until() == iso(END)
    told = books.db.execute("SELECT json_extract(body, '$.type') FROM notices").fetchall()
    assert told == [("payment.failed",)]


@pytest.mark.parametrize("status", ["unpaid", "paused", "incomplete_expired"])
def test_a_subscription_that_is_worth_nothing_any_more_ends_then(books: Bookings, status: str) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    books.tell("customer.subscription.updated", subscription(None, status), START + 100)
    assert books.pro_until() == iso(START + 100)
    books.tell("customer.subscription.updated", subscription(None, "active"), START + 200)
    assert books.pro_until() == iso(END)


def test_a_subscription_that_is_cancelled_at_its_end_lasts_until_then(books: Bookings) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    books.tell("customer.subscription.deleted", subscription(None, "canceled", ended_at=END), END)
    assert books.pro_until() == iso(END)


def test_a_subscription_that_is_cancelled_at_once_ends_at_once(books: Bookings) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    books.tell("customer.subscription.deleted", subscription(None, "canceled"), START + 50)
    assert books.pro_until() == iso(START + 50)


def test_a_late_end_of_an_older_subscription_changes_nothing(books: Bookings) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    books.tell("invoice.paid", invoice("2", END + 10, None, price=PRICE, subscription="sub_2"))
    books.tell("customer.subscription.deleted", subscription(None, "canceled", ended_at=START + 5), END)
    assert books.pro_until() == iso(END + 10)


def test_an_invoice_whose_money_went_back_was_not_paid(books: Bookings) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    paying = {"id": "inpay_1", "object": "invoice_payment", "invoice": "in_1", "payment": {"payment_intent": "pi_x"}}
    books.tell("invoice_payment.paid", paying)
    books.tell("charge.refunded", {**charge(books.sold(), 500), "payment_intent": "pi_x"})
    assert books.pro_until() == iso(END), "a part of it is a courtesy"
    books.tell("charge.refunded", {**charge(books.sold(), 1000), "payment_intent": "pi_x"})
    assert books.pro_until() is None


def test_what_the_operator_gave_and_what_was_paid_for_never_shorten_each_other(books: Bookings) -> None:
    accounts.set_pro(books.db, books.alice, GIVEN)
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    assert books.pro_until() == GIVEN
    books.tell("customer.subscription.deleted", subscription(None, "canceled"), START + 50)
    assert books.pro_until() == GIVEN
    assert accounts.set_pro(books.db, books.alice, None) == iso(START + 50)
    books.tell("invoice.paid", invoice("2", END + MONTH_S, None, price=PRICE, subscription="sub_2"))
    assert books.pro_until() == iso(END + MONTH_S)
    assert accounts.set_pro(books.db, books.alice, "2026-01-01T00:00:00.000Z") == iso(END + MONTH_S)


def test_a_price_that_was_sold_before_still_counts_when_another_is_sold_now() -> None:
    books = Bookings("price_new")
    payment = payments.add(books.db, books.alice, "pro", 0, 0, "price_old", books.terms, NOW)
    assert books.tell("invoice.paid", invoice("1", END, payment, price="price_old")) == "applied"
    assert books.pro_until() == iso(END)
    books.close()


def test_who_has_a_subscription_that_goes_on_is_not_sold_another(books: Bookings) -> None:
    assert not subscriptions.running(books.db, books.alice)
    books.tell("customer.subscription.created", subscription(None, "active"))
    assert subscriptions.running(books.db, books.alice)
    books.tell("customer.subscription.deleted", subscription(None, "canceled"), START + 50)
    assert not subscriptions.running(books.db, books.alice)


@pytest.mark.parametrize("status", ["active", "past_due", "trialing"])
def test_a_subscription_that_goes_on_is_not_sold_again_between_a_periods_end_and_its_next_invoice(
    books: Bookings, status: str
) -> None:
    books.tell("invoice.paid", invoice("1", MONTH_S, None, price=PRICE))
    books.tell("customer.subscription.updated", subscription(None, status), MONTH_S)
    assert str(books.pro_until()) < NOW
    assert subscriptions.running(books.db, books.alice)


def test_a_subscription_whose_first_payment_is_not_made_does_not_stand_in_the_way_of_another(books: Bookings) -> None:
    books.tell("customer.subscription.created", subscription(None, "incomplete"))
    assert not subscriptions.running(books.db, books.alice)
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    assert subscriptions.running(books.db, books.alice), "it is paid, whatever else was not told"


HOUR_S = 3_600


def test_a_subscription_that_goes_on_is_pro_until_its_next_invoice_can_be_paid() -> None:
    books = Bookings(PRICE, pro_grace_s=3 * HOUR_S)
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    books.tell("customer.subscription.updated", subscription(None, "active"), END)
    assert books.pro_until() == iso(END + 3 * HOUR_S)
    books.tell("customer.subscription.updated", subscription(None, "past_due"), END + HOUR_S)
    assert books.pro_until() == iso(END), "its next payment has failed: there is nothing to wait for"
    books.tell("invoice.paid", invoice("2", END + MONTH_S, None, price=PRICE))
    books.tell("customer.subscription.updated", subscription(None, "active"), END + 2 * HOUR_S)
    assert books.pro_until() == iso(END + MONTH_S + 3 * HOUR_S)
    ended = subscription(None, "canceled", ended_at=END + MONTH_S)
    books.tell("customer.subscription.deleted", ended, END + MONTH_S)
    assert books.pro_until() == iso(END + MONTH_S)
    books.close()


def look(books: Bookings, status: str, at: int) -> list[str]:
    """What reconciliation finds changed when it looks at the subscription."""
    touched, doubts = inbox.absorb(books.db, read_object(subscription(None, status), at), books.terms, iso(at))
    assert doubts == []
    return inbox.refold(books.db, touched, books.terms, iso(at))[0]


@pytest.mark.parametrize("told", [True, False])
def test_a_paused_subscription_is_the_same_however_often_it_is_looked_at(books: Bookings, told: bool) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price=PRICE))
    if told:
        books.tell("customer.subscription.updated", subscription(None, "paused"), START + 100)
    first = look(books, "paused", START + 1000)
    assert bool(first) is not told
    ends = iso(START + (100 if told else 1000))
    assert [look(books, "paused", START + seconds) for seconds in (2000, 3000)] == [[], []]
    assert books.pro_until() == ends
    assert look(books, "active", START + 4000) != [] and books.pro_until() == iso(END)
    assert look(books, "paused", START + 5000) != [] and books.pro_until() == iso(START + 5000)


def test_a_purchase_that_is_anothers_by_its_subscription_is_reviewed(books: Bookings) -> None:
    first, second = books.sold_pro(PRICE), books.sold_pro(PRICE)
    books.tell("checkout.session.completed", pro_checkout(first))
    assert books.tell("invoice.paid", invoice("1", END, second, price=PRICE)) == "review"
    assert books.tell("invoice.paid", invoice("1", END, first, price=PRICE, subscription="sub_2")) == "review"
    assert books.pro_until() is None
    assert books.tell("invoice.paid", invoice("1", END, first, price=PRICE)) == "applied"


def test_a_subscription_of_nobodys_is_ignored_unless_it_names_a_purchase_of_ours(books: Bookings) -> None:
    told = subscription(None, customer="cus_other")
    assert books.tell("customer.subscription.updated", told) == "ignored"
    told = subscription(None, customer="cus_other", metadata={"payment": "pay_lost"})
    assert books.tell("customer.subscription.updated", told) == "review"
    assert books.db.execute("SELECT count(*) FROM subscriptions").fetchone() == (0,)


def test_a_purchase_of_credits_is_no_subscription_whoever_says_so(books: Bookings) -> None:
    payment = books.sold()
    assert books.tell("customer.subscription.updated", subscription(payment)) == "review"
    assert books.pro_until() is None and books.db.execute("SELECT count(*) FROM subscriptions").fetchone() == (0,)


def test_an_invoice_is_listed_once_wherever_stripe_shows_it(books: Bookings) -> None:
    for at, name in enumerate("zab"):
        page = f"https://invoice.example.com/{name}"
        books.tell("invoice.paid", invoice("1", END, None, price=PRICE, hosted_invoice_url=page), START + at)
    listed = subscriptions.invoices(books.db, books.alice)
    assert [(each["id"], each["receipt_url"]) for each in listed] == [("in_1", "https://invoice.example.com/b")]


def told(payment: payments.Payment) -> list[tuple[str, dict[str, Any], int]]:
    """A life of two subscriptions, the second begun before the first has ended."""
    return [
        ("checkout.session.completed", pro_checkout(payment), START),
        ("customer.subscription.created", subscription(payment, "incomplete"), START),
        ("invoice.paid", invoice("1", END, payment, price=PRICE), START + 1),
        ("customer.subscription.updated", subscription(payment, "past_due"), END),
        ("customer.subscription.deleted", subscription(payment, "canceled", ended_at=END + 9), END + 9),
        ("invoice.paid", old_invoice("2", END + MONTH_S, None, price=PRICE, subscription="sub_2"), END + 8),
    ]


def ends(order: list[int]) -> list[tuple[Any, ...]]:
    books = Bookings(PRICE)
    payment = payments.add(books.db, books.alice, "pro", 0, 0, PRICE, books.terms, NOW, "pay_pro")
    tellings = told(payment)
    for number in order:
        type, about, at = tellings[number]
        assert books.tell(type, about, at) == "applied"
    found = [tuple(None if cell == books.alice else cell for cell in row) for row in books.rows()]
    books.close()
    return found


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), st.lists(st.integers(0, 5), max_size=4), st.data()
)
def test_any_order_with_any_repetitions_ends_in_the_same_rows(
    happened: list[int], again: list[int], data: st.DataObject
) -> None:
    order = data.draw(st.permutations([*happened, *(each for each in again if each in happened)]))
    assert ends(order) == ends(happened)


def test_every_order_of_the_four_events_that_suffice_ends_the_same() -> None:
    expected = ends([0, 2, 4, 5])
    for order in itertools.permutations([0, 2, 4, 5]):
        assert ends(list(order)) == expected


# --- a price that gives a plan --------------------------------------------------------------------------------


@pytest.fixture
def sold_plans() -> Iterator[Bookings]:
    """Books in which `price_basic` gives the plan basic, and `price_greater` pro."""
    books = Bookings(PRICE)
    books.terms = replace(books.terms, plans=PLANS)
    yield books
    books.close()


PLANS = plans.load('[basic]\nstripe_prices = ["price_basic"]\n[pro]\nstripe_prices = ["price_greater"]\n')


def member(books: Bookings, at: int) -> plans.Membership:
    return plans.of_user(books.db, PLANS, books.alice, iso(at))


def plan_of(books: Bookings, at: int) -> str:
    return member(books, at).plan.name


def test_a_paid_invoice_at_its_price_gives_a_plan_until_the_end_of_the_period_and_no_pro(sold_plans: Bookings) -> None:
    assert plan_of(sold_plans, START + 5) == "free"
    assert sold_plans.tell("invoice.paid", invoice("1", END, None, price="price_basic")) == "applied"
    assert (plan_of(sold_plans, START + 5), plan_of(sold_plans, END + 5)) == ("basic", "free")
    assert sold_plans.pro_until() is None
    assert not subscriptions.running(sold_plans.db, sold_plans.alice), "Pro can still be bought"


def test_a_subscription_that_is_cancelled_at_once_takes_its_plan_along(sold_plans: Bookings) -> None:
    sold_plans.tell("invoice.paid", invoice("1", END, None, price="price_basic"))
    sold_plans.tell("customer.subscription.deleted", subscription(None, "canceled"), START + 50)
    assert (plan_of(sold_plans, START + 40), plan_of(sold_plans, START + 60)) == ("basic", "free")


def test_every_order_of_a_plans_events_gives_the_same_plan(sold_plans: Bookings) -> None:
    events = [
        ("invoice.paid", invoice("1", END, None, price="price_basic"), START),
        ("invoice.paid", invoice("2", END + MONTH_S, None, price="price_basic"), END),
        ("customer.subscription.deleted", subscription(None, "canceled", ended_at=END + 100), END + 100),
    ]
    for order in itertools.permutations(events):
        books = Bookings(PRICE)
        books.terms = sold_plans.terms
        for type, about, at in order:
            books.tell(type, about, at)
        assert (plan_of(books, END + 50), plan_of(books, END + 150)) == ("basic", "free")
        books.close()


def change_of_price(name: str, price: str, at: int, until: int, parent: str = "subscription_item_details") -> Any:
    """The invoice that Stripe makes when another price begins within a period: what is left of the old one goes back,
    the new one is paid for until the same end."""
    found = invoice(name, until, None, price=price, amount=700, created=at, billing_reason="subscription_update")
    (bought,) = found["lines"]["data"]
    bought |= {"period": {"start": at, "end": until}, "parent": {"type": parent, parent: {"proration": True}}}
    unused = {**bought, "amount": -300, "pricing": {"price_details": {"price": "price_basic"}}}
    found["lines"]["data"] = [unused, bought]
    return found


@pytest.mark.parametrize("parent", ["subscription_item_details", "invoice_item_details"])
def test_an_upgrade_that_is_paid_for_counts_at_once_and_until_the_running_period_ends(
    sold_plans: Bookings, parent: str
) -> None:
    sold_plans.tell("invoice.paid", invoice("1", END, None, price="price_basic"))
    before = member(sold_plans, START + 5)
    upgrade = change_of_price("2", "price_greater", START + 100, END, parent)
    assert sold_plans.tell("invoice.paid", upgrade, START + 100) == "applied"
    after = member(sold_plans, START + 105)
    assert (before.plan.name, after.plan.name) == ("basic", "pro")
    assert after.period == before.period, "so that the account gets the difference, and no second month"
    assert plan_of(sold_plans, END + 5) == "free"
    assert sold_plans.pro_until() is None


def test_what_is_paid_for_the_rest_of_a_period_extends_nothing(sold_plans: Bookings) -> None:
    rest = change_of_price("2", "price_greater", START + 100, END + MONTH_S)
    sold_plans.tell("invoice.paid", rest, START + 100)
    assert plan_of(sold_plans, START + 105) == "free", "no period runs"
    sold_plans.tell("invoice.paid", invoice("1", END, None, price="price_basic"))
    assert plan_of(sold_plans, START + 105) == "basic"


def test_what_is_paid_for_the_rest_of_a_period_makes_nobody_pro_at_a_price_that_also_gives_a_plan() -> None:
    books = Bookings("price_basic")
    books.terms = replace(books.terms, plans=PLANS)
    books.tell("invoice.paid", invoice("1", END, None, price="price_greater"))
    books.tell("invoice.paid", change_of_price("2", "price_basic", START + 100, END), START + 100)
    assert books.pro_until() is None
    books.close()


def test_a_price_that_is_paid_for_each_week_gives_no_plan_and_is_looked_at(sold_plans: Bookings) -> None:
    week = invoice("1", START + 7 * 86_400, None, price="price_basic")
    week["lines"]["data"][0]["period"]["start"] = START
    assert sold_plans.tell("invoice.paid", week) == "review"
    assert plan_of(sold_plans, START + 5) == "free"
    ((reason,),) = sold_plans.db.execute("SELECT reason FROM stripe_events WHERE status = 'review'")
    assert reason == "in_1: a plan's price must be monthly or yearly, and price_basic is paid for less"


def test_a_trial_gives_no_plan_since_nothing_was_paid(sold_plans: Bookings) -> None:
    sold_plans.tell("invoice.paid", invoice("1", END, None, price="price_basic", amount=0))
    sold_plans.tell("customer.subscription.created", subscription(None, "trialing"))
    assert plan_of(sold_plans, START + 5) == "free"


def test_until_its_next_invoice_is_paid_a_plan_goes_on_with_the_tokens_of_the_period_that_was_paid() -> None:
    books = Bookings(PRICE, pro_grace_s=3 * HOUR_S)
    books.terms = replace(books.terms, plans=PLANS)
    books.tell("invoice.paid", invoice("1", END, None, price="price_basic"))
    paid = member(books, END - 5)
    books.tell("customer.subscription.updated", subscription(None, "active"), END)
    meanwhile = member(books, END + HOUR_S)
    assert (meanwhile.plan.name, meanwhile.period.ref) == ("basic", paid.period.ref), "nothing new before it is paid"
    assert meanwhile.period.ends_at == meanwhile.until == iso(END + 3 * HOUR_S)
    assert plan_of(books, END + 3 * HOUR_S) == "free"
    books.tell("customer.subscription.updated", subscription(None, "past_due"), END + HOUR_S)
    assert plan_of(books, END + HOUR_S) == "free", "its payment has failed: there is nothing to wait for"
    books.tell("invoice.paid", invoice("2", END + MONTH_S, None, price="price_basic"), END + 2 * HOUR_S)
    books.tell("customer.subscription.updated", subscription(None, "active"), END + 2 * HOUR_S)
    assert member(books, END + 2 * HOUR_S).period.ref not in (paid.period.ref, plans.month(iso(END)).ref)
    books.close()


def test_a_lesser_plan_that_was_paid_for_ends_the_greater_one_with_its_period() -> None:
    books = Bookings(PRICE, pro_grace_s=3 * HOUR_S)
    books.terms = replace(books.terms, plans=PLANS)
    books.tell("invoice.paid", invoice("1", END, None, price="price_greater"))
    books.tell("invoice.paid", invoice("2", END + MONTH_S, None, price="price_basic"), END)
    assert (plan_of(books, END - 5), plan_of(books, END + 5)) == ("pro", "basic")
    books.close()


def begun(books: Bookings) -> list[str]:
    """What a start does, and tells: every subscription is folded by the terms of now."""

    store = Books()
    store.db.close()
    store.db = books.db
    return asyncio.run(subscriptions.fold_by(store, books.terms, NOW))


def test_prices_that_give_other_plans_than_before_do_so_for_the_subscriptions_that_run(sold_plans: Bookings) -> None:
    sold_plans.tell("invoice.paid", invoice("1", END, None, price="price_basic"))
    assert begun(sold_plans) == [] == begun(sold_plans)
    moved = plans.load('[pro]\nstripe_prices = ["price_basic"]\n')
    sold_plans.terms = replace(sold_plans.terms, plans=moved)
    assert begun(sold_plans) == [f"sub_1: pro until {iso(END)}, no basic"]
    assert plan_of(sold_plans, START + 5) == "pro"
    sold_plans.terms = replace(sold_plans.terms, plans=None)  # something else says the plan now
    assert begun(sold_plans) == ["sub_1: no pro"]
    assert plan_of(sold_plans, START + 5) == "free"
    sold_plans.tell("customer.subscription.deleted", subscription(None, "canceled"), START + 50)
    sold_plans.terms = replace(sold_plans.terms, plans=PLANS)
    assert begun(sold_plans) == [f"sub_1: basic until {iso(START + 50)}"]
    assert plan_of(sold_plans, START + 60) == "free"


def test_what_reconciliation_changes_of_a_plan_is_told(sold_plans: Bookings) -> None:
    sold_plans.tell("invoice.paid", invoice("1", END, None, price="price_basic"))
    assert look(sold_plans, "active", START + 8) != []
    sold_plans.terms = replace(sold_plans.terms, plans=plans.load('[pro]\nstripe_prices = ["price_basic"]\n'))
    assert look(sold_plans, "active", START + 9) == [f"sub_1: pro until {iso(END)}, no basic"]
    assert look(sold_plans, "active", START + 10) == []


def test_where_something_else_says_the_plan_a_price_gives_none(books: Bookings) -> None:
    books.tell("invoice.paid", invoice("1", END, None, price="price_basic"))
    assert plan_of(books, START + 5) == "free"
