"""Where settled usage is reported. Each sink speaks to one receiver in its own words, and knows nothing of when, how
often, or what became of it: that is `goosestack.meters`.

What is reported is an `Event`. Its contents are fixed and written down before it is sent for the first time, so that
no restart, and no change of a setting in between, makes another event of it. What may change until it has arrived is
what is looked up when it is sent: under which name the receiver knows the user, and, at Stripe, the meter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol

from yarl import URL

from goosestack.http import Broken, Lost, NotSent
from goosestack.logs import redact_bytes
from goosestack.pricing import dollars
from goosestack.store import Tx

Fact = str | int | bool | None

PATIENCE_S = 30.0
"""How long a receiver may take for one request."""

MOST_ANSWER_BYTES = 64 * 1024
MOST_REASON = 300
AHEAD_S = 120.0
"""How far clocks may be apart: a row that settled later than so much from now has its time from one that was wrong."""

REFUSING = frozenset((400, 409, 413, 422))
"""What a receiver answers where it is the contents that it does not take. Every other failure may pass."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A settled row of the usage log. A correction is a row of its own: it has the differences, which may be negative.

    `input_tokens` include what was read from and written to caches; `cost_nanos` is the price of the request, markup
    included, whoever bore it.
    """

    seq: int
    id: str
    user_id: str
    payer: str
    """`credits`, `allowance`, `overage`, `channel`; `nobody` where the caller brought a provider key, or it is free."""
    provider: str
    model: str
    wire: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_nanos: int
    cost_cents: int
    borne_nanos: int
    """What of its price the house bore."""
    estimated: int
    """1 where the charge is one."""
    created_at: str
    ended_at: str
    corrects: int | None
    """The `seq` of the row that this one corrects."""

    @property
    def tokens(self) -> int:
        """What counts: all input and all output."""
        return self.input_tokens + self.output_tokens

    def facts(self) -> dict[str, Fact]:
        """The row as receivers see it, by the names in `FIELDS`."""
        return {
            "id": self.id,
            "corrects": None if self.corrects is None else self.id.removesuffix(".c"),
            "user_id": self.user_id,
            "payer": self.payer,
            "provider": self.provider,
            "model": self.model,
            "wire": self.wire,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cost_usd": dollars(self.cost_nanos),
            "cost_nanos": self.cost_nanos,
            "cost_cents": self.cost_cents,
            "estimated": bool(self.estimated),
            "created_at": self.created_at,
            "settled_at": self.ended_at,
        }


FIELDS = (
    *"id corrects user_id payer provider model wire input_tokens output_tokens total_tokens".split(),
    *"cache_read_tokens cache_write_tokens reasoning_tokens cost_usd cost_nanos cost_cents estimated".split(),
    *"created_at settled_at".split(),
)
"""What a row tells, in order."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something to report: its id and its facts never change. The names of its user are those of this moment."""

    id: str
    user_id: str
    facts: Mapping[str, Fact]
    tried_at: str | None = None
    """When it was, or may have been, first sent without a clear answer; None where it cannot have been accepted yet."""
    customer_id: str | None = None
    """Stripe's name for the user."""
    subject: str | None = None
    """The name for the user of the sign-in service that is the sink's `issuer`."""


class Rejected(Exception):
    """The receiver does not take these contents, and will not by being asked again."""


class Unavailable(Exception):
    """The receiver took nothing for now, or did not say whether it did.

    `certain` says that it took nothing; `retry_after` is its header of that name.
    """

    def __init__(self, reason: str, *, certain: bool, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.certain, self.retry_after = certain, retry_after


class Sink(Protocol):
    """A receiver. Without methods of its own, a sink reports each row as it is."""

    name: ClassVar[str]
    per_request: ClassVar[int] = 1
    """How many events one request may carry."""
    remembers_s: ClassVar[int | None] = None
    """How long the receiver drops an id that it has seen; None for always."""
    replays: ClassVar[bool] = True
    """Whether what was reported may be reported again, under the same ids."""
    rows: int = 200
    """How many rows make a batch."""
    issuer: str = ""
    """The sign-in service whose name for a user is looked up."""

    def ripe(self, settled_at: str, now: str) -> bool:
        """Whether a row that settled then may be reported now; if not, those behind it wait with it."""
        return True

    def fix(self, tx: Tx, rows: Sequence[Usage], now: str) -> list[Event]:
        """The events that tell of these rows; written down in the same transaction."""
        return [Event(row.id, row.user_id, row.facts()) for row in rows]

    async def send(self, events: Sequence[Event]) -> None:
        """Report events, `per_request` at most; back once all are accepted. Raises Rejected or Unavailable."""
        ...


def skip(tx: Tx, sink: str, rows: int) -> None:
    """Count rows of users whom the receiver cannot know: they are never reported."""
    if rows:
        tx.execute("UPDATE meter_cursors SET skipped = skipped + ? WHERE sink = ?", (rows, sink))


# --- asking a receiver ----------------------------------------------------------------------------------------


class Reply(Protocol):
    """An answer whose head has arrived: of `goosestack.http`."""

    status: int
    headers: Mapping[str, str]

    async def read(self, most: int) -> bytes:
        """All of its body."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class Poster(Protocol):
    """What sends a request: `goosestack.http.Client`."""

    async def post(self, url: URL, headers: Mapping[str, str], body: bytes, /) -> Reply:
        """Send it; the answer's head. Raises NotSent or Lost."""
        ...


@dataclass(frozen=True, slots=True)
class Answered:
    """What a receiver said; `text` is without our own secrets."""

    status: int
    text: str
    kind: str
    retry_after: str | None

    @property
    def good(self) -> bool:
        """Whether it says that it has accepted everything."""
        return 200 <= self.status < 300

    def problem(self, refusing: frozenset[int] = REFUSING) -> Rejected | Unavailable:
        """What an answer that is not good means."""
        reason = f"status {self.status}: {self.text}"[:MOST_REASON]
        if self.status in refusing:
            return Rejected(reason)
        certain = 300 <= self.status < 500 and self.status != 408
        return Unavailable(reason, certain=certain, retry_after=self.retry_after)


async def ask(
    client: Poster, url: URL, headers: Mapping[str, str], body: bytes, secrets: Sequence[str] = ()
) -> Answered:
    """Send one request and read the answer. Raises Unavailable where there is none."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reply = await client.post(url, headers, body)
            try:
                text = await reply.read(MOST_ANSWER_BYTES)
            except Broken:
                text = b"(the answer broke off)"  # its head has told what became of the request
            finally:
                reply.close()
    except NotSent as error:
        raise Unavailable(f"no connection ({error})", certain=True) from error
    except Lost as error:
        raise Unavailable(f"no answer ({error})", certain=False) from error
    except TimeoutError as error:
        raise Unavailable(f"no answer within {PATIENCE_S:.0f} s", certain=False) from error
    shown = " ".join(redact_bytes(text, secrets).decode("utf-8", "replace").split())
    printable = "".join(mark if mark.isprintable() else "?" for mark in shown)
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Answered(reply.status, printable, kind, reply.headers.get("retry-after"))


async def tell(client: Poster, url: URL, headers: Mapping[str, str], body: bytes, secrets: Sequence[str] = ()) -> None:
    """Ask an API that accepts without a word and refuses in JSON. What answers otherwise is something else: it has
    taken nothing, however content it looks, and refused nothing. Only a size, anything on the way may mind."""
    answer = await ask(client, url, headers, body, secrets)
    if answer.good and answer.text:
        raise Unavailable(f"status {answer.status}, but not its answer: {answer.text}"[:MOST_REASON], certain=False)
    if answer.status in REFUSING - {413} and answer.kind == "text/html":
        raise Unavailable(f"status {answer.status}, but a web page", certain=True)
    if not answer.good:
        raise answer.problem()


def unix(at: str) -> float:
    """A time, as we write it, in seconds since 1970."""
    return datetime.fromisoformat(at).timestamp()
