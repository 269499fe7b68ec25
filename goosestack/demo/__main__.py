"""`python -m goosestack.demo`: the demo upstream as a program of its own, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal

from goosestack.demo.server import Log, make_app, start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m goosestack.demo", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--openai-key", required=True)
    parser.add_argument("--anthropic-key", required=True)
    parser.add_argument("--log", help="append every request and its end, as JSON lines")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between frames")
    asyncio.run(_serve(parser.parse_args()))


async def _serve(options: argparse.Namespace) -> None:
    app = make_app(
        openai_key=options.openai_key,
        anthropic_key=options.anthropic_key,
        log=_line_writer(options.log) if options.log else None,
        chunk_delay_s=options.delay,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, port = await start(app, options.host, options.port)
    print(f"listening on http://{options.host}:{port}", flush=True)
    await stop.wait()
    await runner.cleanup()


def _line_writer(path: str) -> Log:
    """Each event is one line and one write, so that a reader never waits for a buffer."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(event: dict[str, object]) -> None:
        os.write(file, json.dumps(event).encode() + b"\n")

    return write


if __name__ == "__main__":
    main()
