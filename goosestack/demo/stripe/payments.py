"""Payment intents and the charges that they make."""

from __future__ import annotations

from collections.abc import Mapping

from goosestack.demo.strict import Json, Refusal
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, token, with_metadata
from goosestack.demo.stripe.customers import decline, known, method_of
from goosestack.demo.stripe.form import refused

LEAST_CENTS, MOST_CENTS = 50, 99_999_999

CREATE = form.Fields(
    {
        "allowed_payment_method_types": form.Items(form.text(40)),
        "amount": form.integer(1),
        "automatic_payment_methods": form.Fields(
            {"enabled": form.boolean, "allow_redirects": form.choice("always", "never")}, ["enabled"]
        ),
        "confirm": form.boolean,
        "currency": form.currency,
        "customer": form.text(),
        "description": form.text(1000),
        "error_on_requires_action": form.boolean,
        "expand": form.expand,
        "metadata": form.metadata,
        "off_session": form.boolean,
        "payment_method": form.text(),
        "receipt_email": form.email,
        "return_url": form.url,
        "setup_future_usage": form.choice("off_session", "on_session"),
        "statement_descriptor_suffix": form.text(22),
    },
    required=["amount", "currency"],
)
LIST = form.listing(created=form.span, customer=form.text())
CANCEL = form.Fields(
    {
        "cancellation_reason": form.choice("abandoned", "duplicate", "fraudulent", "requested_by_customer"),
        "expand": form.expand,
    }
)
CHARGES = form.listing(created=form.span, customer=form.text(), payment_intent=form.text())
CARD_DETAILS = {
    "brand": "visa",
    "country": "US",
    "exp_month": 12,
    "exp_year": 2034,
    "funding": "credit",
    "last4": "4242",
}
INTENT_NULLS: Mapping[str, None] = dict.fromkeys(
    """application application_fee_amount canceled_at cancellation_reason client_secret last_payment_error
    latest_charge next_action on_behalf_of processing review shipping source statement_descriptor
    statement_descriptor_suffix transfer_data transfer_group""".split()
)
CHARGE_NULLS: Mapping[str, None] = dict.fromkeys(
    """application application_fee application_fee_amount balance_transaction failure_balance_transaction
    failure_code failure_message on_behalf_of outcome receipt_number receipt_url review shipping source_transfer
    statement_descriptor statement_descriptor_suffix transfer_data transfer_group""".split()
)


# --- the API --------------------------------------------------------------------------------------------------


def create(account: Account, given: Json) -> Json:
    """POST /v1/payment_intents: with `confirm` it charges at once; a decline is a 402 that shows the intent."""
    _check(given)
    customer = known(account, given.get("customer"))
    method = None
    if "payment_method" in given:
        method = method_of(account, given["payment_method"], given.get("customer"), "payment_method")
    intent = open_intent(
        account,
        amount=given["amount"],
        currency=given["currency"],
        customer=None if customer is None else customer["id"],
        description=given.get("description"),
        metadata=with_metadata({}, given),
        method=None if method is None else method["id"],
        receipt_email=given.get("receipt_email"),
        setup_future_usage=given.get("setup_future_usage"),
    )
    if given.get("confirm") and customer is not None:
        declined = attempt(account, intent, customer["_behaviour"])
        if declined is not None:
            raise declined
    return intent


def _check(given: Json) -> None:
    if given["currency"] == "usd" and given["amount"] < LEAST_CENTS:
        raise refused("amount_too_small", f"The amount must be at least {LEAST_CENTS} cents.", "amount")
    if given["amount"] > MOST_CENTS:
        raise refused("amount_too_large", f"The amount must be at most {MOST_CENTS} cents.", "amount")
    confirm, later = given.get("confirm", False), given.get("off_session", False)
    for name in ("off_session", "error_on_requires_action", "return_url"):
        if name in given and not confirm:
            raise refused("parameter_invalid", f"{name} is for confirm=true alone.", name)
    if confirm and "payment_method" not in given:
        raise refused("parameter_missing", "A payment intent is confirmed with a payment_method.", "payment_method")
    if confirm and "customer" not in given:
        raise refused("parameter_missing", "A saved payment method is charged for its customer.", "customer")
    if later and "setup_future_usage" in given:
        raise refused("parameter_invalid", "setup_future_usage is not for off_session=true.", "setup_future_usage")
    redirects = given.get("automatic_payment_methods", {}).get("allow_redirects", "always") == "always"
    if confirm and not later and redirects and "return_url" not in given:
        raise refused("parameter_missing", "Confirming while the customer is there takes a return_url.", "return_url")


def cancel(account: Account, given: Json, id: str) -> Json:
    """POST /v1/payment_intents/{id}/cancel."""
    intent = account.get("payment_intent", id)
    if intent["status"] in ("succeeded", "canceled", "processing"):
        raise refused("payment_intent_unexpected_state", f"A {intent['status']} payment intent cannot be canceled.")
    intent.update(
        status="canceled",
        canceled_at=account.now,
        cancellation_reason=given.get("cancellation_reason"),
        next_action=None,
    )
    account.emit("payment_intent.canceled", intent)
    return intent


# --- what happens to a payment --------------------------------------------------------------------------------


def open_intent(
    account: Account,
    *,
    amount: int,
    currency: str,
    customer: str | None,
    metadata: dict[str, str],
    description: str | None = None,
    method: str | None = None,
    receipt_email: str | None = None,
    setup_future_usage: str | None = None,
    invoice: str | None = None,
) -> Json:
    """A payment that nobody has tried to make yet."""
    intent = account.add(
        "payment_intent",
        "pi_",
        **INTENT_NULLS,
        amount=amount,
        amount_capturable=0,
        amount_details={"tip": {}},
        amount_received=0,
        automatic_payment_methods={"allow_redirects": "always", "enabled": True},
        capture_method="automatic_async",
        confirmation_method="automatic",
        currency=currency,
        customer=customer,
        description=description,
        metadata=metadata,
        payment_method=method,
        payment_method_options={},
        payment_method_types=["card"],
        receipt_email=receipt_email,
        setup_future_usage=setup_future_usage,
        status="requires_payment_method" if method is None else "requires_confirmation",
        _invoice=invoice,
    )
    intent["client_secret"] = f"{intent['id']}_secret_{token('')}"
    account.emit("payment_intent.created", intent)
    return intent


def attempt(account: Account, intent: Json, behaviour: str, *, bank: bool = False) -> Refusal | None:
    """Charge it. Answers the error where the card declines; a `processing` one is settled later."""
    declined = decline(behaviour)
    charge = _open_charge(account, intent, bank)
    intent["latest_charge"] = charge["id"]
    if declined is not None:
        _fail(account, intent, charge, declined)
        return declined
    intent["last_payment_error"] = None
    if bank or behaviour == "processing":
        intent.update(status="processing")
        account.emit("charge.pending", charge)
        account.emit("payment_intent.processing", intent)
        return None
    _succeed(account, intent, charge)
    return None


def settle(account: Account, intent: Json, *, good: bool) -> None:
    """The end of a payment that was processing."""
    if intent["status"] != "processing":
        raise refused("payment_intent_unexpected_state", f"The payment intent is {intent['status']}, not processing.")
    charge = account.get("charge", intent["latest_charge"])
    if good:
        _succeed(account, intent, charge)
        return
    error = Refusal(
        402,
        "The bank returned the payment.",
        type="card_error",
        code="payment_intent_payment_attempt_failed",
        details={"decline_code": None},
    )
    _fail(account, intent, charge, error)


def _open_charge(account: Account, intent: Json, bank: bool) -> Json:
    customer = account.objects.get(intent["customer"] or "", {})
    charge = account.add(
        "charge",
        "ch_",
        **CHARGE_NULLS,
        amount=intent["amount"],
        amount_captured=0,
        amount_refunded=0,
        billing_details={
            "address": None,
            "email": customer.get("email"),
            "name": customer.get("name"),
            "phone": None,
            "tax_id": None,
        },
        calculated_statement_descriptor="GOOSESTACK DEMO",
        captured=False,
        currency=intent["currency"],
        customer=intent["customer"],
        description=intent["description"],
        disputed=False,
        fraud_details={},
        metadata=dict(intent["metadata"]),
        paid=False,
        payment_intent=intent["id"],
        payment_method=intent["payment_method"] or token("pm_"),
        payment_method_details={"type": "sepa_debit"} if bank else {"type": "card", "card": dict(CARD_DETAILS)},
        receipt_email=intent["receipt_email"],
        refunded=False,
        status="pending",
        _invoice=intent["_invoice"],
    )
    if intent["payment_method"] is None:
        intent["payment_method"] = charge["payment_method"]
    return charge


def _succeed(account: Account, intent: Json, charge: Json) -> None:
    charge.update(
        status="succeeded",
        paid=True,
        captured=True,
        amount_captured=charge["amount"],
        balance_transaction=token("txn_"),
        receipt_url=f"{account.base_url}/r/{charge['id']}",
        outcome={"network_status": "approved_by_network", "risk_level": "normal", "type": "authorized"},
    )
    intent.update(status="succeeded", amount_received=intent["amount"])
    account.emit("charge.succeeded", charge)
    account.emit("payment_intent.succeeded", intent)


def _fail(account: Account, intent: Json, charge: Json, error: Refusal) -> None:
    reason = (error.details or {})["decline_code"]
    charge.update(
        status="failed",
        failure_code=error.code,
        failure_message=error.message,
        outcome={
            "network_status": "declined_by_network",
            "reason": reason,
            "risk_level": "normal",
            "type": "issuer_declined",
        },
    )
    shown: Json = {
        "charge": charge["id"],
        "code": error.code,
        "decline_code": reason,
        "message": error.message,
        "type": error.type,
    }
    intent.update(status="requires_payment_method", payment_method=None, last_payment_error=shown)
    account.emit("charge.failed", charge)
    account.emit("payment_intent.payment_failed", intent)
    error.details = {"charge": charge["id"], "decline_code": reason, "payment_intent": intent}


def charge_of(account: Account, id: str) -> Json:
    """The charge of a payment: by its own id, or that of its payment intent, invoice or checkout."""
    ways = {
        "checkout.session": ("payment_intent", "invoice"),
        "invoice": ("_payment_intent",),
        "payment_intent": ("latest_charge",),
    }
    record: Json = account.objects.get(id, {})
    while record.get("object") in ways:
        further = [record[field] for field in ways[record["object"]] if record[field] is not None]
        record = account.objects[further[0]] if further else {}
    return account.get("charge", record.get("id", id))
