"""Every branch of what holds the money is taken by the tests of its own part, whichever way it can go.

Each part is a few files of the product and the test files that must take all of their branches by themselves, in their
own process or in the daemons and programs that they start: a branch that only some far-away test happens to take, or
only a value that hypothesis happens to draw, is not covered, and no comment in the product can excuse one. Branches are
those between statements, as coverage.py has them; what is decided within an expression, or within SQL, it does not see:
for the ledger and the prices, the mutants do. The short form measures one small part, picked by the seed; the full form
all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

import coverage

from tests.proofs.proof import Attempt, Proof

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "goosestack"


@dataclass(frozen=True, slots=True)
class Part:
    """Files of the product, and the test files that take all of their branches, both by their stems."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    small: bool = False
    """Whether its tests run in this process alone, within a second or two."""

    def paths(self) -> list[Path]:
        return [PRODUCT / f"{name}.py" for name in self.files]


MONEY_IN = "billing inbox payments subscriptions facts till cashier autotopup stripe_facts"
"""The files that `billing` consists of. Debts are the ledger's."""

NO_STATEMENT = r"(^|:)\s*\.\.\.$"
"""What alone is left out: the body of a protocol's method, which nobody calls. No mark leaves out more."""

PARTS = (
    Part(
        "billing",
        tuple(MONEY_IN.split()),
        tuple(
            """billing webhook payments subscriptions stripe_facts auto_topup reconcile threats_billing
            threats_stripe till cashier""".split()
        ),
    ),
    Part(
        "store",
        ("store/__init__", "store/sqlite", "store/migrations", "store/backup"),
        ("store", "store_sqlite", "backup", "restore_killed"),
    ),
    Part("pricing", ("pricing", "costing"), ("pricing", "prices_file", "costing")),
    Part(
        "wire",
        tuple(
            f"wire/{name}"
            for name in """__init__ body media mobile_chat openai_chat openai_embeddings openai_responses parts
            sse""".split()
        ),
        ("wire_openai", "body", "bounds", "mobile_chat"),
    ),
    Part("ledger", ("ledger",), ("ledger", "ledger_books"), small=True),
    Part("messages", ("wire/anthropic_messages",), ("wire_anthropic",), small=True),
    Part("envelopes", ("wire/envelope",), ("envelope",), small=True),
    Part("credentials", ("auth",), ("auth",), small=True),
)
"""The longest first."""


def promised() -> set[Path]:
    """The files of which all branches are to be taken: also one that is put beside them tomorrow."""
    alone = [PRODUCT / f"{name}.py" for name in f"ledger pricing costing auth {MONEY_IN}".split()]
    return {*alone, *PRODUCT.glob("wire/*.py"), *PRODUCT.glob("store/*.py")}


class Run:
    """The tests of a part in a process of their own, with everything that they start, measured."""

    def __init__(self, part: Part, folder: Path) -> None:
        self.part, self.settings = part, folder / f"{part.name}.ini"
        self.control = next(other for other in reversed(PARTS) if other is not part)
        """Measured as well, because these tests do not take all of it: that must be seen."""
        self.output = folder / f"{part.name}.out"
        files = "".join(f"\n    {path}" for path in [*part.paths(), *self.control.paths()])
        self.settings.write_text(
            f"[run]\nbranch = true\nparallel = true\npatch = subprocess, _exit\ndata_file = {folder / part.name}.data\n"
            f"include = {files}\n[report]\nexclude_lines = {NO_STATEMENT}\npartial_branches =\n"
        )
        tests = [str(ROOT / "tests" / f"test_{name}.py") for name in part.tests]
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={self.settings}", "-m", "pytest", "-q", *tests]
        command += ["-m", "not hypothesis"]  # what it tries is luck
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, f"--basetemp={folder / part.name}"],
                cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End it, with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, SIGKILL)
        self.process.wait()

    def report(self) -> dict[str, Any]:
        """What its tests took, by file, once they have ended; as `coverage json` writes it."""
        found, report = coverage.Coverage(config_file=str(self.settings)), self.settings.with_suffix(".json")
        found.combine()
        found.json_report(outfile=str(report))
        files: dict[str, Any] = json.loads(report.read_text())["files"]
        return {str((ROOT / name).resolve()): about for name, about in files.items()}


def carried_out(parts: list[Part], folder: Path) -> Iterator[Run]:
    """A run for each part, when it has ended; as many at once as there are processors."""
    waiting, running = list(parts), set[Run]()
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                running.add(Run(waiting.pop(0), folder))
            for done in [each for each in running if each.process.poll() is not None]:
                running.remove(done)
                yield done
            time.sleep(0.05)
    finally:
        for each in running:
            each.stop()


def run(attempt: Attempt) -> None:
    attempt.expect("branches")
    claimed = [path for part in PARTS for path in part.paths()]
    attempt.must(len(claimed) == len(set(claimed)), "a file is claimed by two parts")
    unclaimed = sorted(str(path.relative_to(ROOT)) for path in promised() ^ set(claimed))
    attempt.must(not unclaimed, f"no part claims {', '.join(unclaimed)}, or it is no such file")
    parts = list(PARTS)
    if not attempt.full:
        parts = [attempt.random.choice([part for part in PARTS if part.small])]
    statements, branches, covered = 0, 0, 0
    gaps: list[str] = []
    for done in carried_out(parts, attempt.folder):
        tail = done.output.read_text(errors="replace")[-2000:]
        attempt.must(done.process.returncode == 0, f"the tests of {done.part.name} do not even pass: {tail}")
        report = done.report()
        left = [gap for path in done.control.paths() for gap in not_taken(report[str(path)])]
        attempt.must(bool(left), f"the tests of {done.part.name} are said to take every branch of {done.control.name}")
        for path in done.part.paths():
            about, where = report[str(path)], path.relative_to(ROOT)
            if missing := ", ".join(not_taken(about)):
                gaps.append(f"the tests of {done.part.name} never take, in {where}: {missing}")
            statements += about["summary"]["num_statements"]
            branches += about["summary"]["num_branches"]
            covered += about["summary"]["covered_branches"]
    attempt.must(not gaps, "; ".join(gaps))
    attempt.meet("branches", branches)
    attempt.count("percent of branches", 100 * covered // max(1, branches))
    attempt.figure(
        f"{statements:,} statements and {branches:,} branches in {sum(len(part.files) for part in parts)} files"
    )


def not_taken(about: Mapping[str, Any]) -> Iterator[str]:
    """What was never run of a file, and the ways that were never taken from what was."""
    for line in about["missing_lines"]:
        yield f"line {line}"
    for line, way in about["missing_branches"]:
        if line not in about["missing_lines"]:
            yield f"from line {line} to {'the end' if way < 0 else f'line {way}'}"


PROOF = Proof(
    name="branches",
    claim="All branches of ledger, prices, formats, store, credentials and money in are taken by their own tests.",
    short={"percent of branches": 100},
    full={"percent of branches": 100},
    run=run,
    limit_s=(90, 2400),
)
