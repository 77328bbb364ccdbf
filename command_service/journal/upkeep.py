"""What is done to a journal's files as a whole: the checks at start, backup (also beside a server), restore.

Before a server acts on a journal, all that was written is made durable, and the journal is seen to be the one that it was.
"""

import contextlib
import fcntl
import os
import re
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO

from chassis.sqlite import PragmaNotTakenError, open_connection, sync_directory
from command_service.journal import START, JournalCorrupt, JournalRefused, Place, Record, anchor
from command_service.journal.room import FULL
from command_service.journal.table import (
    CLEAR_UNFINISHED,
    FORMAT,
    INSERT_JOURNAL,
    INSERT_UNFINISHED,
    READER_PRAGMAS,
    RENEW_JOURNAL,
    SCHEMA,
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

MOUNTS = Path("/proc/self/mounts")
# A server on another machine would not meet our lock, and what is synced there may not be stored.
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "sshfs"}


# By how the names of SQLite's errors begin. A quota (EDQUOT) and a limit (EFBIG) are failed writes to SQLite.
WAYS_OUT = {
    "SQLITE_FULL": ": the disk is full, make room, and start again",
    "SQLITE_IOERR_WRITE": ": if a quota or a limit on file sizes is full, make room or raise it, and start again",
    "SQLITE_IOERR_SHMSIZE": ": if the disk, a quota or a limit on file sizes is full, make room or raise it, and start again",
    "SQLITE_BUSY": ": another program holds its lock, end that program or its transaction, and start again",
}


def lock(path: Path) -> IO[str]:
    """Take the lock beside a journal for as long as the returned file is open.

    Raises JournalRefused if it is taken, or cannot be had where the journal lies.
    """
    refuse_network(path)
    file = path.with_name(path.name + ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise JournalRefused(
            f"another server has the journal {path} open: stop it first, or use another file"
        ) from None
    except OSError as error:
        file.close()
        raise JournalRefused(f"the lock {file.name} cannot be taken: {error.strerror}") from error
    return file


def refuse_network(path: Path) -> None:
    """See that a journal lies on a disk of this machine, where the system says so (Linux). Raises JournalRefused."""
    with contextlib.suppress(OSError):
        kind = file_system_of(path.resolve(), MOUNTS.read_text(errors="surrogateescape"))
        if kind.removeprefix("fuse.") in NETWORK_FILE_SYSTEMS:
            raise JournalRefused(
                f"the journal {path} lies on a network file system ({kind}), which does not keep SQLite's locks and syncs: "
                "put it on a disk of this machine"
            )


def file_system_of(path: Path, mounts: str) -> str:
    """The type of the file system that a path without links lies on, by the text of /proc/self/mounts (see proc(5))."""
    found, kind = -1, ""
    for line in filter(None, mounts.split("\n")):
        _, escaped, this_kind, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)
        if path.is_relative_to(point) and len(point) >= found:  # of two at one point, the later hides the earlier
            found, kind = len(point), this_kind
    return kind


def refuse_missing(path: Path) -> None:
    """See that there was no journal here whose file is gone now. Raises JournalRefused with the way out.

    SQLite would make an empty file, and throw away the WAL beside it, with all that it holds. An empty file without an
    anchor is one whose maker died: nothing was acknowledged in it.
    """
    if bytes_in(path):
        return
    if anchor.path_beside(path).exists():
        trace = "its anchor says that there was one"
    elif not path.exists() and bytes_in(wal_beside(path)):
        trace = "its WAL says that there was one"
    else:
        return
    raise JournalRefused(
        f"the journal {path} is {'empty' if path.exists() else 'missing'}, but {trace}: put the file back where its WAL is, or "
        "restore a backup"
    )


def must_be_there(path: Path) -> None:
    """Raise JournalRefused if there is no journal to read. Even a reader of an empty file would have the WAL thrown away."""
    if not bytes_in(path):
        raise JournalRefused(f"there is no journal at {path}")


def wal_beside(path: Path) -> Path:
    """Where SQLite keeps what is not in the file yet."""
    return path.with_name(path.name + "-wal")


def bytes_in(path: Path) -> int:
    """The size of a file; 0 if it is missing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


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
        if anchor.read(path) is not None:
            raise JournalRefused(
                f"the journal {path} is empty, but its anchor says that there was one: restore a backup"
            )
        journal_id = str(uuid.uuid4())
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
        connection.execute(INSERT_JOURNAL, (journal_id, FORMAT, 0))
        connection.execute("COMMIT")
        anchor.write(path, anchor.Anchor(journal_id, START))
        sync_directory(path.parent)
        return journal_id, False, START
    journal_id, stored_format, restored = connection.execute(SELECT_JOURNAL).fetchone()
    if stored_format != FORMAT:
        raise JournalRefused(f"the journal {path} has format {stored_format}; this server writes format {FORMAT}")
    head = read_head(connection)
    anchored = anchor.read(path)
    if anchored is None and head == START:  # the process died right after making the journal
        anchored = anchor.Anchor(journal_id, START)
        anchor.write(path, anchored)
    begin = max(0, head.position - TAIL_VERIFIED_AT_START)
    verify(connection, Place(begin, chain_at(begin, connection)), head.position)
    check_anchor(
        path, anchored, journal_id, head, connection
    )  # last, so that the first damaged record is the one named
    return journal_id, bool(restored), head


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


def restore(path: Path, source: Path | None, unfinished_in: Fold) -> tuple[str, Place]:
    """Make a journal fit to be served from again after its file was replaced, under a new id that readers notice.

    With a source, a copy of that backup is put in the journal's place first, with what its own WAL holds; a journal that is
    there already is kept beside it. What is unfinished is made anew from the records, by `unfinished_in`. The journal is
    marked as restored: nothing in it is abandoned, and the bank is asked about a charge before each step. Raises
    JournalRefused if another server has it open, or if it does not verify.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path):
        if source is None:
            must_be_there(path)
            journal_id, place = _renew(path, unfinished_in)
        else:
            if _are_one_file(source, path):
                raise JournalRefused(
                    f"{source} is the journal itself: to accept it as it is, run restore without a file"
                )
            draft = path.with_name(path.name + ".new")
            _copy(source, draft)
            journal_id, place = _renew(draft, unfinished_in)
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
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.unlink(missing_ok=True)
    one_file: Mapping[str, str | int] = {"journal_mode": "delete", "synchronous": 2}
    with (
        refusing_damage(source),
        contextlib.closing(open_connection(source, read_only=True, pragmas=READER_PRAGMAS)) as reading,
        contextlib.closing(open_connection(draft, read_only=False, pragmas=one_file)) as copy,
    ):
        reading.backup(copy)  # all pages in one read transaction: a server goes on writing meanwhile
        copy.execute("PRAGMA journal_mode = delete").fetchall()  # the pages brought the source's mode with them


def _are_one_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _renew(path: Path, unfinished_in: Fold) -> tuple[str, Place]:
    """Verify a journal whole, and give it a new id and its unfinished streams. Returns the id and where it ends."""
    journal_id = str(uuid.uuid4())
    with (
        refusing_damage(path),
        contextlib.closing(open_connection(path, read_only=False, pragmas=WRITER_PRAGMAS)) as connection,
    ):
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
        shutil.copyfile(anchored, path.with_name(f"{path.name}.replaced-{number}.anchor"))
