"""Clients who go: after any frame, before the first, without reading. Each of their requests ends as one billed row."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.asking import ask
from tests.world import Customer, World, until

WORDS = 8
Close = Callable[[socket.socket], None]


def opened(world: World, customer: Customer, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which the request has been sent."""
    host, port = urlsplit(world.url).hostname or "", urlsplit(world.url).port or 0
    sock = socket.create_connection((host, port), timeout=20)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {customer.key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    sock.sendall(head.encode() + raw)
    return sock


def frames_read(sock: socket.socket, count: int) -> bytes:
    """Read until so many frames have come, or the last chunk of the answer."""
    seen = b""
    while seen.count(b"\n\n") < count and not seen.endswith(b"0\r\n\r\n"):
        piece = sock.recv(65_536)
        if not piece:
            break
        seen += piece
    return seen


def fin(sock: socket.socket) -> None:
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    frames_read(sock, 1_000)
    sock.close()


CLOSES: tuple[Close, ...] = (fin, reset, half)
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat in sight": ("/v1/chat/completions", {"model": "gpt-4o-mini", "messages": None}),
    "chat that reasons": ("/v1/chat/completions", {"model": "gpt-5.4-mini", "messages": None}),
    "responses": ("/v1/responses", {"model": "gpt-5.4-mini", "input": None}),
    "messages": ("/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 400, "messages": None}),
}


def asked(kind: str, directive: dict[str, Any], *, stream: bool = True) -> tuple[str, dict[str, Any]]:
    path, body = ASKED[kind]
    text = f"demo:{json.dumps(directive)}"
    filled = {name: [{"role": "user", "content": text}] if value is None else value for name, value in body.items()}
    if "input" in filled:
        filled["input"] = text
    return path, {**filled, "stream": stream}


@pytest.mark.parametrize("kind", ASKED)
def test_whoever_goes_after_any_frame_has_been_billed(world: World, kind: str) -> None:
    customers = [world.customer() for _ in range(WORDS + 8)]

    def go(place: int) -> None:
        path, body = asked(kind, {"words": WORDS, "delay_ms": 20})
        sock = opened(world, customers[place], path, body)
        frames_read(sock, place)
        CLOSES[place % len(CLOSES)](sock)

    with ThreadPoolExecutor(len(customers)) as pool:
        list(pool.map(go, range(len(customers))))
    for place, customer in enumerate(customers):
        (row,) = world.ended_rows(customer, 1)
        if place == 0 and row["status"] == "released":
            continue  # it had gone before the request was sent
        assert (row["status"], row["shortfall"]) == ("settled", 0)
        assert row["cost_nanos"] == row["charged"] > 0
        assert row["reason"] in ("completed", "client_gone")
        if kind != "chat in sight":
            assert (row["reason"], row["estimated"]) == ("completed", 0)


def test_an_answer_in_sight_is_cut_after_a_grace_and_billed_by_what_was_seen(world: World) -> None:
    alice, mark = world.customer(), world.upstream.mark()
    path, body = asked("chat in sight", {"words": 1_000, "delay_ms": 20})
    sock = opened(world, alice, path, body)
    frames_read(sock, 5)
    reset(sock)
    (row,) = world.ended_rows(alice, 1)
    assert (row["reason"], row["estimated"]) == ("client_gone", 1)
    assert 0 < row["output_tokens"] < 1_000
    assert 0 < row["charged"] < row["held"]
    until(lambda: [e for e in world.upstream.events(mark) if e.get("outcome") == "client_gone"], "the upstream's end")


def test_reasoning_out_of_sight_is_read_to_the_end_and_billed_in_full(world: World) -> None:
    alice = world.customer()
    path, body = asked("chat that reasons", {"words": 40, "delay_ms": 40, "usage": {"completion_tokens": 900}})
    sock = opened(world, alice, path, body)
    frames_read(sock, 2)
    reset(sock)
    (row,) = world.ended_rows(alice, 1)
    assert (row["reason"], row["estimated"], row["output_tokens"]) == ("completed", 0, 900)


@pytest.mark.parametrize("kind", ASKED)
def test_a_plain_answer_that_nobody_waits_for_is_billed(world: World, kind: str) -> None:
    alice = world.customer()
    path, body = asked(kind, {"hang_s": 0.3}, stream=False)
    reset(opened(world, alice, path, body))
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["reason"], row["estimated"]) == ("settled", "completed", 0)
    assert row["charged"] > 0


def test_ending_a_hold_ends_its_delivery_with_an_error_and_bills_it(world: World) -> None:
    alice = world.customer()
    path, body = asked("chat in sight", {"words": 1_000, "delay_ms": 20})
    sock = opened(world, alice, path, body)
    frames_read(sock, 3)
    (hold,) = ask(world, "GET", "/v1/holds", key=alice.key).json()["holds"]
    assert ask(world, "DELETE", f"/v1/holds/{hold['id']}", key=alice.key).status == 200
    rest = frames_read(sock, 10_000)
    sock.close()
    assert b'"request_ended"' in rest
    assert b"[DONE]" not in rest
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["reason"], row["estimated"]) == ("settled", "client_gone", 1)


def test_the_query_string_of_anthropics_clients_goes_along(world: World) -> None:
    alice, mark = world.customer(), world.upstream.mark()
    path, body = asked("messages", {}, stream=False)
    assert ask(world, "POST", f"{path}?beta=true", body=body, key=alice.key).status == 200
    (dispatch,) = world.upstream.dispatches(mark)
    assert dispatch["query"] == "beta=true"
