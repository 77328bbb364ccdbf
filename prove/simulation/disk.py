"""The disk of a story: the product's SQLite files, what is durable of them, and commits that fail.

A killed process stops between two callbacks; whatever its files hold then is copied, WAL and all, and the next one starts
on the copy. So there is no clean-up that a real kill would not do either.
"""

import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from charging.v1.journal_pb2 import Event
from prove.simulation.host import Connection, Process, ProcessEnded, System
from prove.simulation.loop import PROCESS
from prove.simulation.plan import Mask, Plan
from prove.simulation.stage import Stage

AT_REST = frozenset({"charged", "charge_declined", "review_required", "charge_abandoned"})
SELECT_NEW = "SELECT position, charge_id, chain, event FROM record WHERE position > ? ORDER BY position"

_connect = sqlite3.connect


class Disk(Stage):
    """A stage with a disk."""

    def __init__(self, plan: Plan, mask: Mask, folder: Path) -> None:
        super().__init__(plan, mask)
        self.folder = folder
        self.disk_is_full = False
        self.system = System()
        self.durable: list[tuple[int, bytes]] = []
        self.durable_tokens: set[str] = set()
        self.unfinished: set[bytes] = set()
        self.committed_at: dict[int, float] = {}

    def connect(self, database: str, **options: Any) -> sqlite3.Connection:
        """Open a connection for the process that asks."""
        process = PROCESS.get()
        # With this way to the files SQLite keeps its locks and the WAL's index in memory: all who open them are in here.
        connection = _connect(f"{database}&vfs=unix-excl", factory=Connection, cached_statements=64, **options)
        assert isinstance(process, Process)
        assert isinstance(connection, Connection)
        process.connections.append(connection)
        if "mode=rwc" in database:
            connection.commits = partial(self.commit, process, connection)
            connection.begins = partial(self.begin, process)
        return connection

    def begin(self, process: Process) -> None:
        """Let a transaction begin, unless another program holds the write lock."""
        if process.kind == "command" and self.dice.fires("journal_busy"):
            process.had_disk_fault |= not process.has_started  # a start is refused for it, and is made again
            self.note(process.name, "finds its journal locked by another program")
            raise _error("database is locked", sqlite3.SQLITE_BUSY)

    def commit(self, process: Process, connection: Connection) -> sqlite3.Cursor:
        """Commit, unless the disk has other plans."""
        dice = self.dice
        if dice.fires("kill_before_commit"):
            process.kill("killed right before a commit")
            raise ProcessEnded
        if process.kind != "command":
            if dice.fires("view_not_written"):
                connection.really("ROLLBACK")
                raise _error("database or disk is full", sqlite3.SQLITE_FULL)
            return self._committed(process, connection)
        if dice.fires("eio_lost"):
            # The sync fails: what was written reads back from the cache, and is gone after a power cut.
            process.had_disk_fault = True
            process.surviving = process.surviving or self.copy(process, f"{process.folder.name}-synced")
            connection.really("COMMIT")
            self.note(process.name, "a commit's sync fails: it reads back, but is not on disk")
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR | (4 << 8))
        if dice.fires("eio_kept"):
            process.had_disk_fault = True
            connection.really("COMMIT")
            self.note_durable(process, connection)
            self.note(process.name, "a commit fails, and is on disk all the same")
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR | (4 << 8))
        if self.disk_is_full:
            dice.met("disk_full")
        if self.disk_is_full or dice.fires("disk_full_once"):
            process.had_disk_fault = True
            connection.really("ROLLBACK")
            self.note(process.name, "a commit finds the disk full")
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        return self._committed(process, connection)

    def _committed(self, process: Process, connection: Connection) -> sqlite3.Cursor:
        cursor = connection.really("COMMIT")
        if process.kind == "command":
            self.note_durable(process, connection)
        if self.dice.fires("kill_after_commit"):
            process.kill("killed right after a commit")
            raise ProcessEnded
        return cursor

    def note_durable(self, process: Process, connection: Connection) -> None:
        """Remember what a power cut could no longer take away."""
        if process.surviving is not None:
            return
        last = self.durable[-1][0] if self.durable else 0
        for position, key, chain, stored in connection.really(SELECT_NEW, (last,)):
            self.durable.append((position, chain))
            self.committed_at[position] = self.loop.time()
            event = Event.FromString(stored)
            kind = event.WhichOneof("kind")
            if kind == "token_issued":
                self.durable_tokens.add(event.token_issued.token)
            if kind in AT_REST:
                self.unfinished.discard(key)
            else:
                self.unfinished.add(key)
            self.note("journal", position, uuid.UUID(bytes=key), kind)

    @property
    def durable_position(self) -> int:
        """The newest position that no power cut can take away."""
        return self.durable[-1][0] if self.durable else 0

    def copy(self, process: Process, name: str) -> Path:
        """Copy what a process's files hold now, WAL and all."""
        target = self.folder / name
        target.mkdir()
        with os.scandir(process.folder) as files:
            for file in files:
                if not file.name.endswith(".lock"):
                    shutil.copyfile(file.path, f"{target}/{file.name}")
        return target

    def kept(self, lock: Callable[..., Any]) -> Callable[..., Any]:
        """Remember a lock with the process that takes it, so that its death lets go of it."""

        def take(*arguments: Any) -> Any:
            taken = lock(*arguments)
            process = PROCESS.get()
            assert isinstance(process, Process)
            process.locks.append(taken)
            if isinstance(taken, int):
                self.system.descriptors.add(taken)
            return taken

        return take


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    names = {sqlite3.SQLITE_FULL: "SQLITE_FULL", sqlite3.SQLITE_BUSY: "SQLITE_BUSY"}
    error.sqlite_errorname = names.get(code, "SQLITE_IOERR_FSYNC")
    return error
