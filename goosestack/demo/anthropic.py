"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from goosestack.demo.answer import (
    USAGE,
    Answer,
    Script,
    Usage,
    Wire,
    dump,
    encode,
    frame,
    input_tokens,
    merged,
    new_id,
    report,
    script,
)
from goosestack.demo.directive import Directive
from goosestack.demo.strict import (
    Json,
    Problem,
    Refusal,
    choice_problem,
    field_problem,
    kind_of,
    text_of,
    type_problem,
)

COUNTED_FIELDS = {
    "messages": "array",
    "model": "string",
    "cache_control": "object?",
    "output_config": "object",
    "speed": "string?",
    "system": "string|array",
    "thinking": "object",
    "tool_choice": "object",
    "tools": "array",
}
FIELDS = COUNTED_FIELDS | {
    "max_tokens": "integer",
    "container": "string|object?",
    "diagnostics": "object?",
    "inference_geo": "string?",
    "metadata": "object",
    "service_tier": "string",
    "stop_sequences": "array",
    "stream": "boolean",
    "temperature": "number",  # gone from the SDK, not from the wire: so are the next two
    "top_k": "integer",
    "top_p": "number",
}
CHOICES = {"service_tier": ("auto", "standard_only"), "speed": ("standard", "fast")}
LEAST_THINKING = 1024
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
}
INPUT_KINDS = {
    "string": "a valid string",
    "integer": "a valid integer",
    "number": "a valid number",
    "boolean": "a valid boolean",
    "array": "a valid list",
    "object": "an object",
}
PING = frame(b'{"type": "ping"}', "ping")
AT_START_ONLY = ("cache_creation", "service_tier", "inference_geo", "speed")


class AnthropicWire(Wire):
    vendor = "anthropic"
    comments = b": keep-alive\n\n" + PING
    fields = FIELDS
    required: tuple[str, ...] = ("model", "messages", "max_tokens")

    def authenticate(self, headers: Mapping[str, str]) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        keys = [key for key in (headers.get("x-api-key"), bearer) if key]
        if not keys:
            raise Refusal(401, "x-api-key header or bearer token is required")
        if any(key != self.key for key in keys) or (bearer and scheme.lower() != "bearer"):
            raise Refusal(401, f"invalid x-api-key: {keys[0]}")

    def check(self, body: Json, headers: Mapping[str, str]) -> None:
        if not headers.get("anthropic-version"):
            raise Refusal(400, "anthropic-version: header is required")
        tolerant = bool(headers.get("anthropic-beta"))
        self.require(field_problem(body, self.fields, required=self.required, choices=CHOICES, tolerant=tolerant))
        cap = body.get("max_tokens", 0)
        if cap < 0:
            raise Refusal(400, "max_tokens: Input should be greater than or equal to 0")
        self._check_messages(body["messages"])
        budget = body.get("thinking", {}).get("budget_tokens")
        if budget is not None:
            self.require(type_problem("thinking.enabled.budget_tokens", budget, "integer"))
            if budget < LEAST_THINKING or ("max_tokens" in body and budget >= cap):
                raise Refusal(
                    400,
                    f"thinking.enabled.budget_tokens: must be at least {LEAST_THINKING} and less than max_tokens",
                )

    def _check_messages(self, messages: list[object]) -> None:
        if not messages:
            raise Refusal(400, "messages: at least one message is required")
        for k, message in enumerate(messages):
            place = f"messages.{k}"
            if not isinstance(message, dict):
                raise self.refusal(Problem(place, "type", ("object",), kind_of(message)))
            role, content = message.get("role"), message.get("content")
            self.require(choice_problem(f"{place}.role", role, ("user", "assistant", "system")))
            if "content" not in message:
                raise self.refusal(Problem(f"{place}.content", "missing"))
            self.require(type_problem(f"{place}.content", content, "string|array"))
            for i, block in enumerate(content if isinstance(content, list) else []):
                self.require(type_problem(f"{place}.content.{i}", block, "object"))
                self.require(type_problem(f"{place}.content.{i}.type", block.get("type"), "string"))
            for name in sorted(set(message) - {"role", "content"}):
                raise self.refusal(Problem(f"{place}.{name}", "unknown"))

    def question(self, body: Json) -> str:
        texts = [text_of(m["content"], "text") for m in body["messages"] if m["role"] == "user"]
        return next((text for text in reversed(texts) if text), "")

    def envelope(self, refusal: Refusal, body: Json, request_id: str) -> Json:
        kind = refusal.type or ERROR_TYPES.get(refusal.status, "api_error")
        error: Json = {"type": kind, "message": refusal.message}
        if refusal.details is not None:
            error["details"] = refusal.details
        return {"type": "error", "error": error, "request_id": request_id}

    def error_frame(self, refusal: Refusal, body: Json, at: int, request_id: str) -> bytes:
        return frame(encode(self.envelope(refusal, body, request_id)), "error")

    def headers(self, request_id: str) -> dict[str, str]:
        rates = {
            f"anthropic-ratelimit-{what}-{which}": value
            for what in ("requests", "tokens", "input-tokens", "output-tokens")
            for which, value in (
                ("limit", "50000"),
                ("remaining", "49000"),
                ("reset", "2026-01-01T00:00:00Z"),
            )
        }
        return {
            "request-id": request_id,
            "anthropic-organization-id": "org-canaryORG123",
            "anthropic-workspace-id": "wrkspc_canary",
            **rates,
            "x-ratelimit-limit-requests": "50000",
            "set-cookie": "_cfuvid=canary; path=/; HttpOnly",
            "server": "goosestack-demo",
        }

    def refusal(self, problem: Problem) -> Refusal:
        if problem.why == "missing":
            text = "Field required"
        elif problem.why == "unknown":
            text = "Extra inputs are not permitted"
        elif problem.why == "type":
            kinds = " or ".join(INPUT_KINDS.get(kind, kind) for kind in problem.expected)
            text = f"Input should be {kinds}"
        else:
            text = "Input should be " + " or ".join(f"'{value}'" for value in problem.expected)
        return Refusal(400, f"{problem.field}: {text}")


class CountTokens(AnthropicWire):
    name = "count_tokens"
    fields = COUNTED_FIELDS
    required = ("model", "messages")

    def compose(self, body: Json, directive: Directive, question: str) -> Answer:
        value = merged({"input_tokens": _input_tokens(body)}, directive.usage)
        return Answer(value, body=encode(value))


class Messages(AnthropicWire):
    name = "messages"

    def compose(self, body: Json, directive: Directive, question: str) -> Answer:
        told = script(question, directive, body["max_tokens"], _tool(body, question))
        true = _usage(body, told, directive)
        usage = report(true, directive)
        reply = _Reply(
            told,
            started=_usage_at_start(true, directive),
            usage=report(_counts(true), replace(directive, usage=_counts(directive.usage))),
            head={
                "id": new_id("msg_"),
                "type": "message",
                "role": "assistant",
                "model": directive.model or body["model"],
            },
            call_id=new_id("toolu_"),
        )
        if not body.get("stream"):
            return Answer(usage.value, body=reply.body(usage.all))
        late = (reply.word(" again"), reply.message_delta(reply.usage.doubled))
        return Answer(usage.value, frames=tuple(reply.frames()), late=late)


@dataclass(frozen=True)
class _Reply:
    """One message on its way into events or into a body."""

    told: Script
    started: str | None  # the usage of message_start
    usage: Usage  # that of message_delta
    head: Json
    call_id: str

    @property
    def stop(self) -> Json:
        reason = "max_tokens" if self.told.cut else "end_turn"
        if self.told.tool is not None:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": None}

    def body(self, usage: str | None) -> bytes:
        document = {**self.head, "content": self._content(), **self.stop, "usage": USAGE}
        return encode(document, usage)

    def frames(self) -> list[bytes]:
        stop = {"stop_reason": None, "stop_sequence": None}
        message = {**self.head, "content": [], **stop, "usage": USAGE}
        frames = [self._event("message_start", {"message": message}, self.started)]
        frames += self._block() if self._content() else [PING]
        frames += [self.message_delta(text) for text in self.usage.texts or (None,)]
        return [*frames, self._event("message_stop", {})]

    def word(self, piece: str) -> bytes:
        return self._delta({"type": "text_delta", "text": piece})

    def message_delta(self, usage: str | None, stop: Json | None = None) -> bytes:
        fields = {"delta": self.stop if stop is None else stop, "usage": USAGE}
        return self._event("message_delta", fields, usage)

    def _content(self) -> list[Json]:
        if self.told.tool is not None:
            return [self._call()]
        return [{"type": "text", "text": self.told.text}] if self.told.words else []

    def _block(self) -> list[bytes]:
        called = self.told.tool is not None
        empty = self._call() if called else {"type": "text", "text": ""}
        frames = [self._event("content_block_start", {"index": 0, "content_block": empty}), PING]
        for part in ("", "{}") if called else ():
            frames.append(self._delta({"type": "input_json_delta", "partial_json": part}))
        for said, piece in enumerate(self.told.pieces, 1):
            frames.append(self.word(piece))
            if self.usage.every_frame:
                so_far = dump({"output_tokens": said})
                frames.append(self.message_delta(so_far, {"stop_reason": None}))
        return [*frames, self._event("content_block_stop", {"index": 0})]

    def _call(self) -> Json:
        return {"type": "tool_use", "id": self.call_id, "name": self.told.tool, "input": {}}

    def _delta(self, delta: Json) -> bytes:
        return self._event("content_block_delta", {"index": 0, "delta": delta})

    def _event(self, kind: str, fields: Json, usage: str | None = None) -> bytes:
        return frame(encode({"type": kind, **fields}, usage), kind)


def _tool(body: Json, question: str) -> str | None:
    last = body["messages"][-1]["content"]
    answered = isinstance(last, list) and any(block["type"] == "tool_result" for block in last)
    if answered or body.get("tool_choice", {}).get("type") == "none" or "tool" not in question:
        return None
    for tool in body.get("tools", []):
        if isinstance(tool, dict) and tool.get("type") in (None, "custom"):
            name = tool.get("name")
            return name if isinstance(name, str) else None
    return None


def _input_tokens(body: Json) -> int:
    read = [message["content"] for message in body["messages"]]
    return input_tokens([read, body.get("system"), body.get("tools")], len(read))


def _usage(body: Json, told: Script, directive: Directive) -> Json:
    return {
        "input_tokens": _input_tokens(body),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": told.output_tokens,
        "output_tokens_details": {"thinking_tokens": told.reasoning},
        "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
        "service_tier": directive.tier or "standard",
        "inference_geo": body.get("inference_geo") or "global",
        "speed": body.get("speed") or "standard",
    }


def _usage_at_start(true: Json, directive: Directive) -> str | None:
    """In message_start, where the output count is a placeholder."""
    if directive.usage_mode in ("missing", "null"):
        return None if directive.usage_mode == "missing" else "null"
    usage = merged(true, directive.usage)
    usage.pop("output_tokens_details", None)
    usage.pop("server_tool_use", None)
    return dump(usage | ({"output_tokens": 1} if "output_tokens" in usage else {}))


def _counts(usage: Json) -> Json:
    """The part of usage that message_delta repeats: the cumulative counts."""
    return {key: value for key, value in usage.items() if key not in AT_START_ONLY}
