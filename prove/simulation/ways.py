"""The ways from a command server to the banks of its story: the product's own adapters and lines, over simulated wires."""

from collections.abc import Callable, Mapping
from functools import cached_property

from command_service.bank import Bank
from command_service.bank.configured import Banks
from command_service.bank.kinds import KINDS, BankSettings
from command_service.bank.routes import Route
from command_service.parts import Parts
from command_service.settings import Settings
from prove.simulation.bank import Bank as SimulatedBank
from prove.simulation.pressure import Pressure
from prove.simulation.shapes import ONE_STEP, BankPlan
from prove.simulation.stage import Stage
from prove.simulation.wire import Wire

BANK_URL = "http://bank.test"


class WaysToBanks(Parts):
    """Parts of a server whose banks are a story's."""

    def __init__(
        self, chosen: Settings, stage: Stage, banks: Mapping[str, SimulatedBank], is_durable: Callable[[str], bool]
    ) -> None:
        """`is_durable` says of a token whether the journal holds it for good."""
        super().__init__(chosen)
        self._stage = stage
        self._banks = banks
        self._is_durable = is_durable

    @cached_property
    def configured(self) -> Banks:
        """The story's banks, each as good as the other."""
        chosen = {each.name: self._settings(each) for each in self._stage.plan.banks}
        return Banks(chosen, (Route(dict.fromkeys(chosen, 1.0)),))

    def _settings(self, each: BankPlan) -> BankSettings:
        calls, seconds = self.settings.bank_calls, self.settings.bank_timeout_seconds
        options = {"key_seconds": each.key_seconds} if each.kind == ONE_STEP else {}
        return BankSettings(each.name, each.kind, BANK_URL, calls=calls, timeout_seconds=seconds, options=options)

    def wire(self, bank: BankSettings) -> Wire:
        """Connect to a bank."""
        stage = self._stage
        pressure = Pressure(bank.calls, stage.loop.time, stage.broke)
        return Wire(self._banks[bank.name], stage.dice, stage.outside, self._is_durable, stage.note, pressure)

    def banks(self) -> Mapping[str, Bank]:
        """Make the adapters of all banks: that of the bank without a name as in a server that has no other."""
        return {name: self._adapter(bank) for name, bank in self.configured.banks.items()}

    def _adapter(self, bank: BankSettings) -> Bank:
        return KINDS[bank.kind](bank, self.wire(bank), self.watched) if bank.name else self.bank()
