"""Meter events: usage that is reported, and taken back."""

from __future__ import annotations

from goosestack.demo.strict import Json
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, token
from goosestack.demo.stripe.form import refused

OLDEST_S, FUTURE_S, CANCEL_S = 35 * 24 * 3600, 5 * 60, 24 * 3600

CREATE = form.Fields(
    {
        "event_name": form.text(100),
        "expand": form.expand,
        "identifier": form.text(100),
        "payload": form.strings,
        "timestamp": form.integer(),
    },
    required=["event_name", "payload"],
)
ADJUST = form.Fields(
    {
        "cancel": form.Fields({"identifier": form.text(100)}, required=["identifier"]),
        "event_name": form.text(100),
        "expand": form.expand,
        "type": form.choice("cancel"),
    },
    required=["event_name", "type"],
)


def create(account: Account, given: Json) -> Json:
    """POST /v1/billing/meter_events."""
    at = given.get("timestamp", account.now)
    if not account.now - OLDEST_S <= at <= account.now + FUTURE_S:
        raise refused(
            "timestamp_invalid", "The timestamp is older than 35 days, or more than 5 minutes ahead.", "timestamp"
        )
    identifier = given.get("identifier", token("", 32))
    if account.all("billing.meter_event", identifier=identifier):
        raise refused(
            "duplicate_meter_event", f"An event with the identifier {identifier} exists already.", "identifier"
        )
    for name in ("stripe_customer_id", "value"):
        if name not in given["payload"]:
            raise refused("meter_event_no_customer_defined", f"The payload has no {name}.", f"payload[{name}]")
    return account.add(
        "billing.meter_event",
        "mev_",
        event_name=given["event_name"],
        identifier=identifier,
        payload=given["payload"],
        timestamp=at,
    )


def adjust(account: Account, given: Json) -> Json:
    """POST /v1/billing/meter_event_adjustments: takes an event back within 24 hours."""
    if "cancel" not in given:
        raise refused("parameter_missing", "Say which event is taken back.", "cancel[identifier]")
    identifier = given["cancel"]["identifier"]
    events = account.all("billing.meter_event", identifier=identifier, event_name=given["event_name"])
    if not events:
        raise refused("resource_missing", f"No such meter event: '{identifier}'", "cancel[identifier]")
    if events[0]["created"] < account.now - CANCEL_S:
        raise refused("parameter_invalid", "The event is older than 24 hours.", "cancel[identifier]")
    if account.all("billing.meter_event_adjustment", cancel={"identifier": identifier}):
        raise refused("parameter_invalid", "The event is taken back already.", "cancel[identifier]")
    events[0]["_canceled"] = True
    return account.add(
        "billing.meter_event_adjustment",
        "mea_",
        cancel={"identifier": identifier},
        event_name=given["event_name"],
        status="complete",
        type="cancel",
    )
