"""Journals as they look after a long time: many finished charges, and some that a crash left unfinished.

The product's own codec and chain make the records, with ids and texts as the load generator makes them. Durable commits are
left out, since five million records would take long.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from command_service.codec import charge_id_of, encode
from command_service.events import Charged, ChargeRequested, Event, TokenIssued
from command_service.journal import chain_after
from command_service.journal.records import key_of
from command_service.journal.sqlite import anchor
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.sqlite.table import INSERT_RECORD, INSERT_UNFINISHED, read_head
from command_service.values import Card, Money, Request

RECORDS_A_TRANSACTION = 30_000
RECORDS_A_CHARGE = 3
CARD, AMOUNT = Card("tok_visa", "visa", "4242"), Money(1250, "EUR")


async def filled(path: Path, records: int, unfinished: int = 0) -> Path:
    """Make a journal: `records` records of finished charges, then `unfinished` charges of one record each."""
    if path.exists():  # nothing else runs in this loop
        with contextlib.closing(sqlite3.connect(path)) as connection:
            # Measurements append to it; with up to half as many records more, it still counts as a journal of this size.
            if records + unfinished <= read_head(connection).position <= 1.5 * (records + unfinished):
                return path
    for each in path.parent.glob(path.name + "*"):
        if each.is_file():  # a folder has results of reconciliations
            each.unlink()
    made = await SqliteFile(path).open()
    await made.close()
    journal_id = made.journal_id
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -500000")  # in KiB: the index's pages are touched in random order
        _fill(connection, -(-records // RECORDS_A_CHARGE), unfinished)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        # As a server leaves it: at its start a server verifies the records beyond the anchor.
        anchor.write(path, anchor.Anchor(journal_id, read_head(connection)))
    return path


def _fill(connection: sqlite3.Connection, finished: int, unfinished: int) -> None:
    head, rows = read_head(connection), list[tuple[object, ...]]()
    position, chain = head.position, head.chain
    connection.execute("BEGIN")
    for number in range(finished + unfinished):
        charge_id = charge_id_of("default", f"filled:{number}")
        key, recorded_at = key_of(charge_id), time.time_ns() // 1_000
        for version, event in enumerate(_events(charge_id, number, is_finished=number < finished), 1):
            stored = encode(event)
            position += 1
            chain = chain_after(chain, position, key, version, recorded_at, stored)
            rows.append((position, key, version, recorded_at, chain, stored))
        if number >= finished:
            connection.execute(INSERT_UNFINISHED, (key,))
        if len(rows) >= RECORDS_A_TRANSACTION:
            connection.executemany(INSERT_RECORD, rows)
            rows.clear()
            connection.execute("COMMIT")
            connection.execute("BEGIN")
    connection.executemany(INSERT_RECORD, rows)
    connection.execute("COMMIT")


def _events(charge_id: str, number: int, *, is_finished: bool) -> Iterator[Event]:
    user_id = f"user-{number % 1_000}"
    yield ChargeRequested(
        Request(
            charge_id, "default", f"filled:{number}", "anonymous", user_id, CARD, AMOUNT, "order of the benchmark", ()
        )
    )
    if is_finished:
        yield TokenIssued(f"ttok_{number:012x}")
        yield Charged(user_id, CARD, AMOUNT, f"txn_{number:012x}")


def bytes_beyond_event(path: Path) -> float:
    """Bytes on disk for each record, without its event's own bytes. The server must have ended."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        records, events = connection.execute("SELECT count(*), sum(length(event)) FROM record").fetchone()
    return float((path.stat().st_size - events) / records)


def unfinished_in(path: Path) -> int:
    """How many charges the journal has unfinished now."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM unfinished").fetchone()[0])
