"""The database as a whole: which of its nodes is the primary, and connections to that one.

* A standby is never read from: what it shows is not what may still be lost, and it shows it late.
* Every node that answers is asked. Of two that take writes the one of the higher timeline is the primary: a promotion raises
  the timeline, so the other one is a former primary that has come back. One that is lower than a timeline seen before is
  refused, and so is a primary whose journal is another one, or lacks what is known to be durable. The latter is marked, so
  that no server serves from it before an operator has looked at it.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

import structlog

from chassis.backoff import Backoff
from command_service.journal import START, JournalRefused
from command_service.journal.postgres.schema import FORMAT, wrong_format
from command_service.journal.postgres.session import HeadRow, Lost, Node, Session, Undone
from command_service.journal.store import Head

log = structlog.get_logger()
T = TypeVar("T")

# A promotion takes a second or so, and each server has a handful of connections to make anew.
BACKOFF = Backoff(first_seconds=0.1, longest_seconds=1.0)
# Before the next try of something that lost its connection: the primary may be gone, or close one connection only.
AGAIN_SECONDS = 0.02
# Of a node that does not answer, while another one does.
ANSWER_SECONDS = 2.0
# With `off` and `local` a commit is not waited for, with `remote_write` the standby's machine may still lose it
# (postgresql.org/docs/current/runtime-config-wal.html#GUC-SYNCHRONOUS-COMMIT).
SAFE_COMMITS = ("on", "remote_apply")


class _Missing(JournalRefused):
    """The primary lacks records that were acknowledged. A server that is started anew could not know it."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. The database was restored to an earlier time, or a standby was promoted that did not have all: run "
            "restore, which makes a new journal of it; the bank is asked what it knows"
        )


class _Answer(NamedTuple):
    """A node that takes writes."""

    node: Node
    session: Session
    timeline: int


class Cluster:
    """The nodes of one database, and what is known of it: it never goes back behind that."""

    def __init__(self, nodes: Sequence[Node], chance: random.Random) -> None:
        self._nodes = nodes
        self._chance = chance
        self.timeline = 0
        """The highest one seen."""
        self.journal_id = ""
        """Empty until the first connection."""
        self.durable = Head(START, 0)
        """The newest head that is known to be durable."""
        self.refused: JournalRefused | None = None
        """Why the journal must no longer be served from."""
        self.trouble = ""
        """Why something has to be tried again, as of late."""
        self._told: set[str] = set()
        self._sessions: dict[Session, int] = {}
        """Those in use or kept, each with its timeline."""

    # ------------------------------------------------------------ connections
    async def connect(self) -> Session:
        """Connect to the primary, once. Raises Lost, and JournalRefused if the journal there must not be served from."""
        answers, errors = await self._ask_all()
        answers.sort(key=lambda answer: answer.timeline)
        primary = answers.pop() if answers else None
        for former in answers:
            self._tell_once(f"{former.node.name} takes writes on timeline {former.timeline}, and is not the primary")
            former.session.end()
        if primary is None:
            # One that has served before is waited for, whatever is amiss with it now.
            refused = [error for error in errors if isinstance(error, JournalRefused)]
            if refused and not self.journal_id:
                raise refused[0]
            raise Lost("; ".join(map(str, errors)) or "no node takes writes")
        if primary.timeline < self.timeline:
            primary.session.end()
            self._tell_once(
                f"{primary.node.name} is on timeline {primary.timeline}, and {self.timeline} was seen before"
            )
            raise Lost(f"{primary.node.name} is a former primary")
        self._see(primary.timeline)
        self._sessions[primary.session] = primary.timeline  # from now on it is cut if a newer primary is seen
        try:
            await self._examine(primary)
        except BaseException:
            self.let_go(primary.session)
            raise
        return primary.session

    async def _ask_all(self) -> tuple[list[_Answer], list[BaseException]]:
        """Connect to all nodes at once; return those that take writes, and what is amiss with the others."""
        asking = [asyncio.ensure_future(self._ask(node)) for node in self._nodes]
        unused = set(asking)
        try:
            _, unused = await asyncio.wait(asking, timeout=ANSWER_SECONDS)
        finally:
            for each in unused:  # all of them if we are cancelled
                each.add_done_callback(_end_late)
                each.cancel()
        answers: list[_Answer] = []
        errors: list[BaseException] = []
        for node, each in zip(self._nodes, asking, strict=True):
            if not each.done() or each.cancelled():
                errors.append(Lost(f"{node.name} does not answer"))
            elif (error := each.exception()) is not None:
                errors.append(error)
            elif (answer := each.result()) is not None:
                answers.append(answer)
            else:
                errors.append(Lost(f"{node.name} is a standby"))
        return answers, errors

    async def _ask(self, node: Node) -> _Answer | None:
        session = await node.connect()
        try:
            standing = await session.standing()
        except BaseException:
            session.end()
            raise
        if standing.is_standby:
            session.end()
            return None
        return _Answer(node, session, standing.timeline)

    async def _examine(self, primary: _Answer) -> None:
        """See that the journal is the one that is known, and has all of it that is known to be durable."""
        durable = self.durable
        found, known = await primary.session.head(), durable.place
        try:
            self.check(found, durable)
            if 0 < known.position < found.head.place.position:
                there = await primary.session.at(known.position)
                if there is None or there[4] != known.chain:
                    raise _Missing(f"there is another record at position {known.position} than was acknowledged")
        except JournalRefused as refused:
            self.refused = refused
            if isinstance(refused, _Missing):
                with contextlib.suppress(Lost, Undone):
                    await primary.session.condemn(f"nowhere: {refused}")
            raise

    def check(self, found: HeadRow, durable: Head) -> None:
        """See that a head goes on from what was known to be durable before it was read, and that commits are safe there.

        Raises JournalRefused.
        """
        place, known = found.head.place, durable.place
        if found.format != FORMAT:
            raise JournalRefused(wrong_format(found.format))
        if self.journal_id and found.journal_id != self.journal_id:
            raise JournalRefused(
                f"the database holds the journal {found.journal_id} now, and {self.journal_id} was served"
            )
        if place.position < known.position or (place.position == known.position and place.chain != known.chain):
            raise _Missing(f"the journal ends at position {place.position}, and {known.position} were acknowledged")
        if found.synchronous_commit not in SAFE_COMMITS:
            raise JournalRefused(
                f"synchronous_commit is {found.synchronous_commit}: an acknowledged charge could be lost. Set it to on"
            )
        self.journal_id = found.journal_id

    def _see(self, timeline: int) -> None:
        """Note a timeline. Connections to nodes of a lower one are cut: they lead to a former primary."""
        if timeline > self.timeline:
            self.timeline = timeline
            for session in [session for session, its in self._sessions.items() if its < timeline]:
                self.let_go(session)

    def let_go(self, session: Session) -> None:
        """End a connection."""
        self._sessions.pop(session, None)
        session.end()

    async def session(self) -> Session:
        """Connect to the primary, however long it takes. Raises JournalRefused."""
        failures = 0
        while True:
            try:
                found = await self.connect()
            except Lost as lost:
                failures += 1
                self.trouble = str(lost)
                self._tell_once(self.trouble)
                await asyncio.sleep(BACKOFF.seconds(failures, self._chance))
            else:
                self._told.clear()
                return found

    async def survey(self) -> None:
        """Ask whether there is a newer primary: a node that hangs keeps its connections, and says nothing."""
        answers, _ = await self._ask_all()
        for answer in answers:
            answer.session.end()
            self._see(answer.timeline)

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("the journal's database", why=text)


class Sessions:
    """Connections to the primary, made at need and used by one call at a time."""

    def __init__(self, cluster: Cluster, most: int) -> None:
        self._cluster = cluster
        self._room = asyncio.Semaphore(most)
        self._idle: list[Session] = []
        self._busy: set[Session] = set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Session]:
        """Lend a connection; waits until there is one. It is kept only if the work with it ends well. Raises JournalRefused."""
        async with self._room:
            session = self._idle.pop() if self._idle else await self._cluster.session()
            self._busy.add(session)
            try:
                yield session
            except BaseException:
                self._cluster.let_go(session)
                raise
            else:
                self._idle.append(session)
            finally:
                self._busy.discard(session)

    async def ask(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Have a connection do something that may be done twice, as often as it takes. Raises JournalRefused and Undone."""
        while True:
            try:
                async with self.one() as session:
                    return await work(session)
            except Lost as lost:
                self._cluster.trouble = str(lost)
                await asyncio.sleep(AGAIN_SECONDS)

    def close(self) -> None:
        """Cut all connections."""
        for session in [*self._idle, *self._busy]:
            self._cluster.let_go(session)
        self._idle.clear()


def _end_late(asking: "asyncio.Task[_Answer | None]") -> None:
    """A node that answers too late, or when nobody waits any more, is not used."""
    if not asking.cancelled() and asking.exception() is None and (answer := asking.result()) is not None:
        answer.session.end()
