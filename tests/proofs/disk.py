"""A disk that is full, that fails at any call, or that may only be read: whoever asks is told so in their own format,
what was answered is there, and all goes on as soon as it can, without a restart where that is possible.

Each thing that callers and operators can do is done again and again, while the N-th call that the daemon's writer makes
of its database fails, for N = 1, 2, 3 and so on until it has needed no more: as a full disk, as one with an I/O error
that leaves the transaction open, and as one that has rolled it back (where that is the commit, nobody can know its
outcome, and the daemon must end); and while the N-th call of those that only read fails. So is every start, of new
books and of those that a killed daemon has left. Then the disk is really full: no page left (`max_page_count`), no
byte (`RLIMIT_FSIZE`), a small tmpfs (in full, which takes root). Which call is the N-th depends on what else is written
in the same commit, which a seed does not repeat.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

from goosestack.control import VerbError
from tests.asking import Reply, ask, chat, directed, message
from tests.forgeries import event, send, signature
from tests.mallory import COUNT, Reply as Answer, asks, assert_error, dialect
from tests.proofs.bench import EVERY, FAULTS, MOST_CALLS, SETTINGS, WRITING, Bench, FailingDaemon
from tests.proofs.failing import READING
from tests.proofs.proof import Attempt, Proof
from tests.proofs.starts import every_start
from tests.world import OPENAI_KEY, Daemon, Upstream, World, until

PATIENCE_S = 15.0
"""A journal, which finds out that there is room, is written every two seconds."""

GONE = 0
"""The status of no answer: the daemon has ended."""


# --- what is done ---------------------------------------------------------------------------------------------

SETTLED = "SELECT id FROM usage_log WHERE status = 'settled'"
ENDED = "SELECT id FROM usage_log WHERE status <> 'held'"


def sign_up(bench: Bench) -> Reply:
    reply = ask(bench.world, "POST", "/v1/keys", body={"email": "bob@example.com", "name": bench.fresh()})
    if reply.status == 201:
        bench.note("SELECT id FROM api_keys", reply.json()["id"])
    return reply


def add_and_end_key(bench: Bench) -> Reply:
    reply = ask(bench.world, "POST", "/v1/keys", key=bench.alice.key, body={"name": bench.fresh()})
    if reply.status != 201:
        return reply
    key = reply.json()["id"]
    bench.note("SELECT id FROM api_keys", key)
    reply = ask(bench.world, "DELETE", f"/v1/keys/{key}", key=bench.alice.key)
    if reply.status == 200:
        bench.note("SELECT id FROM api_keys WHERE revoked = 1", key)
    return reply


def asked_of(path: str, make: Callable[..., dict[str, object]], **more: object) -> Callable[[Bench], Reply]:
    """A request of a model."""

    def do(bench: Bench) -> Reply:
        own = more.get("own")
        body = make(directed("Hi", words=3), **{name: value for name, value in more.items() if name != "own"})
        headers = {} if own is None else {"x-provider-key": str(own)}
        reply = ask(bench.world, "POST", path, key=bench.alice.key, body=body, headers=headers)
        if reply.status == 200 and (not more.get("stream") or b"[DONE]" in reply.data):
            bench.note(SETTLED, str(reply.headers["x-request-id"]))
        return reply

    return do


def cap_spending(bench: Bench) -> Reply:
    return ask(bench.world, "POST", "/api/me/spending-cap", key=bench.alice.key, body={"cents": 5})


def end_topups(bench: Bench) -> Reply:
    return ask(bench.world, "POST", "/billing/auto-topup", key=bench.alice.key, body={"enabled": False})


def webhook(bench: Bench) -> Reply:
    name = f"evt_{bench.fresh()}"
    body = event(id=name)
    reply = send(bench.world, body, signature(body))
    if reply.status == 200:
        bench.note("SELECT id FROM stripe_events", name)
    return reply


def grant(bench: Bench) -> Reply:
    """An operator's verb, over the daemon's socket."""
    ref = bench.fresh()
    try:
        bench.world.verb("credit_grant", user=bench.alice.id, cents=1, note="", ref=ref)
    except VerbError as error:
        told = {"error": {"message": str(error), "type": "overloaded_error"}}
        return Reply(
            503 if "is out of reach" in str(error) else 500, http.client.HTTPMessage(), json.dumps(told).encode()
        )
    bench.note("SELECT ref FROM entries", ref)  # also where the daemon has ended, and the file was written itself
    return Reply(200, http.client.HTTPMessage(), b"")


DEEDS: dict[str, tuple[str, Callable[[Bench], Reply]]] = {
    "sign up": ("/v1/keys", sign_up),
    "a key, and its end": ("/v1/keys", add_and_end_key),
    "a chat": ("/v1/chat/completions", asked_of("/v1/chat/completions", chat, max_tokens=50)),
    "a streamed chat": ("/v1/chat/completions", asked_of("/v1/chat/completions", chat, stream=True)),
    "a chat with an own key": (
        "/v1/chat/completions",
        asked_of("/v1/chat/completions", chat, max_tokens=50, own=OPENAI_KEY),
    ),
    "a message": ("/v1/messages", asked_of("/v1/messages", message)),
    "a response": ("/v1/responses", asked_of("/v1/responses", partial(asks, "/v1/responses"), max_output_tokens=50)),
    "an embedding": ("/v1/embeddings", asked_of("/v1/embeddings", partial(asks, "/v1/embeddings"))),
    "a count": (COUNT, asked_of(COUNT, partial(asks, COUNT))),
    "a cap": ("/api/me/spending-cap", cap_spending),
    "no more top-ups": ("/billing/auto-topup", end_topups),
    "a webhook": ("/billing/webhook", webhook),
    "a grant": ("", grant),
}


STRANGERS = ("sign up", "a webhook", "a grant")
READ_BY = tuple(name for name in DEEDS if name not in STRANGERS)
"""What is done by a caller whose key is looked up first."""


def done(bench: Bench, deed: Callable[[Bench], Reply]) -> Reply:
    """Do it; an answer with the status `GONE` where the daemon has ended."""
    try:
        return deed(bench)
    except (OSError, http.client.HTTPException, VerbError):
        return Reply(GONE, http.client.HTTPMessage(), b"")


# --- failing at every call ------------------------------------------------------------------------------------


def at_every_call(attempt: Attempt, bench: Bench, name: str, fault: str, places: Iterable[int]) -> None:
    """Do it with the database failing at each of these calls, until one is not come to."""
    path, deed = DEEDS[name]
    for place in places:
        where = f"{name}, {fault} at call {place}"
        before, start, rows = bench.switch.struck, bench.world.upstream.mark(), len(bench.world.rows())
        waited = waiting(bench)
        bench.switch.arm(place, fault)
        reply = done(bench, deed)
        bench.switch.arm(0, fault)
        if bench.switch.struck == before:
            return
        attempt.count("failed calls")
        attempt.meet(f"a disk that is {fault}")
        for id in waiting(bench) - waited:
            attempt.meet("a settlement that waited")
            bench.note(ENDED, id)
        if reply.status == GONE or bench.world.daemon.program.process.poll() is not None:
            attempt.must(fault == "failing, rolled back", f"{where}: the daemon has ended, and need not have")
            must_end(attempt, bench, where)
            attempt.meet("a commit of unknown outcome")
            bench.world.daemon.start()
        elif reply.status not in (200, 201):
            attempt.must(reply.status == 503, f"{where}: {reply.status} {reply.data[:200]!r}")
            refused_well(attempt, path, reply, where)
            attempt.meet("a refusal")
            sent = bench.world.upstream.dispatches(start)
            attempt.must(sent == [], f"{where}: refused, and sent all the same")
        else:
            attempt.must(whole(reply), f"{where}: a stream without its end was told as an answer")
            attempt.meet("an answer all the same")
        must_be_logged(attempt, bench, start, rows, where)
        if place > 1:
            done(bench, sign_up)  # any write finds out that there is room again; else it takes two seconds
        must_go_on(attempt, bench, deed, where)
    if places is EVERY:
        attempt.must(False, f"{name}, {fault}: after {MOST_CALLS:,} calls there is no end of them")


def whole(reply: Reply) -> bool:
    """Whether an answer has its end: a stream says so itself."""
    return "text/event-stream" not in reply.headers.get("content-type", "") or b"[DONE]" in reply.data


def must_be_logged(attempt: Attempt, bench: Bench, start: int, rows: int, where: str) -> None:
    """What went upstream is in the log, and has ended; `start` and `rows` are from before."""
    sent = len(bench.world.upstream.dispatches(start))
    statuses = [row["status"] for row in bench.world.rows()[rows:]]
    attempt.must(sent <= len(statuses), f"{where}: {sent} requests were sent, and {len(statuses)} are in the log")
    attempt.must("held" not in statuses, f"{where}: a hold is left: {statuses}")
    if sent:
        attempt.meet("a request that was sent, and is in the log")


def must_end(attempt: Attempt, bench: Bench, where: str) -> None:
    """The daemon ends by itself, as one whose commits have an unknown outcome."""
    process, end = bench.world.daemon.program.process, time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    attempt.must(process.poll() == 70, f"{where}: the daemon must end with 70, and it is {process.poll()}")


def must_go_on(attempt: Attempt, bench: Bench, deed: Callable[[Bench], Reply], where: str) -> None:
    """What is done works again, soon."""
    reply, end = done(bench, deed), time.monotonic() + PATIENCE_S
    while reply.status not in (200, 201) and time.monotonic() < end:
        time.sleep(0.1)
        reply = done(bench, deed)
    attempt.must(reply.status in (200, 201), f"{where}: afterwards {reply.status} {reply.data[:200]!r}")


def refused_well(attempt: Attempt, path: str, reply: Reply, where: str) -> None:
    """In the format that the caller speaks."""
    if path:
        headers = {name.lower(): value for name, value in reply.headers.items()}
        try:
            assert_error(Answer(reply.status, headers, reply.data), dialect(path, {}), 503)
        except AssertionError as error:
            attempt.must(False, f"{where}: {error}")


def every_call(attempt: Attempt, bench: Bench) -> None:
    """All that can be done, with each fault at each call; in short, some of it."""
    pairs = [(name, fault) for name in DEEDS for fault in FAULTS]
    if attempt.full:
        for name, fault in pairs:
            at_every_call(attempt, bench, name, fault, EVERY)
        return
    chance = attempt.random
    at_every_call(attempt, bench, "a chat", "full", [1])  # which alone can find out that there is room again
    for fault in WRITING[1:]:
        at_every_call(attempt, bench, chance.choice(list(DEEDS)), fault, [1])
    at_every_call(attempt, bench, chance.choice(list(READ_BY)), READING, [1])
    while attempt.reached["failed calls"] < attempt.goal["failed calls"]:
        name = chance.choice(list(DEEDS))
        at_every_call(attempt, bench, name, chance.choice(FAULTS[:2]), [chance.randrange(1, 8)])
    at_every_call(attempt, bench, "a cap", FAULTS[2], range(2, MOST_CALLS))


# --- really full ----------------------------------------------------------------------------------------------


@contextmanager
def in_flight(bench: Bench, count: int, words: int = 40) -> Iterator[list[Future[Reply]]]:
    """So many streams that have begun; their answers are there at the end. Where something is refuted before it, their
    daemon is killed: one that cannot settle would have them wait for ever."""
    body = chat(directed("Hi", words=words, delay_ms=40), stream=True, max_tokens=100)
    with ThreadPoolExecutor(count) as pool:
        start = len(bench.world.rows())
        streams = [
            pool.submit(ask, bench.world, "POST", "/v1/chat/completions", key=bench.alice.key, body=body)
            for _ in range(count)
        ]
        try:
            until(lambda: [row["status"] for row in bench.world.rows()[start:]] == ["held"] * count, "streams")
            yield streams
        except BaseException:
            bench.world.daemon.program.stop(signal.SIGKILL)
            raise


def waiting(bench: Bench) -> set[str]:
    """The requests whose settlements this daemon has said to wait for room."""
    return set(re.findall(r'"kind":"settlement_waits","request_id":"(\w+)"', bench.world.daemon.program.text()))


def no_page_left(attempt: Attempt, bench: Bench) -> None:
    """What is in flight settles or waits, what is new is refused, and when there is room, all goes on.

    Settling completes a row, which may take a page more. No ballast makes room under this limit, as it does on a disk
    (see `small_disk`): what finds none must wait for it, with its end withheld, and then be billed. A run of the short
    form in which three of four waited, and which waited for them before it gave room, hung.
    """
    with in_flight(bench, 4, words=40 if attempt.full else 25) as streams:
        bench.switch.arm(1, "without room")
        statuses = [sign_up(bench).status]
        while statuses[-1] == 201 and len(statuses) < 400:  # until the pages that it has are full
            statuses.append(sign_up(bench).status)
        attempt.must(statuses[-1] == 503, f"no page is left, and {statuses[-1]} was answered")
        refused = done(bench, DEEDS["a chat"][1])
        attempt.must(refused.status in (200, 503), f"on a full disk a chat was answered {refused.status}")
        until(lambda: sum(stream.done() for stream in streams) + len(waiting(bench)) >= len(streams), "ends, or waits")
        attempt.meet("a settlement that waited", len(waiting(bench)))
        bench.switch.arm(1, "with room")
        replies = [stream.result() for stream in streams]
    attempt.must(all(b"[DONE]" in reply.data for reply in replies), "what was in flight did not end well")
    must_go_on(attempt, bench, DEEDS["a chat"][1], "there is room again")
    attempt.must(bench.world.daemon.program.process.poll() is None, "a full disk has ended the daemon")
    for reply in replies:
        bench.note(SETTLED, str(reply.headers["x-request-id"]))
    attempt.count("full disks")
    attempt.meet("no page left")


def no_byte_left(attempt: Attempt, bench: Bench) -> None:
    """The kernel takes no byte more, not even of the log: the daemon ends, since it cannot know; started again, it has
    all that it answered."""
    pid, log = bench.world.daemon.program.process.pid, bench.world.daemon.db.with_name("goosestack.db-wal")
    size = max(log.stat().st_size, 4096)
    with bench.world.daemon.program.output.open("ab") as said:
        said.write(b"\n" * size)  # so that what it says is as full as what it writes
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))
    for _ in range(400):
        reply = done(bench, sign_up)
        if reply.status == GONE:
            break
        attempt.must(reply.status in (201, 503), f"no byte is left, and {reply.status} was answered")
    must_end(attempt, bench, "no byte is left")
    bench.world.daemon.start()
    attempt.must(done(bench, sign_up).status == 201, "after a restart nothing goes on")
    attempt.count("full disks")
    attempt.meet("no byte left")


def read_only(attempt: Attempt, bench: Bench) -> None:
    """Nothing may be written any more: the daemon ends rather than serve what it cannot write down."""
    bench.switch.arm(1, "read-only")
    reply = done(bench, sign_up)
    attempt.must(reply.status in (GONE, 503), f"a file that may only be read: {reply.status}")
    must_end(attempt, bench, "a file that may only be read")
    bench.world.daemon.start()
    attempt.must(done(bench, sign_up).status == 201, "after a restart nothing goes on")
    attempt.meet("a file that may only be read")


def small_disk(attempt: Attempt) -> None:
    """A daemon on a small disk of its own that somebody else fills, and empties again; then it may only be read."""
    disk = attempt.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], check=True)
    try:
        upstream = Upstream(attempt.folder)
        world = World(disk, upstream, Daemon(disk, upstream.url, **SETTINGS))
        bench = Bench(world, world.customer(100_000))
        with world.closing():
            with in_flight(bench, 4) as streams:
                fill(disk / "blob")
                replies = [sign_up(bench) for _ in range(300)]
                attempt.must({reply.status for reply in replies} <= {201, 503}, "on a full disk, something else")
                refused = [reply for reply in replies if reply.status == 503]
                attempt.must(refused != [], "a disk was full, and everything was written")
                refused_well(attempt, "/v1/keys", refused[0], "a full disk")
                ended = [stream.result() for stream in streams]
            attempt.must(all(b"[DONE]" in reply.data for reply in ended), "what was in flight did not end well")
            (disk / "blob").unlink()
            must_go_on(attempt, bench, DEEDS["a chat"][1], "there is room again")
            attempt.must(bench.missing() == [], "; ".join(bench.missing()[:3]))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        command = [sys.executable, "-m", "goosestack", "serve"]
        done_ = subprocess.run(command, env=world.daemon.env, cwd=disk, capture_output=True, timeout=30, check=False)
        said = done_.stderr.decode()
        attempt.must(done_.returncode in (75, 78) and said.count("\n") == 1, f"{done_.returncode}: {said}")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    attempt.count("full disks")
    attempt.meet("a small disk")


def fill(blob: Path) -> None:
    """Somebody else's file takes all that is left."""
    with blob.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


# --- the proof ------------------------------------------------------------------------------------------------


def run(attempt: Attempt) -> None:
    """Failing calls, and failing starts beside them, then full disks; in the end what was answered is looked for."""
    attempt.expect(*(f"a disk that is {fault}" for fault in FAULTS))
    attempt.expect("a refusal", "a commit of unknown outcome")
    if attempt.full:
        attempt.must(os.geteuid() == 0, "no small disk can be filled: that takes root, who may mount one")
        attempt.expect("a small disk", "a start that was refused")
        attempt.expect("a settlement that waited", "a request that was sent, and is in the log", times=10)
    folder = attempt.folder / "house"
    folder.mkdir()
    upstream = Upstream(folder)
    bench_world = World(folder, upstream, FailingDaemon(folder, upstream.url, **SETTINGS))
    bench = Bench(bench_world, bench_world.customer(1_000_000, pro=True))
    with bench.world.closing(), ThreadPoolExecutor(1) as beside:
        starts = beside.submit(every_start, attempt, Random(attempt.random.random()))
        every_call(attempt, bench)
        starts.result()
        heads = attempt.random.random() < 0.5  # in short, the one or the other two
        if attempt.full or heads:
            attempt.expect("no page left")
            no_page_left(attempt, bench)
        if attempt.full or not heads:
            attempt.expect("no byte left", "a file that may only be read")
            no_byte_left(attempt, bench)
            read_only(attempt, bench)
        attempt.must(bench.missing() == [], "; ".join(bench.missing()[:3]))
        attempt.count("acknowledged", sum(map(len, bench.answered.values())))
    if attempt.full:
        small_disk(attempt)


PROOF = Proof(
    name="disk",
    claim="On a disk that is full or fails, callers are told so, nothing that was answered is lost, and all goes on.",
    short={"failed calls": 8, "failed starts": 1, "full disks": 1, "acknowledged": 10},
    full={"failed calls": 250, "failed starts": 100, "full disks": 3, "acknowledged": 250},
    run=run,
    limit_s=(90, 1_200),
)
