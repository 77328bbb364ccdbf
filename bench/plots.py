# mypy: disable-error-code="import-not-found"
# (matplotlib is installed in the benchmark's own environment only)
"""The plots of a benchmark, from the content of bench.json: latency curves, CPU by process, growth.

benchmark-latency.svg   p50 and p99 against the rate, a point for each number in flight
benchmark-cpu.svg       CPU time a charge by process, at the most in flight, without Temporal's
benchmark-growth.svg    CPU a charge against records in the journal
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import sites

LATENCY = "benchmark-latency.svg"
# A service with another client for the bank has the colour of its kind, and another mark. Without colour, the order in the
# legend and the marks distinguish the services.
COLOURS = {
    sites.PRODUCT: "#0b6e4f",
    sites.ECHO: "#9a9a9a",
    sites.TUTORIAL: "#c8553d",
    sites.DBOS_SQLITE: "#3d5a80",
    sites.DBOS_POSTGRES: "#98c1d9",
    sites.SOURCED_SQLITE: "#7b2d8b",
    sites.SOURCED_POSTGRES: "#c9a0dc",
    sites.RESTATE: "#e0a458",
    sites.RESTATE_LOCAL: "#a8743a",
    sites.TEMPORAL_LOCAL: "#5c4d3c",
    sites.TEMPORAL: "#b8a88f",
}
MARKS = dict(zip(sites.ALL, "os^vDdXPph*8<>", strict=True))
PARTS = {
    "service": "#0b6e4f",
    "database": "#3d5a80",
    "server": "#7b2d8b",
    "query": "#e0a458",
    "bank": "#c8553d",
    "load": "#cccccc",
}


def draw(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Draw the measured parts; return the files."""
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and the product's own environment has none

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
            "svg.hashsalt": "benchmark",  # equal figures give equal files
        }
    )
    paths = []
    for name, part, plot in (
        (LATENCY, "services", _latency),
        ("benchmark-cpu.svg", "cpu_ms_by_process", _cpu),
        ("benchmark-growth.svg", "growth", _growth),
    ):
        if part in found:
            paths.append(folder / name)
            plot(paths[-1], found[part])
    return paths


def _latency(path: Path, services: Mapping[str, Any]) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.8), sharey=True)
    for axis, (name, title) in zip(axes, (("p50_ms", "median"), ("p99_ms", "99th percentile")), strict=True):
        for service, by_in_flight in services.items():
            points = [(each["rate"], each[name]) for each in by_in_flight.values() if each["rate"]]
            axis.plot(
                [rate for rate, _ in points],
                [latency for _, latency in points],
                marker=MARKS[service],
                color=COLOURS[service.removesuffix(sites.AIOHTTP)],
                label=service,
                linewidth=2.2 if service == sites.PRODUCT else 1.2,
            )
        axis.set(xscale="log", yscale="log", xlabel="charges a second", title=f"{title}, milliseconds")
        axis.grid(visible=True, which="major", alpha=0.3)
    in_flight = ", ".join(next(iter(services.values())))
    figure.suptitle(f"Latency and rate at {in_flight} in flight, bank without delay")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False, fontsize=8)
    _save(figure, path, bottom=0.14)


def _cpu(path: Path, by_process: Mapping[str, Any]) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    most = max((int(at) for by_in_flight in by_process.values() for at in by_in_flight), default=0)
    figure, axis = pyplot.subplots(figsize=(9, 4.6))
    # Temporal's bars would leave no room for the others.
    names = [name for name, loads in by_process.items() if str(most) in loads and name not in sites.ONE_ROUND]
    for row, name in enumerate(reversed(names)):
        begin = 0.0
        for part, colour in PARTS.items():
            width = by_process[name][str(most)].get(part, 0.0)
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


def _save(figure: Any, path: Path, *, bottom: float = 0.0) -> None:
    figure.tight_layout(rect=(0.0, bottom, 1.0, 1.0))
    figure.savefig(path, metadata={"Date": None})
