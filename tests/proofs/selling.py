"""What a house sells, for the proof of interruptions: purchases, cards that are saved and charged, what Stripe tells.

Stripe is the fake in the same process, whose books are put where each handler is to find them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from goosestack import accounts, autotopup, clock, inbox, ledger, payments, stripe_facts
from goosestack.demo.stripe import customers
from goosestack.demo.stripe.faults import Fault
from goosestack.store import Tx
from tests.interruptions import Asked, House, Resident, bearer
from tests.proofs.siege import Before, Route, asking, plainly
from tests.tills import SECRET

AUTO = ("POST", "/billing/auto-topup")
CHECKOUT = ("POST", "/billing/checkout")
WEBHOOK = ("POST", "/billing/webhook")
BELOW, AMOUNT, CAP = 500, 1000, 3000
DOUBT = "evt_doubtful"
numbers = count(1)


# --- what is asked --------------------------------------------------------------------------------------------


async def buying(house: House, alice: Resident) -> Asked:
    return Asked(*CHECKOUT, {"type": "credits", "amount": AMOUNT}, bearer(alice))


async def subscribing(house: House, alice: Resident) -> Asked:
    return Asked(*CHECKOUT, {"type": "pro"}, bearer(alice))


async def buying_after_deletion(house: House, alice: Resident) -> Asked:
    """As somebody whom the operator has deleted at Stripe."""
    customer = await house.parts.billing.customer(alice.id)
    customers.delete(house.till.account, {}, customer)
    return await buying(house, alice)


async def buying_without_address(house: House, alice: Resident) -> Asked:
    """As somebody whose e-mail address Stripe does not take."""
    await house.parts.store.write(_rename, alice.id, "carol")
    return await buying(house, alice)


async def buying_in_vain(house: House, alice: Resident) -> Asked:
    """Where Stripe makes no checkout."""
    house.till.faults[:] = [Fault("error_500_after", "POST", "*checkout/sessions*", times=9)]
    return await buying(house, alice)


async def returning(house: House, alice: Resident) -> Asked:
    """To the portal, as somebody whom Stripe knows."""
    house.till.faults.clear()
    await house.parts.billing.customer(alice.id)
    return Asked("GET", "/billing/portal", None, bearer(alice))


async def saving(house: House, alice: Resident) -> Asked:
    """A standing top-up, by a card that is saved."""
    customer = await house.parts.billing.customer(alice.id)
    customers.set_behaviour(house.till.account, customer, "ok")
    return Asked(*AUTO, {"enabled": True, "below": BELOW, "amount": AMOUNT, "daily_cap": CAP}, bearer(alice))


def signed(event: dict[str, Any]) -> Asked:
    """An event of Stripe's, whose signature holds."""
    body, at = json.dumps(event).encode(), int(time.time())
    mac = hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return Asked(*WEBHOOK, body, {"stripe-signature": f"t={at},v1={mac}"})


def refund(**changes: object) -> dict[str, Any]:
    """What Stripe tells of one, but for these fields."""
    charge = {"id": "ch_1", "object": "charge", "payment_intent": "pi_none", "status": "succeeded"}
    about = {**charge, "amount_refunded": 5, "receipt_url": None, **changes}
    event = {"id": f"evt_{next(numbers)}", "object": "event", "type": "charge.refunded", "created": int(time.time())}
    return {**event, "livemode": False, "data": {"object": about}}


async def telling(house: House, alice: Resident) -> Asked:
    return signed(refund())


async def telling_nonsense(house: House, alice: Resident) -> Asked:
    """What cannot be read."""
    return signed(refund(amount_refunded="five"))


def _rename(tx: Tx, user_id: str, name: str) -> None:
    tx.execute("UPDATE users SET email = ? WHERE id = ?", (name, user_id))


ROUTES = (
    Route("a checkout", CHECKOUT, 200, buying),
    Route("a checkout of Pro", CHECKOUT, 200, subscribing),
    Route("a checkout of somebody who was deleted", CHECKOUT, 200, buying_after_deletion),
    Route("a checkout without an address", CHECKOUT, 200, buying_without_address),
    Route("a checkout that Stripe does not make", CHECKOUT, 503, buying_in_vain),
    Route("the portal", ("GET", "/billing/portal"), 200, returning),
    Route("payments", ("GET", "/billing/payments"), 200, asking("GET", "/billing/payments")),
    Route("a standing top-up", AUTO, 200, saving),
    Route("no standing top-up", AUTO, 200, asking(*AUTO, {"enabled": False})),
    Route("a webhook", WEBHOOK, 200, telling),
    Route("a webhook that cannot be read", WEBHOOK, 200, telling_nonsense),
)


# --- what happens before a job or a verb ----------------------------------------------------------------------


TOP_UPS: Mapping[str, Mapping[str, Any]] = {
    "a cashier who has just begun": {"begins": True},
    "a card that is charged": {},
    "a card that is declined": {"behaviour": "card_declined"},
    "a bank that asks its customer": {"behaviour": "authentication_required"},
    "no card": {"behaviour": None},
    "a card that is there no more": {"fault": "cut", "tried": True, "detached": True},
    "a charge that is cut off": {"fault": "cut"},
    "an answer that is an error": {"fault": "error_500"},
    "a charge that is looked for": {"fault": "error_500_after", "tried": True},
    "a charge that is not there yet": {"fault": "error_500", "tried": True},
    "a charge that was never made": {"fault": "error_500", "tried": True, "made_at": "2026-01-01"},
}
"""The ways of an automatic top-up: see `Desk.card`."""


@dataclass(slots=True)
class Desk:
    """The house's cashier, and what it is to find."""

    house: House
    alice: str = ""
    """The customer whose card is to be charged."""

    def top_ups(self) -> Sequence[tuple[str, Before]]:
        """The ways of an automatic top-up, each with what comes before it."""
        return [(name, self.card(**way)) for name, way in TOP_UPS.items()]

    def card(
        self,
        behaviour: str | None = "ok",
        *,
        fault: str | None = None,
        tried: bool = False,
        detached: bool = False,
        made_at: str | None = None,
        begins: bool = False,
    ) -> Before:
        """Somebody with a balance of nothing and a card that behaves so; earlier attempts are forgotten. Where
        the charge was `tried`, and met the fault, the next step is due."""

        async def before() -> None:
            house, till = self.house, self.house.till
            till.reset()  # with all that it has made, each reconciliation takes a second
            if self.alice:
                await house.parts.store.write(_forget, self.alice)
            customer = customers.create(till.account, {})["id"]
            if behaviour is not None:
                customers.set_behaviour(till.account, customer, behaviour)
            self.alice = await house.parts.store.write(_short, customer)
            if fault is not None:
                till.faults.append(Fault(fault, "POST", "*payment_intents*", times=9))  # also where it is tried again
            if tried:
                await plainly(house, "top_up", None)
                await house.parts.store.write(_due, made_at)
            if detached:
                customers.detach_cards(till.account, customer)
            assert house.parts.cashier is not None
            if begins:
                house.parts.cashier._reconciled = False

        return before

    async def paid(self) -> None:
        """Stripe has a payment, and tells of it."""
        await self.card()()
        await plainly(self.house, "top_up", None)

    async def doubt(self) -> None:
        """An event that waits for a person."""
        await self.house.parts.store.write(_doubt)


def _short(tx: Tx, customer: str) -> str:
    now = clock.utc_now()
    user = accounts.create_user(tx, "alice@example.com", now)
    payments.set_customer(tx, user, customer)
    ledger.open_account(tx, user, "usd_cents", now)
    autotopup.enable(tx, user, BELOW, AMOUNT, CAP, now)
    return user


def _forget(tx: Tx, user_id: str) -> None:
    autotopup.disable(tx, user_id, clock.utc_now())
    tx.execute("DELETE FROM attempts")


def _due(tx: Tx, made_at: str | None) -> None:
    now = clock.utc_now()
    made = now if made_at is None else f"{made_at}T00:00:00.000Z"
    tx.execute("UPDATE attempts SET next_at = ?, asked_at = min(asked_at, ?)", (now, made))


def _doubt(tx: Tx) -> None:
    event = stripe_facts.event_of({**refund(), "id": DOUBT})
    terms = payments.Terms(livemode=False)
    inbox.keep_for_review(tx, event, "{}", "a test", terms, clock.utc_now())
    tx.execute("UPDATE stripe_events SET status = 'review' WHERE id = ?", (DOUBT,))
