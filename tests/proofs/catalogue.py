"""Every proof, in the order of the scorecard."""

from __future__ import annotations

from tests.proofs import bad_input, interrupted, upstream_faults
from tests.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (upstream_faults.PROOF, interrupted.PROOF, bad_input.PROOF)
