"""Over any history of settlements, corrections, failures and deaths: what a receiver has is what was settled.

Hypothesis tells the histories. Each sink reports to a strict receiver of its own, which forgets ids as the real one
does. In the end every receiver is well again, and then each has every event once, but for dead letters: those that
were refused not at all, and those whose fate nobody knows at most once. `GOOSESTACK_PROOF=long` runs more of them.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goosestack import outbox
from goosestack.clock import later
from goosestack.demo.openmeter import OpenMeter as FakeOpenMeter
from goosestack.meters import Meter
from goosestack.outbox import MeterError
from goosestack.sinks import Sink
from goosestack.sinks.openmeter import OpenMeter
from goosestack.sinks.stripe_meter import PAYERS, StripeMeter
from goosestack.sinks.supabase import Supabase
from goosestack.sinks.webhook import Webhook
from tests.metering import HOUR_S, USERS, Crash, Till, Wire
from tests.receivers import Hook, ProjectTable, StripeMeters

LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
MACHINE = settings(
    max_examples=2_000 if LONG else 60, stateful_step_count=40, deadline=None, database=None, print_blob=True
)
SECRET = "whsec_" + "c2VjcmV0" * 4
NAMES = ("stripe_meter", "openmeter", "supabase", "webhook")
COLUMNS = ("id", "user_id", "total_tokens", "cost_nanos")
FAULTS = (
    "refused",
    "lost",
    "lost after",
    "timeout after",
    "429",
    "503",
    "503 after",
    "401",
    "page after",
    "crash",
    "crash after",
)
SINK = st.sampled_from(NAMES)
USER = st.sampled_from(sorted(USERS))


@dataclass
class Estimate:
    user: str
    payer: str


class MeteringMachine(RuleBasedStateMachine):
    """Four sinks on one till."""

    def __init__(self) -> None:
        super().__init__()
        self.till = Till()
        clock = self.till.clock
        self.receivers: dict[str, StripeMeters | FakeOpenMeter | ProjectTable | Hook] = {
            "stripe_meter": StripeMeters("key", now=clock.unix),
            "openmeter": FakeOpenMeter(None, clock.unix, remembers_s=24 * HOUR_S),
            "supabase": ProjectTable("key", dict(zip(COLUMNS, ("text", "text", "bigint", "bigint"), strict=True))),
            "webhook": Hook(SECRET, clock.unix),
        }
        self.wire = Wire({name.replace("_", "-"): receiver for name, receiver in self.receivers.items()})
        self.meters: dict[str, Meter] = {}
        self.first: dict[str, int] = {}
        self.replayed: set[str] = set()
        self.estimates: dict[str, Estimate] = {}
        self.by_minute, self.value, self.event_name = False, "tokens", "tokens"

    # --- the process ---

    @initialize(by_minute=st.booleans(), value=st.sampled_from(["tokens", "cost"]))
    def begin(self, by_minute: bool, value: str) -> None:
        self.by_minute, self.value = by_minute, value

    def _sink(self, name: str) -> Sink:
        now = self.till.clock.now
        if name == "stripe_meter":
            return StripeMeter(self.wire, "http://stripe-meter", "key", now, event_name=self.event_name,
                               value=self.value, payers=PAYERS, by_minute=self.by_minute)  # fmt: skip
        if name == "supabase":
            return Supabase(
                self.wire, "http://supabase", "key", table="usage", columns={each: each for each in COLUMNS}
            )
        if name == "openmeter":
            return OpenMeter(self.wire, "http://openmeter", None, source="here", type="llm", subject="user_id")
        return Webhook(self.wire, "http://webhook/usage", SECRET, now)

    @rule(name=SINK)
    def turn(self, name: str) -> None:
        """A turn of a sink; where the process dies of it, another begins."""
        self.till.clock.seconds += 1
        meter = self.meters.setdefault(name, self.till.meter(self._sink(name)))
        try:
            self.till.turn(meter)
        except Crash:
            self._restart()
        if (
            name not in self.first
            and self.till.books.db.execute("SELECT 1 FROM meter_cursors WHERE sink = ?", (name,)).fetchone()
        ):
            self.first[name] = len(self.till.rows())

    def _restart(self) -> None:
        self.meters.clear()
        self.wire.dead, self.till.books.dies_at = False, None

    @rule()
    def restart(self) -> None:
        self._restart()

    @rule(writes=st.integers(0, 5), durable=st.booleans())
    def die_while_writing(self, writes: int, durable: bool) -> None:
        self.till.books.dies_at = (writes, durable)

    @rule(seconds=st.sampled_from([1.0, 61.0, 400.0, HOUR_S, 5 * HOUR_S, 25 * HOUR_S]))
    def wait(self, seconds: float) -> None:
        self.till.clock.seconds += seconds

    @rule(seconds=st.sampled_from([1.0, 61.0, 200.0, HOUR_S, 30 * HOUR_S]))
    def turn_the_clock_back(self, seconds: float) -> None:
        self.till.clock.seconds -= seconds

    @rule(event_name=st.sampled_from(["tokens", "misspelt"]), by_minute=st.booleans())
    def change_settings(self, event_name: str, by_minute: bool) -> None:
        """And restart, as a change of a setting needs."""
        self.event_name, self.by_minute = event_name, by_minute
        self._restart()

    # --- what is settled ---

    @rule(
        user=USER,
        read=st.integers(0, 50),
        written=st.integers(0, 50),
        nanos=st.integers(0, 5_000),
        payer=st.sampled_from(["credits", "credits", "allowance", "overage", "nobody"]),
        estimated=st.booleans(),
        times=st.sampled_from([1, 1, 1, 3, 120]),
    )
    def settle(self, user: str, read: int, written: int, nanos: int, payer: str, estimated: bool, times: int) -> None:
        for _ in range(times):
            id = self.till.settle(user, read, written, nanos, payer=payer, estimated=estimated)
        if estimated:
            self.estimates[id] = Estimate(user, payer)

    @rule()
    def release(self) -> None:
        self.till.release()

    @precondition(lambda self: self.estimates)
    @rule(data=st.data(), read=st.integers(0, 90), written=st.integers(0, 90), nanos=st.integers(0, 9_000))
    def correct(self, data: st.DataObject, read: int, written: int, nanos: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.estimates)))
        self.till.correct(id, read, written, nanos, self.estimates.pop(id).payer)

    # --- what goes wrong, and what the operator does ---

    @rule(name=SINK, faults=st.lists(st.sampled_from(["fine", *FAULTS]), min_size=1, max_size=4))
    def fail(self, name: str, faults: list[str]) -> None:
        self.wire.faults[name.replace("_", "-")] += faults

    @rule(name=SINK, user=USER)
    def poison(self, name: str, user: str) -> None:
        subject = f"cus_{user}" if name == "stripe_meter" else user
        self.receivers[name].poison.subjects.append(subject)

    @rule(name=SINK)
    def mend(self, name: str) -> None:
        self.receivers[name].poison.subjects.clear()

    @rule(name=SINK)
    def retry_what_was_refused(self, name: str) -> None:
        if name in self.first:
            for letter in self.dead(name):
                if "nobody knows" not in letter["reason"]:
                    outbox.retry(self.till.books.db, name, letter["id"])

    @rule(name=SINK, ago_s=st.sampled_from([10.0, HOUR_S, 20 * HOUR_S, 30 * HOUR_S]))
    def replay(self, name: str, ago_s: float) -> None:
        db, now = self.till.books.db, self.till.clock.now()
        after, oldest = outbox.reach(db, later(now, -ago_s))
        try:
            outbox.replay(db, name, after, oldest, now, force=False)
            self.first[name] = min(self.first[name], after)
            self.replayed.add(name)
        except MeterError:
            assert name not in self.first or name == "stripe_meter" or oldest < later(now, -23 * HOUR_S)

    # --- what must be so ---

    def dead(self, name: str) -> list[dict[str, Any]]:
        return outbox.dead_letters(self.till.books.db, name, 100_000)

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        for name in NAMES:
            seen = Counter(event["id"] for event in self.receivers[name].events())
            assert not seen or max(seen.values()) == 1, (name, seen.most_common(1))

    def teardown(self) -> None:
        for faults in self.wire.faults.values():
            faults.clear()
        self.event_name = "tokens"
        self._restart()
        for name in NAMES:
            self._settle_down(name)
        for name in ("openmeter", "supabase", "webhook"):
            self._check_rows(name)
        self._check_stripe()
        self.till.close()

    def _settle_down(self, name: str) -> None:
        self.turn(name)
        for _ in range(200):
            status = self.till.status(name)
            if status["lag"] == status["pending"] == 0:
                return
            self.turn(name)
            self.till.clock.seconds += 60
        raise AssertionError(f"{name} does not end: {self.till.status(name)}")

    def _due(self, name: str) -> list[Any]:
        """The rows that a sink is concerned with."""
        first, seqs = self.first[name], {row["id"]: row["settled_seq"] for row in self.till.rows()}
        return [
            row
            for row in self.till.rows()
            if row["settled_seq"] > first and seqs.get(row["id"].removesuffix(".c"), 0) > first
        ]

    def _check_rows(self, name: str) -> None:
        got = {event["id"]: event.get("data", event) for event in self.receivers[name].events()}
        dead = {letter["id"]: letter["reason"] for letter in self.dead(name)}
        due = {row["id"]: row for row in self._due(name)}
        for id, reason in dead.items():
            replayed = name in self.replayed  # then it may have arrived first, and been refused the second time
            assert id not in got or replayed or "nobody knows" in reason, (name, id)
        assert set(due) - set(dead) <= set(got) <= set(due)
        for id, told in got.items():
            assert int(told["total_tokens"]) == due[id]["input_tokens"] + due[id]["output_tokens"]
            assert int(told["cost_nanos"]) == due[id]["cost_nanos"]

    def _check_stripe(self) -> None:
        """By user: what arrived, and what is dead, and what is carried on, is what was settled."""
        grain, column = (1, "tokens") if self.value == "tokens" else (1_000, "cost_nanos")
        dead = self.dead("stripe_meter")
        ids = {letter["id"] for letter in dead}
        carried = dict(self.till.books.db.execute("SELECT user_id, amount FROM meter_carries").fetchall())
        for user in ("alice", "bob"):
            units = sum(letter["facts"]["value"] for letter in dead if letter["user_id"] == user)
            units += sum(
                event["value"]
                for event in self.receivers["stripe_meter"].events()
                if event["subject"] == f"cus_{user}" and event["id"] not in ids
            )
            settled = sum(
                row["input_tokens"] + row["output_tokens"] if column == "tokens" else row["cost_nanos"]
                for row in self._due("stripe_meter")
                if row["user_id"] == user and row["account_id"] is not None
            )
            assert units * grain + carried.get(user, 0) == settled
        assert not any(event["subject"] == "cus_carol" for event in self.receivers["stripe_meter"].events())


TestMeteringMachine = MeteringMachine.TestCase
TestMeteringMachine.settings = MACHINE
