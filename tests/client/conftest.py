"""The three servers in this event loop, and a client of them; or as processes that can be killed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chargeonce_client import Client, Settings, connect
from rig.ports import town_with_kept_ports
from rig.processes import Town
from rig.referee import Referee
from rig.servers import Servers, servers_in


def settings_of(town: Town) -> Settings:
    """Where its servers are, also while they are down."""
    return Settings(town.command.listen, town.query.listen, str(town.command.serving["feed"]))


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    with servers_in(tmp_path, is_killing=False) as servers:
        await servers.bank_up()
        await servers.command_up({"COMMAND_BANK_URL": f"http://{servers.bank}"})
        await servers.query_up({"QUERY_FEED": servers.feed})
        yield servers
        await servers.query_down()
        await servers.command_down()
        await servers.bank_down()


@pytest.fixture
async def client(servers: Servers) -> AsyncIterator[Client]:
    async with connect(Settings(servers.command, servers.query, servers.feed)) as client:
        yield client


@pytest.fixture
async def bank(servers: Servers) -> AsyncIterator[Referee]:
    async with Referee(f"http://{servers.bank}") as referee:
        yield referee


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    with town_with_kept_ports(tmp_path) as town:
        async with town:
            await town.start_query()
            yield town
