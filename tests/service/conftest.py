"""A world whose time the test sets, for the tests of this folder that ask for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rig.world import World
from tests.service.clock_rig import Clock, a_clocked_world


@pytest.fixture
def clock() -> Clock:
    """The clock of the world `clocked`."""
    return Clock()


@pytest.fixture
async def clocked(tmp_path: Path, clock: Clock) -> AsyncIterator[World]:
    """A world whose command server goes by the test's clock."""
    async with a_clocked_world(tmp_path, clock) as world:
        yield world
