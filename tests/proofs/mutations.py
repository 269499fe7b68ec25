"""Mutants: every small change to a module that a mistake could have made, one at a time, each with a name that lasts.

In Python: comparisons, arithmetic, `and`, `or`, `not`, conditions, constants, calls, loops and statements left out,
values in another order. In SQL, which stands in texts: comparisons, arithmetic, `AND`, `OR`, numbers, words of a
status, columns taken for one another, joins, aggregates, orders; conditions, assignments and clauses left out. What is
said to people in an error is left alone. A name says what became of which piece of which function, not in which line,
so that what is explained of a mutant stays true while the file around it changes.

Written here because the libraries for it do not look into SQL, which is the ledger, and run a process for each mutant.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

Change: TypeAlias = "tuple[ast.AST, str, object]"
"""A node, one of its fields, and what is to stand there."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change to the tree of a module, which all of its mutants share."""

    name: str
    function: str
    """The one that it is in, as `f` or `Class.f`; empty where it is in none, but in what a class or the module says."""
    tree: ast.Module
    change: Change

    def apply(self) -> None:
        """Make the change. There is no way back: a process is one mutant at most."""
        node, field, new = self.change
        setattr(node, field, new)


_COMPARED: Mapping[type[ast.cmpop], Sequence[type[ast.cmpop]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}

_COLUMNS: Mapping[str, Sequence[str]] = {
    "balance": ("carry",),
    "carry": ("held", "balance"),
    "held": ("carry", "quote"),
    "debt": ("held",),
    "grain": ("balance",),
    "posted": ("target",),
    "target": ("posted",),
    "entered": ("billed",),
    "billed": ("charged",),
    "charged": ("billed",),
    "amount": ("seq",),
    "entry_seq": ("settled_seq",),
    "settled_seq": ("entry_seq", "id"),
    "progress": ("held",),
    "cost_nanos": ("charged",),
    "shortfall": ("charged",),
    "account_id": ("id",),
    "ref": ("kind",),
    "kind": ("ref",),
    "status": ("reason",),
    "user_id": ("unit",),
    "unit": ("ref",),
}
"""Columns that could be taken for one another."""

_TOKEN = re.compile(
    r"""--[^\n]*|'[^']*'|SELECT\ 1\ FROM|<>|<=|>=|[<>=+*/-]|\bLEFT\ JOIN\b
    |\bORDER\ BY\ \w[\w.]*|\b[A-Za-z_]\w*\b|\b\d+\b""",
    re.VERBOSE,
)
_SQL = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|FROM|WHERE|VALUES|ON CONFLICT|coalesce|RETURNING|ORDER BY)\b|^ AND |= \?"
)
_STATES = ("held", "settled", "released")


def mutants_of(source: str) -> list[Mutant]:
    """All of them, in the order of the file."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for place, node, parent in _walk(tree, _Place("", "", tree)):
        for change in _changes(node, parent):
            title = f"{place.function or place.owner or 'the module'}: {_named(place.statement, change)}"
            seen[title] += 1
            title += "" if seen[title] == 1 else f" ({seen[title]})"
            found.append(Mutant(title, place.function, tree, change))
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node stands: in which class and function, if any, and in which statement."""

    owner: str
    function: str
    statement: ast.AST


def _walk(node: ast.AST, place: _Place) -> Iterator[tuple[_Place, ast.AST, ast.AST]]:
    """Every node that may change, with its place and its parent."""
    for inner in ast.iter_child_nodes(node):
        if _is_said(inner, node):
            continue
        here = replace(place, statement=inner) if isinstance(inner, ast.stmt | ast.arguments) else place
        if isinstance(inner, ast.ClassDef):
            here = replace(here, owner=inner.name)
        if isinstance(inner, ast.FunctionDef) and not place.function:
            here = replace(here, function=f"{place.owner}.{inner.name}".removeprefix("."))
        if not isinstance(inner, ast.arguments | ast.arg):
            yield here, inner, node
        yield from _walk(inner, here)


def _is_said(node: ast.AST, parent: ast.AST) -> bool:
    """Whether it is a docstring, a type, or what an error says."""
    match parent:
        case ast.AnnAssign() if node is parent.annotation:
            return True
        case ast.arg():
            return True
        case ast.FunctionDef() if node is parent.returns or node in parent.decorator_list:
            return True
        case ast.ClassDef() if node in parent.decorator_list or node in parent.bases:
            return True
    match node:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name.endswith("Error")
    return False


def _named(statement: ast.AST, change: Change) -> str:
    """What becomes of which piece of a statement: as much of it as tells."""
    node, field, new = change
    old = getattr(node, field)
    before = _flat(statement)
    setattr(node, field, new)
    replaced = new if isinstance(new, list) and statement in old else None  # the statement itself is left out
    after = "pass" if replaced is not None else _flat(statement)
    setattr(node, field, old)
    if replaced is not None:
        return f"`{_clipped(before, 0, len(before))}` => `{type(_one_of(replaced, old)).__name__.lower()}`"
    start = next((at for at, (one, two) in enumerate(zip(before, after, strict=False)) if one != two), 0)
    end = next((at for at, (one, two) in enumerate(zip(before[::-1], after[::-1], strict=False)) if one != two), 0)
    end = min(end, len(before) - start, len(after) - start)
    shown = (_clipped(text, start - 30, len(text) - end + 30) for text in (before, after))
    return " => ".join(f"`{text}`" for text in shown)


_QUOTES = re.compile(r"\\?(?:'''|\"\"\"|'|\")")


def _one_of(new: Sequence[object], old: Sequence[object]) -> object:
    return next(each for each in new if each not in old)


def _flat(node: ast.AST) -> str:
    """On one line; with one kind of quotes, for which kind `ast` writes is not the same in every Python."""
    return " ".join(_QUOTES.sub('"', ast.unparse(node)).replace("\\n", " ").split())


def _clipped(text: str, start: int, end: int) -> str:
    start, end = max(0, start), min(end, len(text), max(0, start) + 160)
    return f"{'...' if start else ''}{text[start:end].strip()}{'...' if end < len(text) else ''}"


# --- what can become of a node --------------------------------------------------------------------------------


def _changes(node: ast.AST, parent: ast.AST) -> Iterator[Change]:
    match node:
        case ast.Compare(ops=ops):
            for number, op in enumerate(ops):
                for other in _COMPARED[type(op)]:
                    yield node, "ops", [*ops[:number], other(), *ops[number + 1 :]]
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _COMPUTED:
            yield node, "op", _COMPUTED[type(op)]()
        case ast.BoolOp(op=op, values=values):
            yield node, "op", ast.Or() if isinstance(op, ast.And) else ast.And()
            for number in range(len(values)):
                rest = [*values[:number], *values[number + 1 :]]
                yield (node, "values", rest) if len(rest) > 1 else _in_place_of(node, parent, rest[0])
        case ast.UnaryOp(operand=operand):
            yield _in_place_of(node, parent, operand)
        case ast.Call():
            yield from _calls(node, parent)
        case ast.Constant():
            yield from _constants(node, parent)
        case ast.comprehension(ifs=ifs):
            for number in range(len(ifs)):
                yield node, "ifs", [*ifs[:number], *ifs[number + 1 :]]
        case ast.Tuple(elts=elts, ctx=ast.Load()) if not isinstance(parent, ast.Compare):
            for number, (one, next_one) in enumerate(pairwise(elts)):
                if ast.dump(one) != ast.dump(next_one):  # no type shows what SQL is given in a wrong order
                    yield node, "elts", [*elts[:number], next_one, one, *elts[number + 2 :]]
        case ast.For():
            yield node, "iter", ast.Tuple([], ast.Load())
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield node, "test", ast.Constant(True)
        yield node, "test", ast.Constant(False)
    if isinstance(node, ast.stmt):
        yield from _statements(node, parent)


def _in_place_of(node: ast.AST, parent: ast.AST, new: ast.AST) -> Change:
    """Another node in the place of one, wherever it stands in its parent."""
    for field, value in ast.iter_fields(parent):
        if value is node:
            return parent, field, new
        if isinstance(value, list) and node in value:
            return parent, field, [new if each is node else each for each in value]
    raise AssertionError("a node that is not in its parent")


def _calls(node: ast.Call, parent: ast.AST) -> Iterator[Change]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in _CALLED:
        yield node, "func", ast.Name(_CALLED[name], ast.Load())
    if name == "sorted":
        yield _in_place_of(node, parent, node.args[0])
    if name in ("min", "max") and len(node.args) == 2:
        for kept in node.args:
            yield _in_place_of(node, parent, kept)
    if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        for number in range(1, len(node.args)):
            yield node, "args", node.args[:number]
    for number, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict"):
            yield node, "keywords", [*node.keywords[:number], *node.keywords[number + 1 :]]


def _constants(node: ast.Constant, parent: ast.AST) -> Iterator[Change]:
    value = node.value
    if isinstance(parent, ast.keyword) and parent.arg == "strict":
        return  # an assertion
    if isinstance(value, bool):
        yield node, "value", not value
    elif isinstance(value, int):
        yield node, "value", value + 1
        if not isinstance(parent, ast.Subscript):  # -1 is where 0 is, in a row of one
            yield node, "value", value - 1
    elif isinstance(value, str) and _SQL.search(value):
        for changed in _in_sql(value):
            yield node, "value", changed
    elif isinstance(value, str):
        yield node, "value", "" if value else "other"


def _statements(node: ast.stmt, parent: ast.AST) -> Iterator[Change]:
    """A statement that is left out, or another that ends the loop or the function."""
    match node:
        case ast.Return(value=value) if value is not None:
            if not (isinstance(value, ast.Constant) and value.value is None):
                yield node, "value", ast.Constant(None)
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Return():
            yield _in_place_of(node, parent, ast.Pass())
        case ast.Assign() if not isinstance(parent, ast.Module | ast.ClassDef):
            yield _in_place_of(node, parent, ast.Pass())
        case ast.Continue():
            yield _in_place_of(node, parent, ast.Break())


# --- what can become of SQL -----------------------------------------------------------------------------------


def _in_sql(sql: str) -> Iterator[str]:
    """The same with one token or one clause another. What SQLite then cannot read is no mutant: see `hunting`."""
    assigning = sql.startswith(",")  # the rest of a list that an f-string has begun
    for match in _TOKEN.finditer(sql):
        token, start, end = match.group(), match.start(), match.end()
        if token in ("SET", "WHERE", "AND", "ON", "WHEN", "UPDATE"):
            assigning = token == "SET"
        for other in _other_tokens(token, sql[:start], assigning):
            yield sql[:start] + other + sql[end:]
    for start, end in _clauses(sql, _CONDITION, _CONDITION_ENDS):
        yield f"{sql[:start]}({sql[start:end]} OR 1 = 1){sql[end:]}"
    for start, end in _clauses(sql, _ASSIGNMENT, _ASSIGNMENT_ENDS):
        name, _, value = sql[start:end].partition(" = ")
        yield f"{sql[:start]}{name} = CASE WHEN 1 = 1 THEN {name} ELSE {value} END{sql[end:]}"
    for match in _DROPPED.finditer(sql):
        yield sql[: match.start()] + sql[match.end() :]


_CONDITION = re.compile(r"\bBETWEEN \S+ AND\b|\b(WHERE|AND|OR|WHEN|ON(?! CONFLICT))\s+")
_CONDITION_ENDS = re.compile(r"\s(?:AND|OR|THEN|RETURNING|GROUP|ORDER|ON|LEFT|JOIN|WHERE)\b|\)|$")
_ASSIGNMENT = re.compile(r"(\bSET|,)\s+(?=[a-z_]+ = )")
_ASSIGNMENT_ENDS = re.compile(r",|\sWHERE\b|\sRETURNING\b|\)|$")
_DROPPED = re.compile(r"\bON CONFLICT \(\w+\) DO NOTHING|\bGROUP BY (?:CAST\([^)]*\)|[\w.]+)")


def _clauses(sql: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """From where to where each goes that the opening's group begins: until one of its ends outside of parentheses."""
    for match in opening.finditer(sql):
        if not match[1]:
            continue
        start = match.end()
        for end in closing.finditer(sql, start):
            clause = sql[start : end.start()]
            between = "BETWEEN" in clause and " AND " not in clause  # whose own AND ends nothing
            if clause.count("(") == clause.count(")") and not between:
                if clause.strip():
                    yield start, end.start()
                break


_TOKENS: Mapping[str, Sequence[str]] = {
    "=": ("<>", "<="),
    "<>": ("=",),
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "AND": ("OR",),
    "OR": ("AND",),
    "max": ("min",),
    "min": ("max",),
    "sum": ("max", "count"),
    "count": ("sum",),
    "LEFT JOIN": ("JOIN",),
    "NOT": ("",),
    "IN": ("NOT IN",),
}


def _other_tokens(token: str, before: str, assigning: bool) -> Sequence[str]:
    if (token == "=" and assigning) or (token == "*" and before.endswith(("(", "SELECT "))):
        return ()
    if token in _TOKENS:
        return _TOKENS[token]
    if token.isdigit():
        return (str(int(token) + 1), str(int(token) - 1))
    if token.startswith("'"):
        word = token.strip("'")
        return [f"'{other}'" for other in _STATES if other != word] if word in _STATES else ("'other'",)
    if token.startswith("ORDER BY "):
        return (f"{token} DESC", "ORDER BY 1 + 1")
    return _COLUMNS.get(token, ())
