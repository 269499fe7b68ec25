"""Webhooks that Stripe did not send, or did not send so: each is made of one that would be good."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from tests.asking import Reply, ask
from tests.tills import KEY, SECRET
from tests.world import World

OTHER_SECRET = "whsec_another000000000000000000000005"


def signature(body: bytes, secret: str = SECRET, *, age_s: int = 0, scheme: str = "v1") -> str:
    """The header, made as Stripe describes it and not by Stripe's library."""
    at = int(time.time()) - age_s
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},{scheme}={mac}"


def send(world: World, body: bytes, header: str | None, **more: str) -> Reply:
    headers = {"content-type": "application/json; charset=utf-8", **more}
    if header is not None:
        headers["stripe-signature"] = header
    return ask(world, "POST", "/billing/webhook", data=body, headers=headers)


def event(about: dict[str, Any] | None = None, **changed: object) -> bytes:
    """An event that would be good."""
    found = {"id": "evt_1", "object": "event", "type": "charge.refunded", "created": int(time.time())}
    charge = {"id": "ch_1", "object": "charge", "payment_intent": "pi_none", "status": "succeeded"}
    about = about or {**charge, "amount_refunded": 5, "receipt_url": None}
    return json.dumps({**found, "livemode": False, "data": {"object": about}, **changed}).encode()


def changed(good: bytes, **fields: object) -> bytes:
    """The same event but for some of its fields."""
    return json.dumps({**json.loads(good), **fields}).encode()


def signed(body: bytes) -> tuple[bytes, str]:
    """A body, and a signature that holds."""
    return body, signature(body)


FORGED: dict[str, Callable[[bytes], tuple[bytes, str | None]]] = {
    "no signature": lambda good: (good, None),
    "an empty signature": lambda good: (good, ""),
    "words": lambda good: (good, "stripe"),
    "no time": lambda good: (good, signature(good).partition(",")[2]),
    "no mac": lambda good: (good, signature(good).partition(",")[0]),
    "a time that is none": lambda good: (good, "t=now,v1=" + "0" * 64),
    "an empty time": lambda good: (good, "t=,v1=" + "0" * 64),
    "a time without end": lambda good: (good, "t=" + "9" * 5000 + ",v1=" + "0" * 64),
    "a time below zero": lambda good: (good, "t=-1,v1=" + "0" * 64),
    "an empty mac": lambda good: (good, f"t={int(time.time())},v1="),
    "zeroes": lambda good: (good, f"t={int(time.time())},v1=" + "0" * 64),
    "a mac that is cut": lambda good: (good, signature(good)[:-1]),
    "a mac in capitals": lambda good: (good, signature(good).upper().replace("T=", "t=").replace("V1=", "v1=")),
    "a mac and more": lambda good: (good, signature(good) + "0"),
    "a hundred macs": lambda good: (good, f"t={int(time.time())}" + ",v1=00" * 100),
    "letters that are none": lambda good: (good, signature(good) + "\xe9"),
    "an empty secret": lambda good: (good, signature(good, "")),
    "another secret": lambda good: (good, signature(good, OTHER_SECRET)),
    "the secret without its prefix": lambda good: (good, signature(good, SECRET.removeprefix("whsec_"))),
    "the secret and a blank": lambda good: (good, signature(good, SECRET + " ")),
    "the API key": lambda good: (good, signature(good, KEY)),
    "another scheme": lambda good: (good, signature(good, scheme="v0")),
    "301 seconds old": lambda good: (good, signature(good, age_s=301)),
    "a day old": lambda good: (good, signature(good, age_s=86_400)),
    "another time than was signed": lambda good: (
        good,
        f"t={int(time.time()) - 1},{signature(good).partition(',')[2]}",
    ),
    "a body that was changed": lambda good: (
        good.replace(b'"id": "evt_', b'"id": "evt_again_', 1),
        signature(good),
    ),
    "a body that was written anew": lambda good: (json.dumps(json.loads(good), indent=1).encode(), signature(good)),
    "a body and a blank": lambda good: (good + b" ", signature(good)),
    "a body that was cut": lambda good: (good[:-1], signature(good)),
    "no body": lambda good: (b"", signature(good)),
    "the signature of nothing": lambda good: (good, signature(b"")),
    "signed: nothing": lambda good: (b"", signature(b"")),
    "signed: null": lambda good: (b"null", signature(b"null")),
    "signed: a list": lambda good: (b"[]", signature(b"[]")),
    "signed: a number": lambda good: (b"1", signature(b"1")),
    "signed: no JSON": lambda good: (b"{", signature(b"{")),
    "signed: no UTF-8": lambda good: (b"\xff\xfe{}", signature(b"\xff\xfe{}")),
    "signed: no event": lambda good: (b"{}", signature(b"{}")),
    "signed: a thin event": lambda good: signed(changed(good, object="v2.core.event")),
    "signed: no id": lambda good: signed(changed(good, id=None)),
    "signed: an id that is none": lambda good: signed(changed(good, id={"x": 1})),
    "signed: no type": lambda good: signed(changed(good, type=7)),
    "signed: no time": lambda good: signed(changed(good, created="now")),
    "signed: no mode": lambda good: signed(changed(good, livemode="false")),
    "signed: a list for data": lambda good: signed(changed(good, data=[])),
    "signed: a number without end": lambda good: signed(changed(good, created="@").replace(b'"@"', b"9" * 5000)),
    "signed: nested without end": lambda good: signed(b'{"object":"event","id":' + b"[" * 50_000),
    "signed: too large": lambda good: signed(changed(good, filler="x" * 300_000)),
}
"""By what is done to the body and its signature; where that holds (`signed: ...`), the body is no event of Stripe's."""
