"""One table from what can go wrong to what a client is told. Texts are fixed: no input value, no stack, no SQL."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from grpc import StatusCode

from charging.v1.common_pb2 import Advice, ChargeStatus
from chassis.server import Refusal, Violation
from chassis.telemetry import log_unexpected
from command_service.charge import is_over_without_money
from command_service.codec import status_of
from command_service.failures import (
    BankUnreachable,
    CallFailed,
    CommandRefused,
    ImpossibleEvent,
    InvalidCharge,
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    KeyReused,
    NotNow,
    TooManyUnfinished,
    UnknownEvent,
    Unreadable,
)

DOMAIN = "charging.v1"


class Reason(Enum):
    """The reasons in google.rpc.ErrorInfo, in the order of whose fault it is: the client's, the times', ours."""

    INVALID_REQUEST = auto()
    IDEMPOTENCY_KEY_REUSED = auto()
    JOURNAL_DIVERGED = auto()
    READER_TOO_SLOW = auto()
    TOO_MANY_CALLS = auto()
    DEADLINE_PASSED = auto()
    OUTCOME_UNKNOWN = auto()
    BANK_UNREACHABLE = auto()
    TOO_MANY_UNFINISHED = auto()
    JOURNAL_FULL = auto()
    JOURNAL_BUSY = auto()
    SERVER_STOPPING = auto()
    JOURNAL_CORRUPT = auto()
    UNEXPECTED = auto()


@dataclass(frozen=True, slots=True)
class _Row:
    code: StatusCode
    advice: Advice.ValueType
    text: str


_TABLE = {
    Reason.INVALID_REQUEST: _Row(
        StatusCode.INVALID_ARGUMENT,
        Advice.ADVICE_DO_NOT_RETRY,
        "the request is invalid, and nothing was stored: see the field violations",
    ),
    Reason.IDEMPOTENCY_KEY_REUSED: _Row(
        StatusCode.ALREADY_EXISTS,
        Advice.ADVICE_ASK_STATUS,
        "the idempotency key belongs to another charge, whose status the metadata name: do as the advice says",
    ),
    Reason.JOURNAL_DIVERGED: _Row(
        StatusCode.FAILED_PRECONDITION,
        Advice.ADVICE_DO_NOT_RETRY,
        "this journal is not the one that the reader followed: rebuild from position 0",
    ),
    Reason.READER_TOO_SLOW: _Row(
        StatusCode.DEADLINE_EXCEEDED,
        Advice.ADVICE_RETRY_SAME_KEY,
        "the reader did not read for too long: subscribe again from its checkpoint",
    ),
    Reason.TOO_MANY_CALLS: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        Advice.ADVICE_RETRY_SAME_KEY,
        "too many calls at once, and nothing was stored: retry with the same key",
    ),
    Reason.DEADLINE_PASSED: _Row(
        StatusCode.DEADLINE_EXCEEDED,
        Advice.ADVICE_RETRY_SAME_KEY,
        "the deadline had passed before the call was begun, and nothing was stored: retry with the same key",
    ),
    Reason.OUTCOME_UNKNOWN: _Row(
        StatusCode.DEADLINE_EXCEEDED,
        Advice.ADVICE_RETRY_SAME_KEY,
        "the deadline came before it was known whether the charge is stored: retry with the same key",
    ),
    Reason.BANK_UNREACHABLE: _Row(
        StatusCode.UNAVAILABLE,
        Advice.ADVICE_RETRY_SAME_KEY,
        "the bank does not answer, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.TOO_MANY_UNFINISHED: _Row(
        StatusCode.UNAVAILABLE,
        Advice.ADVICE_RETRY_SAME_KEY,
        "too many charges are unfinished, so no new one is taken; nothing was stored: retry with the same key",
    ),
    Reason.JOURNAL_FULL: _Row(
        StatusCode.UNAVAILABLE,
        Advice.ADVICE_RETRY_SAME_KEY,
        "the journal's disk is full, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.JOURNAL_BUSY: _Row(
        StatusCode.UNAVAILABLE,
        Advice.ADVICE_RETRY_SAME_KEY,
        "another program holds the journal, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.SERVER_STOPPING: _Row(
        StatusCode.UNAVAILABLE,
        Advice.ADVICE_RETRY_SAME_KEY,
        "the server is stopping: connect again",
    ),
    Reason.JOURNAL_CORRUPT: _Row(
        StatusCode.DATA_LOSS,
        Advice.ADVICE_ASK_STATUS,
        "the journal is damaged here, and nothing is guessed: its operators must restore it",
    ),
    Reason.UNEXPECTED: _Row(
        StatusCode.INTERNAL,
        Advice.ADVICE_RETRY_SAME_KEY,
        "a fault in the server; what happened is not known: retry with the same key",
    ),
}


def refusal(
    reason: Reason,
    *,
    violations: Sequence[Violation] = (),
    retry_after_seconds: float | None = None,
    advice: Advice.ValueType | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Refusal:
    """Make the error of a reason, to be raised by a call. `advice` stands in for the table's where the charge decides it.

    Metadata are words of ours, never a value of the request.
    """
    row = _TABLE[reason]
    return Refusal(
        code=row.code,
        reason=reason.name,
        text=row.text,
        advice=Advice.Name(advice or row.advice).removeprefix("ADVICE_"),
        violations=violations,
        retry_after_seconds=retry_after_seconds,
        metadata=metadata or {},
    )


# Every leaf of the tree of failures has a row here.
_REASONS: Mapping[type[CallFailed], Reason] = {
    InvalidCharge: Reason.INVALID_REQUEST,
    KeyReused: Reason.IDEMPOTENCY_KEY_REUSED,
    BankUnreachable: Reason.BANK_UNREACHABLE,
    TooManyUnfinished: Reason.TOO_MANY_UNFINISHED,
    JournalFull: Reason.JOURNAL_FULL,
    JournalBusy: Reason.JOURNAL_BUSY,
    JournalCorrupt: Reason.JOURNAL_CORRUPT,
    UnknownEvent: Reason.JOURNAL_CORRUPT,
    ImpossibleEvent: Reason.JOURNAL_CORRUPT,
}


def reason_of(failure: CallFailed) -> Reason:
    """Give a failure the reason that a client is told."""
    return _REASONS[type(failure)]


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn what a call can fail with into what a client is told."""
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
    reason = reason_of(failure)
    match failure:
        case InvalidCharge():
            return refusal(reason, violations=[Violation(*fault) for fault in failure.args[0]])
        case KeyReused():
            # A new key is advised only where the key's charge moves no money: else a client that obeys could charge one
            # order twice.
            state = failure.args[0]
            return refusal(
                reason,
                advice=Advice.ADVICE_USE_NEW_KEY if is_over_without_money(state) else Advice.ADVICE_ASK_STATUS,
                metadata={"status": ChargeStatus.Name(status_of(state)).removeprefix("CHARGE_STATUS_")},
            )
        case _:
            return refusal(reason)
