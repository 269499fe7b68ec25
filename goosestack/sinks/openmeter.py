"""OpenMeter: CloudEvents, a hundred in a request.

`id` is the id of the usage row and `source` is a setting, kept with the event as it was, so that OpenMeter's
deduplication (by both) drops what it has seen. Deduplication is off in a self-hosted OpenMeter unless it is configured,
and remembers for 24 hours by default. Amounts are strings, which keep their precision and which its meters parse. A
correction is an event of its own with negative amounts, which a meter that sums takes into account
(openmeter.io/docs/metering/events).

Where users go by a name that not all have, those without one are not reported, and what they used until they have one
never will be: `meter_carries` keeps each user's first row that counts, and nothing to carry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
from yarl import URL

from goosestack.sinks import FIELDS, Event, Fact, Poster, Rejected, Sink, Usage, skip, tell
from goosestack.store import Tx

PATH = "/api/v1/events"
SUBJECTS = ("user_id", "stripe_customer_id", "supabase_id")
"""Under which of a user's names usage can be reported."""

_NAMES: dict[str, Callable[[Event], str | None]] = {
    "user_id": lambda event: event.user_id,
    "stripe_customer_id": lambda event: event.customer_id,
    "supabase_id": lambda event: event.subject,
}


class OpenMeter(Sink):
    """One OpenMeter."""

    name: ClassVar[str] = "openmeter"
    per_request: ClassVar[int] = 100
    remembers_s: ClassVar[int | None] = 23 * 3600

    def __init__(
        self, client: Poster, base: str, token: str | None, *, source: str, type: str, subject: str, issuer: str = ""
    ) -> None:
        self._client, self._url, self._token = client, URL(base + PATH), token
        self._source, self._type, self._subject = source, type, subject
        self.issuer = issuer

    def fix(self, tx: Tx, rows: Sequence[Usage], now: str) -> list[Event]:
        """See `Sink.fix`."""
        known = rows if self._subject == "user_id" else self._known(tx, rows)
        return [Event(row.id, row.user_id, {**row.facts(), "source": self._source}) for row in known]

    def _known(self, tx: Tx, rows: Sequence[Usage]) -> list[Usage]:
        """The rows of users who have the name, since they have it; the others are counted."""
        since: dict[str, int | None] = {}
        known = []
        for row in rows:
            if row.user_id not in since:
                since[row.user_id] = self._since(tx, row)
            first = since[row.user_id]
            if first is not None and first <= (row.seq if row.corrects is None else row.corrects):
                known.append(row)
        skip(tx, self.name, len(rows) - len(known))
        return known

    def _since(self, tx: Tx, row: Usage) -> int | None:
        """The first row that is reported of this row's user, whose name is known by now; None where it is not."""
        customer_id, subject = tx.execute(
            "SELECT u.stripe_customer_id, (SELECT min(i.subject) FROM identities i WHERE i.user_id = u.id AND"
            " i.issuer = ?) FROM users u WHERE u.id = ?",
            (self.issuer, row.user_id),
        ).fetchone()
        if (customer_id if self._subject == "stripe_customer_id" else subject) is None:
            return None
        meter = f"{self.name}:{self._subject}"
        tx.execute(
            "INSERT INTO meter_carries (meter, user_id, since_seq, amount) VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING",
            (meter, row.user_id, row.seq),
        )
        (first,) = tx.execute(
            "SELECT since_seq FROM meter_carries WHERE meter = ? AND user_id = ?", (meter, row.user_id)
        ).fetchone()
        return int(first)

    async def send(self, events: Sequence[Event]) -> None:
        """See `Sink.send`."""
        headers = {"content-type": "application/cloudevents-batch+json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        body = msgspec.json.encode([self._cloud_event(event) for event in events])
        await tell(self._client, self._url, headers, body, [self._token] if self._token else [])

    def _cloud_event(self, event: Event) -> dict[str, object]:
        subject = _NAMES[self._subject](event)
        if subject is None:
            raise Rejected(f"its user has no {self._subject}")
        return {
            "specversion": "1.0",
            "id": event.id,
            "source": event.facts["source"],
            "type": self._type,
            "subject": subject,
            "time": event.facts["settled_at"],
            "datacontenttype": "application/json",
            "data": {name: _text(fact) for name in FIELDS if (fact := event.facts[name]) is not None},
        }


def _text(fact: Fact) -> str:
    return str(fact).lower() if isinstance(fact, bool) else str(fact)
