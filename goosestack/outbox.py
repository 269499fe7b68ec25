"""What is not reported yet: for each sink a cursor over the settled rows, which moves once the receiver has everything.

The settlement is the outbox: rows are read by `settled_seq`, so nothing that settled can be missed, and a correction
is one more row. A batch goes through three states, each a transaction of this database:

    settled --fix--> pending --(sent, acknowledged)--> gone, and the cursor behind it
                        `------(refused for good)----> dead, until the operator retries or discards it

`fix` writes the events of the next rows down before anything is sent; from then on their ids and contents are what
they are. All state is in the database: what there is no answer for is sent again under the same id, which the receiver
drops. The verbs here are a meter's, and an operator's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from goosestack.accounts import payer_of
from goosestack.clock import later
from goosestack.sinks import AHEAD_S, Event, Sink, Unavailable, Usage, unix
from goosestack.sinks.openmeter import OpenMeter
from goosestack.sinks.stripe_meter import StripeMeter
from goosestack.sinks.supabase import Supabase
from goosestack.sinks.webhook import Webhook
from goosestack.store import Tx

SINKS: Mapping[str, type[Sink]] = {sink.name: sink for sink in (StripeMeter, OpenMeter, Supabase, Webhook)}

MOST_WAIT_S, MOST_RETRY_AFTER_S = 300.0, 3600.0
LATE_S = 600.0
"""Above this lag a sink is not well."""


class MeterError(Exception):
    """What an operator asked for cannot be done; the text says why."""


@dataclass(slots=True)
class Batch:
    """What became of a batch so far, by event id."""

    delivered: list[str] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)
    """Sent in vain: the receiver cannot have accepted them."""
    failure: Unavailable | None = None


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


def due(tx: Tx, sink: Sink, now: str) -> bool:
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


def restored(tx: Tx) -> None:
    """Note that these books come from a backup. What they know not to be reported may have been by those that they
    replace, since the latest time that they know of."""
    latest = tx.execute(
        "SELECT settled_seq, ended_at FROM usage_log WHERE settled_seq IS NOT NULL ORDER BY settled_seq DESC LIMIT 1"
    ).fetchone()
    if latest is not None:
        tx.execute("INSERT INTO restores (settled_seq, known_at) VALUES (?, ?)", latest)
        tx.execute("UPDATE meter_events SET tried_at = ? WHERE status = 'pending' AND tried_at IS NULL", (latest[1],))


def fix(tx: Tx, sink: Sink, now: str, *, sending: bool) -> None:
    """Write down the events of the next rows, unless some are pending; marked where all are `sending` from now on, and
    where they may have been sent by books that were replaced."""
    settled, fixed, first, pending = tx.execute(
        "SELECT settled_seq, fixed_seq, first_seq,"
        " EXISTS (SELECT 1 FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending')"
        " FROM meter_cursors c WHERE sink = ?",
        (sink.name,),
    ).fetchone()
    if pending:
        return
    in_doubt = tx.execute(
        "SELECT settled_seq, known_at FROM restores WHERE settled_seq > ? ORDER BY settled_seq, known_at LIMIT 1",
        (fixed,),
    ).fetchone()
    to, known_at = in_doubt or (None, None)
    rows = _rows(tx, sink, fixed, to, now)
    if not rows:
        return
    # A correction of what was settled before this sink was turned on corrects nothing that it knows.
    known = [row for row in rows if row.corrects is None or row.corrects > first]
    events, tried_at = sink.fix(tx, known, now), known_at or (now if sending else None)
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


def _rows(tx: Tx, sink: Sink, after: int, to: int | None, now: str) -> list[Usage]:
    """The next settled rows, up to the first that may not be reported yet, and to row `to` at most. Batches end where
    they ended before a restore, wherever that has begun again: what is gathered in one has the same parts then."""
    end = after + sink.rows - after % sink.rows
    found = tx.execute(
        f"SELECT u.settled_seq, u.id, u.user_id, {payer_of('u')},"
        " u.provider, u.model, u.wire, u.input_tokens, u.output_tokens, u.cache_read_tokens,"
        " u.cache_write_tokens + u.cache_write_long_tokens, u.reasoning_tokens, u.cost_nanos, u.cost_cents,"
        " CASE u.unit WHEN 'usd_cents' THEN u.shortfall ELSE 0 END,"
        " u.estimated, u.created_at, u.ended_at, o.settled_seq"
        " FROM usage_log u"
        " LEFT JOIN usage_log o ON u.id LIKE '%.c' AND o.id = substr(u.id, 1, length(u.id) - 2)"
        " WHERE u.settled_seq > ? AND u.settled_seq <= ? ORDER BY u.settled_seq",
        (after, end if to is None else min(end, to)),
    )
    rows = []
    for row in found:
        usage = Usage(*row)
        if not sink.ripe(usage.ended_at, now):
            break
        rows.append(usage)
    return rows


def pending(tx: Tx, sink: Sink) -> list[Event]:
    """What is to be sent, and how its users are called now."""
    rows = tx.execute(
        "SELECT e.id, e.user_id, e.facts, e.tried_at, u.stripe_customer_id,"
        " (SELECT min(i.subject) FROM identities i WHERE i.user_id = e.user_id AND i.issuer = ?)"
        " FROM meter_events e JOIN users u ON u.id = e.user_id"
        " WHERE e.sink = ? AND e.status = 'pending' ORDER BY e.seq, e.id LIMIT ?",
        (sink.issuer, sink.name, sink.rows),
    )
    return [Event(row[0], row[1], json.loads(row[2]), *row[3:]) for row in rows]


def mark(tx: Tx, sink: str, ids: Sequence[str], now: str) -> None:
    """Note that these are sent from now on: should nobody say what became of them, that is when it began."""
    for id in ids:
        tx.execute("UPDATE meter_events SET tried_at = ? WHERE sink = ? AND id = ?", (now, sink, id))


def close(tx: Tx, sink: str, batch: Batch, now: str) -> int:
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


def wait(tx: Tx, sink: str, error: str, retry_at: str) -> None:
    """Note that the receiver failed, and when it is to be tried again."""
    tx.execute(
        "UPDATE meter_cursors SET failures = failures + 1, error = ?, retry_at = ? WHERE sink = ?",
        (error, retry_at, sink),
    )


# --- what can be seen -----------------------------------------------------------------------------------------


def status(tx: Tx, now: str, on: Collection[str]) -> list[dict[str, Any]]:
    """Every sink that ever was: `sink`, whether it is `on` now (the settings say which are), `ok`, `lag` (settled rows
    that it has not got), `lag_s` (since when the oldest of them, or of what is sent again, waits; 0 where its time is
    yet to come, which is not well), `pending` events, the `next` of them to be sent, `dead_letters`, `skipped` (rows of
    users whom it cannot know), `carried` (by unit: what Stripe's meter has not been told of yet), `failures` in a row,
    the latest `error`, `retry_at`."""
    rows = tx.execute(
        "SELECT c.sink, (SELECT coalesce(max(settled_seq), 0) FROM usage_log) - c.settled_seq, u.ended_at,"
        " (SELECT count(*) FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending'),"
        " (SELECT e.id FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending'"
        " ORDER BY e.seq, e.id LIMIT 1),"
        " (SELECT e.fixed_at FROM meter_events e WHERE e.sink = c.sink AND e.status = 'pending'"
        " ORDER BY e.seq, e.id LIMIT 1),"
        " (SELECT count(*) FROM meter_events e WHERE e.sink = c.sink AND e.status = 'dead'),"
        " c.skipped, c.failures, c.error, c.retry_at"
        " FROM meter_cursors c LEFT JOIN usage_log u ON u.settled_seq = c.settled_seq + 1 ORDER BY c.sink"
    ).fetchall()
    found = []
    for sink, lag, oldest, pending, first, fixed_at, dead, skipped, failures, error, retry_at in rows:
        waits_s = [round(unix(now) - unix(at), 3) for at in (oldest, fixed_at) if at is not None]
        carried = tx.execute(
            "SELECT meter, sum(amount) FROM meter_carries WHERE meter LIKE ? GROUP BY meter HAVING sum(amount) <> 0",
            (f"{sink}:%",),
        )
        found.append(
            {
                "sink": sink,
                "on": sink in on,
                "ok": dead == 0 and all(-AHEAD_S <= wait_s < LATE_S for wait_s in waits_s),
                "lag": lag,
                "lag_s": max([0.0, *waits_s]),
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


def reach(tx: Tx, since: str) -> tuple[int, str]:
    """How far back what settled since a time reaches: the `settled_seq` before its first row, and the oldest time from
    there on, which is older where a clock ran ahead. Looks at every row: not for the writer."""
    (first,) = tx.execute(
        "SELECT min(settled_seq) FROM usage_log WHERE settled_seq IS NOT NULL AND ended_at >= ?", (since,)
    ).fetchone()
    if first is None:
        (last,) = tx.execute("SELECT coalesce(max(settled_seq), 0) FROM usage_log").fetchone()
        return int(last), since
    (oldest,) = tx.execute("SELECT min(ended_at) FROM usage_log WHERE settled_seq >= ?", (first,)).fetchone()
    return int(first) - 1, min(since, oldest)


def replay(tx: Tx, sink: str, after: int, oldest: str, now: str, *, force: bool) -> int:
    """Report everything again that is behind row `after`, the `oldest` of it of that time; how many rows. For a
    receiver that has lost it; one that has not drops the ids that it knows, as long as it remembers them."""
    kind = _known(tx, sink)
    if not kind.replays:
        raise MeterError(f"{sink} cannot be replayed: it would bill again what it has")
    if kind.remembers_s is not None and oldest < later(now, -kind.remembers_s) and not force:
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
