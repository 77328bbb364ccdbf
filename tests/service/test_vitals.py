"""Which charges the figures of a command server count: of a real server and a real bank."""

import asyncio
from pathlib import Path

import pytest

from charging.v1.common_pb2 import AnswerKind
from charging.v1.journal_pb2 import Charged, Event
from charging.v1.operator_pb2 import GetServerStatusRequest
from charging.v1.operator_pb2_grpc import OperatorServiceStub
from charging.v1.query_pb2 import ChargeStage, Situation
from command_service.bank import Bank
from command_service.parts import Parts
from command_service.values import Answer, Effect, Execute, NoAnswer
from contract.situations import SITUATIONS, situation_under_way
from rig.around import Around
from rig.errors import refused
from rig.referee import PATIENT_SECONDS
from rig.world import CHARGED, a_request, a_world, id_of, until
from tests.service.clock_rig import Clock, Clocked
from tests.service.desk_rig import DeskParts, a_desk
from tests.service.test_charge import HOLD


@pytest.mark.parametrize("is_held_back", [True, False])
@pytest.mark.parametrize("is_bank_configured", [True, False])
def test_there_is_a_situation_for_each_stage_and_answer(is_held_back: bool, is_bank_configured: bool) -> None:
    """Also for a charge that has come to rest since its run was found: a gauge must not fail."""
    for stage in ChargeStage.values():
        for answer in AnswerKind.values():
            found = situation_under_way(stage, answer, is_held_back=is_held_back, is_bank_configured=is_bank_configured)
            assert found in SITUATIONS
            if stage == ChargeStage.CHARGE_STAGE_AT_REST:
                assert found == Situation.SITUATION_DECIDED
            if stage == ChargeStage.CHARGE_STAGE_IN_REVIEW:
                assert found == Situation.SITUATION_IN_REVIEW


async def test_a_charge_that_is_held_back_counts_as_such_and_not_as_old(tmp_path: Path) -> None:
    """People know of it, and hold it for as long as they want."""
    clock = Clock()

    class ClockedDesk(DeskParts, Clocked):
        """A desk that believes, by the test's clock."""

    async with a_desk(tmp_path, lambda chosen: ClockedDesk(clock, chosen)) as desk:
        world = desk.world
        await world.trouble("execute", **HOLD)
        request = a_request()
        await world.pending(request)
        clock.moment += 3_600_000_000
        assert world.running.vitals().charges_needing_attention == 1
        await desk.ann.hold_back(id_of(request))
        taken = world.running.vitals()
        assert (taken.charges_needing_attention, taken.oldest_unfinished_seconds) == (0, 0.0)
        assert taken.stuck_charges["held_back"] == 1
        await desk.ann.let_go(id_of(request))
        assert world.running.vitals().charges_needing_attention == 1


class _Waiting(Around[Bank]):
    """A bank whose first answer to an execution is lost, and whose second one comes when the test wants it."""

    def __init__(self, inner: Bank) -> None:
        super().__init__(inner)
        self.executions = 0
        self.answers = asyncio.Event()

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer: Answer = await self.inner.perform(effect, look_up_first=look_up_first)
        if not isinstance(effect, Execute):
            return answer
        self.executions += 1
        if self.executions == 1:
            return NoAnswer(0.01)
        await self.answers.wait()
        return answer


async def test_a_charge_that_has_come_to_rest_elsewhere_is_not_counted_while_our_call_to_the_bank_lasts(
    tmp_path: Path,
) -> None:
    """As where servers share a journal: the run is there still, and has tried in vain. The figures are told all the same."""

    banks: list[_Waiting] = []

    class WaitingParts(Parts):
        """Parts with that bank."""

        def bank(self) -> Bank:
            banks.append(_Waiting(super().bank()))
            return banks[0].as_one()

    async with a_world(tmp_path, WaitingParts, COMMAND_ATTENTION_AFTER_SECONDS="1") as world:
        request = a_request()
        charging = asyncio.ensure_future(world.charge(request))
        await until(lambda: banks[0].executions == 2)
        await until(lambda: world.running.vitals().stuck_charges["execution_unknown"] == 1)
        (movement,) = await world.movements(request)
        asked = world.events(request)[0].charge_requested
        elsewhere = Charged(
            amount=asked.amount, user_id=asked.user_id, card=asked.card, transaction_id=movement.transaction_id
        )
        stored = [Event(charged=elsewhere).SerializeToString()]
        await world.running.journal.append(id_of(request), 2, stored, finished=True)
        await refused(world.void(id_of(request)))  # by this the server learns of it
        taken = world.running.vitals()
        assert (taken.unfinished_charges, taken.charges_needing_attention, taken.oldest_unfinished_seconds) == (0, 0, 0)
        assert set(taken.stuck_charges.values()) == {0}
        status = await OperatorServiceStub(world.channel).GetServerStatus(
            GetServerStatusRequest(), timeout=PATIENT_SECONDS
        )
        assert status.unfinished_charges == 0
        banks[0].answers.set()
        assert (await charging).status == CHARGED
