"""Stories of one charge, told in the domain's words.

    given(requested, token_issued).when(declined(INSUFFICIENT_FUNDS)).then(ChargeDeclined(INSUFFICIENT_FUNDS))
    given(*CHARGED, *refund(500)).when(to_refund(751, "refund-2")).then_refused(MoreThanIsLeft, 750)

An answer is for the next step, unless `to=` names another step. A word with an underscore behind it is an event that has the
same name as a message.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from command_service.charge import Absent, Charge, Command, Due, Follow, Message, State, decide, evolve, next_step
from command_service.events import (
    ActionRequired,
    Authorized,
    Captured,
    ChargeCalledOff,
    Charged,
    ChargeRequested,
    Event,
    NotAfterPassed,
    OperationRequested,
    Recorded,
    Refunded,
    TokenExpired,
    TokenIssued,
    Voided,
)
from command_service.operation import Answered, Attempts
from command_service.values import (
    Answer,
    CalledOff,
    CallOff,
    Card,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Evidence,
    Execute,
    Executed,
    Expired,
    InProgress,
    Kind,
    Money,
    NeedsAction,
    NoAnswer,
    Operation,
    Refused,
    Request,
    RequestToken,
    ReviewReason,
    Token,
    Wish,
)

# ---------------------------------------------------------------- the subjects of the stories
REQUEST = Request(
    charge_id="0d7c5f3a-4d3c-8a54-9d1e-2f6b8c0a1e3d",
    tenant="default",
    idempotency_key="order-1001",
    actor="shop",
    user_id="user-7",
    card=Card("tok_visa", "visa", "4242"),
    amount=Money(1250, "EUR"),
    description="a book",
    metadata=(("order", "1001"),),
)
HELD = replace(REQUEST, is_held=True)
OFF_SESSION = replace(REQUEST, is_off_session=True)
EVIDENCE = Evidence(("amount",), 200, 17, bytes(range(32)))
REQUESTED_AT = 1_700_000_000_000_000
LAPSES_AT = REQUESTED_AT + 7 * 86_400_000_000
DAY_SECONDS = 86_400.0
# The first call for a charge, made right after its request.
FIRST_TRY = Attempts(unanswered=1, now=REQUESTED_AT, abandon_after_seconds=DAY_SECONDS, is_restored=False)


def eur(minor_units: int) -> Money:
    """An amount in the currency of the stories."""
    return Money(minor_units, "EUR")


def reference(kind: Kind, key: str) -> str:
    """The id of an operation that follows. The core takes it as it comes."""
    return f"{kind.value}:{key}"


def opening(request: Request = REQUEST) -> Operation:
    """The operation that opens a charge."""
    kind = Kind.AUTHORIZE if request.is_held else Kind.CHARGE
    return Operation(kind, request.idempotency_key, request.charge_id, request.amount, request)


def following(
    kind: Kind, key: str, minor_units: int, *, is_final: bool = False, takes_all: bool = False, request: Request = HELD
) -> Operation:
    """An operation that follows in an executed charge."""
    return Operation(kind, key, reference(kind, key), eur(minor_units), request, "tx1", is_final, takes_all)


# ---------------------------------------------------------------- effects
def request_token(expired_tokens: int = 0, operation: Operation | None = None) -> RequestToken:
    """The token step, after this number of expired tokens."""
    return RequestToken(operation or opening(), expired_tokens)


def execute(token: str = "t1", operation: Operation | None = None) -> Execute:
    """The execute step of a token."""
    return Execute(operation or opening(), token)


def call_off(token: str | None, request: Request = REQUEST) -> CallOff:
    """The step that calls a charge off."""
    return CallOff(opening(request), token)


# ---------------------------------------------------------------- events
requested = ChargeRequested(REQUEST)
hold_requested = ChargeRequested(HELD)
token_issued = TokenIssued("t1")
token_expired = TokenExpired("t1")
not_after_passed = NotAfterPassed()
called_off_ = ChargeCalledOff()
STEP_URL, STEP_ENDS_AT = "https://bank.example/customer/t1", REQUESTED_AT + 600_000_000
action_required = ActionRequired(STEP_URL, STEP_ENDS_AT)
charged = Charged(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx1")
authorized = Authorized(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx1", LAPSES_AT)
CHARGED: tuple[Event, ...] = (requested, token_issued, charged)
AUTHORIZED: tuple[Event, ...] = (hold_requested, token_issued, authorized)


def _requested(kind: Kind, minor_units: int, key: str, *, is_final: bool = False) -> OperationRequested:
    return OperationRequested(kind, reference(kind, key), key, "shop", eur(minor_units), is_final)


def capture_requested(minor_units: int, key: str = "capture-1", *, is_final: bool = False) -> OperationRequested:
    """A capture was accepted."""
    return _requested(Kind.CAPTURE, minor_units, key, is_final=is_final)


def void_requested(minor_units: int = 1250, key: str = "void-1") -> OperationRequested:
    """A void was accepted."""
    return _requested(Kind.VOID, minor_units, key)


def refund_requested(minor_units: int, key: str = "refund-1") -> OperationRequested:
    """A refund was accepted."""
    return _requested(Kind.REFUND, minor_units, key)


def capture(minor_units: int, key: str = "capture-1", *, is_final: bool = False) -> tuple[Event, ...]:
    """A capture from its request to its end. Its transaction has the name of its key."""
    asked_for = capture_requested(minor_units, key, is_final=is_final)
    return asked_for, TokenIssued(f"token of {key}"), Captured(eur(minor_units), key)


def void(minor_units: int = 1250, key: str = "void-1") -> tuple[Event, ...]:
    """A void from its request to its end."""
    return void_requested(minor_units, key), TokenIssued(f"token of {key}"), Voided(eur(minor_units), key)


def refund(minor_units: int, key: str = "refund-1") -> tuple[Event, ...]:
    """A refund from its request to its end."""
    return refund_requested(minor_units, key), TokenIssued(f"token of {key}"), Refunded(eur(minor_units), key)


# ---------------------------------------------------------------- messages
Arrival = Callable[[State], Message]


def _answers(answer: Answer, to: Effect | None, tried: Attempts = FIRST_TRY) -> Arrival:
    def message(state: State) -> Message:
        effect = to or next_step(state)
        assert effect is not None, "the charge is at rest: say which step is answered"
        return Answered(effect, answer, tried)

    return message


def token(token: str = "t1", *, to: Effect | None = None) -> Arrival:
    """The bank names its transaction."""
    return _answers(Token(token), to)


def executed(transaction_id: str = "tx1", *, expires_at: int = 0, to: Effect | None = None) -> Arrival:
    """The bank has executed the transaction."""
    return _answers(Executed(transaction_id, expires_at), to)


def declined(reason: DeclineReason, *, to: Effect | None = None) -> Arrival:
    """The bank says no."""
    return _answers(Declined(reason), to)


def expired(*, to: Effect | None = None) -> Arrival:
    """The bank has closed the token, unexecuted."""
    return _answers(Expired(), to)


def called_off(*, to: Effect | None = None) -> Arrival:
    """The bank has closed the token, since it was called off."""
    return _answers(CalledOff(), to)


def needs_action(url: str = STEP_URL, expires_at: int = STEP_ENDS_AT, *, to: Effect | None = None) -> Arrival:
    """The bank waits for a step of the customer."""
    return _answers(NeedsAction(url, expires_at), to)


def refused(*, to: Effect | None = None) -> Arrival:
    """The bank refuses the request, and a look-up finds nothing more."""
    return _answers(Refused(EVIDENCE), to)


def contradicted(reason: ReviewReason = ReviewReason.CONTRADICTION, *, to: Effect | None = None) -> Arrival:
    """The bank's answer does not fit."""
    return _answers(Contradiction(EVIDENCE, reason), to)


def in_progress(*, to: Effect | None = None) -> Arrival:
    """The bank is still working on it."""
    return _answers(InProgress(2.0), to)


def not_answered(
    unanswered: int = 1,
    *,
    age_seconds: float = 0.0,
    our_setup: bool = False,
    is_restored: bool = False,
    to: Effect | None = None,
) -> Arrival:
    """Once more there was no understandable answer. The age counts from the request of the charge."""
    now = REQUESTED_AT + int(age_seconds * 1_000_000)
    return _answers(NoAnswer(our_setup=our_setup), to, Attempts(unanswered, now, DAY_SECONDS, is_restored))


def asked(request: Request = REQUEST, *faults: tuple[str, str]) -> Arrival:
    """A client asks for a charge."""
    return lambda _: Command(request, faults)


Asking = Callable[[State], Follow]


def _wishes(wish: Wish, faults: tuple[tuple[str, str], ...]) -> Asking:
    return lambda _: Follow(wish, faults)


def wish(kind: Kind, key: str, amount: Money | None = None, *, is_final: bool = False) -> Wish:
    """A client's wish for an operation."""
    return Wish(
        kind, REQUEST.charge_id, REQUEST.tenant, key, reference(kind, key), REQUEST.actor, amount, is_final=is_final
    )


def to_capture(
    minor_units: int | None = None, key: str = "capture-1", *faults: tuple[str, str], is_final: bool = False
) -> Asking:
    """A client wants to capture this amount, or all that is left."""
    amount = None if minor_units is None else eur(minor_units)
    return _wishes(wish(Kind.CAPTURE, key, amount, is_final=is_final), faults)


def to_void(key: str = "void-1", *faults: tuple[str, str]) -> Asking:
    """A client wants to let go of what is held, or to call the charge off."""
    return _wishes(wish(Kind.VOID, key), faults)


def to_refund(
    minor_units: int | None = None, key: str = "refund-1", *faults: tuple[str, str], currency_code: str = "EUR"
) -> Asking:
    """A client wants this amount back, or all that is left."""
    amount = None if minor_units is None else Money(minor_units, currency_code)
    return _wishes(wish(Kind.REFUND, key, amount), faults)


def of_tenant(tenant: str, asking: Asking) -> Asking:
    """The wish comes from a client of this tenant."""

    def message(state: State) -> Follow:
        follow = asking(state)
        return replace(follow, wish=replace(follow.wish, tenant=tenant))

    return message


def clock_shows(now: int) -> Arrival:
    """The loop looks at the clock, in microseconds since 1970, before it does the next step."""
    return lambda _: Due(now)


# ---------------------------------------------------------------- given, when, then
def stored(state: State, *events: Event) -> State:
    """A charge after more events, each recorded one second and one position after its predecessor."""
    for event in events:
        position = state.position + 1 if isinstance(state, Charge) else 1
        state = evolve(state, Recorded(event, position, REQUESTED_AT + (position - 1) * 1_000_000))
    return state


def given(*events: Event) -> "Story":
    """A charge with these events; no events: no charge was requested."""
    return Story(stored(Absent(), *events))


@dataclass(frozen=True, slots=True)
class Story:
    """A charge as it stands."""

    state: State

    @property
    def charge(self) -> Charge:
        """The state of a charge that was requested."""
        assert isinstance(self.state, Charge)
        return self.state

    def when(self, arrival: Arrival) -> "Reaction":
        """A message arrives."""
        return Reaction(self.state, arrival(self.state))

    def next_step_is(self, effect: Effect | None) -> "Story":
        """The next step is this effect; None at rest."""
        assert next_step(self.state) == effect
        return self


@dataclass(frozen=True, slots=True)
class Reaction:
    """A charge, and a message that has just arrived."""

    state: State
    message: Message

    def then(self, *events: Event) -> Story:
        """Exactly these events are decided. Returns the charge after them."""
        assert decide(self.state, self.message) == list(events)
        return Story(stored(self.state, *events))

    def then_nothing(self) -> Story:
        """No event is decided."""
        return self.then()

    def then_refused(self, error: type[Exception], *args: object) -> None:
        """The command is refused."""
        with pytest.raises(error) as raised:
            decide(self.state, self.message)
        assert raised.value.args == args
