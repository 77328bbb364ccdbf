"""The clients as programs: python -m tests.clients.programs sets up every client whose tools are here

A client is a folder below clients/ with a script `check` (clients/README.md says what it takes). What the set-up found stays in
build/, so that a client without its tools is told from one that does not build.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rig.programs import BUILD

ROOT = Path(__file__).parent.parent.parent
SETUP = BUILD.absolute() / "clients-setup.json"
# The first set-up of a language fetches and compiles its libraries.
SETUP_SECONDS = 1_200.0
LACKS_TOOLS = 2  # the exit status of `check setup`


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run of a client ended. `status` is None if it took too long and was ended."""

    status: int | None
    out: str
    errors: str

    def trouble(self) -> str:
        """Return how it failed, with the end of its standard error; empty if it did not."""
        if self.status == 0:
            return ""
        ended = "took too long" if self.status is None else f"ended with status {self.status}"
        return f"it {ended}:\n{self.errors[-4000:]}"


@dataclass(frozen=True, slots=True)
class Client:
    """A client: the name of its language, and its folder."""

    name: str
    folder: Path

    async def run(self, verb: str, log: Path, seconds: float, **environment: str) -> Ran:
        """Run its script with a verb. What it prints goes to two files beside `log`, and stays there."""
        out, errors = log.with_suffix(".out"), log.with_suffix(".err")
        with out.open("wb") as printed, errors.open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                self.folder / "check",
                verb,
                env={**_without_ours(os.environ), **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=printed,
                stderr=said,
                start_new_session=True,  # so that the script and whatever it started can be ended together
            )
        status = None
        try:
            status = await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return Ran(status, out.read_text(errors="replace"), errors.read_text(errors="replace"))

    def set_up(self) -> tuple[int, str]:
        """Build it. Returns the exit status of its set-up, and the last of what it said."""
        try:
            done = subprocess.run(
                [self.folder / "check", "setup"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SETUP_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            return 1, f"there is no {self.folder / 'check'}"
        except subprocess.TimeoutExpired:
            return 1, f"it took longer than {SETUP_SECONDS / 60:.0f} minutes"
        return done.returncode, done.stdout.decode(errors="replace").strip()[-4000:]


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what names a server of ours: a client finds those that it is told of."""
    return {name: value for name, value in environment.items() if not name.startswith("CHARGEONCE_")}


LANGUAGES = {name: Client(name, ROOT / "clients" / name) for name in ("go", "java", "typescript", "rust", "python")}


def all_are_required() -> bool:
    """Whether a missing tool is a failure."""
    return os.environ.get("CLIENTS_REQUIRED") == "all" or os.environ.get("CI") == "true"


def missing(language: str) -> str | None:
    """Return the reason why a client cannot be run here, for people; None if it can be. Raises OSError if it did not build."""
    found = json.loads(SETUP.read_text()) if SETUP.exists() else {}
    if language not in found:
        return "not set up: `make test-clients` does it"
    status, said = found[language]
    if status not in (0, LACKS_TOOLS):
        raise OSError(f"clients/{language} could not be set up:\n{said}")
    return None if status == 0 else str(said)


def main() -> None:
    """Set up all clients. One that cannot be set up fails its tests, or is left out of them."""
    found = {}
    for name, client in LANGUAGES.items():
        print(f"Setting up clients/{name} ...", end=" ", flush=True)
        begun = time.monotonic()
        status, said = found[name] = client.set_up()
        print(f"{time.monotonic() - begun:.0f} s" if status == 0 else said, flush=True)
    SETUP.parent.mkdir(exist_ok=True)
    SETUP.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
