"""Check the files of a live system against the history checker. They are only read.

    chargeonce verify-history --journal data/run/journal.db --view data/run/view.db --statement http://127.0.0.1:8080/statement

The statement is the bank's list of movements: a URL, or a file with the answer of `GET /statement`. A history is a client's
record of its calls: a file with one JSON object a line, its members named like the fields of `judge.history.Call`. While the
servers work, the bank may be ahead of the journal, so a charge under way is no violation; --at-rest says that none is.
"""

import argparse
import json
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from chassis import process
from judge.checker import check
from judge.files import movements_of, read_anchor, read_history, read_journal, read_view
from judge.history import Observed, Violation

PROGRAM = "python -m judge"
# Without it the wait for a bank that hangs would never end.
STATEMENT_TIMEOUT_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Check the files that the arguments name (the command line's by default), and print the violations.

    Returns the exit status. 0: every invariant that was checked holds, 1: one does not, 2: a file cannot be read. Raises
    SystemExit for unknown arguments. `program` is the command in the help.
    """
    parser = process.parser(program, __doc__ or "")
    parser.add_argument("--journal", type=Path, required=True, help="the command server's file")
    parser.add_argument("--statement", required=True, help="the bank's list of movements: a URL, or a file")
    parser.add_argument("--view", type=Path, help="the query server's file")
    parser.add_argument("--history", type=Path, help="a client's calls and their ends: one JSON object a line")
    parser.add_argument("--at-rest", action="store_true", help="nothing is under way: every charge must have ended")
    chosen = parser.parse_args(arguments)
    try:
        violations, looked_at = _check(chosen)
        if violations and not chosen.at_rest:
            # Running servers change their files between two reads. A broken invariant is found again, a mere change is not.
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
    """Read effects before their causes: the journal, read last, holds everything that a client or the view has seen."""
    calls = read_history(chosen.history) if chosen.history else []
    view = read_view(chosen.view) if chosen.view else None
    anchor = read_anchor(chosen.journal)
    records = read_journal(chosen.journal)
    movements = movements_of(_statement(chosen.statement))
    observed = Observed(records, calls=calls, movements=movements, view=view, anchor=anchor, is_at_rest=chosen.at_rest)
    looked_at = f"{len(records)} records, {len(movements)} movements, {len(calls)} calls"
    return check(observed), looked_at + (", the view" if view else "")


def _statement(source: str) -> Mapping[str, object]:
    if source.startswith(("http://", "https://")):
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # no proxy, even if the environment names one
        with direct.open(source, timeout=STATEMENT_TIMEOUT_SECONDS) as answer:
            text = answer.read()
    else:
        text = Path(source).read_bytes()
    said = json.loads(text)
    assert isinstance(said, dict)
    return said
