"""How one operation of a charge comes to rest: its two steps at the bank, and the meaning of each answer.

An operation is one movement of money; so far there is one kind, the charging itself. After a crash its next step is simply done
again. That is safe because the bank keeps two promises (`command_service.bank`): a token step that is repeated under the same
charge id names the same transaction, unless that one has expired; and an execute step that is repeated with the same
transaction token moves money once.

1. Money moves in the execute step only, and only by a token that the journal already holds.
2. A token that the journal holds is replaced only after the bank has closed it for ever, unexecuted. If answers contradict
   each other, the operation goes into review: nobody guesses, and nobody requests another token.
3. An answer counts only while its step is the next one. A late answer yields no event.
4. In the token step an operation is given up once it is `abandon_after_seconds` old and five attempts of this run, at
   whatever step, came to no answer. In the execute step it never is: money may have moved.
5. No event follows an operation at rest.

    state              event                                               next state
    -----------------  --------------------------------------------------  -----------------
    Absent             ChargeRequested                                     AwaitingToken
    AwaitingToken      TokenIssued                                         AwaitingExecution
    AwaitingToken      ChargeDeclined, ReviewRequired, ChargeAbandoned     AtRest
    AwaitingExecution  TokenExpired                                        AwaitingToken
    AwaitingExecution  Charged, ChargeDeclined, ReviewRequired             AtRest

Absent is the state before the first event. This table is the one place where the order of events in a stream is written by
hand: a test holds the code to it, and the grammar of the history checker (`judge/`) is made from it. Everything here is pure:
time and the number of attempts come in as data.
"""

from typing import NamedTuple, assert_never

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
    value,
)

# An operation is given up only after this many unanswered attempts in one run, however old it is: a server that comes back
# after a day off must first find out that the bank does not answer.
ATTEMPTS_BEFORE_GIVING_UP = 5
# A bank whose tokens always expire before they are executed is broken, and requesting on would never end.
TOKEN_LIMIT = 8


# ---------------------------------------------------------------- states
@value
class AwaitingToken:
    """The token step is next. `requested_at` is in microseconds since 1970."""

    request: Request
    requested_at: int
    expired_tokens: int = 0


@value
class AwaitingExecution:
    """The journal holds the transaction token, and the execute step is next."""

    request: Request
    requested_at: int
    expired_tokens: int
    token: str


@value
class AtRest:
    """The outcome is decided. `position` is that of the deciding event in the journal."""

    request: Request
    requested_at: int
    outcome: Outcome
    position: int


Operation = AwaitingToken | AwaitingExecution | AtRest


# ---------------------------------------------------------------- the bank's answer to a step
class Attempts(NamedTuple):
    """What the rule of giving up needs to know.

    `unanswered` counts the attempts of this run that came to no answer, this one included. While the bank is spared
    (`bank/breaker.py`), an unanswered probe for one charge counts for each charge that waits. `now` is in microseconds since
    1970. `is_restored`: the journal came from a backup, once and for all, and may lack steps that the bank has done, so
    nothing is given up.
    """

    unanswered: int
    now: int
    abandon_after_seconds: float
    is_restored: bool


@value
class Answered:
    """The bank's answer to a step. `NoAnswer` is one of the answers."""

    effect: Effect
    answer: Answer
    attempts: Attempts


def counts_for_giving_up(answer: Answer) -> bool:
    """Whether an attempt counts as unanswered. A bank that refuses our credentials serves us once they are corrected."""
    return isinstance(answer, NoAnswer) and not answer.our_setup


# ---------------------------------------------------------------- what to do, what it means, what follows
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


def decide(operation: Operation, message: Answered) -> list[Event]:
    """Say what an answer means: the events to append, none if it changes nothing. Never raises."""
    if message.effect != next_step(operation):
        return []  # Late: its step is no longer the next one.
    match operation:
        case AwaitingToken():
            return _after_token_step(operation, message.answer, message.attempts)
        case AwaitingExecution():
            return _after_execute_step(operation, message.answer)
        case AtRest():
            return []  # Never reached: it has no next step.
        case _:
            assert_never(operation)


def _after_token_step(operation: AwaitingToken, answer: Answer, attempts: Attempts) -> list[Event]:
    match answer:
        case Token(token):
            return [TokenIssued(token)]
        case Declined(reason):
            return [ChargeDeclined(reason)]
        case Refused():  # The bank opened no transaction, so nothing can be executed: a definite no is an outcome.
            return [ChargeDeclined(DeclineReason.BANK_REFUSED)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Executed() | Expired():  # No bank's adapter answers this step so.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case NoAnswer() if counts_for_giving_up(answer) and _is_given_up(operation, attempts):
            return [ChargeAbandoned(attempts.unanswered)]
        case InProgress() | NoAnswer():
            return []
        case _:
            assert_never(answer)


def _is_given_up(operation: AwaitingToken, attempts: Attempts) -> bool:
    """Whether to ask no longer. A clock that went back makes an operation young, never old."""
    age_seconds = max(0.0, (attempts.now - operation.requested_at) / 1_000_000)
    is_due = attempts.unanswered >= ATTEMPTS_BEFORE_GIVING_UP and age_seconds >= attempts.abandon_after_seconds
    return is_due and not attempts.is_restored


def _after_execute_step(operation: AwaitingExecution, answer: Answer) -> list[Event]:
    match answer:
        case Executed(transaction_id):
            request = operation.request
            return [Charged(request.user_id, request.card, request.amount, transaction_id)]
        case Declined(reason):
            return [ChargeDeclined(reason)]
        case Expired() if operation.expired_tokens + 1 < TOKEN_LIMIT:
            return [TokenExpired(operation.token)]  # The token step follows once more.
        case Expired():  # The last one: TokenExpired, then ReviewRequired in AwaitingToken, in one append.
            return [TokenExpired(operation.token), ReviewRequired(ReviewReason.TOKENS_KEEP_EXPIRING)]
        case Refused(evidence):  # Money may have moved and the bank does not say: never a new token.
            return [ReviewRequired(ReviewReason.EXECUTE_REFUSED, evidence)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Token():  # No bank's adapter answers this step so.
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
        case AwaitingToken(request, requested_at, _), (ChargeDeclined() | ReviewRequired() | ChargeAbandoned()):
            return AtRest(request, requested_at, event, recorded.position)
        case AwaitingExecution(request, requested_at, _, _), (Charged() | ChargeDeclined() | ReviewRequired()):
            return AtRest(request, requested_at, event, recorded.position)
    before = type(operation).__name__ if operation else "Absent"
    raise ImpossibleEvent(f"{type(event).__name__} cannot follow in {before}")
