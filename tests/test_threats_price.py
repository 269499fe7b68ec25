"""Mallory wants what has no price, costs more than its price, or is hidden from whoever computes the price.

What the gate cannot price or bound, it refuses, naming it; what it prices by, it also sends.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, WIRES, Mallory, asks
from tests.world import World


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world, cents=10_000) as mallory:
        yield mallory


# --- models without a price -------------------------------------------------------------------------------------

UNPRICED = """
    gpt-4o-mini-2099-01-01 GPT-4o GPT-4O-MINI Claude-Haiku-4-5 gpt-4o-mini@ gpt-4o-mini/ /gpt-4o-mini ../gpt-4o
    ./gpt-4o-mini gpt-4o?x gpt-4o-mini#a gpt-4o-mini%00 gpt%2d4o gpt‑4o-mini gpt-4о-mini ｇpt-4o-mini
    openai/gpt-4o anthropic/claude-haiku-4-5 openai:gpt-4o-mini ft:gpt-4o-mini:acme ft:gpt-4o:x * % _ gpt-*
    gpt-4o-mini,gpt-5-pro default auto gpt-4o-mini:free gpt-4o-mini:online claude-haiku-4-5:thinking
    claude-haiku gpt gpt-3.5-turbo davinci-002 tts-1 whisper-1 dall-e-3 omni-moderation-latest o1-pro gpt-4
    claude-2 null true 0 {} [] "gpt-4o-mini" 'gpt-4o-mini' gpt-4o-mini;DROP -gpt-4o-mini ${jndi:ldap://x}
    {{7*7}} {model}""".split()
UNPRICED += ["gpt-4o-mini ", " gpt-4o-mini", "gpt-4o mini", "x" * 200]
NO_NAMES: list[object] = ["", "gpt-4o\0", "gpt-4o\n", "\tgpt-4o", "gpt-4o\x1b[0m", "gpt-4o\u200b", "\u202eo4-tpg"]
NO_NAMES += ["gpt\u00a04o", "x" * 201, "x" * 10_000, None, 5, 1.5, True, ["gpt-4o-mini"], {"id": "gpt-4o-mini"}, []]


@pytest.mark.parametrize("path", WIRES)
def test_a_model_without_a_price_is_not_found_and_not_asked(mallory: Mallory, path: str) -> None:
    others = {CHAT: ["claude-haiku-4-5", "text-embedding-3-small"], MESSAGES: ["gpt-4o-mini", "text-embedding-3-small"]}
    others |= {RESPONSES: others[CHAT], COUNT: others[MESSAGES], EMBEDDINGS: ["gpt-4o-mini", "claude-haiku-4-5"]}
    for model in [*UNPRICED, *others[path]]:
        reply = mallory.refused(404, path, asks(path, model=model))
        assert reply.json["error"].get("code") == (None if path in (MESSAGES, COUNT) else "model_not_found")
    for odd in NO_NAMES:
        assert "model" in mallory.refused(400, path, asks(path, model=odd)).message
    nameless = asks(path)
    del nameless["model"]
    mallory.refused(400, path, nameless)
    mallory.nothing_happened()


# --- how much is written ----------------------------------------------------------------------------------------


def quotes(mallory: Mallory, path: str, *asked: dict[str, object]) -> list[int]:
    """What the gate quoted for each of these, whatever the provider made of them."""
    for body in asked:
        assert mallory.ask(path, body).status in (200, 400)
    return [int(row["quote"]) for row in mallory.world.ended_rows(mallory.customer, len(asked))]


def test_every_answer_that_is_asked_for_is_held_for(mallory: Mallory) -> None:
    one, eight = quotes(mallory, CHAT, *(asks(CHAT, max_tokens=1000, n=n) for n in (1, 8)))
    assert eight - one == 7 * 1000 * 600  # nanodollars, at $0.60 a million
    for n in (0, -1, 129, 1.0, "2", True):
        mallory.refused(400, CHAT, asks(CHAT, n=n))


def test_of_two_caps_the_larger_is_held_for(mallory: Mallory) -> None:
    pairs = [(100, 9000), (9000, 100), (9000, 9000)]
    each = [asks(CHAT, max_tokens=old, max_completion_tokens=new) for old, new in pairs]
    first, *rest = quotes(mallory, CHAT, *each, asks(CHAT, max_tokens=9000))
    assert all(abs(first - other) < 50 * 150 for other in rest)  # they differ by the bytes of a field


def test_an_output_cap_that_was_not_named_follows_from_what_can_be_held(world: World) -> None:
    for path, name in ((CHAT, "max_completion_tokens"), (RESPONSES, "max_output_tokens")):
        with Mallory(world, cents=1) as mallory:
            reply = mallory.ask(path, asks(path, model="gpt-5.5"))
            assert reply.status == 200
            (sent,) = mallory.dispatched()
            assert str(sent["body"][name]) == reply.headers["x-goosestack-output-cap"]
            assert 256 <= sent["body"][name] <= 333  # a cent, at $30 a million
    with Mallory(world) as mallory:
        without = asks(MESSAGES)
        del without["max_tokens"]
        assert "max_tokens" in mallory.refused(400, MESSAGES, without).message
        mallory.nothing_happened()


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_what_multiplies_the_output_or_is_billed_beside_it_is_refused(mallory: Mallory, path: str) -> None:
    chat: dict[str, list[object]] = {
        "best_of": [1, 8, "8"],
        "modalities": [["audio"], ["text", "audio"], ["image"], "audio", [5]],
        "audio": [{"voice": "alloy", "format": "wav"}, "yes"],
        "prediction": [{"type": "content", "content": "x" * 1000}],
        "web_search_options": [{}, {"search_context_size": "high"}],
    }
    responses: dict[str, list[object]] = {
        "multi_agent": [{"agents": 5}],
        "context_management": [[{"type": "compaction"}]],
        "background": [True, "true", 1],
        "prompt_cache_options": [{"ttl": "24h"}, {"ttl": 720}, "12h", {"comparison_response_id": "resp_a"}],
    }
    for name, values in (chat if path == CHAT else responses).items():
        for value in values:
            assert name in mallory.refused(400, path, asks(path, **{name: value})).message
    mallory.nothing_happened()


# --- tiers ------------------------------------------------------------------------------------------------------

NO_TIERS = ["ultrafast", "scale", "batch", "Priority", "priority ", "PRIORITY", "standard", "premium", 1, [], {}, True]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_tier_is_always_sent_and_held_at_its_price(mallory: Mallory, path: str) -> None:
    asked = [None, "auto", "default", "flex", "priority", "fast"]
    sent = ["default", "default", "default", "flex", "priority", "priority"]
    bodies = [asks(path, model="gpt-5.5", **({} if tier is None else {"service_tier": tier})) for tier in asked]
    held = quotes(mallory, path, *bodies, asks(path, model="gpt-5.5", service_tier=None))
    assert [one["body"]["service_tier"] for one in mallory.dispatched()] == [*sent, "default"]
    standard = (held[1], held[2], held[3], held[6])  # flex may be served, and is then charged, at the standard tier
    assert all(abs(one - held[0]) < 5 * 5_000 for one in standard)  # they differ by the bytes of the tier's name
    assert 2 * held[0] < held[4] < 3 * held[0]  # 2.5 times
    for odd in NO_TIERS:
        assert "service_tier" in mallory.refused(400, path, asks(path, service_tier=odd)).message
    assert "no price" in mallory.refused(400, path, asks(path, service_tier="flex")).message
    assert len(mallory.dispatched()) == len(held)


def test_anthropics_tier_speed_and_place_are_sent_or_refused(mallory: Mallory) -> None:
    opus = asks(MESSAGES, model="claude-opus-5-5")
    fields = [{}, {"service_tier": "auto"}, {"service_tier": "standard_only"}, {"speed": "standard"}]
    fields += [{"speed": "fast"}, {"inference_geo": "us"}, {"speed": "fast", "inference_geo": "us"}]
    held = quotes(mallory, MESSAGES, *({**opus, **more} for more in fields))
    assert {one["body"]["service_tier"] for one in mallory.dispatched()} == {"standard_only"}
    assert 1.9 < held[4] / held[0] < 2.1 and 1.09 < held[5] / held[0] < 1.12 and 2.1 < held[6] / held[0] < 2.3
    for odd in [*NO_TIERS, "default", "flex", "fast"]:
        mallory.refused(400, MESSAGES, {**opus, "service_tier": odd})
    for odd in [*(tier for tier in NO_TIERS if tier != "standard"), "Fast", "turbo", "US", "eu"]:
        mallory.refused(400, MESSAGES, {**opus, "speed": odd})
        mallory.refused(400, MESSAGES, {**opus, "inference_geo": odd})
    assert "no price" in mallory.refused(400, MESSAGES, asks(MESSAGES, speed="fast")).message
    assert len(mallory.dispatched()) == len(held)


# --- tools that the provider would run --------------------------------------------------------------------------

NO_TYPES: list[object] = [None, "", 5, [], {}, True, "Function", "function ", "x" * 100, "web\nsearch"]
CHAT_TOOLS = """web_search web_search_preview web_search_20250305 code_interpreter file_search computer
    computer_use_preview mcp image_generation local_shell shell apply_patch retrieval browser namespace
    tool_search collaborator""".split()
RESPONSES_TOOLS = """web_search_preview web_search_preview_2025_03_11 web_search_2025 web_searches file_search
    code_interpreter computer computer_use_preview mcp image_generation shell tool_search retrieval browser_search
    hosted_shell programmatic code_execution url_context""".split()
MESSAGES_TOOLS = """web_fetch_20250910 web_fetch_20260209 web_fetch code_execution_20250522 code_execution_20250825
    code_execution_20260120 bash_code_execution_20250825 text_editor_code_execution_20250825 code_execution
    advisor_20260301 advisor mcp_toolset mcp_toolset_20251120 tool_search_tool_regex_20251119
    tool_search_tool_bm25_20251119 tool_search_tool""".split()


PROVIDERS_TOOLS = [
    (CHAT, CHAT_TOOLS),
    (RESPONSES, RESPONSES_TOOLS),
    (MESSAGES, MESSAGES_TOOLS),
    (COUNT, MESSAGES_TOOLS),
]


@pytest.mark.parametrize(("path", "kinds"), PROVIDERS_TOOLS)
def test_tools_that_the_provider_would_run_are_refused_by_name(mallory: Mallory, path: str, kinds: list[str]) -> None:
    assert len(kinds) >= 15
    function = {"type": "function", "name": "f", "parameters": {}, "function": {"name": "f", "parameters": {}}}
    if path in (MESSAGES, COUNT):
        function = {"name": "f", "input_schema": {"type": "object"}}
    for kind in kinds:
        tool = {"type": kind, "name": "t", "environment": {"type": "container_auto"}, "container": {"type": "auto"}}
        for tools in ([tool], [function, tool], [{**tool, "max_uses": 1}]):
            assert kind in mallory.refused(400, path, asks(path, tools=tools)).message
    for odd in NO_TYPES if path not in (MESSAGES, COUNT) else [None, 5, [], {}, True]:
        mallory.refused(400, path, asks(path, tools=[function, {"type": odd, "name": "t"}]))
    for odd in ("web_search", 5, True, {}, {"type": "function"}, ["web_search"], [[function]], [5]):
        mallory.refused(400, path, asks(path, tools=odd))
    mallory.nothing_happened()


def test_the_one_tool_that_may_run_there_is_held_for_and_capped_at_five_calls(mallory: Mallory) -> None:
    searching = {"type": "web_search"}
    for asked, sent in ((None, 5), (1, 1), (5, 5), (6, 5), (10_000_000, 5)):
        assert mallory.ask(RESPONSES, asks(RESPONSES, tools=[searching], max_tool_calls=asked)).status == 200
        assert mallory.dispatched()[-1]["body"]["max_tool_calls"] == sent
        tool = {"type": "web_search_20250305", "name": "web_search", **({} if asked is None else {"max_uses": asked})}
        assert mallory.ask(MESSAGES, asks(MESSAGES, tools=[tool])).status == 200
        assert mallory.dispatched()[-1]["body"]["tools"][0]["max_uses"] == sent
    for row in mallory.world.ended_rows(mallory.customer, 10)[:2]:
        assert row["quote"] >= 5 * 10_000_000  # $10 a thousand
    hidden = {"type": "additional_tools", "tools": [searching]}
    assert mallory.ask(RESPONSES, asks(RESPONSES, input=[{"role": "user", "content": "Hi"}, hidden])).status == 200
    assert mallory.dispatched()[-1]["body"]["max_tool_calls"] == 5


# --- input that is not in the request ---------------------------------------------------------------------------


def _input(item: object) -> dict[str, object]:
    return {"input": [{"role": "user", "content": "Hello"}, item]}


def _part(part: object) -> dict[str, object]:
    return {"input": [{"role": "user", "content": [part]}]}


def _block(block: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [block]}]}


STORED_FILE = {"type": "file", "file_id": "file_a"}
FETCHED = {"type": "web_fetch_tool_result", "tool_use_id": "srvtoolu_a"}
IN_RESULT = {"type": "document", "source": STORED_FILE}
HIDDEN: list[tuple[str, dict[str, object]]] = [
    (RESPONSES, {"previous_response_id": "resp_a"}),
    (RESPONSES, {"previous_response_id": ""}),
    (RESPONSES, {"conversation": "conv_a"}),
    (RESPONSES, {"conversation": {"id": "conv_a"}}),
    (RESPONSES, {"prompt": {"id": "pmpt_a", "variables": {}}}),
    (RESPONSES, {"prompt": "pmpt_a"}),
    *((RESPONSES, _input(item)) for item in ({"type": "item_reference", "id": "msg_a"}, {"id": "msg_a"}, {})),
    *((RESPONSES, _input({"type": kind, "id": "a"})) for kind in ("compaction", "mcp_call", "file_search_call", "new")),
    (RESPONSES, _input({"type": "reasoning", "id": "rs_a", "summary": []})),
    (RESPONSES, _part({"type": "input_file", "file_id": "file_a"})),
    (RESPONSES, _part({"type": "input_image", "file_id": "file_a"})),
    (RESPONSES, _part({"type": "input_image", "image_url": "https://a.example.com/b.png", "file_id": "file_a"})),
    (RESPONSES, _part({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})),
    (RESPONSES, _input({"type": "function_call_output", "call_id": "a", "output": [{"type": "input_file"}]})),
    (CHAT, _block({"type": "file", "file": {"file_id": "file_a"}})),
    (CHAT, _block({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})),
    (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_a"}}]}),
    (MESSAGES, {"container": "container_a"}),
    (MESSAGES, {"container": {"skills": [{"type": "anthropic", "skill_id": "pdf"}]}}),
    (MESSAGES, {"mcp_servers": [{"type": "url", "url": "https://mcp.example.com", "name": "m"}]}),
    (MESSAGES, {"fallbacks": [{"model": "claude-fable-5"}]}),
    (MESSAGES, {"fallback_credit_token": "a"}),
    (MESSAGES, {"previous_message_id": "msg_a"}),
    (MESSAGES, {"thread": {"id": "a"}}),
    (MESSAGES, {"billing_policy": "a"}),
    (MESSAGES, {"user_profile_id": "a"}),
    (MESSAGES, {"workspace_id": "a"}),
    (MESSAGES, {"context_management": {"edits": [{"type": "compact_20260112"}]}}),
    (MESSAGES, {"context_management": {"edits": [{"type": 5}]}}),
    (MESSAGES, _block({"type": "container_upload", "file_id": "file_a"})),
    (MESSAGES, _block({"type": "image", "source": STORED_FILE})),
    (MESSAGES, _block({"type": "document", "source": STORED_FILE})),
    (MESSAGES, _block({"type": "tool_result", "tool_use_id": "a", "content": [IN_RESULT]})),
    (MESSAGES, {"system": [{"type": "document", "source": STORED_FILE}]}),
    (MESSAGES, _block({**FETCHED, "content": IN_RESULT})),
    (MESSAGES, _block({**FETCHED, "content": [IN_RESULT]})),
    (MESSAGES, _block({**FETCHED, "content": {"type": "web_fetch_result", "content": [IN_RESULT]}})),
]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, COUNT])
def test_what_stands_for_input_that_cannot_be_seen_is_refused(mallory: Mallory, path: str) -> None:
    for endpoint, fields in HIDDEN:
        if endpoint == (MESSAGES if path == COUNT else path):
            mallory.refused(400, path, asks(path, **fields))
    mallory.nothing_happened()


def test_a_document_costs_as_much_inside_what_a_tool_gave_back(mallory: Mallory) -> None:
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0x"}}
    wrapped: list[object] = [{"type": "tool_result", "tool_use_id": "a", "content": [paper]}]
    wrapped += [{**FETCHED, "content": {"type": "web_fetch_result", "url": "https://a.example.com", "content": paper}}]
    wrapped += [{"type": "mcp_tool_result", "tool_use_id": "a", "content": [paper]}, paper]
    held = quotes(mallory, MESSAGES, *(asks(MESSAGES, **_block(block)) for block in wrapped))
    assert len(set(held)) == 1
    assert held[0] >= 200_000 * 1_000  # all that the model can read, at $1 a million


def test_nothing_is_stored_with_the_provider_whatever_the_caller_says(mallory: Mallory) -> None:
    for store in (True, None, False):
        for path in (CHAT, RESPONSES):
            assert mallory.ask(path, asks(path, store=store)).status == 200
            assert mallory.dispatched()[-1]["body"].get("store") is False


def test_usage_is_asked_for_in_every_stream_whatever_the_caller_says(mallory: Mallory) -> None:
    for options in (None, {}, {"include_usage": False}, {"include_usage": True}, {"include_obfuscation": False}):
        assert mallory.ask(CHAT, asks(CHAT, stream=True, stream_options=options)).status == 200
        assert mallory.dispatched()[-1]["body"]["stream_options"] == {**(options or {}), "include_usage": True}
    rows = mallory.world.ended_rows(mallory.customer, 5)
    assert len({(row["cost_nanos"], row["estimated"]) for row in rows}) == 1
    for odd in ("x", 5, True, [], {"include_usage": "true"}, {"include_usage": 1}, {"include_usage": None}, [True]):
        mallory.refused(400, CHAT, asks(CHAT, stream=True, stream_options=odd))
    assert len(mallory.dispatched()) == 5


# --- what has no price at all -----------------------------------------------------------------------------------

NOT_SOLD = """completions edits moderations audio/speech audio/transcriptions audio/translations images/generations
    images/edits images/variations files files/file_a files/file_a/content uploads batches batches/batch_a
    fine_tuning/jobs assistants threads threads/a/runs vector_stores realtime realtime/sessions videos containers
    conversations decisions evals organization/usage/completions responses/resp_a responses/resp_a/cancel
    responses/compact responses/input_tokens responses/resp_a/input_items chat/completions/chatcmpl_a messages/batches
    messages/batches/a/results complete skills agents models/gpt-4o-mini/permissions engines graders
    chat/completions/ messages/ embeddings/ responses/ rerank responses/../files chat%00/completions""".split()


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PUT", "PATCH"])
def test_what_is_not_sold_is_not_found_and_not_asked(mallory: Mallory, method: str) -> None:
    for path in NOT_SOLD:
        sent = None if method in ("GET", "DELETE") else asks(CHAT)
        reply = mallory.ask(f"/v1/{path}", sent, method=method)
        assert reply.status in ((404, 405) if path.startswith("models/") else (404,)), (method, path, reply)
        assert reply.json["error"]["message"]
        assert mallory.ask(f"/{path}", sent, method=method).status in (404, 405)
    mallory.nothing_happened()
