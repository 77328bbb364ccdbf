"""The attempts at the step of a charge under way, in the words of the contract: from the memory of its run.

Attempts are not in the journal. A run begins anew with each start of the server, and where servers share a journal, with each
server that takes the charge up.
"""

import asyncio

from charging.v1.common_pb2 import AnswerKind, Attempts
from charging.v1.journal_pb2 import GetAttemptsResponse
from charging.v1.query_pb2 import ChargeStage, Situation
from command_service.bank.lines import Lines
from command_service.charge import Charge, bank_of, is_at_rest
from command_service.codec import answer_kind_out
from command_service.failures import InvalidRequest
from command_service.journal import Journal
from command_service.run import Run
from command_service.runner import Runner
from command_service.screening import is_charge_id
from command_service.statuses import stage_told
from command_service.values import kind_of
from contract.situations import situation_under_way


class Memory:
    """What the runs of a server remember of their attempts."""

    def __init__(self, runner: Runner, lines: Lines, journal: Journal) -> None:
        self._runner = runner
        self._lines = lines
        self._journal = journal
        self.is_complete = asyncio.Event()
        """Set once every charge that was found under way has its run; who asks before waits for it."""

    async def of(self, charge_id: str, tenant: str) -> GetAttemptsResponse:
        """Tell of a charge's attempts. To a tenant another tenant's charge does not exist; an empty one is told of all.

        Raises InvalidRequest if it is no id of a charge, and Unreadable if the charge's records cannot be read.
        """
        if not is_charge_id(charge_id):
            raise InvalidRequest((("charge_id", "must be the id of a charge"),))
        await self.is_complete.wait()
        _, state, version = await self._runner.load(charge_id, for_tenant=tenant or None)
        response = GetAttemptsResponse(version=version)
        if not isinstance(state, Charge) or is_at_rest(state):
            return response
        response.is_unfinished = True
        is_configured = self._lines.lead_to(bank_of(state))
        is_ours = self._journal.drives(charge_id)
        if is_ours and (run := self._runner.find(charge_id)) is not None:
            response.attempts.CopyFrom(self._told(run, state))
        elif not is_ours or not self._runner.has_stopped(charge_id):  # another's, or one that is being taken over
            is_restored = self._journal.restored
            response.attempts.CopyFrom(Attempts(bank_is_configured=is_configured, journal_is_restored=is_restored))
        return response

    def _told(self, run: Run, charge: Charge) -> Attempts:
        tries, bank = run.tries_at(charge.newest.operation), bank_of(charge)
        told = Attempts(
            bank_calls=tries.bank_calls,
            in_vain=tries.in_vain,
            last_answer=answer_told(run),
            is_under_way=tries.is_under_way,
            bank_is_spared=self._lines.at(bank).is_spared,
            bank_is_configured=self._lines.lead_to(bank),
            is_driven_here=True,
            journal_is_restored=self._journal.restored,
        )
        told.since.FromMicroseconds(tries.taken_up_at or charge.newest.requested_at)
        if tries.last_at:
            told.last_at.FromMicroseconds(tries.last_at)
        if tries.next_at:
            told.next_at.FromMicroseconds(tries.next_at)
        return told


def answer_told(run: Run) -> AnswerKind.ValueType:
    """Return the kind of the bank's last answer to a run's operation under way; unspecified if there was none yet."""
    answer = run.tries.last_answer
    return answer_kind_out(kind_of(answer)) if answer is not None else AnswerKind.ANSWER_KIND_UNSPECIFIED


def situation_of(run: Run, *, is_bank_configured: bool, is_held_back: bool = False) -> Situation.ValueType:
    """Return the situation of a charge under way, as far as its server can tell."""
    charge = run.snapshot.state
    assert isinstance(charge, Charge), "a charge on its way has events"
    stage = stage_told(charge)
    is_stuck = run.tries.in_vain > 0 or is_held_back or not is_bank_configured
    if not is_stuck and stage != ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER:
        return Situation.SITUATION_UNDER_WAY
    return situation_under_way(
        stage, answer_told(run), is_held_back=is_held_back, is_bank_configured=is_bank_configured
    )
