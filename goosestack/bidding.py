"""Before the hold: who would serve a call, and what it can cost at most. What cannot be bounded is refused here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from goosestack import pricing, upstream
from goosestack.errors import Invalid, NothingPays, Problem, Unsupported
from goosestack.http import Broken, Client, Lost, NotSent
from goosestack.logs import redact
from goosestack.payers import Payer, Shortage
from goosestack.pricing import Demand, Model, Terms
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Offer, Upstreams
from goosestack.wire import Call, Wire, body as fields, media

LEAST_OUTPUT = 256
"""Output tokens below which an answer is not worth starting."""

THREAD_ABOVE_BYTES = 64 * 1024
"""Bodies larger than this are worked on in a thread."""

_MOST_BYTES_A_TOKEN = 16
"""Text has 4 or 5 bytes a token; with more than this, counting is no use."""

LONG_CONTEXT = 1_000_000
"""Input tokens that a caller of Anthropic's can ask for by a beta (`context-1m-...`), where a model has fewer."""

_COUNT_S = 10.0
_MOST_COUNT_BYTES = 64 * 1024
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The operator's choices that a quote depends on."""

    terms: Terms = Terms()
    default_output_cap: int = 32_000
    """Output tokens where the caller names no cap; 0 for the model's own maximum."""
    clamp: bool = False
    """Whether a cap that nobody can hold is lowered to what the last payer can, rather than refused."""
    public_url: str | None = None


@dataclass(slots=True)
class Bid:
    """What a request will be held for: with whom, by whom, for how much, up to which output. Amounts are grains of the
    payer's unit."""

    offer: Offer
    call: Call
    headers: dict[str, str]
    payload: bytes
    """The body as it goes upstream."""
    payer: Payer | None = None
    """Whose turn it is to pay; None only where the caller's own key does, or nothing is to be paid."""
    others: tuple[Payer, ...] = ()
    """Who is asked after that."""
    own_key: bool = False
    demand: Demand = Demand(0, 0)
    cap: int = 0
    """Output tokens of each answer that the hold should cover."""
    at_least: int = 0
    at_most: int = 0
    nanos: int = 0
    """Nanodollars of `at_most`."""

    @property
    def model(self) -> str:
        """The model's name in the log: the book's where it has one."""
        return redact(self.call.model) if self.offer.model is None else self.offer.model.id


async def bid(
    upstreams: Upstreams,
    policy: Policy,
    wire: Wire,
    call: Call,
    callers_headers: Mapping[str, str],
    *,
    payers: Sequence[Payer],
    own_key: str | None,
    today: str,
    query: str = "",
) -> Bid:
    """What the call can cost at most, and who pays first. Raises a Problem for what is not sold, or cannot be priced or
    bounded, and where nobody pays."""
    if own_key is not None:
        offer = upstream.with_query(upstreams.own_offer(wire, call.model, own_key), query)
        headers = upstream.headers(offer, wire, own_key, callers_headers, own_key=True)
        return Bid(offer, call, headers, fields.encode(call.body), own_key=True)
    offer = upstream.with_query(upstreams.offer(wire, call.model, today), query)
    assert offer.model is not None and offer.provider.key is not None
    upstream.refuse_unknown(offer, call.unknown)
    if offer.provider.routes and call.cap_field == "max_completion_tokens":
        call.cap_field = "max_tokens"  # the one field that every server of this format obeys
        if call.cap is not None:
            wire.set_cap(call, call.cap)
    headers = upstream.headers(offer, wire, offer.provider.key, callers_headers, own_key=False)
    _refuse_unpriced(call, offer.model, today)
    call.body["model"] = offer.name
    made = Bid(offer, call, headers, b"")
    made.payload = fields.encode(call.body)
    call.text_bytes = len(made.payload) - call.media.data_bytes
    if call.free:
        return made
    made.cap = _wanted_cap(call, offer.model, policy)
    made.demand = Demand(
        await _bound_input(made, offer.model),
        made.cap * call.answers,
        call.tier,
        call.long_cache,
        call.us_only,
        call.web_searches,
    )
    made.others = tuple(payers)
    if not next_payer(made, policy, today):
        raise NothingPays()
    return made


def next_payer(made: Bid, policy: Policy, today: str) -> bool:
    """Turn to the next payer who may pay for this model; whether there was one. Raises the last one's Problem."""
    while made.others:
        made.payer, *others = made.others
        made.others = tuple(others)
        try:
            assert made.offer.model is not None
            made.payer.admit(made.offer.model)
            price(made, policy, today)
        except Problem:
            if not others:
                raise
        else:
            return True
    return False


def price(made: Bid, policy: Policy, today: str) -> None:
    """Set what the payer must hold at least, and at most, for the demand."""
    call = made.call
    assert made.payer is not None and made.offer.model is not None
    _refuse_unpriced(call, made.payer.prices(made.offer.model)[0], today)
    made.at_most, made.nanos = quote(made, made.demand, today)
    made.at_least = made.at_most
    lowers = made.payer.clamps or (policy.clamp and not made.others)  # while others could hold all of it, they may
    if call.cap_field is not None and (call.cap is None or lowers):
        least = replace(made.demand, output=_least_output(made) * call.answers)
        made.at_least, _ = quote(made, least, today)


def _least_output(made: Bid) -> int:
    """Output tokens of each answer below which it is not held. A payer that always clamps is content with half of a
    small cap: its clients reckon with less around their text than there is."""
    assert made.payer is not None
    return min(LEAST_OUTPUT, -(-made.cap // 2) if made.payer.clamps else made.cap)


def quote(made: Bid, demand: Demand, today: str) -> tuple[int, int]:
    """The most that a demand can cost, in the payer's grains and in nanodollars."""
    assert made.payer is not None and made.offer.model is not None
    model, terms = made.payer.prices(made.offer.model)
    nanos = pricing.quote(model, demand, terms, today)
    return made.payer.grains(nanos, demand.tokens), nanos


async def tighten(made: Bid, policy: Policy, tokenizer: Tokenizer, client: Client, today: str, available: int) -> None:
    """Where the byte bound does not fit the `available` grains: bound the input by counting it, if that is
    possible, and if the text could be short enough at all."""
    model, call, provider = made.offer.model, made.call, made.offer.provider.name
    assert model is not None
    fewest = replace(made.demand, input=call.text_bytes // _MOST_BYTES_A_TOKEN, output=0)
    if quote(made, fewest, today)[0] > available:
        return
    tokens: int | None = None
    if provider == "openai" and not call.media.data_bytes:
        counted = await tokenizer.count_body(made.payload, embedding=model.kind == "embedding")
        tokens = None if counted is None else counted + _around(call, model)
    elif provider == "anthropic":
        tokens = await _count_upstream(made, client)
    if tokens is not None and tokens < made.demand.input:
        made.demand = replace(made.demand, input=tokens)
        price(made, policy, today)


def affordable_cap(made: Bid, today: str, grains: int) -> int:
    """Output tokens of each answer that so many grains pay for, beside the input."""
    most = pricing.most_output(made.demand, lambda demand: quote(made, demand, today)[0] <= grains)
    return most // made.call.answers


def refusal(made: Bid, today: str, available: int, debt: int) -> Problem:
    """The refusal of a bid that its payer cannot hold: what it needs, what there is, what that would pay for."""
    assert made.payer is not None
    affordable = None if made.call.cap_field is None else affordable_cap(made, today, available)
    return made.payer.refuse(Shortage(made.at_least, available, affordable, debt))


def _refuse_unpriced(call: Call, model: Model, today: str) -> None:
    if call.tier not in model.tiers(today):
        raise Invalid(reason=f"the tier `{call.tier}` has no price with {model.id}", param="service_tier")
    if call.web_searches and model.web_search is None:
        raise Unsupported(field="web_search", reason=f"it has no price with {model.id}", param="tools")


async def _bound_input(made: Bid, model: Model) -> int:
    """Input tokens at most, of a model whose input is bounded by itself where it reads one prompt."""
    payload, call = made.payload, made.call
    most = None if model.kind == "embedding" else model.max_input
    if most is not None and "context-1m" in made.headers.get("anthropic-beta", ""):
        most = max(most, LONG_CONTEXT)
    around = _around(call, model)
    if most is not None and len(payload) - call.media.data_bytes + around >= most:
        return most  # whatever the text is: a long one takes a second to look through
    if payload.isascii() or len(payload) <= THREAD_ABOVE_BYTES:
        bound = around + fields.text_bound(payload, call.media.data_bytes)
    else:
        bound = around + await asyncio.to_thread(fields.text_bound, payload, call.media.data_bytes)
    return bound if most is None else min(bound, most)


def _around(call: Call, model: Model) -> int:
    """What comes to the text: media, and what the provider puts around messages and tools."""
    framing = 16 + 8 * call.messages + (600 if call.tools else 0) + 1_000 * call.vendor_tools
    return framing + media.bound(model.id, call.media, model.max_input)


def _wanted_cap(call: Call, model: Model, policy: Policy) -> int:
    if call.cap_field is None:
        return 0
    if call.cap is not None:
        return call.cap
    return min(policy.default_output_cap or model.max_output, model.max_output)


async def _count_upstream(made: Bid, client: Client) -> int | None:
    """What the provider counts, with a margin, since it does not promise the number; None where it does not say."""
    body = {name: value for name, value in made.call.body.items() if name in _COUNTED}
    try:
        async with asyncio.timeout(_COUNT_S):
            answer = await client.post(
                made.offer.url.with_query(None) / "count_tokens", made.headers, fields.encode(body)
            )
            try:
                text = await answer.read(_MOST_COUNT_BYTES)
            finally:
                answer.close()
        count = fields.parse(text).get("input_tokens") if answer.status == 200 else None
    except (NotSent, Lost, Broken, TimeoutError, Problem):
        return None
    return math.ceil(count * 1.1) + 600 if type(count) is int and count > 0 else None
