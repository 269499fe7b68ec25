"""The price book, and what a request can cost and did cost. Pure: no I/O, no clock.

Prices are integers: picodollars per token, which is the same number as microdollars per million tokens. A *quote* is
an upper bound: every input token at the dearest price that could apply, every output token of the cap, every extra
that the body asks for. A *charge* is the actual cost by token class. Both are sums of picodollars that are rounded
once, upward, to nanodollars, in `_nanos`.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

STANDARD = "standard"
WEB_SEARCH_INPUT = 20_000
"""Input tokens that one web search is quoted at, beside its fee."""

MOST_PICOS = 10**10
"""A price above $10,000 per million tokens is a mistake in the book, not a price."""

CLASSES = ("input", "output", "cache_read", "cache_write", "cache_write_long", "input_audio", "output_audio")
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


class PriceError(Exception):
    """The price book or the operator's `prices.toml` is wrong; the text says where."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by class, disjoint but for `reasoning`, which is a part of `output`."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_long: int = 0
    input_audio: int = 0
    output_audio: int = 0
    reasoning: int = 0
    web_searches: int = 0

    @property
    def all_input(self) -> int:
        """Everything that was read, from a cache or not."""
        return self.input + self.cache_read + self.cache_write + self.cache_write_long + self.input_audio

    @property
    def all_output(self) -> int:
        """Everything that was written."""
        return self.output + self.output_audio

    def counts(self) -> tuple[int, ...]:
        """In the order of `ledger.COUNTS`."""
        return (
            self.all_input,
            self.all_output,
            self.cache_read,
            self.cache_write,
            self.cache_write_long,
            self.input_audio,
            self.output_audio,
            self.reasoning,
            self.web_searches,
        )


def with_input(usage: Usage, tokens: int) -> Usage:
    """The same usage with so much plain input."""
    return replace(usage, input=tokens, cache_read=0, cache_write=0, cache_write_long=0, input_audio=0)


def with_output(usage: Usage, tokens: int) -> Usage:
    """The same usage with so much plain output."""
    return replace(usage, output=tokens, output_audio=0)


@dataclass(frozen=True, slots=True)
class Rate:
    """Picodollars per token, for one tier, from one date on, where total input is above a threshold."""

    tier: str
    above: int
    since: str
    input: int
    output: int
    cache_read: int
    cache_write: int
    cache_write_long: int
    input_audio: int
    output_audio: int


@dataclass(frozen=True, slots=True)
class Model:
    """One model as one provider sells it."""

    provider: str
    id: str
    name: str
    kind: str
    """`chat` or `embedding`."""
    context: int
    max_input: int
    max_output: int
    reasoning: bool
    rates: tuple[Rate, ...]
    aliases: tuple[str, ...] = ()
    retires: str | None = None
    us_percent: int = 100
    web_search: int | None = None
    """Nanodollars a call; None where it has no price, and cannot be sold."""
    temperature: bool = True
    """Whether it takes one; what refuses it is not sent one by `POST /api/chat`."""
    by_operator: bool = False
    """Whether `prices.toml` prices it, which then also decides over a cost that the provider reports."""

    def tiers(self, today: str) -> frozenset[str]:
        """The tiers that have a price today."""
        return frozenset(rate.tier for rate in self._in_force(today))

    def rates_of(self, tier: str, today: str) -> list[Rate]:
        """The tier's rates in force today, by rising threshold."""
        return [rate for rate in self._in_force(today) if rate.tier == tier]

    def _in_force(self, today: str) -> tuple[Rate, ...]:
        """The rates of the latest date that has come: a later set replaces an earlier one whole. A book's rates are
        ordered by date, then threshold."""
        come = [rate for rate in self.rates if rate.since <= today]
        return tuple(rate for rate in come if rate.since == come[-1].since)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request can use at most, as the gate bounds it."""

    input: int
    output: int
    tier: str = STANDARD
    long_cache: bool = False
    """Whether it asks for the long-lived cache, whose writes are dearer."""
    us_only: bool = False
    web_searches: int = 0

    @property
    def tokens(self) -> int:
        """All of them, what searches bring in included."""
        return self.input + self.web_searches * WEB_SEARCH_INPUT + self.output


@dataclass(frozen=True, slots=True)
class Terms:
    """The operator's terms: what is added to the price, and whether each call is rounded to whole units."""

    markup: Decimal = Decimal(0)
    """Percent."""
    whole: int = 1
    """Nanodollars that a call is rounded up to a multiple of: 1, or a whole cent."""

    def apply(self, picos: int, percent: int = 100) -> int:
        """Nanodollars for `percent` of so many picodollars: with the markup, rounded up, once."""
        with_markup = 1_000_000 + int(self.markup * 10_000)  # exact: a markup has at most 4 decimals
        return -(-picos * percent * with_markup // (100_000_000_000 * self.whole)) * self.whole


def quote(model: Model, demand: Demand, terms: Terms, today: str) -> int:
    """The most that `demand` can cost, in nanodollars: never below `charge` for any usage within it."""
    searched = demand.web_searches
    total_input = demand.input + searched * WEB_SEARCH_INPUT
    tiers = {demand.tier, STANDARD}  # a provider may serve, and report, a lower tier than was asked for
    rates = [rate for tier in tiers for rate in model.rates_of(tier, today) if rate.above < max(total_input, 1)]
    input_price = max(_dearest_input(rate, demand.long_cache) for rate in rates)
    output_price = max(max(rate.output, rate.output_audio) for rate in rates)
    picos = total_input * input_price + demand.output * output_price
    return _nanos(model, picos, searched, demand.us_only, terms)


def charge(model: Model, usage: Usage, terms: Terms, today: str, *, tier: str = STANDARD, us_only: bool = False) -> int:
    """What `usage` costs in nanodollars, by the rate that its total input falls under."""
    rates = model.rates_of(tier, today) or model.rates_of(STANDARD, today)
    rate = [rate for rate in rates if rate.above < max(usage.all_input, 1)][-1]
    picos = (
        usage.input * rate.input
        + usage.output * rate.output
        + usage.cache_read * rate.cache_read
        + usage.cache_write * rate.cache_write
        + usage.cache_write_long * rate.cache_write_long
        + usage.input_audio * rate.input_audio
        + usage.output_audio * rate.output_audio
    )
    return _nanos(model, picos, usage.web_searches, us_only, terms)


def most_output(demand: Demand, fits: Callable[[Demand], bool]) -> int:
    """The most output tokens with which a demand still fits; 0 where none does."""
    # what a demand costs is monotone in its output; bisection needs no second formula
    outputs = range(1, demand.output + 1)
    return bisect_left(outputs, True, key=lambda output: not fits(replace(demand, output=output)))


def _dearest_input(rate: Rate, long_cache: bool) -> int:
    prices = [rate.input, rate.cache_read, rate.cache_write, rate.input_audio]
    return max([*prices, rate.cache_write_long] if long_cache else prices)


def _nanos(model: Model, picos: int, web_searches: int, us_only: bool, terms: Terms) -> int:
    """The one place that rounds: tokens (dearer where they must stay in the US) and fees, in nanodollars."""
    percent = model.us_percent if us_only else 100
    hundredths = picos * percent + web_searches * (model.web_search or 0) * 100_000
    return terms.apply(hundredths, 1)


# --- the book -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class PriceBook:
    """Every model that has a price, by provider and by any of its names."""

    generated: str
    retired: Mapping[str, str]
    """Names that their provider no longer answers for, and since when."""
    models: dict[tuple[str, str], Model] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """The operator's own names for models."""
    prefer: tuple[str, ...] = ()
    """Providers in the order in which they win where several sell a model."""
    chosen: dict[str, str] = field(default_factory=dict)
    """The provider that the operator chose for a model."""
    _names: dict[tuple[str, str], Model] = field(default_factory=dict)

    def add(self, model: Model) -> None:
        """Put a model in the book, in place of one of the same provider and id, all of whose names it takes away."""
        replaced = self.models.get((model.provider, model.id))
        for name in () if replaced is None else (replaced.id, *replaced.aliases):
            self._names.pop((model.provider, name), None)
        self.models[model.provider, model.id] = model
        for name in (model.id, *model.aliases):
            taken = self._names.get((model.provider, name))
            if taken is not None and taken.id != model.id:
                raise PriceError(f"{model.provider}: {name} names both {taken.id} and {model.id}")
            self._names[model.provider, name] = model

    def find(self, provider: str, name: str) -> Model | None:
        """The model that the provider sells under exactly this name."""
        return self._names.get((provider, name))

    def find_reported(self, provider: str, name: str) -> Model | None:
        """The model that an answer names: as `find`, or by what stands before a snapshot's date."""
        return self.find(provider, name) or self.find(provider, _SNAPSHOT.sub("", name))

    def providers_of(self, name: str) -> list[str]:
        """Every provider that the book has a price of, for this name."""
        return [provider for provider, known in self._names if known == name]


def load(generated: str, operators: str = "") -> PriceBook:
    """The book from the generated `prices.json` and the operator's `prices.toml` (texts). Raises PriceError."""
    data = json.loads(generated, parse_float=_no_floats)
    if data.get("format") != 1:
        raise PriceError("prices.json has a format that this version does not read")
    book = PriceBook(generated=str(data["generated"]), retired=data.get("retired", {}))
    for entry in data["models"]:
        book.add(_model(entry))
    _apply_operators(book, operators)
    return book


def _no_floats(text: str) -> int:
    raise PriceError(f"prices.json: {text} is not an integer")


def _model(entry: Mapping[str, Any]) -> Model:
    where = f"{entry.get('provider')}/{entry.get('id')}"
    chat = entry["kind"] == "chat"
    found = (_rate(raw, where, chat) for raw in entry["rates"])
    rates = tuple(sorted(found, key=lambda rate: (rate.since, rate.above)))
    based = {(rate.since, rate.tier) for rate in rates if rate.above == 0}
    if not rates or any((rate.since, STANDARD) not in based for rate in rates):
        raise PriceError(f"{where} has no standard price")
    if any((rate.since, rate.tier) not in based for rate in rates):
        raise PriceError(f"{where} has a price above a threshold, and none below it")
    return Model(
        provider=entry["provider"],
        id=entry["id"],
        name=entry.get("name") or entry["id"],
        kind=entry["kind"],
        context=_limit(entry, "context", where),
        max_input=_limit(entry, "max_input", where),
        max_output=_limit(entry, "max_output", where) if chat else 0,
        reasoning=bool(entry.get("reasoning")),
        rates=rates,
        aliases=tuple(entry.get("aliases", ())),
        retires=entry.get("retires"),
        us_percent=entry.get("us_percent", 100),
        web_search=entry.get("web_search"),
        temperature=entry.get("temperature", True),
        by_operator=bool(entry.get("by_operator")),
    )


def _limit(entry: Mapping[str, Any], name: str, where: str) -> int:
    value = entry.get(name)
    if type(value) is not int or not 0 < value <= 100_000_000:
        raise PriceError(f"{where}: {name} must be a number of tokens, not {value!r}")
    return value


def _rate(raw: Mapping[str, Any], where: str, chat: bool) -> Rate:
    for name in CLASSES:
        value = raw.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= MOST_PICOS):
            raise PriceError(f"{where}: the {name} price must be picodollars per token, not {value!r}")
    if not raw.get("input") or (chat and not raw.get("output")):
        raise PriceError(f"{where} has no price for its {'output' if raw.get('input') else 'input'}")
    whole, written = raw["input"], raw.get("output", 0)
    cache_write = raw.get("cache_write", whole)
    return Rate(
        tier=raw["tier"],
        above=raw["above"],
        since=raw.get("from") or "",
        input=whole,
        output=written,
        cache_read=raw.get("cache_read", whole),
        cache_write=cache_write,
        cache_write_long=raw.get("cache_write_long", 2 * cache_write),
        input_audio=raw.get("input_audio", whole),
        output_audio=raw.get("output_audio", written),
    )


# --- the operator's prices.toml -------------------------------------------------------------------------------

_MODEL_KEYS = frozenset(CLASSES).union(
    "provider name kind context max_input max_output reasoning temperature aliases web_search".split()
)
_LIMITS = ("context", "max_input", "max_output")
_KINDS: Mapping[str, tuple[type, str]] = {
    "name": (str, "a text"),
    "reasoning": (bool, "true or false"),
    "temperature": (bool, "true or false"),
    "aliases": (list, "a list of names"),
    **dict.fromkeys(_LIMITS, (int, "a number of tokens")),
}
MOST_FEE = 10**12
"""A web search above $1,000 is a mistake."""

PROVIDERS = ("openai", "anthropic", "openrouter", "litellm")


def _apply_operators(book: PriceBook, text: str) -> None:
    try:
        data = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise PriceError(f"prices.toml: {error}") from None
    except RecursionError:
        raise PriceError("prices.toml: it is nested too deeply") from None
    if unknown := set(data) - {"prefer", "aliases", "models"}:
        raise PriceError(f"prices.toml: unknown {', '.join(sorted(unknown))}; there are prefer, aliases and models")
    prefer, models, aliases = data.get("prefer", []), data.get("models", {}), data.get("aliases", {})
    if type(prefer) is not list or not all(provider in PROVIDERS for provider in prefer):
        raise PriceError(f"prices.toml: prefer lists providers: {', '.join(PROVIDERS)}")
    book.prefer = tuple(prefer)
    if type(models) is not dict or type(aliases) is not dict or not all(type(raw) is dict for raw in models.values()):
        raise PriceError("prices.toml: models holds a table for each model, and aliases is a table of names")
    for name, raw in models.items():
        _apply_model(book, name, raw)
    for name, target in aliases.items():
        if not book.providers_of(target):
            raise PriceError(f"prices.toml: the alias {name} names {target!r}, which has no price")
        book.aliases[name] = target


def _apply_model(book: PriceBook, name: str, raw: Mapping[str, Any]) -> None:
    where = f"prices.toml: models.{name}"
    if unknown := set(raw) - _MODEL_KEYS:
        raise PriceError(f"{where}: unknown {', '.join(sorted(unknown))}")
    provider = raw.get("provider") or next(iter(book.providers_of(name)), None)
    if provider not in PROVIDERS:
        raise PriceError(f"{where}: name its provider: {', '.join(PROVIDERS)}")
    for key, (kind, words) in _KINDS.items():
        if key in raw and type(raw[key]) is not kind:
            raise PriceError(f"{where}: {key} must be {words}, not {raw[key]!r}")
    if not all(type(alias) is str for alias in raw.get("aliases", ())):
        raise PriceError(f"{where}: aliases must be a list of names")
    if raw.get("kind", "chat") not in ("chat", "embedding"):
        raise PriceError(f"{where}: kind must be chat or embedding, not {raw['kind']!r}")
    base = book.find(provider, name) or next((book.find(other, name) for other in book.providers_of(name)), None)
    book.chosen[name] = provider
    prices = {key: _picos(raw[key], f"{where}.{key}") for key in CLASSES if key in raw}
    if base is not None and not prices:
        if more := set(raw) - {"provider", "temperature", *_LIMITS}:
            raise PriceError(f"{where}: {', '.join(sorted(more))} only with an input and an output price")
        known: dict[str, Any] = {key: _limit(raw, key, where) for key in _LIMITS if key in raw}
        book.add(replace(base, provider=provider, temperature=raw.get("temperature", base.temperature), **known))
        return
    entry: dict[str, Any] = {
        "provider": provider,
        "id": base.id if base is not None else name,
        "name": raw.get("name") or (base.name if base is not None else name),
        "kind": raw.get("kind") or (base.kind if base is not None else "chat"),
        "reasoning": raw.get("reasoning", base.reasoning if base is not None else True),
        "temperature": raw.get("temperature", base is None or base.temperature),
        "aliases": raw.get("aliases") or (base.aliases if base is not None else ()),
        "rates": [{"tier": STANDARD, "above": 0, **prices}],
        "us_percent": 100 if base is None else base.us_percent,
        "by_operator": True,
    }
    for key in _LIMITS:
        entry[key] = raw.get(key, getattr(base, key) if base is not None else raw.get("context"))
    if "web_search" in raw:
        entry["web_search"] = _fee(raw["web_search"], f"{where}.web_search")
    elif base is not None:
        entry["web_search"] = base.web_search
    book.add(_model(entry))


def _fee(value: object, where: str) -> int:
    """Nanodollars a call from dollars a call."""
    nanos = (_decimal(value, where) * 10**9).to_integral_value(ROUND_CEILING)
    if nanos > MOST_FEE:
        raise PriceError(f"{where}: a price in dollars a call, not {value}")
    return int(nanos)


def _picos(value: object, where: str) -> int:
    """Picodollars per token from dollars per million tokens."""
    picos = (_decimal(value, where) * 10**6).to_integral_value(ROUND_CEILING)
    if not 0 < picos <= MOST_PICOS:
        raise PriceError(f"{where}: a price in dollars per million tokens must be above 0, not {value}")
    return int(picos)


def _decimal(value: object, where: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise PriceError(f"{where}: {value!r} is not a price")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise PriceError(f"{where}: {value!r} is not a price") from None
    if not number.is_finite() or not 0 <= number < 10**12:
        raise PriceError(f"{where}: {value} is not a price")
    return number


def per_thousand(picos: int, terms: Terms) -> str:
    """Dollars per 1,000 tokens as a decimal string, exactly, markup included: 2,500,000 picodollars are `0.0025`."""
    return f"{(Decimal(picos) * (100 + terms.markup)).scaleb(-11).normalize():f}"


def dollars(nanos: int) -> str:
    """Nanodollars as a decimal string in dollars, exactly: 2,970 are `0.00000297`."""
    return f"{Decimal(nanos).scaleb(-9).normalize():f}"


def per_million(picos: int, terms: Terms) -> str:
    """Dollars per 1,000,000 tokens as a decimal string, exactly, markup included."""
    return f"{(Decimal(picos) * (100 + terms.markup)).scaleb(-8).normalize():f}"
