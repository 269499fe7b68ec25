"""What pays: the family of ways to be paid for a request, behind one interface.

A payer is an account and what a request costs there, in grains of its unit. `Funding` says who has which: a gateway has
a list of them, and a request is paid by the first payer that can hold it. One request, one account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from goosestack import ledger, pricing
from goosestack.accounts import Principal
from goosestack.errors import InDebt, InsufficientFunds, Problem
from goosestack.ledger import Authorized, NewHold, Settled
from goosestack.pricing import Model, Terms
from goosestack.store import Tx


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a payer could not hold a request. Amounts are grains of its unit."""

    required: int
    available: int
    affordable: int | None
    """Output tokens of each answer that would be; None where there is no output to cap."""
    debt: int = 0
    """Units owed."""


class Payer(Protocol):
    """One way to pay for one request."""

    @property
    def account_id(self) -> int | None:
        """The account; None where `authorize` opens it."""
        ...

    @property
    def unit(self) -> str:
        """What the account is counted in."""
        ...

    @property
    def clamps(self) -> bool:
        """Whether a cap that cannot be afforded is always lowered, whatever the operator's policy is."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """What every answer carries, whatever becomes of the request."""
        ...

    def prices(self, model: Model) -> tuple[Model, Terms]:
        """The model at this payer's prices, and the terms on them. Raises a Problem where it may not be asked for."""
        ...

    def authorize(self, tx: Tx, hold: NewHold, at_least: int, at_most: int, now: str) -> Authorized:
        """The verb that makes the hold on this payer's account. See `ledger.authorize`."""
        ...

    def look(self, tx: Tx) -> Authorized:
        """What could be held now, without holding it."""
        ...

    def grains(self, nanos: int, tokens: int) -> int:
        """What so many nanodollars, or so many tokens, are in this payer's account."""
        ...

    def refuse(self, shortage: Shortage) -> Problem:
        """What the caller is told where it cannot be held."""
        ...

    def told(self, receipt: Settled) -> dict[str, str]:
        """The headers of an answer that say what it cost and what is left."""
        ...

    def around(self, receipt: Settled) -> tuple[bytes, bytes]:
        """The same for a stream: comments before its last event, and after it."""
        ...


class Funding(Protocol):
    """One kind of payer, of whoever has it."""

    def payer(self, caller: Principal) -> Payer | None:
        """The caller's payer of this kind; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class CreditFunding:
    """Prepaid credits, which every user has an account of."""

    terms: Terms
    public_url: str | None = None

    def payer(self, caller: Principal) -> Credits | None:
        """See `Funding.payer`."""
        return None if caller.account_id is None else Credits(caller.account_id, self.terms, self.public_url)


@dataclass(frozen=True, slots=True)
class Credits:
    """A user's account in `usd_cents`. A grain is a nanodollar."""

    account_id: int
    terms: Terms
    public_url: str | None = None

    @property
    def unit(self) -> str:
        """See `Payer.unit`."""
        return "usd_cents"

    @property
    def clamps(self) -> bool:
        """See `Payer.clamps`."""
        return False

    @property
    def headers(self) -> dict[str, str]:
        """See `Payer.headers`."""
        return {}

    def prices(self, model: Model) -> tuple[Model, Terms]:
        """See `Payer.prices`."""
        return model, self.terms

    def authorize(self, tx: Tx, hold: NewHold, at_least: int, at_most: int, now: str) -> Authorized:
        """See `Payer.authorize`."""
        return ledger.authorize(tx, hold, at_least, at_most, now)

    def look(self, tx: Tx) -> Authorized:
        """See `Payer.look`."""
        return Authorized(None, ledger.left_in(tx, self.account_id), ledger.owed_by(tx, self.account_id))

    def grains(self, nanos: int, tokens: int) -> int:
        """See `Payer.grains`."""
        return nanos

    def refuse(self, shortage: Shortage) -> Problem:
        """See `Payer.refuse`."""
        where = where_to_pay(self.public_url)
        if shortage.debt:
            return InDebt(debt=f"${Decimal(shortage.debt).scaleb(-2):.2f}", where=where)
        affordable = shortage.affordable
        return InsufficientFunds(
            required=dollars(shortage.required, up=True),
            available=dollars(shortage.available, up=False),
            affordable="" if affordable is None else f"About {affordable} output tokens are affordable. ",
            where=where,
        )

    def told(self, receipt: Settled) -> dict[str, str]:
        """See `Payer.told`."""
        return {
            "x-goosestack-cost-usd": pricing.dollars(receipt.nanos),
            "x-goosestack-cost-cents": str(receipt.billed),
            "x-goosestack-balance-cents": str(receipt.balance),
        }

    def around(self, receipt: Settled) -> tuple[bytes, bytes]:
        """See `Payer.around`."""
        return comment(self.told(receipt)), b""


def comment(told: Mapping[str, str]) -> bytes:
    """Our headers as a comment in a stream, which clients skip."""
    text = " ".join(f"{name.removeprefix('x-goosestack-')}={value}" for name, value in told.items())
    return f": goosestack {text}\n\n".encode()


def where_to_pay(public_url: str | None) -> str:
    """Where to top up, as a sentence."""
    return f"Top up at {public_url}." if public_url else "Ask the operator of this gateway to top up."


def dollars(nanos: int, *, up: bool) -> str:
    """To a hundredth of a cent, rounded against the caller."""
    hundredths = -(-nanos // 100_000) if up else nanos // 100_000
    return f"${Decimal(hundredths).scaleb(-4):.4f}"
