"""One table from what can go wrong with a query to what a client is told. Texts are fixed: no input value, no SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from grpc import StatusCode

from charging.v1.common_pb2 import Advice
from chassis.server import Refusal, Violation

DOMAIN = "charging.v1"


class Reason(Enum):
    """The reasons in google.rpc.ErrorInfo, in the order of whose fault it is: the client's, the times', ours."""

    INVALID_REQUEST = auto()
    CHARGE_NOT_FOUND = auto()
    TOO_MANY_CALLS = auto()
    TOO_MANY_WATCHES = auto()
    VIEW_BEHIND = auto()
    SERVER_STOPPING = auto()
    UNEXPECTED = auto()


@dataclass(frozen=True, slots=True)
class _Row:
    code: StatusCode
    advice: Advice.ValueType
    text: str
    retry_after_seconds: float | None = None


_TABLE = {
    Reason.INVALID_REQUEST: _Row(
        StatusCode.INVALID_ARGUMENT,
        Advice.ADVICE_DO_NOT_RETRY,
        "the request is invalid: see the field violations",
    ),
    # Whoever reads this as "nothing happened" and takes a new key may charge twice: the view may be behind.
    Reason.CHARGE_NOT_FOUND: _Row(
        StatusCode.NOT_FOUND,
        Advice.ADVICE_RETRY_SAME_KEY,
        "no such charge is shown as of this position, and the view may be behind: retry Charge with the same key",
    ),
    Reason.TOO_MANY_CALLS: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        Advice.ADVICE_ASK_STATUS,
        "too many calls at once: ask again",
        retry_after_seconds=0.5,
    ),
    Reason.TOO_MANY_WATCHES: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        Advice.ADVICE_ASK_STATUS,
        "too many watches over this connection: open another for more",
    ),
    Reason.VIEW_BEHIND: _Row(
        StatusCode.UNAVAILABLE,
        Advice.ADVICE_ASK_STATUS,
        "the view has not got to that position yet: ask again",
        retry_after_seconds=1.0,
    ),
    Reason.SERVER_STOPPING: _Row(
        StatusCode.UNAVAILABLE,
        Advice.ADVICE_ASK_STATUS,
        "the server is stopping: watch again",
    ),
    Reason.UNEXPECTED: _Row(
        StatusCode.INTERNAL,
        Advice.ADVICE_ASK_STATUS,
        "a fault in the server: ask again",
    ),
}


def refusal(
    reason: Reason, *, violations: Sequence[Violation] = (), metadata: Mapping[str, int] | None = None
) -> Refusal:
    """Make the error of a reason, to be raised by a call. Metadata are our own numbers, never a value of the request."""
    row = _TABLE[reason]
    return Refusal(
        code=row.code,
        reason=reason.name,
        text=row.text,
        advice=Advice.Name(row.advice).removeprefix("ADVICE_"),
        violations=violations,
        retry_after_seconds=row.retry_after_seconds,
        metadata={name: str(number) for name, number in (metadata or {}).items()},
    )


def invalid(field: str, text: str) -> Refusal:
    """Make the error of a field that may not be as it is."""
    return refusal(Reason.INVALID_REQUEST, violations=[Violation(field, text)])
