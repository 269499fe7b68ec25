"""Starts of a daemon whose database fails at the N-th call, for N = 1, 2, 3 and so on until it has needed no more: it
serves all the same, or ends with one sentence, and leaves books from which the next one comes further, and the last one
serves."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from random import Random

from tests.asking import chat, directed, opened
from tests.proofs.bench import EVERY, FAULTS, MOST_CALLS, SETTINGS, Bench, FailingDaemon
from tests.proofs.proof import Attempt
from tests.world import Upstream, World

BOOKS = ("new books", "books that a killed daemon has left")
EXITS = (70, 75)
"""How a start may end on a disk that fails: with a commit of unknown outcome, or to be tried again."""

PATIENCE_S = 15.0


def at_the_start(attempt: Attempt, world: World, books: str, fault: str, places: Iterable[int]) -> None:
    """Begin a daemon with the database failing at each of these calls, until it serves without having come to one: it
    serves all the same, or ends with one sentence."""
    daemon = world.daemon
    assert isinstance(daemon, FailingDaemon)
    for place in places:
        where = f"a start with {books}, {fault} at call {place}"
        daemon.program.stop(signal.SIGKILL)
        if books == BOOKS[0]:
            for path in daemon.folder.glob("goosestack.db*"):
                path.unlink()
        before = daemon.switch.struck
        daemon.switch.arm(place, fault)
        daemon.begin()
        serves = daemon.serves()
        daemon.switch.arm(0, fault)
        if daemon.switch.struck == before:
            attempt.must(serves, f"{where}: it ended, and nothing had failed: {daemon.program.text()[-300:]}")
            return
        attempt.count("failed starts")
        if serves:
            attempt.meet("a start all the same")
            continue
        code = daemon.program.process.wait(PATIENCE_S)
        said = [line for line in daemon.program.text().splitlines() if not line.startswith("{")]
        attempt.must(code in EXITS, f"{where}: it ended with {code}: {said[-1:]}")
        attempt.must(len(said) == 1 and said[0].startswith("goosestack: "), f"{where}: it said {said}")
        attempt.meet("a start that was refused")
    if places is EVERY:
        attempt.must(False, f"a start with {books}, {fault}: after {MOST_CALLS:,} calls there is no end of them")


def every_start(attempt: Attempt, chance: Random) -> None:
    """Every start with each fault at each call; in short, one of them. The books that were left have open holds. What
    it draws, it draws by itself, so that it may go on beside something else."""
    for books in BOOKS if attempt.full else [chance.choice(BOOKS)]:
        folder = attempt.folder / books.replace(" ", "-")
        folder.mkdir()
        upstream = Upstream(folder)
        world = World(folder, upstream, FailingDaemon(folder, upstream.url, **SETTINGS))
        bench = Bench(world, world.customer(100_000))
        try:
            chosen = FAULTS if attempt.full else [chance.choice(FAULTS)]
            for fault in chosen:
                if books != BOOKS[0]:
                    leave_open(bench)
                at_the_start(attempt, world, books, fault, EVERY if attempt.full else [chance.randrange(1, 8)])
            world.daemon.program.stop(signal.SIGKILL)
            world.daemon.start()
            world.check()
        finally:
            world.daemon.program.stop(signal.SIGKILL)
            upstream.program.stop(signal.SIGKILL)


def leave_open(bench: Bench) -> None:
    """The daemon is started anew, and dies with a request in flight."""
    bench.world.daemon.program.stop(signal.SIGKILL)
    bench.world.daemon.start()
    body = chat(directed("Hi", words=40, delay_ms=40), stream=True, max_tokens=100)
    with opened(bench.world, "/v1/chat/completions", key=bench.alice.key, body=body):
        bench.world.daemon.program.stop(signal.SIGKILL)
