"""The disk of a story: the product's SQLite files, what is durable of them, and commits that fail.

A killed process stops between two callbacks; whatever its files hold then is copied, WAL and all, and the next one starts
on the copy. So there is no clean-up that a real kill would not do either.
"""

import os
import random
import shutil
import sqlite3
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chassis.disk import LOCAL_DISK, Held, file_uri
from prove.simulation.durable import Durable
from prove.simulation.host import Connection, Process, ProcessEnded, Thread
from prove.simulation.stage import Stage

SELECT_NEW = "SELECT position, charge_id, chain, event FROM record WHERE position > ? ORDER BY position"


class Disk:
    """Where the story's servers keep their files, all in one folder."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.folder = folder
        self.is_full = False
        self._stage = stage
        self._dice = stage.dice
        self._ids = random.Random(f"ids {stage.plan.seed}")
        self.durable = Durable(stage)

    def of(self, process: Process) -> "DiskOf":
        """The disk as a process sees it."""
        return DiskOf(self, process)

    def new_id(self) -> str:
        """Name a new journal."""
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    def begin(self, process: Process) -> None:
        """Let a transaction begin, unless another program holds the write lock."""
        if process.serves_commands and self._dice.fires("journal_busy"):
            process.had_disk_fault |= not process.has_started  # a start is refused for it, and is made again
            self._stage.note(process.name, "finds its journal locked by another program")
            raise _error("database is locked", sqlite3.SQLITE_BUSY)

    def commit(self, process: Process, connection: Connection) -> sqlite3.Cursor:
        """Commit, unless the disk has other plans."""
        dice = self._dice
        if dice.fires("kill_before_commit"):
            process.kill("killed right before a commit")
            raise ProcessEnded
        if not process.serves_commands:
            if dice.fires("view_not_written"):
                connection.really("ROLLBACK")
                raise _error("database or disk is full", sqlite3.SQLITE_FULL)
            return self._committed(process, connection)
        if dice.fires("eio_lost"):
            # The sync fails: what was written reads back from the cache, and is gone after a power cut.
            process.had_disk_fault = True
            process.surviving = process.surviving or self.copy(process, f"{process.folder.name}-synced")
            connection.really("COMMIT")
            self._stage.note(process.name, "a commit's sync fails: it reads back, but is not on disk")
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR | (4 << 8))
        if dice.fires("eio_kept"):
            process.had_disk_fault = True
            connection.really("COMMIT")
            self.note_durable(process, connection)
            self._stage.note(process.name, "a commit fails, and is on disk all the same")
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR | (4 << 8))
        if self.is_full:
            dice.met("disk_full")
        if self.is_full or dice.fires("disk_full_once"):
            process.had_disk_fault = True
            connection.really("ROLLBACK")
            self._stage.note(process.name, "a commit finds the disk full")
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        return self._committed(process, connection)

    def _committed(self, process: Process, connection: Connection) -> sqlite3.Cursor:
        cursor = connection.really("COMMIT")
        if process.serves_commands:
            self.note_durable(process, connection)
        if self._dice.fires("kill_after_commit"):
            process.kill("killed right after a commit")
            raise ProcessEnded
        return cursor

    def note_durable(self, process: Process, connection: Connection) -> None:
        """Remember what a power cut could no longer take away."""
        if process.surviving is not None:
            return
        for position, key, chain, stored in connection.really(SELECT_NEW, (self.durable.position,)):
            self.durable.note(position, key, chain, stored)

    def copy(self, process: Process, name: str) -> Path:
        """Copy what a process's files hold now, WAL and all."""
        target = self.folder / name
        target.mkdir()
        with os.scandir(process.folder) as files:
            for file in files:
                if not file.name.endswith(".lock"):
                    shutil.copyfile(file.path, f"{target}/{file.name}")
        return target


class DiskOf:
    """The disk as one process sees it (see `chassis.disk.Disk`): what it opens ends with the process."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        """Open a connection; what it commits goes through the world."""
        # With this way to the files SQLite keeps its locks and the WAL's index in memory: all who open them are in here.
        connection = sqlite3.connect(
            f"{file_uri(path, read_only=read_only)}&vfs=unix-excl",
            factory=Connection,
            cached_statements=64,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        self._process.connections.append(connection)
        if not read_only:
            connection.commits = partial(self._disk.commit, self._process, connection)
            connection.begins = partial(self._disk.begin, self._process)
        return connection

    def thread(self, _name: str) -> Thread:
        """Stand in for a thread: the loop does its work."""
        return Thread()

    def hold(self, path: Path, flags: int = os.O_RDWR) -> Held:
        """Open a file to be held until the process ends at the latest."""
        held = LOCAL_DISK.hold(path, flags)
        self._process.held.append(held)
        return held

    def mounts(self) -> Sequence[tuple[str, str]]:
        """List what is mounted: what this machine says."""
        return LOCAL_DISK.mounts()

    def free_bytes(self, _path: Path) -> int:
        """Nothing, or as good as everything."""
        return 0 if self._disk.is_full else 1 << 40

    def has_room(self, file: Path) -> bool:
        """Tell whether a file can grow: it is a real one."""
        return LOCAL_DISK.has_room(file)

    def store_again(self, file: Path) -> None:
        """Write a file over with its own bytes: no sync is lost here but by the story's will."""
        LOCAL_DISK.store_again(file)


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    names = {sqlite3.SQLITE_FULL: "SQLITE_FULL", sqlite3.SQLITE_BUSY: "SQLITE_BUSY"}
    error.sqlite_errorname = names.get(code, "SQLITE_IOERR_FSYNC")
    return error
