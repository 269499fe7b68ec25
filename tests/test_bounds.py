"""Input is bounded before anything is sent: no tokenizer, and no vendor's rule for images, may come to more.

True counts come from an independent encoder (`tokens.py`), the vendors' rules are written down here a second time, from
their documentation.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import unicodedata
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from goosestack import bidding, pricing
from goosestack.bidding import Bid, Policy
from goosestack.http import Client
from goosestack.payers import Credits
from goosestack.pricing import Model, Terms, Usage
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Provider, Upstreams
from goosestack.wire import Media, Wire, body as fields, media
from goosestack.wire.anthropic_messages import AnthropicMessages
from goosestack.wire.openai_chat import OpenAIChat
from goosestack.wire.openai_embeddings import OpenAIEmbeddings
from tests.tokens import install, texts, true_count

TODAY = "2026-11-21"
WIRES: tuple[Wire, ...] = (OpenAIChat(), OpenAIEmbeddings(), AnthropicMessages())
NAMES = frozenset(wire.name for wire in WIRES)
UPSTREAMS = Upstreams(
    {name: Provider(name, f"https://{name}.example/v1", "sk-x", NAMES) for name in ("openai", "anthropic")},
    pricing.load((files("goosestack") / "prices.json").read_text()),
)
LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
PROPERTY = settings(deadline=None, database=None, max_examples=20_000 if LONG else 150)
FEWER = settings(deadline=None, database=None, max_examples=5_000 if LONG else 60)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    """A tokenizer with its ranks, where tiktoken looks for them."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield install(folder)


# --- text -----------------------------------------------------------------------------------------------------


def bound_of(text: str) -> int:
    """The bound on a text, as it would stand in a body."""
    return fields.text_bound(fields.encode({"": text}), 0)


@PROPERTY
@given(texts)
def test_no_encoder_makes_more_tokens_of_a_text_than_its_bound(text: str) -> None:
    assert true_count(text) <= bound_of(text)
    assert true_count(text, "cl100k_base") <= bound_of(text)


@PROPERTY
@given(texts)
@example("á\u0323" * 20)  # the marks change places, and the letter composes to a longer one
@example("\ufdfa" * 20)
@example("\u1f82\u0323\u0331" * 20)
def test_no_normal_form_is_longer_than_the_bound(text: str) -> None:
    for form in ("NFC", "NFKC"):
        assert len(unicodedata.normalize(form, text).encode()) <= bound_of(text)


COMPOSED = [chr(code) for code in range(0x110000) if unicodedata.decomposition(chr(code))]
MARKS = [chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))]


@PROPERTY
@given(st.lists(st.sampled_from(COMPOSED) | st.sampled_from(MARKS), max_size=8).map("".join))
def test_letters_and_marks_in_any_order_are_bounded_too(text: str) -> None:
    assert len(unicodedata.normalize("NFKC", text).encode()) <= bound_of(text)


def test_what_one_character_can_become_is_counted() -> None:
    assert bound_of("\ufdfa") - bound_of("") == 33
    assert bound_of("plain") - bound_of("") == 5
    assert bound_of("é") - bound_of("") == 2
    assert bound_of("漢") - bound_of("") == 3


def test_ordinary_text_in_any_script_is_bounded_by_its_bytes() -> None:
    for text in ("Grüße", "Ελληνικά", "русский", "漢字かな", "한국어", "עברית", "🦢 geese"):
        assert bound_of(text) - bound_of("") == len(text.encode())


def test_bytes_of_media_are_no_text() -> None:
    payload = fields.encode({"image": "A" * 1000})
    assert fields.text_bound(payload, 1000) == fields.text_bound(payload, 0) - 1000 == len(payload) - 1000


# --- whole requests -------------------------------------------------------------------------------------------

names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20)
parts = st.lists(texts.map(lambda text: {"type": "text", "text": text}), max_size=4)
calls = st.builds(
    lambda name, arguments: {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}},
    names,
    st.dictionaries(names, texts, max_size=3).map(json.dumps) | texts,
)
messages = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "developer"]), "content": texts | parts},
                          optional={"name": names}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": texts | st.none()},
                          optional={"tool_calls": st.lists(calls, min_size=1, max_size=3), "refusal": texts}),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": names, "content": texts | parts}),
)  # fmt: skip
properties = st.dictionaries(
    names, st.fixed_dictionaries({"type": st.sampled_from(["string", "number"]), "description": texts}), max_size=4
)
tools = st.builds(
    lambda name, description, fields: {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": fields, "required": list(fields)[:1]},
        },
    },
    names,
    texts,
    properties,
)
chats = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["gpt-4o", "gpt-4.1", "gpt-5.4"]),
        "messages": st.lists(messages, min_size=1, max_size=5),
    },
    optional={"tools": st.lists(tools, min_size=1, max_size=3)},
)


def text_of(content: object) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return "" if content is None else str(content)


def true_input(body: dict[str, Any]) -> int:
    """What OpenAI says that it counts: three tokens a message, its role, name, content and calls, three to begin the
    answer, and tools as type declarations."""
    count = 3
    for message in body["messages"]:
        count += 3 + true_count(message["role"]) + true_count(text_of(message.get("content")))
        count += true_count(message.get("refusal", ""))
        if "name" in message:
            count += 1 + true_count(message["name"])
        for call in message.get("tool_calls", ()):
            count += 3 + true_count(call["function"]["name"]) + true_count(call["function"]["arguments"])
    for tool in body.get("tools", ()):
        about = tool["function"]
        lines = ["namespace functions {", f"// {about['description']}", f"type {about['name']} = (_: {{"]
        for name, schema in about["parameters"]["properties"].items():
            lines += [f"// {schema['description']}", f"{name}?: {schema['type']},"]
        count += 8 + true_count("\n".join([*lines, "}) => any;", "} // namespace functions"]))
    return count


def bid(wire: Wire, body: dict[str, Any], *, beta: str | None = None) -> Bid:
    """What the gate makes of a body."""
    sent: dict[str, str] = {} if beta is None else {"anthropic-beta": beta}
    call = wire.parse(fields.parse(fields.encode(body)), own_key=False)
    alice = Credits(1, Terms())
    return asyncio.run(bidding.bid(UPSTREAMS, Policy(), wire, call, sent, payers=[alice], own_key=None, today=TODAY))


@FEWER
@given(chats)
def test_a_chat_never_has_more_input_than_is_held_for(body: dict[str, Any]) -> None:
    assert true_input(body) <= bid(OpenAIChat(), body).demand.input


@FEWER
@given(body=chats)
@example(body={"model": "gpt-4o", "messages": [{"role": "user", "content": '\ta"' * 3000}]})
@example(body={"model": "gpt-4o", "messages": [{"role": "user", "content": "\ré/" * 3000}]})
@example(body={"model": "gpt-4o", "messages": [{"role": "user", "content": "a" * 120_001}]})
@example(body={"model": "gpt-4o", "messages": [{"role": "user", "content": "\n \t" * 30_000}]})
def test_nor_more_than_is_held_for_once_the_tokenizer_has_counted(counting: Tokenizer, body: dict[str, Any]) -> None:
    made = bid(OpenAIChat(), body)
    by_bytes, at_most = made.demand.input, made.at_most
    asyncio.run(bidding.tighten(made, Policy(), counting, cast(Client, None), TODAY, 10**15))
    assert true_input(body) <= made.demand.input <= by_bytes
    assert made.at_least <= made.at_most <= at_most


def test_counting_makes_the_hold_for_ordinary_text_three_times_smaller(counting: Tokenizer) -> None:
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 200
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    made = bid(OpenAIChat(), body)
    by_bytes = made.demand.input
    asyncio.run(bidding.tighten(made, Policy(), counting, cast(Client, None), TODAY, 10**15))
    assert 3 * made.demand.input < by_bytes


@FEWER
@given(st.lists(texts.filter(bool), min_size=1, max_size=5) | texts.filter(bool))
def test_an_embedding_never_has_more_input_than_is_held_for(given_input: str | list[str]) -> None:
    made = bid(OpenAIEmbeddings(), {"model": "text-embedding-3-small", "input": given_input})
    items = [given_input] if isinstance(given_input, str) else given_input
    assert sum(true_count(item, "cl100k_base") for item in items) <= made.demand.input


@FEWER
@given(st.lists(st.lists(st.integers(0, 200_000), min_size=1, max_size=50), min_size=1, max_size=5))
def test_tokens_that_are_sent_as_numbers_are_bounded_too(counting: Tokenizer, lists: list[list[int]]) -> None:
    made = bid(OpenAIEmbeddings(), {"model": "text-embedding-3-small", "input": lists})
    assert sum(map(len, lists)) <= made.demand.input
    asyncio.run(bidding.tighten(made, Policy(), counting, cast(Client, None), TODAY, 10**15))
    assert sum(map(len, lists)) <= made.demand.input


def test_no_model_is_held_for_more_input_than_it_reads() -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 2_000_000}]}
    made = bid(OpenAIChat(), body)
    assert made.offer.model is not None
    assert made.demand.input == made.offer.model.max_input


# --- media ----------------------------------------------------------------------------------------------------


def fit(width: float, height: float, longest: float) -> tuple[float, float]:
    """Shrunk, never stretched, until the longer side fits."""
    scale = min(1.0, longest / max(width, height))
    return width * scale, height * scale


def tiles(width: int, height: int, base: int, tile: int) -> int:
    """OpenAI's older rule: into 2,048 square, the shorter side to 768, tiles of 512."""
    wide, high = fit(width, height, 2048)
    scale = min(1.0, 768 / min(wide, high))
    return base + tile * math.ceil(wide * scale / 512) * math.ceil(high * scale / 512)


def patches(width: int, height: int, longest: int, budget: int, factor: float) -> int:
    """OpenAI's newer rule: patches of 32, shrunk until a budget of them covers the image, times a factor."""
    wide, high = fit(width, height, longest)
    count = math.ceil(wide / 32) * math.ceil(high / 32)
    if count > budget:
        scale = math.sqrt(32 * 32 * budget / (wide * high))
        wide, high = wide * scale, high * scale
        for side in (wide, high):  # shrunk a little more, until whole patches fit one side
            scale = min(1.0, max(1, math.floor(side / 32)) / (side / 32))
        count = min(budget, math.ceil(wide * scale / 32) * math.ceil(high * scale / 32))
    return math.ceil(count * factor)


def claude(width: int, height: int, longest: int, most: int) -> int:
    """Anthropic's rule: into the longer edge and the budget, then patches of 28."""
    wide, high = fit(width, height, longest)
    return min(most, math.ceil(wide / 28) * math.ceil(high / 28))


SIDES = st.integers(1, 20_000) | st.sampled_from([28, 32, 512, 513, 768, 769, 2048, 2049, 6000, 65_535])
RULES = {
    "gpt-4o": lambda w, h: tiles(w, h, 85, 170),
    "gpt-4o-2024-08-06": lambda w, h: tiles(w, h, 85, 170),
    "gpt-4.1": lambda w, h: tiles(w, h, 85, 170),
    "gpt-4o-mini": lambda w, h: tiles(w, h, 2833, 5667),
    "gpt-5": lambda w, h: tiles(w, h, 70, 140),
    "gpt-5.1": lambda w, h: tiles(w, h, 70, 140),
    "gpt-5.1-codex": lambda w, h: tiles(w, h, 70, 140),
    "o1": lambda w, h: tiles(w, h, 75, 150),
    "o3": lambda w, h: tiles(w, h, 75, 150),
    "gpt-4.1-mini": lambda w, h: patches(w, h, 2048, 6144, 1.62),
    "gpt-5-mini": lambda w, h: patches(w, h, 2048, 6144, 1.62),
    "gpt-4.1-nano": lambda w, h: patches(w, h, 2048, 6144, 2.46),
    "gpt-5-nano": lambda w, h: patches(w, h, 2048, 6144, 2.46),
    "o4-mini": lambda w, h: patches(w, h, 2048, 6144, 1.72),
    "gpt-5.2": lambda w, h: patches(w, h, 2048, 6144, 1.2),
    "gpt-5.4": lambda w, h: patches(w, h, 6000, 10_000, 1.2),
    "gpt-5.4-mini": lambda w, h: patches(w, h, 6000, 10_000, 1.2),
    "gpt-5.5": lambda w, h: patches(w, h, 6000, 10_000, 1.2),
    "gpt-5.6-sol": lambda w, h: patches(w, h, 65_535, 30_000, 1.2),
    "gpt-6-astra": lambda w, h: patches(w, h, 65_535, 30_000, 1.2),
    "gpt-6.1-terra": lambda w, h: patches(w, h, 65_535, 30_000, 1.2),
    "claude-haiku-4-5": lambda w, h: claude(w, h, 1568, 1568),
    "claude-opus-4-7": lambda w, h: claude(w, h, 2576, 4784),
    "claude-fable-5-2": lambda w, h: claude(w, h, 2576, 4784),
}
"""What an image may be at most on a model, whatever detail is asked for."""


@PROPERTY
@given(st.sampled_from(sorted(RULES)), SIDES, SIDES)
def test_no_image_is_more_than_its_models_cap(model: str, width: int, height: int) -> None:
    tokens = RULES[model](width, height)
    for name in (model, f"openai/{model}", f"anthropic/{model}"):
        assert tokens <= media.image_cap(name)


@PROPERTY
@given(st.sampled_from(sorted(RULES)), SIDES, SIDES)
def test_an_image_of_limited_detail_is_no_more_than_the_smaller_cap(model: str, width: int, height: int) -> None:
    if model.startswith(("gpt-5.5", "gpt-5.6", "gpt-6")):
        tokens = max(patches(width, height, 2048, 2500, 1.2), patches(width, height, 512, 2500, 1.2))
    else:
        tokens = RULES[model](width, height)
    assert tokens <= media.image_cap(model, small=True) <= media.image_cap(model)


def test_a_model_that_nobody_knows_has_the_largest_cap_of_all() -> None:
    caps = [media.image_cap(name) for name in (*RULES, *(model.id for model in UPSTREAMS.book.models.values()))]
    assert media.image_cap("somebodys/model") == max(caps)


def test_media_are_counted_by_the_piece_and_documents_by_the_model() -> None:
    assert media.bound("gpt-4o", Media(images=3), 128_000) == 3 * (85 + 8 * 170)
    assert media.bound("gpt-6-astra", Media(images=1, small_images=2), 922_000) == 36_000 + 2 * 3_000
    assert media.bound("gpt-4o", Media(images=3, documents=1), 128_000) == 128_000
    assert media.bound("gpt-4o", Media(), 128_000) == 0


@FEWER
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5), texts, st.sampled_from(["auto", "low", "high"]))
def test_images_and_text_together_are_held_for(sizes: list[tuple[int, int]], text: str, detail: str) -> None:
    url = {"url": f"data:image/png;base64,{'A' * 4000}", "detail": detail}
    content: list[object] = [{"type": "image_url", "image_url": url} for _ in sizes]
    content.append({"type": "text", "text": text})
    made = bid(OpenAIChat(), {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]})
    assert sum(tiles(*size, 85, 170) for size in sizes) + true_count(text) + 7 <= made.demand.input


def test_an_image_for_claude_is_held_for_by_its_cap_and_not_its_bytes() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 1_000_000}
    message = {"role": "user", "content": [{"type": "image", "source": source}]}
    made = bid(AnthropicMessages(), {"model": "claude-haiku-4-5", "max_tokens": 10, "messages": [message]})
    assert 4_784 <= made.demand.input < 6_000


def test_the_estimate_of_media_is_within_their_bound() -> None:
    for model in UPSTREAMS.book.models.values():
        for some in (Media(images=2), Media(small_images=2), Media(documents=1)):
            assert_within(model, some)


def assert_within(model: Model, some: Media) -> None:
    bound = media.bound(model.id, some, model.max_input)
    assert bound > 0 and (media.estimate(some) <= bound or media.estimate(some) <= 5_000)


# --- contexts longer than the model's own ---------------------------------------------------------------------


def test_whoever_asks_for_a_longer_context_is_quoted_for_it() -> None:
    body = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": [{"role": "user", "content": "a " * 450_000}]}
    usual, longer = bid(AnthropicMessages(), body), bid(AnthropicMessages(), body, beta="context-1m-2025-08-07")
    assert (usual.demand.input, longer.demand.input) == (200_000, len(longer.payload) + 24)
    model = usual.offer.model
    assert model is not None
    most = Usage(input=longer.demand.input, output=1000)
    assert pricing.charge(model, most, Terms(), TODAY) <= longer.at_most
    assert pricing.charge(model, most, Terms(), TODAY) > usual.at_most, "it would have been above the quote"
