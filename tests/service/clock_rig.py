"""A command server that goes by a clock that the test sets: what depends on time then depends on no machine's speed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from command_service.parts import Parts
from command_service.settings import Settings
from rig.world import World, a_world

# In microseconds, as all times of the core: a day of 2026, and a time that no test waits for, since it sets the clock.
START = 1_790_000_000_000_000
MOMENT = 200_000


@dataclass
class Clock:
    """A clock that a test sets, in microseconds since 1970."""

    moment: int = START

    def in_a_moment(self) -> Timestamp:
        """A time to come, which has passed once the test has added two moments."""
        at = Timestamp()
        at.FromMicroseconds(self.moment + MOMENT)
        return at


class Clocked(Parts):
    """Parts with a clock that a test sets."""

    def __init__(self, clock: Clock, chosen: Settings) -> None:
        super().__init__(chosen)
        self._clock = clock

    def now(self) -> int:
        return self._clock.moment


@asynccontextmanager
async def a_clocked_world(folder: Path, clock: Clock, **settings: str) -> AsyncIterator[World]:
    """A world whose command server goes by a test's clock."""
    async with a_world(folder, partial(Clocked, clock), **settings) as world:
        yield world
