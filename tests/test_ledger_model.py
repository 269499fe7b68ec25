"""The real SQL against an independent model (`ledger_model.py`): any verbs, in any order, with any repetitions.

Twice over: hypothesis looks for a short story that fails and tells it; a simulation with a printed seed goes far. The
suite runs the short forms. `GOOSESTACK_PROOF=long` runs the long ones, `GOOSESTACK_SEED` repeats a simulation.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.ledger_model import ACCOUNTS, GRAIN, MOST, Refused, Twin

LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
MACHINE = settings(
    max_examples=5_000 if LONG else 30, stateful_step_count=50, deadline=None, database=None, print_blob=True
)
OPERATIONS = 1_000_000 if LONG else 5_000

NAMES = [f"r{number}" for number in range(12)]
VERBS = {
    "post": 12,
    "bring": 6,
    "authorize": 40,
    "settle": 25,
    "estimate": 8,
    "release": 8,
    "journal": 6,
    "recover": 0.2,
    "verify": 1,
}
"""The verbs of the simulation, and how often each comes."""
SHOULD_HAPPEN = (
    *(f"{verb} done" for verb in VERBS),
    *(f"{verb} refused" for verb in ("post", "bring", "authorize", "settle", "estimate", "release")),
    "owing",
    "authorize unaffordable",
)
"""What a simulation that proves anything must have met."""

KINDS = ["topup", "grant", "refund", "reversal", "adjustment"]
REFS = ["a", "b", "c", "d"]
PAYERS = st.sampled_from([*range(len(ACCOUNTS)), None])

units = st.integers(-5, 20) | st.sampled_from([MOST, MOST - 1, -MOST, MOST + 1])
near_a_unit = st.builds(
    lambda times, grain, more: max(0, times * grain + more),
    st.integers(0, 8),
    st.sampled_from(sorted(set(GRAIN.values()))),
    st.integers(-2, 2),
)
grains = near_a_unit | st.integers(0, 30)


class LedgerMachine(RuleBasedStateMachine):
    """Verbs on a few accounts, refs and holds, so that most of them meet what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = Twin()

    def teardown(self) -> None:
        self.twin.check()
        self.twin.close()

    @rule(account=st.integers(0, len(ACCOUNTS) - 1), kind=st.sampled_from(KINDS), ref=st.sampled_from(REFS), n=units)
    def post(self, account: int, kind: str, ref: str, n: int) -> None:
        self.twin.post(account, kind, ref, n)

    @rule(
        account=st.integers(0, len(ACCOUNTS) - 1),
        kind=st.sampled_from(KINDS),
        ref=st.sampled_from(["p", "q"]),
        goal=units,
    )
    def bring(self, account: int, kind: str, ref: str, goal: int) -> None:
        self.twin.bring(account, kind, ref, goal)

    @rule(name=st.sampled_from(NAMES), account=PAYERS, least=grains, more=grains | st.just(-1))
    def authorize(self, name: str, account: int | None, least: int, more: int) -> None:
        self.twin.authorize(name, account, least, least + more)

    @rule(name=st.sampled_from(NAMES))
    def authorize_nothing(self, name: str) -> None:
        self.twin.authorize(name, None, 0, 0)

    @rule(name=st.sampled_from(NAMES), cost=grains)
    def journal(self, name: str, cost: int) -> None:
        self.twin.journal(name, min(cost, held(self.twin, name)))

    @rule(name=st.sampled_from(NAMES), cost=grains)
    def settle(self, name: str, cost: int) -> None:
        self.twin.settle(name, cost, estimated=False)

    @rule(name=st.sampled_from(NAMES), cost=grains)
    def estimate(self, name: str, cost: int) -> None:
        self.twin.settle(name, min(cost, held(self.twin, name)), estimated=True)

    @rule(name=st.sampled_from(NAMES))
    def release(self, name: str) -> None:
        self.twin.release(name)

    @rule()
    def crash_and_recover(self) -> None:
        self.twin.recover()

    @rule()
    def verify(self) -> None:
        self.twin.verify()

    @invariant()
    def accounts_agree(self) -> None:
        self.twin.compare_accounts()

    @invariant()
    def rows_agree(self) -> None:
        self.twin.compare_rows()

    @invariant()
    def the_books_add_up(self) -> None:
        self.twin.check()


def held(twin: Twin, name: str) -> int:
    """What a hold set aside, which an estimate is never above."""
    known = twin.model.holds.get(name)
    return 0 if known is None else known.held


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = MACHINE


def test_a_long_life_of_many_holds_goes_as_the_model_says() -> None:
    seed = int(os.environ.get("GOOSESTACK_SEED") or random.SystemRandom().randrange(2**32))
    print(f"GOOSESTACK_SEED={seed}")
    rnd = random.Random(seed)
    twin = Twin()
    met: Counter[str] = Counter()
    for number in range(OPERATIONS):
        verb = rnd.choices(list(VERBS), list(VERBS.values()))[0]
        met[f"{verb} {outcome(step(twin, rnd, verb, number))}"] += 1
        met["owing"] += any(account.debt for account in twin.model.accounts)
        twin.compare_accounts()
        if number % (OPERATIONS // 10) == 0:
            twin.compare_rows()
            twin.check()
    twin.compare_rows()
    twin.check()
    twin.close()
    for happened in SHOULD_HAPPEN:
        assert met[happened] > 0, f"never happened: {happened}; {met}"


def step(twin: Twin, rnd: random.Random, verb: str, number: int) -> object:
    """One verb with arguments that mostly make sense."""
    account = rnd.randrange(len(ACCOUNTS))
    grain = GRAIN[ACCOUNTS[account][1]]
    amount = rnd.choice([rnd.randrange(3 * grain + 2), rnd.randrange(10), grain * rnd.randrange(4)])
    name = f"r{max(0, number - rnd.randrange(60)):07}"
    match verb:
        case "post":
            kind = rnd.choice(KINDS)
            return twin.post(account, kind, f"{number - rnd.randrange(3)}", rnd.choice([-3, -1, 1, 2, 5, 9]))
        case "bring":
            ref = f"due{(number - rnd.randrange(600)) // 200}.{rnd.choice([account, account, 9])}"
            return twin.bring(account, rnd.choice(KINDS), ref, rnd.choice([0, 0, 1, 3, 8, -1]))
        case "authorize":
            fresh = f"r{number:07}" if rnd.random() < 0.95 else name
            least = rnd.choice([amount, rnd.randrange(amount + 1), amount + 1])
            return twin.authorize(fresh, account, least, amount)
        case "settle":
            return twin.settle(name, amount, estimated=False)
        case "estimate":
            return twin.settle(name, min(amount, held(twin, name)), estimated=True)
        case "release":
            return twin.release(name)
        case "journal":
            return twin.journal(name, min(amount, held(twin, name)))
        case "recover":
            return twin.recover()
    twin.verify()
    return None


def outcome(answer: object) -> str:
    """Whether a verb was done, refused, or could not be afforded."""
    if answer is Refused:
        return "refused"
    return "unaffordable" if isinstance(answer, tuple) and answer[0] is None else "done"
