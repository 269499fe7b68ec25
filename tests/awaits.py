"""Where the product waits: each `await`, `async with` and `async for` of its modules, and at which of them a coroutine
stands."""

from __future__ import annotations

import ast
import gc
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import goosestack

ROOT = Path(goosestack.__file__).parent

_WAITS = (types.CoroutineType, types.AsyncGeneratorType, types.GeneratorType)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something is awaited: `relay.py`, line 165, `Relay.run`, `self._authorize()`."""

    module: str
    line: int
    function: str
    awaited: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.function}: {self.awaited}"


@cache
def places_of(path: Path) -> dict[tuple[int, int], Place]:
    """The places of a module, each by the line and the column at which Python says that it is suspended there: of the
    statement or, by later versions, of what is entered."""
    module, found = path.relative_to(ROOT).as_posix(), dict[tuple[int, int], Place]()

    def note(node: ast.AST, awaited: ast.expr, function: str, *starts: ast.AST) -> None:
        place = Place(module, awaited.lineno, function, ast.unparse(awaited))
        for start in (node, *starts):
            found.setdefault((start.lineno, start.col_offset), place)  # type: ignore[attr-defined]

    def visit(node: ast.AST, function: str) -> None:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                function = f"{function}.{node.name}" if function else node.name
            case ast.Await():
                note(node, node.value, function)
            case ast.AsyncWith():
                for item in node.items:
                    note(node, item.context_expr, function, item.context_expr)
            case ast.AsyncFor():
                note(node, node.iter, function, node.iter)
            case ast.comprehension() if node.is_async:
                note(node.iter, node.iter, function)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text()), "")
    return found


def all_places() -> set[Place]:
    """Every one in the product, but for the fakes that it comes with."""
    paths = [path for path in ROOT.rglob("*.py") if "demo" not in path.relative_to(ROOT).parts]
    return {place for path in paths for place in places_of(path).values()}


def standing_at(waiting: Any) -> Iterator[Place]:
    """The places of the product at which a suspended coroutine stands, from the outermost in."""
    while waiting is not None:
        frame: FrameType | None = _attribute(waiting, "frame")
        if frame is not None and (place := _place(frame.f_code, frame.f_lasti)) is not None:
            yield place
        waiting = _below(waiting)


def _attribute(waiting: Any, name: str) -> Any:
    return next(
        (getattr(waiting, kind + name) for kind in ("cr_", "ag_", "gi_") if hasattr(waiting, kind + name)), None
    )


def _below(waiting: Any) -> Any:
    """What it waits for, where that is a coroutine or a generator, too."""
    if isinstance(waiting, types.GeneratorType):
        return waiting.gi_yieldfrom
    if isinstance(waiting, (types.CoroutineType, types.AsyncGeneratorType)):
        return _attribute(waiting, "await")
    # what `__await__` or `__anext__` gives tells of nobody: but it refers to whom it drives
    return next((each for each in gc.get_referents(waiting) if isinstance(each, _WAITS)), None)


@cache
def _place(code: CodeType, last: int) -> Place | None:
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or "demo" in path.relative_to(ROOT).parts:
        return None
    line, _, column, _ = list(code.co_positions())[last // 2]
    return None if line is None or column is None else places_of(path).get((line, column))
