"""Customers buy credits and Pro by themselves, and want their money back: from the key to the balance, over sockets."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from goosestack import app
from goosestack.billing import Billing, Shop as Offer
from goosestack.config import Config
from goosestack.errors import StoreUnavailable
from goosestack.payments import Terms
from goosestack.stripe_facts import Event
from goosestack.subscriptions import iso
from tests.asking import ask, chat, directed
from tests.project import Project
from tests.shops import PUBLIC, Shop, make_price
from tests.tills import Till
from tests.world import PATIENCE_S, Customer, until


def talk(shop: Shop, customer: Customer, **headers: str) -> int:
    """One small request; its status."""
    return ask(
        shop.world, "POST", "/v1/chat/completions", key=customer.key, body=chat(max_tokens=50), headers=headers
    ).status


# --- credits --------------------------------------------------------------------------------------------------


def test_from_a_key_to_a_paid_balance_to_a_request_to_a_refund(shop: Shop) -> None:
    made = ask(shop.world, "POST", "/v1/keys", body={"email": "alice@example.com", "name": "laptop"}).json()
    (user,) = shop.rows("SELECT user_id FROM api_keys WHERE id = ?", made["id"])
    alice = Customer(user[0], made["api_key"], made["id"])
    assert talk(shop, alice) == 402
    intent = shop.buy(alice)
    assert shop.balance(alice) == 1000
    assert talk(shop, alice) == 200
    assert shop.balance(alice) == 999
    (listed,) = shop.listed(alice)
    assert (listed["type"], listed["status"], listed["amount_cents"]) == ("credits", "paid", 1000)
    assert listed["receipt_url"].startswith(shop.till.url)
    shop.till.refund(intent, 300)
    assert shop.balance(alice) == 699
    shop.till.refund(intent)
    funds = shop.world.funds(alice)
    assert (funds["balance_cents"], funds["debt_cents"]) == (0, 1)
    (listed,) = shop.listed(alice)
    assert (listed["status"], listed["refunded_cents"]) == ("refunded", 1000)


def test_who_spent_what_was_refunded_owes_it_and_is_told_so(shop: Shop) -> None:
    alice = shop.world.customer(0)
    intent = shop.buy(alice)
    assert talk(shop, alice) == 200
    shop.till.refund(intent)
    reply = ask(shop.world, "POST", "/v1/chat/completions", key=alice.key, body=chat(max_tokens=50))
    assert reply.status == 402
    assert "$0.01 is owed" in reply.json()["error"]["message"] and PUBLIC in reply.json()["error"]["message"]
    usage = ask(shop.world, "GET", "/v1/usage", key=alice.key).json()
    assert (usage["balance_cents"], usage["debt_cents"]) == (0, 1)
    shop.buy(alice)
    assert shop.world.funds(alice)["balance_cents"] == 999
    assert talk(shop, alice) == 200


def test_who_has_no_e_mail_that_stripe_takes_buys_all_the_same(shop: Shop) -> None:
    """Anything may stand where a user's e-mail is; Stripe asks for one that it takes."""
    for label in ("alice@localhost", "a@b c.example", "@"):
        user = shop.world.verb("user_create", email=label)
        made = shop.world.verb("key_create", user=user["id"], name="test")
        alice = Customer(user["id"], made["api_key"], made["id"])
        shop.buy(alice)
        shop.buy(alice)
        assert shop.balance(alice) == 2000
        ((customer,),) = shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", alice.id)
        told = shop.till.object(customer)
        assert (told["metadata"], told["email"]) == ({"user": alice.id}, None)


def test_while_stripe_makes_no_customers_nobody_is_one_and_the_next_try_may_be_better(shop: Shop) -> None:
    alice = shop.world.customer(0)
    shop.till.fault("error_500", path="/v1/customers", times=5)
    assert shop.ask(alice, "POST", "checkout", {"type": "credits", "amount": 1000}).status == 503
    assert shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", alice.id) == [(None,)]
    shop.till.no_faults()
    shop.buy(alice)
    assert shop.balance(alice) == 1000


def test_a_user_of_a_supabase_project_buys_and_manages_by_their_token(folder: Path) -> None:
    """Also one who signs in by telephone, and has no e-mail at all."""
    project = Project(folder)
    shop = Shop.open(folder, SUPABASE_URL=project.url)
    try:
        for claims in ({"email": "alice@example.com"}, {"email": ""}, {"email": None}):
            token = project.token(claims=claims)
            me = ask(shop.world, "GET", "/api/me", key=token).json()["user"]["id"]
            alice = Customer(me, token, "")
            assert shop.ask(alice, "GET", "portal").status == 400  # nothing to manage yet
            shop.buy(alice)
            assert talk(shop, alice) == 200
            assert shop.ask(alice, "GET", "portal").json()["url"].startswith(shop.till.url)
            switch = {"enabled": True, "below": 500, "amount": 1000, "daily_cap": 5000}
            assert shop.ask(alice, "POST", "auto-topup", switch).json()["enabled"] is True
            assert [one["status"] for one in shop.listed(alice)] == ["paid"]
        for refused in (None, Customer("", project.token(signer="stranger"), "")):
            for method, path in (("POST", "checkout"), ("GET", "portal"), ("GET", "payments"), ("POST", "auto-topup")):
                assert shop.ask(refused, method, path).status == 401
    finally:
        shop.close()
        project.close()


def test_a_refund_while_an_answer_is_on_its_way_takes_what_it_returns(shop: Shop) -> None:
    alice = shop.world.customer(0)
    intent = shop.buy(alice)
    slow = chat(directed("Slowly", words=40, delay_ms=20), max_completion_tokens=20_000, stream=True, model="gpt-5.5")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, shop.world, "POST", "/v1/chat/completions", key=alice.key, body=slow)
        until(lambda: shop.world.funds(alice)["held_cents"] > 0, "the hold")
        shop.till.refund(intent)
        held = shop.world.funds(alice)
        assert held["available_cents"] == 0 and held["debt_cents"] > 0 and held["balance_cents"] >= held["held_cents"]
        assert answer.result().status == 200
    funds = until(lambda: (funds := shop.world.funds(alice))["held_cents"] == 0 and funds, "the end of it")
    (row,) = shop.world.ended_rows(alice, 1)
    assert (funds["balance_cents"], funds["debt_cents"]) == (0, row["billed"])


def test_a_dispute_takes_the_credits_and_its_end_gives_them_back(shop: Shop) -> None:
    alice = shop.world.customer(0)
    opened = shop.till.dispute(shop.buy(alice, 2500))
    assert shop.balance(alice) == 0
    assert talk(shop, alice) == 402
    shop.till.close(opened["object"]["id"], "won")
    assert shop.balance(alice) == 2500
    assert talk(shop, alice) == 200


def test_an_inquiry_takes_nothing_and_a_lost_dispute_takes_it_for_good(shop: Shop) -> None:
    alice = shop.world.customer(0)
    inquiry = shop.till.dispute(shop.buy(alice), inquiry=True)
    assert shop.balance(alice) == 1000
    shop.till.close(inquiry["object"]["id"], "warning_closed")
    assert shop.balance(alice) == 1000
    lost = shop.till.dispute(shop.buy(alice))
    shop.till.close(lost["object"]["id"], "lost")
    assert shop.balance(alice) == 1000


def test_a_refund_that_fails_gives_back(shop: Shop) -> None:
    alice = shop.world.customer(0)
    shop.till.refund(shop.buy(alice), 400, status="failed")
    assert shop.balance(alice) == 1000


def test_a_bank_payment_is_granted_when_the_money_comes(shop: Shop) -> None:
    alice = shop.world.customer(0)
    checkout = shop.checkout(alice)
    shop.till.pay(checkout, method="bank")
    assert (shop.balance(alice), shop.listed(alice)[0]["status"]) == (0, "unpaid")
    shop.till.do(f"checkouts/{checkout}/succeed")
    assert (shop.balance(alice), shop.listed(alice)[0]["status"]) == (1000, "paid")
    other = shop.checkout(alice)
    shop.till.pay(other, method="bank")
    shop.till.do(f"checkouts/{other}/fail")
    assert (shop.balance(alice), shop.listed(alice)[0]["status"]) == (1000, "failed")


def test_a_declined_card_leaves_the_checkout_open(shop: Shop) -> None:
    alice = shop.world.customer(0)
    checkout = shop.checkout(alice)
    shop.till.pay(checkout, card="card_declined")
    assert (shop.balance(alice), shop.listed(alice)[0]["status"]) == (0, "open")
    shop.till.pay(checkout)
    assert (shop.balance(alice), shop.listed(alice)[0]["status"]) == (1000, "paid")


def test_an_expired_checkout_is_not_handed_out_again(shop: Shop) -> None:
    alice = shop.world.customer(0)
    first = shop.checkout(alice)
    shop.till.do(f"checkouts/{first}/expire")
    assert shop.listed(alice)[0]["status"] == "expired"
    assert shop.checkout(alice) != first


def test_the_old_shape_of_the_api_is_understood_as_well(shop: Shop) -> None:
    shop.till.delivery(shape="old")
    alice = shop.world.customer(0)
    shop.till.refund(shop.buy(alice), 300)
    assert shop.balance(alice) == 700
    shop.subscribe(alice)
    assert ask(shop.world, "GET", "/v1/usage", key=alice.key).json()["pro"] is True


# --- checkout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "`type` must be credits or pro"),
        ({"type": "gold"}, "`type` must be credits or pro"),
        ({"type": "credits"}, "`amount` must be one of 1000, 2500, 5000, 10000"),
        ({"type": "credits", "amount": 1}, "`amount` must be one of 1000, 2500, 5000, 10000"),
        ({"type": "credits", "amount": True}, "`amount` must be one of"),
        ({"type": "credits", "amount": 1000.0}, "`amount` must be one of"),
        ({"type": "credits", "amount": "1000"}, "`amount` must be one of"),
        ({"type": "credits", "amount": -1000}, "`amount` must be one of"),
        ({"type": "pro", "amount": 1000}, "`amount` is for credits"),
        ({"type": "credits", "amount": 1000, "success_url": "https://evil.example"}, "unknown field `success_url`"),
        ({"type": "credits", "amount": 1000, "customer": "cus_x"}, "unknown field `customer`"),
        ({"type": "credits", "amount": 1000, "currency": "jpy"}, "unknown field `currency`"),
    ],
)
def test_what_is_not_sold_is_refused_by_what_is(shop: Shop, body: dict[str, object], words: str) -> None:
    alice = shop.world.customer(0)
    reply = shop.ask(alice, "POST", "checkout", body)
    assert reply.status == 400 and words in reply.json()["error"]["message"]
    assert shop.rows("SELECT count(*) FROM payments WHERE user_id = ?", alice.id) == [(0,)]


def test_a_checkout_needs_a_key(shop: Shop) -> None:
    body = {"type": "credits", "amount": 1000}
    assert shop.ask(None, "POST", "checkout", body).status == 401
    assert shop.ask(None, "GET", "portal").status == 401
    assert shop.ask(None, "GET", "payments").status == 401
    assert shop.ask(None, "POST", "auto-topup", {"enabled": False}).status == 401


def test_one_customer_is_made_for_a_user_and_never_looked_up(shop: Shop) -> None:
    first, second = shop.world.customer(0), shop.world.customer(0)
    for alice in (first, second):
        shop.buy(alice)
        shop.buy(alice, 2500)
    made = [each for each in shop.till.objects("customer") if each["metadata"].get("user") in (first.id, second.id)]
    assert len(made) == 2
    assert {each["email"] for each in made} == {"alice@example.com"}
    asked = {request["path"] for request in shop.till.requests() if request["method"] == "GET"}
    assert not asked & {"/v1/customers", "/v1/customers/search"}


def test_an_open_checkout_is_handed_out_again(shop: Shop) -> None:
    alice = shop.world.customer(0)
    assert shop.checkout(alice) == shop.checkout(alice)
    assert shop.checkout(alice, 2500) != shop.checkout(alice)


def test_checkouts_that_are_asked_for_at_once_are_one(shop: Shop) -> None:
    alice = shop.world.customer(0)
    with ThreadPoolExecutor(10) as pool:
        found = set(pool.map(lambda _: shop.checkout(alice), range(10)))
    assert len(found) == 1


def test_the_same_idempotency_key_is_the_same_purchase_also_when_it_was_paid(shop: Shop) -> None:
    alice = shop.world.customer(0)
    body = {"type": "credits", "amount": 1000}
    first = shop.ask(alice, "POST", "checkout", body, idempotency_key="one").json()
    shop.till.pay(first["session_id"])
    assert shop.ask(alice, "POST", "checkout", body, idempotency_key="one").json() == first
    assert shop.ask(alice, "POST", "checkout", body, idempotency_key="two").json() != first
    other = shop.ask(alice, "POST", "checkout", {"type": "credits", "amount": 2500}, idempotency_key="one")
    assert other.status == 400 and "another purchase" in other.json()["error"]["message"]
    bob = shop.world.customer(0, name="bob")
    assert shop.ask(bob, "POST", "checkout", body, idempotency_key="one").json() != first


@pytest.mark.parametrize("kind", ["error_500_after", "cut_after", "cut", "error_503", "error_409", "error_429"])
def test_a_checkout_whose_answer_is_lost_is_the_same_one_when_asked_again(shop: Shop, kind: str) -> None:
    alice = shop.world.customer(0)
    shop.till.fault(kind, path="/v1/checkout/sessions", method="POST", times=1)
    statuses = [shop.ask(alice, "POST", "checkout", {"type": "credits", "amount": 1000}).status for _ in range(2)]
    assert statuses[-1] == 200, statuses
    made = [each for each in shop.till.objects("checkout.session") if each["metadata"].get("user") == alice.id]
    assert len(made) == (2 if kind == "error_500_after" else 1), "Stripe repeats a 500 for as long as it is asked"
    shop.till.no_faults()


def test_where_stripe_cannot_be_asked_nothing_is_sold_and_nothing_is_lost(shop: Shop) -> None:
    alice = shop.world.customer(0)
    shop.till.fault("error_503", path="/v1/checkout/sessions", times=3)
    reply = shop.ask(alice, "POST", "checkout", {"type": "credits", "amount": 1000})
    assert reply.status == 503 and "nothing was charged" in reply.json()["error"]["message"]
    shop.till.no_faults()
    shop.till.pay(shop.checkout(alice))
    assert shop.balance(alice) == 1000


def test_where_stripe_cannot_be_asked_the_portal_and_the_saved_card_wait_too(shop: Shop) -> None:
    alice = shop.world.customer(0)
    shop.buy(alice)
    setting = {"enabled": True, "below": 500, "amount": 1000, "daily_cap": 3000}
    asked: list[tuple[str, str, str, object]] = [
        ("/v1/billing_portal/sessions", "GET", "portal", None),
        ("/v1/payment_methods", "POST", "auto-topup", setting),
    ]
    for path, method, name, body in asked:
        shop.till.fault("error_503", path=path, times=3)
        reply = shop.ask(alice, method, name, body)
        assert reply.status == 503 and reply.json()["error"]["type"] == "billing_unavailable"
        shop.till.no_faults()
        assert shop.ask(alice, method, name, body).status == 200


def test_a_purchase_that_was_paid_though_its_address_was_lost_is_not_sold_again_under_its_key(shop: Shop) -> None:
    alice = shop.world.customer(0)
    shop.till.fault("cut_after", method="POST", path="/v1/checkout/sessions", times=3)
    asked = {"type": "credits", "amount": 1000}
    assert shop.ask(alice, "POST", "checkout", asked, idempotency_key="k1").status == 503
    shop.till.no_faults()
    (made,) = [each for each in shop.till.objects("checkout.session") if each["metadata"].get("user") == alice.id]
    shop.till.pay(made["id"])
    assert shop.balance(alice) == 1000
    reply = shop.ask(alice, "POST", "checkout", asked, idempotency_key="k1")
    assert reply.status == 400 and "use another key" in reply.json()["error"]["message"]
    assert shop.ask(alice, "POST", "checkout", asked, idempotency_key="k2").status == 200


@pytest.mark.parametrize("key", ["", "k" * 256, "sch\u00fcssel"])
def test_an_idempotency_key_is_a_short_text(shop: Shop, key: str) -> None:
    alice = shop.world.customer(0)
    reply = shop.ask(alice, "POST", "checkout", {"type": "credits", "amount": 1000}, idempotency_key=key)
    assert reply.status == 400 and "`Idempotency-Key`" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "about", "outcome"),
    [("charge.refunded", {"object": "goose"}, "review"), ("customer.created", {"object": "customer"}, "ignored")],
    ids=["strange", "understood"],
)
async def test_an_event_that_the_store_cannot_take_is_taken_when_it_comes_again(
    folder: Path, kind: str, about: dict[str, object], outcome: str
) -> None:
    config = Config(db_path=folder / "a.db", openai_api_key="sk-test", log_level="error")
    event = Event("evt_1", kind, 1, False, about)
    async with app.running(config) as parts:
        billing = Billing(parts.gateway, Offer(Terms(livemode=False), {}), None)
        await parts.store.close()
        with pytest.raises(StoreUnavailable):
            await billing.take(event, "{}")
    async with app.running(config) as parts:
        billing = Billing(parts.gateway, Offer(Terms(livemode=False), {}), None)
        assert await billing.take(event, "{}") == outcome


def test_amounts_and_bonuses_are_the_operators(folder: Path) -> None:
    shop = Shop.open(folder, TOPUPS="500,2000+300")
    try:
        alice = shop.world.customer(0)
        assert shop.ask(alice, "POST", "checkout", {"type": "credits", "amount": 1000}).status == 400
        intent = shop.buy(alice, 2000)
        assert shop.balance(alice) == 2300
        shop.till.refund(intent, 1000)
        assert shop.balance(alice) == 1150
    finally:
        shop.close()


# --- the portal -----------------------------------------------------------------------------------------------


def test_the_portal_is_for_customers(shop: Shop) -> None:
    alice = shop.world.customer(0)
    reply = shop.ask(alice, "GET", "portal")
    assert reply.status == 400 and "POST /billing/checkout" in reply.json()["error"]["message"]
    shop.buy(alice)
    assert shop.ask(alice, "GET", "portal").json()["url"].startswith(shop.till.url)


# --- Pro ------------------------------------------------------------------------------------------------------


def test_a_subscription_makes_pro_which_byok_needs_and_its_end_ends_it(shop: Shop) -> None:
    bob = shop.world.customer(0, name="bob")
    own = {"x-provider-key": "sk-operator-openai-canary-0001"}
    assert talk(shop, bob, **own) == 403
    subscription = shop.subscribe(bob)
    assert talk(shop, bob, **own) == 200
    paid = shop.pro_until(bob)
    shop.till.do(f"subscriptions/{subscription}/cancel", at_period_end=True)
    assert shop.pro_until(bob) == paid
    assert talk(shop, bob, **own) == 200
    shop.till.do(f"subscriptions/{subscription}/cancel")
    assert talk(shop, bob, **own) == 403
    invoices = [each for each in shop.listed(bob) if each["type"] == "pro"]
    assert [(each["status"], each["amount_cents"]) for each in invoices] == [("paid", 1000)]
    assert invoices[0]["receipt_url"].startswith(shop.till.url)


def test_a_renewal_extends_pro_and_one_that_fails_does_not(shop: Shop) -> None:
    bob = shop.world.customer(0, name="bob")
    subscription = shop.subscribe(bob)
    first = str(shop.pro_until(bob))
    shop.till.renew(subscription, "paid")
    second = str(shop.pro_until(bob))
    assert second > first
    shop.till.renew(subscription, "failed")
    (paid,) = shop.rows("SELECT until FROM subscriptions WHERE id = ?", subscription)[0]
    assert shop.pro_until(bob) == paid < second, "what is paid for, without the grace"
    shop.till.do(f"subscriptions/{subscription}/retry", outcome="paid")
    assert str(shop.pro_until(bob)) > second


def test_who_is_subscribed_is_not_sold_pro_again(shop: Shop) -> None:
    bob = shop.world.customer(0, name="bob")
    shop.subscribe(bob)
    reply = shop.ask(bob, "POST", "checkout", {"type": "pro"})
    assert reply.status == 400 and "Pro already" in reply.json()["error"]["message"]


def test_between_a_periods_end_and_its_next_invoice_a_subscriber_is_pro_and_is_not_sold_another(shop: Shop) -> None:
    """Stripe asks for the next period an hour after it has begun: the paid one has ended half an hour ago."""
    bob = shop.world.customer(0, name="bob")
    ends = int(time.time()) - 1800
    shop.till.delivery(types=["none"])
    subscription = shop.subscribe(bob)
    (customer,) = shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", bob.id)[0]
    (paid,) = [each for each in shop.till.objects("invoice") if each["customer"] == customer]
    paid["lines"]["data"][0]["period"]["end"] = ends
    shop.till.delivery(types=None)
    shop.till.emit("invoice.paid", {key: value for key, value in paid.items() if key[0] != "_"})
    assert shop.rows("SELECT status, until FROM subscriptions WHERE id = ?", subscription) == [("active", iso(ends))]
    assert shop.pro_until(bob) == iso(ends + 3 * 3_600)
    assert talk(shop, bob, **{"x-provider-key": "sk-operator-openai-canary-0001"}) == 200
    assert shop.ask(bob, "POST", "checkout", {"type": "pro"}).status == 400


def test_credits_and_pro_work_with_just_four_events(folder: Path) -> None:
    shop = Shop.open(folder)
    try:
        four = "checkout.session.completed invoice.paid invoice.payment_failed customer.subscription.deleted".split()
        shop.till.delivery(types=four)
        bob = shop.world.customer(0, name="bob")
        shop.buy(bob)
        subscription = shop.subscribe(bob)
        assert shop.balance(bob) == 1000
        paid = str(shop.pro_until(bob))
        shop.till.renew(subscription, "failed")
        assert shop.pro_until(bob) == paid
        shop.till.do(f"subscriptions/{subscription}/cancel")
        assert str(shop.pro_until(bob)) < paid
    finally:
        shop.close()


def test_pro_at_a_price_of_stripes(folder: Path) -> None:
    till = Till.start(folder)
    price = make_price(till, 1500)
    shop = Shop.open(folder, till=till, STRIPE_PRO_PRICE_ID=price)
    try:
        bob = shop.world.customer(0, name="bob")
        subscription = shop.subscribe(bob)
        assert shop.pro_until(bob) is not None
        assert shop.listed(bob)[0]["amount_cents"] == 1500
        assert shop.rows("SELECT id, price_id FROM subscriptions") == [(subscription, price)]
    finally:
        shop.close()


# --- whose key ends meanwhile -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/billing/checkout", b'{"type":"credits","amount":1000}'),
        ("/billing/auto-topup", b'{"enabled":false}'),
        ("/api/me/spending-cap", b'{"cents":5}'),
    ],
)
def test_a_key_that_is_revoked_before_the_body_has_come_does_nothing(shop: Shop, path: str, body: bytes) -> None:
    alice = shop.world.customer()
    place = urlsplit(shop.world.url)
    with (
        socket.create_connection((place.hostname, place.port), timeout=PATIENCE_S) as connection,
        connection.makefile("rb") as answer,
    ):
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {alice.key}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 100 " in answer.readline(), "it is known who asks, and the body is waited for"
        assert answer.readline() == b"\r\n"
        shop.world.verb("key_revoke", key=alice.key_id)
        connection.sendall(body)
        assert answer.readline().split()[1] == b"401"
    assert shop.rows("SELECT count(*) FROM payments WHERE user_id = ?", alice.id) == [(0,)]
    assert shop.rows("SELECT count(*) FROM auto_topups WHERE user_id = ?", alice.id) == [(0,)]
    assert shop.rows("SELECT count(*) FROM spending_caps WHERE user_id = ?", alice.id) == [(0,)]


def test_every_answer_about_money_says_how_often_may_be_asked(shop: Shop) -> None:
    reply = shop.ask(shop.world.customer(), "GET", "payments")
    assert reply.status == 200
    assert {f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")} <= set(reply.headers)
