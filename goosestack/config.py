"""Every option, declared once: the dataclass yields the parsing, `goosestack config`, `.env.example`, the README's
table and the test of all four.

A setting is read from, in this order, a credential file (`$CREDENTIALS_DIRECTORY/NAME`, as systemd hands them out),
the environment, `.env` in the working directory. Secrets are taken out of the process's environment once read.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from decimal import Decimal, InvalidOperation
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from dotenv import dotenv_values

from goosestack.errors import Refusal


class _Bad(Exception):
    """Why a value is refused; completes the sentence `NAME ...`."""


def _text(value: str) -> str:
    if not value.isprintable():
        raise _Bad("has a character that cannot be printed")
    return value


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not (value.isascii() and value.isdigit()) or not least <= int(value) <= most:
            raise _Bad(f"must be a whole number from {least} to {most}")
        return int(value)

    return parse


def _choice(*values: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in values:
            raise _Bad(f"must be one of {', '.join(values)}")
        return value

    return parse


def _flag(value: str) -> bool:
    return _choice("true", "false")(value.lower()) == "true"


def _percent(value: str) -> Decimal:
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise _Bad("must be a number of percent, as 20 or 12.5") from None
    if not number.is_finite() or not 0 <= number <= 10_000 or -cast(int, number.as_tuple().exponent) > 4:
        raise _Bad("must be from 0 to 10000, with at most 4 decimals")
    return number


def _url(value: str) -> str:
    parts = urlsplit(value)
    _refuse_credentials(parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _Bad("must be an http or https URL without a query")
    return value.rstrip("/")


def _refuse_credentials(netloc: str) -> None:
    """An address is shown, logged and sent on; and what of it is secret, nobody could tell."""
    if "@" in netloc:
        raise _Bad("must not have a user or a password before its host")


def _v1_url(value: str) -> str:
    url = _url(value)
    if not url.endswith("/v1"):
        raise _Bad("must end in /v1")
    return url


def _bare_url(value: str) -> str:
    url = _url(value)
    if url.endswith("/v1"):
        raise _Bad("must not end in /v1, which is added to it")
    return url


def _token(value: str) -> str:
    if len(value.encode()) < 32:
        raise _Bad("must have at least 32 bytes")
    return _key(value)


def _key(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise _Bad("must be printable ASCII without blanks")
    return value


def _origins(value: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in value.split(",") if origin.strip())
    for origin in origins:
        _refuse_credentials(origin)
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path):
            raise _Bad(f"must list origins as https://example.com, or be *; {origin} is neither")
    if "*" in origins and len(origins) > 1:
        raise _Bad("must be * alone, or a list of origins")
    return origins


def _networks(value: str) -> tuple[str, ...]:
    networks = tuple(network.strip() for network in value.split(",") if network.strip())
    for network in networks:
        try:
            ip_network(network)
        except ValueError:
            raise _Bad(f"must list addresses or networks; {network} is neither") from None
    return networks


def _page(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not value.isascii():
        raise _Bad("must be an http or https URL without credentials")
    return _key(value)


def _matching(pattern: str, why: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if re.fullmatch(pattern, value, re.ASCII) is None:
            raise _Bad(why)
        return value

    return parse


_stripe_key = _matching(r"(sk|rk)_(test|live)_\w{8,}", "must begin with sk_test_, sk_live_, rk_test_ or rk_live_")
_stripe_price = _matching(r"price_\w+", "must be the id of a price, which begins with price_")
_private_key = _matching(r"(0x)?[0-9a-fA-F]{64}", "must be 64 hexadecimal digits")
_contract = _matching(r"0x[0-9a-fA-F]{40}", "must be 0x and 40 hexadecimal digits")


def _webhook_secrets(value: str) -> tuple[str, ...]:
    secrets = tuple(secret.strip() for secret in value.split(","))
    if not 1 <= len(secrets) <= 2 or any(re.fullmatch(r"whsec_[\x21-\x7e]{24,}", each) is None for each in secrets):
        raise _Bad("must be a secret that begins with whsec_, or two with a comma while one replaces the other")
    return secrets


def _addresses(value: str) -> tuple[str, ...]:
    found = tuple(_url(each.strip()) for each in value.split(","))
    if len(set(found)) < len(found):
        raise _Bad("must not name an address twice")
    return found


def _notice_secret(value: str) -> str:
    try:
        key = b64decode(value.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not value.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise _Bad("must be whsec_ and the base64 of 24 to 64 bytes")
    return value


@dataclass(frozen=True, slots=True)
class Topup:
    """An amount that is sold, and what is given on top of it, in cents."""

    cents: int
    bonus: int = 0

    def __str__(self) -> str:
        return f"{self.cents}+{self.bonus}" if self.bonus else str(self.cents)


def _topups(value: str) -> tuple[Topup, ...]:
    found = []
    for part in value.split(","):
        cents, _, bonus = part.strip().partition("+")
        found.append(Topup(_integer(50, 1_000_000)(cents), _integer(0, 1_000_000)(bonus or "0")))
    if len({topup.cents for topup in found}) < len(found):
        raise _Bad("must not name an amount twice")
    return tuple(found)


def _path(value: str) -> Path:
    return Path(_text(value)).expanduser()


def option(group: str, default: str | None, parse: Callable[[str], object], help: str, *, secret: bool = False) -> Any:
    """A field of `Config`: its default as an operator would write it, None for unset."""
    metadata = {"group": group, "default": default, "parse": parse, "help": help, "secret": secret}
    return field(default=None if default is None else parse(default), metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one daemon. A field's setting is its name in capitals."""

    host: str = option("Server", "127.0.0.1", _text, "Address to listen on; a proxy with TLS belongs in front.")
    port: int = option("Server", "3000", _integer(0, 65_535), "Port to listen on.")
    db_path: Path = option("Server", "./goosestack.db", _path, "The SQLite file: every cent and every request.")
    public_url: str | None = option("Server", None, _url, "Where callers reach this gateway; used in messages.")
    forwarded_allow_ips: tuple[str, ...] = option(
        "Server", "127.0.0.1,::1", _networks, "Proxies whose X-Forwarded-For is believed."
    )
    cors_allowed_origins: tuple[str, ...] = option(
        "Server", "*", _origins, "Browser origins that may call, with commas; * for all; never with cookies."
    )
    admin_token: str | None = option(
        "Server", None, _token, "Opens /metrics and /readyz to others than this machine (32 bytes).", secret=True
    )
    log_level: str = option("Server", "info", _choice("debug", "info", "warning", "error"), "What is logged.")

    openai_api_key: str | None = option("Providers", None, _key, "The key that OpenAI is called with.", secret=True)
    openai_base_url: str = option("Providers", "https://api.openai.com/v1", _v1_url, "OpenAI's address, with /v1.")
    anthropic_api_key: str | None = option(
        "Providers", None, _key, "The key that Anthropic is called with.", secret=True
    )
    anthropic_base_url: str = option(
        "Providers", "https://api.anthropic.com", _bare_url, "Anthropic's address, without /v1."
    )
    openrouter_api_key: str | None = option(
        "Providers", None, _key, "The key that OpenRouter is called with.", secret=True
    )
    openrouter_base_url: str = option(
        "Providers", "https://openrouter.ai/api/v1", _v1_url, "OpenRouter's address, with /v1."
    )
    litellm_api_key: str | None = option(
        "Providers", None, _key, "The key of a LiteLLM proxy or any OpenAI-compatible server.", secret=True
    )
    litellm_base_url: str | None = option("Providers", None, _v1_url, "Its address, with /v1.")
    byok_only: bool = option("Providers", "false", _flag, "Run without any provider key: callers bring their own.")

    markup_percent: Decimal = option("Prices", "0", _percent, "Added to the providers' prices.")
    rounding: str = option(
        "Prices", "carry", _choice("carry", "request"), "Round the sum up to whole cents (carry), or each request."
    )
    prices_file: Path = option("Prices", "./prices.toml", _path, "Your own prices, limits, aliases and models.")
    default_output_cap: int = option(
        "Prices", "32000", _integer(0, 10_000_000), "Output cap of a request that names none; 0: the model's own."
    )
    over_cap: str = option(
        "Prices", "refuse", _choice("refuse", "clamp"), "What happens to a cap that cannot be afforded."
    )

    stripe_secret_key: str | None = option(
        "Billing", None, _stripe_key, "Sell credits and Pro through this Stripe account.", secret=True
    )
    stripe_webhook_secret: tuple[str, ...] | None = option(
        "Billing", None, _webhook_secrets, "What Stripe signs its events with; two, while one is replaced.", secret=True
    )
    stripe_pro_price_id: str | None = option(
        "Billing", None, _stripe_price, "The monthly price of Pro at Stripe; without it, $10 a month."
    )
    stripe_api_base: str | None = option("Billing", None, _url, "Another address of Stripe, for tests.")
    topups: tuple[Topup, ...] = option(
        "Billing", "1000,2500,5000,10000", _topups, "Amounts of credits that are sold, in cents; 5000+250 adds a bonus."
    )
    checkout_success_url: str | None = option(
        "Billing", None, _page, "Where a buyer goes who has paid; else PUBLIC_URL."
    )
    checkout_cancel_url: str | None = option("Billing", None, _page, "Where one goes who has not; else PUBLIC_URL.")
    portal_return_url: str | None = option(
        "Billing", None, _page, "Where Stripe's portal leads back to; else PUBLIC_URL."
    )
    notify_webhook_url: str | None = option("Billing", None, _page, "Your address for notices: payments, low balances.")
    notify_webhook_secret: str | None = option(
        "Billing", None, _notice_secret, "What notices are signed with: whsec_ and base64.", secret=True
    )
    low_balance_cents: int = option(
        "Billing", "100", _integer(0, 100_000_000), "A balance below this is noticed, once; 0: never."
    )

    provider_private_key: str | None = option(
        "DRAIN", None, _private_key, "The wallet that channels pay; sell by vouchers to agents.", secret=True
    )
    provider_name: str = option("DRAIN", "GooseStack", _text, "What agents read as our name.")
    chain_id: str = option("DRAIN", "137", _choice("137", "80002"), "Polygon, or its testnet Amoy.")
    drain_contract: str | None = option("DRAIN", None, _contract, "Another channel contract than DRAIN's V2.")
    drain_rpc_url: tuple[str, ...] | None = option(
        "DRAIN", None, _addresses, "Nodes of that chain, with commas; the first that answers counts.", secret=True
    )
    drain_confirmations: int = option(
        "DRAIN", "16", _integer(0, 1_000), "Blocks on top of a channel, or a claim, for it to count."
    )
    drain_cache_s: int = option("DRAIN", "60", _integer(0, 3_600), "How long a channel that was read is not read anew.")
    drain_most_fee_bps: int = option(
        "DRAIN", "500", _integer(0, 1_000), "The most that the contract may take, in hundredths of a percent."
    )
    drain_least_deposit: int = option(
        "DRAIN", "100000", _integer(1, 10**12), "The least deposit that is served, in micro-USDC."
    )
    drain_claim_buffer_s: int = option(
        "DRAIN", "3600", _integer(1, 30 * 86_400), "Before a channel's expiry: claim it, and serve it no longer."
    )
    drain_close_idle_s: int = option(
        "DRAIN", "60", _integer(0, 86_400), "How long a channel is unused before a close is signed for anybody."
    )
    claim_threshold: int = option(
        "DRAIN", "10000000", _integer(1, 10**12), "Micro-USDC of a channel that are unclaimed when they are claimed."
    )
    claim_gas_factor: int = option("DRAIN", "2", _integer(0, 1_000), "A claim must bring so many times its gas.")
    claim_gas_price: int = option(
        "DRAIN", "500000", _integer(0, 10**12), "Micro-USDC for one coin of the chain (POL), for that comparison."
    )
    claim_least_tip_gwei: int = option("DRAIN", "30", _integer(0, 100_000), "The least tip of a claim.")
    claim_most_fee_gwei: int = option("DRAIN", "1000", _integer(1, 1_000_000), "The most for a unit of gas.")
    drain_prices: Mapping[str, int] = field(default_factory=dict)
    """By `<MODEL>_INPUT` and `<MODEL>_OUTPUT`: settings `PRICE_...`, whose names nobody can list here."""

    signup: str = option("Limits", "open", _choice("open", "closed"), "Whether anyone may make a key (with no credit).")
    signups_per_hour: int = option("Limits", "3", _integer(0, 1_000_000), "New users an hour for one address.")
    rate_limit_window: int = option("Limits", "60000", _integer(1_000, 86_400_000), "Milliseconds of the window.")
    rate_limit_max_requests: int = option(
        "Limits", "60", _integer(1, 2_000_000_000), "Requests per window, for a key, or an address without one."
    )
    max_in_flight: int = option("Limits", "0", _integer(0, 100_000), "Requests in flight for one user; 0: no limit.")
    max_body_bytes: int = option("Limits", "33554432", _integer(1_024, 1 << 30), "The largest request body.")
    body_budget_bytes: int = option(
        "Limits", "134217728", _integer(1_024, 1 << 36), "All request bodies in flight together."
    )
    body_timeout_s: int = option("Limits", "60", _integer(1, 3_600), "Time to send a request body.")
    request_deadline_s: int = option("Limits", "900", _integer(1, 86_400), "The longest that an answer may take.")
    disconnect_grace_s: int = option(
        "Limits", "5", _integer(0, 3_600), "How long a stream is read on for a caller who has gone."
    )
    drain_s: int = option("Limits", "30", _integer(0, 3_600), "How long a stop waits for answers to finish.")

    def shown(self) -> dict[str, str]:
        """Every setting as text, secrets redacted."""
        return {setting(entry): _shown(entry, getattr(self, entry.name)) for entry in options()}


def options() -> tuple[Field[Any], ...]:
    """The declarations, in order."""
    return tuple(entry for entry in fields(Config) if entry.metadata)


def setting(entry: Field[Any]) -> str:
    """The name that an operator writes."""
    return entry.name.upper()


def _shown(entry: Field[Any], value: object) -> str:
    if value is None:
        return ""
    if entry.metadata["secret"]:
        return "(set)"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def load(environ: Mapping[str, str], directory: Path = Path()) -> Config:
    """The configuration from an environment and a directory's `.env`. Raises Refusal, naming the setting."""
    try:
        stored = dotenv_values(directory / ".env", interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f".env cannot be read: {error}") from None
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    values = {}
    for entry in options():
        name = setting(entry)
        raw = _credential(credentials, name) or environ.get(name) or stored.get(name)
        if raw is None or not raw.strip():
            continue
        try:
            values[entry.name] = entry.metadata["parse"](raw.strip())
        except _Bad as bad:
            raise Refusal(f"{name} {bad}") from None
        except (ValueError, RuntimeError):  # what the library makes of a number, an address or a path
            raise Refusal(f"{name} has a value that makes no sense") from None
    return Config(**values, drain_prices=_drain_prices({**stored, **environ}))


_PRICE = re.compile(r"PRICE_([A-Z0-9]+_(?:INPUT|OUTPUT))")


def _drain_prices(environ: Mapping[str, str | None]) -> dict[str, int]:
    found = {}
    for name, raw in environ.items():
        match = _PRICE.fullmatch(name)
        if match is not None and raw is not None and raw.strip():
            try:
                found[match.group(1)] = _integer(1, 10_000_000)(raw.strip())
            except _Bad as bad:
                raise Refusal(f"{name} {bad}") from None
    return found


def _credential(directory: str | None, name: str) -> str | None:
    if directory is None:
        return None
    path = Path(directory) / name
    try:
        return path.read_text() if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        raise Refusal(f"{path} cannot be read") from None


def load_from_process() -> Config:
    """The configuration of this process, whose secrets are then no longer in its environment."""
    config = load(os.environ, Path())
    for entry in options():
        if entry.metadata["secret"]:
            os.environ.pop(setting(entry), None)
    return config


def tokenizer_folder(config: Config) -> Path:
    """Where ranks lie: beside the database. tiktoken is told of it here, and thus never fetches any."""
    folder = config.db_path.absolute().parent / "tokenizer"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    return folder


def env_example() -> str:
    """The text of `.env.example`: every setting with its default, commented out."""
    lines = ["# Copy to .env and change what you need. Every line is optional but a provider's key."]
    group = None
    for entry in options():
        if entry.metadata["group"] != group:
            group = entry.metadata["group"]
            lines += ["", f"# --- {group}"]
        lines += [f"# {entry.metadata['help']}", f"#{setting(entry)}={entry.metadata['default'] or ''}"]
    return "\n".join(lines) + "\n"


def table() -> str:
    """The README's table of settings."""
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    for entry in options():
        default = entry.metadata["default"]
        lines.append(f"| `{setting(entry)}` | {f'`{default}`' if default else ''} | {entry.metadata['help']} |")
    return "\n".join(lines) + "\n"
