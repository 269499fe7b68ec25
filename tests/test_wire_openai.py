"""What the gate makes of a request in OpenAI's three wire formats, and what it reads out of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from goosestack.errors import InsufficientFunds, Invalid, Problem, Unsupported, UpstreamCut
from goosestack.pricing import Usage
from goosestack.wire import ROUTING, Body, Call, Reader, Reading, Wire, body as bodies, parts
from goosestack.wire.openai_chat import OpenAIChat
from goosestack.wire.openai_embeddings import OpenAIEmbeddings
from goosestack.wire.openai_responses import ITEMS, REFUSED_ITEMS, OpenAIResponses
from goosestack.wire.sse import MOST_FRAME_BYTES

CHAT, RESPONSES, EMBEDDINGS = OpenAIChat(), OpenAIResponses(), OpenAIEmbeddings()
PIXEL = "data:image/png;base64,iVBORw0KGgo="
PAPER = "data:application/pdf;base64,JVBERi0xLjQ="
LEAST: dict[str, Body] = {
    "openai_chat": {"model": "gpt-6-sol", "messages": [{"role": "user", "content": "hello"}]},
    "openai_responses": {"model": "gpt-6-sol", "input": "hello"},
    "openai_embeddings": {"model": "text-embedding-3-small", "input": "hello"},
}
EACH = pytest.mark.parametrize("wire", [CHAT, RESPONSES, EMBEDDINGS], ids=lambda wire: str(wire.name))


def parse(wire: Wire, **more: object) -> Call:
    return wire.parse({**LEAST[wire.name], **more}, own_key=False)


def refusal(wire: Wire, **more: object) -> Problem:
    with pytest.raises(Problem) as caught:
        parse(wire, **more)
    assert isinstance(caught.value, Invalid | Unsupported)
    assert caught.value.status == 400
    return caught.value


def asks(*parts: object) -> list[Body]:
    return [{"role": "user", "content": list(parts)}]


def image(url: str = PIXEL, **more: object) -> Body:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def input_image(url: str = PIXEL, **more: object) -> Body:
    return {"type": "input_image", "image_url": url, **more}


# --- what every format has in common --------------------------------------------------------------------------


@EACH
def test_the_least_request_passes_and_names_its_model(wire: Wire) -> None:
    call = parse(wire)
    assert (call.model, call.stream, call.cap, call.answers) == (LEAST[wire.name]["model"], False, None, 1)
    assert (call.messages, call.tools, call.web_searches, call.free, call.unknown) == (1, False, 0, False, ())


@EACH
@pytest.mark.parametrize("model", [None, "", 5, [], {}, True, "x" * 201, "gpt\n5", "gpt-4o\x00"])
def test_a_model_is_a_printable_name(wire: Wire, model: object) -> None:
    assert refusal(wire, model=model).param == "model"


@EACH
@pytest.mark.parametrize("name", sorted(ROUTING))
def test_where_a_request_goes_is_not_the_callers_to_say(wire: Wire, name: str) -> None:
    assert refusal(wire, **{name: "https://evil.example"}).param == name
    assert refusal(wire, metadata={name: "https://evil.example"}).param == name


@EACH
def test_an_unknown_field_passes_and_is_reported(wire: Wire) -> None:
    call = parse(wire, brand_new=1)
    assert call.unknown == ("brand_new",)
    assert call.body["brand_new"] == 1


@EACH
@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "", [], {}])
def test_stream_is_true_or_false(wire: Wire, value: object) -> None:
    assert refusal(wire, stream=value).param == "stream"


NUMBERS = """0 -0 -1 -5 -9223372036854775808 1.0 1.5 0.1 -1.5 1e0 1e3 1E3 1e-3 1e400 1e999 -1e999 10000001 99999999
    2147483648 4294967296 9223372036854775807 9223372036854775808 18446744073709551616 999999999999999999999999999999
    true false "5" "1" "" "max" "1e3" " 5" [] [5] [[5]] {} {"value":5} NaN Infinity -Infinity +5 05 .5 5. 0x10 1_000
    5L None undefined ١٢""".split()
NUMBERS.append("1" + "0" * 5000)


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    ("wire", "field"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (CHAT, "n"),
        (RESPONSES, "max_output_tokens"),
        (RESPONSES, "max_tool_calls"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_number_that_is_priced_by_is_a_plain_integer_within_reason(wire: Wire, field: str, value: str) -> None:
    body = {**LEAST[wire.name], "tools": [{"type": "web_search"}] if wire is RESPONSES else None}
    raw = f'{json.dumps(body)[:-1]},"{field}":{value}}}'.encode()
    with pytest.raises(Invalid) as caught:
        wire.parse(bodies.parse(raw), own_key=False)
    assert caught.value.param in (field, None)  # None where it is not even JSON
    assert len(caught.value.message) < 300


@EACH
def test_a_number_that_is_null_is_absent(wire: Wire) -> None:
    assert parse(wire, n=None, max_tokens=None, max_output_tokens=None, max_completion_tokens=None).cap is None


# --- tiers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
@pytest.mark.parametrize(
    ("asked", "tier", "sent"),
    [
        (None, "standard", "default"),
        ("auto", "standard", "default"),
        ("default", "standard", "default"),
        ("flex", "flex", "flex"),
        ("priority", "priority", "priority"),
        ("fast", "priority", "priority"),
    ],
)
def test_a_tier_is_always_sent_since_the_project_may_default_to_a_dear_one(
    wire: Wire, asked: str | None, tier: str, sent: str
) -> None:
    call = parse(wire) if asked is None else parse(wire, service_tier=asked)
    assert (call.tier, call.body["service_tier"]) == (tier, sent)


@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
@pytest.mark.parametrize("asked", ["ultrafast", "scale", "batch", "Priority", 1, [], {}, True])
def test_a_tier_without_a_price_is_refused(wire: Wire, asked: object) -> None:
    assert refusal(wire, service_tier=asked).param == "service_tier"


# --- chat: output ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "cap", "field"),
    [
        ({}, None, "max_completion_tokens"),
        ({"max_tokens": 50}, 50, "max_tokens"),
        ({"max_completion_tokens": 50}, 50, "max_completion_tokens"),
        ({"max_completion_tokens": 50, "max_tokens": 900}, 900, "max_completion_tokens"),
        ({"max_completion_tokens": 900, "max_tokens": 50}, 900, "max_completion_tokens"),
    ],
)
def test_of_two_caps_the_larger_is_held(fields: dict[str, int], cap: int | None, field: str) -> None:
    call = parse(CHAT, **fields)
    assert (call.cap, call.cap_field) == (cap, field)


def test_a_cap_that_is_set_replaces_both_of_the_callers() -> None:
    call = parse(CHAT, max_completion_tokens=900, max_tokens=50)
    CHAT.set_cap(call, 300)
    assert call.body["max_completion_tokens"] == 300
    assert "max_tokens" not in call.body


def test_a_cap_that_is_set_keeps_the_name_that_the_caller_uses() -> None:
    call = parse(CHAT, max_tokens=900)
    CHAT.set_cap(call, 300)
    assert call.body["max_tokens"] == 300
    assert "max_completion_tokens" not in call.body


def test_every_answer_that_is_asked_for_counts() -> None:
    assert parse(CHAT, n=7).answers == 7
    assert refusal(CHAT, n=129).param == "n"


def test_a_stream_always_asks_for_usage_and_hides_it_from_those_who_did_not() -> None:
    for options, hidden in [
        (None, True),
        ({}, True),
        ({"include_usage": False}, True),
        ({"include_usage": True}, False),
    ]:
        call = parse(CHAT, stream=True, stream_options=options)
        assert call.hide_usage is hidden
        assert call.body["stream_options"] == {**(options or {}), "include_usage": True}


@pytest.mark.parametrize(
    "options", [[], "yes", True, {"include_usage": "x"}, {"include_usage": None}, {"include_usage": 1}]
)
def test_stream_options_of_another_form_are_refused(options: object) -> None:
    assert refusal(CHAT, stream=True, stream_options=options).param == "stream_options"


def test_nothing_is_stored() -> None:
    assert parse(CHAT, store=True).body["store"] is False
    assert "store" not in parse(CHAT).body
    assert parse(RESPONSES).body["store"] is False
    assert parse(RESPONSES, store=True).body["store"] is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "alloy", "format": "mp3"}),
        ("modalities", ["text", "audio"]),
        ("modalities", [["text"]]),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
    ],
)
def test_chat_names_the_field_that_it_cannot_bound(field: str, value: object) -> None:
    problem = refusal(CHAT, **{field: value})
    assert problem.param == field
    assert f"`{field}`" in problem.message


@pytest.mark.parametrize("kind", ["web_search", "mcp", "code_interpreter", "", None, 5, [], {}])
def test_chat_sells_no_tool_that_the_provider_runs(kind: object) -> None:
    assert refusal(CHAT, tools=[{"type": "function", "function": {"name": "f"}}, {"type": kind}]).param == "tools[1]"


def test_tools_of_the_caller_pass() -> None:
    assert parse(CHAT, tools=[{"type": "function", "function": {"name": "f"}}, {"type": "custom"}]).tools
    assert parse(CHAT, functions=[{"name": "f"}]).tools
    assert not parse(CHAT, tools=[]).tools


# --- chat: input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [None, [], "hello", {}, [None], ["hello"], [[]]])
def test_messages_are_a_list_of_objects(messages: object) -> None:
    assert str(refusal(CHAT, messages=messages).param).startswith("messages")


@pytest.mark.parametrize("role", [None, "", "root", "User", 1, [], {}, ["user"]])
def test_roles_are_known(role: object) -> None:
    assert refusal(CHAT, messages=[{"role": role, "content": "x"}]).param == "messages[0].role"


@pytest.mark.parametrize("content", [5, True, {"type": "text"}, [5], ["text"], [[{"type": "text"}]]])
def test_content_is_text_or_parts(content: object) -> None:
    assert str(refusal(CHAT, messages=[{"role": "user", "content": content}]).param).startswith("messages[0].content")


def test_a_message_without_content_passes_where_it_calls_a_tool() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert parse(CHAT, messages=[{"role": "assistant", "content": None, "tool_calls": calls}]).messages == 1


def test_images_are_counted_by_their_cap_and_not_by_their_bytes() -> None:
    call = parse(CHAT, messages=asks({"type": "text", "text": "what?"}, image(), image(detail="low")))
    assert (call.media.images, call.media.small_images, call.media.documents) == (1, 1, 0)
    assert call.media.data_bytes == 2 * len("iVBORw0KGgo=")


def test_an_image_that_the_provider_fetches_counts_like_any_other() -> None:
    call = parse(CHAT, messages=asks(image("https://example.com/a.png", detail="original")))
    assert (call.media.images, call.media.data_bytes) == (1, 0)


def test_a_document_is_counted_as_one() -> None:
    call = parse(CHAT, messages=asks({"type": "file", "file": {"filename": "a.pdf", "file_data": PAPER}}))
    assert (call.media.documents, call.media.data_bytes) == (1, len("JVBERi0xLjQ="))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file_id": "file-1", "file": {"file_data": PAPER}},
        {"type": "file", "file": {"filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": PAPER, "file_url": "http://10.0.0.1/"}},
        {"type": "file"},
        {"type": "image_url", "image_url": PIXEL},
        {"type": ["text"]},
        {"type": {}},
        {"type": None},
        {"text": "no type"},
        {},
        {"type": "image_url"},
        image("data:image/png,plain"),
        image("data:image/png;base64"),
        image("data:image/png;" + "x=y;" * 60 + "base64,AAAA"),
        image(""),
        {"type": "image_url", "image_url": {"url": None}},
        {"type": "image_url", "image_url": {"url": ["https://example.com"]}},
    ],
)
def test_a_part_that_cannot_be_bounded_is_refused(part: object) -> None:
    assert str(refusal(CHAT, messages=asks(part)).param).startswith("messages[0].content[0]")


@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
def test_a_document_does_not_pass_for_an_image(wire: Wire) -> None:
    problem = refusal(CHAT, messages=asks(image(PAPER)))
    assert "as a file" in problem.message
    assert "as a file" in refusal(RESPONSES, input=asks(input_image(PAPER))).message


URLS = """http://example.com/a ftp://example.com/a file:///etc/passwd //example.com/a example.com/a https:///a https://
    https://localhost/ https://localhost./ https://127.0.0.1/ https://127.0.0.1./ https://127.1/ https://2130706433/
    https://0x7f.0.0.1/ https://0x7f000001/ https://0177.0.0.1/ https://[::1]/ https://[::ffff:127.0.0.1]/
    https://169.254.169.254/latest https://metadata.google.internal/ https://metadata.google.internal./
    https://printer.local/ https://db.home.arpa/ https://a.localhost/ https://router.lan/ https://host:443/
    https://127.0.0.1\\.example.com/ https://example.com\\@127.0.0.1/ https://１２７.0.0.1/ https://①②⑦.0.0.1/
    https://exam%70le.com/ https://user@10.0.0.1/ https://[bad/ HTTPS://LOCALHOST/ DATA:image/png;base64,AAAA
    javascript:alert(1) gopher://example.com/""".split()


@pytest.mark.parametrize("url", [*URLS, "https://exa\tmple.com/", "https://example.com/\n", "https://exam ple.com/"])
def test_a_provider_is_asked_to_fetch_from_public_names_alone(url: str) -> None:
    assert str(refusal(CHAT, messages=asks(image(url))).param).endswith(".url")
    assert str(refusal(RESPONSES, input=asks(input_image(url))).param).endswith(".image_url")


@pytest.mark.parametrize("url", ["https://example.com", "https://a-b.xn--p1ai:8443/x?y=z#f", "HTTPS://Example.COM./a"])
def test_a_public_name_passes(url: str) -> None:
    assert parse(CHAT, messages=asks(image(url))).media.images == 1


FAKE = json.dumps([image(PIXEL * 100)])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": FAKE},
        {"role": "user", "content": PIXEL * 100},
        {"role": "user", "content": [{"type": "text", "text": PIXEL * 100}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": PIXEL * 100}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": FAKE}}]},
        {"role": "assistant", "tool_calls": [image(PIXEL * 100)]},
        {"role": "tool", "tool_call_id": "c", "content": FAKE},
        {"role": "user", "name": PIXEL * 100, "content": "x"},
        {"role": "user", "content": "x", "image_url": {"url": PIXEL * 100}},
    ],
)
def test_what_only_looks_like_an_image_counts_by_its_bytes(message: Body) -> None:
    call = parse(CHAT, messages=[message])
    assert (call.media.images, call.media.data_bytes) == (0, 0)
    assert bodies.text_bound(bodies.encode(call.body), call.media.data_bytes) > 100 * len(PIXEL)


@given(st.text(min_size=1), st.integers(0, 3))
def test_no_more_is_subtracted_than_was_sent_as_base64(hidden: str, images: int) -> None:
    parts = [image("data:image/png;base64," + hidden) for _ in range(images)]
    call = parse(CHAT, messages=asks({"type": "text", "text": hidden}, *parts))
    payload = bodies.encode(call.body)
    assert (
        len(payload) - call.media.data_bytes
        >= len(json.dumps(hidden, ensure_ascii=False).encode("utf-8", "ignore")) - 2
    )


@pytest.mark.parametrize("field", ["audio", "images", "videos"])
def test_media_outside_of_the_content_are_refused(field: str) -> None:
    message = {"role": "assistant", "content": "x", field: [image("https://example.com/a.png")]}
    assert refusal(CHAT, messages=[message]).param == f"messages[0].{field}"


# --- caches ---------------------------------------------------------------------------------------------------


def marked(ttl: object) -> Body:
    return {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": ttl}}


def test_the_short_cache_passes() -> None:
    for options in (None, {}, {"mode": "explicit"}, {"ttl": "30m"}, {"ttl": None, "comparison_response_id": None}):
        assert not parse(CHAT, prompt_cache_options=options, messages=asks(marked("30m"))).long_cache
        assert not parse(RESPONSES, prompt_cache_options=options, input=asks(marked("30m"))).long_cache


def test_the_long_cache_raises_the_quote_where_its_writes_are_reported() -> None:
    assert parse(RESPONSES, prompt_cache_options={"ttl": "12h"}).long_cache
    assert parse(RESPONSES, input=asks(marked("30m"), marked("12h"))).long_cache
    output = {"type": "function_call_output", "call_id": "c", "output": [marked("12h"), marked("30m")]}
    assert parse(RESPONSES, input=[output, {"role": "user", "content": "x"}]).long_cache


def test_chat_does_not_report_long_cache_writes_and_so_does_not_sell_them() -> None:
    assert refusal(CHAT, prompt_cache_options={"ttl": "12h"}).param == "prompt_cache_options"
    assert refusal(CHAT, messages=asks(marked("12h"))).param == "prompt_cache_options"


@pytest.mark.parametrize("ttl", ["24h", "1h", "", 12, [], {}, True])
def test_a_lifetime_without_a_price_is_refused(ttl: object) -> None:
    for wire, ask in ((CHAT, {"messages": asks(marked(ttl))}), (RESPONSES, {"input": asks(marked(ttl))})):
        assert "prompt_cache" in str(refusal(wire, prompt_cache_options={"ttl": ttl}).param)
        assert "prompt_cache" in str(refusal(wire, **ask).param)


def test_a_stored_response_is_no_measure_of_the_cache() -> None:
    refusal(RESPONSES, prompt_cache_options={"comparison_response_id": "resp_1"})
    refusal(RESPONSES, prompt_cache_options=[])


# --- responses: what stands elsewhere -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "instead"),
    [
        ("previous_response_id", "resp_1", "whole conversation"),
        ("conversation", "conv_1", "whole conversation"),
        ("conversation", {"id": "conv_1"}, "whole conversation"),
        ("prompt", {"id": "pmpt_1"}, "send the text"),
        ("background", True, "stream"),
        ("context_management", [{"type": "compaction"}], "shorten"),
        ("context_management", [], "shorten"),
        ("multi_agent", {"enabled": True}, "a request of its own"),
        ("access_programs", {"cyber": "daybreak_red"}, "operator"),
    ],
)
def test_responses_says_what_to_do_instead(field: str, value: object, instead: str) -> None:
    problem = refusal(RESPONSES, **{field: value})
    assert problem.param == field
    assert instead in problem.message


def test_what_is_null_or_false_is_not_asked_for() -> None:
    nothing = dict.fromkeys(("previous_response_id", "conversation", "prompt", "context_management", "multi_agent"))
    assert parse(RESPONSES, background=False, **nothing).cap is None


@pytest.mark.parametrize("background", [1, "true", [], {}])
def test_background_is_true_or_false(background: object) -> None:
    assert refusal(RESPONSES, background=background).param == "background"


@pytest.mark.parametrize("item", sorted(REFUSED_ITEMS))
def test_items_that_stand_for_something_elsewhere_are_refused_with_a_reason(item: str) -> None:
    problem = refusal(RESPONSES, input=[{"role": "user", "content": "x"}, {"type": item, "id": "x"}])
    assert problem.param == "input[1]"
    assert f"`{item}`: {REFUSED_ITEMS[item]}" in problem.message


def test_an_id_alone_is_a_reference() -> None:
    assert "`store` to false" in refusal(RESPONSES, input=[{"id": "msg_1"}]).message
    assert "reasoning.encrypted_content" in refusal(RESPONSES, input=[{"type": "reasoning", "id": "rs_1"}]).message
    assert refusal(RESPONSES, input=[{"type": "reasoning", "id": "rs_1", "summary": []}]).param == "input[0]"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    ],
)
def test_reasoning_that_is_all_there_passes(item: Body) -> None:
    assert parse(RESPONSES, input=[item]).messages == 1


@pytest.mark.parametrize("kind", ["brand_new_item", "", None, 5, [], {}])
def test_an_item_of_an_unknown_type_is_refused(kind: object) -> None:
    assert str(refusal(RESPONSES, input=[{"type": kind, "role": "user", "content": "x"}]).param).startswith("input[0]")


@pytest.mark.parametrize("given_input", [None, 5, [], {}, True, ["x"], [None], [[]]])
def test_input_is_a_text_or_items(given_input: object) -> None:
    assert str(refusal(RESPONSES, input=given_input).param).startswith("input")


@pytest.mark.parametrize(
    "item", [{"role": "root", "content": "x"}, {"role": "user"}, {"role": ["user"], "content": "x"}]
)
def test_a_message_has_a_role_and_content(item: Body) -> None:
    assert str(refusal(RESPONSES, input=[item]).param).startswith("input[0].")
    assert str(refusal(RESPONSES, input=[{"type": "message", **item}]).param).startswith("input[0].")


@pytest.mark.parametrize("instructions", [[], [input_image("https://example.com/a.png")], {}, 5])
def test_instructions_are_text(instructions: object) -> None:
    assert refusal(RESPONSES, instructions=instructions).param == "instructions"


# --- responses: tools -----------------------------------------------------------------------------------------

FUNCTION: Body = {"type": "function", "name": "f", "parameters": {}, "strict": True}


@pytest.mark.parametrize(
    "tool",
    [
        FUNCTION,
        {"type": "custom", "name": "c"},
        {"type": "local_shell"},
        {"type": "apply_patch"},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "tool_search", "execution": "client"},
        {"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION, {"type": "custom", "name": "c"}]},
    ],
)
def test_tools_that_the_caller_runs_pass(tool: Body) -> None:
    call = parse(RESPONSES, tools=[tool])
    assert call.tools
    assert call.web_searches == 0


HOSTED: list[Body] = [
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "computer"},
    {"type": "computer_use_preview"},
    {"type": "mcp", "server_label": "x", "server_url": "https://example.com"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "programmatic_tool_calling"},
    {"type": "image_generation"},
    {"type": "web_search_preview"},
    {"type": "web_search_preview_2025_03_11"},
    {"type": "web_search_2025_08_26x"},
    {"type": "web_search_deep"},
    {"type": "shell"},
    {"type": "shell", "environment": None},
    {"type": "shell", "environment": "local"},
    {"type": "shell", "environment": {"type": "container_auto"}},
    {"type": "shell", "environment": {"type": "container_reference", "container_id": "c"}},
    {"type": "tool_search"},
    {"type": "tool_search", "execution": "server"},
    {"type": "namespace", "tools": [{"type": "web_search"}]},
    {"type": "namespace", "tools": [{"type": "namespace", "tools": []}]},
    {"type": "namespace", "tools": [{"type": ["function"]}]},
    {"type": "brand_new"},
    {"type": None},
    {"type": ["function"]},
    {},
]


@pytest.mark.parametrize("tool", HOSTED, ids=str)
def test_a_tool_that_the_provider_runs_is_refused_wherever_it_stands(tool: Body) -> None:
    assert str(refusal(RESPONSES, tools=[FUNCTION, tool]).param).startswith("tools[1]")
    for item in ({"type": "additional_tools", "role": "developer"}, {"type": "tool_search_output", "call_id": "c"}):
        problem = refusal(RESPONSES, input=[{**item, "tools": [tool]}, {"role": "user", "content": "x"}])
        assert str(problem.param).startswith("input[0].tools[0]")


@pytest.mark.parametrize("tools", ["x", {}, 5, [5], ["function"]])
def test_tools_are_a_list_of_objects(tools: object) -> None:
    assert str(refusal(RESPONSES, tools=tools).param).startswith("tools")


@pytest.mark.parametrize(("asked", "sold"), [(None, 5), (1, 1), (3, 3), (5, 5), (6, 5), (1000, 5)])
@pytest.mark.parametrize("kind", ["web_search", "web_search_2025_08_26"])
def test_web_searches_are_bounded_and_counted(kind: str, asked: int | None, sold: int) -> None:
    call = parse(RESPONSES, tools=[{"type": kind}, {"type": kind}], max_tool_calls=asked)
    assert (call.web_searches, call.body["max_tool_calls"]) == (sold, sold)


@pytest.mark.parametrize("kind", ["additional_tools", "tool_search_output"])
def test_a_web_search_among_the_items_is_bounded_too(kind: str) -> None:
    item = {"type": kind, "role": "developer", "tools": [{"type": "web_search"}]}
    call = parse(RESPONSES, input=[item, {"role": "user", "content": "x"}])
    assert (call.web_searches, call.body["max_tool_calls"]) == (5, 5)


def test_without_a_search_the_number_of_calls_is_the_providers_to_judge() -> None:
    assert "max_tool_calls" not in parse(RESPONSES, tools=[FUNCTION]).body
    assert parse(RESPONSES, tools=[FUNCTION], max_tool_calls=50).body["max_tool_calls"] == 50


def test_output_is_in_sight_where_neither_reasoning_nor_searches_hide_any() -> None:
    silent = {"effort": "none"}
    assert parse(RESPONSES, reasoning=silent).output_in_sight
    assert not parse(RESPONSES, reasoning=silent, tools=[{"type": "web_search"}]).output_in_sight
    assert not parse(RESPONSES, reasoning={"effort": "low"}).output_in_sight
    assert not parse(RESPONSES).output_in_sight
    assert refusal(RESPONSES, reasoning="none").param == "reasoning"


# --- responses: input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function_call_output", "custom_tool_call_output"])
def test_what_a_tool_gave_back_is_counted_part_by_part(kind: str) -> None:
    output = [
        {"type": "input_text", "text": "x"},
        input_image(detail="original"),
        {"type": "input_file", "file_data": PAPER},
    ]
    call = parse(RESPONSES, input=[{"type": kind, "call_id": "c", "output": output}])
    assert (call.media.images, call.media.documents) == (1, 1)
    assert call.media.data_bytes == len("iVBORw0KGgo=") + len("JVBERi0xLjQ=")
    assert parse(RESPONSES, input=[{"type": kind, "call_id": "c", "output": "done"}]).media.images == 0


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_image", "file_id": "file-1", "image_url": PIXEL},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_file", "filename": "a.pdf"},
        {"type": "input_file", "file_url": "http://example.com/a.pdf"},
        {"type": "input_file", "file_data": PAPER, "file_url": "https://10.0.0.1/a.pdf"},
        {"type": "input_audio", "input_audio": {}},
        {"type": "computer_screenshot", "image_url": "https://example.com/a.png"},
        {"type": "input_image"},
    ],
)
def test_stored_files_and_unknown_media_are_refused_wherever_they_stand(part: Body) -> None:
    assert str(refusal(RESPONSES, input=asks(part)).param).startswith("input[0].content[0]")
    for kind in ("function_call_output", "custom_tool_call_output", "local_shell_call_output", "shell_call_output"):
        assert str(refusal(RESPONSES, input=[{"type": kind, "output": [part]}]).param).startswith("input[0].output[0]")
    for kind in ("reasoning", "agent_message"):
        assert str(refusal(RESPONSES, input=[{"type": kind, "content": [part]}]).param).startswith(
            "input[0].content[0]"
        )
    assert str(refusal(RESPONSES, input=[{"type": "reasoning", "summary": [part]}]).param).startswith(
        "input[0].summary"
    )


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": FAKE},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": FAKE},
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": FAKE},
        {"type": "function_call_output", "call_id": "c", "output": FAKE},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": FAKE, "stderr": ""}]},
        {"type": "reasoning", "summary": [], "encrypted_content": FAKE},
        {"role": "user", "content": "x", "image_url": PIXEL * 100},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "image_url": PIXEL * 100},
    ],
)
def test_what_only_looks_like_an_image_counts_by_its_bytes_in_items_too(item: Body) -> None:
    call = parse(RESPONSES, input=[item])
    assert (call.media.images, call.media.data_bytes) == (0, 0)
    assert bodies.text_bound(bodies.encode(call.body), call.media.data_bytes) > 100 * len(PIXEL)


def test_a_shell_that_ran_in_the_providers_container_is_refused() -> None:
    item = {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}}
    assert parse(RESPONSES, input=[{**item, "environment": {"type": "local"}}]).messages == 1
    refused = {**item, "environment": {"type": "container_reference", "container_id": "c"}}
    assert refusal(RESPONSES, input=[refused]).param == "input[0].environment"


def test_what_codex_sends_passes() -> None:
    tools = [
        *({**FUNCTION, "name": f"f{number}"} for number in range(7)),
        {"type": "namespace", "name": "agents", "description": "d", "tools": [FUNCTION]},
        {"type": "web_search", "external_web_access": False, "search_content_types": ["text", "image"]},
    ]
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}, input_image()]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gAAAA"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "so"}],
            "phase": "commentary",
        },
        {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
        {
            "type": "local_shell_call",
            "call_id": "a",
            "status": "completed",
            "action": {"type": "exec", "command": ["ls"]},
        },
        {"type": "function_call_output", "call_id": "a", "output": "README.md"},
        {"type": "function_call", "call_id": "b", "name": "f1", "arguments": "{}", "namespace": "agents"},
        {"type": "function_call_output", "call_id": "b", "output": [input_image(detail="high")]},
        {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** Begin Patch"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
        {"type": "tool_search_call", "call_id": "d", "execution": "client", "arguments": {"query": "x"}},
        {
            "type": "tool_search_output",
            "call_id": "d",
            "execution": "client",
            "status": "completed",
            "tools": [FUNCTION],
        },
        {"type": "agent_message", "author": "a", "recipient": "b", "content": [{"type": "encrypted_content"}]},
    ]
    body: Body = {
        "model": "gpt-6-astra",
        "instructions": "You are Codex.",
        "input": items,
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto", "context": "all_turns"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "thread",
        "client_metadata": {"x-codex-installation-id": "1"},
    }
    before = json.loads(json.dumps(body))
    call = RESPONSES.parse(body, own_key=False)
    assert body == {**before, "service_tier": "default", "max_tool_calls": 5}
    assert (call.messages, call.tools, call.stream, call.web_searches, call.unknown) == (len(items), True, True, 5, ())
    assert (call.media.images, call.media.small_images) == (1, 1)


def test_what_the_vercel_sdk_sends_passes() -> None:
    items = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}], "id": "msg_1"},
        {"role": "assistant", "content": "yes"},
    ]
    assert parse(RESPONSES, input=items, stream=True, max_output_tokens=99).cap == 99


def test_every_item_is_either_counted_or_refused() -> None:
    assert not ITEMS & set(REFUSED_ITEMS)


# --- the caller's own key -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "more"),
    [
        (CHAT, {"audio": {}, "n": 10**9, "service_tier": "ultrafast", "store": True, "messages": "?", "models": []}),
        (RESPONSES, {"previous_response_id": "r", "background": True, "tools": "?", "input": 5, "store": True}),
        (EMBEDDINGS, {"input": {"image": "x"}, "provider": {}}),
    ],
    ids=lambda value: str(getattr(value, "name", "")),
)
def test_with_a_key_of_their_own_callers_may_ask_for_anything(wire: Wire, more: dict[str, Any]) -> None:
    body = {**LEAST[wire.name], **more}
    assert wire.parse(dict(body), own_key=True).body == body
    for field, value in (("model", None), ("stream", "yes")):
        with pytest.raises(Invalid):
            wire.parse({**body, field: value}, own_key=True)


# --- embeddings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_input", "texts"),
    [
        ("hello", 1),
        (["a", "b"], 2),
        ([1, 2, 3], 1),
        ([0, 10_000_000], 1),
        ([[1], [2, 3]], 2),
        (["a"] * 2048, 2048),
        ([7] * 5000, 1),
    ],
    ids=["text", "texts", "tokens", "bounds", "lists of tokens", "many texts", "many tokens"],
)
def test_embeddings_take_texts_or_tokens(given_input: object, texts: int) -> None:
    call = parse(EMBEDDINGS, input=given_input)
    assert (call.messages, call.cap_field, call.output_in_sight, call.free) == (texts, None, True, False)
    assert len(bodies.encode(call.body)) >= (len(given_input) if isinstance(given_input, list) else 5)


BAD_INPUTS: list[object] = [None, "", [], [""], ["a", ""], [[]], [[1], []], ["a", 1], [1, "a"], [[1], "a"], ["a", [1]]]
BAD_INPUTS += [[1.0], [True], [-1], [10_000_001], [[1, True]], [[1.5]], [[-1]], [None], [{}], {}, 5, True, [[[1]]]]


@pytest.mark.parametrize("given_input", [*BAD_INPUTS, ["a"] * 2049, [[1]] * 2049], ids=lambda value: str(value)[:30])
def test_embeddings_refuse_anything_else(given_input: object) -> None:
    assert str(refusal(EMBEDDINGS, input=given_input).param).startswith("input")


def test_embeddings_are_never_streamed() -> None:
    assert refusal(EMBEDDINGS, stream=True).param == "stream"
    with pytest.raises(ValueError, match="not streamed"):
        EMBEDDINGS.reader(parse(EMBEDDINGS), keep_text=False).feed(b"data: {}\n\n")
    with pytest.raises(AssertionError):
        EMBEDDINGS.set_cap(parse(EMBEDDINGS), 5)


# --- reading usage --------------------------------------------------------------------------------------------


def said(wire: Wire, usage: object, **more: object) -> Body:
    """A whole answer with this usage."""
    document: dict[str, Body] = {
        "openai_chat": {"choices": [{"message": {"content": "hello"}}]},
        "openai_responses": {"status": "completed", "output": [{"content": [{"text": "hello"}]}]},
        "openai_embeddings": {"data": []},
    }
    return {"model": "m", **document[wire.name], "usage": usage, **more}


def read(wire: Wire, answer: Body, **asked: object) -> Reading:
    reader = wire.reader(parse(wire, **asked), keep_text=False)
    assert reader.whole(json.dumps(answer).encode())
    return reader.reading


def chat_usage(**more: object) -> Body:
    return {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, **more}


def responses_usage(**more: object) -> Body:
    return {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120, **more}


def counted(reading: Reading) -> dict[str, int]:
    """The classes that are not zero."""
    assert reading.usage is not None
    Usage(**reading.usage)
    return {name: count for name, count in reading.usage.items() if count}


def test_chat_usage_is_split_into_classes_that_do_not_overlap() -> None:
    usage = chat_usage(
        prompt_tokens_details={"cached_tokens": 40, "cache_write_tokens": 10, "audio_tokens": 5, "image_tokens": 9},
        completion_tokens_details={"reasoning_tokens": 15, "audio_tokens": 2, "rejected_prediction_tokens": 3},
    )
    assert counted(read(CHAT, said(CHAT, usage))) == {
        "input": 45,
        "output": 18,
        "cache_read": 40,
        "cache_write": 10,
        "input_audio": 5,
        "output_audio": 2,
        "reasoning": 15,
    }


def test_responses_usage_is_split_by_how_long_the_cache_lives() -> None:
    details = {
        "cached_tokens": 40,
        "cache_write_tokens": 30,
        "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 20},
    }
    usage = responses_usage(input_tokens_details=details, output_tokens_details={"reasoning_tokens": 15})
    expected = {"input": 30, "output": 20, "cache_read": 40, "cache_write": 10, "cache_write_long": 20, "reasoning": 15}
    assert counted(read(RESPONSES, said(RESPONSES, usage))) == expected


@pytest.mark.parametrize(
    ("asked", "details", "short", "long"),
    [
        ("30m", {"cache_write_tokens": 30}, 30, 0),
        ("12h", {"cache_write_tokens": 30}, 0, 30),
        ("12h", {"cache_write_tokens": 30, "cache_write_tokens_details": None}, 0, 30),
        ("12h", {"cache_write_tokens": 30, "cache_write_tokens_details": {"ttl_30m_tokens": 30}}, 30, 0),
        ("30m", {"cache_write_tokens_details": {"ttl_30m_tokens": 4, "ttl_12h_tokens": 5}}, 4, 5),
        ("30m", {"cache_write_tokens": 30, "cache_write_tokens_details": {"ttl_12h_tokens": 5}}, 0, 30),
        (
            "30m",
            {"cache_write_tokens": 3, "cache_write_tokens_details": {"ttl_30m_tokens": 9, "ttl_12h_tokens": 5}},
            9,
            5,
        ),
    ],
)
def test_cache_writes_that_are_not_split_go_to_the_dearer_class_where_there_is_reason(
    asked: str, details: Body, short: int, long: int
) -> None:
    answer = said(RESPONSES, responses_usage(input_tokens_details=details))
    usage = counted(read(RESPONSES, answer, prompt_cache_options={"ttl": asked}))
    assert (usage.get("cache_write", 0), usage.get("cache_write_long", 0)) == (short, long)
    assert usage["input"] == 100 - short - long


NOTHING: list[object] = [None, {}, [], "100", 5, {"prompt_tokens": None}, {"total_tokens": 5}]
ODD_COUNTS = ["100", "", 100.5, 100.0, 1e30, True, [], {}, -1, -(10**30)]


@pytest.mark.parametrize("usage", NOTHING)
@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
def test_a_usage_that_is_missing_is_not_zero(wire: Wire, usage: object) -> None:
    assert read(wire, said(wire, usage)).usage is None


@pytest.mark.parametrize("count", ODD_COUNTS, ids=str)
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
def test_a_count_that_is_none_is_noted(wire: Wire, position: int, count: object) -> None:
    names = ("prompt_tokens", "completion_tokens") if wire is CHAT else ("input_tokens", "output_tokens")
    reading = read(wire, said(wire, {**dict.fromkeys(names, 100), names[position]: count}))
    assert reading.usage is None
    assert reading.nonsense


@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
def test_one_count_without_the_other_is_no_usage_where_there_was_output(wire: Wire) -> None:
    for usage in ({"prompt_tokens": 5, "input_tokens": 5}, {"completion_tokens": 5, "output_tokens": 5}):
        reading = read(wire, said(wire, usage))
        assert reading.usage is None
        assert reading.nonsense == "only one of two counts"


def test_zero_is_read_as_zero_and_a_huge_count_as_it_stands() -> None:
    zero = read(CHAT, said(CHAT, {"prompt_tokens": 0, "completion_tokens": 0}))
    assert zero.usage is not None
    assert sum(zero.usage.values()) == 0
    assert counted(read(RESPONSES, said(RESPONSES, {"input_tokens": 10**25, "output_tokens": 1})))["input"] == 10**25


DETAILS: list[object] = [
    {"cached_tokens": 101},
    {"cached_tokens": 60, "cache_write_tokens": 60},
    {"cached_tokens": -1},
    {"cached_tokens": 200, "cache_write_tokens": -150},
    {"cached_tokens": "3"},
    {"cached_tokens": 3.5},
    {"cached_tokens": []},
    {"cached_tokens": 10**30},
    [],
    "none",
    5,
]


@pytest.mark.parametrize("details", DETAILS, ids=str)
def test_details_that_cannot_be_believed_leave_the_total_at_the_full_price(details: object) -> None:
    for wire, usage in (
        (CHAT, chat_usage(prompt_tokens_details=details)),
        (RESPONSES, responses_usage(input_tokens_details=details)),
    ):
        reading = read(wire, said(wire, usage))
        assert counted(reading) == {"input": 100, "output": 20}
        assert reading.nonsense


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}, {"cached_tokens": 0, "new_kind_tokens": 5}])
def test_details_may_be_missing(details: object) -> None:
    reading = read(CHAT, said(CHAT, chat_usage(prompt_tokens_details=details, completion_tokens_details=details)))
    assert counted(reading) == {"input": 100, "output": 20}
    assert reading.nonsense is None


def test_more_audio_than_output_is_not_believed() -> None:
    reading = read(CHAT, said(CHAT, chat_usage(completion_tokens_details={"audio_tokens": 21, "reasoning_tokens": -5})))
    assert counted(reading) == {"input": 100, "output": 20}


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ({"cost": 0.25}, Decimal("0.25")),
        ({"cost": 0}, Decimal(0)),
        ({"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.4}}, Decimal("0.5")),
        ({"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, Decimal("0.1")),
        ({"cost": 0.1, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.4}}, Decimal("0.1")),
        ({"cost": None}, None),
        ({"cost": "lots"}, None),
        ({"cost": [], "is_byok": 5}, None),
        ({"cost": "sNaN", "is_byok": True, "cost_details": {"upstream_inference_cost": 1}}, None),
        ({}, None),
    ],
)
def test_a_cost_is_read_beside_the_tokens_and_never_in_their_way(cost: Body, expected: Decimal | None) -> None:
    for wire, usage in (
        (CHAT, chat_usage(**cost)),
        (RESPONSES, responses_usage(**cost)),
        (EMBEDDINGS, chat_usage(**cost)),
    ):
        reading = read(wire, said(wire, usage))
        assert reading.cost == expected
        assert reading.usage is not None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 8, "total_tokens": 8}, 8),
        ({"prompt_tokens": 8}, 8),
        ({"total_tokens": 8}, 8),
        ({"prompt_tokens": -8}, None),
        ({"prompt_tokens": "8"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_embeddings_usage(usage: object, expected: int | None) -> None:
    reading = read(EMBEDDINGS, said(EMBEDDINGS, usage))
    assert reading.usage == (None if expected is None else {"input": expected, "output": 0})
    assert reading.model == "m"


SEARCHED: list[Body] = [
    {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
    {"type": "web_search_call", "action": {"type": "open_page", "url": "x"}},
    {"type": "web_search_call", "action": {"type": "find_in_page", "url": "x"}},
    {"type": "web_search_call"},
    {"type": "message", "content": [{"text": "hello"}]},
]


@pytest.mark.parametrize(
    ("reported", "searches"),
    [
        ({"web_search": {"num_requests": 3}}, 3),
        ({"web_search": {"num_requests": 0}}, 0),
        ({"web_search": {"num_requests": -3}}, 2),
        ({"web_search": {"num_requests": "3"}}, 2),
        ({"web_search": None}, 2),
        ({}, 2),
        (None, 2),
        ([], 2),
    ],
)
def test_searches_are_read_beside_the_usage_or_counted_in_the_output(reported: object, searches: int) -> None:
    reading = read(RESPONSES, said(RESPONSES, responses_usage(), tool_usage=reported, output=SEARCHED))
    assert counted(reading).get("web_searches", 0) == searches


@pytest.mark.parametrize(
    ("reported", "tier"),
    [("default", "standard"), ("priority", "priority"), ("flex", "flex"), ("brand_new", None), (None, None)],
)
def test_the_tier_is_what_the_answer_says(reported: str | None, tier: str | None) -> None:
    assert read(CHAT, said(CHAT, chat_usage(), service_tier=reported)).tier == tier
    assert read(RESPONSES, said(RESPONSES, responses_usage(), service_tier=reported)).tier == tier


NOT_ANSWERS = [b"", b"{}", b"[]", b"null", b"<html>", b'{"error":{"message":"x"}}', b'{"usage":{}}', b'{"x":"\xff"}']


@EACH
@pytest.mark.parametrize("answer", NOT_ANSWERS)
def test_what_is_no_answer_is_not_taken_for_one(wire: Wire, answer: bytes) -> None:
    assert not wire.reader(parse(wire), keep_text=False).whole(answer)


def test_an_answer_of_an_odd_form_is_still_billed() -> None:
    odd = said(CHAT, chat_usage(), choices=[{"message": {"content": [{"type": "text", "text": "hello"}]}}])
    reading = read(CHAT, odd)
    assert counted(reading) == {"input": 100, "output": 20}
    assert reading.output_bytes > 5
    odd = said(RESPONSES, responses_usage(), output=[5, {"content": "x"}, {"content": [5]}], model=5, service_tier=[])
    assert counted(read(RESPONSES, odd)) == {"input": 100, "output": 20}


def test_visible_output_is_counted_in_utf8_bytes() -> None:
    call: Body = {"id": "call_123456", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": "é", "refusal": "no", "reasoning_content": "hm", "tool_calls": [call]}
    assert read(CHAT, said(CHAT, None, choices=[{"message": message}])).output_bytes == len("énohmf{}".encode())
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "é"}, {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "name": "f", "input": "go"},
        {"type": "local_shell_call", "action": {"command": ["ls"]}},
    ]
    seen = len("hmé".encode()) + len("no{}go") + len('{"command":["ls"]}')
    assert read(RESPONSES, said(RESPONSES, None, output=output)).output_bytes == seen


def test_text_is_kept_where_somebody_asks_for_it() -> None:
    reader = CHAT.reader(parse(CHAT), keep_text=True)
    reader.whole(json.dumps(said(CHAT, chat_usage())).encode())
    assert reader.reading.text == ["hello"]


def test_a_plain_response_that_failed_says_so() -> None:
    failed = said(RESPONSES, None, status="failed", output=[])
    assert read(RESPONSES, failed).error
    assert not read(RESPONSES, {**failed, "usage": responses_usage()}).error


@pytest.mark.parametrize("searched", [[], "three", {"web_search_requests": "three"}])
def test_searches_that_cannot_be_read_leave_the_tokens_to_be_charged(searched: object) -> None:
    reading = read(CHAT, said(CHAT, chat_usage(server_tool_use_details=searched)))
    assert counted(reading) == {"input": 100, "output": 20}


@pytest.mark.parametrize("output", [b'"\xff"', b"[1e999]"], ids=["no UTF-8", "a number without end"])
def test_an_output_that_cannot_be_read_has_its_usage_charged(output: bytes) -> None:
    reader = RESPONSES.reader(parse(RESPONSES), keep_text=True)
    assert reader.whole(b'{"output": ' + output + b', "usage": ' + json.dumps(responses_usage()).encode() + b"}")
    assert counted(reader.reading) == {"input": 100, "output": 20}
    assert reader.reading.text == []


# --- streams --------------------------------------------------------------------------------------------------


def chunk(**more: object) -> bytes:
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "model": "m", **more}).encode() + b"\n\n"


def delta(text: str, **more: object) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}}], **more)


def event(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more}, ensure_ascii=False)}\n\n".encode()


def terminal(kind: str = "response.completed", usage: object = None, **more: object) -> bytes:
    response = {"id": "resp_1", "model": "m", "output": [], "usage": usage, **more}
    return event(kind, sequence_number=9, response=response)


DONE = b"data: [DONE]\n\n"


def feed(reader: Reader, pieces: Sequence[bytes]) -> tuple[bytes, bytes | None]:
    """What passes, and the terminal frame, after which nothing is fed. All that has passed is read."""
    passed, last = b"", None
    for piece in pieces:
        more, last = reader.feed(piece)
        passed += more
        if last is not None:
            break
    reader.catch_up()
    return passed, last


def stream(wire: Wire, *pieces: bytes, **asked: object) -> tuple[Reading, bytes, bytes | None]:
    reader = wire.reader(parse(wire, stream=True, **asked), keep_text=True)
    return reader.reading, *feed(reader, pieces)


CHAT_STREAM = b"".join(
    [
        b": keep-alive\n\n",
        delta("hé", usage=None),
        delta("llo"),
        chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        chunk(choices=[], usage=chat_usage(prompt_tokens_details={"cached_tokens": 40}), service_tier="priority"),
        DONE,
    ]
)
RESPONSES_STREAM = b"".join(
    [
        event("response.created", sequence_number=0, response={"id": "resp_1", "model": "m", "usage": None}),
        b": keep-alive\n\n",
        event("response.output_text.delta", sequence_number=1, delta="hé"),
        event("response.output_text.delta", sequence_number=2, delta="llo"),
        terminal(usage=responses_usage(input_tokens_details={"cached_tokens": 40}), service_tier="priority"),
    ]
)
STREAMS = pytest.mark.parametrize(
    ("wire", "whole"),
    [(CHAT, CHAT_STREAM), (RESPONSES, RESPONSES_STREAM)],
    ids=lambda value: str(getattr(value, "name", "")),
)


def expect_hello(reading: Reading) -> None:
    assert counted(reading) == {"input": 60, "cache_read": 40, "output": 20}
    assert (reading.model, reading.tier, reading.error, reading.nonsense) == ("m", "priority", False, None)
    assert "".join(reading.text or ()) == "héllo"
    assert reading.output_bytes == len("héllo".encode())


@STREAMS
def test_a_stream_reads_the_same_wherever_it_is_cut_in_two(wire: Wire, whole: bytes) -> None:
    once = stream(wire, whole)
    expect_hello(once[0])
    for cut in range(len(whole) + 1):
        again = stream(wire, whole[:cut], whole[cut:])
        assert again[1:] == once[1:]
        assert again[0].usage == once[0].usage


@STREAMS
@given(data=st.data())
def test_a_stream_reads_the_same_however_it_is_cut_and_whatever_ends_its_lines(
    wire: Wire, whole: bytes, data: st.DataObject
) -> None:
    end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    whole = whole.replace(b"\n", end)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=40)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reading, passed, last = stream(wire, *pieces)
    expect_hello(reading)
    assert last is not None
    assert (passed, last) == stream(wire, whole)[1:]


@STREAMS
def test_the_terminal_frame_is_held_back_and_nothing_else_is(wire: Wire, whole: bytes) -> None:
    _, passed, last = stream(wire, whole, stream_options={"include_usage": True} if wire is CHAT else None)
    assert last is not None
    assert passed + last == whole.replace(b',"usage":null', b"")


@STREAMS
def test_what_comes_after_the_terminal_frame_is_dropped(wire: Wire, whole: bytes) -> None:
    late = delta("late", usage=chat_usage(prompt_tokens=999)) + terminal(usage=responses_usage(input_tokens=999))
    reading, passed, last = stream(wire, whole + late)
    expect_hello(reading)
    assert b"late" not in passed + (last or b"")


def test_the_usage_chunk_is_hidden_from_those_who_did_not_ask() -> None:
    _, passed, last = stream(CHAT, CHAT_STREAM)
    assert b"usage" not in passed.replace(b'"usage": null', b"")
    assert last == DONE
    _, passed, _ = stream(CHAT, CHAT_STREAM, stream_options={"include_usage": True})
    assert b'"prompt_tokens": 100' in passed


def test_a_null_usage_is_taken_out_and_text_that_looks_like_it_is_not() -> None:
    text = ',"usage":null'
    compact = json.dumps({"choices": [{"delta": {"content": text}}], "usage": None}, separators=(",", ":")).encode()
    _, passed, _ = stream(CHAT, b"data: " + compact + b"\n\n")
    assert json.loads(passed[6:]) == {"choices": [{"delta": {"content": text}}]}


def test_a_chunk_without_choices_or_usage_passes() -> None:
    first = chunk(choices=[], usage=None, prompt_filter_results=[])
    assert stream(CHAT, first)[1] == first


def test_usage_on_every_chunk_counts_once_and_a_falling_one_not_at_all() -> None:
    reports = [chat_usage(completion_tokens=count) for count in (1, 5, 5, 20, 3)]
    reading, _, _ = stream(CHAT, *(delta("x", usage=usage) for usage in reports), DONE)
    assert counted(reading) == {"input": 100, "output": 20}


@pytest.mark.parametrize(
    "worse", [None, {}, {"prompt_tokens": -1, "completion_tokens": 1}, "?", {"prompt_tokens": "1"}]
)
def test_a_report_without_sense_does_not_undo_an_earlier_one(worse: object) -> None:
    reading, _, _ = stream(CHAT, delta("x", usage=chat_usage(cost=0.5)), delta("y", usage=worse), DONE)
    assert counted(reading) == {"input": 100, "output": 20}
    assert reading.cost == Decimal("0.5")


def test_usage_on_an_error_frame_is_read() -> None:
    reading, _, last = stream(CHAT, delta("x"), chunk(error={"message": "overloaded"}, choices=[], usage=chat_usage()))
    assert counted(reading) == {"input": 100, "output": 20}
    assert reading.error
    assert last is not None


@pytest.mark.parametrize("end", ["[DONE]", "[DONE] ", "[DONE]\r"])
def test_done_is_the_end_of_a_chat(end: str) -> None:
    assert stream(CHAT, delta("x"), f"data: {end}\n\n".encode())[2] is not None


def test_done_is_not_the_end_of_a_response() -> None:
    reading, passed, last = stream(RESPONSES, event("response.output_text.delta", delta="x"), DONE)
    assert (reading.output_bytes, last) == (1, None)
    assert b"[DONE]" not in passed
    assert stream(RESPONSES, DONE, terminal(usage=responses_usage()))[2] is not None


@STREAMS
@pytest.mark.parametrize(
    "frame",
    [
        b"data: {not json}\n\n",
        b"data: []\n\n",
        b"data: 5\n\n",
        b"data: " + b'{"a":' * 100_000 + b"\n\n",
        b'data: {"choices":' + b"[" * 100_000 + b"\n\n",
        b'data: {"type":"x","response":' + b"[" * 100_000 + b"\n\n",
        b'data: {"usage":' + b"[" * 2_000 + b"]" * 2_000 + b"}\n\n",
        b'data: {"choices":"?","delta":5,"type":5}\n\n',
        b'data: {"choices":[{"delta":{"content":"\xff"}}],"delta":"\xff"}\n\n',
        b"data: {}\n\n",
        b"event: ping\n\n",
        b"id: 5\nretry: 10\n\n",
        b"\n\n",
        b": only a comment\n\n",
    ],
    ids=lambda frame: str(frame)[:40],
)
def test_a_frame_that_cannot_be_read_passes_as_it_is(wire: Wire, whole: bytes, frame: bytes) -> None:
    reading, passed, last = stream(wire, frame, whole)
    assert passed.startswith(frame)
    assert last is not None
    assert counted(reading) == {"input": 60, "cache_read": 40, "output": 20}


@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
def test_an_unreadable_frame_counts_as_output_of_its_size(wire: Wire) -> None:
    assert stream(wire, b"data: {not json}\n\n")[0].output_bytes == len("{not json}")


@pytest.mark.parametrize("wire", [CHAT, RESPONSES], ids=lambda wire: str(wire.name))
def test_a_frame_larger_than_any_answer_ends_the_reading(wire: Wire) -> None:
    reader = wire.reader(parse(wire, stream=True), keep_text=False)
    assert reader.feed(b"x" * MOST_FRAME_BYTES) == (b"", None)
    with pytest.raises(ValueError, match="too large"):
        reader.feed(b"x")


@pytest.mark.parametrize(
    ("kind", "visible"),
    [
        ("response.output_text.delta", 2),
        ("response.refusal.delta", 2),
        ("response.function_call_arguments.delta", 2),
        ("response.custom_tool_call_input.delta", 2),
        ("response.reasoning_text.delta", 2),
        ("response.reasoning_summary_text.delta", 2),
        ("response.output_text.done", 0),
        ("response.in_progress", 0),
    ],
)
def test_deltas_of_a_response_are_its_visible_output(kind: str, visible: int) -> None:
    assert stream(RESPONSES, event(kind, delta="é"))[0].output_bytes == visible


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_usage_stands_in_the_terminal_event(kind: str) -> None:
    final = terminal(kind, responses_usage(), tool_usage={"web_search": {"num_requests": 2}})
    reading, _, last = stream(RESPONSES, event("response.output_text.delta", delta="x"), final)
    assert counted(reading) == {"input": 100, "output": 20, "web_searches": 2}
    assert (last, reading.error) == (final, False)


@pytest.mark.parametrize(
    "final",
    [
        terminal("response.failed"),
        terminal("response.failed", usage={}),
        terminal("response.failed", usage="?"),
        event("response.failed"),
        event("response.failed", response=5),
        event("error", code="server_error", message="x", param=None, sequence_number=3),
        event("error", error={"type": "server_error", "message": "x"}),
    ],
)
def test_a_failure_without_usage_is_an_error(final: bytes) -> None:
    reading, _, last = stream(RESPONSES, event("response.output_text.delta", delta="x"), final)
    assert (reading.error, reading.usage, last) == (True, None, final)


def test_a_response_that_completes_without_usage_is_no_error() -> None:
    reading, _, last = stream(RESPONSES, terminal(usage=None))
    assert (reading.error, reading.usage) == (False, None)
    assert last is not None


def test_a_response_that_is_cut_is_known_by_its_beginning() -> None:
    created = {"id": "resp_1", "model": "gpt-6-sol-2026-09-01", "service_tier": "priority"}
    reading, _, last = stream(RESPONSES, event("response.created", response=created))
    assert (reading.model, reading.tier, last) == ("gpt-6-sol-2026-09-01", "priority", None)


def test_tool_calls_in_a_stream_count_by_what_they_say_and_not_by_their_frame() -> None:
    def call(**function: str) -> bytes:
        return chunk(choices=[{"delta": {"tool_calls": [{"index": 0, "id": "call_1", "function": function}]}}])

    pieces = [call(name="weather", arguments=""), call(arguments='{"ci'), call(arguments='ty":"Oslo"}')]
    assert stream(CHAT, *pieces)[0].output_bytes == len('weather{"city":"Oslo"}')
    odd = chunk(choices=[{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": {"city": "Oslo"}}}]}}])
    assert stream(CHAT, odd)[0].output_bytes > len('{"city":"Oslo"}')
    old = chunk(choices=[{"delta": {"function_call": {"name": "f", "arguments": "{}"}}}])
    assert stream(CHAT, old)[0].output_bytes == len("f{}")


# --- errors at the end of a stream ----------------------------------------------------------------------------


def document(frame: bytes) -> Body:
    found: Body = json.loads(frame.split(b"data: ", 1)[1])
    return found


def test_a_chat_that_breaks_off_ends_in_an_error_chunk() -> None:
    frame = CHAT.error_frame(UpstreamCut(detail="it ended early"), "req_1")
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    error = document(frame)["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["code"], error["param"]) == ("server_error", "upstream_cut", None)
    assert "it ended early" in error["message"]


def test_a_response_that_breaks_off_ends_in_a_failure_that_agents_and_sdks_read() -> None:
    frame = RESPONSES.error_frame(UpstreamCut(detail="it ended early"), "req_1", 8)
    assert frame.startswith(b"event: response.failed\ndata: ")
    found = document(frame)
    assert (found["type"], found["sequence_number"]) == ("response.failed", 8)
    response, error = found["response"], found["error"]
    assert isinstance(response, dict)
    assert isinstance(error, dict)
    assert (response["id"], response["status"]) == ("req_1", "failed")
    assert response["error"] == {"code": "upstream_cut", "message": error["message"]}
    assert (error["type"], error["code"]) == ("server_error", "upstream_cut")


def test_the_number_of_the_last_event_is_known() -> None:
    reader = RESPONSES.reader(parse(RESPONSES, stream=True), keep_text=False)
    assert reader.sequence == -1
    reader.feed(event("response.output_text.delta", delta="x", sequence_number=41))
    reader.feed(event("response.output_text.delta", delta="x", sequence_number="?"))
    reader.catch_up()
    assert reader.sequence == 41


@EACH
@pytest.mark.parametrize("render", [lambda wire, problem: wire.error_frame(problem, "req_1")])
def test_an_error_frame_is_one_frame_of_ascii(wire: Wire, render: Callable[[Wire, Problem], bytes]) -> None:
    problem = InsufficientFunds(required="é", available="\x1b[31m", affordable="\r\n\n", where="\u2028")
    frame = render(wire, problem)
    assert frame.isascii()
    assert frame.count(b"\n\n") == 1
    assert b"\r" not in frame
    assert b"\x1b" not in frame


def test_types_that_callers_name_are_repeated_only_where_that_is_safe() -> None:
    assert parts.shown("mcp") == "`mcp`"
    unsafe: list[object] = ["", "x" * 64, "a\nb", "\x1b[31m", 5, None, []]
    assert {parts.shown(kind) for kind in unsafe} == {"this type"}


def test_a_choice_that_says_nothing_passes() -> None:
    pieces = chunk(choices=[{"index": 0, "finish_reason": "stop"}]), delta("x"), DONE
    reading, passed, last = stream(CHAT, *pieces)
    assert (passed, last, reading.text) == (b"".join(pieces[:2]), DONE, ["x"])


def test_an_error_is_remembered_when_what_came_before_it_is_read_after_it() -> None:
    """An error frame is read at once, and what passed before it when somebody asks; each frame that was read then
    said again whether it was an error, so that the error was forgotten."""
    before = event("response.in_progress", sequence_number=1, response={"id": "resp_1"})
    failed = event("error", code="server_error", message="busy", sequence_number=2)
    reading, passed, last = stream(RESPONSES, before + failed)
    assert (passed, last, reading.error) == (before, failed, True)


@pytest.mark.parametrize(("wire", "field"), [(CHAT, "max_completion_tokens"), (RESPONSES, "max_output_tokens")])
def test_the_cap_that_is_sent_is_the_one_that_is_set(wire: Wire, field: str) -> None:
    call = parse(wire)
    wire.set_cap(call, 300)
    assert call.body[field] == 300
