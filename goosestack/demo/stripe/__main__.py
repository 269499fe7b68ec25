"""`python -m goosestack.demo.stripe`: the fake Stripe as a program of its own, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal

from goosestack.demo.stripe.server import start
from goosestack.demo.stripe.till import Till


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(prog="python -m goosestack.demo.stripe", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--public-url", help="where a browser finds it, if not at host and port")
    parser.add_argument("--key", help="the one secret key that is taken; any sk_test_ without it")
    parser.add_argument("--webhook", help="where events are sent")
    parser.add_argument("--secret", help="what they are signed with, whsec_…")
    options = parser.parse_args()
    if options.webhook and not options.secret:
        parser.error("--webhook needs a --secret")
    asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    till = Till(secret_key=options.key, webhook_url=options.webhook, webhook_secret=options.secret or "")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, port = await start(till, options.host, options.port, options.public_url)
    print(f"listening on http://{options.host}:{port}", flush=True)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    main()
