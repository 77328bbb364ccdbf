"""The checks of a start, before a journal's file is served from.

They make durable what an earlier server wrote, see that the journal is the one that it was, and see that it can be written.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from chassis.disk import FULL, Disk
from chassis.sqlite import PragmaNotTakenError, sync_directory
from command_service.journal import JournalCorrupt, JournalRefused, Place
from command_service.journal.sqlite import anchor
from command_service.journal.sqlite.making import bytes_in, wal_beside
from command_service.journal.sqlite.table import (
    FORMAT,
    FORMATS,
    MARKED_FORMATS,
    PROBE,
    SELECT_JOURNAL,
    UPGRADE,
    chain_at,
    home_of,
    read_head,
    verify,
)
from command_service.journal.store import served_elsewhere

# The records that every start verifies, in some 20 ms; verify-journal verifies all.
TAIL_VERIFIED_AT_START = 10_000

_NOT_WRITABLE = ": see that it, what lies beside it and its folder can be written"
# By how the names of SQLite's errors begin. A quota (EDQUOT) and a limit (EFBIG) are failed writes to SQLite.
WAYS_OUT = {
    "SQLITE_FULL": ": the disk is full, make room, and start again",
    "SQLITE_IOERR_WRITE": ": if a quota or a limit on file sizes is full, make room or raise it, and start again",
    "SQLITE_IOERR_SHMSIZE": ": if the disk, a quota or a limit on file sizes is full, make room or raise it, and start again",
    "SQLITE_READONLY": _NOT_WRITABLE,
    "SQLITE_CANTOPEN": _NOT_WRITABLE,
    "SQLITE_BUSY": ": another program holds its lock, end that program or its transaction, and start again",
}


def must_be_there(path: Path) -> None:
    """Raise JournalRefused if there is no journal to read: SQLite throws away the WAL of an empty file, even for a reader."""
    if not bytes_in(path):
        raise JournalRefused(f"there is no journal at {path}")


@contextlib.contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the chain for a damaged file into JournalRefused."""
    try:
        yield
    except PragmaNotTakenError as error:
        raise JournalRefused(f"the journal {path} cannot be kept safe here: {error}") from error
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)  # an error of Python's own has no SQLite name
        way_out = next((text for start, text in WAYS_OUT.items() if name.startswith(start)), "")
        raise JournalRefused(f"the journal {path} cannot be used: {error} ({name}){way_out}") from error
    except JournalCorrupt as error:
        raise JournalRefused(f"the journal {path} is damaged: {error}. Restore a backup.") from error


def prepare(path: Path, disk: Disk, connection: sqlite3.Connection) -> tuple[str, bool]:
    """Do all checks of a start. Returns the journal's id, and whether it was restored. Raises JournalRefused."""
    store_wal_again(path, disk)
    checkpoint(connection)
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise JournalRefused(
            f"the journal {path} is empty, but "
            + (
                "its anchor says that there was one: restore a backup"
                if anchor.read(path)
                else "no server of ours leaves such a file, unless its WAL is lost: restore a backup or, if no charge was ever "
                f"made with it, remove {path.name} and what lies beside it"
            )
        )
    journal_id, restored = identify(path, connection)
    if home := home_of(connection):
        raise JournalRefused(served_elsewhere(str(path), home))
    head = read_head(connection)
    anchored = anchor.read(path)
    begin = max(0, head.position - TAIL_VERIFIED_AT_START)
    verify(connection, Place(begin, chain_at(begin, connection)), head.position)
    # Last, so that the first damaged record is the one that is named.
    check_anchor(path, anchored, journal_id, head, connection)
    probe(path, disk, connection)
    sync_directory(path.parent)  # the WAL's name is durable too
    return journal_id, restored


def identify(path: Path, connection: sqlite3.Connection) -> tuple[str, bool]:
    """Return a journal's id, and whether it was restored. Raises JournalRefused if we do not know its format."""
    row = connection.execute(SELECT_JOURNAL).fetchone()
    if row is None:
        raise JournalCorrupt(None)
    journal_id, stored_format, restored = row
    if stored_format not in (*FORMATS, *MARKED_FORMATS):
        raise JournalRefused(
            f"the journal {path} has format {stored_format}; this server writes format {FORMAT}, and knows no other: use the "
            "version that wrote it"
        )
    return journal_id, bool(restored)


def probe(path: Path, disk: Disk, connection: sqlite3.Connection) -> None:
    """See that the journal can be written, by a commit that changes nothing but an older format. A disk may have room later.

    Without it a server would serve, and die at its first charge. Raises sqlite3.Error.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(UPGRADE)
        connection.execute(PROBE)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if not _may_have_room_later(error, path, disk):
            raise


def _may_have_room_later(error: sqlite3.Error, path: Path, disk: Disk) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_IOERR_WRITE:
        with contextlib.suppress(OSError):
            return not disk.has_room(wal_beside(path))
    return code == sqlite3.SQLITE_FULL


def store_wal_again(path: Path, disk: Disk) -> None:
    """Write the WAL over with its own bytes, and sync them. Raises JournalRefused if that cannot be done.

    An earlier sync may have failed, and then the disk lacks pages that reads show. If such a WAL were moved into the database,
    a power cut half way would leave a database that is neither old nor new, and no WAL to mend it.
    """
    wal = wal_beside(path)
    try:
        disk.store_again(wal)
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise JournalRefused(f"the WAL {wal} cannot be opened: {error.strerror}") from error
    except OSError as error:
        way_out = ": make room, and start again" if error.errno in FULL else ""
        raise JournalRefused(f"the WAL {wal} cannot be made durable: {error.strerror}{way_out}") from error


def checkpoint(connection: sqlite3.Connection) -> None:
    """Move the whole WAL into the database, synced. Raises JournalRefused if that was not done in full."""
    busy, logged, moved = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy or logged != moved:
        raise JournalRefused(
            "the WAL could not be moved into the database in full: close other programs that read it, or write to it"
        )


def check_anchor(
    path: Path, anchored: anchor.Anchor | None, journal_id: str, head: Place, connection: sqlite3.Connection
) -> None:
    """See that a journal has not lost what its anchor says it had. Raises JournalRefused with the way out.

    Raises JournalCorrupt if the record that the anchor names is damaged: that is no other journal.
    """
    if anchored is None:
        problem = "has no anchor beside it"
    elif anchored.journal_id != journal_id:
        problem = "is another one than its anchor's"
    elif head.position < anchored.place.position:
        problem = f"ends at position {head.position}, but had reached {anchored.place.position}: its tail is lost"
    elif chain_at(anchored.place.position, connection) != anchored.place.chain:
        problem = f"differs at position {anchored.place.position} from what it was"
    else:
        return
    raise JournalRefused(
        f"the journal {path} {problem}. If you put it there on purpose, run restore: it gets a new id, readers "
        "rebuild, and the bank is asked about every unfinished charge"
    )
