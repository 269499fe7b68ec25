"""Raw requests, for what an SDK hides: bytes, headers, and streams that are read line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.world import World


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was read to its end."""

    status: int
    headers: Message
    data: bytes

    def json(self) -> Any:
        """Its body."""
        return json.loads(self.data)


def connect(world: World) -> HTTPConnection:
    """A connection to the daemon."""
    return HTTPConnection(str(urlsplit(world.url).hostname), urlsplit(world.url).port, timeout=60)


def ask(
    world: World,
    method: str,
    path: str,
    *,
    key: str | None = None,
    body: object = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request: `body` as JSON, or `data` as it is."""
    connection = connect(world)
    try:
        _send(connection, method, path, key, body, data, headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


@contextmanager
def opened(
    world: World, path: str, *, key: str, body: object, headers: Mapping[str, str] | None = None
) -> Iterator[HTTPResponse]:
    """An answer whose head has come, to be read as its bytes arrive; closed at the end, wherever it stands then."""
    connection = connect(world)
    try:
        _send(connection, "POST", path, key, body, None, headers)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def _send(
    connection: HTTPConnection,
    method: str,
    path: str,
    key: str | None,
    body: object,
    data: bytes | None,
    headers: Mapping[str, str] | None,
) -> None:
    sent = {} if body is None and data is None else {"content-type": "application/json"}
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    connection.request(
        method, path, json.dumps(body).encode() if body is not None else data, {**sent, **(headers or {})}
    )


def directed(question: str, **directive: object) -> str:
    """A question that tells the upstream how to answer."""
    return f"{question} demo:{json.dumps(directive)}"


def chat(question: str = "Hello", **fields: object) -> dict[str, object]:
    """The body of a chat completion."""
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": question}], **fields}


def message(question: str = "Hello", **fields: object) -> dict[str, object]:
    """The body of an Anthropic message."""
    messages = [{"role": "user", "content": question}]
    return {"model": "claude-haiku-4-5", "max_tokens": 300, "messages": messages, **fields}
