"""The desk over kills: what operators did is in the journal, so that a death between two of their steps loses nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from charging.v1 import command_pb2_grpc, journal_pb2_grpc, operator_pb2_grpc, query_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Resolution
from charging.v1.journal_pb2 import GetAttemptsRequest
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    AskBankRequest,
    HoldBackRequest,
    LetGoRequest,
    ProposeResolutionRequest,
    TryNowRequest,
)
from charging.v1.query_pb2 import GetChargeRequest
from judge.checker import check
from judge.files import read_journal, read_view
from judge.history import Observed
from rig.certs import write_secret
from rig.errors import refused
from rig.fleet import Fleet, read_records
from rig.processes import Server, Town
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import (
    BRIEF_SECONDS,
    CHARGED,
    IN_REVIEW,
    PENDING,
    a_request,
    assert_books_agree,
    heard,
    is_behind,
    story,
    until,
)
from tests.security.guarded import an_identity, token_of

ALWAYS = 1_000_000
HOLD: dict[str, Any] = {"fault": "in_progress", "retry_after": "0", "times": ALWAYS}
POLICY = "\n".join(
    [
        an_identity("shop", "charge", "refund", "read", tenant="default"),
        an_identity("ann", "operate", tenant="default"),
        an_identity("ben", "operate", tenant="default"),
        an_identity("query-server", "feed", tenant=""),
    ]
)


class Desk:
    """A town with a policy, its people, and its bank."""

    def __init__(self, town: Town, policy: Path, referee: Referee) -> None:
        self.town = town
        self.referee = referee
        self._policy = policy

    async def start(self) -> None:
        """Start the command server, again after its death."""
        await self.town.start_command(COMMAND_POLICY=str(self._policy))

    async def kill_and_start(self) -> None:
        await self.town.command.kill()
        await self.start()

    async def call(self, stub: Any, method: str, request: Any, by: str, seconds: float = PATIENT_SECONDS) -> Any:
        """Call a method of a service, as an identity."""
        metadata = (("authorization", f"Bearer {token_of(by)}"),)
        async with grpc.aio.insecure_channel(self.town.command.listen) as channel:
            return await getattr(stub(channel), method)(
                request, timeout=seconds, metadata=metadata, wait_for_ready=True
            )

    async def operate(self, method: str, request: Any, by: str) -> Any:
        return await self.call(operator_pb2_grpc.OperatorServiceStub, method, request, by)

    async def charge(self, request: ChargeRequest, seconds: float = PATIENT_SECONDS) -> ChargeResponse:
        stub = command_pb2_grpc.CommandServiceStub
        answer: ChargeResponse = await heard(lambda: self.call(stub, "Charge", request, "shop", seconds))
        return answer

    def story(self, charge_id: str) -> list[str]:
        return story(self.town.journal, charge_id)

    async def executes(self) -> int:
        """How often the bank was told to execute."""
        return sum(call["path"].endswith("/execute") for call in await self.referee.calls())


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """At the end of each test journal and bank must agree."""
    policy, town = tmp_path / "policy.toml", Town(tmp_path)
    policy.write_text(POLICY)
    try:
        await town.start_bank()
        async with Referee(town.bank_url) as referee:
            desk = Desk(town, policy, referee)
            await desk.start()
            yield desk
            await town.command.stop()
            await assert_books_agree(town.journal, referee)
    finally:
        await town.__aexit__()


async def test_a_kill_between_the_steps_of_two_people_loses_none(desk: Desk) -> None:
    """After the proposal, while the bank is asked before the approval, and after it: it is stored as a whole or not at all."""
    await desk.referee.trouble("execute", "wrong_amount")
    await desk.referee.trouble("look_up", "wrong_amount", times=2)
    request = a_request()
    answer = await desk.charge(request)
    assert answer.status == IN_REVIEW
    charge_id = answer.charge_id
    await desk.kill_and_start()
    asked = await desk.operate("AskBank", AskBankRequest(charge_id=charge_id), "ann")
    propose = ProposeResolutionRequest(
        charge_id=charge_id,
        reason="ticket 77",
        resolution=Resolution.RESOLUTION_EXECUTED,
        transaction_id=asked.transaction_id,
        evidence="the bank's statement",
    )
    proposal = (await desk.operate("ProposeResolution", propose, "ann")).proposal
    await desk.kill_and_start()
    assert (await desk.operate("ProposeResolution", propose, "ann")).proposal == proposal
    approve = ApproveResolutionRequest(charge_id=charge_id, reason="ticket 77", proposal=proposal)
    assert (await refused(desk.operate("ApproveResolution", approve, "ann"))).reason == "SECOND_PERSON_NEEDED"

    calls = len(await desk.referee.calls())
    await desk.referee.trouble("look_up", "hang_before", seconds=PATIENT_SECONDS)
    approving = asyncio.ensure_future(desk.operate("ApproveResolution", approve, "ben"))
    await until(lambda: _has_called(desk, calls))
    await desk.town.command.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await approving
    assert desk.story(charge_id)[-1] == "resolution_proposed"
    await desk.start()
    assert (await desk.charge(request)).status == IN_REVIEW
    await desk.referee.no_more_trouble()
    approved = await desk.operate("ApproveResolution", approve, "ben")
    assert approved.outcome.status == CHARGED
    await desk.kill_and_start()
    assert await desk.operate("ApproveResolution", approve, "ben") == approved
    answer = await desk.charge(request)
    assert (answer.status, answer.position) == (CHARGED, approved.outcome.position)
    assert desk.story(charge_id)[-3:] == ["resolution_proposed", "resolution_approved", "charged"]


async def test_a_charge_that_is_held_back_stays_so_over_kills(desk: Desk) -> None:
    """The bank is asked nothing, until another operator lets it go."""
    await desk.referee.trouble("execute", **HOLD)
    request = a_request()
    pending = await desk.charge(request, BRIEF_SECONDS)
    assert pending.status == PENDING
    hold = HoldBackRequest(charge_id=pending.charge_id, reason="the shop asked for it")
    assert (await desk.operate("HoldBack", hold, "ann")).outcome.held_back
    await desk.town.command.kill()
    await desk.referee.no_more_trouble()
    executes = await desk.executes()
    for _ in range(2):
        await desk.start()
        assert (await desk.charge(request, BRIEF_SECONDS)).status == PENDING
        assert (await desk.operate("HoldBack", hold, "ben")).outcome.held_back
        await desk.town.command.kill()
    assert await desk.executes() == executes
    await desk.start()
    await desk.operate("LetGo", LetGoRequest(charge_id=pending.charge_id, reason="it has looked"), "ben")
    assert (await desk.charge(request)).status == CHARGED
    assert desk.story(pending.charge_id)[-3:] == ["held_back", "let_go", "charged"]


async def test_the_view_shows_what_operators_did(desk: Desk) -> None:
    """And is what the journal says, to the judge as well."""
    token = desk.town.folder / "feed.token"
    write_secret(token, token_of("query-server").encode())
    await desk.town.start_query(QUERY_FEED_TOKEN_FILE=str(token))
    await desk.referee.trouble("execute", **HOLD)
    request = a_request()
    pending = await desk.charge(request, BRIEF_SECONDS)
    hold = HoldBackRequest(charge_id=pending.charge_id, reason="the shop asked for it")
    outcome = (await desk.operate("HoldBack", hold, "ann")).outcome
    async with grpc.aio.insecure_channel(desk.town.query.listen) as channel:
        queries = query_pb2_grpc.QueryServiceStub(channel)
        name = GetChargeRequest(charge_id=pending.charge_id, min_position=outcome.position)
        shown = await heard(lambda: queries.GetCharge(name, timeout=PATIENT_SECONDS), is_behind)
    assert shown.charge.held_back
    await desk.referee.no_more_trouble()
    await desk.operate("LetGo", LetGoRequest(charge_id=pending.charge_id, reason="it has looked"), "ben")
    answer = await desk.charge(request)
    assert answer.status == CHARGED
    view = desk.town.folder / "view.db"
    await until(lambda: read_view(view).checkpoint["position"] >= answer.position)
    assert check(Observed(read_journal(desk.town.journal), view=read_view(view))) == []


# ---------------------------------------------------------------- several servers on one journal
@pytest.fixture
async def fleet(tmp_path: Path, postgres_url: str) -> AsyncIterator[Fleet]:
    """Two command servers. When a test is through, journal and bank must agree."""
    async with Fleet(tmp_path, postgres_url) as fleet:
        yield fleet
        await fleet.assert_books_agree()


async def test_any_server_holds_a_charge_back_tries_it_and_lets_it_go(fleet: Fleet) -> None:
    """The one that drives it hears of that through the journal; if that one dies, so does the one that goes on with it."""
    await fleet.referee.trouble("execute", **HOLD)
    request = a_request()
    pending = await heard(lambda: fleet.stubs[0].Charge(request, timeout=BRIEF_SECONDS))
    assert pending.status == PENDING
    name = {"charge_id": pending.charge_id, "reason": "ticket 77"}
    async with grpc.aio.insecure_channel(fleet.commands[1].listen) as channel:
        other = operator_pb2_grpc.OperatorServiceStub(channel)
        await other.TryNow(TryNowRequest(**name), timeout=PATIENT_SECONDS)
        held = await other.HoldBack(HoldBackRequest(**name), timeout=PATIENT_SECONDS)
        assert held.outcome.held_back
        events = sum(record.charge_id == pending.charge_id for record in await read_records(fleet.url))
        for command in fleet.commands:
            await until(lambda command=command: _has_paused(command, pending.charge_id, events))  # type: ignore[misc]
        await fleet.referee.no_more_trouble()
        calls = len(await fleet.referee.calls())
        await fleet.commands[0].kill()
        told = await refused(other.TryNow(TryNowRequest(**name), timeout=PATIENT_SECONDS))
        assert (told.reason, told.metadata["held_back"]) == ("NOT_AT_THE_DESK", "true")
        await fleet.commands[0].start()
        assert len(await fleet.referee.calls()) == calls
        async with grpc.aio.insecure_channel(fleet.commands[0].listen) as first:
            desk = operator_pb2_grpc.OperatorServiceStub(first)
            await desk.LetGo(LetGoRequest(**name), timeout=PATIENT_SECONDS, wait_for_ready=True)
    for stub in fleet.stubs:
        answer = await heard(lambda stub=stub: stub.Charge(request, timeout=PATIENT_SECONDS, wait_for_ready=True))  # type: ignore[misc]
        assert answer.status == CHARGED


async def _has_called(desk: Desk, calls: int) -> bool:
    return len(await desk.referee.calls()) > calls


async def _has_paused(command: Server, charge_id: str, events: int) -> bool:
    """Whether a server knows so many events of a charge, the last of which holds it back, and no step of it is on its way."""
    async with grpc.aio.insecure_channel(command.environment["COMMAND_FEED_LISTEN"]) as channel:
        asked = GetAttemptsRequest(charge_id=charge_id)
        told = await journal_pb2_grpc.JournalServiceStub(channel).GetAttempts(asked, timeout=PATIENT_SECONDS)
    return told.version >= events and not told.attempts.is_under_way
