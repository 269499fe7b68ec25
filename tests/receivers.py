"""Strict receivers of usage beside `goosestack.demo.openmeter`: Stripe's meter events, a webhook by the rules of
Standard Webhooks, and a table of a Supabase project.

    python -m tests.receivers stripe|webhook SECRET

The first two are programs with the control endpoints of `goosestack.demo.openmeter`; all can be had without a process.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from urllib.request import Request, urlopen

from goosestack.demo.openmeter import Poison, Receiver, Reply, serve
from goosestack.demo.postgrest import Failure, Table
from tests.world import Program, bare_environment

Json = dict[str, Any]
DAY_S = 86_400


class StripeMeters:
    """`POST /v1/billing/meter_events` of an account with one meter. An identifier is remembered for exactly a day."""

    path = "/v1/billing/meter_events"

    def __init__(self, key: str, event_name: str = "tokens", now: Callable[[], float] = time.time) -> None:
        self.poison = Poison()
        self._key, self._event_name, self._now = key, event_name, now
        self._seen: dict[str, float] = {}
        self._kept: list[Json] = []
        self._duplicates = self._requests = 0

    def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
        self._requests += 1
        if headers.get("authorization") != f"Bearer {self._key}":
            return _error(401, "Invalid API Key provided")
        if headers.get("content-type") != "application/x-www-form-urlencoded":
            return _error(400, "the body must be a form")
        given = dict(parse_qsl(body.decode(), strict_parsing=True))
        names = {"event_name", "payload[stripe_customer_id]", "payload[value]", "identifier", "timestamp"}
        if wrong := set(given) ^ names:
            return _error(400, f"Received unknown parameter or lacks it: {min(wrong)}", param=min(wrong))
        if given["event_name"] != self._event_name:
            return _error(400, "No active meter found for this event name", param="event_name")
        now, at, value = self._now(), int(given["timestamp"]), given["payload[value]"]
        if not now - 35 * DAY_S <= at <= now + 300:
            return _error(400, "The timestamp must be within the past 35 days or 5 minutes ahead", param="timestamp")
        if not (value.isascii() and value.isdigit() and int(value) > 0) or len(given["identifier"]) > 100:
            return _error(400, "The value must be a positive whole number", param="payload[value]")
        identifier, customer = given["identifier"], given["payload[stripe_customer_id]"]
        if not customer.startswith("cus_") or self.poison.spoils(identifier, customer):
            return _error(400, f"No such customer: {customer}", param="payload[stripe_customer_id]")
        if now - self._seen.get(identifier, -DAY_S - 1) <= DAY_S:
            self._duplicates += 1
            return _error(400, f"An event already exists with identifier {identifier}.")
        self._seen[identifier] = now
        event = {"id": identifier, "subject": customer, "value": int(value), "timestamp": at}
        self._kept.append(event)
        told = {"object": "billing.meter_event", "identifier": identifier, "event_name": given["event_name"]}
        return Reply(200, json.dumps(told).encode(), {"content-type": "application/json"})

    def totals(self) -> Json:
        totals: dict[str, int] = {}
        for event in self._kept:
            totals[event["subject"]] = totals.get(event["subject"], 0) + event["value"]
        counts = {"events": len(self._kept), "duplicates": self._duplicates, "requests": self._requests}
        return {**counts, "totals": totals}

    def events(self) -> list[Json]:
        return self._kept


class Hook:
    """A receiver that verifies each message as the specification says, and keeps every id that it has seen."""

    path = "/usage"

    def __init__(self, secret: str, now: Callable[[], float] = time.time) -> None:
        self.poison = Poison()
        self._key, self._now = base64.b64decode(secret.removeprefix("whsec_")), now
        self._kept: dict[str, Json] = {}
        self._duplicates = self._requests = 0

    def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
        self._requests += 1
        id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        if abs(self._now() - int(timestamp)) > 300:
            return Reply(401, b"the timestamp is not of now")
        signed = f"{id}.{timestamp}.".encode() + body
        mac = base64.b64encode(hmac.new(self._key, signed, hashlib.sha256).digest()).decode()
        if f"v1,{mac}" not in headers["webhook-signature"].split(" "):
            return Reply(401, b"the signature is wrong")
        message = json.loads(body)
        assert set(message) == {"type", "timestamp", "data"} and message["type"] == "usage.settled"
        if self.poison.spoils(id, message["data"]["user_id"]):
            return Reply(422, b"this one is not understood")
        self._duplicates += id in self._kept
        self._kept.setdefault(id, message["data"])
        return Reply(200, b"<p>thanks", {"content-type": "text/html"})

    def totals(self) -> Json:
        totals: dict[str, int] = {}
        for data in self._kept.values():
            totals[data["user_id"]] = totals.get(data["user_id"], 0) + data["total_tokens"]
        counts = {"events": len(self._kept), "duplicates": self._duplicates, "requests": self._requests}
        return {**counts, "totals": totals}

    def events(self) -> list[Json]:
        return list(self._kept.values())


class ProjectTable:
    """A project's REST interface, with one table, whose unique column is the first."""

    path = "/rest/v1/usage"

    def __init__(self, key: str, columns: Mapping[str, str], **table: Any) -> None:
        self.poison = Poison()
        self.key, self._id = key, next(iter(columns))
        self.table = Table("usage", dict(columns), **{"unique": [[self._id]], **table})
        self.headers: Mapping[str, str] = {}

    def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
        self.headers = headers
        try:
            for row in json.loads(body):
                if self.poison.spoils(row[self._id], row["user_id"] or ""):
                    raise Failure(400, "23514", "new row violates a check constraint")
            answer = self.table.insert(
                body, {"on_conflict": self._id}, headers["prefer"], headers["apikey"] == self.key
            )
        except Failure as failure:
            return Reply(failure.status, json.dumps(failure.body).encode(), {"content-type": "application/json"})
        return Reply(answer.status)

    def totals(self) -> Json:
        return {"tokens": sum(row["tokens"] for row in self.table.rows)}

    def events(self) -> list[Json]:
        return self.table.rows


def _error(status: int, message: str, param: str | None = None) -> Reply:
    error = {"type": "invalid_request_error", "message": message, **({} if param is None else {"param": param})}
    return Reply(status, json.dumps({"error": error}).encode(), {"content-type": "application/json"})


class Process:
    """A receiver as a process."""

    def __init__(self, folder: Path, *args: str, port: int = 0) -> None:
        self._folder, self._args = folder, args
        self.start(port)

    def start(self, port: int = 0) -> None:
        """Start it: what it had is forgotten."""
        args = [*self._args, "--port", str(port)]
        output = self._folder / f"{'-'.join(self._args[:2])}.out"
        self.program = Program(args, bare_environment(), output, self._folder)
        self.url = self.program.wait_for(r"listening on (\S+)").group(1)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def tell(self, method: str, path: str, /, **order: Any) -> Any:
        """An order to its control endpoints; its answer."""
        data = json.dumps(order).encode() if method == "POST" else None
        request = Request(f"{self.url}/control/{path}", data, {"content-type": "application/json"}, method=method)
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def totals(self) -> Json:
        told: Json = self.tell("GET", "totals")
        return told

    def events(self) -> list[Json]:
        told: list[Json] = self.tell("GET", "events")["events"]
        return told


def main(kind: str, secret: str, port: int) -> None:
    receivers: dict[str, Callable[[str], StripeMeters | Hook]] = {"stripe": StripeMeters, "webhook": Hook}
    receiver = receivers[kind](secret)
    strict: Receiver = receiver
    asyncio.run(serve(strict, receiver.poison, "127.0.0.1", port))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[4]))
