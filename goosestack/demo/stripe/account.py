"""The account: its clock, its objects, and the events that their changes make. All in memory.

An object is a dict in the shape of the newest API version. Fields that begin with `_` are for the fake alone: no answer
and no webhook shows them.
"""

from __future__ import annotations

import copy
import secrets
import string
import time
from collections.abc import Callable, Mapping
from typing import Any

from goosestack.demo.strict import Json
from goosestack.demo.stripe.form import refused

NEW_VERSION = "2026-10-28.endive"
OLD_VERSION = "2025-02-24.acacia"
VERSIONS = {"new": NEW_VERSION, "old": OLD_VERSION}
FIRST_NEW = "2025-03-31"  # basil: invoices have a parent, periods belong to a subscription's items

LETTERS = string.ascii_letters + string.digits
NAMES = {"checkout.session": "checkout.session", "payment_method": "PaymentMethod", "payment_intent": "payment_intent"}


def token(prefix: str, length: int = 24) -> str:
    """A new id, as no other program and no other run has it."""
    return prefix + "".join(secrets.choice(LETTERS) for _ in range(length))


class Clock:
    """The real time, ahead by what it was moved."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        """Unix seconds."""
        return time.time() + self.ahead_s

    def move_to(self, at: float) -> None:
        """Forward only; a time that has passed changes nothing."""
        self.ahead_s = max(self.ahead_s, at - time.time())


class Account:
    """What one Stripe account holds.

    base_url: where this program's own pages are. on_event: is told of every new event. shape: `new` or `old`, the
    account's own API version. request: id and idempotency key of the request that is being answered, for its events.
    """

    def __init__(self, clock: Clock, base_url: str, on_event: Callable[[Json], None]) -> None:
        self.clock = clock
        self.base_url = base_url
        self.on_event = on_event
        self.shape = "new"
        self.request: Json = {"id": None, "idempotency_key": None}
        self.objects: dict[str, Json] = {}

    @property
    def now(self) -> int:
        """The time of what happens now."""
        return int(self.clock.now())

    def add(self, kind: str, prefix: str, /, **more: Any) -> Json:
        """A new object."""
        record = {"id": token(prefix), "object": kind, "created": self.now, "livemode": False, **more}
        self.objects[record["id"]] = record
        return record

    def all(self, kind: str, /, **equal: Any) -> list[Json]:
        """The objects of a kind whose fields have these values, oldest first."""
        return [
            record
            for record in self.objects.values()
            if record["object"] == kind
            and not record.get("deleted")
            and all(record.get(name) == value for name, value in equal.items())
        ]

    def find(self, kind: str, id: str) -> Json | None:
        """The object, unless there is none or it was deleted."""
        record = self.objects.get(id)
        return None if record is None or record["object"] != kind or record.get("deleted") else record

    def get(self, kind: str, id: str, param: str | None = None) -> Json:
        """The object: a 404 where a path names it in vain, a 400 where a parameter does."""
        record = self.find(kind, id)
        if record is None:
            status = 404 if param is None else 400
            raise refused("resource_missing", f"No such {NAMES.get(kind, kind)}: '{id}'", param or "id", status)
        return record

    def emit(self, type: str, record: Json, previous: Mapping[str, Any] | None = None, **more: Any) -> Json:
        """An event about an object as it is now. previous: what changed, as it was. more: fields of the event."""
        data: Json = {"object": copy.deepcopy(record)}
        if previous:
            data["previous_attributes"] = copy.deepcopy(dict(previous))
        event: Json = {
            "api_version": VERSIONS[self.shape],
            "data": data,
            "pending_webhooks": 0,
            "request": dict(self.request),
            "type": type,
            "_as_is": False,
        }
        event = self.add("event", "evt_", **{**event, **more})
        self.on_event(event)
        return event


def with_metadata(old: Mapping[str, str], given: Json) -> dict[str, str]:
    """Metadata after a request whose parameters may have some."""
    if "metadata" not in given:
        return dict(old)
    if given["metadata"] is None:
        return {}
    return {key: value for key, value in {**old, **given["metadata"]}.items() if value != ""}
