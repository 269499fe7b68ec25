"""Hunting mutants: the tests of a module are gathered once, and a process is forked for each mutant of it.

    python -m tests.proofs.hunting ORDER

ORDER is a JSON file: the `module`, its `tests` (files), the mutants `wanted` by name, the `seed`, whether to `survey`
the tests first (which functions each enters, and how long it takes: then a mutant meets only tests that enter its
function, the quickest first) and where the `fates` go, one JSON line for each. The module itself, unchanged, is hunted
first under the name `nothing`, for a hunt in which the tests do not pass says nothing.

A fork changes the functions of the loaded module in place, so that whoever has imported them has the mutant. A mutant
is *found* where a test fails, *hung* where none does in time, *stillborn* where it is no program (a name that is not
there, SQL that cannot be read): that says nothing about the tests.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import pytest

from tests.proofs.mutations import Mutant, mutants_of

NOTHING = "nothing"
FATES = ("survived", "found", "stillborn")
"""By the exit status of the fork; one that was killed hung."""
NO_PROGRAM = (NameError, SyntaxError, sqlite3.OperationalError, sqlite3.ProgrammingError)
MOST_S = 10
"""How long a fork may take, on a processor of its own, beside three times as long as the survey took over its tests."""


class Hunt:
    """A pytest plugin that runs, instead of the tests, every mutant against them."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.module = importlib.import_module(f"goosestack.{order['module']}")
        wanted = set(order["wanted"])
        source = Path(str(self.module.__file__)).read_text()
        self.mutants = [mutant for mutant in mutants_of(source) if mutant.name in wanted]
        self.entered: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_configure(self) -> None:
        """Hypothesis draws the same again and again, and the first failure suffices."""
        import hypothesis  # pytest wants to load it first

        hypothesis.settings.register_profile(
            "hunting",
            phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.settings.load_profile("hunting")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[object]) -> None:
        """The first failure decides, and is not described at length: that takes longer than the test."""
        if call.excinfo is not None and not isinstance(call.excinfo.value, pytest.skip.Exception):
            print(item.nodeid, repr(call.excinfo.value)[:200], flush=True)
            broken = any(isinstance(error, NO_PROGRAM) for error in leaves(call.excinfo.value))
            os._exit(FATES.index("stillborn" if broken else "found"))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of the tests themselves."""
        if self.order["survey"]:
            self._survey(session.items)
        with Path(self.order["fates"]).open("w") as fates:

            def note(name: str, fate: str) -> None:
                fates.write(json.dumps({"mutant": name, "fate": fate}) + "\n")
                fates.flush()

            first = [item for item in session.items if item.path == session.items[0].path]
            unchanged = session.items if self.order["survey"] else first
            (pid,) = forked(iter([lambda: self._meet(unchanged)]), at_once=1)
            note(NOTHING, pid[1])
            for number, fate in forked((self._hunted(session.items, each) for each in self.mutants), at_once=2):
                note(self.mutants[number].name, fate)
        return True

    def _survey(self, items: list[pytest.Item]) -> None:
        """Which functions of the module each test enters, and how long it takes, told by a fork that runs them all."""
        reader, writer = os.pipe()

        def run() -> int:
            for item in items:
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
                mutant.apply()
                transplant(mutant.tree, self.module)
            except Exception as error:
                return FATES.index("stillborn" if isinstance(error, NO_PROGRAM) else "found")
            return self._meet(self._chosen(items, mutant))

        return run

    def _chosen(self, items: list[pytest.Item], mutant: Mutant) -> list[pytest.Item]:
        """The tests that can tell: those that enter its function; all, for what is no function."""
        chosen = items
        if any(mutant.place in entered for entered in self.entered.values()):
            chosen = [item for item in items if mutant.place in self.entered[item.nodeid]]
        return sorted(chosen, key=lambda item: self.seconds.get(item.nodeid, 0.0))

    def _meet(self, items: list[pytest.Item]) -> int:
        """Run tests until one fails, which ends the process; the number of the fate where none does."""
        most_s = MOST_S + round(3 * sum(self.seconds.get(item.nodeid, 0.0) for item in items))
        resource.setrlimit(resource.RLIMIT_CPU, (most_s, most_s))
        for item in items:
            self._run(item)
        return FATES.index("survived")

    def _run(self, item: pytest.Item) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


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


def forked(runs: Iterator[Callable[[], int]], at_once: int) -> Iterator[tuple[int, str]]:
    """The number and the fate of each, as they end."""
    running: dict[int, int] = {}
    for number, run in enumerate(runs):
        running[fork(run)] = number
        if len(running) == at_once:
            yield _ended(running)
    while running:
        yield _ended(running)


def _ended(running: dict[int, int]) -> tuple[int, str]:
    pid, status = os.waitpid(-1, 0)
    if os.WIFSIGNALED(status):
        return running.pop(pid), "hung"
    return running.pop(pid), FATES[os.waitstatus_to_exitcode(status)]


# --- a changed module in the place of the loaded one ----------------------------------------------------------


def transplant(tree: ast.Module, module: ModuleType) -> None:
    """Give the loaded module the code and the values of a changed tree; its functions and classes stay who they are."""
    fresh = ModuleType(module.__name__)
    exec(compile(ast.fix_missing_locations(tree), str(module.__file__), "exec"), fresh.__dict__)
    for name, new in list(vars(fresh).items()):
        old = vars(module).get(name)
        if isinstance(new, type) and new.__module__ == module.__name__:
            for inner, attribute in list(vars(new).items()):
                before = vars(old).get(inner)
                if isinstance(attribute, FunctionType | property) and not _operate(before, attribute):
                    setattr(old, inner, attribute)
        elif isinstance(new, FunctionType) and new.__module__ == module.__name__:
            assert _operate(old, new), name
        elif not name.startswith("__") and old != new:
            setattr(module, name, new)


def _operate(old: object, new: object) -> bool:
    """Put the code of a function into another; whether that can be done."""
    if isinstance(old, property) and isinstance(new, property):
        return _operate(old.fget, new.fget)
    if not (isinstance(old, FunctionType) and isinstance(new, FunctionType)):
        return False
    if len(old.__code__.co_freevars) != len(new.__code__.co_freevars):
        return False
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
    return True


def main() -> int:
    order = json.loads(Path(sys.argv[1]).read_text())
    os.environ["GOOSESTACK_SEED"] = str(order["seed"])
    return pytest.main(["-q", "-s", "-p", "no:xdist", "--assert=plain", *order["tests"]], plugins=[Hunt(order)])


if __name__ == "__main__":
    sys.exit(main())
