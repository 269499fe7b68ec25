"""What goes wrong with the API on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

from goosestack.demo.strict import Json, Refusal

KINDS: Mapping[str, str] = {
    "error_429": "refused for its rate, before any effect",
    "error_409": "refused for a lock, before any effect",
    "error_500": "an internal error, before any effect",
    "error_503": "unavailable, before any effect",
    "error_500_after": "an internal error after the effect, which its key then replays",
    "cut": "the connection is reset before any effect",
    "cut_after": "the connection is reset after the effect",
    "hang": "no answer for some seconds, then the effect",
    "hang_after": "the effect, then no answer for some seconds",
    "not_json": "the effect, then a web page",
    "lie": "the effect, then an answer with other fields",
}


@dataclass
class Fault:
    """One fault, for as many requests as `times` says, after `skip` of them."""

    kind: str
    method: str | None = None
    path: str = "*"
    times: int = 1
    skip: int = 0
    seconds: float = 30.0
    set: Json = field(default_factory=dict)

    def meets(self, method: str, path: str) -> bool:
        """Whether a request is of those that it strikes."""
        return self.times > 0 and self.method in (None, method) and fnmatchcase(path, self.path)

    def shown(self) -> Json:
        """All of it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def strike(faults: list[Fault], method: str, path: str) -> Fault | None:
    """The fault of this request, which uses it up by one."""
    for fault in faults:
        if not fault.meets(method, path):
            continue
        if fault.skip > 0:
            fault.skip -= 1
            continue
        fault.times -= 1
        return fault
    return None


def refusal_of(kind: str) -> Refusal | None:
    """The error of a fault that is one."""
    status = {"error_429": 429, "error_409": 409, "error_500": 500, "error_500_after": 500, "error_503": 503}.get(kind)
    if status is None:
        return None
    if status == 429:
        return Refusal(429, "Too many requests.", type="invalid_request_error", code="rate_limit")
    if status == 409:
        return Refusal(
            409, "The object is locked by another request.", type="invalid_request_error", code="lock_timeout"
        )
    return Refusal(status, "An error occurred on our side.", type="api_error")
