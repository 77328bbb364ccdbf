"""The targets under more load than capacity.

overload  a closed loop of five times the limit of calls, with clients that obey RetryInfo
burst     an open loop of five times capacity, between quiet times
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from bench import sites
from bench.load import quantile
from bench.machine import cost
from bench.measure import Measurement, Size, measure, peak

TIMES = 5
# The default of COMMAND_MAX_CALLS, and a small limit.
LIMIT_OF_CALLS, SMALL_LIMIT = 2_000, 200
WATCH_SECONDS = 0.25
# The first seconds of a quiet time still show the load before it.
SETTLING_SECONDS = 2
# A quiet second whose p99 is within this is normal, even if the other quiet seconds were far better.
NORMAL_MS = 20.0


async def overload(*, quick: bool) -> dict[str, Any]:
    """Goodput of a closed loop of five times the limit: the default limit for a minute, a small one for a shorter time.

    A quick run has the small limit only: ten thousand clients take longer to begin than a quick run lasts.
    """
    before = await peak(_size(quick))
    if quick:
        return await _over(before, SMALL_LIMIT, Size(1, 1.5, 0.5))
    found = await _over(before, LIMIT_OF_CALLS, Size(1, 60.0, 2.0))
    found["small_limit"] = await _over(before, SMALL_LIMIT, Size(1, 15.0, 2.0))
    return found


async def _over(before: Measurement, limit: int, size: Size) -> dict[str, Any]:
    async with sites.open_site(sites.PRODUCT, settings={"COMMAND_MAX_CALLS": str(limit)}) as site:
        (over,) = await measure(site, sites.PRODUCT, [TIMES * limit], size, "--obey-retry-info")
    return {
        "limit": limit,
        "peak_rate": before.rate,
        "goodput": over.rate,
        "advised_share": float(str(over.more["advised"])) / max(1.0, float(str(over.more["refusals"]))),
        "share_of_peak": over.rate / before.rate,
        "refusals_a_charge": float(str(over.more["refusals"])) / max(1.0, over.rate * size.seconds),
        "p99_ms_of_accepted": over.p99_ms,
        "memory_mb": over.memory_mb,
        "load_cpu_share": over.processes_cpu_ms["load"] / over.cpu_ms if over.cpu_ms else 0.0,
        "errors": sum(over.errors.values()),
        "errors_by_reason": over.errors,
    }


async def burst(*, quick: bool) -> dict[str, Any]:
    """An open loop of five times capacity, between quiet times at half capacity; memory is sampled throughout."""
    quiet_seconds, burst_seconds = (3, 3) if quick else (10, 60)
    before = await peak(_size(quick))
    quiet = f"{before.rate / 2:.1f}:{quiet_seconds}"
    loud = f"{before.rate * TIMES:.1f}:{burst_seconds}"
    whole = Size(1, 2.0 * quiet_seconds + burst_seconds, 1.0)
    async with sites.open_site(sites.PRODUCT) as site:
        memory: list[float] = []
        watching = asyncio.create_task(_watch_memory(site.own["service"], memory))
        options = ["--steps", quiet, loud, quiet, "--call-seconds", "10"]
        (measured,) = await measure(site, sites.PRODUCT, [1], whole, *options)
        watching.cancel()
    p99s, answered = _floats(measured.more["p99_ms_by_second"]), _floats(measured.more["by_second"])
    loudest = slice(quiet_seconds, quiet_seconds + burst_seconds)
    before_ms, over_ms, after_ms = p99s[:quiet_seconds], p99s[loudest], p99s[loudest.stop :]
    samples = memory[_sample(quiet_seconds + 1.0) : _sample(quiet_seconds + burst_seconds + 1.0)]
    third = len(samples) // 3
    sent_loud = (
        float(str(measured.more["sent"])) - before.rate * quiet_seconds
    )  # less both quiet times, half of peak each
    worst_ms = quantile(sorted(over_ms), 0.99)
    refusals, advised = float(str(measured.more["refusals"])), float(str(measured.more["advised"]))
    return {
        "peak_rate": before.rate,
        "ordered_rate": before.rate * TIMES,
        "sent_times_peak": sent_loud / burst_seconds / before.rate,
        "unsent_share": float(str(measured.more["unsent"])) / (before.rate * TIMES * burst_seconds),
        "refusals": refusals,
        "advised_share": advised / max(1.0, refusals),  # by RetryInfo
        "accepted_rate": sum(answered[loudest]) / burst_seconds,
        "accepted_share_of_peak": sum(answered[loudest]) / burst_seconds / before.rate,
        "accepted_p99_ms": worst_ms,
        "p99_share": worst_ms / (LIMIT_OF_CALLS / before.rate * 1000),
        "memory_mb_before": memory[_sample(quiet_seconds + 0.5)],
        "memory_mb_at_most": max(memory),
        "memory_growth": max(samples[2 * third :]) / max(samples[third : 2 * third]),
        "p99_ms_before": quantile(sorted(before_ms[SETTLING_SECONDS:]), 1.0),
        "back_to_normal_seconds": back_to_normal(before_ms[SETTLING_SECONDS:], after_ms, answered[loudest.stop :]),
        "p99_ms_by_second_after": after_ms,
        "errors_by_reason": measured.errors,
    }


def back_to_normal(before_ms: Sequence[float], after_ms: Sequence[float], answered: Sequence[float]) -> float:
    """Seconds after the burst until every second has answers and a p99 of at most twice the worst one before the burst."""
    normal_ms = max(NORMAL_MS, 2 * max(before_ms, default=0.0))
    return max(
        (
            second + 1.0
            for second, (p99_ms, count) in enumerate(zip(after_ms, answered, strict=True))
            if p99_ms > normal_ms or not count
        ),
        default=0.0,
    )


def _size(quick: bool) -> Size:
    return Size(1, 1.5, 0.5) if quick else Size(1, 10.0, 1.0)


def _sample(seconds: float) -> int:
    return int(seconds / WATCH_SECONDS)


def _floats(values: object) -> list[float]:
    assert isinstance(values, list)
    return [float(value) for value in values]


async def _watch_memory(pid: int, memory: list[float]) -> None:
    while True:
        memory.append(cost(pid).memory_mb)
        await asyncio.sleep(WATCH_SECONDS)
