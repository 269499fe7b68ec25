"""How the daemon starts and stops: it refuses in one sentence what it cannot run on, it finishes what it has begun when
it is asked to stop, and after a kill it finds its way back from what the database says.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from goosestack.config import load, options, setting
from goosestack.errors import Refusal
from goosestack.store.migrations import MIGRATIONS
from tests.asking import ask, chat, connect, directed, opened
from tests.proofs.failing import READING, Switch
from tests.world import World, bare_environment, until

SLOW = chat(directed("Hi", words=400, delay_ms=50), stream=True)
"""A stream of 20 seconds."""

ADDRESSES = ["CORS_ALLOWED_ORIGINS", *(setting(entry) for entry in options() if entry.name.endswith("_url"))]


def refusal(
    folder: Path,
    env: Mapping[str, str],
    *,
    without: str = "",
    code: int = 78,
    program: tuple[str, ...] = ("goosestack", "serve"),
) -> str:
    """The sentence in which `goosestack serve` refuses to start on a folder's database, for good (78) or now (75)."""
    settings = {"OPENAI_API_KEY": "sk-canary", "DB_PATH": str(folder / "goosestack.db"), "PORT": "0", **env}
    settings.pop(without, None)
    command = [sys.executable, "-m", *program]
    done = subprocess.run(
        command, env=bare_environment(**settings), cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == code, done
    assert '"listening"' not in done.stdout
    assert "canary" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix("goosestack: ")


@pytest.fixture
def books(folder: Path) -> sqlite3.Connection:
    """A database with a user who has a dollar, as the daemon left it."""
    world = World.create(folder)
    world.customer(100)
    world.close()
    return sqlite3.connect(folder / "goosestack.db", isolation_level=None)


# --- refusing to start ----------------------------------------------------------------------------------------


def test_no_start_without_any_provider_key(folder: Path) -> None:
    told = refusal(folder, {}, without="OPENAI_API_KEY")
    assert told == "no provider key is set: set OPENAI_API_KEY, ANTHROPIC_API_KEY or another, or BYOK_ONLY=true"


def test_no_start_on_a_newer_schema(folder: Path, books: sqlite3.Connection) -> None:
    books.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    books.close()
    assert refusal(folder, {}).endswith(f"and this goosestack knows {len(MIGRATIONS)}: install a newer one")


def test_no_start_on_books_that_do_not_add_up(folder: Path, books: sqlite3.Connection) -> None:
    books.execute("UPDATE accounts SET balance = 1000000")
    books.close()
    told = refusal(folder, {})
    assert told.startswith("the books do not add up, run `goosestack check --full`: account 1: balance is 1000000")


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_no_start_on_a_database_that_others_can_read(folder: Path, suffix: str) -> None:
    exposed = folder / f"goosestack.db{suffix}"
    exposed.touch()
    exposed.chmod(0o644)
    assert refusal(folder, {}) == f"{exposed} can be read by others; run: chmod 600 {exposed}"
    assert exposed.stat().st_mode & 0o777 == 0o644  # it is the operator's to judge who has read it


def test_no_second_daemon_on_the_same_database(world: World) -> None:
    assert refusal(world.folder, {}, code=75) == f"another goosestack process is using {world.daemon.db}"
    assert ask(world, "GET", "/health").status == 200


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"DB_PATH": "nowhere/goosestack.db"}, r"there is no folder \S+/nowhere for the database"),
        ({"DB_PATH": "."}, r"\S* ?is a folder, not a database"),
        ({"DB_PATH": "no.db"}, r"no\.db cannot be opened: file is not a database"),
        ({"PRICES_FILE": "bad.toml"}, r"prices\.toml: Invalid value \(at .+\)"),
        ({"PRICES_FILE": "free.toml"}, r"prices\.toml: models\.gpt-4o\.output: a price .+ must be above 0, not 0"),
        ({"PRICES_FILE": "missing.toml"}, r"missing\.toml cannot be read: .+"),
        ({"CREDENTIALS_DIRECTORY": "secret"}, r"secret/OPENAI_API_KEY cannot be read"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_no_start_where_something_is_missing_or_bad(folder: Path, env: dict[str, str], sentence: str) -> None:
    (folder / "no.db").write_text("This is a letter, not a database, and it is long enough to be read as a header." * 9)
    (folder / "no.db").chmod(0o600)
    (folder / "bad.toml").write_text("prices = ")
    (folder / "free.toml").write_text("[models.gpt-4o]\ninput = 1\noutput = 0\n")
    (folder / "secret").mkdir()
    (folder / "secret" / "OPENAI_API_KEY").write_bytes(b"\xff\xfe")
    assert re.fullmatch(sentence, refusal(folder, env))


def test_no_start_on_a_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refusal(folder, {"PORT": str(port)}, code=75)
    assert told == f"cannot listen on 127.0.0.1 port {port}: Address already in use"


def test_no_start_on_an_address_that_the_machine_does_not_have_yet(folder: Path) -> None:
    told = refusal(folder, {"HOST": "192.0.2.1"}, code=75)
    assert told == "cannot listen on 192.0.2.1 port 0: Cannot assign requested address"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("PORT", "70000", "must be a whole number from 0 to 65535"),
        ("PORT", "٣٠٠٠", "must be a whole number from 0 to 65535"),
        ("PORT", "9" * 5000, "has a value that makes no sense"),
        ("MAX_BODY_BYTES", "32MB", "must be a whole number from 1024 to 1073741824"),
        ("MARKUP_PERCENT", "-1", "must be from 0 to 10000, with at most 4 decimals"),
        ("MARKUP_PERCENT", "NaN", "must be from 0 to 10000, with at most 4 decimals"),
        ("MARKUP_PERCENT", "a fifth", "must be a number of percent, as 20 or 12.5"),
        ("ROUNDING", "up", "must be one of carry, request"),
        ("SIGNUP", "yes", "must be one of open, closed"),
        ("BYOK_ONLY", "1", "must be one of true, false"),
        ("ADMIN_TOKEN", "short", "must have at least 32 bytes"),
        ("OPENAI_API_KEY", "sk-two words", "must be printable ASCII without blanks"),
        ("OPENAI_BASE_URL", "https://api.openai.com", "must end in /v1"),
        ("ANTHROPIC_BASE_URL", "https://api.anthropic.com/v1", "must not end in /v1, which is added to it"),
        ("OPENAI_BASE_URL", "file:///v1", "must be an http or https URL without a query"),
        ("OPENAI_BASE_URL", "https://x/v1?key=pw", "must be an http or https URL without a query"),
        ("OPENAI_BASE_URL", "http://[x/v1", "has a value that makes no sense"),
        *(
            (name, address, "names a host or a port that there cannot be")
            for name, address in [
                ("OPENAI_BASE_URL", "http://example:99999/v1"),
                ("OPENAI_BASE_URL", "http://example:0/v1"),
                ("OPENAI_BASE_URL", "http://example:http/v1"),
                ("OPENAI_BASE_URL", "http://example:/v1"),
                ("OPENAI_BASE_URL", "http://exa mple/v1"),
                ("OPENAI_BASE_URL", "http://exämple/v1"),
                ("OPENAI_BASE_URL", "http://exa%20mple/v1"),
                ("OPENAI_BASE_URL", "http://a..b/v1"),
                ("OPENAI_BASE_URL", "http://-a/v1"),
                ("OPENAI_BASE_URL", f"http://{'a' * 64}/v1"),
                ("OPENAI_BASE_URL", f"http://{'a.' * 127}example/v1"),
                ("OPENAI_BASE_URL", "http://10.0.0.256/v1"),
                ("ANTHROPIC_BASE_URL", "http://example:99999"),
                ("PUBLIC_URL", "https://exa mple"),
                ("NOTIFY_WEBHOOK_URL", "https://example:99999/notices"),
                ("CHECKOUT_SUCCESS_URL", "https://exa mple/thanks"),
                ("CORS_ALLOWED_ORIGINS", "https://x.example:99999"),
            ]
        ),
        ("OPENAI_BASE_URL", "http://exa\tmple/v1", "must be printable ASCII without blanks"),
        ("OPENAI_BASE_URL", "http://example/a b/v1", "must be printable ASCII without blanks"),
        ("ANTHROPIC_BASE_URL", "https://example?", "must be an http or https URL without a query"),
        ("CHECKOUT_SUCCESS_URL", "ftp://example", "must be an http or https URL"),
        ("CORS_ALLOWED_ORIGINS", "*,https://x.example", "must be * alone, or a list of origins"),
        (
            "CORS_ALLOWED_ORIGINS",
            "x.example",
            "must list origins as https://example.com, or be *; x.example is neither",
        ),
        ("FORWARDED_ALLOW_IPS", "caddy", "must list addresses or networks; caddy is neither"),
        ("DB_PATH", "~nobody-of-this-name/x.db", "has a value that makes no sense"),
        ("DB_PATH", "a\nb", "has a character that cannot be printed"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_setting(folder: Path, name: str, value: str, why: str) -> None:
    with pytest.raises(Refusal) as refused:
        load({name: value}, folder)
    assert str(refused.value) == f"{name} {why}"


@pytest.mark.parametrize(
    "address",
    """http://localhost:8000/v1 http://litellm_proxy/v1 http://127.0.0.1:1/v1 http://[::1]:65535/v1 http://[fe80::1]/v1
    https://API.Example.com./v1 https://xn--exmple-cua.example/a/b/v1 https://1password.example/v1""".split(),
)
def test_an_address_that_can_be_called_is_taken_as_it_is(folder: Path, address: str) -> None:
    assert load({"OPENAI_BASE_URL": address}, folder).openai_base_url == address


def test_a_key_for_a_server_that_is_not_named_is_refused(folder: Path) -> None:
    told = refusal(folder, {"LITELLM_API_KEY": "sk-canary"})
    assert told == "LITELLM_API_KEY is set, and LITELLM_BASE_URL, where it would be sent to, is not"
    assert load({"LITELLM_BASE_URL": "http://localhost:4000/v1"}, folder).litellm_api_key is None


@pytest.mark.parametrize("userinfo", ["me:canary@", "me@", ":canary@", "@", ":@", "me%40x:canary@", "a@canary@"])
@pytest.mark.parametrize("name", ADDRESSES)
def test_no_address_has_credentials_in_it_and_the_refusal_does_not_repeat_them(
    folder: Path, name: str, userinfo: str
) -> None:
    with pytest.raises(Refusal) as refused:
        load({name: f"https://{userinfo}host.example/v1"}, folder)
    assert str(refused.value) == f"{name} must not have a user or a password before its host"


@pytest.mark.parametrize(
    ("call", "fault", "why"),
    [
        (12, "full", "database or disk is full"),
        (15, "failing", "disk I/O error"),
        (20, "failing", "disk I/O error"),
        (4, READING, "disk I/O error"),
    ],
    ids=["begin", "recover", "plans", "check"],
)
def test_a_disk_that_fails_while_the_daemon_starts_refuses_the_start_for_now(
    folder: Path, books: sqlite3.Connection, call: int, fault: str, why: str
) -> None:
    """Where it failed on the database's opening, this was so; later, a start ended with a traceback, and with 1."""
    books.close()
    switch = Switch(folder / "switch")
    switch.arm(call, fault)
    program = ("tests.proofs.failing", str(folder / "switch"))
    told = refusal(folder, {}, code=75, program=program)
    assert told == f"{folder / 'goosestack.db'} cannot be used: {why}"
    assert switch.struck == 1


# --- stopping -------------------------------------------------------------------------------------------------


def test_sigterm_finishes_what_has_begun_and_takes_nothing_new(folder: Path) -> None:
    world = World.create(folder)
    try:
        alice = world.customer()
        some = chat(directed("Hi", words=30, delay_ms=30), stream=True)
        with opened(world, "/v1/chat/completions", key=alice.key, body=some) as stream:
            stream.readline()
            world.daemon.program.process.send_signal(signal.SIGTERM)
            until(lambda: not_admitted(world, alice.key), "new requests to be refused")
            assert b"data: [DONE]\n\n" in stream.read()
        assert world.daemon.program.process.wait(20) == 0
        (row,) = world.ended_rows(alice, 1)
        assert (row["reason"], row["estimated"]) == ("completed", 0)
        assert not (folder / "goosestack.db.sock").exists()
    finally:
        world.close()


def not_admitted(world: World, key: str) -> bool:
    """Whether a new request is turned away, with a 503 or at the door."""
    try:
        return ask(world, "GET", "/v1/usage", key=key).status == 503
    except (OSError, HTTPException):
        return True


def test_a_request_on_an_open_connection_is_refused_while_the_daemon_drains(folder: Path) -> None:
    world = World.create(folder, DRAIN_S="5")
    waiting = connect(world)
    try:
        alice = world.customer()
        with opened(world, "/v1/chat/completions", key=alice.key, body=SLOW) as stream:
            stream.readline()
            waiting.connect()
            world.daemon.program.process.send_signal(signal.SIGTERM)
            until(lambda: not_admitted_on(waiting, alice.key), "an open connection to be turned away")
            world.daemon.program.process.send_signal(signal.SIGTERM)
        assert world.daemon.program.process.wait(20) == 0
        assert len(world.ended_rows(alice, 1)) == 1
    finally:
        waiting.close()
        world.close()


def not_admitted_on(connection: HTTPConnection, key: str) -> bool:
    try:
        connection.request("GET", "/v1/usage", headers={"authorization": f"Bearer {key}"})
        response = connection.getresponse()
        response.read()
    except (OSError, HTTPException):
        return True
    return response.status == 503


def test_a_second_sigterm_waits_no_longer_and_settles_on_what_was_seen(folder: Path) -> None:
    world = World.create(folder, DRAIN_S="600")
    try:
        alice = world.customer()
        with opened(world, "/v1/chat/completions", key=alice.key, body=SLOW) as stream:
            stream.readline()
            world.daemon.program.process.send_signal(signal.SIGTERM)
            until(lambda: not_admitted(world, alice.key), "the daemon to drain")
            assert world.daemon.program.process.poll() is None
            world.daemon.program.process.send_signal(signal.SIGTERM)
            rest = stream.read()
        assert world.daemon.program.process.wait(20) == 0
        assert b"the gateway is restarting" in rest and b"[DONE]" not in rest
        (row,) = world.ended_rows(alice, 1)
        assert (row["status"], row["reason"], row["estimated"]) == ("settled", "shutdown", 1)
    finally:
        world.close()


# --- after a kill ---------------------------------------------------------------------------------------------


def test_a_killed_daemon_starts_again_and_settles_what_it_can_show_and_releases_the_rest(folder: Path) -> None:
    world = World.create(folder)
    try:
        alice, carol = world.customer(), world.customer(name="carol")
        silent = chat(directed("Hi", fault="stall_headers", hang_s=600))
        quiet = connect(world)
        with opened(world, "/v1/chat/completions", key=alice.key, body=SLOW) as stream:
            stream.readline()
            quiet.request("POST", "/v1/chat/completions", json.dumps(silent), json_of(carol.key))
            until(lambda: [row["progress"] for row in world.rows(alice)] != [None], "the journal")
            until(lambda: world.rows(carol), "Carol's hold")
            world.daemon.program.stop(signal.SIGKILL)
        quiet.close()
        assert [row["status"] for row in world.rows()] == ["held", "held"]
        assert (folder / "goosestack.db.sock").exists()
        world.daemon.start()
        assert '"event":"recovered","settled":1,"released":1' in world.daemon.program.text()
        (seen,), (unseen,) = world.rows(alice), world.rows(carol)
        assert (seen["status"], seen["reason"], seen["estimated"]) == ("settled", "recovered", 1)
        assert 0 < seen["cost_nanos"] <= seen["quote"] and seen["output_tokens"] > 0
        assert (unseen["status"], unseen["reason"], unseen["cost_nanos"]) == ("released", "interrupted", 0)
        assert world.funds(alice)["held_cents"] == world.funds(carol)["held_cents"] == 0
        assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat()).status == 200
    finally:
        world.close()


def json_of(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


# --- the demo -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="the demo prints curl commands")
def test_the_demo_needs_no_account_and_says_that_its_answers_are_canned(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "goosestack", "serve", "--demo"],
        env=bare_environment(PORT="0", TMPDIR=str(folder)),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = ""
        while "Stop with Ctrl-C." not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        assert "every answer is canned" in told
        commands = re.findall(r"^  (curl .+)$", told, re.MULTILINE)
        assert len(commands) == 10  # chat, responses and messages plain and streamed, embeddings, usage, credits, Pro
        answers = {}
        for command in commands:
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True)
            assert re.search(r'"(choices|output|content|embedding|balance_cents|message_stop|url)"', done.stdout), (
                command
            )
            answers[command] = done.stdout
        (usage,) = [command for command in commands if command.endswith("'") and "/v1/usage" in command]
        (credits,) = [answer for command, answer in answers.items() if '"type":"credits"' in command]
        subprocess.run(
            ["curl", "-s", "-d", "card=ok", json.loads(credits)["url"]], capture_output=True, timeout=20, check=True
        )

        def balance() -> int:
            done = subprocess.run(["bash", "-c", usage], capture_output=True, text=True, timeout=20, check=True)
            found: int = json.loads(done.stdout)["balance_cents"]
            return found

        until(lambda: balance() > 1500, "the credits that were paid with play money")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert list(folder.iterdir()) == []
    finally:
        process.kill()
        process.communicate()
