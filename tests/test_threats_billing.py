"""What an answer costs, where the caller or the provider would have it cost less: caches, lengths, tiers, odd usage.

Amounts are nanodollars, written out from the vendors' price lists: a dollar per million tokens is 1,000 a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from goosestack import pricing
from tests.asking import directed
from tests.mallory import CHAT, MESSAGES, RESPONSES, Mallory, asks
from tests.world import Daemon, Program, Upstream, World

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world, cents=100_000) as mallory:
        yield mallory


def bought(mallory: Mallory, path: str, directive: dict[str, object], **fields: object) -> dict[str, Any]:
    """The row of an answer that was given as the directive says."""
    before = len(mallory.world.rows(mallory.customer))
    reply = mallory.ask(path, asks(path, directed("Go", **directive), **fields))
    assert reply.status == 200, reply.body
    rows = mallory.world.ended_rows(mallory.customer, before + 1)
    row = max(rows, key=lambda row: int(row["settled_seq"]))
    assert (row["status"], row["shortfall"]) == ("settled", 0)
    return row


# --- caches -----------------------------------------------------------------------------------------------------


@STREAMED
def test_what_is_written_to_a_cache_costs_by_how_long_it_stays_there(mallory: Mallory, stream: bool) -> None:
    created = {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000}
    usage = {"input_tokens": 1000, "cache_creation_input_tokens": 3000, "cache_creation": created}
    usage |= {"cache_read_input_tokens": 4000, "output_tokens": 100}
    row = bought(mallory, MESSAGES, {"usage": usage}, stream=stream)
    assert row["cost_nanos"] == 1000 * 1000 + 1000 * 1250 + 2000 * 2000 + 4000 * 100 + 100 * 5000
    whole = {**usage, "cache_creation": None}  # without a split, all of it is of the shorter kind
    row = bought(mallory, MESSAGES, {"usage": whole}, stream=stream)
    assert row["cost_nanos"] == 1000 * 1000 + 3000 * 1250 + 4000 * 100 + 100 * 5000

    lifetimes = {"ttl_30m_tokens": 1000, "ttl_12h_tokens": 2000}
    read: dict[str, object] = {"cached_tokens": 4000, "cache_write_tokens": 3000}
    told = {"input_tokens": 10_000, "output_tokens": 100}
    details = {"input_tokens_details": {**read, "cache_write_tokens_details": lifetimes}}
    row = bought(mallory, RESPONSES, {"usage": {**told, **details}}, model="gpt-6-sol", stream=stream)
    assert row["cost_nanos"] == 3000 * 2000 + 4000 * 200 + 1000 * 2500 + 2000 * 5000 + 100 * 10_000
    chat = {"prompt_tokens": 10_000, "completion_tokens": 100, "prompt_tokens_details": read}
    row = bought(mallory, CHAT, {"usage": chat}, model="gpt-6-sol", stream=stream)
    assert row["cost_nanos"] == 3000 * 2000 + 4000 * 200 + 3000 * 2500 + 100 * 10_000


def test_whoever_asks_for_the_longer_cache_is_held_at_its_price(mallory: Mallory) -> None:
    def message(**cache: str) -> dict[str, object]:
        block = {"type": "text", "text": "Hello " * 2000, "cache_control": {"type": "ephemeral", **cache}}
        return {"messages": [{"role": "user", "content": [block]}]}

    short, long = (mallory.ask(MESSAGES, asks(MESSAGES, **message(**cache))) for cache in ({}, {"ttl": "1h"}))
    assert short.status == long.status == 200
    first, second = mallory.world.ended_rows(mallory.customer, 2)
    assert 1.5 < second["quote"] / first["quote"] < 1.65  # 2.00 by 1.25, but for the output


@STREAMED
def test_more_cached_than_read_is_never_less_than_nothing(mallory: Mallory, stream: bool) -> None:
    usage: dict[str, object] = {"prompt_tokens": 56_322, "completion_tokens": 10}
    for odd in ({"cached_tokens": 72_960}, {"cached_tokens": -1}, {"cached_tokens": 1, "cache_write_tokens": 56_322}):
        row = bought(mallory, CHAT, {"usage": {**usage, "prompt_tokens_details": odd}}, stream=stream)
        assert (row["cost_nanos"], row["input_tokens"]) == (56_322 * 150 + 10 * 600, 56_322)
        told = {"input_tokens": 56_322, "output_tokens": 10, "input_tokens_details": odd}
        row = bought(mallory, RESPONSES, {"usage": told}, stream=stream)
        assert row["cost_nanos"] == 56_322 * 150 + 10 * 600
    beside = {"input_tokens": 56_322, "cache_read_input_tokens": 72_960, "output_tokens": 10}  # Anthropic counts apart
    row = bought(mallory, MESSAGES, {"usage": beside}, stream=stream)
    assert row["cost_nanos"] == 56_322 * 1000 + 72_960 * 100 + 10 * 5000


# --- length -----------------------------------------------------------------------------------------------------


@STREAMED
def test_one_token_more_than_the_threshold_makes_the_whole_call_dearer(mallory: Mallory, stream: bool) -> None:
    for tokens, read, written in ((272_000, 2500, 15_000), (272_001, 5000, 22_500)):
        usage = {"prompt_tokens": tokens, "completion_tokens": 10}
        row = bought(mallory, CHAT, {"usage": usage}, model="gpt-5.4", stream=stream)
        assert row["cost_nanos"] == tokens * read + 10 * written
    for fresh, times in ((40_000, 1), (40_001, 5)):  # what comes from a cache counts towards it
        usage = {"input_tokens": fresh, "cache_read_input_tokens": 60_000, "output_tokens": 10}
        row = bought(mallory, MESSAGES, {"usage": usage}, model="claude-haiku-5-5", stream=stream)
        assert row["cost_nanos"] == times * (fresh * 100 + 60_000 * 10 + 10 * 500)


# --- tiers ------------------------------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize(
    ("asked", "served", "read", "written"),
    [
        (None, "priority", 12_500, 75_000),
        ("flex", "priority", 12_500, 75_000),
        ("priority", "default", 5000, 30_000),
        ("priority", "priority", 12_500, 75_000),
        ("flex", "flex", 2500, 15_000),
        ("flex", "default", 5000, 30_000),
        (None, "flex", 2500, 15_000),
        ("priority", "unheard-of", 12_500, 75_000),
    ],
)
def test_a_call_costs_what_the_tier_costs_that_served_it(
    mallory: Mallory, stream: bool, asked: str | None, served: str, read: int, written: int
) -> None:
    fields: dict[str, object] = {"model": "gpt-5.5", "stream": stream, "service_tier": asked}
    usage = {"prompt_tokens": 1000, "completion_tokens": 200}
    row = bought(mallory, CHAT, {"usage": usage, "tier": served}, **fields)
    assert row["cost_nanos"] == 1000 * read + 200 * written
    usage = {"input_tokens": 1000, "output_tokens": 200}
    row = bought(mallory, RESPONSES, {"usage": usage, "tier": served}, **fields)
    assert row["cost_nanos"] == 1000 * read + 200 * written


@STREAMED
def test_anthropics_fast_answers_cost_double_and_american_ones_a_tenth_more(mallory: Mallory, stream: bool) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 200}
    plain = 1000 * 4000 + 200 * 20_000
    cases: list[tuple[dict[str, object], dict[str, object], int]] = [
        ({}, {}, plain),
        ({"speed": "fast"}, {}, 2 * plain),
        ({"speed": "fast"}, {"speed": "standard"}, plain),
        ({}, {"speed": "fast"}, 2 * plain),
        ({"inference_geo": "us"}, {}, plain * 11 // 10),
        ({"inference_geo": "us", "speed": "fast"}, {}, 2 * plain * 11 // 10),
    ]
    for asked, reported, cost in cases:
        fields = {"model": "claude-opus-5-5", "stream": stream, **asked}
        row = bought(mallory, MESSAGES, {"usage": {**usage, **reported}}, **fields)
        assert row["cost_nanos"] == cost


# --- usage that cannot be true ----------------------------------------------------------------------------------

NAMES = {CHAT: ("prompt_tokens", "completion_tokens"), RESPONSES: ("input_tokens", "output_tokens")}
NAMES[MESSAGES] = NAMES[RESPONSES]
LOST: list[dict[str, object]] = [{"usage_mode": "missing"}, {"usage_mode": "null"}, {"usage_raw": '"many"'}]
LOST += [{"usage_raw": raw} for raw in ("[]", "{}", "5", "true", '{"total_tokens":5}', "[{}]")]


@STREAMED
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_usage_that_is_lost_or_absurd_is_estimated_and_the_bill_is_not_lost(
    mallory: Mallory, path: str, stream: bool
) -> None:
    read, written = NAMES[path]
    absurd: list[object] = [-5, "5", 5.5, True, [], 10**12, 10**30, 0, None]
    odd: list[dict[str, object]] = [{"usage": {read: value, written: value}} for value in absurd]
    odd += [{"usage": {read: 1000, written: value}} for value in (0, -1, "100", 10**12)]
    costs = set()
    for directive in odd + LOST:
        row = bought(mallory, path, {"words": 100, **directive}, stream=stream)
        costs.add(row["cost_nanos"])
        assert row["estimated"] == 1, directive
        assert 0 < row["cost_nanos"] <= row["quote"]
        assert all(row[name] >= 0 for name in row if name.endswith("_tokens"))
    dearest, cheapest = max(costs), min(costs)
    assert dearest < 3 * cheapest  # whatever was wrong with the report, the guess is the same, but for its bytes


@STREAMED
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_usage_that_is_repeated_counts_once_and_a_falling_one_not_at_all(
    mallory: Mallory, path: str, stream: bool
) -> None:
    read, written = NAMES[path]
    price = (150, 600) if path != MESSAGES else (1000, 5000)
    told: dict[str, object] = {"usage": {read: 1000, written: 100}, "words": 100}
    once = 1000 * price[0] + 100 * price[1]
    for mode, times in (("twice", 1), ("every_chunk", 1), ("decreasing", 2 if stream else 1)):
        if mode == "twice" and not stream:
            continue  # a plain answer has one usage
        row = bought(mallory, path, {**told, "usage_mode": mode}, stream=stream)
        if mode != "decreasing" or (stream and path == CHAT):
            assert (row["cost_nanos"], row["estimated"]) == (times * once, 0)
        else:
            assert once <= row["cost_nanos"] <= 2 * once


# --- more than was held, and twice ------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_charge_above_the_hold_takes_what_there_is_and_never_more(world: World, path: str, stream: bool) -> None:
    read, written = NAMES[path]
    with Mallory(world, cents=1) as mallory:
        cap = "max_tokens" if path == MESSAGES else "max_completion_tokens" if path == CHAT else "max_output_tokens"
        usage = {read: 100_000, written: 10_000}
        sent = asks(path, directed("Go", usage=usage), stream=stream, **{cap: 300})
        assert mallory.ask(path, sent).status == 200
        (row,) = world.ended_rows(mallory.customer, 1)
        assert (row["charged"], row["billed"]) == (10_000_000, 1)
        assert row["shortfall"] == row["cost_nanos"] - 10_000_000 > 0
        assert world.funds(mallory.customer) == {
            "id": mallory.customer.id,
            "balance_cents": 0,
            "held_cents": 0,
            "available_cents": 0,
            "debt_cents": 0,
        }
        mallory.refused(402, path, sent)
        assert len(mallory.dispatched()) == 1


@STREAMED
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("fault", ["reset_before_headers", "close_before_headers"])
def test_what_the_provider_has_read_is_never_sent_again(mallory: Mallory, path: str, stream: bool, fault: str) -> None:
    mallory.ask(path, asks(path))  # so that there is a connection that was idle
    for turn in range(2):
        reply = mallory.refused(502, path, asks(path, directed("Go", fault=fault), stream=stream))
        assert len(mallory.dispatched()) == 2 + turn
        assert reply.headers.get("x-should-retry") in ("false", None)
    rows = mallory.world.ended_rows(mallory.customer, 3)
    assert {row["status"] for row in rows[1:]} <= {"settled", "released"}


# --- prices that cannot be true ---------------------------------------------------------------------------------

BOOK = json.loads((files("goosestack") / "prices.json").read_text())
GENERATED = json.dumps({**BOOK, "models": [model for model in BOOK["models"] if model["id"] == "gpt-4o-mini"]})
BAD_PRICES = """-1 -0.01 0 0.0 -0 nan inf -inf "free" "" "-1" "0" "nan" "1e400" true [] {} [1] 10001 1000000000 1e10
    1979-05-27""".split()
BAD_LIMITS = '-1 0 1.5 true [] 100000001 nan "many"'.split()


@pytest.mark.parametrize("price", BAD_PRICES)
def test_a_price_that_is_no_price_is_refused(price: str) -> None:
    for name in ("input", "output", "cache_read", "cache_write", "cache_write_long"):
        given = {"input": "1", "output": "2", "context": "1000", "max_input": "900", "max_output": "100", name: price}
        table = "\n".join(f"{key} = {value}" for key, value in given.items())
        for model in ("gpt-4o-mini", '"our/own"'):
            with pytest.raises(pricing.PriceError, match=r"prices\.toml"):
                pricing.load(GENERATED, f'[models.{model}]\nprovider = "openai"\n{table}\n')


@pytest.mark.parametrize("limit", BAD_LIMITS)
def test_a_limit_that_is_no_limit_is_refused(limit: str) -> None:
    for name in ("context", "max_input", "max_output"):
        for prices in ("", "input = 1\noutput = 2\n"):
            with pytest.raises(pricing.PriceError):
                pricing.load(GENERATED, f'[models.gpt-4o-mini]\nprovider = "openai"\n{prices}{name} = {limit}\n')


@pytest.mark.parametrize(
    "text",
    [
        '[models."our/own"]\nprovider = "openai"\ninput = 1\ncontext = 1000\nmax_output = 100\n',
        '[models."our/own"]\nprovider = "openai"\noutput = 1\ncontext = 1000\nmax_output = 100\n',
        '[models."our/own"]\nprovider = "openai"\ninput = 1\noutput = 2\n',
        '[models."our/own"]\ninput = 1\noutput = 2\ncontext = 1000\nmax_output = 100\n',
        "[models.gpt-4o-mini]\ninput = 1\noutput = 2\nfree = true\n",
        "[models.gpt-4o-mini]\nweb_search = -1\ninput = 1\noutput = 1\n",
        '[aliases]\ncheap = "a-model-of-nobody"\n',
        "[aliases]\ncheap = 5\n",
        'prefer = ["evil"]\n',
        'base_url = "http://evil.example"\n',
        "[models]\ngpt-4o-mini = 5\n",
        "models = 5\n",
        "aliases = 5\n",
        "prefer = 5\n",
        "= nonsense",
    ],
)
def test_a_price_file_that_leaves_a_price_open_is_refused(text: str) -> None:
    with pytest.raises(pricing.PriceError):
        pricing.load(GENERATED, text)


@pytest.mark.parametrize("price", [-1, 0, 1.5, "1", True, None, 10**11])
def test_a_generated_price_that_is_no_price_is_refused(price: object) -> None:
    for name in ("input", "output"):
        book = json.loads(GENERATED)
        book["models"][0]["rates"][0][name] = price
        with pytest.raises(pricing.PriceError):
            pricing.load(json.dumps(book))


def test_a_daemon_does_not_start_with_such_prices(folder: Path) -> None:
    prices, upstream = folder / "prices.toml", Upstream(folder)
    prices.write_text("")
    world = World(folder, upstream, Daemon(folder, upstream.url, PRICES_FILE=str(prices)))
    world.daemon.program.stop()
    prices.write_text("[models.gpt-4o-mini]\ninput = -1\noutput = 1\n")
    refused = Program(["goosestack", "serve"], world.daemon.env, folder / "refused.out", folder)
    assert refused.process.wait(30) == 78
    assert refused.text().startswith("goosestack: prices.toml: models.gpt-4o-mini.input:")
    assert refused.text().count("\n") == 1
    world.close()
