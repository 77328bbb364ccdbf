"""A server whose journal another program has locked, and a server whose clock goes back, as clients and health see them."""

import contextlib
import random
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import structlog.testing
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.disk import Disk, LocalDisk
from command_service.journal.commits import Rhythm
from command_service.parts import Parts
from rig.errors import refused
from rig.world import CHARGED, REPLAYED, World, a_request, a_world, assert_books_agree, records, until
from tests.service.clock_rig import START, Clock, a_clocked_world
from tests.service.test_charge import HOLD, said

HOUR = 3_600_000_000


class Hasty(Parts):
    """Parts without long pauses: neither before a call to the bank, nor for another program's lock."""

    def disk(self) -> Disk:
        return LocalDisk(busy_seconds=0.05)

    def rhythm(self) -> Rhythm:
        return Rhythm(probe_every_seconds=0.05)

    def chance(self) -> random.Random:
        return Brief()


class Brief(random.Random):
    """A source of jitter that gives short pauses."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, min(b, 0.02))


async def is_serving(world: World) -> bool:
    health: Any = health_pb2_grpc.HealthStub(world.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def is_not_serving(world: World) -> bool:
    return not await is_serving(world)


async def test_a_server_with_a_busy_journal_refuses_new_charges_and_keeps_those_it_has_begun(tmp_path: Path) -> None:
    """Health is NOT_SERVING, the log has the cause, known keys are answered, and all charges go on after the lock."""
    async with a_world(tmp_path, Hasty) as world:
        rested, running, new = a_request(), a_request(), a_request()
        await world.charge(rested)
        await world.trouble("execute", **HOLD)
        await world.pending(running)
        with (
            contextlib.closing(sqlite3.connect(world.journal, isolation_level=None)) as other,
            structlog.testing.capture_logs() as logs,
        ):
            other.execute("BEGIN IMMEDIATE")
            busy = said(grpc.StatusCode.UNAVAILABLE, "JOURNAL_BUSY", "RETRY_SAME_KEY", retry=5.0)
            assert await refused(world.charge(new)) == busy
            await until(lambda: is_not_serving(world))
            assert await refused(world.charge(new)) == busy
            assert (await world.charge(rested)).outcome_source == REPLAYED
            await world.referee.no_more_trouble()  # the bank answers, and its answer cannot be stored yet
            await until(lambda: len([e for e in logs if e["event"] == "nothing was stored"]) > 1)
            other.execute("ROLLBACK")
        text = "another program holds the journal's write lock: no new charges are taken"
        assert [entry["event"] for entry in logs].count(text) == 1
        assert not [entry for entry in logs if "disk" in str(entry["event"])]
        await until(lambda: is_serving(world))
        assert (await world.charge(running)).status == CHARGED
        assert (await world.charge(new)).status == CHARGED
        await assert_books_agree(world.journal, world.referee)


async def test_recorded_times_do_not_go_back_with_the_clock(clocked: World, clock: Clock) -> None:
    """Even if it goes back to before 1970: charges are charged, and the log names the clock and no disk."""
    with structlog.testing.capture_logs() as logs:
        for clock.moment in (START, START - HOUR, -HOUR):
            assert (await clocked.charge(a_request())).status == CHARGED
    assert {record.recorded_at for record in records(clocked.journal)} == {START}
    (warned,) = [str(entry["event"]) for entry in logs if entry["log_level"] == "warning"]
    assert "clock" in warned


async def test_a_charge_whose_request_is_later_than_the_clock_has_age_zero(tmp_path: Path, clock: Clock) -> None:
    """The clock has gone back since the request: the charge is not abandoned, and no gauge shows a negative age."""
    async with a_clocked_world(
        tmp_path, clock, COMMAND_ABANDON_AFTER_SECONDS="60", COMMAND_ATTENTION_AFTER_SECONDS="60"
    ) as world:
        await world.trouble("execute", **HOLD)
        running = a_request()
        await world.pending(running)
        for clock.moment in (0, -HOUR):
            taken = world.running.vitals()
            assert (taken.oldest_unfinished_seconds, taken.charges_needing_attention) == (0.0, 0)
        await world.referee.no_more_trouble()
        assert (await world.charge(running)).status == CHARGED
