"""What several wire formats have in common: what is refused, content parts, URLs, tiers, caches, usage with details."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from urllib.parse import urlsplit

import msgspec

from goosestack.errors import Unsupported
from goosestack.wire import ROUTING, Body, Media, Reading, body as fields

TIERS = {"auto": "standard", "default": "standard", "flex": "flex", "priority": "priority", "fast": "priority"}
"""The tiers by the names that requests and answers have for them."""
_SENT_TIERS = {"standard": "default", "flex": "flex", "priority": "priority"}

CLIENT_TOOLS = frozenset(("function", "custom"))
"""Tools that the caller runs."""

_TEXT_PARTS = frozenset("""encrypted_content input_text output_text reasoning_text refusal summary_text text""".split())
_LIFETIMES = {"30m": False, "12h": True}
_PUBLIC_HOST = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z][a-z0-9-]*\.?", re.ASCII)
_PRIVATE_ENDS = (".home.arpa", ".internal", ".lan", ".local", ".localdomain", ".localhost")


def refuse(body: Body, refused: Mapping[str, str]) -> None:
    """Raise Unsupported for a field that is refused by name, and for one that would route the request elsewhere."""
    for name in refused:
        if body.get(name) is not None:
            raise Unsupported(field=name, reason=refused[name], param=name)
    refuse_routing(body)


def refuse_routing(body: Body) -> None:
    """Raise Unsupported for what would choose another upstream, also inside `metadata`."""
    metadata = body.get("metadata")
    inner = metadata.keys() if type(metadata) is dict else set()
    for name in sorted((body.keys() | inner) & ROUTING):
        raise Unsupported(field=name, reason="where a request goes is the operator's choice", param=name)


def service_tier(body: Body) -> str:
    """The tier that the request will be priced at; what is sent upstream is always set, since an absent one means
    whatever the operator's project defaults to."""
    asked = fields.string(body, "service_tier") or "auto"
    tier = TIERS.get(asked)
    if tier is None:
        raise fields.invalid("service_tier", "must be auto, default, flex or priority")
    body["service_tier"] = _SENT_TIERS[tier]
    return tier


def function_tools(body: Body) -> list[object]:
    """The tools of a chat completion: functions and custom tools, which the caller runs."""
    tools = fields.array(body, "tools")
    for position, tool in enumerate(tools):
        where = f"tools[{position}]"
        kind = fields.mapping(tool, where).get("type")
        if type(kind) is not str or kind not in CLIENT_TOOLS:
            raise Unsupported(field=f"{where}.type", reason=f"{shown(kind)} is not sold here", param=where)
    return tools


def lives_long(options: object, where: str) -> bool:
    """Whether cache options, of a request or of one breakpoint in it, ask for the long-lived cache."""
    if options is None:
        return False
    entry = fields.mapping(options, where)
    if entry.get("comparison_response_id") is not None:
        raise Unsupported(field=f"{where}.comparison_response_id", reason="no response is stored", param=where)
    lifetime = entry.get("ttl")
    if lifetime is None:
        return False
    if type(lifetime) is not str or lifetime not in _LIFETIMES:
        raise fields.invalid(f"{where}.ttl", f"must be {' or '.join(_LIFETIMES)}")
    return _LIFETIMES[lifetime]


def count_parts(value: object, where: str, media: Media) -> bool:
    """Count a message's content, or what a tool gave back: a string, or a list of parts. See `count_part`."""
    if value is None or type(value) is str:
        return False
    if type(value) is not list:
        raise fields.invalid(where, "must be a string or a list of parts")
    long = False
    for index, part in enumerate(value):
        long |= count_part(part, f"{where}[{index}]", media)
    return long


def count_part(part: object, where: str, media: Media) -> bool:
    """Count one part of a message's content, of either API: media by their kind, text elsewhere by its bytes.
    Whether the part asks for the long-lived cache."""
    entry = fields.mapping(part, where)
    kind = entry.get("type")
    if entry.get("file_id") is not None:
        raise _no_file_id(where)
    if kind == "image_url":
        image = fields.mapping(entry.get("image_url"), f"{where}.image_url")
        _count_image(image.get("url"), image.get("detail"), f"{where}.image_url.url", media)
    elif kind == "input_image":
        _count_image(entry.get("image_url"), entry.get("detail"), f"{where}.image_url", media)
    elif kind in ("file", "input_file"):
        _count_file(fields.mapping(entry.get("file"), f"{where}.file") if kind == "file" else entry, where, media)
    elif type(kind) is not str or kind not in _TEXT_PARTS:
        raise Unsupported(field=f"{where}.type", reason=f"{shown(kind)} is not sold here", param=where)
    return lives_long(entry.get("prompt_cache_breakpoint"), f"{where}.prompt_cache_breakpoint")


def _count_file(file: Body, where: str, media: Media) -> None:
    if file.get("file_id") is not None:
        raise _no_file_id(where)
    given = [name for name in ("file_data", "file_url") if file.get(name) is not None]
    for name in given or ("file_data",):
        count_url(file.get(name), f"{where}.{name}", media)
    media.documents += 1


def _no_file_id(where: str) -> Unsupported:
    reason = "stored files belong to the operator's account; send the content itself"
    return Unsupported(field=f"{where}.file_id", reason=reason, param=f"{where}.file_id")


def _count_image(url: object, detail: object, where: str, media: Media) -> None:
    if type(url) is str and url.startswith("data:") and not url.startswith("data:image/"):
        raise fields.invalid(where, "must be an image; send a document as a file")
    count_url(url, where, media)
    if detail in ("low", "high"):
        media.small_images += 1
    else:
        media.images += 1


def count_url(url: object, where: str, media: Media) -> None:
    """Count a `data:` URL's bytes as no text; check that any other is one that a provider may fetch."""
    if type(url) is not str or not url:
        raise fields.invalid(where, "must be a `data:` or `https:` URL")
    if url.startswith("data:"):
        head, comma, _ = url.partition(",")
        if not comma or not head.endswith(";base64") or len(head) > 200:
            raise fields.invalid(where, "must be a base64 `data:` URL")
        media.data_bytes += len(url) - len(head) - 1
    elif not is_public_url(url):
        raise fields.invalid(where, "must be a `data:` or `https:` URL with a public host name")


def is_public_url(url: str) -> bool:
    """Whether a provider may be asked to fetch this: https, and a name in the public DNS rather than an address."""
    if not url.isprintable() or " " in url or "\\" in url:  # parsers differ on what these mean
        return False
    try:
        split = urlsplit(url)
        host = split.hostname or ""
    except ValueError:
        return False
    public = _PUBLIC_HOST.fullmatch(host) is not None and not host.rstrip(".").endswith(_PRIVATE_ENDS)
    return split.scheme == "https" and public


def shown(kind: object) -> str:
    """A type that the caller named, as it can be repeated in a message."""
    return f"`{kind}`" if type(kind) is str and 0 < len(kind) < 64 and kind.isprintable() else "this type"


# --- usage ----------------------------------------------------------------------------------------------------


class Details(msgspec.Struct):
    """What the tokens of a total were. Any of it may be missing."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens_details: Lifetimes | None = None


class Lifetimes(msgspec.Struct):
    """Tokens written to the cache, by how long they stay there."""

    ttl_30m_tokens: int | None = None
    ttl_12h_tokens: int | None = None


class _CostDetails(msgspec.Struct):
    upstream_inference_cost: Decimal | None = None


class _Cost(msgspec.Struct):
    cost: Decimal | None = None
    is_byok: bool | None = None
    cost_details: _CostDetails | None = None


_DETAILS = msgspec.json.Decoder(Details)
_COST = msgspec.json.Decoder(_Cost)
NULL = msgspec.Raw(b"null")
"""What a field that is read later has where it is missing; a raw field cannot be None."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, ArithmeticError, RecursionError)
"""What decoding raises where the provider's answer is not what it should be."""


def given(raw: msgspec.Raw) -> bytes | None:
    """A value as it stands in the answer; None where it is missing or null."""
    found = bytes(raw)
    return None if found == b"null" else found


def details(raw: msgspec.Raw, reading: Reading) -> Details:
    """The details of a total; none where they are missing or cannot be read, so that the total is charged in full."""
    found = given(raw)
    if found is None:
        return Details()
    try:
        return _DETAILS.decode(found)
    except UNREADABLE as error:
        reading.nonsense = f"unreadable details: {type(error).__name__}"
        return Details()


def cost_of(usage: bytes) -> Decimal | None:
    """What the call cost in dollars, where a router reports that in the usage: its own share and the provider's."""
    try:
        found = _COST.decode(usage)
        if found.cost is not None and found.is_byok and found.cost_details is not None:
            return found.cost + (found.cost_details.upstream_inference_cost or 0)
        return found.cost
    except UNREADABLE:
        return None


def take_usage(reading: Reading, found: Mapping[str, int | None], cost: Decimal | None) -> None:
    """Take a reported usage whose input and output include their details. Reports are cumulative, so the largest
    stands, and its cost; one that makes no sense is noted, and does not undo an earlier one."""
    read, written = found["input"], found["output"]
    if read is None and written is None:
        return
    if read is None or (written is None and reading.output_bytes):
        reading.nonsense = "only one of two counts"
    elif read < 0 or (written or 0) < 0:
        reading.nonsense = "a negative count"
    else:
        counts = disjoint({name: count or 0 for name, count in found.items()}, reading)
        if reading.usage is None or sum(counts.values()) >= sum(reading.usage.values()):
            reading.usage = counts
            reading.cost = reading.cost if cost is None else cost


def disjoint(counts: dict[str, int], reading: Reading) -> dict[str, int]:
    """Token classes that do not overlap, from totals that include their details. Details that cannot be believed
    are dropped: the total is kept, at the full price."""
    for total, names in (("input", _INPUT_DETAILS), ("output", ("output_audio",))):
        inside = [counts.get(name, 0) for name in names]
        if min(inside) < 0 or sum(inside) > counts[total]:
            reading.nonsense = f"details that do not fit the {total}"
            counts.update((name, 0) for name in names if name in counts)
        else:
            counts[total] -= sum(inside)
    for name in ("reasoning", "web_searches"):
        if counts.get(name, 0) < 0:
            reading.nonsense = f"a negative number of {name}"
            counts[name] = 0
    return counts


_INPUT_DETAILS = ("cache_read", "cache_write", "cache_write_long", "input_audio")
