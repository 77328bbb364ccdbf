"""build/bench.json during a run: a part is stored as soon as it is known, so that an interrupted run loses little.

{commit, quick, machine, services: {name: {in_flight: {rate, p50_ms, p99_ms, p999_ms, cpu_ms, memory_mb}}},
 ratios: {"rate against dbos-sqlite": {in_flight: ratio}, ...}, cpu_ms_by_process, errors,
 many, latency, growth, rebuild, readers, start, overload, burst: {figure: value},
     targets: [{what, value, wanted, verdict}]}
"""

import json
import os
import platform
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.targets import verdicts

BUILD = Path("build")
# The subject of a file: parts whose commit, size or machine differ never stand in one file.
ABOUT = ("commit", "quick", "machine")


class Results:
    """The content of bench.json, on disk after every change."""

    def __init__(self, path: Path, *, quick: bool, anew: bool) -> None:
        """Begin a file, or continue one with the same subject. The content before is kept beside it, once."""
        self._path = path
        self.found: dict[str, Any] = {"commit": commit(), "quick": quick, "machine": machine()}
        if path.exists():
            before = json.loads(path.read_text())
            if not anew and all(before.get(name) == self.found[name] for name in ABOUT):
                self.found = before
            else:
                path.replace(path.with_name(path.stem + "-before.json"))

    def add(self, parts: Mapping[str, Any]) -> None:
        """Store parts, in place of their earlier content."""
        self.found |= parts
        self.found["targets"] = verdicts(self.found)
        write(self._path, self.found)


def write(path: Path, content: object) -> None:
    """Write JSON for people and programs, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


def commit() -> str:
    """The commit that is checked out, with a mark if files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def machine() -> dict[str, object]:
    """The machine and software that the figures depend on beside the commit."""
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-', maxsplit=1)[0]}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
