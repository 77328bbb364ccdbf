"""The harness of failovers, in small: one loss of the primary, one of a command server, and a reckoning."""

from pathlib import Path

from prove.postgres import faults, lose
from prove.postgres.world import Times, a_world
from prove.report import Harness
from rig.postgres_pair import Pair


async def test_a_failover_under_load_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """And the charges of a killed command server are brought to rest by the other one."""
    harness, times = Harness("postgres", "failovers"), Times()
    async with Pair() as pair, a_world(pair, tmp_path, 0, harness, times) as world:
        await world.more(20)
        await lose(world, faults.KILLED, returns=True)
        await faults.command_is_killed(world)
        await world.see_servers_run()
    assert harness.violations == []
    assert harness.tried == len(times.gaps) == 1
    assert harness.faults["charges"] > 0
