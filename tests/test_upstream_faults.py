"""Every fault of the upstream, in every wire format, streamed and not: the right answer, one row, no hold left, no
secret shown, one dispatch. All of them run at once against one daemon whose answers may take three seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import faults
from tests.asking import ask, chat, directed, message
from tests.faults import CASES, Answer, Case
from tests.world import Customer, World, until


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the client got, and what was written down."""

    who: str
    answer: Answer
    row: dict[str, Any]
    dispatches: int


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Outcome]]:
    """All cases, asked at once."""
    world = World.create(tmp_path_factory.mktemp("faults"), REQUEST_DEADLINE_S="3", DRAIN_S="5")
    try:
        customers = {case: world.customer(name=f"alice{number}") for number, case in enumerate(CASES)}
        answers = asyncio.run(_ask_all(world, customers))
        marks = [str(dispatch["body"]) for dispatch in world.upstream.dispatches()]
        yield {
            case: Outcome(
                customers[case].id,
                answers[case],
                world.ended_rows(customers[case], 1)[0],
                sum(customers[case].id in mark for mark in marks),
            )
            for case in CASES
        }
        assert _megabytes(world, "VmRSS:") < 200
        paths = {dispatch["path"] for dispatch in world.upstream.dispatches()}
        assert paths == set(faults.PATHS.values())  # no redirect was followed
    finally:
        world.close()


def _megabytes(world: World, what: str) -> float:
    text = Path(f"/proc/{world.daemon.program.process.pid}/status").read_text()
    return int(text.partition(what)[2].split()[0]) / 1024


async def _ask_all(world: World, customers: dict[Case, Customer]) -> dict[Case, Answer]:
    room = asyncio.Semaphore(24)

    async def one(case: Case) -> Answer:
        async with room:
            return await faults.ask(world.url, case, customers[case].key, customers[case].id)

    return dict(zip(CASES, await asyncio.gather(*map(one, CASES)), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_of_the_upstream_has_its_one_outcome(outcomes: dict[Case, Outcome], case: Case) -> None:
    outcome = outcomes[case]
    assert outcome.dispatches == 1, "sent once, and never again"
    assert faults.wrong(case, outcome.who, outcome.answer, outcome.row) == ""


# --- what such answers have led to ----------------------------------------------------------------------------------


def test_an_answer_that_nobody_asked_for_is_nobodys(world: World) -> None:
    """A connection was kept on which a second answer had come, unasked. The next customer's request went out on it and
    got that one at once; its own answer was then given to whoever came after, and so on: each read what another had
    asked, and paid for it by the other's usage."""
    alice, bob = world.customer(), world.customer(name="bob")
    start = world.upstream.mark()
    late = chat(directed(alice.id, fault="second_answer", hang_s=0.05))
    assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=late).status == 200
    until(lambda: [one for one in world.upstream.events(start) if one["event"] == "end"], "the second answer")
    for number in range(3):
        reply = ask(world, "POST", "/v1/chat/completions", key=bob.key, body=chat(f"{bob.id}-{number}"))
        assert f"{bob.id}-{number}" in reply.data.decode()
    assert len(world.upstream.dispatches(start)) == 4


@pytest.mark.parametrize(
    ("path", "body", "directive", "end"),
    [
        ("/v1/responses", {"model": "gpt-5.4-mini"}, {"usage_raw": "NaN"}, b"event: response.completed"),
        ("/v1/messages", message(), {"fault": "bad_json", "at": 10**6}, b"event: message_stop"),
    ],
    ids=["responses", "messages"],
)
def test_whoever_sees_an_end_that_cannot_be_read_has_been_billed(
    world: World, path: str, body: dict[str, object], directive: dict[str, Any], end: bytes
) -> None:
    """A last event that was no JSON was passed on like any other, before anything was settled, and an error after it:
    the caller had seen the end of an answer that was not billed yet, and then of one that broke off."""
    alice = world.customer()
    question = directed("Hi", words=3, **directive)
    asked = {"input": question} if path == "/v1/responses" else {"messages": message(question)["messages"]}
    reply = ask(world, "POST", path, key=alice.key, body={**body, **asked, "stream": True})
    assert end in reply.data and b"event: error" not in reply.data
    assert reply.data.index(b": goosestack cost-usd=") < reply.data.index(end)
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["reason"], row["charged"] > 0) == ("settled", "completed", True)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_many_endless_answers_at_once_fit_into_memory(folder: Path, stream: bool) -> None:
    """Each plain answer may be as large as the largest one of embeddings, and each frame as an image; a few of them at
    once took more than the machine had."""
    world = World.create(folder)
    try:
        kind = "endless_line" if stream else "endless_body"
        cases = [case for case in faults.CASES if (case.kind, case.stream) == (kind, stream)] * 4
        customers = [world.customer(name=f"alice{number}") for number in range(len(cases))]

        async def all_at_once() -> list[Answer]:
            each = zip(cases, customers, strict=True)
            return await asyncio.gather(*(faults.ask(world.url, case, alice.key, alice.id) for case, alice in each))

        assert {answer.status for answer in asyncio.run(all_at_once())} == {200 if stream else 502}
        assert _megabytes(world, "VmHWM:") < 250
    finally:
        world.close()
