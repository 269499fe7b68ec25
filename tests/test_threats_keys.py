"""Mallory and the keys of this gateway: she guesses, forges, doubles, smuggles and asks for what belongs to others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from goosestack.store.sqlite import connect_read_only
from tests.asking import directed, opened
from tests.mallory import CHAT, WIRES, Mallory, asks, assert_error, talk
from tests.world import World

OWN_ROUTES = [("GET", "/v1/usage"), ("GET", "/v1/keys"), ("GET", "/v1/holds"), ("DELETE", "/v1/keys/key_a")]
OWN_ROUTES += [("DELETE", "/v1/holds/req_a"), ("POST", "/v1/keys"), ("GET", "/api/me"), ("POST", "/api/chat")]
ROUTES = [*(("POST", path) for path in WIRES), *OWN_ROUTES]


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world) as mallory:
        yield mallory


def sent_to(method: str, path: str) -> dict[str, object] | None:
    if method != "POST":
        return None
    return {"email": "mallory@example.com", "name": "more"} if path == "/v1/keys" else asks(path)


# --- forged credentials ---------------------------------------------------------------------------------------


def forgeries(key: str) -> list[str]:
    """What is no key, though it may look like this one."""
    odd = ["' OR '1'='1", "' OR 1=1 --", "gsk_' UNION SELECT * FROM users --", "%", "gsk_%", "gsk_" + "_" * 44, "*"]
    odd += ["null", "undefined", "gsk_", "gsk_" + "A" * 44, "x" * 8192, "gsk_" + "A" * 8192, "../../gsk_", "{{key}}"]
    near = [key[:-1], key + "A", key[:-1] + ("A" if key[-1] != "A" else "B"), key[:12], key[:36], key.swapcase()]
    near += [key.upper(), key[4:], f"gsk_{key}", f'"{key}"', f"{key},", f"{key}, {key}", f"{key};{key}", f"{key} {key}"]
    near += [f"{key}\xa0", f"\xa0{key}", f"{key}\xe9", hashlib.sha256(key.encode()).hexdigest(), f"Bearer {key}"]
    return odd + near


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_what_is_no_key_opens_nothing(mallory: Mallory, method: str, path: str) -> None:
    sent = sent_to(method, path)
    for forged in forgeries(mallory.customer.key):
        for headers in ({"authorization": f"Bearer {forged}"}, {"x-api-key": forged}):
            mallory.refused(401, path, sent, headers, method=method)
    for scheme in ("Basic", "Token", "Digest", "Bearer:", "ApiKey", ""):
        mallory.refused(401, path, sent, {"authorization": f"{scheme} {mallory.customer.key}"}, method=method)
    mallory.refused(401, path, sent, {"authorization": mallory.customer.key}, method=method)
    mallory.nothing_happened()


KEYED_ROUTES = [route for route in ROUTES if route != ("POST", "/v1/keys")]
"""Those that nobody may ask without a key."""
NO_PARAMETERS = ("api_key", "key", "token", "access_token", "x-api-key", "authorization")
NO_HEADERS = ("api-key", "x-goog-api-key", "proxy-authorization", "x-auth-token", "x-provider-key", "x-gsk-key")


@pytest.mark.parametrize(("method", "path"), KEYED_ROUTES)
def test_a_key_counts_in_no_other_place_than_the_two_headers(mallory: Mallory, method: str, path: str) -> None:
    key, sent = mallory.customer.key, sent_to(method, path)
    for name in NO_PARAMETERS:
        mallory.refused(401, f"{path}?{name}={key}", sent, method=method, key=None)
        mallory.refused(401, path, sent, {"cookie": f"{name}={key}"}, method=method, key=None)
        if sent is not None:
            mallory.refused(401, path, {**sent, name: key}, method=method, key=None)
    for header in NO_HEADERS:
        mallory.refused(401, path, sent, {header: key}, method=method, key=None)
    mallory.nothing_happened()


@pytest.mark.parametrize("value", [b"gsk_\x00", b"gsk_\x01\x1b[31m", b"gsk_\r\n folded", b"gsk_\x7f"])
def test_a_credential_with_control_characters_is_not_even_read(mallory: Mallory, value: bytes) -> None:
    for header in (b"Authorization: Bearer ", b"X-Api-Key: "):
        (reply,) = talk(mallory.world, b"GET /v1/usage HTTP/1.1\r\nHost: x\r\n" + header + value + b"\r\n\r\n")
        assert reply.status == 400
    mallory.nothing_happened()


# --- two credentials ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_two_credentials_that_differ_are_a_conflict_and_never_a_choice(
    mallory: Mallory, method: str, path: str
) -> None:
    key, other = mallory.customer.key, mallory.world.customer(name="alice").key
    sent, bearer = sent_to(method, path), f"Bearer {key}"
    conflicts = [
        [("authorization", bearer), ("x-api-key", other)],
        [("authorization", f"Bearer {other}"), ("x-api-key", key)],
        [("authorization", bearer), ("x-api-key", "")],
        [("authorization", ""), ("x-api-key", key)],
        [("authorization", f"Basic {key}"), ("x-api-key", key)],
        [("authorization", bearer), ("x-api-key", "garbage")],
        [("authorization", bearer), ("authorization", bearer)],
        [("authorization", bearer), ("Authorization", f"Bearer {other}")],
        [("authorization", "Basic eDp5"), ("authorization", bearer)],
        [("x-api-key", key), ("X-Api-Key", key)],
        [("x-api-key", other), ("x-api-key", key)],
    ]
    for headers in conflicts:
        mallory.refused(400, path, sent, headers, method=method)
    mallory.nothing_happened()
    if method == "GET":
        both = [("authorization", f"bearer  {key} "), ("x-api-key", f" {key}")]  # as some agents send it
        assert mallory.ask(path, None, both, method=method).status == 200


# --- revoked keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["user", "operator"])
def test_a_revoked_key_opens_nothing_from_the_next_request_on_and_its_sister_still_does(
    mallory: Mallory, by: str
) -> None:
    for _ in range(5):
        made = mallory.ask("/v1/keys", {"name": "second"}).json
        mallory.secrets.append(made["api_key"])
        assert mallory.ask("/v1/holds", method="GET", key=made["api_key"]).status == 200
        if by == "user":
            assert mallory.ask(f"/v1/keys/{made['id']}", method="DELETE").json == {"id": made["id"], "revoked": True}
        else:
            assert mallory.world.verb("key_revoke", key=made["id"])["revoked"]
        mallory.refused(401, "/v1/holds", method="GET", key=made["api_key"])
        mallory.refused(401, CHAT, asks(CHAT), key=made["api_key"])
        assert mallory.ask("/v1/holds", method="GET").status == 200
    mallory.nothing_happened()


# --- what a thief of the database has -------------------------------------------------------------------------


def test_of_a_key_the_database_has_a_hash_and_twelve_characters(mallory: Mallory) -> None:
    made = mallory.ask("/v1/keys", {"name": "second"}).json
    key = made["api_key"]
    mallory.secrets.append(key)
    assert len(key) - len("gsk_") >= 32  # 192 bits at six bits a character
    db = connect_read_only(mallory.world.daemon.db)
    stored = db.execute("SELECT key_hash, key_prefix FROM api_keys WHERE id = ?", (made["id"],)).fetchone()
    db.close()
    assert stored == (hashlib.sha256(key.encode()).hexdigest(), key[:12])
    listed = mallory.ask("/v1/keys", method="GET")
    assert made["prefix"] == key[:12]
    assert [one["prefix"] for one in listed.json["api_keys"]] == [mallory.customer.key[:12], key[:12]]


# --- other people's e-mail, accounts, keys and requests ---------------------------------------------------------


def test_a_sign_up_with_a_victims_email_is_a_stranger_with_nothing(mallory: Mallory) -> None:
    victim = mallory.world.customer(5000, name="victim")
    answers = [
        mallory.ask("/v1/keys", {"email": email, "name": "mine"}, key=None)
        for email in ("victim@example.com", "victim@example.com", "nobody-at-all@example.com")
    ]
    assert {reply.status for reply in answers} == {201}
    assert len({(tuple(sorted(reply.json)), reply.json["message"]) for reply in answers}) == 1  # nothing to be learnt
    for reply in answers:
        key = reply.json["api_key"]
        mallory.secrets.append(key)
        usage = mallory.ask("/v1/usage", method="GET", key=key).json
        assert (usage["balance_cents"], usage["recent_requests"], len(usage["api_keys"])) == (0, [], 1)
        assert mallory.refused(402, CHAT, asks(CHAT), key=key).headers["x-should-retry"] == "false"
    assert mallory.world.funds(victim)["balance_cents"] == 5000
    mallory.nothing_happened()


NO_EMAILS: list[object] = [
    None,
    "",
    "a",
    "@",
    "a@",
    "@b",
    "a@b@c",
    "a b@c.de",
    "a@b\n",
    "a@b\r\nBcc: x@y",
    "a\x00@b",
    "a@b\x1b[31m",
]
NO_EMAILS += ["a@\u200bb.de", "a@b\u202e", "a\u00ad@b", "a@b\u2028", "a\u3000@b", "x" * 253 + "@b", 5, [], ["a@b"], {}]


def test_an_email_is_one_line_with_one_at_and_of_bounded_length(mallory: Mallory) -> None:
    for email in NO_EMAILS:
        reply = mallory.refused(400, "/v1/keys", {"email": email, "name": "mine"}, key=None)
        assert reply.json["error"]["param"] == "email"


def test_emails_that_look_alike_are_labels_of_different_users(mallory: Mallory) -> None:
    alike = ["eve@example.com", "Eve@example.com", "e.ve@example.com", "eve+1@example.com", "еve@example.com"]
    users = set()
    for email in alike:
        key = mallory.ask("/v1/keys", {"email": email, "name": "n"}, key=None).json["api_key"]
        mallory.secrets.append(key)
        users.add(mallory.ask("/v1/usage", method="GET", key=key).json["api_keys"][0]["id"])
    assert len(users) == len(alike)


COLUMNS = """id user_id balance balance_cents held carry pro pro_until stripe_customer_id created_at revoked key_hash
    key_prefix api_key role admin is_admin scopes limits grain unit account_id credits Email NAME __proto__""".split()


@pytest.mark.parametrize("key", ["", None])
def test_nobody_assigns_what_is_not_theirs_by_naming_a_column(mallory: Mallory, key: str | None) -> None:
    for name in COLUMNS:
        for value in (1, "usr_a", True, None, {"a": 1}):
            sent = {"email": "a@example.com", "name": "n", name: value}
            assert name in mallory.refused(400, "/v1/keys", sent, key=key).message
    labels: list[object] = [5, True, [], {}, "x" * 101, "a\nb", "\x1b[31m", "\u202e"]
    for label in labels:
        mallory.refused(400, "/v1/keys", {"email": "a@example.com", "name": label}, key=key)
    mallory.nothing_happened()


def test_nobody_multiplies_the_rate_limit_by_making_keys(mallory: Mallory) -> None:
    statuses = []
    for turn in range(70):
        reply = mallory.ask("/v1/keys", {"name": f"{turn}"}, key=mallory.secrets[-1] if turn % 2 else "")
        statuses.append(reply.status)
        if reply.status == 201:
            mallory.secrets.append(reply.json["api_key"])
        else:
            assert_error(reply, "ours", 429)
    assert statuses == [201] * 60 + [429] * 10
    mallory.nothing_happened()


NOBODYS_IDS = ["%", "key_%", "'%20OR%20'1'='1", "key_" + "0" * 32, "..", "a/b", "x" * 1000]


def test_the_ids_of_others_keys_and_holds_are_not_found(mallory: Mallory) -> None:
    alice = mallory.world.customer(name="alice")
    body = asks(CHAT, directed("Go", words=3, delay_ms=60_000), stream=True)
    with opened(mallory.world, CHAT, key=alice.key, body=body) as stream:
        stream.readline()
        (hold,) = mallory.ask("/v1/holds", method="GET", key=alice.key).json["holds"]
        foreign = [alice.key_id, alice.id, hold["id"], mallory.customer.id, alice.key[:12]]
        for one in ["", *foreign, *NOBODYS_IDS]:
            for kind in ("keys", "holds"):
                mallory.refused(404, f"/v1/{kind}/{one}", method="DELETE")
        assert mallory.ask("/v1/holds", method="GET").json == {"holds": []}
        assert mallory.ask("/v1/usage", method="GET").json["recent_requests"] == []
        assert len(mallory.ask("/v1/holds", method="GET", key=alice.key).json["holds"]) == 1
        assert mallory.ask(f"/v1/holds/{hold['id']}", method="DELETE", key=alice.key).status == 200
    (row,) = mallory.world.ended_rows(alice, 1)
    assert row["status"] == "settled"


QUERIES = """q=%25%25%25 user_id=usr_a limit=0 limit=201 limit=-1 limit=1e9 limit=%D9%A1 limit=999999999999999999999
    limit= since=now until=2026-13-01 since=%00 cursor=1 cursor=req_%D9%A1 cursor=%25 format=xml format=csv%00 order=asc
    since=99999-01-01 columns=key_hash fields=*""".split()


def test_a_query_of_usage_is_taken_as_it_is_meant_or_refused(mallory: Mallory) -> None:
    for query in QUERIES:
        mallory.refused(400, f"/v1/usage?{query}", method="GET")


@pytest.mark.parametrize("bound", ["0001-01-01", "9999-12-31T23:59:59.999999", "0001-01-01T00:00:00%2B14:00"])
def test_usage_since_the_beginning_or_the_end_of_time_is_an_answer(mallory: Mallory, bound: str) -> None:
    for name in ("since", "until"):
        for form in ("json", "csv"):
            assert mallory.ask(f"/v1/usage?{name}={bound}&format={form}", method="GET").status == 200
