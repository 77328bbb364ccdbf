"""The journal's files: no mishap of a server, its disk or its backups passes unnoticed.

Files are damaged, disks are filled, processes are killed. The tests ask SQLite and the file, never the journal's own objects.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import grpc
import pytest

from charging.v1 import command_pb2, command_pb2_grpc, common_pb2
from charging.v1.journal_pb2 import SubscribeRequest
from chassis.disk import LOCAL_DISK, Disk, Held, LocalDisk
from chassis.sqlite import PragmaNotTakenError, open_connection
from command_service.codec import encode
from command_service.events import Charged, ChargeDeclined, ChargeRequested, TokenIssued
from command_service.feed import Feed
from command_service.journal import (
    START,
    Journal,
    JournalCorrupt,
    JournalFull,
    JournalRefused,
    Place,
    Record,
)
from command_service.journal.commits import Rhythm
from command_service.journal.sqlite import anchor, table
from command_service.journal.sqlite.backup import backup, set_aside
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.sqlite.file_system import kind_of
from command_service.journal.sqlite.starting import checkpoint
from command_service.operate import print_journal, restore_journal, verify_journal
from command_service.owners import Owners
from command_service.values import DeclineReason
from tests.contract.journal_rigs import SqliteRig, add, stream
from tests.core.stories import REQUEST
from tests.sealed import UNKNOWN_EVENT

ROOT = Path(__file__).parents[2]
EX_IOERR = 74
# Rare enough to cost nothing, and frequent enough that no test waits long.
OFTEN = Rhythm(look_every_seconds=0.01)


@pytest.fixture
def rig(tmp_path: Path) -> SqliteRig:
    """A place for a journal."""
    return SqliteRig(tmp_path)


@pytest.fixture
def path(rig: SqliteRig) -> Path:
    """The path of the journal."""
    return rig.path


async def fill(rig: SqliteRig, *events: bytes, first: int = 0) -> list[Record]:
    """Run a server that appends these events, a stream each, and stops in order."""
    async with rig.open() as journal:
        appended = [await add(journal, stream(first + n), 0, [event], finished=False) for n, event in enumerate(events)]
        return [record for records in appended for record in records]


async def all_of(journal: Journal) -> list[Record]:
    """Read every record like a reader of the feed."""
    records: list[Record] = []
    place = START
    while more := await journal.read_after(place):
        records += more
        place = Place(more[-1].position, more[-1].chain)
    return records


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that no event announces."""
    while not holds():  # noqa: ASYNC110  # a file or a disk sets no event
        await asyncio.sleep(0.005)


def beside(path: Path, suffix: str) -> Path:
    """A file beside the journal."""
    return path.with_name(path.name + suffix)


def restore(path: Path, source: Path | None, disk: Disk = LOCAL_DISK) -> tuple[str, Place]:
    """Restore a journal whose events are any bytes: here every stream counts as unfinished."""
    return SqliteFile(path).restore(source, lambda records: {record.charge_id for record in records}, disk=disk)


# ---------------------------------------------------------------- processes
@contextlib.contextmanager
def process(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a process, and end it with all its children after the context."""
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started:
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def writer(path: Path, *, writers: int = 1, appends: int = 1_000_000) -> list[str]:
    """The command of a process that appends."""
    return [sys.executable, "-m", "tests.contract.journal_writer", str(path), str(writers), str(appends)]


def acknowledged(lines: list[str]) -> list[Place]:
    """The places that such a process printed as acknowledged. A kill may cut the last line."""
    words = [line.split() for line in lines if re.fullmatch(r"\d+ [0-9a-f]{64}\n", line)]
    return [Place(int(position), bytes.fromhex(chain)) for position, chain in words]


def killed_while_appending(path: Path, *, after: int) -> list[Place]:
    """Run a process that appends, kill it with -9 after this number of acknowledgements, and return these."""
    with process(*writer(path, writers=8)) as appending:
        assert appending.stdout is not None
        lines = [appending.stdout.readline() for _ in range(after + 1)]
        appending.kill()
        lines += appending.stdout.readlines()
    assert lines[0] == "open\n"
    return acknowledged(lines)


def command(path: Path, *words: str, stdout: int | IO[str] = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    """Run an operator's command, or a server that is refused."""
    return subprocess.run(
        [sys.executable, "-m", "command_service", *words],
        cwd=ROOT,
        env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{path}"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )


# ---------------------------------------------------------------- one server at a time
async def test_a_second_server_is_refused_with_a_clear_message(rig: SqliteRig, path: Path) -> None:
    """In this process and in another one; it can open the journal once the first has released it."""
    async with rig.open():
        with pytest.raises(JournalRefused, match=r"another server has the journal .* open: stop it first"):
            async with rig.open():
                pass
        second = await asyncio.to_thread(command, path)
        with pytest.raises(JournalRefused, match="another server has the journal"):
            restore(path, None)
    assert second.returncode == 1
    assert second.stderr.startswith("error: another server has the journal ")
    async with rig.open() as journal:
        assert journal.accepting


async def test_a_second_server_by_another_name_of_the_file_is_refused(rig: SqliteRig, path: Path) -> None:
    """A link to the file or to its folder: all names share one lock and one anchor."""
    by_file, by_folder = path.with_name("by_file.db"), path.parent.with_name(path.parent.name + "-link")
    async with rig.open():
        by_file.symlink_to(path)
        by_folder.symlink_to(path.parent)
        for name in (by_file, by_folder / path.name):
            second = await asyncio.to_thread(command, name)
            assert second.returncode == 1
            assert second.stderr.startswith("error: another server has the journal ")
    verified = command(by_file, "verify-journal")
    assert (verified.returncode, verified.stderr) == (0, ""), "its anchor is found"


class WithoutLocks(LocalDisk):
    """A disk whose files cannot be locked, as some network shares are."""

    def hold(self, path: Path, flags: int = os.O_RDWR) -> Held:
        class Unlockable(Held):
            def lock(self) -> None:
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        return Unlockable(os.open(path, flags, 0o600))


async def test_a_file_that_cannot_be_locked_is_not_blamed_on_another_server(rig: SqliteRig) -> None:
    """The operator would look for a server that does not exist."""
    rig.disk = WithoutLocks()
    with pytest.raises(JournalRefused, match=r"the lock .*journal\.db\.lock cannot be taken: No locks available"):
        await fill(rig)


MOUNTED = """\
/dev/vda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/vdb1 /home/fast xfs rw 0 0
server:/a\\040b /mnt/a\\040b cifs rw 0 0
me@server: /mnt/far fuse.sshfs rw 0 0
/dev/vdc1 /srv ext4 rw 0 0
server:/srv /srv nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/journal.db", "ext4"),
        ("/home/journal.db", "nfs4"),
        ("/home", "nfs4"),
        ("/homeless/journal.db", "ext4"),
        ("/home/fast/chargeonce/journal.db", "xfs"),
        ("/home/faster/journal.db", "nfs4"),
        ("/mnt/a b/journal.db", "cifs"),
        ("/mnt/far/journal.db", "fuse.sshfs"),
        ("/srv/journal.db", "nfs"),
    ],
)
def test_a_file_lies_on_the_file_system_of_its_longest_mount_point(path: str, kind: str, tmp_path: Path) -> None:
    """Of two mounts at one point, on the later one."""
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTED)
    assert kind_of(Path(path), LocalDisk(mounts_file=mounts)) == kind


async def test_a_journal_on_a_network_file_system_is_refused(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """It is neither served nor restored there; if the system does not list its mounts, nothing is refused."""
    mounts = tmp_path / "mounts"
    rig.disk = LocalDisk(mounts_file=mounts)
    await fill(rig, b"a")
    mounts.write_text(f"/dev/vda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    for begin in (lambda: asyncio.run(fill(rig)), lambda: restore(path, None, rig.disk)):
        with pytest.raises(
            JournalRefused, match=r"lies on a file system of the kind nfs4, .*: put it on a disk of this machine"
        ):
            await asyncio.to_thread(begin)


async def test_a_refused_journal_is_released(rig: SqliteRig, path: Path) -> None:
    """The remedy in the message can be applied at once."""
    await fill(rig, b"a")
    anchor.path_beside(path).unlink()
    with pytest.raises(JournalRefused):
        await fill(rig)
    restore(path, None)


# ---------------------------------------------------------------- settings that the promises depend on
async def test_the_writers_pragmas_take_effect(path: Path) -> None:
    """WAL, and FULL: NORMAL lost acknowledged rows in three of four power cuts."""
    with contextlib.closing(open_connection(path, read_only=False, pragmas=table.WRITER_PRAGMAS)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_a_wal_that_grew_under_a_long_reader_is_truncated_after_it(rig: SqliteRig, path: Path) -> None:
    """While the server runs. A disk full of WAL would keep new charges out."""
    limit = 64 << 20
    async with rig.open() as journal:
        with contextlib.closing(open_connection(path, read_only=True, pragmas=table.READER_PRAGMAS)) as reader:
            reader.execute("BEGIN")
            table.read_head(reader)
            await add(journal, stream(1), 0, [bytes(1 << 20)] * 66, finished=True)
            assert journal.wal_bytes == beside(path, "-wal").stat().st_size > limit
        for n in (2, 3):  # the WAL is moved after the first, and restarted by the second
            await add(journal, stream(n), 0, [b"x"], finished=True)
        assert 0 < journal.wal_bytes <= limit
    assert journal.wal_bytes == 0, "it is removed with the last connection"


@pytest.mark.parametrize(("pragma", "value"), [("synchronous", 9), ("journal_mode", "wel"), ("page_size", 1_000)])
def test_a_pragma_without_effect_is_noticed(path: Path, pragma: str, value: str | int) -> None:
    """SQLite silently ignores a pragma that it does not understand."""
    with pytest.raises(PragmaNotTakenError, match=pragma):
        open_connection(path, read_only=False, pragmas={pragma: value})


async def test_readers_cannot_write(rig: SqliteRig, path: Path) -> None:
    """Nor can they checkpoint: one connection does both."""
    await fill(rig, b"a")
    with contextlib.closing(open_connection(path, read_only=True, pragmas=table.READER_PRAGMAS)) as connection:
        for statement in ("DELETE FROM record", "UPDATE journal SET restored = 1"):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute(statement)


# ---------------------------------------------------------------- damage
def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def offset_of(path: Path, text: bytes) -> int:
    """Find the offset of bytes that a file holds once."""
    stored = path.read_bytes()
    assert stored.count(text) == 1
    return stored.index(text)


def integrity_check(path: Path) -> str:
    """SQLite's verdict on a file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (said,) = connection.execute("PRAGMA integrity_check").fetchone()
    return str(said)


async def test_a_flipped_bit_in_an_event_is_never_served_even_if_sqlite_accepts_it(rig: SqliteRig, path: Path) -> None:
    """Neither to a reader of the stream nor of the feed, and verify-journal names the position."""
    events = [ChargeRequested(replace(REQUEST, description=text)) for text in ("before", "for 1250 EUR", "after")]
    records = await fill(rig, *map(encode, events))
    async with rig.open() as journal:  # so much follows that the start does not look so far back
        await add(journal, stream(99), 0, [b"x"] * 10_001, finished=True)
    flip(path, offset_of(path, b"1250 EUR"))
    assert integrity_check(path) == "ok"

    async with rig.open() as journal:
        assert await journal.read_after(START) == records[:1], "what comes before it is served"
        for reading in (journal.read(stream(1)), journal.read_after(_place(records[0]))):
            with pytest.raises(JournalCorrupt, match="position 2 ") as raised:
                await reading
            assert raised.value.position == 2
        assert len(await journal.read(stream(0))) == 1, "what is whole is served"
        assert len(await journal.read_after(_place(records[1]))) == 500
    with pytest.raises(JournalRefused, match=r"damaged: the record at position 2 .* Restore a backup"):
        verify_journal(SqliteFile(path))
    told = command(path, "verify-journal")
    assert (told.returncode, told.stdout) == (1, "")
    assert "position 2 " in told.stderr
    with pytest.raises(JournalRefused, match="position 2 "):
        list(print_journal(SqliteFile(path), None))


async def test_a_flipped_bit_in_the_chain_at_a_readers_position_is_damage_and_no_other_journal(
    rig: SqliteRig, path: Path
) -> None:
    """The reader's own chain is right: it must not throw its view away."""
    events = [ChargeRequested(replace(REQUEST, description=f"book {n}")) for n in range(3)]
    records = await fill(rig, *map(encode, events))
    async with rig.open() as journal:  # so much follows that the start does not look so far back
        await add(journal, stream(99), 0, [b"x"] * 10_001, finished=True)
    flip(path, offset_of(path, records[1].chain))
    async with rig.open() as journal:
        with pytest.raises(JournalCorrupt, match="position 2 ") as raised:
            await journal.chain_at(2)
        assert raised.value.position == 2
        request = SubscribeRequest(journal_id=journal.journal_id, after_position=2, chain=records[1].chain)
        with pytest.raises(JournalCorrupt, match="position 2 "):
            await anext(Feed(journal, Owners(journal).of).follow(request))
        assert await journal.chain_at(1) == records[0].chain, "what is whole is told"


@pytest.mark.parametrize("position", [2, 3])
async def test_a_flipped_bit_in_a_chain_is_found_at_start_and_by_verification(
    rig: SqliteRig, path: Path, position: int
) -> None:
    """At the anchor's position or right before it: "run restore" would not help, and the first position is named."""
    events = [ChargeRequested(replace(REQUEST, description=f"book {n}")) for n in range(3)]
    records = await fill(rig, *map(encode, events))
    flip(path, offset_of(path, records[position - 1].chain))
    for read in (lambda: asyncio.run(fill(rig)), lambda: verify_journal(SqliteFile(path))):
        with pytest.raises(JournalRefused, match=f"damaged: the record at position {position} .* Restore a backup"):
            await asyncio.to_thread(read)


async def test_a_flipped_bit_in_the_tail_is_found_at_start(rig: SqliteRig, path: Path) -> None:
    """Before any record is acted upon."""
    await fill(rig, b"an event before", b"amount: 1250 EUR", b"an event after")
    flip(path, offset_of(path, b"1250 EUR"))
    with pytest.raises(JournalRefused, match=r"damaged: the record at position 2 .* Restore a backup"):
        await fill(rig)


def _place(record: Record) -> Place:
    return Place(record.position, record.chain)


async def test_after_any_flipped_bit_records_are_read_as_written(rig: SqliteRig, path: Path) -> None:
    """Or they are refused: by the chain, by SQLite's own check, or, if the tail has become invisible, by the anchor."""
    events = [ChargeRequested(replace(REQUEST, description=f"book {n}")) for n in range(20)]
    written = await fill(rig, *map(encode, events))
    untouched = bytes_of(path)
    row = untouched.rindex(uuid.UUID(stream(9)).bytes, 0, offset_of(path, b"book 9"))
    flips = [
        *((offset, offset % 8) for offset in range(4_096 * 2, len(untouched), 131)),  # past the schema and our own row
        *(
            (offset, bit) for offset in range(row - 12, row) for bit in (0, 3, 6)
        ),  # SQLite's description of a row's values
    ]
    refused = 0
    for offset, bit in flips:
        flip(path, offset, bit)
        try:
            verify_journal(SqliteFile(path))
        except JournalRefused:
            refused += 1
        else:
            records = read_all(path)
            assert records == written[: len(records)]
            if records == written:
                assert [read_stream(path, record.charge_id) for record in written] == [[record] for record in written]
            else:
                with pytest.raises(JournalRefused, match="its tail is lost"):
                    await fill(rig)
        put_back(path, untouched)
    assert refused > len(flips) // 4, "the records were not hit"


def read_all(path: Path) -> list[Record]:
    """Read every record of a file, verified."""
    with SqliteFile(path).read() as reading:
        return list(reading.records())


def read_stream(path: Path, charge_id: str) -> list[Record]:
    """Read a stream like a server."""
    with SqliteFile(path).read() as reading:
        return list(reading.stream(charge_id))


def bytes_of(path: Path) -> bytes:
    """Read a file that is not open here: closing a descriptor of an open one would drop its locks."""
    return path.read_bytes()


def put_back(path: Path, content: bytes) -> None:
    """Restore a file's content, and remove the files beside it."""
    path.write_bytes(content)


async def test_a_damaged_index_is_a_damaged_journal_and_reads_without_an_index_are_served(
    rig: SqliteRig, path: Path
) -> None:
    """SQLite finds it, not the chain."""
    async with rig.open() as journal:
        stored = await add(journal, stream(0), 0, [b"x"], finished=False)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        select = "SELECT rootpage FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'record'"
        (page,) = connection.execute(select).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    async with rig.open() as journal:
        assert list(await journal.read_after(START)) == list(stored)
        with pytest.raises(JournalCorrupt, match="the file is damaged"):
            await journal.read(stream(0))


@pytest.mark.parametrize("position", [1, 2, 3])
async def test_a_record_that_disappears_under_a_running_server_is_noticed(
    rig: SqliteRig, path: Path, position: int
) -> None:
    """In the middle or at the end: a reader gets an error, not fewer records."""
    async with rig.open() as journal:
        for n in range(3):
            await add(journal, stream(n), 0, [b"x"], finished=False)
        with contextlib.closing(sqlite3.connect(path)) as vandal:
            vandal.execute("DELETE FROM record WHERE position = ?", (position,))
            vandal.commit()
        place = START
        with pytest.raises(JournalCorrupt) as raised:
            while place != journal.head:
                records = await journal.read_after(place)
                place = _place(records[-1])
        assert raised.value.position == position


async def test_a_file_that_is_no_journal_is_refused(path: Path, rig: SqliteRig) -> None:
    """With SQLite's own text."""
    put_back(path, b"a letter to my mother " * 400)
    with pytest.raises(JournalRefused, match="cannot be used: file is not a database"):
        await fill(rig)


async def test_a_journal_of_a_newer_format_is_refused(rig: SqliteRig, path: Path) -> None:
    """A program that does not know the format never writes to it."""
    await fill(rig, b"a")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE journal SET format = format + 1")
        connection.commit()
    with pytest.raises(
        JournalRefused, match=f"has format {table.FORMAT + 1}; this server writes format {table.FORMAT}"
    ):
        await fill(rig)


@pytest.mark.parametrize("former", [1, 2])
@pytest.mark.parametrize("by", ["start", "restore"])
async def test_a_journal_of_a_former_format_is_marked_as_of_this_one(
    rig: SqliteRig, path: Path, by: str, former: int
) -> None:
    """By the first start, or by a restore: the former program refuses it then. Its records stay."""
    (record,) = await fill(rig, b"a")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE journal SET format = ?", (former,))
        connection.commit()
    if by == "restore":
        restore(path, None)
    else:
        await fill(rig)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT format FROM journal").fetchall() == [(table.FORMAT,)]
    async with rig.open() as journal:
        assert await all_of(journal) == [record]


# ---------------------------------------------------------------- the anchor
WAY_OUT = "If you put it there on purpose, run restore"


async def assert_served_again_after_restore(rig: SqliteRig, old_id: str, records: list[Record]) -> None:
    """The remedy in the message: the same records under another id, marked as restored for good."""
    new_id, place = restore(rig.path, None)
    assert new_id != old_id
    for _ in range(2):
        async with rig.open() as journal:
            assert (journal.journal_id, journal.restored) == (new_id, True)
            assert journal.head == place
            assert await all_of(journal) == records


async def test_a_journal_whose_wal_was_deleted_is_refused_until_restore(rig: SqliteRig, path: Path) -> None:
    """The newest records of a killed server are in the WAL, and the chain cannot show their loss."""
    records = await fill(rig, b"a", b"b")
    old_id = json.loads(anchor.path_beside(path).read_text())["journal_id"]
    with process(*writer(path, appends=1_000_000)) as appending:
        await until(lambda: anchored(path).position >= 20)
        appending.kill()
    beside(path, "-wal").unlink()
    beside(path, "-shm").unlink()
    lost = anchored(path).position
    with pytest.raises(
        JournalRefused, match=f"ends at position 2, but had reached {lost}: its tail is lost. {WAY_OUT}"
    ):
        await fill(rig)
    await assert_served_again_after_restore(rig, old_id, records)


def anchored(path: Path) -> Place:
    """The place in the anchor."""
    found = anchor.read(path)
    return found.place if found else START


async def test_a_new_journal_whose_wal_was_deleted_is_refused(rig: SqliteRig, path: Path) -> None:
    """All its records are gone: only a backup can bring them back, and an empty journal must not replace it."""
    with process(*writer(path)) as appending:
        await until(lambda: anchored(path) != START)
        appending.kill()
    beside(path, "-wal").unlink()
    with pytest.raises(JournalRefused, match=r"ends at position 0, but had reached .*: its tail is lost"):
        await fill(rig)


async def test_a_deleted_journal_is_not_replaced_by_a_new_one(rig: SqliteRig, path: Path) -> None:
    """As long as its anchor exists."""
    await fill(rig, b"a")
    beside(path, "").unlink()
    with pytest.raises(
        JournalRefused, match=r"is missing, but its anchor says that there was one: .* restore a backup"
    ):
        await fill(rig)


def _moved(path: Path) -> None:
    path.rename(beside(path, ".elsewhere"))


def _moved_and_anchor_lost(path: Path) -> None:
    _moved(path)
    anchor.path_beside(path).unlink()


def _moved_and_made_empty(path: Path) -> None:
    _moved(path)
    path.touch()


@pytest.mark.parametrize("take_away", [_moved, _moved_and_anchor_lost, _moved_and_made_empty])
async def test_a_start_without_the_file_leaves_its_wal_untouched(
    rig: SqliteRig, path: Path, take_away: Callable[[Path], None]
) -> None:
    """For instance a disk that is not mounted. The WAL holds the newest records: with the file back, none is missing."""
    promised = await asyncio.to_thread(killed_while_appending, path, after=20)
    anchored = anchor.path_beside(path).read_bytes()
    take_away(path)
    wal = bytes_of(beside(path, "-wal"))
    with pytest.raises(JournalRefused, match=r"is (missing|empty), but its (anchor|WAL) .*: put the file back"):
        await fill(rig)
    for read_or_restore in (
        lambda: verify_journal(SqliteFile(path)),
        lambda: list(print_journal(SqliteFile(path), None)),
        lambda: backup(path, beside(path, ".copy")),
        lambda: restore(path, None),
    ):
        with pytest.raises(JournalRefused, match="there is no journal at"):
            read_or_restore()
    assert bytes_of(beside(path, "-wal")) == wal
    beside(path, ".elsewhere").replace(path)
    anchor.path_beside(path).write_bytes(anchored)
    async with rig.open() as journal:
        for place in promised:
            assert await journal.chain_at(place.position) == place.chain


async def test_an_older_copy_put_back_is_refused_until_restore(rig: SqliteRig, path: Path) -> None:
    """It would charge again charges that readers have already seen."""
    records = await fill(rig, b"a")
    shutil.copyfile(path, beside(path, ".copy"))
    old_id = anchor_id(path)
    await fill(rig, b"b", first=1)
    beside(path, ".copy").replace(path)
    with pytest.raises(JournalRefused, match=f"ends at position 1, but had reached 2: its tail is lost. {WAY_OUT}"):
        await fill(rig)
    await assert_served_again_after_restore(rig, old_id, records)


def anchor_id(path: Path) -> str:
    """The journal's id in its anchor."""
    return str(json.loads(anchor.path_beside(path).read_text())["journal_id"])


async def test_verification_notices_a_lost_tail(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """The chain of the rest is whole: only the anchor shows the loss."""
    await fill(rig, encode(ChargeRequested(REQUEST)))
    shutil.copyfile(path, tmp_path / "older.db")
    await fill(rig, encode(ChargeRequested(REQUEST)), first=1)
    shutil.copyfile(tmp_path / "older.db", path)
    with pytest.raises(JournalRefused, match="ends at position 1, but had reached 2"):
        verify_journal(SqliteFile(path))


async def test_a_backup_can_be_verified_before_it_is_restored(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """And a journal with an unreadable anchor: up to its last record, and the result says so."""
    await fill(rig, encode(ChargeRequested(REQUEST)))
    backup(path, tmp_path / "backup.db")
    anchor.path_beside(path).write_text("garbage")
    for file in (tmp_path / "backup.db", path):
        found = verify_journal(SqliteFile(file))
        assert found.startswith("ok: 1 records of 1 charges, 1 unfinished")
        assert found.endswith("no anchor can be read beside it, and so a lost tail would not be seen")


async def test_a_damaged_backup_replaces_no_file(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """It is verified before any file is moved."""
    await fill(rig, b"kept")
    before = path.read_bytes()
    (tmp_path / "backup.db").write_bytes(before.replace(b"kept", b"bent"))
    with pytest.raises(JournalRefused, match="position 1"):
        restore(path, tmp_path / "backup.db")
    assert path.read_bytes() == before
    async with rig.open() as journal:
        assert [record.event for record in await all_of(journal)] == [b"kept"]


async def test_an_interrupted_restore_is_no_new_journal(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """The old files are set aside, and the backup is not in place yet: such a journal is not served."""
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"x"], finished=False)
    backup(path, tmp_path / "backup.db")
    set_aside(path)
    assert not path.exists()
    with pytest.raises(JournalRefused, match="restore"):
        async with rig.open():
            pass
    restore(path, tmp_path / "backup.db")
    async with rig.open() as journal:
        assert journal.restored
        assert journal.head.position == 1


async def test_a_diverged_copy_is_refused_until_restore(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """It has the same length, and its chain is whole; but its records were not acknowledged here."""
    await fill(rig, b"a")
    other = SqliteRig(tmp_path / "elsewhere")
    other.path.parent.mkdir()
    for suffix in ("", ".anchor"):
        shutil.copyfile(beside(path, suffix), beside(other.path, suffix))
    old_id = anchor_id(path)
    await fill(rig, b"b", first=1)
    records = [*await fill(other, b"c", first=1)]
    other.path.replace(path)
    with pytest.raises(JournalRefused, match=f"differs at position 2 from what it was. {WAY_OUT}"):
        await fill(rig)
    restore(path, None)
    async with rig.open() as journal:
        assert (await all_of(journal))[1:] == records
        assert journal.journal_id != old_id


async def test_a_journal_without_its_anchor_is_refused_until_restore(rig: SqliteRig, path: Path) -> None:
    """It may be incomplete."""
    records = await fill(rig, b"a")
    old_id = anchor_id(path)
    anchor.path_beside(path).unlink()
    with pytest.raises(JournalRefused, match=f"has no anchor beside it. {WAY_OUT}"):
        await fill(rig)
    await assert_served_again_after_restore(rig, old_id, records)


async def test_a_journal_with_anothers_anchor_is_refused_until_restore(
    rig: SqliteRig, path: Path, tmp_path: Path
) -> None:
    """One of the two was put there."""
    other = SqliteRig(tmp_path / "elsewhere")
    await fill(other, b"x")
    records = await fill(rig, b"a")
    old_id = anchor_id(path)
    anchor.path_beside(other.path).replace(anchor.path_beside(path))
    with pytest.raises(JournalRefused, match=f"is another one than its anchor's. {WAY_OUT}"):
        await fill(rig)
    await assert_served_again_after_restore(rig, old_id, records)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"journal_id": "x", "position": 1, "chain": "zz"}'])
async def test_a_damaged_anchor_is_refused_until_restore(rig: SqliteRig, path: Path, text: str) -> None:
    """An anchor is replaced durably, so no crash of ours leaves half of one."""
    records = await fill(rig, b"a")
    old_id = anchor_id(path)
    anchor.path_beside(path).write_text(text)
    with pytest.raises(JournalRefused, match=r"the anchor .* cannot be read.* run restore"):
        await fill(rig)
    await assert_served_again_after_restore(rig, old_id, records)


async def test_the_anchor_follows_the_journal_while_it_runs(rig: SqliteRig, path: Path) -> None:
    """And has its end after a stop."""
    rig.rhythm = OFTEN
    async with rig.open() as journal:
        assert anchor.read(path) == anchor.Anchor(journal.journal_id, START)
        await add(journal, stream(1), 0, [b"a"], finished=False)
        await until(lambda: anchored(path) == journal.head)
        (record,) = await add(journal, stream(1), 1, [b"b"], finished=False)
    assert anchored(path) == _place(record)


# ---------------------------------------------------------------- crashes
async def test_acknowledged_records_survive_a_kill(rig: SqliteRig, path: Path) -> None:
    """In the middle of appends, twice, and the journal continues."""
    promised: list[Place] = []
    for _ in range(2):
        promised += await asyncio.to_thread(killed_while_appending, path, after=150)
    assert len(promised) >= 300
    async with rig.open() as journal:
        for place in promised:
            assert await journal.chain_at(place.position) == place.chain
        records = await all_of(journal)
        assert [record.position for record in records] == list(range(1, journal.head.position + 1))
        assert set(await journal.unfinished()) == {record.charge_id for record in records}


def can_strace() -> bool:
    """Whether system calls can be made to fail here."""
    found = shutil.which("strace")
    return (
        found is not None and subprocess.run([found, "-qq", "true"], capture_output=True, check=False).returncode == 0
    )


needs_strace = pytest.mark.skipif(not can_strace(), reason="strace, which makes a sync fail, cannot be used here")


def with_failing(call: str, when: str, *options: str) -> list[str]:
    """The prefix of a command that makes system calls fail with an I/O error: 3 the third, 1+ all."""
    injection = ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={when}"]
    return ["strace", "-f", "-qq", "--seccomp-bpf", "-o", os.devnull, *injection, *options]


@needs_strace
async def test_no_failed_sync_loses_an_acknowledged_record(tmp_path: Path) -> None:
    """The n-th sync of a new journal and its first appends, for every n: the process ends, or refuses, or is unharmed."""

    def fail(when: int) -> tuple[int, Path, list[Place]]:
        path = tmp_path / str(when) / "journal.db"
        with process(*with_failing("fdatasync", str(when)), *writer(path, appends=2)) as appending:
            out, _ = appending.communicate(timeout=30)
        return appending.returncode, path, acknowledged(out.splitlines(keepends=True))

    with concurrent.futures.ThreadPoolExecutor(max_workers=3) as pool:
        runs = await asyncio.gather(
            *(asyncio.get_running_loop().run_in_executor(pool, fail, when) for when in range(1, 13))
        )
    statuses = []
    for status, path, promised in runs:
        statuses.append(status)
        rig = SqliteRig(path.parent)
        async with rig.open() as journal:  # the next start finds it
            for place in promised:
                assert await journal.chain_at(place.position) == place.chain
            assert len(await all_of(journal)) == journal.head.position >= len(promised)
            assert status != 0 or len(promised) == 2
    assert {0, 1, EX_IOERR} == set(statuses)
    assert statuses[-1] == 0, "there are more syncs than were made to fail"


@needs_strace
@pytest.mark.parametrize("call", ["pwrite64", "fsync", "fdatasync"])
async def test_a_start_that_cannot_make_the_wal_durable_is_refused(rig: SqliteRig, path: Path, call: str) -> None:
    """Pages that read back after a failed sync may not be on disk: they are rewritten, synced and moved, or not used."""
    promised = await asyncio.to_thread(killed_while_appending, path, after=20)
    wal_only = () if call == "fdatasync" else ("-P", str(beside(path, "-wal")))
    with process(*with_failing(call, "1+", *wal_only), *writer(path, appends=1)) as appending:
        out, err = await asyncio.to_thread(appending.communicate, timeout=30)
    assert (appending.returncode, out) == (1, "")
    assert re.search(r"error: the (journal .* cannot be used: disk I/O error|WAL .* cannot be made durable)", err)
    async with rig.open() as journal:
        assert await journal.chain_at(promised[-1].position) == promised[-1].chain


async def test_a_start_that_cannot_move_the_whole_wal_is_refused(rig: SqliteRig, path: Path) -> None:
    """Because another program still reads from it: the message says so."""
    await asyncio.to_thread(killed_while_appending, path, after=20)
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader,
        contextlib.closing(open_connection(path, read_only=False, pragmas=table.WRITER_PRAGMAS)) as connection,
    ):
        connection.execute("PRAGMA busy_timeout = 1")  # a server waits for some seconds
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM record").fetchone()
        with pytest.raises(JournalRefused, match=r"the WAL could not be moved .* close other programs that read it"):
            checkpoint(connection)
        reader.execute("COMMIT")
        checkpoint(connection)
    async with rig.open() as journal:
        assert journal.head.position >= 20


@needs_strace
async def test_a_server_whose_commit_fails_ends_with_status_74_and_a_log_line(rig: SqliteRig, path: Path) -> None:
    """It neither answers its client nor calls the bank; the next start opens the journal, which verifies."""
    await fill(rig)
    with socket.create_server(("127.0.0.1", 0)) as bank:
        environment = {
            "COMMAND_LISTEN": "127.0.0.1:0",
            "COMMAND_FEED_LISTEN": "127.0.0.1:0",
            "COMMAND_JOURNAL": f"sqlite:///{path}",
            "COMMAND_BANK_URL": f"http://127.0.0.1:{bank.getsockname()[1]}",
        }
        # The start makes three syncs in the writing thread: it probes whether the journal can be written.
        command = [*with_failing("fdatasync", "4+"), sys.executable, "-m", "command_service"]
        with process(*command, environment=environment) as server:
            assert server.stderr is not None
            serving = json.loads(await asyncio.to_thread(server.stderr.readline))
            assert serving["event"] == "serving"
            with pytest.raises(grpc.RpcError) as raised:
                await asyncio.to_thread(charge, serving["listen"])
            _, log = await asyncio.to_thread(server.communicate, timeout=30)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.returncode == EX_IOERR
        assert "a commit's fate is unknown" in log
        assert '"level": "critical"' in log
        assert select.select([bank], [], [], 0)[0] == [], "the bank was asked"
    async with rig.open() as journal:
        assert journal.head.position in (0, 1), "it may be stored or not"
    assert verify_journal(SqliteFile(path)).startswith("ok: ")


def charge(listen: str) -> command_pb2.ChargeResponse:
    """Ask a server for a charge."""
    request = command_pb2.ChargeRequest(
        idempotency_key="order-1001",
        user_id="user-7",
        card=common_pb2.Card(token="tok_visa"),
        amount=common_pb2.Money(minor_units=1250, currency_code="EUR"),
    )
    with grpc.insecure_channel(listen) as channel:
        return command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=20)


# ---------------------------------------------------------------- a full disk
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def test_a_full_disk_is_a_definite_no_and_needs_no_repair(small_disk: Path) -> None:
    """Nothing is stored: the head, read back, is unchanged. Once there is room again, appends work."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    rig = SqliteRig(small_disk)
    rig.rhythm = OFTEN
    async with rig.open(free_bytes=100_000) as journal:
        stored = 0
        with pytest.raises(JournalFull):
            while True:
                await add(journal, stream(stored), 0, [b"x" * 5_000], finished=False)
                stored += 1
        assert stored > 10
        assert not journal.accepting
        together = await asyncio.gather(
            *(add(journal, stream(1_000 + n), 0, [b"y" * 5_000], finished=False) for n in range(3)),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in together} == {JournalFull}
        assert journal.head.position == stored
        assert [position for position, _, _ in rig.moment().records] == list(range(1, stored + 1))
        assert list(await journal.read(stream(stored))) == []
        assert len(await journal.unfinished()) == stored
        assert len(await all_of(journal)) == stored, "what is stored is served"

        ballast.unlink()
        await until(lambda: journal.accepting)
        (record,) = await add(journal, stream(stored), 0, [b"x" * 5_000], finished=False)
        assert record.position == stored + 1
        await add(journal, stream(0), 1, [b"z"], finished=True)
    assert len(read_all(rig.path)) == stored + 2


async def test_below_the_limit_of_free_space_new_charges_are_refused_and_begun_ones_finish(rig: SqliteRig) -> None:
    """The reserved room is for the begun ones."""
    rig.rhythm = OFTEN
    async with rig.open(free_bytes=1 << 60) as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        await until(lambda: not journal.accepting)
        await add(journal, stream(1), 1, [b"b"], finished=True)
        assert not journal.accepting


# ---------------------------------------------------------------- backup and restore
async def test_a_backup_during_appends_is_an_exact_prefix(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """No append waits for it, and it verifies."""
    async with rig.open() as journal:

        async def append() -> None:
            for n in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
                await add(journal, stream(n), 0, [b"event %d" % n], finished=n % 2 == 0)

        stop = asyncio.Event()
        appending = asyncio.create_task(append())
        copies: list[tuple[Path, Place]] = []
        for n in range(4):
            await journal.beyond(journal.head.position + 3)
            to = tmp_path / "backups" / f"{n}.db"
            copies.append((to, await asyncio.to_thread(backup, path, to)))
        stop.set()
        await appending
        records = await all_of(journal)
    for to, place in copies:
        assert bytes_of(to)[18:20] == b"\x01\x01", (
            "a copy is one file, without a WAL (sqlite.org/fileformat2.html, 1.3.3)"
        )
        assert read_all(to) == records[: place.position]
        assert place == _place(records[place.position - 1])
        with contextlib.closing(sqlite3.connect(to)) as connection:
            unfinished = {uuid.UUID(bytes=key).int for (key,) in connection.execute("SELECT charge_id FROM unfinished")}
        assert unfinished == set(range(1, place.position, 2)), "unfinished is that of the same moment"
        assert [file.name for file in to.parent.glob(f"{to.name}*")] == [to.name], "nothing is left behind"
    assert len({place.position for _, place in copies}) == 4


async def test_a_restored_backup_has_another_id_and_the_replaced_files_are_kept(
    rig: SqliteRig, path: Path, tmp_path: Path
) -> None:
    """Readers notice the id; the server asks the bank before each step, since the bank may know lost steps."""
    records = await fill(rig, b"a", b"b")
    copy = tmp_path / "copy.db"
    backup(path, copy)
    old_id = anchor_id(path)
    promised = await asyncio.to_thread(killed_while_appending, path, after=20)
    new_id, place = restore(path, copy)
    assert (new_id != old_id, place) == (True, _place(records[-1]))
    async with rig.open() as journal:
        assert (journal.journal_id, journal.restored, journal.head) == (new_id, True, place)
        assert await all_of(journal) == records
        await add(journal, stream(1), 1, [b"c"], finished=True)

    replaced = SqliteRig(tmp_path)
    replaced.path = beside(path, ".replaced-1")
    async with replaced.open() as journal:  # its WAL and its anchor were kept with it
        assert (journal.journal_id, journal.restored) == (old_id, False)
        assert await journal.chain_at(promised[-1].position) == promised[-1].chain
    newer_id, _ = restore(path, copy)
    assert newer_id not in (old_id, new_id)
    assert beside(path, ".replaced-2").exists()


async def test_backup_and_restore_name_their_obstacle(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """And then they change nothing."""
    copy = tmp_path / "copy.db"
    with pytest.raises(JournalRefused, match="there is no journal at"):
        backup(path, copy)
    with pytest.raises(JournalRefused, match="there is no journal at"):
        restore(path, None)
    await fill(rig, b"amount: 1250 EUR")
    with pytest.raises(JournalRefused, match=r"there is no journal at .*copy\.db"):
        restore(path, copy)
    backup(path, copy)
    with pytest.raises(JournalRefused, match="exists already: name a new file"):
        backup(path, copy)
    await fill(rig)
    flip(path, offset_of(path, b"1250 EUR"))
    with pytest.raises(JournalRefused, match="position 1 "):
        backup(path, tmp_path / "another.db")
    assert not (tmp_path / "another.db").exists()
    with pytest.raises(JournalRefused, match="position 1 "):
        restore(path, None)
    restore(path, copy)
    assert len(await fill(rig, b"b", first=1)) == 1


async def test_a_restore_includes_the_wal_of_its_source(rig: SqliteRig, path: Path, tmp_path: Path) -> None:
    """A journal set aside by a restore has one, with the newest acknowledged records."""
    await fill(rig, b"a")
    backup(path, tmp_path / "copy.db")
    promised = await asyncio.to_thread(killed_while_appending, path, after=20)
    restore(path, tmp_path / "copy.db")
    kept = beside(path, ".replaced-1")
    before = {file: bytes_of(file) for file in (kept, beside(kept, "-wal"))}
    restore(path, kept)
    assert {file: bytes_of(file) for file in before} == before, "what is restored from is left as it is"
    async with rig.open() as journal:
        for place in promised:
            assert await journal.chain_at(place.position) == place.chain


async def test_each_restore_keeps_the_replaced_files_under_new_names(
    rig: SqliteRig, path: Path, tmp_path: Path
) -> None:
    """The WAL of a missing file is set aside alone: it must not lie beside another file."""
    await fill(rig, b"a")
    backup(path, tmp_path / "copy.db")
    await asyncio.to_thread(killed_while_appending, path, after=20)
    _moved(path)
    wal = bytes_of(beside(path, "-wal"))
    for _ in range(2):
        restore(path, tmp_path / "copy.db")
    assert bytes_of(beside(path, ".replaced-1-wal")) == wal
    assert not beside(path, ".replaced-1").exists()
    assert beside(path, ".replaced-2").exists()


def _itself(path: Path) -> Path:
    return path


def _a_link(path: Path) -> Path:
    beside(path, ".link").symlink_to(path)
    return beside(path, ".link")


def _another_name(path: Path) -> Path:
    beside(path, ".name").hardlink_to(path)
    return beside(path, ".name")


@pytest.mark.parametrize("named", [_itself, _a_link, _another_name])
async def test_a_journal_is_not_restored_from_itself(rig: SqliteRig, path: Path, named: Callable[[Path], Path]) -> None:
    """By any name: that would separate it from its own WAL. Another command accepts it as it is."""
    promised = await asyncio.to_thread(killed_while_appending, path, after=20)
    source = named(path)
    with pytest.raises(
        JournalRefused, match="is the journal itself: to accept it as it is, run restore without a file"
    ):
        restore(path, source)
    if not source.is_symlink() and source != path:
        with pytest.raises(JournalRefused, match="has 2 names"):
            restore(path, None)
        source.unlink()
    restore(path, None)
    async with rig.open() as journal:
        for place in promised:
            assert await journal.chain_at(place.position) == place.chain


async def test_a_restore_does_not_overwrite_its_source(rig: SqliteRig, path: Path) -> None:
    """For instance the draft of an interrupted restore: it has the name of the next draft."""
    await fill(rig, b"a")
    draft = beside(path, ".new")
    shutil.copyfile(path, draft)
    with pytest.raises(JournalRefused, match="would be written over: give it another name"):
        restore(path, draft)
    assert draft.exists()
    restore(path, draft.rename(beside(path, ".copy")))


# ---------------------------------------------------------------- the operator's commands
async def test_the_journal_is_printed_and_verified_from_the_command_line(rig: SqliteRig, path: Path) -> None:
    """One line a record, beside a running server; for one charge only its records."""
    other = stream(7)
    async with rig.open() as journal:
        begun = [encode(ChargeRequested(REQUEST)), encode(TokenIssued("t1"))]
        await add(journal, REQUEST.charge_id, 0, begun, finished=False)
        await add(journal, other, 0, [encode(ChargeRequested(REQUEST))], finished=False)
        await add(journal, other, 1, [encode(ChargeDeclined(DeclineReason.INSUFFICIENT_FUNDS))], finished=True)
        charged = encode(Charged(REQUEST.user_id, REQUEST.card, REQUEST.amount, "bank-77"))
        await add(journal, REQUEST.charge_id, 2, [charged], finished=True)
        whole, verified = await asyncio.gather(
            asyncio.to_thread(command, path, "print-journal"), asyncio.to_thread(command, path, "verify-journal")
        )
        one = list(print_journal(SqliteFile(path), REQUEST.charge_id))
        journal_id, chain = journal.journal_id, journal.head.chain
    lines = whole.stdout.splitlines()
    assert (whole.returncode, whole.stderr, len(lines)) == (0, "", 5)
    assert one == [lines[0], lines[1], lines[4]]
    assert re.fullmatch(
        rf" +4 {other} v2 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{6}}Z ChargeDeclined "
        r'\{"reason": "DECLINE_REASON_INSUFFICIENT_FUNDS"\}',
        lines[3],
    )
    kinds = [line.split()[4] for line in lines]
    assert kinds == ["ChargeRequested", "TokenIssued", "ChargeRequested", "ChargeDeclined", "Charged"]
    assert json.loads(lines[4].split(" Charged ")[1])["transaction_id"] == "bank-77"
    assert verified.stdout == f"ok: 5 records of 2 charges, 0 unfinished, journal {journal_id}, chain {chain.hex()}\n"
    assert verified.returncode == 0


async def test_printing_a_journal_into_a_closed_pipe_is_no_error(rig: SqliteRig, path: Path) -> None:
    """`print-journal | head` ends like any filter."""
    await fill(rig, encode(ChargeRequested(REQUEST)))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        printing = await asyncio.to_thread(command, path, "print-journal", stdout=pipe)
    assert (printing.returncode, printing.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("charge_id", "text"), [(stream(1), "the journal holds no charge"), ("no-such-id", "a charge is named by its id")]
)
async def test_printing_an_unknown_charge_is_an_error(rig: SqliteRig, path: Path, charge_id: str, text: str) -> None:
    """Empty output would look like an answer."""
    with pytest.raises(JournalRefused, match="there is no journal at"):
        list(print_journal(SqliteFile(path), charge_id))
    await fill(rig)
    with pytest.raises(JournalRefused, match=text):
        list(print_journal(SqliteFile(path), charge_id))


async def test_an_event_of_a_newer_program_is_printed_as_unknown_and_stops_verification(
    rig: SqliteRig, path: Path
) -> None:
    """An operator can see its position."""
    await fill(rig, UNKNOWN_EVENT)
    (line,) = print_journal(SqliteFile(path), None)
    assert line.endswith(" an event of a newer program")
    with pytest.raises(JournalRefused, match=r"the record at position 1 cannot be read: .*newer program"):
        verify_journal(SqliteFile(path))


async def test_verification_finds_an_impossible_stream(rig: SqliteRig, path: Path) -> None:
    """Its chain is whole, its events are not."""
    await fill(rig, encode(TokenIssued("t1")))
    with pytest.raises(JournalRefused, match="position 1 cannot be read: TokenIssued cannot follow"):
        verify_journal(SqliteFile(path))


TOKEN = encode(TokenIssued("t1"))
CHARGED = encode(Charged(REQUEST.user_id, REQUEST.card, REQUEST.amount, "bank-77"))


async def test_verification_finds_an_event_after_a_charge_at_rest(rig: SqliteRig, path: Path) -> None:
    """After any of many charges at rest."""
    story = [encode(ChargeRequested(REQUEST)), TOKEN, CHARGED]
    async with rig.open() as journal:
        for n in range(3):
            await add(journal, stream(n), 0, story, finished=True)
        await add(journal, stream(1), 3, [CHARGED], finished=True)
    with pytest.raises(JournalRefused, match="position 10 cannot be read: Charged cannot follow in AtRest"):
        verify_journal(SqliteFile(path))


async def test_verification_takes_little_memory_for_charges_at_rest(rig: SqliteRig, path: Path) -> None:
    """A journal of millions of charges can be verified on its server's machine."""
    story = [encode(ChargeRequested(REQUEST)), TOKEN, CHARGED]
    async with rig.open() as journal:
        await asyncio.gather(*(add(journal, stream(n), 0, story, finished=True) for n in range(5_000)))
    tracemalloc.start()
    verify_journal(SqliteFile(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2_500_000, "a read of 500 records, and some 200 bytes a charge"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("DELETE FROM unfinished", "1 are missing and 0 are at rest"),
        ("INSERT INTO unfinished VALUES (zeroblob(16))", "0 are missing and 1 are at rest"),
    ],
)
async def test_verification_recomputes_the_unfinished_charges(
    rig: SqliteRig, path: Path, damage: str, text: str
) -> None:
    """A charge missing in their table would never continue."""
    async with rig.open() as journal:
        await add(journal, REQUEST.charge_id, 0, [encode(ChargeRequested(REQUEST))], finished=False)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(damage)
        connection.commit()
    with pytest.raises(JournalRefused, match=f"{text}. Run restore, "):
        verify_journal(SqliteFile(path))


@pytest.mark.parametrize("damage", ["DELETE FROM unfinished", "INSERT INTO unfinished SELECT charge_id FROM record"])
@pytest.mark.parametrize("is_from_a_copy", [False, True])
async def test_a_restore_recomputes_the_table_of_unfinished_charges(
    rig: SqliteRig, path: Path, tmp_path: Path, damage: str, is_from_a_copy: bool
) -> None:
    """From the records, not from the file's table: this is the remedy that verify-journal names."""
    async with rig.open() as journal:
        for n in range(5):
            await add(journal, stream(n), 0, [encode(ChargeRequested(REQUEST)), TOKEN], finished=False)
        await add(journal, stream(9), 0, [encode(ChargeRequested(REQUEST)), TOKEN, CHARGED], finished=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(damage.replace("INSERT", "INSERT OR IGNORE"))
        connection.commit()
    copy = tmp_path / "copy.db"
    backup(path, copy)
    restored = command(path, "restore", *([str(copy)] if is_from_a_copy else []))
    assert (restored.returncode, restored.stderr) == (0, "")
    assert ", 5 unfinished, " in verify_journal(SqliteFile(path))
    async with rig.open() as journal:
        assert sorted(await journal.unfinished()) == [stream(n) for n in range(5)]


async def test_a_restore_refuses_an_event_that_cannot_be_read_and_changes_nothing(rig: SqliteRig, path: Path) -> None:
    """Its charge may be unfinished or not."""
    await fill(rig, encode(ChargeRequested(REQUEST)), UNKNOWN_EVENT)
    before = bytes_of(path)
    with pytest.raises(JournalRefused, match=r"the record at position 2 cannot be read: .*newer program"):
        restore_journal(SqliteFile(path), None)
    assert bytes_of(path) == before
    await fill(rig)
