"""Notices reach the operator's program, signed, at least once; and only where what they tell has happened."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from goosestack import ledger, notices
from goosestack.clock import later
from goosestack.notices import WAITS_S
from tests.bookings import NOW, Bookings
from tests.shops import Shop
from tests.tills import SECRET as TILL_SECRET
from tests.world import World, until

KEY = b"a key of the operator's, 32 bytes"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Listener(http.server.ThreadingHTTPServer):
    """The operator's program: keeps what it is told, and answers with the statuses that it is given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?from=goosestack"

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.told]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield listener
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def verified(headers: dict[str, str], body: bytes) -> bool:
    """As the Standard Webhooks say, by the test's own hand."""
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(KEY, text, hashlib.sha256).digest()).decode()
    return f"v1,{mac}" in headers["webhook-signature"].split(" ")


def test_a_payment_that_fails_and_a_low_balance_are_told_signed(folder: Path) -> None:
    with listening() as listener:
        listener.statuses = [500]
        shop = Shop.open(folder, NOTIFY_WEBHOOK_URL=listener.url, NOTIFY_WEBHOOK_SECRET=SECRET)
        try:
            alice = shop.world.customer(0)
            checkout = shop.checkout(alice)
            shop.till.pay(checkout, method="bank")
            shop.till.do(f"checkouts/{checkout}/fail")
            until(lambda: len(listener.told) >= 2, "both attempts")
            first, second = listener.told[:2]
            assert first[1] == second[1] and first[0]["webhook-id"] == second[0]["webhook-id"]
            assert all(verified(headers, body) for headers, body in listener.told)
            told = json.loads(second[1])
            assert (told["type"], told["data"]["user_id"]) == ("payment.failed", alice.id)
            assert told["id"] == second[0]["webhook-id"]
            until(lambda: shop.rows("SELECT count(*) FROM notices WHERE delivered_at IS NOT NULL") == [(1,)], "its row")
        finally:
            shop.close()


def test_what_needs_review_is_told(folder: Path) -> None:
    with listening() as listener:
        shop = Shop.open(folder, NOTIFY_WEBHOOK_URL=listener.url)
        try:
            checkout = shop.checkout(shop.world.customer(0))
            shop.till.edit(checkout, amount_total=1)
            shop.till.pay(checkout)
            until(lambda: "review.needed" in listener.types(), "the notice")
            headers, _ = listener.told[0]
            assert "webhook-signature" not in headers, "there is no secret to sign with"
        finally:
            shop.close()


@pytest.fixture
def books() -> Iterator[Bookings]:
    books = Bookings()
    yield books
    books.close()


def told(db: sqlite3.Connection) -> list[dict[str, Any]]:
    return [json.loads(body) for (body,) in db.execute("SELECT body FROM notices ORDER BY rowid").fetchall()]


def test_a_low_balance_is_told_once_until_it_was_high_again(books: Bookings) -> None:
    def look() -> int:
        return notices.tell_of_low_balances(books.db, 100, NOW)

    assert look() == 0, "who never had anything has not fallen"
    ledger.post(books.db, books.account, "grant", "a", 150, NOW)
    assert look() == 0
    books.spend(51, "r1")
    assert (look(), look()) == (1, 0)
    ledger.post(books.db, books.account, "grant", "b", 1, NOW)
    assert look() == 0
    books.spend(1, "r2")
    assert look() == 1
    assert [each["data"] for each in told(books.db)] == [
        {"user_id": books.alice, "balance_cents": 99, "below_cents": 100}
    ] * 2


def test_a_notice_is_rolled_back_with_what_it_tells(books: Bookings) -> None:
    books.db.execute("BEGIN")
    notices.tell(books.db, "review.needed", {}, NOW)
    books.db.execute("ROLLBACK")
    assert told(books.db) == []


def test_attempts_back_off_and_end(books: Bookings) -> None:
    notices.tell(books.db, "review.needed", {}, NOW)
    now = NOW
    for wait in WAITS_S:
        (notice,) = notices.due(books.db, now)
        assert notices.failed(books.db, notice, now) is False
        assert notices.due(books.db, later(now, wait - 0.01)) == []
        now = later(now, wait)
    (notice,) = notices.due(books.db, now)
    assert notices.failed(books.db, notice, now) is True
    assert notices.due(books.db, later(now, 10_000_000)) == []
    assert len(told(books.db)) == 1, "it is kept"


def test_a_daemon_without_an_address_tells_nobody_and_gathers_nothing(world: World) -> None:
    from goosestack.store.sqlite import connect_read_only

    world.customer(5)
    db = connect_read_only(world.daemon.db)
    try:
        assert db.execute("SELECT count(*) FROM notices").fetchone() == (0,)
    finally:
        db.close()
    assert TILL_SECRET not in world.daemon.program.text()
