"""The mapping of a CSV statement: a TOML file that says what its columns mean. docs/reconciliation.md describes it.

A mapping with any fault is refused as a whole, and so is a line that it does not fit: nothing is guessed about money.
"""

import codecs
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chassis.documents import Reading, listed, read_toml
from chassis.watched import Files
from command_service.bank.statement import LineKind
from command_service.reconciling.days import zone_named
from contract.currencies import EXPONENTS

_COLUMNS = (
    "reference",
    "transaction_id",
    "type",
    "amount",
    "debit",
    "credit",
    "currency",
    "time",
    "clock",
    "fee",
    "status",
)
_TOP = (
    "encoding",
    "delimiter",
    "quote",
    "header",
    "skip_lines",
    "skip_last_lines",
    "time_zone",
    "lines",
    "lag_days",
    "currency",
    "kinds",
    "columns",
    "amounts",
    "times",
    "types",
    "statuses",
)
_AMOUNTS = ("decimal", "thousands", "unit", "sign", "fee", "fee_sign")
_TIMES = ("format", "clock_format")
IGNORED = "ignored"
_WORDS: Mapping[str, LineKind | None] = {
    **{kind.name.lower(): kind for kind in LineKind if kind is not LineKind.NET},
    IGNORED: None,
}

_SETTLED = frozenset({LineKind.CHARGE, LineKind.CAPTURE, LineKind.REFUND})

Column = str | int
"""A column by its name in the header, or by its number, from 1."""


@dataclass(frozen=True, slots=True)
class MappingOfCsv:
    """A CSV statement's form. docs/reconciliation.md says what each member means."""

    columns: Mapping[str, Column]
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    quote: str = '"'
    has_header: bool = True
    skip_lines: int = 0
    skip_last_lines: int = 0
    zone: tzinfo = UTC
    is_daily: bool = False
    lag_days: int = 0
    currency: str = ""
    kinds: Collection[LineKind] = _SETTLED
    decimal: str = "."
    thousands: str = ""
    is_minor: bool = False
    is_signed_by_type: bool = False
    has_fee_taken: bool = False
    """The amount is what is left after the fee."""
    is_fee_negative: bool = False
    """A fee is written as a negative number."""
    time_format: str = "iso"
    clock_format: str = ""
    types: Mapping[str, LineKind | None] = field(default_factory=lambda: MappingProxyType({}))
    moved: Collection[str] = ()
    not_moved: Collection[str] = ()
    went_back: Collection[str] = ()


def read_mapping(path: Path) -> MappingOfCsv:
    """Read a mapping. Raises Unusable, whose text lists every problem."""
    reading = _Mapping()
    made = reading.file(read_toml(path, Files()))
    reading.end(path)
    return made


class _Mapping(Reading):
    def file(self, document: Mapping[str, Any]) -> MappingOfCsv:
        self.only("the file", document, _TOP)
        columns = self._table(document, "columns", _COLUMNS)
        amounts, times = self._table(document, "amounts", _AMOUNTS), self._table(document, "times", _TIMES)
        statuses = self._table(document, "statuses", ("moved", "not_moved", "went_back"))
        has_header = self._choice("the file", document, "header", (True, False), default=True)
        types = document.get("types", {})
        kinds = self._texts(document, "kinds", ("charge", "authorize", "capture", "void", "refund"))
        self._columns(columns, has_header=has_header)
        made = MappingOfCsv(
            columns=MappingProxyType(dict(columns)),
            encoding=self._encoding(document.get("encoding", "utf-8")),
            delimiter=self._character(document, "delimiter", ",") or ",",
            quote=self._character(document, "quote", '"'),
            has_header=has_header,
            skip_lines=self._whole(document, "skip_lines", 1_000),
            skip_last_lines=self._whole(document, "skip_last_lines", 1_000),
            zone=self._zone(document.get("time_zone", "UTC")),
            is_daily=self._choice("the file", document, "lines", ("each", "daily"), default="each") == "daily",
            lag_days=self._whole(document, "lag_days", 60),
            currency=self._currency(document.get("currency", "")),
            kinds=frozenset(LineKind[kind.upper()] for kind in kinds) or _SETTLED,
            decimal=self._choice("[amounts]", amounts, "decimal", (".", ","), default="."),
            thousands=self._choice("[amounts]", amounts, "thousands", ("", ".", ",", " ", "'"), default=""),
            is_minor=self._choice("[amounts]", amounts, "unit", ("major", "minor"), default="major") == "minor",
            is_signed_by_type=self._choice("[amounts]", amounts, "sign", ("amount", "type"), default="amount")
            == "type",
            has_fee_taken=self._choice("[amounts]", amounts, "fee", ("beside", "taken"), default="beside") == "taken",
            is_fee_negative=self._choice("[amounts]", amounts, "fee_sign", ("+", "-"), default="+") == "-",
            time_format=str(times.get("format", "iso")),
            clock_format=str(times.get("clock_format", "")),
            types=MappingProxyType(self._types(types)),
            moved=self._texts(statuses, "moved"),
            not_moved=self._texts(statuses, "not_moved"),
            went_back=self._texts(statuses, "went_back"),
        )
        self._together(made)
        return made

    def _together(self, made: MappingOfCsv) -> None:
        """See that the members fit each other."""
        columns = made.columns
        if ("amount" in columns) == ("debit" in columns or "credit" in columns):
            self.problems.append("[columns]: either amount, or debit and credit")
        if "time" not in columns:
            self.problems.append("[columns]: time is missing: when the bank booked a line")
        if not made.is_daily and not {"reference", "transaction_id"} & columns.keys():
            self.problems.append(
                "[columns]: reference or transaction_id is missing: nothing else tells whose a line is"
            )
        if ("currency" in columns) == bool(made.currency):
            self.problems.append("either currency, the same for all lines, or a column of it")
        if "type" in columns and not made.types:
            self.problems.append("[types] is missing: what each word of the column type means")
        if made.is_signed_by_type and ("type" not in columns or "debit" in columns):
            self.problems.append('[amounts]: sign = "type" needs the column type, and one column amount')
        if made.decimal == made.thousands:
            self.problems.append("[amounts]: decimal and thousands must differ")
        if ("status" in columns) != bool(made.moved):
            self.problems.append("[statuses]: moved and the column status go together")
        words = [*made.moved, *made.not_moved, *made.went_back]
        if len(set(words)) < len(words):
            self.problems.append("[statuses]: each word has one meaning")
        if made.has_fee_taken and "fee" not in columns:
            self.problems.append('[amounts]: fee = "taken" needs the column fee')
        if bool(made.clock_format) != ("clock" in columns):
            self.problems.append("[times]: clock_format and the column clock go together")
        if made.is_daily and {"reference", "transaction_id", "status"} & columns.keys():
            self.problems.append(
                '[columns]: with lines = "daily" no line has a reference, a transaction_id or a status'
            )

    def _columns(self, columns: Mapping[str, Any], *, has_header: bool) -> None:
        if not columns:
            self.problems.append("[columns] is missing")
        for name, column in columns.items():
            is_right = isinstance(column, str) if has_header else type(column) is int and 1 <= column <= 1_000
            if not is_right:
                what = "its name in the header" if has_header else "its number, from 1: the file has no header"
                self.problems.append(f"[columns]: {name} must be {what}")

    def _types(self, types: Any) -> dict[str, LineKind | None]:
        if not isinstance(types, dict) or not all(each in tuple(_WORDS) for each in types.values()):
            self.problems.append(f"[types]: each word of the bank's must be one of {listed(_WORDS)}")
            return {}
        return {word: _WORDS[said] for word, said in types.items()}

    def _table(self, document: Mapping[str, Any], name: str, known: Collection[str]) -> Mapping[str, Any]:
        table = document.get(name, {})
        if not isinstance(table, dict):
            self.problems.append(f"[{name}] must be a table")
            return {}
        self.only(f"[{name}]", table, known)
        return table

    def _choice(self, where: str, entry: Mapping[str, Any], key: str, among: Collection[Any], *, default: Any) -> Any:
        value = entry.get(key, default)
        if isinstance(value, list | dict) or not any(value == each and type(value) is type(each) for each in among):
            self.problems.append(f"{where}: {key} must be one of {listed(repr(each) for each in among)}")
            return default
        return value

    def _texts(self, entry: Mapping[str, Any], key: str, among: Collection[str] = ()) -> tuple[str, ...]:
        texts = entry.get(key, [])
        if not isinstance(texts, list) or not all(
            isinstance(text, str) and (text in among or not among) for text in texts
        ):
            self.problems.append(f"{key} must be a list of {listed(among) if among else 'texts'}")
            return ()
        return tuple(texts)

    def _whole(self, entry: Mapping[str, Any], key: str, most: int) -> int:
        return int(self.number("the file", entry, key, 0, most) or 0)

    def _character(self, entry: Mapping[str, Any], key: str, default: str) -> str:
        value = entry.get(key, default)
        if not isinstance(value, str) or len(value) > 1 or value in ("\r", "\n"):
            self.problems.append(f"{key} must be one character")
            return default
        return value

    def _encoding(self, said: Any) -> str:
        try:
            name = codecs.lookup(str(said)).name
            "".encode(name)  # some codecs are none of texts
        except (LookupError, ValueError):
            self.problems.append(
                "encoding must be one of texts that Python knows, such as utf-8, latin-1, cp1252 or utf-16"
            )
            return "utf-8"
        return "utf-8-sig" if name == "utf-8" else name

    def _zone(self, said: Any) -> tzinfo:
        try:
            return zone_named(said)
        except ValueError:
            self.problems.append("time_zone must be a name of IANA's, such as UTC or Europe/Berlin")
            return UTC

    def _currency(self, said: Any) -> str:
        if said != "" and (not isinstance(said, str) or said not in EXPONENTS):
            self.problems.append("currency must be the ISO 4217 code of a currency in use, in upper case")
            return ""
        return said if re.fullmatch("[A-Z]{3}", said) else ""
