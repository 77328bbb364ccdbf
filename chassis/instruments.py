"""The instruments of a process: what it counts and times, by labels with few values, as Prometheus reads it.

Instruments belong to a server, not to the process. Only the thread of the event loop uses them, which serves their readers too.
So none takes a lock, and a note costs a third of a microsecond. A label whose value is empty is left out of what is read.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString


class Description(NamedTuple):
    """A metric, as docs/metrics.md tells it. The name is without the prefix of all metrics; its end is the unit."""

    name: str
    kind: str
    """gauge, counter or histogram."""
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram's classes, rising."""


class Instrument(Protocol):
    """What is described, and read as one metric."""

    description: Description

    def read(self, prefix: str) -> Metric:
        """Return the present figures."""
        ...


class Gauge(NamedTuple):
    """The description of a gauge, whose figure is taken when it is read."""

    text: str
    labels: tuple[str, ...] = ()


class By(NamedTuple):
    """A figure for each of a few names, which are told as a label; the empty name is told without it.

    With several labels each name is a tuple of their values.
    """

    label: str | tuple[str, ...]
    figures: Mapping[str, float] | Mapping[tuple[str, ...], float]


Figures = Mapping[str, float | By]


def described(gauges: Mapping[str, Gauge]) -> list[Description]:
    """Return the descriptions of gauges."""
    return [Description(name, "gauge", gauge.text, gauge.labels) for name, gauge in gauges.items()]


def read_gauge(prefix: str, name: str, gauge: Gauge, figure: float | By) -> Metric:
    """Return a gauge with the figure that was taken."""
    family = GaugeMetricFamily(f"{prefix}_{name}", gauge.text)
    if not isinstance(figure, By):
        family.add_sample(f"{prefix}_{name}", {}, figure)
        return family
    labels = figure.label if isinstance(figure.label, tuple) else (figure.label,)
    for of, number in figure.figures.items():
        family.add_sample(f"{prefix}_{name}", _told(labels, of if isinstance(of, tuple) else (of,)), number)
    return family


def _told(labels: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    return {label: value for label, value in zip(labels, values, strict=True) if value}


class Counter:
    """Counts what happens, since the process's start. Its name ends in _total."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...] = (), known: Sequence[tuple[str, ...]] = ()
    ) -> None:
        """`known` are values of the labels that are told from the start, as 0: of others a rate misses the first one."""
        self.description = Description(name, "counter", text, labels)
        self._counts: dict[tuple[str, ...], int] = dict.fromkeys(known if labels else [()], 0)

    def add(self, *values: str, count: int = 1) -> None:
        """Count, under the values of the labels."""
        self._counts[values] = self._counts.get(values, 0) + count

    def read(self, prefix: str) -> Metric:
        """Return the present figures."""
        name, labels = f"{prefix}_{self.description.name}", self.description.labels
        family = CounterMetricFamily(name, self.description.text)
        for values, count in self._counts.items():
            family.add_sample(name, _told(labels, values), count)
        return family


class Classes:
    """How many of what was measured fell into each class: up to its bound, and in the last one all that was more."""

    __slots__ = ("counts", "total")

    def __init__(self, count: int) -> None:
        self.counts = [0] * count
        self.total = 0.0


class Histogram:
    """Counts what is measured, in classes."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], labels: tuple[str, ...] = ()) -> None:
        self.description = Description(name, "histogram", text, labels, bounds)
        self._bounds = bounds
        self._children: dict[tuple[str, ...], Classes] = {} if labels else {(): Classes(len(bounds) + 1)}

    def note(self, measured: float, values: tuple[str, ...] = ()) -> None:
        """Count one, under the values of the labels."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Classes(len(self._bounds) + 1)
        child.counts[bisect_left(self._bounds, measured)] += 1
        child.total += measured

    def items(self) -> Iterable[tuple[tuple[str, ...], Classes]]:
        """Return the classes by the values of the labels."""
        return self._children.items()

    def read(self, prefix: str) -> Metric:
        """Return the present figures."""
        name, labels = f"{prefix}_{self.description.name}", self.description.labels
        family = HistogramMetricFamily(name, self.description.text)
        bounds = [*map(floatToGoString, self.description.bounds), "+Inf"]
        for values, child in self._children.items():
            told = _told(labels, values)
            for bound, count in zip(bounds, accumulate(child.counts), strict=True):
                family.add_sample(f"{name}_bucket", {**told, "le": bound}, count)
            family.add_sample(f"{name}_count", told, sum(child.counts))
            family.add_sample(f"{name}_sum", told, child.total)
        return family
