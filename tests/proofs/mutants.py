"""A mistake in the ledger or the prices is found: any small change to either makes some test of them fail.

Every mutant (see `mutations`) meets the tests of its module, in a fork of a process that has gathered them (`hunting`).
One that survives, or only hangs, must stand in `survivors.toml` with the reason why no test could find it, and nothing
may stand there that is found, or is no mutant any more. It counts against the score also where it is explained. Mutants
that are no program (SQL that cannot be read, a name that is not there) count for nothing.

The short form hunts a few of one module, picked by the seed among those of its functions that are not explained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.proofs.hunting import NOTHING
from tests.proofs.mutations import mutants_of
from tests.proofs.proof import Attempt, Proof

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).with_name("survivors.toml")
TESTS: Mapping[str, Sequence[str]] = {
    "ledger": ("test_ledger", "test_ledger_books", "test_ledger_model"),
    "pricing": ("test_pricing", "test_prices_file"),
}
"""What each module's mutants meet, the quickest first."""


def explained() -> dict[str, dict[str, str]]:
    """Why each survivor cannot be found, by module and name."""
    written = tomllib.loads(SURVIVORS.read_text())
    found: dict[str, dict[str, str]] = {module: {} for module in TESTS}
    for module, reasons in written.items():
        for reason in reasons:
            assert reason["why"]
            for name in reason["mutants"]:
                assert name not in found[module], f"{name} is explained twice"
                found[module][name] = reason["why"]
    return found


def hunt(module: str, wanted: Sequence[str], attempt: Attempt) -> dict[str, str]:
    """The fate of each of these mutants."""
    order, fates = attempt.folder / f"{module}.json", attempt.folder / f"{module}.fates"
    order.write_text(
        json.dumps(
            {
                "module": module,
                "tests": [str(ROOT / "tests" / f"{name}.py") for name in TESTS[module]],
                "wanted": wanted,
                "survey": attempt.full,
                "fates": str(fates),
            }
        )
    )
    output = attempt.folder / f"{module}.out"
    with output.open("wb") as file:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.proofs.hunting", str(order)]
        subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=file, check=False)
    tail = output.read_text(errors="replace")[-2000:]
    attempt.must(fates.exists(), f"the hunt for {module} did not begin: {tail}")
    lines = [json.loads(line) for line in fates.read_text().splitlines()]
    unchanged = {line["fate"] for line in lines if line["mutant"] == NOTHING}
    attempt.must(unchanged == {"survived"}, f"the tests of {module} fail where nothing was changed: {tail}")
    found = {line["mutant"]: line["fate"] for line in lines if line["mutant"] != NOTHING}
    attempt.must(len(found) == len(wanted), f"{len(wanted) - len(found)} mutants of {module} were never met: {tail}")
    return found


def run(attempt: Attempt) -> None:
    reasons = explained()
    modules = list(TESTS) if attempt.full else [attempt.random.choice(list(TESTS))]
    total: Counter[str] = Counter()
    percents = []
    for module in modules:
        mutants = mutants_of((ROOT / "goosestack" / f"{module}.py").read_text())
        known = [mutant.name for mutant in mutants]
        unknown = sorted(set(reasons[module]) - set(known))
        attempt.must(not unknown, f"survivors.toml explains what is no mutant of {module}: {'; '.join(unknown)}")
        wanted = known
        if not attempt.full:
            candidates = [each.name for each in mutants if each.function and each.name not in reasons[module]]
            wanted = attempt.random.sample(candidates, attempt.goal["mutants"])
        fates = hunt(module, wanted, attempt)
        survivors = {name for name, fate in fates.items() if fate in ("survived", "hung")}
        alive = sorted(survivors - set(reasons[module]))
        attempt.must(not alive, f"no test of {module} finds, and nothing explains: {'; '.join(alive)}")
        stale = sorted((set(reasons[module]) & set(fates)) - survivors)
        attempt.must(not stale, f"survivors.toml explains why {module} has what is found: {'; '.join(stale)}")
        score = Counter(fates.values())
        total += score
        found, programs = score["found"], len(fates) - score["stillborn"]
        percents.append(100 * found // max(1, programs))
        attempt.figure(
            f"{module}: {found:,} of {programs:,} mutants found ({100 * found / max(1, programs):.1f} %),"
            f" {score['hung']} hung; {score['stillborn']} more are no program"
        )
    attempt.expect("mutant that is found")
    attempt.meet("mutant that is found", total["found"])
    if attempt.full:
        attempt.expect("mutant that is no program", "survivor that is explained")
        attempt.meet("mutant that is no program", total["stillborn"])
        attempt.meet("survivor that is explained", total["survived"])
        attempt.count("percent of mutants found", min(percents))
    else:
        attempt.count("mutants", total.total())


PROOF = Proof(
    name="mutants",
    claim="Any small change to the ledger, its SQL or the prices makes a test fail, but for those that change nothing.",
    short={"mutants": 5},
    full={"percent of mutants found": 95},
    run=run,
    limit_s=(90, 3600),
)
