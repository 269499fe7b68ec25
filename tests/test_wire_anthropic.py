"""What the gate makes of a request to Anthropic's Messages, and what it reads out of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from goosestack.errors import Invalid, Problem, ShuttingDown, Unsupported
from goosestack.wire import Body, Call, Reader
from goosestack.wire.anthropic_messages import (
    MOST_SEARCHES,
    REFUSED,
    REFUSED_BETAS,
    AnthropicCountTokens,
    AnthropicMessages,
    refused_beta,
)

MESSAGES, COUNT = AnthropicMessages(), AnthropicCountTokens()
LEAST: Body = {"model": "claude-haiku-4-5", "max_tokens": 2000, "messages": [{"role": "user", "content": "hello"}]}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


def parse(**more: object) -> Call:
    return MESSAGES.parse({**LEAST, **more}, own_key=False)


def refusal(**more: object) -> Problem:
    with pytest.raises(Problem) as caught:
        parse(**more)
    assert isinstance(caught.value, Invalid | Unsupported)
    assert caught.value.status == 400
    return caught.value


def asks(*blocks: object) -> list[Body]:
    return [{"role": "user", "content": list(blocks)}]


def block(kind: str, source: object) -> Body:
    return {"type": kind, "source": source}


# --- requests -------------------------------------------------------------------------------------------------


def test_the_least_request_passes_and_names_its_model() -> None:
    call = parse()
    assert (call.model, call.stream, call.cap, call.tier, call.us_only) == (
        "claude-haiku-4-5",
        False,
        2000,
        "standard",
        False,
    )
    assert (call.messages, call.tools, call.web_searches, call.long_cache, call.free) == (1, False, 0, False, False)
    assert call.body == {**LEAST, "service_tier": "standard_only"}, "whatever the operator's account defaults to"


def test_with_the_callers_own_key_nothing_is_bounded() -> None:
    body = {"model": "claude-haiku-4-5", "container": "c_1", "stream": True}
    call = MESSAGES.parse(dict(body), own_key=True)
    assert (call.body, call.stream, call.cap) == (body, True, None)


def test_an_unknown_field_passes_and_is_reported() -> None:
    call = parse(brand_new=1)
    assert (call.unknown, call.body["brand_new"]) == (("brand_new",), 1)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_unbound_the_cost_is_refused_by_name(name: str) -> None:
    assert refusal(**{name: "x"}).param == name


WRONG: dict[str, tuple[Body, str]] = {
    "no cap": ({"max_tokens": None}, "max_tokens"),
    "thinking of no kind": ({"thinking": {"budget_tokens": 1024}}, "thinking.type"),
    "thinking that is no object": ({"thinking": "enabled"}, "thinking"),
    "a budget that is no number": ({"thinking": {"type": "enabled", "budget_tokens": "all"}}, "budget_tokens"),
    "another tier": ({"service_tier": "priority"}, "service_tier"),
    "another speed": ({"speed": "ludicrous"}, "speed"),
    "another place": ({"inference_geo": "moon"}, "inference_geo"),
    "no messages": ({"messages": []}, "messages"),
    "a message that is none": ({"messages": ["hello"]}, "messages[0]"),
    "nobody's message": ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "content that is neither text nor blocks": ({"messages": [*asks(), {"role": "user", "content": 5}]}, "[1].content"),
    "a block that is none": ({"messages": asks("hello")}, "content[0]"),
    "a block of no kind": ({"messages": asks({"text": "hello"})}, "content[0].type"),
    "a system that is neither text nor blocks": ({"system": {"text": "x"}}, "system"),
    "an image without a source": ({"messages": asks({"type": "image"})}, "content[0].source"),
    "a source of no kind": ({"messages": asks(block("image", {"data": "x"}))}, "source.type"),
    "an image of text": ({"messages": asks(block("image", {"type": "text", "data": "x"}))}, "source.type"),
    "an image of blocks": ({"messages": asks(block("image", {"type": "content", "content": "x"}))}, "source.type"),
    "data that is no text": ({"messages": asks(block("image", {"type": "base64", "data": 5}))}, "source.type"),
    "a private address": ({"messages": asks(block("image", {"type": "url", "url": "http://10.0.0.1/"}))}, "source.url"),
    "tools that are no list": ({"tools": {}}, "tools"),
    "a tool that is none": ({"tools": ["bash"]}, "tools[0]"),
    "a tool of no kind": ({"tools": [{"type": 5}]}, "tools[0].type"),
    "no searches": ({"tools": [{"type": "web_search_20250305", "max_uses": 0}]}, "max_uses"),
    "edits that are no list": ({"context_management": {"edits": {}}}, "edits"),
    "management that is no object": ({"context_management": "all"}, "context_management"),
}


@pytest.mark.parametrize(("more", "words"), WRONG.values(), ids=list(WRONG))
def test_what_makes_no_sense_is_refused_where_it_stands(more: Body, words: str) -> None:
    assert words in refusal(**more).message


UNBOUNDED: dict[str, Body] = {
    "a stored file": {"messages": asks(block("document", {"type": "file", "file_id": "file_1"}))},
    "a stored file by another name": {"messages": asks(block("image", {**PIXEL, "file_id": "file_1"}))},
    "an upload": {"messages": asks({"type": "container_upload", "file_id": "file_1"})},
    "an upload in what a tool gave back": {
        "messages": asks({"type": "bash_code_execution_tool_result", "content": {"type": "container_upload"}})
    },
    "code that is run": {"tools": [{"type": "code_execution_20250825"}]},
    "pages that are fetched": {"tools": [{"type": "web_fetch_20250910"}]},
    "a compaction": {"context_management": {"edits": [{"type": "clear_thinking_1"}, {"type": "compact_20260112"}]}},
    "an edit of no kind": {"context_management": {"edits": [{}]}},
    "a message that is not in the request": {"diagnostics": {"previous_message_id": "msg_1"}},
}


@pytest.mark.parametrize("more", UNBOUNDED.values(), ids=list(UNBOUNDED))
def test_what_cannot_be_bounded_is_not_sold(more: Body) -> None:
    assert isinstance(refusal(**more), Unsupported)


@pytest.mark.parametrize(
    "more",
    [
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}, {"type": "clear_thinking_20251015"}]}},
        {"context_management": {"edits": []}},
        {"context_management": {}},
        {"diagnostics": {"trace": "x"}},
        {"diagnostics": None},
        {"messages": [{"role": "assistant", "content": "so far"}, {"role": "user", "content": []}]},
        {"messages": asks({"type": "thinking", "thinking": "hm", "signature": "s"})},
        {"messages": asks({"type": "tool_result", "tool_use_id": "t"})},
        {"system": [{"type": "text", "text": "short"}]},
    ],
    ids=json.dumps,
)
def test_what_adds_nothing_to_pay_for_passes_as_it_is(more: Body) -> None:
    call = parse(**more)
    assert {name: call.body[name] for name in more} == more
    assert (call.media.images, call.media.documents, call.media.data_bytes) == (0, 0, 0)


def test_media_are_counted_wherever_they_stand() -> None:
    image = block("image", PIXEL)
    page = block("document", {"type": "url", "url": "https://example.com/a.pdf"})
    made_of = block("document", {"type": "content", "content": [image, {"type": "text", "text": "x"}]})
    plain = block("document", {"type": "text", "media_type": "text/plain", "data": "x" * 50})
    given_back = {"type": "tool_result", "tool_use_id": "t", "content": [image, {"type": "text", "text": "x"}]}
    searched = {"type": "some_tool_result", "content": {"type": "fetched", "content": [page, "a text", {"type": "x"}]}}
    call = parse(messages=asks(image, page, made_of, plain, given_back, searched), system=[image])
    assert (call.media.images, call.media.documents) == (4, 2)
    assert call.media.data_bytes == 4 * len(PIXEL["data"])


def test_the_long_cache_is_asked_for_wherever_it_stands() -> None:
    hour = {"type": "ephemeral", "ttl": "1h"}
    assert parse(system=[{"type": "text", "text": "x", "cache_control": hour}]).long_cache
    assert parse(tools=[{"name": "f", "input_schema": {}, "cache_control": hour}]).long_cache
    assert not parse(cache_control={"type": "ephemeral", "ttl": "5m"}).long_cache


def test_speed_and_place_are_priced() -> None:
    assert parse(speed="fast").tier == "fast"
    assert parse(speed="standard", service_tier="auto").tier == "standard"
    assert parse(inference_geo="us").us_only and not parse(inference_geo="global").us_only


@pytest.mark.parametrize(("asked", "sent"), [(None, 5), (1, 1), (5, 5), (6, 5), (1000, 5)])
def test_searches_are_capped(asked: int | None, sent: int) -> None:
    tool: Body = {"type": "web_search_20250305", "name": "web_search"}
    call = parse(tools=[{**tool, **({} if asked is None else {"max_uses": asked})}, {"name": "f", "input_schema": {}}])
    assert (call.web_searches, call.vendor_tools, call.tools) == (sent, 1, True)
    assert call.body["tools"] == [{**tool, "max_uses": sent}, {"name": "f", "input_schema": {}}]
    assert sent <= MOST_SEARCHES


def test_output_is_in_sight_only_where_thinking_is_turned_off() -> None:
    assert parse(thinking={"type": "disabled"}).output_in_sight
    assert not parse(thinking={"type": "enabled", "budget_tokens": 1024}).output_in_sight
    assert not parse().output_in_sight


@pytest.mark.parametrize(
    ("budget", "cap", "thinks"),
    [
        (1024, 1500, 1024),
        (1500, 1501, 1500),
        (1500, 1500, 1244),
        (9000, 1281, 1025),
        (9000, 1280, 1024),
        (9000, 1279, None),
        (2000, 256, None),
    ],
)
def test_a_lowered_cap_lowers_the_budget_for_thinking_with_it_or_turns_it_off(
    budget: int, cap: int, thinks: int | None
) -> None:
    call = parse(max_tokens=10_000, thinking={"type": "enabled", "budget_tokens": budget, "display": "omitted"})
    MESSAGES.set_cap(call, cap)
    kept = {"type": "enabled", "budget_tokens": thinks, "display": "omitted"}
    assert call.body["thinking"] == ({"type": "disabled"} if thinks is None else kept)
    assert call.body["max_tokens"] == cap


@pytest.mark.parametrize("thinking", [{"type": "adaptive"}, {"type": "disabled"}, None])
def test_thinking_without_a_budget_stays_as_it_is_under_a_lowered_cap(thinking: Body | None) -> None:
    call = parse(**({} if thinking is None else {"thinking": thinking}))
    MESSAGES.set_cap(call, 300)
    assert (call.body["max_tokens"], call.body.get("thinking")) == (300, thinking)


def test_a_count_of_tokens_needs_no_cap_and_costs_nothing() -> None:
    body = {name: value for name, value in LEAST.items() if name != "max_tokens"}
    call = COUNT.parse({**body, "stream": True, "service_tier": "auto"}, own_key=False)
    assert (call.free, call.stream, call.cap, call.cap_field) == (True, False, None, None)
    assert call.body == body, "what counting does not know is not sent"
    with pytest.raises(Invalid):
        COUNT.parse({**body, "thinking": {"type": 5}}, own_key=False)


@pytest.mark.parametrize("name", REFUSED_BETAS)
def test_a_beta_that_unbounds_the_cost_is_found_in_the_header(name: str) -> None:
    assert refused_beta(f"interleaved-thinking-2025-05-14, {name.upper()}-2026-01-01") == f"{name}-2026-01-01"
    assert refused_beta("interleaved-thinking-2025-05-14,context-1m-2025-08-07") is None


# --- answers --------------------------------------------------------------------------------------------------


def reader(*, keep_text: bool = False) -> Reader:
    return MESSAGES.reader(parse(), keep_text=keep_text)


def frame(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


def begins(**usage: object) -> bytes:
    return frame("message_start", message={"model": "claude-haiku-4-5-20251001", "content": [], "usage": usage})


def says(text: str) -> bytes:
    return frame("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def usage_of(*frames: bytes) -> dict[str, int]:
    found = reader()
    for each in frames:
        found.feed(each)
    found.catch_up()
    assert found.reading.usage is not None
    return {name: count for name, count in found.reading.usage.items() if count}


def test_a_stream_is_read_as_it_passes_and_ends_with_its_last_event() -> None:
    found = reader(keep_text=True)
    passed, last = b"", None
    frames = [
        begins(input_tokens=12, output_tokens=1),
        says("hel"),
        says("lö"),
        frame("message_delta", delta={}, usage={"output_tokens": 7}),
    ]
    for each in frames:
        more, last = found.feed(each)
        passed += more
        assert last is None
    more, last = found.feed(frame("message_stop"))
    assert (passed + more, last) == (b"".join(frames), frame("message_stop"))
    found.catch_up()
    reading = found.reading
    assert (reading.model, reading.text, reading.output_bytes) == ("claude-haiku-4-5-20251001", ["hel", "lö"], 6)
    assert reading.usage is not None and (reading.usage["input"], reading.usage["output"]) == (12, 7)
    assert not reading.error and reading.nonsense is None


def test_an_error_event_ends_a_stream_and_is_remembered() -> None:
    """It is read at once, and what passed before it when somebody asks: which once made it forgotten."""
    found = reader()
    error = frame("error", error={"type": "overloaded_error", "message": "busy"})
    assert found.feed(says("x") + error) == (says("x"), error)
    found.catch_up()
    assert found.reading.error


def test_an_event_that_cannot_be_read_passes_and_counts_as_output() -> None:
    found = reader()
    odd = b'event: message_delta\ndata: {"type": "message_delta", "delta": 5}\n\n'
    assert found.feed(odd) == (odd, None)
    found.catch_up()
    assert found.reading.output_bytes == len(b'{"type": "message_delta", "delta": 5}')


def test_usage_is_cumulative_and_never_falls() -> None:
    assert usage_of(
        begins(input_tokens=10, cache_read_input_tokens=5, output_tokens=999),
        frame("message_delta", usage={"output_tokens": 20, "output_tokens_details": {"thinking_tokens": 15}}),
        frame("message_delta", usage={"output_tokens": 18, "input_tokens": 11}),
        frame("message_delta", usage={"server_tool_use": {"web_search_requests": 2}}),
    ) == {"input": 11, "cache_read": 5, "output": 20, "reasoning": 15, "web_searches": 2}


@pytest.mark.parametrize(
    ("written", "short", "long", "charged"),
    [
        (100, None, None, (100, 0)),
        (100, 100, 0, (100, 0)),
        (100, 0, 100, (0, 100)),
        (100, 30, 70, (30, 70)),
        (150, 30, 70, (30, 120)),
        (150, 100, 0, (150, 0)),
        (None, 30, 70, (30, 70)),
    ],
)
def test_what_was_written_beyond_its_split_is_taken_for_the_dearer_kind(
    written: int | None, short: int | None, long: int | None, charged: tuple[int, int]
) -> None:
    split = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
    found = usage_of(begins(input_tokens=1, cache_creation_input_tokens=written, cache_creation=split))
    assert (found.get("cache_write", 0), found.get("cache_write_long", 0)) == charged


@pytest.mark.parametrize(
    ("usage", "nonsense"),
    [
        ({"input_tokens": -1}, "a negative count"),
        ({"input_tokens": "many"}, "unreadable usage: ValidationError"),
        ({"input_tokens": 1, "cache_creation": [1]}, "unreadable usage: ValidationError"),
    ],
)
def test_a_usage_that_cannot_be_believed_is_none(usage: dict[str, object], nonsense: str) -> None:
    found = reader()
    found.feed(begins(**usage))
    found.catch_up()
    assert (found.reading.usage, found.reading.nonsense) == (None, nonsense)


@pytest.mark.parametrize(
    ("usage", "tier"),
    [({"speed": "fast"}, "fast"), ({"service_tier": "batch"}, "standard"), ({"service_tier": None}, None)],
)
def test_the_tier_is_the_one_that_served(usage: dict[str, object], tier: str | None) -> None:
    found = reader()
    found.feed(begins(input_tokens=1, **usage))
    found.catch_up()
    assert found.reading.tier == tier


def test_a_usage_that_counts_neither_input_nor_output_is_none() -> None:
    found = reader()
    found.feed(begins(cache_read_input_tokens=5, output_tokens=1))
    found.catch_up()
    assert found.reading.usage is None and found.reading.nonsense is None


def whole(answer: Any, given: Reader | None = None) -> tuple[bool, Reader]:
    found = given or reader(keep_text=True)
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return found.whole(data), found


def test_a_whole_message_is_read_at_once() -> None:
    content = [
        {"type": "text", "text": "hi"},
        {"type": "thinking", "thinking": "hm"},
        {"type": "tool_use", "input": {}},
    ]
    usage = {"input_tokens": 9, "output_tokens": 4, "service_tier": "standard"}
    readable, found = whole({"type": "message", "model": "claude-x", "content": content, "usage": usage})
    reading = found.reading
    assert readable and (reading.model, reading.text, reading.tier) == ("claude-x", ["hi", "hm"], "standard")
    assert reading.usage is not None and (reading.usage["input"], reading.usage["output"]) == (9, 4)


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", {"type": "error"}, {"content": "hi"}, {"content": None}])
def test_what_is_no_message_is_said_to_be_none(answer: Any) -> None:
    assert not whole(answer)[0]


def test_a_count_is_an_answer_that_costs_nothing() -> None:
    counting = COUNT.reader(parse(), keep_text=False)
    counting.catch_up()
    assert not whole({"error": "busy"}, counting)[0] and counting.reading.usage is None
    assert whole({"input_tokens": 14}, counting)[0] and counting.reading.usage == {}


def test_a_count_that_comes_as_a_stream_is_none() -> None:
    with pytest.raises(ValueError, match="not streamed"):
        COUNT.reader(parse(), keep_text=False).feed(b"data: {}\n\n")


def test_a_problem_is_an_error_event() -> None:
    sent = MESSAGES.error_frame(ShuttingDown(), "req_1")
    name, data = sent.decode().removesuffix("\n\n").split("\n")
    assert name == "event: error" and json.loads(data.removeprefix("data: "))["type"] == "error"
