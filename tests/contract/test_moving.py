"""A journal is copied and moved between its stores: nothing of it changes, and it is never served from two places."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_service.journal import JournalRefused, Place
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import RECORDS_A_CHUNK, Location
from command_service.operate import print_journal, verify_journal
from tests.contract.moving import ALL, Places, contents, copy, fetch, full, move, serve, served

WAYS = [("sqlite", "postgres"), ("postgres", "sqlite"), ("postgres", "postgres"), ("sqlite", "sqlite")]
KINDS = ["sqlite", "postgres"]


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_a_moved_journal_is_the_same_to_the_last_byte_and_served_from_there(places: Places, kind: str, to: str) -> None:
    """Positions, ids, times and chain stay, so that every view goes on."""
    source, target = places.full(kind), places.empty(to)
    before, printed = contents(source), list(print_journal(source, None))
    assert len(before.records) == ALL
    said = move(source, target)
    assert said.startswith(f"moved: {ALL} records copied, up to position {ALL}, chain {before.records[-1][4].hex()}")
    assert contents(target) == before
    assert list(print_journal(target, None)) == printed
    assert verify_journal(target).startswith(f"ok: {ALL} records of 37 charges, 7 unfinished")
    assert serve(target) == (before.identity[0], ALL)


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_a_copy_is_not_served_from_and_its_source_still_is(places: Places, kind: str, to: str) -> None:
    source, target = places.full(kind), places.empty(to)
    assert f"It is served from {source} as before" in copy(source, target)
    assert contents(target) == contents(source)
    with pytest.raises(JournalRefused, match=r"served from .*copy, or it was moved.* copy-journal --move"):
        serve(target)
    assert f"it is served from {source}" in verify_journal(target)
    serve(source)


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_a_journal_that_was_moved_is_not_served_from_and_can_come_back(places: Places, kind: str, to: str) -> None:
    source, target = places.full(kind), places.empty(to)
    before = contents(source)
    move(source, target)
    with pytest.raises(JournalRefused, match=r"served from .*copy, or it was moved"):
        serve(source)
    with pytest.raises(JournalRefused, match="which is served from there, and no copy"):
        move(source, target)
    assert move(target, source).startswith("moved: 0 records copied")
    with pytest.raises(JournalRefused, match="served from"):
        serve(target)
    assert serve(source) == (before.identity[0], ALL)
    assert contents(source) == before


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_an_interrupted_move_is_served_from_nowhere_and_goes_on(places: Places, kind: str, to: str) -> None:
    """It died after the old place was left, and before the new one was told."""
    source, target = places.full(kind), places.empty(to)
    copy(source, target)
    with source.read() as journal:
        head = journal.head
    source.leave(str(target), head)
    for place in (source, target):
        with pytest.raises(JournalRefused, match="served from"):
            serve(place)
    with pytest.raises(
        JournalRefused, match=f"is served from .*{to if to == 'postgres' else '.db'}.*: copy it from there"
    ):
        copy(source, target)
    assert move(source, target).startswith("moved: 0 records copied")
    serve(target)
    with pytest.raises(JournalRefused, match="served from"):
        serve(source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_journal_that_was_moved_on_is_not_moved_from_its_first_place_again(places: Places, kind: str) -> None:
    """Or the second and the third would both be served from."""
    first, second, third = places.full(kind), places.empty("postgres"), places.empty("sqlite")
    move(first, second)
    move(second, third)
    for attempt in (move, copy):
        with pytest.raises(JournalRefused, match=r"which is served from .*\.db, and no copy|copy it from there"):
            attempt(first, second)
        with pytest.raises(JournalRefused, match="copy it from there"):
            attempt(first, third)
    for place in (first, second):
        with pytest.raises(JournalRefused, match="served from"):
            serve(place)
    serve(third)


# ---------------------------------------------------------------- two moves at once
class Leaving:
    """A place at which something happens just before, or just after, it is left."""

    def __init__(
        self, place: Location, *, before: Callable[[], object] = str, after: Callable[[], object] = str
    ) -> None:
        self._place = place
        self._before, self._after = before, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def __str__(self) -> str:
        return str(self._place)

    def leave(self, home: str, head: Place) -> None:
        """Leave it."""
        self._before()
        self._place.leave(home, head)
        self._after()


def attempt(source: Location, target: Location) -> None:
    """Move a journal, which may be refused."""
    with contextlib.suppress(JournalRefused):
        move(source, target)


def served_from(*places: Location) -> list[Location]:
    """Those of the places that a server serves from."""
    found = []
    for place in places:
        with contextlib.suppress(JournalRefused):
            serve(place)
            found.append(place)
    return found


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_of_two_moves_at_once_to_two_places_one_is_done(places: Places, kind: str, to: str) -> None:
    source, one, other = places.full(kind), places.empty(to), places.empty(to)
    with pytest.raises(JournalRefused, match=f"is served from {re.escape(str(other))}"):
        move(Leaving(source, before=lambda: move(source, other)), one)
    assert served_from(source, one, other) == [other]


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_a_move_that_is_undone_in_its_midst_leaves_one_place_at_the_most(places: Places, kind: str, to: str) -> None:
    """And one that is run again then."""
    source, target = places.full(kind), places.empty(to)
    attempt(Leaving(source, after=lambda: attempt(target, source)), target)
    assert len(served_from(source, target)) <= 1
    attempt(Leaving(target, after=lambda: attempt(source, target)), source)
    assert len(served_from(source, target)) <= 1
    attempt(source, target)
    assert len(served_from(source, target)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_move_does_not_call_a_journal_back_from_where_it_was_moved_on_to(places: Places, kind: str) -> None:
    source, target, third = places.full(kind), places.database(), places.file()

    def meanwhile() -> None:
        move(source, target)
        move(target, third)

    with pytest.raises(JournalRefused, match=r"another program has copied to .* meanwhile, or moved the journal"):
        move(Leaving(source, before=meanwhile), target)
    assert served_from(source, target, third) == [third]


def test_a_slow_copy_leaves_the_charges_of_a_server_alone_that_serves_from_it_by_now(places: Places) -> None:
    """Its list of unfinished charges is older than theirs."""
    source, target = places.full("sqlite"), places.database()
    with source.read() as journal:
        identity = journal.journal_id
    with target.receive(identity, restored=False, home=str(source)) as slow:
        move(source, target)
        with pytest.raises(JournalRefused, match="meanwhile"):
            slow.note_unfinished(set())
    assert contents(target) == contents(source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_journal_is_not_moved_while_a_server_is_at_work_and_copied_all_the_same(places: Places, kind: str) -> None:
    source, target = places.full(kind), places.empty("postgres")
    with served(source):
        copy(source, target)
        with pytest.raises(
            JournalRefused, match=r"another server has the journal .* open|a server is at work .* stop it"
        ):
            move(source, target)
    assert contents(target) == contents(source)
    with pytest.raises(JournalRefused, match="served from"):
        serve(target)
    assert move(source, target).startswith("moved: 0 records copied")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_copied_to_where_a_server_is_at_work(places: Places, kind: str) -> None:
    source, target = places.full("sqlite"), places.empty(kind)
    with served(target), pytest.raises(JournalRefused, match=r"another server has|a server is at work"):
        copy(source, target)
    serve(source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_goes_on_after_what_it_has(places: Places, kind: str) -> None:
    """Here the journal grows by what it lacks: it was once a longer one, of which the first copy saw a part."""
    longer = places.full("sqlite", 300)
    assert isinstance(longer, SqliteFile)
    shorter, target = places.file(), places.empty(kind)
    with longer.read() as journal:
        head = journal.head
        some = [record for _, record in zip(range(100), journal.records(), strict=False)]
        with shorter.receive(journal.journal_id, restored=False, home=str(longer)) as part:
            part.store(some)
        with target.receive(journal.journal_id, restored=False, home=str(longer)) as part:
            part.store(some[:60])
            part.store(some[60:])
    assert copy(longer, target).startswith(
        f"copied: {head.position - 100} records copied, up to position {head.position}"
    )
    assert contents(target) == contents(longer)


def test_a_copy_that_is_killed_goes_on_after_its_last_chunk(places: Places, tmp_path: Path) -> None:
    source, target = full(tmp_path / "source.db", RECORDS_A_CHUNK + 400), places.database()
    url = str(target)
    for statement in (
        "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); END'",
        f"CREATE TRIGGER hang BEFORE INSERT ON chargeonce.record FOR EACH ROW WHEN (NEW.position = {RECORDS_A_CHUNK + 50}) "
        "EXECUTE FUNCTION hang()",
    ):
        fetch(url, statement)
    command = [sys.executable, "-m", "command_service", "copy-journal", f"sqlite:///{source}", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as copying:
        while not fetch(
            url, "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        ):
            assert copying.poll() is None, copying.stderr and copying.stderr.read()
            time.sleep(0.02)
        os.kill(copying.pid, signal.SIGKILL)
    fetch(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    fetch(url, "DROP TRIGGER hang ON chargeonce.record")
    with target.read() as journal:
        assert journal.head.position == RECORDS_A_CHUNK
    with pytest.raises(JournalRefused, match="served from"):
        serve(target)
    rest = len(contents(source).records) - RECORDS_A_CHUNK
    assert move(source, target).startswith(f"moved: {rest} records copied")
    assert contents(target) == contents(source)


def test_a_copy_to_a_disk_without_room_goes_on_once_there_is_some(places: Places, tmp_path: Path) -> None:
    """What its anchor says is there: otherwise it would be refused as one that has lost its tail."""
    source, target = full(tmp_path / "source.db", 9_000), places.file()
    command = f"exec {sys.executable} -m command_service copy-journal sqlite:///{source} sqlite:///{target}"
    copying = subprocess.run(
        ["/bin/bash", "-c", f"ulimit -f 1000; {command}"], capture_output=True, text=True, check=False
    )
    assert copying.returncode == 1, copying.stdout
    assert "cannot be used" in copying.stderr
    assert copy(source, target).startswith("copied: ")
    assert contents(target) == contents(source)


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_a_place_that_holds_another_journal_is_left_alone(places: Places, kind: str, to: str) -> None:
    source, target = places.full(kind), places.full(to)
    before = contents(target)
    with pytest.raises(JournalRefused, match="holds the journal"):
        move(source, target)
    assert contents(target) == before
    serve(source)
    serve(target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_journal_is_not_copied_onto_itself(places: Places, kind: str) -> None:
    place = places.full(kind)
    with pytest.raises(JournalRefused, match="which is served from there"):
        move(place, place)
    serve(place)


def test_an_empty_journal_is_not_copied_onto_itself_under_another_name(places: Places) -> None:
    place = places.database()
    other = type(place).of(str(place).replace("127.0.0.1", "localhost"))
    with pytest.raises(JournalRefused, match="which is served from there"):
        move(place, other)
    serve(place)


def test_a_copy_that_differs_from_the_journal_is_refused(places: Places) -> None:
    source, target = places.full("sqlite"), places.database()
    copy(source, target)
    fetch(str(target), "UPDATE chargeonce.head SET chain = $1", bytes(32))
    with pytest.raises(JournalRefused, match=f"differs from the journal .* up to position {ALL}"):
        copy(source, target)
    fetch(str(target), "UPDATE chargeonce.head SET position = position + 1")
    with pytest.raises(JournalRefused, match=f"has reached position {ALL + 1}, and the journal .* ends at {ALL}"):
        copy(source, target)


def test_a_damaged_record_is_not_copied(places: Places) -> None:
    source, target = places.full("postgres"), places.file()
    fetch(str(source), "UPDATE chargeonce.record SET event = event || '\\x00'::bytea WHERE position = 50")
    with pytest.raises(JournalRefused, match="the record at position 50 does not fit the chain"):
        move(source, target)
    with pytest.raises(JournalRefused, match="served from"):
        serve(target)
    serve(source)


def test_a_restored_journal_stays_one(places: Places) -> None:
    source, target = places.full("sqlite"), places.database()
    journal_id, _ = source.restore(None, lambda records: {record.charge_id for record in records})
    move(source, target)
    back = places.file()
    move(target, back)
    assert contents(target).identity == contents(back).identity == (journal_id, True)


def test_a_database_without_tables_is_not_copied_to(places: Places, postgres_url: str) -> None:
    place = type(places.database()).of(postgres_url)
    with pytest.raises(JournalRefused, match="has no journal: run migrate"):
        move(places.full("sqlite"), place)


def test_the_command_line_copies_and_moves(places: Places) -> None:
    source, target = places.full("sqlite"), places.database()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "command_service",
            "copy-journal",
            *arguments,
            f"sqlite:///{source}",
            str(target),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert (run().returncode, run("--move").returncode) == (0, 0)
    again = run("--move")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith(f"error: {target} holds the journal")
