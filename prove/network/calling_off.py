"""Scenarios of charges that are called off while they are under way, and of holds that lapse: each has one end, the bank's."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from charging.v1.command_pb2 import CaptureMode, ChargeRequest, VoidRequest
from judge.files import read_journal
from prove.network.bank import EXECUTE, HARMLESS
from prove.network.faultproxy import Fault, Kind
from prove.network.world import Asked, World, must
from prove.sales import Sale
from rig.asking import reference_of
from rig.world import VOIDED

CANCEL = b"/cancel HTTP/1.1"
# The bank is at a charge for as long as it is asked.
AT_IT: Mapping[str, Any] = {"fault": "in_progress", "retry_after": "0.3", "times": 1_000}
MANUAL = CaptureMode.CAPTURE_MODE_MANUAL


async def _under_way(world: World, count: int) -> list[ChargeRequest]:
    """Charges and holds that the bank is at, whether or not it is asked again, until it is told otherwise."""
    requests = [world.request(capture=world.chance.choice((None, MANUAL))) for _ in range(count)]
    for request in requests:
        await world.trouble("execute", request=request, **AT_IT)
    for asked in await asyncio.gather(*(world.ask(request, 0.4) for request in requests)):
        must(asked.outcome is None, "what a bank is at has no outcome")
    known = {record.charge_id for record in read_journal(world.folder / "journal.db")}
    must(known >= set(map(reference_of, requests)), "what was asked for is under way")
    return requests


def _void(world: World, opening: ChargeRequest) -> VoidRequest:
    return Sale(opening).void(world.new_key("void"))


async def _executed_late(world: World, requests: list[ChargeRequest]) -> None:
    """Each execute step that the bank ever got comes once more."""
    names = set(map(reference_of, requests))
    paths = {
        call["path"]
        for call in await world.referee.calls()
        if call["reference"] in names and call["path"].endswith("/execute")
    }
    await world.no_more_trouble()
    for path in paths:
        late = await world.referee.http.post(path)
        must(late.status_code == 410, f"a late execute of what was called off is refused, not {late.status_code}")
        world.faults["bank: executed late"] += 1


async def charges_are_called_off(world: World) -> None:
    """By a void, with every fault of the cancel: no money moves, and a late execute cannot succeed."""
    requests = await _under_way(world, 12)
    faults = [one for one in HARMLESS if one[0] != "in_progress"]
    for request, (fault, details) in zip(requests, world.chance.sample(faults, len(requests)), strict=True):
        await world.trouble("cancel", fault, request=request, **details)
    world.bank_link.order(*(Fault(Kind.DUPLICATE, when=CANCEL, seconds=0.1) for _ in range(3)))
    voids = await world.settle_all([_void(world, request) for request in requests])
    must(all(asked.is_done for asked in voids), "what is under way is called off, whatever befalls the cancel")
    await _all_are_voided(world, requests)
    world.faults["client: called off"] += len(voids)
    await _executed_late(world, requests)


async def times_pass(world: World) -> None:
    """By their time, with every fault of the cancel and nobody who asks."""
    requests = [world.request(capture=world.chance.choice((None, MANUAL))) for _ in range(8)]
    faults = [one for one in HARMLESS if one[0] != "in_progress"]
    for request in requests:
        request.not_after.FromNanoseconds(time.time_ns() + int(world.chance.uniform(0.5, 1.0) * 1e9))
        await world.trouble("execute", request=request, **AT_IT)
        fault, details = world.chance.choice(faults)
        await world.trouble("cancel", fault, request=request, **details)
    await asyncio.gather(*(world.ask(request, 0.4) for request in requests))
    await _all_are_voided(world, requests)
    world.faults["client: time passed"] += len(requests)
    await _executed_late(world, requests)


async def _all_are_voided(world: World, requests: list[ChargeRequest]) -> None:
    for asked in await world.settle_all(requests):
        must(asked.outcome is not None and asked.outcome.status == VOIDED, f"what is called off is VOIDED: {asked}")


async def voids_meet_executions(world: World) -> None:
    """A void at the moment of the execution, whose answer is late, lost or doubled: both are told one truth, the bank's."""
    requests = [world.request(capture=world.chance.choice((None, MANUAL))) for _ in range(24)]
    faults = ("delay", "lose_answer", "lose_request", "hang_after", "error_after", "error_before")
    for request in requests:
        for on in ("execute", "cancel"):
            if world.chance.random() < 0.7:
                await world.trouble(on, world.chance.choice(faults), request=request)
    world.bank_link.order(*(Fault(Kind.DUPLICATE, when=EXECUTE, seconds=0.2) for _ in range(3)))

    async def charge_and_void(request: ChargeRequest) -> tuple[Asked, Asked]:
        charging = asyncio.create_task(world.settle(request))
        await asyncio.sleep(world.chance.uniform(0.0, 0.1))
        return await world.settle(_void(world, request)), await charging

    for request, (void, charge) in zip(requests, await asyncio.gather(*map(charge_and_void, requests)), strict=True):
        must(charge.outcome is not None, "a charge that was asked for has an end")
        is_off = charge.outcome is not None and charge.outcome.status == VOIDED
        must(charge.is_done != is_off, f"a charge is executed or called off: {charge}")
        let_go = is_off or (request.capture == MANUAL)
        must(void.is_done == let_go, f"a void does what can be done: {void}, {charge}")
        world.faults["client: void against execution"] += 1


async def holds_lapse(world: World) -> None:
    """The bank lets a hold lapse before what was asked for is executed: it is declined for that, and nothing may follow."""
    requests = await world.wishes(6, ("capture", "void"))
    for request in requests:
        if world.chance.random() < 0.5:
            await world.trouble("token", world.chance.choice(("lose_answer", "garbage", "reset")), request=request)
        await world.trouble(world.chance.choice(("token", "execute")), "expire_hold", request=request)
    for asked in await world.settle_all(requests):
        must(asked.is_declined, "what comes too late for a hold is declined")
        assert not isinstance(asked.request, ChargeRequest)
        again = VoidRequest(idempotency_key=world.new_key("again"), charge_id=asked.request.charge_id)
        refused = await world.ask(again)
        must(refused.reason == "OPERATION_DOES_NOT_FIT", f"nothing is held any more: {refused}")
