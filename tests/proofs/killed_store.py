"""`kill -9` of the process that runs the real store, again and again, on one database for a whole life.

Eight customers write at once and say what they were answered, over a pipe. The kill comes at any moment: of the trade,
of a recovery from the kill before, of a checkpoint, of the closing. Each time the files must be whole, the books must
add up, and everything that was ever answered must be there; then the next process goes on with the files as they are.

A kill counts where there was still a process to be killed. That it was in a recovery or in the closing is what it had
said itself; that it was in a checkpoint, what the index of its log says.

A seed repeats the kinds of kills and what was traded; the kernel decides what a kill meets.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random

from tests.proofs.crew import crew
from tests.proofs.proof import Attempt, Proof
from tests.proofs.trading import ANSWERED, FOR_EVER, Verdict, recovered, trade

LIFE = 24
"""Kills of the processes of one database."""
ANSWERS = 1_000
"""A trade is killed after so many at most, and as likely after any fewer."""
EARLY = ("wal_autocheckpoint = 8",)
"""Makes the store come to checkpoints all the time."""
KINDS = ("trade", "recovery", "recovery", "checkpoint", "closing", "trade", "recovery", "checkpoint")
"""Where the kill is to come, one after another."""
CLOSING_S = 0.005
CHECKPOINT_S = 0.5
"""So long a checkpoint is waited for; the pipe has room for what is said meanwhile."""
OPENED, RECOVERED = 2, 3
"""The lines after which the process has opened its file, and has recovered."""


@dataclass(slots=True)
class Found:
    """What came of one database; `story` is why the proof is refuted."""

    cycles: int = 0
    """Kills that killed."""
    answers: int = 0
    met: Counter[str] = field(default_factory=Counter)
    story: str | None = None


def run(attempt: Attempt) -> None:
    """One database after another, until there were enough kills and enough answers."""
    attempt.expect(
        "killed in the trade", "killed in a recovery", "killed in a checkpoint", "log not empty", "holds resolved"
    )
    if attempt.full:  # some are a matter of milliseconds, and may not be met at once
        many = attempt.goal["cycles"] // 20
        attempt.expect("killed in the trade", "killed in a recovery", "killed in a checkpoint", times=many)
        attempt.expect("killed in the closing", "killed before its recovery was written", times=many // 5)
    with crew(lives(attempt)) as found:
        for each in found:
            attempt.must(each.story is None, str(each.story))
            attempt.count("cycles", each.cycles)
            attempt.count("answers", each.answers)
            for danger, times in each.met.items():
                attempt.meet(danger, times)


def lives(attempt: Attempt) -> Iterator[Life]:
    cycles = min(LIFE, attempt.goal["cycles"] // 2)
    begun = 0
    while begun < attempt.goal["cycles"] or attempt.reached["answers"] < attempt.goal["answers"]:
        begun += cycles
        yield Life(attempt.random.getrandbits(64), attempt.folder, cycles)


@dataclass(frozen=True, slots=True)
class Life:
    """One database, and all who worked on it until they were killed."""

    seed: int
    folder: Path
    cycles: int

    def __call__(self) -> Found:
        """Kill, look, go on."""
        random, found, said = Random(self.seed), Found(), list[bytes]()
        home = Path(tempfile.mkdtemp(prefix="life-", dir=self.folder))
        path = home / "g.db"
        opening_s = 0.01
        for kind in cycle(KINDS):
            if found.cycles == self.cycles:
                break
            before = salt_of(path)
            pragmas = EARLY if kind == "checkpoint" or random.random() < 0.7 else ()
            worker = Worker.start(path, random.getrandbits(32), pragmas, rounds=4 if kind == "closing" else FOR_EVER)
            opening_s = worker.attended(kind, random, opening_s, partial(in_a_checkpoint, path, before))
            lines = worker.killed()
            said += lines
            found.cycles += worker.was_killed
            found.answers += sum(line.startswith(ANSWERED) for line in lines)
            verdict = on_a_copy(path, said)
            met = met_by(lines, verdict, path, before) if worker.was_killed else []
            found.met.update(met)
            found.met["holds resolved"] += worker.was_killed and verdict.resolved > 0
            if worker.strange or verdict.wrong or verdict.lost:
                found.story = f"kill {found.cycles} in {home} ({', '.join(met)}): {told(worker, lines, verdict)}"
                return found
        shutil.rmtree(home)
        return found


# --- the process that is killed -------------------------------------------------------------------------------


@dataclass(slots=True)
class Worker:
    """A process that trades; what it says comes over a pipe."""

    process: int
    pipe: int
    heard: bytes = b""
    status: int = 0

    @staticmethod
    def start(path: Path, seed: int, pragmas: tuple[str, ...], rounds: int) -> Worker:
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.dup2(write, 1)
                os.dup2(write, 2)
                os.close(read)
                asyncio.run(trade(path, seed, *pragmas, rounds=rounds))
                os._exit(0)
            except BaseException:
                os.write(1, traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.close(write)
        return Worker(process, read)

    def attended(self, kind: str, random: Random, opening_s: float, in_a_checkpoint: Callable[[], bool]) -> float:
        """Wait for the moment of the kill; what a recovery takes, of late."""
        self.hear_lines(OPENED)
        opened = time.monotonic()
        match kind:
            case "recovery":
                time.sleep(random.random() * 0.8 * opening_s)  # the rest of it is the check of the books
            case "closing":
                self.hear(b"closing\n")
                time.sleep(random.random() * CLOSING_S)
            case _:
                self.hear_lines(RECOVERED)
                opening_s = time.monotonic() - opened
                self.hear_lines(RECOVERED + random.randrange(ANSWERS))
                time.sleep(random.random() * 0.002)  # also where it says nothing
        if kind == "checkpoint":
            late = time.monotonic() + CHECKPOINT_S
            while time.monotonic() < late and not in_a_checkpoint():
                time.sleep(0.0002)
        return opening_s

    def hear_lines(self, number: int) -> None:
        while self.heard.count(b"\n") < number and self.more():
            pass

    def hear(self, words: bytes) -> None:
        while words not in self.heard and self.more():
            pass

    def more(self) -> bool:
        """Whether there was any."""
        text = os.read(self.pipe, 65_536)
        self.heard += text
        return text != b""

    def killed(self) -> list[bytes]:
        """Kill it, unless it has ended; all that it has said."""
        os.kill(self.process, signal.SIGKILL)
        while self.more():
            pass
        os.close(self.pipe)
        _, self.status = os.waitpid(self.process, 0)
        return self.heard.splitlines()

    @property
    def was_killed(self) -> bool:
        """It was there to be killed."""
        return self.status == signal.SIGKILL

    @property
    def strange(self) -> bool:
        """It ended by itself, and its work was not done."""
        return self.status not in (0, signal.SIGKILL)


# --- what the kill left ---------------------------------------------------------------------------------------


def log_of(path: Path) -> Path:
    """The write-ahead log."""
    return path.with_name(path.name + "-wal")


def salt_of(path: Path) -> bytes:
    """By which the frames of the log are told from those of earlier ones (https://sqlite.org/fileformat2.html#walformat);
    empty where there is no log to recover from."""
    log = log_of(path)
    if not log.exists():
        return b""
    with log.open("rb") as file:
        return file.read(24)[16:]


def in_a_checkpoint(path: Path, before: bytes) -> bool:
    """Whether the index of the log says that a checkpoint had begun to copy, and was not done: `nBackfillAttempted`
    and `nBackfill` of SQLite's `WalCkptInfo` (wal.c), in the byte order of the machine.

    A recovery leaves the same behind it, until the log begins again with another salt than `before` the process began.
    """
    index = path.with_name(path.name + "-shm")
    if not index.exists():
        return False
    with index.open("rb") as file:
        header = file.read(136)
    if len(header) < 136 or header[32:40] == before:
        return False
    (done,), (begun,) = struct.unpack_from("=I", header, 96), struct.unpack_from("=I", header, 128)
    return bool(begun > done)


def met_by(lines: list[bytes], verdict: Verdict, path: Path, before: bytes) -> list[str]:
    """What a kill has hit; `before` is the salt of the log that the process began with."""
    opened, recovered = b"opened" in lines, any(line.startswith(b"recovered") for line in lines)
    closing, closed = b"closing" in lines, b"closed" in lines
    in_a_recovery = before != b"" and opened and not recovered
    met = [
        ("killed in a recovery", in_a_recovery),
        ("killed before its recovery was written", in_a_recovery and verdict.resolved > 0),
        ("killed in the closing", closing and not closed),
        ("killed in the trade", not closing and any(line.startswith(ANSWERED) for line in lines)),
        ("killed in a checkpoint", opened and in_a_checkpoint(path, before)),  # else the index is of the one before
        ("log not empty", log_of(path).exists() and log_of(path).stat().st_size > 0),
    ]
    return [what for what, so in met if so]


def on_a_copy(path: Path, said: list[bytes]) -> Verdict:
    """What the real store finds, on a copy: the next process must meet the files as the kill left them."""
    with tempfile.TemporaryDirectory(dir=path.parent) as home:
        for name in (path.name, f"{path.name}-wal"):
            if (path.parent / name).exists():
                shutil.copy(path.parent / name, home)
        return asyncio.run(recovered(Path(home, path.name), said))


def told(worker: Worker, lines: list[bytes], verdict: Verdict) -> str:
    if worker.strange:
        return f"it ended by itself: {b' | '.join(lines[-3:]).decode()}"
    wrong = [f"wrong: {each}" for each in verdict.wrong[:3]] + [f"lost: {each}" for each in verdict.lost[:3]]
    return f"{'; '.join(wrong)}; {len(verdict.lost)} answers lost in all"


PROOF = Proof(
    name="killed-store",
    claim="What was answered is there after kill -9, in the trade, in a recovery, in a checkpoint, in the closing.",
    short={"cycles": 24, "answers": 2_000},
    full={"cycles": 5_000, "answers": 1_000_000},
    run=run,
    limit_s=(60, 3_600),
)
