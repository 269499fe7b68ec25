"""The tests' world: a real daemon and a real upstream, as processes, on real sockets, with a real database file.

The upstream is `goosestack.demo`; what it writes into its log is the witness of what was sent. Customers are made by
the operator's verbs, over the daemon's socket. Wherever a test ends, `World.settle` waits for every relay and checks
the books from the beginning.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goosestack import admin, ledger
from goosestack.clock import utc_now
from goosestack.config import options, setting
from goosestack.store.sqlite import connect_read_only
from tests import canaries

OPENAI_KEY = "sk-operator-openai-canary-0001"
ANTHROPIC_KEY = "sk-ant-operator-canary-0002"
PATIENCE_S = 20.0

PRICES = Path(__file__).with_name("world.toml")
"""The operator's prices, unless a test has others."""


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until the condition holds, and give back what it gave; fail, saying what, where it does not."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s} s in vain for {what}")
        time.sleep(0.01)
    return found


class Program:
    """A process of this project, its output gathered in a file."""

    def __init__(self, args: list[str], env: Mapping[str, str], output: Path, cwd: Path) -> None:
        self.output = output
        with output.open("ab") as file:
            self.start = file.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *args], env=dict(env), cwd=cwd, stdout=file, stderr=subprocess.STDOUT
            )

    def text(self) -> str:
        """What it has printed since it was started."""
        with self.output.open("rb") as file:
            file.seek(self.start)
            return file.read().decode("utf-8", "replace")

    def wait_for(self, pattern: str, patience_s: float = PATIENCE_S) -> re.Match[str]:
        """The first match in its output; fails where it ends before."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.text())
            if match is None and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.text()[-2000:]}")
            return match

        match = until(found, pattern, patience_s)
        assert isinstance(match, re.Match)
        return match

    def stop(self, number: int = signal.SIGTERM, patience_s: float = 60) -> int:
        """Send a signal and wait for the end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(patience_s)


class Upstream:
    """The strict, faulty, canned provider, and its log."""

    def __init__(self, folder: Path, delay_s: float = 0.0) -> None:
        self.log = folder / "upstream.jsonl"
        args = ["goosestack.demo", "--port", "0", "--log", str(self.log), "--delay", str(delay_s)]
        args += ["--openai-key", OPENAI_KEY, "--anthropic-key", ANTHROPIC_KEY]
        self.program = Program(args, bare_environment(), folder / "upstream.out", folder)
        self.url = self.program.wait_for(r"listening on (\S+)").group(1)

    def events(self, start: int = 0) -> list[dict[str, Any]]:
        """The log's events from a byte offset on."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(start)
            return [json.loads(line) for line in file.read().splitlines() if line]

    def mark(self) -> int:
        """The log's present length, to read from later."""
        return self.log.stat().st_size if self.log.exists() else 0

    def dispatches(self, start: int = 0) -> list[dict[str, Any]]:
        """The requests that were received since."""
        return [event for event in self.events(start) if event["event"] == "dispatch"]


def bare_environment(**settings: str) -> dict[str, str]:
    """An environment without anything that the machine has set, but what a program needs to run, and a clock that is
    preloaded, so that all of this can be tried as of another day."""
    names = ("PATH", "HOME", "LANG", "TMPDIR", "LD_PRELOAD", "FAKETIME", "COVERAGE_PROCESS_CONFIG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONWARNINGS": "error", **settings}


def secrets_of(env: Mapping[str, str]) -> dict[str, str]:
    """What a daemon with these settings is told that must be found in nothing it writes, a name for each: out of the
    environment, or of the credential files that it names."""
    given = [(setting(entry), env.get(setting(entry), "")) for entry in options() if entry.metadata["secret"]]
    if folder := env.get("CREDENTIALS_DIRECTORY"):
        files = [(name, Path(folder, name)) for name, _ in given]
        given += [(name, file.read_text().strip()) for name, file in files if file.is_file()]
    return {f"{name} that ends with {value[-4:]}": value for name, value in given if len(value) >= canaries.LEAST}


DAEMONS: list[Daemon] = []
"""Every one that a test has started: when all tests have ended, what they wrote is searched for credentials."""


class Daemon:
    """`goosestack serve` on a folder's database. Settings are environment variables."""

    def __init__(self, folder: Path, upstream_url: str, **settings: str) -> None:
        self.folder = folder
        self.db = folder / "goosestack.db"
        self.env = bare_environment(
            DB_PATH=str(self.db),
            PORT="0",
            OPENAI_API_KEY=OPENAI_KEY,
            OPENAI_BASE_URL=f"{upstream_url}/v1",
            ANTHROPIC_API_KEY=ANTHROPIC_KEY,
            ANTHROPIC_BASE_URL=upstream_url,
            PRICES_FILE=str(PRICES),
            RATE_LIMIT_MAX_REQUESTS="1000000",
            SIGNUPS_PER_HOUR="1000000",
        )
        self.env.update(settings)
        self.keys: list[str] = []
        """Of its customers."""
        self.told = secrets_of(self.env)
        """The operator's secrets, as of each time that it was started."""
        self.passes = folder.is_mount()
        """Whether its folder is a disk of its own, which goes with the test."""
        DAEMONS.append(self)
        self.program: Program
        self.url = ""
        self.start()

    def begin(self) -> None:
        """Start it, and wait for nothing."""
        self.told |= secrets_of(self.env)
        self.program = Program(["goosestack", "serve"], self.env, self.folder / "daemon.out", self.folder)

    @property
    def secrets(self) -> dict[str, str]:
        """What it was told and has told that must be found in nothing it writes: a name for each."""
        return {**self.told, **{f"a customer's key {key[:12]}": key for key in self.keys}}

    def start(self) -> None:
        """Start it, again where it has ended."""
        self.begin()
        match = self.program.wait_for(r'"event":"listening","host":"([^"]+)","port":(\d+)')
        self.url = f"http://{match.group(1)}:{match.group(2)}"

    def command(self, *args: str, expect: int = 0) -> Any:
        """Run `goosestack ARGS --json` as an operator would; its answer."""
        done = subprocess.run(
            [sys.executable, "-m", "goosestack", *args, "--json"],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == expect, (args, done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stderr


@dataclass(frozen=True, slots=True)
class Customer:
    """A user with a key."""

    id: str
    key: str
    key_id: str


@dataclass(slots=True)
class World:
    """A daemon, its upstream, and what can be asked of both."""

    folder: Path
    upstream: Upstream
    daemon: Daemon
    customers: list[Customer] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, *, delay_s: float = 0.0, **settings: str) -> World:
        """Start both, in an empty folder."""
        upstream = Upstream(folder, delay_s)
        return cls(folder, upstream, Daemon(folder, upstream.url, **settings))

    @property
    def url(self) -> str:
        """Where the daemon listens."""
        return self.daemon.url

    def verb(self, verb: str, **args: object) -> Any:
        """Run an operator's verb over the daemon's socket."""
        return asyncio.run(admin.call(self.daemon.db, verb, args, utc_now))

    def customer(self, cents: int = 1000, *, name: str = "alice", pro: bool = False) -> Customer:
        """A new user with so many cents (and Pro), and a key."""
        user = self.verb("user_create", email=f"{name}@example.com")
        if cents:
            self.verb("credit_grant", user=user["id"], cents=cents, note="", ref=None)
        if pro:
            self.verb("user_pro", user=user["id"], until="2999-01-01T00:00:00.000Z")
        made = self.verb("key_create", user=user["id"], name="test")
        customer = Customer(user["id"], made["api_key"], made["id"])
        self.customers.append(customer)
        self.daemon.keys.append(customer.key)
        return customer

    def rows(self, customer: Customer | None = None) -> list[dict[str, Any]]:
        """Usage rows, the earliest first; a customer's or all."""
        db = connect_read_only(self.daemon.db)
        try:
            where, args = ("", ()) if customer is None else ("WHERE user_id = ?", (customer.id,))
            cursor = db.execute(f"SELECT * FROM usage_log {where} ORDER BY id", args)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
        finally:
            db.close()

    def ended_rows(self, customer: Customer, count: int) -> list[dict[str, Any]]:
        """A customer's rows once there are `count` of them and none is held."""

        def found() -> list[dict[str, Any]] | None:
            rows = self.rows(customer)
            return rows if len(rows) >= count and all(row["status"] != "held" for row in rows) else None

        rows = until(found, f"{count} ended rows of {customer.id}, there are {self.rows(customer)}")
        assert isinstance(rows, list)
        assert len(rows) == count, rows
        return rows

    def funds(self, customer: Customer) -> dict[str, int]:
        """`balance_cents`, `held_cents`, `available_cents`."""
        funds: dict[str, int] = self.verb("credit_show", user=customer.id)
        return funds

    def check(self) -> None:
        """Once nothing is in flight, the books add up from the beginning."""
        until(lambda: all(row["status"] != "held" for row in self.rows()), "every hold to end")
        db = connect_read_only(self.daemon.db)
        try:
            assert ledger.check(db, full=True).wrong == []
        finally:
            db.close()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close it in the end; where anything is raised, stop both at once, so that nothing else is told."""
        try:
            yield
        except BaseException:
            self.daemon.program.stop(signal.SIGKILL)
            self.upstream.program.stop(signal.SIGKILL)
            raise
        self.close()

    def close(self) -> None:
        """Stop both, the daemon in good order, and check the books."""
        try:
            if self.daemon.program.process.poll() is None:
                assert self.daemon.program.stop() == 0, self.daemon.program.text()[-2000:]
            self.check()
        finally:
            self.daemon.program.process.kill()
            self.daemon.program.process.wait()
            self.upstream.program.stop(signal.SIGKILL)


def lines(stream: Any) -> Iterator[bytes]:
    """A socket's or a response's lines."""
    yield from iter(stream.readline, b"")


def readable(sock: Any, seconds: float) -> bool:
    """Whether something arrives on a socket in time."""
    return bool(select.select([sock], [], [], seconds)[0])
