"""The accounts of a period: a plan's tokens, and the cents beyond them.

Either is opened by the first request of a period that needs it, and granted what the plan says by one entry. From then
on it is held and settled by the ledger's own verbs. Where the plan or the cap changes within the period, the grant is
brought to what it should be now: an upgrade adds the difference; after a plan has lapsed, what is left of it is
taken back. What was used of a period is never forgotten within it.
"""

from __future__ import annotations

from dataclasses import dataclass

from goosestack import ledger
from goosestack.ledger import GRAINS
from goosestack.plans import Membership
from goosestack.store import Tx

TOKENS, OVERAGE = "tokens", "usd_cents"
"""The units of the two accounts."""


def open_tokens(tx: Tx, member: Membership, user_id: str, now: str) -> int:
    """The account of the period's tokens, with what the plan gives."""
    period = member.period.ref
    return _open(tx, user_id, TOKENS, period, f"plan:{user_id}:{period}", member.plan.tokens, now)


def open_overage(tx: Tx, member: Membership, user_id: str, now: str) -> int:
    """The account of the period's cents beyond the plan, with what may be spent."""
    ref = _overage_ref(member)
    return _open(tx, user_id, OVERAGE, ref, f"{user_id}:{ref}", member.overage_cents, now)


def _overage_ref(member: Membership) -> str:
    return f"overage:{member.period.ref}"


def _open(tx: Tx, user_id: str, unit: str, ref: str, grant: str, target: int, now: str) -> int:
    account_id = ledger.open_account(tx, user_id, unit, now, ref)
    granted = tx.execute("SELECT target FROM dues WHERE ref = ?", (grant,)).fetchone()
    if granted is None or granted[0] != target:
        ledger.bring(tx, account_id, "grant", grant, target, now)
    return account_id


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of a grant, in units (`available` in grains). `used` is what has settled, `held` rounded up."""

    used: int
    held: int
    available: int
    """Below zero where more is used than is granted now."""


def tokens_of(tx: Tx, member: Membership, user_id: str) -> Rest:
    """The period's tokens, whether their account is open yet or not."""
    return _rest(tx, user_id, TOKENS, member.period.ref, member.plan.tokens)


def overage_of(tx: Tx, member: Membership, user_id: str) -> Rest:
    """The same of the cents beyond them."""
    return _rest(tx, user_id, OVERAGE, _overage_ref(member), member.overage_cents)


def _rest(tx: Tx, user_id: str, unit: str, ref: str, granted: int) -> Rest:
    grain = GRAINS[unit]
    row = tx.execute(
        "SELECT balance, carry, held, (SELECT coalesce(sum(amount), 0) FROM entries WHERE account_id = accounts.id)"
        " FROM accounts WHERE user_id = ? AND unit = ? AND ref = ?",
        (user_id, unit, ref),
    ).fetchone()
    if row is None:
        return Rest(0, 0, granted * grain)
    balance, carry, held, entered = row
    used = entered - balance
    return Rest(used, -(-held // grain), (granted - used) * grain + carry - held)


def shown(tx: Tx, member: Membership, user_id: str) -> dict[str, object]:
    """A user's plan and what is left of it: `plan`, `until`, `quota`, `used`, `held`, `remaining`, `reset`, and of
    what is beyond, in cents, `overage` (`cap_cents`, `used_cents`, `held_cents`, `remaining_cents`; None for nothing).
    """
    rest, beyond = tokens_of(tx, member, user_id), overage_of(tx, member, user_id)
    overage = {
        "cap_cents": member.overage_cents,
        "used_cents": beyond.used,
        "held_cents": beyond.held,
        "remaining_cents": max(0, beyond.available // GRAINS[OVERAGE]),
    }
    return {
        "plan": member.plan.name,
        "until": member.until,
        "quota": member.plan.tokens,
        "used": rest.used,
        "held": rest.held,
        "remaining": max(0, rest.available),
        "reset": member.period.ends_at,
        "overage": overage if member.overage_cents or beyond.used else None,
    }
