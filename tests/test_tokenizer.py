"""Counting with installed ranks: never fewer than there are, never an error, never a file that is not known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings

from goosestack import tokenizer
from goosestack.errors import Refusal
from goosestack.tokenizer import Tokenizer
from goosestack.wire import body as fields
from tests.tokens import HOSTILE, install, ranks, texts, true_count

LONG = os.environ.get("GOOSESTACK_PROOF") == "long"
PROPERTY = settings(deadline=None, database=None, max_examples=20_000 if LONG else 100)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    """A tokenizer with its ranks, where tiktoken looks for them."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield install(folder)


def count_now(counting: Tokenizer, text: str) -> int:
    """What it counts, without a thread between."""
    counted = counting._count("o200k_base", text.encode(), tokenizer._tokens)
    assert counted is not None
    return counted


# --- what it counts -------------------------------------------------------------------------------------------


@PROPERTY
@given(text=texts)
def test_a_text_is_counted_at_least_and_hardly_more(counting: Tokenizer, text: str) -> None:
    assert true_count(text) <= count_now(counting, text) <= true_count(text) + 1


@pytest.mark.parametrize("piece", [piece for piece in HOSTILE if true_count(piece) <= 3 * len(piece)], ids=ascii)
def test_a_text_that_is_cut_into_pieces_is_counted_at_least(counting: Tokenizer, piece: str) -> None:
    text = (piece * (tokenizer.PIECE // len(piece) + 1))[: tokenizer.PIECE - 1] + piece * 20
    assert len(text) > tokenizer.PIECE
    assert true_count(text) <= count_now(counting, text)


@PROPERTY
@given(text=texts)
@example('\ta"' * 500)
@example("\ré{" * 500)
async def test_the_strings_of_a_body_are_counted_as_they_are_read(counting: Tokenizer, text: str) -> None:
    payload = fields.encode({"messages": [{"role": "user", "content": text}], "n": 1})
    counted = await counting.count_body(payload)
    assert counted is not None
    assert true_count(text) + true_count("user") <= counted <= true_count(text) + 20


async def test_embeddings_are_counted_by_their_own_encoding(counting: Tokenizer) -> None:
    text = "Grüße, 你好, привет! " * 50
    by_chat, by_embedding = await counting.count(text.encode()), await counting.count(text.encode(), embedding=True)
    assert by_chat == true_count(text) + 1
    assert by_embedding == true_count(text, "cl100k_base") + 1
    assert by_chat != by_embedding


@pytest.mark.parametrize("marker", ["<|endoftext|>", "<|im_start|>", "<|fim_prefix|>", "<|endofprompt|>"])
async def test_special_tokens_in_a_text_are_text(counting: Tokenizer, marker: str) -> None:
    counted = await counting.count((marker * 10).encode())
    assert counted is not None and counted > 30


# --- what would break an encoder ------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [" ", "\t", "\n", " \t"])
async def test_a_million_blanks_are_counted(counting: Tokenizer, blank: str) -> None:
    text = blank * (1_000_000 // len(blank))
    counted = await counting.count(text.encode())
    assert counted is not None and 0 < counted <= len(text)
    counted = await counting.count_body(fields.encode({"input": text}))
    assert counted is not None and 0 < counted <= len(text)


async def test_a_long_run_of_one_letter_is_counted(counting: Tokenizer) -> None:
    counted = await counting.count(b"a" * 500_000)
    assert counted is not None and 500_000 // 128 <= counted <= 500_000


async def test_what_is_too_long_is_left_to_its_bytes(counting: Tokenizer) -> None:
    assert await counting.count(b"x " * (tokenizer.MOST_BYTES // 2)) is not None
    assert await counting.count(b"x" * (tokenizer.MOST_BYTES + 1)) is None


async def test_bytes_that_are_no_text_and_bodies_that_are_no_json_are_no_error(counting: Tokenizer) -> None:
    assert await counting.count(b"\xff\xfe\xfd") is not None
    assert await counting.count_body(b"{") is None
    assert await counting.count_body(b"[" * 100_000) is None
    assert await counting.count(b"") == 0


# --- what is installed ----------------------------------------------------------------------------------------


def test_a_ranks_file_is_known_by_its_hash() -> None:
    for name in tokenizer.RANKS:
        assert tokenizer.identify(ranks(name)) == name
    assert tokenizer.identify(ranks("o200k_base") + b"\n") is None
    assert tokenizer.identify(b"") is None


def test_known_ranks_are_put_where_tiktoken_looks(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    assert tokenizer.install(folder, ranks("cl100k_base")) == "cl100k_base"
    assert [path.name for path in folder.iterdir()] == ["9b5ad71b2ce5302211f9c61530b329a4922fc6a4"]
    assert not Tokenizer(folder).installed
    assert tokenizer.install(folder, ranks("o200k_base")) == "o200k_base"
    assert tokenizer.path_of(folder, "o200k_base").name == "fb374d419588a4632f3f557e76b4b70aebbca790"
    assert Tokenizer(folder).installed


def test_unknown_ranks_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    for data in (b"", b"IQ== 0\n", ranks("o200k_base")[:-1]):
        with pytest.raises(Refusal, match="SHA-256"):
            tokenizer.install(folder, data)
    assert not folder.exists()


async def test_without_ranks_nothing_is_counted(tmp_path: Path) -> None:
    nothing = Tokenizer(tmp_path)
    assert not nothing.installed
    assert await nothing.count(b"hello") is None
    assert await nothing.count_body(b"{}") is None


async def test_ranks_that_were_changed_on_the_disk_are_not_used(tmp_path: Path) -> None:
    made = install(tmp_path)
    for name in tokenizer.RANKS:
        path = tokenizer.path_of(tmp_path, name)
        path.write_bytes(path.read_bytes().replace(b"IQ== 0\n", b"IQ== 1\n", 1))
    assert await made.count(b"hello") is None
    assert await made.count(b"hello", embedding=True) is None
