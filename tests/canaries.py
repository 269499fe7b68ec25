"""Looking for credentials where they have no business: in whatever form somebody might have written them down."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from urllib.parse import quote

LEAST = 16
"""Characters of what is looked for; the beginning of a key, which is stored to tell it apart, has fewer."""

PLANTED = "a-canary-that-was-planted-0123456789"

_SQLITE = b"SQLite format 3\0"
_HEX = re.compile("0x[0-9a-f]{64}")


@cache
def forms(secret: str) -> frozenset[bytes]:
    """How a secret may stand in a file: as it is, in a header, in JSON, in a URL, in hex, as a number; or only
    its latter part."""
    raw = secret.encode()
    assert len(raw) >= LEAST, f"{secret} is too short to be looked for"
    encoded = {base64.b64encode(b" " * pad + raw)[4 if pad else 0 : -4] for pad in range(3)}
    latter = raw[max(len(raw) // 3, min(12, len(raw) - LEAST)) :]
    written = {latter, latter.hex().encode(), latter.hex().upper().encode(), latter[::-1]}
    if _HEX.fullmatch(secret):  # a key of a chain is a number
        written |= {latter.upper(), bytes.fromhex(secret[2:])[-LEAST:], str(int(secret, 16)).encode()}
    return frozenset({*written, *encoded, quote(latter).encode(), json.dumps(latter.decode())[1:-1].encode()})


def found_in(data: bytes, secrets: Iterable[str]) -> list[str]:
    """Those of the secrets that are in it."""
    return [secret for secret in secrets if any(form in data for form in forms(secret))]


def written_by_a_daemon(folder: Path) -> Iterator[Path]:
    """What a daemon, and the commands beside it, have written in a folder: its output, databases, logs and copies."""
    for path in sorted(folder.rglob("*")):
        ours = path.is_file() and path.suffix not in (".ballast", ".lock")
        if ours and (path.name == "daemon.out" or path.name.startswith("core") or _is_database(path)):
            yield path


def _is_database(path: Path) -> bool:
    if path.name.endswith(("-wal", "-shm", "-journal")):
        return True
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def found_below(folder: Path, secrets: Mapping[str, str]) -> list[str]:
    """What of these (a name for each) a daemon has written down there: a sentence each."""
    names = {secret: name for name, secret in secrets.items()}
    return [
        f"{names[secret]} is in {path.relative_to(folder)}"
        for path in written_by_a_daemon(folder)
        for secret in found_in(path.read_bytes(), names)
    ]


Search = Callable[[Path, Mapping[str, str]], list[str]]


def found_by_a_search(folder: Path, secrets: Mapping[str, str], search: Search = found_below) -> list[str]:
    """The same, where a daemon has been, and a search cannot but find something: also told is that there is nothing
    to search, or that what was planted there for the moment is not found."""
    if folder / "daemon.out" not in written_by_a_daemon(folder):
        return [f"a daemon has been in {folder}, and nothing that it wrote is there"]
    scrap = folder / "planted-wal"
    scrap.write_bytes(b"x" * 5000 + PLANTED.encode())
    try:
        found = search(folder, {**secrets, "what was planted": PLANTED})
    finally:
        scrap.unlink()
    planted = f"what was planted is in {scrap.name}"
    wrong = [each for each in found if each != planted]
    return wrong if planted in found else [*wrong, f"what was planted in {folder} is not found"]
