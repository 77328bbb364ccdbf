"""`reconcile` on the command line: its arguments, its progress, its outputs and its exit status."""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from google.protobuf.json_format import MessageToJson

from charging.v1.operator_pb2 import ReconcileFinding, ReconcileProgress, ReconcileResponse, Reconciliation
from chassis.documents import listed
from chassis.settings import SettingsError
from command_service.bank.lines import THE_ONLY_ONE
from command_service.bank.statement import Span, Statement
from command_service.bank.statements import STATEMENTS
from command_service.parts import Parts
from command_service.reconciling import kept, report
from command_service.reconciling.comparing import DAY, MARGIN, Asked, Comparison, Progress
from command_service.reconciling.csv_statement import CsvStatement
from command_service.reconciling.days import Calendar, zone_named
from command_service.reconciling.mapping import MappingOfCsv, read_mapping
from command_service.reconciling.matching import Finding

BALANCED, DIFFERS, FAILED, UNDECIDED, AWAY, BROKEN = 0, 1, 2, 3, 4, 5
"""The exit statuses: 2 if it could not be done, 3 if nothing differs, but movements at the edge may be missing, 4 if the bank
does not give its statement, 5 after a fault of this program. 0, 1 and 3 come after a result only."""
SECOND = 1_000_000
NICENESS = 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--bank",
        default=THE_ONLY_ONE,
        metavar="NAME",
        help="a bank of COMMAND_BANKS; without it, that of COMMAND_BANK_URL",
    )
    parser.add_argument(
        "--from",
        dest="begin",
        required=True,
        metavar="TIME",
        help="the first day, as 2026-11-30, or moment, with its zone",
    )
    parser.add_argument(
        "--to",
        dest="end",
        metavar="TIME",
        help="the day or moment before which it ends; one day after --from if not given",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        action="append",
        metavar="FILE",
        help="the statement is this CSV file; may be given again; without it the bank is asked",
    )
    parser.add_argument("--mapping", type=Path, metavar="FILE", help="what the CSV file's columns mean, in TOML")
    parser.add_argument("--time-zone", metavar="NAME", help="of the days, if the bank is asked; UTC if not given")
    parser.add_argument(
        "--clock-difference",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the most by which the bank's clock and ours differ; 60 if not given",
    )
    parser.add_argument(
        "--json", metavar="FILE", dest="json_out", help="write all of it as JSON; - for standard output"
    )
    parser.add_argument("--csv-out", metavar="FILE", help="write the findings as CSV; - for standard output")
    parser.add_argument(
        "--lines",
        action="store_true",
        help="write progress, findings and the result as they come, each a line of JSON, the contract's ReconcileResponse",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a setting, instead of the environment's; may be given again",
    )
    parser.add_argument(
        "--scratch",
        metavar="FOLDER",
        help="where both sides are sorted, in temporary files; that of TMPDIR if not given",
    )
    parser.add_argument("--gently", action="store_true", help="at the lowest priority, beside a server at work")


def reconcile(parts: Parts, chosen: argparse.Namespace) -> int:
    """Run the command; return its exit status.

    Raises SettingsError, Unusable, StatementUnusable, JournalRefused, JournalCorrupt, OSError: then nothing is known.
    """
    if chosen.gently:
        os.nice(NICENESS)
    began = parts.now()
    mapping = _mapping(chosen)
    asked, statement = _asked(parts, chosen, mapping, began)
    folder = kept.folder(parts.settings)
    with tempfile.TemporaryDirectory(prefix="chargeonce-", dir=chosen.scratch) as scratch:
        comparison = Comparison(asked, Path(scratch), _Teller(as_lines=chosen.lines).tell)
        with contextlib.closing(comparison):
            result, first = _write(comparison, comparison.findings(statement, parts.settings.journal), chosen, began)
    if folder is not None:
        remembered = Reconciliation(findings=first)
        remembered.MergeFrom(result)
        kept.keep(folder, remembered)
    if not result.is_balanced:
        return DIFFERS
    return UNDECIDED if result.undecided else BALANCED


def _mapping(chosen: argparse.Namespace) -> MappingOfCsv | None:
    if bool(chosen.csv) != (chosen.mapping is not None):
        raise SettingsError("--csv and --mapping go together")
    return read_mapping(chosen.mapping) if chosen.mapping is not None else None


def _asked(parts: Parts, chosen: argparse.Namespace, mapping: MappingOfCsv | None, now: int) -> tuple[Asked, Statement]:
    configured = parts.configured
    bank = configured.banks.get(chosen.bank)
    if bank is None:  # also of a file: its name chooses the charges that are compared
        known = (
            "COMMAND_BANKS is not set"
            if THE_ONLY_ONE in configured.banks
            else f"name one of: {listed(configured.banks)}"
        )
        raise SettingsError(f"there is no such bank: {known}")
    statement: Statement
    if mapping is not None:
        zone, statement = mapping.zone, CsvStatement(chosen.csv, mapping)
    else:
        zone = _zone(chosen.time_zone or "UTC")
        statement = STATEMENTS[bank.kind](bank, parts.wire(bank), parts.watched)
    begin = _moment("--from", chosen.begin, zone)
    end = _moment("--to", chosen.end, zone) if chosen.end else begin + DAY
    calendar = Calendar(zone)
    if chosen.end is None and begin == calendar.begin_of(calendar.day_of(begin)):
        end = calendar.begin_of(calendar.day_of(begin) + 1)  # days of 23 and 25 hours too
    difference = round(chosen.clock_difference * SECOND)
    end = min(end, now - difference)  # what is newer may be on its way yet, or in one of the two readings only
    if not begin < end:
        raise SettingsError("--to must be after --from, which must be in the past")
    asked = partial(Asked, chosen.bank, zone=zone, unnamed=configured.unnamed, clock_difference=difference)
    if mapping is None:
        return asked(Span(begin, end), margin=MARGIN), statement
    if mapping.is_daily:  # a sum is of a whole day
        begin, end = calendar.begin_of(calendar.day_of(begin)), calendar.begin_of(calendar.day_of(end - 1) + 1)
    return asked(Span(begin, end), lag=mapping.lag_days * DAY, is_daily=mapping.is_daily), statement


def _zone(name: str) -> tzinfo:
    try:
        return zone_named(name)
    except ValueError as error:
        raise SettingsError(f"--time-zone {error}") from None


def _moment(argument: str, text: str, zone: tzinfo) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{argument} must be as 2026-11-30, or 2026-11-30T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)


# ---------------------------------------------------------------- output
def _write(
    comparison: Comparison, findings: Iterator[Finding], chosen: argparse.Namespace, done_at: int
) -> tuple[Reconciliation, Sequence[ReconcileFinding]]:
    """Go through the findings, write them as asked, and return the result and the first findings."""
    bank = comparison.asked.bank
    first = list(islice(findings, 1))  # if one side cannot be read, nothing is written
    with contextlib.ExitStack() as stack:
        found: Iterator[ReconcileFinding] = (report.finding_out(each, bank) for each in chain(first, findings))
        json_out = stack.enter_context(_opened(chosen.json_out)) if chosen.json_out else None
        if json_out is not None:
            found = report.write_json(json_out, found)
        if chosen.csv_out:
            found = report.write_csv(stack.enter_context(_opened(chosen.csv_out)), found)
        if chosen.lines:
            found = _lines(found)
        shown = list(islice(found, report.SHOWN))
        for _ in found:
            pass
        result = report.result_out(comparison, done_at)
        if json_out is not None:
            report.end_json(json_out, result)
    if chosen.lines:
        _put(ReconcileResponse(result=result))
    elif "-" not in (chosen.json_out, chosen.csv_out):
        for line in report.table(result, shown, comparison.counts):
            print(line)
    return result, shown


@contextlib.contextmanager
def _opened(name: str) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdout
        return
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        yield file


def _lines(found: Iterable[ReconcileFinding]) -> Iterator[ReconcileFinding]:
    for finding in found:
        _put(ReconcileResponse(finding=finding))
        yield finding


def _put(response: ReconcileResponse) -> None:
    print(MessageToJson(response, indent=None, preserving_proto_field_name=True), flush=True)


class _Teller:
    """Tells how far it is: a program by a line of JSON, a person by a line on standard error, which a terminal writes over."""

    def __init__(self, *, as_lines: bool) -> None:
        self._as_lines = as_lines
        self._is_terminal = sys.stderr.isatty()
        self._pause_seconds = 1.0 if as_lines or self._is_terminal else 10.0
        self._began = self._told_at = time.monotonic()

    def tell(self, progress: Progress) -> None:
        """Tell it, unless it was told a moment ago."""
        now = time.monotonic()
        if now - self._told_at < self._pause_seconds:
            return
        self._told_at = now
        if self._as_lines:
            _put(
                ReconcileResponse(
                    progress=ReconcileProgress(
                        statement_lines=progress.statement_lines,
                        journal_records=progress.journal_records,
                        journal_head=progress.journal_head,
                    )
                )
            )
            return
        of = f" of {progress.journal_head:,}" if progress.journal_head else ""
        text = (
            f"{now - self._began:.0f} s: {progress.statement_lines:,} lines of the statement, "
            f"{progress.journal_records:,}{of} records of the journal"
        )
        text, end = (f"\r{text}\033[K", "") if self._is_terminal else (text, "\n")
        print(text, end=end, file=sys.stderr, flush=True)
