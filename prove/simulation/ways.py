"""The ways from a command server to the banks of its story: the product's own adapters and lines, over simulated wires."""

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from command_service.bank import Bank
from command_service.bank.kinds import KINDS, BankSettings
from command_service.bank.lines import Lines
from command_service.parts import Parts
from command_service.settings import Settings
from command_service.values import Request
from prove.simulation.bank import Bank as SimulatedBank
from prove.simulation.pressure import Pressure
from prove.simulation.shapes import BankPlan
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

    def wire(self, bank: str = "") -> Wire:
        """Connect to a bank."""
        stage = self._stage
        pressure = Pressure(stage.plan.bank_calls, stage.loop.time, stage.broke)
        return Wire(self._banks[bank], stage.dice, stage.outside, self._is_durable, stage.note, pressure)

    def banks(self) -> Mapping[str, Bank]:
        """Make the adapters of all banks: that of the bank without a name as in a server that has no other."""
        return {each.name: self._adapter(each) for each in self._stage.plan.banks}

    def _adapter(self, each: BankPlan) -> Bank:
        if not each.name:
            return self.bank()
        chosen = BankSettings(each.name, each.kind, BANK_URL, timeout_seconds=self.settings.bank_timeout_seconds)
        return KINDS[each.kind](chosen, self.wire(each.name), self.watched)

    def lines(self, banks: Mapping[str, Bank]) -> Lines:
        """Make the lines to all banks: of several a charge's id names the preferred one."""
        names = list(banks)

        def rule(request: Request) -> Sequence[str]:
            first = UUID(request.charge_id).int % len(names)
            return names[first:] + names[:first]

        return Lines({name: self.line(bank) for name, bank in banks.items()}, rule)
