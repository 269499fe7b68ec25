"""Something is thrown into every handler, at each of its awaits: a cancellation, or an error that nobody foresaw.

Each route of the application, each verb of the operator and each job is driven by hand (`tests/interruptions.py`), and
interrupted at its first suspension, at its second, and so on, until a run comes to its end undisturbed; so is the relay
of each request, and, of the relay, each pair of suspensions. After every single one nothing may be held, no room and no
lock be kept, and nothing hang; after every handler the house must still serve, and the books add up.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from typing import Any

from goosestack import app
from goosestack.admin import VERBS
from goosestack.control import VerbError
from goosestack.wire import mobile_chat
from tests.asking import chat, directed, message
from tests.interruptions import (
    ERRORS,
    HANDLER,
    HARSHER,
    RELAY,
    Asked,
    House,
    Interruption,
    Resident,
    Throws,
    Told,
    bearer,
)
from tests.proofs.proof import Attempt, Proof, Refuted
from tests.tills import SECRET

VERB = "verb_of"
JOB = "job_of"
UNSTRUCK = 2
"""So many runs in a row that end undisturbed: how often a coroutine waits depends on what is ready already."""

Plan = Mapping[tuple[str, int], Throws]
Prepare = Callable[[House, Resident], Awaitable[Asked]]


@dataclass(frozen=True, slots=True)
class Route:
    """A request of one route: how it is asked by somebody new, and what it is answered where nothing interrupts it."""

    name: str
    template: tuple[str, str]
    status: int
    prepare: Prepare
    cents: int = 1000


def asking(method: str, path: str, body: object = None, **more: Any) -> Prepare:
    async def prepare(house: House, alice: Resident) -> Asked:
        return Asked(method, path, body, bearer(alice), **more)

    return prepare


def told(**directive: object) -> str:
    return directed("Hi", **directive)


CHAT, RESPONSES, EMBEDDINGS, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"
STREAM: dict[str, object] = {"stream": True}
RELAYED: dict[str, tuple[str, Mapping[str, object], int]] = {
    "a plain answer": (CHAT, chat(max_tokens=50), 200),
    "a stream": (CHAT, chat(told(words=6), **STREAM), 200),
    "a slow stream": (CHAT, chat(told(words=4, delay_ms=2), **STREAM), 200),
    "a message": (MESSAGES, message(max_tokens=50), 200),
    "a streamed message": (MESSAGES, message(told(words=4), **STREAM), 200),
    "a response": (RESPONSES, {"model": "gpt-5.4-mini", "input": "Hello"}, 200),
    "a streamed response": (RESPONSES, {"model": "gpt-5.4-mini", "input": told(words=4), **STREAM}, 200),
    "an embedding": (EMBEDDINGS, {"model": "text-embedding-3-small", "input": "Hello"}, 200),
    "a count": ("/v1/messages/count_tokens", {"model": "claude-haiku-4-5", "messages": message()["messages"]}, 200),
    "an app's question": (mobile_chat.ROUTE, chat(), 200),
    "a refusal": (CHAT, chat(told(fault="error_400")), 400),
    "a failure": (RESPONSES, {"model": "gpt-5.4-mini", "input": told(fault="error_500")}, 502),
    "a cut stream": (CHAT, chat(told(words=6, fault="reset", at=3), **STREAM), 200),
    "no usage": (MESSAGES, message(told(usage_mode="missing")), 200),
    "no answer": (CHAT, chat(told(fault="reset_before_headers")), 502),
}
VOUCHED = ("a plain answer", "a stream", "a streamed message", "an embedding", "a refusal", "a cut stream")
"""Which of these a voucher pays for as well."""
DEAR = chat(model="gpt-5.5", max_completion_tokens=100_000)
RELAYS = [
    *(
        Route(name, ("POST", path), status, asking("POST", path, body))
        for name, (path, body, status) in RELAYED.items()
    ),
    Route("what cannot be paid", ("POST", CHAT), 402, asking("POST", CHAT, DEAR), cents=1),
    Route("a large body", ("POST", CHAT), 200, asking("POST", CHAT, chat("goose " * 12_000)), cents=10_000),
]


async def revoking(house: House, alice: Resident) -> Asked:
    return Asked("DELETE", f"/v1/keys/{alice.key_id}", None, bearer(alice))


async def ending(house: House, alice: Resident) -> Asked:
    """A hold, which must be there first: of a stream that goes on while it is ended."""
    before = set(house.parts.gateway.live)
    body = chat(told(words=3, delay_ms=60_000), **STREAM)
    background.add(asyncio.create_task(house.ask(Asked("POST", CHAT, body, bearer(alice)))))
    while not (found := set(house.parts.gateway.live) - before):
        await asyncio.sleep(0.001)
    while house.parts.gateway.live[(id := found.copy().pop())]._status is None:
        await asyncio.sleep(0.001)
    return Asked("DELETE", f"/v1/holds/{id}", None, bearer(alice))


background: set[asyncio.Task[Told]] = set()


async def buying(house: House, alice: Resident) -> Asked:
    return Asked("POST", "/billing/checkout", {"type": "credits", "amount": 1000}, bearer(alice))


async def returning(house: House, alice: Resident) -> Asked:
    """To the portal, as somebody whom Stripe knows."""
    await house.parts.billing.customer(alice.id)
    return Asked("GET", "/billing/portal", None, bearer(alice))


async def saving(house: House, alice: Resident) -> Asked:
    return Asked("POST", "/billing/auto-topup", {"enabled": False}, bearer(alice))


events = count()


async def telling(house: House, alice: Resident) -> Asked:
    """An event of Stripe's, whose signature holds."""
    charge = {"id": "ch_1", "object": "charge", "payment_intent": "pi_none", "status": "succeeded"}
    about = {**charge, "amount_refunded": 5, "receipt_url": None}
    event = {"id": f"evt_{next(events)}", "object": "event", "type": "charge.refunded", "created": int(time.time())}
    body = json.dumps({**event, "livemode": False, "data": {"object": about}}).encode()
    at = int(time.time())
    mac = hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return Asked("POST", "/billing/webhook", body, {"stripe-signature": f"t={at},v1={mac}"})


async def signing_up(house: House, alice: Resident) -> Asked:
    return Asked("POST", "/v1/keys", {"email": "carol@example.com", "name": "first"})


OWN = (
    Route("the root", ("GET", "/"), 200, asking("GET", "/")),
    Route("health", ("GET", "/health"), 200, asking("GET", "/health")),
    Route("models", ("GET", "/v1/models"), 200, asking("GET", "/v1/models")),
    Route("a model", ("GET", "/v1/models/{id:path}"), 200, asking("GET", "/v1/models/gpt-4o-mini")),
    Route("prices", ("GET", "/v1/pricing"), 200, asking("GET", "/v1/pricing")),
    Route("a sign-up", ("POST", "/v1/keys"), 201, signing_up),
    Route("another key", ("POST", "/v1/keys"), 201, asking("POST", "/v1/keys", {"name": "more"})),
    Route("the keys", ("GET", "/v1/keys"), 200, asking("GET", "/v1/keys")),
    Route("a key's end", ("DELETE", "/v1/keys/{id}"), 200, revoking),
    Route("usage", ("GET", "/v1/usage"), 200, asking("GET", "/v1/usage")),
    Route("usage as a table", ("GET", "/v1/usage"), 200, asking("GET", "/v1/usage?format=csv")),
    Route("the holds", ("GET", "/v1/holds"), 200, asking("GET", "/v1/holds")),
    Route("a hold's end", ("DELETE", "/v1/holds/{id}"), 200, ending),
    Route("the caller", ("GET", "/api/me"), 200, asking("GET", "/api/me")),
    Route("a cap", ("POST", "/api/me/spending-cap"), 200, asking("POST", "/api/me/spending-cap", {"cents": 5})),
    Route("a checkout", ("POST", "/billing/checkout"), 200, buying),
    Route("the portal", ("GET", "/billing/portal"), 200, returning),
    Route("payments", ("GET", "/billing/payments"), 200, asking("GET", "/billing/payments")),
    Route("a standing top-up", ("POST", "/billing/auto-topup"), 200, saving),
    Route("a webhook", ("POST", "/billing/webhook"), 200, telling),
    Route("readiness", ("GET", "/readyz"), 200, asking("GET", "/readyz")),
    Route("metrics", ("GET", "/metrics"), 200, asking("GET", "/metrics")),
)

Args = Callable[[Resident], dict[str, object]]
ARGS: dict[str, Args] = {
    "user_create": lambda alice: {"email": "dave@example.com"},
    "user_list": lambda alice: {"after": ""},
    "user_pro": lambda alice: {"user": alice.id, "until": "2999-01-01T00:00:00.000Z"},
    "key_create": lambda alice: {"user": alice.id, "name": "more"},
    "key_list": lambda alice: {"user": alice.id, "after": ""},
    "key_revoke": lambda alice: {"key": alice.key_id},
    "credit_grant": lambda alice: {"user": alice.id, "cents": 5, "note": "", "ref": None},
    "credit_show": lambda alice: {"user": alice.id},
    "plan_list": lambda alice: {},
    "plan_assign": lambda alice: {"user": alice.id, "plan": "pro", "until": None},
    "plan_cap": lambda alice: {"user": alice.id, "cents": 5},
    "plan_show": lambda alice: {"user": alice.id},
    "check": lambda alice: {"full": True},
    "stripe_reconcile": lambda alice: {},
    "stripe_setup": lambda alice: {"again": True},
    "stripe_reviews": lambda alice: {},
    "stripe_reviewed": lambda alice: {"event": "evt_none"},
    "meters_status": lambda alice: {"letters": 5},
    "meters_retry": lambda alice: {"sink": "openmeter", "id": None},
    "meters_discard": lambda alice: {"sink": "openmeter", "id": "none"},
    "meters_replay": lambda alice: {"sink": "openmeter", "since": "2026-01-01T00:00:00.000Z", "force": False},
}
DRAIN_ARGS: dict[str, Args] = {
    "drain_status": lambda alice: {},
    "drain_claim": lambda alice: {"force": True},
    "drain_channels": lambda alice: {},
}
DRAIN_JOBS = ("claim", "watch_terms")
OWN_JOBS = tuple(name for name, _ in app.JOBS if name not in DRAIN_JOBS)


Before = Callable[[], Awaitable[None]]


async def nothing() -> None:
    pass


@dataclass(slots=True)
class Besieged:
    """A house, and what has been thrown into it."""

    attempt: Attempt
    house: House
    points: int = 0
    pairs: int = 0

    async def route(self, route: Route, *, relayed: bool) -> None:
        """Every suspension of the handler, and of the relay where there is one; each error at each of them."""
        places = [(HANDLER, error) for error in ERRORS]
        places += [(RELAY, error) for error in HARSHER if relayed]
        for where, error in places:
            await self.everywhere(route.name, where, error, partial(self.once, route))
        told = await self.answered(route, Interruption())
        self.attempt.must(
            told.status == route.status,
            f"{route.name} is answered {told.status} where nothing interrupts it: {told.body[:300]!r} {told.error!r}",
        )
        await self.house.answers()
        self.attempt.count("handlers")

    async def pairs_of(self, route: Route, kinds: Iterable[Sequence[str]]) -> None:
        """Every two suspensions of the relay: the second is one of those that the first has left or made."""
        for errors in kinds:
            for first in count():
                struck = 0
                for second in count(first + 1):
                    plan = {(RELAY, first): HARSHER[errors[0]], (RELAY, second): HARSHER[errors[1]]}
                    try:
                        struck = await self.once(route, plan)
                    except AssertionError as wrong:
                        story = f"{route.name}, its relay {' and '.join(errors)} at {first} and {second}: {wrong}"
                        raise Refuted(story) from wrong
                    if struck < 2:
                        break
                    self.pairs += 1
                    self.attempt.count("pairs")
                    self.attempt.meet("a second error while the first is dealt with")
                if struck == 0:
                    break
        await self.house.answers()

    async def everywhere(self, what: str, where: str, error: str, once: Callable[[Plan], Awaitable[int]]) -> None:
        """Interrupt at each suspension in turn, until runs end undisturbed."""
        undisturbed = 0
        for at in count():
            try:
                struck = await once({(where, at): HARSHER[error]})
            except (AssertionError, TimeoutError) as wrong:
                raise Refuted(f"{what}, {where} {error} at suspension {at}: {wrong}") from wrong
            undisturbed = 0 if struck else undisturbed + 1
            self.points += struck
            if undisturbed == UNSTRUCK:
                return

    async def once(self, route: Route, plan: Plan) -> int:
        """One request with this plan of errors; how many of them have come about."""
        interruption = Interruption(plan)
        told = await self.answered(route, interruption)
        for where, _ in plan:
            if interruption.struck:
                self.attempt.meet(f"an error in {'a relay' if where == RELAY else 'a handler'}")
        if (HANDLER, 0) not in plan and told.error is None:
            assert told.status, "it ended without an answer"
        return interruption.struck

    async def answered(self, route: Route, interruption: Interruption) -> Told:
        """Ask it as somebody new; afterwards nothing is under way."""
        alice = await self.house.resident(route.cents)
        asked = await route.prepare(self.house, alice)
        told = await self.house.ask(asked, interruption, quiet=not background)
        while background:
            waiting = background.pop()
            for relay in list(self.house.parts.gateway.live.values()):
                relay.end("the test is over")
            await asyncio.wait_for(waiting, 20)
        await self.house.quiet()
        return told

    async def coroutine(self, name: str, what: str, make: Callable[[Resident], Any], before: Before = nothing) -> None:
        """Every suspension of a verb or a job, each after something that is not interrupted."""

        async def once(plan: Plan) -> int:
            interruption = Interruption(plan, watched={name})
            alice = await self.house.resident()
            await before()
            await self.house.run(make(alice), interruption)
            await self.house.quiet()
            if interruption.struck:
                self.attempt.meet("an error in a verb or a job")
            return interruption.struck

        for error in ERRORS:
            await self.everywhere(what, name, error, once)
        await self.house.answers()
        self.attempt.count("handlers")


def run(attempt: Attempt) -> None:
    """Every handler, or a few that the seed draws."""
    attempt.expect("an error in a handler", "an error in a relay", "an error in a verb or a job")
    attempt.expect("a second error while the first is dealt with")
    asyncio.run(siege(attempt))


async def siege(attempt: Attempt) -> None:
    """Open the house and throw."""
    covered = {route.template for route in (*OWN, *RELAYS)}
    every = {(method, path) for method, path, _ in app.ROUTES} | {("POST", f"/v1{wire.path}") for wire in app.WIRES}
    attempt.must(covered == every | {("POST", mobile_chat.ROUTE)}, f"not asked: {every - covered}")
    run_verbs = ARGS.keys() | DRAIN_ARGS.keys()
    attempt.must(run_verbs == set(VERBS), f"verbs not run: {set(VERBS) - run_verbs}")
    random = attempt.random
    relays, own = list(RELAYS), list(OWN)
    verbs, jobs = sorted(ARGS), list(OWN_JOBS)
    paired = list(RELAYS)
    kinds = list(product(HARSHER, repeat=2))
    if not attempt.full:
        relays, own, kinds = random.sample(relays, 1), random.sample(own, 2), random.sample(kinds, 2)
        local = [verb for verb in verbs if verb != "stripe_reconcile"]  # which asks Stripe a dozen times
        verbs, jobs, paired = random.sample(local, 2), random.sample(jobs, 1), relays
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # of futures that nobody waits for now
    async with House.open(attempt.folder) as house:
        besieged = Besieged(attempt, house)
        for route in (*own, *relays):
            await besieged.route(route, relayed=route in relays)
        for verb in verbs:
            await besieged.coroutine(VERB, verb, partial(verb_of, house, verb, ARGS[verb]))
        for job in jobs:
            await besieged.coroutine(JOB, job, partial(job_of, house, job))
        for route in paired:
            await besieged.pairs_of(route, kinds)
    points, pairs = besieged.points, besieged.pairs
    if attempt.full:
        besieged = await siege_by_agents(attempt, kinds)
        points, pairs = points + besieged.points, pairs + besieged.pairs
    attempt.figure(f"{points:,} suspension points struck, which is all of them, and {pairs:,} pairs")


async def siege_by_agents(attempt: Attempt, kinds: Sequence[Sequence[str]]) -> Besieged:
    """The same where vouchers are taken: what that adds."""
    from tests.chain.control import LocalChain
    from tests.proofs.agents import Dave, settings

    folder = attempt.folder / "agents"
    folder.mkdir()
    chain = LocalChain(folder)
    try:
        async with House.open(folder, **settings(chain)) as house:
            dave, besieged = Dave.come(house, chain), Besieged(attempt, house)
            routes, relays = dave.routes(), dave.relays()
            covered = {route.template for route in routes}
            every = {(method, path) for method, path, _ in app.DRAIN_ROUTES}
            attempt.must(covered == every, f"not asked: {every - covered}")
            for route in (*routes, *relays):
                await besieged.route(route, relayed=route in relays)
            for verb, args in DRAIN_ARGS.items():
                await besieged.coroutine(
                    VERB, verb, partial(verb_of, house, verb, args), dave.owed if verb == "drain_claim" else nothing
                )
            for job in DRAIN_JOBS:
                await besieged.coroutine(JOB, job, partial(job_of, house, job), dave.owed)
            await besieged.pairs_of(relays[1], kinds)
            await dave.paid(attempt)
        attempt.expect("a claim that was interrupted, and paid")
        return besieged
    finally:
        chain.close()


async def verb_of(house: House, verb: str, args: Args, alice: Resident) -> object:
    try:
        return await house.operator.call(verb, args(alice))
    except VerbError as error:
        return error


async def job_of(house: House, job: str, _alice: Resident) -> None:
    await app.Jobs(house.parts).once(job)


HANDLERS = len(OWN) + len(RELAYS) + len(app.DRAIN_ROUTES) + len(VOUCHED) + len(VERBS) + len(app.JOBS)

PROOF = Proof(
    name="interrupted",
    claim="A handler that is cancelled, or raised into, at any of its awaits holds nothing and hangs nobody.",
    short={"handlers": 6, "pairs": 1},
    full={"handlers": HANDLERS, "pairs": 800},
    run=run,
    limit_s=(60, 900),
)
