"""Mallory asks too often, too much at once, too slowly, and under other people's addresses."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from goosestack import config
from goosestack.errors import Refusal
from goosestack.store.sqlite import connect_read_only
from tests.asking import directed, opened
from tests.mallory import CHAT, MESSAGES, RESPONSES, WIRES, Mallory, Reply, asks, assert_error, dialect, talk
from tests.world import World, until

BODY_BYTES = 65_536
OWN_BODY_BYTES = 16_384  # of what no model reads
TOKEN = "operators-token-canary-0123456789abcdef"


@pytest.fixture(scope="module")
def tight_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon with little room and little patience."""
    world = World.create(
        tmp_path_factory.mktemp("tight"),
        BODY_TIMEOUT_S="2",
        MAX_BODY_BYTES=str(BODY_BYTES),
        BODY_BUDGET_BYTES="100000",
        MAX_IN_FLIGHT="2",
        REQUEST_DEADLINE_S="2",
        DISCONNECT_GRACE_S="0",
        SIGNUP="closed",
    )
    yield world
    world.close()


@pytest.fixture(scope="module")
def metered_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon behind a proxy on its machine, which counts to twenty, or to three for who signs up."""
    world = World.create(
        tmp_path_factory.mktemp("metered"),
        RATE_LIMIT_MAX_REQUESTS="20",
        SIGNUPS_PER_HOUR="3",
        ADMIN_TOKEN=TOKEN,
        CORS_ALLOWED_ORIGINS="https://app.example.com,http://localhost:5173",
    )
    yield world
    world.close()


@pytest.fixture
def tight(tight_world: World) -> Iterator[Mallory]:
    with Mallory(tight_world) as mallory:
        yield mallory
    tight_world.check()


@pytest.fixture
def metered(metered_world: World) -> Iterator[Mallory]:
    with Mallory(metered_world, secrets=[TOKEN]) as mallory:
        yield mallory
    metered_world.check()


# --- how often --------------------------------------------------------------------------------------------------


def told_to_wait(reply: Reply, kind: str) -> None:
    assert_error(reply, kind, 429)
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert reply.headers["x-ratelimit-limit-requests"] in ("20", "3")
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_key_is_counted_wherever_it_comes_from(metered: Mallory) -> None:
    paths = [("GET", "/v1/usage"), ("GET", "/v1/keys"), ("GET", "/v1/holds"), *(("POST", path) for path in WIRES)]
    statuses = []
    for turn in range(40):
        method, path = paths[turn % len(paths)]
        sent = None if method == "GET" else b"not json"
        reply = metered.ask(path, sent, {"x-forwarded-for": f"198.51.100.{turn}"}, method=method)
        statuses.append(reply.status)
        if reply.status == 429:
            told_to_wait(reply, dialect(path, {}))
    assert statuses.count(429) in (19, 20) and 429 not in statuses[:20]  # or one more where the window has moved on
    metered.nothing_happened()


ADDRESSES: dict[str, Callable[[int], str]] = {
    "behind addresses that it makes up": lambda turn: f"203.0.113.{turn}, 198.51.100.7",
    "behind the machine's own": lambda turn: f"127.0.0.{turn}, 198.51.100.8, 127.0.0.1",
    "in one network of its own": lambda turn: f"2001:db8:0:1::{turn:x}",
    "written in several ways": lambda turn: ["198.51.100.9", "::ffff:198.51.100.9", "::ffff:c633:6409"][turn % 3],
    "that are none": lambda turn: ["unix", "garbage", "<script>", "198.51.100.300", f"x{turn}", "0x7f.1"][turn % 6],
    "with scopes and ports": lambda turn: ["fe80::1%eth0", "fe80::1%eth1", f"fe80::{turn:x}"][turn % 3],
}


@pytest.mark.parametrize("how", ADDRESSES)
def test_a_stranger_is_counted_once_however_many_addresses_it_has(metered: Mallory, how: str) -> None:
    statuses = []
    for turn in range(40):
        address = {"x-forwarded-for": ADDRESSES[how](turn)}
        path = ("/v1/usage", "/v1/models", "/v1/pricing")[turn % 3]
        reply = metered.ask(path, None, address, method="GET", key=None if turn % 2 else "gsk_" + "A" * 44)
        statuses.append(reply.status)
        if reply.status == 429:
            told_to_wait(reply, dialect(path, {}))
    assert statuses.count(429) in (19, 20) and 429 not in statuses[:20]
    assert metered.ask("/v1/usage", None, {"x-forwarded-for": ADDRESSES[how](0)}, method="GET").status == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o-mini", "/v1/pricing"])
def test_who_has_a_key_asks_also_for_what_is_open_by_that_key(metered: Mallory, path: str) -> None:
    address = {"x-forwarded-for": f"198.51.100.{20 + len(path)}"}
    for _ in range(20):  # by whoever else is behind this address, with no key, or with one that is none
        assert metered.ask(path, None, address, method="GET", key=None).status == 200
    for nobody in (None, "gsk_" + "A" * 44, "' OR 1=1 --"):
        assert metered.ask(path, None, address, method="GET", key=nobody).status == 429
    for left in (19, 18, 17):
        reply = metered.ask(path, None, address, method="GET")
        assert (reply.status, reply.headers["x-ratelimit-remaining-requests"]) == (200, str(left))


def test_every_route_that_is_limited_tells_what_is_left(metered: Mallory) -> None:
    address = {"x-forwarded-for": "198.51.100.60"}
    asked: list[tuple[str, str, dict[str, object] | None, int]] = [
        ("GET", "/v1/models", None, 200),
        ("GET", "/v1/models/none", None, 404),
        ("GET", "/v1/pricing", None, 200),
        ("GET", "/v1/usage", None, 200),
        ("GET", "/v1/usage?format=csv", None, 200),
        ("GET", "/v1/usage?limit=0", None, 400),
        ("GET", "/v1/keys", None, 200),
        ("POST", "/v1/keys", {"name": "more"}, 201),
        ("POST", "/v1/keys", {"nickname": "more"}, 400),
        ("DELETE", "/v1/keys/key_none", None, 404),
        ("GET", "/v1/holds", None, 200),
        ("DELETE", "/v1/holds/req_none", None, 404),
    ]
    for turn, (method, path, sent, status) in enumerate(asked):
        reply = metered.ask(path, sent, address, method=method)
        assert reply.status == status, path
        assert reply.headers["x-ratelimit-limit-requests"] == "20"
        assert reply.headers["x-ratelimit-remaining-requests"] == str(19 - turn), path
        assert re.fullmatch(r"\d+s", reply.headers["x-ratelimit-reset-requests"])
        if status == 201:
            metered.secrets.append(reply.json["api_key"])
    for path in ("/v1/models", "/v1/models/none", "/v1/pricing"):
        assert "x-ratelimit-remaining-requests" in metered.ask(path, None, address, method="GET", key=None).headers


def test_sign_ups_from_one_network_are_bounded_and_so_are_their_rows(metered: Mallory) -> None:
    def users() -> int:
        db = connect_read_only(metered.world.daemon.db)
        count: int = db.execute("SELECT count(*) FROM users").fetchone()[0]
        db.close()
        return count

    before, statuses = users(), []
    for turn in range(100):
        address = {"x-forwarded-for": f"2001:db8:0:2:{turn:x}::{turn:x}"}
        reply = metered.ask("/v1/keys", {"email": f"{turn}@example.com", "name": "n"}, address, key=None)
        statuses.append(reply.status)
        if reply.status == 201:
            metered.secrets.append(reply.json["api_key"])
        else:
            told_to_wait(reply, "ours")
    assert statuses == [201] * 3 + [429] * 97
    assert users() == before + 3


def test_a_peer_that_is_no_proxy_chooses_no_address(tmp_path_factory: pytest.TempPathFactory) -> None:
    world = World.create(
        tmp_path_factory.mktemp("distrusting"), FORWARDED_ALLOW_IPS="192.0.2.1", RATE_LIMIT_MAX_REQUESTS="20"
    )
    with Mallory(world) as mallory:
        statuses = []
        for turn in range(40):
            names = ("x-forwarded-for", "x-real-ip", "forwarded", "cf-connecting-ip")
            spoofed = dict.fromkeys(names, f"198.51.100.{turn}")
            statuses.append(mallory.ask("/v1/usage", None, spoofed, method="GET", key=None).status)
        assert statuses.count(429) in (19, 20) and statuses.count(401) in (20, 21)
        assert '"address":"198.51.100' not in world.daemon.program.text()
    world.close()


@pytest.mark.parametrize("value", ["*", "0.0.0.0/0,*", "localhost", "10.0.0.0/33", "proxy.example.com", "::1;::2"])
def test_believing_everybody_is_no_setting(value: str) -> None:
    with pytest.raises(Refusal, match="FORWARDED_ALLOW_IPS"):
        config.load({"FORWARDED_ALLOW_IPS": value})


# --- what only the operator may see -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
def test_what_is_for_the_operator_opens_to_the_token_and_to_the_machine_itself(metered: Mallory, path: str) -> None:
    outside = {"x-forwarded-for": "198.51.100.20"}
    tokens = [TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "", "Bearer", "x" * 10_000, "caf\xe9", metered.customer.key]
    for token in tokens:
        metered.refused(403, path, None, {**outside, "authorization": f"Bearer {token}"}, method="GET")
        metered.refused(403, path, None, {**outside, "x-api-key": token}, method="GET")
    for spoofed in ("127.0.0.1, 198.51.100.20", "::1, 198.51.100.20", "localhost", "unix", "garbage", "127.1"):
        metered.refused(403, path, None, {"x-forwarded-for": spoofed}, method="GET", key=None)
    query = f"{path}?token={TOKEN}&admin_token={TOKEN}"
    metered.refused(403, query, None, {**outside, "cookie": f"token={TOKEN}"}, method="GET")
    assert metered.ask(path, None, {**outside, "authorization": f"Bearer {TOKEN}"}, method="GET").status == 200
    for inside in ("127.0.0.1", "::1", "127.8.9.10"):
        assert metered.ask(path, None, {"x-forwarded-for": inside}, method="GET", key=None).status == 200
    metered.nothing_happened()


OPERATORS_PATHS = """admin admin/users admin/keys v1/admin v1/admin/claim v1/admin/credits v1/users v1/credits v1/config
    debug docs openapi.json redoc v1/openapi.json .env .git/config goosestack.db static/../goosestack.db
    server-status""".split()


def test_there_is_no_way_in_for_operators_over_http(metered: Mallory) -> None:
    for path in OPERATORS_PATHS:
        for token in (TOKEN, metered.customer.key):
            sent = {"authorization": f"Bearer {token}"}
            assert metered.ask(f"/{path}", None, sent, method="GET").status == 404
            assert metered.ask(f"/{path}", {"user": metered.customer.id, "cents": 5}, sent).status in (404, 405)
    metered.nothing_happened()


# --- browsers -----------------------------------------------------------------------------------------------------

ALLOWED = ["https://app.example.com", "http://localhost:5173"]
FOREIGN = """https://evil.example https://evilapp.example.com https://app.example.com.evil.example null http://app.example.com
    https://app.example.com:8443 https://APP.example.com https://appxexample.com http://localhost http://localhost:51730
    https://app.example.com/ file://""".split()
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def test_only_the_listed_origins_may_read_an_answer_and_none_with_cookies(metered: Mallory) -> None:
    cookies = {"cookie": "session=a"}
    for origin in [*ALLOWED, *FOREIGN]:
        for more in ({}, cookies):
            before = metered.ask(CHAT, None, {"origin": origin, **PREFLIGHT, **more}, method="OPTIONS", key=None)
            after = metered.ask("/health", None, {"origin": origin, **more}, method="GET", key=None)
            refused = metered.ask(CHAT, b"x", {"origin": origin, **more}, key="gsk_")
            for reply in (before, after, refused):
                allowed = reply.headers.get("access-control-allow-origin")
                assert allowed == (origin if origin in ALLOWED else None)
                assert "access-control-allow-credentials" not in reply.headers
    metered.nothing_happened()


def test_where_every_origin_may_ask_none_is_answered_with_credentials(world: World) -> None:
    with Mallory(world) as mallory:
        for origin in [*ALLOWED, *FOREIGN]:
            for more in ({}, {"cookie": "session=a"}):
                before = mallory.ask(CHAT, None, {"origin": origin, **PREFLIGHT, **more}, method="OPTIONS", key=None)
                simple = mallory.ask(CHAT, b"{}", {"origin": origin, "content-type": "text/plain", **more}, key=None)
                assert (before.status, simple.status) == (200, 401)
                for reply in (before, simple):
                    assert "access-control-allow-credentials" not in reply.headers
                    assert reply.headers["access-control-allow-origin"] in ("*", origin)
        mallory.nothing_happened()


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("HTTPS://app.example.com:443", "https://app.example.com"),
        ("http://localhost:80,http://localhost:8080", "http://localhost,http://localhost:8080"),
        ("https://app.example.com:80", "https://app.example.com:80"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("capacitor://localhost, ionic://localhost", "capacitor://localhost,ionic://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ],
)
def test_an_origin_is_kept_as_browsers_send_it(value: str, sent: str) -> None:
    assert config.load({"CORS_ALLOWED_ORIGINS": value}).shown()["CORS_ALLOWED_ORIGINS"] == sent


def test_a_projects_address_is_kept_as_its_tokens_name_it() -> None:
    found = config.load({"SUPABASE_URL": "HTTPS://Ref.Supabase.co:443/"})
    assert found.supabase_url == "https://ref.supabase.co"


@pytest.mark.parametrize(
    "value",
    [
        "*,https://a.example",
        "example.com",
        "https://a.example/b",
        "https://a.example/",
        "https://a.example?x",
        "https://a.example?",
        "https://a.example#f",
        "ftp://a.example",
        "htps://a.example",
        "capacitor://",
        "https://",
    ],
)
def test_an_origin_that_is_none_is_no_setting(value: str) -> None:
    with pytest.raises(Refusal, match="CORS_ALLOWED_ORIGINS"):
        config.load({"CORS_ALLOWED_ORIGINS": value})


# --- how much -----------------------------------------------------------------------------------------------------


def start(mallory: Mallory, path: str, *lines: str) -> bytes:
    credential = f"Authorization: Bearer {mallory.customer.key}"
    told = [f"POST {path} HTTP/1.1", "Host: x", credential, "Content-Type: application/json", *lines]
    return "\r\n".join(told).encode() + b"\r\n\r\n"


@pytest.mark.parametrize("path", [*WIRES, "/v1/keys"])
def test_a_body_beyond_the_limit_is_refused_declared_or_not(tight: Mallory, path: str) -> None:
    for length in (BODY_BYTES + 1, 10**9, 10**18):
        (reply,) = talk(tight.world, start(tight, path, f"Content-Length: {length}"))
        assert_error(reply, dialect(path, {}), 413)
        assert (reply.headers["connection"], reply.headers["x-should-retry"]) == ("close", "false")
    room = BODY_BYTES if path in WIRES else OWN_BODY_BYTES  # to the byte: what a closed socket has not read, it resets
    chunked, last = start(tight, path, "Transfer-Encoding: chunked"), b"1\r\na\r\n"
    chunk = b"%x\r\n%b\r\n" % (room // 4, b"a" * (room // 4))
    for pieces in ([chunked + chunk * 4 + last], [chunked, *[chunk] * 4, last]):
        (reply,) = talk(tight.world, *pieces)
        assert_error(reply, dialect(path, {}), 413)
        assert reply.headers["connection"] == "close"
    tight.nothing_happened()


def test_a_body_at_the_limit_passes_in_any_number_of_pieces(tight: Mallory) -> None:
    body = json.dumps(asks(CHAT)).encode()
    body = body.replace(b"Hello", b"a" * (BODY_BYTES - len(body) + 5))
    assert len(body) == BODY_BYTES
    assert tight.ask(CHAT, body).status == 200
    pieces = [b"%x\r\n%b\r\n" % (len(body[at : at + 7000]), body[at : at + 7000]) for at in range(0, len(body), 7000)]
    chunked = start(tight, CHAT, "Transfer-Encoding: chunked", "Connection: close")
    (reply,) = talk(tight.world, chunked, *pieces, b"0\r\n\r\n")
    assert reply.status == 200
    assert len(tight.world.ended_rows(tight.customer, 2)) == len(tight.dispatched())


def test_bodies_that_do_not_come_are_given_up_and_take_no_room(tight: Mallory) -> None:
    host, _, port = tight.world.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        waiting = []
        for path in [*WIRES, "/v1/keys"]:
            for begin in (start(tight, path, "Content-Length: 900"), start(tight, path, "Transfer-Encoding: chunked")):
                for piece in (b"", b'{"model"' if b"Content-Length" in begin else b'8\r\n{"model"\r\n4\r\n"a'):
                    connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
                    connection.sendall(begin + piece)
                    waiting.append((path, connection))
        for path, connection in waiting:
            received = b""
            while data := connection.recv(65_536):
                received += data
            assert received.startswith(b"HTTP/1.1 400 "), (path, received)
            assert b"connection: close" in received
    tight.nothing_happened()
    assert tight.ask(CHAT, json.dumps(asks(CHAT, "a" * 60_000)).encode()).status == 200


def test_beyond_the_room_for_all_bodies_together_whoever_comes_last_waits(tight: Mallory) -> None:
    host, _, port = tight.world.url.removeprefix("http://").partition(":")
    big = json.dumps(asks(CHAT, "a" * 60_000)).encode()

    def full() -> Reply | None:
        reply = tight.ask(CHAT, big)
        return reply if reply.status == 503 else None

    with socket.create_connection((host, int(port)), timeout=30) as hog:
        hog.sendall(start(tight, CHAT, "Content-Length: 65000") + b"a" * 60_000)
        reply = until(full, "no room for another body")
        assert_error(reply, "openai", 503)
        assert reply.headers["retry-after"] == "2"
        begin = start(tight, MESSAGES, "Transfer-Encoding: chunked")
        (chunked,) = talk(tight.world, begin, b"c350\r\n" + b"a" * 50_000)
        assert_error(chunked, "anthropic", 503)
        assert tight.ask(CHAT, asks(CHAT)).status == 200  # small ones still pass
    until(lambda: tight.ask(CHAT, big).status == 200, "room for a body again")


# --- how much at once, and how long -------------------------------------------------------------------------------


def test_more_than_so_many_requests_of_one_user_at_once_wait_and_nobody_else_does(tight: Mallory) -> None:
    other = tight.world.customer(name="alice")
    second = tight.ask("/v1/keys", {"name": "second"}).json["api_key"]
    tight.secrets.append(second)
    body = asks(CHAT, directed("Go", words=3, delay_ms=60_000), stream=True)
    with ExitStack() as stack:
        for key in (tight.customer.key, second):
            stack.enter_context(opened(tight.world, CHAT, key=key, body=body)).readline()
        for key in (tight.customer.key, second):
            for path in (CHAT, RESPONSES, MESSAGES):
                reply = tight.refused(429, path, asks(path), key=key)
                assert reply.headers["retry-after"] == "1"
        assert tight.ask(CHAT, asks(CHAT), key=other.key).status == 200
    until(lambda: tight.ask(CHAT, asks(CHAT)).status == 200, "room for this user again")
    rows = tight.world.ended_rows(tight.customer, 3)
    assert all(row["cost_nanos"] > 0 for row in rows)


def test_an_answer_that_is_given_up_because_it_takes_too_long_costs_all_that_it_could(tight: Mallory) -> None:
    reply = tight.refused(504, CHAT, asks(CHAT, directed("Go", fault="stall_headers", hang_s=30), max_tokens=1000))
    assert reply.headers["x-should-retry"] == "false"
    (row,) = tight.world.ended_rows(tight.customer, 1)
    assert (row["reason"], row["estimated"], row["output_tokens"]) == ("deadline", 1, 1000)
    assert 1000 * 600 <= row["cost_nanos"] <= row["quote"]


def test_whoever_closed_the_door_opens_it_to_nobody(tight: Mallory) -> None:
    for email in ("a@example.com", None, 5):
        tight.refused(403, "/v1/keys", {"email": email, "name": "n", "invite": "x"}, key=None)
    tight.refused(403, "/v1/keys", b"not json", key=None)
    tight.nothing_happened()
