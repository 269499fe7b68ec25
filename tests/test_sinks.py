"""What each sink says to its receiver, and what it makes of the answers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import pytest

from goosestack import config, ledger, outbox
from goosestack.demo.openmeter import OpenMeter as FakeOpenMeter, Reply
from goosestack.meters import Meter
from goosestack.outbox import SINKS, MeterError
from goosestack.sinks import FIELDS, Sink
from goosestack.sinks.openmeter import SUBJECTS, OpenMeter
from goosestack.sinks.stripe_meter import PAYERS, StripeMeter
from goosestack.sinks.supabase import SOURCES, Supabase
from goosestack.sinks.webhook import Webhook
from tests.metering import HOUR_S, Till, Wire
from tests.receivers import Hook, ProjectTable, StripeMeters

KEY = "sk_test_operators_canary_0001"
SECRET = "whsec_" + "c2VjcmV0" * 4
ISSUER = "https://project.example/auth/v1"
ALICE = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


def test_the_settings_know_what_the_sinks_know() -> None:
    assert tuple(SINKS) == config.SINKS
    assert PAYERS == config.METER_PAYERS
    assert SOURCES == config.SUPABASE_SOURCES
    assert SUBJECTS == ("user_id", "stripe_customer_id", "supabase_id")


# --- OpenMeter ------------------------------------------------------------------------------------------------


class ToOpenMeter:
    def __init__(self, subject: str = "user_id") -> None:
        self.till, self.receiver = Till(), FakeOpenMeter("om_token")
        self.wire = Wire({"openmeter": self.receiver})
        self.begin(subject)

    def begin(self, subject: str = "user_id", source: str = "here") -> None:
        """The process begins, with these settings."""
        sink = OpenMeter(
            self.wire, "http://openmeter", "om_token", source=source, type="llm", subject=subject, issuer=ISSUER
        )
        self.meter = self.till.meter(sink)
        self.till.report(self.meter)


def test_openmeter_gets_cloud_events_whose_amounts_are_texts() -> None:
    world = ToOpenMeter()
    id = world.till.settle(read=1_000, written=234, nanos=123_456_789_012, payer="overage")
    world.till.report(world.meter)
    (event,) = world.receiver.events()
    assert event == {
        "specversion": "1.0",
        "id": id,
        "source": "here",
        "type": "llm",
        "subject": "alice",
        "time": "2026-11-21T12:00:00.000Z",
        "datacontenttype": "application/json",
        "data": event["data"],
    }
    data = event["data"]
    assert set(data) == set(FIELDS) - {"corrects"}
    assert all(isinstance(value, str) for value in data.values())
    told = {name: data[name] for name in ("total_tokens", "cost_usd", "cost_nanos", "payer", "estimated", "model")}
    assert told == {
        "total_tokens": "1234",
        "cost_usd": "123.456789012",
        "cost_nanos": "123456789012",
        "payer": "overage",
        "estimated": "false",
        "model": "gpt",
    }
    _, headers, _ = world.wire.asked[0]
    assert headers["content-type"] == "application/cloudevents-batch+json"


def test_openmeter_knows_users_by_the_name_that_is_chosen() -> None:
    by_customer = ToOpenMeter("stripe_customer_id")
    for user in ("alice", "bob"):
        by_customer.till.settle(user)
    by_customer.till.report(by_customer.meter)
    assert [event["subject"] for event in by_customer.receiver.events()] == ["cus_alice", "cus_bob"]
    by_project = ToOpenMeter("supabase_id")
    link(by_project.till)
    by_project.till.settle()
    by_project.till.report(by_project.meter)
    assert by_project.receiver.events()[0]["subject"] == ALICE


def test_a_user_without_the_chosen_name_is_counted_and_not_reported_then_or_later() -> None:
    world = ToOpenMeter("stripe_customer_id")
    early = world.till.settle("carol", estimated=True)
    others = [world.till.settle("alice"), world.till.settle("bob")]
    world.till.report(world.meter)
    status = world.till.status("openmeter")
    assert (status["skipped"], status["dead_letters"], status["lag"], status["ok"]) == (1, 0, 0, True)
    assert world.till.alerts.told == []
    world.till.books.db.execute("UPDATE users SET stripe_customer_id = 'cus_carol' WHERE id = 'carol'")
    late = world.till.settle("carol", estimated=True)
    for id in (early, late):
        world.till.correct(id, read=1, written=0, nanos=1)
    world.till.report(world.meter)
    assert [event["id"] for event in world.receiver.events()] == [*others, late, f"{late}.c"]
    assert (world.till.status("openmeter")["skipped"], world.till.status("openmeter")["carried"]) == (2, {})


def test_a_name_that_is_taken_away_before_an_event_is_sent_makes_a_dead_letter_of_it() -> None:
    world = ToOpenMeter("stripe_customer_id")
    world.wire.faults["openmeter"] = ["refused"]
    id = world.till.settle()
    world.till.report(world.meter)
    world.till.books.db.execute("UPDATE users SET stripe_customer_id = NULL WHERE id = 'alice'")
    world.till.clock.seconds += 2
    world.till.report(world.meter)
    (letter,) = world.till.dead("openmeter")
    assert (letter["id"], letter["reason"]) == (id, "its user has no stripe_customer_id")


def test_another_source_makes_no_other_event_of_what_may_have_arrived() -> None:
    """OpenMeter tells events apart by it."""
    world = ToOpenMeter()
    world.wire.faults["openmeter"] = ["lost after"]
    first = world.till.settle()
    world.till.report(world.meter)
    second = world.till.settle()
    world.begin(source="elsewhere")
    assert [(event["source"], event["id"]) for event in world.receiver.events()] == [
        ("here", first),
        ("elsewhere", second),
    ]
    assert world.receiver.totals()["duplicates"] == 1


def link(till: Till) -> None:
    """Alice signs in with the project's token, and with somebody else's."""
    for issuer, subject in ((ISSUER, ALICE), ("https://other.example", "00000000-0000-0000-0000-000000000000")):
        till.books.db.execute("INSERT INTO identities VALUES (?, ?, 'alice', ?)", (issuer, subject, till.clock.now()))


def test_an_openmeter_without_a_token_is_sent_none() -> None:
    world = ToOpenMeter()
    sink = OpenMeter(world.wire, "http://openmeter", None, source="here", type="llm", subject="user_id")
    world.till.settle()
    world.till.report(world.till.meter(sink))
    assert "authorization" not in world.wire.asked[-1][1]
    assert world.till.status("openmeter")["error"].startswith("status 401: ")


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        ("application/cloudevents+json", [], "does not fit"),
        ("application/cloudevents-batch+json", {}, "does not fit"),
        ("application/cloudevents-batch+json", [], "no events"),
        ("text/plain", [{}], "is not one of events"),
        ("application/json", {"id": 1}, "id must be a text"),
        ("application/json", {"subject": ""}, "subject must be a text"),
        ("application/json", {"specversion": "0.3"}, "must be 1.0"),
        ("application/json", {"time": "yesterday"}, "RFC 3339"),
        ("application/json", {"data": 1}, "must be an object"),
        ("application/json", {"extra": 1}, "extra is not known"),
    ],
)
def test_the_fake_openmeter_is_strict(kind: str, body: Any, why: str) -> None:
    good = {"id": "1", "source": "s", "specversion": "1.0", "type": "t", "subject": "alice"}
    given = {**good, **body} if isinstance(body, dict) and body else body
    fake = FakeOpenMeter()
    reply = fake.take({"content-type": kind}, json.dumps(given).encode())
    assert reply.status == 400 and why in json.loads(reply.body)["detail"]
    assert fake.take({"content-type": "application/json"}, json.dumps(good).encode()).status == 204
    assert fake.totals()["events"] == 1


# --- Stripe ---------------------------------------------------------------------------------------------------


class ToStripe:
    def __init__(self, **options: Any) -> None:
        self.till = Till()
        self.receiver = StripeMeters(KEY, now=self.till.clock.unix)
        self.wire = Wire({"stripe": self.receiver})
        self.begin(**options)

    def begin(self, *, value: str = "tokens", by_minute: bool = False, payers: tuple[str, ...] = PAYERS,
              event_name: str = "tokens", rows: int | None = None) -> None:  # fmt: skip
        """The process begins, with these settings."""
        sink = StripeMeter(
            self.wire,
            "http://stripe",
            KEY,
            self.till.clock.now,
            event_name=event_name,
            value=value,
            payers=payers,
            by_minute=by_minute,
        )
        sink.rows = rows or sink.rows
        self.meter = self.till.meter(sink)
        self.report()

    def report(self) -> None:
        self.till.report(self.meter)

    def values(self) -> list[int]:
        return [event["value"] for event in self.receiver.events()]

    def carried(self, value: str = "tokens") -> int:
        carried: int = self.till.status("stripe_meter")["carried"].get(value, 0)
        return carried


def test_stripe_gets_a_form_for_each_request() -> None:
    world = ToStripe()
    id = world.till.settle(read=1_000, written=234)
    world.report()
    ((_, headers, body),) = world.wire.asked
    assert headers["authorization"] == f"Bearer {KEY}"
    assert dict(parse_qsl(body.decode())) == {
        "event_name": "tokens",
        "payload[stripe_customer_id]": "cus_alice",
        "payload[value]": "1234",
        "identifier": id,
        "timestamp": "1795262400",
    }


def test_a_correction_downward_is_taken_off_what_comes_next() -> None:
    world = ToStripe()
    id = world.till.settle(read=100, written=0, estimated=True)
    world.report()
    world.till.correct(id, read=30, written=0, nanos=10)
    world.till.settle("bob", read=5, written=0)
    world.report()
    assert world.values() == [100, 5], "nothing below zero can be told, and it is Alice's alone"
    assert world.carried() == -70
    world.till.settle(read=60, written=0)
    world.report()
    assert (world.values(), world.carried()) == ([100, 5], -10)
    world.till.settle(read=60, written=0)
    world.report()
    assert (world.values(), world.carried()) == ([100, 5, 50], 0)


def test_a_correction_upward_is_an_event_of_its_own() -> None:
    world = ToStripe()
    id = world.till.settle(read=100, written=0, estimated=True)
    world.report()
    world.till.correct(id, read=130, written=0, nanos=2_500)
    world.report()
    assert [(event["id"], event["value"]) for event in world.receiver.events()] == [(id, 100), (f"{id}.c", 30)]


def test_cost_is_told_in_microdollars_and_what_is_less_waits() -> None:
    world = ToStripe(value="cost")
    for nanos in (2_999, 1, 400, 600, 999):
        world.till.settle(nanos=nanos)
    world.report()
    assert world.values() == [2, 1, 1]
    assert world.carried("cost") == 999
    assert sum(world.values()) * 1_000 + 999 == 2_999 + 1 + 400 + 600 + 999


def test_what_the_house_bore_is_not_told_to_whoever_invoices() -> None:
    """A user's cap holds for what they are billed elsewhere, too."""
    world = ToStripe(value="cost")
    db, now = world.till.books.db, world.till.clock.now()
    account = ledger.open_account(db, "alice", "usd_cents", now, "overage:2026-11")
    ledger.post(db, account, "adjustment", "all but a cent", 1 - 1_000_000_000, now)
    world.till.settle(nanos=15_000_000, payer="overage")
    world.report()
    assert world.till.rows()[0]["shortfall"] == 5_000_000
    assert (world.values(), world.carried("cost")) == ([10_000], 0)


def test_usage_can_be_gathered_by_user_and_minute() -> None:
    world = ToStripe(by_minute=True)
    for second in range(0, 150, 10):
        world.till.clock.seconds += 10
        world.till.settle("alice" if second % 20 else "bob", read=second, written=1)
    world.report()
    told = [(event["subject"], event["value"]) for event in world.receiver.events()]
    assert sorted(told) == sorted(minutes_of(world)) and len(told) == 4, "a minute that is not over waits"
    world.till.clock.seconds += 60
    world.report()
    assert sum(world.values()) == sum(second + 1 for second in range(0, 150, 10))
    assert len({event["id"] for event in world.receiver.events()}) == len(world.values()) == 6


def minutes_of(world: ToStripe) -> list[tuple[str, int]]:
    """What the rows of the minutes that are over add up to, by user and minute."""
    sums: dict[tuple[str, str], int] = {}
    for row in world.till.rows():
        if row["ended_at"][:16] < world.till.clock.now()[:16]:
            key = (f"cus_{row['user_id']}", row["ended_at"][:16])
            sums[key] = sums.get(key, 0) + row["input_tokens"] + row["output_tokens"]
    return [(customer, total) for (customer, _), total in sums.items()]


def test_a_minute_is_told_the_same_way_again_whatever_settles_meanwhile() -> None:
    world = ToStripe(by_minute=True)
    world.till.settle(read=10, written=0)
    world.till.clock.seconds += 59
    world.till.settle(read=20, written=0)
    world.till.clock.seconds += 5
    world.wire.faults["stripe"] = ["lost after"]
    world.report()
    world.till.settle(read=500, written=0)
    world.till.clock.seconds += 70
    world.begin(by_minute=False)
    assert world.values() == [30, 500]
    (_, _, first), (_, _, again), _ = world.wire.asked
    assert first == again
    assert world.receiver.totals()["duplicates"] == 1


def test_a_minute_that_settles_late_is_one_more_event() -> None:
    """Under the identifier of the first it would be dropped."""
    world = ToStripe(by_minute=True)
    world.till.settle(read=10, written=0)
    world.till.clock.seconds += 60
    world.report()
    world.till.clock.seconds -= 60
    world.till.settle(read=20, written=0)
    world.till.clock.seconds += 60
    world.report()
    first, late = world.receiver.events()
    assert (first["value"], late["value"]) == (10, 20) and first["timestamp"] == late["timestamp"]
    assert world.receiver.totals()["duplicates"] == 0


def test_after_a_restore_a_minute_is_told_in_the_same_parts() -> None:
    """They were cut while a minute was not over; the identifiers must be those that Stripe has."""
    world = ToStripe(by_minute=True)
    world.meter.sink.rows = 10
    for rows in (4, 3, 20):
        world.till.clock.seconds += 60
        for _ in range(rows):
            world.till.settle(read=1, written=0)
        if rows == 4:
            world.till.clock.seconds += 60
            world.report()
    backup = sqlite3.connect(":memory:", isolation_level=None)
    world.till.books.db.backup(backup)
    world.report()
    world.till.clock.seconds += 60
    world.report()
    assert sum(world.values()) == 27
    outbox.restored(backup)
    world.till.books.db.close()
    world.till.books.db = backup
    world.begin(by_minute=True, rows=10)
    assert sum(world.values()) == 27
    assert world.receiver.totals()["duplicates"] == len(world.values()) - 1


def test_a_repeated_identifier_means_that_stripe_has_it() -> None:
    world = ToStripe()
    ids = [world.till.settle() for _ in range(20)]
    world.wire.faults["stripe"] = ["lost after", "fine", "500 after", "page after", "fine"]
    while world.till.status("stripe_meter")["lag"]:
        world.till.turn(world.meter)
        world.till.clock.seconds += 30
    assert sorted(event["id"] for event in world.receiver.events()) == ids
    assert world.till.dead("stripe_meter") == []
    assert world.receiver.totals()["duplicates"] > 0


def test_a_good_answer_that_is_not_stripes_is_none() -> None:
    class Elsewhere(StripeMeters):
        def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
            return Reply(200, b'{"ok": true}', {"content-type": "application/json"})

    world = ToStripe()
    stripe, world.wire = world.wire, Wire({"stripe": Elsewhere(KEY)})
    world.begin()
    id = world.till.settle()
    world.report()
    assert world.till.status("stripe_meter")["error"] == "status 200, but not Stripe's answer"
    world.wire = stripe
    world.begin()
    assert [event["id"] for event in world.receiver.events()] == [id]


def test_a_refusal_that_is_not_stripes_refuses_nothing() -> None:
    class Elsewhere(StripeMeters):
        def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
            return Reply(400, b"plain HTTP was sent to an HTTPS port")

    world = ToStripe()
    stripe, world.wire = world.wire, Wire({"stripe": Elsewhere(KEY)})
    world.begin()
    id = world.till.settle()
    world.report()
    assert world.till.dead("stripe_meter") == []
    assert world.till.status("stripe_meter")["error"] == "status 400: plain HTTP was sent to an HTTPS port"
    world.wire = stripe
    world.begin()
    assert [event["id"] for event in world.receiver.events()] == [id]


def test_a_clock_of_ours_that_is_ahead_of_stripes_makes_no_dead_letters() -> None:
    world = ToStripe()
    world.report()
    world.till.clock.seconds += 400
    world.receiver._now = lambda: world.till.clock.unix() - 400
    ids = [world.till.settle() for _ in range(3)]
    world.report()
    assert "5 minutes ahead" in world.till.status("stripe_meter")["error"]
    assert world.till.dead("stripe_meter") == []
    world.till.clock.seconds -= 400
    world.receiver._now = world.till.clock.unix
    world.begin()
    assert [event["id"] for event in world.receiver.events()] == ids


def test_the_duplicates_code_of_the_newer_interface_is_understood() -> None:
    class Newer(StripeMeters):
        def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
            error = {"code": "duplicate_meter_event", "message": "submitted before"}
            return Reply(400, json.dumps({"error": error}).encode(), {"content-type": "application/json"})

    world = ToStripe()
    world.wire = Wire({"stripe": Newer(KEY)})
    world.begin()
    world.till.settle()
    world.report()
    assert world.till.status("stripe_meter")["lag"] == 0
    assert world.till.dead("stripe_meter") == []


def test_a_user_whom_stripe_does_not_know_is_not_reported_then_or_later() -> None:
    world = ToStripe()
    early = world.till.settle("carol", read=1_000, written=0, estimated=True)
    world.till.settle("carol")
    world.report()
    status = world.till.status("stripe_meter")
    assert (world.values(), status["skipped"], status["lag"], status["ok"]) == ([], 2, 0, True)
    world.till.books.db.execute("UPDATE users SET stripe_customer_id = 'cus_carol' WHERE id = 'carol'")
    world.till.settle("carol", read=7, written=0)
    world.till.correct(early, read=1, written=0, nanos=1)
    world.report()
    assert (world.values(), world.carried()) == ([7], 0), "a correction of what was not reported is not, either"


def test_only_what_a_chosen_payer_paid_is_told() -> None:
    world = ToStripe(payers=("overage",))
    for number, payer in enumerate(("credits", "allowance", "overage", "nobody")):
        world.till.settle(payer=payer, read=10**number, written=0)
    world.report()
    assert world.values() == [100]
    assert world.till.status("stripe_meter")["lag"] == 0


def test_a_callers_own_provider_key_is_never_billed() -> None:
    world = ToStripe()
    world.till.settle(payer="nobody")
    world.report()
    assert world.values() == []


def test_usage_that_is_too_old_for_stripe_becomes_a_dead_letter() -> None:
    world = ToStripe()
    world.wire.faults["stripe"] = ["refused"] * 10_000
    old = world.till.settle()
    for _ in range(36):
        world.till.turn(world.meter)
        world.till.clock.seconds += 24 * HOUR_S
    new = world.till.settle()
    world.wire.faults["stripe"].clear()
    world.report()
    assert [event["id"] for event in world.receiver.events()] == [new]
    (letter,) = world.till.dead("stripe_meter")
    assert (letter["id"], letter["reason"]) == (old, "it is older than the 35 days that Stripe takes")


def test_what_stripe_may_have_is_not_sent_again_after_a_day() -> None:
    world = ToStripe()
    world.till.settle()
    world.wire.faults["stripe"] = ["lost after", *["refused"] * 1_000]
    for _ in range(30):
        world.till.turn(world.meter)
        world.till.clock.seconds += HOUR_S
    world.wire.faults["stripe"].clear()
    world.report()
    assert world.values() == [15], "and not twice, though Stripe has forgotten the identifier"
    assert "nobody knows whether it has arrived" in world.till.dead("stripe_meter")[0]["reason"]


@pytest.mark.parametrize("by_minute", [False, True])
def test_a_row_from_a_clock_that_ran_ahead_is_told_as_of_now_and_holds_up_nothing(by_minute: bool) -> None:
    world = ToStripe(by_minute=by_minute)
    world.till.clock.seconds += 24 * HOUR_S
    world.till.settle()
    world.till.clock.seconds -= 24 * HOUR_S
    world.till.settle("bob")
    at = int(world.till.clock.seconds)
    world.till.clock.seconds += 61 if by_minute else 0
    world.report()
    assert sorted(world.values()) == [15, 15]
    assert {event["timestamp"] for event in world.receiver.events()} <= {at, int(world.till.clock.seconds)}
    assert world.till.status("stripe_meter")["ok"]


def test_a_clock_that_goes_back_before_an_event_is_sent_makes_no_dead_letter_of_it() -> None:
    world = ToStripe()
    world.wire.faults["stripe"] = ["refused"]
    world.till.settle()
    world.report()
    world.till.clock.seconds -= 24 * HOUR_S
    world.report()
    assert world.receiver.events()[0]["timestamp"] == int(world.till.clock.seconds)
    assert world.till.dead("stripe_meter") == []


def test_a_misspelt_meter_holds_up_its_events_until_the_setting_is_right() -> None:
    world = ToStripe()
    ids = [world.till.settle()]
    world.report()
    world.begin(event_name="misspelt")
    ids += [world.till.settle() for _ in range(3)]
    world.report()
    assert "No active meter" in world.till.status("stripe_meter")["error"]
    assert world.till.dead("stripe_meter") == []
    world.begin(event_name="tokens")
    assert [event["id"] for event in world.receiver.events()] == ids
    assert world.till.status("stripe_meter")["ok"]


def test_what_counts_tokens_never_goes_to_the_meter_of_costs() -> None:
    """Both settings are changed while events wait: those go under their own meter's name, or to the dead letters."""
    world = ToStripe()
    world.wire.faults["stripe"] = ["refused"]
    first = world.till.settle(read=100, written=0, nanos=5_000)
    world.report()
    world.begin(value="cost", event_name="misspelt")
    second = world.till.settle(nanos=7_000)
    world.report()
    assert [(event["id"], event["value"]) for event in world.receiver.events()] == [(first, 100)]
    assert world.till.status("stripe_meter")["next"] == second
    world.begin(value="tokens", event_name="tokens")
    assert [letter["id"] for letter in world.till.dead("stripe_meter")] == [second]
    assert world.values() == [100]


def test_a_meter_that_does_not_exist_is_the_operators_to_make() -> None:
    world = ToStripe(event_name="misspelt")
    ids = [world.till.settle() for _ in range(3)]
    world.report()
    assert world.till.dead("stripe_meter") == []
    assert "No active meter" in world.till.status("stripe_meter")["error"]
    world.receiver._event_name = "misspelt"
    world.till.clock.seconds += 2
    world.report()
    assert [event["id"] for event in world.receiver.events()] == ids


def test_a_wrong_key_stops_it_and_is_shown_to_nobody() -> None:
    class Telltale(StripeMeters):
        def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
            return Reply(401, f"no such key: {headers['authorization']}".encode())

    world = ToStripe()
    world.wire = Wire({"stripe": Telltale(KEY)})
    world.begin()
    world.till.settle()
    world.report()
    error = world.till.status("stripe_meter")["error"]
    assert error.startswith("status 401: no such key") and KEY not in error
    assert KEY not in str(world.till.alerts.told)


def test_one_event_that_stripe_refuses_is_refused_alone() -> None:
    world = ToStripe()
    world.receiver.poison.subjects.append("cus_bob")
    ids = [world.till.settle(user) for user in ("alice", "bob", "alice")]
    world.report()
    assert [event["id"] for event in world.receiver.events()] == [ids[0], ids[2]]
    assert [letter["id"] for letter in world.till.dead("stripe_meter")] == [ids[1]]
    world.receiver.poison.subjects.clear()
    outbox.retry(world.till.books.db, "stripe_meter", ids[1])
    world.report()
    assert sum(world.values()) == 45


def test_stripe_is_never_replayed() -> None:
    world = ToStripe()
    world.till.settle()
    world.report()
    for force in (False, True):
        with pytest.raises(MeterError, match="cannot be replayed: it would bill again"):
            outbox.replay(world.till.books.db, "stripe_meter", 0, "2026-01-01", world.till.clock.now(), force=force)


def test_another_value_begins_with_a_carry_of_its_own() -> None:
    world = ToStripe()
    id = world.till.settle(read=100, written=0, estimated=True)
    world.report()
    world.till.correct(id, read=30, written=0, nanos=10)
    world.report()
    world.receiver._event_name = "cost"
    world.begin(value="cost", event_name="cost")
    world.till.settle(nanos=5_000)
    world.report()
    assert (world.values(), world.carried("tokens"), world.carried("cost")) == ([100, 5], -70, 0)


# --- Supabase -------------------------------------------------------------------------------------------------


TYPES = {"request_id": "text", "user_id": "uuid", "tokens": "bigint", "nanos": "bigint", "at": "timestamptz"}
COLUMNS = {
    "request_id": "id",
    "user_id": "supabase_id",
    "tokens": "total_tokens",
    "nanos": "cost_nanos",
    "at": "settled_at",
}


class ToSupabase:
    def __init__(self, key: str = "sb_secret_canary", columns: Mapping[str, str] = COLUMNS, **table: Any) -> None:
        self.till, self.project = Till(), ProjectTable(key, TYPES, **table)
        link(self.till)
        self.wire = Wire({"project": self.project})
        self.begin(key, columns)

    def begin(self, key: str, columns: Mapping[str, str]) -> None:
        sink = Supabase(self.wire, "http://project", key, table="usage", columns=columns, issuer=ISSUER)
        self.meter = self.till.meter(sink)
        self.till.report(self.meter)


def test_a_row_of_ours_is_a_row_of_theirs_once() -> None:
    world = ToSupabase()
    id = world.till.settle(read=10, written=5, nanos=2_000, estimated=True)
    bobs = world.till.settle("bob")
    world.wire.faults["project"] = ["lost after"]
    world.till.report(world.meter)
    world.till.correct(id, read=8, written=5, nanos=1_500)
    world.till.clock.seconds += 2
    world.till.report(world.meter)
    at = "2026-11-21T12:00:00.000Z"
    assert world.project.events() == [
        {"request_id": id, "user_id": ALICE, "tokens": 15, "nanos": 2_000, "at": at},
        {"request_id": bobs, "user_id": None, "tokens": 15, "nanos": 2_000, "at": at},
        {"request_id": f"{id}.c", "user_id": ALICE, "tokens": -2, "nanos": -500, "at": at},
    ]
    assert world.project.headers["prefer"] == "resolution=ignore-duplicates,return=minimal"


@pytest.mark.parametrize(("key", "bearer"), [("sb_secret_canary", False), ("eyJhbGciOi.e30.x", True)])
def test_a_new_key_is_sent_as_an_api_key_alone_and_an_old_one_as_a_token_too(key: str, bearer: bool) -> None:
    world = ToSupabase(key)
    world.till.settle()
    world.till.report(world.meter)
    headers = world.project.headers
    assert headers["apikey"] == key
    assert headers.get("authorization") == (f"Bearer {key}" if bearer else None)
    assert len(world.project.events()) == 1


def test_a_row_that_the_table_refuses_is_refused_alone() -> None:
    world = ToSupabase(required=["user_id"])
    ids = [world.till.settle(user) for user in ("alice", "alice", "bob", "alice", "alice")]
    world.till.report(world.meter)
    assert [row["request_id"] for row in world.project.events()] == [*ids[:2], *ids[3:]]
    (letter,) = world.till.dead("supabase")
    assert letter["id"] == ids[2] and '"code": "23502"' in letter["reason"]


@pytest.mark.parametrize(
    ("columns", "table"),
    [
        ({**COLUMNS, "tokns": "total_tokens"}, {}),
        (COLUMNS, {"unique": []}),
    ],
    ids=["a column that is not there", "no constraint to tell rows apart by"],
)
def test_a_table_that_does_not_fit_is_the_operators_to_mend(
    columns: Mapping[str, str], table: Mapping[str, Any]
) -> None:
    world = ToSupabase(columns=columns, **table)
    ids = [world.till.settle() for _ in range(5)]
    world.till.report(world.meter)
    assert world.till.dead("supabase") == []
    assert world.till.status("supabase")["failures"] == 1
    world.project.table.unique = [["request_id"]]
    world.begin("sb_secret_canary", COLUMNS)
    assert [row["request_id"] for row in world.project.events()] == ids


def test_a_key_without_the_right_to_insert_stops_it() -> None:
    world = ToSupabase()
    world.project.key = "another"
    world.till.settle()
    world.till.report(world.meter)
    assert world.till.dead("supabase") == []
    assert "42501" in world.till.status("supabase")["error"]


# --- a webhook ------------------------------------------------------------------------------------------------


def to_hook() -> tuple[Till, Hook, Wire, Meter]:
    till = Till()
    hook = Hook(SECRET, till.clock.unix)
    wire = Wire({"hook": hook})
    sink: Sink = Webhook(wire, "http://hook/usage", SECRET, till.clock.now)
    meter = till.meter(sink)
    till.report(meter)
    return till, hook, wire, meter


def test_a_webhook_is_signed_as_standard_webhooks_has_it() -> None:
    till, hook, wire, meter = to_hook()
    id = till.settle(read=3, written=4)
    till.report(meter)
    ((_, headers, body),) = wire.asked
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == (id, "1795262400")
    assert headers["webhook-signature"].startswith("v1,")
    message = json.loads(body)
    assert (message["type"], message["timestamp"]) == ("usage.settled", "2026-11-21T12:00:00.000Z")
    assert list(message["data"]) == list(FIELDS)
    assert hook.totals()["totals"] == {"alice": 7}


def test_a_later_attempt_has_its_own_time_and_the_same_id_and_content() -> None:
    till, hook, wire, meter = to_hook()
    till.settle()
    wire.faults["hook"] = ["lost after", "503"]
    for _ in range(3):
        till.turn(meter)
        till.clock.seconds += 400
    first, _, last = wire.asked
    assert first[1]["webhook-id"] == last[1]["webhook-id"] and first[2] == last[2]
    assert int(last[1]["webhook-timestamp"]) - int(first[1]["webhook-timestamp"]) == 800
    assert hook.totals() == {"events": 1, "duplicates": 1, "requests": 2, "totals": {"alice": 15}}


@pytest.mark.parametrize(("status", "dead"), [("422", 1), ("400", 1), ("410", 0), ("401", 0), ("404", 0), ("429", 0)])
def test_a_webhook_refuses_one_event_for_good_or_all_for_now(status: str, dead: int) -> None:
    till, _, wire, meter = to_hook()
    till.settle()
    wire.faults["hook"] = [status]
    till.turn(meter)
    assert len(till.dead("webhook")) == dead
    assert till.status("webhook")["failures"] == 1 - dead
