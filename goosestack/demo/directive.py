"""The directive: what a question may tell the demo upstream to do, as `demo:{...json...}`.

It travels in the text of the last user message, because whatever stands between the caller and
this upstream may rebuild the headers, but passes the question on untouched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from goosestack.demo.faults import FAULTS
from goosestack.demo.strict import Json, Refusal, finite, type_problem

MARK = "demo:{"
USAGE_MODES = ("missing", "null", "twice", "decreasing", "every_chunk")
KINDS = {
    "words": "integer",
    "delay_ms": "number",
    "fault": "string",
    "at": "integer",
    "usage": "object",
    "usage_raw": "string",
    "usage_mode": "string",
    "model": "string",
    "tier": "string",
    "reasoning": "integer",
    "status": "integer",
    "hang_s": "number",
    "headers": "object",
    "location": "string",
}
RANGES = {
    "words": (0, 1_000_000),
    "delay_ms": (0, 3_600_000),
    "at": (0, 10_000_000),
    "reasoning": (0, 1_000_000_000),
    "status": (200, 599),
    "hang_s": (0, 86_400),
}


@dataclass(frozen=True)
class Directive:
    """How to answer one request.

    words: length of the answer. delay_ms: pause between frames. fault: one of FAULTS, striking at
    frame `at` (the middle, where absent). usage: merged over the reported usage, null removes a
    field. usage_raw: text sent as the value of usage, JSON or not. usage_mode: how often usage is
    reported. model, tier: what is reported as used. reasoning: hidden output tokens. status: of
    the answer; from 400 on, the vendor's error. hang_s: seconds of silence before the headers, or
    of a stall, or before a second answer. headers: added to the answer. location: where a redirect points.
    """

    words: int | None = None
    delay_ms: float | None = None
    fault: str | None = None
    at: int | None = None
    usage: Json = field(default_factory=dict)
    usage_raw: str | None = None
    usage_mode: str | None = None
    model: str | None = None
    tier: str | None = None
    reasoning: int = 0
    status: int = 200
    hang_s: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    location: str = "/v1/redirected"


def read(text: str) -> tuple[Directive, str]:
    """The directive in a question, and the question without it; Refusal where it makes no sense."""
    start = text.find(MARK)
    if start < 0:
        return Directive(), text
    try:
        decoder = json.JSONDecoder(parse_float=finite, parse_constant=_constant)
        values, end = decoder.raw_decode(text, start + len(MARK) - 1)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"not valid JSON: {error}") from None
    _check(values)
    return Directive(**values), text[:start] + text[end:]


def _check(values: dict[str, Any]) -> None:
    unknown = sorted(set(values) - set(KINDS))
    if unknown:
        raise _refusal(f"unknown keys: {', '.join(unknown)}")
    for name, value in values.items():
        problem = type_problem(name, value, KINDS[name])
        if problem is not None:
            raise _refusal(f"{name} must be of type {KINDS[name]}, not {problem.got}")
        low, high = RANGES.get(name, (None, None))
        if low is not None and not low <= value <= high:
            raise _refusal(f"{name} must be between {low} and {high}")
    if values.get("fault", FAULTS[0]) not in FAULTS:
        raise _refusal(f"unknown fault {values['fault']!r}; there are: {', '.join(FAULTS)}")
    if values.get("usage_mode", USAGE_MODES[0]) not in USAGE_MODES:
        raise _refusal(f"usage_mode must be one of {', '.join(USAGE_MODES)}")
    headers = values.get("headers", {})
    lines = [values.get("usage_raw", ""), values.get("location", ""), *headers, *headers.values()]
    if not all(isinstance(line, str) and "\n" not in line and "\r" not in line for line in lines):
        raise _refusal("headers, location and usage_raw are strings of one line")


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value; usage_raw takes any text")


def _refusal(why: str) -> Refusal:
    return Refusal(400, f"Demo directive: {why}.", code="invalid_directive")
