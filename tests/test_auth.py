"""Who calls: what counts as a credential, and whom a key stands for, for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from goosestack import accounts, auth
from goosestack.accounts import Principal
from goosestack.auth import Identifier, Keys, RawHeaders, credential, identify, provider_key
from goosestack.errors import CredentialConflict, Invalid, NotAuthenticated, Problem
from goosestack.store import Tx
from goosestack.store.sqlite import SqliteStore

NOW = "2026-11-21T12:00:00.000Z"
KEY = "gsk_" + "k" * 44


def bearer(token: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {token}".encode())


def in_a_store(folder: Path, tell: Callable[[SqliteStore], Awaitable[None]]) -> None:
    """Tell a story in a store of its own."""

    async def run() -> None:
        store = SqliteStore(folder / "goosestack.db")
        try:
            await tell(store)
        finally:
            await store.close()

    asyncio.run(run())


# --- one credential -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([(b"content-type", b"x")], None),
        ([bearer(KEY)], KEY),
        ([(b"authorization", f"bEARER   {KEY} ".encode())], KEY),
        ([(b"x-api-key", f" {KEY} ".encode())], KEY),
        ([bearer(KEY), (b"x-api-key", KEY.encode())], KEY),
        ([(b"authorization", b"Basic YTpi")], ""),
        ([(b"authorization", b"")], ""),
    ],
)
def test_a_credential_comes_in_either_header(headers: RawHeaders, found: str | None) -> None:
    assert credential(headers) == found


@pytest.mark.parametrize(
    "headers",
    [
        [bearer(KEY), bearer(KEY)],
        [(b"x-api-key", b"a"), (b"x-api-key", b"a")],
        [bearer("a"), (b"x-api-key", b"b")],
        [(b"authorization", b"Basic YTpi"), (b"x-api-key", KEY.encode())],
    ],
)
def test_what_a_proxy_in_front_could_have_read_otherwise_is_refused(headers: RawHeaders) -> None:
    with pytest.raises(CredentialConflict):
        credential(headers)


@pytest.mark.parametrize("text", ["sk-somebodys-own-key", "x" * 8, "x" * 512])
def test_a_callers_own_provider_key_is_one_text(text: str) -> None:
    assert provider_key([(b"x-other", b"y"), (b"x-provider-key", text.encode())]) == text
    assert provider_key([]) is None


@pytest.mark.parametrize(
    "values", [["x" * 7], ["x" * 513], ["with space 1"], ["schlüssel-1"], [""], [KEY], ["x" * 9] * 2]
)
def test_what_is_no_provider_key_or_one_of_ours_is_not_sent_to_a_provider(values: list[str]) -> None:
    with pytest.raises(Invalid):
        provider_key([(b"x-provider-key", value.encode()) for value in values])


# --- whom it stands for ---------------------------------------------------------------------------------------


class Guest:
    """An identifier that knows one credential, in a header that only it reads, or in those that keys come in."""

    def __init__(self, known: str, name: str, header: bytes | None = None) -> None:
        self.known, self.header, self.asked = known, header, 0
        self.principal = Principal(name, None, 1)

    def credential(self, headers: RawHeaders) -> str | None:
        if self.header is None:
            return credential(headers)
        return next((value.decode() for name, value in headers if name == self.header), None)

    def owns(self, credential: str) -> bool:
        return credential.startswith(self.known[:1])

    def missing(self) -> Problem:
        return Invalid(reason=f"{self.principal.user_id} is missing")

    async def identify(self, credential: str) -> Principal | None:
        self.asked += 1
        return self.principal if credential == self.known else None

    def forget(self, key_id: str) -> None:
        """Nobody is revoked here."""


async def test_the_first_identifier_that_knows_a_credential_names_the_caller() -> None:
    first, second, third = Guest("a", "alice"), Guest("b", "bob"), Guest("b", "mallory")
    assert (await identify([first, second, third], [bearer("b")])).user_id == "bob"
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)


@pytest.mark.parametrize("headers", [[bearer("c")], [(b"authorization", b"Basic YTpi")]])
async def test_whom_nobody_knows_is_nobody(headers: RawHeaders) -> None:
    with pytest.raises(NotAuthenticated):
        await identify([Guest("a", "alice"), Guest("b", "bob")], headers)


async def test_where_nothing_is_sent_the_first_kind_says_what_is_missing() -> None:
    with pytest.raises(Invalid, match="alice is missing"):
        await identify([Guest("a", "alice"), Guest("b", "bob")], [(b"content-type", b"x")])


TICKET = (b"x-ticket", b"t1")


async def test_what_an_sdk_sends_in_place_of_a_key_does_not_get_in_the_way_of_another_credential() -> None:
    keys, tickets = Guest("k1", "alice"), Guest("t1", "dave", TICKET[0])
    assert (await identify([keys, tickets], [bearer("no-key"), TICKET])).user_id == "dave"
    assert (await identify([keys, tickets], [bearer("k1"), (b"x-ticket", b"none")])).user_id == "alice"
    assert (keys.asked, tickets.asked) == (1, 1), "each was asked for its own alone"


async def test_of_two_credentials_that_are_both_meant_none_is_chosen_also_where_only_one_is_good() -> None:
    keys, tickets = Guest("k1", "alice"), Guest("t1", "dave", TICKET[0])
    for key in ("k1", "k2"):
        with pytest.raises(CredentialConflict):
            await identify([keys, tickets], [bearer(key), TICKET])
    assert (keys.asked, tickets.asked) == (0, 0)


async def test_two_texts_that_nobody_means_prove_nothing() -> None:
    keys, tickets = Guest("k1", "alice"), Guest("t1", "dave", TICKET[0])
    with pytest.raises(NotAuthenticated):
        await identify([keys, tickets], [bearer("no-key"), (b"x-ticket", b"none")])
    assert (keys.asked, tickets.asked) == (0, 0)


def test_a_key_is_told_from_what_stands_in_its_place(folder: Path) -> None:
    async def tell(store: SqliteStore) -> None:
        alice = await store.write(accounts.sign_up, "alice@example.com", "laptop", NOW)
        callers: list[Identifier] = [Keys(store), Guest("t1", "dave", TICKET[0])]
        assert (await identify(callers, [bearer(alice["api_key"])])).key_id == alice["id"]
        assert (await identify(callers, [bearer("unused"), TICKET])).user_id == "dave"
        with pytest.raises(CredentialConflict):
            await identify(callers, [bearer(KEY), TICKET])
        with pytest.raises(NotAuthenticated):
            await identify(callers, [])

    in_a_store(folder, tell)


def test_a_key_stands_for_its_user_until_it_is_revoked_and_forgotten(folder: Path) -> None:
    async def tell(store: SqliteStore) -> None:
        alice = await store.write(accounts.sign_up, "alice@example.com", "laptop", NOW)
        bob = await store.write(accounts.sign_up, "bob@example.com", "laptop", NOW)
        keys = Keys(store)
        for made in (alice, bob):
            known = await keys.identify(made["api_key"])
            assert known is not None and known.key_id == made["id"]
        await store.write(accounts.revoke_key, alice["id"])
        assert await keys.identify(alice["api_key"]) is not None, "whoever revokes a key tells so"
        keys.forget(alice["id"])
        assert await keys.identify(alice["api_key"]) is None
        assert await keys.identify(bob["api_key"]) is not None

    in_a_store(folder, tell)


@pytest.mark.parametrize(
    "text", ["", "gsk_", "gsk_" + "k" * 31, "gsk_" + "k" * 65, KEY + "\n", "gsk_" + "'" * 44, "sk-x"]
)
def test_what_does_not_look_like_a_key_never_meets_the_database(folder: Path, text: str) -> None:
    async def tell(store: SqliteStore) -> None:
        keys = Keys(store)
        await store.close()  # a question would fail now
        assert await keys.identify(text) is None

    in_a_store(folder, tell)


def test_with_too_many_keys_to_remember_all_are_looked_up_anew(folder: Path) -> None:
    most = auth.MOST_KNOWN

    def name(number: int) -> str:
        return f"gsk_{number:044}"

    def make(tx: Tx) -> str:
        user = accounts.create_user(tx, "alice@example.com", NOW)
        for number in range(most + 1):
            tx.execute(
                "INSERT INTO api_keys (id, key_hash, key_prefix, user_id, name, created_at)"
                " VALUES (?, ?, 'gsk_', ?, '', ?)",
                (f"key_{number}", accounts.hash_key(name(number)), user, NOW),
            )
        return user

    async def tell(store: SqliteStore) -> None:
        user = await store.write(make)
        keys = Keys(store)
        for number in range(most):
            assert await keys.identify(name(number)) is not None
        await store.write(lambda tx: tx.execute("UPDATE api_keys SET revoked = 1 WHERE id = 'key_0'") and None)
        assert await keys.identify(name(0)) is not None, "it is remembered"
        found = await keys.identify(name(most))
        assert found is not None and found.user_id == user
        assert await keys.identify(name(0)) is None, "it was looked up anew"

    in_a_store(folder, tell)
