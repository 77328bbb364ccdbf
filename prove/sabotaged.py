"""A command server with a bug planted into it, for the controls of the harnesses that start real processes.

    PROVE_SABOTAGE="reply before the commit" python -m prove.sabotaged

It is the product's own server otherwise, and nothing of the product reads that variable. The bugs are those of
`prove.canaries` and `prove.journal_bugs`, and one that the simulation cannot tell from what is right.
"""

import os
from typing import Any

from chassis.stderr import StandardError
from command_service.cli import main
from command_service.parts import Parts
from demo.processes import Server
from prove import journal_bugs
from prove.simulation.loop import patched

VARIABLE = "PROVE_SABOTAGE"
WRITES_ITS_LOG_ITSELF = "who logs waits for standard error"


def _writes_its_log_itself() -> list[tuple[Any, str, Any]]:
    def write(_self: StandardError, text: str) -> int:
        return os.write(2, text.encode())

    return [(StandardError, "write", write)]


def sabotage(server: Server, bug: str) -> None:
    """Have a command server start with a bug from now on."""
    server.module, server.environment = "prove.sabotaged", {**server.environment, VARIABLE: bug}


def _serve_with(bug: str) -> None:
    if bug in journal_bugs.NAMES:
        main(make_parts=journal_bugs.into(Parts, journal_bugs.named(bug)))
    elif bug == WRITES_ITS_LOG_ITSELF:
        with patched(_writes_its_log_itself()):
            main()
    else:
        from prove import canaries

        with canaries.planted(bug):
            main()


if __name__ == "__main__":
    _serve_with(os.environ[VARIABLE])
