"""The vitals of a command server: the figures that an operator watches, taken together as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from command_service.bank.lines import Lines
from command_service.charge import Charge
from command_service.journal import Journal
from command_service.run import Run
from command_service.runner import Runner


@dataclass(frozen=True, slots=True)
class Vitals:
    """The figures of one moment. Each field is a gauge, described in TEXTS."""

    oldest_unfinished_seconds: float
    unfinished_charges: int
    charges_needing_attention: int
    bank_breaker_open: bool
    journal_position: int
    journal_wal_bytes: int
    journal_accepting: bool


TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "oldest_unfinished_seconds": "Age of the oldest unfinished charge",
        "unfinished_charges": "Charges on their way",
        "charges_needing_attention": "Charges unfinished for too long",
        "bank_breaker_open": "1 while a bank is being spared",
        "journal_position": "The journal's head",
        "journal_wal_bytes": "Size of the write-ahead log; a long read makes it grow",
        "journal_accepting": "1 while new charges can be stored",
    }
)


def vitals(runner: Runner, lines: Lines, journal: Journal, *, now: int, attention_after_seconds: float) -> Vitals:
    """Take the figures. `now` is in microseconds since 1970."""
    ages = [_age_seconds(run, now) for run in runner.runs()]
    return Vitals(
        oldest_unfinished_seconds=max(ages, default=0.0),
        unfinished_charges=len(ages),
        charges_needing_attention=sum(age > attention_after_seconds for age in ages),
        bank_breaker_open=any(line.is_spared for _, line in lines),
        journal_position=journal.head.position,
        journal_wal_bytes=journal.wal_bytes,
        journal_accepting=journal.accepting,
    )


def _age_seconds(run: Run, now: int) -> float:
    """The age of a charge's operation under way; 0 if the clock has gone back to before its request."""
    state = run.snapshot.state
    assert isinstance(state, Charge), "a charge on its way has events"
    return max(0.0, (now - state.newest.requested_at) / 1_000_000)
