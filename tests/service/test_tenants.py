"""Two tenants at one command server: a flood of one leaves the other its share, and for each the other's charges do not exist.

Over a real channel, against a real bank. At the end of each test bank and journal must agree (`a_world`).
"""

import asyncio
import bisect
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from charging.v1.command_pb2 import CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from charging.v1.common_pb2 import Card
from command_service.codec import charge_id_of
from rig.errors import Told, refused, told
from rig.referee import PATIENT_SECONDS
from rig.world import (
    CHARGED,
    JOINED,
    RECOVERED,
    REPLAYED,
    World,
    a_hold,
    a_request,
    a_world,
    head,
    new_key,
    records,
    story,
    until,
)
from tests.service.tenants_rig import SharedParts, as_tenant, shared_by

ALWAYS = 1_000_000
HANGING = Card(token="tok_mastercard", brand="mastercard", last4="4444")
HOLD: dict[str, Any] = {"fault": "in_progress", "retry_after": "1", "times": ALWAYS, "card": HANGING.token}
"""The bank does not come to an end with charges of the hanging card, until `no_more_trouble`."""
EVEN = {"a": 1.0, "b": 1.0}


def shared(folder: Path, **settings: str) -> AbstractAsyncContextManager[World]:
    """A world whose tenants `a` and `b` have even shares. With a limit of 8, two places are reserved for each."""
    return a_world(folder, shared_by(EVEN), **settings)


async def charge(
    world: World, tenant: str, request: ChargeRequest | None = None, seconds: float = PATIENT_SECONDS
) -> Any:
    return await world.commands.Charge(request or a_request(), timeout=seconds, **as_tenant(tenant))


async def pending(world: World, request: ChargeRequest) -> Any:
    """Charge as tenant `a`, and do not wait for the outcome that does not come."""
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):  # that is a busy machine: the same key again
            return await charge(world, "a", request, 0.8)


@dataclass
class Flood:
    """Calls for charges that hang: those that are under way, by their requests, and how the others were refused."""

    taken: list[tuple[ChargeRequest, "asyncio.Task[Any]"]]
    refusals: list[Told]


async def flood(world: World, number: int, room: int) -> Flood:
    """Have tenant `a` ask for charges that hang, all at once, and wait until no more than `room` are left under way."""
    requests = [a_request(card=HANGING) for _ in range(number)]
    calls = [(request, asyncio.ensure_future(charge(world, "a", request))) for request in requests]
    await until(lambda: sum(call.done() for _, call in calls) >= number - room)
    return Flood(
        [(request, call) for request, call in calls if not call.done()],
        [await refused(call) for _, call in calls if call.done()],
    )


# ---------------------------------------------------------------- no tenant starves another
async def test_a_tenants_flood_of_calls_leaves_the_other_its_calls(tmp_path: Path) -> None:
    """It is refused beyond its share, with a time to come back and nothing stored; the other is served meanwhile."""
    async with shared(tmp_path, COMMAND_MAX_CALLS="8") as world:
        await world.trouble("token", **HOLD)
        flooding = await flood(world, 40, room=6)
        await until(lambda: head(world.journal).position == 6)
        for _ in range(5):
            answers = await asyncio.gather(charge(world, "b"), charge(world, "b"))
            assert {answer.status for answer in answers} == {CHARGED}
        assert [call.done() for _, call in flooding.taken] == [False] * 6
        assert len(flooding.refusals) == 34
        assert {(each.code, each.reason, each.advice) for each in flooding.refusals} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_LIMIT", "RETRY_SAME_KEY")
        }
        assert min(each.retry_after_seconds or 0.0 for each in flooding.refusals) >= 0.5
        assert head(world.journal).position == 6 + 30
        await world.referee.no_more_trouble()
        assert {(await call).status for _, call in flooding.taken} == {CHARGED}


async def test_a_tenants_unfinished_charges_leave_the_other_room_for_new_ones(tmp_path: Path) -> None:
    """Also after a start. The tenant's own keys that the journal holds are answered."""
    async with shared(tmp_path, COMMAND_MAX_UNFINISHED="8") as world:
        known = a_request()
        await charge(world, "a", known)
        await world.trouble("token", **HOLD)
        flooding = await flood(world, 20, room=6)
        assert (len(flooding.taken), len(flooding.refusals)) == (6, 14)
        await until(lambda: head(world.journal).position == 3 + 6)
        for _, call in flooding.taken:
            call.cancel()
        taken = [request for request, _ in flooding.taken]
        for again in (False, True):
            if again:
                await world.drain()
                await world.start()
            told_new = await refused(charge(world, "a"))
            assert (told_new.code, told_new.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_LIMIT")
            assert (told_new.advice, told_new.retry_after_seconds) == ("RETRY_SAME_KEY", 1.0)
            assert (await charge(world, "a", known)).outcome_source == REPLAYED
            assert (await pending(world, taken[0])).outcome_source == (RECOVERED if again else JOINED)
            answers = await asyncio.gather(charge(world, "b"), charge(world, "b"))
            assert {answer.status for answer in answers} == {CHARGED}
        await world.referee.no_more_trouble()
        assert {(await charge(world, "a", request)).status for request in taken} == {CHARGED}
        assert (await charge(world, "a")).status == CHARGED


async def test_a_tenants_flood_of_retries_leaves_the_other_room_for_new_charges(tmp_path: Path) -> None:
    """A retry takes room for a moment too, since it may turn out to be new: that of its own tenant."""
    async with shared(tmp_path, COMMAND_MAX_UNFINISHED="4") as world:
        requests = [a_request() for _ in range(20)]
        for request in requests:
            await charge(world, "a", request)

        async def keep_asking(request: ChargeRequest) -> None:
            while True:
                assert (await charge(world, "a", request)).outcome_source in (JOINED, REPLAYED)

        flooding = [asyncio.ensure_future(keep_asking(request)) for request in requests]
        for _ in range(30):
            assert (await charge(world, "b")).status == CHARGED
        for asking in flooding:
            assert not asking.done()
            asking.cancel()
        await asyncio.wait(flooding)


class Still(SharedParts):
    """Parts with a clock that stands still: however long the calls take, they come at one moment."""

    def clock(self) -> float:
        return 0.0


async def test_a_tenant_has_its_rate_and_the_other_none(tmp_path: Path) -> None:
    """What comes too soon is refused with the time of its turn, and nothing is stored."""
    async with a_world(tmp_path, lambda chosen: Still(chosen, EVEN, {"a": 5.0})) as world:
        requests = [a_request() for _ in range(20)]
        answers = await asyncio.gather(*(charge(world, "a", each) for each in requests), return_exceptions=True)
        refusals = [told(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert {(each.reason, each.advice) for each in refusals} == {("TENANT_LIMIT", "RETRY_SAME_KEY")}
        assert sorted(each.retry_after_seconds or 0.0 for each in refusals) == [turn / 5 for turn in range(1, 16)]
        assert head(world.journal).position == 3 * 5
        others = await asyncio.gather(*(charge(world, "b") for _ in range(20)))
        assert {answer.status for answer in others} == {CHARGED}


async def test_a_tenants_queue_at_the_bank_does_not_hold_up_the_other(tmp_path: Path) -> None:
    """The slots are all taken and many calls wait: the other tenant's next call gets the next free slot."""
    async with shared(tmp_path, COMMAND_BANK_CALLS="2") as world:
        delay: dict[str, Any] = {"fault": "delay", "seconds": 0.2, "times": ALWAYS, "card": HANGING.token}
        await world.trouble("token", **delay)
        ended: list[object] = []
        waiting = [asyncio.ensure_future(charge(world, "a", a_request(card=HANGING))) for _ in range(30)]
        for each in waiting:
            each.add_done_callback(ended.append)
        await until(lambda: head(world.journal).position >= 30)
        assert (await charge(world, "b")).status == CHARGED
        assert len(ended) < 15
        await world.referee.no_more_trouble()
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {CHARGED}


# ---------------------------------------------------------------- a stranger's charge does not exist
async def test_one_key_of_two_tenants_names_two_charges(tmp_path: Path) -> None:
    """And a charge of one is no duplicate of the other's: nobody is told the id of a stranger's."""
    async with shared(tmp_path, COMMAND_DUPLICATE_WINDOW_SECONDS="600") as world:
        request = a_request()
        ids = [(await charge(world, tenant, request)).charge_id for tenant in EVEN]
        assert ids == [charge_id_of(tenant, request.idempotency_key) for tenant in EVEN]
        assert await world.moved() == [("charge", 1250)] * 2
        for tenant, own in zip(EVEN, ids, strict=True):
            again = await refused(charge(world, tenant))
            assert (again.reason, again.metadata["charge_id"]) == ("POSSIBLE_DUPLICATE", own)
        third = await charge(world, "c")
        assert third.status == CHARGED


@asynccontextmanager
async def at_rest(world: World) -> AsyncIterator[str]:
    yield (await charge(world, "a", a_hold())).charge_id


@asynccontextmanager
async def under_way(world: World) -> AsyncIterator[str]:
    await world.trouble("execute", **HOLD)
    yield (await pending(world, a_hold(card=HANGING))).charge_id


@asynccontextmanager
async def waiting_for_its_turn(world: World) -> AsyncIterator[str]:
    charge_id = (await charge(world, "a", a_hold(card=HANGING))).charge_id
    await world.trouble("token", **HOLD)
    captures = [
        world.commands.Capture(
            CaptureRequest(idempotency_key=new_key(), charge_id=charge_id, amount=a_hold().amount),
            **as_tenant("a"),
        )
        for _ in range(3)
    ]
    await until(lambda: len(story(world.journal, charge_id)) == 4)
    yield charge_id
    for capture in captures:
        capture.cancel()


@asynccontextmanager
async def in_review(world: World) -> AsyncIterator[str]:
    await world.trouble("execute", "wrong_amount")
    await world.trouble("look_up", "wrong_amount", times=ALWAYS)
    charge_id = (await charge(world, "a", a_hold())).charge_id
    await until(lambda: story(world.journal, charge_id)[-1] == "review_required")
    yield charge_id


@asynccontextmanager
async def at_rest_with_the_bank_away(world: World) -> AsyncIterator[str]:
    charge_id = (await charge(world, "a", a_hold())).charge_id
    await world.trouble("token", "refuse", status=401, times=ALWAYS)
    pending = [charge(world, "a", a_request(), 0.5) for _ in range(4)]
    await asyncio.gather(*pending, return_exceptions=True)
    await until(lambda: world.running.vitals().bank_breaker_open[""])
    assert (await refused(capture(world, charge_id, "a"))).reason == "BANK_UNREACHABLE"
    yield charge_id


@asynccontextmanager
async def at_rest_with_a_full_disk(world: World) -> AsyncIterator[str]:
    charge_id = (await charge(world, "a", a_hold())).charge_id
    await world.drain()
    await world.start(COMMAND_FREE_BYTES=str(1 << 50))
    assert (await refused(capture(world, charge_id, "a"))).reason == "JOURNAL_FULL"
    yield charge_id
    await world.drain()
    await world.start(COMMAND_FREE_BYTES="0")


@asynccontextmanager
async def at_rest_with_too_many_unfinished(world: World) -> AsyncIterator[str]:
    charge_id = (await charge(world, "a", a_hold())).charge_id
    await world.drain()
    await world.start(COMMAND_MAX_UNFINISHED="1")
    await world.trouble("token", **HOLD)
    await pending(world, a_request(card=HANGING))
    assert (await refused(capture(world, charge_id, "a"))).reason == "TOO_MANY_UNFINISHED"
    yield charge_id


async def capture(world: World, charge_id: str, tenant: str) -> Any:
    request = CaptureRequest(idempotency_key=new_key(), charge_id=charge_id)
    return await world.commands.Capture(request, timeout=PATIENT_SECONDS, **as_tenant(tenant))


def commands_on(world: World, charge_id: str, tenant: str) -> list[Any]:
    """One call of each command that follows."""
    names: dict[str, Any] = {"idempotency_key": "one-key", "charge_id": charge_id}
    return [
        world.commands.Capture(CaptureRequest(**names), **as_tenant(tenant)),
        world.commands.Void(VoidRequest(**names), **as_tenant(tenant)),
        world.commands.Refund(RefundRequest(**names), **as_tenant(tenant)),
    ]


@pytest.mark.parametrize(
    "state",
    [
        *(at_rest, under_way, waiting_for_its_turn, in_review),
        *(at_rest_with_the_bank_away, at_rest_with_a_full_disk, at_rest_with_too_many_unfinished),
    ],
)
async def test_a_strangers_charge_is_answered_as_one_that_does_not_exist(
    tmp_path: Path, state: Callable[[World], AbstractAsyncContextManager[str]]
) -> None:
    """To the last byte, by each command, whatever the charge is doing; and nothing comes of it."""
    async with shared(tmp_path) as world:
        async with state(world) as theirs:
            before = story(world.journal, theirs)
            answers: list[list[Told]] = [
                [await refused(call) for call in commands_on(world, charge_id, "b")]
                for charge_id in (theirs, charge_id_of("a", new_key()))
            ]
            foreign, unknown = ([each.everything for each in of_one] for of_one in answers)
            assert {(each.code, each.reason) for each in answers[0]} == {
                (grpc.StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")
            }
            assert foreign == unknown
            assert all(b"one-key" not in record.event for record in records(world.journal))
            assert story(world.journal, theirs)[: len(before)] == before
        await world.referee.no_more_trouble()


# ---------------------------------------------------------------- the time tells nothing
TRIES = 3
CALLS = 300


async def test_the_time_does_not_tell_a_strangers_charge_from_none(tmp_path: Path) -> None:
    """At rest or under way, for each command: of two such calls, either takes longer as often as the other.

    The three run side by side. A try in which the machine was busy with other things does not count, up to three.
    """
    async with shared(tmp_path) as world:
        resting = [(await charge(world, "a", a_hold())).charge_id for _ in range(CALLS // 2)]
        await world.trouble("execute", **HOLD | {"retry_after": "20"})
        moving = (await pending(world, a_hold(card=HANGING))).charge_id
        theirs = [each for charge_id in resting for each in (charge_id, moving)]
        for _ in range(TRIES):
            found = await asyncio.gather(*(chances_to_tell_apart(world, theirs, command) for command in range(3)))
            if all(abs(chance - 0.5) <= 0.15 for chances in found for chance in chances):
                break
        else:
            raise AssertionError(f"the time tells: {found}")
        await world.referee.no_more_trouble()


async def chances_to_tell_apart(world: World, theirs: Sequence[str], command: int) -> tuple[float, float]:
    """Ask about a stranger's charge and about none in turn: one after the other of `theirs`, at rest and under way in turn.

    Returns the chances that the call about a charge at rest, and about one under way, takes longer than one about none.
    """
    request_type = (CaptureRequest, VoidRequest, RefundRequest)[command]
    method: Any = (world.commands.Capture, world.commands.Void, world.commands.Refund)[command]
    seconds: dict[str, list[float]] = {"resting": [], "moving": [], "none": []}
    for number, foreign in enumerate(theirs):
        pair = [("moving" if number % 2 else "resting", foreign), ("none", charge_id_of("a", new_key()))]
        for what, charge_id in pair if number % 4 < 2 else reversed(pair):
            request = request_type(idempotency_key=new_key(), charge_id=charge_id)
            begin = time.perf_counter()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await method(request, **as_tenant("b"))
            seconds[what].append(time.perf_counter() - begin)
    return longer(seconds["resting"], seconds["none"]), longer(seconds["moving"], seconds["none"])


def longer(some: list[float], others: list[float]) -> float:
    """The chance that one of some is longer than one of the others; half if they are alike."""
    others = sorted(others)
    return sum(bisect.bisect_left(others, each) + bisect.bisect_right(others, each) for each in some) / (
        2 * len(some) * len(others)
    )
