"""The core: everything that decides what may happen to a charge is in this file.

1. `decide` turns a message (a client's command, a bank's answer) into events, `evolve` folds events into a state, and
   `next_step` says what to do next. They are pure: all that they need comes in as data.
2. Money moves in the execute step only, and only by a token that the journal holds already.
3. Another token is asked for only after the bank has closed the last one for ever, unexecuted. In doubt the charge goes
   into review: nobody guesses, and nobody takes a new token.
4. An answer counts only while the step it answers is still the next one. A late answer yields nothing.
5. Nothing follows an event at rest.

    Absent ──> AwaitingToken <──> AwaitingExecution ──> AtRest: charged, declined, in review
                     └────────────────────────────────> AtRest: declined, in review, abandoned
"""

from dataclasses import dataclass
from enum import Enum

# Giving up takes this many vain attempts by one process, however old the charge: a server that comes back after a day
# off must not abandon what it never tried.
ATTEMPTS_BEFORE_GIVING_UP = 5
# A bank whose tokens always expire before they are executed is broken, and asking on would never end.
TOKEN_LIMIT = 8


# ---------------------------------------------------------------- values
@dataclass(frozen=True, slots=True)
class Money:
    """An amount in minor units of an ISO 4217 currency: 1250 EUR is 12.50 euros, 1250 JPY is 1250 yen."""

    minor_units: int
    currency_code: str


@dataclass(frozen=True, slots=True)
class Card:
    """A card by the bank's or vault's token; brand and last four digits are for people."""

    token: str
    brand: str = ""
    last4: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for. User, card token and amount are compared on a retry; of the rest the first one wins."""

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
    """Why nobody may guess what happened."""

    FIELDS_DIFFER = "fields_differ"
    EXECUTE_REFUSED = "execute_refused"
    CONTRADICTION = "contradiction"
    TOKENS_KEEP_EXPIRING = "tokens_keep_expiring"
    TRANSACTION_ID_UNUSABLE = "transaction_id_unusable"  # The money did move.


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is kept of an answer that nobody understood: never its body, which may hold a card number."""

    fields: tuple[str, ...] = ()
    status: int = 0
    body_length: int = 0
    body_sha256: bytes = b""


# ---------------------------------------------------------------- effects: what to do next, as a value
@dataclass(frozen=True, slots=True)
class RequestToken:
    """The token step. The count of expired tokens tells a late answer to an earlier request apart."""

    charge_id: str
    card_token: str
    amount: Money
    expired_tokens: int


@dataclass(frozen=True, slots=True)
class Execute:
    """The execute step: move the money of this token's transaction, once, however often the bank is told."""

    charge_id: str
    card_token: str
    amount: Money
    token: str


Effect = RequestToken | Execute


# ---------------------------------------------------------------- answers: the bank's, or none
@dataclass(frozen=True, slots=True)
class Token:
    """The bank has a transaction under our reference, and this token names it."""

    token: str


@dataclass(frozen=True, slots=True)
class Executed:
    """The bank has executed the transaction, now or before, and every field it named equals ours."""

    transaction_id: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The bank said no and has closed the token for ever."""

    reason: DeclineReason


@dataclass(frozen=True, slots=True)
class Expired:
    """The bank has closed the token for ever, and it was definitely not executed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The bank definitely refused the request, and a look-up did not tell more."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The bank's answer does not fit our request or what the bank said before."""

    evidence: Evidence
    reason: ReviewReason = ReviewReason.CONTRADICTION


@dataclass(frozen=True, slots=True)
class InProgress:
    """The bank is at it: ask again, after its time if it named one."""

    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The request may or may not have been done. `our_setup`: the bank does not accept us (credentials)."""

    retry_after_seconds: float | None = None
    our_setup: bool = False


Answer = Token | Executed | Declined | Expired | Refused | Contradiction | InProgress | NoAnswer


# ---------------------------------------------------------------- messages: a command or an answer
@dataclass(frozen=True, slots=True)
class Charge:
    """A client's command. `faults` (field, text), what it breaks of today's rules, count for a new charge only."""

    request: Request
    faults: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back for an effect."""

    effect: Effect
    answer: Answer


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The charge is older than configured, and this process has asked the bank in vain so many times."""

    effect: Effect
    attempts: int


Message = Charge | Answered | GiveUp


# ---------------------------------------------------------------- events: the stored facts
@dataclass(frozen=True, slots=True)
class ChargeRequested:
    """A client's request was accepted."""

    request: Request


@dataclass(frozen=True, slots=True)
class TokenIssued:
    """The bank gave a transaction token; no money moved."""

    token: str


@dataclass(frozen=True, slots=True)
class TokenExpired:
    """The bank closed the token for ever, unexecuted."""

    token: str


@dataclass(frozen=True, slots=True)
class Charged:
    """The money moved, once."""

    user_id: str
    card: Card
    amount: Money
    transaction_id: str


@dataclass(frozen=True, slots=True)
class ChargeDeclined:
    """The bank said no; no money moved and none will."""

    reason: DeclineReason


@dataclass(frozen=True, slots=True)
class ReviewRequired:
    """Nobody may guess what happened: a person must look into it."""

    reason: ReviewReason
    evidence: Evidence = Evidence()


@dataclass(frozen=True, slots=True)
class ChargeAbandoned:
    """The bank could not be reached for the token step in time; no money moved and none will."""

    attempts: int


Outcome = Charged | ChargeDeclined | ReviewRequired | ChargeAbandoned
Event = ChargeRequested | TokenIssued | TokenExpired | Outcome


# ---------------------------------------------------------------- states
@dataclass(frozen=True, slots=True)
class Absent:
    """No events: nobody has asked."""


@dataclass(frozen=True, slots=True)
class AwaitingToken:
    """Accepted; the token step is next."""

    request: Request
    expired_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AwaitingExecution:
    """The journal holds the token; the execute step is next."""

    request: Request
    expired_tokens: int
    token: str


@dataclass(frozen=True, slots=True)
class AtRest:
    """Decided: everybody who asks with this key is told this outcome."""

    request: Request
    outcome: Outcome


State = Absent | AwaitingToken | AwaitingExecution | AtRest


class InvalidCharge(Exception):
    """A new charge breaks today's rules. args[0] is its faults."""


class KeyReused(Exception):
    """The idempotency key belongs to a charge of another user, card, amount or currency. args[0] is that charge's state."""


class ImpossibleEvent(Exception):
    """The journal holds an event that cannot follow the ones before it: it is not read on."""


# ---------------------------------------------------------------- the three functions
def decide(state: State, message: Message) -> list[Event]:
    """Say what a message means in a state: the events to append, none if it changes nothing.

    A command may be refused: InvalidCharge, KeyReused. An answer never raises.
    """
    match message:
        case Charge(request, faults):
            match state:
                case Absent() if faults:
                    raise InvalidCharge(faults)
                case Absent():
                    return [ChargeRequested(request)]
                case AwaitingToken(first) | AwaitingExecution(first) | AtRest(first):
                    asked = (request.user_id, request.card.token, request.amount)
                    if asked != (first.user_id, first.card.token, first.amount):
                        raise KeyReused(state)
                    return []
        case Answered(effect) | GiveUp(effect) if effect != next_step(state):
            return []  # Late: the step it speaks of is behind us.
        case Answered(_, answer):
            match state:
                case AwaitingToken():
                    return _decide_token_step(answer)
                case AwaitingExecution():
                    return _decide_execute_step(state, answer)
                case Absent() | AtRest():
                    return []
        case GiveUp(_, attempts):
            match state:
                case AwaitingToken() if attempts >= ATTEMPTS_BEFORE_GIVING_UP:
                    return [ChargeAbandoned(attempts)]
                case Absent() | AwaitingToken() | AwaitingExecution() | AtRest():
                    return []  # The execute step is never given up.


def _decide_token_step(answer: Answer) -> list[Event]:
    match answer:
        case Token(token):
            return [TokenIssued(token)]
        case Declined(reason):
            return [ChargeDeclined(reason)]
        case Refused():  # No token was given, so nothing can be executed: a definite no is an outcome.
            return [ChargeDeclined(DeclineReason.BANK_REFUSED)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Executed() | Expired():  # The answer to a question that was not asked.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case InProgress() | NoAnswer():
            return []


def _decide_execute_step(state: AwaitingExecution, answer: Answer) -> list[Event]:
    match answer:
        case Executed(transaction_id):
            return [Charged(state.request.user_id, state.request.card, state.request.amount, transaction_id)]
        case Declined(reason):
            return [ChargeDeclined(reason)]
        case Expired() if state.expired_tokens + 1 < TOKEN_LIMIT:
            return [TokenExpired(state.token)]
        case Expired():
            return [TokenExpired(state.token), ReviewRequired(ReviewReason.TOKENS_KEEP_EXPIRING)]
        case Refused(evidence):  # Money may have moved and the bank will not say: never a new token.
            return [ReviewRequired(ReviewReason.EXECUTE_REFUSED, evidence)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Token():  # The answer to a question that was not asked.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case InProgress() | NoAnswer():
            return []


def evolve(state: State, event: Event) -> State:
    """Fold one fact into the state. Raises ImpossibleEvent if it cannot follow."""
    match state, event:
        case Absent(), ChargeRequested(request):
            return AwaitingToken(request)
        case AwaitingToken(request, expired), TokenIssued(token):
            return AwaitingExecution(request, expired, token)
        case AwaitingExecution(request, expired, token), TokenExpired(closed) if closed == token:
            return AwaitingToken(request, expired + 1)
        case AwaitingToken(request), (ChargeDeclined() | ReviewRequired() | ChargeAbandoned()):
            return AtRest(request, event)
        case AwaitingExecution(request), (Charged() | ChargeDeclined() | ReviewRequired()):
            return AtRest(request, event)
    raise ImpossibleEvent(f"{type(event).__name__} cannot follow in {type(state).__name__}")


def is_over_without_money(state: State) -> bool:
    """Whether no money has moved for a charge and none ever will: only then may its payer try again under a new key."""
    return isinstance(state, AtRest) and isinstance(state.outcome, ChargeDeclined | ChargeAbandoned)


def next_step(state: State) -> Effect | None:
    """Say what to do next, never when. None: there is nothing to do, the charge is at rest."""
    match state:
        case AwaitingToken(request, expired_tokens):
            return RequestToken(request.charge_id, request.card.token, request.amount, expired_tokens)
        case AwaitingExecution(request, _, token):
            return Execute(request.charge_id, request.card.token, request.amount, token)
        case Absent() | AtRest():
            return None
