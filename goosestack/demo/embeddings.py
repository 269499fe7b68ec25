"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Mapping

from goosestack.demo.answer import USAGE, Answer, encode, new_id, report
from goosestack.demo.directive import Directive
from goosestack.demo.openai import OpenAIWire, integer_problem, is_routed, router_cost
from goosestack.demo.strict import Json, Problem, Refusal, field_problem, kind_of

FIELDS = {
    "input": "string|array",
    "model": "string",
    "dimensions": "integer",
    "encoding_format": "string",
    "user": "string",
}
DIMENSIONS = {"text-embedding-3-large": 3072}
DEFAULT_DIMENSIONS = 1536
MOST_INPUTS = 2048


class Embeddings(OpenAIWire):
    name = "embeddings"

    def check(self, body: Json, headers: Mapping[str, str]) -> None:
        self.require(
            field_problem(
                body,
                FIELDS,
                required=("model", "input"),
                choices={"encoding_format": ("float", "base64")},
                tolerant=is_routed(body),
            )
        )
        most = _dimensions(body["model"])
        refusal = integer_problem("dimensions", body.get("dimensions"), 1, most)
        if refusal is not None:
            raise refusal
        items = _items(body["input"])
        if not 0 < len(items) <= MOST_INPUTS or "" in items or [] in items:
            raise Refusal(400, f"'input' must hold 1 to {MOST_INPUTS} items.", param="input")
        for k, item in enumerate(items):
            tokens = isinstance(item, list) and all(kind_of(each) == "integer" for each in item)
            if not (tokens or isinstance(item, str)):
                problem = Problem(f"input[{k}]", "type", ("string", "array"), kind_of(item))
                raise self.refusal(problem)

    def question(self, body: Json) -> str:
        last = _items(body["input"])[-1]
        return last if isinstance(last, str) else ""

    def compose(self, body: Json, directive: Directive, question: str) -> Answer:
        size = body.get("dimensions", _dimensions(body["model"]))
        packed = body.get("encoding_format") == "base64"
        items = _items(body["input"])
        data = [
            {
                "object": "embedding",
                "index": k,
                "embedding": _packed(vector(item, size)) if packed else vector(item, size),
            }
            for k, item in enumerate(items)
        ]
        tokens = sum(_tokens(item) for item in items)
        routed = is_routed(body)
        true: Json = {"prompt_tokens": tokens, "total_tokens": tokens}
        usage = report(true | (router_cost(tokens, 0) if routed else {}), directive)
        document = {
            **({"id": new_id("gen-")} if routed else {}),
            "object": "list",
            "data": data,
            "model": directive.model or body["model"],
            "usage": USAGE,
        }
        return Answer(usage.value, body=encode(document, usage.all))


def vector(item: object, size: int) -> list[float]:
    """A unit vector that depends on nothing but the input."""
    raw = hashlib.shake_256(repr(item).encode("utf-8", "replace")).digest(size * 2)
    values = [number / 32768 for number in struct.unpack(f"<{size}h", raw)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [round(value / length, 7) for value in values]


def _packed(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _dimensions(model: str) -> int:
    return DIMENSIONS.get(model, DEFAULT_DIMENSIONS)


def _items(given: object) -> list[object]:
    """The inputs one by one: a string, strings, one list of tokens, or lists of tokens."""
    if isinstance(given, list) and (not given or kind_of(given[0]) != "integer"):
        return given
    return [given]


def _tokens(item: object) -> int:
    if isinstance(item, list):
        return len(item)
    return max(1, len(str(item).encode("utf-8", "replace")) // 4)
