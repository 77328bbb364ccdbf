"""Where a journal may lie: on a kind of file system that keeps locks and syncs, and under one name.

Where the system does not tell what is mounted (macOS), nothing is refused.
"""

import contextlib
from pathlib import Path

from chassis.disk import Disk
from command_service.journal import JournalRefused

# What they promise outlives the process and, but for those in memory, the power.
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
KNOWN_GOOD = IN_MEMORY | frozenset(
    {
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs"),
        *("overlay", "overlayfs"),  # a container's own files: gone with the container, unless they lie on a volume
        *("ufs", "hfs", "apfs"),
    }
)


def kind_of(path: Path, disk: Disk) -> str:
    """The kind of file system that a path lies on; nothing if the system does not tell."""
    found, kind, resolved = -1, "", path.resolve()
    for point, this_kind in disk.mounts():
        if resolved.is_relative_to(point) and len(point) >= found:  # at one point, the later hides the earlier
            found, kind = len(point), this_kind
    return kind


def refuse_unknown_kind(path: Path, disk: Disk, *, any_file_system: bool) -> None:
    """See that a journal lies on a kind of file system that is known to be good. Raises JournalRefused."""
    kind = kind_of(path, disk)
    if kind and kind not in KNOWN_GOOD and not any_file_system:
        raise JournalRefused(
            f"the journal {path} lies on a file system of the kind {kind}, which is not known to keep SQLite's locks and "
            "syncs (network and shared folders do not): put it on a disk of this machine (ext4, xfs, btrfs, zfs...). "
            "COMMAND_JOURNAL_ANY_FILE_SYSTEM=yes serves from it all the same, and risks that what was acknowledged is lost "
            "and that cards are charged twice"
        )


def refuse_other_names(path: Path, disk: Disk) -> None:
    """See that a journal's file has no other name: its WAL, lock and anchor lie beside one of them. Raises JournalRefused."""
    with contextlib.suppress(FileNotFoundError):
        if (links := path.stat().st_nlink) > 1:
            raise JournalRefused(
                f"the journal {path} has {links} names (hard links), and a server by another one would not meet this one's "
                f"WAL: remove the others (find them with: find / -xdev -samefile {path})"
            )
    if any(point == str(path.resolve()) for point, _ in disk.mounts()):
        raise JournalRefused(
            f"the journal {path} is a mount point: the file alone is mounted there, and its WAL and its anchor lie "
            "elsewhere and are lost. Mount the folder that holds it"
        )
