"""The end of a commit that meets a busy file, a full disk under any error, or a clock that steps back."""

import asyncio
import contextlib
import dataclasses
import functools
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import pytest
import structlog.testing

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from chassis.disk import GROWTH_BYTES, LOCAL_DISK, Disk, LocalDisk, file_uri
from command_service.journal import START, JournalBusy, JournalFull, JournalRefused, NotStored
from command_service.journal.commits import GroupCommit, Rhythm
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import verify_journal
from rig.processes import DidNotStart, Town
from tests.contract.journal_rigs import SqliteRig, add, stream

EX_IOERR = 74
MOMENT = 1_790_000_000_000_000
HOUR = 3_600_000_000


@pytest.fixture
def rig(tmp_path: Path) -> SqliteRig:
    """A place for a journal."""
    return SqliteRig(tmp_path)


@pytest.fixture
def impatient(rig: SqliteRig) -> None:
    """Shorten the journal's wait for a lock, and so the test."""
    rig.disk = LocalDisk(busy_seconds=0.05)
    rig.rhythm = Rhythm(probe_every_seconds=0.01)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that no event announces."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  # another program's work sets no event
            await asyncio.sleep(0.005)


# ---------------------------------------------------------------- another program holds the write lock
@contextlib.contextmanager
def an_edit(path: Path) -> Iterator[None]:
    """A manual edit that is not committed."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def an_exclusive_transaction(path: Path) -> Iterator[None]:
    """The strongest lock that a program can take beside a server."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def a_checkpoint_beside_a_reader(path: Path) -> Iterator[None]:
    """The work of copying tools: a RESTART checkpoint keeps the write lock while it waits for a reader."""
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader,
        contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)) as copying,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM record").fetchone()
        checkpoint = threading.Thread(target=copying.execute, args=("PRAGMA wal_checkpoint(RESTART)",))
        checkpoint.start()
        probe = sqlite3.connect(path, isolation_level=None, timeout=0)
        with contextlib.closing(probe), contextlib.suppress(sqlite3.OperationalError):
            while True:  # until the checkpoint has the lock
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
        yield
        reader.execute("ROLLBACK")
        checkpoint.join()


HOLDERS = [an_edit, an_exclusive_transaction, a_checkpoint_beside_a_reader]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("holding", HOLDERS)
async def test_a_busy_file_is_a_definite_no_and_needs_no_restart(
    rig: SqliteRig, holding: Callable[[Path], contextlib.AbstractContextManager[None]]
) -> None:
    """Nothing was begun, so nothing is unknown. Stored records are served meanwhile; then appends work again by themselves."""
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        before = rig.moment()
        with holding(rig.path):
            outcomes = await asyncio.gather(
                *(add(journal, stream(n), 0, [b"b"], finished=False) for n in (2, 3)),
                add(journal, stream(1), 1, [b"b"], finished=True),
                return_exceptions=True,
            )
            assert {type(outcome) for outcome in outcomes} == {JournalBusy}
            assert (journal.not_accepting, journal.accepting) == ("busy", False)
            assert (rig.moment(), journal.head.position) == (before, 1)
            assert [record.event for record in await journal.read(stream(1))] == [b"a"]
            await asyncio.sleep(0.1)  # probes meanwhile find it busy
            assert journal.not_accepting == "busy"
        await until(lambda: journal.accepting)
        (record,) = await add(journal, stream(1), 1, [b"b"], finished=True)
        assert record.position == 2
    assert len(rig.moment().records) == 2


@pytest.mark.usefixtures("impatient")
async def test_an_append_to_a_begun_stream_is_enough_to_admit_new_ones_again(rig: SqliteRig) -> None:
    """A successful commit shows it before any probe."""
    rig.rhythm = Rhythm(probe_every_seconds=3_600.0)
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        with an_edit(rig.path), pytest.raises(JournalBusy):
            await add(journal, stream(1), 1, [b"b"], finished=False)
        assert not journal.accepting
        await add(journal, stream(1), 1, [b"b"], finished=False)
        assert journal.accepting


async def test_a_commit_waits_for_a_lock_that_is_held_for_a_moment(rig: SqliteRig) -> None:
    """No append is refused."""
    async with rig.open() as journal:
        with an_edit(rig.path):
            appending = asyncio.create_task(add(journal, stream(1), 0, [b"a"], finished=False))
            await asyncio.sleep(0.2)
            assert not appending.done()
        assert [record.position for record in await appending] == [1]
        assert journal.accepting


class ProcessEnded(Exception):
    """Stands for the end of the process."""


def end_process() -> NoReturn:
    raise ProcessEnded


Commit = Callable[[Callable[[], Any]], Any]
"""A connection's commit; its argument is the real one."""


class FailingConnection(sqlite3.Connection):
    """A connection whose commits fail once a way is set."""

    disk: "FailingDisk"

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        really = functools.partial(super().execute, sql, *parameters)
        return self.disk.commit(really) if sql == "COMMIT" and self.disk.commit is not None else really()


class FailingDisk:
    """This machine, whose commits fail once `commit` is set."""

    def __init__(self) -> None:
        self.commit: Commit | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(LOCAL_DISK, name)

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(
            file_uri(path, read_only=read_only),
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            factory=FailingConnection,
        )
        connection.disk = self
        return connection


async def append_with(path: Path, commit: Commit) -> tuple[str, int]:
    """Append once with this commit, and return the result and the number of records in the file."""
    disk, ended = FailingDisk(), asyncio.Event()

    def end_process() -> NoReturn:
        ended.set()
        raise ProcessEnded

    store = await SqliteFile(path).open(disk=cast("Disk", disk))
    journal = await GroupCommit.open(store, now=lambda: MOMENT, end_process=end_process)
    disk.commit = commit
    appending = asyncio.create_task(add(journal, stream(1), 0, [b"a"], finished=False))
    ending = asyncio.create_task(ended.wait())
    await asyncio.wait([appending, ending], return_when=asyncio.FIRST_COMPLETED)
    came_of_it = "unknown" if ended.is_set() else type(appending.exception()).__name__
    for task in (appending, ending):
        task.cancel()
    disk.commit = None
    await journal.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM record").fetchone()
    return came_of_it, count


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as told")
    error.sqlite_errorcode = code
    return error


CODES = [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_SNAPSHOT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE]


@pytest.mark.parametrize("code", CODES)
async def test_a_stored_commit_is_never_reported_as_not_stored(rig: SqliteRig, code: int) -> None:
    """After any error of SQLite the head is read back and decides. The process ends."""

    def stored_and_failed(commit: Callable[[], Any]) -> NoReturn:
        commit()
        raise sqlite_error(code)

    assert await append_with(rig.path, stored_and_failed) == ("unknown", 1)


@pytest.mark.parametrize(
    ("code", "came_of_it"),
    [
        (sqlite3.SQLITE_BUSY, "JournalBusy"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "JournalBusy"),
        (sqlite3.SQLITE_FULL, "JournalFull"),
        (sqlite3.SQLITE_IOERR_WRITE, "unknown"),  # there is room, so it was no full disk
        (sqlite3.SQLITE_IOERR_FSYNC, "unknown"),
        (sqlite3.SQLITE_NOMEM, "unknown"),
    ],
)
async def test_a_half_done_commit_is_rolled_back_before_it_is_reported_as_not_stored(
    rig: SqliteRig, code: int, came_of_it: str
) -> None:
    """Only a certain failure is a "no"."""

    def half_way(_commit: Callable[[], Any]) -> NoReturn:
        raise sqlite_error(code)

    assert await append_with(rig.path, half_way) == (came_of_it, 0)
    assert rig.moment().unfinished == set()


@pytest.mark.usefixtures("impatient")
async def test_a_start_beside_a_program_that_holds_the_lock_is_refused_with_a_remedy(rig: SqliteRig) -> None:
    """The error names another program. Once that has ended, the start succeeds."""
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
    with an_edit(rig.path), pytest.raises(JournalRefused, match=r"(close|end) (that|other) program"):
        async with rig.open():
            pass
    async with rig.open() as journal:
        assert journal.head.position == 1


# ---------------------------------------------------------------- a full disk by its other errors
def charge(listen: str, key: str, seconds: float = 30.0) -> str:
    """Ask a server for a charge; return its status, or the error's code and text."""
    request = ChargeRequest(
        idempotency_key=key,
        user_id="alice",
        card=Card(token="tok_visa"),
        amount=Money(minor_units=1250, currency_code="EUR"),
    )
    with grpc.insecure_channel(listen, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            status = command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=seconds).status
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return ChargeStatus.Name(status)


CHARGED = "CHARGE_STATUS_CHARGED"
FULL = "UNAVAILABLE: the journal's disk is full"


def can_strace() -> bool:
    """Whether system calls can be made to fail here."""
    found = shutil.which("strace")
    return (
        found is not None and subprocess.run([found, "-qq", "true"], capture_output=True, check=False).returncode == 0
    )


needs_strace = pytest.mark.skipif(not can_strace(), reason="strace, which makes a write fail, cannot be used here")


def with_failing_writes(path: Path, error: str, when: str) -> tuple[str, ...]:
    """The prefix of a command that makes writes to a file fail: 1..3 the first three, 1+ all."""
    inject = f"inject=pwrite64:error={error}:when={when}"
    return ("strace", "-f", "-qq", "-o", os.devnull, "-P", str(path), "-e", "trace=pwrite64", "-e", inject)


async def serving(town: Town) -> None:
    """Wait until a new charge is accepted."""
    async with asyncio.timeout(30):
        number = 0
        while not (await asyncio.to_thread(charge, town.command.listen, f"again-{number:05}")).startswith(CHARGED):
            number += 1
            await asyncio.sleep(0.1)


@needs_strace
@pytest.mark.parametrize("error", ["EDQUOT", "EFBIG", "ENOSPC"])
async def test_a_quota_and_a_limit_on_a_file_are_a_full_disk(tmp_path: Path, error: str) -> None:
    """The server stays up, refuses new charges, answers known ones, and accepts new ones once there is room."""
    async with Town(tmp_path) as town:
        assert await asyncio.to_thread(charge, town.command.listen, "quota-first") == CHARGED
        await town.command.stop()
        town.command.prefix = with_failing_writes(Path(f"{town.journal}-wal"), error, "1..4")
        await town.start_command()
        assert (await asyncio.to_thread(charge, town.command.listen, "quota-00001")).startswith(FULL)
        assert await asyncio.to_thread(charge, town.command.listen, "quota-first") == CHARGED
        assert town.command.is_running
        refused = await town.command.logged("nothing was stored")  # the log is written a little after the answer
        assert refused == next(entry for entry in town.command.entries() if entry["level"] == "error")
        await serving(town)
        assert await asyncio.to_thread(charge, town.command.listen, "quota-00001") == CHARGED
        await town.command.stop()
    assert verify_journal(SqliteFile(town.journal)).startswith("ok: ")


@needs_strace
async def test_a_write_that_fails_for_any_other_reason_ends_the_process(tmp_path: Path) -> None:
    """EIO is no lack of room."""
    async with Town(tmp_path) as town:
        await town.command.stop()
        # The start makes the first three: it probes whether the journal can be written.
        town.command.prefix = with_failing_writes(Path(f"{town.journal}-wal"), "EIO", "4+")
        await town.start_command()
        await asyncio.to_thread(charge, town.command.listen, "broken-0001")
        assert await town.command.ended() == EX_IOERR


async def test_a_real_limit_on_file_sizes_ends_no_server(tmp_path: Path) -> None:
    """Its signal, SIGXFSZ, is ignored, and its EFBIG counts as a full disk. The kernel raises both; nothing is injected."""
    async with Town(tmp_path) as town:
        assert await asyncio.to_thread(charge, town.command.listen, "limit-first") == CHARGED
        assert town.command.process is not None
        wal_bytes = Path(f"{town.journal}-wal").stat().st_size
        before = resource.prlimit(town.command.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(town.command.process.pid, resource.RLIMIT_FSIZE, (wal_bytes + 30_000, before[1]))
        said = [await asyncio.to_thread(charge, town.command.listen, f"limit-{number:05}", 1.0) for number in range(12)]
        assert any(text.startswith(FULL) for text in said), said
        assert {text for text in said if not text.startswith(FULL)} <= {CHARGED, "CHARGE_STATUS_PENDING"}
        assert await asyncio.to_thread(charge, town.command.listen, "limit-first") == CHARGED
        assert town.command.is_running
        resource.prlimit(town.command.process.pid, resource.RLIMIT_FSIZE, before)
        await serving(town)
        for number in range(12):
            assert await asyncio.to_thread(charge, town.command.listen, f"limit-{number:05}") == CHARGED
        await town.command.stop()
    assert verify_journal(SqliteFile(town.journal)).startswith("ok: ")


@needs_strace
@pytest.mark.parametrize("error", ["EDQUOT", "ENOSPC"])
async def test_a_start_without_room_is_refused_with_a_remedy(tmp_path: Path, error: str) -> None:
    """A new journal, whose first page cannot be written."""
    async with Town(tmp_path) as town:
        await town.command.stop()
        for file in tmp_path.glob("journal.db*"):
            file.unlink()
        town.command.prefix = with_failing_writes(town.journal, error, "1+")
        with pytest.raises(DidNotStart, match=r"full, make room"):
            await town.start_command()


def test_a_test_for_room_leaves_the_file_unchanged(tmp_path: Path) -> None:
    """To the byte."""
    wal = tmp_path / "wal"
    wal.write_bytes(b"frames" * 1_000)
    assert LOCAL_DISK.has_room(wal)
    assert wal.read_bytes() == b"frames" * 1_000


def test_a_file_has_no_room_if_a_write_fits_in_part_only(tmp_path: Path) -> None:
    """The first part of a write may succeed, and its rest is refused."""
    wal = tmp_path / "wal"
    wal.write_bytes(b"frames" * 1_000)
    asking = (
        "import resource, sys; from pathlib import Path; from chassis.disk import LOCAL_DISK as disk; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({6_000 + GROWTH_BYTES // 2},) * 2); "
        "print(disk.has_room(Path(sys.argv[1])))"
    )
    asked = subprocess.run([sys.executable, "-c", asking, str(wal)], capture_output=True, text=True, check=True)
    assert asked.stdout == "False\n"
    assert wal.read_bytes() == b"frames" * 1_000


async def test_zeros_left_after_the_last_frame_are_harmless(rig: SqliteRig) -> None:
    """To readers, the next commit and the next start, if the process dies before the truncation."""
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        wal = Path(f"{rig.path}-wal")
        wal.write_bytes(wal.read_bytes() + bytes(GROWTH_BYTES))
        copy = SqliteRig(rig.path.parent / "copy")
        copy.path.parent.mkdir()
        for suffix in ("", "-wal", ".anchor"):  # as after a power cut
            shutil.copyfile(f"{rig.path}{suffix}", f"{copy.path}{suffix}")
        assert len(rig.moment().records) == 1
        await add(journal, stream(1), 1, [b"b"], finished=False)
        assert len(rig.moment().records) == 2
    async with copy.open() as journal:
        assert [record.event for record in await journal.read(stream(1))] == [b"a"]
        await add(journal, stream(1), 1, [b"c"], finished=False)
    assert len(rig.moment().records) == 2


# ---------------------------------------------------------------- the clock
async def record_at(path: Path, *moments: int) -> tuple[list[int], list[str]]:
    """Append one record at each of these moments, and return their recorded times and the warnings."""
    clock = iter([moments[0], *moments])
    journal = await GroupCommit.open(await SqliteFile(path).open(), now=lambda: next(clock), end_process=end_process)
    times = []
    with structlog.testing.capture_logs() as logs:
        for number, _ in enumerate(moments):
            (record,) = await add(journal, stream(journal.head.position * 100 + number), 0, [b"a"], finished=True)
            times.append(record.recorded_at)
    await journal.close()
    return times, [str(entry["event"]) for entry in logs if entry["log_level"] == "warning"]


async def test_recorded_times_never_run_backwards_and_the_clock_is_reported_once(rig: SqliteRig) -> None:
    """Records get the newest record's time until the clock has caught up."""
    times, warned = await record_at(rig.path, MOMENT, MOMENT - HOUR, MOMENT - HOUR + 5, MOMENT + 7)
    assert times == [MOMENT, MOMENT, MOMENT, MOMENT + 7]
    assert len(warned) == 1
    assert "clock" in warned[0]
    assert "disk" not in warned[0]


async def test_a_clock_corrected_by_a_second_is_not_reported(rig: SqliteRig) -> None:
    """Time servers do so all the time."""
    assert await record_at(rig.path, MOMENT, MOMENT - 1_000_000) == ([MOMENT, MOMENT], [])


async def test_a_start_with_a_clock_behind_the_journal_warns_and_continues(rig: SqliteRig) -> None:
    """The time of the newest record is read from the file."""
    await record_at(rig.path, MOMENT)
    with structlog.testing.capture_logs() as logs:
        times, _ = await record_at(rig.path, MOMENT - HOUR, MOMENT + 1)
    assert times == [MOMENT, MOMENT + 1]
    assert times[0] == MOMENT
    (warned,) = [entry for entry in logs if "clock" in str(entry["event"])]
    assert warned["behind_seconds"] == 3_600


async def test_a_clock_before_1970_is_no_broken_disk(rig: SqliteRig) -> None:
    """The records are dated 1970, which the format can hold, and the process continues."""
    with structlog.testing.capture_logs() as logs:
        times, _ = await record_at(rig.path, -HOUR, -HOUR + 1, MOMENT)
    assert times == [0, 0, MOMENT]
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "clock" in str(logs[0]["event"])
    assert verify_position(rig.path) == 3


def verify_position(path: Path) -> int:
    """Verify the chain from its start, and return the journal's end."""
    with SqliteFile(path).read() as reading:
        return len(list(reading.records()))


def test_full_and_busy_are_one_kind() -> None:
    """A caller that only needs to know that nothing was stored catches one kind."""
    assert issubclass(JournalFull, NotStored)
    assert issubclass(JournalBusy, NotStored)


# ---------------------------------------------------------------- the wait for company
PATIENT = Rhythm(turns_before_commit=10**9)  # on any machine far more turns than a test's time has room for


async def test_an_append_that_is_alone_waits_for_no_company(rig: SqliteRig) -> None:
    """Without load there is none, and each commit would be later for nothing."""
    rig.rhythm = dataclasses.replace(PATIENT, longest_wait_seconds=3_600.0)
    async with rig.open() as journal, asyncio.timeout(30):
        for version, event in enumerate((b"a", b"b")):
            await add(journal, stream(1), version, [event], finished=False)


async def test_the_wait_for_company_is_bounded_in_time(rig: SqliteRig) -> None:
    """Under a load of appends that never pauses, it would else last as long as the load."""
    rig.rhythm = PATIENT
    async with rig.open() as journal, asyncio.timeout(30):
        await asyncio.gather(*(add(journal, stream(number), 0, [b"a"], finished=False) for number in range(2)))


async def test_a_thread_that_has_ended_refuses_work() -> None:
    """Its caller would wait for ever. Work sent before is done."""
    thread = LOCAL_DISK.thread("ending")
    done = asyncio.ensure_future(thread.run(int, "7"))
    await asyncio.sleep(0)
    thread.end()
    async with asyncio.timeout(10):
        assert await done == 7
        with pytest.raises(RuntimeError):
            await thread.run(int, "8")


# ---------------------------------------------------------------- the regular look at the files
class SlowLook(LocalDisk):
    """A disk on which the look for free space is slow, once `may_go_on` is cleared."""

    may_go_on = threading.Event()
    is_looking = threading.Event()

    def free_bytes(self, path: Path) -> int:
        self.is_looking.set()
        self.may_go_on.wait(30)
        return super().free_bytes(path)


async def test_neither_reads_nor_commits_wait_for_the_look_at_the_files(rig: SqliteRig) -> None:
    """The anchor's sync is part of this look, and the feed reads beside it."""
    rig.disk, rig.rhythm = SlowLook(), Rhythm(look_every_seconds=0.01)
    SlowLook.may_go_on.set()
    async with rig.open() as journal:
        SlowLook.may_go_on.clear()
        SlowLook.is_looking.clear()
        try:
            assert await asyncio.to_thread(SlowLook.is_looking.wait, 30)
            async with asyncio.timeout(25):  # within the look
                (record,) = await add(journal, stream(1), 0, [b"a"], finished=False)
                assert await journal.read_after(START) == [record]
        finally:
            SlowLook.may_go_on.set()
