"""What users do for themselves: make and revoke keys, look at what they used, end what is in flight. An e-mail is a
label and never an identity, and nobody reaches anything of anybody else.
"""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from goosestack import usage
from tests.asking import Reply, ask, chat, connect, directed, message, opened
from tests.world import PATIENCE_S, Customer, World, until

SLOW = chat(directed("Hi", words=2000, delay_ms=20), stream=True)
ROW = (set(usage.ROW) - {"cost_nanos", "shortfall"}) | {"cost_usd", "shortfall_usd"}


def sign_up(world: World, body: object, key: str | None = None) -> Reply:
    return ask(world, "POST", "/v1/keys", key=key, body=body)


def usage_of(world: World, key: str, query: str = "") -> Any:
    reply = ask(world, "GET", f"/v1/usage{query}", key=key)
    assert reply.status == 200, reply.data
    return reply.json()


def buy(world: World, customer: Customer, times: int = 1) -> list[str]:
    """So many settled requests; their ids."""
    replies = [ask(world, "POST", "/v1/chat/completions", key=customer.key, body=chat()) for _ in range(times)]
    assert {reply.status for reply in replies} == {200}
    return [str(reply.headers["x-request-id"]) for reply in replies]


# --- making keys ----------------------------------------------------------------------------------------------


def test_anyone_can_make_a_key_that_is_shown_once_and_has_no_credit(world: World) -> None:
    reply = sign_up(world, {"email": "carol@example.com", "name": "laptop"})
    made = reply.json()
    assert (reply.status, made["name"]) == (201, "laptop")
    assert {"api_key", "prefix", "name", "message"} <= set(made)
    assert re.fullmatch(r"gsk_[A-Za-z0-9_-]{32,}", made["api_key"])
    assert made["prefix"] == made["api_key"][:12]
    shown = usage_of(world, made["api_key"])
    assert (shown["balance_cents"], shown["available_cents"], shown["pro"]) == (0, 0, False)
    assert made["api_key"] not in json.dumps(shown)
    assert ask(world, "POST", "/v1/chat/completions", key=made["api_key"], body=chat()).status == 402


def test_a_known_e_mail_is_answered_the_same_and_opens_nobodys_account(world: World) -> None:
    alice = world.customer(500, name="alice.of.the.keys")
    made = sign_up(world, {"email": "alice.of.the.keys@example.com"}).json()
    fresh = sign_up(world, {"email": "nobody.yet@example.com"}).json()
    assert {name: made[name] for name in ("name", "message")} == {name: fresh[name] for name in ("name", "message")}
    assert set(made) == set(fresh)
    shown = usage_of(world, made["api_key"])
    assert shown["balance_cents"] == 0 and shown["recent_requests"] == []
    assert len(shown["api_keys"]) == 1
    assert len(usage_of(world, alice.key)["api_keys"]) == 1


def test_with_a_key_one_adds_a_key_to_its_account(world: World) -> None:
    alice = world.customer(500)
    made = sign_up(world, {"name": "phone"}, alice.key).json()
    assert usage_of(world, made["api_key"])["balance_cents"] == 500
    assert [key["name"] for key in usage_of(world, alice.key)["api_keys"]] == ["test", "phone"]
    named = sign_up(world, {"email": "mallory@example.com"}, alice.key).json()
    assert usage_of(world, named["api_key"])["balance_cents"] == 500  # an e-mail beside a key changes nothing


@pytest.mark.parametrize("credential", ["gsk_" + "x" * 44, "sk-something", "", "' OR 1=1 --", "gsk_" + "x" * 8000])
def test_an_invalid_key_is_a_401_and_never_a_sign_up(world: World, credential: str) -> None:
    users = len(world.verb("user_list"))
    for headers in ({"x-api-key": credential}, {"authorization": f"Bearer {credential}"}):
        reply = ask(world, "POST", "/v1/keys", body={"email": "mallory@example.com"}, headers=headers)
        assert (reply.status, reply.json()["error"]["type"]) == (401, "authentication_error")
    assert len(world.verb("user_list")) == users


def test_a_basic_or_a_revoked_credential_is_a_401(world: World) -> None:
    alice = world.customer(0)
    world.verb("key_revoke", key=alice.key_id)
    assert sign_up(world, {}, alice.key).status == 401
    assert ask(world, "GET", "/v1/usage", headers={"authorization": "Basic YTpi"}).status == 401


@pytest.mark.parametrize(
    "field", ["balance", "balance_cents", "user_id", "pro_until", "role", "id", "api_key", "credits", "Email", ""]
)
def test_unknown_fields_are_refused_by_name(world: World, field: str) -> None:
    reply = sign_up(world, {"email": "mallory@example.com", field: 1_000_000})
    assert (reply.status, reply.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    "email",
    [
        None,
        "",
        "@",
        "a@",
        "@b",
        "a@b@c",
        "no address",
        "a b@example.com",
        "a@exam\nple.com",
        "a\r\nBcc: b@example.com",
        "a\x00@example.com",
        "a\u202eb@example.com",
        "a" * 250 + "@example.com",
        ["a@example.com"],
        7,
    ],
)
def test_what_is_no_e_mail_address_is_refused(world: World, email: object) -> None:
    reply = sign_up(world, {"email": email})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "email")


def test_an_e_mail_is_kept_as_it_was_given(world: World) -> None:
    given = ["Alice.B+tag@Example.COM", "älice@exämple.com", "alice.b@example.com"]
    for email in given:
        assert sign_up(world, {"email": email}).status == 201
    assert [user["email"] for user in world.verb("user_list")][-3:] == given


@pytest.mark.parametrize("name", ["a" * 101, "two\nlines", "\x1b[31m", 7, ["x"]])
def test_a_name_is_short_and_printable(world: World, name: object) -> None:
    reply = sign_up(world, {"email": "carol@example.com", "name": name})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "name")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"x"', b"{", b'{"email":"a@b","email":"c@d"}', b"\xff\xfe"])
def test_a_body_that_is_no_object_is_refused(world: World, data: bytes) -> None:
    reply = ask(world, "POST", "/v1/keys", data=data)
    assert (reply.status, reply.json()["error"]["type"]) == (400, "validation_error")


def test_sign_up_can_be_closed_and_keys_are_still_added_to_accounts(folder: Path) -> None:
    world = World.create(folder, SIGNUP="closed")
    try:
        alice = world.customer(0)
        reply = sign_up(world, {"email": "carol@example.com"})
        assert (reply.status, reply.json()["error"]["type"]) == (403, "authorization_error")
        assert sign_up(world, {"name": "phone"}, alice.key).status == 201
        assert len(world.verb("user_list")) == 1
    finally:
        world.close()


def test_an_address_signs_up_so_often_an_hour_and_strangers_ask_so_often_a_minute(folder: Path) -> None:
    world = World.create(folder, SIGNUPS_PER_HOUR="3", RATE_LIMIT_MAX_REQUESTS="6")
    try:
        alice = world.customer(0)
        assert sign_up(world, {"email": "no address"}).status == 400  # counts as a request, and not as a sign-up
        replies = [sign_up(world, {"email": f"carol+{n}@example.com"}) for n in range(4)]
        assert [reply.status for reply in replies] == [201, 201, 201, 429]
        assert replies[-1].json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        assert len(world.verb("user_list")) == 4
        assert ask(world, "GET", "/v1/models").status == 200
        for reply in (
            ask(world, "GET", "/v1/models"),
            ask(world, "GET", "/v1/pricing"),
            ask(world, "GET", "/v1/usage", key="gsk_" + "x" * 44),
            sign_up(world, {"email": "no address"}),
        ):
            assert reply.status == 429
        assert sign_up(world, {"name": "phone"}, alice.key).status == 201  # a key has a window of its own
        assert ask(world, "GET", "/health").status == 200  # and liveness has none
    finally:
        world.close()


def test_a_stranger_cannot_fill_the_memory_that_models_requests_share(world: World) -> None:
    reply = ask(world, "POST", "/v1/keys", data=b" " * 17_000, headers={"content-type": "application/json"})
    assert (reply.status, reply.json()["error"]["type"]) == (413, "validation_error")


# --- listing and revoking keys --------------------------------------------------------------------------------


def test_keys_are_listed_by_prefix_and_revoked_by_id_or_prefix(world: World) -> None:
    alice = world.customer(10)
    phone = sign_up(world, {"name": "phone"}, alice.key).json()
    reply = ask(world, "GET", "/v1/keys", key=alice.key)
    first, second = reply.json()["api_keys"]
    assert set(first) == {"id", "prefix", "name", "revoked", "created_at"}
    assert (first["id"], second["prefix"], second["revoked"]) == (alice.key_id, phone["prefix"], False)
    for name in (phone["id"], alice.key[:12]):
        reply = ask(world, "DELETE", f"/v1/keys/{name}", key=alice.key)
        assert (reply.status, reply.json()["revoked"]) == (200, True)
    assert ask(world, "GET", "/v1/keys", key=phone["api_key"]).status == 401
    assert ask(world, "GET", "/v1/keys", key=alice.key).status == 401  # also the one that did it


def test_a_user_who_revokes_a_key_ends_its_live_streams_and_no_others(world: World) -> None:
    alice = world.customer()
    phone = sign_up(world, {"name": "phone"}, alice.key).json()
    brief = chat(directed("Hi", words=30, delay_ms=20), stream=True)
    with (
        opened(world, "/v1/chat/completions", key=phone["api_key"], body=SLOW) as stolen,
        opened(world, "/v1/chat/completions", key=alice.key, body=brief) as own,
    ):
        assert stolen.readline() and own.readline()
        assert ask(world, "DELETE", f"/v1/keys/{phone['id']}", key=alice.key).status == 200
        assert b"its key was revoked" in stolen.read()
        assert b"data: [DONE]" in own.read()
    assert sorted(row["reason"] for row in world.ended_rows(alice, 2)) == ["client_gone", "completed"]


def test_a_key_that_is_revoked_while_its_request_arrives_buys_nothing_more(world: World) -> None:
    alice, start = world.customer(), world.upstream.mark()
    with closing(connect(world)) as connection:
        rest = half_sent(connection, alice.key, chat())
        assert ask(world, "DELETE", f"/v1/keys/{alice.key_id}", key=alice.key).status == 200
        connection.send(rest)
        assert connection.getresponse().status == 401
    assert world.upstream.dispatches(start) == world.rows(alice) == []


def half_sent(connection: HTTPConnection, key: str, body: object) -> bytes:
    """Send a chat request but for the end of its body, which is the answer."""
    data = json.dumps(body).encode()
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in (("authorization", f"Bearer {key}"), ("content-type", "application/json")):
        connection.putheader(name, value)
    connection.putheader("content-length", str(len(data)))
    connection.endheaders(data[:10])
    return data[10:]


# --- usage ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def used(shared_world: World) -> tuple[World, Customer, list[str]]:
    """A customer with five requests of one model and two of another, and one that was released."""
    alice = shared_world.customer(1000)
    ids = buy(shared_world, alice, 5)
    for _ in range(2):
        reply = ask(shared_world, "POST", "/v1/messages", key=alice.key, body=message())
        ids.append(str(reply.headers["x-request-id"]))
    refused = ask(
        shared_world, "POST", "/v1/chat/completions", key=alice.key, body=chat(directed("Hi", fault="error_400"))
    )
    assert refused.status == 400
    return shared_world, alice, [*ids, str(refused.headers["x-request-id"])]


Used = tuple[World, Customer, list[str]]


def test_usage_tells_balance_spending_latest_requests_and_keys(used: Used) -> None:
    world, alice, ids = used
    shown = usage_of(world, alice.key)
    assert set(shown) == {
        *("balance_cents", "balance_usd", "debt_cents", "held_cents", "available_cents", "pro", "pro_until"),
        *("usage_30d", "recent_requests", "next_cursor", "api_keys"),
    }
    assert (shown["balance_cents"], shown["balance_usd"], shown["held_cents"]) == (999, "9.99", 0)
    assert shown["available_cents"] == 999
    assert (shown["pro"], shown["pro_until"]) == (False, None)
    assert [row["id"] for row in shown["recent_requests"]] == ids[::-1]
    assert all(set(row) == ROW for row in shown["recent_requests"])
    assert [row["status"] for row in shown["recent_requests"]] == ["released"] + ["settled"] * 7
    claude, gpt = shown["usage_30d"]
    assert set(gpt) == {"provider", "model", "requests", "input_tokens", "output_tokens", "cost_cents", "cost_usd"}
    assert (gpt["provider"], gpt["model"], gpt["requests"]) == ("openai", "gpt-4o-mini", 5)
    assert (claude["provider"], claude["model"], claude["requests"]) == ("anthropic", "claude-haiku-4-5", 2)
    rows = [row for row in world.rows(alice) if row["model"] == "gpt-4o-mini" and row["status"] == "settled"]
    for name in ("input_tokens", "output_tokens", "cost_cents"):
        assert gpt[name] == sum(row[name] for row in rows)
    (key,) = shown["api_keys"]
    assert (key["id"], key["prefix"]) == (alice.key_id, alice.key[:12])


def test_usage_is_read_in_pages(used: Used) -> None:
    world, alice, ids = used
    seen, query = [], "?limit=3"
    while True:
        page = usage_of(world, alice.key, query)
        seen += [row["id"] for row in page["recent_requests"]]
        if page["next_cursor"] is None:
            break
        query = f"?limit=3&cursor={page['next_cursor']}"
    assert seen == ids[::-1]


def test_usage_is_read_by_time(used: Used) -> None:
    world, alice, ids = used
    borders = [row["created_at"] for row in world.rows(alice)]
    some = usage_of(world, alice.key, f"?since={borders[5]}")
    assert [row["id"] for row in some["recent_requests"]] == ids[:4:-1]
    assert [(row["model"], row["requests"]) for row in some["usage_30d"]] == [("claude-haiku-4-5", 2)]
    others = usage_of(world, alice.key, f"?until={borders[5]}")
    assert [(row["model"], row["requests"]) for row in others["usage_30d"]] == [("gpt-4o-mini", 5)]
    for query in ("?since=2999-01-01", "?until=2020-01-01T00:00:00Z", "?since=2999-01-01&until=2020-01-01"):
        nothing = usage_of(world, alice.key, query)
        assert nothing["recent_requests"] == nothing["usage_30d"] == []
        assert nothing["balance_cents"] == 999


def test_usage_comes_as_a_table_of_settled_requests_the_earliest_first(used: Used) -> None:
    world, alice, ids = used
    reply = ask(world, "GET", "/v1/usage?format=csv", key=alice.key)
    assert reply.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(reply.data.decode())))
    assert [row["id"] for row in rows] == ids[:7]
    assert set(rows[0]) == ROW
    assert rows[0]["cost_usd"] == usage_of(world, alice.key)["recent_requests"][-1]["cost_usd"]
    assert [row["estimated"] for row in rows] == ["false"] * 7  # as in JSON
    empty = ask(world, "GET", "/v1/usage?format=csv&since=2999-01-01", key=alice.key).data.decode()
    assert empty.splitlines() == [reply.data.decode().splitlines()[0]]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("limit=", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("since=yesterday", "since"),
        ("until=2026-13-01", "until"),
        ("since=", "since"),
        ("format=xml", "format"),
        ("cursor=1", "cursor"),
        ("cursor=req_" + "9" * 100, "cursor"),
        ("user_id=usr_1", "user_id"),
        ("Limit=3", "Limit"),
    ],
)
def test_a_bad_query_is_refused_by_the_name_of_its_parameter(world: World, query: str, param: str) -> None:
    reply = ask(world, "GET", f"/v1/usage?{query}", key=world.customer(0).key)
    assert (reply.status, reply.json()["error"]["type"]) == (400, "validation_error")
    assert reply.json()["error"]["param"] == param


# --- holds ----------------------------------------------------------------------------------------------------


def test_what_is_in_flight_is_listed_and_can_be_ended_by_its_user_alone(world: World) -> None:
    alice, mallory = world.customer(), world.customer(name="mallory")
    with opened(world, "/v1/chat/completions", key=alice.key, body=SLOW) as stream:
        assert stream.readline()
        (hold,) = ask(world, "GET", "/v1/holds", key=alice.key).json()["holds"]
        assert set(hold) == {"id", "provider", "model", "held_usd", "since"}
        assert (hold["id"], hold["model"]) == (stream.headers["x-request-id"], "gpt-4o-mini")
        shown = usage_of(world, alice.key)
        assert shown["held_cents"] == 1 and shown["available_cents"] == 999
        assert ask(world, "GET", "/v1/holds", key=mallory.key).json() == {"holds": []}
        assert ask(world, "DELETE", f"/v1/holds/{hold['id']}", key=mallory.key).status == 404
        ended = ask(world, "DELETE", f"/v1/holds/{hold['id']}", key=alice.key)
        assert (ended.status, ended.json()) == (200, {"id": hold["id"], "ended": True})
        assert b"it was cancelled by its user" in stream.read()
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["estimated"]) == ("settled", 1)
    assert ask(world, "GET", "/v1/holds", key=alice.key).json() == {"holds": []}
    assert ask(world, "DELETE", f"/v1/holds/{hold['id']}", key=alice.key).status == 404


def test_a_user_who_may_have_no_more_in_flight_can_still_look_and_end_it(folder: Path) -> None:
    world = World.create(folder, MAX_IN_FLIGHT="1", DISCONNECT_GRACE_S="0")
    try:
        alice, carol = world.customer(), world.customer(name="carol")
        phone = sign_up(world, {"name": "phone"}, alice.key).json()
        with opened(world, "/v1/chat/completions", key=alice.key, body=SLOW) as stream:
            assert stream.readline()
            for key in (alice.key, phone["api_key"]):
                refused = ask(world, "POST", "/v1/chat/completions", key=key, body=chat())
                assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            buy(world, carol)
            (hold,) = ask(world, "GET", "/v1/holds", key=alice.key).json()["holds"]
            assert ask(world, "DELETE", f"/v1/holds/{hold['id']}", key=phone["api_key"]).status == 200
            stream.read()
        world.ended_rows(alice, 1)
        until(lambda: not ask(world, "GET", "/readyz").json()["in_flight"], "the end of the relay")
        with closing(connect(world)) as first, closing(connect(world)) as second:
            rests = [half_sent(connection, alice.key, SLOW) for connection in (first, second)]  # admitted both
            for connection, rest in zip((first, second), rests, strict=True):
                connection.send(rest)
            assert sorted(connection.getresponse().status for connection in (first, second)) == [200, 429]
        until(lambda: buy_one(world, alice) == 200, "room for the next", PATIENCE_S)
    finally:
        world.close()


def buy_one(world: World, customer: Customer) -> int:
    return ask(world, "POST", "/v1/chat/completions", key=customer.key, body=chat()).status


# --- nobody reaches anything of anybody else ------------------------------------------------------------------


def test_mallory_finds_nothing_under_the_ids_of_alice(world: World) -> None:
    alice, mallory = world.customer(100), world.customer(0, name="mallory")
    (request_id,) = buy(world, alice)
    for path in (f"/v1/keys/{alice.key_id}", f"/v1/keys/{alice.key[:12]}", f"/v1/holds/{request_id}"):
        reply = ask(world, "DELETE", path, key=mallory.key)
        assert (reply.status, reply.json()["error"]["type"]) == (404, "not_found")
    for query in (f"?cursor={request_id}", "?cursor=req_~", "?since=2000-01-01", "?format=csv"):
        assert request_id.encode() not in ask(world, "GET", f"/v1/usage{query}", key=mallory.key).data
    assert alice.key_id not in json.dumps(usage_of(world, mallory.key))
    assert ask(world, "GET", "/v1/usage", key=alice.key).status == 200
