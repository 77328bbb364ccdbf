"""A command server with a bug planted into it, for the controls of the harnesses that start real processes.

    PROVE_SABOTAGE="reply before the commit" python -m prove.sabotaged

It is the product's own server otherwise, and nothing of the product reads that variable. The bugs are those of
`prove.canaries`, and one that the simulation cannot tell from what is right.
"""

import os
import socket
import sys
from collections.abc import Sequence

import structlog

from command_service.cli import main
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.session import Node
from command_service.journal.postgres.store import PostgresStore
from command_service.journal.store import Store
from command_service.parts import Parts
from command_service.settings import Settings
from prove import canaries
from rig.processes import Server

VARIABLE = "PROVE_SABOTAGE"
WRITES_ITS_LOG_ITSELF = "who logs waits for standard error"


class WritesItsLogItself(Parts):
    """Whoever logs waits until the line is written."""

    def __init__(self, chosen: Settings) -> None:
        super().__init__(chosen)
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.__stderr__))


class OnDatabase(Parts):
    """Those of a journal in PostgreSQL, with the database's nodes as a part."""

    def nodes(self) -> Sequence[Node]:
        """Return the nodes of the journal's database."""
        assert isinstance(self.settings.journal, PostgresPlace)
        return self.settings.journal.nodes()

    async def store(self) -> Store:
        """Open the journal's store. Raises JournalRefused."""
        name = f"{socket.gethostname()}:{os.getpid()}"
        return await PostgresStore.open(self.nodes(), name=name, new_id=self.new_id, chance=self.chance())


def sabotage(server: Server, bug: str) -> None:
    """Have a command server start with a bug from now on."""
    server.module, server.environment = "prove.sabotaged", {**server.environment, VARIABLE: bug}


if __name__ == "__main__":
    bug = os.environ[VARIABLE]
    parts = OnDatabase if bug in canaries.OF_A_DATABASE else Parts
    main(make_parts=WritesItsLogItself if bug == WRITES_ITS_LOG_ITSELF else canaries.planted(bug, parts))
