"""READ FIRST: every route, every job, and how the parts are handed to each other.

`running` is the daemon's life: it checks what must hold before a cent is taken, opens the parts in order, and closes
them in reverse once the last relay has settled. `create_app` puts the routes on them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from goosestack import __version__, admin, errors, ledger, pricing
from goosestack.api import Api, Health
from goosestack.auth import Identifier, Keys
from goosestack.bidding import Policy
from goosestack.config import Config, tokenizer_folder
from goosestack.errors import Refusal
from goosestack.gateway import Gateway, relay
from goosestack.http import Client
from goosestack.limits import RateLimit, address_bucket
from goosestack.logs import Log, redact_bytes
from goosestack.meters import Meter
from goosestack.metrics import Metrics
from goosestack.relay import Limits
from goosestack.sinks import Sink
from goosestack.sinks.openmeter import OpenMeter
from goosestack.sinks.stripe_meter import StripeMeter
from goosestack.sinks.supabase import Supabase as SupabaseTable
from goosestack.sinks.webhook import Webhook
from goosestack.store import Store
from goosestack.store.sqlite import Lock, SqliteStore, refuse_if_exposed, sqlite_warning
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Provider, Upstreams
from goosestack.wire import Wire, envelope
from goosestack.wire.anthropic_messages import AnthropicCountTokens, AnthropicMessages
from goosestack.wire.mobile_chat import MobileChat, Traits
from goosestack.wire.openai_chat import OpenAIChat
from goosestack.wire.openai_embeddings import OpenAIEmbeddings
from goosestack.wire.openai_responses import OpenAIResponses

if TYPE_CHECKING:
    from goosestack.supabase import Supabase

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]

WIRES: tuple[Wire, ...] = (
    OpenAIChat(),
    OpenAIResponses(),
    OpenAIEmbeddings(),
    AnthropicMessages(),
    AnthropicCountTokens(),
)

MOBILE_CHAT = "/api/chat"
"""`openai_chat` once more, in front of it a translation for apps."""

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
    ("GET", "/readyz", "ready"),
    ("GET", "/metrics", "metrics"),
)
"""Our own endpoints: method, path, and the method of `Api` that answers. The wire formats' routes are in `WIRES`;
theirs and those of models also answer without `/v1`, and, since clients append it twice, with two of it."""

JOBS: tuple[tuple[str, float], ...] = (("tick", 1.0), ("journal", 2.0), ("check", 300.0), ("fetch_keys", 600.0))
"""What runs every so many seconds beside the requests: methods of `Jobs`. Each sink has a `Meter` besides."""

EXPOSED = (
    "x-request-id request-id retry-after x-should-retry x-goosestack-cost-usd x-goosestack-cost-cents"
    " x-goosestack-balance-cents x-goosestack-output-cap x-ratelimit-limit-requests x-ratelimit-remaining-requests"
    " x-ratelimit-reset-requests"
).split()

MOST_HEADER_BYTES = 32 * 1024
MOST_HEADERS = 100
_CREDENTIALS = (b"authorization", b"x-api-key")
_OWN = frozenset(("", "/", "/health", "/readyz", "/metrics", "/pricing", "/keys", "/usage", "/holds"))


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
    supabase: Supabase | None = None
    meters: tuple[Meter, ...] = ()


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

    async def fetch_keys(self) -> None:
        """Have the sign-in service's keys of now."""
        if self._parts.supabase is not None:
            await self._parts.supabase.fetch_keys()

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
    providers = providers_of(config)
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
        store, client = SqliteStore(config.db_path, on_commit=metrics.committed), None
        try:
            process_id = await open_books(store, log)
            client = Client()
            supabase = supabase_of(config, store, client)
            identifiers: list[Identifier] = [Keys(store)]
            gateway = Gateway(
                store=store,
                process_id=process_id,
                identifiers=identifiers if supabase is None else [*identifiers, supabase],
                upstreams=Upstreams(providers, book),
                client=client,
                rate_limit=RateLimit(config.rate_limit_max_requests, config.rate_limit_window / 1000, "key"),
                strangers=RateLimit(config.rate_limit_max_requests, config.rate_limit_window / 1000, "address"),
                tokenizer=Tokenizer(tokenizer_folder(config)),
                metrics=metrics,
                log=log,
                policy=policy_of(config),
                limits=limits_of(config),
                now=utc_now,
            )
            signups = RateLimit(config.signups_per_hour, 3600, "signup") if config.signup == "open" else None
            health = Health(checked_at=utc_now(), sinks=config.meters)
            meters = tuple(
                Meter(store, sink, gateway, utc_now, random.SystemRandom()) for sink in sinks_of(config, client)
            )
            api = Api(gateway, health, signups, config.admin_token)
            parts = Parts(config, store, gateway, api, health, supabase, meters)
            async with _beside(parts):
                # what is loaded now lives as long as the process: collecting garbage need not look at it again
                gc.collect()
                gc.freeze()
                gc.set_threshold(10_000, 20, 50)
                yield parts
        finally:
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
    tasks.append(asyncio.create_task(jobs.once("fetch_keys")))  # before the first caller needs them
    tasks += [asyncio.create_task(meter.run()) for meter in parts.meters]
    server = await admin.listen(admin.Admin(parts.store, utc_now, parts.gateway), parts.config.db_path)
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


def supabase_of(config: Config, store: Store, client: Client) -> Supabase | None:
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
    )


def sinks_of(config: Config, client: Client) -> list[Sink]:
    """Where usage is reported. Raises Refusal where a sink lacks what it cannot do without."""

    def needed(name: str, value: str | None) -> str:
        if value is None:
            raise Refusal(f"METERS has {sink}, which needs {name}")
        return value

    issuer = "" if config.supabase_url is None else f"{config.supabase_url}/auth/v1"
    found: list[Sink] = []
    for sink in config.meters:
        if sink == "stripe_meter":
            found.append(
                StripeMeter(
                    client,
                    config.stripe_api_base,
                    needed("STRIPE_SECRET_KEY", config.stripe_secret_key),
                    utc_now,
                    event_name=needed("STRIPE_METER_EVENT", config.stripe_meter_event),
                    value=config.stripe_meter_value,
                    payers=config.stripe_meter_payers,
                    by_minute=config.stripe_meter_by_minute,
                )
            )
        elif sink == "openmeter":
            if config.openmeter_subject == "supabase_id":
                needed("SUPABASE_URL for OPENMETER_SUBJECT=supabase_id", config.supabase_url)
            found.append(
                OpenMeter(
                    client,
                    needed("OPENMETER_URL", config.openmeter_url),
                    config.openmeter_token,
                    source=config.openmeter_source,
                    type=config.openmeter_event_type,
                    subject=config.openmeter_subject,
                    issuer=issuer,
                )
            )
        elif sink == "supabase":
            found.append(
                SupabaseTable(
                    client,
                    needed("SUPABASE_URL", config.supabase_url),
                    needed("SUPABASE_SERVICE_KEY", config.supabase_service_key),
                    table=config.supabase_usage_table,
                    columns=dict(column.split("=", 1) for column in config.supabase_usage_columns),
                    issuer=issuer,
                )
            )
        else:
            url = needed("METER_WEBHOOK_URL", config.meter_webhook_url)
            secret = needed("METER_WEBHOOK_SECRET", config.meter_webhook_secret)
            found.append(Webhook(client, url, secret, utc_now))
    return found


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
    mobile = mobile_chat(parts.gateway.upstreams, parts.config.chat_default_model, lambda: parts.gateway.now()[:10])
    wires[MOBILE_CHAT] = WireEndpoint(parts.gateway, mobile, MOBILE_CHAT)
    starlette = Starlette(
        routes=list(_routes(parts, wires)),
        middleware=[*([cors] if origins else []), Middleware(Problems, gateway=parts.gateway)],
        exception_handlers={HTTPException: _http_problem},
    )
    starlette.router.redirect_slashes = False  # it would answer with a URL made of whatever `Host` the caller sent
    direct = {path: Problems(endpoint, parts.gateway) for path, endpoint in wires.items()}
    return Front(starlette, direct, parts.gateway)


def mobile_chat(upstreams: Upstreams, default: str | None, today: Callable[[], str]) -> MobileChat:
    """What apps ask for, in the words of the models that are sold. Raises Refusal for a default that is not."""

    def traits(name: str) -> Traits:
        try:
            model = upstreams.offer(wire, name, "").model  # as of no day, on which none is retired yet
        except errors.ModelNotFound:
            return Traits()
        assert model is not None
        retired = model.retires is not None and model.retires <= today()
        return Traits(model.reasoning, model.retires if retired else None)

    wire = MobileChat(default, traits)
    if default is not None:
        try:
            upstreams.offer(wire, default, today())
        except errors.ModelNotFound as error:
            raise Refusal(f"CHAT_DEFAULT_MODEL: {error.message}") from None
    return wire


def _paths(wire: Wire) -> list[str]:
    return [f"{base}{wire.path}" for base in ("/v1", "", "/v1/v1")]


def _routes(parts: Parts, wires: Mapping[str, WireEndpoint]) -> Sequence[BaseRoute]:
    routes: list[BaseRoute] = [Route(path, endpoint, methods=["POST"]) for path, endpoint in wires.items()]
    for method, path, name in ROUTES:
        paths = [path, path.removeprefix("/v1")] if path.startswith("/v1/models") else [path]
        routes += [Route(each, getattr(parts.api, name), methods=[method]) for each in paths]
    return routes


class WireEndpoint:
    """One wire format's route, as a plain ASGI application: what is streamed is not wrapped again."""

    def __init__(self, gateway: Gateway, wire: Wire, route: str | None = None) -> None:
        self._gateway, self._wire, self._route = gateway, wire, f"/v1{wire.path}" if route is None else route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay the request, and deliver what the relay hands over."""
        scope["state"].update(dialect=self._wire.dialect, route=self._route)
        work = await relay(self._gateway, self._wire, scope, receive)
        scope["state"]["relayed"] = True
        watch = asyncio.ensure_future(_gone(receive)) if work.bid.call.stream else None
        if watch is not None:
            watch.add_done_callback(lambda _: work.leave())
        try:
            head = await work.head
            raw = [(name.encode(), value.encode("latin-1")) for name, value in head.headers.items()]
            if head.body is not None:
                raw.append((b"content-length", str(len(head.body)).encode()))
                await send({"type": "http.response.start", "status": head.status, "headers": raw})
                await send({"type": "http.response.body", "body": head.body})
                return
            await send({"type": "http.response.start", "status": head.status, "headers": raw})
            while (data := await work.pipe.get()) is not None:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            work.leave()
            raise
        finally:
            if watch is not None:
                watch.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Front:
    """Around everything: our request id on every answer, and a line in the log.

    The wire formats' routes are found here, without Starlette's router and middleware, which cost a sixth of a billed
    request; what they add (CORS, another method, an unknown path) goes through them.
    """

    def __init__(self, starlette: Starlette, direct: Mapping[str, Problems], gateway: Gateway) -> None:
        self._starlette, self._direct, self._gateway = starlette, direct, gateway
        self._salt, self._count = os.urandom(6).hex(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http":
            return
        request_id = self._request_id()
        address = address_bucket(scope["client"][0] if scope.get("client") else None)
        state = scope["state"] = {"request_id": request_id, "address": address, "status": 0}
        added = [(b"x-request-id", request_id.encode()), (b"request-id", request_id.encode())]
        names = [name for name, _ in scope["headers"]]
        if b"upgrade" in names:  # the parser takes such a request's body for the next request, so none may follow
            added.append((b"connection", b"close"))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        app: ASGI = self._starlette
        if scope["method"] == "POST" and b"origin" not in names:
            app = self._direct.get(scope["path"], app)
        try:
            await app(scope, receive, sending)
        finally:
            self._log(scope, state)

    def _request_id(self) -> str:
        """Sorts by time, as all ids do; unique by the process's salt and a count, which need no system call."""
        self._count = (self._count + 1) & 0xFFFFFFFF
        return f"req_{time.time_ns() // 1_000_000:012x}{self._salt}{self._count:08x}"

    def _log(self, scope: Scope, state: dict[str, Any]) -> None:
        gateway, route = self._gateway, scope.get("route")
        path = state.get("route") or (route.path if isinstance(route, Route) else "unknown")
        gateway.metrics.answers.add((path, str(state["status"])))
        if "relayed" not in state:  # a relay writes its own line, once its money is settled
            gateway.log.info(
                "answer",
                gateway.now(),
                id=state["request_id"],
                method=scope["method"],
                path=scope["path"],
                status=state["status"],
                address=state["address"],
            )


class Problems:
    """Turns what is raised below into an answer in the caller's dialect."""

    def __init__(self, app: ASGI, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        try:
            _check_size(scope["headers"])
            await self._app(scope, receive, send)
        except errors.Problem as problem:
            await self._say(problem, scope, receive, send)
        except Exception as error:
            self._gateway.alert("fault", error=type(error).__name__, where=_place(error))
            await self._say(errors.Internal(), scope, receive, send)

    async def _say(self, problem: errors.Problem, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["state"]["status"]:
            raise problem  # the answer has begun: all that can be told is that it ends without its last chunk
        body = envelope.render(dialect(scope), problem, scope["state"]["request_id"])
        body = redact_bytes(body, ())  # a message may repeat what was sent, and that may be a key in the wrong place
        await Response(body, problem.status, problem.headers, media_type="application/json")(scope, receive, send)


def _check_size(headers: Sequence[tuple[bytes, bytes]]) -> None:
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > MOST_HEADER_BYTES:
        if any(name in _CREDENTIALS and len(value) > MOST_HEADER_BYTES for name, value in headers):
            raise errors.NotAuthenticated()  # a credential of this length is none: no need to look at it
        raise errors.HeadersTooLarge(limit=MOST_HEADER_BYTES)


def dialect(scope: Scope) -> str:
    """Whose envelope an error has: the vendor's on its routes, ours on ours; Anthropic's where its version is sent."""
    path = scope["path"].removeprefix("/v1").removeprefix("/v1")
    if path.rstrip("/") in _OWN or path.startswith(("/keys/", "/holds/")):
        return "ours"
    if any(name == b"anthropic-version" for name, _ in scope["headers"]):
        return "anthropic"
    if "dialect" in scope["state"]:
        return cast(str, scope["state"]["dialect"])
    if path.startswith("/messages"):
        return "anthropic"
    vendors = path.startswith(("/chat", "/responses", "/embeddings", "/models", MOBILE_CHAT))
    return "openai" if vendors or scope["path"].startswith("/v1/") else "ours"


def _methods(routes: Sequence[BaseRoute], path: str) -> set[str]:
    """What is possible on a path, on all routes that share it."""
    found = [route for route in routes if isinstance(route, Route) and route.path_regex.match(path)]
    return {method for route in found for method in route.methods or ()}


async def _http_problem(request: Request, error: Exception) -> Response:
    """What the router refuses, as a problem."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        allow = ", ".join(sorted(_methods(request.app.routes, request.scope["path"])))
        raise errors.MethodNotAllowed(method=request.method, path=path, allow=allow, headers={"allow": allow})
    if path.startswith("/v1/"):
        raise errors.NotSold(path=path)
    raise errors.NotFound(path=path)


def _place(error: BaseException) -> str | None:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return None if place is None else f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}"
