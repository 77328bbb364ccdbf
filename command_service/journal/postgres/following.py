"""How far the journal is durable, by our own commits and those of other servers, and which streams the others moved.

A record of another server is shown once it is durable: PostgreSQL shows it before if that server's wait for the standby was
cancelled. A transaction of our own that changes nothing makes sure: the standby acknowledges it after all that came before.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence

from command_service.journal import JournalRefused
from command_service.journal.postgres.cluster import AGAIN_SECONDS, Cluster, Sessions
from command_service.journal.postgres.session import Lost, Session, Undone
from command_service.journal.records import id_of
from command_service.journal.store import Head

# How long a record of another server may go unnoticed if the hint of it fails to come.
UNHINTED_SECONDS = 0.25
# The pace of hints under load: our own commits bring the head forward, too.
NOTICE_EVERY_SECONDS = 0.01
# Whoever was away for an hour finds millions of others' records.
RECORDS_TOLD_AT_ONCE = 10_000


class Following:
    """Brings the durable head forward, and gathers news of streams."""

    def __init__(self, cluster: Cluster, is_idle: asyncio.Event) -> None:
        """`is_idle` is set while no commit of our own is under way."""
        self._cluster = cluster
        self._is_idle = is_idle
        self._listener = Sessions(cluster, 1)
        self._confirmer = Sessions(cluster, 1)  # no reader's: it waits for the standby
        self._advanced = asyncio.Event()
        self._is_wanted = asyncio.Event()
        """A reader waits for records to become durable."""
        self._others: list[tuple[int, int]] = []
        """Stretches of others' records, whose streams are still to be told: after a position, up to another."""
        self._news: dict[str, None] = {}
        self._has_news = asyncio.Event()
        self._has_news.set()  # the first call of `news` returns at once

    async def begin(self) -> None:
        """Take over the head that the database has. Nobody has begun to watch streams: none is told."""
        await self._listener.ask(self._catch_up)
        self._others.clear()

    async def news(self) -> Sequence[str]:
        """Return streams of which there is news."""
        await self._has_news.wait()
        self._has_news.clear()
        news, self._news = list(self._news), {}
        return news

    def tell(self, keys: Iterable[bytes]) -> None:
        """Add streams to the news."""
        self._news.update((id_of(key), None) for key in keys)
        if self._news:
            self._has_news.set()

    async def head_beyond(self, position: int) -> Head:
        """Return the head as soon as it is beyond a position."""
        while self._cluster.durable.place.position <= position:
            await self._advanced.wait()
        return self._cluster.durable

    async def reaches(self, position: int) -> bool:
        """Whether the journal has a position by now."""

        async def newest(session: Session) -> int:
            found = await session.head()
            while not await session.confirm():  # and so it was read from the primary: a former one cannot
                pass
            return found.head.place.position

        while self._cluster.durable.place.position < position:
            with contextlib.suppress(Undone):
                if await self._confirmer.ask(newest) < position:
                    return False
            await self.until_durable(position)
        return True

    async def until_durable(self, position: int) -> None:
        """Return when a position is durable, or after a while: a promotion may have lost it, so whoever waits reads again."""
        self._is_wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNHINTED_SECONDS):
                while self._cluster.durable.place.position < position:
                    await self._advanced.wait()

    def advance(self, head: Head) -> None:
        """Note how far the journal is durable."""
        if head.place.position > self._cluster.durable.place.position:
            self._cluster.durable = head
            advanced, self._advanced = self._advanced, asyncio.Event()
            advanced.set()

    def pass_over(self, position: int) -> None:
        """Note that records up to a position are durable, and may be others': their streams are told by and by."""
        known = self._cluster.durable.place.position
        if position > known:
            self._others.append((known, position))

    async def keep(self, server: Callable[[], str]) -> None:
        """Bring the head forward by what other servers store, until cancelled. `server` is our id. Raises JournalRefused."""
        while True:
            try:
                async with self._listener.one() as session:
                    await session.listen(server())
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
        with contextlib.suppress(TimeoutError):  # a commit of our own brings the head forward itself, most often soon
            async with asyncio.timeout(NOTICE_EVERY_SECONDS):
                await self._is_idle.wait()
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
        if found.head.place.position > durable.place.position:
            if found.has_standby and not await session.confirm():
                return
            self.pass_over(found.head.place.position)
            self.advance(found.head)
        while self._others:
            after, until = self._others[0]
            reached = min(until, after + RECORDS_TOLD_AT_ONCE)
            self.tell(await session.streams_between(after, reached))
            # Not before it is told: the connection may be lost meanwhile.
            self._others[:1] = [(reached, until)] if reached < until else []

    def close(self) -> None:
        """Cut its connections."""
        self._listener.close()
        self._confirmer.close()
