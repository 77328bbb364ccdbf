"""The query server's settings, and the reasons for their defaults."""

from dataclasses import dataclass
from pathlib import Path

from chassis.settings import (
    Address,
    address,
    addresses,
    file_path,
    number,
    optional_address,
    setting,
    state_file,
    whole,
    yes_or_no,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The query server's settings."""

    listen: Address = setting("QUERY_LISTEN", address, "127.0.0.1:50052", "where clients send queries")
    feed: tuple[Address, ...] = setting(
        "QUERY_FEED",
        addresses,
        "127.0.0.1:50053",
        "one or more command servers of one journal, comma-separated: after the loss of one the next is followed",
    )
    view: Path = setting(
        "QUERY_VIEW", file_path, state_file("view.db"), "the view's file; a removed one is rebuilt from the feed"
    )
    max_calls: int = setting(
        "QUERY_MAX_CALLS",
        whole(1, 100_000),
        "1000",
        "concurrent queries, and as many more that wait for a position: one thread reads, and beyond a fraction of a "
        "second's work calls would only queue",
    )
    max_watchers: int = setting(
        "QUERY_MAX_WATCHERS", whole(1, 1_000_000), "10000", "concurrent watches: each holds an open stream"
    )
    drain_seconds: float = setting(
        "QUERY_DRAIN_SECONDS",
        number(0, 600),
        "10",
        "the time that calls under way get to end when the server stops",
    )
    reflection: bool = setting(
        "QUERY_REFLECTION", yes_or_no, "yes", "lets grpcurl and buf curl work without .proto files"
    )
    metrics_listen: Address | None = setting(
        "QUERY_METRICS_LISTEN", optional_address, "", "where Prometheus reads the gauges; empty for nowhere"
    )
