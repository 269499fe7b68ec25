"""The engine of metering: cursors, batches, failures, dead letters, replays. One sink in it is as good as another; what
is particular to each stands in `test_sinks.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from goosestack import meters, outbox
from goosestack.demo.openmeter import OpenMeter as FakeOpenMeter, Reply
from goosestack.meters import Meter
from goosestack.outbox import MeterError
from goosestack.sinks.openmeter import OpenMeter
from goosestack.sinks.webhook import Webhook
from tests.metering import HOUR_S, START, Crash, Till, Wire
from tests.receivers import Hook

SECRET = "whsec_" + "c2VjcmV0" * 4


class House:
    """A till whose usage goes to an OpenMeter and to a webhook."""

    def __init__(self) -> None:
        self.till = Till()
        clock = self.till.clock
        self.openmeter = FakeOpenMeter("token", clock.unix, remembers_s=24 * HOUR_S)
        self.hook = Hook(SECRET, clock.unix)
        self.wire = Wire({"openmeter": self.openmeter, "hook": self.hook})
        self.meter = self.start()

    def start(self) -> Meter:
        """The process begins."""
        self.wire.dead = False
        sink = OpenMeter(
            self.wire, "http://openmeter", "token", source="goosestack", type="llm.usage", subject="user_id"
        )
        self.meter = self.till.meter(sink)
        return self.meter

    def restore(self, backup: sqlite3.Connection) -> None:
        """These are the books from now on, and the process begins."""
        outbox.restored(backup)
        self.till.books.db.close()
        self.till.books.db = backup
        self.start()

    def begin(self) -> House:
        """It looks for something to report, for the first time."""
        assert self.till.turn(self.meter) is False
        return self

    def webhook(self) -> Meter:
        """Another sink's meter."""
        return self.till.meter(Webhook(self.wire, "http://hook/usage", SECRET, self.till.clock.now))

    def arrived(self) -> list[str]:
        """The ids that the OpenMeter has taken, in order."""
        return [event["id"] for event in self.openmeter.events()]

    def tokens(self) -> str:
        """Alice's total there."""
        total: str = self.openmeter.totals()["totals"]["alice"]["total_tokens"]
        return total

    def later(self, seconds: float) -> None:
        self.till.clock.seconds += seconds


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house.begin()
    house.till.close()


def warm(house: House) -> str:
    """The receiver has answered once, and is sent whole batches from then on; the id that it has."""
    id = house.till.settle()
    house.till.report(house.meter)
    return id


# --- what is reported -----------------------------------------------------------------------------------------


def test_what_settles_is_reported_once_and_in_order(house: House) -> None:
    ids = [house.till.settle() for _ in range(450)]
    house.till.report(house.meter)
    house.till.report(house.meter)
    assert house.arrived() == ids
    assert house.openmeter.totals()["requests"] == 6, "one event first, then 100 in each at most, in batches of 200"
    status = house.till.status("openmeter")
    assert (status["lag"], status["lag_s"], status["pending"], status["ok"]) == (0, 0.0, 0, True)


def test_what_is_released_or_still_held_is_not_reported(house: House) -> None:
    house.till.release()
    house.till.hold("req_held", "alice", "credits", 5)
    settled = house.till.settle()
    house.till.report(house.meter)
    assert house.arrived() == [settled]


def test_a_correction_is_one_more_event_with_the_difference(house: House) -> None:
    id = house.till.settle(read=100, written=50, estimated=True)
    house.till.report(house.meter)
    house.till.correct(id, read=80, written=10, nanos=500)
    house.till.report(house.meter)
    assert house.arrived() == [id, f"{id}.c"]
    correction = house.openmeter.events()[1]["data"]
    assert (correction["corrects"], correction["total_tokens"], correction["cost_nanos"]) == (id, "-60", "-1500")
    assert house.tokens() == "90"


def test_what_was_used_before_a_sink_was_turned_on_is_not_its_concern() -> None:
    house = House()
    before = house.till.settle(estimated=True)
    house.begin()
    house.till.correct(before, read=1, written=1, nanos=1)
    after = house.till.settle()
    house.till.report(house.meter)
    assert house.arrived() == [after], "a correction of what was never reported corrects nothing"
    house.till.close()


def test_a_sink_that_was_off_for_a_while_catches_up(house: House) -> None:
    first = house.till.settle()
    house.till.report(house.meter)
    while_off = [house.till.settle() for _ in range(3)]
    house.later(90 * 24 * HOUR_S)
    house.till.report(house.start())
    assert house.arrived() == [first, *while_off]


# --- a receiver that fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "refused",
        "lost",
        "lost after",
        "timeout after",
        "429",
        "500",
        "500 after",
        "503 after",
        "401",
        "404",
        "302",
        "page after",
    ],
)
def test_a_failure_delays_and_changes_nothing(house: House, fault: str) -> None:
    ids = [house.till.settle() for _ in range(150)]
    house.wire.faults["openmeter"] = [fault]
    assert house.till.turn(house.meter) is False
    failed = house.till.status("openmeter")
    assert (failed["lag"], failed["failures"]) == (150, 1)
    assert failed["error"] and failed["retry_at"] > house.till.clock.now()
    assert house.till.turn(house.meter) is False, "it waits"
    asked = len(house.wire.asked)
    house.later(2)
    house.till.report(house.meter)
    assert sorted(house.arrived()) == ids
    assert len(house.wire.asked) > asked
    assert (house.till.status("openmeter")["failures"], house.till.status("openmeter")["error"]) == (0, None)
    assert house.till.dead("openmeter") == []
    assert house.till.alerts.kinds() == ["meter"]


def wait_s(house: House) -> float:
    """How long it will be left alone now."""
    retry_at = house.till.status("openmeter")["retry_at"]
    return datetime.fromisoformat(retry_at).timestamp() - house.till.clock.seconds


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(200, b'{"ok": true}', {"content-type": "application/json"}), "status 200, but not its answer: {"),
        (Reply(202, b"queued"), "status 202, but not its answer: queued"),
        (Reply(400, b"<h1>400", {"content-type": "text/html"}), "status 400, but a web page"),
        (Reply(409, b"<p>no", {"content-type": "text/html; charset=utf-8"}), "status 409, but a web page"),
    ],
    ids=["another service's", "another service's words", "a proxy's", "a page's"],
)
def test_a_wrong_address_takes_nothing_and_refuses_nothing(house: House, reply: Reply, error: str) -> None:
    """Whatever it answers: only an OpenMeter can say that it has usage, or that an event is wrong."""

    class Elsewhere(FakeOpenMeter):
        def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
            return reply

    ids = [house.till.settle() for _ in range(3)]
    right, house.wire._receivers = house.wire._receivers, {"openmeter": Elsewhere()}
    house.till.report(house.meter)
    status = house.till.status("openmeter")
    assert status["error"].startswith(error) and (status["lag"], status["dead_letters"]) == (3, 0)
    house.wire._receivers = right
    house.later(2)
    house.till.report(house.meter)
    assert house.arrived() == ids


def test_a_proxy_that_finds_a_batch_too_large_is_sent_less(house: House) -> None:
    class Small(FakeOpenMeter):
        def take(self, headers: Mapping[str, str], body: bytes) -> Reply:
            if len(body) > 20_000:
                return Reply(413, b"<h1>413", {"content-type": "text/html"})
            return super().take(headers, body)

    warm(house)
    ids = [house.till.settle() for _ in range(100)]
    small = Small()
    house.wire._receivers = {"openmeter": small}
    house.till.report(house.meter)
    assert [event["id"] for event in small.events()] == ids
    assert house.till.status("openmeter")["ok"]


def test_waits_double_up_to_a_bound_and_are_jittered(house: House) -> None:
    house.till.settle()
    house.wire.faults["openmeter"] = ["503"] * 12
    waits = []
    for _ in range(12):
        assert house.till.turn(house.meter) is False
        waits.append(wait_s(house))
        house.later(waits[-1] + 0.01)
    for number, wait in enumerate(waits):
        most = min(300, 2**number)
        assert most / 2 <= wait <= most
    assert len({round(wait, 2) for wait in waits[-4:]}) == 4, "at the bound they still differ"


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7.0),
        (format_datetime(datetime.fromtimestamp(START + 90, UTC), usegmt=True), 90.0),
        ("86400", 3600.0),
        ("tomorrow", 1.0),
        ("Wed, 21 Oct 2026 07:28:00 +9999999699999", 1.0),
        ("-5", 1.0),
    ],
)
def test_a_receiver_may_say_how_long_to_wait(house: House, asked: str, seconds: float) -> None:
    house.till.settle()
    house.wire.headers = {"retry-after": asked}
    house.wire.faults["openmeter"] = ["429"]
    house.till.turn(house.meter)
    assert seconds / 2 <= wait_s(house) <= seconds
    assert wait_s(house) == seconds or seconds == 1.0


def test_a_restart_tries_at_once(house: House) -> None:
    id = house.till.settle()
    house.wire.headers = {"retry-after": "3000"}
    house.wire.faults["openmeter"] = ["503"]
    house.till.turn(house.meter)
    house.till.report(house.start())
    assert house.arrived() == [id]


def test_a_clock_that_is_turned_back_does_not_stop_it(house: House) -> None:
    id = house.till.settle()
    house.wire.faults["openmeter"] = ["503"]
    house.till.turn(house.meter)
    house.later(-30 * 24 * HOUR_S)
    house.till.report(house.meter)
    assert house.arrived() == [id]


def test_a_row_whose_time_is_yet_to_come_does_not_look_as_if_it_waited_for_nothing(house: House) -> None:
    house.later(24 * HOUR_S)
    house.till.settle()
    house.later(-24 * HOUR_S)
    house.wire.faults["openmeter"] = ["503"]
    house.till.turn(house.meter)
    status = house.till.status("openmeter")
    assert (status["lag"], status["lag_s"], status["ok"]) == (1, 0.0, False)
    house.later(2)
    house.till.report(house.meter)
    assert house.till.status("openmeter")["ok"]


def test_a_receiver_that_is_down_for_days_loses_nothing(house: House) -> None:
    ids = []
    house.wire.faults["openmeter"] = ["refused"] * 10_000
    for _ in range(60):
        ids += [house.till.settle() for _ in range(10)]
        house.till.turn(house.meter)
        house.later(2 * HOUR_S)
    status = house.till.status("openmeter")
    assert (status["lag"], status["ok"]) == (600, False)
    house.wire.faults["openmeter"].clear()
    house.till.report(house.meter)
    assert house.arrived() == ids
    assert house.till.dead("openmeter") == []


@pytest.mark.parametrize("fault", ["503", "lost", "timeout"])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_receiver_that_fails_for_days_without_saying_what_it_took_leaves_one_event_a_day_in_doubt(
    house: House, fault: str, restarts: bool
) -> None:
    ids = [house.till.settle() for _ in range(450)]
    house.wire.faults["openmeter"] = [fault] * 10_000
    for _ in range(40):
        house.till.turn(house.meter)
        house.later(2 * HOUR_S)
        if restarts:
            house.start()
    house.wire.faults["openmeter"].clear()
    house.till.report(house.meter)
    dead = [letter["id"] for letter in house.till.dead("openmeter")]
    assert dead == ids[: len(dead)] and 1 <= len(dead) <= 4
    assert house.arrived() == ids[len(dead) :]


def test_a_death_in_the_first_request_leaves_no_more_in_doubt_than_it_had(house: House) -> None:
    ids = [house.till.settle() for _ in range(250)]
    house.wire.faults["openmeter"] = ["crash", *["refused"] * 10_000]
    with pytest.raises(Crash):
        house.till.turn(house.meter)
    house.later(2)
    house.start()
    for _ in range(20):
        house.till.turn(house.meter)
        house.later(2 * HOUR_S)
    house.wire.faults["openmeter"].clear()
    house.till.report(house.meter)
    assert house.arrived() == ids[1:]
    assert [letter["id"] for letter in house.till.dead("openmeter")] == ids[:1]


def test_nothing_is_sent_while_the_disk_is_full(house: House) -> None:
    id = house.till.settle()
    house.till.books.full = True
    house.till.report(house.meter)
    assert house.arrived() == []
    house.till.books.full = False
    house.till.report(house.meter)
    assert house.arrived() == [id]


def test_a_mistake_of_ours_is_told_and_loses_nothing(house: House) -> None:
    id = house.till.settle()
    receiver = house.wire._receivers
    house.wire._receivers = {}
    house.till.turn(house.meter)
    house.wire._receivers = receiver
    assert house.till.alerts.told[0][1]["what"] == "a mistake in GooseStack: KeyError"
    house.later(2)
    house.till.report(house.meter)
    assert house.arrived() == [id]


def test_a_receiver_that_fails_is_not_asked_for_the_rest_of_a_batch(house: House) -> None:
    hook = house.webhook()
    house.till.report(hook)
    ids = [house.till.settle() for _ in range(200)]
    house.wire.faults["hook"] = ["503"] * 1000
    house.till.turn(hook)
    assert len(house.wire.asked) == 1, "of a receiver whose state is unknown"
    house.wire.faults["hook"] = ["fine", *["503"] * 1000]
    for _ in range(2):
        house.later(2)
        house.till.turn(hook)
    assert len(house.wire.asked) <= 2 + meters.LANES, "of one that fails in the middle"
    house.wire.faults["hook"].clear()
    house.later(30 * 24 * HOUR_S)
    house.till.report(hook)
    assert sorted(event["id"] for event in house.hook.events()) == ids


# --- sinks have nothing to do with each other -----------------------------------------------------------------


def test_one_sink_that_fails_holds_up_no_other(house: House) -> None:
    hook = house.webhook()
    house.till.report(hook)
    house.wire.faults["openmeter"] = ["503"] * 1000
    ids = [house.till.settle() for _ in range(30)]
    house.till.turn(house.meter)
    house.till.report(hook)
    assert [event["id"] for event in house.hook.events()] == ids
    assert (house.till.status("webhook")["lag"], house.till.status("openmeter")["lag"]) == (0, 30)
    house.wire.faults["openmeter"].clear()
    house.later(2)
    house.till.report(house.meter)
    assert house.arrived() == ids


# --- the process dies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["crash", "crash after"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_death_while_sending_loses_nothing_and_doubles_nothing(house: House, fault: str, before: int) -> None:
    ids = [warm(house), *(house.till.settle() for _ in range(150))]
    house.wire.faults["openmeter"] = [*["fine"] * before, fault]
    with pytest.raises(Crash):
        house.till.turn(house.meter)
    ids += [house.till.settle() for _ in range(150)]
    house.later(HOUR_S)
    house.till.report(house.start())
    assert sorted(house.arrived()) == ids
    assert house.till.dead("openmeter") == []


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("write", range(4))
def test_a_death_while_writing_loses_nothing_and_doubles_nothing(house: House, write: int, durable: bool) -> None:
    house.wire.faults["openmeter"] = ["503"]
    ids = [house.till.settle() for _ in range(250)]
    house.till.books.dies_at = (write, durable)
    for _ in range(5):
        try:
            house.till.turn(house.meter)
        except Crash:
            break
        house.later(2)
    else:
        raise AssertionError("it was to die")
    house.till.report(house.start())
    house.later(HOUR_S)
    house.till.report(house.meter)
    assert sorted(house.arrived()) == ids
    assert house.till.dead("openmeter") == []


def test_what_is_being_reported_no_longer_changes(house: House) -> None:
    id = house.till.settle()
    house.wire.faults["openmeter"] = ["lost"]
    house.till.turn(house.meter)
    house.till.settle()
    house.later(2)
    house.till.turn(house.start())
    bodies = [body for _, _, body in house.wire.asked]
    assert bodies[0] == bodies[1], "the same event, and no other in its batch"
    assert house.arrived() == [id]


def test_after_a_restore_what_a_receiver_has_is_reported_again_and_dropped_by_it(house: House) -> None:
    ids = [warm(house), *(house.till.settle() for _ in range(3))]
    backup = copy(house.till.books.db)
    house.till.report(house.meter)
    lost = house.till.settle()
    house.till.report(house.meter)
    house.restore(backup)
    new = house.till.settle()
    house.till.report(house.meter)
    assert house.arrived() == [*ids, lost, new]
    assert house.openmeter.totals()["duplicates"] == 3
    assert house.till.status("openmeter")["ok"]


@pytest.mark.parametrize("down", [False, True], ids=["not sent yet", "sent in vain"])
def test_after_a_restore_what_a_receiver_may_have_and_has_forgotten_is_not_reported_twice(
    house: House, down: bool
) -> None:
    known = warm(house)
    ids = [house.till.settle() for _ in range(3)]
    if down:
        house.wire.faults["openmeter"] = ["refused"]
        house.till.report(house.meter)
        house.later(2)
    backup = copy(house.till.books.db)
    house.till.report(house.meter)
    house.later(25 * HOUR_S)
    house.restore(backup)
    new = house.till.settle()
    house.till.report(house.meter)
    assert house.arrived() == [known, *ids, new]
    assert [letter["id"] for letter in house.till.dead("openmeter")] == ids
    house.openmeter._seen.clear()
    house.later(25 * HOUR_S)
    house.till.report(house.start())
    assert house.arrived() == [known, *ids, new], "what came after the restore is not in doubt"


def copy(db: sqlite3.Connection) -> sqlite3.Connection:
    """A backup."""
    backup = sqlite3.connect(":memory:", isolation_level=None)
    db.backup(backup)
    return backup


# --- dead letters ---------------------------------------------------------------------------------------------


def test_a_poisoned_event_ends_alone_among_the_dead_letters(house: House) -> None:
    ids = [house.till.settle() for _ in range(200)]
    house.openmeter.poison.ids += [ids[0], ids[77], ids[78], ids[199]]
    house.till.report(house.meter)
    dead = house.till.dead("openmeter")
    assert [letter["id"] for letter in dead] == [ids[0], ids[77], ids[78], ids[199]]
    assert all(f"event {letter['id']} is poison" in letter["reason"] for letter in dead)
    assert sorted(house.arrived()) == sorted(set(ids) - {letter["id"] for letter in dead})
    assert house.openmeter.totals()["duplicates"] == 0
    status = house.till.status("openmeter")
    assert (status["lag"], status["dead_letters"], status["ok"]) == (0, 4, False)
    assert house.till.alerts.kinds() == ["dead_letter"] * 4


def test_a_failure_in_the_middle_of_the_search_for_poison_is_no_poison(house: House) -> None:
    ids = [house.till.settle() for _ in range(100)]
    house.openmeter.poison.ids.append(ids[40])
    house.wire.faults["openmeter"] = ["fine", "fine", "lost after", *["503"] * 3]
    while house.till.status("openmeter")["lag"]:
        house.till.turn(house.meter)
        house.later(20)
    assert [letter["id"] for letter in house.till.dead("openmeter")] == [ids[40]]
    assert sorted(house.arrived()) == sorted(set(ids) - {ids[40]})


def test_a_dead_letter_that_is_retried_arrives_once_it_can(house: House) -> None:
    ids = [house.till.settle() for _ in range(10)]
    house.openmeter.poison.ids += ids[3:5]
    house.till.report(house.meter)
    db = house.till.books.db
    assert outbox.retry(db, "openmeter", ids[3]) == 1
    house.till.report(house.meter)
    assert len(house.till.dead("openmeter")) == 2, "nothing was mended"
    house.openmeter.poison.ids.clear()
    assert outbox.retry(db, "openmeter", ids[3]) == 1
    house.till.report(house.meter)
    assert [letter["id"] for letter in house.till.dead("openmeter")] == [ids[4]]
    assert outbox.retry(db, "openmeter", None) == 1
    house.till.report(house.meter)
    assert sorted(house.arrived()) == ids
    assert house.tokens() == "150"
    assert house.till.status("openmeter")["ok"]


def test_a_dead_letter_that_is_retried_in_vain_is_not_well(house: House) -> None:
    """It waits since it was first to be sent, though the cursor has passed it."""
    id = house.till.settle()
    house.openmeter.poison.ids.append(id)
    house.till.report(house.meter)
    house.later(HOUR_S)
    house.wire.faults["openmeter"] = ["503"]
    outbox.retry(house.till.books.db, "openmeter", id)
    house.till.report(house.meter)
    status = house.till.status("openmeter")
    assert (status["dead_letters"], status["pending"], status["lag"]) == (0, 1, 0)
    assert (status["lag_s"], status["ok"]) == (HOUR_S, False)


def test_an_event_that_waits_can_be_discarded_too(house: House) -> None:
    """Whatever stops a sink at one event, an operator can let it go on."""
    first, second = house.till.settle(), house.till.settle()
    house.wire.faults["openmeter"] = ["401"]
    house.till.turn(house.meter)
    assert house.till.status("openmeter")["next"] == first
    outbox.discard(house.till.books.db, "openmeter", first)
    house.later(2)
    house.till.report(house.meter)
    assert house.arrived() == [second]
    status = house.till.status("openmeter")
    assert (status["lag"], status["pending"], status["next"], status["ok"]) == (0, 0, None, True)


def test_a_dead_letter_that_is_discarded_is_gone(house: House) -> None:
    id = house.till.settle()
    house.openmeter.poison.ids.append(id)
    house.till.report(house.meter)
    outbox.discard(house.till.books.db, "openmeter", id)
    assert house.till.status("openmeter")["ok"]
    house.openmeter.poison.ids.clear()
    assert outbox.retry(house.till.books.db, "openmeter", None) == 0
    house.till.report(house.meter)
    assert house.arrived() == []


@pytest.mark.parametrize("fault", ["lost after", "timeout after", "500 after", "503 after", "408 after", "page after"])
@pytest.mark.parametrize("before", [[], ["refused"], ["429", "404"]], ids=["at once", "refused before", "told before"])
def test_what_may_have_arrived_is_not_sent_again_once_the_receiver_has_forgotten_it(
    house: House, fault: str, before: list[str]
) -> None:
    """Of a batch after a good answer all is unknown; after a failure it is the one event that was tried."""
    known = warm(house)
    ids = [house.till.settle() for _ in range(3)]
    house.wire.faults["openmeter"] = [*before, fault, *["refused"] * 100]
    for _ in range(20):
        house.till.turn(house.meter)
        house.later(2 * HOUR_S)
    house.wire.faults["openmeter"].clear()
    house.till.report(house.meter)
    assert house.arrived() == [known, *ids], "and not twice"
    dead = house.till.dead("openmeter")
    assert [letter["id"] for letter in dead] == (ids[:1] if before else ids)
    sent = START + 2 * HOUR_S * len(before)
    at = datetime.fromtimestamp(sent, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert f"nobody knows whether it has arrived: it may have been sent since {at}, and" in dead[0]["reason"]


def test_what_may_have_arrived_is_given_up_well_before_the_receiver_forgets_it(house: House) -> None:
    """Neither two clocks nor the way there are exact."""
    id = house.till.settle()
    house.wire.faults["openmeter"] = ["lost after"]
    house.till.turn(house.meter)
    house.later(24 * HOUR_S - 60)
    house.openmeter._now = lambda: house.till.clock.unix() + 120
    house.till.report(house.meter)
    assert house.arrived() == [id]
    assert [letter["id"] for letter in house.till.dead("openmeter")] == [id]


def test_what_cannot_have_arrived_is_sent_however_late(house: House) -> None:
    ids = [house.till.settle() for _ in range(3)]
    house.wire.faults["openmeter"] = ["refused", "429", "404", *["refused"] * 100]
    for _ in range(20):
        house.till.turn(house.meter)
        house.later(2 * HOUR_S)
    house.wire.faults["openmeter"].clear()
    house.till.report(house.meter)
    assert house.arrived() == ids
    assert house.till.dead("openmeter") == []


# --- replays --------------------------------------------------------------------------------------------------


def replay(house: House, sink: str, since: str, *, force: bool = False) -> int:
    db = house.till.books.db
    after, oldest = outbox.reach(db, since)
    return outbox.replay(db, sink, after, oldest, house.till.clock.now(), force=force)


def test_a_replay_brings_a_receiver_back_what_it_has_lost_and_no_other(house: House) -> None:
    hook = house.webhook()
    house.till.report(hook)
    early = house.till.settle()
    house.later(HOUR_S)
    since = house.till.clock.now()
    ids = [house.till.settle() for _ in range(5)]
    house.till.report(house.meter)
    house.till.report(hook)
    house.hook._kept.clear()
    assert replay(house, "webhook", since) == 5
    house.till.report(hook)
    house.till.report(house.meter)
    assert [event["id"] for event in house.hook.events()] == ids
    assert house.arrived() == [early, *ids]
    assert house.openmeter.totals()["duplicates"] == 0


def test_a_replay_to_a_receiver_that_has_everything_changes_nothing(house: House) -> None:
    since = house.till.clock.now()
    ids = [house.till.settle() for _ in range(250)]
    house.till.report(house.meter)
    assert replay(house, "openmeter", since) == 250
    house.till.report(house.meter)
    assert house.arrived() == ids
    assert house.openmeter.totals()["duplicates"] == 250


def test_a_replay_reaches_behind_the_day_on_which_a_sink_was_turned_on() -> None:
    house = House()
    before = house.till.settle(estimated=True)
    house.begin()
    house.till.correct(before, read=1, written=1, nanos=1)
    assert replay(house, "openmeter", "2026-11-21T00:00:00.000Z") == 1 + 0
    house.till.report(house.meter)
    assert house.arrived() == [before, f"{before}.c"]
    house.till.close()


def test_after_a_replay_of_the_latest_what_was_before_it_can_still_be_corrected(house: House) -> None:
    early = house.till.settle(estimated=True)
    house.later(HOUR_S)
    since = house.till.clock.now()
    late = house.till.settle()
    house.till.report(house.meter)
    assert replay(house, "openmeter", since) == 1
    house.till.correct(early, read=1, written=1, nanos=1)
    house.till.report(house.meter)
    assert house.arrived() == [early, late, f"{early}.c"]
    assert house.tokens() == "17"


@pytest.mark.parametrize("turns", [1, 2])
def test_a_replay_in_the_middle_of_a_batch_leaves_nothing_behind(house: House, turns: int) -> None:
    since = house.till.clock.now()
    ids = [house.till.settle() for _ in range(250)]
    for _ in range(turns):
        house.till.turn(house.meter)
    house.wire.faults["openmeter"] = ["lost"]
    house.till.turn(house.meter)
    house.openmeter._kept.clear()
    house.openmeter._seen.clear()
    assert replay(house, "openmeter", since) == {1: 200, 2: 250}[turns]
    house.till.report(house.meter)
    assert sorted(house.arrived()) == ids
    assert house.till.status("openmeter")["lag"] == 0


def test_a_replay_of_what_a_receiver_may_have_forgotten_must_be_meant(house: House) -> None:
    since = house.till.clock.now()
    house.till.settle()
    house.till.report(house.meter)
    house.later(25 * HOUR_S)
    with pytest.raises(MeterError, match="would count twice; use --force if it has lost everything"):
        replay(house, "openmeter", since)
    assert replay(house, "openmeter", since, force=True) == 1


def test_a_replay_that_a_wrong_clock_makes_reach_further_back_must_be_meant_too(house: House) -> None:
    """A row that has its time from a clock that ran ahead settled before those that are older than it."""
    house.later(48 * HOUR_S)
    house.till.settle()
    house.later(-48 * HOUR_S)
    house.till.settle()
    house.till.report(house.meter)
    house.later(25 * HOUR_S)
    since = house.till.clock.now()
    with pytest.raises(MeterError, match="would count twice"):
        replay(house, "openmeter", since)
    assert replay(house, "openmeter", since, force=True) == 2


def test_a_replay_since_a_time_to_come_does_nothing(house: House) -> None:
    house.till.settle()
    assert replay(house, "openmeter", "2027-01-01T00:00:00.000Z") == 0
    house.till.report(house.meter)
    assert replay(house, "openmeter", "2027-01-01T00:00:00.000Z") == 0


def test_verbs_on_a_sink_that_was_never_on_are_refused(house: House) -> None:
    db = house.till.books.db
    for verb in (
        lambda: outbox.retry(db, "supabase", None),
        lambda: outbox.discard(db, "supabase", "x"),
        lambda: outbox.dead_letters(db, "nothing", 1),
        lambda: replay(house, "supabase", "2026-01-01"),
    ):
        with pytest.raises(MeterError, match="was never turned on"):
            verb()
    with pytest.raises(MeterError, match="openmeter has no dead letter x"):
        outbox.retry(db, "openmeter", "x")
    with pytest.raises(MeterError, match="openmeter has no dead letter x, and nothing of that id is waiting"):
        outbox.discard(db, "openmeter", "x")
