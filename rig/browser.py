"""A real Chromium for tests and screenshots: Debian's, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def executable() -> str | None:
    """Return the path of a Chromium that is installed here."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Start it, without a window. Raises FileNotFoundError if there is none."""
    path = executable()
    if path is None:
        raise FileNotFoundError("no Chromium is installed: apt-get install chromium")
    # Chromium's sandbox refuses to work for root; the pages are our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(
            executable_path=path, args=[*arguments, "--disable-dev-shm-usage", "--no-proxy-server"]
        )
        try:
            yield started
        finally:
            await started.close()
