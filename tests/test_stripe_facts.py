"""Stripe's JSON is read strictly: what is as described is understood in both shapes, all else is `Unreadable`."""

from __future__ import annotations

import copy
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from goosestack.clock import later
from goosestack.stripe_facts import EVENTS, LATEST, Event, Invoice, Unreadable, open_event, read, read_object
from goosestack.subscriptions import iso
from tests.bookings import (
    START,
    Bookings,
    charge,
    checkout,
    dispute,
    invoice,
    old_invoice,
    pro_checkout,
    refund,
    subscription,
)


def objects() -> dict[str, dict[str, Any]]:
    """One good object for every kind of event."""
    books = Bookings()
    payment = books.sold()
    books.close()
    intent = {"id": "pi_1", "object": "payment_intent", "status": "succeeded", "amount": 1, "amount_received": 1}
    intent |= {"currency": "usd", "livemode": False, "customer": "cus_1", "metadata": {}, "last_payment_error": None}
    return {
        "checkout.session.completed": checkout(payment),
        "checkout.session.expired": checkout(payment, status="expired", payment_status="unpaid"),
        "checkout.session.async_payment_succeeded": pro_checkout(payment),
        "payment_intent.succeeded": intent,
        "charge.refunded": charge(payment, 5),
        "refund.created": refund(payment, "a", 5),
        "charge.dispute.closed": dispute(payment, 5, "won", -5, 5),
        "invoice.paid": invoice("1", START, payment),
        "invoice.payment_failed": old_invoice("1", START, payment),
        "customer.subscription.deleted": subscription(payment),
        "invoice_payment.paid": {"object": "invoice_payment", "invoice": "in_1", "payment": {"payment_intent": "pi_1"}},
    }


GOOD = objects()
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1.5, 1 << 60, "", "x", "x" * 300, "\x00", "é", [], [1], [[]], {}, {"data": 1}, {"id": 1}]
) | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2))


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in an object, and in what is in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [prefix] if prefix else []
    for key, below in inner:
        found += paths(below, (*prefix, key))
    return found


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_as_described_is_understood(kind: str) -> None:
    assert read(Event("evt_1", kind, START, False, GOOD[kind]))


@settings(max_examples=400, deadline=None, database=None)
@given(st.data())
def test_whatever_stands_in_the_place_of_something_it_is_understood_or_unreadable(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(GOOD)))
    about = copy.deepcopy(GOOD[kind])
    *way, last = data.draw(st.sampled_from(paths(about)))
    place: Any = about
    for step in way:
        place = place[step]
    if data.draw(st.booleans()):
        place[last] = data.draw(JUNK)
    else:
        del place[last]
    try:
        read(Event("evt_1", kind, START, False, about))
    except Unreadable:
        pass


@settings(max_examples=200, deadline=None, database=None)
@given(JUNK, st.sampled_from(EVENTS))
def test_whatever_an_event_is_about_it_is_understood_or_unreadable(about: Any, kind: str) -> None:
    body = {"id": "evt_1", "object": "event", "type": kind, "created": 1, "livemode": False, "data": {"object": about}}
    try:
        read(open_event(json.dumps(body).encode()))
    except Unreadable:
        pass


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_what_is_no_event_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        open_event(body)


def test_an_event_of_another_kind_says_nothing() -> None:
    assert read(Event("evt_1", "customer.created", START, False, {"object": "customer"})) == ()


def test_a_success_that_is_not_paid_is_unreadable() -> None:
    told = {**GOOD["checkout.session.completed"], "payment_status": "unpaid"}
    assert read(Event("evt_1", "checkout.session.completed", START, False, told))
    with pytest.raises(Unreadable, match="succeeded, and is not paid"):
        read(Event("evt_1", "checkout.session.async_payment_succeeded", START, False, told))


UNREADABLE = {
    "a list that is none": ("invoice.paid", {"lines": {"data": 5}}, "`lines` is no list"),
    "a list of what is no object": ("invoice.paid", {"lines": {"data": [5]}}, "`lines` is no list"),
    "a dispute of no payment": ("charge.dispute.closed", {"payment_intent": None}, "a dispute of no payment"),
    "a line without an amount": ("invoice.paid", {"lines": {"data": [{}]}}, "a line without an amount"),
    "an amount in a text": ("invoice.paid", {"lines": {"data": [{"amount": "5"}]}}, "a line without an amount"),
}


@pytest.mark.parametrize(("kind", "changes", "words"), UNREADABLE.values(), ids=list(UNREADABLE))
def test_what_lacks_what_it_is_about_says_so(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        read(Event("evt_1", kind, START, False, {**GOOD[kind], **changes}))


def test_an_invoice_of_no_subscription_says_nothing() -> None:
    told = {**GOOD["invoice.paid"], "parent": None, "subscription": None}
    assert read(Event("evt_1", "invoice.paid", START, False, told)) == ()


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_what_is_nested_without_end_is_unreadable(depth: int) -> None:
    with pytest.raises(Unreadable):
        open_event(b'{"object":"event","id":' + b"[" * depth + b"]" * depth + b"}")


def test_the_two_shapes_of_an_invoice_say_the_same() -> None:
    books = Bookings()
    payment = books.sold_pro()
    books.close()
    (new,), (old,) = (read_object(each("1", START, payment), START) for each in (invoice, old_invoice))
    assert isinstance(new, Invoice) and isinstance(old, Invoice)
    assert (new.subscription, new.lines, new.metadata, new.amount_paid) == (
        *(old.subscription, old.lines, old.metadata),
        old.amount_paid,
    )
    assert (new.intent, old.intent) == (None, "pi_1")


def test_what_was_put_in_the_place_of_an_id_is_read_by_its_id() -> None:
    found = invoice("1", START, None, customer={"id": "cus_1", "object": "customer"})
    found["payments"] = {"data": [{"payment": {"payment_intent": {"id": "pi_9"}}}]}
    (read_,) = read_object(found, START)
    assert isinstance(read_, Invoice) and (read_.customer, read_.intent) == ("cus_1", "pi_9")


@pytest.mark.parametrize("time", [1 << 33, 1 << 49, -1, 1.5, None, "now"])
def test_a_time_that_no_date_can_be_written_for_is_unreadable(time: object) -> None:
    line = copy.deepcopy(invoice("1", START, None)["lines"])
    line["data"][0]["period"]["end"] = time
    for about in (invoice("1", START, None, created=time), invoice("1", START, None, lines=line)):
        with pytest.raises(Unreadable):
            read_object(about, START)
    if time is not None:
        with pytest.raises(Unreadable):
            read_object(subscription(None, "canceled", ended_at=time), START)
    body = {"id": "evt_1", "object": "event", "type": "charge.refunded", "created": time, "livemode": False}
    with pytest.raises(Unreadable):
        open_event(json.dumps({**body, "data": {"object": {}}}).encode())


def test_the_latest_time_can_be_written() -> None:
    (found,) = read_object(invoice("1", LATEST - 1, None), START)
    assert isinstance(found, Invoice)
    assert later(iso(found.lines[0].until), 720 * 3_600) == "2242-04-15T12:56:31.000Z"
