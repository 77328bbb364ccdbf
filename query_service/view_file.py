"""The view's file on the disk: which server has it, whether it is a view, and whether it is fit for use.

* One server a file: a lock beside it, under its real name, keeps a second server out, and a lock on the file itself keeps
  out a server that knows the file by another name.
* The file is disposable. A file of another format and a damaged file are removed, and rebuilt from the feed. A file that is
  no view is never touched.
"""

import contextlib
import os
import sqlite3
import sys
from pathlib import Path

import structlog

from chassis.disk import Disk, Held
from chassis.sqlite import Database
from query_service.lookup import find_checkpoint
from query_service.schema import FORMAT

log = structlog.get_logger()

# "CHGV": marks a file as a view of ours, so that a mistyped path never removes another file.
APPLICATION_ID = 0x43484756
# SQLite's header begins with this, and has the application's id in these bytes, from the file's first write.
SQLITE_MAGIC = b"SQLite format 3\0"
APPLICATION_ID_BYTES = slice(68, 72)

# On Linux this lock and those of SQLite, which are fcntl's, do not see each other. Elsewhere they would, so it is not taken.
LOCKS_ITSELF = sys.platform == "linux"


class ViewUnusable(Exception):
    """The file cannot be used as a view; the text says why and what to do."""


class ViewFile:
    """A file that `claim` holds for one server."""

    def __init__(self, path: Path, beside: Held, itself: Held) -> None:
        self.path = path
        self._held = (beside, itself)

    @classmethod
    async def claim(cls, path: Path, disk: Disk) -> "ViewFile":
        """Hold a file that is a usable view, or empty. A missing file or folder is made, for our own user only.

        Raises ViewUnusable if another server has it or if it is no view, OSError and sqlite3.OperationalError if it cannot
        be opened.
        """
        with contextlib.ExitStack() as stack:
            path = _real(path)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = _lock(path.with_name(path.name + ".lock"), disk)
            stack.callback(beside.close)
            # Taken before SQLite opens the file, released after: closing any descriptor of the file drops SQLite's own locks.
            itself = _lock(path, disk, is_taken=LOCKS_ITSELF)
            stack.callback(itself.close)
            if not await _is_fit(path, disk):
                _throw_away(path)
                made_anew = _lock(path, disk, is_taken=LOCKS_ITSELF)
                stack.callback(made_anew.close)
                itself.close()
                itself = made_anew
            stack.pop_all()
            return cls(path, beside, itself)

    def throw_away(self) -> None:
        """Remove the file, whose SQLite connections are closed. Another file that has replaced it, and is no view, stays."""
        if not _is_empty(self.path) and _is_ours(self.path):
            _throw_away(self.path)

    def release(self) -> None:
        """Release the file to other servers."""
        for held in self._held:
            held.close()


def format_of(connection: sqlite3.Connection) -> int:
    """Return the format of a view; 0 if it has no tables yet."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error means that SQLite cannot read the file any more."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _lock(path: Path, disk: Disk, *, is_taken: bool = True) -> Held:
    """Lock a file against other servers until it is closed or this process ends.

    A missing file is made. Raises ViewUnusable if another server has it, or if it has a second name: SQLite keeps a file's WAL
    beside the name by which it opened the file.
    """
    held = disk.hold(path, os.O_RDWR | os.O_CREAT)
    try:
        if is_taken:
            held.lock()
        if os.fstat(held.descriptor).st_nlink > 1:
            raise ViewUnusable(f"{path} has more than one name (hard links): remove the others")
    except BlockingIOError:
        held.close()
        raise ViewUnusable(
            f"another query server has the view ({path} is locked): give each server its own file"
        ) from None
    except BaseException:
        held.close()
        raise
    return held


async def _is_fit(path: Path, disk: Disk) -> bool:
    """Whether the file is empty, or a view of this format. Raises ViewUnusable if it is something else."""
    if _is_empty(path):
        return True
    if not _is_ours(path):
        raise ViewUnusable(f"{path} is not a view: it is left as it is, name another file or remove it yourself")
    try:
        found = await Database.open(path, read_only=True, pragmas={}, disk=disk)
        try:
            version = await found.run(format_of)
            if version == FORMAT:
                await found.run(find_checkpoint)  # a cheap look; other damage shows at the statement that meets it
        finally:
            await found.close()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        log.warning("the view is damaged and will be rebuilt", why=str(error))
        return False
    if version != FORMAT:
        log.warning("the view is of another format and will be rebuilt", found=version, wanted=FORMAT)
    return version == FORMAT


def _is_empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def _is_ours(path: Path) -> bool:
    """Whether a file is a view. The first bytes show it even of a damaged one, and a foreign file stays untouched."""
    with path.open("rb") as file:
        header = file.read(APPLICATION_ID_BYTES.stop)
    return header.startswith(SQLITE_MAGIC) and header[APPLICATION_ID_BYTES] == APPLICATION_ID.to_bytes(4, "big")


def _throw_away(path: Path) -> None:
    for name in (f"{path}-wal", f"{path}-shm", f"{path}"):  # the file last: while it exists, the others belong to it
        Path(name).unlink(missing_ok=True)
