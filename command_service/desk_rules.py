"""What operators may do about a charge: which step of the desk may be taken when, and what follows from it. All of it is pure.

    step                  the charge is                            after it
    --------------------  ---------------------------------------  ----------------------------------------------
    TryRequested          under way, and not held back             its next step is due
    HeldBack              under way, and not held back             it is held back: it has no next step
    LetGo                 held back                                it goes on
    ResolutionProposed    in review, and no proposal is open       this one is open
    ResolutionRejected    in review, and this proposal is open     none is open
    ResolutionApproved    in review, and this proposal is open     none is open; the outcome follows in the same append

1. Each step is an event, with the operator and the reason. A step that would change nothing yields none.
2. A charge that comes to rest is held back no longer. What the bank answers to a step that was on its way still counts.
3. A resolution needs two identities: who has proposed it may not approve it. A proposal is named by its event's position.
4. Before an approval the bank is asked, by a look-up. Its answer confirms a resolution or does not (`is_confirmed`). To approve
   it all the same, the approver names the kind of answer that is overruled. No other answer is, and the event says so for ever.

    resolution     outcome                                                   confirmed by
    -------------  --------------------------------------------------------  ------------------------------------
    EXECUTED       Moved                                                     Executed, under the same id
    NOT_EXECUTED   Declined, FOUND_NOT_EXECUTED                              Declined, Expired, CalledOff
    REFUNDED       Moved, then a refund of the whole amount, by the          Executed, under the same id
                   approver: RefundRequested, TokenIssued, Refunded

A transaction that the bank holds open contradicts all three: nobody has executed it, and somebody still may.
"""

from dataclasses import replace
from typing import NamedTuple, assert_never

from command_service import operation as operations
from command_service.events import (
    DeskStep,
    Event,
    HeldBack,
    LetGo,
    OperationRequested,
    Recorded,
    Refunded,
    ResolutionApproved,
    ResolutionProposed,
    ResolutionRejected,
    TokenIssued,
    TryRequested,
)
from command_service.failures import (
    AnotherProposal,
    BankContradicts,
    BankSaysNothing,
    ImpossibleEvent,
    InvalidRequest,
    NotAtTheDesk,
    ProposalChanged,
    RefundKeyTaken,
    SecondPersonNeeded,
    TooManyOperations,
)
from command_service.operation import AtRest, Progress, UnderWay
from command_service.values import (
    Answer,
    AnswerKind,
    CalledOff,
    Contradiction,
    Declined,
    DeclineReason,
    Executed,
    Expired,
    Kind,
    NoAnswer,
    Operation,
    Resolution,
    kind_of,
    value,
)

# Each call about a charge folds its whole stream, and a script may try a charge every second.
MOST_TRIES = 200
"""The largest number of tries and holds back in a charge. To let it go is always allowed."""
MOST_PROPOSALS = 50
"""The largest number of proposals in a charge: of their own, since a script's tries must not keep people from a review."""

_REFUNDABLE = (Kind.CHARGE, Kind.CAPTURE)


# ---------------------------------------------------------------- messages
@value
class WantedStep:
    """An operator wants to take this step. `tenant` is that of the charges that the operator may see; empty: all."""

    step: TryRequested | HeldBack | LetGo | ResolutionProposed | ResolutionRejected
    tenant: str


@value
class WantedApproval:
    """An operator wants to approve a proposal, and this is the bank's answer to the look-up.

    `overrules` is the kind of answer that need not confirm it; None: the bank must. `refund_id` is the id of the refund that
    follows if it was refunded, made of the charge and `refund_key`.
    """

    actor: str
    reason: str
    proposal: int
    overrules: AnswerKind | None
    answer: Answer
    refund_id: str
    tenant: str


Wanted = WantedStep | WantedApproval


def refund_key(proposal: int) -> str:
    """Return the idempotency key of the refund that an approved proposal stores."""
    return f"desk-{proposal}"


# ---------------------------------------------------------------- the state
class Proposal(NamedTuple):
    """A proposal that is open, and the position of its event, which names it."""

    position: int
    made: ResolutionProposed


@value
class Desk:
    """What operators have done about a charge, as far as it matters for the next step.

    `tried`: that is the newest event of the charge. `closed`: the step that closed the last proposal. `tries` counts the tries
    and holds back, `proposals` the proposals.
    """

    is_held_back: bool = False
    proposal: Proposal | None = None
    closed: ResolutionRejected | ResolutionApproved | None = None
    tried: TryRequested | None = None
    tries: int = 0
    proposals: int = 0


UNTOUCHED = Desk()


class Stand(NamedTuple):
    """A charge, as far as the desk asks: its newest operation, the one that people must resolve, and whether a key is taken."""

    desk: Desk
    newest: Progress
    in_review: AtRest | None
    is_key_taken: bool = False

    @property
    def is_under_way(self) -> bool:
        """Whether the bank is still to be asked."""
        return isinstance(self.newest, UnderWay)


# ---------------------------------------------------------------- decide
def decide(stand: Stand, message: Wanted) -> list[Event]:
    """Say what an operator's wish means: the events to append, none if it changes nothing. Raises CommandRefused."""
    if isinstance(message, WantedApproval):
        return _approved(stand, message)
    desk, step = stand.desk, message.step
    match step:
        case TryRequested():
            if not stand.is_under_way or desk.is_held_back:
                raise NotAtTheDesk
            return [] if step == desk.tried else _one_more(step, desk.tries, MOST_TRIES)
        case HeldBack():
            if not stand.is_under_way:
                raise NotAtTheDesk
            return [] if desk.is_held_back else _one_more(step, desk.tries, MOST_TRIES)
        case LetGo():
            return [step] if desk.is_held_back else []
        case ResolutionProposed():
            return _proposed(stand, step)
        case ResolutionRejected():
            if step == desk.closed:
                return []
            if desk.proposal is None or desk.proposal.position != step.proposal:
                raise ProposalChanged
            return [step]
        case _:
            assert_never(step)


def _one_more(step: DeskStep, known: int, most: int) -> list[Event]:
    if known >= most:
        raise TooManyOperations
    return [step]


def _proposed(stand: Stand, step: ResolutionProposed) -> list[Event]:
    if stand.in_review is None:
        raise NotAtTheDesk
    if step.resolution is Resolution.REFUNDED and stand.in_review.operation.kind not in _REFUNDABLE:
        raise InvalidRequest((("resolution", "only a charge or a capture can have been refunded"),))
    known = stand.desk.proposal
    if known is None:
        return _one_more(step, stand.desk.proposals, MOST_PROPOSALS)
    if known.made == step:
        return []
    raise AnotherProposal(known.position, known.made.actor)


def _approved(stand: Stand, message: WantedApproval) -> list[Event]:
    if is_approved_already(stand.desk, message.actor, message.reason, message.proposal):
        return []
    in_review, proposal = check_approval(stand, message.actor, message.proposal)
    answer, said = message.answer, kind_of(message.answer)
    is_confirmed_ = is_confirmed(proposal, answer)
    if not is_confirmed_ and said is not message.overrules:
        if isinstance(answer, NoAnswer):
            raise BankSaysNothing(said.name, answer.retry_after_seconds)
        differs_in = answer.evidence.fields if isinstance(answer, Contradiction) else ()
        transaction_id = answer.transaction_id if isinstance(answer, Contradiction | Executed) else ""
        raise BankContradicts(said.name, differs_in, transaction_id)
    approved = ResolutionApproved(
        message.actor, message.reason, message.proposal, said, contradicts_bank=not is_confirmed_
    )
    return [approved, *_outcome(in_review.operation, proposal, message)]


def is_approved_already(desk: Desk, actor: str, reason: str, proposal: int) -> bool:
    """Whether this very approval is the one that closed the last proposal."""
    match desk.closed:
        case ResolutionApproved(known_actor, known_reason, known_proposal):
            return (known_actor, known_reason, known_proposal) == (actor, reason, proposal)
        case _:
            return False


def check_approval(stand: Stand, actor: str, proposal: int) -> tuple[AtRest, ResolutionProposed]:
    """Return the operation in review and the open proposal, if this operator may approve it. Raises CommandRefused."""
    known = stand.desk.proposal
    if stand.in_review is None or known is None or known.position != proposal:
        raise ProposalChanged
    if known.made.actor == actor:
        raise SecondPersonNeeded
    if known.made.resolution is Resolution.REFUNDED and stand.is_key_taken:
        raise RefundKeyTaken
    return stand.in_review, known.made


def is_confirmed(proposal: ResolutionProposed, answer: Answer) -> bool:
    """Whether the bank's answer to a look-up says what the proposal says."""
    match proposal.resolution:
        case Resolution.EXECUTED | Resolution.REFUNDED:
            return isinstance(answer, Executed) and answer.transaction_id == proposal.transaction_id
        case Resolution.NOT_EXECUTED:
            return isinstance(answer, Declined | Expired | CalledOff)
        case _:
            assert_never(proposal.resolution)


def _outcome(operation: Operation, proposal: ResolutionProposed, message: WantedApproval) -> list[Event]:
    if proposal.resolution is Resolution.NOT_EXECUTED:
        return [operations.declined(operation, DeclineReason.FOUND_NOT_EXECUTED)]
    answer = message.answer
    expires_at = answer.expires_at if isinstance(answer, Executed) and is_confirmed(proposal, answer) else 0
    moved = operations.moved(operation, Executed(proposal.transaction_id, expires_at))
    if proposal.resolution is Resolution.EXECUTED:
        return [moved]
    refund_id, key = proposal.refund_transaction_id, refund_key(message.proposal)
    asked = OperationRequested(
        Kind.REFUND, message.refund_id, key, message.actor, operation.amount, reason=message.reason
    )
    return [moved, asked, TokenIssued(refund_id), Refunded(operation.amount, refund_id)]


# ---------------------------------------------------------------- evolve
def evolve(stand: Stand, event: DeskStep, recorded: Recorded) -> Desk:
    """Fold one stored step into the desk. Raises ImpossibleEvent if it cannot follow."""
    desk = stand.desk
    match event:
        case TryRequested() if stand.is_under_way and not desk.is_held_back:
            return replace(desk, tried=event, tries=desk.tries + 1)
        case HeldBack() if stand.is_under_way and not desk.is_held_back:
            return replace(desk, is_held_back=True, tried=None, tries=desk.tries + 1)
        case LetGo() if desk.is_held_back:
            return replace(desk, is_held_back=False, tried=None)
        case ResolutionProposed() if stand.in_review is not None and desk.proposal is None:
            return replace(desk, proposal=Proposal(recorded.position, event), proposals=desk.proposals + 1)
        case ResolutionRejected(proposal=position) if desk.proposal is not None and desk.proposal.position == position:
            return replace(desk, proposal=None, closed=event)
        case ResolutionApproved(actor, proposal=position) if (
            desk.proposal is not None and desk.proposal.position == position and desk.proposal.made.actor != actor
        ):
            return replace(desk, proposal=None, closed=event)
    raise ImpossibleEvent(f"{type(event).__name__} cannot follow in {type(stand.newest).__name__}")


def moved_on(desk: Desk, newest: Progress) -> Desk:
    """Fold in any other event of the charge, after which this is its newest operation."""
    is_held_back = desk.is_held_back and not isinstance(newest, AtRest)
    if desk.tried is None and is_held_back == desk.is_held_back:  # as nearly always
        return desk
    return replace(desk, tried=None, is_held_back=is_held_back)
