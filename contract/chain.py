"""The chain: each record of a journal is tied to all records before it, so that no record can change unnoticed.

The command server makes the chain, every reader of the feed verifies it, and `journal.proto` tells it to everybody else.
"""

import hashlib
import struct
from dataclasses import dataclass

GENESIS = bytes(32)
"""The chain before position 1."""

_CHAINED = struct.Struct(">32sq16sqq32s")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a journal: a position and the chain up to it."""

    position: int
    chain: bytes


START = Place(0, GENESIS)
"""Before the first record."""


def chain_after(before: bytes, position: int, charge_id: bytes, version: int, recorded_at: int, event: bytes) -> bytes:
    """Return the chain up to a record, by fields of fixed width: `charge_id` is 16 bytes, `recorded_at` in microseconds.

    The inner digest lets a later, recorded erasure replace an event's personal data while the chain still verifies. Raises
    struct.error if a number has more than 64 bits.
    """
    digest = hashlib.sha256(event).digest()
    return hashlib.sha256(_CHAINED.pack(before, position, charge_id, version, recorded_at, digest)).digest()
