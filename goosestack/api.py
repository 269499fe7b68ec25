"""The small JSON endpoints: health, keys, usage, holds, models, prices, readiness, metrics."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from goosestack import __version__, accounts, allowance, errors, outbox, plans, pricing, usage
from goosestack.accounts import Principal
from goosestack.auth import credential, identify
from goosestack.gateway import Gateway, read_body
from goosestack.limits import RateLimit
from goosestack.plans import MOST_CENTS
from goosestack.pricing import Model
from goosestack.store import Tx
from goosestack.upstream import Provider
from goosestack.wire import Body, body as fields

MOST_BODY_BYTES = 16 * 1024
"""Of our own endpoints, which strangers may call: no more of the memory that models' requests share."""

PLAN = ("plan", "until", "quota", "used", "held", "remaining", "reset", "overage")
"""What `allowance.shown` tells of a plan."""

MOST_EMAIL = 254
MOST_NAME = 100
MOST_ROWS = 200
PAGE_ROWS = 500
"""Of a table, which is made and sent page by page: about 100 KB."""
STALLED_S = 30.0
"""How long a table waits for a caller who does not read it."""
NEW_KEYS_PER_HOUR = 60
"""For one user: keys have rate limits of their own, which making more of them must not void."""


@dataclass(slots=True)
class Health:
    """What the last check of the books found, kept by the job that makes them; and what else is to be looked at."""

    wrong: tuple[str, ...] = ()
    checked_at: str | None = None
    sinks: tuple[str, ...] = ()
    """Where usage is reported."""


Endpoint = Callable[[Request], Awaitable[Response]]


def limited(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose every answer tells what is left of the rate limit that it counted against, if it did: an
    endpoint leaves the headers that say so in the request's state, as `limits`."""

    async def call(request: Request) -> Response:
        state = request.scope["state"]
        try:
            response = await endpoint(request)
        except errors.Problem as problem:
            problem.headers = {**state.get("limits", {}), **problem.headers}
            raise
        response.headers.update(state.get("limits", {}))
        return response

    return call


class Table(StreamingResponse):
    """CSV that is made while it is sent; `done` is called when it has ended, however."""

    def __init__(self, pages: AsyncIterator[str], done: Callable[[], None], stalled_s: float = STALLED_S) -> None:
        super().__init__(pages, media_type="text/csv")
        self._done, self._stalled_s = done, stalled_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()

    async def stream_response(self, send: Send) -> None:
        """The same, but a caller who does not read is not waited for any longer: the answer ends without its last
        chunk."""

        async def patiently(message: Message) -> None:
            async with asyncio.timeout(self._stalled_s):
                await send(message)

        try:
            await super().stream_response(patiently)
        except TimeoutError:
            pass


class Api:
    """The endpoints of one gateway, each a coroutine of a request."""

    def __init__(
        self,
        gateway: Gateway,
        health: Health,
        signups: RateLimit | None,
        admin_token: str | None,
    ) -> None:
        self._gateway, self._health, self._signups, self._admin_token = gateway, health, signups, admin_token
        self._new_keys = RateLimit(NEW_KEYS_PER_HOUR, 3600, "new-key")
        self._reading_tables: set[str] = set()

    # --- open to all ---

    async def root(self, request: Request) -> Response:
        """`GET /`, `/health`: liveness, name, version."""
        return JSONResponse({"status": "ok", "name": "goosestack", "version": __version__})

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: what is sold, in the one shape that both vendors' SDKs parse."""
        await self._admit_anyone(request)
        entries = [_model_entry(provider.name, model) for provider, model in self._sold()]
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
        return JSONResponse({"object": "list", "data": entries, "has_more": False, **ends})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{id}`: one of them, also by an alias."""
        await self._admit_anyone(request)
        name = request.path_params["id"]
        target = self._gateway.upstreams.book.aliases.get(name, name)
        for provider, model in self._sold():
            if target in (model.id, *model.aliases):
                return JSONResponse({**_model_entry(provider.name, model), "id": name})
        raise errors.ModelNotFound(model=name[:100], hint="", param="model")

    async def prices(self, request: Request) -> Response:
        """`GET /v1/pricing`: dollars per 1,000 tokens as decimal strings, the operator's markup included; limits."""
        await self._admit_anyone(request)
        today, terms = self._gateway.now()[:10], self._gateway.policy.terms
        return JSONResponse(
            {
                "currency": "USD",
                "generated": self._gateway.upstreams.book.generated,
                "models": {
                    model.id: {"provider": provider.name, **price_entry(model, terms, today)}
                    for provider, model in self._sold()
                },
            }
        )

    def _sold(self) -> list[tuple[Provider, Model]]:
        return self._gateway.upstreams.sold(self._gateway.now()[:10])

    async def _admit_anyone(self, request: Request) -> None:
        """Count the request: for its key, or, where it has none that is valid, for its address."""
        gateway = self._gateway
        try:
            caller = await identify(gateway.identifiers, request.scope["headers"])
        except errors.Problem:
            await self._admit_stranger(request)
        else:
            request.scope["state"]["limits"] = await gateway.admit(caller)

    async def _admit_stranger(self, request: Request) -> None:
        state = request.scope["state"]
        state["limits"] = await self._gateway.strangers.hit(state["address"])

    # --- keys ---

    async def create_key(self, request: Request) -> Response:
        """`POST /v1/keys` `{"email", "name"}` -> 201 with the key, shown once: for a new user, or, with a valid key,
        for its account."""
        gateway, now = self._gateway, self._gateway.now()
        caller = None
        if credential(request.scope["headers"]) is not None:
            caller = await self._caller(request)
        else:
            await self._admit_stranger(request)
            if self._signups is None:
                raise errors.SignupClosed()
        body = await self._body(request, {"email", "name"})
        name = _label(body, "name", MOST_NAME) or "default"
        if caller is not None:
            await self._new_keys.hit(caller.user_id)
            try:
                made = await gateway.store.write(accounts.add_key, caller, name, now)
            except accounts.AccountError as error:
                raise errors.Invalid(reason=str(error)) from None
            if made is None:
                raise errors.NotAuthenticated()
        else:
            email = _email(body)
            assert self._signups is not None
            await self._signups.hit(request.scope["state"]["address"])
            made = await gateway.store.write(accounts.sign_up, email, name, now)
        message = "Keep this key: it is shown once. It has the credits of its account; a new account has none."
        return JSONResponse({**made, "message": message}, 201)

    async def list_keys(self, request: Request) -> Response:
        """`GET /v1/keys`: the caller's keys, by prefix."""
        caller = await self._caller(request)
        return JSONResponse({"api_keys": await self._gateway.store.read(_keys_of, caller.user_id)})

    async def revoke_key(self, request: Request) -> Response:
        """`DELETE /v1/keys/{id}`: the next request with it fails, and its live streams end at once."""
        caller = await self._caller(request)
        try:
            key_id = await self._gateway.store.write(accounts.revoke_key, request.path_params["id"], caller.user_id)
        except accounts.AccountError:
            raise errors.NotFound(path=request.url.path) from None
        self._gateway.end_of_key(key_id)
        return JSONResponse({"id": key_id, "revoked": True})

    # --- the caller, usage and holds ---

    async def me(self, request: Request) -> Response:
        """`GET /api/me`: who calls, what they may still use, how often they may ask. What belongs to a plan is null
        where none rations them."""
        caller = await self._caller(request)
        gateway = self._gateway
        answer = await gateway.store.read(_me, caller, gateway.rations)
        often, at_once = gateway.rate_limit_of(caller), gateway.most_in_flight(caller)
        limits = {
            "requests": often.requests,
            "window_s": often.window_s,
            "in_flight": None if at_once == 0 else at_once,
            "models": ["*"] if caller.member is None else list(caller.member.plan.models),
        }
        return JSONResponse({"user": answer["user"], **answer["plan"], "limits": limits, "balance": answer["balance"]})

    async def cap_spending(self, request: Request) -> Response:
        """`POST /api/me/spending-cap` `{"cents"}`: the most that the caller will spend in a period beyond their plan,
        where that is less than the operator lets them; null for no cap of their own."""
        caller = await self._caller(request)
        body = await self._body(request, {"cents"})
        self._gateway.still_stands(caller)
        cents = body.get("cents")
        if "cents" not in body or (cents is not None and (type(cents) is not int or not 0 <= cents <= MOST_CENTS)):
            raise errors.Invalid(
                reason=f"`cents` must be a whole number from 0 to {MOST_CENTS}, or null", param="cents"
            )
        gateway = self._gateway
        await gateway.store.write(plans.set_cap, caller.user_id, plans.USER, cents, gateway.now())
        caller = gateway.with_plan(caller)
        shown = await gateway.store.read(_plan, caller, gateway.rations)
        return JSONResponse({"cents": cents, "overage": shown["overage"]})

    async def usage(self, request: Request) -> Response:
        """`GET /v1/usage`: balance, what was used, the latest requests; `?since&until&limit&cursor`, `format=csv`."""
        caller = await self._caller(request)
        query = dict(request.query_params)
        if unknown := set(query) - {"since", "until", "limit", "cursor", "format"}:
            raise errors.Invalid(reason=f"unknown query parameter `{min(unknown)[:64]}`", param=min(unknown)[:64])
        since, until = _moment(query, "since"), _moment(query, "until")
        start = since or datetime.fromisoformat(self._gateway.now()) - timedelta(days=30)
        store = self._gateway.store
        if query.get("format", "json") == "csv":
            return self._table(caller.user_id, start, until)
        if query.get("format", "json") != "json":
            raise errors.Invalid(reason="`format` must be json or csv", param="format")
        limit = _limit(query.get("limit", "20"))
        cursor = query.get("cursor")
        if cursor is not None and (len(cursor) > 64 or not cursor.isascii() or not cursor.startswith("req_")):
            raise errors.Invalid(reason="`cursor` must be the `next_cursor` of an earlier answer", param="cursor")
        answer = await store.read(_usage, caller, self._gateway.rations, start, since, until, cursor, limit)
        until_pro = answer["pro_until"]
        answer["pro"] = isinstance(until_pro, str) and until_pro > self._gateway.now()
        return JSONResponse(answer)

    def _table(self, user_id: str, start: datetime, until: datetime | None) -> Response:
        """The settled requests of a time as CSV, in memory a page at a time; one table of a user at once."""
        reading = self._reading_tables
        if user_id in reading:
            raise errors.TooManyInFlight(limit=1, headers={"retry-after": "5"})
        reading.add(user_id)
        end = datetime.fromisoformat(self._gateway.now()) if until is None else until
        return Table(self._pages(user_id, start, end), lambda: reading.discard(user_id))

    async def _pages(self, user_id: str, start: datetime, end: datetime) -> AsyncIterator[str]:
        after, more = None, True
        while more:
            text, after = await self._gateway.store.read(usage.table, user_id, start, end, after, PAGE_ROWS)
            yield text
            more = after is not None

    async def holds(self, request: Request) -> Response:
        """`GET /v1/holds`: what is in flight for this user."""
        caller = await self._caller(request)
        return JSONResponse({"holds": await self._gateway.store.read(usage.held, caller.user_id)})

    async def end_hold(self, request: Request) -> Response:
        """`DELETE /v1/holds/{id}`: end its delivery; it settles by what was seen."""
        caller = await self._caller(request)
        relay = self._gateway.live.get(request.path_params["id"])
        if relay is None or relay.caller.user_id != caller.user_id:
            raise errors.NotFound(path=request.url.path)
        relay.end("it was cancelled by its user")
        return JSONResponse({"id": relay.id, "ended": True})

    async def _caller(self, request: Request) -> Principal:
        caller = await self._gateway.identify(request.scope)
        request.scope["state"]["limits"] = await self._gateway.admit(caller)
        return caller

    async def _body(self, request: Request, known: set[str]) -> Body:
        gateway = self._gateway
        raw = await read_body(gateway, request.scope, request.receive, MOST_BODY_BYTES)
        gateway.give_body("", len(raw))
        body = fields.parse(raw)
        if unknown := set(body) - known:
            raise errors.Invalid(reason=f"unknown field `{min(unknown)[:64]}`", param=min(unknown)[:64])
        return body

    # --- the operator's ---

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: books, upstreams, disk; 503 where something is wrong. A meter that lags only degrades it, and
        so does a plan that somebody has and that there is none of."""
        self._operator(request)
        gateway, health = self._gateway, self._health
        reported, unknown = await self._meters(), await self._unknown_plans()
        state = {
            "books": {"ok": not health.wrong, "wrong": list(health.wrong), "checked_at": health.checked_at},
            "upstreams": sorted(name for name, provider in gateway.upstreams.providers.items() if provider.key),
            "disk": {"ok": not gateway.store.full},
            "meters": {sink.pop("sink"): sink for sink in reported},
            "unknown_plans": unknown,
            "degraded": bool(unknown) or any(not sink["ok"] for sink in reported),
            "in_flight": len(gateway.live),
            "stopping": gateway.stopping,
        }
        ready = not health.wrong and not gateway.store.full and not gateway.stopping
        return JSONResponse({"ready": ready, **state}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        self._operator(request)
        metrics, gateway = self._gateway.metrics, self._gateway
        metrics.set("goosestack_open_holds", len(gateway.live))
        metrics.set("goosestack_disk_full", int(gateway.store.full))
        metrics.set("goosestack_unknown_plan_users", sum((await self._unknown_plans()).values()))
        for sink in await self._meters():
            metrics.meter_lag.set((sink["sink"],), sink["lag"])
            metrics.meter_lag_seconds.set((sink["sink"],), sink["lag_s"])
            metrics.dead_letters.set((sink["sink"],), sink["dead_letters"])
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def _meters(self) -> list[dict[str, Any]]:
        """How far the sinks that are on have got."""
        if not self._health.sinks:
            return []
        known = await self._gateway.store.read(outbox.status, self._gateway.now(), self._health.sinks)
        return [sink for sink in known if sink.pop("on")]

    async def _unknown_plans(self) -> dict[str, int]:
        """Plans that users have and that there are none of, where plans count."""
        gateway = self._gateway
        if gateway.plans is None:
            return {}
        return await gateway.store.read(plans.unknown, gateway.plans, gateway.now())

    def _operator(self, request: Request) -> None:
        """Raise NotPermitted unless the request comes from this machine or bears the operator's token."""
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._admin_token is not None and hmac.compare_digest(sent.encode(), self._admin_token.encode()):
            return
        host = request.client.host if request.client is not None else ""
        if not _is_loopback(host):
            raise errors.NotPermitted()


def _is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; IPv4 counts also as it is written on a socket for IPv6."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # no address at all proves nothing
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (address if mapped is None else mapped).is_loopback


def _keys_of(tx: Tx, user_id: str) -> list[dict[str, object]]:
    return [{name: key[name] for name in key if name != "user_id"} for key in accounts.list_keys(tx, user_id)]


def _me(tx: Tx, caller: Principal, rations: bool) -> dict[str, Any]:
    funds = accounts.funds(tx, caller.user_id)
    return {
        "user": accounts.show_user(tx, caller.user_id),
        "plan": _plan(tx, caller, rations),
        "balance": {**funds, "balance_usd": _usd(funds["balance_cents"])},
    }


def _plan(tx: Tx, caller: Principal, rations: bool) -> dict[str, object]:
    """The caller's plan and what is left of it; its name alone where it says no more than how often they may ask, and
    nothing where plans count for nothing."""
    if caller.member is None:
        return dict.fromkeys(PLAN)
    if not rations:
        return {**dict.fromkeys(PLAN), "plan": caller.member.plan.name, "until": caller.member.until}
    return allowance.shown(tx, caller.member, caller.user_id)


def _usage(
    tx: Tx,
    caller: Principal,
    rations: bool,
    start: datetime,
    since: datetime | None,
    until: datetime | None,
    cursor: str | None,
    limit: int,
) -> dict[str, object]:
    funds = accounts.funds(tx, caller.user_id)
    rows = usage.recent(tx, caller.user_id, since, until, cursor, limit)
    return {
        "balance_cents": funds["balance_cents"],
        "balance_usd": _usd(funds["balance_cents"]),
        "held_cents": funds["held_cents"],
        "available_cents": funds["available_cents"],
        "debt_cents": funds["debt_cents"],
        "pro": False,
        "pro_until": accounts.pro_until(tx, caller.user_id),
        "usage_30d": usage.by_model(tx, caller.user_id, start, until),
        "recent_requests": rows,
        "next_cursor": rows[-1]["id"] if len(rows) == limit else None,
        "api_keys": _keys_of(tx, caller.user_id),
        "allowance": _plan(tx, caller, rations) if rations else None,
    }


def _usd(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _moment(query: dict[str, str], name: str) -> datetime | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise errors.Invalid(reason=f"`{name}` must be a date or a time as 2026-01-31T12:00:00Z", param=name) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or not 1 <= int(text) <= MOST_ROWS:
        raise errors.Invalid(reason=f"`limit` must be a whole number from 1 to {MOST_ROWS}", param="limit")
    return int(text)


def _label(body: Body, name: str, most: int) -> str | None:
    text = fields.string(body, name)
    if text is not None and (len(text) > most or any(unicodedata.category(mark)[0] == "C" for mark in text)):
        raise errors.Invalid(reason=f"`{name}` must be at most {most} printable characters", param=name)
    return text


def _email(body: Body) -> str:
    email = _label(body, "email", MOST_EMAIL)
    local, at, domain = (email or "").partition("@")
    if not (local and at and domain) or "@" in domain or any(mark.isspace() for mark in email or ""):
        raise errors.Invalid(reason="`email` must be an e-mail address", param="email")
    return email or ""


def _model_entry(provider: str, model: Model) -> dict[str, object]:
    return {
        "id": model.id,
        "object": "model",
        "type": "model",
        "created": 0,
        "created_at": "1970-01-01T00:00:00Z",
        "owned_by": provider,
        "display_name": model.name,
        "max_input_tokens": model.max_input,
        "max_tokens": model.max_output,
        **({} if model.retires is None else {"retires_at": model.retires}),
    }


def price_entry(model: Model, terms: pricing.Terms, today: str) -> dict[str, object]:
    """All prices of a model: dollars per 1,000 tokens as decimal strings, what it costs here, by tier and length."""

    def shown(picos: int) -> str:
        return pricing.per_thousand(picos, terms)

    def of(rate: pricing.Rate) -> dict[str, object]:
        return {
            "inputPer1kTokens": shown(rate.input),
            **({"outputPer1kTokens": shown(rate.output)} if model.kind == "chat" else {}),
            "cacheReadPer1kTokens": shown(rate.cache_read),
            "cacheWritePer1kTokens": shown(rate.cache_write),
            "cacheWriteLongPer1kTokens": shown(rate.cache_write_long),
            **({} if rate.input_audio == rate.input else {"inputAudioPer1kTokens": shown(rate.input_audio)}),
            **({} if rate.output_audio == rate.output else {"outputAudioPer1kTokens": shown(rate.output_audio)}),
        }

    others = [
        {"tier": rate.tier, "aboveInputTokens": rate.above, **of(rate)}
        for tier in sorted(model.tiers(today))
        for rate in model.rates_of(tier, today)
        if (tier, rate.above) != (pricing.STANDARD, 0)
    ]
    return {
        **of(model.rates_of(pricing.STANDARD, today)[0]),
        "otherRates": others,
        "webSearchPerCall": None if model.web_search is None else pricing.dollars(terms.apply(model.web_search * 1000)),
        **({} if model.us_percent == 100 else {"usOnlyPercent": model.us_percent}),
        "contextTokens": model.context,
        "maxInputTokens": model.max_input,
        "maxOutputTokens": model.max_output,
        "kind": model.kind,
        "retiresAt": model.retires,
    }
