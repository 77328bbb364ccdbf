"""The clients as programs: python -m tests.clients.programs [NAME ...] sets up those named, or every one whose tools are here

A client is a folder below clients/ with a script `check` (clients/README.md says what it takes). What the set-up found stays in
build/, so that a client without its tools is told from one that does not build.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rig.programs import BUILD
from tests.clients import tools

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

    def set_up(self) -> "Found":
        """Build it."""
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
            return Found(fault=f"there is no {self.folder / 'check'}")
        except subprocess.TimeoutExpired:
            return Found(fault=f"it took longer than {SETUP_SECONDS / 60:.0f} minutes")
        said = done.stdout.decode(errors="replace").strip()[-4000:] or "it does not say why"
        if done.returncode == 0:
            return Found()
        if done.returncode == LACKS_TOOLS:
            return Found(missing=said.splitlines()[-1].removeprefix("missing: "))
        return Found(fault=said)


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what names a server of ours: a client finds those that it is told of."""
    return {name: value for name, value in environment.items() if not name.startswith("CHARGEONCE_")}


LANGUAGES = {name: Client(name, ROOT / "clients" / name) for name in ("go", "java", "typescript", "rust", "python")}


def all_are_required() -> bool:
    """Whether a missing tool is a failure."""
    return os.environ.get("CLIENTS_REQUIRED") == "all" or os.environ.get("CI") == "true"


@dataclass(frozen=True, slots=True)
class Found:
    """What the set-up of a client found. Both are None if it can be run."""

    missing: str | None = None
    """The tools that are not here."""
    fault: str | None = None
    """The reason why it does not build."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be run."""
        return self.missing is None and self.fault is None


def found(name: str) -> Found:
    """Return what the last set-up of a client found."""
    if name not in LANGUAGES:
        return Found(tools.missing(name))
    return Found(**_written().get(name, {"missing": "not set up: `make test-clients` does it"}))


def _written() -> dict[str, Any]:
    written: dict[str, Any] = json.loads(SETUP.read_text()) if SETUP.exists() else {}
    return written


def main() -> None:
    """Set up clients. Tests of one that does not build fail; tests of one without its tools say so."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.programs", description="Sets up clients.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LANGUAGES)}; all if none is given")
    names = parser.parse_args().names
    if unknown := set(names) - set(LANGUAGES):
        parser.error(f"no client is called {', '.join(sorted(unknown))}")
    written = _written()
    for name in names or LANGUAGES:
        print(f"Setting up clients/{name} ...", end=" ", flush=True)
        begun = time.monotonic()
        state = LANGUAGES[name].set_up()
        print(state.missing or state.fault or f"{time.monotonic() - begun:.0f} s", flush=True)
        written[name] = asdict(state)
    SETUP.parent.mkdir(exist_ok=True)
    SETUP.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
