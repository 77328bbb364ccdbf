"""The errors of the contract: each reason, with the status, advice and text that a client is told. One table a server."""

from collections.abc import Mapping
from enum import Enum, auto

from grpc import StatusCode

from chassis.refusals import Refusals, Row

DOMAIN = "charging.v1"


class Reason(Enum):
    """The reasons in google.rpc.ErrorInfo, in the order of whose fault it is: the client's, the times', ours."""

    UNAUTHENTICATED = auto()
    PERMISSION_DENIED = auto()
    INVALID_REQUEST = auto()
    IDEMPOTENCY_KEY_REUSED = auto()
    POSSIBLE_DUPLICATE = auto()
    CHARGE_NOT_FOUND = auto()
    MORE_THAN_IS_LEFT = auto()
    OPERATION_DOES_NOT_FIT = auto()
    CHARGE_IN_REVIEW = auto()
    TOO_MANY_OPERATIONS = auto()
    NOT_AT_THE_DESK = auto()
    SECOND_PERSON_NEEDED = auto()
    ANOTHER_PROPOSAL = auto()
    PROPOSAL_CHANGED = auto()
    BANK_CONTRADICTS = auto()
    CHARGE_IN_SEVERAL_JOURNALS = auto()
    JOURNAL_NOT_FOLLOWED = auto()
    JOURNAL_DIVERGED = auto()
    READER_TOO_SLOW = auto()
    TOO_MANY_CALLS = auto()
    TENANT_LIMIT = auto()
    TOO_MANY_WATCHES = auto()
    DEADLINE_PASSED = auto()
    OUTCOME_UNKNOWN = auto()
    OPERATION_UNDER_WAY = auto()
    BANK_UNREACHABLE = auto()
    TOO_MANY_UNFINISHED = auto()
    JOURNAL_FULL = auto()
    JOURNAL_BUSY = auto()
    JOURNAL_AWAY = auto()
    VIEW_BEHIND = auto()
    SERVER_STOPPING = auto()
    JOURNAL_CORRUPT = auto()
    UNEXPECTED = auto()


_COMMANDS: Mapping[Reason, Row] = {
    # One text for each, whatever was wrong with the credential: the log tells the operator.
    Reason.UNAUTHENTICATED: Row(
        StatusCode.UNAUTHENTICATED,
        "DO_NOT_RETRY",
        "the caller is not known, and nothing was stored: send the same request again with a valid credential",
    ),
    Reason.PERMISSION_DENIED: Row(
        StatusCode.PERMISSION_DENIED,
        "DO_NOT_RETRY",
        "the caller may not do this, and nothing was stored: its operators can give it the role",
    ),
    Reason.INVALID_REQUEST: Row(
        StatusCode.INVALID_ARGUMENT,
        "DO_NOT_RETRY",
        "the request is invalid, and nothing was stored: see the field violations",
    ),
    Reason.IDEMPOTENCY_KEY_REUSED: Row(
        StatusCode.ALREADY_EXISTS,
        "ASK_STATUS",
        "the idempotency key belongs to another request, whose status the metadata name: do as the advice says",
    ),
    Reason.POSSIBLE_DUPLICATE: Row(
        StatusCode.ALREADY_EXISTS,
        "ASK_STATUS",
        "such a charge, which the metadata name, was requested a short time ago, and nothing was stored: ask for its status",
    ),
    Reason.CHARGE_NOT_FOUND: Row(
        StatusCode.NOT_FOUND,
        "DO_NOT_RETRY",
        "there is no such charge, and nothing was stored",
    ),
    Reason.MORE_THAN_IS_LEFT: Row(
        StatusCode.FAILED_PRECONDITION,
        "DO_NOT_RETRY",
        "the amount is more than is left, which the metadata name, and nothing was stored",
    ),
    Reason.OPERATION_DOES_NOT_FIT: Row(
        StatusCode.FAILED_PRECONDITION,
        "DO_NOT_RETRY",
        "the charge, whose status the metadata name, does not allow this operation, and nothing was stored",
    ),
    Reason.CHARGE_IN_REVIEW: Row(
        StatusCode.FAILED_PRECONDITION,
        "ASK_STATUS",
        "the charge is in review, and nothing was stored: ask for its status before you try again",
    ),
    Reason.JOURNAL_DIVERGED: Row(
        StatusCode.FAILED_PRECONDITION,
        "DO_NOT_RETRY",
        "this journal is not the one that the reader followed: rebuild from position 0",
    ),
    Reason.READER_TOO_SLOW: Row(
        StatusCode.DEADLINE_EXCEEDED,
        "RETRY_SAME_KEY",
        "the reader did not read for too long: subscribe again from its checkpoint",
    ),
    Reason.TOO_MANY_CALLS: Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "RETRY_SAME_KEY",
        "too many calls at once, and nothing was stored: retry with the same key",
    ),
    Reason.TENANT_LIMIT: Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "RETRY_SAME_KEY",
        "the tenant's share of the server is used up, and nothing was stored: retry with the same key",
    ),
    Reason.DEADLINE_PASSED: Row(
        StatusCode.DEADLINE_EXCEEDED,
        "RETRY_SAME_KEY",
        "the deadline had passed before the call was begun, and nothing was stored: retry with the same key",
    ),
    Reason.OUTCOME_UNKNOWN: Row(
        StatusCode.DEADLINE_EXCEEDED,
        "RETRY_SAME_KEY",
        "the deadline came before it was known whether the charge is stored: retry with the same key",
    ),
    Reason.TOO_MANY_OPERATIONS: Row(
        StatusCode.FAILED_PRECONDITION,
        "DO_NOT_RETRY",
        "the charge has as many operations, or steps of operators, as it may have, and nothing was stored",
    ),
    Reason.NOT_AT_THE_DESK: Row(
        StatusCode.FAILED_PRECONDITION,
        "DO_NOT_RETRY",
        "the charge, whose status the metadata name, is not at a stage for this step, and nothing was stored",
    ),
    Reason.SECOND_PERSON_NEEDED: Row(
        StatusCode.PERMISSION_DENIED,
        "DO_NOT_RETRY",
        "a second person must approve it, by an identity of the policy that did not propose it; nothing was stored",
    ),
    Reason.ANOTHER_PROPOSAL: Row(
        StatusCode.FAILED_PRECONDITION,
        "ASK_STATUS",
        "another proposal, which the metadata name, is open, and nothing was stored: approve or reject it first",
    ),
    Reason.PROPOSAL_CHANGED: Row(
        StatusCode.ABORTED,
        "ASK_STATUS",
        "this proposal is no longer open, and nothing was stored: look at the charge again",
    ),
    Reason.BANK_CONTRADICTS: Row(
        StatusCode.FAILED_PRECONDITION,
        "ASK_STATUS",
        "the bank says otherwise, as the metadata tell, and nothing was stored: to insist, set overrules to that",
    ),
    Reason.OPERATION_UNDER_WAY: Row(
        StatusCode.ABORTED,
        "RETRY_SAME_KEY",
        "another operation of the charge is under way, and nothing was stored: retry with the same key",
    ),
    Reason.BANK_UNREACHABLE: Row(
        StatusCode.UNAVAILABLE,
        "RETRY_SAME_KEY",
        "the bank does not answer, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.TOO_MANY_UNFINISHED: Row(
        StatusCode.UNAVAILABLE,
        "RETRY_SAME_KEY",
        "too many charges are unfinished, so no new one is taken; nothing was stored: retry with the same key",
    ),
    Reason.JOURNAL_FULL: Row(
        StatusCode.UNAVAILABLE,
        "RETRY_SAME_KEY",
        "the journal's disk is full, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.JOURNAL_BUSY: Row(
        StatusCode.UNAVAILABLE,
        "RETRY_SAME_KEY",
        "another program holds the journal, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.JOURNAL_AWAY: Row(
        StatusCode.UNAVAILABLE,
        "RETRY_SAME_KEY",
        "the journal's database does not answer, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.SERVER_STOPPING: Row(
        StatusCode.UNAVAILABLE,
        "RETRY_SAME_KEY",
        "the server is stopping: connect again",
    ),
    Reason.JOURNAL_CORRUPT: Row(
        StatusCode.DATA_LOSS,
        "ASK_STATUS",
        "the journal is damaged here, and nothing is guessed: its operators must restore it",
    ),
    Reason.UNEXPECTED: Row(
        StatusCode.INTERNAL,
        "RETRY_SAME_KEY",
        "a fault in the server; what happened is not known: retry with the same key",
    ),
}

_QUERIES: Mapping[Reason, Row] = {
    Reason.UNAUTHENTICATED: Row(
        StatusCode.UNAUTHENTICATED,
        "DO_NOT_RETRY",
        "the caller is not known: ask again with a valid credential",
    ),
    Reason.PERMISSION_DENIED: Row(
        StatusCode.PERMISSION_DENIED,
        "DO_NOT_RETRY",
        "the caller may not ask this: its operators can give it the role",
    ),
    Reason.INVALID_REQUEST: Row(
        StatusCode.INVALID_ARGUMENT,
        "DO_NOT_RETRY",
        "the request is invalid: see the field violations",
    ),
    # Whoever reads this as "nothing happened" and takes a new key may charge twice: the view may be behind.
    Reason.CHARGE_NOT_FOUND: Row(
        StatusCode.NOT_FOUND,
        "RETRY_SAME_KEY",
        "no such charge is shown as of this position, and the view may be behind: retry Charge with the same key",
    ),
    Reason.CHARGE_IN_SEVERAL_JOURNALS: Row(
        StatusCode.FAILED_PRECONDITION,
        "ASK_STATUS",
        "several journals have such a charge, and each may have moved money: ask again with the journal_id of one of them",
    ),
    # A restored journal has a new id. Whoever asks without it is shown what there is.
    Reason.JOURNAL_NOT_FOLLOWED: Row(
        StatusCode.FAILED_PRECONDITION,
        "ASK_STATUS",
        "no journal with this journal_id is followed here: ask again without it, or with that of a newer answer",
    ),
    Reason.TOO_MANY_CALLS: Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "ASK_STATUS",
        "too many calls at once: ask again",
        retry_after_seconds=0.5,
    ),
    Reason.TENANT_LIMIT: Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "ASK_STATUS",
        "the tenant's share of the server is used up: ask again",
        retry_after_seconds=0.5,
    ),
    Reason.TOO_MANY_WATCHES: Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "ASK_STATUS",
        "too many watches over this connection: open another for more",
    ),
    Reason.VIEW_BEHIND: Row(
        StatusCode.UNAVAILABLE,
        "ASK_STATUS",
        "the view has not got to that position yet: ask again",
        retry_after_seconds=1.0,
    ),
    Reason.JOURNAL_AWAY: Row(
        StatusCode.UNAVAILABLE,
        "RETRY_SAME_KEY",
        "the journal's database does not answer, so no new charge is taken; nothing was stored: retry with the same key",
    ),
    Reason.SERVER_STOPPING: Row(
        StatusCode.UNAVAILABLE,
        "ASK_STATUS",
        "the server is stopping: watch again",
    ),
    Reason.UNEXPECTED: Row(
        StatusCode.INTERNAL,
        "ASK_STATUS",
        "a fault in the server: ask again",
    ),
}

WITHOUT_THE_BANKS_WORD = (
    "the bank does not answer the look-up, and nothing was stored: try again later, or name its silence, as the metadata"
    " tell it, in overrules to approve it without the bank's word"
)
"""The text of BANK_UNREACHABLE for an approval, which takes no charge."""
REFUND_KEY_TAKEN = (
    "a client has a refund under the key that this approval would store, and nothing was stored: reject the proposal and"
    " propose the same again, which has another key"
)
"""The text of NOT_AT_THE_DESK for an approval whose refund's key is a client's."""

command_refusal = Refusals(_COMMANDS)
"""Makes the errors of the command server and of its feed."""
query_refusal = Refusals(_QUERIES)
"""Makes the errors of the query server."""
