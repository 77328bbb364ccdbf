"""The journal's port: sealed records in one gapless order, durable when acknowledged, chained against change.

A journal keeps bytes in streams and knows no charge. It promises (tests/contract/test_journal.py):

1. An append names the version that it expects its stream to have (0: no stream yet). At another version it is refused with
   VersionConflict, leaves no hole, and does no harm to the appends beside it.
2. When `append` returns, the records are durable. NotStored is certain too: a full disk and a busy database mean that
   nothing was stored. When a commit's fate is unknown, no caller gets an answer before it is known; if need be, the process
   ends, and the next start finds out.
3. Positions count from 1, have no gaps, and become visible in order. No reader is shown a record before it is durable.
4. Recorded times never run backwards, whatever the clock does.
5. Every record that is read has been verified against the chain.

`commits.py` is the journal over any store; `store.py` is the port to a store; `location.py` chooses the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from command_service.failures import JournalAway, JournalBusy, JournalCorrupt, JournalFull, NotStored
from contract.chain import GENESIS, START, Place, chain_after

__all__ = [
    "GENESIS",
    "START",
    "Appended",
    "Journal",
    "JournalAway",
    "JournalBusy",
    "JournalCorrupt",
    "JournalFull",
    "JournalRefused",
    "NotAccepting",
    "NotStored",
    "Place",
    "Record",
    "VersionConflict",
    "chain_after",
]

NotAccepting = Literal["", "full", "busy", "away"]
"""Why no new streams should be begun; "" if they may be."""


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
class VersionConflict:
    """The stream is not at the expected version: another writer appended first. Read again and decide again."""


Appended = Sequence[Record] | VersionConflict
"""What came of an append: its records, or nothing."""


class JournalRefused(Exception):
    """The journal must not be served from as it is; the text says why and what to do."""


class Journal(Protocol):
    """One journal, open for appending. Its calls never block the event loop."""

    journal_id: str
    restored: bool
    """It was restored from a copy: the bank may know of steps that the journal has forgotten."""
    made_anew: bool
    """It was made when it was opened: there was none before."""

    @property
    def head(self) -> Place:
        """The newest acknowledged record."""
        ...

    @property
    def not_accepting(self) -> NotAccepting:
        """Why no new streams should be begun; "" if they may be. Streams that have begun are appended to all the same."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether new streams may be begun."""
        ...

    @property
    def wal_bytes(self) -> int:
        """What the store has not moved into its database yet. It stays large while some program reads for long."""
        ...

    async def append(
        self, charge_id: str, expected_version: int, events: Sequence[bytes], *, finished: bool
    ) -> Appended:
        """Append to a stream, and note in the same transaction whether it is finished (at rest).

        Returns the records, or VersionConflict; raises NotStored. Each of the last two means that nothing was stored. If a
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

    def drives(self, charge_id: str) -> bool:
        """Whether this server is to bring a stream to its end. Where servers share a journal, the others may be to.

        It saves work: that two servers drive one stream does no harm.
        """
        ...

    async def news(self) -> Sequence[str]:
        """Return streams of which there is news, as soon as there are some: another server has appended to them, or this
        server drives them from now on and has not begun them itself.

        The first call returns at once, with the streams that this server drives from the start. One call at a time.
        """
        ...

    async def reaches(self, position: int) -> bool:
        """Return whether the journal has a position by now, which another server may have stored; its head is there then."""
        ...

    async def beyond(self, position: int) -> None:
        """Return as soon as the head is beyond a position."""
        ...

    async def close(self) -> None:
        """Finish what was asked for, and let go of the store."""
        ...
