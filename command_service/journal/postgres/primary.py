"""A connection to the primary for an operator's command, whose calls block: no event loop may run in the same thread.

A server has connections of its own (`cluster.py`), which outlive a failover. A command ends with its connection, and is run
again.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import asyncpg

from command_service.journal import JournalCorrupt, JournalRefused, Place
from command_service.journal.postgres.access import arguments_of
from command_service.journal.postgres.schema import FORMAT
from command_service.journal.postgres.statements import CONNECT_SECONDS, STANDING
from command_service.journal.postgres.url import Url

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[Any]"

CLOSE_SECONDS = 5.0
SELECT_HEAD = """
SELECT format, journal_id::text, restored, position, chain, home FROM chargeonce.head
"""
SELECT_SERVERS = "SELECT name FROM chargeonce.server WHERE until > clock_timestamp() ORDER BY name"
# A transaction of ours may be long, and the head's lock is held for milliseconds by a server that is at work.
NO_TIMEOUTS = """
SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = '10s'
"""


class Found(NamedTuple):
    """The row of the head."""

    format: int
    journal_id: str
    restored: bool
    place: Place
    home: str


class Primary:
    """The connection. Each call raises JournalRefused, with what PostgreSQL says."""

    def __init__(self, url: Url, connection: Connection, runner: asyncio.Runner) -> None:
        """Use `primary`."""
        self._url = url
        self._connection = connection
        self._runner = runner

    def fetch(self, statement: str, *values: object) -> Sequence[Any]:
        """Do a statement and return its rows."""
        return self._run(self._connection.fetch(statement, *values))

    def execute(self, statements: str) -> None:
        """Do statements without values."""
        self._run(self._connection.execute(statements))

    def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Store rows with COPY."""
        self._run(
            self._connection.copy_records_to_table(table, schema_name="chargeonce", columns=columns, records=rows)
        )

    @contextlib.contextmanager
    def transaction(self, mode: str = "") -> Iterator[None]:
        """Do all calls of the context in one transaction, or none of them."""
        self.execute(f"BEGIN {mode}")
        try:
            self.execute(NO_TIMEOUTS)
            yield
        except BaseException:
            with contextlib.suppress(JournalRefused):
                self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def head(self, *, lock: bool = False) -> Found:
        """Read the head, and lock it if told so: no server commits or starts before the transaction's end.

        Raises JournalRefused for tables of another format.
        """
        found = self.head_of_any_format(lock=lock)
        if abs(found.format) != FORMAT:
            raise JournalRefused(
                f"the journal {self._url} has format {abs(found.format)}; this program knows format {FORMAT}: run migrate, or "
                "use the version that wrote it"
            )
        return found

    def head_of_any_format(self, *, lock: bool = False) -> Found:
        """Read the head of tables that may be older or newer."""
        rows = self.fetch(f"{SELECT_HEAD} FOR UPDATE" if lock else SELECT_HEAD)
        if not rows:
            raise JournalRefused(f"the journal {self._url} has lost its head: restore it from a backup")
        written, journal_id, restored, position, chain, home = rows[0]
        return Found(written, journal_id, restored, Place(position, chain), home)

    def refuse_servers(self) -> None:
        """See that no server is at work. With the head's lock, none begins. Raises JournalRefused."""
        if names := [name for (name,) in self.fetch(SELECT_SERVERS)]:
            raise JournalRefused(
                f"a server is at work on the journal {self._url} ({'; '.join(names)}): stop it first. One that was killed "
                "counts as at work for some seconds more"
            )

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(call)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
            raise JournalRefused(f"the database {self._url} has no journal: run migrate, which makes one") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise JournalRefused(f"the journal {self._url} cannot be used: {error or type(error).__name__}") from error


@contextlib.contextmanager
def primary(url: Url) -> Iterator[Primary]:
    """Connect to the primary. Raises JournalRefused, also for damage that is met while the context lasts."""
    with asyncio.Runner() as runner:
        connection = runner.run(_connect(url))
        try:
            yield Primary(url, connection, runner)
        except JournalCorrupt as error:
            raise JournalRefused(f"the journal {url} is damaged: {error}. Restore a backup.") from error
        finally:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                runner.run(connection.close(timeout=CLOSE_SECONDS))


async def _connect(url: Url) -> Connection:
    """Connect to the node that takes writes; of two, to the one of the higher timeline: the other was replaced by it."""
    arguments = arguments_of(url)
    found: list[tuple[int, Connection]] = []
    problems: list[str] = []
    for node in url.nodes:
        try:
            connection = await asyncpg.connect(
                host=node.host,
                port=node.port,
                timeout=CONNECT_SECONDS,
                server_settings={"application_name": "chargeonce"},
                **arguments,
            )
            is_standby, timeline = (await connection.fetch(STANDING))[0]
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            problems.append(f"{node}: {error or type(error).__name__}")
            continue
        if is_standby:
            problems.append(f"{node} is a standby, which may lack records")
            await connection.close()
        else:
            found.append((timeline, connection))
    if not found:
        raise JournalRefused(f"there is no primary to be reached at {url}: {'; '.join(problems)}")
    found.sort(key=lambda each: each[0])
    for _, connection in found[:-1]:
        await connection.close()
    return found[-1][1]
