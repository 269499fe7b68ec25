"""An OpenMeter as a program, for tests: it takes usage events, drops those it knows, and adds up what they tell.

    python -m goosestack.demo.openmeter [--token TOKEN] [--port 0]

It prints `listening on URL`. `POST /api/v1/events` takes one CloudEvent (`application/cloudevents+json`), a batch of
them (`application/cloudevents-batch+json`), or either (`application/json`), and answers 204. A batch with one bad event
is refused as a whole. What was seen before, by `source` and `id`, is dropped.

What a test tells it, in JSON, each answered with JSON:

    GET    /control/totals    {"events", "duplicates", "requests", "totals": {subject: {"events", NAME: sum, ...}}}:
                              the sums of every number in the events' data, exact, as strings
    GET    /control/events    {"events": [as they came in, without repetitions]}
    POST   /control/poison    {"ids": [...], "subjects": [...]}: events with these are refused (400). DELETE: none are
    POST   /control/faults    {"kind", "after", "status", "retry_after", "seconds", "times"}: how the next requests fail
                              (`times` of them, default 1; 0: until cleared). Kinds: `status` (an answer, default 503),
                              `cut` (the connection), `stall` (no answer for so many seconds, then it is cut).
                              `after`: the events are taken all the same. DELETE: none do
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from aiohttp import web

Json = dict[str, Any]
MOST_BYTES = 16 * 1024 * 1024
ONE, BATCH, EITHER = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"

_REQUIRED = ("id", "source", "specversion", "type", "subject")
_OPTIONAL = ("time", "datacontenttype", "dataschema", "data")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Reply:
    """What a receiver answers."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Receiver(Protocol):
    """What takes requests: this one, and others that tests have."""

    path: str

    def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """One request; header names in lower case."""
        ...

    def totals(self) -> Json:
        """What it has so far."""
        ...

    def events(self) -> list[Json]:
        """The same in full."""
        ...


@dataclass
class Poison:
    """What is refused, whatever else may be said for it."""

    ids: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    def spoils(self, id: str, subject: str) -> bool:
        """Whether an event has any of it."""
        return id in self.ids or subject in self.subjects


class OpenMeter:
    """The events of all sources. `now` is in seconds; an id is remembered for `remembers_s` of them."""

    path = "/api/v1/events"

    def __init__(
        self, token: str | None = None, now: Callable[[], float] = lambda: 0.0, remembers_s: float = 32 * 86_400
    ) -> None:
        self.poison = Poison()
        self._token, self._now, self._remembers_s = token, now, remembers_s
        self._seen: dict[tuple[str, str], float] = {}
        self._kept: list[Json] = []
        self._duplicates = self._requests = 0

    def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """See `Receiver.take`."""
        self._requests += 1
        if self._token is not None and headers.get("authorization") != f"Bearer {self._token}":
            return _problem(401, "no valid token")
        try:
            events = _read(headers.get("content-type", "").partition(";")[0], body)
            for event in events:
                _check(event)
                if self.poison.spoils(event["id"], event["subject"]):
                    raise ValueError(f"event {event['id']} is poison")
        except ValueError as error:
            return _problem(400, str(error))
        for event in events:
            self._keep(event)
        return Reply(204)

    def _keep(self, event: Json) -> None:
        name, now = (event["source"], event["id"]), self._now()
        if name in self._seen and now - self._seen[name] <= self._remembers_s:
            self._duplicates += 1
        else:
            self._seen[name] = now
            self._kept.append(event)

    def totals(self) -> Json:
        """See `Receiver.totals`."""
        totals: dict[str, dict[str, Decimal]] = {}
        for event in self._kept:
            sums = totals.setdefault(event["subject"], {"events": Decimal(0)})
            sums["events"] += 1
            for name, value in event.get("data", {}).items():
                if (number := _number(value)) is not None:
                    sums[name] = sums.get(name, Decimal(0)) + number
        shown = {subject: {name: f"{total:f}" for name, total in sums.items()} for subject, sums in totals.items()}
        counts = {"events": len(self._kept), "duplicates": self._duplicates, "requests": self._requests}
        return {**counts, "totals": shown}

    def events(self) -> list[Json]:
        """See `Receiver.events`."""
        return self._kept


def _read(kind: str, body: bytes) -> list[Json]:
    try:
        given = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is no JSON: {error}") from None
    if kind not in (ONE, BATCH, EITHER):
        raise ValueError(f"the content type {kind!r} is not one of events")
    if kind != EITHER and isinstance(given, list) != (kind == BATCH):
        raise ValueError(f"the body does not fit the content type {kind}")
    events = given if isinstance(given, list) else [given]
    if not events or not all(isinstance(event, dict) for event in events):
        raise ValueError("there are no events in it")
    return events


def _check(event: Json) -> None:
    """What CloudEvents and OpenMeter ask of an event. Raises ValueError."""
    for name in _REQUIRED:
        if not isinstance(event.get(name), str) or not event[name]:
            raise ValueError(f"{name} must be a text")
    if event["specversion"] != "1.0":
        raise ValueError("specversion must be 1.0")
    if unknown := set(event) - {*_REQUIRED, *_OPTIONAL}:
        raise ValueError(f"{min(unknown)} is not known")
    if "time" in event:
        if not isinstance(event["time"], str) or not _RFC_3339.fullmatch(event["time"]):
            raise ValueError("time must be as RFC 3339 has it")
        datetime.fromisoformat(event["time"])
    if not isinstance(event.get("data", {}), dict):
        raise ValueError("data must be an object")


def _number(value: object) -> Decimal | None:
    """What a meter would add up: a number, or a text that is one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _problem(status: int, detail: str) -> Reply:
    body = {"type": "about:blank", "title": "the events were refused", "status": status, "detail": detail}
    return Reply(status, json.dumps(body).encode(), {"content-type": "application/problem+json"})


# --- as a program ---------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """How requests fail: see the module."""

    kind: str
    after: bool = False
    status: int = 503
    retry_after: str | None = None
    seconds: float = 3600.0
    times: int = 1


class Front:
    """A receiver on the web, and what a test tells it."""

    def __init__(self, receiver: Receiver, poison: Poison) -> None:
        self._receiver, self._poison = receiver, poison
        self._faults: list[Fault] = []

    async def take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body, fault = await request.read(), self._fault()
        reply = self._receiver.take(headers, body) if fault is None or fault.after else Reply(503)
        if fault is None:
            return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
        if fault.kind == "status":
            asked = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
            return web.Response(status=fault.status, text="a fault was ordered", headers=asked)
        if fault.kind == "stall":
            await asyncio.sleep(fault.seconds)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _fault(self) -> Fault | None:
        if not self._faults:
            return None
        fault = self._faults[0]
        fault.times -= 1
        if fault.times == 0:
            self._faults.pop(0)
        return fault

    async def totals(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._receiver.totals())

    async def events(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"events": self._receiver.events()})

    async def spoil(self, request: web.Request) -> web.StreamResponse:
        given = await request.json()
        self._poison.ids += given.get("ids", [])
        self._poison.subjects += given.get("subjects", [])
        return web.json_response({})

    async def mend(self, request: web.Request) -> web.StreamResponse:
        self._poison.ids.clear()
        self._poison.subjects.clear()
        return web.json_response({})

    async def fail(self, request: web.Request) -> web.StreamResponse:
        self._faults.append(Fault(**await request.json()))
        return web.json_response({})

    async def heal(self, request: web.Request) -> web.StreamResponse:
        self._faults.clear()
        return web.json_response({})


def make_app(receiver: Receiver, poison: Poison) -> web.Application:
    """A receiver's routes."""
    front, app = Front(receiver, poison), web.Application(client_max_size=MOST_BYTES)
    app.add_routes(
        [
            web.post(receiver.path, front.take),
            web.get("/control/totals", front.totals),
            web.get("/control/events", front.events),
            web.post("/control/poison", front.spoil),
            web.delete("/control/poison", front.mend),
            web.post("/control/faults", front.fail),
            web.delete("/control/faults", front.heal),
        ]
    )
    return app


async def serve(receiver: Receiver, poison: Poison, host: str, port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = make_app(receiver, poison)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    print(f"listening on http://{host}:{runner.addresses[0][1]}", flush=True)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m goosestack.demo.openmeter")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--token", help="asked for, where it is given")
    options = parser.parse_args()
    receiver = OpenMeter(options.token)
    asyncio.run(serve(receiver, receiver.poison, options.host, options.port))


if __name__ == "__main__":
    main()
