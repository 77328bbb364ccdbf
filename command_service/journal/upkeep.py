"""What is done to a journal's files as a whole: the checks at start, backup (also beside a server), restore.

Before a server acts on a journal, all that was written is made durable, and the journal is seen to be the one that it was.
"""

import contextlib
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from chassis.sqlite import PragmaNotTakenError, open_connection, sync_directory
from command_service.journal import START, JournalCorrupt, JournalRefused, Place, Record, anchor, owner
from command_service.journal.file_system import refuse_other_names, refuse_unknown_kind
from command_service.journal.lock import lock
from command_service.journal.making import ONE_FILE, bytes_in, wal_beside
from command_service.journal.room import FULL, has_room
from command_service.journal.table import (
    CLEAR_UNFINISHED,
    FORMAT,
    INSERT_UNFINISHED,
    PROBE,
    READER_PRAGMAS,
    RENEW_JOURNAL,
    SELECT_JOURNAL,
    WRITER_PRAGMAS,
    chain_at,
    key_of,
    read_all,
    read_head,
    verify,
)

Fold = Callable[[Iterator[Record]], Collection[str]]
"""Reads all records, which verifies them, and says which streams are unfinished: that is not a journal's to know."""

# Verified at every start, in some 20 ms; verify-journal does all of it.
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
    """Raise JournalRefused if there is no journal to read. Even a reader of an empty file would have the WAL thrown away."""
    if not bytes_in(path):
        raise JournalRefused(f"there is no journal at {path}")


@contextlib.contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Turn what SQLite and the chain say of a damaged file into JournalRefused."""
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


def prepare(path: Path, connection: sqlite3.Connection) -> tuple[str, bool, Place]:
    """Make what was written before durable, and see that this is the journal that it was. Returns id, restored, head."""
    store_wal_again(path)
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
    head = read_head(connection)
    anchored = anchor.read(path)
    begin = max(0, head.position - TAIL_VERIFIED_AT_START)
    verify(connection, Place(begin, chain_at(begin, connection)), head.position)
    check_anchor(
        path, anchored, journal_id, head, connection
    )  # last, so that the first damaged record is the one named
    probe(path, connection)
    sync_directory(path.parent)  # the WAL's name is durable too
    return journal_id, restored, head


def identify(path: Path, connection: sqlite3.Connection) -> tuple[str, bool]:
    """Return a journal's id, and whether it was restored. Raises JournalRefused if we do not know its format."""
    row = connection.execute(SELECT_JOURNAL).fetchone()
    if row is None:
        raise JournalCorrupt(None)
    journal_id, stored_format, restored = row
    if stored_format != FORMAT:
        raise JournalRefused(
            f"the journal {path} has format {stored_format}; this server writes format {FORMAT}, and knows no other: use the "
            "version that wrote it"
        )
    return journal_id, bool(restored)


def probe(path: Path, connection: sqlite3.Connection) -> None:
    """See that the journal can be written, by a commit that changes nothing. A full disk may have room again later.

    Without it a server would serve, and die at its first charge. Raises sqlite3.Error.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(PROBE)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if not _may_have_room_later(error, path):
            raise


def _may_have_room_later(error: sqlite3.Error, path: Path) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_IOERR_WRITE:
        with contextlib.suppress(OSError):
            return not has_room(wal_beside(path))
    return code == sqlite3.SQLITE_FULL


def store_wal_again(path: Path) -> None:
    """Write the WAL over with its own bytes, and sync them. Raises JournalRefused if that cannot be done.

    After a failed sync Linux serves from its cache what may not be on disk, and no later sync stores it, since the pages
    count as clean. Were that moved into the database, a power cut half way would leave a database that is neither old nor
    new, and no WAL to mend it. Written again, the pages are dirty, and the sync means something.
    """
    wal = wal_beside(path)
    try:
        descriptor = os.open(wal, os.O_RDWR)
    except FileNotFoundError:
        return
    except OSError as error:
        raise JournalRefused(f"the WAL {wal} cannot be opened: {error.strerror}") from error
    try:
        offset = 0
        while part := os.pread(descriptor, 1 << 20, offset):
            offset += os.pwrite(descriptor, part, offset)
        os.fsync(descriptor)
    except OSError as error:
        way_out = ": make room, and start again" if error.errno in FULL else ""
        raise JournalRefused(f"the WAL {wal} cannot be made durable: {error.strerror}{way_out}") from error
    finally:
        os.close(descriptor)


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


# ---------------------------------------------------------------- backup and restore
def backup(path: Path, to: Path) -> Place:
    """Copy a journal, at work or not, to a new file: an exact prefix, verified whole. Returns where it ends.

    Raises JournalRefused if there is no journal, the target exists, or the copy does not verify.
    """
    if to.exists():
        raise JournalRefused(f"{to} exists already: name a new file")
    draft = to.with_name(to.name + ".new")
    _copy(path, draft)
    with (
        refusing_damage(path),
        contextlib.closing(open_connection(draft, read_only=True, pragmas=READER_PRAGMAS)) as connection,
    ):
        place = read_head(connection)
        verify(connection, START, place.position)
    descriptor = os.open(draft, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    draft.replace(to)
    sync_directory(to.parent)
    return place


def restore(
    path: Path, source: Path | None, unfinished_in: Fold, *, any_file_system: bool = False
) -> tuple[str, Place]:
    """Make a journal fit to be served from again after its file was replaced, under a new id that readers notice.

    With a source, a copy of that backup is put in the journal's place first, with what its own WAL holds; a journal that is
    there already is kept beside it. What is unfinished is made anew from the records, by `unfinished_in`. The journal is
    marked as restored: nothing in it is abandoned, and the bank is asked about a charge before each step. Owner and mode
    stay what they were. Raises JournalRefused if another server has it open, or if it does not verify.
    """
    if source is not None and _are_one_file(source, path):
        raise JournalRefused(f"{source} is the journal itself: to accept it as it is, run restore without a file")
    owner.make_folder(path.parent)
    refuse_unknown_kind(path, any_file_system=any_file_system)
    with lock(path) as held:
        refuse_other_names(path)
        if bytes_in(path):
            held.take_file()
        if source is None:
            must_be_there(path)
            journal_id, place = _renew(path, unfinished_in)
        else:
            draft = path.with_name(path.name + ".new")
            _copy(source, draft)
            journal_id, place = _renew(draft, unfinished_in)
            _give(draft, owner.owner_beside(path, anchor.path_beside(path)))
            _set_aside(path)
            draft.replace(path)
        anchor.write(path, anchor.Anchor(journal_id, place))
        sync_directory(path.parent)
    return journal_id, place


def _copy(source: Path, draft: Path) -> None:
    """Copy a journal, WAL included, to one file. What a copy that died left in its place is written over."""
    must_be_there(source)
    if _are_one_file(source, draft):
        raise JournalRefused(f"{source} would be written over: give it another name first")
    owner.make_folder(draft.parent)
    draft.unlink(missing_ok=True)
    owner.create(draft, owner.Owner(owner.UNCHANGED, owner.UNCHANGED, owner.ONLY_THE_OWNER))
    with (
        refusing_damage(source),
        contextlib.closing(open_connection(source, read_only=True, pragmas=READER_PRAGMAS)) as reading,
        contextlib.closing(open_connection(draft, read_only=False, pragmas=ONE_FILE)) as copy,
    ):
        identify(source, reading)
        reading.backup(copy)  # all pages in one read transaction: a server goes on writing meanwhile
        copy.execute("PRAGMA journal_mode = delete").fetchall()  # the pages brought the source's mode with them


def _give(file: Path, to: owner.Owner) -> None:
    """Give a file the owner and mode of what it replaces. Raises JournalRefused if that is not ours to do."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        owner.give(descriptor, to)
        os.fsync(descriptor)
    except PermissionError as error:
        raise JournalRefused(
            f"the journal belongs to user {to.user}, group {to.group}, and user {os.geteuid()} cannot give it a file: run "
            "restore as that user, or as root"
        ) from error
    finally:
        os.close(descriptor)


def _are_one_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _renew(path: Path, unfinished_in: Fold) -> tuple[str, Place]:
    """Verify a journal whole, and give it a new id and its unfinished streams. Returns the id and where it ends."""
    journal_id = str(uuid.uuid4())
    with (
        refusing_damage(path),
        contextlib.closing(open_connection(path, read_only=False, pragmas=WRITER_PRAGMAS)) as connection,
    ):
        identify(path, connection)
        store_wal_again(path)
        checkpoint(connection)
        place = read_head(connection)
        found = unfinished_in(read_all(connection, START, place.position))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(RENEW_JOURNAL, (journal_id,))
        connection.execute(CLEAR_UNFINISHED)
        connection.executemany(INSERT_UNFINISHED, [(key_of(charge_id),) for charge_id in found])
        connection.execute("COMMIT")
        checkpoint(connection)
    return journal_id, place


def _set_aside(path: Path) -> None:
    """Keep the files that a restore replaces, WAL included: they are the only trace of what the backup lacks.

    The anchor is copied: should we die here, it refuses the start that would find no journal and begin an empty one. The WAL
    goes first, for SQLite throws away one that it finds without its database. If we die after that, the next restore lays the
    database beside it; once the anchor's copy is there, which comes last, nothing is laid beside it any more: a WAL whose
    database was gone must not come to lie beside another.
    """
    number = 1
    while any(path.with_name(f"{path.name}.replaced-{number}{suffix}").exists() for suffix in ("", ".anchor")):
        number += 1
    for suffix in ("-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(path.with_name(f"{path.name}.replaced-{number}{suffix}"))
    anchored = path.with_name(path.name + ".anchor")
    if anchored.exists():
        copy = path.with_name(f"{path.name}.replaced-{number}.anchor")
        owner.create(copy, owner.owner_beside(anchored))
        shutil.copyfile(anchored, copy)
