"""A ledger, and a bank that keeps it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.mock_bank.client import Client, running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def bank(path: Path) -> AsyncIterator[Client]:
    async with running(path) as client:
        yield client
