"""Slots for calls, such as those to a bank, given out so that no tenant's flood of calls holds up another tenant's few."""

import asyncio
from collections import deque


class Slots:
    """So many slots. A free one is given at once, and never waits while a call does.

    A slot that becomes free goes to the waiting tenant that has the fewest; among these, to the one that was not served for
    longest. Within a tenant it is first come, first served.
    """

    def __init__(self, count: int) -> None:
        self.limit = count
        self._free = count
        self._used: dict[str, int] = {}
        # Tenants in the order in which they were served last.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def used(self) -> int:
        """The number of slots that are taken."""
        return self.limit - self._free

    @property
    def are_taken(self) -> bool:
        """Whether a call that comes now has to wait."""
        return self._free == 0

    async def take(self, tenant: str) -> None:
        """Wait for a slot, to be given back. A call that is cancelled meanwhile has none."""
        if self._free:
            self._free -= 1
            self._used[tenant] = self._used.get(tenant, 0) + 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given the slot a moment ago
                self.give_back(tenant)
            raise

    def give_back(self, tenant: str) -> None:
        """Give a tenant's slot back: to the next call that waits, or it is free."""
        if (used := self._used.pop(tenant) - 1) > 0:
            self._used[tenant] = used
        if not self._pass_on():
            self._free += 1

    def _pass_on(self) -> bool:
        while self._waiting:
            tenant = min(self._waiting, key=lambda waiting: self._used.get(waiting, 0))
            turns = self._waiting.pop(tenant)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # now behind the others
            if not turn.done():  # else it was cancelled
                self._used[tenant] = self._used.get(tenant, 0) + 1
                turn.set_result(None)
                return True
        return False
