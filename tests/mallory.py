"""Mallory: whoever asks for what is not theirs, and what must hold after everything that she tried.

She has a funded key, so that a gate which fails to refuse her would send something. A bad request must leave nothing
behind: no dispatch, no row, no hold, and no secret anywhere that she or a reader of the machine's files could look.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.world import ANTHROPIC_KEY, OPENAI_KEY, Customer, World, readable

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
WIRES = (CHAT, RESPONSES, EMBEDDINGS, MESSAGES, COUNT)
OPERATORS_IDS = ("org-canaryORG123", "proj_canary", "wrkspc_canary", "__cf_bm", "_cfuvid")
"""Whose account it is: what the upstream's headers and errors tell of the operator."""


def asks(path: str, text: str = "Hello", /, **more: object) -> dict[str, Any]:
    """The least request that this endpoint takes, and what is added to it."""
    least: dict[str, Any] = {"model": "gpt-4o-mini"}
    if path in (MESSAGES, COUNT):
        least["model"] = "claude-haiku-4-5"
    if path == EMBEDDINGS:
        least["model"] = "text-embedding-3-small"
    if path in (RESPONSES, EMBEDDINGS):
        least["input"] = text
    else:
        least["messages"] = [{"role": "user", "content": text}]
    if path == MESSAGES:
        least["max_tokens"] = 300
    return {**least, **more}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """What the error says."""
        return str(self.json["error"]["message"])


def dialect(path: str, headers: Mapping[str, str]) -> str:
    """In whose envelope an error belongs."""
    if "anthropic-version" in headers or path.startswith("/v1/messages"):
        return "anthropic"
    own = path.startswith(("/v1/keys", "/v1/usage", "/v1/holds", "/v1/pricing", "/v1/admin/"))
    own = own or not path.startswith(("/v1/", "/api/chat"))
    return "ours" if own else "openai"


def assert_error(reply: Reply, dialect: str, status: int) -> None:
    """The status, and an error in the caller's own format."""
    assert reply.status == status, (reply.status, reply.body[:500])
    assert reply.headers["content-type"] == "application/json"
    assert not re.search(rb"[^\x20-\x7e]", reply.body)
    request_id = reply.headers["x-request-id"]
    assert request_id == reply.headers["request-id"] and request_id.startswith("req_")
    told = reply.json
    error = told["error"]
    assert error["message"] and error["type"]
    if dialect == "openai":
        assert (set(told), set(error)) == ({"error"}, {"message", "type", "param", "code"})
    elif dialect == "anthropic":
        assert (set(told), set(error)) == ({"type", "error", "request_id"}, {"type", "message"})
        assert (told["type"], told["request_id"]) == ("error", request_id)
    else:
        assert set(told) == {"error"} and set(error) - {"param"} == {"message", "type", "request_id"}
        assert error["request_id"] == request_id


class Trap:
    """A port that nobody has any business to call."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def touched(self) -> bool:
        """Whether anybody has called."""
        return readable(self._socket, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()


@dataclass(slots=True)
class Mallory:
    """A caller with one keep-alive connection, in a world."""

    world: World
    cents: int = 1000
    pro: bool = False
    secrets: list[str] = field(default_factory=lambda: [OPENAI_KEY, ANTHROPIC_KEY])
    private: list[str] = field(default_factory=list)
    """What may come back to its sender, but may be written down nowhere."""
    customer: Customer = field(init=False)
    start: int = field(init=False)
    _connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        self.customer = self.world.customer(self.cents, name="mallory", pro=self.pro)
        self.secrets.append(self.customer.key)
        self.start = self.world.upstream.mark()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.close()
        if error is None:
            self.no_secret_in_files()
            self.no_fault()

    # --- asking ---

    def ask(
        self,
        path: str,
        sent: Mapping[str, object] | bytes | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        *,
        method: str = "POST",
        key: str | None = "",
    ) -> Reply:
        """Ask, with Mallory's own key where no other is given (None: without any); the answer as a whole."""
        data = sent if isinstance(sent, bytes) or sent is None else json.dumps(sent).encode()
        given = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        names = {name.lower() for name, _ in given}
        if key is not None and not names & {"authorization", "x-api-key"}:
            given.append(("authorization", f"Bearer {key or self.customer.key}"))
        if data is not None and "content-type" not in names:
            given.append(("content-type", "application/json"))
        if data is not None and not names & {"content-length", "transfer-encoding"}:
            given.append(("content-length", str(len(data))))
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.world.url.removeprefix("http://"), timeout=30)
        connection = self._connection
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in given:
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(data)
        answer = connection.getresponse()
        reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        self._no_secret(reply.body, f"the answer of {method} {path}")
        self._no_secret("".join(reply.headers.values()).encode("utf-8", "replace"), f"headers of {method} {path}")
        return reply

    def refused(
        self,
        status: int,
        path: str,
        sent: Mapping[str, object] | bytes | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        *,
        method: str = "POST",
        key: str | None = "",
    ) -> Reply:
        """Ask for something that must be refused with this status, in the format that the caller speaks."""
        reply = self.ask(path, sent, headers, method=method, key=key)
        try:
            assert_error(reply, dialect(path, {name.lower(): value for name, value in dict(headers).items()}), status)
        except AssertionError as error:
            shown = sent[:300] if isinstance(sent, bytes) else str(sent)[:300]
            raise AssertionError(f"{method} {path} {shown!r} {dict(headers)}: {error}") from error
        return reply

    # --- what must hold ---

    def dispatched(self) -> list[dict[str, Any]]:
        """What has reached the upstream since Mallory came."""
        return self.world.upstream.dispatches(self.start)

    def nothing_happened(self) -> None:
        """Nothing was sent, nothing was written down, nothing is held."""
        assert self.dispatched() == []
        assert self.world.rows(self.customer) == []
        assert self.world.funds(self.customer)["held_cents"] == 0
        assert self.world.funds(self.customer)["balance_cents"] == self.cents

    def no_secret_in_files(self) -> None:
        """No secret stands in the daemon's output, in its database, or in its metrics."""
        daemon = self.world.daemon
        for path in (daemon.program.output, *daemon.folder.glob("goosestack.db*")):
            if path.is_file():
                self._no_secret(path.read_bytes(), path.name, self.private)
        connection = http.client.HTTPConnection(self.world.url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/metrics")
        self._no_secret(connection.getresponse().read(), "/metrics", self.private)
        connection.close()

    def no_fault(self) -> None:
        """Nothing has gone wrong in the daemon that it did not expect."""
        output = self.world.daemon.program.text()
        assert '"kind":"fault"' not in output and "Traceback" not in output and "never retrieved" not in output

    def _no_secret(self, data: bytes, where: str, more: Iterable[str] = ()) -> None:
        for secret in (*self.secrets, *OPERATORS_IDS, *more):
            assert secret.encode() not in data, f"{secret} is in {where}"


def talk(world: World, *pieces: bytes) -> list[Reply]:
    """Send bytes as they are, and take every answer until the daemon closes the connection."""
    host, _, port = world.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while data := connection.recv(65_536):
            received += data
    return list(replies_in(received))


def replies_in(data: bytes) -> Iterable[Reply]:
    """The answers that came one after the other."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0)) if "transfer-encoding" not in headers else len(data)
        yield Reply(int(first.split()[1]), headers, data[:length])
        data = data[length:]
