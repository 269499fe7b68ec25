"""Stripe's JSON, read: what an object says about money, in either API shape. Pure.

The shape of a webhook follows the API version of its endpoint or account, not ours: up to 2025-02 an invoice names its
subscription and a line its price at the top, since then below `parent` and `pricing`. What is read here is as strict as
money wants it; anything that is not as expected is `Unreadable`, and is looked at by a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

Object: TypeAlias = Mapping[str, Any]

LATEST = 1 << 33
"""Times are before this one, in the year 2242: what is added to one can still be written."""


class Unreadable(ValueError):
    """An object that is not as Stripe describes it; the text says in what."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout (`cs_`), and what became of it. Amounts are in the smallest unit of the currency, as everywhere."""

    id: str
    mode: str
    state: str
    """`open`, `paid`, `unpaid` (completed; the money is on its way), `failed`, `expired`."""
    amount: int
    subtotal: int
    currency: str
    livemode: bool
    customer: str | None
    reference: str | None
    metadata: Mapping[str, str]
    intent: str | None
    subscription: str | None


@dataclass(frozen=True, slots=True)
class Intent:
    """A payment (`pi_`)."""

    id: str
    state: str
    """`succeeded`, `failed` (an attempt did; another may follow), `canceled`, `processing` or `open`."""
    amount: int
    """Received, where it succeeded."""
    currency: str
    livemode: bool
    customer: str | None
    metadata: Mapping[str, str]
    failure: str | None


@dataclass(frozen=True, slots=True)
class Charged:
    """A charge (`ch_`) that succeeded; `refunded` is the sum of its refunds up to a time (Unix seconds)."""

    id: str
    intent: str
    refunded: int
    at: int
    receipt_url: str | None


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund (`re_`), made at a time; one that failed gave nothing back. Times are Unix seconds."""

    id: str
    intent: str
    amount: int
    created: int
    failed_at: int | None
    """When it was told to have failed, at the latest."""


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute (`dp_`): what has happened to its money, as far as one object tells."""

    id: str
    intent: str
    amount: int
    currency: str
    states: frozenset[str]
    """Of `opened`, `withdrawn`, `reinstated`, `won`, `lost`."""


@dataclass(frozen=True, slots=True)
class Line:
    """What an invoice asks for: one price, from one time to another (Unix seconds)."""

    price: str | None
    amount: int
    currency: str
    since: int
    until: int
    prorated: bool = False
    """Whether it is for the rest of a period that has begun, as after a change of price: it begins none."""


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice (`in_`) of a subscription."""

    id: str
    subscription: str
    customer: str | None
    livemode: bool
    state: str
    """`paid`, `failed` (an attempt did), or another."""
    amount_paid: int
    lines: Sequence[Line]
    metadata: Mapping[str, str]
    """The subscription's."""
    intent: str | None
    url: str | None
    created: int
    at: int
    """When it was so (Unix seconds)."""


@dataclass(frozen=True, slots=True)
class Paying:
    """Which payment (`intent`) paid which invoice."""

    invoice: str
    intent: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription (`sub_`) as it was at a time (Unix seconds)."""

    id: str
    customer: str | None
    livemode: bool
    status: str
    at: int
    ended_at: int | None
    metadata: Mapping[str, str]
    pulled: bool
    """Whether we asked for it, rather than being told of a change."""


News: TypeAlias = Checkout | Intent | Charged | Refund | Dispute | Invoice | Paying | Subscription


@dataclass(frozen=True, slots=True)
class Event:
    """An envelope that was opened. `object` is what it is about, still to be read."""

    id: str
    type: str
    created: int
    livemode: bool
    object: Object


# --- strict little readers ------------------------------------------------------------------------------------


def _text(found: Object, name: str) -> str:
    value = found.get(name)
    if isinstance(value, str) and 0 < len(value) <= 255 and value.isascii() and value.isprintable():
        return value
    raise Unreadable(f"`{name}` is no text")


def _maybe(found: Object, name: str) -> str | None:
    return None if found.get(name) is None else _text(found, name)


def _link(found: Object, name: str) -> str | None:
    """The id of another object, which may have been put in its place."""
    value = found.get(name)
    if isinstance(value, Mapping):
        return _text(value, "id")
    return _maybe(found, name)


def _url(found: Object, name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) and value.startswith(("https://", "http://")) and len(value) < 2048 else None


def _count(found: Object, name: str) -> int:
    value = found.get(name)
    if type(value) is not int or not 0 <= value < 1 << 50:
        raise Unreadable(f"`{name}` is no amount")
    return value


def _time(found: Object, name: str) -> int:
    """Unix seconds, in years that a date can be written in."""
    value = found.get(name)
    if type(value) is not int or not 0 <= value < LATEST:
        raise Unreadable(f"`{name}` is no time")
    return value


def _flag(found: Object, name: str) -> bool:
    value = found.get(name)
    if value is True or value is False:
        return value
    raise Unreadable(f"`{name}` is neither true nor false")


def _inner(found: Object, name: str) -> Object:
    """An object inside; an empty one where there is none."""
    value = found.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Unreadable(f"`{name}` is no object")
    return value


def _items(found: Object, name: str) -> Sequence[Object]:
    """The objects of a list inside."""
    items = _inner(found, name).get("data", [])
    if not isinstance(items, list) or not all(isinstance(each, Mapping) for each in items):
        raise Unreadable(f"`{name}` is no list")
    return items


def _metadata(found: Object) -> dict[str, str]:
    return {str(name): value for name, value in _inner(found, "metadata").items() if isinstance(value, str)}


# --- events ---------------------------------------------------------------------------------------------------


def open_event(body: bytes) -> Event:
    """The envelope of a webhook. Raises Unreadable where it is no event at all."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable("no JSON") from error
    if not isinstance(found, dict) or found.get("object") != "event":
        raise Unreadable("no event")
    return event_of(found)


def event_of(found: Object) -> Event:
    """An event as the API lists it."""
    about = _inner(_inner(found, "data"), "object")
    return Event(_text(found, "id"), _text(found, "type"), _time(found, "created"), _flag(found, "livemode"), about)


_CHECKOUTS = {
    "checkout.session.completed": None,
    "checkout.session.async_payment_succeeded": "paid",
    "checkout.session.async_payment_failed": "failed",
    "checkout.session.expired": "expired",
}
_DISPUTES = {
    "charge.dispute.created": "opened",
    "charge.dispute.updated": "opened",
    "charge.dispute.closed": "opened",
    "charge.dispute.funds_withdrawn": "withdrawn",
    "charge.dispute.funds_reinstated": "reinstated",
}
EVENTS = (
    *_CHECKOUTS,
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "charge.succeeded",
    "charge.refunded",
    "refund.created",
    "refund.updated",
    "refund.failed",
    *_DISPUTES,
    "invoice.paid",
    "invoice.payment_failed",
    "invoice_payment.paid",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
)
"""Every type of event that says something; others are not ours."""


def read(event: Event) -> Sequence[News]:
    """What an event says; nothing where its type is none of `EVENTS`. Raises Unreadable."""
    kind, about = event.type, event.object
    if kind not in EVENTS:
        return ()
    if kind in _CHECKOUTS:
        return (_checkout(about, _CHECKOUTS[kind]),)
    if kind in _DISPUTES:
        return (_dispute(about, _DISPUTES[kind]),)
    if kind == "invoice.payment_failed":
        return _invoice(about, "failed", event.created)
    if kind.startswith("customer.subscription."):
        return (_subscription(about, event.created, ended=kind.endswith(".deleted"), pulled=False),)
    return read_object(about, event.created)


def read_object(about: Object, at: int) -> Sequence[News]:
    """What an object says as it is, at a time (Unix seconds). Raises Unreadable."""
    match about.get("object"):
        case "checkout.session":
            return (_checkout(about, None),)
        case "payment_intent":
            charge = about.get("latest_charge")
            return (_intent(about), *(_charge(charge, at) if isinstance(charge, Mapping) else ()))
        case "charge":
            return _charge(about, at)
        case "refund":
            return _refund(about, at)
        case "dispute":
            return (_dispute(about, "opened"),)
        case "invoice":
            return _invoice(about, None, at)
        case "invoice_payment":
            return _paying(about)
        case "subscription":
            return (_subscription(about, at, ended=False, pulled=True),)
    raise Unreadable("an object of another kind")


def _of_kind(found: Object, kind: str) -> Object:
    if found.get("object") != kind:
        raise Unreadable(f"no {kind}")
    return found


def _checkout(found: Object, state: str | None) -> Checkout:
    _of_kind(found, "checkout.session")
    status, payment_status = _text(found, "status"), _text(found, "payment_status")
    if payment_status not in ("paid", "unpaid", "no_payment_required"):
        raise Unreadable("`payment_status` is unknown")
    paid = payment_status != "unpaid"
    if payment_status == "no_payment_required" and found.get("amount_total") != 0:
        raise Unreadable("no payment was required of what is not free")
    if state is None:
        state = ("paid" if paid else "unpaid") if status == "complete" else status
    elif state == "paid" and not paid:
        raise Unreadable("a payment that succeeded, and is not paid")
    if state not in ("open", "paid", "unpaid", "failed", "expired"):
        raise Unreadable("`status` is unknown")
    open_ended = state in ("open", "expired")  # amounts may not be known yet
    return Checkout(
        id=_text(found, "id"),
        mode=_text(found, "mode"),
        state=state,
        amount=0 if open_ended and found.get("amount_total") is None else _count(found, "amount_total"),
        subtotal=0 if open_ended and found.get("amount_subtotal") is None else _count(found, "amount_subtotal"),
        currency=_maybe(found, "currency") or "",
        livemode=_flag(found, "livemode"),
        customer=_link(found, "customer"),
        reference=_maybe(found, "client_reference_id"),
        metadata=_metadata(found),
        intent=_link(found, "payment_intent"),
        subscription=_link(found, "subscription"),
    )


def _intent(found: Object) -> Intent:
    _of_kind(found, "payment_intent")
    status, error = _text(found, "status"), _inner(found, "last_payment_error")
    over = status in ("succeeded", "processing", "canceled")
    return Intent(
        id=_text(found, "id"),
        state=status if over else "failed" if error else "open",
        amount=_count(found, "amount_received" if status == "succeeded" else "amount"),
        currency=_text(found, "currency"),
        livemode=_flag(found, "livemode"),
        customer=_link(found, "customer"),
        metadata=_metadata(found),
        failure=_maybe(error, "code") if error else None,
    )


def _charge(found: Object, at: int) -> Sequence[Charged]:
    _of_kind(found, "charge")
    intent = _link(found, "payment_intent")
    if intent is None or _text(found, "status") == "failed":
        return ()
    return (Charged(_text(found, "id"), intent, _count(found, "amount_refunded"), at, _url(found, "receipt_url")),)


def _refund(found: Object, at: int) -> Sequence[Refund]:
    _of_kind(found, "refund")
    intent, created = _link(found, "payment_intent"), _time(found, "created")
    failed_at = max(at, created) if _text(found, "status") in ("failed", "canceled") else None
    return () if intent is None else (Refund(_text(found, "id"), intent, _count(found, "amount"), created, failed_at),)


def _dispute(found: Object, state: str) -> Dispute:
    """Its money moves by balance transactions: one below zero takes it, one above gives it back."""
    _of_kind(found, "dispute")
    intent = _link(found, "payment_intent")
    if intent is None:
        raise Unreadable("a dispute of no payment")
    moves = found.get("balance_transactions")
    amounts = [each.get("amount") for each in _items({"moves": {"data": [] if moves is None else moves}}, "moves")]
    states = {"opened", state}
    states |= {"withdrawn" for amount in amounts if isinstance(amount, int) and amount < 0}
    states |= {"reinstated" for amount in amounts if isinstance(amount, int) and amount > 0}
    states |= {_text(found, "status")} & {"won", "lost"}
    return Dispute(_text(found, "id"), intent, _count(found, "amount"), _text(found, "currency"), frozenset(states))


def _invoice(found: Object, state: str | None, at: int) -> Sequence[News]:
    _of_kind(found, "invoice")
    details = _inner(_inner(found, "parent"), "subscription_details") or _inner(found, "subscription_details")
    subscription = _link(details, "subscription") or _link(found, "subscription")
    if subscription is None:
        return ()
    lines = tuple(_line(each) for each in _items(found, "lines"))
    payments = [_inner(each, "payment") for each in _items(found, "payments")]
    intents = [_link(payment, "payment_intent") for payment in payments] + [_link(found, "payment_intent")]
    return (
        Invoice(
            id=_text(found, "id"),
            subscription=subscription,
            customer=_link(found, "customer"),
            livemode=_flag(found, "livemode"),
            state=state or _text(found, "status"),
            amount_paid=_count(found, "amount_paid"),
            lines=lines,
            metadata=_metadata(details),
            intent=next((intent for intent in intents if intent is not None), None),
            url=_url(found, "hosted_invoice_url"),
            created=_time(found, "created"),
            at=at,
        ),
    )


def _line(found: Object) -> Line:
    parent, period = _inner(found, "parent"), _inner(found, "period")
    details = _inner(parent, "subscription_item_details") or _inner(parent, "invoice_item_details")
    price = _link(_inner(_inner(found, "pricing"), "price_details"), "price") or _link(found, "price")
    amount = found.get("amount")
    if type(amount) is not int:
        raise Unreadable("a line without an amount")
    return Line(
        price=price,
        amount=amount,
        currency=_text(found, "currency"),
        since=_time(period, "start"),
        until=_time(period, "end"),
        prorated=details.get("proration", found.get("proration")) is True,
    )


def _paying(found: Object) -> Sequence[Paying]:
    _of_kind(found, "invoice_payment")
    invoice, intent = _link(found, "invoice"), _link(_inner(found, "payment"), "payment_intent")
    return () if invoice is None or intent is None else (Paying(invoice, intent),)


def _subscription(found: Object, at: int, *, ended: bool, pulled: bool) -> Subscription:
    _of_kind(found, "subscription")
    ended_at = found.get("ended_at")
    if ended_at is not None:
        ended_at = _time(found, "ended_at")
    elif ended:
        ended_at = at
    return Subscription(
        id=_text(found, "id"),
        customer=_link(found, "customer"),
        livemode=_flag(found, "livemode"),
        status="canceled" if ended_at is not None else _text(found, "status"),
        at=at,
        ended_at=ended_at,
        metadata=_metadata(found),
        pulled=pulled,
    )
