"""Part three: what one call of a part costs, alone in a loop: microseconds of CPU, of all threads.

A part is a name and a setup that prepares whatever it needs in a new directory and returns the
call to be timed, and how many requests' worth of it one call does. Add a line to PARTS; nothing
else has to know.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
import timeit
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchlib.workload import MODEL, canned, chat_request
from goosestack import accounts, clock, costing, ledger, pricing, wiring
from goosestack.bidding import Bid, Policy, bid
from goosestack.config import Config
from goosestack.ledger import Charge, NewHold
from goosestack.logs import Log, Writer
from goosestack.payers import Credits
from goosestack.store.sqlite import SqliteStore
from goosestack.upstream import Upstreams
from goosestack.wire import body as fields
from goosestack.wire.openai_chat import OpenAIChat

Part = tuple[Callable[[], object], int]
Setup = Callable[[Path], Part]

AT_ONCE = 64
NOW = "2026-11-01T00:00:00.000Z"
CHAT = OpenAIChat()


def key_hash(work: Path) -> Part:
    """SHA-256 of an API key: a yardstick."""
    key = b"gsk_" + b"x" * 43
    return lambda: hashlib.sha256(key).digest(), 1


def json_request(work: Path) -> Part:
    """The 1 KB request through the standard library's parser: a yardstick."""
    body = chat_request(stream=False)
    return lambda: json.loads(body), 1


def without_waiting(work: Coroutine[Any, Any, Bid]) -> Bid:
    """The result of what waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise RuntimeError("it waits")


def bidder(*, stream: bool) -> Callable[[], Bid]:
    """What makes a bid of the request, from its bytes."""
    config = Config(openai_api_key="sk-bench")
    upstreams = Upstreams(wiring.providers_of(config), wiring.load_prices(config))
    body, alice = chat_request(stream=stream), Credits(1, pricing.Terms())

    def made() -> Bid:
        call = CHAT.parse(fields.parse(body), own_key=False)
        return without_waiting(bid(upstreams, Policy(), CHAT, call, {}, payers=[alice], own_key=None, today=NOW[:10]))

    return made


def bid_of_a_request(work: Path) -> Part:
    """From the request's bytes to what must be held, and the bytes that go upstream."""
    return bidder(stream=False), 1


def answer(work: Path) -> Part:
    """From the answer's bytes to what it costs."""
    made, body = bidder(stream=False)(), canned("plain")
    book = wiring.load_prices(Config())

    def read() -> Charge:
        reader = CHAT.reader(made.call, keep_text=False)
        if not reader.whole(body):
            raise RuntimeError("not read")
        usage, _ = costing.reported(made, reader.reading)
        if usage is None:
            raise RuntimeError("not believed")
        return costing.charge(made, reader.reading, usage, book, NOW[:10])

    return read, 1


def stream(work: Path) -> Part:
    """A stream of 60 events, chunk by chunk as they come, through its reader."""
    made = bidder(stream=True)()
    events = [event + b"\n\n" for event in canned("stream").split(b"\n\n") if event]

    def read() -> None:
        reader = CHAT.reader(made.call, keep_text=False)
        if [reader.feed(event) for event in events][-1][1] is None:
            raise RuntimeError("it has no end")

    return read, 1


def money(work: Path) -> Part:
    """Hold and settle, each with its durable commit, of as many requests at once as the load has."""
    loop, charge = asyncio.new_event_loop(), Charge(1000, 1000)
    opened: list[SqliteStore] = []
    numbers = itertools.count()

    async def open_store() -> int:
        opened.append(SqliteStore(work / "parts.db"))
        await opened[0].write(ledger.begin_process, "bench", NOW)
        await opened[0].write(accounts.create_user, "bench@example.com", NOW, user_id="usr_bench")
        account_id = await opened[0].write(ledger.open_account, "usr_bench", "usd_cents", NOW)
        await opened[0].write(ledger.post, account_id, "grant", "bench", 100_000_000, NOW)
        return account_id

    account_id = loop.run_until_complete(open_store())

    async def one(number: int) -> None:
        hold = NewHold(f"req_{number}", "usr_bench", 1, "openai_chat", "openai", MODEL, None, account_id)
        await opened[0].write(ledger.authorize, hold, 100_000, 100_000, NOW)
        await opened[0].write(ledger.settle, hold.id, charge, "completed", NOW)

    async def many() -> None:
        await asyncio.gather(*(one(next(numbers)) for _ in range(AT_ONCE)))

    return lambda: loop.run_until_complete(many()), AT_ONCE


def log_line(work: Path) -> Part:
    """The line that a request leaves, without its being written."""

    class Nowhere(Writer):
        def offer(self, lines: object) -> bool:
            return True

    log = Log(writer=Nowhere())
    facts: dict[str, object] = {"id": "req_1", "user": "usr_1", "wire": "openai_chat", "ms": 12, "model": MODEL}
    return lambda: log.info("request", clock.utc_now(), **facts, reason="completed", cost_usd="0.01"), 1


def voucher(work: Path) -> Part:
    """A voucher of DRAIN's, from its header to what it is good for."""
    from goosestack.drain.abi import Channel
    from goosestack.drain.signing import Signer
    from goosestack.drain.vouchers import Domain, check, parse_voucher

    channel_id, dave, domain = b"\x11" * 32, Signer("11" * 32), Domain(137, b"\x22" * 20)
    provider = b"\x33" * 20
    signature = dave.sign(domain.voucher_digest(channel_id, 1000, 1))
    told = {"channelId": "0x" + channel_id.hex(), "amount": "1000", "nonce": "1"}
    header = json.dumps({**told, "signature": "0x" + signature.hex()})
    channel = Channel(channel_id, dave.address, provider, 10_000, 0, 2_000_000_000)
    return lambda: check(parse_voucher(header), channel, domain, provider, until=1_900_000_000), 1


PARTS: list[tuple[str, Setup]] = [
    ("yardstick: SHA-256 of a key", key_hash),
    ("yardstick: json.loads of 1 KB", json_request),
    ("parse, price and encode a request", bid_of_a_request),
    ("hold and settle, two durable commits", money),
    ("read and price an answer", answer),
    ("read a stream of 60 events", stream),
    ("one line of the log", log_line),
    ("check a voucher", voucher),
]


def run(work: Path, rounds: int) -> dict[str, float]:
    """Times every part: the median over the rounds of at least 0.2 s each, in microseconds."""
    print("\nparts, µs of CPU per request")
    costs: dict[str, float] = {}
    for number, (name, setup) in enumerate(PARTS):
        if setup is voucher and find_spec("coincurve") is None:
            print(f"  {name:44} coincurve is not installed: left out")
            continue
        home = work / f"part-{number}"
        home.mkdir()
        call, requests = setup(home)
        timer = timeit.Timer(call, timer=time.process_time)
        loops, _ = timer.autorange()
        costs[name] = median(timer.repeat(rounds, loops)) / loops / requests * 1e6
        print(f"  {name:44}{costs[name]:10.2f}")
    return costs
