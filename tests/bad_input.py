"""Requests that must be refused, by name: the tables of `tests/test_threats_*.py` as single cases, each with the name
that its abuse has in `tests/abuses.py`; and two ways to send whatever it is, a kept connection (`Telephone`) and bytes
as they are (`shouted`).
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
    test_threats_limits as limits,
    test_threats_own_keys as own_keys,
    test_threats_price as price,
    test_threats_routing as routing,
    test_threats_tokens as tokens,
)
from tests.faults import answer_in
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, WIRES, Reply, asks, replies_in
from tests.project import Project

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
    abuse: str
    """The name of what it is one of, in `tests/abuses.py`."""
    status: int
    path: str
    data: bytes
    headers: Headers = ()
    method: str = "POST"


def _case(
    abuse: str, what: str, status: int, path: str, sent: object, headers: Headers = (), method: str = "POST"
) -> Named:
    data = sent if isinstance(sent, bytes) else b"" if sent is None else json.dumps(sent).encode()
    return Named(f"{abuse} {what}, {method} {path}", abuse, status, path, data, headers, method)


def _shown(value: object) -> str:
    """A value, in the name of a case."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}... of {len(text):,}"


def named(key: str) -> Iterator[Named]:
    """Every case that any daemon refuses; `key` is Mallory's."""
    yield from _bodies()
    yield from _models_and_tools()
    yield from _routes_and_urls()
    yield from _credentials(key)
    yield from _own_keys()
    yield from _own_endpoints()


# --- the cases --------------------------------------------------------------------------------------------------


def _bodies() -> Iterator[Named]:
    for path, name, fields in bodies.FROM_ONE + bodies.FROM_ZERO:
        zero = ["0", "-0"] if (path, name, fields) in bodies.FROM_ONE else []
        for number in bodies.ODD_NUMBERS + zero:
            text = bodies.raw(path, **fields).replace(f'"{bodies.NUMBER}"', number)
            yield _case("P4", f"{name} of {number[:40]} in {json.dumps(fields)}", 400, path, text.encode())
    for path in WIRES:
        good = bodies.raw(path)
        for twice in bodies.TWICE:
            for depth in (0, 1, 50):
                text = f'{good[:-1]},"metadata":{bodies._nested(depth, twice)}}}'
                yield _case("P3", f"a key twice, {depth} deep: {twice}", 400, path, text.encode())
        for depth in (64, 1_000, 100_000):
            for form in ("[" * depth + "]" * depth, bodies._nested(depth, "1")):
                yield _case("P5", f"{form[0]} {depth} deep", 400, path, f'{good[:-1]},"unknown":{form}}}'.encode())
        for encoding in bodies.ENCODINGS:
            yield _case("P6", f"a body in {encoding}", 400, path, good.encode(encoding))
        for half in bodies.SURROGATES:
            yield _case("P6", f"half a character, {half}", 400, path, good.replace("Hello", half).encode())
        for data in bodies.NO_UTF8:
            yield _case("P6", f"no UTF-8, {data!r}", 400, path, good.encode().replace(b"Hello", data))
        for kind in [*denial.NO_JSON_TYPES, ""]:
            yield _case("D19", f"a body of type {kind!r}", 415, path, asks(path), [("content-type", kind)])
        for encoding in denial.ENCODED:
            yield _case("D9", f"a body packed as {encoding}", 415, path, bytes(100), [("content-encoding", encoding)])
        for value in NO_TRUTHS if path != COUNT else ():
            yield _case("P4", f"stream of {value!r}", 400, path, asks(path, stream=value))
    for path in [*WIRES, "/v1/keys"]:
        for text in bodies.NO_JSON:
            yield _case("P6", f"no JSON, {text!r}", 400, path, text.encode())


def _models_and_tools() -> Iterator[Named]:
    for path in WIRES:
        for model in price.UNPRICED:
            yield _case("P1", f"the model {_shown(model)}", 404, path, asks(path, model=model))
        for odd in price.NO_NAMES:
            yield _case("P1", f"no model's name, {_shown(odd)}", 400, path, asks(path, model=odd))
    for path in (CHAT, RESPONSES):
        for tier in price.NO_TIERS:
            yield _case("P10", f"the tier {tier!r}", 400, path, asks(path, service_tier=tier))
    for path, kinds in price.PROVIDERS_TOOLS:
        for kind in kinds:
            yield _case("P11", f"the tool {kind}", 400, path, asks(path, tools=[{"type": kind, "name": "t"}]))
    for path, fields in price.HIDDEN:
        yield _case("P15", f"hidden input, {json.dumps(fields)}", 400, path, asks(path, **fields))


def _routes_and_urls() -> Iterator[Named]:
    for path in WIRES:
        for name in routing.ROUTING_KEYS:
            for value in NO_PLACES:
                yield _case("R1", f"{name} elsewhere by {type(value).__name__}", 400, path, asks(path, **{name: value}))
                hidden = {"metadata": {name: value}}
                yield _case("R2", f"{name} in metadata by {type(value).__name__}", 400, path, asks(path, **hidden))
    for path in (CHAT, RESPONSES, MESSAGES):
        for url in routing.PRIVATE_URLS:
            yield _case("R5", f"an image at {url!r}", 400, path, routing._with_image(path, url))
    for path in (MESSAGES, COUNT):
        for beta in routing.REFUSED_BETAS:
            for value in (beta, beta.upper(), f" ,{beta},", f"{beta};q=1"):
                yield _case("R3", f"the beta {value}", 400, path, asks(path), [("anthropic-beta", value)])
    for path in price.NOT_SOLD:
        if not path.startswith("models/"):
            for method in ("POST", "GET", "DELETE", "PUT", "PATCH"):
                sent = None if method in ("GET", "DELETE") else asks(CHAT)
                yield _case("P19", "what is not sold", 404, f"/v1/{path}", sent, method=method)


def _credentials(key: str) -> Iterator[Named]:
    for method, path in keys.ROUTES:
        sent = keys.sent_to(method, path)
        for forged in keys.forgeries(key):
            for name, value in (("authorization", f"Bearer {forged}"), ("x-api-key", forged)):
                yield _case("A1", f"{_shown(forged)} as {name}", 401, path, sent, [(name, value)], method)
        for scheme in ("Basic", "Token", "Digest", "Bearer:", "ApiKey", ""):
            yield _case("A1", f"the scheme {scheme!r}", 401, path, sent, [("authorization", f"{scheme} {key}")], method)
        for other in ("", "garbage"):
            both = [("authorization", f"Bearer {key}"), ("x-api-key", other)]
            yield _case("A2", f"two credentials, {other!r}", 400, path, sent, both, method)
        twice = [("authorization", f"Bearer {key}")] * 2
        yield _case("A2", "the same credential twice", 400, path, sent, twice, method)
    for method, path in keys.KEYED_ROUTES:
        sent = keys.sent_to(method, path)
        for name in keys.NO_PARAMETERS:
            yield _case("L3", f"the key as {name}", 401, f"{path}?{name}={key}", sent, NOBODY, method)
            yield _case(
                "L3", f"the key as a cookie, {name}", 401, path, sent, [*NOBODY, ("cookie", f"{name}={key}")], method
            )
        for name in keys.NO_HEADERS:
            yield _case("L3", f"the key in {name}", 401, path, sent, [*NOBODY, (name, key)], method)


def _own_keys() -> Iterator[Named]:
    for path in WIRES:
        own = [("x-provider-key", own_keys.own_key_of(path))]
        yield _case("R9", "an own key of somebody who is not Pro", 403, path, asks(path), own)
        for value in sorted({each.strip(" ") for each in own_keys.MALFORMED}):
            yield _case("R12", f"an own key, {_shown(value)}", 400, path, asks(path), [("x-provider-key", value)])
        yield _case("R12", "an own key twice", 400, path, asks(path), own * 2)


def _own_endpoints() -> Iterator[Named]:
    for email in keys.NO_EMAILS:
        sent = {"email": email, "name": "mine"}
        yield _case("A8", f"the e-mail {_shown(email)}", 400, "/v1/keys", sent, NOBODY)
    for name in keys.COLUMNS:
        for value in NO_COLUMNS:
            sent = {"name": "n", name: value}
            yield _case("A9", f"{name} assigned as {value!r}", 400, "/v1/keys", sent)
    for query in keys.QUERIES:
        yield _case("A14", "a query that means nothing", 400, f"/v1/usage?{query}", None, method="GET")
    for cents in NO_CENTS:
        yield _case("P4", f"a cap of {cents!r}", 400, "/api/me/spending-cap", {"cents": cents})

    for one in keys.NOBODYS_IDS:
        for kind in ("keys", "holds"):
            yield _case("A13", "what is somebody else's", 404, f"/v1/{kind}/{one}", None, method="DELETE")
    for path in limits.OPERATORS_PATHS:
        yield _case("A12", "a door for operators", 404, f"/{path}", None, method="GET")
    for path in ("/v1/keys", "/api/me/spending-cap"):
        yield _case("D6", "a byte too much", 413, path, b"{" + b" " * limits.OWN_BODY_BYTES)


def forged(project: Project, alg: str) -> Iterator[Named]:
    """Where a project's users are known by tokens of that algorithm: those that are none."""
    for what, token in tokens.bad(project, alg).items():
        for method, path in tokens.ROUTES:
            bearer = [("authorization", f"Bearer {token}")]
            yield _case("A10", f"a token, {what}, {alg}", 401, path, tokens.sent_to(method, path), bearer, method)


def again(key: str) -> Iterator[Named]:
    """What is refused to who has asked too often by this key."""
    for method, path in keys.ROUTES:
        yield _case("D15", "once too often", 429, path, keys.sent_to(method, path), method=method)


def elsewhere(how: str) -> Iterator[Named]:
    """What is refused to a stranger who has asked too often, under whatever addresses (`limits.ADDRESSES`)."""
    for address in sorted({limits.ADDRESSES[how](turn) for turn in range(20, 30)}):
        for path in ("/v1/models", "/v1/pricing", "/v1/usage"):
            headers = [*NOBODY, ("x-forwarded-for", address)]
            yield _case("D14", f"once too often, by {address!r}, {how}", 429, path, None, headers, "GET")


def signed_up(how_often: int) -> Iterator[Named]:
    """Sign-ups from one network, which are refused to one that has signed up too often."""
    for turn in range(how_often):
        address = [*NOBODY, ("x-forwarded-for", f"2001:db8:0:2:{turn:x}::{turn:x}")]
        sent = {"email": f"{turn}@example.com", "name": "n"}
        yield _case("A7", f"a sign-up too many, {turn}", 429, "/v1/keys", sent, address)


def too_large(key: str, room: int) -> Iterator[Named]:
    """As bytes: bodies beyond this room, declared or not; each has one answer, and the connection ends."""
    for path in [*WIRES, "/v1/keys"]:
        for length in (room + 1, 10**9, 10**18):
            data = _head(key, path) + b"Content-Length: %d\r\n\r\n" % length
            yield Named(f"D6 {length} bytes, POST {path}", "D6", 413, path, data)
        size = room if path in WIRES else limits.OWN_BODY_BYTES
        chunk = b"%x\r\n%b\r\n" % (size // 4, b"a" * (size // 4))
        data = _head(key, path) + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4 + b"1\r\na\r\n"
        yield Named(f"D6 {size} bytes and one more, in pieces, POST {path}", "D6", 413, path, data)


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
    found = [("V6", name, header) for name, header in malformed.items()]
    found += [("V5", name, json.dumps(sent)) for name, sent in signatures.items()]
    found += [("V2" if name in UNPAID else "V9", name, header) for name, header in others.items()]
    for abuse, name, header in found:
        for path in (CHAT, RESPONSES, EMBEDDINGS, MESSAGES):
            yield _case(abuse, f"a voucher, {name}", 402, path, asks(path), [*NOBODY, ("x-drain-voucher", header)])


UNPAID = ("beyond the deposit", "of too little")
"""Vouchers that are good, and for too little."""

NOBODY: Headers = [("x-nobody", "")]
"""Of a request without any credential."""


def spoken(key: str) -> Iterator[Named]:
    """What is no proper HTTP, as bytes; each has one answer, and the connection ends."""
    head = _head(key, CHAT)
    for how, rest in denial.SMUGGLED.items():
        yield Named(f"D8 one request or two: {how}", "D8", 400, CHAT, head + rest + denial.NEXT)
    for path in denial.PADDED:
        for lines, size in denial.TOO_MUCH:
            padding = b"".join(b"X-Padding-%d: %b\r\n" % (line, b"a" * size) for line in range(lines))
            begin = _head(key, path, "POST" if path in WIRES else "GET")
            name = f"D7 {lines} headers of {size} bytes, {path}"
            yield Named(name, "D7", 431, path, begin + padding + b"Connection: close\r\n\r\n")
    for line, status in denial.ODD:
        begin = head.replace(f"POST {CHAT} HTTP/1.1".encode(), line)
        data = begin + b"Connection: close\r\nContent-Length: " + denial.LENGTH + b"\r\n\r\n" + denial.BODY
        yield Named(f"D18 the request line {line!r}", "D18", status, CHAT, data)


def _head(key: str, path: str, method: str = "POST") -> bytes:
    """A request without the line that says how long it is, and without an end."""
    credential = f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{credential}".encode()


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
