"""The fake Stripe's API: what the official library makes of it, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
import pytest_asyncio
import stripe

from tests.tills import KEY, ControlError, Till

SUCCESS = "https://gateway.example/done?checkout={CHECKOUT_SESSION_ID}"
CANCEL = "https://gateway.example/"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    till = Till.start(tmp_path_factory.mktemp("till"))
    yield till
    till.stop()


@pytest.fixture
def till(running: Till) -> Till:
    """One process for all tests, empty for each."""
    running.reset()
    return running


@pytest_asyncio.fixture
async def client(till: Till) -> AsyncIterator[stripe.StripeClient]:
    http = stripe.AIOHTTPClient()
    yield stripe.StripeClient(KEY, base_addresses={"api": till.url}, http_client=http, max_network_retries=0)
    await http.close_async()  # type: ignore[no-untyped-call]


def credits(cents: int = 1000, **more: Any) -> Any:
    """The parameters of a checkout for credits."""
    data = {"currency": "usd", "unit_amount": cents, "product_data": {"name": "Credits"}}
    return {
        "mode": "payment",
        "line_items": [{"price_data": data, "quantity": 1}],
        "success_url": SUCCESS,
        "cancel_url": CANCEL,
        **more,
    }


def pro(**more: Any) -> Any:
    """The parameters of a checkout for Pro."""
    data = {
        "currency": "usd",
        "unit_amount": 1000,
        "recurring": {"interval": "month"},
        "product_data": {"name": "Pro"},
    }
    return {
        "mode": "subscription",
        "line_items": [{"price_data": data, "quantity": 1}],
        "success_url": SUCCESS,
        **more,
    }


FORM = (
    "mode=payment&success_url=https://a.example/&line_items[0][quantity]=1&line_items[0][price_data][currency]=usd"
    "&line_items[0][price_data][unit_amount]=1000&line_items[0][price_data][product_data][name]=Credits"
)


# --- who asks, and how ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sk_test_somebody_elses", "sk_live_operator", "pk_test_1", "gsk_alice", ""])
def test_only_its_own_secret_key_is_taken(till: Till, key: str) -> None:
    status, body, headers = till.ask("GET", "/v1/customers", key=key)
    assert (status, body["error"]["type"]) == (401, "invalid_request_error")
    assert headers["request-id"].startswith("req_")
    assert key == "" or key not in str(body)


async def test_the_library_calls_a_wrong_key_what_it_is(till: Till, client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.AuthenticationError):
        await client.v1.customers.list_async(options={"api_key": "sk_test_wrong"})


def test_only_its_own_version_is_spoken(till: Till) -> None:
    assert till.ask("GET", "/v1/balance", stripe_version="2026-10-28.endive")[0] == 200
    status, body, _ = till.ask("GET", "/v1/balance", stripe_version="2024-06-20")
    assert status == 400 and "2024-06-20" in body["error"]["message"]


async def test_the_library_names_the_version_of_the_fake(till: Till, client: stripe.StripeClient) -> None:
    await client.v1.balance.retrieve_async()
    assert till.requests()[-1]["version"] == stripe.api_version == "2026-10-28.endive"


def test_an_unknown_address_is_a_404(till: Till) -> None:
    for method, path in [("GET", "/v1/goose"), ("DELETE", "/v1/refunds/re_1"), ("POST", "/v2/billing/meter_events")]:
        status, body, _ = till.ask(method, path)
        assert (status, body["error"]["type"]) == (404, "invalid_request_error"), path


def test_bodies_are_forms(till: Till) -> None:
    status, body, _ = till.ask(
        "POST", "/v1/customers", '{"email":"alice@example.com"}', content_type="application/json"
    )
    assert status == 400 and "application/json" in body["error"]["message"]


@pytest.mark.parametrize(
    "form",
    [
        "email=alice@example.com&email=mallory@example.com",
        "metadata=x&metadata[a]=b",
        "metadata[a]=b&metadata=x",
        "email",
        "email=%ff",
        "metadata[a][b]=c",
        "[email]=a",
        "email[]=alice@example.com",
        "preferred_locales=en",
        "preferred_locales[1]=en",
        "preferred_locales[0]=en&preferred_locales[a]=fr",
    ],
)
def test_a_form_that_says_two_things_or_nothing_is_refused(till: Till, form: str) -> None:
    assert till.ask("POST", "/v1/customers", form)[0] == 400
    assert till.objects("customer") == []


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ("payment_method_types[0]=card", "parameter_unknown", "payment_method_types"),
        ("line_items[0][amount]=1000", "parameter_unknown", "line_items[0][amount]"),
        ("metadata=", "", ""),
        ("mode=", "parameter_invalid_empty", "mode"),
        ("mode=setup", "parameter_invalid", "mode"),
        ("customer=cus_nobody", "resource_missing", "customer"),
        ("customer_email=alice", "email_invalid", "customer_email"),
        ("customer_email=", "parameter_invalid_empty", "customer_email"),
        ("expires_at=soon", "parameter_invalid_integer", "expires_at"),
        ("expires_at=1", "parameter_invalid", "expires_at"),
        ("allow_promotion_codes=1", "parameter_invalid_boolean", "allow_promotion_codes"),
        ("cancel_url=/back", "url_invalid", "cancel_url"),
        ("cancel_url=javascript:alert(1)", "url_invalid", "cancel_url"),
        (f"client_reference_id={'x' * 201}", "parameter_invalid_string_length", "client_reference_id"),
        (f"metadata[{'k' * 41}]=v", "parameter_invalid_string_length", f"metadata[{'k' * 40}]"),
        (f"metadata[k]={'v' * 501}", "parameter_invalid_string_length", "metadata[k]"),
        ("subscription_data[description]=x", "parameter_invalid", "subscription_data"),
        ("line_items[1][price]=price_none&line_items[1][quantity]=1", "resource_missing", "line_items[1][price]"),
        ("line_items[1][quantity]=1", "parameter_missing", "line_items[1][price]"),
        ("ui_mode=embedded_page", "parameter_invalid", "ui_mode"),
        ("expand[0]=success_url", "parameter_invalid", "expand"),
    ],
)
def test_each_mistake_in_a_checkout_is_named(till: Till, more: str, code: str, param: str) -> None:
    form = "&".join([*(part for part in FORM.split("&") if part.split("=")[0] != more.split("=")[0]), more])
    status, body, _ = till.ask("POST", "/v1/checkout/sessions", form)
    if not code:
        assert status == 200, body
        return
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, code, param), body
    assert body["error"]["type"] == "invalid_request_error" and body["error"]["message"]


@pytest.mark.parametrize("name", ["mode", "success_url", "line_items"])
def test_what_a_checkout_needs_is_named(till: Till, name: str) -> None:
    form = "&".join(part for part in FORM.split("&") if not part.startswith(name))
    _, body, _ = till.ask("POST", "/v1/checkout/sessions", form)
    assert (body["error"]["code"], body["error"]["param"]) == ("parameter_missing", name)


@pytest.mark.parametrize(("cents", "code"), [(49, "amount_too_small"), (100_000_000, "amount_too_large")])
async def test_amounts_have_bounds(client: stripe.StripeClient, cents: int, code: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.checkout.sessions.create_async(credits(cents))
    assert (refused.value.code, refused.value.http_status) == (code, 400)


async def test_a_checkout_is_for_a_customer_or_an_address_not_both(client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({"email": "alice@example.com"})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.checkout.sessions.create_async(credits(customer=alice.id, customer_email="alice@example.com"))
    assert refused.value.param == "customer_email"


async def test_what_is_not_there_is_a_404_by_path_and_a_400_by_parameter(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.customers.retrieve_async("cus_nobody")
    assert (refused.value.http_status, refused.value.code) == (404, "resource_missing")
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.billing_portal.sessions.create_async({"customer": "cus_nobody"})
    assert (refused.value.http_status, refused.value.param) == (400, "customer")


async def test_an_id_of_another_kind_is_not_found(client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({})
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.subscriptions.retrieve_async(alice.id)


# --- idempotency ----------------------------------------------------------------------------------------------


async def test_the_same_key_and_parameters_get_the_same_answer(till: Till, client: stripe.StripeClient) -> None:
    first, again = [
        await client.v1.checkout.sessions.create_async(credits(), {"idempotency_key": "order 1"}) for _ in range(2)
    ]
    assert first.id == again.id and len(till.objects("checkout.session")) == 1
    assert [each["replayed"] for each in till.requests()] == [False, True]
    assert again.last_response is not None and first.last_response is not None
    headers = again.last_response.headers
    assert headers["idempotent-replayed"] == "true" and headers["idempotency-key"] == "order 1"
    assert headers["original-request"] == first.last_response.headers["request-id"] != headers["request-id"]


async def test_the_first_answer_is_replayed_whatever_has_happened_since(
    till: Till, client: stripe.StripeClient
) -> None:
    order = await client.v1.checkout.sessions.create_async(credits(), {"idempotency_key": "order 1"})
    till.pay(order.id)
    again = await client.v1.checkout.sessions.create_async(credits(), {"idempotency_key": "order 1"})
    assert (again.id, again.status) == (order.id, "open")


async def test_a_key_for_other_parameters_or_another_address_is_refused(client: stripe.StripeClient) -> None:
    await client.v1.checkout.sessions.create_async(credits(), {"idempotency_key": "order 1"})
    for again in (
        client.v1.checkout.sessions.create_async(credits(2500), {"idempotency_key": "order 1"}),
        client.v1.customers.create_async({}, {"idempotency_key": "order 1"}),
    ):
        with pytest.raises(stripe.IdempotencyError) as refused:
            await again
        assert refused.value.http_status == 400


async def test_a_key_whose_request_is_under_way_is_in_use(till: Till, client: stripe.StripeClient) -> None:
    till.fault("hang_after", path="/v1/customers", seconds=0.3)
    asked = [
        asyncio.ensure_future(client.v1.customers.create_async({}, {"idempotency_key": "alice"})) for _ in range(2)
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    conflicts = [each for each in answers if isinstance(each, stripe.APIError)]
    assert [each.http_status for each in conflicts] == [409] and "in progress" in str(conflicts[0])
    assert len(till.objects("customer")) == 1


async def test_a_mistake_does_not_use_up_a_key_but_a_decline_does(till: Till, client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.customers.create_async({"email": "nobody"}, {"idempotency_key": "alice"})
    alice = await client.v1.customers.create_async({"email": "alice@example.com"}, {"idempotency_key": "alice"})
    card = till.card(alice.id, "card_declined")["object"]["id"]
    for _ in range(2):
        with pytest.raises(stripe.CardError):
            await client.v1.payment_intents.create_async(charge(alice.id, card), {"idempotency_key": "top-up 1"})
        till.card(alice.id, "ok")
    assert len(till.objects("payment_intent")) == 1


async def test_a_key_is_forgotten_after_a_day(till: Till, client: stripe.StripeClient) -> None:
    first = await client.v1.customers.create_async({}, {"idempotency_key": "alice"})
    till.advance(24 * 3600 - 60)
    assert (await client.v1.customers.create_async({}, {"idempotency_key": "alice"})).id == first.id
    till.advance(120)
    assert (await client.v1.customers.create_async({}, {"idempotency_key": "alice"})).id != first.id


def test_a_key_has_a_longest_length_and_means_nothing_for_a_get(till: Till) -> None:
    assert till.ask("POST", "/v1/customers", idempotency_key="k" * 256)[0] == 400
    assert till.ask("POST", "/v1/customers", idempotency_key="k" * 255)[0] == 200
    for _ in range(2):
        assert "idempotent-replayed" not in till.ask("GET", "/v1/customers", idempotency_key="k" * 255)[2]


# --- lists and expanding --------------------------------------------------------------------------------------


async def test_lists_have_pages_newest_first(client: stripe.StripeClient) -> None:
    made = [(await client.v1.customers.create_async({"name": f"user {n}"})).id for n in range(5)]
    newest = list(reversed(made))
    page = await client.v1.customers.list_async({"limit": 2})
    assert ([each.id for each in page.data], page.has_more) == (newest[:2], True)
    page = await client.v1.customers.list_async({"limit": 3, "starting_after": newest[1]})
    assert ([each.id for each in page.data], page.has_more) == (newest[2:], False)
    page = await client.v1.customers.list_async({"limit": 2, "ending_before": newest[3]})
    assert ([each.id for each in page.data], page.has_more) == (newest[1:3], True)
    everything = await client.v1.customers.list_async({"limit": 2})
    assert [each.id async for each in everything.auto_paging_iter()] == newest


async def test_lists_are_filtered_by_time(till: Till, client: stripe.StripeClient) -> None:
    early = await client.v1.customers.create_async({})
    till.advance(1000)
    late = await client.v1.customers.create_async({})

    async def found(created: Any) -> list[str]:
        return [each.id for each in (await client.v1.customers.list_async({"created": created})).data]

    assert await found({"gte": late.created}) == [late.id]
    assert await found({"gt": late.created}) == []
    assert await found({"lt": late.created}) == [early.id]
    assert await found({"gte": early.created, "lte": late.created}) == [late.id, early.id]
    assert await found(late.created) == [late.id]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "starting_after=cus_nobody", "created[since]=1"])
def test_a_page_that_does_not_exist_is_refused(till: Till, query: str) -> None:
    assert till.ask("GET", "/v1/customers", query)[0] == 400


async def test_ids_are_expanded_on_request_alone(till: Till, client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({"email": "alice@example.com"})
    made = await client.v1.checkout.sessions.create_async(credits(customer=alice.id))
    assert "line_items" not in made
    till.pay(made.id)
    plain = await client.v1.checkout.sessions.retrieve_async(made.id)
    assert isinstance(plain.payment_intent, str) and plain.customer == alice.id
    full: Any = await client.v1.checkout.sessions.retrieve_async(
        made.id, {"expand": ["payment_intent.latest_charge.refunds", "customer", "line_items.data.price.product"]}
    )
    assert full.customer.email == "alice@example.com"
    assert full.payment_intent.latest_charge.paid and full.payment_intent.latest_charge.refunds.data == []
    assert full.line_items.data[0].price.product.name == "Credits"
    charges: Any = await client.v1.charges.list_async({"expand": ["data.payment_intent"]})
    assert charges.data[0].payment_intent.id == plain.payment_intent


async def test_what_cannot_be_expanded_is_refused(client: stripe.StripeClient) -> None:
    made = await client.v1.checkout.sessions.create_async(credits())
    for path in ("amount_total", "goose", "customer.goose.x", "a.b.c.d.e"):
        if path.startswith("customer"):
            continue  # there is no customer to look into
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await client.v1.checkout.sessions.retrieve_async(made.id, {"expand": [path]})
        assert refused.value.param == "expand"


# --- customers, prices, checkouts -----------------------------------------------------------------------------


async def test_metadata_is_merged_and_an_empty_value_removes(client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({"metadata": {"user": "usr_1", "plan": "free"}})
    alice = await client.v1.customers.update_async(alice.id, {"metadata": {"plan": "", "note": "vip"}})
    assert alice.metadata is not None
    assert alice.metadata.to_dict() == {"user": "usr_1", "note": "vip"}


async def test_a_deleted_customer_is_still_told_of_but_cannot_buy(client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({})
    assert (await client.v1.customers.delete_async(alice.id)).deleted
    assert (await client.v1.customers.retrieve_async(alice.id)).deleted
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.checkout.sessions.create_async(credits(customer=alice.id))


async def test_a_price_is_found_by_its_lookup_key(client: stripe.StripeClient) -> None:
    made = await client.v1.prices.create_async(
        {
            "currency": "usd",
            "unit_amount": 1000,
            "lookup_key": "pro",
            "recurring": {"interval": "month"},
            "product_data": {"name": "Pro"},
        }
    )
    assert [each.id for each in (await client.v1.prices.list_async({"lookup_keys": ["pro"]})).data] == [made.id]
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.checkout.sessions.create_async(credits(line_items=[{"price": made.id, "quantity": 1}]))
    assert refused.value.param == "line_items[0][price]"
    order = await client.v1.checkout.sessions.create_async(pro(line_items=[{"price": made.id, "quantity": 1}]))
    assert order.amount_total == 1000


async def test_a_new_checkout_is_open_unpaid_and_bears_what_it_was_given(client: stripe.StripeClient) -> None:
    made = await client.v1.checkout.sessions.create_async(
        credits(2500, client_reference_id="ord_1", metadata={"order": "ord_1"}, customer_email="alice@example.com")
    )
    assert (made.status, made.payment_status, made.mode, made.livemode) == ("open", "unpaid", "payment", False)
    assert (made.amount_total, made.amount_subtotal, made.currency) == (2500, 2500, "usd")
    assert (made.client_reference_id, made.customer_email) == ("ord_1", "alice@example.com")
    assert made.metadata is not None and made.metadata["order"] == "ord_1"
    assert (made.customer, made.payment_intent, made.invoice, made.subscription) == (None, None, None, None)
    assert made.id.startswith("cs_test_") and made.url is not None and made.id in made.url
    assert made.expires_at - made.created == 24 * 3600
    assert (await client.v1.checkout.sessions.line_items.list_async(made.id)).data[0].amount_total == 2500


async def test_checkouts_are_listed_by_customer_and_status(till: Till, client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({})
    paid = await client.v1.checkout.sessions.create_async(credits(customer=alice.id))
    other = await client.v1.checkout.sessions.create_async(credits(customer=alice.id))
    till.pay(paid.id)
    await client.v1.checkout.sessions.create_async(credits())

    async def found(**wanted: Any) -> list[str]:
        wanted["customer"] = alice.id
        answer = await client.v1.checkout.sessions.list_async(cast(Any, wanted))
        return [each.id for each in answer.data]

    assert await found() == [other.id, paid.id]
    assert await found(status="open") == [other.id]
    assert await found(status="complete") == [paid.id]
    await client.v1.checkout.sessions.expire_async(other.id)
    assert await found(status="expired") == [other.id]
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.checkout.sessions.expire_async(paid.id)


async def test_the_portal_is_for_a_known_customer(client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({})
    made = await client.v1.billing_portal.sessions.create_async({"customer": alice.id, "return_url": CANCEL})
    assert made.url.endswith(made.id) and made.return_url == CANCEL


# --- payment intents: cards that are charged later ------------------------------------------------------------


def charge(customer: str, card: str, **more: Any) -> Any:
    """The parameters of a payment while the customer is away."""
    return {
        "amount": 2500,
        "currency": "usd",
        "customer": customer,
        "payment_method": card,
        "off_session": True,
        "confirm": True,
        **more,
    }


async def test_a_saved_card_is_charged_while_its_owner_is_away(till: Till, client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({})
    order = credits(customer=alice.id, payment_intent_data={"setup_future_usage": "off_session"})
    till.pay((await client.v1.checkout.sessions.create_async(order)).id)
    cards = (await client.v1.payment_methods.list_async({"customer": alice.id, "type": "card"})).data
    assert [each.card.last4 for each in cards if each.card is not None] == ["4242"]
    paid = await client.v1.payment_intents.create_async(charge(alice.id, cards[0].id, metadata={"top_up": "1"}))
    assert (paid.status, paid.amount_received) == ("succeeded", 2500)
    charges = (await client.v1.charges.list_async({"payment_intent": paid.id})).data
    assert [(each.amount, each.paid, each.metadata["top_up"]) for each in charges] == [(2500, True, "1")]


async def test_a_card_is_saved_only_where_that_was_asked_for_and_it_was_good(
    till: Till, client: stripe.StripeClient
) -> None:
    alice = await client.v1.customers.create_async({})
    till.pay((await client.v1.checkout.sessions.create_async(credits(customer=alice.id))).id)
    order = credits(customer=alice.id, payment_intent_data={"setup_future_usage": "off_session"})
    till.pay((await client.v1.checkout.sessions.create_async(order)).id, card="card_declined")
    assert (await client.v1.customers.payment_methods.list_async(alice.id)).data == []


@pytest.mark.parametrize(
    ("behaviour", "code", "decline"),
    [
        ("card_declined", "card_declined", "generic_decline"),
        ("insufficient_funds", "card_declined", "insufficient_funds"),
        ("expired_card", "expired_card", "expired_card"),
        ("authentication_required", "authentication_required", "authentication_required"),
    ],
)
async def test_a_card_that_declines_is_a_402_that_shows_the_payment(
    till: Till, client: stripe.StripeClient, behaviour: str, code: str, decline: str
) -> None:
    alice = await client.v1.customers.create_async({})
    card = till.card(alice.id, behaviour)["object"]["id"]
    with pytest.raises(stripe.CardError) as declined:
        await client.v1.payment_intents.create_async(charge(alice.id, card))
    assert (declined.value.http_status, declined.value.code) == (402, code)
    error: Any = declined.value.error
    assert (error.type, error.decline_code, error.payment_intent.status) == (
        "card_error",
        decline,
        "requires_payment_method",
    )
    failed: Any = await client.v1.payment_intents.retrieve_async(error.payment_intent.id, {"expand": ["latest_charge"]})
    assert (failed.last_payment_error.code, failed.latest_charge.status) == (code, "failed")


async def test_a_bank_debit_is_processing_until_it_ends(till: Till, client: stripe.StripeClient) -> None:
    alice = await client.v1.customers.create_async({})
    card = till.card(alice.id, "processing")["object"]["id"]
    for verb, status in (("succeed", "succeeded"), ("fail", "requires_payment_method")):
        made = await client.v1.payment_intents.create_async(charge(alice.id, card))
        assert (made.status, made.amount_received) == ("processing", 0)
        till.do(f"payments/{made.id}/{verb}")
        assert (await client.v1.payment_intents.retrieve_async(made.id)).status == status
        with pytest.raises(ControlError):
            till.do(f"payments/{made.id}/{verb}")


async def test_a_card_of_somebody_else_cannot_be_charged(till: Till, client: stripe.StripeClient) -> None:
    alice, mallory = [await client.v1.customers.create_async({}) for _ in range(2)]
    card = till.card(alice.id, "ok")["object"]["id"]
    for wrong in (charge(mallory.id, card), charge(mallory.id, "pm_none")):
        with pytest.raises(stripe.InvalidRequestError):
            await client.v1.payment_intents.create_async(wrong)
    till.do(f"customers/{alice.id}/detach")
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.payment_intents.create_async(charge(alice.id, card))
    assert till.objects("charge") == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"amount": 49}, "amount"),
        ({"payment_method_types": ["card"]}, "payment_method_types"),
        ({"confirm": False}, "off_session"),
        ({"payment_method": None}, "payment_method"),
        ({"customer": None}, "customer"),
        ({"off_session": False}, "return_url"),
        ({"currency": "USD"}, "currency"),
    ],
)
async def test_each_mistake_in_a_payment_is_named(
    till: Till, client: stripe.StripeClient, change: dict[str, Any], param: str
) -> None:
    alice = await client.v1.customers.create_async({})
    asked = charge(alice.id, till.card(alice.id, "ok")["object"]["id"]) | change
    given: Any = {name: each for name, each in asked.items() if each is not None}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.payment_intents.create_async(given)
    assert refused.value.param == param


async def test_a_payment_that_was_not_made_can_be_canceled(till: Till, client: stripe.StripeClient) -> None:
    made = await client.v1.payment_intents.create_async({"amount": 1000, "currency": "usd"})
    assert (await client.v1.payment_intents.cancel_async(made.id)).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.payment_intents.cancel_async(made.id)


# --- meters ---------------------------------------------------------------------------------------------------


async def test_usage_is_reported_once_for_an_identifier(till: Till, client: stripe.StripeClient) -> None:
    usage: Any = {
        "event_name": "tokens",
        "identifier": "use_1",
        "payload": {"stripe_customer_id": "cus_1", "value": "25"},
    }
    made = await client.v1.billing.meter_events.create_async(usage)
    assert (made.identifier, made.payload["value"]) == ("use_1", "25")
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.billing.meter_events.create_async(usage)
    assert refused.value.param == "identifier"
    cancel: Any = {"type": "cancel", "event_name": "tokens", "cancel": {"identifier": "use_1"}}
    assert (await client.v1.billing.meter_event_adjustments.create_async(cancel)).status == "complete"
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.billing.meter_event_adjustments.create_async(cancel)


@pytest.mark.parametrize(
    ("off_s", "good"), [(-35 * 86400 + 60, True), (-35 * 86400 - 60, False), (240, True), (360, False)]
)
def test_usage_is_neither_too_old_nor_of_the_future(till: Till, off_s: int, good: bool) -> None:
    form = f"event_name=t&payload[stripe_customer_id]=c&payload[value]=1&timestamp={till.now() + off_s}"
    assert (till.ask("POST", "/v1/billing/meter_events", form)[0] == 200) == good


# --- faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("error_429", stripe.RateLimitError),
        ("error_409", stripe.APIError),
        ("error_500", stripe.APIError),
        ("error_503", stripe.APIError),
        ("cut", stripe.APIConnectionError),
    ],
)
async def test_a_fault_before_the_effect_leaves_nothing(
    till: Till, client: stripe.StripeClient, kind: str, error: type[Exception]
) -> None:
    till.fault(kind, method="POST", path="/v1/customers")
    with pytest.raises(error):
        await client.v1.customers.create_async({}, {"idempotency_key": "alice"})
    assert till.objects("customer") == []
    await client.v1.customers.create_async({}, {"idempotency_key": "alice"})
    assert len(till.objects("customer")) == 1


async def test_after_a_cut_the_key_tells_the_truth(till: Till, client: stripe.StripeClient) -> None:
    till.fault("cut_after")
    with pytest.raises(stripe.APIConnectionError):
        await client.v1.customers.create_async({"name": "Alice"}, {"idempotency_key": "alice"})
    assert len(till.objects("customer")) == 1 and till.requests()[-1]["status"] is None
    again = await client.v1.customers.create_async({"name": "Alice"}, {"idempotency_key": "alice"})
    assert [again.id] == [each["id"] for each in till.objects("customer")]


async def test_after_a_cut_without_a_key_there_are_two(till: Till, client: stripe.StripeClient) -> None:
    till.fault("cut_after")
    with pytest.raises(stripe.APIConnectionError):
        await client.v1.customers.create_async({"name": "Alice"})
    await client.v1.customers.create_async({"name": "Alice"})
    assert len(till.objects("customer")) == 2


async def test_an_error_after_the_effect_is_what_its_key_replays(till: Till, client: stripe.StripeClient) -> None:
    till.fault("error_500_after")
    for _ in range(2):
        with pytest.raises(stripe.APIError) as failed:
            await client.v1.customers.create_async({}, {"idempotency_key": "alice"})
        assert failed.value.headers is not None
        assert failed.value.headers["stripe-should-retry"] == "false"
    assert len(till.objects("customer")) == 1


async def test_the_library_itself_gets_over_a_cut(till: Till) -> None:
    http = stripe.AIOHTTPClient()
    client = stripe.StripeClient(KEY, base_addresses={"api": till.url}, http_client=http, max_network_retries=2)
    till.fault("cut_after")
    till.fault("error_503")
    await client.v1.customers.create_async({"name": "Alice"})
    assert len(till.objects("customer")) == 1
    assert [(each["fault"], each["replayed"]) for each in till.requests()] == [
        ("cut_after", False),
        ("error_503", False),
        (None, True),
    ]
    await http.close_async()  # type: ignore[no-untyped-call]


async def test_a_client_that_gives_up_waiting_can_ask_again(till: Till, client: stripe.StripeClient) -> None:
    for kind, made in (("hang", 0), ("hang_after", 1)):
        till.reset()
        till.fault(kind, seconds=30)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.v1.customers.create_async({}, {"idempotency_key": "alice"}), 0.3)
        assert len(till.objects("customer")) == made
        await client.v1.customers.create_async({}, {"idempotency_key": "alice"})
        assert len(till.objects("customer")) == 1, kind


async def test_an_answer_can_lie_and_can_be_no_json(till: Till, client: stripe.StripeClient) -> None:
    order = await client.v1.checkout.sessions.create_async(credits())
    till.fault("lie", method="GET", set={"amount_total": 1, "total_details.amount_tax": 7})
    lie = await client.v1.checkout.sessions.retrieve_async(order.id)
    assert lie.amount_total == 1 and lie.total_details is not None and lie.total_details.amount_tax == 7
    assert (await client.v1.checkout.sessions.retrieve_async(order.id)).amount_total == 1000
    till.fault("not_json")
    with pytest.raises(stripe.APIError):
        await client.v1.checkout.sessions.retrieve_async(order.id)


def test_faults_strike_whom_they_are_for_and_as_often_as_told(till: Till) -> None:
    till.fault("error_500", method="GET", path="/v1/customers*", times=2, skip=1)
    asked = [till.ask("GET", "/v1/customers")[0] for _ in range(4)]
    assert asked == [200, 500, 500, 200]
    till.fault("error_500", path="/v1/refunds")
    assert till.ask("GET", "/v1/customers")[0] == 200
    till.no_faults()
    assert till.ask("GET", "/v1/refunds")[0] == 200
