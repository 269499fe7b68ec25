"""Stripe's edge: whatever is answered, by Stripe or by whoever is in between, is an answer of ours or a TillError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from goosestack.till import StripeTill, TillError
from tests.tills import KEY, Till, answering, http


@asynccontextmanager
async def before(answer: bytes) -> AsyncIterator[StripeTill]:
    """A till before somebody who gives every request the same bytes."""
    async with answering(lambda head: answer) as url:
        till = StripeTill(KEY, url)
        try:
            yield till
        finally:
            await till.close()


async def pulled(till: StripeTill) -> list[Any]:
    return [each async for each in till.pull("refunds", 0)]


CALLS: dict[str, Callable[[StripeTill], Any]] = {
    "a question": lambda till: till.is_deleted("cus_1"),
    "a list": pulled,
    "an order": lambda till: till.charge({"amount": 1000}, "pay_1"),
}


NO_ANSWERS = [
    http("200 OK", b"[]"),
    http("200 OK", b"5"),
    http("200 OK", b"null"),
    http("200 OK", b"<html>"),
    http("200 OK", b""),
    http("200 OK", b'{"data": [', 1000),
    http("302 Found", b"{}"),
    http("400 Bad Request", b"[]"),
    http("402 Payment Required", b'{"error": "no"}'),
    http("500 Internal Server Error", b"{}"),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"",
]


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("answer", NO_ANSWERS, ids=lambda answer: answer.decode().replace("\r\n", " ")[:90])
async def test_what_is_no_answer_of_stripes_is_a_till_error_that_names_no_secret(
    answer: bytes, call: Callable[[StripeTill], Any]
) -> None:
    """Of a list, or an error that is a text, Stripe's library made an AttributeError, which was a 500 to whoever was
    buying, and ended what was asked for besides."""
    async with before(answer) as till:
        with pytest.raises(TillError) as caught:
            await call(till)
    assert KEY not in str(caught.value) and str(caught.value)


WITHOUT: dict[str, tuple[Callable[[StripeTill], Any], bytes]] = {
    "id": (lambda till: till.create_customer({}, "customer-1"), b"{}"),
    "url": (lambda till: till.create_portal("cus_1", "https://llm.example.com"), b'{"url": null}'),
    "data": (lambda till: till.saved_card("cus_1"), b'{"object": "list"}'),
    "data ": (lambda till: till.endpoints(), b'{"data": 5}'),
    "data  ": (pulled, b'{"has_more": false}'),
    "has_more": (pulled, b'{"data": []}'),
}


@pytest.mark.parametrize(("name", "call", "body"), [(name, *how) for name, how in WITHOUT.items()], ids=list(WITHOUT))
async def test_an_answer_without_what_was_asked_for_is_one_too(
    name: str, call: Callable[[StripeTill], Any], body: bytes
) -> None:
    async with before(http("200 OK", body)) as till:
        with pytest.raises(TillError, match=f"an answer without `{name.strip()}`"):
            await call(till)


async def test_a_declined_card_may_be_told_without_the_payment_that_failed(till: Till) -> None:
    body = b'{"error": {"type": "card_error", "code": "card_declined", "message": "no"}}'
    async with before(http("402 Payment Required", body)) as stripe:
        with pytest.raises(TillError, match="declined: card_declined") as caught:
            await stripe.charge({"amount": 1000}, "pay_1")
    assert caught.value.certain and caught.value.spent
    assert getattr(caught.value, "intent", None) == {}


async def test_with_a_customer_that_stripe_does_not_have_any_more_the_card_is_gone_too() -> None:
    body = b'{"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "no"}}'
    async with before(http("404 Not Found", body)) as stripe:
        assert await stripe.saved_card("cus_1") is None


async def test_whether_a_card_is_saved_is_not_known_where_stripe_does_not_say() -> None:
    body = b'{"error": {"type": "invalid_request_error", "code": "parameter_invalid", "message": "no"}}'
    async with before(http("400 Bad Request", body)) as stripe:
        with pytest.raises(TillError, match="parameter_invalid"):
            await stripe.saved_card("cus_1")


async def test_who_is_gone_has_no_saved_card(till: Till) -> None:
    stripe = StripeTill(KEY, till.url)
    try:
        assert await stripe.saved_card("cus_nobody") is None
    finally:
        await stripe.close()
