"""A passthrough on GooseStack's stack with neither keys nor bills: `bare.py PORT BASE_URL`.

It is what the framework, the server and the HTTP client cost by themselves, written as a
competent small proxy would be: raw ASGI behind Starlette's routing, one shared session.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send


class Health:
    """GET /health."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


class Forward:
    """POST a body upstream and hand back the answer: whole, or as a stream as it comes."""

    def __init__(self, base: str) -> None:
        self.url = f"{base}/chat/completions"
        self.headers = {"Authorization": "Bearer sk-bench", "Content-Type": "application/json"}
        self.session: aiohttp.ClientSession

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Owns the session: any number of connections, no deadline, no cookies kept."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        ) as self.session:
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        async with self.session.post(self.url, data=body, headers=self.headers) as answer:
            mime = answer.headers.get("Content-Type", "application/octet-stream")
            headers = [(b"content-type", mime.encode())]
            last = b""
            streamed = mime.startswith("text/event-stream")
            if not streamed:
                last = await answer.read()
                headers.append((b"content-length", b"%d" % len(last)))
            start = {"type": "http.response.start", "status": answer.status, "headers": headers}
            await send(start)
            if streamed:
                async for part in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": last})


def app(base: str) -> Starlette:
    """The passthrough to an upstream's base URL, such as http://127.0.0.1:8080/v1."""
    forward = Forward(base)
    routes = [
        Route("/v1/chat/completions", forward, methods=["POST"]),
        Route("/health", Health(), methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=forward.lifespan)


if __name__ == "__main__":
    uvicorn.run(
        app(sys.argv[2]),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
