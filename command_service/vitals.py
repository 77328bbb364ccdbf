"""The vitals of a command server: the figures that an operator watches, taken together as one value."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from charging.v1.query_pb2 import Situation
from chassis.instruments import By, Figures, Gauge
from chassis.shares import Shares
from command_service.attempts import situation_of
from command_service.bank.lines import Lines
from command_service.charge import Charge, is_at_rest
from command_service.feed import Feed
from command_service.journal import Journal
from command_service.operation import awaits_customer
from command_service.run import Run
from command_service.runner import Runner

# An operator is told of them at once: they do not end by themselves.
_AT_ONCE = frozenset({Situation.SITUATION_BANK_MISSING, Situation.SITUATION_HELD_BACK})


class Watched(NamedTuple):
    """The parts of a server whose figures are taken. `limits` are those of calls and charges, by their names."""

    runner: Runner
    lines: Lines
    journal: Journal
    feed: Feed
    limits: Mapping[str, Shares]


@dataclass(frozen=True, slots=True)
class Vitals:
    """The figures of one moment. Each field is a gauge, described in GAUGES."""

    oldest_unfinished_seconds: float
    unfinished_charges: int
    charges_awaiting_customer: int
    charges_needing_attention: int
    stuck_charges: Mapping[str, int]
    """By their situations; 0 for those that no charge is in."""
    stopped_charges: int
    bank_breaker_open: Mapping[str, bool]
    """By the banks' names, here and below."""
    bank_calls_in_progress: Mapping[str, int]
    bank_calls_limit: Mapping[str, int]
    journal_position: int
    journal_wal_bytes: int
    journal_accepting: bool
    feed_readers: int
    feed_reader_lag_records: int
    limit_used: Mapping[str, int]
    limit_maximum: Mapping[str, int]

    def figures(self) -> Figures:
        """Return them as gauges."""
        figures = dataclasses.asdict(self)
        labels = {name: gauge.labels[0] for name, gauge in GAUGES.items() if gauge.labels}
        return figures | {name: By(label, figures[name]) for name, label in labels.items()}


GAUGES: Mapping[str, Gauge] = MappingProxyType(
    {
        "oldest_unfinished_seconds": Gauge(
            "Age of the oldest unfinished charge that waits for no customer and is not held back"
        ),
        "unfinished_charges": Gauge("Charges on their way"),
        "charges_awaiting_customer": Gauge("Charges on their way whose customer the bank waits for"),
        "charges_needing_attention": Gauge(
            "Charges unfinished for too long, or at a bank that no setting names; without those held back"
        ),
        "stuck_charges": Gauge(
            "Charges on their way that are in this situation for longer than COMMAND_ATTENTION_AFTER_SECONDS; those held "
            "back or at a bank that no setting names, at once",
            ("situation",),
        ),
        "stopped_charges": Gauge(
            "Charges that a fault of ours has stopped, and that no call or start has taken up again"
        ),
        "bank_breaker_open": Gauge("1 while a bank is being spared", ("bank",)),
        "bank_calls_in_progress": Gauge("Steps that a bank is doing", ("bank",)),
        "bank_calls_limit": Gauge("The most steps that a bank is given at once", ("bank",)),
        "journal_position": Gauge("The journal's head"),
        "journal_wal_bytes": Gauge("Size of the write-ahead log; a long read makes it grow"),
        "journal_accepting": Gauge("1 while new charges can be stored"),
        "feed_readers": Gauge("Readers that follow the feed"),
        "feed_reader_lag_records": Gauge("Records that the reader furthest behind has yet to take"),
        "limit_used": Gauge("What is used of a limit", ("limit",)),
        "limit_maximum": Gauge("The limit", ("limit",)),
    }
)


def vitals(watched: Watched, *, now: int, attention_after_seconds: float, tenant: str = "") -> Vitals:
    """Take the figures. `now` is in microseconds since 1970. With a tenant only its charges are counted."""
    runner, lines, journal = watched.runner, watched.lines, watched.journal
    # Another server that shares the journal may have brought a charge to rest whose step at the bank we await still.
    runs = [run for run in runner.runs() if not tenant or run.tenant == tenant]
    on_their_way = {run: charge for run in runs if not is_at_rest(charge := _charge(run))}
    charges = on_their_way.values()
    # People take their time. At a bank that no setting names nobody sees whether they have.
    unhindered = [it for it in charges if not awaits_customer(it.newest) or not lines.lead_to(it.request.bank)]
    left_alone = [it for it in unhindered if not it.desk.is_held_back]
    stuck = Counter(
        situation
        for run, charge in on_their_way.items()
        if (situation := _situation(run, charge, lines)) in _SITUATIONS
        and (situation in _AT_ONCE or age_seconds(charge, now) > attention_after_seconds)
    )
    return Vitals(
        oldest_unfinished_seconds=max((age_seconds(charge, now) for charge in left_alone), default=0.0),
        unfinished_charges=len(charges),
        charges_awaiting_customer=len(charges) - len(unhindered),
        charges_needing_attention=sum(
            age_seconds(charge, now) > attention_after_seconds or not lines.lead_to(charge.request.bank)
            for charge in left_alone
        ),
        stuck_charges={name: stuck[situation] for situation, name in _SITUATIONS.items()},
        stopped_charges=runner.stopped,
        bank_breaker_open={name: line.is_spared for name, line in lines},
        bank_calls_in_progress={name: line.calls_under_way for name, line in lines},
        bank_calls_limit={name: line.calls_at_once for name, line in lines},
        journal_position=journal.head.position,
        journal_wal_bytes=journal.wal_bytes,
        journal_accepting=journal.accepting,
        feed_readers=watched.feed.readers,
        feed_reader_lag_records=watched.feed.lag_records,
        limit_used={name: limit.used for name, limit in watched.limits.items()},
        limit_maximum={name: limit.limit for name, limit in watched.limits.items()},
    )


_SITUATIONS = {
    situation: Situation.Name(situation).removeprefix("SITUATION_").lower()
    for situation in (
        Situation.SITUATION_BANK_SILENT,
        Situation.SITUATION_EXECUTION_UNKNOWN,
        Situation.SITUATION_BANK_REFUSES_US,
        Situation.SITUATION_BANK_SLOW,
        Situation.SITUATION_CALLING_OFF,
        Situation.SITUATION_AWAITING_CUSTOMER,
        Situation.SITUATION_HELD_BACK,
        Situation.SITUATION_BANK_MISSING,
    )
}
"""The situations in which a charge on its way can be stuck, by the values of the label."""


def _situation(run: Run, charge: Charge, lines: Lines) -> Situation.ValueType:
    is_configured = lines.lead_to(charge.request.bank)
    return situation_of(run, is_bank_configured=is_configured, is_held_back=charge.desk.is_held_back)


def _charge(run: Run) -> Charge:
    state = run.snapshot.state
    assert isinstance(state, Charge), "a charge on its way has events"
    return state


def age_seconds(charge: Charge, now: int) -> float:
    """Return the age of a charge's operation under way; 0 if the clock has gone back to before its request."""
    return max(0.0, (now - charge.newest.requested_at) / 1_000_000)
