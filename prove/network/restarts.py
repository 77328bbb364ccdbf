"""Scenarios of servers that are stopped and killed under load, as processes of their own.

A client makes every call with `wait_for_ready` and makes it once more after an error: a restart costs no more than that.
"""

import asyncio

from judge.history import Request
from prove.network.world import World, must
from prove.sales import wanted
from rig.asking import FOR_GOOD

CLIENTS = 8


async def the_command_server_is_stopped(world: World) -> None:
    """SIGTERM under load, several times: each call has its outcome after one retry at most."""
    await _under_load(world, kill=False, times=6)


async def the_command_server_is_killed(world: World) -> None:
    """kill -9 under load, several times: each call has its outcome after one retry at most."""
    await _under_load(world, kill=True, times=6)


async def the_query_server_is_killed(world: World) -> None:
    """kill -9 and SIGTERM of the query server while it follows: its view goes on from its checkpoint."""
    for number in range(8):
        asking = [asyncio.create_task(world.ask(request)) for request in await world.wishes(20)]
        await world.feed_link.has_moved(world.feed_link.moved_bytes + world.chance.randrange(1, 4_000))
        kill = number % 2 == 0
        await world.servers.query_down(kill=kill)
        world.faults[f"query server: {'killed' if kill else 'stopped'}"] += 1
        await asyncio.gather(*asking)
        await world.query_up()


async def the_bank_is_killed(world: World) -> None:
    """kill -9 of the bank amid its work: it has what it has done, and each charge is charged once."""
    for _ in range(10):
        requests = await world.wishes(15)
        for on in ("token", "execute"):
            await world.trouble(on, world.chance.choice(("lose_answer", "delay", "error_after")))
        asking = [asyncio.create_task(world.ask(request, 3.0)) for request in requests]
        # A server that spares its bank refuses all that is asked, and then moves nothing more.
        amid = world.bank_link.has_moved(world.bank_link.moved_bytes + world.chance.randrange(1, 10_000))
        moved, answered = asyncio.ensure_future(amid), asyncio.gather(*asking)
        await asyncio.wait((moved, answered), return_when=asyncio.FIRST_COMPLETED)
        moved.cancel()
        await world.servers.bank_down()
        world.faults["bank: killed"] += 1
        await world.servers.bank_up()
        await answered


async def _under_load(world: World, *, kill: bool, times: int) -> None:
    running, restarts, gaps = True, 0, 0

    async def client() -> None:
        while running:
            for turn in wanted(world.chance, world.new_key("sale"), is_calm=True):
                for request in turn:
                    await ask(request)

    async def ask(request: Request) -> None:
        nonlocal gaps
        in_vain = 0
        while True:
            before = restarts
            asked = await world.ask(request)
            if asked.outcome is not None or asked.reason in FOR_GOOD:
                return
            # A call may meet the next restart, too: then that one is what its next retry is for.
            in_vain = in_vain + 1 if before == restarts else 1
            gaps += 1
            # At once, and grpc may put it on the link that has just died, before it takes notice (seen: "Broken pipe").
            await asyncio.sleep(0.1)
            must(in_vain == 1, f"one retry cures a restart; instead: {asked.code.name} {asked.reason} {asked.text}")

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    try:
        for _ in range(times):
            enough = world.client_link.moved_bytes + world.chance.randrange(5_000, 40_000)
            moved = asyncio.create_task(world.client_link.has_moved(enough))
            await asyncio.wait((*clients, moved), return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()
            restarts += 1
            await world.command_again(kill=kill)
            world.faults[f"command server: {'killed' if kill else 'stopped'}"] += 1
    finally:
        running = False
        ended = await asyncio.gather(*clients, return_exceptions=True)
    for end in ended:
        if isinstance(end, Exception):
            raise end
    world.faults["client: retried over a restart"] += gaps
