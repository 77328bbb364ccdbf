"""What a command server observes of its work: one line for each kind of work, and where it is done, one `with`."""

from collections.abc import Callable, Sequence

from chassis.instruments import Counter, Histogram, Instrument
from chassis.observing import Work, calls_observed
from chassis.tracing import Tracer

# A bank answers from within a millisecond, in a test, to its deadline.
BANK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# A commit takes a sync of the disk or a round trip to a database and its standby.
COMMIT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
COMMIT_RECORDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Observed:
    """The observations of one command server."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0, tracer: Tracer | None = None) -> None:
        """`clock` gives seconds from any start."""
        self.calls = calls_observed(clock, tracer)
        self.bank_durations = Histogram(
            "bank_call_duration_seconds",
            "Duration of one step at a bank, in one call or several, without the wait for its turn",
            BANK_SECONDS,
            ("bank", "step", "operation", "answer"),
        )
        self.bank_calls = Work("bank call", self.bank_durations, clock, tracer)
        commit_durations = Histogram(
            "journal_commit_duration_seconds", "Duration of a commit of the journal that succeeded", COMMIT_SECONDS
        )
        self.commits = Work("commit", commit_durations, clock)  # shared by many calls: no trace is its own
        self.appends = Work("append", None, clock, tracer)
        self.commit_records = Histogram("journal_commit_records", "Records of a commit", COMMIT_RECORDS)
        self.commit_failures = Counter(
            "journal_commit_failures_total",
            "Commits that stored nothing: the disk was full, or another program held the journal",
            ("why",),
            known=[("full",), ("busy",)],
        )
        self.feed_records = Counter("feed_records_total", "Records sent to readers of the feed, to each reader")
        self.charge_faults = Counter("charge_faults_total", "Times that a fault of ours stopped a charge on its way")
        self.taking_up = Work("charge taken up", None, clock, tracer)

    @property
    def instruments(self) -> Sequence[Instrument]:
        """All that is read, besides the gauges."""
        histograms = (self.calls.durations, self.bank_calls.durations, self.commits.durations, self.commit_records)
        counters = (self.commit_failures, self.feed_records, self.charge_faults)
        return [each for each in (*histograms, *counters) if each is not None]


UNOBSERVED = Observed()
"""For parts that are made without a server: nobody reads it."""
