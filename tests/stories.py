"""Ledger stories: the rules of the ledger told line by line, each line a verb and what must be so after it.

    topup alice 100              | balance 100 held 0
    authorize r1 alice 1c..30c   | holds 30c available 70c
    settle r1 12c                | charged 12c billed 12 balance 88

Left of the bar is a verb of the ledger and what it is given; right of it what it answered, what the account has then
(`balance` in units, `carry`, `held`, `available` in grains), or `error` and words of its message. Amounts are grains;
`3c` are 3 cents of them. An account is `alice` (in cents) or `alice/tokens`; `nobody` pays for free calls.
`bring alice 40 pay_1` brings what was posted for a ref to so many units; `owed` and `debt` are units too.
Other verbs: `restart` (the process dies, another begins), `row` (a usage row), `check`, `check full`, `verify`, `sql`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from goosestack import ledger
from goosestack.ledger import COUNTS, Authorized, Charge, LedgerError, NewHold, Settled
from goosestack.store.migrations import MIGRATIONS

NOW = "2026-11-21T12:00:00.000Z"
CENT = ledger.GRAINS["usd_cents"]
FLAGS = frozenset(("posted", "repeated", "refused", "settled", "released", "right", "nothing"))
"""Words that stand for themselves in an expectation; every other one is followed by its value."""

Facts = dict[str, object]


def amount(text: str) -> int:
    """`3c` are three cents of grains, `1c+5` a cent and five grains, `-2` two less than nothing."""
    return sum(int(part[:-1]) * CENT if part.endswith("c") else int(part) for part in text.split("+"))


def parse(text: str) -> Facts:
    """What stands right of the bar."""
    words = iter(text.split())
    return {word: True if word in FLAGS else next(words) for word in words}


class Ledger:
    """An empty ledger in memory, and what a story can ask of it."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.execute("PRAGMA foreign_keys = ON")
        for step in MIGRATIONS:
            self.db.executescript(step)
        self.process = ledger.begin_process(self.db, "test", NOW)
        self.lines = 0
        self.holds: dict[str, int | None] = {}

    def close(self) -> None:
        """Forget it all."""
        self.db.close()

    def tell(self, story: str) -> Ledger:
        """Do every line of a story; AssertionError, with the line, where what comes of it is not as expected."""
        for line in filter(str.strip, story.splitlines()):
            self.lines += 1
            left, bar, right = line.partition("|")
            verb, *args = left.split()
            found = self._run(getattr(self, f"do_{verb}"), args)
            if not bar:
                assert "error" not in found, f"{line.strip()}: {found['error']}"
            elif right.strip().startswith("error"):
                words = right.replace("error", "", 1).strip()
                assert words in str(found.get("error", "")) and "error" in found, f"{line.strip()}: {found}"
            else:
                for name, value in parse(right).items():
                    stands = found.get(name)
                    same = stands == amount(str(value)) if type(stands) is int else str(stands) == str(value)
                    assert same, f"{line.strip()}: {name} is {stands!r} in {found}"
        return self

    def _run(self, verb: Callable[..., Facts], args: list[str]) -> Facts:
        """As a store runs it: in a savepoint, which an error rolls back."""
        self.db.execute("SAVEPOINT verb")
        try:
            found = verb(*args)
        except LedgerError as error:
            self.db.execute("ROLLBACK TO verb")
            found = {"error": str(error)}
        self.db.execute("RELEASE verb")
        return found

    # --- accounts ---

    def account(self, name: str) -> int | None:
        """The id of an account, which is opened when it is first named."""
        if name == "nobody":
            return None
        user, _, unit = name.partition("/")
        self.db.execute(
            "INSERT INTO users (id, email, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (user, user, NOW)
        )
        return ledger.open_account(self.db, user, unit or "usd_cents", NOW)

    def funds(self, account_id: int | None) -> Facts:
        """What an account has."""
        names = ("balance", "carry", "held", "available", "debt")
        row = self.db.execute(
            "SELECT balance, carry, held, balance * grain + carry - held, debt FROM accounts WHERE id = ?",
            (account_id,),
        ).fetchone()
        return dict(zip(names, row or (0, 0, 0, 0, 0), strict=True))

    def do_show(self, name: str) -> Facts:
        return self.funds(self.account(name))

    def _post(self, kind: str, name: str, units: str, ref: str = "") -> Facts:
        account_id = self.account(name)
        assert account_id is not None
        done = ledger.post(self.db, account_id, kind, ref or f"line {self.lines}", int(units), NOW)
        assert type(done) is bool
        return {"posted" if done else "repeated": True, **self.funds(account_id)}

    def do_topup(self, *args: str) -> Facts:
        return self._post("topup", *args)

    def do_grant(self, *args: str) -> Facts:
        return self._post("grant", *args)

    def do_refund(self, *args: str) -> Facts:
        return self._post("refund", *args)

    def do_reversal(self, *args: str) -> Facts:
        return self._post("reversal", *args)

    def do_bring(self, name: str, units: str, ref: str, kind: str = "") -> Facts:
        account_id = self.account(name)
        assert account_id is not None
        owed = ledger.bring(self.db, account_id, kind or "topup", ref, int(units), NOW)
        return {**self.funds(account_id), "owed": owed}

    def do_due(self, ref: str) -> Facts:
        """What a ref was last brought to."""
        return {"brought": ledger.has_due(self.db, ref), "target": ledger.target_of(self.db, ref)}

    def do_entries(self, ref: str) -> Facts:
        """The movements that were made for a ref, as `kind:units` with commas."""
        rows = self.db.execute("SELECT kind, amount FROM entries WHERE cause = ? ORDER BY seq", (ref,)).fetchall()
        return {"are": ",".join(f"{kind}:{amount}" for kind, amount in rows)}

    # --- holds ---

    def do_authorize(self, hold_id: str, name: str, bounds: str) -> Facts:
        least, _, most = bounds.partition("..")
        account_id = self.account(name)
        user = "alice" if account_id is None else name.partition("/")[0]
        self.account(user)
        hold = NewHold(hold_id, user, self.process, "openai_chat", "openai", "gpt", account_id=account_id)
        answer = ledger.authorize(self.db, hold, amount(least), amount(most or least), NOW)
        assert isinstance(answer, Authorized) and (answer.held is None or answer.debt == 0)
        self.holds.setdefault(hold_id, account_id)
        told: Facts = {"refused": True, "debt": answer.debt} if answer.held is None else {"holds": answer.held}
        return {**self.funds(account_id), **told, "available": answer.available}

    def do_journal(self, hold_id: str, cost: str) -> Facts:
        ledger.journal(self.db, hold_id, _charge(cost))
        return self.funds(self.holds[hold_id])

    def do_settle(self, hold_id: str, cost: str, *how: str) -> Facts:
        receipt = ledger.settle(self.db, hold_id, _charge(cost, estimated="estimated" in how), "completed", NOW)
        assert isinstance(receipt, Settled)
        funds = self.funds(self.holds[hold_id.removesuffix(".c")])
        assert (receipt.balance, receipt.available) == (funds["balance"], funds["available"]), (receipt, funds)
        told = {"charged": receipt.charged, "billed": receipt.billed, "shortfall": receipt.shortfall}
        return {**funds, **told, "cost": receipt.nanos, receipt.status: True}

    def do_release(self, hold_id: str) -> Facts:
        status = ledger.release(self.db, hold_id, "refused_400", NOW)
        return {**self.funds(self.holds[hold_id]), status: True}

    def do_restart(self) -> Facts:
        self.process = ledger.begin_process(self.db, "test", NOW)
        return {}

    def do_recover(self) -> Facts:
        settled, released = ledger.recover(self.db, self.process, NOW)
        return {"charged": settled, "given_back": released}

    # --- what can be seen ---

    def do_row(self, hold_id: str) -> Facts:
        names = ("status", "reason", "quote", "held", "charged", "billed", "shortfall", "estimated", "progress")
        more = ("cost_cents", "cost_nanos", "settled_seq", *COUNTS)
        sql = f"SELECT {', '.join((*names, *more))} FROM usage_log WHERE id = ?"
        row = self.db.execute(sql, (hold_id,)).fetchone()
        return {"nothing": True} if row is None else dict(zip((*names, *more), row, strict=True))

    def do_check(self, how: str = "") -> Facts:
        wrong = ledger.check(self.db, full=how == "full").wrong
        return {"error": "; ".join(wrong)} if wrong else {"right": True}

    def do_verify(self) -> Facts:
        ledger.verify(self.db, ledger.check(self.db, full=False), NOW)
        return {}

    def do_sql(self, *words: str) -> Facts:
        """Somebody else writes into the file, past every rule."""
        self.db.execute("PRAGMA ignore_check_constraints = ON")
        assert self.db.execute(" ".join(words)).rowcount == 1, words
        return {}


def _charge(cost: str, *, estimated: bool = False) -> Charge:
    """A charge and, so that rows can be told apart, as many input tokens as it has grains."""
    counts = (amount(cost), *(0,) * (len(COUNTS) - 1))
    return Charge(amount(cost), amount(cost), counts, estimated=estimated)
