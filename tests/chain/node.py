"""JSON-RPC for the tests' chain, as far as GooseStack and its tests speak it.

Tests steer the chain with further methods, named as anvil names those of the same effect: evm_mine, evm_increaseTime,
evm_setAutomine, anvil_reorg, anvil_dropAllTransactions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.chain.evm import GWEI, Evm, Mined, Refused

ZERO = "0x" + "00" * 20


def raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def shown(value: int | bytes) -> str:
    return hex(value) if isinstance(value, int) else "0x" + value.hex()


class Node:
    """Answers questions about one chain."""

    def __init__(self, evm: Evm) -> None:
        self.evm = evm
        self.behind = 0
        self.methods: dict[str, Callable[..., Any]] = {
            "eth_chainId": lambda: shown(evm.chain_id),
            "net_version": lambda: str(evm.chain_id),
            "eth_blockNumber": lambda: shown(self.at("latest").header.block_number),
            "eth_getBlockByNumber": self.block,
            "eth_getBlockByHash": self.block_by_hash,
            "eth_getBalance": lambda who, at="latest": shown(evm.balance(raw(who), self.at(at))),
            "eth_getCode": lambda who, at="latest": shown(evm.code(raw(who), self.at(at))),
            "eth_getTransactionCount": self.count,
            "eth_call": lambda tx, at="latest": shown(self.call(tx, at)[0]),
            "eth_estimateGas": lambda tx, at="latest": shown(self.call(tx, at)[1]),
            "eth_gasPrice": lambda: shown((evm.head.header.base_fee_per_gas or 0) + GWEI),
            "eth_maxPriorityFeePerGas": lambda: shown(GWEI),
            "eth_feeHistory": self.fee_history,
            "eth_sendRawTransaction": lambda signed: shown(evm.send(raw(signed))),
            "eth_getTransactionByHash": self.transaction,
            "eth_getTransactionReceipt": self.receipt,
            "eth_getLogs": self.logs,
            "evm_mine": lambda count="0x1": evm.mine(int(count, 16)),
            "evm_increaseTime": self.increase_time,
            "evm_setAutomine": lambda on: setattr(evm, "automine", on),
            "anvil_reorg": lambda depth, keep=True: evm.reorganise(depth, keep=keep),
            "anvil_dropAllTransactions": lambda: evm.waiting.clear(),
        }

    # --- the questions ----------------------------------------------------------------------------------------

    def at(self, which: str) -> Mined:
        """A block as JSON-RPC names it: in the past of a node that is behind, nothing is later."""
        blocks = self.evm.blocks[: len(self.evm.blocks) - self.behind] or self.evm.blocks[:1]
        named = {"latest": -1, "pending": -1, "safe": -1, "finalized": -1, "earliest": 0}
        number = named.get(which) if which in named else int(which, 16)
        assert number is not None
        if number >= len(blocks):
            raise Refused("header not found")
        return blocks[number]

    def block(self, which: str, full: bool = False) -> dict[str, Any] | None:
        try:
            return _block(self.at(which))
        except Refused:
            return None

    def block_by_hash(self, digest: str, full: bool = False) -> dict[str, Any] | None:
        return next((_block(each) for each in self.evm.blocks if each.header.hash == raw(digest)), None)

    def count(self, who: str, which: str = "latest") -> str:
        return shown(self.evm.nonce(raw(who), self.at(which), waiting=which == "pending"))

    def call(self, tx: dict[str, str], which: str) -> tuple[bytes, int]:
        data = raw(tx.get("data", tx.get("input", "0x")))
        return self.evm.call(raw(tx.get("from", ZERO)), raw(tx["to"]), data, self.at(which))

    def fee_history(self, count: str, newest: str, percentiles: list[float] | None = None) -> dict[str, Any]:
        last = self.at(newest)
        blocks = [each for each in self.evm.blocks if each.header.block_number <= last.header.block_number]
        blocks = blocks[-int(count, 16) :]
        fees = [shown(each.header.base_fee_per_gas or 0) for each in blocks]
        return {
            "oldestBlock": shown(blocks[0].header.block_number),
            "baseFeePerGas": [*fees, fees[-1]],
            "gasUsedRatio": [each.header.gas_used / each.header.gas_limit for each in blocks],
            "reward": [[shown(GWEI)] * len(percentiles or []) for _ in blocks],
        }

    def transaction(self, digest: str) -> dict[str, Any] | None:
        waiting = self.evm.waiting.get(raw(digest))
        if waiting is not None:
            return {"hash": digest, "nonce": shown(waiting.nonce), "blockNumber": None, "blockHash": None}
        found = self.evm.found(raw(digest))
        if found is None:
            return None
        block, place = found
        nonce, number = block.transactions[place].nonce, block.header.block_number
        return {
            "hash": digest,
            "nonce": shown(nonce),
            "blockNumber": shown(number),
            "blockHash": shown(block.header.hash),
        }

    def receipt(self, digest: str) -> dict[str, Any] | None:
        found = self.evm.found(raw(digest))
        if found is None or found[0].header.block_number > self.at("latest").header.block_number:
            return None
        block, place = found
        receipt, sent = block.receipts[place], block.transactions[place]
        before = block.receipts[place - 1].gas_used if place else 0
        return {
            "transactionHash": digest,
            "transactionIndex": shown(place),
            "blockNumber": shown(block.header.block_number),
            "blockHash": shown(block.header.hash),
            "from": shown(sent.sender),
            "to": shown(sent.to) if sent.to else None,
            "gasUsed": shown(receipt.gas_used - before),
            "cumulativeGasUsed": shown(receipt.gas_used),
            "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
            "type": "0x2",
            "logs": _logs(block, place),
        }

    def logs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        first = self.at(wanted.get("fromBlock", "latest")).header.block_number
        last = self.at(wanted.get("toBlock", "latest")).header.block_number
        found = []
        for block in self.evm.blocks[first : last + 1]:
            for place in range(len(block.transactions)):
                found += [log for log in _logs(block, place) if _wanted(log, wanted)]
        return found

    def increase_time(self, seconds: int) -> str:
        """From the latest block on, which is ahead of the clock where blocks came quickly."""
        head = self.evm.head.header.timestamp - int(self.evm.clock())
        self.evm.ahead_s = max(self.evm.ahead_s, head) + seconds
        return shown(self.evm.ahead_s)

    async def answer(self, method: str, params: list[Any], *, behind: int, lose: bool) -> Any:
        """The result of a method: as of so many blocks ago, or without keeping the transaction. Raises Refused."""
        if method not in self.methods:
            raise Refused(f"the method {method} does not exist", -32601)
        self.behind = behind
        if not lose:
            return self.methods[method](*params)
        automine, self.evm.automine = self.evm.automine, False
        digest = self.methods[method](*params)
        self.evm.automine = automine
        del self.evm.waiting[raw(digest)]
        return digest

    def stop(self) -> None:
        """There is nothing to end."""


def _block(block: Mined) -> dict[str, Any]:
    header = block.header
    return {
        "number": shown(header.block_number),
        "hash": shown(header.hash),
        "parentHash": shown(header.parent_hash),
        "timestamp": shown(header.timestamp),
        "baseFeePerGas": shown(header.base_fee_per_gas or 0),
        "gasLimit": shown(header.gas_limit),
        "gasUsed": shown(header.gas_used),
        "transactions": [shown(each.hash) for each in block.transactions],
    }


def _logs(block: Mined, place: int) -> list[dict[str, Any]]:
    return [
        {
            "address": shown(log.address),
            "topics": [shown(topic.to_bytes(32, "big")) for topic in log.topics],
            "data": shown(log.data),
            "blockNumber": shown(block.header.block_number),
            "blockHash": shown(block.header.hash),
            "transactionHash": shown(block.transactions[place].hash),
            "transactionIndex": shown(place),
            "logIndex": shown(number),
            "removed": False,
        }
        for number, log in enumerate(block.receipts[place].logs)
    ]


def _wanted(log: dict[str, Any], wanted: dict[str, Any]) -> bool:
    address = wanted.get("address")
    if address is not None and log["address"] != address.lower():
        return False
    topics = wanted.get("topics", [])
    fits = zip(topics, log["topics"], strict=False)
    return len(topics) <= len(log["topics"]) and all(topic in (None, has) for topic, has in fits)
