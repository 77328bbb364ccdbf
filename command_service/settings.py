"""The command server's settings, and the reasons for their defaults."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from chassis.settings import (
    Address,
    SettingsError,
    address,
    number,
    optional_address,
    optional_path,
    optional_url,
    setting,
    whole,
    yes_or_no,
)
from command_service.bank.addresses import bank_url
from command_service.currencies import MOST_DIGITS
from command_service.journal.location import DEFAULT, location
from command_service.journal.postgres.url import FORM
from command_service.journal.store import Location
from contract.currencies import EXPONENTS


def max_amounts(value: str) -> Mapping[str, int]:
    """Read caps in minor units by currency, as EUR=500000,IDR=999999999999; empty for the built-in caps."""
    caps: dict[str, int] = {}
    for part in value.split(",") if value.strip() else ():
        code, _, units = (each.strip() for each in part.partition("="))
        if code not in EXPONENTS or code in caps or not re.fullmatch(f"[1-9][0-9]{{0,{MOST_DIGITS - 1}}}", units):
            raise ValueError(
                "must be like EUR=500000,IDR=999999999999: each currency once, by its ISO 4217 code, "
                f"and 1 to {MOST_DIGITS} digits of minor units, more than zero"
            )
        caps[code] = int(units)
    return MappingProxyType(caps)


@dataclass(frozen=True, slots=True)
class Settings:
    """The command server's settings."""

    listen: Address = setting("COMMAND_LISTEN", address, "127.0.0.1:50051", "where clients send commands")
    feed_listen: Address = setting(
        "COMMAND_FEED_LISTEN",
        address,
        "127.0.0.1:50053",
        "where query servers read the feed: it shows every user's history",
    )
    tls: Path | None = setting(
        "COMMAND_TLS",
        optional_path,
        "",
        "a folder with tls.crt, tls.key and ca.crt, the authorities of clients' certificates: with it all ports speak TLS; "
        "its files may be replaced at any time",
    )
    client_certificates: bool = setting(
        "COMMAND_CLIENT_CERTIFICATES",
        yes_or_no,
        "yes",
        "with TLS each client must show a certificate of an authority in ca.crt; with no, none is asked for",
    )
    policy: Path | None = setting(
        "COMMAND_POLICY",
        optional_path,
        "",
        "the TOML file that says who may do what; without it everybody may do everything, on this machine only; it may be "
        "replaced at any time",
    )
    is_open: bool = setting(
        "COMMAND_OPEN",
        yes_or_no,
        "no",
        "yes allows addresses that other machines reach without TLS or without a policy: everybody there may do everything",
    )
    journal: Location = setting(
        "COMMAND_JOURNAL",
        location,
        DEFAULT,
        f"what holds the charges: a file, sqlite:///path, or a PostgreSQL database that several servers may share, {FORM}; "
        "the password of a database is in a file (passfile, PGPASSFILE or ~/.pgpass)",
    )
    journal_must_exist: bool = setting(
        "COMMAND_JOURNAL_MUST_EXIST",
        yes_or_no,
        "no",
        "yes refuses to begin a new journal: an empty folder may be a disk that is not mounted",
    )
    journal_any_file_system: bool = setting(
        "COMMAND_JOURNAL_ANY_FILE_SYSTEM",
        yes_or_no,
        "no",
        "yes allows file systems that are not known to keep locks and syncs, and risks the loss of acknowledged charges",
    )
    bank_url: str = setting("COMMAND_BANK_URL", bank_url, "http://127.0.0.1:8080", "the bank")
    bank_tls: Path | None = setting(
        "COMMAND_BANK_TLS",
        optional_path,
        "",
        "a folder for an https bank, with ca.crt, the only authorities trusted then, or with tls.crt and tls.key, the "
        "certificate shown to it, or with all; without ca.crt those authorities are trusted that browsers trust",
    )
    bank_timeout_seconds: float = setting(
        "COMMAND_BANK_TIMEOUT_SECONDS",
        number(0.05, 120),
        "10",
        "the time after which a call counts as unanswered and is made again",
    )
    bank_calls: int = setting(
        "COMMAND_BANK_CALLS", whole(1, 10_000), "128", "concurrent calls to the bank: more would only queue there"
    )
    banks: Path | None = setting(
        "COMMAND_BANKS",
        optional_path,
        "",
        "the TOML file that names several banks and the rule by which one is chosen for a charge, instead of the settings of "
        "the only bank; it is read at the start",
        instead_of=("COMMAND_BANK_URL", "COMMAND_BANK_TLS", "COMMAND_BANK_TIMEOUT_SECONDS", "COMMAND_BANK_CALLS"),
    )
    max_calls: int = setting("COMMAND_MAX_CALLS", whole(1, 100_000), "2000", "concurrent commands: each takes memory")
    max_unfinished: int = setting(
        "COMMAND_MAX_UNFINISHED",
        whole(1, 1_000_000),
        "20000",
        "the number of unfinished charges at which new ones are refused",
    )
    abandon_after_seconds: float = setting(
        "COMMAND_ABANDON_AFTER_SECONDS",
        number(1, 7 * 86_400),
        "3600",
        "the age at which a charge without a token is given up: its client waits no longer",
    )
    attention_after_seconds: float = setting(
        "COMMAND_ATTENTION_AFTER_SECONDS",
        number(1, 7 * 86_400),
        "600",
        "the age at which an unfinished charge is shown as needing attention",
    )
    duplicate_window_seconds: float = setting(
        "COMMAND_DUPLICATE_WINDOW_SECONDS",
        number(0, 7 * 86_400),
        "0",
        "the time within which a second charge of the same user, card, amount and currency is refused; 0 for never",
    )
    max_amounts: Mapping[str, int] = setting(
        "COMMAND_MAX_AMOUNTS",
        max_amounts,
        "",
        "the largest amount of a charge in these currencies, instead of the built-in cap",
    )
    reconciliations: Path | None = setting(
        "COMMAND_RECONCILIATIONS",
        optional_path,
        "",
        "the folder of the last reconciliations' results, for gauges and operators; empty for one beside the journal's "
        "file, and with a PostgreSQL database for none",
    )
    free_bytes: int = setting(
        "COMMAND_FREE_BYTES",
        whole(0, 1 << 50),
        str(16 << 20),
        "free space below which new charges are refused, so that those begun can finish",
    )
    drain_seconds: float = setting(
        "COMMAND_DRAIN_SECONDS",
        number(0, 600),
        "10",
        "the time that calls under way get to end when the server stops",
    )
    reflection: bool = setting(
        "COMMAND_REFLECTION", yes_or_no, "yes", "lets grpcurl and buf curl work without .proto files"
    )
    metrics_listen: Address | None = setting(
        "COMMAND_METRICS_LISTEN", optional_address, "", "where Prometheus reads the metrics; empty for nowhere"
    )
    traces: str = setting(
        "COMMAND_TRACES",
        optional_url,
        "",
        "the collector that traces are sent to, by OTLP over HTTP, such as http://127.0.0.1:4318; empty for none; it needs the "
        "extra chargeonce[otel]",
    )
    traces_sampled: float = setting(
        "COMMAND_TRACES_SAMPLED",
        number(0, 1),
        "0.01",
        "the share of the calls without a trace context that are traced; with one, the client's flag decides",
    )


def check_way_to(journal: Location, *, is_open: bool) -> None:
    """Refuse a way to the journal that others share and that is not verified. Raises SettingsError."""
    if journal.crosses_network_unverified and not is_open:
        raise SettingsError(
            f"settings cannot be used:\n  the journal {journal} is on another machine, and what answers there is not verified: "
            "add sslmode=verify-full&sslrootcert=FILE to its URL, or set COMMAND_OPEN=yes to let everybody on the way read and "
            "forge it"
        )
