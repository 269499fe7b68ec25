"""Over any history of vouchers, requests, claims, closes, losses and crashes, on a real database:

    what is charged <= the highest accepted amount <= the deposit, and what was charged can be claimed.

The contract is a model of its two rules: a claim raises `claimed` to a higher amount within the deposit that the
consumer signed for, and nothing else does.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, example, given, settings, strategies as st

from goosestack import ledger
from goosestack.drain import books, claims
from goosestack.drain.abi import Channel
from goosestack.drain.claiming import Transaction
from goosestack.drain.vouchers import Domain, Voucher
from goosestack.errors import ChannelClosing, CloseRefused, InvalidNonce
from goosestack.ledger import Charge, NewHold
from goosestack.store.migrations import MIGRATIONS

NOW = "2026-11-21T12:00:00.000Z"
DOMAIN = Domain(137, b"\x0c" * 20)
DEPOSIT = 12
"""Small, so that amounts meet each other and what was charged."""
GRAIN = books.GRAIN

amounts = st.integers(0, DEPOSIT)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), amounts, st.integers(0, 8), st.integers(1, 4), st.integers(0, 4)),
        st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 6)),
        st.tuples(st.just("release"), st.integers(0, 9)),
        st.tuples(st.just("claim")),
        st.tuples(st.just("end claim"), st.booleans()),
        st.tuples(st.just("close")),
        st.tuples(st.just("crash")),
        st.tuples(st.just("lose everything")),
    ),
    min_size=5,
    max_size=40,
)


@dataclass
class History:
    """The books, the contract, and everything that was signed."""

    db: sqlite3.Connection = field(default_factory=lambda: new_books())
    claimed: int = 0
    """What the contract has paid."""
    process: int = 1
    requests: int = 0
    open: list[str] = field(default_factory=list)
    signed: set[int] = field(default_factory=set)
    closing: int | None = None
    transactions: int = 0

    @property
    def channel(self) -> Channel:
        return Channel(b"\x11" * 32, b"\xda" * 20, b"\x90" * 20, DEPOSIT, self.claimed, 2**33)

    def ask(self, amount: int, nonce: int, at_least: int, more: int) -> None:
        self.requests += 1
        hold = NewHold(f"req_{self.requests:012x}", "", self.process, "openai_chat", "openai", "gpt")
        hold = replace(hold, user_id=books.user_of(self.channel.consumer))
        voucher = Voucher(self.channel.id, amount, nonce, bytes(64) + b"\x1b")
        try:
            least, most = at_least * GRAIN, (at_least + more) * GRAIN
            with self.db:
                self.db.execute("SAVEPOINT verb")
                answer = books.authorize(self.db, DOMAIN, self.channel, voucher, hold, least, most, NOW)
        except (InvalidNonce, ChannelClosing):
            self.db.rollback()
            return
        if answer.held is None:
            assert self.db.execute("SELECT 1 FROM usage_log WHERE id = ?", (hold.id,)).fetchone() is None
        else:
            assert self.closing is None
            assert least <= answer.held <= most
            self.signed.add(amount)
            self.open.append(hold.id)

    def settle(self, which: int, cost: int) -> None:
        if self.open:
            ledger.settle(self.db, self.open.pop(which % len(self.open)), Charge(cost * GRAIN, 0), "completed", NOW)

    def release(self, which: int) -> None:
        if self.open:
            ledger.release(self.db, self.open.pop(which % len(self.open)), "refused", NOW)

    def claim(self) -> None:
        standing = books.find(self.db, DOMAIN, self.channel.id)
        if standing is None or claims.under_way(self.db, DOMAIN) is not None or standing.charged <= standing.claimed:
            return
        voucher = claims.covering(self.db, standing)
        assert voucher is not None, "what was charged cannot be claimed"
        assert voucher.amount in self.signed
        self.transactions += 1
        transaction = Transaction(self.transactions.to_bytes(32, "big"), b"raw", self.transactions, 1, 1, 1, 1)
        claims.begin(self.db, standing, voucher, transaction, NOW)

    def end_claim(self, paid: bool) -> None:
        claim = claims.under_way(self.db, DOMAIN)
        if claim is None:
            return
        if paid and claim.voucher.amount > self.claimed:
            self.claimed = claim.voucher.amount
        if self.claimed >= claim.voucher.amount:
            claims.confirm(self.db, claim, self.claimed, NOW)
        else:
            claims.fail(self.db, claim, "dropped", NOW)

    def close(self) -> None:
        try:
            final = claims.freeze(self.db, DOMAIN, self.channel, None, NOW)
        except CloseRefused:
            assert self.closing is not None and self.claimed > self.closing
            return
        if final is not None:
            assert self.closing in (None, final), "two amounts were signed"
            assert self.claimed <= final <= DEPOSIT
            self.closing = final

    def crash(self) -> None:
        self.process += 1
        ledger.begin_process(self.db, "test", NOW)
        ledger.recover(self.db, self.process, NOW)
        self.open.clear()

    def lose_everything(self) -> None:
        if claims.under_way(self.db, DOMAIN) is not None or self.closing is not None:
            return  # a start waits until the wallet is idle; a close that is forgotten is in the README
        self.db.close()
        self.db, self.process, self.open = new_books(), 1, []

    def stored(self) -> list[int]:
        return [row[0] for row in self.db.execute("SELECT amount FROM drain_vouchers")]

    def check(self) -> None:
        assert ledger.check(self.db, full=True).wrong == []
        standing = books.find(self.db, DOMAIN, self.channel.id)
        if standing is None:
            return
        assert standing.base <= standing.charged <= standing.accepted <= DEPOSIT
        assert standing.accepted * GRAIN - standing.charged * GRAIN >= standing.held
        assert self.closing is None or standing.charged <= self.closing, "more was charged than the close pays"
        assert standing.accepted in {*self.signed, self.claimed, standing.base}
        if standing.charged > self.claimed:
            voucher = claims.covering(self.db, standing)
            assert voucher is not None
            assert self.claimed < voucher.amount <= DEPOSIT
            assert voucher.amount >= standing.charged
            assert not [each for each in self.stored() if standing.charged <= each < voucher.amount]
            assert voucher.amount in self.signed
        used = self.db.execute(
            "SELECT nonce, count(*) FROM drain_vouchers v JOIN usage_log u ON u.id = v.hold_id"
            " WHERE u.status <> 'released' GROUP BY nonce HAVING count(*) > 1"
        ).fetchall()
        assert used == [], "a nonce paid twice"


def new_books() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    for step in MIGRATIONS:
        db.executescript(step)
    ledger.begin_process(db, "test", NOW)
    return db


LATE_AND_LARGE = [
    ("ask", 1, 1, 1, 0),
    ("ask", 6, 2, 1, 0),
    ("ask", 3, 3, 1, 0),
    *[("settle", 0, 1)] * 3,
    ("claim",),
    ("end claim", True),
    ("ask", 0, 4, 2, 0),
    ("settle", 0, 2),
    ("claim",),
    ("end claim", True),
]
"""A voucher of a high amount and a low nonce is still needed after a claim of a lower one."""


CLOSED_TOO_EARLY = [("ask", 6, 1, 2, 0), ("close",), ("settle", 0, 2), ("close",), ("ask", 9, 2, 1, 0)]
"""A close that is asked for while a request is in flight."""


CLAIMED_ALL_THE_SAME = [
    ("ask", 2, 0, 1, 0),
    ("settle", 0, 1),
    ("close",),
    ("claim",),
    ("end claim", True),
    ("close",),
]
"""A close that was signed for what was charged and not used, a claim of the voucher that covers it before the channel
expires, and another wish to close: what was signed once is below what the contract has paid, and worth nothing."""


@example(LATE_AND_LARGE)
@example(CLOSED_TOO_EARLY)
@example(CLAIMED_ALL_THE_SAME)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_what_was_charged_was_signed_for_and_can_be_claimed(history: list[tuple[Any, ...]]) -> None:
    world = History()
    try:
        for name, *facts in history:
            getattr(world, name.replace(" ", "_"))(*facts)
            world.check()
    finally:
        world.db.close()
