"""The statements of the journal in PostgreSQL, through asyncpg.

* No state of a session is relied on: what a transaction needs is set in it, and LISTEN is a hint. So a pooler may stand
  between, if it keeps prepared statements.
* No call of asyncpg is cancelled or timed. It would cancel the statement, and PostgreSQL takes a cancelled wait for the standby
  for the end of the wait: the commit stands, and others see it (facts: docs/postgresql.md). The connection is cut instead.
"""

import asyncio
import socket
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg

from command_service.journal import JournalCorrupt, JournalRefused, Place
from command_service.journal.postgres.schema import FORMAT
from command_service.journal.postgres.session import HeadRow, Lost, Standing, Undone
from command_service.journal.records import RECORDS_A_READ, Row, Verifiable
from command_service.journal.store import Head

T = TypeVar("T")

CONNECT_SECONDS = 3.0
# After this long without an answer of the other machine's network, a connection is dead: a commit may wait for the standby
# for any time, and so nothing above the network may say so.
SILENT_SECONDS = 10
# Of a statement that takes the head's lock, and of a server that holds it and stands still. Both in milliseconds.
LOCK_MILLISECONDS: Final = 5_000
IDLE_MILLISECONDS: Final = 5_000
CHANNEL: Final = "chargeonce"

STANDING: Final = """
SELECT pg_is_in_recovery(),
    CASE WHEN pg_is_in_recovery() THEN 0
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END
"""
# Without the warning, a wait for the standby that was ended would pass for a commit that has come there.
BEGIN: Final = f"""
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = {LOCK_MILLISECONDS};
SET LOCAL idle_in_transaction_session_timeout = {IDLE_MILLISECONDS}
"""
# What is found of synchronous_commit holds to the end of the transaction, whatever an operator sets meanwhile.
_HEAD: Final = """
SELECT position, chain, recorded_at, journal_id, restored, format,
    set_config('synchronous_commit', current_setting('synchronous_commit'), true),
    current_setting('synchronous_standby_names') <> ''
"""
SELECT_HEAD: Final = f"{_HEAD} FROM chargeonce.head"
# A statement of its own sees what was committed while the lock was waited for. One that also waits for the lock would not.
LOCK_HEAD: Final = "SELECT FROM chargeonce.head FOR UPDATE"
SHARE_HEAD: Final = "SELECT FROM chargeonce.head FOR SHARE"
# One step into the index for each stream, whatever the planner believes of the table's size.
SELECT_HEAD_AND_VERSIONS: Final = f"""
{_HEAD}, ARRAY (
    SELECT coalesce((SELECT version FROM chargeonce.record WHERE charge_id = key ORDER BY version DESC LIMIT 1), 0)
    FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (key, number) ORDER BY number
) FROM chargeonce.head
"""  # noqa: S608  # a constant of this module
# One round trip for all that a commit changes.
INSERT: Final = f"""
WITH stored AS (
    INSERT INTO chargeonce.record (position, charge_id, version, recorded_at, chain, event)
    SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::integer[], $4::bigint[], $5::bytea[], $6::bytea[])
), moved AS (
    UPDATE chargeonce.head SET position = $7, chain = $8, recorded_at = $9
    RETURNING CASE WHEN EXISTS (SELECT FROM chargeonce.server WHERE server <> $12::text::uuid AND until > now())
        THEN pg_notify('{CHANNEL}', $12::text) END
), ended AS (
    DELETE FROM chargeonce.unfinished WHERE charge_id = ANY($10::bytea[])
)
INSERT INTO chargeonce.unfinished (charge_id, server) SELECT key, $12::text::uuid FROM unnest($11::bytea[]) AS key
ON CONFLICT DO NOTHING RETURNING charge_id
"""  # noqa: S608  # a constant of this module
CONDEMN: Final = "UPDATE chargeonce.head SET format = -format, home = $1 WHERE format > 0"
# A transaction that writes to the log, and so waits for the standby like any other; those before it have come there as well.
# It is begun like any other: that transaction ids run out is warned of before the commit, at each that is given.
CONFIRM: Final = f"""
{BEGIN};
SELECT set_config('synchronous_commit', 'on', true), pg_logical_emit_message(true, 'chargeonce', '')
"""
_VERIFIABLE: Final = """
SELECT it.position, it.charge_id, it.version, it.recorded_at, it.chain, it.event, before.chain
FROM chargeonce.record AS it LEFT JOIN chargeonce.record AS before ON before.position = it.position - 1
"""
SELECT_STREAM: Final = f"{_VERIFIABLE} WHERE it.charge_id = $1 ORDER BY it.version"
SELECT_AT: Final = f"{_VERIFIABLE} WHERE it.position = $1"
SELECT_AFTER: Final = f"""
SELECT position, charge_id, version, recorded_at, chain, event FROM chargeonce.record
WHERE position > $1 AND position <= $2 ORDER BY position LIMIT {RECORDS_A_READ}
"""  # noqa: S608  # a constant
SELECT_STREAMS_BETWEEN: Final = (
    "SELECT DISTINCT charge_id FROM chargeonce.record WHERE position > $1 AND position <= $2"
)
SELECT_UNFINISHED: Final = "SELECT charge_id FROM chargeonce.unfinished ORDER BY charge_id"

# Leases save work, and no more: their commits do not wait for the standby, and are kept up while it is away.
_QUICK: Final = "(SELECT set_config('synchronous_commit', 'local', true)) AS quick"
REGISTER: Final = f"""
INSERT INTO chargeonce.server (server, name, format, until)
SELECT $1::uuid, $2, $3::integer, now() + make_interval(secs => $4) FROM {_QUICK}
"""  # noqa: S608  # a constant
FORGET_OLD: Final = "DELETE FROM chargeonce.server WHERE until < now() - interval '1 day'"
RENEW: Final = f"""
UPDATE chargeonce.server SET until = now() + make_interval(secs => $2) FROM {_QUICK}
WHERE server = $1::uuid AND until > now() RETURNING true
"""  # noqa: S608  # a constant
CLAIM: Final = f"""
WITH free AS (
    SELECT charge_id FROM chargeonce.unfinished AS left_alone
    WHERE NOT EXISTS (SELECT FROM chargeonce.server WHERE server = left_alone.server AND until > now())
    ORDER BY charge_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE chargeonce.unfinished AS it SET server = $1::uuid FROM free, {_QUICK}
WHERE it.charge_id = free.charge_id RETURNING it.charge_id
"""  # noqa: S608  # a constant
SELECT_DRIVEN: Final = (
    "SELECT charge_id FROM chargeonce.unfinished WHERE charge_id = ANY($2::bytea[]) AND server = $1::uuid"
)
RELEASE: Final = f"""
WITH gone AS (DELETE FROM chargeonce.server WHERE server = $1::uuid)
UPDATE chargeonce.unfinished SET server = NULL FROM {_QUICK} WHERE server = $1::uuid
"""  # noqa: S608  # a constant

# By SQLSTATE (postgresql.org/docs/current/errcodes-appendix.html).
_LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # it has become a standby
)
_NEVER = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


class PostgresNode:
    """A node that asyncpg connects to."""

    def __init__(self, host: str, port: int, arguments: Mapping[str, Any]) -> None:
        """`arguments` are those of asyncpg.connect, beside host and port."""
        self.name = f"{host}:{port}"
        self._host, self._port = host, port
        self._arguments = arguments

    async def connect(self) -> "Statements":
        """Open a connection; see the seam."""
        try:
            connection = await asyncpg.connect(
                host=self._host,
                port=self._port,
                **{
                    "timeout": CONNECT_SECONDS,
                    "server_settings": {"application_name": "chargeonce"},
                    **self._arguments,
                },
            )
        except _NEVER as error:
            raise JournalRefused(f"{self.name} refuses the connection: {error}") from error
        except (*_LOST, asyncpg.PostgresError, TimeoutError) as error:
            raise Lost(f"{self.name}: {error or type(error).__name__}") from error
        return Statements(connection)


class Statements:
    """A session over asyncpg. See `session.Session`."""

    def __init__(self, connection: "asyncpg.Connection[Any]") -> None:
        self._connection = connection
        self._was_warned = False
        self._has_news = asyncio.Event()
        connection.add_log_listener(self._note)
        _watch_network(connection)

    def _note(self, _: object, message: Any) -> None:
        self._was_warned |= message.severity_en == "WARNING"

    async def standing(self) -> Standing:
        """Ask the node what it is; see the seam."""
        (row,) = await self._fetch(STANDING)
        return Standing(*row)

    # ------------------------------------------------------------ writing
    async def begin(self, keys: Sequence[bytes]) -> tuple[HeadRow, Mapping[bytes, int]]:
        """Begin a transaction, and lock the head; see the seam."""
        await self._run(self._connection.execute(f"{BEGIN}; {LOCK_HEAD}"))
        rows = await self._fetch(SELECT_HEAD_AND_VERSIONS, keys)
        return _head_row(rows), dict(zip(keys, rows[0][8], strict=True))

    async def insert(
        self, rows: Sequence[Row], head: Head, begun: Sequence[bytes], finished: Sequence[bytes], server: str
    ) -> Sequence[bytes]:
        """Store rows, and move the head; see the seam."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        newly = await self._fetch(
            INSERT, *columns, head.place.position, head.place.chain, head.recorded_at, finished, begun, server
        )
        return [key for (key,) in newly]

    async def commit(self) -> bool:
        """Commit; see the seam."""
        self._was_warned = False
        try:
            await self._run(self._connection.execute("COMMIT"))
        except (Undone, JournalRefused) as error:  # whatever it says: what became of it is looked up
            raise Lost(f"a commit failed: {error}") from error
        return not self._was_warned

    async def rollback(self) -> None:
        """Undo the transaction; see the seam."""
        await self._run(self._connection.execute("ROLLBACK"))

    async def confirm(self) -> bool:
        """Commit a transaction that changes nothing; see the seam."""
        await self._run(self._connection.execute(CONFIRM))
        return await self.commit()

    async def condemn(self, why: str) -> None:
        """Note that no server is to serve from this journal; see the seam."""
        await self._fetch(CONDEMN, why)

    # ------------------------------------------------------------ reading
    async def head(self) -> HeadRow:
        """Read the head; see the seam."""
        return _head_row(await self._fetch(SELECT_HEAD))

    async def stream(self, key: bytes) -> Sequence[Verifiable]:
        """Read a stream; see the seam."""
        return [tuple(row) for row in await self._fetch(SELECT_STREAM, key)]

    async def after(self, position: int, until: int) -> Sequence[Row]:
        """Read the records after a position; see the seam."""
        return [tuple(row) for row in await self._fetch(SELECT_AFTER, position, until)]

    async def at(self, position: int) -> Verifiable | None:
        """Read one record; see the seam."""
        rows = await self._fetch(SELECT_AT, position)
        return tuple(rows[0]) if rows else None

    async def streams_between(self, position: int, until: int) -> Sequence[bytes]:
        """List the streams of a stretch of records; see the seam."""
        return [key for (key,) in await self._fetch(SELECT_STREAMS_BETWEEN, position, until)]

    async def unfinished(self) -> Sequence[bytes]:
        """List the streams that are not finished; see the seam."""
        return [key for (key,) in await self._fetch(SELECT_UNFINISHED)]

    # ------------------------------------------------------------ leases
    async def register(self, server: str, name: str, seconds: float) -> HeadRow:
        """Note a server as at work; see the seam."""
        # `migrate`, `restore` and `copy-journal`, which lock the head, find the server, or it waits and finds what they did.
        await self._run(self._connection.execute(f"{BEGIN}; {SHARE_HEAD}"))
        found = _head_row(await self._fetch(SELECT_HEAD))
        await self._fetch(FORGET_OLD)
        await self._fetch(REGISTER, server, name, FORMAT, seconds)
        await self._run(self._connection.execute("COMMIT"))
        return found

    async def renew(self, server: str, seconds: float) -> bool:
        """Note that a server is still at work; see the seam."""
        return bool(await self._fetch(RENEW, server, seconds))

    async def claim(self, server: str, most: int) -> Sequence[bytes]:
        """Have a server drive streams that nobody drives; see the seam."""
        return [key for (key,) in await self._fetch(CLAIM, server, most)]

    async def driven(self, server: str, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Tell which of some streams a server drives; see the seam."""
        return [key for (key,) in await self._fetch(SELECT_DRIVEN, server, keys)]

    async def release(self, server: str) -> None:
        """Note that a server is no longer at work; see the seam."""
        await self._fetch(RELEASE, server)

    # ------------------------------------------------------------ the connection
    async def listen(self, server: str) -> None:
        """Have `news` hear of others' records; see the seam."""

        def hear(_connection: object, _pid: int, _channel: str, by: object) -> None:
            if by != server:
                self._has_news.set()

        await self._run(self._connection.add_listener(CHANNEL, hear))

    async def news(self, seconds: float) -> None:
        """Wait for records; see the seam."""
        if self._connection.is_closed():
            raise Lost("the connection has ended")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_news.wait()
        self._has_news.clear()

    def end(self) -> None:
        """Cut the connection."""
        self._connection.terminate()

    async def _fetch(self, statement: str, *values: object) -> Sequence[Any]:
        return await self._run(self._connection.fetch(statement, *values))

    async def _run(self, call: Awaitable[T]) -> T:
        """Make a call of asyncpg, and translate its errors. If we are cancelled the connection is cut, never the call."""
        calling = asyncio.ensure_future(call)
        try:
            with _translated():
                return await asyncio.shield(calling)
        except asyncio.CancelledError:
            self.end()
            calling.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise


@contextmanager
def _translated() -> Any:
    try:
        yield
    except asyncpg.DiskFullError as error:
        raise Undone(str(error), is_full=True) from error
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        raise JournalRefused(f"the database has no journal: {error}; `migrate` makes one") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise JournalRefused(
            f"the role may not use the journal: {error}. Let the role that ran migrate serve, or GRANT this one USAGE on the "
            "schema chargeonce and ALL on its tables"
        ) from error
    except asyncpg.SyntaxOrAccessError as error:  # the tables are not ours
        raise JournalRefused(f"the journal's database cannot be used: {error}") from error
    except (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError) as error:
        raise JournalCorrupt(None) from error
    except _LOST as error:
        raise Lost(str(error) or type(error).__name__) from error
    except asyncpg.PostgresError as error:  # whatever it says, it was not done, and it may go away
        raise Undone(str(error)) from error


def _head_row(rows: Sequence[Any]) -> HeadRow:
    if not rows:
        raise JournalRefused("the journal in the database has lost its head: restore it from a backup")
    position, chain, recorded_at, journal_id, restored, format_, synchronous_commit, has_standby, *_ = rows[0]
    head = Head(Place(position, chain), recorded_at)
    return HeadRow(head, str(uuid.UUID(str(journal_id))), restored, format_, synchronous_commit, has_standby)


def _watch_network(connection: "asyncpg.Connection[Any]") -> None:
    """Have the system notice that the other machine is gone, also while nothing is sent."""
    # asyncpg has no public way to its socket.
    transport: asyncio.Transport | None = getattr(connection, "_transport", None)
    found = transport.get_extra_info("socket") if transport is not None else None
    if found is None or found.family == socket.AF_UNIX:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", SILENT_SECONDS // 2),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", SILENT_SECONDS // 2),
        ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1_000),
    ):
        if hasattr(socket, option):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
