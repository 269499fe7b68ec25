"""Giving an answer: as it should be given, or as a fault has it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable

from goosestack.demo.answer import Answer
from goosestack.demo.delivery import EVENTS, JSON, Delivery
from goosestack.demo.faults import ERRORS, failure
from goosestack.demo.strict import Refusal

ENDLESS_BYTES = 256 * 1024 * 1024
BLOCK_BYTES = 64 * 1024
DEFAULT_HANG_S = 3600.0
DRIP_S = 0.2
MOMENT_S = 0.02
"""So much later comes what is not to be read in one piece with what went before."""
NO_JSON = b'{"id": "demo", oops'
NONSENSE = {
    "bad_json": NO_JSON,
    "bad_utf8": b'{"id": "demo \xff\xfe\x80"}',
    "no_object": b'["demo"]',
    "nested": b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
"""What stands in the place of a body, or of one frame's data."""
UNASKED = b'{"error": {"message": "nobody asked for this", "type": "unasked", "param": null, "code": null}}'
PAGE = b"<!doctype html><title>Just a moment...</title><h1>Checking your browser</h1>"


async def give(delivery: Delivery, answer: Answer) -> None:
    """Send an answer, with the fault that the directive asks for."""
    directive, wire = delivery.directive, delivery.wire
    fault = directive.fault or ""
    if directive.hang_s is not None and fault not in SILENT_LATER:
        await asyncio.sleep(directive.hang_s)
    if fault == "early_hints":
        await delivery.write_raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
    if fault in INSTEAD:
        await INSTEAD[fault](delivery)
    elif fault in ERRORS:
        await delivery.refuse(failure(fault, wire.vendor, wire.key))
    elif directive.status >= 400:
        await delivery.refuse(failure("status", wire.vendor, wire.key, directive.status))
    elif fault in STRIKES and answer.frames is not None:
        await _strike_stream(delivery, answer, answer.frames)
    elif fault in STRIKES:
        await _strike_body(delivery, answer)
    elif answer.frames is not None:
        await _stream(delivery, answer, answer.frames)
    else:
        await _body(delivery, answer)


def strikes_at(delivery: Delivery, frames: tuple[bytes, ...]) -> int:
    """The frame at which a fault strikes: the middle, where the directive names none."""
    at = delivery.directive.at
    if at is None:
        return len(frames) - 1 if delivery.directive.fault == "failed" else len(frames) // 2
    return min(at, len(frames) - 1)


def data_at(event: bytes) -> int:
    """Where the data of a server-sent event begins."""
    return (b"\n" + event).rfind(b"\ndata: ") + len(b"data: ")


async def _stream(delivery: Delivery, answer: Answer, frames: tuple[bytes, ...]) -> None:
    fault = delivery.directive.fault
    styled = _styled(delivery, answer, frames)
    kind = JSON if fault == "wrong_content_type" else EVENTS
    length = sum(map(len, styled)) + 100 if fault == "short_length" else None
    await delivery.open(kind, length, _headers(delivery, answer))
    if fault == "coalesced":
        await delivery.write(b"".join(styled))
        delivery.frames = len(styled)
    elif fault in ("drip", "byte_by_byte"):
        for each in styled:
            await delivery.send_bytewise(each, _byte_pause_s(delivery))
            delivery.frames += 1
    else:
        await delivery.send(styled)
    await _end(delivery)


async def _body(delivery: Delivery, answer: Answer) -> None:
    fault = delivery.directive.fault
    data = NONSENSE.get(fault or "", answer.body)
    kind = "text/plain; charset=utf-8" if fault == "wrong_content_type" else JSON
    length = len(data) + 100 if fault == "short_length" else len(data)
    await delivery.open(kind, length, _headers(delivery, answer))
    if fault in ("drip", "byte_by_byte"):
        await delivery.send_bytewise(data, _byte_pause_s(delivery))
        delivery.frames += 1
    else:
        await delivery.send([data])
    await _end(delivery)


async def _end(delivery: Delivery) -> None:
    """The end of an answer that was given whole."""
    fault = delivery.directive.fault
    if fault == "short_length":
        await delivery.close()
        return
    await delivery.finish()
    if fault == "second_answer":
        if delivery.directive.hang_s:
            await asyncio.sleep(delivery.directive.hang_s)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: {len(UNASKED)}\r\n\r\n"
        await delivery.write_raw(head.encode() + UNASKED)


def _styled(delivery: Delivery, answer: Answer, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The frames of a stream in the manner of the fault."""
    match delivery.directive.fault:
        case "bad_json" | "bad_utf8" | "no_object" | "nested" as fault:
            at = strikes_at(delivery, frames)
            bad = frames[at][: data_at(frames[at])] + NONSENSE[fault] + b"\n\n"
            return (*frames[:at], bad, *frames[at + 1 :])
        case "crlf":
            return tuple(each.replace(b"\n", b"\r\n") for each in frames)
        case "comments":
            return tuple(delivery.wire.comments + b": inline\n" + each for each in frames)
        case "after_terminal":
            return (*frames, *answer.late)
        case "no_done":
            return frames[:-1]
    return frames


def _headers(delivery: Delivery, answer: Answer) -> dict[str, str]:
    headers = dict(answer.headers)
    if delivery.directive.fault == "huge_header":
        headers["x-padding"] = "a" * 200 * 1024
    if delivery.directive.fault == "many_headers":
        headers |= {f"x-padding-{k}": "a" for k in range(5000)}
    return headers


def _byte_pause_s(delivery: Delivery) -> float:
    if delivery.directive.fault == "drip" and delivery.directive.delay_ms is None:
        return DRIP_S
    return delivery.pause_s


async def _strike_stream(delivery: Delivery, answer: Answer, frames: tuple[bytes, ...]) -> None:
    """Send a stream up to where the fault strikes, then let it."""
    fault, at = delivery.directive.fault, strikes_at(delivery, frames)
    await delivery.open(EVENTS, headers=answer.headers)
    await delivery.send(frames[:at])
    if fault == "half_json":
        await delivery.write(frames[at][: (data_at(frames[at]) + len(frames[at].rstrip())) // 2])
    elif fault == "error_frame":
        error = failure("error_500", delivery.wire.vendor, delivery.wire.key)
        shown = delivery.wire.error_frame(error, delivery.body, at, delivery.request_id)
        await delivery.send([shown])
    elif fault == "failed":
        await delivery.send([answer.failed])
    elif fault == "endless_line":
        await _endless(delivery, b'data: {"id": "', b"a")
    elif fault == "endless_body":
        await _endless(delivery, b"", frames[len(frames) // 2])
    await STRIKES[fault or ""](delivery)


async def _strike_body(delivery: Delivery, answer: Answer) -> None:
    """Send half of a body, or nothing of it where the directive says `at` 0; then strike."""
    fault = delivery.directive.fault
    half = answer.body[: 0 if delivery.directive.at == 0 else len(answer.body) // 2]
    if fault in ("endless_line", "endless_body"):
        await delivery.open(JSON, headers=answer.headers)
        start, block = (b'{"id": "', b"a") if fault == "endless_line" else (b"", b" ")
        await _endless(delivery, start, block)
    else:
        lengths = {"eof": len(half), "bad_chunk": None}
        await delivery.open(JSON, lengths.get(fault or "", len(answer.body)), answer.headers)
        await delivery.write(half)
    await STRIKES[fault or ""](delivery)


async def _endless(delivery: Delivery, start: bytes, event: bytes) -> None:
    block = event * max(1, BLOCK_BYTES // len(event))
    await delivery.write(start)
    for _ in range(ENDLESS_BYTES // len(block)):
        await delivery.write(block)
        await asyncio.sleep(0)


async def _hang(delivery: Delivery) -> None:
    await delivery.flush()
    hang_s = delivery.directive.hang_s
    await asyncio.sleep(DEFAULT_HANG_S if hang_s is None else hang_s)
    await delivery.close()


async def _html(delivery: Delivery) -> None:
    await delivery.open("text/html; charset=utf-8", len(PAGE))
    await delivery.write(PAGE)
    await delivery.finish()


async def _empty(delivery: Delivery) -> None:
    await delivery.open(EVENTS if delivery.body.get("stream") else JSON, 0)
    await delivery.finish()


async def _no_content(delivery: Delivery) -> None:
    await delivery.open(JSON, status=204)
    await delivery.finish()


async def _not_http(delivery: Delivery) -> None:
    await delivery.write_raw(b"220 ready\r\n")
    await delivery.close()


async def _two_lengths(delivery: Delivery) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: 2\r\ncontent-length: 20\r\n\r\n"
    await delivery.write_raw(head.encode() + b"{}" + b" " * 18)
    await delivery.close()


async def _bad_chunk(delivery: Delivery) -> None:
    await asyncio.sleep(MOMENT_S)
    await delivery.write_raw(b"many\r\n")
    await delivery.close()


async def _redirect(delivery: Delivery) -> None:
    location = {"location": delivery.directive.location}
    await delivery.refuse(Refusal(307, "Moved.", headers=location))


async def _gzip_bomb(delivery: Delivery) -> None:
    """A full flush makes each megabyte compress to the same bytes, so one is enough to make."""
    stream = bool(delivery.body.get("stream"))
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    start = packer.compress(b'data: {"id": "' if stream else b'{"id": "')
    start += packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"a" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    headers = {"content-encoding": "gzip"}
    await delivery.open(EVENTS if stream else JSON, headers=headers)
    await delivery.write(start + block * (ENDLESS_BYTES // 2**20))
    await delivery.finish()


SILENT_LATER = frozenset(("stall", "stall_headers", "second_answer"))
"""Faults that have a silence of their own."""

Act = Callable[[Delivery], Awaitable[None]]

INSTEAD: dict[str, Act] = {
    "reset_before_headers": Delivery.reset,
    "close_before_headers": Delivery.close,
    "stall_headers": _hang,
    "html": _html,
    "empty": _empty,
    "no_content": _no_content,
    "not_http": _not_http,
    "two_lengths": _two_lengths,
    "redirect": _redirect,
    "gzip_bomb": _gzip_bomb,
}

STRIKES: dict[str, Act] = {
    "reset": Delivery.reset,
    "eof": Delivery.finish,
    "half_json": Delivery.close,
    "bad_chunk": _bad_chunk,
    "stall": _hang,
    "error_frame": Delivery.finish,
    "failed": Delivery.finish,
    "endless_line": Delivery.close,
    "endless_body": Delivery.close,
}
