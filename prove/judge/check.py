"""Runs the history checker over a live system's files, which are only read.

    python -m prove.judge.check --journal data/run/journal.db --view data/run/view.db \
        --statement http://127.0.0.1:8080/statement

The statement is what the bank says moved, as a URL or a file of `GET /statement`. A history is what a client came to know: a
file with one JSON object a line, its members named as the fields of `prove.history.Call`. While servers are at work the
bank may be ahead of the journal, so that a charge is under way is no violation; say --at-rest when nothing is.
"""

import argparse
import contextlib
import json
import sqlite3
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path

from chassis import process
from prove.judge.checker import Violation, check
from prove.judge.history import Call, Movement, Observed, Record, View

# A statement of a bank that hangs would otherwise be waited for without end.
STATEMENT_TIMEOUT_SECONDS = 30.0
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
    """Read all rows of an open view; the caller sees to it that nothing changes meanwhile."""
    charges, entries, summaries, (checkpoint,) = (
        _rows(connection.execute(f"SELECT * FROM {table}"))  # noqa: S608  # fixed names
        for table in ("charge", "entry", "summary", "checkpoint")
    )
    return View(charges, entries, summaries, checkpoint)


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
    """Read a bank's statement; members that the checker does not know are left out."""
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


def _statement(source: str) -> Mapping[str, object]:
    if source.startswith(("http://", "https://")):
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
        with direct.open(source, timeout=STATEMENT_TIMEOUT_SECONDS) as answer:
            text = answer.read()
    else:
        text = Path(source).read_bytes()
    said = json.loads(text)
    assert isinstance(said, dict)
    return said


def main() -> int:
    """Check the files and print what broke. Exit status 0: all that was looked at holds, 1: not, 2: it cannot be read."""
    parser = process.parser("python -m prove.judge.check", __doc__ or "")
    parser.add_argument("--journal", type=Path, required=True, help="the command server's file")
    parser.add_argument("--statement", required=True, help="what the bank says moved: a URL, or a file")
    parser.add_argument("--view", type=Path, help="the query server's file")
    parser.add_argument("--history", type=Path, help="what a client came to know: one JSON object a line")
    parser.add_argument("--at-rest", action="store_true", help="nothing is under way: every charge must have ended")
    chosen = parser.parse_args()
    try:
        violations, looked_at = _check(chosen)
        if violations and not chosen.at_rest:
            # Servers at work move between two of our looks. What broke for good is found again, what merely moved is not.
            again, looked_at = _check(chosen)
            violations = [violation for violation in violations if violation in again]
    except (OSError, sqlite3.Error, urllib.error.URLError, ValueError, KeyError, TypeError) as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        return 2
    for violation in violations:
        print(violation)
    print(f"{looked_at}: {len(violations) or 'no'} violation{'' if len(violations) == 1 else 's'}")
    return 1 if violations else 0


def _check(chosen: argparse.Namespace) -> tuple[list[Violation], str]:
    """Read effects before their causes: what a client and the view know is in the journal by the time it is read."""
    calls = read_history(chosen.history) if chosen.history else []
    view = read_view(chosen.view) if chosen.view else None
    anchor = read_anchor(chosen.journal)
    records = read_journal(chosen.journal)
    movements = movements_of(_statement(chosen.statement))
    observed = Observed(records, calls=calls, movements=movements, view=view, anchor=anchor, is_at_rest=chosen.at_rest)
    looked_at = f"{len(records)} records, {len(movements)} movements, {len(calls)} calls"
    return check(observed), looked_at + (", the view" if view else "")


if __name__ == "__main__":
    sys.exit(main())
