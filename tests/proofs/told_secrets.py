"""Every credential is a canary, and a daemon lives through all that can happen to it: in nothing that it writes or
answers may one of them be found.

The daemon has every setting that is a secret, as credential files, and is asked over every route, in every format, by
key, by the caller's own provider key and by access token, while its upstreams fail in every way that they know, quoting
the key that they were sent; receivers fail, its own statements fail, and it is killed. Then its log, its database and
what lies beside it, its copies, its answers, its metrics, what its commands print, and what the kernel shows of it
are searched, also for the forms in which a secret could have been written down.

In full the daemon sells by vouchers, too, claims and closes, with a node that fails and quotes the key in its address.
The tests' chain takes longer to start than all else that the short form does: there the wallet's key and the node's
address are met by what `goosestack config` prints and by a start that finds no node, and by no daemon that serves.
"""

from __future__ import annotations

import base64
import json
import signal
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Lock
from typing import TYPE_CHECKING, Any

from goosestack.config import options, setting
from goosestack.demo.faults import FAULTS, fits
from goosestack.logs import redact
from tests.asking import Reply, ask, directed
from tests.canaries import forms, found_below, found_in, written_by_a_daemon
from tests.forgeries import FORGED, event
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, asks, talk
from tests.project import ANON_KEY, SECRET as PROJECT_SECRET, SERVICE_KEY, Project
from tests.proofs.proof import Attempt, Proof
from tests.proofs.wallet import CHANNELS, agent, chained, paid_and_closed, unserved
from tests.receivers import Process
from tests.shell import operator_of
from tests.shops import Shop
from tests.tills import KEY, SECRET, Till
from tests.world import (
    ANTHROPIC_KEY,
    OPENAI_KEY,
    PRICES,
    Customer,
    Daemon,
    Program,
    Upstream,
    World,
    bare_environment,
)

if TYPE_CHECKING:
    from tests.channels import Channel

ROUTER_KEY, PROXY_KEY = "sk-or-v1-operator-router-canary-0005", "operator.litellm~canary+0006"
TOKEN, ADMIN = "om-operator-openmeter-canary-0007", "operator-admin-token-canary-0008-0008"
NOTICES, USAGE = (
    f"whsec_{base64.b64encode(each).decode()}" for each in (b"notices-canary-0009-" * 2, b"usage-canary-10" * 2)
)
OWN = {"openai": "sk-proj-BobsOwnOpenaiCanary-0123456789", "anthropic": "sk-ant-api03-BobsOwnCanary-0123456789"}
SHAPELESS = "BobsOwn.Key~Canary+of/no=known_Shape"
OPERATORS: Mapping[str, str] = {
    "OPENAI_API_KEY": OPENAI_KEY,
    "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
    "OPENROUTER_API_KEY": ROUTER_KEY,
    "LITELLM_API_KEY": PROXY_KEY,
    "STRIPE_SECRET_KEY": KEY,
    "STRIPE_WEBHOOK_SECRET": SECRET,
    "NOTIFY_WEBHOOK_SECRET": NOTICES,
    "METER_WEBHOOK_SECRET": USAGE,
    "OPENMETER_TOKEN": TOKEN,
    "JWT_SECRET": PROJECT_SECRET,
    "SUPABASE_ANON_KEY": ANON_KEY,
    "SUPABASE_SERVICE_KEY": SERVICE_KEY,
    "ADMIN_TOKEN": ADMIN,
    **CHANNELS,
}
"""Every setting that is a secret, and what of it: one that is added must be planted here."""

WIRES = {"chat": CHAT, "responses": RESPONSES, "embeddings": EMBEDDINGS, "messages": MESSAGES, "count_tokens": COUNT}
MODELS = {"router": "openai/gpt-5-nano", "proxy": "gpt-5-nano"}
PAYERS = ("credits", "own key", "shapeless own key", "token", "router", "proxy", "no key")
VOUCHER = "voucher"
"""One more, in full alone."""
ENDLESS = ("endless_line", "endless_body", "gzip_bomb")
"""Faults that take their time, and are met in full alone."""
SLOW = ("drip", "byte_by_byte")
"""Faults in which an embedding would take minutes."""
AT_ONCE = 4


@dataclass(slots=True)
class House:
    """The daemon, and everybody else with whom it has to do, whose files lie elsewhere."""

    folder: Path
    world: World
    till: Till
    project: Project
    receivers: list[Process]
    others: list[Program]
    bob: Customer
    secrets: dict[str, str] = field(default_factory=lambda: dict(OPERATORS))
    """By a name for each: all that must be found nowhere."""
    wrong: list[str] = field(default_factory=list)
    dave: Channel | None = None
    """In full alone: his channel, on a chain of its own."""
    purse: Lock = field(default_factory=Lock)

    @classmethod
    def build(cls, root: Path, *, full: bool) -> House:
        """Start everybody; in short with one upstream for all, and usage is told to Stripe and the project alone."""
        folder, beyond = root / "house", root / "beyond"
        for path in (folder, beyond, beyond / "credentials"):
            path.mkdir(parents=True)
        for name in OPERATORS.keys() - CHANNELS.keys():
            (beyond / "credentials" / name).write_text(OPERATORS[name])
        (folder / "prices.toml").write_text(
            PRICES.read_text() + f'[models."{MODELS["proxy"]}"]\nprovider = "litellm"\n'
        )
        upstream, till, project = Upstream(beyond), Till.start(beyond), Project(beyond)
        others, receivers, routed, sinks = [], [], upstream.url, "stripe_meter,supabase"
        if full:
            keys = ["--openai-key", ROUTER_KEY, "--anthropic-key", PROXY_KEY]
            others = [Program(["goosestack.demo", *keys], bare_environment(), beyond / "router.out", beyond)]
            routed = others[0].wait_for(r"listening on (\S+)").group(1)
            sinks += ",openmeter,webhook"
            receivers = [
                Process(beyond, "goosestack.demo.openmeter", "--token", TOKEN),
                Process(beyond, "tests.receivers", "webhook", USAGE),
            ]
        metered, hooked = (each.url for each in receivers) if receivers else (upstream.url, upstream.url)
        settings = {
            "CREDENTIALS_DIRECTORY": str(beyond / "credentials"),
            "OPENAI_API_KEY": "",
            "ANTHROPIC_API_KEY": "",
            "OPENROUTER_BASE_URL": f"{routed}/v1",
            "LITELLM_BASE_URL": f"{routed}/v1",
            "PRICES_FILE": str(folder / "prices.toml"),
            "PUBLIC_URL": "https://llm.example.com",
            "STRIPE_API_BASE": till.url,
            "STRIPE_METER_EVENT": "tokens",
            "SUPABASE_URL": project.url,
            "SUPABASE_CHECK_S": "1",
            "PLAN_SOURCE": "table:profiles.plan",
            "FUNDING": "credits,allowance",
            "METERS": sinks,
            "OPENMETER_URL": metered,
            "METER_WEBHOOK_URL": f"{hooked}/usage",
            "NOTIFY_WEBHOOK_URL": f"{hooked}/usage",
            "LOG_LEVEL": "debug",
            "FORWARDED_ALLOW_IPS": "127.0.0.1",
        }
        chain = chained(beyond, settings) if full else None
        world = World(folder, upstream, Daemon(folder, upstream.url, **settings))
        till.send_webhooks_to(f"{world.url}/billing/webhook")
        bob = world.customer(100_000, name="bob", pro=True)
        house = cls(folder, world, till, project, receivers, others, bob)
        if chain is not None:
            house.others.append(chain.program)
            house.dave = agent(world, chain)
        house.secrets |= {"Bob's key": bob.key, "Bob's shapeless key": SHAPELESS}
        house.secrets |= {f"Bob's key of {name}": key for name, key in OWN.items()}
        return house

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Stop everybody in the end."""
        try:
            with self.world.closing():
                yield
        finally:
            for program in (*self.others, *(each.program for each in self.receivers)):
                program.stop(signal.SIGKILL)
            self.project.close()
            self.till.stop()

    # --- asking ---

    def ask(self, method: str, path: str, *, told: Iterable[str] = (), **given: Any) -> Reply:
        """Ask, and search the answer: `told` may be in it."""
        reply = ask(self.world, method, path, **given)
        shown = reply.data + b"\n".join(f"{name}: {value}".encode() for name, value in reply.headers.items())
        self.search(shown, f"the answer {reply.status} of {method} {path}", told)
        return reply

    def voucher(self) -> str:
        """Dave's next."""
        assert self.dave is not None
        with self.purse:
            return self.dave.voucher(500_000)

    def command(self, *args: str, **settings: str) -> None:
        """What an operator does, and what the shell shows of it."""
        shown = operator_of(self.world).run(*args, env=settings)
        self.search("".join(shown).encode(), f"what `goosestack {' '.join(args)}` prints")

    def search(self, data: bytes, where: str, told: Iterable[str] = ()) -> None:
        """Note what of all secrets is in it."""
        names = {secret: name for name, secret in self.secrets.items() if secret not in told}
        self.wrong += [f"{names[secret]} is in {where}" for secret in found_in(data, names)]

    def search_process(self) -> None:
        """What the kernel shows of the daemon and of its children."""
        for pid in _family(self.world.daemon.program.process.pid):
            for name in ("cmdline", "environ"):
                self.search(Path(f"/proc/{pid}/{name}").read_bytes(), f"/proc/{pid}/{name}")


def _family(pid: int) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(each for child in children for each in _family(child))]


# --- what happens ---------------------------------------------------------------------------------------------

Case = tuple[str, bool, str | None, str]
"""A wire format, whether streamed, the upstream's fault, who pays."""


def cases(chance: Random, count: int, *, full: bool) -> list[Case]:
    """So many requests, of all that there are."""
    payers = (*PAYERS, VOUCHER) if full else PAYERS
    found = [
        (wire, stream, fault, payer)
        for wire in WIRES
        for stream in (False, True)
        for fault in (None, *FAULTS)
        for payer in payers
        if fits(fault, wire, stream)
        and not (stream and wire in ("embeddings", "count_tokens"))
        and not (payer in MODELS and wire != "chat")
        and (full or fault not in ENDLESS)
        and not (wire == "embeddings" and fault in SLOW)
    ]
    chance.shuffle(found)
    # of every payer an answer, and a refusal that quotes the key that was sent
    obliged = [(None, payer) for payer in payers] + [("error_401", payer) for payer in payers if payer != "no key"]
    must = [next(each for each in found if each[2:] == (fault, payer)) for fault, payer in obliged]
    return (must + [each for each in found if each not in must])[:count]


def requested(house: House, case: Case) -> Reply:
    """One request of a model."""
    wire, stream, fault, payer = case
    path, headers = WIRES[wire], dict[str, str]()
    key: str | None = house.bob.key
    directive = {"words": 5, "hang_s": 0.1, "delay_ms": 1, **({} if fault is None else {"fault": fault})}
    body = asks(path, directed("Hello", **directive), **({"stream": True} if stream else {}))
    match payer:
        case "own key":
            headers["x-provider-key"] = OWN["anthropic" if wire in ("messages", "count_tokens") else "openai"]
        case "shapeless own key":
            headers["x-provider-key"] = SHAPELESS
        case "token":
            key = house.secrets["Carol's token"]
        case "no key":
            key = f"gsk_{SHAPELESS[:7]}{'x' * 36}"
        case "router" | "proxy":
            body["model"] = MODELS[payer]
        case "voucher":
            key = None
            headers["x-drain-voucher"] = house.voucher()
    return house.ask("POST", path, key=key, body=body, headers=headers)


def everywhere_else(attempt: Attempt, house: House) -> None:
    """Every other route, with every credential, in its place and out of it."""
    signed_up = ask(house.world, "POST", "/v1/keys", body={"email": "alice@example.com", "name": "laptop"}).json()
    house.secrets["Alice's key"] = signed_up["api_key"]
    second = ask(house.world, "POST", "/v1/keys", key=signed_up["api_key"], body={"name": "other"}).json()
    house.secrets["Alice's second key"] = second["api_key"]
    open_to_all = "/ /v1/docs /api/mcp/providers /v1/models /v1/models/x /v1/pricing /readyz /metrics"
    own = "/v1/keys /v1/usage /v1/usage?format=csv /v1/holds /api/me /billing/payments /billing/portal"
    paths = f"{open_to_all} {own} /v1/admin/stats /v1/admin/vouchers".split()
    given = sorted(house.secrets.values())
    for secret in (*attempt.random.sample(given, min(len(given), attempt.goal["credentials"])), None):
        for path in paths:
            house.ask("GET", path, key=secret, headers={"x-forwarded-for": "10.1.1.1"})
        if secret is None:
            continue
        attempt.count("credentials")
        for path in (f"/v1/keys/{secret}", f"/v1/models/{secret}", f"/{secret}", f"/v1/chat/{secret}"):
            if redact(secret) != secret:  # what has no shape of a credential is a path as any other
                house.ask("DELETE", path, key=house.bob.key)
        house.ask("POST", CHAT, headers={"x-api-key": secret, "authorization": f"Bearer {secret}x"}, body=asks(CHAT))
        house.ask("POST", CHAT, headers={"x-api-key": secret}, data=b"{")
        for reply in talk(
            house.world, f"GET / HTTP/1.1\r\nauthorization: Bearer {secret}\r\nbad header\r\n\r\n".encode()
        ):
            house.search(reply.body, "the answer to what is no HTTP")
    house.ask("DELETE", f"/v1/keys/{second['id']}", key=signed_up["api_key"])
    house.ask("GET", "/v1/usage", key=second["api_key"])
    attempt.meet("every other route")


def money(attempt: Attempt, house: House) -> None:
    """Buying, by a Stripe that fails; webhooks, good and forged."""
    shop = Shop(house.world, house.till)
    shop.buy(house.bob)
    kinds = ("error_500", "error_429", "cut", "not_json")
    for kind in kinds if attempt.full else (attempt.random.choice(kinds),):
        house.till.fault(kind, path="/v1/checkout/sessions", times=3)
        house.ask("POST", "/billing/checkout", key=house.bob.key, body={"type": "credits", "amount": 2500})
        house.till.no_faults()
    setting_ = {"enabled": True, "below": 500, "amount": 1000, "daily_cap": 5000}
    house.ask("POST", "/billing/auto-topup", key=house.bob.key, body=setting_)
    forged = list(FORGED.values())
    for number, forge in enumerate(forged if attempt.full else attempt.random.sample(forged, 10)):
        body, header = forge(event())
        more = {} if header is None else {"stripe-signature": header}
        house.ask("POST", "/billing/webhook", data=body, headers={"x-forwarded-for": f"10.2.{number}.1", **more})
    house.command("stripe", "reviews")
    house.command("stripe", "reconcile")
    attempt.meet("Stripe that fails")


def faults_inside(attempt: Attempt, house: House) -> None:
    """A statement that fails where nobody foresaw it, receivers that fail, a kill."""
    house.project.tell("POST", "faults", path="/", times=2, status=401)
    for receiver in house.receivers:
        receiver.tell("POST", "faults", kind="status", times=2, status=401)
    with closing(sqlite3.connect(house.world.daemon.db, isolation_level=None, timeout=20)) as db:
        db.execute("CREATE TRIGGER nobody BEFORE INSERT ON usage_log BEGIN SELECT RAISE(ABORT, 'no'); END")
        reply = requested(house, ("chat", False, None, "credits"))
        attempt.must(reply.status == 500, f"a statement failed, and the answer was {reply.status}")
        db.execute("DROP TRIGGER nobody")
    attempt.meet("a fault inside")
    house.command("meters", "status")
    house.command("config")
    house.command("key", "list")
    house.command("backup", str(house.folder / "copy.db"))
    house.search_process()
    limits = Path(f"/proc/{house.world.daemon.program.process.pid}/limits").read_text()
    (cores,) = [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")]
    attempt.must(cores == ["0", "0"], f"a daemon that crashes would write its memory down: core file size {cores}")
    house.world.daemon.program.process.send_signal(signal.SIGABRT)
    house.world.daemon.program.process.wait()
    house.world.daemon.start()
    attempt.meet("a crash")


def used(attempt: Attempt, house: House) -> None:
    """Each of the operator's credentials has really gone where it belongs: else it could be found nowhere."""
    sent = house.world.upstream.log.read_text()
    attempt.meet("a provider's key was sent", int(OPENAI_KEY in sent and ANTHROPIC_KEY in sent and SHAPELESS in sent))
    attempt.meet("Stripe was asked", len(house.till.requests(path="/v1/checkout/sessions")))
    headers = json.dumps(house.project.tell("GET", "requests"))
    attempt.meet("the project was asked", int(ANON_KEY in headers and SERVICE_KEY in headers))
    attempt.expect("a provider's key was sent", "Stripe was asked", "the project was asked")
    if attempt.full:
        attempt.meet("usage was told", min(receiver.totals()["requests"] for receiver in house.receivers))
        attempt.expect("usage was told", "router: an answer")


def planted(attempt: Attempt, house: House) -> None:
    """What the search would find: every secret, in every form."""
    for name, secret in house.secrets.items():
        for form in forms(secret):
            found = found_in(b"{" + form + b"}", house.secrets.values())
            attempt.must(secret in found, f"{name} was planted as {form!r}, and not found")
            attempt.meet("a canary that was planted and found")
    scrap = house.folder / "goosestack.db-wal.scrap-wal"
    scrap.write_bytes(b"x" * 5000 + OPENAI_KEY.encode())
    attempt.must(found_below(house.folder, house.secrets) != [], "a canary was planted in a file, and not found")
    scrap.unlink()
    attempt.expect("a canary that was planted and found")


def run(attempt: Attempt) -> None:
    """All that happens, then the search."""
    attempt.expect("every other route", "Stripe that fails", "a fault inside", "a crash", "a start without a node")
    secret_settings = {setting(entry) for entry in options() if entry.metadata["secret"]}
    attempt.must(secret_settings == set(OPERATORS), f"no canary for {sorted(secret_settings ^ set(OPERATORS))}")
    house = House.build(attempt.folder, full=attempt.full)
    with house.closing():
        token = house.project.token(alg="HS256", lifetime_s=3600)
        house.secrets |= {"Carol's token": token, "an expired token": house.project.token(alg="HS256", lifetime_s=-60)}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = cases(attempt.random, attempt.goal["requests"], full=attempt.full)
            for case, reply in zip(found, pool.map(lambda case: requested(house, case), found), strict=True):
                attempt.meet(f"{case[3]}: {'an answer' if reply.status == 200 else 'a refusal'}")
        attempt.expect(*(f"{payer}: a refusal" for payer in PAYERS), "credits: an answer", "token: an answer")
        attempt.count("requests", len(found))
        everywhere_else(attempt, house)
        money(attempt, house)
        unserved(attempt, house, OPERATORS)
        if attempt.full:
            paid_and_closed(attempt, house, lambda: requested(house, ("chat", False, None, VOUCHER)))
        faults_inside(attempt, house)
        house.ask("GET", "/metrics", headers={"authorization": f"Bearer {ADMIN}"})
        used(attempt, house)
        attempt.must(house.wrong == [], "; ".join(house.wrong[:5]))
        wrong = found_below(house.folder, house.secrets)
        attempt.must(wrong == [], "; ".join(wrong[:5]))
        searched = list(written_by_a_daemon(house.folder))
        names = {path.name for path in searched}
        attempt.must({"daemon.out", "goosestack.db", "goosestack.db-wal", "copy.db"} <= names, f"searched only {names}")
        attempt.figure(
            f"{len(house.secrets)} canaries, {sum(path.stat().st_size for path in searched):,} bytes searched"
        )
        planted(attempt, house)
    attempt.must(found_below(house.folder, house.secrets) == [], "a stop has written a secret down")


PROOF = Proof(
    name="secrets",
    claim="No credential is ever in a log, an answer, a database, its log, a copy, a metric or a process list.",
    short={"requests": 30, "credentials": 4},
    full={"requests": 1_000, "credentials": 20},
    run=run,
    limit_s=(90, 1_200),
)
