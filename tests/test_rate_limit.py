"""Requests per window, by key or address. The windows are so long that no test meets the end of one, but for the one
that is about it."""

from __future__ import annotations

import asyncio

import pytest

from goosestack.errors import RateLimited
from goosestack.limits import LONGEST_RETRY_S, RateLimit, Windows, address_bucket
from tests.world import PATIENCE_S

ENDLESS_S = 10**9
"""A window that ends in the year 2033."""


async def hits(limit: RateLimit, name: str, count: int) -> int:
    """How many of so many requests are admitted."""
    admitted = 0
    for _ in range(count):
        try:
            await limit.hit(name)
            admitted += 1
        except RateLimited:
            pass
    return admitted


# --- windows --------------------------------------------------------------------------------------------------


async def test_so_many_are_admitted_and_no_more() -> None:
    assert await hits(RateLimit(5, ENDLESS_S, "key"), "alice", 50) == 5


async def test_everybody_has_a_window_of_their_own() -> None:
    limit = RateLimit(2, ENDLESS_S, "key")
    assert await hits(limit, "alice", 5) == 2
    assert await hits(limit, "bob", 5) == 2
    assert await hits(limit, "alice", 5) == 0


async def test_two_limits_do_not_count_each_other() -> None:
    keys, signups = RateLimit(2, ENDLESS_S, "key"), RateLimit(3, ENDLESS_S, "signup")
    assert await hits(keys, "alice", 5) == 2
    assert await hits(signups, "alice", 5) == 3


async def test_names_are_told_apart_whatever_is_in_them() -> None:
    limit = RateLimit(1, ENDLESS_S, "key")
    for name in ("a", "a/b", "a:b", "a b", "", "2001:db8::/64", "🦢"):
        assert await hits(limit, name, 2) == 1


async def test_at_once_is_no_way_around_it() -> None:
    limit = RateLimit(10, ENDLESS_S, "key")
    done = await asyncio.gather(*(limit.hit("alice") for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(answer, dict) for answer in done) == 10
    assert sum(isinstance(answer, RateLimited) for answer in done) == 90


async def test_when_the_window_has_passed_requests_are_admitted_again() -> None:
    limit = RateLimit(3, 1, "key")
    assert 3 <= await hits(limit, "alice", 10) < 10
    async with asyncio.timeout(PATIENCE_S):
        while not await hits(limit, "alice", 1):
            await asyncio.sleep(0.05)


class Clock:
    """A time that is given."""

    def __init__(self) -> None:
        self.now = 60_000.0

    def __call__(self) -> float:
        return self.now


def test_names_are_forgotten_once_the_window_after_theirs_has_passed_and_not_before() -> None:
    """In half an hour in which keys came and went, a daemon had gathered a name for each of them."""
    clock = Clock()
    windows = Windows(clock)
    for number in range(1_000):
        assert windows.acquire_sliding_window_entry(f"old {number}", 1, 60)
    clock.now += 60  # the first moment of the next: all of the last still counts
    assert windows.acquire_sliding_window_entry("new", 1, 60)
    assert not windows.acquire_sliding_window_entry("old 1", 1, 60)
    assert len(windows.names) == 1_001
    clock.now += 60
    assert windows.acquire_sliding_window_entry("newer", 1, 60)
    assert windows.names == {"old 1", "new", "newer"}  # and whoever has asked since


def test_a_clock_that_is_set_back_across_the_end_of_a_window_makes_nobody_forgotten() -> None:
    clock = Clock()
    windows = Windows(clock)
    assert windows.acquire_sliding_window_entry("alice", 1, 60)
    clock.now -= 0.01
    assert windows.acquire_sliding_window_entry("bob", 1, 60)
    clock.now += 0.02
    assert not windows.acquire_sliding_window_entry("alice", 1, 60)
    clock.now -= 365 * 86_400
    assert windows.acquire_sliding_window_entry("carol", 1, 60)
    assert windows.names == {"carol"}


@pytest.mark.parametrize(("window_s", "seconds"), [(0.2, 1), (1, 1), (1.4, 1), (60, 60), (3600, 3600)])
def test_a_window_is_whole_seconds_and_at_least_one(window_s: float, seconds: int) -> None:
    assert RateLimit(1, window_s, "key").window_s == seconds


# --- what the caller is told ----------------------------------------------------------------------------------


async def test_every_answer_tells_what_is_left() -> None:
    limit = RateLimit(3, ENDLESS_S, "key")
    left = []
    for _ in range(3):
        headers = await limit.hit("alice")
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        assert "retry-after" not in headers
        left.append(headers["x-ratelimit-remaining-requests"])
    assert left == ["2", "1", "0"]


@pytest.mark.parametrize("window_s", [1, 60, 3600, ENDLESS_S])
async def test_a_refusal_tells_when_to_come_back_and_never_later_than_a_minute(window_s: int) -> None:
    limit = RateLimit(1, window_s, "key")
    await hits(limit, "alice", 5)
    with pytest.raises(RateLimited) as caught:
        await limit.hit("alice")
    headers = caught.value.headers
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(headers["retry-after"]) <= min(LONGEST_RETRY_S, 2 * window_s)
    assert caught.value.status == 429
    assert f"1 per {window_s} s" in caught.value.message


# --- addresses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "bucket"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:0DB8:0001:0002:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:cb00:7107", "203.0.113.7"),
    ],
)
def test_an_address_counts_as_itself_and_a_newer_one_as_its_network(host: str, bucket: str) -> None:
    assert address_bucket(host) == bucket


@pytest.mark.parametrize(
    "host",
    [None, "", "localhost", "unix", "203.0.113", "203.0.113.256", "0203.0.113.7", "203.0.113.7:80", "[::1]", "::1::",
     "203.0.113.7, 10.0.0.1", "１２７.0.0.1", "x" * 10_000, "203.0.113.7\n"],
)  # fmt: skip
def test_all_that_is_no_address_shares_one_bucket(host: str | None) -> None:
    assert address_bucket(host) == "invalid"


async def test_a_network_is_one_caller_however_many_addresses_it_has() -> None:
    limit = RateLimit(3, ENDLESS_S, "address")
    admitted = [await hits(limit, address_bucket(f"2001:db8::{number:x}"), 1) for number in range(10)]
    assert sum(admitted) == 3
