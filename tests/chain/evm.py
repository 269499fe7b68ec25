"""A small Ethereum chain in memory: py-evm runs the contracts, and this decides which blocks there are.

It mines when a transaction arrives or when it is told to, moves its clock when it is told to, and can take back its
last blocks. Not in it: consensus, peers, and all that a claim never meets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eth.abc import BlockHeaderAPI, ReceiptAPI, SignedTransactionAPI, StateAPI
from eth.chains.base import MiningChain
from eth.constants import POST_MERGE_DIFFICULTY, POST_MERGE_NONCE
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert
from eth.vm.chain_context import ChainContext
from eth.vm.forks.shanghai import ShanghaiVM
from eth.vm.message import Message
from eth.vm.transaction_context import BaseTransactionContext

GAS_LIMIT = 30_000_000
GWEI = 10**9


class Refused(Exception):
    """What a node would answer as an error: JSON-RPC's code, a message, and a contract's data where it reverted."""

    def __init__(self, message: str, code: int = -32000, data: bytes | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


@dataclass(frozen=True)
class Mined:
    """A block of the chain, with what happened in it."""

    header: BlockHeaderAPI
    transactions: tuple[SignedTransactionAPI, ...] = ()
    receipts: tuple[ReceiptAPI, ...] = ()


def _address(value: bytes) -> Any:
    """py-evm's own type of address is bytes by another name."""
    return value


NOBODY = _address(b"\0" * 20)
CREATE = _address(b"")


class Evm:
    """The chain, its waiting transactions and its clock."""

    def __init__(
        self, chain_id: int, rich: Sequence[bytes] = (), clock: Callable[[], float] = time.time, base_fee: int = GWEI
    ) -> None:
        self.chain_id = chain_id
        self.clock = clock
        self.ahead_s = 0
        self.automine = True
        self.waiting: dict[bytes, SignedTransactionAPI] = {}
        self._marks = 0
        kind: Any = MiningChain.configure("Local", chain_id=chain_id, vm_configuration=((0, ShanghaiVM),))
        self._db = AtomicDB()
        balances = {address: {"balance": 10**22, "nonce": 0, "code": b"", "storage": {}} for address in rich}
        self._genesis = {
            "difficulty": POST_MERGE_DIFFICULTY,
            "nonce": POST_MERGE_NONCE,
            "gas_limit": GAS_LIMIT,
            "base_fee_per_gas": base_fee,
            "timestamp": int(clock()) - 60,
        }
        self._chain: MiningChain = kind.from_genesis(self._db, self._genesis, balances)
        self.blocks = [Mined(self._chain.get_canonical_head())]

    # --- before the first block -------------------------------------------------------------------------------

    def place(self, address: bytes, creation: bytes) -> None:
        """Have a contract at an address of one's choice from the beginning, by running its constructor there."""
        assert len(self.blocks) == 1, "only before the first block"
        state = self.state()
        message = Message(GAS_LIMIT, CREATE, NOBODY, 0, creation, creation, create_address=_address(address))
        done = state.computation_class.apply_create_message(state, message, BaseTransactionContext(0, NOBODY))
        assert not done.is_error, done.error
        state.persist()
        genesis = ShanghaiVM.create_genesis_header(**self._genesis, state_root=state.state_root)
        self._chain.chaindb.persist_header(genesis)
        self.blocks = [Mined(genesis)]

    # --- blocks -----------------------------------------------------------------------------------------------

    @property
    def head(self) -> Mined:
        """The latest block."""
        return self.blocks[-1]

    def mine(self, count: int = 1) -> None:
        """Add blocks; the first takes every waiting transaction that can be had."""
        for _ in range(count):
            now = int(self.clock()) + self.ahead_s
            self._marks += 1
            header = self._chain.create_header_from_parent(
                self.head.header,
                timestamp=max(now, self.head.header.timestamp + 1),
                gas_limit=GAS_LIMIT,  # which would shrink with every empty block
                extra_data=self._marks.to_bytes(8, "big"),
            )
            chosen = self._choose(header)
            self._chain.header = header
            done, receipts, _ = self._chain.mine_all(chosen)
            self.blocks.append(Mined(done.imported_block.header, tuple(chosen), receipts))
            for each in chosen:
                del self.waiting[each.hash]

    def _choose(self, header: BlockHeaderAPI) -> list[SignedTransactionAPI]:
        """The waiting transactions that fit on the head, by nonce, with fees that cover the base fee."""
        nonces: dict[bytes, int] = {}
        chosen = []
        for each in sorted(self.waiting.values(), key=lambda tx: tx.nonce):
            expected = nonces.setdefault(each.sender, self.nonce(each.sender))
            if each.nonce < expected:
                del self.waiting[each.hash]
            elif each.nonce == expected and each.max_fee_per_gas >= (header.base_fee_per_gas or 0):
                chosen.append(each)
                nonces[each.sender] += 1
        return chosen

    def reorganise(self, depth: int, *, keep: bool = True) -> None:
        """Take back the last blocks and put as many others in their place; what was in them waits again, or is gone."""
        assert 0 < depth < len(self.blocks), "that far back there is no block"
        undone = self.blocks[-depth:]
        del self.blocks[-depth:]
        if keep:
            self.waiting |= {each.hash: each for block in undone for each in block.transactions}
        held, self.waiting = self.waiting, {}
        self.mine(depth)
        self.waiting = held

    # --- transactions -----------------------------------------------------------------------------------------

    def send(self, raw: bytes) -> bytes:
        """Take a signed transaction; its hash. Raises Refused, in the words of the usual nodes."""
        builder = self._chain.get_vm().get_transaction_builder()
        try:
            transaction = builder.decode(raw)
            transaction.validate()
            sender = transaction.sender
        except Exception as error:
            raise Refused(f"invalid transaction: {error}") from None
        if transaction.hash in self.waiting:
            raise Refused("already known")
        if transaction.chain_id != self.chain_id:
            raise Refused("invalid chain id for signer")
        if transaction.nonce < self.nonce(sender):
            raise Refused("nonce too low")
        if self.balance(sender) < transaction.gas * transaction.max_fee_per_gas + transaction.value:
            raise Refused("insufficient funds for gas * price + value")
        for other in list(self.waiting.values()):
            if (other.sender, other.nonce) == (sender, transaction.nonce):
                needed = (other.max_fee_per_gas * 11, other.max_priority_fee_per_gas * 11)
                offered = (transaction.max_fee_per_gas * 10, transaction.max_priority_fee_per_gas * 10)
                if offered[0] < needed[0] or offered[1] < needed[1]:
                    raise Refused("replacement transaction underpriced")
                del self.waiting[other.hash]
        self.waiting[transaction.hash] = transaction
        if self.automine:
            self.mine()
        return bytes(transaction.hash)

    def found(self, digest: bytes) -> tuple[Mined, int] | None:
        """The block that a transaction is in, and its place there."""
        for block in self.blocks:
            for place, each in enumerate(block.transactions):
                if each.hash == digest:
                    return block, place
        return None

    # --- state ------------------------------------------------------------------------------------------------

    def state(self, block: Mined | None = None) -> StateAPI:
        """The state after a block; whatever is done with it is forgotten."""
        header = (self.head if block is None else block).header
        return ShanghaiVM.build_state(self._db, header, ChainContext(self.chain_id))

    def nonce(self, address: bytes, block: Mined | None = None, *, waiting: bool = False) -> int:
        """How many transactions an address has had; with those that wait without a gap, where these are asked for."""
        count = self.state(block).get_nonce(_address(address))
        taken = {each.nonce for each in self.waiting.values() if each.sender == address} if waiting else set()
        while count in taken:
            count += 1
        return count

    def balance(self, address: bytes, block: Mined | None = None) -> int:
        """Wei."""
        return self.state(block).get_balance(_address(address))

    def code(self, address: bytes, block: Mined | None = None) -> bytes:
        """What runs at an address."""
        return self.state(block).get_code(_address(address))

    def call(self, sender: bytes, to: bytes, data: bytes, block: Mined | None = None) -> tuple[bytes, int]:
        """The answer of a contract, and the gas that a transaction would have used. Raises Refused on a revert."""
        state = self.state(block)
        message = Message(GAS_LIMIT, _address(to), _address(sender), 0, data, state.get_code(_address(to)))
        context = BaseTransactionContext(0, _address(sender))
        done = state.computation_class.apply_message(state, message, context)
        if done.is_error and isinstance(done.error, Revert):
            raise Refused("execution reverted", 3, done.output)
        if done.is_error:
            raise Refused(str(done.error) or type(done.error).__name__)
        used = 21_000 + sum(16 if byte else 4 for byte in data) + done.get_gas_used()
        return done.output, used * 21 // 20
