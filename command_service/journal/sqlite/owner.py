"""The owner and mode of a journal's files: all of them are as the journal's own file is.

A new file is for its owner alone, whatever the umask. A file that root makes or restores belongs to the owner of the file
that it replaces, or to the folder's owner: the server, which may run as another user, must be able to write it.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

ONLY_THE_OWNER = 0o600
ONLY_THE_OWNERS_FOLDER = 0o700
UNCHANGED = -1


class Owner(NamedTuple):
    """What fchown and fchmod take."""

    user: int
    group: int
    mode: int


def owner_beside(*files: Path) -> Owner:
    """The owner and mode of the first of some files that exists; if none does, what is right for a new one."""
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            return Owner(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    if os.geteuid():
        return Owner(UNCHANGED, UNCHANGED, ONLY_THE_OWNER)
    folder = files[0].parent.stat()
    return Owner(folder.st_uid, folder.st_gid, ONLY_THE_OWNER)


def give(descriptor: int, owner: Owner) -> None:
    """Give an open file this owner and mode. Raises PermissionError if it cannot be given to somebody else."""
    os.fchmod(descriptor, owner.mode)
    status = os.fstat(descriptor)
    if any(UNCHANGED != new != old for new, old in zip(owner[:2], (status.st_uid, status.st_gid), strict=True)):
        os.fchown(descriptor, owner.user, owner.group)


def create(path: Path, owner: Owner) -> None:
    """Make an empty file that SQLite will find, with this owner if we may. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, ONLY_THE_OWNER)
    try:
        with contextlib.suppress(PermissionError):
            give(descriptor, owner)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder if it is missing, for its owner alone. Raises OSError."""
    if not folder.exists():
        folder.mkdir(mode=ONLY_THE_OWNERS_FOLDER, parents=True)
        folder.chmod(ONLY_THE_OWNERS_FOLDER)


def described(path: Path) -> str:
    """Describe a file's owner and this process's user, for the person who is to set it right."""
    status = path.stat()
    return (
        f"{path} belongs to user {status.st_uid}, group {status.st_gid} (mode {stat.S_IMODE(status.st_mode):04o}), and this "
        f"program runs as user {os.geteuid()}, group {os.getegid()}"
    )
