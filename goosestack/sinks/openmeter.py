"""OpenMeter: CloudEvents, a hundred in a request.

`id` is the id of the usage row and `source` is a setting, so that OpenMeter's deduplication (by both) drops what it
has seen. Deduplication is off in a self-hosted OpenMeter unless it is configured, and remembers for 24 hours by
default. Amounts are strings, which keep their precision and which its meters parse. A correction is an event of its
own with negative amounts, which a meter that sums takes into account (openmeter.io/docs/metering/events).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
from yarl import URL

from goosestack.sinks import Event, Fact, Poster, Rejected, Sink, tell

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
    remembers_s: ClassVar[int | None] = 24 * 3600

    def __init__(
        self, client: Poster, base: str, token: str | None, *, source: str, type: str, subject: str, issuer: str = ""
    ) -> None:
        self._client, self._url, self._token = client, URL(base + PATH), token
        self._source, self._type, self._subject = source, type, subject
        self.issuer = issuer

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
            "source": self._source,
            "type": self._type,
            "subject": subject,
            "time": event.facts["settled_at"],
            "datacontenttype": "application/json",
            "data": {name: _text(fact) for name, fact in event.facts.items() if fact is not None},
        }


def _text(fact: Fact) -> str:
    return str(fact).lower() if isinstance(fact, bool) else str(fact)
