"""The job that gets channels paid, one turn after the other, on a real chain and a real database: what else a wallet
has under way, what gas costs meanwhile, and what is wrong with one channel, keeps no other from its claim."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from goosestack import ledger
from goosestack.drain import abi, books, claims
from goosestack.drain.chain import HEAD_S, Chain
from goosestack.drain.claiming import Claimer
from goosestack.drain.claims import Claim
from goosestack.drain.collecting import BUMP_S, Collector
from goosestack.drain.paying import Provider
from goosestack.drain.prices import Prices
from goosestack.drain.rpc import Rpc
from goosestack.drain.signing import Signer
from goosestack.drain.vouchers import Domain, parse_voucher
from goosestack.http import Client
from goosestack.ledger import Charge, NewHold
from goosestack.store import Tx
from goosestack.store.sqlite import SqliteStore
from tests.chain.control import DOLLAR, GWEI, LocalChain, voucher_header
from tests.chain.places import DAVE, PROVIDER, USDC, V2

DEPTH = 2
DOMAIN = Domain(137, V2)
APPROVE = abi.selector("approve(address,uint256)")


@dataclass
class House:
    """A collector, the books that it works on, a clock that is set by hand, and what it has told the operator."""

    chain: LocalChain
    client: Client
    store: SqliteStore
    wallet: Signer = PROVIDER
    nodes: str = "a"
    most_fee: int = 1_000 * GWEI
    gas_factor: int = 0
    coin_price: int = 0
    alerts: list[dict[str, object]] = field(default_factory=list)
    ahead_s: float = 0.0
    requests: int = 0

    def __post_init__(self) -> None:
        self.start = self.chain.time()

    def now(self) -> str:
        moment = datetime.fromtimestamp(self.start + self.ahead_s, UTC)
        return moment.isoformat(timespec="milliseconds")[:-6] + "Z"

    async def collector(self) -> Collector:
        """One that has just started, as after a restart."""
        always_later = itertools.count(step=HEAD_S).__next__
        rpc = Rpc(self.client, [self.chain.url(node) for node in self.nodes], 137, timeout_s=10)
        chain = Chain(rpc, DOMAIN, depth=DEPTH, keep_s=0, clock=always_later)
        terms = await chain.terms()
        provider = Provider(
            chain=chain,
            signer=self.wallet,
            prices=Prices({}, Decimal(0), terms.fee_bps),
            contract=terms,
            least_deposit=1,
            least_s=1,
            clock=lambda: self.start + self.ahead_s,
        )
        return Collector(
            provider=provider,
            claimer=Claimer(chain, self.wallet, least_tip=GWEI, most_fee=self.most_fee),
            store=self.store,
            now=self.now,
            alert=lambda kind, **facts: self.alerts.append({"kind": kind, **facts}),
            token=USDC,
            most_fee_bps=300,
            threshold=1,
            buffer_s=3_600,
            gas_factor=self.gas_factor,
            coin_price=self.coin_price,
        )

    async def owing(self, cost: int = DOLLAR, duration: int = 86_400) -> bytes:
        """A channel of Dave's that owes so many micro-USDC."""
        channel_id = self.chain.open(duration=duration, provider=self.wallet.address)
        self.chain.mine(DEPTH)
        await self.charge(channel_id, cost, 1)
        return channel_id

    async def charge(self, channel_id: bytes, cost: int, nonce: int) -> None:
        """A request that a voucher for just its cost has paid for."""
        channel = abi.read_channel(channel_id, self.chain.ask(V2, abi.call(abi.GET_CHANNEL, channel_id)))
        assert channel is not None
        self.requests += 1
        await self.store.write(self._charge, channel, voucher_header(channel_id, nonce * cost, nonce), cost)

    def _charge(self, tx: Tx, channel: abi.Channel, header: str, cost: int) -> None:
        process = ledger.begin_process(tx, "test", self.now())
        hold = NewHold(
            f"req_{self.requests:012x}", books.user_of(DAVE.address), process, "openai_chat", "openai", "gpt"
        )
        grains, voucher = cost * books.GRAIN, parse_voucher(header)
        assert books.authorize(tx, DOMAIN, channel, voucher, hold, grains, grains, self.now()).held == grains
        ledger.settle(tx, hold.id, Charge(grains, 0), "completed", self.now())

    async def under_way(self) -> Claim:
        """The claim that was sent."""
        claim = await self.store.read(claims.under_way, DOMAIN)
        assert claim is not None
        return claim

    async def claims(self) -> list[tuple[Any, ...]]:
        """Channel, status and reason of every claim, the first one first."""
        return await self.store.read(
            lambda tx: tx.execute(
                "SELECT c.channel, k.status, k.reason FROM drain_claims k JOIN drain_channels c ON c.id = k.channel_id"
                " ORDER BY k.id"
            ).fetchall()
        )


@pytest.fixture
async def house(chain: LocalChain, tmp_path: Path) -> AsyncIterator[House]:
    client, store = Client(), SqliteStore(tmp_path / "x.db", ballast_bytes=0)
    yield House(chain, client, store)
    assert (await store.read(ledger.check, full=True)).wrong == []
    await store.close()
    await client.close()


# --- what else a wallet has under way -------------------------------------------------------------------------


async def test_a_claim_behind_a_transaction_that_never_comes_takes_its_place(house: House) -> None:
    """Of somebody else with the key, and dropped: every later one of the wallet would wait for it forever."""
    channel_id, job = await house.owing(), await house.collector()
    house.chain.automine(False)
    house.chain.send(PROVIDER, USDC, abi.call(APPROVE, PROVIDER.address, 0))
    assert len(await job.turn()) == 1
    house.chain.forget_waiting()
    house.chain.automine(True)
    assert await job.turn() == []
    house.chain.mine(DEPTH)
    assert house.chain.claimed(channel_id) == 0
    house.ahead_s += BUMP_S + 1
    await job.turn()
    assert house.chain.claimed(channel_id) == DOLLAR
    house.chain.mine(DEPTH)
    await job.turn()
    assert await house.claims() == [(channel_id.hex(), "confirmed", "")]


async def test_a_nonce_that_no_wallet_has_is_no_answer(house: House) -> None:
    house.nodes = "ab"
    channel_id, job = await house.owing(), await house.collector()
    house.chain.fault("result", "0x" + "f" * 64, node="a", method="eth_getTransactionCount")
    assert len(await job.turn()) == 1
    assert house.chain.claimed(channel_id) == DOLLAR


# --- what gas costs meanwhile ---------------------------------------------------------------------------------


async def test_a_wallet_without_coins_offers_no_more_for_waiting_and_pays_as_soon_as_it_can(
    chain: LocalChain, house: House
) -> None:
    house.wallet = Signer("0x" + "43" * 32)
    channel_id, job = await house.owing(), await house.collector()
    await job.turn()
    first = (await house.under_way()).transactions
    for _ in range(30):
        house.ahead_s += BUMP_S + 1
        await job.turn()
    assert (await house.under_way()).transactions == first
    assert {each["what"] for each in house.alerts} == {"no money for gas: insufficient funds"}
    chain.send(PROVIDER, house.wallet.address, b"", value=10**18)
    await job.turn()
    assert chain.claimed(channel_id) == DOLLAR


async def test_a_claim_that_waits_is_made_dearer_until_that_is_too_dear_which_is_told(house: House) -> None:
    channel_id = await house.owing()
    house.most_fee = 5 * GWEI
    job = await house.collector()
    house.chain.automine(False)
    await job.turn()
    fees = [(await house.under_way()).transactions[-1].max_fee]
    for _ in range(20):
        house.ahead_s += BUMP_S + 1
        await job.turn()
        fees.append((await house.under_way()).transactions[-1].max_fee)
    assert fees[0] < fees[1] < fees[-1] <= house.most_fee < fees[-1] * 9 / 8
    assert {str(each["what"]).split(":")[0] for each in house.alerts} == {"it waits, and gas is too dear"}
    house.chain.mine()
    assert house.chain.claimed(channel_id) == DOLLAR


async def test_a_claim_that_can_come_to_nothing_any_more_still_makes_way_for_the_others(house: House) -> None:
    """No node takes it for what it offers, and meanwhile the consumer closes: its nonce is the wallet's next one."""
    gone, job = await house.owing(duration=60), await house.collector()
    house.chain.fault("lose", method="eth_sendRawTransaction", times=1)
    await job.turn()
    raw = (await house.under_way()).transactions[-1].raw
    underpriced = {"code": -32000, "message": "transaction underpriced"}
    house.chain.fault("error", underpriced, method="eth_sendRawTransaction", contains=raw.hex())
    house.chain.pass_time(60)
    house.chain.close_channel(gone)
    good = await house.owing()
    for _ in range(6):
        house.ahead_s += BUMP_S + 1
        await job.turn()
        house.chain.mine(DEPTH)
    assert house.chain.claimed(good) == DOLLAR
    assert (gone.hex(), "failed", "reverted") in await house.claims()


# --- what is wrong with one channel ---------------------------------------------------------------------------


async def test_a_claim_that_failed_lets_the_others_go_first(house: House) -> None:
    """A node says that it would be paid, and in its block it is not: again and again, for gas each time."""
    bad = await house.owing(duration=60)
    good, job = await house.owing(), await house.collector()
    house.chain.pass_time(60)
    house.chain.close_channel(bad)
    calldata = (abi.CLAIM + bad).hex()
    house.chain.fault("result", "0x", method="eth_call", contains=calldata)
    house.chain.fault("result", "0x186a0", method="eth_estimateGas", contains=calldata)
    for _ in range(4):
        await job.turn()
        house.chain.mine(DEPTH)
    assert await house.claims() == [(bad.hex(), "failed", "reverted"), (good.hex(), "confirmed", "")]


async def test_a_channel_that_expired_and_owes_nothing_is_not_asked_for_any_more(house: House) -> None:
    """A consumer who has spent all has no reason to close it: it would be asked for until the end of time."""
    channel_id, job = await house.owing(duration=7_200), await house.collector()
    await job.turn()
    house.chain.mine(DEPTH)
    await job.turn()
    house.ahead_s += 86_400
    house.chain.heal()
    await job.turn()
    standing = await house.store.read(books.find, DOMAIN, channel_id)
    assert standing is not None
    assert standing.claimed == standing.charged
    assert await house.store.read(books.open_channels, DOMAIN) == []
    assert "eth_call" not in house.chain.asked()


# --- what a claim brings --------------------------------------------------------------------------------------


async def test_what_is_charged_after_a_claim_was_sent_is_claimed_by_the_next(house: House) -> None:
    channel_id, job = await house.owing(), await house.collector()
    await job.turn()
    await house.charge(channel_id, DOLLAR, 2)
    house.chain.mine(DEPTH)
    assert len(await job.turn()) == 1
    assert house.chain.claimed(channel_id) == 2 * DOLLAR


async def test_shortly_before_the_expiry_a_claim_must_still_be_worth_its_gas(house: House) -> None:
    house.gas_factor, house.coin_price = 2, 10**12
    await house.owing(duration=600)
    assert await (await house.collector()).turn() == []
    house.coin_price = 10**6
    assert len(await (await house.collector()).turn()) == 1
