"""A gateway's metering without a gateway: real books in memory, a clock, chance, and receivers at the end of a wire
that fails in every way that is asked for. A `Crash` is the death of the process, wherever it comes.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

from yarl import URL

from goosestack import ledger, outbox
from goosestack.demo.openmeter import Receiver, Reply
from goosestack.http import Lost, NotSent
from goosestack.ledger import COUNTS, Charge, NewHold
from goosestack.meters import Meter
from goosestack.sinks import Sink
from goosestack.store import Tx
from goosestack.store.migrations import MIGRATIONS

P = ParamSpec("P")
T = TypeVar("T")

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()
HOUR_S = 3600.0
USERS = {"alice": "cus_alice", "bob": "cus_bob", "carol": None}
"""The users, and what Stripe calls them."""


class Crash(BaseException):
    """The process was killed."""


@dataclass
class Clock:
    """The time, which stands until it is moved."""

    seconds: float = START

    def now(self) -> str:
        moment = datetime.fromtimestamp(self.seconds, UTC)
        return moment.isoformat(timespec="milliseconds")[:-6] + "Z"

    def unix(self) -> float:
        return self.seconds


class Books:
    """A `Store` on a real database in memory: a write is durable at once, unless the process dies of it."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.execute("PRAGMA foreign_keys = ON")
        for step in MIGRATIONS:
            self.db.executescript(step)
        self.full = False
        self.dies_at: tuple[int, bool] | None = None
        """The process dies in the write after so many more: before it is durable, or after."""

    def write(self, verb: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        dies, after = False, False
        if self.dies_at is not None:
            number, after = self.dies_at
            dies, self.dies_at = number == 0, None if number == 0 else (number - 1, after)
        self.db.execute("BEGIN IMMEDIATE")
        try:
            if dies and not after:
                raise Crash
            answer.set_result(verb(self.db, *args, **kwargs))
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
        if dies:
            raise Crash
        return answer

    def read(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        async def run() -> T:
            return query(self.db, *args, **kwargs)

        return run()

    def peek(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return query(self.db, *args, **kwargs)


class Answer:
    """An answer as `goosestack.http` has it."""

    def __init__(self, reply: Reply) -> None:
        self.status, self._body = reply.status, reply.body
        self.headers: Mapping[str, str] = dict(reply.headers)

    async def read(self, most: int) -> bytes:
        assert len(self._body) <= most
        return self._body

    def close(self) -> None:
        pass


class Wire:
    """Between the sinks and the receivers, which are told apart by their hosts. `faults` come in this order:

    `refused` (no connection), `lost` and `timeout` (no answer), `503` and other statuses, `page` (a web page in place
    of a good answer), `crash`; each with ` after` where the receiver took the request all the same. `fine` is none.
    """

    def __init__(self, receivers: Mapping[str, Receiver]) -> None:
        self._receivers = receivers
        self.faults: dict[str, list[str]] = {host: [] for host in receivers}
        self.headers: dict[str, str] = {}
        """What an answer that is a fault carries."""
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []
        self.dead = False

    async def post(self, url: URL, headers: Mapping[str, str], body: bytes, /) -> Answer:
        host = url.host or ""
        if self.dead:
            raise Crash
        receiver, faults = self._receivers[host], self.faults[host]
        fault = faults.pop(0) if faults else "fine"
        kind, _, after = fault.partition(" ")
        self.asked.append((host, headers, body))
        await asyncio.sleep(0)
        reply = receiver.take(headers, body) if after or kind == "fine" else Reply(500)
        match kind:
            case "fine":
                return Answer(reply)
            case "refused":
                raise NotSent("ConnectionRefusedError")
            case "timeout":
                raise TimeoutError
            case "lost":
                raise Lost("ServerDisconnectedError", reused=False)
            case "crash":
                self.dead = True
                raise Crash
            case "page" if reply.status < 300:
                return Answer(Reply(200, b"<html>Just a moment", {"content-type": "text/html"}))
        return Answer(reply if kind == "page" else Reply(int(kind), b"a fault was ordered", self.headers))


@dataclass
class Alerts:
    """What the operator was told."""

    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def alert(self, kind: str, **facts: object) -> None:
        self.told.append((kind, facts))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


class Till:
    """The books, what is settled in them, and the meters that report it."""

    def __init__(self, seed: int = 1) -> None:
        self.clock, self.books, self.alerts = Clock(), Books(), Alerts()
        self.chance = random.Random(seed)
        self.count = 0
        now, db = self.clock.now(), self.books.db
        for user, customer in USERS.items():
            db.execute(
                "INSERT INTO users (id, email, stripe_customer_id, created_at) VALUES (?, ?, ?, ?)",
                (user, f"{user}@example.com", customer, now),
            )
            for unit, ref in (("usd_cents", ""), ("usd_cents", "overage:2026-11"), ("tokens", "2026-11")):
                account = ledger.open_account(db, user, unit, now, ref)
                ledger.post(db, account, "grant", f"{user} {unit} {ref}", 1_000_000_000, now)
        self.process = ledger.begin_process(db, "test", now)

    def close(self) -> None:
        assert ledger.check(self.books.db, full=True).wrong == []
        self.books.db.close()

    # --- what is settled ---

    def settle(
        self,
        user: str = "alice",
        read: int = 10,
        written: int = 5,
        nanos: int = 2_000,
        *,
        estimated: bool = False,
        payer: str = "credits",
    ) -> str:
        """A request that is settled; its id."""
        self.count += 1
        id = f"req_{self.count:06}"
        self.hold(id, user, payer, max(nanos, read + written))
        self._end(id, read, written, nanos, payer, estimated=estimated)
        return id

    def hold(self, id: str, user: str, payer: str, most: int) -> None:
        """Money that is set aside for a request."""
        unit, ref = {"credits": ("usd_cents", ""), "overage": ("usd_cents", "overage:2026-11"),
                     "allowance": ("tokens", "2026-11"), "nobody": ("", "")}[payer]  # fmt: skip
        account = ledger.open_account(self.books.db, user, unit, self.clock.now(), ref) if unit else None
        hold = NewHold(id, user, self.process, "openai_chat", "openai", "gpt", account_id=account)
        held = ledger.authorize(self.books.db, hold, 0, most if unit else 0, self.clock.now())
        assert held.held is not None

    def release(self, user: str = "alice") -> None:
        """A request that costs nothing."""
        self.count += 1
        self.hold(f"req_{self.count:06}", user, "credits", 5)
        ledger.release(self.books.db, f"req_{self.count:06}", "refused_400", self.clock.now())

    def correct(self, id: str, read: int, written: int, nanos: int, payer: str = "credits") -> None:
        """The truth of a request that was settled on an estimate."""
        self._end(id, read, written, nanos, payer, estimated=False)

    def _end(self, id: str, read: int, written: int, nanos: int, payer: str, *, estimated: bool) -> None:
        counts = (read, written, *(0,) * (len(COUNTS) - 2))
        amount = {"allowance": read + written, "nobody": 0}.get(payer, nanos)
        charge = Charge(amount, 0 if payer == "nobody" else nanos, counts, estimated=estimated)
        ledger.settle(self.books.db, id, charge, "completed", self.clock.now())

    # --- what is reported ---

    def meter(self, sink: Sink) -> Meter:
        """A meter of a process that has just begun."""
        return Meter(self.books, sink, self.alerts, self.clock.now, self.chance)

    def turn(self, meter: Meter) -> bool:
        """One turn; a crash comes out of it as one."""
        return run(meter.turn())

    def report(self, meter: Meter, most: int = 100) -> None:
        """Turns until nothing is due."""
        for _ in range(most):
            if not self.turn(meter):
                return
        raise AssertionError("there is always more to report")

    def status(self, sink: str) -> dict[str, Any]:
        """How far a sink has got."""
        return next(one for one in outbox.status(self.books.db, self.clock.now(), (sink,)) if one["sink"] == sink)

    def dead(self, sink: str) -> list[dict[str, Any]]:
        """Its dead letters."""
        return outbox.dead_letters(self.books.db, sink, 1000)

    def rows(self) -> Sequence[sqlite3.Row]:
        """All settled rows, in order."""
        self.books.db.row_factory = sqlite3.Row
        rows = self.books.db.execute("SELECT * FROM usage_log WHERE status = 'settled' ORDER BY settled_seq").fetchall()
        self.books.db.row_factory = None
        return rows


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop of its own, which ends whatever is left of it."""
    with asyncio.Runner() as runner:
        return runner.run(coroutine)
