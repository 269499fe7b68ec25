"""Many requests of one customer at once, each over a connection of its own."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp

from tests.mallory import CHAT
from tests.world import Customer, World


async def all_at_once(world: World, alice: Customer, body: bytes, count: int, path: str = CHAT) -> Counter[int]:
    """Send the same request so often; how often each status was answered, whose answer was read to its end."""

    async def ask(client: aiohttp.ClientSession) -> int:
        async with client.post(world.url + path, data=body, headers=headers) as answer:
            await answer.read()
            return answer.status

    headers = {"authorization": f"Bearer {alice.key}", "content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        return Counter(await asyncio.gather(*(ask(client) for _ in range(count))))
