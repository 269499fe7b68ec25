"""The command line: the daemon, and the operator's verbs.

Exit codes: 0 done; 1 the verb was refused or something is wrong; 75 something is in use or out of reach, try again; 78
the configuration or the database does not allow a start, and will not by itself.

What only some commands need they import themselves: one that asks a daemon is back in a third of the time.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from goosestack import __version__, clock, config as settings, control
from goosestack.config import Config
from goosestack.errors import NotYet, Refusal

if TYPE_CHECKING:
    from goosestack.cashier import Cashier
    from goosestack.plans import Plans
    from goosestack.store import Store

EXIT_REFUSED = 78
EXIT_NOT_YET = 75

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="goosestack")
def main() -> None:
    """A gateway that sells and rations LLM access. Settings come from the environment and .env; see `config`."""
    os.umask(0o077)
    sys.set_int_max_str_digits(640)  # the least there is: a body full of longer numbers would take seconds to read


def load() -> Config:
    """The configuration; a refusal ends the command."""
    with _refusals():
        return settings.load_from_process()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        click.echo(f"goosestack: {refusal}", err=True)
        sys.exit(EXIT_NOT_YET if isinstance(refusal, NotYet) else EXIT_REFUSED)


# --- the daemon -----------------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--demo", is_flag=True, help="Canned answers from a built-in upstream, a funded key, a throw-away database."
)
def serve(demo: bool) -> None:
    """Run the gateway."""
    import uvloop

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its memory has every key in it: a crash must not write that down
    config = load()
    with _refusals(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_demo(config) if demo else _serve(config, lambda address: None))


async def _serve(config: Config, ready: Callable[[str], None]) -> None:
    from goosestack import app, server

    with server.bind(config.host, config.port) as sock:
        async with app.running(config) as parts:
            await server.serve(sock, parts, ready)


async def _serve_demo(config: Config) -> None:
    from goosestack.demo import stage

    with tempfile.TemporaryDirectory(prefix="goosestack-demo-") as folder:
        async with stage.upstream() as answers, stage.till(config.public_url, config.port) as (sells, send_webhooks_to):
            config = replace(
                config,
                db_path=Path(folder) / "demo.db",
                openrouter_api_key=None,
                litellm_base_url=None,
                notify_webhook_url=None,
                meters=(),
                **answers,
                **sells,
            )
            made = await _fund_demo(config)

            def ready(address: str) -> None:
                send_webhooks_to(f"{address}/billing/webhook")
                click.echo(stage.welcome(address, made["api_key"], sells=bool(sells)))

            await _serve(config, ready)


async def _fund_demo(config: Config) -> Mapping[str, Any]:
    from goosestack import admin

    async def call(verb: str, **args: object) -> Any:
        return await admin.call(config.db_path, verb, args, clock.utc_now)

    user = await call("user_create", email="demo@example.com")
    await call("credit_grant", user=user["id"], cents=1000, note="demo", ref=None)
    made: Mapping[str, Any] = await call("key_create", user=user["id"], name="demo")
    return made


# --- settings and prices --------------------------------------------------------------------------------------


@main.command("config")
@JSON
def show_config(as_json: bool) -> None:
    """Show every setting as it is in force, secrets redacted."""
    shown = load().shown()
    _print(shown, as_json, "\n".join(f"{name}={value}" for name, value in shown.items()))


@main.command()
@click.argument("model", required=False)
@JSON
def prices(model: str | None, as_json: bool) -> None:
    """What is sold, by which provider, at which price (dollars per million tokens, markup included)."""
    from goosestack import pricing, upstream, wiring

    config = load()
    with _refusals():
        book = wiring.load_prices(config)
    sold = upstream.Upstreams(wiring.providers_of(config), book).sold(clock.utc_now()[:10])
    terms = wiring.policy_of(config).terms
    rows = []
    for provider, entry in sold:
        if model is None or model in (entry.id, *entry.aliases):
            rate = entry.rates_of(pricing.STANDARD, clock.utc_now()[:10])[0]
            input_usd, output_usd = (pricing.per_million(picos, terms) for picos in (rate.input, rate.output))
            rows.append({"model": entry.id, "provider": provider.name, "input": input_usd, "output": output_usd})
    text = "\n".join(f"{row['model']:45} {row['provider']:11} {row['input']:>10} {row['output']:>10}" for row in rows)
    _print(rows, as_json, f"{'model':45} {'provider':11} {'$/M input':>10} {'$/M output':>10}\n{text}")


@main.group("tokenizer")
def tokenizer_group() -> None:
    """Exact token counts for OpenAI's models, which let small balances hold less."""


@tokenizer_group.command("install")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
def tokenizer_install(file: Path | None, as_json: bool) -> None:
    """Install ranks from FILE (o200k_base or cl100k_base), or, without one, download both. Verified by SHA-256."""
    from goosestack import tokenizer

    config = load()
    folder = settings.tokenizer_folder(config)
    with _refusals():
        if file is not None:
            names = [tokenizer.install(folder, file.read_bytes())]
        else:
            names = [
                tokenizer.install(folder, _download(tokenizer.ADDRESS.format(name=name))) for name in tokenizer.RANKS
            ]
    _print({"installed": names, "folder": str(folder)}, as_json, f"installed {', '.join(names)} in {folder}")


def _download(address: str) -> bytes:
    import urllib.request

    pieces: list[bytes] = []
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 (a constant of ours, https)
            total = int(answer.headers.get("content-length") or 0)
            with click.progressbar(length=total, label=address.rpartition("/")[2], file=sys.stderr) as bar:
                while piece := answer.read(65_536):
                    pieces.append(piece)
                    bar.update(len(piece))
    except OSError as error:
        raise Refusal(f"{address} cannot be downloaded ({error}); give a FILE instead") from error
    return b"".join(pieces)


# --- the operator's verbs -------------------------------------------------------------------------------------


def ask(verb: str, **args: object) -> Any:
    """Run a verb, in the daemon where one runs; its failure ends the command."""
    return _asked(load(), verb, args)


def ask_all(verb: str, **args: object) -> Iterator[Any]:
    """All rows of a verb that lists, page after page; a failure ends the command."""
    config, after = load(), ""
    while True:
        page = _asked(config, verb, {**args, "after": after})
        yield from page
        if len(page) < control.PAGE:
            return
        after = page[-1]["id"]


def _asked(config: Config, verb: str, args: Mapping[str, object]) -> Any:
    async def on_file() -> Any:
        from goosestack import admin, wiring

        def cashier(store: Store) -> Cashier | None:
            till = wiring.till_of(config) if verb in ("stripe_reconcile", "stripe_setup") else None
            if till is None:
                return None
            return wiring.cashier_of(config, _plans(config), store, till, clock.utc_now, _say_alert)

        plans = _plans(config) if verb.startswith("plan_") or verb == "check" else None
        return await admin.on_file(config.db_path, verb, args, clock.utc_now, plans, cashier, config.meters)

    try:
        with _refusals():
            return asyncio.run(control.call(config.db_path, verb, args, on_file))
    except control.VerbError as error:
        click.echo(f"goosestack: {error}", err=True)
        sys.exit(EXIT_NOT_YET if isinstance(error, control.NotNow) else 1)


def _say_alert(kind: str, **facts: object) -> None:
    click.echo(f"goosestack: {kind}: {', '.join(map(str, facts.values()))}", err=True)


def _print(answer: Any, as_json: bool, text: str) -> None:
    click.echo(json.dumps(answer, indent=2) if as_json else text)


def _print_each(rows: Iterator[Any], as_json: bool, line: Callable[[Any], str]) -> None:
    if as_json:
        click.echo(json.dumps(list(rows), indent=2))
    else:
        for row in rows:
            click.echo(line(row))


@main.group()
def user() -> None:
    """Users: whoever has a balance. USER is an id, or an e-mail that only one user has."""


@user.command("create")
@click.argument("email")
@JSON
def user_create(email: str, as_json: bool) -> None:
    """Make a user without credits."""
    made = ask("user_create", email=email)
    _print(made, as_json, made["id"])


@user.command("list")
@JSON
def user_list(as_json: bool) -> None:
    """List all users."""

    def line(one: Mapping[str, Any]) -> str:
        return f"{one['id']}  {one['balance_cents']:>10} cents  pro until {one['pro_until'] or '-'}  {one['email']}"

    _print_each(ask_all("user_list"), as_json, line)


@user.command("pro")
@click.argument("user_name", metavar="USER")
@click.option("--until", required=True, help="A date or time as 2026-12-31 (UTC), or `none`.")
@JSON
def user_pro(user_name: str, until: str, as_json: bool) -> None:
    """Let a user bring their own provider key until a date."""
    done = ask("user_pro", user=user_name, until=None if until == "none" else _time(until, "--until"))
    _print(done, as_json, f"{done['id']} is Pro until {done['pro_until'] or 'never'}")


def _time(text: str, option: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
        return clock.at(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):  # in UTC, it may be beyond the year 9999
        raise click.BadParameter(f"{text} is no date as 2026-12-31", param_hint=option) from None


@main.group()
def key() -> None:
    """API keys."""


@key.command("create")
@click.argument("user_name", metavar="USER")
@click.option("--name", default="default", help="What the key is for.")
@JSON
def key_create(user_name: str, name: str, as_json: bool) -> None:
    """Make a key for a user; it is shown once."""
    made = ask("key_create", user=user_name, name=name)
    _print(made, as_json, made["api_key"])


@key.command("list")
@click.argument("user_name", metavar="[USER]", required=False)
@JSON
def key_list(user_name: str | None, as_json: bool) -> None:
    """List keys, by prefix."""

    def line(one: Mapping[str, Any]) -> str:
        state = "revoked" if one["revoked"] else "active "
        return f"{one['id']}  {one['prefix']}  {state}  {one['user_id']}  {one['name']}"

    _print_each(ask_all("key_list", user=user_name), as_json, line)


@key.command("revoke")
@click.argument("key_name", metavar="KEY")
@JSON
def key_revoke(key_name: str, as_json: bool) -> None:
    """Revoke a key, by its id or its 12-character prefix; its live streams end at once."""
    done = ask("key_revoke", key=key_name)
    _print(done, as_json, f"{done['id']} is revoked")


@main.group()
def credit() -> None:
    """Credits, in cents."""


@credit.command("grant")
@click.argument("user_name", metavar="USER")
@click.argument("cents", type=click.IntRange(1, 1_000_000_000))
@click.option("--note", default="", help="Why.")
@click.option("--ref", default=None, help="A name for this grant: granting again under the same name changes nothing.")
@JSON
def credit_grant(user_name: str, cents: int, note: str, ref: str | None, as_json: bool) -> None:
    """Give a user credits."""
    from goosestack import accounts

    ref = ref or accounts.new_id("")  # so that it is given once, should it have to be asked for twice
    done = ask("credit_grant", user=user_name, cents=cents, note=note, ref=ref)
    _print(done, as_json, f"{done['id']} has {done['balance_cents']} cents")


@credit.command("show")
@click.argument("user_name", metavar="USER")
@JSON
def credit_show(user_name: str, as_json: bool) -> None:
    """Show a user's balance, what is held of it, what is available."""
    funds = ask("credit_show", user=user_name)
    text = (
        f"balance {funds['balance_cents']}  held {funds['held_cents']}  available {funds['available_cents']}  (cents)"
    )
    _print(funds, as_json, text)


# --- Stripe ---------------------------------------------------------------------------------------------------


@main.group("stripe")
def stripe_group() -> None:
    """Credits and Pro, sold through Stripe."""


@stripe_group.command("setup")
@click.option("--again", is_flag=True, help="Make another endpoint where there is one: to replace its secret.")
@JSON
def stripe_setup(again: bool, as_json: bool) -> None:
    """Make the webhook endpoint at Stripe, under PUBLIC_URL, with all events. Prints its secret, once."""
    made = ask("stripe_setup", again=again)
    _print(
        made, as_json, f"{made['id']} sends {len(made['events'])} kinds of events to {made['url']}\n{made['secret']}"
    )


@stripe_group.command("reconcile")
@JSON
def stripe_reconcile(as_json: bool) -> None:
    """Pull what Stripe has since the last run.

    Exit code 0 where nothing differed, 1 where anything did or waits for review, 75 where Stripe could not be asked."""
    done = ask("stripe_reconcile")
    lines = [*done["changes"], *(f"review: {each}" for each in done["review"])]
    lines.append(f"{done['objects']} objects, {len(done['changes'])} differences, {len(done['review'])} to review")
    _print(done, as_json, "\n".join(lines))
    sys.exit(1 if done["changes"] or done["review"] else 0)


@stripe_group.command("reviews")
@click.option("--done", "event", metavar="EVENT", help="This has been looked at.")
@JSON
def stripe_reviews(event: str | None, as_json: bool) -> None:
    """List what did not fit the books, and granted nothing: events (evt_), and what reconcile found (rev_)."""
    if event is not None:
        ask("stripe_reviewed", event=event)
    found = ask("stripe_reviews")
    text = "\n".join(f"{one['received_at']}  {one['id']}  {one['type']}  {one['reason']}" for one in found)
    _print(found, as_json, text or "nothing to review")


# --- plans ----------------------------------------------------------------------------------------------------


def _plans(config: Config) -> Plans:
    from goosestack import wiring

    return wiring.load_plans(config, wiring.load_prices(config))


@main.group("plans", invoke_without_command=True)
@click.pass_context
def plans_group(context: click.Context) -> None:
    """Plans: what each allows, and who has which. They count where FUNDING names allowance or overage."""
    if context.invoked_subcommand is None:
        context.invoke(plans_list)


@plans_group.command("list")
@JSON
def plans_list(as_json: bool = False) -> None:
    """List the plans, with what plans.toml changes: as the daemon has read it, where one runs."""
    config = load()
    if config.db_path.exists():
        rows = ask("plan_list")
    else:
        from goosestack import admin

        with _refusals():
            rows = admin.show_plans(_plans(config))
    lines = [f"{'plan':14} {'tokens/month':>14} {'a minute':>9} {'at once':>8} {'overage, cents':>15}  models"]
    for plan in rows:
        often, at_once = (
            "-" if plan[most] is None else f"{plan[most]:,}" for most in ("requests_per_minute", "in_flight")
        )
        shown = f"{plan['name']:14} {plan['tokens']:>14,} {often:>9} {at_once:>8} {plan['overage_cents']:>15,}"
        lines.append(f"{shown}  {' '.join(plan['models'])}")
    _print(rows, as_json, "\n".join(lines))


@plans_group.command("assign")
@click.argument("user_name", metavar="USER")
@click.argument("plan")
@click.option("--until", help="A date or time as 2026-12-31 (UTC); without one, for good.")
@JSON
def plans_assign(user_name: str, plan: str, until: str | None, as_json: bool) -> None:
    """Give a user a plan. A greater one counts at once; a lesser one, once the month is over."""
    done = ask("plan_assign", user=user_name, plan=plan, until=None if until is None else _time(until, "--until"))
    _print(done, as_json, _plan_line(done))


@plans_group.command("cap")
@click.argument("user_name", metavar="USER")
@click.argument("cents", metavar="CENTS|none")
@JSON
def plans_cap(user_name: str, cents: str, as_json: bool) -> None:
    """Cap what a user may spend a month beyond their plan's tokens; `none` for what the plan says."""
    if cents != "none" and not (cents.isascii() and cents.isdigit() and len(cents) < 10):
        raise click.BadParameter("must be a whole number of cents, or none", param_hint="CENTS")
    done = ask("plan_cap", user=user_name, cents=None if cents == "none" else int(cents))
    _print(done, as_json, _plan_line(done))


@plans_group.command("show")
@click.argument("user_name", metavar="USER")
@JSON
def plans_show(user_name: str, as_json: bool) -> None:
    """Show a user's plan, and what is left of it."""
    found = ask("plan_show", user=user_name)
    _print(found, as_json, _plan_line(found))


def _plan_line(shown: Mapping[str, Any]) -> str:
    until, beyond = shown["until"], shown["overage"]
    line = f"{shown['id']} has {shown['plan']}{f' until {until}' if until else ''}: {shown['remaining']:,} of"
    line += f" {shown['quota']:,} tokens are left, until {shown['reset']}"
    return line if beyond is None else f"{line}; beyond: {beyond['remaining_cents']} of {beyond['cap_cents']} cents"


# --- metering -------------------------------------------------------------------------------------------------

SINK = click.argument("sink", type=click.Choice(settings.SINKS))


@main.group()
def meters() -> None:
    """Where usage is reported. SINK is one of METERS; what it was not told yet waits for it, however long."""


@meters.command("status")
@click.option("--letters", type=click.IntRange(0, 1_000), default=20, help="How many dead letters to show.")
@JSON
def meters_status(letters: int, as_json: bool) -> None:
    """Show how far each sink has got, and what its receiver refused (its dead letters)."""
    found, lines = ask("meters_status", letters=letters), []
    for sink in found:
        lines += [_meter_line(sink), *(f"  {letter['id']}  {letter['reason']}" for letter in sink["dead"])]
    _print(found, as_json, "\n".join(lines))


def _meter_line(sink: Mapping[str, Any]) -> str:
    waits = f", {sink['lag_s']:.0f} s" if sink["lag"] or sink["pending"] else ""
    error = f"; waits until {sink['retry_at'] or 'now'} with {sink['next']}: {sink['error']}" if sink["error"] else ""
    name = sink["sink"] if sink["on"] else f"{sink['sink']} (off)"
    return f"{name}: {sink['lag']} requests behind{waits}, {sink['dead_letters']} dead letters{error}"


@meters.command("retry")
@SINK
@click.argument("id", metavar="[EVENT]", required=False)
@JSON
def meters_retry(sink: str, id: str | None, as_json: bool) -> None:
    """Send dead letters again, one or all of them, and try at once where the sink waits."""
    done = ask("meters_retry", sink=sink, id=id)
    _print(done, as_json, f"{done['retried']} dead letters of {sink} are sent again{_once_on(done)}")


@meters.command("discard")
@SINK
@click.argument("id", metavar="EVENT")
@JSON
def meters_discard(sink: str, id: str, as_json: bool) -> None:
    """Give up on a dead letter, or on an event that waits: it will never be sent again."""
    done = ask("meters_discard", sink=sink, id=id)
    _print(done, as_json, f"{id} of {sink} is discarded")


@meters.command("replay")
@SINK
@click.option("--since", required=True, help="A date or time as 2026-12-31 (UTC).")
@click.option("--force", is_flag=True, help="Also where the receiver may have forgotten ids that it has counted.")
@JSON
def meters_replay(sink: str, since: str, force: bool, as_json: bool) -> None:
    """Report everything again that settled since a time, to a receiver that has lost it. Never to Stripe."""
    done = ask("meters_replay", sink=sink, since=_time(since, "--since"), force=force)
    _print(done, as_json, f"{done['rows']} requests are reported to {sink} again{_once_on(done)}")


def _once_on(done: Mapping[str, Any]) -> str:
    return "" if done["on"] else ", once METERS names it again"


# --- DRAIN ----------------------------------------------------------------------------------------------------


@main.group("drain")
def drain_group() -> None:
    """Channels that agents pay from, in the running daemon."""


@drain_group.command("status")
@JSON
def drain_status(as_json: bool) -> None:
    """Show what there is to claim, and why no voucher is taken where that is so."""
    found = ask("drain_status")
    _print(found, as_json, "\n".join(f"{name}: {value}" for name, value in found.items()))


@drain_group.command("claim")
@click.option("--force", is_flag=True, help="Whatever is unclaimed, if it is worth its gas.")
@JSON
def drain_claim(force: bool, as_json: bool) -> None:
    """Send the next claim that is due; the others follow, one after the other."""
    done = ask("drain_claim", force=force)
    _print(done, as_json, "\n".join(done["transactions"]) or "nothing was sent")


@drain_group.command("channels")
@JSON
def drain_channels(as_json: bool) -> None:
    """List open channels, in micro-USDC."""
    found = ask("drain_channels")
    lines = [
        f"{one['channelId']}  charged {one['charged']}  claimed {one['claimed']}  of {one['deposit']}  {one['state']}"
        for one in found
    ]
    _print(found, as_json, "\n".join(lines) or "no channel is open")


# --- books, backup, restore -----------------------------------------------------------------------------------


@main.command()
@click.option("--full", is_flag=True, help="From the beginning, not from the last verified statement.")
@JSON
def check(full: bool, as_json: bool) -> None:
    """Recompute the books from the rows; exit code 1 where they do not add up."""
    found = ask("check", full=full)
    lines = [*found["wrong"], f"{found['accounts']} accounts, {len(found['wrong'])} differences"]
    lines += [f"there is no plan {name}; users who have it: {users}" for name, users in found["unknown_plans"].items()]
    text = "\n".join([*lines, *(_meter_line(sink) for sink in found["meters"])])
    _print(found, as_json, text)
    sys.exit(0 if found["ok"] else 1)


@main.command()
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(1, 100_000), help="With a folder: how many dated copies to keep.")
@JSON
def backup(destination: Path, keep: int | None, as_json: bool) -> None:
    """Copy the database to DESTINATION (a folder or a file), also under full load, and prove the copy."""
    from goosestack import admin

    config = load()
    with _refusals(), _working("copying and proving"):
        made = admin.backup(config.db_path, destination, keep)
    _print(made, as_json, f"{made['file']}: {made['bytes']} bytes, {made['requests']} requests, books add up")


@main.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
def restore(source: Path, as_json: bool) -> None:
    """Put a backup in the database's place, once proved; the replaced file is kept. Not while the daemon runs."""
    from goosestack import admin

    config = load()
    with _refusals(), _working("proving and copying"):
        made = admin.restore(config.db_path, source)
    _print(made, as_json, f"{made['file']} restored from {source}; replaced: {made['replaced'] or 'nothing'}")


@contextmanager
def _working(what: str) -> Iterator[None]:
    """Say on a terminal that something is going on."""
    shown = sys.stderr.isatty()
    if shown:
        click.echo(f"{what} ...", err=True, nl=False)
    try:
        yield
    finally:
        if shown:
            click.echo("\r\033[K", err=True, nl=False)


if __name__ == "__main__":
    main()
