"""One node of a simulated PostgreSQL: its log, its tables, the head's lock, and how it does.

What is in the log is on its disk. A commit writes its entry, waits for the standby, and only then are its changes seen, as in
PostgreSQL. A node that dies loses what is not in its log; once it is up again it shows all that is, whether or not the standby
has it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from command_service.journal.postgres.session import Undone
from prove.simulation.stage import Stage
from prove.simulation.tables import Change, Inserted, Tables

LOCK_SECONDS = 5.0


class Connected(Protocol):
    """A session, as its node sees it."""

    def hint(self) -> None:
        """Records were stored."""
        ...

    def vanish(self) -> None:
        """The node is dead."""
        ...

    def locks(self) -> Iterable[bytes]:
        """The streams whose rows it has locked."""
        ...


class HeadLock:
    """The lock of the head's row, given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._holder: object = None
        self._queue: deque[tuple[object, asyncio.Future[None]]] = deque()

    async def take(self, session: object) -> None:
        """Wait for the lock. Raises Undone after LOCK_SECONDS."""
        if self._holder is None:
            self._holder = session
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((session, turn))
        await asyncio.wait([turn], timeout=LOCK_SECONDS)
        if not turn.done():
            turn.cancel()
            raise Undone("the lock was not to be had in time")

    def give_back(self, session: object) -> None:
        """Give it to the next one, if this session has it."""
        if self._holder is not session:
            return
        self._holder = None
        while self._queue and self._holder is None:
            next_one, turn = self._queue.popleft()
            if not turn.done():
                self._holder = next_one
                turn.set_result(None)


class Machine:
    """A node."""

    def __init__(self, name: str, stage: Stage, written: Callable[["Machine"], None]) -> None:
        """`written` is told of each entry that is written to the log."""
        self.name = name
        self.is_up = True
        self.is_standby = False
        self.waits_for_standby = True
        """Whether commits wait for a standby: by its settings, whether or not it has one."""
        self.timeline = 1
        self.clock_offset = 0.0
        self.log: list[Change] = []
        self.tables = Tables()
        self.sessions: dict[Connected, None] = {}
        self.lock = HeadLock()
        self.warns: Callable[[], bool] = lambda: False
        """Whether a wait for the standby is cancelled now."""
        self._stage = stage
        self._written = written
        self._hidden: dict[int, Change] = {}
        """What is in the log and not shown yet."""
        self._waits: dict[asyncio.Future[None], int] = {}
        self._confirmed = 0
        """How much of the log the standby has said to hold."""
        self._resumed: asyncio.Future[None] | None = None

    def now(self) -> float:
        """What its clock says: it may jump."""
        return self._stage.loop.time() + self.clock_offset

    def locked(self) -> set[bytes]:
        """The streams whose rows are locked."""
        return {key for session in self.sessions for key in session.locks()}

    # ------------------------------------------------------------ commits
    async def commit(self, change: Change) -> bool:
        """Write a change, wait for the standby, and show it. False: the wait was cancelled."""
        place = self._write(change)
        is_durable = await self._standby_has(place)
        self._show(place)
        return is_durable

    def commit_here(self, change: Change) -> None:
        """Commit a change without a wait for the standby."""
        self._show(self._write(change))

    def _write(self, change: Change) -> int:
        self.log.append(change)
        self._hidden[len(self.log)] = change
        self._written(self)
        return len(self.log)

    def _show(self, place: int) -> None:
        change = self._hidden.pop(place)
        change.apply(self.tables)
        if isinstance(change, Inserted):
            for session in self.sessions:
                session.hint()

    async def _standby_has(self, place: int) -> bool:
        if not self.waits_for_standby:
            return True
        if self.warns():
            return False
        if self._confirmed < place:
            had: asyncio.Future[None] = self._stage.loop.create_future()
            self._waits[had] = place
            try:
                await had
            finally:
                self._waits.pop(had, None)  # a kill has cleared them
        return True

    # ------------------------------------------------------------ replication
    def note_confirmed(self, place: int) -> None:
        """The standby holds the log up to a place."""
        self._confirmed = max(self._confirmed, place)
        for had, wanted in list(self._waits.items()):
            if wanted <= place and not had.done():
                had.set_result(None)

    def receive(self, changes: list[Change]) -> None:
        """Take over what the primary has written."""
        for change in changes:
            self.log.append(change)
            change.apply(self.tables)

    def promote(self, timeline: int, *, waits_for_standby: bool) -> None:
        """Be the primary from now on, on a new timeline."""
        self.is_standby, self.timeline, self.waits_for_standby = False, timeline, waits_for_standby
        self._confirmed = 0

    def become_standby_of(self, primary: "Machine") -> None:
        """Forget all, and begin as a copy of the primary's log."""
        self.kill()
        self._hidden.clear()
        self.log, self.tables = [], Tables()
        self.is_up, self.is_standby = True, True
        self.receive(list(primary.log))

    # ------------------------------------------------------------ how it does
    @property
    def is_paused(self) -> bool:
        """Whether it stands still, connections and all."""
        return self._resumed is not None

    async def awake(self) -> None:
        """Return when it does not stand still."""
        while self._resumed is not None:
            await asyncio.wait([self._resumed])

    def pause(self) -> None:
        """Stand still."""
        self._resumed = self._resumed or self._stage.loop.create_future()

    def resume(self) -> None:
        """Go on."""
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            resumed.set_result(None)

    def kill(self) -> None:
        """End as `kill -9` does it: all connections are cut, and what is not in the log is undone."""
        self.is_up = False
        for session in list(self.sessions):
            session.vanish()
        self.resume()
        self.sessions.clear()
        self._waits.clear()
        self.lock = HeadLock()

    def restart(self) -> None:
        """Come back after a kill: all that is in the log is shown now."""
        for place in sorted(self._hidden):
            self._show(place)
        self.is_up = True
