"""A world with a shop: a daemon that sells through the fake Stripe, three processes on loopback."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from goosestack.store.sqlite import connect_read_only
from tests.asking import Reply, ask
from tests.tills import KEY, SECRET, Till
from tests.world import Customer, World

PUBLIC = "https://llm.example.com"


def make_price(till: Till, cents: int) -> str:
    """A monthly price at the fake Stripe, as an operator makes one; its id."""
    given = {"currency": "usd", "unit_amount": str(cents), "recurring[interval]": "month", "product_data[name]": "Pro"}
    headers = {"authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{till.url}/v1/prices", urlencode(given).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.loads(answer.read())["id"])


@dataclass(slots=True)
class Shop:
    """A world and its till."""

    world: World
    till: Till

    @classmethod
    def open(cls, folder: Path, *, till: Till | None = None, **settings: str) -> Shop:
        """Start all three, in an empty folder; or before a till that runs."""
        till = till or Till.start(folder)
        sells: dict[str, Any] = {"STRIPE_SECRET_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET, "PUBLIC_URL": PUBLIC}
        world = World.create(folder, **{**sells, "STRIPE_API_BASE": till.url, **settings})
        till.send_webhooks_to(f"{world.url}/billing/webhook")
        return cls(world, till)

    def restart(self) -> None:
        """Start the daemon again, which gets another port."""
        self.world.daemon.start()
        self.till.send_webhooks_to(f"{self.world.url}/billing/webhook")

    def pro_until(self, customer: Customer) -> str | None:
        """Until when the customer is Pro."""
        until: str | None = ask(self.world, "GET", "/v1/usage", key=customer.key).json()["pro_until"]
        return until

    def close(self) -> None:
        """Stop all three; the books are checked."""
        try:
            self.world.close()
        finally:
            self.till.stop()

    def ask(self, customer: Customer | None, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """A request under `/billing`."""
        key = None if customer is None else customer.key
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.world, method, f"/billing/{path}", key=key, body=body, headers=sent)

    def checkout(self, customer: Customer, amount: int = 1000) -> str:
        """The id of a checkout for credits."""
        reply = self.ask(customer, "POST", "checkout", {"type": "credits", "amount": amount})
        assert reply.status == 200, reply.data
        return str(reply.json()["session_id"])

    def subscribe(self, customer: Customer) -> str:
        """Buy Pro and pay; the id of the subscription."""
        reply = self.ask(customer, "POST", "checkout", {"type": "pro"})
        assert reply.status == 200, reply.data
        self.till.pay(reply.json()["session_id"])
        return str(self.till.object(reply.json()["session_id"])["subscription"])

    def buy(self, customer: Customer, amount: int = 1000) -> str:
        """Buy credits and pay by card; the id of the payment intent."""
        checkout = self.checkout(customer, amount)
        self.till.pay(checkout)
        return str(self.till.object(checkout)["payment_intent"])

    def listed(self, customer: Customer) -> list[dict[str, Any]]:
        """The customer's payments."""
        reply = self.ask(customer, "GET", "payments")
        assert reply.status == 200, reply.data
        found: list[dict[str, Any]] = reply.json()["payments"]
        return found

    def balance(self, customer: Customer) -> int:
        """In cents."""
        return self.world.funds(customer)["balance_cents"]

    def rows(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """Any query of the daemon's file."""
        db = connect_read_only(self.world.daemon.db)
        try:
            return db.execute(sql, args).fetchall()
        finally:
            db.close()

    def outcomes(self) -> list[tuple[str, str, str]]:
        """Type, status and reason of every event in the inbox, in the order of their coming."""
        return self.rows("SELECT type, status, reason FROM stripe_events ORDER BY rowid")
