"""The ledger once more, in plain Python, as its rules are written and not as its code is: it predicts every answer.

An account is three sums (what was entered, what was charged, what is held), its unit, and what is to be taken back of
what was entered for a ref; everything else follows. The balance bills the charges rounded up, the carry is what that
rounding took too much, available is what nobody has a claim on. A plan's period has an account of its own, that a
request of the period opens and that is granted by a due. `Twin` puts the same question to the model and to the real
SQL, and fails where they differ.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field

from goosestack import allowance, ledger
from goosestack.ledger import COUNTS, Charge, LedgerError, NewHold
from goosestack.plans import Membership, Period, Plan
from goosestack.store.migrations import MIGRATIONS

NOW = "2026-11-21T12:00:00.000Z"
ACCOUNTS = (("alice", "usd_cents"), ("alice", "tokens"), ("bob", "usd_cents"), ("dave", "usdc_micro"))
"""Whose they are, and in which unit, of those that are open from the beginning."""
GRAIN = {"usd_cents": 10_000_000, "usdc_micro": 1_000, "tokens": 1}
MOST = 100_000_000_000
MONEY = "charged, billed, cost_nanos, shortfall, settled_seq"
"""Of a row: a `Written`."""


class Refused(Exception):
    """The model's own word for what must not happen."""


@dataclass(slots=True)
class Account:
    grain: int
    entered: int = 0
    """Units."""
    charged: int = 0
    """Grains, corrections included."""
    held: int = 0
    """Grains."""
    dues: dict[str, Due] = field(default_factory=dict)
    """By ref."""
    owing: list[Due] = field(default_factory=list)
    """Those of them of which something is to be taken back, the oldest first."""

    @property
    def debt(self) -> int:
        return sum(due.posted - due.target for due in self.owing)

    @property
    def billed(self) -> int:
        return -(-self.charged // self.grain)

    @property
    def balance(self) -> int:
        return self.entered - self.billed

    @property
    def available(self) -> int:
        return self.entered * self.grain - self.charged - self.held

    def take(self, amount: int) -> int:
        """Charge no more than is available; what was charged."""
        taken = min(amount, self.available)
        self.charged += taken
        return taken

    def pay_debts(self) -> None:
        """Whole units of what is available go to what is owed."""
        for due in self.owing:
            paid = min(due.posted - due.target, self.available // self.grain)
            due.posted -= paid
            self.entered -= paid
        self.owing = [due for due in self.owing if due.posted > due.target]


@dataclass(slots=True, eq=False)
class Due:
    number: int
    """In the order in which they began."""
    target: int = 0
    posted: int = 0


Written = tuple[int, int, int, int, int]
"""What a settlement wrote down: charged, billed, cost, shortfall, and which of all settlements it was, from 1."""
NOTHING: Written = (0, 0, 0, 0, 0)


@dataclass(slots=True)
class Hold:
    account: int | None
    quote: int
    held: int
    process: int
    status: str = "held"
    progress: int | None = None
    cost: int = 0
    """What it cost in truth, or by the estimate that stands for the truth."""
    charged: int = 0
    billed: int = 0
    estimated: bool = False
    settled: Written = NOTHING
    """By its own row."""
    correction: Written = NOTHING
    """By the row after it, of the differences."""

    @property
    def corrected(self) -> bool:
        return self.correction is not NOTHING


@dataclass(slots=True)
class Model:
    accounts: list[Account]
    holds: dict[str, Hold] = field(default_factory=dict)
    posted: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    payer_of: dict[str, int] = field(default_factory=dict)
    """Whose a due is, by its ref."""
    periods: dict[tuple[str, str], int] = field(default_factory=dict)
    """The account of a user's period."""
    settlements: int = 0
    process: int = 1

    def available(self, account: int | None) -> int:
        return 0 if account is None else self.accounts[account].available

    def post(self, account: int, kind: str, ref: str, units: int) -> bool:
        if (kind, ref) in self.posted and units != 0:
            if self.posted[kind, ref] != (account, units):
                raise Refused
            return False
        here = self.accounts[account]
        fits = 0 <= here.balance + units <= MOST and here.available + units * here.grain >= 0
        if units == 0 or not fits:
            raise Refused
        here.entered += units
        self.posted[kind, ref] = (account, units)
        here.pay_debts()
        return True

    def bring(self, account: int, ref: str, target: int) -> int:
        """What is owed of the due afterwards."""
        here = self.accounts[account]
        if not 0 <= target <= MOST or self.payer_of.get(ref, account) != account:
            raise Refused
        due = here.dues.get(ref) or Due(len(self.payer_of))
        lacking = max(0, target - due.posted)
        if here.balance + lacking > MOST:
            raise Refused
        here.dues[ref], self.payer_of[ref] = due, account
        due.target, due.posted, here.entered = target, due.posted + lacking, here.entered + lacking
        here.owing = sorted({*here.owing, due}, key=lambda each: each.number)
        here.pay_debts()
        return due.posted - due.target

    def open_period(self, user: str, period: str, tokens: int) -> int:
        """The account of a period, with what its plan gives now."""
        account = self.periods.setdefault((user, period), len(self.accounts))
        if account == len(self.accounts):
            self.accounts.append(Account(GRAIN["tokens"]))
        self.bring(account, f"plan:{user}:{period}", tokens)
        return account

    def authorize(self, name: str, account: int | None, least: int, most: int) -> tuple[int | None, int]:
        if not 0 <= least <= most or (account is None and most > 0):
            raise Refused
        known = self.holds.get(name)
        if known is not None:
            if known.status != "held" or known.account != account:
                raise Refused
            return known.held, self.available(account)
        if self.available(account) < least or (account is not None and self.accounts[account].debt):
            return None, self.available(account)
        held = min(most, self.available(account))
        self.holds[name] = Hold(account, most, held, self.process)
        if account is not None:
            self.accounts[account].held += held
        return held, self.available(account)

    def journal(self, name: str, cost: int) -> None:
        known = self.holds.get(name)
        if known is not None and known.status == "held":
            known.progress = cost

    def settle(self, name: str, cost: int, *, estimated: bool) -> tuple[int, int, int, int, int]:
        """Charged, billed, cost, shortfall, available."""
        known = self.holds.get(name)
        if known is None or known.status == "released":
            raise Refused
        payer = Account(1) if known.account is None else self.accounts[known.account]
        if known.status == "held":
            payer.held -= 0 if known.account is None else known.held
            known.status, known.estimated = "settled", estimated
            known.settled = self._pay(known, payer, cost, cost)
        elif known.estimated and not known.corrected and not estimated:
            known.correction = self._pay(known, payer, cost - known.charged, cost)
        left = self.available(known.account)
        return known.charged, known.billed, known.cost, known.cost - known.charged, left

    def _pay(self, known: Hold, payer: Account, due: int, cost: int) -> Written:
        """Charge what is due, where there is an account, and note what it is known to cost."""
        before = payer.billed
        taken = 0 if known.account is None else payer.take(due)
        billed = 0 if known.account is None else payer.billed - before
        self.settlements += 1
        written = (taken, billed, cost - known.cost, due - taken, self.settlements)
        known.charged, known.billed, known.cost = known.charged + taken, known.billed + billed, cost
        payer.pay_debts()
        return written

    def release(self, name: str) -> str:
        known = self.holds.get(name)
        if known is None:
            raise Refused
        if known.status == "held":
            known.status = "released"
            if known.account is not None:
                self.accounts[known.account].held -= known.held
                self.accounts[known.account].pay_debts()
        return known.status

    def recover(self) -> tuple[int, int]:
        """Another process begins, and ends what the dead ones left."""
        self.process += 1
        left = sorted(name for name, hold in self.holds.items() if hold.status == "held")
        seen = [name for name in left if self.holds[name].progress is not None]
        for name in left:
            progress = self.holds[name].progress
            if progress is None:
                self.release(name)
            else:
                self.settle(name, progress, estimated=True)
        return len(seen), len(left) - len(seen)


class Twin:
    """The model and the real SQL, side by side."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for step in MIGRATIONS:
            self.db.executescript(step)
        for user in ("alice", "bob", "dave"):
            self.db.execute("INSERT INTO users (id, email, created_at) VALUES (?, ?, ?)", (user, user, NOW))
        self.ids = [ledger.open_account(self.db, user, unit, NOW) for user, unit in ACCOUNTS]
        self.users = [user for user, _ in ACCOUNTS]
        """Whose each account is."""
        self.model = Model([Account(GRAIN[unit]) for _, unit in ACCOUNTS])
        assert ledger.begin_process(self.db, "test", NOW) == self.model.process

    def close(self) -> None:
        self.db.close()

    def _ask(self, predict: Callable[[], object], verb: Callable[[], object]) -> object:
        """The answer of both; `Refused` where both refuse."""
        try:
            expected = predict()
        except Refused:
            return self._refused(verb)
        try:
            found = verb()
        except (LedgerError, sqlite3.Error) as error:
            raise AssertionError(f"refused ({error!r}), where {expected} was to be expected") from error
        assert found == expected, f"answered {found}, where {expected} was to be expected"
        return found

    def _refused(self, verb: Callable[[], object]) -> object:
        """Ask what should be refused, which undoes what it did before it was."""
        self.db.execute("SAVEPOINT verb")
        try:
            found = verb()
        except LedgerError:
            self.db.execute("ROLLBACK TO verb")
            self.db.execute("RELEASE verb")
            return Refused
        except sqlite3.Error as error:
            raise AssertionError(f"failed ({error!r}), where it was to be refused") from error
        raise AssertionError(f"answered {found}, where it was to be refused")

    # --- the verbs ---

    def post(self, account: int, kind: str, ref: str, units: int) -> object:
        return self._ask(
            lambda: self.model.post(account, kind, ref, units),
            lambda: ledger.post(self.db, self.ids[account], kind, ref, units, NOW),
        )

    def bring(self, account: int, kind: str, ref: str, target: int) -> object:
        return self._ask(
            lambda: self.model.bring(account, ref, target),
            lambda: ledger.bring(self.db, self.ids[account], kind, ref, target, NOW),
        )

    def open_period(self, user: str, number: int, tokens: int) -> int:
        """The next request of a user's period asks for its account."""
        period = Period(f"period{number:06}", NOW)

        def verb() -> int:
            found = allowance.tokens(Membership(Plan("pro", tokens), period), user).open(self.db, NOW)
            if found not in self.ids:
                self.ids.append(found)
                self.users.append(user)
            return self.ids.index(found)

        opened = self._ask(lambda: self.model.open_period(user, period.ref, tokens), verb)
        assert isinstance(opened, int)
        return opened

    def authorize(self, name: str, account: int | None, least: int, most: int) -> object:
        user, payer = ("bob", None) if account is None else (self.users[account], self.ids[account])
        hold = NewHold(name, user, self.model.process, "openai_chat", "openai", "gpt", account_id=payer)

        def verb() -> tuple[int | None, int]:
            answer = ledger.authorize(self.db, hold, least, most, NOW)
            return answer.held, answer.available

        return self._ask(lambda: self.model.authorize(name, account, least, most), verb)

    def journal(self, name: str, cost: int) -> object:
        return self._ask(
            lambda: self.model.journal(name, cost), lambda: ledger.journal(self.db, name, self._charge(cost))
        )

    def settle(self, name: str, cost: int, *, estimated: bool) -> object:
        def verb() -> tuple[int, int, int, int, int]:
            got = ledger.settle(self.db, name, self._charge(cost, estimated=estimated), "completed", NOW)
            assert got.status == "settled"
            return got.charged, got.billed, got.nanos, got.shortfall, got.available

        return self._ask(lambda: self.model.settle(name, cost, estimated=estimated), verb)

    def release(self, name: str) -> object:
        return self._ask(lambda: self.model.release(name), lambda: ledger.release(self.db, name, "refused", NOW))

    def recover(self) -> object:
        def verb() -> tuple[int, int]:
            return ledger.recover(self.db, ledger.begin_process(self.db, "test", NOW), NOW)

        return self._ask(self.model.recover, verb)

    def verify(self) -> None:
        books = ledger.check(self.db, full=False)
        assert books.wrong == [], books.wrong
        ledger.verify(self.db, books, NOW)

    @staticmethod
    def _charge(cost: int, *, estimated: bool = False) -> Charge:
        return Charge(cost, cost, (cost, *(0,) * (len(COUNTS) - 1)), estimated=estimated)

    # --- what must be so at any time ---

    def compare_accounts(self) -> None:
        """Every account stands as the model says, and as the promises say."""
        rows = self.db.execute("SELECT balance, carry, held, debt FROM accounts ORDER BY id").fetchall()
        for number, (row, here) in enumerate(zip(rows, self.model.accounts, strict=True)):
            _compare(number, row, here)

    def compare_account(self, account: int) -> None:
        """The same of one."""
        row = self.db.execute("SELECT balance, carry, held, debt FROM accounts WHERE id = ?", (self.ids[account],))
        _compare(account, row.fetchone(), self.model.accounts[account])

    def compare_rows(self) -> None:
        """Every hold stands as the model says, and there are no other rows."""
        sql = f"SELECT id, account_id, status, quote, held, progress, estimated, {MONEY} FROM usage_log ORDER BY id"
        rows = self.db.execute(sql).fetchall()
        expected: list[tuple[object, ...]] = []
        for name, hold in sorted(self.model.holds.items()):
            payer = None if hold.account is None else self.ids[hold.account]
            progress = hold.progress if hold.status == "held" else None
            money = hold.settled if hold.status == "settled" else (0, 0, progress or 0, 0, None)
            row = (name, payer, hold.status, hold.quote, hold.held, progress, int(hold.estimated), *money)
            expected.append(row)
            if hold.corrected:
                expected.append((f"{name}.c", payer, "settled", 0, 0, None, 0, *hold.correction))
        differing = [pair for pair in zip(rows, expected, strict=False) if pair[0] != pair[1]]
        assert rows == expected, (
            f"of {len(rows)} rows and {len(expected)} expected, the first to differ: {differing[:1]}"
        )

    def check(self) -> None:
        """The ledger's own checks find nothing."""
        for full in (False, True):
            wrong = ledger.check(self.db, full=full).wrong
            assert wrong == [], wrong


def _compare(number: int, row: tuple[int, int, int, int], here: Account) -> None:
    """Balance, carry, held and debt."""
    expected = (here.balance, here.billed * here.grain - here.charged, here.held, here.debt)
    assert row == expected, f"account {number} stands at {row}, where {expected} was to be expected"
    assert not here.debt or here.available < here.grain, f"account {number} owes {here.debt}, and has {here.available}"
    assert 0 <= row[1] < here.grain and here.available >= 0, f"account {number}: {here}"
