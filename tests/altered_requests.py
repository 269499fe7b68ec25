"""Good requests in every wire format, and what becomes of them when something in them is changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from tests.bad_input import changed
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES

Path = tuple[Any, ...]

IMAGE = "data:image/png;base64,iVBORw0KGgo="
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "So?"},
]
GOOD: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "gpt-4o-mini", "messages": TURNS, "max_tokens": 20, "temperature": 0.5, "n": 2, "user": "u"}),
    (CHAT, {"model": "gpt-4o-mini", "stream": True, "messages": TURNS[:1], "stream_options": {"include_usage": True}}),
    (CHAT, {"model": "gpt-4o-mini", "messages": TURNS[:1], "tools": [CHAT_TOOL], "tool_choice": "auto", "stop": ["x"]}),
    (
        CHAT,
        {
            "model": "gpt-4o-mini",
            "max_completion_tokens": 30,
            "metadata": {"a": "b"},
            "response_format": {"type": "json_object"},
            "messages": [
                {"role": "system", "content": "Be short."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": IMAGE}}],
                },
            ],
        },
    ),
    (RESPONSES, {"model": "gpt-5.4-mini", "input": "Hello", "max_output_tokens": 20, "reasoning": {"effort": "low"}}),
    (
        RESPONSES,
        {
            "model": "gpt-5.4-mini",
            "instructions": "Be short.",
            "stream": True,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "?"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "5"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        },
    ),
    (EMBEDDINGS, {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 8, "encoding_format": "float"}),
    (EMBEDDINGS, {"model": "text-embedding-3-small", "input": [[1, 2, 3]], "dimensions": 8}),
    (MESSAGES, {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": TURNS, "system": "Be short.", "top_k": 5}),
    (
        MESSAGES,
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 3000,
            "stream": True,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "tools": [TOOL],
            "tool_choice": {"type": "auto"},
            "metadata": {"user_id": "u"},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "?", "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": "b"}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "5"}]},
            ],
        },
    ),
    (COUNT, {"model": "claude-haiku-4-5", "messages": TURNS, "system": [{"type": "text", "text": "Be short."}]}),
]

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e308,
    5e-324,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
]
ODD += ["", " ", "0", "null", "auto", "x" * 300, "\0", "\u202e", "\ud7ff", "\U0010ffff", "e\u0301" * 50, "🦆", "ﷺ" * 20]
ODD += [[], {}, [[]], [None], [{}], {"": ""}, {"type": "text"}, {"type": "text", "text": None}, [0, "0", None, {}]]
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "01",
    "1.",
    "9" * 400,
    "9" * 5000,
    '"\\ud800"',
    '"\\u0000"',
    "[" * 80,
]
RAW += ["[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70, '{"a":1,"a":2}', "'x'", "undefined", "tru", '"\t"', "/**/1"]
FIELDS = """model messages input stream max_tokens max_completion_tokens max_output_tokens n tools tool_choice type role
    content text system metadata service_tier store user id name api_base models functions modalities audio prediction
    logit_bias top_logprobs previous_response_id background include thinking cache_control source url data media_type
    image_url file_id stop seed truncation reasoning effort budget_tokens dimensions encoding_format a""".split()
WRAPS: list[Callable[[Any], Any]] = [lambda it: [it], lambda it: {"text": it}, lambda it: [it, it]]
MARK = "@raw@"
"""Stands where raw text goes."""


def mutation(random: Random) -> tuple[str, bytes]:
    """Where it goes, and the body."""
    path, good = random.choice(GOOD)
    body = copy.deepcopy(good)
    raws: list[str] = []
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        random.choice(CHANGES)(random, body, raws)
    data = json.dumps(body, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    for raw in raws:
        data = data.replace(f'"{MARK}"'.encode(), raw.encode(), 1)
    if random.random() < 0.1:
        data = changed(random, data, len(data))
    return path, data


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value below this one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def _holder(body: Any, path: Path) -> Any:
    for key in path[:-1]:
        body = body[key]
    return body


def _place(random: Random, body: Any) -> tuple[Any, Any] | None:
    """What holds a value, and under which key or number."""
    found = list(places(body))
    if not found:
        return None
    path = random.choice(found)
    return _holder(body, path), path[-1]


def _put(random: Random, body: Any, make: Callable[[Any], Any]) -> None:
    found = _place(random, body)
    if found is not None:
        holder, key = found
        holder[key] = make(holder[key])


def _odd(random: Random, body: Any, raws: list[str]) -> None:
    _put(random, body, lambda _: copy.deepcopy(random.choice(ODD)))


def _raw(random: Random, body: Any, raws: list[str]) -> None:
    if MARK not in json.dumps(body):
        _put(random, body, lambda _: MARK)
        raws.append(random.choice(RAW))


def _missing(random: Random, body: Any, raws: list[str]) -> None:
    found = _place(random, body)
    if found is not None:
        del found[0][found[1]]


def _unknown(random: Random, body: Any, raws: list[str]) -> None:
    found = _place(random, body)
    holder = body if found is None or not isinstance(found[0], dict) else found[0]
    holder[random.choice(FIELDS)] = copy.deepcopy(random.choice(ODD))


def _swapped(random: Random, body: Any, raws: list[str]) -> None:
    paths = list(places(body))
    if len(paths) > 1:
        value = copy.deepcopy(_value(body, random.choice(paths)))
        _put(random, body, lambda _: value)


def _value(body: Any, path: Path) -> Any:
    return _holder(body, path)[path[-1]]


def _wrapped(random: Random, body: Any, raws: list[str]) -> None:
    wrap = random.choice(WRAPS)
    _put(random, body, wrap)


def _converted(random: Random, body: Any, raws: list[str]) -> None:
    _put(random, body, lambda value: str(value) if not isinstance(value, str) else len(value))


def _larger(random: Random, body: Any, raws: list[str]) -> None:
    times = random.choice((2, 10, 300))

    def grown(value: Any) -> Any:
        if isinstance(value, str | list):
            return value * times
        return value * 10**times if isinstance(value, int) else value

    if len(json.dumps(body)) < 20_000:
        _put(random, body, grown)


def _deeper(random: Random, body: Any, raws: list[str]) -> None:
    def nested(value: Any) -> Any:
        for _ in range(random.choice((5, 50, 62, 70))):
            value = [value] if random.random() < 0.5 else {"a": value}
        return value

    _put(random, body, nested)


CHANGES: list[Callable[[Random, Any, list[str]], None]] = [
    _odd,
    _odd,
    _odd,
    _raw,
    _missing,
    _missing,
    _unknown,
    _unknown,
    _swapped,
    _wrapped,
    _converted,
    _larger,
    _deeper,
]
