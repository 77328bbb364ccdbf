"""How records are sealed when they are stored, and how stored rows are verified when they are read: alike in every store."""

import struct
from collections.abc import Iterable
from functools import lru_cache

from command_service.journal import GENESIS, JournalCorrupt, Place, Record, chain_after
from command_service.journal.store import Append

# A message of the feed: one record a message costs some twenty times as much, more than 500 gain nothing (measured).
RECORDS_A_READ = 500
BYTES_A_READ = 1 << 20
KEY_BYTES = 16

Row = tuple[int, bytes, int, int, bytes, bytes]
"""A record as stored: its position, key, version, time in microseconds since 1970, chain and event."""
Verifiable = tuple[int, bytes, int, int, bytes, bytes, bytes | None]
"""A row, and the chain of the record before it in the journal; None if that record is missing."""


def seal(append: Append, key: bytes, place: Place, recorded_at: int) -> tuple[list[Record], Place]:
    """Give an append's events their positions and chain after a place. Returns the records, and the place after them."""
    records: list[Record] = []
    position, chain = place.position, place.chain
    for version, event in enumerate(append.events, append.expected_version + 1):
        position += 1
        chain = chain_after(chain, position, key, version, recorded_at, event)
        records.append(Record(position, append.charge_id, version, recorded_at, chain, event))
    return records, Place(position, chain)


def following(rows: Iterable[Row], place: Place, until: int) -> list[Record]:
    """Verify rows that follow a place, in the order of positions, and return them as records, up to BYTES_A_READ.

    `until` is a position that the journal has. Raises JournalCorrupt if the very next record does not fit; one further on
    ends the read before it.
    """
    records: list[Record] = []
    position, chain, size = place.position, place.chain, 0
    for row in rows:
        position += 1
        record = _fitting(row, chain) if row[0] == position else None
        if record is None:
            break  # what comes before it is whole; the next read begins at it, and raises
        size += len(record.event) + 128
        if size > BYTES_A_READ and records:
            break
        records.append(record)
        chain = record.chain
    if not records and place.position < until:
        raise JournalCorrupt(place.position + 1)
    return records


def verified(row: Verifiable) -> Record:
    """Verify a row against the chain before it, and return the record that it is. Raises JournalCorrupt."""
    record = _fitting(row[:6], row[6] if row[0] > 1 else GENESIS)
    if record is None:
        raise JournalCorrupt(row[0])
    return record


def _fitting(row: Row, before: bytes | None) -> Record | None:
    """Make a row the record that it is, or None if it does not fit the chain before it."""
    position, key, version, recorded_at, chain, event = row
    try:
        fits = before is not None and chain == chain_after(before, position, key, version, recorded_at, event)
        fits = fits and len(key) == KEY_BYTES  # the chain does not see zeros that a key has lost at its end
    except (TypeError, struct.error):  # a flipped bit in a row's own header makes other types of its values
        fits = False
    return Record(position, id_of(key), version, recorded_at, chain, event) if fits else None


def key_of(charge_id: str) -> bytes:
    """The 16 bytes of a charge id. Raises ValueError if it is none."""
    return bytes.fromhex(charge_id.replace("-", ""))


@lru_cache(maxsize=RECORDS_A_READ)  # a charge's records are near each other: a read costs a sixteenth less
def id_of(key: bytes) -> str:
    """The charge id of 16 bytes, in a third of the time that uuid.UUID takes."""
    digits = key.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
