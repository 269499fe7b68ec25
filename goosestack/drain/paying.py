"""Vouchers as a credential, and channels as a payer: the two families of the gateway that DRAIN has a member of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from goosestack import errors
from goosestack.accounts import Principal
from goosestack.auth import RawHeaders
from goosestack.drain import books
from goosestack.drain.abi import Channel
from goosestack.drain.books import GRAIN
from goosestack.drain.chain import Chain, Terms as ContractTerms
from goosestack.drain.prices import Prices
from goosestack.drain.rpc import unknown
from goosestack.drain.signing import Signer, checksum_address
from goosestack.drain.vouchers import Domain, Voucher, check, parse_voucher
from goosestack.errors import Problem
from goosestack.ledger import Authorized, NewHold, Settled
from goosestack.payers import Payer, Shortage
from goosestack.pricing import Model, Terms
from goosestack.store import Store, Tx

HEADERS = (b"x-drain-voucher", b"x-payment-voucher")
PROTOCOL = "drain-v2"
DOCS = "/v1/docs"


@dataclass(kw_only=True)
class Provider:
    """We, as channels know us, and the terms on which they are served."""

    chain: Chain
    signer: Signer
    prices: Prices
    contract: ContractTerms
    least_deposit: int
    """Micro-USDC."""
    least_s: int
    """How long a channel must last on: the longest request, and the time that a claim may take."""
    clock: Callable[[], float]
    """Unix seconds."""
    troubles: dict[str, str] = field(default_factory=dict)
    """Why no voucher is taken just now, by kind, which is `wallet` or `terms`: for the operator."""
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def domain(self) -> Domain:
        """Where signatures are good."""
        return self.chain.domain

    @property
    def address(self) -> str:
        """Ours, with its checksum."""
        return checksum_address(self.signer.address)

    async def now(self) -> int:
        """Unix seconds by the chain's clock or ours, whichever is later."""
        return max(int(self.clock()), (await self.chain.head()).timestamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent(Principal):
    """Whoever pays for one request by a voucher that was checked; no customer, and never asked who it is."""

    voucher: Voucher
    channel: Channel

    def told(self, problem: Problem) -> Problem:
        """See `Principal.told`: in the protocol's words, where it has some."""
        if isinstance(problem, errors.ModelNotFound):
            return errors.ModelNotSupported(**problem.facts, param="model", headers=problem.headers)
        return problem


class Vouchers:
    """Identifies by a voucher: an agent is the consumer of the channel that it pays from."""

    def __init__(self, provider: Provider, store: Store) -> None:
        self._provider, self._store = provider, store

    def credential(self, headers: RawHeaders) -> str | None:
        """See `Identifier.credential`."""
        found = [value.decode("latin-1").strip() for name, value in headers if name in HEADERS]
        if len(set(found)) > 1:
            raise errors.CredentialConflict()
        return found[0] if found else None

    def owns(self, credential: str) -> bool:
        """See `Identifier.owns`."""
        return True

    def asks(self, headers: RawHeaders) -> bool:
        """See `Asking.asks`: a channel that has paid before nobody can invent, and it is kept for a while."""
        try:
            sent = self.credential(headers)
            voucher = None if sent is None else parse_voucher(sent)
        except Problem:
            return False  # as cheap to refuse as a bad key
        return voucher is not None and self._store.peek(books.find, self._provider.domain, voucher.channel_id) is None

    def missing(self) -> Problem:
        """See `Identifier.missing`."""
        return errors.VoucherRequired(headers=dict(self._provider.hints))

    async def identify(self, credential: str) -> Agent:
        """See `Identifier.identify`. Raises what is wrong with the voucher, or ChainUnknown.

        One that is used proves nothing: a claim shows it to the world. Whether it is, is asked here so that nothing of
        its consumer's is spent on whoever found it, and again where the hold is made, which decides.
        """
        provider, voucher = self._provider, parse_voucher(credential)
        if provider.troubles:
            raise unknown("; ".join(provider.troubles.values()), 30)
        channel, now = await asyncio.gather(provider.chain.channel(voucher.channel_id), provider.now())
        channel = check(voucher, channel, provider.domain, provider.signer.address, until=now + provider.least_s)
        if channel.deposit < provider.least_deposit:
            raise errors.ChannelTooSmall(least=provider.least_deposit)
        self._store.peek(books.refuse_used, provider.domain, voucher)
        return Agent(books.user_of(channel.consumer), None, None, voucher=voucher, channel=channel)

    def forget(self, key_id: str) -> None:
        """See `Identifier.forget`: there are no keys here."""


class VoucherFunding:
    """The channel of whoever sent a voucher."""

    def __init__(self, provider: Provider, store: Store) -> None:
        self._provider, self._store = provider, store

    def payer(self, caller: Principal) -> Payer | None:
        """See `Funding.payer`."""
        if not isinstance(caller, Agent):
            return None
        return ByVoucher(self._provider, self._store, caller, self._provider.prices)


@dataclass(frozen=True, slots=True)
class ByVoucher:
    """One voucher, paying for one request from its channel's account in `usdc_micro`. A grain is a nanodollar."""

    provider: Provider
    store: Store
    agent: Agent
    at: Prices
    """Today's, also where the contract's fee changes before the answer ends: a request costs what it was held for."""

    @property
    def account_id(self) -> int | None:
        """See `Payer.account_id`: `authorize` finds or opens it."""
        return None

    @property
    def unit(self) -> str:
        """See `Payer.unit`."""
        return books.UNIT

    @property
    def clamps(self) -> bool:
        """See `Payer.clamps`: clients reckon with fewer tokens than they ask for."""
        return True

    @property
    def headers(self) -> dict[str, str]:
        """See `Payer.headers`."""
        return {"x-drain-channel": "0x" + self.agent.channel.id.hex()}

    def admit(self, model: Model) -> None:
        """See `Payer.admit`: channels pay for all that is sold."""

    def prices(self, model: Model) -> tuple[Model, Terms]:
        """See `Payer.prices`."""
        return self.at.of(model)

    def authorize(self, tx: Tx, hold: NewHold, at_least: int, at_most: int, now: str) -> Authorized:
        """See `Payer.authorize`."""
        agent = self.agent
        return books.authorize(tx, self.provider.domain, agent.channel, agent.voucher, hold, at_least, at_most, now)

    def look(self, tx: Tx) -> Authorized:
        """See `Payer.look`."""
        return books.look(tx, self.provider.domain, self.agent.channel, self.agent.voucher)

    def grains(self, nanos: int, tokens: int) -> int:
        """See `Payer.grains`."""
        return nanos

    def refuse(self, shortage: Shortage) -> Problem:
        """See `Payer.refuse`: a voucher with `required - provided` more would do."""
        required, provided = -(-shortage.required // GRAIN), shortage.available // GRAIN
        headers = {"x-drain-required": str(required), "x-drain-provided": str(provided)}
        return errors.VoucherFunds(required=required, provided=provided, headers=headers)

    def told(self, receipt: Settled) -> dict[str, str]:
        """See `Payer.told`: this request, and the channel with it, in micro-USDC."""
        return {f"x-drain-{name.lower()}": value for name, value in self._sums(receipt).items()}

    def around(self, receipt: Settled) -> tuple[bytes, bytes]:
        """See `Payer.around`: after the last event, where the protocol's clients look for it."""
        lines = [f": X-DRAIN-{name}: {value}\n" for name, value in self._sums(receipt).items()]
        return b"", "".join(lines).encode()

    def _sums(self, receipt: Settled) -> dict[str, str]:
        channel = self.agent.channel
        total = self.store.peek(books.charged, self.provider.domain, channel.id)
        return {"Cost": str(receipt.billed), "Total": str(total), "Remaining": str(channel.deposit - total)}
