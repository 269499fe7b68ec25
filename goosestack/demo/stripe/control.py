"""The control API: what tests and the demo do to the fake from behind. The package says what each call means."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from aiohttp import web

from goosestack.demo.strict import Json, Refusal, field_problem
from goosestack.demo.stripe import checkout, customers, payments, returns, subscriptions
from goosestack.demo.stripe.courier import MODES, Settings
from goosestack.demo.stripe.faults import KINDS, Fault
from goosestack.demo.stripe.shapes import render
from goosestack.demo.stripe.till import Till

Verb: TypeAlias = Callable[[Till, str, Json], Json]

SETTINGS = {
    "mode": "string",
    "copies": "integer",
    "at_once": "boolean",
    "shuffle": "integer?",
    "delay_s": "number",
    "shape": "string",
    "types": "array?",
    "secrets": "array?",
    "scheme": "string",
    "age_s": "integer",
}
DELIVER = {"events": "array", "types": "array", "copies": "integer", "at_once": "boolean", "shuffle": "integer?"}
FAULT = {
    "kind": "string",
    "method": "string?",
    "path": "string",
    "times": "integer",
    "skip": "integer",
    "seconds": "number",
    "set": "object",
}
EDIT = {"set": "object", "unset": "array", "event": "string", "wait": "boolean"}
EVENT = {"type": "string", "object": "string|object", "livemode": "boolean", "created": "integer", "wait": "boolean"}


# --- verbs: each changes something, and answers it ------------------------------------------------------------


def _pay(till: Till, id: str, given: Json) -> Json:
    declined = checkout.pay(
        till.account,
        id,
        behaviour=given.get("card"),
        bank=given.get("method", "card") == "bank",
        email=given.get("email", ""),
    )
    found = till.account.get("checkout.session", id)
    return found if declined is None else {**found, "_declined": declined.code}


def _end_bank(good: bool) -> Verb:
    return lambda till, id, given: checkout.end_bank_payment(till.account, id, good=good)


def _expire(till: Till, id: str, given: Json) -> Json:
    return checkout.expire(till.account, {}, id)


def _refund(till: Till, id: str, given: Json) -> Json:
    status = given.get("status", "succeeded")
    charge = payments.charge_of(till.account, id)
    asked = {"amount": given["amount"]} if "amount" in given else {}
    record = returns.refund(till.account, charge, asked, "succeeded" if status == "failed" else status)
    if status == "failed":
        returns.end_refund(till.account, record, good=False)
    return record


def _end_refund(good: bool) -> Verb:
    def end(till: Till, id: str, given: Json) -> Json:
        record = till.account.get("refund", id)
        returns.end_refund(till.account, record, good=good, kept=given.get("kept", False))
        return record

    return end


def _dispute(till: Till, id: str, given: Json) -> Json:
    return returns.open_dispute(
        till.account,
        payments.charge_of(till.account, id),
        given.get("amount"),
        given.get("reason", "fraudulent"),
        withdraw=given.get("withdraw", True),
        inquiry=given.get("inquiry", False),
    )


def _withdraw(till: Till, id: str, given: Json) -> Json:
    record = till.account.get("dispute", id)
    returns.withdraw(till.account, record)
    return record


def _reinstate(till: Till, id: str, given: Json) -> Json:
    record = till.account.get("dispute", id)
    returns.reinstate(till.account, record)
    return record


def _close(till: Till, id: str, given: Json) -> Json:
    record = till.account.get("dispute", id)
    returns.close(till.account, record, given["status"], give_back=given.get("reinstate", True))
    return record


def _settle(good: bool) -> Verb:
    def settle(till: Till, id: str, given: Json) -> Json:
        intent = till.account.get("payment_intent", id)
        payments.settle(till.account, intent, good=good)
        return intent

    return settle


def _card(till: Till, id: str, given: Json) -> Json:
    return customers.set_behaviour(till.account, id, given["behaviour"])


def _detach(till: Till, id: str, given: Json) -> Json:
    customers.detach_cards(till.account, id)
    return till.account.get("customer", id)


def _subscription(change: Callable[[Till, Json, Json], object]) -> Verb:
    def verb(till: Till, id: str, given: Json) -> Json:
        record = till.account.get("subscription", id)
        change(till, record, given)
        return record

    return verb


def _cancel(till: Till, record: Json, given: Json) -> None:
    if given.get("at_period_end", False):
        subscriptions.update(till.account, {"cancel_at_period_end": True}, record["id"])
    else:
        subscriptions.cancel(till.account, {}, record["id"])


BEHAVIOUR = tuple(customers.BEHAVIOURS)
OUTCOME = {"outcome": ("paid", "failed")}

# What follows the id in the path: the types of its fields, their choices, those that must be there, and what it does.
VERBS: Mapping[str, tuple[Mapping[str, str], Mapping[str, tuple[str, ...]], Verb]] = {
    "checkouts/pay": (
        {"method": "string", "card": "string", "email": "string"},
        {"method": ("card", "bank"), "card": BEHAVIOUR},
        _pay,
    ),
    "checkouts/succeed": ({}, {}, _end_bank(True)),
    "checkouts/fail": ({}, {}, _end_bank(False)),
    "checkouts/expire": ({}, {}, _expire),
    "payments/refund": (
        {"amount": "integer", "status": "string"},
        {"status": ("succeeded", "pending", "failed")},
        _refund,
    ),
    "payments/dispute": (
        {"amount": "integer", "reason": "string", "withdraw": "boolean", "inquiry": "boolean"},
        {},
        _dispute,
    ),
    "payments/succeed": ({}, {}, _settle(True)),
    "payments/fail": ({}, {}, _settle(False)),
    "refunds/succeed": ({}, {}, _end_refund(True)),
    "refunds/fail": ({"kept": "boolean"}, {}, _end_refund(False)),
    "disputes/withdraw": ({}, {}, _withdraw),
    "disputes/close": ({"status": "string", "reinstate": "boolean"}, {"status": returns.CLOSED}, _close),
    "disputes/reinstate": ({}, {}, _reinstate),
    "customers/card": ({"behaviour": "string"}, {"behaviour": BEHAVIOUR}, _card),
    "customers/detach": ({}, {}, _detach),
    "subscriptions/renew": (
        {"outcome": "string"},
        OUTCOME,
        _subscription(lambda till, record, given: subscriptions.renew(till.account, record, given.get("outcome"))),
    ),
    "subscriptions/retry": (
        {"outcome": "string"},
        OUTCOME,
        _subscription(lambda till, record, given: subscriptions.retry(till.account, record, given.get("outcome"))),
    ),
    "subscriptions/cancel": ({"at_period_end": "boolean"}, {}, _subscription(_cancel)),
    "subscriptions/status": (
        {"status": "string"},
        {"status": subscriptions.STATUSES},
        _subscription(lambda till, record, given: subscriptions.set_status(till.account, record, given["status"])),
    ),
}
REQUIRED = {
    "disputes/close": ("status",),
    "customers/card": ("behaviour",),
    "subscriptions/status": ("status",),
}


# --- the calls ------------------------------------------------------------------------------------------------


def control_routes(till: Till) -> list[web.RouteDef]:
    """The control API of a till."""
    control = _Control(till)
    answers: list[tuple[str, str, Callable[[web.Request], Awaitable[Json]]]] = [
        ("POST", "/{kind}/{id}/{verb}", control.act),
        ("GET", "/clock", control.show_clock),
        ("POST", "/clock", control.move_clock),
        ("GET", "/objects", control.list_objects),
        ("GET", "/objects/{id}", control.show_object),
        ("POST", "/objects/{id}/edit", control.edit),
        ("POST", "/events", control.emit),
        ("POST", "/reset", control.reset),
        ("GET", "/requests", control.list_requests),
        ("DELETE", "/requests", control.forget_requests),
        ("GET", "/delivery", control.show_delivery),
        ("POST", "/delivery", control.change_delivery),
        ("DELETE", "/delivery", control.reset_delivery),
        ("POST", "/deliver", control.deliver),
        ("GET", "/deliveries", control.list_deliveries),
        ("POST", "/settle", control.settle),
        ("POST", "/webhook", control.point_webhook),
        ("GET", "/faults", control.list_faults),
        ("POST", "/faults", control.add_fault),
        ("DELETE", "/faults", control.forget_faults),
        ("*", "/{path:.*}", control.unknown),
    ]
    answers.sort(key=lambda each: "{" in each[1])  # what is spelled out comes first
    return [web.route(method, f"/_control{path}", _answered(answer)) for method, path, answer in answers]


def _answered(answer: Callable[[web.Request], Awaitable[Json]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            return web.json_response(await answer(request))
        except Refusal as refusal:
            status = 404 if refusal.code == "resource_missing" else 400
            return web.json_response({"error": refusal.message}, status=status)

    return handle


async def _body(
    request: web.Request,
    kinds: Mapping[str, str],
    *,
    required: tuple[str, ...] = (),
    choices: Mapping[str, tuple[str, ...]] | None = None,
) -> Json:
    """The JSON object of a request, by its fields and their types."""
    raw = await request.read()
    if request.content_type != "application/json" and raw:
        raise Refusal(400, "The body must be application/json.")  # which no other site's page can send
    try:
        given = json.loads(raw) if raw else {}
    except ValueError as error:
        raise Refusal(400, f"The body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise Refusal(400, "The body must be an object.")
    problem = field_problem(given, kinds, required=required, choices=choices)
    if problem is not None:
        raise Refusal(
            400, f"{problem.field}: {problem.why} {problem.got}, takes {', '.join(problem.expected or kinds)}"
        )
    return given


class _Control:
    def __init__(self, till: Till) -> None:
        self.till = till

    async def changed(self, do: Callable[[], Json], given: Json) -> Json:
        """Carry out an action; answers what it changed and the events that this caused."""
        before = len(self.till.account.all("event"))
        found = do()
        events = self.till.account.all("event")[before:]
        if given.get("wait", True):
            await self.till.settle()
        return {"object": found, "events": [{"id": each["id"], "type": each["type"]} for each in events]}

    async def act(self, request: web.Request) -> Json:
        path, id = "{kind}/{verb}".format(**request.match_info), request.match_info["id"]
        if path not in VERBS:
            return await self.unknown(request)
        kinds, choices, verb = VERBS[path]
        kinds = {**kinds, "wait": "boolean"}
        given = await _body(request, kinds, required=REQUIRED.get(path, ()), choices=choices)
        return await self.changed(lambda: verb(self.till, id, given), given)

    async def unknown(self, request: web.Request) -> Json:
        raise Refusal(404, f"There is no {request.method} {request.path}.", code="resource_missing")

    # --- clock, objects ---

    async def show_clock(self, request: web.Request) -> Json:
        return {"now": self.till.account.now}

    async def move_clock(self, request: web.Request) -> Json:
        given = await _body(request, {"advance_s": "number", "now": "number"})
        if ("advance_s" in given) == ("now" in given):
            raise Refusal(400, "Give advance_s or now, one of them.")
        at = given["now"] if "now" in given else self.till.clock.now() + given["advance_s"]
        if at < self.till.clock.now():
            raise Refusal(400, "The clock moves forward only.")
        before = len(self.till.account.all("event"))
        await self.till.move_to(at)
        events = self.till.account.all("event")[before:]
        shown = [{"id": each["id"], "type": each["type"]} for each in events]
        return {"object": {"now": self.till.account.now}, "events": shown}

    async def list_objects(self, request: web.Request) -> Json:
        kind = request.query.get("type")
        return {"data": [each for each in self.till.account.objects.values() if kind in (None, each["object"])]}

    async def show_object(self, request: web.Request) -> Json:
        return self._known(request.match_info["id"])

    def _known(self, id: str) -> Json:
        if id not in self.till.account.objects:
            raise Refusal(404, f"There is no object {id}.", code="resource_missing")
        return self.till.account.objects[id]

    async def edit(self, request: web.Request) -> Json:
        given = await _body(request, EDIT)
        record = self._known(request.match_info["id"])
        before = record.get("_lies", {"set": {}, "unset": []})
        lies = {
            "set": {**before["set"], **given.get("set", {})},
            "unset": [*before["unset"], *given.get("unset", [])],
        }
        try:
            render({**record, "_lies": lies})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise Refusal(400, f"There is no way to one of these fields in a {record['object']}.") from None
        record["_lies"] = lies

        def send() -> Json:
            if "event" in given:
                self.till.account.emit(given["event"], record)
            return record

        return await self.changed(send, given)

    async def emit(self, request: web.Request) -> Json:
        given = await _body(request, EVENT, required=("type", "object"))
        more: dict[str, Any] = {name: given[name] for name in ("livemode", "created") if name in given}
        about = given["object"]
        if isinstance(about, str):
            about = self._known(about)
        else:
            more["_as_is"] = True
        return await self.changed(lambda: self.till.account.emit(given["type"], about, **more), given)

    async def reset(self, request: web.Request) -> Json:
        await _body(request, {})
        self.till.reset()
        return {}

    # --- requests, faults ---

    async def list_requests(self, request: web.Request) -> Json:
        wanted = {name: request.query[name] for name in ("method", "path") if name in request.query}
        data = [each for each in self.till.requests if all(each[name] == value for name, value in wanted.items())]
        return {"data": data}

    async def forget_requests(self, request: web.Request) -> Json:
        self.till.requests.clear()
        return {}

    async def list_faults(self, request: web.Request) -> Json:
        return {"data": [fault.shown() for fault in self.till.faults]}

    async def add_fault(self, request: web.Request) -> Json:
        given = await _body(request, FAULT, required=("kind",), choices={"kind": tuple(KINDS)})
        self.till.faults.append(Fault(**given))
        return await self.list_faults(request)

    async def forget_faults(self, request: web.Request) -> Json:
        self.till.faults.clear()
        return {"data": []}

    # --- webhooks ---

    async def show_delivery(self, request: web.Request) -> Json:
        return self.till.courier.settings.shown()

    async def change_delivery(self, request: web.Request) -> Json:
        choices = {"mode": MODES, "shape": ("new", "old")}
        given = await _body(request, SETTINGS, choices=choices)
        self.till.deliver_by(Settings(**{**self.till.courier.settings.shown(), **given}))
        return await self.show_delivery(request)

    async def reset_delivery(self, request: web.Request) -> Json:
        self.till.deliver_by(Settings())
        return await self.show_delivery(request)

    async def deliver(self, request: web.Request) -> Json:
        given = await _body(request, DELIVER)
        for id in given.get("events", []):
            self._known(id)
        attempts = await self.till.deliver(
            given.get("events"),
            given.get("types"),
            copies=given.get("copies", 1),
            at_once=given.get("at_once", False),
            shuffle=given.get("shuffle"),
        )
        return {"deliveries": attempts}

    async def list_deliveries(self, request: web.Request) -> Json:
        return {"data": self.till.courier.log}

    async def settle(self, request: web.Request) -> Json:
        await self.till.settle()
        return {}

    async def point_webhook(self, request: web.Request) -> Json:
        given = await _body(request, {"url": "string?", "secret": "string"}, required=("url", "secret"))
        self.till.send_webhooks_to(given["url"], given["secret"])
        return {}
