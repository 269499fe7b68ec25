"""Dockerfile and compose.yaml, where no engine runs: linters read them, the package is built from what is copied, the
health check is run, and Caddy and the daemon are started as the two services are.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from goosestack import app
from goosestack.config import Config, options, setting
from tests.asking import ask
from tests.test_ops_files import free_ports, tool, wait_for
from tests.world import World

ROOT = Path(__file__).resolve().parent.parent
FIXED = {"HOST", "PORT", "DB_PATH"}
"""What an image cannot leave to chance."""


def instructions() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each a list of instructions and what follows them."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest.strip()))
    return stages


BUILD, IMAGE = instructions()


def last(name: str, stage: list[tuple[str, str]] = IMAGE) -> str:
    return [rest for instruction, rest in stage if instruction == name][-1]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(last("ENV")))


def copied() -> list[str]:
    return [word for name, rest in BUILD if name == "COPY" for word in shlex.split(rest)[:-1]]


def services() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
    return found


DAEMON, CADDY = services()["services"]["daemon"], services()["services"]["caddy"]


# --- what the linters say -------------------------------------------------------------------------------------


def linter(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).with_name(name)
    return subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_linter_finds_nothing_wrong_with_the_dockerfile() -> None:
    done = linter("hadolint", "--no-color", "--failure-threshold", "style", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && pip install x\n")
    assert linter("hadolint", str(tmp_path / "Dockerfile")).returncode == 1


def test_compose_yaml_fits_the_schema_of_compose_files(tmp_path: Path) -> None:
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    assert linter(*check, "compose.yaml").returncode == 0
    (tmp_path / "bad.yaml").write_text("services: {a: {imagine: b}}\n")
    assert linter(*check, str(tmp_path / "bad.yaml")).returncode == 1


# --- the image ------------------------------------------------------------------------------------------------


def test_both_stages_have_the_same_pinned_interpreter_which_is_that_of_the_tests_or_newer() -> None:
    (first, *_), (second, *_) = BUILD, IMAGE
    assert first[1] == f"{second[1]} AS build"
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", second[1])
    assert version is not None and (int(version[1]), int(version[2])) >= (3, 11)


def test_every_dependency_is_installed_from_the_lock_by_its_hash() -> None:
    installs = [rest for name, rest in BUILD if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]


def test_the_package_can_be_built_from_what_is_copied_and_is_whole(tmp_path: Path) -> None:
    for name in copied():
        source, target = ROOT / name, tmp_path / "context" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(tmp_path / "site"), "."],
        cwd=tmp_path / "context",
        check=True,
        timeout=120,
    )

    def files(folder: Path) -> set[str]:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {name for name in found if "__pycache__" not in name}

    assert files(tmp_path / "site" / "goosestack") == files(tmp_path / "context" / "goosestack")


def test_what_is_copied_is_let_in_and_secrets_and_books_are_not() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def let_in(path: str) -> bool:
        inside = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            parents = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
            if any(fnmatch.fnmatch(each, pattern) for each in parents):
                inside = rule.startswith("!")
        return inside

    assert [name for name in copied() if not (ROOT / name).exists() or not let_in(name)] == []
    for name in (".env", ".git/config", "goosestack.db", "prices.toml", "goosestack/__pycache__/app.pyc"):
        assert not let_in(name), name


def test_it_does_not_run_as_root_and_owns_nothing_but_its_data() -> None:
    user = last("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    uid, gid = user.split(":")
    names = [name for name, _ in IMAGE]
    made = [rest for name, rest in IMAGE if name == "RUN"]
    assert made == [f"install -d -m 0700 -o {uid} -g {gid} /data"]
    assert names.index("RUN") < names.index("USER") < names.index("VOLUME")


def test_all_that_it_keeps_is_in_the_volume() -> None:
    assert last("VOLUME") == "/data"
    assert Path(environment()["DB_PATH"]).parent == Path(last("VOLUME")) == Path(last("WORKDIR"))


def test_it_listens_for_others_on_the_port_that_it_names() -> None:
    assert environment()["HOST"] == "0.0.0.0"
    assert environment()["PORT"] == last("EXPOSE") == str(Config().port)


def test_it_runs_the_command_of_the_package() -> None:
    assert [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))] == ["goosestack", "serve"]


def health_check() -> list[str]:
    command: list[str] = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    return command


def test_its_health_check_asks_for_a_route_that_there_is() -> None:
    path = re.search(r"(/\w+)'", health_check()[-1])
    assert path is not None and ("GET", path[1], "root") in app.ROUTES


def test_its_health_check_tells_a_daemon_that_lives_from_one_that_does_not(world: World) -> None:
    def healthy(port: int) -> bool:
        command = [sys.executable, *health_check()[1:]]
        env = {**os.environ, "PORT": str(port)}
        return subprocess.run(command, env=env, capture_output=True, timeout=20, check=False).returncode == 0

    assert health_check()[0] == "python"
    assert healthy(int(world.url.rpartition(":")[2]))
    assert not healthy(*free_ports(1))


# --- the two services -----------------------------------------------------------------------------------------


def test_every_setting_that_is_named_exists() -> None:
    known = {setting(entry) for entry in options()}
    others = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    assert set(environment()) <= known | others
    assert set(DAEMON["environment"]) <= known
    assert {name: DAEMON["environment"][name] for name in FIXED} == {name: environment()[name] for name in FIXED}
    assert set(CADDY["environment"]) == {"GOOSESTACK_DOMAIN", "GOOSESTACK_UPSTREAM"}


def test_the_books_are_on_a_volume_and_the_rest_is_read_only() -> None:
    assert DAEMON["volumes"] == [f"books:{last('VOLUME')}"]
    assert "books" in services()["volumes"]
    assert DAEMON["read_only"] is True
    assert "ports" not in DAEMON


def test_the_daemon_believes_caddy_alone_of_a_callers_address() -> None:
    (network,) = services()["networks"]["inside"]["ipam"]["config"]
    address = CADDY["networks"]["inside"]["ipv4_address"]
    assert DAEMON["environment"]["FORWARDED_ALLOW_IPS"] == address
    hosts = list(ipaddress.ip_network(network["subnet"]).hosts())
    assert ipaddress.ip_address(address) in hosts[1:]  # the first is the host's own
    assert len(hosts) >= 3


def test_stopping_leaves_time_to_drain_and_settle() -> None:
    assert int(DAEMON["stop_grace_period"].removesuffix("s")) >= Config().drain_s + 15


def test_caddy_starts_once_the_daemon_is_healthy_and_reads_the_caddyfile() -> None:
    assert CADDY["depends_on"] == {"daemon": {"condition": "service_healthy"}}
    assert "./Caddyfile:/etc/caddy/Caddyfile:ro" in CADDY["volumes"]
    assert CADDY["environment"]["GOOSESTACK_UPSTREAM"] == f"daemon:{last('EXPOSE')}"


def caddys_environment(home: Path, **changes: str) -> dict[str, str]:
    folders = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(home))
    return {**os.environ, **folders, **CADDY["environment"], **changes}


def test_caddy_finds_its_file_valid_with_these_settings(tmp_path: Path) -> None:
    command = [tool("caddy"), "validate", "--config", "Caddyfile", "--adapter", "caddyfile"]
    done = subprocess.run(
        command, cwd=ROOT, env=caddys_environment(tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_port_8080_answers_for_any_name_and_not_for_the_operators_pages(world: World, tmp_path: Path) -> None:
    """As Compose would run them; only ports and addresses are others, and the daemon is a process."""
    assert CADDY["ports"] == ["8080:8080"]
    domain = CADDY["environment"]["GOOSESTACK_DOMAIN"]
    assert domain == "http://:8080"
    port, http_port, https_port = free_ports(3)
    head = f"{{\n\tadmin off\n\tskip_install_trust\n\thttp_port {http_port}\n\thttps_port {https_port}\n"
    file = tmp_path / "Caddyfile"
    file.write_text(re.sub(r"^\{\n", head, (ROOT / "Caddyfile").read_text(), count=1, flags=re.MULTILINE))
    env = caddys_environment(
        tmp_path,
        GOOSESTACK_DOMAIN=domain.replace("8080", str(port)),
        GOOSESTACK_UPSTREAM=world.url.removeprefix("http://"),
    )
    command = [tool("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)
            for name in ("localhost", "127.0.0.1", "llm.example.com"):
                assert get(port, "/health", name) == (200, ask(world, "GET", "/health").data)
            assert get(port, "/readyz", "localhost")[0] == get(port, "/metrics", "localhost")[0] == 404
        finally:
            process.kill()


def get(port: int, path: str, host: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers={"host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
