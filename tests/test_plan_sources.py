"""Plans that a Supabase project says: a claim of its tokens, or a column of a table. The project is a process; what
users can write themselves counts for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from goosestack import plans
from goosestack.accounts import ensure_identity, subject_of
from goosestack.clock import utc_now
from goosestack.errors import StoreUnavailable
from goosestack.http import Client
from goosestack.plan_table import FORGOTTEN_S, Place, PlanTable
from goosestack.store.sqlite import SqliteStore
from goosestack.supabase import PlanClaim
from tests.asking import ask, chat
from tests.project import SERVICE_KEY, Project
from tests.world import World, until

ALICE, CAROL = "a11ce000-0000-4000-8000-000000000001", "ca201000-0000-4000-8000-000000000002"
NOW = "2026-11-21T12:00:00.000Z"
NOV_21, MONTH_END = 1_795_262_400, "2026-12-01T00:00:00.000Z"
"""The 21st of November 2026, noon, in Unix seconds."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("project"))
    yield project
    project.close()


# --- a claim --------------------------------------------------------------------------------------------------


NOTHING: tuple[object, ...] = ("free", "", None, 5, {}, [["pro"]], "Pro", "gold")


class Told:
    """What the operator is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)


def claim(*path: str, warn: Told | None = None) -> PlanClaim:
    return PlanClaim(path, plans.Plans(), Told() if warn is None else warn)


def token(**claims: object) -> dict[str, Any]:
    return {"sub": ALICE, "iat": NOV_21, "exp": NOV_21 + 3600, **claims}


@pytest.mark.parametrize(
    ("said", "plan"),
    [
        ("pro", "pro"),
        (["basic", "pro", "admin"], "pro"),
        *[(nothing, None) for nothing in NOTHING],
    ],
)
def test_a_claim_names_a_plan_or_none(said: object, plan: str | None) -> None:
    read = claim("app_metadata", "plan").read(token(app_metadata={"plan": said}))
    assert (None if read is None else read[0]) == plan


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"app_metadata": None},
        {"app_metadata": "pro"},
        {"app_metadata": []},
        {"user_metadata": {"plan": "pro"}, "app_metadata": {"user_metadata": {"plan": "pro"}}},
        {"plan": "pro", "role": "pro"},
    ],
)
def test_what_stands_elsewhere_says_nothing(claims: dict[str, object]) -> None:
    assert claim("app_metadata", "plan").read(token(**claims)) is None


def test_what_a_token_says_stands_to_the_end_of_its_month_and_as_long_as_the_token() -> None:
    says = claim("user_role")
    assert says.read(token(user_role="pro")) == ("pro", MONTH_END)
    late = token(user_role="pro", iat=NOV_21 + 9 * 86_400 + 43_000, exp=NOV_21 + 9 * 86_400 + 46_600)
    assert says.read(late) == ("pro", "2026-12-01T00:57:10.000Z")
    assert says.read({"user_role": "pro", "exp": 10**30}) == ("pro", "3000-01-01T00:00:00.000Z")


def test_a_name_that_is_no_plan_is_told() -> None:
    told = Told()
    assert claim("user_role", warn=told).read(token(user_role="gold")) is None
    assert told.sentences == ["a token says 'gold', which is no plan"]


def test_a_token_brings_its_plan_and_a_later_one_without_it_takes_nothing_from_the_month(
    project: Project, folder: Path
) -> None:
    world = World.create(
        folder,
        FUNDING="allowance",
        SUPABASE_URL=project.url,
        PLAN_SOURCE="claim:app_metadata.plan",
    )
    try:
        sub = str(uuid4())

        def me(**claims: object) -> Any:
            key = project.token(sub=sub, claims=claims)
            return ask(world, "GET", "/api/me", key=key).json()

        assert me(user_metadata={"plan": "enterprise"})["plan"] == "free"
        assert me(app_metadata={"plan": "basic"}, user_metadata={"plan": "enterprise"})["plan"] == "basic"
        pro = project.token(sub=sub, claims={"app_metadata": {"plan": "pro"}})
        reply = ask(world, "POST", "/v1/chat/completions", key=pro, body=chat())
        assert (reply.status, reply.headers["x-goosestack-payer"]) == (200, "allowance")
        assert me()["plan"] == "pro" and me()["reset"] == plans.month(utc_now()).ends_at
        made = ask(world, "POST", "/v1/keys", key=pro, body={"name": "laptop"}).json()
        assert ask(world, "GET", "/api/me", key=made["api_key"]).json()["plan"] == "pro"
    finally:
        world.close()


# --- a table --------------------------------------------------------------------------------------------------


class Gate:
    """A table's reader, with a database and a clock of its own."""

    def __init__(self, folder: Path, project: Project) -> None:
        self.store, self.client, self.told, self.clock = SqliteStore(folder / "x.db"), Client(), Told(), 1000.0
        self.issuer, self.now = f"{project.url}/auth/v1", NOW
        self.table = PlanTable(
            store=self.store,
            client=self.client,
            url=project.url,
            key=SERVICE_KEY,
            place=Place("profiles", "plan", "id"),
            plans=plans.Plans(),
            every_s=60,
            now=lambda: self.now,
            warn=self.told,
            clock=lambda: self.clock,
        )

    async def plan(self, subject: str) -> str:
        """The plan of a user of the project, as a request sees it."""
        caller = await self.store.write(ensure_identity, self.issuer, subject, "x", NOW)
        await self.table.look(caller)
        return self.store.peek(plans.of_user, plans.Plans(), caller.user_id, self.now).plan.name

    async def close(self) -> None:
        await self.client.close()
        await self.store.close()


def fill(project: Project, **plan_of: object) -> None:
    rows = [{"id": subject, "plan": plan} for subject, plan in plan_of.items()]
    project.tell("PUT", "tables/profiles", columns={"id": "uuid", "plan": "text"}, unique=[["id"]], rows=rows)
    project.tell("DELETE", "faults")
    project.tell("DELETE", "requests")


def asked(project: Project) -> int:
    return len(project.asked("/rest/v1/profiles"))


async def test_a_table_is_asked_once_in_a_while_and_never_twice_at_once(project: Project, folder: Path) -> None:
    fill(project, **{ALICE: "pro"})
    gate = Gate(folder, project)
    try:
        assert await asyncio.gather(*(gate.plan(ALICE) for _ in range(20))) == ["pro"] * 20
        assert await gate.plan(CAROL) == "free"
        assert asked(project) == 2
        gate.clock += 59
        assert await gate.plan(ALICE) == "pro" and asked(project) == 2
    finally:
        await gate.close()


async def test_what_has_changed_is_seen_without_any_request_waiting_for_it(project: Project, folder: Path) -> None:
    fill(project, **{CAROL: "basic"})
    gate = Gate(folder, project)
    try:
        assert await gate.plan(CAROL) == "basic"
        fill(project, **{CAROL: "enterprise"})
        project.tell("POST", "faults", path="/rest/v1/profiles", status=None, stall_s=0.3, times=1)
        gate.clock += 61
        started = time.monotonic()
        assert await gate.plan(CAROL) == "basic"
        assert time.monotonic() - started < 0.25
        while await gate.plan(CAROL) == "basic":
            await asyncio.sleep(0.01)
        assert await gate.plan(CAROL) == "enterprise"
        fill(project, **{CAROL: "free"})  # a downgrade waits for the next month
        gate.clock += FORGOTTEN_S
        assert await gate.plan(CAROL) == "enterprise" and asked(project) == 1
    finally:
        await gate.close()


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 404}, {"drop": True}, {"status": 401}])
async def test_while_it_cannot_be_asked_what_is_known_stands(
    project: Project, folder: Path, fault: dict[str, Any]
) -> None:
    fill(project, **{ALICE: "pro"})
    gate = Gate(folder, project)
    try:
        assert await gate.plan(ALICE) == "pro"
        project.tell("POST", "faults", path="/rest/v1/profiles", times=0, **fault)
        gate.clock += FORGOTTEN_S
        assert await gate.plan(ALICE) == "pro"
        assert await gate.plan(CAROL) == "free"
        assert len(gate.told.sentences) == 2
        assert all(told.startswith("the plan table cannot be read: ") for told in gate.told.sentences)
        assert SERVICE_KEY not in "".join(gate.told.sentences)
    finally:
        await gate.close()


async def test_a_plan_in_the_table_that_is_none_is_told(project: Project, folder: Path) -> None:
    fill(project, **{ALICE: "gold", CAROL: None})
    gate = Gate(folder, project)
    try:
        assert [await gate.plan(subject) for subject in (ALICE, CAROL)] == ["free", "free"]
        assert gate.told.sentences == ["the plan table says 'gold', which is no plan"]
    finally:
        await gate.close()


async def test_a_new_month_begins_with_the_plan_that_the_table_says_and_not_with_the_free_one(
    project: Project, folder: Path
) -> None:
    fill(project, **{ALICE: "pro"})
    gate = Gate(folder, project)
    try:
        gate.now = "2026-11-30T23:59:59.900Z"
        assert await gate.plan(ALICE) == "pro"
        gate.now, gate.clock = "2026-12-01T00:00:00.000Z", gate.clock + 0.1
        assert await asyncio.gather(*(gate.plan(ALICE) for _ in range(5))) == ["pro"] * 5
        assert asked(project) == 2
        fill(project)  # it says no more: that counts from the next month on
        gate.clock += FORGOTTEN_S
        assert await gate.plan(ALICE) == "pro"
        gate.now = "2027-01-01T00:00:00.000Z"
        assert await gate.plan(ALICE) == "free"
    finally:
        await gate.close()


async def test_a_month_that_begins_while_it_cannot_be_asked_has_its_plan_as_soon_as_it_can(
    project: Project, folder: Path
) -> None:
    fill(project, **{ALICE: "pro"})
    gate = Gate(folder, project)
    try:
        assert await gate.plan(ALICE) == "pro"
        project.tell("POST", "faults", path="/rest/v1/profiles", times=1, status=500)
        gate.now = "2027-01-01T00:00:00.000Z"
        assert await gate.plan(ALICE) == "free"
        gate.clock += FORGOTTEN_S
        assert await gate.plan(ALICE) == "pro"
    finally:
        await gate.close()


async def test_a_strange_plan_is_told_once_however_many_have_it(project: Project, folder: Path) -> None:
    fill(project, **{ALICE: "gold", CAROL: "gold"})
    gate = Gate(folder, project)
    try:
        for _ in range(3):
            assert [await gate.plan(subject) for subject in (ALICE, CAROL)] == ["free", "free"]
            gate.clock += FORGOTTEN_S
        assert asked(project) == 6 and len(gate.told.sentences) == 1
    finally:
        await gate.close()


class Full(SqliteStore):
    """A store that cannot be written to."""

    def write(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        if verb is plans.sign_in_said:
            raise StoreUnavailable
        return super().write(verb, *args, **kwargs)


async def test_what_cannot_be_written_down_is_not_told_as_a_table_that_cannot_be_read(
    project: Project, folder: Path
) -> None:
    fill(project, **{ALICE: "pro"})
    gate = Gate(folder, project)
    gate.store.__class__ = Full
    try:
        assert await gate.plan(ALICE) == "free"
        (told,) = gate.told.sentences
        assert told.startswith("the plan table cannot be written down: ")
    finally:
        await gate.close()


async def test_whoever_is_not_of_the_project_is_not_asked_about(project: Project, folder: Path) -> None:
    fill(project)
    gate = Gate(folder, project)
    try:
        caller = await gate.store.write(ensure_identity, "https://elsewhere", ALICE, "x", NOW)
        assert gate.store.peek(subject_of, gate.issuer, caller.user_id) is None
        await gate.table.look(caller)
        assert asked(project) == 0
    finally:
        await gate.close()


def test_a_gateway_reads_the_table_for_tokens_and_for_keys(project: Project, folder: Path) -> None:
    sub = str(uuid4())
    fill(project, **{sub: "pro"})
    world = World.create(
        folder,
        FUNDING="allowance",
        SUPABASE_URL=project.url,
        SUPABASE_SERVICE_KEY=SERVICE_KEY,
        PLAN_SOURCE="table:profiles.plan",
        PLAN_CACHE_S="1",
    )
    try:
        access = project.token(sub=sub)
        reply = ask(world, "POST", "/v1/chat/completions", key=access, body=chat())
        assert (reply.status, int(reply.headers["x-goosestack-tokens-remaining"])) == (200, 2_000_000 - 24)
        key = ask(world, "POST", "/v1/keys", key=access, body={}).json()["api_key"]
        fill(project, **{sub: "enterprise"})
        until(lambda: ask(world, "GET", "/api/me", key=key).json()["plan"] == "enterprise", "the table to be read")
    finally:
        world.close()
