"""A house under siege: each of its handlers interrupted at each of its suspensions, by each error.

What a handler awaits in tasks of its own (a question to the sign-in service that others may wait for, too, a request to
one of several nodes) is interrupted there as well. What has been struck is told apart by handler, coroutine and number
of the suspension, and by where in the product it was.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from goosestack import app
from tests.awaits import Place
from tests.interruptions import (
    ERRORS,
    HANDLER,
    HARSHER,
    RELAY,
    Asked,
    At,
    House,
    Interruption,
    Resident,
    Throws,
    Told,
    bearer,
)
from tests.proofs.proof import Attempt, Refuted

UNSTRUCK = 2
"""So many runs in a row that end undisturbed: how often a coroutine waits depends on what is ready already."""

NEVER_WAITS = ("tick", "plan_list")
"""Handlers that have no suspension: there is nowhere to interrupt them."""

VERB, JOB = "verb_of", "job_of"

ALERTS = ("fault", "job", "meter", "sign_in")
"""Of what an undisturbed run must tell nobody."""

Plan = Mapping[tuple[str, At], Throws]
Prepare = Callable[[House, Resident], Awaitable[Asked]]
Before = Callable[[], Awaitable[object]]
Make = Callable[[Resident], Any]
Args = Callable[[Resident], dict[str, object]]


@dataclass(frozen=True, slots=True)
class Route:
    """A request of one route: how it is asked by somebody new, and what it is answered where nothing interrupts it."""

    name: str
    template: tuple[str, str]
    status: int
    prepare: Prepare
    cents: int = 1000
    tells: tuple[str, ...] = ()
    """The alerts that belong to it."""


def asking(method: str, path: str, body: object = None, more: Mapping[str, str] | None = None, **how: Any) -> Prepare:
    """A request by the resident, with more headers."""

    async def prepare(house: House, alice: Resident) -> Asked:
        return Asked(method, path, body, {**bearer(alice), **(more or {})}, **how)

    return prepare


async def nothing() -> None:
    """What comes before most handlers."""


background: set[asyncio.Task[Told]] = set()
"""Requests that go on while another is asked."""


@dataclass(slots=True)
class Besieged:
    """A house, and what has been thrown into it."""

    attempt: Attempt
    house: House
    points: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Suspensions that were struck, by handler, coroutine and error."""
    pairs: int = 0
    rows: int = 0
    """First suspensions of pairs that were struck."""
    singles: int = 0
    """How many of them there are: what each handler's relay was struck at by itself."""
    places: set[Place] = field(default_factory=set)
    """Where in the product it was struck."""

    @property
    def distinct(self) -> int:
        """How many suspensions were struck, by whatever error."""
        most: Counter[tuple[str, str]] = Counter()
        for (what, where, _), times in self.points.items():
            most[what, where] = max(most[what, where], times)
        return most.total()

    # --- handlers ---

    async def route(self, route: Route, *, relayed: bool) -> None:
        """Every suspension of the handler, of the relay where there is one, and of what else they start; each error at
        each of them."""
        made = (await self.undisturbed(route)).made - {HANDLER, RELAY}
        places = [(where, error) for where in (HANDLER, *sorted(made)) for error in ERRORS]
        places += [(RELAY, error) for error in HARSHER if relayed]
        for where, error in places:
            await self.everywhere(route.name, where, error, partial(self.once, route))
        await self.undisturbed(route)
        await self.house.answers()
        self.done(route.name, HANDLER)
        self.attempt.must(
            not relayed or all(self.points[route.name, RELAY, error] for error in HARSHER),
            f"{route.name}: no relay was struck",
        )

    async def coroutine(
        self, name: str, what: str, make: Make, before: Before = nothing, plain: Make | None = None
    ) -> None:
        """Every suspension of a verb or a job, each after something that is not interrupted. `plain` raises what `make`
        may keep to itself."""

        async def run(make: Make, interruption: Interruption) -> BaseException | None:
            alice = await self.house.resident()
            await before()
            error = await self.house.run(make(alice), interruption)
            await self.ended()
            return error

        async def once(plan: Plan) -> Interruption:
            interruption = Interruption(plan)
            await run(make, interruption)
            if interruption.struck:
                self.attempt.meet("an error in a verb or a job")
            return interruption

        told, interruption = self.alerts(), Interruption()
        error = await run(plain or make, interruption)
        self.attempt.must(error is None, f"{what} fails where nothing interrupts it: {error!r}")
        self.attempt.must(self.alerts() == told, f"{what} tells of trouble where there is none: {self.alerts()}")
        for where in (name, *sorted(interruption.made - {name, HANDLER, RELAY})):
            for each in ERRORS:
                await self.everywhere(what, where, each, once)
        await self.house.answers()
        self.done(what, name)

    def done(self, what: str, where: str) -> None:
        """One handler more, in which something was struck."""
        struck = sum(self.points[what, where, error] for error in ERRORS)
        self.attempt.must(bool(struck) != (what in NEVER_WAITS), f"{what} was struck {struck} times")
        self.attempt.count("handlers")

    def alerts(self) -> dict[str, float]:
        """How often the operator was told of trouble, by its kind."""
        told = {each.labels["kind"]: each.value for each in self.house.parts.gateway.metrics.alerts.collect().samples}
        return {kind: told.get(kind, 0) for kind in ALERTS}

    # --- pairs ---

    async def pairs_of(self, route: Route, kinds: Iterable[Sequence[str]]) -> None:
        """Every two suspensions of the relay: the second is one of those that the first has left or made. Of firsts
        there must be as many as this relay was struck at by itself."""
        for errors in kinds:
            rows = barren = 0
            single = self.points[route.name, RELAY, errors[0]]
            while barren < (UNSTRUCK if rows >= single else 5 * UNSTRUCK):
                if await self.row(route, errors, rows):
                    rows, barren = rows + 1, 0
                else:
                    barren += 1
            self.rows, self.singles = self.rows + min(rows, single), self.singles + single
        await self.house.answers()

    async def row(self, route: Route, errors: Sequence[str], first: int) -> bool:
        """All pairs with this first suspension; whether there is one of that number."""
        undisturbed = most = 0
        for second in count(first + 1):
            plan: Plan = {(RELAY, first): HARSHER[errors[0]], (RELAY, second): HARSHER[errors[1]]}
            try:
                struck = (await self.once(route, plan)).struck
            except AssertionError as wrong:
                story = f"{route.name}, its relay {' and '.join(errors)} at {first} and {second}: {wrong}"
                raise Refuted(story) from wrong
            most = max(most, struck)
            if struck == 2:
                self.pairs += 1
                self.attempt.count("pairs")
                self.attempt.meet("a second error while the first is dealt with")
            undisturbed = 0 if struck == 2 else undisturbed + 1
            if undisturbed == UNSTRUCK:
                return most > 0
        raise AssertionError("a relay without end")

    # --- one run ---

    async def everywhere(
        self, what: str, where: str, error: str, once: Callable[[Plan], Awaitable[Interruption]]
    ) -> None:
        """Interrupt at each suspension in turn, until runs end undisturbed; and then wherever it was seen to stand and
        was not struck: a run whose connection an earlier one has broken waits in other places."""
        undisturbed, left, hit = 0, set[Place](), set[Place]()

        async def strike(at: At) -> int:
            try:
                interruption = await once({(where, at): HARSHER[error]})
            except (AssertionError, TimeoutError) as wrong:
                raise Refuted(f"{what}, {where} {error} at suspension {at}: {wrong}") from wrong
            self.places |= interruption.places
            left.update(interruption.seen[where])
            hit.update(interruption.hit[where])
            return interruption.struck

        for at in count():
            struck = await strike(at)
            undisturbed = 0 if struck else undisturbed + 1
            self.points[what, where, error] += struck
            if undisturbed == UNSTRUCK:
                break
        for _ in range(UNSTRUCK):
            for place in sorted(left - hit):
                await strike(place)

    async def undisturbed(self, route: Route) -> Interruption:
        """One request that nothing interrupts: it is answered as it should be, and nobody is told of trouble."""
        interruption, before = Interruption(), self.alerts()
        told = await self.answered(route, interruption)
        self.attempt.must(
            told.status == route.status and told.error is None,
            f"{route.name} is answered {told.status} where nothing interrupts it: {told.body[:300]!r} {told.error!r}",
        )
        new = {kind for kind, times in self.alerts().items() if times != before[kind]}
        self.attempt.must(new <= set(route.tells), f"{route.name} tells of trouble where there is none: {new}")
        return interruption

    async def once(self, route: Route, plan: Plan) -> Interruption:
        """One request with this plan of errors."""
        interruption = Interruption(plan)
        told = await self.answered(route, interruption)
        self.places |= interruption.places
        for where, _ in plan:
            if interruption.struck:
                self.attempt.meet(f"an error in {'a relay' if where == RELAY else 'a handler'}")
        if all(where == RELAY or (where == HANDLER and at != 0) for where, at in plan) and told.error is None:
            assert told.status, "it ended without an answer"
        return interruption

    async def answered(self, route: Route, interruption: Interruption) -> Told:
        """Ask it as somebody new; afterwards nothing is under way."""
        alice = await self.house.resident(route.cents)
        asked = await route.prepare(self.house, alice)
        told = await self.house.ask(asked, interruption, quiet=not background)
        await self.ended()
        return told

    async def ended(self) -> None:
        """Nothing is under way, once what goes on in the background is over."""
        while background:
            waiting = background.pop()
            for relay in list(self.house.parts.gateway.live.values()):
                relay.end("the test is over")
            await asyncio.wait_for(waiting, 20)
        await self.house.quiet()


# --- what is run -----------------------------------------------------------------------------------------------


async def verb_of(house: House, verb: str, args: Args, alice: Resident) -> object:
    """A verb of the operator's, for this resident."""
    return await house.operator.call(verb, args(alice))


async def job_of(house: House, job: str, _alice: object) -> None:
    """One turn of a job, whose failures are logged."""
    await app.Jobs(house.parts).once(job)


async def plainly(house: House, job: str, _alice: object) -> None:
    """The same, whose failures are raised."""
    await getattr(app.Jobs(house.parts), job)()
