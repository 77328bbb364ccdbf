"""The desk at a real server and a real bank: try now, hold back and let go, and a review that two people resolve.

At the end of each test bank and journal must agree (`a_world`): the history checker knows the desk.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import AnswerKind, Card, DeclineReason, OperationKind
from charging.v1.journal_pb2 import GetAttemptsRequest
from charging.v1.operator_pb2 import GetServerStatusRequest, ListReconciliationsRequest
from charging.v1.operator_pb2_grpc import OperatorServiceStub
from command_service.bank import Bank
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import restore_journal
from command_service.values import Answer, Effect, Execute
from contract.situations import ID_NOT_KEPT, differs_in, said_besides
from rig.around import Around
from rig.errors import refused
from rig.referee import PATIENT_SECONDS
from rig.world import (
    AUTHORIZED,
    BRIEF_SECONDS,
    CHARGED,
    DECLINED,
    IN_REVIEW,
    OPERATION_DECLINED,
    OPERATION_EXECUTED,
    OPERATION_IN_REVIEW,
    OPERATION_PENDING,
    REPLAYED,
    World,
    a_hold,
    a_request,
    apart_from_source,
    heard,
    id_of,
    new_key,
    until,
)
from tests.service.clock_rig import MOMENT, Clock, Clocked
from tests.service.desk_rig import EXECUTED, NOT_EXECUTED, REFUNDED, DeskParts, DeskWorld, Operator, a_desk

ALWAYS = 1_000_000
HOLD: dict[str, Any] = {"fault": "in_progress", "retry_after": "0", "times": ALWAYS}  # until `no_more_trouble`
LATER: dict[str, Any] = {
    "fault": "in_progress",
    "retry_after": "3600",
    "times": 1,
}  # the next attempt is far away: as far as a pause goes
NO_CHARGE = "0d7c5f3a-4d3c-8a54-9d1e-2f6b8c0a1e3d"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[DeskWorld]:
    async with a_desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def world(desk: DeskWorld) -> World:
    return desk.world


# ---------------------------------------------------------------- try now
async def test_a_charge_that_waits_is_tried_at_once(desk: DeskWorld, world: World) -> None:
    """The step is in its history, with the operator and the reason. One that waited before it goes on waiting."""
    waiting, request = a_request(), a_request()
    for each in (waiting, request):
        await world.trouble("execute", reference=id_of(each), **LATER)
        await world.pending(each)
        await until(lambda each=each: _has_executed(world, each))  # type: ignore[misc]
    calls = len(await world.asked(request))
    outcome = await desk.ann.try_now(id_of(request))
    assert (outcome.charge_id, outcome.held_back) == (id_of(request), False)
    assert (await world.charge(request)).status == CHARGED
    assert world.story(waiting) == ["charge_requested", "token_issued"]
    assert len(await world.asked(request)) == calls + 1
    assert world.story(request) == ["charge_requested", "token_issued", "try_requested", "charged"]
    tried = world.events(request)[2].try_requested
    assert (tried.actor, tried.reason) == ("ann", "ann saw ticket 77")


async def test_a_try_that_is_repeated_stores_nothing_and_is_done_all_the_same(desk: DeskWorld, world: World) -> None:
    """Of one operator, while nothing else has happened. Another's is another step."""
    await world.trouble("execute", **HOLD)
    request = a_request()
    await world.pending(request)
    await until(lambda: "token_issued" in world.story(request))  # a slow machine may take longer than the call
    first, again = [await desk.ann.try_now(id_of(request)) for _ in range(2)]
    assert first == again
    calls = len(await world.asked(request))
    await desk.ann.try_now(id_of(request))
    await until(lambda: _more(world.asked(request), calls))
    assert (await desk.ben.try_now(id_of(request))).position > first.position
    await world.referee.no_more_trouble()
    assert (await world.charge(request)).status == CHARGED
    assert world.story(request).count("try_requested") == 2


# ---------------------------------------------------------------- hold back, let go
async def test_no_step_of_a_charge_is_taken_while_it_is_held_back(desk: DeskWorld, world: World) -> None:
    """Its callers wait as ever, and join it. Then it goes on by itself."""
    await world.trouble("token", **HOLD)
    request = a_request()
    await world.pending(request)
    assert (await desk.ann.hold_back(id_of(request))).held_back
    await world.referee.no_more_trouble()
    told = await refused(desk.ann.try_now(id_of(request)))
    assert (told.reason, told.metadata["status"], told.metadata["held_back"]) == ("NOT_AT_THE_DESK", "PENDING", "true")
    await until(lambda: _no_step_is_on_its_way(world, request))
    calls = len(await world.referee.calls())
    await world.pending(request)
    assert (await desk.ben.hold_back(id_of(request))).position == (await desk.ann.hold_back(id_of(request))).position
    charging = asyncio.ensure_future(world.charge(request))
    await until(lambda: world.running.vitals().limit_used["calls"] > 0)
    assert len(await world.referee.calls()) == calls
    assert not (await desk.ben.let_go(id_of(request))).held_back
    assert (await charging).status == CHARGED
    assert world.story(request) == ["charge_requested", "held_back", "let_go", "token_issued", "charged"]
    outcome = await desk.ben.let_go(id_of(request))  # it changes nothing any more
    assert (outcome.status, outcome.held_back) == (CHARGED, False)


async def test_a_customer_moves_the_money_at_the_bank_although_the_charge_is_held_back(
    desk: DeskWorld, world: World
) -> None:
    """To hold it back stops the service only: the end is told once it is let go. What stops the customer is a void."""
    request = a_request(card=Card(token="tok_3ds"))
    url = (await world.charge(request)).action.url
    assert (await desk.ann.hold_back(id_of(request))).held_back
    await world.referee.press(url, "Confirm")
    assert await world.moved() == [("charge", 1250)]
    assert world.story(request)[-1] == "held_back"
    await desk.ann.let_go(id_of(request))
    assert (await world.charge(request)).status == CHARGED
    voided = a_request(card=Card(token="tok_3ds"))
    url = (await world.charge(voided)).action.url
    await world.void(id_of(voided))
    assert "<button>" not in (await world.referee.http.get(url)).text


class _Slow(Around[Bank]):
    """A bank whose answers to the execute step come once the test wants them."""

    def __init__(self, inner: Bank) -> None:
        super().__init__(inner)
        self.answers = asyncio.Event()

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await self.inner.perform(effect, look_up_first=look_up_first)
        if isinstance(effect, Execute):
            await self.answers.wait()
        return answer


async def test_the_answer_to_a_step_on_its_way_counts_and_rest_ends_the_holding_back(tmp_path: Path) -> None:
    banks: list[_Slow] = []

    class SlowDesk(DeskParts):
        """Parts with that bank."""

        def bank(self) -> Bank:
            banks.append(_Slow(super().bank()))
            return banks[0].as_one()

    async with a_desk(tmp_path, SlowDesk) as desk:
        world, request = desk.world, a_request()
        charging = asyncio.ensure_future(world.charge(request))
        await until(lambda: _more(_executes(world), 0))
        assert (await desk.ann.hold_back(id_of(request))).held_back
        banks[0].answers.set()
        assert (await charging).status == CHARGED
        assert world.story(request)[-2:] == ["held_back", "charged"]
        assert (await world.refund(id_of(request))).status == OPERATION_EXECUTED


async def test_a_charge_stays_held_back_over_a_restart(desk: DeskWorld, world: World) -> None:
    """Nothing is asked of the bank; calls join it; and any operator lets it go."""
    await world.trouble("execute", **HOLD)
    request = a_request()
    await world.pending(request)
    await desk.ann.hold_back(id_of(request))
    await world.stop()
    await world.referee.no_more_trouble()
    calls = len(await world.referee.calls())
    await world.start()
    await world.pending(request)
    assert (await desk.ann.hold_back(id_of(request))).held_back
    assert len(await world.referee.calls()) == calls
    await desk.ben.let_go(id_of(request))
    assert (await world.charge(request)).status == CHARGED


async def test_a_void_of_a_charge_that_is_held_back_is_stored_and_done_once_it_is_let_go(
    desk: DeskWorld, world: World
) -> None:
    await world.trouble("execute", **HOLD)
    request, key = a_request(), new_key()
    await world.pending(request)
    await desk.ann.hold_back(id_of(request))
    voided = await heard(lambda: world.void(id_of(request), key=key, seconds=BRIEF_SECONDS))
    assert voided.status == OPERATION_PENDING
    await desk.ann.let_go(id_of(request))
    assert (await world.void(id_of(request), key=key)).status == OPERATION_EXECUTED
    assert await world.moved() == []


async def test_a_time_that_passes_while_a_charge_is_held_back_ends_it_once_it_is_let_go(tmp_path: Path) -> None:
    clock = Clock()

    class ClockedDesk(DeskParts, Clocked):
        """A desk that believes, by the test's clock."""

    async with a_desk(tmp_path, lambda chosen: ClockedDesk(clock, chosen)) as desk:
        world = desk.world
        await world.trouble("execute", **HOLD)
        request = a_request(not_after=clock.in_a_moment())
        await world.pending(request)
        await desk.ann.hold_back(id_of(request))
        clock.moment += 2 * MOMENT
        await world.pending(request)
        assert world.story(request)[-1] == "held_back"
        await desk.ann.let_go(id_of(request))
        await until(lambda: world.story(request)[-1] == "charge_called_off")
        assert world.story(request)[-3:] == ["let_go", "not_after_passed", "charge_called_off"]


@pytest.mark.parametrize("step", ["try_now", "hold_back"])
async def test_a_charge_at_rest_is_neither_tried_nor_held_back(desk: DeskWorld, world: World, step: str) -> None:
    request = a_request()
    await world.charge(request)
    told = await refused(getattr(desk.ann, step)(id_of(request)))
    assert (told.reason, told.metadata["status"]) == ("NOT_AT_THE_DESK", "CHARGED")
    assert world.story(request)[-1] == "charged"


# ---------------------------------------------------------------- a review
async def test_a_review_is_resolved_as_executed_by_two_people(desk: DeskWorld, world: World) -> None:
    """The bank confirms it. Then the charge's key is told CHARGED for ever, and its money can be given back."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    in_review = await world.charge(request)
    asked = await desk.ann.ask_bank(charge_id)
    assert asked.bank_said == AnswerKind.ANSWER_KIND_EXECUTED
    proposal = await desk.ann.propose(charge_id, EXECUTED, asked.transaction_id)
    assert apart_from_source(await world.charge(request)) == apart_from_source(in_review)
    assert (await refused(desk.ann.approve(charge_id, proposal))).reason == "SECOND_PERSON_NEEDED"
    approved = await desk.ben.approve(charge_id, proposal)
    assert (approved.bank_said, approved.outcome.status) == (AnswerKind.ANSWER_KIND_EXECUTED, CHARGED)
    answer = await world.charge(request)
    assert (answer.status, answer.transaction_id) == (CHARGED, asked.transaction_id)
    assert (answer.position, answer.outcome_source) == (approved.outcome.position, REPLAYED)
    story = ["charge_requested", "token_issued", "review_required", "resolution_proposed", "resolution_approved"]
    assert world.story(request) == [*story, "charged"]
    stored = world.events(request)[-2].resolution_approved
    assert (stored.actor, stored.proposal, stored.contradicts_bank) == ("ben", proposal, False)
    assert (await world.refund(charge_id)).status == OPERATION_EXECUTED
    assert await world.moved() == [("charge", 1250), ("refund", 1250)]


async def test_a_review_is_resolved_as_not_executed_and_the_payer_may_try_again(desk: DeskWorld, world: World) -> None:
    """Once the bank has closed it. A duplicate of a charge that is over without money is none."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=False)
    proposal = await desk.ann.propose(charge_id, NOT_EXECUTED)
    told = await refused(desk.ben.approve(charge_id, proposal))  # the bank would still execute it
    assert (told.reason, told.metadata["bank_said"]) == ("BANK_CONTRADICTS", "TOKEN")
    await desk.close_at_the_bank(request)
    approved = await desk.ben.approve(charge_id, proposal)
    assert (approved.bank_said, approved.outcome.status) == (AnswerKind.ANSWER_KIND_CALLED_OFF, DECLINED)
    answer = await world.charge(request)
    assert (answer.status, answer.decline_reason) == (DECLINED, DeclineReason.DECLINE_REASON_FOUND_NOT_EXECUTED)
    told = await refused(world.charge(a_request(request.idempotency_key, user_id="bob")))
    assert (told.reason, told.advice) == ("IDEMPOTENCY_KEY_REUSED", "USE_NEW_KEY")
    assert (await world.charge(a_request())).status == CHARGED
    assert await world.moved() == [("charge", 1250)]


async def test_a_charge_that_was_found_not_executed_is_no_duplicate_any_more(tmp_path: Path) -> None:
    async with a_desk(tmp_path, COMMAND_DUPLICATE_WINDOW_SECONDS="60") as desk:
        request = a_request()
        charge_id = await desk.in_review(request, is_executed=False)
        assert (await refused(desk.world.charge(a_request()))).reason == "POSSIBLE_DUPLICATE"
        await desk.close_at_the_bank(request)
        await desk.ben.approve(charge_id, await desk.ann.propose(charge_id, NOT_EXECUTED))
        assert (await desk.world.charge(a_request())).status == CHARGED


async def test_a_review_is_resolved_as_refunded_by_two_people(desk: DeskWorld, world: World) -> None:
    """The refund was made by hand, at the bank: it is stored as the approver's, and nothing is left to refund."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    transaction_id = (await desk.ann.ask_bank(charge_id)).transaction_id
    proposal = await desk.ann.propose(charge_id, REFUNDED, transaction_id, "by-hand-9")
    approved = await desk.ben.approve(charge_id, proposal)
    assert world.story(request)[-4:] == ["charged", "refund_requested", "token_issued", "refunded"]
    refund = world.events(request)[-3].refund_requested
    assert (refund.idempotency_key, refund.actor, refund.amount.minor_units) == (f"desk-{proposal}", "ben", 1250)
    assert approved.outcome.position == (await _head(world))
    assert (await world.charge(request)).status == CHARGED  # its own key is told how the charge itself ended
    told = await refused(world.refund(charge_id, 1))
    assert told.reason == "MORE_THAN_IS_LEFT"
    assert (await world.refund(charge_id, 1250, key=f"desk-{proposal}")).transaction_id == "by-hand-9"


@pytest.mark.parametrize("kind", ["capture", "void", "refund"])
async def test_an_operation_that_follows_is_resolved_and_its_charge_goes_on(
    desk: DeskWorld, world: World, kind: str
) -> None:
    request, key = (a_request() if kind == "refund" else a_hold()), new_key()
    await world.charge(request)
    charge_id = id_of(request)
    await world.trouble("execute", "wrong_amount")
    await world.trouble("look_up", "wrong_amount", times=2)
    follow: Callable[..., Awaitable[object]] = getattr(world, kind)
    assert (await getattr(world, kind)(charge_id, key=key)).status == OPERATION_IN_REVIEW
    asked = await desk.ann.ask_bank(charge_id)
    if kind != "capture":
        told = await refused(desk.ann.propose(charge_id, REFUNDED, asked.transaction_id, "by-hand-9"))
        assert (told.reason, told.fields) == ("INVALID_REQUEST", frozenset({"resolution"}))
    proposal = await desk.ann.propose(charge_id, EXECUTED, asked.transaction_id)
    await desk.ben.approve(charge_id, proposal)
    outcome = await getattr(world, kind)(charge_id, key=key)
    assert (outcome.status, outcome.transaction_id) == (OPERATION_EXECUTED, asked.transaction_id)
    if kind == "capture":
        assert (await world.refund(charge_id)).status == OPERATION_EXECUTED
    else:
        assert (await refused(follow(charge_id))).reason in ("MORE_THAN_IS_LEFT", "OPERATION_DOES_NOT_FIT")


@pytest.mark.parametrize("is_executed", [True, False], ids=["executed", "not executed"])
async def test_a_void_that_called_the_charge_off_is_resolved_with_it(
    desk: DeskWorld, world: World, is_executed: bool
) -> None:
    """A hold that was made is let go after all, at the bank; one that was not ends the void as well."""
    request, key = a_hold(), new_key()
    await world.trouble("execute", **({"fault": "lose_answer", "times": ALWAYS} if is_executed else HOLD))
    await world.pending(request)
    await until(lambda: _more(_executes(world), 0))
    await world.trouble("cancel", "wrong_amount")
    await world.trouble("look_up", "wrong_amount", times=2)
    assert (await world.void(id_of(request), key=key)).status == OPERATION_IN_REVIEW
    assert (await world.charge(request)).status == IN_REVIEW
    await world.referee.no_more_trouble()
    transaction_id = (await desk.ann.ask_bank(id_of(request))).transaction_id
    proposal = await desk.ann.propose(id_of(request), EXECUTED if is_executed else NOT_EXECUTED, transaction_id)
    await desk.ben.approve(id_of(request), proposal)
    voided = await world.void(id_of(request), key=key)
    assert voided.status == (OPERATION_EXECUTED if is_executed else OPERATION_DECLINED)
    assert (await world.charge(request)).status == (AUTHORIZED if is_executed else DECLINED)
    assert await world.moved() == ([("authorize", 1250), ("void", 1250)] if is_executed else [])


async def test_a_resolution_that_the_bank_contradicts_is_refused_unless_the_approver_says_so(
    desk: DeskWorld, world: World
) -> None:
    """Another transaction, another end, or no word at all: the event says that nobody confirmed it."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    for resolution, transaction_id in ((EXECUTED, "another"), (NOT_EXECUTED, "")):
        proposal = await desk.ann.propose(charge_id, resolution, transaction_id)
        told = await refused(desk.ben.approve(charge_id, proposal))
        assert (told.reason, told.metadata["bank_said"]) == ("BANK_CONTRADICTS", "EXECUTED")
        await desk.ben.reject(charge_id, proposal)
    proposal = await desk.ann.propose(charge_id, EXECUTED, "another")
    await world.bank_down()
    told = await refused(desk.ben.approve(charge_id, proposal))
    assert (told.reason, bool(told.retry_after_seconds)) == ("BANK_UNREACHABLE", True)
    assert told.metadata["bank_said"] == "NO_ANSWER"
    told = await refused(desk.ben.approve(charge_id, proposal, overrules=AnswerKind.ANSWER_KIND_EXECUTED))
    assert (told.reason, told.metadata["bank_said"]) == ("BANK_UNREACHABLE", "NO_ANSWER")
    approved = await desk.ben.approve(charge_id, proposal, overrules=AnswerKind.ANSWER_KIND_NO_ANSWER)
    await world.bank_up()
    assert (approved.bank_said, approved.outcome.status) == (AnswerKind.ANSWER_KIND_NO_ANSWER, CHARGED)
    assert world.events(request)[-2].resolution_approved.contradicts_bank
    assert (await world.charge(request)).transaction_id == "another"


async def test_who_approves_without_the_banks_word_does_not_overrule_what_it_says_by_then(
    desk: DeskWorld, world: World
) -> None:
    """The bank was silent, and comes back with the word that the money moved: nothing is stored until that is overruled."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    proposal = await desk.ann.propose(charge_id, NOT_EXECUTED)
    await world.bank_down()
    assert (await refused(desk.ben.approve(charge_id, proposal))).metadata["bank_said"] == "NO_ANSWER"
    await world.bank_up()
    silent = AnswerKind.ANSWER_KIND_NO_ANSWER
    told = await refused(desk.ben.approve(charge_id, proposal, overrules=silent))
    assert (told.reason, told.metadata["bank_said"]) == ("BANK_CONTRADICTS", "EXECUTED")
    assert world.story(request)[-1] == "resolution_proposed"
    await desk.ben.reject(charge_id, proposal)
    right = await desk.ann.propose(charge_id, EXECUTED, (await desk.ann.ask_bank(charge_id)).transaction_id)
    approved = await desk.ben.approve(charge_id, right, overrules=silent)  # it confirms: there is nothing to overrule
    assert (approved.bank_said, approved.outcome.status) == (AnswerKind.ANSWER_KIND_EXECUTED, CHARGED)
    assert not world.events(request)[-2].resolution_approved.contradicts_bank


async def test_an_answer_that_no_bank_gives_overrules_nothing(desk: DeskWorld) -> None:
    charge_id = await desk.in_review(a_request(), is_executed=True)
    proposal = await desk.ann.propose(charge_id, NOT_EXECUTED)
    told = await refused(desk.ben.approve(charge_id, proposal, overrules=99))  # type: ignore[arg-type]
    assert (told.reason, told.fields) == ("INVALID_REQUEST", frozenset({"overrules"}))


async def test_people_hear_of_the_token_that_the_journal_holds_unless_it_was_restored(
    desk: DeskWorld, world: World
) -> None:
    """A look-up by reference may be late. A restored journal may have forgotten a later token."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    (token,) = [event.token_issued.token for event in world.events(request) if event.HasField("token_issued")]
    said = await desk.ann.ask_bank(charge_id)
    assert said.bank_said == AnswerKind.ANSWER_KIND_EXECUTED
    assert (await world.referee.calls())[-1]["path"] == f"/transactions/{token}"
    await world.stop()
    restore_journal(SqliteFile(world.journal), None)
    await world.start()
    assert await desk.ann.ask_bank(charge_id) == said
    assert not (await world.referee.calls())[-1]["path"].endswith(token)


async def test_a_tenant_is_told_of_its_own_charges_under_way_only(desk: DeskWorld, world: World) -> None:
    """Of those held back too."""
    await world.trouble("execute", **HOLD)
    request = a_request()
    await world.pending(request)
    await desk.ann.hold_back(id_of(request))
    status = OperatorServiceStub(world.channel).GetServerStatus
    told = {
        tenant: await status(GetServerStatusRequest(), metadata=(("actor", "ann"), ("tenant", tenant)))
        for tenant in ("", "default", "another")
    }
    counts = {it: (one.unfinished_charges, one.charges_held_back) for it, one in told.items()}
    assert counts == {"": (1, 1), "default": (1, 1), "another": (0, 0)}
    await world.referee.no_more_trouble()
    await desk.ben.let_go(id_of(request))
    assert (await world.charge(request)).status == CHARGED


async def test_one_proposal_is_open_at_a_time_and_each_step_may_be_repeated(desk: DeskWorld, world: World) -> None:
    """A repeated step stores nothing, and is answered as the first was."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    transaction_id = (await desk.ann.ask_bank(charge_id)).transaction_id
    first = await desk.ann.propose(charge_id, EXECUTED, transaction_id)
    assert await desk.ann.propose(charge_id, EXECUTED, transaction_id) == first
    told = await refused(desk.ben.propose(charge_id, NOT_EXECUTED))
    assert (told.reason, told.metadata["actor"]) == ("ANOTHER_PROPOSAL", "ann")
    assert told.metadata["proposal"] == str(first)
    rejected = await desk.ann.reject(charge_id, first)  # taken back
    assert await desk.ann.reject(charge_id, first) == rejected
    for late in (desk.ben.approve(charge_id, first), desk.ben.reject(charge_id, first)):
        assert (await refused(late)).reason == "PROPOSAL_CHANGED"
    second = await desk.ann.propose(charge_id, EXECUTED, transaction_id)
    assert second > first
    approved = await desk.ben.approve(charge_id, second)
    assert await desk.ben.approve(charge_id, second) == approved
    assert (await refused(desk.operator("eve").approve(charge_id, second))).reason == "PROPOSAL_CHANGED"
    told = await refused(desk.ann.propose(charge_id, NOT_EXECUTED))
    assert (told.reason, told.metadata["status"]) == ("NOT_AT_THE_DESK", "CHARGED")


async def test_two_that_approve_at_once_approve_once(desk: DeskWorld, world: World) -> None:
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    transaction_id = (await desk.ann.ask_bank(charge_id)).transaction_id
    proposal = await desk.ann.propose(charge_id, EXECUTED, transaction_id)
    approvers = [desk.operator(f"approver-{number}") for number in range(5)]
    told = await asyncio.gather(*(one.approve(charge_id, proposal) for one in approvers), return_exceptions=True)
    assert sum(not isinstance(each, BaseException) for each in told) == 1
    assert world.story(request).count("resolution_approved") == 1


async def test_a_proposal_waits_over_a_restart(desk: DeskWorld, world: World) -> None:
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    transaction_id = (await desk.ann.ask_bank(charge_id)).transaction_id
    proposal = await desk.ann.propose(charge_id, EXECUTED, transaction_id)
    await world.stop()
    await world.start()
    assert (await refused(desk.ann.approve(charge_id, proposal))).reason == "SECOND_PERSON_NEEDED"
    assert (await desk.ben.approve(charge_id, proposal)).outcome.status == CHARGED


# ---------------------------------------------------------------- the bank is asked
@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("tok_visa", AnswerKind.ANSWER_KIND_EXECUTED),
        ("tok_declined", AnswerKind.ANSWER_KIND_DECLINED),
    ],
)
async def test_the_bank_is_asked_what_it_knows_and_nothing_changes(
    desk: DeskWorld, world: World, card: str, said: int
) -> None:
    request = a_request(card=Card(token=card))
    answer = await world.charge(request)
    events, moved = world.events(request), await world.moved()
    asked = await desk.ann.ask_bank(id_of(request))
    assert (asked.bank_said, asked.transaction_id) == (said, answer.transaction_id)
    assert (world.events(request), await world.moved()) == (events, moved)
    assert (await world.asked(request))[-1] == "look_up"


async def test_the_bank_is_asked_about_the_charge_and_not_about_a_void_that_ended_with_it(
    desk: DeskWorld, world: World
) -> None:
    """The bank never saw such a void: to ask about that would say "called off" of money that moved."""
    request, key = a_request(), new_key()
    await world.trouble("execute", fault="lose_answer", times=ALWAYS)
    await world.pending(request)
    await until(lambda: _has_moved(world, request))
    assert (await world.void(id_of(request), key=key)).status == OPERATION_DECLINED
    charged = await world.charge(request)
    await world.referee.no_more_trouble()
    assert world.story(request)[-2:] == ["void_requested", "charged"]
    asked = await desk.ann.ask_bank(id_of(request))
    assert (asked.bank_said, asked.transaction_id) == (AnswerKind.ANSWER_KIND_EXECUTED, charged.transaction_id)
    assert (asked.operation, asked.idempotency_key) == (OperationKind.OPERATION_KIND_CHARGE, request.idempotency_key)
    await world.refund(id_of(request), 250, key=key + "-2")
    asked = await desk.ann.ask_bank(id_of(request))
    assert (asked.operation, asked.idempotency_key) == (OperationKind.OPERATION_KIND_REFUND, key + "-2")
    assert asked.bank_said == AnswerKind.ANSWER_KIND_EXECUTED


@pytest.mark.parametrize("is_called_off", [False, True], ids=["charge", "called off"])
async def test_the_bank_is_not_asked_about_a_refund_that_people_made_by_hand(
    desk: DeskWorld, world: World, is_called_off: bool
) -> None:
    request = a_request()
    if is_called_off:
        await world.trouble("execute", fault="lose_answer", times=ALWAYS)
        await world.pending(request)
        await until(lambda: _has_moved(world, request))
        await world.trouble("cancel", "wrong_amount")
        await world.trouble("look_up", "wrong_amount", times=2)
        assert (await world.void(id_of(request))).status == OPERATION_IN_REVIEW
        await world.referee.no_more_trouble()
    else:
        await desk.in_review(request, is_executed=True)
    right = (await desk.ann.ask_bank(id_of(request))).transaction_id
    await desk.ben.approve(id_of(request), await desk.ann.propose(id_of(request), REFUNDED, right, "by-hand-9"))
    assert world.story(request)[-1] == "refunded"
    asked = await desk.ann.ask_bank(id_of(request))
    assert (asked.bank_said, asked.transaction_id) == (AnswerKind.ANSWER_KIND_EXECUTED, right)
    assert (asked.operation, asked.idempotency_key) == (OperationKind.OPERATION_KIND_CHARGE, request.idempotency_key)


async def test_a_charge_that_was_executed_under_an_id_that_may_not_be_kept_differs_in_that_alone(
    desk: DeskWorld, world: World
) -> None:
    """Its money moved: two people book it under a name of theirs, against the bank's word, since it has no other."""
    request = a_request()
    await world.trouble("execute", "odd_transaction_id")
    assert (await world.charge(request)).status == IN_REVIEW
    asked = await desk.ann.ask_bank(id_of(request))
    contradiction = AnswerKind.ANSWER_KIND_CONTRADICTION
    assert (asked.bank_said, [*asked.differing_fields], asked.transaction_id) == (contradiction, ["transaction_id"], "")
    assert differs_in(asked) == ""
    assert said_besides(asked) == ID_NOT_KEPT
    proposal = await desk.ann.propose(id_of(request), EXECUTED, "by-our-reference")
    approved = await desk.ben.approve(id_of(request), proposal, overrules=contradiction)
    assert (approved.bank_said, approved.outcome.status) == (contradiction, CHARGED)
    assert (await world.charge(request)).transaction_id == "by-our-reference"


async def test_it_is_told_in_what_the_bank_contradicts_us(desk: DeskWorld, world: World) -> None:
    """And under what id it executed our order with another amount: two people may insist on that one."""
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    right = (await desk.ann.ask_bank(charge_id)).transaction_id
    await world.trouble("look_up", "wrong_amount", times=20)
    asked = await desk.ann.ask_bank(charge_id)
    assert asked.bank_said == AnswerKind.ANSWER_KIND_CONTRADICTION
    assert (asked.transaction_id, [*asked.differing_fields]) == (right, ["amount"])
    assert (differs_in(asked), said_besides(asked)) == ("amount", "")
    proposal = await desk.ann.propose(charge_id, EXECUTED, right)
    told = await refused(desk.ben.approve(charge_id, proposal))
    assert (told.reason, told.metadata["bank_said"]) == ("BANK_CONTRADICTS", "CONTRADICTION")
    assert (told.metadata["differs_in"], told.metadata["transaction_id"]) == ("amount", right)


async def test_another_orders_transaction_is_not_named(desk: DeskWorld, world: World) -> None:
    request = a_request()
    charge_id = await desk.in_review(request, is_executed=True)
    await world.trouble("look_up", "wrong_reference", times=20)
    asked = await desk.ann.ask_bank(charge_id)
    assert (asked.transaction_id, [*asked.differing_fields]) == ("", ["reference"])


async def test_a_bank_that_is_away_says_nothing(desk: DeskWorld, world: World) -> None:
    request = a_request()
    await world.charge(request)
    await world.bank_down()
    assert (await desk.ann.ask_bank(id_of(request))).bank_said == AnswerKind.ANSWER_KIND_NO_ANSWER
    await world.bank_up()


# ---------------------------------------------------------------- who may see what
Step = Callable[[Operator, str], Awaitable[object]]
STEPS: list[Step] = [
    lambda one, charge_id: one.try_now(charge_id),
    lambda one, charge_id: one.hold_back(charge_id),
    lambda one, charge_id: one.let_go(charge_id),
    lambda one, charge_id: one.ask_bank(charge_id),
    lambda one, charge_id: one.propose(charge_id, NOT_EXECUTED),
    lambda one, charge_id: one.reject(charge_id, 1),
    lambda one, charge_id: one.approve(charge_id, 1),
]
of_every_step = pytest.mark.parametrize(
    "step", STEPS, ids=["try", "hold back", "let go", "ask", "propose", "reject", "approve"]
)


@of_every_step
async def test_another_tenants_charge_does_not_exist(desk: DeskWorld, world: World, step: Step) -> None:
    """It is answered like one that was never given out. The tenant's own operator finds it."""
    request = a_request()
    await world.charge(request)
    stranger, own = desk.operator("eve", "another"), desk.operator("ann", "default")
    theirs, nobodys = await refused(step(stranger, id_of(request))), await refused(step(desk.ann, NO_CHARGE))
    assert theirs == nobodys
    assert theirs.reason == "CHARGE_NOT_FOUND"
    try:
        await step(own, id_of(request))
    except Exception as error:
        assert "CHARGE_NOT_FOUND" not in repr(error)


# ---------------------------------------------------------------- what is refused
CARD_NUMBER = "4111 1111 1111 1111"


@of_every_step
async def test_a_malformed_step_is_refused_by_its_fields_and_stores_nothing(
    desk: DeskWorld, world: World, step: Step
) -> None:
    """No reason, or one with a card number in it, and no charge's id. What was sent is not repeated."""
    request = a_request()
    await world.charge(request)
    stored = len(world.events(request))
    for reason in ("", "  ", CARD_NUMBER, "bad\u202etext", "x" * 1_501):
        operator = desk.ann
        operator.reason = reason
        told = await refused(step(operator, "no id"))
        is_asked_for = step is not STEPS[3]
        assert told.reason == "INVALID_REQUEST"
        assert told.fields == ({"charge_id", "reason"} if is_asked_for else {"charge_id"})
        assert CARD_NUMBER.encode() not in told.everything
    assert len(world.events(request)) == stored


async def test_a_proposal_names_what_it_found_and_no_more(desk: DeskWorld, world: World) -> None:
    """The ids that its resolution needs, in the form of ids, and the evidence."""
    charge_id = await desk.in_review(a_request(), is_executed=True)
    for resolution, transaction_id, refund_id, fields in (
        (EXECUTED, "", "", {"transaction_id"}),
        (EXECUTED, "tx1", "tx2", {"refund_transaction_id"}),
        (EXECUTED, "no id", "", {"transaction_id"}),
        (EXECUTED, CARD_NUMBER.replace(" ", ""), "", {"transaction_id"}),
        (NOT_EXECUTED, "tx1", "", {"transaction_id"}),
        (REFUNDED, "tx1", "", {"refund_transaction_id"}),
        (REFUNDED, "", "", {"transaction_id", "refund_transaction_id"}),
        (0, "tx1", "", {"resolution"}),
        (99, "tx1", "", {"resolution"}),
    ):
        told = await refused(desk.ann.propose(charge_id, resolution, transaction_id, refund_id))  # type: ignore[arg-type]
        assert (told.reason, told.fields) == ("INVALID_REQUEST", frozenset(fields))
    for evidence in ("", CARD_NUMBER):
        told = await refused(desk.ann.propose(charge_id, NOT_EXECUTED, evidence=evidence))
        assert told.fields == {"evidence"}


async def test_an_open_server_has_one_person_only(tmp_path: Path) -> None:
    """Without a policy all callers are one identity: nobody can be the second."""
    async with a_desk(tmp_path, make_parts=DeskParts.__base__) as desk:  # type: ignore[arg-type]
        request = a_request()
        charge_id = await desk.in_review(request, is_executed=True)
        transaction_id = (await desk.ann.ask_bank(charge_id)).transaction_id
        proposal = await desk.ann.propose(charge_id, EXECUTED, transaction_id)
        assert (await refused(desk.ben.approve(charge_id, proposal))).reason == "SECOND_PERSON_NEEDED"
        desk_of_all = OperatorServiceStub(desk.world.channel)
        await desk_of_all.GetServerStatus(GetServerStatusRequest())
        assert not (await desk_of_all.ListReconciliations(ListReconciliationsRequest())).reconciliations


# ---------------------------------------------------------------- what a test asks
async def _executes(world: World) -> list[str]:
    return [call["path"] for call in await world.referee.calls() if call["path"].endswith("/execute")]


async def _has_executed(world: World, request: ChargeRequest) -> bool:
    return "execute" in await world.asked(request)


async def _has_moved(world: World, request: ChargeRequest) -> bool:
    return bool(await world.movements(request))


async def _more(asked: Awaitable[list[str]], than: int) -> bool:
    return len(await asked) > than


async def _no_step_is_on_its_way(world: World, request: ChargeRequest) -> bool:
    """Of a charge that is held back: then none comes any more."""
    told = await world.journals.GetAttempts(GetAttemptsRequest(charge_id=id_of(request)), timeout=PATIENT_SECONDS)
    return told.attempts.is_driven_here and not told.attempts.is_under_way


async def _head(world: World) -> int:
    return world.running.journal.head.position
