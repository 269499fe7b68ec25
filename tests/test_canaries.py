"""A search for credentials finds them, and tells where there was nothing to search."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canaries import PLANTED, forms, found_by_a_search
from tests.world import secrets_of

SECRET = "sk-operator-canary-0123456789"


@pytest.mark.parametrize("form", sorted(forms(SECRET)))
def test_a_secret_is_found_in_whatever_form_it_was_written_down(folder: Path, form: bytes) -> None:
    (folder / "daemon.out").write_bytes(b"{" + form + b"}")
    assert found_by_a_search(folder, {"the key": SECRET}) == ["the key is in daemon.out"]


def test_where_nothing_was_written_down_nothing_is_found_and_nothing_is_left(folder: Path) -> None:
    (folder / "daemon.out").write_text("listening")
    assert found_by_a_search(folder, {"the key": SECRET}) == []
    assert [path.name for path in folder.iterdir()] == ["daemon.out"]


@pytest.mark.parametrize("name", ["elsewhere", "."])
def test_where_nothing_is_there_to_search_that_is_told(folder: Path, name: str) -> None:
    (wrong,) = found_by_a_search(folder / name, {"the key": SECRET})
    assert wrong.endswith("and nothing that it wrote is there")


def test_a_search_that_finds_nothing_is_told(folder: Path) -> None:
    (folder / "daemon.out").write_text("listening")
    blind = found_by_a_search(folder, {"the key": SECRET}, lambda _folder, _secrets: [])
    assert blind == [f"what was planted in {folder} is not found"]
    assert PLANTED not in "".join(path.read_text() for path in folder.iterdir())


def test_secrets_are_those_of_the_environment_and_of_credential_files(folder: Path) -> None:
    (folder / "ANTHROPIC_API_KEY").write_text("sk-ant-of-a-file-0123456789\n")
    (folder / "PORT").write_text("8080")
    found = secrets_of({"OPENAI_API_KEY": SECRET, "CREDENTIALS_DIRECTORY": str(folder), "ADMIN_TOKEN": "short"})
    assert sorted(found.values()) == ["sk-ant-of-a-file-0123456789", SECRET]
    alone = secrets_of({"OPENAI_API_KEY": SECRET, "CREDENTIALS_DIRECTORY": ""})
    assert list(alone.values()) == [SECRET]
