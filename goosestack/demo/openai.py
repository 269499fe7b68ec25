"""What the OpenAI-shaped wire formats share: credential, errors, headers, the model list.

A model whose name has a slash in it ("author/model") is answered in the manner of OpenRouter and
LiteLLM: usage with a cost, `gen-` ids, comments in streams, integer error codes, and unknown
fields pass.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from goosestack.demo.answer import Answer, Wire, encode, frame
from goosestack.demo.directive import Directive
from goosestack.demo.strict import Json, Problem, Refusal

MODELS = (
    "gpt-6-sol",
    "gpt-6-luna",
    "gpt-5.4-mini",
    "gpt-4o-mini",
    "text-embedding-3-small",
    "text-embedding-3-large",
    "claude-opus-5-5",
    "claude-sonnet-5-5",
    "claude-haiku-5-5",
)
TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
COST_INPUT, COST_OUTPUT = 0.15e-6, 0.6e-6  # USD per token, as an OpenRouter-like answer reports
ARTICLES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a decimal",
    "boolean": "a boolean",
    "array": "an array",
    "object": "an object",
}


class OpenAIWire(Wire):
    vendor = "openai"

    def authenticate(self, headers: Mapping[str, str]) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not key:
            raise Refusal(401, "You didn't provide an API key in an Authorization header.")
        if scheme.lower() != "bearer" or key != self.key:
            raise Refusal(401, f"Incorrect API key provided: {key}.", code="invalid_api_key")

    def envelope(self, refusal: Refusal, body: Json, request_id: str) -> Json:
        if is_routed(body):
            metadata = {"error_type": refusal.code or "provider_error"}
            return {"error": {"message": refusal.message, "code": refusal.status, "metadata": metadata}}
        return {
            "error": {
                "message": refusal.message,
                "type": refusal.type or "invalid_request_error",
                "param": refusal.param,
                "code": refusal.code,
            }
        }

    def error_frame(self, refusal: Refusal, body: Json, at: int, request_id: str) -> bytes:
        envelope = self.envelope(refusal, body, request_id)
        if is_routed(body):
            ended = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
            envelope |= {"object": "chat.completion.chunk", "choices": [ended]}
        return frame(encode(envelope))

    def headers(self, request_id: str) -> dict[str, str]:
        return {
            "x-request-id": request_id,
            "openai-organization": "org-canaryORG123",
            "openai-project": "proj_canary",
            "openai-processing-ms": "12",
            "openai-version": "2020-10-01",
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-remaining-requests": "9999",
            "x-ratelimit-reset-requests": "6ms",
            "x-ratelimit-limit-tokens": "30000",
            "x-ratelimit-remaining-tokens": "29500",
            "x-ratelimit-reset-tokens": "1s",
            "set-cookie": "__cf_bm=canary; path=/; HttpOnly",
            "server": "goosestack-demo",
        }

    def refusal(self, problem: Problem) -> Refusal:
        name, code = problem.field, f"invalid_{problem.why}"
        if problem.why == "missing":
            text, code = f"Missing required parameter: '{name}'.", "missing_required_parameter"
        elif problem.why == "unknown":
            text, code = f"Unknown parameter: '{name}'.", "unknown_parameter"
        elif problem.why == "type":
            expected = " or ".join(ARTICLES.get(kind, kind) for kind in problem.expected)
            got = ARTICLES.get(problem.got, problem.got)
            text = f"Invalid type for '{name}': expected {expected}, but got {got} instead."
        else:
            allowed = ", ".join(f"'{value}'" for value in problem.expected)
            text = f"Invalid value: '{problem.got}'. Supported values are: {allowed}."
        return Refusal(400, text, code=code, param=name)


def is_routed(body: Json) -> bool:
    """Whether the model is one of a router's, which behaves in its own way."""
    model = body.get("model")
    return isinstance(model, str) and "/" in model


def integer_problem(name: str, value: object, low: int, high: int | None = None) -> Refusal | None:
    """The refusal of an integer that is out of range; None is no integer, and passes."""
    if not isinstance(value, int) or (value >= low and (high is None or value <= high)):
        return None
    side, code, bound = ("below minimum", "below_min", low)
    if value > low:
        side, code, bound = ("above maximum", "above_max", high or low)
    sign = "<=" if value > low else ">="
    return Refusal(
        400,
        f"Invalid '{name}': integer {side} value. Expected a value {sign} {bound}, but got {value} instead.",
        code=f"integer_{code}_value",
        param=name,
    )


def served_tier(body: Json, directive: Directive) -> str:
    """The service tier that is reported as used."""
    if directive.tier is not None:
        return directive.tier
    asked = body.get("service_tier") or "auto"
    return {"auto": "default", "fast": "priority"}.get(asked, asked)


def first_function(tools: object, named: Sequence[str]) -> str | None:
    """The name of the first function among the tools; `named` is the way to the name."""
    for tool in tools if isinstance(tools, list) else []:
        found: Any = tool
        if not isinstance(tool, dict) or tool.get("type") != "function":
            continue
        for key in named:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found
    return None


def router_cost(prompt: int, completion: int) -> Json:
    """What a router adds to the usage."""
    spent = (round(prompt * COST_INPUT, 10), round(completion * COST_OUTPUT, 10))
    return {
        "cost": round(spent[0] + spent[1], 10),
        "is_byok": False,
        "cost_details": {
            "upstream_inference_cost": None,
            "upstream_inference_prompt_cost": spent[0],
            "upstream_inference_completions_cost": spent[1],
        },
    }


class Models(OpenAIWire):
    """GET /v1/models."""

    name = "models"
    method = "GET"

    def check(self, body: Json, headers: Mapping[str, str]) -> None:
        pass

    def question(self, body: Json) -> str:
        return ""

    def compose(self, body: Json, directive: Directive, question: str) -> Answer:
        now = int(time.time())
        data = [{"id": model, "object": "model", "created": now, "owned_by": "goosestack-demo"} for model in MODELS]
        return Answer(usage={}, body=encode({"object": "list", "data": data}))
