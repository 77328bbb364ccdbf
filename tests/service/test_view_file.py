"""A view's file: one server has it, under every name, and no other user can read it."""

import contextlib
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from query_service.schema import FORMAT
from query_service.view import View
from query_service.view_file import ViewUnusable
from tests.service.query_rig import process_of

NO_FEED = "127.0.0.1:1"
OPEN = Path("/proc/self/fd")


@contextlib.contextmanager
def same_name(view: Path) -> Iterator[Path]:
    yield view.parent / ".." / view.parent.name / view.name


@contextlib.contextmanager
def symbolic_link(view: Path) -> Iterator[Path]:
    link = view.with_name("link.db")
    link.symlink_to(view)
    yield link


@contextlib.contextmanager
def linked_folder(view: Path) -> Iterator[Path]:
    link = view.parent / "folder"
    link.symlink_to(view.parent)
    yield link / view.name


@contextlib.contextmanager
def hard_link(view: Path) -> Iterator[Path]:
    link = view.with_name("hard.db")
    link.hardlink_to(view)
    yield link


@contextlib.contextmanager
def mounted_elsewhere(view: Path) -> Iterator[Path]:
    other = view.with_name("other") / "other.db"
    other.parent.mkdir()
    other.touch()
    if subprocess.run(["mount", "--bind", view, other], capture_output=True, check=False).returncode:
        pytest.skip("a file cannot be mounted at another place here: that takes root")
    try:
        yield other
    finally:
        subprocess.run(["umount", "--lazy", other], check=True)


NAMES = [same_name, symbolic_link, linked_folder, hard_link, mounted_elsewhere]


@pytest.mark.parametrize("naming", NAMES)
async def test_a_second_server_under_any_name_of_the_view_ends_at_its_start(
    tmp_path: Path, naming: Callable[[Path], contextlib.AbstractContextManager[Path]]
) -> None:
    """With a clear line in the log, and before it touches any file."""
    path = tmp_path / "view.db"
    view = await View.open(path)
    with naming(path) as other:
        async with process_of(NO_FEED, other) as process:
            assert await process.ended() == 1
    assert process.text().splitlines()[-1].startswith("error: another query server has the view")
    await view.reset("a journal")
    assert (await view.checkpoint()).journal_id == "a journal"
    await view.close()


async def test_a_link_made_before_the_view_is_another_name_of_it(tmp_path: Path) -> None:
    """Two names can be one before the file exists."""
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "view.db")
    view = await View.open(link)
    with pytest.raises(ViewUnusable, match="another query server"):
        await View.open(tmp_path / "view.db")
    await view.close()
    assert {file.name for file in tmp_path.iterdir()} == {"link.db", "view.db", "view.db.lock"}
    assert link.is_symlink()


async def test_a_view_with_two_names_is_refused_even_without_another_server(tmp_path: Path) -> None:
    """SQLite keeps the newest rows beside the name by which the file was opened: under the other name they are missing."""
    path = tmp_path / "view.db"
    await (await View.open(path)).close()
    with hard_link(path) as other:
        for name in (path, other):
            with pytest.raises(ViewUnusable, match="more than one name"):
                await View.open(name)
        other.unlink()
    await (await View.open(path)).close()


async def test_a_view_that_replaced_another_is_locked_too(tmp_path: Path) -> None:
    """The lock is on the new file, not on the removed one."""
    path = tmp_path / "view.db"
    await (await View.open(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    view = await View.open(path)
    with mounted_elsewhere(path) as other, pytest.raises(ViewUnusable, match="another query server"):
        await View.open(other)
    await view.close()


async def test_a_closed_view_can_be_opened_again_and_leaves_no_descriptor(tmp_path: Path) -> None:
    """Also after a refused start."""
    (tmp_path / "no.db").write_text("no view at all, and long enough to have a header" * 10)
    before = len(list(OPEN.iterdir()))
    for _ in range(3):
        await (await View.open(tmp_path / "view.db")).close()
        with pytest.raises(ViewUnusable):
            await View.open(tmp_path / "no.db")
    assert len(list(OPEN.iterdir())) == before


async def test_only_our_own_user_can_read_a_view_that_we_made(tmp_path: Path) -> None:
    """It holds every user's history. A folder that we made is private too; an existing one keeps its mode."""
    path = tmp_path / "made" / "view.db"
    tmp_path.chmod(0o755)
    view = await View.open(path)
    await view.reset("a journal")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("view.db", "view.db-wal", "view.db-shm", "view.db.lock"), 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    await view.close()
