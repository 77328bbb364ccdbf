"""CSV statements: the examples of docs/reconciliation.md are read as they say, and what does not fit is refused."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chassis.watched import Unusable
from command_service.bank.statement import Line, Span, StatementUnusable
from command_service.reconciling.amounts import amount_out
from command_service.reconciling.csv_statement import CsvStatement
from command_service.reconciling.mapping import read_mapping

PAGE = (Path(__file__).parents[2] / "docs" / "reconciliation.md").read_text()
EXAMPLES = re.findall(
    r"^### (.+?)$.*?```toml\n(.*?)```\n\n```csv\n(.*?)```\n\n```lines\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL
)
SPAN = Span(0, 1 << 60)
SIMPLE = """
currency = "EUR"
[columns]
reference = "ref"
amount = "amount"
time = "at"
"""


async def read(folder: Path, mapping: str, text: str) -> Sequence[Line]:
    (folder / "mapping.toml").write_text(mapping)
    read_as = read_mapping(folder / "mapping.toml")
    (folder / "statement.csv").write_text(text, encoding=read_as.encoding)
    source = CsvStatement([folder / "statement.csv"], read_as)
    return [line async for batch in source.batches(SPAN) for line in batch]


def shown(line: Line) -> str:
    at = datetime.fromtimestamp(line.at / 1_000_000, UTC).isoformat().replace("+00:00", "Z")
    name = line.reference or line.transaction_id or "-"
    amount = f"{amount_out(line.minor_units, line.currency_code)} {line.currency_code}"
    return f"{line.kind.name.lower():<11}{name:<12}{amount:>15}  {at}" + (
        "" if line.has_moved else "  went back" if line.is_reversal else "  not moved"
    )


@pytest.mark.parametrize(
    ("mapping", "text", "lines"), [each[1:] for each in EXAMPLES], ids=[each[0] for each in EXAMPLES]
)
async def test_the_examples_are_read_as_the_page_says(tmp_path: Path, mapping: str, text: str, lines: str) -> None:
    assert [shown(line) for line in await read(tmp_path, mapping, text)] == lines.splitlines()


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ("", "[columns] is missing"),
        ("colums = 1", "is 'columns' meant?"),
        (SIMPLE.replace("ref", "re", 0) + "fee = 3", "fee must be its name"),
        (SIMPLE.replace('currency = "EUR"', ""), "either currency"),
        (SIMPLE.replace('"EUR"', '"EURO"'), "currency must be the ISO 4217 code"),
        (SIMPLE + '[amounts]\ndecimal = ";"', "decimal must be one of"),
        (SIMPLE + '[amounts]\nthousands = "."', "must differ"),
        (SIMPLE + '[amounts]\nsign = "type"', "needs the column type"),
        ('time_zone = "Mars"\n' + SIMPLE, "time_zone must be a name"),
        ('encoding = "ebcdic-of-mars"\n' + SIMPLE, "encoding must be one"),
        ('encoding = "rot13"\n' + SIMPLE, "encoding must be one"),
        ('encoding = "undefined"\n' + SIMPLE, "encoding must be one"),
        ('lines = "daily"\n' + SIMPLE, "no line has a reference"),
        ("header = false\n" + SIMPLE, "must be its number"),
        (SIMPLE + '[types]\nX = "gift"', "each word"),
        (SIMPLE + 'status = "s"\n[statuses]\nmoved = ["A"]\nnot_moved = ["A"]', "each word has one meaning"),
        (SIMPLE + 'type = "t"', "[types] is missing"),
        (SIMPLE + 'debit = "d"', "either amount, or debit and credit"),
    ],
)
async def test_a_mapping_with_a_fault_is_refused_with_a_reason(tmp_path: Path, mapping: str, problem: str) -> None:
    with pytest.raises(Unusable) as error:
        await read(tmp_path, mapping, "")
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ref,amount\n", "no column 'at'"),
        ("ref,amount,at,at\n", "more than once"),
        ("", "it has no header"),
        ("ref,amount,at\na,1.00\n", "line 2 has too few columns"),
        ("ref,amount,at\na,1.00,2026-11-30\nb,1.005,2026-11-30\n", "line 3 has an amount in the column amount"),
        ("ref,amount,at\na,1.00,30.11.2026\n", "line 2 has a time"),
        ("ref,amount,at\na,1.00,9999-12-31\n", "line 2 has a time"),
        ("ref,amount,at\na,1.00,0001-01-01\n", "line 2 has a time"),
        ("ref,amount,at\na,(1.00) DR,2026-11-30\n", "line 2 has an amount"),
        ('ref,amount,at\n"a,1.00,2026-11-30\n', "is no CSV"),
    ],
)
async def test_a_line_that_does_not_fit_is_refused_by_its_number(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(StatementUnusable) as error:
        await read(tmp_path, SIMPLE, text)
    assert problem in str(error.value)


async def test_a_file_covers_the_days_that_join_the_span_without_a_gap(tmp_path: Path) -> None:
    """A stray line of a later day does not say that all days before it are there."""
    (tmp_path / "mapping.toml").write_text(SIMPLE)
    days = [int(datetime(2026, 11, day, tzinfo=UTC).timestamp()) * 1_000_000 for day in range(25, 31)]
    wanted = Span(days[2], days[3])
    for others, begin, end in (((), 2, 3), ((3,), 2, 4), ((4,), 2, 3), ((1, 3, 4), 1, 5), ((0,), 2, 3)):
        lines = "".join(f"a,1.00,2026-11-{25 + day}T12:00:00\n" for day in (2, *others))
        (tmp_path / "statement.csv").write_text(f"ref,amount,at\n{lines}")
        source = CsvStatement([tmp_path / "statement.csv"], read_mapping(tmp_path / "mapping.toml"))
        assert [line async for batch in source.batches(wanted) for line in batch]
        assert source.covers == Span(days[begin], days[end]), others
