"""Leases save calls to the bank. Safety never rests on them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest

import gateway_mock
from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeResponse
from chassis import settings
from command_service import serving
from command_service.codec import encode
from command_service.events import ChargeRequested
from command_service.journal.store import Store
from command_service.parts import Parts
from command_service.settings import Settings
from judge.checker import check
from judge.history import Observed
from rig.around import Around
from rig.fleet import migrate, read_records
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import CHARGED, a_request, apart_from_source, id_of
from tests.contract.journal_rigs import PostgresRig, stream
from tests.contract.postgres_rigs import until
from tests.core.stories import REQUEST

SERVERS = 3


class EverybodyDrives(Around[Store]):
    """A store whose server takes every unfinished stream for its own."""

    def drives(self, _charge_id: str) -> bool:
        return True


class WithoutLeases(Parts):
    """A server that ignores leases."""

    async def store(self) -> Store:
        return EverybodyDrives(await super().store()).as_one()


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Referee]:
    """A bank, and its side of the story."""
    async with (
        gateway_mock.serve("127.0.0.1:0", tmp_path / "bank.db") as address,
        Referee(f"http://{address}") as referee,
    ):
        yield referee


def settings_of(bank: Referee, journal: str) -> Settings:
    """Those of a command server on any ports, which ends soon."""
    environment = {
        "COMMAND_LISTEN": "127.0.0.1:0",
        "COMMAND_FEED_LISTEN": "127.0.0.1:0",
        "COMMAND_JOURNAL": journal,
        "COMMAND_BANK_URL": str(bank.http.base_url).rstrip("/"),
        "COMMAND_DRAIN_SECONDS": "1",
    }
    return settings.read(Settings, environment)


async def test_servers_that_ignore_leases_altogether_charge_each_key_once(bank: Referee, postgres_url: str) -> None:
    """Each key comes to all servers at once, and each server drives every charge: the bank is asked more often than it need be,
    money moves once, and all callers hear the same."""
    await migrate(postgres_url)
    async with AsyncExitStack() as stack:
        stubs = []
        for _ in range(SERVERS):
            running = await stack.enter_async_context(serving.serve(settings_of(bank, postgres_url), WithoutLeases))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(running.listen)))
            stubs.append(command_pb2_grpc.CommandServiceStub(channel))
        # A slow answer to one of the drivers lets the others overtake it.
        await bank.trouble("token", "slow_body", seconds=0.002, times=20)
        await bank.trouble("execute", "slow_body", seconds=0.002, times=20)
        requests = [a_request() for _ in range(30)]

        async def everywhere(number: int) -> list[ChargeResponse]:
            calls = (stub.Charge(requests[number], timeout=PATIENT_SECONDS) for stub in stubs)
            return list(await asyncio.gather(*calls))

        answers = await asyncio.gather(*map(everywhere, range(len(requests))))
    executed = [call for call in await bank.calls() if call["path"].endswith("/execute")]
    assert len(executed) > len(requests), "nobody has driven a charge beside another server: nothing was tried"
    for request, told in zip(requests, answers, strict=True):
        assert len({apart_from_source(answer).SerializeToString(deterministic=True) for answer in told}) == 1
        assert told[0].status == CHARGED
        assert len(await bank.movements(id_of(request))) == 1
    observed = Observed(
        await read_records(postgres_url),
        movements=await bank.movements(),
        bank_calls=await bank.bank_calls(),
        is_at_rest=True,
    )
    assert check(observed) == []


async def test_a_charge_that_cannot_be_read_keeps_no_other_one_from_being_taken_over(
    bank: Referee, postgres_url: str
) -> None:
    """As a newer server's, which ends while it drives both of them. Nobody asks for them again."""
    rig, unreadable = PostgresRig(postgres_url), stream(1)
    requested = encode(ChargeRequested(REQUEST))
    async with serving.serve(settings_of(bank, postgres_url), Parts):
        async with rig.open("newer") as journal:
            await journal.append(unreadable, 0, [b"\xff"], finished=False)
            await journal.append(REQUEST.charge_id, 0, [requested], finished=False)

        async def is_the_only_one_left() -> bool:
            return (await asyncio.to_thread(rig.moment)).unfinished == {unreadable}

        await asyncio.wait_for(until(is_the_only_one_left), PATIENT_SECONDS)
