"""The vendors' own SDKs, over real sockets, against the running daemon: what works, and what it costs to the last
nanodollar. The price of each call is computed here from what the answer says it used and what `GET /v1/pricing` says
it costs; header, stream, row and `/v1/usage` must all agree with it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.asking import Reply, ask, chat, directed, message, opened
from tests.world import Customer, World

GPT, CLAUDE, EMBEDDER = "gpt-4o-mini", "claude-haiku-4-5", "text-embedding-3-small"
NANO = Decimal("1e-9")


def openai_of(world: World, customer: Customer, base: str = "/v1") -> openai.OpenAI:
    return openai.OpenAI(base_url=world.url + base, api_key=customer.key, max_retries=0)


def anthropic_of(world: World, customer: Customer, base: str = "") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=world.url + base, api_key=customer.key, max_retries=0)


# --- every endpoint, by both SDKs -----------------------------------------------------------------------------


def test_the_openai_sdk_chats_plain_and_streamed(world: World) -> None:
    with openai_of(world, world.customer()) as client:
        plain = client.chat.completions.create(model=GPT, messages=[{"role": "user", "content": "Good morning"}])
        stream = client.chat.completions.create(
            model=GPT,
            messages=[{"role": "user", "content": "Good morning"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert plain.choices[0].message.content == said
    assert said.endswith('You said: "Good morning"')
    assert chunks[-1].usage == plain.usage


def test_the_openai_sdk_uses_responses_plain_and_streamed(world: World) -> None:
    with openai_of(world, world.customer()) as client:
        plain = client.responses.create(model=GPT, input="Good morning", instructions="Be brief.")
        events = list(client.responses.create(model=GPT, input="Good morning", instructions="Be brief.", stream=True))
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == plain.output_text
    assert last.response.usage == plain.usage


def test_the_openai_sdk_embeds_one_text_or_several(world: World) -> None:
    with openai_of(world, world.customer()) as client:
        one = client.embeddings.create(model=EMBEDDER, input="Good morning", encoding_format="float")
        three = client.embeddings.create(model=EMBEDDER, input=["Good", "morning", "Alice"], dimensions=16)
    assert len(one.data[0].embedding) == 1536
    assert [len(item.embedding) for item in three.data] == [16, 16, 16]


def test_the_anthropic_sdk_sends_messages_plain_and_streamed(world: World) -> None:
    with anthropic_of(world, world.customer()) as client:
        plain = client.messages.create(
            model=CLAUDE, max_tokens=200, messages=[{"role": "user", "content": "Good morning"}]
        )
        with client.messages.stream(
            model=CLAUDE, max_tokens=200, messages=[{"role": "user", "content": "Good morning"}]
        ) as stream:
            said = "".join(stream.text_stream)
            final = stream.get_final_message()
    assert [block.text for block in plain.content if block.type == "text"] == [said]
    assert final.usage == plain.usage
    assert final.stop_reason == "end_turn"


def test_counting_tokens_is_free_and_leaves_one_row(world: World) -> None:
    alice = world.customer(cents=0)
    with anthropic_of(world, alice) as client:
        counted = client.messages.count_tokens(model=CLAUDE, messages=[{"role": "user", "content": "Good morning"}])
    assert counted.input_tokens > 0
    (row,) = world.ended_rows(alice, 1)
    assert (row["wire"], row["status"], row["cost_nanos"], row["billed"]) == ("anthropic_count_tokens", "settled", 0, 0)


def test_the_async_clients_talk_at_the_same_time(world: World) -> None:
    alice = world.customer()

    async def conversation() -> list[str]:
        async with (
            openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=alice.key) as gpt,
            anthropic.AsyncAnthropic(base_url=world.url, api_key=alice.key) as claude,
        ):
            plain, answered, stream, kept = await asyncio.gather(
                gpt.chat.completions.create(model=GPT, messages=[{"role": "user", "content": "one"}]),
                gpt.responses.create(model=GPT, input="two"),
                gpt.chat.completions.create(model=GPT, messages=[{"role": "user", "content": "three"}], stream=True),
                claude.messages.create(model=CLAUDE, max_tokens=99, messages=[{"role": "user", "content": "four"}]),
            )
            streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
            async with claude.messages.stream(
                model=CLAUDE, max_tokens=99, messages=[{"role": "user", "content": "five"}]
            ) as messages:
                last = await messages.get_final_text()
        said = [plain.choices[0].message.content or "", answered.output_text, "".join(streamed)]
        return [*said, *(block.text for block in kept.content if block.type == "text"), last]

    said = asyncio.run(conversation())
    assert [re.findall(r'"(\w+)"', text) for text in said] == [["one"], ["two"], ["three"], ["four"], ["five"]]
    assert len(world.ended_rows(alice, 5)) == 5


def test_a_stream_has_no_usage_for_a_caller_who_did_not_ask_and_is_billed_all_the_same(world: World) -> None:
    alice = world.customer()
    with openai_of(world, alice) as client:
        stream = client.chat.completions.create(model=GPT, messages=[{"role": "user", "content": "Hi"}], stream=True)
        chunks = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert world.ended_rows(alice, 1)[0]["cost_nanos"] > 0


# --- tools: there and back ------------------------------------------------------------------------------------

SCHEMA: dict[str, object] = {"type": "object", "properties": {}}


def test_a_tool_goes_there_and_back_in_chat(world: World) -> None:
    tool: ChatCompletionToolParam = {"type": "function", "function": {"name": "clock", "parameters": SCHEMA}}
    talk: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Use the tool: what time is it?"}]
    with openai_of(world, world.customer()) as client:
        asked = client.chat.completions.create(model=GPT, messages=talk, tools=[tool])
        (call,) = asked.choices[0].message.tool_calls or []
        assert asked.choices[0].finish_reason == "tool_calls"
        assert call.type == "function" and call.function.name == "clock"
        function = {"name": call.function.name, "arguments": call.function.arguments}
        talk.append(
            {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]}  # type: ignore[typeddict-item]
        )
        talk.append({"role": "tool", "tool_call_id": call.id, "content": "noon"})
        answered = client.chat.completions.create(model=GPT, messages=talk, tools=[tool])
    assert answered.choices[0].finish_reason == "stop"
    assert answered.choices[0].message.content


def test_a_tool_goes_there_and_back_in_responses(world: World) -> None:
    with openai_of(world, world.customer()) as client:
        asked = client.responses.create(
            model=GPT,
            input="Use the tool: what time is it?",
            tools=[{"type": "function", "name": "clock", "parameters": SCHEMA, "strict": False}],
        )
        (call,) = [item for item in asked.output if item.type == "function_call"]
        answered = client.responses.create(
            model=GPT,
            input=[
                {"role": "user", "content": "Use the tool: what time is it?"},
                {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
                {"type": "function_call_output", "call_id": call.call_id, "output": "noon"},
            ],
            tools=[{"type": "function", "name": "clock", "parameters": SCHEMA, "strict": False}],
        )
    assert call.name == "clock"
    assert answered.output_text


def test_a_tool_goes_there_and_back_in_messages(world: World) -> None:
    tool: Any = {"name": "clock", "input_schema": SCHEMA}
    talk: list[Any] = [{"role": "user", "content": "Use the tool: what time is it?"}]
    with anthropic_of(world, world.customer()) as client:
        asked = client.messages.create(model=CLAUDE, max_tokens=200, messages=talk, tools=[tool])
        (call,) = [block for block in asked.content if block.type == "tool_use"]
        assert (asked.stop_reason, call.name) == ("tool_use", "clock")
        talk.append({"role": "assistant", "content": asked.content})
        talk.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "noon"}]})
        with client.messages.stream(model=CLAUDE, max_tokens=200, messages=talk, tools=[tool]) as stream:
            answered = stream.get_final_message()
    assert answered.stop_reason == "end_turn"


# --- models ---------------------------------------------------------------------------------------------------


def test_both_sdks_list_the_models_and_look_one_up(world: World) -> None:
    alice = world.customer(cents=0)
    with openai_of(world, alice) as gpt, anthropic_of(world, alice) as claude:
        listed = [model.id for model in gpt.models.list()]
        assert [model.id for model in claude.models.list(limit=1000)] == listed
        assert {GPT, CLAUDE, EMBEDDER} <= set(listed)
        assert gpt.models.retrieve(GPT).owned_by == "openai"
        one = claude.models.retrieve("claude-haiku-4-5-20251001")
    assert (one.id, one.type, one.display_name) == ("claude-haiku-4-5-20251001", "model", "Claude Haiku 4.5")


@pytest.mark.parametrize("base", ["", "/v1", "/v1/v1"])
def test_every_way_to_write_the_base_url_works(world: World, base: str) -> None:
    alice = world.customer()
    for path, body in (
        ("/chat/completions", chat()),
        ("/responses", {"model": GPT, "input": "Hello"}),
        ("/embeddings", {"model": EMBEDDER, "input": "Hello"}),
        ("/messages", message()),
        ("/messages/count_tokens", {name: value for name, value in message().items() if name != "max_tokens"}),
    ):
        assert ask(world, "POST", base + path, key=alice.key, body=body).status == 200, path
    if base != "/v1/v1":  # where the Anthropic SDK adds a third
        with anthropic_of(world, alice, base) as client:
            client.messages.create(model=CLAUDE, max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
        assert ask(world, "GET", f"{base}/models/{GPT}").json()["id"] == GPT


# --- what it costs --------------------------------------------------------------------------------------------

Row = dict[str, Any]
Use = dict[str, int]


def price_of(world: World, model: str, **tokens: int) -> Decimal:
    """Dollars for so many tokens of each published class, rounded up once, to a nanodollar."""
    prices = ask(world, "GET", "/v1/pricing").json()["models"][model]
    dollars = sum((Decimal(prices[name]) * count for name, count in tokens.items()), Decimal(0)) / 1000
    return dollars.quantize(NANO, ROUND_CEILING)


def chat_price(world: World, usage: Any) -> Decimal:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    plain, written = usage["prompt_tokens"] - cached, usage["completion_tokens"]
    return price_of(world, GPT, inputPer1kTokens=plain, cacheReadPer1kTokens=cached, outputPer1kTokens=written)


def responses_price(world: World, usage: Any) -> Decimal:
    cached = usage["input_tokens_details"]["cached_tokens"]
    plain, written = usage["input_tokens"] - cached, usage["output_tokens"]
    return price_of(world, GPT, inputPer1kTokens=plain, cacheReadPer1kTokens=cached, outputPer1kTokens=written)


def embeddings_price(world: World, usage: Any) -> Decimal:
    return price_of(world, EMBEDDER, inputPer1kTokens=usage["prompt_tokens"])


def messages_price(world: World, usage: Any) -> Decimal:
    hour = usage["cache_creation"]["ephemeral_1h_input_tokens"]
    return price_of(
        world,
        CLAUDE,
        inputPer1kTokens=usage["input_tokens"],
        cacheReadPer1kTokens=usage["cache_read_input_tokens"],
        cacheWritePer1kTokens=usage["cache_creation_input_tokens"] - hour,
        cacheWriteLongPer1kTokens=hour,
        outputPer1kTokens=usage["output_tokens"],
    )


def told_by(answer: Reply) -> tuple[Decimal, Any]:
    """What a plain answer says: its cost by the header, and its usage."""
    return Decimal(answer.headers["x-goosestack-cost-usd"]), answer.json()["usage"]


def told_by_stream(text: str) -> tuple[Decimal, Any]:
    """What a stream says: its cost by the comment before its last frame, and the last and fullest usage in it."""
    *_, comment, _last = text.strip().split("\n\n")
    found = re.fullmatch(r": goosestack cost-usd=(\S+) cost-cents=\d+ balance-cents=\d+", comment)
    assert found is not None, comment
    usage: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            for holder in (event, event.get("response") or {}, event.get("message") or {}):
                usage.update(holder.get("usage") or {})
    return Decimal(found.group(1)), usage


OPENAI_CACHED = directed(
    "Hi", words=101, usage={"prompt_tokens": 1237, "prompt_tokens_details": {"cached_tokens": 511}}
)
RESPONSES_CACHED = directed("Hi", words=97, usage={"input_tokens": 1237, "input_tokens_details": {"cached_tokens": 3}})
CLAUDE_CACHED = directed(
    "Hi",
    words=11,
    usage={
        "cache_read_input_tokens": 1009,
        "cache_creation_input_tokens": 77,
        "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 17},
    },
)
LONG_LIVED = [{"type": "text", "text": "rules", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
CALLS: list[tuple[str, str, dict[str, object], Callable[[World, Any], Decimal]]] = [
    ("chat", "/v1/chat/completions", chat(OPENAI_CACHED), chat_price),
    ("responses", "/v1/responses", {"model": GPT, "input": RESPONSES_CACHED}, responses_price),
    ("embeddings", "/v1/embeddings", {"model": EMBEDDER, "input": "What does it cost?"}, embeddings_price),
    ("messages", "/v1/messages", message(CLAUDE_CACHED, system=LONG_LIVED), messages_price),
]


def assert_everything_agrees(world: World, customer: Customer, cost: Decimal) -> None:
    """The row, and `GET /v1/usage`, say what the answer said."""
    (row,) = world.ended_rows(customer, 1)
    assert row["cost_nanos"] * NANO == cost
    assert (row["status"], row["estimated"], row["shortfall"]) == ("settled", 0, 0)
    usage = ask(world, "GET", "/v1/usage", key=customer.key).json()
    assert Decimal(usage["recent_requests"][0]["cost_usd"]) == cost
    assert Decimal(usage["usage_30d"][0]["cost_usd"]) == cost
    assert usage["balance_cents"] == 1000 - (cost * 100).to_integral_value(ROUND_CEILING)
    assert usage["held_cents"] == 0


@pytest.mark.parametrize(("path", "body", "price"), [call[1:] for call in CALLS], ids=[call[0] for call in CALLS])
def test_a_plain_answer_costs_what_its_usage_says_to_the_last_nanodollar(
    world: World, path: str, body: dict[str, object], price: Callable[[World, Any], Decimal]
) -> None:
    alice = world.customer(1000)
    cost, usage = told_by(ask(world, "POST", path, key=alice.key, body=body))
    assert cost == price(world, usage) > 0
    assert_everything_agrees(world, alice, cost)


STREAMED = [call for call in CALLS if call[0] != "embeddings"]


@pytest.mark.parametrize(("path", "body", "price"), [call[1:] for call in STREAMED], ids=[call[0] for call in STREAMED])
def test_a_stream_says_what_it_cost_in_a_comment_before_its_last_frame(
    world: World, path: str, body: dict[str, object], price: Callable[[World, Any], Decimal]
) -> None:
    alice = world.customer(1000)
    asked = {"stream_options": {"include_usage": True}} if path.endswith("completions") else {}
    with opened(world, path, key=alice.key, body={**body, "stream": True, **asked}) as stream:
        text = stream.read().decode()
    cost, usage = told_by_stream(text)
    assert cost == price(world, usage) > 0
    assert_everything_agrees(world, alice, cost)


def test_the_sdks_can_read_the_cost_of_a_raw_response(world: World) -> None:
    alice = world.customer(1000)
    with openai_of(world, alice) as gpt, anthropic_of(world, alice) as claude:
        chatted = gpt.chat.completions.with_raw_response.create(model=GPT, messages=[{"role": "user", "content": "Hi"}])
        sent = claude.messages.with_raw_response.create(
            model=CLAUDE, max_tokens=99, messages=[{"role": "user", "content": "Hi"}]
        )
    by_openai, by_anthropic = chatted.parse().usage, sent.parse().usage
    assert by_openai is not None
    assert Decimal(chatted.headers["x-goosestack-cost-usd"]) == chat_price(world, by_openai.model_dump())
    assert Decimal(sent.headers["x-goosestack-cost-usd"]) == messages_price(world, by_anthropic.model_dump())
    assert (chatted.headers["x-goosestack-cost-cents"], sent.headers["x-goosestack-cost-cents"]) == ("1", "0")
    assert sent.headers["x-goosestack-balance-cents"] == "999"
    with openai_of(world, alice) as gpt:
        streamed = gpt.chat.completions.with_raw_response.create(
            model=GPT, messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        list(streamed.parse())
    assert streamed.request_id is not None and streamed.request_id.startswith("req_")


def test_a_markup_is_in_the_published_price_and_a_fraction_of_a_nanodollar_rounds_up(folder: Path) -> None:
    world = World.create(folder, MARKUP_PERCENT="33.3333")
    try:
        alice = world.customer(1000)
        answer = ask(
            world, "POST", "/v1/embeddings", key=alice.key, body={"model": EMBEDDER, "input": "Seven tokens or so"}
        )
        cost, usage = told_by(answer)
        assert ask(world, "GET", "/v1/pricing").json()["models"][EMBEDDER]["inputPer1kTokens"] == "0.00002666666"
        assert cost == embeddings_price(world, usage) > Decimal("26.66666e-9") * usage["prompt_tokens"]
        assert_everything_agrees(world, alice, cost)
    finally:
        world.close()


def test_many_small_calls_bill_the_sum_rounded_up_and_not_each_call(world: World) -> None:
    alice = world.customer(1000)
    exact, cents = Decimal(0), 0
    for number in range(30):
        question = directed(f"Question {number}", words=300)
        reply = ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(question))
        cost, usage = told_by(reply)
        assert cost == chat_price(world, usage)
        exact, cents = exact + cost, cents + int(reply.headers["x-goosestack-cost-cents"])
        assert cents == (exact * 100).to_integral_value(ROUND_CEILING)
        assert int(reply.headers["x-goosestack-balance-cents"]) == 1000 - cents
    assert 0 < cents < 30
    assert world.funds(alice)["balance_cents"] == 1000 - cents


# --- the output cap -------------------------------------------------------------------------------------------


def test_a_cap_that_we_set_is_sent_upstream_and_shown_and_the_callers_own_is_left_alone(world: World) -> None:
    alice, start = world.customer(1), world.upstream.mark()  # a cent pays for some 2,200 tokens of this model's output
    ours = ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(model="gpt-5.4-mini"))
    own = ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(max_completion_tokens=50))
    first, second = (dispatch["body"] for dispatch in world.upstream.dispatches(start))
    assert 1_900 <= first["max_completion_tokens"] < 2_222
    assert ours.headers["x-goosestack-output-cap"] == str(first["max_completion_tokens"])
    assert second["max_completion_tokens"] == 50
    assert own.headers["x-goosestack-output-cap"] is None


def test_nothing_is_injected_where_the_hold_covers_the_maximum_that_the_vendor_keeps(folder: Path) -> None:
    world = World.create(folder, DEFAULT_OUTPUT_CAP="0")
    try:
        alice = world.customer(1000)
        vendors = ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(model="gpt-5.4-mini"))
        operators = ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat())  # a limit of `world.toml`
        first, second = (dispatch["body"] for dispatch in world.upstream.dispatches())
        assert "max_completion_tokens" not in first and vendors.headers["x-goosestack-output-cap"] is None
        assert second["max_completion_tokens"] == 16_384 == int(operators.headers["x-goosestack-output-cap"])
    finally:
        world.close()
