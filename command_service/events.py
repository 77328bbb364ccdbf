"""The events of the core: the stored facts of a charge's stream. They decide nothing."""

from collections.abc import Mapping
from typing import NamedTuple

from command_service.values import (
    AnswerKind,
    Card,
    DeclineReason,
    Evidence,
    Kind,
    Money,
    Request,
    Resolution,
    ReviewReason,
    value,
)


@value
class ChargeRequested:
    """A client's request was accepted."""

    request: Request


@value
class OperationRequested:
    """A client's request for an operation that follows was accepted, with the amount that it moves."""

    kind: Kind
    operation_id: str
    idempotency_key: str
    actor: str
    amount: Money
    is_final: bool = False
    reason: str = ""
    traceparent: str = ""


@value
class NotAfterPassed:
    """The time past which the charge was not to be executed has passed."""


@value
class TokenIssued:
    """The bank gave a transaction token; no money moved."""

    token: str


@value
class TokenExpired:
    """The bank closed the token for ever, unexecuted."""

    token: str


@value
class ActionRequired:
    """The bank wants a step of the customer. `expires_at`, in microseconds since 1970: when it gives up; 0 if not told."""

    url: str
    expires_at: int = 0


@value
class Charged:
    """The money moved, once."""

    user_id: str
    card: Card
    amount: Money
    transaction_id: str


@value
class Authorized:
    """The bank holds the money. `expires_at`, in microseconds since 1970: when it lets the hold lapse; 0 if it is not told."""

    user_id: str
    card: Card
    amount: Money
    transaction_id: str
    expires_at: int = 0


@value
class Captured:
    """Money that was held moved, once."""

    amount: Money
    transaction_id: str


@value
class Voided:
    """What was held is let go."""

    amount: Money
    transaction_id: str


@value
class Refunded:
    """Money went back, once."""

    amount: Money
    transaction_id: str


@value
class ChargeCalledOff:
    """The bank closed the charge's token for ever, unexecuted: no money moved and none will."""


@value
class AuthorizationExpired:
    """The bank let the hold lapse. It ends the capture or the void that met it, undone."""


@value
class OperationDeclined:
    """The bank said no to an operation that follows, and it will not be done."""

    reason: DeclineReason


@value
class OperationAbandoned:
    """The bank could not be reached in time for the token step of an operation that follows; it will not be done."""

    attempts: int


@value
class ChargeDeclined:
    """The bank said no; no money moved and none will."""

    reason: DeclineReason


@value
class ReviewRequired:
    """The outcome is unknown and must not be guessed: a person must look into it."""

    reason: ReviewReason
    evidence: Evidence = Evidence()


@value
class ChargeAbandoned:
    """The bank could not be reached for the token step in time; no money moved and none will."""

    attempts: int


@value
class TryRequested:
    """An operator asked for the next step now."""

    actor: str
    reason: str


@value
class HeldBack:
    """An operator holds the charge back: no step is taken at the bank until it is let go."""

    actor: str
    reason: str


@value
class LetGo:
    """An operator let the charge go."""

    actor: str
    reason: str


@value
class ResolutionProposed:
    """An operator proposed how the operation in review ended. The ids are the bank's, empty where there is none."""

    actor: str
    reason: str
    resolution: Resolution
    transaction_id: str
    refund_transaction_id: str
    evidence: str


@value
class ResolutionRejected:
    """An operator turned down the proposal at the position `proposal`, or took it back."""

    actor: str
    reason: str
    proposal: int


@value
class ResolutionApproved:
    """A second operator approved the proposal at the position `proposal`. The outcome follows in the same append."""

    actor: str
    reason: str
    proposal: int
    bank_said: AnswerKind
    contradicts_bank: bool


Moved = Charged | Authorized | Captured | Voided | Refunded
MOVED: Mapping[Kind, type[Moved]] = {
    Kind.CHARGE: Charged,
    Kind.AUTHORIZE: Authorized,
    Kind.CAPTURE: Captured,
    Kind.VOID: Voided,
    Kind.REFUND: Refunded,
}
"""The event with which the bank's execution of an operation is stored."""
Undone = (
    ChargeDeclined | ChargeAbandoned | ChargeCalledOff | OperationDeclined | OperationAbandoned | AuthorizationExpired
)
Outcome = Moved | Undone | ReviewRequired
DeskStep = TryRequested | HeldBack | LetGo | ResolutionProposed | ResolutionRejected | ResolutionApproved
"""A step of the desk: an operator's, with who took it and why."""
Event = (
    ChargeRequested
    | OperationRequested
    | NotAfterPassed
    | TokenIssued
    | TokenExpired
    | ActionRequired
    | Outcome
    | DeskStep
)


class Recorded(NamedTuple):
    """An event with its place in the journal and its time, in microseconds since 1970."""

    event: Event
    position: int
    recorded_at: int
