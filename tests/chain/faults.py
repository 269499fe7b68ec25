"""What can be wrong with a node: rules that a test sets, of which the first that fits a question decides its answer.

A rule is a JSON object. Which questions it fits: `node` (the path asked at), `method`, `contains` (a text in the
parameters), each optional; `times`, how often. What it does, one of:

    {"do": "cut"}                       close the connection without an answer
    {"do": "stall"}                     never answer
    {"do": "status", "value": 500}      an HTTP status and no JSON-RPC
    {"do": "text", "value": "<html>"}   a body that is no JSON-RPC
    {"do": "result", "value": ...}      a lie
    {"do": "error", "value": {...}}     a JSON-RPC error
    {"do": "lose"}                      take a transaction, name its hash, and forget it
    {"do": "behind", "value": 3}        answer as of so many blocks ago
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


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
