"""The outgoing client, before a server that breaks the rules of HTTP in the middle of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from goosestack.http import Answer, Broken, Client, Exchange, Lost, NotSent

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
GOOD, BAD = b"5\r\nhello\r\n", b"many\r\n"
SOON_S = 10.0


@asynccontextmanager
async def answered(pieces: Sequence[bytes], *, hangs_up: bool) -> AsyncIterator[Answer]:
    """An answer that comes in these pieces, each sent when the one before has arrived; then the server hangs up, or
    waits for us to."""
    arrived, over = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await arrived.wait()
        if not hangs_up:
            await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Client()
    try:
        answer = await client.post(URL(f"http://127.0.0.1:{port}/"), {}, b"{}")
        arrived.set()
        yield answer
        answer.close()
    finally:
        arrived.set()
        over.set()
        await client.close()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("hangs_up", [True, False], ids=["hung up", "still there"])
@pytest.mark.parametrize(
    "pieces",
    [[HEAD, BAD], [HEAD, GOOD, BAD], [HEAD + GOOD, BAD], [HEAD, GOOD + BAD], [HEAD + GOOD[:6], b"loX\r\n"]],
    ids=["at once", "after a piece", "after the first read", "within a read", "within a chunk"],
)
async def test_an_answer_that_cannot_be_parsed_any_more_is_broken_and_not_waited_for(
    pieces: list[bytes], hangs_up: bool
) -> None:
    """A stream whose chunk had no length kept its client waiting until the request's deadline, a quarter of an hour."""
    async with asyncio.timeout(SOON_S), answered(pieces, hangs_up=hangs_up) as answer:
        with pytest.raises(Broken):
            await answer.read(1024)


async def test_an_answer_that_cannot_be_parsed_from_its_head_on_is_lost() -> None:
    with pytest.raises(Lost):
        async with asyncio.timeout(SOON_S), answered([HEAD + GOOD + BAD], hangs_up=False):
            pass


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"
    async with asyncio.timeout(SOON_S), answered([head, b"hello ", b"you"], hangs_up=True) as answer:
        assert await answer.read(1024) == b"hello you"


# --- what became of a request ---------------------------------------------------------------------------------

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def keeping(requests: int) -> AsyncIterator[tuple[Client, URL]]:
    """A server that answers so many requests of each connection, and hangs up on the next once it is there; and who
    asks it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(requests):
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(WHOLE)
            await reader.readuntil(b"\r\n\r\n{}")
        except asyncio.IncompleteReadError:
            pass  # whoever asked has gone
        writer.close()

    server, client = await asyncio.start_server(serve, "127.0.0.1", 0), Client()
    try:
        async with asyncio.timeout(SOON_S):
            yield client, URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


async def asked(client: Client, url: URL) -> tuple[Exchange, Lost | NotSent | None]:
    """One request, its answer read to the end; what is known of it, and how it failed."""
    exchange = Exchange()
    try:
        answer = await client.post(url, {}, b"{}", exchange)
        await answer.read(1024)
        answer.close()
    except (Lost, NotSent) as error:
        return exchange, error
    return exchange, None


def lost(exchange: Exchange, error: Lost | NotSent | None, *, reused: bool) -> bool:
    """Whether it was sent over such a connection, and lost there."""
    return exchange == Exchange(sent=True, reused=reused) and isinstance(error, Lost) and error.reused is reused


async def test_what_is_lost_on_a_connection_that_was_idle_is_told_from_what_is_lost_on_a_new_one() -> None:
    async with keeping(2) as (client, url):
        assert await asked(client, url) == (Exchange(sent=True, reused=False), None)
        assert await asked(client, url) == (Exchange(sent=True, reused=True), None)
        assert lost(*await asked(client, url), reused=True)
        assert await asked(client, url) == (Exchange(sent=True, reused=False), None)
    async with keeping(0) as (client, url):
        assert lost(*await asked(client, url), reused=False)


async def test_requests_that_are_under_way_at_once_are_told_apart() -> None:
    async with keeping(1) as (client, url):
        assert await asked(client, url) == (Exchange(sent=True, reused=False), None)
        first, *others = await asyncio.gather(*(asked(client, url) for _ in range(3)))
        assert lost(*first, reused=True)
        assert others == [(Exchange(sent=True, reused=False), None)] * 2


async def test_where_there_is_no_connection_nothing_was_sent() -> None:
    async with keeping(1) as (_, url):
        pass
    client = Client()
    exchange, error = await asked(client, url)
    await client.close()
    assert exchange == Exchange(sent=False, reused=False) and isinstance(error, NotSent)
