"""Many requests at once on little money: what is held never exceeds what there is.

That one of 500 wins the last cent is a proof: `tests/proofs/last_cent.py`.
"""

from __future__ import annotations

import asyncio
import json

from tests.crowd import all_at_once
from tests.world import World


def test_requests_without_a_cap_share_what_there_is(world: World) -> None:
    alice = world.customer(2)
    mark = world.upstream.mark()
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": 'demo:{"hang_s":0.3}'}]}
    answers = asyncio.run(all_at_once(world, alice, json.dumps(asked).encode(), 20))
    rows = world.ended_rows(alice, answers[200])
    assert 1 <= answers[200] < 20
    assert answers[200] + answers[402] == 20
    assert sum(row["held"] for row in rows) <= 2 * 10_000_000
    bodies = [dispatch["body"] for dispatch in world.upstream.dispatches(mark)]
    caps = [body.get("max_completion_tokens", 16_384) for body in bodies]  # none is sent where all of it is held
    for row, cap in zip(sorted(rows, key=lambda row: -row["held"]), sorted(caps, reverse=True), strict=True):
        assert cap * 600 <= row["held"]
