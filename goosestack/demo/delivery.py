"""The connection to one peer: the parts of an HTTP answer, and the rude ways to end it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterable, Mapping

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from goosestack.demo.answer import Wire, encode, new_id
from goosestack.demo.directive import Directive
from goosestack.demo.strict import Json, Refusal

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


class Delivery:
    """One answer on its way to the peer.

    It counts the frames (or bodies) that left whole, and remembers the status. Its methods raise
    ConnectionError where the peer is gone, and are cancelled where the peer leaves during a pause.
    """

    def __init__(self, request: web.Request, wire: Wire, body: Json, directive: Directive, pause_s: float) -> None:
        self.wire, self.body, self.directive = wire, body, directive
        self.pause_s = pause_s if directive.delay_ms is None else directive.delay_ms / 1000
        self.frames = 0
        self.status: int | None = None
        self.request_id = new_id("req_")
        self._request = request
        self._response: web.StreamResponse | None = None
        self._writer: AbstractStreamWriter | None = None

    @property
    def response(self) -> web.StreamResponse:
        """What the server is handed back; after a raw close it has nobody left to send it to."""
        return web.Response() if self._response is None else self._response

    async def open(
        self,
        content_type: str,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        """Send the head of the answer; without a length the body is chunked."""
        given = {
            **self.wire.headers(self.request_id),
            "content-type": content_type,
            "cache-control": "no-cache",
            **(headers or {}),
            **self.directive.headers,
        }
        status = self.directive.status if status is None else status
        self._response = web.StreamResponse(status=status, headers=given)
        if length is not None:
            self._response.content_length = length
        self._writer = await self._response.prepare(self._request)
        self.status = status

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error in the vendor's envelope."""
        data = encode(self.wire.envelope(refusal, self.body, self.request_id))
        await self.open(JSON, len(data), refusal.headers, refusal.status)
        await self.write(data)
        await self.finish()

    async def send(self, frames: Iterable[bytes]) -> None:
        """Send frames one by one, with the pause between them."""
        for each in frames:
            if self.frames:
                await asyncio.sleep(self.pause_s)
            await self.write(each)
            self.frames += 1

    async def send_bytewise(self, data: bytes, pause_s: float) -> None:
        """Send every byte on its own."""
        for k in range(len(data)):
            await self.write(data[k : k + 1])
            await self.flush()
            await asyncio.sleep(pause_s)

    async def write(self, data: bytes) -> None:
        if self._response is None:
            raise RuntimeError("the head of the answer comes first")
        await self._response.write(data)

    async def write_raw(self, data: bytes) -> None:
        """Send bytes past HTTP, as they are, once all before them has left."""
        await self.flush()
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the peer has gone")
        transport.write(data)

    async def finish(self) -> None:
        """End the answer as HTTP wants it."""
        if self._response is not None:
            await self._response.write_eof()

    async def flush(self) -> None:
        """Wait until everything has left this process."""
        if self._writer is not None:
            self._writer.send_headers()
        transport = self._request.transport
        while transport is not None and not transport.is_closing():
            if not transport.get_write_buffer_size():
                break
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        """FIN, wherever in the answer we are."""
        await self.flush()
        if self._request.transport is not None:
            self._request.transport.close()

    async def reset(self) -> None:
        """RST, wherever in the answer we are: a close that lingers for zero seconds."""
        await self.flush()
        transport = self._request.transport
        if transport is None:
            return
        connection = transport.get_extra_info("socket")
        with socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
