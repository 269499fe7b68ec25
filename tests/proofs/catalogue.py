"""Every proof, in the order of the scorecard."""

from __future__ import annotations

from tests.proofs import branches, mutants
from tests.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (branches.PROOF, mutants.PROOF)
