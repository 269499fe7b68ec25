"""Users, their keys and identities: plain verbs and queries of an open transaction.

An e-mail is a label, never an identity: nothing looks a user up by it but the operator's commands, which refuse
where it is ambiguous. A key is shown once; what is stored is its SHA-256 and its first 12 characters.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass

from goosestack.clock import written
from goosestack.errors import Problem
from goosestack.ledger import open_account
from goosestack.plans import Membership
from goosestack.store import Tx

KEY_PREFIX = "gsk_"
MOST_KEYS = 100
"""Live keys of one user: each has a rate limit of its own."""


class AccountError(Exception):
    """What an operator or a user asked for cannot be done; the text says why."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The proven caller of a request."""

    user_id: str
    key_id: str | None
    """None where it was no key that proved it."""
    account_id: int | None
    """The account in `usd_cents`; None where nothing is paid from it, and no plan counts."""
    member: Membership | None = None
    """The plan that they have now; None where plans do not count."""

    @property
    def counted_as(self) -> str:
        """The name under which requests are counted."""
        return self.user_id if self.key_id is None else self.key_id

    def told(self, problem: Problem) -> Problem:
        """What this kind of caller reads of a failure."""
        return problem


def new_id(prefix: str) -> str:
    """An id that sorts by its time of birth: 48 bits of milliseconds and 80 random ones, in hex."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def first_id(prefix: str, timestamp: float) -> str:
    """What sorts before every id that was made at this time (seconds) or later."""
    return f"{prefix}{max(0, round(timestamp * 1000)):012x}"


def payer_of(row: str) -> str:
    """SQL for what paid for a row of `usage_log`, by the name that the row has in the query: `credits`, `allowance`,
    `overage` or `channel`; `nobody` where no account did."""
    return (
        f"CASE WHEN {row}.unit IS NULL THEN 'nobody' WHEN {row}.unit = 'tokens' THEN 'allowance'"
        f" WHEN {row}.unit = 'usdc_micro' THEN 'channel'"
        f" WHEN (SELECT ref FROM accounts WHERE accounts.id = {row}.account_id) = '' THEN 'credits' ELSE 'overage' END"
    )


def born_at(id: str) -> str:
    """When an id was made, as all times are written: what is shown of a request is what it is sorted and found by."""
    return written(int(id.partition("_")[2][:12], 16))


def hash_key(key: str) -> str:
    """The SHA-256 of a key, in hex; enough for 192 random bits, which nobody guesses."""
    return hashlib.sha256(key.encode()).hexdigest()


def create_user(tx: Tx, email: str, now: str, user_id: str | None = None) -> str:
    """Make a user with an empty account in `usd_cents`, under a new id where none is given; the answer is its id."""
    user_id = new_id("usr_") if user_id is None else user_id
    tx.execute("INSERT INTO users (id, email, created_at) VALUES (?, ?, ?)", (user_id, email, now))
    open_account(tx, user_id, "usd_cents", now)
    return user_id


def create_key(tx: Tx, user_id: str, name: str, now: str) -> dict[str, str]:
    """Make a key for a user: `id`, `api_key` (nowhere else to be had), `prefix`, `name`. Raises AccountError where the
    user has as many as may be."""
    (live,) = tx.execute("SELECT count(*) FROM api_keys WHERE user_id = ? AND revoked = 0", (user_id,)).fetchone()
    if live >= MOST_KEYS:
        raise AccountError(f"{user_id} has {live} keys, and more may not be; revoke some")
    key = KEY_PREFIX + secrets.token_urlsafe(33)
    key_id = new_id("key_")
    tx.execute(
        "INSERT INTO api_keys (id, key_hash, key_prefix, user_id, name, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (key_id, hash_key(key), key[:12], user_id, name, now),
    )
    return {"id": key_id, "api_key": key, "prefix": key[:12], "name": name}


def add_key(tx: Tx, caller: Principal, name: str, now: str) -> dict[str, str] | None:
    """A further key for a proven caller; None where it was a key that was revoked meanwhile. Raises as `create_key`."""
    if caller.key_id is not None:
        (revoked,) = tx.execute("SELECT revoked FROM api_keys WHERE id = ?", (caller.key_id,)).fetchone()
        if revoked:
            return None
    return create_key(tx, caller.user_id, name, now)


def sign_up(tx: Tx, email: str, name: str, now: str) -> dict[str, str]:
    """A new user with one key, whether the e-mail is known or not."""
    return create_key(tx, create_user(tx, email, now), name, now)


def find_principal(tx: Tx, key_hash: str) -> Principal | None:
    """Whom a key stands for; None where it is unknown or revoked."""
    row = tx.execute(
        "SELECT k.user_id, k.id, a.id FROM api_keys k"
        " JOIN accounts a ON a.user_id = k.user_id AND a.unit = 'usd_cents' AND a.ref = ''"
        " WHERE k.key_hash = ? AND k.revoked = 0",
        (key_hash,),
    ).fetchone()
    return None if row is None else Principal(*row)


def find_identity(tx: Tx, issuer: str, subject: str) -> Principal | None:
    """Who is known under this name of this issuer; None where nobody is."""
    row = tx.execute(
        "SELECT i.user_id, a.id FROM identities i"
        " JOIN accounts a ON a.user_id = i.user_id AND a.unit = 'usd_cents' AND a.ref = ''"
        " WHERE i.issuer = ? AND i.subject = ?",
        (issuer, subject),
    ).fetchone()
    return None if row is None else Principal(row[0], None, row[1])


def ensure_identity(tx: Tx, issuer: str, subject: str, email: str, now: str) -> Principal:
    """Who is known under this name of this issuer, made on first sight. The e-mail is the new user's label; it never
    leads to a user who is there already."""
    known = find_identity(tx, issuer, subject)
    if known is not None:
        return known
    user_id = create_user(tx, email, now)
    tx.execute(
        "INSERT INTO identities (issuer, subject, user_id, created_at) VALUES (?, ?, ?, ?)",
        (issuer, subject, user_id, now),
    )
    made = find_identity(tx, issuer, subject)
    assert made is not None
    return made


def subject_of(tx: Tx, issuer: str, user_id: str) -> str | None:
    """The name that this issuer has for a user; None for whom it does not know."""
    (subject,) = tx.execute(
        "SELECT min(subject) FROM identities WHERE user_id = ? AND issuer = ?", (user_id, issuer)
    ).fetchone()
    return None if subject is None else str(subject)


def find_user(tx: Tx, name: str) -> str:
    """The id of the user whom an operator means: by id, by the name that a sign-in service has for them, or by an
    e-mail; where only one user has it."""
    rows = tx.execute(
        "SELECT id FROM users WHERE id = ? OR email = ? UNION SELECT user_id FROM identities WHERE subject = ? LIMIT 2",
        (name, name, name),
    ).fetchall()
    if not rows:
        raise AccountError(f"there is no user {name}")
    if len(rows) > 1:
        raise AccountError(f"several users have the e-mail {name}; name one by id")
    return str(rows[0][0])


def pro_until(tx: Tx, user_id: str) -> str | None:
    """Until when the user may bring their own provider key; None for not at all."""
    row = tx.execute("SELECT pro_until FROM users WHERE id = ?", (user_id,)).fetchone()
    return None if row is None else row[0]


def set_pro(tx: Tx, user_id: str, until: str | None) -> str | None:
    """The operator gives Pro until a time (ISO, or None for not at all), which shortens nothing that was paid for;
    until when the user is Pro now."""
    tx.execute("UPDATE users SET pro_given = ? WHERE id = ?", (until, user_id))
    return _combine_pro(tx, user_id)


def set_paid_pro(tx: Tx, user_id: str, until: str | None) -> str | None:
    """The user's subscriptions are paid until a time, which shortens nothing that was given; until when the user is
    Pro now."""
    tx.execute("UPDATE users SET pro_paid = ? WHERE id = ?", (until, user_id))
    return _combine_pro(tx, user_id)


def _combine_pro(tx: Tx, user_id: str) -> str | None:
    row = tx.execute("SELECT pro_given, pro_paid FROM users WHERE id = ?", (user_id,)).fetchone()
    until = max((each for each in row if each is not None), default=None)
    tx.execute("UPDATE users SET pro_until = ? WHERE id = ?", (until, user_id))
    return until


def revoke_key(tx: Tx, key: str, user_id: str | None = None) -> str:
    """Revoke a key by id or by its 12-character prefix, only the given user's where one is given; its id.

    Raises AccountError where there is none, or where the prefix fits several."""
    rows = tx.execute(
        "SELECT id, user_id FROM api_keys WHERE id = ? OR key_prefix = ?",
        (key, key),
    ).fetchall()
    mine = [row[0] for row in rows if user_id is None or row[1] == user_id]
    if len(mine) != 1:
        raise AccountError(f"several keys begin with {key}; name one by id" if mine else f"there is no key {key}")
    tx.execute("UPDATE api_keys SET revoked = 1 WHERE id = ?", (mine[0],))
    return str(mine[0])


def list_keys(tx: Tx, user_id: str | None = None) -> list[dict[str, object]]:
    """The keys of a user, or all: `id`, `prefix`, `name`, `revoked`, `created_at`, `user_id`."""
    rows = tx.execute(
        "SELECT id, key_prefix, name, revoked, created_at, user_id FROM api_keys"
        " WHERE ? IS NULL OR user_id = ? ORDER BY id",
        (user_id, user_id),
    )
    names = ("id", "prefix", "name", "revoked", "created_at", "user_id")
    return [dict(zip(names, (*row[:3], bool(row[3]), *row[4:]), strict=True)) for row in rows]


def show_user(tx: Tx, user_id: str) -> dict[str, object]:
    """A user as they may see themselves: `id`, `email`, `pro_until`, `created_at`."""
    row = tx.execute("SELECT id, email, pro_until, created_at FROM users WHERE id = ?", (user_id,)).fetchone()
    return dict(zip(("id", "email", "pro_until", "created_at"), row, strict=True))


def funds(tx: Tx, user_id: str) -> dict[str, int]:
    """A user's credits: `balance_cents`, `held_cents` (rounded up), `available_cents` (rounded down), `debt_cents`."""
    balance, held, available, debt = tx.execute(
        "SELECT balance, (held + grain - 1) / grain, (balance * grain + carry - held) / grain, debt"
        " FROM accounts WHERE user_id = ? AND unit = 'usd_cents' AND ref = ''",
        (user_id,),
    ).fetchone()
    return {"balance_cents": balance, "held_cents": held, "available_cents": available, "debt_cents": debt}
