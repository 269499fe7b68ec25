"""Every proof, in the order of the scorecard."""

from __future__ import annotations

from tests.proofs import (
    backups,
    bad_input,
    branches,
    clock,
    disconnects,
    disk,
    interrupted,
    killed_daemon,
    killed_store,
    last_cent,
    model,
    mutants,
    power_loss,
    soak,
    told_secrets,
    upstream_faults,
    webhooks,
)
from tests.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (
    power_loss.PROOF,
    killed_store.PROOF,
    killed_daemon.PROOF,
    model.PROOF,
    interrupted.PROOF,
    last_cent.PROOF,
    disconnects.PROOF,
    upstream_faults.PROOF,
    webhooks.PROOF,
    bad_input.PROOF,
    disk.PROOF,
    clock.PROOF,
    backups.PROOF,
    soak.PROOF,
    told_secrets.PROOF,
    branches.PROOF,
    mutants.PROOF,
)
