"""The results of the last reconciliations, one a bank: JSON files in a folder, for gauges and for `ListReconciliations`."""

import os
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from charging.v1.operator_pb2 import Reconciliation
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import Location

# No bank's name has a plus sign.
_UNNAMED = "+unnamed"


def folder_beside(journal: Location) -> Path | None:
    """Return the folder of the results if no setting names one: beside the journal's file; None if it has none."""
    if isinstance(journal, SqliteFile):
        return journal.path.with_name(f"{journal.path.name}.reconciliations")
    return None


def keep(folder: Path, result: Reconciliation) -> None:
    """Keep a result in place of the bank's last one: readers see the one or the other. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.bank or _UNNAMED}.json"
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(MessageToJson(result, preserving_proto_field_name=True))
    draft.replace(path)


def kept(folder: Path | None) -> Sequence[Reconciliation]:
    """Read the results, by the banks' names. What cannot be read is left out: a run makes it anew."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder is not None else ():
        try:
            found.append(Parse(path.read_text(), Reconciliation()))
        except (OSError, ParseError, UnicodeDecodeError):
            continue
    return sorted(found, key=lambda result: result.bank)
