"""scripts/update-prices: how two price lists become one price book. No network; the lists are made by hand."""

import ast
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
TODAY = date(2026, 11, 21)
Book = dict[tuple[str, str], dict[str, object]]


def load() -> ModuleType:
    loader = SourceFileLoader("update_prices", str(ROOT / "scripts" / "update-prices"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


script = load()


def genai(openai: str = "", anthropic: str = "", openrouter: str = "") -> str:
    """The data module of genai-prices with these models."""
    providers = {"openai": openai, "anthropic": anthropic, "openrouter": openrouter}
    listed = ", ".join(f"Provider(id={name!r}, models=[{models}])" for name, models in providers.items())
    return f"from .types import *\nproviders: list[Provider] = [{listed}]\n"


def info(model: str, prices: str, **more: str) -> str:
    """One ModelInfo; what is left of the fields as Python source."""
    fields = {"match": f"ClauseEquals(equals={model!r})", "prices": prices, **more}
    return f"ModelInfo(id={model!r}, " + ", ".join(f"{key}={value}" for key, value in fields.items()) + "),"


def usd(**prices: str) -> str:
    """A ModelPrice in dollars per million tokens: usd(input="2"), or usd(input="2 200000:4") with a long context."""
    return f"ModelPrice({', '.join(f'{key}_mtok={steps(value)}' for key, value in prices.items())})"


def steps(value: str) -> str:
    base, *tiers = value.split()
    if not tiers:
        return f"Decimal({base!r})"
    starts = (tier.split(":") for tier in tiers)
    listed = ", ".join(f"Tier(start={start}, price=Decimal({price!r}))" for start, price in starts)
    return f"TieredPrices(base=Decimal({base!r}), tiers=[{listed}])"


def since(day: date, prices: str) -> str:
    start = f"datetime.date({day.year}, {day.month}, {day.day})"
    return f"ConditionalPrice(constraint=StartDateConstraint(start_date={start}), prices={prices})"


def variant(when: Mapping[str, str], prices: str) -> str:
    return f"PriceVariant(when={dict(when)!r}, prices={prices})"


def entry(provider: str = "openai", **more: object) -> Mapping[str, object]:
    """One model of litellm, prices in dollars per token: the same as usd(input="2", output="10")."""
    return {
        "litellm_provider": provider,
        "mode": "chat",
        "max_input_tokens": 900,
        "max_output_tokens": 100,
        "input_cost_per_token": 2e-06,
        "output_cost_per_token": 1e-05,
        **more,
    }


TWO_TEN = usd(input="2", output="10")


def built(
    openai: str = "",
    anthropic: str = "",
    openrouter: str = "",
    litellm: Mapping[str, Mapping[str, object]] | None = None,
    day: date = TODAY,
) -> tuple[Book, list[str]]:
    """The book as a reader of the JSON sees it, by provider and id, and the lines for stderr."""
    models, notes = script.build(genai(openai, anthropic, openrouter), json.dumps(litellm or {}), day)
    book = json.loads(script.render(models, {}, day, {}))
    return {(model["provider"], model["id"]): model for model in book["models"]}, notes.lines()


def rows(model: Mapping[str, object]) -> list[str]:
    """Rates as text: "from tier above: component price, ..." """
    listed: list[str] = []
    rates = model["rates"]
    assert isinstance(rates, list)
    for rate in rates:
        start, tier, above = rate.pop("from"), rate.pop("tier"), rate.pop("above")
        listed.append(f"{start} {tier} {above}: " + ", ".join(f"{key} {price}" for key, price in rate.items()))
    return listed


def reason(lines: Sequence[str], model: str) -> str:
    """Why a model was left out."""
    (line,) = [line for line in lines if line.startswith("left out") and model in line.split(": ")[-1].split(", ")]
    return line.split(": ")[2].rsplit(" (", 1)[0]


# --- money


@pytest.mark.parametrize(
    ("dollars_per_million", "picodollars"),
    [("2", 2_000_000), ("0.01", 10_000), ("0.0833333333333333", 83_334), ("0.0000001", 1), ("9999", 9_999_000_000)],
)
def test_a_price_is_whole_picodollars_per_token_rounded_up(dollars_per_million: str, picodollars: int) -> None:
    assert script.picodollars(Decimal(dollars_per_million)) == picodollars


@pytest.mark.parametrize("price", ["NaN", "Infinity", "-1", "10000"])
def test_a_price_that_cannot_be_true_is_refused_and_named(price: str) -> None:
    with pytest.raises(script.RefusedError, match=r"^openai gpt-x: standard input: "):
        built(openai=info("gpt-x", usd(input=price, output="10")), litellm={"gpt-x": entry()})


@pytest.mark.parametrize("price", ["0", "0.000002"])
def test_a_first_party_model_that_costs_nothing_or_next_to_nothing_is_refused(price: str) -> None:
    with pytest.raises(script.RefusedError, match=r"^openai gpt-x: standard input"):
        built(
            openai=info("gpt-x", usd(input=price, output="10")),
            litellm={"gpt-x": entry(input_cost_per_token=float(price) / 1e6)},
        )


def test_litellm_prices_are_read_as_the_decimals_they_are_written_as() -> None:
    read = script.read_litellm('{"gpt-x": {"litellm_provider": "openai", "input_cost_per_token": 2.5e-07}}')
    assert read["gpt-x"].tiers == {"standard": {"input": {0: Decimal("0.25")}}}


# --- reading


def test_the_data_module_is_read_and_never_run() -> None:
    call = script.literal(ast.parse("os.system('true')", mode="eval").body)
    assert call == script.Call("system", {"0": "true"})


@pytest.mark.parametrize("source", ["[x for x in y]", "1 + 1", "0.5"])
def test_a_data_module_that_is_more_than_literals_is_refused(source: str) -> None:
    with pytest.raises(script.RefusedError):
        script.literal(ast.parse(source, mode="eval").body)


def test_only_names_that_are_spelled_out_are_names() -> None:
    clause = "ClauseOr(or_=[ClauseEquals(equals='a'), ClauseRegex(regex='^b'), ClauseStartsWith(starts_with='c')])"
    listing = script.read_listing(script.literal(ast.parse(info("a", TWO_TEN, match=clause)[:-1], mode="eval").body))
    assert listing.names == {"a"}


# --- two sources


def test_a_model_is_one_line_with_all_that_both_sources_know() -> None:
    book, lines = built(
        openai=info("gpt-x", usd(input="2", cache_read="0.2", output="10"), name="'GPT X'", context_window="1000"),
        litellm={
            "gpt-x": entry(cache_read_input_token_cost=2e-07, supports_reasoning=True, deprecation_date="2027-01-14")
        },
    )
    assert book["openai", "gpt-x"] == {
        "provider": "openai",
        "id": "gpt-x",
        "aliases": [],
        "kind": "chat",
        "name": "GPT X",
        "context": 1000,
        "max_input": 900,
        "max_output": 100,
        "reasoning": True,
        "temperature": False,
        "retires": "2027-01-14",
        "web_search": None,
        "rates": [
            {"from": None, "tier": "standard", "above": 0, "input": 2000000, "output": 10000000, "cache_read": 200000}
        ],
    }
    assert [line for line in lines if "gpt-x" in line] == []


def test_where_the_sources_differ_the_dearer_price_is_taken_and_noted() -> None:
    book, lines = built(openai=info("gpt-x", usd(input="3", output="9")), litellm={"gpt-x": entry()})
    assert rows(book["openai", "gpt-x"]) == ["None standard 0: input 3000000, output 10000000"]
    assert "differs: openai gpt-x: standard input: genai-prices 3000000, litellm 2000000; taken 3000000" in lines
    assert "differs: openai gpt-x: standard output: genai-prices 9000000, litellm 10000000; taken 10000000" in lines


def test_an_exception_says_which_source_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(script.EXCEPTIONS, ("openai", "gpt-x", "input"), "litellm")
    book, _ = built(openai=info("gpt-x", usd(input="3", output="10")), litellm={"gpt-x": entry()})
    assert rows(book["openai", "gpt-x"]) == ["None standard 0: input 2000000, output 10000000"]


def test_a_web_search_costs_the_dearer_fee_in_nanodollars_per_call() -> None:
    prices = TWO_TEN[:-1] + ", web_searches_kcount=Decimal('10'))"
    fees = {"search_context_size_low": 0.01, "search_context_size_high": 0.025}
    book, lines = built(
        openai=info("gpt-x", prices) + info("gpt-y", prices),
        litellm={"gpt-x": entry(), "gpt-y": entry(search_context_cost_per_query=fees)},
    )
    assert book["openai", "gpt-x"]["web_search"] == 10_000_000
    assert book["openai", "gpt-y"]["web_search"] == 25_000_000
    assert "differs: openai gpt-y: web_search: genai-prices 10000000, litellm 25000000" in lines


def test_an_embedding_model_has_no_output() -> None:
    fields = entry(mode="embedding", output_cost_per_token=0.0, max_output_tokens=None, max_input_tokens=8191)
    prices = usd(input="2")
    book, _ = built(
        openai=info("text-embedding-x", prices, context_window="8192"), litellm={"text-embedding-x": fields}
    )
    model = book["openai", "text-embedding-x"]
    assert (model["kind"], model["max_input"], model["max_output"]) == ("embedding", 8192, 0)
    assert rows(model) == ["None standard 0: input 2000000"]


def test_an_anthropic_model_may_be_filled_with_input_to_its_context() -> None:
    fields = entry(
        "anthropic",
        cache_creation_input_token_cost=2.5e-06,
        cache_creation_input_token_cost_above_1hr=4e-06,
        provider_specific_entry={"us": 1.1, "fast": 2.0},
    )
    book, _ = built(
        anthropic=info("claude-x", usd(input="2", output="10", cache_write="2.5"), context_window="1000"),
        litellm={"claude-x": fields},
    )
    model = book["anthropic", "claude-x"]
    assert (model["context"], model["max_input"], model["us_percent"]) == (1000, 1000, 110)
    assert rows(model) == [
        "None standard 0: input 2000000, output 10000000, cache_write 2500000, cache_write_long 4000000",
        "None fast 0: input 4000000, output 20000000, cache_write 5000000, cache_write_long 8000000",
    ]


def test_a_model_that_litellm_lacks_gets_its_limits_from_the_supplement() -> None:
    book, _ = built(anthropic=info("claude-fable-5-2", usd(input="8", output="40")))
    assert book["anthropic", "claude-fable-5-2"]["max_output"] == 128_000


# --- tiers and lengths


def test_a_long_request_has_its_own_row() -> None:
    fields = entry(input_cost_per_token_above_272k_tokens=4e-06, output_cost_per_token_above_272k_tokens=1.5e-05)
    book, lines = built(openai=info("gpt-x", usd(input="2 272000:4", output="10 272000:15")), litellm={"gpt-x": fields})
    assert rows(book["openai", "gpt-x"]) == [
        "None standard 0: input 2000000, output 10000000",
        "None standard 272000: input 4000000, output 15000000",
    ]
    assert not [line for line in lines if line.startswith("differs")]


def test_a_tier_has_every_component_and_the_names_that_responses_report() -> None:
    priority = usd(input="4", output="20")
    variants = (
        f"[{variant({'service_tier': 'default'}, 'ModelPrice()')}, {variant({'processing': 'batch'}, usd(input='1'))},"
        f" {variant({'service_tier': 'flex'}, usd(input='1', output='5'))},"
        f" {variant({'service_tier': 'fast'}, priority)}, {variant({'service_tier': 'priority'}, priority)}]"
    )
    book, _ = built(
        openai=info("gpt-x", usd(input="2", output="10", cache_read="0.3"), price_variants=variants),
        litellm={"gpt-x": entry(input_cost_per_token_batches=1e-06, input_cost_per_token_ultrafast=1e-05)},
    )
    assert rows(book["openai", "gpt-x"]) == [
        "None standard 0: input 2000000, output 10000000, cache_read 300000",
        # What the cheaper tier does not price costs no less than the standard price.
        "None flex 0: input 1000000, output 5000000, cache_read 300000",
        "None priority 0: input 4000000, output 20000000, cache_read 600000",
    ]


def test_a_tier_without_long_prices_never_undercuts_the_standard_price_of_a_long_request() -> None:
    variants = (
        f"[{variant({'service_tier': 'flex'}, usd(input='1', output='5'))},"
        f" {variant({'service_tier': 'priority'}, usd(input='5', output='25'))}]"
    )
    prices = usd(input="2 272000:4", output="10 272000:15")
    book, _ = built(openai=info("gpt-x", prices, price_variants=variants), litellm={"gpt-x": entry()})
    assert rows(book["openai", "gpt-x"])[2:] == [
        "None flex 0: input 1000000, output 5000000",
        "None flex 272000: input 4000000, output 15000000",
        "None priority 0: input 5000000, output 25000000",
    ]


@pytest.mark.parametrize(
    ("provider", "long_write"),
    [("openai", ", cache_write_long 5000000"), ("anthropic", ", cache_write_long 4000000"), ("mistral", "")],
)
def test_an_unlisted_long_cache_write_costs_what_its_maker_always_asks(provider: str, long_write: str) -> None:
    prices = usd(input="2", output="10", cache_write="2.5")
    book, _ = built(openrouter=info(f"{provider}/x", prices, context_window="1000"))
    assert rows(book["openrouter", f"{provider}/x"]) == [
        f"None standard 0: input 2000000, output 10000000, cache_write 2500000{long_write}"
    ]


# --- dates


def test_prices_to_come_follow_as_a_complete_set_and_prices_gone_by_are_dropped() -> None:
    prices = (
        f"[ConditionalPrice(prices={usd(input='9', output='9')}), {since(date(2026, 1, 1), TWO_TEN)},"
        f" {since(date(2027, 1, 1), usd(input='1', output='5'))}]"
    )
    variants = f"[{variant({'service_tier': 'priority'}, usd(input='4', output='20'))}]"
    book, _ = built(openai=info("gpt-x", prices, price_variants=variants), litellm={"gpt-x": entry()})
    assert rows(book["openai", "gpt-x"]) == [
        "None standard 0: input 2000000, output 10000000",
        "None priority 0: input 4000000, output 20000000",
        "2027-01-01 standard 0: input 1000000, output 5000000",
        "2027-01-01 priority 0: input 4000000, output 20000000",
    ]


def test_a_price_by_the_hour_is_the_dearest_of_the_day() -> None:
    night = "TimeOfDateConstraint(start_time=datetime.time(0, 30, tzinfo=datetime.UTC), end_time=datetime.time(8))"
    prices = (
        f"[ConditionalPrice(prices={usd(input='1', output='10')}), "
        f"ConditionalPrice(constraint={night}, prices={usd(input='2', output='4')})]"
    )
    book, _ = built(openai=info("gpt-x", prices), litellm={"gpt-x": entry()})
    assert rows(book["openai", "gpt-x"]) == ["None standard 0: input 2000000, output 10000000"]


def test_a_model_is_listed_to_the_day_of_its_shutdown() -> None:
    models, entries = info("gpt-x", TWO_TEN), {"gpt-x": entry(deprecation_date="2026-11-21")}
    book, _ = built(openai=models, litellm=entries, day=date(2026, 11, 21))
    assert book.keys() == {("openai", "gpt-x")}
    book, lines = built(openai=models, litellm=entries, day=date(2026, 11, 22))
    assert (book, reason(lines, "gpt-x")) == ({}, "shut down")


# --- names


def test_snapshots_are_aliases_and_a_name_ends_with_the_last_of_them() -> None:
    names = ("gpt-x", "gpt-x-2026-05-05", "gpt-x-latest", "gpt-x-chat")
    clause = f"ClauseOr(or_=[{', '.join(f'ClauseEquals(equals={name!r})' for name in names)}])"
    book, _ = built(
        openai=info("gpt-x", TWO_TEN, match=clause),
        litellm={
            "gpt-x": entry(),
            "gpt-x-2026-01-01": entry(deprecation_date="2027-01-14"),
            "gpt-x-2026-05-05": entry(deprecation_date="2027-06-01"),
        },
    )
    assert book.keys() == {("openai", "gpt-x")}
    assert book["openai", "gpt-x"]["aliases"] == ["gpt-x-2026-01-01", "gpt-x-2026-05-05", "gpt-x-latest"]
    assert book["openai", "gpt-x"]["retires"] == "2027-06-01"


def test_a_snapshot_with_other_limits_is_a_model_of_its_own() -> None:
    book, lines = built(
        openai=info("gpt-x", TWO_TEN), litellm={"gpt-x": entry(), "gpt-x-2026-01-01": entry(max_output_tokens=50)}
    )
    assert [book["openai", name]["max_output"] for name in ("gpt-x", "gpt-x-2026-01-01")] == [100, 50]
    assert "a model of its own: openai gpt-x-2026-01-01, unlike gpt-x" in lines


def test_a_name_of_two_models_is_refused() -> None:
    clause = "ClauseOr(or_=[ClauseEquals(equals='a/x'), ClauseEquals(equals='a/x-20260101')])"
    models = info("a/x", TWO_TEN, context_window="10") + info("a/x-20260101", TWO_TEN, context_window="10")
    built(openrouter=models)
    with pytest.raises(script.RefusedError, match="a name of both"):
        built(openrouter=models.replace("ClauseEquals(equals='a/x')", clause))


def test_a_display_name_that_two_models_share_gives_way_to_their_ids() -> None:
    book, _ = built(
        openai=info("gpt-x", TWO_TEN, name="'GPT'") + info("gpt-y", TWO_TEN, name="'GPT'"),
        litellm={"gpt-x": entry(), "gpt-y": entry()},
    )
    assert [model["name"] for model in book.values()] == ["gpt-x", "gpt-y"]


# --- what is left out


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("gpt-audio-mini", "sound"),
        ("gpt-4o-realtime-preview", "sound"),
        ("gpt-image-2", "images as output"),
        ("omni-moderation-latest", "sound"),
        ("ft:gpt-x", "a fine-tune"),
        ("gpt-4o:extended", "a variant"),
        ("gpt-4o-search-preview", "fees or calls that tokens do not show"),
        ("o3-deep-research", "fees or calls that tokens do not show"),
        ("computer-use-preview", "fees or calls that tokens do not show"),
        ("gpt-x", "no limits known"),
    ],
)
def test_models_that_are_no_text_models_or_unbounded_are_left_out(model: str, why: str) -> None:
    book, lines = built(openai=info(model, TWO_TEN))
    assert (book, reason(lines, model)) == ({}, why)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mode": "completion"}, "not a text model (completion)"),
        ({"max_output_tokens": None}, "no limits known"),
        ({"output_cost_per_reasoning_token": 3e-06}, "priced by output_cost_per_reasoning_token"),
    ],
)
def test_what_litellm_says_can_leave_a_model_out(fields: Mapping[str, object], why: str) -> None:
    book, lines = built(openai=info("gpt-x", TWO_TEN), litellm={"gpt-x": {**entry(), **fields}})
    assert (book, reason(lines, "gpt-x")) == ({}, why)


@pytest.mark.parametrize(
    ("prices", "why"),
    [
        (usd(input="2", output="10", output_reasoning="3"), "priced by output_reasoning_mtok"),
        (usd(input="2"), "no output price"),
        ("ModelPrice()", "no input price"),
        ("ModelPrice(requests_kcount=Decimal('5'))", "priced by requests_kcount"),
        (usd(input="0", output="0"), "a price of zero"),
    ],
)
def test_what_cannot_be_priced_is_left_out(prices: str, why: str) -> None:
    book, lines = built(openrouter=info("a/x", prices, context_window="1000"))
    assert (book, reason(lines, "a/x")) == ({}, why)


def test_a_price_under_an_unknown_condition_leaves_the_model_out() -> None:
    variants = f"[{variant({'route': 'eu'}, usd(input='3'))}]"
    book, lines = built(openrouter=info("a/x", TWO_TEN, context_window="1000", price_variants=variants))
    assert (book, reason(lines, "a/x")) == ({}, "a price that depends on its route")


def test_a_model_with_one_source_is_left_out_unless_vouched_for() -> None:
    book, lines = built(litellm={"gpt-x": entry(), "claude-mythos-5": entry("anthropic")})
    assert book.keys() == {("anthropic", "claude-mythos-5")}
    assert reason(lines, "gpt-x") == "priced by litellm alone"


# --- OpenRouter


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("a/x:free", "a variant"),
        ("~a/x-latest", "a name that moves from model to model"),
        ("openrouter/auto", "routes to models at other prices"),
        ("switchpoint/router", "routes to models at other prices"),
        ("x", "a name without its author"),
        ("perplexity/sonar-pro", "fees or calls that tokens do not show"),
    ],
)
def test_openrouter_names_that_have_no_price_of_their_own_are_left_out(model: str, why: str) -> None:
    book, lines = built(openrouter=info(model, usd(input="-1", output="-1"), context_window="1000"))
    assert (book, reason(lines, model)) == ({}, why)


def test_openrouter_output_is_bounded_by_litellm_or_by_the_context() -> None:
    models = info("a/x", TWO_TEN, context_window="1000") + info("a/y", TWO_TEN, context_window="1000")
    entries = {"openrouter/a/x": entry("openrouter", supports_reasoning=True)}
    book, _ = built(openrouter=models + info("a/z", TWO_TEN), litellm=entries)
    assert [(model["max_input"], model["max_output"], model["reasoning"]) for model in book.values()] == [
        (1000, 100, True),
        (1000, 1000, False),
    ]


def test_openrouter_sells_what_its_author_says_it_is() -> None:
    book, _ = built(
        openai=info("gpt-1.5", TWO_TEN, context_window="1000"),
        openrouter=info("openai/gpt-1.5", TWO_TEN, context_window="1000")
        + info("a/gpt-1.5", TWO_TEN, context_window="9"),
        litellm={"gpt-1.5": entry(supports_reasoning=True)},
    )
    told = {
        f"{model['provider']}:{model['id']}": (model["reasoning"], "temperature" in model) for model in book.values()
    }
    assert told == {
        "openai:gpt-1.5": (True, True),
        "openrouter:a/gpt-1.5": (False, False),
        "openrouter:openai/gpt-1.5": (True, True),
    }


def test_a_storage_fee_comes_on_top_of_the_input_price() -> None:
    prices = usd(input="2 200000:4", output="12", cache_write="0.375")
    book, _ = built(openrouter=info("google/x", prices, context_window="1000"))
    assert rows(book["openrouter", "google/x"]) == [
        "None standard 0: input 2000000, output 12000000, cache_write 2375000",
        "None standard 200000: input 4000000, output 12000000, cache_write 4375000",
    ]


def test_names_that_nobody_answers_for_any_more_are_told_with_their_day_unless_they_are_sold() -> None:
    source = json.dumps(
        {
            "gpt-x": entry(deprecation_date="2026-11-20"),
            "gpt-y": entry(deprecation_date="2026-11-21"),
            "gpt-z": entry(),
            "ft:gpt-x": entry(deprecation_date="2026-01-01"),
            "a/gpt-x": entry("openrouter", deprecation_date="2026-01-01"),
        }
    )
    gone = script.retired(source, [], TODAY)
    assert gone == {"gpt-x": "2026-11-20", **{name: day.isoformat() for name, day in script.LONG_GONE.items()}}
    models, _ = script.build(genai(openai=info("gpt-4-32k", TWO_TEN)), json.dumps({"gpt-4-32k": entry()}), TODAY)
    assert "gpt-4-32k" not in script.retired(source, models, TODAY)


# --- the file


def test_the_book_is_sorted_ascii_with_one_model_per_line() -> None:
    models = info("b/x", TWO_TEN, name="'Émile'", context_window="9"), info("a/x", TWO_TEN, context_window="9")
    texts = []
    for openrouter in ("".join(models), "".join(reversed(models))):
        built_models, _ = script.build(genai(openrouter=openrouter), "{}", TODAY)
        texts.append(script.render(built_models, {}, TODAY, {"genai-prices": "1"}))
    assert texts[0] == texts[1]
    assert texts[0].isascii()
    first, *lines, last = texts[0].splitlines()
    assert first == '{"format":1,"generated":"2026-11-21","sources":{"genai-prices":"1"},"retired":{},"models":['
    assert last == "]}"
    assert [json.loads(line.rstrip(","))["id"] for line in lines] == ["a/x", "b/x"]


def test_check_compares_with_the_book_of_its_day_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = genai(openai=info("gpt-x", TWO_TEN)), json.dumps({"gpt-x": entry(deprecation_date="2026-11-21")})
    models, _ = script.build(*source, TODAY)
    versions = {"genai-prices": script.GENAI_VERSION, "litellm": script.LITELLM_VERSION}
    file = tmp_path / "prices.json"
    file.write_text(script.render(models, script.retired(source[1], models, TODAY), TODAY, versions))
    check = ["--check", "--output", str(file)]
    assert script.main(check, lambda _: source) == 0

    file.write_text(file.read_text().replace('"input":2000000', '"input":1000000'))
    edited = file.read_text()
    assert script.main(check, lambda _: source) == 1
    assert file.read_text() == edited
    assert '+ {"provider":"openai","id":"gpt-x"' in capsys.readouterr().out


def test_a_refused_price_leaves_the_old_book_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prices.json"
    file.write_text("old")
    source = genai(openrouter=info("a/x", usd(input="-1", output="1"), context_window="9")), "{}"
    assert script.main(["--output", str(file)], lambda _: source) == 2
    assert file.read_text() == "old"
    assert "refused: openrouter a/x: standard input: -1 is not a price" in capsys.readouterr().err


def test_the_book_in_the_package_keeps_its_promises() -> None:
    book = json.loads((ROOT / "goosestack" / "prices.json").read_text(encoding="ascii"), parse_float=pytest.fail)
    models = book["models"]
    names = [(m["provider"], name) for m in models for name in (m["id"], *m["aliases"])]
    assert len(names) == len(set(names))
    assert models == sorted(models, key=lambda m: (m["provider"], m["id"]))
    for model in models:
        needed = {"input", "output"} if model["kind"] == "chat" else {"input"}
        assert 0 < model["max_input"] <= model["context"]
        assert 0 <= model["max_output"] <= model["context"]
        first = model["rates"][0]
        assert (first["from"], first["tier"], first["above"]) == (None, "standard", 0)
        sets = {(rate["from"], rate["tier"], rate["above"]): rate for rate in model["rates"]}
        assert len(sets) == len(model["rates"])
        for rate in model["rates"]:
            prices = {key: rate[key] for key in rate.keys() & set(script.COMPONENTS)}
            assert needed <= prices.keys()
            assert prices.keys() == first.keys() & set(script.COMPONENTS)
            assert all(type(price) is int and 0 < price < script.TOO_DEAR for price in prices.values())
            assert (rate["from"], rate["tier"], 0) in sets
