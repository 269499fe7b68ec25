"""`POST /api/chat`, for apps: five fields, put in the words that the model's provider understands.

A translation in front of OpenAI Chat Completions and nothing else: what it makes is parsed, priced, held, forwarded and
answered as any other chat completion. An app in a store cannot be changed when a model is: so the gateway names the
model where the app does not, and keeps from a model what it would refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from goosestack.errors import Invalid
from goosestack.wire import Body, Call, body as fields
from goosestack.wire.openai_chat import OpenAIChat

ROUTE = "/api/chat"
FIELDS = ("messages", "model", "temperature", "max_tokens", "stream")
MOST_TEMPERATURE = 2


@dataclass(frozen=True, slots=True)
class Traits:
    """What the translation depends on."""

    temperature: bool = True
    """Whether it takes one."""
    retired: str | None = None
    """The day since when the provider no longer answers for it."""


class MobileChat(OpenAIChat):
    """The wire format `openai_chat`, asked for in five fields."""

    def __init__(self, default_model: str | None, traits: Callable[[str], Traits]) -> None:
        """`traits` tells them of a model by its name, that of an alias too; a name that is not sold has none."""
        self._default_model, self._traits = default_model, traits

    def parse(self, body: Body, *, own_key: bool) -> Call:
        """See `Wire.parse`."""
        if unknown := body.keys() - set(FIELDS):
            name = min(unknown)[:64]
            raise Invalid(reason=f"unknown field `{name}`; there are {', '.join(FIELDS)}", param=name)
        asked: Body = {name: value for name, value in body.items() if value is not None}
        if "model" not in asked and self._default_model is not None:
            asked["model"] = self._default_model
        model = fields.model_name(asked)
        traits = self._traits(model)
        if traits.retired is not None:
            reason = f"the model `{model}` was retired on {traits.retired}; `GET /v1/models` lists those that answer"
            raise Invalid(reason=reason, param="model")
        _check_temperature(asked)
        if not traits.temperature:
            asked.pop("temperature", None)
        if fields.integer(asked, "max_tokens", 1, fields.MOST_TOKENS) is not None:
            # every model of OpenAI's takes it under this name; where another provider wants another, see `bidding`
            asked["max_completion_tokens"] = asked.pop("max_tokens")
        return super().parse(asked, own_key=own_key)


def _check_temperature(body: Body) -> None:
    value = body.get("temperature")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TEMPERATURE:
        raise fields.invalid("temperature", f"must be a number from 0 to {MOST_TEMPERATURE}")
