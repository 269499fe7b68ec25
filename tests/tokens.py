"""True token counts, from an encoder that has nothing to do with ours (`bpe_openai`), and the ranks that it carries."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st

from goosestack import tokenizer

HOSTILE = (
    "\ta\"", "\ré/", "\x00", "\x1b", "\u2028", "\\", '"', "'s", "<|endoftext|>", "<|im_start|>", "ﷺ", "㍿", "½", "ﬃ",
    "a" * 400, "Z9" * 200, " " * 300, "\t" * 100, "\n" * 100, " \n" * 100, "{}[]:," * 20, "漢字かな交じり", "가각갂",
    "👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "á̱̣", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "﹏" * 30, "\u200b" * 30, "\ud7ff", "\U0010ffff", "0123456789" * 20,
    "QmFzZTY0IGlzIG5vdCB0ZXh0" * 10, "def f(x):\n\treturn x\n", "The quick brown fox. ",
)  # fmt: skip
"""Pieces of text that tokenizers, escapes and normal forms treat in ways of their own."""

texts = st.text(max_size=60) | st.lists(st.sampled_from(HOSTILE) | st.text(max_size=5), max_size=8).map("".join)


@functools.cache
def _encoding(name: str) -> Any:
    with warnings.catch_warnings():  # it opens its data in a deprecated way
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("bpe_openai").get_encoding(name)


def true_count(text: str, encoding: str = "o200k_base") -> int:
    """How many tokens a text is."""
    return len(_encoding(encoding).encode_ordinary(text))


def ranks(name: str) -> bytes:
    """The ranks file of this encoding, as OpenAI publishes it."""
    spec = importlib.util.find_spec("bpe_openai")
    assert spec is not None and spec.origin is not None
    return gzip.decompress((Path(spec.origin).parent / "data" / f"{name}.tiktoken.gz").read_bytes())


def install(folder: Path) -> tokenizer.Tokenizer:
    """A tokenizer with both encodings installed."""
    for name in tokenizer.RANKS:
        tokenizer.install(folder, ranks(name))
    return tokenizer.Tokenizer(folder)
