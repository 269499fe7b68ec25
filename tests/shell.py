"""The operator's shell: `goosestack ARGS`, run here rather than in a process, which would cost half a second each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from goosestack.cli import main
from tests.world import World

NOTHING: Mapping[str, str] = {}


class Operator:
    """Somebody at a shell: runs `goosestack ARGS` in a folder, with an environment."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env = folder, env

    def run(self, *args: str, expect: int = 0, env: Mapping[str, str] = NOTHING) -> tuple[str, str]:
        """Standard output and standard error of a command that must end with this exit code."""
        before, umask = Path.cwd(), os.umask(0o077)
        os.chdir(self.folder)
        try:
            done = CliRunner().invoke(main, args, env={**self.env, **env})
        finally:
            os.chdir(before)
            os.umask(umask)
        assert done.exit_code == expect, (args, done.output, done.exception)
        return done.stdout, done.stderr

    def json(self, *args: str, expect: int = 0, env: Mapping[str, str] = NOTHING) -> Any:
        """What a command says with `--json`."""
        return json.loads(self.run(*args, "--json", expect=expect, env=env)[0])

    def refused(self, *args: str, code: int = 1, env: Mapping[str, str] = NOTHING) -> str:
        """The one sentence in which a command is refused."""
        out, err = self.run(*args, expect=code, env=env)
        assert out == ""
        assert err.startswith("goosestack: ") and err.endswith("\n") and err.count("\n") == 1, err
        return err.removeprefix("goosestack: ").rstrip("\n")


def operator_of(world: World) -> Operator:
    """The operator of a running daemon."""
    return Operator(world.folder, world.daemon.env)
