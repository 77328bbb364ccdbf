"""The benchmark: python -m bench, or make bench (QUICK=1 for a small one)

    python -m bench                     the whole benchmark, in some 40 minutes
    python -m bench --only rebuild      a part of it, into the same file; `compare` is the comparison with the peers

    build/bench.json          all results; see bench.results
    build/bench-detail.json   every single measurement of the comparison

`python -m bench.page` then writes the tables and plots of docs/benchmark.md.
"""

import asyncio
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench import sites, targets
from bench.banks import banks
from bench.compare import compare, rounded, summary, table
from bench.machine import load_average
from bench.measure import Measurement, Size
from bench.overload import burst, overload
from bench.results import BUILD, Results, commit, write
from bench.scenarios import growth, latency, many, readers, rebuild, secured, start
from bench.servers import servers
from bench.tracing import traces
from chassis import process

IN_FLIGHT = (1, 16, 128)
FULL = Size(rounds=5, seconds=3.0, warmup_seconds=1.0)
QUICK = Size(rounds=1, seconds=0.4, warmup_seconds=0.2)

SCENARIOS: Mapping[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
    scenario.__name__: scenario
    for scenario in (many, latency, growth, rebuild, readers, start, secured, traces, overload, burst, servers, banks)
}


class ChargesFailed(Exception):
    """Charges that should have succeeded did not: figures of the rest would flatter the service that refused them."""


async def _compare(results: Results, names: Sequence[str], in_flight: Sequence[int], size: Size) -> None:
    skipped = {name: reason for name in names if (reason := sites.missing(name)) is not None}
    results.add({"skipped": skipped})
    for name, reason in skipped.items():
        print(f"  {name} is left out: {reason}", flush=True)
    measurements: list[Measurement] = []
    if not (measured := [name for name in names if name not in skipped]):
        return
    async for found in compare(measured, in_flight, size):
        measurements += found
        results.add(summary(measurements))
        write(
            BUILD / "bench-detail.json",
            {"commit": commit(), "size": asdict(size), "measured": [asdict(m) for m in measurements]},
        )
        for m in found:
            errors = f"  errors {dict(m.errors)}" if m.errors else ""
            print(
                f"  round {m.round + 1} of {size.rounds}  {m.service:<30}{m.in_flight:>5} in flight"
                f"{m.rate:>9,.0f}/s  cpu {m.cpu_ms:.3f} ms{errors}",
                flush=True,
            )
    print(table(results.found["services"]))
    for name, by_in_flight in results.found["ratios"].items():
        print(f"  {name:<42}" + "".join(f"{at:>6}: {ratio:<8.3g}" for at, ratio in by_in_flight.items()))
    if results.found["errors"]:
        raise ChargesFailed(f"by service and in flight: {results.found['errors']}")


def main() -> int:
    """Run the parts that the command line names; return 1 if one of them could not be measured."""
    parser = process.parser("python -m bench", "Measures the product and its peers.")
    parser.add_argument("--only", nargs="+", choices=["compare", *SCENARIOS], help="run these parts only")
    parser.add_argument(
        "--quick", action="store_true", default=os.environ.get("QUICK") == "1", help="a small run, as with QUICK=1"
    )
    parser.add_argument("--services", nargs="+", choices=sites.ALL, help="the services to compare")
    parser.add_argument("--in-flight", nargs="+", type=int, default=list(IN_FLIGHT))
    parser.add_argument("--rounds", type=int)
    chosen = parser.parse_args()
    # SIGTERM ends the servers first, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    size = QUICK if chosen.quick else FULL
    size = Size(chosen.rounds or size.rounds, size.seconds, size.warmup_seconds)
    services = chosen.services or [name for name in sites.ALL if not (chosen.quick and name in sites.SLOW_TO_START)]
    parts = chosen.only or ["compare", *SCENARIOS]
    results = Results(BUILD / "bench.json", quick=chosen.quick, anew=chosen.only is None)
    begun, failed = time.monotonic(), []
    for number, name in enumerate(parts, 1):
        print(f"\n[{number} of {len(parts)}, {time.monotonic() - begun:,.0f} s] {name}", flush=True)
        try:
            if name == "compare":
                asyncio.run(_compare(results, services, chosen.in_flight, size))
            else:
                figures = asyncio.run(SCENARIOS[name](quick=chosen.quick))
                results.add({name: _rounded(figures)})
                _show(results.found[name])
        except Exception:  # any failure of one part: the other parts are still worth measuring
            failed.append(name)
            traceback.print_exc()
    print(f"\n{targets.table(results.found.get('targets', []))}")
    took = time.monotonic() - begun
    print(f"\n{took:,.0f} s, load average {load_average():.1f} on {os.cpu_count()} cores; {BUILD / 'bench.json'}")
    if failed:
        print(f"not measured, because of the errors above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return rounded(value)
        case Mapping():
            return {name: _rounded(each) for name, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
        case _:
            return value


def _show(figures: Mapping[str, Any]) -> None:
    for figure, value in figures.items():
        print(f"  {figure:<40} {targets.shown(value) if isinstance(value, float | int) else json.dumps(value)}")


if __name__ == "__main__":
    sys.exit(main())
