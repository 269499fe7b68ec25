"""Pro by subscription: what Stripe said of a subscription and its invoices, folded into until when it is paid for.

The same as with payments: facts are a set, and what follows from them is a pure function. A subscription counts up to
the furthest end of a period that was paid at the right price, or up to its own end where that came sooner. A user's
`pro_until` is the furthest of all of theirs, so that the end of an old one never shortens a new one; one that goes on
counts a little longer (`Terms.pro_grace_s`), since Stripe asks for the next period an hour after it has begun. Which
price means what is asked in one place (`prices`), for whoever sells more than one plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from goosestack import plans
from goosestack.accounts import set_paid_pro
from goosestack.clock import later, written
from goosestack.facts import Fact, disputes, facts_about, keep, keep_page, refunds
from goosestack.notices import tell
from goosestack.payments import (
    CURRENCY,
    Change,
    Payment,
    Review,
    Terms,
    find,
    user_of_customer,
)
from goosestack.plans import Paid, Plans
from goosestack.store import Store, Tx
from goosestack.stripe_facts import Invoice, Line, Paying, Subscription

OVER = ("canceled", "unpaid", "paused", "incomplete_expired")
"""Statuses in which a subscription is worth nothing from then on. `past_due` is none of them: what was paid is paid."""

CURRENT = ("active", "trialing")
"""Statuses in which the next period is expected to be paid: the grace is theirs. Of `past_due` it is known that it was
not."""

RUNNING = (*CURRENT, "past_due")
"""Statuses in which Stripe goes on asking for money, so that another subscription would be paid for twice."""

_LIFE = ("incomplete", "trialing", "active", "past_due", "unpaid", "paused", "incomplete_expired", "canceled")
"""Of two statuses in the same second, the later in life is the later one."""

PULLED = "pulled"
"""The object of a status that we asked for, rather than were told of."""

SHORTEST_S = 28 * 86_400
"""The shortest month: what is paid for less at a plan's price would be given a month's tokens each time."""

AT_ONCE = 200
"""Subscriptions that are folded in one transaction."""

AD_HOC = "ad-hoc"
"""The price of a subscription that was sold at an amount of ours, where the operator has named no price of Stripe's."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Where a subscription stands by all that is known of it."""

    status: str
    price: str | None = None
    until: int | None = None
    """Unix seconds; None where nothing was paid."""
    since: int = 0
    to: int = 0
    """The period that was paid last, whatever became of it."""
    last: bool = False
    """Whether no other price was paid for longer."""


def fold(facts: Iterable[Fact], prices: frozenset[str], *, prorated: bool = False) -> Subscribed:
    """A subscription's standing, from the facts about it, its invoices, and their payments. An invoice whose money went
    back whole, or is disputed away, was not paid. With `prorated` it counts, too, what was paid for the rest of a
    period; that ends with the period and extends nothing."""
    known = set(facts)
    paid = [fact for fact in known if fact.name in ("period", "prorated") and not _taken_back(fact.object, known)]
    periods = [fact for fact in paid if fact.name == "period"]
    running = max((fact.amount for fact in periods), default=0)
    rests = [fact for fact in paid if prorated and fact.name == "prorated" and fact.amount <= running]
    at_prices = [fact for fact in periods + rests if fact.detail in prices]
    furthest = max(at_prices, key=lambda fact: (fact.amount, fact.detail), default=None)
    until = to = None if furthest is None else furthest.amount
    ended = min((fact.amount for fact in known if fact.name == "ended"), default=None)
    told = max((fact for fact in known if fact.name == "status"), key=_moment, default=None)
    status = "canceled" if ended is not None else told.detail if told is not None else "active" if until else "new"
    if status == "incomplete" and until is not None:
        status = "active"  # its first invoice is paid, whatever else we were not told
    over = ended if ended is not None else _over_since(known)
    if until is not None and over is not None:
        until = min(until, over)
    if furthest is None or to is None:
        return Subscribed(status)
    since = max((fact.at for fact in periods if fact.amount == to), default=0)
    return Subscribed(status, furthest.detail, until, since, to, to == running)


def _over_since(facts: set[Fact]) -> int | None:
    """Since when it has been worth nothing, by its statuses; None where it is worth something. A status that we looked
    at again and again has its first time in `amount`."""
    since: int | None = None
    for fact in sorted((fact for fact in facts if fact.name == "status"), key=_moment, reverse=True):
        if fact.detail not in OVER:
            return since if since is None else max(since, fact.at)
        first = fact.amount if fact.object == PULLED else fact.at
        since = first if since is None else min(since, first)
    return since


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
    named, linked = find(tx, "id", payment_id), find(tx, "subscription_id", subscription)
    payment = named or linked
    if payment is None:
        if user_id is None and str(payment_id).startswith("pay_"):
            raise Review(f"there is no payment {payment_id}")
        return user_id
    if payment.user_id != user_id:
        raise Review(f"{payment.id}: customer is {customer}, and should be another")
    if int(livemode) != payment.livemode or payment.kind != "pro":
        raise Review(f"{payment.id}: {subscription} is no subscription that was sold")
    if payment.subscription_id not in (None, subscription) or linked not in (None, payment):
        raise Review(f"{payment.id}: {subscription} is not the subscription that was sold")
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
    if news.state == "paid":
        paid = _paid_for(news, payment, terms)
        keep(tx, Fact(news.subscription, "invoice", news.id, news.amount_paid, news.created), *paid)
        keep_page(tx, news.subscription, news.id, news.url, news.at)
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


def _paid_for(news: Invoice, payment: Payment | None, terms: Terms) -> list[Fact]:
    """What a paid invoice paid for: periods, and the rest of one at the prices that give a plan. Raises Review."""
    gives = frozenset[str]() if terms.plans is None else terms.plans.prices
    lines = [(line, _price(line, payment)) for line in news.lines if line.amount > 0]
    lines = [(line, price) for line, price in lines if not line.prorated or price in gives]
    if payment is not None and not any(
        price in (AD_HOC, payment.price_id, terms.pro_price) or price in gives for _, price in lines
    ):
        raise Review(f"{payment.id}: {news.id} is not for what was sold")
    for line, price in lines:
        if price in gives and not line.prorated and line.until - line.since < SHORTEST_S:
            raise Review(f"{news.id}: a plan's price must be monthly or yearly, and {price} is paid for less")
    return [
        Fact(news.subscription, "prorated" if line.prorated else "period", news.id, line.until, line.since, price)
        for line, price in lines
        if price is not None
    ]


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
    if news.pulled:
        _look(tx, news)
    else:
        keep(tx, Fact(news.id, "status", news.id, at=news.at, detail=news.status))
    if news.ended_at is not None:
        keep(tx, Fact(news.id, "ended", news.id, news.ended_at))
    _remember(tx, news.id, user_id, named, now)
    return news.id


def _look(tx: Tx, news: Subscription) -> None:
    """Keep what a look at it found: one that finds it as the last did says since when, and until when, it was so."""
    where = "about = ? AND name = 'status' AND object = ?"
    last = tx.execute(
        f"SELECT amount, at, detail FROM stripe_facts WHERE {where} ORDER BY at DESC LIMIT 1", (news.id, PULLED)
    ).fetchone()
    first = news.at
    if last is not None and last[2] == news.status:
        first = last[0]
        tx.execute(f"DELETE FROM stripe_facts WHERE {where} AND at = ?", (news.id, PULLED, last[1]))
    keep(tx, Fact(news.id, "status", PULLED, first, news.at, news.status))


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


def plans_paid(facts: Iterable[Fact], terms: Terms) -> dict[str, Paid]:
    """What a subscription has paid for at each price that gives a plan. The last period goes on for the grace while the
    next payment is expected: nothing is given for that before it comes."""
    found: dict[str, Paid] = {}
    for price in () if terms.plans is None else terms.plans.prices:
        stands = fold(facts, frozenset((price,)), prorated=True)
        if stands.until is not None:
            until = iso(stands.until)
            if stands.last and stands.status in CURRENT:
                until = later(until, terms.pro_grace_s)
            found[price] = Paid(iso(stands.since), iso(stands.to), until)
    return found


def refold(tx: Tx, subscription: str, terms: Terms, now: str) -> Change:
    """Compute where a subscription stands, and until when its user is Pro by all of theirs."""
    row = tx.execute("SELECT user_id, status, until FROM subscriptions WHERE id = ?", (subscription,)).fetchone()
    assert row is not None, "whatever is known of a subscription, it was remembered with that"
    user_id, status, until = row
    facts = _gather(tx, subscription)
    table = Plans() if terms.plans is None else terms.plans
    given = plans.set_from_subscription(tx, table, user_id, subscription, plans_paid(facts, terms), now)
    stands = fold(facts, prices(tx, subscription, terms))
    paid = None if stands.until is None else iso(stands.until)
    tx.execute(
        "UPDATE subscriptions SET price_id = ?, status = ?, until = ?, updated_at = ? WHERE id = ?",
        (stands.price, stands.status, paid, now, subscription),
    )
    rows = tx.execute(
        "SELECT status, until FROM subscriptions WHERE user_id = ? AND until IS NOT NULL", (user_id,)
    ).fetchall()
    ends = [later(end, terms.pro_grace_s) if state in CURRENT else end for state, end in rows]
    set_paid_pro(tx, user_id, max(ends, default=None))
    changed = [] if (stands.status, paid) == (status, until) else [f"{status} -> {stands.status}"]
    if changed:
        changed.append(f"paid until {paid or 'never'}")
    told = ", ".join([*changed, *given])
    return Change(f"{subscription}: {told}" if told else "")


async def fold_by(store: Store, terms: Terms, now: str) -> list[str]:
    """Fold every subscription anew where that was done by other terms before: prices that give other plans, another
    grace. What has changed. For a start, before anything is served."""
    mapping = {} if terms.plans is None else {price: terms.plans.gives(price) for price in sorted(terms.plans.prices)}
    wanted = msgspec.json.encode({"plans": mapping, "grace_s": terms.pro_grace_s}).decode()
    changes: list[str] = []
    for ids in await store.read(_folded_by_others, wanted):
        changes += await store.write(_refold_all, ids, terms, now)
    await store.write(_note_terms, wanted)
    return changes


def _folded_by_others(tx: Tx, wanted: str) -> list[list[str]]:
    if tx.execute("SELECT 1 FROM folded_by WHERE terms = ?", (wanted,)).fetchone() is not None:
        return []
    ids = [id for (id,) in tx.execute("SELECT id FROM subscriptions ORDER BY id")]
    return [ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE)]


def _refold_all(tx: Tx, ids: list[str], terms: Terms, now: str) -> list[str]:
    return [change.text for id in ids if (change := refold(tx, id, terms, now)).text]


def _note_terms(tx: Tx, terms: str) -> None:
    tx.execute("DELETE FROM folded_by")
    tx.execute("INSERT INTO folded_by VALUES (?)", (terms,))


def iso(seconds: int) -> str:
    """Unix seconds, as all times are written."""
    return written(1000 * seconds)


def running(tx: Tx, user_id: str) -> bool:
    """Whether the user has a subscription that goes on, so that another would be paid for twice; one that is known to
    be paid at other prices alone is none."""
    rows = tx.execute(
        "SELECT status FROM subscriptions AS s WHERE user_id = ? AND (price_id IS NOT NULL"
        " OR NOT EXISTS (SELECT 1 FROM stripe_facts WHERE about = s.id AND name = 'period'))",
        (user_id,),
    ).fetchall()
    return any(status in RUNNING for (status,) in rows)


def invoices(tx: Tx, user_id: str) -> list[dict[str, object]]:
    """What the user has paid for subscriptions: `id`, `type`, `status`, `amount_cents`, `receipt_url`, `created_at`."""
    rows = tx.execute(
        "SELECT f.object, max(f.amount), p.url, max(f.at) FROM subscriptions s"
        " JOIN stripe_facts f ON f.about = s.id AND f.name = 'invoice' LEFT JOIN stripe_pages p ON p.object = f.object"
        " WHERE s.user_id = ? GROUP BY f.object ORDER BY 4 DESC, 1",
        (user_id,),
    ).fetchall()
    return [
        {
            "id": invoice,
            "type": "pro",
            "status": "paid",
            "amount_cents": amount,
            "receipt_url": url,
            "created_at": iso(at),
        }
        for invoice, amount, url, at in rows
    ]
