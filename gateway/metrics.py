"""Numbers for Prometheus: counted as things happen, read from the store when somebody asks.

Base units, no ids of people or resources in labels. A name is a label only when such a target is configured, so that nobody can
grow the number of series by asking for invented ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus

from msgspec import Struct
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST
UNKNOWN = "unknown"

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the page and tell nothing


class TargetGauges(Struct, frozen=True, kw_only=True):
    """What is read from the store for one target at the moment of a scrape.

    Args:
        counts: resources by state.
        oldest_waiting_s: age in seconds of the oldest wish that is not settled; 0 when nothing waits.
        circuit_open: whether the target is not called.
        drift: differences of the last reconciliation by class.
        reconciled_at: when it ended; 0 when there was none.
        reconcile_state: what it came to. reconcile_next_at: when the next one is due; 0 when none is.
        key_ends: when the last access key and the last client secret that were not revoked end, in epoch seconds, by kind.
    """

    target: str
    counts: Mapping[str, int]
    oldest_waiting_s: float
    circuit_open: bool
    drift: Mapping[str, int] = {}
    reconciled_at: float = 0.0
    reconcile_state: str = ""
    reconcile_next_at: float = 0.0
    key_ends: Mapping[str, float] = {}


class Metrics:
    """The counters of one gateway process.

    Args:
        known: names of the configured targets; any other name is counted as `unknown`.
        now: epoch seconds.
    """

    def __init__(self, known: Iterable[str] = (), now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.known = frozenset(known)
        self._last: dict[str, tuple[float, str]] = {}
        self._called: dict[str, float] = {}
        self._counting: dict[tuple[str, str, int], Counter] = {}
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "provgate_requests_total",
            "SCIM requests answered, by target, operation and HTTP status.",
            ("target", "op", "status"),
            registry=self._registry,
        )
        self._outcomes = Counter(
            "provgate_outcomes_total",
            "Outcomes folded, by target and result of the delivery.",
            ("target", "result"),
            registry=self._registry,
        )
        self._overload = Gauge(
            "provgate_overload_step",
            "What is left out for want of time: 0 nothing, 1 reports, 2 lists too, 3 writes too.",
            registry=self._registry,
        )
        self._mails = Counter(
            "provgate_mails_total",
            "Attempts to send a mail to operators: sent, deferred (tried again) or failed (given up).",
            ("outcome",),
            registry=self._registry,
        )
        self._shed = Counter(
            "provgate_shed_total",
            "Requests refused for want of time: reports, lists or writes.",
            ("what",),
            registry=self._registry,
        )

    def count_mail(self, outcome: str) -> None:
        """One attempt to send a mail ended. `outcome` is `sent`, `deferred` or `failed`."""
        self._mails.labels(outcome).inc()

    def set_overload(self, step: int) -> None:
        """What is left out from now on; see `gateway/limits.py`."""
        self._overload.set(step)

    def count_shed(self, what: str) -> None:
        """One request was refused for want of time. `what` is `reports`, `lists` or `writes`."""
        self._shed.labels(what).inc()

    def know(self, targets: Iterable[str]) -> None:
        """The configuration changed: these names may be labels from now on."""
        self.known = frozenset(targets)

    def count_request(self, target: str, op: str, status: int) -> None:
        """One SCIM request was answered. `op` is one of a fixed set, e.g. `create`, `read`, `filter`."""
        named = (self._label(target), op, status)
        counter = self._counting.get(named)
        if counter is None:
            counter = self._counting[named] = self._requests.labels(*map(str, named))
        counter.inc()
        if status != HTTPStatus.UNAUTHORIZED:
            self._called[named[0]] = self._now()

    def last_request(self, target: str) -> float | None:
        """When this process last answered a SCIM request of somebody it let in (vendor requirement S19); epoch seconds."""
        return self._called.get(target)

    def count_outcome(self, target: str, result: str, at: float) -> None:
        """One outcome was folded at this epoch time."""
        name = self._label(target)
        self._outcomes.labels(name, result).inc()
        self._last[name] = (at, result)

    def last_outcome(self, target: str) -> tuple[float, str] | None:
        """When the last outcome of a target was folded by this process, and what it was."""
        return self._last.get(target)

    def render(self, gauges: Iterable[TargetGauges]) -> bytes:
        """The page for Prometheus, in its text format (content type CONTENT_TYPE)."""
        # gauges live in a registry of this page alone: two scrapes at once never see each other's half-made numbers
        page = CollectorRegistry()
        page.register(_Gauges(tuple(gauges)))
        return generate_latest(self._registry) + generate_latest(page)

    def _label(self, target: str) -> str:
        return target if target in self.known else UNKNOWN


class _Gauges:
    """Prometheus' collector of one scrape."""

    def __init__(self, gauges: tuple[TargetGauges, ...]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        resources = GaugeMetricFamily("provgate_resources", "Resources by state.", labels=("target", "state"))
        oldest = GaugeMetricFamily(
            "provgate_oldest_waiting_seconds", "Age of the oldest wish that is not settled.", labels=("target",)
        )
        circuit = GaugeMetricFamily(
            "provgate_circuit_open", "1 while the target is not called, else 0.", labels=("target",)
        )
        drift = GaugeMetricFamily(
            "provgate_drift", "Differences that the last reconciliation found, by class.", labels=("target", "class")
        )
        reconciled = GaugeMetricFamily(
            "provgate_reconciled_timestamp_seconds", "When the last reconciliation ended.", labels=("target",)
        )
        ended = GaugeMetricFamily(
            "provgate_reconcile_state", "1 for what the last reconciliation came to.", labels=("target", "state")
        )
        due = GaugeMetricFamily(
            "provgate_reconcile_due_timestamp_seconds", "When the next reconciliation begins.", labels=("target",)
        )
        ends = GaugeMetricFamily(
            "provgate_key_expires_timestamp_seconds",
            "When the last access key or client secret of a target ends.",
            labels=("target", "kind"),
        )
        for gauge in self._gauges:
            for kind, at in sorted(gauge.key_ends.items()):
                ends.add_metric((gauge.target, kind), at)
            for name, count in sorted(gauge.drift.items()):
                drift.add_metric((gauge.target, name), count)
            if gauge.reconciled_at:
                reconciled.add_metric((gauge.target,), gauge.reconciled_at)
                ended.add_metric((gauge.target, gauge.reconcile_state), 1.0)
            if gauge.reconcile_next_at:
                due.add_metric((gauge.target,), gauge.reconcile_next_at)
            for state, count in sorted(gauge.counts.items()):
                resources.add_metric((gauge.target, state), count)
            oldest.add_metric((gauge.target,), gauge.oldest_waiting_s)
            circuit.add_metric((gauge.target,), float(gauge.circuit_open))
        yield from (resources, oldest, circuit, drift, reconciled, ended, due, ends)
