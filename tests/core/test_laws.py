"""The laws of the core: over every reachable state of small charges, then over random walks.

The enumeration opens a charge and an authorisation of two minor units and lets two operations follow, by every message that
makes a difference. It records each event at the same place and time, so that states that differ in these only are one.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from charging.v1.common_pb2 import ChargeStatus, OperationStatus
from command_service.book import Book
from command_service.charge import (
    Absent,
    Charge,
    Command,
    Due,
    Follow,
    Message,
    State,
    decide,
    evolve,
    is_at_rest,
    is_in_review,
    is_over_without_money,
    next_step,
    outcome_of,
)
from command_service.codec import decode, encode
from command_service.events import (
    ActionRequired,
    AuthorizationExpired,
    Authorized,
    Captured,
    ChargeAbandoned,
    ChargeCalledOff,
    Charged,
    ChargeDeclined,
    ChargeRequested,
    DeskStep,
    Event,
    NotAfterPassed,
    OperationAbandoned,
    OperationDeclined,
    OperationRequested,
    Recorded,
    Refunded,
    ResolutionApproved,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
    Voided,
)
from command_service.failures import CommandRefused, ImpossibleEvent, OperationUnderWay
from command_service.operation import (
    TOKEN_LIMIT,
    Answered,
    AtRest,
    Attempts,
    AwaitingExecution,
    CallingOff,
    awaits_customer,
)
from command_service.statuses import (
    decline_reason_told,
    operation_status_told,
    status_of,
    status_told,
    transaction_id_told,
)
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
    STEP_ENDS_AT,
    STEP_URL,
    reference,
    stored,
    wish,
)

SMALL = replace(REQUEST, amount=Money(2, "EUR"), not_after=REQUESTED_AT + 1)
SMALL_HOLD = replace(SMALL, is_held=True)
SMALL_OFF_SESSION = replace(SMALL, is_off_session=True)
OPENINGS = (SMALL, SMALL_HOLD, SMALL_OFF_SESSION)
FAULT = ("amount", "must be at least 1")
KEYS = ("k1", "k2")
FOLLOWING = (Kind.CAPTURE, Kind.VOID, Kind.REFUND)


# ================================================================ every message that makes a difference
def wishes(keys: tuple[str, ...]) -> Iterator[Follow]:
    """Operations under these keys: each kind, each amount, and captures that are final or not."""
    for key, minor_units in product(keys, (None, 1, 2)):
        amount = None if minor_units is None else Money(minor_units, "EUR")
        yield Follow(wish(Kind.REFUND, key, amount))
        yield Follow(wish(Kind.CAPTURE, key, amount))
        yield Follow(wish(Kind.CAPTURE, key, amount, is_final=True))
    yield from (Follow(wish(Kind.VOID, key)) for key in keys)


ANSWERS: list[Answer] = [
    Token("t1"),
    Executed("tx1"),
    Declined(DeclineReason.OTHER),
    Declined(DeclineReason.AUTHORIZATION_EXPIRED),
    Expired(),
    CalledOff(),
    Refused(EVIDENCE),
    Contradiction(EVIDENCE),
    InProgress(3.0),
    NeedsAction(STEP_URL, STEP_ENDS_AT),
    NeedsAction(STEP_URL + "/again"),
    NoAnswer(),
]
OLD = REQUESTED_AT + 2 * int(DAY_SECONDS * 1_000_000)
TIRED = Attempts(5, OLD, DAY_SECONDS, is_restored=False)
PAST = Due(SMALL.not_after + 1)
# Messages that lead to new states, and others that must not harm in any.
LEADING: list[Message] = [*map(Command, OPENINGS), *wishes(KEYS), PAST]
OTHERS: list[Message] = [
    Command(SMALL, (FAULT,)),
    Command(replace(SMALL, user_id="user-8")),
    Due(SMALL.not_after),
    *wishes(("k3",)),
    *(replace(follow, faults=(FAULT,)) for follow in wishes(("k1",))),
    *(replace(follow, wish=replace(follow.wish, tenant="another")) for follow in wishes(("k1",))),
    Follow(wish(Kind.REFUND, "k3", Money(3, "EUR"))),
    Follow(wish(Kind.REFUND, "k3", Money(0, "EUR"))),
    Follow(wish(Kind.CAPTURE, "k3", Money(-1, "EUR"))),
    Follow(wish(Kind.REFUND, "k3", Money(1, "USD"))),
]


def answered(effect: Effect | None) -> Iterator[Answered]:
    """Every answer to a step, and no answer once more when it is old."""
    if effect is not None:
        yield from (Answered(effect, answer, FIRST_TRY) for answer in ANSWERS)
        yield Answered(effect, NoAnswer(), TIRED)


def recorded(state: State, *events: Event) -> State:
    """A charge after more events, all at one place and time."""
    for event in events:
        state = evolve(state, Recorded(event, 1, REQUESTED_AT))
    return state


def decided(state: State, message: Message) -> list[Event]:
    """The events of a decision; none if a client's message is refused."""
    try:
        return decide(state, message)
    except (CommandRefused, OperationUnderWay):
        assert isinstance(message, Command | Follow), "an answer never raises"
        return []


def every_way() -> dict[State, tuple[Event, ...]]:
    """Every state that these messages can reach, with a shortest stream that leads to it."""
    ways: dict[State, tuple[Event, ...]] = {Absent(): ()}
    rest = deque(ways)
    while rest:
        state = rest.popleft()
        for message in (*LEADING, *answered(next_step(state))):
            events = tuple(decided(state, message))
            if ways[state] and ways[state].count(TokenExpired("t1")) > 1 and TokenExpired("t1") in events:
                continue  # A third expired token in a charge shows nothing that two do not. Below, one charge has them all.
            after = recorded(state, *events)
            if after not in ways:
                ways[after] = ways[state] + events
                rest.append(after)
    return ways


WAYS = every_way()
EFFECTS: list[Effect] = list(dict.fromkeys(step for state in WAYS if (step := next_step(state)) is not None))
DIAGRAMS = {kind: diagram(kind.value) for kind in Kind}


# ================================================================ the diagram, for the operations of a charge in a row
def name_of(event: Event) -> str:
    """The event's name in the contract and in the diagram."""
    if isinstance(event, OperationRequested):
        return f"{event.kind.value.capitalize()}Requested"
    return type(event).__name__


def walk(stream: tuple[Event, ...]) -> str:
    """The state to which the diagrams lead. Raises KeyError if they have no such way.

    Of the desk's steps only an approval is in the diagrams: it takes up again the operation in review, and a void with it.
    """
    kind, state, waits, shares = Kind.CHARGE, "Absent", False, False
    for event in stream:
        if isinstance(event, ResolutionApproved):
            waits = shares
        elif isinstance(event, DeskStep):
            continue
        elif isinstance(event, ChargeRequested):
            kind = Kind.AUTHORIZE if event.request.is_held else Kind.CHARGE
        elif isinstance(event, OperationRequested) and state == "AtRest":
            kind, state = event.kind, "Absent"
        elif isinstance(event, OperationRequested):
            if waits:
                raise KeyError("a void waits already")
            waits = True
        state = DIAGRAMS[kind][state, name_of(event)]
        shares = waits and isinstance(event, ReviewRequired)
        if waits and state == "AtRest":
            waits = False
            if isinstance(event, Authorized):
                kind, state = Kind.VOID, "AwaitingToken"
    return state


def state_name(state: State) -> str:
    """The state's name in the diagram."""
    return type(state.newest if isinstance(state, Charge) else state).__name__


def test_the_judge_has_the_grammar_of_the_diagram() -> None:
    """It is generated: after a change of the diagram run python -m tests.core.diagram."""
    assert GRAMMAR.read_text() == grammar()


# ================================================================ laws over every reachable state
EVENTS: list[Event] = [
    *map(ChargeRequested, OPENINGS),
    *(
        OperationRequested(kind, reference(kind, key), key, "shop", Money(minor_units, "EUR"), is_final)
        for kind, key, minor_units, is_final in product(FOLLOWING, ("k1", "k3"), (0, 1, 2, 3), (False, True))
        if kind is Kind.CAPTURE or not is_final
    ),
    NotAfterPassed(),
    TokenIssued("t1"),
    TokenExpired("t1"),
    TokenExpired("t2"),
    ActionRequired(STEP_URL, STEP_ENDS_AT),
    Charged(SMALL.user_id, SMALL.card, SMALL.amount, "tx1"),
    Authorized(SMALL.user_id, SMALL.card, SMALL.amount, "tx1"),
    Captured(Money(1, "EUR"), "tx1"),
    Voided(Money(1, "EUR"), "tx1"),
    Refunded(Money(1, "EUR"), "tx1"),
    ChargeCalledOff(),
    AuthorizationExpired(),
    OperationDeclined(DeclineReason.OTHER),
    OperationAbandoned(5),
    ChargeDeclined(DeclineReason.OTHER),
    ReviewRequired(ReviewReason.CONTRADICTION),
    ChargeAbandoned(5),
]


def test_the_enumeration_reaches_every_kind_of_state_every_event_and_every_outcome() -> None:
    """The laws below are not empty."""
    charges = [state for state in WAYS if isinstance(state, Charge)]
    assert len(charges) > 3_000
    reached = {(charge.newest.operation.kind, state_name(charge)) for charge in charges}
    # What operators do is in tests/core/test_desk_laws.py.
    states = {(kind, state) for kind, table in DIAGRAMS.items() for state in table.values()}
    assert reached == {(kind, state) for kind, state in states if state != "Resolving"}
    names = {name_of(event) for stream in WAYS.values() for event in stream}
    assert names == {name for table in DIAGRAMS.values() for _, name in table} - {"ResolutionApproved"}
    assert {name_of(event) for event in EVENTS} == names
    books = {charge.book for charge in charges}
    assert {Book(2, 2, 2), Book(2, 1, 1, is_open=True), Book(2, 1), Book(2, 1, has_lapsed=True), Book()} <= books


def over_every_state(law: Callable[[Charge, tuple[Event, ...]], None]) -> Callable[[], None]:
    """Make a test of a law, which must hold in every reachable state of a charge, after the stream that led to it."""

    def test() -> None:
        for state, stream in WAYS.items():
            if isinstance(state, Charge):
                law(state, stream)

    test.__doc__ = law.__doc__
    return test


@over_every_state
def test_an_answer_or_the_clock_never_raises(charge: Charge, stream: tuple[Event, ...]) -> None:
    """For any answer to any step that there is."""
    messages: list[Message] = [*answered(next_step(charge)), PAST, Due(0)]
    for message in messages:
        decide(charge, message)


@over_every_state
def test_only_the_next_steps_answer_counts(charge: Charge, stream: tuple[Event, ...]) -> None:
    """An answer to any other step yields nothing, whatever it says."""
    step = next_step(charge)
    for effect in EFFECTS:
        if effect != step:
            assert decide(charge, Answered(effect, Executed("tx2"), FIRST_TRY)) == []


@over_every_state
def test_a_repeated_message_yields_nothing(charge: Charge, stream: tuple[Event, ...]) -> None:
    """A decision is made once."""
    for message in (*LEADING, *OTHERS, *answered(next_step(charge))):
        if events := decided(charge, message):
            assert decide(recorded(charge, *events), message) == [], message


@over_every_state
def test_every_decision_can_be_applied_and_follows_the_diagram(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Those of today, and those of a client in every state."""
    assert walk(stream) == state_name(charge)
    for message in (*LEADING, *OTHERS, *answered(next_step(charge))):
        events = tuple(decided(charge, message))
        after = recorded(charge, *events)  # raises ImpossibleEvent if one cannot follow
        assert walk(stream + events) == state_name(after), message


@over_every_state
def test_exactly_the_events_of_the_diagram_and_of_the_book_can_follow(
    charge: Charge, stream: tuple[Event, ...]
) -> None:
    """All other events raise ImpossibleEvent: an impossible journal is not read further."""
    for event in EVENTS:
        try:
            follows = walk((*stream, event))
        except KeyError:
            follows = None
        if follows is None or _is_impossible_for_another_reason(charge, event):
            with pytest.raises(ImpossibleEvent):
                recorded(charge, event)
        else:
            assert state_name(recorded(charge, event)) == follows, event


@over_every_state
def test_the_book_is_the_sum_of_the_executed_operations(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Recomputed from the events alone; and refunded <= captured <= authorised."""
    book = charge.book
    opened = [event.amount for event in stream if isinstance(event, Charged | Authorized)]
    captured = sum(event.amount.minor_units for event in stream if isinstance(event, Charged | Captured))
    refunded = sum(event.amount.minor_units for event in stream if isinstance(event, Refunded))
    voided = sum(event.amount.minor_units for event in stream if isinstance(event, Voided))
    assert (book.authorized, book.captured, book.refunded) == (2 * len(opened), captured, refunded)
    assert 0 <= refunded <= captured <= book.authorized <= SMALL.amount.minor_units
    assert captured + voided <= book.authorized
    assert not (book.is_open and (voided or captured == book.authorized or book.has_lapsed))
    assert book.has_lapsed == (AuthorizationExpired() in stream)


@over_every_state
def test_one_operation_at_a_time_is_under_way(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Only a void waits beside the calling off that it has asked for. No operation has the key of another."""
    assert all(isinstance(progress, AtRest) for progress in charge.done)
    assert charge.void is None or isinstance(charge.newest, CallingOff)
    operations = [progress.operation for progress in (*charge.done, charge.newest, charge.void) if progress is not None]
    assert [operation.opens for operation in operations] == [True] + [False] * (len(operations) - 1)
    keys = [operation.idempotency_key for operation in operations]
    assert len(set(keys)) == len(keys)


@over_every_state
def test_at_rest_means_no_next_step_and_no_event_but_of_another_operation(
    charge: Charge, stream: tuple[Event, ...]
) -> None:
    """And in review not even that."""
    assert is_at_rest(charge) == (next_step(charge) is None) == isinstance(charge.newest, AtRest)
    if is_at_rest(charge):
        assert decide(charge, PAST) == []
    if is_in_review(charge):
        assert all(decided(charge, message) == [] for message in (*LEADING, *OTHERS))


@over_every_state
def test_every_step_is_for_its_own_operation_as_it_was_requested(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Card and amount are those of the stored requests, not of a retry; one that follows names the transaction it is on."""
    step = next_step(charge)
    if step is None:
        return
    operation = step.operation
    assert operation.request in OPENINGS
    assert operation == charge.newest.operation
    if operation.opens:
        assert (operation.reference, operation.amount) == (SMALL.charge_id, SMALL.amount)
    else:
        (asked_for,) = [
            event
            for event in stream
            if isinstance(event, OperationRequested) and event.idempotency_key == operation.idempotency_key
        ]
        assert (operation.kind, operation.reference) == (asked_for.kind, asked_for.operation_id)
        assert (operation.amount, operation.is_final) == (asked_for.amount, asked_for.is_final)
        assert operation.on == "tx1"


@over_every_state
def test_only_the_streams_newest_token_is_executed_or_closed(charge: Charge, stream: tuple[Event, ...]) -> None:
    """It is durable before it is used."""
    step = next_step(charge)
    if isinstance(step, Execute):
        assert [event for event in stream if not isinstance(event, ActionRequired)][-1] == TokenIssued(step.token)
    if isinstance(step, CallOff):
        tokens = [event for event in stream if isinstance(event, TokenIssued | TokenExpired)]
        is_open = bool(tokens) and isinstance(tokens[-1], TokenIssued)
        assert step.token == ("t1" if is_open else None)


@over_every_state
def test_a_new_token_is_asked_for_only_after_the_last_one_has_expired(
    charge: Charge, stream: tuple[Event, ...]
) -> None:
    """In doubt no token is requested, and never twice for one operation."""
    step = next_step(charge)
    if isinstance(step, RequestToken):
        assert isinstance(stream[-1], ChargeRequested | OperationRequested | TokenExpired | Authorized)
        # Its steps begin with its request; those of a void that waited, with the end of the authorisation.
        begins = (ChargeRequested, OperationRequested, Authorized)
        begun = max(number for number, event in enumerate(stream) if isinstance(event, begins))
        names = [name_of(event) for event in stream[begun:]]
        assert step.expired_tokens == names.count("TokenExpired") == names.count("TokenIssued")


@over_every_state
def test_a_step_of_the_customer_is_awaited_only_after_the_bank_has_named_it(
    charge: Charge, stream: tuple[Event, ...]
) -> None:
    """And only of a customer who is there. Nobody else's transaction is executed once the bank wants that step."""
    if awaits_customer(charge.opening):
        assert stream[-1] == ActionRequired(charge.opening.url, charge.opening.expires_at)
        assert not charge.request.is_off_session
    if charge.request.is_off_session and any(isinstance(event, ActionRequired) for event in stream):
        assert not (isinstance(step := next_step(charge), Execute) and step.operation.opens)
    assert (status_told(charge.opening) == ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION) == awaits_customer(
        charge.opening
    )


@over_every_state
def test_what_a_key_is_told_never_changes(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Whatever follows: outcome, position, times, status, reason and transaction."""
    told = {key: outcome_of(charge, key) for key in (None, *KEYS)}
    for message in (*LEADING, *OTHERS, *answered(next_step(charge))):
        if events := decided(charge, message):
            after = recorded(charge, *events)
            for key, outcome in told.items():
                assert outcome is None or outcome_of(after, key) == outcome, message


@over_every_state
def test_everything_that_is_told_has_words(charge: Charge, stream: tuple[Event, ...]) -> None:
    """A status for the charge and for each operation; a reason exactly for what was declined."""
    assert status_of(charge)
    assert status_told(charge.opening)
    for key in KEYS:
        if (outcome := outcome_of(charge, key)) is not None:
            is_declined = operation_status_told(outcome) == OperationStatus.OPERATION_STATUS_DECLINED
            assert bool(decline_reason_told(outcome)) == is_declined
            moved = isinstance(outcome.outcome, Captured | Voided | Refunded)
            assert bool(transaction_id_told(outcome)) == moved


@over_every_state
def test_what_is_over_without_money_stays_so(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Its payer is told to try under a new key: no message may move money here any more."""
    if is_over_without_money(charge):
        assert not any(isinstance(event, Charged | Captured) for event in stream)
        assert all(decided(charge, message) == [] for message in (*LEADING, *OTHERS, PAST))


@over_every_state
def test_only_an_executed_operation_or_a_lapse_changes_the_book(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Nothing else does, and a review least of all."""
    for message in (*LEADING, *answered(next_step(charge))):
        events = decided(charge, message)
        after = recorded(charge, *events)
        assert isinstance(after, Charge)
        if after.book != charge.book:
            assert isinstance(events[-1], Charged | Authorized | Captured | Voided | Refunded | AuthorizationExpired)


def _is_impossible_for_another_reason(charge: Charge, event: Event) -> bool:
    """Whether the diagram has this way, but the token, the book or a review forbids it."""
    newest = charge.newest
    match event:
        case TokenExpired(token):
            return isinstance(newest, AwaitingExecution) and token != newest.token
        case ChargeAbandoned():
            return isinstance(newest, CallingOff) and newest.token is not None
        case OperationRequested() if isinstance(newest, AtRest):
            left = charge.book.left(event.kind)
            return is_in_review(charge) or not charge.book.fits(event.kind) or not 0 < event.amount.minor_units <= left
        case _:
            return False


@pytest.mark.parametrize("request_", OPENINGS, ids=["charge", "authorize", "off session"])
def test_no_more_tokens_than_the_limit_are_requested(request_: Request) -> None:
    """Of any operation: the last expired token ends in review."""
    state, stream = recorded(Absent(), ChargeRequested(request_)), 0
    while (step := next_step(state)) is not None:
        answer: Answer = Token("t1") if isinstance(step, RequestToken) else Expired()
        stream += isinstance(step, RequestToken)
        state = recorded(state, *decide(state, Answered(step, answer, FIRST_TRY)))
    assert stream == TOKEN_LIMIT
    assert isinstance(state, Charge)
    assert is_in_review(state)


# ================================================================ random walks
words = st.text(min_size=1, max_size=5)
evidence = st.builds(Evidence, st.tuples(words), st.integers(0, 599), st.integers(0, 1 << 16), st.binary(max_size=32))
seconds = st.none() | st.floats(0, 1e9)
times = st.integers(0, 2 * OLD)
answers = st.one_of(
    st.builds(Token, words),
    st.builds(Token, words),  # twice: so that walks get far
    st.builds(Executed, words, times),
    st.builds(Executed, words, times),
    st.builds(Declined, st.sampled_from(DeclineReason)),
    st.just(Expired()),
    st.just(CalledOff()),
    st.builds(Refused, evidence),
    st.builds(Contradiction, evidence, st.sampled_from(ReviewReason)),
    st.builds(InProgress, seconds),
    st.builds(NeedsAction, words, times),
    st.builds(NoAnswer, seconds, st.booleans()),
)
tries = st.builds(
    Attempts,
    st.integers(0, 9),
    times,
    st.sampled_from([0.0, DAY_SECONDS]),
    st.booleans(),
)
requests = st.builds(
    Request,
    charge_id=st.just("c"),
    tenant=st.sampled_from(["default", "another"]),
    idempotency_key=words,
    actor=words,
    user_id=st.sampled_from(["u1", "u2"]),
    card=st.builds(Card, st.sampled_from(["k1", "k2"]), words, fingerprint=st.sampled_from(["", "f1", "f2"])),
    amount=st.builds(Money, st.sampled_from([1, 100, 1 << 62]), st.sampled_from(["EUR", "JPY"])),
    is_held=st.booleans(),
    not_after=st.just(0) | times,
    is_off_session=st.booleans(),
)
follows = st.builds(
    lambda kind, key, amount, is_final, tenant: Follow(
        replace(wish(kind, key, amount, is_final=is_final and kind is Kind.CAPTURE), tenant=tenant)
    ),
    st.sampled_from(FOLLOWING),
    st.sampled_from(["k1", "k2", "k3", "k4", "k5"]),
    st.none() | st.builds(Money, st.sampled_from([1, 50, 100]), st.sampled_from(["EUR", "JPY"])),
    st.booleans(),
    st.sampled_from(["default", "default", "default", "another"]),
)


@settings(max_examples=200)
@given_any(st.data())
def test_every_walk_keeps_the_laws(data: st.DataObject) -> None:
    """For any messages in any order: the stream fits the diagram, and each key is told one outcome at most, for ever."""
    first = data.draw(requests)
    stream: list[Event] = decide(Absent(), Command(first))
    seen: list[Effect] = []
    told: dict[str | None, AtRest] = {}
    for _ in range(data.draw(st.integers(0, 40))):
        state = stored(Absent(), *stream)
        step = next_step(state)
        if step is not None:
            seen.append(step)
        if seen:
            effect = data.draw(st.sampled_from(seen[-1:] * 5 + seen))  # mostly the newest step, sometimes a late answer
            message: Message = data.draw(
                st.builds(Answered, st.just(effect), answers, tries)
                | st.builds(Command, requests)
                | follows
                | st.builds(Due, times)
            )
            stream += [decode(encode(event)) for event in decided(state, message)]
        after = stored(Absent(), *stream)
        for key in (None, "k1", "k2", "k3", "k4", "k5"):
            if (outcome := outcome_of(after, key)) is not None:
                assert told.setdefault(key, outcome) == outcome
        assert isinstance(after, Charge)
        assert 0 <= after.book.refunded <= after.book.captured <= after.book.authorized <= first.amount.minor_units
    assert walk(tuple(stream)) == state_name(stored(Absent(), *stream))
    tokens = [event.token for event in stream if isinstance(event, TokenIssued)]
    assert {step.token for step in seen if isinstance(step, Execute)} <= set(tokens)
    assert {step.operation.request for step in seen} <= {first}
    for event in stream:
        if isinstance(event, Charged | Authorized):
            assert (event.user_id, event.card, event.amount) == (first.user_id, first.card, first.amount)
