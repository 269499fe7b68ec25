"""Requests that must be refused, by name: the tables of `tests/test_threats_*.py` as single cases; and two ways to send
whatever it is, a kept connection (`Telephone`) and bytes as they are (`shouted`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tests import (
    test_threats_bodies as bodies,
    test_threats_denial as denial,
    test_threats_keys as keys,
    test_threats_own_keys as own_keys,
    test_threats_price as price,
    test_threats_routing as routing,
)
from tests.faults import answer_in
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, WIRES, Reply, asks, replies_in

Headers = Sequence[tuple[str, str]]
KEY_HEADERS = ("authorization", "x-api-key")
NO_TRUTHS: list[object] = [0, 1, "true", "false", "", [], {}, 1.0, "yes"]
NO_COLUMNS: list[object] = [1, "usr_a", True, None, {"a": 1}]
NO_CENTS: list[object] = [-1, 1.5, "5", True, [], 10**30, {}]
ELSEWHERE = "http://127.0.0.1:9"
NO_PLACES: list[object] = [ELSEWHERE, {"api_base": ELSEWHERE}, [{"base_url": ELSEWHERE, "api_key": "sk-evil"}]]


@dataclass(frozen=True, slots=True)
class Named:
    """One request, and the status that refuses it. Without a credential among its headers it bears Mallory's."""

    name: str
    status: int
    path: str
    data: bytes
    headers: Headers = ()
    method: str = "POST"


def _case(what: str, status: int, path: str, sent: object, headers: Headers = (), method: str = "POST") -> Named:
    data = sent if isinstance(sent, bytes) else b"" if sent is None else json.dumps(sent).encode()
    return Named(f"{what}, {method} {path}", status, path, data, headers, method)


def named(key: str) -> Iterator[Named]:
    """Every case; `key` is Mallory's."""
    yield from _bodies()
    yield from _models_and_tools()
    yield from _routes_and_urls()
    yield from _credentials(key)
    yield from _own_endpoints()


# --- the cases --------------------------------------------------------------------------------------------------


def _bodies() -> Iterator[Named]:
    for path, name, fields in bodies.FROM_ONE + bodies.FROM_ZERO:
        zero = ["0", "-0"] if (path, name, fields) in bodies.FROM_ONE else []
        for number in bodies.ODD_NUMBERS + zero:
            text = bodies.raw(path, **fields).replace(f'"{bodies.NUMBER}"', number)
            yield _case(f"{name} of {number[:40]}", 400, path, text.encode())
    for path in WIRES:
        good = bodies.raw(path)
        for twice in bodies.TWICE:
            for depth in (0, 1, 50):
                text = f'{good[:-1]},"metadata":{bodies._nested(depth, twice)}}}'
                yield _case(f"a key twice, {depth} deep: {twice}", 400, path, text.encode())
        for depth in (64, 1_000, 100_000):
            for form in ("[" * depth + "]" * depth, bodies._nested(depth, "1")):
                yield _case(f"{form[0]} {depth} deep", 400, path, f'{good[:-1]},"unknown":{form}}}'.encode())
        for encoding in bodies.ENCODINGS:
            yield _case(f"a body in {encoding}", 400, path, good.encode(encoding))
        for half in bodies.SURROGATES:
            yield _case(f"half a character, {half}", 400, path, good.replace("Hello", half).encode())
        for data in bodies.NO_UTF8:
            yield _case(f"no UTF-8, {data!r}", 400, path, good.encode().replace(b"Hello", data))
        for kind in [*denial.NO_JSON_TYPES, ""]:
            yield _case(f"a body of type {kind!r}", 415, path, asks(path), [("content-type", kind)])
        for encoding in denial.ENCODED:
            yield _case(f"a body packed as {encoding}", 415, path, bytes(100), [("content-encoding", encoding)])
        for value in NO_TRUTHS if path != COUNT else ():
            yield _case(f"stream of {value!r}", 400, path, asks(path, stream=value))
    for path in [*WIRES, "/v1/keys"]:
        for text in bodies.NO_JSON:
            yield _case(f"no JSON, {text!r}", 400, path, text.encode())


def _models_and_tools() -> Iterator[Named]:
    for path in WIRES:
        for model in price.UNPRICED:
            yield _case(f"the model {model[:60]!r}", 404, path, asks(path, model=model))
        for odd in price.NO_NAMES:
            yield _case(f"no model's name, {str(odd)[:60]!r}", 400, path, asks(path, model=odd))
    for path in (CHAT, RESPONSES):
        for tier in price.NO_TIERS:
            yield _case(f"the tier {tier!r}", 400, path, asks(path, service_tier=tier))
    for path, kinds in price.PROVIDERS_TOOLS:
        for kind in kinds:
            yield _case(f"the tool {kind}", 400, path, asks(path, tools=[{"type": kind, "name": "t"}]))
    for path, fields in price.HIDDEN:
        yield _case(f"hidden input, {json.dumps(fields)}", 400, path, asks(path, **fields))


def _routes_and_urls() -> Iterator[Named]:
    for path in WIRES:
        for name in routing.ROUTING_KEYS:
            for value in NO_PLACES:
                yield _case(f"{name} elsewhere by {type(value).__name__}", 400, path, asks(path, **{name: value}))
                hidden = {"metadata": {name: value}}
                yield _case(f"{name} in metadata by {type(value).__name__}", 400, path, asks(path, **hidden))
    for path in (CHAT, RESPONSES, MESSAGES):
        for url in routing.PRIVATE_URLS:
            yield _case(f"an image at {url!r}", 400, path, routing._with_image(path, url))
    for path in (MESSAGES, COUNT):
        for beta in routing.REFUSED_BETAS:
            for value in (beta, beta.upper(), f" ,{beta},", f"{beta};q=1"):
                yield _case(f"the beta {value}", 400, path, asks(path), [("anthropic-beta", value)])
    for path in price.NOT_SOLD:
        if not path.startswith("models/"):
            for method in ("POST", "GET", "DELETE", "PUT", "PATCH"):
                sent = None if method in ("GET", "DELETE") else asks(CHAT)
                yield _case("what is not sold", 404, f"/v1/{path}", sent, method=method)


def _credentials(key: str) -> Iterator[Named]:
    for method, path in keys.ROUTES:
        sent = keys.sent_to(method, path)
        for forged in keys.forgeries(key):
            for name, value in (("authorization", f"Bearer {forged}"), ("x-api-key", forged)):
                yield _case(f"{forged[:40]!r} for a key", 401, path, sent, [(name, value)], method)
        for scheme in ("Basic", "Token", "Digest", "Bearer:", "ApiKey", ""):
            yield _case(f"the scheme {scheme!r}", 401, path, sent, [("authorization", f"{scheme} {key}")], method)
        for other in ("", "garbage"):
            both = [("authorization", f"Bearer {key}"), ("x-api-key", other)]
            yield _case(f"two credentials, {other!r}", 400, path, sent, both, method)
        twice = [("authorization", f"Bearer {key}")] * 2
        yield _case("the same credential twice", 400, path, sent, twice, method)
    for path in WIRES:
        own = [("x-provider-key", own_keys.own_key_of(path))]
        yield _case("an own key of somebody who is not Pro", 403, path, asks(path), own)


def _own_endpoints() -> Iterator[Named]:
    for email in keys.NO_EMAILS:
        sent = {"email": email, "name": "mine"}
        yield Named(f"the e-mail {str(email)[:40]!r}", 400, "/v1/keys", json.dumps(sent).encode(), NOBODY)
    for name in keys.COLUMNS:
        for value in NO_COLUMNS:
            sent = {"name": "n", name: value}
            yield _case(f"{name} assigned as {value!r}", 400, "/v1/keys", sent)
    for query in keys.QUERIES:
        yield _case("a query that means nothing", 400, f"/v1/usage?{query}", None, method="GET")
    for cents in NO_CENTS:
        yield _case(f"a cap of {cents!r}", 400, "/api/me/spending-cap", {"cents": cents})


def vouchers(channel_id: bytes) -> Iterator[Named]:
    """What pays for nothing, where vouchers are taken, from a channel of Dave's. Loaded here: not every Python can."""
    from tests import test_drain_vouchers as table, test_drain_weaknesses as weaknesses
    from tests.chain.control import voucher_header
    from tests.chain.places import MALLORY, PROVIDER

    good = json.loads(voucher_header(channel_id, 50_000, 1))
    signatures = {name: {**good, "signature": f"0x{each.hex()}"} for name, each in table.NO_SIGNATURES.items()}
    others = {
        "of Mallory": voucher_header(channel_id, 50_000, 1, signer=MALLORY),
        "of the provider": voucher_header(channel_id, 50_000, 1, signer=PROVIDER),
        "of another channel": voucher_header(table.ONES, 50_000, 1),
        "of another amount": json.dumps({**good, "amount": "50001"}),
        "of another nonce": json.dumps({**good, "nonce": "2"}),
        "beyond the deposit": voucher_header(channel_id, 10**15, 1),
        "of too little": voucher_header(channel_id, 1, 1),
    }
    malformed = {**table.MALFORMED, **{repr(each[:40]): each for each in weaknesses.MALFORMED}}
    for name, header in {
        **malformed,
        **{each: json.dumps(sent) for each, sent in signatures.items()},
        **others,
    }.items():
        for path in (CHAT, RESPONSES, EMBEDDINGS, MESSAGES):
            yield _case(f"a voucher, {name}", 402, path, asks(path), [*NOBODY, ("x-drain-voucher", header)])


NOBODY: Headers = [("x-nobody", "")]
"""Of a request without any credential."""


def spoken(key: str) -> Iterator[Named]:
    """What is no proper HTTP, as bytes; each has one answer, and the connection ends."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n".encode()
    )
    for how, rest in denial.SMUGGLED.items():
        yield Named(f"one request or two: {how}", 400, CHAT, head + rest + denial.NEXT)
    for line, status in denial.ODD:
        begin = head.replace(f"POST {CHAT} HTTP/1.1".encode(), line)
        data = begin + b"Connection: close\r\nContent-Length: " + denial.LENGTH + b"\r\n\r\n" + denial.BODY
        yield Named(f"the request line {line!r}", status, CHAT, data)


# --- ways to send -----------------------------------------------------------------------------------------------


class Telephone:
    """One connection that is kept, and made anew where the other side has closed it."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, data: bytes, headers: Headers, key: str) -> Reply:
        """One request, its answer read to the end. Raises ConnectionError or EOFError where none comes."""
        given = {name.lower() for name, _ in headers}
        lines = [(name, value) for name, value in headers if (name, value) not in NOBODY]
        if not given & {*KEY_HEADERS, NOBODY[0][0]}:
            lines.append(("authorization", f"Bearer {key}"))
        if "content-type" not in given and method not in ("GET", "DELETE"):
            lines.append(("content-type", "application/json"))
        lines.append(("content-length", str(len(data))))
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines)
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(head.encode("latin-1") + b"\r\n" + data)
        reply = await self._reply(reader)
        if reply.headers.get("connection") == "close":
            self.hang_up()
        return reply

    async def _reply(self, reader: asyncio.StreamReader) -> Reply:
        head = await reader.readuntil(b"\r\n\r\n")
        answer = answer_in(head)
        if "content-length" in answer.headers:
            body = await reader.readexactly(int(answer.headers["content-length"]))
        else:
            body = b""
            while not body.endswith(b"\r\n0\r\n\r\n"):
                body += await reader.readuntil(b"\r\n")
            body = answer_in(head + body).body
        return Reply(answer.status, dict(answer.headers), body)

    def hang_up(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def shouted(url: str, data: bytes, patience_s: float = 10) -> list[Reply]:
    """Send bytes as they are; every answer, until the other side closes or says nothing for so long."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    try:
        writer.write(data)
        while piece := await asyncio.wait_for(reader.read(65_536), patience_s):
            received += piece
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return list(replies_in(received))


def raw_mutation(random: Random, key: str) -> bytes:
    """A good request on the wire, with some of its bytes changed; sometimes two of them, one after the other."""
    path = random.choice(WIRES)
    body = json.dumps(
        asks(path, stream=random.random() < 0.2) if path not in (EMBEDDINGS, COUNT) else asks(path)
    ).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    lines.append(random.choice([f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"]))
    if "chunked" in lines[-1]:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    data = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body
    data *= random.choice((1, 1, 1, 2))
    head = data.index(b"\r\n\r\n") + 4
    for _ in range(random.choice((1, 1, 2, 5))):
        data = changed(random, data, head if random.random() < 0.8 else len(data))
    return data


ODD_BYTES: Sequence[bytes] = [
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b"\xff",
    b"\x7f",
    b"%00",
]


def changed(random: Random, data: bytes, end: int) -> bytes:
    """Bytes with one change before `end`."""
    at = random.randrange(max(1, min(end, len(data))))
    to = min(len(data), at + random.choice((1, 1, 2, 8, 40)))
    match random.randrange(5):
        case 0:
            return data[:at] + data[to:]
        case 1:
            return data[:at] + random.choice(ODD_BYTES) + data[at:]
        case 2:
            return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        case 3:
            return data[:at] + data[at:to] * random.choice((2, 3, 50)) + data[to:]
        case _:
            return data[:at]
