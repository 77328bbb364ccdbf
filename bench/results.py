"""build/bench.json during a run: a part is stored as soon as it is known, so that an interrupted run loses little.

{commit, quick, machine, skipped: {service: reason},
 services: {name: {in_flight: {rate, p50_ms, p99_ms, p999_ms, cpu_ms, memory_mb}}},
 ratios: {"rate against echo": {in_flight: ratio}, "rate against the best dbos": ...}, cpu_ms_by_process, errors,
 many, latency, growth, rebuild, readers, start, overload, burst: {figure: value},
     targets: [{what, value, wanted, verdict}]}
"""

import importlib.metadata
import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
import sysconfig
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
        "implementation": platform.python_implementation(),
        "compiler": platform.python_compiler(),
        **optimised(sysconfig.get_config_vars(), sys.version),
        "uvloop": importlib.metadata.version("uvloop"),
        "sqlite": sqlite3.sqlite_version,
    }


def optimised(build: Mapping[str, Any], version: str) -> dict[str, str]:
    """Whether an interpreter was built with profile-guided and link-time optimisation: "yes", "no" or "unknown".

    `build` is what `sysconfig` says of its build, `version` is `sys.version`. The options of `configure` tell it for builds
    by pyenv, for Docker's official images and for python-build-standalone, which uv installs. Debian and Ubuntu optimise
    without these options and take the flags out of what `sysconfig` says; conda replaces the whole of it. So a missing option
    counts as a "no" only if the rest is as CPython's own build leaves it.
    """
    options = str(build.get("CONFIG_ARGS") or "")
    # Set for every compiler with profiles, used or not; empty where a packager has taken it out.
    is_original = bool(options and build.get("PGO_PROF_USE_FLAG")) and "packaged by" not in version
    unnamed = "no" if is_original else "unknown"
    flags = " ".join(str(build.get(name) or "") for name in ("PY_CORE_CFLAGS", "PY_CORE_LDFLAGS", "PY_LDFLAGS"))
    has_lto = re.search(r"--with-lto(?!=no)", options) or "-flto" in flags
    return {
        "profile_guided": "yes" if re.search(r"--enable-optimizations(?!=no)", options) else unnamed,
        "link_time_optimised": "yes" if has_lto else unnamed,
    }
