"""The house rules that no linter knows: which way imports go, what stays behind which wall, how long a file may be, and
what has no business in the repository.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from goosestack import pricing
from goosestack.config import options, setting

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ROOT / "goosestack"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("", "clock", "errors", "postgrest", "standard_webhooks"),
    ("config", "wire", "store", "http", "logs", "metrics", "stream", "stripe_facts"),
    ("control", "ledger", "notices", "plans", "pricing", "tokenizer", "demo", "facts", "till"),
    ("accounts", "allowance", "limits", "sinks", "upstream"),
    ("auth", "outbox", "payers", "payments", "plan_table", "usage"),
    ("autotopup", "bidding", "drain", "meters", "subscriptions", "supabase"),
    ("costing", "inbox"),
    ("relay",),
    ("gateway", "cashier"),
    ("admin", "api", "billing", "front"),
    ("agents",),
    ("wiring",),
    ("app",),
    ("server",),
    ("cli",),
    ("__main__",),
)
"""From the bottom; `""` is the package itself, which has the version. A module imports from lower layers alone."""

FAMILIES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "wire": (
        ("",),
        ("body", "envelope", "media", "sse"),
        ("parts",),
        ("openai_chat", "openai_responses", "openai_embeddings", "anthropic_messages"),
        ("mobile_chat",),
    ),
    "drain": (
        ("", "prices", "rlp"),
        ("signing",),
        ("abi",),
        ("rpc", "vouchers"),
        ("chain",),
        ("books", "claiming"),
        ("claims", "paying"),
        ("closing", "collecting", "opening"),
    ),
    "store": (("", "migrations"), ("sqlite",), ("backup",)),
    "sinks": (("",), ("openmeter", "stripe_meter", "supabase", "webhook")),
    "demo": (
        ("strict", "postgrest"),
        ("faults", "openmeter", "supabase"),
        ("directive",),
        ("answer",),
        ("openai", "anthropic", "delivery"),
        ("chat", "responses", "embeddings", "acting"),
        ("server",),
        ("", "__main__"),
        ("stripe.faults", "stripe.form", "stripe.idempotency"),
        ("stripe.account",),
        ("stripe.catalog", "stripe.customers", "stripe.invoices", "stripe.meters", "stripe.returns", "stripe.shapes"),
        ("stripe.notices", "stripe.payments"),
        ("stripe.courier", "stripe.subscriptions"),
        ("stripe.checkout",),
        ("stripe.routes", "stripe.till"),
        ("stripe.control", "stripe.pages"),
        ("stripe.server",),
        ("stripe", "stripe.__main__"),
        ("stage",),
    ),
}
"""The same inside each folder."""

LONG_FILES: Mapping[str, str] = {
    "goosestack/cli.py": "every command, each a few lines",
    "goosestack/api.py": "the small endpoints, each a few lines",
    "goosestack/config.py": "every setting, once",
    "goosestack/errors.py": "the catalogue: every failure, once",
    "goosestack/relay.py": "the life of a hold, top to bottom",
    "goosestack/ledger.py": "the heart in one piece: verbs and their check",
    "goosestack/store/sqlite.py": "the store in one piece: its file and lock, its writer and its readers",
    "goosestack/stripe_facts.py": "every object of Stripe's that says something: its shape, and how it is read",
    "goosestack/pricing.py": "the price book, its two formulas and the reading of prices.toml",
    "goosestack/wire/anthropic_messages.py": "one format, whole",
}
MOST_LINES = 450

LONG_FUNCTIONS: Mapping[str, str] = {
    "goosestack/ledger.py check": "one statement that recomputes all books",
}
MOST_FUNCTION_LINES = 60

PURE = frozenset(
    """__future__ abc bisect collections collections.abc dataclasses decimal enum json math msgspec re tomllib typing
    unicodedata urllib.parse""".split()
)
"""What a module without I/O may import beside this package."""


# --- reading the code -----------------------------------------------------------------------------------------


@cache
def product() -> dict[str, Path]:
    """Every module by its name below the package: `ledger`, `wire`, `wire.body`."""
    found = {}
    for path in sorted(PRODUCT.rglob("*.py")):
        parts = path.relative_to(PRODUCT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """The full names of what a file imports, wherever in it: modules where they are modules, else names of them."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for full in imports(product()[name]):
        if full == "goosestack" or full.startswith("goosestack."):
            below = full.removeprefix("goosestack").removeprefix(".")
            found.add(below if below in product() else below.rpartition(".")[0])
    return found


def other_imports(name: str) -> set[str]:
    """The modules of others that a module imports."""
    found = set()
    for node in ast.walk(tree(product()[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return {each for each in found if each.partition(".")[0] != "goosestack"}


def rank(name: str) -> tuple[int, int]:
    """Where a module stands: its layer, and its layer within its folder."""
    top, _, inner = name.partition(".")
    (outer,) = (level for level, names in enumerate(LAYERS) if top in names)
    if top not in FAMILIES:
        return outer, 0
    (within,) = (level for level, names in enumerate(FAMILIES[top]) if inner in names)
    return outer, within


def importers_of(package: str) -> set[str]:
    """The modules that import a package of others, or something in it."""
    return {name for name in product() if package in {each.partition(".")[0] for each in other_imports(name)}}


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


# --- which way imports go -------------------------------------------------------------------------------------


def test_every_module_has_its_place_in_one_layer() -> None:
    placed = [name for layer in LAYERS for name in layer]
    assert sorted(tops(set(product()))) == sorted(placed)
    for folder, layers in FAMILIES.items():
        inside = {name.partition(".")[2] for name in product() if name.partition(".")[0] == folder}
        assert sorted(inside) == sorted(name for layer in layers for name in layer)


@pytest.mark.parametrize("name", sorted(product()))
def test_imports_go_strictly_downward(name: str) -> None:
    upward = sorted(other for other in own_imports(name) if rank(other) >= rank(name))
    assert not upward, f"{name} must not import {', '.join(upward)}"


# --- walls ----------------------------------------------------------------------------------------------------


def test_the_database_is_spoken_to_in_the_store_alone() -> None:
    assert importers_of("sqlite3") == {"store.sqlite", "store.backup"}


def test_the_web_framework_stays_at_the_door() -> None:
    assert tops(importers_of("starlette")) <= {"agents", "app", "api", "billing", "front", "web"}
    assert tops(importers_of("uvicorn")) == {"server"}


def test_chains_are_known_in_one_folder() -> None:
    libraries = ("coincurve", "eth_account", "eth_hash", "eth_keys", "eth_utils", "rlp", "web3")
    assert tops({name for library in libraries for name in importers_of(library)}) == {"drain"}


def test_nothing_of_chains_is_loaded_where_drain_is_off() -> None:
    program = "import sys, goosestack.cli, goosestack.app, goosestack.server; "
    ask = program + "print(*sorted({'coincurve', 'eth_account', 'eth_hash', 'goosestack.drain'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_requests_leave_through_one_client() -> None:
    assert tops(importers_of("aiohttp")) == {"http", "demo"}
    clients = {"httpx", "httpx2", "requests", "urllib3", "socket"}
    assert tops({name for client in clients for name in importers_of(client)}) <= {"server", "demo"}  # `server` listens
    assert not {name for name in product() if "http.client" in other_imports(name)}


def test_stripe_is_spoken_to_in_one_place_and_loaded_only_where_it_is_needed() -> None:
    assert importers_of("stripe") == {"till"}
    at_the_top = [node for node in tree(product()["till"]).body if isinstance(node, ast.Import)]
    assert "stripe" not in {alias.name for node in at_the_top for alias in node.names}


def test_the_environment_is_read_in_one_place() -> None:
    readers = set()
    for name, path in product().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
                readers.add(name)
    assert readers == {"config"}
    assert importers_of("dotenv") == {"config"}


def test_the_configuration_is_handed_out_at_the_top() -> None:
    assert {name for name in product() if "config" in own_imports(name)} == {"app", "cli", "wiring"}


@pytest.mark.parametrize(
    "name", [name for name in product() if name.partition(".")[0] in ("wire", "pricing", "stripe_facts")]
)
def test_what_is_pure_does_no_input_and_no_output(name: str) -> None:
    assert other_imports(name) <= PURE
    assert own_imports(name) <= {"errors"} | {other for other in product() if other.partition(".")[0] == "wire"}
    called = {
        node.func.id
        for node in ast.walk(tree(product()[name]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


def test_the_ledger_knows_the_store_and_errors_alone() -> None:
    assert own_imports("ledger") <= {"store", "errors"}
    assert tops(other_imports("ledger")) <= sys.stdlib_module_names
    assert not other_imports("ledger") & {"asyncio", "time", "datetime", "os", "json"}


# --- shape ----------------------------------------------------------------------------------------------------


def test_no_module_is_a_drawer() -> None:
    drawers = {"common", "core", "helper", "helpers", "lib", "misc", "shared", "util", "utils"}
    assert not {part for name in product() for part in name.split(".")} & drawers


MUTATORS = frozenset(
    "add append appendleft clear discard extend insert pop popitem popleft remove setdefault sort update".split()
)


def bound_at_the_top(path: Path) -> set[str]:
    found = set()
    for node in tree(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def changed_later(path: Path) -> Iterator[tuple[str, int]]:
    """Names whose object is changed inside a function: by a method, by an index, or by `global`."""
    for function in ast.walk(tree(path)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        for node in ast.walk(function):
            match node:
                case ast.Global(names=names):
                    yield from ((name, node.lineno) for name in names)
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=verb)) if verb in MUTATORS:
                    yield name, node.lineno
                case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                    yield name, node.lineno


@pytest.mark.parametrize("name", sorted(product()))
def test_nothing_at_the_top_of_a_module_changes(name: str) -> None:
    path = product()[name]
    top = bound_at_the_top(path)
    assert [f"{each} in line {line}" for each, line in changed_later(path) if each in top] == []


def sources() -> list[Path]:
    return [*product().values(), *(ROOT / "scripts").rglob("*.py"), ROOT / "scripts" / "bench"]


def test_a_file_can_be_read_in_one_go() -> None:
    long = {str(path.relative_to(ROOT)) for path in sources() if path.read_text().count("\n") > MOST_LINES}
    assert long == set(LONG_FILES), "split it, or say in LONG_FILES why not; take out what is short again"


def test_a_function_can_be_held_in_the_head() -> None:
    long = {
        f"{path.relative_to(ROOT)} {node.name}"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    }
    assert long == set(LONG_FUNCTIONS), "split it, or say in LONG_FUNCTIONS why not; take out what is short again"


def undocumented(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    """Public classes and functions without a docstring; the methods of a protocol's smallest parts may go without."""
    for inner in node.body:
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
            if ast.get_docstring(inner) is None:
                yield f"{where}.{inner.name}"
            if isinstance(inner, ast.ClassDef):
                yield from undocumented(inner, f"{where}.{inner.name}")


UNDOCUMENTED = re.compile(r"store\.(Rows|Tx)\.|demo\.")
"""Methods that are sqlite3's own, and the demo upstream's siblings, which say it once in their base."""


@pytest.mark.parametrize("name", sorted(product()))
def test_everything_public_says_what_it_is(name: str) -> None:
    module = tree(product()[name])
    assert ast.get_docstring(module) is not None or name == "demo.__main__"
    assert [each for each in undocumented(module, name) if not UNDOCUMENTED.match(each)] == []


# --- the repository -------------------------------------------------------------------------------------------


@cache
def tracked() -> tuple[Path, ...]:
    """The files that are, or are about to be, in the repository; in a copy without one, all but what tools leave."""
    if (ROOT / ".git").exists():
        command = [
            "git",
            "-c",
            f"safe.directory={ROOT}",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        found = [ROOT / name for name in listed if name]
    else:
        leftovers = re.compile(r"(^|/)(\.venv|__pycache__|\.\w+_cache|\.hypothesis|[^/]*\.egg-info)(/|$)|\.db\b")
        found = [path for path in ROOT.rglob("*") if not leftovers.search(str(path.relative_to(ROOT)))]
    return tuple(sorted(path for path in found if path.is_file()))


def models_asked_for(folder: str) -> Iterator[tuple[str, str]]:
    """Each file of a folder that leaves the date to the clock, with each text in it that could be a model's name."""
    for path in sorted((ROOT / folder).glob("*.py")):
        if "TODAY" not in bound_at_the_top(path):
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path.name, node.value


@pytest.mark.parametrize(("folder", "operators"), [("tests", "tests/world.toml"), ("scripts/benchlib", None)])
def test_no_test_and_no_benchmark_asks_for_a_model_that_ends_on_some_day(folder: str, operators: str | None) -> None:
    generated = (PRODUCT / "prices.json").read_text()
    book = pricing.load(generated, "" if operators is None else (ROOT / operators).read_text())
    asked = [(file, name) for file, name in models_asked_for(folder) if book.providers_of(name)]
    assert asked
    sold = {name: [book.find(provider, name) for provider in book.providers_of(name)] for _, name in asked}
    assert [each for each in asked if not any(model and model.retires is None for model in sold[each[1]])] == []


FORBIDDEN: Mapping[str, str] = {
    r"(?<![\w.])/(?:work|root|home|Users)/\w": "a path of somebody's machine",
    r"pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|yarnpkg\.com|proxy\.golang\.org|crates\.io": "a registry",
    r"(?i)\bsessions?\b": "something of how it was made, not of what it is",
    r"(?i)\b(?:todo|fixme|xxx|hack)\b": "unfinished work",
}
SESSIONS = re.compile(
    r"""[-./=`'"]sessions?\b|\bsessions?[-/=`'"]|\bsession(: (aiohttp|pytest)|\.\w)"""
    r"""|(shared|owns the) session|a session of its own""",
    re.IGNORECASE,
)
"""Where it is a name in code, or what a library or the kernel calls so."""


def test_no_file_says_where_or_how_it_was_made() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__).resolve() or path.suffix in (".lock", ".json"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            line = SESSIONS.sub("", line)
            found += [
                f"{path.relative_to(ROOT)}:{number}: {why}"
                for words, why in FORBIDDEN.items()
                if re.search(words, line)
            ]
    assert found == []


def test_no_lock_or_data_file_names_a_registry() -> None:
    registry = next(words for words, why in FORBIDDEN.items() if why == "a registry")
    texts = [path for path in tracked() if path.suffix in (".lock", ".json")]
    assert texts
    assert [path for path in texts if re.search(registry, path.read_text())] == []


def test_every_setting_that_the_operations_files_name_exists() -> None:
    ours = {setting(entry) for entry in options()}
    theirs = {"CREDENTIALS_DIRECTORY", "PYTHONUNBUFFERED", "GOOSESTACK_DOMAIN", "GOOSESTACK_UPSTREAM"}
    for name in ("goosestack.service", "goosestack-backup.service", "goosestack-backup.timer", "Caddyfile"):
        text = re.sub(r"^\w+=AF_.*$", "", (ROOT / name).read_text(), flags=re.MULTILINE)
        named = set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", text))
        assert named <= ours | theirs, name


@pytest.mark.parametrize(
    "name",
    """goosestack.db goosestack.db-wal goosestack.db-shm goosestack.db.lock goosestack.db.sock goosestack.db.ballast
    goosestack.db.replaced-20260101T000000000000Z goosestack.db.replaced-20260101T000000000000Z-wal
    .goosestack.db.restoring backups/goosestack-20260101T000000000000Z.db backups/.copy.db.part books.sqlite3
    .env .env.production prices.toml tokenizer/fb374d419588a4632f3f557e76b4b70aebbca790
    .venv/bin/python goosestack/__pycache__/app.cpython-311.pyc goosestack.egg-info/PKG-INFO .mypy_cache/x""".split(),
)
def test_git_ignores_what_holds_money_people_and_secrets(name: str, tmp_path: Path) -> None:
    assert ignored(name, tmp_path)


@pytest.mark.parametrize(
    "name", [".env.example", "goosestack/prices.json", "goosestack/tokenizer.py", "goosestack/store"]
)
def test_git_does_not_ignore_what_belongs_to_the_project(name: str, tmp_path: Path) -> None:
    assert not ignored(name, tmp_path)


def ignored(name: str, folder: Path) -> bool:
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True, capture_output=True)
    (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], cwd=folder, check=False)
    assert done.returncode in (0, 1)
    return done.returncode == 0
