"""Hunting mutants: the tests of a module are gathered once, and a process is forked for each mutant of it.

    python -m tests.proofs.hunting ORDER

ORDER is a JSON file: the `module`, its `tests` (files), the mutants `wanted` by name, whether to `survey` the stories
first (which functions each enters, and how long it takes: then a mutant meets only those that enter its function, the
quickest first, and the tests that draw their examples) and where the `fates` go, one JSON line for each. The module
itself, unchanged, is hunted first, in both ways, under the name `nothing`: where the tests do not pass, a hunt says
nothing. Without a survey it does not meet all of them, but, under that name, each that has found a mutant.

A mutant of a function: the fork changes that function of the loaded module in place, so that whoever has imported it
has the mutant. A mutant of what the module or a class says (a constant, a default) may have gone into what others made
of it when they were imported, the tests too: its fork has the mutant in the module's place before it gathers them.

A mutant is *found* where a test fails, *hung* where none does before the fork has used up its time on a processor, and
*stillborn* where it is no program (a name that is not there, SQL that cannot be read, a module that cannot be
imported): that says nothing about the tests. A fork that ends in any other way ends the hunt.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import hypothesis
import pytest

from tests.proofs.mutations import Mutant, mutants_of

NOTHING = "nothing"
FATES = ("survived", "found", "stillborn")
"""By the exit status of the fork."""
NO_PROGRAM = (NameError, SyntaxError, sqlite3.OperationalError, sqlite3.ProgrammingError)
MOST_S = 10
"""How long a fork may take, on a processor of its own, beside three times as long as the survey took over its stories,
and three times this for what draws."""
ANEW_S = 60
"""The same for one that gathers the tests itself."""


class FirstFailure:
    """A pytest plugin: the first failure of a test ends the process, and says the fate of its mutant."""

    def tell(self, item: pytest.Item) -> None:
        """Which test that is, before the process ends."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """What draws many examples comes last: a story is told in a thousandth of the time."""
        items.sort(key=draws)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[object]) -> None:
        """Which is not described at length: that takes longer than the test."""
        if call.excinfo is not None and not isinstance(call.excinfo.value, pytest.skip.Exception):
            print(item.nodeid, repr(call.excinfo.value)[:200], flush=True)
            self.tell(item)
            broken = any(isinstance(error, NO_PROGRAM) for error in leaves(call.excinfo.value))
            os._exit(FATES.index("stillborn" if broken else "found"))


class Hunt(FirstFailure):
    """Runs, instead of the tests, every mutant of a function against them."""

    def __init__(self, order: dict[str, Any], mutants: list[Mutant], note: Callable[[str, str], None]) -> None:
        self.order = order
        self.mutants = mutants
        self.note = note
        self.told = os.pipe()
        os.set_blocking(self.told[0], False)
        self.sound: set[str] = set()
        """The tests that the module itself, unchanged, has met."""
        self.entered: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of the tests themselves."""
        self.module = importlib.import_module(f"goosestack.{self.order['module']}")
        if self.order["survey"]:
            self._survey(session.items)
            self.note(NOTHING, fate(partial(self._meet, session.items)))
            self.sound.update(item.nodeid for item in session.items)
        for mutant in self.mutants:
            self.note(mutant.name, fate(self._hunted(session.items, mutant)))
            self._make_sure_of(session.items)
        return True

    def tell(self, item: pytest.Item) -> None:
        """Of the fork, to whom it was forked from."""
        os.write(self.told[1], f"{item.nodeid}\n".encode())

    def _make_sure_of(self, items: list[pytest.Item]) -> None:
        """Let the module itself, unchanged, meet the test that has just failed, once: it must pass."""
        with suppress(BlockingIOError):  # nothing was told
            failed = set(os.read(self.told[0], 1 << 16).decode().splitlines()) - self.sound
            for item in items:
                if item.nodeid in failed:
                    self.note(NOTHING, fate(partial(self._meet, [item])))
            self.sound |= failed

    def _survey(self, items: list[pytest.Item]) -> None:
        """Which functions of the module each story enters, and how long it takes, told by a fork that runs them all."""
        reader, writer = os.pipe()

        def run() -> int:
            for item in (each for each in items if not draws(each)):
                entered: set[str] = set()
                began = time.process_time()
                sys.setprofile(self._watch(entered))
                self._run(item)
                sys.setprofile(None)
                line = {"test": item.nodeid, "entered": sorted(entered), "seconds": time.process_time() - began}
                os.write(writer, (json.dumps(line) + "\n").encode())
            return 0

        child = fork(run)
        os.close(writer)
        with os.fdopen(reader) as lines:
            for line in map(json.loads, lines):
                self.entered[line["test"]], self.seconds[line["test"]] = set(line["entered"]), line["seconds"]
        os.waitpid(child, 0)

    def _watch(self, entered: set[str]) -> Callable[[FrameType, str, object], None]:
        file = self.module.__file__

        def watch(frame: FrameType, event: str, _arg: object) -> None:
            if event == "call" and frame.f_code.co_filename == file:
                entered.add(frame.f_code.co_qualname.partition(".<locals>")[0])

        return watch

    def _hunted(self, items: list[pytest.Item], mutant: Mutant) -> Callable[[], int]:
        """What the fork for a mutant does."""

        def run() -> int:
            try:
                transplant(mutant, self.module)
            except SyntaxError:
                return FATES.index("stillborn")
            return self._meet(self._chosen(items, mutant))

        return run

    def _chosen(self, items: list[pytest.Item], mutant: Mutant) -> list[pytest.Item]:
        """The tests that can tell, once they are surveyed: the stories that enter its function, the quickest first, and
        whatever draws."""
        if not self.entered:
            return items
        chosen = [item for item in items if draws(item) or mutant.function in self.entered[item.nodeid]]
        return sorted(chosen, key=lambda item: self.seconds.get(item.nodeid, MOST_S))

    def _meet(self, items: list[pytest.Item]) -> int:
        """Run tests until one fails, which ends the process; the number of the fate where none does."""
        limit(MOST_S + round(3 * sum(self.seconds.get(item.nodeid, MOST_S * draws(item)) for item in items)))
        for item in items:
            self._run(item)
        return FATES.index("survived")

    def _run(self, item: pytest.Item) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def draws(item: pytest.Item) -> bool:
    """Whether hypothesis draws what the test is given."""
    return getattr(getattr(item, "obj", None), "is_hypothesis_test", False)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """An error, or all that a group of them consists of."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


# --- forks ----------------------------------------------------------------------------------------------------


def fork(run: Callable[[], int]) -> int:
    """A process that ends with what `run` gives; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os._exit(run())
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(100)
    return child


def fate(run: Callable[[], int]) -> str:
    """That of the mutant whose fork ends with the number that `run` gives."""
    _, status = os.waitpid(fork(run), 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGXCPU, f"a fork was ended by signal {os.WTERMSIG(status)}"
        return "hung"
    return FATES[os.waitstatus_to_exitcode(status)]


def limit(seconds: int) -> None:
    """What this process may take of a processor before it is killed."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))


# --- a mutant in the place of what is there -------------------------------------------------------------------


def transplant(mutant: Mutant, module: ModuleType) -> None:
    """Give the mutant's code and defaults to its function in the loaded module, which stays who it is."""
    fresh = ModuleType(module.__name__)
    mutant.apply()
    exec(compile(ast.fix_missing_locations(mutant.tree), str(module.__file__), "exec"), fresh.__dict__)
    old, new = (function_of(each, mutant.function) for each in (module, fresh))
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def function_of(module: ModuleType, path: str) -> FunctionType:
    """By its name, or its class's and its own."""
    found: object = module
    for name in path.split("."):
        found = vars(found)[name]
    found = found.fget if isinstance(found, property) else found
    assert isinstance(found, FunctionType), path
    return found


def anew(order: dict[str, Any], mutant: Mutant) -> int:
    """Import the mutant in its module's place, gather the tests and run them, in a process that has done neither."""
    limit(ANEW_S)
    name = f"goosestack.{order['module']}"
    mutant.apply()
    spec = importlib.util.find_spec(name)
    assert spec is not None and name not in sys.modules
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        exec(compile(ast.fix_missing_locations(mutant.tree), str(module.__file__), "exec"), module.__dict__)
    except Exception as error:
        print(mutant.name, repr(error)[:200])
        return FATES.index("stillborn")
    setattr(importlib.import_module("goosestack"), order["module"], module)
    ended = pytest.main([*OPTIONS, "--continue-on-collection-errors", *order["tests"]], plugins=[FirstFailure()])
    return FATES.index("survived" if ended == pytest.ExitCode.OK else "stillborn")  # whose tests cannot be gathered


OPTIONS = ("-q", "-s", "-p", "no:xdist", "--noconftest", "--assert=plain")


def main() -> int:
    order = json.loads(Path(sys.argv[1]).read_text())
    hypothesis.settings.register_profile(  # it draws the same again and again, and the first failure suffices
        "hunting",
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("hunting")
    source = (Path(__file__).resolve().parents[2] / "goosestack" / f"{order['module']}.py").read_text()
    mutants = [mutant for mutant in mutants_of(source) if mutant.name in set(order["wanted"])]
    outside = [mutant for mutant in mutants if not mutant.function]
    unchanged = [Mutant(NOTHING, "", tree, (tree, "body", tree.body)) for tree in [ast.parse(source)] if outside]
    with Path(order["fates"]).open("w") as fates:

        def note(name: str, found: str) -> None:
            fates.write(json.dumps({"mutant": name, "fate": found}) + "\n")
            fates.flush()

        for mutant in (*unchanged, *outside):
            note(mutant.name, fate(partial(anew, order, mutant)))
        hunt = Hunt(order, [mutant for mutant in mutants if mutant.function], note)
        return pytest.main([*OPTIONS, *order["tests"]], plugins=[hunt])


if __name__ == "__main__":
    sys.exit(main())
