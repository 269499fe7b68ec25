"""The ledger's SQL against the model of it, over one life: `scripts/prove --only model` lives many."""

from __future__ import annotations

import pytest

from tests.proofs.model import Simulation


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_life_goes_as_the_model_says(seed: int) -> None:
    assert Simulation(seed, 1_000)().story is None
