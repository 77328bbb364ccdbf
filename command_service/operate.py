"""The operator's commands on a journal: print it, verify it, restore it.

All read the store itself; printing and verifying work beside a running server too.
"""

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from charging.v1.journal_pb2 import Event
from chassis.disk import LOCAL_DISK, Disk
from command_service.book import Book
from command_service.charge import Absent, Charge, State, evolve, is_at_rest, is_in_review
from command_service.codec import decode
from command_service.events import Recorded
from command_service.failures import ImpossibleEvent, UnknownEvent
from command_service.journal import JournalRefused, Place, Record
from command_service.journal.store import Location


def print_journal(at: Location, charge_id: str | None, *, named: str = "") -> Iterator[str]:
    """Yield a line for each record, of one charge or of all. Raises JournalRefused."""
    with at.read() as journal:
        if charge_id is None:
            yield from map(_line, journal.records())
        else:
            try:
                records = journal.stream(charge_id)
            except ValueError:
                raise JournalRefused("a charge is named by its id, a UUID") from None
            if not records:
                raise JournalRefused(f"the journal holds no charge {named or charge_id}")
            yield from map(_line, records)


def verify_journal(at: Location) -> str:
    """Verify every record against the chain, fold every stream, recompute the unfinished charges, check tail and indexes.

    A journal without an anchor, such as a backup, is verified up to its last record. Returns one line with the result. Raises
    JournalRefused with the first position that cannot be trusted.
    """
    with at.read(at_one_moment=True) as journal:
        states = _fold(journal.records())
        journal.check_tail()
        journal.check_indexes()
        computed, stored = _unfinished(states), set(journal.unfinished())
        if computed != stored:
            raise JournalRefused(
                f"the table of unfinished charges is wrong: {len(computed - stored)} are missing and "
                f"{len(stored - computed)} are at rest. Run restore, which makes it anew from the records."
            )
        return (
            f"ok: {journal.head.position} records of {len(states)} charges, {len(stored)} unfinished, "
            f"journal {journal.journal_id}{' (restored)' if journal.restored else ''}, chain {journal.head.chain.hex()}"
            + (f"; it is served from {journal.home}" if journal.home else "")
            + ("" if journal.is_anchored else "; no anchor can be read beside it, and so a lost tail would not be seen")
        )


def restore_journal(
    at: Location, source: Path | None, *, any_file_system: bool = False, disk: Disk = LOCAL_DISK
) -> tuple[str, Place]:
    """Restore a journal, and fold every stream to find the unfinished charges. Returns the journal's id and its end.

    Raises JournalRefused, also for an event that cannot be read.
    """
    return at.restore(source, lambda records: _unfinished(_fold(records)), any_file_system=any_file_system, disk=disk)


def served_from(at: Location) -> str:
    """Return the place that a copy, or a journal that was moved, is served from; "" if it is none or cannot be read."""
    with contextlib.suppress(JournalRefused), at.read() as journal:
        return journal.home
    return ""


def _fold(records: Iterable[Record]) -> dict[str, State]:
    """Fold every stream. Raises JournalRefused at the first event that cannot be read.

    Of a charge at rest only that is kept by which the events to come are judged, its book and whether it is in review, and
    charges that are alike in it share one state: a journal holds millions of charges.
    """
    states: dict[str, State] = {}
    at_rest: dict[tuple[Book, bool], State] = {}
    for record in records:
        try:
            state = evolve(
                states.get(record.charge_id, Absent()),
                Recorded(decode(record.event), record.position, record.recorded_at),
            )
        except (UnknownEvent, ImpossibleEvent) as error:
            raise JournalRefused(f"the record at position {record.position} cannot be read: {error}") from error
        if isinstance(state, Charge) and is_at_rest(state):
            state = at_rest.setdefault((state.book, is_in_review(state)), state)
        states[record.charge_id] = state
    return states


def _unfinished(states: Mapping[str, State]) -> set[str]:
    return {charge_id for charge_id, state in states.items() if not is_at_rest(state)}


def _line(record: Record) -> str:
    recorded = datetime.datetime.fromtimestamp(record.recorded_at / 1_000_000, datetime.UTC)
    event = Event.FromString(record.event)
    kind = event.WhichOneof("kind")
    if kind is None:
        return f"{record.position:>8} {record.charge_id} v{record.version} {recorded:%FT%T.%fZ} an event of a newer program"
    body = MessageToJson(getattr(event, kind), indent=None, preserving_proto_field_name=True)
    name = "".join(word.capitalize() for word in kind.split("_"))
    return f"{record.position:>8} {record.charge_id} v{record.version} {recorded:%FT%T.%fZ} {name} {body}"
