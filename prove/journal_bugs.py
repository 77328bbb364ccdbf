"""Bugs of the journal, each a wrapper of a port: of a Journal, of the Store beneath it, or of the Disk beneath that.

A wrapper passes on what it does not spoil. Bugs that live in the journal itself stand in front of it; bugs of group commit
and of the store stand between the two; bugs of what a start believes are done to the files before the start looks at them.
"""

import asyncio
import contextlib
import dataclasses
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from chassis.disk import LOCAL_DISK, Disk
from command_service.journal import (
    START,
    Appended,
    Journal,
    JournalBusy,
    JournalFull,
    JournalRefused,
    NotStored,
    Place,
    Record,
)
from command_service.journal.commits import RHYTHM, GroupCommit, Rhythm
from command_service.journal.sqlite import anchor
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import Append, Committed, Head, Store
from rig.around import Around

if TYPE_CHECKING:  # the whole product, of which whoever opens a journal alone needs a part only
    from command_service.parts import Parts

Now = Callable[[], int]


class OverJournal(Around[Journal]):
    """A journal that is passed through."""

    def __init__(self, journal: Journal, now: Now) -> None:
        super().__init__(journal)
        self.now = now

    def pretended(self, charge_id: str, version: int, events: Sequence[bytes]) -> list[Record]:
        """The records that an append would have given, had it been stored alone and at once."""
        first = self.inner.head.position + 1
        return [
            Record(first + n, charge_id, version + 1 + n, self.now(), bytes(32), event)
            for n, event in enumerate(events)
        ]

    def in_background(self, work: Any) -> None:
        """Do work that nobody waits for, and whose end nobody hears of."""
        asyncio.ensure_future(work).add_done_callback(lambda done: done.cancelled() or done.exception())


class RepliesBeforeTheCommit(OverJournal):
    """An append is acknowledged before it is stored."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        self.in_background(self.inner.append(charge_id, version, events, finished=finished))
        return self.pretended(charge_id, version, events)


class TellsAnOutcomeBeforeItIsStored(OverJournal):
    """The last append of a stream is acknowledged at once, and stored a moment later."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        if not finished or not version:
            return await self.inner.append(charge_id, version, events, finished=finished)

        async def later() -> None:
            await asyncio.sleep(0.05)
            await self.inner.append(charge_id, version, events, finished=finished)

        self.in_background(later())
        return self.pretended(charge_id, version, events)


class FinishesTooEarly(OverJournal):
    """A stream counts as finished after its second append, whatever that was."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        return await self.inner.append(charge_id, version, events, finished=finished or version > 0)


class TakesForStored(OverJournal):
    """A certain "no" of a kind is taken for stored."""

    kind: type[NotStored]

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        try:
            return await self.inner.append(charge_id, version, events, finished=finished)
        except self.kind:
            return self.pretended(charge_id, version, events)


class TakesFullForStored(TakesForStored):
    """A full disk is taken for stored."""

    kind = JournalFull


class TakesBusyForStored(TakesForStored):
    """A busy file is taken for stored."""

    kind = JournalBusy


class ForgetsThatItWasRestored(OverJournal):
    """A restored journal is taken for any other."""

    restored = False


class OverStore(Around[Store]):
    """A store that is passed through."""

    def __init__(self, store: Store, now: Now) -> None:
        super().__init__(store)
        self.now = now


class RetriesAfterAnError(OverStore):
    """A commit whose fate is unknown is done again, in place."""

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        try:
            return await self.inner.commit(batch, head)
        except NotStored:
            raise
        except Exception:
            found = await self.inner.head()
            return await self.inner.commit(batch, Head(found.place, head.recorded_at))


class TakesAnErrorForNo(OverStore):
    """A commit whose fate is unknown is said to have stored nothing."""

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        try:
            return await self.inner.commit(batch, head)
        except Exception:
            raise JournalFull from None


class TakesNoForUnknown(OverStore):
    """A full disk ends the process, as a commit does whose fate is unknown."""

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        try:
            return await self.inner.commit(batch, head)
        except NotStored as error:
            raise OSError("a full disk is taken for a broken one") from error


class MixesUpOutcomes(OverStore):
    """The outcomes of a batch are given to each other's callers."""

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        outcomes, head = await self.inner.commit(batch, head)
        return Committed(outcomes[::-1], head)


class FollowsTheClock(OverStore):
    """Records get the clock's time, also if it has gone back."""

    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        return await self.inner.commit(batch, Head(head.place, max(0, self.now())))


class DoesNotMissItsFiles(OverStore):
    """Files that were taken away or replaced are not missed."""

    async def look(self, head: Place) -> None:
        with contextlib.suppress(JournalRefused):
            await self.inner.look(head)


class TakesAQuotaForADefect(Around[Disk]):
    """A file that cannot grow is said to have room, so that a failed write counts as a broken disk."""

    def has_room(self, _file: Path) -> bool:
        return True


def have_the_anchor_agree(path: Path) -> None:
    """Write an anchor that names what a journal's file holds now: what a start does that looks at no anchor."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection,
    ):
        (journal_id,) = connection.execute("SELECT id FROM journal").fetchone()
        row = connection.execute("SELECT position, chain FROM record ORDER BY position DESC LIMIT 1").fetchone()
        anchor.write(path, anchor.Anchor(journal_id, Place(*row) if row else START))


# ---------------------------------------------------------------- the bugs by their names
@dataclasses.dataclass(frozen=True, slots=True)
class Bug:
    """What a bug is planted into: the wrapper of each port that it wraps, and what it does before a start."""

    journal: Callable[[Journal, Now], Any] | None = None
    store: Callable[[Store, Now], Any] | None = None
    disk: Callable[[Disk], Any] | None = None
    before_start: Callable[[Path], None] | None = None
    node: Callable[[Any], Any] | None = None
    """Of a database."""


A_FULL_DISK_ENDS_IT = "a full disk ends the server"
A_QUOTA_ENDS_IT = "a quota is no full disk"
RESTORED_IS_FORGOTTEN = "a restored journal is taken for any other"
FILES_ARE_NOT_WATCHED = "files that were taken away are not missed"
NO_ANCHOR = "a start does not look at the anchor"

# Each is found by the simulation.
SIMULATED = {
    "append is retried after a commit error": Bug(store=RetriesAfterAnError),
    "commit error is taken for no": Bug(store=TakesAnErrorForNo),
    "reply before the commit": Bug(journal=RepliesBeforeTheCommit),
    "an outcome is told before it is stored": Bug(journal=TellsAnOutcomeBeforeItIsStored),
    "finished too early": Bug(journal=FinishesTooEarly),
    "a batchs answers are mixed up": Bug(store=MixesUpOutcomes),
    "a full disk is taken for stored": Bug(journal=TakesFullForStored),
    "a busy file is taken for stored": Bug(journal=TakesBusyForStored),
    "recorded times follow the clock": Bug(store=FollowsTheClock),
}
# The simulation cannot tell these from what is right.
OF_REAL_FILES = {
    A_FULL_DISK_ENDS_IT: Bug(store=TakesNoForUnknown),
    A_QUOTA_ENDS_IT: Bug(disk=TakesAQuotaForADefect),
    RESTORED_IS_FORGOTTEN: Bug(journal=ForgetsThatItWasRestored),
    FILES_ARE_NOT_WATCHED: Bug(store=DoesNotMissItsFiles),
    NO_ANCHOR: Bug(before_start=have_the_anchor_agree),
}
SOUND = Bug()
NAMES = frozenset({*SIMULATED, *OF_REAL_FILES})


def named(name: str) -> Bug:
    """Look up a bug of the journal; without a name it is none."""
    return {"": SOUND, **SIMULATED, **OF_REAL_FILES}[name]


def into(parts: "type[Parts]", bug: Bug) -> "type[Parts]":
    """Plant a bug into the parts of a server: it wraps what they give."""

    class Bugged(parts):  # type: ignore[valid-type, misc]  # a class that is given
        def disk(self) -> Any:
            given = super().disk()
            return bug.disk(given) if bug.disk else given

        def nodes(self) -> Any:
            given = super().nodes()
            return [bug.node(node) for node in given] if bug.node else given

        async def store(self) -> Any:
            if bug.before_start is not None:
                bug.before_start(Path(str(self.settings.journal)))
            given = await super().store()
            return bug.store(given, self.now) if bug.store else given

        async def journal(self) -> Any:
            given = await super().journal()
            return bug.journal(given, self.now) if bug.journal else given

    return Bugged


async def open_journal(
    path: Path,
    *,
    now: Now,
    end_process: Callable[[], NoReturn],
    rhythm: Rhythm = RHYTHM,
    disk: Disk = LOCAL_DISK,
    bug: Bug = SOUND,
) -> Journal:
    """Open the journal in a file as a server does, with a bug. Raises JournalRefused."""
    if bug.before_start is not None:
        bug.before_start(path)
    store: Store = await SqliteFile(path).open(disk=bug.disk(disk) if bug.disk else disk)
    journal: Journal = await GroupCommit.open(
        bug.store(store, now) if bug.store else store, now=now, end_process=end_process, rhythm=rhythm
    )
    return bug.journal(journal, now) if bug.journal else journal
