"""The targets, as rules over the content of bench.json, and their verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Verdict(Enum):
    """The result of a target."""

    MET = "met"
    MISSED = "missed"
    UNMEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound."""

    what: str
    place: tuple[str, ...]
    """The path of the figure in bench.json."""
    bound: float
    at_least: bool = False
    """The bound is a lower one."""
    unit: str = ""

    @property
    def wanted(self) -> str:
        """The bound for people."""
        return f"{'at least' if self.at_least else 'at most'} {self.bound:,g}{self.unit}"

    def judge(self, found: Mapping[str, Any]) -> tuple[float | None, Verdict]:
        """The figure, if it was measured, and the verdict."""
        value: Any = found
        for name in self.place:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            return None, Verdict.UNMEASURED
        is_met = value >= self.bound if self.at_least else value <= self.bound
        return float(value), Verdict.MET if is_met else Verdict.MISSED


def _rates(other: str, words: str, bounds: Mapping[int, float]) -> list[Target]:
    """The targets for the rate against a peer, by the number in flight."""
    return [
        Target(
            f"charges/s against {words}, {in_flight} in flight",
            ("ratios", f"rate against {other}", str(in_flight)),
            bound,
            at_least=True,
            unit=" times",
        )
        for in_flight, bound in bounds.items()
    ]


_CPU_AGAINST_ECHO = ("ratios", "cpu_ms against echo")

TARGETS: Sequence[Target] = (
    Target("CPU a charge against the echo's a call, 128 in flight", (*_CPU_AGAINST_ECHO, "128"), 2.9, unit=" times"),
    Target("the same, stretched", (*_CPU_AGAINST_ECHO, "128"), 2.5, unit=" times"),
    Target("the same, 1 in flight", (*_CPU_AGAINST_ECHO, "1"), 4.2, unit=" times"),
    *_rates("the best restate", "Restate at its best", {1: 3.2, 16: 3, 128: 2.5}),
    *_rates("the best eventsourcing-sqlite", "the best eventsourcing on SQLite", {16: 3.5, 128: 4}),
    *_rates("the best tutorial", "the best tutorial service", {16: 3.2, 128: 3.8}),
    *_rates("the best dbos", "the best DBOS", {16: 13, 128: 15}),
    Target("latency added to the bank's, half of peak load, p50", ("latency", "added_p50_ms"), 5, unit=" ms"),
    Target("... p99", ("latency", "added_p99_ms"), 12, unit=" ms"),
    Target("... charges that failed or were not sent", ("latency", "lost"), 0),
    Target("live lag of the view, half of peak load, p99", ("latency", "view_lag_p99_ms"), 50, unit=" ms"),
    Target("1,000 in flight, bank of 100 ms: errors", ("many", "errors"), 0),
    Target("... share of the rate at 128 without delay", ("many", "share_of_rate"), 0.88, at_least=True),
    Target("... memory a charge held", ("many", "kb_a_charge_held"), 30, unit=" KB"),
    Target(
        "closed loop at 5 times the limit: goodput, share of peak", ("overload", "share_of_peak"), 0.92, at_least=True
    ),
    # Charges that the generator could not send were no load.
    Target("open loop at 5 times capacity: sent, times peak", ("burst", "sent_times_peak"), 4.5, at_least=True),
    # With the limit of calls in the server and peak as its rate, a call takes limit / peak (Little's law); twice that leaves
    # room for an uneven load.
    Target("... p99 of what is accepted, against the limit of calls / peak", ("burst", "p99_share"), 2, unit=" times"),
    # A refusal that says when to come back; one without it comes from gRPC, before the service sees the call.
    Target("... share of refusals with RetryInfo", ("burst", "advised_share"), 0.95, at_least=True),
    # Memory is bounded if it stops growing, here between the middle third of the time and the last.
    Target("... growth of memory", ("burst", "memory_growth"), 1.1, unit=" times"),
    Target("... back to normal after", ("burst", "back_to_normal_seconds"), 5, unit=" s"),
    Target("beside a bank that hangs: rate at another, share", ("banks", "rate_share"), 0.95, at_least=True),
    Target("... p99 there", ("banks", "p99_times"), 1.2, unit=" times"),
    Target("rebuild of a view, records/s", ("rebuild", "records_a_second"), 150_000, at_least=True),
    # Each read encodes once, so that a count of reads counts both. One read for all readers gives 1, one read for each gives
    # 100. The bound leaves room for a reader that falls eight batches behind the others and reads again.
    Target("100 live readers: times that a record is read and encoded", ("readers", "reads_a_record"), 2),
    Target("start, 1 million records, 10,000 unfinished: serving", ("start", "serving_after_seconds"), 2, unit=" s"),
    Target("... all finished", ("start", "finished_after_seconds"), 30, unit=" s"),
    Target("CPU a charge, 5 million records against 10 thousand", ("growth", "cpu_ratio"), 1.15, unit=" times"),
    Target("bytes on disk a record beyond its event's own", ("growth", "bytes_beyond_event"), 110),
)


def verdicts(found: Mapping[str, Any]) -> list[dict[str, object]]:
    """All targets with their verdicts, in the form of bench.json. In a small run no target counts as met."""
    of_what = ", in a small run" if found.get("quick") else ""
    lines: list[dict[str, object]] = []
    for target in TARGETS:
        value, verdict = target.judge(found)
        lines.append({"what": target.what, "value": value, "wanted": target.wanted, "verdict": verdict.value + of_what})
    return lines


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts for a terminal."""
    return "\n".join(
        f"  {line['what']:<66}{shown(line['value']):>10}   {line['wanted']:<22}{line['verdict']}" for line in lines
    )


def shown(value: float | None) -> str:
    """A figure for people."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
