"""`chargeonce COMMAND ...`, or `python -m chargeonce COMMAND ...`.

Each command is a program of one package, which reads its own arguments: only that package is loaded.
"""

import argparse
import importlib
import os
import sys
from dataclasses import dataclass

from chassis import process


@dataclass(frozen=True, slots=True)
class _Command:
    """A program: the module of its `main`, the arguments that select it there, and its text in the help."""

    module: str
    arguments: tuple[str, ...]
    text: str


COMMANDS = {
    "command-server": _Command("command_service.cli", (), "charge cards, each exactly once"),
    "query-server": _Command("query_service.cli", (), "answer queries from a view of the charges"),
    "mock-bank": _Command("gateway_mock.cli", (), "a bank for trials and tests, which fails on request"),
    "sandbox": _Command("chargeonce.sandbox.cli", (), "run bank and servers, for the tests of clients in any language"),
    "print-journal": _Command("command_service.cli", ("print-journal",), "print the journal, or one charge's stream"),
    "verify-journal": _Command("command_service.cli", ("verify-journal",), "verify all of the journal"),
    "backup": _Command("command_service.cli", ("backup",), "copy the journal, also while the server runs"),
    "restore": _Command("command_service.cli", ("restore",), "put a backup in the journal's place"),
    "migrate": _Command(
        "command_service.cli", ("migrate",), "make the journal's tables in PostgreSQL, or upgrade them"
    ),
    "copy-journal": _Command("command_service.cli", ("copy-journal",), "copy a journal to another place, or move it"),
    "check-policy": _Command("command_service.cli", ("check-policy",), "tell what each identity of a policy may do"),
    "check-bank": _Command("command_service.cli", ("check-bank",), "hold a bank for tests to its promises"),
    "health": _Command("chargeonce.health", (), "ask a running server for its health"),
    "verify-history": _Command("judge.cli", (), "compare journal, bank statement and view, and find broken invariants"),
}


def main() -> None:
    """Run a command. Its exit status is the process's."""
    parser = process.parser(
        "chargeonce",
        "Charges cards, each exactly once.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<15} {command.text}" for name, command in COMMANDS.items())
        + "\n\nchargeonce COMMAND --help describes each.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    chosen = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is loaded: what it writes is no answer of ours
    command = COMMANDS[chosen.command]
    program = "chargeonce" if command.arguments else f"chargeonce {chosen.command}"
    sys.exit(importlib.import_module(command.module).main([*command.arguments, *chosen.arguments], program=program))


if __name__ == "__main__":
    main()
