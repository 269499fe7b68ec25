"""Anthropic Messages: `POST /v1/messages`, streamed and not, and the free `/v1/messages/count_tokens`.

`max_tokens` is required and bounds all output, thinking included. Usage excludes cache reads and writes from
`input_tokens`; in a stream it comes with `message_start` and is overwritten, field by field, by what later
`message_delta` frames report, which is cumulative. Body fields and betas that this module does not know pass (agents
need them); those that would unbound the cost, or reach into the operator's account, are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from goosestack.errors import Problem, Unsupported
from goosestack.wire import Body, Call, Media, Reader, Reading, body as fields, envelope, parts
from goosestack.wire.sse import Stream, Verdict, event_of

PASSED = frozenset(
    """cache_control context_hint metadata output_config output_format stop_sequences temperature tool_choice top_k
    top_p""".split()
)
"""What does not change the price, or only within the cap."""

CONTROLLED = frozenset(
    """context_management diagnostics inference_geo max_tokens messages model service_tier speed stream system thinking
    tools""".split()
)
"""What the gate prices by, bounds or sets."""

_OPERATORS = "it belongs to the operator's account"
_UNBOUNDED = "its cost is not bounded by `max_tokens`"
REFUSED = {
    "billing_policy": _OPERATORS,
    "compaction": _UNBOUNDED,
    "container": _OPERATORS,
    "fallback_credit_token": _OPERATORS,
    "fallbacks": "the answer may come from another model at another price",
    "mcp_servers": _UNBOUNDED,
    "previous_message_id": "it stands for input that is not in the request; send the whole conversation",
    "thread": "it stands for input that is not in the request; send the whole conversation",
    "user_profile_id": _OPERATORS,
    "workspace_id": _OPERATORS,
}

REFUSED_BETAS = (
    "advisor",
    "code-execution",
    "compact",
    "context-compaction",
    "fallback",
    "files-api",
    "mcp-client",
    "mcp-servers",
    "message-batches",
    "skills",
    "tool-search-tool",
    "web-fetch",
)
"""Beginnings of `anthropic-beta` values that are refused."""

_REFUSED_TOOLS = {
    "advisor": _UNBOUNDED,
    "bash_code_execution": _UNBOUNDED,
    "code_execution": _UNBOUNDED,
    "mcp_toolset": _UNBOUNDED,
    "text_editor_code_execution": _UNBOUNDED,
    "tool_search_tool": _UNBOUNDED,
    "web_fetch": _UNBOUNDED,
}
_REFUSED_BLOCKS = {"container_upload": "stored files belong to the operator's account; send the content itself"}
_SENT_TIER = "standard_only"
MOST_SEARCHES = 5


class AnthropicMessages:
    """The wire format `anthropic_messages`."""

    name = "anthropic_messages"
    path = "/messages"
    dialect = "anthropic"
    kind = "chat"
    free = False
    known = PASSED | CONTROLLED | frozenset(REFUSED)
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def parse(self, body: Body, *, own_key: bool) -> Call:
        """See `Wire.parse`."""
        call = Call(body, fields.model_name(body), fields.boolean(body, "stream"), "max_tokens")
        if own_key:
            return call
        parts.refuse(body, REFUSED)
        self._bound_output(call)
        _count_input(call)
        call.tier = _tier(body)
        call.us_only = _us_only(body)
        call.web_searches = _bound_searches(body)
        call.vendor_tools = sum(_is_vendors(tool) for tool in fields.array(body, "tools"))
        call.unknown = tuple(name for name in body if name not in self.known)
        return call

    def _bound_output(self, call: Call) -> None:
        call.cap = fields.integer(call.body, "max_tokens", 0, fields.MOST_TOKENS)
        if call.cap is None:
            raise fields.invalid("max_tokens", "is required")
        call.output_in_sight = _thinking(call.body) == "disabled"

    def set_cap(self, call: Call, cap: int) -> None:
        """See `Wire.set_cap`."""
        call.body["max_tokens"] = cap
        thinking = call.body.get("thinking")
        if type(thinking) is dict and type(thinking.get("budget_tokens")) is int:
            budget = thinking["budget_tokens"]
            if budget >= cap:
                fits = cap - 256 >= 1024  # the least budget there is, and room for an answer
                call.body["thinking"] = {**thinking, "budget_tokens": cap - 256} if fits else {"type": "disabled"}

    def reader(self, call: Call, *, keep_text: bool) -> Reader:
        """See `Wire.reader`."""
        return MessagesReader(keep_text=keep_text)

    def error_frame(self, problem: Problem, request_id: str) -> bytes:
        """`event: error`, which the SDKs raise."""
        return b"event: error\ndata: " + envelope.dump(envelope.anthropic(problem, request_id)) + b"\n\n"


class AnthropicCountTokens(AnthropicMessages):
    """`POST /v1/messages/count_tokens`: the same body without a cap, and nothing to pay."""

    name = "anthropic_count_tokens"
    path = "/messages/count_tokens"
    free = True

    def parse(self, body: Body, *, own_key: bool) -> Call:
        """See `Wire.parse`."""
        body.pop("stream", None)
        call = super().parse(body, own_key=own_key)
        body.pop("service_tier", None)
        call.free = True
        return call

    def _bound_output(self, call: Call) -> None:
        call.cap_field = None
        _thinking(call.body)

    def reader(self, call: Call, *, keep_text: bool) -> Reader:
        """See `Wire.reader`."""
        return CountReader()


def refused_beta(header: str) -> str | None:
    """The first value of an `anthropic-beta` header that is refused, or None."""
    values = (value.strip().lower() for value in header.split(","))
    return next((value for value in values if value.startswith(REFUSED_BETAS)), None)


def _thinking(body: Body) -> str:
    """`disabled` where the caller says so: any other thinking may be summarised, and counts more than is seen."""
    thinking = body.get("thinking")
    if thinking is None:
        return "absent"
    kind = fields.mapping(thinking, "thinking").get("type")
    if type(kind) is not str:
        raise fields.invalid("thinking.type", "must be a string")
    fields.integer(fields.mapping(thinking, "thinking"), "budget_tokens", 0, fields.MOST_TOKENS)
    return kind


def _tier(body: Body) -> str:
    if fields.string(body, "service_tier") not in (None, "auto", _SENT_TIER):
        raise fields.invalid("service_tier", f"must be auto or {_SENT_TIER}")
    body["service_tier"] = _SENT_TIER
    speed = fields.string(body, "speed")
    if speed not in (None, "standard", "fast"):
        raise fields.invalid("speed", "must be standard or fast")
    return "fast" if speed == "fast" else "standard"


def _us_only(body: Body) -> bool:
    geo = fields.string(body, "inference_geo")
    if geo not in (None, "global", "us"):
        raise fields.invalid("inference_geo", "must be global or us")
    return geo == "us"


def _is_vendors(tool: object) -> bool:
    return type(tool) is dict and tool.get("type", "custom") != "custom"


def _bound_searches(body: Body) -> int:
    """Check the tools and cap the searches; the answer is how many searches the request can make."""
    searches = 0
    for position, tool in enumerate(fields.array(body, "tools")):
        entry = fields.mapping(tool, f"tools[{position}]")
        kind = entry.get("type", "custom")
        if type(kind) is not str:
            raise fields.invalid(f"tools[{position}].type", "must be a string")
        for refused, reason in _REFUSED_TOOLS.items():
            if kind.startswith(refused):
                raise Unsupported(field=f"tools[{position}].type", reason=f"`{kind}`: {reason}", param="tools")
        if kind.startswith("web_search"):
            uses = fields.integer(entry, "max_uses", 1, fields.MOST_TOKENS)
            most = min(uses or MOST_SEARCHES, MOST_SEARCHES)
            entry["max_uses"] = most
            searches += most
    return searches


def _count_input(call: Call) -> None:
    body = call.body
    messages = fields.array(body, "messages")
    if not messages:
        raise fields.invalid("messages", "must be a list with at least one message")
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        entry = fields.mapping(message, where)
        if entry.get("role") not in ("user", "assistant", "system"):
            raise fields.invalid(f"{where}.role", "must be user or assistant")
        _count_content(entry.get("content"), f"{where}.content", call.media)
    if body.get("system") is not None:
        _count_content(body["system"], "system", call.media)
    management = body.get("context_management")
    if management is not None:
        for edit in fields.array(fields.mapping(management, "context_management"), "edits"):
            kind = fields.mapping(edit, "context_management.edits").get("type")
            if type(kind) is not str or not kind.startswith("clear_"):
                raise Unsupported(field="context_management.edits", reason=_UNBOUNDED, param="context_management")
    diagnostics = body.get("diagnostics")
    if type(diagnostics) is dict and diagnostics.get("previous_message_id") is not None:
        reason = REFUSED["previous_message_id"]
        raise Unsupported(field="diagnostics.previous_message_id", reason=reason, param="diagnostics")
    call.messages = len(messages)
    call.tools = bool(fields.array(body, "tools"))
    call.long_cache = _asks_for_long_cache(body)


def _asks_for_long_cache(value: object) -> bool:
    """Whether any `cache_control` names the hour; whatever looks like one counts, since it only raises the quote."""
    return b'"1h"' in fields.encode({"body": value})


def _count_content(content: object, where: str, media: Media) -> None:
    if type(content) is str:
        return
    if type(content) is not list:
        raise fields.invalid(where, "must be a string or a list of blocks")
    for position, block in enumerate(content):
        _count_block(fields.mapping(block, f"{where}[{position}]"), f"{where}[{position}]", media)


def _count_block(block: Body, where: str, media: Media) -> None:
    kind = block.get("type")
    if type(kind) is not str:
        raise fields.invalid(f"{where}.type", "must be a string")
    if kind in _REFUSED_BLOCKS:
        raise Unsupported(field=where, reason=_REFUSED_BLOCKS[kind], param=where)
    if kind in ("image", "document"):
        _count_source(kind, fields.mapping(block.get("source"), f"{where}.source"), f"{where}.source", media)
    elif kind == "tool_result" and block.get("content") is not None:
        _count_content(block["content"], f"{where}.content", media)
    else:
        _look_inside(block.get("content"), f"{where}.content", media)


def _look_inside(content: object, where: str, media: Media) -> None:
    """Count the media in a block that this module does not know, as in what a provider's own tool gave back."""
    for entry in content if type(content) is list else [content]:
        if type(entry) is dict and entry.get("type") in ("image", "document", *_REFUSED_BLOCKS):
            _count_block(entry, where, media)
        elif type(entry) is dict:
            _look_inside(entry.get("content"), f"{where}.content", media)


def _count_source(kind: str, source: Body, where: str, media: Media) -> None:
    form = source.get("type")
    if form == "file" or source.get("file_id") is not None:
        raise Unsupported(field=where, reason=_REFUSED_BLOCKS["container_upload"], param=where)
    if form == "text" and kind == "document":
        return
    if form == "content" and kind == "document":
        _count_content(source.get("content"), f"{where}.content", media)
        return
    if form == "base64" and type(source.get("data")) is str:
        media.data_bytes += len(str(source["data"]))
    elif form == "url":
        parts.count_url(source.get("url"), f"{where}.url", media)
    else:
        raise fields.invalid(f"{where}.type", "must be base64, url, text or content")
    if kind == "image":
        media.images += 1
    else:
        media.documents += 1


# --- reading answers ------------------------------------------------------------------------------------------


class _Creation(msgspec.Struct):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _Searches(msgspec.Struct):
    web_search_requests: int | None = None


class _Thought(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _Creation | None = None
    server_tool_use: _Searches | None = None
    output_tokens_details: _Thought | None = None
    service_tier: str | None = None
    speed: str | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None


class _Message(msgspec.Struct):
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    content: list[_Delta] | None = None


class _Event(msgspec.Struct):
    type: str | None = None
    message: _Message | None = None
    delta: _Delta | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Count(msgspec.Struct):
    input_tokens: int


_EVENT = msgspec.json.Decoder(_Event)
_MESSAGE = msgspec.json.Decoder(_Message)
_USAGE = msgspec.json.Decoder(_Usage)


class MessagesReader(Stream):
    """Reads a message, as events or as a whole."""

    marks = (b"message_start", b"message_delta", b"message_stop", b'"error"', b"event: error")

    def __init__(self, *, keep_text: bool) -> None:
        super().__init__()
        self.reading = Reading(text=[] if keep_text else None)
        self._reported: dict[str, int] = {}

    def read(self, frame: bytes, payload: bytes) -> Verdict:
        """See `Stream.read`."""
        return Verdict.LAST if payload and self._event(event_of(frame), payload) else Verdict.PASS

    def whole(self, data: bytes) -> bool:
        """See `Reader.whole`."""
        try:
            message = _MESSAGE.decode(data)
        except parts.UNREADABLE:
            return False
        self._take(message)
        return message.content is not None

    def _event(self, name: str, payload: bytes) -> bool:
        """Read one event; whether it ends the stream."""
        try:
            event = _EVENT.decode(payload)
        except parts.UNREADABLE:
            self.reading.output_bytes += len(payload)  # unreadable to us: the caller judges it, and it may be output
            return name == "message_stop"  # an end all the same, which nobody is to see before it is settled
        if event.delta is not None:
            for text in (event.delta.text, event.delta.partial_json, event.delta.thinking):
                self.reading.saw(text)
        if event.message is not None:
            self._take(event.message, begins=True)
        self._report(bytes(event.usage))
        kind = event.type or name
        self.reading.error |= kind == "error"  # what passed before it may be read after it
        return kind in ("message_stop", "error")

    def _take(self, message: _Message, *, begins: bool = False) -> None:
        self.reading.model = message.model or self.reading.model
        for block in message.content or ():
            for text in (block.text, block.partial_json, block.thinking):
                self.reading.saw(text)
        self._report(bytes(message.usage), begins=begins)

    def _report(self, raw: bytes, *, begins: bool = False) -> None:
        """Overwrite with what is reported now: cumulative, so that no count falls. What a stream begins with has a
        placeholder for its output, which is no report of it."""
        if raw == b"null":
            return
        try:
            usage = _USAGE.decode(raw)
        except parts.UNREADABLE as error:
            self.reading.nonsense = f"unreadable usage: {type(error).__name__}"
            return
        creation, searches = usage.cache_creation or _Creation(), usage.server_tool_use or _Searches()
        cost = parts.cost_of(raw)
        self.reading.cost = self.reading.cost if cost is None else cost
        found = {
            "input": usage.input_tokens,
            "output": None if begins else usage.output_tokens,
            "cache_read": usage.cache_read_input_tokens,
            "written": usage.cache_creation_input_tokens,
            "cache_write_long": creation.ephemeral_1h_input_tokens,
            "cache_write_short": creation.ephemeral_5m_input_tokens,
            "reasoning": (usage.output_tokens_details or _Thought()).thinking_tokens,
            "web_searches": searches.web_search_requests,
        }
        if any(count is not None and count < 0 for count in found.values()):
            self.reading.nonsense = "a negative count"
            return
        for name, count in found.items():
            if count is not None:
                self._reported[name] = max(count, self._reported.get(name, 0))
        if usage.speed == "fast":
            self.reading.tier = "fast"
        elif usage.service_tier is not None:
            self.reading.tier = self.reading.tier or "standard"
        if "input" in self._reported or "output" in self._reported:
            self.reading.usage = _disjoint(self._reported)


def _disjoint(reported: Mapping[str, int]) -> dict[str, int]:
    """All writes are `written`; of these, what the split calls long is, and what grew beyond the split is taken for
    the dearer kind where any of that was written."""
    written, long = reported.get("written", 0), reported.get("cache_write_long", 0)
    short = reported.get("cache_write_short", 0)
    if written > long + short and long:
        long = written - short
    return {
        "input": reported.get("input", 0),
        "output": reported.get("output", 0),
        "cache_read": reported.get("cache_read", 0),
        "cache_write": max(written, long + short) - long,
        "cache_write_long": long,
        "reasoning": reported.get("reasoning", 0),
        "web_searches": reported.get("web_searches", 0),
    }


class CountReader:
    """Reads the answer of `count_tokens`, which costs nothing."""

    gathered = 0
    """See `Reader.gathered`."""

    def catch_up(self) -> None:
        """See `Reader.catch_up`."""

    def __init__(self) -> None:
        self.reading = Reading()

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """There are no streams of counts."""
        raise ValueError("a count is not streamed")

    def whole(self, data: bytes) -> bool:
        """See `Reader.whole`."""
        try:
            msgspec.json.decode(data, type=_Count)
        except parts.UNREADABLE:
            return False
        self.reading.usage = {}
        return True
