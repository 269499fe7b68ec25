"""Copies of the books: made under full load and proved, refused where they do not add up, put back in their place. And
the ranks of the tokenizer, which let a small balance hold less.
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from goosestack import admin, tokenizer
from goosestack.errors import Refusal
from goosestack.store.migrations import MIGRATIONS
from goosestack.store.sqlite import migrate
from tests.asking import ask, chat, connect, directed, message
from tests.shell import Operator, operator_of
from tests.world import Customer, World, until

DATED = re.compile(r"goosestack-\d{8}T\d{12}Z\.db")


class Load:
    """Somebody who asks and asks, and remembers what was answered."""

    def __init__(self, world: World, customer: Customer) -> None:
        self.answered: list[str] = []
        self._world, self._customer = world, customer
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopped.is_set():
            body = chat(directed("Hi", words=500))
            reply = ask(self._world, "POST", "/v1/chat/completions", key=self._customer.key, body=body)
            assert reply.status == 200
            self.answered.append(str(reply.headers["x-request-id"]))

    def goes_on(self) -> None:
        """Wait for a few more answers."""
        past = len(self.answered)
        until(lambda: len(self.answered) > past + 5, "some load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()


def settled_in(copy: Path) -> tuple[set[str], int]:
    """The settled requests in a copy, and the balance that it has for the last user."""
    with closing(sqlite3.connect(copy)) as db:
        rows = {row[0] for row in db.execute("SELECT id FROM usage_log WHERE status = 'settled'")}
        (balance,) = db.execute("SELECT balance_cents FROM credits ORDER BY user_id DESC").fetchone()
    return rows, balance


# --- backup ---------------------------------------------------------------------------------------------------


def test_a_copy_under_load_has_every_request_that_was_answered_before_it(folder: Path) -> None:
    world = World.create(folder)
    copies = folder / "copies"
    copies.mkdir()
    try:
        alice, shell = world.customer(1000), operator_of(world)
        with Load(world, alice) as load:
            for _ in range(4):
                load.goes_on()
                answered = set(load.answered)
                made = shell.json("backup", str(copies), "--keep", "2")
                settled, balance = settled_in(Path(made["file"]))
                assert answered <= settled
                assert made["requests"] >= len(settled)
                assert balance == 1000 - sum(row["billed"] for row in world.rows(alice) if row["id"] in settled)
                assert admin.verify_file(Path(made["file"])) == {
                    "users": 1,
                    "requests": made["requests"],
                    "accounts": 1,
                }
        kept = sorted(copies.iterdir())
        assert len(kept) == 2 and kept[-1] == Path(made["file"])
        assert all(DATED.fullmatch(path.name) and path.stat().st_mode & 0o777 == 0o600 for path in kept)
        assert made["bytes"] == kept[-1].stat().st_size
        assert len(made["removed"]) == 1
    finally:
        world.close()


def test_a_copy_to_a_file_replaces_it_whole(world: World, folder: Path) -> None:
    target, shell = folder / "copy.db", operator_of(world)
    target.write_text("an older copy, readable by all")
    target.chmod(0o644)
    said, _ = shell.run("backup", str(target))
    assert said.startswith(f"{target}: {target.stat().st_size} bytes, ") and said.endswith("books add up\n")
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["copy.db"]


def test_a_copy_can_be_made_without_a_daemon_and_named_relatively(shop: Operator) -> None:
    made = shop.json("backup", "copy.db")
    assert (made["users"], made["file"]) == (1, "copy.db")
    assert admin.verify_file(shop.folder / "copy.db")["users"] == 1


def test_other_files_in_the_folder_are_left_alone(shop: Operator) -> None:
    kept = ["goosestack-old.db", "other-20260101T000000000000Z.db", "goosestack-20260101T000000000000Z.db.gz"]
    (shop.folder / "copies").mkdir()
    for name in kept:
        (shop.folder / "copies" / name).touch()
    for _ in range(3):
        shop.run("backup", "copies", "--keep", "1")
    names = {path.name for path in (shop.folder / "copies").iterdir()}
    assert set(kept) < names
    assert len(names - set(kept)) == 1


def test_a_backup_that_cannot_be_made_says_why_and_leaves_nothing_behind(shop: Operator) -> None:
    database = Path(shop.env["DB_PATH"])
    assert shop.refused("backup", "x.db", code=78, env={"DB_PATH": "none.db"}) == "there is no database at none.db"
    assert shop.refused("backup", "nowhere/x.db", code=78) == "there is no folder nowhere"
    assert shop.refused("backup", "goosestack.db", code=78) == "goosestack.db is the database itself"
    with closing(sqlite3.connect(database)) as db:
        db.execute("UPDATE accounts SET balance = 1000000")
        db.commit()
    assert "does not add up: account 1: balance is 1000000" in shop.refused("backup", "x.db", code=78)
    database.write_bytes(b"not a database " * 1000)
    assert shop.refused("backup", "x.db", code=78).startswith("the backup failed: file is not a database")
    assert not [path.name for path in shop.folder.iterdir() if path.name.startswith((".", "x"))]


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_database_that_waits_for_its_upgrade_is_copied_as_it_is_and_proved(shop: Operator, version: int) -> None:
    (shop.folder / "copies").mkdir()
    database = Path(shop.env["DB_PATH"])
    database.unlink()
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        migrate(db, MIGRATIONS[:version])
        db.execute("INSERT INTO users (id, email, created_at) VALUES ('usr_1', 'bob@example.com', '')")
        db.execute(
            "INSERT INTO accounts (id, user_id, unit, grain, balance, updated_at)"
            " VALUES (1, 'usr_1', 'usd_cents', 10000000, 7, '')"
        )
        db.execute(
            "INSERT INTO entries (seq, id, account_id, kind, ref, amount, created_at)"
            " VALUES (1, 'ent_1', 1, 'grant', 'first', 7, '')"
        )
    made = shop.json("backup", "copies")
    assert (made["users"], made["accounts"]) == (1, 1)
    assert [path.name for path in (shop.folder / "copies").iterdir()] == [Path(made["file"]).name]
    with closing(sqlite3.connect(shop.folder / made["file"])) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (version,)  # so that one can go back to it
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        db.execute("UPDATE accounts SET balance = 8")
        db.commit()
    told = shop.refused("backup", "copies", code=78)
    assert told == f"{database} does not add up: account 1: balance is 8, and its rows add up to 7"
    assert len(list((shop.folder / "copies").iterdir())) == 1


def test_an_empty_file_is_no_database_to_copy(shop: Operator) -> None:
    database = Path(shop.env["DB_PATH"])
    database.write_bytes(b"")
    assert shop.refused("backup", "x.db", code=78).startswith(f"{database} is no database of goosestack: ")


@pytest.fixture
def shop(folder: Path) -> Operator:
    """An operator without a running daemon, and books in which Alice has 100 cents."""
    shell = Operator(folder, {"DB_PATH": str(folder / "goosestack.db"), "OPENAI_API_KEY": "sk-nothing"})
    alice = shell.json("user", "create", "alice@example.com")["id"]
    shell.json("credit", "grant", alice, "100")
    return shell


def balance_of(shop: Operator) -> int:
    cents: int = shop.json("credit", "show", "alice@example.com")["balance_cents"]
    return cents


# --- restore --------------------------------------------------------------------------------------------------


def test_a_restored_copy_is_served_with_its_open_holds_resolved_and_the_replaced_file_is_kept(folder: Path) -> None:
    world = World.create(folder)
    copy = folder / "copy.db"
    try:
        alice, shell = world.customer(500), operator_of(world)
        silent = chat(directed("Hi", fault="stall_headers", hang_s=600))
        with closing(connect(world)) as waiting:
            head = {"authorization": f"Bearer {alice.key}", "content-type": "application/json"}
            waiting.request("POST", "/v1/chat/completions", json.dumps(silent), head)
            until(lambda: world.rows(alice), "a hold")
            shell.run("backup", str(copy))
            assert shell.refused("restore", str(copy), code=75).startswith("another goosestack process is using ")
            shell.run("credit", "grant", alice.id, "700")
            world.daemon.program.stop(9)  # what follows finds a log beside the file
        done = shell.json("restore", str(copy))
        assert (done["file"], done["requests"]) == (str(world.daemon.db), 1)
        assert world.daemon.db.stat().st_mode & 0o777 == 0o600
        world.daemon.start()
        funds = {"balance_cents": 500, "debt_cents": 0, "held_cents": 0, "available_cents": 500}
        assert world.funds(alice) == {"id": alice.id, **funds}
        assert [row["reason"] for row in world.rows(alice)] == ["interrupted"]
        assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat()).status == 200
        world.daemon.program.stop()
        shell.run("restore", done["replaced"])  # and back again, the log included
        assert shell.json("credit", "show", alice.id)["balance_cents"] == 1200
        world.daemon.start()
    finally:
        world.close()


def test_restoring_again_keeps_every_file_that_was_replaced(shop: Operator) -> None:
    shop.run("backup", "copy.db")
    kept = [shop.json("restore", "copy.db")["replaced"] for _ in range(3)]
    assert len(set(kept)) == 3 and all(Path(path).is_file() for path in kept)
    assert shop.run("restore", "copy.db")[0].startswith(f"{shop.env['DB_PATH']} restored from copy.db; replaced: ")
    assert balance_of(shop) == 100


def test_a_copy_can_be_restored_where_no_database_is(shop: Operator) -> None:
    shop.run("backup", "copy.db")
    Path(shop.env["DB_PATH"]).unlink()
    assert shop.json("restore", "copy.db")["replaced"] is None
    assert balance_of(shop) == 100


def test_a_copy_that_an_older_version_made_is_brought_up_to_date_and_proved(shop: Operator) -> None:
    with closing(sqlite3.connect(shop.folder / "old.db", isolation_level=None)) as db:
        migrate(db, MIGRATIONS[:1])
        db.execute("INSERT INTO users VALUES ('usr_1', 'bob@example.com', NULL, NULL, '2026-01-01T00:00:00.000Z')")
    assert shop.json("restore", "old.db")["users"] == 1
    assert shop.json("check", "--full")["ok"]


def test_the_database_is_no_copy_of_itself(shop: Operator) -> None:
    database = Path(shop.env["DB_PATH"])
    assert shop.refused("restore", str(database), code=78) == f"{database} is the database itself"
    assert balance_of(shop) == 100


def test_a_copy_that_was_damaged_altered_or_is_newer_is_refused_and_nothing_is_replaced(shop: Operator) -> None:
    shop.run("backup", "copy.db")
    shop.run("credit", "grant", "alice@example.com", "11")
    good, bad = (shop.folder / "copy.db").read_bytes(), shop.folder / "bad.db"

    def refusal() -> str:
        return shop.refused("restore", "bad.db", code=78)

    middle = len(good) // 2 // 4096 * 4096
    bad.write_bytes(good[:middle] + b"\xff" * 4096 + good[middle + 4096 :])
    assert "bad.db " in refusal()
    bad.write_bytes(good[: len(good) // 2])
    assert "bad.db " in refusal()
    bad.write_bytes(b"A letter, not a database. " * 500)
    assert refusal() == "bad.db is no database of goosestack: file is not a database"
    with closing(sqlite3.connect(shop.folder / "other.db")) as db:
        db.execute("CREATE TABLE letters (text)")
    (shop.folder / "other.db").rename(bad)
    assert refusal() == "bad.db is no database of goosestack: no such table: accounts"
    bad.write_bytes(good)
    with closing(sqlite3.connect(bad)) as db:
        db.execute("UPDATE entries SET amount = 90")
        db.commit()
        assert refusal().startswith("bad.db does not add up: account 1: balance is 100, and its rows add up to 90")
        db.execute("UPDATE entries SET amount = 100")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        db.commit()
    assert refusal().startswith(f"the database has schema version {len(MIGRATIONS) + 1}")
    assert balance_of(shop) == 111
    assert not [path.name for path in shop.folder.iterdir() if "replaced" in path.name or "restoring" in path.name]


def test_a_copy_that_has_lost_rows_is_refused_and_so_is_one_that_is_not_there(shop: Operator) -> None:
    shop.run("backup", "copy.db")
    with closing(sqlite3.connect(shop.folder / "copy.db")) as db:
        db.execute("DELETE FROM users")
        db.commit()
    words = shop.refused("restore", "copy.db", code=78)
    assert words.startswith("copy.db does not add up: foreign key: ") and " has no users" in words
    with pytest.raises(Refusal, match="there is no file"):
        admin.restore(Path(shop.env["DB_PATH"]), shop.folder / "nowhere.db")
    assert balance_of(shop) == 100


def test_a_database_that_somebody_reads_is_not_replaced_under_them(shop: Operator) -> None:
    shop.run("backup", "copy.db")
    shop.run("credit", "grant", "alice@example.com", "11")
    with closing(sqlite3.connect(shop.env["DB_PATH"], isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM users").fetchall()
        assert shop.refused("restore", "copy.db", code=78) == "copy.db cannot be restored: database is locked"
    assert balance_of(shop) == 111
    assert not [path.name for path in shop.folder.iterdir() if "restoring" in path.name]


# --- the tokenizer's ranks ------------------------------------------------------------------------------------

PLENTY = "the " * 6000
"""24,000 bytes, 6,000 tokens: bounded by its bytes it costs 1.8 cents of gpt-5.4-mini, counted 0.5."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """OpenAI's rank files, out of a package that carries them."""
    folder, package = tmp_path_factory.mktemp("ranks"), find_spec("bpe_openai")
    assert package is not None and package.origin is not None
    packed = Path(package.origin).parent / "data"
    found = {name: folder / f"{name}.tiktoken" for name in tokenizer.RANKS}
    for name, path in found.items():
        path.write_bytes(gzip.decompress((packed / f"{name}.tiktoken.gz").read_bytes()))
    return found


@pytest.fixture(scope="module")
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon beside whose database ranks can be installed."""
    world = World.create(tmp_path_factory.mktemp("tokenizer"))
    yield world
    world.close()


def test_ranks_are_installed_by_their_hash_whatever_the_file_is_called(shop: Operator, ranks: dict[str, Path]) -> None:
    ranks["cl100k_base"].rename(shop.folder / "download")
    (shop.folder / "download").rename(ranks["cl100k_base"])
    done = shop.json("tokenizer", "install", str(ranks["o200k_base"]))
    assert done == {"installed": ["o200k_base"], "folder": str(shop.folder / "tokenizer")}
    said, _ = shop.run("tokenizer", "install", str(ranks["cl100k_base"]))
    assert said == f"installed cl100k_base in {shop.folder / 'tokenizer'}\n"
    assert len(list((shop.folder / "tokenizer").iterdir())) == 2


def test_a_file_of_another_hash_is_refused_and_not_installed(shop: Operator, ranks: dict[str, Path]) -> None:
    altered = shop.folder / "o200k_base.tiktoken"
    altered.write_bytes(ranks["o200k_base"].read_bytes() + b"\n")
    told = shop.refused("tokenizer", "install", str(altered), code=78)
    assert told.endswith("its SHA-256 fits neither o200k_base nor cl100k_base")
    assert not (shop.folder / "tokenizer").exists()
    shop.run("tokenizer", "install", str(shop.folder / "missing"), expect=2)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(PLENTY, model="gpt-5.4-mini")),
        ("/v1/responses", {"model": "gpt-5.4-mini", "input": PLENTY}),
        ("/v1/embeddings", {"model": "text-embedding-3-large", "input": [PLENTY] * 5}),
    ],
    ids=["chat", "responses", "embeddings"],
)
def test_with_ranks_a_small_balance_pays_for_what_its_bytes_would_not_allow(
    own_world: World, ranks: dict[str, Path], path: str, body: dict[str, object]
) -> None:
    world, shell = own_world, operator_of(own_world)
    for installed in (world.folder / "tokenizer").glob("*"):
        installed.unlink()
    alice, start = world.customer(1), world.upstream.mark()
    assert ask(world, "POST", path, key=alice.key, body=body).status == 402
    assert world.upstream.dispatches(start) == []
    for file in ranks.values():
        shell.run("tokenizer", "install", str(file))
    assert ask(world, "POST", path, key=alice.key, body=body).status == 200
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["shortfall"], row["estimated"]) == ("settled", 0, 0)
    assert row["cost_nanos"] <= row["quote"]
    assert len(world.upstream.dispatches(start)) == 1


def test_for_anthropic_the_provider_is_asked_to_count_and_only_where_it_can_matter(own_world: World) -> None:
    world, start = own_world, own_world.upstream.mark()
    rich, alice = world.customer(1000, name="rich"), world.customer(2)
    assert ask(world, "POST", "/v1/messages", key=rich.key, body=message(PLENTY)).status == 200
    assert [dispatch["path"] for dispatch in world.upstream.dispatches(start)] == ["/v1/messages"]
    start = world.upstream.mark()
    assert ask(world, "POST", "/v1/messages", key=alice.key, body=message(PLENTY)).status == 200
    counted, sent = world.upstream.dispatches(start)
    assert (counted["path"], sent["path"]) == ("/v1/messages/count_tokens", "/v1/messages")
    assert "max_tokens" not in counted["body"]
    (row,) = world.ended_rows(alice, 1)
    assert (row["status"], row["shortfall"]) == ("settled", 0)


def test_where_the_provider_does_not_count_the_byte_bound_stands(own_world: World) -> None:
    world, start = own_world, own_world.upstream.mark()
    alice = world.customer(2)
    body = message(directed(PLENTY, fault="error_500"))
    assert ask(world, "POST", "/v1/messages", key=alice.key, body=body).status == 402
    assert [dispatch["path"] for dispatch in world.upstream.dispatches(start)] == ["/v1/messages/count_tokens"]
    assert world.rows(alice) == []
    assert world.funds(alice)["balance_cents"] == 2
