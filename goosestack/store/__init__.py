"""The seam to the database: what a ledger verb may ask of an open transaction, and what a store offers.

A *verb* is a plain synchronous function whose first argument is a `Tx`, and which has no effect but in it (it may be
run twice). Verbs are written in the common subset of SQLite and PostgreSQL with `?` placeholders; the store owns
connections, threads and commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Value = str | int | None
Row = tuple[Any, ...]


class Rows(Protocol):
    """What a statement answered. `rowcount` counts the rows that were changed."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Tx(Protocol):
    """An open transaction."""

    def execute(self, sql: str, parameters: Sequence[Value] = (), /) -> Rows: ...


class Store(Protocol):
    """One database: a single writer that commits in groups, and readers."""

    full: bool
    """True while there is no room: what is in flight settles, and nothing new should be held."""

    def write(self, verb: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Run `verb` in its own savepoint of the next group commit; answers once that is durable.

        Raises what the verb raises (its savepoint is rolled back) or `StoreUnavailable`.
        """
        ...

    def read(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Run `query` on a read-only snapshot in another thread. Raises what it raises, or `StoreUnavailable`."""
        ...

    def peek(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a point look-up at once, in the caller's thread; for queries that touch a handful of pages. Raises as
        `read` does."""
        ...
