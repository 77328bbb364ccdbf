"""A site and a browser for each test that asks for them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.console.site import Site, a_browser, a_site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """All servers without a policy, and a console."""
    async with a_site(tmp_path) as found:
        yield found


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Site]:
    """All servers with a policy, and a console."""
    async with a_site(tmp_path, with_policy=True) as found:
        yield found


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    async with a_browser() as found:
        yield found
