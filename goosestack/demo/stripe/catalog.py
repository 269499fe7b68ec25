"""Products and prices."""

from __future__ import annotations

from typing import Any

from goosestack.demo.strict import Json
from goosestack.demo.stripe import form
from goosestack.demo.stripe.account import Account, with_metadata
from goosestack.demo.stripe.form import refused

TAX = form.choice("exclusive", "inclusive", "unspecified")
PRODUCT_FIELDS = {"description": form.text(), "metadata": form.metadata, "name": form.text(250)}
CREATE_PRODUCT = form.Fields(
    {**PRODUCT_FIELDS, "active": form.boolean, "expand": form.expand, "id": form.text(250)}, required=["name"]
)
LIST_PRODUCTS = form.listing(active=form.boolean, created=form.span)
INTERVAL = {"interval": form.choice("day", "week", "month", "year"), "interval_count": form.integer(1, 36)}
CREATE_PRICE = form.Fields(
    {
        "active": form.boolean,
        "currency": form.currency,
        "expand": form.expand,
        "lookup_key": form.text(200),
        "metadata": form.metadata,
        "nickname": form.text(),
        "product": form.text(),
        "product_data": form.Fields({"metadata": form.metadata, "name": form.text(250)}, required=["name"]),
        "recurring": form.Fields({**INTERVAL, "usage_type": form.choice("licensed")}, required=["interval"]),
        "tax_behavior": TAX,
        "unit_amount": form.integer(),
    },
    required=["currency", "unit_amount"],
)
LIST_PRICES = form.listing(
    active=form.boolean,
    created=form.span,
    currency=form.currency,
    lookup_keys=form.Items(form.text(200), most=10),
    product=form.text(),
    type=form.choice("one_time", "recurring"),
)
PRICE_DATA = form.Fields(
    {
        "currency": form.currency,
        "product": form.text(),
        "product_data": form.Fields(PRODUCT_FIELDS, required=["name"]),
        "recurring": form.Fields(INTERVAL, required=["interval"]),
        "tax_behavior": TAX,
        "unit_amount": form.integer(),
    },
    required=["currency", "unit_amount"],
)


def create_product(account: Account, given: Json) -> Json:
    """POST /v1/products."""
    if given.get("id") in account.objects:
        raise refused("resource_already_exists", f"Product already exists: {given['id']}", "id")
    record = account.add(
        "product",
        "prod_",
        active=given.get("active", True),
        default_price=None,
        description=given.get("description"),
        images=[],
        marketing_features=[],
        metadata=with_metadata({}, given),
        name=given["name"],
        package_dimensions=None,
        shippable=None,
        statement_descriptor=None,
        tax_code=None,
        type="service",
        unit_label=None,
        updated=account.now,
        url=None,
    )
    if "id" in given:
        account.objects[given["id"]] = account.objects.pop(record["id"])
        record["id"] = given["id"]
    return record


def create_price(account: Account, given: Json, where: str = "", active: bool = True) -> Json:
    """POST /v1/prices, and the price that `price_data` of a line describes; `where` names that for errors."""
    if ("product" in given) == ("product_data" in given):
        name = f"{where}[product]" if where else "product"
        raise refused("parameter_missing", "A price has a product or product_data, one of them.", name)
    if "product" in given:
        product = account.get("product", given["product"], f"{where}[product]" if where else "product")
    else:
        product = create_product(account, given["product_data"])
    recurring = given.get("recurring")
    if recurring is not None:
        recurring = {
            "interval": recurring["interval"],
            "interval_count": recurring.get("interval_count", 1),
            "meter": None,
            "usage_type": "licensed",
        }
    key = given.get("lookup_key")
    if key is not None and account.all("price", lookup_key=key):
        raise refused("resource_already_exists", f"A price has the lookup key {key} already.", "lookup_key")
    return account.add(
        "price",
        "price_",
        active=given.get("active", active),
        billing_scheme="per_unit",
        currency=given["currency"],
        custom_unit_amount=None,
        lookup_key=key,
        metadata=with_metadata({}, given),
        nickname=given.get("nickname"),
        product=product["id"],
        recurring=recurring,
        tax_behavior=given.get("tax_behavior", "unspecified"),
        tiers_mode=None,
        transform_quantity=None,
        type="one_time" if recurring is None else "recurring",
        unit_amount=given["unit_amount"],
        unit_amount_decimal=str(given["unit_amount"]),
    )


def found_prices(account: Account, given: Json) -> list[Json]:
    """The prices that a list asks for."""
    equal: dict[str, Any] = {name: given[name] for name in ("active", "currency", "product", "type") if name in given}
    found = account.all("price", **equal)
    return [each for each in found if each["lookup_key"] in given.get("lookup_keys", [each["lookup_key"]])]
