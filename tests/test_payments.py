"""Where a payment ends depends on what Stripe said of it, not on how: in any order, again and again, and with what is
missing coming late.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from goosestack import autotopup, inbox, ledger, payments, stripe_facts, subscriptions
from goosestack.clock import later
from goosestack.facts import Fact
from goosestack.notices import delivered, tell_of_low_balances
from goosestack.payments import Payment, fold
from goosestack.stripe_facts import Event, Intent
from tests.bookings import CUSTOMER, MONTH_S, NOW, START, Bookings, charge, checkout, dispute, intent, invoice, refund

ID = "pay_01a1fcd5208da06996b47673864f893d"
Telling = tuple[str, dict[str, Any]]


@pytest.fixture
def books() -> Iterator[Bookings]:
    books = Bookings()
    yield books
    books.close()


def life(payment: Payment) -> list[Telling]:
    """Six events of one payment: paid late, refunded twice, disputed, and given back."""
    return [
        ("checkout.session.completed", checkout(payment, payment_status="unpaid")),
        ("checkout.session.async_payment_succeeded", checkout(payment)),
        ("charge.refunded", charge(payment, 300)),
        ("charge.refunded", charge(payment, 450)),
        ("charge.dispute.funds_withdrawn", dispute(payment, 550)),
        ("charge.dispute.funds_reinstated", dispute(payment, 550, "won")),
    ]


def ends(tellings: Sequence[Telling], *, spent: int = 0) -> list[tuple[Any, ...]]:
    """The rows after these events."""
    books = Bookings()
    books.sold(id=ID)
    if spent:
        books.sold(spent, id="pay_other")
        other = payments.find(books.db, "id", "pay_other")
        assert other is not None
        books.tell("checkout.session.completed", checkout(other))
        books.spend(spent, "r1")
    for type, about in tellings:
        assert books.tell(type, about) in ("applied", "ignored")
    found = [row for row in books.rows() if not str(row[0]).startswith("usr_")]
    books.close()
    return found


def of(payment_id: str = ID) -> Payment:
    books = Bookings()
    payment = books.sold(id=payment_id)
    books.close()
    return payment


def test_all_720_orders_of_six_events_end_in_the_same_rows() -> None:
    tellings = life(of())
    expected = ends(tellings)
    assert ("pay_01a1fcd5208da06996b47673864f893d", 550, 550) in expected
    for order in itertools.permutations(tellings):
        assert ends(order) == expected


def test_what_went_back_whole_before_it_was_known_to_be_paid_ends_in_the_same_rows() -> None:
    """A payment that was worth nothing when it was first computed had no due, and in another order, one of nothing."""
    _, paid, _, refunded, withdrawn, _ = life(of())
    assert len({tuple(ends(order)) for order in itertools.permutations([paid, refunded, withdrawn])}) == 1


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_any_order_with_any_repetitions_ends_in_the_same_rows(data: st.DataObject) -> None:
    payment = of()
    more = [
        ("refund.created", refund(payment, "a", 300)),
        ("refund.created", refund(payment, "b", 150, "pending")),
        ("refund.failed", refund(payment, "b", 150, "failed")),
        ("charge.succeeded", charge(payment)),
        ("charge.dispute.created", dispute(payment, 550)),
        ("charge.dispute.closed", dispute(payment, 550, "won")),
        ("payment_intent.succeeded", intent(payment)),
    ]
    tellings = data.draw(st.lists(st.sampled_from([*life(payment), *more]), min_size=1, max_size=10, unique_by=id))
    again = data.draw(st.lists(st.sampled_from(tellings), max_size=6))
    order = data.draw(st.permutations([*tellings, *again]))
    assert ends(order) == ends(tellings)


# --- the fold alone -------------------------------------------------------------------------------------------

NAMES = ("paid", "unpaid", "failed", "expired", "refunded", "refund", "refund_failed")
STATES = ("opened", "withdrawn", "reinstated", "won", "lost")
FACTS = st.builds(
    Fact, st.just("pi"), st.sampled_from(NAMES), st.sampled_from(["a", "b"]), st.integers(0, 1200)
) | st.builds(
    Fact, st.just("pi"), st.sampled_from(STATES), st.sampled_from(["d", "e"]), st.just(400), st.just(0), st.just("usd")
)


@given(st.frozensets(FACTS, max_size=12), st.integers(0, 200))
def test_a_payment_is_worth_between_nothing_and_what_was_sold(facts: frozenset[Fact], bonus: int) -> None:
    standing = fold(1000, 1000 + bonus, facts)
    assert 0 <= standing.target <= 1000 + bonus
    if not any(fact.name == "paid" for fact in facts):
        assert standing.target == 0
    if standing.refunded >= 1000:
        assert standing.target == 0


@given(st.frozensets(FACTS, max_size=12), st.integers(1, 1200))
def test_hearing_of_a_greater_refund_never_makes_it_worth_more(facts: frozenset[Fact], more: int) -> None:
    before = fold(1000, 1000, facts).target
    assert fold(1000, 1000, facts | {Fact("pi", "refunded", "ch", more)}).target <= before


PAID = Fact("pay", "paid", "cs", 1000)


def worth(*facts: Fact, granted: int = 1000) -> int:
    return fold(1000, granted, {PAID, *facts}).target


def test_cumulative_refunds_count_by_the_greatest() -> None:
    assert worth(Fact("pi", "refunded", "ch", 300), Fact("pi", "refunded", "ch", 500)) == 500


def test_refunds_that_are_told_twice_over_count_once() -> None:
    assert worth(Fact("pi", "refund", "re_a", 300), Fact("pi", "refunded", "ch", 300)) == 700


def test_a_refund_that_failed_is_given_back() -> None:
    failed = (Fact("pi", "refund", "re_a", 300), Fact("pi", "refund_failed", "re_a", 300))
    assert worth(*failed, Fact("pi", "refunded", "ch", 300)) == 1000


def test_a_refund_after_one_that_failed_counts() -> None:
    failed = (Fact("pi", "refund", "re_a", 1000), Fact("pi", "refund_failed", "re_a", 1000))
    assert worth(*failed, Fact("pi", "refunded", "ch", 1000), Fact("pi", "refund", "re_b", 1000)) == 0


def failed_refund(name: str, amount: int, made: int, failed: int) -> tuple[Fact, Fact]:
    return Fact("pi", "refund", name, amount, made), Fact("pi", "refund_failed", name, amount, failed)


def test_a_refund_that_failed_is_not_taken_off_a_sum_that_it_was_never_in() -> None:
    told = Fact("pi", "refunded", "ch", 500, 10)
    assert worth(told) == 500
    assert worth(told, *failed_refund("re_b", 300, made=20, failed=30)) == 500, "it was made after that sum was told"
    later = Fact("pi", "refunded", "ch", 600, 40)
    assert worth(later, *failed_refund("re_b", 300, made=20, failed=30)) == 400, "it had failed before it was told"


def test_a_refund_that_failed_is_taken_off_each_sum_that_it_was_in() -> None:
    sums = (Fact("pi", "refunded", "ch", 300, 10), Fact("pi", "refunded", "ch", 600, 20))
    assert worth(*sums, *failed_refund("re_b", 300, made=20, failed=30)) == 700


def test_a_refund_of_which_only_its_failure_was_told_gives_back_nothing_of_another(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    books.tell("charge.refunded", charge(payment, 500), START + 10)
    books.tell("refund.failed", refund(payment, "b", 300, "failed", START + 20), START + 30)
    assert books.funds()["balance_cents"] == 500


def test_a_part_that_goes_back_takes_its_part_of_the_bonus() -> None:
    assert worth(Fact("pi", "refunded", "ch", 500), granted=1100) == 550
    assert worth(Fact("pi", "refunded", "ch", 1), granted=1100) == 1098
    assert worth(Fact("pi", "refunded", "ch", 1000), granted=1100) == 0


def disputed(*states: str) -> tuple[int, str | None, str | None]:
    standing = fold(1000, 1000, {PAID, *(Fact("pi", state, "dp", 400, 0, "usd") for state in ("opened", *states))})
    return standing.target, standing.status, standing.doubt


@pytest.mark.parametrize(
    ("states", "target", "status"),
    [
        ((), 1000, "paid"),
        (("withdrawn",), 600, "disputed"),
        (("lost",), 600, "disputed"),
        (("withdrawn", "lost"), 600, "disputed"),
        (("withdrawn", "won"), 1000, "paid"),
        (("withdrawn", "reinstated"), 1000, "paid"),
        (("won",), 1000, "paid"),
    ],
)
def test_a_dispute_takes_what_was_withdrawn_until_it_comes_back(
    states: tuple[str, ...], target: int, status: str
) -> None:
    assert disputed(*states) == (target, status, None)


def test_a_dispute_that_was_lost_and_came_back_needs_a_person() -> None:
    target, _, doubt = disputed("withdrawn", "lost", "reinstated")
    assert target == 600 and doubt is not None


# --- what is posted -------------------------------------------------------------------------------------------


def test_a_paid_checkout_is_granted_once_whichever_event_tells_of_it(books: Bookings) -> None:
    payment = books.sold(1000, 1100)
    assert books.tell("checkout.session.completed", checkout(payment)) == "applied"
    assert books.tell("checkout.session.async_payment_succeeded", checkout(payment)) == "applied"
    assert books.funds()["balance_cents"] == 1100


def test_an_event_is_taken_once(books: Bookings) -> None:
    event = books.event("checkout.session.completed", checkout(books.sold()))
    assert [books.receive(event) for _ in range(3)] == ["applied", "repeated", "repeated"]
    assert books.funds()["balance_cents"] == 1000


def test_a_bank_payment_is_granted_when_it_succeeds_and_not_before(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment, payment_status="unpaid"))
    assert (books.funds()["balance_cents"], status(books, payment)) == (0, "unpaid")
    books.tell("checkout.session.async_payment_succeeded", checkout(payment))
    assert (books.funds()["balance_cents"], status(books, payment)) == (1000, "paid")


def test_a_bank_payment_that_fails_grants_nothing_and_is_told(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment, payment_status="unpaid"))
    books.tell("checkout.session.async_payment_failed", checkout(payment, payment_status="unpaid"))
    assert (books.funds()["balance_cents"], status(books, payment)) == (0, "failed")
    assert notices(books) == ["payment.failed"]


def status(books: Bookings, payment: Payment) -> str:
    found = payments.find(books.db, "id", payment.id)
    assert found is not None
    return found.status


def notices(books: Bookings) -> list[str]:
    rows = books.db.execute("SELECT json_extract(body, '$.type') FROM notices ORDER BY rowid").fetchall()
    return [row[0] for row in rows]


def test_a_refund_while_holds_are_open_leaves_a_debt_that_what_they_return_pays(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    books.hold(300, "r1")
    books.spend(200, "r2")
    books.tell("charge.refunded", charge(payment, 1000))
    funds = books.funds()
    assert (funds["balance_cents"], funds["held_cents"], funds["debt_cents"]) == (300, 300, 500)
    ledger.release(books.db, "r1", "interrupted", NOW)
    funds = books.funds()
    assert (funds["balance_cents"], funds["held_cents"], funds["debt_cents"]) == (0, 0, 200)
    books.tell("checkout.session.completed", checkout(books.sold(2500)))
    assert (books.funds()["balance_cents"], books.funds()["debt_cents"]) == (2300, 0)


def test_a_refund_that_is_heard_of_before_the_payment_waits_for_it(books: Bookings) -> None:
    payment = books.sold()
    assert books.tell("charge.refunded", charge(payment, 400)) == "ignored"
    assert books.tell("refund.created", refund(payment, "a", 400)) == "ignored"
    books.tell("checkout.session.completed", checkout(payment))
    assert books.funds()["balance_cents"] == 600
    assert status(books, payment) == "partly_refunded"


def test_a_dispute_that_is_won_is_exactly_undone_also_where_it_was_spent(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    books.spend(700, "r1")
    books.tell("charge.dispute.funds_withdrawn", dispute(payment, 1000))
    assert (books.funds()["balance_cents"], books.funds()["debt_cents"]) == (0, 700)
    books.tell("charge.dispute.closed", dispute(payment, 1000, "won"))
    assert (books.funds()["balance_cents"], books.funds()["debt_cents"]) == (300, 0)
    kinds = books.db.execute("SELECT kind, amount FROM entries ORDER BY seq").fetchall()
    assert kinds == [("topup", 1000), ("reversal", -300), ("reversal", 300)]
    assert notices(books) == ["payment.disputed"]


def test_an_entry_is_of_the_kind_of_what_has_changed(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    books.tell("charge.dispute.funds_withdrawn", dispute(payment, 1000, "needs_response", -1000))
    books.tell("charge.dispute.closed", dispute(payment, 1000, "won", -1000, 1000))
    books.tell("charge.refunded", charge(payment, 400))
    kinds = books.db.execute("SELECT kind, amount FROM entries ORDER BY seq").fetchall()
    assert kinds == [("topup", 1000), ("reversal", -1000), ("reversal", 1000), ("refund", -400)]


def test_a_dispute_in_another_currency_takes_nothing_and_is_kept_for_review(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    other = {**dispute(payment, 90, "needs_response", -1000), "currency": "eur"}
    assert books.tell("charge.dispute.funds_withdrawn", other) == "review"
    assert (books.funds()["balance_cents"], status(books, payment)) == (1000, "paid")
    assert books.tell("charge.dispute.created", {**other, "id": "dp_2", "currency": None}) == "review"


@pytest.mark.parametrize("moves", [None, []])
def test_a_dispute_whose_money_has_not_moved_yet_needs_nobody(books: Bookings, moves: list[int] | None) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    assert books.tell("charge.dispute.created", {**dispute(payment, 1000), "balance_transactions": moves}) == "applied"
    assert books.funds()["balance_cents"] == 1000


def test_a_receipt_is_where_stripe_last_said_in_any_order() -> None:
    payment = of()
    charges = [({**charge(payment), "receipt_url": f"https://pay.example.com/{name}"}, at) for name, at in RECEIPTS]
    for order in itertools.permutations(charges):
        books = Bookings()
        books.sold(id=ID)
        books.tell("checkout.session.completed", checkout(payment))
        for about, at in order:
            books.tell("charge.succeeded", about, START + at)
        assert books.db.execute("SELECT receipt_url FROM payments").fetchall() == [("https://pay.example.com/new",)]
        assert books.db.execute("SELECT count(*) FROM stripe_facts WHERE about LIKE 'pi_%'").fetchone() == (0,)
        books.close()


RECEIPTS = (("z", 1), ("new", 3), ("b", 2))


def test_an_event_of_somebody_elses_payment_is_ignored(books: Bookings) -> None:
    other = {"id": "cs_x", "client_reference_id": "order-17", "metadata": {}, "payment_intent": "pi_x"}
    assert books.tell("checkout.session.completed", {**checkout(books.sold()), **other}) == "ignored"
    assert books.funds()["balance_cents"] == 0


def test_a_checkout_that_is_still_open_says_nothing_of_money(books: Bookings) -> None:
    payment = books.sold()
    looked_at = stripe_facts.read_object(checkout(payment, status="open", payment_status="unpaid"), START)
    touched, doubts = inbox.absorb(books.db, looked_at, books.terms, NOW)
    assert (touched.payments, doubts) == ({payment.id}, [])
    assert books.db.execute("SELECT count(*) FROM stripe_facts").fetchone() == (0,)
    assert books.tell("checkout.session.completed", checkout(payment)) == "applied"


def test_an_automatic_payment_that_waits_for_its_customer_is_neither_paid_nor_failed(books: Bookings) -> None:
    payment = payments.add(books.db, books.alice, "auto", 1000, 1000, None, books.terms, NOW)
    told = {"payment": payment.id}
    waits = Intent("pi_1", "open", 1000, "usd", False, CUSTOMER, told, None)
    _, doubts = inbox.absorb(books.db, [waits], books.terms, NOW)
    assert doubts == [] and payments.refold(books.db, payment.id, books.terms, NOW).text == ""
    known = payments.find(books.db, "id", payment.id)
    assert known is not None and (known.status, known.intent_id) == ("new", "pi_1")


def test_a_charge_without_a_receipt_leaves_the_one_that_is_known(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    books.tell("charge.succeeded", charge(payment), START + 1)
    books.tell("charge.refunded", {**charge(payment, 300), "receipt_url": None}, START + 2)
    known = payments.find(books.db, "id", payment.id)
    assert known is not None and known.receipt_url == f"https://pay.example.com/{payment.id}"


def test_an_event_of_the_other_mode_is_ignored(books: Bookings) -> None:
    assert books.tell("checkout.session.completed", checkout(books.sold()), livemode=True) == "ignored"
    assert books.funds()["balance_cents"] == 0


ALTERED: dict[str, Any] = {
    "id": "cs_other",
    "object": "payment_link",
    "mode": "subscription",
    "status": "strange",
    "amount_total": 999,
    "amount_subtotal": 1001,
    "currency": "eur",
    "livemode": True,
    "customer": "cus_mallory",
    "client_reference_id": "pay_other",
    "metadata": {"payment": "pay_other"},
    "payment_intent": None,
    "payment_status": "strange",
    "subscription": "sub_other",
}


@pytest.mark.parametrize("name", ALTERED)
@pytest.mark.parametrize("way", ["another", "none"])
def test_a_checkout_with_one_field_altered_grants_nothing_and_is_kept_for_review(
    books: Bookings, name: str, way: str
) -> None:
    payment = books.sold()
    payments.opened(books.db, payment.id, f"cs_{payment.id}", "https://pay.example.com", "2026-11-22", NOW)
    value = ALTERED[name] if way == "another" else "" if name == "subscription" else None
    assert books.tell("checkout.session.completed", checkout(payment, **{name: value})) == "review"
    assert books.funds()["balance_cents"] == 0
    assert books.db.execute("SELECT count(*) FROM stripe_events WHERE status = 'review'").fetchone() == (1,)
    assert books.db.execute("SELECT count(*) FROM stripe_facts").fetchone() == (0,)
    assert notices(books) == ["review.needed"]


def test_a_payment_intent_cannot_pay_for_two_purchases(books: Bookings) -> None:
    first, second = books.sold(), books.sold()
    books.tell("checkout.session.completed", checkout(first))
    assert books.tell("checkout.session.completed", checkout(second, payment_intent=f"pi_{first.id}")) == "review"
    assert books.funds()["balance_cents"] == 1000


def test_a_checkout_that_cost_something_and_was_not_paid_for_grants_nothing(books: Bookings) -> None:
    unpaid = checkout(books.sold(), payment_status="no_payment_required")
    assert books.tell("checkout.session.completed", unpaid) == "review"
    assert books.funds()["balance_cents"] == 0


def test_a_checkout_that_was_free_grants_nothing(books: Bookings) -> None:
    free = {"payment_status": "no_payment_required", "amount_total": 0, "payment_intent": None}
    assert books.tell("checkout.session.completed", checkout(books.sold(), **free)) == "review"
    assert books.funds()["balance_cents"] == 0


def test_what_cannot_be_granted_for_want_of_room_raises_and_changes_nothing(books: Bookings) -> None:
    ledger.post(books.db, books.account, "grant", "all", 100_000_000_000, NOW)
    event: Event = books.event("checkout.session.completed", checkout(books.sold()))
    with pytest.raises(ledger.LedgerError):
        books.receive(event)
    books.db.execute("ROLLBACK TO verb")


# --- what is kept, and for how long ---------------------------------------------------------------------------


def test_a_month_later_what_events_said_is_forgotten_and_what_needs_a_person_is_not(books: Bookings) -> None:
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    books.tell("checkout.session.completed", checkout(payment, currency="eur"))
    payments.begin(books.db, books.alice, "credits", 2500, 2500, None, "key", books.terms, NOW)
    (notice,) = books.db.execute("SELECT id FROM notices").fetchone()
    delivered(books.db, notice, NOW)

    def kept() -> list[Any]:
        bodies = books.db.execute("SELECT status, body <> '' FROM stripe_events ORDER BY rowid").fetchall()
        return [bodies, *(books.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES)]

    assert kept() == [[("applied", 1), ("review", 1)], 1, 1]
    assert inbox.forget(books.db, later(NOW, 30 * 86_400)) == 0
    assert inbox.forget(books.db, later(NOW, 30 * 86_400 + 1)) == 3
    assert kept() == [[("applied", 0), ("review", 1)], 0, 0]


TABLES = ("payment_requests", "notices")


def test_nothing_is_looked_for_by_reading_a_table_that_grows(books: Bookings) -> None:
    """Each statement is asked for its plan; those tables are read whole by none of them."""
    asked: set[str] = set()
    books.db.set_trace_callback(asked.add)
    payment = books.sold()
    books.tell("checkout.session.completed", checkout(payment))
    books.tell("charge.refunded", charge(payment, 300))
    books.tell("refund.created", refund(payment, "a", 300))
    books.tell("charge.dispute.created", dispute(payment, 300))
    pro = books.sold_pro("price_pro")
    books.tell("invoice.paid", invoice("1", START + MONTH_S, pro, price="price_pro"))
    paying = {"id": "inpay_1", "object": "invoice_payment", "invoice": "in_1", "payment": {"payment_intent": "pi_x"}}
    books.tell("invoice_payment.paid", paying)
    books.tell("charge.refunded", {**charge(payment, 5), "payment_intent": "pi_x"})
    subscriptions.invoices(books.db, books.alice)
    subscriptions.running(books.db, books.alice)
    autotopup.wanted(books.db, NOW)
    tell_of_low_balances(books.db, 100, NOW)
    inbox.forget(books.db, NOW)
    books.db.set_trace_callback(None)
    plans = [
        (step[3], sql)
        for sql in asked
        if sql.startswith(("SELECT", "UPDATE", "DELETE", "INSERT INTO stripe"))
        for step in books.db.execute(f"EXPLAIN QUERY PLAN {sql}")
    ]
    assert any("stripe_facts_by_object" in plan for plan, _ in plans)
    whole = re.compile("SCAN (stripe_facts|stripe_events|stripe_pages|payments|accounts|entries|notices|[fa])\\b")
    assert [(plan, sql) for plan, sql in plans if whole.match(plan) and "USING" not in plan] == []
