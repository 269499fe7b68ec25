"""The built-in upstream: speaks every wire format, answers without a model, and fails on demand.

It powers `goosestack serve --demo` and the tests. It is as strict as the real vendors about what it
is sent, and keeps a witness log of it. A question that contains `demo:{...}` tells it how to answer
(see `directive.Directive`), including every fault in FAULTS.
"""

from goosestack.demo.directive import Directive
from goosestack.demo.faults import FAULT_TEXTS, FAULTS, fits
from goosestack.demo.openai import MODELS
from goosestack.demo.server import Log, make_app, start

__all__ = ["FAULTS", "FAULT_TEXTS", "MODELS", "Directive", "Log", "fits", "make_app", "start"]
