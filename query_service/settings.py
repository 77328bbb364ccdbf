"""What can be set about the query server, and why."""

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
        "one or more command servers of one journal, comma-separated: when one is lost, the next is followed",
    )
    view: Path = setting(
        "QUERY_VIEW", file_path, state_file("view.db"), "the file of the view; it may be removed, and is built again"
    )
    max_calls: int = setting(
        "QUERY_MAX_CALLS",
        whole(1, 100_000),
        "1000",
        "queries at once, and as many more that wait for a position: one thread reads, and more than a fraction of a "
        "second's work would only queue",
    )
    max_watchers: int = setting(
        "QUERY_MAX_WATCHERS", whole(1, 1_000_000), "10000", "charges watched at once: each holds an open stream"
    )
    drain_seconds: float = setting(
        "QUERY_DRAIN_SECONDS",
        number(0, 600),
        "10",
        "how long calls under way may take when the server is asked to stop",
    )
    reflection: bool = setting(
        "QUERY_REFLECTION", yes_or_no, "yes", "lets grpcurl and buf curl work without .proto files"
    )
    metrics_listen: Address | None = setting(
        "QUERY_METRICS_LISTEN", optional_address, "", "where Prometheus reads; nothing means nowhere"
    )
