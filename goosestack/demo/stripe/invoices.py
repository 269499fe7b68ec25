"""Invoices and the payments of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from goosestack.demo.strict import Json
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, token

RETRY_S = 3 * 24 * 3600

LIST = form.listing(
    created=form.span,
    customer=form.text(),
    status=form.choice("draft", "open", "paid", "uncollectible", "void"),
    subscription=form.text(),
)
LIST_PAYMENTS = form.listing(
    created=form.span,
    invoice=form.text(),
    payment=form.Fields({"payment_intent": form.text(), "type": form.choice("payment_intent")}, required=["type"]),
    status=form.choice("canceled", "open", "paid"),
)
ZEROS: Mapping[str, int] = dict.fromkeys(
    """amount_overpaid amount_paid amount_shipping attempt_count post_payment_credit_notes_amount
    pre_payment_credit_notes_amount starting_balance""".split(),
    0,
)
NULLS: Mapping[str, None] = dict.fromkeys(
    """application automatically_finalizes_at custom_fields default_payment_method description due_date
    hosted_invoice_url invoice_pdf next_payment_attempt receipt_number""".split()
)


def found_invoices(account: Account, given: Json) -> list[Json]:
    """The invoices that a list asks for."""
    equal: Json = {name: given[name] for name in ("customer", "status") if name in given}
    if "subscription" in given:
        equal["_subscription"] = given["subscription"]
    return account.all("invoice", **equal)


def found_payments(account: Account, given: Json) -> list[Json]:
    """The payments of invoices that a list asks for."""
    equal = {name: given[name] for name in ("invoice", "status") if name in given}
    payment = given.get("payment", {})
    return [
        each
        for each in account.all("invoice_payment", **equal)
        if each["payment"]["payment_intent"] == payment.get("payment_intent", each["payment"]["payment_intent"])
    ]


def open_invoice(
    account: Account,
    customer: str | None,
    lines: Sequence[Json],
    *,
    reason: str,
    email: str | None = None,
    subscription: Json | None = None,
    period: tuple[int, int] | None = None,
) -> Json:
    """A final invoice that is to be paid. lines: as in a checkout, or items of the subscription; for the latter each
    line's period is the item's own. One with a `_prorated` amount is for the rest of a period. period: what went
    before, which Stripe shows as the invoice's."""
    start, end = period or (account.now, account.now)
    number = len(account.all("invoice")) + 1
    record = account.add(
        "invoice",
        "in_",
        **NULLS,
        **ZEROS,
        account_country="US",
        account_name="GooseStack demo",
        attempted=False,
        auto_advance=False,
        automatic_tax={"enabled": False, "liability": None, "provider": None, "status": None},
        billing_reason=reason,
        collection_method="charge_automatically",
        customer=customer,
        customer_email=email,
        discounts=[],
        effective_at=account.now,
        metadata={},
        number=f"GOOSE-{number:04}",
        parent=None if subscription is None else _parent(subscription),
        payment_settings={"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        period_end=end,
        period_start=start,
        status="open",
        status_transitions={
            "finalized_at": account.now,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        _payment_intent=None,
        _charge=None,
        _subscription=None if subscription is None else subscription["id"],
    )
    shown = [_line(account, record, line, subscription) for line in lines]
    address = f"/v1/invoices/{record['id']}/lines"
    record["lines"] = {"object": "list", "data": shown, "has_more": False, "url": address}
    total = sum(line["amount"] for line in shown)
    record.update(amount_due=total, amount_remaining=total, subtotal=total, total=total)
    record["currency"] = shown[0]["currency"]
    record["hosted_invoice_url"] = f"{account.base_url}/i/{record['id']}"
    record["invoice_pdf"] = f"{record['hosted_invoice_url']}/pdf"
    return record


def _parent(subscription: Json) -> Json:
    details = {"subscription": subscription["id"], "metadata": dict(subscription["metadata"])}
    return {"type": "subscription_details", "subscription_details": details, "quote_details": None}


def _line(account: Account, invoice: Json, line: Json, subscription: Json | None) -> Json:
    price, prorated = line["price"], "_prorated" in line
    amount = line["_prorated"] if prorated else price["unit_amount"] * line["quantity"]
    parent = None
    period = {"start": account.now, "end": account.now}
    if subscription is not None:
        period = {"start": line["current_period_start"], "end": line["current_period_end"]}
        parent = {
            "type": "subscription_item_details",
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": prorated,
                "proration_details": {"credited_items": None},
                "subscription": subscription["id"],
                "subscription_item": line["id"],
            },
        }
    return {
        "id": token("il_"),
        "object": "line_item",
        "amount": amount,
        "currency": price["currency"],
        "description": account.objects[price["product"]]["name"],
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": dict(subscription["metadata"]) if subscription is not None else {},
        "parent": parent,
        "period": period,
        "pretax_credit_amounts": [],
        "pricing": {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
        "quantity": line["quantity"],
        "subtotal": amount,
        "taxes": [],
        "_price": price,
    }


def mark_paid(account: Account, invoice: Json, intent: Json) -> None:
    """A payment intent that succeeded has paid it."""
    _tried(invoice, intent)
    due = invoice["amount_due"]
    invoice.update(status="paid", amount_paid=due, amount_remaining=0, next_payment_attempt=None)
    invoice["status_transitions"]["paid_at"] = account.now
    payment = account.add(
        "invoice_payment",
        "inpay_",
        amount_paid=due,
        amount_requested=due,
        currency=invoice["currency"],
        invoice=invoice["id"],
        is_default=True,
        payment={"type": "payment_intent", "payment_intent": intent["id"]},
        status="paid",
        status_transitions={"canceled_at": None, "paid_at": account.now},
    )
    account.emit("invoice.paid", invoice)
    account.emit("invoice.payment_succeeded", invoice)
    account.emit("invoice_payment.paid", payment)


def mark_failed(account: Account, invoice: Json, intent: Json, *, again: bool = True) -> None:
    """An attempt to pay it has failed; there may be another one."""
    _tried(invoice, intent)
    invoice["next_payment_attempt"] = account.now + RETRY_S if again else None
    account.emit("invoice.payment_failed", invoice)


def _tried(invoice: Json, intent: Json) -> None:
    invoice.update(attempted=True, attempt_count=invoice["attempt_count"] + 1)
    invoice["_payment_intent"] = intent["id"]
    invoice["_charge"] = intent["latest_charge"]
