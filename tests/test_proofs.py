"""Each long proof in its short form; `scripts/prove --full` carries them out to their targets."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.proofs.catalogue import PROOFS
from tests.proofs.proof import Attempt, Proof, attempted


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.name)
def test_a_promise_holds(proof: Proof, folder: Path) -> None:
    attempt = Attempt(secrets.randbits(32), proof.short, folder, full=False)
    score = attempted(proof, attempt)
    assert score.story is None, f"{score.story} (scripts/prove --only {proof.name} --seed {attempt.seed})"


def proof(run: object = None, **changes: object) -> Proof:
    """One that is carried out at once."""
    given = {"name": "straw", "claim": "", "short": {"straws": 2}, "full": {"straws": 3}, "run": run} | changes
    return Proof(**given)  # type: ignore[arg-type]


def end(straw: Proof, folder: Path) -> str | None:
    return attempted(straw, Attempt(1, straw.short, folder, full=False)).story


def test_a_proof_that_stops_short_of_its_goal_is_refuted(tmp_path: Path) -> None:
    assert end(proof(lambda attempt: attempt.count("straws")), tmp_path) == "1 of 2 straws: too few to prove it"


def test_a_proof_that_met_no_danger_is_refuted(tmp_path: Path) -> None:
    def calm(attempt: Attempt) -> None:
        attempt.expect("fire", "water")
        attempt.meet("water")
        attempt.count("straws", 2)

    assert end(proof(calm), tmp_path) == "nothing was proved, for this was never met: fire"


def test_a_proof_that_hangs_is_refuted(tmp_path: Path) -> None:
    def hang(_attempt: Attempt) -> None:
        while True:
            pass

    assert end(proof(hang, limit_s=(1, 1)), tmp_path) == "not done within 1 s"


def test_a_proof_is_repeated_by_its_seed(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):

        def draw(attempt: Attempt) -> None:
            drawn.append(attempt.random.random())
            attempt.count("straws", 2)

        assert end(proof(draw), tmp_path) is None
    assert drawn[0] == drawn[1]
