"""The journal's tables as a node of a simulated PostgreSQL holds them, and the changes that its log is made of.

It is `command_service/journal/postgres/schema.py`, and what the statements do to it, in few lines.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from command_service.journal import START
from command_service.journal.records import Row, Verifiable
from command_service.journal.store import Head


@dataclass(slots=True)
class Tables:
    """What a node shows to those who read."""

    head: Head = Head(START, 0)
    rows: dict[int, Row] = field(default_factory=dict)
    """By position, in the order in which they became visible."""
    streams: dict[bytes, list[Row]] = field(default_factory=dict)
    unfinished: dict[bytes, str | None] = field(default_factory=dict)
    servers: dict[str, float] = field(default_factory=dict)
    """Until when each is known to be at work."""

    def between(self, position: int, until: int) -> list[Row]:
        """The records after a position, up to another one, in order."""
        return [self.rows[at] for at in range(position + 1, until + 1) if at in self.rows]

    def stream(self, key: bytes) -> list[Verifiable]:
        """A stream's records, oldest first, each with the chain before it."""
        return [self._verifiable(row) for row in sorted(self.streams.get(key, ()), key=lambda row: row[2])]

    def at(self, position: int) -> Verifiable | None:
        """One record, with the chain before it."""
        row = self.rows.get(position)
        return None if row is None else self._verifiable(row)

    def _verifiable(self, row: Row) -> Verifiable:
        before = self.rows.get(row[0] - 1)
        return (*row, before[4] if before else None)

    def is_at_work(self, server: str | None, now: float) -> bool:
        """Whether a server's time has not passed."""
        return server is not None and self.servers.get(server, now) > now

    def driven_by_nobody(self, now: float) -> list[bytes]:
        """The unfinished streams whose server is not at work."""
        return [key for key, server in sorted(self.unfinished.items()) if not self.is_at_work(server, now)]


class Change(Protocol):
    """What a committed transaction has done: an entry of the log."""

    def apply(self, tables: Tables) -> None:
        """Do it to a node's tables."""
        ...


@dataclass(frozen=True, slots=True)
class Inserted:
    """Records were stored, and the head moved."""

    rows: Sequence[Row]
    head: Head
    begun: Sequence[bytes]
    finished: Sequence[bytes]
    server: str

    def apply(self, tables: Tables) -> None:
        """Store the records."""
        for row in self.rows:
            tables.rows[row[0]] = row
            tables.streams.setdefault(row[1], []).append(row)
        tables.head = self.head
        for key in self.begun:
            tables.unfinished.setdefault(key, self.server)
        for key in self.finished:
            tables.unfinished.pop(key, None)

    @property
    def touched(self) -> Iterable[bytes]:
        """The streams whose rows it has locked until it ends."""
        return (*self.begun, *self.finished)


@dataclass(frozen=True, slots=True)
class AtWork:
    """A server is at work until a time of the database's clock."""

    server: str
    until: float

    def apply(self, tables: Tables) -> None:
        """Note the time."""
        tables.servers[self.server] = self.until


@dataclass(frozen=True, slots=True)
class Claimed:
    """A server drives streams."""

    server: str
    keys: Sequence[bytes]

    def apply(self, tables: Tables) -> None:
        """Note who drives them, as far as they are still unfinished."""
        tables.unfinished.update((key, self.server) for key in self.keys if key in tables.unfinished)


@dataclass(frozen=True, slots=True)
class Released:
    """A server is no longer at work."""

    server: str

    def apply(self, tables: Tables) -> None:
        """Forget it, and let go of what it drove."""
        tables.servers.pop(self.server, None)
        tables.unfinished.update((key, None) for key, server in tables.unfinished.items() if server == self.server)


@dataclass(frozen=True, slots=True)
class Nothing:
    """An entry that changes nothing, and is waited for like any other."""

    def apply(self, _tables: Tables) -> None:
        """Do nothing."""
