"""Stripe's meters: one meter event for each request, or one for each user and minute.

A meter takes whole numbers above zero, so what cannot be reported is carried on, for each user: a correction downward
is taken off the next events, and what is less than a unit waits for more. At any time the sum of what was reported
plus the carry is the sum of what was settled.

Stripe drops an identifier that it has seen for at least 24 hours, takes timestamps of the last 35 days and of the next
5 minutes, and answers a repeated identifier with a 400 that means it has it (docs.stripe.com/api/billing/meter-event).
Whether the customer and the meter exist it finds out later: its `v1.billing.meter.*` events tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

import msgspec
from yarl import URL

from goosestack.sinks import (
    AHEAD_S,
    MOST_REASON,
    Answered,
    Event,
    Fact,
    Poster,
    Rejected,
    Sink,
    Unavailable,
    Usage,
    ask,
    skip,
    unix,
)
from goosestack.store import Tx

STRIPE = "https://api.stripe.com"
PATH = "/v1/billing/meter_events"
VALUES: Mapping[str, int] = {"tokens": 1, "cost": 1_000}
"""What an event can count, and how much of it makes a unit: a token; a microdollar, of nanodollars."""

PAYERS = ("credits", "allowance", "overage")
OLDEST_S = 35 * 24 * 3600 - 3600
"""The oldest timestamp, an hour short of what Stripe takes."""


@dataclass(slots=True)
class _Carry:
    """What of a user's usage is not reported: negative where too much was. `since` is their first row that counts."""

    customer_id: str | None
    since: int | None
    amount: int


@dataclass(slots=True)
class _Share:
    """What one event is to tell."""

    id: str
    user_id: str
    at: str = ""
    amount: int = 0


class StripeMeter(Sink):
    """One meter of a Stripe account, by the name of its events."""

    name: ClassVar[str] = "stripe_meter"
    remembers_s: ClassVar[int | None] = 23 * 3600
    replays: ClassVar[bool] = False

    def __init__(
        self,
        client: Poster,
        base: str | None,
        key: str,
        now: Callable[[], str],
        *,
        event_name: str,
        value: str,
        payers: Sequence[str],
        by_minute: bool,
    ) -> None:
        self._client, self._url, self._key, self._now = client, URL((base or STRIPE) + PATH), key, now
        self._event_name, self._value, self._grain = event_name, value, VALUES[value]
        self._meter = f"{self.name}:{value}"
        self._payers, self._by_minute = frozenset(payers), by_minute
        self.rows = 1_000 if by_minute else 200

    def ripe(self, settled_at: str, now: str) -> bool:
        """A minute is reported once it is over, but for one that a wrong clock has put far ahead."""
        return not self._by_minute or settled_at < now[:17] or unix(settled_at) > unix(now) + AHEAD_S

    # --- what is told ---

    def fix(self, tx: Tx, rows: Sequence[Usage], now: str) -> list[Event]:
        """Events for these rows, and the carries that they leave. A user without a Stripe customer is not reported,
        and what they used until they have one never will be."""
        carries: dict[str, _Carry] = {}
        shares: dict[str, _Share] = {}
        skipped = 0
        for row in rows:
            if row.payer not in self._payers:
                continue
            if row.user_id not in carries:
                carries[row.user_id] = self._find(tx, row.user_id)
            carry = carries[row.user_id]
            if carry.customer_id is None:
                skipped += 1
                continue
            if carry.since is None:
                carry.since = row.seq
            if row.corrects is not None and row.corrects < carry.since:
                continue  # what it corrects was not reported
            key = f"{row.user_id}:{row.ended_at[:16]}" if self._by_minute else row.id
            share = shares.get(key)
            if share is None:
                share = shares[key] = _Share(f"{key}:{row.seq}" if self._by_minute else key, row.user_id)
            share.at = min(row.ended_at, now)
            share.amount += row.tokens if self._value == "tokens" else row.cost_nanos - row.borne_nanos
        events = [event for share in shares.values() if (event := self._take(share, carries[share.user_id]))]
        self._keep(tx, carries, skipped)
        return events

    def _take(self, share: _Share, carry: _Carry) -> Event | None:
        """The event with all whole units that its user's carry has then; None where there is none."""
        carry.amount += share.amount
        value = max(0, carry.amount // self._grain)
        carry.amount -= value * self._grain
        facts: dict[str, Fact] = {
            "counts": self._value,
            "event_name": self._event_name,
            "value": value,
            "at": share.at,
        }
        return Event(share.id, share.user_id, facts) if value else None

    def _find(self, tx: Tx, user_id: str) -> _Carry:
        row = tx.execute(
            "SELECT u.stripe_customer_id, c.since_seq, coalesce(c.amount, 0) FROM users u"
            " LEFT JOIN meter_carries c ON c.user_id = u.id AND c.meter = ? WHERE u.id = ?",
            (self._meter, user_id),
        ).fetchone()
        return _Carry(*row)

    def _keep(self, tx: Tx, carries: Mapping[str, _Carry], skipped: int) -> None:
        for user_id, carry in carries.items():
            if carry.since is not None:
                tx.execute(
                    "INSERT INTO meter_carries (meter, user_id, since_seq, amount) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (meter, user_id) DO UPDATE SET amount = excluded.amount",
                    (self._meter, user_id, carry.since, carry.amount),
                )
        skip(tx, self.name, skipped)

    # --- telling it ---

    async def send(self, events: Sequence[Event]) -> None:
        """See `Sink.send`."""
        (event,) = events
        at = int(min(unix(str(event.facts["at"])), unix(self._now())))
        if event.customer_id is None:
            raise Rejected("its user has no Stripe customer any more")
        if unix(self._now()) - at > OLDEST_S:
            raise Rejected("it is older than the 35 days that Stripe takes")
        fields = {
            "event_name": self._event_name if self._ours(event) else str(event.facts["event_name"]),
            "payload[stripe_customer_id]": event.customer_id,
            "payload[value]": str(event.facts["value"]),
            "identifier": event.id,
            "timestamp": str(at),
        }
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/x-www-form-urlencoded"}
        answer = await ask(self._client, self._url, headers, urlencode(fields).encode(), [self._key])
        self._judge(answer, event)

    def _judge(self, answer: Answered, event: Event) -> None:
        told = _json(answer.text)
        if answer.good:
            if told.get("identifier") != event.id:
                raise Unavailable(f"status {answer.status}, but not Stripe's answer", certain=False)
            return
        error = told.get("error")
        if answer.status != 400 or not isinstance(error, dict):
            raise answer.problem(refusing=frozenset())  # that is not how Stripe refuses an event
        duplicate = "already exists with identifier" in str(error.get("message"))
        if duplicate or error.get("code") == "duplicate_meter_event":
            return
        # There is no such meter, or our clock is wrong (by it, the time is one that Stripe takes): no event's fault.
        if error.get("param") == "timestamp" or (error.get("param") == "event_name" and self._ours(event)):
            raise Unavailable(answer.text[:MOST_REASON], certain=True)
        raise answer.problem()

    def _ours(self, event: Event) -> bool:
        """Whether an event counts what the meter of the settings does. It goes there, under whatever name that has by
        now; one from before `value` was another goes under the name of its own time."""
        return event.facts["counts"] == self._value


def _json(text: str) -> dict[str, Any]:
    try:
        told = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return told if isinstance(told, dict) else {}
