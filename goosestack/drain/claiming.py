"""Getting paid: the transactions that claim vouchers, and what becomes of them.

Whoever uses this keeps three things in this order, so that a crash loses nothing: `prepare` a transaction, write it
down, `send` it; then ask for its `outcome` until that is final. A transaction is bytes: sending it again changes
nothing, and one that a node forgot is simply sent again. `replace` makes a dearer one, of which the chain takes one or
the other. In the end the contract has the last word: what is `claimed` in a buried block is paid.

One nonce after the other, each brought to its end before the next: a wallet's transactions wait for each other anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from goosestack.drain import abi
from goosestack.drain.chain import Chain
from goosestack.drain.rpc import Refused, data, hexadecimal, members, quantity, unknown
from goosestack.drain.signing import Signer, checksum_address
from goosestack.drain.vouchers import Voucher
from goosestack.errors import ChainUnknown

LEAST_GAS, MOST_GAS = 200_000, 500_000
"""The bounds of a claim's gas limit, whatever a node estimates: a claim was measured at 77,000 to 115,000."""
MOST_COUNT = 2**63 - 1
"""No wallet ever sends as many transactions."""


class TooDear(Exception):
    """The network asks more for gas than the operator allows; try later."""


class Why(StrEnum):
    """Why no node takes a transaction."""

    NONCE_USED = "nonce used"
    UNDERPRICED = "underpriced"
    NO_GAS_MONEY = "no money for gas"
    OTHER = "other"


class NotTaken(Exception):
    """Every node that answered refuses a transaction. What became of its nonce, `outcome` tells."""

    def __init__(self, why: Why, detail: str) -> None:
        super().__init__(detail)
        self.why = why


_REFUSALS: tuple[tuple[str, Why], ...] = (
    ("nonce too low", Why.NONCE_USED),
    ("underpriced", Why.UNDERPRICED),
    ("max fee per gas less than", Why.UNDERPRICED),
    ("insufficient funds", Why.NO_GAS_MONEY),
)
_TAKEN_BEFORE = ("already known", "known transaction", "already imported", "already exists")


@dataclass(frozen=True, slots=True)
class Transaction:
    """A signed claim. Fees are wei for a unit of gas."""

    hash: bytes
    raw: bytes
    nonce: int
    gas: int
    max_fee: int
    tip: int
    expected_wei: int
    """What it will cost by the node's estimate at the present base fee; at most `gas` times `max_fee`."""


class State(StrEnum):
    """What became of a nonce."""

    PENDING = "pending"
    """Not in a block: waiting, or dropped. Send it again, and dearer after a while."""
    CLAIMED = "claimed"
    """In a block, and the contract paid."""
    REVERTED = "reverted"
    """In a block, and the contract refused; gas was paid."""
    LOST = "lost"
    """The nonce went to another transaction, of somebody else with the same key."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a nonce so far; another state may follow until it is `final`."""

    state: State
    final: bool = False
    hash: bytes | None = None
    """Of the transaction that is in a block."""
    claimed: Mapping[bytes, int] = field(default_factory=dict)
    """By channel id, how much each rose by it, in micro-USDC before the fee."""


@dataclass(frozen=True, slots=True)
class _Receipt:
    block: int
    block_hash: bytes
    paid: bool
    claimed: Mapping[bytes, int]


class Claimer:
    """Sends claims from the provider's wallet. There must be one at a time: it owns the wallet's nonces.

    Every method raises ChainUnknown where nodes do not answer.
    """

    def __init__(self, chain: Chain, signer: Signer, *, least_tip: int, most_fee: int) -> None:
        """`least_tip` and `most_fee` in wei for a unit of gas: some networks drop what tips less, and no node, however
        wrong, may make us pay more."""
        self._chain = chain
        self._signer = signer
        self._least_tip = least_tip
        self._most_fee = most_fee
        self._address = checksum_address(signer.address)

    # --- before sending ---------------------------------------------------------------------------------------

    async def preflight(self, voucher: Voucher) -> None:
        """Try a claim without sending it. Raises Reverted, with the contract's error."""
        await self._chain.rpc.ask("eth_call", (self._call(voucher), "latest"), data)

    async def next_nonce(self) -> int:
        """The wallet's first nonce that no known transaction has."""
        return await self._count("pending")

    async def idle(self) -> bool:
        """Whether no transaction of this wallet is waiting: else `claimed` may still rise by one that we forgot."""
        return await self._count("pending") == await self._count("latest")

    async def prepare(self, voucher: Voucher, nonce: int) -> Transaction:
        """A signed claim, not sent. Raises Reverted where the contract would refuse it, and TooDear."""
        await self.preflight(voucher)
        # as of the latest block: the pending one may have a claim of the channel already
        estimate = await self._chain.rpc.ask("eth_estimateGas", (self._call(voucher), "latest"), quantity)
        gas = min(max(estimate * 5 // 4, LEAST_GAS), MOST_GAS)
        tip, max_fee, expected_fee = await self._fees(0, 0)
        return self._sign(voucher, nonce, gas, tip, max_fee, min(estimate, gas) * expected_fee)

    async def replace(self, voucher: Voucher, before: Transaction) -> Transaction:
        """A dearer one, by an eighth at least: nodes want a tenth. Raises TooDear.

        Its nonce is the same, or an earlier one that has become free and for which `before` would wait forever. Whether
        the contract would still pay is not asked: the nonce must be used up all the same, and whatever waits behind it
        costs more than a claim that reverts.
        """
        nonce = min(before.nonce, await self.next_nonce())
        tip, max_fee, expected_fee = await self._fees(_dearer(before.tip), _dearer(before.max_fee))
        return self._sign(voucher, nonce, before.gas, tip, max_fee, before.gas * expected_fee)

    async def _fees(self, least_tip: int, least_fee: int) -> tuple[int, int, int]:
        """For a unit of gas: the tip, the most in all, and what it would be by the present base fee. Raises TooDear."""
        base_fee = (await self._chain.block("latest")).base_fee
        tip = max(await self._tip(base_fee), self._least_tip, least_tip)
        if max(base_fee + tip, least_fee) > self._most_fee:
            raise TooDear(f"{max(base_fee + tip, least_fee)} wei for a unit of gas")
        max_fee = max(min(2 * base_fee + tip, self._most_fee), least_fee)
        return tip, max_fee, min(base_fee + tip, max_fee)

    def _sign(self, voucher: Voucher, nonce: int, gas: int, tip: int, max_fee: int, expected_wei: int) -> Transaction:
        raw, digest = self._signer.sign_transaction(
            chain_id=self._chain.domain.chain_id,
            nonce=nonce,
            to=self._chain.domain.contract,
            data=_calldata(voucher),
            gas=gas,
            max_fee=max_fee,
            tip=tip,
        )
        return Transaction(digest, raw, nonce, gas, max_fee, tip, expected_wei)

    async def _tip(self, base_fee: int) -> int:
        try:
            return await self._chain.rpc.ask("eth_maxPriorityFeePerGas", (), quantity)
        except ChainUnknown:  # not every node has it
            return max(await self._chain.rpc.ask("eth_gasPrice", (), quantity) - base_fee, 0)

    def _call(self, voucher: Voucher) -> dict[str, str]:
        contract = checksum_address(self._chain.domain.contract)
        return {"from": self._address, "to": contract, "data": hexadecimal(_calldata(voucher))}

    async def _count(self, block: str) -> int:
        return await self._chain.rpc.ask("eth_getTransactionCount", (self._address, block), _read_count)

    # --- sending ----------------------------------------------------------------------------------------------

    async def send(self, transaction: Transaction) -> None:
        """Hand a transaction to every node. Done once one has it, also from before.

        Raises NotTaken where all that answer refuse, and ChainUnknown where none answers: it may be on its way all the
        same, so in both cases its outcome is to be asked for.
        """
        said = await self._chain.rpc.tell(
            "eth_sendRawTransaction", (hexadecimal(transaction.raw),), lambda each: data(each, 32)
        )
        if not said:
            raise unknown("no node takes a transaction")
        refusals = []
        for each in said:
            text = str(each).lower()
            if each == transaction.hash or (isinstance(each, Refused) and any(word in text for word in _TAKEN_BEFORE)):
                return
            refusals.append(text if isinstance(each, Refused) else "the node took something else")
        for word, why in _REFUSALS:
            if any(word in text for text in refusals):
                raise NotTaken(why, word)
        raise NotTaken(Why.OTHER, refusals[0])

    # --- afterwards -------------------------------------------------------------------------------------------

    async def outcome(self, nonce: int, hashes: Sequence[bytes]) -> Outcome:
        """What became of a claim, for which these transactions were sent, the last of them with this nonce. Final once
        `depth` blocks stand on it.

        A chain that changes its mind takes a state back, until it is final.
        """
        used = await self._count("latest") > nonce  # first, so that what is in a block by now has a receipt below
        reverted = None
        for each in hashes:
            receipt = await self._chain.rpc.ask("eth_getTransactionReceipt", (hexadecimal(each),), self._read_receipt)
            if receipt is None:
                continue
            if (await self._chain.block(receipt.block)).hash != receipt.block_hash:
                raise unknown("the receipt is of a block that is not in the chain")
            buried = (await self._chain.block("latest")).number - receipt.block >= self._chain.depth
            if receipt.paid:
                return Outcome(State.CLAIMED, buried, each, receipt.claimed)
            reverted = Outcome(State.REVERTED, buried, each, receipt.claimed)
        if reverted is not None:
            return reverted
        if not used:
            return Outcome(State.PENDING)
        deep = max((await self._chain.block("latest")).number - self._chain.depth, 0)
        return Outcome(State.LOST, await self._count(hexadecimal(deep)) > nonce)

    def _read_receipt(self, value: object) -> _Receipt | None:
        if value is None:
            return None
        receipt = members(value)
        status = quantity(receipt.get("status"))
        logs = receipt.get("logs")
        if status not in (0, 1) or not isinstance(logs, list):
            raise ValueError("the receipt has no status, or no logs")
        claimed: dict[bytes, int] = {}
        for log in map(members, logs):
            topics = log.get("topics")
            if not isinstance(topics, list):
                raise ValueError("the log has no topics")
            words = [data(each, 32) for each in topics]
            ours = data(log.get("address"), 20) == self._chain.domain.contract
            if ours and len(words) == 3 and words[0] == abi.CHANNEL_CLAIMED:
                claimed[words[1]] = claimed.get(words[1], 0) + abi.read_number(data(log.get("data")))
        number, block_hash = quantity(receipt.get("blockNumber")), data(receipt.get("blockHash"), 32)
        return _Receipt(number, block_hash, status == 1, claimed)


def _read_count(value: object) -> int:
    count = quantity(value)
    if count > MOST_COUNT:
        raise ValueError("no wallet has sent so many transactions")
    return count


def _calldata(voucher: Voucher) -> bytes:
    return abi.claim(voucher.channel_id, voucher.amount, voucher.nonce, voucher.claimable)


def _dearer(fee: int) -> int:
    return fee + -(-fee // 8)
