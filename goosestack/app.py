"""READ FIRST: every route, every job, and how the parts are handed to each other.

`running` is the daemon's life: it checks what must hold before a cent is taken, opens the parts in order, and closes
them in reverse once the last relay has settled. `create_app` puts the routes on them.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from goosestack import __version__, admin, fitting, ledger
from goosestack.api import Api, Health
from goosestack.auth import Keys
from goosestack.billing import Billing
from goosestack.cashier import Cashier, Sell
from goosestack.config import Config, tokenizer_folder
from goosestack.errors import Refusal
from goosestack.front import Front, Problems, WireEndpoint, http_problem
from goosestack.gateway import Gateway
from goosestack.http import Client
from goosestack.limits import RateLimit
from goosestack.logs import Log
from goosestack.metrics import Metrics
from goosestack.notices import Notifier
from goosestack.payers import CreditFunding
from goosestack.store import Store
from goosestack.store.sqlite import Lock, SqliteStore, refuse_if_exposed, sqlite_warning
from goosestack.till import Till
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Upstreams
from goosestack.wire import Wire
from goosestack.wire.anthropic_messages import AnthropicCountTokens, AnthropicMessages
from goosestack.wire.openai_chat import OpenAIChat
from goosestack.wire.openai_embeddings import OpenAIEmbeddings
from goosestack.wire.openai_responses import OpenAIResponses

if TYPE_CHECKING:
    from goosestack.agents import Agents

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
    ("POST", "/billing/checkout", "checkout"),
    ("GET", "/billing/portal", "portal"),
    ("GET", "/billing/payments", "list_payments"),
    ("POST", "/billing/auto-topup", "set_auto_topup"),
    ("POST", "/billing/webhook", "webhook"),
    ("GET", "/readyz", "ready"),
    ("GET", "/metrics", "metrics"),
)
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

"""Our own endpoints: method, path, and the method of `Api`, or under `/billing` of `Billing`, that answers. The wire
formats' routes are in `WIRES`; theirs and those of models also answer without `/v1`, and with two of it, since clients
append it twice."""

JOBS: tuple[tuple[str, float], ...] = (
    ("tick", 1.0),
    ("journal", 2.0),
    ("check", 300.0),
    ("top_up", 5.0),
    ("deliver", 2.0),
    ("watch_balances", 30.0),
    ("claim", 5.0),
    ("watch_terms", 600.0),
)
"""What runs every so many seconds beside the requests: methods of `Jobs`."""

EXPOSED = (
    "x-request-id request-id retry-after x-should-retry x-goosestack-cost-usd x-goosestack-cost-cents"
    " x-goosestack-balance-cents x-goosestack-output-cap x-ratelimit-limit-requests x-ratelimit-remaining-requests"
    " x-ratelimit-reset-requests x-drain-cost x-drain-total x-drain-remaining x-drain-channel x-drain-error"
    " x-drain-required x-drain-provided x-payment-protocol x-payment-provider x-payment-contract x-payment-chain"
    " x-payment-signing x-payment-docs"
).split()


def utc_now() -> str:
    """Now, as all times are written: UTC, ISO 8601, milliseconds, `Z`."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{nanos // 1_000_000:03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass(slots=True)
class Parts:
    """The opened parts of a daemon."""

    config: Config
    store: SqliteStore
    gateway: Gateway
    api: Api
    health: Health
    billing: Billing
    cashier: Cashier | None
    """None where nothing is sold."""
    notifier: Notifier | None
    """None where nobody is to be told."""
    agents: Agents | None = None
    """None where no vouchers are taken."""


class Jobs:
    """What happens beside the requests; each method is named in `JOBS`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def tick(self) -> None:
        """Keep quiet streams alive, drop clients who stopped reading."""
        self._parts.gateway.tick()

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
        job = getattr(self, name)
        while True:
            await asyncio.sleep(seconds)
            try:
                await job()
            except Exception as error:
                self._parts.gateway.alert("job", job=name, error=type(error).__name__)


# --- the life of the daemon -----------------------------------------------------------------------------------


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Parts]:
    """The opened parts; closed again once every relay has settled. Raises Refusal, in one sentence."""
    book = fitting.load_prices(config)
    providers = fitting.providers_of(config)
    if not config.byok_only and not any(provider.key for provider in providers.values()):
        raise Refusal("no provider key is set: set OPENAI_API_KEY, ANTHROPIC_API_KEY or another, or BYOK_ONLY=true")
    if not config.db_path.absolute().parent.is_dir():
        raise Refusal(f"there is no folder {config.db_path.absolute().parent} for the database")
    refuse_if_exposed(config.db_path)
    lock, metrics, log = (
        Lock(config.db_path),
        Metrics(),
        Log(config.log_level, soon=asyncio.get_running_loop().call_soon),
    )
    try:
        store, client, till = SqliteStore(config.db_path, on_commit=metrics.committed), None, None
        try:
            process_id = await open_books(store, log)
            client = Client()
            policy, upstreams = fitting.policy_of(config), Upstreams(providers, book)
            gateway = Gateway(
                store=store,
                process_id=process_id,
                identifiers=(Keys(store),),
                fundings=(CreditFunding(policy.terms, policy.public_url),),
                upstreams=upstreams,
                client=client,
                rate_limit=RateLimit(config.rate_limit_max_requests, config.rate_limit_window / 1000, "key"),
                strangers=RateLimit(config.rate_limit_max_requests, config.rate_limit_window / 1000, "address"),
                tokenizer=Tokenizer(tokenizer_folder(config)),
                metrics=metrics,
                log=log,
                policy=policy,
                limits=fitting.limits_of(config),
                now=utc_now,
            )
            signups = RateLimit(config.signups_per_hour, 3600, "signup") if config.signup == "open" else None
            health = Health(checked_at=utc_now())
            till = fitting.till_of(config)
            api = Api(gateway, health, signups, config.admin_token)
            parts = Parts(config, store, gateway, api, health, *selling(config, gateway, till, client))
            if config.provider_private_key is not None:
                await serve_agents(parts, client)
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
        lock.release()


@asynccontextmanager
async def _beside(parts: Parts) -> AsyncIterator[None]:
    """The jobs and the operator's socket, until the last relay has settled."""
    jobs = Jobs(parts)
    tasks = [asyncio.create_task(jobs.every(name, seconds)) for name, seconds in JOBS]
    verbs = admin.Admin(parts.store, utc_now, parts.gateway, parts.cashier, parts.agents)
    server = await admin.listen(verbs, parts.config.db_path)
    try:
        yield
    finally:
        await parts.gateway.drain(parts.config.drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()
        await server.wait_closed()
        admin.socket_path(parts.config.db_path).unlink(missing_ok=True)


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


def selling(
    config: Config, gateway: Gateway, till: Till | None, client: Client
) -> tuple[Billing, Cashier | None, Notifier | None]:
    """What sells; what asks Stripe by itself, if there is a till; what tells the operator, if there is an address."""
    billing, store = Billing(gateway, fitting.shop_of(config), till), gateway.store
    cashier = None if till is None else cashier_of(config, store, till, gateway.alert, billing.sell)
    url, secret = config.notify_webhook_url, config.notify_webhook_secret
    notifier = None if url is None else Notifier(store, client, url, secret, utc_now, config.low_balance_cents)
    return billing, cashier, notifier


def cashier_of(
    config: Config, store: Store, till: Till, alert: Callable[..., None], sell: Sell | None = None
) -> Cashier:
    """What asks Stripe by itself."""
    shop = fitting.shop_of(config)
    return Cashier(
        store=store,
        till=till,
        terms=shop.terms,
        topups=shop.topups,
        now=utc_now,
        alert=alert,
        sell=sell,
        public_url=config.public_url,
    )


async def serve_agents(parts: Parts, client: Client) -> None:
    """Take vouchers, too: what knows a chain is loaded here, and nowhere else. Raises Refusal."""
    config, gateway = parts.config, parts.gateway
    try:
        from goosestack import agents
        from goosestack.drain import closing, collecting, opening, paying
    except ImportError:
        raise Refusal("PROVIDER_PRIVATE_KEY is set, and its packages are missing: install goosestack[drain]") from None
    setting = fitting.channels_of(config)
    sold = [model for _, model in gateway.upstreams.sold(utc_now()[:10])]
    provider, claimer = await opening.open_provider(setting, client, sold, time.time)
    collector = collecting.Collector(
        provider=provider,
        claimer=claimer,
        store=parts.store,
        now=utc_now,
        alert=gateway.alert,
        token=provider.contract.token,
        most_fee_bps=config.drain_most_fee_bps,
        threshold=config.claim_threshold,
        buffer_s=config.drain_claim_buffer_s,
        gas_factor=config.claim_gas_factor,
        coin_price=config.claim_gas_price,
    )
    await collector.begin()
    gateway.vouchers = (paying.Vouchers(provider),)
    gateway.fundings = (*gateway.fundings, paying.VoucherFunding(provider, parts.store))
    parts.agents = agents.Agents(
        gateway=gateway,
        provider=provider,
        collector=collector,
        closer=closing.Closer(provider, parts.store, config.drain_close_idle_s, utc_now),
        name=config.provider_name,
        public_url=config.public_url,
        admin_token=config.admin_token,
        closes=RateLimit(agents.CLOSES_PER_HOUR, 3600, "close"),
    )


# --- the application ------------------------------------------------------------------------------------------


def create_app(parts: Parts) -> Front:
    """The ASGI application on opened parts."""
    origins = list(parts.config.cors_allowed_origins)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
    wires = {path: WireEndpoint(parts.gateway, wire) for wire in WIRES for path in _paths(wire)}
    starlette = Starlette(
        routes=list(_routes(parts, wires)),
        middleware=[*([cors] if origins else []), Middleware(Problems, gateway=parts.gateway)],
        exception_handlers={HTTPException: http_problem},
    )
    starlette.router.redirect_slashes = False  # it would answer with a URL made of whatever `Host` the caller sent
    direct = {path: Problems(endpoint, parts.gateway) for path, endpoint in wires.items()}
    return Front(starlette, direct, parts.gateway)


def _paths(wire: Wire) -> list[str]:
    return [f"{base}{wire.path}" for base in ("/v1", "", "/v1/v1")]


def _routes(parts: Parts, wires: Mapping[str, WireEndpoint]) -> Sequence[BaseRoute]:
    routes: list[BaseRoute] = [Route(path, endpoint, methods=["POST"]) for path, endpoint in wires.items()]
    if parts.agents is not None:
        routes += [Route(path, getattr(parts.agents, name), methods=[method]) for method, path, name in DRAIN_ROUTES]
    for method, path, name in ROUTES:
        paths = [path, path.removeprefix("/v1")] if path.startswith("/v1/models") else [path]
        owner = parts.billing if path.startswith("/billing/") else parts.api
        routes += [Route(each, getattr(owner, name), methods=[method]) for each in paths]
    return routes
