"""What a program asked of the disk, and what it said, in the order in which it did: by strace, in a form that can be
played again.

Only what makes, changes, cuts, syncs or removes one of a few files counts, and the syncs of their folder. A write
counts from when it was asked for, a sync once it has returned, and what was said from when it was being said: each the
less favourable moment.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.proofs.proof import Refuted

ROOT = Path(__file__).resolve().parent.parent.parent
CALLS = (
    "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,"
    "sync_file_range,msync,mmap,copy_file_range,sendfile,splice,unlink,unlinkat,rename,renameat,renameat2,link,linkat"
)
"""Whatever may change a file; a call on one of the files that `_events` does not know is an error."""


@dataclass(frozen=True, slots=True)
class Write:
    name: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """The file is now so long."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Of a file, or, where it has no name, of the folder."""

    name: str


@dataclass(frozen=True, slots=True)
class Made:
    name: str


@dataclass(frozen=True, slots=True)
class Removed:
    name: str


@dataclass(frozen=True, slots=True)
class Said:
    lines: tuple[bytes, ...]


Event = Write | Cut | Sync | Made | Removed | Said


def installed() -> bool:
    return shutil.which("strace") is not None


def record(command: Sequence[str], folder: Path, names: frozenset[str], killed: bool) -> list[Event]:
    """Run a Python module under strace; what it did to the files of these names in a folder, and what it said."""
    log = folder / "strace"
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o", str(log)]
    there = {path.name for path in folder.iterdir()} & names
    done = subprocess.run([*strace, sys.executable, "-m", *command], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != (-9 if killed else 0):
        raise Refuted(f"the program ended by itself, with {done.returncode}: {done.stderr.decode()[-500:]}")
    with log.open() as lines:
        events = list(_events(_calls(lines), folder.resolve(), names, there))
    log.unlink()
    said = [line for event in events if isinstance(event, Said) for line in event.lines]
    assert said == done.stdout.splitlines(), "the recording is not what happened"
    return events


# --- reading strace's log -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    name: str
    arguments: str
    answer: str | None
    """None where it has only begun."""


_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
_ANSWER = re.compile(r"(.*)\) += (-?\d+|\?)(.*)")
_FILE = re.compile(r"-?\d+<([^>]*)>")
_PATH = re.compile(r'"([^"]*)"')
_SAID = re.compile(r'1<[^>]*>, "([^"]*)", ')
_WRITTEN = re.compile(r'\d+<[^>]*>, "([^"]*)", (\d+), (\d+)')
_CUT = re.compile(r"\d+<[^>]*>, (\d+)")


def _calls(lines: Iterator[str]) -> Iterator[_Call]:
    """Each call when it begins, with no answer, and when it has ended, with one."""
    begun: dict[str, _Call] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            assert " +++ " in line or " --- " in line, line
            continue
        thread, resumed, name, rest = match.groups()
        call = begun.pop(thread) if resumed else _Call(name, rest, None)
        if not resumed:
            yield _Call(name, rest, None)
        if rest.rstrip().endswith("<unfinished ...>"):
            begun[thread] = call
            continue
        answered = _ANSWER.match(rest)
        assert answered is not None, line
        yield _Call(call.name, call.arguments, answered[2] + answered[3])


def _events(calls: Iterator[_Call], folder: Path, names: frozenset[str], there: set[str]) -> Iterator[Event]:
    """`there` are those of the files that exist."""

    def ours(call: _Call, text: str) -> str | None:
        path = Path(_bytes(text).decode())
        if path == folder:
            return ""
        return path.name if path.parent == folder and path.name in names else None

    for call in calls:
        if call.answer is not None and call.answer.startswith("-1 "):
            assert call.name in ("openat", "unlink"), f"{call.name} failed: {call.answer}"
            continue
        opened = _FILE.search(call.answer or "") if call.name == "openat" else None
        about = opened or _FILE.match(call.arguments) or _PATH.match(call.arguments)
        name = None if about is None else ours(call, about[1])
        ended = call.answer is not None
        match call.name:
            case "write" if call.arguments.startswith("1<") and not ended:
                yield Said(tuple(_bytes(_found(_SAID, call)[1]).splitlines()))
            case "pwrite64" if name:
                data, length, offset = _found(_WRITTEN, call).groups()
                assert call.answer in (None, length), "a write was short"
                if not ended:
                    yield Write(name, int(offset), _bytes(data))
            case "ftruncate" if name and not ended:
                yield Cut(name, int(_found(_CUT, call)[1]))
            case "fsync" | "fdatasync" if name is not None and ended:
                yield Sync(name)
            case "openat" if name and ended:
                assert "O_TRUNC" not in call.arguments
                if name not in there:
                    there.add(name)
                    yield Made(name)
            case "unlink" if name and ended:
                there.remove(name)
                yield Removed(name)
            case "openat" | "fsync" | "fdatasync" | "unlink" | "ftruncate":
                pass
            case _:
                assert not name, f"{call.name} is not known here: {call.arguments[:200]}"


def _found(pattern: re.Pattern[str], call: _Call) -> re.Match[str]:
    found = pattern.match(call.arguments)
    assert found is not None, f"{call.name}: {call.arguments[:200]}"
    return found


def _bytes(text: str) -> bytes:
    """strace -xx writes every byte of a text as `\\x2f`."""
    return bytes.fromhex(text.replace("\\x", ""))
