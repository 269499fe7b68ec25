"""Part three: what one call of a part costs, alone in a loop, in microseconds.

A part is a name and a setup that prepares whatever it needs in a new directory and returns the
call to be timed. Add a line to PARTS; nothing else has to know.
"""

from __future__ import annotations

import hashlib
import json
import timeit
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchlib.workload import canned, chat_request

Setup = Callable[[Path], Callable[[], object]]


def key_hash(work: Path) -> Callable[[], object]:
    """SHA-256 of an API key."""
    key = b"gsk_" + b"x" * 43
    return lambda: hashlib.sha256(key).digest()


def json_request(work: Path) -> Callable[[], object]:
    """The 1 KB request through the standard library's parser: a yardstick."""
    body = chat_request(stream=False)
    return lambda: json.loads(body)


def json_stream(work: Path) -> Callable[[], object]:
    """Every event of the canned stream through the same parser: what not to do."""
    events = [e[6:] for e in canned("stream").split(b"\n\n") if e.startswith(b"data: {")]
    return lambda: [json.loads(e) for e in events]


PARTS: list[tuple[str, Setup]] = [
    ("yardstick: SHA-256 of a key", key_hash),
    ("yardstick: json.loads of 1 KB", json_request),
    ("yardstick: json.loads of 60 events", json_stream),
]


def run(work: Path, rounds: int) -> dict[str, float]:
    """Times every part: the median over the rounds of at least 0.2 s each, in microseconds."""
    print("\nparts, µs per call")
    costs: dict[str, float] = {}
    for number, (name, setup) in enumerate(PARTS):
        home = work / f"part-{number}"
        home.mkdir()
        timer = timeit.Timer(setup(home))
        loops, _ = timer.autorange()
        costs[name] = median(timer.repeat(rounds, loops)) / loops * 1e6
        print(f"  {name:44}{costs[name]:10.2f}")
    return costs
