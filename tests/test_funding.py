"""Who pays for a request: somebody always does, and of several the first that can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goosestack import bidding
from goosestack.errors import NothingPays
from goosestack.wire import Body
from tests.asking import ask, chat
from tests.shops import Shop
from tests.test_allowance import buy, carol_of, payers, use
from tests.test_bounds import TODAY, UPSTREAMS, WIRES
from tests.world import World

NOBODY = """
[free]
tokens_per_month = 0
[pro]
tokens_per_month = 1_000
overage_cents = 100
"""
FUNDINGS = (
    "credits",
    "allowance",
    "allowance,overage",
    "overage,allowance",
    "credits,allowance,overage",
)
ASKED: tuple[tuple[str, Body], ...] = (
    ("chat/completions", chat()),
    ("chat/completions", chat(max_completion_tokens=10, stream=True)),
    ("chat/completions", chat("long " * 20_000)),
    ("responses", {"model": "gpt-4o-mini", "input": "Hi"}),
    ("messages", {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}),
    ("embeddings", {"model": "text-embedding-3-small", "input": "Hi"}),
)


def create(folder: Path, plans: str, **settings: Any) -> World:
    (folder / "plans.toml").write_text(plans)
    return World.create(folder, PLANS_FILE=str(folder / "plans.toml"), **settings)


@pytest.mark.parametrize("funding", FUNDINGS)
def test_whoever_has_nothing_gets_nothing_whatever_pays(folder: Path, funding: str) -> None:
    world = create(folder, NOBODY, FUNDING=funding)
    try:
        carol, dared = carol_of(world), carol_of(world)
        world.verb("plan_cap", user=dared.id, cents=100)
        assert ask(world, "POST", "/api/me/spending-cap", key=dared.key, body={"cents": 0}).status == 200
        for customer in (carol, dared):
            for path, body in ASKED:
                reply = ask(world, "POST", f"/v1/{path}", key=customer.key, body=body)
                assert reply.status in (402, 429), (path, reply.data)
        assert world.upstream.dispatches() == [] == world.rows()
    finally:
        world.close()


@pytest.mark.parametrize("path", ["chat/completions", "messages", "embeddings"])
async def test_a_request_that_nobody_pays_for_is_refused_before_it_is_held(path: str) -> None:
    (body,) = [body for asked, body in ASKED if asked == path][:1]
    (wire,) = [wire for wire in WIRES if wire.path == f"/{path}"]
    call = wire.parse(body, own_key=False)
    with pytest.raises(NothingPays):
        await bidding.bid(UPSTREAMS, bidding.Policy(), wire, call, {}, payers=[], own_key=None, today=TODAY)


# --- where caps are lowered -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lowering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that asks the plan first, then the credits, and lowers a cap that cannot be afforded."""
    plans = "[free]\ntokens_per_month = 1_000\n"
    world = create(tmp_path_factory.mktemp("lowering"), plans, FUNDING="allowance,credits", OVER_CAP="clamp")
    yield world
    world.close()


def test_a_cap_is_not_lowered_while_another_payer_can_hold_it_whole(lowering: World) -> None:
    carol = carol_of(lowering, cents=100)
    reply = buy(lowering, carol, max_completion_tokens=5_000)
    assert (reply.status, reply.headers["x-goosestack-output-cap"]) == (200, None)
    assert payers(lowering, carol) == ["credits"]
    assert use(lowering, carol, 500).status == 200
    assert payers(lowering, carol) == ["credits", "allowance"]


def test_a_cap_that_nobody_can_hold_whole_is_lowered_to_what_the_last_payer_can(lowering: World) -> None:
    carol = carol_of(lowering, cents=1)
    reply = buy(lowering, carol, model="gpt-5.5", max_completion_tokens=100_000)
    assert reply.status == 200, reply.data
    assert 256 <= int(reply.headers["x-goosestack-output-cap"]) < 1_000
    assert payers(lowering, carol)[-1] == "credits"


# --- what is billed later -------------------------------------------------------------------------------------


def test_whom_stripe_could_not_send_an_invoice_spends_nothing_beyond_the_plan(folder: Path) -> None:
    (folder / "plans.toml").write_text("[free]\ntokens_per_month = 1_000\noverage_cents = 100\n")
    metered: Any = {"METERS": "stripe_meter", "STRIPE_METER_EVENT": "tokens", "PLANS_FILE": str(folder / "plans.toml")}
    shop = Shop.open(folder, FUNDING="allowance,overage", **metered)
    try:
        carol = carol_of(shop.world)
        reply = use(shop.world, carol, 2_000)
        assert (reply.status, reply.json()["error"]["code"]) == (402, "no_customer")
        assert shop.world.upstream.dispatches() == [] == shop.world.rows()
        assert use(shop.world, carol, 500).status == 200
        shop.checkout(carol)
        reply = use(shop.world, carol, 2_000)
        assert (reply.status, reply.headers["x-goosestack-payer"]) == (200, "overage")
    finally:
        shop.close()
