"""Many requests of one customer at once, each over a connection of its own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import aiohttp

from tests.mallory import CHAT
from tests.world import Customer, World

Told = tuple[int, str | None, str | None]
"""A status, and the type and the code of the error, where it is one; the last is not in every format."""


async def all_at_once(world: World, alice: Customer, body: bytes, count: int, path: str = CHAT) -> Counter[int]:
    """Send the same request so often; how often each status was answered, whose answer was read to its end."""
    told = await told_at_once(world, alice, body, count, path)
    return Counter(status for status, _, _ in told.elements())


async def told_at_once(world: World, alice: Customer, body: bytes, count: int, path: str) -> Counter[Told]:
    """The same; of refusals also what they are called."""

    async def ask(client: aiohttp.ClientSession) -> Told:
        async with client.post(world.url + path, data=body, headers=headers) as answer:
            data = await answer.read()
            error = {} if answer.status == 200 else json.loads(data)["error"]
            return answer.status, error.get("type"), error.get("code")

    headers = {"authorization": f"Bearer {alice.key}", "content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        return Counter(await asyncio.gather(*(ask(client) for _ in range(count))))
