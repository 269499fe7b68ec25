"""What a test does with the chain: start it, act on it as Dave or Mallory, move it, and break its nodes."""

from __future__ import annotations

import itertools
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

from goosestack.drain import abi
from goosestack.drain.signing import Signer, checksum_address
from goosestack.drain.vouchers import Domain
from tests.chain.places import DAVE, PROVIDER, USDC, V2
from tests.world import Program, bare_environment

DOLLAR = 1_000_000
GWEI = 10**9
START_S = 120.0
"""It compiles its contracts first, which is a few seconds of CPU, whoever else wants it."""

OPEN = abi.selector("open(address,uint256,uint256)")
CLOSE = abi.selector("close(bytes32)")
COOPERATIVE_CLOSE = abi.selector("cooperativeClose(bytes32,uint256,bytes)")
APPROVE = abi.selector("approve(address,uint256)")
MINT = abi.selector("mint(address,uint256)")
BALANCE_OF = abi.selector("balanceOf(address)")


class Failed(Exception):
    """A transaction that is in a block and did nothing, or an error of the node."""


class LocalChain:
    """The running program. Its nodes are `url("a")`, `url("b")` and so on, all of one chain."""

    def __init__(self, folder: Path, *, chain_id: int = 137, fee_bps: int = 200) -> None:
        self.chain_id = chain_id
        args = ["tests.chain", "--chain-id", str(chain_id), "--fee-bps", str(fee_bps)]
        args += ["--anvil", os.environ["ANVIL"]] if "ANVIL" in os.environ else []
        # the EVM's own libraries may warn of what they like
        env = bare_environment() | {"PYTHONWARNINGS": "default"}
        self.program = Program(args, env, folder / "chain.out", folder)
        self.base = self.program.wait_for(r"listening on (\S+)", START_S).group(1)
        self._ids = itertools.count(1)

    def close(self) -> None:
        self.program.stop()

    def url(self, node: str = "a") -> str:
        return f"{self.base}/{node}"

    def rpc(self, method: str, *params: object) -> Any:
        """Ask a node that nobody breaks."""
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        request = urllib.request.Request(self.url("tests"), json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["result"]

    # --- the chain --------------------------------------------------------------------------------------------

    def mine(self, count: int = 1) -> None:
        """Add blocks."""
        self.rpc("evm_mine", hex(count))

    def pass_time(self, seconds: int) -> None:
        """Let time pass on the chain alone; a block says so."""
        self.rpc("evm_increaseTime", seconds)
        self.mine()

    def automine(self, on: bool) -> None:
        """Whether a block comes with each transaction."""
        self.rpc("evm_setAutomine", on)

    def reorganise(self, depth: int, *, keep: bool = True) -> None:
        """Other blocks in place of the last ones; what was in them waits again, or is gone."""
        self.rpc("anvil_reorg", depth, keep)

    def forget_waiting(self) -> None:
        """Every waiting transaction is dropped."""
        self.rpc("anvil_dropAllTransactions")

    def time(self) -> int:
        """The latest block's, in Unix seconds."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    # --- the nodes --------------------------------------------------------------------------------------------

    def fault(self, do: str, value: object = None, *, node: str | None = "a", **rule: object) -> None:
        """Break a node, or with None all of them, as `faults` says; see there."""
        where = {} if node is None else {"node": f"/{node}"}
        self.rpc("test_fault", {"do": do, "value": value, **where, **rule})

    def heal(self) -> None:
        """End all faults."""
        self.rpc("test_heal")

    def asked(self, node: str = "a") -> list[str]:
        """The methods that a node was asked for, in order."""
        return [method for where, method in self.rpc("test_asked") if where == f"/{node}"]

    # --- people -----------------------------------------------------------------------------------------------

    def act(self, who: Signer, to: bytes, calldata: bytes) -> dict[str, Any]:
        """Send a transaction as somebody, and see it into a block; its receipt. Raises Failed."""
        digest = self.send(who, to, calldata)
        receipt = self.rpc("eth_getTransactionReceipt", digest)
        if receipt is None:
            self.mine()
            receipt = self.rpc("eth_getTransactionReceipt", digest)
        if receipt["status"] != "0x1":
            raise Failed("the transaction reverted")
        return dict(receipt)

    def send(self, who: Signer, to: bytes, calldata: bytes, *, value: int = 0) -> str:
        """Send a transaction as somebody, with so many wei; its hash."""
        nonce = int(self.rpc("eth_getTransactionCount", checksum_address(who.address), "pending"), 16)
        fees = {"gas": 400_000, "max_fee": 50 * GWEI, "tip": GWEI}
        raw, _ = who.sign_transaction(chain_id=self.chain_id, nonce=nonce, to=to, data=calldata, value=value, **fees)
        return str(self.rpc("eth_sendRawTransaction", "0x" + raw.hex()))

    def ask(self, to: bytes, calldata: bytes, who: Signer = DAVE) -> bytes:
        """Call a contract as somebody, without a transaction. Raises Failed."""
        call = {"from": checksum_address(who.address), "to": checksum_address(to), "data": "0x" + calldata.hex()}
        return bytes.fromhex(self.rpc("eth_call", call, "latest")[2:])

    def open(
        self,
        deposit: int = 10 * DOLLAR,
        duration: int = 86_400,
        *,
        consumer: Signer = DAVE,
        provider: bytes = PROVIDER.address,
        contract: bytes = V2,
    ) -> bytes:
        """A channel of Dave's with us; its id. The money comes from nowhere."""
        self.act(consumer, USDC, abi.call(MINT, consumer.address, deposit))
        self.act(consumer, USDC, abi.call(APPROVE, contract, deposit))
        receipt = self.act(consumer, contract, abi.call(OPEN, provider, deposit, duration))
        (opened,) = (log for log in receipt["logs"] if log["address"] == "0x" + contract.hex())
        return bytes.fromhex(opened["topics"][1][2:])

    def close_channel(self, channel_id: bytes, *, consumer: Signer = DAVE, contract: bytes = V2) -> None:
        """Take back what is not claimed, after the expiry."""
        self.act(consumer, contract, abi.call(CLOSE, channel_id))

    def cooperative_close(self, channel_id: bytes, amount: int, signature: bytes, *, consumer: Signer = DAVE) -> None:
        """Close at once, with the provider's signature."""
        padded = signature.ljust(-(-len(signature) // abi.WORD) * abi.WORD, b"\0")
        words = abi.call(COOPERATIVE_CLOSE, channel_id, amount, 3 * abi.WORD, len(signature))
        self.act(consumer, V2, words + padded)

    def claimed(self, channel_id: bytes, contract: bytes = V2) -> int:
        """What the contract has paid out of a channel."""
        channel = abi.read_channel(channel_id, self.ask(contract, abi.call(abi.GET_CHANNEL, channel_id)))
        assert channel is not None
        return channel.claimed

    def dollars(self, who: bytes) -> int:
        """Somebody's USDC, in millionths."""
        return abi.read_number(self.ask(USDC, abi.call(BALANCE_OF, who)))


def voucher_header(
    channel_id: bytes, amount: int, nonce: int, *, domain: Domain | None = None, signer: Signer = DAVE
) -> str:
    """The value of X-DRAIN-Voucher as a client makes it."""
    domain = Domain(137, V2) if domain is None else domain
    signature = signer.sign(domain.voucher_digest(channel_id, amount, nonce))
    members = {"channelId": "0x" + channel_id.hex(), "amount": str(amount), "nonce": str(nonce)}
    return json.dumps({**members, "signature": "0x" + signature.hex()})
