"""What `/metrics` shows, in Prometheus' format."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_COMMIT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)


class Metrics:
    """The counters of one daemon, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._children: dict[tuple[Any, tuple[object, ...]], Any] = {}
        self.answers = Counter("goosestack_answers", "HTTP answers.", ["route", "status"], registry=registry)
        self.requests = Counter(
            "goosestack_requests",
            "Relayed requests, by how they ended.",
            ["wire", "provider", "reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "goosestack_request_seconds", "Time of a relayed request.", ["wire"], buckets=_SECONDS, registry=registry
        )
        self.first_seconds = Histogram(
            "goosestack_first_byte_seconds",
            "Time until the provider answered.",
            ["wire"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter("goosestack_tokens", "Tokens.", ["provider", "direction"], registry=registry)
        self.cents = Counter("goosestack_billed_cents", "Cents billed.", ["provider"], registry=registry)
        self.open_holds = Gauge("goosestack_open_holds", "Requests in flight.", registry=registry)
        self.commit_seconds = Histogram(
            "goosestack_commit_seconds", "Time of a group commit.", buckets=_COMMIT_SECONDS, registry=registry
        )
        self.commit_verbs = Histogram(
            "goosestack_commit_verbs",
            "Verbs in a group commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.shortfalls = Counter(
            "goosestack_shortfall_nanodollars", "What the house bore.", ["provider"], registry=registry
        )
        self.estimates = Counter("goosestack_estimates", "Charges by estimate.", ["provider"], registry=registry)
        self.alerts = Counter("goosestack_alerts", "What the operator should look at.", ["kind"], registry=registry)
        self.disk_full = Gauge("goosestack_disk_full", "1 while the disk has no room.", registry=registry)
        self.books_wrong = Gauge("goosestack_books_wrong", "Differences that the last check found.", registry=registry)

    def ended(self, wire: str, provider: str, reason: str, seconds: float, first_seconds: float | None) -> None:
        """Note a relayed request."""
        self._child(self.requests, wire, provider, reason).inc()
        self._child(self.seconds, wire).observe(seconds)
        if first_seconds is not None:
            self._child(self.first_seconds, wire).observe(first_seconds)

    def charged(self, provider: str, read: int, written: int, cents: int) -> None:
        """Note a charge."""
        self._child(self.tokens, provider, "input").inc(read)
        self._child(self.tokens, provider, "output").inc(written)
        self._child(self.cents, provider).inc(cents)

    def answered(self, route: str, status: int) -> None:
        """Note an HTTP answer."""
        self._child(self.answers, route, status).inc()

    def _child(self, metric: Any, *labels: object) -> Any:
        """The same as `metric.labels`, remembered: it stringifies and locks on every call."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def committed(self, seconds: float, verbs: int) -> None:
        """Note a group commit; called by the writer thread."""
        self.commit_seconds.observe(seconds)
        self.commit_verbs.observe(verbs)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
