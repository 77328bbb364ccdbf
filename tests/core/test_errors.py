"""Every failure of a call has a row in the table, and so reaches the client with advice."""

from collections.abc import Iterator

import pytest
from grpc import StatusCode

from chassis.refusals import Refusal
from command_service import failures
from command_service.charge import following
from command_service.errors import reason_of
from command_service.events import (
    AuthorizationExpired,
    ChargeAbandoned,
    ChargeDeclined,
    Event,
    OperationAbandoned,
    OperationDeclined,
    ReviewRequired,
)
from command_service.explaining import explaining
from command_service.failures import (
    CallFailed,
    ChargeInReview,
    ChargeUnknown,
    DoesNotFit,
    InvalidRequest,
    JournalCorrupt,
    KeyReused,
    MoreThanIsLeft,
    NotNow,
    OperationUnderWay,
    PossibleDuplicate,
    TenantLimit,
    TooManyUnfinished,
)
from command_service.values import DeclineReason, Kind, ReviewReason
from contract.errors import command_refusal
from tests.core.stories import (
    AUTHORIZED,
    CHARGED,
    called_off_,
    capture,
    charged,
    given,
    refund,
    refund_requested,
    requested,
    token_issued,
    void,
    void_requested,
)


def leaves(kind: type[CallFailed]) -> Iterator[type[CallFailed]]:
    """The failures that are raised: the leaves of the tree."""
    kinds = kind.__subclasses__()
    if not kinds:
        yield kind
    for each in kinds:
        yield from leaves(each)


@pytest.mark.parametrize("kind", list(leaves(CallFailed)))
def test_every_failure_has_a_reason_with_advice(kind: type[CallFailed]) -> None:
    """A new leaf of the tree without a row fails here."""
    failure = JournalCorrupt(None) if kind is JournalCorrupt else kind()
    assert command_refusal(reason_of(failure)).advice
    assert refusal_of(failure).reason == reason_of(failure).name


def test_the_picture_of_the_tree_is_the_tree() -> None:
    """The docstring of the module names each kind, indented under its parent."""
    doc = failures.__doc__ or ""
    drawn = [line for line in doc.splitlines() if line.startswith("    ")]
    depth = {line.lstrip(" │├└─").split()[0]: (len(line) - len(line.lstrip(" │├└─"))) // 4 - 1 for line in drawn}

    def walk(kind: type[CallFailed], level: int) -> dict[str, int]:
        found = {kind.__name__: level}
        for each in kind.__subclasses__():
            found |= walk(each, level + 1)
        return found

    assert depth == walk(CallFailed, 0)


# ---------------------------------------------------------------- what the client is told besides
def refusal_of(failure: CallFailed) -> Refusal:
    with pytest.raises(Refusal) as told, explaining():
        raise failure
    return told.value


IN_REVIEW = ReviewRequired(ReviewReason.CONTRADICTION)
LAPSED = AuthorizationExpired()
CHARGES: dict[str, tuple[tuple[Event, ...], str, str]] = {
    "awaiting token": ((requested,), "PENDING", "ASK_STATUS"),
    "calling off": ((requested, void_requested()), "PENDING", "ASK_STATUS"),
    "charged": (CHARGED, "CHARGED", "ASK_STATUS"),
    "authorised": (AUTHORIZED, "AUTHORIZED", "ASK_STATUS"),
    "captured in part": ((*AUTHORIZED, *capture(400)), "CHARGED", "ASK_STATUS"),
    "refund under way": ((*CHARGED, refund_requested(1250)), "CHARGED", "ASK_STATUS"),
    "refunded in part": ((*CHARGED, *refund(500)), "PARTIALLY_REFUNDED", "ASK_STATUS"),
    "refunded": ((*CHARGED, *refund(1250)), "REFUNDED", "ASK_STATUS"),
    "in review": ((requested, token_issued, IN_REVIEW), "IN_REVIEW", "ASK_STATUS"),
    "refund in review": ((*CHARGED, refund_requested(1), IN_REVIEW), "IN_REVIEW", "ASK_STATUS"),
    "void in review": ((*AUTHORIZED, void_requested(), IN_REVIEW), "IN_REVIEW", "ASK_STATUS"),
    "declined": ((requested, ChargeDeclined(DeclineReason.OTHER)), "DECLINED", "USE_NEW_KEY"),
    "abandoned": ((requested, ChargeAbandoned(5)), "ABANDONED", "USE_NEW_KEY"),
    "called off": ((requested, void_requested(), called_off_), "VOIDED", "USE_NEW_KEY"),
    "voided": ((*AUTHORIZED, *void()), "VOIDED", "USE_NEW_KEY"),
    "lapsed": ((*AUTHORIZED, void_requested(), LAPSED), "AUTHORIZATION_EXPIRED", "USE_NEW_KEY"),
    "captured in part, then lapsed": (
        (*AUTHORIZED, *capture(400), void_requested(850), LAPSED),
        "CHARGED",
        "ASK_STATUS",
    ),
}


@pytest.mark.parametrize(("history", "status", "advice"), CHARGES.values(), ids=CHARGES)
def test_a_reused_key_of_a_charge_is_told_its_status_and_what_to_do(
    history: tuple[Event, ...], status: str, advice: str
) -> None:
    """A client that obeys may charge its order again: a new key is advised only where no money moves any more."""
    refusal = refusal_of(KeyReused(given(*history).charge))
    assert (refusal.code, refusal.reason) == (StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert (refusal.advice, refusal.metadata) == (advice, {"status": status})


OPERATIONS: dict[str, tuple[tuple[Event, ...], str, str, str]] = {
    "under way": ((*CHARGED, refund_requested(500)), "refund-1", "PENDING", "ASK_STATUS"),
    "executed": ((*CHARGED, *refund(500)), "refund-1", "EXECUTED", "ASK_STATUS"),
    "in review": ((*CHARGED, refund_requested(500), IN_REVIEW), "refund-1", "IN_REVIEW", "ASK_STATUS"),
    "declined": (
        (*CHARGED, refund_requested(500), OperationDeclined(DeclineReason.OTHER)),
        *("refund-1", "DECLINED", "USE_NEW_KEY"),
    ),
    "abandoned": ((*CHARGED, refund_requested(500), OperationAbandoned(5)), "refund-1", "ABANDONED", "USE_NEW_KEY"),
    "a void that waits": ((requested, token_issued, void_requested()), "void-1", "PENDING", "ASK_STATUS"),
    "a void that called off": ((requested, void_requested(), called_off_), "void-1", "EXECUTED", "ASK_STATUS"),
    "a void that came too late": (
        (requested, token_issued, void_requested(), charged),
        *("void-1", "DECLINED", "USE_NEW_KEY"),
    ),
    "a void of a hold that lapsed": ((*AUTHORIZED, void_requested(), LAPSED), "void-1", "DECLINED", "USE_NEW_KEY"),
    "a void of a declined charge": (
        (requested, void_requested(), ChargeDeclined(DeclineReason.OTHER)),
        *("void-1", "DECLINED", "USE_NEW_KEY"),
    ),
    "a void given up": ((requested, void_requested(), ChargeAbandoned(5)), "void-1", "ABANDONED", "USE_NEW_KEY"),
    "another since": ((*CHARGED, *refund(500), refund_requested(1, "refund-2")), "refund-1", "EXECUTED", "ASK_STATUS"),
}


@pytest.mark.parametrize(("history", "key", "status", "advice"), OPERATIONS.values(), ids=OPERATIONS)
def test_a_reused_key_of_an_operation_is_told_the_operations_status(
    history: tuple[Event, ...], key: str, status: str, advice: str
) -> None:
    """And not that of the charge."""
    charge = given(*history).charge
    refusal = refusal_of(KeyReused(charge, following(charge, key)))
    assert (refusal.code, refusal.reason) == (StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert (refusal.advice, refusal.metadata) == (advice, {"status": status})


@pytest.mark.parametrize(
    ("history", "kind", "metadata"),
    [
        (AUTHORIZED, Kind.REFUND, {"status": "AUTHORIZED", "instead": "VOID"}),
        (CHARGED, Kind.VOID, {"status": "CHARGED", "instead": "REFUND"}),
        (CHARGED, Kind.CAPTURE, {"status": "CHARGED"}),
        ((*AUTHORIZED, *capture(400, is_final=True)), Kind.VOID, {"status": "CHARGED", "instead": "REFUND"}),
        ((*AUTHORIZED, *capture(400, is_final=True)), Kind.CAPTURE, {"status": "CHARGED"}),
        ((*CHARGED, *refund(500)), Kind.VOID, {"status": "PARTIALLY_REFUNDED", "instead": "REFUND"}),
        ((*CHARGED, *refund(1250)), Kind.VOID, {"status": "REFUNDED"}),
        ((*AUTHORIZED, *void()), Kind.REFUND, {"status": "VOIDED"}),
        ((*AUTHORIZED, *void()), Kind.CAPTURE, {"status": "VOIDED"}),
        ((*AUTHORIZED, void_requested(), LAPSED), Kind.VOID, {"status": "AUTHORIZATION_EXPIRED"}),
        ((requested, ChargeAbandoned(5)), Kind.REFUND, {"status": "ABANDONED"}),
        ((requested, ChargeDeclined(DeclineReason.OTHER)), Kind.VOID, {"status": "DECLINED"}),
    ],
)
def test_an_operation_that_does_not_fit_is_told_why_and_which_one_fits_instead(
    history: tuple[Event, ...], kind: Kind, metadata: dict[str, str]
) -> None:
    """Instead of taking money back one way, the other; a capture wants the opposite of both."""
    refusal = refusal_of(DoesNotFit(given(*history).charge, kind))
    assert (refusal.code, refusal.reason) == (StatusCode.FAILED_PRECONDITION, "OPERATION_DOES_NOT_FIT")
    assert (refusal.advice, refusal.metadata) == ("DO_NOT_RETRY", metadata)


@pytest.mark.parametrize(
    ("failure", "code", "reason", "advice", "metadata"),
    [
        (MoreThanIsLeft(950), StatusCode.FAILED_PRECONDITION, "MORE_THAN_IS_LEFT", "DO_NOT_RETRY", {"left": "950"}),
        (MoreThanIsLeft(0), StatusCode.FAILED_PRECONDITION, "MORE_THAN_IS_LEFT", "DO_NOT_RETRY", {"left": "0"}),
        (
            PossibleDuplicate("the-first"),
            *(StatusCode.ALREADY_EXISTS, "POSSIBLE_DUPLICATE", "ASK_STATUS", {"charge_id": "the-first"}),
        ),
        (ChargeUnknown(), StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND", "DO_NOT_RETRY", {}),
        (ChargeInReview(), StatusCode.FAILED_PRECONDITION, "CHARGE_IN_REVIEW", "ASK_STATUS", {}),
        (OperationUnderWay(), StatusCode.ABORTED, "OPERATION_UNDER_WAY", "RETRY_SAME_KEY", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CallFailed) else "",
)
def test_the_metadata_name_what_the_client_needs_for_its_next_step(
    failure: CallFailed, code: StatusCode, reason: str, advice: str, metadata: dict[str, str]
) -> None:
    refusal = refusal_of(failure)
    assert (refusal.code, refusal.reason, refusal.advice) == (code, reason, advice)
    assert refusal.metadata == metadata


@pytest.mark.parametrize(
    "failure",
    [
        OperationUnderWay(retry_after_seconds=0.25),
        TooManyUnfinished(retry_after_seconds=1.0),
        TenantLimit(retry_after_seconds=1.0),
    ],
)
def test_what_may_succeed_later_says_when(failure: NotNow) -> None:
    assert refusal_of(failure).retry_after_seconds == failure.retry_after_seconds


def test_faults_are_told_as_violations() -> None:
    faults = (("amount", "is required"), ("user_id", "is required"))
    assert [(each.field, each.text) for each in refusal_of(InvalidRequest(faults)).violations] == list(faults)


def test_other_exceptions_pass() -> None:
    """They are faults of the program, and the server's own interceptor tells the client so."""
    with pytest.raises(ZeroDivisionError), explaining():
        raise ZeroDivisionError
