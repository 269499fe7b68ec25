"""Mallory reads what she can get hold of: the log, the files, the answers. What is nobody's business is in none."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, WIRES, Mallory, asks, talk
from tests.world import ANTHROPIC_KEY, OPENAI_KEY, Daemon, Upstream, World

CANARY = "PromptCanaryOfAPrivateMatter"


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world) as mallory:
        yield mallory


# --- the log ------------------------------------------------------------------------------------------------------

ODD_TEXTS = ["\x1b[31mred", "a\r\nb", "\u202e\u2066", "\x00", "\x7f", "é", "🦆", "\u2028", "<script>", "%s%n{0}"]
ODD_TEXTS += ['","level":"error']
TOLD = {"at", "level", "event", "id", "method", "path", "status", "address"}


def test_no_caller_writes_the_log(mallory: Mallory) -> None:
    output = mallory.world.daemon.program.output
    start = output.stat().st_size
    for text in ODD_TEXTS:
        quoted = "".join(f"%{byte:02x}" for byte in text.encode())
        for path in (f"/{quoted}", f"/v1/{quoted}", f"/v1/models/{quoted}", f"/v1/chat/completions?{quoted}={quoted}"):
            assert mallory.ask(path, method="GET").status in (404, 405)
        mallory.ask(f"/v1/keys/{quoted}", method="DELETE")
        mallory.ask(f"/v1/usage?cursor={quoted}", method="GET")
        for path in WIRES:
            assert mallory.ask(path, asks(path, model=f"gpt{text}")).status in (400, 404)
            odd: dict[str, object] = {text: 1, "metadata": {text: text}, "api_base": text}
            assert mallory.ask(path, asks(path, **odd)).status == 400
        mallory.ask("/v1/keys", {"email": f"a{text}@b", "name": text, text: text}, key=None)
        header = text.encode().decode("latin-1")
        if header.isprintable():
            spoofed = dict.fromkeys(("user-agent", "x-forwarded-for", "x-request-id", "referer", "x-real-ip"), header)
            assert mallory.ask("/v1/usage", None, spoofed, method="GET").status == 200
    long = "a" * 20_000
    assert mallory.ask(f"/{long}", method="GET").status == 404
    assert mallory.ask(CHAT, asks(CHAT, model=long)).status == 400
    mallory.nothing_happened()
    written = output.read_bytes()[start:]
    assert not re.search(rb"[^\n\x20-\x7e]", written)
    for line in written.decode().splitlines():
        told = json.loads(line)
        assert set(told) == TOLD
        assert told["level"] == "info" and told["event"] == "answer"
        assert len(line) < 2_500


def test_a_request_id_is_ours_whatever_the_caller_calls_it(mallory: Mallory) -> None:
    own = dict.fromkeys(("x-request-id", "request-id", "x-client-request-id", "traceparent"), "req_evil")
    seen = {mallory.ask(CHAT, asks(CHAT), own).headers["x-request-id"] for _ in range(3)}
    assert len(seen) == 3 and "req_evil" not in seen
    assert "req_evil" not in mallory.world.daemon.program.text()
    assert {row["id"] for row in mallory.world.ended_rows(mallory.customer, 3)} == seen


@pytest.mark.parametrize("path", WIRES)
def test_neither_what_was_asked_nor_what_was_answered_is_written_down(mallory: Mallory, path: str) -> None:
    mallory.private.append(CANARY)
    fields: dict[str, object] = {"system": CANARY} if path in (MESSAGES, COUNT) else {"user": CANARY}
    streamed = (False,) if path in (EMBEDDINGS, COUNT) else (False, True)
    for stream in streamed:
        reply = mallory.ask(path, asks(path, CANARY, **fields, **({"stream": True} if stream else {})))
        assert reply.status == 200
    for wrong in ({"model": CANARY}, {"api_base": CANARY}, {"metadata": {"models": CANARY}}):
        assert mallory.ask(path, asks(path, CANARY, **wrong)).status in (400, 404)
    assert mallory.ask(path, asks(path, CANARY), {"content-type": CANARY}).status == 415
    assert mallory.ask(path, json.dumps(asks(path, CANARY)).encode() + CANARY.encode()).status == 400
    assert len(mallory.world.ended_rows(mallory.customer, len(streamed))) == len(mallory.dispatched())


# --- answers ------------------------------------------------------------------------------------------------------


def test_a_key_in_a_path_is_not_repeated(mallory: Mallory) -> None:
    key = mallory.customer.key
    for path in (f"/v1/keys/{key}", f"/v1/holds/{key}", f"/{key}", f"/v1/{key}/chat", f"/v1/models/{key}"):
        for method in ("GET", "DELETE", "POST"):
            assert mallory.ask(path, method=method).status in (404, 405)
    mallory.nothing_happened()


def test_no_answer_says_what_it_was_made_with_or_is_packed_together_with_secrets(mallory: Mallory) -> None:
    packing = {"accept-encoding": "gzip, br, deflate, zstd", "range": ",".join(["bytes=0-1"] * 1000), "te": "gzip"}
    for path in "/ /health /v1/usage /v1/keys /v1/models /v1/pricing /metrics /readyz /nothing".split():
        reply = mallory.ask(path, None, packing, method="GET")
        assert reply.status in (200, 404)
        assert not {"server", "content-encoding", "content-range", "x-powered-by", "set-cookie"} & set(reply.headers)
    assert b"uvicorn" not in mallory.ask("/v1/nothing").body.lower()
    (refused,) = talk(mallory.world, b"nonsense\r\n\r\n")
    assert not {"server", "x-powered-by"} & set(refused.headers)
    assert len(mallory.ask("/v1/usage?limit=200", method="GET").body) < 5_000


def test_a_projects_secret_key_that_ended_up_in_a_path_is_not_written_down(mallory: Mallory) -> None:
    """Found by a proof: of all credentials that have a shape, this one's was not known to the log."""
    mallory.secrets.append("sb_secret_CanaryOfAProject_0123456789")
    for path in ("/v1/keys/", "/", "/v1/models/"):
        assert mallory.ask(f"{path}sb_secret_CanaryOfAProject_0123456789", method="GET").status in (404, 405)


# --- files --------------------------------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    """What others may do with each file of a daemon."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder.glob("goosestack*")}


def test_every_file_of_the_daemon_is_its_owners_alone_even_where_the_umask_is_open(folder: Path) -> None:
    """The operator's keys are handed over as systemd does, and stand in no variable."""
    upstream, credentials = Upstream(folder), folder / "credentials"
    credentials.mkdir()
    (credentials / "OPENAI_API_KEY").write_text(OPENAI_KEY + "\n")
    (credentials / "ANTHROPIC_API_KEY").write_text(ANTHROPIC_KEY)
    keyless = {"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": "", "CREDENTIALS_DIRECTORY": str(credentials)}
    before = os.umask(0)
    try:
        world = World(folder, upstream, Daemon(folder, upstream.url, **keyless))
        with Mallory(world) as mallory:
            for path in (CHAT, RESPONSES, MESSAGES):
                assert mallory.ask(path, asks(path)).status == 200
            world.ended_rows(mallory.customer, 3)
            world.daemon.command("backup", str(folder / "goosestack-copy.db"))
            found = modes(folder)
            named = {f"goosestack.db{suffix}" for suffix in ("", "-wal", "-shm", ".lock", ".sock", ".ballast")}
            assert named | {"goosestack-copy.db"} <= set(found)
            assert set(found.values()) == {0}
            environment = Path(f"/proc/{world.daemon.program.process.pid}/environ").read_bytes()
            shown = world.daemon.command("config")
            for key in (OPENAI_KEY, ANTHROPIC_KEY):
                assert key.encode() not in environment and key not in json.dumps(shown)
            assert shown["OPENAI_API_KEY"] == shown["ANTHROPIC_API_KEY"] == "(set)"
            for secret in mallory.secrets:
                assert secret.encode() not in (folder / "goosestack-copy.db").read_bytes()
        world.close()
        assert set(modes(folder).values()) == {0}
    finally:
        os.umask(before)


def test_a_daemon_that_crashes_writes_its_memory_nowhere(world: World) -> None:
    """Its memory has every key in it; a unit's LimitCORE=0 is of no use to whoever starts it by hand. A proof that
    looked for canaries in all that a daemon leaves behind found the limit as the shell had it."""
    limits = Path(f"/proc/{world.daemon.program.process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


# --- what the daemon is made of -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requirements.lock", "tests/requirements.lock"])
def test_every_package_is_pinned_to_a_version_and_its_hashes(name: str) -> None:
    lock = (Path(__file__).parent.parent / name).read_text().replace("\\\n", " ")
    packages = [line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith(("#", "--"))]
    assert len(packages) > 10
    for line in packages:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[0-9][^ ;]*", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
        assert "http:" not in line and "git+" not in line
