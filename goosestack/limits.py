"""Requests per window, for a key or an address; never money. A sliding window, in memory, by the `limits` library.

The strategy is the library's. Of its storage in memory the counting is ours: the library's own starts a thread every
10 ms under load, which looks at every name it knows, and was the dearest single part of a request.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import lru_cache

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from goosestack.errors import RateLimited

LONGEST_RETRY_S = 60
"""SDKs sleep as long as `retry-after` says, some without any bound."""


@dataclass(slots=True)
class _Counts:
    """The requests of one name, in the window with this number and in the one before it."""

    window: int
    now: int = 0
    before: int = 0


class Windows(MemoryStorage):
    """Counts by name, for one event loop: nothing here waits, so that nothing need be locked. All names have windows of
    one length."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._counts: dict[str, _Counts] = {}
        self._window = 0
        """The one in which a name began last."""

    @property
    def names(self) -> Set[str]:
        """Those that are counted."""
        return self._counts.keys()

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` more, unless that is above the limit."""
        before, before_s, now, _ = self.get_sliding_window(key, expiry)
        if math.floor(before * before_s / expiry + now) + amount > limit:
            return False
        self._counts[key].now += amount
        return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """The count of the last window and the seconds for which it counts, and the same of this one."""
        window, passed = divmod(self._clock(), expiry)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._begin(key, int(window))
        elif counts.window != window:
            counts.before = counts.now if counts.window == window - 1 else 0
            counts.window, counts.now = int(window), 0
        return counts.before, expiry - passed if counts.before else 0.0, counts.now, 2 * expiry - passed

    def _begin(self, key: str, window: int) -> _Counts:
        """Count a new name; with the first of a window, those whose own have passed are forgotten."""
        if window != self._window:
            near = range(window - 1, window + 2)  # the next as well: a clock may be set back
            self._counts = {name: counts for name, counts in self._counts.items() if counts.window in near}
            self._window = window
        counts = self._counts[key] = _Counts(window)
        return counts

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget a name."""
        self._counts.pop(key, None)


class RateLimit:
    """So many requests in so many seconds, counted by name."""

    def __init__(self, requests: int, window_s: float, purpose: str) -> None:
        self._item = RateLimitItemPerSecond(requests, max(1, round(window_s)), namespace=purpose)
        self._limiter = SlidingWindowCounterRateLimiter(Windows())
        self.requests = requests
        self.window_s = max(1, round(window_s))

    def spent(self, name: str) -> bool:
        """Whether one more would be refused; counts nothing."""
        return not self._limiter.test(self._item, name)

    async def hit(self, name: str) -> dict[str, str]:
        """Count one request; the `x-ratelimit-*` headers that tell what is left. Raises RateLimited with them."""
        admitted = self._limiter.hit(self._item, name)
        stats = self._limiter.get_window_stats(self._item, name)
        wait = max(0.0, stats.reset_time - time.time())
        headers = {
            "x-ratelimit-limit-requests": str(self.requests),
            "x-ratelimit-remaining-requests": str(max(0, stats.remaining)),
            "x-ratelimit-reset-requests": f"{math.ceil(wait)}s",
        }
        if not admitted:
            retry = min(LONGEST_RETRY_S, max(1, math.ceil(wait)))
            headers["retry-after"] = str(retry)
            raise RateLimited(limit=self.requests, window_s=self.window_s, retry_after=retry, headers=headers)
        return headers


@lru_cache(maxsize=1024)
def address_bucket(host: str | None) -> str:
    """What an address counts as: itself for IPv4, its /64 for IPv6, one bucket for all that is no address."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "invalid"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
