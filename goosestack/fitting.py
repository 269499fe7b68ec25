"""From settings to parts: what the operator has written, as each part of the gateway takes it."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from goosestack import ledger, pricing
from goosestack.bidding import Policy
from goosestack.billing import Shop
from goosestack.config import Config
from goosestack.errors import Refusal
from goosestack.payments import Terms
from goosestack.relay import Limits
from goosestack.till import StripeTill
from goosestack.upstream import Provider

if TYPE_CHECKING:
    from goosestack.drain.opening import Setting


def load_prices(config: Config) -> pricing.PriceBook:
    """The price book and the operator's prices. Raises Refusal."""
    generated = (files("goosestack") / "prices.json").read_text()
    path, operators = config.prices_file, ""
    try:
        if path.exists() or path != Config().prices_file:  # one that was named must be there
            operators = path.read_text()
        return pricing.load(generated, operators)
    except pricing.PriceError as error:
        raise Refusal(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from error


def providers_of(config: Config) -> dict[str, Provider]:
    """The providers that are configured, and those that callers may bring their own key for."""
    openai = frozenset(("openai_chat", "openai_responses", "openai_embeddings"))
    anthropic = frozenset(("anthropic_messages", "anthropic_count_tokens"))
    made = [
        Provider("openai", config.openai_base_url, config.openai_api_key, openai),
        Provider("anthropic", config.anthropic_base_url + "/v1", config.anthropic_api_key, anthropic),
        Provider(
            "openrouter",
            config.openrouter_base_url,
            config.openrouter_api_key,
            openai | {"anthropic_messages"},
            routes=True,
            bills_cut_calls=True,
            reports_cost=True,
        ),
    ]
    if config.litellm_base_url is not None:
        made.append(
            Provider(
                "litellm",
                config.litellm_base_url,
                config.litellm_api_key or "sk-none",
                openai | anthropic,
                routes=True,
                bills_cut_calls=True,
                reports_cost=True,
            )
        )
    return {provider.name: provider for provider in made}


def policy_of(config: Config) -> Policy:
    """What a quote depends on."""
    whole = ledger.GRAINS["usd_cents"] if config.rounding == "request" else 1
    return Policy(
        terms=pricing.Terms(config.markup_percent, whole),
        default_output_cap=config.default_output_cap,
        clamp=config.over_cap == "clamp",
        public_url=config.public_url,
    )


def limits_of(config: Config) -> Limits:
    """What bounds a request."""
    return Limits(
        max_in_flight=config.max_in_flight,
        max_body_bytes=config.max_body_bytes,
        body_budget_bytes=max(config.body_budget_bytes, config.max_body_bytes),
        body_timeout_s=config.body_timeout_s,
        deadline_s=config.request_deadline_s,
        grace_s=config.disconnect_grace_s,
    )


def till_of(config: Config) -> StripeTill | None:
    """The edge to Stripe; None where none is configured. Raises Refusal."""
    if config.stripe_secret_key is None:
        return None
    try:
        return StripeTill(config.stripe_secret_key, config.stripe_api_base)
    except ImportError:
        raise Refusal(
            "STRIPE_SECRET_KEY is set, and the package `stripe` is missing: install goosestack[stripe]"
        ) from None


def shop_of(config: Config) -> Shop:
    """What is sold. Raises Refusal where a buyer would be sent nowhere."""
    live = config.stripe_secret_key is not None and config.stripe_secret_key[3:].startswith("live_")
    pages = {
        "CHECKOUT_SUCCESS_URL": config.checkout_success_url or config.public_url,
        "CHECKOUT_CANCEL_URL": config.checkout_cancel_url or config.public_url,
        "PORTAL_RETURN_URL": config.portal_return_url or config.public_url,
    }
    missing = [name for name, url in pages.items() if url is None]
    if config.stripe_secret_key is not None and missing:
        raise Refusal(f"STRIPE_SECRET_KEY is set, so buyers need to be sent somewhere: set PUBLIC_URL or {missing[0]}")
    success, cancel, portal = (url or "" for url in pages.values())
    return Shop(
        terms=Terms(live, config.stripe_pro_price_id, notify=config.notify_webhook_url is not None),
        topups={topup.cents: topup.cents + topup.bonus for topup in config.topups},
        secrets=config.stripe_webhook_secret or (),
        success_url=success,
        cancel_url=cancel,
        portal_url=portal,
    )


def channels_of(config: Config) -> Setting:
    """How channels are served; only where DRAIN is on, since it loads what knows a chain. Raises Refusal."""
    from goosestack.drain.opening import Setting

    if config.provider_private_key is None or config.drain_rpc_url is None:
        raise Refusal("PROVIDER_PRIVATE_KEY is set, so a node of the chain is needed: set DRAIN_RPC_URL")
    return Setting(
        private_key=config.provider_private_key,
        chain_id=int(config.chain_id),
        contract=config.drain_contract,
        urls=config.drain_rpc_url,
        depth=config.drain_confirmations,
        cache_s=config.drain_cache_s,
        most_fee_bps=config.drain_most_fee_bps,
        least_deposit=config.drain_least_deposit,
        least_s=config.request_deadline_s + config.drain_claim_buffer_s,
        markup=config.markup_percent,
        prices=config.drain_prices,
        public_url=config.public_url,
        least_tip_gwei=config.claim_least_tip_gwei,
        most_fee_gwei=config.claim_most_fee_gwei,
    )
