"""How an operator reads a journal in PostgreSQL: printing, verifying, copying, also beside the servers."""

import contextlib
from collections.abc import Collection, Iterator, Sequence

from command_service.journal import GENESIS, START, JournalCorrupt, JournalRefused, Place, Record
from command_service.journal.postgres.primary import Primary, primary
from command_service.journal.postgres.statements import SELECT_AT, SELECT_STREAM, SELECT_UNFINISHED
from command_service.journal.postgres.url import Url
from command_service.journal.records import following, id_of, key_of, verified

# A round trip costs as much as some hundred rows.
ROWS_A_READ = 3_000
SELECT_AFTER = f"""
SELECT position, charge_id, version, recorded_at, chain, event FROM chargeonce.record
WHERE position > $1 AND position <= $2 ORDER BY position LIMIT {ROWS_A_READ}
"""  # noqa: S608  # a constant
SELECT_LAST = "SELECT position, chain FROM chargeonce.record ORDER BY position DESC LIMIT 1"
# Each record is looked for by its stream and version, through the index that a key's charge is found by.
BY_INDEX_ONLY = """
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off; SET LOCAL enable_material = off; SET LOCAL max_parallel_workers_per_gather = 0
"""
COUNT_BY_INDEX = """
SELECT count(*) FROM (SELECT charge_id, version, position FROM chargeonce.record WHERE position > 0) AS it
CROSS JOIN LATERAL (
    SELECT position FROM chargeonce.record WHERE charge_id = it.charge_id AND version = it.version OFFSET 0
) AS found
WHERE found.position = it.position
"""


class PostgresReading:
    """A journal in PostgreSQL as an operator reads it. See `command_service.journal.store.Reading`."""

    is_anchored = False
    """The database has no note outside of itself: one that was put back to an earlier time looks whole."""

    def __init__(self, url: Url, connection: Primary) -> None:
        """Use `reading`."""
        self._url = url
        self._connection = connection
        found = connection.head()
        self.journal_id, self.restored, self.home, self.head = (
            found.journal_id,
            found.restored,
            found.home,
            found.place,
        )

    def records(self, after: Place = START) -> Iterator[Record]:
        """Read all records after a place, up to the head, each verified. Raises JournalCorrupt."""
        place, until = after, self.head.position
        while place.position < until:
            rows = self._connection.fetch(SELECT_AFTER, place.position, until)
            while read := following(map(tuple, rows), place, until):
                yield from read
                rows = rows[len(read) :]
                place = Place(read[-1].position, read[-1].chain)
                if not rows:
                    break

    def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position; see the port."""
        if position == 0:
            return GENESIS
        rows = self._connection.fetch(SELECT_AT, position)
        if not rows:
            raise JournalCorrupt(position)
        return verified(tuple(rows[0])).chain

    def stream(self, charge_id: str) -> Sequence[Record]:
        """Read one stream, verified; see the port."""
        return [verified(tuple(row)) for row in self._connection.fetch(SELECT_STREAM, key_of(charge_id))]

    def unfinished(self) -> Collection[str]:
        """List the streams that the database notes as unfinished."""
        return [id_of(key) for (key,) in self._connection.fetch(SELECT_UNFINISHED)]

    def check_tail(self) -> None:
        """See that the head is the newest record's, which a lost tail would belie. Raises JournalRefused."""
        rows = self._connection.fetch(SELECT_LAST)
        newest = Place(*rows[0]) if rows else START
        if newest != self.head:
            raise JournalRefused(
                f"the journal {self._url} is damaged: its head is at position {self.head.position}, and its newest record at "
                f"{newest.position}. Restore a backup."
            )

    def check_indexes(self) -> None:
        """Find each record by its stream and version in the index. The context must be of one moment. Raises JournalRefused."""
        self._connection.execute(BY_INDEX_ONLY)
        ((found,),) = self._connection.fetch(COUNT_BY_INDEX)
        if found != self.head.position:
            raise JournalRefused(
                f"the journal {self._url} is damaged: of {self.head.position} records {found} are found by their charge. Make "
                "the index anew (REINDEX TABLE chargeonce.record), and verify again"
            )


@contextlib.contextmanager
def reading(url: Url, *, at_one_moment: bool = False) -> Iterator[PostgresReading]:
    """Read a journal from its primary; see `Location.read`. Raises JournalRefused."""
    with primary(url) as connection, contextlib.ExitStack() as stack:
        if at_one_moment:
            stack.enter_context(connection.transaction("ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        yield PostgresReading(url, connection)
