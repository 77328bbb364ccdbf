"""A sandbox of the service for all tests: a bank that moves no money, and the servers in front of it."""

import json
import os
import shlex
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chargeonce_client import Client, Settings, connect

CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Sandbox:
    """Where its servers are."""

    settings: Settings
    bank: str

    def movements(self, charge_id: str) -> list[dict[str, Any]]:
        """Return what the bank's statement has of a charge."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.bank}/statement", timeout=15) as answer:
            return [movement for movement in json.load(answer)["movements"] if movement["reference"] == charge_id]


def _command() -> list[str]:
    """Return the command line that starts a sandbox."""
    if named := os.environ.get("CHARGEONCE_SANDBOX"):
        return shlex.split(named)
    installed = CHECKOUT / ".venv" / "bin" / "chargeonce"
    return [str(installed) if installed.exists() else "chargeonce", "sandbox"]


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Start a sandbox; it says on one line where it is, once it serves. It ends with us in any case."""
    with subprocess.Popen(_command(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the sandbox did not start"
        told = json.loads(line)
        yield Sandbox(Settings(told["command"], told["query"], told["feed"]), told["bank"])
        process.terminate()


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[Client]:
    async with connect(sandbox.settings) as connected:
        yield connected
