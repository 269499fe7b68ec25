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
from tests.faults import CASES, Answer, Case
from tests.world import Customer, World


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
        assert _resident_megabytes(world) < 300
        paths = {dispatch["path"] for dispatch in world.upstream.dispatches()}
        assert paths == set(faults.PATHS.values())  # no redirect was followed
    finally:
        world.close()


def _resident_megabytes(world: World) -> float:
    text = Path(f"/proc/{world.daemon.program.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


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
