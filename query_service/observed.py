"""What a query server observes of its work."""

from collections.abc import Callable, Sequence

from chassis.instruments import Histogram, Instrument
from chassis.observing import Work, calls_observed
from chassis.tracing import Tracer

# From one record of a live feed to the batches of a rebuild.
BATCH_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_RECORDS = (1.0, 4.0, 16.0, 64.0, 256.0, 500.0, 1000.0, 4000.0, 16000.0)
QUERY_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Observed:
    """The observations of one query server."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0, tracer: Tracer | None = None) -> None:
        """`clock` gives seconds from any start."""
        self.calls = calls_observed(clock, tracer)
        batch_durations = Histogram(
            "view_batch_duration_seconds", "Duration of writing a batch of records to a view", BATCH_SECONDS
        )
        self.batches = Work("batch", batch_durations, clock)
        self.batch_records = Histogram("view_batch_records", "Records of a batch", BATCH_RECORDS)
        self.shown = Work("shown in the view", None, clock, tracer, attributes=("event", "position"))
        query_durations = Histogram(
            "query_duration_seconds",
            "Duration of a read of a view, by what is read, the wait for its turn included",
            QUERY_SECONDS,
            ("query",),
        )
        self.reads = Work("read", query_durations, clock, tracer)

    @property
    def instruments(self) -> Sequence[Instrument]:
        """All that is read, besides the gauges."""
        each = (self.calls.durations, self.batches.durations, self.batch_records, self.reads.durations)
        return [one for one in each if one is not None]


UNOBSERVED = Observed()
"""For parts that are made without a server: nobody reads it."""
