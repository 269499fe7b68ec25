"""The operator's verbs, on the daemon's store or on the file itself; how they are asked for is `control`'s affair."""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from goosestack import accounts, allowance, control, inbox, ledger, outbox, plans as planning
from goosestack.cashier import Cashier, CashierError, Unreachable
from goosestack.control import Answer, NotNow, VerbError
from goosestack.errors import ChainUnknown, StoreUnavailable
from goosestack.gateway import Gateway
from goosestack.plans import Plans
from goosestack.store import Store, Tx, backup as copies
from goosestack.store.sqlite import SqliteStore

MOST_NAME = 100
"""Characters of a key's name, as the API has it."""

_MOST_TEXT = 500


class Channels(Protocol):
    """What a daemon with DRAIN can be asked."""

    async def status(self) -> dict[str, Any]:
        """How much there is."""
        ...

    async def claim(self, *, force: bool) -> dict[str, Any]:
        """Send what is due, or with `force` whatever is unclaimed."""
        ...

    async def channels(self) -> list[dict[str, object]]:
        """Every open channel."""
        ...


class Admin:
    """The verbs, on a store; with the daemon's gateway where there is one, so that a change cuts what it must."""

    def __init__(
        self,
        store: Store,
        now: Callable[[], str],
        plans: Plans | None = None,
        gateway: Gateway | None = None,
        cashier: Cashier | None = None,
        channels: Channels | None = None,
        *,
        sinks: Collection[str] = (),
    ) -> None:
        """`sinks` are those that are on."""
        self._store, self._now, self._gateway, self._sinks = store, now, gateway, sinks
        self._cashier, self._channels = cashier, channels
        self._plans = Plans() if plans is None else plans

    async def call(self, verb: str, args: Mapping[str, Any]) -> Answer:
        """Run a verb by name. Raises VerbError."""
        method = VERBS.get(verb)
        if method is None:
            raise VerbError(f"there is no verb {verb}")
        _refuse_unfit(dict(args))
        try:
            return await method(self, **args)
        except Unreachable as error:
            raise NotNow(str(error)) from error
        except (
            accounts.AccountError,
            ledger.LedgerError,
            outbox.MeterError,
            planning.PlanError,
            CashierError,
            ChainUnknown,
        ) as error:
            raise VerbError(str(error)) from error
        except StoreUnavailable as error:
            raise VerbError(f"the database is out of reach: {error.__cause__ or error}") from error

    async def user_create(self, email: str) -> Answer:
        """A new user without credits."""
        if not email.isprintable() or email.count("@") != 1 or len(email) > 254:
            raise VerbError(f"{email!r} is no e-mail address")
        return {"id": await self._store.write(accounts.create_user, email, self._now()), "email": email}

    async def user_list(self, after: str) -> Answer:
        """Users, the first `PAGE` of those after an id."""
        return await self._store.read(_list_users, after)

    async def user_pro(self, user: str, until: str | None) -> Answer:
        """Let a user bring their own provider key until a time."""
        return await self._store.write(_set_pro, user, until)

    async def key_create(self, user: str, name: str) -> Answer:
        """A key for a user."""
        return await self._store.write(_create_key, user, name or "default", self._now())

    async def key_list(self, user: str | None, after: str) -> Answer:
        """Keys, by prefix, the first `PAGE` of those after an id; one user's, or all."""
        return await self._store.read(_list_keys, user, after)

    async def key_revoke(self, key: str) -> Answer:
        """Revoke a key; its live streams end."""
        key_id = await self._store.write(accounts.revoke_key, key)
        if self._gateway is not None:
            self._gateway.end_of_key(key_id)
        return {"id": key_id, "revoked": True}

    async def credit_grant(self, user: str, cents: int, note: str, ref: str | None) -> Answer:
        """Give credits."""
        return await self._store.write(_grant, user, cents, note, ref or accounts.new_id(""), self._now())

    async def credit_show(self, user: str) -> Answer:
        """A user's credits."""
        return await self._store.read(_show_credit, user)

    async def plan_list(self) -> Answer:
        """The plans that there are."""
        return show_plans(self._plans)

    async def plan_assign(self, user: str, plan: str, until: str | None) -> Answer:
        """Give a user a plan; another that was given before ends with the month."""
        self._plans.find(plan)
        return await self._store.write(_assign_plan, self._plans, user, plan, until, self._now())

    async def plan_cap(self, user: str, cents: int | None) -> Answer:
        """Cap what a user may spend in a period beyond their plan."""
        return await self._store.write(_cap_spending, self._plans, user, cents, self._now())

    async def plan_show(self, user: str) -> Answer:
        """A user's plan, and what is left of it."""
        return await self._store.read(_show_plan, self._plans, user, self._now())

    async def check(self, full: bool) -> Answer:
        """Recompute the books; what they prove is written down."""
        books = await self._store.read(_check, full)
        if not books.wrong:
            await self._store.write(ledger.verify, books, self._now())
        reported = await self.meters_status(0)
        unknown = await self._store.read(planning.unknown, self._plans, self._now())
        found = {"ok": not books.wrong, "accounts": books.accounts, "wrong": books.wrong}
        return {**found, "meters": reported, "unknown_plans": unknown}

    async def meters_status(self, letters: int) -> Answer:
        """How far each sink has got; so many of the dead letters of each."""
        return await self._store.read(_meters_status, letters, self._now(), self._sinks)

    async def meters_retry(self, sink: str, id: str | None) -> Answer:
        """Send dead letters again, and end any wait."""
        return {"sink": sink, "on": sink in self._sinks, "retried": await self._store.write(outbox.retry, sink, id)}

    async def meters_discard(self, sink: str, id: str) -> Answer:
        """Give up on a dead letter, or on an event that waits."""
        await self._store.write(outbox.discard, sink, id)
        return {"sink": sink, "discarded": id}

    async def meters_replay(self, sink: str, since: str, force: bool) -> Answer:
        """Report again what settled since a time."""
        after, oldest = await self._store.read(outbox.reach, since)
        rows = await self._store.write(outbox.replay, sink, after, oldest, self._now(), force=force)
        return {"sink": sink, "on": sink in self._sinks, "since": since, "rows": rows}

    async def stripe_reconcile(self) -> Answer:
        """Pull what Stripe has, through the same fold."""
        return await self._asking_stripe().reconcile()

    async def stripe_setup(self, again: bool) -> Answer:
        """Make the webhook endpoint; its secret is told once."""
        return await self._asking_stripe().set_up(again=again)

    async def stripe_reviews(self) -> Answer:
        """The events that a person must look at."""
        return await self._store.read(inbox.to_review)

    async def stripe_reviewed(self, event: str) -> Answer:
        """A person has looked at an event."""
        if not await self._store.write(inbox.reviewed, event):
            raise VerbError(f"there is no event {event} to review")
        return {"id": event, "reviewed": True}

    async def drain_status(self) -> Answer:
        """What channels owe and have paid."""
        return await self._agents().status()

    async def drain_claim(self, force: bool) -> Answer:
        """Claim what is due."""
        return await self._agents().claim(force=force)

    async def drain_channels(self) -> Answer:
        """Every open channel."""
        return await self._agents().channels()

    def _agents(self) -> Channels:
        if self._channels is None:
            raise VerbError("no daemon with DRAIN is running on this database")
        return self._channels

    def _asking_stripe(self) -> Cashier:
        if self._cashier is None:
            raise VerbError("STRIPE_SECRET_KEY is not set")
        return self._cashier


VERBS: Mapping[str, Callable[..., Awaitable[Answer]]] = {
    "user_create": Admin.user_create,
    "user_list": Admin.user_list,
    "user_pro": Admin.user_pro,
    "key_create": Admin.key_create,
    "key_list": Admin.key_list,
    "key_revoke": Admin.key_revoke,
    "credit_grant": Admin.credit_grant,
    "credit_show": Admin.credit_show,
    "plan_list": Admin.plan_list,
    "plan_assign": Admin.plan_assign,
    "plan_cap": Admin.plan_cap,
    "plan_show": Admin.plan_show,
    "check": Admin.check,
    "stripe_reconcile": Admin.stripe_reconcile,
    "stripe_setup": Admin.stripe_setup,
    "stripe_reviews": Admin.stripe_reviews,
    "stripe_reviewed": Admin.stripe_reviewed,
    "meters_status": Admin.meters_status,
    "meters_retry": Admin.meters_retry,
    "meters_discard": Admin.meters_discard,
    "meters_replay": Admin.meters_replay,
    "drain_status": Admin.drain_status,
    "drain_claim": Admin.drain_claim,
    "drain_channels": Admin.drain_channels,
}


def _refuse_unfit(args: Mapping[str, Any]) -> None:
    """Raise VerbError where a text is too long, or has what no line can show: a control, or bytes that are no UTF-8."""
    for name, value in args.items():
        most = MOST_NAME if name == "name" else _MOST_TEXT
        if not isinstance(value, str):
            continue
        if len(value) > most or any(unicodedata.category(mark)[0] == "C" for mark in value):
            raise VerbError(f"the {name} must be at most {most} printable characters")


def _set_pro(tx: Tx, user: str, until: str | None) -> Answer:
    user_id = accounts.find_user(tx, user)
    return {"id": user_id, "pro_until": accounts.set_pro(tx, user_id, until)}


def _create_key(tx: Tx, user: str, name: str, now: str) -> Answer:
    return accounts.create_key(tx, accounts.find_user(tx, user), name, now)


def _list_users(tx: Tx, after: str) -> Answer:
    rows = tx.execute(
        "SELECT u.id, u.email, u.pro_until, c.balance_cents, u.created_at FROM users u"
        " JOIN credits c ON c.user_id = u.id WHERE u.id > ? ORDER BY u.id LIMIT ?",
        (after, control.PAGE),
    )
    return [dict(zip(("id", "email", "pro_until", "balance_cents", "created_at"), row, strict=True)) for row in rows]


def _list_keys(tx: Tx, user: str | None, after: str) -> Answer:
    user_id = None if user is None else accounts.find_user(tx, user)
    rows = tx.execute(
        "SELECT id, key_prefix, name, revoked, created_at, user_id FROM api_keys"
        " WHERE id > ? AND (? IS NULL OR user_id = ?) ORDER BY id LIMIT ?",
        (after, user_id, user_id, control.PAGE),
    )
    names = ("id", "prefix", "name", "revoked", "created_at", "user_id")
    return [dict(zip(names, (*row[:3], bool(row[3]), *row[4:]), strict=True)) for row in rows]


def _grant(tx: Tx, user: str, cents: int, note: str, ref: str, now: str) -> Answer:
    user_id = accounts.find_user(tx, user)
    account_id = ledger.open_account(tx, user_id, "usd_cents", now)
    posted = ledger.post(tx, account_id, "grant", ref, cents, now, note)
    return {"id": user_id, "ref": ref, "posted": posted, **accounts.funds(tx, user_id)}


def _show_credit(tx: Tx, user: str) -> Answer:
    user_id = accounts.find_user(tx, user)
    return {"id": user_id, **accounts.funds(tx, user_id)}


def show_plans(plans: Plans) -> Answer:
    """All of them, the least first."""
    return [asdict(plan) for plan in plans.by_name.values()]


def _assign_plan(tx: Tx, plans: Plans, user: str, plan: str, until: str | None, now: str) -> Answer:
    user_id = accounts.find_user(tx, user)
    planning.assign(tx, user_id, plan, until, now)
    return {"id": user_id, **allowance.shown(tx, planning.of_user(tx, plans, user_id, now), user_id)}


def _cap_spending(tx: Tx, plans: Plans, user: str, cents: int | None, now: str) -> Answer:
    user_id = accounts.find_user(tx, user)
    planning.set_cap(tx, user_id, planning.OPERATOR, cents, now)
    return {"id": user_id, **allowance.shown(tx, planning.of_user(tx, plans, user_id, now), user_id)}


def _show_plan(tx: Tx, plans: Plans, user: str, now: str) -> Answer:
    user_id = accounts.find_user(tx, user)
    return {"id": user_id, **allowance.shown(tx, planning.of_user(tx, plans, user_id, now), user_id)}


def _check(tx: Tx, full: bool) -> ledger.Books:
    return ledger.check(tx, full=full)


def _meters_status(tx: Tx, letters: int, now: str, on: Collection[str]) -> Answer:
    return [{**sink, "dead": outbox.dead_letters(tx, sink["sink"], letters)} for sink in outbox.status(tx, now, on)]


# --- on the file itself ---------------------------------------------------------------------------------------


async def call(database: Path, verb: str, args: Mapping[str, Any], now: Callable[[], str]) -> Answer:
    """Run a verb that needs neither plans nor Stripe, wherever it is to be run; see `control.call`."""
    return await control.call(database, verb, args, lambda: on_file(database, verb, args, now))


async def on_file(
    database: Path,
    verb: str,
    args: Mapping[str, Any],
    now: Callable[[], str],
    plans: Plans | None = None,
    cashier: Callable[[Store], Cashier | None] = lambda store: None,
    sinks: Collection[str] = (),
) -> Answer:
    """Run a verb where no daemon runs; the caller holds the database's lock. Raises VerbError, or Refusal.

    `plans` are the default ones where there are none, `cashier` makes what asks Stripe, and `sinks` says which are on.
    """
    store = SqliteStore(database, readers=1)
    try:
        asking = cashier(store)
        try:
            return await Admin(store, now, plans, cashier=asking, sinks=sinks).call(verb, args)
        finally:
            if asking is not None:
                await asking.till.close()
    finally:
        await store.close()


# --- backup and restore ---------------------------------------------------------------------------------------


def backup(database: Path, destination: Path, keep: int | None) -> dict[str, Answer]:
    """Copy the database, also while a daemon runs, and prove the copy; see `copies.backup`. Raises Refusal."""
    return copies.backup(database, destination, keep, _wrong_books)


def restore(database: Path, source: Path) -> dict[str, Answer]:
    """Put a proved copy in the database's place, while no daemon runs; see `copies.restore`. Raises Refusal."""
    return copies.restore(database, source, outbox.restored, _wrong_books)


def verify_file(path: Path) -> dict[str, int]:
    """Prove a database file: `{"users", "requests", "accounts"}`. Raises Refusal."""
    return copies.verify_file(path, _wrong_books)


def _wrong_books(tx: Tx) -> list[str]:
    return ledger.check(tx, full=True).wrong
