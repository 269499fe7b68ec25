"""Reporting usage: for each sink a cursor over the settled rows, which moves once the receiver has everything.

The settlement is the outbox: rows are read by `settled_seq`, so nothing that settled can be missed, and a correction
is one more row. A batch goes through three states, each a transaction of this database:

    settled --fix--> pending --(sent, acknowledged)--> gone, and the cursor behind it
                        `------(refused for good)----> dead, until the operator retries or discards it

`fix` writes the events of the next rows down before anything is sent; from then on their ids and contents are what
they are. All state is in the database: a process that dies anywhere goes on where it was, and sends again what it has
no answer for, under the same id, which the receiver drops. Where the receiver forgets ids, an event whose fate has
been unknown for that long is not sent again, but becomes a dead letter. So that there are few of those, a receiver
whose state is unknown, at the start and after a failure, is asked with one event alone until it answers for it.

`Meter.turn` does what is due, on a clock and a source of chance that it is given; the verbs below it are an operator's.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from goosestack.sinks import AHEAD_S, Event, Rejected, Sink, Unavailable, Usage, unix
from goosestack.sinks.openmeter import OpenMeter
from goosestack.sinks.stripe_meter import StripeMeter
from goosestack.sinks.supabase import Supabase
from goosestack.sinks.webhook import Webhook
from goosestack.store import Store, Tx

SINKS: Mapping[str, type[Sink]] = {sink.name: sink for sink in (StripeMeter, OpenMeter, Supabase, Webhook)}

POLL_S = 1.0
"""How often an idle meter looks for something to report."""

LANES = 8
"""Requests to one receiver at once."""

LEAST_WAIT_S, MOST_WAIT_S = 1.0, 300.0
MOST_RETRY_AFTER_S = 3600.0
LATE_S = 600.0
"""Above this lag a sink is not well."""


class MeterError(Exception):
    """What an operator asked for cannot be done; the text says why."""


class Operator(Protocol):
    """Whom to tell of something to look at: `goosestack.relay.Desk`."""

    def alert(self, kind: str, **facts: object) -> None:
        """Tell it."""
        ...


@dataclass(slots=True)
class _Batch:
    """What became of a batch so far, by event id."""

    delivered: list[str] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)
    """Sent in vain: the receiver cannot have accepted them."""
    failure: Unavailable | None = None


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
            await self._store.write(begin, name, now)
            self._begun = True
        if not self._store.peek(_due, self.sink, now):
            return False
        await self._store.write(fix, self.sink, now, sending=self._answers)
        events = await self._store.read(_pending, self.sink)
        batch = _Batch()
        events = self._bury(batch, events)
        events = events if self._answers else events[:1]
        fresh = {event.id for event in events if event.tried_at in (None, now)}
        unmarked = [event.id for event in events if event.tried_at is None]
        if unmarked:
            await self._store.write(_mark, name, unmarked, now)
        await self._hand_over(batch, events)
        batch.untouched = [id for id in batch.untouched if id in fresh]
        failures = await self._store.write(_close, name, batch, now)
        if batch.failure is not None:
            await self._store.write(_wait, name, str(batch.failure), self._again_at(batch.failure, failures))
        self._tell(batch)
        return batch.failure is None

    def _bury(self, batch: _Batch, events: Sequence[Event]) -> Sequence[Event]:
        """Give up on events that cannot be sent again; the others."""
        if self.sink.remembers_s is None:
            return events
        since = later(self._now(), -self.sink.remembers_s)
        forgotten = {event.id for event in events if event.tried_at is not None and event.tried_at < since}
        for event in events:
            if event.id in forgotten:
                batch.dead[event.id] = (
                    f"nobody knows whether it has arrived: it was first sent at {event.tried_at}, and the receiver may"
                    " have forgotten its id"
                )
        return [event for event in events if event.id not in forgotten]

    async def _hand_over(self, batch: _Batch, events: Sequence[Event]) -> None:
        """Send events, a few requests at once."""
        size, lanes = self.sink.per_request, asyncio.Semaphore(LANES)
        parts = [events[start : start + size] for start in range(0, len(events), size)]
        await asyncio.gather(*(self._send(batch, part, lanes) for part in parts))
        if batch.failure is not None:
            self._answers = False
        elif parts:
            self._answers = True

    async def _send(self, batch: _Batch, events: Sequence[Event], lanes: asyncio.Semaphore) -> None:
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

    def _tell(self, batch: _Batch) -> None:
        if batch.failure is not None:
            self._operator.alert("meter", sink=self.sink.name, what=str(batch.failure))
        for id, reason in batch.dead.items():
            self._operator.alert("dead_letter", sink=self.sink.name, id=id, what=reason)


def later(now: str, seconds: float) -> str:
    """A time so many seconds after another, as all times are written."""
    moment = datetime.fromisoformat(now) + timedelta(seconds=seconds)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _asked_s(retry_after: str | None, now: str) -> float:
    """A `retry-after` header in seconds, whether it has seconds or a date; 0 for none, or nonsense."""
    if retry_after is None:
        return 0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - unix(now)
        except ValueError:
            return 0
    return min(seconds, MOST_RETRY_AFTER_S) if seconds > 0 else 0


# --- a meter's verbs ------------------------------------------------------------------------------------------


def begin(tx: Tx, sink: str, now: str) -> None:
    """Set a new sink's cursor behind all there is: what was used before it was turned on is not its concern. A known
    one goes on where it was, at once."""
    tx.execute(
        "INSERT INTO meter_cursors (sink, first_seq, settled_seq, fixed_seq, updated_at)"
        " SELECT ?, coalesce(max(settled_seq), 0), coalesce(max(settled_seq), 0), coalesce(max(settled_seq), 0), ?"
        " FROM usage_log WHERE true ON CONFLICT (sink) DO UPDATE SET retry_at = NULL",
        (sink, now),
    )


def _due(tx: Tx, sink: Sink, now: str) -> bool:
    """Whether there is something to report, and no wait before it. A wait longer than any that is ever set comes from
    a clock that was turned back."""
    row = tx.execute(
        "SELECT c.retry_at, u.ended_at,"
        " EXISTS (SELECT 1 FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending')"
        " FROM meter_cursors c LEFT JOIN usage_log u ON u.settled_seq = c.fixed_seq + 1 WHERE c.sink = ?",
        (sink.name,),
    ).fetchone()
    retry_at, oldest, pending = row
    if retry_at is not None and now < retry_at <= later(now, MOST_RETRY_AFTER_S + MOST_WAIT_S):
        return False
    return bool(pending) or (oldest is not None and sink.ripe(oldest, now))


def fix(tx: Tx, sink: Sink, now: str, *, sending: bool) -> None:
    """Write down the events of the next rows, unless some are pending; marked where all are `sending` from now on."""
    settled, fixed, first, pending = tx.execute(
        "SELECT settled_seq, fixed_seq, first_seq,"
        " EXISTS (SELECT 1 FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending')"
        " FROM meter_cursors c WHERE sink = ?",
        (sink.name,),
    ).fetchone()
    if pending:
        return
    rows = _rows(tx, sink, fixed, now)
    if not rows:
        return
    # A correction of what was settled before this sink was turned on corrects nothing that it knows.
    known = [row for row in rows if row.corrects is None or row.corrects > first]
    events, tried_at = sink.fix(tx, known, now), now if sending else None
    for number, event in enumerate(events):
        tx.execute(
            "INSERT INTO meter_events (sink, id, user_id, seq, facts, status, tried_at, fixed_at)"
            " VALUES (?, ?, ?, ?, ?, 'pending', ?, ?) ON CONFLICT (sink, id) DO NOTHING",
            (sink.name, event.id, event.user_id, fixed + 1 + number, json.dumps(dict(event.facts)), tried_at, now),
        )
    tx.execute(
        "UPDATE meter_cursors SET fixed_seq = ?, settled_seq = ?, updated_at = ? WHERE sink = ?",
        (rows[-1].seq, settled if events else rows[-1].seq, now, sink.name),
    )


def _rows(tx: Tx, sink: Sink, after: int, now: str) -> list[Usage]:
    """The next settled rows, up to the first that may not be reported yet."""
    found = tx.execute(
        "SELECT u.settled_seq, u.id, u.user_id, CASE WHEN a.id IS NULL THEN 'nobody' WHEN a.unit = 'tokens' THEN"
        " 'allowance' WHEN a.unit = 'usdc_micro' THEN 'channel' WHEN a.ref = '' THEN 'credits' ELSE 'overage' END,"
        " u.provider, u.model, u.wire, u.input_tokens, u.output_tokens, u.cache_read_tokens,"
        " u.cache_write_tokens + u.cache_write_long_tokens, u.reasoning_tokens, u.cost_nanos, u.cost_cents,"
        " u.estimated, u.created_at, u.ended_at, o.settled_seq"
        " FROM usage_log u LEFT JOIN accounts a ON a.id = u.account_id"
        " LEFT JOIN usage_log o ON u.id LIKE '%.c' AND o.id = substr(u.id, 1, length(u.id) - 2)"
        " WHERE u.settled_seq > ? AND u.settled_seq <= ? ORDER BY u.settled_seq",
        (after, after + sink.rows),
    )
    rows = []
    for row in found:
        usage = Usage(*row)
        if not sink.ripe(usage.ended_at, now):
            break
        rows.append(usage)
    return rows


def _pending(tx: Tx, sink: Sink) -> list[Event]:
    """What is to be sent, and how its users are called now."""
    rows = tx.execute(
        "SELECT e.id, e.user_id, e.facts, e.tried_at, u.stripe_customer_id,"
        " (SELECT min(i.subject) FROM identities i WHERE i.user_id = e.user_id AND i.issuer = ?)"
        " FROM meter_events e JOIN users u ON u.id = e.user_id"
        " WHERE e.sink = ? AND e.status = 'pending' ORDER BY e.seq, e.id LIMIT ?",
        (sink.issuer, sink.name, sink.rows),
    )
    return [Event(row[0], row[1], json.loads(row[2]), *row[3:]) for row in rows]


def _mark(tx: Tx, sink: str, ids: Sequence[str], now: str) -> None:
    """Note that these are sent from now on: should nobody say what became of them, that is when it began."""
    for id in ids:
        tx.execute("UPDATE meter_events SET tried_at = ? WHERE sink = ? AND id = ?", (now, sink, id))


def _close(tx: Tx, sink: str, batch: _Batch, now: str) -> int:
    """Write down what became of a batch. Where nothing of it is left, the cursor passes it. The answer is how often
    the receiver had failed before, in a row."""
    for id in batch.delivered:
        tx.execute("DELETE FROM meter_events WHERE sink = ? AND id = ? AND status = 'pending'", (sink, id))
    for id, reason in batch.dead.items():
        tx.execute(
            "UPDATE meter_events SET status = 'dead', reason = ? WHERE sink = ? AND id = ? AND status = 'pending'",
            (reason, sink, id),
        )
    for id in batch.untouched:
        tx.execute("UPDATE meter_events SET tried_at = NULL WHERE sink = ? AND id = ?", (sink, id))
    (failures,) = tx.execute("SELECT failures FROM meter_cursors WHERE sink = ?", (sink,)).fetchone()
    if batch.failure is None or batch.delivered:
        failures = 0
        tx.execute(
            "UPDATE meter_cursors SET failures = 0, error = NULL, retry_at = NULL, updated_at = ? WHERE sink = ?",
            (now, sink),
        )
    _pass(tx, sink)
    return int(failures)


def _pass(tx: Tx, sink: str) -> None:
    """Let the cursor pass a batch of which nothing is pending any more."""
    tx.execute(
        "UPDATE meter_cursors SET settled_seq = fixed_seq WHERE sink = ? AND NOT EXISTS"
        " (SELECT 1 FROM meter_events e WHERE e.sink = meter_cursors.sink AND e.status = 'pending')",
        (sink,),
    )


def _wait(tx: Tx, sink: str, error: str, retry_at: str) -> None:
    """Note that the receiver failed, and when it is to be tried again."""
    tx.execute(
        "UPDATE meter_cursors SET failures = failures + 1, error = ?, retry_at = ? WHERE sink = ?",
        (error, retry_at, sink),
    )


# --- what can be seen -----------------------------------------------------------------------------------------


def status(tx: Tx, now: str, on: Collection[str]) -> list[dict[str, Any]]:
    """Every sink that ever was: `sink`, whether it is `on` now (the settings say which are), `ok`, `lag` (settled rows that it has not got), `lag_s` (since when the oldest
    of them waits; 0 where its time is yet to come, which is not well), `pending` events, the `next` of them to be sent,
    `dead_letters`, `skipped` (rows of users whom it cannot know), `carried` (by unit: what Stripe's meter has not been
    told of yet), `failures` in a row, the latest `error`, `retry_at`."""
    rows = tx.execute(
        "SELECT c.sink, (SELECT coalesce(max(settled_seq), 0) FROM usage_log) - c.settled_seq, u.ended_at,"
        " (SELECT count(*) FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending'),"
        " (SELECT e.id FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending'"
        " ORDER BY e.seq, e.id LIMIT 1),"
        " (SELECT count(*) FROM meter_events e WHERE e.sink = c.sink AND e.status = 'dead'),"
        " c.skipped, c.failures, c.error, c.retry_at"
        " FROM meter_cursors c LEFT JOIN usage_log u ON u.settled_seq = c.settled_seq + 1 ORDER BY c.sink"
    ).fetchall()
    found = []
    for sink, lag, oldest, pending, first, dead, skipped, failures, error, retry_at in rows:
        lag_s = 0.0 if oldest is None else round(unix(now) - unix(oldest), 3)
        carried = tx.execute(
            "SELECT meter, sum(amount) FROM meter_carries WHERE meter LIKE ? GROUP BY meter HAVING sum(amount) <> 0",
            (f"{sink}:%",),
        )
        found.append(
            {
                "sink": sink,
                "on": sink in on,
                "ok": dead == 0 and -AHEAD_S <= lag_s < LATE_S,
                "lag": lag,
                "lag_s": max(0.0, lag_s),
                "pending": pending,
                "next": first,
                "dead_letters": dead,
                "skipped": skipped,
                "carried": {meter.partition(":")[2]: int(amount) for meter, amount in carried},
                "failures": failures,
                "error": error,
                "retry_at": retry_at,
            }
        )
    return found


def dead_letters(tx: Tx, sink: str, most: int) -> list[dict[str, Any]]:
    """What a receiver refused, the oldest first: `id`, `user_id`, `reason`, `fixed_at`, `facts`."""
    _known(tx, sink)
    rows = tx.execute(
        "SELECT id, user_id, reason, fixed_at, facts FROM meter_events WHERE sink = ? AND status = 'dead'"
        " ORDER BY seq, id LIMIT ?",
        (sink, most),
    )
    names = ("id", "user_id", "reason", "fixed_at", "facts")
    return [dict(zip(names, (*row[:4], json.loads(row[4])), strict=True)) for row in rows]


# --- an operator's verbs --------------------------------------------------------------------------------------


def retry(tx: Tx, sink: str, id: str | None) -> int:
    """Send dead letters again, one or all of a sink, and end any wait; how many."""
    _known(tx, sink)
    count = tx.execute(
        "UPDATE meter_events SET status = 'pending', reason = NULL, tried_at = NULL"
        " WHERE sink = ? AND status = 'dead' AND (? IS NULL OR id = ?)",
        (sink, id, id),
    ).rowcount
    if id is not None and count == 0:
        raise MeterError(f"{sink} has no dead letter {id}")
    tx.execute("UPDATE meter_cursors SET retry_at = NULL, failures = 0 WHERE sink = ?", (sink,))
    return count


def discard(tx: Tx, sink: str, id: str) -> None:
    """Give up on an event, dead or pending: it will never be sent again."""
    _known(tx, sink)
    if tx.execute("DELETE FROM meter_events WHERE sink = ? AND id = ?", (sink, id)).rowcount == 0:
        raise MeterError(f"{sink} has no dead letter {id}, and nothing of that id is waiting")
    _pass(tx, sink)


def last_before(tx: Tx, since: str) -> int:
    """The `settled_seq` of the last row that settled before a time. Looks at every row: not for the writer."""
    (first,) = tx.execute(
        "SELECT min(settled_seq) FROM usage_log WHERE settled_seq IS NOT NULL AND ended_at >= ?", (since,)
    ).fetchone()
    (last,) = tx.execute("SELECT coalesce(max(settled_seq), 0) FROM usage_log").fetchone()
    return int(last if first is None else first - 1)


def replay(tx: Tx, sink: str, since: str, after: int, now: str, *, force: bool) -> int:
    """Report everything again that settled since a time, which is behind row `after`; how many rows. For a receiver
    that has lost it; one that has not drops the ids that it knows, as long as it remembers them."""
    kind = _known(tx, sink)
    if not kind.replays:
        raise MeterError(f"{sink} cannot be replayed: it would bill again what it has")
    if kind.remembers_s is not None and since < later(now, -kind.remembers_s) and not force:
        raise MeterError(
            f"{sink} may have forgotten ids from before {later(now, -kind.remembers_s)}, and what it still has would"
            " count twice; use --force if it has lost everything since then"
        )
    first, settled, fixed = tx.execute(
        "SELECT first_seq, settled_seq, fixed_seq FROM meter_cursors WHERE sink = ?", (sink,)
    ).fetchone()
    if after >= fixed:
        return 0
    tx.execute(
        "UPDATE meter_cursors SET first_seq = ?, settled_seq = ?, fixed_seq = ?, retry_at = NULL, failures = 0"
        " WHERE sink = ?",
        (min(first, after), min(settled, after), after, sink),
    )
    return int(fixed - after)


def _known(tx: Tx, sink: str) -> type[Sink]:
    """What kind of sink a name stands for. Raises MeterError where it was never turned on."""
    if sink not in SINKS or tx.execute("SELECT 1 FROM meter_cursors WHERE sink = ?", (sink,)).fetchone() is None:
        raise MeterError(f"{sink} was never turned on; METERS lists the sinks that are on")
    return SINKS[sink]
