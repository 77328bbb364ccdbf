"""The sessions of browsers: what a person is known by is kept here, and the browser has nothing but a session's name.

They are in memory: a restart of the console forgets them, and people sign in again.
"""

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field

# Of a shift; and of somebody who has left the desk.
LONGEST_SECONDS, IDLE_SECONDS = 12 * 3_600.0, 2 * 3_600.0
# Each is a few hundred bytes. A browser without cookies begins one with each page.
MOST_SESSIONS = 5_000


@dataclass(slots=True)
class Session:
    """A browser's session."""

    name: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """A secret that the browser keeps in a cookie."""
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """A secret in every form of the session's pages: no other page can send them."""
    token: str = field(default="", repr=False)
    """The bearer token by which the servers know the person; empty before the sign-in."""
    tenant: str = ""
    """The tenant that somebody without one has chosen."""
    notices: list[str] = field(default_factory=list)
    """What the next page says once: the outcome of the step before."""
    began: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)


class Sessions:
    """All sessions, by their names; the one that was seen last comes last."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, Session] = OrderedDict()

    def find(self, name: str) -> Session | None:
        """Return a session that has not ended."""
        session = self._by_name.get(name)
        if session is None:
            return None
        now = time.monotonic()
        if now - session.began > LONGEST_SECONDS or now - session.seen > IDLE_SECONDS:
            self.end(session)
            return None
        session.seen = now
        self._by_name.move_to_end(name)
        return session

    def begin(self, *, token: str = "") -> Session:
        """Begin one."""
        while len(self._by_name) >= MOST_SESSIONS:
            without = next((each for each in self._by_name.values() if not each.token), None)
            self.end(without or next(iter(self._by_name.values())))
        session = Session(token=token)
        self._by_name[session.name] = session
        return session

    def end(self, session: Session) -> None:
        """End one: its name is nobody's from now on."""
        self._by_name.pop(session.name, None)
