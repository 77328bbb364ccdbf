"""One measurement: a load generator in its own process against a running service, and the service's cost by the kernel."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import sites
from bench.load import LONGEST_WINDOW
from bench.machine import Cost, cost, load_average

PEAK_IN_FLIGHT = 128
# Added to a measured time and its pauses: a load generator that has not printed `end` by then never will.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """The duration and the number of measurements."""

    rounds: int
    seconds: float
    warmup_seconds: float


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
    """Further results of the load generator."""
    load_average: float


async def measure(
    site: sites.Site, name: str, in_flight: Sequence[int], size: Size, *options: str, round_number: int = 0
) -> list[Measurement]:
    """Put load on a service; one measurement for each number in `in_flight`. The load generator gets `options`."""
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
            patience = size.seconds * LONGEST_WINDOW + size.warmup_seconds + PATIENCE_SECONDS
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


async def peak(size: Size) -> Measurement:
    """Measure the product's highest rate: 128 in flight, no delay."""
    async with sites.open_site(sites.PRODUCT) as site:
        (found,) = await measure(site, sites.PRODUCT, [PEAK_IN_FLIGHT], size)
        return found
