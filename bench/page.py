"""Fill docs/benchmark.md from build/bench.json, draw its plots, and show both in the README: python -m bench.page

Only the text between the two marks is replaced, in both files. The README gets the table of targets and the plots;
tests/test_documents.py compares its table, and the figures that were written into it by hand, with the page.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import plots
from bench.results import BUILD
from bench.targets import Verdict, shown

PAGE, README = Path("docs/benchmark.md"), Path("README.md")
# Prose is wrapped like that of the pages around it.
WIDTH = 124
BEGIN, END = "<!-- figures: python -m bench.page -->", "<!-- end of figures -->"

_RATE = "rate against "
_OPEN = (Verdict.MISSED.value, Verdict.UNMEASURED.value)
_FIGURES = ("charges/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU ms a charge", "MB")
# The heads of columns that hold words, beside the first column.
_OF_WORDS = {"target", ""}


def fill(text: str, content: str) -> str:
    """A page's text with new content between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def figures(found: Mapping[str, Any]) -> str:
    """The tables of bench.json."""
    parts = [_about(found), targets(found)]
    if "services" in found:
        parts += [_table(("service", "in flight", *_FIGURES), _services(found["services"]))]
    if "ratios" in found:
        parts += ["The product's charges/s, divided by a peer's:", _ratios(found["ratios"])]
    parts += [f"Not measured: {name}, {reason}." for name, reason in found.get("skipped", {}).items()]
    return "\n\n".join(parts)


def targets(found: Mapping[str, Any]) -> str:
    """The table of the targets, and how many were missed."""
    rows = [(line["what"], shown(line["value"]), line["wanted"], line["verdict"]) for line in found["targets"]]
    missed, unmeasured = (sum(line["verdict"].startswith(verdict) for line in found["targets"]) for verdict in _OPEN)
    count = f"{missed} of {len(rows)} targets were missed"
    count += f", {unmeasured} not measured." if unmeasured else "."
    return f"{count}\n\n{_table(('what', 'measured', 'target', ''), rows)}"


def _about(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    about = (
        f"Commit `{found['commit']}`, {machine['cores']} cores, {machine['system']}, {machine['implementation']} "
        f"{machine['python']} ({machine['compiler']}; profile-guided optimisation: {machine['profile_guided']}, link-time "
        f"optimisation: {machine['link_time_optimised']}), uvloop {machine['uvloop']}, SQLite {machine['sqlite']}."
    )
    if found["quick"]:
        about += " A small run (QUICK=1): it shows that everything works, its figures mean little."
    return "\n".join(textwrap.wrap(about, WIDTH, break_on_hyphens=False))


def _services(services: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            in_flight,
            f"{each['rate']:,.0f}",
            f"{each['p50_ms']:.2f}",
            f"{each['p99_ms']:.1f}",
            f"{each['p999_ms']:.1f}",
            f"{each['cpu_ms']:.3f}",
            f"{each['memory_mb']:.0f}",
        )
        for name, by_in_flight in services.items()
        for in_flight, each in by_in_flight.items()
    ]


def _ratios(ratios: Mapping[str, Mapping[str, float]]) -> str:
    rates = {name.removeprefix(_RATE): each for name, each in ratios.items() if name.startswith(_RATE)}
    loads = sorted({int(load) for by_load in rates.values() for load in by_load})
    rows = [
        (name, *(shown(by_load.get(str(load))) for load in loads))
        for name, by_load in sorted(rates.items(), key=lambda each: each[0].startswith("the best"))
    ]
    return _table(("peer", *(f"{load} in flight" for load in loads)), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are figures, but for the first and for words."""
    rule = ["---" if at == 0 or name in _OF_WORDS else "---:" for at, name in enumerate(head)]
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "|".join(rule) + "|")
    return "\n".join(line.replace("|  |", "| |") for line in lines)


def main() -> None:
    """Write the pages and the plots."""
    found = json.loads((BUILD / "bench.json").read_text())
    drawn = plots.draw(PAGE.parent, found)
    pictures = [f"![{path.stem}]({path.relative_to(PAGE.parent)})" for path in drawn]
    PAGE.write_text(fill(PAGE.read_text(), "\n\n".join([figures(found), *pictures])))
    shown_in_readme = [targets(found), *(f"![{path.stem}]({path})" for path in drawn)]
    README.write_text(fill(README.read_text(), "\n\n".join(shown_in_readme)))
    for path in (PAGE, README, *drawn):
        print(path)


if __name__ == "__main__":
    main()
