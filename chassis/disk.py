"""What the keeper of a SQLite file asks of the machine: a connection, a thread, a lock, room, and durable bytes.

Whoever opens a file is given a `Disk`, and asks the machine through it alone. A simulation passes a disk of its own, whose
threads run inline and whose commits may fail; so the same keeper runs there unchanged.
"""

import asyncio
import errno
import fcntl
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

# How long a statement waits for a lock that another program holds, in its own thread: an edit by hand or a copying tool's
# checkpoint is over by then, and a client that waits is still told before its deadline.
BUSY_SECONDS = 3.0
ONLY_THE_OWNER = 0o600
# SQLite takes only ENOSPC for a full disk. A quota and a limit on a file's size come out as the same SQLITE_IOERR_WRITE as a
# broken disk's EIO, and Python does not tell the errno: `Disk.has_room` asks the file again.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# More than a block of most file systems, so that it cannot fit into what the last one has left.
GROWTH_BYTES = 1 << 16
T = TypeVar("T")


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

    def mounts(self) -> Sequence[tuple[str, str]]:
        """List the mount points and the kinds of their file systems, in order; none where the system does not tell."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Return the space that is free on the disk of a file or folder. Raises OSError."""
        ...

    def has_room(self, file: Path) -> bool:
        """Tell whether a file can grow, by having it grow, and cutting it back. Raises OSError for what is no lack of room."""
        ...

    def store_again(self, file: Path) -> None:
        """Write a file over with its own bytes, and sync them. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """This machine.

    `busy_seconds`: how long a statement waits for another program's lock. `mounts_file`: where Linux lists what is mounted.
    """

    busy_seconds: float = BUSY_SECONDS
    mounts_file: Path = Path("/proc/self/mounts")

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

    def mounts(self) -> Sequence[tuple[str, str]]:
        """List what is mounted; see the port, and proc(5) for the form of the list."""
        try:
            lines = self.mounts_file.read_text(errors="surrogateescape").split("\n")
        except OSError:  # macOS has no such file
            return ()
        fields = [line.split(" ") for line in lines if line]
        return [
            (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point), kind) for _, point, kind, *_ in fields
        ]

    def free_bytes(self, path: Path) -> int:
        """Return the space that is free; see the port."""
        return shutil.disk_usage(path).free

    def has_room(self, file: Path) -> bool:
        """Tell whether a file can grow; see the port.

        A WAL's caller holds the write lock, so nobody else appends meanwhile. What is written are zeros past the last frame,
        which are harmless even if the cutting back fails: readers go no further than the wal-index says, the next commit
        writes over them, and after a crash a frame of page 0 and of other salts than the header's ends the WAL.
        """
        descriptor = os.open(file, os.O_RDWR)
        try:
            end = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < GROWTH_BYTES:  # what fits only in part is written in part, and the rest says why
                    written += os.pwrite(descriptor, bytes(GROWTH_BYTES - written), end + written)
            finally:
                os.ftruncate(descriptor, end)  # even this takes room where a file's blocks are never written over
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def store_again(self, file: Path) -> None:
        """Write a file over with its own bytes; see the port.

        After a failed sync Linux serves from its cache what may not be on disk, and no later sync stores it, since the pages
        count as clean. Written again, the pages are dirty, and the sync means something.
        """
        descriptor = os.open(file, os.O_RDWR)
        try:
            offset = 0
            while part := os.pread(descriptor, 1 << 20, offset):
                offset += os.pwrite(descriptor, part, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


LOCAL_DISK = LocalDisk()


def file_uri(path: Path, *, read_only: bool) -> str:
    """Name a file for SQLite: to be read only, or to be written and made if it is missing."""
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode={'ro' if read_only else 'rwc'}"


class Thread:
    """One thread that does one piece of work after the other, for an event loop that does not wait for it."""

    def __init__(self, name: str, disk: Disk = LOCAL_DISK) -> None:
        self._executor = disk.thread(name)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Do work in the thread. If the caller is cancelled, work that has begun is done; work that waits may be dropped."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def end(self) -> None:
        """End the thread after the work that was sent before, without waiting for it."""
        self._executor.shutdown(wait=False)
