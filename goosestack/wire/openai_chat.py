"""OpenAI Chat Completions: `POST /v1/chat/completions`, streamed and not.

The output is capped by `max_completion_tokens` (or the older `max_tokens`), visible and reasoning tokens alike, times
`n`. Usage arrives in a stream only where `stream_options.include_usage` asks for it, in one chunk with empty
`choices` before `data: [DONE]`; it is always asked for, and hidden from a caller who did not.
"""

from __future__ import annotations

import msgspec

from goosestack.errors import Problem, Unsupported
from goosestack.wire import Body, Call, Media, Reading, body as fields, envelope, parts
from goosestack.wire.parts import NULL, UNREADABLE, given
from goosestack.wire.sse import Stream, Verdict

PASSED = frozenset(
    """frequency_penalty function_call logit_bias logprobs metadata moderation parallel_tool_calls presence_penalty
    prompt_cache_key prompt_cache_retention response_format safety_identifier seed stop temperature tool_choice
    top_logprobs top_p user verbosity""".split()
)
"""What does not change the price, or only within the cap."""

CONTROLLED = frozenset(
    """functions max_completion_tokens max_tokens messages modalities model n prompt_cache_options reasoning_effort
    service_tier store stream stream_options tools""".split()
)
"""What the gate prices by or sets."""

REFUSED = {
    "audio": "audio output is not sold here",
    "best_of": "what is written and thrown away is billed as well; use `n`",
    "prediction": "rejected predictions are billed as output beyond the cap",
    "web_search_options": "searches are not bounded here; use the Responses API with the `web_search` tool",
}

_ROLES = frozenset(("developer", "system", "user", "assistant", "tool", "function"))
_REFUSED_IN_MESSAGES = ("audio", "images", "videos")
_MOST_ANSWERS = 128


class OpenAIChat:
    """The wire format `openai_chat`."""

    name = "openai_chat"
    path = "/chat/completions"
    dialect = "openai"
    kind = "chat"
    free = False
    known = PASSED | CONTROLLED | frozenset(REFUSED)
    keep_alive = b": keep-alive\n\n"

    def parse(self, body: Body, *, own_key: bool) -> Call:
        """See `Wire.parse`."""
        model, stream = fields.model_name(body), fields.boolean(body, "stream")
        call = Call(body, model, stream, "max_completion_tokens", hide_usage=stream)
        if stream:
            _ask_for_usage(call)
        if own_key:
            return call
        parts.refuse(body, REFUSED)
        if any(kind != "text" for kind in fields.array(body, "modalities")):
            raise Unsupported(field="modalities", reason="only text is sold here", param="modalities")
        most = fields.MOST_TOKENS
        caps = [fields.integer(body, name, 1, most) for name in ("max_completion_tokens", "max_tokens")]
        call.cap = max((cap for cap in caps if cap is not None), default=None)
        if caps[0] is None and caps[1] is not None:
            call.cap_field = "max_tokens"
        call.answers = fields.integer(body, "n", 1, _MOST_ANSWERS) or 1
        call.tier = parts.service_tier(body)
        call.output_in_sight = body.get("reasoning_effort") == "none"
        if "store" in body:
            body["store"] = False
        call.tools = bool(parts.function_tools(body)) or bool(fields.array(body, "functions"))
        long = parts.lives_long(body.get("prompt_cache_options"), "prompt_cache_options")
        call.messages = _messages(body, call.media, long=long)
        call.unknown = tuple(name for name in body if name not in self.known)
        return call

    def set_cap(self, call: Call, cap: int) -> None:
        """See `Wire.set_cap`."""
        if call.cap is not None:
            for name in ("max_completion_tokens", "max_tokens"):
                call.body.pop(name, None)
        assert call.cap_field is not None
        call.body[call.cap_field] = cap

    def reader(self, call: Call, *, keep_text: bool) -> ChatReader:
        """See `Wire.reader`."""
        return ChatReader(call, keep_text=keep_text)

    def error_frame(self, problem: Problem, request_id: str) -> bytes:
        """`data: {"error": ...}`, which the SDKs raise."""
        return b"data: " + envelope.dump(envelope.openai(problem)) + b"\n\n"


def _ask_for_usage(call: Call) -> None:
    options = call.body.get("stream_options")
    options = {} if options is None else fields.mapping(options, "stream_options")
    asked = options.get("include_usage", False)
    if type(asked) is not bool:
        raise fields.invalid("stream_options", "must have `include_usage` true or false")
    call.hide_usage = not asked
    call.body["stream_options"] = {**options, "include_usage": True}


def _messages(body: Body, media: Media, *, long: bool) -> int:
    messages = fields.array(body, "messages")
    if not messages:
        raise fields.invalid("messages", "must be a list with at least one message")
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        entry = fields.mapping(message, where)
        role = entry.get("role")
        if type(role) is not str or role not in _ROLES:
            raise fields.invalid(f"{where}.role", f"must be one of {', '.join(sorted(_ROLES))}")
        long |= parts.count_parts(entry.get("content"), f"{where}.content", media)
        for name in _REFUSED_IN_MESSAGES:
            if entry.get(name) is not None:
                raise Unsupported(field=f"{where}.{name}", reason=f"{name} are not sold here", param=f"{where}.{name}")
    if long:
        reason = "this API does not report what was written for 12 hours; use `30m`, or the Responses API"
        raise Unsupported(field="prompt_cache_options.ttl", reason=reason, param="prompt_cache_options")
    return len(messages)


# --- reading answers ------------------------------------------------------------------------------------------


class _Piece(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = NULL
    function_call: msgspec.Raw = NULL


class _Choice(msgspec.Struct):
    delta: _Piece | None = None
    message: _Piece | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL


class _Odd(msgspec.Struct):
    """An answer whose choices are not as they should be: what is left to read of it."""

    choices: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None
    custom: _Function | None = None


class _Searches(msgspec.Struct):
    web_search_requests: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: msgspec.Raw = NULL
    completion_tokens_details: msgspec.Raw = NULL
    server_tool_use_details: msgspec.Raw = NULL


_ANSWER = msgspec.json.Decoder(_Answer)
_ODD = msgspec.json.Decoder(_Odd)
_CALLS = msgspec.json.Decoder(list[_ToolCall] | _Function)
_SEARCHES = msgspec.json.Decoder(_Searches)
_USAGE = msgspec.json.Decoder(_Usage)


class ChatReader(Stream):
    """Reads a chat completion, as chunks or as a whole."""

    marks = (b"[DONE]", b'"usage":{', b'"usage": ', b'"error"')

    def __init__(self, call: Call, *, keep_text: bool) -> None:
        super().__init__()
        self.reading = Reading(text=[] if keep_text else None)
        self._hide = call.hide_usage

    def shown(self, frames: bytes) -> bytes:
        """See `Stream.shown`: without the empty usage that the caller did not ask for. No text is touched: in a string
        of JSON the quotes would be escaped."""
        return frames.replace(b',"usage":null', b"") if self._hide else frames

    def read(self, frame: bytes, payload: bytes) -> Verdict:
        """See `Stream.read`."""
        if payload.startswith(b"[DONE]"):
            return Verdict.LAST
        shown = not payload or self._chunk(payload)
        if self.reading.error:
            return Verdict.LAST
        return Verdict.PASS if shown else Verdict.HIDE

    def whole(self, data: bytes) -> bool:
        """See `Reader.whole`."""
        answer = self._read(data)
        return answer is not None and answer.choices is not None

    def _chunk(self, payload: bytes) -> bool:
        """Read one chunk; whether it may pass to the caller."""
        chunk = self._read(payload)
        if chunk is None:
            self.reading.output_bytes += len(payload)  # unreadable to us: the caller judges it, and it may be output
            return True
        return not (self._hide and given(chunk.usage) is not None and chunk.choices == [])

    def _read(self, payload: bytes) -> _Answer | None:
        try:
            answer = _ANSWER.decode(payload)
        except UNREADABLE:
            return self._read_odd(payload)
        reading = self.reading
        reading.model = answer.model or reading.model
        reading.tier = parts.TIERS.get(answer.service_tier or "", reading.tier)
        for choice in answer.choices or ():
            piece = choice.delta or choice.message
            if piece is not None:
                for text in (piece.content, piece.reasoning_content or piece.reasoning, piece.refusal):
                    reading.saw(text)
                for raw in (piece.tool_calls, piece.function_call):
                    _see_calls(reading, raw)
        self._end(answer.usage, answer.error)
        return answer

    def _read_odd(self, payload: bytes) -> _Answer | None:
        try:
            odd = _ODD.decode(payload)
        except UNREADABLE:
            return None
        choices = given(odd.choices)
        self.reading.output_bytes += len(choices or b"")
        self._end(odd.usage, odd.error)
        return _Answer(choices=None if choices is None else [_Choice()])

    def _end(self, usage: msgspec.Raw, error: msgspec.Raw) -> None:
        if given(error) is not None:
            self.reading.error = True
        raw = given(usage)
        if raw is not None:
            _take_usage(self.reading, raw)


def _see_calls(reading: Reading, raw: msgspec.Raw) -> None:
    found = given(raw)
    if found is None:
        return
    try:
        calls = _CALLS.decode(found)
    except UNREADABLE:
        reading.saw(found.decode("utf-8", "replace"))
        return
    for call in calls if isinstance(calls, list) else (_ToolCall(function=calls),):
        for part in (call.function, call.custom):
            if part is not None:
                for text in (part.name, part.arguments, part.input):
                    reading.saw(text)


def _take_usage(reading: Reading, raw: bytes) -> None:
    try:
        usage = _USAGE.decode(raw)
    except UNREADABLE as error:
        reading.nonsense = f"unreadable usage: {type(error).__name__}"
        return
    read = parts.details(usage.prompt_tokens_details, reading)
    written = parts.details(usage.completion_tokens_details, reading)
    found = {
        "input": usage.prompt_tokens,
        "output": usage.completion_tokens,
        "cache_read": read.cached_tokens,
        "cache_write": read.cache_write_tokens,
        "input_audio": read.audio_tokens,
        "output_audio": written.audio_tokens,
        "reasoning": written.reasoning_tokens,
        "web_searches": _searches(usage.server_tool_use_details),
    }
    parts.take_usage(reading, found, parts.cost_of(raw))


def _searches(raw: msgspec.Raw) -> int | None:
    found = given(raw)
    try:
        return None if found is None else _SEARCHES.decode(found).web_search_requests
    except UNREADABLE:
        return None
