"""The projection: from events to rows of the view. Pure: no I/O, no clock, no decision.

The rows do not depend on how the records are cut into batches (tests/core/test_projection.py). A batch is folded in memory,
so that a charge that begins and ends within it is written once. An unknown event stops the projection loudly: a view that
skipped it would show wrong sums for ever.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, NamedTuple, assert_never

from google.protobuf.message import DecodeError

from charging.v1 import journal_pb2
from charging.v1.common_pb2 import ChargeStatus, DeclineReason, ReviewReason
from query_service.schema import CHARGE, Charge, Operation, Sum, Totals

PENDING: Final = ChargeStatus.CHARGE_STATUS_PENDING
CHARGED: Final = ChargeStatus.CHARGE_STATUS_CHARGED
DECLINED: Final = ChargeStatus.CHARGE_STATUS_DECLINED
IN_REVIEW: Final = ChargeStatus.CHARGE_STATUS_IN_REVIEW
ABANDONED: Final = ChargeStatus.CHARGE_STATUS_ABANDONED

_KINDS = journal_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields
_Kind = Literal[
    "charge_requested",
    "token_issued",
    "token_expired",
    "charged",
    "charge_declined",
    "review_required",
    "charge_abandoned",
]
Follows = Container[tuple[ChargeStatus.ValueType, int, _Kind]]
# The events that may follow, as (status of the charge, whether the new event's version is odd, its kind): a charge awaits the
# token after an odd number of events and the execution after an even number, and nothing follows an outcome.
FOLLOWS: Final[Follows] = frozenset(
    (PENDING, odd, kind)
    for odd, kinds in enumerate[tuple[_Kind, ...]](
        (
            ("token_issued", "charge_declined", "review_required", "charge_abandoned"),
            ("token_expired", "charged", "charge_declined", "review_required"),
        )
    )
    for kind in kinds
)
_NUMBER_OF = {field.name: field.number for field in _KINDS}


class UnknownEvent(Exception):
    """The record at `position` holds an event that this version does not know."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"the event at position {position} is not one that this version knows: update the query server"
        )
        self.position = position


class StreamBroken(Exception):
    """A charge's stream skips a version, or an event cannot follow the events before it. Names the position."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the record at position {position} does not follow its charge's stream")


class Record(NamedTuple):
    """An event as stored, verified against the chain. Times are microseconds since 1970."""

    position: int
    charge_id: bytes
    version: int
    recorded_at: int
    chain: bytes
    event: bytes


class Standing(NamedTuple):
    """How a charge stands: its row, and that of its newest operation, which alone can change."""

    charge: Charge
    operation: Operation


@dataclass(slots=True)
class _Course:
    """The course of a charge: what its events, as far as they are folded, have made of the operation under way.

    It is one object a charge, written over with each event: with a value for each event the fold took a fifth longer.
    """

    charge: Charge  # as it was requested, or as an earlier batch left it
    version: int
    position: int
    updated_at: int
    status: ChargeStatus.ValueType = PENDING
    transaction_id: str = ""
    decline_reason: DeclineReason.ValueType = DeclineReason.DECLINE_REASON_UNSPECIFIED
    review_reason: ReviewReason.ValueType = ReviewReason.REVIEW_REASON_UNSPECIFIED

    def move(self, kind: _Kind, event: journal_pb2.Event, record: Record) -> None:
        """Write down the outcome that an event tells, if it tells one, and the event's place. Raises StreamBroken."""
        match kind:
            case "token_issued" | "token_expired":
                pass
            case "charged":
                self.status = CHARGED
                self.transaction_id = event.charged.transaction_id
            case "charge_declined":
                self.status = DECLINED
                self.decline_reason = event.charge_declined.reason
            case "review_required":
                self.status = IN_REVIEW
                self.review_reason = event.review_required.reason
            case "charge_abandoned":
                self.status = ABANDONED
            case "charge_requested":
                raise StreamBroken(record.position)
            case _:
                assert_never(kind)
        self.version, self.position, self.updated_at = record.version, record.position, record.recorded_at

    def row(self) -> Charge:
        """Make the row of the charge as it stands now."""
        return Charge._make((*self.charge[:_MOVED_FROM], self.status, self.updated_at, self.version, self.position))


# The columns of a charge from this one on are those that events change: see _Course.row.
_MOVED_FROM: Final = Charge._fields.index("status")


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that a batch makes: charges, operations and entries to add, charges and operations to overwrite, and amounts
    to add to the view's sums and totals.
    """

    charges: Sequence[Charge]
    operations: Sequence[Operation]
    moved: Sequence[Standing]
    entries: Sequence[tuple[int, ...]]  # in the order of Entry's columns: named tuples would take a fifth of the time
    sums: Sequence[Sum]
    totals: Sequence[Totals]


def charges_needed(records: Sequence[Record]) -> set[bytes]:
    """Name the charges whose rows `project` has to be given: those that did not begin in this batch."""
    began = {record.charge_id for record in records if record.version == 1}
    return {record.charge_id for record in records} - began


def project(
    records: Iterable[Record],
    known: Mapping[bytes, Standing],
    tenants: Mapping[str, int],
    follows: Follows = FOLLOWS,
) -> Changes:
    """Fold a batch onto the rows that it touches. Raises UnknownEvent or StreamBroken, and then nothing is changed.

    `known` holds the rows of `charges_needed` that the view has, and `tenants` the number of each tenant. `follows` holds the
    events that a charge may have next.
    """
    courses = {charge_id: _course(standing) for charge_id, standing in known.items()}
    begun: list[_Course] = []
    entries: list[tuple[int, ...]] = []
    read, course_of, note = journal_pb2.Event.FromString, courses.get, entries.append  # looked up once
    for record in records:
        position, charge_id, version, recorded_at, _, payload = record
        try:
            event = read(payload)
        except DecodeError:
            raise UnknownEvent(position) from None
        kind = event.WhichOneof("kind")
        if kind is None:
            raise UnknownEvent(position)
        course = course_of(charge_id)
        if course is None:
            if kind != "charge_requested" or version != 1:
                raise StreamBroken(position)
            charge = _requested(record, event.charge_requested, tenants)
            course = courses[charge_id] = _Course(charge, version, position, recorded_at)
            begun.append(course)
        else:
            if version != course.version + 1 or (course.status, version & 1, kind) not in follows:
                raise StreamBroken(position)
            course.move(kind, event, record)
        charge = course.charge
        note(
            (charge.tenant, charge.requested_position, version, position, recorded_at, _NUMBER_OF[kind], course.status)
        )

    charges = [course.row() for course in begun]
    operations = [_opening(course) for course in begun]
    moved = [_moved(standing, courses[charge_id]) for charge_id, standing in known.items()]
    return Changes(charges, operations, moved, entries, _sums(charges, moved, known.values()), _totals(charges))


def _course(standing: Standing) -> _Course:
    charge, newest = standing
    return _Course(
        charge,
        charge.version,
        charge.position,
        charge.updated_at,
        newest.status,
        newest.transaction_id,
        newest.decline_reason,
        newest.review_reason,
    )


def _requested(record: Record, request: journal_pb2.ChargeRequested, tenants: Mapping[str, int]) -> Charge:
    """Make the row of a charge that has only begun: in the order of the columns, since by name takes three times as long."""
    card, amount = request.card, request.amount
    return Charge(
        tenants[request.tenant],
        record.position,
        record.charge_id,
        request.idempotency_key,
        request.user_id,
        card.token,
        card.brand,
        card.last4,
        amount.minor_units,
        amount.currency_code,
        request.description,
        json.dumps(dict(request.metadata), sort_keys=True, ensure_ascii=False) if request.metadata else "{}",
        record.recorded_at,
        PENDING,
        record.recorded_at,
        record.version,
        record.position,
    )


def _opening(course: _Course) -> Operation:
    """Make the row of the operation that a charge opens with."""
    charge = course.charge
    at = charge.requested_position
    return Operation(
        charge.tenant,
        at,
        at,
        CHARGE,
        charge.idempotency_key,
        charge.minor_units,
        charge.requested_at,
        course.status,
        course.transaction_id,
        course.decline_reason,
        course.review_reason,
        course.updated_at,
    )


def _moved(standing: Standing, course: _Course) -> Standing:
    """Make the rows of a charge that began in an earlier batch, as its newest event leaves them."""
    operation = standing.operation._replace(
        status=course.status,
        transaction_id=course.transaction_id,
        decline_reason=course.decline_reason,
        review_reason=course.review_reason,
        updated_at=course.updated_at,
    )
    return Standing(course.row(), operation)


def _sums(added: Iterable[Charge], moved: Iterable[Standing], before: Iterable[Standing]) -> list[Sum]:
    """Make the changes of sums: a charge enters the sum of its status, and a moved one leaves the sum of its former status."""
    sums: dict[tuple[int, str, str, ChargeStatus.ValueType], list[int]] = {}

    def count(charge: Charge, times: int) -> None:
        key = charge.tenant, charge.user_id, charge.currency_code, charge.status
        if (sum_of := sums.get(key)) is None:
            sum_of = sums[key] = [0, 0]
        sum_of[0] += times
        sum_of[1] += times * charge.minor_units

    for charge in added:
        count(charge, 1)
    for old, new in zip(before, moved, strict=True):
        if old.charge.status != new.charge.status:
            count(old.charge, -1)
            count(new.charge, 1)
    return [Sum(*key, *sum_of) for key, sum_of in sums.items()]


def _totals(added: Iterable[Charge]) -> list[Totals]:
    """Make the totals of the charges that began, given in the order of the journal."""
    times: dict[int, list[int]] = {}
    for charge in added:
        times.setdefault(charge.tenant, []).append(charge.requested_at)
    return [Totals(tenant, len(at), min(at), max(at), _backstep(at)) for tenant, at in times.items()]


def _backstep(times: Sequence[int]) -> int:
    return max(latest - time for latest, time in zip(accumulate(times, max), times, strict=True))
