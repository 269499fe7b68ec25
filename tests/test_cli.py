"""The operator's commands: with a daemon and without one, for people and for scripts, and what a running daemon makes
of them. `tests/test_serve.py` tells how the daemon starts and stops.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from goosestack import __version__, admin, api, config, control, ledger
from tests.asking import ask, chat, directed, opened
from tests.shell import Operator, operator_of
from tests.world import OPENAI_KEY, Daemon, World, bare_environment, until

ROOT = Path(__file__).resolve().parent.parent
CANARY = "sk-canary-of-the-operator"


@pytest.fixture
def operator(folder: Path) -> Operator:
    """An operator whose daemon does not run."""
    return Operator(folder, {"DB_PATH": str(folder / "goosestack.db"), "OPENAI_API_KEY": CANARY})


@pytest.fixture(params=["with a daemon", "without a daemon"])
def either(request: pytest.FixtureRequest, operator: Operator) -> Operator:
    """An operator whose daemon runs, and one whose daemon does not: both see the same."""
    if request.param == "without a daemon":
        return operator
    return operator_of(request.getfixturevalue("world"))


# --- every verb -----------------------------------------------------------------------------------------------


def test_users_are_made_and_listed(either: Operator) -> None:
    alice = either.json("user", "create", "alice@example.com")
    bob_id = either.run("user", "create", "bob@example.com")[0].strip()
    assert alice == {"id": alice["id"], "email": "alice@example.com"}
    listed = {user["id"]: user for user in either.json("user", "list")}
    assert set(listed[alice["id"]]) == {"id", "email", "pro_until", "balance_cents", "created_at"}
    assert listed[bob_id]["email"] == "bob@example.com"
    assert f"{bob_id}           0 cents  pro until -  bob@example.com\n" in either.run("user", "list")[0]


def test_credits_are_granted_and_shown(either: Operator) -> None:
    alice = either.json("user", "create", "alice@example.com")["id"]
    granted = either.json("credit", "grant", alice, "250", "--note", "welcome")
    assert granted == {"id": alice, "ref": granted["ref"], "posted": True, **funds(250)}
    assert either.run("credit", "grant", alice, "50")[0] == f"{alice} has 300 cents\n"
    assert either.json("credit", "show", alice) == {"id": alice, **funds(300)}
    assert either.run("credit", "show", alice)[0] == "balance 300  held 0  available 300  (cents)\n"


def funds(cents: int) -> dict[str, int]:
    return {"balance_cents": cents, "debt_cents": 0, "held_cents": 0, "available_cents": cents}


def test_a_grant_with_a_ref_is_given_once(either: Operator) -> None:
    alice = either.json("user", "create", "alice@example.com")["id"]
    ref = f"invoice-{alice}"
    first = either.json("credit", "grant", alice, "100", "--ref", ref)
    again = either.json("credit", "grant", alice, "100", "--ref", ref)
    assert (first["posted"], again["posted"]) == (True, False)
    assert again["balance_cents"] == 100
    assert "posted before, as another movement" in either.refused("credit", "grant", alice, "200", "--ref", ref)
    assert either.json("credit", "show", alice)["balance_cents"] == 100


def test_pro_is_given_until_a_date_and_taken_away(either: Operator) -> None:
    bob = either.json("user", "create", "bob@example.com")["id"]
    until_utc = {"id": bob, "pro_until": "2999-12-31T00:00:00.000Z"}
    assert either.json("user", "pro", bob, "--until", "2999-12-31") == until_utc
    assert either.json("user", "pro", bob, "--until", "2999-12-31T02:00:00+02:00") == until_utc
    assert either.run("user", "pro", bob, "--until", "none")[0] == f"{bob} is Pro until never\n"
    assert either.json("user", "pro", bob, "--until", "none")["pro_until"] is None
    assert "is no date" in either.run("user", "pro", bob, "--until", "tomorrow", expect=2)[1]


def test_keys_are_made_listed_and_revoked(either: Operator) -> None:
    alice = either.json("user", "create", "alice@example.com")["id"]
    made = either.json("key", "create", alice, "--name", "laptop")
    bare = either.run("key", "create", alice)[0].strip()
    assert set(made) == {"id", "api_key", "prefix", "name"}
    assert made["api_key"].startswith(made["prefix"]) and len(made["prefix"]) == 12
    assert bare.startswith("gsk_") and len(bare) >= 4 + 32
    first, second = either.json("key", "list", alice)
    assert (first["id"], first["name"], first["revoked"]) == (made["id"], "laptop", False)
    assert second["prefix"] == bare[:12]
    assert made["api_key"] not in either.run("key", "list")[0]
    assert either.json("key", "revoke", made["id"]) == {"id": made["id"], "revoked": True}
    assert either.run("key", "revoke", bare[:12])[0] == f"{second['id']} is revoked\n"
    assert [key["revoked"] for key in either.json("key", "list", alice)] == [True, True]


@pytest.mark.parametrize("until", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00", "", "2026-13-01"])
def test_pro_cannot_end_on_a_day_that_there_is_not(operator: Operator, until: str) -> None:
    bob = operator.json("user", "create", "bob@example.com")["id"]
    assert (
        f"Invalid value for --until: {until} is no date as 2026-12-31"
        in operator.run("user", "pro", bob, "--until", until, expect=2)[1]
    )
    assert (
        operator.json("user", "pro", bob, "--until", "9999-12-31T23:59:59")["pro_until"] == "9999-12-31T23:59:59.000Z"
    )


NO_UTF_8 = os.fsdecode(b"caf\xe9")
"""What a shell hands over for bytes in another encoding."""


@pytest.mark.parametrize("text", [NO_UTF_8, "two\nlines", "\x1b[2J", "right-to-left \u202e"])
def test_what_no_line_can_show_is_not_stored(either: Operator, text: str) -> None:
    alice = either.json("user", "create", "alice@example.com")["id"]
    told = {
        "name": either.refused("key", "create", alice, "--name", text),
        "note": either.refused("credit", "grant", alice, "5", "--note", text),
        "ref": either.refused("credit", "grant", alice, "5", "--ref", text),
        "user": either.refused("credit", "show", text),
        "email": either.refused("user", "create", f"{text}@example.com"),
        "key": either.refused("key", "revoke", text),
    }
    most = {name: 100 if name == "name" else 500 for name in told}
    assert told == {name: f"the {name} must be at most {most[name]} printable characters" for name in told}
    assert either.json("credit", "show", alice)["balance_cents"] == 0 and either.json("key", "list", alice) == []


def test_a_keys_name_is_as_long_as_the_api_lets_it_be(either: Operator) -> None:
    assert admin.MOST_NAME == api.MOST_NAME
    alice = either.json("user", "create", "alice@example.com")["id"]
    assert either.json("key", "create", alice, "--name", "n" * 100)["name"] == "n" * 100
    assert either.json("key", "create", alice, "--name", "")["name"] == "default"
    assert "at most 100 " in either.refused("key", "create", alice, "--name", "n" * 101)
    assert either.refused("key", "create", alice, "--name", "n" * 70_000)
    assert len(either.json("key", "list", alice)) == 2


def test_the_books_are_checked(either: Operator) -> None:
    either.json("credit", "grant", either.json("user", "create", "alice@example.com")["id"], "100")
    for full in ([], ["--full"]):
        found = either.json("check", *full)
        assert found["ok"] and found["wrong"] == [] and found["accounts"] >= 1
        assert either.run("check", *full)[0] == f"{found['accounts']} accounts, 0 differences\n"


def test_an_e_mail_names_a_user_only_where_one_user_has_it(either: Operator) -> None:
    name = f"alice+{os.getpid()}-{either.folder.name}@example.com"
    alice = either.json("user", "create", name)["id"]
    assert either.json("credit", "grant", name, "5")["id"] == alice
    either.json("user", "create", name)
    assert either.refused("credit", "grant", name, "5") == f"several users have the e-mail {name}; name one by id"
    assert either.json("credit", "show", alice)["balance_cents"] == 5


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("credit", "show", "usr_nobody"), "there is no user usr_nobody"),
        (("credit", "grant", "nobody@example.com", "5"), "there is no user nobody@example.com"),
        (("user", "pro", "usr_nobody", "--until", "none"), "there is no user usr_nobody"),
        (("key", "create", "usr_nobody"), "there is no user usr_nobody"),
        (("key", "list", "usr_nobody"), "there is no user usr_nobody"),
        (("key", "revoke", "gsk_nothing1"), "there is no key gsk_nothing1"),
        (("user", "create", "no-address"), "'no-address' is no e-mail address"),
        (("user", "create", "a@b@c"), "'a@b@c' is no e-mail address"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_verb_that_cannot_be_done_says_why_and_ends_with_1(
    either: Operator, args: tuple[str, ...], sentence: str
) -> None:
    either.json("user", "create", "somebody@example.com")
    assert either.refused(*args) == sentence


def test_users_and_keys_are_listed_to_the_last_one_however_many(folder: Path) -> None:
    world = World.create(folder)
    try:
        shell, many = operator_of(world), 3 * control.PAGE
        world.daemon.program.stop()
        with closing(sqlite3.connect(world.daemon.db, isolation_level=None)) as db:
            db.execute("BEGIN")
            for number in range(many):
                user = f"usr_{number:06}"
                db.execute("INSERT INTO users (id, email, created_at) VALUES (?, ?, '')", (user, "e" * 254))
                ledger.open_account(db, user, "usd_cents", "")
                db.execute(
                    "INSERT INTO api_keys (id, key_hash, key_prefix, user_id, name, created_at)"
                    " VALUES (?, ?, '', ?, ?, '')",
                    (f"key_{number:06}", str(number), "usr_000007", "n" * 20_000),  # as an earlier version took them
                )
            db.execute("COMMIT")
        without = (shell.json("user", "list"), shell.json("key", "list"))
        world.daemon.start()
        users, keys = shell.json("user", "list"), shell.json("key", "list")
        assert (users, keys) == without
        assert [one["id"] for one in users] == [f"usr_{number:06}" for number in range(many)]
        assert [one["id"] for one in keys] == [f"key_{number:06}" for number in range(many)]
        assert shell.json("key", "list", "usr_000007") == keys
        assert shell.json("key", "list", "usr_000008") == []
        assert shell.run("user", "list")[0].count("\n") == shell.run("key", "list")[0].count("\n") == many
    finally:
        world.close()


@pytest.mark.parametrize("cents", ["0", "-5", "1.5", "x", "1000000001"])
def test_a_grant_is_a_positive_number_of_cents(operator: Operator, cents: str) -> None:
    alice = operator.json("user", "create", "alice@example.com")["id"]
    operator.run("credit", "grant", alice, cents, expect=2)
    assert operator.json("credit", "show", alice)["balance_cents"] == 0


def test_books_that_were_tampered_with_make_check_end_with_1(operator: Operator) -> None:
    alice = operator.json("user", "create", "alice@example.com")["id"]
    operator.json("credit", "grant", alice, "100")
    with sqlite3.connect(operator.env["DB_PATH"]) as db:
        db.execute("UPDATE accounts SET balance = 1000000")
    db.close()
    found = operator.json("check", expect=1)
    assert found["ok"] is False
    assert found["wrong"] == ["account 1: balance is 1000000, and its rows add up to 100"]
    assert operator.run("check", "--full", expect=1)[0].endswith("1 accounts, 1 differences\n")


def test_without_a_folder_for_the_database_every_verb_is_refused(operator: Operator, folder: Path) -> None:
    nowhere = str(folder / "nowhere" / "goosestack.db")
    for args in (("user", "list"), ("check",), ("credit", "show", "usr_1"), ("backup", "x"), ("restore", __file__)):
        assert "nowhere" in operator.refused(*args, code=78, env={"DB_PATH": nowhere})


def test_the_command_runs_as_a_process_of_its_own(folder: Path) -> None:
    env = bare_environment(DB_PATH=str(folder / "goosestack.db"))
    for args, expected in ((["--version"], __version__), (["user", "create", "alice@example.com"], "usr_")):
        done = subprocess.run(
            [sys.executable, "-m", "goosestack", *args], env=env, cwd=folder, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout and done.stderr == ""
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


def test_a_command_that_asks_a_daemon_loads_nothing_of_the_gateway(world: World) -> None:
    """A command took a second of a processor to load what a daemon needs, and none of it to ask the one that runs."""
    code = "import sys; from goosestack.cli import main; main(standalone_mode=False); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "user", "create", "bob@example.com"],
        env=world.daemon.env, cwd=world.daemon.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, loaded = done.stdout.splitlines()
    assert told.startswith("usr_") and "goosestack.control" in loaded.split()
    assert not {"aiohttp", "starlette", "stripe", "goosestack.admin", "goosestack.ledger"} & set(loaded.split())


# --- what a running daemon makes of it ------------------------------------------------------------------------


def test_the_next_request_sees_a_grant_and_pro(world: World) -> None:
    alice, shell = world.customer(cents=0), operator_of(world)
    own = {"X-Provider-Key": OPENAI_KEY}

    def status(**headers: str) -> int:
        return ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat(), headers=headers).status

    assert (status(), status(**own)) == (402, 403)
    shell.run("credit", "grant", alice.id, "10")
    shell.run("user", "pro", alice.id, "--until", "2999-01-01")
    assert (status(), status(**own)) == (200, 200)
    shell.run("user", "pro", alice.id, "--until", "2020-01-01")
    assert status(**own) == 403


def test_a_revoked_key_fails_at_once_and_its_live_stream_ends(world: World) -> None:
    alice, shell = world.customer(), operator_of(world)
    endless = chat(directed("Hi", words=2000, delay_ms=20), stream=True)
    with opened(world, "/v1/chat/completions", key=alice.key, body=endless) as stream:
        assert stream.readline().startswith(b"data: ")
        shell.run("key", "revoke", alice.key_id)
        assert ask(world, "GET", "/v1/usage", key=alice.key).status == 401
        last = [line for line in stream.read().split(b"\n\n") if line][-1]
    assert b"its key was revoked" in last and b'"error"' in last
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["estimated"]) == ("settled", 1)
    assert 0 < row["output_tokens"] < 2000
    assert row["cost_nanos"] <= row["quote"]


def test_a_database_path_too_long_for_a_socket_works(folder: Path) -> None:
    deep = folder / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    world = World.create(deep)
    try:
        alice = world.customer(5)  # over the socket
        assert len(str(world.daemon.db)) > 140
        assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat()).status == 200
    finally:
        world.close()


# --- settings and prices --------------------------------------------------------------------------------------


def test_config_shows_every_setting_and_no_secret(operator: Operator) -> None:
    secrets = {"ADMIN_TOKEN": CANARY * 2, "ANTHROPIC_API_KEY": "", "OPENROUTER_API_KEY": CANARY, "PORT": "4000"}
    shown = operator.json("config", env=secrets)
    assert set(shown) == {config.setting(option) for option in config.options()}
    assert (shown["OPENAI_API_KEY"], shown["ADMIN_TOKEN"], shown["ANTHROPIC_API_KEY"]) == ("(set)", "(set)", "")
    text, err = operator.run("config", env=secrets)
    assert "PORT=4000\n" in text and "OPENAI_API_KEY=(set)\n" in text
    assert CANARY not in text + err + json.dumps(shown)


def test_settings_come_from_a_credential_then_the_environment_then_dotenv(operator: Operator, folder: Path) -> None:
    (folder / ".env").write_text("PORT=1111\nDRAIN_S=1111\nMAX_IN_FLIGHT=1111\nOPENROUTER_API_KEY=sk-or-$HOME\n")
    (folder / "credentials").mkdir()
    (folder / "credentials" / "PORT").write_text("3333\n")
    env = {"CREDENTIALS_DIRECTORY": str(folder / "credentials"), "PORT": "2222", "DRAIN_S": "2222"}
    shown = operator.json("config", env=env)
    assert (shown["PORT"], shown["DRAIN_S"], shown["MAX_IN_FLIGHT"]) == ("3333", "2222", "1111")
    assert shown["OPENROUTER_API_KEY"] == "(set)"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('SIGNUP="closed', "line 1 of .env is not NAME=value"),
        ("PORT=4000\n\n\nSIGNUP closed\n", "line 4 of .env is not NAME=value"),
        ("SIGNUP\n", "line 1 of .env is not NAME=value"),
        ('SIGNUP="closed\nPORT=4000\n"\n', "line 1 of .env is not NAME=value"),
        ("# all\nSIGNUP: closed", "line 2 of .env is not NAME=value"),
        ("sk-canary-of-the-operator", "line 1 of .env is not NAME=value"),
        ("PORT=4000\nMARKUP=20", "line 2 of .env sets MARKUP, which is no setting; the nearest is MARKUP_PERCENT"),
        ("signup=closed", "line 1 of .env sets something, which is no setting; the nearest is SIGNUP"),
        ("export SIGN_UP=closed", "line 1 of .env sets SIGN_UP, which is no setting; the nearest is SIGNUP"),
    ],
)
def test_a_dotenv_that_cannot_be_understood_is_refused_by_its_line(
    operator: Operator, folder: Path, text: str, sentence: str
) -> None:
    (folder / ".env").write_text(text)
    assert operator.refused("config", code=78) == sentence
    assert operator.refused("user", "create", "alice@example.com", code=78) == sentence


def test_a_dotenv_may_have_comments_quotes_blanks_and_nothing(operator: Operator, folder: Path) -> None:
    (folder / ".env").write_text("\n# both\r\n\nexport SIGNUP = 'closed' # for now\nPORT=\"4000\"\nHOST=\n  \n")
    shown = operator.json("config")
    assert (shown["SIGNUP"], shown["PORT"], shown["HOST"]) == ("closed", "4000", "127.0.0.1")
    (folder / ".env").unlink()
    (folder / ".env").mkdir()  # as some name the folder of their environment
    assert operator.json("config")["SIGNUP"] == "open"


def test_secrets_leave_the_environment_once_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    assert config.load_from_process().openai_api_key == CANARY
    assert CANARY not in os.environ.values()


def test_the_example_of_a_dotenv_file_is_the_generated_one(folder: Path) -> None:
    assert (ROOT / ".env.example").read_text() == config.env_example()
    stripped = [line.removeprefix("#") for line in config.env_example().splitlines() if line.startswith("#")]
    (folder / ".env").write_text("\n".join(line for line in stripped if line[:1].isupper() and "=" in line))
    assert config.load({}, folder) == config.Config()


def test_prices_lists_what_is_sold_with_the_markup(operator: Operator) -> None:
    listed = {row["model"]: row for row in operator.json("prices")}
    assert listed["gpt-5.4-mini"] == {"model": "gpt-5.4-mini", "provider": "openai", "input": "0.75", "output": "4.5"}
    assert all(row["provider"] == "openai" for row in listed.values())  # no other key is set
    (dearer,) = operator.json("prices", "gpt-5.4-mini-2026-03-17", env={"MARKUP_PERCENT": "50"})
    assert (dearer["model"], dearer["input"], dearer["output"]) == ("gpt-5.4-mini", "1.125", "6.75")
    heading, line = operator.run("prices", "gpt-5.4-mini")[0].splitlines()
    assert heading.split() == ["model", "provider", "$/M", "input", "$/M", "output"]
    assert line.split() == ["gpt-5.4-mini", "openai", "0.75", "4.5"]


def test_the_operators_own_prices_decide(operator: Operator, folder: Path) -> None:
    (folder / "prices.toml").write_text(
        '[models.goose-1]\nprovider = "openai"\ninput = "1.5"\noutput = 2\ncontext = 8000\naliases = ["honk"]\n'
    )
    (own,) = operator.json("prices", "honk")
    assert own == {"model": "goose-1", "provider": "openai", "input": "1.5", "output": "2"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prefer = 3", "prefer lists providers: openai, anthropic, openrouter, litellm"),
        ('prefer = [["openai"]]', "prefer lists providers: openai, anthropic, openrouter, litellm"),
        ("models = 3", "models holds a table for each model, and aliases is a table of names"),
        ("aliases = 3", "models holds a table for each model, and aliases is a table of names"),
        ('[aliases]\nhonk = "none"', "the alias honk names 'none', which has no price"),
        ("[markup]", "unknown markup; there are prefer, aliases and models"),
        ("[models.gpt-4o]\nprice = 1", "models.gpt-4o: unknown price"),
        ("[models.gpt-4o]\ninput = true\noutput = 1", "models.gpt-4o.input: True is not a price"),
        ("[models.gpt-4o]\ninput = -1\noutput = 1", "models.gpt-4o.input: -1 is not a price"),
        ("[models.gpt-4o]\ninput = nan\noutput = 1", "models.gpt-4o.input: NaN is not a price"),
        ('[models.gpt-4o]\ncontext = "9"', "models.gpt-4o: context must be a number of tokens, not '9'"),
        ("[models.gpt-4o]\ncontext = 0", "models.gpt-4o: context must be a number of tokens, not 0"),
        ("[models.gpt-4o]\nweb_search = 0.5", "models.gpt-4o: web_search only with an input and an output price"),
        ("[models.goose]\ninput = 1", "models.goose: name its provider: openai, anthropic, openrouter, litellm"),
        ('[models.gpt-4o]\nkind = "poem"', "models.gpt-4o: kind must be chat or embedding, not 'poem'"),
        ("[models.gpt-4o]\naliases = [3]", "models.gpt-4o: aliases must be a list of names"),
    ],
)
def test_bad_prices_are_refused_and_the_place_is_named(
    operator: Operator, folder: Path, text: str, sentence: str
) -> None:
    (folder / "prices.toml").write_text(text)
    assert operator.refused("prices", code=78) == f"prices.toml: {sentence}"


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon with an upstream that it never calls."""
    running = Daemon(folder, "http://127.0.0.1:9")
    yield running
    running.program.stop()


def test_commands_while_the_daemon_comes_and_goes_find_the_same_books(daemon: Daemon, folder: Path) -> None:
    shell = Operator(folder, daemon.env)
    alice = shell.json("user", "create", "alice@example.com")["id"]
    daemon.program.stop()
    shell.json("credit", "grant", alice, "7")
    daemon.start()
    until(lambda: (folder / "goosestack.db.sock").exists(), "the socket")
    assert (folder / "goosestack.db.sock").stat().st_mode & 0o777 == 0o600
    assert shell.json("credit", "show", alice)["balance_cents"] == 7
    assert shell.json("check", "--full")["ok"]


def test_a_mistyped_path_makes_no_database(operator: Operator, folder: Path) -> None:
    missing = folder / "goosestack.db"
    assert operator.refused("check", code=78) == f"there is no database at {missing}"
    assert not missing.exists()


def test_a_verb_does_not_touch_a_database_that_others_can_read(operator: Operator, folder: Path) -> None:
    operator.json("user", "create", "alice@example.com")
    exposed = folder / "goosestack.db"
    exposed.chmod(0o644)
    assert operator.refused("check", code=78).startswith(f"{exposed} can be read by others")
    assert exposed.stat().st_mode & 0o777 == 0o644
