"""The calls that wait until no operation is under way in their charge: first come, first served, one at a time."""

import asyncio
from collections import deque
from typing import NamedTuple

Turn = asyncio.Future[bool]
"""True: the call may try again. False: it no longer waits."""


class _Waiting(NamedTuple):
    operation_id: str
    turn: Turn


class Turns:
    """The waiting calls of all charges."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Waiting]] = {}

    def wait(self, charge_id: str, operation_id: str, *, first: bool) -> Turn:
        """Queue up in a charge. `first`: a call that had its turn and could not use it is the next one again."""
        turn: Turn = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(charge_id, deque())
        (waiting.appendleft if first else waiting.append)(_Waiting(operation_id, turn))
        return turn

    def next(self, charge_id: str) -> None:
        """Give the turn to the call that has waited longest."""
        while (waiting := self._waiting.get(charge_id)) is not None:
            turn = waiting.popleft().turn
            if not waiting:
                del self._waiting[charge_id]
            if not turn.done():
                turn.set_result(True)
                return

    def leave(self, charge_id: str, turn: Turn) -> None:
        """Forget a call that no longer waits."""
        if (waiting := self._waiting.get(charge_id)) is not None:
            left = deque(each for each in waiting if each.turn is not turn)
            if left:
                self._waiting[charge_id] = left
            else:
                del self._waiting[charge_id]

    def begun(self, charge_id: str, operation_id: str) -> None:
        """Let all calls for an operation that has begun try again: they join it."""
        for waiting in self._waiting.get(charge_id, ()):
            if waiting.operation_id == operation_id and not waiting.turn.done():
                waiting.turn.set_result(True)
