"""`reconcile`: a bank's statement against the journal, at the command server."""

import contextlib
import csv
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, BinaryIO, TextIO

import click

from chargeonce.commands import words
from chargeonce.commands.asking import Asking, asking
from chargeonce.commands.exits import HELP, Exit
from chargeonce.commands.printing import Cell, Printer, Unwritten, json_of, part, rows_of, status
from chargeonce_client import FindingKind, OperationKind, ReconcileFinding, ReconcileProgress, Reconciliation

_KIND, _DAY, _AMOUNT, _REFERENCE = 16, 10, 16, 36
_RESULT = ("bank", "from", "to", "done_at", "differences", "undecided", "balanced")
_FIELDS = [field.name for field in ReconcileFinding.DESCRIPTOR.fields]


@click.command(epilog=HELP)
@click.argument("last", type=click.Choice(["last"]), required=False)
@click.option("--bank", default="", show_default=False, help="The bank; without it that of COMMAND_BANK_URL.")
@click.option("--from", "since", type=words.Time(), metavar="TIME", help="The first moment.")
@click.option("--to", "before", type=words.Time(), metavar="TIME", help="The moment before which it ends.")
@click.option(
    "--csv",
    "statement",
    type=click.File("rb"),
    help="The bank's statement, as a CSV file. Without it the bank is asked itself.",
)
@click.option(
    "--mapping",
    type=click.File(encoding="utf-8"),
    help="What the columns of the CSV file mean, in TOML: docs/reconciliation.md.",
)
@click.option("--csv-out", type=click.File("w", "utf-8"), help="Write what is found into this file, too, as CSV.")
@asking("command", interrupted="it has ended there too; it changes nothing")
async def reconcile(
    asked: Asking,
    last: str | None,
    bank: str,
    since: datetime | None,
    before: datetime | None,
    statement: BinaryIO | None,
    mapping: TextIO | None,
    csv_out: TextIO | None,
) -> Exit:
    """Compare a bank's statement with the journal, by day and currency. It changes nothing.

    Exit status 0 is only for a difference of 0.00, nothing that differs, and nothing undecided at the edge of the statement.
    With the word `last`, show the results of the last ones and what they found; 0 then says that all of them are so.
    """
    if last:
        return await _last(asked)
    if since is None or before is None:
        raise click.UsageError("say which days: --from TIME --to TIME")
    if (statement is None) != (mapping is None):
        raise click.UsageError("--csv FILE and --mapping FILE belong together")
    try:
        meaning = "" if mapping is None else mapping.read()
    except UnicodeError as error:
        raise click.UsageError(f"the mapping is no text in UTF-8: {error}") from None
    findings, result = _Findings(asked.printer, csv_out), Reconciliation()
    messages = asked.client.desk.reconcile(
        bank=bank, requested_from=since, requested_before=before, statement=statement, mapping=meaning
    )
    async with contextlib.aclosing(messages):
        async for message in messages:
            match message.WhichOneof("item"):
                case "progress":
                    findings.show_progress(message.progress)
                case "finding":
                    findings.show(message.finding)
                case "result":
                    result = message.result
    findings.are_all()
    asked.printer.page(
        [
            part(
                ("DAY", "CURRENCY", "MATCHED", "BANK", "JOURNAL", "DIFFERENCE", "OTHER"),
                [
                    (
                        day.day,
                        day.currency_code,
                        str(day.matched),
                        words.amount(day.bank_minor_units, day.currency_code),
                        words.amount(day.journal_minor_units, day.currency_code),
                        words.amount(day.difference_minor_units, day.currency_code),
                        words.amount(day.other_minor_units, day.currency_code),
                    )
                    for day in result.days
                ],
            ),
            rows_of(dict(zip(_RESULT, _result(result), strict=True))),
        ],
        {"result": json_of(result)},
    )
    return _ends(result)


class _Findings:
    """Shows what a reconciliation finds, as it comes, and how far it is. The methods raise Unwritten."""

    def __init__(self, printer: Printer, out: TextIO | None) -> None:
        self._printer, self._out = printer, out
        self._write(dict(zip(_FIELDS, _FIELDS, strict=True)))
        self._progress_count, self._next_shown = 0, 1

    def show_progress(self, progress: ReconcileProgress) -> None:
        """Say how far it is, ever more seldom, so that a long one does not fill a log."""
        self._progress_count += 1
        if self._progress_count == self._next_shown:
            self._next_shown *= 2
            self._printer.note(
                f"{progress.statement_lines} lines of the statement, {progress.journal_records} records of the journal"
                f" (up to {progress.journal_head})",
                {"progress": json_of(progress)},
            )

    def show(self, finding: ReconcileFinding) -> None:
        """Show a finding."""
        document = json_of(finding)
        self._write(document)
        self._printer.line(_finding(finding), (_KIND, _DAY, _AMOUNT, _AMOUNT, _REFERENCE), {"finding": document})

    def are_all(self) -> None:
        """Say that there are no more: the file is whole."""
        self._write(None)

    def _write(self, row: Mapping[str, Any] | None) -> None:
        if self._out is None:
            return
        try:
            if row is None:
                self._out.flush()
            else:
                csv.DictWriter(self._out, _FIELDS, lineterminator="\n").writerow(row)
        except OSError as error:
            raise Unwritten(str(error.strerror)) from error


async def _last(asked: Asking) -> Exit:
    answer = await asked.client.desk.reconciliations()
    found = [(each.bank or "-", *_finding(finding)) for each in answer.reconciliations for finding in each.findings]
    asked.printer.page(
        [
            part([name.upper() for name in _RESULT], [_result(each) for each in answer.reconciliations]),
            part(("BANK", "FOUND", "DAY", "AT BANK", "HERE", "NAME", "WHAT IT MEANS"), found),
        ],
        json_of(answer),
    )
    return max((_ends(each) for each in answer.reconciliations), default=Exit.DONE)


def _finding(finding: ReconcileFinding) -> Sequence[Cell]:
    """Write a finding: its kind, its day, both amounts, its name, what it means and what is proposed."""
    at_bank, here = (
        words.amount(units, finding.currency_code) if units else "-"
        for units in (finding.bank_minor_units, finding.journal_minor_units)
    )
    told = f"{words.word(OperationKind, finding.operation).lower()} {finding.text}".strip()
    if finding.proposed_command:
        told += f"; proposed: {finding.proposed_command}"
    name = finding.reference or finding.transaction_id
    return words.word(FindingKind, finding.kind), finding.day, at_bank, here, name, told


def _result(result: Reconciliation) -> Sequence[Cell]:
    """Write a result: bank, times, differences, verdict."""
    return (
        result.bank or "-",
        words.time(getattr(result, "from")),  # a keyword of Python
        words.time(result.to),
        words.time(result.done_at),
        str(result.differences),
        str(result.undecided),
        status("yes" if result.is_balanced else "no", _ends(result)),
    )


def _ends(result: Reconciliation) -> Exit:
    return Exit.DONE if result.is_balanced and not result.undecided else Exit.NO
