"""What an object looks like from outside: in which API version, with what expanded, and in lists."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from goosestack.demo.strict import Json
from goosestack.demo.stripe.account import FIRST_NEW, Account
from goosestack.demo.stripe.form import refused, within

EXPANDABLE: Mapping[str, frozenset[str]] = {
    "charge": frozenset({"customer", "payment_intent", "refunds"}),
    "checkout.session": frozenset({"customer", "invoice", "line_items", "payment_intent", "subscription"}),
    "customer": frozenset({"invoice_settings.default_payment_method", "subscriptions"}),
    "dispute": frozenset({"charge", "payment_intent"}),
    "invoice": frozenset(
        {"customer", "default_payment_method", "payments", "parent.subscription_details.subscription"}
    ),
    "invoice_payment": frozenset({"invoice", "payment.payment_intent"}),
    "payment_intent": frozenset({"customer", "latest_charge", "payment_method"}),
    "payment_method": frozenset({"customer"}),
    "price": frozenset({"product"}),
    "refund": frozenset({"charge", "payment_intent"}),
    "subscription": frozenset({"customer", "default_payment_method", "latest_invoice"}),
}
"""The fields that `expand[]` may name, by the kind of object."""
DEEPEST = 4


# --- versions -------------------------------------------------------------------------------------------------


def shape_of(version: str | None, default: str) -> str:
    """The shape that goes with an API version."""
    if version is None:
        return default
    return "new" if version >= FIRST_NEW else "old"


def public(value: Any) -> Any:
    """A copy without what is the fake's own."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items() if not key.startswith("_")}
    return [public(inner) for inner in value] if isinstance(value, list) else value


def render(record: Json, shape: str = "new") -> Json:
    """An object as a client sees it in one of the two shapes."""
    if record["object"] == "event":
        shown: Json = public(record)
        if not record.get("_as_is", True):  # what has been rendered before says nothing of it
            shown["data"]["object"] = render(record["data"]["object"], shape)
        return shown
    if shape == "old":
        record = copy.deepcopy(record)
        older = {"invoice": _old_invoice, "subscription": _old_subscription, "checkout.session": _old_checkout}
        if record["object"] in older:
            older[record["object"]](record)
        elif record["object"] in ("charge", "payment_intent"):
            record["invoice"] = record["_invoice"]
    found: Json = public(record)
    lies = record.get("_lies", {"set": {}, "unset": []})
    for path in lies["unset"]:
        remove(found, path)
    for path, value in lies["set"].items():
        put(found, path, copy.deepcopy(value))
    return found


def _old_invoice(invoice: Json) -> None:
    parent = invoice.pop("parent") or {"subscription_details": {"subscription": None, "metadata": None}}
    invoice["subscription"] = parent["subscription_details"]["subscription"]
    invoice["subscription_details"] = {"metadata": parent["subscription_details"]["metadata"]}
    invoice["payment_intent"] = invoice["_payment_intent"]
    invoice["charge"] = invoice["_charge"]
    invoice["paid"] = invoice["status"] == "paid"
    for line in invoice["lines"]["data"]:
        details = (line.pop("parent") or {}).get("subscription_item_details") or {}
        line.pop("pricing")
        line["price"] = line["_price"]
        line["subscription"] = details.get("subscription")
        line["subscription_item"] = details.get("subscription_item")
        line["proration"] = details.get("proration", False)
        line["type"] = "subscription" if details else "invoiceitem"


def _old_subscription(subscription: Json) -> None:
    for item in subscription["items"]["data"]:
        subscription["current_period_start"] = item.pop("current_period_start")
        subscription["current_period_end"] = item.pop("current_period_end")


def _old_checkout(checkout: Json) -> None:
    checkout["ui_mode"] = "hosted"


# --- lies -----------------------------------------------------------------------------------------------------


def put(document: Any, path: str, value: Any) -> None:
    """Set a field deep in a document: `data.0.amount`. KeyError where there is no way to it."""
    *steps, last = path.split(".")
    for step in steps:
        document = document[int(step)] if isinstance(document, list) else document[step]
    if isinstance(document, list):
        document[int(last)] = value
    else:
        document[last] = value


def remove(document: Any, path: str) -> None:
    """Take a field away; one that is not there is no matter."""
    *steps, last = path.split(".")
    for step in steps:
        document = document[int(step)] if isinstance(document, list) else document.get(step, {})
    if isinstance(document, dict):
        document.pop(last, None)


# --- expanding ------------------------------------------------------------------------------------------------


def expanded(account: Account, shown: Json, paths: Sequence[str]) -> Json:
    """A rendered object or list, with what `expand[]` asks for in place of ids."""
    for path in paths:
        steps = path.split(".")
        if len([step for step in steps if step != "data"]) > DEEPEST:
            raise refused("parameter_invalid", f"expand goes up to {DEEPEST} levels deep: {path}", "expand")
        _expand(account, shown, steps, path, "", "")
    return shown


def _expand(account: Account, node: Any, steps: Sequence[str], path: str, owner: str, trail: str) -> None:
    """owner: the kind of the object that we are in; trail: the way from there."""
    if not steps or node is None:
        return
    if isinstance(node, list):
        for each in node:
            _expand(account, each, steps, path, owner, trail)
        return
    if not isinstance(node, dict):
        raise _not_expandable(path)
    if node.get("object", "list") != "list":
        owner, trail = node["object"], ""
    head, rest = steps[0], steps[1:]
    trail = f"{trail}.{head}" if trail else head
    if trail in EXPANDABLE.get(owner, ()):
        node[head] = _in_full(account, node, head)
    elif not rest or head not in node:
        raise _not_expandable(path)
    _expand(account, node[head], rest, path, owner, trail)


def _not_expandable(path: str) -> Exception:
    return refused("parameter_invalid", f"This property cannot be expanded ({path}).", "expand")


def _in_full(account: Account, node: Json, field: str) -> Any:
    value = node.get(field)
    if isinstance(value, str):
        return render(account.objects[value])
    if value is not None or field in node:
        return value
    record = account.objects[node["id"]]
    if field == "line_items":
        return everything(record["_line_items"], f"/v1/checkout/sessions/{record['id']}/line_items")
    found, address = {
        "payments": ("invoice_payment", "/v1/invoice_payments"),
        "refunds": ("refund", f"/v1/charges/{record['id']}/refunds"),
        "subscriptions": ("subscription", f"/v1/customers/{record['id']}/subscriptions"),
    }[field]
    return everything(list(reversed(account.all(found, **{record["object"]: record["id"]}))), address)


# --- lists ----------------------------------------------------------------------------------------------------


def everything(records: Sequence[Json], address: str) -> Json:
    """A list object with all of them."""
    data = [render(record) for record in records]
    return {"object": "list", "data": data, "has_more": False, "url": address}


def page(found: Sequence[Json], given: Json, address: str, shape: str = "new") -> Json:
    """A page of records (oldest first, as they are kept) by the parameters of `form.listing`: newest first."""
    ordered = [record for record in reversed(found) if within(record["created"], given.get("created", {}))]
    places = {record["id"]: place for place, record in enumerate(ordered)}
    limit = given.get("limit", 10)

    def place_of(name: str) -> int:
        if given[name] not in places:
            raise refused("resource_missing", f"No such object in this list: '{given[name]}'", name)
        return places[given[name]]

    if "starting_after" in given and "ending_before" in given:
        raise refused("parameter_invalid", "Give starting_after or ending_before, not both.", "ending_before")
    if "ending_before" in given:
        end = place_of("ending_before")
        start = max(0, end - limit)
        more = start > 0
    else:
        start = place_of("starting_after") + 1 if "starting_after" in given else 0
        end = min(len(ordered), start + limit)
        more = end < len(ordered)
    data = [render(record, shape) for record in ordered[start:end]]
    return {"object": "list", "data": data, "has_more": more, "url": address}
