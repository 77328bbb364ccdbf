"""Several command servers on one journal in PostgreSQL: one charge a key, whoever dies or stands still."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from charging.v1 import query_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, VoidRequest
from charging.v1.query_pb2 import GetChargeRequest
from rig.fleet import Fleet, read_records
from rig.referee import PATIENT_SECONDS
from rig.world import (
    CHARGED,
    FRESH,
    JOINED,
    OPERATION_EXECUTED,
    REPLAYED,
    VOIDED,
    a_request,
    apart_from_source,
    id_of,
    new_key,
    until,
)

AWAY = "this server was away for longer than its leases last"
# For each byte of the bank's answer, which has some 300 and is waited for ten seconds: more where the machine was too slow
# to do something before its end.
SLOW_BODIES_SECONDS = (0.01, 0.02, 0.02)


@pytest.fixture
async def fleet(tmp_path: Path, postgres_url: str) -> AsyncIterator[Fleet]:
    """Two command servers. When a test is through, journal and bank must agree."""
    async with Fleet(tmp_path, postgres_url) as fleet:
        yield fleet
        await fleet.assert_books_agree()


async def charge(fleet: Fleet, at: int, request: ChargeRequest) -> ChargeResponse:
    """Charge at a server, and again with the same key for as long as it is away."""
    async with asyncio.timeout(PATIENT_SECONDS * 2):
        while True:
            try:
                answer = await fleet.stubs[at].Charge(request, timeout=PATIENT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                await asyncio.sleep(0.1)
            else:
                return answer


async def steps_asked(fleet: Fleet, request: ChargeRequest) -> Counter[str]:
    return Counter(await fleet.referee.asked(id_of(request)))


async def assert_asked_once(fleet: Fleet, request: ChargeRequest) -> None:
    """The bank was asked for each step once, but where a server lost its leases: then another one rightly asks again."""
    if await steps_asked(fleet, request) != {"token": 1, "execute": 1}:
        await until(lambda: any(AWAY in command.text() for command in fleet.commands))


async def is_at_bank(fleet: Fleet, request: ChargeRequest, times: int = 1) -> None:
    """Wait until the bank has been asked to execute a charge."""

    async def seen() -> bool:
        return (await steps_asked(fleet, request))["execute"] >= times

    await until(seen)


# ---------------------------------------------------------------- the same key
async def test_a_key_that_comes_to_two_servers_at_once_is_one_charge_at_the_bank(fleet: Fleet) -> None:
    """The second server waits for the first one's progress through the journal: the bank is asked once for each step, however
    long it takes, and both callers hear the same."""
    for seconds in SLOW_BODIES_SECONDS:
        await fleet.referee.trouble("execute", "slow_body", seconds=seconds)
        request = a_request()
        first = asyncio.ensure_future(charge(fleet, 0, request))
        await is_at_bank(fleet, request)
        second = asyncio.ensure_future(charge(fleet, 1, request))
        answers = [await first, await second]
        if answers[1].outcome_source != REPLAYED:
            break
    assert [answer.outcome_source for answer in answers] == [FRESH, JOINED]
    assert apart_from_source(answers[0]) == apart_from_source(answers[1])
    assert answers[0].status == CHARGED
    await assert_asked_once(fleet, request)
    assert (await charge(fleet, 1, request)).outcome_source == REPLAYED


async def test_of_many_keys_that_come_everywhere_at_once_each_is_one_charge(fleet: Fleet) -> None:
    """Each is begun by one server, and all callers hear the same. No step is asked for twice."""
    requests = [a_request() for _ in range(40)]
    calls = [asyncio.gather(*(charge(fleet, at, request) for at in (0, 1, 0, 1))) for request in requests]
    for request, call in zip(requests, calls, strict=True):
        answers = await call
        assert Counter(answer.outcome_source for answer in answers)[FRESH] == 1
        assert len({apart_from_source(answer).SerializeToString(deterministic=True) for answer in answers}) == 1
        await assert_asked_once(fleet, request)


async def test_a_charge_is_called_off_at_another_server_than_the_one_that_drives_it(fleet: Fleet) -> None:
    """The driving server, which waits for a bank that does not answer, hears of it through the journal."""
    await fleet.referee.trouble("token", "error_before", times=1_000_000)
    request = a_request()
    first = asyncio.ensure_future(charge(fleet, 0, request))
    await until(lambda: _is_in_journal(fleet, request))
    voiding = fleet.stubs[1].Void(
        VoidRequest(idempotency_key=new_key(), charge_id=id_of(request)), timeout=PATIENT_SECONDS
    )
    assert (await voiding).outcome.status == OPERATION_EXECUTED
    assert (await first).status == VOIDED


async def _is_in_journal(fleet: Fleet, request: ChargeRequest) -> bool:
    return any(record.charge_id == id_of(request) for record in await read_records(fleet.url))


# ---------------------------------------------------------------- servers that die, stand still or stop
async def test_a_server_that_dies_is_relieved_by_another(fleet: Fleet) -> None:
    """Its charge, whose call to the bank is never answered, is brought to rest by the other server without any client's call,
    with the token that the journal holds, and the customer is charged once."""
    await fleet.referee.trouble("execute", "hang_after", seconds=600)
    request = a_request()
    lost = asyncio.ensure_future(fleet.stubs[0].Charge(request, timeout=PATIENT_SECONDS))
    await is_at_bank(fleet, request)
    await fleet.commands[0].kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await lost
    await until(lambda: _is_at_rest(fleet, request))
    assert (await charge(fleet, 1, request)).outcome_source == REPLAYED
    assert (await steps_asked(fleet, request))["token"] == 1
    assert len(await fleet.referee.movements(id_of(request))) == 1


async def _is_at_rest(fleet: Fleet, request: ChargeRequest) -> bool:
    return any(
        b"txn_" in record.event for record in await read_records(fleet.url) if record.charge_id == id_of(request)
    )


async def test_a_server_that_stood_still_finds_that_it_was_relieved(fleet: Fleet) -> None:
    """Its charge went on elsewhere. When it wakes up, with the bank's answer in its hands, its append is refused, and its
    caller is told the one outcome."""
    for seconds in SLOW_BODIES_SECONDS:
        await fleet.referee.trouble("execute", "slow_body", seconds=seconds)
        request = a_request()
        first = asyncio.ensure_future(charge(fleet, 0, request))
        await is_at_bank(fleet, request)
        fleet.commands[0].send(signal.SIGSTOP)
        other = await charge(fleet, 1, request)
        fleet.commands[0].send(signal.SIGCONT)
        if other.outcome_source != REPLAYED:
            break
    assert other.outcome_source == JOINED
    assert apart_from_source(await first) == apart_from_source(other)
    kinds = [record for record in await read_records(fleet.url) if record.charge_id == id_of(request)]
    assert len(kinds) == 3
    log = fleet.commands[0]
    await until(lambda: AWAY in log.text())
    again = a_request()  # and it takes part as before
    assert (await charge(fleet, 0, again)).outcome_source == FRESH


async def test_a_server_that_stops_lets_another_go_on_at_once(fleet: Fleet) -> None:
    """It does not keep its charges until its time has passed: the other one has them before a lease could have ended."""
    await fleet.referee.trouble("execute", "hang_after", seconds=600, times=2)
    request, dying = a_request(), a_request()
    await fleet.commands[0].stop()
    await fleet.commands[0].start(COMMAND_DRAIN_SECONDS="0")
    for it, at in ((request, 0), (dying, 1)):
        call = asyncio.ensure_future(fleet.stubs[at].Charge(it, timeout=PATIENT_SECONDS))
        call.add_done_callback(lambda done: done.cancelled() or done.exception())
        await is_at_bank(fleet, it)
    # Of two servers that go at the same time one stops in order: its charge is at rest before the other one's.
    third = fleet.another()
    await third.start()
    try:
        await asyncio.gather(fleet.commands[0].stop(), fleet.commands[1].kill())
        await until(lambda: _is_at_rest(fleet, dying))
        records = await read_records(fleet.url)
        order = [record.charge_id for record in records if b"txn_" in record.event]
        assert order == [id_of(request), id_of(dying)]
    finally:
        await third.kill()


# ---------------------------------------------------------------- the feed
async def test_a_view_goes_on_with_another_server_when_the_one_it_follows_dies(fleet: Fleet) -> None:
    """Without a hole, and without a human: it shows every charge, and equals the fold of the journal."""
    await fleet.query.start()
    async with grpc.aio.insecure_channel(fleet.query.listen) as channel:
        queries = query_pb2_grpc.QueryServiceStub(channel)

        async def shown(answer: ChargeResponse) -> None:
            async def is_shown() -> bool:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    by = GetChargeRequest(charge_id=answer.charge_id, min_position=answer.position)
                    return (await queries.GetCharge(by, timeout=5)).charge.status == CHARGED
                return False

            await until(is_shown)

        for dead, alive in ((0, 1), (1, 0)):
            await shown(await charge(fleet, dead, a_request()))
            await fleet.commands[dead].kill()
            for _ in range(3):
                await shown(await charge(fleet, alive, a_request()))
            await fleet.commands[dead].start()
        assert "the journal has diverged" not in fleet.query.text()
    await fleet.query.stop()
    await fleet.assert_books_agree(with_view=True)
