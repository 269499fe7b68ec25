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


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of a grant, in units (`available` in grains). `used` is what has settled, `held` rounded up."""

    used: int
    held: int
    available: int
    """Below zero where more is used than is granted now."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a period gives a user of one unit: which account it goes to, under which name, and how much it is now."""

    user_id: str
    unit: str
    ref: str
    name: str
    target: int

    def open(self, tx: Tx, now: str) -> int:
        """The account, with what it should have been granted by now."""
        account_id = ledger.open_account(tx, self.user_id, self.unit, now, self.ref)
        granted = tx.execute("SELECT target FROM dues WHERE ref = ?", (self.name,)).fetchone()
        if granted is None or granted[0] != self.target:
            ledger.bring(tx, account_id, "grant", self.name, self.target, now)
        return account_id

    def rest(self, tx: Tx) -> Rest:
        """What is left of it, whether its account is open yet or not."""
        grain = GRAINS[self.unit]
        row = tx.execute(
            "SELECT balance, carry, held, (SELECT coalesce(sum(amount), 0) FROM entries WHERE account_id = accounts.id)"
            " FROM accounts WHERE user_id = ? AND unit = ? AND ref = ?",
            (self.user_id, self.unit, self.ref),
        ).fetchone()
        if row is None:
            return Rest(0, 0, self.target * grain)
        balance, carry, held, entered = row
        used = entered - balance
        return Rest(used, -(-held // grain), (self.target - used) * grain + carry - held)


def tokens(member: Membership, user_id: str) -> Grant:
    """The period's tokens."""
    ref = member.period.ref
    return Grant(user_id, TOKENS, ref, f"plan:{user_id}:{ref}", member.plan.tokens)


def overage(member: Membership, user_id: str) -> Grant:
    """The cents beyond them, up to what may be spent."""
    ref = f"overage:{member.period.ref}"
    return Grant(user_id, OVERAGE, ref, f"{user_id}:{ref}", member.overage_cents)


def shown(tx: Tx, member: Membership, user_id: str) -> dict[str, object]:
    """A user's plan and what is left of it: `plan`, `until`, `quota`, `used`, `held`, `remaining`, `reset`, and of
    what is beyond, in cents, `overage` (`cap_cents`, `used_cents`, `held_cents`, `remaining_cents`; None for nothing).
    """
    rest, beyond = tokens(member, user_id).rest(tx), overage(member, user_id).rest(tx)
    cents = {
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
        "overage": cents if member.overage_cents or beyond.used or beyond.held else None,
    }
