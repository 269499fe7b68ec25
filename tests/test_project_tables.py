"""The fake project's tables, which stand in for PostgREST in other tests: its status codes, and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection, RemoteDisconnected
from typing import Any

import pytest

from tests.project import ANON_KEY, SECRET, SERVICE_KEY, Project

ONCE = {"prefer": "resolution=ignore-duplicates,return=minimal"}
TABLE: dict[str, Any] = {
    "columns": {"request_id": "text", "user_id": "uuid", "tokens": "bigint", "at": "timestamptz"},
    "unique": [["request_id"]],
    "required": ["request_id"],
    "references": {"user_id": ["a11ce000-0000-4000-8000-000000000001"]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("project"))
    yield project
    project.close()


@pytest.fixture(autouse=True)
def empty(project: Project) -> None:
    project.tell("PUT", "tables/usage", **TABLE)
    project.tell("DELETE", "faults")


def ask(project: Project, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    connection = HTTPConnection(project.url.removeprefix("http://"), timeout=10)
    try:
        data = None if body is None else json.dumps(body).encode()
        sent = {"apikey": SERVICE_KEY, "content-type": "application/json", **headers}
        connection.request(method, f"/rest/v1/{path}", data, {name: text for name, text in sent.items() if text})
        answer = connection.getresponse()
        read = answer.read()
        return answer.status, json.loads(read) if read else None
    finally:
        connection.close()


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["code"]


def rows(project: Project) -> list[str]:
    return [row["request_id"] for row in project.tell("GET", "tables/usage")["rows"]]


def test_inserting_once_is_the_same_answer_however_often(project: Project) -> None:
    batch = [{"request_id": "a", "tokens": 1}, {"request_id": "b", "tokens": 2}]
    for _ in range(3):
        assert ask(project, "POST", "usage?on_conflict=request_id", batch, **ONCE) == (201, None)
    assert rows(project) == ["a", "b"]


def test_a_batch_is_written_as_a_whole_or_not_at_all(project: Project) -> None:
    assert ask(project, "POST", "usage", {"request_id": "b"})[0] == 201
    assert code(ask(project, "POST", "usage", [{"request_id": "a"}, {"request_id": "b"}])) == (409, "23505")
    assert code(ask(project, "POST", "usage", [{"request_id": "a", "tokens": "x"}])) == (400, "22P02")
    assert rows(project) == ["b"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("nowhere", {"request_id": "a"}, (404, "PGRST205")),
        ("usage", {"request_id": "a", "nothing": 1}, (400, "PGRST204")),
        ("usage", {"tokens": 1}, (400, "23502")),
        ("usage", {"request_id": "a", "tokens": 2**63}, (400, "22003")),
        ("usage", {"request_id": "a", "at": "today"}, (400, "22007")),
        ("usage", {"request_id": "a", "user_id": "alice"}, (400, "22P02")),
        ("usage", {"request_id": "a", "user_id": "b0b00000-0000-4000-8000-000000000001"}, (409, "23503")),
        ("usage", [{"request_id": "a"}, {"request_id": "b", "tokens": 1}], (400, "PGRST102")),
        ("usage?on_conflict=tokens", {"request_id": "a"}, (400, "42P10")),
    ],
)
def test_what_cannot_be_written_is_refused_by_its_code(
    project: Project, path: str, body: object, expected: tuple[int, str]
) -> None:
    assert code(ask(project, "POST", path, body)) == expected
    assert rows(project) == []


def test_rows_are_found_by_filters_and_one_is_one(project: Project) -> None:
    for number in range(3):
        ask(project, "POST", "usage", {"request_id": f"r{number}", "tokens": number})
    one = {"accept": "application/vnd.pgrst.object+json"}
    assert ask(project, "GET", "usage?select=request_id&tokens=gte.1&order=tokens.desc") == (
        200,
        [{"request_id": "r2"}, {"request_id": "r1"}],
    )
    assert ask(project, "GET", "usage?select=tokens&request_id=in.(r0,r9)", **one) == (200, {"tokens": 0})
    assert code(ask(project, "GET", "usage?tokens=eq.7", **one)) == (406, "PGRST116")
    assert code(ask(project, "GET", "usage?tokens=eq.x")) == (400, "22P02")
    assert code(ask(project, "GET", "usage?nothing=eq.1")) == (400, "42703")
    assert ask(project, "GET", "usage", apikey=ANON_KEY) == (200, [])


def test_keys_of_the_new_kind_are_no_bearers_and_the_publishable_one_writes_nothing(project: Project) -> None:
    row = {"request_id": "a"}
    assert ask(project, "POST", "usage", row, apikey="")[0] == 401
    assert ask(project, "POST", "usage", row, apikey=SECRET)[0] == 401
    assert ask(project, "POST", "usage", row, authorization=f"Bearer {SERVICE_KEY}")[0] == 401
    assert ask(project, "POST", "usage", row, **{"user-agent": "Mozilla/5.0"})[0] == 401
    assert code(ask(project, "POST", "usage", row, apikey=ANON_KEY)) == (401, "42501")
    assert rows(project) == []


def test_what_is_ordered_goes_wrong_before_the_work_or_after_it(project: Project) -> None:
    project.tell("POST", "faults", path="/rest/v1/usage", status=503, times=2)
    assert [ask(project, "POST", "usage", {"request_id": "a"})[0] for _ in range(3)] == [503, 503, 201]
    project.tell("POST", "faults", path="/rest/v1/usage", drop=True, done=True)
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ask(project, "POST", "usage", {"request_id": "b"})
    assert rows(project) == ["a", "b"]
