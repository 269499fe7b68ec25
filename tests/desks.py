"""A cashier at the fake Stripe, on real books, whose clock and customers are in the test's hand."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goosestack import accounts, autotopup, ledger, payments
from goosestack.cashier import Cashier
from goosestack.clock import later, utc_now
from goosestack.errors import TillUnavailable
from goosestack.payments import Payment, Terms
from goosestack.store import Tx
from goosestack.store.sqlite import SqliteStore, connect_read_only
from goosestack.till import StripeTill
from tests.tills import KEY, Till

TOPUPS = {1000: 1000, 2500: 2600}
TERMS = Terms(livemode=False, notify=True)


@dataclass
class Desk:
    """A cashier at the fake Stripe, on real books, whose clock and customers are in the test's hand."""

    till: Till
    db: Path
    alerts: list[str] = field(default_factory=list)
    customers: dict[str, str] = field(default_factory=dict)
    sells: bool = True
    topups: dict[int, int] = field(default_factory=lambda: dict(TOPUPS))
    start: str = field(default_factory=utc_now)
    clock: str = field(init=False)

    def __post_init__(self) -> None:
        self.clock = self.start

    @classmethod
    def open(cls, folder: Path) -> Desk:
        return cls(Till.start(folder), folder / "books.sqlite3")

    def close(self) -> None:
        self.till.stop()
        assert ledger.check(self.connected(), full=True).wrong == []

    def connected(self) -> sqlite3.Connection:
        return connect_read_only(self.db)

    def rows(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        with closing(self.connected()) as db:
            return db.execute(sql, args).fetchall()

    def time(self, seconds: float) -> str:
        return later(self.start, seconds)

    def write(self, verb: Callable[..., Any], *args: object) -> Any:
        async def run() -> Any:
            store = SqliteStore(self.db)
            try:
                return await store.write(verb, *args)
            finally:
                await store.close()

        return asyncio.run(run())

    def customer(self, name: str, card: str | None = "ok", amount: int = 1000) -> str:
        """A user with a saved card (or None), and automatic top-ups; the id."""
        _, made, _ = self.till.ask("POST", "/v1/customers")
        if card is not None:
            self.till.card(made["id"], card)

        def begin(tx: Tx) -> str:
            user = accounts.create_user(tx, f"{name}@example.com", self.start)
            payments.set_customer(tx, user, made["id"])
            ledger.open_account(tx, user, "usd_cents", self.start)
            autotopup.enable(tx, user, 500, amount, amount, later(self.start, -60))
            return user

        user: str = self.write(begin)
        self.customers[user] = made["id"]
        return user

    def grant(self, user: str, cents: int) -> None:
        """The operator gives so much."""

        def give(tx: Tx) -> None:
            ledger.post(tx, ledger.open_account(tx, user, "usd_cents", self.start), "grant", "gift", cents, self.start)

        self.write(give)

    def tick(self, *times: float) -> None:
        """What a daemon's cashier does at these times, in seconds from the start; each call is a process."""

        async def run() -> None:
            async with self.at_work() as cashier:
                for seconds in times:
                    self.clock = self.time(seconds)
                    await cashier.top_up()

        asyncio.run(run())

    def reconcile(self, seconds: float) -> dict[str, Any]:
        """What an operator's cashier finds at a time."""

        async def run() -> dict[str, Any]:
            async with self.at_work() as cashier:
                self.clock = self.time(seconds)
                return await cashier.reconcile()

        return asyncio.run(run())

    @asynccontextmanager
    async def at_work(self, url: str | None = None, **more: Any) -> AsyncIterator[Cashier]:
        """A cashier, as long as its process lives; before whoever answers at another URL, with another `sell`."""
        store, till = SqliteStore(self.db), StripeTill(KEY, url or self.till.url)

        async def sell(user: str, amount: int, key: None) -> Payment:
            if not self.sells:
                raise TillUnavailable()
            return await store.write(payments.begin, user, "credits", amount, amount, None, None, TERMS, self.clock)

        given: dict[str, Any] = {"sell": sell, **more}
        try:
            yield Cashier(
                store=store,
                till=till,
                terms=TERMS,
                topups=self.topups,
                now=lambda: self.clock,
                alert=lambda kind, **facts: self.alerts.append(f"{kind} {facts}"),
                **given,
            )
        finally:
            await till.close()
            await store.close()

    def statuses(self, user: str) -> list[str]:
        rows = self.rows("SELECT status FROM payments WHERE kind = 'auto' AND user_id = ? ORDER BY created_at", user)
        return [row[0] for row in rows]

    def shown(self, user: str) -> dict[str, Any]:
        with closing(self.connected()) as db:
            return autotopup.shown(db, user)

    def told(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT json_extract(body, '$.type') FROM notices ORDER BY rowid")]

    def charges(self) -> int:
        return len(self.till.objects("payment_intent"))
