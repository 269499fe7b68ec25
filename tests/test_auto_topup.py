"""Automatic top-ups: one attempt at a time, capped, backing off, and a link where the bank wants its customer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from goosestack import autotopup, ledger, payments
from goosestack.notices import later
from goosestack.payments import Fact, Payment
from tests.bookings import NOW, Bookings
from tests.shops import Shop
from tests.world import Customer, until

TOPUPS = {1000: 1000, 2500: 2600}
SETTING = {"enabled": True, "below": 500, "amount": 1000, "daily_cap": 3000}


@pytest.fixture
def books() -> Iterator[Bookings]:
    books = Bookings()
    autotopup.enable(books.db, books.alice, 500, 1000, 3000, later(NOW, -86_400 * 2))
    yield books
    books.close()


def attempt(books: Bookings, now: str = NOW) -> Payment | None:
    return autotopup.begin(books.db, books.alice, TOPUPS, books.terms, now)


def ends(books: Bookings, payment: Payment | None, name: str, detail: str = "", now: str = NOW) -> None:
    assert payment is not None
    payments.keep(books.db, Fact(payment.id, name, f"pi_{payment.id}", 1000, detail=detail))
    payments.refold(books.db, payment.id, books.terms, now)


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
    assert attempt(books) is None and autotopup.wanted(books.db) == []
    books.spend(1, "r1")
    assert autotopup.wanted(books.db) == [books.alice]
    autotopup.disable(books.db, books.alice, NOW)
    assert attempt(books) is None and autotopup.wanted(books.db) == []


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
    assert attempt(books, later(NOW, 86_400)) is None
    bought = books.sold(now=later(NOW, 60))
    payments.keep(books.db, Fact(bought.id, "paid", "cs_1", 1000))
    payments.refold(books.db, bought.id, books.terms, NOW)
    books.spend(900, "r1")
    assert attempt(books, later(NOW, 86_401)) is not None


def test_who_owes_something_is_not_charged_for_it(books: Bookings) -> None:
    payment = books.sold()
    payments.keep(books.db, Fact(payment.id, "paid", "cs_1", 1000), Fact(payment.id, "opened", "dp", 1000))
    payments.refold(books.db, payment.id, books.terms, NOW)
    books.spend(1000, "r1")
    payments.keep(books.db, Fact(payment.id, "withdrawn", "dp", 1000))
    payments.refold(books.db, payment.id, books.terms, NOW)
    assert books.funds()["debt_cents"] == 1000
    assert attempt(books) is None and autotopup.wanted(books.db) == []


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
