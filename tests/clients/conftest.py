"""The report of what was done with each client, and what becomes of the tests of one that cannot be run."""

import pytest

from tests.clients.programs import all_are_required, found
from tests.clients.report import REPORT, Report


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(name, part): it is a part of what is done with a client")
    config.pluginmanager.register(Report(REPORT))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail them if it does not build; where its tools are missing, skip them unless all clients are required."""
    if (marker := item.get_closest_marker("client")) is None:
        return
    state = found(marker.args[0])
    if state.fault is not None:
        pytest.fail(f"it could not be set up:\n{state.fault}", pytrace=False)
    if state.missing is not None:
        if all_are_required():
            pytest.fail(f"missing: {state.missing}", pytrace=False)
        pytest.skip(f"missing: {state.missing}")
