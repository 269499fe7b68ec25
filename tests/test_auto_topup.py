"""Automatic top-ups: one attempt at a time, capped, backing off, and a link where the bank wants its customer."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from goosestack import autotopup, ledger, payments
from goosestack.clock import later
from goosestack.facts import Fact, keep
from goosestack.payments import Payment
from tests.bookings import NOW, Bookings
from tests.desks import TOPUPS, Desk
from tests.shops import Shop
from tests.world import Customer, until

SETTING = {"enabled": True, "below": 500, "amount": 1000, "daily_cap": 3000}


@pytest.fixture
def books() -> Iterator[Bookings]:
    books = Bookings()
    autotopup.enable(books.db, books.alice, 500, 1000, 3000, later(NOW, -86_400 * 2))
    yield books
    books.close()


def attempt(books: Bookings, now: str = NOW) -> Payment | None:
    step = autotopup.begin(books.db, books.alice, TOPUPS, books.terms, now)
    return None if step is None else step.payment


def wanted(books: Bookings, now: str = NOW) -> list[str]:
    return autotopup.wanted(books.db, now)


def ends(books: Bookings, payment: Payment | None, name: str, detail: str = "", now: str = NOW) -> None:
    assert payment is not None
    keep(books.db, Fact(payment.id, name, f"pi_{payment.id}", 1000, detail=detail))
    payments.refold(books.db, payment.id, books.terms, now)
    autotopup.conclude(books.db, payment.id, now)


def tell_of_link(books: Bookings) -> None:
    """What the cashier does about an attempt that asks the customer."""
    step = autotopup.begin(books.db, books.alice, TOPUPS, books.terms, later(NOW, 90))
    assert step is not None and step.step == "link"
    autotopup.linked(books.db, step, books.sold(now=later(NOW, 30)), books.terms, NOW)


# --- when an attempt is made ----------------------------------------------------------------------------------


def test_one_attempt_is_in_flight_at_a_time(books: Bookings) -> None:
    first = attempt(books)
    assert first is not None and (first.amount, first.granted, first.status) == (1000, 1000, "new")
    assert attempt(books) == first, "what is not known yet is asked for again, under the same id"
    ends(books, first, "unpaid")
    assert attempt(books) is None, "the bank is at it"
    ends(books, first, "paid")
    assert books.funds()["balance_cents"] == 1000
    assert attempt(books) is None, "the balance is not below the threshold any more"


def test_nothing_is_charged_above_the_threshold_or_where_it_is_off(books: Bookings) -> None:
    ledger.post(books.db, books.account, "grant", "g", 500, NOW)
    assert attempt(books) is None and wanted(books) == []
    books.spend(1, "r1")
    assert wanted(books) == [books.alice]
    autotopup.disable(books.db, books.alice, NOW)
    assert attempt(books) is None and wanted(books) == []


def test_the_cap_counts_the_last_24_hours(books: Bookings) -> None:
    for number in range(3):
        ends(books, attempt(books), "paid")
        books.spend(1000, f"r{number}")
    assert attempt(books) is None
    assert attempt(books, later(NOW, 86_399)) is None
    assert attempt(books, later(NOW, 86_401)) is not None


def test_failures_back_off_and_rest_at_the_third(books: Bookings) -> None:
    ends(books, attempt(books), "failed", "card_declined")
    assert attempt(books, later(NOW, 3_599)) is None
    second = later(NOW, 3_601)
    ends(books, attempt(books, second), "failed", "card_declined")
    assert attempt(books, later(second, 14_399)) is None
    third = later(second, 14_401)
    ends(books, attempt(books, third), "failed", "insufficient_funds")
    assert attempt(books, later(third, 86_400 * 30)) is None
    shown = autotopup.shown(books.db, books.alice)
    assert (shown["problem"], shown["resting"]) == ("insufficient_funds", True)
    autotopup.enable(books.db, books.alice, 500, 1000, 3000, later(third, 60))
    assert attempt(books, later(third, 61)) is not None


def test_a_bank_that_wants_its_customer_is_not_asked_again_until_the_customer_has_paid(books: Bookings) -> None:
    ends(books, attempt(books), "failed", "authentication_required")
    tell_of_link(books)
    assert attempt(books, later(NOW, 86_400)) is None
    bought = books.sold(now=later(NOW, 60))
    keep(books.db, Fact(bought.id, "paid", "cs_1", 1000))
    payments.refold(books.db, bought.id, books.terms, NOW)
    books.spend(900, "r1")
    assert attempt(books, later(NOW, 86_401)) is not None


def test_what_stripe_has_told_of_an_attempt_before_its_answer_decides_its_next_step(books: Bookings) -> None:
    asked = attempt(books)
    assert asked is not None
    keep(books.db, Fact(asked.id, "failed", f"pi_{asked.id}", 1000, detail="authentication_required"))
    payments.refold(books.db, asked.id, books.terms, NOW)
    step = autotopup.begin(books.db, books.alice, TOPUPS, books.terms, later(NOW, 90))
    assert step is not None and (step.step, step.payment.id) == ("link", asked.id)


def test_money_that_went_back_is_not_charged_for_again(books: Bookings) -> None:
    paid = attempt(books)
    ends(books, paid, "paid")
    assert paid is not None
    keep(books.db, Fact(paid.id, "refund", "re_1", 1000))
    payments.refold(books.db, paid.id, books.terms, later(NOW, 60))
    assert books.funds() == {**books.funds(), "balance_cents": 0, "debt_cents": 0}
    assert attempt(books, later(NOW, 86_400 * 3)) is None
    shown = autotopup.shown(books.db, books.alice)
    assert (shown["problem"], shown["resting"]) == ("refunded", True)
    autotopup.enable(books.db, books.alice, 500, 1000, 3000, later(NOW, 61))
    assert attempt(books, later(NOW, 62)) is not None, "the user has set it anew"


def test_a_dispute_rests_it_until_the_user_buys_by_hand_also_where_it_was_set_since_the_charge(books: Bookings) -> None:
    paid = attempt(books)
    ends(books, paid, "paid")
    assert paid is not None
    autotopup.enable(books.db, books.alice, 500, 1000, 3000, later(NOW, 30))
    keep(books.db, *(Fact(paid.id, each, "dp", 1000, detail="usd") for each in ("opened", "withdrawn")))
    payments.refold(books.db, paid.id, books.terms, later(NOW, 60))
    assert attempt(books, later(NOW, 61)) is None
    assert autotopup.shown(books.db, books.alice)["problem"] == "disputed"
    bought = books.sold(now=later(NOW, 90))
    keep(books.db, Fact(bought.id, "paid", "cs_1", 1000))
    payments.refold(books.db, bought.id, books.terms, later(NOW, 91))
    books.spend(1000, "r1")
    assert attempt(books, later(NOW, 92)) is not None


def test_what_had_gone_back_before_the_books_knew_of_it_rests_it_too(books: Bookings) -> None:
    paid = attempt(books)
    assert paid is not None
    keep(books.db, Fact(paid.id, "refund", "re_1", 1000))
    ends(books, paid, "paid")
    assert books.db.execute("SELECT count(*) FROM entries").fetchone() == (0,)
    assert attempt(books, later(NOW, 60)) is None


def test_buying_by_hand_pays_the_debt_and_ends_the_rest(books: Bookings) -> None:
    paid = attempt(books)
    ends(books, paid, "paid")
    assert paid is not None
    books.spend(1000, "r1")
    keep(books.db, Fact(paid.id, "refund", "re_1", 1000))
    payments.refold(books.db, paid.id, books.terms, later(NOW, 60))
    assert books.funds()["debt_cents"] == 1000
    bought = books.sold(now=later(NOW, 90))
    keep(books.db, Fact(bought.id, "paid", "cs_1", 1000))
    payments.refold(books.db, bought.id, books.terms, later(NOW, 91))
    assert (books.funds()["debt_cents"], books.funds()["balance_cents"]) == (0, 0)
    assert attempt(books, later(NOW, 92)) is not None


def test_a_payment_that_was_found_at_stripe_is_never_charged(books: Bookings) -> None:
    payments.add(books.db, books.alice, "auto", 1000, 1000, None, books.terms, NOW, "pay_found")
    first = attempt(books)
    assert first is not None and first.id != "pay_found"
    autotopup.failed(books.db, first.id, "card_declined", books.terms, NOW)
    autotopup.disable(books.db, books.alice, NOW)
    assert wanted(books, later(NOW, 86_400)) == [] and attempt(books, later(NOW, 86_400)) is None


def test_what_is_in_flight_is_looked_for_and_not_asked_for_once_it_is_off_or_old(books: Bookings) -> None:
    def step(now: str) -> autotopup.Attempt:
        found = autotopup.begin(books.db, books.alice, TOPUPS, books.terms, now)
        assert found is not None
        return found

    first = step(NOW)
    autotopup.put_off(books.db, first, NOW)
    assert attempt(books, later(NOW, 14)) is None and wanted(books, later(NOW, 14)) == []
    again = step(later(NOW, 15))
    assert (again.payment.id, again.step, again.tries) == (first.payment.id, "ask", 1)
    autotopup.disable(books.db, books.alice, later(NOW, 16))
    assert wanted(books, later(NOW, 16)) == [books.alice]
    assert step(later(NOW, 16)).step == "look"
    autotopup.enable(books.db, books.alice, 500, 1000, 3000, later(NOW, 17))
    assert step(later(NOW, 18)).step == "look"
    books.db.execute("UPDATE attempts SET step = 'ask'")
    assert step(later(NOW, autotopup.ASKED_S + 1)).step == "look"


def test_who_owes_something_is_not_charged_for_it(books: Bookings) -> None:
    payment = books.sold()
    keep(books.db, Fact(payment.id, "paid", "cs_1", 1000), Fact(payment.id, "opened", "dp", 1000, detail="usd"))
    payments.refold(books.db, payment.id, books.terms, NOW)
    books.spend(1000, "r1")
    keep(books.db, Fact(payment.id, "withdrawn", "dp", 1000, detail="usd"))
    payments.refold(books.db, payment.id, books.terms, NOW)
    assert books.funds()["debt_cents"] == 1000
    assert attempt(books) is None and wanted(books) == []


# --- what comes of it, with the clock in the hand ---------------------------------------------------------------


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    desk = Desk.open(folder)
    yield desk
    desk.close()


def test_one_users_trouble_is_no_others_and_is_told_of_as_it_is_tried_again(desk: Desk) -> None:
    users = sorted([desk.customer("alice"), desk.customer("bob")])
    desk.till.fault("error_500", method="GET", path="/v1/payment_methods", times=3)
    desk.tick(0, 5, 10)
    assert desk.statuses(users[0]) == ["new"] and desk.statuses(users[1]) == ["paid"]
    assert len(desk.alerts) == 1, "once, not every five seconds"
    desk.tick(16)
    assert desk.statuses(users[0]) == ["paid"]


def test_stripes_own_error_when_cards_are_listed_is_no_failure_of_the_card(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("error_500", method="GET", path="/v1/payment_methods", times=9)
    desk.tick(0, 16, 77)
    assert desk.statuses(alice) == ["new"] and desk.shown(alice)["problem"] is None
    desk.tick(400)
    assert desk.statuses(alice) == ["paid"] and desk.told() == []


def test_a_charge_with_an_error_that_its_key_repeats_is_found(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("error_500_after", method="POST", path="/v1/payment_intents")
    desk.tick(0)
    assert desk.statuses(alice) == ["new"]
    desk.tick(20)
    assert desk.statuses(alice) == ["paid"] and desk.charges() == 1


def test_a_charge_with_an_error_that_did_nothing_is_looked_for_an_hour_before_there_is_another(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("error_500", method="POST", path="/v1/payment_intents", times=3)
    desk.tick(0, 20, 100, 500, 1500, 3500)
    assert desk.statuses(alice) == ["new"] and desk.charges() == 0
    desk.tick(5_200, 5_205)
    assert desk.statuses(alice) == ["failed", "paid"] and desk.charges() == 1
    assert desk.told() == [], "nobody's card has failed"


@pytest.mark.parametrize(("kind", "ends"), [("cut", "failed"), ("cut_after", "paid")])
def test_turned_off_with_an_attempt_in_flight_nothing_is_charged_any_more(desk: Desk, kind: str, ends: str) -> None:
    alice = desk.customer("alice")
    desk.till.fault(kind, method="POST", path="/v1/payment_intents", times=3)
    desk.tick(0)
    assert desk.statuses(alice) == ["new"]
    desk.write(autotopup.disable, alice, desk.time(1))
    asked = len(desk.till.requests(method="POST", path="/v1/payment_intents"))
    desk.tick(20, 100, 500, 1500, 3700, 8000)
    assert desk.statuses(alice) == [ends]
    assert len(desk.till.requests(method="POST", path="/v1/payment_intents")) == asked


def test_the_link_is_told_of_once_however_often_making_it_fails(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.card(desk.customers[alice], "authentication_required")
    desk.sells = False
    desk.tick(0, 5, 20)
    assert desk.statuses(alice) == ["failed"] and desk.told() == ["payment.failed"]
    desk.sells = True
    desk.tick(400, 405)
    desk.tick(5_000)
    assert desk.told() == ["payment.failed", "payment.action_required"]


def test_where_the_amount_is_sold_no_more_the_bank_that_wants_its_customer_is_told_of_all_the_same(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.card(desk.customers[alice], "authentication_required")
    desk.sells = False
    desk.tick(0)
    desk.topups = {2500: 2600}
    desk.tick(20, 100)
    assert desk.told() == ["payment.failed", "payment.action_required"]
    assert desk.rows("SELECT count(*) FROM attempts") == [(0,)]


def test_an_answer_that_does_not_fit_rests_it_for_a_person(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("lie", method="POST", path="/v1/payment_intents", set={"amount_received": 999})
    desk.tick(0, 5, 100_000)
    assert desk.shown(alice)["problem"] == "review" and desk.shown(alice)["resting"]
    assert desk.told() == ["review.needed", "payment.failed"] and desk.charges() == 1


def test_restored_books_charge_nothing_before_they_know_what_was_charged(desk: Desk) -> None:
    alice = desk.customer("alice")
    backup = desk.db.with_name("backup.sqlite3")
    shutil.copy(desk.db, backup)
    desk.tick(0)
    assert desk.statuses(alice) == ["paid"] and desk.charges() == 1
    shutil.copy(backup, desk.db)
    desk.till.fault("error_500", path="/v1/disputes", times=3)
    desk.tick(7_200, 7_205)
    assert desk.statuses(alice) == [] and desk.charges() == 1, "Stripe could not be asked what there is"
    desk.tick(7_300)
    assert desk.statuses(alice) == ["paid"] and desk.charges() == 1
    (made,) = desk.rows("SELECT created_at FROM payments")
    assert made[0] < desk.time(60), "it is of the day on which it was charged"


# --- over sockets ---------------------------------------------------------------------------------------------


def charged(shop: Shop, alice: Customer) -> list[str]:
    rows = shop.rows("SELECT status FROM payments WHERE user_id = ? AND kind = 'auto' ORDER BY id", alice.id)
    return [row[0] for row in rows]


def low(shop: Shop) -> Customer:
    """A customer with a saved card and nothing left."""
    alice = shop.world.customer(0)
    shop.till.refund(shop.buy(alice))
    return alice


def customer_id(shop: Shop, alice: Customer) -> str:
    return str(shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", alice.id)[0][0])


def test_a_low_balance_is_topped_up_with_the_saved_card(shop: Shop) -> None:
    alice = low(shop)
    reply = shop.ask(alice, "POST", "auto-topup", SETTING)
    assert reply.status == 200, reply.data
    assert reply.json() == {**SETTING, "problem": None, "resting": False}
    until(lambda: shop.balance(alice) == 1000, "the top-up")
    newest = shop.listed(alice)[0]
    assert (newest["type"], newest["automatic"], newest["status"]) == ("credits", True, "paid")
    assert charged(shop, alice) == ["paid"]
    shop.ask(alice, "POST", "auto-topup", {"enabled": False})


@pytest.mark.parametrize("kind", ["cut_after", "hang_after", "error_500_after"])
def test_a_charge_whose_answer_is_lost_is_made_once(shop: Shop, kind: str) -> None:
    alice = low(shop)
    shop.till.delivery(mode="drop")
    shop.till.fault(kind, method="POST", path="/v1/payment_intents", times=1, seconds=12)
    assert shop.ask(alice, "POST", "auto-topup", SETTING).status == 200
    until(lambda: shop.balance(alice) == 1000, "the top-up", 60)
    shop.ask(alice, "POST", "auto-topup", {"enabled": False})
    made = [each for each in shop.till.objects("payment_intent") if each["metadata"].get("kind") == "auto"]
    mine = [each for each in made if each["customer"] == customer_id(shop, alice)]
    assert [each["status"] for each in mine] == ["succeeded"]
    assert charged(shop, alice) == ["paid"]


def test_a_kill_while_a_card_is_charged_charges_it_once(folder: Path) -> None:
    shop = Shop.open(folder)
    try:
        alice = low(shop)
        shop.till.delivery(mode="drop")
        shop.till.fault("hang_after", method="POST", path="/v1/payment_intents", seconds=3)
        assert shop.ask(alice, "POST", "auto-topup", SETTING).status == 200
        until(lambda: shop.till.requests(method="POST", path="/v1/payment_intents"), "the charge")
        shop.world.daemon.program.process.send_signal(signal.SIGKILL)
        shop.world.daemon.program.process.wait()
        assert charged(shop, alice) == ["new"]
        shop.restart()
        until(lambda: shop.balance(alice) == 1000, "the top-up", 60)
        made = [each for each in shop.till.objects("payment_intent") if each["metadata"].get("kind") == "auto"]
        assert [each["status"] for each in made] == ["succeeded"]
    finally:
        shop.close()


def test_a_card_that_is_declined_is_left_alone_for_an_hour(shop: Shop) -> None:
    alice = low(shop)
    shop.till.card(customer_id(shop, alice), "card_declined")
    shop.ask(alice, "POST", "auto-topup", SETTING)
    until(lambda: charged(shop, alice) == ["failed"], "the attempt")
    shown = shop.ask(alice, "GET", "payments").json()
    assert shown["auto_topup"]["problem"] == "card_declined"
    assert shown["payments"][0]["failure"] == "card_declined"
    assert shop.balance(alice) == 0


def test_a_charge_that_the_bank_takes_its_time_over_is_granted_when_it_is_done(shop: Shop) -> None:
    alice = low(shop)
    shop.till.card(customer_id(shop, alice), "processing")
    shop.ask(alice, "POST", "auto-topup", SETTING)
    until(lambda: charged(shop, alice) == ["unpaid"], "the attempt")
    (intent,) = shop.rows("SELECT intent_id FROM payments WHERE user_id = ? AND kind = 'auto'", alice.id)
    shop.till.do(f"payments/{intent[0]}/succeed")
    assert shop.balance(alice) == 1000
    shop.ask(alice, "POST", "auto-topup", {"enabled": False})


def test_where_the_bank_wants_its_customer_there_is_a_link(shop: Shop) -> None:
    alice = low(shop)
    shop.till.card(customer_id(shop, alice), "authentication_required")
    shop.ask(alice, "POST", "auto-topup", SETTING)
    until(lambda: any(each["url"] for each in shop.listed(alice)), "the link")
    shown = shop.ask(alice, "GET", "payments").json()
    assert shown["auto_topup"]["problem"] == "authentication_required" and shown["auto_topup"]["resting"]
    (link,) = [each for each in shown["payments"] if each["url"]]
    (checkout,) = shop.rows("SELECT checkout_id FROM payments WHERE id = ?", link["id"])
    shop.till.card(customer_id(shop, alice), "ok")
    shop.till.pay(checkout[0])
    assert shop.balance(alice) == 1000
    shop.ask(alice, "POST", "auto-topup", {"enabled": False})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "`enabled` must be true or false"),
        ({"enabled": 1}, "`enabled` must be true or false"),
        ({**SETTING, "amount": 999}, "`amount` must be one of"),
        ({**SETTING, "daily_cap": 999}, "daily_cap"),
        ({**SETTING, "below": -1}, "below"),
        ({"enabled": True, "amount": 1000, "below": 5}, "`daily_cap` is needed"),
        ({"enabled": True, "amount": 1000, "daily_cap": 5000}, "`below` is needed"),
        ({**SETTING, "card": "pm_1"}, "unknown field `card`"),
        (SETTING, "no saved card"),
    ],
)
def test_what_cannot_be_set_is_refused(shop: Shop, body: dict[str, object], words: str) -> None:
    reply = shop.ask(shop.world.customer(0), "POST", "auto-topup", body)
    assert reply.status == 400 and words in reply.json()["error"]["message"]
