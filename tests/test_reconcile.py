"""Reconciliation: whatever was not heard of, lost, or forgotten by a backup is asked for, and ends in the same rows."""

from __future__ import annotations

import json
import sqlite3
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from goosestack import autotopup, inbox
from goosestack.stripe_facts import Intent
from goosestack.subscriptions import iso
from tests.asking import ask, chat
from tests.bookings import NOW, Bookings
from tests.shops import Shop
from tests.tills import KEY, SECRET
from tests.world import Customer, World, until

STATE = (
    "SELECT id, user_id, kind, amount, granted, status, refunded, disputed, failure, checkout_id, intent_id,"
    " subscription_id, receipt_url FROM payments ORDER BY id",
    "SELECT ref, target, posted FROM dues ORDER BY ref",
    "SELECT user_id, balance, carry, held, debt FROM accounts ORDER BY user_id",
    "SELECT id, user_id, status, price_id, until FROM subscriptions ORDER BY id",
    "SELECT id, stripe_customer_id, pro_until FROM users ORDER BY id",
)


@pytest.fixture
def own_shop(folder: Path) -> Any:
    shop = Shop.open(folder)
    yield shop
    shop.close()


def state(shop: Shop) -> list[tuple[Any, ...]]:
    return [row for sql in STATE for row in shop.rows(sql)]


def reconcile(shop: Shop, *, differs: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = shop.world.daemon.command("stripe", "reconcile", expect=1 if differs else 0)
    return found


def trade(shop: Shop) -> Customer:
    """Some of everything: refunds, disputes, bank payments, Pro."""
    alice = shop.world.customer(0)
    intent = shop.buy(alice)
    shop.till.refund(intent, 300)
    shop.till.refund(intent, 200, status="failed")
    won = shop.till.dispute(shop.buy(alice, 2500))
    shop.till.close(won["object"]["id"], "won")
    lost = shop.till.dispute(shop.buy(alice, 5000))
    shop.till.close(lost["object"]["id"], "lost")
    failed = shop.checkout(alice, 10_000)
    shop.till.pay(failed, method="bank")
    shop.till.do(f"checkouts/{failed}/fail")
    subscription = shop.subscribe(alice)
    shop.till.renew(subscription, "paid")
    bob = shop.world.customer(0, name="bob")
    shop.till.do(f"subscriptions/{shop.subscribe(bob)}/cancel")
    return alice


def test_where_everything_was_heard_of_nothing_differs(own_shop: Shop) -> None:
    alice = trade(own_shop)
    assert own_shop.balance(alice) == 700 + 2500
    before = state(own_shop)
    for _ in range(2):
        found = reconcile(own_shop)
        assert (found["changes"], found["review"]) == ([], [])
        assert state(own_shop) == before


def test_what_no_webhook_told_is_asked_for(own_shop: Shop) -> None:
    own_shop.till.delivery(mode="drop")
    alice = trade(own_shop)
    assert own_shop.balance(alice) == 0
    found = reconcile(own_shop, differs=True)
    assert any("-> partly_refunded, +700 cents" in each for each in found["changes"]), found
    assert own_shop.balance(alice) == 700 + 2500
    assert own_shop.pro_until(alice) is not None
    before = state(own_shop)
    assert reconcile(own_shop)["changes"] == []
    assert state(own_shop) == before


def test_from_an_emptied_inbox_the_same_state_comes_back(own_shop: Shop) -> None:
    trade(own_shop)
    before, events = state(own_shop), len(own_shop.outcomes())
    assert events > 10
    own_shop.world.daemon.program.stop()
    db = sqlite3.connect(own_shop.world.daemon.db)
    db.executescript("DELETE FROM stripe_events; DELETE FROM stripe_facts;")
    db.close()
    own_shop.restart()
    for _ in range(2):
        assert reconcile(own_shop)["changes"] == []
        assert state(own_shop) == before
    assert len(own_shop.outcomes()) == events


def test_a_backup_that_had_not_seen_a_payment_is_granted_it_once(own_shop: Shop) -> None:
    shop, alice = own_shop, own_shop.world.customer(0)
    shop.buy(alice)
    backup = shop.world.daemon.command("backup", str(shop.world.folder / "copy.sqlite3"))["file"]
    shop.buy(alice, 2500)
    shop.till.refund(shop.buy(alice, 5000), 1000)
    assert ask(shop.world, "POST", "/v1/chat/completions", key=alice.key, body=chat(max_tokens=50)).status == 200
    shop.world.daemon.program.stop()
    shop.world.daemon.command("restore", backup)
    shop.restart()
    assert shop.balance(alice) == 1000
    found = reconcile(shop, differs=True)
    assert len(found["changes"]) == 2, found
    assert shop.balance(alice) == 1000 + 2500 + 4000
    shop.till.deliver(types=["checkout.session.completed", "charge.refunded"], copies=2)
    assert shop.balance(alice) == 1000 + 2500 + 4000
    assert reconcile(shop)["changes"] == []


def test_a_backup_from_before_the_first_purchase_learns_the_customer_again(own_shop: Shop) -> None:
    shop, alice = own_shop, own_shop.world.customer(0)
    backup = shop.world.daemon.command("backup", str(shop.world.folder / "copy.sqlite3"))["file"]
    shop.buy(alice)
    shop.subscribe(alice)
    before = state(shop)
    shop.world.daemon.program.stop()
    shop.world.daemon.command("restore", backup)
    shop.restart()
    shop.till.deliver(types=["checkout.session.completed"])
    assert shop.balance(alice) == 0, "what we do not know of grants nothing by itself"
    assert {status for _, status, _ in shop.outcomes()} == {"review"}
    assert reconcile(shop, differs=True)["review"] == [], "what waited for review is understood now"
    assert state(shop) == before


def test_a_user_whom_the_books_have_never_seen_needs_a_person(own_shop: Shop) -> None:
    shop = own_shop
    backup = shop.world.daemon.command("backup", str(shop.world.folder / "copy.sqlite3"), expect=0)["file"]
    shop.buy(shop.world.customer(0))
    shop.world.daemon.program.stop()
    shop.world.daemon.command("restore", backup)
    shop.restart()
    found = reconcile(shop, differs=True)
    assert any("cannot be made again" in each for each in found["review"]), found
    assert shop.rows("SELECT count(*) FROM payments") == [(0,)]


def test_it_works_without_a_daemon_as_well(own_shop: Shop) -> None:
    own_shop.till.delivery(mode="drop")
    alice = own_shop.world.customer(0)
    own_shop.buy(alice)
    own_shop.world.daemon.program.stop()
    assert len(reconcile(own_shop, differs=True)["changes"]) == 1
    assert reconcile(own_shop)["changes"] == []
    own_shop.restart()
    assert own_shop.balance(alice) == 1000


def test_where_stripe_cannot_be_asked_it_says_so_and_forgets_nothing(own_shop: Shop) -> None:
    own_shop.till.delivery(mode="drop")
    alice = own_shop.world.customer(0)
    own_shop.buy(alice)
    own_shop.till.fault("error_500", path="/v1/disputes", times=3)
    refused = own_shop.world.daemon.command("stripe", "reconcile", expect=75)
    assert "Stripe could not be asked" in refused
    assert reconcile(own_shop, differs=True)["changes"] and own_shop.balance(alice) == 1000


def test_after_a_run_only_what_is_new_is_asked_for(own_shop: Shop) -> None:
    own_shop.buy(own_shop.world.customer(0))
    assert reconcile(own_shop)["since"] == 0
    assert reconcile(own_shop)["since"] > 1_700_000_000


def test_stripe_that_cannot_be_asked_is_another_exit_code_without_a_daemon_as_well(own_shop: Shop) -> None:
    own_shop.world.daemon.program.stop()
    own_shop.till.fault("error_500", path="/v1/disputes", times=3)
    assert "Stripe could not be asked" in own_shop.world.daemon.command("stripe", "reconcile", expect=75)
    own_shop.restart()


def test_what_was_looked_at_is_not_brought_up_again(own_shop: Shop) -> None:
    shop, daemon = own_shop, own_shop.world.daemon
    checkout = shop.checkout(shop.world.customer(0))
    shop.till.edit(checkout, amount_total=1)
    shop.till.pay(checkout)
    (event,) = daemon.command("stripe", "reviews")
    assert reconcile(shop, differs=True)["review"] == [f"{event['id']} ({event['type']}): {event['reason']}"]
    daemon.command("stripe", "reviews", "--done", event["id"])
    assert reconcile(shop)["review"] == [], "the object says what its event had said"


def test_a_doubt_that_no_event_bears_is_a_row_that_can_be_looked_at(own_shop: Shop) -> None:
    shop, daemon = own_shop, own_shop.world.daemon
    shop.till.delivery(mode="drop")
    intent = shop.buy(shop.world.customer(0))
    assert reconcile(shop, differs=True)["review"] == []
    shop.till.edit(intent, customer="cus_of_somebody_else")
    found = reconcile(shop, differs=True)
    (row,) = daemon.command("stripe", "reviews")
    assert found["review"] == [f"{row['id']} (reconcile): {row['reason']}"]
    assert "customer is cus_of_somebody_else" in row["reason"]
    daemon.command("stripe", "reviews", "--done", row["id"])
    for _ in range(2):
        assert reconcile(shop)["review"] == []
    assert daemon.command("stripe", "reviews") == []


def test_what_is_told_while_stripe_is_asked_is_newer_than_the_answer(own_shop: Shop) -> None:
    shop, alice = own_shop, own_shop.world.customer(0)
    subscription = shop.subscribe(alice)
    shop.till.fault("hang_after", method="GET", path="/v1/subscriptions", seconds=4)
    with ThreadPoolExecutor() as pool:
        reconciling = pool.submit(shop.world.daemon.command, "stripe", "reconcile")
        until(lambda: shop.till.requests(method="GET", path="/v1/subscriptions"), "the question")
        asked = shop.till.now()
        until(lambda: shop.till.now() > asked, "the next second")
        shop.till.edit(subscription, status="past_due", event="customer.subscription.updated")
        shop.till.settle()
        reconciling.result()
    assert shop.rows("SELECT status FROM subscriptions") == [("past_due",)]


def test_a_payment_that_is_found_bears_the_time_at_which_it_was_made(own_shop: Shop) -> None:
    shop, alice = own_shop, own_shop.world.customer(0)
    backup = shop.world.daemon.command("backup", str(shop.world.folder / "copy.sqlite3"))["file"]
    intent = shop.buy(alice)
    shop.world.daemon.program.stop()
    shop.world.daemon.command("restore", backup)
    shop.restart()
    reconcile(shop, differs=True)
    (checkout,) = shop.till.objects("checkout.session")
    assert shop.listed(alice)[0]["created_at"] == iso(checkout["created"])
    assert shop.rows("SELECT intent_id, created_at FROM payments") == [(intent, iso(checkout["created"]))]


def test_a_top_up_that_does_not_fit_is_neither_made_again_nor_charged() -> None:
    books = Bookings()
    told = {"payment": "pay_old", "user": books.alice, "kind": "auto", "amount": "1000", "granted": "1000"}
    found = Intent("pi_old", "succeeded", 1000, "usd", False, "cus_of_before", told, None)
    _, doubts = inbox.absorb(books.db, [found], books.terms, NOW)
    assert doubts == ["pay_old: customer is cus_of_before, and should be cus_alice"]
    assert books.db.execute("SELECT count(*) FROM payments").fetchone() == (0,)
    assert autotopup.wanted(books.db, NOW) == []
    assert autotopup.begin(books.db, books.alice, {1000: 1000}, books.terms, NOW) is None
    books.close()


def test_of_two_who_replace_a_deleted_customer_at_once_the_first_wins() -> None:
    books = Bookings()
    for made in ("cus_new", "cus_newer"):
        assert inbox.replace_customer(books.db, books.alice, "cus_alice", made) == "cus_new"
    assert books.db.execute("SELECT * FROM former_customers").fetchall() == [("cus_alice", books.alice)]
    books.close()


# --- customers and checkouts ----------------------------------------------------------------------------------


def delete_at_stripe(shop: Shop, customer: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{shop.till.url}/v1/customers/{customer}", headers=headers, method="DELETE")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.loads(answer.read())["deleted"] is True


def test_a_customer_that_was_deleted_at_stripe_buys_as_a_new_one(own_shop: Shop) -> None:
    shop, alice = own_shop, own_shop.world.customer(0)
    old = shop.buy(alice)
    ((before,),) = shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", alice.id)
    delete_at_stripe(shop, before)
    shop.buy(alice, 2500)
    ((after,),) = shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", alice.id)
    assert after != before and shop.balance(alice) == 3500
    assert "was deleted at Stripe" in shop.world.daemon.program.text()
    assert reconcile(shop)["review"] == [], "what the old one had bought is hers all the same"
    shop.till.refund(old)
    assert shop.balance(alice) == 2500
    saved = {"enabled": True, "below": 0, "amount": 1000, "daily_cap": 1000}
    assert shop.ask(alice, "POST", "auto-topup", saved).status == 200
    shop.till.reset()
    refused = shop.ask(alice, "POST", "auto-topup", saved)
    assert refused.status == 400 and "no saved card" in refused.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["error_500", "error_500_after"])
def test_a_checkout_that_stripe_could_not_make_is_tried_again_under_the_same_key(own_shop: Shop, kind: str) -> None:
    shop, alice = own_shop, own_shop.world.customer(0)
    shop.till.fault(kind, path="/v1/checkout/sessions", method="POST", times=3)
    purchase = {"type": "credits", "amount": 1000}
    refused = shop.ask(alice, "POST", "checkout", purchase, idempotency_key="k1")
    assert refused.status == 503 and "Try again" in refused.json()["error"]["message"]
    shop.till.no_faults()
    first, again = (shop.ask(alice, "POST", "checkout", purchase, idempotency_key="k1") for _ in range(2))
    assert (first.status, first.json()) == (200, again.json()), first.data
    assert sorted(each["failure"] or "" for each in shop.listed(alice)) == ["", "not_opened"]
    assert shop.rows("SELECT count(*) FROM notices") == [(0,)]


# --- setting it up --------------------------------------------------------------------------------------------


def test_setup_makes_an_endpoint_that_works_and_tells_its_secret_once(own_shop: Shop) -> None:
    shop = own_shop
    made = shop.world.daemon.command("stripe", "setup")
    assert made["url"] == "https://llm.example.com/billing/webhook" and made["secret"].startswith("whsec_")
    (endpoint,) = [each for each in shop.till.objects("webhook_endpoint") if each["url"] == made["url"]]
    assert endpoint["api_version"] == "2026-10-28.endive"
    assert set(endpoint["enabled_events"]) == set(made["events"])
    assert "already" in shop.world.daemon.command("stripe", "setup", expect=1)
    assert shop.world.daemon.command("stripe", "setup", "--again")["others"] == [made["id"]]
    assert SECRET not in shop.world.daemon.program.text() and made["secret"] not in shop.world.daemon.program.text()


def test_setup_needs_to_know_where_stripe_finds_us(folder: Path) -> None:
    pages = dict.fromkeys(("CHECKOUT_SUCCESS_URL", "CHECKOUT_CANCEL_URL"), "https://shop.example.com")
    world = World.create(
        folder, STRIPE_SECRET_KEY=KEY, PORTAL_RETURN_URL="https://shop.example.com", **cast(Any, pages)
    )
    try:
        assert "PUBLIC_URL is not set" in world.daemon.command("stripe", "setup", expect=1)
    finally:
        world.close()


def test_without_a_key_there_is_nothing_to_ask(folder: Path) -> None:
    world = World.create(folder, PUBLIC_URL="https://llm.example.com")
    try:
        assert "STRIPE_SECRET_KEY is not set" in world.daemon.command("stripe", "reconcile", expect=1)
    finally:
        world.close()
