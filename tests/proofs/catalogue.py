"""Every proof, in the order of the scorecard."""

from __future__ import annotations

from tests.proofs import disconnects, killed_daemon, last_cent, soak
from tests.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (killed_daemon.PROOF, last_cent.PROOF, disconnects.PROOF, soak.PROOF)
