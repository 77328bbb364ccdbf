"""The entries of a journal say what the core says, of every stream that the core accepts, wherever the reading begins."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charging.v1.journal_pb2 import Event
from command_service.charge import Absent, Charge, State
from command_service.codec import decode, encode
from command_service.events import Charged as ChargedEvent
from command_service.events import (
    ChargeRequested,
    OperationRequested,
    Refunded,
    ResolutionApproved,
    ResolutionProposed,
    ReviewRequired,
    TokenIssued,
)
from command_service.events import Event as CoreEvent
from command_service.journal.commits import GroupCommit
from command_service.journal.sqlite.file import SqliteFile
from command_service.operation import AtRest, Progress, Resolving
from command_service.reconciling.entries import Entries, Entry
from command_service.reconciling.entries import State as EntryState
from command_service.values import AnswerKind, Card, Kind, Money, Request, Resolution, ReviewReason
from tests.core.stories import stored
from tests.operations import held, lives
from tests.sealed import requested

SECOND = 1_000_000
EVENTS_AN_APPEND = 3
BEGIN = 1_700_000_000 * SECOND


def at_rest(progress: Progress) -> EntryState:
    """How far an operation has come, by the core."""
    if not isinstance(progress, AtRest):
        return EntryState.UNDER_WAY
    if isinstance(progress.outcome, ReviewRequired):
        return EntryState.IN_REVIEW
    return EntryState.MOVED if hasattr(progress.outcome, "transaction_id") else EntryState.NOT_MOVED


def by_the_core(charge: State) -> Counter[tuple[str, str, EntryState, int, str]]:
    assert isinstance(charge, Charge)
    found = Counter[tuple[str, str, EntryState, int, str]]()
    for progress in (*charge.done, charge.newest, charge.void):
        if progress is not None:
            operation, state = progress.operation, at_rest(progress)
            # In review it is, and a void with it, until what two people found is stored.
            if isinstance(charge.newest, Resolving) and state is EntryState.UNDER_WAY:
                state = EntryState.IN_REVIEW
            # A void that ends with its opening operation has that one's outcome, and has moved nothing by itself.
            moved_by = type(progress.outcome).__name__ if isinstance(progress, AtRest) else ""
            if operation.kind is Kind.VOID and state is EntryState.MOVED and moved_by != "Voided":
                state = EntryState.NOT_MOVED
            transaction_id = getattr(progress.outcome, "transaction_id", "") if isinstance(progress, AtRest) else ""
            sign = -1 if operation.kind is Kind.REFUND else 1
            found[
                operation.reference,
                operation.kind.value,
                state,
                sign * operation.amount.minor_units,
                transaction_id if state is EntryState.MOVED else "",
            ] += 1
    return found


def told(entries: Iterable[Entry]) -> Counter[tuple[str, str, EntryState, int, str]]:
    return Counter(
        (each.reference, each.kind.name.lower(), each.state, each.minor_units, each.transaction_id) for each in entries
    )


async def journal_of(path: Path, streams: Iterable[tuple[str, list[bytes]]]) -> SqliteFile:
    """A real journal, some events stored each second."""
    seconds = count()

    def now() -> int:
        return BEGIN + next(seconds) * SECOND

    def end() -> None:
        raise AssertionError

    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
    journal = await GroupCommit.open(await SqliteFile(path).open(), now=now, end_process=end)  # type: ignore[arg-type]
    for charge_id, events in streams:
        for version in range(0, len(events), EVENTS_AN_APPEND):
            await journal.append(charge_id, version, events[version : version + EVENTS_AN_APPEND], finished=False)
    await journal.close()
    return SqliteFile(path)


def entries_since(file: SqliteFile, at: int, bank: str = "") -> list[Entry]:
    with file.read() as reading:
        return list(Entries(reading, lambda named: named == bank).since(at))


def a_life(number: int) -> st.SearchStrategy[list[Event]]:
    return st.booleans().flatmap(lambda holds: lives((held if holds else requested)(f"key-{number}")))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(a_life(1), a_life(2), a_life(3)), st.integers(0, 15))
async def test_entries_are_what_the_core_says(tmp_path: Path, born: tuple[list[Event], ...], later: int) -> None:
    streams = [(life[0].charge_requested.charge_id, [event.SerializeToString() for event in life]) for life in born]
    file = await journal_of(tmp_path / "journal.db", streams)
    expected = Counter[tuple[str, str, EntryState, int, str]]()
    for _, events in streams:
        expected += by_the_core(stored(Absent(), *map(decode, events)))
    everything = entries_since(file, 0)
    assert told(everything) == expected
    assert entries_since(file, 0, "another") == []
    # From a later moment on: what came to rest before it is left out, and nothing else.
    moment = BEGIN + later * SECOND
    rest = told(
        each for each in everything if each.at >= moment or each.state in (EntryState.UNDER_WAY, EntryState.IN_REVIEW)
    )
    found = told(entries_since(file, moment))
    assert rest >= found
    assert all(state is EntryState.IN_REVIEW for _, _, state, _, _ in rest - found)


def events_of_a_resolution() -> Iterator[CoreEvent]:
    """A charge in review, of which two people find that it was executed and refunded since."""
    amount, card = Money(1250, "EUR"), Card("tok_visa")
    yield ChargeRequested(
        Request("1b4e28ba-2fa1-81d2-883f-0016d3cca427", "default", "k", "shop", "alice", card, amount)
    )
    yield TokenIssued("t")
    yield ReviewRequired(ReviewReason.CONTRADICTION)
    yield ResolutionProposed("ann", "seen", Resolution.REFUNDED, "txn-1", "txn-2", "statement")
    yield ResolutionApproved("bob", "seen too", 4, AnswerKind.EXECUTED, contradicts_bank=False)
    yield ChargedEvent("alice", card, amount, "txn-1")
    yield OperationRequested(Kind.REFUND, "desk-refund", "desk-4", "bob", amount)
    yield TokenIssued("txn-2")
    yield Refunded(amount, "txn-2")


@pytest.mark.parametrize("length", (1, 2, 3, 4, 6, 7, 8, 9))  # the approval and its outcome are one append
async def test_a_review_that_two_people_resolve_moves_what_they_found(tmp_path: Path, length: int) -> None:
    events = list(events_of_a_resolution())[:length]
    charge_id = "1b4e28ba-2fa1-81d2-883f-0016d3cca427"
    file = await journal_of(tmp_path / "journal.db", [(charge_id, [encode(event) for event in events])])
    assert told(entries_since(file, 0)) == by_the_core(stored(Absent(), *events))


async def test_a_charge_is_found_by_its_reference_however_old_it_is(tmp_path: Path) -> None:
    streams = [
        (charge_id, [encode(event)])
        for charge_id, event in [("1b4e28ba-2fa1-81d2-883f-0016d3cca427", next(events_of_a_resolution()))]
    ]
    file = await journal_of(tmp_path / "journal.db", streams)
    with file.read() as reading:
        entries = Entries(reading, lambda named: named == "")
        found = entries.find(streams[0][0])
        assert found is not None
        assert found.state is EntryState.UNDER_WAY
        assert entries.find("0b4e28ba-2fa1-81d2-883f-0016d3cca427") is None
        assert entries.find("no id") is None
        assert Entries(reading, lambda named: named == "other").find(streams[0][0]) is None
