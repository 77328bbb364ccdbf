"""A bank that no setting names any more, or none on this server: nothing is sent to it, and its charges wait for people."""

import math

from command_service.bank.transport import no_answer
from command_service.values import Effect, NoAnswer, Operation


class Unconfigured:
    """Stands for the bank of charges that bear a name which nobody knows, or none."""

    def __init__(self, name: str) -> None:
        """`name` is empty for the bank of charges that were accepted under COMMAND_BANK_URL."""
        self._why = "no setting names the bank of this charge"
        if not name:
            self._why += (
                ": it was that of COMMAND_BANK_URL, and `unnamed` in the banks' file says which one that is now"
            )

    @property
    def remembers_seconds(self) -> float:
        """It is not asked."""
        return math.inf

    @property
    def can_look_up(self) -> bool:
        """Nor is it asked this."""
        return False

    async def perform(self, _: Effect, *, look_up_first: bool) -> NoAnswer:
        """Give no answer, for a reason of our own set-up: it counts for no giving up, and is told by an error of the log."""
        del look_up_first
        return no_answer(self._why, our_setup=True)

    async def look_up(self, _: Operation, token: str | None) -> NoAnswer:
        """Give no answer."""
        del token
        return no_answer(self._why, our_setup=True)

    async def close(self) -> None:
        """There is nothing to close."""
