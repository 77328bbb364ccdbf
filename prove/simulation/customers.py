"""The people whose step a bank wants, such as 3-D Secure: they take it, refuse it, come too late, or never come."""

from collections.abc import Mapping
from functools import partial

from prove.simulation.bank import Bank
from prove.simulation.stage import Stage

# How long a person takes, and how long once faults have stopped.
SECONDS, SECONDS_AFTER_FAULTS = 12.0, 5.0
# Until every bank of a story has given up waiting.
LATE_SECONDS = 60.0


class Customers:
    """Sends a person to each address that a bank names."""

    def __init__(self, stage: Stage, banks: Mapping[str, Bank]) -> None:
        self._stage = stage
        self._dice = stage.dice
        for bank in banks.values():
            bank.wants_customer = partial(self._go, bank)

    def _go(self, bank: Bank, token: str) -> None:
        """Decide what the person will do. An honest client has told the address by then, or will: it does not matter to us."""
        dice = self._dice
        if dice.fires("customer_never"):
            return
        seconds = dice.uniform(0.1, SECONDS_AFTER_FAULTS if dice.is_over else SECONDS)
        if dice.fires("customer_late"):
            seconds += LATE_SECONDS
        self._stage.later(seconds, self._come, bank, token, not dice.fires("customer_refuses"))

    def _come(self, bank: Bank, token: str, confirms: bool) -> None:
        was_in_time = bank.take_step(token, confirms=confirms)
        if confirms and was_in_time:
            self._dice.met("customer_confirms")
        self._stage.note("customer", "confirms" if confirms else "refuses", token, "" if was_in_time else "too late")
