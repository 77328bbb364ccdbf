"""What an operator does with a journal from the command line: print, verify and restore it; backup is in journal.upkeep.

Everything is read from the file itself; printing and verifying also beside a running server.
"""

import contextlib
import datetime
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from charging.v1.journal_pb2 import Event
from chassis.sqlite import open_connection
from command_service.charge import Absent, State, evolve, is_at_rest
from command_service.codec import decode
from command_service.failures import ImpossibleEvent, UnknownEvent
from command_service.journal import START, JournalRefused, Place, Record, anchor
from command_service.journal.table import READER_PRAGMAS, read_all, read_head, read_stream, unfinished
from command_service.journal.upkeep import check_anchor, identify, must_be_there, refusing_damage, restore
from command_service.values import Recorded


def print_journal(path: Path, charge_id: str | None) -> Iterator[str]:
    """Yield a line for each record, of one charge or of all. Raises JournalRefused."""
    with _reading(path) as connection:
        if charge_id is None:
            yield from map(_line, read_all(connection, START, read_head(connection).position))
        else:
            try:
                records = read_stream(charge_id, connection)
            except ValueError:
                raise JournalRefused("a charge is named by its id, a UUID") from None
            if not records:
                raise JournalRefused(f"the journal holds no charge {charge_id}")
            yield from map(_line, records)


def verify_journal(path: Path) -> str:
    """Verify every record against the chain, fold every stream, recompute what is unfinished, check index and anchor.

    A file without an anchor, as a backup is, is verified as far as it goes. Returns what was found in a line. Raises
    JournalRefused with the first position that cannot be trusted.
    """
    try:
        anchored = anchor.read(path)  # before the journal, which may grow beyond it meanwhile
    except JournalRefused:
        anchored = None
    with _reading(path) as connection:
        journal_id, restored = identify(path, connection)
        connection.execute("BEGIN")  # one moment of a journal that a server may be writing
        head = read_head(connection)
        states = _fold(read_all(connection, START, head.position))
        if anchored is not None:
            check_anchor(path, anchored, journal_id, head, connection)
        computed = _unfinished(states)
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":  # the chain covers the records, and this the index by which a key finds its charge
            raise JournalRefused(f"the journal {path} is damaged: {found}. Restore a backup.")
        stored = set(unfinished(connection))
        connection.execute("COMMIT")
        if computed != stored:
            raise JournalRefused(
                f"the table of unfinished charges is wrong: {len(computed - stored)} are missing and "
                f"{len(stored - computed)} are at rest. Run restore, which makes it anew from the records."
            )
        return (
            f"ok: {head.position} records of {len(states)} charges, {len(stored)} unfinished, "
            f"journal {journal_id}{' (restored)' if restored else ''}, chain {head.chain.hex()}"
            + ("" if anchored else "; no anchor can be read beside it, and so a lost tail would not be seen")
        )


def restore_journal(path: Path, source: Path | None, *, any_file_system: bool = False) -> tuple[str, Place]:
    """Restore a journal (see upkeep), with every stream folded to see what is unfinished. Returns its id and where it ends.

    Raises JournalRefused, also if an event cannot be read.
    """
    return restore(path, source, lambda records: _unfinished(_fold(records)), any_file_system=any_file_system)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    must_be_there(path)
    with (
        refusing_damage(path),
        contextlib.closing(open_connection(path, read_only=True, pragmas=READER_PRAGMAS)) as connection,
    ):
        identify(path, connection)
        yield connection


def _fold(records: Iterable[Record]) -> dict[str, State]:
    """Fold every stream. Raises JournalRefused at the first event that cannot be read.

    All charges at rest share the state of the first: nothing may follow any of them, so what it holds is never asked, and
    of millions only the ids are kept.
    """
    states: dict[str, State] = {}
    at_rest: State | None = None
    for record in records:
        try:
            state = evolve(
                states.get(record.charge_id, Absent()),
                Recorded(decode(record.event), record.position, record.recorded_at),
            )
        except (UnknownEvent, ImpossibleEvent) as error:
            raise JournalRefused(f"the record at position {record.position} cannot be read: {error}") from error
        if is_at_rest(state):
            state = at_rest = at_rest or state
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
