"""Prices: what a quote and a charge promise, for any book and any usage, in exact arithmetic.

The properties are checked against `Fraction`, which rounds nothing. What the operator writes stands in
`test_prices_file.py`.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from math import ceil
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from goosestack import ledger, pricing
from goosestack.pricing import CLASSES, STANDARD, Demand, Model, PriceError, Terms, Usage, charge, load, quote

TODAY = "2026-11-21"
CENT = 10_000_000
BOOK = (files("goosestack") / "prices.json").read_text()
MODELS = list(load(BOOK).models.values())
INPUTS = ("input", "cache_read", "cache_write", "cache_write_long", "input_audio")
LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
PROPERTY = settings(deadline=None, database=None, max_examples=20_000 if LONG else 100)


def book_of(*entries: dict[str, Any]) -> pricing.PriceBook:
    """A price book of these models."""
    return load(json.dumps({"format": 1, "generated": TODAY, "models": entries}))


def model_of(rates: list[dict[str, Any]], **more: Any) -> Model:
    """A model that is sold at these rates."""
    entry = {"provider": "openai", "id": "m", "kind": "chat", "context": 1000, "max_input": 1000, "max_output": 1000}
    return book_of({**entry, "rates": rates, **more}).models["openai", "m"]


# --- any book, any demand, any usage --------------------------------------------------------------------------

picos = st.integers(1, 10**8) | st.integers(1, pricing.MOST_PICOS)
optional_prices = st.fixed_dictionaries({"input": picos, "output": picos}, optional={
    name: st.integers(0, 10**8) for name in CLASSES if name not in ("input", "output")
})  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> Model:
    """One from the book, or one with tiers and thresholds that no provider has."""
    if draw(st.booleans()):
        return draw(st.sampled_from(MODELS))
    rates = []
    for tier in [STANDARD, *draw(st.lists(st.sampled_from(["flex", "priority", "fast"]), unique=True))]:
        for above in {0, *draw(st.lists(st.sampled_from([1, 1000, 200_000, 272_000]), max_size=2))}:
            rates.append({"tier": tier, "above": above, **draw(optional_prices)})
    web_search = draw(st.none() | st.integers(0, 25_000_000))
    return model_of(rates, us_percent=draw(st.integers(100, 130)), web_search=web_search)


percents = st.decimals(0, 10_000, places=4) | st.sampled_from([Decimal(0), Decimal(20), Decimal("0.0001")])
terms = st.builds(Terms, percents, st.sampled_from([1, CENT]))
tokens = st.integers(0, 3000) | st.integers(0, 10_000_000) | st.sampled_from([199_999, 200_000, 272_000, 272_001])


@st.composite
def demands(draw: st.DrawFn, model: Model) -> Demand:
    """What a request for the model may ask for."""
    return Demand(
        input=draw(tokens),
        output=draw(tokens) * draw(st.sampled_from([1, 1, 128])),
        tier=draw(st.sampled_from(sorted(model.tiers(TODAY)))),
        long_cache=draw(st.booleans()),
        us_only=draw(st.booleans()),
        web_searches=draw(st.integers(0, 5)),
    )


@st.composite
def usages(draw: st.DrawFn, demand: Demand) -> Usage:
    """What such a request can use, split over the token classes in any way."""
    classes = [name for name in INPUTS if demand.long_cache or name != "cache_write_long"]
    read = split(draw, demand.input + demand.web_searches * pricing.WEB_SEARCH_INPUT, classes)
    written = split(draw, demand.output, ["output", "output_audio"])
    searches = draw(st.integers(0, demand.web_searches))
    return Usage(**read, **written, reasoning=written["output"], web_searches=searches)


def split(draw: st.DrawFn, most: int, names: list[str]) -> dict[str, int]:
    """At most so many tokens, each class with any part of what the ones before left; often all of it in one."""
    counts = {}
    for name in draw(st.permutations(names)):
        counts[name] = draw(st.sampled_from([0, most, most // 2]) | st.integers(0, most))
        most -= counts[name]
    return counts


@PROPERTY
@given(st.data())
def test_no_usage_within_the_demand_costs_more_than_the_quote(data: st.DataObject) -> None:
    model, on = data.draw(models()), data.draw(terms)
    demand = data.draw(demands(model))
    usage = data.draw(usages(demand))
    tier = data.draw(st.sampled_from([demand.tier, STANDARD, "a tier without a price"]))
    cost = charge(model, usage, on, TODAY, tier=tier, us_only=demand.us_only)
    assert 0 <= cost <= quote(model, demand, on, TODAY)


@PROPERTY
@given(st.data())
def test_whoever_asks_for_more_is_quoted_no_less(data: st.DataObject) -> None:
    model, on = data.draw(models()), data.draw(terms)
    demand = data.draw(demands(model))
    more = replace(
        demand,
        input=demand.input + data.draw(tokens),
        output=demand.output + data.draw(tokens),
        web_searches=demand.web_searches + data.draw(st.integers(0, 2)),
        long_cache=demand.long_cache or data.draw(st.booleans()),
        us_only=demand.us_only or data.draw(st.booleans()),
    )
    dearer = replace(on, markup=on.markup + data.draw(percents))
    assert quote(model, demand, on, TODAY) <= quote(model, more, on, TODAY) <= quote(model, more, dearer, TODAY)


@PROPERTY
@given(st.data())
def test_as_much_output_is_affordable_as_is_paid_for_and_not_a_token_more(data: st.DataObject) -> None:
    model, on = data.draw(models()), data.draw(terms)
    demand = data.draw(demands(model))
    whole = quote(model, demand, on, TODAY)
    nanos = data.draw(st.integers(0, whole + CENT) | st.sampled_from([0, whole - 1, whole]))
    cap = pricing.most_output(demand, lambda less: quote(model, less, on, TODAY) <= nanos)
    assert 0 <= cap <= demand.output
    assert cap == 0 or quote(model, replace(demand, output=cap), on, TODAY) <= nanos
    assert cap == demand.output or quote(model, replace(demand, output=cap + 1), on, TODAY) > nanos


def exactly(nanos: Fraction, on: Terms) -> int:
    """With the markup, rounded up once: to a nanodollar, or to whole cents."""
    return ceil(nanos * (1 + Fraction(on.markup) / 100) / on.whole) * on.whole


@PROPERTY
@given(st.data())
def test_a_charge_is_rounded_once_and_upward(data: st.DataObject) -> None:
    model, on, us_only = data.draw(models()), data.draw(terms), data.draw(st.booleans())
    usage = data.draw(usages(data.draw(demands(model))))
    tier = data.draw(st.sampled_from(sorted(model.tiers(TODAY))))
    used = usage.input + usage.cache_read + usage.cache_write + usage.cache_write_long + usage.input_audio
    steps = {rate.above: rate for rate in model.rates if rate.tier == tier and (rate.above < used or rate.above == 0)}
    rate = steps[max(steps)]
    price = Fraction(sum(getattr(usage, name) * getattr(rate, name) for name in CLASSES), 1000)
    price *= Fraction(model.us_percent if us_only else 100, 100)
    price += usage.web_searches * (model.web_search or 0)
    assert charge(model, usage, on, TODAY, tier=tier, us_only=us_only) == exactly(price, on)


@PROPERTY
@given(st.data())
def test_a_quote_takes_the_dearest_of_what_could_apply_and_rounds_once(data: st.DataObject) -> None:
    model, on = data.draw(models()), data.draw(terms)
    demand = data.draw(demands(model))
    read = demand.input + demand.web_searches * 20_000
    rates = [r for r in model.rates if r.tier in (demand.tier, STANDARD) and (r.above < read or r.above == 0)]
    dearest = max(
        getattr(rate, name) for rate in rates for name in INPUTS if demand.long_cache or name != "cache_write_long"
    )
    price = Fraction(read * dearest + demand.output * max(max(r.output, r.output_audio) for r in rates), 1000)
    price *= Fraction(model.us_percent if demand.us_only else 100, 100)
    price += demand.web_searches * (model.web_search or 0)
    assert quote(model, demand, on, TODAY) == exactly(price, on)


@PROPERTY
@given(st.data())
def test_rounding_each_request_costs_less_than_a_cent_more(data: st.DataObject) -> None:
    model, markup = data.draw(models()), data.draw(percents)
    usage = data.draw(usages(data.draw(demands(model))))
    carried = charge(model, usage, Terms(markup, 1), TODAY)
    rounded = charge(model, usage, Terms(markup, CENT), TODAY)
    assert rounded % CENT == 0 and 0 <= rounded - carried < CENT


@PROPERTY
@given(st.integers(0, 10**15), percents)
def test_what_is_shown_is_exact(amount: int, markup: Decimal) -> None:
    on = Terms(markup)
    marked_up = Fraction(amount) * (1 + Fraction(markup) / 100)
    assert Fraction(pricing.dollars(amount)) == Fraction(amount, 10**9)
    assume(amount < 10**11)
    assert Fraction(pricing.per_million(amount, on)) == marked_up / 10**6
    assert Fraction(pricing.per_thousand(amount, on)) == marked_up / 10**9
    assert not {"e", "E"} & set(pricing.dollars(amount) + pricing.per_million(amount, on))


# --- by hand --------------------------------------------------------------------------------------------------

PLAIN = {"tier": STANDARD, "above": 0, "input": 2_500_000, "output": 10_000_000}


def test_a_hello_costs_its_millionths_of_a_dollar() -> None:
    model = model_of([{"tier": STANDARD, "above": 0, "input": 100_000, "output": 500_000}])
    assert charge(model, Usage(input=10, output=4), Terms(), TODAY) == 3000
    assert pricing.dollars(3000) == "0.000003"


def test_a_class_without_a_price_of_its_own_costs_what_its_kind_costs() -> None:
    model = model_of([PLAIN])
    (rate,) = model.rates_of(STANDARD, TODAY)
    assert (rate.cache_read, rate.cache_write, rate.input_audio) == (2_500_000,) * 3
    assert (rate.cache_write_long, rate.output_audio) == (5_000_000, 10_000_000)


def test_a_long_context_is_dearer_as_a_whole_and_only_above_the_threshold() -> None:
    model = model_of([PLAIN, {"tier": STANDARD, "above": 272_000, "input": 5_000_000, "output": 15_000_000}])
    at, over = Usage(input=200_000, cache_read=72_000, output=10), Usage(input=200_001, cache_read=72_000, output=10)
    assert charge(model, at, Terms(), TODAY) == 272_000 * 2500 + 10 * 10_000
    assert charge(model, over, Terms(), TODAY) == 272_001 * 5000 + 10 * 15_000
    assert quote(model, Demand(272_000, 10), Terms(), TODAY) == charge(model, at, Terms(), TODAY)
    assert quote(model, Demand(272_001, 10), Terms(), TODAY) == charge(model, over, Terms(), TODAY)


def test_a_threshold_is_reached_by_what_is_above_it_and_not_by_what_is_at_it() -> None:
    rates = [{"tier": STANDARD, "above": above, "input": 10**6 * (1 + above), "output": 1} for above in (0, 1)]
    model = model_of(rates)
    assert [charge(model, Usage(input=count), Terms(), TODAY) for count in (1, 2)] == [1_000, 4_000]
    assert [quote(model, Demand(count, 0), Terms(), TODAY) for count in (1, 2)] == [1_000, 4_000]


def test_a_call_is_rounded_up_to_a_nanodollar_once_its_percentage_is_taken() -> None:
    assert [Terms().apply(picos) for picos in (1_000, 1_001, 100_000)] == [1, 2, 100]
    assert [Terms().apply(2_000, percent) for percent in (100, 110, 150)] == [2, 3, 3]


def test_only_who_asks_for_it_pays_for_staying_in_the_us() -> None:
    model = model_of([{"tier": STANDARD, "above": 0, "input": 10**6, "output": 1}], us_percent=110)
    usage = Usage(input=100)
    assert charge(model, usage, Terms(), TODAY) == 100_000
    assert charge(model, usage, Terms(), TODAY, us_only=True) == 110_000
    anywhere = model_of([{"tier": STANDARD, "above": 0, "input": 10**6, "output": 1}])
    assert charge(anywhere, usage, Terms(), TODAY, us_only=True) == 100_000


def test_a_model_whose_first_price_is_still_to_come_is_not_sold() -> None:
    dated = [
        {"tier": STANDARD, "above": 0, "from": since, "input": 1, "output": 1} for since in ("2027-01-01", "2028-01-01")
    ]
    assert model_of(dated).tiers(TODAY) == frozenset()
    assert model_of(dated).tiers("2027-01-01") == {STANDARD}


def test_a_model_whose_only_price_is_still_to_come_is_not_sold_before() -> None:
    model = model_of([{**PLAIN, "from": "2027-01-01"}])
    assert [model.tiers(day) for day in ("2026-12-31", "2027-01-01")] == [frozenset(), {STANDARD}]


def test_an_output_is_cut_to_the_last_token_that_is_paid_for() -> None:
    model = model_of([PLAIN])

    def most(nanos: int) -> int:
        demand = Demand(1000, 500)
        return pricing.most_output(demand, lambda less: quote(model, less, Terms(), TODAY) <= nanos)

    asked, token = 1000 * 2500, 10_000
    assert most(asked + 500 * token) == most(10**12) == 500
    assert most(asked + 500 * token - 1) == 499
    assert (most(asked + token), most(asked + token - 1)) == (1, 0)
    assert most(asked) == most(asked - 1) == 0, "whether nothing at all fits is another question"


def test_an_unknown_tier_is_charged_as_standard() -> None:
    model = model_of([PLAIN, {**PLAIN, "tier": "priority", "input": 5_000_000, "output": 20_000_000}])
    used = Usage(input=1000, output=1000)
    assert charge(model, used, Terms(), TODAY, tier="priority") == 2 * charge(model, used, Terms(), TODAY)
    assert charge(model, used, Terms(), TODAY, tier="ultrafast") == charge(model, used, Terms(), TODAY)


def test_an_embedding_has_no_output_to_pay_for() -> None:
    rates = [{"tier": STANDARD, "above": 0, "input": 20_000}]
    model = model_of(rates, kind="embedding", max_output=None)
    assert quote(model, Demand(1000, 0), Terms(), TODAY) == charge(model, Usage(input=1000), Terms(), TODAY) == 20_000
    (rate,) = model.rates
    assert (rate.output, rate.output_audio) == (0, 0)


def test_later_rates_replace_earlier_ones_whole_on_their_day() -> None:
    model = model_of(
        [
            PLAIN,
            {**PLAIN, "tier": "priority", "input": 5_000_000},
            {**PLAIN, "above": 100, "input": 9_000_000},
            {**PLAIN, "from": "2026-12-01", "input": 1_000_000},
            {**PLAIN, "from": "2027-01-01", "input": 3_000_000},
            {**PLAIN, "from": "2027-01-01", "tier": "flex", "input": 1_500_000},
        ]
    )
    by_day = {
        "2026-11-21": ({"standard", "priority"}, [2_500_000, 9_000_000]),
        "2026-11-30": ({"standard", "priority"}, [2_500_000, 9_000_000]),
        "2026-12-01": ({"standard"}, [1_000_000]),
        "2026-12-31": ({"standard"}, [1_000_000]),
        "2027-01-01": ({"standard", "flex"}, [3_000_000]),
        "2099-01-01": ({"standard", "flex"}, [3_000_000]),
    }
    for day, (tiers, prices) in by_day.items():
        assert model.tiers(day) == tiers
        assert [rate.input for rate in model.rates_of(STANDARD, day)] == prices
        assert charge(model, Usage(input=1), Terms(), day) == ceil(Fraction(prices[0], 1000))


def test_rates_may_be_listed_in_any_order() -> None:
    rates = [
        {**PLAIN, "above": above, "from": since, "input": price}
        for since, above, price in (("2027-01-01", 9, 4), ("2027-01-01", 0, 3), ("", 9, 2), ("", 0, 1))
    ]
    for day, prices in {TODAY: [1, 2], "2027-01-01": [3, 4]}.items():
        for listed in (rates, rates[::-1]):
            assert [rate.input for rate in model_of(listed).rates_of(STANDARD, day)] == prices


def test_what_a_usage_counts_stands_in_the_order_of_the_ledgers_columns() -> None:
    used = Usage(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert dict(zip(ledger.COUNTS, used.counts(), strict=True)) == {
        "input_tokens": 19,
        "output_tokens": 9,
        "cache_read_tokens": 3,
        "cache_write_tokens": 4,
        "cache_write_long_tokens": 5,
        "input_audio_tokens": 6,
        "output_audio_tokens": 7,
        "reasoning_tokens": 8,
        "web_searches": 9,
    }
    assert Usage().counts() == (0,) * 9


def test_a_demand_is_for_its_input_its_output_and_what_searches_bring_in() -> None:
    assert Demand(1_000, 500).tokens == 1_500
    assert Demand(1_000, 500, web_searches=3).tokens == 61_500
    assert Demand(1, 2) == Demand(1, 2, tier="standard", long_cache=False, us_only=False, web_searches=0)


def test_what_is_estimated_anew_of_one_side_replaces_all_classes_of_that_side_alone() -> None:
    used = Usage(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert pricing.with_input(used, 50) == Usage(50, 2, 0, 0, 0, 0, 7, 8, 9)
    assert pricing.with_output(used, 50) == Usage(1, 50, 3, 4, 5, 6, 0, 8, 9)


# --- the book that is shipped ---------------------------------------------------------------------------------


def test_the_book_sells_what_it_should() -> None:
    assert len(MODELS) > 200
    assert {model.provider for model in MODELS} == {"openai", "anthropic", "openrouter"}
    assert {model.kind for model in MODELS} == {"chat", "embedding"}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.provider}/{model.id}")
def test_every_model_of_the_book_can_be_priced_and_bounded(model: Model) -> None:
    assert model.max_input > 0 and model.context > 0
    assert (model.max_output > 0) == (model.kind == "chat")
    assert model.us_percent >= 100 and (model.web_search is None or model.web_search > 0)
    for day in {TODAY, *(rate.since for rate in model.rates)}:
        assert STANDARD in model.tiers(day)
        for tier in model.tiers(day):
            rates = model.rates_of(tier, day)
            assert rates[0].above == 0 and rates == sorted(rates, key=lambda rate: rate.above)
            for rate in rates:
                assert rate.input > 0 and (rate.output > 0 or model.kind == "embedding")
                assert rate.cache_read <= rate.input <= max(rate.cache_write, rate.input)
                assert rate.cache_write_long >= rate.cache_write


def test_a_model_is_all_that_the_book_says_of_it() -> None:
    said = model_of(
        [PLAIN],
        name="M",
        reasoning=True,
        aliases=["n"],
        retires="2028-01-01",
        us_percent=110,
        web_search=7,
        temperature=False,
        by_operator=True,
    )
    rate = pricing.Rate(STANDARD, 0, "", *(2_500_000, 10_000_000, *(2_500_000,) * 2, 5_000_000, 2_500_000, 10_000_000))
    limits = (1000, 1000, 1000)
    assert said == Model(
        "openai", "m", "M", "chat", *limits, True, (rate,), ("n",), "2028-01-01", 110, 7, False, True
    )  # fmt: skip
    unsaid = model_of([PLAIN])
    assert unsaid == Model("openai", "m", "m", "chat", *limits, False, (rate,), (), None, 100, None, True, False)
    assert unsaid == Model("openai", "m", "m", "chat", *limits, False, (rate,))
    (read,) = model_of([{"tier": STANDARD, "above": 0, "input": 5}], kind="embedding").rates
    assert (read.output, read.output_audio) == (0, 0)


def test_the_classes_of_tokens_are_those_of_a_rate_in_their_order() -> None:
    assert tuple(each.name for each in fields(pricing.Rate))[3:] == CLASSES


def test_the_book_knows_which_names_are_answered_for_no_longer() -> None:
    assert book_of().retired == {}
    said = load(json.dumps({"format": 1, "generated": TODAY, "retired": {"m-1": "2026-01-01"}, "models": []}))
    assert (said.generated, said.retired) == (TODAY, {"m-1": "2026-01-01"})


def test_a_name_means_one_model() -> None:
    book = load(BOOK)
    names = [(model.provider, name) for model in MODELS for name in (model.id, *model.aliases)]
    assert len(names) == len(set(names))
    assert all(book.find(provider, name) is not None for provider, name in names)


def test_an_answer_may_name_a_snapshot_that_the_book_has_not_heard_of() -> None:
    book = load(BOOK)
    for name in ("gpt-4o-2031-01-01", "gpt-4o-20310101", "gpt-4o"):
        found = book.find_reported("openai", name)
        assert found is not None and found.id == "gpt-4o"
    assert book.find("openai", "gpt-4o-2031-01-01") is None
    assert book.find_reported("openai", "gpt-4o-mini-tts-x") is None


def test_an_answer_that_names_a_snapshot_of_a_price_of_its_own_means_that() -> None:
    entry = {"provider": "openai", "kind": "chat", "context": 9, "max_input": 9, "max_output": 9, "rates": [PLAIN]}
    book = book_of({**entry, "id": "m"}, {**entry, "id": "m-2026-01-01"})
    found = [book.find_reported("openai", name) for name in ("m", "m-2026-01-01", "m-2026-02-02")]
    assert [model and model.id for model in found] == ["m", "m-2026-01-01", "m"]


def test_a_model_may_bear_a_name_twice() -> None:
    assert model_of([PLAIN], aliases=["m", "n", "n"]).aliases == ("m", "n", "n")


# --- a book that is wrong -------------------------------------------------------------------------------------

WRONG_RATES = {
    "no rates": [],
    "no standard tier": [{**PLAIN, "tier": "flex"}],
    "a standard price above a threshold alone": [{**PLAIN, "above": 5}],
    "a tier above a threshold alone": [PLAIN, {**PLAIN, "tier": "flex", "above": 5}],
    "a later set without a standard price": [PLAIN, {**PLAIN, "tier": "flex", "from": "2027-01-01"}],
    "no input price": [{"tier": STANDARD, "above": 0, "output": 5}],
    "no output price": [{"tier": STANDARD, "above": 0, "input": 5}],
    "an input price of zero": [{**PLAIN, "input": 0}],
    "an output price of zero": [{**PLAIN, "output": 0}],
    "a negative price": [{**PLAIN, "cache_read": -1}],
    "a price as a text": [{**PLAIN, "cache_read": "1"}],
    "a price as a truth": [{**PLAIN, "input": True}],
    "a price as a fraction": [{**PLAIN, "input": 2.5}],
    "a price beyond belief": [{**PLAIN, "input": pricing.MOST_PICOS + 1}],
}


@pytest.mark.parametrize("rates", WRONG_RATES.values(), ids=list(WRONG_RATES))
def test_a_model_without_a_proper_price_is_refused(rates: list[dict[str, Any]]) -> None:
    with pytest.raises(PriceError):
        model_of(rates)


@pytest.mark.parametrize("name", ["context", "max_input", "max_output"])
@pytest.mark.parametrize("limit", [None, 0, -1, "many", True, 100_000_001])
def test_a_model_without_a_proper_limit_is_refused(name: str, limit: object) -> None:
    with pytest.raises(PriceError, match=f"openai/m: {name} must be a number of tokens"):
        model_of([PLAIN], **{name: limit})


@pytest.mark.parametrize(
    "name", ["input", "output", "cache_read", "cache_write", "cache_write_long", "input_audio", "output_audio"]
)
@pytest.mark.parametrize("price", [-1, "1", pricing.MOST_PICOS + 1])
def test_a_price_of_any_class_that_can_be_none_is_refused_by_name(name: str, price: object) -> None:
    with pytest.raises(PriceError, match=f"the {name} price must be picodollars per token"):
        model_of([{**PLAIN, name: price}])


def test_a_book_with_a_fraction_anywhere_is_refused() -> None:
    with pytest.raises(PriceError, match=r"prices.json: 0.5 is not an integer"):
        model_of([PLAIN], us_percent=0.5)


@pytest.mark.parametrize("tokens", [1, 100_000_000])
def test_the_least_and_the_greatest_limit_are_proper_ones(tokens: int) -> None:
    model = model_of([PLAIN], context=tokens, max_input=tokens, max_output=tokens)
    assert (model.context, model.max_input, model.max_output) == (tokens, tokens, tokens)


def test_two_models_of_one_name_are_refused() -> None:
    entry = {"provider": "openai", "kind": "chat", "context": 9, "max_input": 9, "max_output": 9, "rates": [PLAIN]}
    with pytest.raises(PriceError, match="b names both a and b"):
        book_of({**entry, "id": "a", "aliases": ["b"]}, {**entry, "id": "b"})
    with pytest.raises(PriceError, match="c names both a and c"):  # by the first of its names
        book_of({**entry, "id": "a", "aliases": ["b", "c"]}, {**entry, "id": "c", "aliases": ["b"]})


def test_a_book_of_another_format_is_refused() -> None:
    with pytest.raises(PriceError, match="format"):
        load(json.dumps({"format": 2, "generated": TODAY, "models": []}))
