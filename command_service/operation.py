"""How one operation of a charge comes to rest: its two steps at the bank, and the meaning of each answer.

An operation is one use of the bank's two steps, of whatever kind: a charge, a hold, a capture, a void, a refund. After a crash
its next step is simply done again. That is safe because the bank keeps its promises (`command_service.bank`): a repeated token
step names the same transaction, unless that one has expired, and a repeated execute step does its transaction once.

1. Money moves in the execute step only, and only by a token that the journal already holds.
2. A token that the journal holds is replaced only after the bank has closed it for ever, unexecuted. If answers contradict
   each other, the operation goes into review: nobody guesses, and nobody requests another token.
3. An answer counts only while its step is the next one. A late answer yields no event.
4. Without a token an operation is given up once it is `abandon_after_seconds` old and five attempts at it in this run, at
   whatever step, came to no answer. With a token it never is: money may have moved.
5. An operation that opens a charge can be called off: then the bank is asked to close the token instead of executing it. If
   the bank had executed it already, that is its outcome.
6. No event follows an operation at rest, unless it is in review: two people may resolve that (`command_service.desk_rules`).
7. The bank may want a step of the customer before money moves. The execute step is then repeated at a slow pace, to learn
   whether that step was done. If nobody is there to do it (`is_off_session`), the charge is called off and declined. If the
   bank gives up waiting, it is declined too: no new token is requested.

    state              event                                               next state
    -----------------  --------------------------------------------------  -----------------
    Absent             Requested                                           AwaitingToken
    AwaitingToken      TokenIssued                                         AwaitingExecution
    AwaitingToken      Declined, ReviewRequired, Abandoned                 AtRest
    AwaitingToken      NotAfterPassed, VoidRequested                       CallingOff
    AwaitingExecution  TokenExpired                                        AwaitingToken
    AwaitingExecution  Moved, Declined, ReviewRequired, CalledOff          AtRest
    AwaitingExecution  NotAfterPassed, VoidRequested                       CallingOff
    AwaitingExecution  ActionRequired                                      AwaitingCustomer
    AwaitingCustomer   ActionRequired                                      AwaitingCustomer
    AwaitingCustomer   Moved, Declined, ReviewRequired, CalledOff          AtRest
    AwaitingCustomer   NotAfterPassed, VoidRequested                       CallingOff
    CallingOff         VoidRequested                                       CallingOff
    CallingOff         Moved, Declined, ReviewRequired, CalledOff          AtRest
    CallingOff         Abandoned                                           AtRest
    AtRest             ResolutionApproved                                  Resolving
    Resolving          Moved, Declined                                     AtRest

    kind       Requested         Moved       Declined                                 Abandoned           CalledOff
    ---------  ----------------  ----------  ---------------------------------------  ------------------  ---------------
    charge     ChargeRequested   Charged     ChargeDeclined                           ChargeAbandoned     ChargeCalledOff
    authorize  ChargeRequested   Authorized  ChargeDeclined                           ChargeAbandoned     ChargeCalledOff
    capture    CaptureRequested  Captured    OperationDeclined, AuthorizationExpired  OperationAbandoned  -
    void       VoidRequested     Voided      OperationDeclined, AuthorizationExpired  OperationAbandoned  -
    refund     RefundRequested   Refunded    OperationDeclined                        OperationAbandoned  -

Absent is the state before the first event of an operation; `charge.py` folds that event, since it knows what may follow. The
events are named as the journal stores them: in the code CaptureRequested, VoidRequested and RefundRequested are one event with
a kind, OperationRequested. Only the kinds that can be CalledOff have ActionRequired, NotAfterPassed and, before they are at
rest, VoidRequested, which also requests the void that waits for their end. These tables are the one place where the order of
events is written by hand: tests hold the code to them, and the judge's grammar is made from them. All of it is pure.
"""

from typing import ClassVar, NamedTuple, TypeGuard, assert_never

from command_service.events import (
    MOVED,
    ActionRequired,
    AuthorizationExpired,
    Authorized,
    Captured,
    ChargeAbandoned,
    ChargeCalledOff,
    Charged,
    ChargeDeclined,
    Event,
    Moved,
    NotAfterPassed,
    OperationAbandoned,
    OperationDeclined,
    Outcome,
    Recorded,
    Refunded,
    ResolutionApproved,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
    Voided,
)
from command_service.failures import ImpossibleEvent
from command_service.values import (
    Answer,
    CalledOff,
    CallOff,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Execute,
    Executed,
    Expired,
    InProgress,
    Kind,
    NeedsAction,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
    value,
)

# An operation is given up only after this many unanswered attempts in one run, however old it is: a server that comes back
# after a day off must first find out that the bank does not answer.
ATTEMPTS_BEFORE_GIVING_UP = 5
# A bank whose tokens always expire before they are executed is broken, and requesting on would never end.
TOKEN_LIMIT = 8
# An address of the customer's step that changes is stored anew, this often: a bank that names another one each time is broken.
ADDRESS_LIMIT = 8

_NOT_AUTHENTICATED = ChargeDeclined(DeclineReason.AUTHENTICATION_REQUIRED)


# ---------------------------------------------------------------- states
@value
class AwaitingToken:
    """The token step is next: the journal holds no `token` that is open. `requested_at` is in microseconds since 1970."""

    operation: Operation
    requested_at: int
    expired_tokens: int = 0
    token: ClassVar[None] = None


@value
class AwaitingExecution:
    """The journal holds the transaction token, and the execute step is next."""

    operation: Operation
    requested_at: int
    expired_tokens: int
    token: str


@value
class AwaitingCustomer:
    """The bank waits for a step of the customer at `url`. `addresses` is the number of those that it has named."""

    operation: Operation
    requested_at: int
    token: str
    url: str
    expires_at: int
    addresses: int = 1


@value
class CallingOff:
    """The bank is asked to close the transaction. `token` is None if the journal holds none that is open."""

    operation: Operation
    requested_at: int
    token: str | None


@value
class AtRest:
    """The outcome is decided: by the event at `position`, stored at `decided_at`, in microseconds since 1970.

    `token`: the one that was open until then; None if the journal held none.
    """

    operation: Operation
    requested_at: int
    outcome: Outcome
    position: int
    decided_at: int
    token: str | None = None


@value
class Resolving:
    """Two people have found the outcome of a review, and its event follows. `token` is as in `AtRest`."""

    operation: Operation
    requested_at: int
    token: str | None


UnderWay = AwaitingToken | AwaitingExecution | AwaitingCustomer | CallingOff
Progress = UnderWay | Resolving | AtRest


# ---------------------------------------------------------------- the bank's answer to a step
class Attempts(NamedTuple):
    """What the rule of giving up needs to know.

    `unanswered` counts the attempts at this operation, in this run, that came to no answer, this one included. While the bank
    is spared, an unanswered probe for one charge counts for each charge that waits. `now` is in microseconds since 1970.
    `is_restored`: the journal came from a backup and may lack steps that the bank has done, so nothing is given up. That mark
    of a journal is never removed.
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
def next_step(progress: Progress) -> Effect | None:
    """Say what to do next, never when. None: the operation is at rest, or about to be."""
    match progress:
        case AwaitingToken(operation, _, expired_tokens):
            return RequestToken(operation, expired_tokens)
        case AwaitingExecution(operation, _, _, token):
            return Execute(operation, token)
        case AwaitingCustomer(operation, _, token) if operation.request.is_off_session:
            return CallOff(operation, token)
        case AwaitingCustomer(operation, _, token):
            return Execute(operation, token)
        case CallingOff(operation, _, token):
            return CallOff(operation, token)
        case Resolving() | AtRest():
            return None
        case _:
            assert_never(progress)


def decide(progress: Progress, message: Answered) -> list[Event]:
    """Say what an answer means: the events to append, none if it changes nothing. Never raises."""
    if isinstance(progress, Resolving | AtRest) or message.effect != next_step(progress):
        return []  # Late: its step is no longer the next one.
    match progress:
        case AwaitingToken():
            return _after_token_step(progress, message.answer, message.attempts)
        case AwaitingExecution():
            return _after_execute_step(progress, message.answer)
        case AwaitingCustomer():
            return _while_the_customer_is_awaited(progress, message.answer, message.attempts)
        case CallingOff():
            return _after_calling_off(progress, message.answer, message.attempts)
        case _:
            assert_never(progress)


def _after_token_step(progress: AwaitingToken, answer: Answer, attempts: Attempts) -> list[Event]:
    operation = progress.operation
    match answer:
        case Token(token):
            return [TokenIssued(token)]
        case Declined(reason):
            return [declined(operation, reason)]
        case Refused():  # The bank opened no transaction, so nothing can be executed: a definite no is an outcome.
            return [declined(operation, DeclineReason.BANK_REFUSED)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Executed() | Expired() | CalledOff() | NeedsAction():  # No adapter gives this answer to this step.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case InProgress():  # It answers, so it is not given up.
            return []
        case NoAnswer():
            return _given_up(progress, answer, attempts)
        case _:
            assert_never(answer)


def _after_execute_step(progress: AwaitingExecution, answer: Answer) -> list[Event]:
    operation = progress.operation
    match answer:
        case Executed():
            return [moved(operation, answer)]
        case Declined(reason):
            return [declined(operation, reason)]
        case CalledOff():  # Somebody else called it off, or we did before the journal was restored.
            return [ChargeCalledOff() if operation.opens else OperationDeclined(DeclineReason.OTHER)]
        case Expired() if progress.expired_tokens + 1 < TOKEN_LIMIT:
            return [TokenExpired(progress.token)]  # The token step follows once more.
        case Expired():  # The last one: TokenExpired, then ReviewRequired in AwaitingToken, in one append.
            return [TokenExpired(progress.token), ReviewRequired(ReviewReason.TOKENS_KEEP_EXPIRING)]
        case Refused(evidence):  # Money may have moved and the bank does not say: never a new token.
            return [ReviewRequired(ReviewReason.EXECUTE_REFUSED, evidence)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case NeedsAction(url, expires_at) if operation.opens:
            return [ActionRequired(url, expires_at)]
        case Token() | NeedsAction():  # No adapter gives this answer to this step.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case InProgress() | NoAnswer():
            return []
        case _:
            assert_never(answer)


def _while_the_customer_is_awaited(progress: AwaitingCustomer, answer: Answer, attempts: Attempts) -> list[Event]:
    operation, requested_at, token = progress.operation, progress.requested_at, progress.token
    if operation.request.is_off_session:  # It is called off, and that is a decline: nobody wanted it voided.
        events = _after_calling_off(CallingOff(operation, requested_at, token), answer, attempts)
        return [_NOT_AUTHENTICATED] if events == [ChargeCalledOff()] else events
    match answer:
        case NeedsAction(url, expires_at):
            is_another = (url, expires_at) != (progress.url, progress.expires_at)
            return [ActionRequired(url, expires_at)] if is_another and progress.addresses < ADDRESS_LIMIT else []
        case Expired():  # The bank has closed it for ever, unexecuted, since the step was not done in time.
            return [_NOT_AUTHENTICATED]
        case _:  # As before the bank wanted that step.
            return _after_execute_step(AwaitingExecution(operation, requested_at, 0, token), answer)


def _after_calling_off(progress: CallingOff, answer: Answer, attempts: Attempts) -> list[Event]:
    operation = progress.operation
    match answer:
        case CalledOff() | Expired():  # Either way the bank has closed it for ever, unexecuted.
            return [ChargeCalledOff()]
        case Executed():  # Too late: it had been executed.
            return [moved(operation, answer)]
        case Declined(reason):
            return [declined(operation, reason)]
        case Refused(evidence):
            return [ReviewRequired(ReviewReason.CALL_OFF_REFUSED, evidence)]
        case Contradiction(evidence, reason):
            return [ReviewRequired(reason, evidence)]
        case Token() | NeedsAction():  # No adapter gives this answer to this step.
            return [ReviewRequired(ReviewReason.CONTRADICTION)]
        case InProgress():
            return []
        case NoAnswer():
            return [] if progress.token else _given_up(progress, answer, attempts)
        case _:
            assert_never(answer)


def _given_up(progress: AwaitingToken | CallingOff, answer: NoAnswer, attempts: Attempts) -> list[Event]:
    """Ask no longer, if it is time for that. A clock that went back makes an operation young, never old."""
    age_seconds = max(0.0, (attempts.now - progress.requested_at) / 1_000_000)
    is_due = attempts.unanswered >= ATTEMPTS_BEFORE_GIVING_UP and age_seconds >= attempts.abandon_after_seconds
    if not is_due or attempts.is_restored or not counts_for_giving_up(answer):
        return []
    unanswered = attempts.unanswered
    return [ChargeAbandoned(unanswered) if progress.operation.opens else OperationAbandoned(unanswered)]


def moved(operation: Operation, answer: Executed) -> Moved:
    """Return the event of an operation that the bank has executed."""
    request, amount, transaction_id = operation.request, operation.amount, answer.transaction_id
    match operation.kind:
        case Kind.CHARGE:
            return Charged(request.user_id, request.card, amount, transaction_id)
        case Kind.AUTHORIZE:
            return Authorized(request.user_id, request.card, amount, transaction_id, answer.expires_at)
        case Kind.CAPTURE:
            return Captured(amount, transaction_id)
        case Kind.VOID:
            return Voided(amount, transaction_id)
        case Kind.REFUND:
            return Refunded(amount, transaction_id)
        case _:
            assert_never(operation.kind)


def declined(operation: Operation, reason: DeclineReason) -> ChargeDeclined | OperationDeclined | AuthorizationExpired:
    """Return the event of an operation that was not executed and never will be."""
    if operation.opens:
        return ChargeDeclined(reason)
    if reason is DeclineReason.AUTHORIZATION_EXPIRED and operation.kind is not Kind.REFUND:
        return AuthorizationExpired()
    return OperationDeclined(reason)


def _may_end(event: Event, progress: UnderWay | Resolving) -> TypeGuard[Outcome]:
    operation = progress.operation
    has_no_token = not isinstance(progress, Resolving) and progress.token is None
    match event:
        case ReviewRequired():
            return not isinstance(progress, Resolving)
        case ChargeDeclined():
            return operation.opens
        case OperationDeclined():
            return not operation.opens
        case AuthorizationExpired():
            return operation.kind is Kind.CAPTURE or operation.kind is Kind.VOID
        case ChargeAbandoned():
            return operation.opens and has_no_token
        case OperationAbandoned():
            return not operation.opens and has_no_token
        case ChargeCalledOff():
            return operation.opens and not isinstance(progress, AwaitingToken | Resolving)
        case _:
            return isinstance(event, MOVED[operation.kind]) and not isinstance(progress, AwaitingToken)


def awaits_customer(progress: Progress) -> TypeGuard[AwaitingCustomer]:
    """Whether a customer is there and the bank waits for this customer's step, so that a client is to be told of it."""
    return isinstance(progress, AwaitingCustomer) and not progress.operation.request.is_off_session


def call_off(progress: Progress) -> CallingOff:
    """Fold in that an operation is to be called off. Raises ImpossibleEvent unless it opens a charge and is under way."""
    if not isinstance(progress, Resolving | AtRest) and progress.operation.opens:
        return CallingOff(progress.operation, progress.requested_at, progress.token)
    raise ImpossibleEvent(f"nothing can be called off in {type(progress).__name__}")


def evolve(progress: Progress, recorded: Recorded) -> Progress:
    """Fold one stored event into an operation. Raises ImpossibleEvent if the event cannot follow."""
    event = recorded.event
    match progress, event:
        case AwaitingToken(operation, requested_at, expired), TokenIssued(token):
            return AwaitingExecution(operation, requested_at, expired, token)
        case AwaitingExecution(operation, requested_at, expired, token), TokenExpired(closed) if closed == token:
            return AwaitingToken(operation, requested_at, expired + 1)
        case AwaitingExecution(operation, requested_at, _, token), ActionRequired(url, expires_at) if operation.opens:
            return AwaitingCustomer(operation, requested_at, token, url, expires_at)
        case AwaitingCustomer(operation, requested_at, token, _, _, addresses), ActionRequired(url, expires_at):
            return AwaitingCustomer(operation, requested_at, token, url, expires_at, addresses + 1)
        case AwaitingToken() | AwaitingExecution() | AwaitingCustomer(), NotAfterPassed():
            return call_off(progress)
        case AtRest(operation, requested_at, ReviewRequired(), token=token), ResolutionApproved():
            return Resolving(operation, requested_at, token)
    if not isinstance(progress, AtRest) and _may_end(event, progress):
        operation, requested_at, token = progress.operation, progress.requested_at, progress.token
        return AtRest(operation, requested_at, event, recorded.position, recorded.recorded_at, token)
    raise ImpossibleEvent(f"{type(event).__name__} cannot follow in {type(progress).__name__}")
