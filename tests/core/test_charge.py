"""The core: stories first, then laws over every state that can be reached, then random walks."""

import re
from collections import deque
from dataclasses import replace
from functools import reduce
from itertools import product

import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from command_service.charge import (
    ATTEMPTS_BEFORE_GIVING_UP,
    TOKEN_LIMIT,
    Absent,
    Answer,
    Answered,
    AtRest,
    AwaitingExecution,
    AwaitingToken,
    Card,
    Charge,
    ChargeAbandoned,
    Charged,
    ChargeDeclined,
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
    ImpossibleEvent,
    InProgress,
    InvalidCharge,
    KeyReused,
    Message,
    Money,
    NoAnswer,
    Refused,
    Request,
    RequestToken,
    ReviewReason,
    ReviewRequired,
    State,
    Token,
    TokenExpired,
    TokenIssued,
    decide,
    evolve,
    is_over_without_money,
    next_step,
)
from tests.core.stories import (
    EVIDENCE,
    REQUEST,
    Told,
    asked,
    charged,
    contradicted,
    declined,
    execute,
    executed,
    expired,
    given,
    given_up,
    in_progress,
    not_answered,
    refused,
    request_token,
    requested,
    token,
    token_expired,
    token_issued,
)

FAULT = ("amount", "must be at least 1")
every_decline_reason = pytest.mark.parametrize("reason", DeclineReason)
every_review_reason = pytest.mark.parametrize("reason", ReviewReason)


# ================================================================ stories: a client asks
def test_a_first_request_is_accepted() -> None:
    """Nobody has asked with this key yet."""
    given().when(asked()).then(requested)


def test_a_first_request_that_breaks_todays_rules_is_refused_with_its_faults() -> None:
    """Every fault is told, not only the first."""
    given().when(asked(REQUEST, FAULT, ("user_id", "is missing"))).then_refused(
        InvalidCharge, (FAULT, ("user_id", "is missing"))
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
    """Only then may its payer be told to try under a new key."""
    assert is_over_without_money(given(*history).state) == is_over


@pytest.mark.parametrize(
    "history",
    [(requested,), (requested, token_issued), (requested, token_issued, charged)],
    ids=["awaiting token", "awaiting execution", "at rest"],
)
class TestTheRetryOfAnAcceptedRequest:
    """Whatever the charge has come to meanwhile."""

    def test_finds_its_charge(self, history: tuple[Event, ...]) -> None:
        """Nothing is appended: the caller joins it, or is told its outcome."""
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
        """User, card token, amount and currency each make it another request; nothing of the first one is told."""
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
        """They are not compared, and what is stored stays as it is."""
        assert given(*history).when(asked(other)).then_nothing() == given(*history)


# ================================================================ stories: what is next
def test_the_token_step_follows_a_request() -> None:
    """With all that it needs."""
    given(requested).next_step_is(request_token())


def test_the_execute_step_follows_a_token() -> None:
    """With the token that the journal holds."""
    given(requested, token_issued).next_step_is(execute("t1"))


def test_the_token_step_follows_an_expired_token_and_counts_it() -> None:
    """The count is what tells a late answer apart."""
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


def test_nothing_is_to_be_done_before_anybody_has_asked() -> None:
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
    """Nobody guesses."""
    given(requested).when(contradicted(reason)).then(ReviewRequired(reason, EVIDENCE)).next_step_is(None)


@pytest.mark.parametrize("told", [executed(), expired()], ids=["executed", "expired"])
def test_the_answer_of_another_step_to_the_token_step_goes_into_review(told: Told) -> None:
    """Nobody guesses what the bank meant."""
    given(requested).when(told).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


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
    """The last token that is tried is named as expired too."""
    history: list[Event] = [requested]
    for number in range(1, TOKEN_LIMIT):
        issued = TokenIssued(f"t{number}")
        given(*history, issued).when(expired()).then(TokenExpired(f"t{number}"))
        history += [issued, TokenExpired(f"t{number}")]
    given(*history, TokenIssued("last")).when(expired()).then(
        TokenExpired("last"), ReviewRequired(ReviewReason.TOKENS_KEEP_EXPIRING)
    ).next_step_is(None)


def test_a_definite_refusal_of_the_execute_step_goes_into_review_and_never_to_a_new_token() -> None:
    """Money may have moved, and the bank will not say."""
    given(requested, token_issued).when(refused()).then(
        ReviewRequired(ReviewReason.EXECUTE_REFUSED, EVIDENCE)
    ).next_step_is(None)


@every_review_reason
def test_a_contradiction_in_the_execute_step_goes_into_review_with_its_evidence(reason: ReviewReason) -> None:
    """Nobody guesses, and nobody takes a new token."""
    given(requested, token_issued).when(contradicted(reason)).then(ReviewRequired(reason, EVIDENCE)).next_step_is(None)


def test_a_token_in_answer_to_the_execute_step_goes_into_review() -> None:
    """It answers a question that was not asked."""
    given(requested, token_issued).when(token("t2")).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


# ================================================================ stories: no answer, late answers, giving up
@pytest.mark.parametrize(
    "told",
    [in_progress(), not_answered(), not_answered(our_setup=True)],
    ids=["in progress", "no answer", "our set-up"],
)
def test_without_an_answer_the_same_step_is_next_again(told: Told) -> None:
    """The charge does not move, in either step."""
    given(requested).when(told).then_nothing().next_step_is(request_token())
    given(requested, token_issued).when(told).then_nothing().next_step_is(execute())


def test_a_late_token_changes_nothing() -> None:
    """The bank repeats its answer, or two loops asked at once: the first stored token stays."""
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


def test_an_answer_about_a_charge_that_nobody_asked_for_changes_nothing() -> None:
    """It does not begin one."""
    given().when(token(to=request_token())).then_nothing()


def test_the_token_step_is_given_up_after_enough_attempts() -> None:
    """No money can have moved."""
    given(requested).when(given_up(ATTEMPTS_BEFORE_GIVING_UP)).then(
        ChargeAbandoned(ATTEMPTS_BEFORE_GIVING_UP)
    ).next_step_is(None)


def test_the_token_step_is_not_given_up_by_a_process_that_has_hardly_tried() -> None:
    """A server that comes back after a day off must not abandon what it never tried."""
    given(requested).when(given_up(ATTEMPTS_BEFORE_GIVING_UP - 1)).then_nothing()


def test_the_token_step_may_be_given_up_after_a_token_has_expired() -> None:
    """The bank has closed that token, unexecuted."""
    given(requested, token_issued, token_expired).when(given_up(9)).then(ChargeAbandoned(9))


def test_the_execute_step_is_never_given_up() -> None:
    """Money may have moved, however often the bank did not answer."""
    given(requested, token_issued).when(given_up(1_000_000)).then_nothing().next_step_is(execute())


def test_giving_up_a_step_that_is_behind_changes_nothing() -> None:
    """An answer came first."""
    given(requested, token_issued).when(given_up(9, to=request_token())).then_nothing()
    given(requested, token_issued, charged).when(given_up(9, to=execute())).then_nothing()


# ================================================================ laws over all that can happen
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
COMMANDS = [
    Charge(REQUEST),
    Charge(REQUEST, (FAULT,)),
    Charge(replace(REQUEST, description="")),
    Charge(replace(REQUEST, user_id="user-8")),
]
TOLD_BY_THE_LOOP: list[Message] = [
    *(Answered(effect, answer) for effect, answer in product(EFFECTS, ANSWERS)),
    *(GiveUp(effect, attempts) for effect, attempts in product(EFFECTS, (0, 4, 5, 1_000_000))),
]
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
    """Every state that can be reached by these messages, with one shortest stream that leads there."""
    ways: dict[State, tuple[Event, ...]] = {Absent(): ()}
    rest = deque(ways)
    while rest:
        state = rest.popleft()
        for message in [*COMMANDS[:1], *TOLD_BY_THE_LOOP]:
            events = tuple(decide(state, message))
            after = reduce(evolve, events, state)
            if after not in ways:
                ways[after] = ways[state] + events
                rest.append(after)
    return ways


def _decided(state: State, message: Message) -> list[Event]:
    try:
        return decide(state, message)
    except (InvalidCharge, KeyReused):
        assert isinstance(message, Charge), "an answer never raises"
        return []


WAYS = every_way()

LETTER = {
    ChargeRequested: "Q",
    TokenIssued: "T",
    TokenExpired: "X",
    Charged: "C",
    ChargeDeclined: "D",
    ReviewRequired: "R",
    ChargeAbandoned: "A",
}
WHOLE = re.compile(rf"Q((TX){{0,{TOKEN_LIMIT - 1}}}(A|D|R|T(C|D|R))|(TX){{{TOKEN_LIMIT}}}R)")
BEGUN = re.compile(rf"(Q(TX){{0,{TOKEN_LIMIT - 1}}}T?)?")


def spelled(stream: tuple[Event, ...]) -> str:
    """A stream as a word of the grammar's alphabet."""
    return "".join(LETTER[type(event)] for event in stream)


def test_the_enumeration_reaches_every_kind_of_state_and_every_outcome() -> None:
    """Meta: the laws below speak of something."""
    assert {type(state) for state in WAYS} == {Absent, AwaitingToken, AwaitingExecution, AtRest}
    assert {state.expired_tokens for state in WAYS if isinstance(state, AwaitingExecution)} == set(range(TOKEN_LIMIT))
    assert {type(event) for stream in WAYS.values() for event in stream} == set(LETTER)
    assert {event.reason for stream in WAYS.values() for event in stream if isinstance(event, ReviewRequired)} == set(
        ReviewReason
    )


@pytest.mark.parametrize("state", WAYS, ids=lambda state: spelled(WAYS[state]) or "nothing")
class TestInEveryState:
    """Each law, for every message there is."""

    def test_an_answer_never_raises(self, state: State) -> None:
        """Whatever the bank says."""
        for message in TOLD_BY_THE_LOOP:
            decide(state, message)

    def test_a_message_told_again_yields_nothing(self, state: State) -> None:
        """Once applied, a decision is behind us."""
        for message in [*COMMANDS, *TOLD_BY_THE_LOOP]:
            events = _decided(state, message)
            if events:
                assert decide(reduce(evolve, events, state), message) == [], message

    def test_what_is_decided_can_happen_and_fits_the_grammar(self, state: State) -> None:
        """Whole at rest, and before it a beginning that can still become whole."""
        for message in [*COMMANDS, *TOLD_BY_THE_LOOP]:
            events = tuple(_decided(state, message))
            after = reduce(evolve, events, state)  # raises ImpossibleEvent if one cannot follow
            word = spelled(WAYS[state] + events)
            assert (WHOLE if isinstance(after, AtRest) else BEGUN).fullmatch(word), word

    def test_only_the_next_steps_answer_counts(self, state: State) -> None:
        """Whatever is said of another step yields nothing."""
        for message in TOLD_BY_THE_LOOP:
            assert not isinstance(message, Charge)
            if message.effect != next_step(state):
                assert decide(state, message) == [], message

    def test_only_the_token_of_the_stream_is_executed(self, state: State) -> None:
        """The newest one, durable before it is used."""
        step, stream = next_step(state), WAYS[state]
        if isinstance(step, Execute):
            assert stream[-1] == TokenIssued(step.token)

    def test_a_new_token_is_asked_for_only_after_the_last_one_has_expired(self, state: State) -> None:
        """In doubt there is none."""
        step, stream = next_step(state), WAYS[state]
        if isinstance(step, RequestToken):
            assert isinstance(stream[-1], ChargeRequested | TokenExpired)
            assert step.expired_tokens == spelled(stream).count("X") == spelled(stream).count("T")

    def test_every_step_asks_for_the_first_request(self, state: State) -> None:
        """Card token and amount are those of the stored request, whoever retried with what."""
        step = next_step(state)
        if step is not None:
            assert (step.charge_id, step.card_token, step.amount) == (
                REQUEST.charge_id,
                REQUEST.card.token,
                REQUEST.amount,
            )

    def test_at_rest_means_that_there_is_no_next_step_and_nothing_more_happens(self, state: State) -> None:
        """For ever: no message moves it, and no event can follow."""
        assert (next_step(state) is None) == isinstance(state, Absent | AtRest)
        if isinstance(state, AtRest):
            assert all(decide(state, message) == [] for message in TOLD_BY_THE_LOOP)
            for event in EVENTS:
                with pytest.raises(ImpossibleEvent):
                    evolve(state, event)

    def test_only_the_events_of_the_table_can_follow(self, state: State) -> None:
        """All other events raise ImpossibleEvent: a journal that cannot be is not read on."""
        for event in EVENTS:
            if spelled((event,)) not in _FOLLOWERS[type(state)] or _of_another_token(state, event):
                with pytest.raises(ImpossibleEvent, match=f"{type(event).__name__} cannot follow"):
                    evolve(state, event)
            else:
                assert evolve(state, event) != state


_FOLLOWERS: dict[type[State], str] = {Absent: "Q", AwaitingToken: "TDRA", AwaitingExecution: "XCDR", AtRest: ""}


def _of_another_token(state: State, event: Event) -> bool:
    return isinstance(state, AwaitingExecution) and isinstance(event, TokenExpired) and event.token != state.token


# ================================================================ random walks
names = st.text(min_size=1, max_size=5)
evidence = st.builds(Evidence, st.tuples(names), st.integers(0, 599), st.integers(0, 1 << 16), st.binary(max_size=32))
seconds = st.none() | st.floats(0, 1e9)
answers = st.one_of(
    st.builds(Token, names),
    st.builds(Executed, names),
    st.builds(Declined, st.sampled_from(DeclineReason)),
    st.just(Expired()),
    st.just(Expired()),  # twice: long walks need many
    st.builds(Refused, evidence),
    st.builds(Contradiction, evidence, st.sampled_from(ReviewReason)),
    st.builds(InProgress, seconds),
    st.builds(NoAnswer, seconds, st.booleans()),
)
requests = st.builds(
    Request,
    charge_id=st.just("c"),
    tenant=names,
    idempotency_key=names,
    actor=names,
    user_id=st.sampled_from(["u1", "u2"]),
    card=st.builds(Card, st.sampled_from(["k1", "k2"]), names),
    amount=st.builds(Money, st.sampled_from([1, 1 << 62]), st.sampled_from(["EUR", "JPY"])),
)


@settings(deadline=None, max_examples=60)
@given_any(st.data())
def test_every_walk_keeps_the_laws(data: st.DataObject) -> None:
    """Whatever is told in whatever order: the stream fits the grammar, and one outcome at most, for ever."""
    first = data.draw(requests)
    stream: list[Event] = decide(Absent(), Charge(first))
    seen: list[Effect] = []
    for _ in range(data.draw(st.integers(0, 30))):
        state = given(*stream).state
        step = next_step(state)
        if step is not None:
            seen.append(step)
        effect = data.draw(st.sampled_from(seen[-1:] + seen))  # mostly the next step, sometimes a late answer
        message: Message = data.draw(
            st.builds(Answered, st.just(effect), answers)
            | st.builds(GiveUp, st.just(effect), st.integers(0, 9))
            | st.builds(Charge, requests)
        )
        stream += _decided(state, message)
    after = given(*stream).state
    assert (WHOLE if isinstance(after, AtRest) else BEGUN).fullmatch(spelled(tuple(stream)))
    tokens = [event.token for event in stream if isinstance(event, TokenIssued)]
    assert {step.token for step in seen if isinstance(step, Execute)} <= set(tokens)
    assert {(step.card_token, step.amount) for step in seen} <= {(first.card.token, first.amount)}
    for event in stream:
        if isinstance(event, Charged):
            assert (event.user_id, event.card, event.amount) == (first.user_id, first.card, first.amount)
