"""Backup and restore of a journal's file: a copy of it, also beside a server, and a copy that is put in its place."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from chassis.disk import LOCAL_DISK, Disk
from chassis.sqlite import open_connection, sync_directory
from command_service.journal import START, JournalRefused, Place, Record
from command_service.journal.sqlite import anchor, owner
from command_service.journal.sqlite.file_system import refuse_other_names, refuse_unknown_kind
from command_service.journal.sqlite.lock import lock
from command_service.journal.sqlite.making import ONE_FILE, Identity, begin, bytes_in
from command_service.journal.sqlite.starting import (
    checkpoint,
    identify,
    must_be_there,
    refusing_damage,
    store_wal_again,
)
from command_service.journal.sqlite.table import (
    DRAFT_PRAGMAS,
    READER_PRAGMAS,
    RENEW_JOURNAL,
    WRITER_PRAGMAS,
    insert,
    note_unfinished,
    read_all,
    read_head,
    set_home,
    verify,
)
from command_service.journal.store import Fold, random_id


def backup(path: Path, to: Path) -> Place:
    """Copy a journal, at work or not, to a new file: an exact prefix, verified whole. Returns where it ends.

    Raises JournalRefused if there is no journal, the target exists, or the copy does not verify.
    """
    refuse_existing(to)
    draft = to.with_name(to.name + ".new")
    _copy(path, draft)
    return _put_in_place(draft, to, path)


def write(to: Path, identity: Identity, records: Iterator[Record], unfinished: Collection[str]) -> Place:
    """Write a journal that is kept elsewhere to a new file, verified whole. Returns where it ends. Raises JournalRefused."""
    refuse_existing(to)
    draft = to.with_name(to.name + ".new")
    _make_draft(draft)
    with (
        refusing_damage(draft),
        contextlib.closing(open_connection(draft, read_only=False, pragmas=DRAFT_PRAGMAS)) as connection,
    ):
        begin(connection, identity)
        insert(connection, records)
        note_unfinished(connection, unfinished)
        connection.execute("COMMIT")
    return _put_in_place(draft, to, draft)


def refuse_existing(to: Path) -> None:
    """See that a file does not exist. Raises JournalRefused."""
    if to.exists():
        raise JournalRefused(f"{to} exists already: name a new file")


def _put_in_place(draft: Path, to: Path, source: Path) -> Place:
    """Verify a backup, make it durable and give it its name. Returns where it ends; damage is said to be the source's."""
    with (
        refusing_damage(source),
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
    path: Path,
    source: Path | None,
    unfinished_in: Fold,
    *,
    any_file_system: bool = False,
    disk: Disk = LOCAL_DISK,
) -> tuple[str, Place]:
    """Make a journal fit to be served from again after its file was replaced, under a new id that readers notice.

    With a source, a copy of that backup, including its WAL, is put in the journal's place first; a journal that is there
    already is kept beside it. The table of unfinished streams is made anew from the records, by `unfinished_in`. The journal
    is marked as restored: no charge in it is abandoned, and the bank is asked about a charge before each step. Owner and mode
    stay as they were. Raises JournalRefused if another server has it open, or if it does not verify.
    """
    if source is not None and _are_one_file(source, path):
        raise JournalRefused(f"{source} is the journal itself: to accept it as it is, run restore without a file")
    owner.make_folder(path.parent)
    refuse_unknown_kind(path, disk, any_file_system=any_file_system)
    with lock(path, disk) as held:
        refuse_other_names(path, disk)
        if bytes_in(path):
            held.take_file()
        if source is None:
            must_be_there(path)
            journal_id, place = _renew(path, unfinished_in, disk)
        else:
            draft = path.with_name(path.name + ".new")
            _copy(source, draft)
            journal_id, place = _renew(draft, unfinished_in, disk)
            _give(draft, owner.owner_beside(path, anchor.path_beside(path)))
            set_aside(path)
            draft.replace(path)
        anchor.write(path, anchor.Anchor(journal_id, place))
        sync_directory(path.parent)
    return journal_id, place


def _copy(source: Path, draft: Path) -> None:
    """Copy a journal, WAL included, to one file. The draft of a copy that died is written over."""
    must_be_there(source)
    if _are_one_file(source, draft):
        raise JournalRefused(f"{source} would be written over: give it another name first")
    _make_draft(draft)
    with (
        refusing_damage(source),
        contextlib.closing(open_connection(source, read_only=True, pragmas=READER_PRAGMAS)) as reading,
        contextlib.closing(open_connection(draft, read_only=False, pragmas=ONE_FILE)) as copy,
    ):
        identify(source, reading)
        reading.backup(copy)  # all pages in one read transaction: a server goes on writing meanwhile
        copy.execute("PRAGMA journal_mode = delete").fetchall()  # the pages brought the source's mode with them


def _make_draft(draft: Path) -> None:
    owner.make_folder(draft.parent)
    draft.unlink(missing_ok=True)
    owner.create(draft, owner.Owner(owner.UNCHANGED, owner.UNCHANGED, owner.ONLY_THE_OWNER))


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


def _renew(path: Path, unfinished_in: Fold, disk: Disk) -> tuple[str, Place]:
    """Verify a journal whole, and give it a new id and its unfinished streams. Returns the id and where it ends."""
    journal_id = random_id()
    with (
        refusing_damage(path),
        contextlib.closing(open_connection(path, read_only=False, pragmas=WRITER_PRAGMAS)) as connection,
    ):
        identify(path, connection)
        store_wal_again(path, disk)
        checkpoint(connection)
        place = read_head(connection)
        found = unfinished_in(read_all(connection, START, place.position))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(RENEW_JOURNAL, (journal_id,))
        set_home(connection, "")
        note_unfinished(connection, found)
        connection.execute("COMMIT")
        checkpoint(connection)
    return journal_id, place


def set_aside(path: Path) -> None:
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
