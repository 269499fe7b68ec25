"""Every abuse that is named is held off by tests that exist, and what is said to be sent is."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.abuses import ABUSES, Abuse, unheld
from tests.bad_input import Named, again, elsewhere, forged, named, signed_up, spoken, too_large, vouchers
from tests.project import Project
from tests.test_threats_limits import ADDRESSES

KEY = "gsk_" + "M" * 44


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[list[Named]]:
    """All that the proof sends by name, but for vouchers: to the one daemon, and to the one that allows little."""
    project = Project(tmp_path_factory.mktemp("project"))
    tokens, older = list(forged(project, "ES256")), list(forged(project, "HS256"))
    project.close()
    strangers = [case for how in ADDRESSES for case in elsewhere(how)]
    too_much = [*again(KEY), *strangers, *signed_up(10), *too_large(KEY, 65_536)]
    return [[*named(KEY), *spoken(KEY), *tokens], [*too_much, *older]]


def names_of_tests() -> set[str]:
    """Their names; they are read, and not imported, since what DRAIN needs is not built for every Python."""
    return {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_abuse_is_held_off_by_tests_that_exist_and_sent_where_that_is_said(cases: list[list[Named]]) -> None:
    sent = {case.abuse for each in cases for case in each}
    if sys.version_info < (3, 14):
        sent |= {case.abuse for case in vouchers(bytes(32))}
    abuses = {name: abuse for name, abuse in ABUSES.items() if sys.version_info < (3, 14) or not name.startswith("V")}
    assert list(unheld(abuses, names_of_tests(), sent)) == []


def test_no_case_is_there_twice(cases: list[list[Named]]) -> None:
    """Not by its name, and not by what is on the wire, where blanks around a value are nothing."""
    for each in cases:
        on_the_wire = {
            (case.method, case.path, case.data, tuple((name, value.strip(" \t")) for name, value in case.headers))
            for case in each
        }
        assert len(each) == len(on_the_wire) == len({case.name for case in each})


def test_an_abuse_that_nothing_holds_off_is_found() -> None:
    abuses = {
        "X1": Abuse("what a test holds off", "test_a"),
        "X2": Abuse("what a test that is gone held off", "test_a test_gone"),
        "X3": Abuse("what was forgotten", ""),
        "X4": Abuse("what nobody sends", "test_a", sent=True),
        "X5": Abuse("what is sent, unsaid", "test_a"),
    }
    assert list(unheld(abuses, {"test_a", "test_b"}, {"X5", "X6"})) == [
        "X2, what a test that is gone held off: there is no test_gone",
        "X3, what was forgotten: no test holds it off",
        "X4, what nobody sends: not sent, as was said",
        "X5, what is sent, unsaid: sent, and nothing says so",
        "X6 is sent, and is no abuse",
    ]
