"""Programs of others, from other registries than Python's: pinned, and installed into build/, never beside the product.

Version and content are pinned by a folder of pins: a lock file with integrities, or go.mod and go.sum. A program whose tools
are missing, or that cannot be built, leaves its reason in its folder.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BUILD = Path("build")
# The longest build takes some minutes of CPU; a machine that needs longer goes without.
MOST_SECONDS = 1_200.0


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is installed into a folder of its own below build/."""

    pins: Path
    """A folder with the name of the program."""
    tools: Sequence[str]
    """The commands that install it."""
    steps: Sequence[Sequence[str]]
    """The installation, run one after another in its folder, where the files of its pins are."""
    pattern: str
    """Where the program is then, below its folder."""
    installer: str
    """The command that installs it, for people."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.pins.name

    @property
    def folder(self) -> Path:
        """Its folder. The name changes with the pins."""
        pins = b"".join(path.read_bytes() for path in sorted(self.pins.iterdir()))
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
            return f"not installed: `{self.installer}` does it"
        return None

    def install(self) -> str | None:
        """Install it, unless it is there; return the reason if that is not possible."""
        if self.missing() is None:
            return None
        print(f"Setting up {self.name} in {BUILD}/ ...", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.pins, self.folder)
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
