"""A daemon's parts in this process, whose coroutines can be interrupted at any of their awaits.

`House.open` opens the real parts, with the built-in upstream and the fake Stripe on loopback. `House.ask` is what the
HTTP server would do with one request. An `Interruption` says in which coroutine, at which of its suspensions, which
error is thrown in; it is driven there by hand, one step at a time, exactly as the event loop would but for that. It
notes where in the product the coroutine stood then, and which others were made meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import types
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import starlette

from goosestack import accounts, admin, app, clock, demo, ledger
from goosestack.accounts import Principal
from goosestack.config import Config
from goosestack.demo import stripe
from goosestack.front import Front
from goosestack.store import Tx
from tests.awaits import ROOT, Place, standing_at
from tests.tills import KEY, SECRET
from tests.world import PRICES

HANDLER = "Front.__call__"
RELAY = "Relay.run"
PATIENCE_S = 20.0
DEMO = Path(demo.__file__).parent
FRAMEWORK = (Path(starlette.__file__).parent, Path(anyio.__file__).parent)

Throws = Callable[[], BaseException] | None
"""An error to throw in; None: the task is cancelled, as the event loop does it."""
ERRORS: dict[str, Throws] = {"cancelled": None, "raised into": lambda: RuntimeError("something unforeseen")}
HARSHER: dict[str, Throws] = {**ERRORS, "struck": asyncio.CancelledError}
"""The loop's own cancellation waits for a write that is on its way; this one does not even do that."""


At = int | Place
"""The number of a suspension, or where the product stands there first."""


@dataclass(slots=True)
class Interruption:
    """What is thrown where: by a coroutine's name, and which of its suspensions, each once. Only the first coroutine of
    each name is interrupted, in the order in which they are made."""

    plan: Mapping[tuple[str, At], Throws] = field(default_factory=dict)
    suspensions: Counter[str] = field(default_factory=Counter)
    struck: int = 0
    """How much of the plan has come about."""
    watched: set[str] = field(init=False)
    places: set[Place] = field(default_factory=set)
    """Where the product stood when it was struck, in every function on the way down."""
    seen: dict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))
    """Where each coroutine stood at its suspensions, in the innermost function."""
    hit: dict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))
    """The same of those that were struck."""
    made: set[str] = field(default_factory=set)
    """The product's coroutines that became tasks, by name; and those of the framework that run it."""
    _left: dict[tuple[str, At], Throws] = field(init=False)

    def __post_init__(self) -> None:
        self.watched = {name for name, _ in self.plan}
        self._left = dict(self.plan)

    def task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **given: Any) -> asyncio.Task[Any]:
        """Make a task, as a loop's task factory."""
        name = coroutine.__qualname__
        if _runs_the_product(getattr(coroutine, "cr_code", None)):
            self.made.add(name)
        if name in self.watched:
            self.watched.discard(name)
            coroutine = self._driven(name, coroutine)
        return asyncio.Task(coroutine, loop=loop, **given)

    async def _driven(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await self._drive(name, coroutine)

    @types.coroutine
    def _drive(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            waits_for = coroutine.send(None)
            while True:
                strikes, throws = self._next(name, list(standing_at(coroutine)))
                if strikes and throws is None:
                    asyncio.current_task().cancel()  # type: ignore[union-attr]
                if throws is not None:
                    if isinstance(waits_for, asyncio.Future):
                        waits_for._asyncio_future_blocking = False  # as the event loop would, on taking it
                    waits_for = coroutine.throw(throws())
                    continue
                try:
                    answer = yield waits_for
                except BaseException as error:  # what it waited for has failed
                    waits_for = coroutine.throw(error)
                else:
                    waits_for = coroutine.send(answer)
        except StopIteration as ended:
            return ended.value

    def _next(self, name: str, stands: list[Place]) -> tuple[bool, Throws]:
        """Count a suspension; whether it is to be struck, and by what."""
        number = self.suspensions[name]
        self.suspensions[name] += 1
        self.seen[name] |= set(stands[-1:])
        either: list[At] = [number, *stands[-1:]]
        for at in either:
            if (name, at) in self._left:
                self.struck += 1
                self.places |= set(stands)
                self.hit[name] |= set(stands[-1:])
                return True, self._left.pop((name, at))
        return False, None


def _runs_the_product(code: types.CodeType | None) -> bool:
    path = None if code is None else Path(code.co_filename)
    if path is None or path.is_relative_to(DEMO):
        return False
    return any(path.is_relative_to(folder) for folder in (ROOT, *FRAMEWORK))


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as it is sent: a body that is an object goes as JSON."""

    method: str
    path: str
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    pause_s: float = 0
    """How long its caller takes to read what comes first."""


@dataclass(slots=True)
class Told:
    """What came of a request: its answer, as far as it went, and what it ended with instead of an end."""

    status: int = 0
    body: bytes = b""
    whole: bool = False
    error: BaseException | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Nothing more is to come."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A user with a key and an account."""

    id: str
    key: str
    key_id: str
    account_id: int


@dataclass(slots=True)
class House:
    """The opened parts, and the application on them."""

    parts: app.Parts
    front: Front
    operator: admin.Admin
    till: stripe.Till
    """The fake Stripe's side."""

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, **settings: Any) -> AsyncIterator[House]:
        """Open everything, in an empty folder; at the end the books are checked from the beginning."""
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # what a fake says of a connection that was cut
        upstream = demo.make_app(openai_key="sk-test-key", anthropic_key="sk-ant-test-key")
        runner, port = await demo.start(upstream)
        till = stripe.Till(KEY)
        till_runner, till_port = await stripe.start(till)
        url, public = f"http://127.0.0.1:{port}", "https://llm.example.com"
        config = Config(
            db_path=folder / "test.db",
            openai_api_key="sk-test-key",
            openai_base_url=f"{url}/v1",
            anthropic_api_key="sk-ant-test-key",
            anthropic_base_url=url,
            prices_file=PRICES,
            log_level="error",
            rate_limit_max_requests=1_000_000,
            signups_per_hour=1_000_000,
            stripe_secret_key=KEY,
            stripe_webhook_secret=(SECRET,),
            stripe_api_base=f"http://127.0.0.1:{till_port}",
            public_url=public,
            drain_s=0,
            disconnect_grace_s=0,
            **settings,
        )
        try:
            async with app.running(config) as parts:
                made = admin.Admin(parts.store, clock.utc_now, parts.plans, parts.gateway, parts.cashier, parts.agents)
                yield cls(parts, app.create_app(parts), made, till)
                books = await parts.store.read(lambda tx: ledger.check(tx, full=True))
                assert books.wrong == []
        finally:
            await runner.cleanup()
            await till_runner.cleanup()

    async def resident(self, cents: int = 1000) -> Resident:
        """A new user with so many cents."""
        return await self.parts.store.write(_resident, cents)

    async def ask(self, asked: Asked, interruption: Interruption | None = None, *, quiet: bool = True) -> Told:
        """Ask, interrupted; and, unless something else is under way, wait until nothing is any more."""
        told = Told()
        told.error = await self.run(self.front(_scope(asked), _receive(asked, told), _send(asked, told)), interruption)
        told.over.set()
        if quiet:
            await self.quiet()
        return told

    async def run(self, coroutine: Coroutine[Any, Any, Any], interruption: Interruption | None) -> BaseException | None:
        """Run a coroutine as a task, interrupted, within `PATIENCE_S`; what it has raised."""
        loop = asyncio.get_running_loop()
        if interruption is not None:
            loop.set_task_factory(interruption.task)
        try:
            task = loop.create_task(coroutine)
            await asyncio.wait([task], timeout=PATIENCE_S)
            assert task.done(), "it hangs"
        finally:
            if interruption is not None:
                loop.set_task_factory(None)
        return asyncio.CancelledError() if task.cancelled() else task.exception()

    async def quiet(self) -> None:
        """Once every relay has ended: nothing is held, no room is taken, no lock is kept, no table is being read."""
        gateway, billing = self.parts.gateway, self.parts.billing
        if gateway.live:
            await asyncio.wait([relay.task for relay in gateway.live.values()], timeout=PATIENCE_S)
        await asyncio.sleep(0)
        assert gateway.live == {}, f"a relay hangs: {gateway.live}"
        held = await self.parts.store.read(_held)
        assert held == [], f"held for good: {held}"
        assert (gateway.body_bytes, gateway.bodies) == (0, {}), f"room for bodies is lost: {gateway.bodies}"
        assert (billing.door.body_bytes, billing.door.bodies) == (0, {}), "room for webhooks is lost"
        assert not any(lock.locked() for lock in billing.busy.values()), "a lock is kept"
        assert not self.parts.api._reading_tables, "a table is read for good"
        if self.parts.agents is not None:
            async with asyncio.timeout(PATIENCE_S), self.parts.agents.collector._lock:
                pass  # which the job may have for a moment

    async def answers(self) -> None:
        """Whether it still serves, and still writes: health, and a billed request of somebody new."""
        alice = await self.resident()
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
        paid = await self.ask(Asked("POST", "/v1/chat/completions", body, bearer(alice)))
        assert (paid.status, paid.whole) == (200, True), f"it serves no more: {paid}"
        rows = await self.parts.store.read(rows_of, alice.id)
        assert [row[1] for row in rows] == ["settled"], f"it writes no more: {rows}"


@asynccontextmanager
async def shop(folder: Path, cents: int) -> AsyncIterator[tuple[app.Parts, Principal]]:
    """The parts of a house, and a customer with so many cents."""
    async with House.open(folder) as house:
        alice = await house.resident(cents)
        yield house.parts, Principal(alice.id, alice.key_id, alice.account_id)


def bearer(resident: Resident) -> dict[str, str]:
    """Whose request it is."""
    return {"authorization": f"Bearer {resident.key}"}


def rows_of(tx: Tx, user_id: str) -> list[tuple[str, str, int]]:
    """A user's rows: id, status, what was charged."""
    return tx.execute("SELECT id, status, charged FROM usage_log WHERE user_id = ?", (user_id,)).fetchall()


def _held(tx: Tx) -> list[tuple[Any, ...]]:
    open_rows = tx.execute("SELECT id, wire FROM usage_log WHERE status = 'held'").fetchall()
    return [*open_rows, *tx.execute("SELECT id, held FROM accounts WHERE held <> 0").fetchall()]


def _resident(tx: Tx, cents: int) -> Resident:
    now = clock.utc_now()
    user_id = accounts.create_user(tx, "alice@example.com", now)
    account_id = ledger.open_account(tx, user_id, "usd_cents", now)
    ledger.post(tx, account_id, "grant", user_id, cents, now)
    made = accounts.create_key(tx, user_id, "test", now)
    return Resident(user_id, made["api_key"], made["id"], account_id)


def _scope(asked: Asked) -> dict[str, Any]:
    path, _, query = asked.path.partition("?")
    data = _data(asked)
    headers = {"host": "x", **asked.headers}
    if data:
        headers |= {"content-type": "application/json", "content-length": str(len(data))}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": (asked.address, 5),
        "server": ("127.0.0.1", 80),
    }


def _data(asked: Asked) -> bytes:
    if asked.body is None or isinstance(asked.body, bytes):
        return asked.body or b""
    return json.dumps(asked.body).encode()


def _receive(asked: Asked, told: Told) -> Callable[[], Coroutine[Any, Any, dict[str, Any]]]:
    """The body in two pieces, and then nothing until its caller goes."""
    data = _data(asked)
    pieces = [data[: len(data) // 2], data[len(data) // 2 :]]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        await told.over.wait()
        return {"type": "http.disconnect"}

    return receive


def _send(asked: Asked, told: Told) -> Callable[[Any], Coroutine[Any, Any, None]]:
    async def send(message: Any) -> None:
        await asyncio.sleep(0 if told.body else asked.pause_s)
        if message["type"] == "http.response.start":
            assert not told.status, "an answer is begun twice"
            told.status = message["status"]
        else:
            told.body += message.get("body", b"")
            told.whole = not message.get("more_body", False)
            if told.whole:
                told.over.set()

    return send
