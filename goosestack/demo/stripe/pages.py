"""The pages that a customer sees: a checkout, the portal, an invoice, a receipt. No money moves on any of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from aiohttp import web

from goosestack.demo.strict import Json, Refusal
from goosestack.demo.stripe import checkout, subscriptions
from goosestack.demo.stripe.till import Till

PATIENCE_S = 10.0  # that a customer waits for the seller to hear of the payment, before being sent back
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 32rem; margin: 3rem auto; padding: 0 1rem; color: #1a1a1a }
aside { background: #fff3cd; border: 1px solid #d9b64c; border-radius: 6px; padding: .75rem 1rem; margin-bottom: 2rem }
table { width: 100%; border-collapse: collapse } td { padding: .4rem 0; border-bottom: 1px solid #ddd }
td:last-child { text-align: right } form { margin-top: 1.5rem }
button, a.button { font: inherit; display: inline-block; padding: .5rem 1.25rem; margin: 0 .5rem .5rem 0;
  border: 1px solid #888; border-radius: 6px; background: #fff; color: inherit; text-decoration: none; cursor: pointer }
button.main { background: #1a1a1a; border-color: #1a1a1a; color: #fff }
"""
NOTICE = "<strong>This is a demo. No money moves.</strong> Nobody is asked for a card, and none is charged."


def page_routes(till: Till) -> list[web.RouteDef]:
    """The pages of a till."""
    pages = _Pages(till)
    return [
        web.get("/c/pay/{id}", pages.show_checkout),
        web.post("/c/pay/{id}", pages.pay),
        web.get("/p/session/{id}", pages.show_portal),
        web.post("/p/session/{id}", pages.change),
        web.get("/i/{id}", pages.show_invoice),
        web.get("/i/{id}/pdf", pages.show_invoice),
        web.get("/r/{id}", pages.show_receipt),
    ]


class _Pages:
    def __init__(self, till: Till) -> None:
        self.till = till

    def find(self, kind: str, request: web.Request) -> Json:
        record = self.till.account.find(kind, request.match_info["id"])
        if record is None:
            raise web.HTTPNotFound(text=page("Not found", "<p>There is no such page.</p>"), content_type="text/html")
        return record

    # --- checkout ---

    async def show_checkout(self, request: web.Request) -> web.Response:
        return self.answer_checkout(self.find("checkout.session", request))

    def answer_checkout(self, record: Json, problem: str = "") -> web.Response:
        if record["status"] != "open":
            return answer("Checkout", f"<p>This checkout is {escape(record['status'])}.</p>", status=410)
        total = money(record["amount_total"], record["currency"])
        every = record["_line_items"][0]["price"]["recurring"]
        if every is not None:
            total += f" per {every['interval']}"
        lines = [
            (f"{line['quantity']} × {line['description']}", _amount(line, "amount_total"))
            for line in record["_line_items"]
        ]
        details = record["customer_details"]
        paid_by = f"<p>Paid by {escape(details['email'] or 'you')}</p>" if details is not None else ""
        cancel = ""
        if record["cancel_url"] is not None:
            cancel = f'<a class="button" href="{escape(record["cancel_url"])}">Cancel</a>'
        body = f"""{f"<p><strong>{escape(problem)}</strong></p>" if problem else ""}
{table([*lines, ("Total", total)])}
{paid_by}
<form method="post">
<button class="main" name="card" value="ok">Pay {escape(total)}</button>
<button name="card" value="card_declined">Pay with a card that is declined</button>
{cancel}
</form>"""
        return answer("Checkout", body)

    async def pay(self, request: web.Request) -> web.Response:
        record = self.find("checkout.session", request)
        card = (await request.post()).get("card")
        if card not in ("ok", "card_declined"):
            return self.answer_checkout(record, "Choose one of the buttons.")
        try:
            declined = checkout.pay(self.till.account, record["id"], behaviour=None if card == "ok" else card)
        except Refusal as refusal:
            return self.answer_checkout(record, refusal.message)
        await self.told()
        if declined is not None:
            return self.answer_checkout(record, declined.message)
        raise web.HTTPSeeOther(record["success_url"].replace("{CHECKOUT_SESSION_ID}", record["id"]))

    async def told(self) -> None:
        """Until the seller has heard of it, or is too slow."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self.till.settle()

    # --- portal ---

    async def show_portal(self, request: web.Request) -> web.Response:
        record = self.find("billing_portal.session", request)
        account = self.till.account
        found = [
            each for each in account.all("subscription", customer=record["customer"]) if each["status"] != "canceled"
        ]
        back = ""
        if record["return_url"] is not None:
            back = f'<p><a class="button" href="{escape(record["return_url"])}">Back</a></p>'
        body = "\n".join(map(_subscription, found)) or "<p>You have no subscription.</p>"
        return answer("Your subscriptions", body + back)

    async def change(self, request: web.Request) -> web.Response:
        record = self.find("billing_portal.session", request)
        sent = await request.post()
        subscription = self.till.account.find("subscription", str(sent.get("subscription")))
        known = subscription is not None and subscription["customer"] == record["customer"]
        if not known or sent.get("do") not in ("cancel", "resume"):
            return answer("Your subscriptions", "<p>There is no such subscription.</p>", status=404)
        given = {"cancel_at_period_end": sent["do"] == "cancel"}
        try:
            subscriptions.update(self.till.account, given, str(sent["subscription"]))
        except Refusal as refusal:
            return answer("Your subscriptions", f"<p>{escape(refusal.message)}</p>", status=refusal.status)
        await self.told()
        raise web.HTTPSeeOther(request.path)

    # --- what was paid ---

    async def show_invoice(self, request: web.Request) -> web.Response:
        record = self.find("invoice", request)
        lines = [
            (f"{line['quantity']} × {line['description']}", _amount(line, "amount")) for line in record["lines"]["data"]
        ]
        body = table([*lines, ("Total", _amount(record, "total")), ("Status", record["status"])])
        return answer(f"Invoice {record['number']}", body)

    async def show_receipt(self, request: web.Request) -> web.Response:
        record = self.find("charge", request)
        rows = [("Paid", _amount(record, "amount_captured")), ("Refunded", _amount(record, "amount_refunded"))]
        return answer("Receipt", table([*rows, ("Date", date(record["created"]))]))


def _subscription(record: Json) -> str:
    end = date(subscriptions.period_end(record))
    rows = [
        (item["price"]["id"], money(item["price"]["unit_amount"], record["currency"]))
        for item in record["items"]["data"]
    ]
    ending = record["cancel_at_period_end"]
    do, label = ("resume", "Keep it") if ending else ("cancel", "Cancel subscription")
    return f"""{table([*rows, ("Status", record["status"]), ("Ends" if ending else "Renews", end)])}
<form method="post"><input type="hidden" name="subscription" value="{escape(record["id"])}">
<button name="do" value="{do}">{label}</button></form>"""


def _amount(record: Json, field: str) -> str:
    return money(record[field], record["currency"])


def money(cents: int, currency: str) -> str:
    """$10.00, and other currencies by their code."""
    amount = f"{cents // 100:,}.{cents % 100:02}"
    return f"${amount}" if currency == "usd" else f"{amount} {currency.upper()}"


def date(at: int) -> str:
    """A day, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values."""
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def page(title: str, body: str) -> str:
    """A whole page; its body is HTML, and says first what this is."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)} (demo)</title><style>{STYLE}</style>
<aside>{NOTICE}</aside>
<h1>{escape(title)}</h1>
{body}
</html>
"""


def answer(title: str, body: str, status: int = 200) -> web.Response:
    """A page as a response."""
    return web.Response(text=page(title, body), content_type="text/html", status=status, headers=HEADERS)
