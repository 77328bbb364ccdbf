"""The commands over gRPC: from a request to the reception and back, with bounds on the number of calls and their time.

An RPC only waits for a charge, which runs in a task of the reception's or the runner's. A deadline, a cancel or a cut
connection ends the call and never reaches the charge.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import (
    CaptureRequest,
    CaptureResponse,
    ChargeRequest,
    ChargeResponse,
    OperationOutcome,
    OutcomeSource,
    RefundRequest,
    RefundResponse,
    VoidRequest,
    VoidResponse,
)
from charging.v1.common_pb2 import Money
from chassis.caller import Caller, caller_of
from chassis.deadlines import wait_seconds
from chassis.shares import Excess, Rates, Shares
from command_service.appointments import Appointments
from command_service.charge import following
from command_service.events import Authorized
from command_service.explaining import explaining
from command_service.failures import OperationUnderWay
from command_service.intake import Intake
from command_service.operation import AtRest, awaits_customer
from command_service.reception import Accepted, Reception, Source
from command_service.screening import AnyRequest
from command_service.statuses import (
    decline_reason_told,
    operation_status_told,
    status_told,
    transaction_id_told,
)
from contract.errors import Reason
from contract.errors import command_refusal as refusal

# A call without a deadline, or with a very late one, waits no longer.
LONGEST_WAIT_SECONDS = 30.0
# An operation takes two calls to the bank, most often well under a second.
BLOCKED_RETRY_SECONDS = 1.0

_SOURCES = {
    Source.FRESH: OutcomeSource.OUTCOME_SOURCE_FRESH,
    Source.JOINED: OutcomeSource.OUTCOME_SOURCE_JOINED,
    Source.REPLAYED: OutcomeSource.OUTCOME_SOURCE_REPLAYED,
    Source.RECOVERED: OutcomeSource.OUTCOME_SOURCE_RECOVERED,
}


class CommandService(command_pb2_grpc.CommandServiceServicer):
    """Takes clients' commands, within the limits of calls at once and of calls a second."""

    def __init__(self, intake: Intake, reception: Reception, calls: Shares, rates: Rates) -> None:
        """Each call takes a place in `calls` while it lasts."""
        self._reception = reception
        self._intake = intake
        self._calls = calls
        self._rates = rates
        self._clock = asyncio.get_running_loop().time
        self._appointments = Appointments(self._clock, calls.limit)
        self._stopping = False
        self._waiting: dict[Callable[[], None], None] = {}  # in order, so that a simulation repeats

    @property
    def limits(self) -> Mapping[str, Shares]:
        """What is limited, by its name in the metrics."""
        return {"calls": self._calls}

    def stop(self) -> None:
        """End every waiting call now: with PENDING where the journal holds the operation, which the next start goes on with."""
        self._stopping = True
        for end in list(self._waiting):
            end()

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:  # noqa: N802  # the contract's name
        """Charge a card once per idempotency key; see the contract."""
        accepted = await self._call(request, context)
        return _charge_response(accepted, self._reception.journal_id)

    async def Capture(self, request: CaptureRequest, context: Any) -> CaptureResponse:  # noqa: N802
        """Move held money once per idempotency key; see the contract."""
        return CaptureResponse(outcome=await self._follow(request, context))

    async def Void(self, request: VoidRequest, context: Any) -> VoidResponse:  # noqa: N802
        """Let go of a hold, or call a charge off; see the contract."""
        return VoidResponse(outcome=await self._follow(request, context))

    async def Refund(self, request: RefundRequest, context: Any) -> RefundResponse:  # noqa: N802
        """Give money back once per idempotency key; see the contract."""
        return RefundResponse(outcome=await self._follow(request, context))

    async def _follow(self, request: CaptureRequest | VoidRequest | RefundRequest, context: Any) -> OperationOutcome:
        accepted = await self._call(request, context)
        return _outcome(accepted, request.idempotency_key, self._reception.journal_id)

    async def _call(self, request: AnyRequest, context: Any) -> Accepted:
        caller = caller_of(context)
        tenant = caller.tenant
        match self._calls.take(tenant):
            case None:
                pass
            case Excess.SERVER:
                raise refusal(Reason.TOO_MANY_CALLS, retry_after_seconds=self._appointments.give_seconds())
            case Excess.TENANT:
                raise refusal(Reason.TENANT_LIMIT, retry_after_seconds=self._appointments.give_seconds(tenant))
        if (return_seconds := self._rates.take(tenant)) is not None:
            self._calls.give_back(tenant)
            raise refusal(Reason.TENANT_LIMIT, retry_after_seconds=return_seconds)
        if self._calls.used <= self._calls.limit // 2:
            self._appointments.clear()
        began = self._clock()
        try:
            with explaining():
                return await self._wait(request, caller, context.time_remaining())
        finally:
            self._calls.give_back(tenant)
            self._appointments.note_end(self._clock() - began)

    async def _wait(self, request: AnyRequest, caller: Caller, remaining_seconds: float | None) -> Accepted:
        """Hand a command in, and wait for its outcome as long as the call may take."""
        seconds = wait_seconds(remaining_seconds, LONGEST_WAIT_SECONDS)
        if seconds <= 0:
            raise refusal(Reason.DEADLINE_PASSED)  # nobody reads the answer: not even begun
        if self._stopping:
            raise refusal(Reason.SERVER_STOPPING)
        waiting = _Waiting(seconds)
        self._waiting[waiting.end] = None
        try:
            entry = self._reception.accept(self._intake(request, caller))
            try:
                await waiting.until(entry.accepted)
                if not entry.accepted.done():
                    if self._stopping:
                        raise refusal(Reason.SERVER_STOPPING)
                    if entry.withdraw():
                        raise OperationUnderWay(retry_after_seconds=BLOCKED_RETRY_SECONDS)
                    raise refusal(Reason.OUTCOME_UNKNOWN)
                accepted = entry.accepted.result()
                if (run := accepted.run) is None:
                    return accepted
                if not isinstance(request, ChargeRequest):
                    await waiting.until(run.ended)
                    return accepted
                if awaits_customer(accepted.charge.opening):  # The customer may just have come back from the bank.
                    await waiting.until(run.look())
                await waiting.until(run.told)
                return accepted
            finally:
                entry.withdraw()  # if nobody is there any more, its turn is not waited for
        finally:
            del self._waiting[waiting.end]
            waiting.close()


class _Waiting:
    """The waiting of a call, which ends at its time or at the server's stop. What it waits for is not disturbed by that.

    asyncio.wait would need a future for the stop that all calls share, and look through all their callbacks each time.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self.end)
        self.is_over = False
        self._woken: asyncio.Future[None] | None = None

    async def until(self, what: "asyncio.Future[Any]") -> None:
        """Return when it is done, or the waiting is over."""
        if what.done() or self.is_over:
            return
        self._woken = self._loop.create_future()
        what.add_done_callback(self._wake)
        try:
            await self._woken
        finally:
            what.remove_done_callback(self._wake)

    def end(self) -> None:
        """Wait no longer."""
        self.is_over = True
        self._wake()

    def close(self) -> None:
        """Let go of the timer."""
        self._timer.cancel()

    def _wake(self, _: object = None) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


def _charge_response(accepted: Accepted, journal_id: str) -> ChargeResponse:
    charge = accepted.charge
    opening = charge.opening
    response = ChargeResponse(
        charge_id=charge.request.charge_id,
        status=status_told(opening),
        transaction_id=transaction_id_told(opening),
        decline_reason=decline_reason_told(opening),
        position=charge.position,
        outcome_source=_SOURCES[accepted.source],
        journal_id=journal_id,
    )
    response.requested_at.FromMicroseconds(opening.requested_at)
    if awaits_customer(opening):
        response.action.url = opening.url
        if opening.expires_at:
            response.action.expires_at.FromMicroseconds(opening.expires_at)
    if isinstance(opening, AtRest):
        response.position = opening.position
        response.decided_at.FromMicroseconds(opening.decided_at)
        if isinstance(opening.outcome, Authorized) and opening.outcome.expires_at:
            response.expires_at.FromMicroseconds(opening.outcome.expires_at)
    return response


def _outcome(accepted: Accepted, idempotency_key: str, journal_id: str) -> OperationOutcome:
    charge = accepted.charge
    progress = following(charge, idempotency_key)
    assert progress is not None, "an accepted operation is in its charge"
    amount = progress.operation.amount
    outcome = OperationOutcome(
        charge_id=charge.request.charge_id,
        status=operation_status_told(progress),
        amount=Money(minor_units=amount.minor_units, currency_code=amount.currency_code),
        transaction_id=transaction_id_told(progress),
        decline_reason=decline_reason_told(progress),
        position=charge.position,
        outcome_source=_SOURCES[accepted.source],
        journal_id=journal_id,
    )
    outcome.requested_at.FromMicroseconds(progress.requested_at)
    if isinstance(progress, AtRest):
        outcome.position = progress.position
        outcome.decided_at.FromMicroseconds(progress.decided_at)
    return outcome
