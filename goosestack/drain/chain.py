"""What the chain says: blocks, the contract's terms, channels. Read from nodes, kept for a moment, never guessed.

A channel's consumer, provider, deposit and expiry do not change. Until its expiry nobody can end it but a consumer with
the provider's signed close, and nobody can raise `claimed` but the provider. So a channel read some seconds ago is as
good as one read now, for anybody who knows which closes they signed; what remains is a chain that changes its mind,
against which a channel counts only once it is some blocks old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from goosestack.drain import abi
from goosestack.drain.abi import Channel
from goosestack.drain.rpc import Reverted, Rpc, data, hexadecimal, members, quantity, unknown
from goosestack.drain.signing import checksum_address
from goosestack.drain.vouchers import Domain
from goosestack.errors import Refusal

T = TypeVar("T")

HEAD_S = 2.0
"""How long the latest block counts as such; about a block's time on Polygon."""
MISSING_S = 2.0
"""How long a channel that is not there is not asked for again."""
MOST_KEPT = 10_000
MOST_TIME = 2**40
"""Seconds; a block that claims to be later than this is not of this world."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its time is in Unix seconds, its base fee in wei for a unit of gas."""

    number: int
    hash: bytes
    timestamp: int
    base_fee: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What the contract's owner has set, and may change while there is one."""

    version: int
    """2 where the contract has a fee and cooperative closes, else 1."""
    token: bytes
    fee_bps: int
    """Of the provider's payout, in hundredths of a percent; 0 on V1."""
    owner: bytes
    """Who may change token and fee; zero where it is nobody any more."""

    @property
    def renounced(self) -> bool:
        """Whether token and fee are as they are for good."""
        return not any(self.owner)

    def payout(self, amount: int) -> int:
        """What the provider receives of a claimed amount, in micro-USDC."""
        return amount - amount * self.fee_bps // 10_000

    def refuse_other(self, token: bytes, most_fee_bps: int) -> None:
        """Raise Refusal where the contract pays in another token, or takes more than the operator allows."""
        if self.token != token:
            paid = checksum_address(self.token)
            raise Refusal(f"the DRAIN contract pays in {paid}, which is not {checksum_address(token)}")
        if self.fee_bps > most_fee_bps:
            raise Refusal(f"the DRAIN contract takes {self.fee_bps} hundredths of a percent, above {most_fee_bps}")


class Chain:
    """One DRAIN contract on one chain. All methods raise ChainUnknown where nodes do not answer, or not alike."""

    def __init__(
        self,
        rpc: Rpc,
        domain: Domain,
        *,
        depth: int,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`depth`: how many blocks must stand on one for it to count; `keep_s`: how long a channel read is good."""
        assert rpc.chain_id == domain.chain_id
        self.rpc = rpc
        self.domain = domain
        self.depth = depth
        self._keep_s = keep_s
        self._clock = clock
        self._contract = checksum_address(domain.contract)
        self._head: tuple[float, Block] | None = None
        self._kept: dict[bytes, tuple[float, Channel | None]] = {}
        self._asking: dict[bytes, asyncio.Task[Any]] = {}

    # --- blocks -----------------------------------------------------------------------------------------------

    async def head(self) -> Block:
        """The latest block, at most HEAD_S old as an answer. Its time may be ahead of ours, or behind."""
        if self._head is not None and self._clock() < self._head[0]:
            return self._head[1]
        return await self._together(b"", self._read_head)

    async def _read_head(self) -> Block:
        block = await self.block("latest")
        self._head = (self._clock() + HEAD_S, block)
        return block

    async def _together(self, key: bytes, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One answer for all who ask the same while it is on its way; it goes on for the others where one leaves."""
        task = self._asking.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(ask())
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        found: T = await asyncio.shield(task)
        return found

    def _answered(self, key: bytes, task: asyncio.Task[Any]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # all who asked may be gone

    async def block(self, which: int | str) -> Block:
        """A block by its number, or by a name of JSON-RPC's. A block that is not there is an unknown one."""
        named = which if isinstance(which, str) else hexadecimal(which)
        block = await self.rpc.ask("eth_getBlockByNumber", (named, False), _read_block)
        if isinstance(which, int) and block.number != which:
            raise unknown("the node answers with another block")
        return block

    # --- the contract -----------------------------------------------------------------------------------------

    async def terms(self) -> Terms:
        """What the contract is, and what it takes. Raises Refusal where it is no DRAIN contract for this domain."""
        code = await self.rpc.ask("eth_getCode", (self._contract, "latest"), data)
        if not code:
            raise Refusal(f"there is no contract at {self._contract} on chain {self.domain.chain_id}")
        try:
            separator = await self._call(abi.DOMAIN_SEPARATOR, lambda said: data(said, abi.WORD))
            token = await self._call(abi.USDC, _read_address)
            owner = await self._call(abi.OWNER, _read_address)
        except Reverted:
            raise Refusal(f"the contract at {self._contract} is not a DRAIN channel contract") from None
        if separator != self.domain.separator:
            raise Refusal(f"the contract at {self._contract} has another signing domain than DRAIN's")
        try:
            fee_bps = await self._call(abi.FEE_BPS, lambda said: abi.read_number(data(said)))
        except Reverted:
            return Terms(1, token, 0, owner)
        if fee_bps > 10_000:
            raise unknown("the fee is above everything")
        return Terms(2, token, fee_bps, owner)

    async def _call(self, calldata: bytes, read: Callable[[object], T]) -> T:
        return await self.rpc.ask("eth_call", (self._to(calldata), "latest"), read)

    def _to(self, calldata: bytes) -> dict[str, str]:
        return {"to": self._contract, "data": hexadecimal(calldata)}

    # --- channels ---------------------------------------------------------------------------------------------

    async def channel(self, channel_id: bytes) -> Channel | None:
        """A channel that is `depth` blocks old; None where there is none. Any number may ask at once, for one read.

        Raises ChainUnknown also for one that exists and is too young, with a `retry-after` by which it is not.
        """
        kept = self._kept.get(channel_id)
        if kept is not None and self._clock() < kept[0]:
            return kept[1]
        return await self._together(channel_id, lambda: self._look(channel_id))

    def forget(self, channel_id: bytes) -> None:
        """Read this channel anew when it is asked for next: it was claimed, or closed."""
        self._kept.pop(channel_id, None)

    async def _look(self, channel_id: bytes) -> Channel | None:
        both = self.buried(channel_id), self.latest(channel_id)
        deep, latest = await asyncio.gather(*both, return_exceptions=True)  # whoever asks next joins none that fails
        if isinstance(deep, BaseException):
            raise deep
        if isinstance(latest, BaseException):
            raise latest
        if deep is None and latest is not None:  # blocks may have come since the one that counts as the latest
            self._head = None
            deep = await self.buried(channel_id)
        if latest is None:
            found = None
        elif deep is None:
            raise unknown("the channel is too young", 2 * self.depth + 1)
        elif replace(deep, claimed=0) != replace(latest, claimed=0):
            raise unknown("the channel is not what it was")
        else:
            found = replace(deep, unburied=latest.claimed)
        self._kept.pop(channel_id, None)
        while len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[channel_id] = (self._clock() + (MISSING_S if found is None else self._keep_s), found)
        return found

    async def buried_block(self) -> Block:
        """The latest block that counts."""
        return await self.block(max((await self.head()).number - self.depth, 0))

    async def buried(self, channel_id: bytes) -> Channel | None:
        """The channel as it was `depth` blocks ago, by all nodes that answer; nothing of it is kept."""
        number = max((await self.head()).number - self.depth, 0)
        return await self.rpc.agree("eth_call", self._question(channel_id, hexadecimal(number)), _reader(channel_id))

    async def latest(self, channel_id: bytes) -> Channel | None:
        """The channel as one node has it in its latest block; nothing of it is kept."""
        return await self.rpc.ask("eth_call", self._question(channel_id, "latest"), _reader(channel_id))

    def _question(self, channel_id: bytes, block: str) -> tuple[dict[str, str], str]:
        return self._to(abi.call(abi.GET_CHANNEL, channel_id)), block


def _reader(channel_id: bytes) -> Callable[[object], Channel | None]:
    return lambda said: abi.read_channel(channel_id, data(said))


def _read_address(value: object) -> bytes:
    return abi.read_address(data(value))


def _read_block(value: object) -> Block:
    block = members(value)
    timestamp = quantity(block.get("timestamp"))
    if timestamp > MOST_TIME:
        raise ValueError("the block is of an impossible time")
    return Block(
        quantity(block.get("number")), data(block.get("hash"), 32), timestamp, quantity(block.get("baseFeePerGas"))
    )
