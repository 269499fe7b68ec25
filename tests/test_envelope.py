"""Errors as they are worn: which of a vendor's concern the operator alone, and how our own look to each dialect."""

from __future__ import annotations

import json

import pytest

from goosestack.errors import Invalid, Problem, ShuttingDown
from goosestack.wire import envelope


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        ({"error": {"message": "busy"}}, True),
        ({"error": {"message": "busy"}, "usage": None}, True),
        ({"error": {"message": "cut"}, "usage": {"input_tokens": 5}}, False),
        ({"error": None}, False),
        ({"error": "busy"}, False),
        ({"choices": []}, False),
        ([], False),
    ],
    ids=json.dumps,
)
def test_an_error_is_an_object_of_that_name_and_nothing_that_was_used(body: object, is_one: bool) -> None:
    assert envelope.is_error(json.dumps(body).encode()) is is_one


@pytest.mark.parametrize("body", [b"", b"busy", b"{", b'{"error": {"message": "\xff"}}', b"[" * 100_000])
def test_what_cannot_be_read_is_no_error_and_concerns_nobody(body: bytes) -> None:
    assert not envelope.is_error(body) and not envelope.concerns_operator(body)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ({"error": {"type": "insufficient_quota"}}, True),
        ({"error": {"code": "billing_hard_limit_reached"}}, True),
        ({"error": {"type": "x", "details": {"error_code": "contract_spend_limit_reached"}}}, True),
        ({"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to go on."}}, True),
        ({"response": {"error": {"code": "insufficient_quota"}}}, True),
        ({"error": {"type": "x", "message": "you wrote: insufficient_quota"}}, False),
        ({"error": {"type": "x", "message": "He said: Your credit balance is too low"}}, False),
        ({"error": {"type": "x", "details": ["insufficient_quota"]}}, False),
        ({"error": {}}, False),
        ({"error": None, "response": None}, False),
        ({"response": {"error": None}}, False),
        ({}, False),
    ],
    ids=json.dumps,
)
def test_what_concerns_the_operator_is_told_by_type_and_code(body: object, operators: bool) -> None:
    assert envelope.concerns_operator(json.dumps(body).encode()) is operators


def test_a_vendors_id_is_replaced_by_ours_which_can_be_looked_up() -> None:
    assert envelope.with_id(b'{"request_id" : "req_theirs", "x": 1}', "req_1") == b'{"request_id" : "req_1", "x": 1}'
    assert envelope.with_id(b'{"x": 1}', "req_1") == b'{"x": 1}'


ABOUT_A_FIELD = Invalid(reason="`n` must be 1", param="n")
BUSY = ShuttingDown()
WORN: list[tuple[str, Problem, dict[str, object]]] = [
    ("openai", ABOUT_A_FIELD, {"error": {"type": "invalid_request_error", "param": "n", "code": "invalid_value"}}),
    ("openai", BUSY, {"error": {"type": "service_unavailable_error", "param": None, "code": "server_is_overloaded"}}),
    ("anthropic", BUSY, {"type": "error", "error": {"type": "overloaded_error"}, "request_id": "req_1"}),
    ("ours", ABOUT_A_FIELD, {"error": {"type": "validation_error", "param": "n", "request_id": "req_1"}}),
    ("ours", BUSY, {"error": {"type": "overloaded_error", "request_id": "req_1"}}),
]


@pytest.mark.parametrize(("dialect", "problem", "document"), WORN)
def test_a_problem_is_worn_as_its_dialect_wears_it(dialect: str, problem: Problem, document: dict[str, object]) -> None:
    rendered = json.loads(envelope.render(dialect, problem, "req_1"))
    assert rendered["error"].pop("message") == problem.message
    assert rendered == document


def test_no_control_character_reaches_a_terminal() -> None:
    sent = envelope.dump({"message": "a\x00b\x1b[2Jc\x7fd\u009be\nf"})
    assert all(0x20 <= byte < 0x7F for byte in sent)
    assert json.loads(sent) == {"message": "a\x00b\x1b[2Jc\x7fd\u009be\nf"}
