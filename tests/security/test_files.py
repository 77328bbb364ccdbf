"""Every file and folder that the servers and the operator's commands make is its owner's alone, whatever the umask."""

import asyncio
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.world import a_request
from tests.security.two_tenants import two_tenants

OPEN_TO_OTHERS = 0o077


@pytest.fixture(params=[0o022, 0o000], ids=["umask 022", "umask 000"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    former = os.umask(request.param)
    yield
    os.umask(former)


def _open_to_others(folder: Path) -> dict[str, str]:
    """The files and folders below a folder that others may do anything with, and their modes."""
    modes = {str(path.relative_to(folder)): path.lstat().st_mode for path in folder.rglob("*")}
    return {name: stat.filemode(mode) for name, mode in modes.items() if mode & OPEN_TO_OTHERS}


async def _run(*arguments: str, folder: Path, **environment: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        cwd=folder,
    )
    assert await asyncio.wait_for(process.wait(), 30) == 0, arguments


@pytest.mark.usefixtures("umask")
async def test_what_servers_and_commands_make_is_their_owners_alone(tmp_path: Path) -> None:
    """Journal, anchor, lock, view and ledger, each with its siblings while the servers run, a backup, and what restore makes.

    They lie in folders that the servers make too. A rig's log is the rig's.
    """
    own, backup = tmp_path / "town" / "own", tmp_path / "town" / "backup.db"
    journal = f"sqlite:///{own / 'deep' / 'journal.db'}"
    async with two_tenants(tmp_path, COMMAND_JOURNAL=journal) as servers:
        client = await servers.client("a")
        assert await client.commands.Charge(a_request())
        await _run("command_service", "backup", str(backup), folder=tmp_path, COMMAND_JOURNAL=journal)
        await _run("command_service", "verify-journal", folder=tmp_path, COMMAND_JOURNAL=journal)
        restored = f"sqlite:///{tmp_path / 'town' / 'restored' / 'journal.db'}"
        await _run("command_service", "restore", str(backup), folder=tmp_path, COMMAND_JOURNAL=restored)
        made = {path.name for path in (tmp_path / "town").rglob("*")}
        assert {"own", "journal.db", "journal.db-wal", "journal.db-shm", "view.db", "bank.db", "backup.db"} <= made
        assert "restored" in made
        left = _open_to_others(tmp_path / "town")
        assert {name for name in left if not name.endswith(".log")} == set()


@pytest.mark.usefixtures("umask")
async def test_certificates_for_trying_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    """A folder in which others may write would let them put their own authority in the place of ours."""
    await _run("rig.certs", str(tmp_path / "made" / "certs"), folder=Path.cwd())
    keys = list(tmp_path.rglob("tls.key"))
    assert len(keys) == 4
    assert _open_to_others(tmp_path) == {}


@pytest.mark.usefixtures("umask")
def test_the_look_at_modes_finds_one_that_is_open(tmp_path: Path) -> None:
    """Of a file, and of a folder."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    assert set(_open_to_others(tmp_path)) == {"folder", "folder/file"}
