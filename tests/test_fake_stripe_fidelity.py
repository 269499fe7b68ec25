"""The fake Stripe against the types of the official library: it takes no parameter, shows no field and sends no event
that Stripe does not have, and what Stripe requires or always shows is required and shown."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args, get_origin

import pytest
import stripe
from stripe.params._webhook_endpoint_create_params import WebhookEndpointCreateParams

from goosestack.demo.stripe import (
    catalog,
    checkout,
    customers,
    invoices,
    meters,
    notices,
    payments,
    returns,
    subscriptions,
)
from goosestack.demo.stripe.form import Fields, Items
from goosestack.demo.stripe.shapes import EXPANDABLE
from tests.tills import Till

READERS: Mapping[str, Fields] = {
    "_customer_create_params.CustomerCreateParams": customers.CREATE,
    "_customer_update_params.CustomerUpdateParams": customers.UPDATE,
    "_customer_list_params.CustomerListParams": customers.LIST,
    "_customer_list_payment_methods_params.CustomerListPaymentMethodsParams": customers.METHODS_OF_ONE,
    "_payment_method_list_params.PaymentMethodListParams": customers.METHODS,
    "billing_portal._session_create_params.SessionCreateParams": customers.PORTAL,
    "_product_create_params.ProductCreateParams": catalog.CREATE_PRODUCT,
    "_product_list_params.ProductListParams": catalog.LIST_PRODUCTS,
    "_price_create_params.PriceCreateParams": catalog.CREATE_PRICE,
    "_price_list_params.PriceListParams": catalog.LIST_PRICES,
    "checkout._session_create_params.SessionCreateParams": checkout.CREATE,
    "checkout._session_list_params.SessionListParams": checkout.LIST,
    "checkout._session_list_line_items_params.SessionListLineItemsParams": checkout.PAGES,
    "checkout._session_expire_params.SessionExpireParams": checkout.EXPIRE,
    "_payment_intent_create_params.PaymentIntentCreateParams": payments.CREATE,
    "_payment_intent_list_params.PaymentIntentListParams": payments.LIST,
    "_payment_intent_cancel_params.PaymentIntentCancelParams": payments.CANCEL,
    "_charge_list_params.ChargeListParams": payments.CHARGES,
    "_refund_create_params.RefundCreateParams": returns.CREATE,
    "_refund_list_params.RefundListParams": returns.LIST,
    "_dispute_list_params.DisputeListParams": returns.LIST,
    "_subscription_list_params.SubscriptionListParams": subscriptions.LIST,
    "_subscription_update_params.SubscriptionUpdateParams": subscriptions.UPDATE,
    "_subscription_cancel_params.SubscriptionCancelParams": subscriptions.CANCEL,
    "_invoice_list_params.InvoiceListParams": invoices.LIST,
    "_invoice_payment_list_params.InvoicePaymentListParams": invoices.LIST_PAYMENTS,
    "_event_list_params.EventListParams": notices.LIST_EVENTS,
    "_webhook_endpoint_create_params.WebhookEndpointCreateParams": notices.CREATE,
    "_webhook_endpoint_update_params.WebhookEndpointUpdateParams": notices.UPDATE,
    "_webhook_endpoint_list_params.WebhookEndpointListParams": notices.LIST_ENDPOINTS,
    "billing._meter_event_create_params.MeterEventCreateParams": meters.CREATE,
    "billing._meter_event_adjustment_create_params.MeterEventAdjustmentCreateParams": meters.ADJUST,
}


def parameters(path: str) -> Any:
    """The library's type of a request."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"stripe.params.{module}"), name)


def unknown(reader: object, theirs: Any, name: str) -> Iterator[str]:
    """The parameters of a reader that the library's type does not have, however deep."""
    if isinstance(reader, Items):
        yield from unknown(reader.each, theirs, name)
    if not isinstance(reader, Fields):
        return
    for inner, each in reader.spec.items():
        if inner not in theirs.__annotations__:
            yield f"{name}[{inner}]"
            continue
        module = importlib.import_module(theirs.__module__)
        for word in re.findall(r"\w+", str(theirs.__annotations__[inner])):
            if word.startswith(theirs.__name__) and hasattr(module, word):
                yield from unknown(each, getattr(module, word), f"{name}[{inner}]")


@pytest.mark.parametrize("path", READERS)
def test_every_parameter_that_it_takes_is_one_of_stripes(path: str) -> None:
    assert list(unknown(READERS[path], parameters(path), "")) == []


@pytest.mark.parametrize("path", READERS)
def test_what_stripe_requires_is_required(path: str) -> None:
    theirs = parameters(path).__annotations__
    required = {name for name, kind in theirs.items() if "NotRequired" not in str(kind)}
    assert required <= set(READERS[path].required), path


def test_the_parameter_that_is_gone_is_refused() -> None:
    assert (
        "payment_method_types" not in parameters("checkout._session_create_params.SessionCreateParams").__annotations__
    )
    assert "payment_method_types" not in checkout.CREATE.spec and "payment_method_types" not in payments.CREATE.spec


def test_every_event_that_it_knows_is_one_of_stripes() -> None:
    theirs = str(WebhookEndpointCreateParams.__annotations__["enabled_events"])
    assert [each for each in sorted(notices.EVENT_TYPES) if f"'{each}'" not in theirs] == []


# --- objects --------------------------------------------------------------------------------------------------

CLASSES: Mapping[str, Any] = {
    "charge": stripe.Charge,
    "checkout.session": stripe.checkout.Session,
    "customer": stripe.Customer,
    "dispute": stripe.Dispute,
    "event": stripe.Event,
    "invoice": stripe.Invoice,
    "invoice_payment": stripe.InvoicePayment,
    "item": stripe.LineItem,
    "line_item": stripe.InvoiceLineItem,
    "payment_intent": stripe.PaymentIntent,
    "payment_method": stripe.PaymentMethod,
    "price": stripe.Price,
    "product": stripe.Product,
    "refund": stripe.Refund,
    "subscription": stripe.Subscription,
    "subscription_item": stripe.SubscriptionItem,
    "webhook_endpoint": stripe.WebhookEndpoint,
    "billing_portal.session": stripe.billing_portal.Session,
    "billing.meter_event": stripe.billing.MeterEvent,
    "billing.meter_event_adjustment": stripe.billing.MeterEventAdjustment,
    "balance_transaction": stripe.BalanceTransaction,
}
NOT_THEIRS = {
    "refund": {"livemode"},
    "item": {"livemode"},
    "billing.meter_event": {"id"},
    "billing.meter_event_adjustment": {"id", "created"},
}
"""What the fake gives every object of its own, and Stripe does not give these."""
NOT_OURS = {
    "subscription": {"billing_schedules"},
    "subscription_item": {"plan"},
    "invoice": {"default_tax_rates", "issuer"},
}
"""What Stripe always shows, and no gateway has to read."""


def optional(kind: Any) -> bool:
    """Whether a field may be absent: some of the library's types are text, which nobody evaluates."""
    text = kind if isinstance(kind, str) else getattr(kind, "__forward_arg__", "")
    return text.startswith(("Optional[", "ClassVar[")) or type(None) in get_args(kind) or get_origin(kind) is ClassVar


def sample(till: Till) -> list[dict[str, Any]]:
    """Everything that a busy day leaves in the account, as the API answers it."""

    def make(path: str, form: str) -> dict[str, Any]:
        status, body, _ = till.ask("POST", path, form)
        assert status == 200, (path, body)
        return body

    customer = make("/v1/customers", "email=alice@example.com&name=Alice")["id"]
    price = make("/v1/prices", "currency=usd&unit_amount=1000&product_data[name]=Pro&recurring[interval]=month")["id"]
    line = f"line_items[0][quantity]=1&success_url=https://a.example/&customer={customer}"
    adhoc = "line_items[0][price_data][currency]=usd&line_items[0][price_data][unit_amount]=1000"
    adhoc += (
        "&line_items[0][price_data][product_data][name]=Credits&payment_intent_data[setup_future_usage]=off_session"
    )
    for _ in range(2):
        paid = make("/v1/checkout/sessions", f"mode=payment&{line}&{adhoc}&invoice_creation[enabled]=true")["id"]
        till.pay(paid)
    till.pay(make("/v1/checkout/sessions", f"mode=subscription&{line}&line_items[0][price]={price}")["id"])
    till.refund(paid, 100)
    till.refund(paid, 100, status="pending")
    till.refund(paid, 100, status="failed")
    till.dispute(till.objects("checkout.session")[0]["id"])
    till.renew(till.objects("subscription")[0]["id"], "failed")
    make("/v1/webhook_endpoints", "url=https://a.example/&enabled_events[0]=*")
    make("/v1/billing/meter_events", "event_name=t&identifier=1&payload[stripe_customer_id]=c&payload[value]=1")
    make("/v1/billing/meter_event_adjustments", "event_name=t&type=cancel&cancel[identifier]=1")
    make("/v1/billing_portal/sessions", f"customer={customer}")
    order = paid
    lists = """charges checkout/sessions customers disputes events invoices invoice_payments payment_intents prices
    products refunds subscriptions webhook_endpoints""".split()
    found = [each for path in lists for each in till.ask("GET", f"/v1/{path}", "limit=100")[1]["data"]]
    found += till.ask("GET", "/v1/payment_methods", f"customer={customer}")[1]["data"]
    found += till.ask("GET", f"/v1/checkout/sessions/{order}/line_items")[1]["data"]
    kinds = ("billing_portal.session", "billing.meter_event", "billing.meter_event_adjustment")
    found += [
        {name: value for name, value in each.items() if name[0] != "_"} for kind in kinds for each in till.objects(kind)
    ]
    return found


def inside(value: object) -> Iterator[dict[str, Any]]:
    """Every object in a document, itself first."""
    if isinstance(value, dict):
        if value.get("object", "list") != "list" and isinstance(value["object"], str):
            yield value
        for inner in value.values():
            yield from inside(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from inside(inner)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    till = Till.start(tmp_path_factory.mktemp("till"))
    yield [each for record in sample(till) for each in inside(record)]
    till.stop()


def test_a_busy_day_shows_every_kind_of_object(shown: list[dict[str, Any]]) -> None:
    assert {each["object"] for each in shown} == set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_that_it_shows_is_one_of_stripes(shown: list[dict[str, Any]], kind: str) -> None:
    known = set(CLASSES[kind].__annotations__) | NOT_THEIRS.get(kind, set())
    extra = {name for each in shown if each["object"] == kind for name in each} - known
    assert extra == set()


@pytest.mark.parametrize("kind", CLASSES)
def test_what_stripe_always_shows_is_shown(shown: list[dict[str, Any]], kind: str) -> None:
    always = {name for name, of in CLASSES[kind].__annotations__.items() if not optional(of)}
    assert always, kind
    for each in (each for each in shown if each["object"] == kind):
        missing = always - set(each) - NOT_OURS.get(kind, set())
        assert missing == set(), each["id"]


def test_what_it_expands_is_expandable_at_stripe() -> None:
    listed = {"line_items", "payments", "refunds", "subscriptions"}
    for kind, names in EXPANDABLE.items():
        for name in names:
            if "." in name or name in listed:
                continue
            assert re.search(r"ExpandableField|Union\[str, ForwardRef", str(CLASSES[kind].__annotations__[name])), (
                kind,
                name,
            )
