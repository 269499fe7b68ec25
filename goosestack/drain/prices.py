"""What a request costs where a channel pays: the operator's own prices in micro-USDC, else the price book's with its
markup and the contract's fee, at one USDC to the dollar. Pure.

Each request costs whole micro-USDC, by one ceiling of the sum: what a caller adds up of `X-DRAIN-Cost` is what is
claimed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal

from goosestack.errors import Refusal
from goosestack.pricing import STANDARD, Model, Rate, Terms

WHOLE = 1_000
"""Nanodollars of a micro-USDC."""
PICOS = 1_000
"""Picodollars a token for each micro-USDC per 1,000 tokens."""


@dataclass(frozen=True, slots=True)
class OwnPrice:
    """Micro-USDC per 1,000 tokens; no output of a model that writes none."""

    input: int
    output: int | None


def key_of(model_id: str) -> str:
    """A model's id as it stands in a setting's name: in upper case, letters and digits alone."""
    return re.sub(r"[^A-Z0-9]", "", model_id.upper())


def refuse_unclear(own: Mapping[str, OwnPrice], sold: Iterable[Model]) -> None:
    """Raise Refusal where a price is of no model that is sold, of several, or not whole."""
    by_key: dict[str, list[Model]] = {}
    for model in sold:
        by_key.setdefault(key_of(model.id), []).append(model)
    for key, price in own.items():
        models = by_key.get(key, [])
        if not models:
            raise Refusal(f"PRICE_{key}_INPUT is the price of no model that is sold here")
        if len(models) > 1:
            names = " and ".join(model.id for model in models)
            raise Refusal(f"PRICE_{key}_INPUT could be the price of {names}: price them in prices.toml")
        if models[0].kind == "chat" and price.output is None:
            raise Refusal(f"PRICE_{key}_INPUT is set, and PRICE_{key}_OUTPUT is missing")


@dataclass(frozen=True, slots=True)
class Prices:
    """What models cost under a contract's fee."""

    own: Mapping[str, OwnPrice]
    markup: Decimal
    fee_bps: int

    def of(self, model: Model) -> tuple[Model, Terms]:
        """The model at the price of a channel, and the terms on that."""
        own, marked = self.own.get(key_of(model.id)), Terms(with_fee(self.markup, self.fee_bps), WHOLE)
        if own is None:
            return model, marked
        read, written = own.input * PICOS, (own.output or 0) * PICOS
        rate = Rate(STANDARD, 0, "", read, written, read, read, read, read, written)
        search = None if model.web_search is None else marked.apply(model.web_search * 1_000)  # still the book's
        sold = replace(model, rates=(rate,), us_percent=100, web_search=search, by_operator=True)
        return sold, Terms(whole=WHOLE)

    def published(self, model: Model, today: str) -> tuple[str, str]:
        """Decimal USDC per 1,000 tokens of input and output, six decimals at most, never below what is charged.

        The output of a model that writes none costs what its input does: to clients, an output of "0" says that the
        input is the price of a whole call.
        """
        sold, terms = self.of(model)
        rate = sold.rates_of(STANDARD, today)[0]
        return _usdc(rate.input, terms), _usdc(rate.output if model.kind == "chat" else rate.input, terms)


def with_fee(markup: Decimal, fee_bps: int) -> Decimal:
    """The markup, in percent, after which the fee leaves what the markup alone would have brought: rounded up."""
    gross = (100 + markup) * 10_000 / (10_000 - fee_bps) - 100
    return gross.quantize(Decimal("0.0001"), ROUND_CEILING)


def _usdc(picos: int, terms: Terms) -> str:
    per_thousand = (Decimal(picos) * (100 + terms.markup)).scaleb(-11)
    return f"{per_thousand.quantize(Decimal('0.000001'), ROUND_CEILING).normalize():f}"
