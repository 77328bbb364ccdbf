"""The seam to PostgreSQL: each method is one statement or one short transaction. What they are for is told in `store.py`.

The real one is in `statements.py`. The simulation has one of its own, which loses answers, fails over and pauses.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from command_service.journal.records import Row, Verifiable
from command_service.journal.store import Head


class Lost(Exception):
    """The connection is lost, or of no use any more. What was asked for may have been done or not."""


class Undone(Exception):
    """PostgreSQL did not do it, and what the transaction had done so far is undone or will be. It is certain."""

    def __init__(self, why: str, *, is_full: bool = False) -> None:
        """`is_full`: there was no room."""
        super().__init__(why)
        self.is_full = is_full


class Standing(NamedTuple):
    """What a node says of itself when it is connected to."""

    is_standby: bool
    timeline: int
    """Rises with each promotion. 0 on a standby, where it is not asked for."""


class HeadRow(NamedTuple):
    """The row of the head, and how safe a commit of this session is."""

    head: Head
    journal_id: str
    restored: bool
    format: int
    synchronous_commit: str
    """The setting of this name, as it holds in the transaction."""
    has_standby: bool
    """Whether commits wait for a standby. If not, what can be read is durable already."""


class Session(Protocol):
    """A connection to one node. One call at a time. Each raises Lost, and those that write raise Undone.

    A call that is cancelled ends the session: PostgreSQL would take a cancelled statement's wait for the standby for done.
    """

    async def standing(self) -> Standing:
        """Ask the node what it is."""
        ...

    # ------------------------------------------------------------ writing: begin, insert, then commit or rollback
    async def begin(self, keys: Sequence[bytes]) -> tuple[HeadRow, Mapping[bytes, int]]:
        """Begin a transaction and lock the head until its end. Undone: somebody else holds it for too long.

        Returns the head, and the newest versions of streams as they are under the lock; 0 is that of one without records.
        """
        ...

    async def insert(
        self, rows: Sequence[Row], head: Head, begun: Sequence[bytes], finished: Sequence[bytes], server: str
    ) -> Sequence[bytes]:
        """Store rows, move the head, and note which streams are unfinished now and which are finished.

        A stream that was not unfinished before is driven by `server` from now on: these are returned. A stream is in one of
        `begun` and `finished`. Listeners are told.
        """
        ...

    async def commit(self) -> bool:
        """Commit; return whether the commit is durable. False: it is stored here, perhaps not on a standby.

        Any error is Lost: the commit may be stored or not.
        """
        ...

    async def rollback(self) -> None:
        """Undo the transaction."""
        ...

    async def confirm(self) -> bool:
        """Commit a transaction that changes nothing. True: all that was committed before it is durable, whoever did it."""
        ...

    async def condemn(self, why: str) -> None:
        """Note that no server is to serve from this journal, until it is restored."""
        ...

    # ------------------------------------------------------------ reading: what is committed, perhaps not durable yet
    async def head(self) -> HeadRow:
        """Read the head without its lock."""
        ...

    async def stream(self, key: bytes) -> Sequence[Verifiable]:
        """Read a stream's records, oldest first, each with the chain before it."""
        ...

    async def after(self, position: int, until: int) -> Sequence[Row]:
        """Read the records after a position, up to another one, in order; no more than RECORDS_A_READ."""
        ...

    async def at(self, position: int) -> Verifiable | None:
        """Read one record, with the chain before it."""
        ...

    async def streams_between(self, position: int, until: int) -> Sequence[bytes]:
        """List the streams of the records after a position, up to another one."""
        ...

    async def unfinished(self) -> Sequence[bytes]:
        """List the streams that are not finished."""
        ...

    # ------------------------------------------------------------ leases: the times are the database's
    async def register(self, server: str, name: str, seconds: float) -> HeadRow:
        """Note a server as at work for some seconds; return the head that it found. It need not be durable."""
        ...

    async def renew(self, server: str, seconds: float) -> bool:
        """Note that a server is at work for some seconds more. False: its time had passed, or it is not known any more."""
        ...

    async def claim(self, server: str, most: int) -> Sequence[bytes]:
        """Have a server drive unfinished streams whose own server is not at work, at most so many; return them.

        Streams that another server is claiming at this moment are passed over.
        """
        ...

    async def driven(self, server: str, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Tell which of some streams are unfinished and a server's to drive."""
        ...

    async def release(self, server: str) -> None:
        """Note that a server is no longer at work, and drives nothing."""
        ...

    # ------------------------------------------------------------ the connection
    async def listen(self, server: str) -> None:
        """Have `news` return when another server than this one stores records. It is a hint, which may fail to come."""
        ...

    async def news(self, seconds: float) -> None:
        """Return when others have stored records since the last call, or after some seconds."""
        ...

    def end(self) -> None:
        """Cut the connection at once. A call under way raises Lost."""
        ...


class Node(Protocol):
    """One node of the database: a host and its port."""

    @property
    def name(self) -> str:
        """As an operator knows it."""
        ...

    async def connect(self) -> Session:
        """Open a connection. Raises Lost if that is not possible now, and JournalRefused if it never will be."""
        ...
