"""The commands over gRPC: from a request to the reception and back, with bounds on the number of calls and their time.

An RPC only waits for a charge; the charge runs in the runner's tasks. A deadline, a cancel or a cut connection ends the
call and never reaches the charge.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, OutcomeSource
from charging.v1.common_pb2 import ChargeStatus
from chassis.caller import Caller, caller_of
from chassis.deadlines import wait_seconds
from chassis.refusals import Refusal
from command_service.appointments import Appointments
from command_service.charge import Charge, is_over_without_money, outcome_of
from command_service.codec import decline_reason_out, status_of
from command_service.errors import refusing
from command_service.events import Charged, ChargeDeclined
from command_service.failures import KeyReused
from command_service.intake import Intake
from command_service.operation import AtRest
from command_service.reception import Accepted, Reception, Source
from contract.errors import Reason
from contract.errors import command_refusal as refusal

# A call without a deadline, or with a very late one, waits no longer.
LONGEST_WAIT_SECONDS = 30.0

_SOURCES = {
    Source.FRESH: OutcomeSource.OUTCOME_SOURCE_FRESH,
    Source.JOINED: OutcomeSource.OUTCOME_SOURCE_JOINED,
    Source.REPLAYED: OutcomeSource.OUTCOME_SOURCE_REPLAYED,
    Source.RECOVERED: OutcomeSource.OUTCOME_SOURCE_RECOVERED,
}


class CommandService(command_pb2_grpc.CommandServiceServicer):
    """Takes clients' commands, so many at once."""

    def __init__(self, intake: Intake, reception: Reception, *, max_calls: int) -> None:
        self._reception = reception
        self._intake = intake
        self._max_calls = max_calls
        self._calls = 0
        self._clock = asyncio.get_running_loop().time
        self._appointments = Appointments(self._clock, max_calls)
        self._stopping = False
        self._waiting: dict[Callable[[], None], None] = {}  # in order, so that a simulation repeats

    def stop(self) -> None:
        """Answer every waiting call now, with PENDING where there is no outcome: the next start goes on with it."""
        self._stopping = True
        for end in list(self._waiting):
            end()

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:  # noqa: N802  # the contract's name
        """Charge a card once per idempotency key; see the contract."""
        if self._calls >= self._max_calls:
            raise refusal(Reason.TOO_MANY_CALLS, retry_after_seconds=self._appointments.give_seconds())
        if self._calls < self._max_calls // 2:
            self._appointments.clear()
        self._calls += 1
        began = self._clock()
        try:
            with refusing():
                return await self._charge(request, caller_of(context), context.time_remaining())
        finally:
            self._calls -= 1
            self._appointments.note_end(self._clock() - began)

    async def _charge(self, request: ChargeRequest, caller: Caller, remaining_seconds: float | None) -> ChargeResponse:
        seconds = wait_seconds(remaining_seconds, LONGEST_WAIT_SECONDS)
        if seconds <= 0:
            raise refusal(Reason.DEADLINE_PASSED)  # nobody reads the answer: not even begun
        if self._stopping:
            raise refusal(Reason.SERVER_STOPPING)
        waiting = _Waiting(seconds)
        self._waiting[waiting.end] = None
        try:
            accepting = self._reception.accept(self._intake(request, caller))
            await waiting.until(accepting)
            if not accepting.done():
                raise refusal(Reason.SERVER_STOPPING if self._stopping else Reason.OUTCOME_UNKNOWN)
            try:
                accepted = accepting.result()
            except KeyReused as error:
                raise _key_reused(error.charge) from None
            if accepted.run is not None:
                await waiting.until(accepted.run.ended)
        finally:
            del self._waiting[waiting.end]
            waiting.close()
        return _response(accepted, request.idempotency_key)


class _Waiting:
    """The waiting of a call, which ends at its time or at the server's stop. What it waits for is not disturbed by that.

    asyncio.wait would need a future for the stop that all calls share, and look through all their callbacks each time.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self.end)
        self._is_over = False
        self._woken: asyncio.Future[None] | None = None

    async def until(self, what: "asyncio.Future[Any]") -> None:
        """Return when it is done, or the waiting is over."""
        if what.done() or self._is_over:
            return
        self._woken = self._loop.create_future()
        what.add_done_callback(self._wake)
        try:
            await self._woken
        finally:
            what.remove_done_callback(self._wake)

    def end(self) -> None:
        """Wait no longer."""
        self._is_over = True
        self._wake()

    def close(self) -> None:
        """Let go of the timer."""
        self._timer.cancel()

    def _wake(self, _: object = None) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


def _key_reused(charge: object) -> Refusal:
    """A new key is advised only where the key's charge moves no money: a client that obeys may charge its order again."""
    assert isinstance(charge, Charge), "a key that is used has a charge"
    return refusal(
        Reason.IDEMPOTENCY_KEY_REUSED,
        advice="USE_NEW_KEY" if is_over_without_money(charge) else "ASK_STATUS",
        metadata={"status": ChargeStatus.Name(status_of(charge)).removeprefix("CHARGE_STATUS_")},
    )


def _response(accepted: Accepted, idempotency_key: str) -> ChargeResponse:
    charge = accepted.state
    assert isinstance(charge, Charge), "an accepted charge has events"
    rest = outcome_of(charge, idempotency_key)
    response = ChargeResponse(
        charge_id=charge.operation.request.charge_id,
        status=status_of(charge),
        position=rest.position if rest else charge.position,
        outcome_source=_SOURCES[accepted.source],
    )
    response.requested_at.FromMicroseconds(charge.operation.requested_at)
    match rest:
        case AtRest(outcome=Charged(transaction_id=transaction_id)):
            response.transaction_id = transaction_id
        case AtRest(outcome=ChargeDeclined(reason)):
            response.decline_reason = decline_reason_out(reason)
    return response
