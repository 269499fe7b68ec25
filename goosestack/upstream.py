"""Providers: which one sells a model over which wire format, and how it is asked.

A request upstream is built from scratch: our credential, the few headers that the format needs, the body that was
parsed. Nothing of the caller's own headers goes along but `anthropic-*`, which agents rely on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from yarl import URL

from goosestack import __version__
from goosestack.errors import Invalid, ModelNotFound, Unsupported
from goosestack.pricing import Model, PriceBook
from goosestack.wire import Wire
from goosestack.wire.anthropic_messages import refused_beta

ORDER = ("openai", "anthropic", "openrouter", "litellm")
"""Which provider wins where several sell a model, unless the operator says otherwise."""

_ALWAYS = {
    "content-type": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"goosestack/{__version__}",
}
_ANTHROPIC_VERSION = "2023-06-01"
_MOST_HEADER = 8_192
_QUERY = re.compile(r"[A-Za-z0-9_.-]{1,64}=[A-Za-z0-9_.-]{0,64}(&[A-Za-z0-9_.-]{1,64}=[A-Za-z0-9_.-]{0,64}){0,7}")


@dataclass(frozen=True, slots=True)
class Provider:
    """A company and our credentials with it."""

    name: str
    base_url: str
    """Ends in `/v1`."""
    key: str | None
    wires: frozenset[str]
    routes: bool = False
    """Whether it may send a request on to others: body fields that we do not know are then refused."""
    bills_cut_calls: bool = False
    """Whether it may go on, and bill, after we hang up."""
    reports_cost: bool = False
    """Whether its answers name their price."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Who will serve a call, and at which price; `model` is None only where the caller pays the provider directly."""

    provider: Provider
    model: Model | None
    name: str
    """The model's name as it is sent upstream."""
    url: URL


class Upstreams:
    """The configured providers and the price book: what this gateway sells."""

    def __init__(self, providers: Mapping[str, Provider], book: PriceBook) -> None:
        self.providers = providers
        self.book = book
        self._urls: dict[tuple[str, str], URL] = {}
        self._offers: dict[tuple[str, str], Offer] = {}

    def offer(self, wire: Wire, name: str, today: str) -> Offer:
        """Who sells the model over this wire format. Raises ModelNotFound, saying what is sold instead."""
        known = self._offers.get((wire.name, name))
        if known is None:
            known = self._find(wire, name)
            self._offers[wire.name, name] = known
        assert known.model is not None
        if known.model.retires is not None and known.model.retires <= today:
            raise ModelNotFound(model=name, hint=f": it was retired on {known.model.retires}", param="model")
        return known

    def _find(self, wire: Wire, name: str) -> Offer:
        target = self.book.aliases.get(name, name)
        elsewhere = None
        for provider in self._order(target):
            model = self._sold(provider, target)
            if model is None:
                continue
            if wire.name in provider.wires and model.kind == wire.kind:
                return Offer(provider, model, target, self.url(provider, wire))
            elsewhere = provider if model.kind == wire.kind else elsewhere
        gone = self.book.retired.get(target)
        hint = "" if gone is None else f": it was retired on {gone}"
        if elsewhere is not None:
            messages = wire.dialect == "openai"
            hint = f" on this endpoint; it is on {'/v1/messages' if messages else '/v1/chat/completions'}"
        raise ModelNotFound(model=name[:100], hint=hint, param="model")

    def _order(self, name: str) -> list[Provider]:
        chosen = self.book.chosen.get(name)
        order = ((chosen,) if chosen else ()) + self.book.prefer + ORDER
        usable = (self.providers.get(provider) for provider in dict.fromkeys(order))
        return [provider for provider in usable if provider is not None and provider.key is not None]

    def _sold(self, provider: Provider, name: str) -> Model | None:
        own = self.book.find(provider.name, name)
        if own is not None or provider.name != "litellm":
            return own
        priced = (self.book.find(other, name) for other in ORDER)  # a proxy sells what anybody has a price of
        return next((model for model in priced if model is not None), None)

    def sold(self, today: str) -> list[tuple[Provider, Model]]:
        """Every model that can be asked for, under its own name, with the provider that wins."""
        found: dict[str, tuple[Provider, Model]] = {}
        for model in self.book.models.values():
            if model.id in found or (model.retires is not None and model.retires <= today):
                continue
            for provider in self._order(model.id):
                sold = self._sold(provider, model.id)
                if sold is not None:
                    found[model.id] = (provider, sold)
                    break
        return [found[name] for name in sorted(found)]

    def url(self, provider: Provider, wire: Wire) -> URL:
        """Where a provider takes this wire format."""
        key = (provider.name, wire.path)
        if key not in self._urls:
            self._urls[key] = URL(provider.base_url + wire.path)
        return self._urls[key]

    def own_offer(self, wire: Wire, name: str, key: str) -> Offer:
        """Where a call goes that the caller pays with their own provider key: to whom the model belongs.

        Raises Invalid where model and key belong to different providers: a key must not reach a stranger.
        """
        owner = _owner_of_model(self.book, name)
        holder = _holder_of_key(key)
        if owner is not None and holder not in (owner, None):
            raise Invalid(reason=f"`X-Provider-Key` is a key of {holder}, and `{name}` belongs to {owner}")
        provider = self.providers.get(owner or holder or "")
        if provider is None or wire.name not in provider.wires:
            raise ModelNotFound(model=name[:100], hint=" with your own key on this endpoint", param="model")
        return Offer(provider, self.book.find(provider.name, name), name, self.url(provider, wire))


def _owner_of_model(book: PriceBook, name: str) -> str | None:
    for provider in ("openai", "anthropic", "openrouter"):
        if book.find(provider, name) is not None:
            return provider
    if name.startswith("claude-"):
        return "anthropic"
    if name.startswith(("gpt-", "chatgpt-", "o1", "o3", "o4", "text-embedding-", "ft:")):
        return "openai"
    return "openrouter" if "/" in name else None


def _holder_of_key(key: str) -> str | None:
    """Whose key this is by its shape; None where any provider could have made it."""
    if key.startswith("sk-ant-"):
        return "anthropic"
    if key.startswith("sk-or-"):
        return "openrouter"
    return "openai" if key.startswith("sk-") else None


def with_query(offer: Offer, query: str) -> Offer:
    """The offer with the caller's query string: Anthropic's own clients use one, and nobody else. Raises Invalid."""
    if not query or offer.provider.name != "anthropic":
        return offer
    if not _QUERY.fullmatch(query):
        raise Invalid(reason="the query string must be plain `name=value` pairs")
    return replace(offer, url=offer.url.with_query(query))


def headers(offer: Offer, wire: Wire, key: str, callers: Mapping[str, str], *, own_key: bool) -> dict[str, str]:
    """The headers of the request upstream. Raises Unsupported for a beta that would unbound the cost."""
    sent = dict(_ALWAYS)
    if offer.provider.name == "anthropic":
        sent["x-api-key"] = key
    else:
        sent["authorization"] = f"Bearer {key}"
    if wire.dialect == "anthropic":
        sent["anthropic-version"] = _ANTHROPIC_VERSION
        for name, value in callers.items():
            if not value.isascii() or not value.isprintable() or len(value) > _MOST_HEADER:
                raise Invalid(reason=f"the header `{name}` is not printable ASCII of at most {_MOST_HEADER} characters")
            if name == "anthropic-beta" and not own_key and (beta := refused_beta(value)) is not None:
                reason = "its cost is not bounded, or it reaches into the operator's account"
                raise Unsupported(field=f"anthropic-beta: {beta[:100]}", reason=reason)
            if name not in ("anthropic-workspace-id", "anthropic-organization-id"):
                sent[name] = value
    return sent


def refuse_unknown(offer: Offer, unknown: tuple[str, ...]) -> None:
    """Raise Unsupported for a field that nobody here knows, where the provider could route by it."""
    if unknown and offer.provider.routes:
        reason = f"it is unknown here, and {offer.provider.name} could route by it"
        raise Unsupported(field=unknown[0][:100], reason=reason, param=unknown[0][:100])
