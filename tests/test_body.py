"""Bodies: what two parsers could read differently is refused, what is allowed comes out again as it went in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from goosestack.errors import Invalid
from goosestack.wire import body as fields

LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
PROPERTY = settings(deadline=None, database=None, max_examples=20_000 if LONG else 150)

REFUSED = {
    "nothing": (b"", "not valid JSON"),
    "blanks": (b"  ", "not valid JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "a text": (b'"x"', "must be a JSON object"),
    "a number": (b"1", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "half an object": (b'{"a": 1', "not valid JSON"),
    "two objects": (b"{}{}", "not valid JSON"),
    "something after it": (b"{} x", "not valid JSON"),
    "a comma too many": (b'{"a": 1,}', "not valid JSON"),
    "a comment": (b'{"a": 1 /* one */}', "not valid JSON"),
    "single quotes": (b"{'a': 1}", "not valid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "an overlong byte": (b'{"a": "\xc0\xaf"}', "not UTF-8"),
    "an encoded surrogate": (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    "a key twice": (b'{"model": "a", "model": "b"}', "the key 'model' stands twice"),
    "a key twice, once escaped": (b'{"model": "a", "mod\\u0065l": "b"}', "the key 'model' stands twice"),
    "a key twice, deep inside": (b'{"a": [{"b": {"c": 1, "c": 1}}]}', "the key 'c' stands twice"),
    "no number": (b'{"a": NaN}', "NaN is not JSON"),
    "infinity": (b'{"a": Infinity}', "Infinity is not JSON"),
    "less than everything": (b'{"a": -Infinity}', "-Infinity is not JSON"),
    "a number without end": (b'{"a": 1e999}', "out of range"),
    "a number without beginning": (b'{"a": -1e999}', "out of range"),
    "a number of too many digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "a number with a leading zero": (b'{"a": 01}', "not valid JSON"),
    "a number with a plus": (b'{"a": +1}', "not valid JSON"),
    "a hexadecimal number": (b'{"a": 0x1}', "not valid JSON"),
    "a lone surrogate": (b'{"a": "\\ud800"}', "lone surrogate"),
    "a lone surrogate as a key": (b'{"\\udc00": 1}', "lone surrogate"),
    "surrogates in the wrong order": (b'{"a": "\\udc00\\ud800"}', "lone surrogate"),
    "a line break in a text": (b'{"a": "\n"}', "not valid JSON"),
    "a zero byte": (b'{"a": "\x00"}', "not valid JSON"),
    "a key that is a number": (b"{1: 1}", "not valid JSON"),
}


@pytest.mark.parametrize(("raw", "words"), REFUSED.values(), ids=list(REFUSED))
def test_what_could_be_read_in_two_ways_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        fields.parse(raw)
    assert words in caught.value.message and "\n" not in caught.value.message


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(st.text(), values, max_size=5)


@PROPERTY
@given(objects)
def test_what_is_allowed_comes_out_as_it_went_in(body: dict[str, object]) -> None:
    for raw in (json.dumps(body), json.dumps(body, ensure_ascii=False), json.dumps(body, indent=2)):
        parsed = fields.parse(raw.encode())
        assert parsed == body
        assert fields.parse(fields.encode(parsed)) == body


def test_what_goes_upstream_is_compact() -> None:
    assert (
        fields.encode(fields.parse(b'{ "a" : [ 1 , 2.50 , "\\u00e9" ] ,\n "b" : { } }'))
        == '{"a":[1,2.5,"é"],"b":{}}'.encode()
    )


@PROPERTY
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_comes_is_parsed_or_refused(raw: bytes) -> None:
    try:
        assert isinstance(fields.parse(raw), dict)
    except Invalid:
        pass


def test_numbers_beyond_64_bits_pass_as_they_are() -> None:
    body: dict[str, object] = {"seed": 10**40, "least": -(10**40), "edge": (1 << 64) - 1}
    assert json.loads(fields.encode(body)) == body
    assert fields.parse(fields.encode(body)) == body


def test_text_beyond_the_first_plane_passes_as_it_is() -> None:
    assert fields.parse(b'{"a": "\\ud83e\\uddA2"}') == {"a": "🦢"}
    assert fields.encode({"a": "🦢\u2028"}) == '{"a":"🦢\u2028"}'.encode()


# --- bounds ---------------------------------------------------------------------------------------------------


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    """An object that is so many levels deep."""
    return ('{"a":' + opening * (levels - 1) + "1" + closing * (levels - 1) + "}").encode()


def test_a_body_may_be_so_deep_and_no_deeper() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")):
        step = opening.count("[") + opening.count("{")
        levels = (fields.MOST_DEPTH - 1) // step + 1
        assert fields.parse(nested(levels, opening, closing))
        with pytest.raises(Invalid, match="nested deeper"):
            fields.parse(nested(levels + 1, opening, closing))


@pytest.mark.parametrize("levels", [1_000, 10_000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_body_however_deep_is_refused_and_nothing_overflows(levels: int, opening: str, closing: str) -> None:
    with pytest.raises(Invalid, match=r"nested deeper|too many values"):
        fields.parse(nested(levels, opening, closing))


def test_brackets_in_a_text_are_no_depth() -> None:
    assert fields.parse(fields.encode({"a": "[{" * 1000}))


MANY: dict[str, Callable[[], bytes]] = {
    "keys": lambda: b"{" + b",".join(b'"%d":1' % number for number in range(fields.MOST_KEYS + 1)) + b"}",
    "keys with blanks": lambda: b"{" + b",".join(b'"%d" :1' % number for number in range(fields.MOST_KEYS + 1)) + b"}",
    "keys with lines": lambda: b"{" + b",".join(b'"%d"\r\n:1' % n for n in range(fields.MOST_KEYS + 1)) + b"}",
    "keys in many objects": lambda: b'{"a":[' + b",".join([b'{"b":1}'] * (fields.MOST_KEYS + 1)) + b"]}",
    "lists": lambda: b'{"a":[' + b",".join([b"[]"] * (fields.MOST_CONTAINERS + 1)) + b"]}",
    "numbers": lambda: b'{"a":[' + b",".join([b"1"] * (fields.MOST_VALUES + 2)) + b"]}",
}


@pytest.mark.parametrize("raw", MANY.values(), ids=list(MANY))
def test_a_body_of_too_many_values_is_refused(raw: Callable[[], bytes]) -> None:
    with pytest.raises(Invalid, match="too many values"):
        fields.parse(raw())


def test_a_body_of_many_values_passes() -> None:
    body: dict[str, object] = {str(number): number for number in range(fields.MOST_KEYS - 1)}
    assert fields.parse(fields.encode(body)) == body


def test_a_large_text_with_many_quotes_is_not_taken_for_keys() -> None:
    body: dict[str, object] = {"text": 'said "yes", ' * 300_000 + 'said "no" : ' * 100_000}
    assert fields.parse(fields.encode(body)) == body


def test_the_last_of_very_many_keys_stands_twice() -> None:
    pairs = [b'"%d":1' % number for number in range(fields.MOST_KEYS - 1)]
    with pytest.raises(Invalid, match=f"the key '{fields.MOST_KEYS - 2}' stands twice"):
        fields.parse(b"{" + b",".join([*pairs, pairs[-1]]) + b"}")


def test_a_long_key_is_not_repeated_at_length() -> None:
    with pytest.raises(Invalid) as caught:
        fields.parse(b'{"' + b"k" * 10_000 + b'": 1, "' + b"k" * 10_000 + b'": 1}')
    assert len(caught.value.message) < 300


# --- fields ---------------------------------------------------------------------------------------------------

Read = Callable[[dict[str, Any]], object]
READS: dict[str, tuple[Read, list[object], list[object]]] = {
    "string": (lambda body: fields.string(body, "x"), ["", "a", None], [1, True, [], {}, 1.0]),
    "boolean": (lambda body: fields.boolean(body, "x"), [True, False, None], [0, 1, "true", [], {}]),
    "integer": (lambda body: fields.integer(body, "x", 1, 9), [1, 9, None], [0, 10, 1.0, True, "1", [], 10**30]),
    "array": (lambda body: fields.array(body, "x"), [[], [1], None], ["", {}, 0, False, "ab"]),
    "mapping": (lambda body: fields.mapping(body.get("x"), "x"), [{}, {"a": 1}], [None, [], "", 0]),
}


@pytest.mark.parametrize(("read", "good", "bad"), READS.values(), ids=list(READS))
def test_a_field_is_what_it_must_be_or_a_400_names_it(read: Read, good: list[object], bad: list[object]) -> None:
    for value in good:
        read({"x": value})
    for value in bad:
        with pytest.raises(Invalid, match="`x` must be") as caught:
            read({"x": value})
        assert caught.value.param == "x" and caught.value.status == 400


def test_a_missing_field_is_nothing() -> None:
    assert fields.string({}, "x") is None and fields.integer({}, "x", 1, 9) is None
    assert fields.boolean({}, "x") is False and fields.array({}, "x") == []


@pytest.mark.parametrize("name", [None, "", 5, ["gpt-5.5"], "a" * 201, "gpt\n4o", "gpt\x00", "gpt-4o\u2028", "\ufeff"])
def test_a_model_has_a_name_that_can_be_shown(name: object) -> None:
    with pytest.raises(Invalid, match="`model`"):
        fields.model_name({"model": name})


@pytest.mark.parametrize("name", ["gpt-5.5", "meta-llama/llama-4:free", "modèle", "a" * 200])
def test_any_printable_name_of_a_model_is_read(name: str) -> None:
    assert fields.model_name({"model": name}) == name
