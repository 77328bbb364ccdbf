"""Reads a charge from its stream and appends to it: load, decide, append, and again if another writer was faster."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple

from command_service.charge import Absent, Message, State, decide, evolve, is_at_rest, is_of
from command_service.codec import decode, encode
from command_service.events import Recorded
from command_service.failures import CallFailed
from command_service.journal import Journal, Record, VersionConflict

# After one conflict a command finds its charge or another operation under way, and an answer is late, so that a second conflict
# in a row is rare. More of them than this are a fault of the program.
DECISIONS = 5

ABSENT = Absent()


class KeepsMoving(Exception):
    """Another writer appended to a stream before each of our attempts. It is a fault of the program."""


class Snapshot(NamedTuple):
    """A charge's state at a version of its stream. Version 0: the journal holds no such charge, or was not read yet."""

    charge_id: str
    state: State = ABSENT
    version: int = 0


class Handled(NamedTuple):
    """A charge after a message, and whether the message stored anything."""

    snapshot: Snapshot
    has_stored: bool


Reload = Callable[[str], Awaitable[Snapshot]]


class Streams:
    """The streams of a journal. It has no state of its own."""

    def __init__(self, journal: Journal, reload: Reload | None = None) -> None:
        """`reload` finds a charge again after a conflict; by default it is read."""
        self._journal = journal
        self._reload = reload or self.load

    async def load(self, charge_id: str, *, for_tenant: str | None = None) -> Snapshot:
        """Read a charge. Raises Unreadable.

        For a tenant another tenant's charge is absent: only its first event is decoded.
        """
        records = await self._journal.read(charge_id)
        state = _fold(ABSENT, _recorded(records[:1]))
        if for_tenant is not None and not is_of(state, for_tenant):
            return Snapshot(charge_id)
        return Snapshot(charge_id, _fold(state, _recorded(records[1:])), len(records))

    async def handle(self, snapshot: Snapshot, message: Message, *, refuse_with: CallFailed | None = None) -> Handled:
        """Decide about a message and append the events; after a conflict read the charge and decide again.

        `refuse_with` is raised instead of appending events: under load what is new is refused, and what is known answered.
        Raises also the errors of `decide`, NotStored, Unreadable and KeepsMoving.
        """
        for _ in range(DECISIONS):
            events = decide(snapshot.state, message)
            if not events:
                return Handled(snapshot, has_stored=False)
            if refuse_with is not None:
                raise refuse_with
            # A trial fold, whose positions and times do not matter: an event that cannot follow must never be stored.
            expected = _fold(snapshot.state, [Recorded(event, 0, 0) for event in events])
            stored = await self._journal.append(
                snapshot.charge_id, snapshot.version, list(map(encode, events)), finished=is_at_rest(expected)
            )
            if isinstance(stored, VersionConflict):
                snapshot = await self._reload(snapshot.charge_id)
                continue
            recorded = [
                Recorded(event, record.position, record.recorded_at)
                for event, record in zip(events, stored, strict=True)
            ]
            state = _fold(snapshot.state, recorded)
            return Handled(Snapshot(snapshot.charge_id, state, snapshot.version + len(stored)), has_stored=True)
        raise KeepsMoving(snapshot.charge_id)


def _recorded(records: Iterable[Record]) -> Iterator[Recorded]:
    return (Recorded(decode(record.event), record.position, record.recorded_at) for record in records)


def _fold(state: State, events: Iterable[Recorded]) -> State:
    for event in events:
        state = evolve(state, event)
    return state
