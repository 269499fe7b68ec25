"""Every fault of the upstream, in every wire format, streamed and not: the right answer, one row, no hold left, no
secret shown, one dispatch. All of them run at once against one daemon whose answers may take three seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from goosestack import demo
from tests.world import ANTHROPIC_KEY, OPENAI_KEY, Customer, World

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "gpt-4o-mini", "max_tokens": 500, "messages": None}),
    "responses": ("/v1/responses", {"model": "gpt-5.4-mini", "max_output_tokens": 500, "input": None}),
    "messages": ("/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 500, "messages": None}),
    "embeddings": ("/v1/embeddings", {"model": "text-embedding-3-small", "input": None}),
}
ENDS = (b"data: [DONE]", b"event: response.completed", b"event: message_stop")
ERRORS = (b'"error"', b"event: error", b"response.failed")
CANARIES = (OPENAI_KEY.encode(), ANTHROPIC_KEY.encode(), b"canaryORG123", b"proj_canary")

CLEAN = frozenset(("crlf", "byte_by_byte", "coalesced", "comments", "after_terminal", "drip", "many_headers"))
"""Faults that are none: the answer is whole, in an unusual form (or drips until the deadline)."""
RELAYED = {"error_400": 400, "error_404": 404, "error_413": 413, "error_422": 422, "error_429": 429, "error_529": 529}
OPERATORS = frozenset(("error_401", "error_402", "error_403", "error_quota", "error_low_credit"))
REFUSED = frozenset(("redirect", "error_200", "error_408", "error_500", "error_502", "error_503"))


@dataclass(frozen=True, slots=True)
class Case:
    """One fault in one format."""

    fault: str
    wire: str
    stream: bool

    def __str__(self) -> str:
        return f"{self.fault} in {self.wire}{', streamed' if self.stream else ''}"


CASES = tuple(
    Case(fault, wire, stream)
    for fault in demo.FAULTS
    for wire in FORMATS
    for stream in (False, True)
    if demo.fits(fault, wire, stream) and not (stream and wire == "embeddings")
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the client got, and what was written down."""

    status: int
    headers: dict[str, str]
    body: bytes
    row: dict[str, Any]
    dispatches: int


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Outcome]]:
    """All cases, asked at once."""
    world = World.create(tmp_path_factory.mktemp("faults"), REQUEST_DEADLINE_S="3", DRAIN_S="5")
    try:
        customers = {case: world.customer(name=f"alice{number}") for number, case in enumerate(CASES)}
        answers = asyncio.run(_ask_all(world, customers))
        marks = [json.dumps(dispatch["body"]) for dispatch in world.upstream.dispatches()]
        yield {
            case: Outcome(
                *answers[case],
                world.ended_rows(customers[case], 1)[0],
                sum(customers[case].id in mark for mark in marks),
            )
            for case in CASES
        }
        assert _resident_megabytes(world) < 300
        paths = {dispatch["path"] for dispatch in world.upstream.dispatches()}
        assert paths == {path for path, _ in FORMATS.values()}  # no redirect was followed
    finally:
        world.close()


def _resident_megabytes(world: World) -> float:
    text = Path(f"/proc/{world.daemon.program.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


async def _ask_all(world: World, customers: dict[Case, Customer]) -> dict[Case, tuple[int, dict[str, str], bytes]]:
    room = asyncio.Semaphore(24)

    async def one(case: Case) -> tuple[int, dict[str, str], bytes]:
        async with room:
            return await _ask(client, world, case, customers[case])

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
        return dict(zip(CASES, await asyncio.gather(*map(one, CASES)), strict=True))


async def _ask(
    client: aiohttp.ClientSession, world: World, case: Case, alice: Customer
) -> tuple[int, dict[str, str], bytes]:
    path, body = FORMATS[case.wire]
    text = f"{alice.id} demo:{json.dumps({'fault': case.fault, 'words': 12})}"
    filled = {name: [{"role": "user", "content": text}] if value is None else value for name, value in body.items()}
    if "input" in filled:
        filled["input"] = text
    if case.stream:
        filled["stream"] = True
    headers = {"authorization": f"Bearer {alice.key}"}
    async with client.post(world.url + path, json=filled, headers=headers) as answer:
        return answer.status, dict(answer.headers), await answer.read()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_of_the_upstream_has_its_one_outcome(outcomes: dict[Case, Outcome], case: Case) -> None:
    outcome = outcomes[case]
    status, row, body = outcome.status, outcome.row, outcome.body
    assert outcome.dispatches == 1, "sent once, and never again"
    assert not any(canary in body or canary.decode() in str(outcome.headers) for canary in CANARIES)
    assert row["shortfall"] == 0
    assert row["charged"] == row["cost_nanos"] <= row["held"]
    if case.fault in RELAYED or case.fault in OPERATORS or case.fault in REFUSED:
        expected = RELAYED.get(case.fault) or (503 if case.fault in OPERATORS else 502)
        assert (status, row["status"], row["charged"]) == (expected, "released", 0)
        assert json.loads(body)["error"]["message"]
    elif case.fault in CLEAN and row["reason"] == "completed":
        assert (status, row["status"], row["estimated"]) == (200, "settled", 0)
        assert not case.stream or any(end in body for end in ENDS)
    else:
        _broke_off(case, outcome)


def _broke_off(case: Case, outcome: Outcome) -> None:
    row, body = outcome.row, outcome.body
    assert row["status"] == "settled", "what was sent may have been billed"
    assert row["charged"] > 0 or row["cost_nanos"] > 0
    if outcome.status == 200 and case.stream and b"data:" in body:
        ended = any(end in body for end in ENDS) or case.fault == "failed"  # a failure that the provider reports itself
        assert ended == (row["reason"] == "completed"), "a cut stream never ends like a whole one"
        assert ended or any(error in body for error in ERRORS)
    elif row["reason"] != "completed":
        assert outcome.status in (502, 504)
        assert outcome.headers["x-should-retry"] == "false"
