"""The journal's tables in PostgreSQL, in a schema of their own. `migrate` makes them; no server does.

The journal is written under the lock of `head`'s one row, which every writer takes first. So positions come from that row and
not from a sequence: a sequence gives out numbers before their transactions end, in another order than they become visible,
and loses those of transactions that are rolled back.
"""

from collections.abc import Mapping, Sequence
from typing import Final

FORMAT: Final = 2
"""Raised by each change of these tables, and by events that an older program would take for others. A server serves from tables
of its own format only.

With a minus sign it is that of a journal that is served from another place, which `home` names: so no server serves from it.
"""

# Since format 2 a request may name its bank.
UPGRADES: Final[Mapping[int, Sequence[str]]] = {1: ()}
"""By format: the statements that make the next one of it."""

SCHEMA: Final = (
    "CREATE SCHEMA chargeonce",
    # One row: where the journal ends. `chain` is that of the newest record, `recorded_at` its time in microseconds since 1970.
    # `home` names the place that the journal is served from if that is not here: this is a copy, or it was moved. That place is
    # nowhere if a server found that records are missing which had been acknowledged.
    """
    CREATE TABLE chargeonce.head (
        is_one boolean PRIMARY KEY DEFAULT true CHECK (is_one),
        format integer NOT NULL,
        journal_id uuid NOT NULL,
        restored boolean NOT NULL,
        position bigint NOT NULL,
        chain bytea NOT NULL,
        recorded_at bigint NOT NULL,
        home text NOT NULL DEFAULT ''
    ) WITH (fillfactor = 10)
    """,  # the row changes at each commit: with room on its page it stays there, and no index is touched
    """
    CREATE TABLE chargeonce.record (
        position bigint PRIMARY KEY,
        charge_id bytea NOT NULL CHECK (octet_length(charge_id) = 16),
        version integer NOT NULL,
        recorded_at bigint NOT NULL,
        chain bytea NOT NULL,
        event bytea NOT NULL,
        UNIQUE (charge_id, version)
    )
    """,
    # The streams that are not finished, each with the server that drives it; NULL: none.
    "CREATE TABLE chargeonce.unfinished (charge_id bytea PRIMARY KEY, server uuid)",
    # The servers at work, and until when each is known to be, by the database's clock.
    """
    CREATE TABLE chargeonce.server (
        server uuid PRIMARY KEY,
        name text NOT NULL,
        format integer NOT NULL,
        until timestamptz NOT NULL
    )
    """,
)


def wrong_format(found: int) -> str:
    """Say why a server does not serve from tables of another format than its own, and the way out."""
    if found < 0:
        return (
            "the database's journal is not to be served from here: it is a copy, or it was moved, or records that were "
            "acknowledged are missing; verify-journal tells which. To serve a copy, stop the servers at the other place and "
            "run copy-journal --move from there to here; if records are missing, run restore"
        )
    if found < FORMAT:
        return f"the database's journal has format {found}, and this program's is {FORMAT}: run migrate"
    return f"the database's journal has format {found}, and this program knows format {FORMAT}: use the version that wrote it"
