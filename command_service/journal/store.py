"""The port to a store: what a journal asks of the one database that keeps it.

A store's module holds the statements of one database, and nothing that is alike for every database: `commits.py` gathers
appends and settles the meaning of a failed commit, `records.py` seals records and verifies stored rows. A store promises:

1. A store of one server says so to a second one with JournalRefused. A store of several has each of them drive streams of its
   own (`drives`): that saves work, and safety does not rest on it. What was stored before was made durable before the store
   was open.
2. `commit` stores a batch in one transaction. For each append in order: it compares the stream's version with the expected
   one. If they differ, the append's outcome is VersionConflict, and nothing of it is stored. If not, it seals the records
   after the head (`records.seal`) and stores them, with the note whether the stream is finished. So a refused append takes no
   position.
3. When `commit` returns, what it says is durable.
4. When `commit` raises NotStored, nothing of the batch was stored, certainly: the transaction is over, and the head that
   the store has read back is the head that `commit` was given. JournalFull: there was no room. JournalBusy: another program
   held the lock. A store that cannot be certain does not raise NotStored.
5. When `commit` raises anything else, the batch may be stored or not. The server ends without another call but `close`.
6. A reader sees whole batches only, in order, and none before it is durable.
7. Records are returned verified, or not at all (JournalCorrupt): also when the database itself finds that it is damaged.
8. `look` notices when what is stored from now on would be lost, and then raises JournalRefused. It keeps a note of the head
   outside of the records, where the store has such a place, so that the next start notices a lost tail.
9. No call blocks the event loop. Reads wait neither for commits nor for `look`.

There is one call of `commit` or `probe` at a time, one of `look`, and one of each of `head_beyond` and `news`. A store of
several servers finds its head in the transaction of `commit`, which is why `commit` returns the new one.
"""

import itertools
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from chassis.disk import Disk
from command_service.journal import Appended, NotAccepting, Place, Record

# Some 8 MB: more at once make a copy no faster.
RECORDS_A_CHUNK = 20_000


@dataclass(frozen=True, slots=True)
class Append:
    """Events to be appended to a stream that is expected at a version, after which it is finished or not."""

    charge_id: str
    expected_version: int
    events: Sequence[bytes]
    finished: bool


class Head(NamedTuple):
    """The place of the newest record, and when it was recorded: microseconds since 1970, 0 if there is none."""

    place: Place
    recorded_at: int


class Committed(NamedTuple):
    """What came of a batch: an outcome for each append, in order, and the head after them."""

    outcomes: Sequence[Appended]
    head: Head


class Store(Protocol):
    """The database of one journal, open for one server. Its promises stand above."""

    journal_id: str
    restored: bool
    made_anew: bool

    @property
    def not_accepting(self) -> NotAccepting:
        """Why no new streams should be begun, as of the last look; "" if they may be: those begun need what room is left."""
        ...

    @property
    def wal_bytes(self) -> int:
        """What is not moved into the database yet; 0 if the store does not know."""
        ...

    async def head(self) -> Head:
        """Return the head. Raises JournalCorrupt."""
        ...

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        """Store a batch, all records with the head's time, or a later one that the journal has. Promises 2 to 5 bind it.

        If the store is of one server, the batch goes after the head that is given.
        """
        ...

    async def probe(self) -> NotAccepting:
        """Find out why a commit would be refused now, without storing anything; "" if it would not be.

        Raises an exception of the store's own if that cannot be found out.
        """
        ...

    async def read_stream(self, charge_id: str) -> Sequence[Record]:
        """Read a stream, oldest first; empty if there is none. Raises JournalCorrupt."""
        ...

    async def read_after(self, place: Place, until: int) -> Sequence[Record]:
        """Read on from a place, at most to a position, which must be there, and no more than `records.py` allows at once.

        Raises JournalCorrupt if the very next record does not fit.
        """
        ...

    async def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position. Raises JournalCorrupt if there is no such record, or it does not fit."""
        ...

    async def unfinished(self) -> Sequence[str]:
        """List the streams that are not finished."""
        ...

    # ------------------------------------------------------------ other servers
    def drives(self, charge_id: str) -> bool:
        """Whether this server is to bring a stream to its end."""
        ...

    async def news(self) -> Sequence[str]:
        """Return streams of which there is news, as soon as there are some; see `Journal.news`."""
        ...

    async def head_beyond(self, position: int) -> Head:
        """Return the head as soon as another server has moved it beyond a position, and what it covers is durable."""
        ...

    async def reaches(self, position: int) -> bool:
        """Return whether the journal has a position by now, which is beyond what `head_beyond` has returned, and is durable."""
        ...

    async def look(self, head: Place) -> None:
        """Look after the database, and note how far the journal has got; the note is made even if it raises JournalRefused.

        Raises JournalRefused if what is stored from now on would be lost, and OSError if it could not look or note: the
        journal is as safe as before then.
        """
        ...

    async def close(self) -> None:
        """Let go of the database."""
        ...


class Reading(Protocol):
    """A journal as an operator reads it, also beside the server that has it open. Damage is told as JournalRefused."""

    journal_id: str
    restored: bool
    home: str
    """The place that the journal is served from if it is not this one: this is a copy, or it was moved. Else ""."""
    head: Place
    is_anchored: bool
    """Whether a note of how far the journal had got was found: without it, a lost tail cannot be noticed."""

    def records(self, after: Place = ...) -> Iterator[Record]:
        """Read all records after a place, all if none is given, up to the head, each verified. Raises JournalCorrupt."""
        ...

    def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position from 0 to the head's. Raises JournalCorrupt."""
        ...

    def stream(self, charge_id: str) -> Sequence[Record]:
        """Read one stream, verified; empty if there is none. Raises JournalCorrupt, or ValueError if it is no charge's id."""
        ...

    def unfinished(self) -> Collection[str]:
        """List the streams that the store notes as unfinished."""
        ...

    def check_tail(self) -> None:
        """See that the journal has not lost what it once had. Raises JournalRefused."""
        ...

    def check_indexes(self) -> None:
        """See that what the chain does not cover is whole too. Raises JournalRefused."""
        ...


class Copy(Protocol):
    """A journal that is being written from another place, and is served from there. No server opens it meanwhile.

    Each call raises JournalRefused if another program has written there since the one before.
    """

    head: Place

    def store(self, records: Sequence[Record]) -> None:
        """Store records that follow the head, as they are."""
        ...

    def note_unfinished(self, charge_ids: Collection[str]) -> None:
        """Note which streams are unfinished up to the head, and no others."""
        ...

    def serve_here(self) -> None:
        """Note that the journal is served from here from now on: the other place has been left."""
        ...


def served_elsewhere(here: str, home: str) -> str:
    """Say why a journal is not served from where it is, and the way out."""
    return (
        f"the journal {here} is served from {home}: this is a copy, or it was moved, and servers on two copies of a journal "
        "would charge twice. To serve it from here, stop the servers there and run copy-journal --move from there to here"
    )


def no_copy(here: str, journal_id: str, home: str, source: str) -> str:
    """Say why a journal is not copied to a place that holds one."""
    return (
        f"{here} holds the journal {journal_id}, which is served from {home or 'there'}, and no copy of the journal at {source}"
        ": name another place"
    )


def in_chunks(records: Iterator[Record]) -> Iterator[Sequence[Record]]:
    """Gather records, in order, to as many as are best stored at once."""
    while chunk := list(itertools.islice(records, RECORDS_A_CHUNK)):
        yield chunk


def random_id() -> str:
    """Name a new journal."""
    return str(uuid.uuid4())


Fold = Callable[[Iterator[Record]], Collection[str]]
"""Reads all records, which verifies them, and says which streams are unfinished: that is not a journal's to know."""


class Location(Protocol):
    """Where a journal is kept, and what can be done with it there. Its text is how a person knows it."""

    @property
    def lies_in_memory(self) -> bool:
        """Whether it is lost with the machine's power."""
        ...

    @property
    def crosses_network_unverified(self) -> bool:
        """Whether others on the way to it could read it, or answer in its place."""
        ...

    async def open(
        self,
        *,
        new_id: Callable[[], str] = ...,
        free_bytes: int = ...,
        must_exist: bool = ...,
        any_file_system: bool = ...,
        disk: Disk = ...,
    ) -> Store:
        """Open the store for a server; a journal that does not exist is made, under a new id, unless it must exist.

        With fewer than `free_bytes` free it has no room for new streams; `any_file_system` allows kinds of file systems that
        are not known to be good. Raises JournalRefused, with the way out, if the journal must not be served from.
        """
        ...

    def read(self, *, at_one_moment: bool = ...) -> AbstractContextManager[Reading]:
        """Read the journal as an operator does.

        All answers are of one moment if that is asked for, which makes the log of a server at work grow meanwhile. Raises
        JournalRefused, also for damage that is met while the context lasts.
        """
        ...

    def backup(self, to: Path) -> Place:
        """Copy the journal, at work or not, to a new file: an exact prefix, verified whole. Returns where it ends.

        Raises JournalRefused if there is no journal, the target exists, or the copy does not verify.
        """
        ...

    def restore(
        self, source: Path | None, unfinished_in: Fold, *, any_file_system: bool = ..., disk: Disk = ...
    ) -> tuple[str, Place]:
        """Put a backup in the journal's place, or accept what is there, under a new id. Returns the id and where it ends.

        Raises JournalRefused if a server has the journal open, or if what is to be served from does not verify.
        """
        ...

    def migrate(self, *, new_id: Callable[[], str] = ...) -> str:
        """Make what the servers expect to find, or bring it up to date. Returns a line that says what was done.

        Raises JournalRefused if an older server is at work, or if it cannot be done.
        """
        ...

    def receive(self, journal_id: str, *, restored: bool, home: str) -> AbstractContextManager[Copy]:
        """Take a place without records, or one that holds a copy of the same journal, to copy a journal there from `home`.

        From now on no server opens it. Raises JournalRefused if a server is at work there, or if it holds anything else.
        """
        ...

    def leave(self, home: str, head: Place) -> None:
        """Note that the journal, which ends at a place, is served from `home` from now on.

        Raises JournalRefused if a server is at work here, if the journal goes on after that place, or if it was left for
        another one.
        """
        ...
