"""The subscriber: follows the journal's feed, verifies every record, and applies it to the view.

* It continues from the view's checkpoint, and the checkpoint never passes a record that was not applied.
* A record is taken only if its position is the next one and its chain is right (verified.py). A gap, a repeat or a broken chain
  in the feed is fatal: it raises `BrokenFeed`, and the process ends. Only in a tenant's feed may others' records be missing.
* A lost connection, and a view that cannot be written, are tolerated: the view is still served and shows its lag, and the
  subscriber tries again.
* An unknown event stops the projection for good: until its update the server serves the view as it is.

While records are applied, further ones are received and verified, and these make the next batch. The subscriber runs on any
event loop: feed, clock and chance are passed in.
"""

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import Enum, auto
from typing import assert_never

import structlog

from charging.v1.journal_pb2 import CaughtUp, Opened, SubscribeResponse
from chassis.backoff import Backoff
from contract.chain import Place
from query_service.course import StreamBroken
from query_service.observed import UNOBSERVED, Observed
from query_service.projection import UnknownEvent
from query_service.schema import Checkpoint
from query_service.traces import Traces
from query_service.verified import BrokenFeed, Stretch, joined, stretch_of
from query_service.view import View, ViewNotWritten
from query_service.waiting import Waiting

log = structlog.get_logger()

# Four missed heartbeats: after this silence a feed counts as lost, even if its connection is open.
SILENCE_SECONDS = 20.0
# The longest pause is also the longest delay between the feed's return and fresh rows.
BACKOFF = Backoff(first_seconds=0.1, longest_seconds=5.0)
# Messages that may wait while others are applied: 16,000 records or 32 MiB. One transaction for all of them costs half as
# much as one for each 500 (measured): ids are spread over all pages of the indexes, which are thus written less often.
MESSAGES_WAITING = 32

# (after_position, journal_id, chain) -> the messages of the feed. Raises FeedLost or JournalDiverged.
OpenFeed = Callable[[int, str, bytes], AsyncGenerator[SubscribeResponse, None]]
SetServing = Callable[[bool], Awaitable[None]]


class FeedLost(Exception):
    """The feed is unavailable now; the text says why. The subscriber tries again."""


class ForeignJournal(FeedLost):
    """One server has another journal than the view, and the others have not said so: it is not followed."""


class JournalDiverged(Exception):
    """The journal is not the one that the view shows: the view must be rebuilt from the journal's start."""


class State(Enum):
    """The state of the view; see ViewState in the contract."""

    CATCHING_UP = auto()
    LIVE = auto()
    DISCONNECTED = auto()
    STOPPED = auto()


_Item = Opened | Stretch | CaughtUp | Exception


class Subscriber:
    """Keeps one view up with one journal."""

    def __init__(
        self,
        view: View,
        waiting: Waiting,
        open_feed: OpenFeed,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
        silence_seconds: float = SILENCE_SECONDS,
        claim: Callable[[str], None] = lambda _: None,
        observed: Observed = UNOBSERVED,
    ) -> None:
        """`silence_seconds`: a feed counts as lost after this long without a message.

        `claim` is called with the id of each journal before it is followed. It raises FeedLost or BrokenFeed if it must not be.
        """
        self._log = log.bind(view=view.path.name)
        self._view = view
        self._waiting = waiting
        self._open_feed = open_feed
        self._clock = clock
        self._chance = chance or random.Random()
        self._longest_silence_seconds = silence_seconds
        self._claim = claim
        self._traces = Traces(observed.shown)
        self._heard_at: float | None = None
        self._head_position = 0
        self._goal: int | None = None
        self._is_serving = False
        self._failures = 0
        self._losses: set[str] = set()
        self.state = State.DISCONNECTED
        self._live_from = 0

    @property
    def head_position(self) -> int:
        """The newest head of the journal that a feed has named."""
        return max(self._head_position, self._waiting.position)

    def state_of(self, position: int) -> State:
        """Return the state of a view that was read at this position: before it had caught up it was not live."""
        is_early = self.state is State.LIVE and position < self._live_from
        return State.CATCHING_UP if is_early else self.state

    @property
    def silence_seconds(self) -> float | None:
        """The seconds since the feed's last message; None if there was none."""
        return None if self._heard_at is None else max(0.0, self._clock() - self._heard_at)

    async def run(self, set_serving: SetServing) -> None:
        """Follow the feed until cancelled, or until an unknown event stops the projection.

        It calls `set_serving` with True once the view has first caught up with the head named at the opening, so that no
        client is sent to an empty view, and with False when the view is rebuilt or stopped. Raises BrokenFeed.
        """
        checkpoint = await self._view.checkpoint()
        self._waiting.begun_at(checkpoint.position)
        while True:
            try:
                await self._follow(set_serving)
            except ForeignJournal as error:
                self.state = State.DISCONNECTED
                if self._is_news(error):
                    self._log.error("a server of the feed has another journal and is not followed", why=str(error))
            except FeedLost as error:
                self.state = State.DISCONNECTED
                if self._is_news(error):
                    self._log.warning("the feed is lost and will be tried again", why=str(error))
            except ViewNotWritten as error:
                self.state = State.CATCHING_UP  # the feed is back, and the view behind it
                if self._is_news(error):
                    self._log.warning(
                        "the view cannot be written, its disk may be full, and it will be tried again", why=str(error)
                    )
            except UnknownEvent as error:
                self.state = State.STOPPED
                self._log.error("the projection is stopped: the view grows stale", why=str(error))
                await self._serve(set_serving, False)
                return
            except (BrokenFeed, StreamBroken, sqlite3.IntegrityError, OverflowError) as error:  # the last one: of a sum
                self._log.critical("the feed is broken: the server ends", why=str(error))
                raise BrokenFeed(str(error)) from error
            self._failures += 1
            await asyncio.sleep(BACKOFF.seconds(self._failures, self._chance))

    async def _follow(self, set_serving: SetServing) -> None:
        """Follow the feed from the checkpoint until it is lost."""
        checkpoint = await self._view.checkpoint()
        items: asyncio.Queue[_Item] = asyncio.Queue(MESSAGES_WAITING)
        receiving = asyncio.create_task(self._receive(checkpoint, items))
        try:
            while True:
                waiting = [await items.get()]
                while not items.empty():
                    waiting.append(items.get_nowait())
                if stretches := [item for item in waiting if isinstance(item, Stretch)]:
                    await self._apply(joined(stretches))
                for item in waiting:
                    self._note(item)
                if self._goal is not None and self._waiting.position >= self._goal:
                    await self._serve(set_serving, True)
                if isinstance(waiting[-1], Exception):
                    raise waiting[-1]
        except JournalDiverged:
            if not checkpoint.position and not checkpoint.journal_id:
                raise FeedLost("the journal does not fit even a view of nothing") from None
            self._log.warning("the journal has diverged: the view will be rebuilt", position=checkpoint.position)
            self.state = State.CATCHING_UP  # from its start: an empty view must not pass for a live one
            await self._serve(set_serving, False)
            await self._view.reset("")
            self._head_position, self._goal = 0, None
            self._waiting.begun_at(0)
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])

    def _note(self, item: _Item) -> None:
        match item:
            case Opened():
                self.state = State.CATCHING_UP
                if self._goal is None:
                    self._goal = item.head_position
                self._log.info("the feed is open", position=self._waiting.position, head=item.head_position)
            case CaughtUp():
                self.state, self._live_from = State.LIVE, item.position
                self._failures = 0
                self._losses.clear()
                self._log.info("the view has caught up", position=item.position)
            case Stretch() | Exception():
                pass
            case _:
                assert_never(item)

    async def _apply(self, stretch: Stretch) -> None:
        """Write a stretch to the view and wake the calls that wait for it. Records before an unknown event are written too."""
        try:
            await self._view.apply(stretch)
        except UnknownEvent as error:
            if (readable := stretch.before(error.position)) is not None:
                await self._apply(readable)
            raise
        self._failures = 0  # progress, whatever was lost before
        self._waiting.written(stretch)
        self._traces.note(stretch.records, are_news=self._is_serving)

    async def _receive(self, checkpoint: Checkpoint, items: asyncio.Queue[_Item]) -> None:
        """Receive and verify messages, and hand them on as items. The last item is the error that ends the feed."""
        place = Place(checkpoint.position, checkpoint.chain)
        try:
            # At the start there is no chain to compare yet.
            known = place.chain if place.position else b""
            messages = self._open_feed(place.position, checkpoint.journal_id, known)
            async with contextlib.aclosing(messages):
                opened = await self._next(messages)
                if opened.WhichOneof("item") != "opened":
                    raise BrokenFeed("the feed does not begin with Opened")
                head = opened.opened.head_position
                if head < place.position:
                    raise BrokenFeed(
                        f"the feed says that its journal ends at {head}, and the view shows {place.position}"
                    )
                await self._open(checkpoint, opened.opened)
                await items.put(opened.opened)
                while True:
                    message = await self._next(messages)
                    item = message.WhichOneof("item")
                    match item:
                        case "batch":
                            stretch = stretch_of(message.batch, place, of_tenant=bool(opened.opened.tenant))
                            if stretch.to != place:
                                place = stretch.to
                                self._head_position = max(self._head_position, place.position)
                                await items.put(stretch)
                        case "caught_up":
                            if message.caught_up.position != place.position or place.position < head:
                                raise BrokenFeed(
                                    f"the feed says that all was sent, but after {place.position} something is missing"
                                )
                            await items.put(message.caught_up)
                        case "heartbeat":
                            self._head_position = max(self._head_position, message.heartbeat.head_position)
                        case "opened" | None:
                            raise BrokenFeed(f"after position {place.position} the feed sent what has no place there")
                        case _:
                            assert_never(item)
        except Exception as error:
            await items.put(error)

    async def _next(self, messages: AsyncGenerator[SubscribeResponse, None]) -> SubscribeResponse:
        try:
            async with asyncio.timeout(self._longest_silence_seconds):
                message = await anext(messages)
        except TimeoutError:
            raise FeedLost(f"nothing was heard for {self._longest_silence_seconds:g} s") from None
        except StopAsyncIteration:
            raise FeedLost("the server ended the feed") from None
        self._heard_at = self._clock()
        return message

    async def _open(self, checkpoint: Checkpoint, opened: Opened) -> None:
        if not opened.journal_id:
            raise BrokenFeed("the feed does not say which journal it is of")
        # A view of the whole journal must not take a tenant's feed for its own, and its gaps for others' records.
        if opened.tenant and not opened.journal_id.endswith(f"/{opened.tenant}"):
            raise BrokenFeed("the feed says that it is a tenant's, and its id does not")
        if checkpoint.journal_id not in ("", opened.journal_id):
            raise BrokenFeed("the feed is of another journal than was asked for")
        self._claim(opened.journal_id)
        if not checkpoint.journal_id:
            await self._view.reset(opened.journal_id)
        self._head_position = max(self._head_position, opened.head_position)

    async def _serve(self, set_serving: SetServing, is_serving: bool) -> None:
        if is_serving != self._is_serving:
            self._is_serving = is_serving
            await set_serving(is_serving)

    def _is_news(self, error: Exception) -> bool:
        """An outage is logged when it begins, not at each try: once for each error text."""
        is_news = str(error) not in self._losses
        self._losses.add(str(error))
        return is_news
