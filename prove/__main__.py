"""`make prove`: every harness in turn, one table, and build/prove.json.

    python -m prove [MINUTES] [--full] [--only HARNESS ...]     --only: these again, into the same file
    python -m prove.page                                        shows that file in the README

MINUTES (5) is shared out between the harnesses. The exit status is 1 if anything broke, a canary was not found, a control did
not fail as it must, or a harness tried nothing; and at full size, which is an hour or `--full`, if a kind of fault was rare.
A small run has no time for every kind to fire often: what it lacks is told in the table, and is no failure.
"""

import asyncio
import importlib
import importlib.metadata
import inspect
import json
import platform
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis import process
from prove.report import RARE, Harness
from prove.workers import be_silent


@dataclass(frozen=True, slots=True)
class Part:
    """A harness: the module whose `run` it is, and its share of the time, about minutes of an hour."""

    module: str
    share: int


# In this order. What enumerates everything stops by itself when it is done, and what it leaves goes to those after it; there
# are always more seeds.
PARTS = {
    "network": Part("prove.network", 8),
    "kills": Part("prove.deaths.kills", 7),
    "syscalls": Part("prove.deaths.syscalls", 6),
    "storage": Part("prove.storage", 9),
    "powercut": Part("prove.deaths.powercut", 3),
    "crashpoints": Part("prove.deaths.crashpoints", 4),
    "postgres": Part("prove.postgres", 15),
    "simulation": Part("prove.simulation.stories", 24),
}
# At this size every kind of fault must have fired often.
FULL_MINUTES = 60
OUT = Path("build/prove.json")


def main() -> None:
    """Run what was asked for."""
    parser = process.parser("python -m prove", "Try to break the promise, by every means there is.")
    parser.add_argument("minutes", type=float, nargs="?", default=5.0)
    parser.add_argument("--full", action="store_true", help="rare kinds of fault fail it, as at 60 minutes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    chosen = parser.parse_args()
    be_silent()
    ends = time.monotonic() + chosen.minutes * 60
    harnesses: dict[str, Harness] = {}
    left = [name for name in PARTS if name in chosen.only]
    of_all = sum(part.share for part in PARTS.values())
    while left:
        of_those_left = sum(PARTS[name].share for name in left)
        name = left.pop(0)
        share = PARTS[name].share
        # Whatever those before it took beyond their time, half of its own is left to it.
        least = chosen.minutes * 60 * share / of_all / 2
        harnesses[name] = _run(name, max(least, (ends - time.monotonic()) * share / of_those_left))
        save(OUT, harnesses)
    is_full = chosen.full or is_full_size(chosen.minutes)
    print(table(list(harnesses.values()), is_full=is_full))
    sys.exit(not passes(harnesses.values(), is_full=is_full))


def is_full_size(minutes: float) -> bool:
    """Whether every kind of fault must fire often in a run of so many minutes."""
    return minutes >= FULL_MINUTES


def passes(harnesses: Iterable[Harness], *, is_full: bool) -> bool:
    """Whether all are sound, and in a full run no kind of fault was rare."""
    return all(harness.is_sound and not (is_full and harness.rare) for harness in harnesses)


def _run(name: str, seconds: float) -> Harness:
    started, told = time.monotonic(), 0.0

    def say(text: str) -> None:
        nonlocal told
        if time.monotonic() - told > (0.2 if sys.stderr.isatty() else 15):
            told = time.monotonic()
            end = "\r" if sys.stderr.isatty() else "\n"
            print(
                f"{name} {told - started:4.0f}/{seconds:.0f} s: {text:<90}"[:118], end=end, file=sys.stderr, flush=True
            )

    run: Any = importlib.import_module(PARTS[name].module).run
    try:
        harness: Harness = asyncio.run(run(seconds, say)) if inspect.iscoroutinefunction(run) else run(seconds, say)
    except Exception as error:
        # A harness that falls over has shown nothing, and the others are to run all the same.
        harness = Harness(name, "nothing", violations=[f"the harness itself failed: {type(error).__name__}: {error}"])
    harness.seconds = time.monotonic() - started
    return harness


def save(out: Path, harnesses: Mapping[str, Harness]) -> None:
    """Write what these came to, by their modules; of harnesses that are not among them, what the file has stays."""
    out.parent.mkdir(exist_ok=True)
    commit = _commit()
    entries = [{"module": name, "commit": commit, **harness.as_json()} for name, harness in harnesses.items()]
    if out.exists():
        before = json.loads(out.read_text())["harnesses"]
        entries += [entry for entry in before if entry["module"] not in harnesses]
    entries.sort(key=lambda entry: list(PARTS).index(str(entry["module"])))
    packages = ("grpcio", "protobuf", "httpx", "uvloop")
    report = {
        "commit": commit,
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "kernel": platform.release(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "harnesses": entries,
    }
    out.write_text(json.dumps(report, indent=1) + "\n")


def _commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def table(harnesses: list[Harness], *, is_full: bool = False) -> str:
    """Tell what the harnesses came to, one line each, and all that was not tried or fired too seldom."""
    lines = [
        f"{'harness':<12} {'tried':>22} {'seconds':>8} {'violations':>10} {'canaries':>9} {'controls':>9}  faults fired"
    ]
    for harness in harnesses:
        canaries = f"{harness.canaries_found}/{harness.canaries_planted}" if harness.canaries_planted else "-"
        failed = sum(harness.controls.values())
        controls = f"{failed}/{len(harness.controls)}" if harness.controls else "-"
        fired, known = sum(harness.faults.values()), len(harness.faults)
        did = sum(times > 0 for times in harness.faults.values())
        lines.append(
            f"{harness.name:<12} {f'{harness.tried:,} {harness.unit}':>22} {harness.seconds:>8.0f} "
            f"{len(harness.violations):>10} {canaries:>9} {controls:>9}  {fired:,} of {did} kinds out of {known}"
        )
    for harness in harnesses:
        if not harness.tried:
            lines.append(f"NOTHING TRIED in {harness.name}: it has shown nothing")
        lines += [f"VIOLATION in {harness.name}: {text}" for text in harness.violations]
        lines += [f"CONTROL in {harness.name} did not fail: {name}" for name, ok in harness.controls.items() if not ok]
        lines += [f"all tried in {harness.name}: {what} ({count:,})" for what, count in harness.enumerated.items()]
        lines += [f"measured in {harness.name}: {what}: {figure}" for what, figure in harness.figures.items()]
        lines += [f"not tried in {harness.name}: {what} ({why})" for what, why in harness.skipped.items()]
        if rare := harness.rare:
            shown = ", ".join(f"{kind} {harness.faults[kind]}" for kind in rare)
            size = "TOO RARE: " if is_full else "too short a run: " if harness.tried else ""
            lines.append(f"{size}fired fewer than {RARE} times in {harness.name}: {shown}")
        few = {kind: why for kind, why in sorted(harness.complete.items()) if harness.faults[kind] < RARE}
        for reason in sorted(set(few.values())):
            kinds = ", ".join(kind for kind, why in few.items() if why == reason)
            lines.append(f"need not fire {RARE} times in {harness.name}: {kinds} ({reason})")
    for harness in harnesses:
        counts = ", ".join(f"{kind} {times:,}" for kind, times in sorted(harness.faults.items()))
        lines.append(f"how often each fault fired in {harness.name}: {counts or 'none'}")
    lines.append(f"Every figure is in {OUT}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
