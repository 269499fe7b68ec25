"""After the answer: what it cost, by what the provider reported, or, where that is lost or absurd, by an estimate.

Each way in which a usage can be wrong has one outcome, and none loses the bill: missing, zero, unreadable, negative or
beyond what the model can do is estimated; details that exceed their total are charged at the full price; a repeated
report counts once, a falling one not at all; a report above the quote is charged as far as the funds go.
"""

from __future__ import annotations

import math
from dataclasses import replace

from goosestack import pricing
from goosestack.bidding import LONG_CONTEXT, Bid
from goosestack.ledger import Charge
from goosestack.pricing import PriceBook, Usage
from goosestack.wire import Reading, media

_MOST_COUNT = 10**7
"""Tokens, or anything else, that one call cannot have used; far below what the log's columns hold."""

_MOST_COST = 10**6
"""Dollars that one call cannot have cost."""


def reported(made: Bid, reading: Reading) -> tuple[Usage | None, str | None]:
    """The usage to charge by, None where it must be estimated; and what was wrong with the report, if anything."""
    usage, wrong = _believed(made, reading)
    if usage is not None and usage.all_output == 0 and reading.output_bytes:
        return None, wrong or "no output"
    return usage, wrong


def _believed(made: Bid, reading: Reading) -> tuple[Usage | None, str | None]:
    if reading.usage is None:
        return None, reading.nonsense or "no usage"
    usage = Usage(**reading.usage)
    model = made.offer.model
    if max(usage.counts()) > _MOST_COUNT:
        return None, "a count beyond anything a provider can do"
    if model is None or made.call.free:
        return usage, None
    if usage.all_input == 0:
        return None, "no input"
    if usage.all_output > max(model.max_output, made.cap) * made.call.answers:
        return None, "more output than the model can write"
    if usage.all_input > max(made.demand.tokens, model.context, LONG_CONTEXT) * made.call.answers:
        return None, "more input than the model can read"
    return usage, reading.nonsense


def seen(made: Bid, reading: Reading) -> Usage:
    """What is known of the usage now, the rest guessed: input and visible output by a third of their bytes."""
    usage = _believed(made, reading)[0] or Usage()
    if made.payer is None:
        return usage
    if not usage.all_input:
        text = math.ceil(made.call.text_bytes / 3) + media.estimate(made.call.media)
        usage = replace(usage, input=max(1, min(text, made.demand.input)))
    return replace(usage, output=max(usage.output, math.ceil(reading.output_bytes / 3)))


def charge(made: Bid, reading: Reading, usage: Usage, book: PriceBook, today: str) -> Charge:
    """The charge for a usage: the provider's own cost where it names one that the quote covers, else the price of the
    model and the tier that the answer reports."""
    asked, provider, payer = made.offer.model, made.offer.provider, made.payer
    if payer is None or asked is None:
        return Charge(0, 0, usage.counts())
    tokens = usage.all_input + usage.all_output
    asked, terms = payer.prices(asked)
    named = reading.cost if provider.reports_cost and not asked.by_operator else None
    if named is not None and named.is_finite() and 0 <= named < _MOST_COST:
        nanos = terms.apply(math.ceil(named * 10**12))
        if nanos <= made.nanos:
            return Charge(payer.grains(nanos, tokens), nanos, usage.counts())
    answered = book.find_reported(provider.name, reading.model) if reading.model else None
    if answered is not None:
        asked, terms = payer.prices(answered)
    tier = reading.tier or made.call.tier
    nanos = pricing.charge(asked, usage, terms, today, tier=tier, us_only=made.call.us_only)
    return Charge(payer.grains(nanos, tokens), nanos, usage.counts())


def estimated(charge: Charge, held: int) -> Charge:
    """The same as an estimate, which is never above the `held` grains."""
    amount = min(charge.amount, held)
    nanos = amount if charge.amount == charge.nanos else charge.nanos  # the same thing, where money pays
    return replace(charge, amount=amount, nanos=nanos, estimated=True)
