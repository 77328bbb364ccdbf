"""The exit statuses, and which one an answer has."""

from collections.abc import Mapping
from enum import IntEnum

from chargeonce_client import ChargeStatus, OperationStatus


class Exit(IntEnum):
    """The exit statuses. 1 is none of them: an interpreter, a shell or click ends so when something breaks."""

    DONE = 0
    USAGE = 2
    REFUSED = 3
    NOT_KNOWN = 4
    CUSTOMER = 5
    UNREACHABLE = 6
    IN_REVIEW = 7
    NO = 8
    INTERRUPTED = 130
    NO_READER = 141


_TEXTS = {
    Exit.DONE: "done: the money moved, is held, or went back; of a question: here is the answer; the step is taken",
    Exit.USAGE: "the command line is wrong, and nothing was sent",
    Exit.REFUSED: "an error: the same request again would fail again",
    Exit.NOT_KNOWN: "not known yet: repeat the command with the same key; a step of the desk has none, so look first",
    Exit.CUSTOMER: "the customer must take a step, at the address that is shown",
    Exit.UNREACHABLE: "no server answers, and nothing was sent this time",
    Exit.IN_REVIEW: "people look into it: nobody may guess the outcome",
    Exit.NO: "decided, and not done: declined, called off, given up or lapsed; of a reconciliation: not balanced, or not sure",
    Exit.INTERRUPTED: "stopped by Ctrl-C; what was sent goes on",
    Exit.NO_READER: "nobody read the output any more; what was sent goes on",
}
HELP = "\b\nExit status:\n" + "\n".join(f"  {status:3d}  {text}" for status, text in _TEXTS.items())

_OF_CHARGE: Mapping[int, Exit] = {
    ChargeStatus.CHARGE_STATUS_CHARGED: Exit.DONE,
    ChargeStatus.CHARGE_STATUS_AUTHORIZED: Exit.DONE,
    ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED: Exit.DONE,
    ChargeStatus.CHARGE_STATUS_REFUNDED: Exit.DONE,
    ChargeStatus.CHARGE_STATUS_DECLINED: Exit.NO,
    ChargeStatus.CHARGE_STATUS_ABANDONED: Exit.NO,
    ChargeStatus.CHARGE_STATUS_VOIDED: Exit.NO,
    ChargeStatus.CHARGE_STATUS_AUTHORIZATION_EXPIRED: Exit.NO,
    ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION: Exit.CUSTOMER,
    ChargeStatus.CHARGE_STATUS_IN_REVIEW: Exit.IN_REVIEW,
}
_OF_OPERATION: Mapping[int, Exit] = {
    OperationStatus.OPERATION_STATUS_EXECUTED: Exit.DONE,
    OperationStatus.OPERATION_STATUS_DECLINED: Exit.NO,
    OperationStatus.OPERATION_STATUS_ABANDONED: Exit.NO,
    OperationStatus.OPERATION_STATUS_CALLED_OFF: Exit.NO,
    OperationStatus.OPERATION_STATUS_REQUIRES_ACTION: Exit.CUSTOMER,
    OperationStatus.OPERATION_STATUS_IN_REVIEW: Exit.IN_REVIEW,
}


def of_charge(status: int) -> Exit:
    """Return the exit status for a ChargeStatus; NOT_KNOWN for a pending one, and for one of a later contract."""
    return _OF_CHARGE.get(status, Exit.NOT_KNOWN)


def of_operation(status: int) -> Exit:
    """Return the exit status for an OperationStatus."""
    return _OF_OPERATION.get(status, Exit.NOT_KNOWN)
