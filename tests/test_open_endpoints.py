"""What is open to all, what is open to browsers, and what is the operator's alone: liveness, models, prices, CORS,
readiness, metrics.
"""

from __future__ import annotations

import json
import re
import socket
import tomllib
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from goosestack import __version__
from goosestack.app import EXPOSED
from tests.asking import Reply, ask, chat, connect, directed, opened
from tests.world import PRICES, World

ELSEWHERE = {"x-forwarded-for": "203.0.113.9"}
"""As a proxy in front says it of a caller from outside."""


# --- liveness, models, prices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health"])
def test_liveness_is_open_and_says_name_and_version(world: World, path: str) -> None:
    reply = ask(world, "GET", path, headers=ELSEWHERE)
    assert (reply.status, reply.json()) == (200, {"status": "ok", "name": "goosestack", "version": __version__})
    head = ask(world, "HEAD", path)
    assert (head.status, head.data) == (200, b"")
    assert head.headers["content-length"] == str(len(reply.data))


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/keys", "GET, HEAD, POST"),
        ("/v1/keys/key_1", "DELETE"),
        ("/v1/models/gpt-4o", "GET, HEAD"),
        ("/v1/messages", "POST"),
    ],
)
def test_another_method_is_refused_with_all_that_are_possible(world: World, path: str, methods: str) -> None:
    reply = ask(world, "PATCH", path)
    assert (reply.status, reply.headers["allow"]) == (405, methods)


def test_models_have_the_one_shape_that_both_sdks_parse(world: World) -> None:
    listed = ask(world, "GET", "/v1/models").json()
    ids = [model["id"] for model in listed["data"]]
    assert set(listed) == {"object", "data", "has_more", "first_id", "last_id"}
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (ids[0], ids[-1])
    assert ids == sorted(set(ids)) and len(ids) > 20
    for model in listed["data"]:
        assert {"id", "object", "type", "created", "created_at", "owned_by", "display_name"} <= set(model)
        assert (model["object"], model["type"]) == ("model", "model")
        assert model["owned_by"] in ("openai", "anthropic")  # the providers that this world has a key of
        assert model["max_input_tokens"] > 0 and model["max_tokens"] >= 0
    assert ask(world, "GET", "/v1/models?limit=1000&after_id=x").json() == listed
    for base in ("/v1", "", "/v1/v1"):
        assert ask(world, "GET", f"{base}/models").json() == listed
        assert ask(world, "GET", f"{base}/models/{ids[0]}").json() == listed["data"][0]


def test_an_author_and_model_with_a_slash_is_one_model(folder: Path) -> None:
    world = World.create(folder, OPENROUTER_API_KEY="sk-or-somebodys", OPENAI_API_KEY="", ANTHROPIC_API_KEY="")
    try:
        ids = [model["id"] for model in ask(world, "GET", "/v1/models").json()["data"]]
        routed = next(name for name in ids if "/" in name)
        for path in (f"/v1/models/{routed}", f"/models/{routed}"):
            assert ask(world, "GET", path).json()["id"] == routed
    finally:
        world.close()


def test_prices_are_published_as_decimal_strings_for_every_model_that_is_sold(world: World) -> None:
    told = ask(world, "GET", "/v1/pricing").json()
    assert (told["currency"], told["generated"]) == ("USD", book()["generated"])
    assert list(told["models"]) == [model["id"] for model in ask(world, "GET", "/v1/models").json()["data"]]
    for name, entry in told["models"].items():
        assert re.fullmatch(r"\d+(\.\d+)?", entry["inputPer1kTokens"]), name
        assert ("outputPer1kTokens" in entry) == (entry["kind"] == "chat")
        assert min(entry[limit] for limit in ("contextTokens", "maxInputTokens")) > 0
        assert (entry["maxOutputTokens"] > 0) == (entry["kind"] == "chat")


def test_every_rate_that_may_be_charged_is_published(world: World) -> None:
    told = ask(world, "GET", "/v1/pricing").json()["models"]
    for name in tomllib.loads(PRICES.read_text())["models"]:
        del told[name]  # the operator's price, not the book's
    for model in book()["models"]:
        if model["provider"] not in ("openai", "anthropic") or model["id"] not in told or has_dates(model):
            continue
        entry = told[model["id"]]
        shown = [{"tier": "standard", "aboveInputTokens": 0, **entry}, *entry["otherRates"]]
        for rate in model["rates"]:
            (found,) = [one for one in shown if (one["tier"], one["aboveInputTokens"]) == (rate["tier"], rate["above"])]
            for name, field in (
                ("inputPer1kTokens", "input"),
                ("outputPer1kTokens", "output"),
                ("cacheReadPer1kTokens", "cache_read"),
                ("cacheWritePer1kTokens", "cache_write"),
                ("cacheWriteLongPer1kTokens", "cache_write_long"),
            ):
                if field in rate:
                    assert Decimal(found[name]) == Decimal(rate[field]).scaleb(-9), (model["id"], name)


def book() -> Any:
    return json.loads((files("goosestack") / "prices.json").read_text())


def has_dates(model: dict[str, Any]) -> bool:
    return len({rate["from"] for rate in model["rates"]}) > 1


# --- browsers -------------------------------------------------------------------------------------------------

PAGE = {"origin": "https://page.example"}


def preflight(world: World, path: str, method: str, origin: str = PAGE["origin"]) -> Reply:
    asked = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-provider-key,anthropic-version",
    }
    return ask(world, "OPTIONS", path, headers=asked)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/chat/completions", "POST"),
        ("/v1/messages", "POST"),
        ("/v1/usage", "GET"),
        ("/v1/keys", "POST"),
        ("/v1/keys/key_1", "DELETE"),
        ("/api/chat", "POST"),
        ("/api/me", "GET"),
    ],
)
def test_a_browser_may_ask_from_any_page_and_never_with_cookies(world: World, path: str, method: str) -> None:
    reply = preflight(world, path, method)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "*"
    assert method in str(reply.headers["access-control-allow-methods"])
    allowed = str(reply.headers["access-control-allow-headers"]).lower()
    assert {"authorization", "content-type", "x-provider-key", "anthropic-version"} <= set(re.split(r"[, ]+", allowed))
    assert reply.headers["access-control-allow-credentials"] is None
    assert str(reply.headers["x-request-id"]).startswith("req_")


def test_our_headers_are_exposed_to_pages_on_answers_streams_and_problems_alike(world: World) -> None:
    alice = world.customer()
    replies = [
        ask(world, "GET", "/v1/models", headers=PAGE),
        ask(world, "GET", "/v1/usage", headers=PAGE),
        ask(world, "GET", "/v1/nowhere", headers=PAGE),
        ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(), headers=PAGE),
        ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(stream=True), headers=PAGE),
        ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(model="none"), headers=PAGE),
        ask(world, "POST", "/api/chat", key=alice.key, body=chat(stream=True), headers=PAGE),
        ask(world, "POST", "/api/chat", key=alice.key, body=chat(n=2), headers=PAGE),
        ask(world, "GET", "/api/me", headers=PAGE),
    ]
    assert [reply.status for reply in replies] == [200, 401, 404, 200, 200, 404, 200, 400, 401]
    for reply in replies:
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["access-control-allow-credentials"] is None
        exposed = str(reply.headers["access-control-expose-headers"]).lower().split(", ")
        assert set(EXPOSED) <= set(exposed)
        ours = {name.lower() for name in reply.headers if name.lower().startswith(("x-goosestack", "x-ratelimit"))}
        assert ours <= set(exposed)


def test_only_the_pages_that_are_listed_may_read_answers(folder: Path) -> None:
    world = World.create(folder, CORS_ALLOWED_ORIGINS="https://page.example, https://other.example")
    try:
        for origin in ("https://page.example", "https://other.example"):
            reply = ask(world, "GET", "/v1/models", headers={"origin": origin})
            assert reply.headers["access-control-allow-origin"] == origin
            assert "Origin" in str(reply.headers["vary"])
            assert preflight(world, "/v1/usage", "GET", origin).status == 200
        for origin in ("https://evil.example", "https://page.example.evil.example", "null"):
            reply = ask(world, "GET", "/v1/models", headers={"origin": origin})
            assert reply.headers["access-control-allow-origin"] is None
            refused = preflight(world, "/v1/usage", "GET", origin)
            assert (refused.status, refused.headers["access-control-allow-origin"]) == (400, None)
            error = refused.json()["error"]
            assert refused.headers["content-type"] == "application/json"
            assert (error["type"], error["request_id"]) == ("validation_error", refused.headers["x-request-id"])
            assert error["message"] == "A page may not ask so from a browser: not allowed is its origin."
        assert (
            preflight(world, "/v1/usage", "PATCH", "https://page.example")
            .json()["error"]["message"]
            .endswith("method.")
        )
    finally:
        world.close()


# --- the operator's -------------------------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


TOKEN = "an-operators-token-of-32-bytes-or-more"


def test_readiness_and_metrics_are_for_the_machine_itself(world: World) -> None:
    for path in ("/readyz", "/metrics"):
        assert ask(world, "GET", path).status == 200
        for elsewhere in ("203.0.113.9", "127.0.0.1, 203.0.113.9", "2001:db8::1", "garbage", "<script>"):
            reply = ask(world, "GET", path, headers={"x-forwarded-for": elsewhere})
            assert (reply.status, reply.json()["error"]["type"]) == (403, "authorization_error"), elsewhere
        # without a token in the settings, none opens it
        assert ask(world, "GET", path, headers={**ELSEWHERE, "authorization": f"Bearer {TOKEN}"}).status == 403
        assert ask(world, "GET", path, headers={**ELSEWHERE, "authorization": "Bearer "}).status == 403


def test_readiness_and_metrics_open_to_the_operators_token_and_to_no_users_key(folder: Path) -> None:
    world = World.create(folder, ADMIN_TOKEN=TOKEN)
    try:
        alice = world.customer(0)
        for path in ("/readyz", "/metrics"):
            assert ask(world, "GET", path, key=TOKEN, headers=ELSEWHERE).status == 200
            for key in (alice.key, TOKEN + "x", TOKEN[:-1], ""):
                assert ask(world, "GET", path, key=key, headers=ELSEWHERE).status == 403
        assert ask(world, "GET", "/v1/usage", key=TOKEN).status == 401  # it is no user's key either
        assert TOKEN not in world.daemon.program.text()
    finally:
        world.close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_the_machine_itself_may_also_come_by_ipv6(folder: Path) -> None:
    world = World.create(folder, HOST="::1")
    world.daemon.url = world.daemon.url.replace("::1", "[::1]")
    try:
        assert ask(world, "GET", "/readyz").json()["ready"] is True
        assert ask(world, "GET", "/metrics").status == 200
        assert ask(world, "GET", "/metrics", headers={"x-forwarded-for": "2001:db8::1"}).status == 403
    finally:
        world.close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_on_a_socket_for_both_the_machine_itself_and_the_proxy_on_it_are_known_by_ipv4(folder: Path) -> None:
    world = World.create(folder, HOST="::")
    world.daemon.url = world.daemon.url.replace("[::]", "127.0.0.1").replace("::", "127.0.0.1")
    try:
        for path in ("/readyz", "/metrics"):
            assert ask(world, "GET", path).status == 200
            for loopback in ("::ffff:127.0.0.1", "127.0.0.1", "::1"):
                assert ask(world, "GET", path, headers={"x-forwarded-for": loopback}).status == 200
                passed_on = {"x-forwarded-for": f"203.0.113.9, {loopback}"}
                assert ask(world, "GET", path, headers=passed_on).status == 403
            for elsewhere in ("203.0.113.9", "::ffff:203.0.113.9", "2001:db8::1", "::127.0.0.1", "::ffff:0:127.0.0.1"):
                assert ask(world, "GET", path, headers={"x-forwarded-for": elsewhere}).status == 403, elsewhere
    finally:
        world.close()


def test_readiness_tells_of_books_upstreams_disk_and_what_is_in_flight(world: World) -> None:
    alice = world.customer()
    slow = chat(directed("Hi", words=40, delay_ms=20), stream=True)
    with opened(world, "/v1/chat/completions", key=alice.key, body=slow) as stream:
        assert stream.readline()
        told = ask(world, "GET", "/readyz").json()
        stream.read()
    assert told["ready"] is True and told["stopping"] is False
    assert told["books"]["ok"] is True and told["books"]["wrong"] == []
    assert told["books"]["checked_at"] is not None
    assert told["upstreams"] == ["anthropic", "openai"]
    assert told["disk"] == {"ok": True}
    assert told["in_flight"] == 1


def measured(world: World) -> dict[str, float]:
    """The samples of `/metrics`, summed by name."""
    reply = ask(world, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(reply.data.decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def test_metrics_count_requests_tokens_cents_commits_and_what_needs_a_look(world: World) -> None:
    alice, before = world.customer(), measured(world)
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    told = chat(directed("Hi", usage=usage))
    assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=told).status == 200
    lost = chat(directed("Hi", usage_mode="missing"))
    assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=lost).status == 200
    after = measured(world)

    def grew(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    first, second = world.ended_rows(alice, 2)
    assert (first["input_tokens"], first["output_tokens"]) == (100, 50)
    tokens = sum(row["input_tokens"] + row["output_tokens"] for row in (first, second))
    assert grew("goosestack_tokens_total") == tokens
    assert grew("goosestack_requests_total") == 2
    assert grew("goosestack_billed_cents_total") == first["billed"] + second["billed"] == 1
    assert grew("goosestack_estimates_total") == 1
    assert grew("goosestack_alerts_total") >= 1
    assert grew("goosestack_request_seconds_count") == grew("goosestack_first_byte_seconds_count") == 2
    assert grew("goosestack_commit_seconds_count") >= 4 and grew("goosestack_commit_verbs_sum") >= 4
    assert grew("goosestack_shortfall_nanodollars_total") == 0
    assert after["goosestack_open_holds"] == after["goosestack_books_wrong"] == after["goosestack_disk_full"] == 0


def test_metrics_and_logs_hold_no_key_no_prompt_and_no_path_of_a_strangers_making(world: World) -> None:
    alice, canary = world.customer(), "canary-prompt-of-alice"
    assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(canary)).status == 200
    ask(world, "GET", "/v1/canary-path-of-mallory?api_key=gsk_canary-of-mallory-0123456789", key=alice.key)
    text = ask(world, "GET", "/metrics").data.decode()
    logged = world.daemon.program.text()
    assert "canary" not in text and alice.id not in text
    for secret in (alice.key, canary, "gsk_canary"):
        assert secret not in logged
    assert all(isinstance(json.loads(line), dict) for line in logged.splitlines())


def test_a_connection_serves_one_request_after_another(world: World) -> None:
    alice, connection = world.customer(), connect(world)
    try:
        seen = set()
        for body in (chat(), chat(stream=True), chat(model="none"), chat()):
            head = {"authorization": f"Bearer {alice.key}", "content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
            response = connection.getresponse()
            response.read()
            seen.add(response.headers["x-request-id"])
        assert len(seen) == 4
    finally:
        connection.close()
