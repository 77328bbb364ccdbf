"""The loops and the rigs: the bank's adapter is tested on the servers' loop, and its transport on both loops."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Set
from pathlib import Path

import pytest
import uvloop

from command_service.journal.postgres.place import PostgresPlace
from rig.postgres import Node, wait_for
from rig.postgres_pair import Pair
from tests.contract.bank_rigs import ABILITIES, RIGS, Ability, Rig
from tests.contract.moving import Places
from tests.contract.stripe_rig import StripeRig, stripe_rig

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
ALL_RIGS = {**RIGS, "stripe": stripe_rig}
ALL_ABILITIES = {**ABILITIES, "stripe": StripeRig.abilities}
CHOSEN = {
    "test_http11.py": ["asyncio", "uvloop"],
    "test_bank.py": ["uvloop"],
    "test_bank_answers.py": ["uvloop"],
    "test_bank_calling_off.py": ["uvloop"],
    "test_conformance.py": ["uvloop"],
    "test_gateway.py": ["uvloop"],
    "test_line.py": ["uvloop"],
    "test_look_up.py": ["uvloop"],
    "test_lines.py": ["uvloop"],
    "test_tunnel.py": ["asyncio", "uvloop"],
}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {name: LOOPS[name] for name in CHOSEN.get(item.path.name, ["asyncio"])}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about abilities that the rig's bank has not."""
    left_out = [item for item in items if (needed := _needed(item)) and needed - _present(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _needed(item: pytest.Item) -> set[Ability]:
    return {mark.args[0] for mark in item.iter_markers("needs")}


def _present(item: pytest.Item) -> Set[Ability]:
    return ALL_ABILITIES[str(item.callspec.params["shared_rig"])] if isinstance(item, pytest.Function) else frozenset()


@pytest.fixture(scope="module", params=ALL_RIGS)
def shared_rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with ALL_RIGS[request.param](folder) as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    yield shared_rig
    shared_rig.forget_trouble()


@pytest.fixture(scope="session")
def shared_pair() -> Iterator[Pair]:
    pair = Pair()
    try:
        yield wait_for(pair.start())
    finally:
        wait_for(pair.__aexit__())


@pytest.fixture
async def pair(shared_pair: Pair) -> AsyncIterator[Pair]:
    """A primary and its synchronous standby, which the test may stop and have change places."""
    yield shared_pair
    if not shared_pair.standby.is_running or not await shared_pair.standby.fetch("SELECT WHERE pg_is_in_recovery()"):
        await shared_pair.rejoin()


@pytest.fixture
def places(tmp_path: Path, postgres: Node) -> Places:
    """Where journals are."""
    return Places(tmp_path, postgres)


@pytest.fixture
def place(places: Places) -> PostgresPlace:
    """A journal in a database."""
    place = places.full("postgres")
    assert isinstance(place, PostgresPlace)
    return place
