"""The vitals of a command server: the figures that an operator watches, taken together as one value."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from chassis.metrics import By, Figures
from command_service.bank.lines import Lines
from command_service.charge import Charge
from command_service.journal import Journal
from command_service.operation import awaits_customer
from command_service.run import Run
from command_service.runner import Runner


@dataclass(frozen=True, slots=True)
class Vitals:
    """The figures of one moment. Each field is a gauge, described in TEXTS."""

    oldest_unfinished_seconds: float
    unfinished_charges: int
    charges_awaiting_customer: int
    charges_needing_attention: int
    bank_breaker_open: Mapping[str, bool]
    """By the banks' names."""
    journal_position: int
    journal_wal_bytes: int
    journal_accepting: bool

    def figures(self) -> Figures:
        """Return them as gauges."""
        return {**dataclasses.asdict(self), "bank_breaker_open": By("bank", self.bank_breaker_open)}


TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "oldest_unfinished_seconds": "Age of the oldest unfinished charge that waits for no customer",
        "unfinished_charges": "Charges on their way",
        "charges_awaiting_customer": "Charges on their way whose customer the bank waits for",
        "charges_needing_attention": "Charges unfinished for too long, or at a bank that no setting names",
        "bank_breaker_open": "1 while a bank is being spared",
        "journal_position": "The journal's head",
        "journal_wal_bytes": "Size of the write-ahead log; a long read makes it grow",
        "journal_accepting": "1 while new charges can be stored",
    }
)


def vitals(runner: Runner, lines: Lines, journal: Journal, *, now: int, attention_after_seconds: float) -> Vitals:
    """Take the figures. `now` is in microseconds since 1970."""
    charges = [_charge(run) for run in runner.runs()]
    # People take their time. At a bank that no setting names nobody sees whether they have.
    unhindered = [it for it in charges if not awaits_customer(it.newest) or not lines.lead_to(it.request.bank)]
    ages = [_age_seconds(charge, now) for charge in unhindered]
    return Vitals(
        oldest_unfinished_seconds=max(ages, default=0.0),
        unfinished_charges=len(charges),
        charges_awaiting_customer=len(charges) - len(unhindered),
        charges_needing_attention=sum(
            age > attention_after_seconds or not lines.lead_to(charge.request.bank)
            for charge, age in zip(unhindered, ages, strict=True)
        ),
        bank_breaker_open={name: line.is_spared for name, line in lines},
        journal_position=journal.head.position,
        journal_wal_bytes=journal.wal_bytes,
        journal_accepting=journal.accepting,
    )


def _charge(run: Run) -> Charge:
    state = run.snapshot.state
    assert isinstance(state, Charge), "a charge on its way has events"
    return state


def _age_seconds(charge: Charge, now: int) -> float:
    """The age of a charge's operation under way; 0 if the clock has gone back to before its request."""
    return max(0.0, (now - charge.newest.requested_at) / 1_000_000)
