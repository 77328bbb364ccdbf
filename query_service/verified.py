"""What of the feed is believed: stretches of the journal, verified against the chain.

A stretch of the whole journal has every record. In a tenant's feed others' records are passed over: the feed states the chain
up to them, the records after them are verified from there, and docs/adr/0022 says what that cannot show.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from charging.v1 import journal_pb2
from contract.chain import Place, chain_after
from query_service.course import Record

# The range of a Timestamp, in microseconds since 1970: the years 1 to 9999.
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999

_UUID_BYTES = 16
_CHAIN_BYTES = 32


class BrokenFeed(Exception):
    """The feed breaks its promises: a gap, a repeat, a broken chain. The text names the position."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of the journal, from behind position `after` to the place `to`, and its records that the view is to show."""

    after: int
    records: Sequence[Record]
    to: Place

    def before(self, position: int) -> "Stretch | None":
        """Return the part that ends with the last record before a position; None if no record precedes it."""
        records = [record for record in self.records if record.position < position]
        return Stretch(self.after, records, Place(records[-1].position, records[-1].chain)) if records else None


def joined(stretches: Sequence[Stretch]) -> Stretch:
    """Make one stretch of some that follow each other; at least one."""
    records = [record for stretch in stretches for record in stretch.records]
    return Stretch(stretches[0].after, records, stretches[-1].to)


def stretch_of(batch: journal_pb2.RecordBatch, place: Place, *, of_tenant: bool) -> Stretch:
    """Check a batch that follows a place. Only the feed `of_tenant` may pass over records. Raises BrokenFeed."""
    records = verify(batch.records, place.position, place.chain, of_tenant=of_tenant)
    to = Place(records[-1].position, records[-1].chain) if records else place
    if batch.HasField("passed"):
        passed = Place(batch.passed.to_position, batch.passed.chain)
        if not of_tenant or passed.position <= to.position or len(passed.chain) != _CHAIN_BYTES:
            raise BrokenFeed(f"after position {to.position} the feed passes over records to position {passed.position}")
        to = passed
    return Stretch(place.position, records, to)


def verify(
    batch: Iterable[journal_pb2.Record], position: int, chain: bytes, *, of_tenant: bool = False
) -> list[Record]:
    """Check that records follow a position and its chain, one after the other. Raises BrokenFeed.

    In a feed `of_tenant` others' records may lie between; from the last of them the chain goes on as the feed states it.
    """
    records = []
    first_time, last_time = FIRST_TIME, LAST_TIME
    from_hex = bytes.fromhex  # looked up once, not for each of millions of records
    for wire in batch:
        if wire.position != position + 1:
            if not of_tenant or wire.position <= position or len(wire.chain_before) != _CHAIN_BYTES:
                raise BrokenFeed(f"after position {position} the feed brought position {wire.position}")
            position, chain = wire.position - 1, wire.chain_before
        position += 1
        version, event, recorded = wire.version, wire.event, wire.recorded_at
        nanos = recorded.nanos
        recorded_at = recorded.seconds * 1_000_000 + nanos // 1_000
        if not (0 <= nanos < 1_000_000_000 and first_time <= recorded_at <= last_time):
            raise BrokenFeed(f"the record at position {position} was recorded at no time that can be told")
        try:
            charge_id = from_hex(wire.charge_id.replace("-", ""))
            chain = chain_after(chain, position, charge_id, version, recorded_at, event)
        except (ValueError, struct.error):
            raise BrokenFeed(f"the record at position {position} cannot be read") from None
        if chain != wire.chain or len(charge_id) != _UUID_BYTES:
            raise BrokenFeed(f"the record at position {position} does not fit the chain")
        records.append(Record(position, charge_id, version, recorded_at, chain, event))
    return records
