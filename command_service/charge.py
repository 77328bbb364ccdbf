"""A charge as a whole: which operation may follow which, for how much, and the outcome that an idempotency key is told.

The core is three pure functions. `decide` turns a message into events, `evolve` folds a stored event into a state, and
`next_step` names the next step. They stand here for the charge, and hand over to the same three in
`command_service.operation` for the operation under way.

1. One idempotency key names one charge, for ever, and within a charge one operation that follows. Under the same key the same
   request finds its charge or its operation, another is refused.
2. The rules of screening count for what is new only: rules get stricter, and the retry of what was accepted must find it.
3. Once an outcome is decided, its key is told this outcome and the position of its event for ever. One exception: an operation
   in review, of which nobody knows the outcome, may be resolved by two people. Then its key is told that outcome for ever.
4. One operation at a time is under way in a charge. The next may begin when it is at rest, unless it is in review.
5. What operators may do about a charge is said in `command_service.desk_rules`. One that is held back has no next step.
6. The charge's `Book` says for how much an operation may follow (`command_service.book`).

A void may also follow while the operation that opens the charge is under way: it calls it off. If the bank has executed an
authorisation by then, the void goes on and lets the hold go; in all other cases it ends with the charge's outcome.
"""

from dataclasses import replace
from typing import assert_never

from command_service import desk_rules
from command_service import operation as operations
from command_service.book import Book
from command_service.desk_rules import Desk, Stand, Wanted
from command_service.events import (
    Authorized,
    Charged,
    ChargeRequested,
    DeskStep,
    Event,
    NotAfterPassed,
    OperationRequested,
    Recorded,
    Refunded,
    ResolutionApproved,
    ReviewRequired,
)
from command_service.failures import (
    ChargeInReview,
    ChargeUnknown,
    DoesNotFit,
    ImpossibleEvent,
    InvalidRequest,
    KeyReused,
    MoreThanIsLeft,
    NotAtTheDesk,
    OperationUnderWay,
    TooManyOperations,
)
from command_service.operation import Answered, AtRest, AwaitingToken, CallingOff, Progress, Resolving
from command_service.values import Card, Effect, Kind, Money, Operation, Request, Wish, value

# Each call about a charge folds its whole stream: a replay of a refund among three hundred costs twenty times as much as one
# that is alone (measured).
MOST_OPERATIONS = 200
"""The largest number of operations that follow in a charge."""

Faults = tuple[tuple[str, str], ...]
"""The rules of screening that a request breaks: pairs of field and text."""


# ---------------------------------------------------------------- messages
@value
class Command:
    """A client asks for a charge."""

    request: Request
    faults: Faults = ()
    allow_duplicate: bool = False


@value
class Follow:
    """A client asks for an operation that follows in a charge."""

    wish: Wish
    faults: Faults = ()


@value
class Due:
    """Time has passed. `now` is in microseconds since 1970."""

    now: int


Message = Command | Follow | Due | Answered | Wanted


# ---------------------------------------------------------------- states
@value
class Absent:
    """No events: nobody has asked."""


@value
class Charge:
    """A charge that was asked for. `newest` is the operation under way, or the last one that came to rest.

    `done` are the operations before `newest`. `void` is a void that waits for the end of the opening operation, which it calls
    off. `position` is that of the newest event. `desk`: what operators have done about it. For example:

                               done                 newest                  void
        charged                -                    opening, at rest        -
        a refund under way     opening              refund, awaiting ...    -
        called off by a void   -                    opening, calling off    void, awaiting token
        the void goes on       opening, authorised  void, awaiting token    -
    """

    request: Request
    newest: Progress
    position: int
    book: Book = Book()
    done: tuple[AtRest, ...] = ()
    void: AwaitingToken | None = None
    desk: Desk = desk_rules.UNTOUCHED

    @property
    def opening(self) -> Progress:
        """The operation that opened it."""
        return self.done[0] if self.done else self.newest

    @property
    def transaction_id(self) -> str:
        """The bank's id of the transaction that opened it; empty until that is executed."""
        match self.opening:
            case AtRest(outcome=Charged(transaction_id=transaction_id) | Authorized(transaction_id=transaction_id)):
                return transaction_id
            case _:
                return ""


State = Absent | Charge


# ---------------------------------------------------------------- decide
def decide(state: State, message: Message) -> list[Event]:
    """Say what a message means in a state: the events to append, none if it changes nothing.

    A client's message may raise a CommandRefused or OperationUnderWay, an operator's a CommandRefused. The others never raise.
    """
    match message:
        case Command():
            return _asked_for_a_charge(state, message.request, message.faults)
        case Follow():
            return _asked_to_follow(state, message.wish, message.faults)
        case Due(now):
            return [NotAfterPassed()] if is_overdue(state, now) else []
        case Answered():
            return operations.decide(state.newest, message) if isinstance(state, Charge) else []
        case desk_rules.WantedStep() | desk_rules.WantedApproval():
            return _wanted_at_the_desk(state, message)
        case _:
            assert_never(message)


def _asked_for_a_charge(state: State, request: Request, faults: Faults) -> list[Event]:
    match state:
        case Absent() if faults:
            raise InvalidRequest(faults)
        case Absent():
            return [ChargeRequested(request)]
        case Charge(known) if not _is_same(request, known):
            raise KeyReused(state)
        case Charge():
            return []
        case _:
            assert_never(state)


def _is_same(request: Request, known: Request) -> bool:
    """Whether a request under a known key is a retry. For every other field the first request wins."""
    return (
        (request.user_id, request.amount) == (known.user_id, known.amount)
        and request.is_held == known.is_held
        and is_same_card(request.card, known.card)
    )


def is_same_card(card: Card, other: Card) -> bool:
    """Whether two cards are one: by their fingerprints where both have one, else by their tokens."""
    if card.fingerprint and other.fingerprint:
        return card.fingerprint == other.fingerprint
    return card.token == other.token


def _asked_to_follow(state: State, wish: Wish, faults: Faults) -> list[Event]:
    if not isinstance(state, Charge) or not is_of(state, wish.tenant):
        raise ChargeUnknown
    if (known := following(state, wish.idempotency_key)) is not None:
        if not _is_same_wish(wish, known.operation):
            raise KeyReused(state, known)
        return []
    currency = state.request.amount.currency_code
    if wish.amount is not None and wish.amount.currency_code != currency:
        faults = tuple({"amount.currency_code": "must be the currency of the charge", **dict(faults)}.items())
    if faults:
        raise InvalidRequest(faults)
    if len(state.done) >= MOST_OPERATIONS:
        raise TooManyOperations
    if wish.kind is Kind.VOID and _may_be_called_off(state):
        left = state.request.amount.minor_units
    elif not isinstance(state.newest, AtRest):
        raise OperationUnderWay
    elif is_in_review(state):
        raise ChargeInReview
    elif not state.book.fits(wish.kind):
        raise DoesNotFit(state, wish.kind)
    else:
        left = state.book.left(wish.kind)
    minor_units = left if wish.amount is None else wish.amount.minor_units
    if not 0 < minor_units <= left:  # screening refuses less than one, and the book must not rest on that
        raise MoreThanIsLeft(left)
    amount = Money(minor_units, currency)
    return [
        OperationRequested(
            wish.kind,
            wish.operation_id,
            wish.idempotency_key,
            wish.actor,
            amount,
            wish.is_final,
            wish.reason,
            wish.traceparent,
        )
    ]


def _is_same_wish(wish: Wish, known: Operation) -> bool:
    """Whether a wish under a known key is a retry. To leave the amount out means all that was left when it was first asked."""
    if (wish.kind, wish.is_final) != (known.kind, known.is_final):
        return False
    return wish.amount == known.amount if wish.amount is not None else known.takes_all


def _may_be_called_off(charge: Charge) -> bool:
    """Whether a void that is new may call the opening operation off."""
    newest = charge.newest
    return newest.operation.opens and not isinstance(newest, Resolving | AtRest) and charge.void is None


def needs_banks_word(charge: Charge, actor: str, reason: str, proposal: int) -> bool:
    """Whether an operator may approve a proposal once the bank was asked. False: it is approved so already.

    Raises CommandRefused if the operator may not approve it.
    """
    if desk_rules.is_approved_already(charge.desk, actor, reason, proposal):
        return False
    desk_rules.check_approval(stand_of(charge), actor, proposal)
    return True


def _wanted_at_the_desk(state: State, message: Wanted) -> list[Event]:
    if not isinstance(state, Charge) or (message.tenant and not is_of(state, message.tenant)):
        raise ChargeUnknown
    try:
        return desk_rules.decide(stand_of(state), message)
    except NotAtTheDesk:
        raise NotAtTheDesk(state) from None


def is_overdue(state: State, now: int) -> bool:
    """Whether the charge must be called off: its `not_after` has passed before its end, and nobody has called it off yet.

    Not while it is held back.
    """
    return isinstance(state, Charge) and 0 < state.request.not_after < now and _may_be_overdue(state)


def seconds_to_its_end(state: State, now: int) -> float:
    """The seconds after which the charge is overdue, if it is still being opened; infinity if it never is."""
    if not isinstance(state, Charge) or not state.request.not_after or not _may_be_overdue(state):
        return float("inf")
    return max(0.0, (state.request.not_after + 1 - now) / 1_000_000)


def _may_be_overdue(charge: Charge) -> bool:
    may_end = charge.newest.operation.opens and not isinstance(charge.newest, CallingOff | Resolving | AtRest)
    return may_end and not charge.desk.is_held_back


# ---------------------------------------------------------------- evolve, next_step
def evolve(state: State, recorded: Recorded) -> State:
    """Fold one stored event into the state. Raises ImpossibleEvent if it cannot follow."""
    event = recorded.event
    match state, event:
        case Absent(), ChargeRequested(request):
            return Charge(request, AwaitingToken(opening_of(request), recorded.recorded_at), recorded.position)
        case Charge(), OperationRequested():
            return _begun(state, event, recorded)
        case Charge(), _ if isinstance(event, DeskStep):
            return _at_the_desk(state, event, recorded)
        case Charge(), _:
            newest = operations.evolve(state.newest, recorded)
            if isinstance(newest, AtRest):
                return _rested(state, newest)
            desk = desk_rules.moved_on(state.desk, newest)
            return Charge(state.request, newest, recorded.position, state.book, state.done, state.void, desk)
    raise ImpossibleEvent(f"{type(event).__name__} cannot follow in {type(state).__name__}")


def opening_of(request: Request) -> Operation:
    """Return the operation that opens a charge."""
    kind = Kind.AUTHORIZE if request.is_held else Kind.CHARGE
    traceparent = request.traceparent
    return Operation(kind, request.idempotency_key, request.charge_id, request.amount, request, traceparent=traceparent)


def _begun(charge: Charge, event: OperationRequested, recorded: Recorded) -> Charge:
    kind, newest, left = event.kind, charge.newest, charge.book.left(event.kind)
    calls_off = kind is Kind.VOID and _may_be_called_off(charge)
    operation = Operation(
        kind,
        event.idempotency_key,
        event.operation_id,
        event.amount,
        charge.request,
        charge.transaction_id,
        event.is_final,
        takes_all=calls_off or event.amount.minor_units == left,
        traceparent=event.traceparent,
    )
    begun = AwaitingToken(operation, recorded.recorded_at)
    if calls_off:
        desk = desk_rules.moved_on(charge.desk, begun)
        return replace(charge, newest=operations.call_off(newest), void=begun, position=recorded.position, desk=desk)
    if not isinstance(newest, AtRest) or is_in_review(charge):
        raise ImpossibleEvent(f"a {kind.value} cannot follow in {type(newest).__name__}")
    if not charge.book.fits(kind) or not 0 < event.amount.minor_units <= left:
        raise ImpossibleEvent(f"the book does not allow this {kind.value}")
    return Charge(charge.request, begun, recorded.position, charge.book, (*charge.done, newest), desk=charge.desk)


def _rested(charge: Charge, rest: AtRest) -> Charge:
    book, void, outcome = charge.book.after(rest.operation, rest.outcome), charge.void, rest.outcome
    newest: Progress
    if void is None:
        newest, done = rest, charge.done
    elif isinstance(outcome, Authorized):  # Too late to call it off: the void goes on as any other.
        newest, done = replace(void, operation=replace(void.operation, on=outcome.transaction_id)), (rest,)
    else:
        newest, done = AtRest(void.operation, void.requested_at, outcome, rest.position, rest.decided_at), (rest,)
    return Charge(charge.request, newest, rest.position, book, done, desk=desk_rules.moved_on(charge.desk, newest))


def _at_the_desk(charge: Charge, event: DeskStep, recorded: Recorded) -> Charge:
    stand = stand_of(charge)
    desk = desk_rules.evolve(stand, event, recorded)
    if not isinstance(event, ResolutionApproved) or stand.in_review is None:
        return replace(charge, desk=desk, position=recorded.position)
    resolving = operations.evolve(stand.in_review, recorded)
    if not resolving.operation.opens:
        return replace(charge, newest=resolving, desk=desk, position=recorded.position)
    void = None
    if not charge.newest.operation.opens:  # It has called the opening operation off, and waits for its end once more.
        void = AwaitingToken(charge.newest.operation, charge.newest.requested_at)
    return replace(charge, newest=resolving, done=(), void=void, desk=desk, position=recorded.position)


def next_step(state: State) -> Effect | None:
    """Say what to do next, never when. None: there is nothing to do, or the charge is held back."""
    if not isinstance(state, Charge) or state.desk.is_held_back:
        return None
    return operations.next_step(state.newest)


# ---------------------------------------------------------------- what is told
def is_at_rest(state: State) -> bool:
    """Whether all operations have their outcomes, so that there is no next step."""
    return isinstance(state, Charge) and isinstance(state.newest, AtRest)


def is_to_be_tried(state: State) -> bool:
    """Whether the newest event says that an operator wants the next step now."""
    return isinstance(state, Charge) and state.desk.tried is not None


def bank_of(state: State) -> str:
    """Return the name of the bank that was chosen for a charge. Raises ImpossibleEvent if nobody has asked for one."""
    if isinstance(state, Charge):
        return state.request.bank
    raise ImpossibleEvent("a charge that nobody has asked for is at no bank")


def is_of(state: State, tenant: str) -> bool:
    """Whether there is a charge, and it is this tenant's: for every other tenant it does not exist."""
    return isinstance(state, Charge) and state.request.tenant == tenant


def is_in_review(charge: Charge) -> bool:
    """Whether nobody may guess the outcome of its newest operation, so that nothing may follow."""
    return isinstance(charge.newest, AtRest) and isinstance(charge.newest.outcome, ReviewRequired)


def in_review(charge: Charge) -> AtRest | None:
    """Return the operation whose outcome people must find; None if there is none.

    If the opening one is in review, so is a void that has called it off. They are resolved together.
    """
    for progress in (charge.opening, charge.newest):
        if isinstance(progress, AtRest) and isinstance(progress.outcome, ReviewRequired):
            return progress
    return None


def at_the_bank(charge: Charge) -> Progress:
    """Return the operation that people ask the bank about: the one in review, or else the newest one that was for the bank.

    A refund that a resolution stored was not, nor a void that ended with the opening operation, which it had called off.
    """
    if (reviewed := in_review(charge)) is not None:
        return reviewed
    asked, done = charge.newest, charge.done
    if _is_of_a_resolution(charge.desk, asked):
        asked, done = done[-1], done[:-1]
    if isinstance(asked, AtRest) and done and asked.position == done[0].position:
        return done[0]
    return asked


def _is_of_a_resolution(desk: Desk, progress: Progress) -> bool:
    """Whether it is the refund that people had made by hand: its token is their name for it."""
    match progress:
        case AtRest(operation, outcome=Refunded(transaction_id=by_hand), token=token):
            key = desk_rules.refund_key(desk.closed.proposal) if desk.closed is not None else None
            return token == by_hand and operation.idempotency_key == key
        case _:
            return False


def stand_of(charge: Charge) -> Stand:
    """Return a charge as far as the desk asks."""
    proposal = charge.desk.proposal
    is_key_taken = proposal is not None and following(charge, desk_rules.refund_key(proposal.position)) is not None
    return Stand(charge.desk, charge.newest, in_review(charge), is_key_taken)


def outcome_of(state: State, operation_key: str | None = None) -> AtRest | None:
    """Return the outcome that a key is told for ever, or its review; None if there is none yet.

    The charge's own key is told that of the opening operation. `operation_key` is the key of one that follows.
    """
    if not isinstance(state, Charge):
        return None
    progress = state.opening if operation_key is None else following(state, operation_key)
    return progress if isinstance(progress, AtRest) else None


def following(charge: Charge, operation_key: str) -> Progress | None:
    """Find the operation of a key among those that follow in a charge."""
    for progress in (*charge.done[1:], charge.newest, charge.void):
        if (
            progress is not None
            and not progress.operation.opens
            and progress.operation.idempotency_key == operation_key
        ):
            return progress
    return None


def is_over_without_money(state: State) -> bool:
    """Whether no money has moved for a charge and none ever will: only then may its payer try again under a new key.

    Not so in review: there money may have moved.
    """
    if not isinstance(state, Charge) or not isinstance(state.newest, AtRest) or is_in_review(state):
        return False
    return state.book.captured == 0 and not state.book.is_open
