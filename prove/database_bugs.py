"""Bugs of the journal in PostgreSQL: wrappers of its nodes' sessions, and of the store over them.

They are found by stories in which several servers share a database.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from command_service.journal import JournalFull
from command_service.journal.postgres.session import HeadRow, Lost, Node, Session, Standing
from command_service.journal.records import Row
from command_service.journal.store import Append, Committed, Head
from prove.journal_bugs import Bug, Now, OverStore
from rig.around import Around


class OverSession(Around[Session]):
    """A session that is passed through. `machine` is what a simulated session is connected to."""

    @property
    def machine(self) -> Any:
        """The node's own side, which a bug of the database itself needs."""
        return self.inner._machine  # type: ignore[attr-defined]  # of a simulated session


class OverNode(Around[Node]):
    """A node whose sessions are wrapped."""

    def __init__(self, node: Node, wrap: Callable[[Session], Any]) -> None:
        super().__init__(node)
        self._wrap = wrap

    async def connect(self) -> Any:
        """Connect, with the bug."""
        return self._wrap(await self.inner.connect())


class NumbersFromASequence(OverSession):
    """Positions are given out when records are inserted; the lock is not kept until they are visible."""

    async def begin(self, keys: Sequence[bytes]) -> tuple[HeadRow, Mapping[bytes, int]]:
        """Begin after the newest number that was given out, whatever came of it."""
        found, versions = await self.inner.begin(keys)
        given: Head = getattr(self.machine, "given", found.head)
        return found._replace(head=max(found.head, given, key=lambda head: head.place.position)), versions

    async def insert(self, rows: Sequence[Row], head: Head, *others: Any) -> Sequence[bytes]:
        """Insert, and let the next one begin."""
        newly = await self.inner.insert(rows, head, *others)
        self.machine.given = head
        self.machine.lock.give_back(self.inner)
        return newly


class TakesLostForStored(OverSession):
    """A commit whose answer is lost is told as stored."""

    async def commit(self) -> bool:
        """Commit."""
        try:
            return await self.inner.commit()
        except Lost:
            return True


class NotLookedUp(Exception):
    """A commit's answer is lost, and nobody looks what became of it."""


class LeavesItUnknown(OverSession):
    """A commit whose answer is lost is not looked up."""

    async def commit(self) -> bool:
        """Commit."""
        try:
            return await self.inner.commit()
        except Lost as lost:
            raise NotLookedUp from lost


class TellsNo(OverStore):
    """What became of a commit is unknown, and its callers are told that nothing was stored."""

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        """Store a batch."""
        try:
            return await self.inner.commit(batch, head)
        except NotLookedUp:
            raise JournalFull from None


class AppendsAgain(OverStore):
    """What became of a commit is unknown, and it is done again, after whatever the streams hold by then."""

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        """Store a batch."""
        try:
            return await self.inner.commit(batch, head)
        except NotLookedUp:
            found = [(it, len(await self.inner.read_stream(it.charge_id))) for it in batch]
            return await self.commit([Append(it.charge_id, n, it.events, it.finished) for it, n in found], head)


class ConfirmsNothing(OverSession):
    """What can be read is taken for durable."""

    async def confirm(self) -> bool:
        """Say yes."""
        return True


class OverhearsWarnings(OverSession):
    """A commit is taken for durable although PostgreSQL has warned that it may not be."""

    async def commit(self) -> bool:
        """Commit."""
        await self.inner.commit()
        return True


class SeesNoTimelines(OverSession):
    """A former primary is as good as the primary."""

    async def standing(self) -> Standing:
        """Say that there was no promotion ever."""
        found = await self.inner.standing()
        return found if found.is_standby else Standing(is_standby=False, timeline=1)


class WithoutLeases(OverStore):
    """Every server drives every charge. It is no bug: safety never rests on leases."""

    def drives(self, _charge_id: str) -> bool:
        """Say yes."""
        return True


def _in_sessions(wrap: Callable[[Session], Any], store: Callable[[Any, Now], Any] | None = None) -> Bug:
    return Bug(node=lambda node: OverNode(node, wrap), store=store)


BUGS = {
    "positions from a sequence": _in_sessions(NumbersFromASequence),
    "a lost commit is told as stored": _in_sessions(TakesLostForStored),
    "a lost commit is told as not stored": _in_sessions(LeavesItUnknown, TellsNo),
    "a lost commit is done again": _in_sessions(LeavesItUnknown, AppendsAgain),
    "what can be read is shown": _in_sessions(ConfirmsNothing),
    "a warning on commit is not heard": _in_sessions(OverhearsWarnings),
    "a former primary is followed": _in_sessions(SeesNoTimelines),
}
