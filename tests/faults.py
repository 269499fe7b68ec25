"""Everything that an upstream can do wrong, and the one outcome that each of it has: for whoever asks, and in the log.

A kind of fault is a directive to the demo upstream. A case is a kind in one wire format, streamed or not. `ask` asks it
over a connection of its own; `wrong` says what is wrong with what came of it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from goosestack import demo
from tests.mallory import CHAT, EMBEDDINGS, MESSAGES, RESPONSES, Reply, assert_error, dialect
from tests.world import ANTHROPIC_KEY, OPENAI_KEY

PATHS = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES, "embeddings": EMBEDDINGS}
WIRES = tuple(PATHS)
FORMATS: dict[str, dict[str, Any]] = {
    "chat": {"model": "gpt-4o-mini", "max_tokens": 500, "messages": None},
    "responses": {"model": "gpt-5.4-mini", "max_output_tokens": 500, "input": None},
    "messages": {"model": "claude-haiku-4-5", "max_tokens": 500, "messages": None},
    "embeddings": {"model": "text-embedding-3-small", "input": None},
}
COUNTS = dict.fromkeys(WIRES, ("input_tokens", "output_tokens"))
COUNTS |= dict.fromkeys(("chat", "embeddings"), ("prompt_tokens", "completion_tokens"))
ENDS = (b"data: [DONE]", b"event: response.completed", b"event: message_stop")
ERRORS = (b'"error"', b"event: error", b"response.failed")
CANARIES = (OPENAI_KEY.encode(), ANTHROPIC_KEY.encode(), b"canaryORG123", b"proj_canary")
WORDS = 40
"""Of an answer: enough that it repeats the question, by which it is told from anybody else's."""


# --- the kinds --------------------------------------------------------------------------------------------------

WHOLE = frozenset("""crlf byte_by_byte coalesced comments after_terminal drip early_hints second_answer""".split())
"""Faults that are none: the answer is whole, in an unusual form (or drips until the deadline)."""
RELAYED = {"error_400": 400, "error_404": 404, "error_413": 413, "error_422": 422, "error_429": 429, "error_529": 529}
OPERATORS = frozenset(("error_401", "error_402", "error_403", "error_quota", "error_low_credit"))
REFUSED = frozenset(("redirect", "error_200", "error_408", "error_500", "error_502", "error_503"))


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to fail.

    `outcome`: `whole` (nothing is wrong with it), `relayed` (a refusal that the caller gets as it is), `operators` (one
    that is the operator's trouble), `refused` (any other), `cut` (it broke off: billed for what was seen), `estimated`
    (whole, but its usage cannot be), `believed` (whole, its usage odd but possible).
    """

    outcome: str
    directive: Mapping[str, Any]
    counts: tuple[object, object] | None = None
    """What is reported as read and written, where the directive is to lie about that."""
    status: int = 502
    """Of the answer, where nothing is relayed but an error."""

    @property
    def paced(self) -> bool:
        """Whether a stream of it goes frame by frame up to the fault, and not all at once or not at all."""
        fault = self.directive.get("fault")
        begins = self.outcome in ("whole", "cut", "estimated", "believed") and fault not in AT_ONCE
        return begins and self.directive.get("at") != 0


AT_ONCE = frozenset(
    """reset_before_headers close_before_headers stall_headers html empty no_content not_http two_lengths gzip_bomb
    huge_header many_headers coalesced""".split()
)
"""Faults that leave nothing of an answer to go frame by frame."""


def _outcome(fault: str) -> Kind:
    directive = {"fault": fault}
    if fault in RELAYED:
        return Kind("relayed", directive, status=RELAYED[fault])
    if fault in OPERATORS:
        return Kind("operators", directive, status=503)
    return Kind("refused" if fault in REFUSED else "whole" if fault in WHOLE else "cut", directive)


def _of_status(status: int) -> Kind:
    directive = {"status": status, "location": "/v1/redirected"}
    if status in RELAYED.values():
        return Kind("relayed", directive, status=status)
    operators = status in (401, 402, 403)
    return Kind("operators" if operators else "refused", directive, status=503 if operators else 502)


ODD_STATUSES = (
    """300 301 302 303 307 308 402 405 407 409 410 418 421 425 431 451 499 501 504 505 507 520 522 524 529 599"""
)

KINDS: dict[str, Kind] = {fault: _outcome(fault) for fault in demo.FAULTS}
KINDS |= {
    f"{fault} at the {point} frame": Kind("cut", {"fault": fault, "at": at})
    for fault in ("reset", "eof", "half_json", "stall", "bad_chunk", "bad_json", "bad_utf8", "nested", "error_frame")
    for point, at in (("first", 0), ("last", 10**6))
}
KINDS |= {f"status {status}": _of_status(status) for status in map(int, ODD_STATUSES.split())}
KINDS |= {
    f"usage of {name}": Kind("estimated", {}, counts)
    for name, counts in {
        "less than nothing": (-5, -5),
        "less output than none": (1000, -1),
        "nothing": (0, 0),
        "no output": (1000, 0),
        "text": ("5", "5"),
        "fractions": (5.5, 5.5),
        "truths": (True, True),
        "lists": ([], []),
        "a trillion": (10**12, 10**12),
        "more than a word of the machine": (10**30, 10**30),
        "no counts": (None, None),
        "a trillion written": (1000, 10**12),
    }.items()
}
KINDS["usage of more than was quoted"] = Kind("believed", {}, (100_000, 10_000))
KINDS |= {
    f"usage that is {name}": Kind("estimated", {"usage_raw": raw})
    for name, raw in {
        "a word": '"many"',
        "a list": "[]",
        "empty": "{}",
        "a number": "5",
        "true": "true",
        "a list of one": "[{}]",
        "but a total": '{"total_tokens":5}',
    }.items()
}
KINDS |= {
    f"usage that is {name}": Kind("cut", {"usage_raw": raw})
    for name, raw in {
        "not a number": "NaN",
        "endless": '{"prompt_tokens":-Infinity,"input_tokens":Infinity}',
        "no JSON": "{",
        "very deep": "[" * 50_000 + "]" * 50_000,
    }.items()
}
KINDS |= {
    f"usage that is {name}": Kind("estimated", {"usage_raw": raw})
    for name, raw in {
        "beyond a float": '{"prompt_tokens":1e999,"input_tokens":1e999,"completion_tokens":5,"output_tokens":5}',
        "of 5,000 digits": f'{{"prompt_tokens":{"9" * 5000},"input_tokens":{"9" * 5000}}}',
    }.items()
}
KINDS |= {f"usage that is {mode}": Kind("estimated", {"usage_mode": mode}) for mode in ("missing", "null")}
KINDS |= {
    f"usage told {mode}": Kind("believed", {"usage_mode": mode}) for mode in ("twice", "decreasing", "every_chunk")
}


# --- the cases --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of fault in one format."""

    kind: str
    wire: str
    stream: bool

    def __str__(self) -> str:
        return f"{self.kind} in {self.wire}{', streamed' if self.stream else ''}"

    @property
    def path(self) -> str:
        """Where it is asked."""
        return PATHS[self.wire]

    @property
    def lasts(self) -> bool:
        """Whether it can be told to take its time. Late, a second answer would be the one to what is asked then."""
        return self.stream or self.kind != "second_answer"

    @property
    def hung_up_on(self) -> bool:
        """Whether the gateway hangs up on the upstream when its caller leaves. It does where all that was written is in
        sight: what is not streamed, or thought of before, is read to its end."""
        return self.stream and self.wire == "chat"

    def body(self, who: str, slow_s: float = 0) -> dict[str, Any]:
        """The request; `who` stands in its question, and an answer takes about so long."""
        kind = KINDS[self.kind]
        directive = {"words": WORDS, **kind.directive}
        if slow_s and self.lasts:
            by_frames = self.stream and kind.paced
            directive |= {"delay_ms": 1000 * slow_s / WORDS} if by_frames else {"hang_s": slow_s}
        if kind.counts is not None:
            directive["usage"] = dict(zip(COUNTS[self.wire], kind.counts, strict=True))
        text = f"{who} demo:{json.dumps(directive)}"
        told = text if "input" in FORMATS[self.wire] else [{"role": "user", "content": text}]
        filled = {name: told if value is None else value for name, value in FORMATS[self.wire].items()}
        return {**filled, "stream": True} if self.stream else filled


def _sensible(case: Case) -> bool:
    directive = KINDS[case.kind].directive
    if case.wire == "embeddings" and (case.stream or not _of_embeddings(case.kind)):
        return False
    if not case.stream and ("first frame" in case.kind and directive["fault"] in ("bad_json", "bad_utf8", "nested")):
        return False  # it has no frames
    if not case.stream and ("last frame" in case.kind or case.kind.startswith("usage told")):
        return False
    return demo.fits(directive.get("fault"), case.wire, case.stream)


UNTOLD = tuple(f"usage of {lie}" for lie in ("less output than none", "no output", "a trillion written", "no counts"))
UNTOLD += ("usage that is but a total",)


def _of_embeddings(kind: str) -> bool:
    """Whether it can be told of an answer without output."""
    return kind not in UNTOLD


CASES = tuple(
    case for kind in KINDS for wire in WIRES for stream in (False, True) if _sensible(case := Case(kind, wire, stream))
)


# --- asking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: nothing of it (`status` 0), all of it (`whole`), or a part."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


NOTHING = Answer(0, {}, b"", whole=False)


@dataclass(frozen=True, slots=True)
class Leave:
    """When a caller goes: once so many bytes have come, and so long after asking at the latest; by RST or FIN."""

    after_bytes: int
    after_s: float
    reset: bool


async def ask(url: str, case: Case, key: str, who: str, leave: Leave | None = None, slow_s: float = 0) -> Answer:
    """Ask a case over a connection of its own."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return NOTHING
    data = json.dumps(case.body(who, slow_s)).encode()
    head = f"POST {case.path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    try:
        if leave is None:
            return answer_in(await _all(reader))
        await _some(reader, leave)
        if leave.reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return NOTHING
    finally:
        writer.transport.abort() if leave is not None and leave.reset else writer.close()


async def _all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    try:
        while data := await reader.read(65_536):
            received += data
    except ConnectionError:
        pass
    return received


async def _some(reader: asyncio.StreamReader, leave: Leave) -> None:
    size = 0
    try:
        async with asyncio.timeout(leave.after_s):
            while size < leave.after_bytes and (data := await reader.read(4096)):
                size += len(data)
    except (TimeoutError, ConnectionError):
        pass


def answer_in(received: bytes) -> Answer:
    """The answer in all that came over a connection."""
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return NOTHING
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") != "chunked":
        return Answer(int(first.split()[1]), headers, rest, whole=int(headers.get("content-length", -1)) == len(rest))
    pieces, whole = [], False
    while rest and not whole:
        size, _, rest = rest.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        rest, whole = rest[int(size, 16) + 2 :], int(size, 16) == 0
    return Answer(int(first.split()[1]), headers, b"".join(pieces), whole)


# --- judging ----------------------------------------------------------------------------------------------------


def wrong(case: Case, who: str, answer: Answer, row: Mapping[str, Any]) -> str:
    """What is wrong with the outcome of a case, for a caller who read all of it; empty where nothing is."""
    kind = KINDS[case.kind]
    found = shown_secret(answer) or wrong_row(case, row)
    if found:
        return found
    if row["status"] == "released":
        status = {"idle_connection_lost": 502, "shutdown": 502, "deadline": 504}.get(row["reason"], kind.status)
        return "" if answer.status == status and in_format(case, answer) else f"it is answered {answer}"
    if answer.status != 200:
        retried = answer.headers.get("x-should-retry") != "false"
        wrongly = row["reason"] == "completed" or answer.status not in (502, 504) or retried
        return f"it is answered {answer}" if wrongly or not in_format(case, answer) else ""
    if not answer.whole:
        return "the answer has no end"
    if not case.stream or b"data:" not in answer.body:
        return "" if row["reason"] == "completed" else "an answer that broke off came as a whole one"
    ours = b'"upstream_cut"' in answer.body  # in a `response.failed`, too
    failed = case.kind == "failed" and b"response.failed" in answer.body and not ours
    ended = failed or any(end in answer.body for end in ENDS)
    told = any(error in answer.body for error in ERRORS)
    if ended != (row["reason"] == "completed"):
        return f"a stream that ended by {row['reason']} does not look so: {answer.body[-300:]!r}"
    if not ended and not told:
        return f"a cut stream tells of no error: {answer.body[-300:]!r}"
    mine = case.wire == "embeddings" or who.encode() in answer.body or not ended
    return "" if mine else f"this is not the answer to what was asked: {answer.body[-300:]!r}"


def shown_secret(answer: Answer) -> str:
    """The operator's secret that an answer gives away; empty where there is none."""
    shown = answer.body + str(answer.headers).encode()
    return next((f"{canary.decode()} is shown" for canary in CANARIES if canary in shown), "")


def wrong_row(case: Case, row: Mapping[str, Any]) -> str:
    """What is wrong with what was written down, whoever read the answer, and whatever else came between."""
    kind, ended = KINDS[case.kind], f"{row['status']} ({row['reason']}), charged {row['charged']}"
    if row["shortfall"] != 0 or row["charged"] != row["cost_nanos"]:
        return f"it cost {row['cost_nanos']}, and {ended}"
    if row["charged"] > row["held"] and kind.outcome != "believed":
        return f"held {row['held']}, and {ended}"
    if row["reason"] in ("client_gone", "deadline", "shutdown"):  # before or after the fault
        return "" if (row["status"] == "settled") == (row["charged"] > 0) else f"it is {ended}"
    if row["reason"] == "idle_connection_lost" and kind.outcome == "cut":
        return "" if (row["status"], row["charged"]) == ("released", 0) else f"it is {ended}"
    refused = kind.outcome in ("relayed", "operators", "refused")
    if refused != (row["status"] == "released") or (row["charged"] > 0) != (row["status"] == "settled"):
        return f"a {kind.outcome} answer is {ended}"
    if kind.outcome in ("whole", "believed", "estimated") and row["reason"] != "completed":
        return f"a {kind.outcome} answer is {ended}"
    if row["estimated"] != (kind.outcome == "estimated") and kind.outcome in ("whole", "estimated"):
        return f"a {kind.outcome} answer is charged by {'an estimate' if row['estimated'] else 'its usage'}"
    return ""


def in_format(case: Case, answer: Answer) -> bool:
    """Whether an error comes in the envelope of its route."""
    try:
        assert_error(Reply(answer.status, dict(answer.headers), answer.body), dialect(case.path, {}), answer.status)
    except (AssertionError, KeyError, ValueError):
        return False
    return answer.whole
