"""What `/metrics` shows, in Prometheus' format.

What every request counts is added up here, in plain numbers, and handed to prometheus-client when it is asked for:
its own counters take a lock and several calls for each of the dozen that a request moves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
_COMMIT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
_COMMIT_VERBS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

Labels = tuple[str, ...]


class Counter:
    """Sums by label values."""

    def __init__(self, name: str, help: str, labels: Labels) -> None:
        self._about, self._sums = (name, help, labels), defaultdict[Labels, float](float)

    def add(self, values: Labels, amount: float = 1) -> None:
        """Add to the sum of these label values."""
        self._sums[values] += amount

    def collect(self) -> Metric:
        """As prometheus-client has it."""
        name, help, labels = self._about
        family = CounterMetricFamily(name, help, labels=labels)
        for values, total in tuple(self._sums.items()):
            family.add_metric(values, total)
        return family


class Gauge(Counter):
    """Values of this moment by label values."""

    def set(self, values: Labels, value: float) -> None:
        """Set the value of these label values."""
        self._sums[values] = value

    def collect(self) -> Metric:
        """As prometheus-client has it."""
        name, help, labels = self._about
        family = GaugeMetricFamily(name, help, labels=labels)
        for values, value in tuple(self._sums.items()):
            family.add_metric(values, value)
        return family


class Histogram:
    """Counts by bucket and label values."""

    def __init__(self, name: str, help: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self._about, self._bounds = (name, help, labels), bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums = defaultdict[Labels, float](float)

    def observe(self, values: Labels, value: float) -> None:
        """Count one value in its bucket."""
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[values] += value

    def collect(self) -> Metric:
        """As prometheus-client has it: buckets that include the lower ones."""
        name, help, labels = self._about
        family = HistogramMetricFamily(name, help, labels=labels)
        for values, counts in tuple(self._counts.items()):
            total, buckets = 0, []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric(values, buckets, self._sums[values])
        return family


class Metrics:
    """The numbers of one daemon, in a registry of its own."""

    def __init__(self) -> None:
        self.answers = Counter("goosestack_answers", "HTTP answers.", ("route", "status"))
        self.requests = Counter(
            "goosestack_requests", "Relayed requests, by how they ended.", ("wire", "provider", "reason")
        )
        self.seconds = Histogram("goosestack_request_seconds", "Time of a relayed request.", ("wire",), _SECONDS)
        self.first_seconds = Histogram(
            "goosestack_first_byte_seconds", "Time until the provider answered.", ("wire",), _SECONDS
        )
        self.tokens = Counter("goosestack_tokens", "Tokens.", ("provider", "direction"))
        self.cents = Counter("goosestack_billed_cents", "Cents billed.", ("provider",))
        self.shortfalls = Counter("goosestack_shortfall_nanodollars", "What the house bore.", ("provider",))
        self.estimates = Counter("goosestack_estimates", "Charges by estimate.", ("provider",))
        self.alerts = Counter("goosestack_alerts", "What the operator should look at.", ("kind",))
        self.commit_seconds = Histogram("goosestack_commit_seconds", "Time of a group commit.", (), _COMMIT_SECONDS)
        self.commit_verbs = Histogram("goosestack_commit_verbs", "Verbs in a group commit.", (), _COMMIT_VERBS)
        self.meter_lag = Gauge("goosestack_meter_lag_rows", "Settled requests not reported yet.", ("sink",))
        self.meter_lag_seconds = Gauge(
            "goosestack_meter_lag_seconds", "Since when the oldest of them waits.", ("sink",)
        )
        self.dead_letters = Gauge("goosestack_meter_dead_letters", "What receivers refused for good.", ("sink",))
        self.gauges: dict[str, tuple[str, float]] = {
            "goosestack_open_holds": ("Requests in flight.", 0),
            "goosestack_disk_full": ("1 while the disk has no room.", 0),
            "goosestack_books_wrong": ("Differences that the last check found.", 0),
            "goosestack_unknown_plan_users": ("Users of a plan that there is none of.", 0),
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def set(self, gauge: str, value: float) -> None:
        """Set one of the gauges."""
        self.gauges[gauge] = (self.gauges[gauge][0], value)

    def ended(self, wire: str, provider: str, reason: str, seconds: float, first_seconds: float | None) -> None:
        """Note a relayed request."""
        self.requests.add((wire, provider, reason))
        self.seconds.observe((wire,), seconds)
        if first_seconds is not None:
            self.first_seconds.observe((wire,), first_seconds)

    def charged(self, provider: str, read: int, written: int, cents: int) -> None:
        """Note a charge."""
        self.tokens.add((provider, "input"), read)
        self.tokens.add((provider, "output"), written)
        self.cents.add((provider,), cents)

    def committed(self, seconds: float, verbs: int) -> None:
        """Note a group commit; called by the writer thread, and by no other."""
        self.commit_seconds.observe((), seconds)
        self.commit_verbs.observe((), verbs)

    def collect(self) -> Iterator[Metric]:
        """All of them, for the registry."""
        for value in vars(self).values():
            if isinstance(value, Counter | Histogram):
                yield value.collect()
        for name, (help, number) in self.gauges.items():
            yield GaugeMetricFamily(name, help, value=number)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
