"""Request bodies: parsed strictly, checked field by field, bounded, and written again.

Strict means: UTF-8 without a byte order mark, one JSON object, no key twice, no NaN or infinity, no lone
surrogates, bounded depth and number of keys. What two parsers could read differently never goes upstream.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from typing import Literal, NoReturn

import msgspec

from goosestack.errors import Invalid
from goosestack.wire import Body

MOST_DEPTH = 64
MOST_KEYS = 200_000
MOST_CONTAINERS = 400_000
MOST_VALUES = 2_000_000
"""What a parsed body may consist of: small values take up to 25 times their bytes in memory. Counted as the marks that
they need (`":`, brackets, commas), which text also has, but no text that a model can read has so many."""
MOST_TOKENS = 10_000_000
"""A number of tokens above this is a mistake, in any field."""


def parse(raw: bytes) -> Body:
    """The JSON object in `raw`. Raises Invalid."""
    try:
        text = raw.decode("utf-8")
        brackets = raw.count(b"{") + raw.count(b"[")
        if _keys(raw) > MOST_KEYS or brackets > MOST_CONTAINERS or raw.count(b",") > MOST_VALUES:
            raise Invalid(reason="the body consists of too many values")
        body = _DECODER.decode(text)
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode("utf-8")  # a lone surrogate has no UTF-8
    except UnicodeDecodeError:
        raise Invalid(reason="the body is not UTF-8") from None
    except UnicodeEncodeError:
        raise Invalid(reason="the body has a lone surrogate") from None
    except RecursionError:
        raise Invalid(reason=f"the body is nested deeper than {MOST_DEPTH} levels") from None
    except ValueError as error:
        raise Invalid(reason=f"the body is not valid JSON: {_first_line(error)}") from None
    if type(body) is not dict:
        raise Invalid(reason="the body must be a JSON object")
    if brackets > MOST_DEPTH and _deeper_than(body, MOST_DEPTH):
        raise Invalid(reason=f"the body is nested deeper than {MOST_DEPTH} levels")
    return body


_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')


def _keys(raw: bytes) -> int:
    """At least as many keys as there are in `raw`; looked for behind blanks only where there are quotes enough."""
    spaced = len(_SPACED_COLON.findall(raw)) if raw.count(b'"') > 2 * MOST_KEYS else 0
    return raw.count(b'":') + spaced


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:64]!r} stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:32]} is out of range")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)


def _first_line(error: ValueError) -> str:
    return str(error).splitlines()[0][:200]


def _deeper_than(value: object, levels: int) -> bool:
    row: list[object] = [value]
    for _ in range(levels):
        row = [
            child
            for parent in row
            for child in (parent.values() if type(parent) is dict else parent if type(parent) is list else ())
            if type(child) is dict or type(child) is list
        ]
        if not row:
            return False
    return True


_ENCODER = msgspec.json.Encoder()


def encode(body: Body) -> bytes:
    """The body as it goes upstream: compact UTF-8 JSON."""
    return _ENCODER.encode(body)


_PIECE = 65_536


def text_bound(payload: bytes, media_bytes: int) -> int:
    """An upper bound on the tokens of an encoded body, but for its media: no tokenizer makes more than one token
    of a byte, also one that normalises (NFKC) first."""
    bound = len(payload) - media_bytes
    if not payload.isascii():
        text, characters = payload.decode("utf-8"), Counter[str]()
        for start in range(0, len(text), _PIECE):  # one call for all of it would let nothing else run meanwhile
            characters.update(text[start : start + _PIECE])
        # Alone, each character composes again; a combining mark can keep its neighbour from it.
        form: Literal["NFKC", "NFKD"] = "NFKD" if any(map(unicodedata.combining, characters)) else "NFKC"
        for character, times in characters.items():
            if not character.isascii():
                grown = len(unicodedata.normalize(form, character).encode("utf-8"))
                bound += times * max(0, grown - len(character.encode("utf-8")))
    return bound


# --- fields ---


def invalid(field: str, reason: str) -> Invalid:
    """A 400 that names the field."""
    return Invalid(reason=f"`{field}` {reason}", param=field)


def string(body: Body, field: str) -> str | None:
    """An optional string."""
    value = body.get(field)
    if value is not None and type(value) is not str:
        raise invalid(field, "must be a string")
    return value


def boolean(body: Body, field: str) -> bool:
    """An optional boolean, false where absent."""
    value = body.get(field)
    if value is not None and type(value) is not bool:
        raise invalid(field, "must be true or false")
    return bool(value)


def integer(body: Body, field: str, least: int, most: int) -> int | None:
    """An optional integer within bounds; a float, a string or a boolean is none."""
    value = body.get(field)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise invalid(field, f"must be an integer from {least} to {most}")
    return value


def array(body: Body, field: str) -> list[object]:
    """An optional list, empty where absent."""
    value = body.get(field)
    if value is None:
        return []
    if type(value) is not list:
        raise invalid(field, "must be a list")
    return value


def mapping(value: object, field: str) -> Body:
    """A required JSON object."""
    if type(value) is not dict:
        raise invalid(field, "must be an object")
    return value


def model_name(body: Body) -> str:
    """The required model."""
    model = body.get("model")
    if type(model) is not str or not model:
        raise invalid("model", "must be the name of a model")
    if len(model) > 200 or not model.isprintable():
        raise invalid("model", "is not the name of a model")
    return model
