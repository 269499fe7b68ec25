"""The ASGI side: from a scope to a relay's answer, with our request id, every failure in the caller's dialect."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, cast

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from goosestack import errors
from goosestack.gateway import Gateway, relay
from goosestack.limits import address_bucket
from goosestack.logs import redact_bytes
from goosestack.wire import Wire, envelope, mobile_chat

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_HEADER_BYTES = 32 * 1024
MOST_HEADERS = 100
_CREDENTIALS = (b"authorization", b"x-api-key")
_OWN = frozenset(
    ("", "/", "/health", "/readyz", "/metrics", "/pricing", "/keys", "/usage", "/holds", "/docs", "/close-channel")
)


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
        await _answer(problem, scope)(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's, but that a preflight it refuses is answered as every other error."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        try:
            await super().__call__(scope, receive, send)
        except errors.PreflightRefused as problem:
            await _answer(problem, scope)(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Starlette's, or the problem that its text tells."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        raise errors.PreflightRefused(what=bytes(response.body).decode().removeprefix(_DISALLOWED), headers=kept)


_DISALLOWED = "Disallowed CORS "


def _answer(problem: errors.Problem, scope: Scope) -> Response:
    body = envelope.render(dialect(scope), problem, scope["state"]["request_id"])
    body = redact_bytes(body, ())  # a message may repeat what was sent, and that may be a key in the wrong place
    return Response(body, problem.status, problem.headers, media_type="application/json")


def _check_size(headers: Sequence[tuple[bytes, bytes]]) -> None:
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > MOST_HEADER_BYTES:
        if any(name in _CREDENTIALS and len(value) > MOST_HEADER_BYTES for name, value in headers):
            raise errors.NotAuthenticated()  # a credential of this length is none: no need to look at it
        raise errors.HeadersTooLarge(limit=MOST_HEADER_BYTES)


def dialect(scope: Scope) -> str:
    """Whose envelope an error has: the vendor's on its routes, ours on ours; Anthropic's where its version is sent."""
    path = scope["path"].removeprefix("/v1").removeprefix("/v1")
    own = path.rstrip("/") in _OWN or path.startswith(("/keys/", "/holds/", "/billing/", "/admin/", "/api/"))
    if own and path != mobile_chat.ROUTE:
        return "ours"
    if any(name == b"anthropic-version" for name, _ in scope["headers"]):
        return "anthropic"
    if "dialect" in scope["state"]:
        return cast(str, scope["state"]["dialect"])
    if path.startswith("/messages"):
        return "anthropic"
    vendors = path.startswith(("/chat", "/responses", "/embeddings", "/models", mobile_chat.ROUTE))
    return "openai" if vendors or scope["path"].startswith("/v1/") else "ours"


def _methods(routes: Sequence[BaseRoute], path: str) -> set[str]:
    """What is possible on a path, on all routes that share it."""
    found = [route for route in routes if isinstance(route, Route) and route.path_regex.match(path)]
    return {method for route in found for method in route.methods or ()}


async def http_problem(request: Request, error: Exception) -> Response:
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
