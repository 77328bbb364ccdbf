"""Mirrors: the journals as this server shows them, each with a view of its own. A query asks one of them, or all.

No order holds between journals, and a position means nothing without its journal. Two mirrors never show one journal: its
charges would count twice.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from charging.v1.common_pb2 import Lag
from charging.v1.query_pb2 import JournalPosition
from query_service.lookup import Rows
from query_service.schema import Checkpoint
from query_service.situations import Asked
from query_service.subscriber import FeedLost, State, Subscriber
from query_service.verified import BrokenFeed
from query_service.view import View
from query_service.view_file import ViewUnusable
from query_service.waiting import Waiting

T = TypeVar("T")

Ask = Callable[[str], Awaitable[Asked]]


@dataclass(frozen=True, slots=True, eq=False)
class Mirror:
    """One journal as this server shows it: its view, the subscriber that keeps the view up, and the calls that wait for it.

    `ask` asks the journal's command servers about the attempts at a charge's step, by the charge's id. It never raises.
    """

    view: View
    subscriber: Subscriber
    waiting: Waiting
    ask: Ask

    @property
    def journal_id(self) -> str:
        """The journal's id, as the answers to commands name it; empty before the first contact."""
        return _journal_of(self.view.journal_id)

    async def read(self, tenant: str, find: Callable[[Rows], T], query: str) -> "Seen[T]":
        """Answer a tenant's query from one state of the view; see there."""
        shown = await self.view.read(tenant, find, query)
        return Seen(shown.found, shown.checkpoint, self)

    @property
    def lag_records(self) -> int:
        """The number of known records that the view does not show yet."""
        return self.subscriber.head_position - self.waiting.position


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """What a query found in one mirror, and the checkpoint that it shows."""

    found: T
    checkpoint: Checkpoint
    mirror: Mirror

    @property
    def journal_id(self) -> str:
        """The id of the journal that the view showed, as the answers to commands name it."""
        return _journal_of(self.checkpoint.journal_id)

    @property
    def state(self) -> State:
        """The state of the view when it was read."""
        return self.mirror.subscriber.state_of(self.checkpoint.position)

    def position(self) -> JournalPosition:
        """Tell how far the journal is shown, as of now."""
        position, subscriber = self.checkpoint.position, self.mirror.subscriber
        head, silence = max(position, subscriber.head_position), subscriber.silence_seconds
        lag = Lag(records=head - position, silence_milliseconds=-1 if silence is None else int(silence * 1000))
        return JournalPosition(journal_id=self.journal_id, position=position, head_position=head, lag=lag)


class Claims:
    """The journals that the views of this server show, or are about to show: no two the same."""

    def __init__(self) -> None:
        self._heard: dict[View, str] = {}  # what its feed has said last, in this life of the server

    def of(self, view: View) -> Callable[[str], None]:
        """Give what the view's subscriber calls before it follows a journal.

        It raises BrokenFeed if another feed has the same journal. While another view shows it whose own feed has not been heard
        yet, it raises FeedLost: when feeds have changed places, each view leaves the other's journal first.
        """
        self._heard[view] = ""
        return partial(self._claim, view)

    def _claim(self, view: View, journal_id: str) -> None:
        named = _journal_of(journal_id)
        for other, heard in self._heard.items():
            if other is view:
                continue
            if _journal_of(heard) == named:
                raise BrokenFeed(
                    f"two feeds in QUERY_FEED are of one journal, {named}: a comma separates the servers of one journal, and a "
                    "semicolon journals"
                )
            if _journal_of(other.journal_id) == named:
                raise FeedLost(f"{other.path} still shows the journal {named}, and its own feed has not been heard yet")
        self._heard[view] = journal_id


def check_apart(views: Sequence[View]) -> None:
    """Raises ViewUnusable if two views show the same journal, as copies of a file do."""
    paths: dict[str, Path] = {}
    for view in views:
        if (journal_id := _journal_of(view.journal_id)) in paths:
            raise ViewUnusable(f"{view.path} shows the same journal as {paths[journal_id]}: remove it")
        if journal_id:
            paths[journal_id] = view.path


def _journal_of(journal_id: str) -> str:
    """The id of the journal itself: that of a tenant's feed has a slash and the tenant behind it."""
    return journal_id.partition("/")[0]
