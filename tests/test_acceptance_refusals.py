"""What a caller sees when something is refused or goes wrong, as the vendors' own SDKs raise it: the right class, no
retry that cannot help, never a clean end of an answer that broke off, and never a key of ours in anybody's hands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.asking import Reply, ask, chat, connect, directed, message
from tests.world import OPENAI_KEY, Customer, World

GPT, CLAUDE = "gpt-4o-mini", "claude-haiku-4-5"
Call = Callable[[World, str, str], Any]
"""One call: of a world, with a key, asking a question."""


def openai_chat(world: World, key: str, question: str = "Hi", retries: int = 2, **fields: Any) -> Any:
    body = {"model": GPT, "messages": [{"role": "user", "content": question}], **fields}
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=key, max_retries=retries) as client:
        answer = client.chat.completions.create(**body)
        return list(answer) if fields.get("stream") else answer


def anthropic_message(world: World, key: str, question: str = "Hi", retries: int = 2, **fields: Any) -> Any:
    body = {"model": CLAUDE, "max_tokens": 300, "messages": [{"role": "user", "content": question}], **fields}
    with anthropic.Anthropic(base_url=world.url, api_key=key, max_retries=retries) as client:
        answer = client.messages.create(**body)
        return list(answer) if fields.get("stream") else answer


# --- the right class ------------------------------------------------------------------------------------------


def test_an_unknown_key_is_an_authentication_error(world: World) -> None:
    with pytest.raises(openai.AuthenticationError) as by_openai:
        openai_chat(world, "gsk_" + "0" * 44)
    with pytest.raises(anthropic.AuthenticationError) as by_anthropic:
        anthropic_message(world, "gsk_" + "0" * 44)
    assert by_openai.value.code == "invalid_api_key"
    assert by_anthropic.value.type == "authentication_error"


def test_too_few_credits_are_a_402_that_says_what_is_missing_and_is_never_retried(world: World) -> None:
    alice, start = world.customer(cents=0), world.upstream.mark()
    asked = answers_of(world, "402")
    with pytest.raises(openai.APIStatusError) as by_openai:
        openai_chat(world, alice.key)
    with pytest.raises(anthropic.PaymentRequiredError) as by_anthropic:
        anthropic_message(world, alice.key)
    assert (by_openai.value.status_code, by_openai.value.code) == (402, "insufficient_balance")
    assert by_openai.value.type == "insufficient_quota"
    assert by_anthropic.value.type == "billing_error"
    for error in (by_openai.value, by_anthropic.value):
        assert error.response.headers["x-should-retry"] == "false"
        assert re.search(r"needs up to \$0\.\d{4}, and \$0\.0000 is available\.", str(error))
        assert "About 0 output tokens are affordable. Ask the operator of this gateway to top up." in str(error)
        assert error.request_id == error.response.headers["request-id"]
    assert answers_of(world, "402") == asked + 2  # both SDKs would have tried three times each
    assert world.upstream.dispatches(start) == []
    assert world.rows(alice) == []


def answers_of(world: World, status: str) -> int:
    """How many answers of this status the daemon has given."""
    text = ask(world, "GET", "/metrics").data.decode()
    counts = re.findall(rf'^goosestack_answers_total{{.*status="{status}".*}} ([\d.]+)$', text, re.MULTILINE)
    return round(sum(map(float, counts)))


def test_a_cap_that_cannot_be_afforded_is_a_402_that_says_how_many_tokens_would_be(world: World) -> None:
    alice = world.customer(cents=1)
    with pytest.raises(openai.APIStatusError) as refused:
        openai_chat(world, alice.key, model="gpt-5.4-mini", max_completion_tokens=100_000)
    found = re.search(r"About (\d+) output tokens are affordable", str(refused.value))
    assert found is not None
    affordable = int(found.group(1))
    assert openai_chat(world, alice.key, model="gpt-5.4-mini", max_completion_tokens=affordable).usage


def test_a_model_that_is_not_sold_is_not_found(world: World) -> None:
    alice, start = world.customer(), world.upstream.mark()
    with pytest.raises(openai.NotFoundError) as by_openai:
        openai_chat(world, alice.key, model="gpt-9-imaginary")
    with pytest.raises(anthropic.NotFoundError) as by_anthropic:
        anthropic_message(world, alice.key, model="claude-imaginary")
    with pytest.raises(openai.NotFoundError, match=r"it is on /v1/messages"):
        openai_chat(world, alice.key, model=CLAUDE)
    assert (by_openai.value.code, by_openai.value.param) == ("model_not_found", "model")
    assert by_anthropic.value.type == "not_found_error"
    assert world.upstream.dispatches(start) == world.rows(alice) == []


def test_what_cannot_be_bounded_is_a_bad_request_that_names_the_field(world: World) -> None:
    alice = world.customer()
    with pytest.raises(openai.BadRequestError) as by_openai:
        openai_chat(world, alice.key, prediction={"type": "content", "content": "x"})
    with pytest.raises(anthropic.BadRequestError, match="`mcp_servers`"):
        anthropic_message(world, alice.key, extra_body={"mcp_servers": []})
    assert (by_openai.value.param, by_openai.value.code) == ("prediction", "unsupported_parameter")


def test_the_fourth_request_of_three_is_a_rate_limit_error_that_says_when(folder: Path) -> None:
    world = World.create(folder, RATE_LIMIT_MAX_REQUESTS="3")
    try:
        alice, carol = world.customer(), world.customer(name="carol")
        for left in (2, 1, 0):
            reply = ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat())
            assert reply.headers["x-ratelimit-limit-requests"] == "3"
            assert reply.headers["x-ratelimit-remaining-requests"] == str(left)
            assert re.fullmatch(r"\d+s", reply.headers["x-ratelimit-reset-requests"] or "")
        start = world.upstream.mark()
        with pytest.raises(openai.RateLimitError) as by_openai:
            openai_chat(world, alice.key, retries=0)
        with pytest.raises(anthropic.RateLimitError) as by_anthropic:
            anthropic_message(world, alice.key, retries=0)
        assert by_openai.value.code == "rate_limit_exceeded"
        assert by_anthropic.value.type == "rate_limit_error"
        for error in (by_openai.value, by_anthropic.value):
            assert 1 <= int(error.response.headers["retry-after"]) <= 60
            assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
        assert world.upstream.dispatches(start) == []
        anthropic_message(world, carol.key)  # each key has a window of its own
    finally:
        world.close()


# --- the caller's own provider key ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyless_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon whose operator has no key of any provider: what works here, works with the caller's own."""
    world = World.create(tmp_path_factory.mktemp("keyless"), OPENAI_API_KEY="", ANTHROPIC_API_KEY="", BYOK_ONLY="true")
    yield world
    world.close()


def test_a_pros_own_key_is_sent_upstream_and_costs_nothing_here(keyless_world: World) -> None:
    world, bob = keyless_world, keyless_world.customer(700, name="bob", pro=True)
    start = world.upstream.mark()
    answer = openai_chat(world, bob.key, extra_headers={"X-Provider-Key": OPENAI_KEY}, stream=True)
    assert answer
    (dispatch,) = world.upstream.dispatches(start)
    assert dispatch["headers"]["authorization"] == f"Bearer {OPENAI_KEY}"
    assert bob.key not in str(dispatch)
    (row,) = world.ended_rows(bob, 1)
    assert (row["status"], row["cost_nanos"], row["billed"], row["quote"]) == ("settled", 0, 0, 0)
    assert row["input_tokens"] > 0 and row["output_tokens"] > 0
    assert world.funds(bob) == {
        "id": bob.id,
        "balance_cents": 700,
        "held_cents": 0,
        "available_cents": 700,
        "debt_cents": 0,
    }


def test_without_an_own_key_nothing_is_sold_where_the_operator_has_none(keyless_world: World) -> None:
    alice = keyless_world.customer()
    with pytest.raises(openai.NotFoundError):
        openai_chat(keyless_world, alice.key)
    assert ask(keyless_world, "GET", "/v1/models").json()["data"] == []


def test_an_answer_on_an_own_key_does_not_speak_of_a_balance(keyless_world: World) -> None:
    bob = keyless_world.customer(700, name="bob", pro=True)
    own = {"X-Provider-Key": OPENAI_KEY}
    reply = ask(keyless_world, "POST", "/v1/chat/completions", key=bob.key, body=chat(), headers=own)
    assert (reply.status, reply.headers["x-goosestack-cost-usd"]) == (200, "0")
    assert reply.headers["x-goosestack-balance-cents"] in (None, "700")


def test_a_wrong_own_key_meets_the_providers_own_401_and_never_the_operators_key(world: World) -> None:
    bob, start = world.customer(700, name="bob", pro=True), world.upstream.mark()
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
        openai_chat(world, bob.key, extra_headers={"X-Provider-Key": "sk-bobs-own-mistake"})
    with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"):
        anthropic_message(world, bob.key, extra_headers={"X-Provider-Key": "sk-ant-bobs-own-mistake"})
    first, second = world.upstream.dispatches(start)
    assert first["headers"]["authorization"] == "Bearer sk-bobs-own-mistake"
    assert second["headers"]["x-api-key"] == "sk-ant-bobs-own-mistake"
    assert [row["status"] for row in world.ended_rows(bob, 2)] == ["released", "released"]
    assert world.funds(bob)["balance_cents"] == 700


def test_whoever_is_not_pro_or_no_longer_is_gets_a_403_and_is_never_charged_instead(world: World) -> None:
    alice, lapsed = world.customer(700), world.customer(700, name="bob", pro=True)
    world.verb("user_pro", user=lapsed.id, until="2020-01-01T00:00:00.000Z")
    start = world.upstream.mark()
    for customer in (alice, lapsed):
        with pytest.raises(openai.PermissionDeniedError) as by_openai:
            openai_chat(world, customer.key, extra_headers={"X-Provider-Key": OPENAI_KEY})
        with pytest.raises(anthropic.PermissionDeniedError) as by_anthropic:
            anthropic_message(world, customer.key, extra_headers={"X-Provider-Key": "sk-ant-somebodys"})
        assert by_openai.value.code == "pro_required"
        assert by_anthropic.value.type == "permission_error"
        assert world.rows(customer) == []
        assert world.funds(customer)["balance_cents"] == 700
    assert world.upstream.dispatches(start) == []


def test_a_key_of_the_wrong_provider_is_refused_before_it_can_reach_a_stranger(world: World) -> None:
    bob, start = world.customer(700, name="bob", pro=True), world.upstream.mark()
    with pytest.raises(openai.BadRequestError, match="a key of anthropic, and `gpt-4o-mini` belongs to openai"):
        openai_chat(world, bob.key, extra_headers={"X-Provider-Key": "sk-ant-bobs"})
    with pytest.raises(anthropic.BadRequestError, match="a key of openai"):
        anthropic_message(world, bob.key, extra_headers={"X-Provider-Key": "sk-bobs-openai"})
    assert world.upstream.dispatches(start) == []


# --- answers that break off -----------------------------------------------------------------------------------


def stream_chat(world: World, key: str, question: str) -> None:
    openai_chat(world, key, question, stream=True)


def stream_responses(world: World, key: str, question: str) -> None:
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=key) as client:
        last = list(client.responses.create(model=GPT, input=question, stream=True))[-1]
    if last.type == "error":  # the provider's own, which this SDK hands over as an event
        raise openai.OpenAIError(last.message)


def stream_message(world: World, key: str, question: str) -> None:
    anthropic_message(world, key, question, stream=True)


STREAMS: list[tuple[Call, type[Exception]]] = [
    (stream_chat, openai.APIError),
    (stream_responses, openai.OpenAIError),
    (stream_message, anthropic.APIStatusError),
]


@pytest.mark.parametrize("fault", ["error_frame", "reset", "eof", "half_json", "no_done"])
@pytest.mark.parametrize(("stream", "error"), STREAMS, ids=["chat", "responses", "messages"])
def test_a_stream_that_breaks_off_raises_and_is_billed_for_what_came(
    world: World, stream: Call, error: type[Exception], fault: str
) -> None:
    alice = world.customer()
    with pytest.raises(error) as raised:
        stream(world, alice.key, directed("Hi", fault=fault, words=40))
    if fault != "error_frame":
        assert "broke off" in str(raised.value)
    assert "canary" not in str(raised.value)  # the operator's key and account, which the provider quotes
    (row,) = world.ended_rows(alice, 1)
    assert row["status"] == "settled" and row["cost_nanos"] > 0


@pytest.mark.parametrize("call", [openai_chat, anthropic_message], ids=["chat", "messages"])
def test_a_plain_answer_that_breaks_off_is_an_error_that_is_not_retried(world: World, call: Call) -> None:
    alice, start = world.customer(), world.upstream.mark()
    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError), match="broke off") as raised:
        call(world, alice.key, directed("Hi", fault="short_length"))
    assert isinstance(raised.value, openai.APIStatusError | anthropic.APIStatusError)
    assert raised.value.status_code == 502
    assert len(world.upstream.dispatches(start)) == 1
    assert world.ended_rows(alice, 1)[0]["status"] == "settled"


@pytest.mark.parametrize(("fault", "status"), [("error_500", 502), ("error_401", 503), ("error_quota", 503)])
def test_the_operators_trouble_with_the_provider_is_no_fault_of_the_caller(
    world: World, fault: str, status: int
) -> None:
    alice = world.customer()
    for path, body in (
        ("/v1/chat/completions", chat(directed("Hi", fault=fault))),
        ("/v1/messages", message(directed("Hi", fault=fault))),
    ):
        reply = ask(world, "POST", path, key=alice.key, body=body)
        assert reply.status == status
        assert b"canary" not in reply.data
    assert [row["status"] for row in world.ended_rows(alice, 2)] == ["released", "released"]
    assert world.funds(alice)["balance_cents"] == 1000


# --- every answer ---------------------------------------------------------------------------------------------

OPENAI = {"message", "type", "param", "code"}
ANTHROPIC = {"type", "message"}
OURS = {"message", "type", "request_id"}
VERSION = {"anthropic-version": "2023-06-01"}
JSON = {"content-type": "application/json"}
HUGE = {**JSON, "content-length": "99999999"}
PACKED = {**JSON, "content-encoding": "gzip"}
PROBLEMS: list[tuple[str, str, dict[str, str], int, str, set[str]]] = [
    ("GET", "/v1/chat/completions", {}, 405, "invalid_request_error", OPENAI),
    ("DELETE", "/v1/responses", {}, 405, "invalid_request_error", OPENAI),
    ("GET", "/responses", {}, 405, "invalid_request_error", OPENAI),
    ("PUT", "/v1/models", {}, 405, "invalid_request_error", OPENAI),
    ("GET", "/v1/messages", {}, 405, "invalid_request_error", ANTHROPIC),
    ("GET", "/messages", {}, 405, "invalid_request_error", ANTHROPIC),
    ("POST", "/v1/models", VERSION, 405, "invalid_request_error", ANTHROPIC),
    ("PATCH", "/v1/keys", {}, 405, "method_not_allowed", OURS),
    ("POST", "/v1/usage", {}, 405, "method_not_allowed", OURS),
    ("POST", "/health", {}, 405, "method_not_allowed", OURS),
    ("POST", "/v1/batches", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/files", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/audio/speech", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/images/generations", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/moderations", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/completions", {}, 404, "invalid_request_error", OPENAI),
    ("GET", "/v1/responses/resp_1", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/responses/compact", {}, 404, "invalid_request_error", OPENAI),
    ("GET", "/v1/realtime", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/fine_tuning/jobs", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/vector_stores", {}, 404, "invalid_request_error", OPENAI),
    ("POST", "/v1/messages/batches", {}, 404, "not_found_error", ANTHROPIC),
    ("GET", "/v1/files", VERSION, 404, "not_found_error", ANTHROPIC),
    ("GET", "/v1/models/no-such-model", {}, 404, "invalid_request_error", OPENAI),
    ("GET", "/v1/models/no-such-model", VERSION, 404, "not_found_error", ANTHROPIC),
    ("GET", "/nowhere", {}, 404, "not_found", OURS),
    ("POST", "/v1/chat/completions", HUGE, 413, "invalid_request_error", OPENAI),
    ("POST", "/v1/messages", HUGE, 413, "request_too_large", ANTHROPIC),
    ("POST", "/v1/keys", HUGE, 413, "validation_error", OURS),
    ("POST", "/v1/chat/completions", {"content-type": "text/plain"}, 415, "invalid_request_error", OPENAI),
    ("POST", "/v1/embeddings", PACKED, 415, "invalid_request_error", OPENAI),
    ("POST", "/v1/messages", PACKED, 415, "invalid_request_error", ANTHROPIC),
    ("POST", "/v1/keys", {"content-type": "multipart/form-data"}, 415, "validation_error", OURS),
    ("POST", "/v1/chat/completions", JSON, 400, "invalid_request_error", OPENAI),
    ("POST", "/v1/chat/completions", {**JSON, **VERSION}, 400, "invalid_request_error", ANTHROPIC),
    ("POST", "/v1/keys", JSON, 400, "validation_error", OURS),
    ("POST", "/v1/messages", {"x-api-key": "gsk_another"}, 400, "invalid_request_error", ANTHROPIC),
    ("GET", "/v1/usage", {"x-api-key": "gsk_another"}, 400, "validation_error", OURS),
    ("GET", "/v1/usage", {"x-padding": "a" * 40_000}, 431, "validation_error", OURS),
]


@pytest.fixture(scope="module")
def alice_of_the_table(shared_world: World) -> Customer:
    return shared_world.customer(100)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind", "names"),
    PROBLEMS,
    ids=[f"{method} {path} {status} {'-'.join(headers)}" for method, path, headers, status, *_ in PROBLEMS],
)
def test_every_problem_comes_in_the_envelope_of_its_route(
    world: World,
    alice_of_the_table: Customer,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    kind: str,
    names: set[str],
) -> None:
    start = world.upstream.mark()
    reply = raw(world, method, path, alice_of_the_table.key, headers)
    error = reply.json()["error"]
    assert (reply.status, error["type"]) == (status, kind)
    assert names <= set(error) <= names | {"param"}
    assert (reply.json().get("type") == "error") == (names == ANTHROPIC)
    assert reply.headers.get_all("x-request-id") == reply.headers.get_all("request-id")
    (request_id,) = reply.headers.get_all("request-id") or []
    assert request_id.startswith("req_")
    for told in (reply.json().get("request_id"), error.get("request_id")):
        assert told in (None, request_id)
    assert error["message"] and "Traceback" not in error["message"]
    assert world.upstream.dispatches(start) == []


def raw(world: World, method: str, path: str, key: str, headers: dict[str, str]) -> Reply:
    """A request without a body, whatever its headers promise."""
    connection = connect(world)
    try:
        connection.putrequest(method, path)
        for name, value in {"authorization": f"Bearer {key}", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def test_every_answer_bears_one_id_that_is_ours_alone(world: World) -> None:
    alice = world.customer()
    ours = {"x-request-id": "req_mine", "request-id": "req_mine"}
    seen = set()
    for method, path, body in (
        ("GET", "/", None),
        ("HEAD", "/", None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/usage", None),
        ("POST", "/v1/chat/completions", chat()),
        ("POST", "/v1/chat/completions", chat(stream=True)),
        ("POST", "/v1/messages", message()),
        ("POST", "/v1/chat/completions", chat(model="none")),
    ):
        reply = ask(world, method, path, key=alice.key, body=body, headers=ours)
        assert reply.headers.get_all("x-request-id") == reply.headers.get_all("request-id")
        seen.update(reply.headers.get_all("x-request-id") or [])
        for leaked in ("openai-organization", "anthropic-organization-id", "set-cookie", "server", "openai-project"):
            assert reply.headers[leaked] is None
    assert len(seen) == 8 and "req_mine" not in seen
    assert {row["id"] for row in world.ended_rows(alice, 3)} <= seen
