"""POST /v1/chat/completions."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from goosestack.demo.answer import (
    USAGE,
    Answer,
    Script,
    Usage,
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
    "messages": "array",
    "model": "string",
    "audio": "object?",
    "frequency_penalty": "number?",
    "function_call": "string|object",
    "functions": "array",
    "logit_bias": "object?",
    "logprobs": "boolean?",
    "max_completion_tokens": "integer?",
    "max_tokens": "integer?",
    "metadata": "object?",
    "modalities": "array?",
    "moderation": "object?",
    "n": "integer?",
    "parallel_tool_calls": "boolean",
    "prediction": "object?",
    "presence_penalty": "number?",
    "prompt_cache_key": "string?",
    "prompt_cache_options": "object",
    "prompt_cache_retention": "string?",
    "reasoning_effort": "string?",
    "response_format": "object",
    "safety_identifier": "string?",
    "seed": "integer?",
    "service_tier": "string?",
    "stop": "string|array?",
    "store": "boolean?",
    "stream": "boolean?",
    "stream_options": "object?",
    "temperature": "number?",
    "tool_choice": "string|object",
    "tools": "array",
    "top_logprobs": "integer?",
    "top_p": "number?",
    "user": "string",
    "verbosity": "string?",
    "web_search_options": "object",
}
STREAM_OPTIONS = {"include_usage": "boolean", "include_obfuscation": "boolean"}
ROLES = ("developer", "system", "user", "assistant", "tool", "function")
PARTS = ("text", "image_url", "input_audio", "file", "refusal")
REASONING_MODEL = re.compile(r"gpt-[5-9]|o[0-9]")


class Chat(OpenAIWire):
    name = "chat"

    def check(self, body: Json, headers: Mapping[str, str]) -> None:
        routed = is_routed(body)
        self.require(
            field_problem(
                body,
                FIELDS,
                required=("model", "messages"),
                choices={"service_tier": TIERS},
                tolerant=routed,
            )
        )
        self._check_messages(body["messages"])
        options = body.get("stream_options")
        if options is not None:
            if not body.get("stream"):
                raise Refusal(
                    400,
                    "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                    param="stream_options",
                )
            problem = field_problem(options, STREAM_OPTIONS, tolerant=routed)
            if problem is not None:
                name = f"stream_options.{problem.field}"
                raise self.refusal(Problem(name, problem.why, problem.expected, problem.got))
        if not routed:
            _check_cap(body)
        for name, high in (("n", 128), ("max_tokens", None), ("max_completion_tokens", None)):
            refusal = integer_problem(name, body.get(name), 1, high)
            if refusal is not None:
                raise refusal

    def _check_messages(self, messages: list[object]) -> None:
        if not messages:
            raise Refusal(
                400,
                "Invalid 'messages': empty array. Expected at least one message.",
                code="empty_array",
                param="messages",
            )
        for k, message in enumerate(messages):
            place = f"messages[{k}]"
            if not isinstance(message, dict):
                raise self.refusal(Problem(place, "type", ("object",), kind_of(message)))
            role, content = message.get("role"), message.get("content")
            self.require(choice_problem(f"{place}.role", role, ROLES))
            spec = "string|array?" if role in ("assistant", "function") else "string|array"
            self.require(type_problem(f"{place}.content", content, spec))
            for i, part in enumerate(content if isinstance(content, list) else []):
                self.require(type_problem(f"{place}.content[{i}]", part, "object"))
                kind = part.get("type")
                self.require(choice_problem(f"{place}.content[{i}].type", kind, PARTS))
            if role == "tool" and not isinstance(message.get("tool_call_id"), str):
                raise self.refusal(Problem(f"{place}.tool_call_id", "missing"))

    def question(self, body: Json) -> str:
        texts = [text_of(m["content"], "text") for m in body["messages"] if m["role"] == "user"]
        return next((text for text in reversed(texts) if text), "")

    def compose(self, body: Json, directive: Directive, question: str) -> Answer:
        caps = [body.get("max_completion_tokens"), body.get("max_tokens")]
        told = script(
            question,
            directive,
            next((cap for cap in caps if cap is not None), None),
            _tool(body, question),
        )
        n = 1 if body.get("n") is None else body["n"]
        usage = report(_usage(body, told, n), directive)
        routed = is_routed(body)
        reply = _Reply(
            told,
            usage,
            n,
            routed=routed,
            asked=bool((body.get("stream_options") or {}).get("include_usage")),
            answer_id=new_id("gen-" if routed else "chatcmpl-"),
            head={
                **({"provider": "Demo"} if routed else {}),
                "created": int(time.time()),
                "model": directive.model or body["model"],
                "service_tier": served_tier(body, directive),
                "system_fingerprint": "fp_demo",
            },
            call_id=new_id("call_"),
        )
        headers = {"x-generation-id": reply.answer_id} if routed else {}
        if not body.get("stream"):
            return Answer(usage.value, body=reply.body(), headers=headers)
        late = (reply.words_chunk(0, " again"), reply.usage_chunk(usage.doubled))
        return Answer(usage.value, frames=tuple(reply.frames()), late=late, headers=headers)


@dataclass(frozen=True)
class _Reply:
    """One answer on its way into chunks or into a body."""

    told: Script
    usage: Usage
    n: int
    routed: bool
    asked: bool  # the caller wants the usage chunk
    answer_id: str
    head: Json
    call_id: str

    @property
    def finish(self) -> str:
        if self.told.tool is not None:
            return "tool_calls"
        return "length" if self.told.cut else "stop"

    def body(self) -> bytes:
        call = {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.told.tool, "arguments": "{}"},
        }
        message: Json = {"role": "assistant", "content": self.told.text, "refusal": None}
        message["annotations"] = []
        if self.told.tool is not None:
            message |= {"content": None, "tool_calls": [call]}
        choices = [
            {"index": k, "message": message, "logprobs": None} | self._finished(self.finish) for k in range(self.n)
        ]
        return self._encoded("chat.completion", choices, self.usage.all)

    def frames(self) -> list[bytes]:
        frames = [self._chunk(k, self._opening()) for k in range(self.n)]
        if self.routed:
            frames[0] = b": OPENROUTER PROCESSING\n\n" + frames[0]
        if self.told.tool is not None:
            call = {"index": 0, "function": {"arguments": "{}"}}
            frames += [self._chunk(k, {"tool_calls": [call]}) for k in range(self.n)]
        for said, piece in enumerate(self.told.pieces, 1):
            frames += [self.words_chunk(k, piece, said) for k in range(self.n)]
        last = self.usage.last if self.usage.every_frame else self._blank
        frames += [self._chunk(k, {}, self.finish, last) for k in range(self.n)]
        if self.asked or self.routed:
            frames += [self.usage_chunk(text) for text in self.usage.texts]
        return [*frames, frame(b"[DONE]")]

    def words_chunk(self, choice: int, piece: str, said: int = 0) -> bytes:
        usage = self._blank
        if self.usage.every_frame and isinstance(self.usage.value, dict):
            usage = dump(merged(self.usage.value, {"completion_tokens": said * self.n}))
        return self._chunk(choice, {"content": piece}, usage=usage)

    def usage_chunk(self, usage: str) -> bytes:
        """OpenAI's last chunk has no choice; a router's has one that adds nothing."""
        if self.routed:
            return self._chunk(0, {"role": "assistant", "content": ""}, usage=usage)
        return frame(self._encoded("chat.completion.chunk", [], usage))

    @property
    def _blank(self) -> str | None:
        return "null" if self.asked and self.usage.texts and not self.routed else None

    def _opening(self) -> Json:
        delta: Json = {"role": "assistant", "content": "", "refusal": None}
        if self.told.tool is not None:
            function = {"name": self.told.tool, "arguments": ""}
            call = {"index": 0, "id": self.call_id, "type": "function", "function": function}
            delta |= {"content": None, "tool_calls": [call]}
        return delta

    def _finished(self, reason: str | None) -> Json:
        native = {"native_finish_reason": reason} if self.routed else {}
        return {"finish_reason": reason, **native}

    def _chunk(self, choice: int, delta: Json, finish: str | None = None, usage: str | None = None) -> bytes:
        shown = self._blank if usage is None else usage
        made = {"index": choice, "delta": delta, "logprobs": None} | self._finished(finish)
        return frame(self._encoded("chat.completion.chunk", [made], shown))

    def _encoded(self, kind: str, choices: list[Json], usage: str | None) -> bytes:
        document = {"id": self.answer_id, "object": kind, **self.head}
        return encode({**document, "choices": choices, "usage": USAGE}, usage)


def _check_cap(body: Json) -> None:
    if body.get("max_tokens") is None:
        return
    if REASONING_MODEL.match(body["model"]):
        raise Refusal(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            code="unsupported_parameter",
            param="max_tokens",
        )
    if body.get("max_completion_tokens") is not None:
        raise Refusal(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            code="invalid_parameter_combination",
            param="max_tokens",
        )


def _tool(body: Json, question: str) -> str | None:
    roles = [message["role"] for message in body["messages"]]
    asked_at = len(roles) - 1 - roles[::-1].index("user") if "user" in roles else 0
    if "tool" in roles[asked_at:] or body.get("tool_choice") == "none":
        return None
    return first_function(body.get("tools"), ("function", "name")) if "tool" in question else None


def _usage(body: Json, told: Script, n: int) -> Json:
    read = [[m.get(k) for k in ("content", "tool_calls", "name")] for m in body["messages"]]
    extras = [body.get(k) for k in ("tools", "functions", "response_format", "prediction")]
    prompt = input_tokens([read, extras], len(read))
    completion = told.output_tokens * n
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": told.reasoning * n,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    return usage | (router_cost(prompt, completion) if is_routed(body) else {})
