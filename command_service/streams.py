"""Reads a charge from its stream and appends to it: load, decide, append, and again if another writer was faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from command_service.charge import Absent, Message, State, decide, evolve, is_at_rest
from command_service.codec import decode, encode
from command_service.failures import NotNow
from command_service.journal import Journal, VersionConflict
from command_service.values import Event, Recorded

# A stream has at most two writers at a time, a call and the loop, and each conflict means that the other has stored
# something. More conflicts in a row than this are a fault of ours.
DECISIONS = 5

ABSENT = Absent()


class KeepsMoving(Exception):
    """Another writer appended to a stream before each of our attempts. It is a fault of the program."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A charge's state at a version of its stream. Version 0: the journal holds no such charge, or was not read yet."""

    charge_id: str
    state: State = ABSENT
    version: int = 0


class Told(NamedTuple):
    """A charge after a message, and whether the message stored anything."""

    snapshot: Snapshot
    has_stored: bool


class Streams:
    """The streams of a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def load(self, charge_id: str) -> Snapshot:
        """Read a charge. Raises Unreadable."""
        state: State = ABSENT
        records = await self._journal.read(charge_id)
        for record in records:
            state = evolve(state, Recorded(decode(record.event), record.position, record.recorded_at))
        return Snapshot(charge_id, state, len(records))

    async def tell(self, snapshot: Snapshot, message: Message, *, unless: NotNow | None = None) -> Told:
        """Decide about a message and append the events; after a conflict read the charge and decide again.

        Raises `unless`, if given, instead of appending events; the errors of `decide`; NotStored, Unreadable and KeepsMoving.
        """
        for _ in range(DECISIONS):
            events = decide(snapshot.state, message)
            if not events:
                return Told(snapshot, has_stored=False)
            if unless is not None:
                raise unless
            appended = await self._append(snapshot, events)
            if appended is not None:
                return Told(appended, has_stored=True)
            snapshot = await self.load(snapshot.charge_id)
        raise KeepsMoving(snapshot.charge_id)

    async def _append(self, snapshot: Snapshot, events: Sequence[Event]) -> Snapshot | None:
        """Append, or return None if another writer has appended since the snapshot."""
        state = snapshot.state
        for event in events:  # before anything is stored: an event that cannot follow would make the charge unreadable
            state = evolve(state, Recorded(event, 0, 0))
        records = await self._journal.append(
            snapshot.charge_id, snapshot.version, list(map(encode, events)), finished=is_at_rest(state)
        )
        if isinstance(records, VersionConflict):
            return None
        state = snapshot.state
        for event, record in zip(events, records, strict=True):
            state = evolve(state, Recorded(event, record.position, record.recorded_at))
        return Snapshot(snapshot.charge_id, state, snapshot.version + len(records))
