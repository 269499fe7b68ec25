"""The operator's socket: a verb is asked of the daemon where one runs, and run on the file itself where none does.

While a daemon runs it is the only writer, so the command line asks it. The socket lies beside the database, for its
owner alone; a request is one line of JSON, `{"verb", "args"}`, and so is the answer, `{"answer"}` or `{"error"}`. What
verbs there are is not known here, so that a command which only asks is quick to start.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from goosestack.errors import Refusal
from goosestack.store.sqlite import InUse, Lock, refuse_if_exposed

Answer = Any
_MOST_LINE = 64 * 1024
_PATIENCE_S = 5.0

FIRST = "user_create"
"""The verb that makes a database where there is none."""

PAGE = 500
"""Rows of one answer: what lists goes on after the last of them, so that no answer holds up the daemon."""


class VerbError(Exception):
    """A verb could not be done; the text says why."""


class NotNow(VerbError):
    """It could not be done just now: what is in the way passes by itself."""


def socket_path(database: Path) -> Path:
    """The socket beside a database."""
    return database.with_name(database.name + ".sock")


def _reachable(path: Path) -> tuple[str, int | None]:
    """A name of the socket that is short enough for the kernel, and a descriptor to close after using it."""
    if len(os.fsencode(path)) < 100:
        return str(path), None
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{path.name}", folder


async def listen(run: Callable[[str, Mapping[str, Any]], Awaitable[Answer]], database: Path) -> asyncio.Server:
    """Take verbs at the database's socket, and run them, until the server is closed. The caller holds the database's
    lock."""
    socket_path(database).unlink(missing_ok=True)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            reply = await _reply(run, line)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    name, folder = _reachable(socket_path(database))
    try:
        server = await asyncio.start_unix_server(serve, name, limit=_MOST_LINE)
    finally:
        if folder is not None:
            os.close(folder)
    os.chmod(socket_path(database), 0o600)
    return server


async def _reply(run: Callable[[str, Mapping[str, Any]], Awaitable[Answer]], line: bytes) -> dict[str, Answer]:
    try:
        asked = json.loads(line)
        return {"answer": await run(asked["verb"], asked["args"])}
    except VerbError as error:
        return {"error": str(error), "passes": isinstance(error, NotNow)}
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"not a verb that can be run: {type(error).__name__}"}


def _refuse_unusable(database: Path, verb: str) -> None:
    if verb != FIRST and not database.exists():
        raise Refusal(f"there is no database at {database}")
    refuse_if_exposed(database)


async def call(database: Path, verb: str, args: Mapping[str, Any], on_file: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask the daemon where one runs, else wait for `on_file`, which is called under the database's lock. Raises
    VerbError, or Refusal where the database is out of reach.

    Only a first user makes a database: any other verb on a path without one was mistyped."""
    _refuse_unusable(database, verb)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            lock = Lock(database)
        except InUse as refusal:
            try:
                return await _ask_daemon(database, verb, args)
            except (OSError, asyncio.IncompleteReadError):
                if time.monotonic() > deadline:
                    raise refusal from None
                await asyncio.sleep(0.05)  # another command holds the file, or the daemon is just starting
        else:
            break
    try:
        return await on_file()
    finally:
        lock.release()


async def _ask_daemon(database: Path, verb: str, args: Mapping[str, Any]) -> Answer:
    asked = json.dumps({"verb": verb, "args": dict(args)}).encode() + b"\n"
    if len(asked) > _MOST_LINE:
        raise VerbError(f"what is asked is too long: at most {_MOST_LINE} bytes")
    name, folder = _reachable(socket_path(database))
    try:
        reader, writer = await asyncio.open_unix_connection(name)
    finally:
        if folder is not None:
            os.close(folder)
    try:
        writer.write(asked)
        await writer.drain()
        line = await reader.read()  # all there is: an answer may be longer than a line that a reader would take
    finally:
        writer.close()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    reply = json.loads(line)
    if "error" in reply:
        raise (NotNow if reply.get("passes") else VerbError)(reply["error"])
    return reply["answer"]
