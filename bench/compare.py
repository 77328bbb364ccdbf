"""The comparison: every service under the same load at the same bank, in turns.

Several rounds, one service after the other within a round, in another order each round. Figures are medians over the rounds;
ratios are taken within a round, between services measured minutes apart, when the machine's speed has changed little, and the
result is their median.

A peer may run in several variants: another client for the bank, another database. `rate against the best X` is the ratio to the
variant of X that was the fastest in that round under that load.

`cpu_ms` is the CPU time of the service's own processes for each charge, with the server of its database or engine. `memory_mb`
is the proportional set size of the same processes. Bank, load generator and the product's query server are reported separately.
"""

import statistics
from collections.abc import AsyncIterator, Mapping, Sequence

from bench import sites
from bench.measure import Measurement, Size, measure

FIGURES = ("rate", "p50_ms", "p99_ms", "p999_ms", "cpu_ms", "memory_mb")


async def compare(names: Sequence[str], in_flight: Sequence[int], size: Size) -> AsyncIterator[list[Measurement]]:
    """Measure services in turns; yields each service's measurements of a round as soon as it has them."""
    for number in range(size.rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            if number and name in sites.ONE_ROUND:
                continue
            async with sites.open_site(name) as site:
                yield await measure(site, name, in_flight, size, round_number=number)


def summary(measurements: Sequence[Measurement]) -> dict[str, object]:
    """Summarise the measurements, in the form of bench.json."""
    services: dict[str, dict[str, dict[str, float]]] = {}
    by_process: dict[str, dict[str, dict[str, float]]] = {}
    for name, in_flight, rounds in _groups(measurements):
        services.setdefault(name, {})[str(in_flight)] = {
            figure: rounded(statistics.median(getattr(m, figure) for m in rounds)) for figure in FIGURES
        }
        by_process.setdefault(name, {})[str(in_flight)] = {
            process: rounded(statistics.median(m.processes_cpu_ms[process] for m in rounds))
            for process in rounds[0].processes_cpu_ms
        }
    errors = {
        f"{name} {in_flight}": sum(sum(m.errors.values()) for m in rounds)
        for name, in_flight, rounds in _groups(measurements)
    }
    return {
        "services": services,
        "ratios": ratios(measurements),
        "cpu_ms_by_process": by_process,
        "errors": {each: count for each, count in errors.items() if count},
    }


def ratios(measurements: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """The product's ratios to each peer, by figure and in flight: medians of the ratios within each round."""
    by_measurement = {(m.round, m.service, m.in_flight): m for m in measurements}
    found: dict[str, dict[str, float]] = best_ratios(measurements)
    for other, in_flight, theirs in _groups(measurements):
        if other == sites.PRODUCT:
            continue
        for figure in ("rate", "cpu_ms"):
            each = [
                getattr(ours, figure) / getattr(their, figure)
                for their in theirs
                if (ours := by_measurement.get((their.round, sites.PRODUCT, in_flight))) and getattr(their, figure)
            ]
            if each:
                found.setdefault(f"{figure} against {other}", {})[str(in_flight)] = rounded(statistics.median(each))
    return found


def best_ratios(measurements: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """The product's rate against the best variant of each family, by in flight: medians of the ratios within each round.

    Which variant is the best is decided anew in each round and for each load. A round in which one of them was not measured
    gives no ratio: the best of some is not the best of all.
    """
    rates = {(m.round, m.service, m.in_flight): m.rate for m in measurements}
    found: dict[str, dict[str, float]] = {}
    for family, variants in sites.FAMILIES.items():
        for in_flight in sorted({m.in_flight for m in measurements}):
            each = []
            for number in {m.round for m in measurements}:
                ours = rates.get((number, sites.PRODUCT, in_flight))
                theirs = [rates[at] for variant in variants if (at := (number, variant, in_flight)) in rates]
                if ours is not None and len(theirs) == len(variants) and max(theirs):
                    each.append(ours / max(theirs))
            if each:
                ratio = rounded(statistics.median(each))
                found.setdefault(f"rate against the best {family}", {})[str(in_flight)] = ratio
    return found


def _groups(measurements: Sequence[Measurement]) -> list[tuple[str, int, list[Measurement]]]:
    """The rounds of each service and number in flight, in the order of the table."""
    found: dict[tuple[int, int], list[Measurement]] = {}
    for m in measurements:
        found.setdefault((sites.ALL.index(m.service), m.in_flight), []).append(m)
    return [(sites.ALL[at], in_flight, rounds) for (at, in_flight), rounds in sorted(found.items())]


def rounded(value: float) -> float:
    """Round to four digits: more would be noise."""
    return float(f"{value:.4g}")


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The services of bench.json for a terminal."""
    head = f"{'service':<30}{'in flight':>10}{'rate/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'p99.9':>9}{'cpu ms':>9}{'MB':>7}"
    lines = [head]
    for in_flight in sorted({int(at) for by_in_flight in found.values() for at in by_in_flight}):
        lines.append("")
        for name, by_in_flight in found.items():
            if (figures := by_in_flight.get(str(in_flight))) is not None:
                lines.append(
                    f"{name:<30}{in_flight:>10}{figures['rate']:>9,.0f}{figures['p50_ms']:>9.2f}"
                    f"{figures['p99_ms']:>9.1f}{figures['p999_ms']:>9.1f}{figures['cpu_ms']:>9.3f}"
                    f"{figures['memory_mb']:>7.0f}"
                )
    return "\n".join(lines)
