"""Show build/prove.json in the README: python -m prove.page

Only what stands between the two marks is replaced; no figure there is written by hand.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prove.report import RARE

FOUND, README = Path("build/prove.json"), Path("README.md")
BEGIN, END = "<!-- proof: python -m prove.page -->", "<!-- end of proof -->"


def fill(text: str, content: str) -> str:
    """A page's text with new content between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def table(found: Mapping[str, Any]) -> str:
    """The figures of prove.json, and all that was not tried, or fired too seldom to have shown much."""
    lines = [
        "| harness | tried | violations | canaries found | controls that failed as they must | faults that fired | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    notes = []
    for each in found["harnesses"]:
        canaries, controls, fired = each["canaries"], each["controls"], each["faults"]
        lines.append(
            f"| {each['name']} | {each['tried']:,} {each['unit']} | {len(each['violations'])} "
            f"| {_of(canaries['found'], canaries['planted'])} | {_of(sum(controls.values()), len(controls))} "
            f"| {sum(fired.values()):,} of {sum(n > 0 for n in fired.values())} kinds | {each['seconds'] / 60:.1f} |"
        )
        notes += [f"{each['name']}, all of them: {what} ({count:,})" for what, count in each["enumerated"].items()]
        notes += [f"{each['name']}, not tried: {what} ({why})" for what, why in each["skipped"].items()]
        seldom = [f"{kind} {n}" for kind, n in fired.items() if n < RARE and kind not in each["complete"]]
        notes += [f"{each['name']}, fired fewer than {RARE} times: {', '.join(seldom)}"] if seldom else []
    commits = ", ".join(sorted({each["commit"] for each in found["harnesses"]}))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join([*lines, "", *(f"* {note}" for note in notes), f"* commit {commits}; {versions}"])


def _of(found: int, planted: int) -> str:
    return f"{found} of {planted}" if planted else ""


def main() -> None:
    """Write the page."""
    README.write_text(fill(README.read_text(), table(json.loads(FOUND.read_text()))))
    print(README)


if __name__ == "__main__":
    main()
