"""The store in PostgreSQL, which several servers share.

* A commit holds the lock of the head's row from before its conflict check to its end, so there is one at a time in all the
  servers: positions have no gaps, and become visible in order. A batch of many appends pays for that.
* A commit whose answer is lost is settled here. Whoever has the head's lock knows that no earlier transaction is under way: if
  our records are there, with our chain, they were stored, and if not, nothing was.
* A record can be read before it is durable: a wait for the standby that is cancelled ends in a commit. So nothing is shown that
  is not known to be durable: what our own newest commit covers, or a transaction made for that (`confirm`).
* While the primary is away, or waits for its standby, commits and reads wait; the callers' deadlines end their calls. After a
  while no new streams should be begun.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from command_service.journal import (
    GENESIS,
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    JournalRefused,
    NotAccepting,
    Place,
    Record,
)
from command_service.journal.postgres.cluster import AGAIN_SECONDS, Cluster, Sessions
from command_service.journal.postgres.following import Following
from command_service.journal.postgres.leases import Leases
from command_service.journal.postgres.plan import Plan
from command_service.journal.postgres.session import HeadRow, Lost, Node, Session, Undone
from command_service.journal.records import RECORDS_A_READ, Row, following, id_of, key_of, verified
from command_service.journal.store import Append, Committed, Head

log = structlog.get_logger()
T = TypeVar("T")

READERS = 3
# A start waits this long for a primary, and for its standby.
START_SECONDS = 30.0
# A commit takes milliseconds. After this long its callers wait in vain for now, and there may be a new primary.
AWAY_AFTER_SECONDS = 2.0
# Transactions that PostgreSQL undoes in a row, such as for a head that somebody holds for five seconds each time.
UNDONE_IN_A_ROW = 3
# Before the next try of a start, or of a read, that PostgreSQL did not do.
UNDONE_AGAIN_SECONDS = 0.5
RELEASE_SECONDS = 2.0


class PostgresStore:
    """A store in PostgreSQL. See `command_service.journal.store.Store` for what it promises."""

    made_anew = False

    def __init__(self, cluster: Cluster, *, name: str, new_id: Callable[[], str]) -> None:
        """Use `open`."""
        self.journal_id, self.restored = "", False
        self._cluster = cluster
        self._writer, self._readers = Sessions(cluster, 1), Sessions(cluster, READERS)
        self._lessor = Sessions(cluster, 1)
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._following = Following(cluster, self._is_idle)
        self._leases = Leases(self._lessor, name, new_id, self._following.tell)
        self._clock = asyncio.get_running_loop().time
        self._commit_began: float | None = None
        self._newest: Mapping[Place, Sequence[Row]] = {}
        """What our newest commit stored, by the place before it: whoever follows need not ask the database for it again."""
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls, nodes: Sequence[Node], *, name: str, new_id: Callable[[], str], chance: random.Random
    ) -> "PostgresStore":
        """Open the store for a server, known to operators by a name. Raises JournalRefused with the way out."""
        store = cls(Cluster(nodes, chance), name=name, new_id=new_id)
        try:
            async with asyncio.timeout(START_SECONDS):
                await store._begin_patiently()
        except TimeoutError:
            store._cut()
            nodes_named = ", ".join(node.name for node in nodes)
            raise JournalRefused(
                f"for {START_SECONDS:g} s no primary of the database has served at {nodes_named}, or it waits for its "
                f"standby: {store._cluster.trouble or 'nothing else is amiss'}"
            ) from None
        except Undone as undone:
            store._cut()
            raise JournalRefused(f"the database does not take what a start writes: {undone}") from undone
        except BaseException:
            store._cut()
            raise
        return store

    async def _begin_patiently(self) -> None:
        while True:
            try:
                return await self._begin()
            except Undone as undone:
                if undone.is_full:
                    raise
                self._cluster.trouble = str(undone)
                log.warning("the database did not let the server begin, and is asked again", why=str(undone))
                await asyncio.sleep(UNDONE_AGAIN_SECONDS)

    async def _begin(self) -> None:
        found = await self._leases.begin()
        self.journal_id, self.restored = found.journal_id, found.restored
        await self._writer.ask(_check_tail)
        await self._following.begin()
        if not found.has_standby:
            log.warning(
                "the journal's database has no synchronous standby: what was acknowledged is lost with its disk"
            )
        keeping = (self._following.keep(lambda: self._leases.server), self._leases.keep())
        self._tasks = [asyncio.create_task(work) for work in keeping]

    # ------------------------------------------------------------ writing
    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        """Store a batch in one transaction; see the port."""
        self._commit_began = self._clock()
        self._is_idle.clear()
        try:
            return await self._commit(batch, head.recorded_at)
        finally:
            self._commit_began = None
            self._is_idle.set()

    async def _commit(self, batch: Sequence[Append], recorded_at: int) -> Committed:
        keys = [key_of(append.charge_id) for append in batch]
        sent: Plan | None = None  # its commit was sent, and what became of it is not known
        failures = undone_in_a_row = 0
        while True:
            try:
                async with self._writer.one() as session:
                    durable = self._cluster.durable  # what comes to be known from now on may be newer than what is read
                    found, versions = await session.begin(list(dict.fromkeys(keys)))
                    self._cluster.check(found, durable)
                    if sent is not None and await sent.stands(session):
                        # Of those that it began, others may have taken over some since, or brought them to rest.
                        ours = await session.driven(self._leases.server, sent.streams(finished=False))
                        await session.rollback()
                        return await self._stored(session, sent, found, ours=ours, is_durable=False)
                    sent = None  # nothing was stored, certainly
                    plan = Plan.of(batch, keys, versions, found.head, recorded_at)
                    if not plan.rows:
                        await session.rollback()
                        return Committed(plan.outcomes, self._cluster.durable)
                    begun, finished = plan.streams(finished=False), plan.streams(finished=True)
                    ours = await session.insert(plan.rows, plan.head, begun, finished, self._leases.server)
                    sent = plan
                    is_durable = await session.commit()
                    return await self._stored(session, plan, found, ours=ours, is_durable=is_durable)
            except Lost as lost:
                log.warning("the database was lost during a commit; it is found out what became of it", why=str(lost))
            except Undone as undone:
                log.warning("the database did not commit", why=str(undone))
                undone_in_a_row += 1
                if sent is None and undone.is_full:
                    raise JournalFull from undone
                if sent is None and undone_in_a_row >= UNDONE_IN_A_ROW:
                    raise JournalBusy from undone
            failures += 1
            await asyncio.sleep(min(AGAIN_SECONDS * 2.0**failures, UNDONE_AGAIN_SECONDS))

    async def _stored(
        self, session: Session, plan: Plan, found: HeadRow, *, ours: Sequence[bytes], is_durable: bool
    ) -> Committed:
        """See that a committed plan is durable, and note what follows. `found` is the head from before it, or a later one."""
        is_later = found.head.place.position >= plan.head.place.position
        self._leases.note(ours, plan.streams(finished=True))
        while not is_durable:
            is_durable = await session.confirm()
        self._following.pass_over(found.head.place.position)
        if not is_later:
            self._newest = {found.head.place: plan.rows}
        self._following.advance(found.head if is_later else plan.head)
        return Committed(plan.outcomes, plan.head)

    async def probe(self) -> NotAccepting:
        """Find out whether a commit would find room; see the port."""
        try:
            await self._writer.ask(lambda session: session.confirm())
        except Undone as undone:
            return "full" if undone.is_full else "busy"
        return ""

    # ------------------------------------------------------------ reading
    async def head(self) -> Head:
        """Return the head, as far as it is known to be durable."""
        return self._cluster.durable

    async def read_stream(self, charge_id: str) -> Sequence[Record]:
        """Read a stream; see the port."""
        key = key_of(charge_id)
        while rows := await self._read(lambda session: session.stream(key)):
            if rows[-1][0] <= self._cluster.durable.place.position:
                break
            await self._following.until_durable(rows[-1][0])
        return [verified(row) for row in rows]

    async def read_after(self, place: Place, until: int) -> Sequence[Record]:
        """Read on from a place; see the port."""
        rows = self._newest.get(place)
        if rows is None:
            rows = await self._read(lambda session: session.after(place.position, until))
        return following(rows[: min(until - place.position, RECORDS_A_READ)], place, until)

    async def _read(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Read, as often as it takes: who cannot wait for it has a deadline."""
        while True:
            try:
                return await self._readers.ask(work)
            except Undone as undone:
                log.warning("the database did not let us read, and is asked again", why=str(undone))
                await asyncio.sleep(UNDONE_AGAIN_SECONDS)

    async def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position; see the port."""
        if not position:
            return GENESIS
        row = await self._read(lambda session: session.at(position))
        if row is None:
            raise JournalCorrupt(position)
        return verified(row).chain

    async def unfinished(self) -> Sequence[str]:
        """List the streams that are not finished, whoever drives them."""
        return [id_of(key) for key in await self._read(lambda session: session.unfinished())]

    # ------------------------------------------------------------ other servers
    def drives(self, charge_id: str) -> bool:
        """Whether this server is to bring a stream to its end; see the port."""
        return self._leases.drives(key_of(charge_id))

    async def news(self) -> Sequence[str]:
        """Return streams of which there is news; see the port."""
        return await self._following.news()

    async def head_beyond(self, position: int) -> Head:
        """Return the head as soon as it is beyond a position; see the port."""
        return await self._following.head_beyond(position)

    async def reaches(self, position: int) -> bool:
        """Whether the journal has a position by now; see the port."""
        return await self._following.reaches(position)

    # ------------------------------------------------------------ looking after it
    @property
    def _is_away(self) -> bool:
        """Whether the primary has not done for a while what was asked of it."""
        began = self._commit_began
        return not self._leases.are_kept or (began is not None and self._clock() - began > AWAY_AFTER_SECONDS)

    @property
    def not_accepting(self) -> NotAccepting:
        """Why no new streams should be begun; see the port."""
        return "away" if self._is_away else ""

    @property
    def wal_bytes(self) -> int:
        """The database looks after its log itself."""
        return 0

    async def look(self, _head: Place) -> None:
        """See that the journal is the one that was served so far; see the port. The database keeps the head itself."""
        if self._is_away:
            await self._cluster.survey()
        if self._cluster.refused is not None:
            raise self._cluster.refused
        for task in self._tasks:
            if task.done() and (error := task.exception()) is not None:
                raise JournalRefused(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Let go of the leases, if the database can be reached, and of the database."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError, Undone, JournalRefused):
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._leases.release()
        self._cut()

    def _cut(self) -> None:
        for part in (self._writer, self._readers, self._following, self._lessor):
            part.close()


async def _check_tail(session: Session) -> None:
    """See that the head is the newest record's, or charges whose records are lost would be made anew. Raises JournalRefused."""
    found, _ = await session.begin([])
    place = found.head.place
    newest, beyond = await session.at(place.position), await session.at(place.position + 1)
    await session.rollback()
    try:
        chain = verified(newest).chain if newest is not None else GENESIS
    except JournalCorrupt:
        chain = b""
    if chain != place.chain or beyond is not None:
        raise JournalRefused(
            f"the journal in the database is damaged: its head is at position {place.position}, and its newest record is "
            "another one. See what verify-journal says, and restore a backup"
        )
