"""Webhooks: when an event is sent to which endpoint, how it is signed, and what came back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import aiohttp

from goosestack.demo.strict import Json
from goosestack.demo.stripe.account import VERSIONS, Account
from goosestack.demo.stripe.notices import wants
from goosestack.demo.stripe.shapes import render, shape_of

ANSWER_S = 10.0
GIVE_UP_S = 3 * 24 * 3600
BACK_OFF_S = (5, 60, 300, 1800, 7200, 18_000, 36_000, 43_200)
WITNESSED_CHARACTERS = 2000
MODES = ("normal", "hold", "drop")
AGENT = "Stripe/1.0 (+https://stripe.com/docs/webhooks)"


@dataclass
class Settings:
    """How webhooks are delivered; see the package for what each means."""

    mode: str = "normal"
    copies: int = 1
    at_once: bool = False
    shuffle: int | None = None
    delay_s: float = 0
    shape: str = "new"
    types: list[str] | None = None
    secrets: list[str] | None = None
    scheme: str = "v1"
    age_s: int = 0

    def shown(self) -> Json:
        """All of them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(eq=False)
class Parcel:
    """One event for one endpoint. due_at: when it is sent, by the fake's clock; None: not by itself."""

    event: Json
    endpoint: Json
    due_at: float | None
    attempts: int = 0
    delivered: bool = False


@dataclass(eq=False)
class Courier:
    """Sends what is due, in order, and repeats what was not taken. told: is called whenever there may be more to do."""

    account: Account
    told: Callable[[], None]
    settings: Settings = field(default_factory=Settings)
    parcels: list[Parcel] = field(default_factory=list)
    log: list[Json] = field(default_factory=list)
    main_endpoint: str | None = None  # that of `--webhook`, which alone obeys `types`

    def take(self, event: Json) -> None:
        """A new event: a parcel for each endpoint that wants it."""
        settings = self.settings
        due = {"normal": self.account.clock.now() + settings.delay_s}.get(settings.mode)
        for endpoint in self.account.all("webhook_endpoint"):
            picky = endpoint["id"] == self.main_endpoint and settings.types is not None
            if wants(endpoint, event) and (not picky or event["type"] in (settings.types or [])):
                self.parcels.append(Parcel(event, endpoint, due))
                event["pending_webhooks"] += 1
        self.told()

    def next_due(self) -> float | None:
        """When there is something to send."""
        return min((parcel.due_at for parcel in self.parcels if parcel.due_at is not None), default=None)

    async def send_due(self) -> bool:
        """Send what is due now, as the settings say; whether there was any."""
        now = self.account.clock.now()
        batch = [parcel for parcel in self.parcels if parcel.due_at is not None and parcel.due_at <= now]
        settings = self.settings
        await self.send(batch, copies=settings.copies, at_once=settings.at_once, shuffle=settings.shuffle)
        return bool(batch)

    async def send(
        self, batch: Sequence[Parcel], *, copies: int = 1, at_once: bool = False, shuffle: int | None = None
    ) -> list[Json]:
        """Post each of these now, unless its endpoint is gone; the attempts."""
        for parcel in batch:
            parcel.due_at = None
        known = [parcel for parcel in batch if self.account.find("webhook_endpoint", parcel.endpoint["id"])]
        jobs = [parcel for parcel in shuffled(known, shuffle) for _ in range(copies)]
        if at_once:
            return list(await asyncio.gather(*(self._post(parcel) for parcel in jobs)))
        return [await self._post(parcel) for parcel in jobs]

    async def _post(self, parcel: Parcel) -> Json:
        event, endpoint = parcel.event, parcel.endpoint
        shape = shape_of(endpoint["api_version"], self.settings.shape)
        version = endpoint["api_version"] or VERSIONS[self.settings.shape]
        body = json.dumps(render({**event, "api_version": version}, shape), indent=2, ensure_ascii=False).encode()
        attempt: Json = {
            "event": event["id"],
            "type": event["type"],
            "endpoint": endpoint["id"],
            "at": self.account.now,
            "status": None,
            "body": None,
            "error": None,
        }
        try:
            await self._exchange(endpoint["url"], body, self._signed(endpoint, body), attempt)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            attempt["error"] = f"{type(error).__name__}: {error}"
        self.log.append(attempt)
        self._note(parcel, taken=attempt["status"] is not None and 200 <= attempt["status"] < 300)
        return attempt

    async def _exchange(self, url: str, body: bytes, headers: dict[str, str], attempt: Json) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            attempt["status"] = answer.status
            attempt["body"] = (await answer.read()).decode("utf-8", "replace")[:WITNESSED_CHARACTERS]

    def _signed(self, endpoint: Json, body: bytes) -> dict[str, str]:
        headers = {
            "content-type": "application/json; charset=utf-8",
            "cache-control": "no-cache",
            "user-agent": AGENT,
            "accept": "*/*; q=0.5, application/xml",
        }
        settings = self.settings
        secrets = [endpoint["_secret"]] if settings.secrets is None else settings.secrets
        if secrets:
            at = int(time.time()) - settings.age_s
            headers["stripe-signature"] = signature(body, secrets, at, settings.scheme)
        return headers

    def _note(self, parcel: Parcel, *, taken: bool) -> None:
        parcel.attempts += 1
        if taken and not parcel.delivered:
            parcel.delivered = True
            parcel.event["pending_webhooks"] -= 1
        if parcel.delivered or parcel.event["created"] + GIVE_UP_S < self.account.now:
            parcel.due_at = None
            return
        wait = BACK_OFF_S[min(parcel.attempts, len(BACK_OFF_S)) - 1]
        parcel.due_at = self.account.clock.now() + wait

    def chosen(self, events: Sequence[str] | None, types: Sequence[str] | None) -> list[Parcel]:
        """The parcels of these events, in this order, or of these types, or all that were not delivered."""
        if events is not None:
            return [parcel for id in events for parcel in self.parcels if parcel.event["id"] == id]
        if types is not None:
            return [parcel for parcel in self.parcels if parcel.event["type"] in types]
        return [parcel for parcel in self.parcels if not parcel.delivered]


def signature(body: bytes, secrets: Sequence[str], at: int, scheme: str = "v1") -> str:
    """The value of `Stripe-Signature`: an HMAC of `<time>.<body>` for each secret."""
    text = f"{at}.".encode() + body
    signed = [hmac.new(secret.encode(), text, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at}", *(f"{scheme}={each}" for each in signed)])


def shuffled(batch: Sequence[Any], seed: int | None) -> list[Any]:
    """The same things in an order that the seed alone decides."""
    if seed is None:
        return list(batch)
    places = sorted(range(len(batch)), key=lambda place: hashlib.sha256(f"{seed} {place}".encode()).digest())
    return [batch[place] for place in places]
