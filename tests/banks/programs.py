"""The fakes of Stripe that others wrote: python -m tests.banks.programs installs those that are not from PyPI

stripe-mock is built from its Go module, stripe-stateful-mock comes from npm, localstripe has a virtualenv of its own.
"""

import sys
from pathlib import Path

from rig.programs import BUILD, Program

PINS = Path(__file__).parent / "pins"
INSTALLER = "make test-banks"

STRIPE_MOCK = Program(
    PINS / "stripe-mock",
    ("go",),
    (("go", "build", "-trimpath", "-o", "stripe-mock", "github.com/stripe/stripe-mock"),),
    "stripe-mock",
    INSTALLER,
)
STATEFUL_MOCK = Program(
    PINS / "stripe-stateful-mock",
    ("node", "npm"),
    (("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"),),
    "node_modules/stripe-stateful-mock/dist/index.js",
    INSTALLER,
)
LOCALSTRIPE_PYTHON = BUILD.absolute() / "banks-venv" / "bin" / "python"

# What to install for a tool that is missing.
PACKAGES = {"go": "Go 1.24 or later", "node": "Node.js 20 or later", "npm": "npm, which comes with Node.js"}


def main() -> None:
    """Install both. Exits with status 2, and says what to install first, if one cannot be."""
    reasons = [
        (program, reason) for program in (STRIPE_MOCK, STATEFUL_MOCK) if (reason := program.install()) is not None
    ]
    for program, reason in reasons:
        wanted = " and ".join(PACKAGES[tool] for tool in program.tools)
        print(f"{program.name} cannot be set up: {reason}. It needs {wanted}.", file=sys.stderr)
    sys.exit(2 if reasons else 0)


if __name__ == "__main__":
    main()
