"""From settings to parts: what pays, by which plans, and where usage is reported. What cannot be is refused, in one
sentence, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from goosestack import pricing
from goosestack.bidding import Policy
from goosestack.config import Config
from goosestack.errors import Refusal
from goosestack.http import Client
from goosestack.limits import RateLimit
from goosestack.payers import AllowanceFunding, CreditFunding, Funding, OverageFunding
from goosestack.plan_table import Place, PlanTable
from goosestack.plans import PlanError, Plans, load, matches
from goosestack.sinks import Sink
from goosestack.sinks.openmeter import OpenMeter
from goosestack.sinks.stripe_meter import StripeMeter
from goosestack.sinks.supabase import Supabase as SupabaseTable
from goosestack.sinks.webhook import Webhook
from goosestack.store import Store

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
    return found


def plans_count(config: Config, plans: Plans) -> bool:
    """Whether it must be known of a caller which plan they have."""
    return plans.limiting or bool({"allowance", "overage"} & set(config.funding))


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
