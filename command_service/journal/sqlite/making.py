"""How a journal begins: complete, or not at all.

The maker writes a draft beside the journal's place, with schema and id, and syncs it; writes the anchor; then gives the draft
the journal's name. What a maker that died leaves behind can be recognised, and is finished or begun anew. A journal that has
lost its file, its WAL or its anchor looks different, however young it is, and is never begun anew.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from chassis.disk import Disk
from chassis.sqlite import open_connection, sync_directory
from command_service.journal import START, JournalRefused
from command_service.journal.sqlite import anchor, owner
from command_service.journal.sqlite.table import (
    FORMAT,
    INSERT_JOURNAL,
    READER_PRAGMAS,
    SCHEMA,
    SELECT_JOURNAL,
    set_home,
)

# No WAL: the file is all there is of it.
ONE_FILE: Mapping[str, str | int] = {"journal_mode": "delete", "synchronous": 2}


class Identity(NamedTuple):
    """What a journal is, beside its records."""

    journal_id: str
    restored: bool
    home: str
    """The place that it is served from if it is not this one; else ""."""


def make_if_new(path: Path, new_id: Callable[[], str], disk: Disk, *, restored: bool = False, home: str = "") -> bool:
    """Make a journal where none has been, under a new id. Returns whether it is new.

    It is marked as restored, or as one that is served from another place, from its very beginning.

    Raises JournalRefused with the way out if there was a journal whose file is gone or empty: SQLite would make an empty file
    and throw away the WAL beside it, with all records in it.
    """
    if bytes_in(path):
        return False
    anchored = anchor.read(path)
    draft = path.with_name(path.name + ".making")
    is_made = anchored is not None and anchored.place == START and _id_in(draft, disk) == anchored.journal_id
    if path.exists() or bytes_in(wal_beside(path)) or (anchored and not is_made):
        raise JournalRefused(_lost(path, "its anchor" if anchored else "its WAL" if bytes_in(wal_beside(path)) else ""))
    if not is_made:
        _make(path, draft, Identity(new_id(), restored, home), disk)
    draft.rename(path)
    sync_directory(path.parent)
    return True


def refuse_absent(path: Path) -> None:
    """See that there is a journal, before anything is made where it should be. Raises JournalRefused."""
    if not bytes_in(path):
        raise JournalRefused(
            f"there is no journal at {path}, and COMMAND_JOURNAL_MUST_EXIST says that there is one: mount its disk, correct "
            "COMMAND_JOURNAL, or restore a backup"
        )


def _lost(path: Path, trace: str) -> str:
    state = "empty" if path.exists() else "missing"
    if trace:
        return (
            f"the journal {path} is {state}, but {trace} says that there was one: put the file back where its WAL is, or "
            "restore a backup"
        )
    return (
        f"the journal {path} is {state}, and no server of ours leaves such a file: restore a backup or, if there never was a "
        "journal here, remove the file"
    )


def _make(path: Path, draft: Path, identity: Identity, disk: Disk) -> None:
    """Make a draft of a new journal, durable, and then its anchor."""
    for left_behind in (draft.with_name(draft.name + "-journal"), draft):
        left_behind.unlink(missing_ok=True)
    owner.create(draft, owner.owner_beside(path, anchor.path_beside(path)))
    with contextlib.closing(open_connection(draft, read_only=False, pragmas=ONE_FILE, disk=disk)) as connection:
        begin(connection, identity)
        connection.execute("COMMIT")
    sync_directory(path.parent)  # the draft's name is durable before there is an anchor that speaks of it
    anchor.write(path, anchor.Anchor(identity.journal_id, START))


def begin(connection: sqlite3.Connection, identity: Identity) -> None:
    """Begin a transaction in an empty file, and make a journal without records in it."""
    connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
    connection.execute(INSERT_JOURNAL, (identity.journal_id, FORMAT, identity.restored))
    if identity.home:
        set_home(connection, identity.home)


def _id_in(draft: Path, disk: Disk) -> str | None:
    """The id in a draft; None if it is no whole journal."""
    if not bytes_in(draft):
        return None
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(open_connection(draft, read_only=True, pragmas=READER_PRAGMAS, disk=disk)) as connection,
    ):
        for journal_id, *_ in connection.execute(SELECT_JOURNAL).fetchall():
            return str(journal_id)
    return None


def wal_beside(path: Path) -> Path:
    """Where SQLite keeps what is not in the file yet."""
    return path.with_name(path.name + "-wal")


def bytes_in(path: Path) -> int:
    """The size of a file; 0 if it is missing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
