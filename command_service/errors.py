"""From a call's failure to its client's error."""

import contextlib
from collections.abc import Iterator, Mapping

from charging.v1.common_pb2 import ChargeStatus, OperationStatus
from chassis.refusals import Refusal, Violation
from chassis.telemetry import log_unexpected
from command_service.charge import Charge, is_over_without_money
from command_service.failures import (
    BankUnreachable,
    CallFailed,
    ChargeInReview,
    ChargeUnknown,
    CommandRefused,
    DoesNotFit,
    ImpossibleEvent,
    InvalidRequest,
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    KeyReused,
    MoreThanIsLeft,
    NotNow,
    OperationUnderWay,
    PossibleDuplicate,
    TooManyUnfinished,
    UnknownEvent,
    Unreadable,
)
from command_service.statuses import is_undone, operation_status_told, status_of
from command_service.values import Kind
from contract.errors import Reason
from contract.errors import command_refusal as refusal

# Every leaf of the tree of failures has a row here.
_REASONS: Mapping[type[CallFailed], Reason] = {
    InvalidRequest: Reason.INVALID_REQUEST,
    KeyReused: Reason.IDEMPOTENCY_KEY_REUSED,
    PossibleDuplicate: Reason.POSSIBLE_DUPLICATE,
    ChargeUnknown: Reason.CHARGE_NOT_FOUND,
    ChargeInReview: Reason.CHARGE_IN_REVIEW,
    DoesNotFit: Reason.OPERATION_DOES_NOT_FIT,
    MoreThanIsLeft: Reason.MORE_THAN_IS_LEFT,
    BankUnreachable: Reason.BANK_UNREACHABLE,
    TooManyUnfinished: Reason.TOO_MANY_UNFINISHED,
    OperationUnderWay: Reason.OPERATION_UNDER_WAY,
    JournalFull: Reason.JOURNAL_FULL,
    JournalBusy: Reason.JOURNAL_BUSY,
    JournalCorrupt: Reason.JOURNAL_CORRUPT,
    UnknownEvent: Reason.JOURNAL_CORRUPT,
    ImpossibleEvent: Reason.JOURNAL_CORRUPT,
}


def reason_of(failure: CallFailed) -> Reason:
    """Return a failure's reason, for the client."""
    return _REASONS[type(failure)]


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn a call's failure into its client's error."""
    try:
        yield
    except CommandRefused as failure:
        raise _refused(failure) from None
    except NotNow as failure:
        raise refusal(reason_of(failure), retry_after_seconds=failure.retry_after_seconds) from None
    except Unreadable as failure:
        log_unexpected("the journal cannot be read here", failure, position=getattr(failure, "position", None))
        raise refusal(reason_of(failure)) from failure


def _refused(failure: CommandRefused) -> Refusal:
    """Make the error of a refused command; its metadata name what the client needs for its next step."""
    reason = reason_of(failure)
    match failure:
        case InvalidRequest():
            return refusal(reason, violations=[Violation(*fault) for fault in failure.faults])
        case KeyReused(charge=Charge() as charge, progress=None):
            # A client that obeys may charge its order again, so a new key is advised only where no money moves.
            advice = "USE_NEW_KEY" if is_over_without_money(charge) else "ASK_STATUS"
            return refusal(reason, advice=advice, metadata={"status": _status(charge)})
        case KeyReused(progress=progress) if progress is not None:
            advice = "USE_NEW_KEY" if is_undone(progress) else "ASK_STATUS"
            name = OperationStatus.Name(operation_status_told(progress)).removeprefix("OPERATION_STATUS_")
            return refusal(reason, advice=advice, metadata={"status": name})
        case PossibleDuplicate():
            return refusal(reason, metadata={"charge_id": failure.charge_id})
        case MoreThanIsLeft():
            return refusal(reason, metadata={"left": failure.left})
        case DoesNotFit(charge=Charge() as charge, kind=kind):
            return refusal(reason, metadata={"status": _status(charge), **_instead(charge, kind)})
        case _:
            return refusal(reason)


def _status(charge: Charge) -> str:
    return ChargeStatus.Name(status_of(charge)).removeprefix("CHARGE_STATUS_")


def _instead(charge: Charge, kind: Kind | None) -> dict[str, str]:
    """Name the operation that does what the client wanted, where another one does: to take money back."""
    match kind:
        case Kind.REFUND if charge.book.is_open:
            return {"instead": "VOID"}
        case Kind.VOID if charge.book.left(Kind.REFUND):
            return {"instead": "REFUND"}
        case _:  # A capture wants the opposite.
            return {}
