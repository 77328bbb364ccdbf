"""Crash points: the process dies before and after every call of a port, of every life that a charge, or what follows, may need.

The first life begins an operation of one kind; every later one recovers while the client asks again (`prove.deaths.lives`). A
path says at which point each life dies; the last one lives. Paths are enumerated, life by life, until a life passes its last
point. After each, the bank must have executed each operation exactly once and the journal must say so.
"""

import asyncio
import contextlib
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

import gateway_mock
from prove.deaths.lives import PORTS, Bug, Story
from prove.deaths.scenarios import SCENARIOS, Scenario, named
from prove.deaths.writer import folder_in_memory
from prove.report import Harness, Say
from prove.workers import AT_ONCE, workers
from rig.referee import Referee

# The bank's statement tells all that it ever did: a bank of its own for so many paths keeps the reading of it quick.
PATHS_A_BANK = 100
# Each bug, what finds it, and where. An append is acknowledged too early in any scenario; the other needs a refund.
CONTROLS = {Bug.HASTY: ("approved", "I3"), Bug.SENT_AGAIN: ("refunded", "I17")}


class Walk:
    """Walks paths, and hands what came of them to a harness."""

    def __init__(self, harness: Harness, folder: Path, *, bug: Bug = Bug.NONE) -> None:
        self._harness = harness
        self._folder = folder
        self._bug = bug
        self._numbers = itertools.count(1)
        self._bank = contextlib.AsyncExitStack()
        self._address = ""

    async def __aenter__(self) -> "Walk":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bank.aclose()

    async def walk(self, scenario: Scenario, deaths: Sequence[int]) -> bool:
        """Walk one path. False if its last life, meant to die, passed its last point instead."""
        number = next(self._numbers)
        if number % PATHS_A_BANK == 1:
            await self._bank.aclose()
            self._address = await self._bank.enter_async_context(
                gateway_mock.serve("127.0.0.1:0", self._folder / f"bank-{number}.db")
            )
        folder = self._folder / str(number)
        folder.mkdir()
        where = f"{scenario.name}, deaths at {list(deaths)}"
        async with Referee(f"http://{self._address}") as referee:
            path = Story(scenario, referee, folder, f"path-{number:08}", self._bug)
            try:
                await path.order_faults()
                for dies_at in deaths:
                    await path.live(dies_at)
                if len(path.died_at) == len(deaths):
                    await path.live(0)
                broken = path.broken(await referee.movements())
            except Exception as error:  # whatever it is, the promise was not kept on this path
                broken = [f"{type(error).__name__}: {error}"]
            await referee.no_more_trouble()
        self._harness.violations += [f"{text} ({where}: {path.died_at})" for text in broken]
        shutil.rmtree(folder)
        self._harness.tried += 1
        self._harness.faults.update(f"died {point}" for point in path.died_at)
        return len(path.died_at) == len(deaths)

    async def paths(self, scenario: Scenario, depth: int, begin: Sequence[int] = ()) -> AsyncIterator[Sequence[int]]:
        """Walk all paths with so many deaths, yielding each that was walked."""
        for dies_at in itertools.count(1):
            deaths = (*begin, dies_at)
            is_there = await self.walk(scenario, deaths)
            yield deaths
            if not is_there:
                return
            if len(deaths) < depth:
                async for deeper in self.paths(scenario, depth, deaths):
                    yield deeper


@dataclass(frozen=True, slots=True)
class Grown:
    """The paths that are longer than one by a death, as walked by one process, and those of them that can grow on."""

    walked: Harness
    longer: list[tuple[int, ...]]


def grow(folder: Path, scenario: Scenario, begin: tuple[int, ...], *, bug: Bug = Bug.NONE) -> Grown:
    """Walk a path on to a death at each point of its next life, until that life passes its last point."""

    async def walk_all() -> Grown:
        grown = Grown(Harness("part", "paths"), [])
        async with Walk(grown.walked, Path(tempfile.mkdtemp(dir=folder)), bug=bug) as walk:
            async for deaths in walk.paths(scenario, len(begin) + 1, begin):
                grown.longer.append(tuple(deaths))
        # In the last of them nobody died, so nothing comes after it.
        return Grown(grown.walked, grown.longer[:-1])

    return asyncio.run(walk_all())


def run(seconds: float, say: Say, *, deepest: int = 3, seed: int = 0) -> Harness:
    """Walk all paths with one death, then with two, then with three, until all are walked or the time is up.

    Those with one death are walked however little time there is; of a depth that is not walked in full, what is walked is a
    sample: its paths are begun in no order.
    """
    harness = Harness("crash points", "paths")
    harness.knows(
        f"died {when} {name}.{call}" for name in PORTS for call in PORTS[name] for when in ("before", "after")
    )
    until, chance = time.monotonic() + seconds, random.Random(seed)
    with folder_in_memory() as folder, workers() as pool:
        controls = {bug: pool.submit(grow, folder, named(name), (), bug=bug) for bug, (name, _) in CONTROLS.items()}
        begins: list[tuple[Scenario, tuple[int, ...]]] = [(scenario, ()) for scenario in SCENARIOS]
        for depth in range(1, deepest + 1):
            chance.shuffle(begins)
            growing: dict[Future[Grown], Scenario] = {}
            waiting, longer, before = list(begins), list[tuple[Scenario, tuple[int, ...]]](), harness.tried
            while waiting or growing:
                # No more than are at work and next, so that it can stop.
                while waiting and len(growing) < AT_ONCE and (depth == 1 or time.monotonic() < until):
                    scenario, begin = waiting.pop()
                    growing[pool.submit(grow, folder, scenario, begin)] = scenario
                if not growing:
                    break
                for done in wait(growing, return_when=FIRST_COMPLETED).done:
                    scenario, grown = growing.pop(done), done.result()
                    harness.add(grown.walked)
                    longer += [(scenario, path) for path in grown.longer]
                say(f"crash points: {harness.tried} paths, {len(harness.violations)} violations")
            if waiting:
                tried = f"{len(begins) - len(waiting)} of {len(begins)}"
                walked = f"{harness.tried - before} paths were walked, on from {tried} chosen at random"
                harness.skipped[f"all paths of {depth} deaths"] = f"the time was up: {walked}"
                break
            harness.enumerated[f"paths of {depth} deaths"] = harness.tried - before
            begins = longer
        for bug, (_, invariant) in CONTROLS.items():
            harness.controls[bug.value] = controls[bug].result().walked.found(invariant)
    return harness


if __name__ == "__main__":
    print(run(float(sys.argv[1]), lambda _: None).as_json())
