"""`scripts/prove`: carry proofs out and print the scorecard."""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.proofs.catalogue import PROOFS
from tests.proofs.proof import Attempt, Proof, Score, attempted


def main() -> int:
    """0 where every promise held, 1 where one did not."""
    options = arguments()
    print(conditions())
    scores = []
    for proof in chosen(options.only):
        scores.append(carried_out(proof, options))
        if options.json:
            options.json.write_text(json.dumps([record(each) for each in scores], indent=1) + "\n")
    print("\n" + scorecard(scores))
    return 0 if all(score.story is None for score in scores) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/prove", description=__doc__)
    parser.add_argument("--full", action="store_true", help="to the targets, not the short form")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one proof; may be repeated")
    parser.add_argument("--seed", type=int, help="repeat a run by the seed that it printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, after each proof")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="a real disk (default /var/tmp)")
    parser.add_argument("--list", action="store_true", help="name the proofs and their targets, and end")
    options = parser.parse_args()
    if unknown := set(options.only) - {proof.name for proof in PROOFS}:
        parser.error(f"no such proof: {', '.join(sorted(unknown))}")
    if options.list:
        for proof in PROOFS:
            print(f"{proof.name:16} {words(proof.full)}: {proof.claim}")
        parser.exit()
    return options


def chosen(names: list[str]) -> list[Proof]:
    return [proof for proof in PROOFS if proof.name in names] if names else list(PROOFS)


def carried_out(proof: Proof, options: argparse.Namespace) -> Score:
    """Carry out one proof, and say at once how it ended; its folder is kept where it was refuted."""
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    print(f"{proof.name}: seed {seed} ...", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"goosestack-{proof.name}-", dir=options.dir))
    attempt = Attempt(seed, proof.full if options.full else proof.short, folder, options.full)
    score = attempted(proof, attempt)
    met = ", ".join(f"{danger} {times:,}" for danger, times in sorted(attempt.met.items()))
    print(f"  {words(attempt.reached)} in {score.seconds:.1f} s; met: {met or 'nothing that it counts'}")
    for figure in attempt.figures:
        print(f"  {figure}")
    if score.story is None:
        shutil.rmtree(folder)
    else:
        print(f"  REFUTED: {score.story}\n  kept: {folder}\n  again: {again(proof, attempt)}", flush=True)
    return score


def again(proof: Proof, attempt: Attempt) -> str:
    return f"scripts/prove {'--full ' if attempt.full else ''}--only {proof.name} --seed {attempt.seed}"


def scorecard(scores: list[Score]) -> str:
    """A Markdown table: what each was to reach in this form, and has."""
    lines = ["| proof | claim | to reach | reached | held | seed | time |", "|---|---|---|---|---|---|---|"]
    for score in scores:
        cells = (
            f"`{score.proof.name}`",
            score.proof.claim,
            words(score.attempt.goal),
            words(score.attempt.reached),
            "yes" if score.story is None else "REFUTED",
            str(score.attempt.seed),
            f"{score.seconds:,.0f} s",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def words(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in numbers.items())


def record(score: Score) -> dict[str, object]:
    attempt = score.attempt
    return {
        "proof": score.proof.name,
        "seed": attempt.seed,
        "full": attempt.full,
        "reached": attempt.reached,
        "target": score.proof.full,
        "met": attempt.met,
        "figures": attempt.figures,
        "seconds": round(score.seconds, 1),
        "story": score.story,
    }


def conditions() -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}"
    )


if __name__ == "__main__":
    sys.exit(main())
