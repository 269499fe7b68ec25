"""The log: every line whole, and nobody waits for whoever reads it. What finds no room is counted, and the log says so
as soon as it can.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from goosestack.logs import EXIT_S, Log, ThreadedWriter, Writer
from tests.world import World, readable

AT = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read and where to write, with room for a page."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    yield reads, writes
    os.close(reads)
    os.close(writes)


def read(reads: int, count: int) -> list[dict[str, Any]]:
    """So many lines from a pipe, of which each must be whole."""
    text = b""
    while text.count(b"\n") < count:
        assert readable(reads, 20), text[-200:]
        text += os.read(reads, 1000)
    return [json.loads(line) for line in text.splitlines()]


def fill(writes: int) -> int:
    """Write lines until a pipe has no room for another byte; how many."""
    line, count = b'{"event":"any"}\n', 0  # 16 bytes, of which any pipe holds a whole number
    os.set_blocking(writes, False)
    try:
        while True:
            assert os.write(writes, line) == len(line)
            count += 1
    except BlockingIOError:
        os.set_blocking(writes, True)
        return count


@pytest.mark.parametrize("blocking", [True, False])
def test_a_command_writes_every_line_whole_however_little_is_taken_at_once(
    pipe: tuple[int, int], blocking: bool
) -> None:
    reads, writes = pipe
    os.set_blocking(writes, blocking)
    found: list[dict[str, Any]] = []
    reader = Thread(target=lambda: found.extend(read(reads, 200)))
    reader.start()
    log = Log("info", Writer(writes))
    for number in range(200):
        log.info("counted", AT, number=number, more="x" * 250)
    reader.join(30)
    assert [line["number"] for line in found] == list(range(200))
    assert log.lost == 0


def test_what_finds_no_room_is_counted_and_the_rest_is_written_whole_once_it_is_read(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    filled = fill(writes)
    log = Log("info", ThreadedWriter(writes, most=10))
    for number in range(25):
        log.info("counted", AT, number=number)
    assert log.lost == 15
    ending = Thread(target=log.close)
    ending.start()
    lines = read(reads, filled + 10)[filled:]
    ending.join(30)
    assert [line["number"] for line in lines] == list(range(10))
    log.info("counted", AT, number=25)
    assert log.lost == 16  # after its end


def test_lines_that_cannot_be_written_are_counted(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    log = Log("info", Writer(writes))
    log.info("counted", AT)
    os.close(writes)
    assert log.lost == 1


def test_lines_of_one_turn_are_handed_over_together(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    turns: list[Any] = []
    log = Log("info", Writer(writes), turns.append)
    for number in range(3):
        log.info("counted", AT, number=number)
    assert turns == [log.flush] and not readable(reads, 0)
    turns.pop()()
    assert [line["number"] for line in read(reads, 3)] == [0, 1, 2]


# --- a daemon whose log nobody reads --------------------------------------------------------------------------


@pytest.fixture
def unread(world: World, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], HTTPConnection]]:
    """A daemon that writes to a pipe, of which only the first lines were read, and a connection to it."""
    env = {**world.daemon.env, "DB_PATH": str(folder / "goosestack.db")}
    command = [sys.executable, "-m", "goosestack", "serve"]
    with subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout is not None
            match = None
            while match is None:
                match = re.search(rb'"event":"listening".*"port":(\d+)', daemon.stdout.readline())
            connection = HTTPConnection("127.0.0.1", int(match.group(1)), timeout=10)
            yield daemon, connection
            connection.close()
        finally:
            daemon.kill()


def test_a_log_that_nobody_reads_stops_neither_the_daemon_nor_its_end(
    unread: tuple[subprocess.Popen[bytes], HTTPConnection],
) -> None:
    daemon, connection = unread
    for _ in range(1000):  # a pipe has room for the lines of some 400
        connection.request("GET", "/health")
        assert connection.getresponse().read()
    connection.close()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(EXIT_S + 15) == 0
    assert daemon.stdout is not None
    *lines, _ = daemon.stdout.read().splitlines()  # the last one may be cut: nobody read it in time
    assert len(lines) > 100
    assert {json.loads(line)["event"] for line in lines} == {"answer"}


def test_what_is_still_to_be_written_at_the_end_is_written_if_it_is_read(
    unread: tuple[subprocess.Popen[bytes], HTTPConnection],
) -> None:
    daemon, connection = unread
    for _ in range(1000):
        connection.request("GET", "/health")
        connection.getresponse().read()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.stdout is not None
    lines = daemon.stdout.read().splitlines()
    assert daemon.wait(20) == 0
    assert [json.loads(line)["event"] for line in lines].count("answer") == 1000
