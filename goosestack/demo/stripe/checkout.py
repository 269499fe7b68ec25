"""Checkouts: what is to be bought, until it is paid, given up or expired."""

from __future__ import annotations

from collections.abc import Mapping

from goosestack.demo.strict import Json, Refusal
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, token, with_metadata
from goosestack.demo.stripe.catalog import PRICE_DATA, create_price
from goosestack.demo.stripe.customers import create as create_customer, decline, known, save_card
from goosestack.demo.stripe.form import refused
from goosestack.demo.stripe.invoices import mark_paid, open_invoice
from goosestack.demo.stripe.payments import LEAST_CENTS, MOST_CENTS, attempt, open_intent, settle
from goosestack.demo.stripe.subscriptions import subscribe

SHORTEST_S, LONGEST_S = 30 * 60, 24 * 3600

LINE = form.Fields({"price": form.text(), "price_data": PRICE_DATA, "quantity": form.integer(1, 999_999)})
ENABLED = form.Fields({"enabled": form.boolean}, required=["enabled"])
CREATE = form.Fields(
    {
        "adaptive_pricing": ENABLED,
        "allow_promotion_codes": form.boolean,
        "allowed_payment_method_types": form.Items(form.text(40)),
        "automatic_tax": ENABLED,
        "billing_address_collection": form.choice("auto", "required"),
        "cancel_url": form.url,
        "client_reference_id": form.text(200),
        "customer": form.text(),
        "customer_creation": form.choice("always", "if_required"),
        "customer_email": form.email,
        "excluded_payment_method_types": form.Items(form.text(40)),
        "expand": form.expand,
        "expires_at": form.integer(),
        "invoice_creation": ENABLED,
        "line_items": form.Items(LINE),
        "locale": form.text(10),
        "metadata": form.metadata,
        "mode": form.choice("payment", "subscription"),
        "payment_intent_data": form.Fields(
            {
                "description": form.text(1000),
                "metadata": form.metadata,
                "receipt_email": form.email,
                "setup_future_usage": form.choice("off_session", "on_session"),
                "statement_descriptor_suffix": form.text(22),
            }
        ),
        "payment_method_collection": form.choice("always", "if_required"),
        "saved_payment_method_options": form.Fields({"payment_method_save": form.choice("disabled", "enabled")}),
        "submit_type": form.choice("auto", "book", "donate", "pay", "subscribe"),
        "subscription_data": form.Fields({"description": form.text(500), "metadata": form.metadata}),
        "success_url": form.url,
        "ui_mode": form.choice("hosted_page"),
    },
    required=["mode", "line_items", "success_url"],
)
LIST = form.listing(
    created=form.span,
    customer=form.text(),
    customer_details=form.Fields({"email": form.email}, required=["email"]),
    payment_intent=form.text(),
    status=form.choice("complete", "expired", "open"),
    subscription=form.text(),
)
PAGES = form.listing()
EXPIRE = form.Fields({"expand": form.expand})
ONLY_FOR = {
    "customer_creation": "payment",
    "invoice_creation": "payment",
    "payment_intent_data": "payment",
    "payment_method_collection": "subscription",
    "subscription_data": "subscription",
}
ECHOED = tuple(
    """allow_promotion_codes allowed_payment_method_types billing_address_collection cancel_url client_reference_id
    customer customer_email excluded_payment_method_types locale saved_payment_method_options submit_type""".split()
)
"""What a checkout shows as it was given."""
NULLS: Mapping[str, None] = dict.fromkeys(
    """after_expiration client_secret collected_information consent consent_collection currency_conversion invoice
    payment_intent payment_link permissions recovered_from setup_intent shipping_address_collection shipping_cost
    subscription""".split()
)


# --- the API --------------------------------------------------------------------------------------------------


def create(account: Account, given: Json) -> Json:
    """POST /v1/checkout/sessions."""
    _check(account, given)
    customer = known(account, given.get("customer"))
    lines, total = _priced(account, given)
    shown = customer["email"] if customer is not None else given.get("customer_email")
    payment = given["mode"] == "payment"
    record = account.add(
        "checkout.session",
        "cs_test_",
        **NULLS,
        **{name: given.get(name) for name in ECHOED},
        adaptive_pricing=given.get("adaptive_pricing", {"enabled": True}),
        amount_subtotal=total,
        amount_total=total,
        automatic_tax={
            **given.get("automatic_tax", {"enabled": False}),
            "liability": None,
            "provider": None,
            "status": None,
        },
        currency=lines[0]["currency"],
        custom_fields=[],
        custom_text={
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        customer_creation=given.get("customer_creation", "if_required") if payment and customer is None else None,
        customer_details=None if shown is None else _details(shown),
        discounts=[],
        expires_at=given.get("expires_at", account.now + LONGEST_S),
        invoice_creation={**given.get("invoice_creation", {"enabled": False}), "invoice_data": {}} if payment else None,
        metadata=with_metadata({}, given),
        mode=given["mode"],
        payment_method_collection=given.get("payment_method_collection", "if_required" if payment else "always"),
        payment_method_options={},
        payment_method_types=given.get("allowed_payment_method_types", ["card", "link"]),
        payment_status="unpaid",
        phone_number_collection={"enabled": False},
        shipping_options=[],
        status="open",
        success_url=given["success_url"],
        total_details={"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        ui_mode="hosted_page",
        _intent=None,
        _line_items=lines,
        _payment=given.get("payment_intent_data", {}),
        _subscription=given.get("subscription_data", {}),
    )
    record["url"] = f"{account.base_url}/c/pay/{record['id']}"
    return record


def _check(account: Account, given: Json) -> None:
    for name, mode in ONLY_FOR.items():
        if name in given and given["mode"] != mode:
            raise refused("parameter_invalid", f"{name} is for mode={mode} alone.", name)
    if "customer" in given:
        for name in ("customer_email", "customer_creation"):
            if name in given:
                raise refused("parameter_invalid", f"Give customer or {name}, not both.", name)
    if "allowed_payment_method_types" in given and "excluded_payment_method_types" in given:
        raise refused(
            "parameter_invalid", "Payment methods are allowed or excluded, not both.", "excluded_payment_method_types"
        )
    if not given["line_items"]:
        raise refused("parameter_missing", "A checkout has at least one line.", "line_items")
    span = given.get("expires_at", account.now + LONGEST_S) - account.now
    if not SHORTEST_S <= span <= LONGEST_S:
        raise refused("parameter_invalid", "A checkout expires between 30 minutes and 24 hours from now.", "expires_at")


def _priced(account: Account, given: Json) -> tuple[list[Json], int]:
    lines = [_line(account, line, f"line_items[{at}]", given["mode"]) for at, line in enumerate(given["line_items"])]
    if len({line["currency"] for line in lines}) > 1:
        raise refused("parameter_invalid", "All lines of a checkout have one currency.", "line_items")
    total = sum(line["amount_total"] for line in lines)
    if not LEAST_CENTS <= total <= MOST_CENTS:
        code = "amount_too_small" if total < LEAST_CENTS else "amount_too_large"
        raise refused(code, f"The total must be between {LEAST_CENTS} and {MOST_CENTS} cents, not {total}.")
    return lines, total


def _line(account: Account, line: Json, name: str, mode: str) -> Json:
    if ("price" in line) == ("price_data" in line):
        raise refused("parameter_missing", "A line has a price or price_data, one of them.", f"{name}[price]")
    if "quantity" not in line:
        raise refused("parameter_missing", "A line has a quantity.", f"{name}[quantity]")
    if "price" in line:
        price = account.get("price", line["price"], f"{name}[price]")
        if not price["active"]:
            raise refused("parameter_invalid", f"The price {price['id']} is not active.", f"{name}[price]")
    else:
        price = create_price(account, line["price_data"], f"{name}[price_data]", active=False)
    if (price["type"] == "recurring") != (mode == "subscription"):
        raise refused("parameter_invalid", f"A {price['type']} price is not for mode={mode}.", f"{name}[price]")
    amount = price["unit_amount"] * line["quantity"]
    return {
        "id": token("li_"),
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": account.objects[price["product"]]["name"],
        "metadata": {},
        "price": price,
        "quantity": line["quantity"],
    }


def _details(email: str) -> Json:
    return {
        "address": None,
        "business_name": None,
        "email": email,
        "individual_name": None,
        "name": None,
        "phone": None,
        "tax_exempt": "none",
        "tax_ids": [],
    }


def found(account: Account, given: Json) -> list[Json]:
    """The checkouts that a list asks for."""
    names = ("customer", "payment_intent", "status", "subscription")
    records = account.all("checkout.session", **{name: given[name] for name in names if name in given})
    if "customer_details" in given:
        email = given["customer_details"]["email"]
        records = [each for each in records if (each["customer_details"] or {}).get("email") == email]
    return records


def expire(account: Account, given: Json, id: str) -> Json:
    """POST /v1/checkout/sessions/{id}/expire; given is not used."""
    record = _open(account, id)
    record.update(status="expired", url=None)
    account.emit("checkout.session.expired", record)
    return record


def _open(account: Account, id: str) -> Json:
    record = account.get("checkout.session", id)
    if record["status"] != "open":
        raise refused("parameter_invalid", f"The checkout is {record['status']}, not open.")
    return record


# --- what customers do ----------------------------------------------------------------------------------------


def pay(
    account: Account, id: str, *, behaviour: str | None = None, bank: bool = False, email: str = ""
) -> Refusal | None:
    """The customer pays. Answers the error where the card declines: the checkout then stays open."""
    record = _open(account, id)
    if bank and record["mode"] == "subscription":
        raise refused("parameter_invalid", "Subscriptions are paid by card here.")
    _learn_customer(account, record, email or "customer@example.com")
    owner = account.objects.get(record["customer"] or "", {})
    behaviour = behaviour or owner.get("_behaviour", "ok")
    if record["mode"] == "subscription":
        declined = subscribe(account, record, behaviour)
    else:
        declined = _pay_once(account, record, behaviour, bank)
    if declined is not None:
        return declined
    intent = account.objects[record["payment_intent"] or account.objects[record["invoice"]]["_payment_intent"]]
    paid = intent["status"] == "succeeded"
    record.update(status="complete", url=None, payment_status="paid" if paid else "unpaid")
    account.emit("checkout.session.completed", record)
    return None


def _learn_customer(account: Account, record: Json, email: str) -> None:
    if record["customer_details"] is None:
        record["customer_details"] = _details(email)
    wanted = record["mode"] == "subscription" or record["customer_creation"] == "always"
    if record["customer"] is None and wanted:
        record["customer"] = create_customer(account, {"email": record["customer_details"]["email"]})["id"]


def _pay_once(account: Account, record: Json, behaviour: str, bank: bool) -> Refusal | None:
    asked = record["_payment"]
    intent = account.objects.get(record["_intent"] or "") or open_intent(
        account,
        amount=record["amount_total"],
        currency=record["currency"],
        customer=record["customer"],
        description=asked.get("description"),
        metadata=with_metadata({}, asked),
        receipt_email=asked.get("receipt_email"),
        setup_future_usage=asked.get("setup_future_usage"),
    )
    record["_intent"] = intent["id"]
    saved = asked.get("setup_future_usage") == "off_session" and record["customer"] is not None and not bank
    if saved and decline(behaviour) is None:
        intent["payment_method"] = save_card(account, record["customer"])["id"]
    declined = attempt(account, intent, behaviour, bank=bank)
    if declined is not None:
        return declined
    record["payment_intent"] = intent["id"]
    if record["invoice_creation"]["enabled"] and intent["status"] == "succeeded":
        _invoice(account, record, intent)
    return None


def _invoice(account: Account, record: Json, intent: Json) -> None:
    email = record["customer_details"]["email"]
    invoice = open_invoice(account, record["customer"], record["_line_items"], reason="manual", email=email)
    record["invoice"] = invoice["id"]
    mark_paid(account, invoice, intent)


def end_bank_payment(account: Account, id: str, *, good: bool) -> Json:
    """The bank has moved the money, or has not."""
    record = account.get("checkout.session", id)
    if record["status"] != "complete" or record["payment_status"] != "unpaid":
        raise refused("parameter_invalid", "The checkout waits for no bank payment.")
    intent = account.objects[record["payment_intent"]]
    settle(account, intent, good=good)
    if good:
        record["payment_status"] = "paid"
        if record["invoice_creation"]["enabled"]:
            _invoice(account, record, intent)
        account.emit("checkout.session.async_payment_succeeded", record)
    else:
        account.emit("checkout.session.async_payment_failed", record)
    return record
