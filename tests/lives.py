"""Lives of purchases at Stripe, drawn by chance: what is told of each, and what must come of it in our books.

What must come of it is worked out beside the story as it is made up, and not from what is told of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from goosestack.payments import Payment
from goosestack.stripe_facts import Event
from tests.bookings import (
    MONTH_S,
    START,
    charge,
    checkout,
    dispute,
    intent,
    invoice,
    old_invoice,
    pro_checkout,
    refund,
    subscription,
)

HOUR_S = 3_600
Object = dict[str, Any]


@dataclass(slots=True)
class Life:
    """One purchase: its events in the order in which they happened, and how Stripe has its objects in the end."""

    payment: Payment
    status: str = "paid"
    worth: int = 0
    """Cents of the balance that are left of it in the end."""
    until: int | None = None
    """Until when it made Pro (Unix seconds)."""
    events: list[Event] = field(default_factory=list)
    objects: dict[str, list[Object]] = field(default_factory=lambda: defaultdict(list))
    """By the source that they are pulled from (`goosestack.till.SOURCES`)."""
    kinds: set[str] = field(default_factory=set)
    """What happened in it, in words."""

    def tell(self, type: str, about: Object, at: int) -> None:
        """One more event."""
        self.events.append(Event(f"evt_{self.payment.id}_{len(self.events)}", type, at, False, about))


# --- credits --------------------------------------------------------------------------------------------------


def of_credits(chance: Random, payment: Payment) -> Life:
    """Paid by card or by a bank, or not at all; refunded in parts; disputed."""
    life, at = Life(payment), START + chance.randrange(HOUR_S)
    way = chance.choice(("card", "card", "card", "bank", "bank that refused", "expired"))
    life.kinds.add(way)
    if way == "expired":
        return _expired(life, at)
    unpaid = checkout(payment, payment_status="unpaid")
    if way != "card":
        life.tell("checkout.session.completed", unpaid, at)
        at += chance.randrange(1, 5 * 86_400)
    if way == "bank that refused":
        life.status = "failed"
        life.tell("checkout.session.async_payment_failed", unpaid, at)
        life.objects["checkouts"].append(unpaid)
        return life
    paid = "checkout.session.completed" if way == "card" else "checkout.session.async_payment_succeeded"
    life.tell(paid, checkout(payment), at)
    life.tell("payment_intent.succeeded", intent(payment), at)
    life.tell("charge.succeeded", charge(payment), at)
    back = _refunded(chance, life, at)
    back += _disputed(chance, life, at, payment.amount - back)
    life.worth = payment.granted - -(-payment.granted * back // payment.amount)
    life.objects["checkouts"].append(checkout(payment))
    return life


def _expired(life: Life, at: int) -> Life:
    life.status = "expired"
    left = checkout(life.payment, status="expired", payment_status="unpaid", payment_intent=None)
    life.tell("checkout.session.expired", left, at + 86_400)
    life.objects["checkouts"].append(left)
    return life


def _refunded(chance: Random, life: Life, at: int) -> int:
    """Up to three refunds, of which some fail later; what they have given back in the end."""
    payment, sum_ = life.payment, 0
    for number in range(chance.choice((0, 0, 1, 2, 3))):
        if sum_ == payment.amount:
            break
        at += chance.randrange(1, 86_400)
        part = chance.choice((payment.amount - sum_, chance.randrange(1, payment.amount - sum_ + 1)))
        name, sum_ = f"{payment.id}_{number}", sum_ + part
        told = refund(payment, name, part, chance.choice(("succeeded", "pending")), at)
        life.tell("refund.created", told, at)
        life.tell("charge.refunded", charge(payment, sum_), at)
        life.kinds.add("refund")
        if chance.random() < 0.25:
            at, sum_, told = at + chance.randrange(1, 86_400), sum_ - part, {**told, "status": "failed"}
            life.tell("refund.failed", told, at)
            life.kinds.add("refund that failed")
        life.objects["refunds"].append(told)
    life.objects["intents"].append({**intent(payment), "latest_charge": charge(payment, sum_)})
    if sum_:
        life.status = "refunded" if sum_ == payment.amount else "partly_refunded"
    return sum_


def _disputed(chance: Random, life: Life, at: int, left: int) -> int:
    """Perhaps a dispute of some of what is left; what it has taken in the end."""
    if left == 0 or chance.random() < 0.6:
        return 0
    payment, amount, end = life.payment, chance.choice((left, chance.randrange(1, left + 1))), ""
    at += chance.randrange(1, 20 * 86_400)

    def told(status: str, *moves: int) -> Object:
        return {**dispute(payment, amount, status, *moves), "id": f"dp_{payment.id}"}

    end = chance.choice(("asked about", "open", "won", "lost"))
    life.kinds.add(f"dispute {end}")
    last = told("warning_needs_response")
    life.tell("charge.dispute.created", last if end == "asked about" else told("needs_response"), at)
    if end != "asked about":
        last = told("needs_response", -amount)
        life.tell("charge.dispute.funds_withdrawn", last, at)
    if end in ("won", "lost"):
        at += chance.randrange(1, 40 * 86_400)
        last = told(end, -amount, amount) if end == "won" else told(end, -amount)
        life.tell("charge.dispute.closed", last, at)
    if end == "won":
        life.tell("charge.dispute.funds_reinstated", last, at)
    life.objects["disputes"].append(last)
    if end in ("open", "lost"):
        life.status = "disputed"
        return amount
    return 0


# --- Pro ------------------------------------------------------------------------------------------------------


def of_pro(chance: Random, payment: Payment) -> Life:
    """A subscription of some months, and one of its ends. The payment is of Pro, at a price of Stripe's."""
    life, name, months = Life(payment), f"sub_{payment.id}", chance.randrange(1, 4)
    end = START + months * MONTH_S
    life.until = end
    life.kinds.add("subscription")
    sold = pro_checkout(payment, name)
    life.tell("checkout.session.completed", sold, START)
    life.tell("customer.subscription.created", _subscription(payment, "incomplete"), START)
    life.tell("customer.subscription.updated", _subscription(payment, "active"), START + 2)
    for number in range(months):
        _month(life, chance.choice((invoice, old_invoice)), f"{payment.id}_{number}", START + (number + 1) * MONTH_S)
    last = _ended(chance, life, end, months)
    life.objects["subscriptions"].append(last)
    life.objects["checkouts"].append(sold)
    return life


def _subscription(payment: Payment, status: str, **changed: Any) -> Object:
    return {**subscription(payment, status, **changed), "id": f"sub_{payment.id}"}


def _month(life: Life, shape: Callable[..., Object], name: str, until: int) -> None:
    payment = life.payment
    paid = shape(name, until, payment, price=payment.price_id, subscription=f"sub_{payment.id}")
    paying = {"object": "invoice_payment", "payment": {"payment_intent": f"pi_{name}"}}
    life.tell("invoice.paid", paid, until - MONTH_S + 1)
    life.tell("invoice_payment.paid", {"id": f"inpay_{name}", "invoice": f"in_{name}", **paying}, until - MONTH_S + 1)
    life.objects["invoices"].append({**paid, "payments": {"object": "list", "data": [paying]}})


def _ended(chance: Random, life: Life, end: int, months: int) -> Object:
    """How the subscription is in the end."""
    payment, at = life.payment, end - chance.randrange(1, MONTH_S)
    way = chance.choice(("goes on", "not paid any more", "cancelled at its end", "cancelled at once", "given back"))
    life.kinds.add(f"subscription {way}")
    last = _subscription(payment, "active")
    match way:
        case "not paid any more":
            asked: Object = {"price": payment.price_id, "subscription": last["id"], "status": "open", "amount_paid": 0}
            failed = invoice(f"{payment.id}_x", end + MONTH_S, payment, **asked)
            life.tell("invoice.payment_failed", failed, end + HOUR_S)
            last = _subscription(payment, "past_due")
            life.tell("customer.subscription.updated", last, end + HOUR_S)
        case "cancelled at its end":
            last = _subscription(payment, "canceled", ended_at=end)
            life.tell("customer.subscription.deleted", last, end)
        case "cancelled at once":
            last, life.until = _subscription(payment, "canceled", ended_at=at), at
            life.tell("customer.subscription.deleted", last, at)
        case "given back":
            link = f"pi_{payment.id}_{months - 1}"
            gone = {**charge(payment, 1000), "id": f"ch_{link}", "payment_intent": link}
            life.tell("charge.refunded", gone, at)
            given = {**refund(payment, link, 1000, created=at), "payment_intent": link}
            life.tell("refund.created", given, at)
            life.objects["refunds"].append(given)
            life.until = end - MONTH_S if months > 1 else None
    return last
