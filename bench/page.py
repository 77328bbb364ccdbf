"""Fill docs/benchmark.md from build/bench.json, and draw its plots: python -m bench.page

Only what stands between the two marks is replaced; no figure of the page is written by hand.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import plots
from bench.results import BUILD
from bench.targets import shown

PAGE = Path("docs/benchmark.md")
BEGIN, END = "<!-- figures: python -m bench.page -->", "<!-- end of figures -->"


def fill(text: str, found: Mapping[str, Any]) -> str:
    """The page's text with the figures that were found."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{_figures(found)}\n\n{END}{after}"


def _figures(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    about = (
        f"Commit `{found['commit']}`, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        f"SQLite {machine['sqlite']}."
    )
    if found["quick"]:
        about += " A small run (QUICK=1): it shows that everything works, its figures mean little."
    lines = [about, "", "| what | measured | target | |", "|---|---:|---|---|"]
    lines += [
        f"| {line['what']} | {shown(line['value'])} | {line['wanted']} | {line['verdict']} |"
        for line in found["targets"]
    ]
    if "services" in found:
        lines += ["", "| service | in flight | charges/s | p50 ms | p99 ms | p99.9 ms | CPU ms a charge | MB |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
        lines += [
            f"| {name} | {in_flight} | {each['rate']:,.0f} | {each['p50_ms']:.2f} | {each['p99_ms']:.1f} "
            f"| {each['p999_ms']:.1f} | {each['cpu_ms']:.3f} | {each['memory_mb']:.0f} |"
            for name, by_in_flight in found["services"].items()
            for in_flight, each in by_in_flight.items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Write the page and its plots."""
    found = json.loads((BUILD / "bench.json").read_text())
    PAGE.write_text(fill(PAGE.read_text(), found))
    for path in (PAGE, *plots.draw(PAGE.parent, found)):
        print(path)


if __name__ == "__main__":
    main()
