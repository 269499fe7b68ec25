"""From settings to a provider: what must hold before the first voucher is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from goosestack.drain.chain import Chain, Terms
from goosestack.drain.claiming import Claimer
from goosestack.drain.paying import DOCS, PROTOCOL, Provider
from goosestack.drain.prices import OwnPrice, Prices, refuse_unclear
from goosestack.drain.rpc import Rpc
from goosestack.drain.signing import Signer, checksum_address, parse_address
from goosestack.drain.vouchers import Domain
from goosestack.errors import ChainUnknown, NotYet, Refusal
from goosestack.http import Client
from goosestack.pricing import Model

GWEI = 10**9

CONTRACTS: Mapping[int, str] = {
    137: "0x0C2B3aA1e80629D572b1f200e6DF3586B3946A8A",
    80002: "0x73d16e39f0e4c0bfb8b3e41a2f721ecc0edef74f",
}
"""DrainChannelV2, by chain."""

TOKENS: Mapping[int, str] = {
    137: "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359",
    80002: "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582",
}
"""USDC as Circle has issued it there."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the operator has decided."""

    private_key: str
    chain_id: int
    contract: str | None
    urls: Sequence[str]
    depth: int
    cache_s: float
    most_fee_bps: int
    least_deposit: int
    least_s: int
    markup: Decimal
    prices: Mapping[str, int] = field(default_factory=dict)
    """Micro-USDC per 1,000 tokens, by `<MODEL>_INPUT` and `<MODEL>_OUTPUT`."""
    public_url: str | None = None
    least_tip_gwei: int = 30
    most_fee_gwei: int = 1000


async def open_provider(
    setting: Setting, client: Client, sold: Iterable[Model], clock: Callable[[], float]
) -> tuple[Provider, Claimer]:
    """The provider, and what claims for it. Raises Refusal, or NotYet where no node answers."""
    signer = Signer(setting.private_key)
    own = own_prices(setting.prices)
    refuse_unclear(own, sold)
    domain = Domain(setting.chain_id, _contract(setting))
    chain = Chain(Rpc(client, setting.urls, setting.chain_id), domain, depth=setting.depth, keep_s=setting.cache_s)
    contract = await _read_terms(chain)
    contract.refuse_other(parse_address(TOKENS[setting.chain_id]), setting.most_fee_bps)
    provider = Provider(
        chain=chain,
        signer=signer,
        prices=Prices(own, setting.markup, contract.fee_bps),
        contract=contract,
        least_deposit=setting.least_deposit,
        least_s=setting.least_s,
        clock=clock,
        hints=_hints(setting, signer, domain),
    )
    claimer = Claimer(chain, signer, least_tip=setting.least_tip_gwei * GWEI, most_fee=setting.most_fee_gwei * GWEI)
    return provider, claimer


def own_prices(prices: Mapping[str, int]) -> dict[str, OwnPrice]:
    """The operator's prices by model. Raises Refusal where one has an output alone."""
    found = {}
    for key in sorted({name.rpartition("_")[0] for name in prices}):
        if f"{key}_INPUT" not in prices:
            raise Refusal(f"PRICE_{key}_OUTPUT is set, and PRICE_{key}_INPUT is missing")
        found[key] = OwnPrice(prices[f"{key}_INPUT"], prices.get(f"{key}_OUTPUT"))
    return found


def _contract(setting: Setting) -> bytes:
    try:
        return parse_address(setting.contract or CONTRACTS[setting.chain_id])
    except ValueError as error:
        raise Refusal(f"DRAIN_CONTRACT is no address: {error}") from None


async def _read_terms(chain: Chain) -> Terms:
    try:
        return await chain.terms()
    except ChainUnknown as error:
        raise NotYet(f"no node of DRAIN_RPC_URL tells the contract's terms: {error.facts.get('why')}") from None


def _hints(setting: Setting, signer: Signer, domain: Domain) -> dict[str, str]:
    """What whoever sends no voucher is told in headers."""
    docs = f"{setting.public_url or ''}{DOCS}"
    return {
        "x-payment-protocol": PROTOCOL,
        "x-payment-provider": checksum_address(signer.address),
        "x-payment-contract": checksum_address(domain.contract),
        "x-payment-chain": str(domain.chain_id),
        "x-payment-signing": docs,
        "x-payment-docs": DOCS,
    }
