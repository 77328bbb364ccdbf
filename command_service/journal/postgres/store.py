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
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from command_service.journal import (
    GENESIS,
    Appended,
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    JournalRefused,
    NotAccepting,
    Place,
    Record,
    VersionConflict,
)
from command_service.journal.postgres.cluster import AGAIN_SECONDS, Cluster, Sessions
from command_service.journal.postgres.leases import Leases
from command_service.journal.postgres.session import HeadRow, Lost, Node, Session, Undone
from command_service.journal.records import RECORDS_A_READ, Row, following, id_of, key_of, seal, verified
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
# How long a record of another server may go unnoticed if the hint of it fails to come.
UNHINTED_SECONDS = 0.25
# The pace of hints under load: our own commits bring the head forward, too.
NOTICE_EVERY_SECONDS = 0.01
# Whoever was away for an hour finds millions of others' records.
RECORDS_TOLD_AT_ONCE = 10_000
RELEASE_SECONDS = 2.0


@dataclass(slots=True)
class _Plan:
    """A batch, sealed after a head: what it stores, and what its callers are told."""

    head: Head
    outcomes: list[Appended] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    finished: dict[bytes, bool] = field(default_factory=dict)
    """By stream: whether it is finished after the batch."""

    @classmethod
    def of(
        cls, batch: Sequence[Append], keys: Sequence[bytes], found: Mapping[bytes, int], head: Head, recorded_at: int
    ) -> "_Plan":
        """Decide about each append, and seal what is to be stored. The head and the versions are those under the lock."""
        versions, place, recorded_at = dict(found), head.place, max(recorded_at, head.recorded_at)
        plan = cls(head)
        for append, key in zip(batch, keys, strict=True):
            if versions[key] != append.expected_version:
                plan.outcomes.append(VersionConflict())
                continue
            records, place = seal(append, key, place, recorded_at)
            versions[key] = append.expected_version + len(records)
            plan.outcomes.append(records)
            plan.rows += [(it.position, key, it.version, it.recorded_at, it.chain, it.event) for it in records]
            plan.finished[key] = append.finished
        plan.head = Head(place, recorded_at)
        return plan

    def streams(self, *, finished: bool) -> list[bytes]:
        """The batch's streams that are finished after it, or not."""
        return [key for key, it in self.finished.items() if it is finished]


class PostgresStore:
    """A store in PostgreSQL. See `command_service.journal.store.Store` for what it promises."""

    made_anew = False

    def __init__(self, cluster: Cluster, *, name: str, new_id: Callable[[], str]) -> None:
        """Use `open`."""
        self.journal_id, self.restored = "", False
        self._cluster = cluster
        self._writer, self._readers = Sessions(cluster, 1), Sessions(cluster, READERS)
        self._listener, self._lessor = Sessions(cluster, 1), Sessions(cluster, 1)
        self._confirmer = Sessions(cluster, 1)  # no reader's: it waits for the standby
        self._leases = Leases(self._lessor, name, new_id, self._tell)
        self._clock = asyncio.get_running_loop().time
        self._commit_began: float | None = None
        self._commit_ended = asyncio.Event()
        self._advanced = asyncio.Event()
        self._is_wanted = asyncio.Event()
        """A reader waits for records to become durable."""
        self._others: list[tuple[int, int]] = []
        """Stretches of others' records, whose streams are still to be told: after a position, up to another."""
        self._news: dict[str, None] = {}
        self._has_news = asyncio.Event()
        self._has_news.set()  # the first call of `news` returns at once
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
        await self._listener.ask(self._catch_up)
        self._others.clear()  # nobody has begun to watch
        if not found.has_standby:
            log.warning(
                "the journal's database has no synchronous standby: what was acknowledged is lost with its disk"
            )
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._leases.keep())]

    # ------------------------------------------------------------ writing
    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        """Store a batch in one transaction; see the port."""
        self._commit_began = self._clock()
        try:
            return await self._commit(batch, head.recorded_at)
        finally:
            self._commit_began = None
            self._commit_ended.set()
            self._commit_ended.clear()

    async def _commit(self, batch: Sequence[Append], recorded_at: int) -> Committed:
        keys = [key_of(append.charge_id) for append in batch]
        sent: _Plan | None = None  # its commit was sent, and what became of it is not known
        undone_in_a_row = 0
        while True:
            try:
                async with self._writer.one() as session:
                    durable = self._cluster.durable  # what comes to be known from now on may be newer than what is read
                    found, versions = await session.begin(list(dict.fromkeys(keys)))
                    self._cluster.check(found, durable)
                    if sent is not None and await _stands(session, sent):
                        # Of those that it began, others may have taken over some since, or brought them to rest.
                        ours = await session.driven(self._leases.server, sent.streams(finished=False))
                        await session.rollback()
                        return await self._stored(session, sent, found, ours=ours, is_durable=False)
                    sent = None  # nothing was stored, certainly
                    plan = _Plan.of(batch, keys, versions, found.head, recorded_at)
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
            await asyncio.sleep(AGAIN_SECONDS)

    async def _stored(
        self, session: Session, plan: _Plan, found: HeadRow, *, ours: Sequence[bytes], is_durable: bool
    ) -> Committed:
        """See that a committed plan is durable, and note what follows. `found` is the head from before it, or a later one."""
        is_later = found.head.place.position >= plan.head.place.position
        self._leases.note(ours, plan.streams(finished=True))
        while not is_durable:
            is_durable = await session.confirm()
        known = self._cluster.durable.place.position
        if found.head.place.position > known:
            self._others.append((known, found.head.place.position))
        if not is_later:
            self._newest = {found.head.place: plan.rows}
        self._advance(found.head if is_later else plan.head)
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
            await self._until_durable(rows[-1][0])
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
        await self._has_news.wait()
        self._has_news.clear()
        news, self._news = list(self._news), {}
        return news

    def _tell(self, keys: Iterable[bytes]) -> None:
        self._news.update((id_of(key), None) for key in keys)
        if self._news:
            self._has_news.set()

    async def head_beyond(self, position: int) -> Head:
        """Return the head as soon as it is beyond a position; see the port."""
        while self._cluster.durable.place.position <= position:
            await self._advanced.wait()
        return self._cluster.durable

    async def reaches(self, position: int) -> bool:
        """Whether the journal has a position by now; see the port."""

        async def newest(session: Session) -> int:
            found = await session.head()
            while not await session.confirm():  # and so it was read from the primary: a former one cannot
                pass
            return found.head.place.position

        while self._cluster.durable.place.position < position:
            with contextlib.suppress(Undone):
                if await self._confirmer.ask(newest) < position:
                    return False
            await self._until_durable(position)
        return True

    async def _until_durable(self, position: int) -> None:
        """Return when a position is durable, or after a while: a promotion may have lost it, so whoever waits reads again."""
        self._is_wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNHINTED_SECONDS):
                while self._cluster.durable.place.position < position:
                    await self._advanced.wait()

    def _advance(self, head: Head) -> None:
        """Note how far the journal is durable."""
        if head.place.position > self._cluster.durable.place.position:
            self._cluster.durable = head
            advanced, self._advanced = self._advanced, asyncio.Event()
            advanced.set()

    async def _follow(self) -> None:
        """Bring the head forward by what other servers store, until cancelled."""
        while True:
            try:
                async with self._listener.one() as session:
                    await session.listen(self._leases.server)
                    while True:
                        await self._catch_up(session)
                        await self._hint(session)
            except (Lost, Undone):
                await asyncio.sleep(AGAIN_SECONDS)

    async def _hint(self, session: Session) -> None:
        """Wait until there may be something new, or a reader waits for it."""
        ways = [
            asyncio.ensure_future(session.news(UNHINTED_SECONDS)),
            asyncio.ensure_future(self._is_wanted.wait()),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if ways[0].done():
                ways[0].result()
        finally:
            for way in ways:
                way.cancel()
        if not self._is_wanted.is_set():
            await asyncio.sleep(NOTICE_EVERY_SECONDS)
        if self._commit_began is not None:  # it brings the head forward itself, most often soon
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTICE_EVERY_SECONDS):
                    await self._commit_ended.wait()
        self._is_wanted.clear()

    async def _catch_up(self, session: Session) -> None:
        """Take over the head that the database has, once it is durable, and tell whose records came."""
        durable = self._cluster.durable
        found = await session.head()
        try:
            self._cluster.check(found, durable)
        except JournalRefused as refused:
            self._cluster.refused = refused
            raise
        known = durable.place.position
        if found.head.place.position > known:
            if found.has_standby and not await session.confirm():
                return
            self._others.append((known, found.head.place.position))
            self._advance(found.head)
        while self._others:
            after, until = self._others[0]
            reached = min(until, after + RECORDS_TOLD_AT_ONCE)
            self._tell(await session.streams_between(after, reached))
            # Not before it is told: the connection may be lost meanwhile.
            self._others[:1] = [(reached, until)] if reached < until else []

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
        for sessions in (self._writer, self._readers, self._listener, self._lessor, self._confirmer):
            sessions.close()


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


async def _stands(session: Session, plan: _Plan) -> bool:
    """Whether a plan was committed. The head must be locked: then no transaction of ours is under way."""
    newest = await session.at(plan.head.place.position)
    return newest is not None and newest[4] == plan.head.place.chain
