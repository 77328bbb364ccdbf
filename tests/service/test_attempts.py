"""The attempts at a charge's step, as a real command server tells of them on its feed's port."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import grpc.aio
import pytest

from charging.v1 import journal_pb2_grpc
from charging.v1.common_pb2 import AnswerKind, Attempts, Card
from charging.v1.journal_pb2 import GetAttemptsRequest, GetAttemptsResponse
from chassis.caller import Caller
from command_service.bank import Bank
from command_service.feed import Feed, JournalService
from command_service.journal import Journal
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import restore_journal
from command_service.parts import Assembled, Parts
from command_service.settings import Settings
from contract.errors import command_refusal as refusal
from rig.alone import start_alone
from rig.errors import refused
from rig.world import CHARGED, REQUIRES_ACTION, World, a_hold, a_request, a_world, id_of, records, until

ALWAYS = 1_000_000
NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def asked(world: World, charge_id: str) -> GetAttemptsResponse:
    return await world.journals.GetAttempts(GetAttemptsRequest(charge_id=charge_id), timeout=30)


async def in_vain(world: World, charge_id: str, times: int) -> Attempts:
    """Wait until a step has been tried in vain so often, and a pause has begun."""
    found = Attempts()

    async def is_seen() -> bool:
        found.CopyFrom((await asked(world, charge_id)).attempts)
        return found.in_vain >= times and found.HasField("next_at")

    await until(is_seen)
    return found


async def test_attempts_in_vain_are_counted_timed_and_told_with_the_kind_of_the_last_answer(world: World) -> None:
    """And when the next one is due. They end with the charge."""
    request = a_request()
    await world.trouble("execute", "error_before", times=ALWAYS)
    waiting = asyncio.create_task(world.charge(request))
    told = await in_vain(world, id_of(request), 2)
    assert told.last_answer == AnswerKind.ANSWER_KIND_NO_ANSWER
    assert told.bank_calls >= told.in_vain + 1  # and the token step
    requested_at = records(world.journal)[0].recorded_at
    assert told.since.ToMicroseconds() == requested_at
    assert requested_at < told.last_at.ToMicroseconds() < told.next_at.ToMicroseconds()
    assert (told.is_driven_here, told.bank_is_configured, told.bank_is_spared) == (True, True, False)
    await world.referee.no_more_trouble()
    assert (await waiting).status == CHARGED
    assert await asked(world, id_of(request)) == GetAttemptsResponse(version=3)


async def test_an_answer_that_moves_a_charge_on_begins_a_new_count(world: World) -> None:
    """What was in vain at the token step says nothing of the execute step. The calls of the operation are summed up."""
    request = a_request()
    await world.trouble("token", "error_before", times=2)
    await world.trouble("execute", "in_progress", retry_after="1", times=ALWAYS)
    waiting = asyncio.create_task(world.charge(request))
    await in_vain(world, id_of(request), 1)
    found = Attempts()

    async def is_at_the_second_step() -> bool:
        found.CopyFrom((await asked(world, id_of(request))).attempts)
        return found.last_answer == AnswerKind.ANSWER_KIND_IN_PROGRESS

    await until(is_at_the_second_step)
    assert found.bank_calls >= found.in_vain + 3
    await world.referee.no_more_trouble()
    assert (await waiting).status == CHARGED


async def test_each_operation_of_a_charge_has_attempts_of_its_own(world: World) -> None:
    """A capture's begin with its request, and are those of the capture only."""
    request = a_hold()
    await world.charge(request)
    assert await asked(world, id_of(request)) == GetAttemptsResponse(version=3)
    await world.trouble("execute", "error_before", times=ALWAYS)
    waiting = asyncio.create_task(world.capture(id_of(request)))
    told = await in_vain(world, id_of(request), 1)
    (asked_at,) = [
        record.recorded_at
        for record, event in zip(records(world.journal), world.events(request), strict=True)
        if event.WhichOneof("kind") == "capture_requested"
    ]
    assert told.since.ToMicroseconds() == asked_at
    await world.referee.no_more_trouble()
    await waiting


async def test_a_void_that_goes_on_has_attempts_of_its_own(world: World) -> None:
    """In the same run: those at the hold that it was to call off are not counted with its own."""
    request = a_hold()
    await world.trouble("execute", "error_after", times=ALWAYS)
    await world.pending(request)
    await in_vain(world, id_of(request), 2)
    await world.trouble("token", "error_before", times=ALWAYS)
    waiting = asyncio.create_task(world.void(id_of(request)))
    await until(lambda: "authorized" in world.story(request))
    told = await in_vain(world, id_of(request), 1)
    assert told.bank_calls == told.in_vain
    await world.referee.no_more_trouble()
    await waiting


async def test_a_restart_forgets_the_attempts_and_says_since_when_it_remembers(world: World) -> None:
    """So nobody takes a count from the restart for the whole one."""
    request = a_request()
    await world.trouble("execute", "error_before", times=ALWAYS)
    await world.pending(request)
    before = await in_vain(world, id_of(request), 3)
    await world.stop()
    await world.start()
    after = await in_vain(world, id_of(request), 1)
    requested_at = records(world.journal)[0].recorded_at
    assert before.since.ToMicroseconds() == requested_at
    assert after.since.ToMicroseconds() > before.last_at.ToMicroseconds() > requested_at
    await world.referee.no_more_trouble()
    assert (await world.charge(request)).status == CHARGED


async def test_a_restored_journal_is_told(world: World) -> None:
    """The bank may have done what it has forgotten, and nothing is given up."""
    request = a_request()
    await world.trouble("token", "error_before", times=ALWAYS)
    await world.pending(request)
    assert not (await in_vain(world, id_of(request), 1)).journal_is_restored
    await world.stop()
    restore_journal(SqliteFile(world.journal), None)
    await world.start()
    assert (await in_vain(world, id_of(request), 1)).journal_is_restored
    await world.referee.no_more_trouble()
    assert (await world.charge(request)).status == CHARGED


async def test_a_charge_that_a_server_is_about_to_take_over_has_not_stopped(tmp_path: Path) -> None:
    """As after the death of the server that drove it. Then it is unfinished, and nobody knows of attempts yet."""
    async with a_world(tmp_path, Shared) as world:
        request = a_request()
        await world.trouble("execute", "error_before", times=ALWAYS)
        await world.pending(request)
        heir = Parts(Shared.chosen).assemble(world.running.journal, {})
        heir.memory.is_complete.set()
        told = await heir.memory.of(id_of(request), "")
        assert (told.is_unfinished, told.HasField("attempts"), told.attempts.is_driven_here) == (True, True, False)
        await world.referee.no_more_trouble()
        assert (await world.charge(request)).status == CHARGED


async def test_a_customer_who_is_awaited_is_the_banks_last_answer(world: World) -> None:
    request = a_request(card=Card(token="tok_3ds"))
    assert (await world.charge(request)).status == REQUIRES_ACTION
    told = await in_vain(world, id_of(request), 1)
    assert told.last_answer == AnswerKind.ANSWER_KIND_NEEDS_ACTION


async def test_a_charge_that_is_unknown_or_at_rest_has_no_attempts_and_is_not_unfinished(world: World) -> None:
    request = a_request()
    await world.charge(request)
    assert await asked(world, id_of(request)) == GetAttemptsResponse(version=3)
    assert await asked(world, NOBODYS) == GetAttemptsResponse()


@pytest.mark.parametrize("charge_id", ["", "order-1", "x" * 36])
async def test_what_is_no_charges_id_is_refused(world: World, charge_id: str) -> None:
    error = await refused(asked(world, charge_id))
    assert (error.reason, error.fields) == ("INVALID_REQUEST", frozenset({"charge_id"}))


class Shared(Parts):
    """The product's own parts, and a second port of the feed, whose readers are of a tenant."""

    assembled: Assembled
    chosen: Settings

    def assemble(self, journal: Journal, banks: Mapping[str, Bank]) -> Assembled:
        Shared.chosen = self.settings
        Shared.assembled = super().assemble(journal, banks)
        return Shared.assembled


async def test_a_tenants_reader_is_told_of_its_own_charges_only(tmp_path: Path) -> None:
    """To it another's charge is one that does not exist, under way or at rest. A reader of no tenant is told of all."""
    async with a_world(tmp_path, Shared) as world:
        request, over = a_request(), a_request()
        await world.charge(over)
        await world.trouble("execute", "in_progress", retry_after="1", times=ALWAYS)
        await world.pending(request)
        told = {}
        for tenant in ("default", "another", ""):
            service = JournalService(Feed(world.running.journal, no_owners), attempts=Shared.assembled.memory.of)
            reader = Caller(tenant, "a reader")
            server = await start_alone(service.register, "charging.v1.JournalService", refusal, anybody=reader)
            async with grpc.aio.insecure_channel(str(server.address)) as channel:
                ask = journal_pb2_grpc.JournalServiceStub(channel).GetAttempts
                told[tenant] = [
                    await ask(GetAttemptsRequest(charge_id=charge_id), timeout=30)
                    for charge_id in (id_of(request), id_of(over), NOBODYS)
                ]
            await server.drain(1.0)
        await world.referee.no_more_trouble()
        await world.charge(request)
    assert [(one.is_unfinished, one.attempts.is_driven_here, one.version) for one in told["default"]] == [
        (True, True, 2),
        (False, False, 3),
        (False, False, 0),
    ]
    assert told["another"] == [GetAttemptsResponse()] * 3
    assert [one.version for one in told[""]] == [2, 3, 0]


async def no_owners(_records: object) -> list[str]:
    raise AssertionError("nobody follows the feed")
