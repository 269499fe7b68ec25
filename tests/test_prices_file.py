"""The operator's `prices.toml`: what it can say, and that every mistake in it is named before anything is sold."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from importlib.resources import files

import pytest

from goosestack import pricing
from goosestack.pricing import STANDARD, Demand, PriceBook, PriceError, Terms, Usage, charge, load, quote

TODAY = "2026-11-21"
SOLD = {"gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-5", "gpt-5.4", "text-embedding-ada-002"} | {
    "claude-haiku-4-5",
    "claude-opus-4-5",
    "claude-fable-5",
}
SHIPPED = json.loads((files("goosestack") / "prices.json").read_text())
GENERATED = json.dumps(
    {**SHIPPED, "models": [each for each in SHIPPED["models"] if SOLD & {each["id"], *each.get("aliases", ())}]}
)
"""A few models of the book that is shipped, which is read in a twentieth of the time."""


def book(text: str) -> PriceBook:
    return load(GENERATED, text)


# --- what it can say ------------------------------------------------------------------------------------------


def test_a_price_of_the_operators_own_stands_in_place_of_the_books() -> None:
    model = book("""
        [models."gpt-4o"]
        input = 3
        output = 12.5
        cache_read = "0.75"
    """).find("openai", "gpt-4o")
    assert model is not None and model.by_operator
    (rate,) = model.rates_of(STANDARD, TODAY)
    assert (rate.input, rate.output, rate.cache_read, rate.cache_write) == (3_000_000, 12_500_000, 750_000, 3_000_000)
    assert model.tiers(TODAY) == {STANDARD}
    plain = load(GENERATED).find("openai", "gpt-4o")
    assert plain is not None and not plain.by_operator
    assert (model.context, model.max_output, model.aliases) == (plain.context, plain.max_output, plain.aliases)
    assert (model.web_search, model.us_percent, model.kind) == (plain.web_search, plain.us_percent, plain.kind)


@pytest.mark.parametrize(
    "name", ["input", "output", "cache_read", "cache_write", "cache_write_long", "input_audio", "output_audio"]
)
def test_each_class_of_tokens_can_have_a_price_of_its_own(name: str) -> None:
    prices = {"input": 1, "output": 2, name: 7}
    lines = "\n".join(f"{each} = {price}" for each, price in prices.items())
    made = book(f'[models.house]\nprovider = "litellm"\ncontext = 1000\n{lines}')
    model = made.find("litellm", "house")
    assert model is not None
    assert charge(model, Usage(**{name: 1_000_000}), Terms(), TODAY) == 7_000_000_000


def test_it_stands_in_place_of_every_price_per_token_and_of_the_day_on_which_the_model_ends() -> None:
    made = book("""
        [models."gpt-5.4"]
        input = 1
        output = 2
        [models."gpt-4o"]
        input = 1
        output = 2
    """)
    plain, model = load(GENERATED).find("openai", "gpt-5.4"), made.find("openai", "gpt-5.4")
    assert plain is not None and model is not None
    assert plain.tiers(TODAY) == {STANDARD, "flex", "priority"} and len(plain.rates_of(STANDARD, TODAY)) == 2
    (rate,) = model.rates
    assert (rate.tier, rate.above, rate.input, rate.output) == (STANDARD, 0, 1_000_000, 2_000_000)
    assert (rate.cache_read, rate.cache_write, rate.cache_write_long) == (1_000_000, 1_000_000, 2_000_000)
    before, after = load(GENERATED).find("openai", "gpt-4o"), made.find("openai", "gpt-4o")
    assert before is not None and before.retires is not None
    assert after is not None and after.retires is None


def test_the_operators_price_holds_for_every_name_of_the_model() -> None:
    made = book("""
        [models."gpt-4o"]
        input = 3
        output = 12
        aliases = ["house-model"]
    """)
    plain = load(GENERATED).find("openai", "gpt-4o")
    assert plain is not None and plain.aliases
    for name in ("gpt-4o", "house-model"):
        model = made.find("openai", name)
        assert model is not None and model.by_operator
    for name in plain.aliases:
        assert made.find("openai", name) is None, "an old name would sell at the old price"


def test_a_price_under_an_alias_is_the_models_price() -> None:
    plain = load(GENERATED).find("anthropic", "claude-haiku-4-5-20251001")
    assert plain is not None
    made = book("""
        [models."claude-haiku-4-5-20251001"]
        input = 2
        output = 9
    """).find("anthropic", "claude-haiku-4-5")
    assert made is not None and made.id == plain.id and made.by_operator
    assert charge(made, Usage(input=1), Terms(), TODAY) == 2000


def test_limits_alone_can_be_changed_and_the_prices_stay() -> None:
    model = book("""
        [models."gpt-4o"]
        max_output = 1000
        max_input = 2000
        context = 3000
    """).find("openai", "gpt-4o")
    plain = load(GENERATED).find("openai", "gpt-4o")
    assert model is not None and plain is not None
    assert (model.max_output, model.max_input, model.context) == (1000, 2000, 3000)
    assert model.rates == plain.rates and not model.by_operator


def test_whether_a_model_takes_a_temperature_can_be_changed_alone() -> None:
    found = [
        book(text).find("openai", name)
        for name in ("gpt-4o", "gpt-5")
        for text in (
            f'[models."{name}"]\nmax_output = 9',
            f'[models."{name}"]\ntemperature = {str(name == "gpt-5").lower()}',
        )
    ]
    assert [model and model.temperature for model in found] == [True, False, False, True]


@pytest.mark.parametrize("name", ["gpt-4.1", "gpt-5", "claude-fable-5", "text-embedding-ada-002"])
def test_a_price_of_the_operators_own_changes_nothing_else_of_a_model(name: str) -> None:
    made = book(f'[models."{name}"]\ninput = 1\noutput = 2')
    (provider,) = (each for each in ("openai", "anthropic") if made.find(each, name))
    plain, model = load(GENERATED).find(provider, name), made.find(provider, name)
    assert plain is not None and model is not None
    assert model == replace(plain, rates=model.rates, retires=None, by_operator=True)


def test_a_model_that_nobody_else_knows_can_be_sold() -> None:
    made = book("""
        [models."house/llama"]
        provider = "litellm"
        name = "House Llama"
        input = 0.1
        output = 0.2
        context = 32768
        max_output = 4096
        reasoning = false
        temperature = false
        web_search = 0.005
        aliases = ["llama"]
    """)
    model = made.find("litellm", "llama")
    assert model is not None and model is made.find("litellm", "house/llama")
    assert (model.id, model.name, model.kind) == ("house/llama", "House Llama", "chat")
    assert (model.reasoning, model.temperature) == (False, False)
    assert (model.context, model.max_input, model.max_output) == (32768, 32768, 4096)
    assert model.web_search == 5_000_000
    assert quote(model, Demand(10, 10, web_searches=1), Terms(), TODAY) == 5_000_000 + 20_010 * 100 + 10 * 200
    assert made.chosen["house/llama"] == "litellm"


def test_of_a_model_that_nobody_else_knows_the_limit_and_the_prices_suffice() -> None:
    made = book("""
        [models.house]
        provider = "litellm"
        input = 1
        output = 2
        context = 1000
    """).find("litellm", "house")
    assert made is not None
    assert (made.id, made.name, made.kind, made.aliases) == ("house", "house", "chat", ())
    assert (made.context, made.max_input, made.max_output) == (1000, 1000, 1000)
    assert (made.reasoning, made.temperature, made.us_percent, made.web_search) == (True, True, 100, None)


def test_an_embedding_of_ones_own_needs_no_output_price() -> None:
    model = book("""
        [models.embed]
        provider = "litellm"
        kind = "embedding"
        input = 0.02
        context = 8192
    """).find("litellm", "embed")
    assert model is not None and (model.kind, model.max_output) == ("embedding", 0)
    assert charge(model, Usage(input=1000), Terms(), TODAY) == 20_000


def test_a_model_can_be_sold_by_another_provider_at_the_books_price() -> None:
    made = book("""
        [models."gpt-4o"]
        provider = "litellm"
    """)
    assert made.chosen["gpt-4o"] == "litellm"
    through, direct = made.find("litellm", "gpt-4o"), made.find("openai", "gpt-4o")
    assert through is not None and direct is not None and through.rates == direct.rates
    assert set(made.providers_of("gpt-4o")) == {"openai", "litellm"}


def test_what_is_said_of_a_model_by_another_of_its_names_is_said_of_the_same_providers() -> None:
    made = book("""
        [models."gpt-4o"]
        provider = "litellm"
        max_output = 1000
        [models."gpt-4o-2024-08-06"]
        provider = "litellm"
        max_input = 5000
    """)
    model = made.find("litellm", "gpt-4o")
    assert model is not None and (model.max_input, model.max_output) == (5000, 1000)


def test_names_of_ones_own_and_an_order_of_providers() -> None:
    made = book("""
        prefer = ["openrouter", "anthropic"]
        [aliases]
        small = "gpt-4o-mini"
        "best" = "claude-opus-4-5"
    """)
    assert made.prefer == ("openrouter", "anthropic")
    assert made.aliases == {"small": "gpt-4o-mini", "best": "claude-opus-4-5"}


def test_an_alias_can_name_a_model_of_the_operators_own() -> None:
    made = book("""
        [aliases]
        mine = "house/llama"
        [models."house/llama"]
        provider = "litellm"
        input = 1
        output = 1
        context = 10
    """)
    assert made.aliases == {"mine": "house/llama"}


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "[models]\n[aliases]\n", "prefer = []"])
def test_a_file_that_says_nothing_changes_nothing(text: str) -> None:
    made = book(text)
    assert made.models == load(GENERATED).models and not made.aliases and not made.prefer and not made.chosen


@pytest.mark.parametrize(
    ("written", "picos"),
    [
        ("3", 3_000_000),
        ("3.0", 3_000_000),
        ('"3"', 3_000_000),
        ("0.1", 100_000),
        ('"0.1"', 100_000),
        ("2.675", 2_675_000),
        ("0.000001", 1),
        ("1e-6", 1),
        ("0.0000001", 1),
        ("0.1234567", 123_457),
        ("9_999.999999", 9_999_999_999),
        ("10000", 10_000_000_000),
    ],
)
def test_decimals_are_taken_as_written_and_never_below(written: str, picos: int) -> None:
    model = book(f'[models."gpt-4o"]\ninput = {written}\noutput = {written}').find("openai", "gpt-4o")
    assert model is not None
    (rate,) = model.rates_of(STANDARD, TODAY)
    assert rate.input == rate.output == picos


# --- what is a mistake ----------------------------------------------------------------------------------------

GPT = '[models."gpt-4o"]\n'
MISTAKES = {
    "nested too deeply": (f"prefer = {'[' * 5_000}", "prices.toml: it is nested too deeply"),
    "no TOML": ("models = [", "prices.toml: "),
    "a key twice": (f"{GPT}input = 1\ninput = 2\noutput = 1", "prices.toml: "),
    "an unknown table": ("[model.x]\ninput = 1", "unknown model"),
    "models that are no tables": ("models = 5", "models holds a table"),
    "a model that is no table": ("[models]\nx = 5", "models holds a table"),
    "aliases that are no table": ('aliases = ["x"]', "aliases is a table"),
    "an alias of nothing": ('[aliases]\nx = "no-such-model"', "alias x names 'no-such-model'"),
    "an alias of a number": ("[aliases]\nx = 5", "alias x names 5"),
    "an alias of an alias": ('[aliases]\nx = "gpt-4o"\ny = "x"', "alias y names 'x'"),
    "a preference for a stranger": ('prefer = ["azure"]', "prefer lists providers"),
    "a preference that is no list": ('prefer = "openai"', "prefer lists providers"),
    "a preference that is a number": ("prefer = 5", "prefer lists providers"),
    "a preference of lists": ('prefer = [["openai"]]', "prefer lists providers"),
    "an unknown key": (f"{GPT}inputs = 1", "models.gpt-4o: unknown inputs"),
    "a new model without a provider": (
        "[models.x]\ninput = 1\noutput = 1",
        "models.x: name its provider: openai, anthropic, openrouter, litellm",
    ),
    "a provider that is none": (f'{GPT}provider = "azure"', "name its provider"),
    "a provider that is a number": (f"{GPT}provider = 5", "name its provider"),
    "an input price alone": (f"{GPT}input = 1", "no price for its output"),
    "an output price alone": (f"{GPT}output = 1", "no price for its input"),
    "a price of zero": (f"{GPT}input = 0\noutput = 1", "models.gpt-4o.input"),
    "a negative price": (f"{GPT}input = 1\noutput = -1", "models.gpt-4o.output"),
    "a price as words": (f'{GPT}input = "cheap"\noutput = 1', "models.gpt-4o.input: 'cheap' is not a price"),
    "a price with its currency": (f'{GPT}input = "$1"\noutput = 1', "models.gpt-4o.input"),
    "a price as a truth": (f"{GPT}input = true\noutput = 1", "models.gpt-4o.input: True is not a price"),
    "a price as a list": (f"{GPT}input = [1]\noutput = 1", "models.gpt-4o.input"),
    "a price as a date": (f"{GPT}input = 2026-01-01\noutput = 1", "models.gpt-4o.input"),
    "no number at all": (f"{GPT}input = nan\noutput = 1", "models.gpt-4o.input"),
    "an endless price": (f"{GPT}input = inf\noutput = 1", "models.gpt-4o.input"),
    "a price beyond arithmetic": (f'{GPT}input = "1e999999"\noutput = 1', "models.gpt-4o.input"),
    "a price per token, taken for one per million": (f"{GPT}input = 10001\noutput = 1", "per million tokens"),
    "a search for less than nothing": (f"{GPT}input = 1\noutput = 1\nweb_search = -1", "models.gpt-4o.web_search"),
    "a search beyond belief": (f"{GPT}input = 1\noutput = 1\nweb_search = 1001", "models.gpt-4o.web_search"),
    "a search beyond arithmetic": (f'{GPT}input = 1\noutput = 1\nweb_search = "1e999999"', "gpt-4o.web_search"),
    "a search fee without prices": (f"{GPT}web_search = 1", "web_search only with an input and an output price"),
    "other names without prices": (f'{GPT}aliases = ["x"]', "aliases only with an input and an output price"),
    "a limit of nothing": (f"{GPT}max_output = 0", "max_output must be a number of tokens"),
    "a negative limit": (f"{GPT}context = -1", "context must be a number of tokens"),
    "a limit as words": (f'{GPT}context = "big"', "context must be a number of tokens"),
    "two limits as words": (f'{GPT}max_input = "big"\ncontext = "big"', "context must be a number of tokens"),
    "two other limits as words": (f'{GPT}max_output = "big"\nmax_input = "big"', "max_input must be a number of"),
    "a limit as a truth": (f"{GPT}max_input = true", "max_input must be a number of tokens"),
    "a limit as a fraction": (f"{GPT}max_input = 1.5", "max_input must be a number of tokens"),
    "a number just beyond arithmetic": (f"{GPT}input = 1_000_000_000_000\noutput = 1", "1000000000000 is not a price"),
    "a number within arithmetic": (f"{GPT}input = 999_999_999_999\noutput = 1", "per million tokens must be above 0"),
    "a limit of nothing beside prices": (f"{GPT}input = 1\noutput = 1\nmax_output = 0", "max_output must be"),
    "a new model without limits": (
        '[models.x]\nprovider = "openai"\ninput = 1\noutput = 1',
        "openai/x: context must be a number of tokens",
    ),
    "a new model without prices": ('[models.x]\nprovider = "openai"\ncontext = 9', "openai/x has no price for its"),
    "a kind that is none": (f'{GPT}input = 1\noutput = 1\nkind = "image"', "kind must be chat or embedding"),
    "a name that is a number": (f"{GPT}input = 1\noutput = 1\nname = 5", "name must be a text"),
    "names as one text": (f'{GPT}input = 1\noutput = 1\naliases = "x"', "aliases must be a list"),
    "names that are numbers": (f"{GPT}input = 1\noutput = 1\naliases = [1]", "aliases must be a list of names"),
    "a name that is taken": (f'{GPT}input = 1\noutput = 1\naliases = ["gpt-4o-mini"]', "names both"),
    "temperature as a number": (f"{GPT}temperature = 1", "temperature must be true or false"),
    "reasoning as words": (f'{GPT}input = 1\noutput = 1\nreasoning = "yes"', "reasoning must be true or false"),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_named(text: str, words: str) -> None:
    with pytest.raises(PriceError) as caught:
        book(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("written", "nanos"), [("0", 0), ("1000", 10**12)])
def test_a_search_costs_from_nothing_to_a_thousand_dollars(written: str, nanos: int) -> None:
    model = book(f"{GPT}input = 1\noutput = 1\nweb_search = {written}").find("openai", "gpt-4o")
    assert model is not None and model.web_search == nanos


def test_a_search_is_never_rounded_down_to_nothing() -> None:
    model = book(f"{GPT}input = 1\noutput = 1\nweb_search = 0.0000000001").find("openai", "gpt-4o")
    assert model is not None and model.web_search == 1


def test_prices_are_shown_with_the_operators_markup() -> None:
    assert pricing.per_thousand(2_500_000, Terms()) == "0.0025"
    assert pricing.per_thousand(2_500_000, Terms(markup=Decimal("12.5"))) == "0.0028125"
    assert pricing.per_million(2_500_000, Terms(markup=Decimal(20))) == "3"
    assert pricing.per_thousand(1, Terms()) == "0.000000001"
