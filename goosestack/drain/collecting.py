"""The job that gets channels paid: which claim is worth sending now, and each one followed to its end.

One claim at a time, from its first transaction to the block that buries it: what is sent is written down before, so
that it is found again after a crash, sent again where it was dropped, and replaced by a dearer one where it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from goosestack.drain import books, claims
from goosestack.drain.books import Standing
from goosestack.drain.claiming import Claimer, NotTaken, State, TooDear, Transaction, Why
from goosestack.drain.claims import Claim
from goosestack.drain.paying import Provider
from goosestack.drain.rpc import Reverted
from goosestack.errors import ChainUnknown, Refusal
from goosestack.store import Store

BUMP_S = 60.0
"""How long a transaction waits before a dearer one replaces it."""
REST_S = 300.0
"""How long a channel is left alone whose claim failed, cannot be made, or is not worth its gas."""
UNKNOWN_S = 60.0
"""The same where nodes did not answer for it: others are not to wait for it."""
COIN = 10**18

FORGOTTEN = "transactions of the wallet are on their way that these books do not know"


@dataclass(kw_only=True)
class Collector:
    """Claims what channels owe. There must be one for a wallet: the lock beside the database sees to that here."""

    provider: Provider
    claimer: Claimer
    store: Store
    now: Callable[[], str]
    alert: Callable[..., None]
    token: bytes
    """What channels must pay in."""
    most_fee_bps: int
    threshold: int
    """Micro-USDC that are unclaimed."""
    buffer_s: int
    """Before its expiry a channel is claimed whatever is unclaimed."""
    gas_factor: int
    coin_price: int
    """Micro-USDC for one coin of the chain."""
    forced: set[int] = field(default_factory=set)
    """Channels that are claimed next, whatever is unclaimed."""
    _rests: dict[int, float] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def begin(self) -> None:
        """Before the first voucher: a claim that was forgotten could still raise what a channel has paid."""
        self.provider.troubles["wallet"] = FORGOTTEN
        try:
            await self.turn()
        except ChainUnknown:
            pass  # no voucher is taken before a later turn has found out

    async def turn(self) -> list[bytes]:
        """One step: follow what is under way, or send the next claim; the hashes of what was sent."""
        async with self._lock:
            claim = await self.store.read(claims.under_way, self.provider.domain)
            if claim is not None:
                self.provider.troubles.pop("wallet", None)
                if not await self._follow(claim):
                    return []
            if "wallet" in self.provider.troubles:
                if not await self.claimer.idle():
                    return []
                del self.provider.troubles["wallet"]
            return await self._claim_next()

    async def force(self) -> None:
        """Mark every channel with something unclaimed to be claimed, but those whose close was signed: they wait."""
        for each in await self.store.read(books.open_channels, self.provider.domain):
            if each.charged > each.claimed and each.closing is None:
                self.forced.add(each.id)
        self._rests.clear()

    async def watch_terms(self) -> None:
        """Read again what the contract's owner may have changed: a wrong token or too high a fee ends the serving."""
        provider = self.provider
        try:
            contract = await provider.chain.terms()
            contract.refuse_other(self.token, self.most_fee_bps)
        except Refusal as refusal:
            if "terms" not in provider.troubles:
                self.alert("drain", what=str(refusal))
            provider.troubles["terms"] = str(refusal)
            return
        provider.troubles.pop("terms", None)
        provider.contract, provider.prices = contract, replace(provider.prices, fee_bps=contract.fee_bps)

    # --- following --------------------------------------------------------------------------------------------

    async def _follow(self, claim: Claim) -> bool:
        """Ask what became of a claim, and see to it; whether it has ended."""
        chain, channel_id = self.provider.chain, claim.voucher.channel_id
        outcome = await self.claimer.outcome(claim.tx_nonce, [each.hash for each in claim.transactions])
        if outcome.state is State.PENDING:
            await self._send_again(claim)
        if not outcome.final:
            return False
        chain.forget(channel_id)
        if outcome.state is State.CLAIMED:
            found = await chain.buried(channel_id)
            if found is not None and found.claimed < claim.voucher.amount:
                return False  # asked of a node that is behind
            claimed = claim.voucher.amount if found is None else found.claimed
            await self.store.write(claims.confirm, claim, claimed, self.now())
            self.forced.discard(claim.channel)
        else:
            self.alert("claim", what=outcome.state.value, channel="0x" + channel_id.hex())
            await self.store.write(claims.fail, claim, outcome.state.value, self.now())
            self._rest(claim.channel)  # what is wrong with it may be so again, and others are waiting
        return True

    async def _send_again(self, claim: Claim) -> None:
        """The same bytes once more, which a node may have dropped; dearer ones where they have waited long, whatever
        the claim still brings: all others wait for its nonce."""
        latest = claim.transactions[-1]
        refused = await self._send(latest)
        if refused in (Why.NO_GAS_MONEY, Why.NONCE_USED) or _seconds(self.now()) - _seconds(claim.made_at) <= BUMP_S:
            return
        try:
            dearer = await self.claimer.replace(claim.voucher, latest)
        except TooDear as error:
            self.alert("claim", what=f"it waits, and gas is too dear: {error}")
            return
        await self.store.write(claims.add_transaction, claim.id, dearer, self.now())
        await self._send(dearer)

    async def _send(self, transaction: Transaction) -> Why | None:
        """Send it; why no node takes it, where that is so."""
        try:
            await self.claimer.send(transaction)
        except NotTaken as error:
            if error.why is not Why.NONCE_USED:  # what became of the nonce is told when it is final
                self.alert("claim", what=f"{error.why.value}: {error}")
            return error.why
        return None

    # --- claiming ---------------------------------------------------------------------------------------------

    async def _claim_next(self) -> list[bytes]:
        """Send the claim of the first channel that is due. What is wrong with one channel is not the others'."""
        now, clock = await self.provider.now(), asyncio.get_running_loop().time()
        failed = False
        for each in await self.store.read(books.open_channels, self.provider.domain):
            if self._rests.get(each.id, 0.0) > clock:
                continue
            try:
                sent = await self._attend(each, now)
            except ChainUnknown as error:
                self._rests[each.id] = clock + UNKNOWN_S
                if failed:
                    raise  # it is not the channel: no node answers
                failed = True
                self.alert("claim", what=f"unknown: {error.facts.get('why')}", channel="0x" + each.channel_id.hex())
            else:
                if sent is not None:
                    return [sent]
        return []

    async def _attend(self, each: Standing, now: int) -> bytes | None:
        """Claim a channel if that is due, else look after it; the hash of what was sent."""
        try:
            sent = await self._claim(each) if self._due(each, now) else None
            if sent is None:
                await self._look_after(each, now)
            return sent
        except Reverted as error:
            self._rest(each.id)
            await self._refused(each, error)
        except TooDear as error:
            self._rest(each.id)
            self.alert("claim", what=f"gas is too dear: {error}")
        return None

    def _due(self, each: Standing, now: int) -> bool:
        unclaimed, near = each.charged - each.claimed, each.expiry <= now + self.buffer_s
        if unclaimed <= 0:
            return False
        if each.closing is not None:  # its consumer may close at what was signed, unless more is claimed before
            return near
        return near or each.id in self.forced or unclaimed >= self.threshold

    async def _claim(self, each: Standing) -> bytes | None:
        voucher = await self.store.read(claims.covering, each)
        if voucher is None:
            self.alert("claim", what="no voucher covers what was charged", channel="0x" + each.channel_id.hex())
            self._rest(each.id)
            return None
        transaction = await self.claimer.prepare(voucher, await self.claimer.next_nonce())
        contract = self.provider.contract
        gain = contract.payout(each.charged) - contract.payout(each.claimed)
        if gain * COIN <= self.gas_factor * transaction.expected_wei * self.coin_price:
            self._rest(each.id)
            return None
        await self.store.write(claims.begin, each, voucher, transaction, self.now())
        await self._send(transaction)
        return transaction.hash

    async def _look_after(self, each: Standing, now: int) -> None:
        """Find out whether a channel is closed that may be. One that has expired and owes nothing is of no interest any
        more, and its consumer may have no reason to close it."""
        if each.expiry <= now and each.charged <= each.claimed and not each.held:
            await self._give_up(each)
        elif each.closing is not None or each.expiry <= now:
            self._rest(each.id)
            await self._settle_closed(each)

    async def _refused(self, each: Standing, error: Reverted) -> None:
        """The contract would not pay: because the channel is closed, or paid already by somebody with our key."""
        if await self._settle_closed(each):
            return
        found = await self.provider.chain.buried(each.channel_id)
        if found is not None and found.claimed > each.claimed:
            await self.store.write(claims.paid, each.id, found.claimed)
            return
        self.alert("claim", what=str(error), channel="0x" + each.channel_id.hex())

    async def _settle_closed(self, each: Standing) -> bool:
        chain = self.provider.chain
        if await chain.buried(each.channel_id) is not None or await chain.latest(each.channel_id) is not None:
            return False
        block = await chain.buried_block()
        if block.timestamp < int(_seconds(each.used_at)):
            return False  # a node that is behind: the channel was there later
        chain.forget(each.channel_id)
        if each.closing is not None and block.timestamp < each.expiry:  # which nothing but the signed close can do
            await self.store.write(claims.paid, each.id, each.closing)
        await self._give_up(each)
        if each.closing is None and each.charged > each.claimed:
            lost = each.charged - each.claimed
            self.alert("claim_lost", channel="0x" + each.channel_id.hex(), micro_usdc=lost)
        return True

    async def _give_up(self, each: Standing) -> None:
        await self.store.write(claims.gone, each.id, self.now())
        self.forced.discard(each.id)
        self._rests.pop(each.id, None)

    def _rest(self, channel: int) -> None:
        self._rests[channel] = asyncio.get_running_loop().time() + REST_S


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
