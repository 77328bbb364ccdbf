"""The benchmark: python -m bench.run, or make bench (QUICK=1 for a small one)

Every service is measured with the same load at the same bank, several rounds, one service after the other within a round, in
another order each round. Figures are medians over the rounds; ratios are made within a round, of services measured minutes
apart on a machine in the same mood, and their median is told.

    build/bench.json          commit, services: name: in_flight: rate, p50_ms, p99_ms, cpu_ms, memory_mb, and ratios
    build/bench-detail.json   every single measurement, with p99.9, CPU time of each process, errors
    build/bench-*.png         plots

`cpu_ms` is the CPU time of the service's own processes for each charge, its database server's included; the bank, the load
generator and the product's query server are told beside it. `memory_mb` is theirs alike, proportional set size.

`python -m bench.run SCENARIO` measures one of the other targets; see `bench.scenarios`.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import sites
from bench.machine import Cost, cost, load_average

BUILD = Path("build")
IN_FLIGHT = (1, 16, 128)
# Beyond a measured time and its pauses: a load generator that has not said `end` by then never will.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """How long is measured, and how often."""

    rounds: int
    seconds: float
    warmup_seconds: float


FULL = Size(rounds=5, seconds=5.0, warmup_seconds=1.0)
QUICK = Size(rounds=1, seconds=0.7, warmup_seconds=0.2)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One service under one load, once."""

    round: int
    service: str
    in_flight: int
    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_ms: float
    memory_mb: float
    processes_cpu_ms: Mapping[str, float]
    """CPU time for each charge by process: the service's own, the bank, the load generator, the query server."""
    processes_memory_mb: Mapping[str, float]
    errors: Mapping[str, int]
    more: Mapping[str, object]
    """What else the load generator tells."""
    load_average: float


async def measure(
    site: sites.Site, name: str, in_flight: Sequence[int], size: Size, *options: str, round_number: int = 0
) -> list[Measurement]:
    """Put load on a service, one measurement for each number of charges in flight. `options` go to the load generator."""
    generator = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load",
        site.listen,
        "--in-flight",
        *map(str, in_flight),
        "--seconds",
        str(size.seconds),
        "--warmup-seconds",
        str(size.warmup_seconds),
        *options,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    assert generator.stdout is not None
    pids = {**site.own, **site.others, "load": generator.pid}
    measurements = []
    try:
        for number in in_flight:
            patience = size.seconds + size.warmup_seconds + PATIENCE_SECONDS
            await asyncio.wait_for(generator.stdout.readline(), patience)
            begun = {process: cost(pid) for process, pid in pids.items()}
            result = json.loads(await asyncio.wait_for(generator.stdout.readline(), patience))
            ended = {process: cost(pid) for process, pid in pids.items()}
            measurements.append(_measurement(round_number, name, number, site, begun, ended, result))
    finally:
        if generator.returncode is None:
            generator.kill()
        await generator.wait()
    return measurements


def _measurement(
    round_number: int,
    name: str,
    in_flight: int,
    site: sites.Site,
    begun: Mapping[str, Cost],
    ended: Mapping[str, Cost],
    result: dict[str, object],
) -> Measurement:
    charges = max(1, int(str(result.pop("charges"))))
    spent = {process: (ended[process].cpu_seconds - begun[process].cpu_seconds) * 1000 / charges for process in begun}
    memory = {process: ended[process].memory_mb for process in ended}
    figures = {key: float(str(result.pop(key))) for key in ("rate", "p50_ms", "p99_ms", "p999_ms", "max_ms")}
    errors = result.pop("errors")
    assert isinstance(errors, dict)
    return Measurement(
        round=round_number,
        service=name,
        in_flight=in_flight,
        **figures,
        cpu_ms=sum(spent[process] for process in site.own),
        memory_mb=sum(memory[process] for process in site.own),
        processes_cpu_ms=spent,
        processes_memory_mb=memory,
        errors=errors,
        more=result,
        load_average=load_average(),
    )


async def compare(names: list[str], in_flight: Sequence[int], size: Size) -> list[Measurement]:
    """Measure services in turns."""
    measurements = []
    for number in range(size.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            async with sites.open_site(name) as site:
                for measurement in await measure(site, name, in_flight, size, round_number=number):
                    measurements.append(measurement)
                    _tell(measurement)
    return measurements


def _tell(measurement: Measurement) -> None:
    errors = f"  errors {dict(measurement.errors)}" if measurement.errors else ""
    print(
        f"  round {measurement.round + 1}  {measurement.service:<23}{measurement.in_flight:>6} in flight"
        f"{measurement.rate:>9,.0f}/s{errors}",
        file=sys.stderr,
    )


# ---------------------------------------------------------------- what it comes to
def summary(measurements: Sequence[Measurement]) -> dict[str, object]:
    """The content of bench.json."""
    services: dict[str, dict[str, dict[str, float]]] = {}
    for name in sorted({m.service for m in measurements}, key=sites.ALL.index):
        services[name] = {}
        for in_flight in sorted({m.in_flight for m in measurements}):
            rounds = [m for m in measurements if (m.service, m.in_flight) == (name, in_flight)]
            services[name][str(in_flight)] = {
                figure: _rounded(statistics.median(getattr(m, figure) for m in rounds))
                for figure in ("rate", "p50_ms", "p99_ms", "cpu_ms", "memory_mb")
            }
    return {"commit": commit(), "services": services, "ratios": ratios(measurements)}


def ratios(measurements: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """How the product compares, by what is compared and in flight: medians of the ratios within each round."""
    by_place = {(m.round, m.service, m.in_flight): m for m in measurements}
    others = [name for name in sites.ALL if name != sites.PRODUCT]
    found: dict[str, dict[str, float]] = {}
    for in_flight in sorted({m.in_flight for m in measurements}):
        for other in others:
            pairs = [
                (m, by_place[number, other, in_flight])
                for (number, name, at), m in by_place.items()
                if name == sites.PRODUCT and at == in_flight and (number, other, in_flight) in by_place
            ]
            for figure in ("rate", "cpu_ms"):
                each = [
                    getattr(ours, figure) / getattr(theirs, figure) for ours, theirs in pairs if getattr(theirs, figure)
                ]
                if each:
                    entry = found.setdefault(f"{figure} against {other}", {})
                    entry[str(in_flight)] = _rounded(statistics.median(each))
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def commit() -> str:
    """The commit that is checked out, with a mark if files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def table(measurements: Sequence[Measurement]) -> str:
    """For a terminal: a line for each service and number in flight."""
    head = f"{'service':<23}{'in flight':>10}{'rate/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'p99.9':>9}{'cpu ms':>9}{'MB':>7}"
    lines = [head + f"{'query':>9}{'bank':>7}{'load':>7}"]
    for in_flight in sorted({m.in_flight for m in measurements}):
        lines.append("")
        for name in sites.ALL:
            rounds = [m for m in measurements if (m.service, m.in_flight) == (name, in_flight)]
            if rounds:
                lines.append(_line(name, in_flight, rounds))
    return "\n".join(lines)


def _line(name: str, in_flight: int, rounds: Sequence[Measurement]) -> str:
    def median(figure: str) -> float:
        return float(statistics.median(getattr(m, figure) for m in rounds))

    def cpu(process: str) -> float:
        return statistics.median(m.processes_cpu_ms.get(process, 0.0) for m in rounds)

    errors = sum(sum(m.errors.values()) for m in rounds)
    return (
        f"{name:<23}{in_flight:>10}{median('rate'):>9,.0f}{median('p50_ms'):>9.2f}{median('p99_ms'):>9.1f}"
        f"{median('p999_ms'):>9.1f}{median('cpu_ms'):>9.3f}{median('memory_mb'):>7.0f}"
        f"{cpu('query'):>9.3f}{cpu('bank'):>7.3f}{cpu('load'):>7.3f}" + (f"  {errors} errors" if errors else "")
    )


def ratio_lines(found: Mapping[str, Mapping[str, float]]) -> str:
    """For a terminal: a line for each ratio."""
    lines = ["the product's figure divided by the other's, median of the ratios within each round:"]
    for name, by_in_flight in found.items():
        lines.append(f"  {name:<42}" + "".join(f"{at:>6}: {ratio:<8.2f}" for at, ratio in by_in_flight.items()))
    return "\n".join(lines)


def write(path: Path, content: object) -> None:
    """Write JSON for people and programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


async def compare_and_tell(names: list[str], in_flight: Sequence[int], size: Size) -> None:
    """The comparison, from the first start to the last file."""
    measurements = await compare(names, in_flight, size)
    found = summary(measurements)
    write(BUILD / "bench.json", found)
    write(
        BUILD / "bench-detail.json",
        {"commit": commit(), "size": asdict(size), "measured": [asdict(m) for m in measurements]},
    )
    print(table(measurements))
    print()
    print(ratio_lines(ratios(measurements)))
    print(
        f"\nload average {load_average():.1f} on {os.cpu_count()} cores; files: {BUILD}/bench.json, {BUILD}/bench-*.png"
    )


def main() -> None:
    """Run what the command line asks for."""
    from bench import plots, scenarios  # noqa: PLC0415  # they import this module

    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measures the product and its peers.")
    parser.add_argument("scenario", nargs="?", choices=["compare", *scenarios.ALL, "all"], default="compare")
    parser.add_argument(
        "--quick", action="store_true", default=os.environ.get("QUICK") == "1", help="small; or QUICK=1"
    )
    parser.add_argument("--services", nargs="+", choices=sites.ALL, default=list(sites.ALL), help="which to compare")
    parser.add_argument("--in-flight", nargs="+", type=int, default=list(IN_FLIGHT))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else FULL
    size = Size(chosen.rounds or size.rounds, chosen.seconds or size.seconds, size.warmup_seconds)
    if chosen.scenario in ("compare", "all"):
        asyncio.run(compare_and_tell(chosen.services, chosen.in_flight, size))
    for name, scenario in scenarios.ALL.items():
        if chosen.scenario in (name, "all"):
            figures = asyncio.run(scenario(quick=chosen.quick))
            write(BUILD / f"bench-{name}.json", {"commit": commit(), **figures})
    plots.draw(BUILD)


if __name__ == "__main__":
    main()
