"""Mallory and the keys that users bring themselves: whose goes where, and where it must never be found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asking import directed
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, WIRES, Mallory, asks, talk
from tests.world import ANTHROPIC_KEY, OPENAI_KEY, World

OWN_OPENAI = "sk-proj-BobsOwnOpenaiCanary-0123456789"
OWN_ANTHROPIC = "sk-ant-api03-BobsOwnAnthropicCanary-0123456789"
OWN_ROUTER = "sk-or-v1-BobsOwnRouterCanary-0123456789"
OWN_SHAPELESS = "BobsOwn.Key~Canary+of/no=known_Shape"


@pytest.fixture
def bob(world: World) -> Iterator[Mallory]:
    """A user who may bring a key, and who is not to be trusted either."""
    with Mallory(world, pro=True) as bob:
        bob.secrets += [OWN_OPENAI, OWN_ANTHROPIC, OWN_ROUTER, OWN_SHAPELESS]
        yield bob


def own_key_of(path: str) -> str:
    return OWN_ANTHROPIC if path in (MESSAGES, COUNT) else OWN_OPENAI


def credential_of(sent: dict[str, dict[str, str]]) -> str | None:
    """The one credential of a request upstream."""
    found = [sent["headers"].get("x-api-key"), sent["headers"].get("authorization")]
    (credential,) = [value.removeprefix("Bearer ") for value in found if value is not None]
    return credential


# --- whose key goes where -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_an_own_key_goes_with_its_owners_request_and_with_no_other(world: World, bob: Mallory, path: str) -> None:
    operators = ANTHROPIC_KEY if path == MESSAGES else OPENAI_KEY
    own, expected = own_key_of(path), []
    with Mallory(world) as mallory:
        for turn in range(50):  # on the same connections upstream, one after the other
            assert bob.ask(path, asks(path), {"x-provider-key": f"{own}{turn}"}).status == 401  # nobody knows this key
            assert mallory.ask(path, asks(path)).status == 200
            expected += [f"{own}{turn}", operators]
            if turn % 10 == 0:  # and the owner's next request without it is paid with credits again
                assert bob.ask(path, asks(path)).status == 200
                expected.append(operators)
        assert [credential_of(sent) for sent in bob.dispatched()] == expected
        assert {row["cost_nanos"] > 0 for row in world.ended_rows(mallory.customer, 50)} == {True}
    rows = world.ended_rows(bob.customer, 55)
    assert [row["cost_nanos"] > 0 for row in rows].count(True) == 5


@pytest.mark.parametrize(
    ("path", "model", "key"),
    [
        (CHAT, "gpt-4o-mini", OWN_ANTHROPIC),
        (CHAT, "gpt-4o-mini", OWN_ROUTER),
        (CHAT, "gpt-from-the-future", OWN_ANTHROPIC),
        (CHAT, "ft:gpt-4o:acme", OWN_ANTHROPIC),
        (CHAT, "openai/gpt-4o-mini", OWN_OPENAI),
        (CHAT, "anthropic/claude-sonnet-4.5", OWN_ANTHROPIC),
        (RESPONSES, "gpt-5.5", OWN_ANTHROPIC),
        (EMBEDDINGS, "text-embedding-3-small", OWN_ANTHROPIC),
        (EMBEDDINGS, "text-embedding-3-small", OWN_ROUTER),
        (MESSAGES, "claude-haiku-4-5", OWN_OPENAI),
        (MESSAGES, "claude-haiku-4-5", OWN_ROUTER),
        (MESSAGES, "claude-from-the-future", OWN_OPENAI),
        (COUNT, "claude-haiku-4-5", OWN_OPENAI),
    ],
)
def test_an_own_key_never_reaches_a_provider_that_it_is_not_of(bob: Mallory, path: str, model: str, key: str) -> None:
    assert "belongs to" in bob.refused(400, path, asks(path, model=model), {"x-provider-key": key}).message
    bob.nothing_happened()


@pytest.mark.parametrize(
    ("path", "model", "key"),
    [
        (CHAT, "claude-haiku-4-5", OWN_ANTHROPIC),
        (MESSAGES, "gpt-4o-mini", OWN_OPENAI),
        (CHAT, "a-model-of-nobody", OWN_SHAPELESS),
        (CHAT, "a-model-of-nobody", OWN_ANTHROPIC),
    ],
)
def test_an_own_key_is_not_tried_where_its_provider_does_not_listen(
    bob: Mallory, path: str, model: str, key: str
) -> None:
    bob.refused(404, path, asks(path, model=model), {"x-provider-key": key})
    bob.nothing_happened()


# --- who may, and with what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WIRES)
def test_who_is_not_pro_is_refused_and_never_charged_instead(world: World, path: str) -> None:
    with Mallory(world) as mallory:
        mallory.secrets += [OWN_OPENAI, OWN_ANTHROPIC]
        for until in (None, "2000-01-01T00:00:00.000Z"):
            world.verb("user_pro", user=mallory.customer.id, until=until)
            mallory.refused(403, path, asks(path), {"x-provider-key": own_key_of(path)})
        mallory.nothing_happened()


MALFORMED = ["", " ", "sk-1234", "x" * 513, "sk-with blank-0123456789", "sk-tab\t0123456789", "sk-caf\xe9-0123456789"]
MALFORMED += ["sk-nbsp\xa00123456789", "sk-first-0123456789, sk-second-0123456789"]


@pytest.mark.parametrize("path", WIRES)
def test_what_is_no_key_is_a_bad_request_and_never_charged_instead(bob: Mallory, path: str) -> None:
    own = own_key_of(path)
    for value in (*MALFORMED, bob.customer.key):
        bob.refused(400, path, asks(path), {"x-provider-key": value})
    for twice in ([own, own], [own, own + "x"], [own, ""]):
        bob.refused(400, path, asks(path), [("x-provider-key", value) for value in twice])
    bob.nothing_happened()


@pytest.mark.parametrize(
    "value", [b"sk-\x00-0123456789", b"sk-\r-0123456789", b"sk-\x7f-012345", b"sk-01234\r\n 56789"]
)
def test_a_key_that_could_split_a_header_is_not_even_read(bob: Mallory, value: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bob.customer.key}\r\n".encode()
    (reply,) = talk(bob.world, head + b"X-Provider-Key: " + value + b"\r\nContent-Length: 2\r\n\r\n{}")
    assert reply.status == 400
    bob.nothing_happened()


def test_an_own_key_that_is_named_as_a_header_of_the_connection_counts_all_the_same(bob: Mallory) -> None:
    """A proxy in front may take such a header away; by itself, the daemon charges nobody for what a key pays."""
    headers = {"x-provider-key": OWN_OPENAI, "connection": "x-provider-key, keep-alive"}
    assert bob.ask(CHAT, asks(CHAT), headers).status == 401  # nobody knows this key
    assert [credential_of(sent) for sent in bob.dispatched()] == [OWN_OPENAI]
    (row,) = bob.world.ended_rows(bob.customer, 1)
    assert row["charged"] == 0


# --- where it must never be found -----------------------------------------------------------------------------

FAULTS = """error_400 error_401 error_403 error_404 error_408 error_429 error_quota error_500 error_529 redirect html
    empty bad_json half_json short_length reset reset_before_headers close_before_headers eof huge_header
    gzip_bomb""".split()


@pytest.fixture
def keyless_world(folder: Path) -> Iterator[World]:
    """A daemon whose operator has no provider key: those that the upstream knows are the users' own here."""
    world = World.create(folder, BYOK_ONLY="true", OPENAI_API_KEY="", ANTHROPIC_API_KEY="")
    yield world
    world.close()


def test_whatever_fails_an_own_key_is_in_no_error_log_database_or_backup(keyless_world: World) -> None:
    with Mallory(keyless_world, cents=0, pro=True) as bob:
        for path in (CHAT, RESPONSES, MESSAGES):
            own = {"x-provider-key": ANTHROPIC_KEY if path == MESSAGES else OPENAI_KEY}
            for stream in (False, True):
                assert bob.ask(path, asks(path, stream=stream), own).status == 200
                for fault in FAULTS:
                    reply = bob.ask(path, asks(path, directed("Go", fault=fault), stream=stream), own)
                    assert stream or reply.status >= 400, fault
        sent = bob.dispatched()
        assert {credential_of(one) for one in sent} == {OPENAI_KEY, ANTHROPIC_KEY}
        assert {one["path"] for one in sent} == {CHAT, RESPONSES, MESSAGES}  # no redirect was followed
        rows = keyless_world.ended_rows(bob.customer, len(sent))
        assert {(row["held"], row["charged"], row["cost_nanos"]) for row in rows} == {(0, 0, 0)}
        keyless_world.daemon.command("backup", str(keyless_world.folder / "goosestack.db.copy"))  # looked through, too


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_provider_that_quotes_an_own_key_of_unknown_shape_is_not_repeated(bob: Mallory, path: str) -> None:
    for stream in (False, True):
        reply = bob.ask(path, asks(path, stream=stream), {"x-provider-key": OWN_SHAPELESS})
        assert (reply.status, "[redacted]" in reply.message) == (401, True)
    assert {credential_of(one) for one in bob.dispatched()} == {OWN_SHAPELESS}
    assert len(bob.world.ended_rows(bob.customer, 2)) == 2
