"""How one operation at the bank comes to rest: its two steps, and what each answer means.

1. Money moves in the execute step only, and only by a token that the journal already holds.
2. Another token is requested only after the bank has closed the last one for ever, unexecuted. In doubt the operation goes
   into review: the outcome is not guessed, and no new token is requested.
3. An answer counts only while its step is the next one. A late answer yields no event.
4. The token step is given up after enough time and enough attempts. The execute step is never given up.
5. No event follows an operation at rest.

    state              event                                               next state
    -----------------  --------------------------------------------------  -----------------
    Absent             ChargeRequested                                     AwaitingToken
    AwaitingToken      TokenIssued                                         AwaitingExecution
    AwaitingToken      ChargeDeclined, ReviewRequired, ChargeAbandoned     AtRest
    AwaitingExecution  TokenExpired                                        AwaitingToken
    AwaitingExecution  Charged, ChargeDeclined, ReviewRequired             AtRest

This table is the one place where the grammar of a stream is written down: a test holds the code to it, and the judge of the
proof reads it. Everything here is pure: time and the number of attempts come in as data.
"""

from dataclasses import dataclass
from typing import assert_never

from command_service.failures import ImpossibleEvent
from command_service.values import (
    Answer,
    ChargeAbandoned,
    Charged,
    ChargeDeclined,
    ChargeRequested,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Event,
    Execute,
    Executed,
    Expired,
    InProgress,
    NoAnswer,
    Outcome,
    Recorded,
    Refused,
    Request,
    RequestToken,
    ReviewReason,
    ReviewRequired,
    Token,
    TokenExpired,
    TokenIssued,
)

# An operation is given up only after this many unanswered calls by one process, however old it is: a server that comes
# back after a day off must not abandon an operation that it has never tried.
ATTEMPTS_BEFORE_GIVING_UP = 5
# A bank whose tokens always expire before they are executed is broken, and requesting on would never end.
TOKEN_LIMIT = 8


# ---------------------------------------------------------------- states
@dataclass(frozen=True, slots=True)
class AwaitingToken:
    """The token step is next. `requested_at` is in microseconds since 1970."""

    request: Request
    requested_at: int
    expired_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AwaitingExecution:
    """The journal holds the token, and the execute step is next."""

    request: Request
    requested_at: int
    expired_tokens: int
    token: str


@dataclass(frozen=True, slots=True)
class AtRest:
    """The outcome is decided. `position` is that of the deciding event in the journal."""

    request: Request
    requested_at: int
    outcome: Outcome
    position: int


Operation = AwaitingToken | AwaitingExecution | AtRest


# ---------------------------------------------------------------- the bank's answer to a step
@dataclass(frozen=True, slots=True)
class Tried:
    """The input of the rule of giving up.

    `unanswered` counts the unanswered calls of this process, this one included. `now` is in microseconds since
    1970. In a restored journal the bank may know of steps that the journal has lost.
    """

    unanswered: int
    now: int
    abandon_after_seconds: float
    is_restored: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """The bank's answer to a step, or that there was none."""

    effect: Effect
    answer: Answer
    tried: Tried


def is_unanswered(answer: Answer) -> bool:
    """Whether a call counts for giving up. A bank that refuses our credentials would serve us once people mend them."""
    return isinstance(answer, NoAnswer) and not answer.our_setup


# ---------------------------------------------------------------- the three functions
def next_step(operation: Operation) -> Effect | None:
    """Say what to do next, never when. None: the operation is at rest."""
    match operation:
        case AwaitingToken(request, _, expired_tokens):
            return RequestToken(request.charge_id, request.card.token, request.amount, expired_tokens)
        case AwaitingExecution(request, _, _, token):
            return Execute(request.charge_id, request.card.token, request.amount, token)
        case AtRest():
            return None
        case _:
            assert_never(operation)


def answered(operation: Operation, message: Answered) -> list[Event]:
    """Say what an answer means: the events to append, none if it changes nothing. Never raises."""
    if message.effect != next_step(operation):
        return []  # Late: its step is over. Only the two cases with a next step are left below.
    match operation:
        case AwaitingToken():
            return _token_step(operation, message.answer, message.tried)
        case AwaitingExecution():
            return _execute_step(operation, message.answer)
        case AtRest():
            return []
        case _:
            assert_never(operation)


def _token_step(operation: AwaitingToken, answer: Answer, tried: Tried) -> list[Event]:
    match answer:
        case Token(token):
            return [TokenIssued(token)]
        case Declined(reason):
            return [ChargeDeclined(reason)]
        case Refused():  # The bank gave no token, so nothing can be executed: a definite no is an outcome.
            return [ChargeDeclined(DeclineReason.BANK_REFUSED)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Executed() | Expired():  # An answer to a question that was not asked.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case NoAnswer() if is_unanswered(answer) and _is_given_up(operation, tried):
            return [ChargeAbandoned(tried.unanswered)]
        case InProgress() | NoAnswer():
            return []
        case _:
            assert_never(answer)


def _is_given_up(operation: AwaitingToken, tried: Tried) -> bool:
    """Whether to give up. A clock that went back makes an operation younger, never older."""
    age_seconds = max(0.0, (tried.now - operation.requested_at) / 1_000_000)
    is_due = tried.unanswered >= ATTEMPTS_BEFORE_GIVING_UP and age_seconds >= tried.abandon_after_seconds
    return is_due and not tried.is_restored


def _execute_step(operation: AwaitingExecution, answer: Answer) -> list[Event]:
    match answer:
        case Executed(transaction_id):
            request = operation.request
            return [Charged(request.user_id, request.card, request.amount, transaction_id)]
        case Declined(reason):
            return [ChargeDeclined(reason)]
        case Expired() if operation.expired_tokens + 1 < TOKEN_LIMIT:
            return [TokenExpired(operation.token)]  # The token step follows once more.
        case Expired():
            return [TokenExpired(operation.token), ReviewRequired(ReviewReason.TOKENS_KEEP_EXPIRING)]
        case Refused(evidence):  # Money may have moved and the bank does not say: never a new token.
            return [ReviewRequired(ReviewReason.EXECUTE_REFUSED, evidence)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Token():  # An answer to a question that was not asked.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case InProgress() | NoAnswer():
            return []
        case _:
            assert_never(answer)


def evolve(operation: Operation | None, recorded: Recorded) -> Operation:
    """Fold one stored event into an operation; None: it has not begun. Raises ImpossibleEvent if the event cannot follow."""
    event = recorded.event
    match operation, event:
        case None, ChargeRequested(request):
            return AwaitingToken(request, recorded.recorded_at)
        case AwaitingToken(request, requested_at, expired), TokenIssued(token):
            return AwaitingExecution(request, requested_at, expired, token)
        case AwaitingExecution(request, requested_at, expired, token), TokenExpired(closed) if closed == token:
            return AwaitingToken(request, requested_at, expired + 1)
        case AwaitingToken(request, requested_at), (ChargeDeclined() | ReviewRequired() | ChargeAbandoned()):
            return AtRest(request, requested_at, event, recorded.position)
        case AwaitingExecution(request, requested_at), (Charged() | ChargeDeclined() | ReviewRequired()):
            return AtRest(request, requested_at, event, recorded.position)
    before = type(operation).__name__ if operation else "Absent"
    raise ImpossibleEvent(f"{type(event).__name__} cannot follow in {before}")
