"""The real SQL of the ledger against an independent model (`tests/ledger_model.py`), which predicts every answer.

Any verbs, in any order, with any repetitions. Twice over: simulated lives of many holds go far; hypothesis looks for a
short story that fails, and tells it. After each verb the account and the hold that it touched stand as the model says;
from time to time, and at the end of each life, every account and every row, and the ledger's own checks find nothing.
A seed repeats a run exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random

import hypothesis
import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.ledger_model import ACCOUNTS, GRAIN, MOST, Refused, Twin
from tests.proofs.crew import crew
from tests.proofs.proof import Attempt, Proof

LIFE = 5_000
"""Operations of one ledger, from its first to its last."""
TOGETHER = 100
"""Operations of one transaction, as a group commit has many."""
EXAMPLES = 10
"""Ledgers that hypothesis invents from one seed, each of at most `STEPS`."""
STEPS = 50

ALICE, BOB, DAVE = 0, 2, 3
"""The accounts that stay; the fourth is that of Alice's tokens, and another in each period."""
KINDS = ("topup", "grant", "refund", "reversal", "adjustment")


@dataclass(slots=True)
class Found:
    """What a process has found; `story` is why the proof is refuted."""

    what: str
    number: int
    met: Counter[str]
    story: str | None = None


def run(attempt: Attempt) -> None:
    """Lives and inventions, until there are enough of both."""
    attempt.expect(*(f"{verb} done" for verb in VERBS), "owing")
    attempt.expect(*(f"{verb} refused" for verb in VERBS if verb not in NEVER_REFUSED))
    attempt.expect("authorize unaffordable", "correct done", "left over from an earlier period")
    with crew(jobs(attempt)) as answers:
        for found in answers:
            attempt.must(found.story is None, str(found.story))
            attempt.count(found.what, found.number)
            for danger, times in found.met.items():
                attempt.meet(danger, times)


def jobs(attempt: Attempt) -> Iterator[Callable[[], Found]]:
    """Inventions and lives; and more inventions, where some were short."""
    seed = partial(attempt.random.getrandbits, 64)
    steps, operations = attempt.goal["hypothesis steps"], attempt.goal["operations"]
    yield from (Invention(seed()) for _ in range(-(-steps // (EXAMPLES * STEPS))))
    yield from (Simulation(seed(), LIFE) for _ in range(-(-operations // LIFE)))
    while attempt.reached["hypothesis steps"] < steps:
        yield Invention(seed())


# --- simulated lives ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Simulation:
    """One life of a ledger, drawn from a seed."""

    seed: int
    operations: int

    def __call__(self) -> Found:
        """Live it."""
        life = Life(Random(self.seed))
        number = 0
        try:
            for number in range(self.operations):
                life.step(number)
            life.end()
        except AssertionError as error:
            return Found(
                "operations", number, life.met, f"operation {number} of life {self.seed}, {life.asked}: {error}"
            )
        return Found("operations", self.operations, life.met)


@dataclass(slots=True)
class Life:
    """A ledger that is used; most of what is asked makes sense."""

    random: Random
    twin: Twin = field(default_factory=Twin)
    met: Counter[str] = field(default_factory=Counter)
    tokens: int = 1
    """The account of Alice's tokens."""
    period: int = 0
    names: list[str] = field(default_factory=list)
    """Of the holds, as they were made."""
    asked: str = ""

    def below(self, end: int) -> int:
        """A number from 0; `randrange` takes five times as long."""
        return int(self.random.random() * end)

    def one_of(self, *choices: int) -> int:
        return choices[int(self.random.random() * len(choices))]

    def step(self, number: int) -> None:
        """One verb, and what it touched; now and then everything."""
        if number % TOGETHER == 0:
            self.commit()
            self.twin.db.execute("BEGIN IMMEDIATE")
        verb = WHEEL[self.below(len(WHEEL))]
        account = self.one_of(ALICE, BOB, DAVE, self.tokens)
        self.asked = verb
        answer = VERBS[verb][1](self, number, account)
        self.met[f"{verb} {outcome(answer)}"] += 1
        self.met["owing"] += self.twin.model.accounts[account].debt > 0
        if number % 1_000 == 999 or verb == "recover":
            self.twin.compare_accounts()
        if number % 2_000 == 1_999:
            self.compare()

    def commit(self) -> None:
        if self.twin.db.in_transaction:
            self.twin.db.execute("COMMIT")

    def compare(self) -> None:
        self.asked = "everything compared"
        self.twin.compare_rows()
        self.twin.check()

    def end(self) -> None:
        self.commit()
        self.twin.compare_accounts()
        self.compare()
        self.twin.close()

    # --- what may be asked ---

    def amount(self, account: int) -> int:
        """Grains."""
        grain = self.twin.model.accounts[account].grain
        return self.one_of(self.below(3 * grain + 2), self.below(10), grain * self.below(4))

    def name(self, number: int) -> str:
        """Of a hold of late, or of none."""
        recent = self.below(25)
        return self.names[-1 - recent] if recent < min(24, len(self.names)) else f"none{number}"

    def payment(self, number: int, account: int) -> tuple[int, str, int]:
        """One of late: its account (mostly), its ref and what is granted for it now."""
        ref = f"pay{max(0, number - self.below(600)) // 60}"
        if self.random.random() < 0.85:
            account = self.twin.model.payer_of.get(ref, account)
        due = self.twin.model.accounts[account].dues.get(ref)
        return account, ref, 0 if due is None else due.target

    def grant(self, number: int, account: int) -> object:
        """Or a top-up or an adjustment by hand, up or down."""
        kind = KINDS[self.below(len(KINDS))]
        ref = f"{number - self.below(3)}"
        return self.touching(account, self.twin.post(account, kind, ref, self.one_of(-3, -1, 1, 2, 5, 9)))

    def repeat(self, number: int, _account: int) -> object:
        """A top-up of Dave's counts once by its ref; again with another amount, it is refused."""
        count = max(0, number // 50 - self.below(4))
        units = 1 + count % 7 + (self.random.random() < 0.1)
        return self.touching(DAVE, self.twin.post(DAVE, "topup", f"dave:{count}", units))

    def purchase(self, number: int, account: int) -> object:
        account, ref, _ = self.payment(number, account)
        return self.touching(account, self.twin.bring(account, "topup", ref, self.one_of(1, 3, 8, 8, -1)))

    def refund(self, number: int, account: int) -> object:
        """Of a part, of all, and once more of what is nothing any more."""
        account, ref, granted = self.payment(number, account)
        return self.touching(account, self.twin.bring(account, "refund", ref, self.below(granted + 1)))

    def dispute(self, number: int, account: int) -> object:
        """Begun, which takes everything back; or won, which gives it again."""
        account, ref, _ = self.payment(number, account)
        return self.touching(account, self.twin.bring(account, "reversal", ref, self.one_of(0, 0, 8)))

    def end_period(self, _number: int, _account: int) -> object:
        """The next begins, or the plan changes within it, or a request of the one before comes late."""
        self.period += self.one_of(0, 1, 1)
        late = self.random.random() < 0.2
        opened = self.twin.open_period("alice", self.period - late, self.one_of(0, 5, 20, 40))
        self.tokens = self.tokens if late else opened
        return self.touching(opened, opened)

    def authorize(self, number: int, account: int) -> object:
        most = self.amount(account)
        least = self.one_of(most, self.below(most + 1), most, self.below(most + 1), most + 1)
        name = f"r{number:07}" if self.random.random() < 0.95 else self.name(number)
        if self.random.random() < 0.03:
            answer = self.twin.authorize(name, None, 0, 0)
        else:
            answer = self.touching(account, self.twin.authorize(name, account, least, most))
        if name in self.twin.model.holds:
            self.names.append(name)
        return answer

    def journal(self, number: int, account: int) -> object:
        name = self.name(number)
        return self.twin.journal(name, min(self.amount(account), held(self.twin, name)))

    def settle(self, number: int, account: int) -> object:
        return self.settled(self.name(number), self.amount(account), estimated=False)

    def estimate(self, number: int, account: int) -> object:
        name = self.name(number)
        return self.settled(name, min(self.amount(account), held(self.twin, name)), estimated=True)

    def settled(self, name: str, cost: int, *, estimated: bool) -> object:
        hold = self.twin.model.holds.get(name)
        corrected = hold is None or hold.corrected
        answer = self.twin.settle(name, cost, estimated=estimated)
        if hold is None or hold.account is None:
            return answer
        self.met["correct done"] += hold.corrected and not corrected
        self.met["left over from an earlier period"] += hold.account > DAVE and hold.account != self.tokens
        return self.touching(hold.account, answer)

    def release(self, number: int, _account: int) -> object:
        name = self.name(number)
        hold = self.twin.model.holds.get(name)
        answer = self.twin.release(name)
        return answer if hold is None or hold.account is None else self.touching(hold.account, answer)

    def recover(self, _number: int, _account: int) -> object:
        return self.twin.recover()

    def verify(self, _number: int, _account: int) -> object:
        self.twin.verify()
        return "written down"

    def touching(self, account: int, answer: object) -> object:
        self.twin.compare_account(account)
        return answer


VERBS: dict[str, tuple[int, Callable[[Life, int, int], object]]] = {
    "grant": (120, Life.grant),
    "top-up again": (40, Life.repeat),
    "purchase": (40, Life.purchase),
    "refund": (20, Life.refund),
    "dispute": (20, Life.dispute),
    "period end": (10, Life.end_period),
    "authorize": (400, Life.authorize),
    "journal": (60, Life.journal),
    "settle": (250, Life.settle),
    "estimate": (80, Life.estimate),
    "release": (60, Life.release),
    "recover": (2, Life.recover),
    "verify": (5, Life.verify),
}
"""What may be asked, and how often each comes."""
WHEEL = tuple(verb for verb, (weight, _) in VERBS.items() for _ in range(weight))
NEVER_REFUSED = ("period end", "journal", "recover", "verify")


def outcome(answer: object) -> str:
    """Whether a verb was done, refused, or could not be afforded."""
    if answer is Refused:
        return "refused"
    return "unaffordable" if isinstance(answer, tuple) and answer[0] is None else "done"


def held(twin: Twin, name: str) -> int:
    """What a hold set aside, which an estimate is never above."""
    known = twin.model.holds.get(name)
    return 0 if known is None else known.held


# --- invented ones --------------------------------------------------------------------------------------------

PAYERS = st.sampled_from([*range(len(ACCOUNTS)), None])
OWNERS = st.integers(0, len(ACCOUNTS) - 1)
NAMES = st.sampled_from([f"r{number}" for number in range(12)])

units = st.integers(-5, 20) | st.sampled_from([MOST, MOST - 1, -MOST, MOST + 1])
near_a_unit = st.builds(
    lambda times, grain, more: max(0, times * grain + more),
    st.integers(0, 8),
    st.sampled_from(sorted(set(GRAIN.values()))),
    st.integers(-2, 2),
)
grains = near_a_unit | st.integers(0, 30)


class Invented(RuleBasedStateMachine):
    """Verbs on a few accounts, refs and holds, so that most of them meet what was there before."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).steps -= 1  # what agrees before the first step is none
        self.twin = Twin()
        self.tokens = 1

    def teardown(self) -> None:
        self.twin.check()
        self.twin.close()

    def payer(self, account: int | None) -> int | None:
        """Of tokens, those of the period that began last."""
        return self.tokens if account == 1 else account

    @rule(account=OWNERS, kind=st.sampled_from(KINDS), ref=st.sampled_from("abcd"), n=units)
    def post(self, account: int, kind: str, ref: str, n: int) -> None:
        self.twin.post(account, kind, ref, n)

    @rule(account=OWNERS, kind=st.sampled_from(KINDS), ref=st.sampled_from("pq"), goal=units)
    def bring(self, account: int, kind: str, ref: str, goal: int) -> None:
        self.twin.bring(account, kind, ref, goal)

    @rule(number=st.integers(0, 2), tokens=st.integers(0, 20))
    def open_period(self, number: int, tokens: int) -> None:
        self.tokens = self.twin.open_period("alice", number, tokens)

    @rule(name=NAMES, account=PAYERS, least=grains, more=grains | st.just(-1))
    def authorize(self, name: str, account: int | None, least: int, more: int) -> None:
        self.twin.authorize(name, self.payer(account), least, least + more)

    @rule(name=NAMES)
    def authorize_nothing(self, name: str) -> None:
        self.twin.authorize(name, None, 0, 0)

    @rule(name=NAMES, cost=grains)
    def journal(self, name: str, cost: int) -> None:
        self.twin.journal(name, min(cost, held(self.twin, name)))

    @rule(name=NAMES, cost=grains)
    def settle(self, name: str, cost: int) -> None:
        self.twin.settle(name, cost, estimated=False)

    @rule(name=NAMES, cost=grains)
    def estimate(self, name: str, cost: int) -> None:
        self.twin.settle(name, min(cost, held(self.twin, name)), estimated=True)

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        self.twin.release(name)

    @rule()
    def crash_and_recover(self) -> None:
        self.twin.recover()

    @rule()
    def verify(self) -> None:
        self.twin.verify()

    @invariant()
    def everything_agrees(self) -> None:
        type(self).steps += 1
        self.twin.compare_accounts()
        self.twin.compare_rows()
        self.twin.check()


@dataclass(frozen=True, slots=True)
class Invention:
    """What hypothesis invents from a seed."""

    seed: int

    def __call__(self) -> Found:
        """Carry it out; a story that fails is told in its shortest form."""

        class Seeded(Invented):
            pass

        hypothesis.seed(self.seed)(Seeded)
        chosen = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None)
        story = None
        try:
            run_state_machine_as_test(Seeded, settings=chosen)
        except AssertionError as error:
            story = "\n".join([f"invented from {self.seed}: {error}", *getattr(error, "__notes__", [])])
        return Found("hypothesis steps", Seeded.steps, Counter(), story)


PROOF = Proof(
    name="model",
    claim="The ledger's SQL answers as an independent model predicts, whatever is asked in whatever order.",
    short={"operations": 10_000, "hypothesis steps": 400},
    full={"operations": 20_000_000, "hypothesis steps": 250_000},
    run=run,
    limit_s=(60, 3_600),
)
