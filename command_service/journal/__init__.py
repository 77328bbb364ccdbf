"""The journal's port: sealed records in one gapless order, durable when acknowledged, chained against change.

A journal stores bytes in streams and knows no charge. What every store must keep (tests/contract/test_journal.py):

* An append names the version it expects its stream to have (0: none) and is refused with VersionConflict otherwise,
  without a hole and without harm to the appends beside it.
* When `append` returns, the records are durable. NotStored, too, is certain: a full disk and a busy file are "no". When a
  commit's fate is unknown, nobody is told anything: the process ends, and the next start finds out.
* Positions count from 1, have no gaps, and become visible in order. No reader is shown a record before it is durable.
* Recorded times never run backwards, whatever the clock does.
* Every record that is read has been verified against the chain.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from command_service.failures import JournalBusy as JournalBusy
from command_service.failures import JournalCorrupt as JournalCorrupt
from command_service.failures import JournalFull as JournalFull
from command_service.failures import NotStored as NotStored

GENESIS = bytes(32)
"""The chain before position 1."""

_CHAINED = struct.Struct(">32sQ16sQQ32s")


class Record(NamedTuple):
    """An event as stored. `recorded_at` is in microseconds since 1970; `chain` is up to and including this record.

    A named tuple and not a dataclass: it is made in a third of the time, once for each record that is read.
    """

    position: int
    charge_id: str
    version: int
    recorded_at: int
    chain: bytes
    event: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the journal: a position and the chain up to it."""

    position: int
    chain: bytes


START = Place(0, GENESIS)
"""Before the first record."""


class VersionConflict(Exception):
    """The stream is not at the expected version: somebody else appended first. Read again and decide again."""


class JournalRefused(Exception):
    """The journal must not be served from as it is; the text says why and what to do."""


def chain_after(before: bytes, position: int, charge_id: bytes, version: int, recorded_at: int, event: bytes) -> bytes:
    """Chain one record, by fields of fixed width.

    The inner digest lets a later, recorded erasure replace an event's personal data while the chain still verifies.
    """
    digest = hashlib.sha256(event).digest()
    return hashlib.sha256(_CHAINED.pack(before, position, charge_id, version, recorded_at, digest)).digest()


class Journal(Protocol):
    """One journal, open for appending. Its calls never block the event loop."""

    journal_id: str
    restored: bool
    """It was restored from a copy: the bank may know of steps that it has forgotten."""

    @property
    def head(self) -> Place:
        """The newest acknowledged record."""
        ...

    @property
    def not_accepting(self) -> Literal["", "full", "busy"]:
        """Why no new streams should be begun; "" if they may. Those begun are appended to even if not."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether new streams may be begun."""
        ...

    async def append(
        self, charge_id: str, expected_version: int, events: Sequence[bytes], *, finished: bool
    ) -> Sequence[Record]:
        """Append to a stream, and note in the same transaction whether it is finished (at rest).

        Raises VersionConflict, or NotStored; both mean that nothing was stored. There is no third way back: if a
        commit's fate is unknown, the process ends.
        """
        ...

    async def read(self, charge_id: str) -> Sequence[Record]:
        """Read a stream, oldest first; empty if there is none. Raises JournalCorrupt."""
        ...

    async def read_after(self, place: Place) -> Sequence[Record]:
        """Read the records after a place, verified from its chain on: at most 500 and about 1 MiB.

        Raises JournalCorrupt.
        """
        ...

    async def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position from 0 to the head's; the record there is verified. Raises JournalCorrupt."""
        ...

    async def unfinished(self) -> Sequence[str]:
        """List the streams that are not finished."""
        ...

    async def beyond(self, position: int) -> None:
        """Return as soon as the head is beyond a position."""
        ...

    async def close(self) -> None:
        """Finish what was asked for, and let go of the file."""
        ...
