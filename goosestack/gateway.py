"""READ SECOND: the life of one request.

    client -> identify -> admit -> parse -> quote -> authorize -> forward -> settle -> last byte

`relay` is that line. Up to the quote everything happens in the request's own handler; from the hold on a `Relay`
(`relay.py`) owns the money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from goosestack import bidding, errors, ledger, plans
from goosestack.accounts import Principal, pro_until
from goosestack.auth import Asking, Identifier, identify, provider_key
from goosestack.bidding import THREAD_ABOVE_BYTES
from goosestack.ledger import Charge
from goosestack.limits import RateLimit
from goosestack.payers import Funding, Payer, Shortage
from goosestack.plan_table import PlanTable
from goosestack.plans import Plans
from goosestack.relay import Desk, Limits, Relay
from goosestack.store import Tx
from goosestack.stream import Deadline
from goosestack.wire import Call, Wire, body as fields

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


REVOKED_S = 60.0
"""How long after it may have sent its body a request is on its way to its hold, at most."""


@dataclass(kw_only=True)
class Gateway(Desk):
    """What `relay` works with, handed over by `app`."""

    identifiers: Sequence[Identifier]
    vouchers: Sequence[Asking] = ()
    """Who pays for one request without being a customer: good for what costs something, and for nothing else."""
    fundings: Sequence[Funding]
    """Who pays, in the order in which they are asked."""
    rate_limit: RateLimit
    """Per key, or, of a caller without one, per user."""
    strangers: RateLimit
    """Per address, for whoever proves nothing."""
    plans: Plans | None = None
    """None where they count for nothing."""
    rations: bool = False
    """Whether what plans give is what requests are paid with, rather than how often one may ask alone."""
    plan_limits: Mapping[str, RateLimit] = field(default_factory=dict)
    """Of the plans that name one, per user."""
    plan_table: PlanTable | None = None
    stopping: bool = False
    revoked: dict[str, float] = field(default_factory=dict)
    """Keys that ended a moment ago, and when (loop time): whoever was identified before may still be sending a body."""

    async def identify(self, scope: Scope, *, paid: bool = False) -> Principal:
        """Who calls, for what is `paid` or not, and by which plan. Whoever proves nothing is counted by address."""
        identifiers = (*self.vouchers, *self.identifiers) if paid else self.identifiers
        address = scope["state"]["address"]
        asking = self.vouchers if paid else ()
        if asking and self.strangers.spent(address) and any(each.asks(scope["headers"]) for each in asking):
            await self.strangers.hit(address)  # before anybody is asked, not after
        try:
            caller = await identify(identifiers, scope["headers"])
        except errors.Problem as problem:
            if problem.status < 500:  # else it is we who cannot tell who calls
                await self.strangers.hit(address)
            raise
        if self.plan_table is not None and caller.account_id is not None:
            await self.plan_table.look(caller)
        return self.with_plan(caller)

    def with_plan(self, caller: Principal) -> Principal:
        """The caller, with the plan that they have now, where plans count and for whoever can have one."""
        if self.plans is None or caller.account_id is None:
            return caller
        return replace(caller, member=self.store.peek(plans.of_user, self.plans, caller.user_id, self.now()))

    async def admit(self, caller: Principal) -> dict[str, str]:
        """Whether the caller may ask now; the headers that say how much of the rate limit is left."""
        if self.stopping:
            raise errors.ShuttingDown()
        limit = self.rate_limit_of(caller)
        return await limit.hit(caller.counted_as if limit is self.rate_limit else caller.user_id)

    def rate_limit_of(self, caller: Principal) -> RateLimit:
        """The caller's plan's, where it names one: for all of a user's keys together. Else that of every key."""
        if caller.member is None:
            return self.rate_limit
        return self.plan_limits.get(caller.member.plan.name, self.rate_limit)

    def most_in_flight(self, caller: Principal) -> int:
        """Requests of this caller at once, by their plan or the settings; 0 for no limit."""
        named = None if caller.member is None else caller.member.plan.in_flight
        return self.limits.max_in_flight if named is None else named

    def payers(self, caller: Principal) -> list[Payer]:
        """Whom the caller can have a request paid by, in the order in which they are asked."""
        return [payer for funding in self.fundings if (payer := funding.payer(caller)) is not None]

    def make_room(self, caller: Principal, headers: dict[str, str]) -> None:
        """Raise where no relay may begin now: asked before the body is read, and again when the relay is made, since
        other requests have come in, the key may have been revoked, and a stop may have begun meanwhile."""
        if self.stopping:
            raise errors.ShuttingDown()
        self.still_stands(caller)
        most = self.most_in_flight(caller)
        if most and sum(relay.caller.user_id == caller.user_id for relay in self.live.values()) >= most:
            raise errors.TooManyInFlight(limit=most, headers={**headers, "retry-after": "1"})
        if self.store.full:
            raise errors.StoreUnavailable(headers={**headers, "retry-after": "10"})

    def still_stands(self, caller: Principal) -> None:
        """Raise where the caller's key was revoked since it was looked up: asked once the body is there, which may have
        taken its time."""
        if caller.key_id in self.revoked:
            raise errors.NotAuthenticated()

    def tick(self) -> None:
        """Every second: keep quiet streams alive, drop clients who stopped reading, forget keys that ended long ago."""
        now = asyncio.get_running_loop().time()
        if self.revoked:
            latest = now - self.limits.body_timeout_s - REVOKED_S
            self.revoked = {key_id: ended for key_id, ended in self.revoked.items() if ended > latest}
        for relay in tuple(self.live.values()):
            try:
                relay.tick(now)
            except Exception as error:  # one relay's fault is not the others'
                relay.log_fault(error)

    async def journal(self) -> None:
        """Every 2 s: note for each live relay what it would cost if the process died now. While the disk is full, a
        write of nothing finds out whether there is room again: nothing new is held before, and so nothing written."""
        due = []
        for relay in tuple(self.live.values()):
            try:
                charge = relay.progress()
            except Exception as error:  # one relay's fault is not the others'
                relay.log_fault(error)
                continue
            if charge is not None:
                due.append((relay.id, charge))
        if due or self.store.full:
            await self.store.write(_journal_all, due)

    def end_of_key(self, key_id: str) -> None:
        """A key was revoked: its next request fails, and delivery of its live answers ends at once; each of them
        settles by the rule for a client who has gone. Whoever revokes calls this, once that is committed."""
        self.revoked[key_id] = asyncio.get_running_loop().time()
        for identifier in self.identifiers:
            identifier.forget(key_id)
        for relay in tuple(self.live.values()):
            if relay.caller.key_id == key_id:
                relay.end("its key was revoked")

    async def drain(self, patience_s: float) -> None:
        """Stop admitting; let what lives finish, then cut it off, until every hold has ended. What cannot be written
        down for too long is given up."""
        self.stopping = True
        late = {relay.task for relay in self.live.values()}
        for patience in (patience_s, self.limits.unsettled_s, self.limits.unsettled_s):
            if late:
                _, late = await asyncio.wait(late, timeout=patience)
            for task in late:
                task.cancel()
            self.giving_up = bool(late) and patience is not patience_s


def _journal_all(tx: Tx, due: Sequence[tuple[str, Charge]]) -> None:
    for hold_id, charge in due:
        ledger.journal(tx, hold_id, charge)


# --- up to the quote ------------------------------------------------------------------------------------------


async def relay(gateway: Gateway, wire: Wire, scope: Scope, receive: Receive) -> Relay:
    """Take one request from its first byte to a task that holds, forwards and settles it. Raises errors.Problem."""
    caller = await gateway.identify(scope, paid=not wire.free)
    try:
        return await _relay(gateway, wire, scope, receive, caller)
    except errors.Problem as problem:
        raise caller.told(problem) from problem


async def _relay(gateway: Gateway, wire: Wire, scope: Scope, receive: Receive, caller: Principal) -> Relay:
    headers = await gateway.admit(caller)
    gateway.make_room(caller, headers)
    own_key = provider_key(scope["headers"])
    if own_key is not None:
        require_pro(caller, gateway)
    payers = gateway.payers(caller)
    if own_key is None and not wire.free:
        _require_funds_for_large(gateway, payers, scope)
    else:
        _require_no_debt(gateway, payers)
    raw = await read_body(gateway, scope, receive, owner=caller.user_id)
    try:
        call = await _parse(wire, raw, own_key=own_key is not None)
        made = await bidding.bid(
            gateway.upstreams,
            gateway.policy,
            wire,
            call,
            _vendor_headers(scope) if wire.dialect == "anthropic" else {},
            payers=payers,
            own_key=own_key,
            today=gateway.now()[:10],
            query=scope.get("query_string", b"").decode("latin-1"),
        )
        gateway.make_room(caller, headers)
    except BaseException:
        gateway.give_body(caller.user_id, len(raw))
        raise
    return Relay(gateway, wire, caller, made, scope["state"]["request_id"], headers, len(raw))


def require_pro(caller: Principal, gateway: Gateway) -> None:
    """Only Pro brings a key of its own; a lapsed plan is never quietly charged to credits."""
    until = gateway.store.peek(pro_until, caller.user_id)
    if until is None or until <= gateway.now():
        raise errors.NotPro()


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


def _require_funds_for_large(gateway: Gateway, payers: Sequence[Payer], scope: Scope) -> None:
    """Whoever has nothing is not read at length: the room for bodies is for those who can pay for an answer."""
    declared = next((int(value) for name, value in scope["headers"] if name == b"content-length"), None)
    if declared is not None and declared <= THREAD_ABOVE_BYTES:
        return
    refusal: errors.Problem = errors.NothingPays()
    for payer in payers:
        found = gateway.store.peek(payer.look)
        if found.available > 0 and not found.debt:
            return
        refusal = payer.refuse(Shortage(1, max(0, found.available), None, found.debt))
    raise refusal


def _require_no_debt(gateway: Gateway, payers: Sequence[Payer]) -> None:
    """Whoever owes is admitted nowhere, also where nothing would be held."""
    for payer in payers:
        found = gateway.store.peek(payer.look)
        if found.debt:
            raise payer.refuse(Shortage(0, max(0, found.available), None, found.debt))


class Room(Protocol):
    """Where bodies count while they are read."""

    limits: Limits
    body_bytes: int

    def take_body(self, owner: str, size: int) -> None:
        """Count a piece of a body. Raises Overloaded where it has no room."""
        ...

    def give_body(self, owner: str, size: int) -> None:
        """Let go of what was taken."""
        ...


async def read_body(room: Room, scope: Scope, receive: Receive, most: int | None = None, owner: str = "") -> bytes:
    """The request's body, which counts against the budget until its relay lets it go. Never reads more than may be:
    `most` bytes, or what a model's request may have."""
    limits = room.limits
    most = limits.max_body_bytes if most is None else most
    length = _check_headers(scope, most)
    if room.body_bytes + length > limits.body_budget_bytes:
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
            if size + len(piece) > most:
                raise errors.BodyTooLarge(limit=most, headers={"connection": "close"})
            room.take_body(owner, len(piece))
            size += len(piece)
            pieces.append(piece)
            more = message.get("more_body", False)
    except BaseException as error:
        room.give_body(owner, size)
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
