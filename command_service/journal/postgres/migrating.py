"""How a journal's tables are made, and brought up to date: by an operator's command, and by no server."""

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from command_service.journal import GENESIS, JournalRefused
from command_service.journal.postgres.primary import Primary, primary
from command_service.journal.postgres.schema import FORMAT, SCHEMA, UPGRADES
from command_service.journal.postgres.url import Url

# One `migrate` at a time: its number is the word "charge" in ASCII.
LOCK = f"SELECT pg_advisory_xact_lock({int.from_bytes(b'charge')})"
INSERT_HEAD = """
INSERT INTO chargeonce.head (format, journal_id, restored, position, chain, recorded_at) VALUES ($1, $2, false, 0, $3, 0)
"""
SELECT_MADE = "SELECT to_regnamespace('chargeonce') IS NOT NULL, to_regclass('chargeonce.head') IS NOT NULL"
MAY_CREATE = """
SELECT current_user, current_database(), CASE WHEN $1 THEN has_schema_privilege('chargeonce', 'CREATE')
    ELSE has_database_privilege(current_database(), 'CREATE') END
"""
SELECT_OLDER = """
SELECT name, format FROM chargeonce.server WHERE format < $1 AND until > clock_timestamp() ORDER BY name
"""
SET_FORMAT = "UPDATE chargeonce.head SET format = $1"


def migrate(
    url: Url, new_id: Callable[[], str], *, to: int = FORMAT, upgrades: Mapping[int, Sequence[str]] = UPGRADES
) -> str:
    """Make the tables under a new journal id, or upgrade them to a format, in one transaction. Returns what was done.

    Raises JournalRefused, and nothing is changed then.
    """
    with primary(url) as connection, connection.transaction():
        connection.fetch(LOCK)
        ((has_schema, has_journal),) = connection.fetch(SELECT_MADE)
        if not has_journal:
            return _make(url, connection, new_id(), has_schema=has_schema)
        found = connection.head_of_any_format(lock=True)
        written = abs(found.format)
        if written > to or not all(each in upgrades for each in range(written, to)):
            raise JournalRefused(
                f"the journal {url} has format {written}; this program knows format {to}: use the version that wrote it"
            )
        if written == to:
            where = f", which is served from {found.home}" if found.home else ""
            return f"nothing to do: the journal {found.journal_id}{where} has format {to}"
        if older := connection.fetch(SELECT_OLDER, to):
            raise JournalRefused(
                f"a server of an older version is at work on the journal {url} ("
                + "; ".join(f"{name}, format {its}" for name, its in older)
                + "): stop it first. One that was killed counts as at work for some seconds more"
            )
        for each in range(written, to):
            for statement in upgrades[each]:
                connection.execute(statement)
        connection.fetch(SET_FORMAT, -to if found.home else to)
        return f"upgraded the journal {found.journal_id} from format {written} to {to}"


def _make(url: Url, connection: Primary, journal_id: str, *, has_schema: bool) -> str:
    """Make the tables. An administrator may have made the schema, for a role that may make none."""
    ((role, database, may_create),) = connection.fetch(MAY_CREATE, has_schema)
    if not may_create:
        raise JournalRefused(
            f"the role {role} may not make the journal in {url}: run GRANT CREATE ON DATABASE {database} TO {role} as its "
            f"owner, or CREATE SCHEMA chargeonce AUTHORIZATION {role}"
        )
    for statement in SCHEMA[1:] if has_schema else SCHEMA:
        connection.execute(statement)
    connection.fetch(INSERT_HEAD, FORMAT, UUID(journal_id), GENESIS)
    return f"made the journal {journal_id} in {url}, format {FORMAT}"
