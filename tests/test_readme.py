"""README.md is run: its commands and programs, and its tables against the code.

A block under `<!-- run -->` is executed: shell and Python, against a real daemon and the demo upstream. Under
"Operator" the shell is the operator's, in the daemon's folder; under "Caller" it is a caller's, with the address and a
key in the environment, as the SDKs read them. `<!-- run until "TEXT" -->` is for a command that does not end by itself:
it must print the text. A block under `<!-- file NAME -->` is written to that file first. The other blocks need systemd,
a package or an account; of those, the commands, options, files, settings and models that they name are looked up.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import click
import pytest

from goosestack import app, cli, config, errors, pricing
from goosestack.demo import stage
from goosestack.metrics import Metrics
from goosestack.wire import mobile_chat
from tests.asking import directed
from tests.project import Project
from tests.proofs.__main__ import words as in_words
from tests.proofs.catalogue import PROOFS
from tests.test_tidy import LAYERS
from tests.world import OPENAI_KEY, World, bare_environment, until

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: where it stands, what it is, and what is to be done with it."""

    line: int
    part: str
    """The heading of the second level that it stands under."""
    language: str
    order: str
    """`run`, `run until "TEXT"`, `file NAME`, or nothing."""
    text: str

    def __str__(self) -> str:
        return f"line-{self.line}"


def blocks() -> list[Block]:
    found = []
    part, order, start, language, body = "", "", 0, "", list[str]()
    for number, line in enumerate(README.splitlines(), 1):
        if start:
            if line == "```":
                found.append(Block(start, part, language, order, "\n".join(body) + "\n"))
                start, order, body = 0, "", []
            else:
                body.append(line)
        elif line.startswith("```"):
            start, language = number, line.removeprefix("```")
        elif match := re.fullmatch(r"<!-- (run|run until \".+\"|file \S+) -->", line):
            order = match.group(1)
        elif line.startswith("## "):
            part = line.removeprefix("## ")
        elif line:
            assert not order, f"line {number}: an order without a block"
    return found


BLOCKS = blocks()


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose head begins with this cell."""
    (table,) = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


# --- tables ---------------------------------------------------------------------------------------------------


def settings_table() -> str:
    return config.table()


def catalogue() -> list[type[errors.Problem]]:
    """Every failure, in the order in which they win."""
    return [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.Problem)][1:]


def retried(problem: type[errors.Problem]) -> bool:
    """Whether the vendors' SDKs ask again by themselves: by our header, else by their rule for the status."""
    return problem.retry if problem.retry is not None else problem.status in (408, 409, 429) or problem.status >= 500


def errors_table() -> str:
    lines = []
    for problem in catalogue():
        kind, code = problem.openai
        message = " ".join((problem.__doc__ or "").split())
        openai = f"`{kind}`" if code is None else f"`{kind}`, `{code}`"
        again = "yes" if retried(problem) else "no"
        lines.append(
            f"| {problem.status} | {message} | `{problem.type}` | {openai} | `{problem.anthropic}` | {again} |\n"
        )
    return "".join(lines)


def metrics_table() -> str:
    found = re.findall(r"^# HELP (\w+) (.+)$", Metrics().text().decode(), re.MULTILINE)
    return "".join(f"| `{name}` | {help} |\n" for name, help in found)


def test_the_table_of_settings_is_the_configuration() -> None:
    assert settings_table() in README


def test_the_table_of_errors_is_the_catalogue() -> None:
    assert errors_table() in README


def test_the_table_of_metrics_is_what_is_exposed() -> None:
    assert metrics_table() in README


def test_the_table_of_routes_is_what_the_application_serves() -> None:
    wires = [*(f"POST /v1{wire.path}" for wire in app.WIRES), f"POST {mobile_chat.ROUTE}"]
    own = {f"{method} {path.replace(':path', '')}" for method, path, _ in (*app.ROUTES, *app.DRAIN_ROUTES)}
    found = rows("route")
    assert sorted(names(row[0])[0] for row in found) == sorted([*wires, *own])
    operators = {names(row[0])[0] for row in found if row[1] == "operator"}
    assert operators == {"GET /readyz", "GET /metrics"} | {name for name in own if "/admin/" in name}


def test_the_table_of_proofs_is_what_there_is_to_prove() -> None:
    told = [(names(row[0])[0], row[1], row[2]) for row in rows("proof")]
    assert told == [(proof.name, proof.claim, in_words(proof.full)) for proof in PROOFS]


def test_the_table_of_headers_is_what_browsers_may_see() -> None:
    assert sorted(name for row in rows("header") for name in names(row[0])) == sorted(app.EXPOSED)


def test_the_table_of_alerts_is_what_the_code_tells() -> None:
    kinds = set()
    for path in (ROOT / "goosestack").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="alert"), args=[ast.Constant(value=kind), *_]):
                    kinds.add(kind)
    assert {names(row[0])[0] for row in rows("kind")} == kinds


def test_the_map_names_every_file_in_the_order_of_imports() -> None:
    listed = [names(row[0])[0] for row in rows("module")]
    there = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "goosestack").iterdir()
        if path.name != "__pycache__"
    ]
    assert sorted(listed) == sorted(there)
    modules = [name.removesuffix(".py").removesuffix("/") for name in listed if not name.endswith(".json")]
    ranks = [
        next(level for level, layer in enumerate(LAYERS) if name.replace("__init__", "") in layer) for name in modules
    ]
    assert ranks == sorted(ranks, reverse=True)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    wanted = [project["project"]["dependencies"], *extras, project["build-system"]["requires"]]
    needed = {re.split(r"[<>=]", each)[0] for group in wanted for each in group}
    assert {name for row in rows("package") for name in names(row[0])} == needed


# --- what is named exists -------------------------------------------------------------------------------------


def code() -> str:
    return "\n".join(block.text for block in BLOCKS)


def test_every_file_that_is_named_exists() -> None:
    said = re.findall(r"(?<![\w/.~-])\.?/?((?:scripts|goosestack|tests|\.ci)/[\w./-]*\w|LICENSE|Caddyfile)\b", README)
    said += re.findall(r"`(goosestack[\w-]*\.(?:service|timer)|\w+\.lock|\w+\.toml|\.env\.example)`", README)
    said += re.findall(r"(?<= )(goosestack[\w-]*\.(?:service|timer))\b", README)
    missing = sorted(
        {name for name in said if name not in ("prices.toml", "plans.toml") and not (ROOT / name).exists()}
    )
    assert len(said) > 40
    assert missing == []


def test_every_link_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings
    assert set(re.findall(r"\]\((?!#)([^)]+)\)", README)) == set()


CLIENTS_OWN = re.compile(r"CLAUDE_CODE_\w+|ANTHROPIC_AUTH_TOKEN|GOOSESTACK_(API_KEY|URL|KEY|DOMAIN)|MY_PROVIDER_KEY")


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z0-9]+)+\b", README)) - {"CREDENTIALS_DIRECTORY"}
    ours = {config.setting(entry) for entry in config.options()}
    assert sorted(name for name in named - ours if not CLIENTS_OWN.fullmatch(name)) == []


MODEL = re.compile(r"""["' /](gpt-[\w.-]+|claude-\w+-[\d-]+|text-embedding-[\w-]+|llama-[\w.-]+)["' \n]""")


def test_every_model_that_is_named_is_sold_and_will_be() -> None:
    """Here, and in what the demo prints: an example that stops working on some day is worse than none."""
    book = pricing.load((ROOT / "goosestack" / "prices.json").read_text(), file_block("prices.toml"))
    named = set(MODEL.findall(code() + stage.welcome("http://127.0.0.1:3000", "gsk_", sells=True)))
    assert len(named) >= 5
    for name in named:
        models = [book.find(provider, name) for provider in book.providers_of(name)]
        assert models, f"{name} is not sold"
        assert any(model is not None and model.retires is None for model in models), f"{name} will be retired"


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Each call of our command line in a shell block, as words after `goosestack`."""
    for block in BLOCKS:
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                match = re.search(r"(?:^|[\s(/])goosestack (?![a-z-]*\.service)((?:[a-z]).*)$", line.partition("#")[0])
                if match and "systemctl" not in line:
                    yield block, shlex.split(match.group(1).rstrip(") "))


def test_every_command_and_option_exists() -> None:
    found = list(commands())
    assert len(found) > 15
    for block, words in found:
        command: click.Command = cli.main
        while isinstance(command, click.Group):
            assert words[0] in command.commands, f"line {block.line}: {words[0]}"
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, f"line {block.line}"


def test_every_shell_block_can_be_parsed() -> None:
    for block in BLOCKS:
        if block.language == "sh":
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"line {block.line}: {done.stderr}"


def test_every_python_block_can_be_parsed() -> None:
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, f"README.md:{block.line}", "exec")


SUPABASE_JS = """export const createClient = (url, key) => ({
  auth: { getSession: async () => ({ data: { "session": { access_token: process.env.TOKEN } } }) },
});
"""
"""As much of that library as the block needs: it gives the token that the project gave."""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_javascript_for_apps_streams_an_answer_to_a_user_of_the_project(tmp_path: Path) -> None:
    (block,) = (block for block in BLOCKS if block.language == "js" and "getSession" in block.text)
    library = tmp_path / "node_modules" / "@supabase" / "supabase-js"
    library.mkdir(parents=True)
    (library / "package.json").write_text('{"type": "module", "main": "index.js"}')
    (library / "index.js").write_text(SUPABASE_JS)
    project = Project(tmp_path)
    world = World.create(tmp_path, SUPABASE_URL=project.url, CHAT_DEFAULT_MODEL="gpt-5.4-mini")
    try:
        constants = (
            f"const SUPABASE_URL = {project.url!r}, SUPABASE_ANON_KEY = 'any', GOOSESTACK_URL = {world.url!r};\n"
        )
        call = "await chat([{ role: 'user', content: process.argv[2] }], (text) => process.stdout.write(text));\n"
        (tmp_path / "app.mjs").write_text(constants + block.text + call)
        sub = str(uuid4())

        def run(question: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["node", "app.mjs", question],
                cwd=tmp_path,
                env=bare_environment(TOKEN=project.token(sub=sub)),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        assert "Error: Not enough credits" in run("Hello").stderr
        world.verb("credit_grant", user=sub, cents=500, note="", ref=None)
        done = run(directed("Hello", words=40))
        assert (done.returncode, len(done.stdout.split())) == (0, 40), done
        failed = run(directed("Hello", fault="error_frame"))
        assert failed.returncode == 1 and "Error: " in failed.stderr
    finally:
        world.close()
        project.close()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_every_javascript_block_can_be_parsed(tmp_path: Path) -> None:
    for block in BLOCKS:
        if block.language == "js":
            file = tmp_path / "block.mjs"
            file.write_text(block.text)
            done = subprocess.run(["node", "--check", file], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"line {block.line}: {done.stderr}"


def test_the_settings_for_codex_can_be_parsed() -> None:
    (block,) = (block for block in BLOCKS if block.language == "toml" and "wire_api" in block.text)
    settings = tomllib.loads(block.text)
    provider = settings["model_providers"][settings["model_provider"]]
    assert provider["wire_api"] == "responses"
    assert provider["base_url"].endswith("/v1")


# --- what is run ----------------------------------------------------------------------------------------------


def file_block(name: str) -> str:
    (block,) = (block for block in BLOCKS if block.order == f"file {name}")
    return block.text


def program(folder: Path, name: str, *command: str) -> None:
    """A command of this name, as if it were installed."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The operator's machine: the files of the README, a daemon that has read them, and the command."""
    folder = tmp_path_factory.mktemp("readme")
    for block in BLOCKS:
        if block.order.startswith("file "):
            (folder / block.order.removeprefix("file ")).write_text(block.text)
    (folder / "goosestack.env").write_text("PUBLIC_URL=https://llm.example.com\n")
    program(folder / "bin", "goosestack", sys.executable, "-m", "goosestack")
    world = World.create(folder, PRICES_FILE="./prices.toml", DISCONNECT_GRACE_S="1", DRAIN_S="5")
    yield world
    world.close()


def operators(world: World) -> dict[str, str]:
    return {**world.daemon.env, "PATH": f"{world.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(world.folder)}


def callers(world: World) -> dict[str, str]:
    customer = world.customer(1000, pro=True)
    return bare_environment(
        OPENAI_BASE_URL=f"{world.url}/v1",
        OPENAI_API_KEY=customer.key,
        ANTHROPIC_BASE_URL=world.url,
        ANTHROPIC_API_KEY=customer.key,
        GOOSESTACK_URL=world.url,
        GOOSESTACK_KEY=customer.key,
        MY_PROVIDER_KEY=OPENAI_KEY,
    )


def execute(block: Block, env: Mapping[str, str], folder: Path) -> str:
    """What a block prints; it must end well, and no answer may be an error."""
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, block.text], env=dict(env), cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"error"' not in done.stdout, done.stdout
    return done.stdout


RUN = [block for block in BLOCKS if block.order == "run"]


def test_both_readers_have_something_to_run() -> None:
    assert {(block.part, block.language) for block in RUN} == {
        ("Operator", "sh"),
        ("Caller", "sh"),
        ("Caller", "python"),
    }


@pytest.mark.parametrize("block", [block for block in RUN if block.part == "Operator"], ids=str)
def test_what_the_operator_is_told_to_do_works(block: Block, installed: World) -> None:
    here = {
        "/opt/goosestack/.venv/bin": str(installed.folder / "bin"),
        "/etc/goosestack": str(installed.folder),
        "http://127.0.0.1:3000": installed.url,
    }
    text = block.text
    for place, ours in here.items():
        text = text.replace(place, ours)
    printed = execute(replace(block, text=text), operators(installed), installed.folder)
    if "key create" in block.text:
        assert re.search(r"^gsk_\S{40,}$", printed, re.MULTILINE)
        assert "balance 500  held 0  available 500  (cents)" in printed
    if "invoice-17" in block.text:
        assert '"balance_cents": 1000,' in printed
    if "prices llama" in block.text:
        assert re.search(r"^llama-3\.3-70b +litellm +0\.05 +0\.08$", printed, re.MULTILINE)
        assert re.search(r"^gpt-5\.4-mini +openai +1\.2 +6$", printed, re.MULTILINE)
    if "goosestack config" in block.text:
        assert "PUBLIC_URL=https://llm.example.com\n" in printed
        assert "OPENAI_API_KEY=(set)\n" in printed
    if "readyz" in block.text:
        assert '{"ready":true,' in printed
        assert "goosestack_books_wrong 0.0\n" in printed
    if "backup" in block.text:
        assert "books add up" in printed
        assert len(list((installed.folder / "backups").glob("*.db"))) == 1


@pytest.mark.parametrize("block", [block for block in RUN if block.part == "Caller"], ids=str)
def test_what_a_caller_is_told_to_do_works(block: Block, installed: World) -> None:
    env, start = callers(installed), installed.upstream.mark()
    printed = execute(block, env, installed.folder)
    sent = len(installed.upstream.dispatches(start))
    asks = re.search(r"/v1/(chat|messages)|(OpenAI|Anthropic)\(", block.text) is not None
    assert asks == (sent > 0)
    if asks:
        assert "canned" in printed
        rows = installed.ended_rows(installed.customers[-1], sent)
        free = [row for row in rows if row["cost_nanos"] == 0]
        if "X-Provider-Key" in block.text:
            assert free == rows
        else:
            assert [row["wire"] for row in free] == ["anthropic_count_tokens"] * block.text.count("count_tokens(")
    if "stream" in block.text and block.language == "sh":
        assert "\n\n: goosestack cost-usd=0.00" in printed


def test_the_books_add_up_afterwards(installed: World) -> None:
    installed.check()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.order.startswith("run until")], ids=str)
def test_the_first_success_is_one_command(block: Block, tmp_path: Path) -> None:
    """With an environment that is made already, so that nothing is fetched."""
    venv = tmp_path / "venv"
    program(venv / "bin", "goosestack", sys.executable, "-m", "goosestack")
    locked = (ROOT / name for name in ("pyproject.toml", "goosestack/__init__.py", "requirements.lock"))
    made = hashlib.sha256(b"".join(path.read_bytes() for path in locked)).hexdigest()
    (venv / ".made-from-requirements.lock").write_text(f"{made}  -\n")
    env = bare_environment(GOOSESTACK_VENV=str(venv), PORT="0", TMPDIR=str(tmp_path))
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(["bash", "-ec", f"exec {block.text}"], cwd=ROOT, env=env, stdout=out, stderr=out)
    try:
        wanted = block.order.removeprefix('run until "').removesuffix('"')
        until(lambda: process.poll() is not None or wanted in (tmp_path / "out").read_text(), wanted)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, (tmp_path / "out").read_text()
    finally:
        process.kill()
        process.wait()
    assert wanted in (tmp_path / "out").read_text()


def test_no_block_that_runs_can_reach_the_network() -> None:
    for block in RUN:
        addresses = re.findall(r"https?://([\w.-]+)", block.text)
        assert set(addresses) <= {"127.0.0.1"}, f"line {block.line}"
        assert not re.search(r"\b(apt-get|pip|git|npm|systemctl)\b", block.text), f"line {block.line}"
