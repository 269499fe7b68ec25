"""What we ask of Stripe by ourselves: charging saved cards for automatic top-ups, pulling what we may have missed, and
setting up the webhook.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from goosestack import autotopup, inbox, payments, stripe_facts
from goosestack.inbox import Touched
from goosestack.ledger import LedgerError
from goosestack.notices import later, tell
from goosestack.payments import Payment, Terms
from goosestack.store import Store, Tx
from goosestack.stripe_facts import EVENTS, Checkout, Event, Intent, News, Unreadable
from goosestack.till import SOURCES, Declined, Till, TillError

OVERLAP_S = 30 * 86_400
"""How far before the last run objects are pulled again: a bank's payment can take weeks to succeed or fail."""
EVENTS_OVERLAP_S = 86_400
FORGOTTEN_S = 20 * 3_600
"""Stripe remembers an idempotency key for a day; before that is over, an attempt is looked for instead of repeated."""
CHUNK = 200
"""How much is written at once: other writers wait meanwhile."""

Told = tuple[Event, Sequence[News], str]
Sell = Callable[[str, int, None], Awaitable[Payment]]


class CashierError(Exception):
    """What the operator asked for could not be done; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
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

    # --- automatic top-ups ---

    async def top_up(self) -> None:
        """Make every attempt that is to be made now."""
        for user_id in await self.store.read(autotopup.wanted):
            attempt = await self.store.write(autotopup.begin, user_id, dict(self.topups), self.terms, self.now())
            if attempt is not None:
                await self._charge(attempt)

    async def _charge(self, attempt: Payment) -> None:
        """Ask Stripe for an attempt, and write down what came of it. What is unknown stays in flight."""
        try:
            found = await self._find(attempt) if self._forgotten(attempt) else await self._ask(attempt)
        except Declined as declined:
            found = declined.intent
            if not found:
                await self._failed(attempt, declined.code or "declined")
        except TillError as error:
            self.alert("stripe", doing="auto-topup", error=str(error))
            if not error.certain:
                return
            found = await self._find(
                attempt
            )  # refused as it was asked for now: it may have been taken as it was before
        if found:
            await self._learn(found)
        left = await self.store.read(payments.find, "id", attempt.id)
        if left is not None and left.status == "new":
            await self._failed(attempt, str(found.get("status", "refused")) if found else "refused")
        left = await self.store.read(payments.find, "id", attempt.id)
        if left is not None and left.failure in autotopup.ASKS_THE_CUSTOMER:
            await self._send_link(attempt)

    def _forgotten(self, attempt: Payment) -> bool:
        return later(attempt.created_at, FORGOTTEN_S) < self.now()

    async def _ask(self, attempt: Payment) -> Mapping[str, Any]:
        customer, _ = await self.store.read(payments.customer_of, attempt.user_id)
        card = None if customer is None else await self.till.saved_card(customer)
        if customer is None or card is None:
            raise Declined("no_saved_card", {})
        asked = {
            "amount": attempt.amount,
            "currency": payments.CURRENCY,
            "customer": customer,
            "payment_method": card,
            "off_session": True,
            "confirm": True,
            "metadata": payments.told_of(attempt),
        }
        return await self.till.charge(asked, attempt.id)

    async def _find(self, attempt: Payment) -> Mapping[str, Any]:
        """The attempt as Stripe has it; nothing where it never came there. Raises TillError."""
        async for found in self.till.pull("intents", _seconds(attempt.created_at) - 60):
            told = found.get("metadata")
            if isinstance(told, Mapping) and told.get("payment") == attempt.id:
                return found
        return {}

    async def _learn(self, found: Mapping[str, Any]) -> None:
        """Take what Stripe answered by the same way as what it tells."""
        try:
            news = stripe_facts.read_object(found, _seconds(self.now()))
            _, doubts = await self.store.write(_take, news, self.terms, self.now())
        except (Unreadable, LedgerError) as error:
            doubts = [str(error)]
        for doubt in doubts:
            self.alert("payment_review", reason=doubt)

    async def _failed(self, attempt: Payment, why: str) -> None:
        await self.store.write(payments.given_up, attempt.id, why, self.terms, self.now())

    async def _send_link(self, attempt: Payment) -> None:
        """The bank wants its customer: a checkout for the same amount, which the operator can send on."""
        if self.sell is not None:
            checkout = await self.sell(attempt.user_id, attempt.amount, None)
            if self.terms.notify:
                told: dict[str, object] = {"user_id": attempt.user_id, "payment_id": checkout.id, "url": checkout.url}
                await self.store.write(tell, "payment.action_required", told, self.now())

    # --- reconciliation ---

    async def reconcile(self) -> dict[str, Any]:
        """Pull what Stripe has since the last run, through the same fold: `changes`, what differed; `review`, what
        needs a person. Raises CashierError."""
        started = self.now()
        since = await self.store.read(_last_run)
        try:
            news, review = await self._pull(since)
            events = await self._pull_events(max(0, since - EVENTS_OVERLAP_S))
        except TillError as error:
            raise CashierError(f"Stripe could not be asked: {error}") from error
        news += [each for _, said, _ in events for each in said]
        changes, doubts = await self._absorb(sorted(news, key=_order))
        await self._take_events(events)
        waiting = await self.store.read(inbox.to_review)
        await self.store.write(_note_run, _seconds(started))
        review += [*doubts, *(f"{event['id']} ({event['type']}): {event['reason']}" for event in waiting)]
        return {"since": since, "objects": len(news), "changes": changes, "review": sorted(set(review))}

    async def _pull(self, since: int) -> tuple[list[News], list[str]]:
        news: list[News] = []
        review: list[str] = []
        for source in SOURCES:
            if source == "events":
                continue
            # a subscription that was made long ago may have ended since
            start = 0 if source == "subscriptions" else max(0, since - OVERLAP_S)
            async for found in self.till.pull(source, start):
                try:
                    news += stripe_facts.read_object(found, _seconds(self.now()))
                except Unreadable as error:
                    review.append(f"{found.get('id')}: {error}")
        return news, review

    async def _absorb(self, news: Sequence[News]) -> tuple[list[str], list[str]]:
        """All facts first, then what follows from them: nothing is taken back for want of what comes a moment later."""
        doubts: list[str] = []
        touched, quiet = Touched(), replace(self.terms, notify=False)  # the events themselves tell what they tell
        for chunk in _chunks(news):
            some, more = await self.store.write(inbox.absorb, chunk, quiet, self.now())
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

    async def _pull_events(self, since: int) -> list[Told]:
        """The events that say something, as they would have been told, with what they say."""
        events: list[Told] = []
        async for found in self.till.pull("events", since):
            try:
                event = stripe_facts.event_of(found)
            except Unreadable:
                continue  # nothing that could be told of
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


def _take(tx: Tx, news: Sequence[News], terms: Terms, now: str) -> tuple[list[str], list[str]]:
    touched, doubts = inbox.absorb(tx, news, terms, now)
    changes, more = inbox.refold(tx, touched, terms, now)
    return changes, doubts + more


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
