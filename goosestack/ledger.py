"""The heart: accounts, holds and entries. Every verb is a synchronous function of an open transaction.

    available --authorize--> held --settle(actual)--> settled    charged, the rest returned
                              `-----release---------> released   nothing charged

A hold is its `usage_log` row: inserted before anything is sent, completed when it settles. The ledger has never
heard of HTTP, models or prices. It counts holds and costs in *grains* of the account's unit (`GRAINS`) and bills
whole units: what is left of the last unit billed is the account's `carry`, so that the sum of many small costs
rounds up, and not each of them. For every account, always:

    balance = sum(entries) - sum(billed)          units
    carry   = sum(billed) * grain - sum(charged)  grains, 0 <= carry < grain
    held    = sum(held of open holds)             grains, <= balance * grain + carry
    debt    = sum(posted - target of dues)        units; while there is any, less than a unit is available

Every verb is idempotent: entries by `(kind, ref)`, dues by their target, holds by their id and status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from goosestack.store import Tx

GRAINS: Mapping[str, int] = {"usd_cents": 10_000_000, "usdc_micro": 1_000, "tokens": 1}
"""Grains per unit. A grain of money is a nanodollar (a micro-USDC is taken as a micro-dollar)."""

MOST_UNITS = 100_000_000_000
"""The largest balance, in units: far above any account, and far below what 64 bits hold in grains."""

COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_long_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "reasoning_tokens",
    "web_searches",
)
"""What a usage row counts beside money, in the order of its columns."""


class LedgerError(Exception):
    """A verb was asked for something that the books do not allow; nothing was changed."""


@dataclass(frozen=True, slots=True)
class NewHold:
    """What `authorize` writes down of a request before anything is sent."""

    id: str
    user_id: str
    process_id: int
    wire: str
    provider: str
    model: str
    key_id: str | None = None
    account_id: int | None = None
    """The payer; None where nobody's account pays (the caller's own provider key, a free call)."""


@dataclass(frozen=True, slots=True)
class Authorized:
    """The answer of `authorize`: `held` grains are set aside, or, where it is None, `available` did not suffice."""

    held: int | None
    available: int
    debt: int = 0
    """Units that must be taken back first: while there are any, nothing is held."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request cost: `amount` in grains of the payer's unit, `nanos` in nanodollars, and what it used."""

    amount: int
    nanos: int
    counts: tuple[int, ...] = (0,) * len(COUNTS)
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """The receipt of a settled hold. `billed` and `balance` count units, the rest grains."""

    status: str
    charged: int
    billed: int
    nanos: int
    shortfall: int
    balance: int
    available: int


# --- accounts and entries -------------------------------------------------------------------------------------


def open_account(tx: Tx, user_id: str, unit: str, now: str, ref: str = "") -> int:
    """The id of the user's account in `unit`, opened with nothing in it where there is none yet."""
    row = tx.execute(
        "SELECT id FROM accounts WHERE user_id = ? AND unit = ? AND ref = ?", (user_id, unit, ref)
    ).fetchone()
    if row is None:
        row = tx.execute(
            "INSERT INTO accounts (user_id, unit, ref, grain, updated_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
            (user_id, unit, ref, GRAINS[unit], now),
        ).fetchone()
    return int(row[0])


def post(
    tx: Tx, account_id: int, kind: str, ref: str, amount: int, now: str, note: str = "", cause: str | None = None
) -> bool:
    """Post an entry of `amount` units (negative takes away); False where `(kind, ref)` was posted before.

    Raises LedgerError where the same ref stands for another movement, where the balance would leave its
    bounds (also by an amount that is none), or where holds stand on what is to be taken away. Where something is owed,
    what is added goes there first. `cause` is the ref of the due that the entry is a part of (see `bring`).
    """
    if not 0 < abs(amount) <= MOST_UNITS:
        raise LedgerError(f"{kind} {ref}: {amount:+d} is no movement")
    seen = tx.execute("SELECT account_id, amount FROM entries WHERE kind = ? AND ref = ?", (kind, ref)).fetchone()
    if seen is not None:
        if (seen[0], seen[1]) != (account_id, amount):
            raise LedgerError(f"{kind} {ref} was posted before, as another movement")
        return False
    moved = tx.execute(
        "UPDATE accounts SET balance = balance + ?, updated_at = ? WHERE id = ?"
        " AND balance + ? BETWEEN 0 AND ? AND (balance + ?) * grain + carry >= held RETURNING debt",
        (amount, now, account_id, amount, MOST_UNITS, amount),
    ).fetchone()
    if moved is None:
        raise LedgerError(f"{kind} {ref}: the account has no room for {amount:+d}")
    tx.execute(
        "INSERT INTO entries (seq, id, account_id, kind, ref, amount, note, cause, created_at)"
        " VALUES ((SELECT coalesce(max(seq), 0) + 1 FROM entries), ?, ?, ?, ?, ?, ?, ?, ?)",
        (f"ent_{kind}_{ref}", account_id, kind, ref, amount, note, cause, now),
    )
    if moved[0] and cause is None:
        _sweep(tx, account_id, now)
    return True


# --- dues: what was posted for a ref, brought to a target -----------------------------------------------------


def bring(tx: Tx, account_id: int, kind: str, ref: str, target: int, now: str) -> int:
    """Bring what was posted for `ref` to `target` units; what is owed of it afterwards, because it is spent or held.

    The difference is posted as entries of this kind, `ref#1`, `ref#2` and so on. What is to be taken back is taken as
    far as it is available, open holds being honoured; the rest is debt, and taken as soon as there is something.
    """
    if not 0 <= target <= MOST_UNITS:
        raise LedgerError(f"{kind} {ref}: {target} is no target")
    due = tx.execute("SELECT account_id, target, posted FROM dues WHERE ref = ?", (ref,)).fetchone()
    if due is None:
        tx.execute(
            "INSERT INTO dues (seq, ref, account_id, kind, target)"
            " VALUES ((SELECT coalesce(max(seq), 0) + 1 FROM dues), ?, ?, ?, 0)",
            (ref, account_id, kind),
        )
        due = (account_id, 0, 0)
    if due[0] != account_id:
        raise LedgerError(f"{kind} {ref} is a movement of another account")
    _, before, posted = due
    lacking = max(0, target - posted)
    if lacking:
        _post_due(tx, account_id, kind, ref, lacking, now)
    if target != before:
        owed = max(0, posted - target) - (posted - before)
        tx.execute("UPDATE dues SET kind = ?, target = ? WHERE ref = ?", (kind, target, ref))
        tx.execute("UPDATE accounts SET debt = debt + ? WHERE id = ?", (owed, account_id))
        _sweep(tx, account_id, now)
    return int(tx.execute("SELECT posted - target FROM dues WHERE ref = ?", (ref,)).fetchone()[0])


def has_due(tx: Tx, ref: str) -> bool:
    """Whether anything was ever posted for `ref` by `bring`."""
    return tx.execute("SELECT 1 FROM dues WHERE ref = ?", (ref,)).fetchone() is not None


def target_of(tx: Tx, ref: str) -> int:
    """What was to be posted for `ref` when it was last brought to anything; 0 where it never was."""
    row = tx.execute("SELECT target FROM dues WHERE ref = ?", (ref,)).fetchone()
    return 0 if row is None else int(row[0])


def _post_due(tx: Tx, account_id: int, kind: str, ref: str, amount: int, now: str) -> None:
    number = tx.execute(
        "UPDATE dues SET posted = posted + ?, entries = entries + 1 WHERE ref = ? RETURNING entries", (amount, ref)
    ).fetchone()[0]
    post(tx, account_id, kind, f"{ref}#{number}", amount, now, cause=ref)


def _sweep(tx: Tx, account_id: int, now: str) -> None:
    """Take what is available for what is owed, the oldest first."""
    available = tx.execute(
        "SELECT (balance * grain + carry - held) / grain FROM accounts WHERE id = ?", (account_id,)
    ).fetchone()[0]
    owed = tx.execute(
        "SELECT ref, kind, posted - target FROM dues WHERE account_id = ? AND posted > target ORDER BY seq",
        (account_id,),
    ).fetchall()
    for ref, kind, due in owed:
        taken = min(due, available)
        if taken == 0:
            return
        _post_due(tx, account_id, kind, ref, -taken, now)
        tx.execute("UPDATE accounts SET debt = debt - ? WHERE id = ?", (taken, account_id))
        available -= taken


# --- the life of a hold ---------------------------------------------------------------------------------------


def authorize(tx: Tx, hold: NewHold, at_least: int, at_most: int, now: str) -> Authorized:
    """Hold as much of `at_most` grains as is available, or, below `at_least`, nothing at all.

    The answer says what was held: what may be spent upstream follows from that, never from a balance read
    earlier. Repeated with the id of an open hold, it answers the same again; a hold that has ended is an error.
    """
    if not 0 <= at_least <= at_most or (hold.account_id is None and at_most > 0):
        raise LedgerError(f"hold {hold.id}: {at_least} to {at_most} cannot be held")
    row = (hold.id, hold.user_id, hold.key_id, hold.process_id, hold.wire, hold.provider, hold.model, at_most, now)
    if hold.account_id is None:
        inserted = tx.execute(_INSERT_FREE, row).fetchone()
    else:
        inserted = tx.execute(_INSERT_PAID, (*row, at_most, at_most, hold.account_id, at_least)).fetchone()
    if inserted is None:
        return _held_before(tx, hold)
    if hold.account_id is None:
        return Authorized(0, 0)
    available = tx.execute(
        "UPDATE accounts SET held = held + ? WHERE id = ? RETURNING balance * grain + carry - held",
        (inserted[0], hold.account_id),
    ).fetchone()
    return Authorized(int(inserted[0]), int(available[0]))


_COLUMNS = (
    "INSERT INTO usage_log (id, user_id, key_id, process_id, wire, provider, model, quote, created_at,"
    " status, held, account_id, unit) "
)
_INSERT_FREE = _COLUMNS + (
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'held', 0, NULL, NULL) ON CONFLICT (id) DO NOTHING RETURNING held"
)
# The one conditional statement of the gate: no row where less than at_least is available, or anything is owed.
_INSERT_PAID = _COLUMNS + (
    "SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, 'held',"
    " CASE WHEN balance * grain + carry - held < ? THEN balance * grain + carry - held ELSE ? END, id, unit"
    " FROM accounts WHERE id = ? AND balance * grain + carry - held >= ? AND debt = 0"
    " ON CONFLICT (id) DO NOTHING RETURNING held"
)


def _held_before(tx: Tx, hold: NewHold) -> Authorized:
    """Why nothing was inserted: the hold stands already, has ended, or cannot be afforded."""
    available = left_in(tx, hold.account_id)
    seen = tx.execute("SELECT status, held, account_id FROM usage_log WHERE id = ?", (hold.id,)).fetchone()
    if seen is None:
        return Authorized(None, available, owed_by(tx, hold.account_id))
    if seen[0] != "held" or seen[2] != hold.account_id:
        raise LedgerError(f"hold {hold.id} was used before")
    return Authorized(int(seen[1]), available)


def left_in(tx: Tx, account_id: int | None) -> int:
    """What an account has left, in grains: its balance and carry, less what is held."""
    row = tx.execute("SELECT balance * grain + carry - held FROM accounts WHERE id = ?", (account_id,)).fetchone()
    return 0 if row is None else int(row[0])


def owed_by(tx: Tx, account_id: int | None) -> int:
    """The account's debt, in units."""
    row = tx.execute("SELECT debt FROM accounts WHERE id = ?", (account_id,)).fetchone()
    return 0 if row is None else int(row[0])


def journal(tx: Tx, hold_id: str, charge: Charge) -> None:
    """Note what an open hold would cost if this process died now; nothing else changes."""
    tx.execute(
        f"UPDATE usage_log SET progress = ?, cost_nanos = ?, {_SET_COUNTS} WHERE id = ? AND status = 'held'",
        (charge.amount, charge.nanos, *charge.counts, hold_id),
    )


_SET_COUNTS = ", ".join(f"{name} = ?" for name in COUNTS)


def settle(tx: Tx, hold_id: str, charge: Charge, reason: str, now: str) -> Settled:
    """Charge an open hold and return the rest of it.

    The charge takes what the account has (this hold and whatever else is available), never more: the
    difference is the row's `shortfall`. Settling again changes nothing, except that a row that was settled on
    an estimate (which is never above the hold, and so never short) is corrected once by a charge that is not one. A
    released hold is an error, and so is a charge below zero: a request never adds to a balance.
    """
    if charge.amount < 0:
        raise LedgerError(f"hold {hold_id} cannot be charged {charge.amount}")
    row = tx.execute(
        "SELECT status, account_id, u.held, estimated, balance, carry, a.held, grain, debt"
        " FROM usage_log u LEFT JOIN accounts a ON a.id = account_id WHERE u.id = ?",
        (hold_id,),
    ).fetchone()
    if row is None or row[0] == "released":
        raise LedgerError(f"hold {hold_id} cannot be settled: it was {row[0] if row else 'never made'}")
    status, account_id, held, estimated, *funds = row
    if status == "settled":
        if estimated and not charge.estimated:
            _correct(tx, hold_id, charge, reason, now)
        return _receipt(tx, hold_id)
    charged, billed, balance, available = 0, 0, 0, 0
    if account_id is not None:
        charged, billed, balance, available = _take(tx, account_id, funds, held, charge.amount, now)
    tx.execute(
        f"UPDATE usage_log SET status = 'settled', reason = ?, charged = ?, billed = ?,"
        " cost_cents = CASE unit WHEN 'usd_cents' THEN ? ELSE 0 END, cost_nanos = ?, shortfall = ?,"
        f" estimated = ?, {_SET_COUNTS}, progress = NULL, ended_at = ?,"
        " settled_seq = (SELECT coalesce(max(settled_seq), 0) + 1 FROM usage_log) WHERE id = ? AND status = 'held'",
        (
            reason,
            charged,
            billed,
            billed,
            charge.nanos,
            charge.amount - charged,
            int(charge.estimated),
            *charge.counts,
            now,
            hold_id,
        ),
    )
    return Settled("settled", charged, billed, charge.nanos, charge.amount - charged, balance, available)


def _take(tx: Tx, account_id: int, funds: Sequence[int], held: int, amount: int, now: str) -> tuple[int, int, int, int]:
    """Take `amount` grains (negative gives back), of which `held` were set aside, from an account that has `funds`
    (balance, carry, held, grain, debt): what was charged and billed, the balance, what is available."""
    balance, carry, all_held, grain, debt = funds
    charged = min(amount, balance * grain + carry - (all_held - held))
    billed = -((carry - charged) // grain)  # units up, so that 0 <= the new carry < grain; 0 while the carry covers it
    balance, carry, all_held = balance - billed, carry + billed * grain - charged, all_held - held
    tx.execute(
        "UPDATE accounts SET balance = ?, carry = ?, held = ?, updated_at = ? WHERE id = ?",
        (balance, carry, all_held, now, account_id),
    )
    if debt:
        _sweep(tx, account_id, now)
        (balance,) = tx.execute("SELECT balance FROM accounts WHERE id = ?", (account_id,)).fetchone()
    return charged, billed, balance, balance * grain + carry - all_held


def _correct(tx: Tx, hold_id: str, charge: Charge, reason: str, now: str) -> None:
    """Replace an estimate by the truth: a row of its own that carries the differences, so that no row that was
    settled ever changes, and whoever reads by `settled_seq` sees the correction as one more event."""
    names = ", ".join(("charged", "cost_nanos", *COUNTS))
    old = tx.execute(
        f"SELECT user_id, key_id, account_id, unit, process_id, wire, provider, model, {names}"
        " FROM usage_log WHERE id = ?",
        (hold_id,),
    ).fetchone()
    if tx.execute("SELECT 1 FROM usage_log WHERE id = ?", (f"{hold_id}.c",)).fetchone() is not None:
        return
    account_id, charged, nanos, counts = old[2], old[8], old[9], old[10:]
    due = charge.amount - charged
    taken, billed = 0, 0
    if account_id is not None:
        funds = tx.execute(
            "SELECT balance, carry, held, grain, debt FROM accounts WHERE id = ?", (account_id,)
        ).fetchone()
        taken, billed, _, _ = _take(tx, account_id, funds, 0, due, now)
    tx.execute(
        f"INSERT INTO usage_log (id, user_id, key_id, account_id, unit, process_id, wire, provider, model, {names},"
        " status, reason, quote, held, billed, cost_cents, shortfall, settled_seq, created_at, ended_at)"
        f" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, {', '.join('?' * (2 + len(COUNTS)))}, 'settled', ?, 0, 0, ?, ?, ?,"
        " (SELECT max(settled_seq) + 1 FROM usage_log), ?, ?)",
        (
            f"{hold_id}.c",
            *old[:8],
            taken,
            charge.nanos - nanos,
            *(new - was for new, was in zip(charge.counts, counts, strict=True)),
            f"correction: {reason}",
            billed,
            billed if old[3] == "usd_cents" else 0,
            due - taken,
            now,
            now,
        ),
    )


def _receipt(tx: Tx, hold_id: str) -> Settled:
    """The receipt of a hold that has ended, a correction included."""
    status, account_id = tx.execute("SELECT status, account_id FROM usage_log WHERE id = ?", (hold_id,)).fetchone()
    sums = tx.execute(
        "SELECT sum(charged), sum(billed), sum(cost_nanos), sum(shortfall) FROM usage_log WHERE id IN (?, ?)",
        (hold_id, f"{hold_id}.c"),
    ).fetchone()
    funds = tx.execute("SELECT balance FROM accounts WHERE id = ?", (account_id,)).fetchone()
    charged, billed, nanos, shortfall = sums
    balance = 0 if funds is None else funds[0]
    return Settled(status, charged, billed, nanos, shortfall, balance, left_in(tx, account_id))


def release(tx: Tx, hold_id: str, reason: str, now: str) -> str:
    """End an open hold without a charge; the answer is the status that the hold has now, `settled` where it was
    settled before, which this does not change. A hold that was never made is an error."""
    row = tx.execute("SELECT status, account_id, held FROM usage_log WHERE id = ?", (hold_id,)).fetchone()
    if row is None:
        raise LedgerError(f"hold {hold_id} cannot be released: it was never made")
    status, account_id, held = row
    if status != "held":
        return str(status)
    tx.execute(
        "UPDATE usage_log SET status = 'released', reason = ?, progress = NULL, cost_nanos = 0, ended_at = ?"
        " WHERE id = ? AND status = 'held'",
        (reason, now, hold_id),
    )
    if account_id is not None:
        debt = tx.execute(
            "UPDATE accounts SET held = held - ? WHERE id = ? RETURNING debt", (held, account_id)
        ).fetchone()
        if debt[0]:
            _sweep(tx, account_id, now)
    return "released"


def recover(tx: Tx, process_id: int, now: str) -> tuple[int, int]:
    """End what other processes left open when they died: (settled, released).

    A hold with progress is charged by it, as an estimate; one without is released. What we cannot show, we do not
    charge. Only for the process that holds the database's lock: every other one is dead then.
    """
    rows = tx.execute(
        f"SELECT id, progress, cost_nanos, {', '.join(COUNTS)} FROM usage_log"
        " WHERE status = 'held' AND process_id <> ?",  # not ordered here: that would scan every row there ever was
        (process_id,),
    ).fetchall()
    settled = 0
    for hold_id, progress, nanos, *counts in sorted(rows):
        if progress is None:
            release(tx, hold_id, "interrupted", now)
        else:
            settle(tx, hold_id, Charge(progress, nanos, tuple(counts), estimated=True), "recovered", now)
            settled += 1
    return settled, len(rows) - settled


def begin_process(tx: Tx, version: str, now: str) -> int:
    """A new process's id; every hold bears the id of the process that owns it."""
    row = tx.execute(
        "INSERT INTO processes (id, version, started_at)"
        " VALUES ((SELECT coalesce(max(id), 0) + 1 FROM processes), ?, ?) RETURNING id",
        (version, now),
    ).fetchone()
    return int(row[0])


# --- the books ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Books:
    """What `check` found. `statements` is what is proved of the accounts that moved, for `verify` to write down."""

    accounts: int = 0
    wrong: list[str] = field(default_factory=list)
    statements: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)


def check(tx: Tx, *, full: bool) -> Books:
    """Recompute the books from the rows: all of them where `full`, else those since the last verified statement.

    Reads one snapshot and changes nothing. Every account must equal the sums of its entries, charges and open
    holds; entries and settlements must be there in unbroken numbers; no hold may be a dead process's.
    """
    books = Books()
    since = "(SELECT 0 AS entry_seq, 0 AS settled_seq)"
    if not full:  # whoever has an older statement than the latest, or none, has had no rows before the latest
        since = (
            "(SELECT coalesce(max(entry_seq), 0) AS entry_seq, coalesce(max(settled_seq), 0) AS settled_seq"
            " FROM statements)"
        )
    rows = tx.execute(
        f"""
        WITH since AS (SELECT * FROM {since} AS verified), start AS (
            SELECT a.id, coalesce(s.entered, 0) AS entered, coalesce(s.billed, 0) AS billed,
                   coalesce(s.charged, 0) AS charged
            FROM accounts a LEFT JOIN statements s ON s.account_id = a.id AND {0 if full else 1} = 1
        ), paid AS (
            SELECT account_id, sum(billed) AS billed, sum(charged) AS charged FROM usage_log
            WHERE settled_seq > (SELECT settled_seq FROM since) GROUP BY account_id
        ), entered AS (
            SELECT CAST(account_id AS BIGINT) AS account_id, sum(amount) AS amount FROM entries
            WHERE seq > (SELECT entry_seq FROM since)
            GROUP BY CAST(account_id AS BIGINT)  -- by the column itself, SQLite would scan all entries by account
        ), held AS (
            SELECT account_id, sum(held) AS held FROM usage_log WHERE status = 'held' GROUP BY account_id
        ), owed AS (
            SELECT account_id, sum(posted - target) AS owed FROM dues WHERE posted > target GROUP BY account_id
        )
        SELECT a.id, a.grain, a.balance, a.carry, a.held, a.debt, coalesce(o.owed, 0),
               s.entered + coalesce(e.amount, 0), s.billed + coalesce(p.billed, 0),
               s.charged + coalesce(p.charged, 0), coalesce(h.held, 0)
        FROM accounts a JOIN start s ON s.id = a.id LEFT JOIN paid p ON p.account_id = a.id
        LEFT JOIN entered e ON e.account_id = a.id LEFT JOIN held h ON h.account_id = a.id
        LEFT JOIN owed o ON o.account_id = a.id
        ORDER BY a.id
        """
    ).fetchall()
    entry_seq, settled_seq, entries, settlements = tx.execute(
        "SELECT (SELECT coalesce(max(seq), 0) FROM entries), (SELECT coalesce(max(settled_seq), 0) FROM usage_log),"
        " entry_seq + (SELECT count(*) FROM entries WHERE seq > entry_seq),"
        " settled_seq + (SELECT count(*) FROM usage_log u WHERE u.settled_seq > since.settled_seq)"
        f" FROM {since} AS since"
    ).fetchone()
    for name, numbered, found in (("entries", entry_seq, entries), ("settlements", settled_seq, settlements)):
        if numbered != found:
            books.wrong.append(f"{name} are numbered to {numbered}, and there are {found}")
    stated = {
        account_id: tuple(sums)
        for account_id, *sums in tx.execute("SELECT account_id, entered, billed, charged FROM statements").fetchall()
    }
    for account_id, grain, balance, carry, held, debt, owed, entered, billed, charged, open_holds in rows:
        books.accounts += 1
        for name, stands, should in (
            ("balance", balance, entered - billed),
            ("carry", carry, billed * grain - charged),
            ("held", held, open_holds),
            ("debt", debt, owed),
        ):
            if stands != should:
                books.wrong.append(f"account {account_id}: {name} is {stands}, and its rows add up to {should}")
        if balance * grain + carry < held:
            books.wrong.append(f"account {account_id}: {held} held, more than it has")
        if debt and balance * grain + carry - held >= grain:
            books.wrong.append(f"account {account_id}: owes {debt}, and has not paid what it could")
        if stated.get(account_id) != (entered, billed, charged) or books.accounts == 1:  # one always tells how far
            books.statements.append((account_id, entry_seq, settled_seq, entered, billed, charged))
    books.wrong += [f"usage {hold_id}: {why}" for hold_id, why in _wrong_rows(tx)]
    books.wrong += [f"due {ref}: {why}" for ref, why in _wrong_dues(tx, since)]
    return books


def _wrong_rows(tx: Tx) -> Iterable[tuple[str, str]]:
    rows = tx.execute(
        "SELECT id FROM usage_log WHERE status = 'held' AND process_id < (SELECT max(id) FROM processes)"
    ).fetchall()
    for (hold_id,) in sorted(rows):  # not ordered there: that would scan every row there ever was
        yield hold_id, "held by a process that is gone"


def _wrong_dues(tx: Tx, since: str) -> Iterable[tuple[str, str]]:
    """Dues that are not the sum of their entries, of those that have had any lately."""
    rows = tx.execute(
        "SELECT cause, posted, entries, sums.amount, sums.number FROM ("
        " SELECT cause, sum(amount) AS amount, count(*) AS number FROM entries WHERE cause IN"
        f" (SELECT cause FROM entries WHERE seq > (SELECT entry_seq FROM {since} AS verified))"
        " GROUP BY cause) AS sums LEFT JOIN dues ON ref = cause ORDER BY cause"
    ).fetchall()
    for ref, posted, entries, amount, number in rows:
        if (posted, entries) != (amount, number):
            yield ref, f"{posted} was posted in {entries} entries, and there are {number}, of {amount}"


def verify(tx: Tx, books: Books, now: str) -> None:
    """Write down what `check` proved, so that the next plain check starts from there."""
    if books.wrong:
        raise LedgerError("books that do not add up prove nothing")
    for statement in books.statements:
        tx.execute(
            "INSERT INTO statements (account_id, entry_seq, settled_seq, entered, billed, charged, verified_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (account_id) DO UPDATE SET entry_seq = excluded.entry_seq,"
            " settled_seq = excluded.settled_seq, entered = excluded.entered, billed = excluded.billed,"
            " charged = excluded.charged, verified_at = excluded.verified_at"
            " WHERE excluded.settled_seq >= statements.settled_seq AND excluded.entry_seq >= statements.entry_seq",
            (*statement, now),
        )
