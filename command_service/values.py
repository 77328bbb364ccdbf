"""The values of the core: clients' requests, questions to a bank, its answers, and events. They decide nothing."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeVar, dataclass_transform

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
    """A card by the bank's or vault's token; brand and last four digits are for people."""

    token: str
    brand: str = ""
    last4: str = ""


@value
class Request:
    """A client's request. User, card token and amount are compared on a retry; for other fields the first request wins."""

    charge_id: str
    tenant: str
    idempotency_key: str
    actor: str
    user_id: str
    card: Card
    amount: Money
    description: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


class DeclineReason(Enum):
    """Why a bank said no: a closed set, whatever a bank invents."""

    CARD_DECLINED = "card_declined"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    EXPIRED_CARD = "expired_card"
    BANK_REFUSED = "bank_refused"
    AUTHENTICATION_REQUIRED = "authentication_required"
    OTHER = "other"


class ReviewReason(Enum):
    """Why the outcome is unknown and must not be guessed."""

    FIELDS_DIFFER = "fields_differ"
    EXECUTE_REFUSED = "execute_refused"
    CONTRADICTION = "contradiction"
    TOKENS_KEEP_EXPIRING = "tokens_keep_expiring"
    TRANSACTION_ID_UNUSABLE = "transaction_id_unusable"  # The money did move.


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

    charge_id: str
    card_token: str
    amount: Money
    expired_tokens: int


@value
class Execute:
    """The execute step: move the money of this token's transaction, once, however often the bank is asked."""

    charge_id: str
    card_token: str
    amount: Money
    token: str


Effect = RequestToken | Execute


# ---------------------------------------------------------------- answers: the bank's, or none
@value
class Token:
    """The bank has a transaction under our reference, and this token names it."""

    token: str


@value
class Executed:
    """The bank has executed the transaction, now or before, and every field it named equals ours."""

    transaction_id: str


@value
class Declined:
    """The bank declined the payment and has closed the token for ever."""

    reason: DeclineReason


@value
class Expired:
    """The bank has closed the token for ever, and it was definitely not executed."""


@value
class Refused:
    """The bank definitely refused the request, and its look-up showed no transaction that settles the step."""

    evidence: Evidence


@value
class Contradiction:
    """The bank's answer does not fit our request or what the bank said before."""

    evidence: Evidence
    reason: ReviewReason = ReviewReason.CONTRADICTION


@value
class InProgress:
    """The bank is still working on the request: ask again, after the time that it named, if any."""

    retry_after_seconds: float | None = None


@value
class NoAnswer:
    """The request may or may not have been done. `our_setup`: the bank does not accept us (credentials)."""

    retry_after_seconds: float | None = None
    our_setup: bool = False


Answer = Token | Executed | Declined | Expired | Refused | Contradiction | InProgress | NoAnswer


# ---------------------------------------------------------------- events: the stored facts
@value
class ChargeRequested:
    """A client's request was accepted."""

    request: Request


@value
class TokenIssued:
    """The bank gave a transaction token; no money moved."""

    token: str


@value
class TokenExpired:
    """The bank closed the token for ever, unexecuted."""

    token: str


@value
class Charged:
    """The money moved, once."""

    user_id: str
    card: Card
    amount: Money
    transaction_id: str


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


Outcome = Charged | ChargeDeclined | ReviewRequired | ChargeAbandoned
Event = ChargeRequested | TokenIssued | TokenExpired | Outcome


class Recorded(NamedTuple):
    """An event with its place in the journal and its time, in microseconds since 1970."""

    event: Event
    position: int
    recorded_at: int
