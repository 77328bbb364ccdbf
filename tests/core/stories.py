"""Stories of one charge, told in the domain's words.

    given(requested, token_issued).when(declined(INSUFFICIENT_FUNDS)).then(ChargeDeclined(INSUFFICIENT_FUNDS))
    given(requested).next_step_is(RequestToken(...))

An answer is for the next step, unless `to=` names another step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from command_service.charge import Absent, Charge, Command, Message, State, decide, evolve, next_step
from command_service.operation import Answered, Attempts
from command_service.events import ChargeRequested, Charged, Event, Recorded, TokenExpired, TokenIssued
from command_service.values import Answer, Card, Contradiction, Declined, DeclineReason, Effect, Evidence, Execute, Executed, Expired, InProgress, Money, NoAnswer, Refused, Request, RequestToken, ReviewReason, Token

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
EVIDENCE = Evidence(("amount",), 200, 17, bytes(range(32)))
REQUESTED_AT = 1_700_000_000_000_000
DAY_SECONDS = 86_400.0
# The first call for a charge, made right after its request.
FIRST_TRY = Attempts(unanswered=1, now=REQUESTED_AT, abandon_after_seconds=DAY_SECONDS, is_restored=False)


def request_token(expired_tokens: int = 0) -> RequestToken:
    """The token step, after this number of expired tokens."""
    return RequestToken(REQUEST.charge_id, REQUEST.card.token, REQUEST.amount, expired_tokens)


def execute(token: str = "t1") -> Execute:
    """The execute step of a token."""
    return Execute(REQUEST.charge_id, REQUEST.card.token, REQUEST.amount, token)


requested = ChargeRequested(REQUEST)
token_issued = TokenIssued("t1")
token_expired = TokenExpired("t1")
charged = Charged(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx1")


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


def executed(transaction_id: str = "tx1", *, to: Effect | None = None) -> Arrival:
    """The bank has executed the transaction."""
    return _answers(Executed(transaction_id), to)


def declined(reason: DeclineReason, *, to: Effect | None = None) -> Arrival:
    """The bank says no."""
    return _answers(Declined(reason), to)


def expired(*, to: Effect | None = None) -> Arrival:
    """The bank has closed the token, unexecuted."""
    return _answers(Expired(), to)


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
    """Once more there was no understandable answer."""
    now = REQUESTED_AT + int(age_seconds * 1_000_000)
    return _answers(NoAnswer(our_setup=our_setup), to, Attempts(unanswered, now, DAY_SECONDS, is_restored))


def asked(request: Request = REQUEST, *faults: tuple[str, str]) -> Arrival:
    """A client asks for a charge."""
    return lambda _: Command(request, faults)


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

    def when(self, arrival: Arrival) -> "Reaction":
        """A message arrives."""
        return Reaction(self.state, arrival(self.state))

    def next_step_is(self, effect: Effect | None) -> None:
        """The next step is this effect; None at rest."""
        assert next_step(self.state) == effect


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
