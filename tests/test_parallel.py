"""Many requests at once on little money: what is held never exceeds what there is."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import aiohttp
import pytest

from tests.world import Customer, World

AT_ONCE = 500


async def _ask(client: aiohttp.ClientSession, world: World, alice: Customer, body: bytes) -> int:
    headers = {"authorization": f"Bearer {alice.key}", "content-type": "application/json"}
    async with client.post(f"{world.url}/v1/chat/completions", data=body, headers=headers) as answer:
        await answer.read()
        return answer.status


async def all_at_once(world: World, alice: Customer, body: bytes, count: int) -> Counter[int]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        return Counter(await asyncio.gather(*(_ask(client, world, alice, body) for _ in range(count))))


@pytest.mark.parametrize("round", [1, 2])
def test_of_500_requests_on_a_balance_for_one_exactly_one_is_answered(world: World, round: int) -> None:
    alice = world.customer(1)
    mark = world.upstream.mark()
    text = 'demo:{"usage":{"completion_tokens":10000},"hang_s":0.2}'
    asked = {"model": "gpt-4o-mini", "max_tokens": 10_000, "messages": [{"role": "user", "content": text}]}
    answers = asyncio.run(all_at_once(world, alice, json.dumps(asked).encode(), AT_ONCE))
    assert answers == {200: 1, 402: AT_ONCE - 1}
    assert len(world.upstream.dispatches(mark)) == 1
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["shortfall"]) == ("settled", 0)
    assert world.funds(alice)["held_cents"] == 0


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
