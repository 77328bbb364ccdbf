"""The results of the last reconciliations: JSON files in a folder, for gauges and for `ListReconciliations`.

Of each bank the newest is kept, and each older one that differs or is undecided at an edge, until a newer one that is decided
is of all of its span. So a difference is shown until a run over its days finds none, whatever else is compared meanwhile.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import inf
from pathlib import Path
from types import MappingProxyType

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from charging.v1.operator_pb2 import Reconciliation
from chassis.instruments import By, Figures, Gauge
from command_service.journal.sqlite.file import SqliteFile
from command_service.settings import Settings

# A page, and an answer, with more findings than these is of no use to people.
MOST_FINDINGS = 1_000
# Files whose content is remembered, so that each reading of the gauges does not parse all of them.
REMEMBERED = 1_000


GAUGES: Mapping[str, Gauge] = MappingProxyType(
    {
        "reconciliation_difference_minor_units": Gauge(
            "The sum of what each day differs by, without signs, in the last reconciliations with a bank",
            ("bank", "currency"),
        ),
        "reconciliation_findings": Gauge(
            "Differences, and movements undecided at an edge, in the last reconciliations with a bank", ("bank",)
        ),
        "reconciliation_age_seconds": Gauge(
            "The time since the last reconciliation with a bank; infinite if there was none", ("bank",)
        ),
    }
)


def folder(chosen: Settings) -> Path | None:
    """Return the folder of the results: beside the journal's file if no setting names one; None if it has none."""
    if chosen.reconciliations is None and isinstance(chosen.journal, SqliteFile):
        return chosen.journal.path.with_name(f"{chosen.journal.path.name}.reconciliations")
    return chosen.reconciliations


def figures(results: Sequence[Reconciliation], banks: Iterable[str], now: int) -> Figures:
    """Return the gauges of results, and of banks that have none. `now` is in microseconds since 1970."""
    sums, findings, ages = dict[tuple[str, ...], int](), dict[str, int](), dict.fromkeys(banks, inf)
    for of_one_span in _by_span(results):
        bank = of_one_span[0].bank
        for how in ("differences", "undecided"):
            findings[bank] = findings.get(bank, 0) + max(getattr(result, how) for result in of_one_span)
        age = max(0.0, (now - max(result.done_at.ToMicroseconds() for result in of_one_span)) / 1_000_000)
        ages[bank] = min(age, ages.get(bank, inf))
        most = dict[tuple[str, str], int]()
        for day in (day for result in of_one_span for day in result.days):
            of_day = day.day, day.currency_code
            most[of_day] = max(most.get(of_day, 0), abs(day.difference_minor_units))
        for (_, code), difference in most.items():
            sums[bank, code] = sums.get((bank, code), 0) + difference
    return {
        "reconciliation_difference_minor_units": By(("bank", "currency"), sums),
        "reconciliation_findings": By("bank", findings),
        "reconciliation_age_seconds": By("bank", ages),
    }


def _by_span(results: Sequence[Reconciliation]) -> Iterable[Sequence[Reconciliation]]:
    """Part results by bank and span: a decided one and an undecided one may be of the same, and tell of the same days."""
    found: dict[tuple[str, int, int], list[Reconciliation]] = {}
    for result in results:
        found.setdefault((result.bank, *_span(result)), []).append(result)
    return found.values()


def keep(folder: Path, result: Reconciliation) -> None:
    """Keep a result, and let go of those that it replaces. Raises OSError.

    Readers see it whole or not at all. If the process dies in between, a replaced one is kept until the next run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begin, end = _span(result)
    how = "+undecided" if result.undecided else ""
    path = folder / f"{result.bank}+{begin}-{end}{how}.json"  # no bank's name has a plus sign
    if path.parent != folder:
        raise ValueError("no name of a bank")
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(MessageToJson(result, preserving_proto_field_name=True))
    draft.replace(path)
    for other, older in _read(folder):
        if other != path and older.bank == result.bank and _is_replaced(older, result):
            other.unlink(missing_ok=True)


def _is_replaced(older: Reconciliation, newer: Reconciliation) -> bool:
    (begin, end), (first, last) = _span(older), _span(newer)
    is_settled = older.is_balanced and not older.undecided
    return is_settled or (not newer.undecided and first <= begin and end <= last)


def kept(folder: Path | None) -> Sequence[Reconciliation]:
    """Read the results, by the banks' names, the newest first. What cannot be read is left out: a run makes it anew.

    The first findings are told with each, up to MOST_FINDINGS of all.
    """
    found = [result for _, result in _read(folder)] if folder is not None else []
    found.sort(key=lambda result: (result.bank, -result.done_at.ToMicroseconds()))
    room, told = MOST_FINDINGS, list[Reconciliation]()
    for each in found:
        copied = Reconciliation()
        copied.CopyFrom(each)
        del copied.findings[room:]
        room -= len(copied.findings)
        told.append(copied)
    return told


def _span(result: Reconciliation) -> tuple[int, int]:
    return getattr(result, "from").ToMicroseconds(), result.to.ToMicroseconds()


def _read(folder: Path) -> Iterable[tuple[Path, Reconciliation]]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, _parsed(path, path.stat().st_mtime_ns)
        except (OSError, ParseError, UnicodeDecodeError):
            continue


@lru_cache(REMEMBERED)
def _parsed(path: Path, changed_at: int) -> Reconciliation:  # noqa: ARG001  # a part of what is remembered
    return Parse(path.read_text(), Reconciliation())
