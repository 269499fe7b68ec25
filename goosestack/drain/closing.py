"""Cooperative closes: our signature, by which a consumer ends a channel at once.

It has no deadline and cannot be taken back. So it is given once for a channel, at what was charged, and the channel is
ended by that for good: else it could be asked for early and used late, when more has been charged. A channel's id is
public, and ending somebody's channel is a nuisance: so a stranger is only given it where the channel lies idle, and a
consumer who signs the request has it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from goosestack.clock import later
from goosestack.drain import claims
from goosestack.drain.paying import Provider
from goosestack.drain.rpc import unknown
from goosestack.drain.signing import recover
from goosestack.errors import ChannelNotFound, CloseRefused, VoucherSignature, WrongProvider
from goosestack.store import Store


@dataclass(frozen=True, slots=True)
class Close:
    """What a consumer needs to close a channel; the amount is micro-USDC of the channel's whole life."""

    channel_id: bytes
    final_amount: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Closer:
    """Signs closes."""

    provider: Provider
    store: Store
    idle_s: int
    now: Callable[[], str]

    async def close(self, channel_id: bytes, proof: bytes | None) -> Close:
        """The close of a channel of ours, and its end. `proof` is its consumer's signature over a `CloseRequest`.

        Raises ChannelNotFound, WrongProvider, VoucherSignature, CloseRefused and ChainUnknown.
        """
        provider = self.provider
        if provider.contract.version < 2:
            raise CloseRefused(reason="this contract has no cooperative close")
        if "wallet" in provider.troubles:  # what is on its way may be a claim above what would be signed
            raise unknown(provider.troubles["wallet"], 30)
        channel = await provider.chain.channel(channel_id)
        if channel is None:
            raise ChannelNotFound()
        if channel.provider != provider.signer.address:
            raise WrongProvider()
        if proof is not None and recover(provider.domain.close_request_digest(channel_id), proof) != channel.consumer:
            raise VoucherSignature()
        latest = await provider.chain.latest(channel_id)
        if latest is None:
            raise ChannelNotFound()
        channel = replace(channel, unburied=latest.claimed)
        now = self.now()
        idle_since = None if proof is not None else later(now, -self.idle_s)
        final = await self.store.write(claims.freeze, provider.domain, channel, idle_since, now)
        if final is None:
            idle = f"it must be idle for {self.idle_s} s, or the request signed by its consumer"
            reason = idle if proof is None else "a request or a claim of it is under way"
            raise CloseRefused(reason=reason, headers={"retry-after": str(max(1, self.idle_s))})
        signature = provider.domain.authorize_close(provider.signer, channel_id, final)
        return Close(channel_id, final, signature)
