"""Readers of the servers' files and of a bank's statement: they return the values that the checker judges."""

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Mapping
from pathlib import Path

from judge.history import Call, Movement, Record, View

SELECT_RECORDS = "SELECT position, charge_id, version, recorded_at, chain, event FROM record ORDER BY position"


def read_journal(path: Path) -> list[Record]:
    """Read all records of a journal's file. Raises sqlite3.Error."""
    with contextlib.closing(_open(path)) as connection:
        return records_in(connection)


def records_in(connection: sqlite3.Connection) -> list[Record]:
    """Read all records of an open journal."""
    return [
        Record(position, str(uuid.UUID(bytes=key)), version, recorded_at, chain, event)
        for position, key, version, recorded_at, chain, event in connection.execute(SELECT_RECORDS)
    ]


def read_view(path: Path) -> View:
    """Read all rows of a view's file, in one transaction. Raises sqlite3.Error."""
    with contextlib.closing(_open(path)) as connection:
        connection.execute("BEGIN")
        return view_in(connection)


def view_in(connection: sqlite3.Connection) -> View:
    """Read all rows of an open view. The caller keeps it unchanged meanwhile."""
    tables = ("tenant", "charge", "operation", "entry", "step", "summary", "totals", "checkpoint")
    tenants, charges, operations, entries, steps, sums, totals, (checkpoint,) = (
        _rows(connection.execute(f"SELECT * FROM {table}"))  # noqa: S608  # fixed names
        for table in tables
    )
    return View(tenants, charges, operations, entries, steps, sums, totals, checkpoint)


def _rows(cursor: sqlite3.Cursor) -> list[dict[str, object]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def read_anchor(journal: Path) -> tuple[int, bytes] | None:
    """Read the anchor beside a journal; None if there is none."""
    path = journal.with_name(journal.name + ".anchor")
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    return int(values["position"]), bytes.fromhex(values["chain"])


def movements_of(statement: Mapping[str, object]) -> list[Movement]:
    """Read a bank's statement. Members that the checker does not know are left out."""
    rows = statement["movements"]
    assert isinstance(rows, list)
    names = Movement.__dataclass_fields__
    return [Movement(**{name: value for name, value in row.items() if name in names}) for row in rows]


def read_history(path: Path) -> list[Call]:
    """Read a client's history, one JSON object a line."""
    return [Call(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
