"""The built-in upstream: what the official SDKs make of it, what it refuses, how it fails."""

from __future__ import annotations

import asyncio
import inspect
import json
import signal
import sys
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic.resources.messages import Messages as AnthropicMessages
from openai.resources.chat.completions import Completions
from openai.resources.embeddings import Embeddings
from openai.resources.responses import Responses

from goosestack import demo
from goosestack.demo import anthropic as messages_wire, chat, embeddings, responses

OPENAI_KEY, ANTHROPIC_KEY = "sk-openai-demo", "sk-ant-demo"
PATHS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
}
STREAMED = ("chat", "responses", "messages")
CASES = [(wire, stream) for wire in PATHS for stream in ((False, True) if wire in STREAMED else (False,))]
TERMINAL = {
    "chat": "data: [DONE]",
    "responses": "event: response.completed",
    "messages": "event: message_stop",
}
CUT_CAP = {
    "chat": "max_completion_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
}


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def told(**directive: object) -> str:
    """A question that bears a directive."""
    return f"Alice asks: what is a goose? demo:{json.dumps(directive)}"


def question(wire: str, text: str, stream: bool = False, **more: object) -> dict[str, Any]:
    """The smallest good body of a wire format."""
    body: dict[str, Any] = {"model": "gpt-5.4-mini"}
    if wire in ("responses", "embeddings"):
        body["input"] = text
    else:
        body["messages"] = user(text)
    if wire == "messages":
        body["max_tokens"] = 1000
    if stream:
        body["stream"] = True
    return body | more


@dataclass
class Said:
    """All that came back over one raw connection, and how it ended."""

    raw: bytes
    ended: str  # eof or reset

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode()

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def body(self) -> bytes:
        """The body as it is, chunk by chunk put together where it is chunked."""
        body = self.raw.partition(b"\r\n\r\n")[2]
        return b"".join(self.chunks) if self.chunked else body

    @property
    def chunked(self) -> bool:
        return "transfer-encoding: chunked" in self.head.lower()

    @property
    def chunks(self) -> list[bytes]:
        rest, chunks = self.raw.partition(b"\r\n\r\n")[2], []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            chunks.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        return chunks

    @property
    def whole(self) -> bool:
        """Whether HTTP's own framing was kept to the end."""
        if self.chunked:
            return self.raw.endswith(b"0\r\n\r\n")
        return f"content-length: {len(self.body)}" in self.head.lower()

    @property
    def text(self) -> str:
        return self.body.decode()

    def documents(self) -> list[Any]:
        """The JSON of each frame."""
        lines = [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class World:
    """The demo upstream on a port, what it bears witness to, and ways to talk to it."""

    port: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    begins: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    ends: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    @cached_property
    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=OPENAI_KEY,
            base_url=f"http://127.0.0.1:{self.port}/v1",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(verify=False),  # spares reading certificates
        )

    @cached_property
    def anthropic(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            api_key=ANTHROPIC_KEY,
            base_url=f"http://127.0.0.1:{self.port}",
            max_retries=0,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=False),
        )

    async def close(self) -> None:
        for name in ("openai", "anthropic"):
            if name in self.__dict__:
                await getattr(self, name).close()

    def log(self, event: dict[str, object]) -> None:
        self.events.append(event)
        (self.ends if event["event"] == "end" else self.begins).put_nowait(event)

    async def end(self) -> dict[str, Any]:
        """The next request's end, as the witness tells it."""
        return await asyncio.wait_for(self.ends.get(), 5)

    async def connect(
        self, path: str, body: object, **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {
            "host": "demo",
            "connection": "close",
            "content-type": "application/json",
            "content-length": str(len(raw)),
        }
        if path.startswith("/v1/messages"):
            given |= {"x-api-key": ANTHROPIC_KEY, "anthropic-version": "2023-06-01"}
        else:
            given |= {"authorization": f"Bearer {OPENAI_KEY}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + raw)
        return reader, writer

    async def say(self, path: str, body: object, limit: int = 2**22, **headers: str) -> Said:
        """One raw exchange, read to its end or up to `limit` bytes."""
        reader, writer = await self.connect(path, body, **headers)
        raw, ended = b"", "eof"
        try:
            while len(raw) < limit and (data := await asyncio.wait_for(reader.read(2**18), 5)):
                raw += data
        except ConnectionResetError:
            ended = "reset"
        writer.close()
        return Said(raw, ended)

    async def ask(self, wire: str, text: str, stream: bool = False, **more: object) -> Said:
        return await self.say(PATHS[wire], question(wire, text, stream, **more))


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    app = demo.make_app(openai_key=OPENAI_KEY, anthropic_key=ANTHROPIC_KEY, log=made.log)
    runner, made.port = await demo.start(app)
    yield made
    await made.close()
    await runner.cleanup()


TOOL: Any = {"name": "weather", "description": "", "parameters": {"type": "object"}}
CHAT_TOOLS: Any = [{"type": "function", "function": TOOL}]
RESPONSE_TOOLS: Any = [{"type": "function", "strict": False, **TOOL}]
MESSAGE_TOOLS: Any = [{"name": "weather", "input_schema": {"type": "object"}}]


# What the SDKs make of it


@pytest.mark.asyncio
async def test_a_chat_answer_says_that_it_is_canned_and_echoes_the_question(world: World) -> None:
    answer = await world.openai.chat.completions.create(
        model="gpt-5.4-mini", messages=user("what does a goose say at night in winter, pray?")
    )
    text = answer.choices[0].message.content or ""
    assert "canned demo answer" in text
    assert '"what does a goose say at night in..."' in text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(text.split())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(text.split())
    assert answer.id.startswith("chatcmpl-") and answer.service_tier == "default"
    assert answer._request_id is not None


@pytest.mark.asyncio
async def test_a_chat_stream_reports_usage_only_to_who_asked(world: World) -> None:
    stream = await world.openai.chat.completions.create(
        model="m",
        messages=user(told(words=3)),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "This is a"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    asked = await world.ask("chat", told(words=1), stream=True, stream_options={"include_usage": True})
    assert [d["usage"] is None for d in asked.documents()] == [True, True, True, False]
    unasked = await world.ask("chat", told(words=1), stream=True)
    assert not any("usage" in document for document in unasked.documents())
    assert unasked.text.endswith("data: [DONE]\n\n")


@pytest.mark.asyncio
async def test_every_choice_of_n_is_told_and_counted(world: World) -> None:
    answer = await world.openai.chat.completions.create(model="m", messages=user(told(words=4, reasoning=10)), n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None and answer.usage.completion_tokens == 3 * 14
    stream = await world.openai.chat.completions.create(model="m", messages=user(told(words=4)), n=2, stream=True)
    heard = ["", ""]
    async for chunk in stream:
        heard[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert heard == ["This is a canned"] * 2


@pytest.mark.asyncio
async def test_a_chat_calls_the_first_function_then_answers_in_words(world: World) -> None:
    messages = user("use the tool")
    create = world.openai.chat.completions.create
    answer = await create(model="m", messages=messages, tools=CHAT_TOOLS)
    call: Any = (answer.choices[0].message.tool_calls or [])[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, call.function.arguments) == ("weather", "{}")
    async with world.openai.chat.completions.stream(model="m", messages=messages, tools=CHAT_TOOLS) as stream:
        final = await stream.get_final_completion()
    made: Any = (final.choices[0].message.tool_calls or [])[0]
    assert (made.function.name, made.function.arguments) == ("weather", "{}")
    result = {"role": "tool", "tool_call_id": call.id, "content": "snow"}
    messages = [*messages, answer.choices[0].message.model_dump(exclude_none=True), result]
    answer = await create(model="m", messages=messages, tools=CHAT_TOOLS)
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.content


@pytest.mark.asyncio
async def test_a_response_comes_whole_or_as_events_in_sequence(world: World) -> None:
    whole = await world.openai.responses.create(model="m", input=told(words=20))
    assert whole.status == "completed" and whole.output_text.startswith("This is a canned")
    assert whole.usage is not None and whole.usage.output_tokens == 20
    stream = await world.openai.responses.create(model="m", input=told(words=2), stream=True)
    events: list[Any] = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-1].response.output_text == "This is"
    assert events[-1].response.usage.output_tokens == 2
    assert events[0].response.usage is None


@pytest.mark.asyncio
async def test_a_response_calls_the_first_function_then_answers_in_words(world: World) -> None:
    items = user("use the tool")
    create = world.openai.responses.create
    answer: Any = await create(model="m", input=items, tools=RESPONSE_TOOLS)
    call = answer.output[0]
    assert (call.type, call.name, call.arguments) == ("function_call", "weather", "{}")
    async with world.openai.responses.stream(model="m", input=items, tools=RESPONSE_TOOLS) as stream:
        final: Any = await stream.get_final_response()
    assert (final.output[0].name, final.output[0].arguments) == ("weather", "{}")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "snow"}
    items = [*items, call.model_dump(exclude_none=True), result]
    answer = await create(model="m", input=items, tools=RESPONSE_TOOLS)
    assert answer.output_text


@pytest.mark.asyncio
async def test_a_message_comes_whole_or_as_events(world: World) -> None:
    whole: Any = await world.anthropic.messages.create(model="claude-haiku-5-5", max_tokens=100, messages=user("honk?"))
    assert whole.content[0].text.endswith('"honk?"') and whole.stop_reason == "end_turn"
    assert whole.usage.output_tokens == len(whole.content[0].text.split())
    assert whole.usage.cache_creation.ephemeral_1h_input_tokens == 0
    assert (whole.usage.cache_read_input_tokens, whole.usage.service_tier) == (0, "standard")
    async with world.anthropic.messages.stream(model="m", max_tokens=100, messages=user(told(words=3))) as stream:
        final: Any = await stream.get_final_message()
    assert (final.content[0].text, final.usage.output_tokens) == ("This is a", 3)
    said = await world.ask("messages", told(words=1), stream=True)
    assert [document["type"] for document in said.documents()] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert said.documents()[0]["message"]["usage"]["output_tokens"] == 1


@pytest.mark.asyncio
async def test_a_message_calls_the_first_tool_then_answers_in_words(world: World) -> None:
    messages = user("use the tool")
    create = world.anthropic.messages.create
    asked: Any = {"model": "m", "max_tokens": 100, "tools": MESSAGE_TOOLS}
    answer = await create(messages=messages, **asked)
    assert (answer.content[0].name, answer.content[0].input) == ("weather", {})
    assert answer.stop_reason == "tool_use"
    async with world.anthropic.messages.stream(messages=messages, **asked) as stream:
        final: Any = await stream.get_final_message()
    assert (final.content[0].name, final.content[0].input) == ("weather", {})
    result = {"type": "tool_result", "tool_use_id": answer.content[0].id, "content": "snow"}
    messages = [*messages, {"role": "assistant", "content": answer.content}]
    messages.append({"role": "user", "content": [result]})
    answer = await create(messages=messages, **asked)
    assert answer.content[0].type == "text"


@pytest.mark.asyncio
async def test_tokens_are_counted_as_a_message_would_report_them(world: World) -> None:
    text = "a goose is a bird " * 40
    counted = await world.anthropic.messages.count_tokens(model="m", messages=user(text))
    answer = await world.anthropic.messages.create(model="m", max_tokens=9, messages=user(text))
    assert counted.input_tokens == answer.usage.input_tokens > len(text) // 4


@pytest.mark.asyncio
@pytest.mark.parametrize("wire", CUT_CAP)
async def test_an_answer_longer_than_its_cap_is_cut_there(world: World, wire: str) -> None:
    cap: dict[str, Any] = {CUT_CAP[wire]: 20}
    body = (await world.ask(wire, told(words=50, reasoning=5), **cap)).json()
    usage = body["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == 20
    ended = {
        "chat": body.get("choices", [{}])[0].get("finish_reason"),
        "responses": (body.get("incomplete_details") or {}).get("reason"),
        "messages": body.get("stop_reason"),
    }
    assert ended[wire] in ("length", "max_output_tokens", "max_tokens")
    stream = await world.ask(wire, told(words=50), stream=True, **cap)
    cut = {"chat": '"length"', "responses": "response.incomplete", "messages": '"max_tokens"'}
    assert cut[wire] in stream.text


@pytest.mark.asyncio
async def test_embeddings_are_the_same_for_the_same_input(world: World) -> None:
    create = world.openai.embeddings.create
    packed = await create(model="text-embedding-3-small", input=["a", "b", "a"], dimensions=8)
    plain = await create(model="text-embedding-3-small", input="a", dimensions=8, encoding_format="float")
    first, second, third = [each.embedding for each in packed.data]
    assert first == third != second
    assert first == pytest.approx(plain.data[0].embedding)
    tokens = await create(model="text-embedding-3-large", input=[[1, 2, 3], [4]])
    assert tokens.usage.prompt_tokens == 4 and len(tokens.data[1].embedding) == 3072


@pytest.mark.asyncio
async def test_models_are_listed_in_openai_s_shape(world: World) -> None:
    assert [model.id async for model in world.openai.models.list()] == list(demo.MODELS)


@pytest.mark.asyncio
async def test_a_model_with_a_slash_is_answered_as_a_router_does(world: World) -> None:
    body = question("chat", told(words=2), model="acme/goose", max_tokens=9, transforms=[])
    whole = (await world.say(PATHS["chat"], body)).json()
    assert whole["id"].startswith("gen-")
    assert isinstance(whole["usage"]["cost"], float) and "cost_details" in whole["usage"]
    said = await world.say(PATHS["chat"], body | {"stream": True})
    assert said.text.startswith(": OPENROUTER PROCESSING\n\n")
    assert "x-generation-id: gen-" in said.head.lower()
    assert said.documents()[-1]["usage"]["completion_tokens"] == 2  # unasked
    body["messages"] = user(told(fault="error_402"))
    assert (await world.say(PATHS["chat"], body)).json()["error"]["code"] == 402
    body["messages"] = user(told(fault="error_frame"))
    frame = (await world.say(PATHS["chat"], body | {"stream": True})).documents()[-1]
    assert (frame["error"]["code"], frame["choices"][0]["finish_reason"]) == (500, "error")


# What it refuses


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


HI = {wire: question(wire, "hi") for wire in PATHS}
REFUSED_BODIES: list[tuple[str, object, int, str]] = [
    ("chat", HI["chat"] | {"max_token": 5}, 400, "unknown_parameter"),
    ("chat", HI["chat"] | {"temperature": "hot"}, 400, "invalid_type"),
    ("chat", HI["chat"] | {"n": True}, 400, "invalid_type"),
    ("chat", HI["chat"] | {"n": 0}, 400, "integer_below_min_value"),
    ("chat", HI["chat"] | {"n": 129}, 400, "integer_above_max_value"),
    ("chat", HI["chat"] | {"max_tokens": 5}, 400, "unsupported_parameter"),
    ("chat", HI["chat"] | {"service_tier": "gold"}, 400, "invalid_value"),
    ("chat", HI["chat"] | {"stream_options": {}}, 400, "only allowed when 'stream'"),
    ("chat", question("chat", "hi", True, stream_options={"x": 1}), 400, "stream_options.x"),
    ("chat", without(HI["chat"], "model"), 400, "missing_required_parameter"),
    ("chat", HI["chat"] | {"messages": []}, 400, "empty_array"),
    ("chat", HI["chat"] | {"messages": ["hi"]}, 400, "messages[0]"),
    ("chat", HI["chat"] | {"messages": [{"role": "goose"}]}, 400, "messages[0].role"),
    ("chat", HI["chat"] | {"messages": [{"role": "user", "content": 5}]}, 400, "content"),
    ("chat", b'{"model":"m","model":"n","messages":[]}', 400, "given twice"),
    ("chat", b'{"model":"m","temperature":NaN}', 400, "not valid JSON"),
    ("chat", b'{"model":"m","temperature":1e999}', 400, "not valid JSON"),
    ("chat", b"[]", 400, "JSON object"),
    ("chat", b"{" * 100_000, 400, "not valid JSON"),
    ("chat", b"[" * 100_000, 400, "not valid JSON"),
    ("chat", b"\xff", 400, "not valid JSON"),
    ("responses", HI["responses"] | {"messages": []}, 400, "unknown_parameter"),
    ("responses", HI["responses"] | {"max_output_tokens": 15}, 400, "below_min"),
    ("responses", HI["responses"] | {"previous_response_id": "r"}, 400, "unsupported_parameter"),
    ("responses", HI["responses"] | {"background": True}, 400, "unsupported_parameter"),
    ("responses", HI["responses"] | {"input": [5]}, 400, "input[0]"),
    ("embeddings", HI["embeddings"] | {"input": []}, 400, "1 to 2048"),
    ("embeddings", HI["embeddings"] | {"input": [["a"]]}, 400, "invalid_type"),
    ("embeddings", HI["embeddings"] | {"dimensions": 5000}, 400, "above_max"),
    ("messages", without(HI["messages"], "max_tokens"), 400, "max_tokens: Field required"),
    ("messages", HI["messages"] | {"foo": 1}, 400, "foo: Extra inputs are not permitted"),
    ("messages", HI["messages"] | {"max_tokens": "9"}, 400, "max_tokens: Input should be"),
    ("messages", HI["messages"] | {"max_tokens": -1}, 400, "greater than or equal"),
    ("messages", HI["messages"] | {"messages": [*user("a"), {"role": "user"}]}, 400, "messages.1"),
    ("messages", HI["messages"] | {"thinking": {"budget_tokens": 1024}}, 400, "budget_tokens"),
    ("count_tokens", HI["messages"], 400, "max_tokens: Extra inputs are not permitted"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("wire", "body", "status", "words"), REFUSED_BODIES)
async def test_a_body_that_the_vendor_refuses_is_refused_in_its_words(
    world: World, wire: str, body: object, status: int, words: str
) -> None:
    said = await world.say(PATHS[wire], body)
    assert said.status == status
    assert words in said.text
    error = said.json()
    if wire in ("messages", "count_tokens"):
        assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    else:
        assert set(error["error"]) == {"message", "type", "param", "code"}
    end = await world.end()
    assert (end["outcome"], end["status"], end["usage"]) == ("refused", status, {})


REFUSED_HEADERS: list[tuple[str, dict[str, str], int, str]] = [
    ("chat", {"authorization": ""}, 401, "API key"),
    ("chat", {"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
    ("chat", {"authorization": f"Basic {OPENAI_KEY}"}, 401, "invalid_api_key"),
    ("chat", {"content_type": "text/plain"}, 415, "content type"),
    ("chat", {"content_type": ""}, 415, "content type"),
    ("chat", {"content_encoding": "gzip"}, 400, "encoded"),
    ("chat", {"x_a": "1\r\nx-a: 2"}, 400, "more than once: x-a"),
    ("chat", {"x_forwarded_key": "gsk_alice"}, 400, "LEAK"),
    ("chat", {"authorization": "Bearer gsk_alice"}, 400, "LEAK"),
    ("messages", {"x_api_key": ""}, 401, "authentication_error"),
    ("messages", {"x_api_key": "wrong"}, 401, "authentication_error"),
    ("messages", {"authorization": "Bearer wrong"}, 401, "authentication_error"),
    ("messages", {"anthropic_version": ""}, 400, "anthropic-version: header is required"),
    ("messages", {"content_type": "text/plain"}, 400, "content type"),
    ("count_tokens", {"x_api_key": "gsk_alice"}, 400, "LEAK"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("wire", "headers", "status", "words"), REFUSED_HEADERS)
async def test_headers_that_the_vendor_refuses_are_refused(
    world: World, wire: str, headers: dict[str, Any], status: int, words: str
) -> None:
    said = await world.say(PATHS[wire], HI[wire], **headers)
    assert (said.status, words in said.text) == (status, True)


@pytest.mark.asyncio
async def test_only_the_vendors_own_routes_exist(world: World) -> None:
    paths = [*(path.removeprefix("/v1") for path in PATHS.values()), "/v1/completions", "/"]
    for path in paths:
        assert (await world.say(path, HI["chat"])).status == 404
    lost = (await world.say("/v1/messages/batches", {})).json()
    assert lost["error"]["type"] == "not_found_error"
    assert (await world.say("/v1/models", {})).status == 405
    assert (await world.say("/v1/messages?beta=true", HI["messages"])).status == 200


@pytest.mark.asyncio
async def test_anthropic_takes_either_credential_and_betas_bring_new_fields(world: World) -> None:
    said = await world.say(
        PATHS["messages"],
        HI["messages"] | {"context_management": {}},
        x_api_key="",
        authorization=f"Bearer {ANTHROPIC_KEY}",
        anthropic_beta="context-management-2025-06-27",
    )
    assert said.status == 200


@pytest.mark.asyncio
async def test_the_known_fields_are_those_of_the_sdks() -> None:
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout", "output_format"}
    own |= {"user_profile_id", "workspace_id"}  # these two are headers
    known = (
        (Completions.create, chat.FIELDS),
        (Responses.create, responses.FIELDS),
        (Embeddings.create, embeddings.FIELDS),
        (AnthropicMessages.create, messages_wire.FIELDS),
        (AnthropicMessages.count_tokens, messages_wire.COUNTED_FIELDS),
    )
    for create, fields in known:
        assert set(inspect.signature(create).parameters) - own <= set(fields)


# What a directive can ask for


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("directive", "words"),
    [
        ("{", "not valid JSON"),
        ('{"word": 1, "at": 2}', "unknown keys: word"),
        ('{"words": "5"}', "words must be of type integer"),
        ('{"words": -1}', "words must be between"),
        ('{"status": 99}', "status must be between"),
        ('{"fault": "fire"}', "unknown fault 'fire'"),
        ('{"usage_mode": "thrice"}', "usage_mode must be one of"),
        ('{"headers": {"a": "b\\r\\nc: d"}}', "one line"),
        ('{"usage": {"a": NaN}}', "NaN is not a JSON value"),
        ('{"fault": "crlf"}', "does not fit"),
        ('{"fault": "error_low_credit"}', "does not fit"),
    ],
)
async def test_a_directive_that_makes_no_sense_is_refused(world: World, directive: str, words: str) -> None:
    said = await world.ask("chat", f"hello demo:{directive}")
    assert (said.status, words in said.text) == (400, True)


@pytest.mark.asyncio
@pytest.mark.parametrize(("wire", "stream"), CASES)
async def test_a_directive_is_obeyed_on_every_wire(world: World, wire: str, stream: bool) -> None:
    said = await world.ask(
        wire,
        told(words=7, model="other", tier="flex", headers={"x-goose": "honk"}, hang_s=0.001),
        stream,
    )
    assert said.status == 200 and "x-goose: honk" in said.head.lower()
    if wire != "count_tokens":
        assert '"model":"other"' in said.text
    if wire in STREAMED:
        assert '"service_tier":"flex"' in said.text
    assert "demo:" not in said.text
    teapot = await world.ask(wire, told(status=418), stream)
    assert teapot.status == 418 and "error" in teapot.json()


@pytest.mark.asyncio
async def test_the_last_user_message_bears_the_directive_and_tools_do_not_move_it(
    world: World,
) -> None:
    messages = [*user(told(words=1)), *user(told(words=2)), {"role": "assistant", "content": "a"}]
    body = HI["chat"] | {"messages": messages}
    assert (await world.say(PATHS["chat"], body)).json()["usage"]["completion_tokens"] == 2
    parts = [{"type": "input_text", "text": told(words=3)}]
    items = [{"role": "user", "content": parts}]
    body = HI["responses"] | {"input": items}
    assert (await world.say(PATHS["responses"], body)).json()["usage"]["output_tokens"] == 3
    body = HI["embeddings"] | {"input": ["a", told(usage={"prompt_tokens": 99})]}
    assert (await world.say(PATHS["embeddings"], body)).json()["usage"]["prompt_tokens"] == 99


def usages(wire: str, said: Said) -> list[Any]:
    """Every usage in an answer in its order, doubles of a key included."""
    found: list[Any] = []

    def see(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(value for key, value in pairs if key == "usage")
        return dict(pairs)

    for line in said.text.splitlines():
        text = line.removeprefix("data: ")
        if text.startswith("{"):
            json.loads(text, object_pairs_hook=see)
    return found


OUTPUT = {"chat": "completion_tokens", "responses": "output_tokens", "messages": "output_tokens"}
ASKED = {"chat": {"stream_options": {"include_usage": True}}}


@pytest.mark.asyncio
@pytest.mark.parametrize("wire", STREAMED)
async def test_usage_is_reported_as_told(world: World, wire: str) -> None:
    name = OUTPUT[wire]

    async def reported(stream: bool, **directive: object) -> list[Any]:
        asked = ASKED.get(wire, {}) if stream else {}
        said = await world.ask(wire, told(words=6, **directive), stream, **asked)
        assert said.status == 200
        return [usage for usage in usages(wire, said) if usage is not None]

    for stream in (False, True):
        assert (await reported(stream))[-1][name] == 6
        assert (await reported(stream, usage={name: "many", "new": [1]}))[-1][name] == "many"
        assert name not in (await reported(stream, usage={name: None}))[-1]
        assert await reported(stream, usage_mode="missing") == []
        assert await reported(stream, usage_mode="null") == []
        twice = await reported(stream, usage_mode="twice")
        assert [usage[name] for usage in twice[-2:]] == [6, 6]
        less = await reported(stream, usage_mode="decreasing")
        assert [usage[name] for usage in less[-2:]] == [12, 6]
        raw = await reported(stream, usage_raw='{"x":1e999}')
        assert raw[-1] == {"x": float("inf")}
    every = [usage[name] for usage in await reported(True, usage_mode="every_chunk")]
    assert len(every) >= 3 and every[-1] == 6


@pytest.mark.asyncio
async def test_nested_usage_is_merged_and_reasoning_counts_as_output(world: World) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 9, "audio_tokens": None}}
    usage = (await world.ask("chat", told(words=2, reasoning=5, usage=details))).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 9, "cache_write_tokens": 0}
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 5
    assert usage["completion_tokens"] == 7
    end = await world.end()
    assert end["usage"] == usage


@pytest.mark.asyncio
async def test_the_tier_asked_for_is_reported_under_its_own_name(world: World) -> None:
    for asked, served in (("fast", "priority"), ("auto", "default"), ("flex", "flex")):
        said = await world.ask("responses", "hi", service_tier=asked)
        assert said.json()["service_tier"] == served
    said = await world.ask("messages", "hi", speed="fast")
    assert said.json()["usage"]["speed"] == "fast"


# How it fails

ERROR_CLASSES: dict[str, tuple[type[Exception], type[Exception]]] = {
    "error_400": (openai.BadRequestError, anthropic.BadRequestError),
    "error_401": (openai.AuthenticationError, anthropic.AuthenticationError),
    "error_402": (openai.APIStatusError, anthropic.APIStatusError),
    "error_403": (openai.PermissionDeniedError, anthropic.PermissionDeniedError),
    "error_404": (openai.NotFoundError, anthropic.NotFoundError),
    "error_408": (openai.APIStatusError, anthropic.APIStatusError),
    "error_413": (openai.APIStatusError, anthropic.APIStatusError),
    "error_422": (openai.UnprocessableEntityError, anthropic.UnprocessableEntityError),
    "error_429": (openai.RateLimitError, anthropic.RateLimitError),
    "error_quota": (openai.RateLimitError, anthropic.RateLimitError),
    "error_500": (openai.InternalServerError, anthropic.InternalServerError),
    "error_502": (openai.InternalServerError, anthropic.InternalServerError),
    "error_503": (openai.InternalServerError, anthropic.APIStatusError),
    "error_529": (openai.InternalServerError, anthropic.APIStatusError),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ERROR_CLASSES)
async def test_errors_are_the_vendors_own_and_give_the_operator_away(world: World, fault: str) -> None:
    with pytest.raises(ERROR_CLASSES[fault][0]) as seen:
        await world.openai.chat.completions.create(model="m", messages=user(told(fault=fault)))
    assert OPENAI_KEY in str(seen.value) and "org-canaryORG123" in str(seen.value)
    with pytest.raises(ERROR_CLASSES[fault][1]) as shown:
        await world.anthropic.messages.create(model="m", max_tokens=9, messages=user(told(fault=fault)))
    assert ANTHROPIC_KEY in str(shown.value)
    assert shown.value.request_id  # type: ignore[attr-defined]
    said = await world.ask("chat", told(fault=fault), stream=True)
    assert "openai-organization: org-canaryORG123" in said.head
    assert "application/json" in said.head and (await world.end())["outcome"] == f"fault:{fault}"


@pytest.mark.asyncio
async def test_low_credit_is_a_400_at_anthropic_and_a_rate_limit_says_when(world: World) -> None:
    said = await world.ask("messages", told(fault="error_low_credit"))
    assert said.status == 400 and "credit balance is too low" in said.text
    said = await world.ask("chat", told(fault="error_429"))
    assert "retry-after: 2" in said.head.lower()
    said = await world.ask("chat", told(fault="error_quota"))
    assert said.json()["error"]["code"] == "insufficient_quota"
    said = await world.ask("messages", told(fault="error_quota"))
    assert said.json()["error"]["details"]["error_code"] == "enforced_spend_limit_reached"


@pytest.mark.asyncio
async def test_the_sdks_raise_on_an_error_event(world: World) -> None:
    chunks = await world.openai.chat.completions.create(
        model="m", messages=user(told(fault="error_frame", at=3)), stream=True
    )
    with pytest.raises(openai.APIError):
        [chunk async for chunk in chunks]
    with pytest.raises(anthropic.APIStatusError):
        async with world.anthropic.messages.stream(
            model="m", max_tokens=9, messages=user(told(fault="error_frame", at=3))
        ) as stream:
            await stream.get_final_message()
    events: list[Any] = [
        event async for event in await world.openai.responses.create(model="m", input=told(fault="failed"), stream=True)
    ]
    assert (events[-1].type, events[-1].response.usage.output_tokens > 0) == (
        "response.failed",
        True,
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))


FAULT_SIGNS: dict[str, Any] = {
    "reset_before_headers": lambda said, _: said.ended == "reset" and not said.raw,
    "close_before_headers": lambda said, _: said.ended == "eof" and not said.raw,
    "stall_headers": lambda said, _: said.ended == "eof" and not said.raw,
    "reset": lambda said, _: said.ended == "reset" and said.body and not said.whole,
    "eof": lambda said, honest: said.whole and 0 < len(said.body) < len(honest.body),
    "short_length": lambda said, _: said.ended == "eof" and not said.whole and not said.chunked,
    "half_json": lambda said, _: said.ended == "eof" and said.body and not said.whole,
    "stall": lambda said, _: said.ended == "eof" and said.body and not said.whole,
    "bad_json": lambda said, _: said.whole and "oops" in said.text,
    "bad_utf8": lambda said, _: said.whole and b"\xff" in said.body,
    "no_object": lambda said, _: said.whole and '["demo"]' in said.text,
    "nested": lambda said, _: said.whole and said.text.count("[") >= 100_000,
    "html": lambda said, _: said.whole and "text/html" in said.head and "<h1>" in said.text,
    "wrong_content_type": lambda said, honest: said.whole and content_type(said) != content_type(honest),
    "empty": lambda said, _: said.status == 200 and said.whole and not said.body,
    "no_content": lambda said, _: said.status == 204 and not said.body,
    "not_http": lambda said, _: said.ended == "eof" and said.raw == b"220 ready\r\n",
    "bad_chunk": lambda said, _: said.ended == "eof" and said.raw.endswith(b"\r\nmany\r\n"),
    "two_lengths": lambda said, _: said.ended == "eof" and said.head.count("content-length") == 2,
    "early_hints": lambda said, honest: said.raw.count(b"HTTP/1.1 103") == 1000 and b"HTTP/1.1 200" in said.raw,
    "redirect": lambda said, _: said.status == 307 and "location: /elsewhere" in said.head.lower(),
    "error_200": lambda said, _: said.status == 200 and said.whole and '"error":' in said.text,
    "failed": lambda said, _: said.whole and "event: response.failed" in said.text,
    "error_frame": lambda said, _: said.whole and "canaryORG123" in said.text.split("\n\n")[-2],
    "drip": lambda said, honest: said.whole and said.body[:9] == honest.body[:9],
    "huge_header": lambda said, _: said.whole and len(said.head) > 200 * 1024,
    "many_headers": lambda said, _: said.whole and said.head.count("\n") > 5000,
    "crlf": lambda said, _: said.whole and "\n" not in said.text.replace("\r\n", ""),
    "byte_by_byte": lambda said, _: said.whole and all(len(c) < 2 for c in byte_pieces(said)),
    "coalesced": lambda said, _: said.whole and len(said.chunks) == 2,  # the last one is empty
    "comments": lambda said, _: said.whole and commented(said),
    "no_done": lambda said, honest: said.whole and frames(said) == frames(honest) - 1,
    "after_terminal": lambda said, honest: said.whole and frames(said) == frames(honest) + 2,
}


def content_type(said: Said) -> str:
    return next(line for line in said.head.lower().split("\r\n") if line.startswith("content-type"))


def byte_pieces(said: Said) -> list[bytes]:
    return said.chunks if said.chunked else []


def commented(said: Said) -> bool:
    return said.text.count(": keep-alive\n\n") == said.text.count(": inline\n") > 3


def frames(said: Said) -> int:
    return said.text.count("\ndata: ") + said.text.startswith("data: ")


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", FAULT_SIGNS)
async def test_each_fault_does_what_the_catalogue_says(world: World, fault: str) -> None:
    cases = [(wire, stream) for wire, stream in CASES if demo.fits(fault, wire, stream)]
    assert cases
    for wire, stream in cases:
        more: dict[str, Any] = {"dimensions": 4} if wire == "embeddings" else {}
        asked: dict[str, Any] = {"words": 2, "fault": fault, "delay_ms": 0, "hang_s": 0.001}
        honest = await world.ask(wire, told(words=2), stream, **more)
        assert (await world.end())["outcome"] == "completed"
        said = await world.ask(wire, told(**asked, location="/elsewhere"), stream, **more)
        assert FAULT_SIGNS[fault](said, honest), (wire, stream, said)
        end = await world.end()
        assert end["outcome"] == f"fault:{fault}" and isinstance(end["usage"], dict)
        if stream and fault in ("eof", "no_done", "error_frame", "failed", "half_json", "reset"):
            assert TERMINAL[wire] not in said.text
        if fault == "after_terminal":
            late = said.text.partition(TERMINAL[wire])[2]
            assert TERMINAL[wire] in honest.text and "usage" in late


UNTESTED_SIGNS = {"endless_line", "endless_body", "gzip_bomb", "second_answer"}  # each has a test of its own


@pytest.mark.asyncio
async def test_every_fault_has_a_description_and_a_test() -> None:
    assert set(demo.FAULTS) == set(demo.FAULT_TEXTS)
    errors = {*ERROR_CLASSES, "error_low_credit"}
    assert set(FAULT_SIGNS) | errors | UNTESTED_SIGNS == set(demo.FAULTS)


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ["endless_line", "endless_body"])
async def test_what_never_ends_goes_on_until_the_peer_leaves(world: World, fault: str) -> None:
    for wire, stream in CASES:
        body = question(wire, told(words=6, fault=fault), stream)
        said = await world.say(PATHS[wire], body, limit=2**20)
        assert len(said.raw) >= 2**20
        assert (await world.end())["outcome"] == "client_gone"
        last = said.raw.rpartition(b"a" * 1000)[1]
        assert bool(last) == (fault == "endless_line")


@pytest.mark.asyncio
async def test_a_gzip_bomb_is_small_on_the_wire_and_huge_unpacked(world: World) -> None:
    for wire, stream in CASES:
        said = await world.ask(wire, told(fault="gzip_bomb"), stream)
        assert "content-encoding: gzip" in said.head.lower() and len(said.raw) < 2**20
        unpacker = zlib.decompressobj(31)
        unpacked = unpacker.decompress(said.body, 2**22)
        assert len(unpacked) == 2**22 and b'{"id": "aaa' in unpacked
        assert len(unpacker.unconsumed_tail) > 60 * (len(said.body) - len(unpacker.unconsumed_tail))


@pytest.mark.asyncio
async def test_a_second_answer_comes_on_the_connection_that_the_first_was_given_on(world: World) -> None:
    for wire, stream in CASES:
        asked = question(wire, told(fault="second_answer"), stream)
        reader, writer = await world.connect(PATHS[wire], asked, connection="keep-alive")
        raw = await asyncio.wait_for(reader.readuntil(b"nobody asked for this"), 5)
        assert raw.count(b"HTTP/1.1 200 OK") == 2
        writer.close()


@pytest.mark.asyncio
async def test_a_fault_strikes_at_the_frame_it_is_told(world: World) -> None:
    for at in (0, 1, 4):
        said = await world.ask("chat", told(words=9, fault="reset", at=at), stream=True)
        assert (said.ended, said.text.count("data: "), said.status) == ("reset", at, 200)
        assert (await world.end())["frames"] == at
    said = await world.ask("responses", told(fault="half_json", at=0), stream=True)
    assert said.text.startswith("event: response.created\ndata: {") and "}}" not in said.text
    said = await world.ask("chat", told(fault="reset", at=0))
    assert (said.ended, said.status, said.body) == ("reset", 200, b"")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "directive",
    [
        {"fault": "stall_headers"},
        {"fault": "stall"},
        {"fault": "drip"},
        {"delay_ms": 60_000},
        {"hang_s": 60},
    ],
)
async def test_a_pause_ends_when_the_peer_leaves(world: World, directive: dict[str, Any]) -> None:
    _, writer = await world.connect(PATHS["chat"], question("chat", told(**directive), stream=True))
    await world.begins.get()
    writer.close()
    end = await asyncio.wait_for(world.ends.get(), 0.5)
    assert end["outcome"] == "client_gone"


@pytest.mark.asyncio
async def test_a_stop_of_the_upstream_is_not_taken_for_a_peer_that_left() -> None:
    world = World()
    app = demo.make_app(openai_key=OPENAI_KEY, anthropic_key=ANTHROPIC_KEY, log=world.log)
    runner, world.port = await demo.start(app)
    _, writer = await world.connect(PATHS["chat"], question("chat", told(fault="stall")))
    await world.begins.get()
    await runner.cleanup()
    assert (await world.end())["outcome"] == "stopped"
    writer.close()


@pytest.mark.asyncio
async def test_frames_come_with_the_delay_between_them(world: World) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.ask("chat", told(words=5, delay_ms=5), stream=True)
    assert loop.time() - began >= 7 * 0.005  # 8 frames


# What it bears witness to


@pytest.mark.asyncio
async def test_the_witness_sees_a_request_before_its_answer_begins(world: World) -> None:
    body = question("messages", told(words=2), stream=True)
    said = await world.say("/v1/messages?beta=true", body, Accept_Encoding="gzip", anthropic_beta="a,b")
    assert said.whole
    await world.end()
    dispatch, end = world.events
    assert (dispatch["event"], dispatch["seq"]) == ("dispatch", 1)
    assert (dispatch["path"], dispatch["query"]) == ("/v1/messages", "beta=true")
    assert dispatch["body"] == body and "+00:00" in dispatch["at"]
    assert dispatch["headers"]["accept-encoding"] == "gzip"
    assert dispatch["headers"]["x-api-key"] == ANTHROPIC_KEY
    assert (end["event"], end["seq"], end["outcome"]) == ("end", 1, "completed")
    assert (end["status"], end["frames"], end["usage"]["output_tokens"]) == (200, 8, 2)


@pytest.mark.asyncio
async def test_a_body_that_is_no_json_is_witnessed_as_text(world: World) -> None:
    await world.say(PATHS["chat"], b"honk")
    assert (world.events[0]["body"], world.events[0]["text"]) == (None, "honk")


@pytest.mark.asyncio
async def test_it_runs_as_a_program_until_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "witness.jsonl"
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "goosestack.demo", "--port", "0", "--log", str(log)),
        *("--openai-key", OPENAI_KEY, "--anthropic-key", ANTHROPIC_KEY, "--delay", "0.001"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert program.stdout is not None
    line = (await program.stdout.readline()).decode()
    assert line.startswith("listening on http://127.0.0.1:")
    async with openai.AsyncOpenAI(api_key=OPENAI_KEY, base_url=line.split()[2] + "/v1") as client:
        await client.chat.completions.create(model="m", messages=user("hi"))
    program.send_signal(signal.SIGTERM)
    out, err = await program.communicate()
    assert (program.returncode, out, err) == (0, b"", b"")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["dispatch", "end"]
    assert log.stat().st_mode & 0o777 == 0o600
