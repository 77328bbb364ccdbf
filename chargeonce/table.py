"""The commands by their names: where each is, and its line in the help. Nothing is loaded before it is run."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Program:
    """A server or an operator's program, which reads its own arguments: the `main` of a module."""

    module: str
    text: str
    command: str = ""
    """The operator's command that it is, where the module has several."""

    def run(self, name: str, arguments: Sequence[str]) -> int | None:
        """Run it under its name. Returns its exit status."""
        which = {"command": self.command} if self.command else {}
        status: int | None = importlib.import_module(self.module).main(arguments, program=f"chargeonce {name}", **which)
        return status


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks the servers: a command of click, an attribute of a module in `chargeonce.commands`."""

    module: str
    attribute: str
    text: str

    def load(self) -> Any:
        """Return the command of click."""
        return getattr(importlib.import_module(f"chargeonce.commands.{self.module}"), self.attribute)


BY_HEADING: Mapping[str, Mapping[str, Program | Question]] = {
    "Move money, each exactly once": {
        "charge": Question("moving", "charge", "charge a card, or hold the money"),
        "capture": Question("moving", "capture", "move money that is held"),
        "void": Question("moving", "void", "let go of what is held, or call a charge off"),
        "refund": Question("moving", "refund", "give money back"),
    },
    "See what became of it": {
        "get": Question("looking", "get", "show a charge"),
        "history": Question("looking", "history", "show a charge's events"),
        "list": Question("looking", "list_charges", "list charges, newest first"),
        "summary": Question("looking", "summary", "show a user's sums"),
        "watch": Question("following", "watch", "follow a charge until it is decided"),
        "tail": Question("following", "tail", "follow all charges: the feed, live and decoded"),
        "explain": Question("explaining", "explain", "tell what happened to a charge, and what may be done"),
        "view status": Question("looking", "view_status", "tell how far the query server's view is"),
    },
    "Operate": {
        "stuck": Question("explaining", "stuck", "list the charges that somebody should look at"),
        "desk try": Question(
            "desk", "try_now", "have a charge's next step done now (while its bank is spared, with the next probe)"
        ),
        "desk hold": Question("desk", "hold", "hold a charge back"),
        "desk release": Question("desk", "release", "let a charge go that is held back"),
        "desk ask-bank": Question("desk", "ask_bank", "ask the bank what it knows of a charge"),
        "desk propose": Question("desk", "propose", "propose how a charge in review ended"),
        "desk approve": Question("desk", "approve", "approve a proposal, as the second person"),
        "desk reject": Question("desk", "reject", "turn a proposal down"),
        "desk status": Question("desk", "server_status", "tell how the command server and its banks do"),
        "reconcile": Question("reconciling", "reconcile", "compare a bank's statement with the journal"),
        "journal print": Program(
            "command_service.cli", "print the journal, or the events of one charge", "print-journal"
        ),
        "journal verify": Program("command_service.cli", "verify all of the journal", "verify-journal"),
        "journal backup": Program("command_service.cli", "copy the journal, also while the server runs", "backup"),
        "journal restore": Program("command_service.cli", "put a backup in the journal's place", "restore"),
        "journal migrate": Program(
            "command_service.cli", "make the journal's tables in PostgreSQL, or upgrade them", "migrate"
        ),
        "journal copy": Program("command_service.cli", "copy a journal to another place, or move it", "copy-journal"),
        "policy check": Program("command_service.cli", "tell what each identity of a policy may do", "check-policy"),
        "bank check": Program("command_service.cli", "hold a bank for tests to its promises", "check-bank"),
        "bank statement": Question("bank", "statement", "show the movements of money at the mock bank"),
        "health": Program("chargeonce.health", "ask a running server for its health"),
        "verify-history": Program("judge.cli", "compare journal, bank statement and view, and find broken invariants"),
        "completion": Question("completion", "completion", "print the completion script of bash, zsh or fish"),
    },
    "Serve": {
        "command-server": Program("command_service.cli", "charge cards, each exactly once"),
        "query-server": Program("query_service.cli", "answer queries from a view of the charges"),
        "console": Program("console.cli", "web pages for operators: see, explain, repair, reconcile"),
        "mock-bank": Program("gateway_mock.cli", "a bank for trials and tests, which fails on request"),
        "sandbox": Program("chargeonce.sandbox.cli", "bank and servers in one process, for the tests of clients"),
    },
}

COMMANDS = {name: command for commands in BY_HEADING.values() for name, command in commands.items()}

# Names of earlier versions, which deployments use.
FORMER = {
    command.command: name for name, command in COMMANDS.items() if isinstance(command, Program) and command.command
}
