"""The events of operations that follow in a charge, and random streams of every kind that the core accepts."""

from collections.abc import Iterator, Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import AnswerKind, CustomerAction, DeclineReason, Money, Resolution
from charging.v1.journal_pb2 import (
    ActionRequired,
    AuthorizationExpired,
    Authorized,
    Captured,
    CaptureRequested,
    ChargeCalledOff,
    Event,
    HeldBack,
    LetGo,
    NotAfterPassed,
    OperationAbandoned,
    OperationDeclined,
    Refunded,
    RefundRequested,
    ResolutionApproved,
    ResolutionProposed,
    ResolutionRejected,
    TryRequested,
    Voided,
    VoidRequested,
)
from command_service.charge import Absent, Charge, State
from command_service.codec import decode
from command_service.failures import ImpossibleEvent
from tests.core.stories import stored
from tests.sealed import (
    CARD,
    EPOCH_MICROSECONDS,
    abandoned,
    charged,
    declined,
    in_review,
    requested,
    token_expired,
    token_issued,
)

AMOUNT = 1000
STEP_ENDS = EPOCH_MICROSECONDS + 600 * 1_000_000
HOLD_ENDS = EPOCH_MICROSECONDS + 7 * 24 * 3600 * 1_000_000


def time_of(microseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    return time


def held(key: str, user: str = "user-1", *, minor_units: int = AMOUNT, tenant: str = "default") -> Event:
    """The request of a charge that opens with a hold."""
    event = requested(key, user, minor_units=minor_units, tenant=tenant)
    event.charge_requested.capture = CaptureMode.CAPTURE_MODE_MANUAL
    return event


def off_session(key: str, user: str = "user-1", *, minor_units: int = AMOUNT) -> Event:
    """The request of a charge whose customer is not there."""
    event = requested(key, user, minor_units=minor_units)
    event.charge_requested.off_session = True
    return event


def action_required(url: str = "https://bank.example/customer/1", *, expires_at: int = STEP_ENDS) -> Event:
    event = Event(action_required=ActionRequired(action=CustomerAction(url=url)))
    if expires_at:
        event.action_required.action.expires_at.FromMicroseconds(expires_at)
    return event


def capture(minor_units: int, key: str = "capture-1", *, final: bool = False) -> Event:
    return Event(
        capture_requested=CaptureRequested(
            operation_id=f"id-{key}", idempotency_key=key, actor="shop", amount=_money(minor_units), final=final
        )
    )


def void(minor_units: int, key: str = "void-1", *, reason: str = "") -> Event:
    return Event(
        void_requested=VoidRequested(
            operation_id=f"id-{key}", idempotency_key=key, actor="shop", amount=_money(minor_units), reason=reason
        )
    )


def refund(minor_units: int, key: str = "refund-1", *, reason: str = "") -> Event:
    return Event(
        refund_requested=RefundRequested(
            operation_id=f"id-{key}", idempotency_key=key, actor="shop", amount=_money(minor_units), reason=reason
        )
    )


def authorized(transaction_id: str = "hold-1", *, expires_at: int = HOLD_ENDS) -> Event:
    event = Event(authorized=Authorized(card=CARD, transaction_id=transaction_id))
    if expires_at:
        event.authorized.expires_at.FromMicroseconds(expires_at)
    return event


def captured(transaction_id: str = "captured-1") -> Event:
    return Event(captured=Captured(transaction_id=transaction_id))


def voided(transaction_id: str = "voided-1") -> Event:
    return Event(voided=Voided(transaction_id=transaction_id))


def refunded(transaction_id: str = "refunded-1") -> Event:
    return Event(refunded=Refunded(transaction_id=transaction_id))


def not_after_passed() -> Event:
    return Event(not_after_passed=NotAfterPassed())


def called_off() -> Event:
    return Event(charge_called_off=ChargeCalledOff())


def lapsed() -> Event:
    return Event(authorization_expired=AuthorizationExpired())


def operation_declined(reason: DeclineReason.ValueType = DeclineReason.DECLINE_REASON_OTHER) -> Event:
    return Event(operation_declined=OperationDeclined(reason=reason))


def operation_abandoned() -> Event:
    return Event(operation_abandoned=OperationAbandoned(attempts=5))


def _money(minor_units: int) -> Money:
    return Money(minor_units=minor_units, currency_code="EUR")


def try_requested(actor: str = "ann", reason: str = "the bank is back") -> Event:
    return Event(try_requested=TryRequested(actor=actor, reason=reason))


def held_back(actor: str = "ann", reason: str = "a fraud is suspected") -> Event:
    return Event(held_back=HeldBack(actor=actor, reason=reason))


def let_go(actor: str = "bob", reason: str = "no fraud") -> Event:
    return Event(let_go=LetGo(actor=actor, reason=reason))


def proposed(resolution: Resolution.ValueType = Resolution.RESOLUTION_EXECUTED, actor: str = "ann") -> Event:
    said = ResolutionProposed(actor=actor, reason="the bank's letter", resolution=resolution, evidence="ticket 7")
    if resolution != Resolution.RESOLUTION_NOT_EXECUTED:
        said.transaction_id = "found-1"
    if resolution == Resolution.RESOLUTION_REFUNDED:
        said.refund_transaction_id = "found-2"
    return Event(resolution_proposed=said)


def rejected(proposal: int, actor: str = "bob") -> Event:
    return Event(resolution_rejected=ResolutionRejected(actor=actor, reason="not so", proposal=proposal))


def approved(proposal: int, actor: str = "bob") -> Event:
    return Event(
        resolution_approved=ResolutionApproved(
            actor=actor, reason="checked", proposal=proposal, bank_said=AnswerKind.ANSWER_KIND_EXECUTED
        )
    )


def proposal_of(state: State) -> int:
    """The position of the open proposal; 0 if there is none."""
    proposal = state.desk.proposal if isinstance(state, Charge) else None
    return proposal.position if proposal is not None else 0


def proposal_in(event: Event) -> ResolutionRejected | ResolutionApproved | None:
    """What an event says of a proposal that was made before it."""
    kind = event.WhichOneof("kind")
    if kind == "resolution_rejected":
        return event.resolution_rejected
    return event.resolution_approved if kind == "resolution_approved" else None


def candidates(amounts: Sequence[int], proposal: int = 0) -> Iterator[Event]:
    """Every kind of event that may follow in some charge; requests for each of these amounts, and steps about this proposal."""
    yield from (try_requested(), held_back(), let_go(), proposed(), rejected(proposal), approved(proposal))
    yield from (rejected(proposal + 1), approved(proposal + 1), approved(proposal, actor="ann"))
    yield from (token_issued(), token_expired(), charged(), declined(), in_review(), abandoned(), not_after_passed())
    yield from (authorized(), captured(), voided(), refunded(), called_off(), lapsed())
    yield from (operation_declined(), operation_abandoned(), action_required())
    for minor_units in amounts:
        yield from (capture(minor_units), capture(minor_units, final=True), void(minor_units), refund(minor_units))


def state_after(state: State, event: Event) -> State | None:
    """The core's state after an event; None if the core does not accept it."""
    try:
        return stored(state, decode(event.SerializeToString()))
    except ImpossibleEvent:
        return None


@st.composite
def lives(draw: st.DrawFn, first: Event) -> list[Event]:
    """A charge's events as the core may decide them: its first, and up to 15 more of any kind, drawn one after another."""
    amount = first.charge_requested.amount.minor_units
    amounts = sorted({1, (amount + 1) // 2, amount})
    events, state = [first], state_after(Absent(), first)
    for _ in range(draw(st.integers(0, 15))):
        assert state is not None
        following = [
            (event, after)
            for event in candidates(amounts, proposal_of(state))
            if (after := state_after(state, event)) is not None
        ]
        if not following:
            break
        # Requests and executed steps come more often, so that long lives are common.
        event, state = draw(st.sampled_from([*following, *(each for each in following if _goes_on(each[0]))]))
        events.append(event)
    return events


def _goes_on(event: Event) -> bool:
    kind = event.WhichOneof("kind") or ""
    return kind.endswith("_requested") or kind in ("token_issued", "charged", "authorized", "captured", "refunded")
