"""A PostgreSQL database as the place of a journal: what can be done with a journal there."""

import os
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from chassis.disk import LOCAL_DISK, Disk
from command_service.journal import Place
from command_service.journal.postgres import copying, migrating
from command_service.journal.postgres.access import arguments_of
from command_service.journal.postgres.copying import PostgresCopy
from command_service.journal.postgres.reading import PostgresReading, reading
from command_service.journal.postgres.statements import PostgresNode
from command_service.journal.postgres.store import PostgresStore
from command_service.journal.postgres.url import Url, leaves_machine, parse
from command_service.journal.store import Fold, random_id


@dataclass(frozen=True, slots=True)
class PostgresPlace:
    """A journal's database. See `command_service.journal.store.Location`."""

    url: Url

    @classmethod
    def of(cls, value: str) -> "PostgresPlace":
        """Read a URL. Raises ValueError."""
        return cls(parse(value))

    def __str__(self) -> str:
        return str(self.url)

    @property
    def lies_in_memory(self) -> bool:
        """Not that we could know."""
        return False

    @property
    def crosses_network_unverified(self) -> bool:
        """Whether somebody on the way could read the journal, or answer in the database's place.

        verify-ca is not enough: it takes any machine with a certificate of the authority for the database.
        """
        return self.url.sslmode != "verify-full" and any(map(leaves_machine, self.url.nodes))

    def nodes(self) -> Sequence[PostgresNode]:
        """Return the nodes, each to be connected to by itself. Raises JournalRefused if a file of the URL cannot be used."""
        arguments = arguments_of(self.url)
        return [PostgresNode(node.host, node.port, arguments) for node in self.url.nodes]

    async def open(
        self,
        *,
        new_id: Callable[[], str] = random_id,
        free_bytes: int = 0,  # noqa: ARG002  # of a file, as those below
        must_exist: bool = False,  # noqa: ARG002
        any_file_system: bool = False,  # noqa: ARG002
        disk: Disk = LOCAL_DISK,  # noqa: ARG002
    ) -> PostgresStore:
        """Open the journal for a server; see the port. It always has to exist, and `new_id` names servers.

        An operator knows the server by its host and process id. What is said of files means nothing here.
        """
        name = f"{socket.gethostname()}:{os.getpid()}"
        return await PostgresStore.open(self.nodes(), name=name, new_id=new_id, chance=random.Random())

    def read(self, *, at_one_moment: bool = False) -> AbstractContextManager[PostgresReading]:
        """Read the journal as an operator does; see the port."""
        return reading(self.url, at_one_moment=at_one_moment)

    def backup(self, to: Path) -> Place:
        """Copy the journal to a new SQLite file; see the port."""
        return copying.backup(self.url, to)

    def restore(
        self,
        source: Path | None,
        unfinished_in: Fold,
        *,
        any_file_system: bool = False,  # noqa: ARG002  # of a file
        disk: Disk = LOCAL_DISK,  # noqa: ARG002
    ) -> tuple[str, Place]:
        """Put a backup, a SQLite file, into an empty database, or accept what the database holds; see the port."""
        return copying.restore(self.url, source, unfinished_in)

    def migrate(self, *, new_id: Callable[[], str] = random_id) -> str:
        """Make the tables, or bring them up to date; see the port."""
        return migrating.migrate(self.url, new_id)

    def receive(self, journal_id: str, *, restored: bool, home: str) -> AbstractContextManager[PostgresCopy]:
        """Take the database to copy a journal into it; see the port."""
        return copying.receive(self.url, journal_id, restored=restored, home=home)

    def leave(self, home: str, head: Place) -> None:
        """Note that the journal is served from another place; see the port."""
        copying.leave(self.url, home, head)
