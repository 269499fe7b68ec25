"""What the installed SDKs can send, and what they make of our error frames.

Every parameter, every kind of input item and every tool that they know is decided in the wire format's module: it
passes, is controlled, or is refused. When a new release of an SDK adds one, a test here fails and names it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import httpx2
import openai
import pytest
from openai import OpenAI

from goosestack.errors import Unsupported, UpstreamCut
from goosestack.wire import Body, anthropic_messages, openai_chat, openai_embeddings, openai_responses

# --- parameters -----------------------------------------------------------------------------------------------

PARAMETERS: list[tuple[ModuleType, str, str]] = [
    (openai_chat, "openai.types.chat.completion_create_params", "CompletionCreateParams"),
    (openai_responses, "openai.types.responses.response_create_params", "ResponseCreateParams"),
    (openai_responses, "openai.types.beta.response_create_params", "ResponseCreateParams"),
    (openai_embeddings, "openai.types.embedding_create_params", "EmbeddingCreateParams"),
    (anthropic_messages, "anthropic.types.message_create_params", "MessageCreateParams"),
    (anthropic_messages, "anthropic.types.beta.message_create_params", "MessageCreateParams"),
    (anthropic_messages, "anthropic.types.message_count_tokens_params", "MessageCountTokensParams"),
    (anthropic_messages, "anthropic.types.beta.message_count_tokens_params", "MessageCountTokensParams"),
]
HEADERS = {"betas"}
"""Parameters that the SDKs send as a header."""

EACH_CALL = pytest.mark.parametrize(("module", "path", "name"), PARAMETERS, ids=[path for _, path, _ in PARAMETERS])


def parameters(path: str, name: str) -> set[str]:
    """The body fields of one call: the keys of its TypedDict, or of each in a union, those it inherits included."""
    params = getattr(importlib.import_module(path), name)
    members = get_args(params) or (params,)
    return {key for member in members for key in get_type_hints(member)} - HEADERS


@EACH_CALL
def test_every_parameter_is_decided_once(module: ModuleType, path: str, name: str) -> None:
    found = parameters(path, name)
    assert "model" in found
    decided = [*module.PASSED, *module.CONTROLLED, *module.REFUSED]
    undecided = sorted(found - set(decided))
    assert not undecided, f"{module.__name__} must pass, control or refuse: {', '.join(undecided)}"
    twice = sorted({parameter for parameter in decided if decided.count(parameter) > 1})
    assert not twice, f"{module.__name__} decides more than once on: {', '.join(twice)}"


@pytest.mark.parametrize("module", [openai_chat, openai_responses, openai_embeddings, anthropic_messages])
def test_every_refusal_says_why(module: ModuleType) -> None:
    assert all(isinstance(reason, str) and len(reason) > 10 for reason in module.REFUSED.values())


# --- items and tools of the Responses API ---------------------------------------------------------------------


def members(kind: object) -> Iterator[Any]:
    """The TypedDicts that a union is made of."""
    if get_origin(kind) is Union:
        for member in get_args(kind):
            yield from members(member)
    else:
        yield kind


def names_of(kind: object) -> Iterator[str]:
    """The values that a `type` field can have."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) in (Union, Required, NotRequired):
        for inner in get_args(kind):
            yield from names_of(inner)


def types_in(path: str, union: str) -> set[str]:
    """What the `type` field says in each member of a union."""
    found = set()
    for member in members(getattr(importlib.import_module(path), union)):
        hint = get_type_hints(member, include_extras=True)["type"]
        names = set(names_of(hint))
        assert names, f"{member} has a `type` of an unknown form: {hint}"
        found |= names
    return found


@pytest.mark.parametrize(
    ("path", "union"),
    [
        ("openai.types.responses.response_input_item_param", "ResponseInputItemParam"),
        ("openai.types.beta.beta_response_input_item_param", "BetaResponseInputItemParam"),
    ],
)
def test_every_item_of_an_input_is_decided(path: str, union: str) -> None:
    found = types_in(path, union)
    assert {"message", "function_call_output", "item_reference"} <= found
    undecided = sorted(found - openai_responses.ITEMS - set(openai_responses.REFUSED_ITEMS))
    assert not undecided, f"openai_responses must count or refuse the items: {', '.join(undecided)}"


SOLD = {"apply_patch", "custom", "function", "local_shell", "namespace", "web_search", "web_search_2025_08_26"}
SOLD_WHERE_THE_CALLER_RUNS_THEM: dict[str, Body] = {
    "shell": {"environment": {"type": "local"}},
    "tool_search": {"execution": "client"},
}
NOT_SOLD = {
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "mcp",
    "programmatic_tool_calling",
    "web_search_preview",
    "web_search_preview_2025_03_11",
}


def respond_with(tool: Body) -> None:
    openai_responses.OpenAIResponses().parse({"model": "m", "input": "x", "tools": [tool]}, own_key=False)


@pytest.mark.parametrize(
    ("path", "union"),
    [
        ("openai.types.responses.tool_param", "ToolParam"),
        ("openai.types.beta.beta_tool_param", "BetaToolParam"),
    ],
)
def test_every_tool_is_decided(path: str, union: str) -> None:
    assert types_in(path, union) == SOLD | NOT_SOLD | set(SOLD_WHERE_THE_CALLER_RUNS_THEM)


@pytest.mark.parametrize("kind", sorted(SOLD))
def test_a_tool_that_is_sold_passes(kind: str) -> None:
    respond_with({"type": kind})


@pytest.mark.parametrize("kind", sorted(SOLD_WHERE_THE_CALLER_RUNS_THEM))
def test_a_tool_that_can_run_in_either_place_passes_where_the_caller_runs_it(kind: str) -> None:
    respond_with({"type": kind, **SOLD_WHERE_THE_CALLER_RUNS_THEM[kind]})
    with pytest.raises(Unsupported):
        respond_with({"type": kind})


@pytest.mark.parametrize("kind", sorted(NOT_SOLD))
def test_a_tool_that_the_provider_runs_is_refused_by_name(kind: str) -> None:
    with pytest.raises(Unsupported, match=f"`{kind}`"):
        respond_with({"type": kind})


# --- error frames ---------------------------------------------------------------------------------------------


def client(stream: bytes) -> OpenAI:
    """An SDK whose server answers everything with this stream."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    transport = httpx2.Client(transport=httpx2.MockTransport(answer))
    return OpenAI(api_key="gsk_test", base_url="http://gateway/v1", http_client=transport, max_retries=0)


CUT = UpstreamCut(detail="it ended early")
CHUNK = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{}}]}\n\n'
)
CREATED = b"""event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","output":[]}}

"""
CHAT_CUT = CHUNK + openai_chat.OpenAIChat().error_frame(CUT, "req_1")
RESPONSE_CUT = CREATED + openai_responses.OpenAIResponses().error_frame(CUT, "req_1", 1)


def read_chat(sdk: OpenAI) -> None:
    for _ in sdk.chat.completions.create(model="m", messages=[], stream=True):
        pass


def read_response(sdk: OpenAI) -> None:
    for _ in sdk.responses.create(model="m", input="x", stream=True):
        pass


def read_response_with_the_helper(sdk: OpenAI) -> None:
    with sdk.responses.stream(model="m", input="x") as stream:
        stream.until_done()


@pytest.mark.parametrize(
    ("read", "stream"),
    [(read_chat, CHAT_CUT), (read_response, RESPONSE_CUT), (read_response_with_the_helper, RESPONSE_CUT)],
)
def test_an_answer_that_breaks_off_raises_in_the_sdk(read: Callable[[OpenAI], None], stream: bytes) -> None:
    with client(stream) as sdk, pytest.raises(openai.APIError) as caught:
        read(sdk)
    assert (caught.value.type, caught.value.code) == ("server_error", "upstream_cut")
    assert caught.value.message == CUT.message


def test_the_frames_that_keep_a_stream_alive_are_ignored_by_the_sdk() -> None:
    for wire, stream in ((openai_chat.OpenAIChat(), CHUNK), (openai_responses.OpenAIResponses(), CREATED)):
        with client(wire.keep_alive + stream + wire.keep_alive) as sdk:
            read_chat(sdk) if wire.name == "openai_chat" else read_response(sdk)
