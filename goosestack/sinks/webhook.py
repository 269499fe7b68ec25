"""A webhook of the operator's own: one signed event in a request, by the rules of Standard Webhooks.

`webhook-id` is the id of the usage row: a receiver that keeps the ids it has seen counts nothing twice.
`webhook-timestamp` is the time of the attempt, and `webhook-signature` is `v1,` and the base64 of an HMAC-SHA256 over
`id.timestamp.body`, with the secret's own bytes as its key (standardwebhooks.com).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
from yarl import URL

from goosestack.sinks import Event, Poster, Sink, ask, unix

TYPE = "usage.settled"
PREFIX = "whsec_"


class Webhook(Sink):
    """One address of the operator's. Any 2xx accepts an event; 400, 409, 413 and 422 refuse it for good."""

    name: ClassVar[str] = "webhook"

    def __init__(self, client: Poster, url: str, secret: str, now: Callable[[], str]) -> None:
        self._client, self._url, self._now = client, URL(url), now
        self._secret = secret
        self._key = key_of(secret)

    async def send(self, events: Sequence[Event]) -> None:
        """See `Sink.send`."""
        (event,) = events
        body = msgspec.json.encode({"type": TYPE, "timestamp": event.facts["settled_at"], "data": dict(event.facts)})
        timestamp = str(int(unix(self._now())))
        headers = {
            "content-type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._key, event.id, timestamp, body),
        }
        answer = await ask(self._client, self._url, headers, body, [self._secret])
        if not answer.good:
            raise answer.problem()


def key_of(secret: str) -> bytes:
    """The bytes of a secret as it is written down: `whsec_` and base64. Raises ValueError."""
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)


def sign(key: bytes, id: str, timestamp: str, body: bytes) -> str:
    """The value of `webhook-signature`."""
    mac = hmac.new(key, b".".join((id.encode(), timestamp.encode(), body)), hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"
