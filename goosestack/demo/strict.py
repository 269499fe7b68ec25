"""Reading a request as strictly as a vendor does: JSON, no key twice, no unknown field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

Json: TypeAlias = dict[str, Any]

LIMIT_BYTES = 32 * 1024 * 1024

# What no model reads as text: names of things, and media, which have their own price.
UNREAD = {
    "cache_control",
    "call_id",
    "data",
    "encrypted_content",
    "file_data",
    "file_id",
    "id",
    "image_url",
    "media_type",
    "role",
    "signature",
    "tool_call_id",
    "tool_use_id",
    "type",
    "url",
}


class Refusal(Exception):
    """A request that is answered with an error, in the words and envelope of the vendor."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        details: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.details = details
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one field; each vendor has its own sentence for it."""

    field: str
    why: str  # missing, unknown, type or value
    expected: tuple[str, ...] = ()
    got: str = ""


def parse(raw: bytes) -> Json:
    """The body as a JSON object; a key given twice, NaN and infinities are refused."""
    try:
        body = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=finite,
        )
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body of the request is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, f"The body must be a JSON object, not {kind_of(body)}.")
    return body


def finite(text: str) -> float:
    """A JSON number with a fraction or an exponent; ValueError where it overflows."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text} is out of range")
    return number


def _object(pairs: list[tuple[str, Any]]) -> Json:
    document: Json = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key {key!r} is given twice")
        document[key] = value
    return document


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def kind_of(value: object) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "unknown")


def type_problem(field: str, value: object, spec: str) -> Problem | None:
    """What is wrong with a value by a spec like `integer`, `string|array`, `number?` (nullable)."""
    if value is None and spec.endswith("?"):
        return None
    expected = tuple(spec.removesuffix("?").split("|"))
    got = kind_of(value)
    if got in expected or (got == "integer" and "number" in expected):
        return None
    return Problem(field, "type", expected, got)


def choice_problem(field: str, value: object, choices: Sequence[str]) -> Problem | None:
    """What is wrong with a value where only certain strings will do."""
    if value is None:
        return Problem(field, "missing")
    if not isinstance(value, str):
        return Problem(field, "type", ("string",), kind_of(value))
    return None if value in choices else Problem(field, "value", tuple(choices), value)


def field_problem(
    body: Json,
    fields: Mapping[str, str],
    *,
    required: Sequence[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
    tolerant: bool = False,
) -> Problem | None:
    """The first thing wrong with the top level of a body; `tolerant` lets unknown fields pass."""
    for field in required:
        if field not in body:
            return Problem(field, "missing")
    for field, value in body.items():
        if field not in fields:
            if not tolerant:
                return Problem(field, "unknown")
            continue
        found = type_problem(field, value, fields[field])
        if found is None and value is not None and choices and field in choices:
            found = choice_problem(field, value, choices[field])
        if found is not None:
            return found
    return None


def readable(value: object) -> Iterator[str]:
    """Every string in a document that a model would read."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from readable(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in UNREAD:
                yield from readable(each)


def text_of(content: object, kind: str) -> str:
    """The text of a message's content: a string, or parts of which those of one type count."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == kind]
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
