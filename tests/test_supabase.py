"""Access tokens of a Supabase project, and the keys that they are verified with: keys rotate and are withdrawn, the
project is down, users sign out. The project is a process; time is given.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from goosestack import ledger, supabase
from goosestack.accounts import Principal, find_identity
from goosestack.errors import SignInUnavailable, TokenExpired
from goosestack.http import Broken, Client, Lost, NotSent
from goosestack.store import Tx
from goosestack.store.sqlite import SqliteStore
from goosestack.supabase import ANSWER_S, FIRST_S, LEEWAY_S, MOST_KNOWN, REFETCH_S, Check, KeySet, Secret, Supabase
from tests.project import ANON_KEY, SECRET, Project

ALICE = "a11ce000-0000-4000-8000-000000000001"
JWKS, USER = "/auth/v1/.well-known/jwks.json", "/auth/v1/user"


class Clock:
    """Time, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def emails(tx: Tx) -> list[str]:
    """Of every user."""
    return [email for (email,) in tx.execute("SELECT email FROM users").fetchall()]


class Gate:
    """An identifier of the project's users, with a database and a clock of its own."""

    def __init__(self, folder: Path, project: Project) -> None:
        self.project, self.clock = project, Clock()
        self.store, self.client = SqliteStore(folder / "goosestack.db"), Client()
        self.keys = KeySet(self.client, project.issuer, self.clock)
        self.alerts: list[tuple[str, dict[str, object]]] = []

    def opened(
        self, *, keys: Secret | None = None, anonymous: bool = False, check_s: float | None = None, issuer: str = ""
    ) -> Supabase:
        """The identifier, with these settings."""
        return Supabase(
            store=self.store,
            client=self.client,
            issuer=issuer or self.project.issuer,
            keys=self.keys if keys is None else keys,
            anonymous=anonymous,
            check=None if check_s is None else Check(ANON_KEY, check_s),
            now=lambda: "2026-11-21T12:00:00.000Z",
            alert=lambda kind, **facts: self.alerts.append((kind, facts)),
            clock=self.clock,
        )

    async def users(self) -> int:
        """How many there are."""
        return len(await self.store.read(emails))


@pytest.fixture
def project(folder: Path) -> Iterator[Project]:
    project = Project(folder)
    yield project
    project.close()


@pytest.fixture
async def gate(folder: Path, project: Project) -> AsyncIterator[Gate]:
    gate = Gate(folder, project)
    yield gate
    await gate.client.close()
    await gate.store.close()
    with closing(sqlite3.connect(folder / "goosestack.db")) as db:
        assert ledger.check(db, full=True).wrong == []


async def known(supabase: Supabase, token: str) -> Principal:
    caller = await supabase.identify(token)
    assert caller is not None
    return caller


# --- who it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["ES256", "RS256"])
async def test_a_token_names_its_user_whom_the_first_sight_makes(gate: Gate, alg: str) -> None:
    opened = gate.opened()
    first = await known(opened, gate.project.token(alg=alg, sub=ALICE))
    again = await known(opened, gate.project.token(alg=alg, sub=ALICE))
    other = await known(opened, gate.project.token(alg=alg))
    assert first == again != other
    assert first.key_id is None
    assert gate.store.peek(find_identity, gate.project.issuer, ALICE) == first
    assert await gate.users() == 2


async def test_the_secret_of_an_older_project_does_the_same_and_fetches_nothing(gate: Gate) -> None:
    opened = gate.opened(keys=Secret(SECRET))
    assert await opened.identify(gate.project.token(alg="HS256", sub=ALICE)) is not None
    await opened.fetch_keys()
    assert gate.project.fetches == 0


async def test_with_a_secret_no_other_algorithm_counts(gate: Gate) -> None:
    opened = gate.opened(keys=Secret(SECRET))
    for order in ({"alg": "ES256"}, {"alg": "RS256"}, {"alg": "none"}, {"alg": "HS256", "signer": "stranger"}):
        assert await opened.identify(gate.project.token(**order)) is None, order
    assert await gate.users() == 0


async def test_the_same_user_twice_at_once_is_one_user(gate: Gate) -> None:
    opened = gate.opened()
    tokens = [gate.project.token(sub=ALICE) for _ in range(8)]
    callers = await asyncio.gather(*(opened.identify(token) for token in tokens * 4))
    assert len(set(callers)) == 1 and callers[0] is not None
    assert await gate.users() == 1
    assert gate.project.fetches == 1


async def test_a_user_keeps_their_account_under_another_e_mail_and_nobody_gets_one_by_it(gate: Gate) -> None:
    opened = gate.opened()
    alice = await known(opened, gate.project.token(sub=ALICE, claims={"email": "alice@example.com"}))
    moved = await known(opened, gate.project.token(sub=ALICE, claims={"email": "new@example.com"}))
    mallory = await known(opened, gate.project.token(claims={"email": "alice@example.com"}))
    assert alice == moved != mallory


async def test_what_a_user_says_of_themselves_is_at_most_a_label(gate: Gate) -> None:
    opened = gate.opened()
    odd: list[object] = [
        None,
        "",
        "no address",
        "usr_1",
        "a@b\nc@d",
        "x" * 300 + "@example.com",
        5,
        ["a@b"],
        "\u202e@b",
    ]
    for email in odd:
        sub = str(uuid4())
        await known(opened, gate.project.token(sub=sub, claims={"email": email, "user_metadata": {"role": "admin"}}))
        assert sub in await gate.store.read(emails)
    assert await gate.users() == len(odd)


async def test_the_same_name_in_another_project_is_another_user(gate: Gate) -> None:
    elsewhere = "https://other.example/auth/v1"
    here, there = gate.opened(), gate.opened(issuer=elsewhere)
    one = await known(here, gate.project.token(sub=ALICE))
    assert await there.identify(gate.project.token(sub=ALICE)) is None
    two = await known(there, gate.project.token(sub=ALICE, claims={"iss": elsewhere}))
    assert one != two


@pytest.mark.parametrize("claim", [True, None, "false", 0, 1, []])
async def test_anonymous_users_come_in_by_option_alone(gate: Gate, claim: object) -> None:
    """A token that does not say is of a server that has no anonymous users; one that says nonsense is refused."""
    token = gate.project.token(claims={"is_anonymous": claim})
    assert (await gate.opened().identify(token) is not None) == (claim is None)
    assert await gate.opened(anonymous=True).identify(token) is not None


# --- how long -------------------------------------------------------------------------------------------------


async def test_an_expired_token_is_told_apart_since_its_owner_can_get_a_new_one(gate: Gate) -> None:
    opened = gate.opened()
    assert await opened.identify(gate.project.token(lifetime_s=-LEEWAY_S + 10)) is not None
    with pytest.raises(TokenExpired):
        await opened.identify(gate.project.token(lifetime_s=-LEEWAY_S - 10))
    stranger = gate.project.token(lifetime_s=-LEEWAY_S - 10, signer="stranger")
    assert await opened.identify(stranger) is None


async def test_a_token_that_is_remembered_expires_all_the_same(gate: Gate) -> None:
    opened = gate.opened()
    token = gate.project.token(lifetime_s=-LEEWAY_S + 2)
    assert await opened.identify(token) is not None
    for _ in range(100):
        try:
            await opened.identify(token)
        except TokenExpired:
            return
        await asyncio.sleep(0.05)
    pytest.fail("it is still believed")


async def test_a_token_that_is_remembered_is_not_verified_again(gate: Gate) -> None:
    opened = gate.opened()
    token = gate.project.token()
    caller = await opened.identify(token)
    await gate.client.close()
    await gate.store.close()
    assert [await opened.identify(token) for _ in range(3)] == [caller] * 3


async def test_no_more_tokens_are_remembered_than_may_be(gate: Gate) -> None:
    opened = gate.opened(keys=Secret(SECRET))
    claims = {"iss": gate.project.issuer, "aud": "authenticated", "sub": ALICE, "role": "authenticated", "exp": 2**40}
    for number in range(MOST_KNOWN + 10):
        token = jwt.encode({**claims, "n": number}, SECRET, "HS256")
        assert await opened.identify(token) is not None
    assert len(opened._known) == 10


# --- keys that change -----------------------------------------------------------------------------------------


async def test_a_new_key_is_fetched_when_it_is_first_seen(gate: Gate) -> None:
    opened = gate.opened()
    old = gate.project.token(sub=ALICE)
    caller = await known(opened, old)
    for alg in ("ES256", "RS256", "ES256"):
        gate.clock.now += REFETCH_S
        gate.project.rotate(alg)
        assert await opened.identify(gate.project.token(alg=alg, sub=ALICE)) == caller
        assert await opened.identify(old) == caller
    assert gate.project.fetches == 4


async def test_a_flood_of_unknown_keys_fetches_once_in_half_a_minute(gate: Gate) -> None:
    opened = gate.opened()
    good = gate.project.token(sub=ALICE)
    caller = await known(opened, good)
    gate.clock.now += REFETCH_S
    for _ in range(3):
        forged = [gate.project.token(headers={"kid": str(uuid4())}) for _ in range(50)]
        assert set(await asyncio.gather(*(opened.identify(token) for token in forged))) == {None}
        assert await opened.identify(good) == caller
        gate.clock.now += REFETCH_S / 3 - 0.1
    assert gate.project.fetches == 2
    gate.clock.now += 0.3
    assert await opened.identify(gate.project.token(headers={"kid": "another"})) is None
    assert gate.project.fetches == 3


async def test_while_the_project_is_down_its_last_good_keys_are_kept(gate: Gate) -> None:
    opened = gate.opened()
    assert await opened.identify(gate.project.token()) is not None
    for fault in ({"status": 500}, {"status": 404}, {"drop": True}, {"status": 302}):
        gate.project.tell("POST", "faults", path=JWKS, times=0, **fault)
        gate.clock.now += REFETCH_S
        assert await opened.identify(gate.project.token(headers={"kid": "new"})) is None
        with pytest.raises((Broken, Lost)):
            await gate.keys.fetch()
        assert await opened.identify(gate.project.token()) is not None
        gate.project.tell("DELETE", "faults")
    gate.project.close()
    with pytest.raises(NotSent):
        await gate.keys.fetch()
    await opened.fetch_keys()
    assert [kind for kind, _ in gate.alerts] == ["sign_in"]


@pytest.mark.parametrize(
    "body",
    [
        {"keys": []},
        {"keys": [{"kid": "a", "kty": "oct", "k": "c2VjcmV0"}]},
        {"keys": ["a"]},
        [],
        {"keys": [], "more": "a" * 300_000},
        "deep",
    ],
    ids=["none", "useless", "words", "no document", "huge", "deep"],
)
async def test_an_answer_without_a_key_that_can_be_used_takes_no_key_away(gate: Gate, body: object) -> None:
    opened = gate.opened()
    token = gate.project.token()
    assert await opened.identify(token) is not None
    text = '{"keys": [{"kid": ' + "[" * 20_000 + "]" * 20_000 + "}]}" if body == "deep" else json.dumps(body)
    gate.project.tell("POST", "faults", path=JWKS, status=200, body=text, times=0)
    await opened.fetch_keys()
    ((kind, told),) = gate.alerts
    assert kind == "sign_in" and str(told["what"]).startswith("the keys cannot be fetched: the")
    gate.clock.now += REFETCH_S
    assert await opened.identify(gate.project.token(headers={"kid": "new"})) is None
    assert await opened.identify(token) is not None
    assert await opened.identify(gate.project.token()) is not None


@pytest.mark.parametrize("odd", [{"kid": "a", "kty": "oct"}, {"kid": "a", "kty": "OKP", "alg": "none"}])
async def test_a_key_of_a_kind_that_nobody_knows_keeps_no_other_from_being_used(gate: Gate, odd: object) -> None:
    opened = gate.opened()
    published = gate.project.jwks()
    gate.project.tell("POST", "faults", path=JWKS, status=200, body=json.dumps({"keys": [odd, *published]}), times=0)
    assert await opened.identify(gate.project.token()) is not None
    assert gate.alerts == []


async def test_a_project_that_publishes_no_key_refuses_nobody_for_good_and_its_operator_is_told(gate: Gate) -> None:
    """As an older one does, whose tokens the secret alone verifies."""
    opened = gate.opened()
    gate.project.tell("POST", "faults", path=JWKS, status=200, body='{"keys": []}', times=0)
    await opened.fetch_keys()
    ((kind, told),) = gate.alerts
    assert kind == "sign_in" and str(told["what"]).endswith("an older project has none, and needs JWT_SECRET")
    token = gate.project.token()
    with pytest.raises(SignInUnavailable):
        await opened.identify(token)
    gate.project.tell("DELETE", "faults")
    gate.clock.now += FIRST_S
    assert await opened.identify(token) is not None


async def test_of_two_answers_that_overtake_each_other_the_later_question_counts(gate: Gate) -> None:
    opened = gate.opened()
    assert await opened.identify(gate.project.token()) is not None
    gate.clock.now += REFETCH_S
    gate.project.tell("POST", "faults", path=JWKS, status=None, done=True, stall_s=0.5)
    late = asyncio.create_task(opened.fetch_keys())
    while len(gate.project.asked(JWKS)) < 2:
        await asyncio.sleep(0.01)
    gate.project.rotate()
    token = gate.project.token()
    assert await opened.identify(token) is not None
    await late
    assert await opened.identify(token) is not None
    assert await opened.identify(gate.project.token()) is not None


async def test_while_the_keys_are_late_an_unknown_one_waits_a_second_and_its_answer_counts(gate: Gate) -> None:
    opened = gate.opened()
    assert await opened.identify(gate.project.token()) is not None
    gate.clock.now += REFETCH_S
    gate.project.rotate()
    token = gate.project.token()
    gate.project.tell("POST", "faults", path=JWKS, status=None, stall_s=2.0)
    start = time.monotonic()
    assert set(await asyncio.gather(*(opened.identify(token) for _ in range(5)))) == {None}
    assert time.monotonic() - start < 1.9
    for _ in range(100):
        if await opened.identify(token) is not None:
            return
    pytest.fail("the keys never came")


async def test_before_the_first_keys_are_had_nobody_is_refused_for_good(gate: Gate) -> None:
    opened = gate.opened()
    gate.project.tell("POST", "faults", path=JWKS, status=503, times=2)
    token = gate.project.token()
    for _ in range(3):
        with pytest.raises(SignInUnavailable) as told:
            await opened.identify(token)
    assert told.value.headers["retry-after"] == "3"
    assert gate.project.fetches == 1
    gate.clock.now += FIRST_S
    with pytest.raises(SignInUnavailable):
        await opened.identify(token)
    gate.clock.now += FIRST_S
    assert await opened.identify(token) is not None


async def test_a_caller_who_leaves_takes_the_keys_away_from_nobody(gate: Gate) -> None:
    opened = gate.opened()
    gate.project.tell("POST", "faults", path=JWKS, stall_s=0.2, status=None)
    token = gate.project.token(sub=ALICE)
    leaver = asyncio.create_task(opened.identify(token))
    stayer = asyncio.create_task(opened.identify(token))
    await asyncio.sleep(0)
    leaver.cancel()
    assert await stayer is not None
    assert gate.project.fetches == 1


async def test_a_key_that_was_withdrawn_is_believed_no_longer_once_that_is_known(gate: Gate) -> None:
    opened = gate.opened()
    token = gate.project.token()
    assert await opened.identify(token) is not None
    gate.project.tell("POST", "withdraw", kid=gate.project.published()[0])
    assert await opened.identify(token) is not None
    await opened.fetch_keys()
    assert await opened.identify(token) is None


def test_only_keys_that_are_for_signatures_of_the_two_kinds_are_used() -> None:
    p256 = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
    good: dict[str, object] = {"kty": "EC", "crv": "P-256", "x": p256[0], "y": p256[1], "kid": "a", "use": "sig"}
    assert supabase._usable(good) is not None
    bad: list[dict[str, object]] = [
        {**good, "use": "enc"},
        {**good, "kid": None},
        {**good, "kid": 5},
        {**good, "alg": "ES512"},
        {**good, "alg": "HS256"},
        {**good, "alg": ["ES256"]},
        {**good, "alg": "none"},
        {**good, "crv": "P-521"},
        {**good, "crv": "secp256k1"},
        {**good, "crv": ["P-256"]},
        {**good, "kty": ["EC"]},
        {**good, "kty": "nothing"},
        {**good, "x": "AAAA"},
        {**good, "y": 5},
        {"kid": "a"},
        {"kty": "oct", "kid": "a"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "a"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256", "use": "sig"},
        {"kty": "RSA", "kid": "a"},
    ]
    assert [entry for entry in bad if supabase._usable(entry) is not None] == []
    for curve in (ec.SECP384R1(), ec.SECP521R1()):
        entry = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key(), as_dict=True)
        assert supabase._usable({**entry, "kid": "a"}) is None
        assert supabase._usable({**entry, "kid": "a", "alg": "ES256"}) is None


# --- asking the project ---------------------------------------------------------------------------------------


async def test_without_the_option_the_project_is_never_asked_about_a_token(gate: Gate) -> None:
    opened = gate.opened()
    gate.project.tell("POST", "sign-out", sub=ALICE)
    assert await opened.identify(gate.project.token(sub=ALICE)) is not None
    assert gate.project.asked(USER) == []


async def test_who_has_signed_out_is_noticed_within_the_time_that_is_set(gate: Gate) -> None:
    opened = gate.opened(check_s=60)
    token = gate.project.token(sub=ALICE)
    callers = await asyncio.gather(*(opened.identify(token) for _ in range(20)))
    assert None not in callers and len(gate.project.asked(USER)) == 1
    assert gate.project.asked(USER)[0]["headers"]["apikey"] == ANON_KEY
    gate.project.tell("POST", "sign-out", sub=ALICE)
    gate.clock.now += 59
    assert await opened.identify(token) is not None
    gate.clock.now += 1
    assert [await opened.identify(token) for _ in range(3)] == [None] * 3
    assert len(gate.project.asked(USER)) == 2


async def test_a_token_that_was_confirmed_is_believed_while_the_project_cannot_be_asked(gate: Gate) -> None:
    opened = gate.opened(check_s=60)
    token, other = gate.project.token(), gate.project.token()
    assert await opened.identify(token) is not None
    gate.project.tell("POST", "faults", path=USER, status=500, times=0)
    gate.clock.now += 60
    assert await opened.identify(token) is not None
    with pytest.raises(SignInUnavailable):
        await opened.identify(other)
    gate.project.tell("DELETE", "faults")
    gate.clock.now += FIRST_S
    assert await opened.identify(other) is not None


async def test_while_the_project_stalls_nobody_waits_for_another_and_the_next_is_answered_at_once(gate: Gate) -> None:
    opened = gate.opened(check_s=60)
    token = gate.project.token()
    gate.project.tell("POST", "faults", path=USER, stall_s=30, times=0)
    start = time.monotonic()
    told = await asyncio.gather(*(opened.identify(token) for _ in range(5)), return_exceptions=True)
    assert [type(each) for each in told] == [SignInUnavailable] * 5
    assert ANSWER_S - 1 < time.monotonic() - start < 2 * ANSWER_S
    start = time.monotonic()
    with pytest.raises(SignInUnavailable):
        await opened.identify(token)
    assert time.monotonic() - start < 1
    assert len(gate.project.asked(USER)) == 1
    assert [kind for kind, _ in gate.alerts] == ["sign_in"]


async def test_a_confirmed_token_waits_for_a_stalling_project_a_second_at_most(gate: Gate) -> None:
    opened = gate.opened(check_s=60)
    token = gate.project.token(sub=ALICE)
    assert await opened.identify(token) is not None
    gate.clock.now += 60
    gate.project.tell("POST", "sign-out", sub=ALICE)
    gate.project.tell("POST", "faults", path=USER, status=None, stall_s=2)
    start = time.monotonic()
    assert None not in await asyncio.gather(*(opened.identify(token) for _ in range(5)))
    assert time.monotonic() - start < 1.9
    for _ in range(100):
        if await opened.identify(token) is None:
            return
    pytest.fail("the answer never counted")


@pytest.mark.parametrize("confirmed", [False, True])
async def test_a_key_of_ours_that_is_wrong_ends_no_token_and_is_told(gate: Gate, confirmed: bool) -> None:
    opened = gate.opened(check_s=60)
    token = gate.project.token()
    if confirmed:
        assert await opened.identify(token) is not None
        gate.clock.now += 60
    gate.project.tell("POST", "faults", path=USER, status=401, body='{"message": "Invalid API key"}', times=0)
    for _ in range(3):
        if confirmed:
            assert await opened.identify(token) is not None
        else:
            with pytest.raises(SignInUnavailable):
                await opened.identify(token)
    ((kind, facts),) = gate.alerts
    assert kind == "sign_in"
    assert "status 401" in str(facts["what"]) and "SUPABASE_ANON_KEY" in str(facts["what"])
    assert token not in str(facts) and ANON_KEY not in str(facts)


@pytest.mark.parametrize("code", ["bad_jwt", "session_not_found", "session_expired", "user_not_found", "user_banned"])
async def test_what_the_sign_in_service_says_of_a_token_is_believed(gate: Gate, code: str) -> None:
    opened = gate.opened(check_s=60)
    body = json.dumps({"code": 403, "error_code": code, "msg": "no"})
    gate.project.tell("POST", "faults", path=USER, status=403, body=body)
    assert await opened.identify(gate.project.token()) is None
    assert gate.alerts == []


# --- what it costs --------------------------------------------------------------------------------------------


def test_pyjwt_is_loaded_only_where_it_is_needed() -> None:
    code = "import sys, goosestack.app, goosestack.cli; print({'jwt', 'cryptography'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
