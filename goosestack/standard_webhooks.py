"""Signing what we send to an operator's own program, by the rules of Standard Webhooks: a secret is `whsec_` and the
base64 of its bytes, and a message bears its id, the time of the attempt in seconds since 1970, and the base64 of an
HMAC-SHA256 over `id.timestamp.body` (standardwebhooks.com).
"""

from __future__ import annotations

import base64
import hashlib
import hmac

PREFIX = "whsec_"
LEAST, MOST = 24, 64
"""How many bytes a secret may have."""


def key_of(secret: str) -> bytes:
    """The bytes of a secret as it is written down. Raises ValueError where it is none."""
    if not secret.startswith(PREFIX):
        raise ValueError(f"a secret begins with {PREFIX}")
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    if not LEAST <= len(key) <= MOST:
        raise ValueError(f"a secret has {LEAST} to {MOST} bytes")
    return key


def headers(secret: str | None, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a message; unsigned where there is no secret. Raises ValueError."""
    told = {"content-type": "application/json", "webhook-id": id, "webhook-timestamp": str(timestamp)}
    if secret is None:
        return told
    mac = hmac.new(key_of(secret), f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {**told, "webhook-signature": f"v1,{base64.b64encode(mac.digest()).decode()}"}
