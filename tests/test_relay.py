"""A relay where nothing comes to an end by itself: a client who stops reading, a disk without room. In one process,
with the clock given.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from goosestack import accounts, bidding, ledger
from goosestack.errors import StoreUnavailable
from goosestack.gateway import Gateway
from goosestack.relay import STALLED_S, Relay
from goosestack.store.sqlite import SqliteStore
from goosestack.wire import Body, Wire
from goosestack.wire.openai_chat import OpenAIChat
from tests.interruptions import shop
from tests.world import PATIENCE_S


async def begin(gateway: Gateway, caller: accounts.Principal, body: Body) -> Relay:
    wire: Wire = OpenAIChat()
    call = wire.parse(body, own_key=False)
    policy, payers = gateway.policy, gateway.payers(caller)
    today = gateway.now()[:10]
    made = await bidding.bid(gateway.upstreams, policy, wire, call, {}, payers=payers, own_key=None, today=today)
    return Relay(gateway, wire, caller, made, accounts.new_id("req_"), {}, 0)


def asks(directive: str, **more: Any) -> Body:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"demo:{directive}"}], **more}


async def test_who_stops_reading_finds_an_error_and_not_a_clean_end(tmp_path: Path) -> None:
    async with shop(tmp_path, 100) as (parts, alice), asyncio.timeout(PATIENCE_S):
        relay = await begin(parts.gateway, alice, asks('{"words":400,"delay_ms":5}', stream=True))
        await relay.head
        assert await relay.pipe.get()
        while not relay.pipe.waits_since(0, asyncio.get_running_loop().time()):
            await asyncio.sleep(0)
        relay.tick(asyncio.get_running_loop().time() + STALLED_S + 1)
        told = await relay.pipe.get()
        assert told is not None and told.startswith(b'data: {"error":') and b"was read for 30 s" in told
        assert await relay.pipe.get() is None
        await relay.task
        assert isinstance(relay.receipt, ledger.Settled) and relay.receipt.charged > 0


class NoRoom(SqliteStore):
    """A store whose disk fills up once the hold is made, and has room again when it is told."""

    room = False

    def write(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        if verb in (ledger.settle, ledger.release, ledger.journal) and not self.room:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable())
            return future
        return super().write(verb, *args, **kwargs)


async def test_a_stop_ends_also_where_the_end_of_a_request_cannot_be_written(tmp_path: Path) -> None:
    async with shop(tmp_path, 100) as (parts, alice), asyncio.timeout(PATIENCE_S):
        gateway = parts.gateway
        gateway.store.__class__ = NoRoom
        gateway.limits = replace(gateway.limits, unsettled_s=0.2)
        relay = await begin(gateway, alice, asks('{"words":5}'))
        await asyncio.wait([relay.head], timeout=0.5)
        await gateway.drain(0)
        assert relay.task.done() and relay.receipt is None
        rows = await parts.store.read(lambda tx: tx.execute("SELECT status FROM usage_log").fetchall())
        assert rows == [("held",)], "the next start ends it; nobody gave it back"


async def test_room_that_comes_back_while_a_stop_waits_is_used(tmp_path: Path) -> None:
    async with shop(tmp_path, 100) as (parts, alice), asyncio.timeout(PATIENCE_S):
        gateway = parts.gateway
        gateway.store.__class__ = NoRoom
        relay = await begin(gateway, alice, asks('{"words":5}'))
        await asyncio.wait([relay.head], timeout=0.5)
        stop = asyncio.create_task(gateway.drain(0))
        await asyncio.sleep(0.1)
        gateway.store.room = True  # type: ignore[attr-defined]
        await stop
        assert isinstance(relay.receipt, ledger.Settled) and relay.receipt.charged > 0
