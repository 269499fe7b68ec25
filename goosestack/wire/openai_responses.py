"""OpenAI Responses: `POST /v1/responses`, streamed and not.

The output, visible and reasoning tokens alike, is capped by `max_output_tokens`. Nothing is stored: whatever stands for
input that is not in the request (an earlier response, a conversation, a stored prompt, item or file) is refused, and
so is what the provider would run on its own, except web searches, which `max_tool_calls` bounds. Usage stands in the
terminal event alone, inside its `response`, with the searches beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from goosestack.errors import Problem, Unsupported
from goosestack.wire import Body, Call, Reading, body as fields, envelope, parts
from goosestack.wire.parts import NULL, UNREADABLE, Details, given
from goosestack.wire.sse import Stream, Verdict, event_of

PASSED = frozenset(
    """client_metadata image include metadata moderation parallel_tool_calls prompt_cache_key prompt_cache_retention
    safety_identifier stream_options temperature text tool_choice top_logprobs top_p truncation user""".split()
)
"""What does not change the price, or only within the cap. Codex sends `client_metadata`, which no SDK knows."""

CONTROLLED = frozenset(
    """background input instructions max_output_tokens max_tool_calls model prompt_cache_options reasoning service_tier
    store stream tools""".split()
)
"""What the gate prices by or sets."""

_STATELESS = "nothing is stored here; send the whole conversation in `input`"
REFUSED = {
    "access_programs": "they belong to the operator's organization",
    "context_management": "what a compaction writes is not bounded here; shorten `input` before you send it",
    "conversation": _STATELESS,
    "multi_agent": "what the agents write is not bounded by `max_output_tokens`; run each as a request of its own",
    "previous_response_id": _STATELESS,
    "prompt": "stored prompts belong to the operator's account; send the text in `instructions` and `input`",
}

MOST_SEARCHES = 5
_ROLES = frozenset(("assistant", "developer", "system", "user"))
_WEB_SEARCH = re.compile(r"web_search(_\d{4}_\d{2}_\d{2})?", re.ASCII)
_CLIENT_TOOLS = parts.CLIENT_TOOLS | {"apply_patch", "local_shell"}
_PLACED_TOOLS = {"shell": ("environment.type", "local"), "tool_search": ("execution", "client")}
"""Tools that the provider or the caller runs, as a field says: where it stands, and its value for the caller."""

ITEMS = frozenset(
    """additional_tools agent_message apply_patch_call apply_patch_call_output configuration_update custom_tool_call
    custom_tool_call_output function_call function_call_output local_shell_call local_shell_call_output message
    reasoning shell_call shell_call_output tool_search_call tool_search_output web_search_call""".split()
)
"""What may stand in `input`: all that it costs is in the request."""

_PROVIDERS = "it comes of a tool that the provider runs, and those are not sold here"
_COMPACTION = "its size cannot be seen here; send the conversation itself, or a summary as text"
REFUSED_ITEMS = {
    "code_interpreter_call": _PROVIDERS,
    "compaction": _COMPACTION,
    "compaction_summary": _COMPACTION,
    "compaction_trigger": _COMPACTION,
    "computer_call": _PROVIDERS,
    "computer_call_output": _PROVIDERS,
    "context_compaction": _COMPACTION,
    "file_search_call": _PROVIDERS,
    "image_generation_call": _PROVIDERS,
    "item_reference": "nothing is stored here; set `store` to false in your SDK, so that it sends the item itself",
    "mcp_approval_request": _PROVIDERS,
    "mcp_approval_response": _PROVIDERS,
    "mcp_call": _PROVIDERS,
    "mcp_list_tools": _PROVIDERS,
    "multi_agent_call": _PROVIDERS,
    "multi_agent_call_output": _PROVIDERS,
    "program": _PROVIDERS,
    "program_output": _PROVIDERS,
}


class OpenAIResponses:
    """The wire format `openai_responses`."""

    name = "openai_responses"
    path = "/responses"
    dialect = "openai"
    kind = "chat"
    free = False
    known = PASSED | CONTROLLED | frozenset(REFUSED)
    keep_alive = b": keep-alive\n\n"

    def parse(self, body: Body, *, own_key: bool) -> Call:
        """See `Wire.parse`."""
        call = Call(body, fields.model_name(body), fields.boolean(body, "stream"), "max_output_tokens")
        if own_key:
            return call
        parts.refuse(body, REFUSED)
        if fields.boolean(body, "background"):
            reason = "an answer must come in the same connection; leave it out, and use `stream` for long ones"
            raise Unsupported(field="background", reason=reason, param="background")
        body["store"] = False
        call.cap = fields.integer(body, "max_output_tokens", 1, fields.MOST_TOKENS)
        call.tier = parts.service_tier(body)
        call.long_cache = parts.lives_long(body.get("prompt_cache_options"), "prompt_cache_options")
        searches = _check_tools(body.get("tools"), "tools", call)
        searches |= _read_input(call)
        if searches:
            call.web_searches = _bound_searches(body)
        call.output_in_sight = _effort(body) == "none" and not searches
        call.unknown = tuple(name for name in body if name not in self.known)
        return call

    def set_cap(self, call: Call, cap: int) -> None:
        """See `Wire.set_cap`."""
        call.body["max_output_tokens"] = cap

    def reader(self, call: Call, *, keep_text: bool) -> ResponsesReader:
        """See `Wire.reader`."""
        return ResponsesReader(call, keep_text=keep_text)

    def error_frame(self, problem: Problem, request_id: str, sequence: int = 0) -> bytes:
        """`response.failed`, which agents read, with the problem beside the response too, where the SDKs look for
        what to raise: of a bare `error` event or a bare `response.failed` they make one more event, and end well."""
        error = envelope.openai(problem)["error"]
        told = {"code": problem.openai[1] or problem.openai[0], "message": problem.message}
        response = {"id": request_id, "object": "response", "status": "failed", "error": told, "output": []}
        event = {"type": "response.failed", "sequence_number": sequence, "response": response, "error": error}
        return b"event: response.failed\ndata: " + envelope.dump(event) + b"\n\n"


def _effort(body: Body) -> object:
    reasoning = body.get("reasoning")
    return None if reasoning is None else fields.mapping(reasoning, "reasoning").get("effort")


def _bound_searches(body: Body) -> int:
    most = fields.integer(body, "max_tool_calls", 1, fields.MOST_TOKENS) or MOST_SEARCHES
    body["max_tool_calls"] = most = min(most, MOST_SEARCHES)
    return most


# --- tools ----------------------------------------------------------------------------------------------------


def _check_tools(tools: object, where: str, call: Call) -> bool:
    """Check that the caller runs every one of these tools, but for web searches; whether there are such."""
    if tools is None:
        return False
    if type(tools) is not list:
        raise fields.invalid(where, "must be a list")
    call.tools |= bool(tools)
    searches = False
    for position, tool in enumerate(tools):
        place = f"{where}[{position}]"
        entry = fields.mapping(tool, place)
        kind = entry.get("type")
        if type(kind) is str and _WEB_SEARCH.fullmatch(kind):
            searches = True
        elif kind == "namespace":
            _check_namespace(entry, place)
        elif type(kind) is not str or not (kind in _CLIENT_TOOLS or _is_placed(kind, entry, place)):
            reason = f"the provider would run {parts.shown(kind)}, at a cost that is not bounded here"
            raise Unsupported(field=f"{place}.type", reason=reason, param=place)
    return searches


def _is_placed(kind: str, tool: Body, where: str) -> bool:
    """Whether this is a tool that can run in either place; refused where the provider would run it."""
    if kind not in _PLACED_TOOLS:
        return False
    field, wanted = _PLACED_TOOLS[kind]
    value: object = tool
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value != wanted:
        reason = f"`{kind}` is sold only where you run it: `{field}` must be `{wanted}`"
        raise Unsupported(field=f"{where}.{field}", reason=reason, param=where)
    return True


def _check_namespace(namespace: Body, where: str) -> None:
    for position, tool in enumerate(fields.array(namespace, "tools")):
        place = f"{where}.tools[{position}]"
        kind = fields.mapping(tool, place).get("type")
        if type(kind) is not str or kind not in parts.CLIENT_TOOLS:
            reason = f"{parts.shown(kind)} cannot stand in a namespace"
            raise Unsupported(field=f"{place}.type", reason=reason, param=place)


# --- input ----------------------------------------------------------------------------------------------------


def _read_input(call: Call) -> bool:
    """Count what the input is made of; whether its tools search the web."""
    fields.string(call.body, "instructions")
    given_input = call.body.get("input")
    if type(given_input) is str:
        call.messages = 1
        return False
    if type(given_input) is not list or not given_input:
        raise fields.invalid("input", "must be a string or a list with at least one item")
    call.messages = len(given_input)
    searches = False
    for position, item in enumerate(given_input):
        where = f"input[{position}]"
        searches |= _read_item(fields.mapping(item, where), where, call)
    return searches


def _read_item(item: Body, where: str, call: Call) -> bool:
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if type(kind) is not str:
        raise fields.invalid(f"{where}.type", "must be a string")
    if kind not in ITEMS:
        reason = REFUSED_ITEMS.get(kind, "items of this type are not known here")
        raise Unsupported(field=where, reason=f"{parts.shown(kind)}: {reason}", param=where)
    if kind == "message":
        _check_message(item, where)
    elif kind == "reasoning":
        _check_reasoning(item, where)
    elif kind == "shell_call":
        _check_shell_call(item, where)
    elif kind == "shell_call_output":
        _check_shell_output(item, where)
        return False
    for name in ("content", "output", "summary"):
        call.long_cache |= parts.count_parts(item.get(name), f"{where}.{name}", call.media)
    return _check_tools(item.get("tools"), f"{where}.tools", call)


def _check_message(item: Body, where: str) -> None:
    role = item.get("role")
    if type(role) is not str or role not in _ROLES:
        raise fields.invalid(f"{where}.role", f"must be one of {', '.join(sorted(_ROLES))}")
    if item.get("content") is None:
        raise fields.invalid(f"{where}.content", "must be a string or a list of parts")


def _check_reasoning(item: Body, where: str) -> None:
    if item.get("id") is not None and not any(item.get(name) for name in ("content", "encrypted_content", "summary")):
        reason = 'it only names stored reasoning; ask with `include: ["reasoning.encrypted_content"]`, or leave it out'
        raise Unsupported(field=where, reason=reason, param=where)


def _check_shell_call(item: Body, where: str) -> None:
    environment = item.get("environment")
    if environment is not None and fields.mapping(environment, f"{where}.environment").get("type") != "local":
        raise Unsupported(field=f"{where}.environment", reason=_PROVIDERS, param=f"{where}.environment")


def _check_shell_output(item: Body, where: str) -> None:
    """What a shell gave back is text in pieces of its own form: nothing else may hide among them."""
    for position, piece in enumerate(fields.array(item, "output")):
        place = f"{where}.output[{position}]"
        if "type" in fields.mapping(piece, place):
            raise fields.invalid(place, "must have `stdout`, `stderr` and `outcome`")


# --- reading answers ------------------------------------------------------------------------------------------

_TERMINAL = frozenset(("response.completed", "response.incomplete", "response.failed"))
_NO_SEARCH = frozenset(("open_page", "find_in_page"))
"""What a web search tool can do without a fee."""


class _Event(msgspec.Struct):
    type: str | None = None
    delta: Any = None
    sequence_number: Any = None
    response: msgspec.Raw = NULL


class _Response(msgspec.Struct):
    model: Any = None
    service_tier: Any = None
    status: Any = None
    output: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    tool_usage: msgspec.Raw = NULL


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: msgspec.Raw = NULL
    output_tokens_details: msgspec.Raw = NULL


class _Searches(msgspec.Struct):
    num_requests: int | None = None


class _ToolUsage(msgspec.Struct):
    web_search: _Searches | None = None


_EVENT = msgspec.json.Decoder(_Event)
_RESPONSE = msgspec.json.Decoder(_Response)
_USAGE = msgspec.json.Decoder(_Usage)
_TOOL_USAGE = msgspec.json.Decoder(_ToolUsage)


class ResponsesReader(Stream):
    """Reads a response, as events or as a whole."""

    marks = (b"[DONE]", b"response.completed", b"response.incomplete", b"response.failed", b'"error"', b"event: error")

    def __init__(self, call: Call, *, keep_text: bool) -> None:
        super().__init__()
        self.reading = Reading(text=[] if keep_text else None)
        self.sequence = -1
        """The number of the last event."""
        self._long_cache = call.long_cache

    def read(self, frame: bytes, payload: bytes) -> Verdict:
        """See `Stream.read`."""
        if payload.startswith(b"[DONE]"):
            return Verdict.HIDE  # ends nothing here, but would end it for an SDK
        return Verdict.LAST if payload and self._event(event_of(frame), payload) else Verdict.PASS

    def whole(self, data: bytes) -> bool:
        """See `Reader.whole`."""
        try:
            response = _RESPONSE.decode(data)
        except UNREADABLE:
            return False
        items = _items(response)
        for piece in _pieces(items):
            self.reading.saw(piece)
        self._take(response, items)
        self.reading.error = response.status == "failed" and self.reading.usage is None
        return given(response.output) is not None

    def _event(self, name: str, payload: bytes) -> bool:
        """Read one event; whether it ends the stream."""
        reading = self.reading
        try:
            event = _EVENT.decode(payload)
        except UNREADABLE:
            reading.output_bytes += len(payload)  # unreadable to us: the caller judges it, and it may be output
            return name in _TERMINAL  # an end all the same, which nobody is to see before it is settled
        kind, delta = event.type or name, event.delta
        if type(event.sequence_number) is int:
            self.sequence = event.sequence_number
        if type(delta) is str and kind.endswith(".delta"):
            reading.saw(delta)
            return False
        last = kind in _TERMINAL
        if given(event.response) is not None:
            self._state(event.response, last)
        reading.error |= kind == "error" or (kind == "response.failed" and reading.usage is None)
        return last or reading.error

    def _state(self, raw: msgspec.Raw, last: bool) -> None:
        try:
            response = _RESPONSE.decode(raw)
        except UNREADABLE:
            return
        self._take(response, _items(response) if last else [])

    def _take(self, response: _Response, items: list[Body]) -> None:
        reading = self.reading
        if type(response.model) is str and response.model:
            reading.model = response.model
        if type(response.service_tier) is str:
            reading.tier = parts.TIERS.get(response.service_tier, reading.tier)
        raw = given(response.usage)
        if raw is None:
            return
        try:
            usage = _USAGE.decode(raw)
        except UNREADABLE as error:
            reading.nonsense = f"unreadable usage: {type(error).__name__}"
            return
        read = parts.details(usage.input_tokens_details, reading)
        written = parts.details(usage.output_tokens_details, reading)
        short, long = _cache_writes(read, self._long_cache)
        found = {
            "input": usage.input_tokens,
            "output": usage.output_tokens,
            "cache_read": read.cached_tokens,
            "cache_write": short,
            "cache_write_long": long,
            "reasoning": written.reasoning_tokens,
            "web_searches": _searches(response, items),
        }
        parts.take_usage(reading, found, parts.cost_of(raw))


def _cache_writes(details: Details, long_cache: bool) -> tuple[int, int]:
    """Tokens written for half an hour, and for twelve. What the split leaves out is taken for the dearer kind where
    any of that was written, or, without a split, was asked for."""
    written, split = details.cache_write_tokens or 0, details.cache_write_tokens_details
    if split is None:
        return (0, written) if long_cache else (written, 0)
    short, long = split.ttl_30m_tokens or 0, split.ttl_12h_tokens or 0
    rest = max(0, written - short - long)
    return (short, long + rest) if long else (short + rest, 0)


def _searches(response: _Response, items: list[Body]) -> int:
    """Web searches that have a fee: as reported beside the usage, else those that stand in the output."""
    reported = given(response.tool_usage)
    if reported is not None:
        try:
            web = _TOOL_USAGE.decode(reported).web_search
        except UNREADABLE:
            web = None
        if web is not None and web.num_requests is not None and web.num_requests >= 0:
            return web.num_requests
    return sum(item.get("type") == "web_search_call" and _action(item) not in _NO_SEARCH for item in items)


def _action(item: Body) -> str:
    action = item.get("action")
    return str(action.get("type")) if isinstance(action, dict) else ""


def _items(response: _Response) -> list[Body]:
    raw = given(response.output)
    if raw is None:
        return []
    try:
        items = msgspec.json.decode(raw)
    except UNREADABLE:
        return []
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _pieces(items: list[Body]) -> Iterator[str]:
    """What is to be seen of an output."""
    for item in items:
        for name in ("arguments", "input"):
            if isinstance(item.get(name), str):
                yield str(item[name])
        for name in ("action", "operation"):
            if isinstance(item.get(name), dict):
                yield msgspec.json.encode(item[name]).decode()
        for name in ("content", "summary"):
            listed = item.get(name)
            for part in listed if isinstance(listed, list) else ():
                for text in (part.get("text"), part.get("refusal")) if isinstance(part, dict) else ():
                    if isinstance(text, str):
                        yield text
