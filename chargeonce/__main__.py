"""`chargeonce COMMAND ...`, or `python -m chargeonce COMMAND ...`.

A server or an operator's program is run at once, and only its package is loaded. All else is the command line of clients.
"""

import importlib
import os
import sys

from chargeonce.table import COMMANDS, FORMER, Program


def main() -> None:
    """Run a command. Its exit status is the process's."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is loaded: what it writes is no answer of ours
    given = sys.argv[1:]
    if given and given[0] in FORMER:
        given[:1] = FORMER[given[0]].split()
    for words in (1, 2):
        name = " ".join(given[:words])
        match COMMANDS.get(name):
            case Program() as program:
                sys.exit(program.run(name, given[words:]))
    importlib.import_module("chargeonce.commands").main(given)


if __name__ == "__main__":
    main()
