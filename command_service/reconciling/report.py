"""The result, as messages of the contract, as a table, as JSON and as CSV. Findings are written as they are found."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TextIO

from google.protobuf.json_format import MessageToDict

from charging.v1.common_pb2 import OperationKind
from charging.v1.operator_pb2 import FindingKind as Kind
from charging.v1.operator_pb2 import ReconciledDay, ReconcileFinding, Reconciliation
from command_service.bank.statement import LineKind
from command_service.reconciling.amounts import amount_out
from command_service.reconciling.comparing import Comparison
from command_service.reconciling.days import written
from command_service.reconciling.matching import Finding, FindingKind
from command_service.reconciling.words import proposed, shown, told

# More findings than these are for a program: it reads the JSON or the CSV.
SHOWN = 100

_OPERATIONS: Mapping[LineKind, OperationKind.ValueType] = MappingProxyType(
    {
        LineKind.CHARGE: OperationKind.OPERATION_KIND_CHARGE,
        LineKind.AUTHORIZE: OperationKind.OPERATION_KIND_AUTHORIZE,
        LineKind.CAPTURE: OperationKind.OPERATION_KIND_CAPTURE,
        LineKind.VOID: OperationKind.OPERATION_KIND_VOID,
        LineKind.REFUND: OperationKind.OPERATION_KIND_REFUND,
    }
)
_COLUMNS = (
    "kind",
    "day",
    "currency_code",
    "reference",
    "charge_id",
    "transaction_id",
    "operation",
    "bank_amount",
    "journal_amount",
    "text",
    "proposed_command",
)


def finding_out(finding: Finding, bank: str) -> ReconcileFinding:
    """Write a finding as a message."""
    entry, line = finding.entry, finding.line
    kind = entry.kind if entry is not None else line.kind if line is not None else LineKind.NET
    return ReconcileFinding(
        kind=Kind.Value(f"FINDING_KIND_{finding.kind.name}"),
        reference=shown((line.reference if line is not None else "") or (entry.reference if entry is not None else "")),
        charge_id=entry.charge_id if entry is not None else "",
        transaction_id=shown(
            (line.transaction_id if line is not None else "") or (entry.transaction_id if entry is not None else "")
        ),
        operation=_OPERATIONS.get(kind, OperationKind.OPERATION_KIND_UNSPECIFIED),
        day=written(finding.day),
        currency_code=finding.currency_code,
        bank_minor_units=finding.bank_minor,
        journal_minor_units=finding.journal_minor,
        text=told(finding),
        proposed_command=proposed(finding, bank),
    )


def result_out(comparison: Comparison, done_at: int) -> Reconciliation:
    """Write the result as a message, once all findings were found."""
    asked = comparison.asked
    result = Reconciliation(
        bank=asked.bank,
        differences=comparison.differences,
        is_balanced=comparison.is_balanced,
        undecided=comparison.undecided,
    )
    getattr(result, "from").FromMicroseconds(asked.span.begin)
    result.to.FromMicroseconds(asked.span.end)
    result.done_at.FromMicroseconds(done_at)
    for (day, code), totals in sorted(comparison.days.items()):
        result.days.append(
            ReconciledDay(
                day=written(day),
                currency_code=code,
                matched=totals.matched,
                bank_minor_units=totals.bank_minor,
                journal_minor_units=totals.journal_minor,
                difference_minor_units=totals.difference_minor,
                other_minor_units=totals.other_minor,
            )
        )
    return result


def word(kind: FindingKind) -> str:
    """Return the word for a kind of finding, as missing_at_bank."""
    return kind.name.lower()


def as_dict(message: ReconcileFinding | Reconciliation) -> dict[str, Any]:
    """Write a message in JSON's form of protobuf: all fields, by their names in the contract."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def write_json(out: TextIO, findings: Iterable[ReconcileFinding]) -> Iterator[ReconcileFinding]:
    """Write findings as they pass; `end_json` ends the document."""
    out.write('{"findings": [')
    for number, finding in enumerate(findings):
        out.write(f"{',' * bool(number)}\n{json.dumps(as_dict(finding))}")
        yield finding


def end_json(out: TextIO, result: Reconciliation) -> None:
    """End the document with the result."""
    out.write(f'\n], "result": {json.dumps(as_dict(result), indent=1)}}}\n')


def write_csv(out: TextIO, findings: Iterable[ReconcileFinding]) -> Iterator[ReconcileFinding]:
    """Write findings as they pass, with amounts as people write them."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for finding in findings:
        code = finding.currency_code
        rows.writerow(
            (
                word(FindingKind(finding.kind)),
                finding.day,
                code,
                finding.reference,
                finding.charge_id,
                finding.transaction_id,
                _operation(finding),
                amount_out(finding.bank_minor_units, code),
                amount_out(finding.journal_minor_units, code),
                finding.text,
                finding.proposed_command,
            )
        )
        yield finding


def _operation(finding: ReconcileFinding) -> str:
    if not finding.operation:
        return ""
    return OperationKind.Name(finding.operation).removeprefix("OPERATION_KIND_").lower()


def table(
    result: Reconciliation, findings: Iterable[ReconcileFinding], counts: Mapping[FindingKind, int]
) -> Iterator[str]:
    """Write it for people: the days, the first findings, and what it comes to."""
    yield _row("day", "cur", "matched", "bank", "journal", "difference", "other")
    for day in result.days:
        code = day.currency_code
        amounts = (day.bank_minor_units, day.journal_minor_units, day.difference_minor_units, day.other_minor_units)
        yield _row(day.day, code, f"{day.matched:,}", *(amount_out(amount, code) for amount in amounts))
    if not result.days:
        yield "no movement on either side"
    for finding in findings:
        yield ""
        yield (
            f"{word(FindingKind(finding.kind)).replace('_', ' ')}: {finding.day} {finding.currency_code}"
            f"  bank {amount_out(finding.bank_minor_units, finding.currency_code)}"
            f"  journal {amount_out(finding.journal_minor_units, finding.currency_code)}"
            f"  {_operation(finding)} {finding.reference} {finding.transaction_id}".rstrip()
        )
        yield f"  {finding.text}"
        if finding.proposed_command:
            yield f"  {finding.proposed_command}"
    yield ""
    if (found := sum(counts.values())) > SHOWN:
        yield f"the first {SHOWN} of {found:,} findings; all are in --json and --csv-out"
    yield _summary(result, counts)


def _summary(result: Reconciliation, counts: Mapping[FindingKind, int]) -> str:
    named = ", ".join(f"{number:,} {word(kind).replace('_', ' ')}" for kind, number in sorted(counts.items()))
    said = f"balanced: a difference of 0.00 in {sum(day.matched for day in result.days):,} movements"
    if not result.is_balanced:
        said = f"not balanced: {result.differences:,} differences"
    elif counts.get(FindingKind.AT_EDGE):
        said = "no difference, but not certain at the edge: read the neighbouring days too"
    return f"{said}; {named}" if named else said


def _row(day: str, code: str, *figures: str) -> str:
    return f"{day:<12}{code:<5}{figures[0]:>10}" + "".join(f"{figure:>20}" for figure in figures[1:])
