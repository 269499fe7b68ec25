"""Every proof, in the order of the scorecard."""

from __future__ import annotations

from tests.proofs import disconnects, killed_daemon, killed_store, last_cent, model, power_loss, soak
from tests.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (
    power_loss.PROOF,
    killed_store.PROOF,
    killed_daemon.PROOF,
    model.PROOF,
    last_cent.PROOF,
    disconnects.PROOF,
    soak.PROOF,
)
