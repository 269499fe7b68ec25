"""A webhook of the operator's own: one signed event in a request, by the rules of Standard Webhooks.

`webhook-id` is the id of the usage row: a receiver that keeps the ids it has seen counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
from yarl import URL

from goosestack import standard_webhooks
from goosestack.sinks import Event, Poster, Sink, ask, unix

TYPE = "usage.settled"


class Webhook(Sink):
    """One address of the operator's. Any 2xx accepts an event; 400, 409, 413 and 422 refuse it for good."""

    name: ClassVar[str] = "webhook"

    def __init__(self, client: Poster, url: str, secret: str, now: Callable[[], str]) -> None:
        self._client, self._url, self._now = client, URL(url), now
        self._secret = secret

    async def send(self, events: Sequence[Event]) -> None:
        """See `Sink.send`."""
        (event,) = events
        body = msgspec.json.encode({"type": TYPE, "timestamp": event.facts["settled_at"], "data": dict(event.facts)})
        headers = standard_webhooks.headers(self._secret, event.id, int(unix(self._now())), body)
        answer = await ask(self._client, self._url, headers, body, [self._secret])
        if not answer.good:
            raise answer.problem()
