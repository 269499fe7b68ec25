"""Idempotency keys: one answer for one key, for a day."""

from __future__ import annotations

from dataclasses import dataclass, field

from goosestack.demo.strict import Json, Refusal

KEPT_S = 24 * 3600
LONGEST = 255


@dataclass
class Kept:
    """What the first request with a key was, and its answer; None while it is being answered."""

    method: str
    path: str
    params: Json
    at: float
    request_id: str
    status: int | None = None
    body: bytes = b""


@dataclass
class Keys:
    """The keys of one account."""

    kept: dict[str, Kept] = field(default_factory=dict)

    def begin(self, key: str, first: Kept) -> Kept | None:
        """What this key was answered before; None where it is new, and from now on in use."""
        if len(key) > LONGEST:
            raise Refusal(400, f"An idempotency key has up to {LONGEST} characters.", type="invalid_request_error")
        known = self.kept.get(key)
        if known is None or known.at + KEPT_S < first.at:
            self.kept[key] = first
            return None
        if (known.method, known.path, known.params) != (first.method, first.path, first.params):
            raise Refusal(
                400,
                f"The idempotency key {key} was first used with other parameters, or for {known.method} {known.path}.",
                type="idempotency_error",
            )
        if known.status is None:
            raise Refusal(
                409,
                f"Another request with the idempotency key {key} is in progress.",
                type="idempotency_error",
                code="idempotency_key_in_use",
            )
        return known

    def end(self, key: str, status: int, body: bytes) -> None:
        """The answer that every repetition gets."""
        self.kept[key].status, self.kept[key].body = status, body

    def forget(self, key: str) -> None:
        """The request had no effect: the key is as new."""
        self.kept.pop(key, None)
