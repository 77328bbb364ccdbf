"""The projection: from events to rows of the view. Pure: no I/O, no clock, no decision.

The rows do not depend on how the records are cut into batches (tests/core/test_projection.py). A batch is folded in memory,
so that a charge that begins and ends within it is written once. An unknown event stops the projection loudly: a view that
skipped it would show wrong sums for ever.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, cast

from google.protobuf.message import DecodeError

from charging.v1 import journal_pb2
from charging.v1.common_pb2 import ChargeStatus, OperationKind
from query_service.course import Course, Record, Standing, StreamBroken
from query_service.schema import (
    AT_REST,
    AWAITING_CUSTOMER,
    AWAITING_EXECUTION,
    AWAITING_TOKEN,
    CALLING_OFF,
    CALLING_OFF_TOKEN,
    RESOLVING,
    Charge,
    Sum,
    Totals,
)
from query_service.words import (
    ABANDONED,
    AUTHORIZATION_EXPIRED,
    AUTHORIZE,
    CAPTURE,
    CHARGE,
    DECLINED,
    DESK_STEPS,
    IN_REVIEW,
    PENDING,
    REFUND,
    REQUIRES_ACTION,
    VOID,
    VOIDED,
    DeskStepName,
    EventName,
    Moved,
)

_NUMBER_OF = {field.name: field.number for field in journal_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields}
_MOVED: Mapping[OperationKind.ValueType, Moved] = {
    CHARGE: "charged",
    AUTHORIZE: "authorized",
    CAPTURE: "captured",
    VOID: "voided",
    REFUND: "refunded",
}


def _grammar() -> Iterator[tuple[OperationKind.ValueType, int, tuple[EventName, ...]]]:
    """The events that may follow at each stage of each kind of operation.

    At rest the kinds of request that a charge ever allows are named; whether its money allows one now is the book's to say.
    Likewise what operators may do at a stage; whether what they did before allows it is the course's to say.
    """
    for kind, moved in _MOVED.items():
        yield kind, AT_REST, ("capture_requested", "void_requested", "refund_requested")
        yield kind, AT_REST, ("resolution_proposed", "resolution_rejected", "resolution_approved")
        for stage in (AWAITING_TOKEN, AWAITING_EXECUTION, AWAITING_CUSTOMER, CALLING_OFF, CALLING_OFF_TOKEN):
            yield kind, stage, ("try_requested", "held_back", "let_go")
        if kind in (CHARGE, AUTHORIZE):
            calls_off: tuple[EventName, ...] = ("not_after_passed", "void_requested")
            ends: tuple[EventName, ...] = ("charge_declined", "review_required")
            yield kind, AWAITING_TOKEN, ("token_issued", *ends, "charge_abandoned", *calls_off)
            ends_at_bank: tuple[EventName, ...] = (moved, *ends, "charge_called_off")
            yield kind, AWAITING_EXECUTION, ("token_expired", "action_required", *ends_at_bank, *calls_off)
            yield kind, AWAITING_CUSTOMER, ("action_required", *ends_at_bank, *calls_off)
            yield kind, CALLING_OFF_TOKEN, (*ends_at_bank, "void_requested")
            yield kind, CALLING_OFF, (*ends_at_bank, "void_requested", "charge_abandoned")
            yield kind, RESOLVING, (moved, "charge_declined")
        else:
            ends = ("operation_declined", "review_required")
            if kind != REFUND:
                ends = (*ends, "authorization_expired")
            yield kind, AWAITING_TOKEN, ("token_issued", *ends, "operation_abandoned")
            yield kind, AWAITING_EXECUTION, ("token_expired", moved, *ends)
            yield kind, RESOLVING, (moved, *(end for end in ends if end != "review_required"))


Follows = Container[tuple[OperationKind.ValueType, int, EventName]]
# The events that may follow, as (kind of the operation under way, or of the last one at rest; stage; the event's kind).
FOLLOWS: Final[Follows] = frozenset(
    (operation, stage, event) for operation, stage, events in _grammar() for event in events
)


class UnknownEvent(Exception):
    """The record at `position` holds an event that this version does not know."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"the event at position {position} is not one that this version knows: update the query server"
        )
        self.position = position


Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that a batch makes: charges, operations, entries and operators' steps to add, charges and operations to
    overwrite, and amounts to add to the view's sums and totals.

    Most rows are plain tuples in the order of their columns: these are made faster than named ones, and written faster.
    """

    charges: Sequence[Row]
    operations: Sequence[Row]
    moved_charges: Sequence[Row]
    moved_operations: Sequence[Row]
    entries: Sequence[Row]
    steps: Sequence[Row]
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
    courses = {charge_id: Course.resumed(standing) for charge_id, standing in known.items()}
    begun: list[Course] = []
    entries: list[tuple[int, ...]] = []
    steps: list[Row] = []
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
            course = courses[charge_id] = Course.begun(record, event.charge_requested, tenants)
            begun.append(course)
            number = 0
        else:
            place = course.operation.kind, course.stage, kind
            if version != course.version + 1 or place not in follows:
                raise StreamBroken(position)
            number = course.move(kind, event, record)
            if kind in DESK_STEPS:
                steps.append(course.step_of(cast("DeskStepName", kind), event, record))
        note(
            (
                course.tenant,
                course.requested_position,
                version,
                position,
                recorded_at,
                _NUMBER_OF[kind],
                course.status,
                number,
            )
        )

    charges = [course.row() for course in begun]
    operations = [operation.row() for course in begun for operation in course.operations]
    moved_charges, moved_operations = list[Row](), list[Row]()
    for charge_id, (_, before) in known.items():
        course = courses[charge_id]
        moved_charges.append(course.row())
        rows = [operation.row() for operation in course.operations]
        moved_operations += [row for row, former in zip(rows, before, strict=False) if row != former]
        operations += rows[len(before) :]
    moved = [(standing.charge, courses[charge_id]) for charge_id, standing in known.items()]
    return Changes(
        charges, operations, moved_charges, moved_operations, entries, steps, _sums(begun, moved), _totals(begun)
    )


# The sums that a charge enters with its whole amount, by its status. It enters others with the money that moved or is held.
_SUM_OF_STATUS: Mapping[ChargeStatus.ValueType, str] = {
    PENDING: "pending",
    REQUIRES_ACTION: "pending",
    DECLINED: "declined",
    IN_REVIEW: "in_review",
    ABANDONED: "abandoned",
    VOIDED: "voided",
    AUTHORIZATION_EXPIRED: "authorization_expired",
}


def _sums(begun: Iterable[Course], moved: Iterable[tuple[Charge, Course]]) -> list[Sum]:
    """Make the changes of sums: a charge enters its sums, and a moved one leaves those of its former row."""
    sums: dict[tuple[int, str, str, str], list[int]] = {}

    def count(charge: Charge | Course, times: int) -> None:
        if charge.captured_minor_units:
            add(charge, "charged", times, charge.captured_minor_units)
        if charge.refunded_minor_units:
            add(charge, "refunded", times, charge.refunded_minor_units)
        if charge.held_minor_units:
            add(charge, "held", times, charge.held_minor_units)
        if (name := _SUM_OF_STATUS.get(charge.status)) is not None:
            add(charge, name, times, charge.minor_units)

    def add(charge: Charge | Course, name: str, times: int, minor_units: int) -> None:
        key = charge.tenant, charge.user_id, charge.currency_code, name
        if (sum_of := sums.get(key)) is None:
            sum_of = sums[key] = [0, 0]
        sum_of[0] += times
        sum_of[1] += times * minor_units

    for course in begun:
        count(course, 1)
    for former, course in moved:
        count(former, -1)
        count(course, 1)
    return [Sum(*key, *sum_of) for key, sum_of in sums.items() if sum_of != [0, 0]]


def _totals(begun: Iterable[Course]) -> list[Totals]:
    """Make the totals of the charges that began, given in the order of the journal."""
    times: dict[int, list[int]] = {}
    for course in begun:
        times.setdefault(course.tenant, []).append(course.requested_at)
    return [Totals(tenant, len(at), min(at), max(at), _backstep(at)) for tenant, at in times.items()]


def _backstep(times: Sequence[int]) -> int:
    return max(latest - time for latest, time in zip(accumulate(times, max), times, strict=True))
