"""Counters and the latency histogram, by app and release. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from frontend.router import Key

BOUNDS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)

COUNTERS = (
    "rejected_heads", "no_route", "retried", "refused", "lost", "failed", "cancelled",
    "hold_overflow", "hold_timeout", "first_byte_timeout", "bad_replies", "stray_replies",
    "rejected_hellos", "handlers_joined", "handlers_gone", "bad_frames", "bad_updates",
    "log_lines_dropped",
)  # fmt: skip


class Series:
    """What the requests of one release came to."""

    __slots__ = ("buckets", "bytes_in", "bytes_out", "requests", "seconds", "statuses")

    def __init__(self) -> None:
        self.requests = 0
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(self, status: int, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """One request has ended; 499 is a client that left before the answer."""
        self.requests += 1
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds += seconds
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out


class Metrics:
    """Everything counted since the start."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.series: dict[Key, Series] = {}

    def count(self, name: str) -> None:
        self.counters[name] += 1

    def of(self, key: Key) -> Series:
        """The series of a release."""
        series = self.series.get(key)
        if series is None:
            if len(self.series) >= 1000:  # releases of years: forget the oldest
                del self.series[next(iter(self.series))]
            series = self.series[key] = Series()
        return series

    def render(self, gauges: dict[str, dict[Key | None, int]]) -> str:
        """Prometheus's text format. `gauges`: name → release (None: all) → value."""
        return "\n".join([*self._counters(), *_gauges(gauges), *self._series(), ""])

    def _counters(self) -> Iterator[str]:
        for name, value in self.counters.items():
            yield f"# TYPE bareku_frontend_{name}_total counter"
            yield f"bareku_frontend_{name}_total {value}"

    def _series(self) -> Iterator[str]:
        yield "# TYPE bareku_requests_total counter"
        for key, series in self.series.items():
            for status, count in sorted(series.statuses.items()):
                yield f'bareku_requests_total{{{_labels(key)},status="{status}"}} {count}'
        yield "# TYPE bareku_request_seconds histogram"
        for key, series in self.series.items():
            total = 0
            for bound, count in zip((*BOUNDS_S, "+Inf"), series.buckets, strict=True):
                total += count
                yield f'bareku_request_seconds_bucket{{{_labels(key)},le="{bound}"}} {total}'
            yield f"bareku_request_seconds_sum{{{_labels(key)}}} {series.seconds:.6f}"
            yield f"bareku_request_seconds_count{{{_labels(key)}}} {series.requests}"
        for name in ("bytes_in", "bytes_out"):
            yield f"# TYPE bareku_{name}_total counter"
            for key, series in self.series.items():
                yield f"bareku_{name}_total{{{_labels(key)}}} {getattr(series, name)}"


def _labels(key: Key) -> str:
    return f'app="{key[0]}",release="{key[1]}"'


def _gauges(gauges: dict[str, dict[Key | None, int]]) -> Iterator[str]:
    for name, values in gauges.items():
        yield f"# TYPE bareku_{name} gauge"
        for key, value in values.items():
            yield f"bareku_{name}{{{_labels(key)}}} {value}" if key else f"bareku_{name} {value}"
