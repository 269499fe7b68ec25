"""What a proof is: its claim, its goals, and one attempt at it."""

from __future__ import annotations

import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

AGAIN_S = 5.0
"""How often a proof that is late is told so: what it was doing may have caught that."""


class Refuted(AssertionError):
    """The promise does not hold, or nothing has put it to the test; the message tells the story."""


@dataclass(frozen=True, slots=True)
class Proof:
    """One claim, and how to attack it.

    `short` and `full` say how many of what are to be reached, in words that the scorecard prints: `{"cycles": 5_000}`.
    `run` counts them. `limit_s` is what either form may take at most, in seconds.
    """

    name: str
    claim: str
    short: Mapping[str, int]
    full: Mapping[str, int]
    run: Callable[[Attempt], None]
    limit_s: tuple[int, int] = (60, 3600)


@dataclass(slots=True)
class Attempt:
    """One run of a proof: where it draws its luck from, where it may write, what it has reached and what it has met."""

    seed: int
    goal: Mapping[str, int]
    folder: Path
    """Empty, on a real disk, and kept where the proof is refuted."""
    full: bool
    random: Random = field(init=False)
    reached: Counter[str] = field(init=False, default_factory=Counter)
    met: Counter[str] = field(init=False, default_factory=Counter)
    figures: list[str] = field(init=False, default_factory=list)
    _awaited: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def count(self, what: str, times: int = 1) -> None:
        """So much more of a goal is reached."""
        assert what in self.goal, f"{what!r} is no goal of this proof"
        self.reached[what] += times

    def expect(self, *dangers: str, times: int = 1) -> None:
        """The attempt is void unless each of these is met before its end, so many times."""
        self._awaited.update(dict.fromkeys(dangers, times))

    def meet(self, danger: str, times: int = 1) -> None:
        """A danger was really there: a fault that was injected and hit, a kill in a recovery."""
        self.met[danger] += times

    def figure(self, text: str) -> None:
        """Something measured on the way, for the scorecard: `back in 0.9 s at most`."""
        self.figures.append(text)

    def must(self, held: bool, story: str) -> None:
        """Refute the proof unless what was promised held."""
        if not held:
            raise Refuted(story)

    def conclude(self) -> None:
        """Raises `Refuted` for an attempt that stopped short of its goals or met too little."""
        for what, target in self.goal.items():
            self.must(self.reached[what] >= target, f"{self.reached[what]:,} of {target:,} {what}: too few to prove it")
        missed = [
            f"{danger} ({self.met[danger]:,} of {times:,} times)" if self.met[danger] else danger
            for danger, times in sorted(self._awaited.items())
            if self.met[danger] < times
        ]
        self.must(not missed, f"nothing was proved, for this was not met: {', '.join(missed)}")


@dataclass(frozen=True, slots=True)
class Score:
    """How an attempt ended. `story` is why it was refuted, None where the promise held."""

    proof: Proof
    attempt: Attempt
    seconds: float
    story: str | None


def attempted(proof: Proof, attempt: Attempt) -> Score:
    """Carry a proof out, within its time.

    Only what refutes it is caught: `Refuted`, or an assertion in what it shares with the tests. Any other exception is
    a fault of the proof and ends the run.
    """
    began = time.monotonic()
    story = None
    try:
        with at_most(proof.limit_s[attempt.full]):
            proof.run(attempt)
        attempt.conclude()
    except Refuted as refuted:
        story = str(refuted)
    except AssertionError as error:
        story = "".join(traceback.format_exception(error)).strip()
    return Score(proof, attempt, time.monotonic() - began, story)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises `Refuted` in the main thread when the time is up, and again where that is caught: a proof that hangs has
    found something."""
    late = Refuted(f"not done within {seconds} s")
    raised = False

    def up(_number: int, _frame: FrameType | None) -> None:
        nonlocal raised
        raised = True
        raise late

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if raised:
        raise late
