"""Money that goes back: refunds and disputes."""

from __future__ import annotations

from goosestack.demo.strict import Json
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, token, with_metadata
from goosestack.demo.stripe.form import refused

DISPUTE_FEE_CENTS = 1500
ANSWER_S = 7 * 24 * 3600  # to answer a dispute
CLOSED = ("won", "lost", "warning_closed")

CREATE = form.Fields(
    {
        "amount": form.integer(1),
        "charge": form.text(),
        "expand": form.expand,
        "metadata": form.metadata,
        "payment_intent": form.text(),
        "reason": form.choice("duplicate", "fraudulent", "requested_by_customer"),
    }
)
LIST = form.listing(created=form.span, charge=form.text(), payment_intent=form.text())


# --- refunds --------------------------------------------------------------------------------------------------


def create(account: Account, given: Json) -> Json:
    """POST /v1/refunds."""
    if ("charge" in given) == ("payment_intent" in given):
        raise refused("parameter_missing", "A refund is of a charge or of a payment_intent, one of them.", "charge")
    if "charge" in given:
        charge = account.get("charge", given["charge"], "charge")
    else:
        intent = account.get("payment_intent", given["payment_intent"], "payment_intent")
        if intent["latest_charge"] is None:
            raise refused("parameter_invalid", "The payment intent has no charge to refund.", "payment_intent")
        charge = account.get("charge", intent["latest_charge"])
    return refund(account, charge, given)


def refund(account: Account, charge: Json, given: Json, status: str = "succeeded") -> Json:
    """Give back an amount, or all that is left. It is taken off the charge at once, whatever its status."""
    left = charge["amount"] - charge["amount_refunded"]
    amount = given.get("amount", left)
    if not charge["paid"]:
        raise refused("parameter_invalid", f"Charge {charge['id']} was not paid.", "charge")
    if left == 0:
        raise refused("charge_already_refunded", f"Charge {charge['id']} has already been refunded.")
    if _withdrawn(account, charge) > 0:
        raise refused("charge_disputed", f"Charge {charge['id']} is disputed, and its funds are gone already.")
    if amount > left:
        raise refused("parameter_invalid", f"A refund of {amount} is greater than the {left} that are left.", "amount")
    record = account.add(
        "refund",
        "re_",
        amount=amount,
        balance_transaction=token("txn_"),
        charge=charge["id"],
        currency=charge["currency"],
        destination_details={"type": "card"},
        metadata=with_metadata({}, given),
        payment_intent=charge["payment_intent"],
        reason=given.get("reason"),
        receipt_number=None,
        source_transfer_reversal=None,
        status=status,
        transfer_reversal=None,
    )
    if status == "pending":
        record["pending_reason"] = "processing"
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    account.emit("refund.created", record)
    account.emit("charge.refunded", charge)
    return record


def end_refund(account: Account, record: Json, *, good: bool, kept: bool = False) -> None:
    """A pending refund succeeds, or one fails, which gives back to the charge what it took, unless that is kept."""
    if record["status"] == "failed" or (good and record["status"] != "pending"):
        raise refused("parameter_invalid", f"The refund has {record['status']} already.")
    previous = {"status": record["status"]}
    record.pop("pending_reason", None)
    record["status"] = "succeeded" if good else "failed"
    if not good:
        record.update(failure_reason="lost_or_stolen_card", failure_balance_transaction=token("txn_"))
        charge = account.get("charge", record["charge"])
        if not kept:
            charge["amount_refunded"] -= record["amount"]
            charge["refunded"] = False
    account.emit("refund.updated", record, previous)
    account.emit("charge.refund.updated", record, previous)
    if not good:
        account.emit("refund.failed", record)


# --- disputes -------------------------------------------------------------------------------------------------


def open_dispute(
    account: Account, charge: Json, amount: int | None, reason: str, *, withdraw: bool, inquiry: bool
) -> Json:
    """The customer's bank asks for the money back, or, in an inquiry, only asks."""
    amount = charge["amount"] if amount is None else amount
    if not charge["paid"] or not 1 <= amount <= charge["amount"]:
        raise refused("parameter_invalid", "A dispute is of a paid charge, and of no more than that.", "amount")
    record = account.add(
        "dispute",
        "dp_",
        amount=amount,
        balance_transactions=[],
        charge=charge["id"],
        currency=charge["currency"],
        enhanced_eligibility_types=[],
        evidence={},
        evidence_details={
            "due_by": account.now + ANSWER_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        is_charge_refundable=inquiry,
        metadata={},
        payment_intent=charge["payment_intent"],
        payment_method_details={"card": {"brand": "visa", "network_reason_code": "10"}, "type": "card"},
        reason=reason,
        status="warning_needs_response" if inquiry else "needs_response",
    )
    charge["disputed"] = True
    if withdraw and not inquiry:
        record["balance_transactions"].append(_movement(account, record, -amount))
    account.emit("charge.dispute.created", record)
    if withdraw and not inquiry:
        account.emit("charge.dispute.funds_withdrawn", record)
    return record


def withdraw(account: Account, record: Json) -> None:
    """The disputed funds leave."""
    if _balance(record) < 0:
        raise refused("parameter_invalid", "The funds of this dispute are withdrawn already.")
    record["balance_transactions"].append(_movement(account, record, -record["amount"]))
    account.emit("charge.dispute.funds_withdrawn", record)


def reinstate(account: Account, record: Json) -> None:
    """The disputed funds come back."""
    if _balance(record) >= 0:
        raise refused("parameter_invalid", "The funds of this dispute are not withdrawn.")
    record["balance_transactions"].append(_movement(account, record, record["amount"]))
    account.emit("charge.dispute.funds_reinstated", record)


def close(account: Account, record: Json, status: str, *, give_back: bool) -> None:
    """The bank has decided; won gives back what was withdrawn, unless told otherwise."""
    if record["status"] in CLOSED:
        raise refused("parameter_invalid", f"The dispute is {record['status']} already.")
    previous = {"status": record["status"]}
    record["status"] = status
    account.emit("charge.dispute.closed", record, previous)
    if status == "won" and give_back and _balance(record) < 0:
        reinstate(account, record)


def _balance(record: Json) -> int:
    return sum(movement["amount"] for movement in record["balance_transactions"])


def _withdrawn(account: Account, charge: Json) -> int:
    return -sum(_balance(each) for each in account.all("dispute", charge=charge["id"]))


def _movement(account: Account, record: Json, amount: int) -> Json:
    fee = DISPUTE_FEE_CENTS if amount < 0 else 0
    return {
        "id": token("txn_"),
        "object": "balance_transaction",
        "amount": amount,
        "available_on": account.now,
        "balance_type": "payments",
        "created": account.now,
        "currency": record["currency"],
        "description": f"Chargeback {'withdrawal' if amount < 0 else 'reversal'} for {record['charge']}",
        "exchange_rate": None,
        "fee": fee,
        "fee_details": [],
        "net": amount - fee,
        "reporting_category": "dispute" if amount < 0 else "dispute_reversal",
        "source": record["id"],
        "status": "available",
        "type": "adjustment",
    }
