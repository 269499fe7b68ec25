"""The edge of HTTP, byte by byte: what is no request is answered as everything else is, and never into another answer;
and whoever is still sending gets to read the answer.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.asking import directed
from tests.mallory import CHAT, MESSAGES, Mallory, Reply, asks, assert_error, replies_in, talk
from tests.world import World, until

GARBAGE = b"canary \x00\xff gsk_canary0123456789\r\n\r\n"


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world) as mallory:
        yield mallory


def head(mallory: Mallory, path: str, *lines: str) -> bytes:
    """The start of a request of hers."""
    key = f"Authorization: Bearer {mallory.customer.key}"
    told = [f"POST {path} HTTP/1.1", "Host: x", key, "Content-Type: application/json", *lines]
    return "\r\n".join(told).encode() + b"\r\n\r\n"


def whole(mallory: Mallory, path: str, **fields: object) -> bytes:
    """A request of hers that is in order."""
    body = json.dumps(asks(path, **fields)).encode()
    return head(mallory, path, f"Content-Length: {len(body)}") + body


# --- what is no request ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "dialect"),
    [
        (GARBAGE, "ours"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "ours"),
        (b"CONNECT canary.example:443 HTTP/1.1\r\n\r\n", "ours"),
        (b"GET /v1/usage?canary=gsk_canary HTTP/1.1\r\nHost: x\r\ncanary\r\n\r\n", "ours"),
        (b"POST /v1/chat/completions HTTP/9\r\n\r\n", "openai"),
        (b"POST /v1/messages HTTP/1.1\r\nContent-Length: canary\r\n\r\n", "anthropic"),
        (b"POST /v1/responses HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\ncanary\r\n", "openai"),
        (b"POST /v1/x HTTP/1.1\r\nanthropic-version: 2023-06-01\r\nHost: x\r\n: canary\r\n\r\n", "anthropic"),
    ],
)
def test_what_is_no_request_is_answered_in_the_callers_format_and_logged_without_a_word_of_it(
    mallory: Mallory, sent: bytes, dialect: str
) -> None:
    output = mallory.world.daemon.program.output
    start = output.stat().st_size
    (reply,) = talk(mallory.world, sent)
    assert_error(reply, dialect, 400)
    assert reply.message == "This is not a request that can be read: HTTP/1.1, to the letter."
    assert reply.headers["connection"] == "close" and "date" in reply.headers
    request_id = reply.headers["x-request-id"]
    written = until(lambda: text if request_id in (text := output.read_text()[start:]) else "", "a line in the log")
    told = [json.loads(line) for line in written.splitlines()]
    (line,) = (line for line in told if line["id"] == request_id)
    assert set(line) == {"at", "level", "event", "id", "status", "address"}
    assert (line["status"], line["address"]) == (400, "127.0.0.1")
    assert "canary" not in written and b"canary" not in reply.body
    mallory.nothing_happened()


def test_what_was_asked_in_order_is_answered_whatever_follows_it(mallory: Mallory) -> None:
    slow = whole(mallory, CHAT, messages=[{"role": "user", "content": directed("Hi", words=20, delay_ms=20)}])
    (alone,) = talk(mallory.world, whole(mallory, CHAT) + GARBAGE)
    (later,) = talk(mallory.world, slow, GARBAGE)
    first, last = talk(mallory.world, whole(mallory, CHAT) + whole(mallory, MESSAGES) + GARBAGE)
    assert [reply.status for reply in (alone, later, first, last)] == [200] * 4
    assert "choices" in first.json and "content" in last.json
    rows = mallory.world.ended_rows(mallory.customer, 4)
    assert [row["status"] for row in rows] == ["settled"] * 4


# --- whoever is still sending ---------------------------------------------------------------------------------

FEW = 1024 * 1024


@pytest.fixture
def tight(folder: Path) -> Iterator[Mallory]:
    """A daemon that takes bodies of a megabyte."""
    world = World.create(folder, MAX_BODY_BYTES=str(FEW))
    with Mallory(world) as mallory:
        yield mallory
    world.close()


def answered(world: World, head: bytes, body: Iterator[bytes]) -> list[Reply]:
    """What is read by somebody who sends everything first, and does not look up before."""
    host, _, port = world.url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=20)) as connection:
        connection.sendall(head)
        for piece in body:
            connection.sendall(piece)
        received = b""
        while data := connection.recv(65_536):
            received += data
    return list(replies_in(received))


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_whoever_sends_too_much_reads_so_when_all_is_sent(tight: Mallory, path: str) -> None:
    piece = b"x" * 65_536
    for _ in range(5):
        (reply,) = answered(tight.world, head(tight, path, f"Content-Length: {40 * FEW}"), iter([piece] * 640))
        assert_error(reply, "anthropic" if path == MESSAGES else "openai", 413)
        chunks = [b"10000\r\n" + piece + b"\r\n"] * 640
        chunked = head(tight, path, "Transfer-Encoding: chunked")
        (reply,) = answered(tight.world, chunked, iter([*chunks, b"0\r\n\r\n"]))
        assert_error(reply, "anthropic" if path == MESSAGES else "openai", 413)
    tight.nothing_happened()


def test_whoever_closes_afterwards_may_send_all_of_what_is_refused_unread(mallory: Mallory) -> None:
    """As nginx asks of what is behind it: a connection for each request."""
    start = head(mallory, "/v1/nothing", f"Content-Length: {20 * FEW}", "Connection: close")
    for _ in range(5):
        (reply,) = answered(mallory.world, start, iter([b"x" * 65_536] * 320))
        assert_error(reply, "openai", 404)


def test_a_stop_does_not_wait_for_whoever_goes_on_sending(tight: Mallory) -> None:
    host, _, port = tight.world.url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=20)) as connection:
        connection.sendall(head(tight, CHAT, f"Content-Length: {40 * FEW}"))
        assert connection.recv(12) == b"HTTP/1.1 413"
        assert tight.world.daemon.program.stop(signal.SIGTERM, 10) == 0
    tight.world.daemon.start()
