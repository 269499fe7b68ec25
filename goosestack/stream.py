"""What lies between a relay and the client: a bounded pipe of complete frames, and the rule for awaiting money."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

MOST_BUFFERED = 256 * 1024
"""Bytes that wait for a slow client before the upstream is read no further."""


class Pipe:
    """Frames from one relay to one response. The relay never waits for a client who has gone."""

    __slots__ = ("_closed", "_discard", "_frames", "_reader", "_size", "_writer", "last_write", "unread_since")

    def __init__(self, now: float) -> None:
        self._frames: list[bytes] = []
        self._size = 0
        self._closed = False
        self._discard = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.last_write = now
        self.unread_since = now
        """Loop times: of the last frame, and since when the reader has left something unread."""

    async def put(self, data: bytes, now: float) -> None:
        """Hand over complete frames, waiting while too much is unread."""
        self.put_now(data, now)
        while self._size > MOST_BUFFERED and not self._discard:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    def put_now(self, data: bytes, now: float) -> None:
        """Hand over complete frames without waiting."""
        if self._discard or self._closed:
            return
        if not self._frames:
            self.unread_since = now
        self._frames.append(data)
        self._size += len(data)
        self.last_write = now
        _wake(self._reader)

    async def get(self) -> bytes | None:
        """What has been handed over since; None at the end."""
        while not self._frames:
            if self._closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        frames, self._frames, self._size = self._frames, [], 0
        _wake(self._writer)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def waits_since(self, seconds: float, now: float) -> bool:
        """Whether the client has left something unread for so long."""
        return bool(self._frames) and now - self.unread_since > seconds

    def idle_since(self, seconds: float, now: float) -> bool:
        """Whether nothing has been handed over for so long, and everything was read."""
        return not self._frames and not self._closed and now - self.last_write > seconds

    def discard(self) -> None:
        """Nobody reads any more: forget what waits, and never wait again."""
        if not self._discard:
            self._discard = True
            self._frames, self._size = [], 0
            _wake(self._writer)

    def end_with(self, frame: bytes, now: float) -> None:
        """Forget what waits, hand over one last frame, and take no more."""
        self._frames, self._size = [], 0
        self.put_now(frame, now)
        self._discard = True
        _wake(self._writer)
        self.close()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        _wake(self._reader)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Deadline:
    """A time at which the task that made it is cancelled. As `asyncio.timeout`, for a fraction of its cost, on the path
    of every request; whoever is cancelled asks whether it `struck`."""

    __slots__ = ("_loop", "_task", "_timer", "struck", "when")

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.struck = False
        self.when = self._loop.time() + seconds
        self._timer = self._loop.call_at(self.when, self._strike)

    def bring_forward(self, when: float) -> None:
        """Strike at this loop time, unless that is later."""
        if when < self.when and not self.struck:
            self._timer.cancel()
            self.when = when
            self._timer = self._loop.call_at(when, self._strike)

    def stop(self) -> None:
        """Do not strike any more."""
        self._timer.cancel()

    def _strike(self) -> None:
        self.struck = True
        if self._task is not None:
            self._task.cancel()


async def surely(future: asyncio.Future[T], then: Callable[[T], None]) -> None:
    """Await a write to its end, also when cancelled meanwhile; `then` has its answer before anything is raised.

    Whoever waits for money must learn what became of it: a cancelled `await` would leave that open. The future is one
    that a store gave, which cannot be cancelled.
    """
    interrupted: BaseException | None = None
    while not future.done():
        try:
            await future
        except BaseException as error:
            if future.done() and future.exception() is error:
                break
            interrupted = error
    if interrupted is not None and future.exception() is not None:
        raise interrupted  # whoever was cancelled learns that first, and sees that nothing was told to `then`
    then(future.result())
    if interrupted is not None:
        raise interrupted
