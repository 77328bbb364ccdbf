"""Scenarios of clients and of their links: what befalls a call may be anything, what becomes of the charge may not."""

import asyncio
import contextlib
import json
from typing import Any

import grpc
import grpc.aio

from charging.v1.command_pb2 import OperationOutcome, OutcomeSource
from charging.v1.common_pb2 import Money
from judge.history import Request
from prove.network.faultproxy import Fault, Kind, Way
from prove.network.world import Asked, World, must, until
from prove.sales import Sale
from rig.asking import send

# As a client's service config may say: grpc itself tries again, with the same key because it is the same request.
RETRYING = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "charging.v1.CommandService"}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "INTERNAL"],
                },
            }
        ]
    }
)
TEN_YEARS_SECONDS = 10 * 366 * 86_400.0


async def deadlines(world: World) -> None:
    """Deadlines of nothing, of a little, of ten years, and none: PENDING or an honest error, and the charge goes on."""
    # Just beyond 200 ms the server waits for a moment only, in which the request is being stored.
    seam = [world.chance.uniform(0.2, 0.215) for _ in range(30)]
    waits = (0.0, 0.001, 0.01, 0.05, 0.15, 0.2, *seam, 0.25, 0.4, 5.0, TEN_YEARS_SECONDS, None)
    requests = await world.wishes(len(waits))
    await world.trouble("execute", "delay", seconds=0.3, times=60)
    asking = [world.ask(request, seconds) for request, seconds in zip(requests, waits, strict=True)]
    for asked, seconds in zip(await asyncio.gather(*asking), waits, strict=True):
        world.faults["client: deadline"] += asked.outcome is None
        must(
            asked.answer is not None or asked.code is grpc.StatusCode.DEADLINE_EXCEEDED,
            f"a deadline of {seconds} is answered or exceeded, not {asked.code.name} {asked.reason}",
        )
        if seconds is None or seconds >= 5.0:
            must(asked.outcome is not None, f"{seconds} s are enough to hear the outcome")
        elif seconds <= 0.2:
            must(asked.outcome is None, f"{seconds} s are too little to hear it")


async def cancels_at_each_seam(world: World) -> None:
    """A client hangs up after any number of bytes have moved, on its link or on the bank's: the charge goes on."""
    for request in await world.wishes(30):
        link = world.chance.choice((world.client_link, world.bank_link))
        at_bytes = link.moved_bytes + world.chance.randrange(1, 1_500 if link is world.bank_link else 500)
        call: Any = send(world.commands, request, timeout=25.0, wait_for_ready=True)
        noting = asyncio.ensure_future(world.note(request, call))
        moved = asyncio.ensure_future(link.has_moved(at_bytes))
        await asyncio.wait((noting, moved), return_when=asyncio.FIRST_COMPLETED)
        moved.cancel()
        world.faults["client: cancel"] += call.cancel()
        await asyncio.wait((noting,))
        if not noting.cancelled():
            noting.result()


async def links_break(world: World) -> None:
    """The client's link is cut, reset, held up or made slow after any number of bytes; the same key gets the answer."""
    for kind in (Kind.CUT, Kind.RESET, Kind.DELAY, Kind.THROTTLE) * 3:
        way = world.chance.choice(list(Way))
        # Of a few hundred bytes, at most: those that set up the link are more interesting than others.
        # Slower, and a link would be of no use for longer than a client waits.
        seconds = world.chance.uniform(0.0005, 0.003) if kind is Kind.THROTTLE else world.chance.uniform(0.01, 0.5)
        fault = Fault(kind, way, after_bytes=world.chance.randrange(400), seconds=seconds)
        (request,) = await world.wishes(1)
        world.client_link.order(fault)
        for _ in range(20):
            asked = await world.ask(request, 3.0)
            if asked.outcome is not None:
                break
        must(asked.outcome is not None, "the same key gets its answer over the next link")
        if kind is Kind.THROTTLE:
            world.client_link.end_all(reset=False)  # it would stay slow, and so good for no other fault


async def grpc_retries_by_itself(world: World) -> None:
    """grpc tries again below the client, over links that are cut amid requests and answers: each charge is one charge."""
    options = (("grpc.service_config", RETRYING), ("grpc.enable_retries", 1), ("grpc.use_local_subchannel_pool", 1))
    async with world.another_client(*options) as commands:
        for number in range(8):
            way = world.chance.choice(list(Way))
            world.client_link.order(Fault(Kind.RESET, way, after_bytes=world.chance.randrange(300)))
            requests = [world.request(world.new_key(f"retried-{number}-{twin}")) for twin in range(3)]
            await asyncio.gather(*(world.ask(request, 10.0, stub=commands) for request in requests))


async def a_hundred_at_once_with_one_key(world: World) -> None:
    """A hundred calls with one key, over several links: one charge or one refund, one FRESH, a hundred equal answers."""
    for kind in ("charge", "refund"):
        (request,) = await world.wishes(1, (kind,))
        for on, fault in (("token", "delay"), ("execute", "lose_answer")):
            await world.trouble(on, fault)
        async with world.another_client(("grpc.use_local_subchannel_pool", 1)) as second:
            stubs = [world.chance.choice((world.commands, second)) for _ in range(100)]
            asked = await asyncio.gather(*(world.ask(request, stub=stub) for stub in stubs))
        world.faults["client: the same key at once"] += len(asked)
        must(all(one.is_done for one in asked), "all hundred hear the outcome")
        fresh = [
            one for one in asked if one.outcome and one.outcome.outcome_source == OutcomeSource.OUTCOME_SOURCE_FRESH
        ]
        must(len(fresh) == 1, f"I6: one call began it, not {len(fresh)}")


async def a_hundred_refund_at_once(world: World) -> None:
    """A hundred callers want a part each of one charge, and some all that is left: no more goes back than was charged."""
    opening = world.request(amount=Money(minor_units=1_000))
    await world.settle(opening)
    sale, names = Sale(opening), [world.new_key("part") for _ in range(100)]
    parts = [world.chance.choice((30, 30, 30, 70, None)) if number else 30 for number in range(100)]
    requests = [sale.refund(name, part) for name, part in zip(names, parts, strict=True)]
    for fault in ("lose_answer", "error_before", "lose_request"):
        await world.trouble("execute", fault, kind="refund")
    asked = await world.settle_all(requests)
    world.faults["client: refunds at once"] += len(asked)
    refused = {one.reason for one in asked if not one.is_done}
    must(refused <= {"MORE_THAN_IS_LEFT"}, f"who comes too late hears that nothing is left, not {refused}")
    moved = sum(one.outcome.amount.minor_units for one in asked if isinstance(one.outcome, OperationOutcome))
    must(moved == sale.amount or None not in parts, f"I17: all that was left goes back, not {moved} of {sale.amount}")


async def one_key_for_other_requests_at_once(world: World) -> None:
    """Calls with one key and other amounts at once: one request wins, the others learn only that the key is taken."""
    key, name = world.new_key("contested"), world.new_key("part")
    bodies: list[Request] = [world.request(key, amount=Money(minor_units=100 + n)) for n in range(4)]
    opening = world.request(amount=Money(minor_units=1_000))
    await world.settle(opening)
    for contested in (bodies, [Sale(opening).refund(name, 100 + n) for n in range(4)]):
        asked = await asyncio.gather(*(world.ask(world.chance.choice(contested)) for _ in range(60)))
        winners = {one.request.SerializeToString() for one in asked if one.answer is not None}
        must(len(winners) == 1, f"I6: one request has the key, not {len(winners)}")
        losers = [one for one in asked if one.answer is None]
        must(all(one.reason == "IDEMPOTENCY_KEY_REUSED" for one in losers), "the others hear that the key is taken")
        world.faults["client: key reused at once"] += len(losers)


async def hedged(world: World) -> None:
    """A client that does not wait: every call is made again before the first has answered, over another link."""
    requests = await world.wishes(8)
    await world.trouble("execute", "delay", seconds=0.2, times=8)
    async with world.another_client(("grpc.use_local_subchannel_pool", 1)) as second:

        async def twice(request: Request) -> list[Asked]:
            first = asyncio.create_task(world.ask(request))
            await asyncio.sleep(world.chance.uniform(0, 0.1))
            return list(await asyncio.gather(first, world.ask(request, stub=second)))

        pairs = await asyncio.gather(*(twice(request) for request in requests))
    world.faults["client: hedged"] += len(pairs)
    for pair in pairs:
        must(all(asked.is_done for asked in pair), "both calls hear the outcome")


async def idle_links_are_dropped(world: World) -> None:
    """A link that was dropped while idle costs its client one retry at most: that is, when it calls at that moment."""
    for request in world.requests(8):
        asked = await world.ask(request)
        if asked.outcome is None:
            must(asked.code is grpc.StatusCode.UNAVAILABLE, f"a dropped link is UNAVAILABLE, not {asked.code.name}")
            asked = await world.ask(request)
        must(asked.outcome is not None, "one retry cures a dropped link")
        world.client_link.end_all(reset=world.chance.random() < 0.5)
        await asyncio.sleep(world.chance.choice((0.0, 0.05)))


async def too_large(world: World) -> None:
    """Requests and metadata that are too large are refused by their size, and nobody else notices."""
    large = world.request(description="x" * (17 << 10))  # the service's own limit; the others are gRPC's
    huge = world.request(description="x" * (5 << 20))
    wide = world.request()
    asked = []
    for _ in range(4):
        asked += [
            await world.ask(large),
            await world.ask(huge),
            await world.ask(wide, metadata=(("x-large", "y" * (64 << 10)),)),
        ]
    for number, one in enumerate(asked):
        if number % 3 == 0:
            must(
                (one.code, one.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
                f"what is above our own limit is refused by us, not {one.code.name} {one.reason}",
            )
        must(
            number % 3 == 0
            or one.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE),
            f"what is too large is refused as such, not {one.code.name} {one.reason}",
        )
        world.faults["client: too large"] += 1
    # They can never be taken, so nobody asks again.
    world.history = [one for one in world.history if one not in asked]
    good = await world.ask(world.request())
    must(good.outcome is not None, "a good client is served")


async def half_open(world: World) -> None:
    """Links that go silent both ways are noticed by both ends within keepalive's 22.5 s, and then calls go through."""
    await world.trouble("execute", "hang_before", times=40, seconds=60)
    async with contextlib.AsyncExitStack() as stack:
        own_link = ("grpc.use_local_subchannel_pool", 1)
        clients = [await stack.enter_async_context(world.another_client(own_link)) for _ in range(5)]
        waiting = [
            asyncio.create_task(world.ask(request, 60.0, stub=client))
            for client in clients
            for request in world.requests(2)
        ]
        await world.bank_link.has_moved(500)
        links = world.client_link.darken_all()
        must(links == len(clients), "each client has a link of its own")
        # Twice what keepalive allows: what is shown is that it happens at all.
        hung_up = world.client_link.hung_up
        await until(lambda: min(hung_up[way] for way in Way) >= links, 45, "both ends notice that their link is dead")
        await asyncio.gather(*waiting)
    world.faults["link: half-open, noticed by both ends"] += links


async def idle_clients_are_let_be(world: World) -> None:
    """A client that only pings, as keepalive does every 15 s, is not sent away for it."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(world.another_client(("grpc.use_local_subchannel_pool", 1)))
            for _ in range(10)
        ]
        for client in clients:
            await world.ask(world.request(), stub=client)
        links = world.client_link.links
        # Four pings; the third was one too many once.
        await asyncio.sleep(62)
        must(world.client_link.links == links, "a client that only pings keeps its link")
        world.faults["client: idle for a minute"] += len(clients)
