"""Part one: as many requests as a fixed number of connections can make, plain and streamed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchlib.candidates import Candidate, audit, prove, start, start_upstream
from benchlib.processes import Processes, cores, cpu_s, rss_mb
from benchlib.workload import KINDS, write_files

CONCURRENCY = (1, 16, 64)
WARM_UP_S = 1

CPU_RATIO = 1.6  # GooseStack to bare, at the highest concurrency
REQUESTS_PER_S = 3000  # on one core, at the highest concurrency
START_S = 1.0
IDLE_MB = 90.0


@dataclass(frozen=True)
class Cell:
    """One load: rates per second, CPU in microseconds per answer, latency in ms, memory in MB."""

    requests_per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    rss_mb: float
    failed: int


Cells = dict[tuple[str, int, str], list[Cell]]  # by kind, concurrency and name, a round each


def drive(ours: Processes, kind: str, candidate: Candidate, connections: int, s: int) -> Cell:
    """Runs wrk for so many seconds and reads what the candidate's process used meanwhile."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{s}s", "--timeout", "10s"]
    command += ["-s", str(ours.work / "post.lua"), candidate.url]
    env = {"BENCH_KEY": candidate.key, "BENCH_BODY": str(ours.work / f"{kind}.request")}
    before, peak = cpu_s(candidate.pid) if candidate.pid else 0.0, 0.0
    wrk = ours.start("wrk", command, cores()[1], env)
    while wrk.poll() is None:
        time.sleep(0.1)
        peak = max(peak, rss_mb(candidate.pid) if candidate.pid else 0.0)
    used = cpu_s(candidate.pid) - before if candidate.pid else 0.0
    ours.finish(wrk)
    found: dict[str, int] = json.loads((ours.work / "wrk.log").read_text().splitlines()[-1])
    candidate.answers += found["answers"] - found["refused"]
    candidate.cut += connections
    return Cell(
        requests_per_s=(found["answers"] - found["refused"]) / (found["us"] / 1e6),
        cpu_us=used * 1e6 / max(1, found["answers"]),
        p50_ms=found["p50"] / 1e3,
        p99_ms=found["p99"] / 1e3,
        rss_mb=peak,
        failed=found["refused"] + found["broken"],
    )


def run(ours: Processes, names: Sequence[str], rounds: int, seconds: int) -> tuple[dict[str, Any], bool]:
    """Drives every candidate at every concurrency in turn, prints; the figures, and if billed."""
    write_files(ours.work)
    base = start_upstream(ours)
    results: Cells = {}
    candidates: list[Candidate] = []
    sound = True
    for kind in KINDS:
        field = [start(ours, name, kind, f"{base}/{kind}/v1", rounds) for name in names]
        for candidate in field:
            prove(candidate, (ours.work / f"{kind}.request").read_bytes(), kind)
            drive(ours, kind, candidate, 16, WARM_UP_S)
        for number in range(rounds):
            for connections in CONCURRENCY:
                for candidate in field[number % len(field) :] + field[: number % len(field)]:
                    cell = drive(ours, kind, candidate, connections, seconds)
                    results.setdefault((kind, connections, candidate.name), []).append(cell)
        for connections in CONCURRENCY:
            print_table(kind, connections, results, names)
        for candidate in field:
            ours.stop(candidate.pid)
            if candidate.env:
                sound = audit(candidate) and sound
        candidates += field
    print_processes(candidates)
    if "goosestack" in names:
        print_targets(results, candidates)
    cells = [
        {"kind": k, "connections": c, "name": n, "rounds": [asdict(cell) for cell in cells]}
        for (k, c, n), cells in results.items()
    ]
    starts = {c.name: {"start_s": median(c.starts_s), "idle_mb": c.idle_mb} for c in candidates if c.pid}
    return {"load": cells, "processes": starts}, sound


def of(cells: Sequence[Cell], figure: Callable[[Cell], float]) -> float:
    """The median of a figure over the rounds."""
    return median(figure(cell) for cell in cells)


def print_table(kind: str, connections: int, results: Cells, names: Sequence[str]) -> None:
    """One table: the candidates at one concurrency."""
    print(f"\n{kind}, {connections} concurrent")
    heads = ("req/s", "CPU µs", "p50 ms", "p99 ms", "+p50", "+p99", "MB", "failed")
    print(f"{'':12}" + "".join(f"{head:>9}" for head in heads))
    direct = results[kind, connections, "direct"]
    for name in names:
        cells = results[kind, connections, name]
        added = list(zip(cells, direct, strict=True))
        row = [
            f"{of(cells, lambda c: c.requests_per_s):,.0f}",
            f"{of(cells, lambda c: c.cpu_us):.0f}",
            f"{of(cells, lambda c: c.p50_ms):.2f}",
            f"{of(cells, lambda c: c.p99_ms):.2f}",
            f"{median(c.p50_ms - d.p50_ms for c, d in added):.2f}",
            f"{median(c.p99_ms - d.p99_ms for c, d in added):.2f}",
            f"{of(cells, lambda c: c.rss_mb):.0f}",
            f"{sum(c.failed for c in cells)}",
        ]
        if name == "direct":
            row[1] = row[4] = row[5] = row[6] = "-"
        print(f"{name:12}" + "".join(f"{value:>9}" for value in row))


def print_processes(candidates: Sequence[Candidate]) -> None:
    """Start time (spawn to the first /health) and idle memory, of each process that has them."""
    print(f"\n{'':12}{'start s':>9}{'idle MB':>9}")
    for name in dict.fromkeys(c.name for c in candidates if c.pid):
        mine = [c for c in candidates if c.name == name]
        start_s = median(s for c in mine for s in c.starts_s)
        print(f"{name:12}{start_s:9.2f}{median(c.idle_mb for c in mine):9.0f}")


def print_targets(results: Cells, candidates: Sequence[Candidate]) -> None:
    """What GooseStack is held to, and whether it got there."""
    top = CONCURRENCY[-1]
    print("\nGooseStack's targets")
    for kind in KINDS:
        goose, bare = results[kind, top, "goosestack"], results.get((kind, top, "bare"))
        note = ""
        if bare:
            ratio = median(g.cpu_us / b.cpu_us for g, b in zip(goose, bare, strict=True))
            target(f"{kind}: CPU to bare at {top}", ratio, CPU_RATIO, "")
            note = f"bare: {of(bare, lambda c: c.requests_per_s):,.0f}"
        rate = of(goose, lambda c: c.requests_per_s)
        target(f"{kind}: requests/s at {top}", rate, REQUESTS_PER_S, note, least=True)
    mine = [c for c in candidates if c.name == "goosestack"]
    target("start", median(s for c in mine for s in c.starts_s), START_S, "", unit="s")
    target("idle memory", max(c.idle_mb for c in mine), IDLE_MB, "", unit="MB")


def target(what: str, got: float, wanted: float, note: str, *, unit: str = "", least: bool = False) -> None:
    """Prints a figure beside its target and, as a note, what the same machine does without us."""
    met = got >= wanted if least else got <= wanted
    aim = f"target {'>=' if least else '<='} {wanted:,g} {unit}"
    shown = f"{got:,.0f}" if got >= 1000 else f"{got:.2f}"
    verdict = ("met" if met else "NOT MET") + (f" ({note})" if note else "")
    print(f"  {what:32}{shown:>8} {unit:4}{aim:20}{verdict}")
