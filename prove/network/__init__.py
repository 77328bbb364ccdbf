"""The bank and the network: every fault that another party or the link to it can do, through real servers and sockets.

Scenario after scenario, each with a seed and a world of its own, until the time is used up: first every one once, then
those whose kinds of fault are still rare. Those that wait for real time-outs run beside the others.
`python -m prove.network SCENARIO SEED` plays one again.
"""

import asyncio
import random
import shutil
import sqlite3
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from charging.v1.command_pb2 import ChargeResponse
from command_service.journal import START
from command_service.journal.sqlite import anchor
from prove.bank_bugs import ARefusalIsBelievedAtOnce
from prove.network import bank, calling_off, clients, feeds, floods, liars, restarts
from prove.network.books import check
from prove.network.kinds import KINDS, OUTCOMES
from prove.network.world import Broken, World, a_world, must, within
from prove.report import RARE, Harness, Say
from prove.workers import workers
from rig.servers import InProcess, servers_in

# The servers' own words for a fault that they did not foresee.
UNFORESEEN = frozenset({"a call failed unexpectedly", "a charge stopped on its way"})
# No scenario comes near it on an idle machine, rest included.
SCENARIO_SECONDS = 240.0
# How much longer than the longest time so far a scenario may take; what does not fit is not begun.
SLACK = 1.3


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way of doing harm. `is_slow`: it waits for real time-outs, some 20 s. `is_killing`: servers are processes."""

    play: Callable[[World], Awaitable[None]]
    is_slow: bool = False
    is_killing: bool = False
    has_view: bool = False

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.play.__name__


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(bank.one_call_goes_wrong),
    Scenario(bank.answers_lie),
    Scenario(bank.the_bank_lies_for_good),
    Scenario(bank.the_bank_refuses),
    Scenario(bank.answers_come_too_many),
    Scenario(bank.the_bank_has_odd_ids),
    Scenario(bank.the_bank_declines),
    Scenario(bank.tokens_expire),
    Scenario(bank.requests_come_twice),
    Scenario(bank.the_link_breaks),
    Scenario(bank.answers_are_monstrous),
    Scenario(bank.the_bank_goes_away),
    Scenario(bank.the_bank_is_away_for_long, is_slow=True),
    Scenario(bank.the_bank_does_not_know_us),
    Scenario(bank.throttled_in_a_storm, is_slow=True),
    Scenario(bank.redirected),
    Scenario(bank.slow_and_full),
    Scenario(bank.certificates_are_wrong),
    Scenario(bank.names_do_not_resolve),
    Scenario(calling_off.charges_are_called_off),
    Scenario(calling_off.times_pass),
    Scenario(calling_off.voids_meet_executions),
    Scenario(calling_off.holds_lapse),
    Scenario(clients.deadlines),
    Scenario(clients.cancels_at_each_seam),
    Scenario(clients.links_break),
    Scenario(clients.grpc_retries_by_itself),
    Scenario(clients.a_hundred_at_once_with_one_key),
    Scenario(clients.a_hundred_refund_at_once),
    Scenario(clients.one_key_for_other_requests_at_once),
    Scenario(clients.hedged),
    Scenario(clients.idle_links_are_dropped),
    Scenario(clients.too_large),
    Scenario(clients.half_open, is_slow=True),
    Scenario(clients.idle_clients_are_let_be, is_slow=True),
    Scenario(feeds.streams_are_cut, has_view=True),
    Scenario(feeds.a_hundred_come_back_at_once, has_view=True),
    Scenario(feeds.some_stop_reading),
    Scenario(feeds.answers_are_whole, has_view=True),
    Scenario(feeds.readers_are_lost, has_view=True),
    Scenario(feeds.the_feed_goes_silent, is_slow=True, has_view=True),
    Scenario(liars.feeds_lie),
    Scenario(liars.a_foreign_server_is_in_the_list, has_view=True),
    Scenario(floods.a_thousand_connections),
    Scenario(floods.nonsense),
    Scenario(floods.floods),
    Scenario(restarts.the_command_server_is_stopped, is_killing=True, has_view=True),
    Scenario(restarts.the_command_server_is_killed, is_killing=True, has_view=True),
    Scenario(restarts.the_query_server_is_killed, is_killing=True, has_view=True),
    Scenario(restarts.the_bank_is_killed, is_slow=True, is_killing=True, has_view=True),
)


async def run(seconds: float, say: Say, *, base: int = 0, scenarios: Sequence[Scenario] = SCENARIOS) -> Harness:
    """Play all scenarios again and again, with other seeds, until the time is used up; each at least once."""
    harness = Harness("bank and network", "scenarios")
    harness.knows(KINDS)
    begun = time.monotonic()
    if shutil.which("openssl") is None:
        scenarios = [scenario for scenario in scenarios if scenario.play is not bank.certificates_are_wrong]
        harness.skipped["wrong certificates"] = "openssl, which makes them, is not on this machine"
    killing = [scenario for scenario in scenarios if scenario.is_killing and not scenario.is_slow]
    quick = [scenario for scenario in scenarios if not scenario.is_killing and not scenario.is_slow]
    # What waits for real time-outs has a lane of its own each. The others wait too, for half of their time.
    lanes = [Lane(quick, base), Lane(killing, base)]
    lanes += [Lane([scenario], base) for scenario in scenarios if scenario.is_slow]
    runners = [*lanes[:2], *lanes]
    harness.complete |= dict.fromkeys(OUTCOMES, "an outcome, not a fault")

    async def drive(lane: Lane) -> None:
        while (chosen := lane.next(harness.faults, begun + seconds - time.monotonic())) is not None:
            scenario, seed = chosen
            start = time.monotonic()
            played = await loop.run_in_executor(pool, _play_by_name, scenario.name, seed)
            lane.played(scenario, time.monotonic() - start, set(played.faults) - OUTCOMES)
            harness.add(played)
            say(f"{harness.tried} scenarios, {harness.faults.total()} faults, {len(harness.violations)} violations")

    loop = asyncio.get_running_loop()
    # A process a lane: each has an event loop of its own, which no other lane's work holds up.
    with workers(len(runners)) as pool:
        controls = [loop.run_in_executor(pool, _is_found_by_name, name) for name in CONTROLS]
        await asyncio.gather(*(drive(lane) for lane in runners))
        harness.controls = dict(zip(CONTROLS, await asyncio.gather(*controls), strict=True))
    harness.seconds = time.monotonic() - begun
    return harness


@dataclass(eq=False)
class Lane:
    """Scenarios that are played one after the other: first each once, then what fires the rarest kind of fault."""

    scenarios: Sequence[Scenario]
    base: int
    plays: Counter[str] = field(default_factory=Counter)
    longest_seconds: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, set[str]] = field(default_factory=dict)

    def next(self, fired: Counter[str], left_seconds: float) -> tuple[Scenario, int] | None:
        """Say what to play next, and with which seed; None if nothing can end in the time that is left."""
        fitting = [
            scenario
            for scenario in self.scenarios
            if not self.plays[scenario.name]
            or self.longest_seconds.get(scenario.name, SCENARIO_SECONDS) * SLACK <= left_seconds
        ]
        if not fitting:
            return None

        def urgency(scenario: Scenario) -> tuple[int, int]:
            rarest = min((fired[kind] for kind in self.kinds.get(scenario.name, ())), default=RARE)
            return (min(rarest, RARE) if self.plays[scenario.name] else -1, self.plays[scenario.name])

        chosen = min(fitting, key=urgency)
        self.plays[chosen.name] += 1
        return chosen, self.base + self.plays[chosen.name] - 1

    def played(self, scenario: Scenario, took_seconds: float, kinds: set[str]) -> None:
        """Learn how long it takes, and what it fires."""
        self.longest_seconds[scenario.name] = max(took_seconds, self.longest_seconds.get(scenario.name, 0.0))
        self.kinds.setdefault(scenario.name, set()).update(kinds)


def _play_by_name(name: str, seed: int) -> Harness:
    """Play one scenario once, in a process that says nothing."""
    return asyncio.run(play(next(scenario for scenario in SCENARIOS if scenario.name == name), seed))


def _is_found_by_name(name: str) -> bool:
    with _listening():
        return asyncio.run(is_found(*CONTROLS[name]))


# ---------------------------------------------------------------- what must not pass
async def _pay_behind_our_back(world: World) -> None:
    bank, order = (
        world.referee.http,
        {"reference": "nobody-asked", "card": "tok_visa", "amount": 100, "currency": "EUR"},
    )
    token = (await bank.post("/transactions", json=order)).json()["token"]
    await bank.post(f"/transactions/{token}/execute")


async def _refund_behind_our_back(world: World) -> None:
    (charge, *_) = await world.referee.movements()
    order = {"reference": "nobody-asked", "kind": "refund", "on": charge.transaction_id, "amount": 1}
    bank = world.referee.http
    token = (await bank.post("/transactions", json={**order, "currency": charge.currency_code})).json()["token"]
    await bank.post(f"/transactions/{token}/execute")


async def _tell_another_outcome(world: World) -> None:
    answer = ChargeResponse()
    told = world.history[-1]
    assert isinstance(told.answer, ChargeResponse)
    answer.CopyFrom(told.answer)
    answer.transaction_id = "txn_another"
    world.history.append(replace(told, answer=answer))


async def _forget_a_record(world: World) -> None:
    """With the anchor, so that the product does not refuse it: it is the check that must find it."""
    await world.servers.command_down()
    path = world.folder / "journal.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM record WHERE position = (SELECT MAX(position) FROM record)")
        (journal_id,) = connection.execute("SELECT id FROM journal").fetchone()
    anchor.write(path, anchor.Anchor(journal_id, START))
    await world.command_up()


async def _believe_at_once(world: World) -> None:
    """As before the mend: a refusal that came once, and names nobody, ends a charge."""
    assert isinstance(world.servers, InProcess)
    world.servers.make_parts = ARefusalIsBelievedAtOnce
    await world.command_again()
    (request,) = world.requests(1)
    await world.trouble("execute", "refuse", request=request)
    await world.settle(request)


async def _believe_what_feeds_say(world: World) -> None:
    await liars.feeds_lie(world, liars.Anything())


# What is tampered with, and the invariant that the check must name.
CONTROLS: dict[str, tuple[Callable[[World], Awaitable[None]], str]] = {
    "money that moved behind our back is found": (_pay_behind_our_back, "I3"),
    "money that went back behind our back is found": (_refund_behind_our_back, "I17"),
    "another outcome for the same key is found": (_tell_another_outcome, "I6"),
    "a journal that lost its last record is found": (_forget_a_record, "I7"),
    "a refusal that is believed at once is found": (_believe_at_once, "L1"),
    "a view that believes what feeds say is found": (_believe_what_feeds_say, "I9"),
}


async def is_found(tamper: Callable[[World], Awaitable[None]], invariant: str) -> bool:
    """Tamper with a world at rest; True if the check names the invariant that this breaks."""
    with tempfile.TemporaryDirectory(prefix="network-") as place, servers_in(Path(place), is_killing=False) as servers:
        async with a_world(servers, Path(place), random.Random(0), has_view=False) as world:
            await world.settle_all(world.requests(2))
            assert not await check(world)
            try:
                await tamper(world)
                broken = await check(world)
            except Broken as error:  # a scenario found it itself
                broken = [str(error)]
            return Harness("control", "worlds", violations=broken).found(invariant)


# ---------------------------------------------------------------- one scenario
async def play(scenario: Scenario, seed: int) -> Harness:
    """Play one scenario once."""
    harness = Harness(scenario.name, "scenarios")
    with _listening() as unforeseen:
        await _play(scenario, seed, harness)
        harness.violations += unforeseen
    return harness


async def _play(scenario: Scenario, seed: int, harness: Harness) -> None:
    chance = random.Random(f"{scenario.name} {seed}")
    broken: list[str] = []
    phase = "the servers' start"
    with (
        tempfile.TemporaryDirectory(prefix="network-") as place,
        servers_in(Path(place), is_killing=scenario.is_killing) as servers,
    ):
        try:
            async with (
                within(SCENARIO_SECONDS, "the scenario ends"),
                a_world(servers, Path(place), chance, has_view=scenario.has_view) as world,
            ):
                phase = "the harm"
                await scenario.play(world)
                phase = "coming to rest"
                await world.rest()
                phase = "the check"
                broken = await check(world)
                must(world.faults.keys() <= {*KINDS, *OUTCOMES}, "every kind of fault is one that is known to fire")
                harness.faults.update(world.faults)
                phase = "the servers' stop"
        except Broken as error:
            broken = [f"{error}, in {phase}"]
        except Exception as error:  # whatever it is, the promise was not shown to hold
            broken = [f"{type(error).__name__}: {error} at {_place_of(error)}, in {phase}"]
    harness.tried += 1
    harness.violations += [f"{text} (python -m prove.network {scenario.name} {seed})" for text in broken]


def _place_of(error: BaseException) -> str:
    """Say where in the harness it was: a time-out says nothing else of what was waited for."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/prove/" in frame.filename or "/demo/" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(ours[-3:]))


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Keep the servers' logs from the screen, and collect what tells of a fault of theirs."""
    unforeseen: list[str] = []

    def hear(_: Any, __: str, entry: Any) -> Any:
        if entry["event"] in UNFORESEEN:
            unforeseen.append(f"I15: {entry}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[hear])
    try:
        yield unforeseen
    finally:
        structlog.configure(**before)
