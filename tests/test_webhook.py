"""Stripe's webhook: what is not Stripe's is a 400 and leaves nothing behind; what is, counts once, whatever happens."""

from __future__ import annotations

import json
import select
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from goosestack.store.sqlite import connect_read_only
from tests.asking import ask, chat
from tests.forgeries import FORGED, OTHER_SECRET, event, send, signature
from tests.shops import Shop
from tests.tills import SECRET, Till
from tests.world import Customer, World, until


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
    db = connect_read_only(world.daemon.db)
    try:
        found: int = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return found
    finally:
        db.close()


# --- forged and damaged ---------------------------------------------------------------------------------------

GOOD = event()


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_or_damaged_webhook_is_a_400_without_detail_and_nothing_is_stored(door: World, name: str) -> None:
    body, header = FORGED[name](GOOD)
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


def test_an_address_that_fails_again_and_again_is_shut_out_unread_and_no_other(door: World) -> None:
    statuses = [send(door, GOOD, "t=1,v1=0", **{"x-forwarded-for": "10.2.0.1"}).status for _ in range(60)]
    assert set(statuses) == {400, 429} and statuses[:20] == [400] * 20
    good = event(id="evt_good", type="customer.created")
    refused = send(door, good, signature(good), **{"x-forwarded-for": "10.2.0.1"})
    assert refused.status == 429 and refused.headers["retry-after"], "Stripe sends it again"
    assert send(door, good, signature(good), **{"x-forwarded-for": "10.2.0.2"}).status == 200


def connect(world: World) -> socket.socket:
    host, _, port = world.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.settimeout(30)
    return connection


def begin_to_send(world: World, address: str, header: str | None, size: int, sent: int) -> socket.socket:
    """A webhook of a size, of which only a part is sent."""
    connection = connect(world)
    lines = ["POST /billing/webhook HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {size}"]
    lines += [f"x-forwarded-for: {address}", *([] if header is None else [f"stripe-signature: {header}"])]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + b"x" * sent)
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    pieces = []
    while piece := connection.recv(65_536):
        pieces.append(piece)
    return b"".join(pieces)


WELL_FORMED = f"t={int(time.time())},v1=" + "0" * 64


@pytest.mark.parametrize(
    "header",
    [None, "", "stripe", "t=1", "v1=" + "0" * 64, "t=1,v1=0", "t=x,v1=" + "0" * 64, WELL_FORMED + "\xe9"],
    ids=["none", "empty", "a word", "no digest", "no time", "a short digest", "a time that is none", "beyond ASCII"],
)
def test_what_bears_no_signature_is_refused_before_its_body_comes(door: World, header: str | None) -> None:
    with begin_to_send(door, f"10.5.{len(header or '')}.1", header, 262_144, 0) as connection:
        said = answer(connection)
    assert said.startswith(b"HTTP/1.1 400 ") and b"\r\nconnection: close\r\n" in said


def test_a_body_without_end_is_refused_and_its_connection_closed(door: World) -> None:
    with connect(door) as connection:
        head = f"POST /billing/webhook HTTP/1.1\r\nhost: x\r\nstripe-signature: {WELL_FORMED}\r\n"
        more = "content-type: application/json\r\nx-forwarded-for: 10.6.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall((head + more).encode())
        for _ in range(5):
            connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        said = answer(connection)  # it ends, though the body has not
    assert said.startswith(b"HTTP/1.1 400 ") and b"\r\nconnection: close\r\n" in said


def test_bodies_that_never_end_shut_nobody_out(door: World) -> None:
    """More of them than all room for bodies has: from one address, and from eighty."""
    addresses = ["10.7.0.1"] * 140 + [f"10.7.1.{number}" for number in range(80)]
    slow = [begin_to_send(door, address, WELL_FORMED, 262_144, 262_000) for address in addresses]
    try:
        alice = door.customer(1000)
        assert ask(door, "POST", "/v1/chat/completions", key=alice.key, body=chat(max_tokens=20)).status == 200
        made = ask(door, "POST", "/v1/keys", body={"email": "bob@example.com", "name": "laptop"})
        assert made.status in (200, 201), made.data
        body = {"type": "credits", "amount": 7}
        assert ask(door, "POST", "/billing/checkout", key=alice.key, body=body).status == 400, "its body was read"
        refused = [connection for connection in slow if readable(connection)]
        assert all(answer(connection).startswith(b"HTTP/1.1 503 ") for connection in refused)
        assert len(slow) - len(refused) <= 16 * 1024 * 1024 // 262_000
    finally:
        for connection in slow:
            connection.close()
    good = event(id="evt_slow", type="customer.created")
    address = {"x-forwarded-for": "10.8.0.1"}
    until(lambda: send(door, good, signature(good), **address).status == 200, "room for what is good")


def readable(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


@pytest.mark.parametrize("age_s", [299, -3600])
def test_a_signature_that_is_young_enough_holds(door: World, age_s: int) -> None:
    body = event(id=f"evt_{age_s}", type="customer.created")
    assert send(door, body, signature(body, age_s=age_s)).status == 200


def test_of_several_signatures_one_suffices(door: World) -> None:
    body = event(type="customer.created")
    header = signature(body)
    assert send(door, body, header.replace(",v1=", ",v1=" + "0" * 64 + ",v0=1,v1=")).status == 200


@pytest.mark.parametrize("code", ["utf-16", "utf-32", "latin-1"])
def test_what_is_signed_and_no_utf_8_is_refused(door: World, code: str) -> None:
    body = event(id="evt_é").decode().replace("\\u00e9", "é").encode(code)
    assert send(door, body, signature(body)).status == 400
    assert count(door, "stripe_events") == 0


def test_an_event_of_another_kind_is_taken_note_of_and_not_stored(door: World) -> None:
    body = event(type="customer.created", id="evt_kind")
    assert send(door, body, signature(body)).status == 200
    assert count(door, "stripe_events") == 0


def test_an_event_that_is_signed_and_cannot_be_understood_is_kept_for_review(door: World) -> None:
    body = event({"object": "charge", "payment_intent": 7}, id="evt_odd")
    assert send(door, body, signature(body)).status == 200
    found = door.daemon.command("stripe", "reviews")
    assert [(one["id"], one["type"]) for one in found] == [("evt_odd", "charge.refunded")]
    assert "evt_odd" not in [one["id"] for one in door.daemon.command("stripe", "reviews", "--done", "evt_odd")]
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


FAILING: dict[str, tuple[str, Callable[[dict[str, Any], str], None]]] = {
    "the subscription of another purchase": (
        "is not the subscription that was sold",
        lambda found, other: found["parent"]["subscription_details"]["metadata"].update(payment=other),
    ),
    "an end that no date can be written for": (
        "`end` is no time",
        lambda found, _: found["lines"]["data"][0]["period"].update(end=1 << 49),
    ),
    "a birth that no date can be written for": ("`created` is no time", lambda found, _: found.update(created=1 << 49)),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_was_signed_and_cannot_be_taken_is_kept_for_review_and_never_a_500(shop: Shop, name: str) -> None:
    reason, damage = FAILING[name]
    bob = shop.world.customer(0, name="bob")
    subscription = shop.subscribe(bob)
    shop.till.do(f"subscriptions/{subscription}/cancel")
    assert shop.ask(bob, "POST", "checkout", {"type": "pro"}).status == 200
    (other,) = shop.rows("SELECT id FROM payments WHERE user_id = ? AND status = 'open'", bob.id)[0]
    (customer,) = shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", bob.id)[0]
    (paid,) = [each for each in shop.till.objects("invoice") if each["customer"] == customer]
    found = json.loads(json.dumps({key: value for key, value in paid.items() if key[0] != "_"}))
    damage(found, other)
    body = event(found, id=f"evt_{other}", type="invoice.paid")
    assert [send(shop.world, body, signature(body)).status for _ in range(2)] == [200, 200]
    ((status, why),) = shop.rows("SELECT status, reason FROM stripe_events WHERE id = ?", f"evt_{other}")
    assert status == "review" and reason in why
    assert shop.ask(bob, "GET", "payments").status == 200
    shop.world.daemon.command("stripe", "reviews", "--done", f"evt_{other}")


def test_an_effect_that_fails_in_a_way_that_nobody_foresaw_is_kept_for_review_and_healed_later(folder: Path) -> None:
    shop = Shop.open(folder)
    try:
        alice = shop.world.customer(0)
        body = event(paid_unheard(shop, alice), id="evt_unforeseen", type="checkout.session.completed")
        schema = sqlite3.connect(shop.world.daemon.db, isolation_level=None)
        schema.execute("CREATE TRIGGER nobody BEFORE INSERT ON stripe_facts BEGIN SELECT RAISE(ABORT, 'no'); END")
        assert send(shop.world, body, signature(body)).status == 200
        assert shop.balance(alice) == 0
        assert shop.outcomes()[-1] == (
            "checkout.session.completed",
            "review",
            "its effect failed: IntegrityError",
        )
        schema.execute("DROP TRIGGER nobody")
        schema.close()
        shop.world.daemon.command("stripe", "reconcile", expect=1)
        assert shop.balance(alice) == 1000
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


def paid_unheard(shop: Shop, customer: Customer) -> dict[str, Any]:
    """A checkout that was paid, of which nothing was told."""
    shop.till.delivery(types=["none"])
    checkout = shop.checkout(customer)
    shop.till.pay(checkout)
    return {key: value for key, value in shop.till.object(checkout).items() if key[0] != "_"}


def post(world: World, body: bytes) -> socket.socket:
    """A webhook that is sent; its answer is still to be read."""
    connection = connect(world)
    lines = ["POST /billing/webhook HTTP/1.1", "host: x", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", f"stripe-signature: {signature(body)}", "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


def heard(connection: socket.socket) -> bytes:
    """What was answered before the other side died."""
    with connection:
        try:
            return answer(connection)
        except ConnectionResetError:
            return b""


def kill(shop: Shop) -> None:
    process = shop.world.daemon.program.process
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_kill_before_the_event_is_written_grants_once_when_it_comes_again(folder: Path) -> None:
    """The daemon has the event and cannot write it, since the database is locked: then it dies."""
    shop = Shop.open(folder)
    try:
        alice = shop.world.customer(0)
        body = event(paid_unheard(shop, alice), id="evt_kill", type="checkout.session.completed")
        lock = sqlite3.connect(shop.world.daemon.db, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        sent = post(shop.world, body)
        # the loop takes connections in turn: what asks later and is answered tells that the earlier one was read
        assert all(ask(shop.world, "GET", "/health").status == 200 for _ in range(20))
        kill(shop)
        assert heard(sent) == b""
        lock.execute("ROLLBACK")
        lock.close()
        assert shop.rows("SELECT * FROM stripe_events WHERE id = 'evt_kill'") == []
        shop.restart()
        assert [send(shop.world, body, signature(body)).status for _ in range(2)] == [200, 200]
        assert shop.balance(alice) == 1000
    finally:
        shop.close()


def test_a_kill_after_the_event_is_written_and_before_the_answer_grants_once(folder: Path) -> None:
    """Sixty events of one payment at once; the daemon dies as soon as one is seen to be written. That some were written
    and never answered is what the rows and the connections say."""
    shop = Shop.open(folder)
    try:
        alice, unanswered = shop.world.customer(0), 0
        for round_ in range(10):
            paid = paid_unheard(shop, alice)
            names = [f"evt_{round_}_{number}" for number in range(60)]
            bodies = [event(paid, id=name, type="checkout.session.completed") for name in names]
            watch = connect_read_only(shop.world.daemon.db)
            sent = [post(shop.world, body) for body in bodies]
            while watch.execute("SELECT 1 FROM stripe_events WHERE id GLOB ?", (f"evt_{round_}_*",)).fetchone() is None:
                pass
            kill(shop)
            watch.close()
            answered = {name for name, each in zip(names, sent, strict=True) if heard(each).startswith(b"HTTP/1.1 200")}
            written = {row[0] for row in shop.rows("SELECT id FROM stripe_events WHERE id GLOB ?", f"evt_{round_}_*")}
            assert answered <= written, "an answer is given for what is durable"
            unanswered += len(written - answered)
            shop.restart()
            assert {send(shop.world, body, signature(body)).status for body in bodies} == {200}
            assert shop.balance(alice) == 1000 * (round_ + 1)
            if unanswered and round_ >= 2:
                break
        assert unanswered > 0
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
    "payment_status": "strange",
    "subscription": "sub_other",
    "object": "payment_link",
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
