"""Reporting usage: a `Meter` hands to a sink what its outbox has, and waits where the receiver fails.

Contents and progress are in the outbox (`goosestack.outbox`); a process that dies anywhere goes on where it was. Where
the receiver forgets ids, an event whose fate has been unknown for that long is not sent again, but becomes a dead
letter. So that there are few of those, a receiver whose state is unknown, at the start and after a failure, is asked
with one event alone until it answers for it.

`Meter.turn` does what is due, on a clock and a source of chance that it is given.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Protocol

from goosestack import outbox
from goosestack.clock import later
from goosestack.outbox import MOST_RETRY_AFTER_S, MOST_WAIT_S, Batch
from goosestack.sinks import Event, Rejected, Sink, Unavailable, unix
from goosestack.store import Store

POLL_S = 1.0
"""How often an idle meter looks for something to report."""

LANES = 8
"""Requests to one receiver at once."""

LEAST_WAIT_S = 1.0


class Operator(Protocol):
    """Whom to tell of something to look at: `goosestack.relay.Desk`."""

    def alert(self, kind: str, **facts: object) -> None:
        """Tell it."""
        ...


class Meter:
    """Reports to one sink. Several have nothing to do with each other but the store."""

    def __init__(
        self, store: Store, sink: Sink, operator: Operator, now: Callable[[], str], chance: random.Random
    ) -> None:
        self.sink = sink
        self._store, self._operator, self._now, self._chance = store, operator, now, chance
        self._begun = self._answers = False

    async def run(self) -> None:
        """Report for as long as the process lives."""
        while True:
            try:
                more = await self.turn()
            except Exception as error:
                self._operator.alert("job", job=f"meter {self.sink.name}", error=type(error).__name__)
                more = False
            if not more:
                await asyncio.sleep(POLL_S)

    async def turn(self) -> bool:
        """Report what is due, one batch at most; whether there may be more at once."""
        now, name = self._now(), self.sink.name
        if self._store.full:  # what becomes of the batch could not be written down
            return False
        if not self._begun:
            await self._store.write(outbox.begin, name, now)
            self._begun = True
        if not self._store.peek(outbox.due, self.sink, now):
            return False
        await self._store.write(outbox.fix, self.sink, now, sending=self._answers)
        events = await self._store.read(outbox.pending, self.sink)
        batch = Batch()
        events = self._bury(batch, events)[: None if self._answers else 1]
        fresh = {event.id for event in events if event.tried_at in (None, now)}
        unmarked = [event.id for event in events if event.tried_at is None]
        if unmarked:
            await self._store.write(outbox.mark, name, unmarked, now)
        await self._hand_over(batch, events)
        batch.untouched = [id for id in batch.untouched if id in fresh]
        failures = await self._store.write(outbox.close, name, batch, now)
        if batch.failure is not None:
            await self._store.write(outbox.wait, name, str(batch.failure), self._again_at(batch.failure, failures))
        self._tell(batch)
        return batch.failure is None

    def _bury(self, batch: Batch, events: list[Event]) -> list[Event]:
        """Give up on events that cannot be sent again; the others."""
        if self.sink.remembers_s is None:
            return events
        since = later(self._now(), -self.sink.remembers_s)
        forgotten = {event.id for event in events if event.tried_at is not None and event.tried_at < since}
        for event in events:
            if event.id in forgotten:
                batch.dead[event.id] = (
                    f"nobody knows whether it has arrived: it may have been sent since {event.tried_at}, and the"
                    " receiver may have forgotten its id"
                )
        return [event for event in events if event.id not in forgotten]

    async def _hand_over(self, batch: Batch, events: Sequence[Event]) -> None:
        """Send events, a few requests at once."""
        size, lanes = self.sink.per_request, asyncio.Semaphore(LANES)
        parts = [events[start : start + size] for start in range(0, len(events), size)]
        await asyncio.gather(*(self._send(batch, part, lanes) for part in parts))
        if batch.failure is not None:
            self._answers = False
        elif parts:
            self._answers = True

    async def _send(self, batch: Batch, events: Sequence[Event], lanes: asyncio.Semaphore) -> None:
        """Send some events in one request; where the receiver refuses them, halves of them, until it is one alone."""
        ids = [event.id for event in events]
        try:
            async with lanes:
                if batch.failure is not None:
                    batch.untouched += ids
                    return
                await self.sink.send(events)
        except Rejected as rejection:
            if len(events) == 1:
                batch.dead[ids[0]] = str(rejection)
                return
            middle = len(events) // 2
            await self._send(batch, events[:middle], lanes)
            await self._send(batch, events[middle:], lanes)
        except Unavailable as failure:
            batch.failure = failure
            if failure.certain:
                batch.untouched += ids
        except Exception as error:  # ours; the other requests end in peace, and the operator hears of it
            batch.failure = Unavailable(f"a mistake in GooseStack: {type(error).__name__}", certain=False)
        else:
            batch.delivered += ids

    def _again_at(self, failure: Unavailable, failures: int) -> str:
        """When to try again: the later of what the receiver asks for and a doubling, jittered wait."""
        now = self._now()
        wait_s = min(MOST_WAIT_S, LEAST_WAIT_S * 2 ** min(failures, 20)) * self._chance.uniform(0.5, 1)
        return later(now, max(wait_s, _asked_s(failure.retry_after, now)))

    def _tell(self, batch: Batch) -> None:
        if batch.failure is not None:
            self._operator.alert("meter", sink=self.sink.name, what=str(batch.failure))
        for id, reason in batch.dead.items():
            self._operator.alert("dead_letter", sink=self.sink.name, id=id, what=reason)


def _asked_s(retry_after: str | None, now: str) -> float:
    """A `retry-after` header in seconds, whether it has seconds or a date; 0 for none, or nonsense."""
    if retry_after is None:
        return 0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - unix(now)
        except (ValueError, OverflowError):
            return 0
    return min(seconds, MOST_RETRY_AFTER_S) if seconds > 0 else 0
