"""The core: stories first, then laws over every reachable state, then random walks."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from command_service.charge import (
    Absent,
    Charge,
    Command,
    Message,
    State,
    decide,
    is_at_rest,
    is_over_without_money,
    next_step,
    outcome_of,
)
from command_service.failures import ImpossibleEvent, InvalidRequest, KeyReused
from command_service.operation import (
    ATTEMPTS_BEFORE_GIVING_UP,
    TOKEN_LIMIT,
    Answered,
    AtRest,
    Attempts,
    AwaitingExecution,
    AwaitingToken,
)
from command_service.events import (
    ChargeAbandoned,
    ChargeDeclined,
    ChargeRequested,
    Charged,
    Event,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
)
from command_service.values import (
    Answer,
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
    Money,
    NoAnswer,
    Refused,
    Request,
    RequestToken,
    ReviewReason,
    Token,
)
from tests.core.diagram import GRAMMAR, diagram, grammar
from tests.core.stories import (
    DAY_SECONDS,
    EVIDENCE,
    FIRST_TRY,
    REQUEST,
    REQUESTED_AT,
    Arrival,
    asked,
    charged,
    contradicted,
    declined,
    execute,
    executed,
    expired,
    given,
    in_progress,
    not_answered,
    refused,
    request_token,
    requested,
    stored,
    token,
    token_expired,
    token_issued,
)

FAULT = ("amount", "must be at least 1")
every_decline_reason = pytest.mark.parametrize("reason", DeclineReason)
every_review_reason = pytest.mark.parametrize("reason", ReviewReason)


# ================================================================ stories: a client asks
def test_a_first_request_is_accepted() -> None:
    """The key is new."""
    given().when(asked()).then(requested)


def test_a_first_request_that_breaks_todays_rules_is_refused_with_its_faults() -> None:
    """Every fault is reported, not only the first."""
    given().when(asked(REQUEST, FAULT, ("user_id", "is missing"))).then_refused(
        InvalidRequest, (FAULT, ("user_id", "is missing"))
    )


@pytest.mark.parametrize(
    ("history", "is_over"),
    [
        ((), False),
        ((requested,), False),
        ((requested, token_issued), False),
        ((requested, token_issued, charged), False),
        ((requested, token_issued, ReviewRequired(ReviewReason.CONTRADICTION)), False),
        ((requested, token_issued, ChargeDeclined(DeclineReason.OTHER)), True),
        ((requested, ChargeAbandoned(5)), True),
    ],
)
def test_a_charge_is_over_without_money_once_declined_or_abandoned_only(
    history: tuple[Event, ...], is_over: bool
) -> None:
    """Only then may its payer be advised to try under a new key."""
    assert is_over_without_money(given(*history).state) == is_over


@pytest.mark.parametrize(
    "history",
    [(requested,), (requested, token_issued), (requested, token_issued, charged)],
    ids=["awaiting token", "awaiting execution", "at rest"],
)
class TestTheRetryOfAnAcceptedRequest:
    """At any state that the charge has reached meanwhile."""

    def test_finds_its_charge(self, history: tuple[Event, ...]) -> None:
        """Nothing is appended: the caller joins it, or is given its outcome."""
        given(*history).when(asked()).then_nothing()

    def test_finds_its_charge_though_the_rules_have_become_stricter(self, history: tuple[Event, ...]) -> None:
        """Faults count for a new charge only."""
        given(*history).when(asked(REQUEST, FAULT)).then_nothing()

    @pytest.mark.parametrize(
        "other",
        [
            replace(REQUEST, user_id="user-8"),
            replace(REQUEST, card=replace(REQUEST.card, token="tok_mastercard")),
            replace(REQUEST, amount=Money(1251, "EUR")),
            replace(REQUEST, amount=Money(1250, "USD")),
        ],
        ids=["user", "card token", "amount", "currency"],
    )
    def test_is_refused_if_it_asks_for_another(self, history: tuple[Event, ...], other: Request) -> None:
        """User, card token, amount or currency make it another request; no part of the first one is revealed."""
        given(*history).when(asked(other)).then_refused(KeyReused, given(*history).state)
        given(*history).when(asked(other, FAULT)).then_refused(KeyReused, given(*history).state)

    @pytest.mark.parametrize(
        "other",
        [
            replace(REQUEST, card=Card(REQUEST.card.token, "VISA", "0000")),
            replace(REQUEST, description="another book"),
            replace(REQUEST, metadata=()),
            replace(REQUEST, actor="another shop"),
        ],
        ids=["brand and last four", "description", "metadata", "actor"],
    )
    def test_may_differ_in_every_other_field_and_the_first_wins(
        self, history: tuple[Event, ...], other: Request
    ) -> None:
        """They are not compared, and the stored request stays as it is."""
        assert given(*history).when(asked(other)).then_nothing() == given(*history)


# ================================================================ stories: the next step
def test_the_token_step_follows_a_request() -> None:
    """With every field that it needs."""
    given(requested).next_step_is(request_token())


def test_the_execute_step_follows_a_token() -> None:
    """With the token that the journal holds."""
    given(requested, token_issued).next_step_is(execute("t1"))


def test_the_token_step_follows_an_expired_token_and_counts_it() -> None:
    """By the count a late answer is recognised."""
    given(requested, token_issued, token_expired).next_step_is(request_token(expired_tokens=1))
    given(requested, token_issued, token_expired, TokenIssued("t2")).next_step_is(execute("t2"))


@pytest.mark.parametrize(
    "outcome",
    [charged, ChargeDeclined(DeclineReason.OTHER), ReviewRequired(ReviewReason.CONTRADICTION)],
    ids=lambda outcome: type(outcome).__name__,
)
def test_nothing_follows_an_outcome(outcome: Event) -> None:
    """The charge is at rest."""
    given(requested, token_issued, outcome).next_step_is(None)


def test_there_is_no_next_step_without_a_request() -> None:
    """No events, no effect."""
    given().next_step_is(None)


# ================================================================ stories: the bank answers the token step
def test_a_token_is_stored_before_it_is_used() -> None:
    """The execute step is next only once the journal holds it."""
    given(requested).when(token("t1")).then(TokenIssued("t1")).next_step_is(execute("t1"))


@every_decline_reason
def test_a_decline_of_the_token_step_is_an_outcome(reason: DeclineReason) -> None:
    """The reason is kept."""
    given(requested).when(declined(reason)).then(ChargeDeclined(reason)).next_step_is(None)


def test_a_definite_refusal_of_the_token_step_is_a_decline() -> None:
    """No token was given, so no money can move."""
    given(requested).when(refused()).then(ChargeDeclined(DeclineReason.BANK_REFUSED)).next_step_is(None)


@every_review_reason
def test_a_contradiction_in_the_token_step_goes_into_review_with_its_evidence(reason: ReviewReason) -> None:
    """The outcome is not guessed."""
    given(requested).when(contradicted(reason)).then(ReviewRequired(reason, EVIDENCE)).next_step_is(None)


@pytest.mark.parametrize("arrival", [executed(), expired()], ids=["executed", "expired"])
def test_an_answer_of_the_execute_step_to_the_token_step_goes_into_review(arrival: Arrival) -> None:
    """The bank's meaning is not guessed."""
    given(requested).when(arrival).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


# ================================================================ stories: the bank answers the execute step
def test_an_executed_transaction_is_a_charge_with_everything_its_readers_need() -> None:
    """User, card and amount come from the request, the transaction from the bank."""
    given(requested, token_issued).when(executed("tx9")).then(
        Charged(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx9")
    ).next_step_is(None)


@every_decline_reason
def test_a_decline_of_the_execute_step_is_an_outcome(reason: DeclineReason) -> None:
    """The bank has closed the token: no money moved and none will."""
    given(requested, token_issued).when(declined(reason)).then(ChargeDeclined(reason)).next_step_is(None)


def test_an_expired_token_is_followed_by_another_token_step() -> None:
    """Only a definite 'expired, not executed' leads to a new token."""
    given(requested, token_issued).when(expired()).then(TokenExpired("t1")).next_step_is(request_token(1))


def test_tokens_that_keep_expiring_end_in_review() -> None:
    """The last token is recorded as expired too."""
    history: list[Event] = [requested]
    for number in range(1, TOKEN_LIMIT):
        issued = TokenIssued(f"t{number}")
        given(*history, issued).when(expired()).then(TokenExpired(f"t{number}"))
        history += [issued, TokenExpired(f"t{number}")]
    given(*history, TokenIssued("last")).when(expired()).then(
        TokenExpired("last"), ReviewRequired(ReviewReason.TOKENS_KEEP_EXPIRING)
    ).next_step_is(None)


def test_a_definite_refusal_of_the_execute_step_goes_into_review_and_never_to_a_new_token() -> None:
    """Money may have moved, and the bank does not say."""
    given(requested, token_issued).when(refused()).then(
        ReviewRequired(ReviewReason.EXECUTE_REFUSED, EVIDENCE)
    ).next_step_is(None)


@every_review_reason
def test_a_contradiction_in_the_execute_step_goes_into_review_with_its_evidence(reason: ReviewReason) -> None:
    """The outcome is not guessed, and no new token is requested."""
    given(requested, token_issued).when(contradicted(reason)).then(ReviewRequired(reason, EVIDENCE)).next_step_is(None)


def test_a_token_in_answer_to_the_execute_step_goes_into_review() -> None:
    """It answers a question that was not asked."""
    given(requested, token_issued).when(token("t2")).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


# ================================================================ stories: no answer, late answers, giving up
@pytest.mark.parametrize(
    "arrival",
    [in_progress(), not_answered(), not_answered(our_setup=True)],
    ids=["in progress", "no answer", "our set-up"],
)
def test_without_an_answer_the_same_step_is_next_again(arrival: Arrival) -> None:
    """The charge does not move, in either step."""
    given(requested).when(arrival).then_nothing().next_step_is(request_token())
    given(requested, token_issued).when(arrival).then_nothing().next_step_is(execute())


def test_a_late_token_changes_nothing() -> None:
    """The bank repeats its answer, or two loops asked concurrently: the first stored token stays."""
    given(requested, token_issued).when(token("t2", to=request_token())).then_nothing().next_step_is(execute("t1"))


def test_a_late_answer_about_an_expired_token_changes_nothing() -> None:
    """It neither ends the charge nor expires the next token."""
    again = given(requested, token_issued, token_expired)
    again.when(executed(to=execute("t1"))).then_nothing().next_step_is(request_token(1))
    again.when(token("t1", to=request_token(0))).then_nothing().next_step_is(request_token(1))
    second = given(requested, token_issued, token_expired, TokenIssued("t2"))
    second.when(expired(to=execute("t1"))).then_nothing().next_step_is(execute("t2"))


def test_a_late_answer_never_changes_an_outcome() -> None:
    """Not even when it contradicts the outcome."""
    given(requested, token_issued, charged).when(
        declined(DeclineReason.OTHER, to=execute())
    ).then_nothing().next_step_is(None)
    given(requested, ChargeAbandoned(5)).when(token(to=request_token())).then_nothing().next_step_is(None)


def test_an_answer_about_a_charge_that_was_never_requested_changes_nothing() -> None:
    """It does not begin one."""
    given().when(token(to=request_token())).then_nothing()


def test_the_token_step_is_given_up_after_enough_time_and_attempts() -> None:
    """No money can have moved."""
    given(requested).when(not_answered(ATTEMPTS_BEFORE_GIVING_UP, age_seconds=DAY_SECONDS)).then(
        ChargeAbandoned(ATTEMPTS_BEFORE_GIVING_UP)
    ).next_step_is(None)


def test_the_token_step_is_not_given_up_before_enough_attempts_of_one_process() -> None:
    """A server that returns after a day must not abandon a charge that it never tried."""
    given(requested).when(not_answered(ATTEMPTS_BEFORE_GIVING_UP - 1, age_seconds=DAY_SECONDS)).then_nothing()


@pytest.mark.parametrize("age_seconds", [DAY_SECONDS - 1, 0.0, -DAY_SECONDS])
def test_the_token_step_of_a_young_charge_is_not_given_up(age_seconds: float) -> None:
    """After any number of unanswered calls. A clock that went back makes no charge old."""
    given(requested).when(not_answered(1_000_000, age_seconds=age_seconds)).then_nothing()


def test_nothing_is_given_up_in_a_restored_journal() -> None:
    """The bank may know of steps that the journal has lost."""
    given(requested).when(not_answered(9, age_seconds=DAY_SECONDS, is_restored=True)).then_nothing()


def test_nothing_is_given_up_because_of_our_own_set_up() -> None:
    """The bank would serve us as soon as people mend the credentials."""
    given(requested).when(not_answered(9, age_seconds=DAY_SECONDS, our_setup=True)).then_nothing()


def test_the_token_step_may_be_given_up_after_a_token_has_expired() -> None:
    """The bank has closed that token, unexecuted."""
    given(requested, token_issued, token_expired).when(not_answered(9, age_seconds=DAY_SECONDS)).then(
        ChargeAbandoned(9)
    )


def test_the_execute_step_is_never_given_up() -> None:
    """Money may have moved, after any number of unanswered calls."""
    given(requested, token_issued).when(
        not_answered(1_000_000, age_seconds=9 * DAY_SECONDS)
    ).then_nothing().next_step_is(execute())


def test_giving_up_a_step_that_is_behind_changes_nothing() -> None:
    """An answer came first."""
    late = not_answered(9, age_seconds=DAY_SECONDS, to=request_token())
    given(requested, token_issued).when(late).then_nothing()
    given(requested, token_issued, charged).when(not_answered(9, age_seconds=DAY_SECONDS, to=execute())).then_nothing()


# ================================================================ stories: the outcome of a key
def test_a_key_is_given_its_outcome_with_position_and_time() -> None:
    """The position of the deciding event, and the time of the request."""
    assert outcome_of(given(requested, token_issued, charged).state, REQUEST.idempotency_key) == AtRest(
        REQUEST, REQUESTED_AT, charged, position=3
    )


@pytest.mark.parametrize("history", [(), (requested,), (requested, token_issued)], ids=["absent", "asked", "token"])
def test_a_key_has_no_outcome_before_it_is_decided(history: tuple[Event, ...]) -> None:
    """The outcome is not guessed."""
    assert outcome_of(given(*history).state, REQUEST.idempotency_key) is None


def test_another_key_is_not_given_the_outcome() -> None:
    """Each key has its own outcome."""
    assert outcome_of(given(requested, token_issued, charged).state, "another-key") is None


# ================================================================ laws over every reachable state
TOKENS = ("t1", "t2")
ANSWERS: list[Answer] = [
    *map(Token, TOKENS),
    Executed("tx1"),
    *map(Declined, DeclineReason),
    Expired(),
    Refused(EVIDENCE),
    *(Contradiction(EVIDENCE, reason) for reason in ReviewReason),
    InProgress(),
    InProgress(3.0),
    NoAnswer(),
    NoAnswer(our_setup=True),
]
EFFECTS: list[Effect] = [*map(request_token, range(TOKEN_LIMIT + 1)), *map(execute, (*TOKENS, "t3"))]
COMMANDS: list[Message] = [
    Command(REQUEST),
    Command(REQUEST, (FAULT,)),
    Command(replace(REQUEST, description="")),
    Command(replace(REQUEST, user_id="user-8")),
]
OLD = REQUESTED_AT + 2 * int(DAY_SECONDS * 1_000_000)
TOLD_BY_THE_LOOP: list[Answered] = [
    *(Answered(effect, answer, FIRST_TRY) for effect, answer in product(EFFECTS, ANSWERS)),
    *(
        Answered(effect, NoAnswer(), Attempts(unanswered, OLD, DAY_SECONDS, is_restored))
        for effect, unanswered, is_restored in product(EFFECTS, (0, 4, 5, 1_000_000), (False, True))
    ),
]
MESSAGES: list[Message] = [*COMMANDS, *TOLD_BY_THE_LOOP]
EVENTS: list[Event] = [
    requested,
    *map(TokenIssued, (*TOKENS, "t3")),
    *map(TokenExpired, (*TOKENS, "t3")),
    charged,
    *map(ChargeDeclined, DeclineReason),
    *map(ReviewRequired, ReviewReason),
    ChargeAbandoned(5),
]


def every_way() -> dict[State, tuple[Event, ...]]:
    """Every state that these messages can reach, with a shortest stream that leads to it."""
    ways: dict[State, tuple[Event, ...]] = {Absent(): ()}
    rest = deque(ways)
    while rest:
        state = rest.popleft()
        for message in [COMMANDS[0], *TOLD_BY_THE_LOOP]:
            events = tuple(decide(state, message))
            after = stored(state, *events)
            if after not in ways:
                ways[after] = ways[state] + events
                rest.append(after)
    return ways


def _decided(state: State, message: Message) -> list[Event]:
    try:
        return decide(state, message)
    except (InvalidRequest, KeyReused):
        assert isinstance(message, Command), "an answer never raises"
        return []


WAYS = every_way()


DIAGRAM = diagram()


def state_name(state: State) -> str:
    """The state's name in the diagram."""
    return type(state.operation if isinstance(state, Charge) else state).__name__


def names(stream: tuple[Event, ...]) -> list[str]:
    """A stream as the names of its events."""
    return [type(event).__name__ for event in stream]


def walk(stream: tuple[Event, ...]) -> str:
    """The state to which the diagram leads. Raises KeyError if the diagram has no such way."""
    state = "Absent"
    for name in names(stream):
        state = DIAGRAM[state, name]
    return state


def test_the_judge_has_the_grammar_of_the_diagram() -> None:
    """It is generated: after a change of the diagram run python -m tests.core.diagram."""
    assert GRAMMAR.read_text() == grammar()


def test_the_enumeration_reaches_every_kind_of_state_and_every_outcome() -> None:
    """The laws below are not empty."""
    operations = [state.operation for state in WAYS if isinstance(state, Charge)]
    assert {type(begun) for begun in operations} == {AwaitingToken, AwaitingExecution, AtRest}
    assert {begun.expired_tokens for begun in operations if isinstance(begun, AwaitingExecution)} == set(
        range(TOKEN_LIMIT)
    )
    assert {name for stream in WAYS.values() for name in names(stream)} == {name for _, name in DIAGRAM}
    assert {event.reason for stream in WAYS.values() for event in stream if isinstance(event, ReviewRequired)} == set(
        ReviewReason
    )


def in_every_state(law: Callable[[Any, State], None]) -> Callable[[Any], None]:
    """Make a test of a law, which must hold in every reachable state."""

    def test(self: Any) -> None:
        for state in WAYS:
            law(self, state)

    test.__doc__ = law.__doc__
    return test


class TestInEveryState:
    """Each law, for every message."""

    @in_every_state
    def test_an_answer_never_raises(self, state: State) -> None:
        """For any answer of the bank."""
        for message in TOLD_BY_THE_LOOP:
            decide(state, message)

    @in_every_state
    def test_a_repeated_message_yields_nothing(self, state: State) -> None:
        """A decision is made once."""
        for message in MESSAGES:
            events = _decided(state, message)
            if events:
                assert decide(stored(state, *events), message) == [], message

    @in_every_state
    def test_every_decision_can_be_applied_and_follows_the_diagram(self, state: State) -> None:
        """And no more tokens than the limit are ever requested."""
        for message in MESSAGES:
            events = tuple(_decided(state, message))
            after = stored(state, *events)  # raises ImpossibleEvent if one cannot follow
            assert walk(WAYS[state] + events) == state_name(after), message
            assert names(WAYS[state] + events).count("TokenIssued") <= TOKEN_LIMIT

    @in_every_state
    def test_only_the_next_steps_answer_counts(self, state: State) -> None:
        """An answer to another step yields nothing."""
        for message in TOLD_BY_THE_LOOP:
            if message.effect != next_step(state):
                assert decide(state, message) == [], message

    @in_every_state
    def test_only_the_streams_newest_token_is_executed(self, state: State) -> None:
        """It is durable before it is used."""
        step, stream = next_step(state), WAYS[state]
        if isinstance(step, Execute):
            assert stream[-1] == TokenIssued(step.token)

    @in_every_state
    def test_a_new_token_is_asked_for_only_after_the_last_one_has_expired(self, state: State) -> None:
        """In doubt no token is requested."""
        step, stream = next_step(state), WAYS[state]
        if isinstance(step, RequestToken):
            assert isinstance(stream[-1], ChargeRequested | TokenExpired)
            assert step.expired_tokens == names(stream).count("TokenExpired") == names(stream).count("TokenIssued")

    @in_every_state
    def test_every_step_asks_for_the_first_request(self, state: State) -> None:
        """Card token and amount are those of the stored request, not of a retry."""
        step = next_step(state)
        if step is not None:
            assert (step.charge_id, step.card_token, step.amount) == (
                REQUEST.charge_id,
                REQUEST.card.token,
                REQUEST.amount,
            )

    @in_every_state
    def test_at_rest_means_no_next_step_and_no_further_event(self, state: State) -> None:
        """For ever: no message changes it, and no event can follow."""
        assert (next_step(state) is None) == (state == Absent() or is_at_rest(state))
        assert is_at_rest(state) == (outcome_of(state, REQUEST.idempotency_key) is not None)
        if is_at_rest(state):
            assert all(decide(state, message) == [] for message in TOLD_BY_THE_LOOP)
            for event in EVENTS:
                with pytest.raises(ImpossibleEvent):
                    stored(state, event)

    @in_every_state
    def test_exactly_the_events_of_the_diagram_can_follow(self, state: State) -> None:
        """All other events raise ImpossibleEvent: an impossible journal is not read further."""
        for event in EVENTS:
            follows = DIAGRAM.get((state_name(state), type(event).__name__))
            if follows is None or _of_another_token(state, event):
                with pytest.raises(
                    ImpossibleEvent, match=f"{type(event).__name__} cannot follow in {state_name(state)}"
                ):
                    stored(state, event)
            else:
                assert state_name(stored(state, event)) == follows


def _of_another_token(state: State, event: Event) -> bool:
    return (
        isinstance(state, Charge)
        and isinstance(state.operation, AwaitingExecution)
        and isinstance(event, TokenExpired)
        and event.token != state.operation.token
    )


# ================================================================ random walks
words = st.text(min_size=1, max_size=5)
evidence = st.builds(Evidence, st.tuples(words), st.integers(0, 599), st.integers(0, 1 << 16), st.binary(max_size=32))
seconds = st.none() | st.floats(0, 1e9)
answers = st.one_of(
    st.builds(Token, words),
    st.builds(Executed, words),
    st.builds(Declined, st.sampled_from(DeclineReason)),
    st.just(Expired()),
    st.just(Expired()),  # twice: long walks need many
    st.builds(Refused, evidence),
    st.builds(Contradiction, evidence, st.sampled_from(ReviewReason)),
    st.builds(InProgress, seconds),
    st.builds(NoAnswer, seconds, st.booleans()),
)
tries = st.builds(
    Attempts,
    st.integers(0, 9),
    st.integers(0, 2 * OLD),
    st.sampled_from([0.0, DAY_SECONDS]),
    st.booleans(),
)
requests = st.builds(
    Request,
    charge_id=st.just("c"),
    tenant=words,
    idempotency_key=words,
    actor=words,
    user_id=st.sampled_from(["u1", "u2"]),
    card=st.builds(Card, st.sampled_from(["k1", "k2"]), words),
    amount=st.builds(Money, st.sampled_from([1, 1 << 62]), st.sampled_from(["EUR", "JPY"])),
)


@settings(deadline=None, max_examples=60)
@given_any(st.data())
def test_every_walk_keeps_the_laws(data: st.DataObject) -> None:
    """For any messages in any order: the stream fits the grammar, and has one outcome at most, for ever."""
    first = data.draw(requests)
    stream: list[Event] = decide(Absent(), Command(first))
    seen: list[Effect] = []
    for _ in range(data.draw(st.integers(0, 30))):
        state = given(*stream).state
        step = next_step(state)
        if step is not None:
            seen.append(step)
        effect = data.draw(st.sampled_from(seen[-1:] + seen))  # mostly the next step, sometimes a late answer
        message: Message = data.draw(
            st.builds(Answered, st.just(effect), answers, tries) | st.builds(Command, requests)
        )
        stream += _decided(state, message)
    after = given(*stream).state
    assert walk(tuple(stream)) == state_name(after)
    tokens = [event.token for event in stream if isinstance(event, TokenIssued)]
    assert {step.token for step in seen if isinstance(step, Execute)} <= set(tokens)
    assert {(step.card_token, step.amount) for step in seen} <= {(first.card.token, first.amount)}
    for event in stream:
        if isinstance(event, Charged):
            assert (event.user_id, event.card, event.amount) == (first.user_id, first.card, first.amount)
