"""Purchases without a network: the real tables in memory, and the events that Stripe would send about them."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from goosestack import accounts, inbox, ledger, payments, stripe_facts
from goosestack.ledger import Charge, NewHold
from goosestack.payments import Payment, Terms
from goosestack.store.migrations import MIGRATIONS
from goosestack.stripe_facts import Event, Unreadable

NOW = "2026-11-21T12:00:00.000Z"
CUSTOMER = "cus_alice"
CENT = ledger.GRAINS["usd_cents"]
SUBSCRIPTION = "sub_1"
MONTH_S = 30 * 86_400
START = 1_795_000_000


class Bookings:
    """Alice, and what was sold to her."""

    def __init__(self, pro_price: str | None = None, pro_grace_s: int = 0) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.execute("PRAGMA foreign_keys = ON")
        for step in MIGRATIONS:
            self.db.executescript(step)
        self.terms = Terms(livemode=False, pro_price=pro_price, notify=True, pro_grace_s=pro_grace_s)
        self.process = ledger.begin_process(self.db, "test", NOW)
        self.alice = accounts.create_user(self.db, "alice@example.com", NOW)
        self.account = ledger.open_account(self.db, self.alice, "usd_cents", NOW)
        payments.set_customer(self.db, self.alice, CUSTOMER)
        self.events = 0

    def close(self) -> None:
        """The books add up; forget them."""
        assert ledger.check(self.db, full=True).wrong == []
        self.db.close()

    def sold(self, amount: int = 1000, granted: int | None = None, id: str | None = None, now: str = NOW) -> Payment:
        """A purchase of credits, just begun."""
        granted = amount if granted is None else granted
        return payments.add(self.db, self.alice, "credits", amount, granted, None, self.terms, now, id)

    def sold_pro(self, price: str | None = None) -> Payment:
        """A purchase of Pro, just begun."""
        return payments.add(self.db, self.alice, "pro", 0 if price else 1000, 0, price, self.terms, NOW)

    def receive(self, event: Event) -> str:
        """What the webhook does once a signature holds."""
        self.db.execute("SAVEPOINT verb")
        body = json.dumps({"id": event.id})
        try:
            outcome = inbox.receive(self.db, event, stripe_facts.read(event), body, self.terms, NOW)
        except Unreadable as error:
            outcome = inbox.keep_for_review(self.db, event, body, str(error), self.terms, NOW)
        self.db.execute("RELEASE verb")
        return outcome

    def tell(self, type: str, about: dict[str, Any], created: int = START, *, livemode: bool = False) -> str:
        """A new event about an object."""
        return self.receive(self.event(type, about, created, livemode=livemode))

    def event(self, type: str, about: dict[str, Any], created: int = START, *, livemode: bool = False) -> Event:
        """The same, not told yet."""
        self.events += 1
        return Event(f"evt_{self.events}", type, created, livemode, about)

    def spend(self, cents: int, name: str) -> None:
        """A request that costs so many cents, begun and settled."""
        self.hold(cents, name)
        ledger.settle(self.db, name, Charge(cents * CENT, cents * CENT), "completed", NOW)

    def hold(self, cents: int, name: str) -> None:
        """A request that has begun."""
        hold = NewHold(name, self.alice, self.process, "openai_chat", "openai", "gpt", account_id=self.account)
        assert ledger.authorize(self.db, hold, cents * CENT, cents * CENT, NOW).held == cents * CENT

    def funds(self) -> dict[str, int]:
        """Alice's credits."""
        return accounts.funds(self.db, self.alice)

    def pro_until(self) -> str | None:
        """Until when Alice is Pro."""
        return accounts.pro_until(self.db, self.alice)

    def rows(self) -> list[tuple[Any, ...]]:
        """Everything that may not depend on how the events came: payments, facts, what is posted, what is owed."""
        found: list[tuple[Any, ...]] = []
        for sql in (
            "SELECT id, status, refunded, disputed, failure, checkout_id, intent_id, subscription_id, receipt_url"
            " FROM payments ORDER BY id",
            "SELECT * FROM stripe_facts ORDER BY about, name, object, amount, at, detail",
            "SELECT object, about, url, at FROM stripe_pages ORDER BY object",
            "SELECT ref, target, posted FROM dues ORDER BY ref",
            "SELECT balance, carry, held, debt FROM accounts ORDER BY id",
            "SELECT id, status, price_id, until FROM subscriptions ORDER BY id",
            "SELECT id, pro_until FROM users ORDER BY id",
        ):
            found += self.db.execute(sql).fetchall()
        return found


# --- Stripe's objects -----------------------------------------------------------------------------------------


def checkout(payment: Payment, **changed: Any) -> dict[str, Any]:
    """A completed checkout of credits, paid by card."""
    found = {
        "id": f"cs_{payment.id}",
        "object": "checkout.session",
        "mode": "payment",
        "status": "complete",
        "payment_status": "paid",
        "amount_total": payment.amount,
        "amount_subtotal": payment.amount,
        "currency": "usd",
        "livemode": False,
        "customer": CUSTOMER,
        "client_reference_id": payment.id,
        "metadata": payments.told_of(payment),
        "payment_intent": f"pi_{payment.id}",
        "subscription": None,
    }
    return {**found, **changed}


def pro_checkout(payment: Payment, subscription: str = SUBSCRIPTION) -> dict[str, Any]:
    """A completed checkout of Pro."""
    amounts = {"amount_total": 1000, "amount_subtotal": 1000}
    links = {"payment_intent": None, "subscription": subscription, "mode": "subscription"}
    return checkout(payment, **amounts, **links)


def intent(payment: Payment, **changed: Any) -> dict[str, Any]:
    """The payment intent of a payment that succeeded."""
    found = {"id": f"pi_{payment.id}", "object": "payment_intent", "status": "succeeded", "livemode": False}
    amounts = {"amount": payment.amount, "amount_received": payment.amount, "currency": "usd"}
    return {**found, **amounts, "customer": CUSTOMER, "metadata": payments.told_of(payment), **changed}


def charge(payment: Payment, refunded: int = 0) -> dict[str, Any]:
    """The charge of a payment."""
    intent = f"pi_{payment.id}"
    found = {"id": f"ch_{payment.id}", "object": "charge", "payment_intent": intent, "status": "succeeded"}
    return {**found, "amount_refunded": refunded, "receipt_url": f"https://pay.example.com/{payment.id}"}


def refund(payment: Payment, name: str, amount: int, status: str = "succeeded", created: int = START) -> dict[str, Any]:
    """A refund of a payment."""
    found = {"id": f"re_{name}", "object": "refund", "payment_intent": f"pi_{payment.id}", "created": created}
    return {**found, "amount": amount, "currency": "usd", "status": status}


def dispute(payment: Payment, amount: int, status: str = "needs_response", *moves: int) -> dict[str, Any]:
    """A dispute about a payment; each move is what one of its balance transactions did."""
    intent = f"pi_{payment.id}"
    found = {"id": "dp_1", "object": "dispute", "payment_intent": intent, "amount": amount, "currency": "usd"}
    return {**found, "status": status, "balance_transactions": [{"amount": move} for move in moves]}


def invoice(name: str, until: int, payment: Payment | None, **changed: Any) -> dict[str, Any]:
    """A paid invoice of a subscription, in the new shape."""
    price = changed.pop("price", "price_made_up")
    subscription = changed.pop("subscription", SUBSCRIPTION)
    amount = changed.pop("amount", 1000)
    metadata = {} if payment is None else {"payment": payment.id}
    line = {
        "amount": amount,
        "currency": "usd",
        "period": {"start": until - MONTH_S, "end": until},
        "parent": {"type": "subscription_item_details", "subscription_item_details": {"proration": False}},
        "pricing": {"type": "price_details", "price_details": {"price": price, "product": "prod_1"}},
    }
    found = {
        "id": f"in_{name}",
        "object": "invoice",
        "customer": CUSTOMER,
        "livemode": False,
        "status": "paid",
        "amount_paid": amount,
        "created": until - MONTH_S,
        "hosted_invoice_url": f"https://pay.example.com/{name}",
        "lines": {"object": "list", "data": [line]},
        "parent": {
            "type": "subscription_details",
            "subscription_details": {"subscription": subscription, "metadata": metadata},
        },
    }
    return {**found, **changed}


def old_invoice(name: str, until: int, payment: Payment | None, **changed: Any) -> dict[str, Any]:
    """The same in the old shape."""
    price = changed.pop("price", "price_made_up")
    found = invoice(name, until, payment, **changed)
    details = found.pop("parent")["subscription_details"]
    for line in found["lines"]["data"]:
        del line["parent"], line["pricing"]
        line |= {"price": {"id": price, "object": "price"}, "proration": False, "type": "subscription"}
    more = {"subscription": details["subscription"], "subscription_details": {"metadata": details["metadata"]}}
    return {**found, **more, "payment_intent": f"pi_{name}"}


def subscription(payment: Payment | None, status: str = "active", **changed: Any) -> dict[str, Any]:
    """A subscription as it is."""
    metadata = {} if payment is None else {"payment": payment.id}
    found = {"id": SUBSCRIPTION, "object": "subscription", "customer": CUSTOMER, "livemode": False}
    return {**found, "status": status, "ended_at": None, "metadata": metadata, **changed}
