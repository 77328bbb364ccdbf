"""Programs of the benchmark that come from other registries than Python's: python -m bench.programs installs them

Restate's server comes from npm, Temporal's is built from its Go module. Version and content are pinned in bench/pins/: by a
lock file with integrities, and by go.mod and go.sum. They go into build/, never beside the product. A program whose tools are
missing, or that cannot be built, leaves its reason there: its peer is then left out of the comparison, and the page says why.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.results import BUILD

PINS = Path(__file__).parent / "pins"
# Temporal's build takes some minutes of CPU; a machine that needs longer goes without.
MOST_SECONDS = 1_200.0


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is installed into a folder of its own below build/."""

    name: str
    tools: Sequence[str]
    """The commands that install it."""
    steps: Sequence[Sequence[str]]
    """The installation, run one after another in its folder, where the files of its pins are."""
    pattern: str
    """Where the program is then, below its folder."""

    @property
    def folder(self) -> Path:
        """Its folder. The name changes with the pins."""
        pins = b"".join(path.read_bytes() for path in sorted((PINS / self.name).iterdir()))
        return BUILD.absolute() / f"{self.name}-{hashlib.sha256(pins).hexdigest()[:12]}"

    @property
    def program(self) -> Path:
        """The program. Raises FileNotFoundError with the reason if it is missing."""
        if (reason := self.missing()) is not None:
            raise FileNotFoundError(reason)
        return next(self.folder.glob(self.pattern))

    def missing(self) -> str | None:
        """The reason why it cannot be run, for people; None if it can be."""
        if self._reason.exists():
            return self._reason.read_text().strip()
        if next(self.folder.glob(self.pattern), None) is None:
            return "not installed: `python -m bench.programs` does it"
        return None

    def install(self) -> str | None:
        """Install it, unless it is there; return the reason if that is not possible."""
        if self.missing() is None:
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(PINS / self.name, self.folder)
        if lacking := [tool for tool in self.tools if shutil.which(tool) is None]:
            return self._give_up(f"not installed here: {', '.join(lacking)}")
        for step in self.steps:
            try:
                done = subprocess.run(
                    step, cwd=self.folder, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
                )
            except subprocess.TimeoutExpired:
                return self._give_up(f"`{step[0]} {step[1]}` took longer than {MOST_SECONDS / 60:.0f} minutes")
            if done.returncode:
                print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
                return self._give_up(f"`{step[0]} {step[1]}` failed")
        if next(self.folder.glob(self.pattern), None) is None:
            return self._give_up("no program for this kind of machine")
        return None

    @property
    def _reason(self) -> Path:
        return self.folder / "missing.txt"

    def _give_up(self, reason: str) -> str:
        self._reason.write_text(reason + "\n")
        return reason


RESTATE = Program(
    "restate",
    ("node", "npm"),
    (("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"),),
    "node_modules/@restatedev/restate-server-*/bin/restate-server",
)
TEMPORAL = Program(
    "temporal",
    ("go",),
    (("go", "build", "-trimpath", "-o", "temporal-server", "go.temporal.io/server/cmd/server"),),
    "temporal-server",
)


def main() -> None:
    """Install both, and print what is missing. The benchmark goes on without it."""
    for program in (RESTATE, TEMPORAL):
        if program.missing() is not None:
            print(f"Setting up {program.name} in {BUILD}/ ...", flush=True)
        if (reason := program.install()) is not None:
            print(f"{program.name} will be left out: {reason}", flush=True)


if __name__ == "__main__":
    main()
