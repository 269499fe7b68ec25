"""The files an operator installs: two units, a timer and the Caddyfile.

They are read here without systemd and without Caddy, so that every machine checks that their limits
agree with the daemon's. Where the tools are installed, they judge the files too, and Caddy runs.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from goosestack import cli
from goosestack.config import Config, options, setting
from tests.world import World

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("goosestack.service", "goosestack-backup.service")
UNITS = (*SERVICES, "goosestack-backup.timer")

# How long the daemon keeps an idle connection of the proxy.
KEEP_ALIVE_S = 75
# Everything else is a setting.
DEFAULTS = Config()


# ---- reading a unit ----------------------------------------------------------------------------


class Line(NamedTuple):
    section: str
    key: str
    value: str


def unit(name: str) -> list[Line]:
    section, lines = "", []
    for text in (ROOT / name).read_text().splitlines():
        if text.startswith("["):
            section = text.strip("[]")
        elif text and not text.startswith("#"):
            key, _, value = text.partition("=")
            lines.append(Line(section, key, value))
    return lines


def values(name: str, key: str) -> list[str]:
    return [line.value for line in unit(name) if line.key == key]


def value(name: str, key: str) -> str:
    (only,) = values(name, key)
    return only


def environment(name: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in values(name, "Environment"))
    return {key: val for key, _, val in pairs}


# Which keys make up the sandbox that both services live in.
SANDBOX = re.compile(
    r"(Protect|Private|Restrict(?!AddressFamilies)|NoNew|NoExec|Capability|Ambient|Device|Remove"
    r"|Proc|Keyring|Lock|MemoryDeny|SystemCall|UMask|LimitCORE|MemorySwap|DynamicUser|User$"
    r"|StateDirectoryMode)"
)


def sandbox(name: str) -> set[tuple[str, str]]:
    own = ("PrivateNetwork", "NoExecPaths")
    return {(line.key, line.value) for line in unit(name) if SANDBOX.match(line.key) and line.key not in own}


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_repeats_only_the_keys_that_add_up(name: str) -> None:
    keys = [line.key for line in unit(name)]
    assert {key for key in keys if keys.count(key) > 1} <= {"Environment", "SystemCallFilter"}


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_explains_itself(name: str) -> None:
    text = (ROOT / name).read_text()
    assert len(re.findall(r"^# ", text, re.M)) >= len(re.findall(r"^\[", text, re.M))
    assert all(len(line) <= 100 for line in text.splitlines())


def test_both_services_live_in_the_same_sandbox() -> None:
    daemon, backup = (sandbox(name) for name in SERVICES)
    assert daemon == backup
    assert len(daemon) > 30


@pytest.mark.parametrize("name", SERVICES)
def test_both_services_are_one_user_with_one_database(name: str) -> None:
    assert value(name, "DynamicUser") == "yes"
    assert value(name, "User") == "goosestack"
    assert value(name, "StateDirectory").split()[0] == "goosestack"
    assert environment(name)["DB_PATH"] == "%S/goosestack/goosestack.db"


@pytest.mark.parametrize("name", SERVICES)
def test_nobody_else_can_read_what_a_service_writes(name: str) -> None:
    assert value(name, "StateDirectoryMode") == "0700"
    assert value(name, "UMask") == "0077"
    assert value(name, "LimitCORE") == "0"
    assert value(name, "MemorySwapMax") == "0"


def test_no_secret_is_handed_over_in_the_environment() -> None:
    secrets = {setting(entry) for entry in options() if entry.metadata["secret"]}
    assert not secrets & {key for name in SERVICES for key in environment(name)}


def test_the_credential_examples_are_named_after_settings_and_switched_off() -> None:
    text = (ROOT / "goosestack.service").read_text()
    examples = re.findall(r"^#LoadCredential=(\w+):/etc/goosestack/(\w+)$", text, re.M)
    secrets = [entry for entry in options() if entry.metadata["secret"]]
    assert sorted(examples) == sorted((setting(entry), entry.name) for entry in secrets)
    assert not values("goosestack.service", "LoadCredential")


def test_stopping_leaves_time_to_drain_and_settle() -> None:
    assert int(value("goosestack.service", "TimeoutStopSec")) >= DEFAULTS.drain_s + 15
    assert value("goosestack.service", "KillMode") == "mixed"


def test_the_daemon_is_always_started_again() -> None:
    assert value("goosestack.service", "Restart") == "always"
    assert ("Unit", "StartLimitIntervalSec", "0") in unit("goosestack.service")


def test_but_not_where_only_somebody_can_mend_it() -> None:
    assert values("goosestack.service", "RestartPreventExitStatus") == [str(cli.EXIT_REFUSED)]


def test_the_machine_keeps_a_part_of_its_memory() -> None:
    assert sum(int(value(name, "MemoryMax").rstrip("%")) for name in SERVICES) <= 90


def test_the_kernel_keeps_the_daemon_from_metadata_and_private_networks() -> None:
    symbolic = {"link-local": "169.254.0.0/16 fe80::/64", "multicast": "224.0.0.0/4 ff00::/8"}
    words = value("goosestack.service", "IPAddressDeny").split()
    text = " ".join(symbolic.get(word, word) for word in words)
    networks = [ipaddress.ip_network(net) for net in text.split()]

    def denied(address: str) -> bool:
        return any(ipaddress.ip_address(address) in net for net in networks)

    for address in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "10.0.0.1", "fe80::1"):
        assert denied(address)
    for address in ("127.0.0.1", "127.0.0.53", "::1", "1.1.1.1", "2606:4700:4700::1111"):
        assert not denied(address)


def test_the_backup_writes_where_the_daemon_cannot() -> None:
    command = shlex.split(value("goosestack-backup.service", "ExecStart"))
    assert command[1:] == ["backup", "%S/goosestack-backup", "--keep", "14"]
    assert "goosestack-backup" in value("goosestack-backup.service", "StateDirectory").split()
    assert "goosestack-backup" not in value("goosestack.service", "StateDirectory").split()


def test_the_backup_has_no_network_and_no_secrets() -> None:
    name = "goosestack-backup.service"
    assert value(name, "PrivateNetwork") == "yes"
    assert value(name, "RestrictAddressFamilies") == "AF_UNIX"
    assert not values(name, "EnvironmentFile")
    assert "LoadCredential" not in (ROOT / name).read_text()


def test_the_backup_runs_every_day_even_after_a_night_without_power() -> None:
    name = "goosestack-backup.timer"
    assert re.fullmatch(r"\*-\*-\* \d\d:\d\d:00", value(name, "OnCalendar"))
    assert value(name, "Persistent") == "true"
    assert value(name, "WantedBy") == "timers.target"


# ---- reading the Caddyfile ---------------------------------------------------------------------

UNIT_S = {"s": 1, "m": 60, "h": 3600}
UNIT_BYTES = {"KB": 1000, "MB": 1000**2, "KiB": 1024, "MiB": 1024**2}


def directives() -> list[tuple[str, ...]]:
    """Each directive under the blocks that hold it: ("servers", "timeouts", "idle", "2m")."""
    blocks: list[tuple[str, ...]] = []
    found = []
    for text in (ROOT / "Caddyfile").read_text().splitlines():
        words = text.split()
        if not words or words[0].startswith("#"):
            continue
        if words == ["}"]:
            blocks.pop()
        elif words[-1] == "{":
            blocks.append(tuple(words[:-1]))
            found.append(sum(blocks, ()))
        else:
            found.append((*sum(blocks, ()), *words))
    assert not blocks
    return found


def option(*path: str) -> str:
    """The one argument of the directive that ends in this path, wherever it is nested."""
    (only,) = {line[-1] for line in directives() if line[-len(path) - 1 : -1] == path}
    return only


def seconds(text: str) -> int:
    return int(text[:-1]) * UNIT_S[text[-1]]


def size(text: str) -> int:
    number, unit_name = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNIT_BYTES[unit_name]


def words() -> set[str]:
    return {word for line in directives() for word in line}


def test_caddy_lets_through_every_body_that_the_daemon_would_take() -> None:
    assert size(option("request_body", "max_size")) > DEFAULTS.max_body_bytes


def test_a_full_body_on_a_slow_link_arrives_in_time_and_a_trickle_does_not() -> None:
    one_mbit = 1_000_000 / 8
    assert DEFAULTS.max_body_bytes / one_mbit < seconds(option("read_body")) <= 600
    assert seconds(option("read_body")) > DEFAULTS.body_timeout_s
    assert seconds(option("read_header")) == 10


def test_caddy_waits_longer_than_the_daemon_does() -> None:
    assert seconds(option("response_header_timeout")) >= DEFAULTS.request_deadline_s + 30
    assert "write" not in words()


def test_caddy_closes_idle_connections_before_the_daemon_does() -> None:
    assert seconds(option("keepalive")) <= KEEP_ALIVE_S / 2


def test_caddy_bounds_headers() -> None:
    assert size(option("max_header_size")) == 32_000


def test_caddy_neither_hides_a_disconnect_nor_repeats_a_request() -> None:
    assert not {"flush_interval", "lb_try_duration", "lb_retries"} & words()


def test_no_line_of_caddys_log_holds_a_key() -> None:
    lines = directives()
    assert any(line[-2:] == ("request>headers", "delete") for line in lines)
    assert any(line[-4:-2] == ("request>uri", "regexp") for line in lines)


def test_the_site_is_named_by_the_environment() -> None:
    assert ("{$GOOSESTACK_DOMAIN:localhost}",) in directives()
    assert "{$GOOSESTACK_UPSTREAM:127.0.0.1:3000}" in words()


# ---- what the tools say ------------------------------------------------------------------------


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_rates_the_exposure_of_a_service_below_1_5(name: str) -> None:
    analyze = tool("systemd-analyze")
    result = run(analyze, "security", "--offline=true", "--threshold=15", "--no-pager", name)
    assert result.returncode == 0, result.stdout[-200:] + result.stderr


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_but_the_missing_program(name: str) -> None:
    result = run(tool("systemd-analyze"), "verify", f"./{name}")
    ours = [line for line in result.stderr.splitlines() if "goosestack" in line]
    assert [line for line in ours if "goosestack is not executable" not in line] == []


def test_caddy_finds_the_file_valid_and_well_formatted(tmp_path: Path) -> None:
    caddy, home = tool("caddy"), str(tmp_path)
    env = {"HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}
    arguments = ("--config", "Caddyfile", "--adapter", "caddyfile")
    for domain in ("localhost", "api.example.com"):
        result = run(caddy, "validate", *arguments, GOOSESTACK_DOMAIN=domain, **env)
        assert result.returncode == 0, result.stderr
    assert run(caddy, "fmt", "Caddyfile").stdout == (ROOT / "Caddyfile").read_text()


def test_caddy_answers_for_the_site_first_and_for_every_other_name_last() -> None:
    arguments = ("--config", "Caddyfile", "--adapter", "caddyfile")
    result = run(tool("caddy"), "adapt", *arguments, GOOSESTACK_DOMAIN="api.example.com")
    servers = json.loads(result.stdout)["apps"]["http"]["servers"]
    by_port = {server["listen"][0]: server for server in servers.values()}
    site, other = by_port[":443"]["routes"]
    assert site["match"] == [{"host": ["api.example.com"]}]
    assert "match" not in other
    assert ["match" in route for route in by_port[":80"]["routes"]] == [False]
    assert all("write_timeout" not in server for server in servers.values())


# ---- Caddy at work -----------------------------------------------------------------------------


class Upstream(ThreadingHTTPServer):
    """Stands in for the daemon, and does what is next only when the test says so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.go_on = threading.Event()
        self.thinking = threading.Event()
        self.client_gone = threading.Event()


class Answer(BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/stream":
            self.stream()
        elif self.path == "/think":
            self.server.thinking.set()
            # The proxy sends nothing more on this connection, so what arrives is its end.
            if self.connection.recv(1) == b"":
                self.server.client_gone.set()
            self.close_connection = True
        elif self.path.startswith("/fail"):
            self.close_connection = True
        else:
            self.answer(json.dumps(dict(self.headers.items())).encode())

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left and (chunk := self.rfile.read(min(left, 1 << 20))):
            left -= len(chunk)
        self.close_connection = left > 0
        if not left:
            self.answer(b"{}")

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: first\n\n")
        self.server.go_on.wait(10)
        self.wfile.write(b"data: last\n\n")

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Proxy(NamedTuple):
    port: int
    upstream: Upstream
    log: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("localhost", self.port, timeout=20)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("localhost", port), timeout=1),
        ):
            return
        time.sleep(0.05)
    pytest.fail("Caddy does not listen")


@contextlib.contextmanager
def caddy_before(address: str, home: Path) -> Iterator[int]:
    """The Caddyfile as it is, but on high ports and without TLS; the port that it listens on."""
    caddy = tool("caddy")
    http_port, https_port = free_ports(2)
    options = f"{{\n\tadmin off\n\tskip_install_trust\n\thttp_port {http_port}\n"
    options += f"\thttps_port {https_port}\n"
    caddyfile = (ROOT / "Caddyfile").read_text()
    (home / "Caddyfile").write_text(re.sub(r"^\{\n", options, caddyfile, count=1, flags=re.M))
    env = {
        **os.environ,
        **dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(home)),
        "GOOSESTACK_DOMAIN": "http://localhost",
        "GOOSESTACK_UPSTREAM": address,
    }
    command = [caddy, "run", "--config", str(home / "Caddyfile"), "--adapter", "caddyfile"]
    with (
        (home / "log").open("wb") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(http_port, process)
            yield http_port
        finally:
            # Not terminate(): Caddy would wait for a request that a failed test left open.
            process.kill()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Caddy before an upstream that shows what it does."""
    home, upstream = tmp_path_factory.mktemp("caddy"), Upstream()
    threading.Thread(target=upstream.serve_forever, args=(0.05,)).start()
    try:
        with caddy_before(f"127.0.0.1:{upstream.server_port}", home) as port:
            yield Proxy(port, upstream, home / "log")
    finally:
        upstream.shutdown()
        upstream.server_close()


def test_an_event_arrives_before_the_next_one_exists(proxy: Proxy) -> None:
    with contextlib.closing(proxy.connect()) as connection:
        connection.request("GET", "/stream")
        response = connection.getresponse()
        assert response.read(13) == b"data: first\n\n"
        proxy.upstream.go_on.set()
        assert response.read() == b"data: last\n\n"


def test_the_daemon_learns_at_once_that_a_client_has_gone(proxy: Proxy) -> None:
    with contextlib.closing(proxy.connect()) as connection:
        connection.request("GET", "/think")
        assert proxy.upstream.thinking.wait(10)
    assert proxy.upstream.client_gone.wait(10)


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "/metrics%0a",
        "/metrics?x=1",
        "/METRICS",
        "//metrics",
        "/%6detrics",
        "/x/../metrics",
        "/x/%2e%2e/metrics%0A",
        "/readyz",
        "/readyz/",
        "/readyz%0a",
    ],
)
def test_what_is_for_the_operator_is_not_found_from_outside(proxy: Proxy, path: str) -> None:
    assert proxy.get(path) == (404, b"")


def test_another_name_is_not_found(proxy: Proxy) -> None:
    assert proxy.get("/healthz")[0] == 200
    assert proxy.get("/healthz", Host="other.example") == (404, b"")


def test_a_client_cannot_choose_its_address(proxy: Proxy) -> None:
    status, body = proxy.get("/", **{"X-Forwarded-For": "203.0.113.9"})
    assert status == 200
    assert json.loads(body)["X-Forwarded-For"] in ("127.0.0.1", "::1")


def test_headers_beyond_the_limit_are_refused(proxy: Proxy) -> None:
    assert proxy.get("/", **{"X-Filler": "x" * 20_000})[0] == 200
    assert proxy.get("/", **{"X-Filler": "x" * 40_000})[0] == 431


def post(proxy: Proxy, length: int) -> int:
    with contextlib.closing(proxy.connect()) as connection:
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        # Caddy may close before it has read all of it; its answer is there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, length, 1 << 20):
                connection.send(b"x" * min(1 << 20, length - start))
        return connection.getresponse().status


def test_a_body_beyond_the_limit_is_refused(proxy: Proxy) -> None:
    assert post(proxy, 32 * 1024 * 1024) == 200
    assert post(proxy, 40_000_001) in (413, 502)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_for_the_daemon_is_refused_by_the_daemon(
    world: World, tmp_path: Path, chunked: bool
) -> None:
    """In the format that an SDK reads; a 502, which Caddy makes of a connection that breaks, would be sent again."""
    size, piece = 39_000_000, b"x" * 65_000
    assert DEFAULTS.max_body_bytes < size < 40_000_000
    alice = world.customer(100)
    headers = {"Host": "localhost", "Authorization": f"Bearer {alice.key}", "Content-Type": "application/json"}
    with caddy_before(world.url.removeprefix("http://"), tmp_path) as port:
        for _ in range(10):
            with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=20)) as connection:
                connection.putrequest("POST", "/v1/chat/completions", skip_host=True)
                length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(size)}
                for name, text in {**headers, **length}.items():
                    connection.putheader(name, text)
                connection.endheaders()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for _ in range(size // len(piece)):
                        connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    connection.send(b"0\r\n\r\n" if chunked else b"")
                response = connection.getresponse()
                assert response.status == 413
                assert json.loads(response.read())["error"]["code"] == "request_too_large"


def test_a_failed_request_leaves_no_key_in_the_log(proxy: Proxy) -> None:
    keys = {"X-Provider-Key": "sk-canary", "X-Api-Key": "gsk_canary"}
    assert proxy.get("/fail?api_key=canary", **keys) == (502, b"")
    logged = proxy.log.read_text()
    assert '"logger":"http.log.error"' in logged
    assert "canary" not in logged
