"""Problems as the caller reads them: OpenAI's envelope, Anthropic's, and our own."""

from __future__ import annotations

import json
import re

import msgspec

from goosestack.errors import Problem


class _Error(msgspec.Struct):
    error: dict[str, object]
    usage: dict[str, object] | None = None


class _Failed(msgspec.Struct):
    """A stream's last event, with the error in it or in its response."""

    error: dict[str, object] | None = None
    response: _Failed | None = None


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_OPERATORS = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "budget_exceeded",
    "contract_spend_limit_reached",
    "enforced_spend_limit_reached",
    "ramp_limit_exceeded",
)
"""Types and codes of errors that say that the operator's account has run out."""
_NO_CREDIT = "Your credit balance is too low"
"""The same as Anthropic says it, under the type of a bad request."""
_ITS_ID = re.compile(rb'("request_id"\s*:\s*")[^"\\]*(")')


def is_error(body: bytes) -> bool:
    """Whether a body is a vendor's error, of whatever status: an `error` object, and nothing that was used."""
    try:
        return msgspec.json.decode(body, type=_Error).usage is None
    except _UNREADABLE:
        return False


def concerns_operator(body: bytes) -> bool:
    """Whether a vendor's error, as a body or the data of a frame, is about the account of whoever holds the key. Told
    by its type and code: its message may repeat what the caller wrote."""
    try:
        failed = msgspec.json.decode(body, type=_Failed)
    except _UNREADABLE:
        return False
    error = failed.error or (None if failed.response is None else failed.response.error)
    if error is None:
        return False
    details = error.get("details")
    names = [error.get("type"), error.get("code"), details.get("error_code") if isinstance(details, dict) else None]
    return any(name in _OPERATORS for name in names) or str(error.get("message", "")).startswith(_NO_CREDIT)


def with_id(body: bytes, request_id: str) -> bytes:
    """A vendor's error under our id in place of the vendor's, which nobody here can look up."""
    return _ITS_ID.sub(lambda found: found[1] + request_id.encode() + found[2], body)  # a template would be remembered


def openai(problem: Problem) -> dict[str, object]:
    """`{"error": {"message", "type", "param", "code"}}`, as the OpenAI SDKs read it."""
    kind, code = problem.openai
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": code}}


def anthropic(problem: Problem, request_id: str) -> dict[str, object]:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`, as the Anthropic SDKs read it."""
    error = {"type": problem.anthropic, "message": problem.message}
    return {"type": "error", "error": error, "request_id": request_id}


def ours(problem: Problem, request_id: str) -> dict[str, object]:
    """`{"error": {"message", "type", "param", "request_id"}}` for the routes that no vendor has."""
    error: dict[str, object] = {"message": problem.message, "type": problem.type, "request_id": request_id}
    if problem.param is not None:
        error["param"] = problem.param
    return {"error": error}


def render(dialect: str, problem: Problem, request_id: str) -> bytes:
    """The body of an error answer in a dialect: `openai`, `anthropic` or `ours`."""
    if dialect == "openai":
        return dump(openai(problem))
    return dump(anthropic(problem, request_id) if dialect == "anthropic" else ours(problem, request_id))


def dump(value: object) -> bytes:
    """Compact JSON; ASCII, so that no control character reaches a terminal."""
    return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f").encode()
