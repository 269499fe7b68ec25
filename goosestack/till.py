"""Stripe's edge: the little that we ask of Stripe, by its own library, which is imported nowhere else.

The library is loaded where a till is made, since it takes 30 MB. Calls are retried by it under the same idempotency
key; ours are the ids of our own rows, so that a call is the same one also after a restart. Objects are plain dicts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from goosestack.http import session_for

Object: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

API_VERSION = "2026-10-28.endive"
"""What we speak, and what a webhook endpoint that we make is pinned to."""

TIMEOUT_S = 10.0
RETRIES = 2
TOLERANCE_S = 300
"""A webhook's signature that is older is refused."""

SOURCES: Mapping[str, Mapping[str, Any]] = {
    "checkouts": {},
    "intents": {"expand": ["data.latest_charge"]},
    "refunds": {},
    "disputes": {},
    "subscriptions": {"status": "all"},
    "invoices": {"expand": ["data.payments"]},
    "events": {},
}
"""What can be pulled, in the order in which it is best understood, and how it is asked for."""

PATHS: Mapping[str, str] = {
    "checkouts": "/v1/checkout/sessions",
    "intents": "/v1/payment_intents",
    "refunds": "/v1/refunds",
    "disputes": "/v1/disputes",
    "subscriptions": "/v1/subscriptions",
    "invoices": "/v1/invoices",
    "events": "/v1/events",
}

PAGE = 50
"""Objects of one page: reading them keeps requests waiting for a few milliseconds."""


class TillError(Exception):
    """Stripe could not be asked, or refused; the text says why, without any secret.

    `certain`: Stripe has refused it, and nothing came of it. `spent`: Stripe has answered, and would answer so again
    under this key. A 500 is that alone: its effect may be there all the same
    (https://docs.stripe.com/api/idempotent_requests). A key of ours that Stripe does not take, a rate that is too
    high and a lock pass by themselves, and are neither."""

    def __init__(self, text: str, code: str | None = None, *, certain: bool = False, spent: bool = False) -> None:
        super().__init__(text)
        self.code, self.certain, self.spent = code, certain, certain or spent


class Declined(TillError):
    """A card was not charged. `intent` is the payment that failed."""

    def __init__(self, code: str, intent: Object) -> None:
        super().__init__(f"declined: {code}", code, certain=True)
        self.intent = intent


class Till(Protocol):
    """What we ask of Stripe. Each may raise TillError."""

    async def create_customer(self, params: Object, key: str) -> str:
        """The id of a new customer."""
        ...

    async def is_deleted(self, customer: str) -> bool:
        """Whether a customer was deleted at Stripe: nothing can be sold to it again."""
        ...

    async def create_checkout(self, params: Object, key: str) -> Object:
        """A new checkout."""
        ...

    async def create_portal(self, customer: str, return_url: str) -> str:
        """The address of the customer's portal, for a few minutes."""
        ...

    async def saved_card(self, customer: str) -> str | None:
        """The customer's latest saved payment method, if there is one."""
        ...

    async def charge(self, params: Object, key: str) -> Object:
        """A payment of a saved card. Raises Declined."""
        ...

    async def endpoints(self) -> Sequence[Object]:
        """The webhook endpoints that there are."""
        ...

    async def create_endpoint(self, url: str, events: Sequence[str]) -> Object:
        """A new webhook endpoint, with its `secret`, which is told once."""
        ...

    def pull(self, source: str, since: int) -> AsyncIterator[Object]:
        """Every object of a source (see `SOURCES`) that was made since a time (Unix seconds)."""
        ...

    def verified(self, payload: bytes, header: str, secrets: Sequence[str]) -> bool:
        """Whether one of the secrets signed a webhook's body, lately."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class StripeTill:
    """A `Till` at Stripe. Made and closed inside the event loop. Raises ImportError where its library is missing."""

    def __init__(self, api_key: str, api_base: str | None) -> None:
        import stripe

        stripe.enable_telemetry = False
        self._stripe = stripe
        self._connections = session_for("goosestack", TIMEOUT_S)
        self._client = stripe.StripeClient(
            api_key,
            http_client=stripe.AIOHTTPClient(timeout=None, session=self._connections),
            base_addresses={} if api_base is None else {"api": api_base},
            max_network_retries=RETRIES,
            stripe_version=API_VERSION,
        )

    async def create_customer(self, params: Object, key: str) -> str:
        """See `Till.create_customer`."""
        return _part(await self._ask(self._client.v1.customers.create_async, params, key), "id", str)

    async def is_deleted(self, customer: str) -> bool:
        """See `Till.is_deleted`."""
        return (await self._ask(self._client.v1.customers.retrieve_async, customer)).get("deleted") is True

    async def create_checkout(self, params: Object, key: str) -> Object:
        """See `Till.create_checkout`."""
        return await self._ask(self._client.v1.checkout.sessions.create_async, params, key)

    async def create_portal(self, customer: str, return_url: str) -> str:
        """See `Till.create_portal`."""
        params = {"customer": customer, "return_url": return_url}
        return _part(await self._ask(self._client.v1.billing_portal.sessions.create_async, params), "url", str)

    async def saved_card(self, customer: str) -> str | None:
        """See `Till.saved_card`."""
        params = {"customer": customer, "limit": 1}
        try:
            cards = _part(await self._ask(self._client.v1.payment_methods.list_async, params), "data", list)
        except TillError as error:
            if error.code == "resource_missing":  # the customer is gone, and what was saved with it
                return None
            raise
        return str(cards[0]["id"]) if cards else None

    async def charge(self, params: Object, key: str) -> Object:
        """See `Till.charge`."""
        return await self._ask(self._client.v1.payment_intents.create_async, params, key)

    async def endpoints(self) -> Sequence[Object]:
        """See `Till.endpoints`."""
        return _part(await self._ask(self._client.v1.webhook_endpoints.list_async, {"limit": 100}), "data", list)

    async def create_endpoint(self, url: str, events: Sequence[str]) -> Object:
        """See `Till.create_endpoint`."""
        params = {"url": url, "enabled_events": list(events), "api_version": API_VERSION, "description": "GooseStack"}
        return await self._ask(self._client.v1.webhook_endpoints.create_async, params)

    async def pull(self, source: str, since: int) -> AsyncIterator[Object]:
        """See `Till.pull`. Pages come as plain JSON: the library would make an object of everything in them first,
        which takes longer than the loop that serves requests may wait."""
        params: dict[str, Any] = {"limit": PAGE, "created": {"gte": since}, **SOURCES[source]}
        while True:
            page = await self._answer(self._client.raw_request_async("get", PATHS[source], **params))
            found = _part(page, "data", list)
            for each in found:
                yield each
            if not _part(page, "has_more", bool) or not found:
                return
            params["starting_after"] = found[-1]["id"]

    def verified(self, payload: bytes, header: str, secrets: Sequence[str]) -> bool:
        """See `Till.verified`. Whatever the library makes of a strange header or body, it proves nothing."""
        for secret in secrets:
            try:
                self._stripe.WebhookSignature.verify_header(payload, header, secret, TOLERANCE_S)
            except Exception:  # noqa: S112 (it raises several kinds for what is merely malformed)
                continue
            return True
        return False

    async def close(self) -> None:
        """See `Till.close`."""
        await self._connections.close()

    async def _ask(self, call: Any, about: Object | str, key: str | None = None) -> Object:
        """Make one call, with parameters or about an id; its answer as plain dicts and lists."""
        if isinstance(about, str):
            return await self._answer(call(about))
        return await self._answer(call(params=dict(about), options={} if key is None else {"idempotency_key": key}))

    async def _answer(self, calling: Awaitable[Any]) -> Object:
        stripe = self._stripe
        try:
            answer = await calling
            # as it came: the library makes other things of some of its fields
            plain = answer.data if isinstance(answer, stripe.StripeResponse) else answer.last_response.data
        except stripe.CardError as error:
            raise Declined(error.code or "card_declined", _failed_intent(error.json_body)) from None
        except stripe.StripeError as error:
            status = error.http_status
            spent = status is not None and status not in (401, 403, 409, 429)
            text = f"{type(error).__name__} {error.code or ''}".strip()
            raise TillError(text, error.code, certain=spent and status < 500, spent=spent) from None
        except Exception as error:  # it raises several kinds for what is no answer of Stripe's
            raise TillError(type(error).__name__) from None
        if not isinstance(plain, dict):
            raise TillError("an answer that is none")
        return plain


def _part(answer: Object, name: str, kind: type[T]) -> T:
    """A field that Stripe's answer must have. Raises TillError."""
    found = answer.get(name)
    if not isinstance(found, kind):
        raise TillError(f"an answer without `{name}`")
    return found


def _failed_intent(body: object) -> Object:
    error = body.get("error") if isinstance(body, Mapping) else None
    intent = error.get("payment_intent") if isinstance(error, Mapping) else None
    return intent if isinstance(intent, Mapping) else {}
