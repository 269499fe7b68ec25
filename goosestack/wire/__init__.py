"""What the bytes mean: one module per wire format, siblings behind one interface. Pure: no I/O.

A wire format parses a request body into a `Call` (what the gate must know), reads usage out of an answer with a
`Reader`, and renders errors. What it does not have to control passes through untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from goosestack.errors import Problem

Body = dict[str, object]

ROUTING = frozenset(
    """api_base api_key api_type api_version base_url custom_llm_provider deployment_id extra_body extra_headers
    extra_query fallbacks litellm_params mock_response model_list models organization plugins provider route
    router transforms""".split()
)
"""Body fields that would choose another upstream or credential; refused everywhere."""


@dataclass(slots=True)
class Media:
    """What in a body is not text: counted by the model's cap, not by its bytes."""

    images: int = 0
    small_images: int = 0
    """Images whose `detail` the caller limited."""
    documents: int = 0
    data_bytes: int = 0
    """Bytes of base64 in the body, which are no text."""


@dataclass(slots=True)
class Call:
    """A parsed request: its body as it will go upstream, and what the gate prices by."""

    body: Body
    model: str
    stream: bool
    cap_field: str | None
    """The body field that caps the output; None where there is no output to cap."""
    cap: int | None = None
    """The caller's cap on output tokens, of each answer."""
    answers: int = 1
    """How many answers are asked for, each as long as the cap allows."""
    messages: int = 0
    tools: bool = False
    vendor_tools: int = 0
    """Tools that the provider describes to its model itself, at a length that the request does not show."""
    media: Media = field(default_factory=Media)
    tier: str = "standard"
    long_cache: bool = False
    us_only: bool = False
    web_searches: int = 0
    hide_usage: bool = False
    """Whether usage is asked for on our own account, and hidden from the caller."""
    output_in_sight: bool = False
    """Whether the caller turned reasoning off, so that all of the output is visible."""
    unknown: tuple[str, ...] = ()
    """Body fields that this wire format does not know."""
    text_bytes: int = 0
    """Bytes of the body that are no media."""
    free: bool = False
    """Whether the provider charges nothing for it."""


@dataclass(slots=True)
class Reading:
    """What an answer has told so far. Token classes as in `pricing.Usage`; None until the provider reports them."""

    usage: Mapping[str, int] | None = None
    nonsense: str | None = None
    """What was wrong with a usage that could not be believed."""
    model: str | None = None
    tier: str | None = None
    cost: Decimal | None = None
    """US dollars, where the provider names its own price."""
    output_bytes: int = 0
    """UTF-8 bytes of visible output."""
    text: list[str] | None = None
    """The visible output, kept only where somebody asked for it."""
    error: bool = False
    """Whether the provider ended the stream with an error frame of its own."""

    def saw(self, piece: str | None) -> None:
        """Note a piece of visible output."""
        if piece:
            self.output_bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8", "replace"))
            if self.text is not None:
                self.text.append(piece)


class Reader(Protocol):
    """Reads one answer as it passes through."""

    reading: Reading

    @property
    def gathered(self) -> int:
        """Bytes of a frame whose end has not come yet."""
        ...

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take what the upstream sent; give back the complete frames that may pass, and the terminal frame once
        it has come. Raises ValueError where a frame is larger than any provider sends."""
        ...

    def catch_up(self) -> None:
        """Read what has passed unread, so that `reading` says all that is known."""
        ...

    def whole(self, data: bytes) -> bool:
        """Take a plain answer as a whole; whether it could be read as one."""
        ...


class Wire(Protocol):
    """One wire format."""

    name: str
    path: str
    """Below the provider's base URL, which ends in `/v1`."""
    dialect: str
    """`openai` or `anthropic`: whose envelope errors have, and how credentials are sent."""
    kind: str
    """Which models it is for: `chat` or `embedding`."""
    free: bool
    """Whether it costs nothing."""
    known: frozenset[str]
    """Body fields that the wire format knows, refused ones included."""
    keep_alive: bytes
    """A frame that every client of this format ignores."""

    def parse(self, body: Body, *, own_key: bool) -> Call:
        """What the caller asks for. Raises `errors.Invalid` or `errors.Unsupported`.

        With `own_key` the caller pays the provider directly: nothing is priced, and what protects the
        operator's account does not apply.
        """
        ...

    def set_cap(self, call: Call, cap: int) -> None:
        """Put an output cap into the body, and lower with it what must stay below it."""
        ...

    def reader(self, call: Call, *, keep_text: bool) -> Reader:
        """A reader for the answer to this call."""
        ...

    def error_frame(self, problem: Problem, request_id: str) -> bytes:
        """A problem as the last frame of a stream."""
        ...
