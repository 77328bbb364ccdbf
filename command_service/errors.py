"""From a call's failure to its client's error."""

import contextlib
from collections.abc import Iterator, Mapping

from chassis.refusals import Violation
from chassis.telemetry import log_unexpected
from command_service.failures import (
    AnotherProposal,
    BankContradicts,
    BankSaysNothing,
    BankUnreachable,
    CallFailed,
    ChargeInReview,
    ChargeUnknown,
    CommandRefused,
    DoesNotFit,
    ImpossibleEvent,
    InvalidRequest,
    JournalAway,
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    KeyReused,
    MoreThanIsLeft,
    NotAtTheDesk,
    NotNow,
    OperationUnderWay,
    PossibleDuplicate,
    ProposalChanged,
    RefundKeyTaken,
    SecondPersonNeeded,
    TenantLimit,
    TooManyOperations,
    TooManyUnfinished,
    UnknownEvent,
    Unreadable,
)
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
    TenantLimit: Reason.TENANT_LIMIT,
    TooManyOperations: Reason.TOO_MANY_OPERATIONS,
    NotAtTheDesk: Reason.NOT_AT_THE_DESK,
    AnotherProposal: Reason.ANOTHER_PROPOSAL,
    ProposalChanged: Reason.PROPOSAL_CHANGED,
    SecondPersonNeeded: Reason.SECOND_PERSON_NEEDED,
    BankContradicts: Reason.BANK_CONTRADICTS,
    BankSaysNothing: Reason.BANK_UNREACHABLE,
    RefundKeyTaken: Reason.NOT_AT_THE_DESK,
    OperationUnderWay: Reason.OPERATION_UNDER_WAY,
    JournalFull: Reason.JOURNAL_FULL,
    JournalAway: Reason.JOURNAL_AWAY,
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
    """Turn a call's failure into its client's error.

    The error of a refused command has its reason only: `command_service.explaining` knows charges, and adds more.
    """
    try:
        yield
    except InvalidRequest as failure:
        raise refusal(reason_of(failure), violations=[Violation(*fault) for fault in failure.faults]) from None
    except CommandRefused as failure:
        raise refusal(reason_of(failure)) from None
    except NotNow as failure:
        raise refusal(reason_of(failure), retry_after_seconds=failure.retry_after_seconds) from None
    except Unreadable as failure:
        log_unexpected("the journal cannot be read here", failure, position=getattr(failure, "position", None))
        raise refusal(reason_of(failure)) from failure
