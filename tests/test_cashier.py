"""What we ask of Stripe by ourselves, where it goes wrong: charges that nobody can be sure of, lists with what nobody
understands, books that have no room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from goosestack import autotopup, ledger
from goosestack.cashier import CashierError, Unreachable
from goosestack.errors import StoreUnavailable
from goosestack.payments import Payment
from tests.desks import Desk
from tests.tills import answering, http

INTENTS = "/v1/payment_intents"


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    desk = Desk.open(folder)
    yield desk
    desk.close()


def problem(desk: Desk, user: str) -> str | None:
    found: str | None = desk.shown(user)["problem"]
    return found


# --- automatic top-ups ----------------------------------------------------------------------------------------


def test_who_has_no_saved_card_is_told_so(desk: Desk) -> None:
    alice = desk.customer("alice", card=None)
    desk.tick(0, 5)
    assert desk.statuses(alice) == ["failed"] and problem(desk, alice) == "no_saved_card"
    assert desk.till.requests(method="POST", path=INTENTS) == []


def test_what_stripe_refuses_for_certain_has_failed_at_once(desk: Desk) -> None:
    desk.topups = {10: 10}
    alice = desk.customer("alice", amount=10)
    desk.tick(0, 5)
    assert desk.statuses(alice) == ["failed"] and problem(desk, alice) == "refused"
    assert len(desk.till.requests(method="POST", path=INTENTS)) == 1


@pytest.mark.parametrize(("kind", "ends"), [("cut", "failed"), ("cut_after", "paid")])
def test_a_card_that_is_gone_when_it_is_asked_again_may_have_been_charged_the_first_time(
    desk: Desk, kind: str, ends: str
) -> None:
    alice = desk.customer("alice")
    desk.till.fault(kind, method="POST", path=INTENTS, times=3)
    desk.tick(0)
    desk.till.ask("DELETE", f"/v1/customers/{desk.customers[alice]}")
    desk.tick(20, 100)
    assert desk.statuses(alice) == (["paid"] if ends == "paid" else ["new"]), "it is looked for, and given its time"
    desk.tick(500, 1500, 3700, 8000)
    assert desk.statuses(alice)[0] == ends and desk.charges() == (ends == "paid")


def test_somebody_elses_charge_is_not_taken_for_the_one_that_is_looked_for(desk: Desk) -> None:
    alice, bob = desk.customer("alice"), desk.customer("bob")
    desk.write(autotopup.disable, bob, desk.start)
    desk.till.fault("cut", method="POST", path=INTENTS, times=3)
    desk.tick(0)
    desk.write(autotopup.disable, alice, desk.time(1))
    desk.write(autotopup.enable, bob, 500, 1000, 1000, desk.time(2))
    desk.tick(20, 100)
    assert desk.statuses(alice) == ["new"] and desk.statuses(bob) == ["paid"] and desk.charges() == 1


def test_an_answer_that_nobody_understands_rests_it_for_a_person(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("lie", method="POST", path=INTENTS, set={"object": "goose"})
    desk.tick(0, 5, 100_000)
    assert problem(desk, alice) == "review" and desk.charges() == 1
    assert "an object of another kind" in desk.alerts[0]


def test_a_charge_that_the_books_have_no_room_for_rests_it_for_a_person(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("cut_after", method="POST", path=INTENTS, times=3)

    async def run() -> None:
        async with desk.at_work() as cashier:
            await cashier.top_up()
            await cashier.store.write(ledger.post, 1, "grant", "gift", ledger.MOST_UNITS, desk.start)
            desk.clock = desk.time(20)
            await cashier.top_up()

    asyncio.run(run())
    assert problem(desk, alice) == "review" and desk.charges() == 1
    assert "the account has no room for +1000" in desk.alerts[-1]


def test_a_decline_that_shows_no_payment_has_failed_all_the_same(desk: Desk) -> None:
    alice = desk.customer("alice")
    declined = b'{"error": {"type": "card_error", "code": "card_declined", "message": "no"}}'
    card = b'{"object": "list", "data": [{"id": "pm_1"}], "has_more": false}'

    def answer(head: bytes) -> bytes:
        if head.startswith(b"POST"):
            return http("402 Payment Required", declined)
        return http("200 OK", card if b"payment_methods" in head else card.replace(b'{"id": "pm_1"}', b""))

    async def run() -> None:
        async with answering(answer) as url, desk.at_work(url) as cashier:
            await cashier.top_up()

    asyncio.run(run())
    assert desk.statuses(alice) == ["failed"] and problem(desk, alice) == "card_declined"


def test_where_there_is_nobody_to_send_a_link_to_the_attempt_waits_for_somebody_who_sells(desk: Desk) -> None:
    desk.customer("alice", card="authentication_required")

    async def run() -> None:
        async with desk.at_work(sell=None) as cashier:
            await cashier.top_up()

    asyncio.run(run())
    assert desk.rows("SELECT step FROM attempts") == [("link",)] and desk.told() == ["payment.failed"]
    desk.tick(5)
    assert desk.told() == ["payment.failed", "payment.action_required"]


def test_a_store_that_ends_is_no_trouble_of_a_customers(desk: Desk) -> None:
    desk.customer("alice", card="authentication_required")

    async def run() -> None:
        async with desk.at_work() as cashier:

            async def sell(user: str, amount: int, key: None) -> Payment:
                await cashier.store.close()  # type: ignore[attr-defined]
                raise StoreUnavailable()

            cashier.sell = sell
            with pytest.raises(StoreUnavailable):
                await cashier.top_up()

    asyncio.run(run())
    assert desk.rows("SELECT step, tries FROM attempts") == [("link", 0)] and desk.alerts == []
    desk.tick(5)
    assert desk.told() == ["payment.failed", "payment.action_required"]


# --- reconciliation -------------------------------------------------------------------------------------------


def test_an_object_that_nobody_understands_is_a_doubt_and_stands_in_nobodys_way(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("cut_after", method="POST", path=INTENTS, times=3)
    desk.tick(0)
    strange = [{"id": "re_strange", "object": "goose", "created": "long ago"}]
    desk.till.fault("lie", method="GET", path="/v1/refunds", set={"data": strange})
    found = desk.reconcile(20)
    assert desk.statuses(alice) == ["paid"] and len(found["changes"]) == 1
    assert [line.partition(": ")[2] for line in found["review"]] == ["re_strange: an object of another kind"]


def test_of_the_events_that_never_came_each_is_taken_as_far_as_it_can_be(desk: Desk) -> None:
    about = {"object": "goose", "id": "go_1"}
    told = {"object": "event", "created": 5, "livemode": False, "data": {"object": about}}
    events = [
        {"id": "evt_of_nothing", "type": "refund.created"},
        {**told, "id": "evt_of_a_goose", "type": "refund.created"},
        {**told, "id": "evt_of_no_concern", "type": "goose.created"},
    ]
    desk.till.fault("lie", method="GET", path="/v1/events", set={"data": events})
    assert [line.partition(":")[0] for line in desk.reconcile(0)["review"]] == ["evt_of_a_goose (refund.created)"]


def test_what_the_books_have_no_room_for_needs_a_person_whoever_tells_of_it(desk: Desk) -> None:
    alice = desk.customer("alice")
    desk.till.fault("cut_after", method="POST", path=INTENTS, times=3)
    desk.tick(0)
    desk.grant(alice, ledger.MOST_UNITS)
    found = desk.reconcile(20)
    assert found["changes"] == []
    assert {line.rpartition(": ")[2] for line in found["review"]} == {"the account has no room for +1000"}
    assert {line.split("(")[1].partition(")")[0] for line in found["review"]} == {
        "charge.succeeded",
        "payment_intent.succeeded",
    }
    assert desk.statuses(alice) == ["new"]


# --- the webhook ----------------------------------------------------------------------------------------------


def test_where_stripe_cannot_be_asked_no_webhook_is_set_up(desk: Desk) -> None:
    desk.till.fault("error_500", path="/v1/webhook_endpoints", times=3)

    async def run() -> None:
        async with desk.at_work(public_url="https://llm.example.com") as cashier:
            with pytest.raises(CashierError, match="Stripe could not be asked: ") as caught:
                await cashier.set_up(again=False)
            assert not isinstance(caught.value, Unreachable)
            assert (await cashier.set_up(again=False))["others"] == []

    asyncio.run(run())
