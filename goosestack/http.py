"""The one outgoing HTTP client: no redirects, no proxy variables, no cookies, identity encoding, bounded everywhere.

aiohttp, because on this path it was measured at a tenth or less of httpx's CPU time per request. Every failure is told
apart by what it means for money: `NotSent` (no byte can have been accepted), `Lost` (sent, and no answer came),
`Broken` (the answer broke off).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

IDLE_S = 15.0
"""How long an idle connection is kept; a provider that closes it later cannot surprise us often."""

CONNECT_S = 10.0
MOST_HEADER_BYTES = 32 * 1024
LARGE_BYTES = 4 * 1024 * 1024
"""Of a plain answer or of one frame; hardly any but of embeddings and of images is larger."""
MOST_AT_ONCE_BYTES = 1024 * 1024
"""Larger bodies are handed over piece by piece, so that others get their turn; aiohttp warns of any that are not."""


class NotSent(Exception):
    """No connection: nothing can have been accepted."""


class Lost(Exception):
    """The request was sent, and the connection ended before an answer.

    `reused` says that the connection had been idle before and broke at once: a provider closes those unread.
    """

    def __init__(self, detail: str, *, reused: bool) -> None:
        super().__init__(detail)
        self.reused = reused


class Broken(Exception):
    """The answer broke off, or is not one that may be read."""


@dataclass(slots=True)
class Exchange:
    """What became of one request so far, for whoever must judge it when it breaks off."""

    sent: bool = False
    """Whether any of it has left: before that, nothing can have been accepted."""
    reused: bool = False
    """Whether it went over a connection that had been idle."""


_EXCHANGE: ContextVar[Exchange] = ContextVar("exchange")
"""Of the request that the running task makes; none where a library makes its own (`session_for`)."""

AT_ONCE_S = 1.0
"""A reused connection that breaks within this time had been closed by the other side, unread."""


class Answer:
    """An answer whose head has arrived. Read it with `chunk` or `read`, and `close` it in any case."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunk(self) -> bytes:
        """What has arrived, waiting for something; empty at the end. Raises Broken."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Broken(type(error).__name__) from error

    async def read(self, most: int, turn: Turn | None = None) -> bytes:
        """All of it. Raises Broken, also where it is more than `most` bytes. With a `turn`, it waits for that before it
        reads beyond `LARGE_BYTES`."""
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await self.chunk():
                size += len(piece)
                if size > most:
                    raise Broken("the answer is too large")
                pieces.append(piece)
                if turn is not None:
                    await turn.needed(size)
            return b"".join(pieces)
        finally:
            pieces.clear()  # before anybody else's turn, also where an exception keeps this frame
            if turn is not None:
                turn.over()

    def close(self) -> None:
        """Let go: a connection whose answer was read to the end is kept, any other is closed at once."""
        self._response.close() if not self._response.content.at_eof() else self._response.release()


class Turn:
    """One answer's share of a lock, by which one at a time is kept in memory beyond `LARGE_BYTES`: so all together have
    room there. The others' connections wait meanwhile."""

    __slots__ = ("_has", "_lock")

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock, self._has = lock, False

    async def needed(self, size: int) -> None:
        """So much is kept now: wait for the turn where that is large, end it where it is no more."""
        if size <= LARGE_BYTES:
            self.over()
        elif not self._has:
            self._has = await self._lock.acquire()

    def over(self) -> None:
        """End it, if it ever began."""
        if self._has:
            self._has = False
            self._lock.release()


class Protocol(ResponseHandler):
    """aiohttp's, but that no answer outlives its connection: where what follows an answer's head cannot be parsed (a
    chunk whose length is no number), aiohttp 3.14 hangs up and leaves whoever reads the body to wait for ever."""

    used = False
    """Whether a request was sent on it before."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        body = self._payload
        super().connection_lost(exc)
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("the connection ended within the answer"))


class Connector(aiohttp.TCPConnector):
    """Idle connections are kept to be used again, but none on which something came that nobody had asked for: it would
    be taken for the answer to the next request, and that one's for the answer to the next but one.

    A request that is given a connection begins to leave at once, and its exchange says so. Tracing would tell the same,
    for a tenth of what a request costs.
    """

    def __init__(self, *, limit: int) -> None:
        super().__init__(limit=limit, keepalive_timeout=IDLE_S, ttl_dns_cache=60)
        made: Callable[..., ResponseHandler] = Protocol
        self._factory = partial(made, loop=self._loop)

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """See `aiohttp.BaseConnector`."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol, exchange = connection.protocol, _EXCHANGE.get(None)
            assert isinstance(protocol, Protocol)
            if protocol.should_close:
                connection.close()
                continue
            if exchange is not None:
                exchange.sent, exchange.reused = True, protocol.used
            protocol.used = True
            return connection


class Client:
    """The connections to all upstreams. Made inside the event loop; close it there."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=Connector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_field_size=MOST_HEADER_BYTES,
        )

    async def post(self, url: URL, headers: Mapping[str, str], body: bytes, exchange: Exchange | None = None) -> Answer:
        """Send a request; the answer's head. Raises NotSent or Lost; the caller bounds the time, and may look into the
        exchange at any time."""
        data = body if len(body) <= MOST_AT_ONCE_BYTES else BytesIO(body)
        return await self._ask("POST", url, headers, data, Exchange() if exchange is None else exchange)

    async def get(self, url: URL, headers: Mapping[str, str]) -> Answer:
        """Ask for something; see `post`."""
        return await self._ask("GET", url, headers, None, Exchange())

    async def _ask(
        self, method: str, url: URL, headers: Mapping[str, str], data: bytes | BytesIO | None, exchange: Exchange
    ) -> Answer:
        started, noting = time.monotonic(), _EXCHANGE.set(exchange)
        try:
            response = await self._session.request(method, url, data=data, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise NotSent(type(error).__name__) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as error:
            at_once = time.monotonic() - started < AT_ONCE_S
            raise Lost(type(error).__name__, reused=exchange.reused and at_once) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Lost(type(error).__name__, reused=False) from error
        finally:
            _EXCHANGE.reset(noting)
        assert exchange.sent, "an answer to what was not sent: aiohttp connects in another way than it did"
        return Answer(response)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()
        await asyncio.sleep(0)


def session_for(library: str, total_s: float) -> aiohttp.ClientSession:
    """Connections for a library that makes its requests itself, by the same rules; whoever asks for them closes them.

    `library` is sent as the user agent. The time is for each request, from its first byte to the answer's last."""
    return aiohttp.ClientSession(
        connector=Connector(limit=20),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S),
        headers={"user-agent": library},
        trust_env=False,
        max_field_size=MOST_HEADER_BYTES,
    )


FAILURES = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What a request over such connections can fail with."""
