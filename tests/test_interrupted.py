"""A relay that is cancelled, or in which something raises, at any of its awaits: no hold stays open, whatever it was
doing. The coroutine is driven by hand, and at its k-th suspension the error is thrown in, for k = 0, 1, 2 and so on
until it has run to its end undisturbed.
"""

from __future__ import annotations

import asyncio
import copy
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from goosestack import accounts, app, bidding, demo, ledger
from goosestack.accounts import Principal
from goosestack.config import Config
from goosestack.relay import Relay
from goosestack.store import Tx
from goosestack.wire import Body, Wire
from goosestack.wire.anthropic_messages import AnthropicMessages
from goosestack.wire.openai_chat import OpenAIChat
from goosestack.wire.openai_responses import OpenAIResponses
from tests.world import PRICES


class Interruption:
    """Throws an error into a coroutine at its `at`-th suspension."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.at, self.error, self.struck = at, error, False

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """Run the coroutine, as the event loop would, but for the one interruption."""
        count, answer = 0, None
        try:
            waits_for = coroutine.send(None)
            while True:
                if count == self.at:
                    self.struck = True
                    count += 1
                    if isinstance(waits_for, asyncio.Future):
                        waits_for._asyncio_future_blocking = False  # as the event loop would, on taking it
                    waits_for = coroutine.throw(self.error())
                    continue
                count += 1
                try:
                    answer = yield waits_for
                except BaseException as error:  # what it waited for has failed
                    waits_for = coroutine.throw(error)
                else:
                    waits_for = coroutine.send(answer)
        except StopIteration:
            return


@asynccontextmanager
async def shop(folder: Path, cents: int) -> AsyncIterator[tuple[app.Parts, Principal]]:
    """A daemon's parts before the built-in upstream, and a customer with so many cents."""
    upstream = demo.make_app(openai_key="sk-test-key", anthropic_key="sk-ant-test-key")
    runner, port = await demo.start(upstream)
    url = f"http://127.0.0.1:{port}"
    config = Config(
        db_path=folder / "test.db",
        openai_api_key="sk-test-key",
        openai_base_url=f"{url}/v1",
        anthropic_api_key="sk-ant-test-key",
        anthropic_base_url=url,
        prices_file=PRICES,
        log_level="error",
    )
    try:
        async with app.running(config) as parts:
            yield parts, await parts.store.write(_customer, cents)
    finally:
        await runner.cleanup()


def _customer(tx: Tx, cents: int) -> Principal:
    now = app.utc_now()
    user_id = accounts.create_user(tx, "alice@example.com", now)
    account_id = ledger.open_account(tx, user_id, "usd_cents", now)
    ledger.post(tx, account_id, "grant", "first", cents, now)
    key = accounts.create_key(tx, user_id, "test", now)
    return Principal(user_id, key["id"], account_id)


async def relay_once(parts: app.Parts, caller: Principal, wire: Wire, body: Body, interruption: Interruption) -> Relay:
    """One relay from its bid to its end, interrupted."""
    gateway = parts.gateway

    class Interrupted(Relay):
        async def run(self) -> None:
            await interruption.drive(super().run())

    call = wire.parse(copy.deepcopy(body), own_key=False)
    bid = await bidding.bid(
        gateway.upstreams,
        gateway.policy,
        wire,
        call,
        {},
        payers=gateway.payers(caller),
        own_key=None,
        today=gateway.now()[:10],
    )
    relay = Interrupted(gateway, wire, caller, bid, accounts.new_id("req_"), {}, 0)
    await asyncio.wait([relay.task], timeout=20)
    assert relay.task.done()
    return relay


def _say(text: str) -> list[Body]:
    return [{"role": "user", "content": text}]


CASES: dict[str, tuple[Wire, Body]] = {
    "a plain answer": (OpenAIChat(), {"model": "gpt-4o-mini", "max_tokens": 50, "messages": _say("Hello")}),
    "a stream": (OpenAIChat(), {"model": "gpt-4o-mini", "stream": True, "messages": _say('demo:{"words":8}')}),
    "a slow stream": (
        OpenAIChat(),
        {"model": "gpt-4o-mini", "stream": True, "messages": _say('demo:{"words":5,"delay_ms":2}')},
    ),
    "a message": (AnthropicMessages(), {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": _say("Hello")}),
    "a response": (OpenAIResponses(), {"model": "gpt-5.4-mini", "stream": True, "input": "Hello"}),
    "a refusal": (OpenAIChat(), {"model": "gpt-4o-mini", "messages": _say('demo:{"fault":"error_400"}')}),
    "a cut stream": (
        OpenAIChat(),
        {"model": "gpt-4o-mini", "stream": True, "messages": _say('demo:{"words":9,"fault":"reset","at":4}')},
    ),
    "no usage": (OpenAIChat(), {"model": "gpt-4o-mini", "messages": _say('demo:{"usage_mode":"missing"}')}),
}
ERRORS: dict[str, Callable[[], BaseException]] = {
    "cancelled": asyncio.CancelledError,
    "raised into": lambda: RuntimeError("something unforeseen"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(("wire", "body"), CASES.values(), ids=CASES)
async def test_a_relay_that_is_interrupted_anywhere_leaves_no_hold(
    wire: Wire, body: Body, error: Callable[[], BaseException], tmp_path: Path
) -> None:
    async with shop(tmp_path, 100_000) as (parts, caller):
        places = 0
        while True:
            interruption = Interruption(places, error)
            relay = await relay_once(parts, caller, wire, body, interruption)
            rows = await parts.store.read(_rows, relay.id)
            assert [row for row in rows if row[0] == "held"] == [], f"held after suspension {places}"
            assert len(rows) <= 1
            if not interruption.struck:
                break
            places += 1
        assert places >= 3
        assert parts.gateway.live == {}
        assert parts.gateway.body_bytes == 0
        books = await parts.store.read(lambda tx: ledger.check(tx, full=True))
        assert books.wrong == []


async def test_a_bid_that_cannot_be_held_is_refused_wherever_it_is_interrupted(tmp_path: Path) -> None:
    async with shop(tmp_path, 1) as (parts, caller):
        wire, body = OpenAIChat(), {"model": "gpt-5.5", "max_completion_tokens": 100_000, "messages": _say("Hello")}
        places = 0
        while True:
            interruption = Interruption(places, asyncio.CancelledError)
            relay = await relay_once(parts, caller, wire, body, interruption)
            assert await parts.store.read(_rows, relay.id) == []
            if not interruption.struck:
                break
            places += 1
        assert places >= 1


def _rows(tx: Tx, request_id: str) -> list[tuple[str, int]]:
    return tx.execute("SELECT status, charged FROM usage_log WHERE id = ?", (request_id,)).fetchall()
