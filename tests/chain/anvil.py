"""The same chain on Foundry's anvil, for who has it: another EVM, and a node with words of its own.

`ANVIL=/path/to/anvil scripts/test tests/test_drain_*.py` runs every test of the chain on it.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from aiohttp import ClientSession

from tests.chain.contracts import creation_code
from tests.chain.evm import Refused
from tests.chain.places import FEE_WALLET, OWNER, USDC, V1, V2

SOMEBODY = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
"""An account that anvil signs for."""


class Anvil:
    """A child process, asked over HTTP."""

    def __init__(self, http: ClientSession, child: asyncio.subprocess.Process, url: str) -> None:
        self._http = http
        self._child = child
        self._url = url
        self._ids = itertools.count(1)
        self._automine = True
        self._raw: dict[str, str] = {}

    @classmethod
    async def start(cls, http: ClientSession, program: str, chain_id: int, fee_bps: int) -> Anvil:
        """Start it with the contracts where Polygon has them."""
        args = ("--host", "127.0.0.1", "--port", "0", "--chain-id", str(chain_id))
        child = await asyncio.create_subprocess_exec(program, *args, stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        while not (line := (await child.stdout.readline()).decode()).startswith("Listening on"):
            assert line, "anvil has ended"
        asyncio.get_running_loop().create_task(child.stdout.read())
        anvil = cls(http, child, f"http://{line.split()[-1]}")
        await anvil._place(USDC, creation_code("usdc"))
        await anvil._place(V1, creation_code("v1", USDC, OWNER.address))
        await anvil._place(V2, creation_code("v2", USDC, OWNER.address, FEE_WALLET, fee_bps))
        return anvil

    def stop(self) -> None:
        """End it."""
        self._child.terminate()

    async def _place(self, address: bytes, creation: bytes) -> None:
        """Run a constructor at its address by a transaction, for its storage, then put there what it answers."""
        at = "0x" + address.hex()
        await self._ask("anvil_setCode", at, "0x" + creation.hex())
        await self._ask("eth_sendTransaction", {"from": SOMEBODY, "to": at})
        await self._ask("anvil_setCode", at, await self._ask("eth_call", {"to": at}, "latest"))

    async def _ask(self, method: str, *params: object) -> Any:
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        async with self._http.post(self._url, json=body) as response:
            answer = await response.json()
        if "error" in answer:
            error = answer["error"]
            data = error.get("data")
            raise Refused(error["message"], error["code"], None if data is None else bytes.fromhex(data[2:]))
        return answer["result"]

    async def answer(self, method: str, params: list[Any], *, behind: int, lose: bool) -> Any:
        """Anvil's own answer, but for the methods that tests have and anvil has not, or not alike."""
        if behind:
            head = int(await self._ask("eth_blockNumber"), 16) - behind
            if method == "eth_blockNumber":
                return hex(head)
            params = [hex(head) if each in ("latest", "pending") else each for each in params]
            if any(isinstance(each, str) and len(each) < 18 and int(each, 16) > head for each in params[-1:]):
                raise Refused("header not found")
        match method:
            case "evm_mine":
                return await self._ask("anvil_mine", *params)
            case "evm_setAutomine":
                self._automine = params[0]
            case "anvil_reorg":
                return await self._reorganise(*params)
            case "eth_sendRawTransaction":
                return await self._send(params[0], lose=lose)
        return await self._ask(method, *params)

    async def _send(self, raw: str, *, lose: bool) -> Any:
        if lose:
            await self._ask("evm_setAutomine", False)
        digest = await self._ask("eth_sendRawTransaction", raw)
        self._raw[digest] = raw
        if lose:
            await self._ask("anvil_dropTransaction", digest)
            await self._ask("evm_setAutomine", self._automine)
            return digest
        while self._automine and await self._ask("eth_getTransactionReceipt", digest) is None:
            await asyncio.sleep(0.001)
        return digest

    async def _reorganise(self, depth: int, keep: bool = True) -> None:
        head = int(await self._ask("eth_blockNumber"), 16)
        numbers = range(head - depth + 1, head + 1)
        undone = [await self._ask("eth_getBlockByNumber", hex(number), False) for number in numbers]
        await self._ask("evm_setAutomine", False)
        await self._ask("anvil_reorg", depth, [])
        for digest in [each for block in undone for each in block["transactions"] if keep]:
            await self._ask("eth_sendRawTransaction", self._raw[digest])
        await self._ask("evm_setAutomine", self._automine)
