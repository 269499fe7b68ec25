"""Every proof, in the order of the scorecard."""

from __future__ import annotations

from tests.proofs import killed_store, model, power_loss
from tests.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (power_loss.PROOF, killed_store.PROOF, model.PROOF)
