"""The stored format: events to bytes and back, and the charge id.

An event is serialised once, when it is appended, and never again: a protobuf map serialises in another order after a round
trip, so reserialised bytes are never compared or chained.
"""

import hashlib
from typing import assert_never

from google.protobuf.message import DecodeError

from charging.v1 import common_pb2, journal_pb2
from command_service.charge import Absent, Charge, State
from command_service.failures import UnknownEvent
from command_service.operation import AtRest
from command_service.values import (
    Card,
    ChargeAbandoned,
    Charged,
    ChargeDeclined,
    ChargeRequested,
    DeclineReason,
    Event,
    Evidence,
    Money,
    Outcome,
    Request,
    ReviewReason,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
)


def charge_id_of(tenant: str, idempotency_key: str) -> str:
    """Make the id of the charge that a tenant's key names: a UUIDv8 of SHA-256 over both, each after its length.

    Test vectors freeze it: after a change, a retry would no longer find its charge.
    """
    digest = hashlib.sha256()
    for text in (tenant, idempotency_key):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    made = bytearray(digest.digest()[:16])
    made[6] = made[6] & 0x0F | 0x80  # version 8: an application's own rule (RFC 9562, 5.8)
    made[8] = made[8] & 0x3F | 0x80  # the variant of RFC 9562, 4.1
    text = made.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def encode(event: Event) -> bytes:
    """Serialise an event, for the journal and the feed. Setting fields in place takes half the time of making messages."""
    stored = journal_pb2.Event()
    match event:
        case ChargeRequested(request):
            requested = stored.charge_requested
            requested.charge_id = request.charge_id
            requested.tenant = request.tenant
            requested.idempotency_key = request.idempotency_key
            requested.actor = request.actor
            requested.user_id = request.user_id
            _set_card(requested.card, request.card)
            _set_money(requested.amount, request.amount)
            requested.description = request.description
            requested.metadata.update(request.metadata)
        case TokenIssued(token):
            stored.token_issued.token = token
        case TokenExpired(token):
            stored.token_expired.token = token
        case Charged(user_id, card, amount, transaction_id):
            charged = stored.charged
            charged.user_id = user_id
            _set_card(charged.card, card)
            _set_money(charged.amount, amount)
            charged.transaction_id = transaction_id
        case ChargeDeclined(reason):
            stored.charge_declined.reason = decline_reason_out(reason)
        case ReviewRequired(review_reason, evidence):
            review = stored.review_required
            review.reason = common_pb2.ReviewReason.Value(f"REVIEW_REASON_{review_reason.name}")
            review.evidence.fields.extend(evidence.fields)
            review.evidence.status = evidence.status
            review.evidence.body_length = evidence.body_length
            review.evidence.body_sha256 = evidence.body_sha256
        case ChargeAbandoned(attempts):
            stored.charge_abandoned.attempts = attempts
        case _:
            assert_never(event)
    return stored.SerializeToString()


def decode(serialised: bytes) -> Event:
    """Read a stored event. Raises UnknownEvent if this program does not know its kind."""
    try:
        stored = journal_pb2.Event.FromString(serialised)
    except DecodeError:
        raise UnknownEvent("the bytes are no event") from None
    match stored.WhichOneof("kind"):
        case "charge_requested":
            requested = stored.charge_requested
            return ChargeRequested(
                Request(
                    charge_id=requested.charge_id,
                    tenant=requested.tenant,
                    idempotency_key=requested.idempotency_key,
                    actor=requested.actor,
                    user_id=requested.user_id,
                    card=_card_in(requested.card),
                    amount=_money_in(requested.amount),
                    description=requested.description,
                    metadata=tuple(sorted(requested.metadata.items())),
                )
            )
        case "token_issued":
            return TokenIssued(stored.token_issued.token)
        case "token_expired":
            return TokenExpired(stored.token_expired.token)
        case "charged":
            charged = stored.charged
            return Charged(charged.user_id, _card_in(charged.card), _money_in(charged.amount), charged.transaction_id)
        case "charge_declined":
            return ChargeDeclined(_decline_reason_in(stored.charge_declined.reason))
        case "review_required":
            seen = stored.review_required.evidence
            return ReviewRequired(
                _review_reason_in(stored.review_required.reason),
                Evidence(tuple(seen.fields), seen.status, seen.body_length, seen.body_sha256),
            )
        case "charge_abandoned":
            return ChargeAbandoned(stored.charge_abandoned.attempts)
        case None:
            raise UnknownEvent("a newer program wrote it: run that version, or a later one")


def status_of(state: State) -> common_pb2.ChargeStatus.ValueType:
    """Return a state's status in the contract."""
    match state:
        case Absent():
            return common_pb2.ChargeStatus.CHARGE_STATUS_UNSPECIFIED
        case Charge(AtRest(outcome=outcome)):
            return _STATUSES[type(outcome)]
        case Charge():
            return common_pb2.ChargeStatus.CHARGE_STATUS_PENDING
        case _:
            assert_never(state)


_STATUSES: dict[type[Outcome], common_pb2.ChargeStatus.ValueType] = {
    Charged: common_pb2.ChargeStatus.CHARGE_STATUS_CHARGED,
    ChargeDeclined: common_pb2.ChargeStatus.CHARGE_STATUS_DECLINED,
    ReviewRequired: common_pb2.ChargeStatus.CHARGE_STATUS_IN_REVIEW,
    ChargeAbandoned: common_pb2.ChargeStatus.CHARGE_STATUS_ABANDONED,
}


def decline_reason_out(reason: DeclineReason) -> common_pb2.DeclineReason.ValueType:
    """Return a decline reason's value in the contract."""
    return common_pb2.DeclineReason.Value(f"DECLINE_REASON_{reason.name}")


def _decline_reason_in(value: common_pb2.DeclineReason.ValueType) -> DeclineReason:
    try:
        return DeclineReason[common_pb2.DeclineReason.Name(value).removeprefix("DECLINE_REASON_")]
    except (ValueError, KeyError):
        raise UnknownEvent("it declines for a reason that a newer program wrote") from None


def _review_reason_in(value: common_pb2.ReviewReason.ValueType) -> ReviewReason:
    try:
        return ReviewReason[common_pb2.ReviewReason.Name(value).removeprefix("REVIEW_REASON_")]
    except (ValueError, KeyError):
        raise UnknownEvent("it asks for a review for a reason that a newer program wrote") from None


def _set_card(out: common_pb2.Card, card: Card) -> None:
    out.token, out.brand, out.last4 = card.token, card.brand, card.last4


def _card_in(card: common_pb2.Card) -> Card:
    return Card(card.token, card.brand, card.last4)


def _set_money(out: common_pb2.Money, amount: Money) -> None:
    out.minor_units, out.currency_code = amount.minor_units, amount.currency_code


def _money_in(amount: common_pb2.Money) -> Money:
    return Money(amount.minor_units, amount.currency_code)
