"""Clients who go: in the middle of what they send, before the answer, in the middle of it, or by reading no further.

Each has a key of its own, so that its one row is known although it never heard of it. Who goes how and where is drawn
by the seed; whether its request has been sent on by then is the machine's affair. So they come in waves until there
are as many as are wanted of those who were sent on and billed. The others come along: who never sends all of it, who
goes before it is sent on, who counts tokens or brings a key, and is charged nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.asking import ask
from tests.mallory import CHAT, COUNT, MESSAGES, RESPONSES
from tests.proofs.proof import Attempt, Proof, Refuted
from tests.witness import (
    STREAMED,
    Asked,
    Caller,
    a_wire,
    faults,
    make_callers,
    open_holds,
    open_world,
    query,
    seen,
    wrong_books,
)
from tests.world import World, until

AT_ONCE = 40
KEYS = 100
FREELY = 6
WAVES = 6
"""At most, until enough were billed and every danger was met; about half of all who come are billed."""
PATIENCE_S = 90.0
ENDED = "SELECT 1 FROM usage_log WHERE key_id = ? AND status <> 'held'"

UNSENT = ("in its head", "in its body")
SENT = ("before the answer", "before the answer", "in the answer", "in the answer", "in the answer", "in the answer")
PLACES = (*UNSENT, *SENT)
MANNERS = ("FIN", "RST", "half-close")
STALLED = "reading no further"
DANGERS = (*PLACES, *MANNERS, STALLED, "read to its end for nobody", "cut off upstream", "never sent")
LONG = {"words": 120, "delay_ms": 20}
LARGE = {"words": 50_000, "fault": "coalesced"}
ROOM: Mapping[str, Mapping[str, object]] = {
    CHAT: {"model": "gpt-5.4-mini", "max_completion_tokens": 60_000},
    RESPONSES: {"model": "gpt-5.4-mini", "max_output_tokens": 60_000},
    MESSAGES: {"max_tokens": 60_000},
}
"""More than the buffers on the way take in."""

SMALL_WINDOW = 4_096


@dataclass(frozen=True, slots=True)
class Leaver:
    """One client: what it asks, and how it goes."""

    asked: Asked
    place: str
    manner: str
    offset: float
    """How far it gets, as a part of what it sends, or of 4 KB of the answer."""
    pause_s: float | None
    """How long it does nothing before it goes; None until the daemon has ended it, which it does after 30 s."""

    def __str__(self) -> str:
        return f"{self.asked} that went {self.place} by {self.manner}"

    @property
    def sends_all(self) -> bool:
        """Whether its request is whole."""
        return self.place not in UNSENT

    def request(self) -> bytes:
        """As much of the request as it sends."""
        body = json.dumps(self.asked.body).encode()
        headers = {**self.asked.caller.headers(self.asked.path), "content-type": "application/json"}
        lines = [f"POST {self.asked.path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        if self.place == "in its head":
            return head[: int(self.offset * len(head))]
        return head + (body[: int(self.offset * len(body))] if self.place == "in its body" else body)


def drawn(attempt: Attempt, callers: list[Caller], first: int) -> Iterator[Leaver]:
    """A client for each of the callers, in the order in which they come, numbered from `first` on."""
    chance, count = attempt.random, len(callers)
    stalled = set(chance.sample(range(count), max(0 if first else 2, count // 250)))
    to_the_end = set(itertools.islice(stalled, max(1, len(stalled) // 10))) if attempt.full and not first else set()
    for number, caller in enumerate(callers):
        path, stream = a_wire(chance)
        directive: dict[str, Any] = {"words": chance.randrange(1, 60), "delay_ms": chance.choice((0, 0, 2, 10))}
        if chance.random() < (0.1 if attempt.full else 0.4):  # of few, enough that are worth cutting off
            directive |= chance.choice(({"hang_s": chance.uniform(0, 0.5)}, LONG))
        place = chance.choice(PLACES)
        pause: float | None = chance.choice((0, 0, chance.uniform(0, 0.1)))
        if number in stalled:
            path, stream, directive, place = chance.choice(STREAMED), True, LARGE, STALLED
            pause = None if number in to_the_end else chance.uniform(0.5, 1)
        asked = Asked(first + number, caller, path, stream, 1, directive, ROOM[path] if number in stalled else None)
        yield Leaver(asked, place, chance.choice(MANNERS), chance.random(), pause)


async def go(attempt: Attempt, world: World, leaver: Leaver) -> None:
    """Come, ask and go."""
    sock = socket.socket()
    if leaver.place == STALLED:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW)
    sock.setblocking(False)
    url = urlsplit(world.url)
    await asyncio.get_running_loop().sock_connect(sock, (url.hostname, url.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=SMALL_WINDOW)
    writer.write(leaver.request())
    await writer.drain()
    if leaver.place == "in the answer":
        left, size = int(leaver.offset * 4_096), 1
        while left > 0 and size:
            size = len(await reader.read(left))
            left -= size
    if leaver.pause_s is None:
        await ended_by_the_daemon(attempt, world, leaver, reader)
    else:
        await asyncio.sleep(leaver.pause_s)
        await leave(leaver.manner, reader, writer)
    writer.close()
    attempt.meet(leaver.place)
    attempt.meet(leaver.manner)


async def ended_by_the_daemon(attempt: Attempt, world: World, leaver: Leaver, reader: asyncio.StreamReader) -> None:
    """Read nothing until the daemon has had enough; what there is then says why."""
    while not query(world, ENDED, leaver.asked.caller.customer.key_id):
        await asyncio.sleep(0.5)
    rest = await reader.read(-1)
    attempt.must(b"nothing of its answer was read" in rest, f"{leaver} was ended with {rest[-300:]!r}")
    attempt.meet("ended for reading nothing")


async def leave(manner: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Go, in this manner."""
    if manner == "half-close":
        writer.write_eof()
        await reader.read(-1)
    elif manner == "RST":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def all_go(attempt: Attempt, world: World, leavers: list[Leaver]) -> None:
    """So many at once, until all have gone."""
    waiting = iter(leavers)

    async def lane() -> None:
        for leaver in waiting:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await go(attempt, world, leaver)
            except ConnectionRefusedError:
                raise Refuted(f"{leaver} was not let in") from None
            except ConnectionError:
                attempt.meet("cut by the daemon itself")
            except TimeoutError:
                raise Refuted(f"{leaver} was kept waiting for {PATIENCE_S:.0f} s") from None

    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))


def run(attempt: Attempt) -> None:
    attempt.expect(*DANGERS)
    if attempt.full:
        attempt.expect("ended for reading nothing")
    world = open_world(attempt.folder, DISCONNECT_GRACE_S="1")
    came = 0
    try:
        for _ in range(WAVES):
            missing = max(0, attempt.goal["clients billed"] - attempt.reached["clients billed"])
            if not missing and all(attempt.met[danger] for danger in DANGERS):
                break
            leavers = list(drawn(attempt, callers_for(attempt, world, missing), came))
            came += len(leavers)
            asyncio.run(all_go(attempt, world, leavers))
            until(lambda: open_holds(world) == 0, "every hold to end", 60)
            judge(attempt, world, leavers)
        attempt.figure(f"{came:,} clients came, of whom {attempt.met['sent on']:,} were sent on")
        still_well(attempt, world)
    finally:
        world.daemon.program.stop(signal.SIGKILL)
        world.upstream.program.stop(signal.SIGKILL)


def callers_for(attempt: Attempt, world: World, billed: int) -> list[Caller]:
    """A key for each of so many clients that about the wanted number of them is billed; one in `FREELY` brings its
    own."""
    count = 2 * billed + 20
    own = count // FREELY
    found = []
    for wanted, payers in ((count - own, ("credits", "allowance")), (own, ("own key",))):
        each = -(-wanted // len(payers))
        keys = min(KEYS, each)
        made = make_callers(world, users=-(-each // keys), keys=keys, payers=payers)
        found += attempt.random.sample(made, wanted)
    attempt.random.shuffle(found)
    return found


def still_well(attempt: Attempt, world: World) -> None:
    """The daemon that they came to lives, and answers."""
    ended = world.daemon.program.process.poll()
    attempt.must(ended is None, f"the daemon ended with {ended}: {world.daemon.program.text()[-1000:]}")
    reply = ask(world, "GET", "/health")
    attempt.must(reply.status == 200, f"asked for its health, the daemon answers {reply.status}: {reply.data!r}")


def judge(attempt: Attempt, world: World, leavers: list[Leaver]) -> None:
    """Each request that the upstream saw has one settled row; what it did not see has none that is."""
    counts = seen(world)
    rows: dict[str, list[dict[str, Any]]] = {leaver.asked.caller.customer.key_id: [] for leaver in leavers}
    for row in world.rows():
        if row["key_id"] in rows:
            rows[row["key_id"]].append(row)
    for leaver in leavers:
        asked = leaver.asked
        sent, found = counts[asked.tag, asked.path], rows[asked.caller.customer.key_id]
        told = [(row["status"], row["reason"], row["charged"]) for row in found]
        attempt.must(sent <= 1 and len(found) <= 1, f"{leaver} was sent {sent} times, its rows: {told}")
        settled = bool(found) and found[0]["status"] == "settled"
        attempt.must(settled == bool(sent), f"{leaver} was sent {sent} times, its rows: {told}")
        attempt.must(leaver.sends_all or not found, f"{leaver} never sent all of it, its rows: {told}")
        attempt.meet("never sent", not sent and leaver.sends_all)
        attempt.meet("sent on", sent)
        if sent:
            judge_row(attempt, leaver, found[0])
    wrong = wrong_books(world)
    attempt.must(not wrong, f"the books: {wrong[:3]}")
    attempt.must(not faults(world), f"the daemon met what it did not expect: {faults(world)[:1]}")


def judge_row(attempt: Attempt, leaver: Leaver, row: dict[str, Any]) -> None:
    """One that was sent is paid for, by what was reported, or by what was seen of it; unless nobody's account pays."""
    asked = leaver.asked
    free = asked.caller.payer == "own key" or asked.path == COUNT
    attempt.must(free == (row["charged"] == 0), f"{leaver} was sent and cost {row['charged']}")
    attempt.count("clients billed", not free)
    attempt.meet("sent on, and free", free)
    attempt.must(row["shortfall"] == 0, f"{leaver} had a shortfall of {row['shortfall']}")
    known = row["reason"] in ("completed", "client_gone")
    attempt.must(known, f"{leaver} ended as {row['reason']}")
    attempt.must(row["estimated"] == (row["reason"] == "client_gone"), f"{leaver}: {row['reason']}, {row['estimated']}")
    attempt.meet("cut off upstream" if row["reason"] == "client_gone" else "read to its end for nobody")


PROOF = Proof(
    name="disconnects",
    claim="Clients that go at any offset, half-close, reset or stop reading: what was sent on has one row, billed "
    "unless it was free, and no hold stays.",
    short={"clients billed": 80},
    full={"clients billed": 10_000},
    run=run,
    limit_s=(120, 1_800),
)
