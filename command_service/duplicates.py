"""Finds a charge that looks like the second one of a single intent: programs make a new key for each try.

It keeps, in memory, the charges of the last while by tenant, user, card, amount and currency. A charge that is over without
money is forgotten: its payer may try again. After a start the journal tells them again (`recall`).
"""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

from command_service.charge import Charge, State, evolve, is_over_without_money, is_same_card
from command_service.codec import decode
from command_service.events import ChargeRequested, Recorded
from command_service.journal import Journal, Place
from command_service.streams import ABSENT
from command_service.values import Request


class _Noted(NamedTuple):
    """A charge that is kept, and the time of its request in microseconds since 1970."""

    at: int
    request: Request


class Recent:
    """The charges requested in the last `window_seconds`; 0: none is kept, and none is ever found."""

    def __init__(self, window_seconds: float, now: Callable[[], int]) -> None:
        """`now` gives microseconds since 1970."""
        self._window = round(window_seconds * 1_000_000)
        self._now = now
        self._alike: dict[tuple[object, ...], dict[str, _Noted]] = defaultdict(dict)
        self._in_order: deque[_Noted] = deque()  # those forgotten meanwhile included

    @property
    def begins(self) -> int | None:
        """The time, in microseconds since 1970, from which charges are kept; None if none is."""
        return self._now() - self._window if self._window else None

    def earlier(self, request: Request) -> str | None:
        """Return the id of another charge like this one; None if there is none."""
        for at, known in self._alike.get(_likeness(request), {}).values():
            if known.charge_id != request.charge_id and is_same_card(known.card, request.card) and self._is_recent(at):
                return known.charge_id
        return None

    def note(self, request: Request, at: int | None = None) -> bool:
        """Keep a charge, requested at this time or now; return whether it was not kept before."""
        if not self._window:
            return False
        self._drop_old()
        alike = self._alike[_likeness(request)]
        if request.charge_id in alike:
            return False
        alike[request.charge_id] = noted = _Noted(self._now() if at is None else at, request)
        self._in_order.append(noted)
        return True

    def _drop_old(self) -> None:
        while self._in_order and not self._is_recent(self._in_order[0].at):
            old = self._in_order.popleft()
            # It may have been forgotten, and kept again since: then the later time counts.
            if self._alike.get(_likeness(old.request), {}).get(old.request.charge_id) is old:
                self.forget(old.request)

    def _is_recent(self, at: int) -> bool:
        """Whether a time lies in the window. A clock that went back by more than the window makes all times before it old."""
        return abs(self._now() - at) <= self._window

    def forget(self, request: Request) -> None:
        """Keep it no longer."""
        key = _likeness(request)
        if (alike := self._alike.get(key)) is not None:
            alike.pop(request.charge_id, None)
            if not alike:
                del self._alike[key]

    def note_rest(self, state: State) -> None:
        """Forget a charge that is over without money: its payer may try again."""
        if isinstance(state, Charge) and is_over_without_money(state):
            self.forget(state.request)


async def recall(recent: Recent, journal: Journal) -> None:
    """Keep the charges that the journal says were requested in the last while. Call it before clients come.

    It reads the journal from there to its end. Raises Unreadable.
    """
    if (begins := recent.begins) is None:
        return
    # Recorded times never run backwards: the first position of the last while is found by halving.
    before, beyond = 0, journal.head.position + 1
    while beyond - before > 1:
        middle = (before + beyond) // 2
        (record, *_) = await journal.read_after(Place(middle - 1, await journal.chain_at(middle - 1)))
        before, beyond = (middle, beyond) if record.recorded_at < begins else (before, middle)
    place = Place(before, await journal.chain_at(before))
    states: dict[str, State] = {}
    while records := await journal.read_after(place):
        for record in records:
            event = decode(record.event)
            if isinstance(event, ChargeRequested):
                recent.note(event.request, record.recorded_at)
                states[record.charge_id] = ABSENT
            if (state := states.get(record.charge_id)) is not None:
                states[record.charge_id] = evolve(state, Recorded(event, record.position, record.recorded_at))
        place = Place(records[-1].position, records[-1].chain)
    for state in states.values():
        recent.note_rest(state)


def _likeness(request: Request) -> tuple[object, ...]:
    return request.tenant, request.user_id, request.amount
