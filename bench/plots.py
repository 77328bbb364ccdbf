# mypy: disable-error-code="import-not-found"
# (matplotlib is installed in the benchmark's own environment only)
"""The plots of a benchmark, from its files: latency curves, CPU by process, growth.

build/bench-latency.png   p50 and p99 against the rate, a point for each number in flight
build/bench-cpu.png       CPU time a charge by process, at the most in flight
build/bench-growth.png    CPU a charge against records in the journal, once that scenario was run
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import sites

# Told apart without colour too: by their order in the legend and their marks.
COLOURS = {
    sites.PRODUCT: "#0b6e4f",
    sites.ECHO: "#9a9a9a",
    sites.TUTORIAL: "#c8553d",
    sites.DBOS_SQLITE: "#3d5a80",
    sites.DBOS_POSTGRES: "#98c1d9",
    sites.SOURCED_SQLITE: "#7b2d8b",
    sites.SOURCED_POSTGRES: "#c9a0dc",
}
MARKS = dict(zip(sites.ALL, "os^DdPX", strict=True))
PARTS = {"service": "#0b6e4f", "database": "#3d5a80", "query": "#e0a458", "bank": "#c8553d", "load": "#cccccc"}


def draw(build: Path) -> None:
    """Draw what there are files for."""
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and the product's own environment has none

    mpl.use("agg")
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130, "font.size": 9})
    if (detail := _read(build / "bench-detail.json")) is not None:
        _latency(build / "bench-latency.png", detail)
        _cpu(build / "bench-cpu.png", detail)
    if (growth := _read(build / "bench-growth.json")) is not None:
        _growth(build / "bench-growth.png", growth)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _medians(detail: Mapping[str, Any], figure: str) -> dict[str, dict[int, float]]:
    """A figure by service and in flight."""
    found: dict[str, dict[int, list[float]]] = {}
    for measured in detail["measured"]:
        found.setdefault(measured["service"], {}).setdefault(measured["in_flight"], []).append(measured[figure])
    return {
        name: {at: statistics.median(each) for at, each in sorted(by_in_flight.items())}
        for name, by_in_flight in sorted(found.items(), key=lambda entry: sites.ALL.index(entry[0]))
    }


def _latency(path: Path, detail: Mapping[str, Any]) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    rates = _medians(detail, "rate")
    for axis, (name, title) in zip(axes, (("p50_ms", "median"), ("p99_ms", "99th percentile")), strict=True):
        for service, by_in_flight in _medians(detail, name).items():
            points = [(rates[service][at], latency) for at, latency in by_in_flight.items() if rates[service][at]]
            axis.plot(
                [rate for rate, _ in points],
                [latency for _, latency in points],
                marker=MARKS[service],
                color=COLOURS[service],
                label=service,
                linewidth=2.2 if service == sites.PRODUCT else 1.2,
            )
        axis.set(xscale="log", yscale="log", xlabel="charges a second", title=f"{title}, milliseconds")
        axis.grid(visible=True, which="major", alpha=0.3)
    in_flight = ", ".join(str(at) for at in next(iter(rates.values())))
    figure.suptitle(f"Latency and rate at {in_flight} in flight, bank without delay")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _cpu(path: Path, detail: Mapping[str, Any]) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    most = max(measured["in_flight"] for measured in detail["measured"])
    figure, axis = pyplot.subplots(figsize=(9, 3.2))
    names = [name for name in sites.ALL if any(measured["service"] == name for measured in detail["measured"])]
    for row, name in enumerate(reversed(names)):
        begin = 0.0
        for part, colour in PARTS.items():
            each = [
                measured["processes_cpu_ms"].get(part, 0.0)
                for measured in detail["measured"]
                if (measured["service"], measured["in_flight"]) == (name, most)
            ]
            width = statistics.median(each)
            axis.barh(row, width, left=begin, color=colour, label=part if row == 0 else None)
            begin += width
        axis.text(begin, row, f"  {begin:.2f}", va="center", fontsize=8)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set(xlabel="milliseconds", title=f"CPU time a charge by process, {most} in flight")
    axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _growth(path: Path, growth: Mapping[str, Any]) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axis = pyplot.subplots(figsize=(5, 3))
    axis.plot(growth["records"], growth["cpu_ms"], marker="o", color=COLOURS[sites.PRODUCT])
    axis.set(xscale="log", xlabel="records in the journal", title="CPU time a charge, milliseconds", ylim=(0, None))
    axis.grid(visible=True, alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
