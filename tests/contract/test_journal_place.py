"""A journal's place, owner and beginning: files that disappear, have two names, belong to others, or are new.

Files are taken away from real processes, mounted twice, given to other users. A journal either holds every acknowledged
record, or it is not served and the error says why.
"""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chassis import settings
from chassis.disk import LocalDisk
from chassis.sqlite import open_connection
from command_service.codec import encode
from command_service.events import ChargeRequested
from command_service.journal import START, JournalRefused, Place
from command_service.journal.commits import Rhythm
from command_service.journal.sqlite import anchor, table
from command_service.journal.sqlite.backup import backup
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import print_journal, restore_journal, verify_journal
from command_service.parts import Parts
from command_service.serving import serve
from command_service.settings import Settings
from rig.processes import DidNotStart, Town
from tests.contract.journal_rigs import SqliteRig, stream
from tests.contract.test_journal_files import (
    EX_IOERR,
    OFTEN,
    ROOT,
    acknowledged,
    anchor_id,
    anchored,
    beside,
    charge,
    command,
    fill,
    killed_while_appending,
    needs_strace,
    process,
    restore,
    until,
    writer,
)
from tests.core.stories import REQUEST

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files are given to other users, or mounted: that takes root")
REQUESTED = encode(ChargeRequested(REQUEST))


@pytest.fixture
def rig(tmp_path: Path) -> SqliteRig:
    """A place for a journal, in a folder that may disappear."""
    (tmp_path / "build").mkdir()
    return SqliteRig(tmp_path / "build")


@pytest.fixture
def path(rig: SqliteRig) -> Path:
    """The path of the journal."""
    return rig.path


# ---------------------------------------------------------------- files that disappear under a running server
def _all_removed(path: Path) -> Path:
    for file in path.parent.glob("journal.db*"):
        file.unlink()
    return path


def _file_removed(path: Path) -> Path:
    path.unlink()
    return path


def _replaced_by_a_copy(path: Path) -> Path:
    """As by rsync and editors."""
    Path(shutil.copy(path, path.parent / "copy")).rename(path)
    return path


def _all_replaced_by_a_copy(path: Path) -> Path:
    for file in path.parent.glob("journal.db*"):
        Path(shutil.copy(file, path.parent / "copy")).rename(file)
    return path


def _another_put_there(path: Path) -> Path:
    asyncio.run(fill(SqliteRig(path.parent.parent), b"another"))
    path.with_name("journal.db-wal").unlink()
    path.parent.with_name("journal.db").rename(path)
    return path


def _folder_renamed(path: Path) -> Path:
    return path.parent.rename(path.parent.with_name("moved")) / path.name


def _folder_replaced_by_a_copy(path: Path) -> Path:
    moved = _folder_renamed(path)
    shutil.copytree(moved.parent, path.parent)
    return path


def _wal_removed(path: Path) -> Path:
    beside(path, "-wal").unlink()
    return path


def _shm_removed(path: Path) -> Path:
    beside(path, "-shm").unlink()
    return path


def _lock_removed(path: Path) -> Path:
    beside(path, ".lock").unlink()
    return path


WAYS = [
    *(_all_removed, _file_removed, _replaced_by_a_copy, _all_replaced_by_a_copy, _another_put_there, _folder_renamed),
    *(_folder_replaced_by_a_copy, _wal_removed, _shm_removed, _lock_removed),
]


@pytest.mark.parametrize("take_away", WAYS)
async def test_a_server_ends_when_its_files_disappear_and_no_acknowledged_record_is_lost_silently(
    rig: SqliteRig, path: Path, take_away: Callable[[Path], Path]
) -> None:
    """Any of the files. At the old place and at the new one, a start finds every acknowledged record, or is refused."""

    def run() -> tuple[int, list[Place], Path]:
        with process(*writer(path, writers=4)) as appending:
            assert appending.stdout is not None
            lines = [appending.stdout.readline() for _ in range(50)]
            lies = take_away(path)
            lines += appending.stdout.readlines()  # to its end: nothing else stops it
            return appending.wait(), acknowledged(lines), lies

    status, promised, rig.path = await asyncio.to_thread(run)
    assert status == EX_IOERR
    try:
        async with rig.open() as journal:
            for place in promised:
                assert await journal.chain_at(place.position) == place.chain
            assert not journal.made_anew
    except JournalRefused as refused:
        assert "restore" in str(refused)  # either is right


async def test_a_real_server_ends_and_logs_the_reason_when_its_journal_disappears(tmp_path: Path) -> None:
    """The reason is logged at the highest level, and the server does not start again before the remedy is applied."""
    async with Town(tmp_path) as town:
        await asyncio.to_thread(charge, town.command.listen)
        for file in tmp_path.glob("journal.db*"):
            file.unlink()
        assert await town.command.ended() == EX_IOERR
        (told,) = [entry for entry in town.command.entries() if entry["level"] == "critical"]
        assert "journal.db is gone: what is written now would be lost" in told["reason"]
        with pytest.raises(DidNotStart, match="its anchor says that there was one"):
            await town.start_command()


async def test_a_stop_after_the_files_have_disappeared_is_no_clean_stop(
    rig: SqliteRig, path: Path, tmp_path: Path
) -> None:
    """The last look comes before the last anchor: a deployment must not continue as if every record were stored."""
    with pytest.raises(AssertionError, match="the journal ended the process"):
        async with rig.open() as journal:
            await journal.append(stream(1), 0, [b"x"], finished=True)
            path.unlink()
    async with Town(tmp_path / "town") as town:
        town.journal.unlink()
        assert await town.command.stop() == EX_IOERR


async def test_an_anchor_of_another_journal_is_never_overwritten(rig: SqliteRig, path: Path) -> None:
    """Nor one of the same journal at a later position: another server has a copy of it. Each ends the process."""
    rig.rhythm = OFTEN
    for n, others in enumerate((anchor.Anchor(str(uuid.uuid4()), START), None)):
        async with rig.open() as journal:
            await journal.append(stream(n), 0, [b"x"], finished=True)
            theirs = others or anchor.Anchor(journal.journal_id, Place(99, bytes(32)))
            anchor.write(path, theirs)
            await rig.has_ended.wait()
            appending = asyncio.create_task(journal.append(stream(n), 1, [b"y"], finished=True))
            await asyncio.sleep(0.1)
            assert not appending.done(), "nothing is acknowledged any more"
            appending.cancel()
        rig.has_ended.clear()
        assert anchor.read(path) == theirs
        anchor.write(path, anchor.Anchor(journal.journal_id, START))


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text("garbage")])
async def test_an_anchor_that_disappears_is_written_again(
    rig: SqliteRig, path: Path, harm: Callable[[Path], object]
) -> None:
    """The journal is unchanged: it continues, and can be opened again."""
    rig.rhythm = OFTEN
    async with rig.open() as journal:
        await journal.append(stream(1), 0, [b"x"], finished=True)
        await until(lambda: anchored(path) == journal.head)
        harm(anchor.path_beside(path))

        def is_there() -> bool:
            with contextlib.suppress(JournalRefused):
                return anchored(path) == journal.head
            return False

        await until(is_there)
        await journal.append(stream(1), 1, [b"y"], finished=True)
    await fill(rig)


# ---------------------------------------------------------------- one file with two names
async def test_a_journal_with_a_second_name_is_refused_under_both(rig: SqliteRig, path: Path) -> None:
    """Two servers would have a WAL each, and one would overwrite the acknowledged records of the other."""
    await fill(rig, b"a")
    other = path.parent.parent / "elsewhere.db"
    other.hardlink_to(path)
    shutil.copy(anchor.path_beside(path), anchor.path_beside(other))
    for name in (path, other):
        refused = command(name)
        assert refused.returncode == 1
        assert "has 2 names (hard links)" in refused.stderr
        with pytest.raises(JournalRefused, match="has 2 names"):
            restore(name, None)
    other.unlink()
    await fill(rig, b"b", first=1)


async def test_a_journal_that_is_open_is_locked_under_every_name(rig: SqliteRig, path: Path) -> None:
    """The file itself is locked beside its name, so that it is locked under a new name too."""
    rig.rhythm = Rhythm(look_every_seconds=60.0)  # it would notice and end itself
    other = path.parent.parent / "elsewhere.db"
    async with rig.open() as journal:
        await journal.append(stream(1), 0, [b"x"], finished=True)
        path.rename(other)
        shutil.copy(anchor.path_beside(path), anchor.path_beside(other))
        for words in ((), ("restore",)):
            refused = await asyncio.to_thread(command, other, *words)
            assert refused.returncode == 1
            assert "another server has the journal" in refused.stderr
        other.rename(path)
    rig.path = path
    await fill(rig)


@pytest.fixture
def bind() -> Iterator[Callable[[Path, Path, str], None]]:
    """Mount one path at another, until the test ends."""
    mounted: list[Path] = []

    def mount(source: Path, target: Path, options: str = "rw") -> None:
        done = subprocess.run(["mount", "--bind", str(source), str(target)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(target)
        subprocess.run(["mount", "-o", f"remount,bind,{options}", str(target)], capture_output=True, check=True)

    yield mount
    for target in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@needs_root
async def test_a_file_that_is_mounted_alone_is_refused(rig: SqliteRig, path: Path, bind: Callable[..., None]) -> None:
    """As by `docker run -v .../journal.db:/data/journal.db`: its WAL and its anchor would lie in the container."""
    await fill(rig, b"a")
    other = path.parent.parent / "mounted.db"
    other.touch()
    bind(path, other)
    shutil.copy(anchor.path_beside(path), anchor.path_beside(other))
    for words in ((), ("restore",)):
        refused = await asyncio.to_thread(command, other, *words)
        assert refused.returncode == 1
        assert "is a mount point: the file alone is mounted there" in refused.stderr
    async with rig.open():
        pass


@needs_root
async def test_a_journal_in_a_folder_that_is_mounted_twice_has_one_server(
    rig: SqliteRig, path: Path, bind: Callable[..., None]
) -> None:
    """Lock, WAL and anchor are the same files under both paths."""
    other = path.parent.with_name("other")
    other.mkdir()
    bind(path.parent, other)
    async with rig.open():
        refused = await asyncio.to_thread(command, other / path.name)
        assert "another server has the journal" in refused.stderr


# ---------------------------------------------------------------- the beginning of a journal
@pytest.mark.parametrize("after", [0, 1, 20])
async def test_a_journal_that_lost_its_wal_and_anchor_is_not_replaced_by_a_new_one(
    rig: SqliteRig, path: Path, after: int
) -> None:
    """Not even a young one: its WAL held the acknowledged records."""
    await asyncio.to_thread(killed_while_appending, path, after=after)
    for suffix in ("-wal", "-shm", ".anchor", ".lock"):
        beside(path, suffix).unlink(missing_ok=True)
    with pytest.raises(JournalRefused, match=r"has no anchor beside it. If you put it there on purpose, run restore"):
        await fill(rig)


def _nothing(path: Path) -> None:
    path.touch()


def _nothing_but_a_wal(path: Path) -> None:
    path.touch()
    beside(path, "-wal").write_bytes(b"the first page, say")


def _a_header(path: Path) -> None:
    """An earlier version's young journal without its WAL."""
    open_connection(path, read_only=False, pragmas={"journal_mode": "wal"}).close()


def _tables(path: Path) -> None:
    with contextlib.closing(open_connection(path, read_only=False, pragmas=table.WRITER_PRAGMAS)) as connection:
        connection.executescript(table.SCHEMA)
        connection.execute(table.INSERT_JOURNAL, (str(uuid.uuid4()), table.FORMAT, 0))


@pytest.mark.parametrize("left_behind", [_nothing, _nothing_but_a_wal, _a_header, _tables])
async def test_a_file_that_no_making_of_a_journal_leaves_is_refused_with_a_remedy(
    rig: SqliteRig, path: Path, left_behind: Callable[[Path], None]
) -> None:
    """It may be the rest of a journal; only the operator can know."""
    left_behind(path)
    with pytest.raises(JournalRefused, match="restore"):
        await fill(rig)
    for file in path.parent.glob("journal.db*"):
        file.unlink()
    await fill(rig, b"a")


CALLS = ("fchmod", "pwrite64", "write", "fdatasync", "fsync", "rename", "unlink")


@needs_strace
@pytest.mark.parametrize("call", CALLS)
async def test_after_a_death_at_any_call_of_its_making_a_journal_is_begun_without_an_error(
    tmp_path: Path, call: str
) -> None:
    """At the n-th call of each kind on its files, for every n: no record was acknowledged, so none can be lost."""

    def dies(number: int) -> bool:
        folder = tmp_path / str(number)
        folder.mkdir()
        names = ("", "-wal", "-shm", "-journal", ".making", ".making-journal", ".anchor", ".anchor.new", ".lock")
        paths = [word for name in names for word in ("-P", str(beside(folder / "journal.db", name)))]
        killing = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        strace = ["strace", "-f", "-qq", "-o", os.devnull, *paths, "-P", str(folder), *killing]
        with process(*strace, *writer(folder / "journal.db", appends=0)) as making:
            making.communicate()
            return making.returncode != 0

    async def is_begun_after(number: int) -> bool:
        if not await asyncio.to_thread(dies, number):
            return False
        begun = SqliteRig(tmp_path / str(number))
        await fill(begun, b"a")
        async with begun.open() as journal:
            assert (journal.head.position, journal.restored, journal.made_anew) == (1, False, False)
        left = {file.name for file in begun.path.parent.iterdir()} - {"journal.db.anchor.new"}
        assert left == {"journal.db", "journal.db.anchor", "journal.db.lock"}
        return True

    number = 1
    while all(died := await asyncio.gather(is_begun_after(number), is_begun_after(number + 1))):  # each takes a while
        number += 2
    assert number > 1 or any(died), "nobody died"


async def test_an_interrupted_making_is_finished_only_if_its_files_are_whole_and_belong_together(
    rig: SqliteRig, path: Path, tmp_path: Path
) -> None:
    """A draft with its own anchor becomes the journal; any other anchor belongs to a lost journal."""
    draft = beside(path, ".making")
    await fill(rig)
    made = anchor_id(path)
    path.rename(draft)
    async with rig.open() as journal:
        assert (journal.journal_id, journal.made_anew) == (made, True)
    path.rename(draft)
    for of_another in (anchor.Anchor(made, Place(1, bytes(32))), anchor.Anchor(str(uuid.uuid4()), START)):
        anchor.write(path, of_another)
        with pytest.raises(JournalRefused, match="is missing, but its anchor says that there was one"):
            await fill(rig)
    anchor.write(path, anchor.Anchor(made, START))
    draft.write_bytes(b"half of a draft")
    with pytest.raises(JournalRefused, match="is missing, but its anchor says that there was one"):
        await fill(rig)
    anchor.path_beside(path).unlink()
    async with rig.open() as journal:
        assert journal.made_anew
        assert journal.journal_id != made


async def test_a_journal_that_must_exist_is_not_made(tmp_path: Path) -> None:
    """For instance on a disk that is not mounted: no file is made there, and an existing journal is served."""
    missing = tmp_path / "not-mounted" / "journal.db"
    with pytest.raises(JournalRefused, match=r"there is no journal at .*, and COMMAND_JOURNAL_MUST_EXIST"):
        await open_existing(missing)
    assert not missing.parent.exists()
    town = Town(tmp_path)
    try:
        await town.start_bank()
        with pytest.raises(DidNotStart, match="COMMAND_JOURNAL_MUST_EXIST"):
            await town.start_command(COMMAND_JOURNAL_MUST_EXIST="yes")
        await town.start_command()
        made = [town.command.serving["made_anew"]]
        await town.command.stop()
        await town.start_command(COMMAND_JOURNAL_MUST_EXIST="yes")
        assert [*made, town.command.serving["made_anew"]] == [True, False]
        assert town.command.serving["journal"] == str(tmp_path / "journal.db")
    finally:
        await town.__aexit__()


async def open_existing(path: Path) -> None:
    """Open a journal that must exist, and close it."""
    store = await SqliteFile(path).open(must_exist=True)
    await store.close()


# ---------------------------------------------------------------- owners and modes
def mode_of(file: Path) -> int:
    """A file's permissions."""
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_new_files_are_for_their_owner_alone_under_any_umask(tmp_path: Path, umask: int) -> None:
    """Every file of a running server, its folder, and a backup: they hold every user's history."""
    rig = SqliteRig(tmp_path / "made" / "here")
    before = os.umask(umask)
    try:
        async with rig.open() as journal:
            await journal.append(stream(1), 0, [REQUESTED], finished=False)
            backup(rig.path, tmp_path / "backup.db")
            modes = {file.name: mode_of(file) for file in [*rig.path.parent.iterdir(), tmp_path / "backup.db"]}
        restore_journal(SqliteFile(rig.path), tmp_path / "backup.db")
    finally:
        os.umask(before)
    names = {"journal.db", "journal.db-wal", "journal.db-shm", "journal.db.anchor", "journal.db.lock", "backup.db"}
    assert modes == dict.fromkeys(names, 0o600)
    assert mode_of(rig.path.parent) == 0o700
    restored = {file.name: mode_of(file) for file in rig.path.parent.iterdir()}
    assert set(restored.values()) == {0o600}, restored


@needs_root
@pytest.mark.parametrize("is_from_a_backup", [False, True])
async def test_a_restore_by_root_keeps_owner_and_mode_of_the_replaced_files(
    rig: SqliteRig, path: Path, tmp_path: Path, is_from_a_backup: bool
) -> None:
    """The server, another user, can write them all, even if the lock or the anchor is new."""
    await fill(rig, REQUESTED)
    backup(path, tmp_path / "backup.db")
    for file in path.parent.iterdir():
        os.chown(file, NOBODY, NOBODY)
        file.chmod(0o640)
    beside(path, ".lock").unlink()
    restore_journal(SqliteFile(path), tmp_path / "backup.db" if is_from_a_backup else None)
    kept = {file.name: (file.stat().st_uid, file.stat().st_gid) for file in path.parent.iterdir()}
    assert set(kept.values()) == {(NOBODY, NOBODY)}, kept
    assert (mode_of(path), mode_of(anchor.path_beside(path))) == (0o640, 0o640)


@needs_root
async def test_a_restore_by_root_into_an_empty_folder_is_for_the_folders_owner(
    rig: SqliteRig, path: Path, tmp_path: Path
) -> None:
    """On a new machine the server's user owns the folder."""
    await fill(SqliteRig(tmp_path), REQUESTED)
    os.chown(path.parent, NOBODY, NOBODY)
    restore_journal(SqliteFile(path), tmp_path / "journal.db")
    owners = {(file.name, file.stat().st_uid, mode_of(file)) for file in path.parent.iterdir()}
    assert owners == {(path.name + suffix, NOBODY, 0o600) for suffix in ("", ".anchor", ".lock")}


def as_nobody(*words: str, path: Path) -> "subprocess.CompletedProcess[str]":
    """Run a server as a user who may read everything, and write only his own files."""
    can_read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    user = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *can_read)
    return subprocess.run(
        ["setpriv", *user, sys.executable, "-m", "command_service", *words],
        cwd=ROOT,
        env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{path}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


needs_setpriv = pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")


@needs_root
@needs_setpriv
@pytest.mark.parametrize("roots", ["", "-wal", ".lock", "folder"])
async def test_a_server_without_write_permission_does_not_start(
    rig: SqliteRig, path: Path, tmp_path: Path, roots: str
) -> None:
    """It would report that it serves, and die at its first charge. The error names the file's owner and a remedy."""
    await asyncio.to_thread(killed_while_appending, path, after=5)
    for file in [*path.parent.iterdir(), path.parent]:
        os.chown(file, NOBODY, NOBODY)
    for above in path.parents:
        if above.is_relative_to("/tmp") and above != Path("/tmp"):  # pytest's folders are for root alone
            above.chmod(0o755)
    at_fault = path.parent if roots == "folder" else beside(path, roots)
    os.chown(at_fault, 0, 0)
    if roots == "folder":
        beside(path, "-wal").unlink()
        beside(path, "-shm").unlink()
        anchor.write(path, anchor.Anchor(anchor_id(path), START))
    else:
        at_fault.chmod(0o600)
    refused = await asyncio.to_thread(as_nobody, path=path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: ")
    if roots == "folder":
        assert "its folder can be written" in refused.stderr
    else:
        assert f"{at_fault} cannot be written (Permission denied): {at_fault} belongs to user 0, " in refused.stderr
        assert f"this program runs as user {NOBODY}, " in refused.stderr


@needs_root
async def test_a_journal_on_a_read_only_mount_is_refused(rig: SqliteRig, path: Path, bind: Callable[..., None]) -> None:
    """Linux remounts a disk so after an error."""
    await fill(rig, b"a")
    bind(path.parent, path.parent, "ro")
    with pytest.raises(JournalRefused, match=r"journal\.db\.lock cannot be written \(Read-only file system\)"):
        await fill(rig)


@needs_strace
@pytest.mark.parametrize(("error", "is_refused"), [("EROFS", True), ("EIO", True), ("ENOSPC", False)])
async def test_a_start_that_cannot_commit_is_refused_unless_it_only_lacks_room(
    rig: SqliteRig, path: Path, error: str, is_refused: bool
) -> None:
    """Every file can be opened for writing, but no commit succeeds: the start finds this before it reports that it serves."""
    await fill(rig, b"a")
    failing = ["-P", str(beside(path, "-wal")), "-e", "trace=pwrite64", "-e", f"inject=pwrite64:error={error}:when=1+"]
    with process("strace", "-f", "-qq", "-o", os.devnull, *failing, *writer(path, appends=0)) as starting:
        said, why = await asyncio.to_thread(starting.communicate, timeout=60)
    assert (starting.returncode, said) == ((1, "") if is_refused else (0, "open\n"))
    assert ("cannot be used: disk I/O error" in why) == is_refused
    await fill(rig, b"b", first=1)


# ---------------------------------------------------------------- file systems
def lies_on(kind: str, folder: Path) -> LocalDisk:
    """A machine on which a folder is on this file system."""
    mounts = folder.parent / "mounts"
    mounts.write_text(f"/dev/vda1 / ext4 rw 0 0\nshare {folder} {kind} rw 0 0\n")
    return LocalDisk(mounts_file=mounts)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs"])
async def test_a_journal_on_a_known_good_file_system_is_served(rig: SqliteRig, path: Path, kind: str) -> None:
    """On a disk of this machine."""
    rig.disk = lies_on(kind, path.parent)
    await fill(rig, b"a")


SHARED = (
    *("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "vboxsf", "vmhgfs", "ceph", "fuse.s3fs", "fuse.gcsfuse"),
    *("fuse.grpcfuse", "fuse.sshfs", "fuse", "fuseblk", "fakeowner", "prl_fs", "exfat", "a-kind-of-tomorrow"),
)


@pytest.mark.parametrize("kind", SHARED)
async def test_any_other_file_system_is_refused_and_the_override_names_its_risk(
    rig: SqliteRig, path: Path, kind: str
) -> None:
    """Unknown ones too. No file is made there."""
    disk = lies_on(kind, path.parent)

    class Shared(Parts):
        def disk(self) -> LocalDisk:
            return disk

    text = (
        f"a file system of the kind {kind}, .* COMMAND_JOURNAL_ANY_FILE_SYSTEM=yes .* risks that what was acknowledged"
    )
    environment = {
        "COMMAND_JOURNAL": f"sqlite:///{path}",
        "COMMAND_LISTEN": "127.0.0.1:0",
        "COMMAND_FEED_LISTEN": "127.0.0.1:0",
    }
    with pytest.raises(JournalRefused, match=text):
        async with serve(settings.read(Settings, environment), Shared):
            pass
    with pytest.raises(JournalRefused, match=text):
        restore_journal(SqliteFile(path), path, disk=disk)
    assert list(path.parent.iterdir()) == []
    environment["COMMAND_JOURNAL_ANY_FILE_SYSTEM"] = "yes"
    async with serve(settings.read(Settings, environment), Shared):
        pass
    restore_journal(SqliteFile(path), None, any_file_system=True, disk=disk)


async def test_a_system_without_a_list_of_mounts_refuses_no_journal(rig: SqliteRig, path: Path) -> None:
    """Such as macOS."""
    rig.disk = LocalDisk(mounts_file=path.parent / "no-such-file")
    await fill(rig, b"a")


# ---------------------------------------------------------------- later formats
async def test_the_operators_commands_refuse_a_journal_of_a_later_format(
    rig: SqliteRig, path: Path, tmp_path: Path
) -> None:
    """They do not know its meaning. No file is changed or made."""
    await fill(rig, REQUESTED)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE journal SET format = format + 1")
        connection.commit()
    before = path.read_bytes()
    sound = SqliteRig(tmp_path)
    await fill(sound, REQUESTED)
    for work in (
        lambda: verify_journal(SqliteFile(path)),
        lambda: list(print_journal(SqliteFile(path), None)),
        lambda: list(print_journal(SqliteFile(path), REQUEST.charge_id)),
        lambda: backup(path, tmp_path / "backup.db"),
        lambda: restore_journal(SqliteFile(path), None),
        lambda: restore_journal(SqliteFile(sound.path), path),
    ):
        with pytest.raises(
            JournalRefused,
            match=rf"has format {table.FORMAT + 1}; this server writes format {table.FORMAT}, .*: use the version",
        ):
            work()
    assert path.read_bytes() == before
    assert not (tmp_path / "backup.db").exists()
    await fill(sound)
