"""The machine's services for the keeper of a SQLite file: a connection, a thread, a lock, room, and durable bytes.

The keeper is given a `Disk`, and uses the machine through it alone. A simulation passes a disk of its own, whose threads run
inline and whose commits may fail, and runs the same keeper unchanged.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

# The longest wait of a statement, in its own thread, for another program's lock. A manual edit or a copying tool's checkpoint
# is over by then, and a waiting client still gets an error before its deadline.
BUSY_SECONDS = 3.0
ONLY_THE_OWNER = 0o600
# SQLite reports only ENOSPC as a full disk. A quota and a limit on a file's size give the same SQLITE_IOERR_WRITE as a broken
# disk's EIO, and Python does not expose the errno: `Disk.has_room` asks the file again.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# More than a block of most file systems, so that it cannot fit into the rest of the last block.
GROWTH_BYTES = 1 << 16
T = TypeVar("T")
_Order = tuple[Callable[..., Any], tuple[object, ...], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


@dataclass(slots=True, eq=False)
class Held:
    """A file or folder that is held open, and the lock on it once that is taken. Made by `Disk.hold`."""

    descriptor: int
    _is_closed: bool = field(default=False, init=False)

    def lock(self) -> None:
        """Take the file's exclusive lock, which lasts until the file is closed or the process ends.

        Raises BlockingIOError if another process or another `Held` has it, and OSError for any other failure.
        """
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Close the file, and so give up its lock. Closing it again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self.descriptor)


class Thread(Protocol):
    """One thread that does one piece of work after the other, so that the event loop is never blocked."""

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Do work in the thread. If the caller is cancelled, work that has begun is finished; waiting work may be dropped."""
        ...

    def end(self) -> None:
        """End the thread after all work sent before, without waiting for it. Work sent later raises RuntimeError."""
        ...


class Disk(Protocol):
    """The machine, for the keeper of a file."""

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        """Open a SQLite file in autocommit mode. Opened for writing, a missing one is made. Raises sqlite3.Error."""
        ...

    def thread(self, name: str) -> "Thread":
        """Start a thread."""
        ...

    def hold(self, path: Path, flags: int = os.O_RDWR) -> Held:
        """Open a file, or a folder with O_RDONLY, and keep it open. Raises OSError."""
        ...

    def mounts(self) -> Sequence[tuple[str, str]]:
        """List the mount points and the types of their file systems, in order; empty where the system has no such list."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Return the free space on the disk of a file or folder. Raises OSError."""
        ...

    def has_room(self, file: Path) -> bool:
        """Test whether a file can grow, by extending and truncating it. Raises OSError for any failure but a lack of room."""
        ...

    def store_again(self, file: Path) -> None:
        """Overwrite a file with its own bytes, and sync it. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """This machine.

    `busy_seconds`: the longest wait of a statement for another program's lock. `mounts_file`: Linux's list of mounts.
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

    def thread(self, name: str) -> "Thread":
        """Start a thread; see the port."""
        return LocalThread(name)

    def hold(self, path: Path, flags: int = os.O_RDWR) -> Held:
        """Open a file; see the port. A new one is for its owner alone."""
        return Held(os.open(path, flags, ONLY_THE_OWNER))

    def mounts(self) -> Sequence[tuple[str, str]]:
        """List the mounts; see the port, and proc(5) for the form of the list."""
        try:
            lines = self.mounts_file.read_text(errors="surrogateescape").split("\n")
        except OSError:  # macOS has no such file
            return ()
        fields = [line.split(" ") for line in lines if line]
        return [
            (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point), kind) for _, point, kind, *_ in fields
        ]

    def free_bytes(self, path: Path) -> int:
        """Return the free space; see the port."""
        return shutil.disk_usage(path).free

    def has_room(self, file: Path) -> bool:
        """Test whether a file can grow; see the port.

        The caller holds a WAL's write lock, so no other program appends meanwhile. The test writes zeros past the last frame,
        which are harmless even if the truncation fails: readers stop where the wal-index says, the next commit overwrites
        them, and after a crash a frame with page 0 and other salts than the header's ends the WAL.
        """
        descriptor = os.open(file, os.O_RDWR)
        try:
            end = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < GROWTH_BYTES:  # a write that fits in part is done in part; the next one raises
                    written += os.pwrite(descriptor, bytes(GROWTH_BYTES - written), end + written)
            finally:
                os.ftruncate(descriptor, end)  # this too takes room where a file system never overwrites blocks
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def store_again(self, file: Path) -> None:
        """Overwrite a file with its own bytes; see the port.

        After a failed sync Linux serves from its cache pages that may not be on disk, and no later sync stores them, since they
        count as clean. Overwritten, the pages are dirty, and the next sync stores them.
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
    """Make SQLite's URI of a file, for reading only, or for writing, when a missing file is made."""
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode={'ro' if read_only else 'rwc'}"


class LocalThread:
    """A thread of this machine: a queue, and a call that wakes the loop. An executor takes half as much again (measured)."""

    def __init__(self, name: str) -> None:
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._has_ended = False
        # At the process's end nothing waits for it: whoever needs its work done has awaited it.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Do work; see `Thread`."""
        if self._has_ended:  # nobody would ever do it, and its caller would wait for ever
            raise RuntimeError("the thread has ended")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._orders.put((work, arguments, loop, done))
        return await done

    def end(self) -> None:
        """End; see `Thread`."""
        self._has_ended = True
        self._orders.put(None)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            work, arguments, loop, done = order
            outcome: object = None
            error: BaseException | None = None
            try:
                outcome = work(*arguments)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(_hand_over, done, outcome, error)
            del order, work, arguments, done, outcome, error  # not kept until the next order comes


def _hand_over(done: "asyncio.Future[Any]", outcome: object, error: BaseException | None) -> None:
    if done.done():  # the caller was cancelled
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(outcome)
