"""The sessions of browsers: what a person is known by is kept here, and the browser has nothing but a session's name.

They are in memory: a restart of the console forgets them, and people sign in again.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

# Of a shift; and of somebody who has left the desk.
LONGEST_SECONDS, IDLE_SECONDS = 12 * 3_600.0, 2 * 3_600.0
# Each is a few hundred bytes. A browser without cookies begins one with each page.
MOST_SESSIONS = 5_000
# A token stays no longer than this beyond its time, though nobody comes.
SWEEP_SECONDS = 30.0


@dataclass(slots=True)
class Session:
    """A browser's session."""

    name: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """A secret that the browser keeps in a cookie."""
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """A secret in every form of the session's pages: no other page can send them."""
    token: str = field(default="", repr=False)
    """The bearer token by which the servers know the person; empty before the sign-in and after the end."""
    tenant: str = ""
    """The tenant that somebody without one has chosen."""
    notices: list[str] = field(default_factory=list)
    """What the next page says once: the outcome of the step before."""
    began: float = 0.0
    """When it was begun, in seconds of the clock of `Sessions`."""
    seen: float = 0.0
    """When the person last asked for a page. What a page asks for by itself does not count."""


class Sessions:
    """All sessions, by their names; the one that was seen last comes last."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now` tells the time in seconds."""
        self._now = now
        self._by_name: OrderedDict[str, Session] = OrderedDict()

    def find(self, name: str) -> Session | None:
        """Return a session that has not ended."""
        self.sweep()
        return self._by_name.get(name)

    def see(self, session: Session) -> None:
        """Note that its person has asked for a page."""
        session.seen = self._now()
        if session.name in self._by_name:
            self._by_name.move_to_end(session.name)

    def begin(self, session: Session) -> Session:
        """Keep one from now on, and return it."""
        self.sweep()
        while len(self._by_name) >= MOST_SESSIONS:
            without = next((each for each in self._by_name.values() if not each.token), None)
            self.end(without or next(iter(self._by_name.values())))
        session.began = session.seen = self._now()
        self._by_name[session.name] = session
        return session

    def end(self, session: Session) -> None:
        """End one: its name is nobody's from now on, and its token is gone for all that asks in its person's name."""
        self._by_name.pop(session.name, None)
        session.token = ""

    def sweep(self) -> None:
        """End those whose time is over."""
        now = self._now()
        for session in [*self._by_name.values()]:
            is_left = bool(session.token) and now - session.seen > IDLE_SECONDS
            if is_left or now - session.began > LONGEST_SECONDS:
                self.end(session)

    async def keep_sweeping(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()
