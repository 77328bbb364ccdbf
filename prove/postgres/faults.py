"""What is done to the pair of nodes and to the command servers: losses of the primary, and what may happen between them."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from prove.postgres.world import World, are_at_rest, charges_driven_by

KILLED = "primary killed"
FROZEN = "primary frozen, and another one promoted"
CANCELLED = "waits for the standby cancelled, and the primary killed"
RETURNED = "old primary writable beside the new one"
GONE = "standby gone for a while"
TERMINATED = "connections that wait for the standby ended"
PAUSED = "command server paused for longer than its leases"
DEAD = "command server killed"
# Longer than the leases last, and than an idle transaction may.
PAUSE_SECONDS = 6.0
AWAY = "this server was away for longer than its leases last: others may drive its charges now"


# ---------------------------------------------------------------- losses of the primary, which end with another one
async def kill(world: World) -> None:
    """Kill it at a random moment of its work."""
    await asyncio.sleep(world.chance.uniform(0.0, 0.1))
    began = time.monotonic()
    await asyncio.to_thread(world.pair.primary.kill)
    await _take_over(world, began)


async def freeze(world: World) -> None:
    """Stop it with its connections open; it goes on when there is another one, and does not know."""
    await asyncio.sleep(world.chance.uniform(0.0, 0.1))
    began = time.monotonic()
    await asyncio.to_thread(world.pair.primary.pause)
    await _take_over(world, began)
    world.pair.standby.resume()
    await world.more(20)
    await asyncio.to_thread(world.pair.standby.kill)


async def cancel_and_kill(world: World) -> None:
    """Have the primary show commits that the standby never gets, and kill it then."""
    await world.pair.standby.stop()  # paused, it would find them on its connection later
    await _end_waits(world, "pg_cancel_backend")
    began = time.monotonic()
    await asyncio.to_thread(world.pair.primary.kill)
    await world.pair.standby.start()
    await _take_over(world, began)


async def _take_over(world: World, began: float) -> None:
    """Promote the standby, and measure until a charge is known to have ended that is asked for meanwhile."""
    charging = asyncio.create_task(world.clients.buy_alone(f"gap-{len(world.times.gaps)}"))
    await world.pair.take_over()
    await asyncio.wait_for(charging, world.patient_seconds)
    world.times.gaps.append(time.monotonic() - began)
    world.harness.tried += 1


async def old_primary_returns(world: World) -> None:
    """Start it beside the new one; a command server begins, which has seen neither, and the other one looks for them anew."""
    await world.pair.old_primary_returns()
    command = world.chance.choice(world.fleet.commands)
    await command.kill()
    await command.start()
    await world.end_connections()
    await world.more(20)


# ---------------------------------------------------------------- between them
async def standby_is_gone(world: World) -> None:
    """Nothing can be acknowledged meanwhile, and nothing is lost."""
    await world.pair.standby.stop()
    await asyncio.sleep(world.chance.uniform(0.5, 4.0))
    await world.pair.standby.start()
    await world.more(20)


async def waiting_connections_end(world: World) -> None:
    """What became of their commits is found out."""
    await asyncio.to_thread(world.pair.standby.pause)
    try:
        await _end_waits(world, "pg_terminate_backend")
    finally:
        world.pair.standby.resume()
    await world.more(20)


async def _end_waits(world: World, function: str) -> None:
    """End waits for the standby, which is paused, for a while: others follow on the first ones."""

    async def has_ended() -> bool:
        return await world.end_waiting(function) > 0

    for _ in range(world.chance.randrange(1, 4)):
        await world.within(has_ended)
    await asyncio.sleep(world.chance.uniform(0.0, 0.3))


async def command_is_paused(world: World) -> None:
    """It stands still, the other one takes its charges over, and it comes back."""
    command = world.chance.choice(world.fleet.commands)
    command.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(PAUSE_SECONDS)
    finally:
        command.send(signal.SIGCONT)
    await world.within(lambda: any(entry["event"] == AWAY for entry in command.entries(command.began_at)))


async def command_is_killed(world: World) -> None:
    """The other one brings its charges to rest."""
    command = world.chance.choice(world.fleet.commands)
    pid = command.pid
    await command.kill()
    began = time.monotonic()
    driven = await charges_driven_by(world, pid)

    async def is_relieved() -> bool:
        return not await charges_driven_by(world, pid)

    async def is_done() -> bool:
        return await are_at_rest(world, driven)

    if driven:
        await world.within(is_relieved)
        world.times.claims.append(time.monotonic() - began)
        await world.within(is_done)
        world.times.takeovers.append(time.monotonic() - began)
    await command.start()


Fault = Callable[[World], Awaitable[None]]
LOSSES: dict[str, Fault] = {KILLED: kill, CANCELLED: cancel_and_kill, FROZEN: freeze}
BETWEEN: dict[str, Fault] = {
    DEAD: command_is_killed,
    TERMINATED: waiting_connections_end,
    PAUSED: command_is_paused,
    GONE: standby_is_gone,
}
