"""The bank and the network: every fault that another party or the link to it can do, through real servers and sockets.

Scenario after scenario, each with a seed and a world of its own, until the time is used up. Those that wait for
real time-outs run beside the others. `python -m prove.network SCENARIO SEED` plays one again.
"""

import asyncio
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from charging.v1.command_pb2 import ChargeResponse
from command_service.journal import JournalRefused
from prove.network import bank, clients, feeds, floods, restarts
from prove.network.books import check
from prove.network.servers import InProcess, Processes
from prove.network.world import Broken, World, a_world
from prove.report import Harness, Say

# The servers' own words for a fault that they did not foresee.
UNFORESEEN = frozenset({"a call failed unexpectedly", "a charge stopped on its way"})
# No scenario comes near it on an idle machine, rest included.
SCENARIO_SECONDS = 240.0


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
    Scenario(clients.deadlines),
    Scenario(clients.cancels_at_each_seam),
    Scenario(clients.links_break),
    Scenario(clients.grpc_retries_by_itself),
    Scenario(clients.a_hundred_at_once_with_one_key),
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
    begun = time.monotonic()
    if shutil.which("openssl") is None:
        scenarios = [scenario for scenario in scenarios if scenario.play is not bank.certificates_are_wrong]
        harness.skipped["wrong certificates"] = "openssl, which makes them, is not on this machine"
    quick = [scenario for scenario in scenarios if not scenario.is_slow]
    slow = [scenario for scenario in scenarios if scenario.is_slow]

    async def lane(of: Sequence[Scenario]) -> None:
        seed, took_seconds = base, dict.fromkeys(of, 0.0)
        while of:
            for scenario in of:
                start = time.monotonic()
                if seed > base and start - begun + took_seconds[scenario] > seconds:
                    return
                await _play(scenario, seed, harness)
                took_seconds[scenario] = time.monotonic() - start
                say(f"{harness.tried} scenarios, {harness.faults.total()} faults, {len(harness.violations)} violations")
            seed += 1

    with _listening() as unforeseen:
        harness.controls = {name: await is_found(tamper) for name, tamper in CONTROLS.items()}
        await asyncio.gather(lane(quick), *(lane([scenario]) for scenario in slow))
        harness.violations += unforeseen
    harness.seconds = time.monotonic() - begun
    return harness


# ---------------------------------------------------------------- what must not pass
async def _pay_behind_our_back(world: World) -> None:
    order = {"reference": "nobody-asked", "card": "tok_visa", "amount": 100, "currency": "EUR"}
    token = (await world.bank.post("/transactions", json=order)).json()["token"]
    await world.bank.post(f"/transactions/{token}/execute")


async def _tell_another_outcome(world: World) -> None:
    answer = ChargeResponse()
    told = world.history[-1]
    assert told.answer is not None
    answer.CopyFrom(told.answer)
    answer.transaction_id = "txn_another"
    world.history.append(replace(told, answer=answer))


async def _forget_a_record(world: World) -> None:
    assert isinstance(world.servers, InProcess)
    assert world.servers.running is not None
    await world.servers.command_down()
    with closing(sqlite3.connect(world.folder / "journal.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM record WHERE position = (SELECT MAX(position) FROM record)")
    await world.command_up()


CONTROLS: dict[str, Callable[[World], Awaitable[None]]] = {
    "money that moved behind our back is found": _pay_behind_our_back,
    "another outcome for the same key is found": _tell_another_outcome,
    "a journal that lost its last record is found": _forget_a_record,
}


async def is_found(tamper: Callable[[World], Awaitable[None]]) -> bool:
    """Tamper with a world at rest; True if that is found."""
    with tempfile.TemporaryDirectory(prefix="network-") as place:
        folder = Path(place)
        async with a_world(InProcess(folder), folder, random.Random(0), has_view=False) as world:
            await world.settle_all(world.requests(2))
            assert not await check(world)
            try:
                await tamper(world)
                return bool(await check(world))
            except JournalRefused:
                return True


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
    with tempfile.TemporaryDirectory(prefix="network-") as place:
        folder = Path(place)
        servers = Processes(folder) if scenario.is_killing else InProcess(folder)
        try:
            async with asyncio.timeout(SCENARIO_SECONDS):
                async with a_world(servers, folder, chance, has_view=scenario.has_view) as world:
                    await scenario.play(world)
                    await world.rest()
                    broken = await check(world)
                    harness.faults.update(world.faults)
        except Broken as error:
            broken = [str(error)]
        except Exception as error:  # whatever it is, the promise was not shown to hold
            broken = [f"{type(error).__name__}: {error}"]
    harness.tried += 1
    harness.violations += [f"{text} (python -m prove.network {scenario.name} {seed})" for text in broken]


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
