"""From the hold to its end: the task that authorizes, forwards and settles one request.

`Relay.run` is its life. It outlives the client, and whatever is raised or cancelled on the way, the hold that it made
is settled or released.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from goosestack import bidding, costing, errors, ledger, pricing
from goosestack.accounts import Principal, born_at
from goosestack.bidding import THREAD_ABOVE_BYTES, Bid, Policy
from goosestack.http import Answer, Broken, Client, Exchange, Lost, NotSent, Turn
from goosestack.ledger import Authorized, Charge, NewHold, Settled
from goosestack.logs import Log, redact_bytes
from goosestack.metrics import Metrics
from goosestack.payers import comment
from goosestack.store import Store
from goosestack.stream import Deadline, Pipe, surely
from goosestack.tokenizer import Tokenizer
from goosestack.upstream import Upstreams
from goosestack.wire import Wire, body as fields, envelope
from goosestack.wire.sse import data_of

MOST_ANSWER_BYTES = 64 * 1024 * 1024
MOST_ERROR_BYTES = 1024 * 1024
KEEP_ALIVE_S = 15.0
STALLED_S = 30.0

RELAYED = frozenset((400, 404, 413, 422, 429, 529))
"""What a provider's refusal is passed on as it is: agents recover by its text."""

FREE = {"x-goosestack-cost-usd": "0", "x-goosestack-cost-cents": "0"}
"""What an answer tells that nobody's account pays for."""

_PASSED_HEADERS = ("content-type", "retry-after", "retry-after-ms", "x-should-retry", "openai-processing-ms")
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
    unsettled_s: float = 10
    """How long a stop waits for what cannot be written: a disk may be given room again."""


@dataclass(frozen=True, slots=True)
class Head:
    """How the answer to the client begins; `body` is None where a pipe of frames follows."""

    status: int
    headers: dict[str, str]
    body: bytes | None


@dataclass(kw_only=True)
class Desk:
    """What every relay works with, and all that live."""

    store: Store
    process_id: int
    upstreams: Upstreams
    client: Client
    tokenizer: Tokenizer
    metrics: Metrics
    log: Log
    policy: Policy
    limits: Limits
    now: Callable[[], str]
    live: dict[str, Relay] = field(default_factory=dict)
    giving_up: bool = False
    """Whether the process ends now, also with holds that could not be ended: the next start ends them."""
    body_bytes: int = 0
    """Request bodies in memory."""
    bodies: dict[str, int] = field(default_factory=dict)
    """The same by user: nobody takes all the room there is."""
    large_answers: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whose turn it is to be large; see `http.Turn`."""

    def take_body(self, owner: str, size: int) -> None:
        """Count a piece of a request's body. Raises Overloaded where it has no room."""
        limits, share = self.limits, self.bodies.get(owner, 0) + size
        most = max(limits.max_body_bytes, limits.body_budget_bytes // 4)
        if self.body_bytes + size > limits.body_budget_bytes or share > most:
            raise errors.Overloaded(headers={"retry-after": "2", "connection": "close"})
        self.body_bytes += size
        self.bodies[owner] = share

    def give_body(self, owner: str, size: int) -> None:
        """Let go of what was taken."""
        self.body_bytes -= size
        left = self.bodies.get(owner, 0) - size
        if left > 0:
            self.bodies[owner] = left
        else:
            self.bodies.pop(owner, None)

    def alert(self, kind: str, **facts: object) -> None:
        """Tell the operator of something to look at."""
        self.metrics.alerts.add((kind,))
        self.log.warning("alert", self.now(), kind=kind, **facts)


class Relay:
    """One forwarded request: the task that authorizes, forwards and settles it.

    `head` tells how the answer begins, `pipe` carries a stream. The client may `leave`, the user or the operator may
    `end` the delivery; neither ends the relay before the money is settled.
    """

    def __init__(
        self,
        desk: Desk,
        wire: Wire,
        caller: Principal,
        bid: Bid,
        request_id: str,
        headers: dict[str, str],
        body_bytes: int,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.desk, self.wire, self.caller, self.bid, self.id = desk, wire, caller, bid, request_id
        self.headers = headers
        """What every answer to this request carries."""
        self.head: asyncio.Future[Head] = loop.create_future()
        self.pipe = Pipe(loop.time())
        self.held: int | None = None
        """Grains of the payer's unit; None before the hold stands."""
        self.receipt: Settled | str | None = None
        """How the hold ended; None while it stands."""
        self.gone = False
        self._day = desk.now()[:10]
        self._reader = wire.reader(bid.call, keep_text=desk.tokenizer.installed and bid.payer is not None)
        self._reason = ""
        self._exchange = Exchange()
        self._status: int | None = None
        self._limit: Deadline | None = None
        self._hurried = False
        self._body_bytes = body_bytes
        self._started = loop.time()
        self._answered: float | None = None
        self._journalled: tuple[int, Mapping[str, int] | None] | None = None
        desk.live[request_id] = self
        self.task = loop.create_task(self.run())

    async def run(self) -> None:
        """From the hold to its end. Whatever is raised or cancelled on the way, an open hold is settled or released."""
        try:
            await self._authorize()
            if self.gone:
                raise errors.Ended(reason="its client had gone before it was sent")
            self._limit = Deadline(self.desk.limits.deadline_s)
            answer = await self._dispatch()
            try:
                await self._pass_on(answer)
            finally:
                answer.close()
        except BaseException as error:
            await self._end_badly(error)
        finally:
            self._stop_limit()
            self._finish()

    # --- authorize ---

    async def _authorize(self) -> None:
        """Make the hold: with the first payer who can."""
        while (refusal := await self._ask_payer()) is not None:
            if not bidding.next_payer(self.bid, self.desk.policy, self._day):
                raise refusal
        assert self.held is not None
        self._set_cap(self.held)

    async def _ask_payer(self) -> errors.Problem | None:
        """Hold what the bid needs with the payer whose turn it is; why not, where that cannot be."""
        bid, desk = self.bid, self.desk
        answer = await self._hold(bid.at_most)
        if answer.held is None and answer.available > 0 and not answer.debt:
            await bidding.tighten(bid, desk.policy, desk.tokenizer, desk.client, self._day, answer.available)
            answer = await self._hold(bid.at_least)
        return None if answer.held is not None else bidding.refusal(bid, self._day, answer.available, answer.debt)

    async def _hold(self, at_least: int) -> Authorized:
        """Make the hold, at least so much of it."""
        caller, bid, desk, payer = self.caller, self.bid, self.desk, self.bid.payer
        assert payer is not None or bid.own_key or bid.call.free
        answers: list[Authorized] = []
        hold = NewHold(
            self.id,
            caller.user_id,
            desk.process_id,
            self.wire.name,
            bid.offer.provider.name,
            bid.model,
            caller.key_id,
            None if payer is None else payer.account_id,
        )

        def note(answer: Authorized) -> None:
            self.held = answer.held
            answers.append(answer)

        verb = ledger.authorize if payer is None else payer.authorize
        self.headers.update({} if payer is None else payer.headers)
        await surely(desk.store.write(verb, hold, at_least, bid.at_most, born_at(self.id)), note)
        return answers[0]

    def _set_cap(self, held: int) -> None:
        """Derive the output cap from what is held, and put it into the body where it is not the caller's own."""
        bid, call, model = self.bid, self.bid.call, self.bid.offer.model
        if model is None or bid.payer is None or call.cap_field is None:
            return
        if held < bid.at_most:
            bid.cap = bidding.affordable_cap(bid, self._day, held)
        # The model's own maximum need not be sent: but only where it is the vendor's, and not what somebody wrote down.
        vendors = not bid.offer.provider.routes and model.id not in self.desk.upstreams.book.chosen
        if bid.cap != call.cap and not (vendors and call.cap is None and bid.cap >= model.max_output):
            self.wire.set_cap(call, bid.cap)
            bid.payload = fields.encode(call.body)
            self.headers["x-goosestack-output-cap"] = str(bid.cap)

    # --- forward ---

    async def _dispatch(self) -> Answer:
        """Send the request; again only where no byte can have been accepted."""
        bid, client = self.bid, self.desk.client
        try:
            answer = await client.post(bid.offer.url, bid.headers, bid.payload, self._exchange)
        except NotSent:
            answer = await client.post(bid.offer.url, bid.headers, bid.payload, self._exchange)
        self._answered = self._loop.time()
        self._status = answer.status
        if self._body_bytes > THREAD_ABOVE_BYTES:
            self._forget_body()
        return answer

    async def _pass_on(self, answer: Answer) -> None:
        if not accepted(answer.status):
            await self._refuse(answer)
        elif answer.headers.get("content-encoding", "identity") != "identity":
            raise Broken("an encoded answer")
        elif self.bid.call.stream and answer.headers.get("content-type", "").startswith("text/event-stream"):
            await self._stream(answer)
        else:
            await self._whole(answer)

    async def _whole(self, answer: Answer) -> None:
        body = await answer.read(MOST_ANSWER_BYTES, Turn(self.desk.large_answers))
        reading = self._reader.reading
        if not self._reader.whole(body):
            if envelope.is_error(body):
                return await self._pass_refusal(answer, 502, body)
            raise Broken("an answer that is none")
        if reading.cost is None and (cost := answer.headers.get("x-litellm-response-cost")) is not None:
            reading.cost = _decimal(cost)
        charge = await self._charge()
        self._stop_limit()
        try:
            await self._settle(charge, "completed")
        finally:  # what is paid for is delivered, also where a stop comes in between
            if self.receipt is not None:
                self._begin(Head(answer.status, {**self._passed(answer), **self._cost_headers()}, body))

    async def _stream(self, answer: Answer) -> None:
        self._begin(Head(200, {**self.headers, **_STREAM_HEADERS}, None))
        reader, pipe, turn = self._reader, self.pipe, Turn(self.desk.large_answers)
        try:
            while chunk := await answer.chunk():
                try:
                    passed, last = reader.feed(chunk)
                except ValueError as error:
                    raise Broken(str(error)) from error
                await turn.needed(reader.gathered)
                if passed:
                    await pipe.put(passed, self._loop.time())
                if last is not None:
                    await self._end_stream(last)
                    return
        finally:
            turn.over()
        raise Broken("it ended early")

    async def _end_stream(self, last: bytes) -> None:
        """The terminal frame has come: the receipt is committed before it is passed on."""
        failed = self._reader.reading.error
        charge = await self._charge()
        self._stop_limit()
        try:
            await self._settle(charge, "upstream_error" if failed else "completed")
        finally:  # what is paid for is delivered, also where a stop comes in between
            if self.receipt is not None:
                before, after = self._around()
                end = self._failure(last) if failed else last
                self.pipe.put_now(before + end + after, self._loop.time())

    async def _refuse(self, answer: Answer) -> None:
        """The provider refused: nothing is charged, and the caller learns what concerns the caller."""
        try:
            body = await answer.read(MOST_ERROR_BYTES)
        except Broken:
            body = b""
        await self._pass_refusal(answer, answer.status, body)

    async def _pass_refusal(self, answer: Answer, status: int, body: bytes) -> None:
        """See `_refuse`; a refusal under the status of a success has one of its own here."""
        await self._release(f"refused_{answer.status}")
        provider = self.bid.offer.provider.name
        if self.bid.own_key and status >= 400:
            self._begin(Head(status, self._passed(answer), self._clean(body)))
        elif status in (401, 402, 403) or envelope.concerns_operator(body):
            self.desk.alert("provider_refuses_operator", provider=provider, status=status, request_id=self.id)
            raise errors.OperatorProblem()
        elif status in RELAYED:
            self._begin(Head(status, self._passed(answer), self._clean(body)))
        else:
            raise errors.UpstreamUnavailable(detail=f"status {status}")

    def _failure(self, frame: bytes) -> bytes:
        """The provider's own error frame, as far as it concerns the caller."""
        if not self.bid.own_key and envelope.concerns_operator(data_of(frame)):
            provider = self.bid.offer.provider.name
            self.desk.alert("provider_refuses_operator", provider=provider, request_id=self.id)
            return self.wire.error_frame(errors.OperatorProblem(), self.id)
        return self._clean(frame)

    def _begin(self, head: Head) -> None:
        if not self.head.done():
            self.head.set_result(head)

    def _passed(self, answer: Answer) -> dict[str, str]:
        found = {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
        return {**self.headers, **{name: value for name, value in found.items() if value.isascii()}}

    def _clean(self, body: bytes) -> bytes:
        """What the provider says of an error: without the key that it was sent and the operator's ids, under our id."""
        sent = self.bid.headers
        body = redact_bytes(body, [sent.get("x-api-key") or sent["authorization"].removeprefix("Bearer ")])
        return envelope.with_id(body, self.id)

    # --- settle ---

    async def _charge(self) -> Charge:
        """What the answer cost: by what was reported, or by an estimate where that cannot be believed."""
        bid = self.bid
        if not (self._reader.reading.usage or {}).get("output"):
            self._reader.catch_up()
        usage, wrong = costing.reported(bid, self._reader.reading)
        if wrong is not None and bid.payer is not None:
            self.desk.alert("usage", provider=bid.offer.provider.name, what=wrong, request_id=self.id)
        if usage is None:
            return await self._estimate()
        charge = self._priced(usage)
        if charge.amount > bid.at_most and bid.payer is not None:
            provider, model = bid.offer.provider.name, bid.model
            self.desk.alert("above_quote", provider=provider, model=model, quote=bid.at_most, charge=charge.amount)
        return charge

    def _priced(self, usage: pricing.Usage) -> Charge:
        return costing.charge(self.bid, self._reader.reading, usage, self.desk.upstreams.book, self._day)

    async def _estimate(self, output: int | None = None) -> Charge:
        """The best guess: what was reported, else what the tokenizer counts, else a third of the bytes; `output`
        tokens where those are known."""
        bid, reading, tokenizer = self.bid, self._reader.reading, self.desk.tokenizer
        self._reader.catch_up()
        usage = costing.seen(bid, reading)
        known = costing.reported(bid, reading)[0]
        try:
            if known is None and tokenizer.installed and bid.payer is not None:
                if reading.text and output is None:
                    counted = await tokenizer.count("".join(reading.text).encode("utf-8", "replace"))
                    usage = usage if counted is None else pricing.with_output(usage, counted)
                if bid.payload and not bid.call.media.data_bytes and not (reading.usage or {}).get("input"):
                    counted = await tokenizer.count(bid.payload)
                    usage = usage if counted is None else pricing.with_input(usage, counted)
        except BaseException as error:  # nothing that happens while guessing may stop the settlement
            if not isinstance(error, asyncio.CancelledError):
                self.log_fault(error)
        if output is not None:
            usage = pricing.with_output(usage, output)
        return costing.estimated(self._priced(usage), self.held or 0)

    def progress(self) -> Charge | None:
        """What to journal: None before the provider has answered, and where nothing has changed."""
        self._reader.catch_up()
        seen = (self._reader.reading.output_bytes, self._reader.reading.usage)
        if self.receipt is not None or not accepted(self._status) or seen == self._journalled:
            return None
        self._journalled = seen
        return costing.estimated(self._priced(costing.seen(self.bid, self._reader.reading)), self.held or 0)

    async def _settle(self, charge: Charge, reason: str) -> None:
        self._reason = reason
        try:
            await self._end_hold(ledger.settle, self.id, charge, reason)
        finally:
            self._count(charge)

    async def _release(self, reason: str) -> None:
        self._reason = reason
        await self._end_hold(ledger.release, self.id, reason)

    async def _end_hold(self, verb: Callable[..., Settled | str], *facts: object) -> None:
        """Write the end of the hold down, again and again until it is written."""

        def note(receipt: Settled | str) -> None:
            self.receipt = receipt

        delay: float = 0
        interrupted: asyncio.CancelledError | None = None
        while self.receipt is None:
            try:
                await asyncio.sleep(delay) if delay else None
                await surely(self.desk.store.write(verb, *facts, self.desk.now()), note)
            except asyncio.CancelledError as error:
                interrupted, delay = error, 0
                continue
            except errors.StoreUnavailable:
                if self.desk.giving_up:
                    self.desk.alert("settlement_lost", request_id=self.id, facts=repr(facts)[:200])
                    raise
                self.desk.alert("settlement_waits", request_id=self.id)
            delay = min(max(delay * 2, 0.1), 2.0)
        if interrupted is not None:
            raise interrupted

    async def _end_badly(self, error: BaseException) -> None:
        """Something came between: settle on what was seen, or release, and tell the client that it is no clean end."""
        reason, problem, charged = self._judge(error)
        if self.held is not None and self.receipt is None and not self.desk.giving_up:
            try:
                if charged:
                    whole = self.bid.demand.output if reason == "deadline" else None
                    await self._settle(await self._estimate(whole), reason)
                else:
                    await self._release(reason)
            except asyncio.CancelledError:
                pass  # the hold has ended; a second cancellation changes nothing
            except Exception as fault:  # the last resort: a start would resolve the hold, and this says so before
                self.log_fault(fault)
        if problem is None or (self.receipt is not None and self._reason == "completed"):
            return
        problem.headers = {**self.headers, **self._cost_headers(), **problem.headers}
        if not self.head.done():
            self.head.set_exception(problem)
        else:
            before, after = self._around()
            self.pipe.put_now(before + self.wire.error_frame(problem, self.id) + after, self._loop.time())

    def _judge(self, error: BaseException) -> tuple[str, errors.Problem | None, bool]:
        """What a failure means: the reason in the log, what the client is told, and whether anything is charged."""
        sent, refused = self._exchange.sent, self._status is not None and not accepted(self._status)
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
                return "client_gone", None, sent and not refused
            case asyncio.CancelledError() if self._limit is not None and self._limit.struck and sent:
                problem = errors.UpstreamTimeout(deadline_s=self.desk.limits.deadline_s)
                return "deadline", problem, not refused
            case asyncio.CancelledError() if self._limit is not None and self._limit.struck:
                return "not_sent", errors.UpstreamUnavailable(detail="no connection"), False
            case asyncio.CancelledError():
                return "shutdown", errors.UpstreamCut(detail="the gateway is restarting"), sent and not refused
        self.log_fault(error)
        return "fault", errors.Internal(), sent and not refused

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

    def _stop_limit(self) -> None:
        if self._limit is not None:
            self._limit.stop()

    def _hurry(self) -> None:
        if self._cuttable() and self._limit is not None and self.receipt is None:
            self._limit.bring_forward(self._loop.time() + self.desk.limits.grace_s)
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
        if self.gone or not self.head.done() or not accepted(self._status) or not self.bid.call.stream:
            return
        if self.pipe.waits_since(STALLED_S, now):
            self.end(f"nothing of its answer was read for {STALLED_S:.0f} s")  # read on, it ends with that
        elif self.pipe.idle_since(KEEP_ALIVE_S, now):
            self.pipe.put_now(self.wire.keep_alive, now)

    def _cost_headers(self) -> dict[str, str]:
        receipt, payer = self.receipt, self.bid.payer
        if not isinstance(receipt, Settled):
            return {}
        return FREE if payer is None else payer.told(receipt)

    def _around(self) -> tuple[bytes, bytes]:
        receipt, payer = self.receipt, self.bid.payer
        if not isinstance(receipt, Settled):
            return b"", b""
        return (comment(FREE), b"") if payer is None else payer.around(receipt)

    # --- the end ---

    def _forget_body(self) -> None:
        self.bid.payload = b""
        self.bid.call.body = {}
        self.desk.give_body(self.caller.user_id, self._body_bytes)
        self._body_bytes = 0

    def _finish(self) -> None:
        self._forget_body()
        self.desk.live.pop(self.id, None)
        self.pipe.close()
        if not self.head.done():
            self.head.set_exception(errors.Internal())
        if not self.head.cancelled():
            self.head.exception()  # looked at, also where no client is left to look at it
        self._log()

    def _count(self, charge: Charge) -> None:
        metrics, provider, receipt = self.desk.metrics, self.bid.offer.provider.name, self.receipt
        if charge.estimated:
            metrics.estimates.add((provider,))
        if isinstance(receipt, Settled):
            metrics.charged(provider, charge.counts[0], charge.counts[1], self._billed().get("usd_cents", 0))
            if receipt.shortfall > 0:
                tokens = self.bid.payer is not None and self.bid.payer.unit == "tokens"
                metrics.shortfalls.add((provider,), 0 if tokens else receipt.shortfall)
                self.desk.alert("shortfall", request_id=self.id, **{"tokens" if tokens else "nanos": receipt.shortfall})

    def _billed(self) -> dict[str, int]:
        """Units billed, by what they are."""
        if not isinstance(self.receipt, Settled):
            return {}
        return {"usd_cents" if self.bid.payer is None else self.bid.payer.unit: self.receipt.billed}

    def _log(self) -> None:
        desk, bid, receipt = self.desk, self.bid, self.receipt
        now, provider = self._loop.time(), bid.offer.provider.name
        reason, took = self._reason or "refused", now - self._started
        first = None if self._answered is None else self._answered - self._started
        desk.metrics.ended(self.wire.name, provider, reason, took, first)
        settled = receipt if isinstance(receipt, Settled) else None
        desk.log.info(
            "request",
            desk.now(),
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
            cost_cents=self._billed().get("usd_cents"),
            cost_usdc_micro=self._billed().get("usdc_micro"),
        )

    def log_fault(self, error: BaseException) -> None:
        """Tell the operator of an exception that nobody foresaw, by its kind and place; its text may be anything."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = None if place is None else f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}"
        self.desk.alert("fault", error=type(error).__name__, where=where, request_id=self.id)


def accepted(status: int | None) -> bool:
    """Whether the provider took the request, and may bill for it, by the status of its answer."""
    return status is not None and 200 <= status < 300


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None
