"""A journal in PostgreSQL is backed up to a file, restored from one, and accepted after PostgreSQL's own tools restored it."""

import asyncio
import contextlib
import itertools
import sqlite3
from pathlib import Path
from typing import NoReturn

import pytest

from command_service import cli
from command_service.journal import JournalRefused, Place
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import restore_journal, verify_journal
from rig.postgres import Node, database, wait_for
from tests.contract.journal_rigs import PostgresRig, add, stream
from tests.contract.moving import ALL, Places, contents, copy, fetch, full, serve, served


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Where a backup is written."""
    return tmp_path / "backup.db"


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_backup_is_the_same_file_from_either_store(places: Places, backup: Path, kind: str) -> None:
    source = places.full(kind)
    with served(source):
        place = source.backup(backup)
    assert place.position == ALL
    assert contents(SqliteFile(backup)) == contents(source)
    assert backup.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in backup.parent.glob("backup.db*")) == ["backup.db"]
    assert verify_journal(SqliteFile(backup)).startswith(f"ok: {ALL} records of 37 charges, 7 unfinished")
    with pytest.raises(JournalRefused, match="exists already: name a new file"):
        source.backup(backup)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("to", ["sqlite", "postgres"])
def test_a_backup_is_restored_in_either_store_under_a_new_id(places: Places, backup: Path, kind: str, to: str) -> None:
    source, target = places.full(kind), places.empty(to)
    before = contents(source)
    source.backup(backup)
    journal_id, place = restore_journal(target, backup)
    after = contents(target)
    assert (after.records, after.unfinished) == (before.records, before.unfinished)
    assert after.identity == (journal_id, True)
    assert journal_id != before.identity[0]
    assert place.position == ALL
    assert "(restored)" in verify_journal(target)
    assert serve(target) == (journal_id, ALL)


async def test_a_backup_during_appends_is_an_exact_prefix(postgres_url: str, tmp_path: Path) -> None:
    rig = PostgresRig(postgres_url)
    copies: list[tuple[Path, Place]] = []
    async with rig.open() as journal:

        async def keep_appending() -> NoReturn:
            for number in itertools.count():
                await add(journal, stream(number), 0, [b"first"], finished=False)
                await add(journal, stream(number), 1, [b"second"], finished=True)
            raise AssertionError

        appending = asyncio.create_task(keep_appending())
        for number in range(5):
            await journal.beyond(journal.head.position + 20)
            to = tmp_path / f"backup-{number}.db"
            copies.append((to, await asyncio.to_thread(rig.place.backup, to)))
        appending.cancel()
        await asyncio.wait([appending])
    everything = await asyncio.to_thread(contents, rig.place)
    for to, place in copies:
        copied = contents(SqliteFile(to))
        assert copied.records == everything.records[: place.position]
        begun = {key for _, key, version, *_ in copied.records if version == 1}
        assert copied.unfinished == begun - {key for _, key, version, *_ in copied.records if version == 2}
    assert len({place.position for _, place in copies}) == len(copies)


def test_a_damaged_journal_makes_no_backup(place: PostgresPlace, backup: Path) -> None:
    fetch(str(place), "UPDATE chargeonce.record SET version = 9 WHERE position = 30")
    with pytest.raises(JournalRefused, match=f"{place} is damaged: the record at position 30 does not fit the chain"):
        place.backup(backup)
    assert not backup.exists()


def test_a_damaged_backup_leaves_the_database_as_it_was(places: Places, place: PostgresPlace, backup: Path) -> None:
    target = places.database()
    before = contents(target)
    place.backup(backup)
    with contextlib.closing(sqlite3.connect(backup, isolation_level=None)) as connection:
        connection.execute("UPDATE record SET event = x'00' WHERE position = 60")
    with pytest.raises(JournalRefused, match="the record at position 60 does not fit the chain"):
        restore_journal(target, backup)
    assert contents(target) == before
    serve(target)


def test_a_backup_is_not_restored_over_a_journal_nor_beside_a_server(
    places: Places, place: PostgresPlace, backup: Path
) -> None:
    place.backup(backup)
    before = contents(place)
    with pytest.raises(JournalRefused, match=f"holds the journal .*, with {ALL} records: name an empty database"):
        restore_journal(place, backup)
    assert contents(place) == before
    target = places.database()
    with served(target), pytest.raises(JournalRefused, match="a server is at work"):
        restore_journal(target, backup)
    with served(place), pytest.raises(JournalRefused, match="a server is at work"):
        restore_journal(place, None)


def test_the_unfinished_charges_are_made_anew_from_the_records(place: PostgresPlace) -> None:
    before = contents(place)
    fetch(str(place), "DELETE FROM chargeonce.unfinished")
    with pytest.raises(JournalRefused, match="Run restore, which makes it anew"):
        verify_journal(place)
    restore_journal(place, None)
    assert contents(place).unfinished == before.unfinished
    assert "(restored)" in verify_journal(place)


def test_a_damaged_database_is_not_accepted(place: PostgresPlace) -> None:
    fetch(str(place), f"DELETE FROM chargeonce.record WHERE position = {ALL}")
    before = contents(place)
    with pytest.raises(JournalRefused, match="its newest record at"):
        restore_journal(place, None)
    assert contents(place) == before


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_backup_of_a_copy_is_restored_to_be_served(places: Places, backup: Path, kind: str) -> None:
    """A restore gives a new id: it is another journal, and is served from where it is."""
    source, target, restored = places.full("sqlite"), places.empty(kind), places.database()
    copy(source, target)
    target.backup(backup)
    assert f"it is served from {source}" in verify_journal(SqliteFile(backup))
    restore_journal(restored, backup)
    serve(restored)
    restore_journal(target, None)
    serve(target)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_restore_of_a_copy_names_the_place_that_may_still_be_served(
    places: Places, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = places.full("sqlite"), places.empty(kind)
    copy(source, target)
    monkeypatch.setenv("COMMAND_JOURNAL", str(target) if kind == "postgres" else f"sqlite:///{target}")
    for expected in (True, False):  # once it is restored it is no copy any more
        cli.main(["restore"])
        assert (f"served from {source}: see that no server" in capsys.readouterr().out) is expected


def test_a_restore_that_is_killed_leaves_an_empty_database(places: Places, backup: Path) -> None:
    """It is one transaction: here PostgreSQL ends its connection half way."""
    full(backup)
    target = places.database()
    for statement in (
        "CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'",
        "CREATE TRIGGER end_it BEFORE INSERT ON chargeonce.unfinished FOR EACH ROW EXECUTE FUNCTION end_it()",
    ):
        fetch(str(target), statement)
    before = contents(target)
    with pytest.raises(JournalRefused, match="cannot be used"):
        restore_journal(target, backup)
    assert contents(target) == before
    fetch(str(target), "DROP TRIGGER end_it ON chargeonce.unfinished")
    restore_journal(target, backup)
    serve(target)


# ---------------------------------------------------------------- PostgreSQL's own tools
def test_a_dump_is_restored_and_accepted_under_a_new_id(places: Places, place: PostgresPlace, postgres: Node) -> None:
    """pg_dump and pg_restore, of the schema alone."""
    dump = postgres.folder / f"{place.url.database}.dump"
    wait_for(postgres.run("pg_dump", "-d", str(place), "-n", "chargeonce", "-Fc", "-f", dump))
    empty = PostgresPlace.of(wait_for(database(postgres)))
    wait_for(postgres.run("pg_restore", "-d", str(empty), "--no-owner", "--exit-on-error", dump))
    assert contents(empty) == contents(place)
    verify_journal(empty)
    journal_id, _ = restore_journal(empty, None)
    assert contents(empty).identity == (journal_id, True)
    assert serve(empty) == (journal_id, ALL)


def test_a_base_backup_is_restored_and_accepted_under_a_new_id(tmp_path: Path) -> None:
    """pg_basebackup while a server is at work: the copy believes so too, until the server's time has passed."""
    original, restored = Node(), Node()
    try:
        wait_for(original.start())
        place = Places(tmp_path, original).full("postgres")
        assert isinstance(place, PostgresPlace)
        before = contents(place)
        with served(place):
            wait_for(
                restored.run(
                    *("pg_basebackup", "-D", restored.data, "-d", original.dsn(), "--checkpoint=fast", "--no-sync")
                )
            )
        wait_for(restored.start())
        copied = PostgresPlace.of(restored.dsn(place.url.database))
        fetch(str(copied), "UPDATE chargeonce.server SET until = now() + interval '1 hour'")
        with pytest.raises(JournalRefused, match="a server is at work"):
            restore_journal(copied, None)
        fetch(str(copied), "UPDATE chargeonce.server SET until = now()")
        journal_id, _ = restore_journal(copied, None)
        after = contents(copied)
        assert (after.records, after.unfinished) == (before.records, before.unfinished)
        assert "(restored)" in verify_journal(copied)
        assert serve(copied) == (journal_id, ALL)
        assert fetch(str(copied), "SELECT FROM chargeonce.server") == []
    finally:
        restored.close()
        original.close()
