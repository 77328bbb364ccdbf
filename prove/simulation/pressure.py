"""I16 at the bank: how much one life of a command server asks of it at once, and how soon again about the same charge."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

# With pauses that double, a charge whose calls are all in vain makes some fifteen in so long, look-ups included; without
# pauses it makes hundreds.
WINDOW_SECONDS, CALLS_A_WINDOW = 10.0, 60
for_people: ContextVar[bool] = ContextVar("for_people", default=False)
"""Whether operators have asked for this call: they may ask whenever they like, beside the charge's own."""


class Pressure:
    """Counts the calls of one life."""

    def __init__(
        self,
        most_at_once: int,
        clock: Callable[[], float],
        broke: Callable[[str, str, str], None],
        tried_at: Mapping[str, float],
    ) -> None:
        """`tried_at` says when operators last had a charge tried, if they ever did: its pauses begin anew then."""
        self._tried_at = tried_at
        self._most_at_once = most_at_once
        self._clock = clock
        self._broke = broke
        self._under_way: Counter[str] = Counter()
        self._newest: dict[str, deque[float]] = {}

    @contextmanager
    def call(self, charge: str, operation: str) -> Iterator[None]:
        """A call about an operation of a charge, from its beginning to its end; "" if the bank does not know whom it is about.

        At once there is one about a charge. So soon again, each of its operations may have as many.
        """
        if for_people.get():
            charge = ""
        self._under_way[charge] += 1
        try:
            if self._under_way.total() > self._most_at_once:
                self._broke(
                    "I16", "the bank", f"{self._under_way.total()} calls at once, allowed are {self._most_at_once}"
                )
            if charge:
                self._judge(charge, operation)
            yield
        finally:
            self._under_way[charge] -= 1

    def _judge(self, charge: str, operation: str) -> None:
        if self._under_way[charge] > 1:
            self._broke("I16", f"charge {charge}", f"{self._under_way[charge]} calls about it at once")
        newest = self._newest.setdefault(operation, deque(maxlen=CALLS_A_WINDOW))
        now = self._clock()
        is_full = len(newest) == CALLS_A_WINDOW and newest[0] > self._tried_at.get(charge, -1.0)
        if is_full and now - newest[0] < WINDOW_SECONDS:
            self._broke("I16", f"charge {charge}", f"more than {CALLS_A_WINDOW} calls in {now - newest[0]:.1f} s")
            newest.clear()  # told once for so many
        newest.append(now)
