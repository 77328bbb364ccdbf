"""The values of the core: clients' requests, questions to a bank, and its answers. They decide nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(made: type[T]) -> type[T]:
    """Make a class a dataclass that is frozen for the type checker alone.

    A charge takes some forty values, and Python makes one that is frozen at run time in five times the time (measured).
    """
    return dataclass(slots=True, unsafe_hash=True)(made)


# ---------------------------------------------------------------- a client's request
@value
class Money:
    """An amount in minor units of an ISO 4217 currency: 1250 EUR is 12.50 euros, 1250 JPY is 1250 yen."""

    minor_units: int
    currency_code: str


@value
class Card:
    """A card by the bank's or vault's token; brand and last four digits are for people.

    `fingerprint` is the vault's name of the card itself, for vaults whose tokens serve once; empty if the client sent none.
    """

    token: str
    brand: str = ""
    last4: str = ""
    fingerprint: str = ""


@value
class Request:
    """A client's request for a charge. User, card, amount and `is_held` are compared on a retry.

    `not_after` is in microseconds since 1970, 0 for none: past it the charge is called off instead of executed.
    `is_off_session`: the customer is not there to take a step that the bank may want. `return_url`: where the bank sends the
    customer back to; empty if the client gave none. `bank` names the bank that was chosen; empty: the one without a name.
    `traceparent` is the W3C trace context of the request; empty if nobody traces.
    """

    charge_id: str
    tenant: str
    idempotency_key: str
    actor: str
    user_id: str
    card: Card
    amount: Money
    description: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    is_held: bool = False
    not_after: int = 0
    is_off_session: bool = False
    return_url: str = ""
    bank: str = ""
    traceparent: str = ""


class Kind(Enum):
    """The kinds of operation. A charge opens with one of the first two; the others follow, each as often as the book allows."""

    CHARGE = "charge"
    AUTHORIZE = "authorize"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


@value
class Wish:
    """A client's request for an operation that follows in a charge. No `amount`: all that is left.

    `operation_id` is made from the charge, the kind and the key; `actor` and `reason` are for people.
    """

    kind: Kind
    charge_id: str
    tenant: str
    idempotency_key: str
    operation_id: str
    actor: str
    amount: Money | None = None
    is_final: bool = False
    reason: str = ""
    traceparent: str = ""


@value
class Operation:
    """An operation as a bank is asked for it.

    `reference` is our name for it at the bank: the charge id for the operation that opens a charge, else the operation's id.
    `on` is the bank's id of the transaction that opened the charge, for the operations that follow. `request` is the charge's.
    `takes_all`: it is for all that was left when it was requested. `traceparent` is that of the call that asked for it.
    """

    kind: Kind
    idempotency_key: str
    reference: str
    amount: Money
    request: Request
    on: str = ""
    is_final: bool = False
    takes_all: bool = False
    traceparent: str = ""

    @property
    def opens(self) -> bool:
        """Whether its charge begins with it."""
        return self.kind is Kind.CHARGE or self.kind is Kind.AUTHORIZE


class DeclineReason(Enum):
    """Why a bank said no: a closed set, whatever a bank invents."""

    CARD_DECLINED = "card_declined"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    EXPIRED_CARD = "expired_card"
    BANK_REFUSED = "bank_refused"
    AUTHENTICATION_REQUIRED = "authentication_required"
    OTHER = "other"
    AUTHORIZATION_EXPIRED = "authorization_expired"
    ALREADY_CHARGED = "already_charged"  # Told for a void that came too late; no bank's reason.
    FOUND_NOT_EXECUTED = "found_not_executed"  # Two people found it so; no bank's reason.


class ReviewReason(Enum):
    """Why the outcome is unknown and must not be guessed."""

    FIELDS_DIFFER = "fields_differ"
    EXECUTE_REFUSED = "execute_refused"
    CONTRADICTION = "contradiction"
    TOKENS_KEEP_EXPIRING = "tokens_keep_expiring"
    TRANSACTION_ID_UNUSABLE = "transaction_id_unusable"  # The money did move.
    CALL_OFF_REFUSED = "call_off_refused"


class Resolution(Enum):
    """What two people found to be the outcome of an operation in review."""

    EXECUTED = "executed"
    NOT_EXECUTED = "not_executed"
    REFUNDED = "refunded"  # Executed, and the whole amount has gone back since.


class AnswerKind(Enum):
    """The kind of a bank's answer, without its content."""

    TOKEN = "token"  # noqa: S105  # a kind of answer
    EXECUTED = "executed"
    DECLINED = "declined"
    EXPIRED = "expired"
    CALLED_OFF = "called_off"
    REFUSED = "refused"
    CONTRADICTION = "contradiction"
    IN_PROGRESS = "in_progress"
    NEEDS_ACTION = "needs_action"
    NO_ANSWER = "no_answer"
    NOT_ACCEPTED = "not_accepted"  # Our credentials.


@value
class Evidence:
    """The stored part of an answer that was not understood: never its body, which may hold a card number."""

    fields: tuple[str, ...] = ()
    status: int = 0
    body_length: int = 0
    body_sha256: bytes = b""


# ---------------------------------------------------------------- effects: what to do next, as a value
@value
class RequestToken:
    """The token step. The count of expired tokens tells this request from the one before, whose answer may come late."""

    operation: Operation
    expired_tokens: int


@value
class Execute:
    """The execute step: do this token's transaction, once, however often the bank is asked."""

    operation: Operation
    token: str


@value
class CallOff:
    """Close the token's transaction for ever, unless it is executed. No token: that of our reference, if the bank has one."""

    operation: Operation
    token: str | None


Effect = RequestToken | Execute | CallOff


# ---------------------------------------------------------------- answers: the bank's, or none
@value
class Token:
    """The bank has a transaction under our reference, and this token names it.

    `is_heard`: the bank said so. Else the token is a name of ours, and the bank was not called: it may be away.
    """

    token: str
    is_heard: bool = field(default=True, compare=False)


@value
class Executed:
    """The bank has executed the transaction, now or before, and every field it named equals ours.

    `expires_at`: when it lets a hold lapse, in microseconds since 1970; 0 if it does not tell it, or holds nothing.
    """

    transaction_id: str
    expires_at: int = 0


@value
class Declined:
    """The bank declined the payment and has closed the token for ever."""

    reason: DeclineReason


@value
class Expired:
    """The bank has closed the token for ever, and it was definitely not executed."""


@value
class CalledOff:
    """The bank has closed the token for ever, unexecuted, because it was called off; or it has no token of our reference."""


@value
class Refused:
    """The bank definitely refused the request, and its look-up showed no transaction that settles the step."""

    evidence: Evidence


@value
class Contradiction:
    """The bank's answer does not fit our request or what the bank said before.

    `transaction_id`: the id under which, as the bank says, it executed our reference with other fields than ours; else empty.
    People are told of it, and nothing rests on it.
    """

    evidence: Evidence
    reason: ReviewReason = ReviewReason.CONTRADICTION
    transaction_id: str = ""


@value
class InProgress:
    """The bank is still working on the request: ask again, after the time that it named, if any."""

    retry_after_seconds: float | None = None


@value
class NeedsAction:
    """The bank waits for a step of the customer, such as 3-D Secure, and no money has moved. Only to the opening execute step.

    `url` is where to send the customer, the same however often the bank is asked. `expires_at` is in microseconds since 1970:
    when the bank gives up waiting; 0 if it does not tell it.
    """

    url: str
    expires_at: int = 0


@value
class NoAnswer:
    """The request may or may not have been done. `our_setup`: the bank does not accept us (credentials)."""

    retry_after_seconds: float | None = None
    our_setup: bool = False


Answer = (
    Token | Executed | Declined | Expired | CalledOff | Refused | Contradiction | InProgress | NeedsAction | NoAnswer
)


def kind_of(answer: Answer) -> AnswerKind:
    """Return the kind of an answer."""
    if isinstance(answer, NoAnswer):
        return AnswerKind.NOT_ACCEPTED if answer.our_setup else AnswerKind.NO_ANSWER
    return _KIND_OF[type(answer)]


_KIND_OF: Mapping[type[Answer], AnswerKind] = {
    Token: AnswerKind.TOKEN,
    Executed: AnswerKind.EXECUTED,
    Declined: AnswerKind.DECLINED,
    Expired: AnswerKind.EXPIRED,
    CalledOff: AnswerKind.CALLED_OFF,
    Refused: AnswerKind.REFUSED,
    Contradiction: AnswerKind.CONTRADICTION,
    InProgress: AnswerKind.IN_PROGRESS,
    NeedsAction: AnswerKind.NEEDS_ACTION,
}
