"""Many stories: run in several processes, told again, shrunk, and each planted bug found by one."""

import dataclasses
import gc
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from command_service.bank import Bank
from prove import canaries
from prove.loop_bugs import Looking
from prove.report import Harness, Say
from prove.simulation.faults import KINDS
from prove.simulation.plan import BANKS, PEOPLE_FROM, SHARED, Mask, Plan, plan_of, traits_of
from prove.simulation.servers import SimulatedParts
from prove.simulation.world import Told, run_story

CORPUS = Path(__file__).with_name("corpus.txt")
CANARY_SEEDS = 200
# Seeds that a worker runs before it reports: two to three seconds. Of each kind of story the first is run twice.
CHUNK = 50
# What stories are of, in turn: one server, banks of every shape, several servers on one database, operators at the desk.
FIRSTS = (0, BANKS, SHARED, PEOPLE_FROM)
# A shrunk story is told by then, or it is told as far as it has been shrunk.
SHRINK_SECONDS = 60.0
SHOWN_FAILURES = 5


# ---------------------------------------------------------------- one story
def tell(plan: Plan, mask: Mask = Mask(), parts: type[SimulatedParts] = SimulatedParts) -> Told:  # noqa: B008  # a frozen value
    """Run one story on files in memory, with servers that are made of these parts."""
    with _folder() as folder:
        return run_story(plan, mask, folder / "story", parts)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder on a RAM disk, if there is one: a sync costs nothing there."""
    ram = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it
    folder = Path(tempfile.mkdtemp(prefix="prove-", dir=ram if os.access(ram, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shrink(
    plan: Plan, seconds: float = SHRINK_SECONDS, parts: type[SimulatedParts] = SimulatedParts
) -> tuple[Mask, Told]:
    """Leave out of a failing story whatever it fails without, as far as that is found in time."""
    mask, told = Mask(), tell(plan, parts=parts)
    broken = {violation.invariant for violation in told.violations[:1]}
    until = time.monotonic() + seconds
    is_smaller = bool(broken)
    while is_smaller and time.monotonic() < until:
        is_smaller = False
        for name, thing in _parts(plan, told):
            if thing in getattr(mask, name) or time.monotonic() > until:
                continue
            smaller = dataclasses.replace(mask, **{name: getattr(mask, name) | {thing}})
            without = tell(plan, smaller, parts)
            if broken & {violation.invariant for violation in without.violations}:
                mask, told, is_smaller = smaller, without, True
    return mask, told


def _parts(plan: Plan, told: Told) -> Iterator[tuple[str, object]]:
    """What can be left out of a story, large things first: the mask's field and what is added there."""
    yield from (("clients", number) for number in range(1, len(plan.clients) + 1))
    yield from (("operators", number) for number in range(plan.operators))
    yield from (("kinds", kind) for kind in KINDS if told.fired.get(kind))
    yield from (("weather", number) for number in range(len(plan.weather)))
    yield from (("ops", (client, n)) for client, ops in enumerate(plan.clients, 1) for n in range(len(ops)))
    yield from (("firings", (kind, n)) for kind, times in told.drawn.items() for n in range(1, times + 1))


def as_story(told: Told) -> Iterator[str]:
    """Tell it in numbered steps."""
    for number, (when, who, what) in enumerate(told.notes, 1):
        yield f"{number:4}. {when:8.3f} s  {who:17} {' '.join(str(part) for part in what if part != '')}"
    for violation in told.violations:
        yield f"      broken: {violation}"


# ---------------------------------------------------------------- many stories
@dataclass(slots=True)
class Tried:
    """What a worker's seeds came to."""

    seeds: int = 0
    charges: int = 0
    callbacks: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    """(seed, the first violation)."""


def try_seeds(seeds: Sequence[int]) -> Tried:
    """Run some seeds; the first of each kind of story twice, to see that it repeats exactly."""
    tried = Tried()
    twice = {(seed < SHARED, seed < BANKS, seed < PEOPLE_FROM): seed for seed in reversed(seeds)}.values()
    with _folder() as folder:
        for seed in seeds:
            told = run_story(plan_of(seed), Mask(), folder / str(seed))
            tried.seeds += 1
            tried.charges += told.charges
            tried.callbacks += told.callbacks
            tried.fired.update(told.fired)
            tried.failures += [(seed, str(violation)) for violation in told.violations[:1]]
            if seed in twice and run_story(plan_of(seed), Mask(), folder / "again").digest() != told.digest():
                tried.failures.append((seed, "it does not repeat: something that is not the seed's decides"))
            gc.collect(0)  # whatever was made since the last time
    gc.collect()
    return tried


def seed_that_finds(name: str, seeds: int = CANARY_SEEDS) -> int | None:
    """Say by which of the first seeds that could show it a planted bug is found; None if by none."""
    parts = canaries.planted(name, SimulatedParts)
    with _folder() as folder:
        for seed in islice(_seeds_for(name), seeds):
            if run_story(plan_of(seed), Mask(), folder / str(seed), parts).violations:
                return seed
            gc.collect(0)
    return None


def _seeds_for(name: str) -> Iterator[int]:
    """Count the seeds of the stories that a planted bug is looked for in."""
    if name in canaries.OF_THE_DESK:
        yield from count(PEOPLE_FROM)
    elif (trait := canaries.OF_OTHER_BANKS.get(name)) is None:
        yield from count(SHARED if name in canaries.OF_A_DATABASE else 0)
    else:
        yield from (seed for seed in count(BANKS) if trait in traits_of(plan_of(seed)))


class WatchingTheClock(SimulatedParts):
    """The guard's control: parts of which one looks at a real clock."""

    def bank(self) -> Bank:
        """Make a bank that looks at it."""
        return Looking(super().bank(), lambda: time.monotonic())  # noqa: PLW0108  # its name, in a story, is the guard's


def a_real_clock_is_noticed() -> bool:
    """Whether the guard finds what looks at a real clock."""
    told = (tell(plan_of(seed), parts=WatchingTheClock) for seed in range(5))
    return any(violation.invariant == "guard" for each in told for violation in each.violations)


def corpus() -> list[tuple[int, str]]:
    """The seeds that once failed, each with what it found."""
    lines = [line for line in CORPUS.read_text().splitlines() if line and not line.startswith("#")]
    return [(int(line.split(maxsplit=1)[0]), line.split(maxsplit=1)[1]) for line in lines]


def _prepare_worker() -> None:
    """Collect after each story only: it is mostly garbage at its end, hardly before, and then still in the CPU's cache."""
    gc.disable()
    gc.freeze()


def run(seconds: float, say: Say, *, first: int = 0, seeds: int | None = None, plants: bool = True) -> Harness:
    """Plant every canary, run the corpus, and then as many seeds as the time allows, or as many as are named."""
    harness = Harness("deterministic simulation", "seeds")
    harness.knows(KINDS)
    began = time.monotonic()
    workers = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(workers, _prepare_worker) as pool:
        if plants:
            _plant(harness, pool, say)
        chunks = _chunks([seed for seed, _ in corpus()], first, seeds)
        failures: list[tuple[int, str]] = []
        charges, seeds_began = 0, time.monotonic()
        under_way = [pool.apply_async(try_seeds, (chunk,)) for _, chunk in zip(range(workers), chunks, strict=False)]
        while under_way:
            tried = under_way.pop(0).get()
            if time.monotonic() - began < seconds and (chunk := next(chunks, None)):
                under_way.append(pool.apply_async(try_seeds, (chunk,)))
            harness.tried += tried.seeds
            harness.faults.update(tried.fired)
            failures += tried.failures
            charges += tried.charges
            a_minute = harness.tried / (time.monotonic() - seeds_began) * 60
            of = f" of {seeds}" if seeds else ""
            say(f"{harness.tried:,}{of} seeds, {a_minute:,.0f} a minute, {charges:,} charges, {len(failures)} failed")
        pool.terminate()
    for number, (seed, text) in enumerate(failures):
        harness.violations.append(f"seed {seed}: {text} (python -m prove.simulation --tell {seed})")
        harness.violations[-1] += f"\nfor {CORPUS.name}: {seed} {text.splitlines()[0]}"
        if number < SHOWN_FAILURES:
            say(f"shrinking seed {seed} ...")
            _, told = shrink(plan_of(seed))
            harness.violations[-1] += "\n" + "\n".join(as_story(told))
    harness.seconds = time.monotonic() - began
    return harness


def _plant(harness: Harness, pool: "multiprocessing.pool.Pool", say: Say) -> None:
    harness.controls["a real clock in simulated code"] = pool.apply(a_real_clock_is_noticed)
    results = {name: pool.apply_async(seed_that_finds, (name,)) for name in canaries.NAMES}
    for name, result in results.items():
        seed = result.get()
        harness.canaries_planted += 1
        harness.canaries_found += seed is not None
        by = f"found by seed {seed}" if seed is not None else f"NOT FOUND by {CANARY_SEEDS} seeds"
        say(f"canary {harness.canaries_planted} of {len(results)}: {name}: {by}")


def _chunks(known: Sequence[int], first: int, seeds: int | None) -> Iterator[list[int]]:
    if known:
        yield list(known)
    start, end = first, first + seeds if seeds is not None else None
    while end is None or start < end:
        stop = start + CHUNK if end is None else min(start + CHUNK, end)
        yield [FIRSTS[seed % len(FIRSTS)] + seed for seed in range(start, stop)]
        start = stop
