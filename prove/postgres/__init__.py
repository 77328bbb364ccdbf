"""The journal on PostgreSQL under load, while its primary is lost time after time.

Clients charge at two command servers that share a journal on a primary and its synchronous standby. The primary is killed, or
frozen, or killed after it has shown what the standby never got; the standby is promoted; the old primary comes back beside the
new one, or as its standby. Between that, the standby goes away, connections end, and command servers are killed and paused. In
the end clients' histories, journal, bank and view must agree: nothing acknowledged is lost, and nothing is charged twice.

    python -m prove.postgres --failovers 50
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prove.clients import ENDS
from prove.postgres import faults
from prove.postgres.world import Times, World, a_world
from prove.report import Harness, Say
from rig.postgres_pair import Pair

# Of a world: its history stays small enough to be checked in a second or two.
FAILOVERS_A_WORLD = 10
# Of the losses of a primary, each how many-th is followed by its return beside the new one.
RETURNS_EACH = 3
_SECONDS_EACH = "each takes the pair some seconds: it is the failovers that count"
# Bugs of the command servers, each with what shows it and what it breaks.
CANARIES = {
    "a lost commit is done again": (faults.TERMINATED, "I8"),
    "a warning on commit is not heard": (faults.CANCELLED, "I7"),
    "a former primary is followed": (faults.RETURNED, "I1|I7|I10"),
}
CANARY_TRIES = 4


async def run(seconds: float, say: Say, *, failovers: int = 0, seed: int = 0) -> Harness:
    """Fail over until the time is used up, or so often."""
    harness, times = Harness("postgres", "failovers"), Times()
    harness.knows((*faults.LOSSES, *faults.BETWEEN, faults.RETURNED, *ENDS))
    harness.complete = dict.fromkeys((*faults.LOSSES, *faults.BETWEEN, faults.RETURNED, *ENDS), _SECONDS_EACH)
    began = time.monotonic()

    def is_enough() -> bool:
        return harness.tried >= failovers if failovers else time.monotonic() - began > seconds

    async def lane() -> None:
        async with Pair() as pair:
            for number in itertools.count(seed):
                await _play(pair, number, is_enough, harness, times)
                if not pair.standby.is_running:  # something took too long, which is told by now
                    await pair.rejoin()
                say(f"postgres: {harness.tried} failovers, {len(harness.violations)} violations")
                if is_enough():
                    return

    async def plant() -> None:
        async with Pair() as pair:
            for bug in CANARIES:
                harness.canaries_planted += 1
                harness.canaries_found += await is_found(pair, bug)

    await asyncio.gather(lane(), plant())
    harness.figures = _figures(harness.violations, times)
    harness.seconds = time.monotonic() - began
    return harness


async def _play(pair: Pair, seed: int, is_enough: Callable[[], bool], harness: Harness, times: Times) -> None:
    """Have the servers of one world live through failovers."""
    between = itertools.cycle(faults.BETWEEN)
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        async with a_world(pair, Path(folder), seed, harness, times) as world:
            for number in range(FAILOVERS_A_WORLD):
                await world.more(50)
                loss = min(faults.LOSSES, key=lambda loss: (harness.faults[loss], list(faults.LOSSES).index(loss)))
                await lose(world, loss, returns=number % RETURNS_EACH == RETURNS_EACH - 1)
                if is_enough():
                    return
                await _harm(world, next(between))


async def lose(world: World, loss: str, *, returns: bool) -> None:
    """Lose the primary, go on with the other one, and have the first one follow that."""
    await faults.LOSSES[loss](world)
    world.harness.faults[loss] += 1
    await world.see_servers_run()
    if returns:
        await faults.old_primary_returns(world)
        world.harness.faults[faults.RETURNED] += 1
        await world.see_servers_run()
    await world.pair.rejoin()


async def _harm(world: World, fault: str) -> None:
    await faults.BETWEEN[fault](world)
    world.harness.faults[fault] += 1
    await world.see_servers_run()


async def is_found(pair: Pair, bug: str) -> bool:
    """Whether a planted bug is found, by what it breaks."""
    fault, invariant = CANARIES[bug]
    planted = Harness(bug, "failovers")
    for seed in range(CANARY_TRIES):
        await pair.rejoin()  # the story before may have ended early, with two primaries or one node
        with tempfile.TemporaryDirectory(prefix="prove-") as folder:
            async with a_world(pair, Path(folder), seed, planted, Times(), bug=bug) as world:
                await world.more(20)
                if fault in faults.BETWEEN:
                    await _harm(world, fault)
                else:
                    loss = faults.KILLED if fault == faults.RETURNED else fault
                    await lose(world, loss, returns=fault == faults.RETURNED)
        if planted.found(f"({invariant})"):
            return True
    return False


def _figures(violations: Sequence[str], times: Times) -> dict[str, str]:
    """What was measured, as told to a person."""
    return {
        "acknowledged and lost": str(sum(text.startswith(("I7 ", "I10 ")) for text in violations)),
        "charged twice": str(sum(text.startswith("I1 ") for text in violations)),
        "no new charge ends after the loss of a primary": _quantiles(times.gaps),
        "a killed command server's charges are driven by the other one": _quantiles(times.claims),
        "a killed command server's charges are at rest": _quantiles(times.takeovers),
    }


def _quantiles(seconds: Sequence[float]) -> str:
    if not seconds:
        return "not measured"
    ordered = sorted(seconds)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, longest {ordered[-1]:.2f} s, of {len(ordered)}"
