"""The fake Stripe's webhooks: signed so that the official library takes them, and delivered as badly as asked for."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import stripe
from aiohttp import web

from tests.tills import KEY, SECRET, Till

CREDITS = (
    "mode=payment&success_url=https://a.example/&line_items[0][quantity]=1&line_items[0][price_data][currency]=usd"
    "&line_items[0][price_data][unit_amount]=1000&line_items[0][price_data][product_data][name]=Credits"
)
PRO = CREDITS.replace("mode=payment", "mode=subscription") + "&line_items[0][price_data][recurring][interval]=month"
OTHER_SECRET = "whsec_operatorcanary000000000000000005"


@dataclass
class Shop:
    """Who receives webhooks: a server in a thread, which keeps what came and answers as it is told."""

    url: str = ""
    came: list[tuple[bytes, str]] = field(default_factory=list)
    statuses: Iterator[int] = field(default_factory=lambda: itertools.repeat(200))
    present: int = 0
    most_present: int = 0
    pause_s: float = 0.0

    async def take(self, request: web.Request) -> web.Response:
        self.present += 1
        self.most_present = max(self.most_present, self.present)
        await asyncio.sleep(self.pause_s)
        self.came.append((await request.read(), request.headers.get("stripe-signature", "")))
        self.present -= 1
        status = next(self.statuses)
        return web.Response(status=status, text="noted", headers={"location": self.url} if status == 307 else {})

    def events(self, secret: str = SECRET) -> list[dict[str, Any]]:
        """What came, verified by the library."""
        return [stripe.Webhook.construct_event(body, signed, secret).to_dict() for body, signed in self.came]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events()]


def serve(shop: Shop) -> Callable[[], None]:
    """Serve it in a loop of its own; answers what stops it."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    app = web.Application()
    app.router.add_post("/{path:.*}", shop.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}/billing/webhook"
        ready.set()

    def run() -> None:
        loop.create_task(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    return stop


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    stop = serve(shop)
    yield shop
    stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    till = Till.start(tmp_path_factory.mktemp("till"))
    yield till
    till.stop()


@pytest.fixture
def till(running: Till, shop: Shop) -> Till:
    """One process for all tests, empty for each, which tells the shop."""
    running.reset()
    running.send_webhooks_to(shop.url)
    return running


def checkout(till: Till, form: str = CREDITS) -> str:
    """A new checkout."""
    status, body, _ = till.ask("POST", "/v1/checkout/sessions", form)
    assert status == 200, body
    return str(body["id"])


COMPLETED = "checkout.session.completed"
PAID = ["payment_intent.created", "charge.succeeded", "payment_intent.succeeded", COMPLETED]


# --- what is delivered ----------------------------------------------------------------------------------------


def test_an_action_answers_when_its_events_were_delivered(till: Till, shop: Shop) -> None:
    done = till.pay(checkout(till))
    assert shop.types() == PAID
    assert [event["id"] for event in shop.events()] == [event["id"] for event in done["events"]]
    event = shop.events()[-1]
    assert (event["object"], event["api_version"], event["livemode"]) == ("event", "2026-10-28.endive", False)
    assert event["data"]["object"]["payment_status"] == "paid"
    assert not [name for name in event["data"]["object"] if name.startswith("_")]
    assert [(each["status"], each["body"]) for each in till.deliveries()] == [(200, "noted")] * 4


def test_an_event_shows_its_object_as_it_was_then(till: Till, shop: Shop) -> None:
    till.delivery(mode="hold")
    charge = till.object(till.pay(checkout(till))["object"]["payment_intent"])["latest_charge"]
    till.refund(charge, 300)
    till.refund(charge, 700)
    till.deliver()
    refunded = [
        event["data"]["object"]["amount_refunded"] for event in shop.events() if event["type"] == "charge.refunded"
    ]
    assert refunded == [300, 1000]


def test_an_event_names_the_request_that_caused_it(till: Till, shop: Shop) -> None:
    till.ask("POST", "/v1/customers", idempotency_key="alice")
    till.pay(checkout(till))
    first, *_, last = shop.events()
    assert first["request"] == {"id": till.requests()[0]["request_id"], "idempotency_key": "alice"}
    assert last["request"] == {"id": None, "idempotency_key": None}


def test_only_the_wanted_types_are_delivered(till: Till, shop: Shop) -> None:
    till.delivery(types=[COMPLETED, "invoice.paid"])
    till.pay(checkout(till))
    till.pay(checkout(till, PRO))
    assert shop.types() == [COMPLETED, "invoice.paid", COMPLETED]


# --- signatures -----------------------------------------------------------------------------------------------


def test_one_of_several_secrets_is_enough(till: Till, shop: Shop) -> None:
    till.delivery(secrets=[OTHER_SECRET, SECRET], types=[COMPLETED])
    till.pay(checkout(till))
    ((_, signed),) = shop.came
    assert signed.count("v1=") == 2
    assert shop.events(SECRET) == shop.events(OTHER_SECRET)


@pytest.mark.parametrize(
    "settings",
    [
        {"secrets": [OTHER_SECRET]},
        {"secrets": [""]},
        {"secrets": []},
        {"scheme": "v0"},
        {"age_s": 301},
    ],
)
def test_a_bad_signature_is_one_that_the_library_refuses(till: Till, shop: Shop, settings: dict[str, Any]) -> None:
    till.delivery(types=[COMPLETED], **settings)
    till.pay(checkout(till))
    with pytest.raises(stripe.SignatureVerificationError):
        shop.events()
    till.call("DELETE", "/delivery")
    shop.came.clear()
    till.deliver()
    assert shop.types() == []  # it was delivered, if badly


@pytest.mark.parametrize("age_s", [290, -3600])
def test_a_signature_may_be_a_little_old_or_of_the_future(till: Till, shop: Shop, age_s: int) -> None:
    till.delivery(types=[COMPLETED], age_s=age_s)
    till.pay(checkout(till))
    assert shop.types() == [COMPLETED]


def test_moving_the_clock_does_not_age_signatures(till: Till, shop: Shop) -> None:
    till.advance(7 * 86_400)
    till.pay(checkout(till))
    assert shop.types()[-1] == COMPLETED


# --- repeated, late, lost, in another order -------------------------------------------------------------------


def test_every_event_can_come_many_times(till: Till, shop: Shop) -> None:
    till.delivery(copies=3, types=[COMPLETED])
    till.pay(checkout(till))
    assert shop.types() == [COMPLETED] * 3
    assert len({event["id"] for event in shop.events()}) == 1


def test_many_copies_can_come_at_once(till: Till, shop: Shop) -> None:
    till.delivery(mode="hold", types=[COMPLETED])
    till.pay(checkout(till))
    shop.pause_s = 0.05
    attempts = till.deliver(copies=50, at_once=True)
    assert len(attempts) == 50 and len(shop.came) == 50 and shop.most_present > 10


def test_what_is_held_is_released_in_any_order(till: Till, shop: Shop) -> None:
    till.delivery(mode="hold")
    ids = {event["type"]: event["id"] for event in till.pay(checkout(till))["events"]}
    assert shop.came == []
    order = [COMPLETED, "charge.succeeded", COMPLETED]
    attempts = till.deliver([ids[type] for type in order])
    assert shop.types() == [each["type"] for each in attempts] == order
    till.deliver(types=["payment_intent.created"])
    till.deliver()
    assert shop.types()[3:] == ["payment_intent.created", "payment_intent.succeeded"]


def test_a_seed_decides_the_order(till: Till, shop: Shop) -> None:
    def order(seed: int) -> list[str]:
        shop.came.clear()
        till.delivery(shuffle=seed)
        till.pay(checkout(till))
        return shop.types()

    orders = [order(seed) for seed in range(8)]
    assert all(sorted(each) == sorted(PAID) for each in orders)
    assert len({tuple(each) for each in orders}) > 3
    assert order(3) == orders[3]
    till.delivery(shuffle=None, mode="hold")
    till.pay(checkout(till))
    shop.came.clear()
    till.deliver(shuffle=3)
    assert shop.types() == orders[3]


def test_what_is_lost_is_found_in_the_list_of_events(till: Till, shop: Shop) -> None:
    till.delivery(mode="drop", types=[COMPLETED])
    done = till.pay(checkout(till))
    till.call("DELETE", "/delivery")
    till.advance(3600)
    assert shop.came == []
    lost = till.ask("GET", "/v1/events", "delivery_success=false")[1]["data"]
    assert [event["id"] for event in lost] == [done["events"][-1]["id"]]
    assert lost[0]["data"]["object"]["payment_status"] == "paid"
    till.deliver([lost[0]["id"]])
    assert till.ask("GET", "/v1/events", "delivery_success=false")[1]["data"] == []


def test_a_delay_is_on_the_clock_of_the_fake(till: Till, shop: Shop) -> None:
    till.delivery(delay_s=3600, types=[COMPLETED])
    till.pay(checkout(till))
    till.advance(3500)
    assert shop.came == []
    till.advance(200)
    assert shop.types() == [COMPLETED]


def test_what_is_refused_is_repeated_later_and_later(till: Till, shop: Shop) -> None:
    shop.statuses = iter([500, 307, 400, 200])
    till.delivery(types=[COMPLETED])
    done = till.pay(checkout(till))
    event = done["events"][-1]["id"]
    assert till.ask("GET", f"/v1/events/{event}")[1]["pending_webhooks"] == 1
    for wait, count in ((10, 2), (30, 2), (31, 3), (290, 3), (10, 4), (86_400, 4)):
        till.advance(wait)
        assert len(shop.came) == count, wait
    assert [each["status"] for each in till.deliveries()] == [500, 307, 400, 200]
    assert till.ask("GET", f"/v1/events/{event}")[1]["pending_webhooks"] == 0


def test_what_one_copy_has_delivered_is_not_repeated_for_another(till: Till, shop: Shop) -> None:
    shop.statuses = iter([500, 200])
    till.delivery(types=[COMPLETED], copies=2)
    till.pay(checkout(till))
    till.advance(3600)
    assert len(shop.came) == 2


def test_after_three_days_it_gives_up(till: Till, shop: Shop) -> None:
    shop.statuses = itertools.repeat(500)
    till.delivery(types=[COMPLETED])
    till.pay(checkout(till))
    till.advance(4 * 86_400)
    count = len(shop.came)
    assert 8 < count < 20
    till.advance(30 * 86_400)
    assert len(shop.came) == count


def test_nobody_listening_is_a_failed_attempt(till: Till) -> None:
    till.send_webhooks_to("http://127.0.0.1:9/billing/webhook")
    till.delivery(types=[COMPLETED])
    till.pay(checkout(till))
    (attempt,) = till.deliveries()
    assert attempt["status"] is None and "Connect" in attempt["error"]


def test_without_waiting_the_action_answers_first(till: Till, shop: Shop) -> None:
    shop.pause_s = 0.1
    till.pay(checkout(till), wait=False)
    assert len(shop.came) < 4
    till.settle()
    assert shop.types() == PAID


def test_a_webhook_may_point_nowhere_and_back(till: Till, shop: Shop) -> None:
    till.send_webhooks_to(None)
    till.pay(checkout(till))
    assert till.deliveries() == []
    till.send_webhooks_to(shop.url, OTHER_SECRET)
    till.pay(checkout(till))
    assert [event["type"] for event in shop.events(OTHER_SECRET)] == PAID


# --- endpoints of the API -------------------------------------------------------------------------------------


async def test_an_endpoint_has_its_own_secret_types_and_version(till: Till, shop: Shop) -> None:
    till.send_webhooks_to(None)
    http = stripe.AIOHTTPClient()
    client = stripe.StripeClient(KEY, base_addresses={"api": till.url}, http_client=http)
    made = await client.v1.webhook_endpoints.create_async(
        {"url": shop.url, "enabled_events": ["checkout.session.completed"], "api_version": "2026-10-28.endive"}
    )
    assert made.secret is not None and made.secret.startswith("whsec_") and len(made.secret) >= 30
    assert "secret" not in await client.v1.webhook_endpoints.retrieve_async(made.id)
    assert ["secret" in each for each in (await client.v1.webhook_endpoints.list_async()).data][-1:] == [False]
    till.delivery(shape="old", types=["invoice.paid"])  # neither is of this endpoint's business
    till.pay(checkout(till))
    (event,) = shop.events(made.secret)
    assert (event["type"], event["api_version"]) == (COMPLETED, "2026-10-28.endive")
    assert (await client.v1.webhook_endpoints.update_async(made.id, {"disabled": True})).status == "disabled"
    till.pay(checkout(till))
    assert (await client.v1.webhook_endpoints.delete_async(made.id)).deleted
    till.pay(checkout(till))
    assert len(shop.came) == 1
    await http.close_async()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "form",
    ["url=ftp://a.example", "enabled_events[0]=goose.honked", "api_version=2030-01-01", "enabled_events=", "secret=x"],
)
def test_an_endpoint_that_makes_no_sense_is_refused(till: Till, form: str) -> None:
    parts = {"url": "url=https://a.example/", "enabled_events": "enabled_events[0]=*"}
    parts[form.partition("=")[0].partition("[")[0]] = form
    assert till.ask("POST", "/v1/webhook_endpoints", "&".join(parts.values()))[0] == 400


def test_events_are_listed_by_type(till: Till) -> None:
    till.pay(checkout(till))

    def found(query: str) -> list[str]:
        return [event["type"] for event in till.ask("GET", "/v1/events", query)[1]["data"]]

    assert found("") == list(reversed(PAID))
    assert found("type=charge.succeeded") == ["charge.succeeded"]
    assert found("type=payment_intent.*") == ["payment_intent.succeeded", "payment_intent.created"]
    assert found(f"types[]={COMPLETED}&types[]=invoice.paid") == [COMPLETED]
    assert till.ask("GET", "/v1/events", "type=a&types[]=b")[0] == 400
    assert found(f"created[gt]={till.now() + 10}") == []


# --- the two shapes -------------------------------------------------------------------------------------------


def shapes(till: Till, shop: Shop, type: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The object of the same event in the new and in the old shape."""
    till.delivery(mode="hold")
    customer = till.ask("POST", "/v1/customers", "email=bob@example.com")[1]["id"]
    till.pay(checkout(till, f"{PRO}&customer={customer}&subscription_data[metadata][user]=bob"))
    found = []
    for shape in ("new", "old"):
        till.delivery(shape=shape)
        shop.came.clear()
        till.deliver(types=[type])
        (event,) = shop.events()
        assert (event["api_version"] < "2025-03-31") == (shape == "old")
        found.append(event["data"]["object"])
    return found[0], found[1]


def test_an_invoice_has_two_shapes(till: Till, shop: Shop) -> None:
    new, old = shapes(till, shop, "invoice.paid")
    (line,), (old_line,) = new["lines"]["data"], old["lines"]["data"]
    assert "subscription" not in new and "payment_intent" not in new and "price" not in line
    assert "parent" not in old and "parent" not in old_line and "pricing" not in old_line
    details = new["parent"]["subscription_details"]
    assert old["subscription"] == details["subscription"] == till.objects("subscription")[0]["id"]
    assert old["subscription_details"]["metadata"] == details["metadata"] == {"user": "bob"}
    assert old["payment_intent"] == till.objects("payment_intent")[0]["id"]
    assert old["charge"] == till.objects("charge")[0]["id"] and old["paid"] is True
    assert old_line["price"]["id"] == line["pricing"]["price_details"]["price"]
    assert old_line["subscription"] == line["parent"]["subscription_item_details"]["subscription"]
    assert old_line["period"] == line["period"] and old_line["proration"] is False
    assert old["amount_paid"] == new["amount_paid"] == 1000


def test_a_subscription_has_two_shapes(till: Till, shop: Shop) -> None:
    new, old = shapes(till, shop, "customer.subscription.created")
    (item,), (old_item,) = new["items"]["data"], old["items"]["data"]
    assert "current_period_end" not in new and "current_period_end" not in old_item
    assert old["current_period_end"] == item["current_period_end"] > item["current_period_start"]
    assert old_item["price"] == item["price"]


def test_a_charge_has_two_shapes(till: Till, shop: Shop) -> None:
    new, old = shapes(till, shop, "charge.succeeded")
    assert "invoice" not in new and old["invoice"] == till.objects("invoice")[0]["id"]


def test_a_list_of_events_is_in_the_shape_of_the_account(till: Till, shop: Shop) -> None:
    shapes(till, shop, "invoice.paid")
    for shape, name in (("old", "subscription"), ("new", "parent")):
        till.delivery(shape=shape)
        (event,) = till.ask("GET", "/v1/events", "type=invoice.paid")[1]["data"]
        assert name in event["data"]["object"]
        assert name in till.ask("GET", f"/v1/events/{event['id']}")[1]["data"]["object"]
