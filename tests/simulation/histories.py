"""What histories for the checker are made of: events, journals and calls, by the contract and not by the product's code."""

import hashlib
import struct
import uuid
from dataclasses import replace
from typing import Any

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import Card, CustomerAction, DeclineReason, Money, ReviewReason
from charging.v1.journal_pb2 import (
    ActionRequired,
    AuthorizationExpired,
    Authorized,
    Captured,
    CaptureRequested,
    ChargeAbandoned,
    ChargeCalledOff,
    Charged,
    ChargeDeclined,
    ChargeRequested,
    Event,
    NotAfterPassed,
    OperationAbandoned,
    OperationDeclined,
    Refunded,
    RefundRequested,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
    Voided,
    VoidRequested,
)
from judge.history import Call, Observed, Record, charge_id_of, operation_id_of

KEY, OTHER = "order-00001", "order-00002"
CARD_NUMBER = "4111111111111111"
CHARGED, DECLINED, PENDING, REQUIRES_ACTION = 2, 3, 1, 11
ID = charge_id_of("default", KEY)


def requested(
    key: str, amount: int = 1250, actor: str = "anonymous", *, is_held: bool = False, off_session: bool = False
) -> Event:
    return Event(
        charge_requested=ChargeRequested(
            charge_id=charge_id_of("default", key),
            tenant="default",
            idempotency_key=key,
            actor=actor,
            user_id="ada",
            card=Card(token="tok_visa", brand="visa", last4="4242"),
            amount=Money(minor_units=amount, currency_code="EUR"),
            metadata={"b": "2", "a": "1"},
            capture=CaptureMode.CAPTURE_MODE_MANUAL if is_held else CaptureMode.CAPTURE_MODE_UNSPECIFIED,
            off_session=off_session,
        )
    )


def issued(token: str) -> Event:
    return Event(token_issued=TokenIssued(token=token))


def expired(token: str) -> Event:
    return Event(token_expired=TokenExpired(token=token))


def charged(transaction: str = "txn-1", amount: int = 1250) -> Event:
    return Event(
        charged=Charged(
            user_id="ada",
            card=Card(token="tok_visa", brand="visa", last4="4242"),
            amount=Money(minor_units=amount, currency_code="EUR"),
            transaction_id=transaction,
        )
    )


DECLINE = Event(charge_declined=ChargeDeclined(reason=DeclineReason.DECLINE_REASON_CARD_DECLINED))
REVIEW = Event(review_required=ReviewRequired(reason=ReviewReason.REVIEW_REASON_CONTRADICTION))
ABANDON = Event(charge_abandoned=ChargeAbandoned(attempts=5))


CALLED_OFF = Event(charge_called_off=ChargeCalledOff())
LAPSED = Event(authorization_expired=AuthorizationExpired())
NOT_DONE = Event(operation_declined=OperationDeclined(reason=DeclineReason.DECLINE_REASON_OTHER))
GIVEN_UP = Event(operation_abandoned=OperationAbandoned(attempts=5))
ASKED = Event(action_required=ActionRequired(action=CustomerAction(url="https://bank.example/customer/t-1")))
TOO_LATE = Event(not_after_passed=NotAfterPassed())


def authorized(amount: int = 1250) -> Event:
    card = Card(token="tok_visa", brand="visa", last4="4242")
    return Event(authorized=Authorized(user_id="ada", card=card, amount=euros(amount), transaction_id="txn-1"))


def capture(key: str, amount: int, *, final: bool = False) -> Event:
    return Event(capture_requested=CaptureRequested(**_asked("capture", key, amount), final=final))


def void(key: str, amount: int) -> Event:
    return Event(void_requested=VoidRequested(**_asked("void", key, amount)))


def refund(key: str, amount: int, **changes: Any) -> Event:
    return Event(refund_requested=RefundRequested(**_asked("refund", key, amount) | changes))


def _asked(kind: str, key: str, amount: int) -> dict[str, Any]:
    operation_id = operation_id_of(ID, kind, key)
    return {"operation_id": operation_id, "idempotency_key": key, "actor": "anonymous", "amount": euros(amount)}


def captured(amount: int, transaction: str) -> Event:
    return Event(captured=Captured(amount=euros(amount), transaction_id=transaction))


def voided(amount: int, transaction: str) -> Event:
    return Event(voided=Voided(amount=euros(amount), transaction_id=transaction))


def refunded(amount: int, transaction: str) -> Event:
    return Event(refunded=Refunded(amount=euros(amount), transaction_id=transaction))


def euros(minor_units: int) -> Money:
    return Money(minor_units=minor_units, currency_code="EUR")


def journal(*events: tuple[str, Event], versions: dict[str, int] | None = None) -> list[Record]:
    """Seal events, each with its key, like a journal: by the contract, not by the product's code."""
    records: list[Record] = []
    versions = versions or {}
    chain = bytes(32)
    for position, (key, event) in enumerate(events, 1):
        charge_id = charge_id_of("default", key)
        version = versions[charge_id] = versions.get(charge_id, 0) + 1
        recorded_at, stored = 1_790_000_000_000_000 + position, event.SerializeToString()
        head = struct.pack(">32sQ16sQQ", chain, position, uuid.UUID(charge_id).bytes, version, recorded_at)
        chain = hashlib.sha256(head + hashlib.sha256(stored).digest()).digest()
        records.append(Record(position, charge_id, version, recorded_at, chain, stored))
    return records


def call(key: str = KEY, **changes: object) -> Call:
    charge_id = charge_id_of("default", key)
    answered = Call(key, "ada", "tok_visa", 1250, "EUR", "ok", charge_id, CHARGED, "txn-1", 0, 4, 1, durable_position=4)
    return replace(answered, **changes)  # type: ignore[arg-type]  # a test names fields and values that fit


def bare(*events: tuple[str, Event], **rest: object) -> Observed:
    return Observed(journal(*events), **rest)  # type: ignore[arg-type]  # a test names fields and values that fit
