"""The fake Stripe's money: what becomes of payments, refunds, disputes and subscriptions, and which events say so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.tills import ControlError, Till

CREDITS = (
    "mode=payment&success_url=https://a.example/&line_items[0][quantity]=1&line_items[0][price_data][currency]=usd"
    "&line_items[0][price_data][unit_amount]=1000&line_items[0][price_data][product_data][name]=Credits"
)
PRO = CREDITS.replace("mode=payment", "mode=subscription") + "&line_items[0][price_data][recurring][interval]=month"
DAY = 86_400


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    till = Till.start(tmp_path_factory.mktemp("till"))
    yield till
    till.stop()


@pytest.fixture
def till(running: Till) -> Till:
    """One process for all tests, empty for each."""
    running.reset()
    return running


def made(till: Till, path: str, form: str = "") -> dict[str, Any]:
    """What a POST to the API makes."""
    status, body, _ = till.ask("POST", path, form)
    assert status == 200, body
    return body


def got(till: Till, path: str, query: str = "") -> dict[str, Any]:
    """What a GET answers."""
    status, body, _ = till.ask("GET", path, query)
    assert status == 200, body
    return body


def types(done: dict[str, Any]) -> list[str]:
    """The types of the events that an action caused."""
    return [event["type"] for event in done["events"]]


def bought(till: Till, more: str = "") -> tuple[str, str]:
    """A paid checkout for $10.00 and its charge."""
    checkout = made(till, "/v1/checkout/sessions", CREDITS + more)["id"]
    till.pay(checkout)
    return checkout, till.objects("charge")[-1]["id"]


def subscribed(till: Till) -> tuple[str, str]:
    """A subscription for $10.00 a month and its customer."""
    customer = made(till, "/v1/customers", "email=bob@example.com")["id"]
    till.pay(
        made(till, "/v1/checkout/sessions", f"{PRO}&customer={customer}&subscription_data[metadata][user]=bob")["id"]
    )
    return till.objects("subscription")[-1]["id"], customer


# --- checkouts ------------------------------------------------------------------------------------------------


def test_a_card_pays_at_once(till: Till) -> None:
    checkout = made(till, "/v1/checkout/sessions", f"{CREDITS}&payment_intent_data[metadata][order]=1")["id"]
    assert types(till.pay(checkout)) == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
        "checkout.session.completed",
    ]
    shown = got(till, f"/v1/checkout/sessions/{checkout}", "expand[]=payment_intent.latest_charge")
    assert (shown["status"], shown["payment_status"], shown["url"]) == ("complete", "paid", None)
    intent = shown["payment_intent"]
    assert (intent["status"], intent["amount_received"], intent["metadata"]) == ("succeeded", 1000, {"order": "1"})
    assert intent["latest_charge"]["receipt_url"].startswith(till.url)
    assert shown["metadata"] == {}, "metadata is not inherited from the payment"
    with pytest.raises(ControlError):
        till.pay(checkout)


def test_a_declined_card_leaves_the_checkout_open(till: Till) -> None:
    checkout = made(till, "/v1/checkout/sessions", CREDITS)["id"]
    failed = till.pay(checkout, card="insufficient_funds")
    assert types(failed) == ["payment_intent.created", "charge.failed", "payment_intent.payment_failed"]
    assert (failed["object"]["status"], failed["object"]["_declined"]) == ("open", "card_declined")
    assert types(till.pay(checkout)) == ["charge.succeeded", "payment_intent.succeeded", "checkout.session.completed"]
    assert [each["status"] for each in till.objects("charge")] == ["failed", "succeeded"]


def test_a_bank_payment_completes_unpaid_and_ends_later(till: Till) -> None:
    good, bad = [made(till, "/v1/checkout/sessions", CREDITS)["id"] for _ in range(2)]
    for checkout in (good, bad):
        done = till.pay(checkout, method="bank")
        assert types(done)[-1] == "checkout.session.completed"
        assert (done["object"]["status"], done["object"]["payment_status"]) == ("complete", "unpaid")
    done = till.do(f"checkouts/{good}/succeed")
    assert types(done) == ["charge.succeeded", "payment_intent.succeeded", "checkout.session.async_payment_succeeded"]
    assert done["object"]["payment_status"] == "paid"
    done = till.do(f"checkouts/{bad}/fail")
    assert types(done) == ["charge.failed", "payment_intent.payment_failed", "checkout.session.async_payment_failed"]
    assert done["object"]["payment_status"] == "unpaid"
    for checkout, verb in ((good, "fail"), (bad, "succeed")):
        with pytest.raises(ControlError):
            till.do(f"checkouts/{checkout}/{verb}")


def test_a_checkout_expires_by_hand_and_by_the_clock(till: Till) -> None:
    first, second = [made(till, "/v1/checkout/sessions", CREDITS)["id"] for _ in range(2)]
    assert types(till.do(f"checkouts/{first}/expire")) == ["checkout.session.expired"]
    assert till.advance(DAY - 60)["events"] == []
    assert types(till.advance(120)) == ["checkout.session.expired"]
    assert got(till, f"/v1/checkout/sessions/{second}")["status"] == "expired"
    with pytest.raises(ControlError):
        till.pay(second)


def test_an_invoice_is_made_where_it_was_asked_for(till: Till) -> None:
    customer = made(till, "/v1/customers", "email=alice@example.com")["id"]
    form = f"{CREDITS}&customer={customer}&invoice_creation[enabled]=true"
    done = till.pay(made(till, "/v1/checkout/sessions", form)["id"])
    assert "invoice.paid" in types(done)
    invoice = got(till, f"/v1/invoices/{done['object']['invoice']}", "expand[]=payments")
    assert (invoice["billing_reason"], invoice["parent"], invoice["status"]) == ("manual", None, "paid")
    assert (invoice["amount_paid"], invoice["customer"]) == (1000, customer)
    paid_by = invoice["payments"]["data"][0]["payment"]
    assert paid_by == {"type": "payment_intent", "payment_intent": done["object"]["payment_intent"]}
    query = f"payment[type]=payment_intent&payment[payment_intent]={paid_by['payment_intent']}"
    assert [each["invoice"] for each in got(till, "/v1/invoice_payments", query)["data"]] == [invoice["id"]]


def test_a_checkout_without_a_customer_makes_one_only_where_it_must(till: Till) -> None:
    assert till.object(bought(till)[0])["customer"] is None
    assert till.object(bought(till, "&customer_creation=always")[0])["customer"] is not None
    done = till.pay(made(till, "/v1/checkout/sessions", PRO)["id"], email="bob@example.com")
    assert till.object(done["object"]["customer"])["email"] == "bob@example.com"


# --- refunds --------------------------------------------------------------------------------------------------


def test_refunds_add_up_on_the_charge(till: Till) -> None:
    _, charge = bought(till)
    intent = till.object(charge)["payment_intent"]
    assert types(till.refund(charge, 300)) == ["refund.created", "charge.refunded"]
    made(till, "/v1/refunds", f"payment_intent={intent}&amount=200&reason=requested_by_customer")
    shown = got(till, f"/v1/charges/{charge}")
    assert (shown["amount_refunded"], shown["refunded"]) == (500, False)
    assert "refunds" not in shown
    till.refund(intent)
    shown = got(till, f"/v1/charges/{charge}", "expand[]=refunds")
    assert (shown["amount_refunded"], shown["refunded"]) == (1000, True)
    assert [each["amount"] for each in shown["refunds"]["data"]] == [500, 200, 300]
    status, body, _ = till.ask("POST", "/v1/refunds", f"charge={charge}")
    assert (status, body["error"]["code"]) == (400, "charge_already_refunded")


@pytest.mark.parametrize("form", ["", "amount=1001", "amount=0", "charge=ch_none", "reason=regret", "charge={charge}"])
def test_a_refund_is_of_one_payment_and_not_of_more_than_it(till: Till, form: str) -> None:
    _, charge = bought(till)
    intent = till.object(charge)["payment_intent"]
    named = "" if form == "" else f"payment_intent={intent}&"
    assert till.ask("POST", "/v1/refunds", named + form.format(charge=charge))[0] == 400
    assert till.objects("refund") == []


def test_a_pending_refund_ends_well_or_gives_back_what_it_took(till: Till) -> None:
    _, charge = bought(till)
    first, second = [till.refund(charge, 300, status="pending")["object"]["id"] for _ in range(2)]
    assert till.object(charge)["amount_refunded"] == 600
    assert types(till.do(f"refunds/{first}/succeed")) == ["refund.updated", "charge.refund.updated"]
    assert types(till.do(f"refunds/{second}/fail")) == ["refund.updated", "charge.refund.updated", "refund.failed"]
    assert till.object(charge)["amount_refunded"] == 300
    till.do(f"refunds/{first}/fail", kept=True)
    assert till.object(charge)["amount_refunded"] == 300
    statuses = [each["status"] for each in got(till, "/v1/refunds", f"charge={charge}")["data"]]
    assert statuses == ["failed", "failed"]
    with pytest.raises(ControlError):
        till.do(f"refunds/{first}/succeed")


def test_a_refund_can_fail_at_once(till: Till) -> None:
    _, charge = bought(till)
    done = till.refund(charge, status="failed")
    assert (types(done)[0], types(done)[-1], done["object"]["status"]) == ("refund.created", "refund.failed", "failed")
    assert till.object(charge)["refunded"] is False


# --- disputes -------------------------------------------------------------------------------------------------


def moved(till: Till, dispute: str) -> list[int]:
    """The movements of funds that a dispute has caused, as the API shows them."""
    return [each["amount"] for each in got(till, f"/v1/disputes/{dispute}")["balance_transactions"]]


def test_a_dispute_takes_the_funds_and_gives_them_back_when_won(till: Till) -> None:
    checkout, charge = bought(till)
    opened = till.dispute(checkout)
    assert types(opened) == ["charge.dispute.created", "charge.dispute.funds_withdrawn"]
    dispute = opened["object"]["id"]
    assert (opened["object"]["amount"], opened["object"]["charge"]) == (1000, charge)
    assert till.object(charge)["disputed"] and moved(till, dispute) == [-1000]
    assert types(till.close(dispute, "won")) == ["charge.dispute.closed", "charge.dispute.funds_reinstated"]
    assert moved(till, dispute) == [-1000, 1000]
    with pytest.raises(ControlError):
        till.close(dispute, "lost")


def test_a_lost_dispute_keeps_the_funds_which_may_come_back_late(till: Till) -> None:
    dispute = till.dispute(bought(till)[1], amount=400)["object"]["id"]
    assert types(till.close(dispute, "lost")) == ["charge.dispute.closed"]
    assert moved(till, dispute) == [-400]
    assert types(till.do(f"disputes/{dispute}/reinstate")) == ["charge.dispute.funds_reinstated"]
    with pytest.raises(ControlError):
        till.do(f"disputes/{dispute}/reinstate")


def test_funds_may_leave_later_and_a_won_dispute_may_keep_them(till: Till) -> None:
    dispute = till.dispute(bought(till)[1], withdraw=False)["object"]["id"]
    assert moved(till, dispute) == []
    assert types(till.do(f"disputes/{dispute}/withdraw")) == ["charge.dispute.funds_withdrawn"]
    assert types(till.close(dispute, "won", reinstate=False)) == ["charge.dispute.closed"]
    assert moved(till, dispute) == [-1000]


def test_an_inquiry_takes_nothing(till: Till) -> None:
    opened = till.dispute(bought(till)[1], inquiry=True)
    assert (types(opened), opened["object"]["status"]) == (["charge.dispute.created"], "warning_needs_response")
    assert types(till.close(opened["object"]["id"], "warning_closed")) == ["charge.dispute.closed"]
    assert moved(till, opened["object"]["id"]) == []


def test_what_is_disputed_cannot_be_refunded_as_well(till: Till) -> None:
    _, charge = bought(till)
    till.dispute(charge)
    status, body, _ = till.ask("POST", "/v1/refunds", f"charge={charge}")
    assert (status, body["error"]["code"]) == (400, "charge_disputed")


# --- subscriptions --------------------------------------------------------------------------------------------


def test_a_subscription_begins_with_a_paid_period(till: Till) -> None:
    checkout = made(till, "/v1/checkout/sessions", f"{PRO}&subscription_data[metadata][user]=bob")["id"]
    done = till.pay(checkout)
    assert types(done)[-6:] == [
        "customer.subscription.created",
        "invoice.created",
        "invoice.paid",
        "invoice.payment_succeeded",
        "invoice_payment.paid",
        "checkout.session.completed",
    ]
    assert done["object"]["payment_intent"] is None
    subscription = got(till, f"/v1/subscriptions/{done['object']['subscription']}", "expand[]=latest_invoice")
    (item,), invoice = subscription["items"]["data"], subscription["latest_invoice"]
    assert (subscription["status"], subscription["metadata"]) == ("active", {"user": "bob"})
    assert "current_period_end" not in subscription
    assert 28 * DAY <= item["current_period_end"] - item["current_period_start"] <= 31 * DAY
    (line,) = invoice["lines"]["data"]
    assert invoice["parent"]["subscription_details"] == {
        "subscription": subscription["id"],
        "metadata": {"user": "bob"},
    }
    assert line["parent"]["subscription_item_details"]["subscription"] == subscription["id"]
    assert line["pricing"]["price_details"]["price"] == item["price"]["id"]
    assert line["period"] == {"start": item["current_period_start"], "end": item["current_period_end"]}
    assert invoice["period_end"] == invoice["created"], "the invoice's own period is not what was paid for"
    assert invoice["billing_reason"] == "subscription_create" and "payment_intent" not in invoice


def test_a_declined_first_payment_leaves_no_subscription(till: Till) -> None:
    checkout = made(till, "/v1/checkout/sessions", PRO)["id"]
    till.pay(checkout, card="card_declined")
    assert (till.objects("subscription"), till.objects("invoice")) == ([], [])
    till.pay(checkout)
    assert len(till.objects("subscription")) == 1


def test_months_pass_and_each_is_paid(till: Till) -> None:
    subscription, _ = subscribed(till)
    (item,) = till.object(subscription)["items"]["data"]
    first = item["current_period_end"]
    assert types(till.advance(32 * DAY)).count("invoice.paid") == 1
    assert types(till.advance(61 * DAY)).count("invoice.paid") == 2
    invoices = got(till, "/v1/invoices", f"subscription={subscription}")["data"]
    assert [each["billing_reason"] for each in invoices] == ["subscription_cycle"] * 3 + ["subscription_create"]
    assert invoices[2]["period_end"] == first == invoices[2]["lines"]["data"][0]["period"]["start"]
    days = [datetime.fromtimestamp(each["lines"]["data"][0]["period"]["end"], UTC).day for each in invoices]
    anchor = datetime.fromtimestamp(till.object(subscription)["billing_cycle_anchor"], UTC).day
    assert max(days) == anchor


def test_a_renewal_that_fails_is_past_due_until_it_is_paid(till: Till) -> None:
    subscription, customer = subscribed(till)
    till.card(customer, "card_declined")
    failed = till.renew(subscription)
    assert types(failed)[-2:] == ["invoice.payment_failed", "customer.subscription.updated"]
    assert failed["object"]["status"] == "past_due"
    (item,) = failed["object"]["items"]["data"]
    assert item["current_period_start"] > till.now(), "the unpaid period is shown as the present one all the same"
    till.card(customer, "ok")
    paid = till.do(f"subscriptions/{subscription}/retry")
    assert "invoice.paid" in types(paid) and paid["object"]["status"] == "active"
    assert till.object(paid["object"]["latest_invoice"])["attempt_count"] == 2


def test_what_is_never_paid_is_cancelled(till: Till) -> None:
    subscription, customer = subscribed(till)
    till.card(customer, "card_declined")
    events = types(till.advance(45 * DAY))
    assert events.count("invoice.payment_failed") == 4 and events[-1] == "customer.subscription.deleted"
    shown = got(till, f"/v1/subscriptions/{subscription}")
    assert (shown["status"], shown["cancellation_details"]["reason"]) == ("canceled", "payment_failed")


def test_outcomes_can_be_told_whatever_the_card_does(till: Till) -> None:
    subscription, _ = subscribed(till)
    assert till.renew(subscription, "failed")["object"]["status"] == "past_due"
    assert till.do(f"subscriptions/{subscription}/retry", outcome="paid")["object"]["status"] == "active"


def test_a_subscription_ends_at_the_end_of_its_period(till: Till) -> None:
    subscription, _ = subscribed(till)
    shown = made(till, f"/v1/subscriptions/{subscription}", "cancel_at_period_end=true")
    end = shown["items"]["data"][0]["current_period_end"]
    assert (shown["status"], shown["cancel_at"]) == ("active", end)
    resumed = made(till, f"/v1/subscriptions/{subscription}", "cancel_at_period_end=false")
    assert (resumed["cancel_at"], resumed["canceled_at"]) == (None, None)
    till.do(f"subscriptions/{subscription}/cancel", at_period_end=True)
    assert till.advance(end - till.now() - 60)["events"] == []
    assert types(till.advance(120)) == ["customer.subscription.deleted"]
    shown = got(till, f"/v1/subscriptions/{subscription}")
    assert (shown["status"], shown["ended_at"]) == ("canceled", pytest.approx(end, abs=1))


def test_a_subscription_ends_at_once(till: Till) -> None:
    subscription, customer = subscribed(till)
    assert till.ask("DELETE", f"/v1/subscriptions/{subscription}")[1]["status"] == "canceled"
    assert till.ask("DELETE", f"/v1/subscriptions/{subscription}")[0] == 404
    assert till.ask("POST", f"/v1/subscriptions/{subscription}", "cancel_at_period_end=true")[0] == 404
    assert got(till, "/v1/subscriptions", f"customer={customer}")["data"] == []
    ended = got(till, "/v1/subscriptions", f"customer={customer}&status=ended")["data"]
    assert [each["id"] for each in ended] == [subscription]


def test_a_subscription_can_have_any_status(till: Till) -> None:
    subscription, _ = subscribed(till)
    for status in ("unpaid", "paused", "incomplete_expired", "active"):
        assert types(till.do(f"subscriptions/{subscription}/status", status=status)) == [
            "customer.subscription.updated"
        ]
        assert got(till, f"/v1/subscriptions/{subscription}")["status"] == status


# --- the control of it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("checkouts/{checkout}/pay", {"method": "cash"}),
        ("checkouts/{checkout}/pay", {"card": "stolen"}),
        ("checkouts/{checkout}/pay", {"amount": 1}),
        ("checkouts/{checkout}/pay", {"wait": "no"}),
        ("customers/{checkout}/card", {}),
        ("disputes/dp_1/close", {}),
        ("clock", {"advance_s": -1}),
        ("clock", {}),
        ("delivery", {"mode": "lost"}),
        ("faults", {"kind": "earthquake"}),
        ("events", {"type": "invoice.paid"}),
        ("objects/{checkout}/edit", {"set": {"goose.x.y": 1}}),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(till: Till, path: str, given: dict[str, Any]) -> None:
    checkout = made(till, "/v1/checkout/sessions", CREDITS)["id"]
    before = till.object(checkout)
    with pytest.raises(ControlError) as refused:
        till.do(path.format(checkout=checkout), **given)
    assert refused.value.status == 400
    assert till.object(checkout) == before


@pytest.mark.parametrize(
    "path", ["checkouts/cs_none/pay", "checkouts/cs_none/steal", "payments/pi_none/refund", "honk"]
)
def test_what_does_not_exist_is_a_404(till: Till, path: str) -> None:
    with pytest.raises(ControlError) as refused:
        till.do(path)
    assert refused.value.status == 404


def test_a_lie_is_in_answers_and_events_while_the_truth_goes_on(till: Till) -> None:
    checkout = made(till, "/v1/checkout/sessions", f"{CREDITS}&metadata[order]=1")["id"]
    till.edit(checkout, unset=("customer_details",), amount_total=1, metadata__order="2", mode="subscription")
    shown = got(till, f"/v1/checkout/sessions/{checkout}")
    assert (shown["amount_total"], shown["metadata"], shown["mode"]) == (1, {"order": "2"}, "subscription")
    assert "customer_details" not in shown
    done = till.pay(checkout)
    event = got(till, f"/v1/events/{done['events'][-1]['id']}")
    assert event["data"]["object"]["amount_total"] == 1
    assert till.objects("charge")[-1]["amount"] == 1000


def test_any_event_can_be_sent_about_anything(till: Till) -> None:
    checkout, _ = bought(till)
    sent = till.emit("checkout.session.expired", checkout, livemode=True, created=1)
    event = got(till, f"/v1/events/{sent['events'][0]['id']}")
    assert (event["type"], event["livemode"], event["created"]) == ("checkout.session.expired", True, 1)
    assert event["data"]["object"]["id"] == checkout
    sent = till.emit("goose.honked", {"id": "gs_1"})
    assert got(till, f"/v1/events/{sent['events'][0]['id']}")["data"]["object"] == {"id": "gs_1"}


def test_what_was_asked_is_witnessed(till: Till) -> None:
    till.ask("POST", "/v1/customers", "email=alice@example.com&metadata[user]=usr_1", idempotency_key="alice")
    till.ask("GET", "/v1/customers/cus_none")
    first, second = till.requests()
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v1/customers", 200)
    assert first["params"] == {"email": "alice@example.com", "metadata": {"user": "usr_1"}}
    assert (first["idempotency_key"], second["status"], second["error"]) == ("alice", 404, "resource_missing")
    assert [each["path"] for each in till.requests(method="GET")] == ["/v1/customers/cus_none"]
    till.call("DELETE", "/requests")
    assert till.requests() == []
