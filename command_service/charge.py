"""A charge as a whole: when a command begins one, and the outcome that an idempotency key is told.

The core is three pure functions. `decide` turns a message into events, `evolve` folds a stored event into a state, and
`next_step` names the next step. They stand here for the charge, and hand over to the same three in
`command_service.operation` for the operation under way. So far a charge has one operation, the charging itself; which
operation may follow another will be said here.

1. One idempotency key names one charge, for ever. Under the same key the same request finds its charge, another is refused.
2. The rules of screening count for a new charge only: rules get stricter, and the retry of an accepted charge must find it.
3. Once an outcome is decided, its key is told this outcome and the position of its event for ever.
"""

from typing import assert_never

from command_service import operation as operations
from command_service.failures import InvalidCharge, KeyReused
from command_service.operation import Answered, AtRest, Operation
from command_service.values import (
    ChargeAbandoned,
    ChargeDeclined,
    ChargeRequested,
    Effect,
    Event,
    Recorded,
    Request,
    value,
)


# ---------------------------------------------------------------- messages
@value
class Command:
    """A client asks for a charge. `faults`, pairs of field and text: the rules of screening that the request breaks."""

    request: Request
    faults: tuple[tuple[str, str], ...] = ()


Message = Command | Answered


# ---------------------------------------------------------------- states
@value
class Absent:
    """No events: nobody has asked."""


@value
class Charge:
    """A charge that was asked for. `position` is that of its newest event."""

    operation: Operation
    position: int


State = Absent | Charge


# ---------------------------------------------------------------- the three functions
def decide(state: State, message: Message) -> list[Event]:
    """Say what a message means in a state: the events to append, none if it changes nothing.

    A command may raise InvalidCharge or KeyReused. An answer never raises.
    """
    match message:
        case Command(request, faults):
            match state:
                case Absent() if faults:
                    raise InvalidCharge(faults)
                case Absent():
                    return [ChargeRequested(request)]
                case Charge(operation) if _intent(request) != _intent(operation.request):
                    raise KeyReused(state)
                case Charge():
                    return []
                case _:
                    assert_never(state)
        case Answered():
            return operations.decide(state.operation, message) if isinstance(state, Charge) else []
        case _:
            assert_never(message)


def _intent(request: Request) -> tuple[object, ...]:
    """The fields that make a retry the same request. For every other field the first request wins."""
    return request.user_id, request.card.token, request.amount


def evolve(state: State, recorded: Recorded) -> State:
    """Fold one stored event into the state. Raises ImpossibleEvent if it cannot follow."""
    before = state.operation if isinstance(state, Charge) else None
    return Charge(operations.evolve(before, recorded), recorded.position)


def next_step(state: State) -> Effect | None:
    """Say what to do next, never when. None: there is nothing to do."""
    return operations.next_step(state.operation) if isinstance(state, Charge) else None


# ---------------------------------------------------------------- what is told
def is_at_rest(state: State) -> bool:
    """Whether the charge has an outcome, and so no next step."""
    return isinstance(state, Charge) and isinstance(state.operation, AtRest)


def outcome_of(state: State, idempotency_key: str) -> AtRest | None:
    """Return the outcome that this key is told for ever; None if there is none yet, or the charge has another key."""
    match state:
        case Charge(AtRest() as rest) if rest.request.idempotency_key == idempotency_key:
            return rest
        case _:
            return None


def is_over_without_money(state: State) -> bool:
    """Whether no money has moved for a charge and none ever will: only then may its payer try again under a new key.

    Not so in review: there money may have moved.
    """
    match state:
        case Charge(AtRest(outcome=ChargeDeclined() | ChargeAbandoned())):
            return True
        case _:
            return False
