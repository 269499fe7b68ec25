"""POST /v1/responses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from goosestack.demo.answer import (
    USAGE,
    Answer,
    Script,
    Usage,
    encode,
    frame,
    input_tokens,
    new_id,
    report,
    script,
)
from goosestack.demo.directive import Directive
from goosestack.demo.openai import (
    TIERS,
    OpenAIWire,
    first_function,
    integer_problem,
    is_routed,
    router_cost,
    served_tier,
)
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

FIELDS = {
    "access_programs": "object",
    "background": "boolean?",
    "client_metadata": "object?",  # not in the SDK, but sent by Codex
    "context_management": "array?",
    "conversation": "string|object?",
    "image": "object",
    "include": "array?",
    "input": "string|array",
    "instructions": "string?",
    "max_output_tokens": "integer?",
    "max_tool_calls": "integer?",
    "metadata": "object?",
    "model": "string",
    "moderation": "object?",
    "parallel_tool_calls": "boolean?",
    "previous_response_id": "string?",
    "prompt": "object?",
    "prompt_cache_key": "string?",
    "prompt_cache_options": "object",
    "prompt_cache_retention": "string?",
    "reasoning": "object?",
    "safety_identifier": "string?",
    "service_tier": "string?",
    "store": "boolean?",
    "stream": "boolean?",
    "stream_options": "object?",
    "temperature": "number?",
    "text": "object",
    "tool_choice": "string|object",
    "tools": "array",
    "top_logprobs": "integer?",
    "top_p": "number?",
    "truncation": "string?",
    "user": "string",
}
ROLES = ("user", "assistant", "system", "developer")
LEAST_OUTPUT_TOKENS = 16
ABSENT = ("background", "conversation", "previous_response_id", "prompt")  # nothing is kept here
ECHOED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


class Responses(OpenAIWire):
    name = "responses"

    def check(self, body: Json, headers: Mapping[str, str]) -> None:
        self.require(
            field_problem(
                body,
                FIELDS,
                required=("model", "input"),
                choices={"service_tier": (*TIERS, "ultrafast")},
                tolerant=is_routed(body),
            )
        )
        for name in ABSENT:
            if body.get(name):
                raise Refusal(
                    400,
                    f"'{name}' refers to state, of which the demo upstream keeps none.",
                    code="unsupported_parameter",
                    param=name,
                )
        if body.get("stream_options") is not None and not body.get("stream"):
            raise Refusal(
                400,
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        name = "max_output_tokens"
        refusal = integer_problem(name, body.get(name), LEAST_OUTPUT_TOKENS)
        if refusal is not None:
            raise refusal
        for k, item in enumerate(_items(body)):
            self._check_item(f"input[{k}]", item)

    def _check_item(self, place: str, item: object) -> None:
        if not isinstance(item, dict):
            raise self.refusal(Problem(place, "type", ("object",), kind_of(item)))
        kind = item.get("type", "message")
        self.require(type_problem(f"{place}.type", kind, "string"))
        if kind == "message":
            self.require(choice_problem(f"{place}.role", item.get("role"), ROLES))
            self.require(type_problem(f"{place}.content", item.get("content"), "string|array"))
        elif kind == "function_call_output" and not isinstance(item.get("call_id"), str):
            raise self.refusal(Problem(f"{place}.call_id", "missing"))

    def question(self, body: Json) -> str:
        if isinstance(body["input"], str):
            return body["input"]
        asked = [item.get("content") for item in body["input"] if item.get("role") == "user"]
        texts = [text_of(content, "input_text") for content in asked]
        return next((text for text in reversed(texts) if text), "")

    def compose(self, body: Json, directive: Directive, question: str) -> Answer:
        told = script(question, directive, body.get("max_output_tokens"), _tool(body, question))
        usage = report(_usage(body, told), directive)
        reply = _Reply(
            told,
            usage,
            head={
                "id": new_id("gen-" if is_routed(body) else "resp_"),
                "object": "response",
                "created_at": int(time.time()),
            },
            rest={
                "background": False,
                "model": directive.model or body["model"],
                "service_tier": served_tier(body, directive),
                **{key: body.get(key, value) for key, value in ECHOED.items()},
            },
            item_id=new_id("fc_" if told.tool is not None else "msg_"),
            call_id=new_id("call_"),
        )
        if not body.get("stream"):
            done = reply.response(reply.status, [reply.item(reply.status)])
            return Answer(usage.value, body=encode(done, usage.all))
        frames = tuple(reply.frames())
        if is_routed(body):
            frames = (b": OPENROUTER PROCESSING\n\n" + frames[0], *frames[1:])
        late = (reply.delta(len(frames), " again"), reply.terminal(len(frames) + 1, usage.doubled))
        failed = reply.failed(len(frames) - 1)
        return Answer(usage.value, frames=frames, late=late, failed=failed)

    def error_frame(self, refusal: Refusal, body: Json, at: int, request_id: str) -> bytes:
        document = {
            "type": "error",
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
            "sequence_number": at,
        }
        return frame(encode(document), "error")


@dataclass(frozen=True)
class _Reply:
    """One response on its way into events or into a body."""

    told: Script
    usage: Usage
    head: Json
    rest: Json
    item_id: str
    call_id: str

    @property
    def status(self) -> str:
        return "incomplete" if self.told.cut else "completed"

    def response(self, status: str, output: list[Json]) -> Json:
        ended = status in ("completed", "incomplete", "failed")
        failure = {"code": "server_error", "message": "The model failed to answer."}
        return {
            **self.head,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": failure if status == "failed" else None,
            "incomplete_details": ({"reason": "max_output_tokens"} if status == "incomplete" else None),
            "output": output if ended else [],
            **self.rest,
            "usage": USAGE,
        }

    def item(self, status: str) -> Json:
        """The one output item, as it is at its begin or end."""
        begun = status == "in_progress"
        if self.told.tool is None:
            content = [] if begun else [self._part(self.told.text)]
            message = {"id": self.item_id, "type": "message", "status": status}
            return {**message, "role": "assistant", "content": content}
        return {
            "id": self.item_id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.told.tool,
            "arguments": "" if begun else "{}",
        }

    def frames(self) -> list[bytes]:
        early = self.usage.last if self.usage.every_frame else "null"
        again = self.usage.first if len(self.usage.texts) > 1 else early
        if not self.usage.texts:
            early = again = None
        open_item = {"output_index": 0, "item": self.item("in_progress")}
        frames = [
            self._state(0, "in_progress", early, "response.created"),
            self._state(1, "in_progress", again),
            self._event(2, "response.output_item.added", open_item),
        ]
        frames += self._call(3) if self.told.tool is not None else self._text(3)
        done_item = {"output_index": 0, "item": self.item(self.status)}
        frames.append(self._event(len(frames), "response.output_item.done", done_item))
        return [*frames, self.terminal(len(frames), self.usage.last)]

    def delta(self, number: int, piece: str) -> bytes:
        fields = {**self._place(), "delta": piece, "logprobs": []}
        return self._event(number, "response.output_text.delta", fields)

    def terminal(self, number: int, usage: str | None) -> bytes:
        return self._state(number, self.status, usage)

    def failed(self, number: int) -> bytes:
        return self._state(number, "failed", self.usage.last)

    def _text(self, number: int) -> list[bytes]:
        place, text = self._place(), self.told.text
        frames = [self._event(number, "response.content_part.added", {**place, "part": self._part("")})]
        for piece in self.told.pieces:
            frames.append(self.delta(number + len(frames), piece))
        number += len(frames)
        done = {**place, "text": text, "logprobs": []}
        frames.append(self._event(number, "response.output_text.done", done))
        part = {**place, "part": self._part(text)}
        return [*frames, self._event(number + 1, "response.content_part.done", part)]

    def _call(self, number: int) -> list[bytes]:
        kind = "response.function_call_arguments"
        place = {"item_id": self.item_id, "output_index": 0}
        done = {**place, "name": self.told.tool, "arguments": "{}"}
        return [
            self._event(number, f"{kind}.delta", {**place, "delta": "{}"}),
            self._event(number + 1, f"{kind}.done", done),
        ]

    def _state(self, number: int, status: str, usage: str | None, event: str = "") -> bytes:
        response = self.response(status, [self.item(self.status)])
        return self._event(number, event or f"response.{status}", {"response": response}, usage)

    def _event(self, number: int, kind: str, fields: Json, usage: str | None = None) -> bytes:
        return frame(encode({"type": kind, "sequence_number": number, **fields}, usage), kind)

    def _place(self) -> Json:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    @staticmethod
    def _part(text: str) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _items(body: Json) -> list[Json]:
    return body["input"] if isinstance(body["input"], list) else []


def _tool(body: Json, question: str) -> str | None:
    items = _items(body)
    asked = [k for k, item in enumerate(items) if item.get("role") == "user"]
    since = items[asked[-1] :] if asked else items
    answered = any(item.get("type") == "function_call_output" for item in since)
    if answered or body.get("tool_choice") == "none" or "tool" not in question:
        return None
    return first_function(body.get("tools"), ("name",))


def _usage(body: Json, told: Script) -> Json:
    read = [body["input"], body.get("instructions"), body.get("tools"), body.get("text")]
    prompt = input_tokens(read, max(1, len(_items(body))))
    completion = told.output_tokens
    usage: Json = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": told.reasoning},
        "total_tokens": prompt + completion,
    }
    return usage | (router_cost(prompt, completion) if is_routed(body) else {})
