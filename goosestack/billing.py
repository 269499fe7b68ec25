"""Money in: what customers buy at Stripe, and what Stripe tells of it. The endpoints under `/billing`.

A purchase is never granted because somebody came back from a page: only because Stripe said so, in an event whose
signature holds, or because we asked. Nothing is sold that could not be delivered: without a webhook secret there is no
webhook, and no checkout either.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from goosestack import autotopup, errors, inbox, payments, stripe_facts, subscriptions
from goosestack.accounts import Principal
from goosestack.gateway import Gateway, read_body
from goosestack.ledger import LedgerError
from goosestack.limits import RateLimit
from goosestack.payments import Payment, PaymentError, Terms
from goosestack.relay import Limits
from goosestack.store import Tx
from goosestack.stripe_facts import Event, News, Unreadable
from goosestack.till import Till, TillError
from goosestack.wire import Body, body as fields

MOST_BODY_BYTES = 16 * 1024
MOST_WEBHOOK_BYTES = 256 * 1024
MOST_PAYMENTS = 100
PRO_CENTS = 1_000
"""A month of Pro, where the operator has named no price of Stripe's."""

WEBHOOKS = Limits(max_body_bytes=MOST_WEBHOOK_BYTES, body_budget_bytes=16 * 1024 * 1024, body_timeout_s=10)
"""Webhooks have room of their own, and little time: nobody has proved anything while one is read."""
MOST_OF_ADDRESS = 2 * 1024 * 1024
"""Bytes of webhooks that one address may have on their way."""
WELL_FORMED = re.compile(r"(?=(?:.*,)?t=\d{1,12}(?:,|$))(?=(?:.*,)?v1=[0-9a-f]{64}(?:,|$))[ -~]{1,2048}", re.ASCII)
"""A signature that may hold; any other is refused without reading what it would have signed."""

OPENINGS_PER_MINUTE = 5
"""Of one user: what makes us ask Stripe."""
FAILURES_PER_MINUTE = 30
"""Webhooks of one address that prove nothing."""


@dataclass(frozen=True, slots=True)
class Shop:
    """What is sold, and where buyers are sent."""

    terms: Terms
    topups: dict[int, int]
    """Cents that are sold, and what they grant, the bonus included."""
    secrets: Sequence[str] = ()
    """What Stripe signs with."""
    success_url: str = ""
    cancel_url: str = ""
    portal_url: str = ""


@dataclass(slots=True)
class Door:
    """The room for webhooks' bodies (`gateway.Room`), in which each address has its share."""

    limits: Limits = WEBHOOKS
    body_bytes: int = 0
    bodies: dict[str, int] = field(default_factory=dict)

    def take_body(self, owner: str, size: int) -> None:
        """Count a piece of an address's body. Raises Overloaded where it has no room."""
        share = self.bodies.get(owner, 0) + size
        if share > MOST_OF_ADDRESS or self.body_bytes + size > self.limits.body_budget_bytes:
            raise errors.Overloaded(headers={"retry-after": "2"})
        self.body_bytes += size
        self.bodies[owner] = share

    def give_body(self, owner: str, size: int) -> None:
        """Let go of what was taken."""
        self.body_bytes -= size
        self.bodies[owner] = self.bodies.get(owner, 0) - size
        if not self.bodies[owner]:
            del self.bodies[owner]


@dataclass(slots=True)
class Billing:
    """The endpoints, each a coroutine of a request. `till` is None where nothing is sold."""

    gateway: Gateway
    shop: Shop
    till: Till | None
    openings: RateLimit = field(default_factory=lambda: RateLimit(OPENINGS_PER_MINUTE, 60, "opening"))
    failures: RateLimit = field(default_factory=lambda: RateLimit(FAILURES_PER_MINUTE, 60, "webhook"))
    door: Door = field(default_factory=Door)
    busy: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    """One purchase of a user at a time, so that two do not ask Stripe for the same."""

    # --- buying ---

    async def checkout(self, request: Request) -> Response:
        """`POST /billing/checkout` `{"type": "credits", "amount": 1000}` or `{"type": "pro"}` -> `{"url",
        "session_id"}`."""
        caller = await self._caller(request)
        self._sells()
        body = await self._body(request, caller, {"type", "amount"})
        kind = fields.string(body, "type")
        if kind not in ("credits", "pro"):
            raise errors.Invalid(reason="`type` must be credits or pro", param="type")
        amount = self._amount(body, "amount") if kind == "credits" else None
        if kind == "pro" and "amount" in body:
            raise errors.Invalid(reason="`amount` is for credits: Pro has its own price", param="amount")
        key = _idempotency_key(request)
        if kind == "pro" and await self.gateway.store.read(subscriptions.running, caller.user_id):
            raise errors.Invalid(
                reason="you have Pro already; `GET /billing/portal` is where to change it", param="type"
            )
        payment = await self.sell(caller.user_id, amount, key)
        return JSONResponse({"url": payment.url, "session_id": payment.checkout_id})

    async def sell(self, user_id: str, amount: int | None, key: str | None) -> Payment:
        """An open checkout for so many cents of credits, or, where `amount` is None, for Pro."""
        gateway, terms = self.gateway, self.shop.terms
        price = terms.pro_price if amount is None else None
        cents = amount if amount is not None else PRO_CENTS if price is None else 0
        kind, granted = ("pro", 0) if amount is None else ("credits", self.shop.topups[amount])
        async with self.busy.setdefault(user_id, asyncio.Lock()):
            try:
                payment = await gateway.store.write(
                    payments.begin, user_id, kind, cents, granted, price, key, terms, gateway.now()
                )
            except PaymentError as error:
                raise errors.Invalid(reason=str(error)) from None
            if payment.status == "new":
                await self.openings.hit(user_id)
                payment = await self._open(payment)
            if payment.url is None:
                raise errors.Invalid(reason="the purchase of this `Idempotency-Key` could not be made; use another key")
            return payment

    async def _open(self, payment: Payment) -> Payment:
        """Make the checkout at Stripe: the same one, however often this is done for a payment."""
        store, till, now = self.gateway.store, self._sells(), self.gateway.now()
        try:
            customer = await self.customer(payment.user_id)
            found = await till.create_checkout(checkout_params(payment, customer, self.shop), payment.id)
            id, url, ends = str(found["id"]), str(found["url"]), int(found["expires_at"])
        except (TillError, KeyError, ValueError, TypeError) as error:
            if not isinstance(error, TillError) or error.spent:
                await store.write(_not_opened, payment.id, self.shop.terms, now)
            self.gateway.alert("stripe", doing="checkout", error=str(error))
            raise errors.TillUnavailable() from None
        await store.write(payments.opened, payment.id, id, url, subscriptions.iso(ends), now)
        opened = await store.read(payments.find, "id", payment.id)
        assert opened is not None
        return opened

    async def customer(self, user_id: str) -> str:
        """The user's id at Stripe, made now where there is none, or where the operator has deleted it there. It is
        never looked for by e-mail: anyone may have given any."""
        store = self.gateway.store
        till = self._sells()
        known, email = await store.read(payments.customer_of, user_id)
        if known is not None and not await till.is_deleted(known):
            return known
        if known is None:
            made = await _new_customer(till, user_id, email, f"customer-{user_id}")
            return await store.write(payments.set_customer, user_id, made)
        made = await _new_customer(till, user_id, email, f"customer-{user_id}-after-{known}")
        self.gateway.alert("stripe", doing="customer", error=f"{known} was deleted at Stripe; {user_id} is {made} now")
        return await store.write(inbox.replace_customer, user_id, known, made)

    async def portal(self, request: Request) -> Response:
        """`GET /billing/portal` -> `{"url"}`: where a customer changes cards and subscriptions."""
        caller = await self._caller(request)
        till = self._sells()
        customer, _ = await self.gateway.store.read(payments.customer_of, caller.user_id)
        if customer is None:
            raise errors.Invalid(reason="there is nothing to manage yet; `POST /billing/checkout` comes first")
        await self.openings.hit(caller.user_id)
        try:
            return JSONResponse({"url": await till.create_portal(customer, self.shop.portal_url)})
        except TillError as error:
            self.gateway.alert("stripe", doing="portal", error=str(error))
            raise errors.TillUnavailable() from None

    async def list_payments(self, request: Request) -> Response:
        """`GET /billing/payments`: what was paid and what went back, with receipts; the automatic top-up."""
        caller = await self._caller(request)
        return JSONResponse(await self.gateway.store.read(_listing, caller.user_id))

    async def set_auto_topup(self, request: Request) -> Response:
        """`POST /billing/auto-topup` `{"enabled": true, "below": 500, "amount": 1000, "daily_cap": 5000}`, in cents."""
        caller = await self._caller(request)
        till, store, now = self._sells(), self.gateway.store, self.gateway.now()
        body = await self._body(request, caller, {"enabled", "below", "amount", "daily_cap"})
        if not isinstance(body.get("enabled"), bool):
            raise errors.Invalid(reason="`enabled` must be true or false", param="enabled")
        if body["enabled"] is False:
            await store.write(autotopup.disable, caller.user_id, now)
            return JSONResponse(await store.read(autotopup.shown, caller.user_id))
        amount = self._amount(body, "amount")
        below, cap = fields.integer(body, "below", 0, 10_000_000), fields.integer(body, "daily_cap", amount, 10_000_000)
        if below is None or cap is None:
            name = "below" if below is None else "daily_cap"
            raise errors.Invalid(reason=f"`{name}` is needed: whole cents", param=name)
        customer, _ = await store.read(payments.customer_of, caller.user_id)
        await self.openings.hit(caller.user_id)
        try:
            card = None if customer is None else await till.saved_card(customer)
        except TillError as error:
            self.gateway.alert("stripe", doing="auto-topup", error=str(error))
            raise errors.TillUnavailable() from None
        if card is None:
            raise errors.Invalid(
                reason="there is no saved card; buying credits once at `POST /billing/checkout` saves one"
            )
        await store.write(autotopup.enable, caller.user_id, below, amount, cap, now)
        return JSONResponse(await store.read(autotopup.shown, caller.user_id))

    # --- what Stripe tells ---

    async def webhook(self, request: Request) -> Response:
        """`POST /billing/webhook`: the signature first; then the event and its effect in one transaction; then 200."""
        if self.till is None or not self.shop.secrets:
            raise errors.NotFound(path=request.url.path)
        address = request.scope["state"]["address"]
        try:
            if self.failures.spent(address):
                raise Unreadable("too many failures")
            event, text = await self._verified(request, address)
        except (errors.Overloaded, errors.ShuttingDown) as problem:
            problem.headers["connection"] = "close"
            raise  # it may well be a good one: Stripe sends it again
        except (errors.Problem, Unreadable):
            headers = {"connection": "close"}  # what was not read is not waited for
            try:
                await self.failures.hit(address)
            except errors.RateLimited as limited:
                limited.headers |= headers
                raise
            raise errors.NotAccepted(headers=headers) from None
        if event.type in stripe_facts.EVENTS:
            await self.take(event, text)
        return JSONResponse({"received": True})

    async def _verified(self, request: Request, address: str) -> tuple[Event, str]:
        """The event, once its signature holds, and its body. Raises Unreadable or a Problem."""
        assert self.till is not None
        headers = request.headers.getlist("stripe-signature")
        if len(headers) != 1 or WELL_FORMED.fullmatch(headers[0]) is None:
            raise Unreadable("no signature")
        raw = await read_body(self.door, request.scope, request.receive, MOST_WEBHOOK_BYTES, address)
        self.door.give_body(address, len(raw))
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise Unreadable("no UTF-8") from error
        if not self.till.verified(raw, headers[0], self.shop.secrets):
            raise Unreadable("no signature that holds")
        return stripe_facts.open_event(raw), text

    async def take(self, event: Event, body: str) -> str:
        """Take an event whose origin is proved; see `inbox.receive`. One that cannot be understood, or whose effect
        fails, is kept for review: sending it again would not help, and Stripe gives up an endpoint that always fails.
        Raises StoreUnavailable."""
        store, terms, now = self.gateway.store, self.shop.terms, self.gateway.now()
        news: Sequence[News] = ()
        try:
            news = stripe_facts.read(event)
            outcome = await store.write(inbox.receive, event, news, body, terms, now)
        except (Unreadable, LedgerError) as error:
            outcome = await store.write(inbox.keep_for_review, event, body, str(error), terms, now)
        except errors.Problem:
            raise
        except Exception as error:  # ours, or an object that nobody foresaw; its text may not be fit to be written
            reason = f"its effect failed: {type(error).__name__}"
            self.gateway.alert("fault", error=type(error).__name__, event_id=event.id)
            outcome = await store.write(inbox.keep_for_review, event, body, reason, terms, now)
        if outcome == "review":
            self.gateway.alert("payment_review", event_id=event.id, event_type=event.type)
        return outcome

    # --- shared ---

    def _sells(self) -> Till:
        """The till. Raises NotForSale where there is none, or where a payment could not be heard of."""
        if self.till is None:
            raise errors.NotForSale(reason="this gateway runs on granted credits.")
        if not self.shop.secrets:
            raise errors.NotForSale(reason="the operator has not finished setting it up.")
        return self.till

    def _amount(self, body: Body, name: str) -> int:
        amount = body.get(name)
        if type(amount) is not int or amount not in self.shop.topups:
            valid = ", ".join(map(str, sorted(self.shop.topups)))
            raise errors.Invalid(reason=f"`{name}` must be one of {valid} (cents)", param=name)
        return amount

    async def _caller(self, request: Request) -> Principal:
        caller = await self.gateway.identify(request.scope)
        request.scope["state"]["limits"] = await self.gateway.admit(caller)
        return caller

    async def _body(self, request: Request, caller: Principal, known: set[str]) -> Body:
        raw = await read_body(self.gateway, request.scope, request.receive, MOST_BODY_BYTES, caller.user_id)
        self.gateway.give_body(caller.user_id, len(raw))
        self.gateway.still_stands(caller)
        body = fields.parse(raw)
        if unknown := set(body) - known:
            raise errors.Invalid(reason=f"unknown field `{min(unknown)[:64]}`", param=min(unknown)[:64])
        return body


async def _new_customer(till: Till, user_id: str, label: str, key: str) -> str:
    """The id of a customer that is made at Stripe for a user, with their label as its e-mail where Stripe takes it for
    one: who signs in by telephone has none, and others may have given anything. Its checkout then asks for one."""
    told = {"metadata": {"user": user_id}}
    try:
        return await till.create_customer({**told, "email": label}, key)
    except TillError as error:
        if error.code != "email_invalid":
            raise
    return await till.create_customer(told, f"{key}-unnamed")


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or any(not 1 <= len(key) <= 255 or not key.isascii() for key in keys):
        raise errors.Invalid(reason="`Idempotency-Key` must be one text of at most 255 characters")
    return keys[0] if keys else None


def checkout_params(payment: Payment, customer: str, shop: Shop) -> dict[str, Any]:
    """What Stripe is asked for: by the row alone, so that asking again is asking for the same."""
    told = payments.told_of(payment)
    price: dict[str, Any] = {"price": payment.price_id}
    if payment.price_id is None:
        name = "Pro" if payment.kind == "pro" else f"Credits for ${payment.granted // 100}.{payment.granted % 100:02d}"
        monthly = {"recurring": {"interval": "month"}} if payment.kind == "pro" else {}
        data = {"currency": payments.CURRENCY, "unit_amount": payment.amount, "product_data": {"name": name}}
        price = {"price_data": {**data, **monthly}}
    more: dict[str, Any] = {"mode": "subscription", "subscription_data": {"metadata": told}}
    if payment.kind == "credits":
        more = {"mode": "payment", "payment_intent_data": {"metadata": told, "setup_future_usage": "off_session"}}
    return {
        "customer": customer,
        "client_reference_id": payment.id,
        "metadata": told,
        "line_items": [{"quantity": 1, **price}],
        "success_url": shop.success_url,
        "cancel_url": shop.cancel_url,
        "adaptive_pricing": {"enabled": False},
        "allow_promotion_codes": False,
        **more,
    }


def _not_opened(tx: Tx, payment_id: str, terms: Terms, now: str) -> None:
    """Stripe has refused a checkout, and would refuse it again under this id: the next try makes another purchase, also
    under the same `Idempotency-Key`. Nobody has tried to pay, so nobody is told."""
    tx.execute("DELETE FROM payment_requests WHERE payment_id = ?", (payment_id,))
    payments.given_up(tx, payment_id, "not_opened", replace(terms, notify=False), now)


def _listing(tx: Tx, user_id: str) -> dict[str, object]:
    """A user's payments and invoices, the latest first, and the automatic top-up."""
    bought: list[dict[str, object]] = [
        {
            "id": one.id,
            "type": "credits" if one.kind == "auto" else one.kind,
            "automatic": one.kind == "auto",
            "status": one.status,
            "amount_cents": one.amount,
            "granted_cents": one.granted,
            "refunded_cents": one.refunded,
            "disputed_cents": one.disputed,
            "failure": one.failure,
            "receipt_url": one.receipt_url,
            "url": one.url if one.status == "open" else None,
            "created_at": one.created_at,
        }
        for one in payments.of_user(tx, user_id, MOST_PAYMENTS)
        if one.kind != "pro" or one.status in ("new", "open", "unpaid", "failed")
    ]
    invoices = subscriptions.invoices(tx, user_id)[:MOST_PAYMENTS]
    listed = sorted([*bought, *invoices], key=lambda one: str(one["created_at"]), reverse=True)
    return {"payments": listed, "auto_topup": autotopup.shown(tx, user_id)}
