"""From events to rows: laws and examples of the pure projection, and of the view that keeps its rows."""

import asyncio
import dataclasses
import itertools
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import DeclineReason, OperationKind, OperationStatus, ReviewReason
from charging.v1.journal_pb2 import Event
from command_service.charge import Absent, State
from command_service.charge import Charge as CoreCharge
from command_service.operation import AtRest
from command_service.statuses import (
    decline_reason_told,
    operation_status_told,
    status_of,
    transaction_id_told,
)
from judge import history
from query_service.course import Record, Standing, StreamBroken
from query_service.lookup import END, Conditions
from query_service.projection import Changes, UnknownEvent, charges_needed, project
from query_service.schema import ROWS_A_STATEMENT, Charge, Entry, Operation, Sum
from query_service.verified import verify
from query_service.view import View
from query_service.words import (
    ABANDONED,
    AUTHORIZATION_EXPIRED,
    AUTHORIZED,
    CHARGED,
    DECLINED,
    IN_REVIEW,
    PARTIALLY_REFUNDED,
    PENDING,
    REFUNDED,
    REQUIRES_ACTION,
    VOIDED,
)
from tests.operations import (
    AMOUNT,
    HOLD_ENDS,
    STEP_ENDS,
    action_required,
    authorized,
    called_off,
    candidates,
    capture,
    captured,
    held,
    lapsed,
    lives,
    not_after_passed,
    off_session,
    operation_abandoned,
    operation_declined,
    proposal_in,
    proposal_of,
    refund,
    refunded,
    state_after,
    void,
    voided,
)
from tests.sealed import (
    EPOCH_MICROSECONDS,
    UNKNOWN_EVENT,
    SealedJournal,
    abandoned,
    charge_id_of,
    charged,
    declined,
    in_review,
    requested,
    token_expired,
    token_issued,
    whole_stretch,
)
from tests.service.query_rig import dump

# The numbers of tenants, as in a view.
TENANTS = {"default": 1}

# Each example makes a file or two: fewer of them.
LAW = settings(max_examples=50)


def verified(journal: SealedJournal) -> list[Record]:
    return verify(journal.records, 0, bytes(32))


def rows_after(batches: Sequence[Sequence[Record]]) -> dict[str, list[dict[str, Any]]]:
    """Apply batches to a new view and return all its rows, by column name."""

    async def apply(path: Path) -> None:
        view = await View.open(path)
        for batch in batches:
            await view.apply(whole_stretch(batch))
        await view.close()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.db"
        asyncio.run(apply(path))
        return dump(path)


@st.composite
def streams_and_cuts(draw: st.DrawFn) -> tuple[list[Record], list[list[Record]]]:
    """Interleaved charges of two tenants and of every kind, on a clock that may step back, and the records cut into batches."""
    journal = SealedJournal()
    left: dict[str, Iterator[Event]] = {}
    proposals: dict[str, int] = {}  # a proposal is named by its position, which depends on the other charges' events
    for number in range(draw(st.integers(1, 6))):
        key = f"order-{number:04}"
        first = requested(
            key,
            f"user-{draw(st.integers(1, 2))}",
            minor_units=draw(st.integers(1, 9999)),
            currency=draw(st.sampled_from(("EUR", "JPY"))),
            tenant=draw(st.sampled_from(("default", "another"))),
        )
        asked = first.charge_requested
        if draw(st.booleans()):
            asked.capture = CaptureMode.CAPTURE_MODE_MANUAL
        if draw(st.booleans()):
            asked.not_after.FromMicroseconds(EPOCH_MICROSECONDS + 5)
            asked.card.fingerprint = "one card"
        if draw(st.booleans()):
            asked.bank, asked.off_session = "north", draw(st.booleans())
        left[key] = iter(draw(lives(first)))
    while left:
        key = draw(st.sampled_from(sorted(left)))
        if (event := next(left[key], None)) is None:
            del left[key]
            continue
        if (about := proposal_in(event)) is not None:
            about.proposal = proposals[key]
        position = journal.append(key, event, at=EPOCH_MICROSECONDS + draw(st.integers(0, 1000)))
        if event.WhichOneof("kind") == "resolution_proposed":
            proposals[key] = position
    records = verified(journal)
    cuts = sorted(draw(st.sets(st.integers(1, len(records) - 1)))) if len(records) > 1 else []
    edges = [0, *cuts, len(records)]
    return records, [records[a:b] for a, b in itertools.pairwise(edges)]


def charge_of(state: State) -> CoreCharge:
    assert isinstance(state, CoreCharge)
    return state


def kind_of_state(state: State) -> object:
    """What decides which events the core accepts next, without keys, times and positions."""
    charge = charge_of(state)
    newest = charge.newest
    is_in_review = isinstance(newest, AtRest) and "Review" in type(newest.outcome).__name__
    token = getattr(newest, "token", "")
    return (
        type(newest),
        token,
        newest.operation.kind,
        newest.operation.is_final,
        newest.operation.amount,
        is_in_review,
        (
            charge.book,
            charge.void is None,
            charge.desk.is_held_back,
            charge.desk.proposal is None,
        ),
    )


@pytest.mark.parametrize("make", [requested, held, off_session])
def test_the_projection_accepts_in_each_state_exactly_the_events_that_the_core_accepts(
    make: Callable[..., Event],
) -> None:
    """Every state of the core that a charge of two minor units can reach, and every kind of event in it."""
    first = make("order-0001", minor_units=2)
    state = state_after(Absent(), first)
    assert state is not None
    left: list[tuple[list[Event], State]] = [([first], state)]
    seen, taken = {kind_of_state(state)}, 0
    while left:
        events, state = left.pop()
        before = changes_of(*events)
        standing = standing_after(before)
        for event in (requested("order-0001"), *candidates((1, 2), proposal_of(state))):
            (record,) = verified(journal_of(*events, event))[len(events) :]
            after = state_after(state, event)
            if after is None:
                with pytest.raises(StreamBroken):  # in a later batch
                    project([record], standing, TENANTS)
                with pytest.raises(StreamBroken):  # and in the same one
                    changes_of(*events, event)
                continue
            taken += 1
            shown = charge_in(project([record], standing, TENANTS).moved_charges)
            assert shown == charge_in(changes_of(*events, event).charges)
            assert shown.status == status_of(charge_of(after))
            if kind_of_state(after) not in seen:
                seen.add(kind_of_state(after))
                left.append(([*events, event], after))
    assert taken >= 70


@LAW
@given(st.data())
def test_a_charge_and_its_operations_are_shown_as_the_core_tells_them(data: st.DataObject) -> None:
    """The two decide by their own code, and agree on the money, the statuses, the reasons and the transactions."""
    first = data.draw(st.sampled_from([make("order-0001") for make in (requested, held, off_session)]))
    events = data.draw(lives(first))
    state: State | None = Absent()
    for event in events:
        assert state is not None
        state = state_after(state, event)
    assert state is not None
    core, changes = charge_of(state), changes_of(*events)
    shown, book = charge_in(changes.charges), charge_of(state).book
    assert shown.status == status_of(core)
    assert (shown.authorized_minor_units, shown.captured_minor_units, shown.refunded_minor_units) == (
        book.authorized,
        book.captured,
        book.refunded,
    )
    assert shown.held_minor_units == (book.authorized - book.captured if book.is_open else 0)
    told = [*core.done, core.newest, *([core.void] if core.void else [])]
    rows = [Operation(*row) for row in changes.operations]
    assert [OperationKind.Name(row.kind)[15:].lower() for row in rows] == [one.operation.kind.value for one in told]
    assert [row.idempotency_key for row in rows] == [one.operation.idempotency_key for one in told]
    assert [row.transaction_id for row in rows] == [transaction_id_told(one) for one in told]
    assert [row.decline_reason for row in rows] == [decline_reason_told(one) for one in told]
    # For the operation that opens a charge the core has no status of an operation.
    assert [row.status for row in rows[1:]] == [operation_status_told(one) for one in told[1:]]


@LAW
@given(streams_and_cuts())
def test_the_judge_folds_the_same_rows(stream: tuple[list[Record], list[list[Record]]]) -> None:
    """All rows of all tables, by code that shares nothing with the projection."""
    records, batches = stream
    rows = rows_after(batches)
    view = history.fold(
        history.Record(
            record.position,
            str(uuid.UUID(bytes=record.charge_id)),
            record.version,
            record.recorded_at,
            record.chain,
            record.event,
        )
        for record in records
    )
    (checkpoint,) = rows.pop("checkpoint")
    assert view.checkpoint == {name: checkpoint[name] for name in view.checkpoint}
    folded = (view.tenants, view.charges, view.operations, view.entries, view.steps, view.sums, view.totals)
    for (table, shown), expected in zip(rows.items(), folded, strict=True):
        assert sorted(map(repr, map(sorted_row, shown))) == sorted(map(repr, map(sorted_row, expected))), table


def sorted_row(row: Any) -> list[tuple[str, Any]]:
    return sorted(row.items())


@LAW
@given(streams_and_cuts())
def test_a_stream_gives_the_same_rows_with_any_cut_into_batches(
    stream: tuple[list[Record], list[list[Record]]],
) -> None:
    """So a rebuilt view is equal to a live one, row for row."""
    records, batches = stream
    assert rows_after(batches) == rows_after([records])


@pytest.mark.parametrize("count", [ROWS_A_STATEMENT - 1, ROWS_A_STATEMENT, 2 * ROWS_A_STATEMENT + 1])
def test_a_batch_gives_the_same_rows_with_any_number_of_statements(count: int) -> None:
    """Entries are added many at a time, and the remainder one by one."""
    journal = SealedJournal()
    for number in range(count):
        journal.charge(f"order-{number:04}", f"user-{number % 7}")
    records = verified(journal)
    rows = rows_after([records])
    assert len(rows["entry"]) == len(rows["operation"]) == count
    assert rows == rows_after([records[:100], records[100:]])
    assert [entry["position"] for entry in rows["entry"]] == list(range(1, count + 1))


@LAW
@given(streams_and_cuts())
def test_summaries_are_the_sums_of_their_charges(stream: tuple[list[Record], list[list[Record]]]) -> None:
    """Money that moved or is held, and the whole amounts of charges of some statuses. A sum of no charges has no row."""
    _, batches = stream
    rows = rows_after(batches)
    sums: Counter[tuple[object, ...]] = Counter()
    counts: Counter[tuple[object, ...]] = Counter()
    whole = {
        PENDING: "pending",
        REQUIRES_ACTION: "pending",
        DECLINED: "declined",
        IN_REVIEW: "in_review",
        ABANDONED: "abandoned",
        VOIDED: "voided",
        AUTHORIZATION_EXPIRED: "authorization_expired",
    }
    for charge in rows["charge"]:
        amounts = {
            "charged": charge["captured_minor_units"],
            "refunded": charge["refunded_minor_units"],
            "held": charge["held_minor_units"],
        }
        if charge["status"] in whole:
            amounts[whole[charge["status"]]] = charge["minor_units"]
        for name, minor_units in amounts.items():
            of = (charge["tenant"], charge["user_id"], charge["currency_code"], name)
            sums[of] += minor_units
            counts[of] += minor_units > 0
    counts = +counts
    assert {tuple(row.values()) for row in rows["summary"]} == {(*of, counts[of], sums[of]) for of in counts}


@LAW
@given(streams_and_cuts())
def test_no_charge_was_requested_longer_than_the_backstep_before_a_preceding_one(
    stream: tuple[list[Record], list[list[Record]]],
) -> None:
    """By this a range of times is looked up as a range of positions, with any steps of the clock."""
    records, batches = stream
    rows = rows_after(batches)
    names = {row["tenant"]: row["name"] for row in rows["tenant"]}
    requests = [(Event.FromString(record.event).charge_requested.tenant, record) for record in records]
    for totals in rows["totals"]:
        times = [record.recorded_at for tenant, record in requests if tenant == names[totals["tenant"]]]
        assert totals["charge_count"] == len(times)
        assert (totals["earliest_requested_at"], totals["latest_requested_at"]) == (min(times), max(times))
        assert totals["backstep"] == max(max(times[: place + 1]) - time for place, time in enumerate(times))


@LAW
@given(streams_and_cuts(), st.integers(-2, 1002), st.integers(-2, 1002))
def test_a_range_of_times_holds_the_charges_requested_in_it(
    stream: tuple[list[Record], list[list[Record]]], since: int, until: int
) -> None:
    """Each of them and no other, with any steps of the clock: it is looked up as a range of positions."""
    records, batches = stream
    conditions = Conditions(requested_from=EPOCH_MICROSECONDS + since, requested_before=EPOCH_MICROSECONDS + until)

    async def listed(path: Path) -> list[int]:
        view = await View.open(path)
        for batch in batches:
            await view.apply(whole_stretch(batch))
        shown = await view.read("default", lambda rows: rows.charges(conditions, END, 99))
        await view.close()
        return [rows.charge.requested_position for rows in shown.found]

    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(listed(Path(folder) / "view.db"))
    expected = [
        record.position
        for record in records
        if Event.FromString(record.event).charge_requested.tenant == "default"
        and since <= record.recorded_at - EPOCH_MICROSECONDS < until
    ]
    assert found == expected[::-1]


DONE, OPEN = OperationStatus.OPERATION_STATUS_EXECUTED, OperationStatus.OPERATION_STATUS_PENDING
ASKS = OperationStatus.OPERATION_STATUS_REQUIRES_ACTION
NOT_DONE, UNKNOWN = OperationStatus.OPERATION_STATUS_DECLINED, OperationStatus.OPERATION_STATUS_IN_REVIEW
GIVEN_UP, CALLED_OFF = OperationStatus.OPERATION_STATUS_ABANDONED, OperationStatus.OPERATION_STATUS_CALLED_OFF
HOLD = (token_issued(), authorized())
CHARGE_ENDS = (token_issued(), charged("t-9"))


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a charge shows: its status, its money, and the statuses of its operations."""

    status: int
    authorized: int = 0
    captured: int = 0
    refunded: int = 0
    held: int = 0
    operations: tuple[int, ...] = (DONE,)


@pytest.mark.parametrize(
    ("life", "shown"),
    [
        ((), Shown(PENDING, operations=(OPEN,))),
        ((token_issued(),), Shown(PENDING, operations=(OPEN,))),
        ((token_issued(), token_expired()), Shown(PENDING, operations=(OPEN,))),
        (HOLD, Shown(AUTHORIZED, AMOUNT, held=AMOUNT)),
        ((token_issued(), declined()), Shown(DECLINED, operations=(NOT_DONE,))),
        ((in_review(),), Shown(IN_REVIEW, operations=(UNKNOWN,))),
        ((abandoned(),), Shown(ABANDONED, operations=(GIVEN_UP,))),
        # Partial captures; the last one, or a final one, ends the hold.
        ((*HOLD, capture(400)), Shown(AUTHORIZED, AMOUNT, held=AMOUNT, operations=(DONE, OPEN))),
        (
            (*HOLD, capture(400), token_issued(), captured()),
            Shown(CHARGED, AMOUNT, 400, held=600, operations=(DONE, DONE)),
        ),
        (
            (
                *HOLD,
                capture(400),
                token_issued(),
                captured(),
                capture(600, "capture-2"),
                token_issued(),
                captured("c-2"),
            ),
            Shown(CHARGED, AMOUNT, AMOUNT, operations=(DONE,) * 3),
        ),
        (
            (*HOLD, capture(400, final=True), token_issued(), captured()),
            Shown(CHARGED, AMOUNT, 400, operations=(DONE, DONE)),
        ),
        (
            (*HOLD, capture(400), operation_abandoned()),
            Shown(AUTHORIZED, AMOUNT, held=AMOUNT, operations=(DONE, GIVEN_UP)),
        ),
        # The rest of a hold is let go, or all of it, or it lapses.
        (
            (*HOLD, capture(400), token_issued(), captured(), void(600), token_issued(), voided()),
            Shown(CHARGED, AMOUNT, 400, operations=(DONE,) * 3),
        ),
        ((*HOLD, void(AMOUNT), token_issued(), voided()), Shown(VOIDED, AMOUNT, operations=(DONE, DONE))),
        (
            (*HOLD, capture(400), token_issued(), lapsed()),
            Shown(AUTHORIZATION_EXPIRED, AMOUNT, operations=(DONE, NOT_DONE)),
        ),
        (
            (*HOLD, capture(400), token_issued(), captured(), void(600), lapsed()),
            Shown(CHARGED, AMOUNT, 400, operations=(DONE, DONE, NOT_DONE)),
        ),
        # Refunds, in parts, of what was captured so far.
        (
            (*HOLD, capture(400), token_issued(), captured(), refund(400), token_issued(), refunded()),
            Shown(REFUNDED, AMOUNT, 400, 400, 600, (DONE,) * 3),
        ),
        (
            (
                *(*HOLD, capture(400), token_issued(), captured(), refund(400), token_issued(), refunded()),
                *(capture(600, "capture-2"), token_issued(), captured("c-2")),
            ),
            Shown(PARTIALLY_REFUNDED, AMOUNT, AMOUNT, 400, operations=(DONE,) * 4),
        ),
        (
            (*HOLD, capture(400), token_issued(), captured(), refund(1), operation_declined()),
            Shown(CHARGED, AMOUNT, 400, held=600, operations=(DONE, DONE, NOT_DONE)),
        ),
        (
            (*HOLD, capture(400), token_issued(), captured(), refund(1), token_issued(), in_review()),
            Shown(IN_REVIEW, AMOUNT, 400, held=600, operations=(DONE, DONE, UNKNOWN)),
        ),
        # A charge under way is called off, by its time or by a void.
        ((not_after_passed(),), Shown(PENDING, operations=(OPEN,))),
        ((token_issued(), not_after_passed(), called_off()), Shown(VOIDED, operations=(CALLED_OFF,))),
        ((token_issued(), void(AMOUNT)), Shown(PENDING, operations=(OPEN, OPEN))),
        ((void(AMOUNT), called_off()), Shown(VOIDED, operations=(CALLED_OFF, DONE))),
        ((not_after_passed(), void(AMOUNT), called_off()), Shown(VOIDED, operations=(CALLED_OFF, DONE))),
        ((token_issued(), void(AMOUNT), declined()), Shown(DECLINED, operations=(NOT_DONE, NOT_DONE))),
        ((void(AMOUNT), abandoned()), Shown(ABANDONED, operations=(GIVEN_UP, GIVEN_UP))),
        ((void(AMOUNT), in_review()), Shown(IN_REVIEW, operations=(UNKNOWN, UNKNOWN))),
        # The bank waits for a step of the customer.
        ((token_issued(), action_required()), Shown(REQUIRES_ACTION, operations=(ASKS,))),
        ((token_issued(), action_required(), action_required("x")), Shown(REQUIRES_ACTION, operations=(ASKS,))),
        ((token_issued(), action_required(), authorized()), Shown(AUTHORIZED, AMOUNT, held=AMOUNT)),
        ((token_issued(), action_required(), declined()), Shown(DECLINED, operations=(NOT_DONE,))),
        ((token_issued(), action_required(), not_after_passed()), Shown(PENDING, operations=(OPEN,))),
        ((token_issued(), action_required(), void(AMOUNT)), Shown(PENDING, operations=(OPEN, OPEN))),
        ((token_issued(), action_required(), void(AMOUNT), called_off()), Shown(VOIDED, operations=(CALLED_OFF, DONE))),
        # It comes too late: a hold is let go by the same void.
        ((token_issued(), void(AMOUNT), authorized()), Shown(AUTHORIZED, AMOUNT, held=AMOUNT, operations=(DONE, OPEN))),
        (
            (token_issued(), void(AMOUNT), authorized(), token_issued(), voided()),
            Shown(VOIDED, AMOUNT, operations=(DONE, DONE)),
        ),
    ],
)
def test_a_held_charge_shows_its_money_and_its_operations(life: Sequence[Event], shown: Shown) -> None:
    """Stories of a charge of 1000 that opens with a hold."""
    changes = changes_of(held("order-0001"), *life)
    charge, operations = charge_in(changes.charges), [Operation(*row) for row in changes.operations]
    assert (
        Shown(
            charge.status,
            charge.authorized_minor_units,
            charge.captured_minor_units,
            charge.refunded_minor_units,
            charge.held_minor_units,
            tuple(operation.status for operation in operations),
        )
        == shown
    )
    assert charge.hold_expires_at == (HOLD_ENDS if shown.held else 0)
    assert charge.version == charge.position == len(life) + 1
    assert charge.updated_at == EPOCH_MICROSECONDS + charge.position
    assert changes.entries[-1][Entry._fields.index("status")] == shown.status


@pytest.mark.parametrize(
    ("first", "life", "action"),
    [
        (requested, (), ("", 0)),
        (requested, (action_required("a"),), ("a", STEP_ENDS)),
        (requested, (action_required("a"), action_required("b", expires_at=0)), ("b", 0)),
        (requested, (action_required("a"), charged()), ("", 0)),
        (requested, (action_required("a"), not_after_passed()), ("", 0)),
        (off_session, (action_required("a"),), ("", 0)),
    ],
)
def test_the_customers_step_is_shown_as_long_as_it_is_awaited(
    first: Callable[[str], Event], life: Sequence[Event], action: tuple[str, int]
) -> None:
    """And not where nobody is there to take it."""
    changes = changes_of(first("order-0001"), token_issued(), *life)
    charge = charge_in(changes.charges)
    assert (charge.action_url, charge.action_expires_at) == action
    assert (charge.status == REQUIRES_ACTION) == bool(action[0])
    is_under_way = charge.status in (PENDING, REQUIRES_ACTION)
    assert ("pending" in {one.name for one in changes.sums}) == is_under_way


@pytest.mark.parametrize("over", [not_after_passed(), void(1250), charged(), declined(), called_off()])
def test_a_step_that_is_not_awaited_any_more_is_not_asked_for_again(over: Event) -> None:
    with pytest.raises(StreamBroken):
        changes_of(requested("order-0001"), token_issued(), action_required(), over, action_required())


@pytest.mark.parametrize(
    ("life", "status", "reasons"),
    [
        (CHARGE_ENDS, CHARGED, [(DONE, "t-9", 0, 0)]),
        ((token_issued(), declined()), DECLINED, [(NOT_DONE, "", DeclineReason.DECLINE_REASON_INSUFFICIENT_FUNDS, 0)]),
        ((in_review(),), IN_REVIEW, [(UNKNOWN, "", 0, ReviewReason.REVIEW_REASON_CONTRADICTION)]),
        (
            (*CHARGE_ENDS, refund(1250), token_issued(), refunded("r-9")),
            REFUNDED,
            [(DONE, "t-9", 0, 0), (DONE, "r-9", 0, 0)],
        ),
        (
            (*CHARGE_ENDS, refund(1), operation_declined()),
            CHARGED,
            [(DONE, "t-9", 0, 0), (NOT_DONE, "", DeclineReason.DECLINE_REASON_OTHER, 0)],
        ),
        # A void that came too late.
        (
            (token_issued(), void(1250), charged("t-9")),
            CHARGED,
            [(DONE, "t-9", 0, 0), (NOT_DONE, "", DeclineReason.DECLINE_REASON_ALREADY_CHARGED, 0)],
        ),
        (
            (token_issued(), void(1250), in_review()),
            IN_REVIEW,
            [(UNKNOWN, "", 0, ReviewReason.REVIEW_REASON_CONTRADICTION)] * 2,
        ),
    ],
)
def test_an_operation_shows_its_outcome(
    life: Sequence[Event], status: int, reasons: Sequence[tuple[int, str, int, int]]
) -> None:
    """Status, transaction, and the reason of a decline or a review, of the first operation and of those that follow."""
    changes = changes_of(requested("order-0001"), *life)
    rows = [Operation(*row) for row in changes.operations]
    assert charge_in(changes.charges).status == status
    assert [(row.status, row.transaction_id, row.decline_reason, row.review_reason) for row in rows] == reasons


def test_an_entry_belongs_to_the_operation_that_its_event_is_of() -> None:
    """While a void calls a charge off, the bank's answer is of the charge; once that is held, the answers are the void's."""
    events = (held("order-0001"), token_issued(), void(AMOUNT), authorized(), token_issued(), voided())
    changes = changes_of(*events)
    assert [entry[Entry._fields.index("operation_number")] for entry in changes.entries] == [0, 0, 1, 0, 1, 1]
    assert [Operation(*row).updated_at - EPOCH_MICROSECONDS for row in changes.operations] == [4, 6]


def test_the_rows_of_operations_at_rest_are_not_written_again() -> None:
    """Only what an event changes."""
    events = (held("order-0001"), *HOLD, capture(400), token_issued(), captured())
    before = standing_after(changes_of(*events))
    (record,) = verified(journal_of(*events, refund(1)))[len(events) :]
    changes = project([record], before, TENANTS)
    assert (len(changes.moved_charges), len(changes.moved_operations), len(changes.operations)) == (1, 0, 1)


def test_an_operation_of_more_than_is_left_stops_loudly() -> None:
    """The view keeps the book by itself, and believes no journal that overdraws it."""
    for events in (
        (held("order-0001"), *HOLD, capture(AMOUNT + 1)),
        (held("order-0001"), *HOLD, capture(600), token_issued(), captured(), capture(401, "capture-2")),
        (held("order-0001"), *HOLD, refund(1)),
        (requested("order-0001"), *CHARGE_ENDS, refund(1251)),
        (requested("order-0001"), *CHARGE_ENDS, void(1)),
        (requested("order-0001"), *CHARGE_ENDS, refund(0)),
    ):
        with pytest.raises(StreamBroken):
            changes_of(*events)


@pytest.mark.parametrize("seconds", [-(10**12), 10**12])
def test_a_time_that_cannot_be_told_stops_loudly(seconds: int) -> None:
    """Of a hold's end, and of the time past which a charge is called off."""
    first, end = held("order-0001"), authorized(expires_at=0)
    end.authorized.expires_at.seconds = seconds
    with pytest.raises(StreamBroken):
        changes_of(first, token_issued(), end)
    first.charge_requested.not_after.seconds = seconds
    with pytest.raises(StreamBroken):
        changes_of(first)


def test_metadata_are_stored_in_an_order_of_their_own() -> None:
    """A protobuf map has no order, and rebuilt rows must be equal."""
    journal = SealedJournal()
    journal.append("order-0001", requested("order-0001", metadata={"b": "2", "a": "ä", "c": "3"}))
    charge = charge_in(projected(journal).charges)
    assert charge.metadata == '{"a": "ä", "b": "2", "c": "3"}'


def test_a_charge_that_ends_in_the_batch_that_began_it_is_never_summed_as_pending() -> None:
    """It is written once, and the sums are the same as with many batches."""
    journal = SealedJournal()
    journal.charge("order-0001", "user-1", token_issued(), charged())
    assert projected(journal).sums == [Sum(1, "user-1", "EUR", "charged", charge_count=1, minor_units=1250)]


def test_only_charges_that_began_before_a_batch_are_needed_for_it() -> None:
    """So catching up reads few rows."""
    journal = SealedJournal()
    journal.charge("order-0001")
    journal.charge("order-0002", "user-1", token_issued())
    journal.append("order-0001", token_issued())
    records = verified(journal)
    assert charges_needed(records) == set()
    assert charges_needed(records[1:]) == {bytes.fromhex(charge_id_of("order-0001").replace("-", ""))}


@pytest.mark.parametrize("payload", [UNKNOWN_EVENT, b"", b"\xff\xff", b"\x0a\x05ab"])
def test_an_unknown_or_unreadable_event_stops_loudly(payload: bytes) -> None:
    """The error names the position, so that all records before it can be shown."""
    journal = SealedJournal()
    journal.charge("order-0001")
    journal.append("order-0001", payload)
    with pytest.raises(UnknownEvent) as stopped:
        projected(journal)
    assert stopped.value.position == 2


@pytest.mark.parametrize(
    "skipped",
    [
        [0],  # does not begin with ChargeRequested
        [1],  # skips a version
    ],
)
def test_a_stream_that_begins_elsewhere_or_skips_a_version_stops_loudly(skipped: list[int]) -> None:
    """A journal never holds such a stream."""
    journal = SealedJournal()
    journal.charge("order-0001", "user-1", token_issued(), charged())
    records = [record for place, record in enumerate(verified(journal)) if place not in skipped]
    with pytest.raises(StreamBroken):
        project(records, {}, TENANTS)


def test_a_stream_that_does_not_begin_at_version_one_stops_loudly() -> None:
    """With any first event."""
    journal = SealedJournal()
    journal.charge("order-0001", "user-1")
    (record,) = verified(journal)
    with pytest.raises(StreamBroken):
        project([record._replace(version=2)], {}, TENANTS)


def test_a_stream_that_begins_twice_stops_loudly() -> None:
    """A charge is requested once."""
    journal = SealedJournal()
    journal.charge("order-0001", "user-1", requested("order-0001"))
    with pytest.raises(StreamBroken):
        projected(journal)


def projected(journal: SealedJournal) -> Changes:
    return project(verified(journal), {}, TENANTS)


def journal_of(*events: Event) -> SealedJournal:
    """One charge."""
    journal = SealedJournal()
    for event in events:
        journal.append("order-0001", event)
    return journal


def changes_of(*events: Event) -> Changes:
    return projected(journal_of(*events))


def charge_in(rows: Sequence[tuple[Any, ...]]) -> Charge:
    (row,) = rows
    return Charge(*row)


def standing_after(changes: Changes) -> dict[bytes, Standing]:
    """How the one charge of a first batch stands, as the view finds it for the next."""
    charge = charge_in(changes.charges)
    return {charge.charge_id: Standing(charge, [Operation(*row) for row in changes.operations[-2:]])}
