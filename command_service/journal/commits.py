"""The journal over a store, by group commit: appends that queue up during one commit go into the next one together.

* There is one commit at a time. Sharing it is what pays for a durable one.
* A commit that the store refuses (NotStored) is a certain "no": no new streams are begun, and the journal asks the store
  each second whether it can write again.
* A commit that fails in any other way may be stored or not. No caller gets an answer, nothing is tried again, and the
  process ends: the next start finds out. (A store that can find out by itself does, and its commit only takes longer.)
* Where servers share a store, the head that is shown moves by others' commits too.
* Each second the journal has its store looked after. If what is acknowledged from then on would be lost, nothing more is
  acknowledged, and the process ends.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import structlog

from chassis.tasks import start_shared
from command_service.journal import Appended, JournalBusy, JournalRefused, NotAccepting, NotStored, Place, Record
from command_service.journal.store import Append, Head, Store
from command_service.observed import UNOBSERVED, Observed

log = structlog.get_logger()

# A commit of this many appends takes tens of milliseconds; larger ones gain nothing more (measured) and delay replies.
APPENDS_A_COMMIT = 512
# A clock that is corrected in small steps is no news; one that is further behind than this is somebody's to mend.
CLOCK_BEHIND_SECONDS = 5.0
# A store that cannot be reached may keep a commit waiting for any time; the next start finds out what became of it.
CLOSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How long a journal waits before it commits, looks after its store, and asks a store again that refused a commit."""

    turns_before_commit: int = 20
    """Turns of the event loop without a further append, after which the queue is committed. A busy loop has charges that are
    about to append, and they join: a quarter more charges a second (measured)."""
    longest_wait_seconds: float = 0.002
    """The bound on that wait, however many append: about the time of a commit, so that a charge waits twice that at most."""
    look_every_seconds: float = 1.0
    probe_every_seconds: float = 1.0


RHYTHM = Rhythm()


@dataclass(frozen=True, slots=True)
class _Waiting:
    append: Append
    stored: "asyncio.Future[Appended]"


class GroupCommit:
    """A journal over a store. See `command_service.journal.Journal` for what it promises."""

    def __init__(
        self,
        store: Store,
        head: Head,
        *,
        now: Callable[[], int],
        end_process: Callable[[], NoReturn],
        rhythm: Rhythm,
        observed: Observed,
    ) -> None:
        """Use `open`."""
        self.journal_id, self.restored, self.made_anew = store.journal_id, store.restored, store.made_anew
        self._store = store
        self._head = head
        self._now = now
        self._end_process = end_process
        self._rhythm = rhythm
        self._observed = observed
        self._queue: list[_Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self._refused: NotAccepting = ""
        self._probing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._is_clock_behind = False
        self._is_ending = False

    @classmethod
    async def open(
        cls,
        store: Store,
        *,
        now: Callable[[], int],
        end_process: Callable[[], NoReturn],
        rhythm: Rhythm = RHYTHM,
        observed: Observed = UNOBSERVED,
    ) -> "GroupCommit":
        """Open the journal of a store. The journal owns the store, and closes it, also if opening fails.

        `now` gives microseconds since 1970; `end_process` is called when a commit's fate is unknown or the store can no
        longer be served from, and must not return. Raises JournalRefused if the journal must not be served from.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            head = await store.head()
            journal = cls(store, head, now=now, end_process=end_process, rhythm=rhythm, observed=observed)
            await journal._look()
            journal._time()
            journal._looking = asyncio.create_task(journal._keep_looking())
            journal._following = asyncio.create_task(journal._follow())
            stack.pop_all()
            return journal

    @property
    def head(self) -> Place:
        """The newest acknowledged record."""
        return self._head.place

    @property
    def not_accepting(self) -> NotAccepting:
        """Why no new streams should be begun: what the last commit or probe met, or a disk that was filling up."""
        return self._refused or self._store.not_accepting

    @property
    def accepting(self) -> bool:
        """Whether new streams may be begun."""
        return not self.not_accepting

    @property
    def wal_bytes(self) -> int:
        """What the store has not moved into its database yet; see the port."""
        return self._store.wal_bytes

    # ------------------------------------------------------------ appending
    async def append(
        self, charge_id: str, expected_version: int, events: Sequence[bytes], *, finished: bool
    ) -> Appended:
        """Append to a stream; see the port."""
        stored: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(Append(charge_id, expected_version, events, finished), stored))
        if self._committing is None:
            self._committing = start_shared(self._commit_queue())
        with self._observed.appends.piece():
            return await stored

    async def _commit_queue(self) -> None:
        """Commit what is queued, until nothing is. Only one of these runs at a time.

        An append that is alone does not wait for others: without load there are none.
        """
        has_company = False
        while self._queue:
            if has_company or len(self._queue) > 1:
                await self._let_others_join()
            has_company = len(self._queue) > 1
            batch, self._queue = self._queue[:APPENDS_A_COMMIT], self._queue[APPENDS_A_COMMIT:]
            before = self._head
            outcomes: Sequence[Appended | NotStored]
            try:
                with self._observed.commits.piece() as commit:
                    outcomes, head = await self._store.commit(
                        [waiting.append for waiting in batch], Head(before.place, self._time())
                    )
                    commit.result = ()
            except NotStored as refused:
                why: NotAccepting = "busy" if isinstance(refused, JournalBusy) else "full"
                self._observed.commit_failures.add(why)
                self._refuse(why, len(batch))
                outcomes, head = [refused] * len(batch), before
            except JournalRefused as refused:
                self._end("the journal can no longer be served from: the process ends", reason=str(refused))
            except Exception:  # whatever it is, a commit may have been under way
                self._end("a commit's fate is unknown: the process ends, the next start finds out")
            if self._is_ending:
                return  # nothing is acknowledged any more
            if head.place != before.place:
                stored = sum(len(each) for each in outcomes if isinstance(each, Sequence))
                self._observed.commit_records.note(stored)  # the head may have been moved by others too
                self._refused = ""
                self._advance(head)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if waiting.stored.cancelled():
                    continue
                if isinstance(outcome, NotStored):
                    waiting.stored.set_exception(outcome)
                else:
                    waiting.stored.set_result(outcome)
        self._committing = None

    def _advance(self, head: Head) -> None:
        """Show a head, unless a newer one is shown: others' records may be seen before our own commit has returned."""
        if head.place.position > self._head.place.position:
            self._head = head
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def _let_others_join(self) -> None:
        loop = asyncio.get_running_loop()
        turns, until = 0, loop.time() + self._rhythm.longest_wait_seconds
        while turns < self._rhythm.turns_before_commit and len(self._queue) < APPENDS_A_COMMIT and loop.time() < until:
            queued = len(self._queue)
            await asyncio.sleep(0)
            turns = turns + 1 if len(self._queue) == queued else 0

    def _time(self) -> int:
        """Now, or when the newest record was made if the clock has gone back since: recorded times never run backwards."""
        now = self._now()
        behind_seconds = (self._head.recorded_at - now) / 1_000_000
        was_behind, self._is_clock_behind = self._is_clock_behind, behind_seconds > CLOCK_BEHIND_SECONDS
        if self._is_clock_behind and not was_behind:
            log.warning(
                "the machine's clock is behind the journal's newest record, or before 1970: records get that time until it "
                "has caught up, set the clock",
                behind_seconds=round(behind_seconds),
            )
        return max(now, self._head.recorded_at)

    def _refuse(self, why: NotAccepting, appends: int) -> None:
        """Begin no new streams until a commit succeeds, or a probe, one each second, finds that it would."""
        log.error("nothing was stored", why=why, appends=appends)
        self._refused = why
        if self._probing is None or self._probing.done():
            self._probing = start_shared(self._probe())

    async def _probe(self) -> None:
        while self._refused:
            await asyncio.sleep(self._rhythm.probe_every_seconds)
            try:
                self._refused = await self._store.probe()
            except Exception as error:  # nothing is lost by it: the next append finds out what it means
                log.warning("it could not be found out whether the journal can be written again", error=str(error))

    # ------------------------------------------------------------ reading
    async def read(self, charge_id: str) -> Sequence[Record]:
        """Read a stream; see the port."""
        return await self._store.read_stream(charge_id)

    async def read_after(self, place: Place) -> Sequence[Record]:
        """Read on from a place; see the port."""
        return await self._store.read_after(place, self._head.place.position)

    async def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position; see the port."""
        return await self._store.chain_at(position)

    async def unfinished(self) -> Sequence[str]:
        """List the streams that are not finished."""
        return await self._store.unfinished()

    # ------------------------------------------------------------ other servers
    def drives(self, charge_id: str) -> bool:
        """Whether this server is to bring a stream to its end; see the port."""
        return self._store.drives(charge_id)

    async def news(self) -> Sequence[str]:
        """Return streams of which there is news; see the port."""
        return await self._store.news()

    async def reaches(self, position: int) -> bool:
        """Whether the journal has a position by now; see the port."""
        if self._head.place.position < position and not await self._store.reaches(position):
            return False
        await self.beyond(position - 1)
        return True

    async def _follow(self) -> None:
        while True:
            self._advance(await self._store.head_beyond(self._head.place.position))

    async def beyond(self, position: int) -> None:
        """Return as soon as the head is beyond a position."""
        while self._head.place.position <= position:
            await self._moved.wait()

    # ------------------------------------------------------------ looking after the store
    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._rhythm.look_every_seconds)
            await self._look_or_end()

    async def _look_or_end(self) -> None:
        """Look after the store; if it must not be served from any more, end the process.

        What was acknowledged since the store was taken away may be lost. The note of the head tells the next start, and
        nothing is acknowledged after it.
        """
        try:
            await self._look()
        except JournalRefused as refused:
            self._is_ending = True
            with contextlib.suppress(JournalRefused):
                await self._look()
            self._end("the journal can no longer be served from: the process ends", reason=str(refused))

    async def _look(self) -> None:
        try:
            await self._store.look(self._head.place)
        except OSError as error:
            # The journal is as safe as before, but a lost tail would be noticed later: say so and try again.
            log.warning("the anchor could not be written", errno=error.errno)

    def _end(self, text: str, **why: str) -> NoReturn:
        self._is_ending = True
        try:
            log.critical(text, **why)
        finally:
            self._end_process()

    async def close(self) -> None:
        """Finish what was asked for, have the head noted, and let go of the store.

        If the process was to end, nothing more is stored or noted.
        """
        try:
            if (committing := self._committing) is not None:
                await asyncio.wait([committing], timeout=CLOSE_SECONDS)
                self._is_ending |= not committing.done()
            parts = (self._committing, self._probing, self._looking, self._following)
            tasks = [task for task in parts if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not self._is_ending:
                await self._look_or_end()
        finally:
            await self._store.close()
