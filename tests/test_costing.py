"""What an answer cost: by what was reported, where that can be believed, else by an estimate that the hold covers.

Each way in which a report can be wrong has one outcome, and none of them loses the bill.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from decimal import Decimal
from importlib.resources import files
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from goosestack import bidding, costing, pricing
from goosestack.bidding import Bid, Policy
from goosestack.ledger import Charge
from goosestack.payers import Credits
from goosestack.pricing import Terms, Usage
from goosestack.upstream import Provider, Upstreams
from goosestack.wire import Reading, body as fields
from goosestack.wire.openai_chat import OpenAIChat

TODAY = "2026-11-21"
CENT = 10_000_000
CHAT = frozenset(("openai_chat",))
OPENAI = Provider("openai", "https://openai.example/v1", "sk-x", CHAT)
ROUTER = Provider("openrouter", "https://openrouter.example/v1", "sk-y", CHAT, routes=True, reports_cost=True)
BOOK = pricing.load((files("goosestack") / "prices.json").read_text())
UPSTREAMS = Upstreams({"openai": OPENAI, "openrouter": ROUTER}, BOOK)
ROUTED = next(model.id for model in BOOK.models.values() if model.provider == "openrouter" and model.max_output > 5000)
LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
PROPERTY = settings(deadline=None, database=None, max_examples=20_000 if LONG else 150)


def bid(model: str = "gpt-4o", *, text: str = "hello " * 100, terms: Terms = Terms(), **more: Any) -> Bid:  # noqa: B008
    """A bid for a chat with at most 1,000 output tokens."""
    body = {"model": model, "max_tokens": 1000, "messages": [{"role": "user", "content": text}], **more}
    call = OpenAIChat().parse(fields.parse(fields.encode(body)), own_key=False)
    alice = Credits(1, terms)
    return asyncio.run(
        bidding.bid(UPSTREAMS, Policy(), OpenAIChat(), call, {}, payers=[alice], own_key=None, today=TODAY)
    )


def own_key_bid() -> Bid:
    """A bid that its caller pays the provider for."""
    made = bid()
    return replace(made, offer=replace(made.offer, model=None), payer=None, own_key=True)


def cost(made: Bid, reading: Reading, usage: Usage, terms: Terms = Terms()) -> Charge:  # noqa: B008
    payer = None if made.payer is None else Credits(1, terms)
    return costing.charge(replace(made, payer=payer), reading, usage, BOOK, TODAY)


# --- reports that can be believed, and others -----------------------------------------------------------------


def test_what_is_reported_is_what_is_charged() -> None:
    made, reading = bid(), Reading(usage={"input": 100, "output": 50, "cache_read": 20})
    usage, wrong = costing.reported(made, reading)
    assert (usage, wrong) == (Usage(input=100, output=50, cache_read=20), None)
    assert usage is not None
    assert cost(made, reading, usage).nanos == 100 * 2500 + 20 * 1250 + 50 * 10_000


HUGE = 1 << 70
UNBELIEVABLE: dict[str, tuple[dict[str, int] | None, int]] = {
    "nothing": (None, 0),
    "no input": ({"input": 0, "output": 5}, 20),
    "no output where there was some": ({"input": 5, "output": 0}, 20),
    "more input than any model reads": ({"input": 10_000_001, "output": 5}, 20),
    "more output than any model writes": ({"input": 5, "output": 10_000_001}, 20),
    "more from a cache than any model reads": ({"input": 5, "cache_read": 10_000_001, "output": 5}, 20),
    "input beyond a column": ({"input": HUGE, "output": 5}, 20),
    "output beyond a column": ({"input": 5, "output": HUGE}, 20),
    "reasoning beyond a column": ({"input": 5, "output": 5, "reasoning": HUGE}, 20),
    "searches beyond a column": ({"input": 5, "output": 5, "web_searches": HUGE}, 20),
}


@pytest.mark.parametrize(("usage", "seen"), UNBELIEVABLE.values(), ids=list(UNBELIEVABLE))
def test_a_report_that_cannot_be_believed_is_estimated_and_named(usage: dict[str, int] | None, seen: int) -> None:
    made, reading = bid(), Reading(usage=usage, output_bytes=seen)
    found, wrong = costing.reported(made, reading)
    assert found is None and wrong
    guess = costing.seen(made, reading)
    assert max(guess.counts()) < 10**6 and 0 < guess.all_input <= made.demand.input
    assert guess.output == -(-seen // 3)
    assert 0 < cost(made, reading, guess).amount <= made.at_most


def test_what_is_more_than_was_quoted_is_charged_all_the_same() -> None:
    made, reading = bid(), Reading(usage={"input": 120_000, "output": 16_000})
    usage, wrong = costing.reported(made, reading)
    assert usage is not None and wrong is None
    assert cost(made, reading, usage).amount == 120_000 * 2500 + 16_000 * 10_000 > made.at_most


@pytest.mark.parametrize(
    ("usage", "wrong"),
    [
        ({"input": 250, "output": 16_385}, "more output than the model can write"),
        ({"input": 250, "output": 9_000_000}, "more output than the model can write"),
        ({"input": 1_000_001, "output": 5}, "more input than the model can read"),
    ],
)
def test_what_the_model_cannot_do_is_estimated(usage: dict[str, int], wrong: str) -> None:
    made, reading = bid(), Reading(usage=usage, output_bytes=300)
    assert costing.reported(made, reading) == (None, wrong)
    assert costing.seen(made, reading).output == 100


def test_an_answer_of_nothing_is_no_wrong_report() -> None:
    assert costing.reported(bid(), Reading(usage={"input": 5, "output": 0})) == (Usage(input=5), None)


@pytest.mark.parametrize("name", ["input", "output", "reasoning", "web_searches", "cache_read"])
def test_a_call_that_its_caller_pays_for_is_logged_at_no_cost_and_never_breaks_the_log(name: str) -> None:
    made, counts = own_key_bid(), {"input": 5, "output": 7}
    believed = costing.seen(made, Reading(usage=counts, output_bytes=100))
    assert believed == Usage(input=5, output=7)
    assert cost(made, Reading(), believed) == Charge(0, 0, believed.counts())
    guess = costing.seen(made, Reading(usage={**counts, name: HUGE}))
    assert max(guess.counts()) < 1 << 63


# --- a provider that names its own price ----------------------------------------------------------------------


def test_the_price_that_a_router_names_decides_where_the_quote_covers_it() -> None:
    made, usage = bid(ROUTED), Usage(input=100, output=50)
    reading = Reading(usage={"input": 100, "output": 50}, cost=Decimal("0.000012345"))
    assert cost(made, reading, usage).nanos == 12_345
    assert cost(made, reading, usage, Terms(markup=Decimal(20))).nanos == 14_814
    reading.cost = Decimal("0.0000123450001")
    assert cost(made, reading, usage).nanos == 12_346
    reading.cost = Decimal(0)
    assert cost(made, reading, usage).nanos == 0


@pytest.mark.parametrize("named", ["-0.01", "1000", "NaN", "Infinity", "-Infinity", "1E+400"])
def test_a_named_price_that_makes_no_sense_leaves_it_to_the_book(named: str) -> None:
    made, usage = bid(ROUTED), Usage(input=100, output=50)
    assert cost(made, Reading(cost=Decimal(named)), usage) == cost(made, Reading(), usage)


def test_a_named_price_is_not_asked_for_where_the_operator_set_one_or_the_provider_has_none() -> None:
    usage, reading = Usage(input=100, output=50), Reading(cost=Decimal("0.000001"))
    direct = bid()
    assert cost(direct, reading, usage) == cost(direct, Reading(), usage)
    routed = bid(ROUTED)
    assert routed.offer.model is not None
    priced = replace(routed, offer=replace(routed.offer, model=replace(routed.offer.model, by_operator=True)))
    assert cost(priced, reading, usage) == cost(priced, Reading(), usage)


# --- the model and the tier that answered ---------------------------------------------------------------------


def test_the_model_that_answered_is_charged() -> None:
    made, usage = bid("gpt-4o"), Usage(input=1000, output=10)
    for name in ("gpt-4o-mini", "gpt-4o-mini-2031-01-01"):
        assert cost(made, Reading(model=name), usage).nanos == 1000 * 150 + 10 * 600
    assert cost(made, Reading(model="never heard of"), usage).nanos == 1000 * 2500 + 10 * 10_000


def test_the_tier_that_served_is_charged() -> None:
    usage = Usage(input=1000, output=10)
    made = bid("gpt-5.4", service_tier="priority")
    asked, served = cost(made, Reading(), usage), cost(made, Reading(tier="standard"), usage)
    assert asked.nanos == 2 * served.nanos
    assert asked == cost(made, Reading(tier="priority"), usage)


# --- estimates ------------------------------------------------------------------------------------------------

counts = st.integers(0, 10**7)
readings = st.builds(
    Reading,
    usage=st.none() | st.fixed_dictionaries({"input": counts, "output": counts}, optional={"cache_read": counts}),
    output_bytes=st.integers(0, 10**8),
    model=st.none() | st.sampled_from(["gpt-4o", "gpt-4o-mini", "gpt-5.5-pro", "x"]),
    tier=st.none() | st.sampled_from(["standard", "flex", "priority"]),
)
BIDS = [bid(), bid("gpt-5.4", service_tier="flex"), bid(text="x" * 50_000), bid(ROUTED), own_key_bid()]


@PROPERTY
@given(st.sampled_from(BIDS), readings, st.integers(0, 10**12), st.sampled_from([1, CENT]))
def test_an_estimate_is_never_above_what_is_held(made: Bid, reading: Reading, held: int, whole: int) -> None:
    usage = costing.seen(made, reading)
    guess = costing.estimated(cost(made, reading, usage, Terms(whole=whole)), held)
    assert guess.estimated
    assert 0 <= guess.amount <= held and 0 <= guess.nanos <= held
    assert guess.counts == usage.counts() and min(guess.counts) >= 0


@PROPERTY
@given(st.sampled_from(BIDS[:4]), st.integers(0, 10**6))
def test_without_a_report_input_and_visible_output_are_guessed_from_their_bytes(made: Bid, seen: int) -> None:
    usage = costing.seen(made, Reading(output_bytes=seen))
    assert 3 * usage.input >= made.call.text_bytes or usage.input == made.demand.input
    assert 3 * usage.output >= seen > 3 * (usage.output - 1)


def test_an_estimate_takes_what_is_held_and_tells_in_money_what_tokens_have_paid_for() -> None:
    counts = Usage(input=10, output=5).counts()
    assert costing.estimated(Charge(3000, 3000, counts), 3001) == Charge(3000, 3000, counts, estimated=True)
    assert costing.estimated(Charge(3000, 3000, counts), 2000) == Charge(2000, 2000, counts, estimated=True)
    assert costing.estimated(Charge(15, 3000, counts), 10) == Charge(10, 3000, counts, estimated=True)


def test_what_was_reported_before_the_end_is_kept_in_the_estimate() -> None:
    usage = costing.seen(bid(), Reading(usage={"input": 77, "output": 1}, output_bytes=300))
    assert usage == Usage(input=77, output=100)
