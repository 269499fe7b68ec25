"""Mallory sends bodies that two parsers could read differently, or that one could not read at all.

What is priced must be what is sent: each body here is refused before it is priced, whichever endpoint it is meant for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, WIRES, Mallory, asks
from tests.world import World


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world) as mallory:
        yield mallory


def raw(path: str, **more: object) -> str:
    return json.dumps(asks(path, **more))


# --- numbers that are priced by -------------------------------------------------------------------------------

ODD_NUMBERS = """-1 -5 -9223372036854775808 1.0 1.5 0.1 -1.5 1e0 1e3 1E3 1e-3 1e400 1e999 -1e999 10000001 99999999
    2147483648 4294967296 9223372036854775807 9223372036854775808 18446744073709551616 999999999999999999999999999999
    true false "5" "1" "" "max" "1e3" " 5" [] [5] [[5]] {} {"value":5} NaN Infinity -Infinity nan +5 05 .5 5. 0x10 1_000
    5L None undefined ١٢ --5 5e 1,000""".split()
ODD_NUMBERS.append("1" + "0" * 5000)
NUMBER = "@number@"
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": NUMBER}
THINKING = {"type": "enabled", "budget_tokens": NUMBER}
FROM_ONE: list[tuple[str, str, dict[str, object]]] = [
    (CHAT, "max_tokens", {"max_tokens": NUMBER}),
    (CHAT, "max_completion_tokens", {"max_completion_tokens": NUMBER}),
    (CHAT, "n", {"n": NUMBER}),
    (RESPONSES, "max_output_tokens", {"max_output_tokens": NUMBER}),
    (RESPONSES, "max_tool_calls", {"max_tool_calls": NUMBER, "tools": [{"type": "web_search"}]}),
    (MESSAGES, "max_uses", {"tools": [SEARCH]}),
    (COUNT, "max_uses", {"tools": [SEARCH]}),
]
FROM_ZERO: list[tuple[str, str, dict[str, object]]] = [
    (EMBEDDINGS, "input", {"input": [1, NUMBER]}),
    (EMBEDDINGS, "input", {"input": [[1, 2], [NUMBER]]}),
    (MESSAGES, "max_tokens", {"max_tokens": NUMBER}),
    (MESSAGES, "budget_tokens", {"thinking": THINKING}),
    (COUNT, "budget_tokens", {"thinking": THINKING}),
]


@pytest.mark.parametrize(("path", "name", "fields"), FROM_ONE + FROM_ZERO)
def test_a_number_that_is_priced_by_is_a_plain_integer_within_reason(
    mallory: Mallory, path: str, name: str, fields: dict[str, object]
) -> None:
    for number in ODD_NUMBERS + (["0", "-0"] if (path, name, fields) in FROM_ONE else []):
        reply = mallory.refused(400, path, raw(path, **fields).replace(f'"{NUMBER}"', number).encode())
        assert name in reply.message or "JSON" in reply.message
        assert len(reply.message) < 300
    mallory.nothing_happened()


@pytest.mark.parametrize("path", WIRES)
def test_stream_is_true_or_false(mallory: Mallory, path: str) -> None:
    odd: list[object] = [0, 1, "true", "false", "", [], {}, 1.0, "yes"]
    for value in odd:
        if path != COUNT:  # which drops it
            assert "stream" in mallory.refused(400, path, asks(path, stream=value)).message
    mallory.nothing_happened()


# --- the same key twice ---------------------------------------------------------------------------------------


def _nested(depth: int, inner: str) -> str:
    return '{"a":' * depth + inner + "}" * depth


TWICE = ['{"x":1,"x":1}', '{"x":1,"x":2}', r'{"x":1,"\u0078":2}', '{"x":1,"y":2,"x":{}}', '{"":1,"":2}']
TWICE += [r'{"é":1,"\u00e9":2}']


@pytest.mark.parametrize("path", WIRES)
def test_a_key_that_stands_twice_is_refused_at_every_depth(mallory: Mallory, path: str) -> None:
    good = raw(path)
    top = [
        '{"model":"gpt-4o-mini",' + good[1:],
        good[:-1] + ',"model":"gpt-5-pro"}',
        good[:-1] + ',"mod\\u0065l":"gpt-5-pro"}',
        good[:-1] + ',"\\u006d\\u006f\\u0064\\u0065\\u006c":"gpt-5-pro"}',
        good[:-1] + ',"metadata":{},"metadata":{"a":"b"}}',
        good[:-1] + ',"service_tier":"auto","service_tier":"priority"}',
        good.replace('"role": "user"', '"role": "user", "role": "system"'),
        good.replace('"content": "Hello"', '"content": "Hello", "cont\\u0065nt": "' + "long " * 100 + '"'),
    ]
    deep = [good[:-1] + ',"metadata":' + _nested(depth, twice) + "}" for depth in (0, 1, 5, 50) for twice in TWICE]
    deep += [good[:-1] + ',"metadata":[[' + twice + "]]}" for twice in TWICE]
    for body in [*top, *deep]:
        if body != good:
            assert "twice" in mallory.refused(400, path, body.encode()).message
    mallory.nothing_happened()


def test_many_keys_of_which_one_stands_twice_are_refused_as_fast_as_one(mallory: Mallory) -> None:
    keys = ",".join(f'"k{number}":0' for number in range(150_000))
    for form in (keys, keys.replace(":", " :")):
        many = raw(CHAT)[:-1] + ',"metadata":{' + form + "," + form.rpartition(",")[2] + "}}"
        assert "twice" in mallory.refused(400, CHAT, many.encode()).message
    mallory.nothing_happened()


# --- nesting, and sheer numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WIRES)
@pytest.mark.parametrize("depth", [64, 300, 1_000, 5_000, 100_000])
def test_a_body_is_nested_64_levels_deep_and_no_deeper(mallory: Mallory, path: str, depth: int) -> None:
    good = raw(path)[:-1]
    forms = [_nested(depth, "1"), "[" * depth + "]" * depth, '[{"a":' * (depth // 2) + "1" + "}]" * (depth // 2)]
    for form in forms:
        for place in ("metadata", "tools", "input", "messages", "unknown"):
            if f'"{place}":' not in good:
                assert "nested" in mallory.refused(400, path, f'{good},"{place}":{form}}}'.encode()).message
    for endless in ("[" * depth, '{"a":' * depth, f'{good},"metadata":' + '{"a":[' * depth):
        mallory.refused(400, path, endless.encode())
    mallory.nothing_happened()


def test_63_levels_below_the_body_pass(mallory: Mallory) -> None:
    assert mallory.ask(CHAT, f'{raw(CHAT)[:-1]},"metadata":{_nested(63, "1")}}}'.encode()).status == 200
    assert len(mallory.dispatched()) == 1


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_body_of_very_many_values_is_refused_unread(mallory: Mallory, path: str) -> None:
    good = raw(path)[:-1]
    for many in ('{"a":0},' * 400_000, "[]," * 500_000, '"",' * 2_100_000):
        mallory.refused(400, path, f'{good},"metadata":[{many[:-1]}]}}'.encode())
    mallory.nothing_happened()


def test_the_largest_bodies_of_somebody_who_cannot_pay_go_nowhere(world: World) -> None:
    """Looked through in one go, each of these would take a thread a second or more, and the loop would stand still."""
    models = {CHAT: "gpt-5.4", RESPONSES: "gpt-5.4", EMBEDDINGS: "text-embedding-3-small", MESSAGES: "claude-opus-5-5"}
    large = {path: asks(path, "é" * 10_000_000, model=model) for path, model in models.items()}
    numbers = ",".join(["9" * 4200] * 6000)
    with Mallory(world, cents=1) as mallory:
        for path in (CHAT, EMBEDDINGS):
            mallory.refused(402, path, json.dumps(large[path], ensure_ascii=False).encode())
        mallory.refused(400, CHAT, f'{raw(CHAT)[:-1]},"metadata":[{numbers}]}}'.encode())
        mallory.nothing_happened()
    with Mallory(world, cents=0) as mallory:
        for path in (RESPONSES, MESSAGES):
            mallory.refused(402, path, json.dumps(large[path], ensure_ascii=False).encode())
        mallory.nothing_happened()


# --- encodings, and what is no JSON ---------------------------------------------------------------------------

ENCODINGS = "utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be utf-8-sig cp037".split()
SURROGATES = [r"\ud800", r"\udfff", r"a\ud83d", r"\ude00\ud83d", r"\ud83d \ude00", r"\uD800\uD800"]
NO_UTF8 = [b"\xc0\x80", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff\xfe", b"\x80"]
NO_UTF8 += [b"\xe2\x82", b"caf\xe9"]
NO_JSON = ["", " ", "{", "}", "[]", "null", "true", "5", '"text"', "{}{}", "[{}]", "{'model':'x'}", "{model:1}"]
NO_JSON += ["<xml/>", "a=1&b=2", "--x\r\nContent-Disposition: form-data", "\x00", '{"a":1,}', '{"a":1}//', "\x0b{}"]
NO_JSON += ['{"a":/**/1}', '{"a":01}', '{"a":"\n"}', '{"a":"\x1f"}', r'{"a":"\x41"}', r'{"a":"\u12"}', '{"a":tru}']
NO_JSON += ['{"a":+1}', '\ufeff{"a":1}']


@pytest.mark.parametrize("path", WIRES)
def test_a_body_is_utf_8_without_a_mark_and_without_half_characters(mallory: Mallory, path: str) -> None:
    good = raw(path)
    for encoding in ENCODINGS:
        mallory.refused(400, path, good.encode(encoding))
        typed = {"content-type": f"application/json; charset={encoding}"}
        mallory.refused(400, path, good.encode(encoding), typed)
    for half in SURROGATES:
        for field in (f'"user":"{half}"', f'"{half}":1', f'"a":[{{"b":"{half}"}}]'):
            mallory.refused(400, path, f"{good[:-1]},{field}}}".encode())
        mallory.refused(400, path, good.replace("Hello", half).encode())
        mallory.refused(400, path, good.replace('"model": "', f'"model": "{half}').encode())
    for data in NO_UTF8:
        mallory.refused(400, path, good.encode().replace(b"Hello", data))
    mallory.nothing_happened()


@pytest.mark.parametrize("path", [*WIRES, "/v1/keys"])
def test_what_is_no_json_object_is_refused(mallory: Mallory, path: str) -> None:
    for text in NO_JSON:
        mallory.refused(400, path, text.encode())
        mallory.refused(400, path, f" {text}\r\n".encode())
    mallory.nothing_happened()
