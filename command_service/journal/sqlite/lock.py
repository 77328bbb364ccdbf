"""A journal's files, held by one process: no other server has them, and they stay the files that were opened.

* A lock on a file beside the journal keeps out a server that knows the journal by the same name; a lock on the journal's own
  file keeps out a server that knows it by another name.
* SQLite goes on writing to a file that was removed or replaced, and acknowledged records would be lost there. So the files
  that have the names are compared, again and again, with the files that are open.
"""

import contextlib
import os
from pathlib import Path

from chassis.disk import Disk, Held
from command_service.journal import JournalRefused
from command_service.journal.sqlite import owner
from command_service.journal.sqlite.anchor import path_beside
from command_service.journal.sqlite.file_system import KNOWN_GOOD, kind_of, refuse_other_names


class Lock:
    """The files of one journal, held until it is closed. Made by `lock`."""

    def __init__(self, path: Path, beside: Held, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._held = [beside]
        self._opened: dict[Path, tuple[int, int] | None] = {}

    def take_file(self) -> None:
        """Lock the journal's own file too, before SQLite opens it. Raises JournalRefused if it is taken or not writable.

        To close any descriptor of a file gives up the process's POSIX locks on it, which are SQLite's: this descriptor is
        closed after SQLite's own.
        """
        refuse_other_names(self._path, self._disk)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                _hold(self._path.with_name(self._path.name + suffix), self._disk).close()
        self._held.append(_hold(self._path, self._disk))
        # Elsewhere than on these (NFS, macOS), flock and SQLite's own locks are of one kind and would meet.
        if kind_of(self._path, self._disk) in KNOWN_GOOD:
            _take(self._held[-1], self._path, self._path)

    def remember(self) -> None:
        """Remember which files have the names, once SQLite has them open. Raises OSError."""
        self._held.append(
            self._disk.hold(self._path.parent, os.O_RDONLY)
        )  # open, so that no other folder gets its number
        beside, file, folder = (os.fstat(held.descriptor) for held in self._held)
        self._opened = {
            self._path: (file.st_dev, file.st_ino),
            _lock_beside(self._path): (beside.st_dev, beside.st_ino),
            self._path.parent: (folder.st_dev, folder.st_ino),
        }
        for suffix in ("-wal", "-shm"):
            name = self._path.with_name(self._path.name + suffix)
            self._opened[name] = _identity(name)

    def refuse_changes(self) -> None:
        """See that each name still has the file that is open. Raises JournalRefused, or OSError if it cannot be seen."""
        for name, opened in self._opened.items():
            if (found := _identity(name)) != opened:
                what = "is gone" if found is None else "is another one than was opened"
                raise JournalRefused(
                    f"{name} {what}: what is written now would be lost. Put back what was there, or restore a backup"
                )

    def close(self) -> None:
        """Let go of the files: SQLite has closed them."""
        while self._held:
            self._held.pop().close()

    def __enter__(self) -> "Lock":
        """Hold them for as long as the context lasts."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the files."""
        self.close()


def lock(path: Path, disk: Disk) -> Lock:
    """Take the lock beside a journal, until it is closed. Raises JournalRefused if it is taken, or cannot be had."""
    beside = _lock_beside(path)
    is_new = not beside.exists()
    held = _hold(beside, disk, os.O_CREAT)
    try:
        if is_new:
            with contextlib.suppress(PermissionError):
                owner.give(held.descriptor, owner.owner_beside(path, path_beside(path)))
        _take(held, beside, path)
    except BaseException:
        held.close()
        raise
    return Lock(path, held, disk)


def _lock_beside(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _hold(file: Path, disk: Disk, flags: int = 0) -> Held:
    """Open a file for writing. Raises JournalRefused that says whose it is, or FileNotFoundError."""
    try:
        return disk.hold(file, os.O_RDWR | flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        at_fault = file if file.exists() else file.parent
        raise JournalRefused(
            f"{file} cannot be written ({error.strerror}): {owner.described(at_fault)}. Give it to that user (chown), or run "
            "as its owner"
        ) from error


def _take(held: Held, file: Path, path: Path) -> None:
    try:
        held.lock()
    except BlockingIOError:
        raise JournalRefused(
            f"another server has the journal {path} open: stop it first, or use another file"
        ) from None
    except OSError as error:
        raise JournalRefused(f"the lock {file} cannot be taken: {error.strerror}") from error


def _identity(name: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file of a name; None if there is none."""
    try:
        status = name.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
