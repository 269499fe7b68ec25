"""Part two: many slow streams at once, each chunk stamped when it was sent.

`paced.py upstream PORT` and `paced.py client URL KEY STREAMS CHUNKS` are processes of their own
on the load's core. CLOCK_MONOTONIC is one clock for all processes of a machine, so the client
can subtract the stamp that it finds in a chunk from the time at which the chunk arrived.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

import uvloop

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from benchlib.candidates import Candidate, audit, start  # noqa: E402
from benchlib.load import target  # noqa: E402
from benchlib.processes import Processes, cores, cpu_s, free_port, rss_mb  # noqa: E402
from benchlib.workload import chat_request, event, stream_end  # noqa: E402

CHUNKS_PER_S = 20
SLOTS = 50  # the streams are spread evenly over the time between two chunks
RAMP_S = 2.0  # over which they are opened
P99_MS = 10.0
STREAM_KB = 40.0

STAMPED = event("@%s@").replace(b"%", b"%%").replace(b"@%%s@", b"@%.6f@")
STAMP = re.compile(rb"@(\d+\.\d{6})@")
LENGTH = re.compile(rb"content-length: *(\d+)", re.I)
TOKENS = re.compile(rb'"max_tokens": *(\d+)')
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """Answers a request with as many stamped chunks as it asks for tokens, one per interval."""

    slots: ClassVar[list[set[Upstream]]] = [set() for _ in range(SLOTS)]
    opened = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one only by behaviour
        self.seen, self.sent = b"", 0
        self.slot: set[Upstream] = set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.slot.discard(self)

    def data_received(self, data: bytes) -> None:
        self.seen += data
        head, end, body = self.seen.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if head.startswith(b"GET "):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            self.seen = b""
        elif end and length and len(body) >= int(length[1]):
            tokens = TOKENS.search(body)
            self.wanted, self.sent, self.seen = int(tokens[1]) if tokens else 0, 0, b""
            self.transport.write(HEAD)
            self.slot = self.slots[Upstream.opened % SLOTS]
            self.slot.add(self)
            Upstream.opened += 1

    def tick(self) -> None:
        """Sends the next chunk, and the end after the last."""
        self.transport.write(chunked(STAMPED % time.monotonic()))
        self.sent += 1
        if self.sent == self.wanted:
            self.transport.write(chunked(stream_end(self.sent)) + chunked(b""))
            self.slot.discard(self)


async def upstream(port: int) -> None:
    """Listens, and ticks one slot after the other for ever."""
    loop = asyncio.get_running_loop()
    await loop.create_server(Upstream, "127.0.0.1", port, backlog=4096)
    began, number = time.monotonic(), 0
    while True:
        due = began + number / CHUNKS_PER_S / SLOTS
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        for stream in tuple(Upstream.slots[number % SLOTS]):
            stream.tick()
        number += 1


class Client(asyncio.Protocol):
    """Reads one stream and notes when each chunk was sent and how long it took to come."""

    stamps, delays = array("d"), array("d")

    def __init__(self, request: bytes, done: asyncio.Future[bool]) -> None:
        self.request, self.done, self.rest = request, done, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(False)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        lines, _, self.rest = (self.rest + data).rpartition(b"\n")
        for found in STAMP.findall(lines):
            stamp = float(found)
            self.stamps.append(stamp)
            self.delays.append(now - stamp)
        if b"data: [DONE]" in lines and not self.done.done():
            self.done.set_result(True)
            self.transport.close()


async def client(url: str, key: str, streams: int, chunks: int) -> dict[str, float]:
    """Opens the streams one after the other and reads them; delays in milliseconds."""
    loop, target_url = asyncio.get_running_loop(), urlsplit(url)
    body = chat_request(stream=True, max_tokens=chunks)
    head = f"POST {target_url.path} HTTP/1.1\r\nHost: {target_url.netloc}\r\n"
    head += f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    ends: list[asyncio.Future[bool]] = []
    began = time.monotonic()
    for number in range(streams):
        await asyncio.sleep(max(0.0, began + RAMP_S * number / streams - time.monotonic()))
        done: asyncio.Future[bool] = loop.create_future()
        ends.append(done)
        made = lambda done=done: Client(request, done)  # noqa: E731
        await loop.create_connection(made, "127.0.0.1", target_url.port or 80)
    limit_s = chunks / CHUNKS_PER_S * 2 + 10
    await asyncio.wait(ends, timeout=limit_s)
    all_open = (began + RAMP_S, began + chunks / CHUNKS_PER_S)
    pairs = zip(Client.stamps, Client.delays, strict=True)
    delays = sorted(d * 1e3 for s, d in pairs if all_open[0] <= s <= all_open[1]) or [0.0]
    return {
        "whole": sum(e.done() and e.result() for e in ends),
        "chunks": len(Client.delays),
        "p50_ms": delays[len(delays) // 2],
        "p99_ms": delays[int(len(delays) * 0.99)],
        "max_ms": delays[-1],
    }


def load(ours: Processes, candidate: Candidate, streams: int, chunks: int) -> dict[str, float]:
    """Runs the client's process; what it saw, and the CPU and memory that it cost meanwhile."""
    pid, about = candidate.pid, (candidate.url, candidate.key, str(streams), str(chunks))
    command = [sys.executable, __file__, "client", *about]
    before, idle, peak = (cpu_s(pid), rss_mb(pid), 0.0) if pid else (0.0, 0.0, 0.0)
    process = ours.start("client", command, cores()[1], {})
    while process.poll() is None:
        time.sleep(0.2)
        peak = max(peak, rss_mb(pid) if pid else 0.0)
    used = cpu_s(pid) - before if pid else 0.0
    if ours.finish(process):
        raise SystemExit((ours.work / "client.log").read_text()[-4000:])
    seen: dict[str, float] = json.loads((ours.work / "client.log").read_text().splitlines()[-1])
    seen["cpu_us"] = used * 1e6 / max(1.0, seen["chunks"])
    seen["stream_kb"] = (peak - idle) * 1024 / streams
    return seen


def run(ours: Processes, names: Sequence[str], rounds: int, streams: int, seconds: int) -> tuple[dict[str, Any], bool]:
    """Each candidate in turn, each time a new process; prints; the figures, and if billed."""
    port, sound = free_port(), True
    command = [sys.executable, __file__, "upstream", str(port)]
    ours.serve("paced", command, cores()[1], port, {})
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    chunks = seconds * CHUNKS_PER_S
    for _ in range(rounds):
        for name in names:
            candidate = start(ours, name, "paced", f"http://127.0.0.1:{port}/v1")
            warm = load(ours, candidate, 20, CHUNKS_PER_S)
            seen = load(ours, candidate, streams, chunks)
            results[name].append(seen)
            candidate.answers = int(warm["whole"] + seen["whole"])
            candidate.cut = 20 + streams - candidate.answers
            ours.stop(candidate.pid)
            if candidate.env:
                sound = audit(candidate) and sound
    print_table(results, streams, seconds)
    return {"paced": results}, sound


def print_table(results: dict[str, list[dict[str, float]]], streams: int, seconds: int) -> None:
    """Delays of a chunk, alone and beyond direct's, CPU per chunk and memory per stream."""
    print(f"\n{streams:,} streams of {CHUNKS_PER_S} chunks per second, {seconds} s")
    heads = ("whole", "lost", "p50 ms", "p99 ms", "max ms", "+p50", "+p99", "CPU µs", "KB each")
    print(f"{'':12}" + "".join(f"{head:>9}" for head in heads))
    direct, note = results["direct"], ("", "")
    for name, seen in results.items():
        middle = {figure: median(one[figure] for one in seen) for figure in seen[0]}
        pairs = list(zip(seen, direct, strict=True))
        p50, p99 = (median(a[f] - b[f] for a, b in pairs) for f in ("p50_ms", "p99_ms"))
        lost = streams * seconds * CHUNKS_PER_S - middle["chunks"]
        row = [middle["whole"], lost, *(middle[f"{f}_ms"] for f in ("p50", "p99", "max"))]
        row += [p50, p99, middle["cpu_us"], middle["stream_kb"]]
        digits = (0, 0, 2, 2, 1, 2, 2, 1, 1)
        print(f"{name:12}" + "".join(f"{v:9,.{d}f}" for v, d in zip(row, digits, strict=True)))
        if name == "bare":
            note = f"bare: {p99:.1f}", f"bare: {middle['stream_kb']:.1f}"
        if name == "goosestack":
            print()
            target("p99 delay added to a chunk", p99, P99_MS, note[0], unit="ms")
            target("memory per stream", middle["stream_kb"], STREAM_KB, note[1], unit="KB")


if __name__ == "__main__":
    if sys.argv[1] == "upstream":
        uvloop.run(upstream(int(sys.argv[2])))
    gc.disable()
    streams_chunks = int(sys.argv[4]), int(sys.argv[5])
    print("\n" + json.dumps(uvloop.run(client(sys.argv[2], sys.argv[3], *streams_chunks))))
