"""The laws of the desk: over every reachable state of small charges that operators touch, then over random walks.

The enumeration opens a charge and an authorisation of two minor units and lets one operation follow. In every state operators
try it, hold it back, let it go, and propose, reject and approve each resolution, with each answer of the bank. States that
differ only in the number of steps, or in who closed the last proposal, are one.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from chassis.refusals import Refusal
from command_service import operation as operations
from command_service.charge import (
    Absent,
    Charge,
    Command,
    Due,
    Message,
    State,
    decide,
    evolve,
    in_review,
    is_at_rest,
    is_in_review,
    is_over_without_money,
    next_step,
    outcome_of,
)
from command_service.codec import decode, encode
from command_service.desk_rules import (
    MOST_PROPOSALS,
    MOST_TRIES,
    Wanted,
    WantedApproval,
    WantedStep,
    is_confirmed,
    refund_key,
)
from command_service.events import (
    MOVED,
    Authorized,
    Captured,
    Charged,
    ChargeDeclined,
    Event,
    HeldBack,
    LetGo,
    OperationDeclined,
    OperationRequested,
    Recorded,
    Refunded,
    ResolutionApproved,
    ResolutionProposed,
    ResolutionRejected,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
    TryRequested,
)
from command_service.explaining import explaining
from command_service.failures import (
    AnotherProposal,
    BankContradicts,
    BankSaysNothing,
    CommandRefused,
    ImpossibleEvent,
    OperationUnderWay,
    RefundKeyTaken,
    TooManyOperations,
)
from command_service.operation import Answered, AtRest, CallingOff, Resolving
from command_service.statuses import (
    decline_reason_told,
    operation_status_told,
    status_of,
    status_told,
    transaction_id_told,
)
from command_service.values import (
    Answer,
    AnswerKind,
    CalledOff,
    Contradiction,
    Declined,
    DeclineReason,
    Executed,
    Expired,
    InProgress,
    Kind,
    Money,
    NeedsAction,
    NoAnswer,
    Resolution,
    ReviewReason,
    Token,
    kind_of,
)
from tests.core.stories import EVIDENCE, REQUESTED_AT, STEP_URL, reference, stored
from tests.core.test_laws import (
    OPENINGS,
    PAST,
    answered,
    answers,
    follows,
    requests,
    state_name,
    times,
    tries,
    walk,
    wishes,
)

ANN, BEN = "ann", "ben"
TENANT = OPENINGS[0].tenant
FOUND = (
    ResolutionProposed(ANN, "seen", Resolution.EXECUTED, "tx9", "", "a letter"),
    ResolutionProposed(ANN, "seen", Resolution.NOT_EXECUTED, "", "", "a letter"),
    ResolutionProposed(ANN, "seen", Resolution.REFUNDED, "tx9", "tx10", "a letter"),
)
SAID: list[Answer] = [
    Token("t1"),
    Executed("tx9"),
    Executed("tx8"),
    Declined(DeclineReason.OTHER),
    Expired(),
    CalledOff(),
    Contradiction(EVIDENCE),
    InProgress(),
    NeedsAction(STEP_URL),
    NoAnswer(),
    NoAnswer(our_setup=True),
]


def wanted(
    step: TryRequested | HeldBack | LetGo | ResolutionProposed | ResolutionRejected, tenant: str = ""
) -> WantedStep:
    return WantedStep(step, tenant)


def approval(
    answer: Answer, actor: str = BEN, proposal: int = 1, *, overrules: AnswerKind | None = None, tenant: str = ""
) -> WantedApproval:
    refund_id = reference(Kind.REFUND, refund_key(proposal))
    return WantedApproval(actor, "seen too", proposal, overrules, answer, refund_id, tenant)


STEPS: list[Wanted] = [
    wanted(TryRequested(ANN, "now")),
    wanted(HeldBack(ANN, "wait")),
    wanted(LetGo(BEN, "go")),
    *map(wanted, FOUND),
    wanted(ResolutionRejected(BEN, "no", 1)),
    *(approval(answer) for answer in SAID),
    *(approval(answer, overrules=kind_of(answer)) for answer in (Executed("tx8"), NoAnswer())),
]
# They lead nowhere new.
USELESS: list[Wanted] = [
    wanted(ResolutionRejected(BEN, "no", 2)),
    approval(Executed("tx9"), ANN),
    approval(Executed("tx9"), proposal=2),
    *(replace(step, tenant="another") for step in STEPS),
]
LEADING: list[Message] = [*map(Command, OPENINGS), *wishes(("k1",)), PAST, *STEPS]


def recorded(state: State, *events: Event) -> State:
    """A charge after more events, all at one place and time, and without a count of steps."""
    for event in events:
        state = evolve(state, Recorded(event, 1, REQUESTED_AT))
        if isinstance(state, Charge):
            state = replace(state, desk=replace(state.desk, tries=0, proposals=0))
    return state


def key_of(state: State) -> State:
    """The state, but for what closed the last proposal: that matters for a repeated step only."""
    return replace(state, desk=replace(state.desk, closed=None)) if isinstance(state, Charge) else state


def decided(state: State, message: Message) -> list[Event]:
    """The events of a decision; none if a person's message is refused."""
    try:
        return decide(state, message)
    except (CommandRefused, OperationUnderWay, BankSaysNothing):
        assert not isinstance(message, Answered | Due), "an answer never raises"
        return []


def every_way() -> dict[State, tuple[State, tuple[Event, ...]]]:
    """Every state that these messages can reach, by its key, with a shortest stream that leads to it."""
    ways: dict[State, tuple[State, tuple[Event, ...]]] = {Absent(): (Absent(), ())}
    rest = deque(ways)
    while rest:
        state, stream = ways[rest.popleft()]
        for message in (*LEADING, *answered(next_step(state))):
            events = tuple(decided(state, message))
            if TokenExpired("t1") in stream and TokenExpired("t1") in events:
                continue  # a second expired token shows nothing that one does not
            after = recorded(state, *events)
            if key_of(after) not in ways:
                ways[key_of(after)] = after, stream + events
                rest.append(key_of(after))
    return ways


WAYS = list(every_way().values())


def over_every_state(law: Callable[[Charge, tuple[Event, ...]], None]) -> Callable[[], None]:
    """Make a test of a law, which must hold in every reachable state of a charge, after the stream that led to it."""

    def test() -> None:
        for state, stream in WAYS:
            if isinstance(state, Charge):
                law(state, stream)

    test.__doc__ = law.__doc__
    return test


def test_the_enumeration_reaches_what_operators_do_in_every_kind_of_operation() -> None:
    """The laws below are not empty."""
    charges = [state for state, _ in WAYS if isinstance(state, Charge)]
    assert len(charges) > 700
    assert {charge.newest.operation.kind for charge in charges if charge.desk.is_held_back} == set(Kind)
    resolved = {
        (name.operation.kind, type(name.outcome))
        for charge, stream in ((state, stream) for state, stream in WAYS if isinstance(state, Charge))
        if any(isinstance(event, ResolutionApproved) for event in stream)
        for name in (*charge.done, charge.newest)
        if isinstance(name, AtRest)
    }
    assert {kind for kind, outcome in resolved if outcome is MOVED[kind]} == set(Kind)
    assert {kind for kind, outcome in resolved if outcome in (ChargeDeclined, OperationDeclined)} == set(Kind)
    assert any(charge.void is not None and charge.desk.is_held_back for charge in charges)


# ================================================================ laws over every reachable state
@over_every_state
def test_every_decision_can_be_applied_and_follows_the_diagram(charge: Charge, stream: tuple[Event, ...]) -> None:
    """An approval is never stored without its outcome: nobody ever finds an operation that is being resolved."""
    assert walk(stream) == state_name(charge)
    assert not isinstance(charge.newest, Resolving)
    for message in (*LEADING, *USELESS, *answered(next_step(charge))):
        events = tuple(decided(charge, message))
        after = recorded(charge, *events)  # raises ImpossibleEvent if one cannot follow
        assert walk(stream + events) == state_name(after), message
        assert not isinstance(after, Charge) or not isinstance(after.newest, Resolving)


@over_every_state
def test_a_repeated_step_yields_nothing(charge: Charge, stream: tuple[Event, ...]) -> None:
    """By the same person, with the same content."""
    for message in STEPS:
        if events := decided(charge, message):
            assert decide(recorded(charge, *events), message) == [], message


@over_every_state
def test_a_step_may_be_taken_exactly_where_the_table_says_so(charge: Charge, stream: tuple[Event, ...]) -> None:
    """And exactly there its event can follow in a stream that is read."""
    is_under_way, desk = not isinstance(charge.newest, AtRest), charge.desk
    open_proposal = desk.proposal is not None
    may: dict[type[Event], bool] = {
        TryRequested: is_under_way and not desk.is_held_back,
        HeldBack: is_under_way and not desk.is_held_back,
        LetGo: desk.is_held_back,
        ResolutionProposed: is_in_review(charge) and not open_proposal,
        ResolutionRejected: open_proposal,
        ResolutionApproved: open_proposal,
    }
    assert not (desk.is_held_back and not is_under_way)
    assert not (open_proposal and not is_in_review(charge))
    approved = ResolutionApproved(BEN, "seen too", 1, AnswerKind.EXECUTED, contradicts_bank=False)
    for step in (*(message.step for message in STEPS if isinstance(message, WantedStep)), approved):
        if may[type(step)]:
            recorded(charge, step)
        else:
            with pytest.raises(ImpossibleEvent):
                recorded(charge, step)
    for impossible in (replace(approved, actor=ANN), replace(approved, proposal=2), ResolutionRejected(BEN, "no", 2)):
        with pytest.raises(ImpossibleEvent):
            recorded(charge, impossible)


@over_every_state
def test_a_charge_that_is_held_back_has_no_next_step_and_goes_on_where_it_was(
    charge: Charge, stream: tuple[Event, ...]
) -> None:
    """The answer to a step that was on its way counts as ever; time does not. Let go, its next step is what it was."""
    assert (next_step(charge) is None) == (is_at_rest(charge) or charge.desk.is_held_back)
    if not charge.desk.is_held_back:
        return
    free = recorded(charge, LetGo(BEN, "go"))
    assert next_step(free) == operations.next_step(charge.newest)
    assert decide(charge, PAST) == []
    for message in answered(operations.next_step(charge.newest)):
        events = decide(charge, message)
        assert events == decide(free, message)
        after = recorded(charge, *events)
        assert isinstance(after, Charge)
        assert after.desk.is_held_back == (not is_at_rest(after))


@over_every_state
def test_what_a_key_is_told_changes_only_from_a_review_and_only_once(charge: Charge, stream: tuple[Event, ...]) -> None:
    """By an approval of what was proposed, by another person; then it is for ever."""
    told = {key: outcome_of(charge, key) for key in (None, "k1")}
    for message in (*LEADING, *USELESS, *answered(next_step(charge))):
        if events := decided(charge, message):
            after = recorded(charge, *events)
            for key, outcome in told.items():
                if outcome is None or outcome_of(after, key) == outcome:
                    continue
                assert isinstance(outcome.outcome, ReviewRequired)
                assert isinstance(message, WantedApproval)
                assert isinstance(events[0], ResolutionApproved)
                assert charge.desk.proposal is not None
                assert charge.desk.proposal.made.actor != events[0].actor


@over_every_state
def test_an_approval_without_the_banks_word_needs_the_approvers_own(charge: Charge, stream: tuple[Event, ...]) -> None:
    """And the event says so."""
    if charge.desk.proposal is None:
        return
    charge = replace(charge, desk=replace(charge.desk, closed=None))  # here each proposal has the same name
    assert charge.desk.proposal is not None
    made = charge.desk.proposal.made
    for answer in SAID:
        fits = isinstance(answer, Executed) and answer.transaction_id == "tx9"
        if made.resolution is Resolution.NOT_EXECUTED:
            fits = isinstance(answer, Declined | Expired | CalledOff)
        assert is_confirmed(made, answer) == fits
        if not fits:
            for other in (None, *(kind for kind in AnswerKind if kind is not kind_of(answer))):
                with pytest.raises(BankSaysNothing if isinstance(answer, NoAnswer) else BankContradicts) as refused:
                    decide(charge, approval(answer, overrules=other))
                assert refused.value.args[0] == kind_of(answer).name
        (approved, *_) = decide(charge, approval(answer, overrules=kind_of(answer)))
        assert isinstance(approved, ResolutionApproved)
        assert approved.contradicts_bank == (not fits)


@over_every_state
def test_the_book_is_the_sum_of_what_moved_and_of_what_was_found_to_have_moved(
    charge: Charge, stream: tuple[Event, ...]
) -> None:
    """Recomputed from the events alone; and refunded <= captured <= authorised."""
    book = charge.book
    opened = sum(2 for event in stream if isinstance(event, Charged | Authorized))
    captured = sum(event.amount.minor_units for event in stream if isinstance(event, Charged | Captured))
    refunded = sum(event.amount.minor_units for event in stream if isinstance(event, Refunded))
    assert (book.authorized, book.captured, book.refunded) == (opened, captured, refunded)
    assert 0 <= refunded <= captured <= book.authorized <= 2
    if is_over_without_money(charge):
        assert not captured
        assert all(decided(charge, message) == [] for message in (*wishes(("k1", "k2")), *STEPS))


@over_every_state
def test_everything_that_is_told_has_words(charge: Charge, stream: tuple[Event, ...]) -> None:
    """A status for the charge and for each operation; a transaction exactly for what moved."""
    assert status_of(charge)
    assert status_told(charge.opening)
    for progress in (*charge.done[1:], charge.newest):
        if isinstance(progress, AtRest) and not progress.operation.opens:
            assert operation_status_told(progress)
            if isinstance(progress.outcome, OperationDeclined):
                assert decline_reason_told(progress)
            assert bool(transaction_id_told(progress)) == isinstance(progress.outcome, MOVED[progress.operation.kind])


@over_every_state
def test_a_void_waits_only_for_an_operation_that_is_called_off(charge: Charge, stream: tuple[Event, ...]) -> None:
    """Also after it was taken up again with a review."""
    assert charge.void is None or isinstance(charge.newest, CallingOff)
    if (reviewed := in_review(charge)) is not None:
        assert reviewed is charge.newest or (reviewed is charge.opening and charge.newest.operation.kind is Kind.VOID)


# ================================================================ stories that no state shows
def test_steps_of_the_desk_have_limits_and_what_ends_them_has_none() -> None:
    """A script may try a charge every second: then people can still resolve it."""
    state = stored(Absent(), *decide(Absent(), Command(OPENINGS[0])))
    for number in range(MOST_TRIES - 1):
        state = stored(state, *decide(state, wanted(TryRequested(ANN, f"try {number}"))))
    state = stored(state, *decide(state, wanted(HeldBack(ANN, "wait"))))
    state = stored(state, *decide(state, wanted(LetGo(ANN, "go"))))
    for step in (TryRequested(ANN, "again"), HeldBack(ANN, "again")):
        with pytest.raises(TooManyOperations):
            decide(state, wanted(step))
    state = stored(state, ReviewRequired(ReviewReason.CONTRADICTION))
    for _ in range(MOST_PROPOSALS):
        state = stored(state, *decide(state, wanted(FOUND[0])))
        assert isinstance(state, Charge) and state.desk.proposal is not None
        position = state.desk.proposal.position
        assert decide(state, approval(Executed("tx9"), proposal=position))
        state = stored(state, *decide(state, wanted(ResolutionRejected(BEN, "no", position))))
    with pytest.raises(TooManyOperations):
        decide(state, wanted(FOUND[0]))


def test_a_clients_refund_under_the_key_of_the_desk_is_in_nobodys_way() -> None:
    """The proposal is not approved, and another one has another key."""
    state = stored(Absent(), *decide(Absent(), Command(OPENINGS[1])))
    state = stored(state, TokenIssued("t1"), Authorized("user-7", OPENINGS[1].card, OPENINGS[1].amount, "tx1"))
    captures = OperationRequested(Kind.CAPTURE, "c", "capture-1", "shop", Money(1, "EUR"))
    state = stored(state, captures, TokenIssued("t2"), Captured(Money(1, "EUR"), "tx2"))
    taken = refund_key(14)
    refund = OperationRequested(Kind.REFUND, "r", taken, "shop", Money(1, "EUR"))
    state = stored(state, refund, TokenIssued("t3"), Refunded(Money(1, "EUR"), "tx3"))
    state = stored(state, replace(captures, idempotency_key="capture-2"), ReviewRequired(ReviewReason.CONTRADICTION))
    state = stored(state, *decide(state, wanted(replace(FOUND[2], reason="first"))))
    assert isinstance(state, Charge) and state.desk.proposal is not None
    assert state.desk.proposal.position == 12
    state = stored(state, ResolutionRejected(BEN, "no", 12), FOUND[2])
    with pytest.raises(RefundKeyTaken):
        decide(state, approval(Executed("tx9"), proposal=14))
    state = stored(state, ResolutionRejected(BEN, "no", 14), FOUND[2])
    events = decide(state, approval(Executed("tx9"), proposal=16))
    assert [type(event) for event in events[1:]] == [Captured, OperationRequested, TokenIssued, Refunded]


def test_without_the_banks_word_people_are_told_how_to_do_without_it() -> None:
    """And when to come back, if that is any use: a bank that cannot be asked names no time."""
    state = stored(Absent(), *decide(Absent(), Command(OPENINGS[0])), ReviewRequired(ReviewReason.CONTRADICTION))
    state = stored(state, FOUND[0])
    for seconds in (None, 7.0):
        with pytest.raises(BankSaysNothing) as raised:
            decide(state, approval(NoAnswer(seconds), proposal=3))
        with pytest.raises(Refusal) as told, explaining():
            raise raised.value
        assert (told.value.reason, told.value.retry_after_seconds) == ("BANK_UNREACHABLE", seconds)
        assert "overrules" in told.value.text and told.value.metadata["bank_said"] == "NO_ANSWER"


def test_another_proposal_is_told_by_its_name_and_its_author() -> None:
    """So that one can look at it."""
    state = stored(Absent(), *decide(Absent(), Command(OPENINGS[0])), ReviewRequired(ReviewReason.CONTRADICTION))
    state = stored(state, FOUND[0])
    with pytest.raises(AnotherProposal) as raised:
        decide(state, wanted(replace(FOUND[0], actor=BEN)))
    assert raised.value.args == (3, ANN)


# ================================================================ random walks
people = st.sampled_from([ANN, BEN, "eve"])
reasons = st.sampled_from(["", "a", "b"])
positions = st.integers(1, 40)
steps = st.one_of(
    st.builds(TryRequested, people, reasons),
    st.builds(HeldBack, people, reasons),
    st.builds(LetGo, people, reasons),
    st.builds(
        ResolutionProposed, people, reasons, st.sampled_from(Resolution), st.just("tx9"), st.just("tx10"), reasons
    ),
    st.builds(ResolutionRejected, people, reasons, positions),
)
at_the_desk = st.builds(WantedStep, steps, st.sampled_from(["", TENANT, "another"])) | st.builds(
    approval, answers | st.just(Executed("tx9")), people, positions, overrules=st.sampled_from([None, *AnswerKind])
)


def of_now(state: State, message: Message) -> Message:
    """The message, about the proposal that is open."""
    if not isinstance(state, Charge) or state.desk.proposal is None:
        return message
    proposal = state.desk.proposal.position
    match message:
        case WantedApproval():
            return replace(message, proposal=proposal, refund_id=reference(Kind.REFUND, refund_key(proposal)))
        case WantedStep(ResolutionRejected() as step):
            return replace(message, step=replace(step, proposal=proposal))
        case _:
            return message


@settings(max_examples=300)
@given_any(st.data())
def test_no_sequence_of_steps_breaks_the_book_or_what_a_key_is_told(data: st.DataObject) -> None:
    """Whatever operators, clients, the bank and the clock do, in any order."""
    first = data.draw(requests)
    stream: list[Event] = decide(Absent(), Command(first))
    told: dict[str | None, AtRest] = {}
    for _ in range(data.draw(st.integers(0, 40))):
        state = stored(Absent(), *stream)
        assert isinstance(state, Charge)
        choices: list[st.SearchStrategy[Message]] = [at_the_desk, at_the_desk, follows, st.builds(Due, times)]
        if (step := operations.next_step(state.newest)) is not None:
            choices += [st.builds(Answered, st.just(step), answers, tries)] * 4
        message = of_now(state, data.draw(st.one_of(choices)))
        stream += [decode(encode(event)) for event in decided(state, message)]
        after = stored(Absent(), *stream)
        assert isinstance(after, Charge)
        for key in (None, "k1", "k2", "k3", "k4", "k5"):
            if (outcome := outcome_of(after, key)) is not None:
                known = told.setdefault(key, outcome)
                assert known == outcome or isinstance(known.outcome, ReviewRequired)
                told[key] = outcome
        assert 0 <= after.book.refunded <= after.book.captured <= after.book.authorized <= first.amount.minor_units
    assert walk(tuple(stream)) == state_name(stored(Absent(), *stream))
    proposals = {place: event for place, event in enumerate(stream, 1) if isinstance(event, ResolutionProposed)}
    for event in stream:
        if isinstance(event, ResolutionApproved):
            assert proposals[event.proposal].actor != event.actor
