"""Problems as the caller reads them: OpenAI's envelope, Anthropic's, and our own."""

from __future__ import annotations

import json

import msgspec

from goosestack.errors import Problem


class _Error(msgspec.Struct):
    error: dict[str, object]
    usage: dict[str, object] | None = None


def is_error(body: bytes) -> bool:
    """Whether a body is a vendor's error, of whatever status: an `error` object, and nothing that was used."""
    try:
        return msgspec.json.decode(body, type=_Error).usage is None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


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
