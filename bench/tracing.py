"""What traces cost: python -m bench --only traces

traces    CPU a charge with traces of 1 % of the calls, sent to a collector, against none
"""

import asyncio
import statistics
from contextlib import AsyncExitStack
from typing import Any

from bench import sites
from bench.measure import Size, measure
from rig.collector import collecting

SAMPLED = 0.01


async def traces(*, quick: bool) -> dict[str, Any]:
    """CPU a charge of a command server that traces 1 % of the calls, against one that traces none.

    Both are measured at one time and at one rate: what else the machine does meets both, and batches are alike. The control is
    a second one that traces none, in turns with the first: how far its ratio is from 1 is the error of the method.
    """
    turns, rates, seconds = (2 if quick else 9), (150, 400), 1.0 if quick else 4.0
    ratios: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(collecting())
        settings = {"COMMAND_TRACES": collector.url, "COMMAND_TRACES_SAMPLED": str(SAMPLED)}
        plain = await stack.enter_async_context(sites.open_site(sites.PRODUCT))
        control = await stack.enter_async_context(sites.open_site(sites.PRODUCT))
        traced = await stack.enter_async_context(sites.open_site(sites.PRODUCT, settings=settings))
        for _ in range(turns):
            for rate in rates:
                steps = ("--steps", f"{rate}:{seconds}")
                for name, site in (("traced", traced), ("control", control)):
                    (other,), (usual,) = await asyncio.gather(
                        measure(site, name, [1], Size(1, seconds, 0.5), *steps),
                        measure(plain, "plain", [1], Size(1, seconds, 0.5), *steps),
                    )
                    assert not (other.errors or usual.errors)
                    ratios.setdefault(f"{name}_ratio_{rate}_a_second", []).append(other.cpu_ms / usual.cpu_ms)
        spans = len(collector.spans)
    found: dict[str, Any] = {"at_most": 1.15, "spans_received": spans}
    for name, seen in ratios.items():
        found[name] = statistics.median(seen)
        found[f"{name}_each"] = sorted(seen)
    return found
