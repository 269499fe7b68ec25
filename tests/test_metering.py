"""Metering with real processes: a daemon that reports to four receivers at once, and is killed; receivers that fail,
stall and come back; the operator's commands, `/readyz` and `/metrics`; OpenRouter and LiteLLM as upstreams.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from goosestack import clock, config, wiring
from goosestack.errors import Refusal
from goosestack.http import Client
from tests.asking import ask, chat, directed
from tests.project import SECRET as PROJECT_SECRET, SERVICE_KEY, Project
from tests.receivers import Process
from tests.shell import Operator, operator_of
from tests.test_serve import refusal
from tests.world import ANTHROPIC_KEY, OPENAI_KEY, Customer, Daemon, Program, Upstream, World, bare_environment, until

STRIPE_KEY = "sk_test_operators_canary_0003"
HOOK_SECRET = "whsec_" + "c2VjcmV0" * 4
TOKEN = "om-operators-canary-0004"
SINKS = ("openmeter", "stripe_meter", "supabase", "webhook")
ALICE = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
COLUMNS = "request_id=id,user_id=supabase_id,tokens=total_tokens,nanos=cost_nanos,at=settled_at"
TABLE = {
    "columns": {"request_id": "text", "user_id": "uuid", "tokens": "bigint", "nanos": "bigint", "at": "timestamptz"},
    "unique": [["request_id"]],
}
SEED = 20_261_121
ROUNDS = 8
LANES = 6


class Receivers:
    """Four receivers as processes, each started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def openmeter(self) -> Process:
        return Process(self._folder, "goosestack.demo.openmeter", "--token", TOKEN)

    @cached_property
    def stripe(self) -> Process:
        return Process(self._folder, "tests.receivers", "stripe", STRIPE_KEY)

    @cached_property
    def hook(self) -> Process:
        return Process(self._folder, "tests.receivers", "webhook", HOOK_SECRET)

    @cached_property
    def project(self) -> Project:
        project = Project(self._folder)
        project.tell("PUT", "tables/usage_log", **TABLE)
        return project

    def running(self) -> list[Process | Project]:
        """Those that were needed."""
        return [each for each in vars(self).values() if isinstance(each, Process | Project)]

    def settings(self, *sinks: str) -> dict[str, str]:
        """The daemon's, with these sinks turned on."""
        settings = {"METERS": ",".join(sinks)}
        if "openmeter" in sinks:
            settings |= {"OPENMETER_URL": self.openmeter.url, "OPENMETER_TOKEN": TOKEN}
        if "stripe_meter" in sinks:
            settings |= {"STRIPE_API_BASE": self.stripe.url, "STRIPE_METER_EVENT": "tokens"}
            settings["STRIPE_SECRET_KEY"] = STRIPE_KEY
        if "supabase" in sinks:
            settings |= {"SUPABASE_URL": self.project.url, "JWT_SECRET": PROJECT_SECRET}
            settings |= {"SUPABASE_SERVICE_KEY": SERVICE_KEY, "SUPABASE_USAGE_COLUMNS": COLUMNS}
        if "webhook" in sinks:
            settings |= {"METER_WEBHOOK_URL": f"{self.hook.url}/usage", "METER_WEBHOOK_SECRET": HOOK_SECRET}
        return settings

    def world(self, folder: Path, *sinks: str) -> World:
        """A daemon that reports to these."""
        upstream = Upstream(folder)
        return World(folder, upstream, Daemon(folder, upstream.url, **self.settings(*sinks)))

    def rows(self) -> list[dict[str, Any]]:
        """What the project's table has."""
        rows: list[dict[str, Any]] = self.project.tell("GET", "tables/usage_log")["rows"]
        return rows

    def tokens(self, user: str) -> int:
        """A user's total at OpenMeter."""
        return int(self.openmeter.totals()["totals"].get(user, {"total_tokens": "0"})["total_tokens"])

    def heal(self) -> None:
        for receiver in self.running():
            receiver.tell("DELETE", "faults")

    def stop(self) -> None:
        for receiver in self.running():
            receiver.program.stop(signal.SIGKILL)


def link(world: World, *customers: Customer) -> None:
    """While the daemon is down, give users the names that the receivers have for them."""
    assert world.daemon.program.stop() == 0
    db = sqlite3.connect(world.daemon.db, isolation_level=None)
    for number, customer in enumerate(customers):
        db.execute("UPDATE users SET stripe_customer_id = ? WHERE id = ?", (f"cus_{number}", customer.id))
        subject = ALICE[:-1] + str(number)
        url = world.daemon.env["SUPABASE_URL"]
        db.execute("INSERT INTO identities VALUES (?, ?, ?, ?)", (f"{url}/auth/v1", subject, customer.id, "2026-11-21"))
    db.close()
    world.daemon.start()


@pytest.fixture
def receivers(folder: Path) -> Iterator[Receivers]:
    receivers = Receivers(folder)
    yield receivers
    receivers.stop()


def statuses(world: World) -> dict[str, dict[str, Any]]:
    """How far each sink has got."""
    return {sink["sink"]: sink for sink in world.verb("meters_status", letters=100)}


def caught_up(world: World, *sinks: str) -> None:
    """Wait until these have everything that has settled."""

    def waiting() -> int:
        found = statuses(world)
        return sum(found[sink]["lag"] + found[sink]["pending"] for sink in sinks)

    until(lambda: waiting() == 0, f"{sinks} to catch up", 60)


def settled(world: World, customer: Customer) -> int:
    """A customer's tokens, by the log."""
    rows = [row for row in world.rows(customer) if row["status"] == "settled"]
    return sum(row["input_tokens"] + row["output_tokens"] for row in rows)


# --- kills, and receivers that fail ---------------------------------------------------------------------------


def order_faults(receivers: Receivers, chance: random.Random) -> None:
    """Each receiver fails a few times, in ways of its own."""
    for receiver in (receivers.openmeter, receivers.stripe, receivers.hook):
        for _ in range(chance.randrange(4)):
            kind = chance.choice(["status", "status", "cut", "stall"])
            status = chance.choice([429, 500, 502, 503])
            after = chance.random() < 0.5 and status != 429
            receiver.tell("POST", "faults", kind=kind, status=status, after=after, seconds=0.1)
    for _ in range(chance.randrange(4)):
        fault: dict[str, Any] = {"path": "/rest/v1/", "done": chance.random() < 0.5, "drop": chance.random() < 0.5}
        receivers.project.tell("POST", "faults", **fault, status=503)


async def _lane(world: World, alice: Customer, until_s: float) -> None:
    body = chat(directed("Hi", words=5), max_tokens=50)
    headers = {"authorization": f"Bearer {alice.key}"}
    async with aiohttp.ClientSession() as client:
        while time.monotonic() < until_s:
            try:
                async with client.post(f"{world.url}/v1/chat/completions", json=body, headers=headers) as answer:
                    await answer.read()
            except (aiohttp.ClientError, ConnectionError):
                return


async def _load(world: World, lanes: list[Customer], seconds: float) -> None:
    tasks = [asyncio.create_task(_lane(world, alice, time.monotonic() + seconds + 1)) for alice in lanes]
    await asyncio.sleep(seconds)
    world.daemon.program.process.send_signal(signal.SIGKILL)
    await asyncio.gather(*tasks)


def test_every_receiver_has_what_was_settled_whoever_is_killed_and_whatever_fails(
    folder: Path, receivers: Receivers
) -> None:
    world, chance = receivers.world(folder, *SINKS), random.Random(SEED)
    try:
        lanes = [world.customer(100_000, name=f"alice{lane}") for lane in range(LANES)]
        link(world, *lanes)
        for _ in range(ROUNDS):
            order_faults(receivers, chance)
            asyncio.run(_load(world, lanes, chance.uniform(0.4, 1.5)))
            world.daemon.program.process.wait()
            world.daemon.start()
        receivers.heal()
        for sink in SINKS:  # who failed a dozen times in a row is not asked again for minutes, if nobody ends the wait
            assert world.daemon.command("meters", "retry", sink)["retried"] == 0
        caught_up(world, *SINKS)
        assert all(sink["dead_letters"] == 0 and sink["pending"] == 0 for sink in statuses(world).values())
        mirrored = receivers.rows()
        for number, alice in enumerate(lanes):
            tokens = settled(world, alice)
            assert tokens > 0
            subject = ALICE[:-1] + str(number)
            assert receivers.tokens(alice.id) == tokens
            assert receivers.stripe.totals()["totals"][f"cus_{number}"] == tokens
            assert receivers.hook.totals()["totals"][alice.id] == tokens
            assert sum(row["tokens"] for row in mirrored if row["user_id"] == subject) == tokens
        rows = [row["id"] for row in world.rows() if row["status"] == "settled"]
        assert sorted(row["request_id"] for row in mirrored) == rows
        assert sorted(event["id"] for event in receivers.openmeter.events()) == rows
        assert receivers.openmeter.totals()["duplicates"] > 0, f"no kill or fault hit a batch (seed {SEED})"
    finally:
        world.close()


def test_a_receiver_that_stalls_delays_no_request_and_no_stop(folder: Path, receivers: Receivers) -> None:
    world = receivers.world(folder, "openmeter", "webhook")
    try:
        alice = world.customer()
        receivers.openmeter.tell("POST", "faults", kind="stall", times=0)
        receivers.hook.tell("POST", "faults", kind="stall", times=0)
        assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat()).status == 200
        until(lambda: statuses(world)["openmeter"]["pending"] == 1, "a batch on its way")
        started = time.monotonic()
        for _ in range(20):
            assert ask(world, "POST", "/v1/chat/completions", key=alice.key, body=chat()).status == 200
        assert time.monotonic() - started < 5
        started = time.monotonic()
        assert world.daemon.program.stop() == 0
        assert time.monotonic() - started < 5
        receivers.heal()
        world.daemon.start()
        caught_up(world, "openmeter", "webhook")
        assert receivers.tokens(alice.id) == settled(world, alice)
        assert receivers.hook.totals()["totals"][alice.id] == settled(world, alice)
    finally:
        world.close()


# --- what an operator sees and does ---------------------------------------------------------------------------


@pytest.fixture
def metered(folder: Path, receivers: Receivers) -> Iterator[World]:
    """A daemon that reports to OpenMeter and to a webhook."""
    world = receivers.world(folder, "openmeter", "webhook")
    yield world
    world.close()


def spend(world: World, customer: Customer, times: int = 1) -> list[str]:
    """So many requests; their ids."""
    for _ in range(times):
        assert ask(world, "POST", "/v1/chat/completions", key=customer.key, body=chat()).status == 200
    return [row["id"] for row in world.rows(customer)]


def test_dead_letters_are_seen_everywhere_and_end_when_they_are_retried(metered: World, receivers: Receivers) -> None:
    shell = operator_of(metered)
    alice, bob = metered.customer(), metered.customer(name="bob")
    receivers.openmeter.tell("POST", "poison", subjects=[bob.id])
    spend(metered, alice, 3)
    (dead,) = spend(metered, bob)
    spend(metered, alice, 2)
    caught_up(metered, "openmeter", "webhook")

    told = {sink["sink"]: sink for sink in shell.json("meters", "status")}
    assert [letter["id"] for letter in told["openmeter"]["dead"]] == [dead]
    assert (told["openmeter"]["ok"], told["webhook"]["ok"], told["webhook"]["dead"]) == (False, True, [])
    shown = shell.run("meters", "status")[0]
    assert "openmeter: 0 requests behind, 1 dead letters\n" in shown
    assert f"  {dead}  status 400: " in shown
    assert "openmeter: 0 requests behind, 1 dead letters\n" in shell.run("check")[0]
    ready = ask(metered, "GET", "/readyz")
    assert (ready.status, ready.json()["ready"], ready.json()["degraded"]) == (200, True, True)
    assert ready.json()["meters"]["openmeter"]["dead_letters"] == 1
    metrics = ask(metered, "GET", "/metrics").data.decode()
    assert 'goosestack_meter_dead_letters{sink="openmeter"} 1.0\n' in metrics
    assert 'goosestack_meter_lag_rows{sink="webhook"} 0.0\n' in metrics
    assert '"kind":"dead_letter"' in metered.daemon.program.text()

    receivers.openmeter.tell("DELETE", "poison")
    assert shell.run("meters", "retry", "openmeter", dead)[0] == "1 dead letters of openmeter are sent again\n"
    caught_up(metered, "openmeter")
    assert receivers.tokens(bob.id) == settled(metered, bob)
    assert ask(metered, "GET", "/readyz").json()["degraded"] is False


def test_a_receiver_that_is_down_degrades_and_is_tried_at_once_when_told(metered: World, receivers: Receivers) -> None:
    shell, alice = operator_of(metered), metered.customer()
    receivers.openmeter.tell("POST", "faults", kind="status", status=429, retry_after="3000", times=0)
    spend(metered, alice, 2)
    until(lambda: statuses(metered)["openmeter"]["failures"], "a failure")
    shown = shell.run("meters", "status")[0]
    assert "openmeter: 2 requests behind, " in shown and "waits until 20" in shown and "status 429" in shown
    assert '"kind":"meter","sink":"openmeter","what":"status 429: a fault was ordered"' in metered.daemon.program.text()
    receivers.heal()
    assert shell.json("meters", "retry", "openmeter") == {"sink": "openmeter", "on": True, "retried": 0}
    caught_up(metered, "openmeter")
    assert receivers.tokens(alice.id) == settled(metered, alice)


def test_a_receiver_that_has_lost_everything_gets_it_again(metered: World, receivers: Receivers) -> None:
    shell, alice = operator_of(metered), metered.customer()
    ids = spend(metered, alice, 4)
    caught_up(metered, "openmeter", "webhook")
    port = receivers.openmeter.port
    receivers.openmeter.program.stop(signal.SIGKILL)
    receivers.openmeter.start(port)
    assert receivers.openmeter.totals()["events"] == 0
    assert shell.json("meters", "replay", "openmeter", "--since", "2026-01-01", "--force")["rows"] == 4
    caught_up(metered, "openmeter")
    assert [event["id"] for event in receivers.openmeter.events()] == ids
    assert receivers.hook.totals()["requests"] == 4, "the other sink was not asked again"
    told = shell.refused("meters", "replay", "openmeter", "--since", "2026-01-01")
    assert told.startswith("openmeter may have forgotten ids from before ")
    wrong = shell.run("meters", "replay", "openmeter", "--since", "yesterday", expect=2)[1]
    assert "Invalid value for --since: yesterday is no date as 2026-12-31" in wrong


def test_after_a_restore_it_is_in_doubt_what_the_backup_knows_not_to_be_reported(
    metered: World, receivers: Receivers
) -> None:
    shell, alice = operator_of(metered), metered.customer()
    reported = spend(metered, alice, 2)
    caught_up(metered, "openmeter", "webhook")
    receivers.openmeter.tell("POST", "faults", kind="status", status=503, times=0)
    waiting = spend(metered, alice, 2)[2:]
    shell.run("backup", "copy.db")
    receivers.heal()
    shell.run("meters", "retry", "openmeter")
    caught_up(metered, "openmeter", "webhook")
    assert metered.daemon.program.stop() == 0
    shell.run("restore", "copy.db")
    with closing(sqlite3.connect(metered.daemon.db)) as db:
        (noted,) = db.execute("SELECT settled_seq, known_at FROM restores").fetchall()
    assert noted == (4, metered.rows(alice)[-1]["ended_at"])
    metered.daemon.start()
    caught_up(metered, "openmeter", "webhook")
    assert sorted(event["id"] for event in receivers.openmeter.events()) == sorted([*reported, *waiting])
    assert receivers.openmeter.totals()["duplicates"] == 2


def test_stripe_is_not_replayed(folder: Path, receivers: Receivers) -> None:
    world = receivers.world(folder, "stripe_meter")
    try:
        until(lambda: "stripe_meter" in statuses(world), "its cursor")
        told = operator_of(world).refused("meters", "replay", "stripe_meter", "--since", "2026-01-01")
        assert told == "stripe_meter cannot be replayed: it would bill again what it has"
    finally:
        world.close()


def test_the_commands_work_without_a_daemon(metered: World, receivers: Receivers) -> None:
    shell, bob = operator_of(metered), metered.customer(name="bob")
    receivers.openmeter.tell("POST", "poison", subjects=[bob.id])
    first, second = spend(metered, bob, 2)
    caught_up(metered, "openmeter", "webhook")
    assert metered.daemon.program.stop() == 0
    (told,) = (sink for sink in shell.json("meters", "status") if sink["sink"] == "openmeter")
    assert sorted(letter["id"] for letter in told["dead"]) == [first, second]
    assert shell.json("meters", "discard", "openmeter", first) == {"sink": "openmeter", "discarded": first}
    assert shell.refused("meters", "discard", "openmeter", first) == (
        f"openmeter has no dead letter {first}, and nothing of that id is waiting"
    )
    assert shell.json("meters", "retry", "openmeter") == {"sink": "openmeter", "on": True, "retried": 1}
    receivers.openmeter.tell("DELETE", "poison")
    metered.daemon.start()
    caught_up(metered, "openmeter")
    assert [event["id"] for event in receivers.openmeter.events()] == [second]


@pytest.mark.parametrize("runs", [True, False], ids=["in the daemon", "on the file"])
def test_a_sink_that_was_turned_off_is_shown_as_off(metered: World, receivers: Receivers, runs: bool) -> None:
    bob = metered.customer(name="bob")
    receivers.openmeter.tell("POST", "poison", subjects=[bob.id])
    spend(metered, bob)
    caught_up(metered, "openmeter", "webhook")
    assert metered.daemon.program.stop() == 0
    metered.daemon.env["METERS"] = "webhook"
    if runs:
        metered.daemon.start()
    shell = operator_of(metered)
    assert {sink["sink"]: sink["on"] for sink in shell.json("meters", "status")} == {
        "openmeter": False,
        "webhook": True,
    }
    for command in (("meters", "status"), ("check",)):
        assert "openmeter (off): 0 requests behind, 1 dead letters\n" in shell.run(*command)[0]
    told = shell.run("meters", "retry", "openmeter")[0]
    assert told == "1 dead letters of openmeter are sent again, once METERS names it again\n"


def test_a_sink_that_was_never_on_has_nothing_to_retry(folder: Path) -> None:
    shell = Operator(folder, {"DB_PATH": str(folder / "goosestack.db")})
    shell.json("user", "create", "alice@example.com")
    assert shell.json("meters", "status") == []
    assert shell.json("check")["meters"] == []
    assert "was never turned on" in shell.refused("meters", "retry", "webhook")


# --- where the answers come from ------------------------------------------------------------------------------


@pytest.fixture
def router_key() -> str:
    """What the routers are asked with: each format of the upstream behind them has a key of its own."""
    return OPENAI_KEY


@pytest.fixture
def routed(folder: Path, receivers: Receivers, router_key: str) -> Iterator[World]:
    """A daemon that sells through OpenRouter and LiteLLM, and reports the cost."""
    (folder / "prices.toml").write_text(
        '[models.gpt-4o-mini]\nprovider = "litellm"\n[models.claude-haiku-4-5]\nprovider = "litellm"\n'
    )
    world = receivers.world(folder, "openmeter")
    assert world.daemon.program.stop() == 0
    router = f"{world.upstream.url}/v1"
    world.daemon.env |= {
        "PRICES_FILE": str(folder / "prices.toml"),
        "OPENROUTER_API_KEY": router_key,
        "OPENROUTER_BASE_URL": router,
        "LITELLM_API_KEY": router_key,
        "LITELLM_BASE_URL": router,
        "MARKUP_PERCENT": "50",
    }
    world.daemon.start()
    yield world
    world.close()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("provider", "model"), [("openrouter", "openai/gpt-4o-mini"), ("litellm", "gpt-4o-mini")])
def test_what_a_router_charged_is_what_is_metered(
    routed: World, receivers: Receivers, provider: str, model: str, stream: bool
) -> None:
    alice = routed.customer()
    tokens = {"prompt_tokens": 1_000, "completion_tokens": 200}
    if provider == "litellm" and not stream:
        question = directed("Hi", usage=tokens, headers={"x-litellm-response-cost": "0.00123"})
    else:
        question = directed("Hi", usage={**tokens, "cost": 0.00123})
    reply = ask(
        routed, "POST", "/v1/chat/completions", key=alice.key,
        body=chat(question, model=model, max_tokens=5_000, stream=stream),
    )  # fmt: skip
    assert reply.status == 200, reply.data
    (row,) = routed.ended_rows(alice, 1)
    assert (row["provider"], row["cost_nanos"]) == (provider, 1_845_000)
    caught_up(routed, "openmeter")
    (event,) = receivers.openmeter.events()
    told = {name: event["data"][name] for name in ("provider", "model", "total_tokens", "cost_usd", "payer")}
    assert told == {
        "provider": provider,
        "model": row["model"],
        "total_tokens": "1200",
        "cost_usd": "0.001845",
        "payer": "credits",
    }


@pytest.mark.parametrize(("provider", "prefix"), [("openrouter", "{author}/"), ("litellm", "")])
@pytest.mark.parametrize(
    ("path", "author", "model", "cap", "router_key"),
    [
        ("/v1/messages", "anthropic", "claude-haiku-4{dot}5", "max_tokens", ANTHROPIC_KEY),
        ("/v1/responses", "openai", "gpt-4o-mini", "max_output_tokens", OPENAI_KEY),
    ],
    ids=["messages", "responses"],
)
def test_a_routers_other_formats_are_metered_at_what_it_charged(
    routed: World, receivers: Receivers, provider: str, prefix: str, path: str, author: str, model: str, cap: str
) -> None:
    alice = routed.customer()
    name = prefix.format(author=author) + model.format(dot="." if provider == "openrouter" else "-")
    question = directed("Hi", usage={"input_tokens": 1_000, "output_tokens": 200, "cost": 0.00123})
    asked = {"input": question} if path == "/v1/responses" else {"messages": [{"role": "user", "content": question}]}
    reply = ask(routed, "POST", path, key=alice.key, body={"model": name, **asked, cap: 5_000})
    assert reply.status == 200, reply.data
    (row,) = routed.ended_rows(alice, 1)
    assert (row["provider"], row["input_tokens"], row["output_tokens"]) == (provider, 1_000, 200)
    assert row["cost_nanos"] == 1_845_000, "what the router said, and the markup"
    caught_up(routed, "openmeter")
    (event,) = receivers.openmeter.events()
    told = {name: event["data"][name] for name in ("provider", "wire", "total_tokens", "cost_nanos")}
    assert told == {"provider": provider, "wire": row["wire"], "total_tokens": "1200", "cost_nanos": "1845000"}


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"METERS": "nothing"}, "METERS must list, each once, some of stripe_meter, openmeter, supabase, webhook"),
        ({"METERS": "webhook,webhook"}, "METERS must list, each once, some of"),
        ({"METERS": "openmeter"}, "METERS has openmeter, which needs OPENMETER_URL"),
        ({"METERS": "stripe_meter"}, "METERS has stripe_meter, which needs STRIPE_SECRET_KEY"),
        (
            {"METERS": "stripe_meter", "STRIPE_SECRET_KEY": "sk_test_canary00"},
            "METERS has stripe_meter, which needs STRIPE_METER_EVENT",
        ),
        ({"METERS": "supabase"}, "METERS has supabase, which needs SUPABASE_URL"),
        ({"METERS": "webhook"}, "METERS has webhook, which needs METER_WEBHOOK_URL"),
        (
            {"METERS": "webhook", "METER_WEBHOOK_URL": "https://example.com/usage"},
            "METERS has webhook, which needs METER_WEBHOOK_SECRET",
        ),
        (
            {"METERS": "openmeter", "OPENMETER_URL": "http://127.0.0.1:9", "OPENMETER_SUBJECT": "supabase_id"},
            "METERS has openmeter, which needs SUPABASE_URL for OPENMETER_SUBJECT=supabase_id",
        ),
        ({"METER_WEBHOOK_SECRET": "canary"}, "METER_WEBHOOK_SECRET must be whsec_ and the base64 of 24 to 64 bytes"),
        ({"METER_WEBHOOK_SECRET": "whsec_Y2FuYXJ5"}, "METER_WEBHOOK_SECRET must be whsec_ and the base64"),
        ({"STRIPE_METER_VALUE": "requests"}, "STRIPE_METER_VALUE must be one of tokens, cost"),
        ({"STRIPE_METER_PAYERS": "everybody"}, "STRIPE_METER_PAYERS must list, each once, some of credits"),
        ({"STRIPE_METER_EVENT": "two words"}, "STRIPE_METER_EVENT must be 1 to 100 letters"),
        ({"OPENMETER_SUBJECT": "email"}, "OPENMETER_SUBJECT must be one of user_id, stripe_customer_id, supabase_id"),
        ({"SUPABASE_USAGE_TABLE": "usage; drop"}, "SUPABASE_USAGE_TABLE must name tables and columns as a_b1"),
        ({"SUPABASE_USAGE_COLUMNS": "id,x=nothing"}, "SUPABASE_USAGE_COLUMNS fills x with nothing, which is none of"),
        ({"SUPABASE_USAGE_COLUMNS": "id,id"}, "SUPABASE_USAGE_COLUMNS has the column id twice"),
        ({"SUPABASE_USAGE_COLUMNS": "model"}, "SUPABASE_USAGE_COLUMNS must fill one column with id"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_metering_that_makes_no_sense_is_refused(folder: Path, settings: dict[str, str], sentence: str) -> None:
    client = Client()
    try:
        with pytest.raises(Refusal) as refused:
            wiring.sinks_of(config.load(settings, folder), client, clock.utc_now)
        assert str(refused.value).startswith(sentence)
        assert "canary" not in str(refused.value)
    finally:
        await client.close()


def test_no_start_with_a_sink_that_lacks_something(folder: Path) -> None:
    assert refusal(folder, {"METERS": "webhook"}) == "METERS has webhook, which needs METER_WEBHOOK_URL"


def test_the_demo_reports_to_nobody(folder: Path) -> None:
    env = bare_environment(PORT="0", METERS="openmeter", OPENMETER_URL="http://127.0.0.1:9")
    program = Program(["goosestack", "serve", "--demo"], env, folder / "demo.out", folder)
    program.wait_for("Stop with Ctrl-C")
    assert program.stop(signal.SIGINT) == 0
    assert '"kind":"meter"' not in program.text()


def test_secrets_of_receivers_are_not_shown(folder: Path) -> None:
    names = ("STRIPE_SECRET_KEY", "METER_WEBHOOK_SECRET", "OPENMETER_TOKEN", "SUPABASE_SERVICE_KEY")
    secrets = dict(zip(names, (STRIPE_KEY, HOOK_SECRET, TOKEN, SERVICE_KEY), strict=True))
    shown = Operator(folder, secrets).json("config")
    assert [shown[name] for name in names] == ["(set)"] * 4
