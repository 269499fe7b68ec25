"""What pays: the family of ways to be paid for a request, behind one interface.

A payer is an account and what a request costs there, in grains of its unit. `Funding` says who has which: a gateway has
a list of them, and a request is paid by the first payer that can hold it. One request, one account. The members:

    credits     prepaid cents
    allowance   the tokens that a plan gives for a period: all input and all output, whatever the model
    overage     cents beyond them, up to a cap, for which somebody is billed later
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import ClassVar, Protocol

from goosestack import allowance, ledger, plans, pricing
from goosestack.accounts import Principal
from goosestack.allowance import Grant
from goosestack.errors import (
    CapReached,
    InDebt,
    InsufficientFunds,
    ModelNotInPlan,
    NotBillable,
    Problem,
    QuotaExceeded,
)
from goosestack.ledger import GRAINS, Authorized, NewHold, Settled
from goosestack.plans import Membership, Plan, Plans
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
        """What the account counts: a key of `ledger.GRAINS`."""
        ...

    def admit(self, model: Model) -> None:
        """Raise a Problem where this payer does not pay for this model."""
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
        """The model at this payer's prices, and the terms on them; also of another than was asked for."""
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


class _OfUsers(Protocol):
    """What the payers of users have in common, and one that pays by itself has not."""

    __slots__ = ()

    @property
    def clamps(self) -> bool:
        """See `Payer.clamps`."""
        return False

    @property
    def headers(self) -> dict[str, str]:
        """See `Payer.headers`."""
        return {}

    def around(self, receipt: Settled) -> tuple[bytes, bytes]:
        """See `Payer.around`."""
        return comment(self.told(receipt)), b""

    def told(self, receipt: Settled) -> dict[str, str]:
        """See `Payer.told`."""
        ...


def comment(told: Mapping[str, str]) -> bytes:
    """Our headers as a comment in a stream, which clients skip."""
    text = " ".join(f"{name.removeprefix('x-goosestack-')}={value}" for name, value in told.items())
    return f": goosestack {text}\n\n".encode()


@dataclass(frozen=True, slots=True)
class CreditFunding:
    """Prepaid credits, which every user has an account of."""

    terms: Terms
    public_url: str | None = None

    def payer(self, caller: Principal) -> Credits | None:
        """See `Funding.payer`."""
        return None if caller.account_id is None else Credits(caller.account_id, self.terms, self.public_url)


@dataclass(frozen=True, slots=True)
class Credits(_OfUsers):
    """A user's account in `usd_cents`. A grain is a nanodollar."""

    account_id: int
    terms: Terms
    public_url: str | None = None

    @property
    def unit(self) -> str:
        """See `Payer.unit`."""
        return "usd_cents"

    def admit(self, model: Model) -> None:
        """See `Payer.admit`: credits pay for all that is sold."""

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
        return InsufficientFunds(
            required=dollars(shortage.required, up=True),
            available=dollars(shortage.available, up=False),
            affordable=affordable_text(shortage),
            where=where,
        )

    def told(self, receipt: Settled) -> dict[str, str]:
        """See `Payer.told`."""
        return {
            "x-goosestack-cost-usd": pricing.dollars(receipt.nanos),
            "x-goosestack-cost-cents": str(receipt.billed),
            "x-goosestack-balance-cents": str(receipt.balance),
        }


# --- plans ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AllowanceFunding:
    """The tokens of a plan, which every user has: whoever has no other has the free one."""

    plans: Plans
    terms: Terms

    def payer(self, caller: Principal) -> Allowance | None:
        """See `Funding.payer`."""
        return None if caller.member is None else Allowance(caller.user_id, caller.member, self.plans, self.terms)


@dataclass(frozen=True, slots=True)
class OverageFunding:
    """Cents beyond the tokens, which those have whose cap is above zero."""

    plans: Plans
    terms: Terms

    def payer(self, caller: Principal) -> Overage | None:
        """See `Funding.payer`."""
        if caller.member is None or caller.member.overage_cents == 0:
            return None
        return Overage(caller.user_id, caller.member, self.plans, self.terms)


@dataclass(frozen=True, slots=True)
class _Planned(_OfUsers):
    """What the two have in common. Which plan counts is looked up again where the hold is made."""

    gives: ClassVar[staticmethod[[Membership, str], Grant]]
    """What pays, of what a plan gives in its period."""
    user_id: str
    member: Membership
    """As it was when the request came in."""
    plans: Plans
    terms: Terms

    @property
    def account_id(self) -> int | None:
        """See `Payer.account_id`."""
        return None

    def admit(self, model: Model) -> None:
        """See `Payer.admit`."""
        _must_include(self.member.plan, model.id)

    def prices(self, model: Model) -> tuple[Model, Terms]:
        """See `Payer.prices`."""
        return model, self.terms

    @property
    def unit(self) -> str:
        """See `Payer.unit`."""
        return self.gives(self.member, self.user_id).unit

    def authorize(self, tx: Tx, hold: NewHold, at_least: int, at_most: int, now: str) -> Authorized:
        """See `Payer.authorize`. Raises ModelNotInPlan: while its body came in, the plan may have changed."""
        member = plans.of_user(tx, self.plans, self.user_id, now)
        _must_include(member.plan, hold.model)
        account_id = self.gives(member, self.user_id).open(tx, now)
        return ledger.authorize(tx, replace(hold, account_id=account_id), at_least, at_most, now)

    def look(self, tx: Tx) -> Authorized:
        """See `Payer.look`."""
        return Authorized(None, max(0, self.gives(self.member, self.user_id).rest(tx).available))

    @property
    def _reset(self) -> dict[str, str]:
        return {"x-goosestack-reset": self.member.period.ends_at}


def _must_include(plan: Plan, model: str) -> None:
    if not plan.includes(model):
        raise ModelNotInPlan(plan=plan.name, model=model, param="model")


class Allowance(_Planned):
    """A period's account in `tokens`. A grain is a token."""

    __slots__ = ()

    gives = staticmethod(allowance.tokens)

    def grains(self, nanos: int, tokens: int) -> int:
        """See `Payer.grains`."""
        return tokens

    def refuse(self, shortage: Shortage) -> Problem:
        """See `Payer.refuse`."""
        return QuotaExceeded(
            plan=self.member.plan.name,
            quota=self.member.plan.tokens,
            required=shortage.required,
            available=shortage.available,
            affordable=affordable_text(shortage),
            reset=self.member.period.ends_at,
            headers=self._reset,
        )

    def told(self, receipt: Settled) -> dict[str, str]:
        """See `Payer.told`."""
        return {
            "x-goosestack-payer": "allowance",
            "x-goosestack-cost-usd": "0",
            "x-goosestack-cost-cents": "0",
            "x-goosestack-cost-tokens": str(receipt.billed),
            "x-goosestack-tokens-remaining": str(receipt.available),
            **self._reset,
        }


class Overage(_Planned):
    """A period's account in `usd_cents`, granted the cap. A grain is a nanodollar."""

    __slots__ = ()

    gives = staticmethod(allowance.overage)

    def admit(self, model: Model) -> None:
        """See `Payer.admit`: whom nobody could send an invoice is refused."""
        super().admit(model)
        if not self.member.billable:
            raise NotBillable()

    def grains(self, nanos: int, tokens: int) -> int:
        """See `Payer.grains`."""
        return nanos

    def refuse(self, shortage: Shortage) -> Problem:
        """See `Payer.refuse`."""
        return CapReached(
            cap=f"${Decimal(self.member.overage_cents).scaleb(-2):.2f}",
            required=dollars(shortage.required, up=True),
            available=dollars(shortage.available, up=False),
            affordable=affordable_text(shortage),
            reset=self.member.period.ends_at,
            headers=self._reset,
        )

    def told(self, receipt: Settled) -> dict[str, str]:
        """See `Payer.told`."""
        return {
            "x-goosestack-payer": "overage",
            "x-goosestack-cost-usd": pricing.dollars(receipt.nanos),
            "x-goosestack-cost-cents": str(receipt.billed),
            "x-goosestack-overage-remaining-cents": str(receipt.available // GRAINS[self.unit]),
            **self._reset,
        }


# --- in words -------------------------------------------------------------------------------------------------


def affordable_text(shortage: Shortage) -> str:
    """How much output could be paid for, as a sentence; nothing where there is none to cap."""
    return "" if shortage.affordable is None else f"About {shortage.affordable} output tokens are affordable. "


def where_to_pay(public_url: str | None) -> str:
    """Where to top up, as a sentence."""
    return f"Top up at {public_url}." if public_url else "Ask the operator of this gateway to top up."


def dollars(nanos: int, *, up: bool) -> str:
    """To a hundredth of a cent, rounded against the caller."""
    hundredths = -(-nanos // 100_000) if up else nanos // 100_000
    return f"${Decimal(hundredths).scaleb(-4):.4f}"
