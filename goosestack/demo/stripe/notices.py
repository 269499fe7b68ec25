"""Events, and the endpoints to which they are sent."""

from __future__ import annotations

from fnmatch import fnmatchcase

from goosestack.demo.strict import Json
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import NEW_VERSION, OLD_VERSION, Account, token, with_metadata
from goosestack.demo.stripe.form import refused
from goosestack.demo.stripe.shapes import page, render

SECRET_LETTERS = 32
MOST_TYPES = 20

EVENT_TYPES = frozenset(
    """charge.dispute.closed charge.dispute.created charge.dispute.funds_reinstated charge.dispute.funds_withdrawn
    charge.dispute.updated charge.failed charge.pending charge.refund.updated charge.refunded charge.succeeded
    charge.updated checkout.session.async_payment_failed checkout.session.async_payment_succeeded
    checkout.session.completed checkout.session.expired customer.created customer.deleted
    customer.subscription.created customer.subscription.deleted customer.subscription.paused
    customer.subscription.resumed customer.subscription.trial_will_end customer.subscription.updated customer.updated
    invoice.created invoice.finalized invoice.marked_uncollectible invoice.paid invoice.payment_action_required
    invoice.payment_failed invoice.payment_succeeded invoice.updated invoice.voided invoice_payment.paid
    payment_intent.amount_capturable_updated payment_intent.canceled payment_intent.created
    payment_intent.payment_failed payment_intent.processing payment_intent.requires_action payment_intent.succeeded
    payment_method.attached payment_method.detached payment_method.updated refund.created refund.failed
    refund.updated setup_intent.setup_failed setup_intent.succeeded""".split()
)
"""What an endpoint can ask for here: all that the fake sends, and what a gateway may want beside."""

ENABLED_EVENTS = form.Items(form.choice("*", *sorted(EVENT_TYPES)))
CREATE = form.Fields(
    {
        "api_version": form.choice(NEW_VERSION, OLD_VERSION),
        "connect": form.boolean,
        "description": form.text(unset=True),
        "enabled_events": ENABLED_EVENTS,
        "expand": form.expand,
        "metadata": form.metadata,
        "url": form.url,
    },
    required=["enabled_events", "url"],
)
UPDATE = form.Fields(
    {
        "description": form.text(unset=True),
        "disabled": form.boolean,
        "enabled_events": ENABLED_EVENTS,
        "expand": form.expand,
        "metadata": form.metadata,
        "url": form.url,
    }
)
LIST_ENDPOINTS = form.listing()
LIST_EVENTS = form.listing(
    created=form.span,
    delivery_success=form.boolean,
    type=form.text(100),
    types=form.Items(form.text(100), most=MOST_TYPES),
)


# --- endpoints ------------------------------------------------------------------------------------------------


def create(account: Account, given: Json) -> Json:
    """POST /v1/webhook_endpoints: the one answer that shows its secret."""
    if not given["enabled_events"]:
        raise refused("parameter_missing", "An endpoint has at least one event type.", "enabled_events")
    record = add_endpoint(account, given["url"], token("whsec_", SECRET_LETTERS), given["enabled_events"])
    record.update(
        api_version=given.get("api_version"),
        description=given.get("description"),
        metadata=with_metadata({}, given),
    )
    return {**record, "secret": record["_secret"]}


def add_endpoint(account: Account, url: str, secret: str, types: list[str]) -> Json:
    """An endpoint, whoever wants it."""
    return account.add(
        "webhook_endpoint",
        "we_",
        api_version=None,
        application=None,
        description=None,
        enabled_events=types,
        metadata={},
        status="enabled",
        url=url,
        _secret=secret,
    )


def update(account: Account, given: Json, id: str) -> Json:
    """POST /v1/webhook_endpoints/{id}."""
    record = account.get("webhook_endpoint", id)
    record.update({name: given[name] for name in ("description", "enabled_events", "url") if name in given})
    record["metadata"] = with_metadata(record["metadata"], given)
    if "disabled" in given:
        record["status"] = "disabled" if given["disabled"] else "enabled"
    return record


def delete(account: Account, given: Json, id: str) -> Json:
    """DELETE /v1/webhook_endpoints/{id}; given is not used."""
    account.get("webhook_endpoint", id)
    del account.objects[id]
    return {"id": id, "object": "webhook_endpoint", "deleted": True}


def wants(endpoint: Json, event: Json) -> bool:
    """Whether an endpoint is sent an event."""
    return endpoint["status"] == "enabled" and bool({"*", event["type"]} & set(endpoint["enabled_events"]))


# --- events ---------------------------------------------------------------------------------------------------


def found(account: Account, given: Json) -> list[Json]:
    """The events that a list asks for. delivery_success=false: those that some endpoint has not taken."""
    if "type" in given and "types" in given:
        raise refused("parameter_invalid", "Give type or types, not both.", "types")
    patterns = given.get("types", [given["type"]] if "type" in given else ["*"])
    records = [each for each in account.all("event") if any(fnmatchcase(each["type"], known) for known in patterns)]
    if "delivery_success" in given:
        records = [each for each in records if (each["pending_webhooks"] == 0) == given["delivery_success"]]
    return records


def listed(account: Account, given: Json) -> Json:
    """GET /v1/events, in the account's own version."""
    return page(found(account, given), given, "/v1/events", account.shape)


def retrieve(account: Account, given: Json, id: str) -> Json:
    """GET /v1/events/{id}, in the account's own version; given is not used."""
    return render(account.get("event", id), account.shape)
