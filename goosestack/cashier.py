"""What we ask of Stripe by ourselves: charging saved cards for automatic top-ups, pulling what we may have missed, and
setting up the webhook.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from goosestack import autotopup, inbox, payments, stripe_facts
from goosestack.autotopup import Attempt
from goosestack.clock import later
from goosestack.errors import StoreUnavailable
from goosestack.inbox import Touched
from goosestack.ledger import LedgerError
from goosestack.payments import Payment, Terms
from goosestack.store import Store, Tx
from goosestack.stripe_facts import EVENTS, Checkout, Event, Intent, News, Unreadable
from goosestack.till import SOURCES, Declined, Till, TillError

OVERLAP_S = 30 * 86_400
"""How far before the last run objects are pulled again: a bank's payment can take weeks to succeed or fail."""
EVENTS_OVERLAP_S = 86_400
SKEW_S = 3_600
"""How far Stripe's clock and ours, or two machines of ours, may be apart."""
CHUNK = 200
"""How much is written at once: other writers wait meanwhile."""

Told = tuple[Event, Sequence[News], str]
Sell = Callable[[str, int, None], Awaitable[Payment]]


class CashierError(Exception):
    """What the operator asked for could not be done; the text says why."""


class Unreachable(CashierError):
    """Stripe could not be asked just now."""


@dataclass(slots=True, kw_only=True)
class Cashier:
    """Works on a store and a till; `sell` makes a checkout for a user, where there is somebody to send it to."""

    store: Store
    till: Till
    terms: Terms
    topups: Mapping[int, int]
    now: Callable[[], str]
    alert: Callable[..., None]
    sell: Sell | None = None
    public_url: str | None = None

    _reconciled: bool = field(default=False, init=False)
    _refusals: int = field(default=0, init=False)
    _not_before: str = field(default="", init=False)

    # --- automatic top-ups ---

    async def top_up(self) -> None:
        """Make every step of an attempt that is to be made now. One user's trouble is no other's."""
        users = await self.store.read(autotopup.wanted, self.now())
        if not users or not await self._knows_the_past():
            return
        for user_id in users:
            attempt = await self.store.write(autotopup.begin, user_id, dict(self.topups), self.terms, self.now())
            if attempt is None:
                continue
            try:
                await self._step(attempt)
            except StoreUnavailable:
                raise
            except Exception as error:  # whatever it was: nothing is known of this attempt, and it has its time
                why = str(error) if isinstance(error, TillError) else type(error).__name__
                self.alert("stripe", doing="auto-topup", payment_id=attempt.payment.id, error=why)
                await self.store.write(autotopup.put_off, attempt, self.now())

    async def _knows_the_past(self) -> bool:
        """Whether the books were compared with Stripe's since this process began: they may have been restored from a
        backup that knows neither what was charged today nor what was given back."""
        if self._reconciled or self.now() < self._not_before:
            return self._reconciled
        try:
            done = await self.reconcile()
        except CashierError as error:
            self.alert("stripe", doing="reconcile", error=str(error))
            wait = autotopup.RETRY_S[min(self._refusals, len(autotopup.RETRY_S) - 1)]
            self._refusals, self._not_before = self._refusals + 1, later(self.now(), wait)
            return False
        if done["changes"]:
            self.alert("reconciled", changes=len(done["changes"]), first=done["changes"][0])
        return True

    async def _step(self, attempt: Attempt) -> None:
        if attempt.step == "link":
            await self._send_link(attempt)
        elif attempt.step == "look":
            await self._look(attempt)
        elif not await self._ask(attempt):
            return
        left = await self.store.read(payments.find, "id", attempt.payment.id)
        if attempt.step != "link" and left is not None and left.failure in autotopup.ASKS_THE_CUSTOMER:
            await self._send_link(attempt)

    async def _ask(self, attempt: Attempt) -> bool:
        """Charge the card, and write down what came of it; False where that is not known. Raises TillError."""
        payment = attempt.payment
        customer, _ = await self.store.read(payments.customer_of, payment.user_id)
        card = None if customer is None else await self.till.saved_card(customer)
        if customer is None or card is None:
            return await self._refused(attempt, "no_saved_card")
        asked = {
            "amount": payment.amount,
            "currency": payments.CURRENCY,
            "customer": customer,
            "payment_method": card,
            "off_session": True,
            "confirm": True,
            "metadata": payments.told_of(payment),
        }
        try:
            found = await self.till.charge(asked, payment.id)
        except Declined as declined:
            await self._learn(attempt, declined.intent, declined.code or "declined")
        except TillError as error:
            if not error.spent:
                raise
            self.alert("stripe", doing="auto-topup", payment_id=payment.id, error=str(error))
            if error.certain:
                return await self._refused(attempt, "refused")
            await self.store.write(autotopup.put_off, attempt, self.now(), look=True)
            return False
        else:
            await self._learn(attempt, found, str(found.get("status")))
        return True

    async def _refused(self, attempt: Attempt, why: str) -> bool:
        """It was refused as it was asked for now: it may have been taken as it was before."""
        first = attempt.asked_at == attempt.payment.created_at
        if first:
            await self.store.write(autotopup.failed, attempt.payment.id, why, self.terms, self.now())
        else:
            await self.store.write(autotopup.put_off, attempt, self.now(), look=True)
        return first

    async def _look(self, attempt: Attempt) -> None:
        """Look for the charge as Stripe has it, until it must have come there. Raises TillError."""
        id = attempt.payment.id
        async for found in self.till.pull("intents", _seconds(attempt.payment.created_at) - SKEW_S):
            told = found.get("metadata")
            if isinstance(told, Mapping) and told.get("payment") == id:
                await self._learn(attempt, found, str(found.get("status")))
                return
        if autotopup.over(attempt, self.now()):
            await self.store.write(autotopup.failed, id, autotopup.NOT_MADE, self.terms, self.now())
        else:
            await self.store.write(autotopup.put_off, attempt, self.now())

    async def _learn(self, attempt: Attempt, found: Mapping[str, Any], otherwise: str) -> None:
        """Take what Stripe answered by the same way as what it tells; the attempt ends with it. `otherwise` is why it
        failed where the answer leaves that open."""
        doubts: list[str] = []
        news: Sequence[News] = ()
        if found:
            try:
                news = stripe_facts.read_object(found, _seconds(self.now()))
            except Unreadable as error:
                doubts = [str(error)]
        id = attempt.payment.id
        try:
            doubts = await self.store.write(_take, id, news, doubts, otherwise, self.terms, self.now())
        except LedgerError as error:
            doubts = await self.store.write(_take, id, (), [str(error)], otherwise, self.terms, self.now())
        for doubt in doubts:
            self.alert("payment_review", reason=doubt)

    async def _send_link(self, attempt: Attempt) -> None:
        """The bank wants its customer: a checkout for the same amount, which the operator can send on. Asked for again,
        it is the same checkout."""
        if self.sell is not None:
            payment = attempt.payment
            sold = payment.amount in self.topups
            checkout = await self.sell(payment.user_id, payment.amount, None) if sold else None
            await self.store.write(autotopup.linked, attempt, checkout, self.terms, self.now())

    # --- reconciliation ---

    async def reconcile(self) -> dict[str, Any]:
        """Pull what Stripe has since the last run, through the same fold: `changes`, what differed; `review`, what
        waits for a person. Raises Unreachable."""
        started = self.now()
        since = await self.store.read(_last_run)
        made: dict[str, int] = {}
        try:
            news, doubts = await self._pull(since, made)
            events = await self._pull_events(max(0, since - EVENTS_OVERLAP_S), made)
        except TillError as error:
            raise Unreachable(f"Stripe could not be asked: {error}") from error
        news += [each for _, said, _ in events for each in said]
        changes, more = await self._absorb(sorted(news, key=_order), made)
        await self._take_events(events)
        for doubt in sorted({*doubts, *more}):
            await self.store.write(inbox.doubt, doubt, self.terms, self.now())
        waiting = await self.store.read(inbox.to_review)
        await self.store.write(_note_run, _seconds(started))
        self._reconciled = True
        review = [f"{row['id']} ({row['type']}): {row['reason']}" for row in waiting]
        return {"since": since, "objects": len(news), "changes": changes, "review": review}

    async def _pull(self, since: int, made: dict[str, int]) -> tuple[list[News], list[str]]:
        """What every object says, and what cannot be read; when they were made at Stripe is added to `made`, by id."""
        news: list[News] = []
        doubts: list[str] = []
        for source in SOURCES:
            if source == "events":
                continue
            # a subscription that was made long ago may have ended since
            start = 0 if source == "subscriptions" else max(0, since - OVERLAP_S)
            asked_at = _seconds(self.now())  # what is told of later than this wins
            async for found in self.till.pull(source, start):
                _note_made(found, made)
                try:
                    news += stripe_facts.read_object(found, asked_at)
                except Unreadable as error:
                    doubts.append(f"{found.get('id')}: {error}")
        return news, doubts

    async def _absorb(self, news: Sequence[News], made: Mapping[str, int]) -> tuple[list[str], list[str]]:
        """All facts first, then what follows from them: nothing is taken back for want of what comes a moment later."""
        doubts: list[str] = []
        touched, quiet = Touched(), replace(self.terms, notify=False)  # the events themselves tell what they tell
        for chunk in _chunks(news):
            some, more = await self.store.write(inbox.absorb, chunk, quiet, self.now(), made)
            touched.payments |= some.payments
            touched.subscriptions |= some.subscriptions
            doubts += more
        changes: list[str] = []
        parts = [Touched({each}) for each in sorted(touched.payments)]
        parts += [Touched(subscriptions={each}) for each in sorted(touched.subscriptions)]
        for part in parts:
            try:
                found, more = await self.store.write(inbox.refold, part, self.terms, self.now())
            except LedgerError as error:
                found, more = [], [str(error)]
            changes += found
            doubts += more
        return changes, doubts

    async def _pull_events(self, since: int, made: dict[str, int]) -> list[Told]:
        """The events that say something, as they would have been told, with what they say."""
        events: list[Told] = []
        async for found in self.till.pull("events", since):
            try:
                event = stripe_facts.event_of(found)
            except Unreadable:
                continue  # nothing that could be told of
            _note_made(event.object, made)
            if event.type in EVENTS:
                body = json.dumps(found, separators=(",", ":"))
                try:
                    events.append((event, stripe_facts.read(event), body))
                except Unreadable as error:
                    await self.store.write(inbox.keep_for_review, event, body, str(error), self.terms, self.now())
        return events

    async def _take_events(self, events: Sequence[Told]) -> None:
        """Into the inbox with those that never came."""
        for event, said, body in events:
            try:
                await self.store.write(inbox.receive, event, said, body, self.terms, self.now(), again=True)
            except LedgerError as error:
                await self.store.write(inbox.keep_for_review, event, body, str(error), self.terms, self.now())

    # --- the webhook ---

    async def set_up(self, *, again: bool) -> dict[str, Any]:
        """Make the webhook endpoint, with all events, pinned to our API version; its secret is told this once. Raises
        CashierError where there is one already, unless it is to be made `again`."""
        if self.public_url is None:
            raise CashierError("PUBLIC_URL is not set: Stripe must know where to send its events")
        url = f"{self.public_url}/billing/webhook"
        try:
            there = [str(each["id"]) for each in await self.till.endpoints() if each.get("url") == url]
            if there and not again:
                raise CashierError(f"Stripe has {', '.join(there)} for {url} already; --again makes another beside it")
            made = await self.till.create_endpoint(url, EVENTS)
        except TillError as error:
            raise CashierError(f"Stripe could not be asked: {error}") from error
        return {"id": made["id"], "url": url, "secret": made["secret"], "events": list(EVENTS), "others": there}


def _take(
    tx: Tx, payment_id: str, news: Sequence[News], doubts: Sequence[str], otherwise: str, terms: Terms, now: str
) -> list[str]:
    touched, more = inbox.absorb(tx, news, terms, now)
    _, most = inbox.refold(tx, touched, terms, now)
    found = [*doubts, *more, *most]
    for each in found:
        inbox.doubt(tx, each, terms, now)
    autotopup.failed(tx, payment_id, autotopup.DOUBTFUL if found else otherwise, terms, now)
    return found


def _note_made(found: Mapping[str, Any], made: dict[str, int]) -> None:
    id, created = found.get("id"), found.get("created")
    if isinstance(id, str) and type(created) is int and 0 < created < 1 << 32:
        made[id] = created


def _order(news: News) -> int:
    """Whose purchase it is comes first, then which payment it was, then what became of that."""
    return 0 if isinstance(news, Checkout) else 1 if isinstance(news, Intent) else 2


def _chunks(news: Sequence[News]) -> Iterable[Sequence[News]]:
    return (news[start : start + CHUNK] for start in range(0, len(news), CHUNK))


def _seconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp())


def _last_run(tx: Tx) -> int:
    row = tx.execute("SELECT until FROM reconciliations WHERE source = 'stripe'").fetchone()
    return 0 if row is None else int(row[0])


def _note_run(tx: Tx, until: int) -> None:
    tx.execute(
        "INSERT INTO reconciliations VALUES ('stripe', ?) ON CONFLICT (source) DO UPDATE SET until = excluded.until",
        (until,),
    )
