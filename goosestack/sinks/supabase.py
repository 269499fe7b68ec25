"""A table of a Supabase project: one row for each of ours, inserted once by its id, through PostgREST.

A repeated row is ignored by the table's own unique constraint on the id's column, however long ago it was inserted. A
correction is a row of its own with negative amounts, so sums are right, and no row ever changes. The gate never reads
this table. Source: the `Prefer` header in PostgREST's documentation; Supabase's on its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
from yarl import URL

from goosestack import postgrest
from goosestack.sinks import FIELDS, Event, Fact, Poster, Rejected, Sink, Unavailable, tell

SOURCES = (*FIELDS, "supabase_id", "stripe_customer_id")
"""What a column can be filled with."""

_SETTINGS = ("PGRST", "42P01", "42703", "42P10", "42501")
"""Codes of a table, a column, a constraint or a grant that is not there: the operator's to mend, no event's fault."""


class Supabase(Sink):
    """One table. `columns` says what each of its columns is filled with; one of them with `id`."""

    name: ClassVar[str] = "supabase"
    per_request: ClassVar[int] = 200

    def __init__(
        self, client: Poster, url: str, key: str, *, table: str, columns: Mapping[str, str], issuer: str = ""
    ) -> None:
        self._client, self._key, self._columns = client, key, columns
        (unique,) = (column for column, source in columns.items() if source == "id")
        self._url = URL(postgrest.table(url, table)).with_query(on_conflict=unique)
        self.issuer = issuer

    async def send(self, events: Sequence[Event]) -> None:
        """See `Sink.send`."""
        headers = {
            "content-type": "application/json",
            "prefer": "resolution=ignore-duplicates,return=minimal",
            **postgrest.key_headers(self._key),
        }
        body = msgspec.json.encode([self._row(event) for event in events])
        try:
            await tell(self._client, self._url, headers, body, [self._key])
        except Rejected as error:
            if any(f'"{code}' in str(error) for code in _SETTINGS):
                raise Unavailable(str(error), certain=True) from error
            raise

    def _row(self, event: Event) -> dict[str, Fact]:
        known = {**event.facts, "supabase_id": event.subject, "stripe_customer_id": event.customer_id}
        return {column: known[source] for column, source in self._columns.items()}
