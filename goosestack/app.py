"""READ FIRST: every route, every job, and how the parts are handed to each other.

`running` is the daemon's life: it checks what must hold before a cent is taken, opens the parts in order, and closes
them in reverse once the last relay has settled. `create_app` puts the routes on them.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route

from goosestack import __version__, admin, control, inbox, ledger, plans as planning, subscriptions, wiring
from goosestack.api import Api, Health, limited
from goosestack.auth import Identifier, Keys
from goosestack.billing import Billing
from goosestack.cashier import Cashier
from goosestack.clock import utc_now
from goosestack.config import Config, tokenizer_folder
from goosestack.errors import Refusal, ShuttingDown, StoreUnavailable, UpstreamCut
from goosestack.front import ASGI, Cors, Front, Problems, Receive, Scope, Send, WireEndpoint, http_problem
from goosestack.gateway import Gateway
from goosestack.http import Client
from goosestack.limits import RateLimit
from goosestack.logs import Log, ThreadedWriter
from goosestack.meters import Meter
from goosestack.metrics import Metrics
from goosestack.notices import Notifier
from goosestack.plans import Plans
from goosestack.store.sqlite import Lock, SqliteStore, cannot_be_used, refuse_if_exposed, sqlite_warning
from goosestack.till import Till
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Upstreams
from goosestack.wire import Wire, mobile_chat
from goosestack.wire.anthropic_messages import AnthropicCountTokens, AnthropicMessages
from goosestack.wire.openai_chat import OpenAIChat
from goosestack.wire.openai_embeddings import OpenAIEmbeddings
from goosestack.wire.openai_responses import OpenAIResponses

if TYPE_CHECKING:
    from goosestack.agents import Agents
    from goosestack.supabase import Supabase

WIRES: tuple[Wire, ...] = (
    OpenAIChat(),
    OpenAIResponses(),
    OpenAIEmbeddings(),
    AnthropicMessages(),
    AnthropicCountTokens(),
)

ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", "/", "root"),
    ("GET", "/health", "root"),
    ("GET", "/v1/models", "models"),
    ("GET", "/v1/models/{id:path}", "model"),
    ("GET", "/v1/pricing", "prices"),
    ("POST", "/v1/keys", "create_key"),
    ("GET", "/v1/keys", "list_keys"),
    ("DELETE", "/v1/keys/{id}", "revoke_key"),
    ("GET", "/v1/usage", "usage"),
    ("GET", "/v1/holds", "holds"),
    ("DELETE", "/v1/holds/{id}", "end_hold"),
    ("GET", "/api/me", "me"),
    ("POST", "/api/me/spending-cap", "cap_spending"),
    ("POST", "/billing/checkout", "checkout"),
    ("GET", "/billing/portal", "portal"),
    ("GET", "/billing/payments", "list_payments"),
    ("POST", "/billing/auto-topup", "set_auto_topup"),
    ("POST", "/billing/webhook", "webhook"),
    ("GET", "/readyz", "ready"),
    ("GET", "/metrics", "metrics"),
)
"""Our own endpoints: method, path, and the method of `Api`, or under `/billing` of `Billing`, that answers. The wire
formats' routes are in `WIRES`; theirs and those of models also answer without `/v1`, and with two of it, since clients
append it twice."""

DRAIN_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", "/", "root"),
    ("GET", "/health", "root"),
    ("GET", "/v1/pricing", "prices"),
    ("GET", "/v1/docs", "docs"),
    ("GET", "/api/mcp/providers", "directory"),
    ("POST", "/v1/close-channel", "close_channel"),
    ("POST", "/v1/admin/claim", "admin_claim"),
    ("GET", "/v1/admin/stats", "admin_stats"),
    ("GET", "/v1/admin/vouchers", "admin_vouchers"),
)
"""The same where DRAIN is on: the methods of `Agents`, also in place of ours."""

JOBS: tuple[tuple[str, float], ...] = (
    ("tick", 1.0),
    ("journal", 2.0),
    ("check", 300.0),
    ("fetch_keys", 600.0),
    ("top_up", 5.0),
    ("deliver", 2.0),
    ("watch_balances", 30.0),
    ("forget", 3600.0),
    ("claim", 5.0),
    ("watch_terms", 600.0),
)
"""What runs every so many seconds beside the requests: methods of `Jobs`. Each sink has a `Meter` besides."""

EXPOSED = (
    "x-request-id request-id retry-after x-should-retry x-goosestack-cost-usd x-goosestack-cost-cents"
    " x-goosestack-balance-cents x-goosestack-payer x-goosestack-cost-tokens x-goosestack-tokens-remaining"
    " x-goosestack-overage-remaining-cents x-goosestack-reset x-goosestack-output-cap x-ratelimit-limit-requests"
    " x-ratelimit-remaining-requests x-ratelimit-reset-requests x-drain-cost x-drain-total x-drain-remaining"
    " x-drain-channel x-drain-error x-drain-required x-drain-provided x-payment-protocol x-payment-provider"
    " x-payment-contract x-payment-chain x-payment-signing x-payment-docs"
).split()


@dataclass(slots=True)
class Parts:
    """The opened parts of a daemon."""

    config: Config
    store: SqliteStore
    gateway: Gateway
    api: Api
    health: Health
    plans: Plans
    billing: Billing
    cashier: Cashier | None
    """None where nothing is sold."""
    notifier: Notifier | None
    """None where nobody is to be told."""
    supabase: Supabase | None
    meters: tuple[Meter, ...]
    agents: Agents | None = None
    """None where no vouchers are taken."""


class Jobs:
    """What happens beside the requests; each method is named in `JOBS`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._log_lines_lost = 0

    async def tick(self) -> None:
        """Keep quiet streams alive, drop clients who stopped reading; tell of lines that the log has lost, every time
        until one that says so is not lost itself."""
        gateway = self._parts.gateway
        gateway.tick()
        if (lost := gateway.log.lost) > self._log_lines_lost:
            self._log_lines_lost = lost
            gateway.alert("log_lines_lost", lines=lost)

    async def journal(self) -> None:
        """Write down what the live relays would cost."""
        await self._parts.gateway.journal()

    async def check(self) -> None:
        """Check the books; what is wrong is shown, logged and counted."""
        parts = self._parts
        books = await parts.store.read(lambda tx: ledger.check(tx, full=False))
        parts.health.wrong, parts.health.checked_at = tuple(books.wrong), parts.gateway.now()
        parts.gateway.metrics.set("goosestack_books_wrong", len(books.wrong))
        if books.wrong:
            parts.gateway.alert("books", what=books.wrong[0])
        else:
            await parts.store.write(ledger.verify, books, parts.gateway.now())

    async def fetch_keys(self) -> None:
        """Have the sign-in service's keys of now."""
        if self._parts.supabase is not None:
            await self._parts.supabase.fetch_keys()

    async def top_up(self) -> None:
        """Charge saved cards for automatic top-ups."""
        if self._parts.cashier is not None and not self._parts.gateway.stopping:
            await self._parts.cashier.top_up()

    async def deliver(self) -> None:
        """Tell the operator's own program what is in the outbox."""
        if self._parts.notifier is not None:
            for notice in await self._parts.notifier.deliver():
                self._parts.gateway.alert("notice_given_up", id=notice)

    async def watch_balances(self) -> None:
        """Look for balances that have become low."""
        if self._parts.notifier is not None:
            await self._parts.notifier.watch_balances()

    async def forget(self) -> None:
        """Forget what Stripe's events said a month ago, and what else is of no use any more."""
        parts = self._parts
        while await parts.store.write(inbox.forget, parts.gateway.now()):
            pass

    async def claim(self) -> None:
        """Get channels paid."""
        if self._parts.agents is not None:
            await self._parts.agents.collector.turn()

    async def watch_terms(self) -> None:
        """Read again what the channel contract's owner may have changed."""
        if self._parts.agents is not None:
            await self._parts.agents.collector.watch_terms()

    async def every(self, name: str, seconds: float) -> None:
        """Run one of them forever; a failure is logged, and the next turn comes."""
        while True:
            await asyncio.sleep(seconds)
            await self.once(name)

    async def once(self, name: str) -> None:
        """Run one of them now; a failure is logged."""
        try:
            await getattr(self, name)()
        except Exception as error:
            self._parts.gateway.alert("job", job=name, error=type(error).__name__)


# --- the life of the daemon -----------------------------------------------------------------------------------


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Parts]:
    """The opened parts; closed again once every relay has settled. Raises Refusal, in one sentence."""
    book = wiring.load_prices(config)
    plans = wiring.load_plans(config, book)
    providers = wiring.providers_of(config)
    if not config.byok_only and not any(provider.key for provider in providers.values()):
        raise Refusal("no provider key is set: set OPENAI_API_KEY, ANTHROPIC_API_KEY or another, or BYOK_ONLY=true")
    if not config.db_path.absolute().parent.is_dir():
        raise Refusal(f"there is no folder {config.db_path.absolute().parent} for the database")
    refuse_if_exposed(config.db_path)
    lock, metrics, soon = Lock(config.db_path), Metrics(), asyncio.get_running_loop().call_soon
    log = Log(config.log_level, ThreadedWriter(), soon)
    try:
        store, client, till = SqliteStore(config.db_path, on_commit=metrics.committed), None, None
        try:
            with _refusing(config.db_path):
                process_id = await open_books(store, log)
                client, till = Client(), wiring.till_of(config)
                upstreams = Upstreams(providers, book)
                parts = await _open(config, process_id, store, client, upstreams, plans, metrics, log, till)
                if config.provider_private_key is not None:
                    parts.agents = await wiring.agents_of(config, parts.gateway, client, utc_now)
            async with _beside(parts):
                # what is loaded now lives as long as the process: collecting garbage need not look at it again
                gc.collect()
                gc.freeze()
                gc.set_threshold(10_000, 20, 50)
                yield parts
        finally:
            if till is not None:
                await till.close()
            if client is not None:
                await client.close()
            await store.close()
    finally:
        log.close()
        lock.release()


@contextmanager
def _refusing(database: Path) -> Iterator[None]:
    """A database that fails while the daemon starts refuses the start, in one sentence."""
    try:
        yield
    except StoreUnavailable as error:
        raise cannot_be_used(database, error.__cause__ or error) from error


async def _open(
    config: Config,
    process_id: int,
    store: SqliteStore,
    client: Client,
    upstreams: Upstreams,
    plans: Plans,
    metrics: Metrics,
    log: Log,
    till: Till | None,
) -> Parts:
    """The parts, handed to each other. Raises Refusal."""

    def warn(what: str) -> None:
        log.warning("plans", utc_now(), what=what)

    def alert(kind: str, **facts: object) -> None:
        gateway.alert(kind, **facts)  # which is made of what calls this

    for change in await subscriptions.fold_by(store, wiring.shop_of(config, plans).terms, utc_now()):
        warn(f"by the plans as they are now: {change}")
    for name, users in (await store.read(planning.unknown, plans, utc_now())).items():
        warn(f"there is no plan {name}; users who have it: {users}")
    policy, supabase = wiring.policy_of(config), wiring.supabase_of(config, store, client, plans, utc_now, warn, alert)
    identifiers: list[Identifier] = [Keys(store)]
    gateway = Gateway(
        store=store,
        process_id=process_id,
        identifiers=identifiers if supabase is None else [*identifiers, supabase],
        fundings=wiring.fundings_of(config, plans, policy),
        plans=plans if plans.limiting or wiring.plans_pay(config) else None,
        rations=wiring.plans_pay(config),
        plan_limits=wiring.plan_limits_of(plans),
        plan_table=wiring.plan_table_of(config, store, client, plans, utc_now, warn),
        upstreams=upstreams,
        client=client,
        rate_limit=RateLimit(config.rate_limit_max_requests, config.rate_limit_window / 1000, "key"),
        strangers=RateLimit(config.rate_limit_max_requests, config.rate_limit_window / 1000, "address"),
        tokenizer=Tokenizer(tokenizer_folder(config)),
        metrics=metrics,
        log=log,
        policy=policy,
        limits=wiring.limits_of(config),
        now=utc_now,
    )
    signups = RateLimit(config.signups_per_hour, 3600, "signup") if config.signup == "open" else None
    health = Health(checked_at=utc_now(), sinks=config.meters)
    sinks = wiring.sinks_of(config, client, utc_now)
    meters = tuple(Meter(store, sink, gateway, utc_now, random.SystemRandom()) for sink in sinks)
    api = Api(gateway, health, signups, config.admin_token)
    selling = wiring.selling(config, gateway, plans, till, client, utc_now)
    return Parts(config, store, gateway, api, health, plans, *selling, supabase, meters)


@asynccontextmanager
async def _beside(parts: Parts) -> AsyncIterator[None]:
    """The jobs and the operator's socket, until the last relay has settled."""
    jobs = Jobs(parts)
    tasks = [asyncio.create_task(jobs.every(name, seconds)) for name, seconds in JOBS]
    tasks.append(asyncio.create_task(jobs.once("fetch_keys")))  # before the first caller needs them
    tasks += [asyncio.create_task(meter.run()) for meter in parts.meters]
    operator = admin.Admin(
        parts.store, utc_now, parts.plans, parts.gateway, parts.cashier, parts.agents, sinks=parts.config.meters
    )
    server = await control.listen(operator.call, parts.config.db_path)
    try:
        yield
    finally:
        await parts.gateway.drain(parts.config.drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()
        await server.wait_closed()
        control.socket_path(parts.config.db_path).unlink(missing_ok=True)


async def open_books(store: SqliteStore, log: Log) -> int:
    """Recover what earlier processes left open, prove the books; the id of this process. Raises Refusal."""
    process_id = await store.write(ledger.begin_process, __version__, utc_now())
    settled, released = await store.write(ledger.recover, process_id, utc_now())
    books = await store.read(lambda tx: ledger.check(tx, full=False))
    if books.wrong:
        raise Refusal(f"the books do not add up, run `goosestack check --full`: {books.wrong[0]}")
    if settled or released:
        log.warning("recovered", utc_now(), settled=settled, released=released)
    if (warning := sqlite_warning()) is not None:
        log.warning("sqlite", utc_now(), warning=warning)
    return process_id


# --- the application ------------------------------------------------------------------------------------------


def create_app(parts: Parts) -> Front:
    """The ASGI application on opened parts."""
    origins = list(parts.config.cors_allowed_origins)
    cors = Middleware(
        Cors,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
    wires = {path: WireEndpoint(parts.gateway, wire) for wire in WIRES for path in _paths(wire.path)}
    gateway, default = parts.gateway, parts.config.chat_default_model
    mobile = wiring.mobile_chat_of(gateway.upstreams, default, lambda: gateway.now()[:10])
    wires[mobile_chat.ROUTE] = WireEndpoint(parts.gateway, mobile, mobile_chat.ROUTE)
    starlette = Starlette(
        routes=list(_routes(parts, wires)),
        middleware=[*([cors] if origins else []), Middleware(Problems, gateway=parts.gateway), Middleware(cut)],
        exception_handlers={HTTPException: http_problem},
    )
    starlette.router.redirect_slashes = False  # it would answer with a URL made of whatever `Host` the caller sent
    direct = {path: Problems(cut(endpoint), parts.gateway) for path, endpoint in wires.items()}
    return Front(starlette, direct, parts.gateway)


def cut(inner: ASGI) -> ASGI:
    """What is told to whoever still waits when a stop has been patient enough, and the server cancels the request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await inner(scope, receive, send)
        except asyncio.CancelledError:
            if scope["state"]["status"]:
                raise  # the answer has begun
            sent = "relayed" in scope["state"]
            raise UpstreamCut(detail="the gateway stopped") if sent else ShuttingDown() from None

    return app


def _paths(path: str) -> list[str]:
    return [f"{base}{path}" for base in ("/v1", "", "/v1/v1")]


def _routes(parts: Parts, wires: Mapping[str, WireEndpoint]) -> Sequence[BaseRoute]:
    routes: list[BaseRoute] = [Route(path, endpoint, methods=["POST"]) for path, endpoint in wires.items()]
    if parts.agents is not None:
        routes += [Route(path, getattr(parts.agents, name), methods=[method]) for method, path, name in DRAIN_ROUTES]
    for method, path, name in ROUTES:
        paths = _paths(path.removeprefix("/v1")) if path.startswith("/v1/models") else [path]
        owner = parts.billing if path.startswith("/billing/") else parts.api
        routes += [Route(each, limited(getattr(owner, name)), methods=[method]) for each in paths]
    return routes
