"""What is printed: for people in colour on a terminal, in plain columns to a file or a pipe, and as JSON for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.panel import Panel
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
_GAP = "  "


def status(words: str, of: Exit) -> Text:
    """Colour a status by what it means."""
    return Text(words, STYLES.get(of, ""))


def json_of(message: Message, *, sparse: bool = False) -> dict[str, Any]:
    """Return a message in protobuf's JSON, with the contract's names; empty fields too, unless it is to be sparse."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=not sparse)


class Printer:
    """Prints answers on standard output, and everything else on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out, self._error = Console(highlight=False), Console(highlight=False, stderr=True)

    def fields(self, title: str, fields: Mapping[str, Cell], document: Mapping[str, Any]) -> None:
        """Print an answer: its fields that are not empty, or its document."""
        if self._as_json:
            self._json(document)
            return
        rows = [(name, _clean(cell)) for name, cell in fields.items() if cell]
        if self._out.is_terminal:
            grid = Table.grid(padding=(0, 2))
            for row in rows:
                grid.add_row(Text(row[0], "dim"), row[1])
            self._out.print(Panel(grid, title=Text(title), title_align="left", expand=False))
        else:
            self._plain(rows)

    def table(self, columns: Sequence[str], rows: Iterable[tuple[Sequence[Cell], Mapping[str, Any]]]) -> None:
        """Print rows under their columns; as JSON a document for each, in a line."""
        if self._as_json:
            for _, document in rows:
                self._json(document)
            return
        cells = [[_clean(cell) for cell in row] for row, _ in rows]
        if self._out.is_terminal:
            table = Table(*columns, box=None, pad_edge=False, header_style="bold")
            for row in cells:
                table.add_row(*row)
            self._out.print(table)
        else:
            self._plain([[Text(column) for column in columns], *cells])

    def line(self, cells: Sequence[Cell], widths: Sequence[int], document: Mapping[str, Any]) -> None:
        """Print one of a stream's lines, whose columns are as wide as given; the last one has no width."""
        if self._as_json:
            self._json(document)
            return
        line = Text(_GAP).join(
            Text.assemble(cell, " " * max(0, width - len(cell)))
            for cell, width in zip(map(_clean, cells), [*widths, 0], strict=True)
        )
        self._write(self._out, line)

    def note(self, text: str, document: Mapping[str, Any]) -> None:
        """Say something on standard error, before or beside the answer."""
        self._say(Text(text, "dim"), document)

    def error(self, lines: Sequence[str], document: Mapping[str, Any]) -> None:
        """Tell an error on standard error."""
        first, *more = map(_clean, lines)
        self._say(Text("\n").join([Text.assemble(("error: ", "bold red"), first), *more]), document)

    def _say(self, text: Text, document: Mapping[str, Any]) -> None:
        self._write(self._error, Text(json.dumps(document, ensure_ascii=False)) if self._as_json else text)

    def _json(self, document: Mapping[str, Any]) -> None:
        print(json.dumps(document, ensure_ascii=False), flush=True)

    def _plain(self, rows: Sequence[Sequence[Cell]]) -> None:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
        for row in rows:
            print(_GAP.join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def _write(self, console: Console, text: Text) -> None:
        """Write a line: in colour on a terminal, and never broken elsewhere."""
        if console.is_terminal:
            console.print(text, soft_wrap=True)
        else:
            print(text.plain.rstrip(), file=console.file, flush=True)


def _clean(cell: Cell) -> Text:
    """Return a cell in which nothing can move a terminal's cursor or turn its writing."""
    if isinstance(cell, Text):
        return cell
    return Text("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in cell))
