"""The fake Stripe's pages, and the program that serves them."""

from __future__ import annotations

import http.client
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from goosestack.demo import stripe as fake
from tests.tills import SECRET, ControlError, Till
from tests.world import Program, bare_environment

CHECKOUT = {
    "mode": "payment",
    "success_url": "https://a.example/?x=<1>&id={CHECKOUT_SESSION_ID}",
    "cancel_url": "https://a.example/?a=1&b=2",
    "line_items[0][quantity]": "2",
    "line_items[0][price_data][currency]": "usd",
    "line_items[0][price_data][unit_amount]": "123456",
    "line_items[0][price_data][product_data][name]": "<script>alert('goose')</script>",
}
PRO = {"mode": "subscription", "line_items[0][price_data][recurring][interval]": "month"}


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


def made(till: Till, **more: str) -> dict[str, Any]:
    """A new checkout."""
    status, body, _ = till.ask("POST", "/v1/checkout/sessions", urlencode({**CHECKOUT, **more}))
    assert status == 200, body
    return body


def browse(url: str, **form: str) -> tuple[int, str, str]:
    """Status, text and where it leads to, of a page or of a form that is sent to it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        if form:
            connection.request(
                "POST", parts.path, urlencode(form), {"content-type": "application/x-www-form-urlencoded"}
            )
        else:
            connection.request("GET", parts.path)
        answer = connection.getresponse()
        assert "default-src 'none'" in answer.headers.get("content-security-policy", "default-src 'none'")
        return answer.status, answer.read().decode(), answer.headers.get("location", "")
    finally:
        connection.close()


# --- checkout -------------------------------------------------------------------------------------------------


def test_the_page_says_that_no_money_moves_and_what_is_bought(till: Till) -> None:
    status, page, _ = browse(made(till)["url"])
    assert status == 200 and "No money moves" in page
    assert "$2,469.12" in page and ">Pay $2,469.12</button>" in page
    assert 'href="https://a.example/?a=1&amp;b=2">Cancel</a>' in page
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_paying_leads_back_with_the_id_of_the_checkout(till: Till) -> None:
    checkout = made(till)
    status, _, where = browse(checkout["url"], card="ok")
    assert status == 303 and where.endswith(f"&id={checkout['id']}")
    assert till.object(checkout["id"])["payment_status"] == "paid"
    status, page, _ = browse(checkout["url"], card="ok")
    assert status == 410 and "complete" in page
    assert len(till.objects("charge")) == 1


def test_a_declined_card_can_try_again(till: Till) -> None:
    checkout = made(till)
    status, page, _ = browse(checkout["url"], card="card_declined")
    assert status == 200 and "declined" in page and "Pay $" in page
    assert browse(checkout["url"], card="ok")[0] == 303


def test_a_form_that_says_nothing_pays_nothing(till: Till) -> None:
    checkout = made(till)
    assert browse(checkout["url"], card="stolen")[0] == 200
    assert till.objects("charge") == []


def test_what_is_expired_or_unknown_cannot_be_paid(till: Till) -> None:
    checkout = made(till)
    till.do(f"checkouts/{checkout['id']}/expire")
    assert browse(checkout["url"])[0] == 410
    assert browse(checkout["url"], card="ok")[0] == 410
    for path in ("/c/pay/cs_none", "/p/session/bps_none", "/i/in_none", "/r/ch_none", f"/i/{checkout['id']}"):
        assert browse(till.url + path)[0] == 404


# --- portal, invoice, receipt ---------------------------------------------------------------------------------


def test_the_portal_cancels_and_resumes(till: Till) -> None:
    customer = till.ask("POST", "/v1/customers", "email=bob@example.com")[1]["id"]
    checkout = made(till, customer=customer, **PRO)
    assert "per month" in browse(checkout["url"])[1]
    browse(checkout["url"], card="ok")
    subscription = till.object(checkout["id"])["subscription"]
    portal = till.ask("POST", "/v1/billing_portal/sessions", f"customer={customer}&return_url=https://a.example/")[1]
    assert "Cancel subscription" in browse(portal["url"])[1]
    for do, ending in (("cancel", True), ("resume", False)):
        status, _, where = browse(portal["url"], do=do, subscription=subscription)
        assert (status, till.object(subscription)["cancel_at_period_end"]) == (303, ending)
        assert ("Keep it" in browse(till.url + where)[1]) == ending
    assert 'href="https://a.example/"' in browse(portal["url"])[1]


def test_the_portal_is_for_ones_own_subscription(till: Till) -> None:
    bob, mallory = [till.ask("POST", "/v1/customers")[1]["id"] for _ in range(2)]
    checkout = made(till, customer=bob, **PRO)
    browse(checkout["url"], card="ok")
    subscription = till.object(checkout["id"])["subscription"]
    portal = till.ask("POST", "/v1/billing_portal/sessions", f"customer={mallory}")[1]["url"]
    assert "no subscription" in browse(portal)[1]
    assert browse(portal, do="cancel", subscription=subscription)[0] == 404
    assert till.object(subscription)["cancel_at_period_end"] is False


def test_what_was_paid_has_a_page(till: Till) -> None:
    checkout = made(till, **{"invoice_creation[enabled]": "true"})
    till.pay(checkout["id"])
    till.refund(checkout["id"], 12)
    invoice, charge = till.objects("invoice")[0], till.objects("charge")[0]
    for url in (invoice["hosted_invoice_url"], invoice["invoice_pdf"]):
        status, page, _ = browse(url)
        assert status == 200 and invoice["number"] in page and "$2,469.12" in page and "<script>" not in page
    status, page, _ = browse(charge["receipt_url"])
    assert status == 200 and "$0.12" in page


# --- the program ----------------------------------------------------------------------------------------------


def test_it_runs_as_a_program_until_sigterm(folder: Path) -> None:
    till = Till.start(folder)
    assert till.ask("GET", "/v1/account")[1]["charges_enabled"] is True
    assert till.program.stop(signal.SIGTERM) == 0
    assert till.program.text().count("\n") == 1, till.program.text()


def test_a_webhook_needs_a_secret(folder: Path) -> None:
    program = Program(
        ["goosestack.demo.stripe", "--webhook", "http://127.0.0.1:1/"], bare_environment(), folder / "out", folder
    )
    assert program.process.wait(30) == 2
    assert "--secret" in program.text()


def test_without_a_key_of_its_own_it_takes_any_test_key(folder: Path) -> None:
    program = Program(["goosestack.demo.stripe"], bare_environment(), folder / "out", folder)
    till = Till(program, program.wait_for(r"listening on (\S+)").group(1))
    assert till.ask("GET", "/v1/balance", key="sk_test_anything")[0] == 200
    assert till.ask("GET", "/v1/balance", key="sk_live_anything")[0] == 401
    till.stop()


async def test_it_runs_inside_another_program(folder: Path) -> None:
    till = fake.Till()
    runner, port = await fake.start(till)
    till.send_webhooks_to("http://127.0.0.1:9/", SECRET)
    assert till.base_url == f"http://127.0.0.1:{port}"
    await runner.cleanup()


# --- what is written about the control API --------------------------------------------------------------------


def test_the_control_api_takes_json_alone_which_no_page_of_others_can_send(till: Till) -> None:
    address = urlsplit(till.url).netloc
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("POST", "/_control/clock", '{"advance_s": 99}', {"content-type": content_type})
        assert connection.getresponse().status == 400
        connection.close()
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/_control/clock", '{"advance_s": ', {"content-type": "application/json"})
    assert connection.getresponse().status == 400
    connection.close()


def test_every_control_call_is_written_about(till: Till) -> None:
    text = fake.__doc__ or ""
    sections = {part.split("/")[0]: part for part in re.split(r"`POST /_control/", text)[1:]}
    for path in fake.VERBS:
        kind, _, verb = path.partition("/")
        assert re.search(rf"\b{verb}\b", sections[kind]), path
    for kind in fake.FAULTS:
        assert re.search(rf"\b{kind}\b", text.partition("Faults of the API")[2]), kind
    for name in till.call("GET", "/delivery"):
        assert re.search(rf"^        {name} ", text, re.MULTILINE), name


def test_a_control_call_without_a_body_is_one_with_nothing_in_it(till: Till) -> None:
    checkout = made(till)
    assert till.call("POST", f"/checkouts/{checkout['id']}/pay")["object"]["status"] == "complete"
    with pytest.raises(ControlError):
        till.call("POST", "/deliver", [])
