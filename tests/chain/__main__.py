"""python -m tests.chain [--port N] [--chain-id N] [--fee-bps N] [--anvil PROGRAM]: serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import signal

from aiohttp import ClientSession, web

from tests.chain.anvil import Anvil
from tests.chain.contracts import creation_code
from tests.chain.evm import Evm
from tests.chain.faults import Door
from tests.chain.node import Node
from tests.chain.places import CAST, FEE_WALLET, OWNER, USDC, V1, V2


def build(chain_id: int, fee_bps: int) -> Evm:
    """A chain with the token and both contracts at the addresses that they have on Polygon, and a cast with money."""
    evm = Evm(chain_id, [each.address for each in CAST])
    evm.place(USDC, creation_code("usdc"))
    evm.place(V1, creation_code("v1", USDC, OWNER.address))
    evm.place(V2, creation_code("v2", USDC, OWNER.address, FEE_WALLET, fee_bps))
    return evm


async def main() -> None:
    """Serve one chain."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--chain-id", type=int, default=137)
    options.add_argument("--fee-bps", type=int, default=200)
    options.add_argument("--anvil", help="another EVM than our own")
    given = options.parse_args()
    async with ClientSession() as http:
        backend = (
            await Anvil.start(http, given.anvil, given.chain_id, given.fee_bps)
            if given.anvil
            else Node(build(given.chain_id, given.fee_bps))
        )
        try:
            await serve(Door(backend), given.port)
        finally:
            backend.stop()


async def serve(door: Door, port: int) -> None:
    """Serve until a signal."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/{node:.*}", door.serve)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
