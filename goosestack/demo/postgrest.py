"""Tables as PostgREST serves them: in memory, with unique constraints, and its real status codes.

What is built is what a client of tables needs: reading with filters, inserting one row or many, inserting once
(`resolution=ignore-duplicates`), upserting. An insert of many rows is one transaction: all of them, or none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]

_RESERVED = frozenset(("select", "limit", "offset", "order", "on_conflict", "columns"))
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d(:?\d\d)?)?)?")
MOST_ROWS = 1000
"""What a project's settings let one answer have."""


class Failure(Exception):
    """An error as PostgREST answers it."""

    def __init__(self, status: int, code: str, message: str, details: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "details": details, "hint": hint}


@dataclass
class Answer:
    """What is sent back; `body` is None where nothing is."""

    status: int
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Table:
    """One table of the schema `public`."""

    name: str
    columns: dict[str, str]
    """Types: `text`, `uuid`, `bigint`, `numeric`, `boolean`, `timestamptz`, `jsonb`."""
    unique: list[list[str]] = field(default_factory=list)
    required: list[str] = field(default_factory=list)
    references: dict[str, list[Any]] = field(default_factory=dict)
    """What a column's values must be among: a foreign key."""
    readable: bool = False
    """Whether row level security shows the rows to others than the service."""
    rows: list[Row] = field(default_factory=list)

    # --- reading ---

    def read(self, query: Sequence[tuple[str, str]], accept: str, service: bool) -> Answer:
        """`GET`: the rows that pass all filters."""
        options = {name: value for name, value in query if name in _RESERVED}
        filters = [self._filter(name, value) for name, value in query if name not in _RESERVED]
        visible = self.rows if service or self.readable else []
        found = [row for row in visible if all(passes(row) for passes in filters)]
        for term in reversed(options.get("order", "").split(",") if options.get("order") else []):
            name, _, direction = term.partition(".")
            found.sort(key=_nulls_last(name), reverse=direction.startswith("desc"))
        start = int(options.get("offset", "0"))
        found = found[start : start + min(int(options.get("limit", MOST_ROWS)), MOST_ROWS)]
        wanted = [name.strip() for name in options.get("select", "*").split(",")]
        names = list(self.columns) if wanted == ["*"] else wanted
        for name in names:
            self._column(name)
        shown = [{name: row[name] for name in names} for row in found]
        if "application/vnd.pgrst.object+json" in accept:
            if len(shown) != 1:
                details = f"The result contains {len(shown)} rows"
                raise Failure(406, "PGRST116", "Cannot coerce the result to a single JSON object", details)
            return Answer(200, shown[0])
        last = start + len(shown) - 1
        return Answer(200, shown, {"content-range": f"{start}-{last}/*" if shown else "*/*"})

    def _filter(self, name: str, text: str) -> Callable[[Row], bool]:
        kind = self._column(name, unknown=("42703", f"column {self.name}.{name} does not exist"))
        operator, _, value = text.partition(".")
        if operator == "is":
            return lambda row: row[name] is {"null": None, "true": True, "false": False}[value]
        if operator == "in":
            choice = [_literal(kind, each) for each in value.strip("()").split(",") if each]
            return lambda row: row[name] in choice
        compare = _OPERATORS.get(operator)
        if compare is None:
            raise Failure(400, "PGRST100", f'"failed to parse filter ({text})" (line 1, column 1)')
        other = _literal(kind, value)
        return lambda row: row[name] is not None and compare(row[name], other)

    # --- writing ---

    def insert(self, body: bytes, query: Mapping[str, str], prefer: str, service: bool) -> Answer:
        """`POST`: one row or many, all or none."""
        objects = _objects(body)
        if len({frozenset(each) for each in objects}) > 1:
            raise Failure(400, "PGRST102", "All object keys must match")
        if not service:
            message = f'new row violates row-level security policy for table "{self.name}"'
            raise Failure(401, "42501", message)
        wishes = dict(wish.strip().partition("=")[::2] for wish in prefer.split(","))
        target = [name for name in query.get("on_conflict", "").split(",") if name]
        if target and sorted(target) not in [sorted(each) for each in self.unique]:
            message = "there is no unique or exclusion constraint matching the ON CONFLICT specification"
            raise Failure(400, "42P10", message)
        resolution = wishes.get("resolution")
        before = [dict(row) for row in self.rows]
        try:
            written = [row for each in objects if (row := self._put(each, resolution, target)) is not None]
        except Failure:
            self.rows[:] = before
            raise
        return Answer(201, written if wishes.get("return") == "representation" else None)

    def _put(self, given: Row, resolution: str | None, target: list[str]) -> Row | None:
        row: Row = dict.fromkeys(self.columns)
        for name, value in given.items():
            row[name] = _literal(self._column(name), value)
        for name in self.required:
            if row[name] is None:
                message = f'null value in column "{name}" of relation "{self.name}" violates not-null constraint'
                raise Failure(400, "23502", message)
        for name, allowed in self.references.items():
            if row[name] is not None and row[name] not in allowed:
                constraint = f"{self.name}_{name}_fkey"
                message = f'insert or update on table "{self.name}" violates foreign key constraint "{constraint}"'
                raise Failure(409, "23503", message, f"Key ({name})=({row[name]}) is not present in the other table.")
        for columns in self.unique:
            same = next((old for old in self.rows if all(old[name] == row[name] is not None for name in columns)), None)
            if same is None:
                continue
            if resolution == "ignore-duplicates" and (not target or sorted(target) == sorted(columns)):
                return None
            if resolution == "merge-duplicates" and (not target or sorted(target) == sorted(columns)):
                same.update({name: row[name] for name in given})
                return same
            constraint = f"{self.name}_{'_'.join(columns)}_key"
            message = f'duplicate key value violates unique constraint "{constraint}"'
            values = ", ".join(str(row[name]) for name in columns)
            raise Failure(409, "23505", message, f"Key ({', '.join(columns)})=({values}) already exists.")
        self.rows.append(row)
        return row

    def _column(self, name: str, unknown: tuple[str, str] | None = None) -> str:
        kind = self.columns.get(name)
        if kind is None:
            code, message = unknown or ("PGRST204", f"Could not find the '{name}' column of '{self.name}'")
            raise Failure(400, code, message)
        return kind


def _nulls_last(name: str) -> Callable[[Row], tuple[bool, Any]]:
    return lambda row: (row[name] is None, 0 if row[name] is None else row[name])


def _objects(body: bytes) -> list[Row]:
    try:
        given = json.loads(body)
    except ValueError:
        given = None
    objects = given if isinstance(given, list) else [given]
    if not all(isinstance(each, dict) for each in objects):
        raise Failure(400, "PGRST102", "Empty or invalid json")
    return objects


def _literal(kind: str, value: object) -> object:
    """A value as PostgreSQL reads it into a column of this type."""
    if value is None or kind == "jsonb":
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        match kind:
            case "bigint":
                number = int(text)
                if not -(2**63) <= number < 2**63:
                    raise Failure(400, "22003", f'value "{text}" is out of range for type bigint')
                return number
            case "numeric":
                return float(text)
            case "boolean":
                return {"true": True, "false": False}[text]
            case "uuid" if not _UUID.fullmatch(text):
                raise ValueError
            case "timestamptz" if not _TIME.fullmatch(text):
                raise Failure(400, "22007", f'invalid input syntax for type timestamp with time zone: "{text}"')
    except (ValueError, KeyError):
        raise Failure(400, "22P02", f'invalid input syntax for type {kind}: "{text}"') from None
    return text


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda mine, other: bool(mine == other),
    "neq": lambda mine, other: bool(mine != other),
    "gt": lambda mine, other: bool(mine > other),
    "gte": lambda mine, other: bool(mine >= other),
    "lt": lambda mine, other: bool(mine < other),
    "lte": lambda mine, other: bool(mine <= other),
}
