"""Finds a charge that looks like the second one of a single intent: programs make a new key for each try.

It keeps, in memory, the charges of the last while by tenant, user, card, amount and currency. A charge that is over without
money is forgotten: its payer may try again. After a start the journal tells them again (`recall`).
"""

from collections import defaultdict, deque
from collections.abc import Callable

from command_service.charge import Charge, State, is_over_without_money, is_same_card
from command_service.codec import decode
from command_service.events import ChargeRequested
from command_service.journal import Journal, Place
from command_service.streams import Streams
from command_service.values import Request


class Recent:
    """The charges requested in the last `window_seconds`; 0: none is kept, and none is ever found."""

    def __init__(self, window_seconds: float, now: Callable[[], int]) -> None:
        """`now` gives microseconds since 1970."""
        self._window = round(window_seconds * 1_000_000)
        self._now = now
        self._alike: dict[tuple[object, ...], dict[str, Request]] = defaultdict(dict)
        self._in_order: deque[tuple[int, Request]] = deque()

    @property
    def begins(self) -> int | None:
        """The time, in microseconds since 1970, from which charges are kept; None if none is."""
        return self._now() - self._window if self._window else None

    def earlier(self, request: Request) -> str | None:
        """Return the id of another charge like this one; None if there is none."""
        if (begins := self.begins) is None:
            return None
        while self._in_order and self._in_order[0][0] < begins:
            self.forget(self._in_order.popleft()[1])
        for known in self._alike.get(_likeness(request), {}).values():
            if known.charge_id != request.charge_id and is_same_card(known.card, request.card):
                return known.charge_id
        return None

    def note(self, request: Request, at: int | None = None) -> bool:
        """Keep a charge, requested at this time or now; return whether it was not kept before."""
        if not self._window:
            return False
        alike = self._alike[_likeness(request)]
        if request.charge_id in alike:
            return False
        alike[request.charge_id] = request
        self._in_order.append((self._now() if at is None else at, request))
        return True

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


async def recall(recent: Recent, journal: Journal, streams: Streams) -> None:
    """Keep the charges that the journal says were requested in the last while. Raises Unreadable."""
    if (begins := recent.begins) is None:
        return
    # Recorded times never run backwards: the first position of the last while is found by halving.
    before, beyond = 0, journal.head.position + 1
    while beyond - before > 1:
        middle = (before + beyond) // 2
        (record, *_) = await journal.read_after(Place(middle - 1, await journal.chain_at(middle - 1)))
        before, beyond = (middle, beyond) if record.recorded_at < begins else (before, middle)
    place = Place(before, await journal.chain_at(before))
    while records := await journal.read_after(place):
        for record in records:
            if isinstance(event := decode(record.event), ChargeRequested):
                recent.note(event.request, record.recorded_at)
                recent.note_rest((await streams.load(record.charge_id)).state)
        place = Place(records[-1].position, records[-1].chain)


def _likeness(request: Request) -> tuple[object, ...]:
    return request.tenant, request.user_id, request.amount
