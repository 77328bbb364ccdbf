"""The quick start of every language, as it stands: at the documented ports, and one charge however often it is run."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from judge.history import charge_id_of
from rig.processes import Town
from rig.referee import Referee
from tests.clients.programs import LANGUAGES
from tests.clients.tours import QUICKSTART

COMMAND = "127.0.0.1:50051"
SECONDS = 60.0
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def referee(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Referee]:
    host, _, port = COMMAND.rpartition(":")
    with socket.socket() as probe:
        if probe.connect_ex((host, int(port))) == 0:
            pytest.fail(
                f"{COMMAND} is taken, and the quick starts know no other address: end what listens there", False
            )
    town = Town(tmp_path_factory.mktemp("quickstart"))
    try:
        await town.start_bank()
        await town.start_command(COMMAND_LISTEN=COMMAND)
        async with Referee(town.bank_url) as referee:
            yield referee
    finally:
        await town.__aexit__()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.client(name, QUICKSTART)) for name in LANGUAGES])
async def test_it_charges_once_and_prints_the_status_and_the_transaction(
    referee: Referee, name: str, tmp_path: Path
) -> None:
    runs = [await LANGUAGES[name].run("quickstart", tmp_path / f"run-{number}", SECONDS) for number in (1, 2)]
    (moved,) = await referee.movements(charge_id_of("default", f"quickstart-{name}"))
    assert (moved.kind, moved.minor_units, moved.currency_code) == ("charge", 1250, "EUR")
    for ran in runs:
        assert ran.trouble() == ""
        assert "CHARGED" in ran.out.upper()
        assert moved.transaction_id in ran.out
