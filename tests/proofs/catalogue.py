"""Every proof, in the order of the scorecard."""

from __future__ import annotations

from tests.proofs import backups, canaries, clock, disk, webhooks
from tests.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (webhooks.PROOF, disk.PROOF, clock.PROOF, backups.PROOF, canaries.PROOF)
