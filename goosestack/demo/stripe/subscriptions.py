"""Subscriptions: a period that is paid for, and the next one."""

from __future__ import annotations

import calendar
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from goosestack.demo.strict import Json, Refusal
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, token, with_metadata
from goosestack.demo.stripe.customers import decline, method_of, save_card
from goosestack.demo.stripe.form import refused
from goosestack.demo.stripe.invoices import mark_failed, mark_paid, open_invoice
from goosestack.demo.stripe.payments import attempt, open_intent

MOST_ATTEMPTS = 4
STATUSES = ("active", "canceled", "incomplete", "incomplete_expired", "past_due", "paused", "trialing", "unpaid")

DETAILS = form.Fields(
    {
        "comment": form.text(),
        "feedback": form.choice(
            "customer_service", "low_quality", "missing_features", "other", "switched_service", "too_complex",
            "too_expensive", "unused",
        ),
    }
)  # fmt: skip
ITEM = form.Fields({"id": form.text(), "price": form.text()}, required=["id", "price"])
UPDATE = form.Fields(
    {
        "cancel_at_period_end": form.boolean,
        "cancellation_details": DETAILS,
        "default_payment_method": form.text(),
        "description": form.text(500, unset=True),
        "expand": form.expand,
        "items": form.Items(ITEM, most=1),
        "metadata": form.metadata,
        "proration_behavior": form.choice("always_invoice", "create_prorations", "none"),
    }
)
CANCEL = form.Fields(
    {
        "cancellation_details": DETAILS,
        "expand": form.expand,
        "invoice_now": form.boolean,
        "prorate": form.boolean,
    }
)
LIST = form.listing(
    created=form.span,
    customer=form.text(),
    price=form.text(),
    status=form.choice("all", "ended", *STATUSES),
)
NULLS: Mapping[str, None] = dict.fromkeys(
    """application application_fee_percent billing_cycle_anchor_config billing_thresholds cancel_at canceled_at
    days_until_due default_payment_method default_source ended_at latest_invoice next_pending_invoice_item_invoice
    on_behalf_of pause_collection pending_invoice_item_interval pending_setup_intent pending_update schedule
    test_clock transfer_data trial_end trial_start""".split()
)


# --- the API --------------------------------------------------------------------------------------------------


def found(account: Account, given: Json) -> list[Json]:
    """The subscriptions that a list asks for: without a status, those that are not canceled."""
    records = account.all("subscription", **({"customer": given["customer"]} if "customer" in given else {}))
    status = given.get("status")
    if status == "ended":
        records = [each for each in records if each["status"] in ("canceled", "incomplete_expired")]
    elif status is None:
        records = [each for each in records if each["status"] != "canceled"]
    elif status != "all":
        records = [each for each in records if each["status"] == status]
    if "price" in given:
        records = [
            each for each in records if any(item["price"]["id"] == given["price"] for item in each["items"]["data"])
        ]
    return records


def update(account: Account, given: Json, id: str) -> Json:
    """POST /v1/subscriptions/{id}."""
    record = account.get("subscription", id)
    if record["status"] == "canceled":
        raise refused("resource_missing", f"No such subscription: '{id}'; it is canceled.", "id", 404)
    changes: Json = {"metadata": with_metadata(record["metadata"], given)}
    if "description" in given:
        changes["description"] = given["description"]
    if "default_payment_method" in given:
        method_of(account, given["default_payment_method"], record["customer"], "default_payment_method")
        changes["default_payment_method"] = given["default_payment_method"]
    if "cancellation_details" in given:
        changes["cancellation_details"] = {**record["cancellation_details"], **given["cancellation_details"]}
    if "cancel_at_period_end" in given:
        changes.update(_ending(account, record, given["cancel_at_period_end"]))
    _change(account, record, changes)
    for asked in given.get("items", []):
        _reprice(account, record, asked, given.get("proration_behavior", "create_prorations"))
    return record


def _reprice(account: Account, record: Json, asked: Json, behaviour: str) -> None:
    """Another price of the same interval from now on. What is left of the old one in this period is given back, and of
    the new one asked for: now, with the next invoice, or not at all."""
    found = [item for item in record["items"]["data"] if item["id"] == asked["id"]]
    if not found:
        raise refused("resource_missing", f"No such subscription item: '{asked['id']}'", "items[0][id]", 404)
    price, item = account.get("price", asked["price"], "items[0][price]"), found[0]
    if price["recurring"] != item["price"]["recurring"] or price["currency"] != record["currency"]:
        raise refused("parameter_invalid", "This fake changes to prices of the same interval alone.", "items[0][price]")
    rests = [] if behaviour == "none" else [_rest(account, item, -1), _rest(account, {**item, "price": price}, 1)]
    pending, at_once = [*record["_pending"], *rests], behaviour == "always_invoice"
    if sum(line["_prorated"] for line in pending) + (0 if at_once else price["unit_amount"] * item["quantity"]) <= 0:
        raise refused("parameter_invalid", "This fake owes nothing to a customer.", "items[0][price]")
    items = [{**each, "price": price} if each is item else each for each in record["items"]["data"]]
    _change(account, record, {"items": {**record["items"], "data": items}})
    record["_pending"] = [] if at_once else pending
    if at_once:
        _bill(account, record, pending, "subscription_update")


def _rest(account: Account, item: Json, sign: int) -> Json:
    """What is left of a price in its period, in whole cents."""
    start, end = item["current_period_start"], item["current_period_end"]
    share = item["price"]["unit_amount"] * item["quantity"] * max(0, end - account.now) // (end - start)
    return {**item, "current_period_start": account.now, "_prorated": sign * share}


def cancel(account: Account, given: Json, id: str) -> Json:
    """DELETE /v1/subscriptions/{id}: it ends now, nothing is paid back."""
    record = account.get("subscription", id)
    if record["status"] == "canceled":
        raise refused("resource_missing", f"No such subscription: '{id}'; it is canceled.", "id", 404)
    end(account, record, "cancellation_requested", given.get("cancellation_details", {}))
    return record


# --- its life -------------------------------------------------------------------------------------------------


def subscribe(account: Account, checkout: Json, behaviour: str) -> Refusal | None:
    """The first payment of a checkout's subscription. Answers the error where the card declines: nothing is left."""
    record = _open(account, checkout)
    items = record["items"]["data"]
    email = checkout["customer_details"]["email"]
    invoice = open_invoice(
        account, record["customer"], items, reason="subscription_create", email=email, subscription=record
    )
    if decline(behaviour) is None:
        record["default_payment_method"] = save_card(account, record["customer"])["id"]
    intent = _intent(account, record, invoice)
    declined = attempt(account, intent, "ok" if behaviour == "processing" else behaviour)
    if declined is not None:
        del account.objects[record["id"]], account.objects[invoice["id"]]
        return declined
    record.update(status="active", latest_invoice=invoice["id"])
    checkout.update(subscription=record["id"], invoice=invoice["id"])
    account.emit("customer.subscription.created", record)
    account.emit("invoice.created", invoice)
    mark_paid(account, invoice, intent)
    return None


def _open(account: Account, checkout: Json) -> Json:
    asked, now = checkout["_subscription"], account.now
    record = account.add(
        "subscription",
        "sub_",
        **NULLS,
        automatic_tax={"disabled_reason": None, "enabled": False, "liability": None},
        billing_cycle_anchor=now,
        billing_mode={"type": "flexible"},
        cancel_at_period_end=False,
        cancellation_details={"comment": None, "feedback": None, "reason": None},
        collection_method="charge_automatically",
        currency=checkout["currency"],
        customer=checkout["customer"],
        default_tax_rates=[],
        description=asked.get("description"),
        discounts=[],
        invoice_settings={"account_tax_ids": None, "issuer": {"type": "self"}},
        metadata=with_metadata({}, asked),
        payment_settings={"payment_method_options": None, "payment_method_types": None},
        start_date=now,
        status="incomplete",
        trial_settings={"end_behavior": {"missing_payment_method": "create_invoice"}},
        _pending=[],
    )
    data = [_item(record, line, now) for line in checkout["_line_items"]]
    address = f"/v1/subscription_items?subscription={record['id']}"
    record["items"] = {"object": "list", "data": data, "has_more": False, "url": address}
    return record


def _item(record: Json, line: Json, now: int) -> Json:
    price = line["price"]
    return {
        "id": token("si_"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": now,
        "current_period_end": after(now, price["recurring"], now),
        "current_period_start": now,
        "discounts": [],
        "metadata": {},
        "price": price,
        "quantity": line["quantity"],
        "subscription": record["id"],
        "tax_rates": [],
    }


def _intent(account: Account, record: Json, invoice: Json) -> Json:
    return open_intent(
        account,
        amount=invoice["amount_due"],
        currency=invoice["currency"],
        customer=record["customer"],
        description="Subscription",
        metadata={},
        method=record["default_payment_method"],
        invoice=invoice["id"],
    )


def renew(account: Account, record: Json, outcome: str | None = None) -> None:
    """The next period begins, and is to be paid. outcome: `paid` or `failed`; None is as the card behaves."""
    if record["status"] in ("canceled", "incomplete", "incomplete_expired"):
        raise refused("parameter_invalid", f"The subscription is {record['status']}.")
    items = record["items"]["data"]
    period = (items[0]["current_period_start"], items[0]["current_period_end"])
    for item in items:
        start = item["current_period_end"]
        item.update(
            current_period_start=start,
            current_period_end=after(start, item["price"]["recurring"], record["billing_cycle_anchor"]),
        )
    lines, record["_pending"] = [*record["_pending"], *items], []
    _bill(account, record, lines, "subscription_cycle", period, outcome)


def _bill(
    account: Account,
    record: Json,
    lines: Sequence[Json],
    reason: str,
    period: tuple[int, int] | None = None,
    outcome: str | None = None,
) -> None:
    """An invoice for these lines, and an attempt to have it paid."""
    owner = account.objects[record["customer"]]
    invoice = open_invoice(
        account,
        record["customer"],
        lines,
        reason=reason,
        email=owner.get("email"),
        subscription=record,
        period=period,
    )
    previous = {"latest_invoice": record["latest_invoice"]}
    record["latest_invoice"] = invoice["id"]
    account.emit("invoice.created", invoice)
    account.emit("customer.subscription.updated", record, previous)
    _collect(account, record, invoice, outcome)


def retry(account: Account, record: Json, outcome: str | None = None) -> None:
    """Another attempt at the last invoice."""
    invoice = account.get("invoice", record["latest_invoice"])
    if invoice["status"] != "open" or record["status"] == "canceled":
        raise refused("parameter_invalid", "The subscription has no invoice to pay.")
    _collect(account, record, invoice, outcome)


def _collect(account: Account, record: Json, invoice: Json, outcome: str | None) -> None:
    behaviour = account.objects[record["customer"]].get("_behaviour", "ok")
    if outcome is not None:
        behaviour = {"paid": "ok", "failed": "card_declined"}[outcome]
    elif record["default_payment_method"] is None:
        behaviour = "card_declined"
    intent = account.objects.get(invoice["_payment_intent"] or "") or _intent(account, record, invoice)
    declined = attempt(account, intent, "ok" if behaviour == "processing" else behaviour)
    if declined is None:
        mark_paid(account, invoice, intent)
        _change(account, record, {"status": "active"})
        return
    last = invoice["attempt_count"] + 1 >= MOST_ATTEMPTS
    mark_failed(account, invoice, intent, again=not last)
    if last:
        end(account, record, "payment_failed", {})
    else:
        _change(account, record, {"status": "past_due"})


def end(account: Account, record: Json, reason: str, details: Json) -> None:
    """It is over."""
    record.update(
        status="canceled",
        canceled_at=record["canceled_at"] or account.now,
        ended_at=account.now,
        cancellation_details={"comment": None, "feedback": None, **details, "reason": reason},
    )
    account.emit("customer.subscription.deleted", record)


def set_status(account: Account, record: Json, status: str) -> None:
    """Any status, and the event that goes with it."""
    _change(account, record, {"status": status})


def _ending(account: Account, record: Json, at_period_end: bool) -> Json:
    if not at_period_end:
        return {"cancel_at_period_end": False, "cancel_at": None, "canceled_at": None}
    details = {**record["cancellation_details"], "reason": "cancellation_requested"}
    return {
        "cancel_at_period_end": True,
        "cancel_at": period_end(record),
        "canceled_at": account.now,
        "cancellation_details": details,
    }


def _change(account: Account, record: Json, changes: Json) -> None:
    previous = {name: record[name] for name, value in changes.items() if record[name] != value}
    record.update(changes)
    if previous:
        account.emit("customer.subscription.updated", record, previous)


# --- time -----------------------------------------------------------------------------------------------------


def period_end(record: Json) -> int:
    """When the present period is over."""
    ends: list[int] = [item["current_period_end"] for item in record["items"]["data"]]
    return min(ends)


def due_at(account: Account, record: Json) -> int | None:
    """When something happens to it by itself: another attempt to be paid, or the end of the period."""
    if record["status"] not in ("active", "past_due", "trialing"):
        return None
    invoice = account.objects[record["latest_invoice"]]
    again: int | None = invoice["next_payment_attempt"]
    return period_end(record) if again is None else min(again, period_end(record))


def fall_due(account: Account, record: Json) -> None:
    """What happens at that time."""
    if account.now < period_end(record):
        retry(account, record)
    elif record["cancel_at_period_end"]:
        end(account, record, "cancellation_requested", {})
    else:
        renew(account, record)


def after(start: int, recurring: Json, anchor: int) -> int:
    """The end of a period that starts then; months keep the day of the anchor as far as they have it."""
    count = recurring["interval_count"]
    at = datetime.fromtimestamp(start, UTC)
    days = {"day": 1, "week": 7}.get(recurring["interval"])
    if days is not None:
        return int((at + timedelta(days=days * count)).timestamp())
    months = at.year * 12 + at.month - 1 + count * (12 if recurring["interval"] == "year" else 1)
    year, month = divmod(months, 12)
    day = min(datetime.fromtimestamp(anchor, UTC).day, calendar.monthrange(year, month + 1)[1])
    return int(at.replace(year=year, month=month + 1, day=day).timestamp())
