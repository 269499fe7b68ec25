"""The processes of a run: started on a core, measured, and ended by id."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


def inherited() -> dict[str, str]:
    """The part of our environment that the processes get: no setting of anyone's leaks in."""
    return {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}


def cores() -> tuple[int, int]:
    """The core of the gateway, and that of the load generator and the upstream."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """User and system time that a process has used in all its threads, in seconds."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB of 1,048,576 bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def healthy(port: int) -> bool:
    """Whether GET /health answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


@dataclass
class Processes:
    """What this run started, all with one working directory and a log file each."""

    work: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str], core: int, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts a command on a core, in a session of its own, its output in NAME.log."""
        with (self.work / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                cwd=self.work,
                env={**inherited(), **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def serve(
        self, name: str, command: Sequence[str], core: int, port: int, env: Mapping[str, str]
    ) -> tuple[int, float]:
        """Starts a server; its process id, and the seconds until /health answered."""
        began = time.monotonic()
        process = self.start(name, command, core, env)
        while not healthy(port):
            if process.poll() is not None or time.monotonic() - began > 30:
                log = (self.work / f"{name}.log").read_text(errors="replace")
                raise SystemExit(f"{name} did not start:\n{log[-4000:]}")
            time.sleep(0.005)
        return process.pid, time.monotonic() - began

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        """Waits for a command that ends by itself; its exit status."""
        status = process.wait()
        self.running.remove(process)
        return status

    def stop(self, pid: int) -> None:
        """Asks a process of ours to end, waits for it, and kills it after 30 seconds."""
        for process in [p for p in self.running if p.pid == pid]:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.running.remove(process)

    def stop_all(self) -> None:
        """Ends whatever still runs, the newest first."""
        for process in reversed(self.running.copy()):
            self.stop(process.pid)


@contextlib.contextmanager
def processes(directory: Path) -> Iterator[Processes]:
    """A new directory and the processes in it; both are gone at the end, after Ctrl-C too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    ours = Processes(Path(tempfile.mkdtemp(prefix="goosestack-bench-", dir=directory)))
    try:
        yield ours
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave orphans
        ours.stop_all()
        shutil.rmtree(ours.work, ignore_errors=True)
