"""Stripe's webhook: what is not Stripe's is a 400 and leaves nothing behind; what is, counts once, whatever happens."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.asking import Reply, ask
from tests.shops import Shop
from tests.tills import SECRET, Till
from tests.world import World

OTHER_SECRET = "whsec_another000000000000000000000005"


def signature(body: bytes, secret: str = SECRET, *, age_s: int = 0, scheme: str = "v1") -> str:
    """The header, made as Stripe describes it and not by Stripe's library."""
    at = int(time.time()) - age_s
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},{scheme}={mac}"


def send(world: World, body: bytes, header: str | None, **more: str) -> Reply:
    headers = {"content-type": "application/json; charset=utf-8", **more}
    if header is not None:
        headers["stripe-signature"] = header
    return ask(world, "POST", "/billing/webhook", data=body, headers=headers)


def event(about: dict[str, Any] | None = None, **changed: object) -> bytes:
    """An event that would be good."""
    found = {"id": "evt_1", "object": "event", "type": "charge.refunded", "created": int(time.time())}
    charge = {"id": "ch_1", "object": "charge", "payment_intent": "pi_none", "status": "succeeded"}
    about = about or {**charge, "amount_refunded": 5, "receipt_url": None}
    return json.dumps({**found, "livemode": False, "data": {"object": about}, **changed}).encode()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon with a webhook; nobody is at the other end."""
    folder = tmp_path_factory.mktemp("door")
    world = World.create(
        folder,
        STRIPE_SECRET_KEY="sk_test_operator_canary_0003",
        STRIPE_WEBHOOK_SECRET=SECRET,
        STRIPE_API_BASE="http://127.0.0.1:9",
        PUBLIC_URL="https://llm.example.com",
        FORWARDED_ALLOW_IPS="127.0.0.1",
    )
    yield world
    world.close()


def count(world: World, table: str) -> int:
    from goosestack.store.sqlite import connect_read_only

    db = connect_read_only(world.daemon.db)
    try:
        found: int = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return found
    finally:
        db.close()


# --- forged and damaged ---------------------------------------------------------------------------------------

GOOD = event()
FORGED: dict[str, Callable[[], tuple[bytes, str | None]]] = {
    "no signature": lambda: (GOOD, None),
    "an empty signature": lambda: (GOOD, ""),
    "words": lambda: (GOOD, "stripe"),
    "no time": lambda: (GOOD, signature(GOOD).partition(",")[2]),
    "no mac": lambda: (GOOD, signature(GOOD).partition(",")[0]),
    "a time that is none": lambda: (GOOD, "t=now,v1=" + "0" * 64),
    "an empty time": lambda: (GOOD, "t=,v1=" + "0" * 64),
    "a time without end": lambda: (GOOD, "t=" + "9" * 5000 + ",v1=" + "0" * 64),
    "a time below zero": lambda: (GOOD, "t=-1,v1=" + "0" * 64),
    "an empty mac": lambda: (GOOD, f"t={int(time.time())},v1="),
    "zeroes": lambda: (GOOD, f"t={int(time.time())},v1=" + "0" * 64),
    "a mac that is cut": lambda: (GOOD, signature(GOOD)[:-1]),
    "a mac in capitals": lambda: (GOOD, signature(GOOD).upper().replace("T=", "t=").replace("V1=", "v1=")),
    "a mac and more": lambda: (GOOD, signature(GOOD) + "0"),
    "a hundred macs": lambda: (GOOD, f"t={int(time.time())}" + ",v1=00" * 100),
    "letters that are none": lambda: (GOOD, signature(GOOD) + "\xe9"),
    "an empty secret": lambda: (GOOD, signature(GOOD, "")),
    "another secret": lambda: (GOOD, signature(GOOD, OTHER_SECRET)),
    "the secret without its prefix": lambda: (GOOD, signature(GOOD, SECRET.removeprefix("whsec_"))),
    "the secret and a blank": lambda: (GOOD, signature(GOOD, SECRET + " ")),
    "the API key": lambda: (GOOD, signature(GOOD, "sk_test_operator_canary_0003")),
    "another scheme": lambda: (GOOD, signature(GOOD, scheme="v0")),
    "301 seconds old": lambda: (GOOD, signature(GOOD, age_s=301)),
    "a day old": lambda: (GOOD, signature(GOOD, age_s=86_400)),
    "another time than was signed": lambda: (GOOD, f"t={int(time.time()) - 1},{signature(GOOD).partition(',')[2]}"),
    "a body that was changed": lambda: (
        GOOD.replace(b'"amount_refunded": 5', b'"amount_refunded": 0'),
        signature(GOOD),
    ),
    "a body that was written anew": lambda: (json.dumps(json.loads(GOOD), indent=1).encode(), signature(GOOD)),
    "a body and a blank": lambda: (GOOD + b" ", signature(GOOD)),
    "a body that was cut": lambda: (GOOD[:-1], signature(GOOD)),
    "no body": lambda: (b"", signature(GOOD)),
    "the signature of nothing": lambda: (GOOD, signature(b"")),
    "signed: nothing": lambda: (b"", signature(b"")),
    "signed: null": lambda: (b"null", signature(b"null")),
    "signed: a list": lambda: (b"[]", signature(b"[]")),
    "signed: a number": lambda: (b"1", signature(b"1")),
    "signed: no JSON": lambda: (b"{", signature(b"{")),
    "signed: no UTF-8": lambda: (b"\xff\xfe{}", signature(b"\xff\xfe{}")),
    "signed: no event": lambda: (b"{}", signature(b"{}")),
    "signed: a thin event": lambda: signed(event(object="v2.core.event")),
    "signed: no id": lambda: signed(event(id=None)),
    "signed: an id that is none": lambda: signed(event(id={"x": 1})),
    "signed: no type": lambda: signed(event(type=7)),
    "signed: no time": lambda: signed(event(created="now")),
    "signed: no mode": lambda: signed(event(livemode="false")),
    "signed: a list for data": lambda: signed(event(data=[])),
    "signed: a number without end": lambda: signed(event(created="@").replace(b'"@"', b"9" * 5000)),
    "signed: nested without end": lambda: signed(b'{"object":"event","id":' + b"[" * 50_000),
    "signed: too large": lambda: signed(event(filler="x" * 300_000)),
}


def signed(body: bytes) -> tuple[bytes, str]:
    return body, signature(body)


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_or_damaged_webhook_is_a_400_without_detail_and_nothing_is_stored(door: World, name: str) -> None:
    body, header = FORGED[name]()
    address = f"10.0.{list(FORGED).index(name)}.1"
    reply = send(door, body, header, **{"x-forwarded-for": address})
    assert reply.status == 400
    assert reply.json()["error"]["message"] == "This was not accepted."
    assert count(door, "stripe_events") == 0
    assert count(door, "stripe_facts") == 0


def test_there_are_at_least_forty_of_them() -> None:
    assert len(FORGED) >= 40


def test_a_signature_twice_a_body_that_is_encoded_and_another_type_are_refused(door: World) -> None:
    for headers in ({"content-encoding": "gzip"}, {"content-type": "text/plain"}):
        assert send(door, GOOD, signature(GOOD), **headers, **{"x-forwarded-for": "10.1.0.1"}).status == 400
    assert count(door, "stripe_events") == 0


def test_failures_of_an_address_are_limited_and_what_is_good_passes_all_the_same(door: World) -> None:
    statuses = [send(door, GOOD, "t=1,v1=0", **{"x-forwarded-for": "10.2.0.1"}).status for _ in range(60)]
    assert set(statuses) == {400, 429} and statuses[:20] == [400] * 20
    good = event(id="evt_good", type="customer.created")
    assert send(door, good, signature(good), **{"x-forwarded-for": "10.2.0.1"}).status == 200


@pytest.mark.parametrize("age_s", [299, -3600])
def test_a_signature_that_is_young_enough_holds(door: World, age_s: int) -> None:
    body = event(id=f"evt_{age_s}", type="customer.created")
    assert send(door, body, signature(body, age_s=age_s)).status == 200


def test_of_several_signatures_one_suffices(door: World) -> None:
    body = event(type="customer.created")
    header = signature(body)
    assert send(door, body, header.replace(",v1=", ",v1=" + "0" * 64 + ",v0=1,v1=")).status == 200


def test_an_event_of_another_kind_is_taken_note_of_and_not_stored(door: World) -> None:
    body = event(type="customer.created", id="evt_kind")
    assert send(door, body, signature(body)).status == 200
    assert count(door, "stripe_events") == 0


def test_an_event_that_is_signed_and_cannot_be_understood_is_kept_for_review(door: World) -> None:
    body = event({"object": "charge", "payment_intent": 7}, id="evt_odd")
    assert send(door, body, signature(body)).status == 200
    found = door.daemon.command("stripe", "reviews")
    assert [(one["id"], one["type"]) for one in found] == [("evt_odd", "charge.refunded")]
    assert door.daemon.command("stripe", "reviews", "--done", "evt_odd") == []
    door.daemon.command("stripe", "reviews", "--done", "evt_odd", expect=1)


def test_two_secrets_hold_while_one_replaces_the_other(folder: Path) -> None:
    shop = Shop.open(folder, STRIPE_WEBHOOK_SECRET=f"{OTHER_SECRET},{SECRET}")
    try:
        alice = shop.world.customer(0)
        shop.buy(alice)
        shop.till.delivery(secrets=[OTHER_SECRET])
        shop.buy(alice)
        assert shop.balance(alice) == 2000
    finally:
        shop.close()


@pytest.mark.parametrize("settings", [{}, {"STRIPE_SECRET_KEY": "sk_test_operator_canary_0003"}])
def test_without_a_webhook_secret_there_is_no_webhook_and_nothing_is_sold(
    folder: Path, settings: dict[str, Any]
) -> None:
    world = World.create(folder, PUBLIC_URL="https://llm.example.com", **settings)
    try:
        alice = world.customer(0)
        assert send(world, GOOD, signature(GOOD)).status == 404
        body = {"type": "credits", "amount": 1000}
        reply = ask(world, "POST", "/billing/checkout", key=alice.key, body=body)
        assert reply.status == 503 and reply.json()["error"]["type"] == "billing_unavailable"
        assert ask(world, "GET", "/billing/portal", key=alice.key).status == 503
        assert ask(world, "GET", "/billing/payments", key=alice.key).json()["payments"] == []
    finally:
        world.close()


# --- once, whatever happens -----------------------------------------------------------------------------------


def test_the_same_event_delivered_fifty_times_at_once_grants_once(shop: Shop) -> None:
    alice = shop.world.customer(0)
    checkout = shop.checkout(alice)
    shop.till.delivery(copies=50, at_once=True)
    shop.till.pay(checkout)
    shop.till.settle()
    assert shop.balance(alice) == 1000
    assert len([each for each in shop.till.deliveries() if each["status"] == 200]) >= 50
    assert shop.rows(
        "SELECT count(*) FROM entries e JOIN payments p ON p.id = e.cause WHERE p.user_id = ?", alice.id
    ) == [(1,)]


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_doubled_and_late_webhooks_end_where_the_others_do(shop: Shop, seed: int) -> None:
    alice = shop.world.customer(0)
    shop.till.delivery(mode="hold", copies=2, shuffle=seed, at_once=bool(seed % 2))
    checkout = shop.checkout(alice)
    shop.till.pay(checkout)
    intent = str(shop.till.object(checkout)["payment_intent"])
    shop.till.refund(intent, 300)
    opened = shop.till.dispute(intent)
    shop.till.close(opened["object"]["id"], "won")
    assert shop.balance(alice) == 0
    shop.till.deliver(copies=2, shuffle=seed, at_once=bool(seed % 2))
    assert shop.balance(alice) == 700
    assert shop.listed(alice)[0]["status"] == "partly_refunded"


def test_a_kill_between_receipt_and_answer_grants_once(folder: Path) -> None:
    shop = Shop.open(folder)
    try:
        granted = 0
        alice = shop.world.customer(0)
        for number in range(12):
            shop.till.delivery(mode="hold")
            checkout = shop.checkout(alice)
            shop.till.pay(checkout)
            shop.till.delivery(mode="normal", copies=3, at_once=True)
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(shop.till.deliver, types=["checkout.session.completed"], copies=3, at_once=True)
                time.sleep(0.0015 * number)
                shop.world.daemon.program.process.send_signal(signal.SIGKILL)
                shop.world.daemon.program.process.wait()
                sending.result()
            shop.restart()
            shop.till.deliver(types=["checkout.session.completed"], copies=2)
            granted += 1000
            assert shop.balance(alice) == granted
    finally:
        shop.close()


ALTERED: dict[str, object] = {
    "id": "cs_test_other",
    "mode": "subscription",
    "amount_total": 999,
    "amount_subtotal": 900,
    "currency": "eur",
    "livemode": True,
    "customer": "cus_mallory",
    "client_reference_id": "pay_other",
    "metadata": {},
    "payment_intent": None,
    "status": "strange",
}


@pytest.mark.parametrize("name", ALTERED)
def test_every_field_of_a_checkout_that_is_altered_grants_nothing_and_waits_for_review(shop: Shop, name: str) -> None:
    alice = shop.world.customer(0)
    checkout = shop.checkout(alice)
    shop.till.delivery(types=["none"])
    shop.till.pay(checkout)
    shop.till.delivery(types=None)
    paid = {**shop.till.object(checkout), name: ALTERED[name]}
    before = len(shop.rows("SELECT id FROM stripe_events WHERE status = 'review'"))
    shop.till.emit("checkout.session.completed", {key: value for key, value in paid.items() if key[0] != "_"})
    assert shop.balance(alice) == 0
    assert len(shop.rows("SELECT id FROM stripe_events WHERE status = 'review'")) == before + 1


def test_an_event_of_live_mode_does_nothing_under_a_test_key(shop: Shop) -> None:
    alice = shop.world.customer(0)
    checkout = shop.checkout(alice)
    shop.till.delivery(types=["none"])
    shop.till.pay(checkout)
    shop.till.delivery(types=None)
    shop.till.emit("checkout.session.completed", checkout, livemode=True)
    assert shop.balance(alice) == 0
    assert shop.outcomes()[-1][1:] == ("ignored", "of the other mode")


def test_a_webhook_is_outside_the_rate_limit(folder: Path) -> None:
    till = Till.start(folder)
    shop = Shop.open(folder, till=till, RATE_LIMIT_MAX_REQUESTS="4")
    try:
        alice = shop.world.customer(0)
        checkout = shop.checkout(alice)
        shop.till.delivery(copies=20)
        shop.till.pay(checkout)
        assert {each["status"] for each in shop.till.deliveries() if each["at"]} == {200}
        assert shop.balance(alice) == 1000
    finally:
        shop.close()
