"""READ SECOND: the life of one request.

    client -> identify -> admit -> parse -> quote -> authorize -> forward -> settle -> last byte

`relay` is that line. Up to the quote everything happens in the request's own handler; from the hold on a `Relay` task
owns the money: it outlives the client, and ends every hold that it made, whatever happens to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from goosestack import bidding, costing, errors, ledger, pricing
from goosestack.accounts import Principal, born_at, pro_until
from goosestack.auth import Identifier, identify, provider_key
from goosestack.bidding import THREAD_ABOVE_BYTES, Bid, Policy
from goosestack.http import Answer, Broken, Client, Lost, NotSent
from goosestack.ledger import Authorized, Charge, NewHold, Settled
from goosestack.limits import RateLimit
from goosestack.logs import Log, redact_bytes
from goosestack.metrics import Metrics
from goosestack.store import Store, Tx
from goosestack.stream import Deadline, Pipe, surely
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Upstreams
from goosestack.wire import Call, Wire, body as fields

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MOST_ANSWER_BYTES = 64 * 1024 * 1024
MOST_ERROR_BYTES = 1024 * 1024
KEEP_ALIVE_S = 15.0
STALLED_S = 30.0

RELAYED = frozenset((400, 404, 413, 422, 429, 529))
"""What a provider's refusal is passed on as it is: agents recover by its text."""

_PASSED_HEADERS = ("content-type", "retry-after", "retry-after-ms", "x-should-retry", "openai-processing-ms")
_OPERATORS_FAULT = (
    b"insufficient_quota",
    b"credit balance is too low",
    b"billing_hard_limit",
    b"budget_exceeded",
    b"spend_limit_reached",
)
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a request in size and time."""

    max_in_flight: int = 0
    """Requests of one user at once; 0 for no limit."""
    max_body_bytes: int = 32 * 1024 * 1024
    body_budget_bytes: int = 128 * 1024 * 1024
    body_timeout_s: float = 60
    deadline_s: float = 900
    grace_s: float = 5


@dataclass(frozen=True, slots=True)
class Head:
    """How the answer to the client begins; `body` is None where a pipe of frames follows."""

    status: int
    headers: dict[str, str]
    body: bytes | None


class Gateway:
    """What `relay` works with, handed over by `app`, and the relays that live."""

    def __init__(
        self,
        *,
        store: Store,
        process_id: int,
        identifiers: Sequence[Identifier],
        upstreams: Upstreams,
        client: Client,
        rate_limit: RateLimit,
        strangers: RateLimit,
        tokenizer: Tokenizer,
        metrics: Metrics,
        log: Log,
        policy: Policy,
        limits: Limits,
        now: Callable[[], str],
    ) -> None:
        self.store, self.process_id, self.identifiers, self.upstreams = store, process_id, identifiers, upstreams
        self.client, self.rate_limit, self.strangers, self.tokenizer = client, rate_limit, strangers, tokenizer
        self.metrics, self.log, self.policy, self.limits, self.now = metrics, log, policy, limits, now
        self._revoked: set[str] = set()
        """Keys that ended while this process ran."""
        self.live: dict[str, Relay] = {}
        self.body_bytes = 0
        """Request bodies in memory."""
        self.stopping = False

    async def identify(self, scope: Scope) -> Principal:
        """Who calls. Whoever proves nothing is counted by address."""
        try:
            return await identify(self.identifiers, scope["headers"])
        except errors.Problem:
            await self.strangers.hit(scope["state"]["address"])
            raise

    async def admit(self, caller: Principal) -> dict[str, str]:
        """Whether the caller may ask now; the headers that say how much of the rate limit is left."""
        if self.stopping:
            raise errors.ShuttingDown()
        return await self.rate_limit.hit(caller.key_id)

    def make_room(self, caller: Principal, headers: dict[str, str]) -> None:
        """Raise where no relay may begin now: asked before the body is read, and again when the relay is made, since
        other requests have come in, the key may have been revoked, and a stop may have begun meanwhile."""
        if self.stopping:
            raise errors.ShuttingDown()
        if caller.key_id in self._revoked:
            raise errors.NotAuthenticated()
        most = self.limits.max_in_flight
        if most and sum(relay.caller.user_id == caller.user_id for relay in self.live.values()) >= most:
            raise errors.TooManyInFlight(limit=most, headers={**headers, "retry-after": "1"})
        if self.store.full:
            raise errors.StoreUnavailable(headers={**headers, "retry-after": "10"})

    def alert(self, kind: str, **facts: object) -> None:
        """Tell the operator of something to look at."""
        self.metrics.alerts.add((kind,))
        self.log.warning("alert", self.now(), kind=kind, **facts)

    def tick(self) -> None:
        """Every second: keep quiet streams alive, drop clients who stopped reading."""
        now = asyncio.get_running_loop().time()
        for relay in tuple(self.live.values()):
            relay.tick(now)

    async def journal(self) -> None:
        """Every 2 s: note for each live relay what it would cost if the process died now."""
        due = [(relay.id, charge) for relay in self.live.values() if (charge := relay.progress()) is not None]
        if due:
            await self.store.write(_journal_all, due)

    def end_of_key(self, key_id: str) -> None:
        """A key was revoked: its next request fails, and delivery of its live answers ends at once; each of them
        settles by the rule for a client who has gone. Whoever revokes calls this, once that is committed."""
        self._revoked.add(key_id)
        for identifier in self.identifiers:
            identifier.forget(key_id)
        for relay in tuple(self.live.values()):
            if relay.caller.key_id == key_id:
                relay.end("its key was revoked")

    async def drain(self, patience_s: float) -> None:
        """Stop admitting; let what lives finish, then cut it off, until every hold has ended."""
        self.stopping = True
        late = {relay.task for relay in self.live.values()}
        if late:
            _, late = await asyncio.wait(late, timeout=patience_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=10)


def _journal_all(tx: Tx, due: Sequence[tuple[str, Charge]]) -> None:
    for hold_id, charge in due:
        ledger.journal(tx, hold_id, charge)


# --- up to the quote ------------------------------------------------------------------------------------------


async def relay(gateway: Gateway, wire: Wire, scope: Scope, receive: Receive) -> Relay:
    """Take one request from its first byte to a task that holds, forwards and settles it. Raises errors.Problem."""
    caller = await gateway.identify(scope)
    headers = await gateway.admit(caller)
    gateway.make_room(caller, headers)
    own_key = provider_key(scope["headers"])
    if own_key is not None:
        require_pro(caller, gateway)
    raw = await read_body(gateway, scope, receive)
    try:
        call = await _parse(wire, raw, own_key=own_key is not None)
        made = await bidding.bid(
            gateway.upstreams,
            gateway.policy,
            wire,
            call,
            _vendor_headers(scope) if wire.dialect == "anthropic" else {},
            account_id=caller.account_id,
            own_key=own_key,
            today=gateway.now()[:10],
        )
        gateway.make_room(caller, headers)
    except BaseException:
        gateway.body_bytes -= len(raw)
        raise
    return Relay(gateway, wire, caller, made, scope["state"]["request_id"], headers, len(raw))


def require_pro(caller: Principal, gateway: Gateway) -> None:
    """Only Pro brings a key of its own; a lapsed plan is never quietly charged to credits."""
    until = gateway.store.peek(pro_until, caller.user_id)
    if until is None or until <= gateway.now():
        raise errors.NotPro(where=bidding.where_to_pay(gateway.policy.public_url))


async def _parse(wire: Wire, raw: bytes, *, own_key: bool) -> Call:
    if len(raw) <= THREAD_ABOVE_BYTES:
        return wire.parse(fields.parse(raw), own_key=own_key)
    return await asyncio.to_thread(lambda: wire.parse(fields.parse(raw), own_key=own_key))


def _vendor_headers(scope: Scope) -> dict[str, str]:
    """The caller's `anthropic-*` headers; a repeated one is one list."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name.startswith(b"anthropic-"):
            text, known = value.decode("latin-1"), found.get(name.decode())
            found[name.decode()] = text if known is None else f"{known},{text}"
    return found


async def read_body(gateway: Gateway, scope: Scope, receive: Receive, most: int | None = None) -> bytes:
    """The request's body, which counts against the budget until its relay lets it go. Never reads more than may be:
    `most` bytes, or what a model's request may have."""
    limits = gateway.limits
    most = limits.max_body_bytes if most is None else most
    length = _check_headers(scope, most)
    if gateway.body_bytes + length > limits.body_budget_bytes:
        raise errors.Overloaded(headers={"retry-after": "2"})
    pieces: list[bytes] = []
    size, more = 0, True
    deadline = Deadline(limits.body_timeout_s)
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise errors.BodyNotRead()
            piece = message.get("body", b"")
            size += len(piece)
            gateway.body_bytes += len(piece)
            if size > most:
                raise errors.BodyTooLarge(limit=most, headers={"connection": "close"})
            if gateway.body_bytes > limits.body_budget_bytes:
                raise errors.Overloaded(headers={"retry-after": "2", "connection": "close"})
            pieces.append(piece)
            more = message.get("more_body", False)
    except BaseException as error:
        gateway.body_bytes -= size
        if isinstance(error, asyncio.CancelledError) and deadline.struck:
            raise errors.BodyNotRead(headers={"connection": "close"}) from None
        raise
    finally:
        deadline.stop()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _check_headers(scope: Scope, most: int) -> int:
    """The declared length of the body, 0 where none is. Raises UnsupportedMediaType or BodyTooLarge."""
    kind, length = b"", 0
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise errors.UnsupportedMediaType()
        elif name == b"content-length":
            length = int(value)
    if kind != b"application/json":
        raise errors.UnsupportedMediaType()
    if length > most:
        raise errors.BodyTooLarge(limit=most, headers={"connection": "close"})
    return length


# --- from the hold on -----------------------------------------------------------------------------------------


class Relay:
    """One forwarded request: the task that authorizes, forwards and settles it.

    `head` tells how the answer begins, `pipe` carries a stream. The client may `leave`, the user or the operator may
    `end` the delivery; neither ends the relay before the money is settled.
    """

    def __init__(
        self,
        gateway: Gateway,
        wire: Wire,
        caller: Principal,
        bid: Bid,
        request_id: str,
        headers: dict[str, str],
        body_bytes: int,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.gateway, self.wire, self.caller, self.bid, self.id = gateway, wire, caller, bid, request_id
        self.headers = headers
        """What every answer to this request carries."""
        self.head: asyncio.Future[Head] = loop.create_future()
        self.pipe = Pipe(loop.time())
        self.held: int | None = None
        """Nanodollars; None before the hold stands."""
        self.receipt: Settled | str | None = None
        """How the hold ended; None while it stands."""
        self.gone = False
        self._day = gateway.now()[:10]
        self._reader = wire.reader(bid.call, keep_text=gateway.tokenizer.installed and bid.account_id is not None)
        self._reason = ""
        self._sent = False
        self._status: int | None = None
        self._limit: Deadline | None = None
        self._hurried = False
        self._body_bytes = body_bytes
        self._started = loop.time()
        self._answered: float | None = None
        self._journalled = -1
        gateway.live[request_id] = self
        self.task = loop.create_task(self.run())

    async def run(self) -> None:
        """From the hold to its end. Whatever is raised or cancelled on the way, an open hold is settled or released."""
        try:
            await self._authorize()
            self._limit = Deadline(self.gateway.limits.deadline_s)
            if self.gone:
                self._hurry()
            answer = await self._dispatch()
            try:
                await self._pass_on(answer)
            finally:
                answer.close()
        except BaseException as error:
            await self._end_badly(error)
        finally:
            if self._limit is not None:
                self._limit.stop()
            self._finish()

    # --- authorize ---

    async def _authorize(self) -> None:
        bid, gateway = self.bid, self.gateway
        available = await self._hold(bid.at_most)
        if self.held is None and available > 0:
            await bidding.tighten(bid, gateway.policy, gateway.tokenizer, gateway.client, self._day)
            available = await self._hold(bid.at_least)
        if self.held is None:
            raise bidding.insufficient(bid, gateway.policy, self._day, available)
        self._set_cap(self.held)

    async def _hold(self, at_least: int) -> int:
        """Make the hold, at least so much of it; what is available after it, or without it where it does not fit."""
        caller, bid, gateway, available = self.caller, self.bid, self.gateway, 0
        hold = NewHold(
            self.id,
            caller.user_id,
            gateway.process_id,
            self.wire.name,
            bid.offer.provider.name,
            bid.model,
            caller.key_id,
            bid.account_id,
        )

        def note(answer: Authorized) -> None:
            nonlocal available
            self.held, available = answer.held, answer.available

        await surely(gateway.store.write(ledger.authorize, hold, at_least, bid.at_most, born_at(self.id)), note)
        return available

    def _set_cap(self, held: int) -> None:
        """Derive the output cap from what is held, and put it into the body where it is not the caller's own."""
        bid, call, model = self.bid, self.bid.call, self.bid.offer.model
        if model is None or bid.account_id is None or call.cap_field is None:
            return
        if held < bid.at_most:
            bid.cap = bidding.affordable_cap(bid, self.gateway.policy, self._day, held)
        if bid.cap != call.cap and not (call.cap is None and bid.cap >= model.max_output):
            self.wire.set_cap(call, bid.cap)
            bid.payload = fields.encode(call.body)
            self.headers["x-goosestack-output-cap"] = str(bid.cap)

    # --- forward ---

    async def _dispatch(self) -> Answer:
        """Send the request; again only where no byte can have been accepted."""
        bid, client = self.bid, self.gateway.client
        self._sent = True
        try:
            answer = await client.post(bid.offer.url, bid.headers, bid.payload)
        except NotSent:
            answer = await client.post(bid.offer.url, bid.headers, bid.payload)
        self._answered = self._loop.time()
        self._status = answer.status
        if self._body_bytes > THREAD_ABOVE_BYTES:
            self._forget_body()
        return answer

    async def _pass_on(self, answer: Answer) -> None:
        if answer.status != 200:
            await self._refuse(answer)
        elif answer.headers.get("content-encoding", "identity") != "identity":
            raise Broken("an encoded answer")
        elif self.bid.call.stream and answer.headers.get("content-type", "").startswith("text/event-stream"):
            await self._stream(answer)
        else:
            await self._whole(answer)

    async def _whole(self, answer: Answer) -> None:
        body = await answer.read(MOST_ANSWER_BYTES)
        reading = self._reader.reading
        if not self._reader.whole(body):
            raise Broken("an answer that is none")
        if reading.cost is None and (cost := answer.headers.get("x-litellm-response-cost")) is not None:
            reading.cost = _decimal(cost)
        await self._settle(await self._charge(), "completed")
        self._begin(Head(200, {**self._passed(answer), **self._cost_headers()}, body))

    async def _stream(self, answer: Answer) -> None:
        self._begin(Head(200, {**self.headers, **_STREAM_HEADERS}, None))
        reader, pipe = self._reader, self.pipe
        while chunk := await answer.chunk():
            try:
                passed, last = reader.feed(chunk)
            except ValueError as error:
                raise Broken(str(error)) from error
            if passed:
                await pipe.put(passed, self._loop.time())
            if last is not None:
                failed = reader.reading.error
                await self._settle(await self._charge(), "upstream_error" if failed else "completed")
                pipe.put_now(self._comment() + (self._failure(last) if failed else last), self._loop.time())
                return
        raise Broken("it ended early")

    async def _refuse(self, answer: Answer) -> None:
        """The provider refused: nothing is charged, and the caller learns what concerns the caller."""
        try:
            body = await answer.read(MOST_ERROR_BYTES)
        except Broken:
            body = b""
        await self._release(f"refused_{answer.status}")
        status, provider = answer.status, self.bid.offer.provider.name
        if self.bid.own_key and status >= 400:
            self._begin(Head(status, self._passed(answer), self._clean(body)))
        elif status in (401, 402, 403) or any(mark in body for mark in _OPERATORS_FAULT):
            self.gateway.alert("provider_refuses_operator", provider=provider, status=status, request_id=self.id)
            raise errors.OperatorProblem()
        elif status in RELAYED:
            self._begin(Head(status, self._passed(answer), self._clean(body)))
        else:
            raise errors.UpstreamUnavailable(detail=f"status {status}")

    def _failure(self, frame: bytes) -> bytes:
        """The provider's own error frame, as far as it concerns the caller."""
        if not self.bid.own_key and any(mark in frame for mark in _OPERATORS_FAULT):
            provider = self.bid.offer.provider.name
            self.gateway.alert("provider_refuses_operator", provider=provider, request_id=self.id)
            return self.wire.error_frame(errors.OperatorProblem(), self.id)
        return self._clean(frame)

    def _begin(self, head: Head) -> None:
        if not self.head.done():
            self.head.set_result(head)

    def _passed(self, answer: Answer) -> dict[str, str]:
        passed = {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
        return {**self.headers, **passed}

    def _clean(self, body: bytes) -> bytes:
        """What the provider says of an error, without the key that it was sent, and without the operator's ids."""
        sent = self.bid.headers
        return redact_bytes(body, [sent.get("x-api-key") or sent["authorization"].removeprefix("Bearer ")])

    # --- settle ---

    async def _charge(self) -> Charge:
        """What the answer cost: by what was reported, or by an estimate where that cannot be believed."""
        bid = self.bid
        if not (self._reader.reading.usage or {}).get("output"):
            self._reader.catch_up()
        usage, wrong = costing.reported(bid, self._reader.reading)
        if wrong is not None and bid.account_id is not None:
            self.gateway.alert("usage", provider=bid.offer.provider.name, what=wrong, request_id=self.id)
        return await self._estimate() if usage is None else self._priced(usage)

    def _priced(self, usage: pricing.Usage) -> Charge:
        gateway = self.gateway
        book, terms = gateway.upstreams.book, gateway.policy.terms
        return costing.charge(self.bid, self._reader.reading, usage, book, terms, self._day)

    async def _estimate(self, output: int | None = None) -> Charge:
        """The best guess: what was reported, else what the tokenizer counts, else a third of the bytes; `output`
        tokens where those are known."""
        bid, reading, tokenizer = self.bid, self._reader.reading, self.gateway.tokenizer
        self._reader.catch_up()
        usage = costing.seen(bid, reading)
        known = costing.reported(bid, reading)[0]
        try:
            if known is None and tokenizer.installed and bid.account_id is not None:
                if reading.text and output is None:
                    counted = await tokenizer.count("".join(reading.text).encode("utf-8", "replace"))
                    usage = usage if counted is None else pricing.with_output(usage, counted)
                if bid.payload and not bid.call.media.data_bytes and not (reading.usage or {}).get("input"):
                    counted = await tokenizer.count(bid.payload)
                    usage = usage if counted is None else pricing.with_input(usage, counted)
        except BaseException as error:  # nothing that happens while guessing may stop the settlement
            if not isinstance(error, asyncio.CancelledError):
                self._log_fault(error)
        if output is not None:
            usage = pricing.with_output(usage, output)
        return costing.estimated(self._priced(usage), self.held or 0)

    def progress(self) -> Charge | None:
        """What to journal: None before the provider has answered, and where nothing has changed."""
        self._reader.catch_up()
        seen = self._reader.reading.output_bytes
        if self.receipt is not None or self._status != 200 or seen == self._journalled:
            return None
        self._journalled = seen
        return costing.estimated(self._priced(costing.seen(self.bid, self._reader.reading)), self.held or 0)

    async def _settle(self, charge: Charge, reason: str) -> None:
        self._reason = reason
        await self._end_hold(ledger.settle, self.id, charge, reason)
        self._count(charge)

    async def _release(self, reason: str) -> None:
        self._reason = reason
        await self._end_hold(ledger.release, self.id, reason)

    async def _end_hold(self, verb: Callable[..., Settled | str], *facts: object) -> None:
        """Write the end of the hold down, again and again until it is written."""

        def note(receipt: Settled | str) -> None:
            self.receipt = receipt

        delay, interrupted = 0.05, None
        while self.receipt is None:
            try:
                await surely(self.gateway.store.write(verb, *facts, self.gateway.now()), note)
            except errors.StoreUnavailable:
                self.gateway.alert("settlement_waits", request_id=self.id)
                delay = min(delay * 2, 2.0)
                try:
                    await asyncio.sleep(delay)
                except BaseException as error:
                    interrupted = error
        if interrupted is not None:
            raise interrupted

    async def _end_badly(self, error: BaseException) -> None:
        """Something came between: settle on what was seen, or release, and tell the client that it is no clean end."""
        reason, problem, charged = self._judge(error)
        if self.held is not None and self.receipt is None:
            try:
                if charged:
                    whole = self.bid.demand.output if reason == "deadline" else None
                    await self._settle(await self._estimate(whole), reason)
                else:
                    await self._release(reason)
            except asyncio.CancelledError:
                pass  # the hold has ended; a second cancellation changes nothing
        if problem is None:
            return
        problem.headers = {**self.headers, **problem.headers}
        if not self.head.done():
            self.head.set_exception(problem)
        else:
            self.pipe.put_now(self.wire.error_frame(problem, self.id), self._loop.time())

    def _judge(self, error: BaseException) -> tuple[str, errors.Problem | None, bool]:
        """What a failure means: the reason in the log, what the client is told, and whether anything is charged."""
        answered = self._status == 200
        refused = self._status is not None and not answered
        match error:
            case errors.Problem():
                return self._reason or type(error).__name__, error, False
            case NotSent():
                return "not_sent", errors.UpstreamUnavailable(detail="no connection"), False
            case Lost(reused=True):
                return "idle_connection_lost", errors.UpstreamUnavailable(detail="the connection was closed"), False
            case Lost():
                return "outcome_unknown", errors.UpstreamCut(detail="no answer came"), True
            case Broken():
                return "upstream_cut", errors.UpstreamCut(detail=str(error)), not refused
            case asyncio.CancelledError() if self._leaving():
                return "client_gone", None, not refused
            case asyncio.CancelledError() if self._limit is not None and self._limit.struck:
                problem = errors.UpstreamTimeout(deadline_s=self.gateway.limits.deadline_s)
                return "deadline", problem, not refused
            case asyncio.CancelledError():
                return "shutdown", errors.UpstreamCut(detail="the gateway is restarting"), self._sent and not refused
        self._log_fault(error)
        return "fault", errors.Internal(), self._sent and not refused

    # --- the client's side ---

    def leave(self) -> None:
        """The client has gone: deliver no more. Where all output is in sight, the upstream is cut after a grace; else
        it is read to the end, or start, disconnect, repeat would be free."""
        if not self.gone:
            self.gone = True
            self.pipe.discard()
            self._hurry()

    def end(self, why: str) -> None:
        """Somebody ended this request: its delivery stops at once, and it settles as if the client had gone."""
        problem = errors.Ended(reason=why)
        if not self.head.done():
            self.head.set_exception(problem)
        self.pipe.end_with(self.wire.error_frame(problem, self.id), self._loop.time())
        self.leave()

    def _hurry(self) -> None:
        if self._cuttable() and self._limit is not None and self.receipt is None:
            self._limit.bring_forward(self._loop.time() + self.gateway.limits.grace_s)
            self._hurried = True

    def _cuttable(self) -> bool:
        """Whether what was delivered is all that was written, and hanging up ends what is billed."""
        bid, model = self.bid, self.bid.offer.model
        if not bid.call.stream or bid.own_key:
            return bid.own_key
        if bid.call.web_searches or bid.offer.provider.bills_cut_calls:
            return False
        return model is None or not model.reasoning or bid.call.output_in_sight

    def _leaving(self) -> bool:
        """Whether it was the client's leaving, and not the deadline, that ran out of time."""
        return self._hurried and self._limit is not None and self._limit.struck

    def tick(self, now: float) -> None:
        """Once a second: a keep-alive frame where the stream is quiet, an end to waiting where the client is."""
        if self.gone or not self.head.done() or self._status != 200 or not self.bid.call.stream:
            return
        if self.pipe.waits_since(STALLED_S, now):
            self.leave()
        elif self.pipe.idle_since(KEEP_ALIVE_S, now):
            self.pipe.put_now(self.wire.keep_alive, now)

    def _cost_headers(self) -> dict[str, str]:
        receipt = self.receipt
        if not isinstance(receipt, Settled):
            return {}
        told = {
            "x-goosestack-cost-usd": pricing.dollars(receipt.nanos),
            "x-goosestack-cost-cents": str(receipt.billed),
        }
        if self.bid.account_id is not None:  # else no account was asked for its balance
            told["x-goosestack-balance-cents"] = str(receipt.balance)
        return told

    def _comment(self) -> bytes:
        told = " ".join(f"{name.removeprefix('x-goosestack-')}={value}" for name, value in self._cost_headers().items())
        return f": goosestack {told}\n\n".encode()

    # --- the end ---

    def _forget_body(self) -> None:
        self.bid.payload = b""
        self.bid.call.body = {}
        self.gateway.body_bytes -= self._body_bytes
        self._body_bytes = 0

    def _finish(self) -> None:
        self._forget_body()
        self.gateway.live.pop(self.id, None)
        self.pipe.close()
        if not self.head.done():
            self.head.set_exception(errors.Internal())
        if not self.head.cancelled():
            self.head.exception()  # looked at, also where no client is left to look at it
        self._log()

    def _count(self, charge: Charge) -> None:
        metrics, provider, receipt = self.gateway.metrics, self.bid.offer.provider.name, self.receipt
        if charge.estimated:
            metrics.estimates.add((provider,))
        if isinstance(receipt, Settled):
            metrics.charged(provider, charge.counts[0], charge.counts[1], receipt.billed)
            if receipt.shortfall > 0:
                metrics.shortfalls.add((provider,), receipt.shortfall)
                self.gateway.alert("shortfall", request_id=self.id, nanos=receipt.shortfall)

    def _log(self) -> None:
        gateway, bid, receipt = self.gateway, self.bid, self.receipt
        now, provider = self._loop.time(), bid.offer.provider.name
        reason, took = self._reason or "refused", now - self._started
        first = None if self._answered is None else self._answered - self._started
        gateway.metrics.ended(self.wire.name, provider, reason, took, first)
        settled = receipt if isinstance(receipt, Settled) else None
        gateway.log.info(
            "request",
            gateway.now(),
            id=self.id,
            user=self.caller.user_id,
            key=self.caller.key_id,
            wire=self.wire.name,
            provider=provider,
            model=bid.model,
            stream=bid.call.stream,
            upstream_status=self._status,
            reason=reason,
            gone=self.gone or None,
            ms=round(1000 * took),
            first_ms=None if first is None else round(1000 * first),
            cost_usd=None if settled is None else pricing.dollars(settled.nanos),
            cost_cents=None if settled is None else settled.billed,
        )

    def _log_fault(self, error: BaseException) -> None:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = None if place is None else f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}"
        self.gateway.alert("fault", error=type(error).__name__, where=where, request_id=self.id)


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None
