"""The door of the tests' chain, and what can be wrong with a node: a test sets rules, of which the first that fits a
question decides its answer. Every path is a node of its own on the same chain, so that a fault can hit one of several.

A rule is a JSON object. Which questions it fits: `node` (the path asked at), `method`, `contains` (a text in the
parameters), each optional; `times`, how often. What it does, one of:

    {"do": "cut"}                       close the connection without an answer
    {"do": "stall"}                     never answer
    {"do": "drip"}                      answer a byte at a time, without end
    {"do": "mute"}                      do what is asked, and never answer
    {"do": "status", "value": 500}      an HTTP status and no JSON-RPC
    {"do": "text", "value": "<html>"}   a body that is no JSON-RPC
    {"do": "result", "value": ...}      a lie
    {"do": "error", "value": {...}}     a JSON-RPC error
    {"do": "lose"}                      take a transaction, name its hash, and forget it
    {"do": "behind", "value": 3}        answer as of so many blocks ago
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from tests.chain.evm import Refused


@dataclass
class Faults:
    """The rules in force, and a count of the questions that each node was asked."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def heal(self) -> None:
        """No more faults, and a new count."""
        self.rules.clear()
        self.asked.clear()

    def fitting(self, node: str, method: str, params: list[Any]) -> dict[str, Any]:
        """The first rule for a question; an empty one where none fits. Uses up one of its times."""
        self.asked.append((node, method))
        text = json.dumps(params)
        for rule in self.rules:
            if rule.get("times") == 0:
                continue
            fits = rule.get("node", node) == node and rule.get("method", method) == method
            if fits and rule.get("contains", "") in text:
                if "times" in rule:
                    rule["times"] -= 1
                return rule
        return {}


class Backend(Protocol):
    """What knows the answers."""

    async def answer(self, method: str, params: list[Any], *, behind: int, lose: bool) -> Any: ...


class Door:
    """JSON-RPC over HTTP, with the faults in between; tests set them by test_fault, test_heal and test_asked."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.faults = Faults()
        self.methods: dict[str, Callable[..., object]] = {
            "test_fault": self.faults.rules.append,
            "test_heal": self.faults.heal,
            "test_asked": lambda: list(self.faults.asked),
        }

    async def serve(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        method, params = asked["method"], list(asked.get("params", []))
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": asked["id"]}
        if method in self.methods:
            return web.json_response(answer | {"result": self.methods[method](*params)})
        rule = self.faults.fitting(request.path, method, params) if method.startswith("eth_") else {}
        match rule.get("do"):
            case "cut":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "stall":
                await asyncio.Event().wait()
            case "drip":
                return await _drip(request)
            case "status":
                return web.Response(status=rule["value"], text="out of order")
            case "text":
                return web.Response(text=rule["value"])
            case "result":
                return web.json_response(answer | {"result": rule["value"]})
            case "error":
                return web.json_response(answer | {"error": rule["value"]})
        behind = rule["value"] if rule.get("do") == "behind" else 0
        try:
            result = await self.backend.answer(method, params, behind=behind, lose=rule.get("do") == "lose")
        except Refused as error:
            problem: dict[str, Any] = {"code": error.code, "message": str(error)}
            if error.data is not None:
                problem["data"] = "0x" + error.data.hex()
            return web.json_response(answer | {"error": problem})
        if rule.get("do") == "mute":
            await asyncio.Event().wait()
        return web.json_response(answer | {"result": result})


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)
