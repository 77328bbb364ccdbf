"""The query server's settings, and the reasons for their defaults."""

from dataclasses import dataclass
from pathlib import Path

from chassis.settings import (
    Address,
    address,
    address_lists,
    file_path,
    number,
    optional_address,
    optional_path,
    optional_url,
    setting,
    state_file,
    whole,
    yes_or_no,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The query server's settings."""

    listen: Address = setting("QUERY_LISTEN", address, "127.0.0.1:50052", "where clients send queries")
    feeds: tuple[tuple[Address, ...], ...] = setting(
        "QUERY_FEED",
        address_lists,
        "127.0.0.1:50053",
        "one or more command servers of one journal, comma-separated: after the loss of one the next is followed; those of "
        "further journals come after a semicolon each, in an order that stays, since by it each journal has its view's file: "
        "in another order the views are built again",
    )
    tls: Path | None = setting(
        "QUERY_TLS",
        optional_path,
        "",
        "a folder with tls.crt, tls.key and ca.crt, the authorities of clients' certificates: with it all ports speak TLS; "
        "its files may be replaced at any time",
    )
    client_certificates: bool = setting(
        "QUERY_CLIENT_CERTIFICATES",
        yes_or_no,
        "yes",
        "with TLS each client must show a certificate of an authority in ca.crt; with no, none is asked for",
    )
    policy: Path | None = setting(
        "QUERY_POLICY",
        optional_path,
        "",
        "the TOML file that says who may do what; without it everybody may do everything, on this machine only; it may be "
        "replaced at any time",
    )
    is_open: bool = setting(
        "QUERY_OPEN",
        yes_or_no,
        "no",
        "yes allows addresses that other machines reach without TLS or without a policy, where everybody may then ask "
        "everything, and a feed of another machine without TLS",
    )
    feed_tls: Path | None = setting(
        "QUERY_FEED_TLS",
        optional_path,
        "",
        "a folder with ca.crt, the only authorities whose certificates the feed may show, and, if the feed asks for a "
        "certificate, tls.crt and tls.key; without the folder the feed is read in plaintext",
    )
    feed_token: Path | None = setting(
        "QUERY_FEED_TOKEN_FILE",
        optional_path,
        "",
        "a file with a bearer token that is shown to the feed, over TLS or to this machine only",
    )
    view: Path = setting(
        "QUERY_VIEW",
        file_path,
        state_file("view.db"),
        "the view's file; a removed one is rebuilt from the feed; the views of further journals lie beside it, as view-2.db",
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
        "QUERY_METRICS_LISTEN", optional_address, "", "where Prometheus reads the metrics; empty for nowhere"
    )
    traces: str = setting(
        "QUERY_TRACES",
        optional_url,
        "",
        "the collector that traces are sent to, by OTLP over HTTP, such as http://127.0.0.1:4318; empty for none; it needs the "
        "extra chargeonce[otel]",
    )
    traces_sampled: float = setting(
        "QUERY_TRACES_SAMPLED",
        number(0, 1),
        "0.01",
        "the share of the calls without a trace context that are traced; with one, the client's flag decides",
    )

    @property
    def views(self) -> tuple[Path, ...]:
        """The files of the views, one for each journal, in the order of their feeds."""
        others = range(2, len(self.feeds) + 1)
        return (self.view, *(self.view.with_stem(f"{self.view.stem}-{number}") for number in others))
