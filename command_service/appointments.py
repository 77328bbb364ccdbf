"""The return of refused callers: one after another, and slowly enough that refusing them again costs little."""

from collections.abc import Callable

# The delay for a refused caller while callers come no faster than they can be served; and the longest delay.
SOONEST_RETURN_SECONDS, LATEST_RETURN_SECONDS = 0.5, 60.0
# One caller returns for this many calls that end. Refusing a caller costs a fifth of a charge, so that refusals take at
# most 5 % of the server's time.
CALLS_A_RETURN = 4


class Appointments:
    """Gives each refused caller a time to come back.

    If all callers got the same time, refusing them again would cost more than the calls that there is room for.
    """

    def __init__(self, clock: Callable[[], float], calls_at_once: int) -> None:
        self._clock = clock
        self._calls_at_once = calls_at_once
        self._newest: dict[str, float] = {}  # by queue
        self._call_seconds = 0.0

    def note_end(self, call_seconds: float) -> None:
        """Learn the duration of a call: a moving mean over some sixty calls. With N calls at once, N end in this time."""
        self._call_seconds += (call_seconds - self._call_seconds) / 64

    def clear(self) -> None:
        """Forget the appointments: there is room again, and the next refused caller is the first."""
        self._newest.clear()

    def give_seconds(self, queue: str = "") -> float:
        """Give the next appointment of a queue, in seconds from now: a tenant's that has used up its share, or the server's."""
        now = self._clock()
        between = CALLS_A_RETURN * self._call_seconds / self._calls_at_once
        wished = max(now + SOONEST_RETURN_SECONDS, self._newest.get(queue, 0.0) + between)
        if wished > now + LATEST_RETURN_SECONDS:
            wished = now + LATEST_RETURN_SECONDS / 2  # among earlier appointments, so that the last callers are spread
        self._newest[queue] = wished
        return wished - now
