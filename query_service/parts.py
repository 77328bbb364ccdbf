"""The parts of a query server, one method a part.

A server in production, a server of the simulation and a server with a planted bug differ in parts only: they override a
method here, or wrap its result. Everything outside of the process is reached through here: disk, clock, chance and feed.
"""

import random
import time
from collections.abc import Mapping

from chassis.disk import LOCAL_DISK, Disk
from chassis.shares import NO_WEIGHTS
from query_service.api import QueryService
from query_service.feed import feed_of
from query_service.settings import Settings
from query_service.subscriber import OpenFeed, Subscriber
from query_service.view import View
from query_service.waiting import Waiting


class Parts:
    """The parts of a server with these settings."""

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen

    def clock(self) -> float:
        """Return the seconds since an arbitrary start. This clock never goes back."""
        return time.monotonic()

    def chance(self) -> random.Random:
        """Make the source of jitter."""
        return random.Random()

    def disk(self) -> Disk:
        """Give the disk that holds the view."""
        return LOCAL_DISK

    def weights(self) -> Mapping[str, float]:
        """Return the present weights of the tenants' shares."""
        return NO_WEIGHTS

    def open_feed(self) -> OpenFeed:
        """Make the function that opens the feed, for the subscriber."""
        return feed_of(self.settings.feed)

    async def view(self) -> View:
        """Open the view. Raises as `View.open`."""
        return await View.open(self.settings.view, disk=self.disk())

    def waiting(self) -> Waiting:
        """Make the register of calls that wait for the view."""
        return Waiting()

    def subscriber(self, view: View, waiting: Waiting) -> Subscriber:
        """Make the subscriber, which keeps the view up with the journal."""
        return Subscriber(view, waiting, self.open_feed(), clock=self.clock, chance=self.chance())

    def queries(self, view: View, subscriber: Subscriber, waiting: Waiting) -> QueryService:
        """Make the service that clients call."""
        return QueryService(
            view,
            subscriber,
            waiting,
            max_calls=self.settings.max_calls,
            max_watchers=self.settings.max_watchers,
            weights=self.weights,
        )
