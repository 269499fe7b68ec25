"""Every option, declared once: the dataclass yields the parsing, `goosestack config`, `.env.example`, the README's
table and the test of all four.

A setting is read from, in this order, a credential file (`$CREDENTIALS_DIRECTORY/NAME`, as systemd hands them out),
the environment, `.env` in the working directory. Secrets are taken out of the process's environment once read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from io import StringIO
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from dotenv.parser import parse_stream

from goosestack import standard_webhooks
from goosestack.errors import Refusal

SINKS = ("stripe_meter", "openmeter", "supabase", "webhook")
PAYERS = METER_PAYERS = ("credits", "allowance", "overage")
SUPABASE_SOURCES = tuple(
    """id corrects user_id payer provider model wire input_tokens output_tokens total_tokens cache_read_tokens
    cache_write_tokens reasoning_tokens cost_usd cost_nanos cost_cents estimated created_at settled_at supabase_id
    stripe_customer_id""".split()
)
"""What the modules of `goosestack.sinks` know, which a test compares."""


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
    if parts.scheme not in ("http", "https") or not parts.hostname or "?" in value or "#" in value:
        raise _Bad("must be an http or https URL without a query")
    _refuse_unreachable(parts)
    return _key(value).rstrip("/")


def _origin(parts: SplitResult) -> str:
    """The beginning of an address as everybody else writes it: in small letters, without the scheme's own port."""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _refuse_credentials(netloc: str) -> None:
    """An address is shown, logged and sent on; and what of it is secret, nobody could tell."""
    if "@" in netloc:
        raise _Bad("must not have a user or a password before its host")


_PORTS = {"http": 80, "https": 443}
_WEB_VIEWS = ("capacitor", "ionic", "tauri", "chrome-extension", "moz-extension")
"""Schemes under which apps and extensions show their own pages, and call from them."""

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"({_LABEL}\.)*{_LABEL}\.?", re.ASCII)


def _refuse_unreachable(parts: SplitResult) -> None:
    """An address that nobody could call would only be noticed by the first caller."""
    host = parts.hostname or ""
    try:
        usable = parts.port != 0 and not parts.netloc.endswith(":")
        if ":" in host or host.rstrip(".").rpartition(".")[2].isdigit():
            ip_address(host)
    except ValueError:
        usable = False
    if not usable or (":" not in host and (len(host) > 253 or _HOST.fullmatch(host) is None)):
        raise _Bad("names a host or a port that there cannot be")


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


def _project_url(value: str) -> str:
    url = _url(value)
    if url.endswith(("/auth/v1", "/rest/v1")):
        raise _Bad("must not end in /auth/v1 or /rest/v1, which are added to it")
    parts = urlsplit(url)
    return _origin(parts) + parts.path  # tokens name it so


def _token(value: str) -> str:
    if len(value.encode()) < 32:
        raise _Bad("must have at least 32 bytes")
    return _key(value)


def _key(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise _Bad("must be printable ASCII without blanks")
    return value


def _secret(value: str) -> str:
    try:
        standard_webhooks.key_of(value)
    except ValueError:
        raise _Bad("must be whsec_ and the base64 of 24 to 64 bytes") from None
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,100}", value):
        raise _Bad("must be 1 to 100 letters, digits or any of _.:/-")
    return value


def _some_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if len(set(names)) < len(names) or not set(names) <= set(known):
            raise _Bad(f"must list, each once, some of {', '.join(known)}")
        return names

    return parse


def _funding(value: str) -> tuple[str, ...]:
    names = _some_of(*PAYERS)(value)
    if not names:
        raise _Bad(f"must name at least one of {', '.join(PAYERS)}")
    if names == ("overage",):
        raise _Bad("must name allowance or credits beside overage, which nobody has whose cap is 0")
    return names


def _plan_source(value: str) -> str:
    kind, _, place = value.partition(":")
    parts = place.split(".")
    if kind == "claim" and re.fullmatch(r"app_metadata(\.[A-Za-z0-9_]{1,64}){1,4}|[a-z_]{0,40}role", place):
        return value
    if kind == "table" and len(parts) == 2:
        return f"table:{_column(parts[0])}.{_column(parts[1])}"
    if value != "subscription":
        raise _Bad("must be subscription, claim:app_metadata.NAME, claim:user_role or table:TABLE.COLUMN")
    return value


def _column(value: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value):
        raise _Bad(f"must name tables and columns as a_b1; {value[:64]} is no such name")
    return value


def _columns(value: str) -> tuple[str, ...]:
    filled = {}
    for part in value.split(","):
        column, _, source = part.strip().partition("=")
        if _column(column) in filled:
            raise _Bad(f"has the column {column} twice")
        filled[column] = source or column
        if filled[column] not in SUPABASE_SOURCES:
            raise _Bad(f"fills {column} with {filled[column][:64]}, which is none of {', '.join(SUPABASE_SOURCES)}")
    if list(filled.values()).count("id") != 1:
        raise _Bad("must fill one column with id, by which a row is inserted once")
    return tuple(f"{column}={source}" for column, source in filled.items())


def _origins(value: str) -> tuple[str, ...]:
    origins = [origin.strip() for origin in value.split(",") if origin.strip()]
    if origins == ["*"]:
        return ("*",)
    if "*" in origins:
        raise _Bad("must be * alone, or a list of origins")
    found = []
    for origin in origins:
        _refuse_credentials(origin)
        parts = urlsplit(origin)
        if parts.scheme not in (*_PORTS, *_WEB_VIEWS) or not parts.hostname or parts.path or set("?#") & set(origin):
            raise _Bad(f"must list origins as https://example.com, or be *; {origin} is neither")
        _refuse_unreachable(parts)
        found.append(_origin(parts))
    return tuple(found)


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
    _refuse_credentials(parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Bad("must be an http or https URL")
    _refuse_unreachable(parts)
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
    pro_grace_hours: int = option(
        "Billing", "3", _integer(0, 720), "How long Pro and plans outlast a paid period while its subscription goes on."
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
        "Billing", None, _secret, "What notices are signed with: whsec_ and base64.", secret=True
    )
    low_balance_cents: int = option(
        "Billing", "100", _integer(0, 100_000_000), "A balance below this is noticed, once; 0: never."
    )

    funding: tuple[str, ...] = option(
        "Plans", "credits", _funding, f"What pays, in the order in which it is asked: {', '.join(PAYERS)}."
    )
    plans_file: Path = option("Plans", "./plans.toml", _path, "Your own plans.")
    plan_source: str = option(
        "Plans",
        "subscription",
        _plan_source,
        "Who says which plan a user has: subscription, claim:app_metadata.NAME, claim:user_role, table:TABLE.COLUMN.",
    )
    plan_table_key: str = option("Plans", "id", _column, "The column of that table that has the user's id.")
    plan_cache_s: int = option("Plans", "60", _integer(1, 86_400), "How long what it said is not asked again.")

    supabase_url: str | None = option(
        "Apps", None, _project_url, "The project whose users may call with their access token."
    )
    jwt_secret: str | None = option(
        "Apps", None, _token, "Its legacy secret (HS256), instead of its published keys (ES256, RS256).", secret=True
    )
    supabase_anonymous: bool = option("Apps", "false", _flag, "Whether its anonymous users may call, too.")
    supabase_check_s: int = option(
        "Apps", "0", _integer(0, 86_400), "Ask it again after so long whether a token still stands; 0: never."
    )
    supabase_anon_key: str | None = option(
        "Apps", None, _key, "Its anon or publishable key, which it is asked with.", secret=True
    )
    chat_default_model: str | None = option(
        "Apps", None, _text, "The model of POST /api/chat where the caller names none."
    )

    meters: tuple[str, ...] = option(
        "Metering", "", _some_of(*SINKS), f"Where usage is reported, with commas: {', '.join(SINKS)}."
    )
    stripe_meter_event: str | None = option("Metering", None, _name, "The meter's event name.")
    stripe_meter_value: str = option(
        "Metering", "tokens", _choice("tokens", "cost"), "What it counts: tokens, or cost in microdollars."
    )
    stripe_meter_payers: tuple[str, ...] = option(
        "Metering", ",".join(METER_PAYERS), _some_of(*METER_PAYERS), "Whose usage it is told of, by what paid for it."
    )
    stripe_meter_by_minute: bool = option(
        "Metering", "false", _flag, "One event for each user and minute, not for each request."
    )
    openmeter_url: str | None = option("Metering", None, _url, "OpenMeter's address, without /api/v1/events.")
    openmeter_token: str | None = option("Metering", None, _key, "Its token, where it wants one.", secret=True)
    openmeter_source: str = option("Metering", "goosestack", _name, "The events' source; one for each gateway.")
    openmeter_event_type: str = option("Metering", "llm.usage", _name, "The events' type.")
    openmeter_subject: str = option(
        "Metering",
        "user_id",
        _choice("user_id", "stripe_customer_id", "supabase_id"),
        "The events' subject: user_id, stripe_customer_id or supabase_id.",
    )
    supabase_service_key: str | None = option(
        "Metering", None, _key, "The project's service_role or secret key, to insert rows with.", secret=True
    )
    supabase_usage_table: str = option("Metering", "usage_log", _column, "The table that usage is mirrored to.")
    supabase_usage_columns: tuple[str, ...] = option(
        "Metering",
        "request_id=id,user_id=supabase_id,provider,model,input_tokens,output_tokens,cost_usd,created_at=settled_at",
        _columns,
        "Its columns, each as column or column=field.",
    )
    meter_webhook_url: str | None = option("Metering", None, _url, "Your own receiver.")
    meter_webhook_secret: str | None = option(
        "Metering", None, _secret, "What it is signed with: whsec_ and base64.", secret=True
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
    stored = _dotenv(directory / ".env")
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
    if "litellm_api_key" in values and "litellm_base_url" not in values:
        raise Refusal("LITELLM_API_KEY is set, and LITELLM_BASE_URL, where it would be sent to, is not")
    return Config(**values, drain_prices=_drain_prices({**stored, **environ}, selling="provider_private_key" in values))


_PRICE = re.compile(r"PRICE_([A-Z0-9]+_(?:INPUT|OUTPUT))")
_NEARLY_PRICE = re.compile(r"PRICE_.+_(?:INPUT|OUTPUT)")


def _drain_prices(environ: Mapping[str, str | None], *, selling: bool) -> dict[str, int]:
    """The prices of models. Where vouchers are taken, one that is misspelt is not passed over: it would sell at
    another price."""
    found = {}
    for name, raw in environ.items():
        match = _PRICE.fullmatch(name)
        if selling and match is None and _NEARLY_PRICE.fullmatch(name) is not None:
            raise Refusal(f"{name} is no price: PRICE_, a model's letters and digits in capitals, _INPUT or _OUTPUT")
        if match is not None and raw is not None and raw.strip():
            try:
                found[match.group(1)] = _integer(1, 10_000_000)(raw.strip())
            except _Bad as bad:
                raise Refusal(f"{name} {bad}") from None
    return found


def _dotenv(path: Path) -> dict[str, str]:
    """What a `.env` sets. The file is ours alone: whatever in it is not understood is refused by its line, since what
    it was meant to change would otherwise be as if it were not there."""
    try:
        if not path.exists() or path.is_dir():
            return {}
        bindings = list(parse_stream(StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f".env cannot be read: {error}") from None
    names = [setting(entry) for entry in options()]
    stored = {}
    for name, value, original, malformed in bindings:
        if name is None and not malformed:  # a comment, or blank lines at the end
            continue
        text = original.string.lstrip()
        line = original.line + original.string.removesuffix(text).count("\n")
        if name is None or value is None or "\n" in text.rstrip():
            raise Refusal(f"line {line} of .env is not NAME=value")
        if name not in names and _PRICE.fullmatch(name) is None:
            near = get_close_matches(name.upper(), names, n=1, cutoff=0)[0]
            raise Refusal(f"line {line} of .env sets {_shown_name(name)}, which is no setting; the nearest is {near}")
        stored[name] = value
    return stored


def _shown_name(name: str) -> str:
    """A name as it may be repeated: what is not written as one may be a part of a secret."""
    return name if re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) else "something"


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
