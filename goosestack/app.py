"""READ FIRST: every route, every job, and how the parts are handed to each other.

`running` is the daemon's life: it checks what must hold before a cent is taken, opens the parts in order, and closes
them in reverse once the last relay has settled. `create_app` puts the routes on them.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from goosestack import __version__, admin, errors, inbox, ledger, plans as planning, pricing, wiring
from goosestack.api import Api, Health, limited
from goosestack.auth import Identifier, Keys
from goosestack.bidding import Policy
from goosestack.billing import Billing, Shop
from goosestack.cashier import Cashier, Sell
from goosestack.config import Config, tokenizer_folder
from goosestack.errors import Refusal, ShuttingDown, UpstreamCut
from goosestack.front import ASGI, Front, Problems, Receive, Scope, Send, WireEndpoint, http_problem
from goosestack.gateway import Gateway
from goosestack.http import Client
from goosestack.limits import RateLimit
from goosestack.logs import Log, ThreadedWriter
from goosestack.meters import Meter
from goosestack.metrics import Metrics
from goosestack.notices import Notifier
from goosestack.payments import Terms
from goosestack.plans import Plans
from goosestack.relay import Limits
from goosestack.store import Store
from goosestack.store.sqlite import Lock, SqliteStore, refuse_if_exposed, sqlite_warning
from goosestack.till import StripeTill, Till
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Provider, Upstreams
from goosestack.wire import Wire, mobile_chat
from goosestack.wire.anthropic_messages import AnthropicCountTokens, AnthropicMessages
from goosestack.wire.openai_chat import OpenAIChat
from goosestack.wire.openai_embeddings import OpenAIEmbeddings
from goosestack.wire.openai_responses import OpenAIResponses

if TYPE_CHECKING:
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

JOBS: tuple[tuple[str, float], ...] = (
    ("tick", 1.0),
    ("journal", 2.0),
    ("check", 300.0),
    ("fetch_keys", 600.0),
    ("top_up", 5.0),
    ("deliver", 2.0),
    ("watch_balances", 30.0),
    ("forget", 3600.0),
)
"""What runs every so many seconds beside the requests: methods of `Jobs`. Each sink has a `Meter` besides."""

EXPOSED = (
    "x-request-id request-id retry-after x-should-retry x-goosestack-cost-usd x-goosestack-cost-cents"
    " x-goosestack-balance-cents x-goosestack-payer x-goosestack-cost-tokens x-goosestack-tokens-remaining"
    " x-goosestack-overage-remaining-cents x-goosestack-reset x-goosestack-output-cap x-ratelimit-limit-requests"
    " x-ratelimit-remaining-requests x-ratelimit-reset-requests"
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
    plans: Plans
    billing: Billing
    cashier: Cashier | None
    """None where nothing is sold."""
    notifier: Notifier | None
    """None where nobody is to be told."""
    supabase: Supabase | None
    meters: tuple[Meter, ...]


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
    book = load_prices(config)
    plans = wiring.load_plans(config, book)
    providers = providers_of(config)
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
            process_id = await open_books(store, log)
            client, till = Client(), till_of(config)
            upstreams = Upstreams(providers, book)
            parts = await _open(config, process_id, store, client, upstreams, plans, metrics, log, till)
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

    for name in await store.read(planning.unknown, plans, utc_now()):
        warn(f"there are users of the plan {name}, which there is none of")
    policy, supabase = policy_of(config), supabase_of(config, store, client, plans, warn)
    identifiers: list[Identifier] = [Keys(store)]
    gateway = Gateway(
        store=store,
        process_id=process_id,
        identifiers=identifiers if supabase is None else [*identifiers, supabase],
        fundings=wiring.fundings_of(config, plans, policy),
        plans=plans if wiring.plans_count(config, plans) else None,
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
        limits=limits_of(config),
        now=utc_now,
    )
    signups = RateLimit(config.signups_per_hour, 3600, "signup") if config.signup == "open" else None
    health = Health(checked_at=utc_now(), sinks=config.meters)
    sinks = wiring.sinks_of(config, client, utc_now)
    meters = tuple(Meter(store, sink, gateway, utc_now, random.SystemRandom()) for sink in sinks)
    api = Api(gateway, health, signups, config.admin_token)
    return Parts(
        config, store, gateway, api, health, plans, *selling(config, gateway, plans, till, client), supabase, meters
    )


@asynccontextmanager
async def _beside(parts: Parts) -> AsyncIterator[None]:
    """The jobs and the operator's socket, until the last relay has settled."""
    jobs = Jobs(parts)
    tasks = [asyncio.create_task(jobs.every(name, seconds)) for name, seconds in JOBS]
    tasks.append(asyncio.create_task(jobs.once("fetch_keys")))  # before the first caller needs them
    tasks += [asyncio.create_task(meter.run()) for meter in parts.meters]
    operator = admin.Admin(parts.store, utc_now, parts.plans, parts.gateway, parts.cashier)
    server = await admin.listen(operator, parts.config.db_path)
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


def load_prices(config: Config) -> pricing.PriceBook:
    """The price book and the operator's prices. Raises Refusal."""
    generated = (files("goosestack") / "prices.json").read_text()
    path, operators = config.prices_file, ""
    try:
        if path.exists() or path != Config().prices_file:  # one that was named must be there
            operators = path.read_text()
        return pricing.load(generated, operators)
    except pricing.PriceError as error:
        raise Refusal(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from error


def providers_of(config: Config) -> dict[str, Provider]:
    """The providers that are configured, and those that callers may bring their own key for."""
    openai = frozenset(("openai_chat", "openai_responses", "openai_embeddings"))
    anthropic = frozenset(("anthropic_messages", "anthropic_count_tokens"))
    made = [
        Provider("openai", config.openai_base_url, config.openai_api_key, openai),
        Provider("anthropic", config.anthropic_base_url + "/v1", config.anthropic_api_key, anthropic),
        Provider(
            "openrouter",
            config.openrouter_base_url,
            config.openrouter_api_key,
            openai | {"anthropic_messages"},
            routes=True,
            bills_cut_calls=True,
            reports_cost=True,
        ),
    ]
    if config.litellm_base_url is not None:
        made.append(
            Provider(
                "litellm",
                config.litellm_base_url,
                config.litellm_api_key or "sk-none",
                openai | anthropic,
                routes=True,
                bills_cut_calls=True,
                reports_cost=True,
            )
        )
    return {provider.name: provider for provider in made}


def supabase_of(
    config: Config, store: Store, client: Client, plans: Plans, warn: Callable[[str], None]
) -> Supabase | None:
    """The Supabase project whose users may call; None where there is none. Raises Refusal."""
    if config.supabase_url is None:
        if config.jwt_secret is not None or config.supabase_check_s:
            raise Refusal("JWT_SECRET and SUPABASE_CHECK_S need SUPABASE_URL, which says whose tokens are meant")
        return None
    if config.supabase_check_s and config.supabase_anon_key is None:
        raise Refusal("SUPABASE_CHECK_S needs SUPABASE_ANON_KEY, which the project is asked with")
    try:
        from goosestack import supabase  # only where it is on: PyJWT and cryptography are large
    except ImportError:
        raise Refusal("SUPABASE_URL needs PyJWT and cryptography: install goosestack[supabase]") from None
    issuer, secret, check = f"{config.supabase_url}/auth/v1", config.jwt_secret, None
    kind, _, place = config.plan_source.partition(":")
    if config.supabase_check_s and config.supabase_anon_key is not None:
        check = supabase.Check(config.supabase_anon_key, config.supabase_check_s)
    return supabase.Supabase(
        store=store,
        client=client,
        issuer=issuer,
        keys=supabase.KeySet(client, issuer) if secret is None else supabase.Secret(secret),
        anonymous=config.supabase_anonymous,
        check=check,
        now=utc_now,
        plan=supabase.PlanClaim(tuple(place.split(".")), plans, warn) if kind == "claim" else None,
    )


def policy_of(config: Config) -> Policy:
    """What a quote depends on."""
    whole = ledger.GRAINS["usd_cents"] if config.rounding == "request" else 1
    return Policy(
        terms=pricing.Terms(config.markup_percent, whole),
        default_output_cap=config.default_output_cap,
        clamp=config.over_cap == "clamp",
        public_url=config.public_url,
    )


def limits_of(config: Config) -> Limits:
    """What bounds a request."""
    return Limits(
        max_in_flight=config.max_in_flight,
        max_body_bytes=config.max_body_bytes,
        body_budget_bytes=max(config.body_budget_bytes, config.max_body_bytes),
        body_timeout_s=config.body_timeout_s,
        deadline_s=config.request_deadline_s,
        grace_s=config.disconnect_grace_s,
    )


def till_of(config: Config) -> StripeTill | None:
    """The edge to Stripe; None where none is configured. Raises Refusal."""
    if config.stripe_secret_key is None:
        return None
    try:
        return StripeTill(config.stripe_secret_key, config.stripe_api_base)
    except ImportError:
        raise Refusal(
            "STRIPE_SECRET_KEY is set, and the package `stripe` is missing: install goosestack[stripe]"
        ) from None


def shop_of(config: Config, plans: Plans) -> Shop:
    """What is sold. Raises Refusal where a buyer would be sent nowhere."""
    live = config.stripe_secret_key is not None and config.stripe_secret_key[3:].startswith("live_")
    pages = {
        "CHECKOUT_SUCCESS_URL": config.checkout_success_url or config.public_url,
        "CHECKOUT_CANCEL_URL": config.checkout_cancel_url or config.public_url,
        "PORTAL_RETURN_URL": config.portal_return_url or config.public_url,
    }
    missing = [name for name, url in pages.items() if url is None]
    reports = config.stripe_webhook_secret is None and "stripe_meter" in config.meters  # the key is for that alone
    if config.stripe_secret_key is not None and missing and not reports:
        raise Refusal(f"STRIPE_SECRET_KEY is set, so buyers need to be sent somewhere: set PUBLIC_URL or {missing[0]}")
    success, cancel, portal = (url or "" for url in pages.values())
    return Shop(
        terms=Terms(
            live,
            config.stripe_pro_price_id,
            notify=config.notify_webhook_url is not None,
            pro_grace_s=config.pro_grace_hours * 3_600,
            plans=plans if config.plan_source == "subscription" else None,
        ),
        topups={topup.cents: topup.cents + topup.bonus for topup in config.topups},
        secrets=config.stripe_webhook_secret or (),
        success_url=success,
        cancel_url=cancel,
        portal_url=portal,
    )


def selling(
    config: Config, gateway: Gateway, plans: Plans, till: Till | None, client: Client
) -> tuple[Billing, Cashier | None, Notifier | None]:
    """What sells; what asks Stripe by itself, if there is a till; what tells the operator, if there is an address."""
    billing, store = Billing(gateway, shop_of(config, plans), till), gateway.store
    cashier = None if till is None else cashier_of(config, plans, store, till, gateway.alert, billing.sell)
    url, secret = config.notify_webhook_url, config.notify_webhook_secret
    notifier = None if url is None else Notifier(store, client, url, secret, utc_now, config.low_balance_cents)
    return billing, cashier, notifier


def cashier_of(
    config: Config, plans: Plans, store: Store, till: Till, alert: Callable[..., None], sell: Sell | None = None
) -> Cashier:
    """What asks Stripe by itself."""
    shop = shop_of(config, plans)
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
    wires = {path: WireEndpoint(parts.gateway, wire) for wire in WIRES for path in _paths(wire.path)}
    mobile = mobile_chat_of(parts.gateway.upstreams, parts.config.chat_default_model, lambda: parts.gateway.now()[:10])
    wires[mobile_chat.ROUTE] = WireEndpoint(parts.gateway, mobile, mobile_chat.ROUTE)
    starlette = Starlette(
        routes=list(_routes(parts, wires)),
        middleware=[*([cors] if origins else []), Middleware(Problems, gateway=parts.gateway), Middleware(cut)],
        exception_handlers={HTTPException: http_problem},
    )
    starlette.router.redirect_slashes = False  # it would answer with a URL made of whatever `Host` the caller sent
    direct = {path: Problems(cut(endpoint), parts.gateway) for path, endpoint in wires.items()}
    return Front(starlette, direct, parts.gateway)


def mobile_chat_of(upstreams: Upstreams, default: str | None, today: Callable[[], str]) -> mobile_chat.MobileChat:
    """What apps ask for, in the words of the models that are sold. Raises Refusal for a default that is not."""

    def traits(name: str) -> mobile_chat.Traits:
        try:
            model = upstreams.offer(wire, name, "").model  # as of no day, on which none is retired yet
        except errors.ModelNotFound:
            return mobile_chat.Traits()
        assert model is not None
        retired = model.retires is not None and model.retires <= today()
        return mobile_chat.Traits(model.reasoning, model.retires if retired else None)

    wire = mobile_chat.MobileChat(default, traits)
    if default is not None:
        try:
            upstreams.offer(wire, default, today())
        except errors.ModelNotFound as error:
            raise Refusal(f"CHAT_DEFAULT_MODEL: {error.message}") from None
    return wire


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
    for method, path, name in ROUTES:
        paths = _paths(path.removeprefix("/v1")) if path.startswith("/v1/models") else [path]
        owner = parts.billing if path.startswith("/billing/") else parts.api
        routes += [Route(each, limited(getattr(owner, name)), methods=[method]) for each in paths]
    return routes
