"""Every route of the API: what it reads, and what it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from goosestack.demo.strict import Json
from goosestack.demo.stripe import (
    catalog,
    checkout,
    customers,
    form,
    invoices,
    meters,
    notices,
    payments,
    returns,
    subscriptions,
)
from goosestack.demo.stripe.account import Account
from goosestack.demo.stripe.form import Fields
from goosestack.demo.stripe.shapes import everything, page

Handler: TypeAlias = Callable[..., Json]
NOTHING = form.Fields({"expand": form.expand})


@dataclass(frozen=True)
class Route:
    """A method and a path, `{id}` in it being a parameter of the handler: handler(account, given, *ids)."""

    method: str
    path: str
    reader: Fields
    handler: Handler

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """What a path must look like."""
        return re.compile(self.path.replace("{id}", "([^/]+)"))


def listed(find: str | Callable[[Account, Json], list[Json]], path: str, *filters: str) -> Handler:
    """A handler that answers a page of what a function finds, or of the objects of a kind; filters: parameters that
    the field of that name must equal."""

    def answer(account: Account, given: Json) -> Json:
        if callable(find):
            found = find(account, given)
        else:
            found = account.all(find, **{name: given[name] for name in filters if name in given})
        return page(found, given, path)

    return answer


def shown(kind: str) -> Handler:
    """A handler that answers one object."""

    def answer(account: Account, given: Json, id: str) -> Json:
        return account.get(kind, id)

    return answer


def _customer(account: Account, given: Json, id: str) -> Json:
    gone: Json = account.objects.get(id, {})
    if gone.get("deleted"):
        return {"id": id, "object": "customer", "deleted": True}
    return account.get("customer", id)


def _methods_of_one(account: Account, given: Json, id: str) -> Json:
    account.get("customer", id)
    return _methods(account, {**given, "customer": id}, f"/v1/customers/{id}/payment_methods")


def _methods(account: Account, given: Json, path: str = "/v1/payment_methods") -> Json:
    equal: Mapping[str, Any] = {name: given[name] for name in ("customer", "type") if name in given}
    if "customer" not in equal:  # without a customer, only what belongs to none
        equal = {**equal, "customer": None}
    return page(account.all("payment_method", **equal), given, path)


def _lines(account: Account, given: Json, id: str) -> Json:
    lines = account.get("checkout.session", id)["_line_items"]
    return everything(lines[: given.get("limit", 10)], f"/v1/checkout/sessions/{id}/line_items")


def _account(account: Account, given: Json) -> Json:
    return {
        "id": "acct_goosestackdemo",
        "object": "account",
        "business_type": "company",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": "demo@example.com",
        "payouts_enabled": True,
        "type": "standard",
    }


def _balance(account: Account, given: Json) -> Json:
    charges = sum(each["amount_captured"] - each["amount_refunded"] for each in account.all("charge"))
    moved = sum(each["amount"] for dispute in account.all("dispute") for each in dispute["balance_transactions"])
    available = [{"amount": charges + moved, "currency": "usd", "source_types": {"card": charges + moved}}]
    return {"object": "balance", "available": available, "livemode": False, "pending": []}


ROUTES: Sequence[Route] = (
    Route("POST", "/v1/customers", customers.CREATE, customers.create),
    Route("GET", "/v1/customers", customers.LIST, listed("customer", "/v1/customers", "email")),
    Route("GET", "/v1/customers/{id}", NOTHING, _customer),
    Route("POST", "/v1/customers/{id}", customers.UPDATE, customers.update),
    Route("DELETE", "/v1/customers/{id}", NOTHING, customers.delete),
    Route("GET", "/v1/customers/{id}/payment_methods", customers.METHODS_OF_ONE, _methods_of_one),
    Route("GET", "/v1/payment_methods", customers.METHODS, _methods),
    Route("GET", "/v1/payment_methods/{id}", NOTHING, shown("payment_method")),
    Route("POST", "/v1/products", catalog.CREATE_PRODUCT, catalog.create_product),
    Route("GET", "/v1/products", catalog.LIST_PRODUCTS, listed("product", "/v1/products", "active")),
    Route("GET", "/v1/products/{id}", NOTHING, shown("product")),
    Route("POST", "/v1/prices", catalog.CREATE_PRICE, catalog.create_price),
    Route("GET", "/v1/prices", catalog.LIST_PRICES, listed(catalog.found_prices, "/v1/prices")),
    Route("GET", "/v1/prices/{id}", NOTHING, shown("price")),
    Route("POST", "/v1/checkout/sessions", checkout.CREATE, checkout.create),
    Route("GET", "/v1/checkout/sessions", checkout.LIST, listed(checkout.found, "/v1/checkout/sessions")),
    Route("GET", "/v1/checkout/sessions/{id}", NOTHING, shown("checkout.session")),
    Route("GET", "/v1/checkout/sessions/{id}/line_items", checkout.PAGES, _lines),
    Route("POST", "/v1/checkout/sessions/{id}/expire", checkout.EXPIRE, checkout.expire),
    Route("POST", "/v1/billing_portal/sessions", customers.PORTAL, customers.open_portal),
    Route("POST", "/v1/payment_intents", payments.CREATE, payments.create),
    Route("GET", "/v1/payment_intents", payments.LIST, listed("payment_intent", "/v1/payment_intents", "customer")),
    Route("GET", "/v1/payment_intents/{id}", NOTHING, shown("payment_intent")),
    Route("POST", "/v1/payment_intents/{id}/cancel", payments.CANCEL, payments.cancel),
    Route("GET", "/v1/charges", payments.CHARGES, listed("charge", "/v1/charges", "customer", "payment_intent")),
    Route("GET", "/v1/charges/{id}", NOTHING, shown("charge")),
    Route("POST", "/v1/refunds", returns.CREATE, returns.create),
    Route("GET", "/v1/refunds", returns.LIST, listed("refund", "/v1/refunds", "charge", "payment_intent")),
    Route("GET", "/v1/refunds/{id}", NOTHING, shown("refund")),
    Route("GET", "/v1/disputes", returns.LIST, listed("dispute", "/v1/disputes", "charge", "payment_intent")),
    Route("GET", "/v1/disputes/{id}", NOTHING, shown("dispute")),
    Route("GET", "/v1/subscriptions", subscriptions.LIST, listed(subscriptions.found, "/v1/subscriptions")),
    Route("GET", "/v1/subscriptions/{id}", NOTHING, shown("subscription")),
    Route("POST", "/v1/subscriptions/{id}", subscriptions.UPDATE, subscriptions.update),
    Route("DELETE", "/v1/subscriptions/{id}", subscriptions.CANCEL, subscriptions.cancel),
    Route("GET", "/v1/invoices", invoices.LIST, listed(invoices.found_invoices, "/v1/invoices")),
    Route("GET", "/v1/invoices/{id}", NOTHING, shown("invoice")),
    Route(
        "GET", "/v1/invoice_payments", invoices.LIST_PAYMENTS, listed(invoices.found_payments, "/v1/invoice_payments")
    ),
    Route("GET", "/v1/invoice_payments/{id}", NOTHING, shown("invoice_payment")),
    Route("GET", "/v1/events", notices.LIST_EVENTS, notices.listed),
    Route("GET", "/v1/events/{id}", NOTHING, notices.retrieve),
    Route("POST", "/v1/webhook_endpoints", notices.CREATE, notices.create),
    Route("GET", "/v1/webhook_endpoints", notices.LIST_ENDPOINTS, listed("webhook_endpoint", "/v1/webhook_endpoints")),
    Route("GET", "/v1/webhook_endpoints/{id}", NOTHING, shown("webhook_endpoint")),
    Route("POST", "/v1/webhook_endpoints/{id}", notices.UPDATE, notices.update),
    Route("DELETE", "/v1/webhook_endpoints/{id}", NOTHING, notices.delete),
    Route("POST", "/v1/billing/meter_events", meters.CREATE, meters.create),
    Route("POST", "/v1/billing/meter_event_adjustments", meters.ADJUST, meters.adjust),
    Route("GET", "/v1/account", NOTHING, _account),
    Route("GET", "/v1/balance", NOTHING, _balance),
)


def route_of(method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
    """The route that a request takes, and the ids in its path."""
    for route in ROUTES:
        match = route.expression.fullmatch(path) if route.method == method else None
        if match is not None:
            return route, match.groups()
    return None
