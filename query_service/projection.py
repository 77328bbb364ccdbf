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


class ChargeRows(NamedTuple):
    """A charge's row, and those of its operations in the order of their requests."""

    charge: Charge
    operations: Sequence[Operation]


class _Outcome(NamedTuple):
    """The status of an operation, and the details of its outcome."""

    status: ChargeStatus.ValueType
    transaction_id: str = ""
    decline_reason: DeclineReason.ValueType = DeclineReason.DECLINE_REASON_UNSPECIFIED
    review_reason: ReviewReason.ValueType = ReviewReason.REVIEW_REASON_UNSPECIFIED


class _Standing(NamedTuple):
    """The newest event of a charge, and the outcome of its operation after this event."""

    outcome: _Outcome
    recorded_at: int
    version: int
    position: int


# The first of the columns that a charge's events change; all columns after it change too: see _as_it_stands.
_MOVED_FROM = Charge._fields.index("status")
_UNDER_WAY: Final = _Outcome(PENDING)
_ABANDONED: Final = _Outcome(ABANDONED)


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that a batch makes: charges, operations and entries to add, charges to overwrite together with their newest
    operation, and amounts to add to the view's sums and totals.
    """

    charges: Sequence[Charge]
    operations: Sequence[Operation]
    moved: Sequence[ChargeRows]
    entries: Sequence[tuple[int, ...]]  # in the order of Entry's columns: named tuples would take a fifth of the time
    sums: Sequence[Sum]
    totals: Sequence[Totals]


def charges_needed(records: Iterable[Record]) -> set[bytes]:
    """Name the charges whose rows `project` needs: those that began before this batch."""
    began: set[bytes] = set()
    needed: set[bytes] = set()
    for record in records:
        if record.version == 1:
            began.add(record.charge_id)
        elif record.charge_id not in began:
            needed.add(record.charge_id)
    return needed


def project(
    records: Iterable[Record],
    known: Mapping[bytes, ChargeRows],
    tenants: Mapping[str, int],
    follows: Follows = FOLLOWS,
) -> Changes:
    """Fold a batch onto the rows that it touches. Raises UnknownEvent or StreamBroken, and then nothing is changed.

    `known` holds the rows of `charges_needed` that the view has, and `tenants` the number of each tenant. `follows` holds the
    events that a charge may have next.
    """
    charges = {charge_id: rows.charge for charge_id, rows in known.items()}
    standings = {charge_id: _standing(rows) for charge_id, rows in known.items()}
    entries: list[tuple[int, ...]] = []
    read, standing_of, note = journal_pb2.Event.FromString, standings.get, entries.append  # looked up once
    for record in records:
        position, charge_id, version, recorded_at, _, payload = record
        try:
            event = read(payload)
        except DecodeError:
            raise UnknownEvent(position) from None
        kind = event.WhichOneof("kind")
        if kind is None:
            raise UnknownEvent(position)
        before = standing_of(charge_id)
        if before is None:
            if kind != "charge_requested" or version != 1:
                raise StreamBroken(position)
            charge = charges[charge_id] = _begun(record, event.charge_requested, tenants)
            outcome = _UNDER_WAY
        else:
            if version != before.version + 1 or (before.outcome.status, version & 1, kind) not in follows:
                raise StreamBroken(position)
            charge, outcome = charges[charge_id], _outcome(kind, event, position)
        standings[charge_id] = _Standing(outcome, recorded_at, version, position)
        note(
            (
                charge.tenant,
                charge.requested_position,
                version,
                position,
                recorded_at,
                _NUMBER_OF[kind],
                outcome.status,
            )
        )

    moved = [_moved(rows, standings[charge_id]) for charge_id, rows in known.items()]
    added = [
        _as_it_stands(charge, standings[charge_id]) for charge_id, charge in charges.items() if charge_id not in known
    ]
    operations = [_opening(charge, standings[charge.charge_id].outcome) for charge in added]
    return Changes(added, operations, moved, entries, _sums(added, moved, known.values()), _totals(added))


def _outcome(kind: _Kind, event: journal_pb2.Event, position: int) -> _Outcome:
    """Return the outcome of the operation under way after an event."""
    match kind:
        case "token_issued" | "token_expired":
            return _UNDER_WAY
        case "charged":
            return _Outcome(CHARGED, event.charged.transaction_id)
        case "charge_declined":
            return _Outcome(DECLINED, decline_reason=event.charge_declined.reason)
        case "review_required":
            return _Outcome(IN_REVIEW, review_reason=event.review_required.reason)
        case "charge_abandoned":
            return _ABANDONED
        case "charge_requested":
            raise StreamBroken(position)
        case _:
            assert_never(kind)


def _standing(rows: ChargeRows) -> _Standing:
    charge, newest = rows.charge, rows.operations[-1]
    outcome = _Outcome(newest.status, newest.transaction_id, newest.decline_reason, newest.review_reason)
    return _Standing(outcome, charge.updated_at, charge.version, charge.position)


def _begun(record: Record, request: journal_pb2.ChargeRequested, tenants: Mapping[str, int]) -> Charge:
    """Make the row of a charge that has just begun. By position: by name it takes three times as long."""
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


def _opening(charge: Charge, outcome: _Outcome) -> Operation:
    """Make the row of a charge's first operation."""
    at = charge.requested_position
    return Operation(
        charge.tenant,
        at,
        at,
        CHARGE,
        charge.idempotency_key,
        charge.minor_units,
        charge.requested_at,
        outcome.status,
        outcome.transaction_id,
        outcome.decline_reason,
        outcome.review_reason,
        charge.updated_at,
    )


def _moved(rows: ChargeRows, standing: _Standing) -> ChargeRows:
    """Make the rows, after its newest event, of a charge that began in an earlier batch."""
    *done, newest = rows.operations
    newest = newest._replace(updated_at=standing.recorded_at, **standing.outcome._asdict())
    return ChargeRows(_as_it_stands(rows.charge, standing), (*done, newest))


def _as_it_stands(charge: Charge, standing: _Standing) -> Charge:
    outcome, updated_at, version, position = standing
    return Charge._make((*charge[:_MOVED_FROM], outcome.status, updated_at, version, position))


def _sums(added: Iterable[Charge], moved: Iterable[ChargeRows], before: Iterable[ChargeRows]) -> list[Sum]:
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
