"""The calls that wait until no operation is under way in their charge: first come, first served, one at a time."""

import asyncio
from collections import deque

Turn = asyncio.Future[None]
"""Done when the call that waits for it may try again. A call that no longer waits cancels it."""


class Turns:
    """The waiting calls of all charges."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Turn]] = {}

    def wait(self, charge_id: str) -> Turn:
        """Queue up in a charge."""
        turn: Turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(charge_id, deque()).append(turn)
        return turn

    def next(self, charge_id: str) -> None:
        """Give the turn to the call that has waited longest: an operation has ended, or a call did not use its turn."""
        while (waiting := self._waiting.get(charge_id)) is not None:
            turn = waiting.popleft()
            if not waiting:
                del self._waiting[charge_id]
            if not turn.done():
                turn.set_result(None)
                return
