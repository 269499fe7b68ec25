"""The fake Stripe as a process, for tests: started on a free port, and controlled from behind.

    till = Till.start(folder)                      # a process; `till.url` is the API's base
    till.send_webhooks_to(daemon.url + "/billing/webhook", SECRET)
    paid = till.pay(checkout_id)                   # answers once the webhooks were delivered
    paid["events"]                                 # [{"id": "evt_…", "type": "checkout.session.completed"}, …]

Each method is one call of the control API, which `goosestack.demo.stripe` documents; `do` makes any other.
"""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.world import Program, bare_environment

KEY = "sk_test_operator_canary_0003"
SECRET = "whsec_operatorcanary000000000000000004"


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """The URL of somebody in Stripe's place, who answers a request's head with any bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(answer(head))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()


def http(status: str, body: bytes, length: int | None = None) -> bytes:
    """An answer, with a length that may be a lie."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(body) if length is None else length}\r\nconnection: close\r\n\r\n".encode() + body


class ControlError(Exception):
    """The control API has refused a call."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Till:
    """A running fake Stripe. It takes KEY alone."""

    def __init__(self, program: Program, url: str) -> None:
        self.program = program
        self.url = url

    @classmethod
    def start(cls, folder: Path, webhook: str | None = None, secret: str = SECRET, key: str = KEY) -> Till:
        """Start it on a free port; its output goes to `stripe.out` in the folder."""
        args = ["goosestack.demo.stripe", "--port", "0", "--key", key]
        if webhook is not None:
            args += ["--webhook", webhook, "--secret", secret]
        program = Program(args, bare_environment(), folder / "stripe.out", folder)
        return cls(program, program.wait_for(r"listening on (\S+)").group(1))

    def stop(self) -> None:
        """End it at once; what it held is gone."""
        self.program.stop(signal.SIGKILL)

    def ask(
        self, method: str, path: str, form: str = "", key: str = KEY, **headers: str
    ) -> tuple[int, dict[str, Any], Message]:
        """A request of the API itself, with a form as it goes over the wire; status, JSON and headers."""
        sent = {"authorization": f"Bearer {key}", "content-type": "application/x-www-form-urlencoded"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = form.encode() if method == "POST" else None
        address = f"{self.url}{path}" + (f"?{form}" if form and data is None else "")
        request = urllib.request.Request(address, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read()), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), error.headers

    def call(self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Any:
        """Any call of the control API; its JSON answer."""
        address = f"{self.url}/_control{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise ControlError(error.code, json.loads(error.read())["error"]) from None

    def do(self, path: str, **given: Any) -> dict[str, Any]:
        """An action: `do("subscriptions/sub_1/renew", outcome="failed")`; its object and events."""
        done: dict[str, Any] = self.call("POST", f"/{path}", given)
        return done

    # --- customers pay, and want it back ---

    def pay(self, checkout: str, **given: Any) -> dict[str, Any]:
        """Pay a checkout; `method="bank"` completes it unpaid, `card="card_declined"` fails."""
        return self.do(f"checkouts/{checkout}/pay", **given)

    def refund(self, payment: str, amount: int | None = None, **given: Any) -> dict[str, Any]:
        """Refund an amount, or all that is left."""
        return self.do(f"payments/{payment}/refund", **given, **({} if amount is None else {"amount": amount}))

    def dispute(self, payment: str, **given: Any) -> dict[str, Any]:
        """Open a dispute; funds are withdrawn unless `withdraw=False`."""
        return self.do(f"payments/{payment}/dispute", **given)

    def close(self, dispute: str, status: str, **given: Any) -> dict[str, Any]:
        """Close it as `won` or `lost`."""
        return self.do(f"disputes/{dispute}/close", status=status, **given)

    def card(self, customer: str, behaviour: str) -> dict[str, Any]:
        """How the customer's card behaves from now on; a card is added where there is none."""
        return self.do(f"customers/{customer}/card", behaviour=behaviour)

    def renew(self, subscription: str, outcome: str | None = None) -> dict[str, Any]:
        """The next period begins, `paid` or `failed`, or as the card behaves."""
        return self.do(f"subscriptions/{subscription}/renew", **({} if outcome is None else {"outcome": outcome}))

    # --- time, objects, lies ---

    def now(self) -> int:
        """The fake's clock."""
        now: int = self.call("GET", "/clock")["now"]
        return now

    def advance(self, seconds: float) -> dict[str, Any]:
        """Move the clock; what falls due happens, each at its time."""
        return self.do("clock", advance_s=seconds)

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind, oldest first."""
        data: list[dict[str, Any]] = self.call("GET", "/objects", query={"type": kind})["data"]
        return data

    def object(self, id: str) -> dict[str, Any]:
        """One object, as the fake holds it: before any lie."""
        found: dict[str, Any] = self.call("GET", f"/objects/{id}")
        return found

    def edit(self, id: str, *, unset: tuple[str, ...] = (), event: str | None = None, **fields: Any) -> dict[str, Any]:
        """Lie about fields of an object from now on; with `event`, send one. A dot in a name is written `__`."""
        given = {name.replace("__", "."): value for name, value in fields.items()}
        more = {} if event is None else {"event": event}
        return self.do(f"objects/{id}/edit", set=given, unset=list(unset), **more)

    def emit(self, type: str, about: Any, **given: Any) -> dict[str, Any]:
        """Send any event about an object (its id, or the object itself)."""
        return self.do("events", type=type, object=about, **given)

    def reset(self) -> None:
        """Forget everything but where webhooks go."""
        self.call("POST", "/reset", {})

    # --- webhooks ---

    def send_webhooks_to(self, url: str | None, secret: str = SECRET) -> None:
        """Where events are sent from now on."""
        self.call("POST", "/webhook", {"url": url, "secret": secret})

    def delivery(self, **settings: Any) -> dict[str, Any]:
        """Change how webhooks are delivered: mode, copies, at_once, shuffle, delay_s, shape, types, secrets, …"""
        answer: dict[str, Any] = self.call("POST", "/delivery", settings)
        return answer

    def deliver(self, events: list[str] | None = None, **given: Any) -> list[dict[str, Any]]:
        """Send these now, in this order, or all that were not delivered; the attempts."""
        more = {} if events is None else {"events": events}
        attempts: list[dict[str, Any]] = self.call("POST", "/deliver", {**given, **more})["deliveries"]
        return attempts

    def deliveries(self) -> list[dict[str, Any]]:
        """Every attempt to deliver, oldest first."""
        data: list[dict[str, Any]] = self.call("GET", "/deliveries")["data"]
        return data

    def settle(self) -> None:
        """Answers when nothing is due or on its way."""
        self.call("POST", "/settle", {})

    # --- requests and faults ---

    def requests(self, **wanted: str) -> list[dict[str, Any]]:
        """What the API was asked; `method` and `path` choose."""
        data: list[dict[str, Any]] = self.call("GET", "/requests", query=wanted)["data"]
        return data

    def fault(self, kind: str, **given: Any) -> None:
        """The API fails as `kind` says, once or as often as `times`."""
        self.call("POST", "/faults", {"kind": kind, **given})

    def no_faults(self) -> None:
        """Whatever was not used up."""
        self.call("DELETE", "/faults")
