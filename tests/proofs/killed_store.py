"""`kill -9` of the process that runs the real store, again and again, on one database for a whole life.

Eight customers write at once and say what they were answered, over a pipe. The kill comes at any moment: of the trade,
of a recovery from the kill before, of a checkpoint, of the closing. Each time the files must be whole, the books must
add up, and everything that was ever answered must be there; then the next process goes on with the files as they are.

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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.proofs.crew import crew
from tests.proofs.proof import Attempt, Proof
from tests.proofs.trading import FOR_EVER, Verdict, recovered, trade

LIFE = 24
"""Kills of the processes of one database."""
ANSWERS = 1_000
"""A trade is killed after so many at most, and as likely after any fewer."""
EARLY = ("wal_autocheckpoint = 8",)
"""Makes the store come to checkpoints all the time."""
KINDS = ("trade", "recovery", "recovery", "trade", "closing", "trade", "recovery", "trade")
"""Where the kill is to come, one after another."""
CLOSING_S = 0.005
ANSWERED = (b"entry", b"due", b"held", b"seen", b"released", b"estimated", b"settled")


@dataclass(slots=True)
class Found:
    """What came of one database; `story` is why the proof is refuted."""

    cycles: int = 0
    answers: int = 0
    met: Counter[str] = field(default_factory=Counter)
    story: str | None = None


def run(attempt: Attempt) -> None:
    """One database after another, until there were enough kills and enough answers."""
    attempt.expect(
        "killed in the trade", "killed in a recovery", "killed in a checkpoint", "log not empty", "holds resolved"
    )
    if attempt.full:  # it is a matter of milliseconds, and may not be met at once
        attempt.expect("killed in the closing")
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
        for cycle in range(self.cycles):
            kind, hot = KINDS[cycle % len(KINDS)], log_of(path) > 0
            pragmas = EARLY if random.random() < 0.7 else ()
            worker = Worker.start(path, random.getrandbits(32), pragmas, rounds=4 if kind == "closing" else FOR_EVER)
            opening_s = worker.attended(kind, random, opening_s)
            lines = worker.killed()
            said += lines
            found.cycles += 1
            found.answers += sum(line.startswith(ANSWERED) for line in lines)
            met = met_by(worker, lines, path, hot)
            verdict = on_a_copy(path, said)
            found.met.update(met)
            found.met["holds resolved"] += verdict.resolved > 0
            if worker.strange or verdict.wrong or verdict.lost:
                found.story = f"kill {cycle + 1} in {home} ({', '.join(met)}): {told(worker, lines, verdict)}"
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

    def attended(self, kind: str, random: Random, opening_s: float) -> float:
        """Wait for the moment of the kill; what an opening takes, of late."""
        self.hear_lines(1)
        opened = time.monotonic()
        match kind:
            case "recovery":
                time.sleep(random.random() * 0.8 * opening_s)  # the rest of it is the check of the books
            case "closing":
                self.hear(b"closing\n")
                time.sleep(random.random() * CLOSING_S)
            case _:
                self.hear_lines(2)
                opening_s = time.monotonic() - opened
                self.hear_lines(2 + random.randrange(ANSWERS))
                time.sleep(random.random() * 0.002)  # also where it says nothing
        return opening_s

    def hear_lines(self, number: int) -> None:
        while self.heard.count(b"\n") < number and self.more():
            pass

    def hear(self, end: bytes) -> None:
        while not self.heard.endswith(end) and self.more():
            pass

    def more(self) -> bool:
        """Whether there was any."""
        text = os.read(self.pipe, 65_536)
        self.heard += text
        return text != b""

    def killed(self) -> list[bytes]:
        """Kill it, unless its work is done; all that it has said."""
        os.kill(self.process, signal.SIGKILL)
        while self.more():
            pass
        os.close(self.pipe)
        _, self.status = os.waitpid(self.process, 0)
        return self.heard.splitlines()

    @property
    def strange(self) -> bool:
        """It ended by itself, and its work was not done."""
        return self.status not in (0, signal.SIGKILL)


# --- what the kill left ---------------------------------------------------------------------------------------


def log_of(path: Path) -> int:
    """The bytes of the write-ahead log."""
    log = path.with_name(path.name + "-wal")
    return log.stat().st_size if log.exists() else 0


def in_a_checkpoint(path: Path) -> bool:
    """Whether the index of the log says that a checkpoint had begun to copy, and was not done: `nBackfillAttempted`
    and `nBackfill` of SQLite's `WalCkptInfo` (wal.c), in the byte order of the machine."""
    index = path.with_name(path.name + "-shm")
    if not index.exists():
        return False
    header = index.read_bytes()[:136]
    if len(header) < 136:
        return False
    (done,), (begun,) = struct.unpack_from("=I", header, 96), struct.unpack_from("=I", header, 128)
    return bool(begun > done)


def met_by(worker: Worker, lines: list[bytes], path: Path, hot: bool) -> list[str]:
    """What the kill has hit; `hot` is whether the process began with a log that was not empty."""
    if worker.status == 0:
        return []
    met = [
        ("killed in a recovery", hot and not any(line.startswith(b"recovered") for line in lines)),
        ("killed in the closing", b"closing" in lines),
        ("killed in the trade", lines[-1:] != [b"closing"] and any(line.startswith(ANSWERED) for line in lines)),
        ("killed in a checkpoint", in_a_checkpoint(path)),
        ("log not empty", log_of(path) > 0),
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
