"""What clients are told: how a charge and its operations stand, in the words of the contract."""

from typing import assert_never

from charging.v1.common_pb2 import ChargeStatus, DeclineReason, OperationStatus
from charging.v1.query_pb2 import ChargeStage
from command_service.charge import Charge, is_in_review
from command_service.codec import decline_reason_out
from command_service.events import (
    AuthorizationExpired,
    Authorized,
    Captured,
    ChargeAbandoned,
    ChargeCalledOff,
    Charged,
    ChargeDeclined,
    OperationAbandoned,
    OperationDeclined,
    Refunded,
    ReviewRequired,
    Voided,
)
from command_service.operation import (
    AtRest,
    AwaitingCustomer,
    AwaitingExecution,
    AwaitingToken,
    CallingOff,
    Progress,
    Resolving,
    awaits_customer,
)
from command_service.values import Kind


def status_of(charge: Charge) -> ChargeStatus.ValueType:
    """Return the status of a charge as it stands: what has become of it since it was opened included."""
    if is_in_review(charge):
        return ChargeStatus.CHARGE_STATUS_IN_REVIEW
    book = charge.book
    if not book.authorized:
        return status_told(charge.opening)
    if book.refunded:
        is_all = book.refunded == book.captured
        return ChargeStatus.CHARGE_STATUS_REFUNDED if is_all else ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED
    if book.captured:
        return ChargeStatus.CHARGE_STATUS_CHARGED
    if book.is_open:
        return ChargeStatus.CHARGE_STATUS_AUTHORIZED
    if book.has_lapsed:
        return ChargeStatus.CHARGE_STATUS_AUTHORIZATION_EXPIRED
    return ChargeStatus.CHARGE_STATUS_VOIDED


def status_told(opening: Progress) -> ChargeStatus.ValueType:
    """Return the status that the key of a charge is told, once decided for ever."""
    if awaits_customer(opening):
        return ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION
    if not isinstance(opening, AtRest):
        return ChargeStatus.CHARGE_STATUS_PENDING
    match opening.outcome:
        case Charged():
            return ChargeStatus.CHARGE_STATUS_CHARGED
        case Authorized():
            return ChargeStatus.CHARGE_STATUS_AUTHORIZED
        case ChargeDeclined():
            return ChargeStatus.CHARGE_STATUS_DECLINED
        case ChargeAbandoned():
            return ChargeStatus.CHARGE_STATUS_ABANDONED
        case ChargeCalledOff():
            return ChargeStatus.CHARGE_STATUS_VOIDED
        case ReviewRequired():
            return ChargeStatus.CHARGE_STATUS_IN_REVIEW
        case _:
            raise AssertionError("no operation that opens a charge ends so")


def stage_told(charge: Charge) -> ChargeStage.ValueType:
    """Return what a charge waits for. A step of a customer who is not there is not waited for: it is called off."""
    match charge.newest:
        case AwaitingToken():
            return ChargeStage.CHARGE_STAGE_AWAITING_TOKEN
        case AwaitingExecution():
            return ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION
        case AwaitingCustomer() as newest if awaits_customer(newest):
            return ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER
        case AwaitingCustomer() | CallingOff():
            return ChargeStage.CHARGE_STAGE_CALLING_OFF
        case Resolving():
            return ChargeStage.CHARGE_STAGE_IN_REVIEW
        case AtRest():
            return ChargeStage.CHARGE_STAGE_IN_REVIEW if is_in_review(charge) else ChargeStage.CHARGE_STAGE_AT_REST
        case _:
            assert_never(charge.newest)


def operation_status_told(progress: Progress) -> OperationStatus.ValueType:
    """Return the status that the key of an operation that follows is told, once decided for ever."""
    if not isinstance(progress, AtRest):
        return OperationStatus.OPERATION_STATUS_PENDING
    match progress.outcome:
        case Captured() | Voided() | Refunded() | ChargeCalledOff():
            return OperationStatus.OPERATION_STATUS_EXECUTED
        case OperationDeclined() | AuthorizationExpired() | ChargeDeclined() | Charged() | Authorized():
            # Charged: a void that came too late to call it off. No operation that follows ends Authorized.
            return OperationStatus.OPERATION_STATUS_DECLINED
        case OperationAbandoned() | ChargeAbandoned():
            return OperationStatus.OPERATION_STATUS_ABANDONED
        case ReviewRequired():
            return OperationStatus.OPERATION_STATUS_IN_REVIEW
        case _:
            assert_never(progress.outcome)


def is_undone(progress: Progress) -> bool:
    """Whether an operation that follows was not done and never will be: only then may it be tried again under a new key."""
    return operation_status_told(progress) in (
        OperationStatus.OPERATION_STATUS_DECLINED,
        OperationStatus.OPERATION_STATUS_ABANDONED,
    )


def decline_reason_told(progress: Progress) -> DeclineReason.ValueType:
    """Return the reason for which an operation was not done; unspecified if it was, or it is not known yet."""
    match progress:
        case AtRest(outcome=ChargeDeclined(reason) | OperationDeclined(reason)):
            return decline_reason_out(reason)
        case AtRest(outcome=AuthorizationExpired()):
            return DeclineReason.DECLINE_REASON_AUTHORIZATION_EXPIRED
        case AtRest(operation, outcome=Charged()) if operation.kind is Kind.VOID:
            return DeclineReason.DECLINE_REASON_ALREADY_CHARGED
        case _:
            return DeclineReason.DECLINE_REASON_UNSPECIFIED


def transaction_id_told(progress: Progress) -> str:
    """Return the bank's id of an operation's own transaction; empty if it was not executed."""
    match progress:
        case AtRest(
            operation,
            outcome=Charged(transaction_id=made)
            | Authorized(transaction_id=made)
            | Captured(transaction_id=made)
            | Voided(transaction_id=made)
            | Refunded(transaction_id=made) as outcome,
        ) if operation.kind is not Kind.VOID or isinstance(outcome, Voided):
            return made
        case _:
            return ""
