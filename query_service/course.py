"""The course of a charge: what its events make of it, one after another. Pure: no I/O, no clock, no decision.

A charge's events are operations in a row: one that opens it, and those that follow. At most one is under way, with one
exception. A void may come before the end of the operation that opens the charge, to call it off. From then on the void waits
for that end: after an authorisation it goes on by itself, and else it ends with it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1 import journal_pb2
from charging.v1.common_pb2 import (
    ChargeStatus,
    CustomerAction,
    DeclineReason,
    OperationKind,
)
from query_service.operation import OperationCourse
from query_service.schema import (
    AT_REST,
    AWAITING_CUSTOMER,
    AWAITING_EXECUTION,
    AWAITING_TOKEN,
    CALLING_OFF,
    CALLING_OFF_TOKEN,
    CHARGE_MOVES_FROM,
    RESOLVING,
    Charge,
    Operation,
    Step,
)
from query_service.words import (
    ABANDONED,
    ASKS_CUSTOMER,
    AUTHORIZATION_EXPIRED,
    AUTHORIZE,
    AUTHORIZED,
    AUTOMATIC,
    CALLED_OFF,
    CAPTURE,
    CHARGE,
    CHARGED,
    DECLINED,
    DESK_STEPS,
    EXECUTED,
    GIVEN_UP,
    IN_REVIEW,
    MANUAL,
    NOT_DONE,
    NOT_IN_REVIEW,
    PARTIALLY_REFUNDED,
    PENDING,
    REFUND,
    REFUNDED,
    REQUIRES_ACTION,
    UNDER_WAY,
    UNKNOWN,
    VOID,
    VOIDED,
    DeskStepName,
    EventName,
    Moved,
    Undone,
)

_OFF_SESSION = Charge._fields.index("off_session")

_REQUESTED_AT = Operation._fields.index("requested_at")
_NO_PROPOSAL, _NO_APPROVAL = journal_pb2.ResolutionProposed(), journal_pb2.ResolutionApproved()

Requested = journal_pb2.CaptureRequested | journal_pb2.VoidRequested | journal_pb2.RefundRequested


class StreamBroken(Exception):
    """A charge's stream skips a version, or an event cannot follow the events before it, or names no time that can be told.

    The text names the position.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f"the record at position {position} does not follow its charge's stream")


class Record(NamedTuple):
    """An event as stored, verified against the chain. Times are microseconds since 1970."""

    position: int
    charge_id: bytes
    version: int
    recorded_at: int
    chain: bytes
    event: bytes


class Standing(NamedTuple):
    """How a charge stands: its row, and those of its newest operations, two at most, since no other can change."""

    charge: Charge
    operations: Sequence[Operation]


@dataclass(slots=True)
class Course:
    """The course of a charge as far as its events are folded.

    It is one object a charge, written over with each event: with a value for each event the fold took a fifth longer. Rows are
    plain tuples in the order of their columns: named ones, made twice a charge, would take a tenth of the time.

    `request` are the columns of the charge's row that never change. `operation` is the one under way, or the last one at rest.
    `void` is a void that waits for the end of the operation that it calls off. `operations` are those that can change or have
    begun since, in the order of their requests.
    """

    request: tuple[Any, ...]
    tenant: int
    requested_position: int
    user_id: str
    currency_code: str
    minor_units: int
    requested_at: int
    operation: OperationCourse
    operations: list[OperationCourse]
    version: int
    position: int
    updated_at: int
    status: ChargeStatus.ValueType = PENDING
    stage: int = AWAITING_TOKEN
    authorized_minor_units: int = 0
    captured_minor_units: int = 0
    refunded_minor_units: int = 0
    held_minor_units: int = 0
    hold_expires_at: int = 0
    action_url: str = ""
    action_expires_at: int = 0
    stage_since: int = 0
    held_back: int = 0
    proposal: int = 0
    proposed_by: str = ""
    void: OperationCourse | None = None

    @classmethod
    def begun(cls, record: Record, request: journal_pb2.ChargeRequested, tenants: Mapping[str, int]) -> "Course":
        """Begin a charge."""
        position, charge_id, version, at, _, _ = record
        tenant, card, amount = tenants[request.tenant], request.card, request.amount
        key, user_id = request.idempotency_key, request.user_id
        minor_units, currency_code = amount.minor_units, amount.currency_code
        kind, capture = (AUTHORIZE, MANUAL) if request.capture == MANUAL else (CHARGE, AUTOMATIC)
        columns = (
            tenant,
            position,
            charge_id,
            key,
            user_id,
            card.token,
            card.brand,
            card.last4,
            card.fingerprint,
            minor_units,
            currency_code,
            capture,
            _microseconds(request.not_after, position) if request.HasField("not_after") else 0,
            request.description,
            json.dumps(dict(request.metadata), sort_keys=True, ensure_ascii=False) if request.metadata else "{}",
            at,
            request.bank,
            int(request.off_session),
        )
        asked = (tenant, position, 0, kind, key, minor_units, request.actor, "", 0, at)
        opening = OperationCourse(asked, 0, kind, minor_units, at)
        place = version, position, at
        begun = cls(columns, tenant, position, user_id, currency_code, minor_units, at, opening, [opening], *place)
        begun.stage_since = at
        return begun

    @classmethod
    def resumed(cls, standing: Standing) -> "Course":
        """Go on with a charge as an earlier batch left it."""
        charge, operations = standing.charge, [OperationCourse.resumed(row) for row in standing.operations]
        newest = operations[-1]
        # A void that waits for the end of the opening operation: both are under way.
        is_called_off = len(operations) > 1 and operations[0].status == UNDER_WAY
        return cls(
            charge[:CHARGE_MOVES_FROM],
            charge.tenant,
            charge.requested_position,
            charge.user_id,
            charge.currency_code,
            charge.minor_units,
            charge.requested_at,
            operations[0] if is_called_off else newest,
            operations,
            charge.version,
            charge.position,
            charge.updated_at,
            charge.status,
            charge.stage,
            charge.authorized_minor_units,
            charge.captured_minor_units,
            charge.refunded_minor_units,
            charge.held_minor_units,
            charge.hold_expires_at,
            charge.action_url,
            charge.action_expires_at,
            charge.stage_since,
            charge.held_back,
            charge.proposal,
            charge.proposed_by,
            newest if is_called_off else None,
        )

    def row(self) -> tuple[Any, ...]:
        """Make the row of the charge as it stands now."""
        asks = self.status == REQUIRES_ACTION
        return (
            *self.request,
            self.status,
            self.updated_at,
            self.version,
            self.position,
            self.stage,
            self.authorized_minor_units,
            self.captured_minor_units,
            self.refunded_minor_units,
            self.held_minor_units,
            self.hold_expires_at if self.held_minor_units else 0,
            self.action_url if asks else "",
            self.action_expires_at if asks else 0,
            max(self.stage_since, self.requested_at),
            self.held_back,
            self.proposal,
            self.proposed_by,
            int(self.operations[-1].status == GIVEN_UP),
        )

    def move(self, name: EventName, event: journal_pb2.Event, record: Record) -> int:
        """Write down an event, which the grammar allows here. Returns the number of the operation that it belongs to.

        Raises StreamBroken if the charge's money does not allow the operation that the event begins, or if an operator's step
        cannot follow those before it.
        """
        operation = self.operation
        match name:
            case "token_issued":
                self.stage = AWAITING_EXECUTION
            case "charged" | "authorized" | "captured" | "voided" | "refunded":
                self._execute(name, event, record.position)
            case "token_expired":
                self.stage = AWAITING_TOKEN
            case "not_after_passed":
                self._call_off()
            case "action_required":
                self._ask_customer(event.action_required.action, record.position)
            case "charge_requested":
                raise StreamBroken(record.position)
            case "capture_requested":
                operation = self._begin(
                    CAPTURE, event.capture_requested, record, is_final=event.capture_requested.final
                )
            case "void_requested":
                operation = self._begin(VOID, event.void_requested, record, event.void_requested.reason)
            case "refund_requested":
                operation = self._begin(REFUND, event.refund_requested, record, event.refund_requested.reason)
            case (
                "try_requested"
                | "held_back"
                | "let_go"
                | "resolution_proposed"
                | "resolution_rejected"
                | "resolution_approved"
            ):
                operation = self._at_the_desk(name, event, record.position)
            case _:
                self._leave_undone(name, event)
        self.version, self.position, self.updated_at = record.version, record.position, record.recorded_at
        operation.updated_at = record.recorded_at
        if self.stage == AT_REST:
            if name not in DESK_STEPS:
                self.stage_since = record.recorded_at
            if self.void is not None:
                self._go_on_with(self.void)
            if self.stage == AT_REST:
                self.held_back = 0
        return operation.number

    def step_of(self, name: DeskStepName, event: journal_pb2.Event, record: Record) -> tuple[Any, ...]:
        """Make the row of an operator's step."""
        step: Any = getattr(event, name)
        said = event.resolution_proposed if name == "resolution_proposed" else _NO_PROPOSAL
        found = event.resolution_approved if name == "resolution_approved" else _NO_APPROVAL
        return Step(
            self.tenant,
            self.requested_position,
            record.version,
            record.position,
            record.recorded_at,
            step.actor,
            step.reason,
            said.resolution,
            said.transaction_id,
            said.refund_transaction_id,
            said.evidence,
            found.bank_said,
            int(found.contradicts_bank),
        )

    def _at_the_desk(self, name: DeskStepName, event: journal_pb2.Event, position: int) -> OperationCourse:
        """An operator takes a step about the operation under way or in review: return that operation.

        A void that called off an operation in review is in review with it, and what is resolved is the other one.
        """
        operation, void = self.operation, self.void
        if len(self.operations) > 1 and self.operations[-2].status == UNKNOWN:
            operation, void = self.operations[-2:]
        match name:
            case "try_requested" | "held_back" if not self.held_back:
                self.held_back = int(name == "held_back")
            case "let_go" if self.held_back:
                self.held_back = 0
            case "resolution_proposed" if self.status == IN_REVIEW and not self.proposal:
                self.proposal, self.proposed_by = position, event.resolution_proposed.actor
            case "resolution_rejected" if self.proposal and self.proposal == event.resolution_rejected.proposal:
                self.proposal, self.proposed_by = 0, ""
            case "resolution_approved" if (
                self.proposal
                and self.proposal == event.resolution_approved.proposal
                and self.proposed_by != event.resolution_approved.actor
            ):
                self.proposal, self.proposed_by = 0, ""
                self.operation, self.void = operation, void
                self._resolve()
            case _:
                raise StreamBroken(position)
        return operation

    def _resolve(self) -> None:
        """Two people have found the outcome of the operation in review: it is the next event. Until then it is as before."""
        self.stage = RESOLVING
        for operation in (self.operation, self.void):
            if operation is not None:
                operation.status, operation.review_reason = UNDER_WAY, NOT_IN_REVIEW
        if self.refunded_minor_units:
            self.status = self._status_after_refund()
        elif self.captured_minor_units:
            self.status = CHARGED
        else:
            self.status = AUTHORIZED if self.held_minor_units else PENDING

    def _begin(
        self,
        kind: OperationKind.ValueType,
        request: Requested,
        record: Record,
        reason: str = "",
        *,
        is_final: bool = False,
    ) -> OperationCourse:
        """Begin an operation that follows. A void that comes before the end of the opening operation calls it off."""
        number, minor_units, at = self.operations[-1].number + 1, request.amount.minor_units, record.recorded_at
        charge, key = (self.tenant, self.requested_position), request.idempotency_key
        asked = (*charge, number, kind, key, minor_units, request.actor, reason, int(is_final), at)
        begun = OperationCourse(asked, number, kind, minor_units, at, is_final)
        if self.stage != AT_REST:
            if self.void is not None:
                raise StreamBroken(record.position)
            self._call_off()
            self.void = begun
        else:
            is_refund = kind == REFUND
            left = self.captured_minor_units - self.refunded_minor_units if is_refund else self.held_minor_units
            if self.status == IN_REVIEW or not 0 < minor_units <= left:
                raise StreamBroken(record.position)
            self.stage, self.operation, self.stage_since = AWAITING_TOKEN, begun, at
        self.operations.append(begun)
        return begun

    def _ask_customer(self, action: CustomerAction, position: int) -> None:
        """The bank waits for a step of the customer. Nobody is told so if the customer is not there: it is called off."""
        self.stage = AWAITING_CUSTOMER
        if not self.request[_OFF_SESSION]:
            self.status, self.operation.status = REQUIRES_ACTION, ASKS_CUSTOMER
            self.action_url = action.url
            self.action_expires_at = _microseconds(action.expires_at, position) if action.HasField("expires_at") else 0

    def _call_off(self) -> None:
        """Have the bank close the transaction. A charge that is being called off already stays at its stage."""
        if self.stage == AWAITING_TOKEN:
            self.stage = CALLING_OFF
        elif self.stage in (AWAITING_EXECUTION, AWAITING_CUSTOMER):
            self.stage = CALLING_OFF_TOKEN
        self.status, self.operation.status = PENDING, UNDER_WAY

    def _execute(self, name: Moved, event: journal_pb2.Event, position: int) -> None:
        """The bank has executed the operation under way: note its transaction, and the money."""
        operation = self.operation
        minor_units = operation.minor_units
        self.stage, operation.status = AT_REST, EXECUTED
        match name:
            case "charged":
                operation.transaction_id = event.charged.transaction_id
                self.authorized_minor_units = self.captured_minor_units = minor_units
                self.status = CHARGED
            case "authorized":
                operation.transaction_id = event.authorized.transaction_id
                self.authorized_minor_units = self.held_minor_units = minor_units
                self.status = AUTHORIZED
                if event.authorized.HasField("expires_at"):
                    self.hold_expires_at = _microseconds(event.authorized.expires_at, position)
            case "captured":
                operation.transaction_id = event.captured.transaction_id
                self.captured_minor_units += minor_units
                self.held_minor_units = 0 if operation.is_final else self.held_minor_units - minor_units
                self.status = PARTIALLY_REFUNDED if self.refunded_minor_units else CHARGED
            case "voided":
                operation.transaction_id = event.voided.transaction_id
                self._let_go(VOIDED)
            case "refunded":
                operation.transaction_id = event.refunded.transaction_id
                self.refunded_minor_units += minor_units
                self.status = self._status_after_refund()
            case _:
                assert_never(name)

    def _status_after_refund(self) -> ChargeStatus.ValueType:
        return REFUNDED if self.refunded_minor_units == self.captured_minor_units else PARTIALLY_REFUNDED

    def _leave_undone(self, name: Undone, event: journal_pb2.Event) -> None:
        """The operation under way has ended unexecuted, or people look into it: note the reason."""
        operation = self.operation
        self.stage = AT_REST
        match name:
            case "charge_declined":
                self.status, operation.status = DECLINED, NOT_DONE
                operation.decline_reason = event.charge_declined.reason
            case "review_required":
                self.status, operation.status = IN_REVIEW, UNKNOWN
                operation.review_reason = event.review_required.reason
            case "charge_abandoned":
                self.status, operation.status = ABANDONED, GIVEN_UP
            case "charge_called_off":
                self.status, operation.status = VOIDED, CALLED_OFF
            case "authorization_expired":
                operation.status = NOT_DONE
                operation.decline_reason = DeclineReason.DECLINE_REASON_AUTHORIZATION_EXPIRED
                self._let_go(AUTHORIZATION_EXPIRED)
            case "operation_declined":
                operation.status = NOT_DONE
                operation.decline_reason = event.operation_declined.reason
            case "operation_abandoned":
                operation.status = GIVEN_UP
            case _:
                assert_never(name)

    def _let_go(self, status: ChargeStatus.ValueType) -> None:
        """Nothing is held any more. A charge of which something was captured keeps its status."""
        self.held_minor_units = 0
        if not self.captured_minor_units:
            self.status = status

    def _go_on_with(self, void: OperationCourse) -> None:
        """The operation that a void called off has ended: the void goes on if money is held now, and else ends as well."""
        opening = self.operation
        self.operation, self.void = void, None
        match self.status:
            case ChargeStatus.CHARGE_STATUS_AUTHORIZED:
                self.stage, self.stage_since = AWAITING_TOKEN, void.asked[_REQUESTED_AT]
                return
            case ChargeStatus.CHARGE_STATUS_VOIDED:
                void.status = EXECUTED
            case ChargeStatus.CHARGE_STATUS_CHARGED:
                void.status = NOT_DONE
                void.decline_reason = DeclineReason.DECLINE_REASON_ALREADY_CHARGED
            case _:  # Declined, abandoned or in review: so is the void.
                void.status, void.decline_reason = opening.status, opening.decline_reason
                void.review_reason = opening.review_reason
        void.updated_at = self.updated_at


def _microseconds(time: Timestamp, position: int) -> int:
    try:
        return time.ToMicroseconds()
    except ValueError:
        raise StreamBroken(position) from None
