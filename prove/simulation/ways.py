"""The ways from a command server to the banks of its story: the product's own adapters and lines, over simulated wires."""

from collections.abc import Callable, Mapping
from functools import cached_property

from chassis.secret import Secret
from command_service.bank import Bank, trusted_seconds
from command_service.bank.configured import Banks
from command_service.bank.kinds import KINDS, BankSettings
from command_service.bank.routes import Route
from command_service.bank.stripe import stripe_bank
from command_service.parts import Parts
from command_service.settings import Settings
from prove.simulation.bank import Bank as SimulatedBank
from prove.simulation.pressure import Pressure
from prove.simulation.shapes import ONE_STEP, STRIPE, BankPlan
from prove.simulation.stage import Stage
from prove.simulation.wire import Wire

BANK_URL = "http://bank.test"
SECRET = Secret("sk_of_a_story")


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
        pressure = Pressure(bank.calls, stage.loop.time, stage.broke, stage.tried_at)
        return Wire(self._banks[bank.name], stage.dice, stage.outside, self._is_durable, stage.note, pressure)

    def banks(self) -> Mapping[str, Bank]:
        """Make the adapters of all banks: that of the bank without a name as in a server that has no other."""
        return {name: self._adapter(bank) for name, bank in self.configured.banks.items()}

    def _adapter(self, bank: BankSettings) -> Bank:
        if not bank.name:
            return self.bank()
        if bank.kind == STRIPE:
            return self._stripe(bank)
        return KINDS[bank.kind](bank, self.wire(bank), self.watched)

    def _stripe(self, bank: BankSettings) -> Bank:
        """As of its kind, but for a key of no file, the story's clock, and a shorter memory than the real one's."""
        (plan,) = (each for each in self._stage.plan.banks if each.name == bank.name)
        made = stripe_bank(
            *(bank.url, self.wire(bank), bank.timeout_seconds),
            key=lambda: SECRET,
            return_url="https://shop.test/back",
            customer_seconds=plan.step_seconds,
            now=lambda: self._stage.now() / 1_000_000,
        )
        made.remembers_seconds = trusted_seconds(plan.key_seconds)
        return made
