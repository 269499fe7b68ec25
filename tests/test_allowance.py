"""Plans as their users meet them: tokens for a month, what comes when they are used up, and what the operator does."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI, RateLimitError

from goosestack import plans
from goosestack.clock import utc_now
from tests.asking import Reply, ask, chat, connect, directed, opened
from tests.crowd import all_at_once
from tests.shell import operator_of
from tests.world import Customer, World, until

TABLE = """
[free]
tokens_per_month = 5_000
models = ["gpt-4o-mini", "gpt-5.5", "claude-*"]
[basic]
tokens_per_month = 20_000
[pro]
tokens_per_month = 50_000
overage_cents = 4
[busy]
tokens_per_month = 5_000
requests_per_minute = 3
[narrow]
tokens_per_month = 5_000
in_flight = 1
"""


def create(folder: Path, funding: str) -> World:
    (folder / "plans.toml").write_text(TABLE)
    return World.create(folder, FUNDING=funding, PLANS_FILE=str(folder / "plans.toml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway whose callers have plans, and nothing else that pays."""
    world = create(tmp_path_factory.mktemp("plans"), "allowance,overage")
    yield world
    world.close()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that asks the plan first, then the credits."""
    world = create(tmp_path_factory.mktemp("mixed"), "allowance,credits")
    yield world
    world.close()


def carol_of(world: World, cents: int = 0) -> Customer:
    """A new user on the free plan."""
    return world.customer(cents, name="carol")


def buy(world: World, carol: Customer, question: str = "Hello", **body: object) -> Reply:
    return ask(world, "POST", "/v1/chat/completions", key=carol.key, body=chat(question, **body))


def use(world: World, carol: Customer, tokens: int, model: str = "gpt-4o-mini") -> Reply:
    """A request that uses so many tokens."""
    usage = {"prompt_tokens": 10, "completion_tokens": tokens - 10}
    return buy(world, carol, question=directed("Go", usage=usage), max_completion_tokens=tokens - 10, model=model)


def error_of(reply: Reply) -> str:
    return str(reply.json()["error"]["message"])


def me(world: World, carol: Customer) -> Any:
    return ask(world, "GET", "/api/me", key=carol.key).json()


def assign(world: World, carol: Customer, plan: str, until_: str | None = None) -> Any:
    return world.verb("plan_assign", user=carol.id, plan=plan, until=until_)


def entries(world: World, carol: Customer) -> list[tuple[str, int]]:
    """What was granted: account and amount, the earliest first."""
    db = sqlite3.connect(f"file:{world.daemon.db}?mode=ro", uri=True)
    try:
        return db.execute(
            "SELECT unit || ' ' || a.ref, amount FROM entries e JOIN accounts a ON a.id = account_id"
            " WHERE user_id = ? ORDER BY e.seq",
            (carol.id,),
        ).fetchall()
    finally:
        db.close()


def month() -> str:
    return plans.month(utc_now()).ref


def month_end() -> str:
    return plans.month(utc_now()).ends_at


# --- an allowance ---------------------------------------------------------------------------------------------


def test_a_plan_pays_with_tokens_of_the_month_which_are_granted_by_one_entry(world: World) -> None:
    carol = carol_of(world)
    assert entries(world, carol) == []
    reply = use(world, carol, 400)
    assert reply.status == 200, reply.data
    told = {
        name: reply.headers[f"x-goosestack-{name}"] for name in ("payer", "cost-tokens", "tokens-remaining", "reset")
    }
    assert told == {"payer": "allowance", "cost-tokens": "400", "tokens-remaining": "4600", "reset": month_end()}
    assert (reply.headers["x-goosestack-cost-usd"], reply.headers["x-goosestack-cost-cents"]) == ("0", "0")
    assert use(world, carol, 100).status == 200
    assert entries(world, carol) == [(f"tokens {month()}", 5_000)]
    rows = world.ended_rows(carol, 2)
    assert [(row["unit"], row["charged"], row["billed"], row["cost_cents"]) for row in rows] == [
        ("tokens", 400, 400, 0),
        ("tokens", 100, 100, 0),
    ]
    assert all(row["cost_nanos"] > 0 for row in rows)  # what it would have cost is known all the same


def test_input_counts_with_what_came_from_a_cache_and_output_counts_once(world: World) -> None:
    carol = carol_of(world)
    usage = {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens": 40}
    assert buy(world, carol, question=directed("Go" * 300, usage=usage), max_completion_tokens=50).status == 200
    assert me(world, carol)["used"] == 140
    anthropic = {
        "input_tokens": 10,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 30,
        "output_tokens": 5,
    }
    body = {"model": "claude-haiku-4-5", "max_tokens": 50,
            "messages": [{"role": "user", "content": directed("Go" * 300, usage=anthropic)}]}  # fmt: skip
    assert ask(world, "POST", "/v1/messages", key=carol.key, body=body).status == 200
    assert me(world, carol)["used"] == 140 + 65


def test_me_and_usage_say_what_is_left(world: World) -> None:
    carol = carol_of(world)
    fresh = me(world, carol)
    assert {name: fresh[name] for name in ("plan", "quota", "used", "held", "remaining", "reset", "overage")} == {
        "plan": "free", "quota": 5_000, "used": 0, "held": 0, "remaining": 5_000, "reset": month_end(), "overage": None,
    }  # fmt: skip
    assert fresh["limits"]["models"] == ["gpt-4o-mini", "gpt-5.5", "claude-*"]
    use(world, carol, 400)
    found = ask(world, "GET", "/v1/usage", key=carol.key).json()
    assert found["allowance"] == {name: me(world, carol)[name] for name in found["allowance"]}
    assert (found["allowance"]["used"], found["allowance"]["remaining"]) == (400, 4_600)
    assert [row["payer"] for row in found["recent_requests"]] == ["allowance"]
    slow = chat(directed("Hi", words=500, delay_ms=20), stream=True, max_completion_tokens=1_000)
    with opened(world, "/v1/chat/completions", key=carol.key, body=slow):
        (hold,) = ask(world, "GET", "/v1/holds", key=carol.key).json()["holds"]
        assert hold["held_usd"] is None and hold["held_tokens"] == me(world, carol)["held"] > 1_000
        assert (hold["payer"], hold["model"]) == ("allowance", "gpt-4o-mini")


def test_what_is_used_up_is_a_429_that_no_sdk_repeats_and_says_when_there_is_more(world: World) -> None:
    carol = carol_of(world)
    assert use(world, carol, 4_000).status == 200
    start = world.upstream.mark()
    reply = use(world, carol, 2_000)
    error = reply.json()["error"]
    assert (reply.status, error["type"], error["code"]) == (429, "insufficient_quota", "quota_exceeded")
    assert reply.headers["x-should-retry"] == "false" and reply.headers["retry-after"] is None
    assert reply.headers["x-goosestack-reset"] == month_end() and month_end() in error["message"]
    assert "1000 are left" in error["message"] and "output tokens are affordable" in error["message"]
    assert world.upstream.dispatches(start) == []
    long = {"model": "claude-haiku-4-5", "max_tokens": 3_000, "messages": [{"role": "user", "content": "Hi"}]}
    theirs = ask(world, "POST", "/v1/messages", key=carol.key, body=long)
    assert (theirs.status, theirs.json()["error"]["type"]) == (429, "rate_limit_error")


def test_the_openai_sdk_asks_once(world: World) -> None:
    carol, start = carol_of(world), world.upstream.mark()
    with OpenAI(base_url=f"{world.url}/v1", api_key=carol.key) as client, pytest.raises(RateLimitError) as error:
        client.chat.completions.create(
            model="gpt-4o-mini", max_tokens=6_000, messages=[{"role": "user", "content": "Hello"}]
        )
    assert error.value.code == "quota_exceeded"
    assert world.upstream.dispatches(start) == []


def test_without_a_cap_the_answer_is_as_long_as_the_rest_allows(world: World) -> None:
    carol = carol_of(world)
    reply = buy(world, carol)
    assert reply.status == 200
    cap, (row,) = int(reply.headers["x-goosestack-output-cap"]), world.ended_rows(carol, 1)
    assert row["held"] == 5_000 and 4_500 < cap < 5_000


def test_a_model_that_the_plan_does_not_have_is_a_403(world: World) -> None:
    carol, start = carol_of(world), world.upstream.mark()
    reply = buy(world, carol, model="gpt-5.4-mini")
    assert (reply.status, reply.json()["error"]["code"]) == (403, "model_not_in_plan")
    assert "Your plan (free) does not include `gpt-5.4-mini`" in reply.json()["error"]["message"]
    assert world.upstream.dispatches(start) == [] == world.rows(carol)
    assign(world, carol, "basic")
    assert buy(world, carol, model="gpt-5.4-mini", max_completion_tokens=500).status == 200


def test_which_models_a_plan_has_is_asked_again_where_the_hold_is_made(world: World) -> None:
    carol, start = carol_of(world), world.upstream.mark()
    assign(world, carol, "basic")
    body = json.dumps(chat(model="gpt-5.4-mini", max_completion_tokens=50)).encode()
    with closing(connect(world)) as connection:
        connection.putrequest("POST", "/v1/chat/completions")
        for name, value in (("Authorization", f"Bearer {carol.key}"), ("Content-Type", "application/json")):
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Expect", "100-continue")  # which is answered once the caller is known, and the body read
        connection.endheaders()
        assert connection.sock.recv(1024).startswith(b"HTTP/1.1 100")
        assign(world, carol, "basic", "2020-01-01T00:00:00.000Z")
        connection.send(body)
        reply = connection.getresponse()
        assert (reply.status, json.loads(reply.read())["error"]["code"]) == (403, "model_not_in_plan")
    assert world.upstream.dispatches(start) == [] == world.rows(carol)


def test_of_200_at_once_exactly_as_many_succeed_as_the_rest_covers(world: World) -> None:
    carol = carol_of(world)
    question = 'demo:{"usage":{"prompt_tokens":200,"completion_tokens":700},"hang_s":0.3}'
    body = json.dumps(chat(question, max_completion_tokens=700)).encode()
    first = asyncio.run(all_at_once(world, carol, body, 1))
    ((quote, used),) = [(row["quote"], row["charged"]) for row in world.ended_rows(carol, 1)]
    covered = (5_000 - used) // quote
    assert first == {200: 1} and used == 900 and (5_000 - used - covered * used) < quote  # settled ones make no room
    mark = world.upstream.mark()
    answers = asyncio.run(all_at_once(world, carol, body, 200))
    assert answers == Counter({429: 200 - covered, 200: covered})
    assert len(world.upstream.dispatches(mark)) == covered
    rows = world.ended_rows(carol, 1 + covered)
    assert sum(row["charged"] for row in rows) == me(world, carol)["used"] == (1 + covered) * 900


# --- plans that change ----------------------------------------------------------------------------------------


def test_an_upgrade_adds_the_difference_at_the_next_request(world: World) -> None:
    carol = carol_of(world)
    assert use(world, carol, 4_500).status == 200
    assert use(world, carol, 2_000).status == 429
    assert operator_of(world).json("plans", "assign", carol.id, "basic")["remaining"] == 15_500
    assert use(world, carol, 2_000).status == 200
    assert entries(world, carol) == [(f"tokens {month()}", 5_000), (f"tokens {month()}", 15_000)]
    assert (me(world, carol)["plan"], me(world, carol)["used"]) == ("basic", 6_500)


def test_a_downgrade_takes_nothing_from_this_month(world: World) -> None:
    carol = carol_of(world)
    assign(world, carol, "basic")
    assert use(world, carol, 100).status == 200
    assigned = assign(world, carol, "free")
    assert (assigned["plan"], assigned["until"], assigned["remaining"]) == ("basic", month_end(), 19_900)
    assert use(world, carol, 7_000).status == 200


def test_a_plan_that_was_given_until_a_time_that_is_past_ends_at_once(world: World) -> None:
    carol, operator = carol_of(world), operator_of(world)
    assign(world, carol, "basic")
    assert use(world, carol, 1_000).status == 200
    shown = operator.json("plans", "assign", carol.id, "basic", "--until", "2020-01-01")
    assert (shown["plan"], shown["used"], shown["remaining"]) == ("free", 1_000, 4_000)
    assert use(world, carol, 6_000).status == 429


def test_a_plan_that_lapses_leaves_what_the_free_one_has(world: World) -> None:
    carol = carol_of(world)
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat(timespec="milliseconds")[:-6] + "Z"
    assign(world, carol, "basic", soon)
    assert use(world, carol, 4_400).status == 200
    until(lambda: me(world, carol)["plan"] == "free", "the plan to lapse")
    assert me(world, carol)["remaining"] == 600
    assert use(world, carol, 1_000).status == 429
    assert use(world, carol, 300).status == 200
    world.check()


def test_a_subscriptions_period_has_an_account_of_its_own(world: World) -> None:
    """What it paid for is written down by the operator's hand here, as the fold of a subscription would."""
    carol = carol_of(world)
    assert use(world, carol, 4_000).status == 200
    world.daemon.program.stop()
    db, ends = sqlite3.connect(world.daemon.db), "2999-01-15T10:00:00.000Z"
    paid = plans.Paid(ends, ends, ends)
    table = plans.load('[basic]\ntokens_per_month = 20_000\nstripe_prices = ["price_basic"]\n')
    with db:
        plans.set_from_subscription(db, table, carol.id, "sub_1", {"price_basic": paid}, utc_now())
    db.close()
    world.daemon.start()
    period = plans.own_period(paid, utc_now())
    assert (me(world, carol)["plan"], me(world, carol)["used"], me(world, carol)["reset"]) == (
        "basic",
        0,
        period.ends_at,
    )
    assert use(world, carol, 8_000).status == 200
    assert entries(world, carol) == [(f"tokens {month()}", 5_000), (f"tokens {period.ref}", 20_000)]


def test_pro_until_brings_a_key_and_no_plan(world: World) -> None:
    bob = world.customer(0, name="bob", pro=True)
    assert me(world, bob)["plan"] == "free"
    assert me(world, bob)["user"]["pro_until"] is not None


def test_a_plan_may_say_how_often_and_how_many_at_once(world: World) -> None:
    busy, narrow = carol_of(world), carol_of(world)
    assign(world, busy, "busy")
    more = world.verb("key_create", user=busy.id, name="more")["api_key"]
    keys = [busy.key, more, busy.key, more]
    replies = [ask(world, "POST", "/v1/chat/completions", key=key, body=chat(max_completion_tokens=50)) for key in keys]
    assert [reply.status for reply in replies] == [200, 200, 200, 429]  # whatever key: it is the user's
    assert replies[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert replies[0].headers["x-ratelimit-limit-requests"] == "3"
    assign(world, narrow, "narrow")
    slow = chat(directed("Hi", words=500, delay_ms=20), stream=True, max_completion_tokens=600)
    with opened(world, "/v1/chat/completions", key=narrow.key, body=slow):
        assert "1 at once" in buy(world, narrow, max_completion_tokens=50).json()["error"]["message"]
        limits = me(world, narrow)["limits"]
    assert (limits["in_flight"], limits["requests"]) == (1, 1_000_000)


# --- beyond the plan ------------------------------------------------------------------------------------------


def test_beyond_the_tokens_cents_are_spent_up_to_the_cap_and_no_further(world: World) -> None:
    carol = carol_of(world)
    assign(world, carol, "pro")
    assert use(world, carol, 16_000).status == 200
    assert use(world, carol, 33_000, "gpt-5.4-mini").status == 200
    assert me(world, carol)["remaining"] == 1_000
    reply = use(world, carol, 4_000, "gpt-5.4-mini")  # 4,000 tokens of it are 1.8 cents
    assert (reply.status, reply.headers["x-goosestack-payer"]) == (200, "overage"), reply.data
    assert reply.headers["x-goosestack-cost-cents"] == "2"
    assert reply.headers["x-goosestack-overage-remaining-cents"] == "2"
    assert me(world, carol)["overage"] == {"cap_cents": 4, "used_cents": 2, "held_cents": 0, "remaining_cents": 2}
    assert use(world, carol, 4_000, "gpt-5.4-mini").status == 200
    reply = use(world, carol, 4_000, "gpt-5.4-mini")
    assert (reply.status, reply.json()["error"]["code"]) == (429, "quota_exceeded")
    assert "The cap on what you spend beyond your plan does not suffice ($0.04 a month)" in error_of(reply)
    assert entries(world, carol) == [(f"tokens {month()}", 50_000), (f"usd_cents overage:{month()}", 4)]
    *_, last = world.ended_rows(carol, 4)
    assert (last["unit"], last["cost_cents"]) == ("usd_cents", 2)
    found = ask(world, "GET", "/v1/usage", key=carol.key).json()
    assert [row["payer"] for row in found["recent_requests"]] == ["overage", "overage", "allowance", "allowance"]
    assert found["balance_cents"] == 0  # credits are another account


def test_a_user_caps_what_they_spend_and_the_operator_what_they_may(world: World) -> None:
    carol = carol_of(world)
    shown = operator_of(world).json("plans", "cap", carol.id, "300")
    assert shown["overage"]["cap_cents"] == 300
    reply = ask(world, "POST", "/api/me/spending-cap", key=carol.key, body={"cents": 0})
    assert reply.json() == {"cents": 0, "overage": None}
    assert "Your plan's tokens do not suffice" in error_of(use(world, carol, 6_000))
    assert ask(world, "POST", "/api/me/spending-cap", key=carol.key, body={"cents": 900}).json()["cents"] == 900
    assert me(world, carol)["overage"]["cap_cents"] == 300
    assert use(world, carol, 6_000).headers["x-goosestack-payer"] == "overage"
    assert ask(world, "POST", "/api/me/spending-cap", key=carol.key, body={"cents": None}).status == 200
    assert operator_of(world).json("plans", "cap", carol.id, "none")["overage"]["cap_cents"] == 0
    assert use(world, carol, 6_000).status == 429


def test_what_is_held_for_others_is_not_told_as_left_and_is_shown_also_where_the_cap_is_gone(world: World) -> None:
    carol = carol_of(world)
    assert use(world, carol, 4_700).status == 200
    operator_of(world).json("plans", "cap", carol.id, "30")
    slow = chat(directed("Hi", words=500, delay_ms=20), stream=True, max_completion_tokens=16_000)
    with opened(world, "/v1/chat/completions", key=carol.key, body=slow):
        shown = me(world, carol)["overage"]
        assert shown["held_cents"] > 0
        reply = use(world, carol, 400)
        left = int(reply.headers["x-goosestack-overage-remaining-cents"])
        assert left == me(world, carol)["overage"]["remaining_cents"] <= 30 - shown["held_cents"]
        operator_of(world).json("plans", "cap", carol.id, "0")
        assert me(world, carol)["overage"]["held_cents"] == shown["held_cents"]


@pytest.mark.parametrize(
    "body", [{}, {"cents": -1}, {"cents": 1.5}, {"cents": "5"}, {"cents": True}, {"cents": 10**12}]
)
def test_a_cap_is_a_whole_number_of_cents(world: World, body: dict[str, object]) -> None:
    reply = ask(world, "POST", "/api/me/spending-cap", key=carol_of(world).key, body=body)
    assert (reply.status, reply.json()["error"]["param"]) == (400, "cents")


# --- who is asked, in which order -----------------------------------------------------------------------------


def payers(world: World, carol: Customer) -> list[str]:
    recent = ask(world, "GET", "/v1/usage", key=carol.key).json()["recent_requests"]
    return [row["payer"] for row in reversed(recent)]


def test_with_a_cap_it_is_the_first_that_can_hold_all_of_it(mixed: World) -> None:
    carol = carol_of(mixed, cents=100)
    for tokens in (3_000, 3_000, 1_000, 3_000):
        assert use(mixed, carol, tokens).status == 200
    assert payers(mixed, carol) == ["allowance", "credits", "allowance", "credits"]


def test_without_one_it_is_the_first_that_can_hold_the_least_answer(mixed: World) -> None:
    carol = carol_of(mixed, cents=100)
    assert use(mixed, carol, 4_000).status == 200
    reply = buy(mixed, carol)
    assert reply.headers["x-goosestack-payer"] == "allowance"
    assert int(reply.headers["x-goosestack-output-cap"]) < 1_000
    assert use(mixed, carol, 700).status == 200
    assert buy(mixed, carol).headers["x-goosestack-payer"] is None
    assert payers(mixed, carol) == ["allowance", "allowance", "allowance", "credits"]


def test_a_model_beyond_the_plan_is_paid_for_with_credits(mixed: World) -> None:
    carol = carol_of(mixed, cents=100)
    assert buy(mixed, carol, model="gpt-5.4-mini").status == 200
    assert payers(mixed, carol) == ["credits"]


def test_where_none_can_the_last_one_says_so(mixed: World) -> None:
    carol = carol_of(mixed)
    reply = use(mixed, carol, 6_000)
    assert (reply.status, reply.json()["error"]["code"]) == (402, "insufficient_balance")


def test_a_large_body_is_read_where_the_plan_could_pay_for_it(mixed: World) -> None:
    carol = carol_of(mixed)
    assert (
        buy(mixed, carol, question="word " * 20_000, max_completion_tokens=50).status == 402
    )  # read, bounded, and too long
    assert buy(mixed, carol, question="Hi" + " " * 80_000, max_completion_tokens=50).status == 402
    assert use(mixed, carol, 4_500).status == 200


def test_without_plans_in_the_funding_nobody_is_rationed(shared_world: World) -> None:
    alice = shared_world.customer(100)
    shared_world.verb("plan_assign", user=alice.id, plan="pro", until=None)
    assert buy(shared_world, alice).headers["x-goosestack-payer"] is None
    assert me(shared_world, alice)["plan"] is None


def test_where_plans_only_say_how_often_nothing_is_told_of_tokens(folder: Path) -> None:
    world = create(folder, "credits")
    try:
        carol = carol_of(world, cents=100)
        assign(world, carol, "busy")
        assert buy(world, carol).status == 200
        shown = me(world, carol)
        assert (shown["plan"], shown["limits"]["requests"]) == ("busy", 3)
        assert [shown[name] for name in ("quota", "used", "held", "remaining", "reset", "overage")] == [None] * 6
        assert ask(world, "GET", "/v1/usage", key=carol.key).json()["allowance"] is None
    finally:
        world.close()


# --- the operator's command -----------------------------------------------------------------------------------


def test_plans_are_listed_shown_and_assigned(world: World) -> None:
    operator, carol = operator_of(world), carol_of(world)
    listed = {plan["name"]: plan for plan in operator.json("plans", "list")}
    assert list(listed) == ["free", "busy", "narrow", "basic", "pro", "enterprise"]
    assert listed["pro"]["overage_cents"] == 4
    assert "pro                    50,000" in operator.run("plans")[0]
    assert "gpt-4o-mini gpt-5.5 claude-*" in operator.run("plans", "list")[0]
    line = operator.run("plans", "assign", carol.id, "pro", "--until", "2999-12-31")[0]
    assert line == (
        f"{carol.id} has pro until 2999-12-31T00:00:00.000Z: 50,000 of 50,000 tokens are left, until {month_end()};"
        " beyond: 4 of 4 cents\n"
    )
    assert operator.run("plans", "show", carol.id)[0] == line
    assert operator.refused("plans", "assign", carol.id, "gold") == (
        "there is no plan gold; there are free, busy, narrow, basic, pro, enterprise"
    )
    assert operator.refused("plans", "assign", "nobody@example.com", "pro") == "there is no user nobody@example.com"
    assert "whole number of cents" in operator.run("plans", "cap", carol.id, "few", expect=2)[1]


def test_a_plan_that_was_removed_is_told_wherever_the_operator_looks_and_what_is_listed_is_what_counts(
    folder: Path,
) -> None:
    world = create(folder, "allowance")
    try:
        carol, operator = carol_of(world), operator_of(world)
        assign(world, carol, "busy")
        (folder / "plans.toml").write_text(TABLE.replace("[busy]", "[calm]"))
        assert "busy" in [plan["name"] for plan in operator.json("plans", "list")], "the daemon has not read it yet"
        assert ask(world, "GET", "/readyz").json()["degraded"] is False
        world.daemon.program.stop()
        assert "calm" in [plan["name"] for plan in operator.json("plans", "list")]
        assert "there is no plan busy; users who have it: 1" in operator.run("check")[0]
        world.daemon.start()
        assert "there is no plan busy; users who have it: 1" in world.daemon.program.text()
        ready = ask(world, "GET", "/readyz")
        assert (ready.status, ready.json()["degraded"], ready.json()["unknown_plans"]) == (200, True, {"busy": 1})
        assert b"\ngoosestack_unknown_plan_users 1.0\n" in ask(world, "GET", "/metrics").data
        assert operator.json("check")["unknown_plans"] == {"busy": 1}
        assert me(world, carol)["plan"] == "free"
    finally:
        world.close()
