"""Which streams this server drives, where several servers share a journal.

Each unfinished stream names a server, and each server renews its own row: so a lease on any number of streams costs one small
write a second. All times are the database's. A server that misses its time has lost all that it drove, and begins anew under
another id: whoever claims a stream then may rely on the former one to drive it no more, but for a call that is under way.

Leases save calls to the bank. Nothing is unsafe without them: a second driver has the same token, and the slower one's append
is refused.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from command_service.journal import JournalRefused
from command_service.journal.postgres.cluster import Sessions
from command_service.journal.postgres.session import HeadRow, Lost, Undone

log = structlog.get_logger()

# A server that dies is relieved after this time, and a second look of another one at the most: well within ten seconds.
LEASE_SECONDS = 4.0
RENEW_SECONDS = 1.0
CLAIMED_AT_ONCE = 1_000


class Leases:
    """The leases of one server."""

    def __init__(
        self, sessions: Sessions, name: str, new_id: Callable[[], str], tell: Callable[[Iterable[bytes]], None]
    ) -> None:
        """`tell` is told of streams that this server drives from now on."""
        self._sessions = sessions
        self._name = name
        self._new_id = new_id
        self._tell = tell
        self._clock = asyncio.get_running_loop().time
        self._until = 0.0
        self._driven: set[bytes] = set()
        self._journal_id = ""
        self.server = ""
        """The server's id."""

    async def begin(self) -> HeadRow:
        """Begin to be at work; return the journal's head. Claims what nobody drives."""
        found = await self._register()
        await self._claim()
        return found

    async def _register(self) -> HeadRow:
        asked_at, self.server = self._clock(), self._new_id()  # also if it fails: the former id is not renewed any more
        self._driven.clear()
        found = await self._sessions.ask(lambda session: session.register(self.server, self._name, LEASE_SECONDS))
        if self._journal_id not in ("", found.journal_id):  # restored while this server was suspended
            raise JournalRefused(
                f"the database holds the journal {found.journal_id} now, and {self._journal_id} was served"
            )
        self._journal_id, self._until = found.journal_id, asked_at + LEASE_SECONDS
        return found

    def drives(self, key: bytes) -> bool:
        """Whether this server is to bring a stream to its end."""
        return key in self._driven and self._clock() < self._until

    @property
    def are_kept(self) -> bool:
        """Whether the last renewal came in time."""
        return self._clock() < self._until - (LEASE_SECONDS - 2 * RENEW_SECONDS)

    def note(self, begun: Sequence[bytes], finished: Sequence[bytes]) -> None:
        """Note what a commit has changed: streams that this server drives from now on, and those that have ended."""
        self._driven.update(begun)
        self._driven.difference_update(finished)

    async def keep(self) -> None:
        """Renew the leases, and claim what nobody drives, until cancelled. Raises JournalRefused."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._renew()
                await self._claim()
            except Undone as undone:
                log.warning("the leases could not be renewed, and will be again", why=str(undone))

    async def _renew(self) -> None:
        asked_at = self._clock()
        if await self._sessions.ask(lambda session: session.renew(self.server, LEASE_SECONDS)):
            had_lapsed, self._until = self._clock() >= self._until, asked_at + LEASE_SECONDS
            if had_lapsed:  # nobody has claimed them meanwhile: all of them go on here
                self._tell(sorted(self._driven))
            return
        log.warning("this server was away for longer than its leases last: others may drive its charges now")
        await self._begin_anew()

    async def _claim(self) -> None:
        while True:
            try:
                async with self._sessions.one() as session:
                    claimed = await session.claim(self.server, CLAIMED_AT_ONCE)
            except Lost:  # perhaps streams are ours now that we do not know of, and nobody else would ever claim them
                await self._begin_anew()
                continue
            self._driven.update(claimed)
            self._tell(claimed)
            if len(claimed) < CLAIMED_AT_ONCE:
                return
            await self._renew()  # to claim many takes longer than a lease lasts, and then they would be anybody's again

    async def _begin_anew(self) -> None:
        former = self.server
        await self._register()
        await self._sessions.ask(lambda session: session.release(former))  # or else its time passes

    async def release(self) -> None:
        """Drive nothing any more: another server may go on at once."""
        self._driven.clear()
        await self._sessions.ask(lambda session: session.release(self.server))
