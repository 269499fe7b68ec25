"""What Stripe said, as a set of facts: kept once, in whatever order it comes, and never counted up.

What went back of a payment is a pure function of the set: refunds and disputes are told in several ways, each of which
may lack some. Amounts are in the smallest unit of the currency, times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from goosestack.store import Tx

DISPUTE_STATES = ("opened", "withdrawn", "reinstated", "won", "lost")


class Fact(NamedTuple):
    """Something that Stripe said: `name` of `object`, which concerns `about` (our payment, or one of Stripe's ids)."""

    about: str
    name: str
    object: str
    amount: int = 0
    at: int = 0
    detail: str = ""


def keep(tx: Tx, *facts: Fact) -> None:
    """Add to the set."""
    for fact in facts:
        tx.execute("INSERT INTO stripe_facts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", fact)


def keep_first(tx: Tx, fact: Fact) -> None:
    """The same for what is told again and again: of its times, the earliest is kept."""
    same = (fact.about, fact.name, fact.object, fact.amount, fact.detail)
    where = "about = ? AND name = ? AND object = ? AND amount = ? AND detail = ?"
    (known,) = tx.execute(f"SELECT min(at) FROM stripe_facts WHERE {where}", same).fetchone()
    if known is None or fact.at < known:
        tx.execute(f"DELETE FROM stripe_facts WHERE {where}", same)
        keep(tx, fact)


def keep_page(tx: Tx, about: str, object: str, url: str | None, at: int) -> None:
    """Where an object is shown now. No fact: Stripe renews these addresses, and the latest is the one that works."""
    if url is not None:
        tx.execute(
            "INSERT INTO stripe_pages (object, about, url, at) VALUES (?, ?, ?, ?) ON CONFLICT (object) DO UPDATE"
            " SET about = excluded.about, url = excluded.url, at = excluded.at"
            " WHERE (excluded.at, excluded.url) > (stripe_pages.at, stripe_pages.url)",
            (object, about, url, at),
        )


def page_about(tx: Tx, about: str | None) -> str | None:
    """Where the latest object about this is shown."""
    row = tx.execute(
        "SELECT url FROM stripe_pages WHERE about = ? ORDER BY at DESC, object DESC LIMIT 1", (about,)
    ).fetchone()
    return None if row is None else str(row[0])


def facts_about(tx: Tx, abouts: Iterable[str | None]) -> list[Fact]:
    """The facts that concern any of these."""
    found: list[Fact] = []
    for about in sorted({each for each in abouts if each is not None}):
        rows = tx.execute("SELECT about, name, object, amount, at, detail FROM stripe_facts WHERE about = ?", (about,))
        found += [Fact(*row) for row in rows.fetchall()]
    return found


def refunds(facts: Iterable[Fact]) -> int:
    """What was refunded in all. A charge tells the sum up to a time, refunds tell of themselves: whichever shows more
    is right, since the other lacks some. A refund that failed counts for nothing, and is taken off a sum only where it
    was in it: told after the refund was made, and before it failed."""
    known = sorted(set(facts))
    made = {fact.object: fact for fact in known if fact.name == "refund"}
    failed = [(made[fact.object], fact.at) for fact in known if fact.name == "refund_failed" and fact.object in made]
    names = {fact.object for fact in known if fact.name == "refund_failed"}
    found = [sum(fact.amount for object, fact in made.items() if object not in names)]
    for told in (fact for fact in known if fact.name == "refunded"):
        found.append(told.amount - sum(lost.amount for lost, at in failed if lost.at <= told.at <= at))
    return max(found)


def disputes(facts: Iterable[Fact], currency: str | None = None) -> tuple[int, str | None]:
    """What disputes have taken, and what is doubtful about them. Money that was withdrawn is gone until it is
    reinstated or the dispute is won; where one was lost and won, it counts as lost until somebody has looked. One in
    another currency than this takes nothing until then: its amount cannot be compared."""
    known, taken, doubt = set(facts), 0, None
    for dispute in sorted({fact.object for fact in known if fact.name == "opened"}):
        about = [fact for fact in known if fact.object == dispute and fact.name in DISPUTE_STATES]
        if currency is not None and (other := {fact.detail for fact in about} - {currency}):
            doubt = f"the dispute {dispute} is in {min(other)}"
            continue
        states = {fact.name for fact in about}
        back = states & {"won", "reinstated"}
        if "lost" in states and back:
            doubt = f"the dispute {dispute} was lost and its money came back"
        if "lost" in states or ("withdrawn" in states and not back):
            taken += max(fact.amount for fact in about)
    return taken, doubt
