"""The results of the last reconciliations, one a bank: JSON files in a folder, for gauges and for `ListReconciliations`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from charging.v1.operator_pb2 import Reconciliation
from chassis.instruments import By, Figures, Gauge
from command_service.journal.sqlite.file import SqliteFile
from command_service.settings import Settings

# No bank's name has a plus sign.
_UNNAMED = "+unnamed"


GAUGES: Mapping[str, Gauge] = MappingProxyType(
    {
        "reconciliation_difference_minor_units": Gauge(
            "The bank's sum less the journal's, in the last reconciliation with it", ("bank", "currency")
        ),
        "reconciliation_findings": Gauge("Differences in the last reconciliation with a bank", ("bank",)),
        "reconciliation_age_seconds": Gauge("The time since the last reconciliation with a bank", ("bank",)),
    }
)


def folder(chosen: Settings) -> Path | None:
    """Return the folder of the results: beside the journal's file if no setting names one; None if it has none."""
    if chosen.reconciliations is None and isinstance(chosen.journal, SqliteFile):
        return chosen.journal.path.with_name(f"{chosen.journal.path.name}.reconciliations")
    return chosen.reconciliations


def figures(results: Sequence[Reconciliation], now: int) -> Figures:
    """Return the gauges of results. `now` is in microseconds since 1970."""
    sums: dict[tuple[str, ...], int] = {}
    for result in results:
        for day in result.days:
            key = result.bank, day.currency_code
            sums[key] = sums.get(key, 0) + day.difference_minor_units
    ages = {result.bank: max(0.0, (now - result.done_at.ToMicroseconds()) / 1_000_000) for result in results}
    return {
        "reconciliation_difference_minor_units": By(("bank", "currency"), sums),
        "reconciliation_findings": By("bank", {result.bank: result.differences for result in results}),
        "reconciliation_age_seconds": By("bank", ages),
    }


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
