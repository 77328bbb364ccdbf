"""The desk: what operators do about a charge, and what they ask a command server."""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from chargeonce_client.repeating import repeated, streamed
from chargeonce_client.settings import Settings
from chargeonce_client.times import timestamp
from charging.v1.common_pb2 import AnswerKind, Resolution
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    ApproveResolutionResponse,
    AskBankRequest,
    AskBankResponse,
    DeskOutcome,
    GetServerStatusRequest,
    GetServerStatusResponse,
    HoldBackRequest,
    LetGoRequest,
    ListReconciliationsRequest,
    ListReconciliationsResponse,
    ProposeResolutionRequest,
    ProposeResolutionResponse,
    ReconcileBegin,
    ReconcileRequest,
    ReconcileResponse,
    RejectResolutionRequest,
    TryNowRequest,
)

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

    from charging.v1.operator_pb2_grpc import OperatorServiceAsyncStub

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")

# The contract's limit for a message with bytes of a CSV file.
_CSV_BYTES = 12 * 1024
# The service tells every second or so how far it is.
_SILENCE_SECONDS = 60.0
# A bank may give its statement in pages of a hundred lines.
_RECONCILE_SECONDS = 4 * 3600.0


class Desk:
    """What an identity with the role "operate" may do. It is `Client.desk`.

    A step about a charge is recorded with the identity and the reason. It has no key, so it is repeated only if the service
    says that nothing was stored; questions are repeated as those of `Client`. Every method raises

    * Refused, if the service refuses the step: see `reason`, such as NOT_AT_THE_DESK or SECOND_PERSON_NEEDED;
    * Unsettled, if no answer came. Of a step: look at the charge's history before you take it again.
    """

    def __init__(
        self, operators: "OperatorServiceAsyncStub", settings: Settings, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self.operators = operators
        self._patience, self._deadline, self._metadata = settings.patience, settings.deadline, metadata

    # ------------------------------------------------------------ a charge under way
    async def try_now(self, charge_id: str, *, reason: str, patience: float | None = None) -> DeskOutcome:
        """Have the next step of a charge done now, instead of after the pause."""
        request = TryNowRequest(charge_id=charge_id, reason=reason)
        return (await self._step(self.operators.TryNow, request, patience)).outcome

    async def hold_back(self, charge_id: str, *, reason: str, patience: float | None = None) -> DeskOutcome:
        """Hold a charge back: no step is taken at the bank until it is let go. It does not stop the customer's step there."""
        request = HoldBackRequest(charge_id=charge_id, reason=reason)
        return (await self._step(self.operators.HoldBack, request, patience)).outcome

    async def let_go(self, charge_id: str, *, reason: str, patience: float | None = None) -> DeskOutcome:
        """Let a charge go that is held back."""
        request = LetGoRequest(charge_id=charge_id, reason=reason)
        return (await self._step(self.operators.LetGo, request, patience)).outcome

    async def ask_bank(self, charge_id: str, *, patience: float | None = None) -> AskBankResponse:
        """Ask the bank what it knows of a charge's newest operation. It changes nothing.

        The answer names the operation that was asked about: a void that only called its charge off was never at the bank.
        """
        return await self._question(self.operators.AskBank, AskBankRequest(charge_id=charge_id), patience)

    # ------------------------------------------------------------ a charge in review
    async def propose(
        self,
        charge_id: str,
        resolution: "Resolution.ValueType",
        *,
        evidence: str,
        reason: str,
        transaction_id: str = "",
        refund_transaction_id: str = "",
        patience: float | None = None,
    ) -> ProposeResolutionResponse:
        """Propose how the operation in review ended. A second person has to approve it."""
        request = ProposeResolutionRequest(
            charge_id=charge_id,
            reason=reason,
            resolution=resolution,
            transaction_id=transaction_id,
            refund_transaction_id=refund_transaction_id,
            evidence=evidence,
        )
        return await self._step(self.operators.ProposeResolution, request, patience)

    async def reject(self, charge_id: str, proposal: int, *, reason: str, patience: float | None = None) -> DeskOutcome:
        """Turn a proposal down, or take one's own back."""
        request = RejectResolutionRequest(charge_id=charge_id, reason=reason, proposal=proposal)
        return (await self._step(self.operators.RejectResolution, request, patience)).outcome

    async def approve(
        self,
        charge_id: str,
        proposal: int,
        *,
        reason: str,
        overrules: "AnswerKind.ValueType" = AnswerKind.ANSWER_KIND_UNSPECIFIED,
        patience: float | None = None,
    ) -> ApproveResolutionResponse:
        """Approve a proposal of somebody else: the charge then has that outcome for ever.

        The service asks the bank first, which must confirm it. With `overrules` it is approved too if the bank's answer is of
        exactly this kind: that which the last refusal told as "bank_said", such as EXECUTED, or NO_ANSWER of a silent bank.
        """
        request = ApproveResolutionRequest(charge_id=charge_id, reason=reason, proposal=proposal, overrules=overrules)
        return await self._step(self.operators.ApproveResolution, request, patience)

    # ------------------------------------------------------------ the server
    async def server_status(self, *, patience: float | None = None) -> GetServerStatusResponse:
        """Return the state of the command server: its banks, its journal, and all that is limited."""
        return await self._question(self.operators.GetServerStatus, GetServerStatusRequest(), patience)

    async def reconciliations(self, *, patience: float | None = None) -> ListReconciliationsResponse:
        """Return the results of the last reconciliations: the newest of each bank, and those that still differ."""
        return await self._question(self.operators.ListReconciliations, ListReconciliationsRequest(), patience)

    async def reconcile(
        self,
        *,
        requested_from: datetime,
        requested_before: datetime,
        bank: str = "",
        statement: BinaryIO | None = None,
        mapping: str = "",
    ) -> AsyncGenerator[ReconcileResponse, None]:
        """Compare a bank's statement with the journal; yield progress, then findings, and the result as the last message.

        The statement is the bank's own word, or a CSV file with the mapping of its columns. It changes nothing, and is not
        repeated: whoever wants to starts again.
        """
        begin = ReconcileBegin(bank=bank, to=timestamp(requested_before), mapping=mapping)
        getattr(begin, "from").CopyFrom(timestamp(requested_from))  # a keyword of Python

        def requests() -> Iterator[ReconcileRequest]:
            yield ReconcileRequest(begin=begin)
            while statement is not None and (some := statement.read(_CSV_BYTES)):
                yield ReconcileRequest(csv=some)

        call = self.operators.Reconcile(requests(), timeout=_RECONCILE_SECONDS, metadata=self._metadata)
        messages = streamed(call, silence=_SILENCE_SECONDS, is_last=lambda message: message.HasField("result"))
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message

    async def _step(
        self, method: "UnaryUnaryMultiCallable[_Request, _Answer]", request: _Request, patience: float | None
    ) -> _Answer:
        return await self._ask(method, request, patience, is_step=True)

    async def _question(
        self, method: "UnaryUnaryMultiCallable[_Request, _Answer]", request: _Request, patience: float | None
    ) -> _Answer:
        return await self._ask(method, request, patience, is_step=False)

    async def _ask(
        self,
        method: "UnaryUnaryMultiCallable[_Request, _Answer]",
        request: _Request,
        patience: float | None,
        *,
        is_step: bool,
    ) -> _Answer:
        return await repeated(
            # A step waits for a connection: without one, a lost call would not be told from one that was never sent.
            lambda seconds: method(request, timeout=seconds, metadata=self._metadata, wait_for_ready=is_step),
            patience=self._patience if patience is None else patience,
            deadline=self._deadline,
            has_key=not is_step,
        )
