"""Stripe's events, each taken once: the row of the event and its effect are in one transaction.

What an event says is kept as facts, and what it concerns is computed again (`payments`, `subscriptions`). An event that
does not fit our books is kept for review, and grants nothing. `absorb` takes what was pulled from Stripe by the
same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from goosestack import payments, subscriptions
from goosestack.clock import later
from goosestack.notices import tell
from goosestack.payments import Payment, Review, Terms
from goosestack.store import Tx
from goosestack.stripe_facts import (
    Charged,
    Checkout,
    Dispute,
    Event,
    Intent,
    Invoice,
    News,
    Paying,
    Refund,
    Subscription,
)

KEPT_S = 30 * 86_400
"""How long things are kept that only repetitions need: Stripe tells of an event for three days, and lists it for 30."""
MOST_FORGOTTEN = 500


@dataclass(slots=True)
class Touched:
    """What the news concern."""

    payments: set[str] = field(default_factory=set)
    subscriptions: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.payments or self.subscriptions)


def receive(
    tx: Tx, event: Event, news: Sequence[News], body: str, terms: Terms, now: str, *, again: bool = False
) -> str:
    """Take an event, and what it says; `applied`, `ignored`, `review`, or `repeated` where it was taken before. With
    `again`, one that waits for review is taken as if it had just come: our books may have learned what it is about."""
    if event.livemode != terms.livemode:
        return _store(tx, event, body, "ignored", "of the other mode", terms, now)
    seen = tx.execute("SELECT status FROM stripe_events WHERE id = ?", (event.id,)).fetchone()
    if seen is not None and not (again and seen[0] == "review"):
        return "repeated"
    touched = Touched()
    try:
        for each in news:
            _note(tx, each, touched, terms, now)
    except Review as review:
        return _store(tx, event, body, "review", str(review), terms, now)
    doubts = [change.doubt for change in _refold(tx, touched, terms, now) if change.doubt is not None]
    if doubts:
        return _store(tx, event, body, "review", doubts[0], terms, now)
    return _store(tx, event, body, "applied" if touched else "ignored", "", terms, now)


def keep_for_review(tx: Tx, event: Event, body: str, reason: str, terms: Terms, now: str) -> str:
    """Take an event that cannot be read, or whose effect the books do not allow."""
    return _store(tx, event, body, "review", reason, terms, now)


def _store(tx: Tx, event: Event, body: str, status: str, reason: str, terms: Terms, now: str) -> str:
    stored = tx.execute(
        "INSERT INTO stripe_events (id, type, created, body, status, reason, received_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO NOTHING",
        (event.id, event.type, event.created, "" if status == "ignored" else body, status, reason, now),
    ).rowcount
    if not stored:
        again = tx.execute(
            "UPDATE stripe_events SET status = ?, reason = ? WHERE id = ? AND status = 'review' AND ? <> 'review'",
            (status, reason, event.id, status),
        ).rowcount
        return status if again else "repeated"
    if status == "review" and terms.notify:
        tell(tx, "review.needed", {"event_id": event.id, "event_type": event.type, "reason": reason}, now)
    return status


def absorb(
    tx: Tx, news: Iterable[News], terms: Terms, now: str, made: Mapping[str, int] | None = None
) -> tuple[Touched, list[str]]:
    """Keep what was pulled from Stripe, without computing anything yet: what it concerns, and what needs a person.
    `made` is when Stripe made what it is about (Unix seconds, by id)."""
    touched, doubts = Touched(), []
    for each in news:
        tx.execute("SAVEPOINT absorbed")
        try:
            if isinstance(each, Checkout | Intent):
                created = None if made is None else made.get(each.id)
                _adopt(tx, each, terms, now if created is None else subscriptions.iso(created))
            _note(tx, each, touched, terms, now)
        except Review as review:
            tx.execute("ROLLBACK TO absorbed")  # what does not fit is not adopted either
            doubts.append(str(review))
        tx.execute("RELEASE absorbed")
    return touched, doubts


def doubt(tx: Tx, reason: str, terms: Terms, now: str) -> bool:
    """Keep a doubt that no event bears, as a row that is reviewed like one; whether it is new. What was looked at once
    is not brought up again."""
    known = tx.execute(
        "SELECT 1 FROM stripe_events WHERE reason = ? AND status IN ('review', 'reviewed')", (reason,)
    ).fetchone()
    if known is not None:
        return False
    event = Event(f"rev_{sha256(reason.encode()).hexdigest()[:24]}", "reconcile", 0, terms.livemode, {})
    return _store(tx, event, "", "review", reason, terms, now) == "review"


def refold(tx: Tx, touched: Touched, terms: Terms, now: str) -> tuple[list[str], list[str]]:
    """Compute all of these again: what differed, and what needs a person."""
    changes = _refold(tx, touched, terms, now)
    doubts = [change.doubt for change in changes if change.doubt is not None]
    return [change.text for change in changes if change.text], doubts


def _note(tx: Tx, news: News, touched: Touched, terms: Terms, now: str) -> None:
    """Keep one piece of news, and add what it concerns. Raises Review before anything of it is kept."""
    payment: Payment | None = None
    subscription: str | None = None
    news = _as_of_now(tx, news)
    match news:
        case Checkout():
            payment = payments.note_checkout(tx, news, now)
            subscription = None if payment is None else subscriptions.note_bought(tx, payment, now)
        case Intent():
            payment = payments.note_intent(tx, news, now)
        case Charged() | Refund() | Dispute():
            payment = payments.note_money(tx, news)
            subscription = subscriptions.of_intent(tx, news.intent)
        case Invoice():
            subscription = subscriptions.note_invoice(tx, news, terms, now)
        case Paying():
            subscription = subscriptions.note_paying(tx, news)
        case _:  # a Subscription
            subscription = subscriptions.note_subscription(tx, news, now)
    if payment is not None:
        touched.payments.add(payment.id)
    if subscription is not None:
        touched.subscriptions.add(subscription)


def _refold(tx: Tx, touched: Touched, terms: Terms, now: str) -> list[payments.Change]:
    changes = [payments.refold(tx, each, terms, now) for each in sorted(touched.payments)]
    return changes + [subscriptions.refold(tx, each, terms, now) for each in sorted(touched.subscriptions)]


def _adopt(tx: Tx, news: Checkout | Intent, terms: Terms, created_at: str) -> None:
    """Make the row of a purchase that our books have lost (they were restored from an older backup), from what we had
    told Stripe of it, as of when it was made there. Only for what was pulled with our own key. An automatic top-up that
    is found so is never charged: it has no attempt (see `autotopup`)."""
    told = news.metadata
    id, user_id, kind = told.get("payment"), told.get("user"), told.get("kind")
    ours = kind in ("credits", "pro") and news.reference == id if isinstance(news, Checkout) else kind == "auto"
    if not ours or id is None or user_id is None or news.customer is None or news.livemode != terms.livemode:
        return
    if payments.find(tx, "id", id) is not None:
        return
    amounts = [told.get(name, "") for name in ("amount", "granted")]
    known = tx.execute("SELECT 1 FROM users WHERE id = ?", (user_id,)).fetchone()
    if known is None or not all(text.isascii() and text.isdigit() and len(text) < 12 for text in amounts):
        raise Review(f"there is no payment {id}, and it cannot be made again")
    amount, granted = map(int, amounts)
    payments.add(tx, user_id, str(kind), amount, granted, told.get("price") or None, terms, created_at, id)
    if payments.user_of_customer(tx, news.customer) is None:
        payments.set_customer(tx, user_id, news.customer)


def replace_customer(tx: Tx, user_id: str, deleted: str, made: str) -> str:
    """The user has another customer at Stripe, since the old one was deleted there: what is still told of that is the
    user's too."""
    changed = tx.execute(
        "UPDATE users SET stripe_customer_id = ? WHERE id = ? AND stripe_customer_id = ?", (made, user_id, deleted)
    ).rowcount
    if changed:
        tx.execute("INSERT INTO former_customers VALUES (?, ?)", (deleted, user_id))
    return payments.set_customer(tx, user_id, made)


def _as_of_now(tx: Tx, news: News) -> News:
    """The same, of the customer that was made instead where its own was deleted."""
    if not isinstance(news, Checkout | Intent | Invoice | Subscription):
        return news
    row = tx.execute(
        "SELECT u.stripe_customer_id FROM former_customers f JOIN users u ON u.id = f.user_id WHERE f.customer = ?",
        (news.customer,),
    ).fetchone()
    return news if row is None else replace(news, customer=row[0])


def to_review(tx: Tx) -> list[dict[str, object]]:
    """The events that a person must look at: `id`, `type`, `reason`, `received_at`."""
    rows = tx.execute(
        "SELECT id, type, reason, received_at FROM stripe_events WHERE status = 'review' ORDER BY received_at, id"
    ).fetchall()
    return [dict(zip(("id", "type", "reason", "received_at"), row, strict=True)) for row in rows]


def reviewed(tx: Tx, event_id: str) -> bool:
    """A person has looked at an event; False where there is none that needs it."""
    return (
        tx.execute(
            "UPDATE stripe_events SET status = 'reviewed' WHERE id = ? AND status = 'review'", (event_id,)
        ).rowcount
        == 1
    )


def forget(tx: Tx, now: str) -> int:
    """Forget what is of no use any more: what events said that were taken long ago (there are names in it), requests
    under an idempotency key, notices that were delivered. What needs a person is kept. How many rows; not all of them
    at once, since other writers wait."""
    before = later(now, -KEPT_S)
    changed = 0
    for sql in (
        "UPDATE stripe_events SET body = '' WHERE id IN (SELECT id FROM stripe_events WHERE received_at < ?"
        " AND body <> '' AND status <> 'review' LIMIT ?)",
        "DELETE FROM payment_requests WHERE (user_id, key) IN (SELECT user_id, key FROM payment_requests"
        " WHERE created_at < ? LIMIT ?)",
        "DELETE FROM notices WHERE id IN (SELECT id FROM notices WHERE delivered_at < ? LIMIT ?)",
    ):
        changed += tx.execute(sql, (before, MOST_FORGOTTEN)).rowcount
    return changed
