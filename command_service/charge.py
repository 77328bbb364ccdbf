"""The core: which operation may follow in a charge, and which outcome an idempotency key is given.

`decide` turns a message into events, `evolve` folds stored events into a state, and `next_step` says what to do next. They
are pure. `command_service.operation` decides how an operation comes to rest; today a charge has one operation, the charge.

1. One idempotency key names one charge, for ever. Under the same key the same request finds its charge, another is refused.
2. Today's rules count for a new charge only: the retry of a charge that was once accepted finds it.
3. Once an outcome is decided, its key is given this outcome and the position of its event for ever.
"""

from dataclasses import dataclass
from typing import assert_never

from command_service import operation
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
)


# ---------------------------------------------------------------- messages
@dataclass(frozen=True, slots=True)
class Command:
    """A client asks for a charge. `faults`, pairs of field and text, say which of today's rules the request breaks."""

    request: Request
    faults: tuple[tuple[str, str], ...] = ()


Message = Command | Answered


# ---------------------------------------------------------------- states
@dataclass(frozen=True, slots=True)
class Absent:
    """No events: no charge was requested."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge and its operation. `position` is that of the newest event."""

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
                case Charge(begun) if _intent(request) != _intent(begun.request):
                    raise KeyReused(state)
                case Charge():
                    return []
                case _:
                    assert_never(state)
        case Answered():
            return operation.answered(state.operation, message) if isinstance(state, Charge) else []
        case _:
            assert_never(message)


def _intent(request: Request) -> tuple[object, ...]:
    """The fields that make a retry the same request. For every other field the first request wins."""
    return request.user_id, request.card.token, request.amount


def evolve(state: State, recorded: Recorded) -> State:
    """Fold one stored event into the state. Raises ImpossibleEvent if it cannot follow."""
    before = state.operation if isinstance(state, Charge) else None
    return Charge(operation.evolve(before, recorded), recorded.position)


def next_step(state: State) -> Effect | None:
    """Say what to do next, never when. None: there is nothing to do."""
    return operation.next_step(state.operation) if isinstance(state, Charge) else None


# ---------------------------------------------------------------- outcomes
def is_at_rest(state: State) -> bool:
    """Whether everything that was asked of the charge is decided."""
    return isinstance(state, Charge) and isinstance(state.operation, AtRest)


def outcome_of(state: State, idempotency_key: str) -> AtRest | None:
    """Return the outcome that this key is given for ever. None: it is not decided yet."""
    match state:
        case Charge(AtRest() as rest) if rest.request.idempotency_key == idempotency_key:
            return rest
        case _:
            return None


def is_over_without_money(state: State) -> bool:
    """Whether no money has moved for a charge and none ever will: only then may its payer try again under a new key."""
    match state:
        case Charge(AtRest(outcome=ChargeDeclined() | ChargeAbandoned())):
            return True
        case _:
            return False
