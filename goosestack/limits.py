"""Requests per window, for a key or an address; never money. A sliding window, in memory, by the `limits` library."""

from __future__ import annotations

import ipaddress
import math
import time
from functools import lru_cache

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from goosestack.errors import RateLimited

LONGEST_RETRY_S = 60
"""SDKs sleep as long as `retry-after` says, some without any bound."""


class RateLimit:
    """So many requests in so many seconds, counted by name."""

    def __init__(self, requests: int, window_s: float, purpose: str) -> None:
        self._item = RateLimitItemPerSecond(requests, max(1, round(window_s)), namespace=purpose)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self.requests = requests
        self.window_s = max(1, round(window_s))

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
