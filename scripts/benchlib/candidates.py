"""The ways to the upstream: direct, nginx, bare, and GooseStack as it is really run."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchlib import bare
from benchlib.processes import Processes, cores, free_port, inherited, rss_mb
from benchlib.workload import CHUNKS, nginx_config

NAMES = ("direct", "nginx", "bare", "goosestack")
GOOSESTACK = Path(sys.executable).parent / "goosestack"
PROOFS = 20  # requests sent one by one before any load


@dataclass
class Candidate:
    """One way to the upstream for one kind of request, and what is known of it so far."""

    name: str
    url: str  # of the chat endpoint
    pid: int = 0  # whose CPU and memory count; 0 = nobody's
    key: str = "sk-bench"
    env: dict[str, str] = field(default_factory=dict)  # GooseStack's, for its CLI
    starts_s: list[float] = field(default_factory=list)
    idle_mb: float = 0.0
    answers: int = 0  # complete and below 400
    cut: int = 0  # at most so many more were under way when a load ended


def installed(name: str) -> bool:
    """Whether a candidate can be started here."""
    return name != "goosestack" or GOOSESTACK.exists()


def start_upstream(ours: Processes) -> str:
    """Starts the canned upstream; its URL, below which each kind has its own path."""
    port = free_port()
    config = nginx_config(ours.work, "upstream", port)
    ours.serve("upstream", ["nginx", "-c", str(config)], cores()[1], port, {})
    return f"http://127.0.0.1:{port}"


def start(ours: Processes, name: str, kind: str, base: str, starts: int = 1) -> Candidate:
    """Starts a candidate before an upstream's base URL, as often as asked, and leaves it up."""
    path = "/chat/completions"
    if name == "direct":
        return Candidate(name, base + path)
    port, label = free_port(), f"{name}-{kind}-{len(list(ours.work.iterdir()))}"
    candidate = Candidate(name, f"http://127.0.0.1:{port}/v1{path}")
    if name == "nginx":
        upstream = urlsplit(base)
        command = ["nginx", "-c", str(nginx_config(ours.work, label, port, upstream.port))]
        candidate.url = f"http://127.0.0.1:{port}{upstream.path}{path}"
    elif name == "bare":
        command = [sys.executable, bare.__file__, str(port), base]
    else:
        command = [str(GOOSESTACK), "serve"]
        prepare_goosestack(candidate, ours.work / label, port, base)
    for left in reversed(range(starts)):
        candidate.pid, took_s = ours.serve(label, command, cores()[0], port, candidate.env)
        candidate.starts_s.append(took_s)
        if left:
            ours.stop(candidate.pid)
    time.sleep(0.5)
    candidate.idle_mb = rss_mb(candidate.pid)
    return candidate


def prepare_goosestack(candidate: Candidate, home: Path, port: int, base: str) -> None:
    """A new database with one customer, her key and more credit than any run can spend."""
    home.mkdir()
    candidate.env = {
        "DB_PATH": str(home / "goosestack.db"),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "OPENAI_API_KEY": "sk-bench",
        "OPENAI_BASE_URL": base,
        "RATE_LIMIT_MAX_REQUESTS": "1000000000",
    }
    user = json.loads(goosestack(candidate, "user", "create", "bench@example.com", "--json"))["id"]
    candidate.key = json.loads(goosestack(candidate, "key", "create", user, "--json"))["api_key"]
    goosestack(candidate, "credit", "grant", user, "10000000", "--json")


def goosestack(candidate: Candidate, *arguments: str) -> str:
    """Runs a command of GooseStack's CLI on a candidate's database; what it printed."""
    env = inherited() | candidate.env
    command = [str(GOOSESTACK), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"goosestack {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def prove(candidate: Candidate, request: bytes, kind: str) -> None:
    """Sends a few requests one by one and reads their answers: nobody is timed who is wrong."""
    target = urlsplit(candidate.url)
    connection = http.client.HTTPConnection("127.0.0.1", target.port or 80, timeout=10)
    headers = {"Authorization": f"Bearer {candidate.key}", "Content-Type": "application/json"}
    with contextlib.closing(connection):
        for _ in range(PROOFS):
            connection.request("POST", target.path, request, headers)
            answer = connection.getresponse()
            body = answer.read()
            whole = body.endswith(b"data: [DONE]\n\n") and body.count(b"data: {") >= CHUNKS - 1
            if answer.status != 200 or not (whole if kind == "stream" else b'"usage"' in body):
                raise SystemExit(f"{candidate.name} ({kind}): {answer.status} {body[:500]!r}")
            candidate.answers += 1


def audit(candidate: Candidate) -> bool:
    """Prints whether the books add up and every answer that was counted has been paid for."""
    goosestack(candidate, "check")
    book = sqlite3.connect(f"file:{candidate.env['DB_PATH']}?mode=ro", uri=True)
    with contextlib.closing(book):
        query = "SELECT status, count(*) FROM usage_log WHERE cost_nanos > 0 GROUP BY status"
        rows = dict(book.execute(query).fetchall())
    settled = int(rows.get("settled", 0))
    fits = candidate.answers <= settled <= candidate.answers + candidate.cut
    print(
        f"billed: {settled:,} settled rows for {candidate.answers:,} answers, and at most"
        f" {candidate.cut:,} cut short by the end of a load: {'met' if fits else 'VOID'}"
    )
    return fits
