"""The desk over gRPC: what operators do about a charge, and what they ask the server.

A step goes through the core's `decide` like any message, and into the charge's stream. It runs in a task that goes on if the
operator's client leaves: whether it was stored is then told by the charge's history.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import structlog

from charging.v1 import operator_pb2_grpc
from charging.v1.common_pb2 import OperationKind
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    ApproveResolutionResponse,
    AskBankRequest,
    AskBankResponse,
    DeskOutcome,
    GetServerStatusRequest,
    GetServerStatusResponse,
    HoldBackRequest,
    HoldBackResponse,
    LetGoRequest,
    LetGoResponse,
    ListReconciliationsRequest,
    ListReconciliationsResponse,
    ProposeResolutionRequest,
    ProposeResolutionResponse,
    ReconcileRequest,
    ReconcileResponse,
    RejectResolutionRequest,
    RejectResolutionResponse,
    TryNowRequest,
    TryNowResponse,
)
from chassis.caller import ANYBODY, Caller, caller_of
from chassis.deadlines import wait_seconds
from chassis.refusals import Violation
from chassis.shares import Excess, Rates, Shares
from chassis.tasks import Tasks
from command_service.bank.lines import Lines
from command_service.charge import Charge, at_the_bank, is_at_rest, is_in_review, needs_banks_word
from command_service.codec import answer_kind_in, answer_kind_out, operation_id_of, resolution_in
from command_service.desk_rules import Wanted, WantedApproval, WantedStep, refund_key
from command_service.events import (
    HeldBack,
    LetGo,
    ResolutionApproved,
    ResolutionProposed,
    ResolutionRejected,
    TryRequested,
)
from command_service.explaining import explaining
from command_service.failures import ChargeUnknown
from command_service.journal import Journal
from command_service.reception import BEAT_SECONDS
from command_service.runner import Runner
from command_service.screening import DeskRequest, faults_of_step
from command_service.statuses import status_of
from command_service.streams import Handled, Snapshot, Streams
from command_service.values import Answer, Contradiction, Executed, Kind, NoAnswer, kind_of
from contract.errors import Reason
from contract.errors import command_refusal as refusal

log = structlog.get_logger()
T = TypeVar("T")
SimpleStep = TryRequested | HeldBack | LetGo | ResolutionRejected

# People and their scripts. Calls for charges have a limit of their own, so that a silent bank does not keep operators out.
CALLS_AT_ONCE = 100
# A call without a deadline, or with a very late one, waits no longer: the bank may be asked, and has its own deadline.
LONGEST_WAIT_SECONDS = 60.0
RETRY_SECONDS = 1.0
BANK_RETRY_SECONDS = 5.0


class Reconciler(Protocol):
    """Compares banks' statements with the journal."""

    def run(self, requests: AsyncIterator[ReconcileRequest]) -> AsyncGenerator[ReconcileResponse, None]:
        """Do one comparison, by the requests of one call. Closing it ends the work."""
        ...

    async def last(self) -> ListReconciliationsResponse:
        """Return the last results."""
        ...


class Room(NamedTuple):
    """The limits of the calls of operators."""

    calls: Shares
    rates: Rates


class OperatorService(operator_pb2_grpc.OperatorServiceServicer):
    """Takes operators' calls."""

    def __init__(
        self,
        journal: Journal,
        runner: Runner,
        lines: Lines,
        room: Room,
        wait_until: Callable[[float], Awaitable[None]],
        *,
        status: Callable[[str], GetServerStatusResponse] = lambda _: GetServerStatusResponse(),
        reconciler: Reconciler | None = None,
    ) -> None:
        """`wait_until` waits until a time of the loop's clock. `status` tells the state, to a tenant or, "", of all."""
        self._journal = journal
        self._streams = Streams(journal, runner.reload)
        self._runner = runner
        self._lines = lines
        self._room = room
        self._wait_until = wait_until
        self._status = status
        self._reconciler = reconciler
        self._is_reconciling = False
        self._tasks = Tasks()
        self._stopping = asyncio.get_running_loop().create_future()

    @property
    def limits(self) -> Mapping[str, Shares]:
        """What is limited, by its name in the metrics."""
        return {"operator_calls": self._room.calls}

    def stop(self) -> None:
        """End every waiting call now. What it asked for may be stored all the same."""
        if not self._stopping.done():
            self._stopping.set_result(None)

    async def close(self) -> None:
        """End the steps that are being taken. It is as safe as a crash: a step is stored as a whole, or not at all."""
        await self._tasks.close()

    # ------------------------------------------------------------ steps
    async def TryNow(self, request: TryNowRequest, context: Any) -> TryNowResponse:  # noqa: N802  # the contract's names
        """Have the next step done now; see the contract, as for all methods here."""
        step = TryRequested(caller_of(context).actor, request.reason)
        return TryNowResponse(outcome=await self._take(request, context, step))

    async def HoldBack(self, request: HoldBackRequest, context: Any) -> HoldBackResponse:  # noqa: N802
        """Take no further step of a charge."""
        step = HeldBack(caller_of(context).actor, request.reason)
        return HoldBackResponse(outcome=await self._take(request, context, step))

    async def LetGo(self, request: LetGoRequest, context: Any) -> LetGoResponse:  # noqa: N802
        """Go on with a charge that is held back."""
        step = LetGo(caller_of(context).actor, request.reason)
        return LetGoResponse(outcome=await self._take(request, context, step))

    async def RejectResolution(  # noqa: N802
        self, request: RejectResolutionRequest, context: Any
    ) -> RejectResolutionResponse:
        """Turn a proposal down."""
        step = ResolutionRejected(caller_of(context).actor, request.reason, request.proposal)
        return RejectResolutionResponse(outcome=await self._take(request, context, step))

    async def ProposeResolution(  # noqa: N802
        self, request: ProposeResolutionRequest, context: Any
    ) -> ProposeResolutionResponse:
        """Propose how the operation in review ended."""

        async def propose(caller: Caller) -> ProposeResolutionResponse:
            step = ResolutionProposed(
                caller.actor,
                request.reason,
                resolution_in(request.resolution),
                request.transaction_id,
                request.refund_transaction_id,
                request.evidence,
            )
            snapshot = await self._handle(request.charge_id, WantedStep(step, caller.tenant))
            proposal = _charge(snapshot).desk.proposal
            assert proposal is not None, "it was stored, or is open already"
            return ProposeResolutionResponse(outcome=self._outcome(snapshot), proposal=proposal.position)

        return await self._call(request, context, propose)

    async def ApproveResolution(  # noqa: N802
        self, request: ApproveResolutionRequest, context: Any
    ) -> ApproveResolutionResponse:
        """Approve a proposal, once the bank was asked."""

        async def approve(caller: Caller) -> ApproveResolutionResponse:
            charge_id, proposal = request.charge_id, request.proposal
            charge = _charge(await self._own(charge_id, caller.tenant))
            answer: Answer = NoAnswer()
            if needs_banks_word(charge, caller.actor, request.reason, proposal):
                answer = await self._look_up(charge)
            wanted = WantedApproval(
                caller.actor,
                request.reason,
                proposal,
                answer_kind_in(request.overrules) if request.overrules else None,
                answer,
                operation_id_of(charge_id, Kind.REFUND, refund_key(proposal)),
                caller.tenant,
            )
            snapshot = await self._handle(charge_id, wanted)
            approved = _charge(snapshot).desk.closed
            assert isinstance(approved, ResolutionApproved), "it was stored, or had been"
            bank_said = answer_kind_out(approved.bank_said)
            return ApproveResolutionResponse(outcome=self._outcome(snapshot), bank_said=bank_said)

        return await self._call(request, context, approve)

    async def AskBank(self, request: AskBankRequest, context: Any) -> AskBankResponse:  # noqa: N802
        """Ask the bank what it knows."""

        async def ask(caller: Caller) -> AskBankResponse:
            charge = _charge(await self._own(request.charge_id, caller.tenant))
            answer, asked = await self._look_up(charge), at_the_bank(charge).operation
            said = AskBankResponse(
                bank_said=answer_kind_out(kind_of(answer)),
                operation=OperationKind.Value(f"OPERATION_KIND_{asked.kind.name}"),
                idempotency_key=asked.idempotency_key,
            )
            if isinstance(answer, Executed | Contradiction):
                said.transaction_id = answer.transaction_id
            if isinstance(answer, Contradiction):
                said.differing_fields[:] = answer.evidence.fields
            return said

        return await self._call(request, context, ask)

    async def _take(self, request: DeskRequest, context: Any, step: SimpleStep) -> DeskOutcome:
        async def take(caller: Caller) -> DeskOutcome:
            return self._outcome(await self._handle(request.charge_id, WantedStep(step, caller.tenant)))

        return await self._call(request, context, take)

    async def _handle(self, charge_id: str, wanted: Wanted) -> Snapshot:
        """Decide about a step and store it. Raises CommandRefused, NotNow, Unreadable or KeepsMoving."""
        handled = await self._streams.handle(await self._own(charge_id, wanted.tenant), wanted)
        self._hand_over(handled)
        if handled.has_stored:
            step = wanted.step if isinstance(wanted, WantedStep) else _charge(handled.snapshot).desk.closed
            assert step is not None, "an approval closes its proposal"
            log.info("a step of the desk", charge_id=charge_id, step=type(step).__name__, actor=step.actor)
        return handled.snapshot

    def _hand_over(self, handled: Handled) -> None:
        """Have the charge's loop go on from there at once. If it has stopped by a fault of ours, it starts again."""
        snapshot = handled.snapshot
        charge, charge_id = _charge(snapshot), snapshot.charge_id
        if is_in_review(charge):
            return
        run = self._runner.find(charge_id)
        # One at rest has a run for a moment too: by its end all learn of the outcome.
        if run is None and (handled.has_stored if is_at_rest(charge) else self._journal.drives(charge_id)):
            run = self._runner.run(snapshot, was_in_journal=True)
        if run is not None:
            run.move_on(snapshot)
            run.wake()
            self._tasks.start(self._runner.drive(run))

    async def _own(self, charge_id: str, tenant: str) -> Snapshot:
        """Return a charge that the operator may see.

        Raises ChargeUnknown, on the beat on which all unknown ones are answered.
        """
        clock = asyncio.get_running_loop().time
        came_at = clock()
        snapshot = await self._runner.load(charge_id, for_tenant=tenant or None)
        if not isinstance(snapshot.state, Charge):
            await self._wait_until(came_at + max(1, math.ceil((clock() - came_at) / BEAT_SECONDS)) * BEAT_SECONDS)
            raise ChargeUnknown
        return snapshot

    async def _look_up(self, charge: Charge) -> Answer:
        """Ask the bank about the operation in review, or else the newest one that was for it. Never raises."""
        asked = at_the_bank(charge)
        token = None if self._journal.restored else asked.token  # a restored journal may have forgotten a later one
        line = self._lines.at(asked.operation.request.bank)
        answer = await line.look_up(asked.operation, token)
        if isinstance(answer, NoAnswer) and answer.retry_after_seconds is None and line.can_look_up:
            return replace(answer, retry_after_seconds=BANK_RETRY_SECONDS)
        return answer

    def _outcome(self, snapshot: Snapshot) -> DeskOutcome:
        charge = _charge(snapshot)
        return DeskOutcome(
            charge_id=snapshot.charge_id,
            status=status_of(charge),
            held_back=charge.desk.is_held_back,
            position=charge.position,
            journal_id=self._journal.journal_id,
        )

    # ------------------------------------------------------------ the server
    async def GetServerStatus(  # noqa: N802
        self,
        request: GetServerStatusRequest,  # noqa: ARG002  # it says nothing
        context: Any,
    ) -> GetServerStatusResponse:
        """Tell the server's state."""
        caller = caller_of(context)
        with self._within_the_limits(caller):
            return self._status("" if _sees_all(caller) else caller.tenant)

    async def Reconcile(  # noqa: N802
        self, requests: AsyncIterator[ReconcileRequest], context: Any
    ) -> AsyncIterator[ReconcileResponse]:
        """Compare a bank's statement with the journal."""
        _check_sees_all(caller_of(context))
        if self._reconciler is None:
            raise refusal(Reason.BANK_UNREACHABLE)
        if self._is_reconciling:
            raise refusal(Reason.TOO_MANY_CALLS, retry_after_seconds=RETRY_SECONDS)
        self._is_reconciling = True
        try:
            with explaining():
                async with contextlib.aclosing(self._reconciler.run(requests)) as responses:
                    async for response in responses:
                        yield response
        finally:
            self._is_reconciling = False

    async def ListReconciliations(  # noqa: N802
        self,
        request: ListReconciliationsRequest,  # noqa: ARG002  # it says nothing
        context: Any,
    ) -> ListReconciliationsResponse:
        """Return the last results."""
        _check_sees_all(caller_of(context))
        return ListReconciliationsResponse() if self._reconciler is None else await self._reconciler.last()

    # ------------------------------------------------------------ a call
    async def _call(self, request: DeskRequest, context: Any, work: Callable[[Caller], Coroutine[Any, Any, T]]) -> T:
        """Do what a call asks for, within the limits and the call's time."""
        caller = caller_of(context)
        with self._within_the_limits(caller):
            if faults := faults_of_step(request):
                raise refusal(Reason.INVALID_REQUEST, violations=[Violation(*fault) for fault in faults])
            with explaining():
                return await self._within(wait_seconds(context.time_remaining(), LONGEST_WAIT_SECONDS), work(caller))

    @contextlib.contextmanager
    def _within_the_limits(self, caller: Caller) -> Iterator[None]:
        match self._room.calls.take(caller.tenant):
            case None:
                pass
            case Excess.SERVER:
                raise refusal(Reason.TOO_MANY_CALLS, retry_after_seconds=RETRY_SECONDS)
            case Excess.TENANT:
                raise refusal(Reason.TENANT_LIMIT, retry_after_seconds=RETRY_SECONDS)
        try:
            if (return_seconds := self._room.rates.take(caller.tenant)) is not None:
                raise refusal(Reason.TENANT_LIMIT, retry_after_seconds=return_seconds)
            yield
        finally:
            self._room.calls.give_back(caller.tenant)

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        if seconds <= 0 or self._stopping.done():
            work.close()
            raise refusal(Reason.SERVER_STOPPING if self._stopping.done() else Reason.DEADLINE_PASSED)
        task = self._tasks.start(work)
        await asyncio.wait({task, self._stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise refusal(Reason.SERVER_STOPPING if self._stopping.done() else Reason.OUTCOME_UNKNOWN)


def _charge(snapshot: Snapshot) -> Charge:
    assert isinstance(snapshot.state, Charge), "a charge that was found has events"
    return snapshot.state


def _sees_all(caller: Caller) -> bool:
    """Whether the caller may see the charges of all tenants together."""
    return not caller.tenant or caller is ANYBODY


def _check_sees_all(caller: Caller) -> None:
    if not _sees_all(caller):
        raise refusal(Reason.PERMISSION_DENIED)
