"""The parts of a query server, one method a part.

A server in production, a server of the simulation and a server with a planted bug differ in parts only: they override a
method here, or wrap its result. Everything outside of the process is reached through here: disk, clock, chance and feed.
"""

import random
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from chassis.disk import LOCAL_DISK, Disk
from chassis.exposure import is_loopback
from chassis.settings import Address, SettingsError
from chassis.tls import ClientTls
from chassis.tracing import Tracer, open_tracer
from chassis.watched import Watched
from contract.entrance import Entrance
from contract.errors import query_refusal as refusal
from query_service.api import QueryService
from query_service.feed import CommandServers, Credentials, token_in
from query_service.mirrors import Claims, Mirror
from query_service.observed import Observed
from query_service.settings import Settings
from query_service.subscriber import OpenFeed, Subscriber
from query_service.view import View
from query_service.waiting import Waiting

log = structlog.get_logger()


class Parts:
    """The parts of a server with these settings."""

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen
        self.watched: list[Watched[Any]] = []
        """What the parts made so far read from files that may be replaced while the server runs."""
        self.claims = Claims()
        self._command_servers: dict[tuple[Address, ...], CommandServers] = {}

    def clock(self) -> float:
        """Return the seconds since an arbitrary start. This clock never goes back."""
        return time.monotonic()

    def now(self) -> int:
        """Return the time of day in microseconds since 1970. It may go back."""
        return time.time_ns() // 1_000

    def chance(self) -> random.Random:
        """Make the source of jitter."""
        return random.Random()

    def disk(self) -> Disk:
        """Give the disk that holds the view."""
        return LOCAL_DISK

    @cached_property
    def tracer(self) -> Tracer | None:
        """What records traces; None if the settings name no collector. Raises SettingsError if it cannot be used."""
        if not self.settings.traces:
            return None
        return open_tracer("QUERY_TRACES", "chargeonce-query", self.settings.traces, self.settings.traces_sampled)

    @cached_property
    def observed(self) -> Observed:
        """What the server observes of its work. Raises as `tracer`."""
        return Observed(self.clock, self.tracer)

    def close(self) -> None:
        """Send what was traced and not sent yet."""
        if self.tracer is not None:
            self.tracer.close()

    @cached_property
    def entrance(self) -> Entrance:
        """What stands before the ports. Raises Unusable if its files cannot be used."""
        made = Entrance(self.settings, refusal)
        self.watched += made.watched
        return made

    def weights(self) -> Mapping[str, float]:
        """Return the present weights of the tenants' shares."""
        return self.entrance.weights()

    @cached_property
    def credentials(self) -> Credentials:
        """What the feeds are read with. Raises Unusable if its files cannot be used, SettingsError if plaintext is refused."""
        tls, token = None, None
        if self.settings.feed_tls is not None:
            tls = ClientTls(self.settings.feed_tls)
            self.watched.append(tls.watched)
        if self.settings.feed_token is not None:
            token = token_in(self.settings.feed_token)
            self.watched.append(token)
        if tls is None and not all(is_loopback(each.host) for servers in self.settings.feeds for each in servers):
            if not self.settings.is_open:
                raise SettingsError(
                    "QUERY_FEED names another machine, and QUERY_FEED_TLS is not set: whoever takes its port could show money "
                    "that never moved. Set it, or set QUERY_OPEN=yes to follow any feed"
                )
            log.warning("the feed is read in plaintext: others may read it, and show us money that never moved")
        return Credentials(tls, token)

    def command_servers(self, servers: Sequence[Address]) -> CommandServers:
        """Give the command servers of a journal, the same ones each time. Raises as `credentials` and `CommandServers`."""
        known = self._command_servers.get(tuple(servers))
        if known is None:
            known = self._command_servers[tuple(servers)] = CommandServers(servers, self.credentials)
        return known

    def open_feed(self, servers: Sequence[Address]) -> OpenFeed:
        """Make the function that opens a journal's feed, for its subscriber. Raises as `command_servers`."""
        return self.command_servers(servers).open_feed

    def mirror(self, view: View, servers: Sequence[Address]) -> Mirror:
        """Make the mirror of the journal of these servers, over its view. Raises as `command_servers`."""
        waiting = self.waiting()
        ask = self.command_servers(servers).attempts
        return Mirror(view, self.subscriber(view, waiting, servers), waiting, ask)

    async def view(self, path: Path) -> View:
        """Open a view. Raises as `View.open`."""
        return await View.open(path, disk=self.disk(), observed=self.observed)

    def waiting(self) -> Waiting:
        """Make the register of calls that wait for a view."""
        return Waiting()

    def subscriber(self, view: View, waiting: Waiting, servers: Sequence[Address]) -> Subscriber:
        """Make the subscriber, which keeps a view up with the journal of these servers."""
        claim = self.claims.of(view)
        return Subscriber(
            view,
            waiting,
            self.open_feed(servers),
            clock=self.clock,
            chance=self.chance(),
            claim=claim,
            observed=self.observed,
        )

    def queries(self, mirrors: Sequence[Mirror]) -> QueryService:
        """Make the service that clients call."""
        return QueryService(
            mirrors,
            max_calls=self.settings.max_calls,
            max_watchers=self.settings.max_watchers,
            weights=self.weights,
            now=self.now,
        )
