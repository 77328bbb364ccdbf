"""From events to rows: laws and examples of the pure projection, and of the view that keeps its rows."""

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charging.v1.common_pb2 import DeclineReason, ReviewReason
from charging.v1.journal_pb2 import Event
from command_service.charge import Absent, State
from command_service.codec import decode
from command_service.failures import ImpossibleEvent
from query_service.lookup import END, Conditions
from query_service.projection import (
    ABANDONED,
    CHARGED,
    DECLINED,
    IN_REVIEW,
    PENDING,
    Changes,
    Record,
    Standing,
    StreamBroken,
    UnknownEvent,
    charges_needed,
    project,
)
from query_service.schema import ROWS_A_STATEMENT, Entry, Sum
from query_service.subscriber import verify
from query_service.view import View
from tests.core.stories import stored
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
)
from tests.service.query_rig import dump

# Every course of a charge, after ChargeRequested.
LIVES: Sequence[Sequence[Event]] = (
    (),
    (abandoned(),),
    (declined(DeclineReason.DECLINE_REASON_BANK_REFUSED),),
    (in_review(),),
    (token_issued(),),
    (token_issued(), charged()),
    (token_issued(), declined()),
    (token_issued(), in_review(ReviewReason.REVIEW_REASON_FIELDS_DIFFER)),
    (token_issued("one"), token_expired("one"), token_issued("two"), charged("transaction-2")),
)

# The numbers of tenants, as in a view.
TENANTS = {"default": 1}

# Each example makes a file or two: fewer of them, and no time limit, since the machine may be busy.
LAW = settings(max_examples=50, deadline=None)


def verified(journal: SealedJournal) -> list[Record]:
    return verify(journal.records, 0, bytes(32))


def rows_after(batches: Sequence[Sequence[Record]]) -> dict[str, list[dict[str, Any]]]:
    """Apply batches to a new view and return all its rows, by column name."""

    async def apply(path: Path) -> None:
        view = await View.open(path)
        for batch in batches:
            await view.apply(batch)
        await view.close()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.db"
        asyncio.run(apply(path))
        return dump(path)


@st.composite
def streams_and_cuts(draw: st.DrawFn) -> tuple[list[Record], list[list[Record]]]:
    """Interleaved charges of two tenants, on a clock that may step back, and the same records cut into batches."""
    lives = draw(st.lists(st.sampled_from(LIVES), min_size=1, max_size=8))
    journal = SealedJournal()
    left: dict[str, Iterator[Event]] = {}
    for number, life in enumerate(lives):
        key = f"order-{number:04}"
        user = f"user-{draw(st.integers(1, 2))}"
        currency = draw(st.sampled_from(("EUR", "JPY")))
        tenant = draw(st.sampled_from(("default", "another")))
        first = requested(key, user, minor_units=draw(st.integers(1, 9999)), currency=currency, tenant=tenant)
        left[key] = iter((first, *life))
    while left:
        key = draw(st.sampled_from(sorted(left)))
        if (event := next(left[key], None)) is None:
            del left[key]
        else:
            journal.append(key, event, at=EPOCH_MICROSECONDS + draw(st.integers(0, 1000)))
    records = verified(journal)
    cuts = sorted(draw(st.sets(st.integers(1, len(records) - 1)))) if len(records) > 1 else []
    edges = [0, *cuts, len(records)]
    return records, [records[a:b] for a, b in itertools.pairwise(edges)]


def test_the_projection_accepts_after_each_event_exactly_the_events_that_the_core_accepts() -> None:
    """For every stream of seven events that the core accepts, every kind of event after each prefix."""
    kinds = [requested("order-0001"), token_issued(), token_expired(), charged(), declined(), in_review(), abandoned()]
    streams: list[tuple[list[Event], State]] = [([], Absent())]
    taken = 0
    for _ in range(7):
        longer: list[tuple[list[Event], State]] = []
        for events, state in streams:
            for event in kinds:
                journal = SealedJournal()
                for each in (*events, event):
                    journal.append("order-0001", each)
                records = verified(journal)
                try:
                    after = stored(state, decode(event.SerializeToString()))
                except ImpossibleEvent:
                    before = rows_of(records[:-1])
                    for batch, known in ((records, {}), (records[-1:], before)):  # in one batch, and in a later one
                        with pytest.raises(StreamBroken):
                            project(batch, known, TENANTS)
                else:
                    assert project(records, {}, TENANTS).charges[0].version == len(events) + 1
                    longer.append(([*events, event], after))
                    taken += 1
        streams = longer
    assert taken == 25


def rows_of(records: Sequence[Record]) -> dict[bytes, Standing]:
    """The rows after a first batch, each charge with one operation."""
    changes = project(records, {}, TENANTS)
    return {
        charge.charge_id: Standing(charge, operation)
        for charge, operation in zip(changes.charges, changes.operations, strict=True)
    }


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
    """Each charge is counted once, in the sum of its status. A sum of no charges has no row."""
    _, batches = stream
    rows = rows_after(batches)
    sums: Counter[tuple[object, ...]] = Counter()
    counts: Counter[tuple[object, ...]] = Counter()
    for charge in rows["charge"]:
        of = (charge["tenant"], charge["user_id"], charge["currency_code"], charge["status"])
        sums[of] += charge["minor_units"]
        counts[of] += 1
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
            await view.apply(batch)
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


@pytest.mark.parametrize(
    ("life", "status", "transaction_id", "decline_reason", "review_reason"),
    [
        ((), PENDING, "", 0, 0),
        ((token_issued(),), PENDING, "", 0, 0),
        ((token_issued(), token_expired()), PENDING, "", 0, 0),
        ((token_issued(), charged("t-9")), CHARGED, "t-9", 0, 0),
        ((token_issued(), declined()), DECLINED, "", DeclineReason.DECLINE_REASON_INSUFFICIENT_FUNDS, 0),
        ((in_review(),), IN_REVIEW, "", 0, ReviewReason.REVIEW_REASON_CONTRADICTION),
        ((abandoned(),), ABANDONED, "", 0, 0),
    ],
)
def test_a_charge_has_the_status_of_its_newest_event(
    life: Sequence[Event], status: int, transaction_id: str, decline_reason: int, review_reason: int
) -> None:
    """One example for every kind of event."""
    journal = SealedJournal()
    position = journal.charge("order-0001", "user-1", *life)
    changes = projected(journal)
    (charge,), (operation,) = changes.charges, changes.operations
    assert (charge.status, operation.status) == (status, status)
    assert operation.transaction_id == transaction_id
    assert (operation.decline_reason, operation.review_reason) == (decline_reason, review_reason)
    assert charge.updated_at == operation.updated_at == EPOCH_MICROSECONDS + position
    assert charge.version == charge.position == position
    assert changes.entries[0][Entry._fields.index("event")] == Event.CHARGE_REQUESTED_FIELD_NUMBER
    assert changes.entries[-1][Entry._fields.index("status")] == status


def test_metadata_are_stored_in_an_order_of_their_own() -> None:
    """A protobuf map has no order, and rebuilt rows must be equal."""
    journal = SealedJournal()
    journal.append("order-0001", requested("order-0001", metadata={"b": "2", "a": "ä", "c": "3"}))
    (charge,) = projected(journal).charges
    assert charge.metadata == '{"a": "ä", "b": "2", "c": "3"}'


def test_a_charge_that_ends_in_the_batch_that_began_it_is_never_summed_as_pending() -> None:
    """It is written once, and the sums are the same as with many batches."""
    journal = SealedJournal()
    journal.charge("order-0001", "user-1", token_issued(), charged())
    assert projected(journal).sums == [Sum(1, "user-1", "EUR", CHARGED, charge_count=1, minor_units=1250)]


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
