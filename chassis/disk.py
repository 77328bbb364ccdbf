"""What the keeper of a SQLite file asks of the machine: a connection, a thread, a lock, the free space.

Whoever opens a file is given a `Disk`, and asks the machine through it alone. A simulation passes a disk of its own, whose
threads run inline and whose commits may fail; so the same keeper runs there unchanged.
"""

import fcntl
import os
import shutil
import sqlite3
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

# How long a statement waits for a lock that another program holds, in its own thread: an edit by hand or a copying tool's
# checkpoint is over by then, and a client that waits is still told before its deadline.
BUSY_SECONDS = 3.0
ONLY_THE_OWNER = 0o600


@dataclass(slots=True, eq=False)
class Held:
    """A file or folder that is held open, and the lock on it once that is taken. Made by `Disk.hold`."""

    descriptor: int
    _is_closed: bool = field(default=False, init=False)

    def lock(self) -> None:
        """Take the file's exclusive lock, which lasts until the file is closed or the process ends.

        Raises BlockingIOError if another process or another `Held` has it, and OSError if it cannot be had.
        """
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Close the file, and so give up its lock. Closing it again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self.descriptor)


class Disk(Protocol):
    """The machine, as the keeper of a file sees it."""

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        """Open a SQLite file in autocommit mode. One to be written is made if it is missing. Raises sqlite3.Error."""
        ...

    def thread(self, name: str) -> Executor:
        """Start a thread that does one piece of work after the other."""
        ...

    def hold(self, path: Path, flags: int = os.O_RDWR) -> Held:
        """Open a file, or a folder with O_RDONLY, to be held. Raises OSError."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Return the space that is free on the disk of a file or folder. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """This machine. `busy_seconds`: how long a statement waits for another program's lock."""

    busy_seconds: float = BUSY_SECONDS

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        """Open a SQLite file; see the port."""
        return sqlite3.connect(
            file_uri(path, read_only=read_only),
            uri=True,
            timeout=self.busy_seconds,
            isolation_level=None,
            check_same_thread=False,
        )

    def thread(self, name: str) -> Executor:
        """Start a thread; see the port."""
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def hold(self, path: Path, flags: int = os.O_RDWR) -> Held:
        """Open a file to be held; see the port. One that is made is for its owner alone."""
        return Held(os.open(path, flags, ONLY_THE_OWNER))

    def free_bytes(self, path: Path) -> int:
        """Return the space that is free; see the port."""
        return shutil.disk_usage(path).free


LOCAL_DISK = LocalDisk()


def file_uri(path: Path, *, read_only: bool) -> str:
    """Name a file for SQLite: to be read only, or to be written and made if it is missing."""
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode={'ro' if read_only else 'rwc'}"
