"""From settings to parts: what is sold and at which price, who may ask, what pays, and where usage is reported. What
cannot be is refused, in one sentence, before anything runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

from goosestack import errors, ledger, pricing
from goosestack.bidding import Policy
from goosestack.billing import Billing, Shop
from goosestack.cashier import Cashier, Sell
from goosestack.config import Config
from goosestack.errors import Refusal
from goosestack.gateway import Gateway
from goosestack.http import Client
from goosestack.limits import RateLimit
from goosestack.notices import Notifier
from goosestack.payers import AllowanceFunding, CreditFunding, Funding, OverageFunding
from goosestack.payments import Terms
from goosestack.plan_table import Place, PlanTable
from goosestack.plans import Once, PlanError, Plans, load, matches
from goosestack.relay import Limits
from goosestack.sinks import Sink
from goosestack.sinks.openmeter import OpenMeter
from goosestack.sinks.stripe_meter import StripeMeter
from goosestack.sinks.supabase import Supabase as SupabaseTable
from goosestack.sinks.webhook import Webhook
from goosestack.store import Store
from goosestack.till import StripeTill, Till
from goosestack.upstream import Provider, Upstreams
from goosestack.wire import mobile_chat

if TYPE_CHECKING:
    from goosestack.agents import Agents
    from goosestack.drain.opening import Setting
    from goosestack.supabase import Supabase

# --- requests -------------------------------------------------------------------------------------------------


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


def mobile_chat_of(upstreams: Upstreams, default: str | None, today: Callable[[], str]) -> mobile_chat.MobileChat:
    """What apps ask for, in the words of the models that are sold. Raises Refusal for a default that is not."""

    def traits(name: str) -> mobile_chat.Traits:
        try:
            model = upstreams.offer(wire, name, "").model  # as of no day, on which none is retired yet
        except errors.ModelNotFound:
            return mobile_chat.Traits(retired=upstreams.book.retired.get(name))
        assert model is not None
        retired = model.retires is not None and model.retires <= today()
        return mobile_chat.Traits(model.temperature, model.retires if retired else None)

    wire = mobile_chat.MobileChat(default, traits)
    if default is not None:
        try:
            upstreams.offer(wire, default, today())
        except errors.ModelNotFound as error:
            raise Refusal(f"CHAT_DEFAULT_MODEL: {error.message}") from None
    return wire


# --- who asks -------------------------------------------------------------------------------------------------


def supabase_of(
    config: Config,
    store: Store,
    client: Client,
    plans: Plans,
    now: Callable[[], str],
    warn: Callable[[str], None],
    alert: Callable[..., None],
) -> Supabase | None:
    """The Supabase project whose users may call; None where there is none. Raises Refusal."""
    if config.supabase_url is None:
        if config.jwt_secret is not None or config.supabase_check_s:
            raise Refusal("JWT_SECRET and SUPABASE_CHECK_S need SUPABASE_URL, which says whose tokens are meant")
        return None
    if config.supabase_check_s and config.supabase_anon_key is None:
        raise Refusal("SUPABASE_CHECK_S needs SUPABASE_ANON_KEY, which the project is asked with")
    try:
        from goosestack import supabase  # only where it is on: PyJWT and cryptography are large
    except ImportError:
        raise Refusal("SUPABASE_URL needs PyJWT and cryptography: install goosestack[supabase]") from None
    issuer, secret, check = f"{config.supabase_url}/auth/v1", config.jwt_secret, None
    kind, _, place = config.plan_source.partition(":")
    if config.supabase_check_s and config.supabase_anon_key is not None:
        check = supabase.Check(config.supabase_anon_key, config.supabase_check_s)
    return supabase.Supabase(
        store=store,
        client=client,
        issuer=issuer,
        keys=supabase.KeySet(client, issuer) if secret is None else supabase.Secret(secret),
        anonymous=config.supabase_anonymous,
        check=check,
        now=now,
        alert=alert,
        plan=supabase.PlanClaim(tuple(place.split(".")), plans, Once(warn)) if kind == "claim" else None,
    )


# --- what pays ------------------------------------------------------------------------------------------------


def load_plans(config: Config, book: pricing.PriceBook) -> Plans:
    """The plans: those of the default table, and the operator's. Raises Refusal."""
    path = config.plans_file
    try:
        text = path.read_text() if path.exists() or path != Config().plans_file else ""  # one that was named must be
        found = load(text)
    except PlanError as error:
        raise Refusal(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from error
    for plan in found.by_name.values():
        for pattern in plan.models:
            if not any(matches(pattern, model.id) for model in book.models.values()):
                raise Refusal(f"plans.toml: {plan.name}: {pattern} is no model that has a price")
    invoiced = config.meters == ("stripe_meter",) and "overage" in config.stripe_meter_payers
    return replace(found, customers_only=invoiced)


def plans_pay(config: Config) -> bool:
    """Whether what plans give is what requests are paid with."""
    return bool({"allowance", "overage"} & set(config.funding))


def fundings_of(config: Config, plans: Plans, policy: Policy) -> tuple[Funding, ...]:
    """Who pays, in the operator's order."""
    known: Mapping[str, Funding] = {
        "credits": CreditFunding(policy.terms, policy.public_url),
        "allowance": AllowanceFunding(plans, policy.terms),
        "overage": OverageFunding(plans, policy.terms),
    }
    return tuple(known[name] for name in config.funding)


def plan_limits_of(plans: Plans) -> dict[str, RateLimit]:
    """The rate limits of the plans that name one."""
    return {
        plan.name: RateLimit(plan.requests_per_minute, 60, "plan")
        for plan in plans.by_name.values()
        if plan.requests_per_minute is not None
    }


def plan_table_of(
    config: Config,
    store: Store,
    client: Client,
    plans: Plans,
    now: Callable[[], str],
    warn: Callable[[str], None],
) -> PlanTable | None:
    """The table that says which plan a user has; None where none does. Raises Refusal."""
    kind, _, place = config.plan_source.partition(":")
    if kind != "subscription" and config.supabase_url is None:
        raise Refusal(f"PLAN_SOURCE={config.plan_source} needs SUPABASE_URL, which says whose users are meant")
    if kind != "table":
        return None
    if config.supabase_url is None or config.supabase_service_key is None:
        raise Refusal(f"PLAN_SOURCE={config.plan_source} needs SUPABASE_SERVICE_KEY, which the table is read with")
    table, column = place.split(".")
    return PlanTable(
        store=store,
        client=client,
        url=config.supabase_url,
        key=config.supabase_service_key,
        place=Place(table, column, config.plan_table_key),
        plans=plans,
        every_s=config.plan_cache_s,
        now=now,
        warn=warn,
    )


# --- what is sold ---------------------------------------------------------------------------------------------


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


def shop_of(config: Config, plans: Plans) -> Shop:
    """What is sold. Raises Refusal where a buyer would be sent nowhere."""
    live = config.stripe_secret_key is not None and config.stripe_secret_key[3:].startswith("live_")
    pages = {
        "CHECKOUT_SUCCESS_URL": config.checkout_success_url or config.public_url,
        "CHECKOUT_CANCEL_URL": config.checkout_cancel_url or config.public_url,
        "PORTAL_RETURN_URL": config.portal_return_url or config.public_url,
    }
    missing = [name for name, url in pages.items() if url is None]
    reports = config.stripe_webhook_secret is None and "stripe_meter" in config.meters  # the key is for that alone
    if config.stripe_secret_key is not None and missing and not reports:
        raise Refusal(f"STRIPE_SECRET_KEY is set, so buyers need to be sent somewhere: set PUBLIC_URL or {missing[0]}")
    success, cancel, portal = (url or "" for url in pages.values())
    return Shop(
        terms=Terms(
            live,
            config.stripe_pro_price_id,
            notify=config.notify_webhook_url is not None,
            pro_grace_s=config.pro_grace_hours * 3_600,
            plans=plans if config.plan_source == "subscription" else None,
        ),
        topups={topup.cents: topup.cents + topup.bonus for topup in config.topups},
        secrets=config.stripe_webhook_secret or (),
        success_url=success,
        cancel_url=cancel,
        portal_url=portal,
    )


def selling(
    config: Config, gateway: Gateway, plans: Plans, till: Till | None, client: Client, now: Callable[[], str]
) -> tuple[Billing, Cashier | None, Notifier | None]:
    """What sells; what asks Stripe by itself, if there is a till; what tells the operator, if there is an address."""
    billing, store = Billing(gateway, shop_of(config, plans), till), gateway.store
    cashier = None if till is None else cashier_of(config, plans, store, till, now, gateway.alert, billing.sell)
    url, secret = config.notify_webhook_url, config.notify_webhook_secret
    notifier = None if url is None else Notifier(store, client, url, secret, now, config.low_balance_cents)
    return billing, cashier, notifier


def cashier_of(
    config: Config,
    plans: Plans,
    store: Store,
    till: Till,
    now: Callable[[], str],
    alert: Callable[..., None],
    sell: Sell | None = None,
) -> Cashier:
    """What asks Stripe by itself."""
    shop = shop_of(config, plans)
    return Cashier(
        store=store,
        till=till,
        terms=shop.terms,
        topups=shop.topups,
        now=now,
        alert=alert,
        sell=sell,
        public_url=config.public_url,
    )


# --- channels -------------------------------------------------------------------------------------------------


async def agents_of(config: Config, gateway: Gateway, client: Client, now: Callable[[], str]) -> Agents:
    """Have the gateway take vouchers, too: what knows a chain is loaded here, and nowhere else. Raises Refusal."""
    try:
        from goosestack import agents
        from goosestack.drain import closing, collecting, opening, paying
    except ImportError:
        raise Refusal("PROVIDER_PRIVATE_KEY is set, and its packages are missing: install goosestack[drain]") from None
    sold = [model for _, model in gateway.upstreams.sold(now()[:10])]
    provider, claimer = await opening.open_provider(channels_of(config), client, sold, time.time)
    collector = collecting.Collector(
        provider=provider,
        claimer=claimer,
        store=gateway.store,
        now=now,
        alert=gateway.alert,
        token=provider.contract.token,
        most_fee_bps=config.drain_most_fee_bps,
        threshold=config.claim_threshold,
        buffer_s=config.drain_claim_buffer_s,
        gas_factor=config.claim_gas_factor,
        coin_price=config.claim_gas_price,
    )
    await collector.begin()
    gateway.vouchers = (paying.Vouchers(provider, gateway.store),)
    gateway.fundings = (*gateway.fundings, paying.VoucherFunding(provider, gateway.store))
    return agents.Agents(
        gateway=gateway,
        provider=provider,
        collector=collector,
        closer=closing.Closer(provider, gateway.store, config.drain_close_idle_s, now),
        name=config.provider_name,
        public_url=config.public_url,
        admin_token=config.admin_token,
        closes=RateLimit(agents.CLOSES_PER_HOUR, 3600, "close"),
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


# --- where usage is reported ----------------------------------------------------------------------------------


def sinks_of(config: Config, client: Client, now: Callable[[], str]) -> list[Sink]:
    """Where usage is reported. Raises Refusal where a sink lacks what it cannot do without."""

    def needed(name: str, value: str | None) -> str:
        if value is None:
            raise Refusal(f"METERS has {sink}, which needs {name}")
        return value

    issuer = "" if config.supabase_url is None else f"{config.supabase_url}/auth/v1"
    found: list[Sink] = []
    for sink in config.meters:
        if sink == "stripe_meter":
            found.append(
                StripeMeter(
                    client,
                    config.stripe_api_base,
                    needed("STRIPE_SECRET_KEY", config.stripe_secret_key),
                    now,
                    event_name=needed("STRIPE_METER_EVENT", config.stripe_meter_event),
                    value=config.stripe_meter_value,
                    payers=config.stripe_meter_payers,
                    by_minute=config.stripe_meter_by_minute,
                )
            )
        elif sink == "openmeter":
            if config.openmeter_subject == "supabase_id":
                needed("SUPABASE_URL for OPENMETER_SUBJECT=supabase_id", config.supabase_url)
            found.append(
                OpenMeter(
                    client,
                    needed("OPENMETER_URL", config.openmeter_url),
                    config.openmeter_token,
                    source=config.openmeter_source,
                    type=config.openmeter_event_type,
                    subject=config.openmeter_subject,
                    issuer=issuer,
                )
            )
        elif sink == "supabase":
            found.append(
                SupabaseTable(
                    client,
                    needed("SUPABASE_URL", config.supabase_url),
                    needed("SUPABASE_SERVICE_KEY", config.supabase_service_key),
                    table=config.supabase_usage_table,
                    columns=dict(column.split("=", 1) for column in config.supabase_usage_columns),
                    issuer=issuer,
                )
            )
        else:
            url = needed("METER_WEBHOOK_URL", config.meter_webhook_url)
            secret = needed("METER_WEBHOOK_SECRET", config.meter_webhook_secret)
            found.append(Webhook(client, url, secret, now))
    return found
