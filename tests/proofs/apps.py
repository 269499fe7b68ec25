"""What apps, plans and an operator's own programs add to the proof of interruptions: callers who sign in at a Supabase
project, requests that plans pay for, notices, and usage that is reported.

They have houses of their own, with the project and the receivers as fakes in the same process. In the end every request
that was to be reported is at its receiver, or a dead letter.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from aiohttp import web

from goosestack import clock, demo, ledger, notices, outbox, payments, wiring
from goosestack.demo import openmeter, supabase
from goosestack.demo.postgrest import Table
from goosestack.demo.supabase import Key, Project
from goosestack.ledger import COUNTS, Charge, NewHold
from goosestack.meters import Meter
from goosestack.sinks import Sink
from goosestack.store import Tx
from goosestack.tokenizer import path_of
from tests.asking import chat, directed, message
from tests.interruptions import Asked, House, Resident, bearer
from tests.project import ANON_KEY, SECRET as JWT_SECRET, SERVICE_KEY
from tests.proofs.proof import Attempt
from tests.proofs.siege import JOB, VERB, Args, Before, Besieged, Route, asking, job_of, nothing, plainly, verb_of
from tests.receivers import Hook, StripeMeters
from tests.tills import KEY

CHAT, MESSAGES = ("POST", "/v1/chat/completions"), ("POST", "/v1/messages")
HOOK_SECRET = "whsec_Y2FuYXJ5LXdlYmhvb2stc2VjcmV0LTAwMDAwMDU1"
NOTICE_SECRET = "whsec_Y2FuYXJ5LW5vdGljZS1zZWNyZXQtMDAwMDAwMDA2"
PLANS = """
[free]
tokens_per_month = 10
[small]
tokens_per_month = 40
overage_cents = 500
[pro]
tokens_per_month = 100000000
"""
DEAR = chat(model="gpt-5.5", max_completion_tokens=100_000)
BY_TOKEN: Sequence[tuple[str, str, int, object]] = (
    ("GET", "/v1/models", 200, None),
    ("GET", "/v1/models/gpt-4o-mini", 200, None),
    ("GET", "/v1/pricing", 200, None),
    ("POST", "/v1/keys", 201, {"name": "more"}),
    ("GET", "/v1/keys", 200, None),
    ("DELETE", "/v1/keys/key_none", 404, None),
    ("GET", "/v1/usage", 200, None),
    ("GET", "/v1/holds", 200, None),
    ("DELETE", "/v1/holds/req_none", 404, None),
    ("POST", "/api/me/spending-cap", 200, {"cents": 5}),
    ("POST", "/billing/checkout", 200, {"type": "credits", "amount": 1000}),
    ("GET", "/billing/portal", 400, None),
    ("GET", "/billing/payments", 200, None),
    ("POST", "/billing/auto-topup", 200, {"enabled": False}),
)
"""What is asked of our own endpoints, and answered."""

TOLD = ("/readyz", "/metrics")

UNHEARD = "test.unheard"
"""A notice that is not taken."""

POISONED, BUSY = "openmeter", "webhook"
"""The receivers that refuse one of three events, and put off the first."""

COLUMNS = {"id": "text", "user_id": "text", "tokens": "bigint"}
METERS = ("stripe_meter", "openmeter", "supabase", "webhook")
JOBS = ("fetch_keys", "deliver", "watch_balances")
VERBS: Mapping[str, Args] = {
    "meters_retry": lambda alice: {"sink": "openmeter", "id": None},
    "meters_discard": lambda alice: {"sink": "openmeter", "id": DEAD},
    "meters_replay": lambda alice: {"sink": "openmeter", "since": "2026-01-01T00:00:00.000Z", "force": True},
}
ROUTES = (
    "a caller who signs in",
    "a caller by a new key",
    "what an allowance pays",
    "a stream that an allowance pays",
    "what goes beyond an allowance",
    "what credits pay in the end",
    "a caller's own key",
    "a stream by a caller's own key",
    "an answer without usage",
    "what must be counted",
    "a token that names a plan",
)
"""What is asked, in order."""

DEAD = "req_dead"
numbers = count(1)


@dataclass(slots=True)
class Town:
    """A house, the project whose users call it, and who hears of what it does."""

    house: House
    project: Project
    receivers: Mapping[str, Any]
    sinks: Mapping[str, Sink]
    busy: set[str]
    """The addresses at which the next request is put off."""
    reported: list[str] = field(default_factory=list)
    """Requests that were settled to be reported."""
    last: Meter | None = None
    """What has reported before."""

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, plan_source: str) -> AsyncIterator[Town]:
        """Everything, in an empty folder; who says which plan a user has."""
        furnish(folder)
        project = Project(JWT_SECRET, ANON_KEY, SERVICE_KEY)
        project.tables["profiles"] = Table("profiles", {"id": "uuid", "plan": "text"}, unique=[["id"]])
        project.tables["usage_log"] = Table("usage_log", COLUMNS, unique=[["id"]])
        receivers: dict[str, Any] = {
            "stripe_meter": StripeMeters(KEY),
            "openmeter": openmeter.OpenMeter(),
            "webhook": Hook(HOOK_SECRET),
        }
        busy = set[str]()
        async with AsyncExitStack() as stack:

            async def serve(served: web.Application) -> str:
                served.middlewares.append(slowly(busy))
                runner, port = await demo.start(served)
                stack.push_async_callback(runner.cleanup)
                return f"http://127.0.0.1:{port}"

            urls = {name: await serve(openmeter.make_app(each, each.poison)) for name, each in receivers.items()}
            project.url = await serve(supabase.make_app(project))
            settings: dict[str, Any] = {
                "funding": ("allowance", "overage", "credits"),
                "plans_file": folder / "plans.toml",
                "plan_source": plan_source,
                "supabase_url": project.url,
                "supabase_anon_key": ANON_KEY,
                "supabase_service_key": SERVICE_KEY,
                "supabase_check_s": 3600,
                "notify_webhook_url": await serve(hearing()),
                "notify_webhook_secret": NOTICE_SECRET,
            }
            async with House.open(folder, **settings) as house:
                reporting = replace(
                    house.parts.config,
                    meters=METERS,
                    stripe_api_base=urls["stripe_meter"],
                    stripe_meter_event="tokens",
                    stripe_meter_payers=("credits",),
                    openmeter_url=urls["openmeter"],
                    supabase_usage_columns=tuple(f"{name}={SOURCES[name]}" for name in COLUMNS),
                    meter_webhook_url=urls["webhook"] + Hook.path,
                    meter_webhook_secret=HOOK_SECRET,
                )
                sinks = wiring.sinks_of(reporting, house.parts.gateway.client, clock.utc_now)
                yield cls(house, project, receivers, {sink.name: sink for sink in sinks}, busy)

    # --- who asks, and by which plan ---

    def token(self, plan: str | None = None, **order: Any) -> dict[str, str]:
        """Of somebody new, of whom the table says that they have a plan."""
        id = str(uuid.uuid4())
        if plan is not None:
            self.project.tables["profiles"].rows.append({"id": id, "plan": plan})
        return {"authorization": f"Bearer {self.project.token({'sub': id, **order})}"}

    async def signing_in(self, house: House, alice: Resident) -> Asked:
        return Asked("GET", "/api/me", None, self.token("pro"))

    async def signing_in_by_claim(self, house: House, alice: Resident) -> Asked:
        """By a token that says which plan its user has."""
        claims = {"app_metadata": {"provider": "email", "plan": "pro"}}
        return Asked("GET", "/api/me", None, self.token(claims=claims))

    async def signing_in_by_new_key(self, house: House, alice: Resident) -> Asked:
        """By a token that is signed with a key which nobody has seen yet."""
        self.project.keys[:] = [*self.project.keys[-4:], Key.make("ES256")]
        assert house.parts.supabase is not None
        keys: Any = house.parts.supabase._keys
        keys._looked_at = None
        return Asked("GET", "/api/me", None, self.token("pro"))

    def relays(self) -> list[Route]:
        """What plans pay for, and what the callers' own providers do."""
        stream = {"stream": True}

        def by_token(plan: str, path: str, body: object) -> Any:
            async def prepare(house: House, alice: Resident) -> Asked:
                return Asked("POST", path, body, self.token(plan))

            return prepare

        async def small(house: House, alice: Resident) -> Asked:
            """By a plan that has too little for it, and goes beyond that."""
            await house.operator.call("plan_assign", {"user": alice.id, "plan": "small", "until": None})
            return Asked(*CHAT, chat(max_tokens=50), bearer(alice))

        async def own(house: House, alice: Resident) -> Asked:
            await house.operator.call("user_pro", {"user": alice.id, "until": "2999-01-01T00:00:00.000Z"})
            return Asked(*CHAT, chat(max_tokens=50), {**bearer(alice), "x-provider-key": "sk-test-key"})

        async def own_stream(house: House, alice: Resident) -> Asked:
            await house.operator.call("user_pro", {"user": alice.id, "until": "2999-01-01T00:00:00.000Z"})
            key = {"x-provider-key": "sk-ant-test-key"}
            return Asked(*MESSAGES, message(directed("Hi", words=4), **stream), {**bearer(alice), **key})

        unmeasured = chat(directed("Hi", words=4, usage_mode="missing"), **stream)
        return [
            Route("what an allowance pays", CHAT, 200, by_token("pro", CHAT[1], chat(max_tokens=50))),
            Route("a stream that an allowance pays", CHAT, 200, by_token("pro", CHAT[1], unmeasured)),
            Route("what goes beyond an allowance", CHAT, 200, small),
            Route("what credits pay in the end", CHAT, 200, asking(*CHAT, chat(max_tokens=50))),
            Route("a caller's own key", CHAT, 200, own),
            Route("a stream by a caller's own key", MESSAGES, 200, own_stream),
            Route("an answer without usage", CHAT, 200, asking(*CHAT, chat(directed("Hi", usage_mode="missing")))),
            Route("what must be counted", CHAT, 402, asking(*CHAT, DEAR), cents=1),
        ]

    def own(self) -> list[Route]:
        """Our own endpoints, whose caller must be asked for first; and those that tell of plans and meters."""
        self.house.parts.health.sinks = METERS
        told = [Route(f"{path} in a town", ("GET", path), 200, asking("GET", path)) for path in TOLD]
        return [*(self.by_token(*each) for each in BY_TOKEN), *told]

    def by_token(self, method: str, path: str, status: int, body: object) -> Route:
        """By somebody who has just signed in."""

        async def prepare(house: House, alice: Resident) -> Asked:
            return Asked(method, path, body, self.token("pro"))

        return Route(f"{method} {path} by token", (method, path), status, prepare)

    # --- what is told ---

    async def noticed(self) -> None:
        """Notices that are due, of which one will not be taken."""

        def tell(tx: Tx) -> None:
            for kind in ("test.heard", UNHEARD):
                notices.tell(tx, kind, {}, clock.utc_now())

        await self.house.parts.store.write(tell)

    # --- what is reported ---

    async def used(self, name: str) -> None:
        """Three requests, which a meter is to report, after one that has reported all that was before."""
        self.last = Meter(self.house.parts.store, self.sinks[name], self.house.parts.gateway, clock.utc_now, chance())
        while await self.last.turn():
            pass
        new = [f"req_used{next(numbers):06}" for _ in range(3)]
        if name == POISONED:
            self.receivers[name].poison.ids.append(new[-1])
        if name == BUSY:
            self.busy.add(Hook.path)
        alice = await self.house.resident()
        await self.house.parts.store.write(_use, new, alice, self.house.parts.gateway.process_id)
        self.reported += new

    async def report(self, name: str, _alice: Resident) -> None:
        """A process reports, until nothing is due, and is stopped: one that has just begun, and so asks with one event
        alone, or one whose receiver refuses one of several."""
        store, sink = self.house.parts.store, self.sinks[name]
        meter = self.last if name == POISONED else None
        meter = meter or Meter(store, sink, self.house.parts.gateway, clock.utc_now, chance())
        task = asyncio.create_task(meter.run())
        while not task.done() and not (meter._begun and not store.peek(outbox.due, sink, clock.utc_now())):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])

    async def calmly(self, name: str, alice: Resident) -> None:
        """The same, where no receiver puts anything off."""
        self.busy.clear()
        await self.report(name, alice)

    async def all_reported(self, attempt: Attempt, name: str) -> None:
        """What was settled is at the receiver, or a dead letter where that refuses it."""
        store = self.house.parts.store
        self.busy.clear()
        await self.used(name)
        meter = Meter(store, self.sinks[name], self.house.parts.gateway, clock.utc_now, chance())
        self.busy.clear()
        while await meter.turn():
            pass
        if name == "supabase":
            found = {row["id"] for row in self.project.tables["usage_log"].rows}
        else:
            found = {str(event["id"]) for event in self.receivers[name].events()}
        dead = {letter["id"] for letter in await store.read(outbox.dead_letters, name, 10_000)}
        missing = [id for id in self.reported if id not in found | dead]
        attempt.must(missing == [], f"{name}: {len(missing)} requests were not reported: {missing[:3]}")
        refused = set() if name == "supabase" else set(self.receivers[name].poison.ids)
        attempt.must(dead <= refused, f"{name}: dead letters of what would be taken: {sorted(dead - refused)[:3]}")
        attempt.meet("usage whose report was interrupted, and that has arrived")
        self.reported.clear()

    async def dead(self) -> None:
        """A dead letter."""
        await self.house.parts.store.write(_dead)


SOURCES = {"id": "id", "user_id": "user_id", "tokens": "total_tokens"}


def furnish(folder: Path) -> None:
    """Plans, and a file in place of a tokenizer's ranks, which takes a thread to find out that it has none."""
    folder.mkdir()
    (folder / "plans.toml").write_text(PLANS)
    ranks = path_of(folder / "tokenizer", "o200k_base")
    ranks.parent.mkdir()
    ranks.write_text("no ranks")


def chance() -> random.Random:
    """For a meter's waits."""
    return random.Random(1)


def slowly(busy: set[str]) -> Any:
    """An answer's body comes after its head; at a busy address, none at first."""

    @web.middleware
    async def answer(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path in busy:
            busy.discard(request.path)
            return web.Response(status=503)
        given = await handler(request)
        response = web.StreamResponse(status=given.status, headers=given.headers)
        await response.prepare(request)
        await asyncio.sleep(0.002)
        await response.write(given.body or b"")
        return response

    return answer


def hearing() -> web.Application:
    """Who is told of notices, and does not take all of them."""

    async def hear(request: web.Request) -> web.Response:
        kind = (await request.json())["type"]
        return web.Response(status=500 if kind == UNHEARD else 200)

    served = web.Application()
    served.router.add_post("/", hear)
    return served


def _use(tx: Tx, ids: Sequence[str], alice: Resident, process_id: int) -> None:
    now = clock.utc_now()
    if payments.customer_of(tx, alice.id)[0] is None:
        payments.set_customer(tx, alice.id, f"cus_{alice.id}")
    for id in ids:
        hold = NewHold(id, alice.id, process_id, "openai_chat", "openai", "gpt", account_id=alice.account_id)
        ledger.authorize(tx, hold, 15_000, 15_000, now)
        ledger.settle(tx, id, Charge(2_000, 2_000, (10, 5, *(0,) * (len(COUNTS) - 2))), "completed", now)


def _dead(tx: Tx) -> None:
    outbox.begin(tx, "openmeter", clock.utc_now())
    tx.execute("DELETE FROM meter_events WHERE id = ?", (DEAD,))
    tx.execute(
        "INSERT INTO meter_events SELECT 'openmeter', ?, min(id), 1, '{}', 'dead', 'a test', NULL, ? FROM users",
        (DEAD, clock.utc_now()),
    )


# --- the siege ------------------------------------------------------------------------------------------------


async def siege(attempt: Attempt, kinds: Sequence[Sequence[str]]) -> list[Besieged]:
    """Of a house whose plans a table tells, and of one where the tokens do; in short, one job of the first."""
    async with Town.open(attempt.folder / "apps", "table:profiles.plan") as town:
        besieged, me = Besieged(attempt, town.house), ("GET", "/api/me")
        routes = [
            Route("a caller who signs in", me, 200, town.signing_in),
            Route("a caller by a new key", me, 200, town.signing_in_by_new_key),
        ]
        relays = town.relays()
        attempt.must([route.name for route in (*routes, *relays)] == list(ROUTES[:-1]), "other routes than are listed")
        jobs: list[tuple[str, Before]] = [
            ("fetch_keys", nothing),
            ("deliver", town.noticed),
            ("watch_balances", nothing),
        ]
        if not attempt.full:
            jobs, routes, relays = attempt.random.sample(jobs, 1), [], []
        for route in (*routes, *relays, *(town.own() if attempt.full else ())):
            await besieged.route(route, relayed=route in relays)
        for job, before in jobs:
            await besieged.coroutine(
                JOB, job, partial(job_of, town.house, job), before, partial(plainly, town.house, job)
            )
        if not attempt.full:
            return [besieged]
        for name in METERS:
            make, plain = partial(town.report, name), partial(town.calmly, name)
            await besieged.coroutine("Meter.run", name, make, partial(town.used, name), plain)
            await town.all_reported(attempt, name)
        for verb, args in VERBS.items():
            await besieged.coroutine(VERB, verb, partial(verb_of, town.house, verb, args), town.dead)
        await besieged.pairs_of(relays[2], kinds)
    attempt.expect("usage whose report was interrupted, and that has arrived", times=len(METERS))
    async with Town.open(attempt.folder / "claims", "claim:app_metadata.plan") as town:
        claims = Besieged(attempt, town.house)
        await claims.route(Route("a token that names a plan", me, 200, town.signing_in_by_claim), relayed=False)
    return [besieged, claims]
