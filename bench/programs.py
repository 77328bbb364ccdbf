"""Programs of the benchmark that come from other registries than Python's: python -m bench.programs installs them

Restate's server comes from npm, Temporal's is built from its Go module; both are pinned in bench/pins/. If one is missing, its
peer is left out of the comparison, and the page says why.
"""

from pathlib import Path

from rig.programs import Program

PINS = Path(__file__).parent / "pins"
INSTALLER = "python -m bench.programs"

RESTATE = Program(
    PINS / "restate",
    ("node", "npm"),
    (("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"),),
    "node_modules/@restatedev/restate-server-*/bin/restate-server",
    INSTALLER,
)
TEMPORAL = Program(
    PINS / "temporal",
    ("go",),
    (("go", "build", "-trimpath", "-o", "temporal-server", "go.temporal.io/server/cmd/server"),),
    "temporal-server",
    INSTALLER,
)


def main() -> None:
    """Install both, and print what is missing. The benchmark goes on without it."""
    for program in (RESTATE, TEMPORAL):
        if (reason := program.install()) is not None:
            print(f"{program.name} will be left out: {reason}", flush=True)


if __name__ == "__main__":
    main()
