"""What customers buy: our own row of each purchase, and what Stripe said of it, folded into what it is worth.

A purchase is a row of `payments` before Stripe hears of it; its id (`pay_`) is the client reference and the idempotency
key there. What Stripe says is kept as a set (`facts`); a payment's standing is a pure function of that set, so that the
order of events, their repetition, and what is still missing cannot change where it ends. Each fact that comes computes
it again, and the ledger brings what was posted for the payment to what it is worth now. Amounts are cents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from goosestack import ledger
from goosestack.accounts import new_id
from goosestack.clock import later
from goosestack.facts import Fact, disputes, facts_about, keep, keep_first, keep_page, page_about, refunds
from goosestack.notices import tell
from goosestack.plans import Plans
from goosestack.store import Tx
from goosestack.stripe_facts import Charged, Checkout, Dispute, Intent, Refund

CURRENCY = "usd"
PAID = ("paid", "partly_refunded", "refunded", "disputed")
"""The statuses of what was paid, whatever went back since."""
CLOSING_S = 60
"""A checkout that ends sooner than this is not handed out again."""
ABANDONED_S = 3_600
"""A purchase that Stripe has not answered for so long is not taken up again."""


class PaymentError(Exception):
    """What was asked for cannot be bought so; the text says why."""


class Review(Exception):
    """What Stripe said does not fit our row: it grants nothing, and a person must look at it. The text says why."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What payments are judged by: the mode of our key, the price of Pro, whether somebody wants to be told."""

    livemode: bool
    pro_price: str | None = None
    notify: bool = False
    pro_grace_s: int = 0
    """How long Pro lasts beyond a paid period while its subscription goes on: an invoice takes its time."""
    plans: Plans | None = None
    """Those that a subscription's price can give; None where something else says which plan a user has."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A purchase; see the table of that name."""

    id: str
    user_id: str
    kind: str
    """`credits`, `auto` (a top-up that we made by ourselves), `pro`."""
    amount: int
    """What Stripe takes; 0 for Pro at a price that only Stripe knows."""
    granted: int
    """What it adds to the balance, the bonus included."""
    price_id: str | None
    livemode: int
    status: str
    refunded: int
    disputed: int
    failure: str | None
    checkout_id: str | None
    intent_id: str | None
    subscription_id: str | None
    url: str | None
    receipt_url: str | None
    expires_at: str | None
    created_at: str


_COLUMNS = ", ".join(entry.name for entry in fields(Payment))


def find(tx: Tx, column: str, value: str | None) -> Payment | None:
    """The payment with this value in one of its unique columns."""
    assert column in ("id", "checkout_id", "intent_id", "subscription_id")
    row = tx.execute(f"SELECT {_COLUMNS} FROM payments WHERE {column} = ?", (value,)).fetchone()
    return None if row is None else Payment(*row)


# --- the fold -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a payment stands by all that is known of it."""

    status: str | None
    """None where nothing is known: it is as it was made."""
    target: int
    """What it is worth to the balance now."""
    refunded: int = 0
    disputed: int = 0
    failure: str | None = None
    doubt: str | None = None
    """What a person must look at."""


def fold(amount: int, granted: int, facts: Iterable[Fact]) -> Standing:
    """A payment's standing, from the set of facts about it. What goes back takes its part of the bonus with it, so
    that none is left of a payment that went back whole."""
    known = set(facts)
    refunded = refunds(known)
    disputed, doubt = disputes(known, CURRENCY)
    names = {fact.name for fact in known}
    back = min(amount, refunded + disputed)
    paid = "paid" in names
    target = granted - -(-granted * back // amount) if paid and amount else 0
    status: str | None = next((name for name in ("paid", "failed", "expired", "unpaid") if name in names), None)
    if paid and disputed:
        status = "disputed"
    elif paid and refunded:
        status = "refunded" if refunded >= amount else "partly_refunded"
    failures = sorted(fact.detail for fact in known if fact.name == "failed" and fact.detail)
    return Standing(
        status=status,
        target=target,
        refunded=min(amount, refunded),
        disputed=disputed,
        failure=failures[-1] if failures and status == "failed" else None,
        doubt=doubt,
    )


# --- purchases ------------------------------------------------------------------------------------------------


def begin(
    tx: Tx,
    user_id: str,
    kind: str,
    amount: int,
    granted: int,
    price_id: str | None,
    key: str | None,
    terms: Terms,
    now: str,
) -> Payment:
    """The row of a purchase: a new one, or one whose checkout is still open. With an idempotency key it is the one
    that the key was used for before. Raises PaymentError where that was another purchase."""
    if key is not None:
        row = tx.execute(
            "SELECT payment_id FROM payment_requests WHERE user_id = ? AND key = ?", (user_id, key)
        ).fetchone()
        if row is not None:
            known = find(tx, "id", row[0])
            assert known is not None
            if (known.kind, known.kind == "pro" or known.amount == amount) != (kind, True):
                raise PaymentError("this `Idempotency-Key` was used for another purchase")
            return known
    row = tx.execute(
        f"SELECT {_COLUMNS} FROM payments WHERE user_id = ? AND kind = ? AND amount = ? AND granted = ?"
        " AND coalesce(price_id, '') = ? AND livemode = ?"
        " AND ((status = 'open' AND expires_at > ?) OR (status = 'new' AND created_at > ?)) ORDER BY id DESC LIMIT 1",
        (
            *(user_id, kind, amount, granted, price_id or "", int(terms.livemode)),
            *(later(now, CLOSING_S), later(now, -ABANDONED_S)),
        ),
    ).fetchone()
    payment = add(tx, user_id, kind, amount, granted, price_id, terms, now) if row is None else Payment(*row)
    if key is not None:
        tx.execute("INSERT INTO payment_requests VALUES (?, ?, ?, ?)", (user_id, key, payment.id, now))
    return payment


def add(
    tx: Tx,
    user_id: str,
    kind: str,
    amount: int,
    granted: int,
    price_id: str | None,
    terms: Terms,
    now: str,
    id: str | None = None,
) -> Payment:
    """A new row, before Stripe hears of it."""
    row = tx.execute(
        "INSERT INTO payments (id, user_id, kind, amount, granted, price_id, livemode, status, created_at, updated_at)"
        f" VALUES (?, ?, ?, ?, ?, ?, ?, 'new', ?, ?) RETURNING {_COLUMNS}",
        (id or new_id("pay_"), user_id, kind, amount, granted, price_id, int(terms.livemode), now, now),
    ).fetchone()
    return Payment(*row)


def opened(tx: Tx, payment_id: str, checkout_id: str, url: str, expires_at: str, now: str) -> None:
    """Stripe has made the checkout; what came of it meanwhile stands."""
    tx.execute(
        "UPDATE payments SET checkout_id = ?, url = ?, expires_at = ?, updated_at = ?,"
        " status = CASE status WHEN 'new' THEN 'open' ELSE status END WHERE id = ?",
        (checkout_id, url, expires_at, now, payment_id),
    )


def given_up(tx: Tx, payment_id: str, failure: str, terms: Terms, now: str) -> None:
    """Stripe refused to begin with it."""
    keep(tx, Fact(payment_id, "failed", payment_id, detail=failure))
    refold(tx, payment_id, terms, now)


def told_of(payment: Payment) -> dict[str, str]:
    """What Stripe keeps of our row, so that it could be made again from there."""
    told = {"payment": payment.id, "user": payment.user_id, "kind": payment.kind}
    told |= {"amount": str(payment.amount), "granted": str(payment.granted)}
    return told if payment.price_id is None else {**told, "price": payment.price_id}


def customer_of(tx: Tx, user_id: str) -> tuple[str | None, str]:
    """The user's id at Stripe, where there is one, and e-mail."""
    row = tx.execute("SELECT stripe_customer_id, email FROM users WHERE id = ?", (user_id,)).fetchone()
    return row[0], row[1]


def set_customer(tx: Tx, user_id: str, customer: str) -> str:
    """Remember the user's id at Stripe; the one that is known already wins."""
    tx.execute(
        "UPDATE users SET stripe_customer_id = ? WHERE id = ? AND stripe_customer_id IS NULL", (customer, user_id)
    )
    found = customer_of(tx, user_id)[0]
    assert found is not None
    return found


def user_of_customer(tx: Tx, customer: str | None) -> str | None:
    """Whose id at Stripe this is."""
    row = tx.execute("SELECT id FROM users WHERE stripe_customer_id = ?", (customer,)).fetchone()
    return None if row is None else str(row[0])


def of_user(tx: Tx, user_id: str, limit: int) -> Sequence[Payment]:
    """A user's purchases, the latest first."""
    rows = tx.execute(
        f"SELECT {_COLUMNS} FROM payments WHERE user_id = ? ORDER BY id DESC LIMIT ?", (user_id, limit)
    ).fetchall()
    return [Payment(*row) for row in rows]


# --- what Stripe says of them ---------------------------------------------------------------------------------


def note_checkout(tx: Tx, news: Checkout, now: str) -> Payment | None:
    """Keep what a checkout says; the payment that it is of, None where it is none of ours. Raises Review."""
    payment = find(tx, "checkout_id", news.id)
    for name in (news.reference, news.metadata.get("payment")):
        payment = payment or find(tx, "id", name)
    if payment is None:
        if str(news.reference).startswith("pay_"):
            raise Review(f"there is no payment {news.reference}")
        return None
    _compare(payment, _expected(tx, payment, news))
    if news.state != "open":
        keep(tx, Fact(payment.id, news.state, news.id, news.amount))
    tx.execute(
        "UPDATE payments SET checkout_id = ?, intent_id = coalesce(intent_id, ?),"
        " subscription_id = coalesce(subscription_id, ?), updated_at = ? WHERE id = ?",
        (news.id, news.intent if payment.kind == "credits" else None, news.subscription, now, payment.id),
    )
    return payment


Expectation = tuple[str, object, object]


def _expected(tx: Tx, payment: Payment, news: Checkout) -> list[Expectation]:
    """What a checkout must say to be of this payment: name, what it says, what it should."""
    customer, _ = customer_of(tx, payment.user_id)
    found: list[Expectation] = [
        ("id", news.id, payment.checkout_id or news.id),
        ("client_reference_id", news.reference, payment.id),
        ("metadata.payment", news.metadata.get("payment"), payment.id),
        ("mode", news.mode, "subscription" if payment.kind == "pro" else "payment"),
        ("livemode", int(news.livemode), payment.livemode),
        ("customer", news.customer, customer or ""),
    ]
    if payment.kind != "pro":
        found.append(("subscription", news.subscription, None))
    if news.state not in ("open", "expired") and payment.price_id is None:
        found += [
            ("amount_total", news.amount, payment.amount),
            ("amount_subtotal", news.subtotal, payment.amount),
            ("currency", news.currency, CURRENCY),
        ]
    if news.state == "paid":
        column, link = ("subscription_id", news.subscription) if payment.kind == "pro" else ("intent_id", news.intent)
        other = find(tx, column, link)
        found.append((column, link is not None and other in (None, payment), True))
        known = payment.subscription_id if payment.kind == "pro" else payment.intent_id
        found.append((column, known or link, link))
    return found


def _compare(payment: Payment, expectations: Iterable[Expectation]) -> None:
    for name, said, expected in expectations:
        if said != expected:
            raise Review(f"{payment.id}: {name} is {said}, and should be {expected}")


def note_intent(tx: Tx, news: Intent, now: str) -> Payment | None:
    """Keep what a payment intent says. A checkout's is a link, to what may be said of it later; our own is the whole
    story of an automatic top-up."""
    payment = find(tx, "intent_id", news.id) or find(tx, "id", news.metadata.get("payment"))
    if payment is None or payment.kind == "pro":
        return None
    customer, _ = customer_of(tx, payment.user_id)
    _compare(
        payment,
        (
            ("payment_intent", news.id, payment.intent_id or news.id),
            ("metadata.payment", news.metadata.get("payment"), payment.id),
            ("livemode", int(news.livemode), payment.livemode),
            ("customer", news.customer, customer or ""),
            ("amount", news.amount, payment.amount),
            ("currency", news.currency, CURRENCY),
        ),
    )
    if payment.kind == "auto":
        name = {"succeeded": "paid", "processing": "unpaid", "failed": "failed", "canceled": "failed"}.get(news.state)
        if name is not None:
            keep(tx, Fact(payment.id, name, news.id, news.amount, detail=news.failure or ""))
    tx.execute("UPDATE payments SET intent_id = ?, updated_at = ? WHERE id = ?", (news.id, now, payment.id))
    return payment


def note_money(tx: Tx, news: Charged | Refund | Dispute) -> Payment | None:
    """Keep what is said of money that was taken, went back, or is fought over: also where it cannot be told yet whose
    it was, since that may come later."""
    match news:
        case Charged():
            if news.refunded:
                keep_first(tx, Fact(news.intent, "refunded", news.id, news.refunded, news.at))
            keep_page(tx, news.intent, news.id, news.receipt_url, news.at)
        case Refund():
            keep(tx, Fact(news.intent, "refund", news.id, news.amount, news.created))
            if news.failed_at is not None:
                keep_first(tx, Fact(news.intent, "refund_failed", news.id, news.amount, news.failed_at))
        case _:  # a Dispute
            facts = (Fact(news.intent, state, news.id, news.amount, detail=news.currency) for state in news.states)
            keep(tx, *sorted(facts))
    return find(tx, "intent_id", news.intent)


@dataclass(frozen=True, slots=True)
class Change:
    """What came of computing a standing again; `text` is empty where nothing is other than it was."""

    text: str = ""
    doubt: str | None = None


def refold(tx: Tx, payment_id: str, terms: Terms, now: str) -> Change:
    """Compute where a payment stands, bring the ledger there, and tell of what went wrong."""
    payment = find(tx, "id", payment_id)
    assert payment is not None
    standing = fold(payment.amount, payment.granted, facts_about(tx, (payment.id, payment.intent_id)))
    if standing.status is None:
        return Change()
    posted = 0
    if payment.kind != "pro" and (standing.status in PAID or ledger.has_due(tx, payment.id)):
        account_id = ledger.open_account(tx, payment.user_id, "usd_cents", now)
        kind = _kind(payment, standing) if ledger.has_due(tx, payment.id) else "topup"
        before = ledger.target_of(tx, payment.id)
        ledger.bring(tx, account_id, kind, payment.id, standing.target, now)
        posted = standing.target - before
    tx.execute(
        "UPDATE payments SET status = ?, refunded = ?, disputed = ?, failure = ?,"
        " receipt_url = coalesce(?, receipt_url), updated_at = ? WHERE id = ?",
        (
            *(standing.status, standing.refunded, standing.disputed, standing.failure),
            *(page_about(tx, payment.intent_id), now, payment.id),
        ),
    )
    if standing.status != payment.status:
        _tell_of(tx, payment, standing, terms, now)
    if posted == 0 and standing.status == payment.status:
        return Change(doubt=standing.doubt)
    return Change(f"{payment.id}: {payment.status} -> {standing.status}, {posted:+d} cents", standing.doubt)


def _kind(before: Payment, standing: Standing) -> str:
    """Of the entry that a difference makes: by what has changed."""
    if standing.disputed != before.disputed:
        return "reversal"
    return "refund" if standing.refunded != before.refunded else "topup"


def _tell_of(tx: Tx, payment: Payment, standing: Standing, terms: Terms, now: str) -> None:
    if terms.notify and standing.status in ("failed", "disputed"):
        told: dict[str, object] = {
            "user_id": payment.user_id,
            "payment_id": payment.id,
            "kind": payment.kind,
            "amount_cents": payment.amount,
            "reason": standing.failure,
        }
        tell(tx, f"payment.{standing.status}", told, now)
