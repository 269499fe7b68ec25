"""The contracts of the tests' chain, compiled from the Vyper sources beside this file."""

from __future__ import annotations

from pathlib import Path

from vyper.cli.vyper_compile import compile_files  # type: ignore[import-untyped]
from vyper.compiler.settings import Settings  # type: ignore[import-untyped]

FOLDER = Path(__file__).parent


def creation_code(name: str, *arguments: int | bytes) -> bytes:
    """What creates a contract: its constructor with its arguments, numbers and addresses."""
    path = FOLDER / f"{name}.vy"
    settings = Settings(evm_version="shanghai")
    (made,) = compile_files([str(path)], ["bytecode"], paths=[str(FOLDER)], settings=settings).values()
    words = [each.to_bytes(32, "big") if isinstance(each, int) else each.rjust(32, b"\0") for each in arguments]
    return bytes.fromhex(made["bytecode"].removeprefix("0x")) + b"".join(words)
