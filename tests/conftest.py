"""Before every test: servers of this machine are reached directly, whatever proxy the environment names for the web.

No law over generated input fails because the machine stood still for a moment. And a real PostgreSQL for those tests that
ask for one: it is started for the first of them.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from rig.postgres import Node, database, wait_for

for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")]:
    del os.environ[name]

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Node]:
    """A server that all tests share. Whoever kills one or changes its settings starts another."""
    node = Node()
    try:
        yield wait_for(node.start())
    finally:
        node.close()


@pytest.fixture
def postgres_url(postgres: Node) -> str:
    """An empty database of the shared server."""
    return wait_for(database(postgres))
