"""Where a journal is kept, by the form of COMMAND_JOURNAL: the one place that chooses a store."""

from pathlib import Path

from chassis.settings import file_path, state_file
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.url import FORM, SCHEMES
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import Location

DEFAULT = state_file("journal.db", "sqlite:///")
FORMER_FILE = Path("build/journal.db")
"""Where the journal was by default before; a server that begins another one beside it would charge anew."""
FORMER_DEFAULT = f"sqlite:///{FORMER_FILE}"


def location(value: str) -> Location:
    """sqlite:///path, as sqlite:///var/journal.db (relative) or sqlite:////var/journal.db (absolute), or a URL of PostgreSQL.

    Links are followed: lock and anchor lie beside the file, whatever name it is given.
    """
    if value.startswith(SCHEMES):
        return PostgresPlace.of(value)
    path = value.removeprefix("sqlite:///")
    if path in (value, ""):
        raise ValueError(f"must be sqlite:///path or {FORM}")
    return SqliteFile(file_path(path).resolve())
