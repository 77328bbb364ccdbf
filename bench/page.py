"""Fill docs/benchmark.md from build/bench.json, draw its plots, and show them in the README: python -m bench.page

Only the text between the two marks is replaced. Some figures are written into the README by hand; tests/test_documents.py
compares them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import plots
from bench.results import BUILD
from bench.targets import shown

PAGE, README = Path("docs/benchmark.md"), Path("README.md")
BEGIN, END = "<!-- figures: python -m bench.page -->", "<!-- end of figures -->"


def fill(text: str, content: str) -> str:
    """A page's text with new content between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def figures(found: Mapping[str, Any]) -> str:
    """The tables of bench.json."""
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
    """Write the pages and the plots."""
    found = json.loads((BUILD / "bench.json").read_text())
    drawn = plots.draw(PAGE.parent, found)
    pictures = [f"![{path.stem}]({path.relative_to(PAGE.parent)})" for path in drawn]
    PAGE.write_text(fill(PAGE.read_text(), "\n\n".join([figures(found), *pictures])))
    README.write_text(fill(README.read_text(), "\n\n".join(f"![{path.stem}]({path})" for path in drawn)))
    for path in (PAGE, README, *drawn):
        print(path)


if __name__ == "__main__":
    main()
