"""A command server with a bug planted into it, for the controls of the harnesses that start real processes.

    PROVE_SABOTAGE="reply before the commit" python -m prove.sabotaged

It is the product's own server otherwise, and nothing of the product reads that variable. The bugs are those of
`prove.canaries`, and some that the simulation cannot tell from what is right.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from chassis.stderr import StandardError
from command_service.__main__ import main
from demo.processes import Server
from prove import canaries, journal_bugs
from prove.simulation.loop import patched

VARIABLE = "PROVE_SABOTAGE"
WRITES_ITS_LOG_ITSELF = "who logs waits for standard error"


def _writes_its_log_itself() -> list[tuple[Any, str, Any]]:
    def write(_self: StandardError, text: str) -> int:
        return os.write(2, text.encode())

    return [(StandardError, "write", write)]


def planted(bug: str) -> AbstractContextManager[None]:
    """Put a bug into the product, in this process, for as long as the context lasts. Without a name: none."""
    if bug in journal_bugs.OF_REAL_FILES:
        return patched(canaries.on_parts(journal_bugs.named(bug)))
    if bug == WRITES_ITS_LOG_ITSELF:
        return patched(_writes_its_log_itself())
    return canaries.planted(bug) if bug else nullcontext()


def sabotage(server: Server, bug: str) -> None:
    """Have a command server start with a bug from now on."""
    server.module, server.environment = "prove.sabotaged", {**server.environment, VARIABLE: bug}


if __name__ == "__main__":
    with planted(os.environ[VARIABLE]):
        main()
