"""A command server with a bug planted into it, for the controls of the harnesses that start real processes.

    PROVE_SABOTAGE="reply before the commit" python -m prove.sabotaged

It is the product's own server otherwise, and nothing of the product reads that variable. The bugs are those of
`prove.canaries`, and two for processes that are killed: of these the simulation cannot tell one from what is right.
"""

import os
import sys
from dataclasses import replace

import structlog

from command_service.bank import Bank
from command_service.cli import main
from command_service.parts import Parts
from command_service.settings import Settings
from command_service.values import Answer, Effect, Execute, Kind, RequestToken, Token
from prove import canaries
from rig.around import Around
from rig.processes import Server

VARIABLE = "PROVE_SABOTAGE"
WRITES_ITS_LOG_ITSELF = "who logs waits for standard error"
SENDS_REFUNDS_AGAIN = "a refund is sent again under a new reference after a crash"


class WritesItsLogItself(Parts):
    """Whoever logs waits until the line is written."""

    def __init__(self, chosen: Settings) -> None:
        super().__init__(chosen)
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.__stderr__))


class SentAgain(Around[Bank]):
    """A bank that is asked for a refund anew, under another reference, if this process did not see its token issued."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self._issued: set[str] = set()

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step, or two of another refund."""
        if isinstance(effect, Execute) and effect.operation.kind is Kind.REFUND and effect.token not in self._issued:
            again = replace(effect.operation, reference=f"{effect.operation.reference}-again")
            answer = await self.inner.perform(RequestToken(again, 0), look_up_first=look_up_first)
            if not isinstance(answer, Token):
                return answer
            effect = Execute(again, answer.token)
        answer = await self.inner.perform(effect, look_up_first=look_up_first)
        if isinstance(answer, Token):
            self._issued.add(answer.token)
        return answer


class SendsRefundsAgain(Parts):
    """The token of a refund is forgotten in a crash, though the journal holds it."""

    def bank(self) -> Bank:
        """Make a bank that is asked again."""
        return SentAgain(super().bank()).as_one()


_OF_PROCESSES = {WRITES_ITS_LOG_ITSELF: WritesItsLogItself, SENDS_REFUNDS_AGAIN: SendsRefundsAgain}


def sabotage(server: Server, bug: str) -> None:
    """Have a command server start with a bug from now on."""
    server.module, server.environment = "prove.sabotaged", {**server.environment, VARIABLE: bug}


if __name__ == "__main__":
    bug = os.environ[VARIABLE]
    main(make_parts=_OF_PROCESSES.get(bug) or canaries.planted(bug, Parts))
