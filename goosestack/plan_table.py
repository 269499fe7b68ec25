"""Which plan a user has, by a table of the operator's own Supabase project.

It is asked once for each user in a while, beside the requests: what it said last stands meanwhile, also while it
cannot be asked. Only a request of a user whom it was not asked about for long, or not in this month, waits for it, and
not for long either. What it says is written down as `plans.sign_in_said`, so that it stands to the end of the month: a
downgrade waits for the next one. For that one it must be asked anew: until it answers, it has said nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from yarl import URL

from goosestack import plans, postgrest
from goosestack.accounts import Principal, subject_of
from goosestack.http import Broken, Client
from goosestack.plans import Once, Plans
from goosestack.store import Store

FORGOTTEN_S = 600.0
"""A user whom it was not asked about for so long waits for its answer."""

PATIENCE_S = 3.0
"""How long it may take."""

MOST_KNOWN = 10_000
"""Users that are remembered; with more, all are asked about anew."""

_MOST_ANSWER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where the plan stands: a table, its column, and the column that has the user's id."""

    table: str
    column: str
    key: str


class PlanTable:
    """The table of one project."""

    def __init__(
        self,
        *,
        store: Store,
        client: Client,
        url: str,
        key: str,
        place: Place,
        plans: Plans,
        every_s: float,
        now: Callable[[], str],
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is the project's, `key` its service's; `warn` is told in a sentence what the operator should know."""
        self._store, self._client, self._key, self._place = store, client, key, place
        self._url, self._issuer = URL(postgrest.table(url, place.table)), f"{url}/auth/v1"
        self._plans, self._every_s, self._now, self._clock = plans, every_s, now, clock
        self._warn, self._warn_once = warn, Once(warn)
        self._asked: dict[str, tuple[str, float]] = {}
        """When a user was asked about last: the month, and the clock."""
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def look(self, caller: Principal) -> None:
        """Have what the table says of a user written down, unless that was done lately."""
        user_id, month = caller.user_id, self._now()[:7]
        asked_in, asked_at = self._asked.get(user_id, ("", 0.0))
        age = self._clock() - asked_at if asked_in == month else None
        if age is not None and age < self._every_s:
            return
        task = self._asking.get(user_id)
        if task is None:
            task = self._asking[user_id] = asyncio.create_task(self._ask(user_id))
        if age is None or age >= FORGOTTEN_S:
            await asyncio.shield(task)  # a caller who leaves takes it away from nobody

    async def _ask(self, user_id: str) -> None:
        doing = "read"
        try:
            subject = self._store.peek(subject_of, self._issuer, user_id)
            if subject is not None:
                plan = self._plans.heard(await self._read(subject), self._strange)
                doing = "written down"
                await self._write_down(user_id, plan)
        except Exception as error:  # what is known of the user stands
            self._warn(f"the plan table cannot be {doing}: {error or type(error).__name__}")
        finally:
            if len(self._asked) >= MOST_KNOWN:
                self._asked.clear()
            self._asked[user_id] = self._now()[:7], self._clock()
            self._asking.pop(user_id, None)

    async def _write_down(self, user_id: str, plan: str | None) -> None:
        """It stands to the end of the month."""
        now = self._now()
        until = plans.month(now).ends_at
        if plan is not None and not self._store.peek(plans.stands, user_id, plan, until):
            await self._store.write(plans.sign_in_said, user_id, plan, until, now)

    async def _read(self, subject: str) -> object:
        """What stands in the column, None where the user has no row. Raises what a request can, or Broken."""
        place = self._place
        query = {"select": place.column, place.key: f"eq.{subject}", "limit": "1"}
        headers = {"accept": "application/json", "accept-encoding": "identity", **postgrest.key_headers(self._key)}
        async with asyncio.timeout(PATIENCE_S):
            answer = await self._client.get(self._url.with_query(query), headers)
            try:
                body = await answer.read(_MOST_ANSWER)
            finally:
                answer.close()
        if answer.status != 200:
            raise Broken(f"status {answer.status}")
        try:
            rows = msgspec.json.decode(body, type=list[dict[str, object]])
        except (msgspec.MsgspecError, ValueError):
            raise Broken("the answer is no list of rows") from None
        return rows[0].get(place.column) if rows else None

    def _strange(self, name: str) -> None:
        self._warn_once(f"the plan table says {name!r}, which is no plan")
