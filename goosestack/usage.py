"""What was used: queries over `usage_log`, for users, the operator and `/v1/usage`."""

from __future__ import annotations

import csv
import io
from datetime import datetime

from goosestack.accounts import first_id, payer_of
from goosestack.pricing import dollars
from goosestack.store import Tx

ROW = (
    "id",
    "created_at",
    "status",
    "wire",
    "provider",
    "model",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_long_tokens",
    "reasoning_tokens",
    "web_searches",
    "cost_cents",
    "cost_nanos",
    "shortfall",
    "estimated",
    "reason",
    "ended_at",
    "payer",
)
"""The columns of one request, as they are shown."""

PAYER = payer_of("usage_log")
"""What paid for a row."""

_SELECT = f"SELECT {', '.join(ROW[:-1])}, {PAYER} FROM usage_log"


def by_model(tx: Tx, user_id: str, since: datetime, until: datetime | None) -> list[dict[str, object]]:
    """Settled requests by provider and model: `requests`, `input_tokens`, `output_tokens`, `cost_cents`, `cost_usd`."""
    rows = tx.execute(
        "SELECT provider, model, sum(CASE WHEN id LIKE '%.c' THEN 0 ELSE 1 END), sum(input_tokens), sum(output_tokens),"
        " sum(cost_cents), sum(cost_nanos) FROM usage_log"
        " WHERE user_id = ? AND id >= ? AND id < ? AND status = 'settled'"
        " GROUP BY provider, model ORDER BY provider, model",
        (user_id, _from(since), _to(until)),
    )
    names = ("provider", "model", "requests", "input_tokens", "output_tokens", "cost_cents", "cost_usd")
    return [dict(zip(names, (*row[:6], dollars(row[6])), strict=True)) for row in rows]


def recent(
    tx: Tx, user_id: str, since: datetime | None, until: datetime | None, before: str | None, limit: int
) -> list[dict[str, object]]:
    """A user's requests, the latest first, from below the id `before` (the cursor)."""
    upper = _to(until) if before is None else min(before, _to(until))
    rows = tx.execute(
        f"{_SELECT} WHERE user_id = ? AND id >= ? AND id < ? ORDER BY id DESC LIMIT ?",
        (user_id, "" if since is None else _from(since), upper, limit),
    ).fetchall()
    return [_shown(row) for row in rows]


COLUMNS = (*(name for name in ROW if name not in ("cost_nanos", "shortfall")), "cost_usd", "shortfall_usd")
"""Of a request in a table: the names of what is shown."""


def table(
    tx: Tx, user_id: str, since: datetime, until: datetime, after: str | None, limit: int
) -> tuple[str, str | None]:
    """A page of a user's settled requests of a time as CSV, the earliest first, and what the next one comes `after`,
    None for the last. The first one (`after` is None) begins with the names of the columns."""
    rows = tx.execute(
        f"{_SELECT} WHERE user_id = ? AND id >= ? AND id < ? AND id > ? AND status = 'settled' ORDER BY id LIMIT ?",
        (user_id, _from(since), _to(until), after or "", limit),
    ).fetchall()
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    if after is None:
        writer.writeheader()
    for row in map(_shown, rows):
        writer.writerow({**row, "estimated": "true" if row["estimated"] else "false"})
    return text.getvalue(), str(rows[-1][0]) if len(rows) == limit else None


def held(tx: Tx, user_id: str) -> list[dict[str, object]]:
    """What is in flight for a user: `id`, `provider`, `model`, `payer`, `since`, and either `held_usd` or
    `held_tokens`; the other is None."""
    rows = tx.execute(
        f"SELECT id, provider, model, {PAYER}, created_at, held FROM usage_log"
        " WHERE user_id = ? AND status = 'held' ORDER BY id",
        (user_id,),
    )
    names = ("id", "provider", "model", "payer", "since")
    return [
        {
            **dict(zip(names, row[:5], strict=True)),
            "held_usd": None if row[3] == "allowance" else dollars(row[5]),
            "held_tokens": row[5] if row[3] == "allowance" else None,
        }
        for row in rows
    ]


def _shown(row: tuple[object, ...]) -> dict[str, object]:
    shown = dict(zip(ROW, row, strict=True))
    shown["cost_usd"] = dollars(int(str(shown.pop("cost_nanos"))))
    lacked = int(str(shown.pop("shortfall")))  # of an allowance it is tokens, which the house bore as it bore the rest
    shown["shortfall_usd"] = dollars(0 if shown["payer"] == "allowance" else lacked)
    shown["estimated"] = bool(shown["estimated"])
    return shown


def _from(moment: datetime) -> str:
    return first_id("req_", moment.timestamp())


def _to(moment: datetime | None) -> str:
    return "req_~" if moment is None else first_id("req_", moment.timestamp())
