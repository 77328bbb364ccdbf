"""The programs that others wrote: python -m tests.clients.tools installs grpcurl and ghz; buf comes with the set-up"""

import sys
from pathlib import Path

from rig.programs import Program

PINS = Path(__file__).parent / "pins"


def _of_go(name: str, package: str) -> Program:
    return Program(
        PINS / name, ("go",), (("go", "build", "-trimpath", "-o", name, package),), name, "make test-clients"
    )


GRPCURL = _of_go("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl")
GHZ = _of_go("ghz", "github.com/bojand/ghz/cmd/ghz")
BUF = Path(sys.executable).with_name("buf")
TOOLS = {tool.name: tool for tool in (GRPCURL, GHZ)}


def missing(name: str) -> str | None:
    """Return why a tool cannot be run, and what to install; None if it can be."""
    reason = TOOLS[name].missing() if name in TOOLS else None
    return None if reason is None else f"{reason}. It needs Go 1.25 or later."


def main() -> None:
    """Install them. What cannot be is told now, and by the tests again."""
    for name, tool in TOOLS.items():
        tool.install()
        if (reason := missing(name)) is not None:
            print(f"{name} cannot be set up: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
