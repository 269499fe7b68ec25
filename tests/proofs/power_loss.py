"""The power fails while the real store is at work: at any moment, with any part of what was not synced on the disk.

A store trades under strace, over a few lives that end by a kill or in order; the recording is played again up to any
event. From there each file has what was synced, and of what was not, each 512-byte sector is dropped, kept or torn in
two; where a file was to grow, there may be zeros or rubbish; a cut, a name that was made and one that was removed may
have reached the disk or not. Then the real store starts on it, resolves what was open, and must find whole files,
books that add up, and everything that had been answered before that moment.

The same with `synchronous=NORMAL` must lose something, or the proof could not tell. A write that was torn leaves alone
the bytes beside it in its sector, as SQLite expects of a disk (`SQLITE_IOCAP_POWERSAFE_OVERWRITE`). A seed repeats what
is drawn; the recording itself also depends on the kernel's timing.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.proofs.crew import crew
from tests.proofs.proof import Attempt, Proof, Refuted
from tests.proofs.recording import Cut, Event, Made, Removed, Said, Sync, Write, installed, record
from tests.proofs.trading import ANSWERED, Verdict, recovered

SECTOR = 512
DATABASE, LOG = "g.db", "g.db-wal"
FILES = frozenset((DATABASE, LOG, "g.db-journal"))
STATES = 2_000
"""Of one recording, at most."""
PACES = (
    (4, ("wal_autocheckpoint = 8", "journal_size_limit = 20000")),
    (8, ("wal_autocheckpoint = 30", "journal_size_limit = 60000")),
    (8, ("wal_autocheckpoint = 100",)),
    (25, ()),
)
"""How often each customer comes in one life, and what makes the store come to checkpoints so early, or cut its log.
The last is the store as it is."""
HASTY = ("synchronous = NORMAL", "wal_autocheckpoint = 50")
GOAL = "different states"
"""Of the disk. Where two losses of power leave the same, and the same must be there, one start is enough."""
SURELY = 0.7
"""So much of what is drawn differs."""
LOSING = 0.05
"""So many states more are of a store that does not wait for the disk."""


@dataclass(slots=True)
class Found:
    """What came of one recording; `story` is why the proof is refuted."""

    hasty: bool
    drawn: int = 0
    states: int = 0
    """That were started on."""
    different: set[bytes] = field(default_factory=set)
    """What was on their disks."""
    answers: int = 0
    losing: int = 0
    met: Counter[str] = field(default_factory=Counter)
    story: str | None = None


@dataclass(slots=True)
class Tally:
    """What came of all of them."""

    different: set[bytes] = field(default_factory=set)
    drawn: int = 0
    states: int = 0
    answers: int = 0
    losing: int = 0
    lossy: int = 0


def run(attempt: Attempt) -> None:
    """Recordings and their states, until there are enough."""
    attempt.must(installed(), "strace is not installed (apt-get install strace): nothing can be recorded")
    many = attempt.goal[GOAL] // 100 if attempt.full else 1
    attempt.expect("cut in a checkpoint", "cut after the log began again", "cut before the log was cut", times=many)
    attempt.expect("sector dropped", "sector kept", "sector torn", "rubbish where a file grew", times=many)
    attempt.expect("name lost", "holds resolved", times=many)
    attempt.expect("synchronous=NORMAL lost an answer", times=max(1, many // 10))
    tally = Tally()
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else attempt.folder
    with (
        tempfile.TemporaryDirectory(prefix="goosestack-", dir=where) as disks,
        crew(jobs(attempt, Path(disks), tally)) as found,
    ):
        for each in found:
            attempt.must(each.story is None, str(each.story))
            if each.hasty:
                tally.lossy += each.states
                tally.losing += each.losing
                attempt.meet("synchronous=NORMAL lost an answer", each.losing)
                continue
            attempt.count(GOAL, len(each.different - tally.different))
            tally.different |= each.different
            tally.drawn += each.drawn
            tally.states += each.states
            tally.answers += each.answers
            for danger, times in each.met.items():
                attempt.meet(danger, times)
    attempt.figure(f"{tally.answers:,} answers looked for after {tally.states:,} starts, none lost")
    attempt.figure(f"with synchronous=NORMAL {tally.losing:,} of {tally.lossy:,} states lose what was answered")


def jobs(attempt: Attempt, disks: Path, tally: Tally) -> Iterator[Loss]:
    """Recordings of the store as it is, or nearly, while what is under way may be too little; and a few of one that
    does not wait for the disk."""
    target = attempt.goal[GOAL]
    drawn = min(STATES, target * 3 // 2)
    begun = 0
    while len(tally.different) + SURELY * (begun * drawn - tally.drawn) < target:
        pace = attempt.random.choice(PACES) if attempt.full else PACES[0]
        loss = Loss(attempt.random.getrandbits(64), attempt.folder, disks, drawn, *pace)
        yield loss
        if begun % round(1 / LOSING) == 0:
            states = max(40, min(STATES, round(target * LOSING)))
            yield Loss(loss.seed + 1, attempt.folder, disks, states, 6, HASTY, hasty=True)
        begun += 1


# --- a disk ---------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class File:
    synced: bytearray = field(default_factory=bytearray)
    pending: list[Write | Cut] = field(default_factory=list)


@dataclass(slots=True)
class Disk:
    """What was asked of it; what of that is sure."""

    files: dict[str, File] = field(default_factory=dict)
    """As programs see them."""
    sure: dict[str, File] = field(default_factory=dict)
    """The names that are synced."""
    renamed: list[Made | Removed] = field(default_factory=list)
    made: list[File] = field(default_factory=list)

    def play(self, event: Event) -> None:
        match event:
            case Write(name) | Cut(name):
                self.files[name].pending.append(event)
            case Sync(""):
                self.sure, self.renamed, self.made = dict(self.files), [], []
            case Sync(name):
                file = self.files[name]
                for change in file.pending:
                    _carry_out(file.synced, change)
                file.pending.clear()
            case Made(name):
                self.files[name] = File()
                self.renamed.append(event)
                self.made.append(self.files[name])
            case Removed(name):
                del self.files[name]
                self.renamed.append(event)
            case Said():
                pass

    @property
    def unsure(self) -> bool:
        return bool(self.renamed) or any(file.pending for file in self.files.values())


def _carry_out(content: bytearray, change: Write | Cut) -> None:
    if isinstance(change, Cut):
        _resize(content, change.size)
    else:
        _put(content, change.offset, change.data, b"\0")


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _put(content: bytearray, offset: int, data: bytes, gap: bytes) -> None:
    """Write; what lies between the end of the file and the data is filled with what is given."""
    missing = offset - len(content)
    if missing > 0:
        content.extend((gap * (missing // len(gap) + 1))[:missing])
    content[offset : offset + len(data)] = data


@dataclass(slots=True)
class Failure:
    """One loss of power: what it does to what was not synced, drawn anew for each state."""

    random: Random
    met: Counter[str]

    def strike(self, disk: Disk) -> dict[str, bytes]:
        """What is on the disk afterwards, by name."""
        kept, torn = self.random.choice(CHANCES)
        gap = self.random.choice([b"\0", self.random.randbytes(SECTOR)])
        return {name: bytes(self.left(file, kept, torn, gap)) for name, file in self.names(disk, kept).items()}

    def names(self, disk: Disk, kept: float) -> dict[str, File]:
        """Of each name, the changes up to some point."""
        names, made, lost = dict(disk.sure), iter(disk.made), set()
        for change in disk.renamed:
            file = next(made) if isinstance(change, Made) else None
            if change.name in lost or self.random.random() >= kept:
                lost.add(change.name)
                self.met["name lost"] += 1
            elif file is not None:
                names[change.name] = file
            else:
                names.pop(change.name, None)
        return names

    def left(self, file: File, kept: float, torn: float, gap: bytes) -> bytearray:
        content = bytearray(file.synced)
        for change in file.pending:
            if isinstance(change, Write):
                for offset, data in sectors(change):
                    self.sector(content, offset, data, kept, torn, gap)
            elif self.random.random() < kept:
                _resize(content, change.size)
        return content

    def sector(self, content: bytearray, offset: int, data: bytes, kept: float, torn: float, gap: bytes) -> None:
        drawn = self.random.random()
        if drawn < torn:
            self.met["sector torn"] += 1
            middle = self.random.randrange(len(data) + 1)
            rest = content[offset + middle : offset + len(data)]
            data = data[:middle] + self.random.choice([bytes(rest), self.random.randbytes(len(data) - middle)])
        elif self.random.random() >= kept:
            self.met["sector dropped"] += 1
            return
        else:
            self.met["sector kept"] += 1
        self.met["rubbish where a file grew"] += offset > len(content) and gap != b"\0"
        _put(content, offset, data, gap)


def sectors(write: Write) -> Iterator[tuple[int, bytes]]:
    """A write, cut where a sector ends."""
    end = write.offset + len(write.data)
    for first in range(write.offset // SECTOR * SECTOR, end, SECTOR):
        begin = max(first, write.offset)
        yield begin, write.data[begin - write.offset : min(first + SECTOR, end) - write.offset]


# --- one recording, and its states ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """Power that fails so many times in what one recording shows."""

    seed: int
    folder: Path
    disks: Path
    """Where what is left may lie while it is looked at: in memory, which the power never leaves."""
    states: int
    rounds: int
    pragmas: Sequence[str]
    hasty: bool = False

    def __call__(self) -> Found:
        """Record, and play it again."""
        random = Random(self.seed)
        try:
            with tempfile.TemporaryDirectory(dir=self.folder) as home:
                events = self.recorded(random, Path(home))
        except Refuted as refuted:
            return Found(self.hasty, self.states, story=str(refuted))
        with tempfile.TemporaryDirectory(dir=self.disks) as home, asyncio.Runner() as runner:
            return self.played(random, events, Path(home), runner)

    def recorded(self, random: Random, home: Path) -> list[Event]:
        """One life after another, of which some are killed; the names stay what they are."""
        events: list[Event] = []
        ends = ["die", "close", "die"] if self.rounds > PACES[0][0] else ["close", "die"]
        for end in ends:
            command = ["tests.proofs.trading", str(home / DATABASE), str(random.getrandbits(32)), str(self.rounds), end]
            events += record([*command, *self.pragmas], home, FILES, killed=end == "die")
        return events

    def played(self, random: Random, events: list[Event], home: Path, runner: asyncio.Runner) -> Found:
        found = Found(self.hasty, self.states)
        failure = Failure(random, found.met)
        disk, said, answered, restarts = Disk(), list[bytes](), 0, 0
        seen = set[tuple[bytes, int]]()
        times = chosen(random, events, self.states)
        for number, event in enumerate(events):
            disk.play(event)
            if isinstance(event, Said):
                said += event.lines
                answered += sum(line.startswith(ANSWERED) for line in event.lines)
                restarts = 0 if b"opening" in event.lines else restarts  # another life
            restarts += isinstance(event, Write) and event.name == LOG and event.offset == 0
            for _ in range(times[number]):
                left = failure.strike(disk)
                state = digest(left)
                if (state, answered) in seen:
                    continue
                seen.add((state, answered))
                verdict = after(left, said, home, runner, random)
                found.states += 1
                found.answers += answered
                found.losing += bool(verdict.lost)
                found.different.add(state)
                note(found.met, disk, restarts, verdict)
                if verdict.wrong or (verdict.lost and not self.hasty):
                    found.story = self.story(number, events, left, verdict)
                    return found
        return found

    def story(self, number: int, events: list[Event], left: dict[str, bytes], verdict: Verdict) -> str:
        """Keep what was on the disk, and say what is wrong with it."""
        kept = Path(tempfile.mkdtemp(prefix="disk-", dir=self.folder))
        for name, content in left.items():
            (kept / name).write_bytes(content)
        what = [f"wrong: {each}" for each in verdict.wrong[:3]] + [f"lost: {each}" for each in verdict.lost[:3]]
        setting = ", ".join(self.pragmas) or "the store as it is"
        return (
            f"power lost after event {number + 1} of {len(events)} ({type(events[number]).__name__}; {setting}):"
            f" {'; '.join(what)}; {len(verdict.lost)} answers lost in all; the disk is in {kept}"
        )


def chosen(random: Random, events: list[Event], states: int) -> Counter[int]:
    """After which events the power fails, and how often there: half of it where something rare is not synced."""
    disk = Disk()
    moments: dict[str, list[int]] = {what: [] for what in ("any", "unsure", "checkpoint", "log cut", "renamed")}
    for number, event in enumerate(events):
        disk.play(event)
        moments["any"].append(number)
        database, log = disk.files.get(DATABASE), disk.files.get(LOG)
        for what, so in (
            ("unsure", disk.unsure),
            ("checkpoint", log and database and database.pending),
            ("log cut", log and any(isinstance(change, Cut) for change in log.pending)),
            ("renamed", disk.renamed),
        ):
            if so:
                moments[what].append(number)
    met = [what for what, numbers in moments.items() if numbers]
    kinds = random.choices(met, [WEIGHTS[what] for what in met], k=states)
    return Counter(random.choice(moments[kind]) for kind in kinds)


CHANCES = ((0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.5, 0.2), (0.5, 1.0), (0.9, 0.1), (0.9, 0.02), (0.1, 0.1))
"""Of a sector that is not synced: to be kept, and to be torn instead."""
WEIGHTS = {"any": 10, "unsure": 35, "checkpoint": 30, "log cut": 10, "renamed": 15}
"""Of the moments at which the power fails, by what is not synced then."""


def after(left: dict[str, bytes], said: list[bytes], home: Path, runner: asyncio.Runner, random: Random) -> Verdict:
    """Start on what is left; the index of the log, which is never synced, may be anything."""
    for path in home.iterdir():
        path.unlink()
    for name, content in left.items():
        (home / name).write_bytes(content)
    if random.random() < 0.2:
        (home / f"{DATABASE}-shm").write_bytes(random.randbytes(32_768))
    return runner.run(recovered(home / DATABASE, said))


def digest(left: Mapping[str, bytes]) -> bytes:
    """The same for the same files alone, in every process."""
    whole = hashlib.blake2b(digest_size=16)
    for name, content in sorted(left.items()):
        whole.update(f"{name} {len(content)} ".encode())
        whole.update(content)
    return whole.digest()


def note(met: Counter[str], disk: Disk, restarts: int, verdict: Verdict) -> None:
    database, log = disk.files.get(DATABASE), disk.files.get(LOG)
    met["cut in a checkpoint"] += bool(log and database and database.pending)
    met["cut after the log began again"] += restarts > 1
    met["cut before the log was cut"] += bool(log and any(isinstance(change, Cut) for change in log.pending))
    met["holds resolved"] += verdict.resolved > 0


PROOF = Proof(
    name="power-loss",
    claim="What was answered is there after the power failed, whatever of the rest had reached the disk.",
    short={GOAL: 150},
    full={GOAL: 100_000},
    run=run,
    limit_s=(60, 3_600),
)
