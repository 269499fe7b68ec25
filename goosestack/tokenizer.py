"""Counting tokens exactly, where the operator has installed the ranks; the gate works without.

The ranks are OpenAI's public `o200k_base` and `cl100k_base` files, known by their SHA-256. They lie in a folder beside
the database, under the names that tiktoken looks for in its cache (`TIKTOKEN_CACHE_DIR`, which the daemon sets), and
are never fetched on a request. Text is counted in another thread, in bounded pieces: the
encoder's splitting expression gives up on very long runs of blanks, and counts slowly on other hostile text.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from goosestack.errors import Refusal

RANKS = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
"""The SHA-256 of each file."""

ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"

PIECE = 50_000
"""Characters handed to the encoder at once. Cutting a text can only raise the count, by a token or two a cut."""

MOST_BYTES = 4_000_000
"""Longer texts are not counted: their bytes bound them."""


class _Encoding(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


def identify(data: bytes) -> str | None:
    """Which ranks a file holds, by its hash; None where it is none that is known."""
    digest = hashlib.sha256(data).hexdigest()
    return next((name for name, known in RANKS.items() if known == digest), None)


def install(folder: Path, data: bytes) -> str:
    """Put verified ranks into the folder; the answer is their name. Raises Refusal."""
    name = identify(data)
    if name is None:
        raise Refusal("this file is no ranks file that is known: its SHA-256 fits neither o200k_base nor cl100k_base")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = folder / f"{name}.part"
    partial.write_bytes(data)
    partial.rename(path_of(folder, name))
    return name


def path_of(folder: Path, name: str) -> Path:
    """Where the ranks of this name lie: the SHA-1 of their address, as tiktoken names its cached files."""
    return folder / hashlib.sha1(ADDRESS.format(name=name).encode(), usedforsecurity=False).hexdigest()


def _present(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise Refusal(f"{path.parent} cannot be read: {error.strerror}; its owner must be the daemon's user") from None


class Tokenizer:
    """The installed encodings, loaded when first needed."""

    def __init__(self, folder: Path) -> None:
        """Raises Refusal where the folder is another user's, so that nobody wonders why nothing is counted."""
        self._folder = folder
        self._loaded: dict[str, _Encoding | None] = {}
        self.installed = _present(path_of(folder, "o200k_base"))
        """Whether chat can be counted; ranks that are installed later are found at the next start."""

    async def count(self, data: bytes, *, embedding: bool = False) -> int | None:
        """At least as many tokens as the text has for OpenAI's models; None where that cannot be told."""
        return await self._counted(data, _tokens, embedding=embedding)

    async def count_body(self, payload: bytes, *, embedding: bool = False) -> int | None:
        """The same for a request's JSON body. Its strings are counted as the model reads them: escaped, some texts
        have a third fewer tokens."""
        return await self._counted(payload, _tokens_of_body, embedding=embedding)

    async def _counted(self, data: bytes, tokens: Callable[[_Encoding, str], int], *, embedding: bool) -> int | None:
        name = "cl100k_base" if embedding else "o200k_base"
        if len(data) > MOST_BYTES or not path_of(self._folder, name).is_file():
            return None
        return await asyncio.to_thread(self._count, name, data, tokens)

    def _count(self, name: str, data: bytes, tokens: Callable[[_Encoding, str], int]) -> int | None:
        try:
            if name not in self._loaded:
                self._loaded[name] = _load(name, path_of(self._folder, name))
            encoding = self._loaded[name]
            if encoding is None:
                return None
            return tokens(encoding, data.decode("utf-8", "replace"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # the encoder panics past Exception; the byte bound needs no encoder
            return None


def _tokens(encoding: _Encoding, text: str) -> int:
    starts = range(0, len(text), PIECE)
    return sum(len(encoding.encode_ordinary(text[start : start + PIECE])) for start in starts) + len(starts)


def _tokens_of_body(encoding: _Encoding, text: str) -> int:
    """Each string by itself, and one token more for what stands around it; of numbers, one for every three digits."""
    count = 0
    waiting: list[object] = [json.loads(text)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            count += _tokens(encoding, value)
        else:
            count += 2 + len(str(value)) // 3
    return count


def _load(name: str, path: Path) -> _Encoding | None:
    try:
        import tiktoken
    except ImportError:
        return None
    if identify(path.read_bytes()) != name:
        return None
    return tiktoken.get_encoding(name)
