"""A journal in PostgreSQL as an operator reads it: whole, of one moment, beside its servers, and damage is named."""

import itertools

import pytest

from command_service.journal import JournalRefused, Place
from command_service.journal.postgres.place import PostgresPlace
from command_service.operate import print_journal, verify_journal
from tests.contract.moving import ALL, Places, contents, fetch


def test_a_whole_journal_is_verified_and_said_to_have_no_note_of_its_end(place: PostgresPlace) -> None:
    found = verify_journal(place)
    assert found.startswith(
        f"ok: {ALL} records of 37 charges, 7 unfinished, journal {contents(place).identity[0]}, chain "
    )
    assert found.endswith("a lost tail would not be seen")


def test_one_charge_is_printed_as_all_of_them_are(place: PostgresPlace) -> None:
    lines = list(print_journal(place, None))
    charge_id = lines[0].split()[1]
    assert list(print_journal(place, charge_id)) == [line for line in lines if charge_id in line]
    with pytest.raises(JournalRefused, match="holds no charge"):
        list(print_journal(place, "00000000-0000-4000-8000-000000000000"))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("UPDATE chargeonce.record SET event = event || '\\x00' WHERE position = 40", "the record at position 40"),
        ("UPDATE chargeonce.record SET recorded_at = 7 WHERE position = 1", "the record at position 1 "),
        ("DELETE FROM chargeonce.record WHERE position = 41", "the record at position 41"),
        (f"DELETE FROM chargeonce.record WHERE position = {ALL}", f"the record at position {ALL}"),
        (f"UPDATE chargeonce.head SET position = {ALL - 1}", f"its head is at position {ALL - 1}, and its newest"),
        (
            f"UPDATE chargeonce.head SET chain = '\\x{'00' * 32}'",
            f"its head is at position {ALL}, and its newest record",
        ),
        ("DELETE FROM chargeonce.unfinished", "the table of unfinished charges is wrong: 7 are missing"),
        (f"INSERT INTO chargeonce.unfinished VALUES ('\\x{'00' * 16}')", "0 are missing and 1 are at rest"),
        ("DELETE FROM chargeonce.head", "has lost its head"),
    ],
)
def test_damage_is_named(place: PostgresPlace, damage: str, why: str) -> None:
    fetch(str(place), damage)
    with pytest.raises(JournalRefused, match=why):
        verify_journal(place)


def test_a_record_that_the_index_has_lost_is_noticed(place: PostgresPlace) -> None:
    """By it a key finds its charge: a server would charge anew."""
    ready = "UPDATE pg_index SET indisready = {} WHERE indexrelid = 'chargeonce.record_charge_id_version_key'::regclass"
    for statement in (
        "CREATE TABLE kept AS SELECT * FROM chargeonce.record WHERE position = 44",
        "DELETE FROM chargeonce.record WHERE position = 44",
        ready.format("false"),
        "INSERT INTO chargeonce.record SELECT * FROM kept",
        ready.format("true"),
    ):
        fetch(str(place), statement)
    with pytest.raises(JournalRefused, match=rf"of {ALL} records {ALL - 1} are found by their charge.*REINDEX TABLE"):
        verify_journal(place)
    fetch(str(place), "REINDEX TABLE chargeonce.record")
    verify_journal(place)


def test_what_comes_after_the_moment_is_not_seen(place: PostgresPlace, places: Places) -> None:
    """Verifying goes on beside servers: the records, the unfinished charges and the head are of one moment."""
    with place.read(at_one_moment=True) as journal:
        first = list(itertools.islice(journal.records(), 5))
        fetch(str(place), "DELETE FROM chargeonce.unfinished")
        fetch(str(place), "DELETE FROM chargeonce.record WHERE position > 50")
        assert len(list(journal.records(Place(first[-1].position, first[-1].chain)))) == ALL - 5
        assert len(journal.unfinished()) == 7
        journal.check_tail()
        journal.check_indexes()


def test_a_journal_longer_than_one_read_is_read_whole(places: Places) -> None:
    place = places.full("postgres", 7_000)
    with place.read() as journal:
        assert [record.position for record in journal.records()] == list(range(1, 7_000 + 2 + 7 + 1))
        for position in (0, 1, 3_000, 3_001):
            assert journal.chain_at(position) == (contents(place).records[position - 1][4] if position else bytes(32))


def test_a_database_that_does_not_answer_is_told(places: Places) -> None:
    place = PostgresPlace.of("postgresql://me@127.0.0.1:1/charges")
    with pytest.raises(JournalRefused, match=r"there is no primary to be reached at .*127\.0\.0\.1:1: "):
        verify_journal(place)


def test_a_connection_that_ends_is_told(place: PostgresPlace) -> None:
    with pytest.raises(JournalRefused, match="cannot be used"), place.read(at_one_moment=True) as journal:
        fetch(
            str(place),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
            "pg_backend_pid()",
        )
        list(journal.records())
