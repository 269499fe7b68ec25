"""Customers and their cards, and the portal where they look after both."""

from __future__ import annotations

from collections.abc import Mapping

from goosestack.demo.strict import Json, Refusal
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, token, with_metadata
from goosestack.demo.stripe.form import refused

BEHAVIOURS: Mapping[str, tuple[str, str] | None] = {
    "ok": None,
    "processing": None,
    "card_declined": ("card_declined", "generic_decline"),
    "insufficient_funds": ("card_declined", "insufficient_funds"),
    "expired_card": ("expired_card", "expired_card"),
    "processing_error": ("processing_error", "processing_error"),
    "authentication_required": ("authentication_required", "authentication_required"),
}
"""How a card behaves when it is charged: code and decline code, where it declines."""

CUSTOMER: Mapping[str, form.Reader] = {
    "description": form.text(unset=True),
    "email": form.email,
    "expand": form.expand,
    "metadata": form.metadata,
    "name": form.text(256, unset=True),
    "phone": form.text(20, unset=True),
    "preferred_locales": form.Items(form.text(10)),
}
CREATE = form.Fields(CUSTOMER)
SETTINGS = form.Fields({"default_payment_method": form.text(unset=True)})
UPDATE = form.Fields({**CUSTOMER, "invoice_settings": SETTINGS})  # only who has a card can choose one
LIST = form.listing(created=form.span, email=form.text(512))
TYPES = form.choice("card", "link", "sepa_debit", "us_bank_account")
METHODS = form.listing(type=TYPES, customer=form.text())
METHODS_OF_ONE = form.listing(type=TYPES)
PORTAL = form.Fields(
    {
        "configuration": form.text(),
        "customer": form.text(),
        "expand": form.expand,
        "locale": form.text(10),
        "return_url": form.url,
    },
    required=["customer"],
)


# --- customers ------------------------------------------------------------------------------------------------


def create(account: Account, given: Json) -> Json:
    """POST /v1/customers, and who buys without being a customer yet."""
    record = account.add(
        "customer",
        "cus_",
        address=None,
        balance=0,
        currency=None,
        default_source=None,
        delinquent=False,
        description=given.get("description"),
        email=given.get("email"),
        invoice_settings={
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        metadata=with_metadata({}, given),
        name=given.get("name"),
        phone=given.get("phone"),
        preferred_locales=given.get("preferred_locales", []),
        shipping=None,
        tax_exempt="none",
        test_clock=None,
        _behaviour="ok",
    )
    account.emit("customer.created", record)
    return record


def update(account: Account, given: Json, id: str) -> Json:
    """POST /v1/customers/{id}."""
    record = account.get("customer", id)
    changes = {key: value for key, value in given.items() if key not in ("expand", "metadata", "invoice_settings")}
    changes["metadata"] = with_metadata(record["metadata"], given)
    if "default_payment_method" in given.get("invoice_settings", {}):
        chosen = given["invoice_settings"]["default_payment_method"]
        if chosen is not None:
            method_of(account, chosen, record["id"], "invoice_settings[default_payment_method]")
        changes["invoice_settings"] = {**record["invoice_settings"], "default_payment_method": chosen}
    previous = {key: record[key] for key, value in changes.items() if record[key] != value}
    record.update(changes)
    if previous:
        account.emit("customer.updated", record, previous)
    return record


def delete(account: Account, given: Json, id: str) -> Json:
    """DELETE /v1/customers/{id}: its subscriptions must have ended, which spares us to end them."""
    record = account.get("customer", id)
    if any(each["status"] != "canceled" for each in account.all("subscription", customer=id)):
        raise refused("parameter_invalid", "This customer still has a subscription; cancel that first.", "id")
    account.emit("customer.deleted", record)
    gone = {"id": id, "object": "customer", "deleted": True, "created": record["created"]}
    account.objects[id] = gone
    return {key: value for key, value in gone.items() if key != "created"}


def known(account: Account, id: str | None) -> Json | None:
    """The customer that a parameter names, or None where it names none."""
    return None if id is None else account.get("customer", id, "customer")


# --- cards ----------------------------------------------------------------------------------------------------


def save_card(account: Account, customer: str) -> Json:
    """A card of this customer, for later payments."""
    owner = account.get("customer", customer)
    method = account.add(
        "payment_method",
        "pm_",
        allow_redisplay="limited",
        billing_details={
            "address": None,
            "email": owner["email"],
            "name": owner["name"],
            "phone": None,
            "tax_id": None,
        },
        card={
            "brand": "visa",
            "country": "US",
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": token("", 16),
            "funding": "credit",
            "last4": "4242",
        },
        customer=customer,
        metadata={},
        type="card",
    )
    account.emit("payment_method.attached", method)
    return method


def detach_cards(account: Account, customer: str) -> None:
    """All cards of a customer are gone."""
    for method in account.all("payment_method", customer=customer):
        method["customer"] = None
        account.emit("payment_method.detached", method, {"customer": customer})
    owner = account.get("customer", customer)
    owner["invoice_settings"]["default_payment_method"] = None
    for subscription in account.all("subscription", customer=customer):
        subscription["default_payment_method"] = None


def set_behaviour(account: Account, customer: str, behaviour: str) -> Json:
    """How every card of a customer behaves from now on; one is added where there is none."""
    owner = account.get("customer", customer)
    owner["_behaviour"] = behaviour
    methods = account.all("payment_method", customer=customer)
    return methods[-1] if methods else save_card(account, customer)


def method_of(account: Account, id: str, customer: str | None, param: str) -> Json:
    """A payment method that belongs to the customer; who owns another one's card is told that it is not theirs."""
    method = account.get("payment_method", id, param)
    if method["customer"] is None or method["customer"] != customer:
        raise refused(
            "payment_method_unexpected_state" if method["customer"] is None else "parameter_invalid",
            "The payment method does not belong to this customer.",
            param,
        )
    return method


def decline(behaviour: str) -> Refusal | None:
    """The error of an attempt to charge a card that behaves so; None where it is good."""
    found = BEHAVIOURS[behaviour]
    if found is None:
        return None
    code, reason = found
    message = f"The card was declined: {reason}."
    return Refusal(402, message, type="card_error", code=code, details={"decline_code": reason})


# --- the portal -----------------------------------------------------------------------------------------------


def open_portal(account: Account, given: Json) -> Json:
    """POST /v1/billing_portal/sessions."""
    customer = account.get("customer", given["customer"], "customer")
    record = account.add(
        "billing_portal.session",
        "bps_",
        configuration=given.get("configuration", "bpc_demo"),
        customer=customer["id"],
        flow=None,
        locale=given.get("locale"),
        on_behalf_of=None,
        return_url=given.get("return_url"),
    )
    record["url"] = f"{account.base_url}/p/session/{record['id']}"
    return record
