"""Mallory and the till: she floods it, asks for what is not sold, and sends its customers elsewhere.

What is forged, altered, doubled or lost on the way is in `test_webhook.py`, what comes in another order in
`test_payments.py` and `test_subscriptions.py`, what a backup has forgotten in `test_reconcile.py`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.asking import ask, chat
from tests.shell import operator_of
from tests.shops import Shop
from tests.tills import KEY, SECRET
from tests.world import World


def test_a_hundred_checkouts_make_at_most_five_at_stripe(folder: Path) -> None:
    shop = Shop.open(folder, TOPUPS=",".join(str(1000 + number) for number in range(100)))
    try:
        mallory = shop.world.customer(0, name="mallory")
        replies = [
            shop.ask(mallory, "POST", "checkout", {"type": "credits", "amount": 1000 + number}) for number in range(100)
        ]
        assert [reply.status for reply in replies] == [200] * 5 + [429] * 95
        assert len(shop.till.objects("checkout.session")) == 5
        bob = shop.world.customer(0, name="bob")
        shop.buy(bob, 1000)
        assert shop.balance(bob) == 1000, "others buy meanwhile"
    finally:
        shop.close()


def test_a_flood_of_junk_at_the_webhook_delays_nobody(shop: Shop) -> None:
    alice = shop.world.customer(1000)
    junk = b"x" * 100_000
    headers = {"content-type": "application/json", "stripe-signature": "t=1,v1=0"}

    def flood(_: int) -> int:
        return ask(shop.world, "POST", "/billing/webhook", data=junk, headers=headers).status

    with ThreadPoolExecutor(8) as pool:
        flooding = [pool.submit(flood, number) for number in range(600)]
        longest = 0.0
        for _ in range(20):
            started = time.monotonic()
            assert (
                ask(shop.world, "POST", "/v1/chat/completions", key=alice.key, body=chat(max_tokens=20)).status == 200
            )
            longest = max(longest, time.monotonic() - started)
        assert {done.result() for done in flooding} <= {400, 429}
    assert longest < 5
    other = shop.world.customer(0)
    shop.buy(other)
    assert shop.balance(other) == 1000, "what Stripe signed still passes, from the same address"


@pytest.mark.parametrize("field", ["success_url", "cancel_url", "return_url", "price", "customer", "metadata", "mode"])
def test_nobody_chooses_where_a_buyer_is_sent_or_what_is_paid(shop: Shop, field: str) -> None:
    mallory = shop.world.customer(0, name="mallory")
    body = {"type": "credits", "amount": 1000, field: "https://evil.example"}
    assert shop.ask(mallory, "POST", "checkout", body).status == 400
    reply = shop.ask(mallory, "GET", "portal?return_url=https://evil.example")
    assert "evil" not in reply.data.decode()


def test_nobody_sees_or_uses_what_others_bought(shop: Shop) -> None:
    alice, mallory = shop.world.customer(0), shop.world.customer(0, name="mallory")
    shop.buy(alice)
    assert shop.listed(mallory) == []
    assert shop.ask(mallory, "GET", "portal").status == 400
    setting = {"enabled": True, "below": 5, "amount": 1000, "daily_cap": 1000}
    assert shop.ask(mallory, "POST", "auto-topup", setting).status == 400


def test_no_secret_of_the_till_is_in_a_log_an_answer_or_the_settings(shop: Shop) -> None:
    alice = shop.world.customer(0)
    shop.buy(alice)
    shop.till.fault("error_500", path="/v1/checkout/sessions", times=3)
    reply = shop.ask(alice, "POST", "checkout", {"type": "credits", "amount": 2500})
    assert reply.status == 503
    seen = shop.world.daemon.program.text() + reply.data.decode() + operator_of(shop.world).run("config")[0]
    assert KEY not in seen and SECRET not in seen
    data = b"".join(path.read_bytes() for path in shop.world.folder.glob("goosestack.db*") if path.is_file())
    assert KEY.encode() not in data and SECRET.encode() not in data


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"STRIPE_SECRET_KEY": "pk_test_aaaaaaaaaaaa"}, "STRIPE_SECRET_KEY must begin with sk_test_"),
        ({"STRIPE_WEBHOOK_SECRET": ""}, ""),
        ({"STRIPE_WEBHOOK_SECRET": "whsec_short"}, "STRIPE_WEBHOOK_SECRET must be a secret"),
        ({"STRIPE_WEBHOOK_SECRET": "secret"}, "STRIPE_WEBHOOK_SECRET must be a secret"),
        ({"STRIPE_WEBHOOK_SECRET": f"{SECRET},"}, "STRIPE_WEBHOOK_SECRET must be a secret"),
        ({"STRIPE_WEBHOOK_SECRET": f"{SECRET},{SECRET},{SECRET}"}, "STRIPE_WEBHOOK_SECRET must be a secret"),
        ({"STRIPE_PRO_PRICE_ID": "prod_1"}, "STRIPE_PRO_PRICE_ID must be the id of a price"),
        ({"TOPUPS": "10"}, "TOPUPS must be a whole number from 50"),
        ({"TOPUPS": "1000,1000"}, "TOPUPS must not name an amount twice"),
        ({"TOPUPS": "1000+-5"}, "TOPUPS must be a whole number"),
        ({"NOTIFY_WEBHOOK_SECRET": "whsec_%%%"}, "NOTIFY_WEBHOOK_SECRET must be whsec_ and the base64"),
        ({"CHECKOUT_SUCCESS_URL": "javascript:alert(1)"}, "CHECKOUT_SUCCESS_URL must be an http or https URL"),
    ],
)
def test_settings_that_could_not_sell_safely_are_refused(world: World, settings: dict[str, str], words: str) -> None:
    if words:
        assert words in operator_of(world).refused("config", code=78, env=settings)
    else:
        assert "STRIPE_WEBHOOK_SECRET=\n" in operator_of(world).run("config", env=settings)[0]


def test_a_shop_without_a_place_to_send_buyers_to_does_not_open(world: World) -> None:
    env = {"STRIPE_SECRET_KEY": KEY, "DB_PATH": str(world.folder / "other.db")}
    assert "set PUBLIC_URL or CHECKOUT_SUCCESS_URL" in operator_of(world).refused("serve", code=78, env=env)


def test_who_owes_something_is_admitted_nowhere(shop: Shop) -> None:
    customer = shop.world.customer(0, name="mallory")
    intent = shop.buy(customer)
    assert ask(shop.world, "POST", "/v1/chat/completions", key=customer.key, body=chat(max_tokens=20)).status == 200
    shop.till.refund(intent)
    vector = {"model": "text-embedding-3-small", "input": "x"}
    for path, body in (("/v1/chat/completions", chat(max_tokens=20)), ("/v1/embeddings", vector)):
        assert ask(shop.world, "POST", path, key=customer.key, body=body).status == 402
    big = chat("x" * 100_000, max_tokens=20)
    reply = ask(shop.world, "POST", "/v1/chat/completions", key=customer.key, body=big)
    assert reply.status == 402 and "is owed" in reply.json()["error"]["message"]
