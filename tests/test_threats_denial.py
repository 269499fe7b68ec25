"""Mallory sends what is no proper request, or more of it than anybody needs: raw sockets, long headers, slow bodies."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.asking import directed, opened
from tests.mallory import CHAT, MESSAGES, RESPONSES, WIRES, Mallory, asks, assert_error, dialect, talk
from tests.world import World

BODY = json.dumps(asks(CHAT)).encode()
LENGTH = b"%d" % len(BODY)
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
NEXT = b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world, cents=100_000) as mallory:
        yield mallory


def head(mallory: Mallory, line: bytes = b"POST /v1/chat/completions HTTP/1.1", *, key: bool = True) -> bytes:
    """The start of a request, to which headers may be added."""
    credential = b"Authorization: Bearer %b\r\n" % mallory.customer.key.encode() if key else b""
    return line + b"\r\nHost: x\r\n" + credential + b"Content-Type: application/json\r\n"


# --- one request that could be read as two ------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = {
    "a length and chunks": b"Content-Length: " + LENGTH + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "two lengths": b"Content-Length: " + LENGTH + b"\r\nContent-Length: 0\r\n\r\n" + BODY,
    "the same length twice": b"Content-Length: " + LENGTH + b"\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY,
    "a list of lengths": b"Content-Length: " + LENGTH + b", " + LENGTH + b"\r\n\r\n" + BODY,
    "a length with a sign": b"Content-Length: +" + LENGTH + b"\r\n\r\n" + BODY,
    "a length in hex": b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a negative length": b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with a letter": b"Content-Length: " + LENGTH + b"a\r\n\r\n" + BODY,
    "a length with an underscore": b"Content-Length: 1_0\r\n\r\n" + BODY,
    "a fractional length": b"Content-Length: 10.0\r\n\r\n" + BODY,
    "an empty length": b"Content-Length: \r\n\r\n" + BODY,
    "a length with a blank": b"Content-Length: 1 0\r\n\r\n" + BODY,
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
    "a length in other digits": "Content-Length: ١\r\n\r\n".encode() + BODY,
    "a blank before the length's colon": b"Content-Length : " + LENGTH + b"\r\n\r\n" + BODY,
    "a blank in the length's name": b"Content Length: " + LENGTH + b"\r\n\r\n" + BODY,
    "a length without a colon": b"Content-Length\r\n\r\n" + BODY,
    "chunks that are not last": b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "another encoding": b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "no encoding": b"Transfer-Encoding: identity\r\n\r\n",
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunks and another encoding": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "a blank before the encoding's colon": b"Transfer-Encoding : chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "a control character before the encoding": b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "a quoted encoding": b'Transfer-Encoding: "chunked"\r\n\r\n' + CHUNK + b"0\r\n\r\n",
    "a folded encoding": b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "a folded header": b"X-A: b\r\n c\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY,
    "a bare line feed": b"X: a\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY,
    "a bare carriage return": b"X: a\rContent-Length: 0\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY,
    "a NUL": b"X: a\0b\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY,
    "a header without a name": b": x\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY,
    "an encoding behind a colon": b"X: y\r\n:Transfer-Encoding: chunked\r\n\r\n" + CHUNK,
    "a chunk size with a sign": CHUNKED + b"+" + CHUNK + b"0\r\n\r\n",
    "a chunk size with a prefix": CHUNKED + b"0x" + CHUNK + b"0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-1\r\n\r\n0\r\n\r\n",
    "a blank before the chunk size": CHUNKED + b" " + CHUNK + b"0\r\n\r\n",
    "a chunk size beyond 64 bits": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n" + BODY,
    "chunks that end in line feeds": CHUNKED + CHUNK.replace(b"\r\n", b"\n") + b"0\n\n",
    "a line feed in a chunk's extension": CHUNKED + CHUNK.replace(b"\r\n", b";a\nb\r\n", 1) + b"0\r\n\r\n",
    "a chunk without its end": CHUNKED + b"%x\r\n%b" % (len(BODY), BODY) + b"0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) - 2, BODY),
    "a length in a trailer": CHUNKED + CHUNK + b"0\r\nContent-Length: 5\r\n\r\n",
}


def test_a_request_that_could_be_read_as_two_is_read_as_none(mallory: Mallory) -> None:
    for how, rest in SMUGGLED.items():
        replies = talk(mallory.world, head(mallory) + rest + NEXT)
        assert [(reply.status, reply.headers["connection"]) for reply in replies] == [(400, "close")], how
        assert b"smuggled" not in replies[0].body
    mallory.nothing_happened()


@pytest.mark.parametrize("to", [b"h2c", b"websocket", b"HTTP/2.0", b"TLS/1.0", b"x"])
def test_nothing_follows_a_request_that_asks_for_another_protocol(mallory: Mallory, to: bytes) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" % to
    begin = head(mallory) + upgrade + b"Content-Length: %d\r\n\r\n" % len(NEXT)
    origin = begin.replace(b"POST", b"OPTIONS").replace(b"\r\n\r\n", b"\r\nOrigin: https://a.example\r\n\r\n")
    preflight = origin.replace(b"\r\n\r\n", b"\r\nAccess-Control-Request-Method: POST\r\n\r\n")
    for start in (begin, begin.replace(b"POST", b"GET"), origin, preflight):
        for pieces in ([start + NEXT], [start, NEXT]):  # in one segment, or in two
            (reply,) = talk(mallory.world, *pieces)
            assert reply.headers["connection"] == "close"
            assert reply.status in (200, 400, 405)
    mallory.nothing_happened()


# --- odd requests ---------------------------------------------------------------------------------------------

SERVED = [
    b"POST /v1/chat/completions HTTP/1.0",
    b"POST http://evil.example/v1/chat/completions HTTP/1.1",
    b"POST https://evil.example:444/v1/chat/completions?x=y#z HTTP/1.1",
    b"POST /v1/chat/completions?api_base=http://evil.example HTTP/1.1",
]
ODD: list[tuple[bytes, int]] = [
    (b"POST /v1/chat/completions/ HTTP/1.1", 404),
    (b"POST //v1/chat/completions HTTP/1.1", 404),
    (b"POST //evil.example/v1/chat/completions HTTP/1.1", 404),
    (b"POST /v1//chat/completions HTTP/1.1", 404),
    (b"POST /v1/%2e%2e/v1/chat/completions HTTP/1.1", 404),
    (b"POST /v1/../v1/chat/completions HTTP/1.1", 404),
    (b"POST /v1/chat/completions%00 HTTP/1.1", 404),
    (b"POST /v1/chat/completions%0d%0aX:%20y HTTP/1.1", 404),
    (b"POST /v1/chat/completions;x=y HTTP/1.1", 404),
    (b"POST /V1/Chat/Completions HTTP/1.1", 404),
    (b"POST /v1/chat\\completions HTTP/1.1", 404),
    (b"POST http://evil.example HTTP/1.1", 400),
    (b"GET /v1/chat/completions HTTP/1.1", 405),
    (b"TRACE /v1/chat/completions HTTP/1.1", 405),
    (b"PUT /v1/usage HTTP/1.1", 405),
    (b"PROPFIND / HTTP/1.1", 405),
    (b"OPTIONS * HTTP/1.1", 404),
    (b"POST * HTTP/1.1", 404),
    (b"post /v1/chat/completions HTTP/1.1", 400),
    (b"Post /v1/chat/completions HTTP/1.1", 400),
    (b"EVIL /v1/chat/completions HTTP/1.1", 400),
    (b"CONNECT evil.example:443 HTTP/1.1", 400),
    (b"POST /v1/chat/completions HTTP/1.2", 400),
    (b"POST /v1/chat/completions HTTP/3", 400),
    (b"POST /v1/chat/completions HTTP/1.1 ", 400),
    (b"POST /v1/chat/completions HTTP/", 400),
    (b"POST\t/v1/chat/completions\tHTTP/1.1", 400),
    (b"POST /v1/chat completions HTTP/1.1", 400),
    (b"POST /v1/\x00 HTTP/1.1", 400),
    (b"POST /v1/\xff HTTP/1.1", 400),
    (b"POST v1/chat/completions HTTP/1.1", 400),
    (b"PRI * HTTP/2.0", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
]


def whole(mallory: Mallory, line: bytes) -> bytes:
    return head(mallory, line) + b"Connection: close\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY


def test_a_request_line_may_name_a_host_or_an_older_protocol_and_changes_nothing_by_it(mallory: Mallory) -> None:
    for line in SERVED:
        (reply,) = talk(mallory.world, whole(mallory, line))
        assert (reply.status, "evil.example" in str(reply.headers)) == (200, False), line
    assert len(mallory.world.ended_rows(mallory.customer, len(SERVED))) == len(mallory.dispatched())


def test_an_odd_request_line_is_refused_and_never_a_fault(mallory: Mallory) -> None:
    for line, status in ODD:
        replies = talk(mallory.world, whole(mallory, line))
        assert [reply.status for reply in replies] == [status], line
        assert not {"location", "upgrade"} & set(replies[0].headers)
        assert "evil.example" not in str(replies[0].headers)
    mallory.nothing_happened()


HOSTS = [[], [b"evil.example", b"x"], [b""], [b"evil.example:0"], [b"[::1"], [b"a b<script>"]]


@pytest.mark.parametrize("hosts", HOSTS)
def test_nothing_depends_on_the_host_that_the_caller_names(mallory: Mallory, hosts: list[bytes]) -> None:
    lines = b"".join(b"Host: %b\r\n" % host for host in hosts)
    begin = head(mallory).replace(b"Host: x\r\n", lines) + b"Connection: close\r\n"
    (reply,) = talk(mallory.world, begin + b"Content-Length: " + LENGTH + b"\r\n\r\n" + BODY)
    assert (reply.status, b"evil" in reply.body) == (200, False)
    (reply,) = talk(mallory.world, begin.replace(b"POST /v1/chat/completions", b"GET /nothing/") + b"\r\n")
    assert (reply.status, "location" in reply.headers, b"evil" in reply.body) == (404, False, False)


def test_a_stream_over_http_1_0_ends_with_its_connection(mallory: Mallory) -> None:
    body = json.dumps(asks(CHAT, stream=True)).encode()
    begin = head(mallory, b"POST /v1/chat/completions HTTP/1.0") + b"Content-Length: %d\r\n\r\n" % len(body)
    (reply,) = talk(mallory.world, begin + body)
    assert (reply.status, reply.headers["connection"], b"data: [DONE]" in reply.body) == (200, "close", True)
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert row["status"] == "settled"


# --- headers --------------------------------------------------------------------------------------------------


PADDED = [CHAT, MESSAGES, "/v1/usage", "/health", "/v1/nothing"]
TOO_MUCH = [(1, 33_000), (1, 1_000_000), (100, 400), (101, 10), (20_000, 20)]
"""So many lines, of so many bytes each."""


@pytest.mark.parametrize("path", PADDED)
@pytest.mark.parametrize(("lines", "size"), TOO_MUCH, ids=lambda value: str(value))
def test_too_many_or_too_long_headers_are_refused(mallory: Mallory, path: str, lines: int, size: int) -> None:
    method = b"POST" if path in (CHAT, MESSAGES) else b"GET"
    padding = b"".join(b"X-Padding-%d: %b\r\n" % (line, b"a" * size) for line in range(lines))
    begin = head(mallory, b"%b %b HTTP/1.1" % (method, path.encode())) + padding
    (reply,) = talk(mallory.world, begin + b"Connection: close\r\n\r\n")
    assert_error(reply, "ours" if path == "/health" else dialect(path, {}), 431)
    mallory.nothing_happened()


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/docs", "/v1/pricing"])
@pytest.mark.parametrize("ranges", ["0-0", ",".join(f"{at}-{at}" for at in range(3000)), "-1", "5-2"])
def test_a_range_of_an_answer_is_all_of_it(mallory: Mallory, path: str, ranges: str) -> None:
    whole = mallory.ask(path, None, method="GET")
    reply = mallory.ask(path, None, {"range": f"bytes={ranges}", "if-range": "x"}, method="GET")
    assert (reply.status, len(reply.body)) == (whole.status, len(whole.body)) and reply.status != 206
    assert not {"content-range", "accept-ranges"} & set(reply.headers)


# --- content types ----------------------------------------------------------------------------------------------

NO_JSON_TYPES = """text/plain text/json application/x-www-form-urlencoded multipart/form-data;boundary=x
    application/jsonp application/json5 application/x-ndjson application/vnd.api+json application/xml
    application/octet-stream json */* application/jsonx application/json,text/plain text/plain;application/json
    \x22application/json\x22""".split()
ENCODED = ["gzip", "GZIP", "br", "deflate", "zstd", "x-gzip", "compress", "gzip, identity", "identity, gzip", "x"]


@pytest.mark.parametrize("path", [*WIRES, "/v1/keys"])
def test_a_body_is_plain_json_by_its_type_and_encoding(mallory: Mallory, path: str) -> None:
    sent = asks(path) if path in WIRES else {"name": "n"}
    for kind in [*NO_JSON_TYPES, ""]:
        mallory.refused(415, path, sent, {"content-type": kind})
    for encoding in ENCODED:
        mallory.refused(415, path, b"\x1f\x8b\x08" + bytes(1000), {"content-encoding": encoding})
    untyped = head(mallory, b"POST %b HTTP/1.1" % path.encode()).replace(b"Content-Type: application/json\r\n", b"")
    (reply,) = talk(mallory.world, untyped + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
    assert_error(reply, dialect(path, {}), 415)
    mallory.nothing_happened()
    for kind in ("Application/JSON", "application/json; charset=utf-8", " application/json ;x=y"):
        assert mallory.ask(path, sent, {"content-type": kind, "content-encoding": "identity"}).status in (200, 201)


# --- the loop, and the sockets ------------------------------------------------------------------------------------


def test_idle_sockets_keep_nobody_out(mallory: Mallory) -> None:
    host, _, port = mallory.world.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        for number in range(300):
            idle = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            if number % 3:
                idle.sendall(head(mallory)[: 10 * (number % 20)])  # some have begun to speak
        for path in (CHAT, RESPONSES, MESSAGES):
            assert mallory.ask(path, asks(path)).status == 200
        assert mallory.ask("/health", method="GET", key=None).status == 200


def test_whoever_resets_a_stream_of_very_many_frames_does_not_stop_the_others(mallory: Mallory) -> None:
    for _ in range(3):
        body = asks(CHAT, directed("Go", words=16_000, fault="coalesced"), stream=True)
        with opened(mallory.world, CHAT, key=mallory.customer.key, body=body) as stream:
            stream.readline()
        assert mallory.ask("/health", method="GET", key=None).status == 200
        assert mallory.ask(CHAT, asks(CHAT)).status == 200
    rows = mallory.world.ended_rows(mallory.customer, 6)
    assert all(row["status"] == "settled" and row["cost_nanos"] > 0 for row in rows)


PATHOLOGICAL = [" " * 1_000_000 + "x", "\t" * 1_000_000 + "x", "a" * 1_000_000, "\n" * 500_000, "'s" * 300_000]
PATHOLOGICAL += ["0" * 500_000]
PATHOLOGICAL += ["\ufdfa" * 100_000, "🦆" * 200_000, "\u0300" * 300_000, "<|endoftext|><|im_start|>" * 10_000]
PATHOLOGICAL += ["𐍈a \t" * 100_000, "\u202e\u200d" * 100_000, "<|endofprompt|>" + " " * 700_001]


@pytest.mark.parametrize("number", range(len(PATHOLOGICAL)))
def test_text_that_is_hard_to_count_is_bounded_by_its_bytes(mallory: Mallory, number: int) -> None:
    text = PATHOLOGICAL[number]
    for path, model in ((CHAT, "gpt-5.4"), (RESPONSES, "gpt-5.4"), (MESSAGES, "claude-sonnet-5-5")):
        assert mallory.ask(path, asks(path, text, model=model)).status == 200
        sent = mallory.dispatched()[-1]["body"]
        assert text == (sent["input"] if path == RESPONSES else sent["messages"][0]["content"])
    for row in mallory.world.ended_rows(mallory.customer, 3):
        assert row["cost_nanos"] <= row["quote"]
