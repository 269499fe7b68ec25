"""What was asked, what the upstream saw of it, and what was written down: three accounts that must agree.

Every request bears a tag of its own in its text, which the upstream writes into its log. Whoever heard of the request's
id knows its row; of the others, at most one of each key and daemon is on its way at a time, or they are counted.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from goosestack import admin, ledger
from goosestack.clock import utc_now
from goosestack.store.sqlite import connect_read_only
from tests.mallory import CHAT, COUNT, MESSAGES, RESPONSES, WIRES, asks
from tests.world import ANTHROPIC_KEY, OPENAI_KEY, Customer, World, until

STREAMED = (CHAT, RESPONSES, MESSAGES)
ENDS = (b"data: [DONE]", b"event: response.completed", b"event: message_stop")
CUT = (aiohttp.ClientError, ConnectionError)
"""What becomes of an answer whose daemon dies."""

PLANS = """
[free]
tokens_per_month = 0
[basic]
tokens_per_month = 1_000_000_000
"""
CENTS = 10_000_000
ROOM: Mapping[str, Mapping[str, object]] = {
    CHAT: {"max_tokens": 2_000},
    RESPONSES: {"max_output_tokens": 2_000},
    MESSAGES: {"max_tokens": 2_000},
}
_TAG = re.compile(r"ask\.\d+\.")


@dataclass(frozen=True, slots=True)
class Caller:
    """A key, and who pays what it asks for: `credits`, `allowance`, the provider, by an `own key`; or an agent, whose
    user stands for the key that it has not, and whose `purse` gives a `voucher` for each request."""

    customer: Customer
    payer: str
    purse: Callable[[], str] | None = None

    def headers(self, path: str) -> dict[str, str]:
        """What a request of this caller bears."""
        if self.purse is not None:
            return {"x-drain-voucher": self.purse()}
        own = {"x-provider-key": ANTHROPIC_KEY if path in (MESSAGES, COUNT) else OPENAI_KEY}
        return {"authorization": f"Bearer {self.customer.key}", **(own if self.payer == "own key" else {})}


@dataclass(slots=True)
class Asked:
    """One request, and what its caller came to know of it."""

    number: int
    caller: Caller
    path: str
    stream: bool
    life: int
    """The id of the daemon that it was sent to."""
    directive: Mapping[str, object]
    room: Mapping[str, object] | None = None
    """Fields that make room for the answer, where the usual ones make too little."""
    request_id: str | None = None
    status: int | None = None
    whole: bool = False
    """Whether the answer was seen to its end."""
    told: int | None = None
    """What it said it had cost, in cents or tokens."""

    @property
    def tag(self) -> str:
        """What the upstream knows it by."""
        return f"ask.{self.number}."

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        text = f"{self.tag} demo:{json.dumps(dict(self.directive))}"
        room = ROOM.get(self.path, {}) if self.room is None else self.room
        return asks(self.path, text, **room, **({"stream": True} if self.stream else {}))

    def __str__(self) -> str:
        return f"{self.tag} ({self.path}{' streamed' if self.stream else ''}, {self.caller.payer}, {self.request_id})"

    async def send(self, client: aiohttp.ClientSession, url: str) -> bool:
        """Ask, and read the answer; False where it was cut off."""
        try:
            async with client.post(url + self.path, json=self.body, headers=self.caller.headers(self.path)) as answer:
                self.status, self.request_id = answer.status, answer.headers["x-request-id"]
                self.heard(answer.headers, await answer.read())
        except CUT:
            return False
        return True

    def heard(self, headers: Mapping[str, str], data: bytes) -> None:
        """The answer has come to its end, whichever that is."""
        self.whole = self.status == 200 and (not self.stream or any(end in data for end in ENDS))
        unit = "tokens" if self.caller.payer == "allowance" and self.path != COUNT else "cents"
        line, header = rf"^: goosestack .*\bcost-{unit}=(\d+)", f"x-goosestack-cost-{unit}"
        if self.caller.purse is not None:
            line, header = r"^: X-DRAIN-Cost: (\d+)", "x-drain-cost"
        told = re.search(line, data.decode("utf-8", "replace"), re.MULTILINE)
        found = told.group(1) if told else headers.get(header)
        self.told = None if found is None else int(found)


def a_wire(chance: Random) -> tuple[str, bool]:
    """Any wire format, streamed or not."""
    path = chance.choice(WIRES)
    return path, path in STREAMED and chance.random() < 0.6


def funding(folder: Path) -> dict[str, Any]:
    """The settings with which callers pay in every way."""
    plans = folder / "plans.toml"
    plans.write_text(PLANS)
    return {"FUNDING": "allowance,credits", "PLANS_FILE": str(plans)}


def open_world(folder: Path, **settings: str) -> World:
    """A world whose callers pay in every way."""
    return World.create(folder, **{**funding(folder), **settings})


PAYERS = {"credits": "alice", "allowance": "carol", "own key": "bob"}
"""And whose names they go by."""


def make_callers(world: World, users: int, keys: int, payers: Iterable[str] = PAYERS) -> list[Caller]:
    """So many users of each payer, each with so many keys."""
    found = []
    for payer in payers:
        name = PAYERS[payer]
        for number in range(users):
            cents = CENTS if payer == "credits" else 0
            customer = world.customer(cents, name=f"{name}{number}", pro=payer == "own key")
            if payer == "allowance":
                world.verb("plan_assign", user=customer.id, plan="basic", until=None)
            found += [Caller(each, payer) for each in (customer, *asyncio.run(_more_keys(world, customer, keys - 1)))]
    return found


async def _more_keys(world: World, customer: Customer, count: int) -> list[Customer]:
    args = {"user": customer.id, "name": "more"}
    calls = (admin.call(world.daemon.db, "key_create", args, utc_now) for _ in range(count))
    return [Customer(customer.id, made["api_key"], made["id"]) for made in await asyncio.gather(*calls)]


def query(world: World, sql: str, *args: object) -> list[tuple[Any, ...]]:
    """Any question to the daemon's file."""
    db = connect_read_only(world.daemon.db)
    try:
        return db.execute(sql, args).fetchall()
    finally:
        db.close()


def wrong_books(world: World, *, full: bool = True) -> list[str]:
    """What the books of the file get wrong."""
    db = connect_read_only(world.daemon.db)
    try:
        return ledger.check(db, full=full).wrong
    finally:
        db.close()


def faults(world: World) -> list[str]:
    """What went wrong in the daemon, or in any that ran there before it, that it did not foresee, as its log has it."""
    signs = ('"kind":"fault"', "Traceback", "never retrieved")
    with world.daemon.program.output.open(encoding="utf-8", errors="replace") as log:  # line by line: it may be long
        return [line.rstrip() for line in log if any(sign in line for sign in signs)]


def open_holds(world: World) -> int:
    """Holds that have not ended."""
    (row,) = query(world, "SELECT count(*) FROM usage_log WHERE status = 'held'")
    return int(row[0])


def seen(world: World) -> Counter[tuple[str, str]]:
    """How often the upstream saw which tag on which path, once all that it saw has ended."""

    def ended() -> Counter[tuple[str, str]] | None:
        found: Counter[tuple[str, str]] = Counter()
        events: Counter[str] = Counter()
        with world.upstream.log.open() as log:  # line by line: it may be long
            for line in log:
                event = json.loads(line)
                events[event["event"]] += 1
                if event["event"] == "dispatch" and (tag := _TAG.search(json.dumps(event["body"]))):
                    found[tag.group(), event["path"]] += 1
        return found if events["dispatch"] == events["end"] else None

    found: Counter[tuple[str, str]] = until(ended, "the upstream to end what it was sent", 60)
    return found


def disagreements(world: World, asked: Iterable[Asked]) -> list[str]:
    """Where the three accounts do not agree, as stories; of a world in which nothing is on its way any more."""
    everything = list(asked)
    counts = seen(world)
    rows = {row["id"]: row for row in world.rows() if not row["id"].endswith(".c")}
    wrong = [f"{row['id']} is still held" for row in rows.values() if row["status"] == "held"]
    wrong += [f"{tag} was sent {times} times to {path}" for (tag, path), times in counts.items() if times > 1]
    lost: dict[tuple[str, int], list[Asked]] = defaultdict(list)
    for each in everything:
        if each.request_id is None:
            lost[each.caller.customer.key_id, each.life].append(each)
        else:
            wrong += _disagrees(each, counts[each.tag, each.path], rows.pop(each.request_id, None))
    others: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows.values():
        others[row["key_id"] or row["user_id"], row["process_id"]].append(row)
    for whose in lost.keys() | others.keys():
        wrong += _miscounted(lost[whose], others[whose], counts)
    return wrong


def _disagrees(each: Asked, sent: int, row: Mapping[str, Any] | None) -> list[str]:
    """Of a request whose row is known."""
    if row is None:
        return [f"{each} was sent upstream and has no row"] if sent else []
    if row["status"] == "settled" and not sent:
        return [f"{each} was charged and never sent upstream"]
    if each.whole and row["status"] != "settled":
        return [f"{each} was answered to its end, and its row is {row['status']}: {row['reason']}"]
    charged = row["charged"] if row["unit"] == "tokens" else row["billed"]
    if each.whole and each.told != charged:
        return [f"{each} said that it cost {each.told}, and its row says {charged}"]
    if each.whole and each.caller.payer != "own key" and each.path != COUNT and row["charged"] == 0:
        return [f"{each} was answered to its end for nothing"]
    return []


def _miscounted(lost: list[Asked], rows: list[Mapping[str, Any]], counts: Counter[tuple[str, str]]) -> list[str]:
    """Of the requests whose callers never learnt their ids, and the rows that no caller knows of."""
    sent = sum(counts[each.tag, each.path] for each in lost)
    settled = sum(row["status"] == "settled" for row in rows)
    if settled <= sent <= len(rows) <= len(lost):
        return []
    names = ", ".join(map(str, lost)) or "nobody"
    return [f"of {names}: {sent} were sent upstream, and there are {len(rows)} rows, {settled} of them charged"]
