"""The provider answers with too much, too slowly, with somebody's secrets; and Mallory does not listen.

Whatever comes back or does not: the daemon's memory stays flat, the hold ends, and the caller learns only what
concerns the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asking import directed, opened
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, Mallory, asks, assert_error, dialect
from tests.world import World, until

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
WAYS = [(path, stream) for path in (CHAT, RESPONSES, MESSAGES) for stream in (False, True)]
EVERY_WAY = pytest.mark.parametrize(("path", "stream"), [*WAYS, (EMBEDDINGS, False), (COUNT, False)])
MEGABYTE = 1024 * 1024


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world, cents=100_000) as mallory:
        yield mallory


class Memory:
    """The most memory that a daemon has used since."""

    def __init__(self, world: World) -> None:
        self._process = Path(f"/proc/{world.daemon.program.process.pid}")
        (self._process / "clear_refs").write_text("5")
        self._start = self._peak()

    def _peak(self) -> int:
        (line,) = [line for line in (self._process / "status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    @property
    def grown(self) -> int:
        """Bytes."""
        return self._peak() - self._start


# --- answers without an end -----------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("fault", ["gzip_bomb", "huge_header", "many_headers", "short_length", "half_json", "bad_json"])
def test_a_monstrous_or_broken_answer_is_a_502_or_an_error_frame(
    mallory: Mallory, path: str, stream: bool, fault: str
) -> None:
    memory = Memory(mallory.world)
    reply = mallory.ask(path, asks(path, directed("Go", fault=fault, words=50), stream=stream))
    if reply.status != 200:
        assert_error(reply, dialect(path, {}), 502)
    elif fault == "bad_json" and stream:
        assert b"oops" in reply.body  # one frame that cannot be read is the caller's to judge
    elif fault not in ("many_headers", "short_length"):  # whose last frame comes in good order
        assert b"error" in reply.body.split(b"\n\n")[-2]
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert row["status"] == "settled" and 0 < row["cost_nanos"] <= row["quote"]
    assert memory.grown < 48 * MEGABYTE


@STREAMED
@pytest.mark.parametrize("fault", ["endless_line", "endless_body"])
def test_an_answer_without_end_is_cut_and_settled(mallory: Mallory, stream: bool, fault: str) -> None:
    memory = Memory(mallory.world)
    body = asks(CHAT, directed("Go", fault=fault, words=50), stream=stream)
    if stream and fault == "endless_body":
        with opened(mallory.world, CHAT, key=mallory.customer.key, body=body) as answer:
            answer.read(4 * MEGABYTE)  # all of it valid; only the caller can have had enough
    else:
        reply = mallory.ask(CHAT, body)
        assert reply.status == (200 if stream else 502)
        assert b'"error"' in reply.body
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert row["status"] == "settled" and 0 < row["cost_nanos"] <= row["quote"]
    assert memory.grown < 200 * MEGABYTE


@pytest.mark.parametrize(("path", "stream"), [*WAYS, (EMBEDDINGS, False)])
@pytest.mark.parametrize("status", [201, 202, 299])
def test_a_success_of_any_kind_is_billed(mallory: Mallory, path: str, stream: bool, status: int) -> None:
    question = directed("Go", status=status, words=20)
    reply = mallory.ask(path, asks(path, question, **({"stream": True} if stream else {})))
    assert reply.status == (200 if stream else status)
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert (row["status"], row["reason"], row["estimated"]) == ("settled", "completed", 0)
    assert row["cost_nanos"] > 0


# --- callers who do not listen ----------------------------------------------------------------------------------


def test_whoever_reads_nothing_stops_the_provider_and_not_the_daemon(mallory: Mallory) -> None:
    memory = Memory(mallory.world)
    body = asks(CHAT, directed("Go", fault="endless_body"), stream=True)
    with opened(mallory.world, CHAT, key=mallory.customer.key, body=body) as answer:
        answer.readline()
        until(lambda: mallory.world.rows(mallory.customer)[0]["progress"], "the first note of what it would cost")
        assert mallory.ask("/health", method="GET").status == 200
        ended = [event for event in mallory.world.upstream.events(mallory.start) if event["event"] == "end"]
        assert ended == []  # it waits, too
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert row["status"] == "settled" and 0 < row["cost_nanos"] <= row["quote"]
    assert memory.grown < 48 * MEGABYTE


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("frames", [1, 3, 6])
def test_whoever_leaves_before_the_usage_comes_pays_all_the_same(mallory: Mallory, path: str, frames: int) -> None:
    body = asks(path, directed("Go", words=30, delay_ms=5), stream=True)
    with opened(mallory.world, path, key=mallory.customer.key, body=body) as answer:
        for _ in range(frames):
            while answer.readline().strip():
                pass
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert row["status"] == "settled" and 0 < row["cost_nanos"] <= row["quote"]
    assert len(mallory.dispatched()) == 1


# --- what the provider says of the operator ---------------------------------------------------------------------


def test_an_error_about_the_caller_stays_the_callers_whatever_words_are_in_it(mallory: Mallory) -> None:
    for name in ("insufficient_quota", "billing_hard_limit", "budget_exceeded", "Your credit balance is too low"):
        reply = mallory.ask(CHAT, asks(CHAT, "Go", **{name: 1}))
        assert (reply.status, name in reply.message) == (400, True)
    assert "provider_refuses_operator" not in mallory.world.daemon.program.text()


@pytest.mark.parametrize("fault", ["error_400", "error_529"])
def test_an_error_has_our_request_id_alone(mallory: Mallory, fault: str) -> None:
    reply = mallory.ask(MESSAGES, asks(MESSAGES, directed("Go", fault=fault)))
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]


def test_counting_is_no_estimate(mallory: Mallory) -> None:
    assert mallory.ask(COUNT, asks(COUNT, "Go")).status == 200
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert (row["status"], row["reason"], row["estimated"], row["cost_nanos"]) == ("settled", "completed", 0, 0)


OPERATORS = ["error_401", "error_402", "error_403", "error_quota"]
CALLERS = {"error_400": 400, "error_404": 404, "error_413": 413, "error_422": 422, "error_429": 429, "error_529": 529}
OTHERS = ["error_408", "error_500", "error_502", "error_503"]
TOLD_HEADERS = {"date", "content-length", "content-type", "x-request-id", "request-id", "retry-after", "connection"}
TOLD_HEADERS |= {"x-should-retry", "openai-processing-ms", "transfer-encoding", "cache-control", "x-accel-buffering"}


def assert_headers_are_ours(headers: dict[str, str]) -> None:
    own = {name for name in headers if name.startswith(("x-goosestack-", "x-ratelimit-"))}
    assert set(headers) - own <= TOLD_HEADERS, headers
    assert headers.get("x-ratelimit-limit-requests", "1000000") == "1000000"  # ours, not the operator's


@EVERY_WAY
def test_no_error_of_the_provider_tells_whose_account_it_is(mallory: Mallory, path: str, stream: bool) -> None:
    faults = [*OPERATORS, *CALLERS, *OTHERS, *(["error_low_credit"] if path in (MESSAGES, COUNT) else [])]
    for fault in faults:
        reply = mallory.ask(path, asks(path, directed("Go", fault=fault), **({"stream": True} if stream else {})))
        assert_headers_are_ours(reply.headers)
        assert "organization" not in reply.message or "[redacted]" in reply.message
        if fault in CALLERS:
            assert (reply.status, "[redacted]" in reply.message) == (CALLERS[fault], True)
            assert reply.message.count("(organization [redacted], project [redacted], API key [redacted])") == 1
        else:
            expected = 502 if fault in OTHERS else 503
            assert_error(reply, dialect(path, {}), expected)
    rows = mallory.world.ended_rows(mallory.customer, len(faults))
    assert {(row["status"], row["charged"]) for row in rows} == {("released", 0)}
    alerts = mallory.world.daemon.program.text().count('"kind":"provider_refuses_operator"')
    assert alerts >= len(OPERATORS)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_neither_does_an_error_in_the_middle_of_a_stream(mallory: Mallory, path: str) -> None:
    reply = mallory.ask(path, asks(path, directed("Go", fault="error_frame", words=10), stream=True))
    assert reply.status == 200
    assert_headers_are_ours(reply.headers)
    assert b"[redacted]" in reply.body
    (row,) = mallory.world.ended_rows(mallory.customer, 1)
    assert (row["reason"], row["status"]) == ("upstream_error", "settled")


@EVERY_WAY
def test_odd_headers_of_the_provider_cost_nobody_the_answer(mallory: Mallory, path: str, stream: bool) -> None:
    odd = {"openai-processing-ms": "🦆é", "retry-after": "\u0080", "x-should-retry": "ÿ"}
    question = "Go" if path == COUNT else directed("Go", headers={**odd, "content-language": "é" * 1000})
    reply = mallory.ask(path, asks(path, question, **({"stream": True} if stream else {})))
    assert reply.status == 200
    assert str(reply.headers).isascii()


def test_an_error_full_of_what_could_begin_a_secret_is_relayed_all_the_same(mallory: Mallory) -> None:
    for piece in ("eyJ", "eyJaaaaaaaa.", "sk-", "gsk_", "whsec_", "org-", "sk_live_", "eyJ" + "a" * 600):
        text = piece * (600_000 // len(piece))  # it is quoted in the error, which is searched for secrets
        reply = mallory.ask(EMBEDDINGS, asks(EMBEDDINGS, encoding_format=text))
        assert (reply.status, "Invalid value" in reply.message) == (400, True)


@EVERY_WAY
def test_neither_does_a_good_answer(mallory: Mallory, path: str, stream: bool) -> None:
    headers = {
        "x-evil": "1",
        "server": "evil",
        "via": "evil",
        "alt-svc": "h3",
        "access-control-allow-origin": "https://e",
    }
    headers |= {"x-goosestack-balance-cents": "999999", "x-request-id": "req_evil", "request-id": "req_evil"}
    question = "Go" if path == COUNT else directed("Go", headers=headers)
    reply = mallory.ask(path, asks(path, question, **({"stream": True} if stream else {})))
    assert reply.status == 200
    assert_headers_are_ours(reply.headers)
    assert "evil" not in str(reply.headers) and reply.headers.get("x-goosestack-balance-cents") != "999999"
