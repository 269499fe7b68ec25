"""`/api/chat` and `/api/me`, for apps: five fields that any model takes, and what the caller has left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from goosestack import pricing
from goosestack.config import Config, load
from goosestack.errors import Invalid, Refusal
from goosestack.upstream import Upstreams
from goosestack.wire import Body
from goosestack.wiring import mobile_chat_of, providers_of
from tests.asking import Reply, ask, directed, opened
from tests.test_serve import refusal
from tests.world import Customer, World

HOUSE = '[models."house/{}"]\nprovider = "openai"\ninput = 1\noutput = 1\ncontext = 8192\nmax_output = 4096\n'
STRICT = "temperature = false\n"
QUESTION = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that names a model for apps, has an alias for one that is gone, and prices one that will be."""
    folder = tmp_path_factory.mktemp("mobile")
    (folder / "prices.toml").write_text(
        '[aliases]\n"gpt-3.5-turbo" = "gpt-5.4-mini"\n' + HOUSE.format("house") + HOUSE.format("strict") + STRICT
    )
    world = World.create(folder, CHAT_DEFAULT_MODEL="gpt-4o-mini", PRICES_FILE=str(folder / "prices.toml"))
    yield world
    world.close()


@pytest.fixture
def alice(world: World) -> Customer:
    return world.customer()


def told(world: World, alice: Customer, **body: object) -> Reply:
    return ask(world, "POST", "/api/chat", key=alice.key, body={"messages": QUESTION, **body})


def sent(world: World, alice: Customer, **body: object) -> dict[str, Any]:
    """What such a request becomes upstream."""
    start = world.upstream.mark()
    reply = told(world, alice, **body)
    assert reply.status == 200, reply.data
    (dispatch,) = world.upstream.dispatches(start)
    assert dispatch["path"] == "/v1/chat/completions"
    became: dict[str, Any] = dispatch["body"]
    return became


def refused(world: World, alice: Customer, status: int, **body: object) -> str:
    start = world.upstream.mark()
    reply = told(world, alice, **body)
    told_json = reply.json()
    assert (reply.status, set(told_json["error"])) == (status, {"message", "type", "param", "code"}), reply.data
    assert world.upstream.dispatches(start) == [] == world.rows(alice)
    return str(told_json["error"]["message"])


# --- the translation ------------------------------------------------------------------------------------------


def test_the_least_request_is_messages_alone(world: World, alice: Customer) -> None:
    assert sent(world, alice) == {"messages": QUESTION, "model": "gpt-4o-mini", "service_tier": "default"}


def test_the_answer_is_the_providers_and_is_paid_for_like_any_other(world: World, alice: Customer) -> None:
    reply = told(world, alice)
    assert reply.json()["object"] == "chat.completion"
    assert reply.json()["choices"][0]["message"]["content"]
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["wire"], row["model"]) == ("settled", "openai_chat", "gpt-4o-mini")
    assert reply.headers["x-request-id"] == row["id"]
    assert "x-goosestack-cost-usd" in reply.headers


def test_a_stream_is_the_providers_frames_to_its_end(world: World, alice: Customer) -> None:
    body = {"messages": [{"role": "user", "content": directed("Go", words=5)}], "stream": True}
    with opened(world, "/api/chat", key=alice.key, body=body) as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        frames = [line for line in stream.read().split(b"\n\n") if line.startswith(b"data: ")]
    assert frames[-1] == b"data: [DONE]"
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["estimated"]) == ("settled", 0)


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5.4-mini", "gpt-5.5"])
def test_max_tokens_goes_in_the_field_that_the_model_takes(world: World, alice: Customer, model: str) -> None:
    body = sent(world, alice, model=model, max_tokens=300)
    assert body["max_completion_tokens"] == 300
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    ("model", "stays"),
    [
        ("gpt-4o-mini", True),
        ("gpt-5.4-mini", False),
        ("gpt-5.5", False),
        ("house/house", True),
        ("house/strict", False),
    ],
)
def test_a_temperature_is_kept_from_models_that_refuse_it_and_from_no_other(
    world: World, alice: Customer, model: str, *, stays: bool
) -> None:
    for temperature in (0, 0.7, 2):
        body = sent(world, alice, model=model, temperature=temperature)
        assert body.get("temperature") == (temperature if stays else None)


def test_the_operators_name_for_a_model_that_is_gone_is_the_model_that_took_its_place(
    world: World, alice: Customer
) -> None:
    body = sent(world, alice, model="gpt-3.5-turbo", temperature=0.5, max_tokens=300)
    assert body["model"] == "gpt-5.4-mini"
    assert "temperature" not in body


def test_null_is_the_same_as_nothing(world: World, alice: Customer) -> None:
    nothing = {"model": None, "temperature": None, "max_tokens": None, "stream": None}
    assert sent(world, alice, **nothing) == sent(world, alice)


# --- what is refused ------------------------------------------------------------------------------------------


def test_a_field_of_another_api_is_refused_by_name(world: World, alice: Customer) -> None:
    for name in ("max_completion_tokens", "tools", "n", "user", "api_base", "stream_options", "system", "prompt", ""):
        assert f"unknown field `{name}`" in refused(world, alice, 400, **{name: 1})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", ["0.5", -0.1, 2.1, True, [], {}]),
        ("max_tokens", [0, -1, 1.5, "300", True, 10**9]),
        ("stream", ["true", 1, []]),
        ("model", ["", 5, [], "x" * 300, "a\nb"]),
        ("messages", [None, [], {}, "Hello", [{}], [{"role": "robot", "content": "Hello"}]]),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(
    world: World, alice: Customer, field: str, values: list[object]
) -> None:
    for value in values:
        assert field in refused(world, alice, 400, **{field: value})


def test_a_model_that_is_not_sold_is_not_found(world: World, alice: Customer) -> None:
    assert "`gpt-1` is not sold here" in refused(world, alice, 404, model="gpt-1")
    assert "/v1/messages" in refused(world, alice, 404, model="claude-haiku-4-5")


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("gpt-4-32k", "2025-06-06"),
        ("gpt-3.5-turbo-0301", "2024-09-13"),
        ("o1-mini", "2025-10-27"),
        ("o1", "2026-10-23"),
    ],
)
def test_a_model_that_was_gone_before_this_version_is_refused_by_its_day(
    world: World, alice: Customer, name: str, day: str
) -> None:
    assert f"the model `{name}` was retired on {day}; `GET /v1/models`" in refused(world, alice, 400, model=name)
    reply = ask(world, "POST", "/v1/chat/completions", key=alice.key, body={"messages": QUESTION, "model": name})
    assert (reply.status, f": it was retired on {day}" in reply.json()["error"]["message"]) == (404, True)
    alias = f'[aliases]\n"{name}" = "gpt-5.4-mini"\n'
    asked: Body = {"messages": QUESTION, "model": name}
    assert mobile_chat_of(upstreams_of(alias), None, lambda: "2026-11-21").parse(asked, own_key=False).model == name


def test_a_model_that_is_gone_and_has_no_alias_is_refused_from_that_day_on() -> None:
    entries = json.loads((files("goosestack") / "prices.json").read_text())["models"]
    name, day = next(
        (entry["id"], entry["retires"])
        for entry in entries
        if entry["provider"] == "openai" and entry["kind"] == "chat" and entry["retires"] is not None
    )
    asked: Body = {"messages": QUESTION, "model": name}
    assert mobile_chat_of(upstreams_of(""), None, lambda: "2026-01-01").parse(dict(asked), own_key=False).model == name
    with pytest.raises(Invalid, match=rf"`{name}` was retired on {day}; `GET /v1/models` lists") as refused:
        mobile_chat_of(upstreams_of(""), None, lambda: str(day)).parse(dict(asked), own_key=False)
    assert (refused.value.status, refused.value.param) == (400, "model")
    alias = f'[aliases]\n"{name}" = "gpt-5.4-mini"\n'
    assert mobile_chat_of(upstreams_of(alias), None, lambda: str(day)).parse(dict(asked), own_key=False).model == name
    with pytest.raises(Refusal, match=f"it was retired on {day}"):
        mobile_chat_of(upstreams_of(""), name, lambda: str(day))


@pytest.mark.parametrize(
    ("provider", "name", "takes"),
    [
        ("openai", "gpt-4o-mini", True),
        ("openai", "gpt-5.5", False),
        ("openrouter", "openai/gpt-5.5", False),
        ("openrouter", "openai/gpt-4o-mini", True),
        ("anthropic", "claude-haiku-4-5", True),
        ("openrouter", "anthropic/claude-haiku-4.5", True),
        ("litellm", "claude-haiku-4-5", True),
        ("litellm", "gpt-5.4", False),
    ],
)
def test_the_book_knows_which_models_refuse_a_temperature_wherever_they_are_sold(
    provider: str, name: str, takes: bool
) -> None:
    moved = f'[models."{name}"]\nprovider = "litellm"\n' if provider == "litellm" else ""
    model = pricing.load((files("goosestack") / "prices.json").read_text(), moved).find(provider, name)
    assert model is not None and model.temperature == takes
    assert model.reasoning == ("4o" not in name)


def upstreams_of(prices: str) -> Upstreams:
    """What is sold with a key of OpenAI's and this `prices.toml`."""
    book = pricing.load((files("goosestack") / "prices.json").read_text(), prices)
    return Upstreams(providers_of(Config(openai_api_key="sk-any")), book)


def test_without_a_default_the_app_must_name_its_model(shared_world: World) -> None:
    alice = shared_world.customer()
    assert "`model`" in refused(shared_world, alice, 400)
    assert told(shared_world, alice, model="gpt-4o-mini").status == 200


def test_no_start_with_a_default_that_is_not_sold(folder: Path) -> None:
    env = {"OPENAI_API_KEY": "sk-any", "CHAT_DEFAULT_MODEL": "gpt-1"}
    assert refusal(folder, env).startswith("CHAT_DEFAULT_MODEL: The model `gpt-1` is not sold here")


@pytest.mark.parametrize(
    ("headers", "status"), [({"content-type": "text/plain"}, 415), ({"content-encoding": "gzip"}, 415)]
)
def test_errors_are_in_the_format_of_the_answer(
    world: World, alice: Customer, headers: dict[str, str], status: int
) -> None:
    sent_headers = {"content-type": "application/json", **headers}
    reply = ask(world, "POST", "/api/chat", key=alice.key, data=b"{}", headers=sent_headers)
    error = reply.json()["error"]
    assert (reply.status, set(error)) == (status, {"message", "type", "param", "code"})


# --- what is left ---------------------------------------------------------------------------------------------


def test_me_says_who_asks_and_what_they_have(world: World, alice: Customer) -> None:
    assert told(world, alice).status == 200
    world.ended_rows(alice, 1)
    me = ask(world, "GET", "/api/me", key=alice.key).json()
    plan = {"plan", "until", "quota", "used", "held", "remaining", "reset", "overage"}
    assert set(me) == {"user", *plan, "limits", "balance"}
    assert me["user"]["id"] == alice.id
    assert me["user"]["email"] == "alice@example.com"
    assert {me[name] for name in plan} == {None}  # no plan rations her
    assert me["limits"] == {"requests": 1_000_000, "window_s": 60, "in_flight": None, "models": ["*"]}
    funds = world.funds(alice)
    assert {name: me["balance"][name] for name in ("balance_cents", "held_cents", "available_cents")} == {
        name: funds[name] for name in ("balance_cents", "held_cents", "available_cents")
    }
    assert me["balance"]["balance_usd"] == f"{funds['balance_cents'] / 100:.2f}"


def test_me_is_nobodys_without_a_credential(world: World) -> None:
    reply = ask(world, "GET", "/api/me")
    assert reply.status == 401
    assert reply.json()["error"]["type"] == "authentication_error"


def test_the_settings_of_a_project_go_together(folder: Path) -> None:
    key = {"OPENAI_API_KEY": "sk-any"}
    url, secret = {"SUPABASE_URL": "https://x.supabase.co"}, {"JWT_SECRET": "s" * 40}
    alone = "JWT_SECRET and SUPABASE_CHECK_S need SUPABASE_URL, which says whose tokens are meant"
    assert refusal(folder, key | secret) == alone
    assert refusal(folder, key | {"SUPABASE_CHECK_S": "60"}) == alone
    told = refusal(folder, key | url | {"SUPABASE_CHECK_S": "60"})
    assert told == "SUPABASE_CHECK_S needs SUPABASE_ANON_KEY, which the project is asked with"
    for short in ("a", "s" * 31):
        assert refusal(folder, key | url | {"JWT_SECRET": short}) == "JWT_SECRET must have at least 32 bytes"
    with pytest.raises(Refusal, match="must not end in /auth/v1"):
        load({"SUPABASE_URL": "https://x.supabase.co/auth/v1"}, folder)
    with pytest.raises(Refusal, match="printable ASCII without blanks"):
        load({"JWT_SECRET": "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"}, folder)
