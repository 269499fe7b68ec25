"""The demo upstream as a web application: one request from its receipt to its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from aiohttp import web

from goosestack.demo.acting import give
from goosestack.demo.answer import Wire
from goosestack.demo.anthropic import CountTokens, Messages
from goosestack.demo.chat import Chat
from goosestack.demo.delivery import JSON, Delivery
from goosestack.demo.directive import Directive, read
from goosestack.demo.embeddings import Embeddings
from goosestack.demo.faults import fits
from goosestack.demo.openai import Models
from goosestack.demo.responses import Responses
from goosestack.demo.strict import LIMIT_BYTES, Json, Refusal, parse

Log: TypeAlias = Callable[[dict[str, object]], None]

CALLER_KEY = "gsk_"  # GooseStack's own keys: none may ever get as far as a provider
STOP_S = 0.1
WITNESSED_BYTES = 2000  # of a body that is not JSON


def make_app(
    *,
    openai_key: str,
    anthropic_key: str,
    log: Log | None = None,
    chunk_delay_s: float = 0.0,
) -> web.Application:
    """The demo upstream: OpenAI's and Anthropic's routes, each behind its own key.

    log: is given two events per request, `dispatch` and `end`. They hold all that was received,
    credentials too: a witness for tests. chunk_delay_s: pause between the frames of a stream.
    Serve it with handler_cancellation, as `start` does, to have a pause end with the connection.
    """
    wires: dict[str, Wire] = {
        "/v1/chat/completions": Chat(openai_key),
        "/v1/responses": Responses(openai_key),
        "/v1/embeddings": Embeddings(openai_key),
        "/v1/models": Models(openai_key),
        "/v1/messages": Messages(anthropic_key),
        "/v1/messages/count_tokens": CountTokens(anthropic_key),
    }
    app = web.Application(client_max_size=LIMIT_BYTES)
    front = _Front(wires, log, chunk_delay_s)
    app.router.add_route("*", "/{path:.*}", front.handle)
    app.on_shutdown.append(front.stop)
    return app


async def start(app: web.Application, host: str = "127.0.0.1", port: int = 0) -> tuple[web.AppRunner, int]:
    """Serve an app from `make_app` in this loop; answers the runner, whose `cleanup()` stops it,
    and the port."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=STOP_S,
        auto_decompress=False,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, runner.addresses[0][1]


@dataclass
class _Visit:
    """What is known of one request so far."""

    seq: int
    request: web.Request
    wire: Wire
    raw: bytes | None  # None where it was larger than any vendor takes
    delivery: Delivery | None = None
    usage: object = field(default_factory=dict)
    outcome: str = "broken"  # unless the end is reached


class _Front:
    """Takes every request in, has a wire format answer it, and bears witness."""

    def __init__(self, wires: dict[str, Wire], log: Log | None, pause_s: float) -> None:
        self._wires = wires
        self._log = log
        self._pause_s = pause_s
        self._seq = itertools.count(1)
        self._stopping = False

    async def stop(self, app: web.Application) -> None:
        self._stopping = True

    async def handle(self, request: web.Request) -> web.StreamResponse:
        visit = await self._receive(request)
        self._witness_dispatch(visit)
        try:
            await self._serve(visit)
        except ConnectionError:
            visit.outcome = "client_gone"
            raise
        except asyncio.CancelledError:
            visit.outcome = "stopped" if self._stopping else "client_gone"
            raise
        finally:
            self._witness_end(visit)
        return web.Response() if visit.delivery is None else visit.delivery.response

    async def _receive(self, request: web.Request) -> _Visit:
        anthropic = request.path.startswith("/v1/messages")
        nearest = self._wires["/v1/messages" if anthropic else "/v1/models"]
        raw: bytes | None = None
        with contextlib.suppress(web.HTTPRequestEntityTooLarge):
            raw = await request.read()
        wire = self._wires.get(request.path, nearest)
        return _Visit(next(self._seq), request, wire, raw)

    async def _serve(self, visit: _Visit) -> None:
        body: Json = {}
        try:
            self._admit(visit)
            if visit.wire.method == "POST":
                body = parse(visit.raw or b"")
            visit.wire.check(body, visit.request.headers)
            directive, question = read(visit.wire.question(body))
            if not fits(directive.fault, visit.wire.name, bool(body.get("stream"))):
                raise Refusal(400, f"Demo directive: {directive.fault} does not fit this request.")
            answer = visit.wire.compose(body, directive, question)
        except Refusal as refusal:
            await self._deliver(visit, body, Directive()).refuse(refusal)
            visit.outcome = "refused"
            return
        visit.usage = answer.usage
        await give(self._deliver(visit, body, directive), answer)
        visit.outcome = f"fault:{directive.fault}" if directive.fault else "completed"

    def _deliver(self, visit: _Visit, body: Json, directive: Directive) -> Delivery:
        visit.delivery = Delivery(visit.request, visit.wire, body, directive, self._pause_s)
        return visit.delivery

    def _admit(self, visit: _Visit) -> None:
        """All that is refused by head and size alone."""
        request, headers = visit.request, visit.request.headers
        if CALLER_KEY in request.query_string or any(CALLER_KEY in v for v in headers.values()):
            raise Refusal(
                400,
                "LEAK: this request bears a GooseStack caller's key, which must never reach a "
                "provider. The gateway in front of this upstream is broken.",
                code="caller_key_leaked",
            )
        names = [name.lower() for name, _ in headers.items()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise Refusal(400, f"Headers given more than once: {', '.join(twice)}.")
        if request.path not in self._wires:
            raise Refusal(404, f"Invalid URL ({request.method} {request.path})")
        if request.method != visit.wire.method:
            raise Refusal(405, f"Not allowed to {request.method} on {request.path}.")
        visit.wire.authenticate(headers)
        if visit.raw is None:
            raise Refusal(413, f"The request exceeds the maximum of {LIMIT_BYTES} bytes.")
        if "content-encoding" in headers:
            raise Refusal(400, "An encoded request body is not supported.")
        if visit.wire.method == "POST" and request.content_type != JSON:
            status = 400 if visit.wire.vendor == "anthropic" else 415
            raise Refusal(status, f"Unsupported content type: '{headers.get('content-type')}'.")

    def _witness_dispatch(self, visit: _Visit) -> None:
        if self._log is None:
            return
        request = visit.request
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            lowered = name.lower()
            headers[lowered] = f"{headers[lowered]}, {value}" if lowered in headers else value
        event: dict[str, object] = {
            "event": "dispatch",
            "seq": visit.seq,
            "at": datetime.now(UTC).isoformat(),
            "method": request.method,
            "path": request.path,
            "query": request.query_string,
            "headers": headers,
            "body": None,
        }
        try:
            event["body"] = parse(visit.raw or b"")
        except Refusal:
            event["text"] = (visit.raw or b"")[:WITNESSED_BYTES].decode("utf-8", "replace")
        self._log(event)

    def _witness_end(self, visit: _Visit) -> None:
        if self._log is None:
            return
        event: dict[str, object] = {
            "event": "end",
            "seq": visit.seq,
            "outcome": visit.outcome,
            "status": None if visit.delivery is None else visit.delivery.status,
            "frames": 0 if visit.delivery is None else visit.delivery.frames,
            "usage": visit.usage,
        }
        self._log(event)
