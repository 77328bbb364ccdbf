"""A journal in memory, sealed by the contract's rule, and the events of a charge's life.

It computes the chain itself, so that the formula in journal.proto has a second implementation.
"""

import hashlib
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence

from charging.v1.common_pb2 import Card, DeclineReason, Money, ReviewReason
from charging.v1.journal_pb2 import (
    ChargeAbandoned,
    Charged,
    ChargeDeclined,
    ChargeRequested,
    Event,
    Record,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
)
from contract.chain import Place
from query_service.course import Record as Verified
from query_service.verified import Stretch

EPOCH_MICROSECONDS = 1_750_000_000_000_000
CARD = Card(token="tok_visa", brand="visa", last4="4242")


def charge_id_of(key: str) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(key.encode()).digest()[:16]))


class SealedJournal:
    """Appends events, and keeps them as the records of a feed."""

    def __init__(self, journal_id: str = "journal-one") -> None:
        self.journal_id = journal_id
        self.records: list[Record] = []
        self._versions: Counter[str] = Counter()

    @property
    def head(self) -> int:
        return len(self.records)

    def chain_at(self, position: int) -> bytes:
        return self.records[position - 1].chain if position else bytes(32)

    def append(self, key: str, event: Event | bytes, *, at: int | None = None) -> int:
        """Append an event, or bytes in its place, to the charge of a key. The time is the position by default."""
        self._versions[key] += 1
        position = self.head + 1
        self.records.append(
            sealed(
                self.chain_at(self.head),
                position=position,
                charge_id=charge_id_of(key),
                version=self._versions[key],
                recorded_at=EPOCH_MICROSECONDS + position if at is None else at,
                event=event if isinstance(event, bytes) else event.SerializeToString(),
            )
        )
        return position

    def charge(
        self, key: str, user: str = "user-1", *events: Event, minor_units: int = 1250, currency: str = "EUR"
    ) -> int:
        """Append a whole charge: its request and then these events."""
        position = self.append(key, requested(key, user, minor_units=minor_units, currency=currency))
        for event in events:
            position = self.append(key, event)
        return position


def sealed(before: bytes, *, position: int, charge_id: str, version: int, recorded_at: int, event: bytes) -> Record:
    """Make the record that follows a chain."""
    fields = b"".join(
        (
            before,
            position.to_bytes(8, "big"),
            uuid.UUID(charge_id).bytes,
            version.to_bytes(8, "big"),
            recorded_at.to_bytes(8, "big", signed=True),
            hashlib.sha256(event).digest(),
        )
    )
    record = Record(
        position=position, charge_id=charge_id, version=version, chain=hashlib.sha256(fields).digest(), event=event
    )
    record.recorded_at.seconds, microseconds = divmod(recorded_at, 1_000_000)  # by hand: even an invalid time
    record.recorded_at.nanos = microseconds * 1_000
    return record


def whole_stretch(records: Sequence[Verified]) -> Stretch:
    """Make the stretch of a journal that these consecutive records are."""
    return Stretch(records[0].position - 1, records, Place(records[-1].position, records[-1].chain))


def requested(
    key: str,
    user: str = "user-1",
    *,
    minor_units: int = 1250,
    currency: str = "EUR",
    description: str = "",
    metadata: Mapping[str, str] | None = None,
    tenant: str = "default",
) -> Event:
    return Event(
        charge_requested=ChargeRequested(
            charge_id=charge_id_of(key),
            tenant=tenant,
            idempotency_key=key,
            actor="anonymous",
            user_id=user,
            card=CARD,
            amount=Money(minor_units=minor_units, currency_code=currency),
            description=description,
            metadata=metadata or {},
        )
    )


def token_issued(token: str = "txn-token") -> Event:
    return Event(token_issued=TokenIssued(token=token))


def token_expired(token: str = "txn-token") -> Event:
    return Event(token_expired=TokenExpired(token=token))


def charged(transaction_id: str = "transaction-1") -> Event:
    return Event(charged=Charged(card=CARD, transaction_id=transaction_id))


def declined(reason: DeclineReason.ValueType = DeclineReason.DECLINE_REASON_INSUFFICIENT_FUNDS) -> Event:
    return Event(charge_declined=ChargeDeclined(reason=reason))


def in_review(reason: ReviewReason.ValueType = ReviewReason.REVIEW_REASON_CONTRADICTION) -> Event:
    return Event(review_required=ReviewRequired(reason=reason))


def abandoned() -> Event:
    return Event(charge_abandoned=ChargeAbandoned(attempts=5))


UNKNOWN_EVENT = b"\xa2\x06\x00"
"""An event of a later version: field 100, empty."""
