"""Pro by subscription: what Stripe said of a subscription and its invoices, folded into until when it is paid for.

The same as with payments: facts are a set, and what follows from them is a pure function. A subscription counts up to
the furthest end of a period that was paid at the right price, or up to its own end where that came sooner. A user's
`pro_until` is the furthest of all of theirs, so that the end of an old one never shortens a new one. Which price means
what is asked in one place (`prices`), for whoever sells more than one plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from goosestack.accounts import set_paid_pro
from goosestack.notices import tell
from goosestack.payments import (
    CURRENCY,
    Change,
    Fact,
    Payment,
    Review,
    Terms,
    disputes,
    facts_about,
    find,
    keep,
    refunds,
    user_of_customer,
)
from goosestack.store import Tx
from goosestack.stripe_facts import Invoice, Line, Paying, Subscription

OVER = ("canceled", "unpaid", "paused", "incomplete_expired")
"""Statuses in which a subscription is worth nothing from then on. `past_due` is none of them: what was paid is paid."""

_LIFE = ("incomplete", "trialing", "active", "past_due", "unpaid", "paused", "incomplete_expired", "canceled")
"""Of two statuses in the same second, the later in life is the later one."""

AD_HOC = "ad-hoc"
"""The price of a subscription that was sold at an amount of ours, where the operator has named no price of Stripe's."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Where a subscription stands by all that is known of it."""

    status: str
    price: str | None = None
    until: int | None = None
    """Unix seconds; None where nothing was paid."""


def fold(facts: Iterable[Fact], prices: frozenset[str]) -> Subscribed:
    """A subscription's standing, from the facts about it, its invoices, and their payments. An invoice whose money went
    back whole, or is disputed away, was not paid."""
    known = set(facts)
    periods = [fact for fact in known if fact.name == "period" and fact.detail in prices]
    paid = [fact for fact in periods if not _taken_back(fact.object, known)]
    furthest = max(paid, key=lambda fact: (fact.amount, fact.detail), default=None)
    until = None if furthest is None else furthest.amount
    ended = min((fact.amount for fact in known if fact.name == "ended"), default=None)
    told = max((fact for fact in known if fact.name == "status"), key=_moment, default=None)
    status = "canceled" if ended is not None else told.detail if told is not None else "active" if until else "new"
    over = ended if ended is not None else told.at if told is not None and told.detail in OVER else None
    if until is not None and over is not None:
        until = min(until, over)
    return Subscribed(status, None if furthest is None else furthest.detail, until)


def _moment(fact: Fact) -> tuple[int, int]:
    return fact.at, _LIFE.index(fact.detail) if fact.detail in _LIFE else -1


def _taken_back(invoice: str, facts: set[Fact]) -> bool:
    amount = max((fact.amount for fact in facts if (fact.name, fact.object) == ("invoice", invoice)), default=0)
    intents = {fact.object for fact in facts if (fact.about, fact.name) == (invoice, "intent")}
    of_it = [fact for fact in facts if fact.about in intents]
    taken, _ = disputes(of_it)
    return taken > 0 or 0 < amount <= refunds(of_it)


def _gather(tx: Tx, subscription: str) -> list[Fact]:
    """The facts about a subscription, its invoices, and the payments of those."""
    own = facts_about(tx, [subscription])
    of_invoices = facts_about(tx, {fact.object for fact in own if fact.name == "invoice"})
    return own + of_invoices + facts_about(tx, {fact.object for fact in of_invoices if fact.name == "intent"})


def prices(tx: Tx, subscription: str, terms: Terms) -> frozenset[str]:
    """The prices that mean Pro for a subscription: the one that is sold now, and the one that it was sold at."""
    payment = find(tx, "subscription_id", subscription)
    sold = AD_HOC if payment is None or payment.price_id is None else payment.price_id
    return frozenset(price for price in (terms.pro_price, sold, AD_HOC) if price is not None)


# --- what Stripe says of them ---------------------------------------------------------------------------------


def _owner(tx: Tx, subscription: str, customer: str | None, payment_id: str | None, livemode: bool) -> str | None:
    """Whose subscription it is: the customer's, and the same user's who bought it; None where it is none of ours.
    Raises Review where the two differ."""
    user_id = user_of_customer(tx, customer)
    payment = find(tx, "id", payment_id) or find(tx, "subscription_id", subscription)
    if payment is None:
        if user_id is None and str(payment_id).startswith("pay_"):
            raise Review(f"there is no payment {payment_id}")
        return user_id
    if payment.user_id != user_id:
        raise Review(f"{payment.id}: customer is {customer}, and should be another")
    if int(livemode) != payment.livemode or payment.kind != "pro":
        raise Review(f"{payment.id}: {subscription} is no subscription that was sold")
    return user_id


def _remember(tx: Tx, subscription: str, user_id: str, payment_id: str | None, now: str) -> None:
    tx.execute(
        "INSERT INTO subscriptions (id, user_id, status, updated_at) VALUES (?, ?, 'new', ?) ON CONFLICT DO NOTHING",
        (subscription, user_id, now),
    )
    tx.execute(
        "UPDATE payments SET subscription_id = ? WHERE id = ? AND subscription_id IS NULL", (subscription, payment_id)
    )


def note_bought(tx: Tx, payment: Payment, now: str) -> str | None:
    """A checkout of Pro has told its subscription; that."""
    bought = find(tx, "id", payment.id)
    assert bought is not None
    if bought.subscription_id is not None:
        _remember(tx, bought.subscription_id, bought.user_id, bought.id, now)
    return bought.subscription_id


def note_invoice(tx: Tx, news: Invoice, terms: Terms, now: str) -> str | None:
    """Keep what an invoice says; the subscription that it is of, None where it is none of ours. Raises Review."""
    named = news.metadata.get("payment")
    user_id = _owner(tx, news.subscription, news.customer, named, news.livemode)
    if user_id is None:
        return None
    payment = find(tx, "id", named) or find(tx, "subscription_id", news.subscription)
    periods = [(line, _price(line, payment)) for line in news.lines if line.amount > 0]
    if news.state == "paid":
        if payment is not None and not any(
            price in (AD_HOC, payment.price_id, terms.pro_price) for _, price in periods
        ):
            raise Review(f"{payment.id}: {news.id} is not for what was sold")
        keep(
            tx,
            Fact(news.subscription, "invoice", news.id, news.amount_paid, news.created, news.url or ""),
            *(Fact(news.subscription, "period", news.id, line.until, detail=price) for line, price in periods if price),
        )
    if news.intent is not None:
        keep(tx, Fact(news.id, "intent", news.intent))
    _remember(tx, news.subscription, user_id, named, now)
    if news.state == "failed" and terms.notify:
        told: dict[str, object] = {
            "user_id": user_id,
            "kind": "pro",
            "invoice": news.id,
            "subscription": news.subscription,
        }
        tell(tx, "payment.failed", told, now)
    return news.subscription


def _price(line: Line, payment: Payment | None) -> str | None:
    """What a line was sold at: a price of Stripe's, or the amount of ours that this purchase was made at."""
    ours = (
        payment is not None and payment.price_id is None and (line.amount, line.currency) == (payment.amount, CURRENCY)
    )
    return AD_HOC if ours else line.price


def note_paying(tx: Tx, news: Paying) -> str | None:
    """Keep which payment paid an invoice; the subscription that it is of."""
    keep(tx, Fact(news.invoice, "intent", news.intent))
    return of_invoice(tx, news.invoice)


def note_subscription(tx: Tx, news: Subscription, now: str) -> str | None:
    """Keep what a subscription says of itself; its id, None where it is none of ours. Raises Review."""
    named = news.metadata.get("payment")
    user_id = _owner(tx, news.id, news.customer, named, news.livemode)
    if user_id is None:
        return None
    if news.pulled:  # the latest look at it says all that those before did
        tx.execute("DELETE FROM stripe_facts WHERE about = ? AND name = 'status' AND object = 'pulled'", (news.id,))
    keep(tx, Fact(news.id, "status", "pulled" if news.pulled else news.id, at=news.at, detail=news.status))
    if news.ended_at is not None:
        keep(tx, Fact(news.id, "ended", news.id, news.ended_at))
    _remember(tx, news.id, user_id, named, now)
    return news.id


def of_invoice(tx: Tx, invoice: str) -> str | None:
    """The subscription that an invoice is of."""
    row = tx.execute(
        "SELECT about FROM stripe_facts WHERE name = 'invoice' AND object = ? ORDER BY about", (invoice,)
    ).fetchone()
    return None if row is None else str(row[0])


def of_intent(tx: Tx, intent: str) -> str | None:
    """The subscription whose invoice a payment paid."""
    row = tx.execute(
        "SELECT about FROM stripe_facts WHERE name = 'intent' AND object = ? ORDER BY about", (intent,)
    ).fetchone()
    return None if row is None else of_invoice(tx, row[0])


def refold(tx: Tx, subscription: str, terms: Terms, now: str) -> Change:
    """Compute where a subscription stands, and until when its user is Pro by all of theirs."""
    row = tx.execute("SELECT user_id, status, until FROM subscriptions WHERE id = ?", (subscription,)).fetchone()
    if row is None:
        return Change()
    user_id, status, until = row
    stands = fold(_gather(tx, subscription), prices(tx, subscription, terms))
    paid = None if stands.until is None else iso(stands.until)
    tx.execute(
        "UPDATE subscriptions SET price_id = ?, status = ?, until = ?, updated_at = ? WHERE id = ?",
        (stands.price, stands.status, paid, now, subscription),
    )
    (furthest,) = tx.execute("SELECT max(until) FROM subscriptions WHERE user_id = ?", (user_id,)).fetchone()
    set_paid_pro(tx, user_id, furthest)
    if (stands.status, paid) == (status, until):
        return Change()
    return Change(f"{subscription}: {status} -> {stands.status}, paid until {paid or 'never'}")


def iso(seconds: int) -> str:
    """Unix seconds, as all times are written."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def running(tx: Tx, user_id: str, now: str) -> bool:
    """Whether the user has a subscription that goes on, so that another would be paid for twice."""
    rows = tx.execute("SELECT status, until FROM subscriptions WHERE user_id = ?", (user_id,)).fetchall()
    return any(status not in (*OVER, "new") and (until is None or until > now) for status, until in rows)


def invoices(tx: Tx, user_id: str) -> list[dict[str, object]]:
    """What the user has paid for subscriptions: `id`, `type`, `status`, `amount_cents`, `receipt_url`, `created_at`."""
    rows = tx.execute(
        "SELECT DISTINCT f.object, f.amount, f.detail, f.at FROM stripe_facts f JOIN subscriptions s ON s.id = f.about"
        " WHERE s.user_id = ? AND f.name = 'invoice' ORDER BY f.at DESC, f.object",
        (user_id,),
    ).fetchall()
    return [
        {
            "id": invoice,
            "type": "pro",
            "status": "paid",
            "amount_cents": amount,
            "receipt_url": url or None,
            "created_at": iso(at),
        }
        for invoice, amount, url, at in rows
    ]
