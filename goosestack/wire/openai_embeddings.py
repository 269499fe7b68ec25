"""OpenAI Embeddings: `POST /v1/embeddings`, never streamed. Only input is paid for.

Input is text or tokens. Both are bounded by the bytes of the body: a token that is sent as a number takes a digit at
least, and a comma or bracket.
"""

from __future__ import annotations

import msgspec

from goosestack.errors import Problem, Unsupported
from goosestack.wire import Body, Call, Reading, body as fields, envelope, parts
from goosestack.wire.parts import NULL, UNREADABLE, given

PASSED = frozenset(("dimensions", "encoding_format", "user"))
"""What does not change the price."""

CONTROLLED = frozenset(("input", "model", "stream"))
"""What the gate prices by."""

REFUSED: dict[str, str] = {}

_MOST_ITEMS = 2_048


class OpenAIEmbeddings:
    """The wire format `openai_embeddings`."""

    name = "openai_embeddings"
    path = "/embeddings"
    dialect = "openai"
    kind = "embedding"
    free = False
    known = PASSED | CONTROLLED | frozenset(REFUSED)
    keep_alive = b": keep-alive\n\n"

    def parse(self, body: Body, *, own_key: bool) -> Call:
        """See `Wire.parse`."""
        call = Call(body, fields.model_name(body), stream=False, cap_field=None, output_in_sight=True)
        if fields.boolean(body, "stream"):
            raise Unsupported(field="stream", reason="embeddings come as a whole", param="stream")
        if own_key:
            return call
        parts.refuse(body, REFUSED)
        call.messages = _count(body.get("input"))
        call.unknown = tuple(name for name in body if name not in self.known)
        return call

    def set_cap(self, call: Call, cap: int) -> None:
        """There is no output to cap."""
        raise AssertionError("an embedding has no output cap")

    def reader(self, call: Call, *, keep_text: bool) -> EmbeddingsReader:
        """See `Wire.reader`."""
        return EmbeddingsReader()

    def error_frame(self, problem: Problem, request_id: str) -> bytes:
        """As in the other formats, though there are no streams here."""
        return b"data: " + envelope.dump(envelope.openai(problem)) + b"\n\n"


def _count(given_input: object) -> int:
    """How many texts or lists of tokens there are to embed."""
    if _is_text(given_input) or _is_tokens(given_input):
        return 1
    if type(given_input) is not list or not 0 < len(given_input) <= _MOST_ITEMS:
        raise fields.invalid("input", f"must be a text, or a list of tokens, or a list of 1 to {_MOST_ITEMS} of either")
    fits = _is_text if type(given_input[0]) is str else _is_tokens
    for position, item in enumerate(given_input):
        if not fits(item):
            raise fields.invalid(f"input[{position}]", "must be a text or a list of tokens like the others, not empty")
    return len(given_input)


def _is_text(item: object) -> bool:
    return type(item) is str and item != ""


def _is_tokens(item: object) -> bool:
    if type(item) is not list or set(map(type, item)) != {int}:
        return False
    return bool(0 <= min(item) <= max(item) <= fields.MOST_TOKENS)


# --- reading answers ------------------------------------------------------------------------------------------


class _Answer(msgspec.Struct):
    data: msgspec.Raw = NULL
    model: str | None = None
    usage: msgspec.Raw = NULL


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_USAGE = msgspec.json.Decoder(_Usage)


class EmbeddingsReader:
    """Reads the answer, which comes as a whole."""

    gathered = 0
    """See `Reader.gathered`."""

    def __init__(self) -> None:
        self.reading = Reading()

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """There are no streams of embeddings."""
        raise ValueError("embeddings are not streamed")

    def catch_up(self) -> None:
        """See `Reader.catch_up`."""

    def whole(self, data: bytes) -> bool:
        """See `Reader.whole`."""
        try:
            answer = _ANSWER.decode(data)
        except UNREADABLE:
            return False
        self.reading.model = answer.model
        raw = given(answer.usage)
        if raw is not None:
            self._take_usage(raw)
        return given(answer.data) is not None

    def _take_usage(self, raw: bytes) -> None:
        try:
            usage = _USAGE.decode(raw)
        except UNREADABLE as error:
            self.reading.nonsense = f"unreadable usage: {type(error).__name__}"
            return
        read = usage.total_tokens if usage.prompt_tokens is None else usage.prompt_tokens
        found = {"input": read, "output": None if read is None else 0}
        parts.take_usage(self.reading, found, parts.cost_of(raw))
