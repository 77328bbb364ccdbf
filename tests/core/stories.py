"""Stories of one charge, told in the domain's words.

    given(requested, token_issued).when(declined(INSUFFICIENT_FUNDS)).then(ChargeDeclined(INSUFFICIENT_FUNDS))
    given(requested).next_step_is(RequestToken(...))

An answer is told as an answer to the step that is next, unless it says `to=` which step it answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import pytest

from command_service.charge import (
    Absent,
    Answer,
    Answered,
    Card,
    Charge,
    Charged,
    ChargeRequested,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Event,
    Evidence,
    Execute,
    Executed,
    Expired,
    GiveUp,
    InProgress,
    Message,
    Money,
    NoAnswer,
    Refused,
    Request,
    RequestToken,
    ReviewReason,
    State,
    Token,
    TokenExpired,
    TokenIssued,
    decide,
    evolve,
    next_step,
)

# ---------------------------------------------------------------- what the stories are about
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


def request_token(expired_tokens: int = 0) -> RequestToken:
    """The token step, after so many expired tokens."""
    return RequestToken(REQUEST.charge_id, REQUEST.card.token, REQUEST.amount, expired_tokens)


def execute(token: str = "t1") -> Execute:
    """The execute step of a token."""
    return Execute(REQUEST.charge_id, REQUEST.card.token, REQUEST.amount, token)


requested = ChargeRequested(REQUEST)
token_issued = TokenIssued("t1")
token_expired = TokenExpired("t1")
charged = Charged(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx1")


# ---------------------------------------------------------------- messages
Told = Callable[[State], Message]


def _answers(answer: Answer, to: Effect | None) -> Told:
    def message(state: State) -> Message:
        effect = to or next_step(state)
        assert effect is not None, "the charge is at rest: say which step is answered"
        return Answered(effect, answer)

    return message


def token(token: str = "t1", *, to: Effect | None = None) -> Told:
    """The bank names its transaction."""
    return _answers(Token(token), to)


def executed(transaction_id: str = "tx1", *, to: Effect | None = None) -> Told:
    """The bank has executed the transaction."""
    return _answers(Executed(transaction_id), to)


def declined(reason: DeclineReason, *, to: Effect | None = None) -> Told:
    """The bank says no."""
    return _answers(Declined(reason), to)


def expired(*, to: Effect | None = None) -> Told:
    """The bank has closed the token, unexecuted."""
    return _answers(Expired(), to)


def refused(*, to: Effect | None = None) -> Told:
    """The bank does not take the request, and a look-up tells no more."""
    return _answers(Refused(EVIDENCE), to)


def contradicted(reason: ReviewReason = ReviewReason.CONTRADICTION, *, to: Effect | None = None) -> Told:
    """The bank's answer does not fit."""
    return _answers(Contradiction(EVIDENCE, reason), to)


def in_progress(*, to: Effect | None = None) -> Told:
    """The bank is at it."""
    return _answers(InProgress(2.0), to)


def not_answered(*, our_setup: bool = False, to: Effect | None = None) -> Told:
    """Nothing came back that can be understood."""
    return _answers(NoAnswer(our_setup=our_setup), to)


def given_up(attempts: int, *, to: Effect | None = None) -> Told:
    """The runner proposes to give up."""

    def message(state: State) -> Message:
        effect = to or next_step(state)
        assert effect is not None, "the charge is at rest: say which step is given up"
        return GiveUp(effect, attempts)

    return message


def asked(request: Request = REQUEST, *faults: tuple[str, str]) -> Told:
    """A client asks for a charge."""
    return lambda _: Charge(request, faults)


# ---------------------------------------------------------------- given, when, then
def given(*events: Event) -> "Story":
    """A charge to which this has happened; nothing: nobody has asked yet."""
    start: State = Absent()
    return Story(reduce(evolve, events, start))


@dataclass(frozen=True, slots=True)
class Story:
    """A charge as it stands."""

    state: State

    def when(self, told: Told) -> "Reaction":
        """A message arrives."""
        return Reaction(self.state, told(self.state))

    def next_step_is(self, effect: Effect | None) -> None:
        """What is to be done next; None at rest."""
        assert next_step(self.state) == effect


@dataclass(frozen=True, slots=True)
class Reaction:
    """A charge, and a message that it has just been told."""

    state: State
    message: Message

    def then(self, *events: Event) -> Story:
        """Exactly this happens. Returns the charge as it stands afterwards."""
        assert decide(self.state, self.message) == list(events)
        return Story(reduce(evolve, events, self.state))

    def then_nothing(self) -> Story:
        """Nothing happens."""
        return self.then()

    def then_refused(self, error: type[Exception], *args: object) -> None:
        """The command is refused."""
        with pytest.raises(error) as raised:
            decide(self.state, self.message)
        assert raised.value.args == args
