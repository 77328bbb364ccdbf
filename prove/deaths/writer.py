"""A process that appends to a journal with the product's own code, to be recorded, failed and killed.

    python -m prove.deaths.writer JOURNAL TOLD APPENDS [--seed N] [--set PRAGMA=VALUE ...] [--anchor-seconds N]
                           [--leave-out STEP ...] [--plant BUG]

It first tells that it has opened the journal and what it holds, then appends, several at once, and tells each append
that was acknowledged: one line a telling in the file TOLD, one `write` each, so that a recording shows its place among the
writes and syncs. `full` tells of an append that was definitely not stored; it is tried again. The exit status is the
server's: 74 when a commit's fate is unknown.

`--set` and `--anchor-seconds` make what is rare frequent: checkpoints and anchors. `--set synchronous=1` and
`--leave-out`, of a step of the start, and `--plant`, one of `prove.sabotaged`, are for controls, which must lose what was told.
"""

import argparse
import asyncio
import contextlib
import os
import random
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

from command_service.journal import Journal, JournalRefused, NotStored, sqlite, table, upkeep

EX_IOERR = 74
EX_REFUSED = 3
EX_FULL = 75
# A disk that stays full for so many tries is full for good.
TRIES = 25
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


async def write(open_journal: Callable[[], Awaitable[Journal]], told: int, appends: int, seed: int) -> int:
    """Append, and tell what was acknowledged. Returns the exit status."""

    def tell(*words: object) -> None:
        os.write(told, (" ".join(map(str, words)) + "\n").encode())

    try:
        journal = await open_journal()
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
                    records = await journal.append(charge_id, version, [event], finished=version == 2)
                    break
                except NotStored:
                    tell("full", charge_id, version)
                    if tries == TRIES - 1:
                        os._exit(EX_FULL)
                    await asyncio.sleep(0.02)
            for record in records:
                tell("stored", record.position, record.chain.hex())
            version = (version + 1) % 3

    await asyncio.gather(*map(stream, range(WRITERS_AT_ONCE)))
    tell("closing")
    await journal.close()
    return 0


def _nothing(*_: object) -> None:
    """Stand in for a part of the start, in a control."""


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
    parser.add_argument("--anchor-seconds", type=float, default=sqlite.ANCHOR_EVERY_SECONDS)
    chosen = parser.parse_args()
    pragmas = dict(table.WRITER_PRAGMAS)
    for setting in chosen.set:
        name, _, value = setting.partition("=")
        pragmas[name] = value
    vars(sqlite)["WRITER_PRAGMAS"] = pragmas
    vars(sqlite)["ANCHOR_EVERY_SECONDS"] = chosen.anchor_seconds
    for part in chosen.leave_out:
        vars(upkeep)[part] = _nothing
    told = os.open(chosen.told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    open_journal: Callable[[], Awaitable[Journal]] = partial(
        sqlite.SqliteJournal.open, chosen.journal, now=now, end_process=end_process
    )
    with contextlib.ExitStack() as stack:
        if chosen.plant:
            # The whole product, of which a writer needs a part only.
            from chassis import settings
            from command_service.parts import Parts
            from command_service.settings import Settings
            from prove.sabotaged import planted

            wrong = stack.enter_context(planted(chosen.plant, Parts))
            open_journal = wrong(settings.read(Settings, {"COMMAND_JOURNAL": f"sqlite:///{chosen.journal}"})).journal
        status = asyncio.run(write(open_journal, told, chosen.appends, chosen.seed))
    os._exit(status)


if __name__ == "__main__":
    main()
