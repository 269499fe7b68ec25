"""The fake as a web application: one request of the API, from its receipt to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

from goosestack.demo.strict import Json, Refusal
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import NEW_VERSION, token
from goosestack.demo.stripe.control import control_routes
from goosestack.demo.stripe.faults import Fault, refusal_of, strike
from goosestack.demo.stripe.idempotency import Kept
from goosestack.demo.stripe.pages import page_routes
from goosestack.demo.stripe.routes import Route, route_of
from goosestack.demo.stripe.shapes import expanded, public, put, render
from goosestack.demo.stripe.till import Till

LIMIT_BYTES = 1024 * 1024
STOP_S = 0.1
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
TEST_KEY = re.compile(r"sk_test_[A-Za-z0-9_]+")


def make_app(till: Till) -> web.Application:
    """The API, the control of it, and the pages, as one application. Serve it with handler_cancellation."""
    app = web.Application(client_max_size=LIMIT_BYTES)
    app.add_routes(control_routes(till))
    app.add_routes(page_routes(till))
    app.router.add_route("*", "/{path:.*}", _Front(till).handle)

    async def background(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(till.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app.cleanup_ctx.append(background)
    return app


async def start(
    till: Till, host: str = "127.0.0.1", port: int = 0, public_url: str | None = None
) -> tuple[web.AppRunner, int]:
    """Serve a till in this loop; answers the runner, whose `cleanup()` stops it, and the port. public_url: where a
    browser finds it, if not at that address."""
    runner = web.AppRunner(make_app(till), access_log=None, handler_cancellation=True, shutdown_timeout=STOP_S)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    found: int = runner.addresses[0][1]
    till.serve_at(public_url or f"http://{host}:{found}")
    return runner, found


class _Cut(Exception):
    """The connection is to be reset instead of an answer."""


@dataclass
class _Visit:
    """What is known of one request so far."""

    request: web.Request
    witness: Json
    tree: dict[str, form.Raw] = field(default_factory=dict)
    fault: Fault | None = None
    replayed: Kept | None = None

    @property
    def id(self) -> str:
        """As the answer names it."""
        found: str = self.witness["request_id"]
        return found

    @property
    def key(self) -> str | None:
        """The idempotency key, which only a POST can have."""
        return self.request.headers.get("idempotency-key") if self.request.method == "POST" else None

    def suffers(self, *kinds: str) -> bool:
        """Whether its fault is one of these."""
        return self.fault is not None and self.fault.kind in kinds


class _Front:
    """Answers the API's requests; each method is one step of it."""

    def __init__(self, till: Till) -> None:
        self.till = till

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to its end."""
        visit = _Visit(request, self._witness(request))
        try:
            await self._read(visit)
            self._admit(visit)
            self._strike(visit)
            status, body = await self._perform(visit)
            if visit.suffers("cut_after"):
                raise _Cut
        except Refusal as refusal:
            status, body = refusal.status, self._refuse(visit, refusal)
        except _Cut:
            reset(request)
            return web.Response()
        visit.witness["status"] = status
        if visit.suffers("not_json"):
            return web.Response(text="<h1>Bad gateway</h1>", content_type="text/html")
        return web.Response(status=status, body=body, headers=self._headers(visit, status), content_type=JSON)

    def _witness(self, request: web.Request) -> Json:
        witness: Json = {
            "seq": len(self.till.requests) + 1,
            "at": self.till.account.now,
            "method": request.method,
            "path": request.path,
            "params": None,
            "idempotency_key": request.headers.get("idempotency-key"),
            "version": request.headers.get("stripe-version"),
            "status": None,
            "replayed": False,
            "fault": None,
            "request_id": token("req_", 14),
            "error": None,
        }
        self.till.requests.append(witness)
        return witness

    async def _read(self, visit: _Visit) -> None:
        request = visit.request
        raw = await request.read()
        if raw and request.content_type != FORM:
            raise Refusal(
                400, f"Requests are forms ({FORM}), not {request.content_type}.", type="invalid_request_error"
            )
        try:
            sent = [request.rel_url.raw_query_string, raw.decode("ascii")]
        except UnicodeDecodeError:
            raise Refusal(400, "The request is not a well-formed form.", type="invalid_request_error") from None
        visit.tree = form.decode("&".join(each for each in sent if each))
        visit.witness["params"] = visit.tree

    def _admit(self, visit: _Visit) -> None:
        scheme, _, key = visit.request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            raise Refusal(401, "Give your secret key as a Bearer token.", type="invalid_request_error")
        wanted = self.till.secret_key
        if not TEST_KEY.fullmatch(key) or (wanted is not None and key != wanted):
            raise Refusal(401, f"Invalid API Key provided: {key[:8]}****", type="invalid_request_error")
        version = visit.request.headers.get("stripe-version", NEW_VERSION)
        if version != NEW_VERSION:
            raise Refusal(
                400, f"Invalid Stripe API version: {version}; this is {NEW_VERSION}.", type="invalid_request_error"
            )

    def _strike(self, visit: _Visit) -> None:
        visit.fault = strike(self.till.faults, visit.request.method, visit.request.path)
        if visit.fault is None:
            return
        visit.witness["fault"] = visit.fault.kind
        error = refusal_of(visit.fault.kind)
        if error is not None and not visit.suffers("error_500_after"):
            raise error
        if visit.suffers("cut"):
            raise _Cut

    async def _perform(self, visit: _Visit) -> tuple[int, bytes]:
        """Check, then do it once for its key: the key is in use until there is an answer."""
        found = route_of(visit.request.method, visit.request.path)
        if found is None:
            asked = f"{visit.request.method}: {visit.request.path}"
            raise Refusal(404, f"Unrecognized request URL ({asked}).", type="invalid_request_error")
        route, ids = found
        given = route.reader(visit.tree, "")
        if not self._begin(visit):
            assert visit.replayed is not None and visit.replayed.status is not None
            return visit.replayed.status, visit.replayed.body
        answer: tuple[int, bytes] | None = None
        try:
            if visit.suffers("hang"):
                await self._hang(visit)
            answer = self._effect(visit, route, ids, given)
            if visit.suffers("hang_after"):
                await self._hang(visit)
            return answer
        finally:
            if visit.key is not None and answer is not None:
                self.till.keys.end(visit.key, *answer)
            elif visit.key is not None:
                self.till.keys.forget(visit.key)

    def _begin(self, visit: _Visit) -> bool:
        """Whether the request is to be carried out; else its key has been answered before."""
        if visit.key is None:
            return True
        request = visit.request
        first = Kept(request.method, request.path, visit.tree, self.till.clock.now(), visit.id)
        visit.replayed = self.till.keys.begin(visit.key, first)
        visit.witness["replayed"] = visit.replayed is not None
        return visit.replayed is None

    async def _hang(self, visit: _Visit) -> None:
        assert visit.fault is not None
        await asyncio.sleep(visit.fault.seconds)

    def _effect(self, visit: _Visit, route: Route, ids: tuple[str, ...], given: Json) -> tuple[int, bytes]:
        account = self.till.account
        account.request = {"id": visit.id, "idempotency_key": visit.key}
        try:
            record = route.handler(account, given, *ids)
            shown = expanded(account, render(record), given.get("expand", []))
        except Refusal as refusal:
            return refusal.status, self._refuse(visit, refusal)
        finally:
            account.request = {"id": None, "idempotency_key": None}
        if visit.suffers("error_500_after"):
            error = refusal_of("error_500_after")
            assert error is not None
            return error.status, self._refuse(visit, error)
        if visit.fault is not None and visit.suffers("lie"):
            for path, value in visit.fault.set.items():
                put(shown, path, value)
        return 200, encode(shown)

    def _refuse(self, visit: _Visit, refusal: Refusal) -> bytes:
        visit.witness["error"] = refusal.code or refusal.type
        named = {"code": refusal.code, "param": refusal.param}
        return encode(
            {
                "error": {
                    **{name: value for name, value in named.items() if value is not None},
                    **public(refusal.details or {}),
                    "message": refusal.message,
                    "request_log_url": f"{self.till.base_url}/_control/requests#{visit.id}",
                    "type": refusal.type,
                }
            }
        )

    def _headers(self, visit: _Visit, status: int) -> dict[str, str]:
        headers = {"request-id": visit.id, "stripe-version": NEW_VERSION}
        if visit.key is not None:
            headers["idempotency-key"] = visit.key
        if visit.replayed is not None:
            headers |= {"idempotent-replayed": "true", "original-request": visit.replayed.request_id}
        if visit.suffers("error_500_after") or (visit.replayed is not None and status >= 500):
            headers["stripe-should-retry"] = "false"  # the key would only answer the same again
        return headers


def encode(document: Json) -> bytes:
    """JSON as the API formats it."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode()


def reset(request: web.Request) -> None:
    """RST: a close that lingers for zero seconds."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    with socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
