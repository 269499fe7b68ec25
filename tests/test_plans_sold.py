"""A plan that is bought: from a price at Stripe, through a checkout, invoices and webhooks, to what a user may use.

Three programs: the gateway, the fake Stripe, and the upstream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from goosestack.subscriptions import iso
from tests.asking import ask
from tests.shops import Shop, make_price
from tests.test_allowance import use
from tests.tills import Till
from tests.world import Customer


@dataclass(frozen=True, slots=True)
class Sale:
    """A shop with two plans, at a price each."""

    shop: Shop
    basic: str
    pro: str

    def post(self, path: str, **given: object) -> dict[str, Any]:
        """A request of the operator's other program, which sells by Stripe's API."""
        form = urlencode({name: str(value) for name, value in given.items()})
        status, answer, _ = self.shop.till.ask("POST", path, form)
        assert status == 200, answer
        return answer

    def subscribe(self, customer: Customer, price: str) -> str:
        """A checkout of a subscription, paid; the subscription's id."""
        self.shop.checkout(customer)  # makes the customer
        ((known,),) = self.shop.rows("SELECT stripe_customer_id FROM users WHERE id = ?", customer.id)
        line = {"line_items[0][price]": price, "line_items[0][quantity]": 1}
        pages = {"success_url": "https://llm.example.com/", "cancel_url": "https://llm.example.com/"}
        checkout = self.post("/v1/checkout/sessions", mode="subscription", customer=known, **line, **pages)["id"]
        self.shop.till.pay(checkout)
        return str(self.shop.till.object(checkout)["subscription"])

    def change(self, subscription: str, price: str, behaviour: str) -> None:
        """Another price from now on."""
        (item,) = self.shop.till.object(subscription)["items"]["data"]
        asked = {"items[0][id]": item["id"], "items[0][price]": price, "proration_behavior": behaviour}
        self.post(f"/v1/subscriptions/{subscription}", **asked)
        self.shop.till.settle()

    def ends(self, subscription: str) -> str:
        """The end of its period, as Stripe has it."""
        (item,) = self.shop.till.object(subscription)["items"]["data"]
        return iso(item["current_period_end"])

    def me(self, customer: Customer) -> Any:
        return ask(self.shop.world, "GET", "/api/me", key=customer.key).json()


def table(basic: str, pro: str) -> str:
    return f"[basic]\nstripe_prices = [{basic!r}]\n[pro]\nstripe_prices = [{pro!r}]\n"


@pytest.fixture(scope="module")
def sale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sale]:
    """One shop for all of these tests."""
    folder: Path = tmp_path_factory.mktemp("sale")
    till = Till.start(folder)
    basic, pro = make_price(till, 500), make_price(till, 2_000)
    (folder / "plans.toml").write_text(table(basic, pro))
    settings: Any = {"FUNDING": "allowance", "PLANS_FILE": str(folder / "plans.toml")}
    shop = Shop.open(folder, till=till, **settings)
    yield Sale(shop, basic, pro)
    shop.close()


def test_a_price_that_is_paid_for_gives_its_plan_for_the_subscriptions_own_month(sale: Sale) -> None:
    carol = sale.shop.world.customer(0, name="carol")
    assert sale.me(carol)["plan"] == "free"
    subscription = sale.subscribe(carol, sale.basic)
    shown = sale.me(carol)
    assert (shown["plan"], shown["quota"], shown["reset"]) == ("basic", 500_000, sale.ends(subscription))
    assert use(sale.shop.world, carol, 4_000).status == 200
    first = sale.ends(subscription)
    sale.shop.till.renew(subscription, "paid")  # the next month, paid before this one is over
    assert (sale.me(carol)["used"], sale.me(carol)["reset"]) == (4_000, first)
    assert sale.ends(subscription) > first


def test_an_upgrade_that_is_paid_for_adds_the_difference_at_once_and_a_downgrade_takes_nothing(sale: Sale) -> None:
    carol = sale.shop.world.customer(0, name="carol")
    subscription = sale.subscribe(carol, sale.basic)
    assert use(sale.shop.world, carol, 4_000).status == 200
    before = sale.me(carol)
    sale.change(subscription, sale.pro, "always_invoice")
    after = sale.me(carol)
    assert (after["plan"], after["remaining"]) == ("pro", 2_000_000 - 4_000)
    assert (after["used"], after["reset"]) == (before["used"], before["reset"]), "the same month goes on"
    sale.change(subscription, sale.basic, "none")
    assert sale.me(carol)["plan"] == "pro"
    sale.shop.till.renew(subscription, "paid")
    assert sale.me(carol)["plan"] == "pro", "until the month is over"
    sale.shop.till.do(f"subscriptions/{subscription}/cancel")
    assert sale.me(carol)["plan"] == "free"


@pytest.mark.parametrize("shape", ["new", "old"])
def test_an_upgrade_that_is_not_paid_for_yet_gives_nothing(sale: Sale, shape: str) -> None:
    carol = sale.shop.world.customer(0, name="carol")
    sale.shop.till.delivery(shape=shape)
    try:
        subscription = sale.subscribe(carol, sale.basic)
        sale.shop.till.card(sale.shop.till.object(subscription)["customer"], "card_declined")
        sale.change(subscription, sale.pro, "always_invoice")
        assert sale.me(carol)["plan"] == "basic"
        assert sale.shop.till.object(subscription)["status"] == "past_due"
        sale.shop.till.do(f"subscriptions/{subscription}/retry", outcome="paid")
        assert sale.me(carol)["plan"] == "pro"
    finally:
        sale.shop.till.call("DELETE", "/delivery")


def test_an_upgrade_that_is_asked_for_with_the_next_invoice_counts_from_that_one_on(sale: Sale) -> None:
    carol = sale.shop.world.customer(0, name="carol")
    subscription = sale.subscribe(carol, sale.basic)
    sale.change(subscription, sale.pro, "create_prorations")
    assert sale.me(carol)["plan"] == "basic"
    sale.shop.till.renew(subscription, "paid")
    (last,) = sale.shop.till.objects("invoice")[-1:]
    assert [line["amount"] for line in last["lines"]["data"]] in ([-500, 2_000, 2_000], [-499, 1_999, 2_000])
    assert sale.me(carol)["plan"] == "pro"


def test_the_fake_refuses_a_change_of_price_that_it_does_not_know(sale: Sale) -> None:
    carol = sale.shop.world.customer(0, name="carol")
    subscription = sale.subscribe(carol, sale.pro)
    (item,) = sale.shop.till.object(subscription)["items"]["data"]

    def refused(**asked: str) -> str:
        status, answer, _ = sale.shop.till.ask("POST", f"/v1/subscriptions/{subscription}", urlencode(asked))
        assert status in (400, 404), answer
        return str(answer["error"]["param"])

    to_basic = {"items[0][id]": item["id"], "items[0][price]": sale.basic}
    assert refused(**to_basic, proration_behavior="always_invoice") == "items[0][price]"
    assert refused(**{**to_basic, "items[0][id]": "si_other"}) == "items[0][id]"
    assert refused(**{**to_basic, "items[0][price]": "price_other"}) == "items[0][price]"
    assert refused(**to_basic, proration_behavior="sometimes") == "proration_behavior"
    assert sale.shop.till.object(subscription)["items"]["data"] == [item]


def test_prices_that_give_other_plans_do_so_from_the_next_start_on(sale: Sale) -> None:
    carol = sale.shop.world.customer(0, name="carol")
    subscription = sale.subscribe(carol, sale.basic)
    path = sale.shop.world.folder / "plans.toml"
    path.write_text(table(sale.pro, sale.basic))
    sale.shop.world.daemon.program.stop()
    sale.shop.restart()
    told = f"by the plans as they are now: {subscription}: pro until"
    assert told in sale.shop.world.daemon.program.text()
    assert sale.me(carol)["plan"] == "pro"
    left = sale.shop.world.verb("stripe_reconcile")["changes"]
    assert not [change for change in left if change.startswith(subscription)], "nothing is left to be found"
    path.write_text(table(sale.basic, sale.pro))
    sale.shop.world.daemon.program.stop()
    sale.shop.restart()
    assert sale.me(carol)["plan"] == "basic"
