"""A Supabase project as a process: what a test tells it, and what it has seen."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.world import Program, bare_environment

SECRET = "a legacy secret, as long as they are, canary".replace(" ", "-")
ANON_KEY = "sb_publishable_canary-0001"
SERVICE_KEY = "sb_secret_canary-0002"


class Project:
    """`goosestack.demo.supabase`, which says what can be asked of it."""

    def __init__(self, folder: Path) -> None:
        args = ["goosestack.demo.supabase", "--secret", SECRET, "--anon-key", ANON_KEY, "--service-key", SERVICE_KEY]
        self.program = Program(args, bare_environment(), folder / "project.out", folder)
        self.url = self.program.wait_for(r"listening on (\S+)").group(1)

    @property
    def issuer(self) -> str:
        """Who makes its tokens."""
        return f"{self.url}/auth/v1"

    def tell(self, method: str, path: str, /, **order: Any) -> Any:
        """An order to its control endpoints; its answer."""
        data = json.dumps(order).encode() if method in ("POST", "PUT") else None
        request = Request(f"{self.url}/control/{path}", data, {"content-type": "application/json"}, method=method)
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def token(self, **order: Any) -> str:
        """An access token, good but for what is ordered."""
        token: str = self.tell("POST", "tokens", **order)["access_token"]
        return token

    def rotate(self, alg: str = "ES256") -> str:
        """A new key signs from now on; its `kid`."""
        kid: str = self.tell("POST", "rotate", alg=alg)["kid"]
        return kid

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The requests that it has had for this path."""
        seen = self.tell("GET", "requests")["requests"]
        return [one for one in seen if one["path"] == path]

    def jwks(self) -> list[dict[str, Any]]:
        """The keys that it publishes."""
        with urlopen(f"{self.issuer}/.well-known/jwks.json", timeout=10) as answer:
            keys: list[dict[str, Any]] = json.load(answer)["keys"]
            return keys

    def published(self) -> list[str]:
        """The `kid` of each of them."""
        return [key["kid"] for key in self.jwks()]

    @property
    def fetches(self) -> int:
        """How often its keys were fetched."""
        return len(self.asked("/auth/v1/.well-known/jwks.json"))

    def close(self) -> None:
        """End it."""
        self.program.stop(signal.SIGKILL)
