"""What the operator's own program is told: an outbox, delivered at least once, signed as Standard Webhooks are.

A notice is a row that is written in the transaction of what it tells, so that neither is there without the other.
Delivery is a POST of JSON, `{"id", "type", "timestamp", "data"}`, with the same `webhook-id` each time.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from yarl import URL

from goosestack import standard_webhooks
from goosestack.clock import later
from goosestack.http import Broken, Client, Lost, NotSent
from goosestack.store import Store, Tx

WAITS_S = (5, 60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Between attempts; after the last a notice is given up, and kept."""

TIMEOUT_S = 10.0
BATCH = 20
_MOST_ANSWER = 64 * 1024


def tell(tx: Tx, kind: str, data: dict[str, object], now: str) -> None:
    """Put a notice into the outbox. `kind` is as `payment.failed`."""
    id = f"msg_{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
    body = json.dumps({"id": id, "type": kind, "timestamp": now, "data": data}, separators=(",", ":"))
    tx.execute("INSERT INTO notices (id, body, next_at, created_at) VALUES (?, ?, ?, ?)", (id, body, now, now))


def tell_of_low_balances(tx: Tx, below: int, now: str) -> int:
    """Tell once of every user whose balance in cents has fallen below so much; again once it had been above it."""
    tx.execute(
        "DELETE FROM low_balances WHERE (SELECT a.balance FROM accounts a WHERE a.id = account_id) >= ?",
        (below,),
    )
    rows = tx.execute(
        "SELECT a.id, a.user_id, a.balance FROM accounts a WHERE a.unit = 'usd_cents' AND a.ref = '' AND a.balance < ?"
        " AND NOT EXISTS (SELECT 1 FROM low_balances l WHERE l.account_id = a.id)"
        " AND EXISTS (SELECT 1 FROM entries e WHERE e.account_id = a.id) ORDER BY a.balance, a.id",
        (below,),
    ).fetchall()
    for account_id, user_id, balance in rows:
        tx.execute("INSERT INTO low_balances (account_id, told_at) VALUES (?, ?)", (account_id, now))
        tell(tx, "balance.low", {"user_id": user_id, "balance_cents": balance, "below_cents": below}, now)
    return len(rows)


@dataclass(frozen=True, slots=True)
class Notice:
    """One that is due."""

    id: str
    body: str
    attempts: int


def due(tx: Tx, now: str) -> list[Notice]:
    """The notices that are to be delivered now."""
    rows = tx.execute(
        "SELECT id, body, attempts FROM notices WHERE next_at <= ? ORDER BY next_at, id LIMIT ?", (now, BATCH)
    ).fetchall()
    return [Notice(*row) for row in rows]


def delivered(tx: Tx, id: str, now: str) -> None:
    """One was taken."""
    tx.execute("UPDATE notices SET attempts = attempts + 1, next_at = NULL, delivered_at = ? WHERE id = ?", (now, id))


def failed(tx: Tx, notice: Notice, now: str) -> bool:
    """One was not taken; whether it is given up."""
    over = notice.attempts >= len(WAITS_S)
    next_at = None if over else later(now, WAITS_S[notice.attempts])
    tx.execute("UPDATE notices SET attempts = ?, next_at = ? WHERE id = ?", (notice.attempts + 1, next_at, notice.id))
    return over


class Notifier:
    """Delivers what is due to one address."""

    def __init__(
        self, store: Store, client: Client, url: str, secret: str | None, now: Callable[[], str], below: int
    ) -> None:
        """`below` is the balance in cents below which a user's is low; 0 for never."""
        self._store, self._client, self._url, self._secret, self._now = store, client, URL(url), secret, now
        self._below = below

    async def watch_balances(self) -> None:
        """Tell of balances that have become low."""
        if self._below:
            await self._store.write(tell_of_low_balances, self._below, self._now())

    async def deliver(self) -> list[str]:
        """Attempt every notice that is due, the oldest first; the ids of those that are given up."""
        given_up = []
        for notice in await self._store.read(due, self._now()):
            if await self._post(notice):
                await self._store.write(delivered, notice.id, self._now())
            elif await self._store.write(failed, notice, self._now()):
                given_up.append(notice.id)
        return given_up

    async def _post(self, notice: Notice) -> bool:
        body, timestamp = notice.body.encode(), int(datetime.fromisoformat(self._now()).timestamp())
        headers = standard_webhooks.headers(self._secret, notice.id, timestamp, body)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._client.post(self._url, headers, body)
                try:
                    await answer.read(_MOST_ANSWER)
                finally:
                    answer.close()
        except (NotSent, Lost, Broken, TimeoutError):
            return False
        return 200 <= answer.status < 300
