"""A bug of the view: its disk tears a transaction in two."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from chassis.disk import Disk
from query_service.parts import Parts
from query_service.schema import MOVE_CHECKPOINT
from rig.around import Around


class CheckpointOutsideTheTransaction(Parts):
    """The rows of a batch are committed, and the checkpoint moves in a transaction of its own.

    A view that dies between the two applies the batch again.
    """

    def disk(self) -> Disk:
        """Give a disk on which the writer's transactions are torn."""
        return Torn(super().disk()).as_one()


class Torn(Around[Disk]):
    """A disk whose connections commit before the checkpoint moves, and begin again."""

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        """Open a connection; see the port."""
        connection = self.inner.connect(path, read_only=read_only)
        return connection if read_only else cast("sqlite3.Connection", _TornConnection(connection))


class _TornConnection:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Mapping[str, Any] | tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Execute, after a commit if it moves the checkpoint."""
        if sql == MOVE_CHECKPOINT:
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")
        return self._connection.execute(sql, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
