"""The waiting calls: calls that wait for a position, and watchers that wait for a charge to change.

The subscriber reports each batch that it has written to the view, and only the calls that it concerns wake up. A waiting
call costs an entry in a dictionary.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from query_service.verified import Stretch


class Waiting:
    """The calls that wait, and the position that the view has reached."""

    def __init__(self) -> None:
        self.position = 0
        self.is_stopping = False
        self._arrivals: dict[asyncio.Future[None], int] = {}
        self._watchers: dict[bytes, set[asyncio.Event]] = {}

    def written(self, stretch: Stretch) -> None:
        """Take note that the view shows this stretch of the journal now."""
        self.position = stretch.to.position
        if self._watchers:
            for record in stretch.records:
                for changed in self._watchers.get(record.charge_id, ()):
                    changed.set()
        self._wake_arrived()

    def begun_at(self, position: int) -> None:
        """Take note that the view was opened or emptied, and shows this position: watched charges may be gone."""
        self.position = position
        self._wake_arrived()
        self._wake_watchers()

    def stop(self) -> None:
        """End all watches: the server stops."""
        self.is_stopping = True
        self._wake_watchers()

    async def reach(self, position: int, timeout_seconds: float) -> bool:
        """Wait until the view shows at least this position. Returns False after `timeout_seconds`."""
        if position <= self.position:
            return True
        if timeout_seconds <= 0:
            return False
        arrived = asyncio.get_running_loop().create_future()
        self._arrivals[arrived] = position
        try:
            async with asyncio.timeout(timeout_seconds):
                await arrived
        except TimeoutError:
            pass
        finally:
            del self._arrivals[arrived]
        return position <= self.position

    @contextmanager
    def watching(self, charge_id: bytes) -> Iterator[asyncio.Event]:
        """Give an event that is set after each possible change of the charge, and when the server stops."""
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(charge_id, set())
        watchers.add(changed)
        try:
            yield changed
        finally:
            watchers.discard(changed)
            if not watchers:
                self._watchers.pop(charge_id, None)

    def _wake_arrived(self) -> None:
        for arrived, position in self._arrivals.items():
            if position <= self.position and not arrived.done():
                arrived.set_result(None)

    def _wake_watchers(self) -> None:
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()
