"""Each long proof in its short form; `scripts/prove --full` carries them out to their targets."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.proofs import recording
from tests.proofs.catalogue import PROOFS
from tests.proofs.proof import Attempt, Proof, attempted

STRACE = pytest.mark.skipif(not recording.installed(), reason="strace is not installed; scripts/prove installs it")
MARKS = {"power-loss": [STRACE]}


@pytest.mark.parametrize("proof", [pytest.param(each, id=each.name, marks=MARKS.get(each.name, ())) for each in PROOFS])
def test_a_promise_holds(proof: Proof, folder: Path) -> None:
    attempt = Attempt(secrets.randbits(32), proof.short, folder, full=False)
    print(f"scripts/prove --only {proof.name} --seed {attempt.seed}")
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
        attempt.expect("wind", times=3)
        attempt.meet("water")
        attempt.meet("wind", 2)
        attempt.count("straws", 2)

    assert end(proof(calm), tmp_path) == "nothing was proved, for this was not met: fire, wind (2 of 3 times)"


def test_a_proof_is_refuted_by_an_assertion_of_what_it_shares_with_the_tests(tmp_path: Path) -> None:
    def break_down(_attempt: Attempt) -> None:
        assert not "a camel"

    story = end(proof(break_down), tmp_path)
    assert story is not None and "in break_down" in story and "a camel" in story


def test_a_proof_that_hangs_is_refuted(tmp_path: Path) -> None:
    def hang(_attempt: Attempt) -> None:
        while True:
            pass

    assert end(proof(hang, limit_s=(1, 1)), tmp_path) == "not done within 1 s"


def test_a_proof_that_is_late_is_refuted_also_where_something_has_caught_that(tmp_path: Path) -> None:
    def catch(attempt: Attempt) -> None:
        try:
            while True:
                pass
        except AssertionError:
            attempt.count("straws", 2)

    assert end(proof(catch, limit_s=(1, 1)), tmp_path) == "not done within 1 s"


def test_a_proof_is_repeated_by_its_seed(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):

        def draw(attempt: Attempt) -> None:
            drawn.append(attempt.random.random())
            attempt.count("straws", 2)

        assert end(proof(draw), tmp_path) is None
    assert drawn[0] == drawn[1]
