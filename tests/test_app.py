"""The application on opened parts, asked without a socket: what depends on when something happens, to the very turn of
the event loop.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from goosestack import accounts, app, clock, errors, ledger, usage
from goosestack.accounts import Principal
from goosestack.api import PAGE_ROWS, Table
from goosestack.config import Config
from goosestack.front import Front
from goosestack.gateway import REVOKED_S
from goosestack.logs import Log, ThreadedWriter
from goosestack.store import Tx
from tests.asking import chat, directed, message
from tests.interruptions import shop
from tests.test_logs import fill, read
from tests.world import PRICES

Message = MutableMapping[str, Any]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[app.Parts]:
    """A daemon's parts, before no upstream."""
    config = Config(db_path=folder / "a.db", openai_api_key="sk-test", prices_file=PRICES, log_level="error")
    async with app.running(config) as parts:
        yield parts
        assert (await parts.store.read(lambda tx: ledger.check(tx, full=True))).wrong == []


def _sign_up(tx: Tx) -> tuple[Principal, str]:
    made = accounts.sign_up(tx, "alice@example.com", "test", clock.utc_now())
    found = accounts.find_principal(tx, accounts.hash_key(made["api_key"]))
    assert found is not None
    return found, made["api_key"]


@dataclass
class Exchange:
    """One request, and what was answered so far. Its client takes what is sent as long as `takes` is set."""

    method: str
    path: str
    key: str
    body: bytes | None = b""
    """None for one that never comes."""
    query: bytes = b""
    sent: list[Message] = field(default_factory=list)
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self, front: Front) -> asyncio.Task[None]:
        """Ask."""
        headers = [(b"authorization", f"Bearer {self.key}".encode()), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": self.method,
            "path": self.path,
            "query_string": self.query,
            "headers": headers,
            "client": ("127.0.0.1", 1),
        }
        coming = [] if self.body is None else [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> Message:
            if coming:
                return coming.pop()
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self.sent.append(message)
            await self.takes.wait()

        return asyncio.get_running_loop().create_task(front(scope, receive, send))

    async def all(self, front: Front) -> Exchange:
        """Ask, and take everything."""
        self.takes.set()
        await self.start(front)
        return self

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def pieces(self) -> list[bytes]:
        """Of the answer's body, as they were sent."""
        return [message["body"] for message in self.sent[1:] if message["body"]]


async def turns(count: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- keys that ended ------------------------------------------------------------------------------------------


async def test_a_key_that_ended_is_remembered_as_long_as_a_request_may_be_on_its_way_and_no_longer(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as parts:
        gateway, (caller, _) = parts.gateway, await parts.store.write(_sign_up)
        assert caller.key_id is not None
        gateway.end_of_key(caller.key_id)
        gateway.end_of_key("key_another")
        way = gateway.limits.body_timeout_s + REVOKED_S
        gateway.revoked[caller.key_id] -= way - 10
        gateway.tick()
        assert set(gateway.revoked) == {caller.key_id, "key_another"}
        with pytest.raises(errors.NotAuthenticated):
            gateway.make_room(caller, {})
        gateway.revoked[caller.key_id] -= 10
        gateway.tick()
        assert set(gateway.revoked) == {"key_another"}


# --- a full disk ----------------------------------------------------------------------------------------------


async def test_room_on_a_disk_that_was_full_is_noticed_though_nobody_may_hold_anything_before(tmp_path: Path) -> None:
    """Found by a proof: while the disk was full nothing new was held, so that nothing was written, and only a write
    found out that there was room. Callers were refused until the next check of the books, for up to five minutes."""
    async with opened(tmp_path) as parts:
        gateway, (caller, _) = parts.gateway, await parts.store.write(_sign_up)
        (pages,) = await parts.store.write(lambda tx: tx.execute("PRAGMA page_count").fetchone())
        await parts.store.write(lambda tx: tx.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(errors.StoreUnavailable):
            await parts.store.write(accounts.sign_up, "x" * 100_000, "test", clock.utc_now())
        with pytest.raises(errors.StoreUnavailable):
            gateway.make_room(caller, {})
        await parts.store.write(lambda tx: tx.execute("PRAGMA max_page_count = 1000000").fetchone())
        parts.store.full = True  # as it was before that write
        await app.Jobs(parts).once("journal")
        gateway.make_room(caller, {})


# --- a stop that has been patient enough ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/keys"), ("POST", "/v1/chat/completions"), ("POST", "/v1/messages"), ("POST", "/v1/v1/responses")],
)
async def test_whoever_is_cancelled_before_anything_was_sent_reads_that_the_gateway_restarts(
    method: str, path: str, tmp_path: Path
) -> None:
    async with shop(tmp_path, 1000) as (parts, caller):
        key = (await parts.store.write(accounts.create_key, caller.user_id, "more", clock.utc_now()))["api_key"]
        one = Exchange(method, path, key, body=None)
        one.takes.set()
        task = one.start(app.create_app(parts))
        await turns()
        task.cancel()
        await asyncio.wait([task])
        told = json.loads(b"".join(one.pieces))
        assert (one.status, one.headers["content-type"]) == (503, "application/json")
        assert one.headers["x-request-id"].startswith("req_") and "x-should-retry" not in one.headers
        assert told["error"]["message"] == "The gateway is restarting; try again in a moment."
        assert (told.get("type") == "error") == (path == "/v1/messages")
        assert parts.gateway.body_bytes == 0


@pytest.mark.parametrize(("path", "ask"), [("/v1/chat/completions", chat), ("/v1/messages", message)])
async def test_whoever_is_cancelled_after_something_was_sent_reads_that_it_may_have_been_charged(
    path: str, ask: Any, tmp_path: Path
) -> None:
    async with shop(tmp_path, 1000) as (parts, caller):
        key = (await parts.store.write(accounts.create_key, caller.user_id, "more", clock.utc_now()))["api_key"]
        asked = ask(directed("Hi", fault="stall_headers", hang_s=0.5))
        one = Exchange("POST", path, key, json.dumps(asked).encode())
        one.takes.set()
        task = one.start(app.create_app(parts))
        async with asyncio.timeout(20):
            while not parts.gateway.live:
                await asyncio.sleep(0)
        await turns()
        task.cancel()
        await asyncio.wait([task])
        told = json.loads(b"".join(one.pieces))
        assert (one.status, one.headers["x-should-retry"]) == (502, "false")
        assert one.headers["request-id"].startswith("req_")
        assert told["error"]["message"].endswith("(the gateway stopped); what was received may have been charged.")
        assert (told.get("type") == "error") == (path == "/v1/messages")
        (live,) = parts.gateway.live.values()
        await asyncio.wait([live.task])
        assert live.receipt is not None


# --- tables ---------------------------------------------------------------------------------------------------


def _use(tx: Tx, caller: Principal, count: int) -> None:
    """So many settled requests that cost nothing."""
    (process_id,) = tx.execute("SELECT max(id) FROM processes").fetchone()
    now = clock.utc_now()
    for number in range(count):
        tx.execute(
            "INSERT INTO usage_log (id, user_id, process_id, wire, provider, model, status, quote, held, settled_seq,"
            " created_at, ended_at) VALUES (?, ?, ?, 'openai_chat', 'openai', 'm', 'settled', 0, 0, ?, ?, ?)",
            (
                f"{accounts.first_id('req_', 1_767_225_600)}{number:06d}",
                caller.user_id,
                process_id,
                number + 1,
                now,
                now,
            ),
        )


def asks_for_table(key: str) -> Exchange:
    return Exchange("GET", "/v1/usage", key, query=b"format=csv&since=2020-01-01")


async def test_a_table_is_made_and_sent_page_by_page_and_has_every_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        front, count = app.create_app(parts), 2 * PAGE_ROWS
        caller, key = await parts.store.write(_sign_up)
        await parts.store.write(_use, caller, count)
        table = await asks_for_table(key).all(front)
        assert (table.status, table.headers["content-type"]) == (200, "text/csv; charset=utf-8")
        assert [piece.count(b"\r\n") for piece in table.pieces] == [PAGE_ROWS + 1, PAGE_ROWS]
        rows = list(csv.DictReader(io.StringIO(b"".join(table.pieces).decode())))
        assert tuple(rows[0]) == usage.COLUMNS
        assert [int(row["id"][-6:]) for row in rows] == list(range(count))


async def test_a_user_reads_one_table_at_a_time_and_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        front = app.create_app(parts)
        caller, key = await parts.store.write(_sign_up)
        _, other = await parts.store.write(_sign_up)
        await parts.store.write(_use, caller, PAGE_ROWS + 1)
        for leaves in (False, True):
            first = asks_for_table(key)
            task = first.start(front)
            async with asyncio.timeout(20):
                while not first.sent:
                    await asyncio.sleep(0)
            second = await asks_for_table(key).all(front)
            assert (second.status, second.headers["retry-after"]) == (429, "5")
            assert json.loads(second.pieces[0])["error"]["type"] == "rate_limit_error"
            assert (await Exchange("GET", "/v1/usage", key).all(front)).status == 200
            assert (await asks_for_table(other).all(front)).status == 200
            (first.gone if leaves else first.takes).set()
            await task
            assert len(first.pieces) == (0 if leaves else 2)
        assert (await asks_for_table(key).all(front)).status == 200


async def test_a_caller_who_does_not_read_a_table_is_not_waited_for() -> None:
    async def pages() -> AsyncIterator[str]:
        for number in range(3):
            yield f"{number}\r\n"

    sent: list[Message] = []
    ended: list[bool] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 3:
            await asyncio.Event().wait()

    table = Table(pages(), lambda: ended.append(True), stalled_s=0.01)
    await table({"type": "http"}, receive, send)
    assert [message.get("body") for message in sent] == [None, b"0\r\n", b"1\r\n"]
    assert ended == [True]


async def test_a_table_ends_with_what_was_asked_before_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        caller, _ = await parts.store.write(_sign_up)
        await parts.store.write(_use, caller, 3)
        since, until = (datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in (0, 1))
        text, after = await parts.store.read(usage.table, caller.user_id, since, until, None, 3)
        assert (text.count("\r\n"), after is None) == (4, False)
        assert await parts.store.read(usage.table, caller.user_id, since, until, after, 3) == ("", None)
        none, _ = await parts.store.read(usage.table, caller.user_id, since, since, None, 3)
        assert none.count("\r\n") == 1


# --- lines that the log has lost ------------------------------------------------------------------------------


async def test_the_log_and_the_metrics_tell_how_many_lines_are_missing(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    async with opened(tmp_path) as parts:
        gateway, jobs = parts.gateway, app.Jobs(parts)
        filled = fill(writes)
        gateway.log = Log("info", ThreadedWriter(writes, most=10), asyncio.get_running_loop().call_soon)
        for _ in range(25):
            gateway.log.info("counted", gateway.now())
            await turns(1)
        assert gateway.log.lost == 15
        await jobs.tick()
        await turns()
        lost = gateway.log.lost
        assert lost > 15  # what would have said so is missing, too
        assert len(await asyncio.to_thread(read, reads, filled + 10)) == filled + 10
        await jobs.tick()
        (line, *_) = await asyncio.to_thread(read, reads, 1)
        assert (line["event"], line["kind"]) == ("alert", "log_lines_lost") and line["lines"] >= lost
        families = text_string_to_metric_families(gateway.metrics.text().decode())
        told = {
            s.labels["kind"]: s.value for each in families for s in each.samples if s.name == "goosestack_alerts_total"
        }
        assert told["log_lines_lost"] >= 2
        gateway.log.close()
    os.close(reads)
    os.close(writes)
