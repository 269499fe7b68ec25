"""On every route there is: what is wrong has its status, and a body of a known type in the format of that route."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from goosestack import app, errors
from goosestack.errors import Problem
from goosestack.wire import mobile_chat
from tests.asking import ask
from tests.mallory import MESSAGES, Mallory, Reply, asks, assert_error, dialect
from tests.world import World

WIRES = [("POST", f"/v1{wire.path}") for wire in app.WIRES] + [("POST", mobile_chat.ROUTE)]
OWN = [(method, path.replace("{id:path}", "gpt-4o-mini").replace("{id}", "x")) for method, path, _ in app.ROUTES]
ROUTES = WIRES + OWN
OPEN = ("/", "/health", "/v1/models", "/v1/models/gpt-4o-mini", "/v1/pricing")
OPERATORS = ("/readyz", "/metrics")
UNLIMITED = ("/", "/health", *OPERATORS)
CALLERS = [
    (method, path)
    for method, path in ROUTES
    if path not in (*OPEN, *OPERATORS) and not path.startswith("/billing/")  # they need something to sell
]


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world) as mallory:
        yield mallory


def sent_to(method: str, path: str) -> dict[str, object] | None:
    if method != "POST":
        return None
    if path == "/v1/keys":
        return {"name": "more"}
    return asks("/v1/chat/completions" if path == mobile_chat.ROUTE else path)


def assert_typed(reply: Reply, path: str, problem: type[Problem], headers: Mapping[str, str] = {}) -> None:
    """The problem, in the names that the format of this route has for it."""
    spoken = dialect(path, headers)
    assert_error(reply, "openai" if path.startswith("/v1/models") else spoken, problem.status)
    error = reply.json["error"]
    if path.startswith("/v1/models") or spoken == "openai":
        assert (error["type"], error["code"]) == problem.openai
    else:
        assert error["type"] == (problem.anthropic if spoken == "anthropic" else problem.type)


@pytest.mark.parametrize(("method", "path"), CALLERS)
def test_400_for_what_makes_no_sense(mallory: Mallory, method: str, path: str) -> None:
    if method == "POST":
        for sent in (b"{", b"[]", b'{"a":1,"a":2}', b"\xff", b"{}" if path != "/v1/keys" else b'{"name":5}'):
            reply = mallory.ask(path, sent, method=method)
            assert_typed(reply, path, errors.Invalid)
    twice = {"authorization": f"Bearer {mallory.customer.key}", "x-api-key": "another"}
    assert_typed(mallory.ask(path, sent_to(method, path), twice, method=method), path, errors.CredentialConflict)
    if path == "/v1/usage":
        assert_typed(mallory.ask(f"{path}?limit=x", method=method), path, errors.Invalid)
    mallory.nothing_happened()


@pytest.mark.parametrize(("method", "path"), CALLERS)
def test_401_without_a_credential_that_is_good(mallory: Mallory, method: str, path: str) -> None:
    bad = {"authorization": "Bearer gsk_" + "A" * 44}
    assert_typed(mallory.ask(path, sent_to(method, path), bad, method=method), path, errors.NotAuthenticated)
    if (method, path) != ("POST", "/v1/keys"):
        assert_typed(mallory.ask(path, sent_to(method, path), key=None, method=method), path, errors.NotAuthenticated)
    mallory.nothing_happened()


@pytest.mark.parametrize(("method", "path"), WIRES)
def test_403_for_what_a_caller_may_not_do(mallory: Mallory, method: str, path: str) -> None:
    own = {"x-provider-key": "sk-ant-own-0001" if path.startswith(MESSAGES) else "sk-own-0001"}
    assert_typed(mallory.ask(path, sent_to(method, path), own, method=method), path, errors.NotPro)
    mallory.nothing_happened()


@pytest.mark.parametrize("path", OPERATORS)
def test_403_for_what_is_the_operators(mallory: Mallory, path: str) -> None:
    elsewhere = {"x-forwarded-for": "203.0.113.9"}
    assert_typed(mallory.ask(path, None, elsewhere, method="GET"), path, errors.NotPermitted)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_405_for_another_method(mallory: Mallory, method: str, path: str) -> None:
    for other in ("PATCH", "PUT", "TRACE"):
        reply = mallory.ask(path, None, method=other)
        assert_typed(reply, path, errors.MethodNotAllowed)
        assert method in reply.headers["allow"].split(", ")


def test_429_for_asking_too_often(folder: Path) -> None:
    world = World.create(folder, RATE_LIMIT_MAX_REQUESTS="1")
    try:
        for method, path in ROUTES:
            if path == "/billing/webhook":
                continue  # Stripe is not counted, but where nothing is sold there is nothing
            with Mallory(world, cents=0) as mallory:
                key = None if path in OPEN else ""
                mallory.ask(path, sent_to(method, path), key=key, method=method)
                reply = mallory.ask(path, sent_to(method, path), key=key, method=method)
                if path in UNLIMITED:
                    assert reply.status == 200
                else:
                    assert_typed(reply, path, errors.RateLimited)
                    assert int(reply.headers["retry-after"]) >= 1
    finally:
        world.close()


def test_500_for_a_fault_of_ours_says_nothing_of_it(folder: Path) -> None:
    """Somebody takes a table away under the running daemon: whatever needs it cannot go well."""
    world = World.create(folder)
    try:
        with closing(sqlite3.connect(world.daemon.db, isolation_level=None)) as db:
            for method, path in CALLERS:
                alice = world.customer()
                db.execute("ALTER TABLE api_keys RENAME TO nowhere")
                told = ask(world, method, path, key=alice.key, body=sent_to(method, path))
                db.execute("ALTER TABLE nowhere RENAME TO api_keys")
                reply = Reply(told.status, {name.lower(): text for name, text in told.headers.items()}, told.data)
                assert_typed(reply, path, errors.Internal)
                assert "api_keys" not in reply.message and "sqlite" not in reply.body.decode().lower()
        assert '"kind":"fault","error":"OperationalError"' in world.daemon.program.text()
    finally:
        world.close()
