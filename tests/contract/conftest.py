"""The loops: the bank's adapter is tested on the servers' loop, and its transport on both loops."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
CHOSEN = {"test_http11.py": ["asyncio", "uvloop"], "test_bank.py": ["uvloop"], "test_gateway.py": ["uvloop"]}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {name: LOOPS[name] for name in CHOSEN.get(item.path.name, ["asyncio"])}
