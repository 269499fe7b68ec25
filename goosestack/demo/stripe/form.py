"""Reading what a client sends: forms with nested keys, by a spec for each parameter, as strictly as Stripe does.

A reader takes the raw value and its full name (`line_items[0][quantity]`) and answers the value, or raises a Refusal
that names the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from goosestack.demo.strict import Json, Refusal

Raw: TypeAlias = "str | dict[str, Raw]"
Reader: TypeAlias = Callable[[Raw, str], Any]

KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)", re.ASCII)
INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
EMAIL = re.compile(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s.\x00-\x1f]+")
CURRENCY = re.compile(r"[a-z]{3}", re.ASCII)
SPANS = ("gt", "gte", "lt", "lte")
MOST_METADATA, LONGEST_METADATA_KEY, LONGEST_METADATA_VALUE = 50, 40, 500
LONGEST_TEXT = 5000


def refused(code: str, message: str, param: str | None = None, status: int = 400) -> Refusal:
    """An invalid request, as the API words it."""
    return Refusal(status, message, type="invalid_request_error", code=code, param=param)


def decode(text: str) -> dict[str, Raw]:
    """A form as a tree; `a[]` is the next of `a[0]`, `a[1]`, … A key that is given twice is refused."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict") if text else []
    except ValueError:
        raise Refusal(400, "The request is not a well-formed form.", type="invalid_request_error") from None
    tree: dict[str, Raw] = {}
    for key, value in pairs:
        match = KEY.fullmatch(key)
        if match is None:
            raise refused("parameter_unknown", f"Received unknown parameter: {key}", key)
        node, path = tree, [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        for step in path[:-1]:
            inner = node.setdefault(step or str(len(node)), {})
            if isinstance(inner, str):
                raise refused("parameter_invalid", f"{match[1]} is given both as a value and as an object.", match[1])
            node = inner
        last = path[-1] or str(len(node))
        if last in node:
            raise refused("parameter_invalid", f"{key} is given twice.", match[1])
        node[last] = value
    return tree


@dataclass(frozen=True)
class Fields:
    """Reads an object of these parameters; others are unknown."""

    spec: Mapping[str, Reader]
    required: Sequence[str] = ()

    def __call__(self, raw: Raw, name: str) -> Json:
        if isinstance(raw, str):
            raise refused("parameter_invalid", f"Invalid object: {name} has fields.", name)

        def full(inner: str) -> str:
            return f"{name}[{inner}]" if name else inner

        for inner in raw:
            if inner not in self.spec:
                raise refused("parameter_unknown", f"Received unknown parameter: {full(inner)}", full(inner))
        for inner in self.required:
            if inner not in raw:
                raise refused("parameter_missing", f"Missing required param: {full(inner)}.", full(inner))
        return {inner: self.spec[inner](value, full(inner)) for inner, value in raw.items()}


@dataclass(frozen=True)
class Items:
    """Reads a list of what another reader reads."""

    each: Reader
    most: int = 100

    def __call__(self, raw: Raw, name: str) -> list[Any]:
        if isinstance(raw, str) or sorted(raw) != sorted(map(str, range(len(raw)))):
            raise refused("parameter_invalid", f"Invalid array: {name}.", name)
        if len(raw) > self.most:
            raise refused("parameter_invalid", f"{name} takes up to {self.most} items.", name)
        return [self.each(raw[str(at)], f"{name}[{at}]") for at in range(len(raw))]


def _value(raw: Raw, name: str, kind: str) -> str:
    if not isinstance(raw, str):
        raise refused(f"parameter_invalid_{kind}", f"Invalid {kind}: {name} has no fields.", name)
    if raw == "":
        raise refused("parameter_invalid_empty", f"{name} is an empty string, and cannot be unset.", name)
    return raw


def text(most: int = LONGEST_TEXT, *, unset: bool = False) -> Reader:
    """A string of up to so many characters; where it can be unset, an empty one is None."""

    def read(raw: Raw, name: str) -> str | None:
        if unset and raw == "":
            return None
        value = _value(raw, name, "string")
        if len(value) > most:
            raise refused(
                "parameter_invalid_string_length", f"{name} has {len(value)} characters, the most is {most}.", name
            )
        return value

    return read


def pattern(expression: re.Pattern[str], what: str, code: str) -> Reader:
    """A string of one form."""

    def read(raw: Raw, name: str) -> str:
        value = _value(raw, name, "string")
        if not expression.fullmatch(value):
            raise refused(code, f"Invalid {what}: {value}", name)
        return value

    return read


def integer(low: int = 0, high: int = 10**15) -> Reader:
    """A whole number within bounds."""

    def read(raw: Raw, name: str) -> int:
        value = _value(raw, name, "integer")
        if not INTEGER.fullmatch(value):
            raise refused("parameter_invalid_integer", f"Invalid integer: {value}", name)
        if not low <= int(value) <= high:
            raise refused("parameter_invalid_integer", f"{name} must be between {low} and {high}, not {value}.", name)
        return int(value)

    return read


def boolean(raw: Raw, name: str) -> bool:
    """`true` or `false`."""
    value = _value(raw, name, "boolean")
    if value not in ("true", "false"):
        raise refused("parameter_invalid_boolean", f"Invalid boolean: {value}", name)
    return value == "true"


def choice(*values: str) -> Reader:
    """One of these."""

    def read(raw: Raw, name: str) -> str:
        value = _value(raw, name, "string")
        if value not in values:
            raise refused("parameter_invalid", f"Invalid {name}: must be one of {', '.join(values)}.", name)
        return value

    return read


def metadata(raw: Raw, name: str) -> dict[str, str] | None:
    """Keys and values; an empty value removes its key, and None (an empty string for the whole) removes all."""
    if raw == "":
        return None
    if isinstance(raw, str) or not all(isinstance(value, str) for value in raw.values()):
        raise refused("parameter_invalid", f"Invalid object: {name} maps strings to strings.", name)
    if len(raw) > MOST_METADATA:
        raise refused("parameter_invalid", f"{name} takes up to {MOST_METADATA} keys.", name)
    found = {key: value for key, value in raw.items() if isinstance(value, str)}
    for key, value in found.items():
        if len(key) > LONGEST_METADATA_KEY or len(value) > LONGEST_METADATA_VALUE:
            raise refused(
                "parameter_invalid_string_length",
                f"Metadata takes keys of {LONGEST_METADATA_KEY} and values of {LONGEST_METADATA_VALUE} characters.",
                f"{name}[{key[:LONGEST_METADATA_KEY]}]",
            )
    return found


def strings(raw: Raw, name: str) -> dict[str, str]:
    """Keys and values, none of them empty."""
    if isinstance(raw, str):
        raise refused("parameter_invalid", f"Invalid object: {name} maps strings to strings.", name)
    return {key: _value(value, f"{name}[{key}]", "string") for key, value in raw.items()}


def span(raw: Raw, name: str) -> Mapping[str, int]:
    """A time, or bounds of one: `created=1`, `created[gte]=1`."""
    number = integer()
    if isinstance(raw, str):
        at = number(raw, name)
        return {"gte": at, "lte": at}
    found: Json = Fields(dict.fromkeys(SPANS, number))(raw, name)
    return found


def within(at: int, bounds: Mapping[str, int]) -> bool:
    """Whether a time lies within what `span` read."""
    return (
        at > bounds.get("gt", -1)
        and at >= bounds.get("gte", 0)
        and at < bounds.get("lt", at + 1)
        and at <= bounds.get("lte", at)
    )


def url(raw: Raw, name: str) -> str:
    """An absolute http(s) address. `{CHECKOUT_SESSION_ID}` may stand in it."""
    value = _value(raw, name, "string")
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"[\s\x00-\x1f]", value)
    except ValueError:
        good = False
    if not good or len(value) > LONGEST_TEXT:
        raise refused("url_invalid", "Not a valid URL", name)
    return value


email = pattern(EMAIL, "email address", "email_invalid")
currency = pattern(CURRENCY, "currency", "parameter_invalid")
expand = Items(text(), most=20)


def listing(**filters: Reader) -> Fields:
    """The parameters of a list: pages, and filters of its own."""
    return Fields(
        {
            "limit": integer(1, 100),
            "starting_after": text(),
            "ending_before": text(),
            "expand": expand,
            **filters,
        }
    )
