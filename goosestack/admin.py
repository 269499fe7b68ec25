"""The operator's verbs: called over a Unix socket where a daemon runs, on the file itself where none does.

While a daemon runs it is the only writer, so the command line asks it. The socket lies beside the database, for its
owner alone; a request is one line of JSON, `{"verb", "args"}`, and so is the answer, `{"answer"}` or `{"error"}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from goosestack import accounts, inbox, ledger
from goosestack.cashier import Cashier, CashierError
from goosestack.errors import ChainUnknown, Refusal, StoreUnavailable
from goosestack.gateway import Gateway
from goosestack.store import Store, Tx
from goosestack.store.sqlite import (
    InUse,
    Lock,
    SqliteStore,
    connect_read_only,
    integrity,
    migrate,
    refuse_if_exposed,
    refuse_if_newer,
    snapshot,
)

Answer = Any
_MOST_LINE = 64 * 1024
_PATIENCE_S = 5.0


class VerbError(Exception):
    """A verb could not be done; the text says why."""


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
        gateway: Gateway | None = None,
        cashier: Cashier | None = None,
        channels: Channels | None = None,
    ) -> None:
        self._store, self._now, self._gateway = store, now, gateway
        self._cashier, self._channels = cashier, channels

    async def call(self, verb: str, args: Mapping[str, Any]) -> Answer:
        """Run a verb by name. Raises VerbError."""
        method = VERBS.get(verb)
        if method is None:
            raise VerbError(f"there is no verb {verb}")
        try:
            return await method(self, **args)
        except (accounts.AccountError, ledger.LedgerError, CashierError, ChainUnknown) as error:
            raise VerbError(str(error)) from error
        except StoreUnavailable as error:
            raise VerbError(f"the database cannot be written: {error.__cause__ or error}") from error

    async def user_create(self, email: str) -> Answer:
        """A new user without credits."""
        if not email.isprintable() or email.count("@") != 1 or len(email) > 254:
            raise VerbError(f"{email!r} is no e-mail address")
        return {"id": await self._store.write(accounts.create_user, email, self._now()), "email": email}

    async def user_list(self) -> Answer:
        """All users."""
        return await self._store.read(accounts.list_users)

    async def user_pro(self, user: str, until: str | None) -> Answer:
        """Let a user bring their own provider key until a time."""
        return await self._store.write(_set_pro, user, until)

    async def key_create(self, user: str, name: str) -> Answer:
        """A key for a user."""
        return await self._store.write(_create_key, user, name, self._now())

    async def key_list(self, user: str | None) -> Answer:
        """Keys, by prefix."""
        return await self._store.read(_list_keys, user)

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

    async def check(self, full: bool) -> Answer:
        """Recompute the books; what they prove is written down."""
        books = await self._store.read(_check, full)
        if not books.wrong:
            await self._store.write(ledger.verify, books, self._now())
        return {"ok": not books.wrong, "accounts": books.accounts, "wrong": books.wrong}

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
    "check": Admin.check,
    "stripe_reconcile": Admin.stripe_reconcile,
    "stripe_setup": Admin.stripe_setup,
    "stripe_reviews": Admin.stripe_reviews,
    "stripe_reviewed": Admin.stripe_reviewed,
    "drain_status": Admin.drain_status,
    "drain_claim": Admin.drain_claim,
    "drain_channels": Admin.drain_channels,
}


def _set_pro(tx: Tx, user: str, until: str | None) -> Answer:
    user_id = accounts.find_user(tx, user)
    return {"id": user_id, "pro_until": accounts.set_pro(tx, user_id, until)}


def _create_key(tx: Tx, user: str, name: str, now: str) -> Answer:
    return accounts.create_key(tx, accounts.find_user(tx, user), name, now)


def _list_keys(tx: Tx, user: str | None) -> Answer:
    return accounts.list_keys(tx, None if user is None else accounts.find_user(tx, user))


def _grant(tx: Tx, user: str, cents: int, note: str, ref: str, now: str) -> Answer:
    user_id = accounts.find_user(tx, user)
    account_id = ledger.open_account(tx, user_id, "usd_cents", now)
    posted = ledger.post(tx, account_id, "grant", ref, cents, now, note)
    return {"id": user_id, "ref": ref, "posted": posted, **accounts.funds(tx, user_id)}


def _show_credit(tx: Tx, user: str) -> Answer:
    user_id = accounts.find_user(tx, user)
    return {"id": user_id, **accounts.funds(tx, user_id)}


def _check(tx: Tx, full: bool) -> ledger.Books:
    return ledger.check(tx, full=full)


# --- over the socket, or on the file --------------------------------------------------------------------------


def socket_path(database: Path) -> Path:
    """The socket beside a database."""
    return database.with_name(database.name + ".sock")


def _reachable(path: Path) -> tuple[str, int | None]:
    """A name of the socket that is short enough for the kernel, and a descriptor to close after using it."""
    if len(os.fsencode(path)) < 100:
        return str(path), None
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{path.name}", folder


async def listen(admin: Admin, database: Path) -> asyncio.Server:
    """Take verbs at the database's socket until the server is closed. The caller holds the database's lock."""
    socket_path(database).unlink(missing_ok=True)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            reply = await _reply(admin, line)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    name, folder = _reachable(socket_path(database))
    try:
        server = await asyncio.start_unix_server(serve, name, limit=_MOST_LINE)
    finally:
        if folder is not None:
            os.close(folder)
    os.chmod(socket_path(database), 0o600)
    return server


async def _reply(admin: Admin, line: bytes) -> dict[str, Answer]:
    try:
        asked = json.loads(line)
        return {"answer": await admin.call(asked["verb"], asked["args"])}
    except VerbError as error:
        return {"error": str(error)}
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"not a verb that can be run: {type(error).__name__}"}


def _refuse_unusable(database: Path, verb: str) -> None:
    if verb != "user_create" and not database.exists():
        raise Refusal(f"there is no database at {database}")
    refuse_if_exposed(database)


async def call(
    database: Path,
    verb: str,
    args: Mapping[str, Any],
    now: Callable[[], str],
    cashier: Callable[[Store], Cashier | None] = lambda store: None,
) -> Answer:
    """Run a verb, in the daemon where one runs. Raises VerbError, or Refusal where the database is out of reach.

    Only a first user makes a database: any other verb on a path without one was mistyped. `cashier` makes what asks
    Stripe, where no daemon does."""
    _refuse_unusable(database, verb)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            lock = Lock(database)
        except InUse as refusal:
            try:
                return await _ask_daemon(database, verb, args)
            except (OSError, asyncio.IncompleteReadError):
                if time.monotonic() > deadline:
                    raise refusal from None
                await asyncio.sleep(0.05)  # another command holds the file, or the daemon is just starting
        else:
            break
    try:
        store = SqliteStore(database, readers=1)
        try:
            asking = cashier(store)
            try:
                return await Admin(store, now, cashier=asking).call(verb, args)
            finally:
                if asking is not None:
                    await asking.till.close()
        finally:
            await store.close()
    finally:
        lock.release()


async def _ask_daemon(database: Path, verb: str, args: Mapping[str, Any]) -> Answer:
    name, folder = _reachable(socket_path(database))
    try:
        reader, writer = await asyncio.open_unix_connection(name, limit=16 * 1024 * 1024)
    finally:
        if folder is not None:
            os.close(folder)
    try:
        writer.write(json.dumps({"verb": verb, "args": dict(args)}).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise asyncio.IncompleteReadError(b"", None)
    reply = json.loads(line)
    if "error" in reply:
        raise VerbError(reply["error"])
    return reply["answer"]


# --- backup and restore ---------------------------------------------------------------------------------------


def backup(database: Path, destination: Path, keep: int | None) -> dict[str, Answer]:
    """Copy the database, safe under load, and prove the copy. Raises Refusal.

    `destination` is a folder, in which dated copies gather (`keep` of them), or a file that is replaced whole. The
    copy is made by `VACUUM INTO` on a read-only connection, checked (SQLite's own checks, foreign keys, the books from
    the beginning), synced, and only then gets its name.
    """
    if not database.exists():
        raise Refusal(f"there is no database at {database}")
    started = time.monotonic()
    folder = destination if destination.is_dir() else destination.parent
    if not folder.is_dir():
        raise Refusal(f"there is no folder {folder}")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    target = folder / f"{database.stem}-{stamp}.db" if destination.is_dir() else destination
    if target.exists() and target.samefile(database):
        raise Refusal(f"{target} is the database itself")
    partial = folder / f".{target.name}.part"
    partial.unlink(missing_ok=True)
    try:
        snapshot(database, partial)
        rows = verify_file(partial)
        os.replace(partial, target)
    except (sqlite3.Error, OSError) as error:
        raise Refusal(f"the backup failed: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(folder)
    removed = _prune(folder, database.stem, keep) if destination.is_dir() and keep else []
    seconds = round(time.monotonic() - started, 3)
    return {
        "file": str(target),
        "bytes": target.stat().st_size,
        "seconds": seconds,
        "removed": [str(path) for path in removed],
        **rows,
    }


def verify_file(path: Path, name: Path | None = None) -> dict[str, int]:
    """Prove a database file: `{"users", "requests", "accounts"}`. Raises Refusal, naming it (or `name`) and what is
    wrong."""
    name = name or path
    try:
        with closing(connect_read_only(path)) as db:
            refuse_if_newer(db)
            wrong = integrity(db)
            books = ledger.check(db, full=True)
            # a copy of a running daemon's file has holds of that process, which is not gone
            rows = db.execute("SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM usage_log)").fetchone()
    except sqlite3.Error as error:
        raise Refusal(f"{name} is no database of goosestack: {error}") from error
    if wrong or books.wrong:
        raise Refusal(f"{name} does not add up: {'; '.join((wrong + books.wrong)[:5])}")
    return {"users": rows[0], "requests": rows[1], "accounts": books.accounts}


def restore(database: Path, source: Path) -> dict[str, Answer]:
    """Put a proved copy in the database's place; the replaced file is kept beside it. Raises Refusal.

    Refused while a daemon runs. Whenever it is interrupted, the old database is in its place, or the new one, whole."""
    if not source.is_file():
        raise Refusal(f"there is no file {source}")
    if database.exists() and source.samefile(database):
        raise Refusal(f"{source} is the database itself")
    lock, partial = Lock(database), database.with_name(f".{database.name}.restoring")
    try:
        _remove(partial)
        try:
            _refuse_foreign(source)
            snapshot(source, partial)  # not the file alone: its latest commits may lie in a log beside it
            with closing(sqlite3.connect(partial, isolation_level=None)) as db:
                migrate(db)  # before the books are checked, which are those of this version
            rows = verify_file(partial, source)
            kept = _replace(database, partial)
        except (sqlite3.Error, OSError) as error:
            raise Refusal(f"{source} cannot be restored: {error}") from error
        return {"file": str(database), "replaced": None if kept is None else str(kept), **rows}
    finally:
        _remove(partial)
        lock.release()


def _refuse_foreign(source: Path) -> None:
    """Raise Refusal where a file is damaged, or of somebody else: migrating it would make it one of ours."""
    try:
        with closing(connect_read_only(source)) as db:
            refuse_if_newer(db)
            wrong = integrity(db)
            db.execute("SELECT count(*) FROM accounts")
    except sqlite3.Error as error:
        raise Refusal(f"{source} is no database of goosestack: {error}") from error
    if wrong:
        raise Refusal(f"{source} does not add up: {'; '.join(wrong[:5])}")


_LOGS = ("-wal", "-shm", "-journal")
"""What SQLite writes beside a file, and would apply to any other file of that name."""


def _replace(database: Path, proved: Path) -> Path | None:
    """Give the database's name to `proved` in one step; where the old file is then, which had that second name before.

    No log of the old file may ever lie beside the new one, and the old one must not lose its log while it can still
    be started: so its log is first folded into it."""
    existed = database.exists()
    kept = database.with_name(f"{database.name}.replaced-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}")
    if existed:
        for other in database.parent.glob(f"{database.name}.replaced-*"):
            if other.samefile(database):  # a restore was interrupted
                other.unlink()
        _fold_log(database)
        os.link(database, kept)
    for suffix in _LOGS:  # of a file that is missing, or damaged, and cannot be started
        log = database.with_name(database.name + suffix)
        if log.exists():
            log.rename(kept.with_name(kept.name + suffix))
    _sync_folder(database.parent)
    os.replace(proved, database)
    _sync_folder(database.parent)
    return kept if existed else None


def _fold_log(database: Path) -> None:
    """Bring into the file what lies in its log, which is then gone; a file that is damaged stays as it is, and so does
    its log. Raises sqlite3.Error, where somebody else is using it, too."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise


def _remove(partial: Path) -> None:
    for suffix in ("", *_LOGS):
        partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _prune(folder: Path, stem: str, keep: int) -> list[Path]:
    copies = sorted(folder.glob(f"{stem}-????????T????????????Z.db"))
    for path in copies[:-keep]:
        path.unlink()
    return copies[:-keep]
