"""What is printed: for people in colour on a terminal, in plain columns to a file or a pipe, and as JSON for programs."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from chargeonce.commands.exits import Exit

STYLES = {
    Exit.DONE: "green",
    Exit.NO: "red",
    Exit.NOT_KNOWN: "yellow",
    Exit.CUSTOMER: "yellow",
    Exit.IN_REVIEW: "magenta",
}
Cell = str | Text
Block = Sequence[Sequence[Cell]]
"""Rows whose columns are aligned."""
_GAP = "  "
_ANY_WIDTH = 100_000


def rows_of(fields: Mapping[str, Cell]) -> Block:
    """Return the fields that are not empty, each in a row."""
    return [(Text(name, "dim"), cell) for name, cell in fields.items() if cell]


def under(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Block:
    """Return rows under their columns."""
    return [[Text(column, "bold") for column in columns], *rows]


def part(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Block:
    """Return rows under their columns, as a part of a page: without rows nothing."""
    return under(columns, rows) if rows else []


def status(words: str, of: Exit) -> Text:
    """Colour a status by what it means."""
    return Text(words, STYLES.get(of, ""))


def json_of(message: Message, *, sparse: bool = False) -> dict[str, Any]:
    """Return a message in protobuf's JSON, with the contract's names; empty fields too, unless it is to be sparse."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=not sparse)


class Unwritten(Exception):
    """What was to be printed could not be written: why. The cause is a BrokenPipeError if nobody reads any more."""


class Printer:
    """Prints answers on standard output, and everything else on standard error. Its methods raise Unwritten, but for `error`.

    Nothing is cut or broken on a narrow terminal, so that ids and addresses can be copied.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.common: dict[str, str] = {}
        """What each document on standard error has from now on."""
        self._as_json = as_json

    @property
    def is_for_people(self) -> bool:
        """Whether it prints words and columns, and not JSON."""
        return not self._as_json

    def fields(self, fields: Mapping[str, Cell], document: Mapping[str, Any]) -> None:
        """Print an answer: its fields that are not empty, or its document."""
        self.page([rows_of(fields)], document)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], documents: Sequence[Mapping[str, Any]]
    ) -> None:
        """Print rows under their columns; or documents, one in a line."""
        if self._as_json:
            for document in documents:
                self._json(document)
        else:
            self._blocks([under(columns, rows)], sys.stdout)

    def page(self, blocks: Sequence[Block], document: Mapping[str, Any]) -> None:
        """Print blocks of rows, a line between them; or one document."""
        if self._as_json:
            self._json(document)
        else:
            self._blocks(blocks, sys.stdout)

    def aside(self, fields: Mapping[str, Cell], document: Mapping[str, Any]) -> None:
        """Print fields on standard error, before or beside the answer."""
        if self._as_json:
            self.note("", document)
        else:
            self._blocks([rows_of(fields)], sys.stderr)

    def line(self, cells: Sequence[Cell], widths: Sequence[int], document: Mapping[str, Any]) -> None:
        """Print one of a stream's lines, whose columns are as wide as given, the last one as it is; or its document."""
        if self._as_json:
            self._json(document)
            return
        *first, last = map(_clean, cells)
        padded = [Text.assemble(cell, " " * (width - len(cell))) for cell, width in zip(first, widths, strict=True)]
        _write(sys.stdout, Text(_GAP).join([*padded, last]))

    def note(self, text: str, document: Mapping[str, Any]) -> None:
        """Say something on standard error, before or beside the answer."""
        self._say(Text(text, "dim"), document)

    def error(self, lines: Sequence[str], document: Mapping[str, Any] | None = None) -> None:
        """Tell an error on standard error, if that can be written: the exit status tells it anyway."""
        first, *more = map(_clean, lines)
        with contextlib.suppress(Unwritten):
            self._say(
                Text("\n").join([Text.assemble(("error: ", "bold red"), first), *more]),
                document or {"error": {"text": lines[0]}},
            )

    def _blocks(self, blocks: Sequence[Block], file: IO[str] | None) -> None:
        for number, rows in enumerate(filter(None, blocks)):
            grid = Table.grid(padding=(0, len(_GAP)))
            for row in rows:
                grid.add_row(*map(_clean, row))
            if number:
                _put("", file)
            _write(file, grid)

    def _say(self, text: Text, document: Mapping[str, Any]) -> None:
        if self._as_json:
            text = Text(json.dumps({**self.common, **document}, ensure_ascii=False))
        _write(sys.stderr, text)

    def _json(self, document: Mapping[str, Any]) -> None:
        _put(json.dumps(document, ensure_ascii=False), sys.stdout)


def _write(file: IO[str] | None, told: Text | Table) -> None:
    """Write text or columns as wide as they are, in colour to a terminal. Raises Unwritten."""
    rendered = io.StringIO()  # rich itself would end this program at a broken pipe
    console = Console(file=rendered, highlight=False, width=_ANY_WIDTH, force_terminal=(file and file.isatty()) or None)
    console.width = Measurement.get(console, console.options, told).maximum
    console.print(told)
    for line in rendered.getvalue().splitlines():
        _put(line.rstrip(), file)


def _put(line: str, file: IO[str] | None) -> None:
    """Write a line; to a closed stream, None, nothing. Raises Unwritten, and from then on what the file is given is lost."""
    if file is None:
        return
    try:
        print(line, file=file, flush=True)
    except (OSError, UnicodeError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # the interpreter's end flushes it, too
        raise Unwritten(error.strerror if isinstance(error, OSError) else str(error)) from error


def _clean(cell: Cell) -> Text:
    """Return a cell in which nothing can move a terminal's cursor or turn its writing."""
    if isinstance(cell, Text):
        return cell
    return Text("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in cell))
