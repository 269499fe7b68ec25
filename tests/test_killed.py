"""The daemon is killed under load, again and again: every request that the upstream saw has its row, every answer that
a client saw to its end has been charged, no hold stays open, and the books add up from the beginning.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import aiohttp

from tests.world import Customer, World

ROUNDS = 20
LANES = 8
SEED = 20_261_121


async def _lane(world: World, lane: int, alice: Customer, ended: Counter[str], until: float) -> None:
    """One request after the other, streamed and plain, until the time is over or the daemon has gone."""
    url, headers = f"{world.url}/v1/chat/completions", {"authorization": f"Bearer {alice.key}"}
    async with aiohttp.ClientSession() as client:
        while time.monotonic() < until:
            text = f"{alice.id} demo:{json.dumps({'words': 10, 'delay_ms': 5 * (lane % 4)})}"
            body = {"model": "gpt-4o-mini", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}
            try:
                async with client.post(url, json={**body, "stream": lane % 2 == 0}, headers=headers) as answer:
                    data = await answer.read()
            except (aiohttp.ClientError, ConnectionError):
                return
            if answer.status == 200 and (lane % 2 or b"[DONE]" in data):
                ended[alice.id] += 1


async def _load(world: World, lanes: list[Customer], ended: Counter[str], seconds: float, number: int) -> None:
    tasks = [
        asyncio.create_task(_lane(world, lane, alice, ended, time.monotonic() + seconds + 1))
        for lane, alice in enumerate(lanes)
    ]
    await asyncio.sleep(seconds)
    world.daemon.program.process.send_signal(number)
    await asyncio.gather(*tasks)


def test_kill_9_under_load_loses_nothing_and_leaves_nothing_held(tmp_path: Path) -> None:
    world, chance = World.create(tmp_path), random.Random(SEED)
    try:
        lanes = [world.customer(100_000, name=f"alice{lane}") for lane in range(LANES)]
        ended: Counter[str] = Counter()
        for _ in range(ROUNDS):
            asyncio.run(_load(world, lanes, ended, chance.uniform(0.05, 0.4), signal.SIGKILL))
            world.daemon.program.process.wait()
            world.daemon.start()
        recovered = 0
        seen = [json.dumps(dispatch["body"]) for dispatch in world.upstream.dispatches()]
        for alice in lanes:
            rows = world.rows(alice)
            sent = sum(alice.id in body for body in seen)
            dispatched = [row for row in rows if row["status"] == "settled" or row["reason"] == "interrupted"]
            assert all(row["status"] != "held" for row in rows)
            assert sent <= len(dispatched) <= sent + ROUNDS, "each dispatch has a row; a kill may come between the two"
            assert sum(row["status"] == "settled" for row in rows) >= ended[alice.id], "who saw the end has been billed"
            recovered += sum(row["reason"] in ("interrupted", "recovered") for row in rows)
        assert recovered > 0, f"no kill hit a request in flight (seed {SEED})"
        assert sum(ended.values()) > 0
    finally:
        world.close()


def test_sigterm_under_load_ends_in_good_order(tmp_path: Path) -> None:
    world, chance = World.create(tmp_path, DRAIN_S="5"), random.Random(SEED)
    try:
        lanes = [world.customer(100_000, name=f"alice{lane}") for lane in range(LANES)]
        ended: Counter[str] = Counter()
        for _ in range(5):
            asyncio.run(_load(world, lanes, ended, chance.uniform(0.1, 0.3), signal.SIGTERM))
            assert world.daemon.program.process.wait(30) == 0, world.daemon.program.text()[-1000:]
            assert all(row["status"] != "held" for row in world.rows())
            world.daemon.start()
        for alice in lanes:
            assert sum(row["status"] == "settled" for row in world.rows(alice)) >= ended[alice.id]
    finally:
        world.close()
