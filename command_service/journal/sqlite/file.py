"""A SQLite file as the place of a journal: what can be done with a journal there."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from chassis.disk import LOCAL_DISK, Disk
from command_service.journal import Place
from command_service.journal.sqlite import backup, moving
from command_service.journal.sqlite.file_system import IN_MEMORY, kind_of
from command_service.journal.sqlite.making import Identity
from command_service.journal.sqlite.moving import SqliteCopy
from command_service.journal.sqlite.reading import SqliteReading, reading
from command_service.journal.sqlite.store import SqliteStore
from command_service.journal.store import Fold, random_id


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A journal's file. See `command_service.journal.store.Location`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def lies_in_memory(self) -> bool:
        """Whether it is lost with the machine's power."""
        return kind_of(self.path, LOCAL_DISK) in IN_MEMORY

    @property
    def crosses_network_unverified(self) -> bool:
        """Not a file: those on network file systems are refused for other reasons."""
        return False

    async def open(
        self,
        *,
        new_id: Callable[[], str] = random_id,
        free_bytes: int = 0,
        must_exist: bool = False,
        any_file_system: bool = False,
        disk: Disk = LOCAL_DISK,
    ) -> SqliteStore:
        """Open the file for a server; see the port."""
        return await SqliteStore.open(
            self.path,
            new_id=new_id,
            free_bytes=free_bytes,
            must_exist=must_exist,
            any_file_system=any_file_system,
            disk=disk,
        )

    def read(self, *, at_one_moment: bool = False) -> AbstractContextManager[SqliteReading]:
        """Read the file as an operator does; see the port."""
        return reading(self.path, at_one_moment=at_one_moment)

    def backup(self, to: Path) -> Place:
        """Copy the journal to a new file; see the port."""
        return backup.backup(self.path, to)

    def restore(
        self,
        source: Path | None,
        unfinished_in: Fold,
        *,
        any_file_system: bool = False,
        disk: Disk = LOCAL_DISK,
    ) -> tuple[str, Place]:
        """Put a backup in the file's place, or accept the file; see the port."""
        return backup.restore(self.path, source, unfinished_in, any_file_system=any_file_system, disk=disk)

    def migrate(self, *, new_id: Callable[[], str] = random_id) -> str:  # noqa: ARG002  # the port's
        """Nothing; see the port."""
        return f"nothing to do: a server makes the file {self.path} itself, and brings it up to date"

    def receive(self, journal_id: str, *, restored: bool, home: str) -> AbstractContextManager[SqliteCopy]:
        """Take the file to copy a journal into it; see the port."""
        return moving.receive(self.path, Identity(journal_id, restored, home))

    def leave(self, home: str, head: Place) -> None:
        """Note that the journal is served from another place; see the port."""
        moving.leave(self.path, home, head)
