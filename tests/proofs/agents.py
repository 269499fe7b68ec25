"""What DRAIN adds to the proof of interruptions: its routes, its verbs and jobs, and relays that vouchers pay for.

They have a house of their own, on the tests' chain, with a channel of Dave's that each request pays from by its next
voucher. When all has been thrown, what the channel was charged is claimed, and the contract must have paid just that.
Loaded in full alone, since the chain takes longer to start than the short form may, and not every Python can have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from goosestack import app
from goosestack.drain import books, claims
from goosestack.store import Tx
from tests.asking import chat
from tests.chain.control import LocalChain, voucher_header
from tests.chain.places import DAVE, PROVIDER_KEY
from tests.channels import ADMIN, DEPTH
from tests.interruptions import Asked, House, Resident
from tests.proofs.interrupted import CHAT, RELAYED, VOUCHED, Prepare, Route, asking
from tests.proofs.proof import Attempt

MORE = 50_000
"""Micro-USDC that each voucher adds: enough for a useful answer."""
DEPOSIT = 10**11
MOST_TURNS = 2_000
"""Every channel whose close was interrupted has a claim due, and each claim takes some turns."""
OPERATOR = {"authorization": f"Bearer {ADMIN}"}
OPEN = {"root": "/", "prices": "/v1/pricing", "docs": "/v1/docs", "directory": "/api/mcp/providers"}


def settings(chain: LocalChain) -> dict[str, Any]:
    """With which a house sells by vouchers; it asks the chain anew for every request."""
    return {
        "provider_private_key": PROVIDER_KEY,
        "drain_rpc_url": (chain.url(),),
        "drain_confirmations": DEPTH,
        "drain_cache_s": 0,
        "drain_close_idle_s": 0,
        "claim_threshold": 10**12,
        "claim_least_tip_gwei": 1,
        "claim_gas_price": 0,
        "admin_token": ADMIN,
    }


@dataclass(slots=True)
class Dave:
    """The agent of a house, and its channels."""

    house: House
    chain: LocalChain
    channel: bytes
    amount: int = 0
    nonces: count[int] = field(default_factory=lambda: count(1))
    addresses: count[int] = field(default_factory=count)
    """From how many he has asked for a close: one address may not do so often."""

    @classmethod
    def come(cls, house: House, chain: LocalChain) -> Dave:
        """With a channel that pays for everything."""
        channel = chain.open(DEPOSIT)
        chain.mine(DEPTH)
        return cls(house, chain, channel)

    def routes(self) -> list[Route]:
        """Every one that DRAIN adds, or has in place of ours."""
        prepared: dict[str, Prepare] = {
            **{name: asking("GET", path) for name, path in OPEN.items()},
            "close_channel": self.closing,
            "admin_claim": self.claiming,
            "admin_stats": self.operating("/v1/admin/stats"),
            "admin_vouchers": self.operating("/v1/admin/vouchers"),
        }
        return [Route(f"DRAIN: {path}", (method, path), 200, prepared[name]) for method, path, name in app.DRAIN_ROUTES]

    def relays(self) -> list[Route]:
        """What vouchers pay for."""
        found = []
        for name in VOUCHED:
            path, body, status = RELAYED[name]
            found.append(Route(f"{name} for a voucher", ("POST", path), status, self.paying(path, body)))
        return found

    # --- what is asked ---

    def paying(self, path: str, body: Mapping[str, object]) -> Prepare:
        async def prepare(_house: House, _alice: Resident) -> Asked:
            return Asked("POST", path, body, {"x-drain-voucher": self.voucher()})

        return prepare

    def operating(self, path: str) -> Prepare:
        async def prepare(_house: House, _alice: Resident) -> Asked:
            return Asked("GET", path, None, OPERATOR)

        return prepare

    async def claiming(self, _house: House, _alice: Resident) -> Asked:
        await self.owed()
        return Asked("POST", "/v1/admin/claim?force=true", None, OPERATOR)

    async def closing(self, _house: House, _alice: Resident) -> Asked:
        """A channel that was used, closed by its consumer."""
        channel = self.chain.open()
        self.chain.mine(DEPTH)
        await self.buy(voucher_header(channel, MORE, 1))
        proof = DAVE.sign(self.agents.provider.domain.close_request_digest(channel))
        body = {"channelId": "0x" + channel.hex(), "signature": "0x" + proof.hex()}
        high, low = divmod(next(self.addresses), 250)
        return Asked("POST", "/v1/close-channel", body, address=f"10.0.{high}.{low}")

    # --- what happens besides ---

    @property
    def agents(self) -> Any:
        """The house's part for agents."""
        return self.house.parts.agents

    def voucher(self) -> str:
        """The next."""
        self.amount += MORE
        return voucher_header(self.channel, self.amount, next(self.nonces))

    async def buy(self, voucher: str) -> None:
        """One request, undisturbed."""
        told = await self.house.ask(Asked("POST", CHAT, chat(max_tokens=50), {"x-drain-voucher": voucher}))
        assert (told.status, told.whole) == (200, True), f"it sells no more: {told}"

    async def owed(self) -> None:
        """Something is to be claimed, and no earlier claim is under way."""
        await self.followed()
        await self.buy(self.voucher())
        await self.agents.collector.force()

    async def followed(self) -> None:
        """Every claim that is under way comes to its end."""
        domain, store = self.agents.provider.domain, self.house.parts.store
        for _ in range(MOST_TURNS):
            if await store.read(claims.under_way, domain) is None:
                return
            self.chain.mine(DEPTH)
            await self.agents.collector.turn()
        raise AssertionError("a claim does not come to its end")

    async def paid(self, attempt: Attempt) -> None:
        """In the end the contract has paid what was charged, and knows of no more."""
        domain, store = self.agents.provider.domain, self.house.parts.store

        def charged(tx: Tx) -> dict[bytes, int]:
            return {each.channel_id: each.charged for each in books.open_channels(tx, domain)}

        owed = await store.read(charged)
        for _ in range(MOST_TURNS):
            await self.agents.collector.force()
            await self.agents.claim(force=True)
            await self.followed()
            if self.chain.claimed(self.channel) >= owed[self.channel]:
                break
        found = self.chain.claimed(self.channel)
        # a claim is of a voucher, which may be for more than was charged; the rest is the consumer's credit
        attempt.must(owed[self.channel] <= found <= self.amount, f"{owed[self.channel]} were charged, {found} are paid")
        attempt.meet("a claim that was interrupted, and paid")
