"""What the demo upstream says, how it counts it, and the interface of a wire format."""

from __future__ import annotations

import itertools
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from goosestack.demo.directive import Directive
from goosestack.demo.strict import Json, Problem, Refusal, readable

ECHOED_WORDS = 8
FILLER = ("and", "so", "it", "goes", "on,", "word", "after", "word,")
TOOL_CALL_TOKENS = 2  # a name and an empty object
USAGE = "\x00usage\x00"  # stands where the usage goes until the document is encoded


@dataclass(frozen=True)
class Script:
    """What one answer says: words, or a call of a tool."""

    words: tuple[str, ...]
    tool: str | None
    reasoning: int
    cut: bool  # the output cap struck

    @property
    def pieces(self) -> tuple[str, ...]:
        """The words as they are streamed, each with the space before it."""
        return tuple(word if k == 0 else f" {word}" for k, word in enumerate(self.words))

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def output_tokens(self) -> int:
        spoken = TOOL_CALL_TOKENS if self.tool is not None else len(self.words)
        return spoken + self.reasoning


def script(question: str, directive: Directive, cap: int | None, tool: str | None) -> Script:
    """The answer to a question within an output cap, which counts hidden reasoning as well."""
    reasoning = directive.reasoning if cap is None else min(directive.reasoning, cap)
    room = None if cap is None else cap - reasoning
    if tool is not None and (room is None or room >= TOOL_CALL_TOKENS):
        return Script((), tool, reasoning, cut=False)
    words = canned(question, directive.words)
    cut = room is not None and len(words) > room
    return Script(tuple(words[:room]), None, reasoning, cut)


def canned(question: str, count: int | None) -> list[str]:
    """A demo answer, which says that it is one; exactly `count` words of it where given."""
    heard = [word for word in question.split() if word.isprintable()]
    echo = " ".join(heard[:ECHOED_WORDS]) + ("..." if len(heard) > ECHOED_WORDS else "")
    said = f'You said: "{echo}"' if heard else "You said nothing."
    words = (f"This is a canned demo answer from GooseStack's built-in upstream: no model was asked. {said}").split()
    if count is None:
        return words
    return list(itertools.islice(itertools.chain(words, itertools.cycle(FILLER)), count))


def input_tokens(read: object, messages: int) -> int:
    """A plausible count: a token per four bytes of text, and the framing of each message."""
    size = sum(len(text.encode("utf-8", "replace")) for text in readable(read))
    return max(1, size // 4) + 3 * messages + 3


@dataclass(frozen=True)
class Usage:
    """The usage to report: its value, and the JSON texts that report it, in their order."""

    value: Any
    texts: tuple[str, ...]
    every_frame: bool
    doubled: str

    @property
    def first(self) -> str | None:
        return self.texts[0] if self.texts else None

    @property
    def last(self) -> str | None:
        return self.texts[-1] if self.texts else None

    @property
    def all(self) -> str | None:
        """For a body: where usage is reported twice, the key is there twice."""
        return ',"usage":'.join(self.texts) if self.texts else None


def report(true: Json, directive: Directive) -> Usage:
    """The usage of an answer as the directive wants it told."""
    value: Any = merged(true, directive.usage)
    text = directive.usage_raw if directive.usage_raw is not None else dump(value)
    if directive.usage_raw is not None:
        value = directive.usage_raw
    double = text if isinstance(value, str) else dump(doubled(value))
    texts = {
        "missing": (),
        "null": ("null",),
        "twice": (text, text),
        "decreasing": (double, text),
    }.get(directive.usage_mode or "", (text,))
    return Usage(value, texts, directive.usage_mode == "every_chunk", double)


def merged(base: Json, changes: Json) -> Json:
    """`base` with `changes` over it, object into object; a null takes a field away."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def doubled(value: Any) -> Any:
    """A document with every number twice as large."""
    if isinstance(value, dict):
        return {key: doubled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [doubled(each) for each in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value * 2
    return value


def dump(document: object) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def encode(document: Json, usage: str | None = None) -> bytes:
    """The JSON of a document; `usage` takes the place of USAGE in it, None removes that field."""
    place = f',"usage":{json.dumps(USAGE)}'
    text = dump(document).replace(place, "" if usage is None else f',"usage":{usage}')
    return text.encode("utf-8", "replace")


def frame(data: bytes, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


@dataclass(frozen=True)
class Answer:
    """A whole answer, ready to be sent: a body, or the frames of a stream."""

    usage: Any
    body: bytes = b""
    frames: tuple[bytes, ...] | None = None
    late: tuple[bytes, ...] = ()  # what a confused upstream sends after the terminal frame
    failed: bytes = b""  # the terminal frame of a failure, where the wire format has one
    headers: Mapping[str, str] = field(default_factory=dict)


class Wire(ABC):
    """One route and its wire format: checks a request, composes the answer, words the errors."""

    name: str
    method: str = "POST"
    vendor: Literal["openai", "anthropic"]
    comments: bytes = b": keep-alive\n\n"

    def __init__(self, key: str) -> None:
        self.key = key

    @abstractmethod
    def authenticate(self, headers: Mapping[str, str]) -> None:
        """Refuse, with 401, whoever does not bear the key."""

    @abstractmethod
    def check(self, body: Json, headers: Mapping[str, str]) -> None:
        """Refuse a body that the vendor would refuse."""

    @abstractmethod
    def question(self, body: Json) -> str:
        """The text to answer, which may bear a directive."""

    @abstractmethod
    def compose(self, body: Json, directive: Directive, question: str) -> Answer:
        """The answer to a body that passed `check`."""

    @abstractmethod
    def envelope(self, refusal: Refusal, body: Json, request_id: str) -> Json:
        """An error as the vendor writes it."""

    @abstractmethod
    def error_frame(self, refusal: Refusal, body: Json, at: int, request_id: str) -> bytes:
        """An error in the middle of a stream, after `at` frames."""

    @abstractmethod
    def headers(self, request_id: str) -> dict[str, str]:
        """The headers of every answer; among them those that name the operator's account."""

    @abstractmethod
    def refusal(self, problem: Problem) -> Refusal:
        """The vendor's sentence for a field that is wrong."""

    def require(self, problem: Problem | None) -> None:
        if problem is not None:
            raise self.refusal(problem)
