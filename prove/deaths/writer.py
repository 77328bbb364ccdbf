"""A process that appends to a journal with the product's own code, to be recorded, failed and killed.

    python -m prove.deaths.writer JOURNAL TOLD APPENDS [--seed N] [--set PRAGMA=VALUE ...] [--anchor-seconds N]
                           [--leave-out STEP ...] [--plant BUG]

It first tells that it has opened the journal and what it holds, then appends, several at once, and tells each append
that was acknowledged: one line a telling in the file TOLD, one `write` each, so that a recording shows its place among the
writes and syncs. `full` tells of an append that was definitely not stored; it is tried again. The exit status is the
server's: 74 when a commit's fate is unknown.

`--set` and `--anchor-seconds` make what is rare frequent: checkpoints and anchors. `--set synchronous=1` and
`--leave-out`, of a step of the start, and `--plant`, one of `prove.journal_bugs`, are for controls, which must
lose what was told.
"""

import argparse
import asyncio
import contextlib
import os
import random
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from chassis.disk import BUSY_SECONDS, LOCAL_DISK, Disk, file_uri
from command_service.journal import JournalRefused, NotStored, VersionConflict
from command_service.journal.commits import RHYTHM, Rhythm
from command_service.journal.sqlite.table import PROBE, WRITER_PRAGMAS
from prove.journal_bugs import Bug, named, open_journal
from rig.around import Around

EX_IOERR = 74
EX_REFUSED = 3
EX_FULL = 75
# A disk that stays full for so many tries is full for good.
TRIES = 25
# A stream that came to rest goes on with the next operation, and is unfinished again.
RECORDS_AN_OPERATION, RECORDS_A_STREAM = 3, 6
# A batch takes what queued up during the commit before: so many make batches of all sizes.
WRITERS_AT_ONCE = 4


@contextlib.contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder for what dies without its machine: in memory, where there is such a place, since a disk is only slower."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="prove-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def end_process() -> NoReturn:
    """End as the server does when a commit's fate is unknown."""
    os._exit(EX_IOERR)


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1_000


async def write(journal_path: Path, told: int, appends: int, seed: int, *, disk: Disk, rhythm: Rhythm, bug: Bug) -> int:
    """Append, and tell what was acknowledged. Returns the exit status."""

    def tell(*words: object) -> None:
        os.write(told, (" ".join(map(str, words)) + "\n").encode())

    try:
        journal = await open_journal(journal_path, now=now, end_process=end_process, rhythm=rhythm, disk=disk, bug=bug)
    except (JournalRefused, OSError) as refused:
        tell("refused", str(refused))
        return EX_REFUSED
    # Whoever reads is served from here on: what is there now must still be there after a cut.
    tell("open", journal.head.position, journal.head.chain.hex())
    left = appends

    async def stream(number: int) -> None:
        nonlocal left
        chance = random.Random(f"{seed}/{number}")
        charge_id, version = "", 0
        while left > 0:
            left -= 1
            if not version:
                charge_id = str(uuid.UUID(bytes=chance.randbytes(16)))
            event = chance.randbytes(chance.choice((40, 90, 200, 700)))
            for tries in range(TRIES):
                try:
                    finished = (version + 1) % RECORDS_AN_OPERATION == 0
                    records = await journal.append(charge_id, version, [event], finished=finished)
                    break
                except NotStored:
                    tell("full", charge_id, version)
                    if tries == TRIES - 1:
                        os._exit(EX_FULL)
                    await asyncio.sleep(0.02)
            assert not isinstance(records, VersionConflict), "each stream has one writer"
            for record in records:
                tell("stored", record.position, record.chain.hex())
            version = (version + 1) % RECORDS_A_STREAM

    await asyncio.gather(*map(stream, range(WRITERS_AT_ONCE)))
    tell("closing")
    await journal.close()
    return 0


class Other(sqlite3.Connection):
    """A connection that does other statements than it is told, where there is one."""

    instead: Mapping[str, str] = {}

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """Execute what stands for a statement."""
        return super().execute(self.instead.get(sql, sql), *parameters)


class OtherDisk(Around[Disk]):
    """A disk whose connections are `Other`, and which may leave out to store a file again."""

    def __init__(self, instead: Mapping[str, str], *, stores_again: bool) -> None:
        super().__init__(LOCAL_DISK)
        self._instead = instead
        self._stores_again = stores_again

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        """Open a connection to a journal, or to its draft, which is made as ever."""
        connection = sqlite3.connect(
            file_uri(path, read_only=read_only),
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=Other,
        )
        if path.suffix != ".making":
            connection.instead = self._instead
        return connection

    def store_again(self, file: Path) -> None:
        """Write a file again, unless that is left out."""
        if self._stores_again:
            LOCAL_DISK.store_again(file)


def _instead(settings: Sequence[str], left_out: Collection[str]) -> dict[str, str]:
    """Say what stands for statements of the product: other settings, which read back as its own, and nothing for steps."""
    instead: dict[str, str] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        instead[f"PRAGMA {name} = {WRITER_PRAGMAS[name]}"] = f"PRAGMA {name} = {value}"
        instead[f"PRAGMA {name}"] = f"SELECT {WRITER_PRAGMAS[name]}"
    if "checkpoint" in left_out:
        instead["PRAGMA wal_checkpoint(TRUNCATE)"] = "SELECT 0, 0, 0"
    if "probe" in left_out:
        instead[PROBE] = "SELECT 0"
    return instead


def main() -> NoReturn:
    """Read the arguments, write, and exit."""
    parser = argparse.ArgumentParser(prog="python -m prove.deaths.writer")
    parser.add_argument("journal", type=Path)
    parser.add_argument("told", type=Path)
    parser.add_argument("appends", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--leave-out", action="append", default=[], choices=["checkpoint", "probe", "store_wal_again"])
    parser.add_argument("--plant", default="")
    parser.add_argument("--anchor-seconds", type=float, default=RHYTHM.look_every_seconds)
    chosen = parser.parse_args()
    disk = OtherDisk(_instead(chosen.set, chosen.leave_out), stores_again="store_wal_again" not in chosen.leave_out)
    told = os.open(chosen.told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    status = asyncio.run(
        write(
            chosen.journal,
            told,
            chosen.appends,
            chosen.seed,
            disk=cast("Disk", disk),
            rhythm=Rhythm(look_every_seconds=chosen.anchor_seconds),
            bug=named(chosen.plant),
        )
    )
    os._exit(status)


if __name__ == "__main__":
    main()
