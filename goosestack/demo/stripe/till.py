"""The till: an account, its webhooks, what it was asked, and what goes wrong; and time, which makes things happen."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from goosestack.demo.strict import Json
from goosestack.demo.stripe import checkout, notices, subscriptions
from goosestack.demo.stripe.account import Account, Clock
from goosestack.demo.stripe.courier import Courier, Settings
from goosestack.demo.stripe.faults import Fault
from goosestack.demo.stripe.idempotency import Keys

LONGEST_NAP_S = 60.0


@dataclass(eq=False)
class Till:
    """secret_key: the one key that is taken; None: any `sk_test_…`. Webhooks go to webhook_url, if any, signed with
    webhook_secret. base_url: where the pages are, set when it is served."""

    secret_key: str | None = None
    webhook_url: str | None = None
    webhook_secret: str = ""
    base_url: str = "http://127.0.0.1"
    clock: Clock = field(init=False)
    account: Account = field(init=False)
    courier: Courier = field(init=False)
    keys: Keys = field(init=False)
    faults: list[Fault] = field(init=False)
    requests: list[Json] = field(init=False)

    def __post_init__(self) -> None:
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self.reset()

    def reset(self) -> None:
        """Everything is forgotten, but where webhooks go."""
        self.clock = Clock()
        self.account = Account(self.clock, self.base_url, lambda event: self.courier.take(event))
        self.courier = Courier(self.account, self._wake.set)
        self.keys = Keys()
        self.faults = []
        self.requests = []
        self.send_webhooks_to(self.webhook_url, self.webhook_secret)

    def send_webhooks_to(self, url: str | None, secret: str) -> None:
        """Where webhooks go from now on, also those that wait."""
        self.webhook_url, self.webhook_secret = url, secret
        endpoint = self.account.find("webhook_endpoint", self.courier.main_endpoint or "")
        if endpoint is not None:
            endpoint.update(url=url, _secret=secret, status="disabled" if url is None else "enabled")
        elif url is not None:
            self.courier.main_endpoint = notices.add_endpoint(self.account, url, secret, ["*"])["id"]

    def serve_at(self, base_url: str) -> None:
        """Where the pages are."""
        self.base_url = self.account.base_url = base_url

    def deliver_by(self, settings: Settings) -> None:
        """How webhooks are delivered from now on."""
        self.courier.settings = settings
        self.account.shape = settings.shape

    # --- time ---

    async def run(self) -> None:
        """Do what falls due, until cancelled."""
        while True:
            self._wake.clear()
            await self.settle()
            due = self._next_due()
            nap = LONGEST_NAP_S if due is None else min(LONGEST_NAP_S, due - self.clock.now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, nap)):
                    await self._wake.wait()

    async def settle(self) -> None:
        """Answers when nothing is due and nothing on its way."""
        more = True
        while more:
            async with self._sending:
                self._fall_due()
                more = await self.courier.send_due()

    async def move_to(self, at: float) -> None:
        """Move the clock, and do what falls due on the way, each at its time."""
        while (due := self._next_due()) is not None and due <= at:
            self.clock.move_to(due)
            await self.settle()
        self.clock.move_to(at)
        await self.settle()

    async def deliver(
        self,
        events: list[str] | None,
        types: list[str] | None,
        *,
        copies: int,
        at_once: bool,
        shuffle: int | None,
    ) -> list[Json]:
        """Send webhooks now, whatever became of them before; the attempts."""
        async with self._sending:
            chosen = self.courier.chosen(events, types)
            return await self.courier.send(chosen, copies=copies, at_once=at_once, shuffle=shuffle)

    def _next_due(self) -> float | None:
        times: list[float | None] = [self.courier.next_due()]
        times += [record["expires_at"] for record in self.account.all("checkout.session", status="open")]
        times += [subscriptions.due_at(self.account, record) for record in self.account.all("subscription")]
        return min((at for at in times if at is not None), default=None)

    def _fall_due(self) -> None:
        for record in self.account.all("checkout.session", status="open"):
            if record["expires_at"] <= self.account.now:
                checkout.expire(self.account, {}, record["id"])
        for record in self.account.all("subscription"):
            while (due := subscriptions.due_at(self.account, record)) is not None and due <= self.account.now:
                subscriptions.fall_due(self.account, record)
