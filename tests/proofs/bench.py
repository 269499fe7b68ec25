"""A daemon whose database fails when it is told to, a customer of it, and what was answered so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from goosestack.store.sqlite import connect_read_only
from tests.proofs.failing import READING, Switch
from tests.tills import KEY, SECRET
from tests.world import Customer, Daemon, Program, World, until

FAULTS = ("full", "failing", "failing, rolled back", READING)
WRITING = FAULTS[:3]
MOST_CALLS = 200
"""Of one thing that is done: more would be without end."""

EVERY = range(1, MOST_CALLS + 1)
LISTENING = '"event":"listening"'


class FailingDaemon(Daemon):
    """`goosestack serve` whose database fails when it is told to."""

    def begin(self) -> None:
        """Start it, with its switch as it is."""
        self.switch = Switch(self.folder / "switch")
        args = ["tests.proofs.failing", str(self.folder / "switch")]
        self.program = Program(args, self.env, self.folder / "daemon.out", self.folder)

    def start(self) -> None:
        """Start it on a disk that does not fail."""
        Switch(self.folder / "switch").arm(0, "full")
        super().start()

    def serves(self) -> bool:
        """Whether what was begun comes to serve, rather than to its end."""
        until(lambda: LISTENING in self.program.text() or self.program.process.poll() is not None, "a start, or an end")
        return self.program.process.poll() is None


SETTINGS = {
    "STRIPE_SECRET_KEY": KEY,
    "STRIPE_WEBHOOK_SECRET": SECRET,
    "STRIPE_API_BASE": "http://127.0.0.1:9",
    "PUBLIC_URL": "https://llm.example.com",
    "FUNDING": "credits,allowance",
    "FORWARDED_ALLOW_IPS": "127.0.0.1",
}


@dataclass(slots=True)
class Bench:
    """The daemon, a customer, and what was answered so far."""

    world: World
    alice: Customer
    count: int = 0
    answered: dict[str, list[str]] = field(default_factory=dict)
    """By a query of one column, the values that must be in its answer."""

    @property
    def switch(self) -> Switch:
        daemon = self.world.daemon
        assert isinstance(daemon, FailingDaemon)
        return daemon.switch

    def fresh(self) -> str:
        """A name that nothing has had."""
        self.count += 1
        return f"n{self.count}"

    def note(self, sql: str, value: str) -> None:
        """This was acknowledged: it must be there whenever anybody looks."""
        self.answered.setdefault(sql, []).append(value)

    def missing(self) -> list[str]:
        """What was acknowledged and is not there."""
        wrong = []
        for sql, values in self.answered.items():
            found = {row[0] for row in self._rows(sql)}
            wrong += [f"{value} was answered, and is not in: {sql}" for value in values if value not in found]
        return wrong

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        db = connect_read_only(self.world.daemon.db)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()
