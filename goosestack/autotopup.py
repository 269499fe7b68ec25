"""Automatic top-ups: below a balance, the saved card is charged for an amount, up to a cap in any 24 hours; the user
has chosen all three.

Everything that decides is in rows. A top-up is a payment before Stripe hears of it, under whose id it is asked for, and
an *attempt* beside it until its outcome is known: only what has an attempt is ever charged, so that a payment that was
found at Stripe, or whose attempt has ended, never is. An attempt takes steps, each at its time:

    ask     charge the card, under the payment's id: as often as it takes, it is one charge
    look    look for the charge at Stripe, and never ask again: the user has turned it off, or Stripe would only repeat
            an error, or has forgotten the id by now
    link    the bank wants its customer: make a checkout, and tell of it
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from goosestack import ledger, payments
from goosestack.clock import later
from goosestack.notices import tell
from goosestack.payments import Payment, Terms
from goosestack.store import Tx

BACK_OFF_S = (3_600, 14_400)
"""After the first and the second failure in a row; after the next one it rests until the user pays or sets it anew."""

ASKS_THE_CUSTOMER = ("authentication_required", "requires_action")
"""Failures that another attempt without the customer would only repeat."""

NOT_MADE = "not_made"
"""Of an attempt that never came to Stripe, as far as could be found out: no failure of the card."""

DOUBTFUL = "review"
"""Of an attempt whose outcome does not fit our row: money may have been taken, and a person must look at it."""

RETRY_S = (15, 60, 300, 900, 3_600)
"""Between the steps of one attempt while its outcome is unknown; the last of them again and again."""

ASKED_S = 20 * 3_600
"""Stripe remembers an id for a day; before that is over, an attempt is looked for instead of repeated."""

LOOKED_S = 3_600
"""How long after it was last asked for a charge is looked for, before it counts as not made."""

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Attempt:
    """A step of an attempt, to be made now."""

    payment: Payment
    step: str
    tries: int
    """The steps before this one whose outcome is unknown."""
    asked_at: str
    """When Stripe was last asked for it, or is about to be."""


def enable(tx: Tx, user_id: str, below: int, amount: int, daily_cap: int, now: str) -> None:
    """Turn it on, all in cents; what failed before is forgotten."""
    tx.execute(
        "INSERT INTO auto_topups (user_id, enabled, below, amount, daily_cap, updated_at) VALUES (?, 1, ?, ?, ?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET enabled = 1, below = excluded.below, amount = excluded.amount,"
        " daily_cap = excluded.daily_cap, updated_at = excluded.updated_at",
        (user_id, below, amount, daily_cap, now),
    )


def disable(tx: Tx, user_id: str, now: str) -> None:
    """Turn it off."""
    tx.execute("UPDATE auto_topups SET enabled = 0, updated_at = ? WHERE user_id = ?", (now, user_id))


def shown(tx: Tx, user_id: str) -> dict[str, object]:
    """What the user has set, and why it rests, where it does."""
    row = tx.execute(
        "SELECT enabled, below, amount, daily_cap, updated_at FROM auto_topups WHERE user_id = ?", (user_id,)
    ).fetchone()
    if row is None or not row[0]:
        return {"enabled": False}
    failed, back = _failures(tx, user_id, row[4]), _went_back(tx, user_id, row[4])
    return {
        "enabled": True,
        "below": row[1],
        "amount": row[2],
        "daily_cap": row[3],
        "problem": back or (failed[0][0] if failed else None),
        "resting": back is not None or _rests(failed),
    }


def wanted(tx: Tx, now: str) -> list[str]:
    """The users whose balance is below what they chose, and who owe nothing; and those of whom a step is due."""
    rows = tx.execute(
        "SELECT t.user_id FROM auto_topups t JOIN accounts a ON a.user_id = t.user_id AND a.unit = 'usd_cents'"
        " AND a.ref = '' WHERE t.enabled = 1 AND a.balance < t.below AND a.debt = 0"
        " AND NOT EXISTS (SELECT 1 FROM attempts b JOIN payments p ON p.id = b.payment_id WHERE p.user_id = t.user_id)"
        " UNION SELECT p.user_id FROM attempts b JOIN payments p ON p.id = b.payment_id WHERE b.next_at <= ?"
        " ORDER BY 1",
        (now,),
    ).fetchall()
    return [str(row[0]) for row in rows]


# --- an attempt, step by step ---------------------------------------------------------------------------------


def begin(tx: Tx, user_id: str, topups: dict[int, int], terms: Terms, now: str) -> Attempt | None:
    """The step that is to be made now: of the attempt whose outcome is not known yet, or of a new one; None for
    none."""
    row = tx.execute(
        "SELECT b.payment_id, b.step, b.tries, b.asked_at, b.next_at FROM attempts b JOIN payments p"
        " ON p.id = b.payment_id WHERE p.user_id = ? ORDER BY b.payment_id LIMIT 1",
        (user_id,),
    ).fetchone()
    if row is not None:
        payment = payments.find(tx, "id", row[0])
        assert payment is not None
        return None if row[4] > now else _resume(tx, Attempt(payment, *row[1:4]), now)
    if not _due(tx, user_id, topups, now):
        return None
    (amount,) = tx.execute("SELECT amount FROM auto_topups WHERE user_id = ?", (user_id,)).fetchone()
    payment = payments.add(tx, user_id, "auto", amount, topups[amount], None, terms, now)
    tx.execute("INSERT INTO attempts VALUES (?, 'ask', 0, ?, ?)", (payment.id, now, now))
    return Attempt(payment, "ask", 0, now)


def _resume(tx: Tx, attempt: Attempt, now: str) -> Attempt | None:
    """The next step of an attempt, as things are now."""
    payment = attempt.payment
    if attempt.step != "link" and payment.status != "new":  # Stripe has told of it meanwhile
        if not conclude(tx, payment.id, now):
            return None
        return replace(attempt, step="link")
    if attempt.step != "ask":
        return attempt
    enabled = tx.execute("SELECT 1 FROM auto_topups WHERE user_id = ? AND enabled = 1", (payment.user_id,)).fetchone()
    if enabled is None or later(payment.created_at, ASKED_S) < now:
        tx.execute("UPDATE attempts SET step = 'look' WHERE payment_id = ?", (payment.id,))
        return replace(attempt, step="look")
    tx.execute("UPDATE attempts SET asked_at = ? WHERE payment_id = ?", (now, payment.id))
    return replace(attempt, asked_at=now)


def put_off(tx: Tx, attempt: Attempt, now: str, *, look: bool = False) -> None:
    """The step had no outcome: another is made later; with `look`, Stripe is not asked again."""
    wait = RETRY_S[min(attempt.tries, len(RETRY_S) - 1)]
    tx.execute(
        "UPDATE attempts SET tries = tries + 1, next_at = ?, step = CASE WHEN ? THEN 'look' ELSE step END"
        " WHERE payment_id = ?",
        (later(now, wait), look, attempt.payment.id),
    )


def over(attempt: Attempt, now: str) -> bool:
    """Whether a charge that was not found until now is none."""
    return later(attempt.asked_at, LOOKED_S) < now


def failed(tx: Tx, payment_id: str, why: str, terms: Terms, now: str) -> None:
    """An attempt was not made, or not taken, unless Stripe has told otherwise meanwhile."""
    payment = payments.find(tx, "id", payment_id)
    if payment is not None and payment.status == "new":
        # nobody's card has failed where nobody could be asked
        payments.given_up(tx, payment_id, why, replace(terms, notify=terms.notify and why != NOT_MADE), now)
    conclude(tx, payment_id, now)


def conclude(tx: Tx, payment_id: str, now: str) -> bool:
    """The outcome is known: the attempt ends, or asks the customer; whether it does the latter."""
    payment = payments.find(tx, "id", payment_id)
    assert payment is not None and payment.status != "new"
    if payment.status == "failed" and payment.failure in ASKS_THE_CUSTOMER:
        tx.execute(
            "UPDATE attempts SET step = 'link', tries = 0, next_at = ? WHERE payment_id = ? AND step <> 'link'",
            (now, payment_id),
        )
        return True
    tx.execute("DELETE FROM attempts WHERE payment_id = ?", (payment_id,))
    return False


def linked(tx: Tx, attempt: Attempt, checkout: Payment | None, terms: Terms, now: str) -> None:
    """The customer has a checkout instead, or none because the amount is sold no more: it is told of, and the attempt
    ends."""
    if tx.execute("DELETE FROM attempts WHERE payment_id = ?", (attempt.payment.id,)).rowcount and terms.notify:
        about = checkout or attempt.payment
        tell(tx, "payment.action_required", {"user_id": about.user_id, "payment_id": about.id, "url": about.url}, now)


# --- whether it is time for one -------------------------------------------------------------------------------


def _due(tx: Tx, user_id: str, topups: dict[int, int], now: str) -> bool:
    """Whether a new attempt is to be made: what the user has set allows it, and nothing speaks against it."""
    row = tx.execute(
        "SELECT below, amount, daily_cap, updated_at FROM auto_topups WHERE user_id = ? AND enabled = 1", (user_id,)
    ).fetchone()
    if row is None:
        return False
    below, amount, cap, since = row
    account_id = ledger.open_account(tx, user_id, "usd_cents", now)
    balance, debt = tx.execute("SELECT balance, debt FROM accounts WHERE id = ?", (account_id,)).fetchone()
    (on_its_way,) = tx.execute(
        "SELECT count(*) FROM payments WHERE user_id = ? AND kind = 'auto' AND status = 'unpaid'", (user_id,)
    ).fetchone()
    if balance >= below or debt or on_its_way or amount not in topups:
        return False
    (spent,) = tx.execute(
        "SELECT coalesce(sum(amount), 0) FROM payments WHERE user_id = ? AND kind = 'auto' AND status <> 'failed'"
        " AND created_at > ?",
        (user_id, later(now, -DAY_S)),
    ).fetchone()
    failures = _failures(tx, user_id, since)
    if spent + amount > cap or _rests(failures) or _went_back(tx, user_id, since) is not None:
        return False
    return not failures or later(failures[0][1], BACK_OFF_S[len(failures) - 1]) <= now


def _failures(tx: Tx, user_id: str, since: str) -> list[tuple[str, str]]:
    """The attempts that failed in a row, the latest first: why, and when they were made. What the user paid, or set,
    since then ends the row."""
    rows = tx.execute(
        "SELECT kind, status, failure, created_at FROM payments WHERE user_id = ? AND kind IN ('auto', 'credits')"
        " AND created_at > ? ORDER BY created_at DESC, id DESC LIMIT 20",
        (user_id, since),
    ).fetchall()
    found: list[tuple[str, str]] = []
    for kind, status, failure, created_at in rows:
        if status in payments.PAID:
            break
        if kind == "auto" and status == "failed" and failure != NOT_MADE:
            found.append((failure or "declined", created_at))
    return found


def _rests(failed: list[tuple[str, str]]) -> bool:
    return len(failed) > len(BACK_OFF_S) or bool(failed and failed[0][0] in (*ASKS_THE_CUSTOMER, DOUBTFUL))


def _went_back(tx: Tx, user_id: str, since: str) -> str | None:
    """`refunded` or `disputed` where money of this user's went back, and they have neither set this nor bought by hand
    since: whoever gave it back, or took it, does not want the card to be charged for it again.

    It is seen twice: in what was taken back, at the time when it was; and in the payment, for one that had gone back
    before our books knew of it."""
    taken = tx.execute(
        "SELECT e.kind FROM entries e JOIN accounts a ON a.id = e.account_id"
        " WHERE a.user_id = ? AND a.unit = 'usd_cents' AND e.cause IS NOT NULL AND e.amount < 0 AND e.created_at > ?"
        " AND NOT EXISTS (SELECT 1 FROM payments p JOIN entries t ON t.cause = p.id WHERE p.user_id = a.user_id"
        "  AND p.kind = 'credits' AND p.status = 'paid' AND t.kind = 'topup' AND t.created_at >= e.created_at)"
        " ORDER BY e.seq DESC LIMIT 1",
        (user_id, since),
    ).fetchone()
    if taken is not None:
        return "disputed" if taken[0] == "reversal" else "refunded"
    gone = tx.execute(
        "SELECT p.disputed FROM payments p WHERE p.user_id = ? AND p.kind IN ('auto', 'credits')"
        " AND p.status IN ('partly_refunded', 'refunded', 'disputed') AND p.created_at > ?"
        " AND NOT EXISTS (SELECT 1 FROM payments q WHERE q.user_id = p.user_id AND q.kind = 'credits'"
        "  AND q.status = 'paid' AND q.created_at > p.created_at)"
        " ORDER BY p.created_at DESC, p.id DESC LIMIT 1",
        (user_id, since),
    ).fetchone()
    return None if gone is None else "disputed" if gone[0] else "refunded"
