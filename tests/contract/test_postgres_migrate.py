"""The tables of a journal in PostgreSQL are made and brought up to date by a command, all at once, and by no server."""

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from command_service.journal import JournalRefused
from command_service.journal.postgres.migrating import migrate
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.schema import FORMAT
from command_service.journal.postgres.url import parse
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import random_id
from rig.postgres import Node
from rig.postgres_pair import Pair
from tests.contract.moving import Places, contents, copy, fetch, serve, served

NEXT = FORMAT + 1
UPGRADES = {FORMAT: ("ALTER TABLE chargeonce.record ADD COLUMN note text", "CREATE TABLE chargeonce.note (note text)")}


@pytest.fixture
def place(postgres_url: str) -> PostgresPlace:
    """An empty database."""
    return PostgresPlace.of(postgres_url)


def upgrade(place: PostgresPlace, *more: str) -> str:
    """Bring a journal up to a made-up next format."""
    return migrate(place.url, random_id, to=NEXT, upgrades={FORMAT: (*UPGRADES[FORMAT], *more)})


def formats(place: PostgresPlace) -> tuple[int, bool]:
    """The format that the head says, and whether the tables have what the next one has."""
    ((written,),) = fetch(str(place), "SELECT format FROM chargeonce.head")
    ((has_note,),) = fetch(str(place), "SELECT to_regclass('chargeonce.note') IS NOT NULL")
    return written, has_note


def work(place: PostgresPlace, name: str, written: int, seconds: int) -> None:
    """Have a server of a format register."""
    fetch(
        str(place),
        "INSERT INTO chargeonce.server VALUES ($1, $2, $3, now() + make_interval(secs => $4))",
        *(random_id(), name, written, float(seconds)),
    )


def test_a_journal_is_made_once(place: PostgresPlace) -> None:
    assert place.migrate(new_id=lambda: "00000000-0000-4000-8000-000000000001") == (
        f"made the journal 00000000-0000-4000-8000-000000000001 in {place}, format {FORMAT}"
    )
    assert place.migrate() == (f"nothing to do: the journal 00000000-0000-4000-8000-000000000001 has format {FORMAT}")
    assert serve(place) == ("00000000-0000-4000-8000-000000000001", 0)


def test_no_server_makes_one(place: PostgresPlace) -> None:
    with pytest.raises(JournalRefused, match="migrate"):
        serve(place)
    assert fetch(str(place), "SELECT to_regnamespace('chargeonce')") == [(None,)]


def test_an_older_format_is_upgraded_with_its_records(places: Places) -> None:
    place = places.full("postgres")
    assert isinstance(place, PostgresPlace)
    before = contents(place)
    assert upgrade(place) == f"upgraded the journal {before.identity[0]} from format {FORMAT} to {NEXT}"
    assert formats(place) == (NEXT, True)
    assert contents(place) == before
    with pytest.raises(JournalRefused, match=f"format {NEXT}, and this program knows format {FORMAT}"):
        serve(place)


def test_an_upgrade_that_fails_changes_nothing(place: PostgresPlace) -> None:
    place.migrate()
    with pytest.raises(JournalRefused, match="has no journal"):
        upgrade(place, "DROP TABLE nowhere")
    assert formats(place) == (FORMAT, False)
    serve(place)


def test_a_making_that_fails_leaves_nothing(place: PostgresPlace) -> None:
    with pytest.raises(ValueError, match="badly formed"):
        place.migrate(new_id=lambda: "no UUID")
    assert fetch(str(place), "SELECT to_regnamespace('chargeonce')") == [(None,)]


def test_an_older_server_at_work_is_waited_for_by_its_operator(place: PostgresPlace) -> None:
    place.migrate()
    work(place, "host-a:7", FORMAT, 60)
    work(place, "host-b:8", NEXT, 60)
    with pytest.raises(
        JournalRefused, match=rf"older version is at work .*host-a:7, format {FORMAT}\): stop it"
    ) as refused:
        upgrade(place)
    assert "host-b" not in str(refused.value)
    assert formats(place) == (FORMAT, False)
    fetch(str(place), "UPDATE chargeonce.server SET until = now() - interval '1 ms' WHERE name = 'host-a:7'")
    upgrade(place)
    assert formats(place) == (NEXT, True)


def test_tables_of_the_first_format_are_upgraded(places: Places) -> None:
    """Of format 1, which knew no banks by name: a server of this version waits for `migrate`."""
    place = places.full("postgres")
    assert isinstance(place, PostgresPlace)
    before = contents(place)
    fetch(str(place), "UPDATE chargeonce.head SET format = 1")
    with pytest.raises(JournalRefused, match="migrate"):
        serve(place)
    assert place.migrate() == f"upgraded the journal {before.identity[0]} from format 1 to {FORMAT}"
    assert contents(place) == before


def test_a_real_server_at_work_is_noticed(place: PostgresPlace) -> None:
    place.migrate()
    with served(place), pytest.raises(JournalRefused, match="older version is at work"):
        upgrade(place)
    upgrade(place)


def test_a_newer_format_is_left_alone(place: PostgresPlace) -> None:
    place.migrate()
    upgrade(place)
    with pytest.raises(JournalRefused, match=f"has format {NEXT}; this program knows format {FORMAT}: use the version"):
        place.migrate()
    with pytest.raises(JournalRefused, match=f"has format {NEXT}"), place.read():
        pass


def test_a_copy_is_upgraded_and_stays_one(places: Places) -> None:
    source, target = places.full("sqlite"), places.database()
    copy(source, target)
    assert f"which is served from {source} has" in target.migrate()
    upgrade(target)
    assert formats(target) == (-NEXT, True)


def test_two_at_once_make_one_journal(place: PostgresPlace) -> None:
    command = [sys.executable, "-m", "command_service", "migrate"]
    both = [
        subprocess.Popen(
            command, env={"COMMAND_JOURNAL": str(place)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [running.communicate() for running in both]
    assert sorted(out.partition(" ")[0] for out, _ in said) == ["made", "nothing"], said


def test_a_role_that_may_not_make_a_schema_is_told_what_it_needs(place: PostgresPlace, postgres: Node) -> None:
    role = f"role_{place.url.database}"
    fetch(str(place), f"CREATE ROLE {role} LOGIN")
    limited = PostgresPlace(parse(str(place).replace("postgres@", f"{role}@")))
    with pytest.raises(
        JournalRefused,
        match=f"the role {role} may not .* GRANT CREATE ON DATABASE {place.url.database} TO {role} .* CREATE SCHEMA chargeonce",
    ):
        limited.migrate()
    fetch(str(place), f"CREATE SCHEMA chargeonce AUTHORIZATION {role}")
    assert limited.migrate().startswith("made the journal")
    serve(limited)


async def test_a_server_that_begins_meanwhile_waits_and_finds_what_was_done(places: Places) -> None:
    """Here the journal is left for another place: a server that had read the head before would serve from it."""
    place = await asyncio.to_thread(places.database)
    url = str(place)
    connection = await asyncpg.connect(url)
    async with connection.transaction():
        await connection.execute("SELECT FROM chargeonce.head FOR UPDATE")
        opening = asyncio.create_task(place.open())
        # On a connection of its own: a transaction sees the activities of its first look only.
        while not await asyncio.to_thread(
            fetch, url, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ):
            assert not opening.done()
            await asyncio.sleep(0.01)
        assert await connection.fetch("SELECT FROM chargeonce.server") == []
        await connection.execute("UPDATE chargeonce.head SET home = 'elsewhere', format = -format")
    with pytest.raises(JournalRefused, match="is not to be served from here"):
        await opening
    await connection.close()


async def test_a_standby_is_neither_migrated_nor_read_from() -> None:
    """Of several nodes the primary is found, whichever stands first."""
    async with Pair() as pair:
        standby = PostgresPlace.of(pair.standby.dsn())
        for attempt in (standby.migrate, lambda: standby.read().__enter__()):
            with pytest.raises(
                JournalRefused, match=r"no primary to be reached .* is a standby, which may lack records"
            ):
                await asyncio.to_thread(attempt)
        for nodes in ((pair.standby, pair.primary), (pair.primary, pair.standby)):
            both = PostgresPlace.of(f"postgresql://postgres@{','.join(node.address for node in nodes)}/postgres")
            await asyncio.to_thread(both.migrate)
        ((made,),) = await pair.primary.fetch("SELECT to_regclass('chargeonce.head') IS NOT NULL")
        assert made


def test_a_file_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    assert SqliteFile(path).migrate().startswith("nothing to do: a server makes the file")
    assert not path.exists()
