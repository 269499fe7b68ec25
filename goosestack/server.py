"""The HTTP server: uvicorn, with three habits of its own. It drains before it stops; it answers what is no HTTP as
everything else is answered; and it does not hang up on whoever is still sending.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from goosestack import __version__, accounts, app, clock
from goosestack.errors import Malformed, NotYet
from goosestack.front import dialect
from goosestack.gateway import Gateway
from goosestack.limits import address_bucket
from goosestack.wire import envelope

KEEP_ALIVE_S = 75
"""How long the daemon keeps an idle connection: longer than a proxy in front, which so never meets a closed one."""

LINGER_S = 30.0
"""How long what still comes on a connection that we close is read, for nothing but that our answer arrives."""

LAST_WORD_S = 1.0
"""How long whoever is cut off by a stop has to read so."""


def bind(host: str, port: int) -> socket.socket:
    """The socket to listen on. Raises NotYet where the address cannot be had: it may come up, or be left."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise NotYet(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return sock


async def serve(sock: socket.socket, parts: app.Parts, ready: Callable[[str], None]) -> None:
    """Answer requests on the socket until a signal; `ready` is told the URL."""
    config = parts.config
    server = Server(
        uvicorn.Config(
            app.create_app(parts),
            host=config.host,
            port=config.port,
            http=cast(type[asyncio.Protocol], partial(Protocol, parts.gateway)),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what it says of callers is said in our own log
            access_log=False,
            server_header=False,
            proxy_headers=True,
            forwarded_allow_ips=",".join(_by_either_way(config.forwarded_allow_ips)),
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=config.drain_s + 15,
        ),
        parts,
        ready,
    )
    await server.serve([sock])


def _by_either_way(networks: Iterable[str]) -> Iterator[str]:
    """The same networks, and what those of IPv4 are called where they come to a socket for both."""
    for network in map(ipaddress.ip_network, networks):
        yield str(network)
        if network.version == 4:
            yield f"::ffff:{network.network_address}/{96 + network.prefixlen}"


class Server(uvicorn.Server):
    """uvicorn, which on a signal first lets the relays drain, and afterwards leaves the process to close its parts."""

    def __init__(self, config: uvicorn.Config, parts: app.Parts, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._parts = parts
        self._ready = ready
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and only then say so."""
        await super().startup(sockets)
        for sock in sockets or ():
            host, port = sock.getsockname()[:2]
            self._parts.gateway.log.info("listening", clock.utc_now(), host=host, port=port, version=__version__)
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop the server; a second one stops it at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let everything end; what has not when patience is over is answered, and no connection is left open, whatever
        its other side does: the event loop would wait for it as it closes."""
        await super().shutdown(sockets)
        connections = self.server_state.connections
        end = asyncio.get_running_loop().time() + LAST_WORD_S
        while connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        for connection in tuple(connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def _stop(self) -> None:
        patience = self._parts.config.drain_s if self._draining is None else 0
        self._draining = asyncio.get_running_loop().create_task(self._parts.gateway.drain(patience))
        self.should_exit = True


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, gateway: Gateway, **given: Any) -> None:
        super().__init__(**given)
        self._gateway = gateway
        self.url, self.headers = b"", []
        self.deaf = False
        """Whether what still comes is no longer listened to."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(Lingering(transport, self))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self.deaf:
            super().data_received(data)

    @property
    def unread(self) -> bool:
        """Whether more may come that belongs to what has been answered."""
        return self.deaf or (self.cycle is not None and self.cycle.more_body)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP: answer that, but never into another answer; what was asked before gets its own, and
        then the connection ends."""
        self.deaf, cycle = True, self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline or not cycle.more_body:
                cycle.keep_alive = False
                return
            cycle.disconnected = True  # its body is what went wrong
            cycle.message_event.set()
        self.transport.write(self._malformed())
        self.transport.close()

    def _malformed(self) -> bytes:
        """The answer, and a line in the log, in which nothing is repeated."""
        gateway, problem, request_id = self._gateway, Malformed(), accounts.new_id("req_")
        path = self.url.partition(b"?")[0].decode("latin-1")
        body = envelope.render(dialect({"path": path, "headers": self.headers, "state": {}}), problem, request_id)
        headers = {
            **problem.headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": request_id,
            "request-id": request_id,
        }
        address = address_bucket(None if self.client is None else self.client[0])
        gateway.metrics.answers.add(("unknown", str(problem.status)))
        gateway.log.info("answer", gateway.now(), id=request_id, status=problem.status, address=address)
        lines = [b"%b: %b" % header for header in self.server_state.default_headers]
        lines += [f"{name}: {value}".encode() for name, value in headers.items()]
        return b"\r\n".join([b"HTTP/1.1 400 Bad Request", *lines, b"", body])


class Lingering(asyncio.Transport):
    """A transport that closes in two steps where something is unread: TCP resets a connection that is closed on unread
    bytes, and whoever is still sending, or a proxy in between, may then never see the answer."""

    def __init__(self, transport: asyncio.Transport, protocol: Protocol) -> None:
        super().__init__()
        self._transport, self._protocol = transport, protocol
        self._end: asyncio.TimerHandle | None = None
        self.write = transport.write  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._end is not None or self._transport.is_closing()

    def close(self) -> None:
        """Say that no more is written, and read on until the other side has closed, or for LINGER_S; when called again,
        close at once."""
        protocol = self._protocol
        if self._end is not None or self._transport.is_closing() or not protocol.unread:
            if self._end is not None:
                self._end.cancel()
            self._transport.close()
            return
        protocol.deaf = True
        self._transport.write_eof()
        protocol.flow.resume_reading()
        self._end = protocol.loop.call_later(LINGER_S, self._transport.close)

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self._end is not None:
            self._end.cancel()
        self._transport.abort()
