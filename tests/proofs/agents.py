"""What DRAIN adds to the proof of interruptions: its routes, its verbs and jobs, and relays that vouchers pay for.

They have a house of their own, on the tests' chain, with a channel of Dave's that each request pays from by its next
voucher. When all has been thrown, what the channel was charged is claimed, and the contract must have paid just that.
Loaded in full alone, since the chain takes longer to start than the short form may, and not every Python can have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from tests.proofs.interrupted import CHAT, DRAIN_ARGS, DRAIN_JOBS, RELAYED, VOUCHED
from tests.proofs.proof import Attempt
from tests.proofs.siege import JOB, VERB, Besieged, Prepare, Route, asking, job_of, nothing, plainly, verb_of

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
    owing: list[bytes] = field(default_factory=list)
    """Channels whose claims are interrupted."""
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
        self.mine()
        await self.buy(voucher_header(channel, MORE, 1))
        proof = DAVE.sign(self.agents.provider.domain.close_request_digest(channel))
        body = {"channelId": "0x" + channel.hex(), "signature": "0x" + proof.hex()}
        high, low = divmod(next(self.addresses), 250)
        return Asked("POST", "/v1/close-channel", body, address=f"10.0.{high}.{low}")

    # --- what happens besides ---

    def mine(self) -> None:
        """What was sent is buried, and the house asks for it."""
        self.chain.mine(DEPTH)
        self.forget()

    def forget(self) -> None:
        """The house asks anew for the chain's head, which it keeps for two seconds, and which chain it is."""
        chain = self.agents.provider.chain
        chain._head = None
        for node in chain.rpc._nodes:
            node.same_chain_until = float("-inf")

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
        """Something is to be claimed, of a channel of which nothing was, and no earlier claim is under way. A claim is
        of a whole voucher: what was claimed of a channel pays for many requests more."""
        await self.followed()
        channel = self.chain.open()
        self.mine()
        await self.buy(voucher_header(channel, MORE, 1))
        self.owing.append(channel)
        self.agents.collector.forced.clear()
        await self.agents.collector.force()
        self.forget()

    async def sent(self) -> None:
        """A claim is under way, and buried by now."""
        await self.owed()
        await plainly(self.house, "claim", None)
        self.mine()

    async def followed(self) -> None:
        """Every claim that is under way comes to its end."""
        domain, store = self.agents.provider.domain, self.house.parts.store
        for _ in range(MOST_TURNS):
            if await store.read(claims.under_way, domain) is None:
                return
            self.mine()
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
            if all(self.chain.claimed(each) >= owed.get(each, 0) for each in (self.channel, *self.owing)):
                break
        left = [each.hex() for each in self.owing if self.chain.claimed(each) < owed.get(each, 0)]
        attempt.must(left == [], f"{len(left)} of {len(self.owing)} channels are not paid: {left[:3]}")
        found = self.chain.claimed(self.channel)
        # a claim is of a voucher, which may be for more than was charged; the rest is the consumer's credit
        attempt.must(owed[self.channel] <= found <= self.amount, f"{owed[self.channel]} were charged, {found} are paid")
        attempt.meet("a claim that was interrupted, and paid", len(self.owing))


# --- the siege ------------------------------------------------------------------------------------------------


async def siege(attempt: Attempt, kinds: Sequence[Sequence[str]]) -> Besieged:
    """The same where vouchers are taken: what that adds."""
    folder = attempt.folder / "agents"
    folder.mkdir()
    chain = LocalChain(folder)
    try:
        async with House.open(folder, **settings(chain)) as house:
            dave, besieged = Dave.come(house, chain), Besieged(attempt, house)
            routes, relays = dave.routes(), dave.relays()
            covered = {route.template for route in routes}
            every = {(method, path) for method, path, _ in app.DRAIN_ROUTES}
            attempt.must(covered == every, f"not asked: {every - covered}")
            for route in (*routes, *relays):
                await besieged.route(route, relayed=route in relays)
            for verb, args in DRAIN_ARGS.items():
                await besieged.coroutine(
                    VERB, verb, partial(verb_of, house, verb, args), dave.owed if verb == "drain_claim" else nothing
                )
            befores = {"a claim": dave.owed, "what became of a claim": dave.sent}
            for name, job in DRAIN_JOBS.items():
                make, plain = partial(job_of, house, job), partial(plainly, house, job)
                await besieged.coroutine(JOB, name, make, befores.get(name, nothing), plain)
            await besieged.pairs_of(relays[1], kinds)
            await dave.paid(attempt)
        attempt.expect("a claim that was interrupted, and paid", times=40)
        return besieged
    finally:
        chain.close()
