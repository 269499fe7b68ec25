"""Mallory and the access tokens of a Supabase project: she forges, alters, borrows and floods. Whatever is no good
token of a user is a 401 in the format that she speaks, soon, and nothing goes upstream.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from openai import OpenAI

from tests.mallory import CHAT, WIRES, Mallory, asks
from tests.project import ANON_KEY, SECRET, SERVICE_KEY, Project
from tests.world import World

ALICE = "a11ce000-0000-4000-8000-00000000000a"
MOBILE = "/api/chat"
ROUTES = [*(("POST", path) for path in WIRES), ("POST", MOBILE), ("GET", "/api/me"), ("GET", "/v1/usage")]
ROUTES += [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("GET", "/v1/holds"), ("DELETE", "/v1/holds/req_a")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("project"))
    yield project
    project.close()


@pytest.fixture(scope="module", params=["keys", "secret"])
def world(
    request: pytest.FixtureRequest, project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A daemon that knows the project's users: by its published keys, or by its secret."""
    secret = SECRET if request.param == "secret" else ""
    world = World.create(tmp_path_factory.mktemp("tokens"), SUPABASE_URL=project.url, JWT_SECRET=secret)
    yield world
    world.close()


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world) as mallory:
        yield mallory


def alg_of(world: World) -> str:
    """How the good tokens of this world are signed."""
    return "HS256" if world.daemon.env["JWT_SECRET"] else "ES256"


def sent_to(method: str, path: str) -> dict[str, Any] | None:
    if method != "POST":
        return None
    return {"name": "more"} if path == "/v1/keys" else asks(CHAT if path == MOBILE else path)


# --- what a good one opens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_good_token_opens_every_route_that_a_key_opens(
    world: World, project: Project, method: str, path: str
) -> None:
    """Else all that follows would prove nothing."""
    with Mallory(world, cents=0) as alice:
        token = project.token(alg=alg_of(world), sub=ALICE)
        alice.private.append(token)
        for headers in ({"authorization": f"Bearer {token}"}, {"x-api-key": token}):
            reply = alice.ask(path, sent_to(method, path), headers, method=method)
            assert reply.status == {"/v1/keys": 201 if method == "POST" else 200, "/v1/holds/req_a": 404}.get(
                path, 200 if method == "GET" or path.endswith("count_tokens") else 402
            ), reply.body


def test_who_has_both_a_token_and_a_key_must_choose(mallory: Mallory, project: Project) -> None:
    token = project.token(alg=alg_of(mallory.world), sub=ALICE)
    for method, path in ROUTES:
        for first, second in ((token, mallory.customer.key), (mallory.customer.key, token)):
            headers = {"authorization": f"Bearer {first}", "x-api-key": second}
            mallory.refused(400, path, sent_to(method, path), headers, method=method)
    mallory.nothing_happened()


# --- what is none ---------------------------------------------------------------------------------------------


def encoded(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_head(token: str, head: object) -> str:
    return f"{encoded(head)}.{token.split('.', 1)[1]}"


def bad(project: Project, alg: str) -> dict[str, str]:
    """Every kind of token that must not be believed, by what is wrong with it."""
    now = int(time.time())
    ordered: dict[str, dict[str, Any]] = {
        "no algorithm": {"alg": "none"},
        "the other family of algorithms": {"alg": "HS256" if alg == "ES256" else "ES256"},
        "the published key as a secret": {"alg": "HS256", "signer": "public"},
        "signed by a stranger": {"signer": "stranger"},
        "signed by a stranger, RS256": {"alg": "RS256", "signer": "stranger"},
        "expired": {"lifetime_s": -3600},
        "not yet valid": {"claims": {"nbf": now + 3600}},
        "made in the future": {"claims": {"iat": now + 3600}},
        "no end": {"claims": {"exp": None}},
        "an end that is no time": {"claims": {"exp": "never"}},
        "an end that is a list": {"claims": {"exp": [now + 3600]}},
        "another audience": {"claims": {"aud": "anon"}},
        "other audiences": {"claims": {"aud": ["anon", "authenticated "]}},
        "no audience": {"claims": {"aud": None}},
        "another issuer": {"claims": {"iss": "https://other.supabase.co/auth/v1"}},
        "an issuer with a slash": {"claims": {"iss": f"{project.issuer}/"}},
        "no issuer": {"claims": {"iss": None}},
        "an anonymous role": {"claims": {"role": "anon"}},
        "the service's role": {"claims": {"role": "service_role"}},
        "no role": {"claims": {"role": None}},
        "no subject": {"claims": {"sub": None}},
        "a subject that is no UUID": {"sub": "alice"},
        "a subject in capitals": {"sub": ALICE.upper()},
        "a subject with more": {"sub": f"{ALICE}\n"},
        "a subject that is a number": {"sub": 5},
        "an anonymous user": {"claims": {"is_anonymous": True}},
        "an anonymous user, by another word": {"claims": {"is_anonymous": "true"}},
        "a header that must be understood": {"headers": {"crit": ["x"], "x": 1}},
        "a payload elsewhere": {"headers": {"b64": False, "crit": ["b64"]}},
    }
    if alg == "ES256":
        ordered |= {
            "no name of a key": {"headers": {"kid": None}},
            "an unknown key": {"headers": {"kid": str(uuid4())}},
            "a key that is a path": {"headers": {"kid": "../../../../dev/null"}},
            "keys from elsewhere": {"signer": "stranger", "headers": {"jku": "http://127.0.0.1:9/", "x5u": "file:///"}},
        }
    found = {what: project.token(**{"alg": alg, "sub": ALICE, **order}) for what, order in ordered.items()}
    good = project.token(alg=alg, sub=ALICE)
    head, payload, signature = good.split(".")
    strangers = {"iss": "supabase", "ref": "canary", "iat": now, "exp": now + 10**8}
    found |= {
        "the project's anon key": jwt.encode({**strangers, "role": "anon"}, SECRET, "HS256"),
        "the project's service key": jwt.encode({**strangers, "role": "service_role"}, SECRET, "HS256"),
        "a publishable key": ANON_KEY,
        "a secret key": SERVICE_KEY,
        "no signature": f"{head}.{payload}.",
        "a signature of nothing": f"{head}.{payload}.AA",
        "another payload": f"{head}.{encoded({'sub': ALICE})}.{signature}",
        "a character more": f"{good}A",
        "a character less": good[:-3],
        "padding": f"{head}=.{payload}.{signature}",
        "a part more": f"{good}.AAAA",
        "two parts": f"{head}.{payload}",
        "quotes": f'"{good}"',
        "twice": f"{good},{good}",
        "a blank": f"{head}. {payload}.{signature}",
        "no header": f".{payload}.{signature}",
        "a header that is a list": with_head(good, [1]),
        "a header that is deep": with_head(good, b"[" * 3000 + b"]" * 3000),
        "a header that is no JSON": with_head(good, b"\xff{"),
        "a header without an algorithm": with_head(good, {"typ": "JWT"}),
        "an algorithm that is a list": with_head(good, {"alg": [alg], "kid": "x"}),
        "an algorithm in small letters": with_head(good, {**json.loads(unpadded(head)), "alg": alg.lower()}),
        "an encrypted token": with_head(good, {"alg": "RSA-OAEP", "enc": "A256GCM"}) + ".AAAA.AAAA",
        "nine kilobytes": f"{head}.{payload}{'A' * 9000}.{signature}",
        "thirty kilobytes": f"{head}.{payload}{'A' * 30_000}.{signature}",
        "two megabytes": f"{head}.{payload}{'A' * 2_000_000}.{signature}",
        "garbage": "\xe4.\xf6.\xfc",
        "dots": "." * 4000,
    }
    return found


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_what_is_no_good_token_of_a_user_is_refused_on_every_route(mallory: Mallory, project: Project) -> None:
    tokens = bad(project, alg_of(mallory.world))
    mallory.private += [token for token in tokens.values() if len(token) > 200]
    for what, token in tokens.items():
        for method, path in ROUTES:
            try:
                reply = mallory.refused(
                    401, path, sent_to(method, path), {"authorization": f"Bearer {token}"}, method=method
                )
            except AssertionError as error:
                raise AssertionError(f"{what}: {error}") from error
            assert ("expired" in reply.message) == (what == "expired")
    mallory.nothing_happened()


def test_what_is_no_good_token_is_refused_fast(mallory: Mallory, project: Project) -> None:
    for what, token in bad(project, alg_of(mallory.world)).items():
        took = []
        for _ in range(3):
            start = time.perf_counter()
            mallory.refused(401, "/api/me", None, {"authorization": f"Bearer {token}"}, method="GET")
            took.append(time.perf_counter() - start)
        assert min(took) < 0.25, what


def test_a_flood_of_unknown_keys_has_them_fetched_hardly_ever_and_a_user_does_not_notice(
    world: World, project: Project
) -> None:
    with Mallory(world) as mallory:
        good = project.token(alg=alg_of(world), sub=ALICE)
        before, forged = project.fetches, project.token(headers={"kid": "forged"})
        for number in range(300):
            token = with_head(forged, {"alg": "ES256", "kid": f"forged-{number}"})
            mallory.refused(401, CHAT, asks(CHAT), {"authorization": f"Bearer {token}"})
            if number % 50 == 0:
                told = mallory.ask("/api/me", None, {"authorization": f"Bearer {good}"}, method="GET")
                assert told.status == 200
        assert project.fetches - before <= 2
        mallory.nothing_happened()


# --- a user's life --------------------------------------------------------------------------------------------


def test_a_user_with_an_sdk_spends_their_own_credits_by_their_token(world: World, project: Project) -> None:
    sub = str(uuid4())
    token = project.token(alg=alg_of(world), sub=sub, claims={"email": f"{sub[:8]}@example.com"})
    with OpenAI(base_url=f"{world.url}/v1", api_key=token, max_retries=0) as client:
        with pytest.raises(Exception, match="Not enough credits"):
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
        world.verb("credit_grant", user=sub, cents=500, note="", ref=None)
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
        assert answer.choices[0].message.content
        stream = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    (user,) = (user for user in world.verb("user_list", after="") if user["email"] == f"{sub[:8]}@example.com")
    rows = [row for row in world.rows() if row["user_id"] == user["id"]]
    assert [(row["status"], row["key_id"]) for row in rows] == [("settled", None)] * 2


def test_a_user_may_make_a_key_for_their_account(world: World, project: Project) -> None:
    token = project.token(alg=alg_of(world))
    with Mallory(world, cents=0) as user:
        me = user.ask("/api/me", None, {"authorization": f"Bearer {token}"}, method="GET").json["user"]
        made = user.ask("/v1/keys", {"name": "laptop"}, {"authorization": f"Bearer {token}"}).json
        user.secrets.append(made["api_key"])
        assert user.ask("/api/me", None, key=made["api_key"], method="GET").json["user"] == me
        revoked = user.ask(f"/v1/keys/{made['id']}", None, {"authorization": f"Bearer {token}"}, method="DELETE")
        assert revoked.status == 200
        assert user.ask("/api/me", None, {"authorization": f"Bearer {token}"}, method="GET").status == 200


def test_requests_are_limited_for_a_user_and_not_for_each_of_their_tokens(folder: Path, project: Project) -> None:
    world = World.create(folder, SUPABASE_URL=project.url, RATE_LIMIT_MAX_REQUESTS="5")
    try:
        with Mallory(world, cents=0) as user:
            sub = str(uuid4())
            bearers = [{"authorization": f"Bearer {project.token(sub=sub)}"} for _ in range(8)]
            told = [user.ask("/api/me", None, bearer, method="GET").status for bearer in bearers]
            assert told == [200] * 5 + [429] * 3
    finally:
        world.close()


def test_while_no_keys_were_ever_had_a_token_is_answered_503_and_a_key_as_always(folder: Path) -> None:
    project = Project(folder)
    token = project.token()
    project.close()
    world = World.create(folder, SUPABASE_URL=project.url, RATE_LIMIT_MAX_REQUESTS="5")
    try:
        with Mallory(world) as alice:
            for method, path in ROUTES:  # more than a stranger may ask: it is our fault, and counts against nobody
                reply = alice.refused(503, path, sent_to(method, path), {"x-api-key": token}, method=method)
                assert int(reply.headers["retry-after"]) > 0
            alice.nothing_happened()
            assert alice.ask(CHAT, asks(CHAT)).status == 200
        assert '"kind":"sign_in","what":"the keys cannot be fetched: ' in world.daemon.program.text()
    finally:
        world.close()


def test_keys_that_rotate_while_the_daemon_runs_are_learnt(folder: Path, project: Project) -> None:
    world = World.create(folder, SUPABASE_URL=project.url)
    try:
        with Mallory(world, cents=0) as user:
            sub = str(uuid4())
            before = project.token(sub=sub)
            assert user.ask("/api/me", None, {"x-api-key": before}, method="GET").status == 200
            project.rotate()
            after = project.token(sub=sub)
            told = [user.ask("/api/me", None, {"x-api-key": token}, method="GET").json for token in (before, after)]
            assert told[0]["user"] == told[1]["user"]
    finally:
        world.close()
