"""Automatic top-ups: below a balance, the saved card is charged for an amount, up to a cap in any 24 hours; the user
has chosen all three.

Everything that decides is in the rows of the payments themselves: one that is in flight, how many have failed since one
was paid, what was spent since yesterday. An attempt is a row before Stripe hears of it, under whose id it is asked for
again until the answer is known.
"""

from __future__ import annotations

from goosestack import ledger, payments
from goosestack.notices import later
from goosestack.payments import Payment, Terms
from goosestack.store import Tx

BACK_OFF_S = (3_600, 14_400)
"""After the first and the second failure in a row; after the next one it rests until the user pays or sets it anew."""

ASKS_THE_CUSTOMER = ("authentication_required", "requires_action")
"""Failures that another attempt without the customer would only repeat."""

DAY_S = 86_400


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
    failed = _failures(tx, user_id, row[4])
    return {
        "enabled": True,
        "below": row[1],
        "amount": row[2],
        "daily_cap": row[3],
        "problem": failed[0][0] if failed else None,
        "resting": _rests(failed),
    }


def wanted(tx: Tx) -> list[str]:
    """The users whose balance is below what they chose, and who owe nothing; and those with an attempt in flight."""
    rows = tx.execute(
        "SELECT t.user_id FROM auto_topups t JOIN accounts a ON a.user_id = t.user_id AND a.unit = 'usd_cents'"
        " AND a.ref = '' WHERE t.enabled = 1 AND a.balance < t.below AND a.debt = 0"
        " UNION SELECT user_id FROM payments WHERE kind = 'auto' AND status = 'new' ORDER BY 1"
    ).fetchall()
    return [str(row[0]) for row in rows]


def begin(tx: Tx, user_id: str, topups: dict[int, int], terms: Terms, now: str) -> Payment | None:
    """The attempt that is to be made now: the one whose answer is not known yet, or a new one; None for none."""
    row = tx.execute(
        "SELECT id, status FROM payments WHERE user_id = ? AND kind = 'auto' AND status IN ('new', 'unpaid')"
        " ORDER BY id",
        (user_id,),
    ).fetchone()
    if row is not None:
        return payments.find(tx, "id", row[0]) if row[1] == "new" else None
    row = tx.execute(
        "SELECT below, amount, daily_cap, updated_at FROM auto_topups WHERE user_id = ? AND enabled = 1", (user_id,)
    ).fetchone()
    if row is None:
        return None
    below, amount, cap, since = row
    account_id = ledger.open_account(tx, user_id, "usd_cents", now)
    balance, debt = tx.execute("SELECT balance, debt FROM accounts WHERE id = ?", (account_id,)).fetchone()
    failed = _failures(tx, user_id, since)
    (spent,) = tx.execute(
        "SELECT coalesce(sum(amount), 0) FROM payments WHERE user_id = ? AND kind = 'auto' AND status <> 'failed'"
        " AND created_at > ?",
        (user_id, later(now, -DAY_S)),
    ).fetchone()
    waits = failed and later(failed[0][1], BACK_OFF_S[min(len(failed), len(BACK_OFF_S)) - 1]) > now
    if balance >= below or debt or spent + amount > cap or amount not in topups or _rests(failed) or waits:
        return None
    return payments.add(tx, user_id, "auto", amount, topups[amount], None, terms, now)


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
        if kind == "auto" and status == "failed":
            found.append((failure or "declined", created_at))
    return found


def _rests(failed: list[tuple[str, str]]) -> bool:
    return len(failed) > len(BACK_OFF_S) or bool(failed and failed[0][0] in ASKS_THE_CUSTOMER)
