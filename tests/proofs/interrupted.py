"""Something is thrown into every handler, at each of its awaits: a cancellation, or an error that nobody foresaw.

Each route of the application, each verb of the operator, each job and each meter is driven by hand
(`tests/interruptions.py`), and interrupted at its first suspension, at its second, and so on, until a run comes to its
end undisturbed, and wherever else it was seen to wait; so are the tasks that it starts, the relay of each request, and,
of the relay, each pair of suspensions. After every single one nothing may be held, no room and no lock be kept, and
nothing hang; after every handler the house must still serve, and the books add up.

There is a house that sells credits, one whose callers sign in and have plans, with notices and meters (`apps`), and
one where vouchers are taken (`agents`). In full, no place in the product where handlers wait may be left out, but those
that `unreached` lists and explains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

from goosestack import app
from goosestack.admin import VERBS
from goosestack.wire import mobile_chat
from tests.asking import chat, directed, message
from tests.awaits import Place, all_places
from tests.interruptions import HARSHER, Asked, House, Resident, bearer
from tests.proofs import apps, selling, unreached
from tests.proofs.proof import Attempt, Proof
from tests.proofs.siege import (
    JOB,
    VERB,
    Args,
    Before,
    Besieged,
    Route,
    asking,
    background,
    job_of,
    nothing,
    plainly,
    verb_of,
)


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
    "a long answer": (EMBEDDINGS, {"model": "text-embedding-3-small", "input": ["Hello"] * 20}, 200),
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
SLOW = "a slow reader"
"""Whose requests take so long that they are not interrupted in pairs, nor in short."""

RELAYS = [
    *(
        Route(name, ("POST", path), status, asking("POST", path, body))
        for name, (path, body, status) in RELAYED.items()
    ),
    Route("what cannot be paid", ("POST", CHAT), 402, asking("POST", CHAT, apps.DEAR), cents=1),
    Route("a large body", ("POST", CHAT), 200, asking("POST", CHAT, chat("goose " * 12_000)), cents=10_000),
    Route(
        SLOW,
        ("POST", CHAT),
        200,
        asking("POST", CHAT, chat(told(words=4_000, fault="coalesced"), **STREAM), pause_s=0.1),
    ),
    Route("a large body in other letters", ("POST", CHAT), 200, asking("POST", CHAT, chat("Gänse " * 12_000)), 10_000),
    Route(
        "what its provider must count", ("POST", MESSAGES), 402, asking("POST", MESSAGES, message(max_tokens=9_000)), 1
    ),
]


async def revoking(house: House, alice: Resident) -> Asked:
    return Asked("DELETE", f"/v1/keys/{alice.key_id}", None, bearer(alice))


async def busy(house: House) -> None:
    """A stream is under way, and has begun."""
    alice, gateway = await house.resident(), house.parts.gateway
    before, body = set(gateway.live), chat(told(words=30_000, delay_ms=2), **STREAM)
    background.add(asyncio.create_task(house.ask(Asked("POST", CHAT, body, bearer(alice)))))
    while not any(relay.head.done() for id, relay in gateway.live.items() if id not in before):
        await asyncio.sleep(0.001)


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
    *selling.ROUTES,
    Route("readiness", ("GET", "/readyz"), 200, asking("GET", "/readyz")),
    Route("metrics", ("GET", "/metrics"), 200, asking("GET", "/metrics")),
)

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
    "stripe_reviewed": lambda alice: {"event": selling.DOUBT},
    "meters_status": lambda alice: {"letters": 5},
}
DRAIN_ARGS: dict[str, Args] = {
    "drain_status": lambda alice: {},
    "drain_claim": lambda alice: {"force": True},
    "drain_channels": lambda alice: {},
}
DRAIN_JOBS = {"a claim": "claim", "what became of a claim": "claim", "watch_terms": "watch_terms"}
LEAST_ROWS = 0.98
"""Of the suspensions at which a relay was struck by itself, where pairs must have begun."""

JOBS = ("tick", "journal", "check", "forget")


def run(attempt: Attempt) -> None:
    """Every handler, or a few that the seed draws."""
    attempt.expect("an error in a handler", "an error in a relay", "an error in a verb or a job")
    attempt.expect("a second error while the first is dealt with")
    asyncio.run(siege(attempt))


async def siege(attempt: Attempt) -> None:
    """Open the houses, one after the other, and throw."""
    covered = {route.template for route in (*OWN, *RELAYS)}
    every = {(method, path) for method, path, _ in app.ROUTES} | {("POST", f"/v1{wire.path}") for wire in app.WIRES}
    attempt.must(covered == every | {("POST", mobile_chat.ROUTE)}, f"not asked: {every - covered}")
    run_verbs = {*ARGS, *apps.VERBS, *DRAIN_ARGS}
    attempt.must(run_verbs == set(VERBS), f"verbs not run: {set(VERBS) - run_verbs}")
    run_jobs = {*JOBS, "top_up", *apps.JOBS, *DRAIN_JOBS.values()}
    attempt.must(run_jobs == {name for name, _ in app.JOBS}, f"jobs not run: {run_jobs}")
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # of futures that nobody waits for now
    kinds = list(product(HARSHER, repeat=2))
    houses = [await siege_of_house(attempt, kinds), *await apps.siege(attempt, kinds)]
    if attempt.full:
        from tests.proofs import agents

        houses.append(await agents.siege(attempt, kinds))
    tell(attempt, houses)


async def siege_of_house(attempt: Attempt, kinds: Sequence[Sequence[str]]) -> Besieged:
    """All that a house has that sells credits."""
    relays, own, verbs, jobs = list(RELAYS), list(OWN), sorted(ARGS), list(JOBS)
    paired = [route for route in relays if route.name != SLOW]
    if not attempt.full:
        random = attempt.random
        relays, own, kinds = random.sample(paired, 1), random.sample(own, 2), random.sample(kinds, 2)
        local = [verb for verb in verbs if verb != "stripe_reconcile"]  # which asks Stripe a dozen times
        verbs, jobs, paired = random.sample(local, 1), random.sample(jobs, 1), relays
    async with House.open(attempt.folder) as house:
        besieged, desk = Besieged(attempt, house), selling.Desk(house)
        for route in (*own, *relays):
            await besieged.route(route, relayed=route in relays)
        for verb in verbs:
            first = {"stripe_reviewed": desk.doubt, "stripe_reconcile": desk.paid}.get(verb, nothing)
            await besieged.coroutine(VERB, verb, partial(verb_of, house, verb, ARGS[verb]), first)
        turns: list[tuple[str, str, Before]] = [
            (job, job, partial(busy, house) if job == "journal" else nothing) for job in jobs
        ]
        if attempt.full:
            turns += [(name, "top_up", before) for name, before in desk.top_ups()]
        for name, job, before in turns:
            await besieged.coroutine(JOB, name, partial(job_of, house, job), before, partial(plainly, house, job))
        for route in paired:
            await besieged.pairs_of(route, kinds)
        return besieged


def tell(attempt: Attempt, houses: Sequence[Besieged]) -> None:
    """How many suspensions were struck, alone and in pairs; and that there is no place in the product where handlers
    wait that was not."""
    points, strikes = sum(house.distinct for house in houses), sum(house.points.total() for house in houses)
    pairs, rows = sum(house.pairs for house in houses), sum(house.rows for house in houses)
    singles = sum(house.singles for house in houses)
    attempt.figure(f"{points:,} suspension points of {attempt.reached['handlers']} handlers, {strikes:,} strikes")
    attempt.figure(f"{pairs:,} pairs, whose first was at {rows:,} of {singles:,} suspensions")
    attempt.must(rows >= LEAST_ROWS * singles, f"pairs began at {rows:,} of {singles:,} suspensions")
    struck, waits = set[Place]().union(*(house.places for house in houses)), all_places()
    if attempt.full:
        wrong, left = unreached.judge(waits, struck)
        attempt.figure(f"struck at {len(struck):,} of {len(waits - left):,} places where handlers wait in the product")
        attempt.must(not wrong, f"{len(wrong)} places are not as they are listed: {'; '.join(wrong)}")
    else:
        attempt.figure(f"struck at {len(struck):,} of the product's {len(waits):,} places that wait")


HANDLERS = (
    sum(map(len, (OWN, RELAYS, VERBS, JOBS, selling.TOP_UPS)))
    + sum(map(len, (apps.ROUTES, apps.BY_TOKEN, apps.TOLD, apps.JOBS, apps.METERS)))
    + sum(map(len, (app.DRAIN_ROUTES, VOUCHED, DRAIN_JOBS)))
)

PROOF = Proof(
    name="interrupted",
    claim="A handler that is cancelled, or raised into, at any of its awaits holds nothing and hangs nobody.",
    short={"handlers": 6, "pairs": 1},
    full={"handlers": HANDLERS, "pairs": 1_000},
    run=run,
    limit_s=(60, 900),
)
